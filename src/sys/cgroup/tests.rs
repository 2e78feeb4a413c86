use std::io::Read;

use super::files::{io_bytes, keyed};
use super::*;

const MOUNTS: &str = "\
30 24 0:26 / /sys/fs/cgroup/memory rw,relatime shared:5 - cgroup cgroup rw,memory
31 24 0:27 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct
32 24 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
const OWN: &str = "4:memory:/api/7\n2:cpu,cpuacct:/docker/abc/x\n0::/user.slice";

#[test]
fn the_own_folder_is_found_below_the_mounts_root() {
    assert_eq!(
        own_folder_v1(MOUNTS, OWN, "memory"),
        Some("/sys/fs/cgroup/memory/api/7".into())
    );
    assert_eq!(
        own_folder_v1(MOUNTS, OWN, "cpu"),
        Some("/sys/fs/cgroup/cpu,cpuacct/x".into())
    );
    assert_eq!(own_folder_v1(MOUNTS, OWN, "pids"), None);
    assert_eq!(
        own_folder_v2(&unified_mount(MOUNTS).unwrap(), OWN),
        Path::new("/sys/fs/cgroup/unified/user.slice")
    );
}

#[test]
fn counters_of_both_versions_are_read() {
    assert_eq!(
        io_bytes("8:0 Read 4096\n8:0 Write 512\n8:0 Sync 99\n8:16 Read 4\nTotal 4708"),
        (4100, 512)
    );
    assert_eq!(
        io_bytes("8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2"),
        (11, 22)
    );
    assert_eq!(
        keyed("oom_kill_disable 0\nunder_oom 0\noom_kill 3", "oom_kill"),
        Some(3)
    );
    assert_eq!(keyed("usage_usec 10\nuser_usec 7\nsystem_usec 3", "user_usec"), Some(7));
}

#[test]
fn a_leaf_counts_what_a_process_in_it_used() {
    let cgroups = Cgroups::detect();
    let name = format!("test-{}", uuid::Uuid::now_v7());
    let Some(mut task) = cgroups
        .create_task(
            &name,
            Caps {
                pids: Some(50),
                ..Caps::default()
            },
        )
        .unwrap()
    else {
        assert!(cgroups.why.is_some(), "no cgroups, and no reason given");
        return;
    };
    let mut leaf = task.create_leaf().unwrap();
    leaf.reset();
    let mut child = std::process::Command::new("sh")
        .args([
            "-c",
            "for join; do echo 0 >$join; done; echo; read go; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done",
            "sh",
        ])
        .args(leaf.folders.iter().map(|(kind, folder)| folder.join(kind.own_join())))
        .stdin(std::process::Stdio::piped())
        .stdout(std::process::Stdio::piped())
        .spawn()
        .unwrap();
    child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
    assert_eq!(leaf.pids(), vec![Pid::from_child(&child)]);
    child.stdin.take().unwrap().write_all(b"\n").unwrap();
    child.wait().unwrap();
    let counters = leaf.counters();
    assert!(counters.user_micros + counters.system_micros > 0, "{counters:?}");
    assert_eq!(counters.pids_peak, Some(1));
    leaf.remove().unwrap();
    task.remove().unwrap();
    assert!(cgroups.find_task(&name).is_none());
}
