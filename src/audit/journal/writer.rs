//! Who writes, and the two threads of a journal: one writes groups of records, one brings them to the disk, and now and then
//! begins a third that fills the index.
//!
//! A caller that is alone writes its records itself, in its own thread: waking another one and being woken by it would take
//! longer than the commit. It does so only when that cannot keep it long (few records, nobody else writing, no sync on commit,
//! no other process holding the lock); in all other cases the writer thread does it, for all who wait at once.

use std::collections::VecDeque;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard};
use std::thread::JoinHandle;
use std::time::Duration;

use tokio::sync::oneshot;

use super::index;
use super::store::{self, Draft, Patience, Sign, Store};
use super::{JournalError, Seq, Sync};
use crate::audit::record::Entry;

/// How many records may wait. Each caller waits for its own record before it acts, so this many waiting means that as many acts
/// hang on a journal that is too slow; at some 1 KiB a record they hold 64 MiB.
const QUEUE_LIMIT: usize = 65_536;

/// The largest group: bounds the time for which other processes wait, and what one failure takes with it.
const GROUP_LIMIT: usize = 4096;

/// The most records that a caller writes by itself: its own two or three, and a few that came in between.
const LEAD_LIMIT: usize = 8;

/// From a record's being written to the sync: whoever wrote it is at work now, and would share the disk and a core with the sync.
/// What it writes next comes to the disk with it.
const GATHER_PAUSE: Duration = Duration::from_millis(5);

/// From the end of one sync to the next gathering. With the time that a sync takes both stay under the promised 50 ms.
const SYNC_PAUSE: Duration = Duration::from_millis(30);

/// When the writer itself moves the log into the database: it never came to rest for the sync thread to do it.
const CHECKPOINT_NOW_BYTES: u64 = 64 << 20;

pub(super) type Reply = oneshot::Sender<Result<Seq, JournalError>>;

/// Who is to write a record that was queued.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WrittenBy {
    /// The writer thread, which is woken; or the caller, if it waits before that one is awake.
    Writer,
    /// The caller, which is about to [`Leader::lead`].
    Caller,
}

/// Lets a caller write in its own thread.
pub(super) struct Leader(Arc<Queue>);

impl Leader {
    /// Writes what waits in this thread when that is quick, else leaves it to the writer.
    pub fn lead(&self) {
        self.0.lead();
    }
}

pub(super) struct Writer {
    queue: Arc<Queue>,
    threads: Vec<JoinHandle<()>>,
}

struct Queue {
    /// Taken before records are taken from the queue, so that they are written in the queue's order.
    store: Mutex<Store>,
    sync: Sync,
    state: Mutex<State>,
    /// Something to write, or the end.
    work: Condvar,
    disk: Disk,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<Waiting>,
    /// Those who asked for a checkpoint.
    checkpoints: Vec<Reply>,
    /// The first failure; it stays.
    failed: Option<JournalError>,
    writer_sleeps: bool,
    closing: bool,
}

/// A record, and who waits for it: of records that were queued together, the last one's.
struct Waiting {
    draft: Draft,
    reply: Option<Reply>,
}

/// What the writer tells the sync thread.
#[derive(Default)]
struct Disk {
    state: Mutex<DiskState>,
    dirty: Condvar,
    log_is_large: AtomicBool,
    /// Earlier processes left a long log, which the next start would read again.
    log_is_left: AtomicBool,
    index_is_due: AtomicBool,
}

#[derive(Default)]
struct DiskState {
    dirty: bool,
    closing: bool,
}

impl Writer {
    pub fn start(store: Store, sync: Sync) -> Result<Self, JournalError> {
        let path = store.path().to_owned();
        let disk = Disk::default();
        disk.log_is_left.store(store.log_is_left(), Ordering::Relaxed);
        let queue = Arc::new(Queue {
            store: Mutex::new(store),
            sync,
            state: Mutex::default(),
            work: Condvar::new(),
            disk,
        });
        let mut writer = Self {
            queue: queue.clone(),
            threads: Vec::with_capacity(2),
        };
        writer.spawn("journal", write_loop)?;
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

    /// Queues records that follow each other, all or none; the last one is replied to, and with it all. Fails at once when the
    /// journal has failed before, or when too many wait.
    pub fn push(&self, entries: &[Entry], reply: Reply, by: WrittenBy) -> Result<(), JournalError> {
        let now = jiff::Timestamp::now();
        let drafts: Vec<Draft> = entries
            .iter()
            .map(|entry| Draft::new(entry, now))
            .collect::<Result<_, _>>()?;
        let mut state = self.queue.lock();
        if let Some(error) = &state.failed {
            return Err(error.clone());
        }
        if state.waiting.len() >= QUEUE_LIMIT {
            return Err(JournalError::QueueFull {
                waiting: state.waiting.len(),
            });
        }
        let waiting = drafts.into_iter().map(|draft| Waiting { draft, reply: None });
        state.waiting.extend(waiting);
        if let Some(last) = state.waiting.back_mut() {
            last.reply = Some(reply);
        }
        match by {
            WrittenBy::Writer => self.queue.wake(state),
            WrittenBy::Caller => {}
        }
        Ok(())
    }

    pub fn leader(&self) -> Leader {
        Leader(self.queue.clone())
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

    fn lock_store(&self) -> MutexGuard<'_, Store> {
        self.store.lock().unwrap_or_else(|poisoned| poisoned.into_inner())
    }

    fn wake(&self, mut state: MutexGuard<'_, State>) {
        let sleeps = std::mem::take(&mut state.writer_sleeps);
        drop(state);
        if sleeps {
            self.work.notify_one();
        }
    }

    /// Waits until there is something to write; false when the journal is closed and nothing waits.
    fn wait(&self) -> bool {
        let mut state = self.lock();
        while state.waiting.is_empty()
            && state.checkpoints.is_empty()
            && !self.disk.log_is_large.load(Ordering::Relaxed)
        {
            if state.closing {
                return false;
            }
            state.writer_sleeps = true;
            state = self.work.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        state.writer_sleeps = false;
        true
    }

    /// The next group, in the queue's order; the caller holds the store.
    fn take(&self, limit: usize) -> Group {
        let mut state = self.lock();
        let count = state.waiting.len().min(limit);
        let (drafts, replies) = state
            .waiting
            .drain(..count)
            .map(|waiting| (waiting.draft, waiting.reply))
            .unzip();
        // A checkpoint is for all that was queued before it was asked for.
        let checkpoints = match state.waiting.is_empty() {
            true => std::mem::take(&mut state.checkpoints),
            false => Vec::new(),
        };
        Group {
            drafts,
            replies,
            checkpoints,
        }
    }

    /// Puts a group that could not be written yet back in front of what came since, and wakes the writer for it.
    fn put_back(&self, group: Group) {
        let mut state = self.lock();
        for (draft, reply) in group.drafts.into_iter().zip(group.replies).rev() {
            state.waiting.push_front(Waiting { draft, reply });
        }
        state.checkpoints.extend(group.checkpoints);
        self.wake(state);
    }

    fn lead(&self) {
        // A commit with a sync takes milliseconds; callers may be async.
        let store = match self.sync {
            Sync::Batch => self.store.try_lock().ok(),
            Sync::Each => None,
        };
        let Some(mut store) = store else {
            // Whoever writes now may have looked at the queue before this record came.
            self.wake(self.lock());
            return;
        };
        if self.lock().waiting.len() > LEAD_LIMIT {
            self.wake(self.lock());
            return;
        }
        let group = self.take(LEAD_LIMIT);
        if !group.drafts.is_empty() || !group.checkpoints.is_empty() {
            self.write(&mut store, group, Patience::None);
        }
    }

    /// Writes one group, and tells everybody in it.
    fn write(&self, store: &mut Store, group: Group, patience: Patience) {
        let sign = match group.checkpoints.is_empty() {
            true => Sign::WhenDue,
            false => Sign::Now,
        };
        // The sync thread may have failed meanwhile.
        let failed = self.lock().failed.clone();
        let written = match failed {
            Some(error) => Err(error),
            None => store.write(&group.drafts, sign, patience),
        };
        match written {
            Ok(Some(written)) => {
                if index::is_due(written.first, written.last) {
                    self.disk.index_is_due.store(true, Ordering::Relaxed);
                }
                self.disk.mark_dirty();
                for (seq, reply) in (written.first..).zip(group.replies) {
                    if let Some(reply) = reply {
                        // Whoever asked may have gone; the record stays.
                        let _ = reply.send(Ok(seq));
                    }
                }
                for reply in group.checkpoints {
                    let _ = reply.send(match written.checkpoint {
                        Some(seq) => Ok(seq),
                        // Nothing was written since the last one, or nothing can be signed.
                        None if store.signs() => Ok(written.first - 1),
                        None => Err(JournalError::NoKey),
                    });
                }
            }
            Ok(None) => self.put_back(group),
            Err(error) => {
                for reply in group.replies.into_iter().flatten().chain(group.checkpoints) {
                    let _ = reply.send(Err(error.clone()));
                }
                self.fail(&error);
            }
        }
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
        let waiting = waiting.into_iter().filter_map(|waiting| waiting.reply);
        for reply in waiting.chain(checkpoints) {
            let _ = reply.send(Err(error.clone()));
        }
    }
}

/// Records that are written together, and those who wait for them.
struct Group {
    drafts: Vec<Draft>,
    replies: Vec<Option<Reply>>,
    checkpoints: Vec<Reply>,
}

fn write_loop(queue: &Queue) {
    while queue.wait() {
        let mut store = queue.lock_store();
        let group = queue.take(GROUP_LIMIT);
        // A caller may have written it meanwhile.
        if !group.drafts.is_empty() || !group.checkpoints.is_empty() {
            queue.write(&mut store, group, Patience::ForOthers);
        }
        if queue.disk.log_is_large.swap(false, Ordering::Relaxed)
            && let Err(error) = store.checkpoint()
        {
            queue.fail(&error);
        }
    }
    // The last records get their signature too; when that fails, the chain still holds them.
    let mut store = queue.lock_store();
    if store.signs() && queue.lock().failed.is_none() {
        let _ = store.write(&[], Sign::Now, Patience::ForOthers);
        queue.disk.mark_dirty();
    }
    queue.disk.close();
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

    /// Waits for something to sync, and for what comes right behind it; returns whether the journal is being closed.
    fn wait(&self) -> (bool, bool) {
        let mut state = self.lock();
        while !state.dirty && !state.closing {
            state = self.dirty.wait(state).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        let mut state = self.pause(state, GATHER_PAUSE);
        (std::mem::take(&mut state.dirty), state.closing)
    }

    /// Lets records gather until the next sync, or until the journal is closed.
    fn rest(&self) {
        drop(self.pause(self.lock(), SYNC_PAUSE));
    }

    fn pause<'a>(&'a self, state: MutexGuard<'a, DiskState>, pause: Duration) -> MutexGuard<'a, DiskState> {
        let waited = self.dirty.wait_timeout_while(state, pause, |state| !state.closing);
        waited.unwrap_or_else(|poisoned| poisoned.into_inner()).0
    }
}

/// With [`Sync::Each`] the commits have synced the log, and only checkpoints are left to do.
fn sync_loop(queue: &Queue, path: &Path, sync: Sync) {
    let mut log = Log::new(path);
    std::thread::scope(|scope| {
        let mut filling: Option<std::thread::ScopedJoinHandle<'_, ()>> = None;
        loop {
            let (dirty, closing) = queue.disk.wait();
            if dirty && let Err(error) = log.bring_to_disk(sync, &queue.disk, closing) {
                queue.fail(&error);
            }
            if queue.disk.log_is_large.load(Ordering::Relaxed) {
                queue.wake(queue.lock());
            }
            if closing {
                return;
            }
            // On a thread of its own: the next sync must not wait for it. The scope waits for its end.
            if filling.as_ref().is_none_or(|filling| filling.is_finished())
                && queue.disk.index_is_due.swap(false, Ordering::Relaxed)
            {
                let fill = || fill_index(path, &queue.disk);
                let thread = std::thread::Builder::new().name("journal-index".to_owned());
                // Without it questions take longer, and the next piece tries again.
                filling = thread.spawn_scoped(scope, fill).ok();
            }
            queue.disk.rest();
        }
    });
}

fn fill_index(path: &Path, disk: &Disk) {
    let folder = path.parent().unwrap_or(Path::new("."));
    if let Err(error) = index::fill(folder, || disk.lock().closing) {
        tracing::warn!(
            error = &error as &dyn std::error::Error,
            "the journal's index could not be filled; it may be deleted, and is made anew then"
        );
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
        } else if !closing && (bytes > store::CHECKPOINT_BYTES || disk.log_is_left.swap(false, Ordering::Relaxed)) {
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
