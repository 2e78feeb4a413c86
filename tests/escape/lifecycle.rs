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
