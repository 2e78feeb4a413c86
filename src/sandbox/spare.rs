//! A process that stands ready in new namespaces before a sandbox is asked for: a network namespace alone costs the kernel half a
//! millisecond, and it is the same for every task.
//!
//! ```text
//!   launcher, idle ── clone3(user, net, ipc, uts) ──▶ spare: waits
//!   launcher, asked ── id maps, Become ──▶ spare ── clone3(pid, mount, into the task's cgroup) ──▶ child: setup
//!            ◀── pidfd ──────────────────── spare, and ends
//! ```
//!
//! It has seen no task: one serves once, and what it becomes is asked and checked as without it. The mount namespace is made when it
//! is asked for, since the host's mounts of that moment count. Its socket ends with the launcher, and the spare with that.

use std::borrow::Cow;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use rustix::process::Pid;
use serde::{Deserialize, Serialize};

use super::launcher::{self, LaunchRequest, LaunchedBy};
use super::setup::{Inherited, Step, StepError};
use crate::sys::namespace::{self, Cloned};
use crate::sys::packet;

/// To the spare. Descriptors: the guest's end of the control socket, and the pipe on which a step that failed is told.
#[derive(Debug, Serialize, Deserialize)]
struct Become<'a>(Cow<'a, LaunchRequest>);

/// From the spare.
#[derive(Debug, Serialize, Deserialize)]
enum Became {
    /// Descriptor: the pidfd of the new process.
    Process,
    Failed {
        step: String,
        errno: i32,
    },
}

/// The launcher's hold on it.
pub(super) struct Spare {
    pid: Pid,
    /// To the spare, and then to what it becomes.
    sync: OwnedFd,
}

impl Spare {
    /// Makes one. In the new process this does not return.
    pub fn make(guest: BorrowedFd<'_>) -> io::Result<Spare> {
        let (sync, theirs) = packet::pair()?;
        match namespace::clone_into(namespace::AHEAD, None)? {
            Cloned::Child => {
                drop(sync);
                // There is nobody to tell but the launcher, which finds the socket closed.
                let _ = wait(theirs, guest);
                std::process::exit(0)
            }
            Cloned::Parent { pid, .. } => Ok(Spare { pid, sync }),
        }
    }

    /// Whether it can become what is asked for.
    pub fn serves(request: &LaunchRequest) -> bool {
        matches!(request.by, LaunchedBy::Builtin { .. })
    }

    pub fn pid(&self) -> Pid {
        self.pid
    }

    pub fn sync(&self) -> &OwnedFd {
        &self.sync
    }

    /// Tells it what to become. Its id maps are written by then.
    pub fn tell(&self, request: &LaunchRequest, control: BorrowedFd<'_>, report: BorrowedFd<'_>) -> io::Result<()> {
        packet::send(self.sync.as_fd(), &Become(Cow::Borrowed(request)), &[control, report])
    }

    /// The pidfd of what it became.
    pub fn became(self) -> Result<OwnedFd, StepError> {
        match packet::receive::<Became>(self.sync.as_fd()).step("hear of the new process")? {
            Some((Became::Process, fds)) => {
                let pidfd = fds.into_iter().next();
                pidfd.ok_or(ErrorKind::InvalidData).step("hold the new process")
            }
            Some((Became::Failed { step, errno }, _)) => Err(StepError {
                step,
                error: io::Error::from_raw_os_error(errno),
            }),
            None => Err(ErrorKind::UnexpectedEof).step("hear of the new process"),
        }
    }
}

/// The spare's life.
fn wait(sync: OwnedFd, guest: BorrowedFd<'_>) -> io::Result<()> {
    // What is done now need not be done then; where it fails, it fails then too, and is told.
    let _ = namespace::bring_up_loopback();
    let Some((Become(request), fds)) = packet::receive::<Become<'static>>(sync.as_fd())? else {
        return Ok(());
    };
    let [control, report] = <[OwnedFd; 2]>::try_from(fds).map_err(|_| ErrorKind::InvalidData)?;
    match launcher::clone_and_join(namespace::AT_LAST, &request.joins) {
        Ok((Cloned::Child, joins)) => {
            let request = &request;
            let inherited = Inherited {
                request,
                joins,
                sync,
                control,
                guest,
            };
            launcher::set_up(inherited, report)
        }
        Ok((Cloned::Parent { pidfd, .. }, _)) => packet::send(sync.as_fd(), &Became::Process, &[pidfd.as_fd()]),
        Err(StepError { step, error }) => {
            let errno = error.raw_os_error().unwrap_or(0);
            packet::send(sync.as_fd(), &Became::Failed { step, errno }, &[])
        }
    }
}
