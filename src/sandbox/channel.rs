//! The host's side of the guest's sockets. What the guest says is hostile: a message out of turn poisons the sandbox.

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

/// What was asked of PID 1 and not answered yet.
#[derive(Debug, Default)]
struct Pending {
    slots: HashMap<u32, oneshot::Sender<Result<OwnedFd, ChannelError>>>,
    listeners: HashMap<(u16, bool), oneshot::Sender<Result<OwnedFd, ChannelError>>>,
    closed: bool,
}

/// PID 1 of a sandbox. When this is dropped the control socket closes, and the sandbox ends.
#[derive(Debug)]
pub struct Guest {
    link: Arc<Link>,
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

impl Guest {
    /// Waits for the guest's first word.
    pub async fn greet(control: OwnedFd) -> Result<Guest, ChannelError> {
        let link = Arc::new(Link::new(control)?);
        match timeout(PATIENCE, link.hear::<FromInit>())
            .await
            .map_err(|_| ChannelError::Silent)??
        {
            Some((FromInit::Ready { version: VERSION }, _)) => {}
            Some((FromInit::Ready { version }, _)) => return Err(ChannelError::Version { theirs: version }),
            Some(_) => return Err(ChannelError::OutOfTurn),
            None => return Err(ChannelError::Gone),
        }
        let pending = Arc::new(Mutex::new(Pending::default()));
        let (said_gone, gone) = watch::channel(0);
        let reader = tokio::spawn(read(link.clone(), pending.clone(), said_gone));
        Ok(Guest {
            link,
            pending,
            next_slot: 0.into(),
            reader,
            gone,
        })
    }

    /// A new slot, which has joined its cgroups by these files: the host's end of its socket and its pidfd.
    pub async fn add_slot(&self, joins: &[BorrowedFd<'_>]) -> Result<(Link, OwnedFd), ChannelError> {
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
        let pidfd = wait(answered).await?;
        let link = Link::new(ours)?;
        match timeout(PATIENCE, link.hear::<FromSlot>())
            .await
            .map_err(|_| ChannelError::Silent)??
        {
            Some((FromSlot::Ready, _)) => Ok((link, pidfd)),
            Some(_) => Err(ChannelError::OutOfTurn),
            None => Err(ChannelError::Gone),
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

async fn wait(answered: oneshot::Receiver<Result<OwnedFd, ChannelError>>) -> Result<OwnedFd, ChannelError> {
    timeout(PATIENCE, answered)
        .await
        .map_err(|_| ChannelError::Silent)?
        .map_err(|_| ChannelError::Gone)?
}

/// Hands the guest's answers to those who wait; ends with the guest, or at the first word out of turn.
async fn read(link: Arc<Link>, pending: Arc<Mutex<Pending>>, gone: watch::Sender<u32>) {
    while let Ok(Some((message, fds))) = link.hear::<FromInit>().await {
        let fd = fds.into_iter().next();
        let mut pending = lock(&pending);
        match (message, fd) {
            (FromInit::SlotAdded { slot }, Some(pidfd)) => {
                let Some(answer) = pending.slots.remove(&slot) else {
                    break;
                };
                // Whoever asked may have given up; the slot ends when its socket is dropped.
                let _ = answer.send(Ok(pidfd));
            }
            (FromInit::Listening { port, kind }, Some(socket)) => {
                let Some(answer) = pending.listeners.remove(&(port, kind == ListenKind::Tcp)) else {
                    break;
                };
                let _ = answer.send(Ok(socket));
            }
            (FromInit::Failed { what, errno }, None) => {
                let source = io::Error::from_raw_os_error(errno);
                let (answer, what) = match what {
                    Failed::Slot(slot) => (pending.slots.remove(&slot), "make a slot"),
                    Failed::Listen(port, kind) => (
                        pending.listeners.remove(&(port, kind == ListenKind::Tcp)),
                        "open a listener",
                    ),
                };
                let Some(answer) = answer else { break };
                let _ = answer.send(Err(ChannelError::Failed { what, source }));
            }
            (FromInit::SlotGone { .. }, None) => gone.send_modify(|count| *count = count.saturating_add(1)),
            _ => break,
        }
    }
    let mut pending = lock(&pending);
    pending.closed = true;
    pending.slots.clear();
    pending.listeners.clear();
}

/// One slot's socket and process.
#[derive(Debug)]
pub struct SlotLink {
    pub link: Link,
    pub pidfd: OwnedFd,
}

impl SlotLink {
    pub fn say(&self, message: &ToSlot, fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        self.link.say(message, fds)
    }

    /// Cancel-safe.
    pub async fn hear(&self) -> io::Result<Option<(FromSlot, Vec<OwnedFd>)>> {
        self.link.hear().await
    }
}
