use super::*;
use serde_json::json;

fn summary() -> TaskSummary {
    let exec = |argv: serde_json::Value, end: serde_json::Value| {
        json!({"id": "01920000-0000-7000-8000-000000000001", "argv": argv, "cwd": "/workspace", "tty": false,
               "created": "2026-01-01T00:00:00Z", "state": "ended", "end": end,
               "judgement": if end["kind"] == "refused" { "deny" } else { "allow" }})
    };
    let finished = json!({"kind": "finished", "argv": [], "cwd": "/", "env_names": [], "outcome": "exited", "exit_code": 0,
        "wall_seconds": 3.2, "usage": {"source": "cgroup_v2", "cpu_user_seconds": 2.0, "cpu_system_seconds": 0.5,
        "memory_peak_bytes": 104857600}, "network_bytes_sent": 10, "network_bytes_received": 2048,
        "stdout_bytes": 1500, "stderr_bytes": 36, "rules": []});
    let rule = json!({"id": "prefix:1", "file": "agent.rules", "line": 3, "decision": "forbidden"});
    serde_json::from_value(json!({
        "id": "01920000-0000-7000-8000-000000000000", "name": "demo\u{1b}", "outcome": "finished", "wall_seconds": 65.0,
        "execs": [
            exec(json!(["cargo", "test"]), finished),
            exec(json!(["git", "push", "\u{202e}"]),
                 json!({"kind": "refused", "reason": "pushing is for people", "how_to_ask": "ask", "rules": [rule]})),
            exec(json!(["a".repeat(80)]), json!({"kind": "failed", "error": "the sandbox is gone"})),
        ],
        "refused_egress": [{"host": "pastebin.com", "port": 443, "rule": "deny", "reason": "denied by the task", "count": 2}],
    }))
    .unwrap()
}

#[test]
fn the_closing_table_shows_what_ran_and_what_was_refused() {
    insta::assert_snapshot!(of_summary(&summary()));
}

#[test]
fn lengths_of_time_are_in_the_unit_that_suits() {
    let shown = [0.0004, 0.012, 3.2, 245.0, 7325.0].map(seconds);
    assert_eq!(shown, ["0.4ms", "12ms", "3.20s", "4m05s", "2h02m"]);
}
