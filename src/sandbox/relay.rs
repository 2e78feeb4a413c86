//! Where descriptors cannot be passed in, the guest inside connects to a socket instead, and a second guest on this side of it turns
//! the stream back into descriptors (see the guest's own `relay`).
//!
//! ```text
//!   belljar ── control, slots, pipes ── near guest, in an empty box ══ stream ══ far guest, in gVisor or a container of Docker's
//! ```
//!
//! The near guest reads what the far one says, so it is boxed like a task: user, mount, pid and net namespaces of its own, an empty
//! root, no capabilities, the same filter. Its loopback is where the listeners for the proxy are. What it costs is one idle process.

use std::collections::BTreeMap;
use std::fs::{File, Permissions};
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::{Arc, PoisonError};
use std::time::Duration;

use rustix::process::Pid;
use tokio::io::Interest;
use tokio::time::timeout;

use super::channel::{self, ChannelError, Guest, Link, Pid1};
use super::host_root;
use super::launcher::{self, LaunchError, LaunchRequest, LaunchedBy, Said};
use super::oci::{Machinery, SandboxError};
use super::plan::{AGENT, CallerIds, Ids, Limits, Mount, Plan, Process, Root, Source};
use super::seccomp;
use crate::id::TaskId;
use crate::path::{HostPath, SandboxPath};
use crate::sys::cgroup::Joins;
use crate::sys::{packet, process};
use crate::task::NetworkMode;

/// How long a sandbox may take from its launch to its guest's first word: gVisor needs half a second of a quiet machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// The stream to a far guest, and who is at the other end by what the kernel says.
pub struct Stream {
    pub stream: OwnedFd,
    /// As this process's own pid namespace numbers it; `None` where it is not to be seen from here.
    pub peer: Option<Pid>,
}

/// Makes the near guest's box and waits until the far guest has spoken through it. With the guest comes the near one's pidfd, which
/// becomes readable when either of them is over. `place` is a folder of the task's own.
pub async fn greet(machinery: &Machinery, place: HostPath, stream: OwnedFd) -> Result<(Guest, Pid1), SandboxError> {
    let machinery = machinery.clone();
    let launched = tokio::task::spawn_blocking(move || launch(&machinery, place));
    let (near, control) = launched.await.map_err(io::Error::other)??;
    let near = Arc::new(packet::watched(near, Interest::READABLE)?);
    match Guest::greet_by_relay(control, stream, near.clone()).await {
        Ok(guest) => Ok((guest, near)),
        Err(error) => {
            channel::condemn(&near);
            Err(error.into())
        }
    }
}

/// The near guest's pidfd and control socket. Blocking, for some milliseconds.
fn launch(machinery: &Machinery, place: HostPath) -> Result<(OwnedFd, OwnedFd), LaunchError> {
    let (control, theirs) = packet::pair().map_err(|source| LaunchError::Start { source })?;
    let request = LaunchRequest {
        plan: plan(),
        place,
        joins: Joins::default(),
        by: LaunchedBy::Builtin {
            seccomp: seccomp::FILTER.program.clone(),
        },
    };
    let launched = {
        let mut launcher = machinery.launcher.lock().unwrap_or_else(PoisonError::into_inner);
        launcher.launch(&request, theirs.as_fd())?
    };
    drop(theirs);
    match launcher::read_failure(launched.failure) {
        None => Ok((launched.pidfd, control)),
        Some(error) => Err(error),
    }
}

/// An empty box, with ids of its own.
pub(super) fn plan() -> Plan {
    let id = TaskId::new();
    let ids = Ids::of(id, CallerIds::of_process(), AGENT);
    let is_needed = |mount: &Mount| match mount.source {
        Source::Proc => true,
        Source::Tmpfs { .. } => mount.path.as_str() == "/dev",
        Source::Bind { .. }
        | Source::Sysfs
        | Source::Devpts
        | Source::Mqueue
        | Source::Device { .. }
        | Source::Itself { .. }
        | Source::Nothing { .. } => false,
    };
    Plan {
        task: id,
        hostname: "belljar-relay".to_owned(),
        ids,
        root: Root {
            layers: Vec::new(),
            bytes: 64 << 10,
            inodes: 64,
            made: Vec::new(),
        },
        mounts: host_root::kernel_mounts().into_iter().filter(is_needed).collect(),
        masked: host_root::masked(),
        read_only: host_root::read_only(),
        process: Process {
            uid: AGENT,
            gid: AGENT,
            cwd: SandboxPath::new("/").expect("it is a path"),
            env: BTreeMap::new(),
            // One for each stream.
            open_files: 8192,
        },
        limits: Limits {
            memory_bytes: None,
            cpus: None,
            pids: None,
        },
        network: NetworkMode::None,
        seccomp: seccomp::FILTER.digest.to_string(),
    }
}

/// The listening socket that an outside runtime's own mount namespace has, as the launcher's child passes it out.
pub async fn listener_of(control: OwnedFd) -> Result<UnixListener, ChannelError> {
    let link = Link::new(control)?;
    let heard = timeout(PATIENCE, link.hear::<Said>())
        .await
        .map_err(|_| ChannelError::Silent)?;
    match heard?.map(|(Said::Listening, fds)| fds.into_iter().next()) {
        Some(Some(socket)) => Ok(socket.into()),
        Some(None) => Err(ChannelError::OutOfTurn),
        None => Err(ChannelError::Gone),
    }
}

/// A socket in a folder of the host's to which whoever sees it may connect; only the sandbox will be shown it.
pub fn listen(folder: &Path, name: &str) -> io::Result<UnixListener> {
    let held = File::open(folder)?;
    // By the descriptor, for the whole path may be longer than the 107 bytes that unix(7) has room for.
    let listener = UnixListener::bind(format!("/proc/self/fd/{}/{name}", held.as_raw_fd()))?;
    std::fs::set_permissions(folder.join(name), Permissions::from_mode(0o666))?;
    Ok(listener)
}

/// Waits for the guest inside to connect. The socket takes nobody after that one: what runs inside comes later, and finds it closed.
pub async fn accept(listener: UnixListener) -> Result<Stream, ChannelError> {
    listener.set_nonblocking(true)?;
    let listener = packet::watched(listener.into(), Interest::READABLE)?;
    let accepted = timeout(
        PATIENCE,
        listener.async_io(Interest::READABLE, |listener| {
            Ok(rustix::net::accept_with(listener, rustix::net::SocketFlags::CLOEXEC)?)
        }),
    );
    let stream = accepted.await.map_err(|_| ChannelError::Silent)??;
    let peer = process::peer_pid(stream.as_fd())?;
    Ok(Stream { stream, peer })
}
