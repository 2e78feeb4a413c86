//! Attacks on what is mounted: roots and names that are swapped while a task starts, what is read-only, what the host mounts later.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cves::blocked;
use crate::jail::{Caller, Place, not_tried, row};

/// CVE-2026-46695: what is read-only is made writable again; CVE-2026-47243: or is reached another way.
pub fn a_readable_root_stays_so(caller: Caller) {
    let script = r#"
import ctypes, os
libc = ctypes.CDLL(None, use_errno=True)
for flags in (32 | 4096, 32 | 4096 | 16384, 4096, 32):
    libc.syscall(165, None, b"/readable", None, ctypes.c_ulong(flags), None)
libc.syscall(442, -100, b"/readable", 0, ctypes.create_string_buffer(b"\0" * 8 + b"\1" + b"\0" * 23), 32)
done = []
ways = ["/readable", "/proc/self/root/readable", "/proc/1/root/readable", "/proc/thread-self/root/readable"]
for way in ways:
    for act in (lambda: open(way + "/file", "a"), lambda: open(way + "/new", "w"), lambda: os.rename(way + "/file", way + "/other"),
                lambda: os.link(way + "/file", "/workspace/link"), lambda: os.chmod(way + "/file", 0o777), lambda: os.unlink(way + "/file")):
        try:
            act()
            done.append(way)
        except OSError:
            pass
fd = os.open("/readable", os.O_PATH)
try:
    os.open("/proc/self/fd/%d/file" % fd, os.O_WRONLY)
    done.append("fd")
except OSError:
    pass
print("EXPOSED" if done else "BLOCKED")
"#;
    let place = Place::new(caller);
    let readable = place.make_folder("readable");
    // So that it is the mount alone that keeps it as it is.
    place.on_host("echo same > ../readable/file; chmod 777 ../readable; chmod 666 ../readable/file");
    let mut jail = place.start(&format!(
        "[[readable_roots]]\nhost = {readable:?}\npath = \"/readable\"\n"
    ));
    blocked("write to a readable root", caller, &jail.python(script));
    jail.end();
    assert_eq!(place.on_host("ls ../readable; cat ../readable/file"), "file\nsame\n");
}

/// Ends the swapping however the test ends: one that fails would wait for ever else.
struct Stop<'a>(&'a AtomicBool);

impl Drop for Stop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Runs something over and over while a thread swaps two names.
fn while_swapped(one: &Path, other: &Path, mut act: impl FnMut()) {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while !stop.load(Ordering::Relaxed) {
                // While one of them is a mount point of this very namespace it is busy.
                let _ = renameat_with(CWD, one, CWD, other, RenameFlags::EXCHANGE);
            }
        });
        let _stop = Stop(&stop);
        for _ in 0..12 {
            act();
        }
    });
}

/// What a task says that has `root` writable: its exit code and output.
fn said(place: &Place, caller: Caller, root: &Path, script: &str) -> (Option<i32>, String) {
    let mut command = place.command(&place.program());
    command
        .args(["run", "--quiet"])
        .args(caller.flags())
        .arg("--write")
        .arg(root);
    let output = command.args(["--", "sh", "-c", script]).output().unwrap();
    (
        output.status.code(),
        String::from_utf8_lossy(&output.stdout).into_owned(),
    )
}

/// CVE-2025-31133, CVE-2025-52565, CVE-2026-77179, CVE-2026-50549: the path of a root is swapped for a link while it is mounted.
pub fn a_root_that_is_swapped_for_a_link_is_mounted_or_refused_and_never_followed(caller: Caller) {
    let place = Place::new(caller);
    place.on_host("mkdir -p swap/root; echo real > swap/root/marker; mkdir ../target; echo HOSTCANARY > ../target/marker; ln -s ../../target swap/link");
    let (root, link) = (place.work().join("swap/root"), place.work().join("swap/link"));
    while_swapped(&root, &link, || {
        let (code, said) = said(&place, caller, &root, "cat /workspace/marker");
        let is_good = code == Some(0) && said == "real\n" || code != Some(0) && !said.contains("HOSTCANARY");
        assert!(is_good, "{caller:?}: {code:?} {said}");
    });
    row("swap of a root for a link", caller, "BLOCKED");
}

/// CVE-2025-31133 and CVE-2025-52881 again, by containers that share a writable folder: what one swaps there while another one starts
/// is what its mounts are put on.
pub fn names_that_a_neighbour_swaps_while_a_task_starts_lead_nowhere(caller: Caller) {
    let place = Place::new(caller);
    place.on_host(
        "mkdir -p pkg/.vscode ../target/.vscode; echo real > pkg/.vscode/marker; echo HOSTCANARY > ../target/.vscode/marker; ln -s ../target link",
    );
    let target = "ls -lR --time-style=full-iso ../target; cat ../target/.vscode/*";
    let before = place.on_host(target);
    while_swapped(&place.work().join("pkg"), &place.work().join("link"), || {
        let script = "cat /workspace/*/.vscode/marker; for at in /workspace/*/.vscode; do echo x > $at/new; done; true";
        let (_, said) = said(&place, caller, &place.work(), script);
        assert!(!said.contains("HOSTCANARY"), "{caller:?}: {said}");
    });
    assert_eq!(place.on_host(target), before);
    row("swap of what names lie in", caller, "BLOCKED");
}

/// A mount namespace of a shell's, which says a word after each step and waits for the next to be asked for.
struct Mounts {
    shell: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Mounts {
    const WHY_NOT: &str = "it takes mounts of the test's own, in which no engine is";

    /// Only root can make one, and an engine is in none of ours.
    fn can_be_made_for(caller: Caller) -> bool {
        !matches!(caller, Caller::Docker(..)) && rustix::process::geteuid().is_root()
    }

    /// Returns when the script has done its first step.
    fn new(script: &str) -> Mounts {
        let mut shell = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-ec", script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(shell.stdout.take().unwrap());
        let mut mounts = Mounts { shell, said };
        mounts.hear();
        mounts
    }

    fn hear(&mut self) {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert_eq!(line, "done\n");
    }

    fn go_on(&mut self) {
        self.shell.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        self.hear();
    }
}

impl Drop for Mounts {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// What the host mounts below a root after the task began is not the task's, however the host's mounts are shared.
pub fn what_the_host_mounts_later_does_not_show_inside(caller: Caller) {
    let attack = "a mount of the host's below a live root";
    if !Mounts::can_be_made_for(caller) {
        not_tried(attack, caller, Mounts::WHY_NOT);
        return;
    }
    let place = Place::new(caller);
    // A mount that hands on whatever is mounted below.
    let folder = place.work().display().to_string();
    let mut shared = Mounts::new(&format!(
        "mount -t tmpfs -o mode=777 none {folder}; mount --make-shared {folder}; mkdir -m 777 {folder}/sub; echo done; read line
         mount -t tmpfs none {folder}/sub; touch {folder}/sub/marker; echo done; read line"
    ));
    let place = place.within(shared.shell.id());
    let mut jail = place.start("");
    let ran = jail.sh("cd /workspace/sub && echo inside > inside; echo *");
    assert_eq!(ran.stdout, "inside\n", "{}", ran.stderr);
    shared.go_on();
    let ran = jail.sh("cd /workspace/sub; echo *; echo BLOCKED");
    assert_eq!(ran.stdout, "inside\nBLOCKED\n", "{}", ran.stderr);
    jail.end();
    row(attack, caller, "BLOCKED");
}

/// Runs a script in a task that has the work folder writable; its exit code, and what belljar and it said.
fn run(place: &Place, caller: Caller, more: &[&str], script: &str) -> (Option<i32>, String) {
    let mut command = place.command(&place.program());
    command
        .args(["run", "--quiet"])
        .args(caller.flags())
        .arg("--write")
        .arg(place.work())
        .args(more);
    let output = command.args(["--", "sh", "-c", script]).output().unwrap();
    let said = [output.stdout, output.stderr].concat();
    (output.status.code(), String::from_utf8_lossy(&said).into_owned())
}

/// In a container of somebody else's the whole root is an overlay, whose ids no mount can map. A root there is written to as its owner,
/// or not at all, and nobody is root outside unasked.
pub fn a_root_on_an_overlay_is_its_owners_and_no_task_is_root_unasked(caller: Caller) {
    if !Mounts::can_be_made_for(caller) {
        not_tried("a root on an overlay", caller, Mounts::WHY_NOT);
        return;
    }
    let place = Place::new(caller);
    for name in ["lower", "upper", "scratch"] {
        place.make_folder(name);
    }
    place.on_host("echo there > ../lower/there");
    let at = place.path().display().to_string();
    let owner = format!("chown -R 77:78 {at}/work");
    let mut mounts = Mounts::new(&format!(
        "mount -t overlay -o lowerdir={at}/lower,upperdir={at}/upper,workdir={at}/scratch none {at}/work; echo done; read line; {owner}; echo done; read line"
    ));
    let place = place.within(mounts.shell.id());
    let script = "cat there && echo made > made && chmod 600 there && ! mkdir .vscode/x 2> /dev/null && ! chmod 666 /dev/full 2> /dev/null";
    // The folder that a shell starts in is the one below the overlay.
    let owners = || place.on_host(&format!("cd {at}/work; stat -c %u:%g there made; rm made"));
    let accept = ["--accept-partial", "ids"];
    if caller == Caller::Ordinary {
        assert_eq!(run(&place, caller, &[], script), (Some(0), "there\n".to_owned()));
        assert_eq!(owners(), "1234:1234\n1234:1234\n");
        row("a root on an overlay", caller, "its owner's");
        return;
    }
    // It is root's.
    let (code, said) = run(&place, caller, &[], script);
    assert_eq!(code, Some(120), "{said}");
    assert!(
        said.contains("ids can be enforced only in part here: /workspace belongs to 0:0 and lies on an overlay"),
        "{said}"
    );
    let (code, said) = run(&place, caller, &accept, script);
    match caller {
        Caller::Root => {
            assert_eq!((code, said.as_str()), (Some(0), "there\n"));
            assert_eq!(owners(), "0:0\n0:0\n");
        }
        _ => {
            assert_eq!(code, Some(125), "{said}");
            assert!(
                said.contains("cannot give a writable root of 0:0 to the command's user"),
                "{said}"
            );
        }
    }
    row("a root of root's on an overlay", caller, "refused");
    mounts.go_on();
    let (code, said) = run(&place, caller, &[], script);
    match caller {
        Caller::Runsc => {
            assert_eq!(code, Some(125), "{said}");
            assert!(said.contains("cannot give a writable root of 77:78"), "{said}");
            row("a root of somebody's on an overlay", caller, "refused");
        }
        _ => {
            assert_eq!((code, said.as_str()), (Some(0), "there\n"));
            assert_eq!(owners(), "77:78\n77:78\n");
            row("a root of somebody's on an overlay", caller, "its owner's");
        }
    }
}

/// Who is root in a user namespace with one id has none to give: the task is that id's, and where it is root outside that is said.
pub fn the_root_of_a_user_namespace_gives_its_own_id(caller: Caller) {
    if !matches!(caller, Caller::Root | Caller::Ordinary) {
        not_tried(
            "root of a user namespace of one id",
            caller,
            "belljar's own launcher alone works there",
        );
        return;
    }
    let place = Place::new(caller);
    let run = |more: &str| {
        let words = format!(
            "exec unshare --user --map-root-user {} run --quiet --write {} {more} -- sh -c 'id -u; echo made > made; ! touch /usr/made 2> /dev/null'",
            place.program().display(),
            place.work().display()
        );
        let output = place
            .command(Path::new("/bin/sh"))
            .args(["-c", &words])
            .output()
            .unwrap();
        let said = [output.stdout, output.stderr].concat();
        (output.status.code(), String::from_utf8_lossy(&said).into_owned())
    };
    let more = match caller {
        Caller::Root => {
            let (code, said) = run("");
            assert_eq!(code, Some(120), "{said}");
            assert!(
                said.contains("ids can be enforced only in part here: belljar is root here"),
                "{said}"
            );
            "--accept-partial ids"
        }
        _ => "",
    };
    assert_eq!(run(more), (Some(0), "1000\n".to_owned()));
    let owner = place.on_host("stat -c %u made");
    assert_eq!(owner, place.on_host("stat -c %u ."));
    row("root of a user namespace of one id", caller, "its own id");
}

/// Beside `no_new_privs`: a program with a set-id bit, and a device, in any place that files come from. And what is the kernel's stays as
/// it is, whoever one is inside.
pub fn no_mount_honours_set_id_bits_or_devices(caller: Caller) {
    // gVisor's mounts are its own kernel's.
    if caller == Caller::Runsc {
        return;
    }
    let place = Place::new(caller);
    let readable = place.make_folder("readable");
    let mut jail = place.start(&format!(
        "[[readable_roots]]\nhost = {readable:?}\npath = \"/readable\"\n"
    ));
    let only = match caller {
        // The engine's own are the engine's to make, and what it makes read-only has its words alone: there `no_new_privs` and its list of
        // devices stand by themselves.
        Caller::Docker(..) => "(\"/workspace\",)",
        _ => "(\"/\",)",
    };
    // Nor are the runtime's, of empty read-only covers.
    let covers = match caller {
        Caller::Runc => "(\"/proc/\", \"/sys/\")",
        _ => "()",
    };
    let script = format!(
        r#"
import os
only, seen, held, bad = {only}, 0, set(), []
for line in open("/proc/self/mountinfo"):
    root, at, flags = line.split()[3:6]
    if not at.startswith(only):
        continue
    seen += 1
    if root in ("/null", "/zero", "/full", "/random", "/urandom", "/tty"):
        continue  # of one device alone
    wanted = {{"nosuid"}} if at == "/dev" or at.startswith("/dev/") else {{"nosuid", "nodev"}}
    if at.startswith({covers}):
        wanted = {{"ro"}}
    if at in ("/proc", "/sys", "/dev", "/dev/mqueue", "/dev/pts", "/dev/shm"):
        wanted.add("noexec")
    if at in ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/sys", "/dev"):
        wanted.add("ro")
        held.add(at)
    if not wanted <= set(flags.split(",")):
        bad.append(line)
there = {{at for at in ("/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger", "/sys", "/dev") if os.path.exists(at)}}
is_all = seen > 2 and ("/" not in only or there <= held)
print(*bad, "BLOCKED" if is_all and not bad else "EXPOSED")
"#
    );
    blocked("set-id bits and devices by any mount", caller, &jail.python(&script));
    jail.end();
}
