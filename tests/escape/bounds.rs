//! Attempts to use something up: room in every place that can be written to, descriptors, numbers of processes, arguments.

use serde_json::json;

use crate::cves::blocked;
use crate::jail::{Caller, Place, row};

/// Every place that is not a root is bounded by the size of the disposable layer, its memory file systems too.
pub fn no_place_can_be_filled_beyond_its_bound(caller: Caller) {
    let script = r#"
import os
most = 256 << 20
done = []
places = {"/", "/tmp", "/var/tmp", "/var/lib", "/home/agent", "/dev", "/dev/shm", "/dev/mqueue", "/run", "/run/belljar", "/etc", "/mnt", "/root"}
with open("/proc/self/mounts") as mounts:
    places |= {line.split(" ")[1] for line in mounts}
for place in sorted(places - {"/workspace"}):
    if not os.path.isdir(place) or place.startswith(("/proc", "/sys", "/workspace/")):
        continue
    name, written = place + "/fill", 0
    try:
        with open(name, "wb", buffering=0) as file:
            while written < most:
                written += file.write(bytes(4 << 20))
    except OSError:
        pass
    if written >= most:
        done.append(place)
    try:
        os.unlink(name)
    except OSError:
        pass
print("EXPOSED" if done else "BLOCKED", *done)
"#;
    let place = Place::new(caller);
    let mut jail = place.start("[limits]\ndisk = \"64MiB\"\n");
    blocked("room in every place", caller, &jail.python(script));
    jail.end();
}

/// What a command writes goes through memory that counts as the task's; that is room to give back and no reason to end it.
pub fn a_file_larger_than_memory_is_written(caller: Caller) {
    let place = Place::new(caller);
    let mut jail = place.start("accept_partial = [\"limit.memory\"]\n[limits]\nmemory = \"256MiB\"\ndisk = \"2GiB\"\n");
    let ran = jail.sh("dd if=/dev/zero of=big bs=1M count=400 2> /dev/null && wc -c < big && rm big");
    assert_eq!(
        (ran.stdout.as_str(), ran.code()),
        ("419430400\n", Some(0)),
        "{}",
        ran.stderr
    );
    jail.end();
    row("a file larger than memory", caller, "WORKS");
}

/// One exec has all the descriptors that it may have open, several times over; the others, and what watches, have theirs.
pub fn descriptors_that_are_used_up_are_the_execs_own(caller: Caller) {
    let place = Place::new(caller);
    let mut jail = place.start("");
    let script = "import os, signal, socket\nheld = []\ntry:\n while len(held) < 100000: held += socket.socketpair()\nexcept OSError: pass\nprint('full' if len(held) < 100000 else 'EXPOSED', flush=True)\nsignal.pause()";
    let execs: Vec<_> = (0..3)
        .map(|_| {
            let exec = jail.begin(json!({"argv": ["python3", "-c", script]}));
            assert_eq!(jail.output(&exec), "full\n");
            exec
        })
        .collect();
    assert_eq!(jail.sh("cat /etc/hostname | cat | cat").stdout, "belljar\n");
    for exec in execs {
        jail.signal(&exec, 9);
        assert_eq!(jail.finish(&exec).end["signal"], 9);
    }
    assert_eq!(jail.sh("cat /etc/hostname | cat | cat").stdout, "belljar\n");
    jail.end();
    row("descriptors used up", caller, "BLOCKED");
}

/// Processes that left their parents and ended are somebody's to bury: PID 1's, for no exec waits for them.
pub fn nothing_that_ended_stays_in_the_table(caller: Caller) {
    let script = "import os\nfor _ in range(12):\n if os.fork() == 0:\n  os.setsid()\n  for _ in range(3):\n   if os.fork() == 0: os._exit(0)\n  os._exit(0)\nfor _ in range(12): os.wait()\nprint('made')";
    let place = Place::new(caller);
    let mut jail = place.start("");
    for _ in 0..3 {
        let ran = jail.python(script);
        assert_eq!(ran.stdout, "made\n", "{} {}", ran.stderr, ran.end);
    }
    // Buried soon, or never, and then this does not end.
    let count = "until ! cat /proc/[0-9]*/stat 2> /dev/null | grep -q ') Z '; do :; done; echo none";
    assert_eq!(jail.sh(count).stdout, "none\n");
    jail.end();
    row("zombies", caller, "none stays");
}

/// More than the kernel takes is said as such, and harms nobody else.
pub fn arguments_beyond_what_the_kernel_takes_end_that_exec_alone(caller: Caller) {
    let place = Place::new(caller);
    let mut jail = place.start("");
    let long = "x".repeat(1 << 20);
    let many: Vec<String> = (0..200_000).map(|number| format!("argument-{number}")).collect();
    let argv = [vec!["true".to_owned()], many].concat();
    for params in [
        json!({"argv": ["true", long]}),
        json!({"argv": ["true"], "env": {"LONG": long}}),
        json!({"argv": argv}),
    ] {
        if let Some(exec) = jail.try_begin(params) {
            let ran = jail.finish(&exec);
            assert_ne!(ran.code(), Some(0), "{}", ran.end);
        }
        assert_eq!(jail.sh("echo alive").stdout, "alive\n");
    }
    jail.end();
    row("arguments beyond what the kernel takes", caller, "refused");
}
