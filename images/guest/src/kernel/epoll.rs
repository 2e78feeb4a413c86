//! Waiting for very many descriptors (epoll(7)): what it costs grows with those that are ready, not with those that wait.

use std::io::{ErrorKind, Result};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd};
use std::ptr;

use super::{Found, check};

/// What is ready is told of again until it is dealt with.
pub struct Epoll {
    fd: OwnedFd,
    room: Vec<libc::epoll_event>,
}

/// What a descriptor is waited for; with neither it is not waited for at all, not even for its end.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Interest {
    pub readable: bool,
    pub writable: bool,
}

impl Interest {
    fn is_none(self) -> bool {
        self == Interest::default()
    }
}

impl Epoll {
    /// As many as `at_once` are told of at a time.
    pub fn new(at_once: usize) -> Result<Epoll> {
        // SAFETY: epoll_create1 takes one integer; the descriptor is new, and ours.
        let fd = unsafe { OwnedFd::from_raw_fd(check(libc::epoll_create1(libc::EPOLL_CLOEXEC))?) };
        let room = vec![libc::epoll_event { events: 0, u64: 0 }; at_once];
        Ok(Epoll { fd, room })
    }

    /// Changes what a descriptor is waited for; `number` is what [`Epoll::wait`] calls it.
    pub fn change(&self, fd: BorrowedFd<'_>, number: u64, from: Interest, to: Interest) -> Result<()> {
        let operation = match (from.is_none(), to.is_none()) {
            _ if from == to => return Ok(()),
            (true, _) => libc::EPOLL_CTL_ADD,
            (false, false) => libc::EPOLL_CTL_MOD,
            (false, true) => libc::EPOLL_CTL_DEL,
        };
        let readable = if to.readable { libc::EPOLLIN } else { 0 };
        let writable = if to.writable { libc::EPOLLOUT } else { 0 };
        let mut event = libc::epoll_event {
            events: (readable | writable) as u32,
            u64: number,
        };
        // SAFETY: the event is a live local; both descriptors are open.
        check(unsafe { libc::epoll_ctl(self.fd.as_raw_fd(), operation, fd.as_raw_fd(), &mut event) }).map(drop)
    }

    /// Waits until something is ready, or `patience` (milliseconds, -1 for ever) is over. An error or a hang-up counts as both, and
    /// the call that is then made says which.
    pub fn wait(&mut self, patience: i32) -> Result<impl Iterator<Item = (u64, Found)>> {
        // SAFETY: the array is ours and its length is given; no signal mask is.
        let found = unsafe {
            libc::epoll_pwait(
                self.fd.as_raw_fd(),
                self.room.as_mut_ptr(),
                self.room.len() as libc::c_int,
                patience,
                ptr::null(),
            )
        };
        let count = match check(found) {
            Ok(count) => count as usize,
            Err(error) if error.kind() == ErrorKind::Interrupted => 0,
            Err(error) => return Err(error),
        };
        const GONE: u32 = (libc::EPOLLERR | libc::EPOLLHUP) as u32;
        Ok(self.room.iter().take(count).map(|event| {
            let (events, number) = (event.events, event.u64);
            let found = Found {
                readable: events & (libc::EPOLLIN as u32 | GONE) != 0,
                writable: events & (libc::EPOLLOUT as u32 | GONE) != 0,
            };
            (number, found)
        }))
    }
}
