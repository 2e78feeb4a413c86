//! The host's side of the guest's sockets. What the guest says is hostile: a message out of turn, or none that can be read, poisons the
//! sandbox, which is ended at once.

use std::collections::HashMap;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use belljar_guest::{Failed, FromInit, FromSlot, ListenKind, ToInit, ToSlot, VERSION};
use serde::{Deserialize, Serialize};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{oneshot, watch};
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::sys::{packet, process};

/// How long the guest may take for an answer that costs it microseconds, on the busiest of machines.
const PATIENCE: Duration = Duration::from_secs(20);

#[derive(Debug, thiserror::Error)]
pub enum ChannelError {
    #[error("the guest is gone")]
    Gone,
    #[error("the guest did not answer within {PATIENCE:?}")]
    Silent,
    #[error("the guest speaks version {theirs} of the protocol, not {VERSION}")]
    Version { theirs: u32 },
    #[error("the guest said something out of turn")]
    OutOfTurn,
    #[error("the guest could not {what}")]
    Failed { what: &'static str, source: io::Error },
    #[error("the channel to the guest failed")]
    Io {
        #[from]
        source: io::Error,
    },
}

/// One end of a packet socket, without blocking.
#[derive(Debug)]
pub struct Link {
    socket: AsyncFd<OwnedFd>,
}

impl Link {
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        process::set_nonblocking(&socket)?;
        Ok(Self {
            socket: packet::watched(socket, Interest::READABLE)?,
        })
    }

    /// Sends at once: the other side always reads, so a full socket means that it does not, and is an error.
    pub fn say<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        packet::send(self.socket.get_ref().as_fd(), message, fds)
    }

    /// The next message and its descriptors; `None` when the other side is gone. Cancel-safe: a packet is taken whole or not at all.
    pub async fn hear<T: for<'de> Deserialize<'de>>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let heard = self
            .socket
            .async_io(Interest::READABLE, |socket| packet::receive(socket.as_fd()))
            .await;
        match heard {
            // A peer that died with packets of ours unread resets the connection.
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(None),
            other => other,
        }
    }
}

type Answer<T> = oneshot::Sender<Result<T, ChannelError>>;

/// What was asked of PID 1 and not answered yet.
#[derive(Debug, Default)]
struct Pending {
    slots: HashMap<u32, Answer<(i32, Option<OwnedFd>)>>,
    listeners: HashMap<(u16, bool), Answer<OwnedFd>>,
    closed: bool,
}

/// How the guest's words and descriptors come here.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Carry {
    Descriptors,
    /// Through a relay: what is a descriptor here is none there, and no pidfd comes.
    Relayed,
}

/// PID 1 of a sandbox, or the relay that speaks for it and ends with it, by its pidfd: it becomes readable when that is over.
pub type Pid1 = Arc<AsyncFd<OwnedFd>>;

/// Ends a sandbox with all that is in it, for it is not to be believed any more.
pub fn condemn(pid1: &Pid1) {
    let _ = process::pidfd_kill(pid1.get_ref().as_fd());
}

/// PID 1 of a sandbox. When this is dropped the control socket closes, and the sandbox ends.
#[derive(Debug)]
pub struct Guest {
    link: Arc<Link>,
    pid1: Pid1,
    carry: Carry,
    pending: Arc<Mutex<Pending>>,
    next_slot: std::sync::atomic::AtomicU32,
    reader: JoinHandle<()>,
    /// Slots that have ended by themselves.
    gone: watch::Receiver<u32>,
}

fn lock(pending: &Mutex<Pending>) -> MutexGuard<'_, Pending> {
    // Nothing between lock and unlock can leave the maps half-changed.
    pending.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The first word of a guest, still to come.
#[must_use]
pub struct FirstWord(oneshot::Receiver<Result<(), ChannelError>>);

impl FirstWord {
    pub async fn heard(self) -> Result<(), ChannelError> {
        self.0.await.map_err(|_| ChannelError::Gone)?
    }
}

impl Guest {
    /// A guest that may still be on its way. What is asked of it meanwhile it finds waiting. When it cannot be believed it ends with `pid1`.
    pub fn expect(control: OwnedFd, pid1: Pid1) -> Result<(Guest, FirstWord), ChannelError> {
        let link = Arc::new(Link::new(control)?);
        let (first, heard) = oneshot::channel();
        let guest = Guest::of(link, Carry::Descriptors, Some(first), pid1);
        Ok((guest, FirstWord(heard)))
    }

    /// Waits for the first word of a guest in an empty box, makes it the near side of `stream`, and waits for the first word of the
    /// guest at the other end.
    pub async fn greet_by_relay(control: OwnedFd, stream: OwnedFd, pid1: Pid1) -> Result<Guest, ChannelError> {
        let link = Arc::new(Link::new(control)?);
        ready(&link).await?;
        link.say(&ToInit::Relay, &[stream.as_fd()])?;
        drop(stream);
        ready(&link).await?;
        Ok(Guest::of(link, Carry::Relayed, None, pid1))
    }

    fn of(link: Arc<Link>, carry: Carry, first: Option<Answer<()>>, pid1: Pid1) -> Guest {
        let pending = Arc::new(Mutex::new(Pending::default()));
        let (said_gone, gone) = watch::channel(0);
        let reader = {
            let (link, pending, pid1) = (link.clone(), pending.clone(), pid1.clone());
            tokio::spawn(async move {
                let speaks = match first {
                    Some(first) => {
                        let greeted = ready(&link).await;
                        let speaks = greeted.is_ok();
                        // Whoever waited for it may have given up, and the guest with it.
                        let _ = first.send(greeted);
                        speaks
                    }
                    None => true,
                };
                if speaks {
                    read(&link, carry, &pending, said_gone).await;
                }
                // Gone, or not to be believed any more.
                condemn(&pid1);
                let mut pending = lock(&pending);
                pending.closed = true;
                pending.slots.clear();
                pending.listeners.clear();
            })
        };
        Guest {
            link,
            pid1,
            carry,
            pending,
            next_slot: 0.into(),
            reader,
            gone,
        }
    }

    pub fn is_relayed(&self) -> bool {
        self.carry == Carry::Relayed
    }

    /// A new slot, which has joined its cgroups by these files. None of them crosses a relay.
    pub async fn add_slot(&self, joins: &[BorrowedFd<'_>]) -> Result<SlotLink, ChannelError> {
        let slot = self.next_slot.fetch_add(1, std::sync::atomic::Ordering::Relaxed);
        let (ours, theirs) = packet::pair()?;
        let (answer, answered) = oneshot::channel();
        {
            let mut pending = lock(&self.pending);
            if pending.closed {
                return Err(ChannelError::Gone);
            }
            pending.slots.insert(slot, answer);
        }
        let descriptors: Vec<_> = [theirs.as_fd()].into_iter().chain(joins.iter().copied()).collect();
        self.link.say(&ToInit::AddSlot { slot }, &descriptors)?;
        drop(theirs);
        let (pid, pidfd) = wait(answered).await?;
        let held = match pidfd {
            Some(pidfd) => Held::Pidfd(pidfd),
            None => Held::Relayed {
                control: self.link.clone(),
                slot,
                pid,
            },
        };
        let link = Link::new(ours)?;
        let heard = timeout(PATIENCE, link.hear::<FromSlot>()).await;
        match heard.map_err(|_| ChannelError::Silent)? {
            Ok(Some((FromSlot::Ready, _))) => Ok(SlotLink { link, held }),
            // Whoever is inside may kill it at any time.
            Ok(None) => Err(ChannelError::Gone),
            Ok(Some(_)) => {
                condemn(&self.pid1);
                Err(ChannelError::OutOfTurn)
            }
            Err(error) => {
                condemn(&self.pid1);
                Err(error.into())
            }
        }
    }

    /// A socket on the sandbox's loopback.
    pub async fn listen(&self, port: u16, kind: ListenKind) -> Result<OwnedFd, ChannelError> {
        let (answer, answered) = oneshot::channel();
        {
            let mut pending = lock(&self.pending);
            if pending.closed {
                return Err(ChannelError::Gone);
            }
            pending.listeners.insert((port, kind == ListenKind::Tcp), answer);
        }
        self.link.say(&ToInit::Listen { port, kind }, &[])?;
        wait(answered).await
    }

    /// Tells the sandbox what may be used and has been used.
    pub fn tell_limits(&self, text: String) -> Result<(), ChannelError> {
        Ok(self.link.say(&ToInit::Limits { text }, &[])?)
    }

    /// How many slots have ended without being told to.
    pub fn slots_gone(&self) -> u32 {
        *self.gone.borrow()
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        // The reader holds the other handle on the control socket.
        self.reader.abort();
    }
}

async fn ready(link: &Link) -> Result<(), ChannelError> {
    match timeout(PATIENCE, link.hear::<FromInit>())
        .await
        .map_err(|_| ChannelError::Silent)??
    {
        Some((FromInit::Ready { version: VERSION }, _)) => Ok(()),
        Some((FromInit::Ready { version }, _)) => Err(ChannelError::Version { theirs: version }),
        Some(_) => Err(ChannelError::OutOfTurn),
        None => Err(ChannelError::Gone),
    }
}

async fn wait<T>(answered: oneshot::Receiver<Result<T, ChannelError>>) -> Result<T, ChannelError> {
    timeout(PATIENCE, answered)
        .await
        .map_err(|_| ChannelError::Silent)?
        .map_err(|_| ChannelError::Gone)?
}

/// Hands the guest's answers to those who wait; ends with the guest, or at the first word out of turn.
async fn read(link: &Link, carry: Carry, pending: &Mutex<Pending>, gone: watch::Sender<u32>) {
    while let Ok(Some((message, fds))) = link.hear::<FromInit>().await {
        let fd = fds.into_iter().next();
        let mut pending = lock(pending);
        match (message, fd) {
            (FromInit::SlotAdded { slot, pid }, pidfd) if pidfd.is_some() == (carry == Carry::Descriptors) => {
                let Some(answer) = pending.slots.remove(&slot) else {
                    break;
                };
                // Whoever asked may have given up; the slot ends when its socket is dropped.
                let _ = answer.send(Ok((pid, pidfd)));
            }
            (FromInit::Listening { port, kind }, Some(socket)) => {
                let Some(answer) = pending.listeners.remove(&(port, kind == ListenKind::Tcp)) else {
                    break;
                };
                let _ = answer.send(Ok(socket));
            }
            (FromInit::Failed { what, errno }, None) => {
                let source = io::Error::from_raw_os_error(errno);
                let known = match what {
                    Failed::Slot(slot) => {
                        let answer = pending.slots.remove(&slot);
                        answer.map(|answer| {
                            drop(answer.send(Err(ChannelError::Failed {
                                what: "make a slot",
                                source,
                            })))
                        })
                    }
                    Failed::Listen(port, kind) => {
                        let answer = pending.listeners.remove(&(port, kind == ListenKind::Tcp));
                        answer.map(|answer| {
                            drop(answer.send(Err(ChannelError::Failed {
                                what: "open a listener",
                                source,
                            })))
                        })
                    }
                };
                if known.is_none() {
                    break;
                }
            }
            (FromInit::SlotGone { .. }, None) => gone.send_modify(|count| *count = count.saturating_add(1)),
            _ => break,
        }
    }
}

/// One slot's socket and process.
#[derive(Debug)]
pub struct SlotLink {
    pub link: Link,
    held: Held,
}

/// How a slot's process is held.
#[derive(Debug)]
enum Held {
    Pidfd(OwnedFd),
    /// By asking its parent, which cannot mistake it for another.
    Relayed {
        control: Arc<Link>,
        slot: u32,
        /// As the sandbox's own pid namespace numbers it, by what the guest says.
        pid: i32,
    },
}

/// A slot's process, as far as it can be named from here.
#[derive(Debug, Clone, Copy)]
pub enum SlotProcess<'a> {
    Pidfd(BorrowedFd<'a>),
    /// Only in the sandbox's own pid namespace, and only by what the guest says.
    Inside(i32),
}

impl SlotLink {
    pub fn say(&self, message: &ToSlot, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.link.say(message, fds)
    }

    /// Cancel-safe.
    pub async fn hear(&self) -> io::Result<Option<(FromSlot, Vec<OwnedFd>)>> {
        self.link.hear().await
    }

    pub fn process(&self) -> SlotProcess<'_> {
        match &self.held {
            Held::Pidfd(pidfd) => SlotProcess::Pidfd(pidfd.as_fd()),
            Held::Relayed { pid, .. } => SlotProcess::Inside(*pid),
        }
    }

    /// Kills the slot, and with it what it runs.
    pub fn kill(&self) {
        // One that is gone cannot be killed; a relay that does not listen is found out by whoever waits for the end.
        let _ = match &self.held {
            Held::Pidfd(pidfd) => process::pidfd_kill(pidfd.as_fd()),
            Held::Relayed { control, slot, .. } => control.say(&ToInit::KillSlot { slot: *slot }, &[]),
        };
    }

    /// Sizes the command's terminal, of which `terminal` is what the slot passed out.
    pub fn resize(&self, terminal: BorrowedFd<'_>, rows: u16, cols: u16) {
        // A terminal that is gone has no size.
        let _ = match &self.held {
            Held::Pidfd(_) => process::set_terminal_size(terminal, rows, cols),
            Held::Relayed { .. } => self.link.say(&ToSlot::Resize { rows, cols }, &[]),
        };
    }
}

#[cfg(test)]
pub mod played;
#[cfg(test)]
mod tests;
