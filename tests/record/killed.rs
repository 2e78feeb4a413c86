//! belljar killed in the middle, again and again: the next start finds, clears and records all that was left.

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::Stdio;
use std::sync::atomic::{AtomicUsize, Ordering};

use crate::belljar;

const TASKS: usize = 200;

/// belljars at once.
const AT_ONCE: usize = 8;

/// Half of the tasks end well; the others lose their belljar: as soon as it is there, when its task's folder is, or when its command
/// runs.
fn one(state: &Path, number: usize) {
    let run = ["run", "--quiet", "--network", "none", "--"];
    if number.is_multiple_of(2) {
        let status = belljar(state, &[&run[..], &["true"]].concat()).status().unwrap();
        assert!(status.success(), "{status}");
        return;
    }
    let script = "sleep 600 & echo $$; wait";
    let mut child = belljar(state, &[&run[..], &["sh", "-c", script]].concat())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    match number % 3 {
        0 => {}
        1 => {
            let tasks = state.join("tasks");
            let here = |tasks: &Path| std::fs::read_dir(tasks).is_ok_and(|mut entries| entries.next().is_some());
            while !here(&tasks) && child.try_wait().unwrap().is_none() {
                std::thread::yield_now();
            }
        }
        _ => {
            let mut line = String::new();
            BufReader::new(child.stdout.take().unwrap())
                .read_line(&mut line)
                .unwrap();
            assert!(!line.is_empty(), "the command did not run");
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn two_hundred_tasks_of_which_half_are_killed_leave_nothing() {
    let state = tempfile::tempdir().unwrap();
    let next = AtomicUsize::new(0);
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    if number >= TASKS {
                        return;
                    }
                    one(state.path(), number);
                }
            });
        }
    });
    let status = belljar(state.path(), &["run", "--quiet", "--network", "none", "--", "true"])
        .status()
        .unwrap();
    assert!(status.success(), "the next start: {status}");

    let records = belljar(state.path(), &["audit", "ls", "--json"]).output().unwrap();
    let records: Vec<serde_json::Value> = String::from_utf8(records.stdout)
        .unwrap()
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let of_kind = |kind: &str| -> Vec<&str> {
        let all = records.iter().filter(|record| record["kind"] == kind);
        let mut ids: Vec<_> = all
            .filter_map(|record| record[if kind.starts_with("exec") { "exec" } else { "task" }].as_str())
            .collect();
        ids.sort_unstable();
        ids
    };
    let begun = of_kind("task.admitted");
    assert!(begun.len() > TASKS / 2, "only {} tasks began", begun.len());
    assert_eq!(begun, of_kind("task.finished"), "each task that began has one end");
    assert_eq!(
        of_kind("exec.started"),
        of_kind("exec.finished"),
        "each command that started has one end"
    );
    let lost = records
        .iter()
        .filter(|record| record["kind"] == "task.finished" && record["outcome"] == "lost");
    assert!(
        lost.count() > TASKS / 10,
        "killed in the middle of too few tasks to prove anything"
    );
    assert!(
        belljar(state.path(), &["audit", "verify"])
            .stdout(Stdio::null())
            .status()
            .unwrap()
            .success()
    );

    let left = |folder: &Path| -> Vec<_> {
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        entries.map(|entry| entry.file_name()).collect()
    };
    assert!(
        left(&state.path().join("tasks")).is_empty(),
        "folders: {:?}",
        left(&state.path().join("tasks"))
    );
    let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap();
    assert!(!mounts.contains(state.path().to_str().unwrap()), "mounts");
    let cgroups = belljar::sys::cgroup::Cgroups::detect();
    for id in begun {
        assert!(cgroups.find_task(id).is_none(), "the cgroup of {id}");
    }
    for entry in std::fs::read_dir("/proc").unwrap().flatten() {
        let Ok(environment) = std::fs::read(entry.path().join("environ")) else {
            continue;
        };
        let own = format!("BELLJAR_STATE={}", state.path().display()).into_bytes();
        let is_ours = environment.split(|byte| *byte == 0).any(|one| one == own);
        assert!(!is_ours, "a belljar still runs: {:?}", entry.file_name());
    }
}
