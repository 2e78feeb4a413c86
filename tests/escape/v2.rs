//! Attacks that concern control groups, limits and the kernel's own files, on a machine with control groups of version 2; see `machine`.
//! And one that needs a machine whose clock may be set.

use std::process::Command;

use serde_json::json;

use crate::cves::blocked;
use crate::jail::{Caller, Place, row};
use crate::machine::Machine;
use crate::probes;

/// By the builtin launcher, as root and as an ordinary user to whom a group was delegated.
const ATTACKS: [&str; 5] = [
    "a_command_that_kills_its_watcher_dies_with_it_and_that_is_told",
    "a_file_larger_than_memory_is_written",
    "a_fork_bomb_stays_small_whoever_runs_it",
    "no_place_can_be_filled_beyond_its_bound",
    "nothing_that_ended_stays_in_the_table",
];

#[test]
fn attacks_on_cgroup_version_2_fail_for_root_and_user() {
    let of = |module: &str| ATTACKS.map(|attack| format!("{module}::{attack}"));
    let (root, user) = (of("root"), of("ordinary"));
    let more = [
        "root::nothing_of_the_kernels_opens_for_writing",
        "v2::a_clock_that_jumps_harms_no_exec",
        "v2::limits_and_groups_of_version_2_are_out_of_reach",
    ];
    let as_root: Vec<&str> = root.iter().map(String::as_str).chain(more).collect();
    let as_user: Vec<&str> = user.iter().map(String::as_str).collect();
    Machine {
        as_root: &as_root,
        as_user: &as_user,
        programs: &[],
        has_usr: true,
    }
    .run();
}

/// What a sandbox sees of its groups, and what it can use up.
#[test]
#[ignore = "is for a machine with control groups of version 2, and run there by the test above"]
fn limits_and_groups_of_version_2_are_out_of_reach() {
    probes::those_are_blocked(
        Caller::Root,
        &["PRC-046", "PRC-048", "PRC-049", "PRC-050", "RES-005", "RES-008"],
    );
    let script = r#"
import os, re
done = []
for top in ("/proc", "/sys", "/run", "/dev", "/tmp"):
    for folder, folders, names in os.walk(top):
        done += [folder + "/" + name for name in names if name.startswith("cgroup.") and "sched" not in name]
with open("/proc/self/cgroup") as groups:
    # From the guest's own on, and no name of the host's.
    done += [line for line in groups if not re.fullmatch("0::/(../slot-[0-9]+)?", line.strip())]
print("EXPOSED" if done else "BLOCKED", *done)
"#;
    let place = Place::new(Caller::Root);
    let mut jail = place.start("");
    blocked("files of control groups", Caller::Root, &jail.python(script));
    jail.end();
}

/// Durations are measured by a clock that nobody sets.
#[test]
#[ignore = "sets the clock of a machine of its own, where the test above runs it"]
fn a_clock_that_jumps_harms_no_exec() {
    let place = Place::new(Caller::Root);
    let mut jail = place.start("");
    let wait = "echo ready; until [ -e go ]; do sleep 0.1; done; echo went on";
    let exec = jail.begin(json!({"argv": ["sh", "-c", wait], "timeout_seconds": 600}));
    assert_eq!(jail.output(&exec), "ready\n");
    for jump in ["+1 year", "-2 years"] {
        let set = Command::new("date").args(["-s", jump]).output().unwrap();
        assert!(set.status.success(), "{set:?}");
        assert_eq!(jail.sh("echo alive").stdout, "alive\n");
    }
    place.on_host("touch go");
    let ran = jail.finish(&exec);
    assert_eq!(
        (ran.stdout.as_str(), &ran.end["outcome"]),
        ("went on\n", &json!("exited"))
    );
    let wall = ran.end["wall_seconds"].as_f64().unwrap();
    assert!((0.0..600.0).contains(&wall), "{wall}");
    jail.end();
    row("a clock that jumps", Caller::Root, "WORKS");
}
