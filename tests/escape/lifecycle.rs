//! The probes whose answer shows from outside: what is left, counted, cut off or told.

use std::path::Path;

use serde_json::{Value, json};

use crate::jail::{Caller, Place, row};
use crate::probes::command_of;

fn records(place: &Place) -> Vec<Value> {
    let output = place
        .command(&place.program())
        .args(["audit", "ls", "--json"])
        .output()
        .unwrap();
    let text = String::from_utf8(output.stdout).expect("records are text, whatever files are called");
    text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

pub fn a_sparse_file_takes_no_room_on_the_host(caller: Caller) {
    let place = Place::new(caller);
    let mut jail = place.start("");
    jail.sh(&command_of("FT-008"));
    jail.end();
    let blocks = place.on_host("if [ -e .sparse ]; then du -k .sparse | cut -f1; rm .sparse; else echo 0; fi");
    assert!(blocks.trim().parse::<u64>().unwrap() < 64, "{blocks}");
    row("FT-008 1 TiB sparse file", caller, "BLOCKED");
}

pub fn names_of_files_write_neither_to_the_terminal_nor_into_records(caller: Caller) {
    let place = Place::new(caller);
    let mut jail = place.start("");
    let ran = jail.sh(&command_of("FT-010"));
    assert_eq!(ran.last_line(), "DONE", "{}", ran.stderr);
    // The same names as FIFOs, which the record of the end tells.
    jail.python("import os\nfor n in (b'f\\nb', b'f\\x1b]0;x\\x07', b'f\\xff\\xfe', b'-rf2'): os.mkfifo(n)");
    jail.end();
    let finished = records(&place)
        .into_iter()
        .rfind(|record| record["kind"] == "task.finished")
        .unwrap();
    // gVisor's FIFOs are its own, and go with it.
    let left = if caller == Caller::Runsc { 0 } else { 4 };
    assert_eq!(finished["left_files"].as_array().unwrap().len(), left, "{finished}");
    let shown = place
        .command(&place.program())
        .args(["audit", "ls"])
        .output()
        .unwrap()
        .stdout;
    assert!(!shown.contains(&0x1b) && !shown.contains(&7));
    row("FT-010 names that terminals would act on", caller, "BLOCKED");
}

pub fn shared_memory_ends_with_its_task(caller: Caller) {
    let host = || std::fs::read_to_string("/proc/sysvipc/shm").unwrap_or_default();
    let place = Place::new(caller);
    let mut jail = place.start("");
    let ran = jail.sh(&command_of("RES-012"));
    assert!(
        ran.last_line().starts_with("DONE") && !ran.last_line().ends_with("-1"),
        "{}",
        ran.stdout
    );
    // Permissions and size of the probe's segment, as /proc shows them.
    let is_there = host().lines().any(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        fields.get(2) == Some(&"1666") && fields.get(3) == Some(&"1048576")
    });
    assert!(!is_there, "{}", host());
    jail.end();
    row("RES-012 SysV shared memory left behind", caller, "BLOCKED");
}

pub fn a_flood_of_output_is_cut_off_and_costs_no_memory(caller: Caller) {
    let place = Place::new(caller);
    let mut jail = place.start("[limits]\noutput = \"8MiB\"\n");
    let ran = jail.sh(&command_of("RES-014"));
    assert_eq!(ran.end["outcome"], "output_limit", "{}", ran.end);
    assert_eq!(ran.stdout.len(), 8 << 20);
    let status = std::fs::read_to_string(Path::new("/proc").join(jail.child.id().to_string()).join("status")).unwrap();
    let peak = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).unwrap();
    let peak: u64 = peak.trim().trim_end_matches(" kB").parse().unwrap();
    assert!(peak < 150 << 10, "{peak} KiB");
    jail.end();
    row("RES-014 stdout flood", caller, "BLOCKED");
}

pub fn death_by_a_signal_is_told_as_such(caller: Caller) {
    let place = Place::new(caller);
    let mut jail = place.start("");
    let ran = jail.sh(&command_of("LIF-020"));
    assert_eq!(
        (&ran.end["outcome"], &ran.end["signal"]),
        (&json!("signaled"), &json!(11)),
        "{}",
        ran.end
    );
    jail.end();
    row("LIF-020 death by a signal", caller, "told as such");
}

pub fn fifty_execs_at_once_have_streams_of_their_own(caller: Caller) {
    let place = Place::new(caller);
    let mut jail = place.start("");
    let command = command_of("LIF-023");
    let begun: Vec<_> = (0..50)
        .map(|_| jail.begin(json!({"argv": ["sh", "-c", &command]})))
        .collect();
    let mut said: Vec<String> = begun.iter().map(|exec| jail.finish(exec).stdout).collect();
    said.sort();
    said.dedup();
    assert_eq!(said.len(), 50);
    assert!(said.iter().all(|line| line.ends_with('\n') && line.len() > 10));
    jail.end();
    row("LIF-023 fifty execs at once", caller, "WORKS");
}

pub fn a_fork_bomb_stays_small_whoever_runs_it(caller: Caller) {
    let bomb = "import os, signal\nmade = 0\ntry:\n while made < 300:\n  if os.fork() == 0: signal.pause()\n  made += 1\nexcept BlockingIOError: pass\nprint('BLOCKED' if made < 64 else 'EXPOSED', made)";
    let place = Place::new(caller);
    if caller == Caller::Runsc {
        // The limit is one of the host's threads, and without them the sandbox's kernel goes down with all that is in it.
        let mut jail = place.start("accept_partial = [\"limit.pids\"]\n[limits]\npids = 256\n");
        let ran = jail.python(bomb);
        assert_eq!(ran.end["outcome"], "lost", "{}", ran.end);
        row("fork bomb", caller, "its sandbox ends");
        return;
    }
    let mut jail = place.start("accept_partial = [\"limit.pids\"]\n[limits]\npids = 64\n");
    let ran = jail.python(bomb);
    row("fork bomb", caller, ran.last_line());
    assert!(
        ran.last_line().starts_with("BLOCKED"),
        "{caller:?}: {} {}",
        ran.stdout,
        ran.stderr
    );
    // What the bomb left is gone with its exec.
    assert_eq!(jail.sh("echo alive").stdout, "alive\n");
    jail.end();
}

/// In sessions of their own, deaf to signals, and begun by parents that are gone. Without a cgroup that can be killed, as for an ordinary
/// user on version 1, and in a kernel of the sandbox's own, the guest alone sees to it.
pub fn what_an_exec_leaves_is_gone_when_its_end_is_told(caller: Caller) {
    let place = Place::new(caller);
    let mut jail = place.start("");
    let leave = "cd /workspace; for n in 1 2 3; do (setsid sh -c \"trap '' HUP INT TERM; : > up$n; while :; do sleep 600.7; done\" &); done
                 until [ -e up1 ] && [ -e up2 ] && [ -e up3 ]; do :; done; rm up*";
    // Where nothing ended them the exec would last as long as they do.
    let ran = jail.run_with(json!({"argv": ["sh", "-c", leave], "timeout_seconds": 120}));
    assert_eq!(
        (&ran.end["outcome"], ran.code()),
        (&json!("exited"), Some(0)),
        "{}",
        ran.end
    );
    let ran = jail.sh("cat /proc/[0-9]*/cmdline | tr '\\0' '\\n' | grep -c '[6]00.7'");
    row(
        "what an exec leaves running",
        caller,
        if ran.stdout == "0\n" { "BLOCKED" } else { "EXPOSED" },
    );
    assert_eq!(ran.stdout, "0\n", "{caller:?} {}", ran.stderr);
    jail.end();
}

/// In bytes and in files; beside the limit of memory, which not every machine can give.
pub fn a_disk_bomb_fills_the_disposable_layer_and_no_more(caller: Caller) {
    let place = Place::new(caller);
    let mut jail = place.start("[limits]\ndisk = \"16MiB\"\n");
    let ran = jail.sh("head -c 32M /dev/zero > /tmp/bomb || echo full; wc -c < /tmp/bomb");
    let (full, bytes) = ran.stdout.split_once('\n').unwrap();
    let is_bounded = full == "full" && bytes.trim().parse::<u64>().unwrap() <= 16 << 20;
    row("disk bomb", caller, if is_bounded { "BLOCKED" } else { "EXPOSED" });
    assert!(is_bounded, "{caller:?} {} {}", ran.stdout, ran.stderr);
    // gVisor tells of another number of files than there may be.
    if caller != Caller::Runsc {
        let ran = jail.python("import os; print(os.statvfs('/tmp').f_files)");
        let share = if let Caller::Docker(..) = caller { 2 } else { 1 };
        assert_eq!(ran.stdout, format!("{}\n", 1_000_000 / share), "{}", ran.stderr);
    }
    jail.end();
}

/// Groups by which a caller may do more than its files' owner: of Docker's socket, of disks.
pub fn nothing_inside_is_in_the_callers_groups_or_beyond_its_bounds(caller: Caller) {
    let place = Place::new(caller);
    let groups = match caller {
        Caller::Ordinary => "",
        _ => "setpriv --groups 6,4242",
    };
    let script = format!(
        "ulimit -c unlimited 2> /dev/null || true; exec {groups} {} run --quiet {} --write . --stdio",
        place.program().display(),
        caller.flags().join(" "),
    );
    let mut jail = place.start_by(&script);
    let ran = jail.python(
        "import os, resource as r\nprint(os.getgroups(), r.getrlimit(r.RLIMIT_CORE), r.getrlimit(r.RLIMIT_MEMLOCK)[1] <= 8 << 20, \
         r.getrlimit(r.RLIMIT_NOFILE)[1] <= 65536)",
    );
    let (groups, rest) = ran.stdout.split_once("] ").unwrap();
    // Its own at the most; an engine names the main one twice.
    let is_own = ["[", "[1000", "[0"].contains(&groups);
    assert!(is_own, "{caller:?} {} {}", ran.stdout, ran.stderr);
    assert_eq!(rest, "(0, 0) True True\n", "{caller:?}");
    jail.end();
    row("groups and limits of the caller", caller, "BLOCKED");
}
