//! belljar killed with SIGKILL at every step of a task and its exec, one step a run.

use std::os::unix::process::ExitStatusExt;

use crate::{assert_all_that_was_done_is_recorded, assert_whole, belljar, records};

/// Every place of `belljar::crash` that such a run passes.
const PLACES: [&str; 15] = [
    "task: its folder is made",
    "task: protected names are held",
    "task: its sandbox is made",
    "task: started",
    "exec: recorded, not started",
    "exec: asked of the slot",
    "exec: runs",
    "exec: over, not recorded",
    "exec: its end is recorded, not told",
    "task: its execs are over",
    "task: its sandbox is gone",
    "task: its end is recorded",
    "journal: before a group is written",
    "journal: before the commit",
    "journal: after the commit, before anybody is told",
];

/// More often than a run passes any place; a walk that does not end by itself has failed.
const PASSES_MAX: u32 = 100;

#[test]
fn a_kill_at_every_step_of_an_exec_loses_nothing_that_happened() {
    let state = tempfile::tempdir().unwrap();
    let work = tempfile::tempdir().unwrap();
    let root = format!("{}:/workspace", work.path().display());
    let done = work.path().join("done");
    for (place, number) in PLACES.iter().zip(0..) {
        for pass in 1.. {
            assert!(pass < PASSES_MAX, "a run passes {place} without end");
            let reason = (number * PASSES_MAX + pass).to_string();
            let status = belljar(
                state.path(),
                &[
                    "run",
                    "--quiet",
                    "--network",
                    "none",
                    "--write",
                    &root,
                    "--reason",
                    &reason,
                ],
            )
            .args(["--", "sh", "-c", &format!("echo {reason} >> done")])
            .env("BELLJAR_CRASH_AT", format!("{pass} {place}"))
            .status()
            .unwrap();
            // Before anything clears up: the record was there before the deed.
            assert_all_that_was_done_is_recorded(&done, &records(state.path()));
            if status.success() {
                assert!(pass > 1, "no run passes {place}");
                break;
            }
            assert_eq!(status.signal(), Some(9), "at {place} it ended by itself: {status}");
        }
    }

    let status = belljar(state.path(), &["run", "--quiet", "--network", "none", "--", "true"]).status();
    assert!(status.unwrap().success(), "the next start");
    let records = assert_whole(state.path());
    let done = std::fs::read_to_string(&done).unwrap();
    let mut lost = 0;
    for finished in records.iter().filter(|record| record["kind"] == "exec.finished") {
        let is_same =
            |record: &&serde_json::Value| record["kind"] == "exec.judged" && record["exec"] == finished["exec"];
        let reason = records.iter().find(is_same).unwrap()["reason"].as_str();
        match (finished["outcome"].as_str().unwrap(), reason) {
            // Nothing is said to have ended that did not run.
            ("exited", Some(reason)) => assert!(done.lines().any(|line| line == reason), "{finished}"),
            ("exited", None) => {}
            ("lost", _) => lost += 1,
            (other, _) => panic!("{other} in {finished}"),
        }
    }
    assert!(lost >= 4, "only {lost} execs were lost of so many kills");
}
