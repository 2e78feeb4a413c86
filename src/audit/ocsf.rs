//! Records as events of the Open Cybersecurity Schema Framework, for programs that gather those: commands are Process Activity,
//! connections are Network Activity, all else is a Base Event. What has no place there is kept under `unmapped`.
//!
//! Source of the numbers: <https://schema.ocsf.io/1.3.0/>.

use serde_json::{Map, Value, json};

use super::journal::Stored;
use super::query::{command_line, executable};

const VERSION: &str = "1.3.0";

const BASE_EVENT: Class = Class { category: 0, class: 0 };
const PROCESS_ACTIVITY: Class = Class {
    category: 1,
    class: 1007,
};
const NETWORK_ACTIVITY: Class = Class {
    category: 4,
    class: 4001,
};

struct Class {
    category: u32,
    class: u32,
}

/// One record as one event. `journal` is the journal's own id.
pub fn event(journal: &str, record: &Stored) -> Value {
    let value = record.value();
    let word = |name: &str| value[name].as_str().unwrap_or_default();
    let (class, activity) = match record.kind.as_str() {
        "exec.judged" | "exec.refused" | "exec.started" => (PROCESS_ACTIVITY, LAUNCH),
        "exec.finished" => (PROCESS_ACTIVITY, TERMINATE),
        "egress.judged" if word("decision") == "deny" => (NETWORK_ACTIVITY, REFUSE),
        "egress.judged" => (NETWORK_ACTIVITY, OPEN),
        "egress.finished" => (NETWORK_ACTIVITY, CLOSE),
        _ => (BASE_EVENT, OTHER),
    };
    let mut event = Map::new();
    let mut put = |name: &str, value: Value| drop(event.insert(name.to_owned(), value));
    put("category_uid", class.category.into());
    put("class_uid", class.class.into());
    put("activity_id", activity.into());
    put("type_uid", (class.class * 100 + activity).into());
    // OCSF counts in milliseconds; the whole time is in `unmapped`.
    put("time", record.time.div_euclid(1_000_000).into());
    put("severity_id", severity(record, &value).into());
    put("status_id", status(record, &value).into());
    put("message", record.kind.clone().into());
    put("metadata", metadata(journal, record));
    put("device", json!({"hostname": word("host"), "type_id": 0}));
    if class.class == PROCESS_ACTIVITY.class {
        put("process", process(&value));
        put(
            "actor",
            without_nulls(json!({
                "process": {"name": "belljar"},
                "user": value["user"].as_str().map(|name| json!({"name": name})),
            })),
        );
        if let Some(code) = value["exit_code"].as_i64() {
            put("exit_code", code.into());
        }
    }
    if class.class == NETWORK_ACTIVITY.class {
        put(
            "dst_endpoint",
            without_nulls(json!({
                "hostname": value["server_address"],
                "ip": value["address"],
                "port": value["server_port"],
            })),
        );
        if record.kind == "egress.finished" {
            let (sent, received) = (&value["bytes_sent"], &value["bytes_received"]);
            put("traffic", json!({"bytes_out": sent, "bytes_in": received}));
        }
    }
    if let Some((action, disposition)) = decided(record, &value) {
        put("action_id", action.into());
        put("disposition_id", disposition.into());
    }
    put("unmapped", value);
    event.into()
}

// Activities of processes and of connections.
const LAUNCH: u32 = 1;
const TERMINATE: u32 = 2;
const OPEN: u32 = 1;
const CLOSE: u32 = 2;
const REFUSE: u32 = 5;
const OTHER: u32 = 99;

fn metadata(journal: &str, record: &Stored) -> Value {
    let correlation = record.task.map(|task| task.to_string());
    without_nulls(json!({
        "version": VERSION,
        "uid": format!("{journal}/{}", record.seq),
        "sequence": record.seq,
        "correlation_uid": correlation,
        "event_code": record.kind,
        "product": {"name": "belljar", "vendor_name": "belljar", "version": env!("CARGO_PKG_VERSION")},
    }))
}

fn process(value: &Value) -> Value {
    without_nulls(json!({
        "cmd_line": command_line(value),
        "name": executable(value),
        "uid": value["exec"],
    }))
}

/// Action and disposition: allowed is 1 in both, denied or blocked 2.
fn decided(record: &Stored, value: &Value) -> Option<(u32, u32)> {
    let decision = match record.kind.as_str() {
        "exec.judged" => value["judgement"].as_str()?,
        "egress.judged" => value["decision"].as_str()?,
        "exec.refused" => "deny",
        _ => return None,
    };
    match decision {
        "allow" => Some((1, 1)),
        "deny" => Some((2, 2)),
        _ => None,
    }
}

/// 1 informational, 3 medium: what was refused or was not seen to its end.
fn severity(record: &Stored, value: &Value) -> u32 {
    let denied = decided(record, value).is_some_and(|(action, _)| action == 2);
    let refused = record.kind == "task.refused";
    if denied || refused || value["outcome"] == "lost" {
        3
    } else {
        1
    }
}

/// 1 success, 2 failure, 0 where a record says nothing about it.
fn status(record: &Stored, value: &Value) -> u32 {
    match record.kind.as_str() {
        "exec.finished" if value["outcome"] == "exited" && value["exit_code"] == 0 => 1,
        "task.finished" if value["outcome"] == "finished" => 1,
        "exec.finished" | "task.finished" | "exec.refused" | "task.refused" => 2,
        _ => 0,
    }
}

fn without_nulls(mut value: Value) -> Value {
    if let Some(fields) = value.as_object_mut() {
        fields.retain(|_, value| !value.is_null());
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::journal::{Journal, JournalOptions};
    use crate::audit::samples;

    fn events() -> Vec<Value> {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), JournalOptions::default()).unwrap();
        for entry in samples::of_each_kind() {
            journal.append_blocking(entry).unwrap();
        }
        let records = journal.reader().unwrap().after(1, 100).unwrap();
        records.iter().map(|record| event("j", record)).collect()
    }

    #[test]
    fn every_kind_has_what_every_event_needs() {
        for event in events() {
            for field in [
                "activity_id",
                "category_uid",
                "class_uid",
                "type_uid",
                "time",
                "severity_id",
            ] {
                assert!(event[field].is_u64(), "{field} in {event}");
            }
            let numbers = ["class_uid", "activity_id", "type_uid"].map(|name| event[name].as_u64().unwrap());
            assert_eq!(numbers[0] * 100 + numbers[1], numbers[2]);
            assert_eq!(event["metadata"]["uid"], format!("j/{}", event["unmapped"]["seq"]));
        }
    }

    #[test]
    fn a_refused_command_and_a_denied_connection_are_blocked() {
        let events = events();
        let of = |kind: &str| events.iter().find(|event| event["message"] == kind).unwrap();
        let refused = of("exec.refused");
        assert_eq!(
            (&refused["type_uid"], &refused["disposition_id"]),
            (&100_701.into(), &2.into())
        );
        assert_eq!(refused["process"]["cmd_line"], "/usr/bin/make deploy");
        let denied = of("egress.judged");
        assert_eq!(
            (&denied["type_uid"], &denied["action_id"]),
            (&400_105.into(), &2.into())
        );
        assert_eq!(
            denied["dst_endpoint"],
            json!({"hostname": "example.org", "ip": "192.0.2.7", "port": 443})
        );
        assert_eq!(of("exec.finished")["exit_code"], 2);
        assert_eq!(
            of("egress.finished")["traffic"],
            json!({"bytes_out": 100, "bytes_in": 2000})
        );
    }
}
