//! The bytes of one exec: read, counted, digested and handed on as far as its budget goes, and fed to its input.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use rustix::io::Errno;
use tokio::io::Interest;
use tokio::sync::{Notify, mpsc, watch};

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
    tally: &mut Tally,
    budget: &Budget,
    log: &Log,
    mut over: watch::Receiver<Option<Duration>>,
) {
    let Ok(fd) = packet::watched(fd, Interest::READABLE) else {
        return;
    };
    let mut buffer: Vec<u8> = Vec::new();
    let mut patience: Option<Duration> = None;
    // No more than this can have been written before the end; what comes after it is by others.
    let mut left = PIPE_BYTES;
    while left > 0 {
        // A stream that never falls silent is always ready before the news that the command is over.
        patience = patience.or(*over.borrow());
        let ready = match patience {
            // What the reactor says may lag behind what is there.
            Some(Duration::ZERO) => None,
            _ => tokio::select! {
                biased;
                ready = fd.readable() => match ready {
                    Ok(ready) => Some(ready),
                    Err(_) => break,
                },
                said = over.wait_for(Option::is_some), if patience.is_none() => {
                    patience = Some(said.ok().and_then(|said| *said).unwrap_or_default());
                    None
                }
                () = tokio::time::sleep(patience.unwrap_or_default()), if patience.is_some() => break,
            },
        };
        // Room for one piece only while there is something to read: most commands write little, and thousands run.
        buffer.reserve(PIECE_BYTES);
        // Not `async_io`: that would wait for more, deaf to the end of the command.
        match rustix::io::read(fd.get_ref(), rustix::buffer::spare_capacity(&mut buffer)) {
            Err(Errno::AGAIN) => {
                if patience == Some(Duration::ZERO) {
                    break;
                }
                if let Some(mut ready) = ready {
                    ready.clear_ready();
                }
                continue;
            }
            Err(Errno::INTR) => continue,
            // A pseudo-terminal whose other side is closed says EIO.
            Ok(0) | Err(_) => break,
            Ok(read) if patience.is_some() => left = left.saturating_sub(read),
            Ok(_) => {}
        }
        let data = if buffer.len() > PIECE_BYTES / 4 {
            Bytes::from(std::mem::take(&mut buffer))
        } else {
            let data = Bytes::copy_from_slice(&buffer);
            buffer.clear();
            data
        };
        tally.add(&data);
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

/// What went through a stream so far. Its digest is BLAKE3 (`b3sum` prints the same): it keeps up with a pipe, where SHA-256 takes
/// longer than all the rest of a stream's way together.
#[derive(Default)]
pub struct Tally {
    bytes: u64,
    hash: blake3::Hasher,
}

impl Tally {
    fn add(&mut self, data: &[u8]) {
        self.bytes += data.len() as u64;
        self.hash.update(data);
    }

    pub fn sum(&self) -> Streamed {
        Streamed {
            bytes: self.bytes,
            digest: Some(format!("blake3:{}", self.hash.finalize().to_hex())),
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
        let mut tally = Tally::default();
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
