//! What this machine's kernel lets us do, found out by doing it: version numbers say little where distributions patch and admins
//! forbid.
//!
//! Each trial runs in a process of its own, cloned by a small single-threaded one (this program under another name), so that what it
//! makes is gone with it.

use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{Mode, OFlags};
use serde::{Deserialize, Serialize};

use super::seccomp;
use super::setup::{self, Step, StepError};
use crate::sys::mount::{self, Attributes, Depth};
use crate::sys::namespace::{self, Cloned, IdRange, Setgroups};
use crate::sys::{landlock, packet, process};

/// The name under which belljar's own program makes the trials.
pub const ARGV0: &str = "belljar-probe";

/// One trial: `None` where it went well, else the step that failed and why.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Trials {
    pub user_namespace: Option<String>,
    pub namespaces: Option<String>,
    pub mounts: Option<String>,
    pub overlay: Option<String>,
    pub proc: Option<String>,
    pub sysfs: Option<String>,
    pub id_mapped: Option<String>,
    pub id_mapped_state: Option<String>,
    pub seccomp: Option<String>,
    pub pidfd: Option<String>,
    pub landlock: Option<String>,
    pub kvm: Option<String>,
}

/// Makes the trials. `program` is belljar's own; `state` the folder where images would lie. Blocking, for some milliseconds.
pub fn try_all(program: &Path, state: &Path) -> io::Result<Trials> {
    let output = Command::new(program)
        .arg0(ARGV0)
        .arg(state)
        .env_clear()
        .stdin(Stdio::null())
        .stderr(Stdio::inherit())
        .output()?;
    serde_json::from_slice(&output.stdout).map_err(io::Error::other)
}

/// Whether this process was started to make the trials.
pub fn is_probe(argv0: Option<&std::ffi::OsStr>) -> bool {
    argv0.is_some_and(|name| name == ARGV0)
}

/// The life of the process that makes the trials; returns the exit code.
pub fn run() -> u8 {
    process::ignore_children();
    let state = std::env::args_os().nth(1).map_or_else(|| "/".into(), PathBuf::from);
    let answer = serde_json::to_vec(&trials(&state)).expect("trials are plain data");
    match io::stdout().write_all(&answer) {
        Ok(()) => 0,
        Err(_) => 1,
    }
}

fn trials(state: &Path) -> Trials {
    let said = |result: Result<(), StepError>| {
        result
            .err()
            .map(|StepError { step, error }| format!("could not {step}: {error}"))
    };
    let user_and_mounts = namespace::USER | namespace::MOUNTS;
    // The nearest folder of the state's that is there: its file system is what counts.
    let existing = state
        .ancestors()
        .find(|folder| folder.is_dir())
        .unwrap_or(Path::new("/"));
    Trials {
        user_namespace: said(in_child(namespace::USER, || Ok(()))),
        namespaces: said(in_child(namespace::SANDBOX, || {
            namespace::new_cgroup_namespace().step("make a cgroup namespace")?;
            namespace::bring_up_loopback().step("bring up loopback")
        })),
        mounts: said(in_child(user_and_mounts, try_mounts)),
        overlay: said(in_child(user_and_mounts, try_overlay)),
        proc: said(in_child(namespace::SANDBOX, || try_kernel_mount("proc"))),
        sysfs: said(in_child(namespace::SANDBOX, || try_kernel_mount("sysfs"))),
        id_mapped: said(try_id_map(Path::new("/usr"))),
        id_mapped_state: said(try_id_map(existing)),
        seccomp: said(in_child(namespace::USER, || {
            process::drop_capabilities().step("drop capabilities")?;
            process::load_seccomp(&seccomp::FILTER.program).step("load the filter")
        })),
        pidfd: said(
            process::pidfd_open(rustix::process::getpid())
                .map(drop)
                .step("open a pidfd"),
        ),
        landlock: said(landlock::version().map(drop).step("ask for Landlock")),
        kvm: said(
            rustix::fs::open("/dev/kvm", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())
                .map(drop)
                .step("open /dev/kvm"),
        ),
    }
}

/// Does something in new namespaces, as root inside; says how it went.
fn in_child(flags: u64, body: impl FnOnce() -> Result<(), StepError>) -> Result<(), StepError> {
    let (hold, release) = packet::pipe().step("make a pipe")?;
    let (failure, report) = packet::pipe().step("make a pipe")?;
    match namespace::clone_into(flags, None).step("make namespaces")? {
        Cloned::Child => {
            drop((release, failure));
            let mut byte = [0; 1];
            let _ = rustix::io::read(&hold, &mut byte);
            if let Err(StepError { step, error }) = body() {
                let text = format!("{} {step}", error.raw_os_error().unwrap_or(0));
                let _ = std::fs::File::from(report).write_all(text.as_bytes());
            }
            std::process::exit(0)
        }
        Cloned::Parent { pid, pidfd } => {
            drop((hold, report));
            let (uid, gid) = process::own_ids();
            let one = |outside| {
                [IdRange {
                    inside: 0,
                    outside,
                    count: 1,
                }]
            };
            let mapped = namespace::write_id_maps(pid, &one(uid), &one(gid), Setgroups::Deny);
            if mapped.is_err() {
                let _ = process::pidfd_kill(pidfd.as_fd());
            }
            mapped.step("write the id maps")?;
            drop(release);
            let mut text = String::new();
            std::fs::File::from(failure)
                .read_to_string(&mut text)
                .step("hear of it")?;
            match text.split_once(' ') {
                None => Ok(()),
                Some((errno, step)) => Err(StepError {
                    step: step.to_owned(),
                    error: io::Error::from_raw_os_error(errno.parse().unwrap_or(0)),
                }),
            }
        }
    }
}

/// A place that every machine has, covered in the trial's own mount namespace.
fn place() -> Result<OwnedFd, StepError> {
    setup::open_folder(Path::new("/tmp")).step("open /tmp")
}

fn try_mounts() -> Result<(), StepError> {
    mount::make_private().step("cut off the mounts")?;
    let place = place()?;
    let top = setup::tmpfs(1 << 20, 64, 0o755, Attributes::default()).step("make a tmpfs")?;
    mount::attach(top.as_fd(), place.as_fd()).step("attach a tmpfs")?;
    let usr = mount::open_source(Path::new("/usr")).step("open /usr")?;
    let tree = mount::clone_tree(usr.as_fd(), Depth::Recursive).step("copy the mount of /usr")?;
    let read_only = Attributes {
        read_only: true,
        ..Attributes::default()
    };
    mount::set_attributes(tree.as_fd(), read_only, None).step("make it read-only")?;
    let target = setup::make_folders(top.as_fd(), "usr").step("make a folder")?;
    mount::attach(tree.as_fd(), target.as_fd()).step("attach /usr")
}

fn try_overlay() -> Result<(), StepError> {
    mount::make_private().step("cut off the mounts")?;
    let place = place()?;
    let top = setup::tmpfs(1 << 20, 64, 0o755, Attributes::default()).step("make a tmpfs")?;
    mount::attach(top.as_fd(), place.as_fd()).step("attach a tmpfs")?;
    for name in ["lower", "upper", "work"] {
        setup::make_folders(top.as_fd(), name).step("make a folder")?;
    }
    rustix::process::fchdir(&top).step("enter the tmpfs")?;
    let options = [
        ("lowerdir", "lower"),
        ("upperdir", "upper"),
        ("workdir", "work"),
        ("userxattr", ""),
    ];
    mount::new_file_system("overlay", &options, Attributes::default())
        .map(drop)
        .step("mount an overlay")
}

fn try_kernel_mount(kind: &str) -> Result<(), StepError> {
    mount::new_file_system(kind, &[], Attributes::default())
        .map(drop)
        .step(format!("mount a {kind} file system"))
}

/// Whether files below a folder can show under other owners.
fn try_id_map(folder: &Path) -> Result<(), StepError> {
    let map = [IdRange {
        inside: 0,
        outside: 1 << 30,
        count: 65_536,
    }];
    let inside = namespace::mapping(&map, &map).step("make an id map")?;
    let source = mount::open_source(folder).step(format!("open {}", folder.display()))?;
    let tree =
        mount::clone_tree(source.as_fd(), Depth::Single).step(format!("copy the mount of {}", folder.display()))?;
    mount::set_attributes(tree.as_fd(), Attributes::default(), Some(inside.as_fd()))
        .step(format!("map the ids of {}", folder.display()))
}
