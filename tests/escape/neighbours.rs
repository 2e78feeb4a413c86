//! What one exec can do to another, and to the processes that watch over it.

use serde_json::json;

use crate::jail::{Caller, Place, row};

/// Looks into every process that it can see for a value, in all the ways that /proc offers.
const LOOK: &str = r#"
import glob, os, sys
word = ('CANA' + 'RY').encode()
found = []
own = str(os.getpid())
for folder in glob.glob('/proc/[0-9]*'):
    pid = folder.split('/')[2]
    if pid in (own, 'self', 'thread-self'):
        continue
    for name in ('environ', 'maps', 'auxv', 'mem', 'syscall', 'stack', 'io'):
        try:
            open(folder + '/' + name, 'rb').read(1)
            found.append(pid + '/' + name)
        except OSError:
            pass
    for name in ('exe', 'cwd', 'root'):
        try:
            os.readlink(folder + '/' + name)
            found.append(pid + '/' + name)
        except OSError:
            pass
    # Which numbers are open can be seen by who has the same user; what they are cannot.
    for name in glob.glob(folder + '/fd/*') + [folder + '/fd/%d' % fd for fd in range(4)]:
        for look in (os.readlink, lambda name: open(name, 'rb')):
            try:
                look(name)
                found.append(name)
            except OSError:
                pass
print('EXPOSED' if found else 'BLOCKED', sorted(set(found))[:20])
"#;

pub fn no_exec_looks_into_another_one(caller: Caller) {
    let place = Place::new(caller);
    let mut jail = place.start("");
    let other = jail.begin(json!({
        "argv": ["sh", "-c", "echo ready; exec sleep 600"],
        "env": {"MINE": "CANARY"},
    }));
    assert_eq!(jail.output(&other), "ready\n");
    let ran = jail.python(LOOK);
    if caller.isolates_execs() {
        row("look into another exec by /proc", caller, ran.last_line());
        assert_eq!(ran.last_line(), "BLOCKED []", "{}", ran.stderr);
    } else {
        row("look into another exec by /proc", caller, "reported: exec_isolation");
    }
    jail.signal(&other, 9);
    jail.end();
}

pub fn an_exec_still_looks_into_its_own_children(caller: Caller) {
    let place = Place::new(caller);
    let mut jail = place.start("");
    let ran = jail.sh("MINE=yes sleep 60 & until tr '\\0' '\\n' < /proc/$!/environ | grep MINE; do :; done");
    assert_eq!(ran.stdout, "MINE=yes\n", "{}", ran.stderr);
    jail.end();
}

pub fn files_move_between_folders_as_ever(caller: Caller) {
    let place = Place::new(caller);
    let mut jail = place.start("");
    let ran = jail.sh(
            "mkdir a b && echo x > a/f && mv a/f b/g && ln b/g a/h && cat a/h && mkdir /tmp/a /tmp/b && echo y > /tmp/a/f
             mv /tmp/a/f /tmp/b/f && cat /tmp/b/f && python3 -c 'import os; os.mkdir(\"/tmp/a/d\"); os.rename(\"/tmp/a/d\", \"/tmp/b/d\")'",
        );
    assert_eq!((ran.stdout.as_str(), ran.code()), ("x\ny\n", Some(0)), "{}", ran.stderr);
    jail.end();
}

pub fn a_command_that_kills_its_watcher_dies_with_it_and_that_is_told(caller: Caller) {
    let place = Place::new(caller);
    let mut jail = place.start("");
    let ran = jail.sh("(sleep 600 &) ; kill -9 $PPID; sleep 600");
    row("kill the process that watches", caller, &ran.end["outcome"].to_string());
    assert_eq!(
        (&ran.end["outcome"], &ran.end["signal"]),
        (&json!("signaled"), &json!(9)),
        "{}",
        ran.end
    );
    // The next exec sees nothing of what it left, and is none the worse.
    let wait = "until ! pgrep -x sleep > /dev/null; do :; done; echo alone";
    let ran = jail.run_with(json!({"argv": ["sh", "-c", wait], "timeout_seconds": 120}));
    assert_eq!(ran.stdout, "alone\n", "{}", ran.stderr);
    jail.end();
}

pub fn pid_1_cannot_be_killed_from_inside(caller: Caller) {
    let place = Place::new(caller);
    let mut jail = place.start("");
    let ran = jail.sh("for signal in 1 2 3 6 9 11 15 19; do kill -$signal 1; done; echo alive");
    row("LIF-008 kill PID 1", caller, "BLOCKED");
    assert_eq!(ran.stdout, "alive\n", "{}", ran.stderr);
    assert_eq!(jail.sh("echo yes").stdout, "yes\n");
    jail.end();
}

/// Tasks that share no folder find no socket of one another, so no descriptor crosses between them (SCM_RIGHTS, pidfd_getfd).
pub fn no_descriptor_crosses_from_task_to_task(caller: Caller) {
    let (place, other) = (Place::new(caller), Place::new(caller));
    let (mut one, mut two) = (place.start(""), other.start(""));
    let serve = "import socket\nfor name in ('\\0belljar-escape', '/tmp/belljar-escape', '/dev/shm/belljar-escape'):\n s = socket.socket(socket.AF_UNIX); s.bind(name); s.listen(); globals()[name] = s\nprint('there', flush=True); s.accept()";
    let server = one.begin(json!({"argv": ["python3", "-c", serve]}));
    assert_eq!(one.output(&server), "there\n");
    let connect = "import socket\nfound = []\nfor name in ('\\0belljar-escape', '/tmp/belljar-escape', '/dev/shm/belljar-escape'):\n try: socket.socket(socket.AF_UNIX).connect(name); found.append(name)\n except OSError: pass\nprint('EXPOSED' if found else 'BLOCKED', found)";
    // They can be reached at all: from beside it in the same task.
    assert_eq!(one.python(connect).last_line().split(' ').next(), Some("EXPOSED"));
    let ran = two.python(connect);
    row(
        "descriptors from task to task",
        caller,
        ran.last_line().split(' ').next().unwrap_or(""),
    );
    assert_eq!(ran.last_line(), "BLOCKED []", "{}", ran.stderr);
    one.signal(&server, 9);
    one.end();
    two.end();
}
