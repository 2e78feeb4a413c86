//! A stream at full speed: read and digested in a thread of its own, in large pieces.
//!
//! While the reactor watches a pipe, each write of the command wakes one of our threads, and for commands that write 8 KiB at a time
//! that costs both sides more than moving the bytes. So a stream that has shown to be fast is taken from the reactor for as long as it
//! is: a thread looks at it every now and then, and finds much. The thread is nice: what it is late with only holds up the command that
//! is so loud, and the start of another command must not wait for it. On a machine with few cores that is not enough, for the loud
//! command itself is busy as well: so for a moment after a command was asked for the thread does not read, and the loud one waits at
//! its full pipe.

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, LazyLock, Mutex, PoisonError};
use std::time::{Duration, Instant};

use bytes::Bytes;
use rustix::io::Errno;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::pump::Tally;

/// One piece at most: what stays in a core's cache until it is digested, and so little that nobody waits long for its end.
const PIECE_BYTES: usize = 256 << 10;

/// From one look to the next. At 4 GB/s a pipe of 1 MiB is full after 250 µs.
const PAUSE: Duration = Duration::from_micros(60);

/// So many looks in a row that found nothing, and the reactor watches the stream again.
const IDLE_LOOKS: u32 = 30;

/// A stream is fast when so much came in so little time.
const FAST_BYTES: usize = 1 << 20;
const FAST_TIME: Duration = Duration::from_millis(5);

/// How nice such a thread is: next to one that is not, it gets a ninth of a core.
const NICE: i32 = 10;

/// For how long after another command was asked for a thread does not read: most are at work, or over, by then.
const WAY: Duration = Duration::from_micros(1500);

/// For how long it reads at least before it gives way again, however many commands start.
const TURN: Duration = Duration::from_micros(1500);

/// When the last command was asked for, in nanoseconds since [`BEGIN`].
static LAST_ASKED: AtomicU64 = AtomicU64::new(0);
static BEGIN: LazyLock<Instant> = LazyLock::new(Instant::now);

/// Threads for this at once; other streams stay with the reactor.
static THREADS: Semaphore = Semaphore::const_new(8);

/// Notes that a command was asked for: fast streams give way to it.
pub fn asked() {
    let now = u64::try_from(BEGIN.elapsed().as_nanos()).unwrap_or(u64::MAX);
    LAST_ASKED.store(now, Ordering::Relaxed);
}

/// For how long a thread gives way now that has been reading for some time.
fn gives_way(read_for: Duration, since_asked: Duration) -> Option<Duration> {
    let left = WAY.checked_sub(since_asked)?;
    (read_for >= TURN && !left.is_zero()).then_some(left)
}

/// How fast a stream is.
pub struct Pace {
    since: Instant,
    bytes: usize,
}

impl Pace {
    pub fn new() -> Pace {
        Pace {
            since: Instant::now(),
            bytes: 0,
        }
    }

    /// Notes what came; whether it is fast now.
    pub fn is_fast(&mut self, bytes: usize) -> bool {
        self.bytes += bytes;
        if self.bytes < FAST_BYTES {
            return false;
        }
        let took = self.since.elapsed();
        *self = Pace::new();
        took < FAST_TIME
    }
}

/// A stream that is read in a thread. Dropping this ends the reading.
pub struct Bulk {
    pieces: mpsc::Receiver<Bytes>,
    stop: Arc<AtomicBool>,
    end: oneshot::Receiver<Option<OwnedFd>>,
}

impl Bulk {
    /// Takes a stream that does not block, and what is to count it; gives the stream back where no thread can be had.
    pub fn start(fd: OwnedFd, tally: Tally) -> Result<Bulk, OwnedFd> {
        Bulk::start_within(&THREADS, fd, tally)
    }

    fn start_within(threads: &'static Semaphore, fd: OwnedFd, tally: Tally) -> Result<Bulk, OwnedFd> {
        let Ok(permit) = threads.try_acquire() else {
            return Err(fd);
        };
        let (send, pieces) = mpsc::channel(2);
        let (give_back, end) = oneshot::channel();
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        // It gets the stream when it is there: a thread that cannot be had would take the stream with it.
        let (hand, handed) = std::sync::mpsc::sync_channel(1);
        let thread = std::thread::Builder::new().name("belljar-output".to_owned());
        // Ends with the stream, with this, or when it is told to.
        let begun = thread.spawn(move || {
            // Where it may not be nice, it is only as loud as its command.
            let _ = rustix::process::setpriority_process(None, NICE);
            let back = handed.recv().ok().and_then(|fd| read(fd, &tally, &send, &told));
            drop(permit);
            // Whoever asked for it may have gone.
            let _ = give_back.send(back);
        });
        if begun.is_err() {
            return Err(fd);
        }
        hand.send(fd).map_err(|unsent| unsent.0)?;
        Ok(Bulk { pieces, stop, end })
    }

    /// Asks for the stream back; what was read comes first.
    pub fn stop(&self) {
        self.stop.store(true, Ordering::Relaxed);
    }

    /// The next piece; `None` when it is over, and [`Bulk::end`] tells how. Cancel-safe.
    pub async fn next(&mut self) -> Option<Bytes> {
        self.pieces.recv().await
    }

    /// The stream, where it only fell silent.
    pub async fn end(self) -> Option<OwnedFd> {
        self.end.await.ok().flatten()
    }
}

fn read(fd: OwnedFd, tally: &Tally, pieces: &mpsc::Sender<Bytes>, stop: &AtomicBool) -> Option<OwnedFd> {
    let pool = Arc::new(Pool::default());
    let mut idle = 0;
    let mut turn = Instant::now();
    while idle < IDLE_LOOKS && !stop.load(Ordering::Relaxed) {
        let last_asked = Duration::from_nanos(LAST_ASKED.load(Ordering::Relaxed));
        if let Some(left) = gives_way(turn.elapsed(), BEGIN.elapsed().saturating_sub(last_asked)) {
            std::thread::sleep(left);
            turn = Instant::now();
        }
        let mut buffer = pool.take();
        match rustix::io::read(&fd, rustix::buffer::spare_capacity(&mut buffer)) {
            Ok(0) => return None,
            Ok(read) => {
                idle = 0;
                tally.add(&buffer);
                pieces.blocking_send(pool.lend(buffer)).ok()?;
                if read < PIECE_BYTES / 2 {
                    std::thread::sleep(PAUSE);
                }
            }
            Err(Errno::AGAIN) => {
                idle += 1;
                pool.give(buffer);
                std::thread::sleep(PAUSE);
            }
            Err(Errno::INTR) => pool.give(buffer),
            // A pseudo-terminal whose other side is closed says EIO.
            Err(_) => return None,
        }
    }
    Some(fd)
}

/// Buffers that are used again: fresh memory would cost as much as the reading.
#[derive(Default)]
struct Pool(Mutex<Vec<Vec<u8>>>);

impl Pool {
    fn take(&self) -> Vec<u8> {
        let free = self.0.lock().unwrap_or_else(PoisonError::into_inner).pop();
        free.unwrap_or_else(|| Vec::with_capacity(PIECE_BYTES))
    }

    fn give(&self, mut buffer: Vec<u8>) {
        buffer.clear();
        self.0.lock().unwrap_or_else(PoisonError::into_inner).push(buffer);
    }

    fn lend(self: &Arc<Self>, buffer: Vec<u8>) -> Bytes {
        if buffer.len() < PIECE_BYTES / 4 {
            // Whoever holds a piece holds its whole buffer.
            let bytes = Bytes::copy_from_slice(&buffer);
            self.give(buffer);
            return bytes;
        }
        Bytes::from_owner(Lent {
            buffer,
            pool: self.clone(),
        })
    }
}

struct Lent {
    buffer: Vec<u8>,
    pool: Arc<Pool>,
}

impl AsRef<[u8]> for Lent {
    fn as_ref(&self) -> &[u8] {
        &self.buffer
    }
}

impl Drop for Lent {
    fn drop(&mut self) {
        self.pool.give(std::mem::take(&mut self.buffer));
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;
    use crate::sys::packet;

    #[tokio::test]
    async fn nothing_is_lost_and_a_silent_stream_is_given_back() {
        let (read, write) = packet::output_pipe(1 << 20).unwrap();
        let bytes: Vec<u8> = (0..3_000_000_u32).flat_map(u32::to_le_bytes).collect();
        let expected = bytes.clone();
        let writer = std::thread::spawn(move || {
            let mut pipe = std::fs::File::from(write);
            pipe.write_all(&bytes).unwrap();
            pipe
        });
        let tally = Tally::default();
        let mut bulk = Bulk::start(read, tally.clone()).unwrap();
        let mut got = Vec::new();
        while let Some(piece) = bulk.next().await {
            got.extend_from_slice(&piece);
        }
        assert!(got == expected);
        let sum = tally.sum();
        assert_eq!(sum.bytes, expected.len() as u64);
        assert_eq!(sum.digest, Some(format!("blake3:{}", blake3::hash(&expected).to_hex())));
        let read = bulk.end().await.expect("the other end is still open");
        drop(writer.join().unwrap());
        let mut bulk = Bulk::start(read, tally.clone()).unwrap();
        assert_eq!(bulk.next().await, None);
        assert!(bulk.end().await.is_none());
    }

    #[tokio::test]
    async fn a_stream_is_given_back_when_it_is_asked_for() {
        let (read, write) = packet::output_pipe(1 << 20).unwrap();
        let mut bulk = Bulk::start(read, Tally::default()).unwrap();
        bulk.stop();
        assert_eq!(bulk.next().await, None);
        let read = bulk.end().await.unwrap();
        std::fs::File::from(write).write_all(b"later").unwrap();
        let mut bulk = Bulk::start(read, Tally::default()).unwrap();
        assert_eq!(bulk.next().await.unwrap(), "later");
    }

    #[tokio::test]
    async fn a_stream_too_many_stays_where_it_is() {
        static ONE: Semaphore = Semaphore::const_new(1);
        let (first, _first) = packet::output_pipe(1 << 20).unwrap();
        let (second, _second) = packet::output_pipe(1 << 20).unwrap();
        let bulk = Bulk::start_within(&ONE, first, Tally::default()).unwrap();
        let second = Bulk::start_within(&ONE, second, Tally::default())
            .err()
            .expect("the only thread is taken");
        bulk.stop();
        assert!(bulk.end().await.is_some());
        assert!(Bulk::start_within(&ONE, second, Tally::default()).is_ok());
    }

    #[test]
    fn a_fast_stream_gives_way_to_commands_in_turns() {
        let half = WAY / 2;
        assert_eq!(gives_way(TURN, half), Some(WAY - half));
        assert_eq!(gives_way(TURN / 2, half), None, "it has to get on, too");
        assert_eq!(gives_way(TURN, WAY), None);
        assert_eq!(gives_way(TURN, 2 * WAY), None);
    }

    #[test]
    fn a_stream_is_fast_when_much_comes_at_once() {
        let mut pace = Pace::new();
        assert!(!pace.is_fast(FAST_BYTES - 1));
        assert!(pace.is_fast(1));
        pace.since -= Duration::from_secs(1);
        assert!(!pace.is_fast(FAST_BYTES));
    }
}
