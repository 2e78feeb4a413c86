//! A guest played by a test, beside a process that stands for PID 1.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::process::ExitStatusExt as _;
use std::process::{Child, Command};
use std::sync::Arc;
use std::time::Duration;

use belljar_guest::{FromInit, ToInit, VERSION};
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::time::timeout;

use super::{Guest, Pid1};
use crate::sys::{packet, process};

/// How long what is certain to come is waited for.
const CERTAIN: Duration = Duration::from_secs(60);

/// The guest's own end of the control socket, and the process that must be over once the guest is not believed any more.
pub struct Played {
    pub control: OwnedFd,
    pub pid1: Child,
    /// What stands for the slots.
    slot: Child,
}

impl Played {
    /// Before the first word: the host's end of the control socket, and of the process.
    pub fn new() -> (OwnedFd, Pid1, Played) {
        let (ours, control) = packet::pair().unwrap();
        let played = Played {
            control,
            pid1: sleeper(),
            slot: sleeper(),
        };
        let pidfd = packet::watched(pidfd(&played.pid1), Interest::READABLE).unwrap();
        (ours, Arc::new(pidfd), played)
    }

    pub async fn greeted() -> (Guest, Pid1, Played) {
        let (ours, pid1, played) = Played::new();
        played.say(&FromInit::Ready { version: VERSION }, &[]);
        let (guest, first) = Guest::expect(ours, pid1.clone()).unwrap();
        first.heard().await.unwrap();
        (guest, pid1, played)
    }

    pub fn say(&self, message: &FromInit, fds: &[BorrowedFd<'_>]) {
        packet::send(self.control.as_fd(), message, fds).unwrap();
    }

    /// Waits for the host's wish for a slot and grants it; the slot's own end of its socket. Blocking.
    pub fn add_slot(&self) -> OwnedFd {
        self.add_slot_of(&self.slot).0
    }

    /// The same with a process that is to be the slot's; and the files by which it is to join its cgroups.
    pub fn add_slot_of(&self, process: &Child) -> (OwnedFd, Vec<OwnedFd>) {
        let (asked, fds) = packet::receive::<ToInit>(self.control.as_fd()).unwrap().unwrap();
        let ToInit::AddSlot { slot } = asked else {
            panic!("{asked:?}")
        };
        self.say(&FromInit::SlotAdded { slot, pid: 2 }, &[pidfd(process).as_fd()]);
        let mut fds = fds.into_iter();
        (fds.next().unwrap(), fds.collect())
    }

    /// Waits until what stands for PID 1 was killed; by itself it lasts.
    pub async fn is_ended(&mut self) {
        is_killed(&mut self.pid1).await;
    }

    pub fn lives_on(&mut self) -> bool {
        self.pid1.try_wait().unwrap().is_none()
    }
}

/// A process that does nothing and lasts.
pub fn sleeper() -> Child {
    Command::new("sleep").arg("600").spawn().unwrap()
}

fn pidfd(process: &Child) -> OwnedFd {
    process::pidfd_open(Pid::from_child(process)).unwrap()
}

/// Waits until a process was killed.
pub async fn is_killed(process: &mut Child) {
    let pidfd = packet::watched(pidfd(process), Interest::READABLE).unwrap();
    let ended = timeout(CERTAIN, pidfd.readable()).await;
    drop(ended.expect("it is killed").unwrap());
    assert_eq!(process.wait().unwrap().signal(), Some(9));
}

impl Drop for Played {
    fn drop(&mut self) {
        for process in [&mut self.pid1, &mut self.slot] {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}
