//! The two threads of a journal: one writes groups of records, one brings them to the disk.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::store::{self, Draft, Sign, Store, Written};
use super::{JournalError, Seq, Sync};
use crate::audit::record::Entry;

/// How many records may wait. Each caller waits for its own record before it acts, so this many waiting means that as many acts
/// hang on a journal that is too slow; at some 1 KiB a record they hold 64 MiB.
const QUEUE_LIMIT: usize = 65_536;

/// The largest group: bounds the time for which other processes wait, and what one failure takes with it.
const GROUP_LIMIT: usize = 4096;

/// From the start of one sync to the next. With the time that a sync takes it stays under the promised 50 ms.
const SYNC_PAUSE: Duration = Duration::from_millis(35);

/// When the writer itself moves the log into the database: it never came to rest for the sync thread to do it.
const CHECKPOINT_NOW_BYTES: u64 = 64 << 20;

pub(super) type Reply = oneshot::Sender<Result<Seq, JournalError>>;

pub(super) struct Writer {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

struct Queue {
    state: Mutex<State>,
    /// Something to write, or the end.
    work: Condvar,
    disk: Disk,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<(Draft, Reply)>,
    /// Those who asked for a checkpoint.
    checkpoints: Vec<Reply>,
    /// The first failure; it stays.
    failed: Option<JournalError>,
    writer_sleeps: bool,
    closing: bool,
}

/// What the writer tells the sync thread.
#[derive(Default)]
struct Disk {
    state: Mutex<DiskState>,
    dirty: Condvar,
    log_is_large: AtomicBool,
}

#[derive(Default)]
struct DiskState {
    dirty: bool,
    closing: bool,
}

impl Writer {
    pub fn start(store: Store, sync: Sync) -> Result<Self, JournalError> {
        let queue = Arc::new(Queue {
            state: Mutex::default(),
            work: Condvar::new(),
            disk: Disk::default(),
        });
        let path = store.path().to_owned();
        let mut writer = Self {
            queue: queue.clone(),
            threads: Vec::with_capacity(2),
        };
        writer.spawn("journal", move |queue| write_loop(queue, store))?;
        writer.spawn("journal-sync", move |queue| sync_loop(queue, &path, sync))?;
        Ok(writer)
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce(&Queue) + Send + 'static) -> Result<(), JournalError> {
        let queue = self.queue.clone();
        let thread = std::thread::Builder::new()
            .name(name.to_owned())
            .spawn(move || run(&queue))
            .map_err(|source| JournalError::Thread {
                source: Arc::new(source),
            })?;
        self.threads.push(thread);
        Ok(())
    }

    /// Queues a record. Fails at once when the journal has failed before, or when too many wait.
    pub fn push(&self, entry: &Entry, reply: Reply) -> Result<(), JournalError> {
        let draft = Draft::new(entry, jiff::Timestamp::now())?;
        let mut state = self.queue.lock();
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        if state.waiting.len() >= QUEUE_LIMIT {
            return Err(JournalError::QueueFull {
                waiting: state.waiting.len(),
            });
        }
        state.waiting.push_back((draft, reply));
        self.queue.wake(state);
        Ok(())
    }

    /// Asks for a checkpoint after all that is queued.
    pub fn push_checkpoint(&self, reply: Reply) -> Result<(), JournalError> {
        let mut state = self.queue.lock();
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        state.checkpoints.push(reply);
        self.queue.wake(state);
        Ok(())
    }
}

impl Drop for Writer {
    fn drop(&mut self) {
        self.queue.lock().closing = true;
        self.queue.work.notify_one();
        for thread in self.threads.drain(..) {
            // A panic there has been printed, and every receipt that it left says `Closed`.
            let _ = thread.join();
        }
    }
}

impl Queue {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wake(&self, mut state: MutexGuard<'_, State>) {
        let sleeps = std::mem::take(&mut state.writer_sleeps);
        drop(state);
        if sleeps {
            self.work.notify_one();
        }
    }

    /// The next group, or `None` when the journal is closed and nothing waits.
    fn next_group(&self, group: &mut Vec<Draft>, replies: &mut Vec<Reply>) -> Option<Vec<Reply>> {
        let mut state = self.lock();
        while state.waiting.is_empty() && state.checkpoints.is_empty() {
            if state.closing {
                return None;
            }
            state.writer_sleeps = true;
            state = self.work.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        state.writer_sleeps = false;
        let count = state.waiting.len().min(GROUP_LIMIT);
        for (draft, reply) in state.waiting.drain(..count) {
            group.push(draft);
            replies.push(reply);
        }
        // A checkpoint is for all that was queued before it was asked for.
        if state.waiting.is_empty() {
            return Some(std::mem::take(&mut state.checkpoints));
        }
        Some(Vec::new())
    }

    /// From here on nothing is taken, and what waits is told so.
    fn fail(&self, error: &JournalError) {
        let (waiting, checkpoints) = {
            let mut state = self.lock();
            state.failed.get_or_insert_with(|| error.clone());
            (
                std::mem::take(&mut state.waiting),
                std::mem::take(&mut state.checkpoints),
            )
        };
        let waiting = waiting.into_iter().map(|(_, reply)| reply);
        for reply in waiting.chain(checkpoints) {
            let _ = reply.send(Err(error.clone()));
        }
    }
}

fn write_loop(queue: &Queue, mut store: Store) {
    let mut group = Vec::new();
    let mut replies = Vec::new();
    while let Some(checkpoints) = queue.next_group(&mut group, &mut replies) {
        let sign = if checkpoints.is_empty() {
            Sign::WhenDue
        } else {
            Sign::Now
        };
        match write(queue, &mut store, &group, sign) {
            Ok(written) => {
                for (seq, reply) in (written.first..).zip(replies.drain(..)) {
                    // Whoever asked may have gone; the record stays.
                    let _ = reply.send(Ok(seq));
                }
                for reply in checkpoints {
                    let _ = reply.send(match written.checkpoint {
                        Some(seq) => Ok(seq),
                        // Nothing was written since the last one, or nothing can be signed.
                        None if store.signs() => Ok(written.first - 1),
                        None => Err(JournalError::NoKey),
                    });
                }
                if queue.disk.log_is_large.swap(false, Ordering::Relaxed)
                    && let Err(error) = store.checkpoint()
                {
                    queue.fail(&error);
                }
            }
            Err(error) => {
                for reply in replies.drain(..).chain(checkpoints) {
                    let _ = reply.send(Err(error.clone()));
                }
                queue.fail(&error);
            }
        }
        group.clear();
    }
    // The last records get their signature too; when that fails, the chain still holds them.
    if store.signs() {
        let _ = write(queue, &mut store, &[], Sign::Now);
    }
    queue.disk.close();
}

fn write(queue: &Queue, store: &mut Store, group: &[Draft], sign: Sign) -> Result<Written, JournalError> {
    // The sync thread may have failed meanwhile.
    let failed = queue.lock().failed.clone();
    if let Some(error) = failed {
        return Err(error);
    }
    let written = store.write(group, sign)?;
    queue.disk.mark_dirty();
    Ok(written)
}

impl Disk {
    fn lock(&self) -> MutexGuard<'_, DiskState> {
        self.state.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn mark_dirty(&self) {
        let mut state = self.lock();
        if !state.dirty {
            state.dirty = true;
            drop(state);
            self.dirty.notify_one();
        }
    }

    fn close(&self) {
        self.lock().closing = true;
        self.dirty.notify_one();
    }

    /// Waits for something to sync; returns whether the journal is being closed.
    fn wait(&self) -> (bool, bool) {
        let mut state = self.lock();
        while !state.dirty && !state.closing {
            state = self.dirty.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        (std::mem::take(&mut state.dirty), state.closing)
    }

    /// Lets records gather until the next sync, or until the journal is closed.
    fn rest(&self) {
        let state = self.lock();
        let _ = self
            .dirty
            .wait_timeout_while(state, SYNC_PAUSE, |state| !state.closing)
            .unwrap_or_else(|poisoned| poisoned.into_inner());
    }
}

/// With [`Sync::Each`] the commits have synced the log, and only checkpoints are left to do.
fn sync_loop(queue: &Queue, path: &Path, sync: Sync) {
    let mut log = Log::new(path);
    loop {
        let (dirty, closing) = queue.disk.wait();
        if dirty && let Err(error) = log.bring_to_disk(sync, &queue.disk, closing) {
            queue.fail(&error);
        }
        if closing {
            return;
        }
        queue.disk.rest();
    }
}

/// The write-ahead log's file. SQLite locks the database and its shared memory, never the log, so that closing this descriptor
/// takes no lock away.
struct Log {
    path: PathBuf,
    log: PathBuf,
    file: Option<File>,
    db: Option<rusqlite::Connection>,
}

impl Log {
    fn new(path: &Path) -> Self {
        let mut log = path.as_os_str().to_owned();
        log.push("-wal");
        Self {
            path: path.to_owned(),
            log: log.into(),
            file: None,
            db: None,
        }
    }

    fn bring_to_disk(&mut self, sync: Sync, disk: &Disk, closing: bool) -> Result<(), JournalError> {
        let bytes = self.sync_log(sync).map_err(|source| JournalError::Sync {
            path: self.path.clone(),
            source: Arc::new(source),
        })?;
        if bytes > CHECKPOINT_NOW_BYTES {
            disk.log_is_large.store(true, Ordering::Relaxed);
        } else if bytes > store::CHECKPOINT_BYTES && !closing {
            if self.db.is_none() {
                self.db = Some(store::connect_write(&self.path, sync)?);
            }
            if let Some(db) = &self.db {
                store::checkpoint(db).map_err(|source| JournalError::Write {
                    path: self.path.clone(),
                    source: Arc::new(source),
                })?;
            }
        }
        Ok(())
    }

    fn sync_log(&mut self, sync: Sync) -> std::io::Result<u64> {
        let file = match &self.file {
            Some(file) => file,
            None => self.file.insert(File::open(&self.log)?),
        };
        if sync == Sync::Batch {
            file.sync_data()?;
        }
        Ok(file.metadata()?.len())
    }
}
