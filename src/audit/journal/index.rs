//! The index: which records are of a task or of an exec, in a database of its own beside the journal.
//!
//! It makes questions fast and is no evidence: it can be deleted at any time, is made anew by whoever writes to the journal, and
//! what it lacks a reader finds in the journal itself, see [`super::find`]. A row that does not belong in it is seen by the record
//! that it names. A row that somebody took out hides a record from questions by task or exec, and never from `audit verify`,
//! `audit export` and all questions without a task or an exec: those do not look here.
//!
//! It is filled off the way of all commits, by a thread of a writing process, each time when as many records as [`PIECE`] have come.

use std::fs::File;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, params};

use super::{FILE, Seq};

/// The index's name in the journal's folder.
pub(super) const INDEX: &str = "index.db";

/// As many records are taken in at once: a millisecond or two, for which a process that ends may have to wait.
const PIECE: Seq = 512;

/// Counted up when the tables change: an index of another version is made anew.
pub(super) const VERSION: i64 = 1;

/// The tables, each with the column of the journal that its ids are from, and the records that it has.
pub(super) const TABLES: [(&str, &str, &str); 3] = [
    ("task", "task", "task IS NOT NULL"),
    ("exec", "exec", "exec IS NOT NULL"),
    // Few among many, such as what a harness told and connections: to find them should not take going through all execs.
    ("apart", "task", "task IS NOT NULL AND exec IS NULL"),
];

/// How far the index goes, if it is one of this very journal: the last record that it took in must be there as it was, or have
/// been taken out of the journal since. For a connection that has both databases.
pub(super) const THROUGH: &str = "SELECT through FROM indexed \
    WHERE journal = (SELECT value FROM about WHERE name = 'journal') \
    AND (hash = (SELECT hash FROM records WHERE seq = through) OR through < (SELECT min(seq) FROM records))";

/// Whether with the records from `first` to `last` another piece is full.
pub(super) fn is_due(first: Seq, last: Seq) -> bool {
    first.saturating_sub(1) / PIECE != last / PIECE
}

/// Takes in what the journal has more, until `stop` says so. Another process that does the same is left to it.
pub(super) fn fill(folder: &Path, stop: impl Fn() -> bool) -> rusqlite::Result<()> {
    let filled = || -> rusqlite::Result<()> {
        let mut db = open(folder)?;
        while !stop() && fill_piece(&mut db)? {}
        Ok(())
    };
    match filled() {
        Err(error) if error.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => Ok(()),
        filled => filled,
    }
}

/// Takes out what the journal no longer has: rows of records before `first`.
pub(super) fn prune(folder: &Path, first: Seq) -> rusqlite::Result<()> {
    let mut db = open(folder)?;
    let step = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    for (table, _, _) in TABLES {
        step.execute(&format!("DELETE FROM {table} WHERE number < ?1"), [first as i64])?;
    }
    step.commit()
}

fn open(folder: &Path) -> rusqlite::Result<Connection> {
    let path = folder.join(INDEX);
    // SQLite makes its files with the mode of the database. That it cannot be made shows when it is opened.
    let _ = File::options()
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(&path);
    let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_NO_MUTEX | OpenFlags::SQLITE_OPEN_URI;
    let mut db = Connection::open_with_flags(path, flags)?;
    db.pragma_update(None, "journal_mode", "WAL")?;
    db.pragma_update(None, "synchronous", "NORMAL")?;
    // Every reader that opens it reads its log once.
    db.pragma_update(None, "wal_autocheckpoint", 128)?;
    db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
    // Read-only, or a transaction here would take the journal's own lock.
    db.execute("ATTACH ?1 AS journal", [read_only(&folder.join(FILE))])?;
    make_tables(&mut db)?;
    Ok(db)
}

fn make_tables(db: &mut Connection) -> rusqlite::Result<()> {
    let version = |db: &Connection| db.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0));
    if version(db)? == VERSION {
        return Ok(());
    }
    let step = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    // Another process may have made them while this one waited for the lock.
    if version(&step)? != VERSION {
        step.execute_batch(
            "
            DROP TABLE IF EXISTS main.indexed;
            CREATE TABLE indexed (
                one INTEGER PRIMARY KEY CHECK (one = 1),
                journal TEXT NOT NULL,
                through INTEGER NOT NULL,
                hash BLOB NOT NULL
            ) STRICT;
            ",
        )?;
        for (table, _, _) in TABLES {
            step.execute_batch(&format!(
                "DROP TABLE IF EXISTS main.{table};
                CREATE TABLE {table} (id BLOB, number INTEGER, PRIMARY KEY (id, number)) STRICT, WITHOUT ROWID;"
            ))?;
        }
        step.pragma_update(None, "user_version", VERSION)?;
    }
    step.commit()
}

/// Takes in the next records; gives whether there may be more.
fn fill_piece(db: &mut Connection) -> rusqlite::Result<bool> {
    let step = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
    let through: Option<i64> = step
        .prepare_cached(THROUGH)?
        .query_row([], |row| row.get(0))
        .optional()?;
    if through.is_none() {
        step.execute("DELETE FROM indexed", [])?;
        for (table, _, _) in TABLES {
            step.execute(&format!("DELETE FROM {table}"), [])?;
        }
    }
    // Each by itself is one step to the end of the table, both in one question are a walk through all of it.
    let (first, newest): (i64, i64) = step
        .prepare_cached(
            "SELECT (SELECT coalesce(min(seq), 1) FROM records), (SELECT coalesce(max(seq), 0) FROM records)",
        )?
        .query_row([], |row| Ok((row.get(0)?, row.get(1)?)))?;
    let after = through.unwrap_or(0).max(first - 1);
    let last = newest.min(after + PIECE as i64);
    if last > after {
        for (table, column, condition) in TABLES {
            let sql = format!(
                "INSERT OR IGNORE INTO {table} (id, number) \
                 SELECT {column}, seq FROM records WHERE seq > ?1 AND seq <= ?2 AND {condition}"
            );
            step.prepare_cached(&sql)?.execute(params![after, last])?;
        }
        step.prepare_cached(
            "INSERT OR REPLACE INTO indexed (one, journal, through, hash) \
             SELECT 1, (SELECT value FROM about WHERE name = 'journal'), seq, hash FROM records WHERE seq = ?1",
        )?
        .execute([last])?;
    }
    step.commit()?;
    Ok(last < newest)
}

/// The address by which SQLite opens a file only to read it; see <https://www.sqlite.org/uri.html>.
fn read_only(path: &Path) -> String {
    let mut address = "file:".to_owned();
    for byte in path.as_os_str().as_bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'/' | b'.' | b'_' | b'-' => address.push(char::from(*byte)),
            _ => address.push_str(&format!("%{byte:02X}")),
        }
    }
    address.push_str("?mode=ro");
    address
}
