//! Keeping the journal small: old records are moved into archives, old archives are removed, and the chain itself says so.
//!
//! Nothing goes that a collector has not yet taken, that belongs to something that has not ended, or that no `journal.pruned` in
//! the rest accounts for: that record and the removal are one transaction.

use std::fs::{File, TryLockError};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, TransactionBehavior, params};

use super::index;
use super::store::{self, Draft, nanoseconds};
use super::{FILE, Journal, JournalError, Seq, Sync, connect_write};
use crate::audit::otlp::Signal;
use crate::audit::record::{Entry, Event};
use crate::audit::verify::hex;
use crate::policy::Digest;

/// The most records that go in one transaction: other writers wait for it.
const PIECE: u64 = 10_000;

/// How much of the journal is to be kept.
#[derive(Debug, Clone, Default)]
pub struct Retention {
    /// The size of what is kept; when there is more, a fifth of it goes, so that not every call has to do something.
    pub bytes: Option<u64>,
    /// The age at which records go.
    pub age: Option<Duration>,
    /// How long the compressed files beside the journal, which have them then, are kept; none: for ever.
    pub keep: Option<Duration>,
    /// The endpoints that records are sent to, a pair for each signal: what one of them has not taken stays, be it for one signal.
    pub collectors: Vec<(String, Signal)>,
}

impl Journal {
    /// Moves what need not be at hand into archives, and removes archives that are too old; returns how many records that were. Blocking: to be called from a thread that may wait.
    pub fn retain(&self, retention: &Retention) -> Result<u64, JournalError> {
        let path = self.folder().join(FILE);
        // One process at a time: an archive that another one has just made must not be written over.
        let Some(_alone) = alone(self.folder())? else {
            return Ok(0);
        };
        // Synced at its commits: an archive that is on the disk must not meet a journal that still has its records.
        let mut db = connect_write(&path, Sync::Each)?;
        let mut gone = 0;
        // What is written from here on, such as that records were taken out, stays until the next time.
        let newest = newest(&db).map_err(|source| write_error(&path, source))?;
        while let Some(piece) = piece(&db, retention, newest).map_err(|source| write_error(&path, source))? {
            gone += take_out(&mut db, self, &path, &piece)?;
        }
        if gone > 0 {
            let first = first(&db).map_err(|source| write_error(&path, source))?;
            // Rows without a record only take room, and another process may be at it.
            let _ = index::prune(self.folder(), first);
        }
        if let Some(keep) = retention.keep {
            remove_archives(&mut db, self, &path, keep)?;
        }
        Ok(gone)
    }
}

fn alone(folder: &Path) -> Result<Option<File>, JournalError> {
    let path = folder.join("retain.lock");
    let failed = |source| JournalError::Archive {
        path: path.clone(),
        source: Arc::new(source),
    };
    let file = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .open(&path)
        .map_err(failed)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(failed(error)),
    }
}

/// Records that are to go, from the journal's first on.
struct Piece {
    first: Seq,
    last: Seq,
    reason: &'static str,
}

fn first(db: &Connection) -> rusqlite::Result<Seq> {
    db.query_row("SELECT coalesce(min(seq), 0) FROM records", [], |row| {
        Ok(seq(row.get(0)?))
    })
}

fn newest(db: &Connection) -> rusqlite::Result<Seq> {
    db.query_row("SELECT coalesce(max(seq), 0) FROM records", [], |row| {
        Ok(seq(row.get(0)?))
    })
}

fn piece(db: &Connection, retention: &Retention, newest: Seq) -> rusqlite::Result<Option<Piece>> {
    let first = first(db)?;
    let may_go = may_go(db, retention, newest)?;
    let mut due = None;
    if let Some(age) = retention.age {
        let oldest =
            nanoseconds(Timestamp::now()).saturating_sub_unsigned(u64::try_from(age.as_nanos()).unwrap_or(u64::MAX));
        let kept: Option<i64> = db
            .prepare_cached("SELECT seq FROM records WHERE time >= ?1 ORDER BY seq LIMIT 1")?
            .query_row([oldest], |row| row.get(0))
            .map(Some)
            .or_else(none)?;
        due = Some((kept.map_or(newest, |kept| seq(kept) - 1), "age"));
    }
    if let Some(bytes) = retention.bytes {
        let last = beyond_size(db, bytes, first, newest)?;
        if due.is_none_or(|(age, _)| age < last) && last >= first {
            due = Some((last, "size"));
        }
    }
    let Some((last, reason)) = due else { return Ok(None) };
    let last = last.min(may_go).min(first + PIECE - 1);
    if first == 0 || last < first {
        return Ok(None);
    }
    Ok(Some(Piece { first, last, reason }))
}

/// The last record that nobody needs any more. The journal's newest always stays: the chain goes on from it.
fn may_go(db: &Connection, retention: &Retention, newest: Seq) -> rusqlite::Result<Seq> {
    let mut last = newest.saturating_sub(1);
    // Each with its first record: a lost exec is closed with what its judgement and its task's start said.
    let open: Option<i64> = db.query_row("SELECT min(seq) FROM starts", [], |row| row.get(0))?;
    if let Some(open) = open {
        last = last.min(seq(open).saturating_sub(1));
    }
    for (endpoint, signal) in &retention.collectors {
        let delivered: i64 = db.query_row(
            "SELECT coalesce(max(seq), 0) FROM cursors WHERE endpoint = ?1 AND signal = ?2",
            [endpoint.trim_end_matches('/'), signal.as_str()],
            |row| row.get(0),
        )?;
        last = last.min(seq(delivered));
    }
    Ok(last)
}

/// The last record that must go for the rest to be four fifths of `bytes`, by the mean size of all; 0 when there is room.
fn beyond_size(db: &Connection, bytes: u64, first: Seq, newest: Seq) -> rusqlite::Result<Seq> {
    let number = |name: &str| db.pragma_query_value(None, name, |row| row.get::<_, i64>(0)).map(seq);
    let used = (number("page_count")? - number("freelist_count")?) * number("page_size")?;
    if used <= bytes || newest < first {
        return Ok(0);
    }
    let records = newest - first + 1;
    let kept = (bytes as f64 * 0.8 / used as f64 * records as f64) as u64;
    Ok(newest.saturating_sub(kept))
}

fn take_out(db: &mut Connection, journal: &Journal, path: &Path, piece: &Piece) -> Result<u64, JournalError> {
    let (folder, place) = (journal.folder(), &journal.inner.place);
    let error = |source| write_error(path, source);
    let (archive, archive_digest) = archive(db, folder, path, piece)?;
    let step = db
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(error)?;
    // Another process may have taken them out meanwhile.
    let still: Option<i64> = step
        .query_row("SELECT min(seq) FROM records", [], |row| row.get(0))
        .map_err(error)?;
    if still.map(seq) != Some(piece.first) {
        return Ok(0);
    }
    let last_hash: [u8; 32] = step
        .query_row("SELECT hash FROM records WHERE seq = ?1", [piece.last as i64], |row| {
            row.get(0)
        })
        .map_err(error)?;
    let pruned = Entry {
        task: None,
        exec: None,
        event: Event::JournalPruned {
            first_seq: piece.first,
            last_seq: piece.last,
            last_hash: hex(&last_hash),
            reason: piece.reason.to_owned(),
            archive: Some(archive),
            archive_digest: Some(archive_digest),
        },
    };
    store::append(&step, &[Draft::new(&pruned, Timestamp::now())?], place).map_err(error)?;
    let gone = step
        .execute("DELETE FROM records WHERE seq <= ?1", params![piece.last as i64])
        .map_err(error)?;
    step.commit().map_err(error)?;
    Ok(gone as u64)
}

/// Writes the records into a file of their own and brings it to the disk; gives its name and digest. One that was left by a
/// crash is written anew.
fn archive(db: &Connection, folder: &Path, path: &Path, piece: &Piece) -> Result<(String, String), JournalError> {
    let name = format!("journal-{:020}.jsonl.zst", piece.first);
    let mut lines = Vec::new();
    let mut read = || -> rusqlite::Result<()> {
        let mut statement = db.prepare_cached("SELECT json FROM records WHERE seq BETWEEN ?1 AND ?2 ORDER BY seq")?;
        let mut rows = statement.query(params![piece.first as i64, piece.last as i64])?;
        while let Some(row) = rows.next()? {
            lines.extend_from_slice(row.get_ref(0)?.as_str()?.as_bytes());
            lines.push(b'\n');
        }
        Ok(())
    };
    read().map_err(|source| JournalError::Read {
        path: path.to_owned(),
        source: Arc::new(source),
    })?;
    let target = folder.join(&name);
    let write = || -> std::io::Result<Digest> {
        use std::os::unix::fs::OpenOptionsExt;
        let bytes = zstd::encode_all(lines.as_slice(), 0)?;
        let draft = target.with_extension("new");
        let mut file = File::options()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        file.write_all(&bytes)?;
        file.sync_all()?;
        std::fs::rename(&draft, &target)?;
        File::open(folder)?.sync_all()?;
        Ok(Digest::of_bytes(&bytes))
    };
    let digest = write().map_err(|source| JournalError::Archive {
        path: target.clone(),
        source: Arc::new(source),
    })?;
    Ok((name, digest.to_string()))
}

/// Removes archives that were made longer ago than `keep`. First the record says so, then the file goes: one that a crash in between
/// leaves goes the next time.
fn remove_archives(db: &mut Connection, journal: &Journal, path: &Path, keep: Duration) -> Result<(), JournalError> {
    let (folder, place) = (journal.folder(), &journal.inner.place);
    let failed = |path: &Path, source| JournalError::Archive {
        path: path.to_owned(),
        source: Arc::new(source),
    };
    for entry in std::fs::read_dir(folder)
        .map_err(|source| failed(folder, source))?
        .flatten()
    {
        let file = entry.path();
        let Some(name) = entry
            .file_name()
            .to_str()
            .filter(|name| is_archive(name))
            .map(str::to_owned)
        else {
            continue;
        };
        let age = entry
            .metadata()
            .and_then(|about| about.modified())
            .map(|made| made.elapsed());
        // A clock that was set back makes an archive too young, never too old.
        if !matches!(age, Ok(Ok(age)) if age >= keep) {
            continue;
        }
        let bytes = std::fs::read(&file).map_err(|source| failed(&file, source))?;
        let removed = Entry {
            task: None,
            exec: None,
            event: Event::JournalArchiveRemoved {
                archive: name,
                archive_digest: Digest::of_bytes(&bytes).to_string(),
                reason: "age".to_owned(),
            },
        };
        let error = |source| write_error(path, source);
        let step = db
            .transaction_with_behavior(TransactionBehavior::Immediate)
            .map_err(error)?;
        store::append(&step, &[Draft::new(&removed, Timestamp::now())?], place).map_err(error)?;
        step.commit().map_err(error)?;
        std::fs::remove_file(&file).map_err(|source| failed(&file, source))?;
    }
    Ok(())
}

/// `journal-<the number of its first record>.jsonl.zst`
pub(crate) fn is_archive(name: &str) -> bool {
    name.strip_prefix("journal-")
        .and_then(|rest| rest.strip_suffix(".jsonl.zst"))
        .is_some_and(|number| number.len() == 20 && number.bytes().all(|byte| byte.is_ascii_digit()))
}

fn seq(number: i64) -> Seq {
    u64::try_from(number).unwrap_or(0)
}

fn none<T>(error: rusqlite::Error) -> rusqlite::Result<Option<T>> {
    match error {
        rusqlite::Error::QueryReturnedNoRows => Ok(None),
        error => Err(error),
    }
}

fn write_error(path: &Path, source: rusqlite::Error) -> JournalError {
    JournalError::Write {
        path: PathBuf::from(path),
        source: Arc::new(source),
    }
}
