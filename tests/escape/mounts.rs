//! Attacks on what is mounted: roots and names that are swapped while a task starts, what is read-only, what the host mounts later.

use std::io::{BufRead, BufReader, Write};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};

use crate::cves::blocked;
use crate::jail::{Caller, Place, row};

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
    place.on_host("echo same > ../readable/file");
    let mut jail = place.start(&format!(
        "[[readable_roots]]\nhost = {readable:?}\npath = \"/readable\"\n"
    ));
    blocked("write to a readable root", caller, &jail.python(script));
    jail.end();
    assert_eq!(place.on_host("ls ../readable; cat ../readable/file"), "file\nsame\n");
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
        for _ in 0..12 {
            act();
        }
        stop.store(true, Ordering::Relaxed);
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

/// A mount namespace in which a folder is a mount that hands on whatever is mounted below; `None` for an engine, which is in none of
/// ours.
struct Shared {
    shell: Child,
    said: BufReader<std::process::ChildStdout>,
}

impl Shared {
    fn new(folder: &Path) -> Shared {
        let folder = folder.display();
        let script = format!(
            "mount -t tmpfs -o mode=777 none {folder} && mount --make-shared {folder} && mkdir -m 777 {folder}/sub && echo shared && read line
             mount -t tmpfs none {folder}/sub && touch {folder}/sub/marker && echo mounted && read line"
        );
        let mut shell = Command::new("unshare")
            .args(["--mount", "--propagation", "private", "sh", "-c", &script])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let said = BufReader::new(shell.stdout.take().unwrap());
        let mut shared = Shared { shell, said };
        shared.hear("shared\n");
        shared
    }

    fn hear(&mut self, wanted: &str) {
        let mut line = String::new();
        self.said.read_line(&mut line).unwrap();
        assert_eq!(line, wanted);
    }

    fn mount(&mut self) {
        self.shell.stdin.as_mut().unwrap().write_all(b"\n").unwrap();
        self.hear("mounted\n");
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        drop(self.shell.stdin.take());
        let _ = self.shell.wait();
    }
}

/// What the host mounts below a root after the task began is not the task's, however the host's mounts are shared.
pub fn what_the_host_mounts_later_does_not_show_inside(caller: Caller) {
    // An engine is in no mount namespace of this test's making.
    if matches!(caller, Caller::Docker(_)) || !rustix::process::geteuid().is_root() {
        return;
    }
    let place = Place::new(caller);
    let mut shared = Shared::new(&place.work());
    let place = place.within(shared.shell.id());
    let mut jail = place.start("");
    let ran = jail.sh("cd /workspace/sub && echo inside > inside; echo *");
    assert_eq!(ran.stdout, "inside\n", "{}", ran.stderr);
    shared.mount();
    let ran = jail.sh("cd /workspace/sub; echo *; echo BLOCKED");
    assert_eq!(ran.stdout, "inside\nBLOCKED\n", "{}", ran.stderr);
    jail.end();
    row("a mount of the host's below a live root", caller, "BLOCKED");
}
