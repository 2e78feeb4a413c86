//! Reading what is committed; never in the way of the writer.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, OptionalExtension, Row, ToSql};
use serde_json::Value;
use uuid::Uuid;

use super::find::Finding;
use super::{FILE, JournalError, Seq, connect_read, is_archive, lost};

/// One record as it stands in the journal.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Stored {
    pub seq: Seq,
    /// Nanoseconds since 1970.
    pub time: i64,
    pub task: Option<Uuid>,
    pub exec: Option<Uuid>,
    pub kind: String,
    pub prev: [u8; 32],
    pub hash: [u8; 32],
    /// The record as it was written.
    pub json: String,
}

impl Stored {
    /// The record's fields; `Null` when a damaged journal holds something that is not JSON.
    pub fn value(&self) -> Value {
        serde_json::from_str(&self.json).unwrap_or(Value::Null)
    }

    pub fn timestamp(&self) -> Timestamp {
        Timestamp::from_nanosecond(self.time.into()).unwrap_or(Timestamp::UNIX_EPOCH)
    }
}

/// A journal in figures; see [`Reader::summary`].
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Summary {
    pub first_seq: Seq,
    pub last_seq: Seq,
    /// On the disk, without the archives.
    pub bytes: u64,
    pub archives: u64,
    pub archive_bytes: u64,
    /// The newest checkpoint; what comes after it no signature speaks for yet.
    pub signed_seq: Seq,
    /// Tasks and execs that have begun and not ended.
    pub open_starts: u64,
}

/// The columns that [`stored`] reads, in its order.
pub(super) const COLUMNS: &str = "seq, time, task, exec, kind, prev, hash, json";

/// A connection of its own on the journal.
pub struct Reader {
    path: PathBuf,
    db: Connection,
    finding: Finding,
}

impl Reader {
    /// Opens the journal in `folder`, which must exist.
    pub fn open(folder: &Path) -> Result<Self, JournalError> {
        let path = folder.join(FILE);
        let db = connect_read(&path)?;
        Ok(Self {
            path,
            db,
            finding: Finding::default(),
        })
    }

    /// The newest record's number, 0 in an empty journal.
    pub fn last_seq(&self) -> Result<Seq, JournalError> {
        self.ask("SELECT coalesce(max(seq), 0) FROM records", &[], |row| {
            Ok(row.get::<_, i64>(0)?.unsigned_abs())
        })
        .map(|seq| seq.unwrap_or(0))
    }

    /// The journal's own id.
    pub fn journal_id(&self) -> Result<String, JournalError> {
        self.ask("SELECT value FROM about WHERE name = 'journal'", &[], |row| row.get(0))
            .map(|id| id.unwrap_or_default())
    }

    /// The journal in figures.
    pub fn summary(&self) -> Result<Summary, JournalError> {
        let count = |sql: &str| -> Result<u64, JournalError> {
            let found = self.ask(sql, &[], |row| row.get::<_, i64>(0))?;
            Ok(found.unwrap_or(0).unsigned_abs())
        };
        let folder = self.path.parent().unwrap_or(Path::new("."));
        let size = |path: PathBuf| std::fs::metadata(path).map_or(0, |file| file.len());
        let files = std::fs::read_dir(folder).into_iter().flatten().flatten();
        let archives: Vec<PathBuf> = files
            .filter(|file| file.file_name().to_str().is_some_and(is_archive))
            .map(|file| file.path())
            .collect();
        Ok(Summary {
            first_seq: count("SELECT coalesce(min(seq), 0) FROM records")?,
            last_seq: self.last_seq()?,
            bytes: size(self.path.clone()) + size(folder.join(format!("{FILE}-wal"))),
            archives: archives.len() as u64,
            archive_bytes: archives.into_iter().map(size).sum(),
            signed_seq: count("SELECT seq FROM records WHERE kind = 'journal.checkpoint' ORDER BY seq DESC LIMIT 1")?,
            open_starts: lost::open_starts(&self.db).map_err(|source| self.error(source))?,
        })
    }

    pub fn record(&self, seq: Seq) -> Result<Option<Stored>, JournalError> {
        let sql = format!("SELECT {COLUMNS} FROM records WHERE seq = ?1");
        self.ask(&sql, &[&(seq as i64)], stored)
    }

    /// At most `limit` records that come after `seq`, in order.
    pub fn after(&self, seq: Seq, limit: usize) -> Result<Vec<Stored>, JournalError> {
        self.select(
            "seq > ?1 ORDER BY seq LIMIT ?2",
            &[&(seq as i64), &i64::try_from(limit).unwrap_or(i64::MAX)],
        )
    }

    /// The records for which `rest`, what follows WHERE in SQL, holds.
    pub(crate) fn select(&self, rest: &str, values: &[&dyn ToSql]) -> Result<Vec<Stored>, JournalError> {
        let mut found = Vec::new();
        self.each(rest, values, |record| {
            found.push(record);
            true
        })?;
        Ok(found)
    }

    /// As [`Reader::select`], one after the other, until `take` says false.
    pub(crate) fn each(
        &self,
        rest: &str,
        values: &[&dyn ToSql],
        mut take: impl FnMut(Stored) -> bool,
    ) -> Result<(), JournalError> {
        let mut read = || -> rusqlite::Result<()> {
            let mut statement = self
                .db
                .prepare_cached(&format!("SELECT {COLUMNS} FROM records WHERE {rest}"))?;
            let mut rows = statement.query(values)?;
            while let Some(row) = rows.next()? {
                if !take(stored(row)?) {
                    break;
                }
            }
            Ok(())
        };
        read().map_err(|source| self.error(source))
    }

    /// One row of an answer to any question, or none.
    pub(crate) fn ask<T>(
        &self,
        sql: &str,
        values: &[&dyn ToSql],
        read: impl FnOnce(&Row<'_>) -> rusqlite::Result<T>,
    ) -> Result<Option<T>, JournalError> {
        self.db
            .prepare_cached(sql)
            .and_then(|mut statement| statement.query_row(values, read).optional())
            .map_err(|source| self.error(source))
    }

    pub(super) fn open_again(&self) -> Result<Self, JournalError> {
        Self::open(self.path.parent().unwrap_or(Path::new(".")))
    }

    pub(super) fn db(&self) -> &Connection {
        &self.db
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn finding(&self) -> &Finding {
        &self.finding
    }

    pub(super) fn error(&self, source: rusqlite::Error) -> JournalError {
        JournalError::Read {
            path: self.path.clone(),
            source: Arc::new(source),
        }
    }
}

pub(super) fn stored(row: &Row<'_>) -> rusqlite::Result<Stored> {
    let id = |bytes: Option<[u8; 16]>| bytes.map(Uuid::from_bytes);
    Ok(Stored {
        seq: row.get::<_, i64>(0)?.unsigned_abs(),
        time: row.get(1)?,
        task: id(row.get(2)?),
        exec: id(row.get(3)?),
        kind: row.get(4)?,
        prev: row.get(5)?,
        hash: row.get(6)?,
        json: row.get(7)?,
    })
}
