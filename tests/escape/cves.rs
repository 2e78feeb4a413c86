//! Attacks of the kind that broke other sandboxes, each by the number or name of the fault that it tries.

use serde_json::json;

use crate::jail::{Caller, Place, Ran, not_tried, row};

pub fn blocked(attack: &str, caller: Caller, ran: &Ran) {
    row(attack, caller, ran.last_line().split(' ').next().unwrap_or(""));
    assert_eq!(
        ran.last_line(),
        "BLOCKED",
        "{caller:?}: {attack}: {}{}",
        ran.stdout,
        ran.stderr
    );
}

/// CVE-2024-21626, CVE-2026-41579's kin: descriptors that the caller holds, and folders of work that lead through them.
pub fn no_descriptor_of_the_host_is_a_way_out(caller: Caller) {
    let place = Place::new(caller);
    place.on_host("echo HOSTCANARY > ../canary; mkdir deep; echo HOSTCANARY > deep/own");
    let program = place.program();
    // Neither marked to be closed at exec, as careless callers leave them.
    let script = format!(
        "exec 7<../canary 8<.. 9<deep; exec {} run --quiet {} --write {} --stdio",
        program.display(),
        caller.flags().join(" "),
        place.work().join("deep").display()
    );
    let mut jail = place.start_by(&script);
    let ran = jail.sh(
            "cat <&7 2>/dev/null; cat <&8 2>/dev/null; for fd in /proc/self/fd/*; do readlink $fd; cat $fd/canary $fd/../canary 2>/dev/null; done
             for fd in $(seq 0 40); do (cd /proc/self/fd/$fd && cat canary ../canary ../../canary) 2>/dev/null; done; true",
        );
    assert!(!ran.stdout.contains("HOSTCANARY"), "{}", ran.stdout);
    let place_name = place.path().display().to_string();
    assert!(!ran.stdout.contains(&place_name), "{}", ran.stdout);
    for fd in 0..24 {
        for path in [format!("/proc/self/fd/{fd}"), format!("/proc/self/fd/{fd}/..")] {
            let exec =
                jail.try_begin(json!({"argv": ["sh", "-c", "pwd; cat canary ../canary ../../canary"], "cwd": path}));
            let Some(exec) = exec else { continue };
            let ran = jail.finish(&exec);
            assert!(!ran.stdout.contains("HOSTCANARY"), "{path}: {}", ran.stdout);
        }
    }
    jail.end();
    row("CVE-2024-21626 descriptors and workdir", caller, "BLOCKED");
}

/// CVE-2017-5226, CVE-2023-28100 (TIOCLINUX), CVE-2019-10063 (more than 32 bits of a request): typing into the terminal.
pub fn nobody_types_into_the_terminal(caller: Caller) {
    let script = r#"
import ctypes, fcntl, os
libc = ctypes.CDLL(None, use_errno=True)
word = ctypes.create_string_buffer(b"x")
done = []
fds = [0, 1, 2]
try:
    fds.append(os.open("/dev/tty", os.O_RDWR))
except OSError:
    pass
for fd in fds:
    for request in (0x5412, 0x541c, 0x5412 | 1 << 32, 0x541c | 1 << 32, 0x5412 | 0xffffffff << 32):
        if libc.syscall(16, ctypes.c_long(fd), ctypes.c_ulong(request), word) == 0:
            done.append((fd, hex(request)))
print("EXPOSED" if done else "BLOCKED", *done)
"#;
    let place = Place::new(caller);
    let mut jail = place.start("");
    let exec = jail.begin(json!({"argv": ["python3", "-c", script], "tty": {"rows": 24, "cols": 80}}));
    let ran = jail.finish(&exec);
    let ran = Ran {
        stdout: ran
            .stdout
            .replace("BLOCKED \r\n", "BLOCKED\n")
            .replace("BLOCKED\r\n", "BLOCKED\n"),
        ..ran
    };
    blocked("TIOCSTI and TIOCLINUX", caller, &ran);
    jail.end();
}

/// CVE-2019-5736 and its kin: the program that runs the sandbox, reached through /proc.
pub fn the_programs_that_watch_cannot_be_changed(caller: Caller) {
    let script = r##"
import glob, os
done = []
open("/workspace/script", "w").write("#!/proc/self/exe\n")
os.chmod("/workspace/script", 0o755)
if os.fork() == 0:
    try:
        os.execv("/workspace/script", ["script"])
    except OSError:
        pass
    os._exit(0)
os.wait()
own = {"/proc/%d" % os.getpid(), "/proc/self", "/proc/thread-self"}
for folder in glob.glob("/proc/[0-9]*"):
    if folder in own:
        continue
    for flags in (os.O_WRONLY, os.O_RDWR, os.O_RDONLY):
        try:
            os.open(folder + "/exe", flags)
            done.append(folder)
        except OSError:
            pass
    for name in ("mem", "map_files"):
        try:
            os.open(folder + "/" + name, os.O_RDWR)
            done.append(folder)
        except OSError:
            pass
print("EXPOSED" if done else "BLOCKED")
"##;
    let place = Place::new(caller);
    let mut jail = place.start("");
    blocked("CVE-2019-5736 /proc/PID/exe", caller, &jail.python(script));
    assert_eq!(jail.sh("echo alive").stdout, "alive\n");
    jail.end();
}

/// Kernel faults that were reached by way of sockets and calls that no build needs: CVE-2026-31431 (AF_ALG), CVE-2026-43284 and
/// CVE-2026-43500 (RxRPC, XFRM), CVE-2026-46300, CVE-2022-0435 (TIPC), SCTP and DCCP, io_uring, userfaultfd, keyrings, user
/// namespaces. The kernel must not even load their modules.
pub fn exotic_sockets_and_calls_do_not_exist(caller: Caller) {
    // The numbers below are those of one architecture.
    if !cfg!(target_arch = "x86_64") {
        not_tried("exotic sockets and calls", caller, "another architecture");
        return;
    }
    let script = r#"
import ctypes, errno
libc = ctypes.CDLL(None, use_errno=True)
done = []
def absent(name, *call):
    ctypes.set_errno(0)
    if libc.syscall(*map(ctypes.c_long, call)) != -1 or ctypes.get_errno() not in ABSENT:
        done.append("%s: %s" % (name, errno.errorcode.get(ctypes.get_errno(), "done")))
for family in [0, *range(3, 10), *range(11, 47)]:
    for kind in (1, 2, 3, 5):
        absent("family %d" % family, 41, family, kind, 0)
    absent("pair of family %d" % family, 53, family, 1, 0, 0)
for family in (2, 10):
    for kind, protocol in ((3, 0), (3, 1), (3, 255), (5, 0), (5, 132), (1, 132), (1, 262), (6, 33), (2, 33), (2, 115), (2, 136), (1, 115),
                           (4, 0), (10, 0), (1 | 1 << 32, 132)):
        absent("inet %d %d" % (kind, protocol), 41, family, kind, protocol)
calls = dict(io_uring_setup=425, io_uring_enter=426, userfaultfd=323, ptrace=101, unshare=272, setns=308, process_vm_readv=310,
             process_vm_writev=311, pidfd_getfd=438, memfd_secret=447, keyctl=250, add_key=248, request_key=249, bpf=321,
             perf_event_open=298, mount=165, umount2=166, clone3=435, open_tree=428, fsopen=430, move_mount=429, fsmount=432,
             mount_setattr=442, pivot_root=155, chroot=161, kexec_load=246, init_module=175, finit_module=313, open_by_handle_at=304,
             fanotify_init=300, quotactl=179, acct=163, swapon=167, reboot=169, kcmp=312, process_madvise=440, lookup_dcookie=212,
             modify_ldt=154, syslog=103, sethostname=170, uselib=134, nfsservctl=180, not_yet_made=600)
for name, number in calls.items():
    absent(name, number, 0, 0, 0, 0, 0)
absent("clone with a user namespace", 56, 0x10000000 | 17, 0, 0, 0, 0)
print("EXPOSED" if done else "BLOCKED", "; ".join(done))
"#;
    let place = Place::new(caller);
    let mut jail = place.start("");
    // An engine of before 2023 does not hear what error a list asks for.
    let absent = match caller {
        Caller::Docker(..) => "ABSENT = (errno.ENOSYS, errno.EPERM)",
        _ => "ABSENT = (errno.ENOSYS,)",
    };
    let ran = jail.python(&script.replacen("done = []", &format!("done = []\n{absent}"), 1));
    let ran = Ran {
        stdout: ran.stdout.trim_end().to_owned(),
        ..ran
    };
    row(
        "exotic sockets and calls",
        caller,
        ran.last_line().split(' ').next().unwrap_or(""),
    );
    assert_eq!(ran.last_line(), "BLOCKED", "{caller:?} {}", ran.stderr);
    // What every program uses is there.
    let ran = jail.python(
            "import socket as s\nfor f in (s.AF_INET, s.AF_INET6):\n for k in (s.SOCK_STREAM, s.SOCK_DGRAM):\n  for p in (0, {1: 6, 2: 17}[k]):\n   s.socket(f, k | s.SOCK_NONBLOCK, p)\ns.socketpair()\nprint('all')",
        );
    assert_eq!(ran.stdout, "all\n", "{}", ran.stderr);
    jail.end();
}

/// CVE-2025-59532, CVE-2026-50548: a folder of work that the model chooses widens nothing.
pub fn a_folder_of_work_opens_nothing(caller: Caller) {
    let place = Place::new(caller);
    let mut jail = place.start("");
    for cwd in ["/", "/etc", "/usr/bin", "/proc/1/root", "/proc/1/cwd"] {
        let Some(exec) = jail.try_begin(json!({"argv": ["sh", "-c", "echo x > belljar-test 2>/dev/null && echo EXPOSED || echo BLOCKED"], "cwd": cwd})) else {
                continue;
            };
        let ran = jail.finish(&exec);
        // An ordinary user's one id owns the disposable layer: a file made there goes with it.
        assert!(ran.last_line() != "EXPOSED" || caller == Caller::Ordinary, "{cwd}");
        assert!(!std::path::Path::new(cwd).join("belljar-test").exists());
    }
    jail.end();
}

/// CVE-2026-109569: a helper that enters the sandbox's namespaces in part. Nothing here enters any: all that runs is PID 1's child, and
/// what an exec has is what PID 1 has, its root folder too.
pub fn an_exec_is_in_every_namespace_of_its_sandbox(caller: Caller) {
    let attack = "CVE-2026-109569 namespaces entered in part";
    if caller == Caller::Runsc || !rustix::process::geteuid().is_root() {
        not_tried(
            attack,
            caller,
            "what runs inside is no process that can be looked at here",
        );
        return;
    }
    let place = Place::new(caller);
    let mut jail = place.start("");
    // A number that no other sleep has: this test's own.
    let time = format!("600.{}", std::process::id());
    let exec = jail.begin(json!({"argv": ["sh", "-c", format!("echo ready; exec sleep {time}")]}));
    assert_eq!(jail.output(&exec), "ready\n");
    let sleeps = |pid: &String| {
        let line = std::fs::read(format!("/proc/{pid}/cmdline")).unwrap_or_default();
        line == format!("sleep\0{time}\0").as_bytes()
    };
    let found = || {
        let entries = std::fs::read_dir("/proc").unwrap().flatten();
        entries
            .filter_map(|entry| entry.file_name().into_string().ok())
            .find(sleeps)
    };
    // The shell said that it is ready before it became the other program.
    let pid = std::iter::repeat_with(found).flatten().next().unwrap();
    let look = |pid: &str, name: &str| std::fs::read_link(format!("/proc/{pid}/{name}")).unwrap();
    let parent = |pid: &str| {
        let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
        stat.rsplit_once(')').unwrap().1.split(' ').nth(2).unwrap().to_owned()
    };
    let slot = parent(&pid);
    let init = parent(&slot);
    for name in ["user", "mnt", "pid", "net", "ipc", "uts", "cgroup"] {
        let name = format!("ns/{name}");
        assert_eq!(look(&pid, &name), look(&init, &name), "{name}");
        if name != "ns/user" || !matches!(caller, Caller::Docker(..)) {
            assert_ne!(look(&pid, &name), look("self", &name), "{name}");
        }
    }
    // What is behind the root shows by its identity: a root that was not changed is the host's own.
    let identity = |pid: &str| {
        use std::os::unix::fs::MetadataExt;
        let root = std::fs::metadata(format!("/proc/{pid}/root/")).unwrap();
        (root.dev(), root.ino())
    };
    assert_eq!(identity(&pid), identity(&init));
    assert_ne!(identity(&pid), identity("self"));
    jail.signal(&exec, 9);
    jail.end();
    row(attack, caller, "BLOCKED");
}

/// CVE-2026-65086 and CVE-2026-65091: arguments, variables and folders of an exec reach no shell that was not asked for.
pub fn what_an_exec_is_made_of_is_no_script(caller: Caller) {
    let place = Place::new(caller);
    let mut jail = place.start("");
    let evil = "$(touch /workspace/RAN) `touch /workspace/RAN`; touch /workspace/RAN\n&& touch /workspace/RAN | '\"";
    let ran = jail.run_with(json!({"argv": ["printenv", "EVIL"], "env": {"EVIL": evil}}));
    assert_eq!(ran.stdout, format!("{evil}\n"), "{}", ran.stderr);
    let ran = jail.run(&["printf", "%s", evil]);
    assert_eq!(ran.stdout, evil, "{}", ran.stderr);
    assert_eq!(jail.sh("ls /workspace").stdout, "");
    jail.end();
    row("CVE-2026-65086 arguments as a script", caller, "BLOCKED");
}

/// CVE-2026-65093: helpers of the host's that are looked for where an agent can put them. A folder of PATH that is not absolute lies
/// wherever belljar was started, which is a folder that its last task wrote to.
pub fn no_helper_comes_from_a_folder_that_a_task_wrote_to(caller: Caller) {
    let place = Place::new(caller);
    let mut jail = place.start("");
    // Not ls and cp: gVisor's of 2022 refuses what they ask for.
    let plant = format!(
        "mkdir bin; for name in runc runsc git newuidmap newgidmap nsenter mount sh belljar-guest belljar-launcher docker; do
         for at in $name bin/$name; do printf '#!/bin/sh\\ntouch {}/RAN\\n' > $at; chmod 755 $at; done; done; set -- bin/*; echo $#",
        place.path().display()
    );
    assert_eq!(jail.sh(&plant).stdout, "11\n");
    jail.end();
    let script = format!(
        "PATH=.::bin:./bin:$PATH; export PATH; exec {} run --quiet {} --write . --stdio",
        place.program().display(),
        caller.flags().join(" "),
    );
    let mut jail = place.start_by(&script);
    assert_eq!(jail.run(&["/bin/echo", "fine"]).stdout, "fine\n");
    jail.end();
    assert_eq!(place.on_host("ls .. | grep RAN || echo none"), "none\n");
    row("CVE-2026-65093 helpers by a search path", caller, "BLOCKED");
}
