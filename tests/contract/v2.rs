//! Control groups of version 2, on a machine that has them; see `machine`.

use std::path::Path;

use belljar::audit::journal::Reader;
use belljar::audit::record::{Usage, UsageSource};
use serde_json::json;

use crate::live::{Live, Runtime};
use crate::machine::Machine;

/// What runs there, for each user.
const PROMISES: [&str; 9] = [
    "builtin::a_command_out_of_time_ends_with_what_it_said",
    "builtin::a_killed_sandbox_leaves_nothing_running",
    "builtin::counters_come_from_the_kernel",
    "builtin::memory_beyond_the_limit_is_told_apart",
    "builtin::nothing_is_left_behind",
    "builtin::the_box_is_sealed",
    "builtin::what_a_command_leaves_running_ends_with_it",
    "v2::the_kernel_counts_a_task_as_a_whole",
    "v2::the_kernel_counts_an_exec_by_itself",
];

/// What the promises call.
const PROGRAMS: [&str; 17] = [
    "bash", "cat", "cut", "dd", "find", "grep", "head", "hostname", "id", "readlink", "rm", "setsid", "sort", "tail",
    "touch", "tr", "yes",
];

#[test]
fn the_promises_hold_on_cgroup_version_2_for_root_and_user() {
    Machine {
        as_root: &PROMISES,
        as_user: &PROMISES,
        programs: &PROGRAMS,
        has_usr: false,
    }
    .run();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "is for a machine with control groups of version 2, and run there by the test above"]
async fn the_kernel_counts_an_exec_by_itself() {
    let live = Live::start(Runtime::Builtin).await;
    let script = "dd if=/dev/zero of=big bs=1M count=4 conv=fsync 2> /dev/null; i=0; while [ $i -lt 20000 ]; do i=$((i+1)); done; \
                  sleep 0.01 & sleep 0.01 & wait";
    let done = live.sh(script).await;
    let usage = done.end.usage;
    assert_eq!(usage.source, UsageSource::CgroupV2, "{usage:?}");
    assert!(usage.cpu_user_seconds > 0.0, "{usage:?}");
    assert!(usage.memory_peak_bytes.unwrap() > 1 << 20, "{usage:?}");
    assert!(usage.io_write_bytes.unwrap() >= 4 << 20, "{usage:?}");
    assert!(usage.pids_peak.unwrap() >= 3, "{usage:?}");
    assert_eq!(usage.oom_kills, Some(0), "{usage:?}");
    // The next one's are its own.
    let next = live.sh("true").await.end.usage;
    assert_eq!(next.io_write_bytes, Some(0), "{next:?}");
    // cgroup.kill ends even what nobody waits for.
    let killed = live
        .run(json!({ "argv": ["sh", "-c", "sleep 600 & setsid sleep 600 & wait"], "timeout_seconds": 0.3 }))
        .await;
    assert_eq!(killed.end.outcome, belljar::audit::record::ExecOutcome::TimedOut);
    let running = live.sh("cat /proc/[0-9]*/comm").await;
    assert!(!running.text().contains("sleep"), "{}", running.text());
    live.task.stop().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "is for a machine with control groups of version 2, and run there by the test above"]
async fn the_kernel_counts_a_task_as_a_whole() {
    let live = Live::with(Runtime::Builtin, |args| args.cpus = Some("0.2".to_owned())).await;
    let busy = live.sh("i=0; while [ $i -lt 60000 ]; do i=$((i+1)); done").await;
    live.task.stop().await;
    let journal = Reader::open(&live.state.path().join("journal")).unwrap();
    let records = journal.after(0, 100).unwrap();
    let finished = records.iter().find(|record| record.kind == "task.finished").unwrap();
    let usage: Usage = serde_json::from_value(finished.value()["usage"].clone()).unwrap();
    assert_eq!(usage.source, UsageSource::CgroupV2, "{usage:?}");
    assert!(usage.cpu_throttled_seconds.unwrap() > 0.0, "{usage:?}");
    assert!(usage.cpu_user_seconds >= busy.end.usage.cpu_user_seconds, "{usage:?}");
    assert!(usage.memory_peak_bytes >= busy.end.usage.memory_peak_bytes, "{usage:?}");
    assert!(usage.pids_peak.unwrap() >= 2, "{usage:?}");
    assert_eq!(
        (usage.memory_limit_hits, usage.oom_kills),
        (Some(0), Some(0)),
        "{usage:?}"
    );
    // Whoever has such counters sees them, and a kernel without them is told apart from one where nothing waited.
    let counts_pressure = Path::new("/sys/fs/cgroup/cpu.pressure").exists();
    assert_eq!(usage.pressure.is_some(), counts_pressure, "{usage:?}");
}
