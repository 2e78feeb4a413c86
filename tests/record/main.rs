//! The record against whatever happens to belljar, its disk and its collectors: what was done stands in it, and what stands in it was
//! done.

mod export;
mod killed;
mod probes;
mod steps;
mod unwritable;

use std::collections::BTreeSet;
use std::path::Path;
use std::process::{Command, Stdio};

use serde_json::Value;

fn belljar(state: &Path, words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_belljar"));
    command
        .args(words)
        .env("BELLJAR_STATE", state)
        .env_remove("OTEL_EXPORTER_OTLP_ENDPOINT")
        .stdin(Stdio::null())
        .stderr(Stdio::null());
    command
}

/// All records of a journal; each line must be JSON of its own.
fn records(state: &Path) -> Vec<Value> {
    let output = belljar(state, &["audit", "ls", "--json"]).output().unwrap();
    assert!(output.status.success(), "audit ls: {}", output.status);
    let text = String::from_utf8(output.stdout).unwrap();
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

/// The ids of the tasks or execs that records of a kind are about.
fn ids(records: &[Value], kind: &str) -> BTreeSet<String> {
    let name = if kind.starts_with("task.") { "task" } else { "exec" };
    let of_kind = records.iter().filter(|record| record["kind"] == kind);
    let ids: Vec<String> = of_kind
        .map(|record| record[name].as_str().unwrap().to_owned())
        .collect();
    let once: BTreeSet<String> = ids.iter().cloned().collect();
    assert_eq!(once.len(), ids.len(), "{kind} stands twice for the same one");
    once
}

/// Each start has exactly one end, and the chain is whole.
fn assert_whole(state: &Path) -> Vec<Value> {
    let records = records(state);
    assert_eq!(ids(&records, "task.admitted"), ids(&records, "task.finished"));
    assert_eq!(ids(&records, "exec.started"), ids(&records, "exec.finished"));
    let proof = belljar(state, &["audit", "verify"]).output().unwrap();
    assert!(proof.status.success(), "{}", String::from_utf8_lossy(&proof.stdout));
    records
}

/// What commands did, a line each with the reason that the command was started for, and the records that speak of it.
fn assert_all_that_was_done_is_recorded(done: &Path, records: &[Value]) {
    let started = ids(records, "exec.started");
    for reason in std::fs::read_to_string(done).unwrap_or_default().lines() {
        let judged = records
            .iter()
            .find(|record| record["kind"] == "exec.judged" && record["reason"] == reason)
            .unwrap_or_else(|| panic!("command {reason} ran, and no record says that it was judged"));
        assert!(
            started.contains(judged["exec"].as_str().unwrap()),
            "command {reason} ran, and no record says that it was started"
        );
    }
}
