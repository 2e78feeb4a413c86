//! The journal: records in the order in which they were written, each chained to the one before by its hash.
//!
//! One SQLite database in write-ahead mode. One writer at a time in each process takes whatever is queued and commits it as one
//! group, at once: nobody waits for a batch to fill. Several processes may write the same journal; the database's write lock
//! orders their groups, and the end of the chain is read anew inside each transaction.
//!
//! ```text
//!  callers ─submit─▶ queue (bounded) ─▶ writer ─commit─▶ receipts resolve
//!                                             │ dirty
//!                                             ▼
//!                                       sync thread: the log is on the disk within 50 ms; checkpoints
//!                                             │ now and then
//!                                             ▼
//!                                       index (a database of its own): which records are of a task, of an exec
//! ```
//!
//! A record is committed before [`Journal::append`] returns: after a kill -9 it is there. Against a power cut it is there after at
//! most 50 ms, or at once with [`Sync::Each`]. When the journal cannot be written (full disk, read-only, damaged), that append and
//! every later one fails until the journal is opened anew: whoever asks must then not act.

mod find;
mod index;
mod lost;
mod read;
mod retain;
mod store;
mod writer;

use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, Wake, Waker};

use tokio::sync::oneshot;

use super::key::SigningKey;
use super::record::{Entry, Event};
use super::redact::Redactor;

use writer::WrittenBy;

pub(crate) use find::{Of, Order, Search};
pub use read::{Reader, Stored, Summary};
pub use retain::Retention;
pub(crate) use retain::is_archive;
pub(crate) use store::{FILE, GENESIS, chain, connect_read, connect_write, host_name, nanoseconds};

/// The number of a record: 1 is the journal's first, and none is left out.
pub type Seq = u64;

/// How a journal is to be kept.
#[derive(Debug, Clone, Default)]
pub struct JournalOptions {
    pub sync: Sync,
    /// What is taken out of a record before it is written.
    pub redactor: Redactor,
    /// Who runs this belljar; stands in every record that it writes.
    pub user: Option<String>,
    /// Signs checkpoints: while records are written, when one is asked for, and at the end. Without it there are none.
    pub key: Option<SigningKey>,
}

/// When a record must be on the disk.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Sync {
    /// Within 50 ms: a power cut costs at most that, a kill -9 nothing.
    #[default]
    Batch,
    /// Before the append returns: a power cut costs nothing.
    Each,
}

impl Sync {
    /// The word that stands in configuration and records.
    pub fn as_str(self) -> &'static str {
        match self {
            Sync::Batch => "batch",
            Sync::Each => "each",
        }
    }
}

/// Why the journal could not be opened, written or read.
#[derive(Debug, Clone, thiserror::Error)]
pub enum JournalError {
    #[error("cannot make the journal's folder {}", folder.display())]
    Folder {
        folder: PathBuf,
        #[source]
        source: Arc<std::io::Error>,
    },
    #[error("cannot open the journal {}", path.display())]
    Open {
        path: PathBuf,
        #[source]
        source: Arc<rusqlite::Error>,
    },
    #[error(
        "the journal {} has version {found}, this program knows versions up to {known}: use the program that wrote it, or a newer one", path.display()
    )]
    Version { path: PathBuf, found: i64, known: i64 },
    #[error("cannot upgrade the journal {} from version {from}", path.display())]
    Upgrade {
        path: PathBuf,
        from: i64,
        #[source]
        source: Arc<rusqlite::Error>,
    },
    #[error("cannot write the journal {}", path.display())]
    Write {
        path: PathBuf,
        #[source]
        source: Arc<rusqlite::Error>,
    },
    #[error("the journal {} was removed or replaced while it was open", path.display())]
    Replaced { path: PathBuf },
    #[error("cannot bring the journal {} to the disk", path.display())]
    Sync {
        path: PathBuf,
        #[source]
        source: Arc<std::io::Error>,
    },
    #[error("cannot write the archive {}", path.display())]
    Archive {
        path: PathBuf,
        #[source]
        source: Arc<std::io::Error>,
    },
    #[error("cannot read the journal {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: Arc<rusqlite::Error>,
    },
    #[error("record {seq} of the journal {} is not what was written: {why}", path.display())]
    Damaged { path: PathBuf, seq: Seq, why: String },
    #[error("cannot start the journal's thread")]
    Thread {
        #[source]
        source: Arc<std::io::Error>,
    },
    #[error("cannot write a record of kind {kind} as JSON")]
    Encode {
        kind: &'static str,
        #[source]
        source: Arc<serde_json::Error>,
    },
    #[error("{waiting} records wait to be written, no more are taken")]
    QueueFull { waiting: usize },
    #[error("the journal has no key to sign a checkpoint with")]
    NoKey,
    #[error("the journal was closed")]
    Closed,
}

/// A handle on an open journal; cheap to clone. When the last one is dropped, what is queued is written and synced.
#[derive(Clone)]
pub struct Journal {
    inner: Arc<Inner>,
}

struct Inner {
    folder: PathBuf,
    place: store::Place,
    redactor: Redactor,
    writer: writer::Writer,
}

impl Journal {
    /// Opens the journal in `folder`, making both where they are missing, and appends `journal.opened`.
    ///
    /// The folder gets mode 0700, the database 0600.
    pub fn open(folder: &Path, options: JournalOptions) -> Result<Self, JournalError> {
        let place = store::Place::here(options.user.as_deref());
        let store = store::Store::open(folder, options.sync, options.key, place.clone())?;
        let opened = Event::JournalOpened {
            journal: store.journal_id().to_owned(),
            program_version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: std::process::id(),
            open_starts: store.open_starts()?,
            sync: options.sync.as_str().to_owned(),
        };
        let journal = Self {
            inner: Arc::new(Inner {
                folder: folder.to_owned(),
                place,
                redactor: options.redactor,
                writer: writer::Writer::start(store, options.sync)?,
            }),
        };
        journal.append_blocking(Entry {
            task: None,
            exec: None,
            event: opened,
        })?;
        Ok(journal)
    }

    /// Writes one record; returns when it is committed. Dropping the future does not take the record back.
    pub async fn append(&self, entry: Entry) -> Result<Seq, JournalError> {
        self.append_all([entry]).await
    }

    /// As [`Journal::append`], for callers that are not async; it blocks the thread for as long as the commit takes.
    pub fn append_blocking(&self, entry: Entry) -> Result<Seq, JournalError> {
        self.append_all_blocking([entry])
    }

    /// Writes records that follow each other, with one wait; returns the number of the last when all are committed. All of
    /// them are queued or none, and in their order.
    ///
    /// Cancel-safe: once it was polled, dropping the future does not take the records back.
    pub async fn append_all<const N: usize>(&self, entries: [Entry; N]) -> Result<Seq, JournalError> {
        const { assert!(N > 0, "nothing to wait for") };
        self.push(entries, WrittenBy::Caller).await
    }

    /// As [`Journal::append_all`], for callers that are not async.
    pub fn append_all_blocking<const N: usize>(&self, entries: [Entry; N]) -> Result<Seq, JournalError> {
        const { assert!(N > 0, "nothing to wait for") };
        self.push(entries, WrittenBy::Caller).wait()
    }

    /// As [`Journal::append_all`], for as many as there are; for none, nothing is written.
    pub async fn append_batch(&self, entries: Vec<Entry>) -> Result<(), JournalError> {
        match entries.is_empty() {
            true => Ok(()),
            false => self.push(entries, WrittenBy::Caller).await.map(drop),
        }
    }

    /// Queues one record without waiting: records are written in the order in which they were submitted, and those submitted
    /// together are committed together. The receipt tells when it is committed; dropping the receipt does not take the record back.
    pub fn submit(&self, entry: Entry) -> Receipt {
        self.push([entry], WrittenBy::Writer)
    }

    /// Takes this very value out of all records from now on; see [`Redactor::hide`].
    pub fn hide(&self, value: &str) {
        self.inner.redactor.hide(value);
    }

    fn push(&self, mut entries: impl AsMut<[Entry]>, by: WrittenBy) -> Receipt {
        let entries = entries.as_mut();
        entries.iter_mut().for_each(|entry| self.inner.redactor.clean(entry));
        let mut receipt = Receipt::of(|reply| self.inner.writer.push(entries, reply, by));
        match by {
            // It is waited for now.
            WrittenBy::Caller => self.inner.writer.leader().lead(),
            // It may be waited for before the writer is awake.
            WrittenBy::Writer => receipt.leader = Some(self.inner.writer.leader()),
        }
        receipt
    }

    /// Signs all that was submitted until now; gives the number of the checkpoint's record. To be called before the last export
    /// of a run, so that the checkpoint leaves the machine with the records it speaks for.
    pub fn checkpoint(&self) -> Receipt {
        Receipt::of(|reply| self.inner.writer.push_checkpoint(reply))
    }

    /// The folder that the journal is in.
    pub fn folder(&self) -> &Path {
        &self.inner.folder
    }

    /// A reader of what is committed.
    pub fn reader(&self) -> Result<Reader, JournalError> {
        Reader::open(&self.inner.folder)
    }
}

/// Resolves to the record's number when it is committed, or to the reason why it never will be.
#[must_use = "a record that was not waited for may not have been written"]
pub struct Receipt {
    receipt: oneshot::Receiver<Result<Seq, JournalError>>,
    /// Asked to write when the receipt is first waited for.
    leader: Option<writer::Leader>,
}

impl Receipt {
    fn of(push: impl FnOnce(writer::Reply) -> Result<(), JournalError>) -> Self {
        let (reply, receipt) = oneshot::channel();
        match push(reply) {
            Ok(()) => Self { receipt, leader: None },
            Err(error) => {
                let (reply, receipt) = oneshot::channel();
                // The receiver is in the receipt below.
                let _ = reply.send(Err(error));
                Self { receipt, leader: None }
            }
        }
    }

    /// Blocks the thread until the record is committed.
    pub fn wait(mut self) -> Result<Seq, JournalError> {
        // Not `blocking_recv`: that panics in async code, and a guard that is dropped there must still write its record.
        let waker = Waker::from(Arc::new(Unpark(std::thread::current())));
        let mut context = Context::from_waker(&waker);
        loop {
            match Pin::new(&mut self).poll(&mut context) {
                Poll::Ready(reply) => return reply,
                Poll::Pending => std::thread::park(),
            }
        }
    }
}

struct Unpark(std::thread::Thread);

impl Wake for Unpark {
    fn wake(self: Arc<Self>) {
        self.0.unpark();
    }
}

impl Future for Receipt {
    type Output = Result<Seq, JournalError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        if let Some(leader) = self.leader.take() {
            leader.lead();
        }
        Pin::new(&mut self.receipt)
            .poll(context)
            .map(|reply| reply.unwrap_or(Err(JournalError::Closed)))
    }
}

#[cfg(test)]
mod tests;
