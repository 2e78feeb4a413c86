//! The bytes of one exec: read, counted, digested and handed on as far as its budget goes, and fed to its input.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{Notify, mpsc, watch};

use super::bulk::{Bulk, Pace};
use super::stream::Log;
use super::{ExecEvent, Stream};
use crate::sys::packet;

/// A pipe that holds this much is read in few, large pieces; see DESIGN: pipes of 1 MiB matter most for streaming.
pub const PIPE_BYTES: usize = 1 << 20;

/// One piece of output at most.
const PIECE_BYTES: usize = 256 << 10;

/// What one stream came to.
#[derive(Debug, Default)]
pub struct Streamed {
    pub bytes: u64,
    /// `blake3:…` over all of them; none for a stream that the exec did not have.
    pub digest: Option<String>,
}

/// How much output is left to an exec.
pub struct Budget {
    left: AtomicU64,
    /// Told when there is nothing left.
    pub spent: Notify,
}

impl Budget {
    pub fn of(bytes: u64) -> Budget {
        Budget {
            left: AtomicU64::new(bytes),
            spent: Notify::new(),
        }
    }

    /// How many of these bytes may still go out.
    fn take(&self, bytes: u64) -> u64 {
        let spend = |left: u64| Some(left.saturating_sub(bytes));
        let before = self
            .left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, spend)
            .unwrap_or(0);
        if before < bytes {
            self.spent.notify_one();
        }
        before.min(bytes)
    }
}

/// Reads a stream to its end: counts it, digests it, and hands on what the budget allows. `over` tells that the command has ended, and
/// for how long the stream may be silent then; the stream may outlive the command, in the hands of others.
pub async fn pump(
    fd: OwnedFd,
    stream: Stream,
    tally: &Tally,
    budget: &Budget,
    log: &Log,
    over: watch::Receiver<Option<Duration>>,
) {
    let Ok(fd) = packet::watched(fd, Interest::READABLE) else {
        return;
    };
    let mut source = Source {
        from: Reading::Watched(fd),
        tally: tally.clone(),
        over,
        patience: None,
        left: PIPE_BYTES,
        buffer: Vec::new(),
        pace: Pace::new(),
    };
    while let Some(data) = source.next().await {
        let allowed = budget.take(data.len() as u64) as usize;
        if allowed > 0 {
            log.append(ExecEvent::Output {
                stream,
                data: data.slice(..allowed),
            })
            .await;
        }
        // A command that never pauses must not keep its own end, nor a limit, from being seen.
        tokio::task::yield_now().await;
    }
}

/// A stream on its way to its end.
struct Source {
    from: Reading,
    tally: Tally,
    over: watch::Receiver<Option<Duration>>,
    /// For how long it may be silent; known once the command is over.
    patience: Option<Duration>,
    /// No more than this can have been in the pipe at the end; what comes after it is by others.
    left: usize,
    buffer: Vec<u8>,
    pace: Pace,
}

enum Reading {
    Watched(AsyncFd<OwnedFd>),
    Bulk(Bulk),
    Over,
}

impl Source {
    /// The next piece; `None` at the end.
    async fn next(&mut self) -> Option<Bytes> {
        loop {
            // A stream that never falls silent is always ready before the news that the command is over.
            self.patience = self.patience.or(*self.over.borrow());
            if self.left == 0 {
                return None;
            }
            let data = match &mut self.from {
                Reading::Watched(fd) => {
                    let data = read(fd, &mut self.buffer, &mut self.over, &mut self.patience).await?;
                    self.tally.add(&data);
                    if self.patience.is_some() {
                        self.left = self.left.saturating_sub(data.len());
                    }
                    data
                }
                Reading::Bulk(bulk) => match bulk_piece(bulk, &mut self.over, &mut self.patience).await {
                    Some(data) => data,
                    None => {
                        self.watch_again().await?;
                        continue;
                    }
                },
                Reading::Over => return None,
            };
            if self.patience.is_none() && self.pace.is_fast(data.len()) {
                self.hurry();
            }
            return Some(data);
        }
    }

    /// Leaves the reading to a thread, where one is free.
    fn hurry(&mut self) {
        self.from = match std::mem::replace(&mut self.from, Reading::Over) {
            Reading::Watched(fd) => match Bulk::start(fd.into_inner(), self.tally.clone()) {
                Ok(bulk) => Reading::Bulk(bulk),
                Err(fd) => packet::watched(fd, Interest::READABLE).map_or(Reading::Over, Reading::Watched),
            },
            other => other,
        };
    }

    async fn watch_again(&mut self) -> Option<()> {
        let Reading::Bulk(bulk) = std::mem::replace(&mut self.from, Reading::Over) else {
            return None;
        };
        let fd = bulk.end().await?;
        self.from = Reading::Watched(packet::watched(fd, Interest::READABLE).ok()?);
        Some(())
    }
}

/// A piece of a fast stream; when the command is over, the stream is asked back.
async fn bulk_piece(
    bulk: &mut Bulk,
    over: &mut watch::Receiver<Option<Duration>>,
    patience: &mut Option<Duration>,
) -> Option<Bytes> {
    if patience.is_none() {
        tokio::select! {
            biased;
            said = over.wait_for(Option::is_some) => {
                *patience = Some(said.ok().and_then(|said| *said).unwrap_or_default());
            }
            data = bulk.next() => return data,
        }
    }
    bulk.stop();
    bulk.next().await
}

/// The next piece of a stream that the reactor watches; `None` at the end.
async fn read(
    fd: &AsyncFd<OwnedFd>,
    buffer: &mut Vec<u8>,
    over: &mut watch::Receiver<Option<Duration>>,
    patience: &mut Option<Duration>,
) -> Option<Bytes> {
    loop {
        let ready = match *patience {
            // What the reactor says may lag behind what is there.
            Some(Duration::ZERO) => None,
            _ => tokio::select! {
                biased;
                ready = fd.readable() => Some(ready.ok()?),
                said = over.wait_for(Option::is_some), if patience.is_none() => {
                    *patience = Some(said.ok().and_then(|said| *said).unwrap_or_default());
                    None
                }
                () = tokio::time::sleep(patience.unwrap_or_default()), if patience.is_some() => return None,
            },
        };
        // Room for one piece only while there is something to read: most commands write little, and thousands run.
        buffer.reserve(PIECE_BYTES);
        // Not `async_io`: that would wait for more, deaf to the end of the command.
        match rustix::io::read(fd.get_ref(), rustix::buffer::spare_capacity(buffer)) {
            Err(Errno::AGAIN) if *patience == Some(Duration::ZERO) => return None,
            Err(Errno::AGAIN) => {
                if let Some(mut ready) = ready {
                    ready.clear_ready();
                }
            }
            Err(Errno::INTR) => {}
            // A pseudo-terminal whose other side is closed says EIO.
            Ok(0) | Err(_) => return None,
            Ok(_) if buffer.len() > PIECE_BYTES / 4 => return Some(Bytes::from(std::mem::take(buffer))),
            Ok(_) => {
                let data = Bytes::copy_from_slice(buffer);
                buffer.clear();
                return Some(data);
            }
        }
    }
}

/// What went through a stream so far, shared by those who read it. Its digest is BLAKE3 (`b3sum` prints the same): it keeps up with a
/// pipe, where SHA-256 takes longer than all the rest of a stream's way together.
#[derive(Clone, Default)]
pub struct Tally(Arc<Mutex<Sum>>);

#[derive(Default)]
struct Sum {
    bytes: u64,
    hash: blake3::Hasher,
}

impl Tally {
    fn lock(&self) -> MutexGuard<'_, Sum> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn add(&self, data: &[u8]) {
        let mut sum = self.lock();
        sum.bytes += data.len() as u64;
        sum.hash.update(data);
    }

    pub fn sum(&self) -> Streamed {
        let sum = self.lock();
        Streamed {
            bytes: sum.bytes,
            digest: Some(format!("blake3:{}", sum.hash.finalize().to_hex())),
        }
    }
}

/// Writes what the caller sends to the command; its end is the end of the command's input.
pub async fn feed_stdin(pipe: Option<OwnedFd>, terminal: Option<&OwnedFd>, mut stdin: mpsc::Receiver<Bytes>) {
    let is_terminal = terminal.is_some();
    let Some(fd) = pipe.or_else(|| terminal.and_then(|fd| fd.try_clone().ok())) else {
        return;
    };
    let Ok(fd) = packet::watched(fd, Interest::WRITABLE) else {
        return;
    };
    while let Some(mut data) = stdin.recv().await {
        while !data.is_empty() {
            let written = fd
                .async_io(Interest::WRITABLE, |fd| {
                    rustix::io::write(fd, &data).map_err(io::Error::from)
                })
                .await;
            match written {
                Ok(written) => drop(data.split_to(written)),
                // The command no longer reads; what comes is not for it.
                Err(_) => return,
            }
        }
    }
    if is_terminal {
        // As the key for the end of input does; the terminal itself stays open for output.
        let _ = fd
            .async_io(Interest::WRITABLE, |fd| {
                rustix::io::write(fd, b"\x04").map_err(io::Error::from)
            })
            .await;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_digest_is_over_all_pieces_and_is_what_b3sum_prints() {
        let tally = Tally::default();
        for piece in ["a", "", "bc"] {
            tally.add(piece.as_bytes());
        }
        let Streamed { bytes, digest } = tally.sum();
        let digest = digest.unwrap();
        assert_eq!(bytes, 3);
        // From the test vectors of BLAKE3's own programs.
        assert_eq!(
            digest,
            "blake3:6437b3ac38465133ffb63b75273a8db548c558465d79db03fd359c6cd5bd9d85"
        );
    }
}
