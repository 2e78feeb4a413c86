//! The probes of `tests/data/record/probes.jsonl`, whose answer stands in the record; `escape` has those that are answered inside.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::{Value, json};

use crate::{assert_whole, belljar, records};

/// The command of a probe of the corpus.
fn probe(id: &str) -> String {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/record/probes.jsonl");
    let text = std::fs::read_to_string(file).unwrap();
    let mut probes = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    let probe = probes.find(|probe| probe["id"] == id).unwrap();
    probe["command"].as_str().unwrap().to_owned()
}

/// Runs one command in a task of its own; gives the record of its end.
fn run(state: &Path, flags: &[&str], argv: &[&str]) -> Value {
    let mut words = vec!["run", "--quiet", "--network", "none"];
    words.extend(flags);
    words.push("--");
    words.extend(argv);
    belljar(state, &words).stdout(Stdio::null()).status().unwrap();
    let ends = records(state).into_iter().rev();
    ends.into_iter()
        .find(|record| record["kind"] == "exec.finished")
        .unwrap()
}

#[test]
fn newlines_quotes_and_control_bytes_do_not_break_a_record() {
    let state = tempfile::tempdir().unwrap();
    let nasty = "a\nb\"c\td\\ \u{1b}[2J\u{7} \u{202e}txt \u{1}\u{7f} {\"kind\":\"exec.finished\"}";
    for argv in [["sh", "-c", &probe("AUD-001")], ["printf", "%s", nasty]] {
        let end = run(state.path(), &["--reason", nasty], &argv);
        assert_eq!(end["argv"], json!(argv));
        assert_eq!(end["reason"], nasty);
    }
    // For people, none of it reaches the terminal as it is.
    let shown = belljar(state.path(), &["audit", "ls"]).output().unwrap().stdout;
    let shown = String::from_utf8(shown).unwrap();
    assert!(
        !shown.chars().any(|c| c.is_control() && c != '\n' || c == '\u{202e}'),
        "{shown:?}"
    );
    assert_eq!(shown.lines().count(), records(state.path()).len());
    assert_whole(state.path());
}

#[test]
fn names_of_files_that_are_left_are_told_without_loss() {
    let (state, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let root = format!("{}:/workspace", work.path().display());
    let script = format!(
        "cd /workspace; {}",
        probe("FT-010").replace("open(n,'wb').close()", "os.mkfifo(n)")
    );
    run(state.path(), &["--write", &root], &["sh", "-c", &script]);
    let records = assert_whole(state.path());
    let finished = records.iter().find(|record| record["kind"] == "task.finished").unwrap();
    let left: BTreeSet<&str> = finished["left_files"]
        .as_array()
        .unwrap()
        .iter()
        .map(|file| file.as_str().unwrap())
        .collect();
    assert_eq!(left.len(), 7, "{left:?}");
    for name in [r"\xFF\xFE", r"a\nb", r"\u{1b}[2J", r"\u{202e}txt", r"..\\.."] {
        assert!(left.iter().any(|file| file.contains(name)), "no {name} in {left:?}");
    }
}

#[test]
fn a_signal_is_told_as_one() {
    let state = tempfile::tempdir().unwrap();
    let end = run(state.path(), &[], &["sh", "-c", &probe("LIF-020")]);
    assert_eq!(
        (&end["outcome"], &end["signal"], &end["exit_code"]),
        (&json!("signaled"), &json!(11), &Value::Null)
    );
}

#[test]
fn pid_1_cannot_be_killed_and_what_is_left_of_shared_memory_goes() {
    let state = tempfile::tempdir().unwrap();
    let segments = || std::fs::read_to_string("/proc/sysvipc/shm").unwrap().lines().count();
    let before = segments();
    let end = run(
        state.path(),
        &[],
        &["sh", "-c", &probe("LIF-008").replace("sleep 1; ", "")],
    );
    assert_eq!((&end["outcome"], &end["exit_code"]), (&json!("exited"), &json!(0)));
    run(state.path(), &[], &["sh", "-c", &probe("RES-012")]);
    assert_eq!(segments(), before);
}

#[test]
fn a_denied_a_late_a_hungry_and_a_lost_command_have_one_record_each() {
    let state = tempfile::tempdir().unwrap();
    let rules = state.path().join("test.rules");
    std::fs::write(
        &rules,
        "prefix_rule(pattern = [\"forbidden\"], decision = \"forbidden\")\n",
    )
    .unwrap();
    let code = belljar(
        state.path(),
        &["run", "--quiet", "--rules", rules.to_str().unwrap(), "--", "forbidden"],
    )
    .status();
    assert_eq!(code.unwrap().code(), Some(120));
    let late = run(state.path(), &["--exec-timeout", "100ms"], &["sleep", "600"]);
    assert_eq!(late["outcome"], "timed_out");
    let hungry = run(
        state.path(),
        &["--memory", "48MiB"],
        &["python3", "-c", "x = b'x' * (1 << 28)"],
    );
    // Where memory cannot be limited there is nothing to be killed for.
    if hungry["usage"]["memory_peak_bytes"].is_u64() && hungry["usage"]["source"] != "rusage" {
        assert_eq!(
            (&hungry["outcome"], &hungry["usage"]["oom_limit"]),
            (&json!("oom_killed"), &json!("task"))
        );
        assert!(hungry["usage"]["oom_kills"].as_u64() > Some(0));
    }
    let mut child = belljar(
        state.path(),
        &[
            "run",
            "--quiet",
            "--network",
            "none",
            "--",
            "sh",
            "-c",
            "echo; sleep 600",
        ],
    )
    .stdout(Stdio::piped())
    .spawn()
    .unwrap();
    BufReader::new(child.stdout.take().unwrap())
        .lines()
        .next()
        .unwrap()
        .unwrap();
    child.kill().unwrap();
    child.wait().unwrap();
    run(state.path(), &[], &["true"]);

    let records = assert_whole(state.path());
    let refused = records.iter().filter(|record| record["kind"] == "exec.refused").count();
    let outcomes: Vec<&str> = records
        .iter()
        .filter(|record| record["kind"] == "exec.finished")
        .map(|record| record["outcome"].as_str().unwrap())
        .collect();
    assert_eq!(refused, 1);
    let lost = outcomes.iter().filter(|outcome| **outcome == "lost").count();
    assert_eq!((outcomes.len(), lost), (4, 1), "{outcomes:?}");
}

/// A live task over lines of JSON.
struct Live {
    child: Child,
    input: std::process::ChildStdin,
    lines: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Live {
    fn start(state: &Path) -> Self {
        Self::configured(state, state)
    }

    /// With `config`/belljar/config.toml as the user's own.
    fn configured(state: &Path, config: &Path) -> Self {
        let mut child = belljar(state, &["run", "--stdio", "--network", "none"])
            .env("XDG_CONFIG_HOME", config)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let input = child.stdin.take().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Self { child, input, lines }
    }

    fn say(&mut self, id: u64, method: &str, params: Value) {
        writeln!(self.input, "{}", json!({"id": id, "method": method, "params": params})).unwrap();
    }

    /// Reads on until a message of which `is` holds.
    fn until(&mut self, mut is: impl FnMut(&Value) -> bool) -> Value {
        loop {
            let line = self.lines.next().expect("the talk goes on").unwrap();
            let message = serde_json::from_str(&line).unwrap();
            if is(&message) {
                return message;
            }
        }
    }

    fn end(mut self) {
        drop(self.input);
        for _ in self.lines {}
        self.child.wait().unwrap();
    }
}

#[test]
fn fifty_commands_at_once_have_streams_and_records_of_their_own() {
    let state = tempfile::tempdir().unwrap();
    let mut live = Live::start(state.path());
    for n in 0..50 {
        let script = format!("echo {n}; {}", probe("LIF-023"));
        live.say(n, "exec.start", json!({"argv": ["sh", "-c", script]}));
    }
    let mut ended = 0;
    live.until(|message| {
        ended += u32::from(message["params"]["type"] == "ended");
        ended == 50
    });
    live.end();
    let records = assert_whole(state.path());
    let ends: Vec<&Value> = records
        .iter()
        .filter(|record| record["kind"] == "exec.finished")
        .collect();
    let outputs: BTreeSet<&str> = ends.iter().map(|end| end["stdout_digest"].as_str().unwrap()).collect();
    assert_eq!((ends.len(), outputs.len()), (50, 50));
    assert!(ends.iter().all(|end| end["exit_code"] == 0));
}

#[test]
fn a_flood_is_cut_and_said_to_be_and_the_tool_stays_small() {
    let state = tempfile::tempdir().unwrap();
    let mut live = Live::start(state.path());
    live.say(1, "exec.start", json!({"argv": ["sh", "-c", probe("RES-014")]}));
    live.until(|message| message["params"]["type"] == "ended");
    let status = std::fs::read_to_string(format!("/proc/{}/status", live.child.id())).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let kib: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(kib < 200 << 10, "belljar came to {kib} KiB");
    live.end();
    let end = assert_whole(state.path());
    let end = end.iter().find(|record| record["kind"] == "exec.finished").unwrap();
    assert_eq!(end["outcome"], "output_limit");
    assert!(end["stdout_bytes"].as_u64() > Some(0));
}

#[test]
fn what_execs_used_adds_up_to_what_their_task_used() {
    let state = tempfile::tempdir().unwrap();
    let mut live = Live::start(state.path());
    for n in 0..4 {
        let busy = "i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done; (sh -c 'i=0; while [ $i -lt 30000 ]; do i=$((i+1)); done')";
        live.say(n, "exec.start", json!({"argv": ["sh", "-c", busy]}));
        live.until(|message| message["params"]["type"] == "ended");
    }
    live.end();
    let records = assert_whole(state.path());
    let cpu = |record: &Value| {
        let part = |name: &str| record["usage"][name].as_f64().unwrap();
        part("cpu_user_seconds") + part("cpu_system_seconds")
    };
    let of_execs: f64 = records
        .iter()
        .filter(|record| record["kind"] == "exec.finished")
        .map(cpu)
        .sum();
    let task = records.iter().find(|record| record["kind"] == "task.finished").unwrap();
    if task["usage"]["source"] == "none" {
        return;
    }
    // The rest is PID 1 and the slots, which start commands and are in no exec's figure; ticks are rounded.
    let of_task = cpu(task);
    assert!(
        of_execs > 0.0 && of_execs <= of_task + 0.05,
        "{of_execs} s of {of_task} s"
    );
    assert!(of_task - of_execs < 1.0, "{of_execs} s of {of_task} s");
}

#[test]
fn a_command_can_read_its_limits_and_what_its_task_has_used() {
    let state = tempfile::tempdir().unwrap();
    // Written when the task begins, which may be a moment after its first command.
    let script = "until grep -q output_limit /run/belljar/limits; do :; done; cat /run/belljar/limits";
    let output = belljar(
        state.path(),
        &[
            "run",
            "--quiet",
            "--network",
            "none",
            "--memory",
            "256MiB",
            "--pids",
            "77",
        ],
    )
    .args(["--", "sh", "-c", script])
    .output()
    .unwrap();
    let text = String::from_utf8(output.stdout).unwrap();
    for line in ["memory_limit = 268435456", "pids_limit = 77", "exec_time_limit = 600"] {
        assert!(text.lines().any(|one| one == line), "no {line} in\n{text}");
    }
    let counted = run(state.path(), &[], &["true"])["usage"]["memory_peak_bytes"].is_u64();
    assert!(
        !counted || text.contains("memory_used = ") || text.contains("cpu_used = "),
        "{text}"
    );
}

#[test]
fn what_a_harness_says_stands_beside_what_was_done() {
    let state = tempfile::tempdir().unwrap();
    let mut live = Live::start(state.path());
    let body = json!({"text": "use ghp_abcdefghijklmnopqrstuvwxyz0123456789 please", "n": 1});
    live.say(
        1,
        "agent.event",
        json!({"name": "prompt", "call_id": "call_7", "body": body}),
    );
    let answer = live.until(|message| message["id"] == 1);
    assert_eq!(answer["result"]["recorded"], true, "{answer}");
    live.say(
        2,
        "exec.start",
        json!({"argv": ["true"], "call_id": "call_7", "reason": "as told"}),
    );
    live.until(|message| message["params"]["type"] == "ended");
    live.end();
    let records = assert_whole(state.path());
    let said = records.iter().find(|record| record["kind"] == "agent.event").unwrap();
    assert_eq!(said["body"], json!({"text": "use [redacted] please", "n": 1}));
    // The page of the exec has the intention and the deed.
    let exec = records.iter().find(|record| record["kind"] == "exec.finished").unwrap()["exec"]
        .as_str()
        .unwrap();
    let shown = belljar(state.path(), &["audit", "show", exec]).output().unwrap().stdout;
    let shown = String::from_utf8(shown).unwrap();
    assert!(
        shown.contains("agent.event") && shown.contains("use [redacted] please"),
        "{shown}"
    );
}

#[test]
fn what_a_harness_says_is_only_named_or_not_kept_where_the_configuration_says_so() {
    for (mode, kept) in [
        ("full", json!([{"text": "a prompt"}])),
        ("names", json!([null])),
        ("none", json!([])),
    ] {
        let (state, config) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
        std::fs::create_dir(config.path().join("belljar")).unwrap();
        std::fs::write(
            config.path().join("belljar/config.toml"),
            format!("[journal]\nagent_events = \"{mode}\"\n"),
        )
        .unwrap();
        let mut live = Live::configured(state.path(), config.path());
        let event = json!({"name": "prompt", "call_id": "call_7", "body": {"text": "a prompt"}});
        live.say(1, "agent.event", event);
        let answer = live.until(|message| message["id"] == 1);
        // A harness that is not listened to is told.
        assert_eq!(answer["result"]["recorded"] == true, mode != "none", "{mode}: {answer}");
        assert_eq!(
            answer["error"].to_string().contains("journal.agent_events"),
            mode == "none",
            "{mode}: {answer}"
        );
        live.end();
        let records = assert_whole(state.path());
        let events: Vec<&Value> = records
            .iter()
            .filter(|record| record["kind"] == "agent.event")
            .collect();
        let bodies: Vec<&Value> = events.iter().map(|event| &event["body"]).collect();
        assert_eq!(json!(bodies), kept, "{mode}");
        assert!(
            events
                .iter()
                .all(|event| event["name"] == "prompt" && event["call_id"] == "call_7")
        );
        assert_eq!(
            json!(records).to_string().contains("a prompt"),
            mode == "full",
            "{mode}"
        );
    }
}
