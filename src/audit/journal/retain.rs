//! Keeping the journal small: old records are moved into an archive, or removed, and the chain itself says so.
//!
//! Nothing goes that a collector has not yet taken, that belongs to something that has not ended, or that no `journal.pruned` in
//! the rest accounts for: that record and the removal are one transaction.

use std::fs::File;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use rusqlite::{Connection, TransactionBehavior, params};

use super::store::{self, Draft, Place, nanoseconds};
use super::{FILE, Journal, JournalError, Seq, Sync, connect_write};
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
    pub age: Option<Duration>,
    pub removed: Removed,
    /// The endpoints that records are sent to: what one of them has not taken stays.
    pub collectors: Vec<String>,
}

/// What becomes of records that are taken out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Removed {
    /// A compressed file beside the journal has them, a record a line.
    #[default]
    Archived,
    Deleted,
}

impl Journal {
    /// Takes out what need not be kept; returns how many records that were. Blocking: to be called from a thread that may wait.
    pub fn retain(&self, retention: &Retention) -> Result<u64, JournalError> {
        let path = self.folder().join(FILE);
        // Synced at its commits: an archive that is on the disk must not meet a journal that still has its records.
        let mut db = connect_write(&path, Sync::Each)?;
        let mut gone = 0;
        while let Some(piece) = piece(&db, retention).map_err(|source| write_error(&path, source))? {
            gone += take_out(&mut db, self.folder(), &path, &piece, retention.removed)?;
        }
        Ok(gone)
    }
}

/// Records that are to go, from the journal's first on.
struct Piece {
    first: Seq,
    last: Seq,
    reason: &'static str,
}

fn piece(db: &Connection, retention: &Retention) -> rusqlite::Result<Option<Piece>> {
    let (first, newest) = db.query_row(
        "SELECT coalesce(min(seq), 0), coalesce(max(seq), 0) FROM records",
        [],
        |row| Ok((seq(row.get(0)?), seq(row.get(1)?))),
    )?;
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
    let open: Option<i64> = db.query_row("SELECT min(seq) FROM starts", [], |row| row.get(0))?;
    if let Some(open) = open {
        // A lost exec is closed with what its judgement and its task's start said.
        let of_task: Option<i64> = db.query_row(
            "SELECT min(records.seq) FROM starts JOIN records ON records.task = starts.task",
            [],
            |row| row.get(0),
        )?;
        last = last.min(seq(open.min(of_task.unwrap_or(open))) - 1);
    }
    for endpoint in &retention.collectors {
        let delivered: i64 = db.query_row(
            "SELECT CASE WHEN count(*) = 0 THEN 0 ELSE min(seq) END FROM cursors WHERE endpoint = ?1",
            [endpoint.trim_end_matches('/')],
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

fn take_out(
    db: &mut Connection,
    folder: &Path,
    path: &Path,
    piece: &Piece,
    removed: Removed,
) -> Result<u64, JournalError> {
    let error = |source| write_error(path, source);
    let archive = match removed {
        Removed::Archived => Some(archive(db, folder, path, piece)?),
        Removed::Deleted => None,
    };
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
    let (archive, archive_digest) = archive.unzip();
    let pruned = Entry {
        task: None,
        exec: None,
        event: Event::JournalPruned {
            first_seq: piece.first,
            last_seq: piece.last,
            last_hash: hex(&last_hash),
            reason: piece.reason.to_owned(),
            archive,
            archive_digest,
        },
    };
    store::append(&step, &[Draft::new(&pruned, Timestamp::now())?], &Place::here()).map_err(error)?;
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
