//! The database: its schema and versions, and the one place that writes records.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, TransactionBehavior, params};
use sha2::{Digest as _, Sha256};
use uuid::Uuid;

use super::{JournalError, Seq, Sync};
use crate::audit::key::{Checkpoint, SigningKey};
use crate::audit::record::{Entry, Event};
use crate::audit::verify::hex;
use crate::crash;

/// The database's name in the journal's folder.
pub(crate) const FILE: &str = "journal.db";

/// What the first record is chained to.
pub(crate) const GENESIS: [u8; 32] = [0; 32];

/// How long a writer waits for another process's group. A group takes milliseconds, so this long means that the other one hangs.
const BUSY_WAIT: Duration = Duration::from_secs(30);

/// The length of the log from which on it is moved into the database.
pub(super) const CHECKPOINT_BYTES: u64 = 4 << 20;

/// The same, for what an earlier process left: every start reads all of the log once.
const LEFT_BYTES: u64 = 512 << 10;

/// How many records of one process may stand without a signature while it goes on.
const CHECKPOINT_RECORDS: u64 = 1024;

/// The steps from one version of the schema to the next; a journal of version n has had the first n.
const VERSIONS: &[&str] = &[
    // 1: `json` is the record as it was written and `hash` is over `prev` and `json`; the other columns repeat what stands in
    // `json`, so that it can be found. `starts` holds tasks and execs whose end is not yet written: a crash leaves them there.
    "
    CREATE TABLE about (name TEXT PRIMARY KEY, value TEXT NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE records (
        seq INTEGER PRIMARY KEY,
        time INTEGER NOT NULL,
        task BLOB,
        exec BLOB,
        kind TEXT NOT NULL,
        prev BLOB NOT NULL,
        hash BLOB NOT NULL,
        json TEXT NOT NULL
    ) STRICT;
    CREATE INDEX records_task ON records (task, seq) WHERE task IS NOT NULL;
    CREATE INDEX records_exec ON records (exec, seq) WHERE exec IS NOT NULL;
    CREATE TABLE starts (id BLOB PRIMARY KEY, task BLOB NOT NULL, exec BLOB, seq INTEGER NOT NULL) STRICT, WITHOUT ROWID;
    CREATE TABLE cursors (
        endpoint TEXT NOT NULL,
        signal TEXT NOT NULL,
        seq INTEGER NOT NULL,
        state TEXT NOT NULL,
        PRIMARY KEY (endpoint, signal)
    ) STRICT, WITHOUT ROWID;
    ",
    // 2: a commit writes one page more for each table and index that it touches, so none but the records is left on the way of an
    // exec. Records of a task or an exec are found by an index of their own file, and `starts` holds tasks only, each with the first
    // record of it: their execs without an end are found by going through those records.
    "
    INSERT OR IGNORE INTO starts (id, task, exec, seq) SELECT task, task, NULL, min(seq) FROM starts WHERE exec IS NOT NULL GROUP BY task;
    DELETE FROM starts WHERE exec IS NOT NULL;
    UPDATE starts SET seq = coalesce((SELECT min(records.seq) FROM records WHERE records.task = starts.task), seq);
    DROP INDEX records_task;
    DROP INDEX records_exec;
    ",
];

/// One record on its way into the database; `tail` is its JSON from the task on, with the opening brace.
pub(super) struct Draft {
    pub time: jiff::Timestamp,
    pub task: Option<[u8; 16]>,
    pub exec: Option<[u8; 16]>,
    pub kind: &'static str,
    pub tail: Vec<u8>,
}

impl Draft {
    pub fn new(entry: &Entry, time: jiff::Timestamp) -> Result<Self, JournalError> {
        let kind = entry.event.kind();
        let mut tail = Vec::with_capacity(768);
        serde_json::to_writer(&mut tail, entry).map_err(|source| JournalError::Encode {
            kind,
            source: Arc::new(source),
        })?;
        Ok(Self {
            time,
            task: entry.task.map(|id| *id.as_bytes()),
            exec: entry.exec.map(|id| *id.as_bytes()),
            kind,
            tail,
        })
    }
}

pub(super) struct Store {
    path: PathBuf,
    db: Connection,
    journal_id: String,
    place: Place,
    /// Device and inode of the database at the time of opening.
    file: (u64, u64),
    key: Option<SigningKey>,
    /// Read by the busy handler.
    waits: Arc<AtomicBool>,
    /// Records that this process wrote since its last checkpoint.
    unsigned: u64,
    /// Whether the log was long at the time of opening.
    log_is_left: bool,
}

/// What a group became.
pub(super) struct Written {
    /// The number of its first record; the others follow without a gap.
    pub first: Seq,
    /// The number of the last record, a checkpoint too.
    pub last: Seq,
    /// The checkpoint that was written after it.
    pub checkpoint: Option<Seq>,
}

/// How long a write waits for another process that is writing.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Patience {
    /// Not at all.
    None,
    /// As long as the other one may take.
    ForOthers,
}

/// When a group is followed by a checkpoint.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Sign {
    /// When enough records have gathered.
    Now,
    WhenDue,
}

/// Where and by whom records are written: the part of the envelope that is the same in all of them.
#[derive(Clone)]
pub(super) struct Place {
    host: String,
    boot: String,
    /// As JSON, with its quotes.
    user: Option<String>,
}

impl Place {
    pub fn here(user: Option<&str>) -> Self {
        Self {
            host: host_name(),
            boot: boot_id(),
            user: user.map(|user| serde_json::Value::from(user).to_string()),
        }
    }
}

impl Store {
    pub fn open(folder: &Path, sync: Sync, key: Option<SigningKey>, place: Place) -> Result<Self, JournalError> {
        make_folder(folder)?;
        let path = folder.join(FILE);
        let mut db = connect_write(&path, sync)?;
        upgrade(&mut db, &path)?;
        let waits = Arc::new(AtomicBool::new(true));
        let handler = waits.clone();
        db.busy_handler(Some(move |tries| {
            handler.load(Ordering::Relaxed) && wait_for_other_writer(tries)
        }))
        .map_err(|source| JournalError::Open {
            path: path.clone(),
            source: Arc::new(source),
        })?;
        let journal_id = journal_id(&mut db).map_err(|source| JournalError::Open {
            path: path.clone(),
            source: Arc::new(source),
        })?;
        let log_is_left = log_is_left(&db).map_err(|source| JournalError::Open {
            path: path.clone(),
            source: Arc::new(source),
        })?;
        let file = identity(&path)?;
        Ok(Self {
            path,
            db,
            journal_id,
            place,
            file,
            key,
            waits,
            unsigned: 0,
            log_is_left,
        })
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    pub fn journal_id(&self) -> &str {
        &self.journal_id
    }

    /// Whether earlier processes left so much in the log that it should be moved into the database.
    pub fn log_is_left(&self) -> bool {
        self.log_is_left
    }

    /// How many tasks have begun and not ended.
    pub fn open_starts(&self) -> Result<u64, JournalError> {
        self.db
            .query_row("SELECT count(*) FROM starts", [], |row| row.get::<_, i64>(0))
            .map(|count| count.unsigned_abs())
            .map_err(|source| self.read_error(source))
    }

    /// Whether checkpoints can be made at all.
    pub fn signs(&self) -> bool {
        self.key.is_some()
    }

    /// Writes a group in one transaction, and a checkpoint after it when one is due or asked for. Gives nothing, and has done
    /// nothing, when another process was writing and the patience was not enough.
    pub fn write(&mut self, group: &[Draft], sign: Sign, patience: Patience) -> Result<Option<Written>, JournalError> {
        // SQLite would go on writing to a database whose file was removed, and nobody would ever see those records.
        if identity(&self.path)? != self.file {
            return Err(JournalError::Replaced {
                path: self.path.clone(),
            });
        }
        let unsigned = self.unsigned + group.len() as u64;
        let key = self.key.as_ref().filter(|_| match sign {
            Sign::Now => unsigned > 0,
            Sign::WhenDue => unsigned >= CHECKPOINT_RECORDS,
        });
        let path = &self.path;
        let error = |source| JournalError::Write {
            path: path.clone(),
            source: Arc::new(source),
        };
        self.waits.store(patience == Patience::ForOthers, Ordering::Relaxed);
        let step = match Step::begin(&self.db) {
            Ok(step) => step,
            Err(busy) if patience == Patience::None && busy.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) => {
                return Ok(None);
            }
            Err(source) => return Err(error(source)),
        };
        // A commit that only waits for a reader's lock on the log is worth the wait.
        self.waits.store(true, Ordering::Relaxed);
        crash::point("journal: before a group is written");
        let end = append(&self.db, group, &self.place).map_err(error)?;
        let mut checkpoint = None;
        if let Some(key) = key {
            let draft = Draft::new(&signed(key, &self.journal_id, &end), jiff::Timestamp::now())?;
            checkpoint = Some(append(&self.db, &[draft], &self.place).map_err(error)?.last);
        }
        crash::point("journal: before the commit");
        step.commit().map_err(error)?;
        crash::point("journal: after the commit, before anybody is told");
        self.unsigned = if checkpoint.is_some() { 0 } else { unsigned };
        Ok(Some(Written {
            first: end.first,
            last: checkpoint.unwrap_or(end.last),
            checkpoint,
        }))
    }

    /// Moves what the log holds into the database file, so that the log starts over.
    pub fn checkpoint(&self) -> Result<(), JournalError> {
        checkpoint(&self.db).map_err(|source| JournalError::Write {
            path: self.path.clone(),
            source: Arc::new(source),
        })
    }

    fn read_error(&self, source: rusqlite::Error) -> JournalError {
        JournalError::Read {
            path: self.path.clone(),
            source: Arc::new(source),
        }
    }
}

/// A transaction that holds the write lock, taken back unless it is committed. Its statements are kept: rusqlite's own would be
/// parsed anew for each commit.
struct Step<'a> {
    db: &'a Connection,
}

impl<'a> Step<'a> {
    fn begin(db: &'a Connection) -> rusqlite::Result<Self> {
        db.prepare_cached("BEGIN IMMEDIATE")?.execute([])?;
        Ok(Self { db })
    }

    fn commit(self) -> rusqlite::Result<()> {
        self.db.prepare_cached("COMMIT")?.execute([]).map(drop)
    }
}

impl Drop for Step<'_> {
    fn drop(&mut self) {
        // A commit that failed, as on a full disk, may have left it open.
        if !self.db.is_autocommit() {
            let _ = self.db.execute_batch("ROLLBACK");
        }
    }
}

/// The hash of a record: over the hash of the one before, and the bytes of its JSON.
pub(crate) fn chain(prev: &[u8; 32], json: &[u8]) -> [u8; 32] {
    let mut hash = Sha256::new();
    hash.update(prev);
    hash.update(json);
    hash.finalize().into()
}

fn log_is_left(db: &Connection) -> rusqlite::Result<bool> {
    let (page, pages): (i64, i64) = (
        db.pragma_query_value(None, "page_size", |row| row.get(0))?,
        db.query_row("PRAGMA wal_checkpoint(NOOP)", [], |row| {
            Ok(row.get::<_, i64>(1)? - row.get::<_, i64>(2)?)
        })?,
    );
    Ok((page * pages).max(0).unsigned_abs() > LEFT_BYTES)
}

pub(super) fn checkpoint(db: &Connection) -> rusqlite::Result<()> {
    db.query_row("PRAGMA wal_checkpoint(PASSIVE)", [], |_| Ok(()))
}

/// A connection that may write. Checkpoints are left to the sync thread, and closing does not make one: `belljar run` should not
/// end with a disk's wait that nothing needs.
pub(crate) fn connect_write(path: &Path, sync: Sync) -> Result<Connection, JournalError> {
    let open = || -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE | OpenFlags::SQLITE_OPEN_CREATE | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut db = Connection::open_with_flags(path, flags)?;
        db.busy_handler(Some(wait_for_other_writer))?;
        db.pragma_update(None, "journal_mode", "WAL")?;
        db.pragma_update(
            None,
            "synchronous",
            match sync {
                Sync::Batch => "NORMAL",
                Sync::Each => "FULL",
            },
        )?;
        db.pragma_update(None, "wal_autocheckpoint", 0)?;
        // A log that starts over is cut back, so that its length says how much there is to move.
        db.pragma_update(None, "journal_size_limit", CHECKPOINT_BYTES as i64)?;
        db.pragma_update(None, "foreign_keys", false)?;
        db.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        db.set_prepared_statement_cache_capacity(32);
        Ok(db)
    };
    open().map_err(|source| JournalError::Open {
        path: path.to_owned(),
        source: Arc::new(source),
    })
}

/// A connection that only reads; it never waits for the writer, nor the writer for it.
pub(crate) fn connect_read(path: &Path) -> Result<Connection, JournalError> {
    let open = || -> rusqlite::Result<Connection> {
        let flags = OpenFlags::SQLITE_OPEN_READ_ONLY | OpenFlags::SQLITE_OPEN_NO_MUTEX;
        let mut db = Connection::open_with_flags(path, flags)?;
        db.busy_handler(Some(wait_for_other_writer))?;
        Ok(db)
    };
    let db = open().map_err(|source| JournalError::Open {
        path: path.to_owned(),
        source: Arc::new(source),
    })?;
    known_version(&db, path)?;
    Ok(db)
}

/// SQLite's own waiting goes by milliseconds and grows fast, a group takes a fraction of one.
fn wait_for_other_writer(tries: i32) -> bool {
    let pause = Duration::from_micros(50 << tries.clamp(0, 6));
    // The pauses add up to at least this long.
    if pause * tries.unsigned_abs() > BUSY_WAIT * 2 {
        return false;
    }
    std::thread::sleep(pause);
    true
}

fn known_version(db: &Connection, path: &Path) -> Result<i64, JournalError> {
    let found = db
        .pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))
        .map_err(|source| JournalError::Open {
            path: path.to_owned(),
            source: Arc::new(source),
        })?;
    let known = VERSIONS.len() as i64;
    if found > known {
        return Err(JournalError::Version {
            path: path.to_owned(),
            found,
            known,
        });
    }
    Ok(found)
}

/// Brings the schema to the newest version, in one transaction: another process sees the old one or the new one.
fn upgrade(db: &mut Connection, path: &Path) -> Result<(), JournalError> {
    let from = known_version(db, path)?;
    if from as usize == VERSIONS.len() {
        return Ok(());
    }
    let steps = |db: &mut Connection| -> rusqlite::Result<()> {
        let step = db.transaction_with_behavior(TransactionBehavior::Immediate)?;
        // Another process may have done it while this one waited for the lock.
        let from = step.pragma_query_value(None, "user_version", |row| row.get::<_, i64>(0))?;
        for sql in VERSIONS.iter().skip(from.max(0) as usize) {
            step.execute_batch(sql)?;
        }
        if (from as usize) < VERSIONS.len() {
            step.pragma_update(None, "user_version", VERSIONS.len() as i64)?;
        }
        step.commit()
    };
    steps(db).map_err(|source| JournalError::Upgrade {
        path: path.to_owned(),
        from,
        source: Arc::new(source),
    })
}

fn journal_id(db: &mut Connection) -> rusqlite::Result<String> {
    db.execute(
        "INSERT OR IGNORE INTO about (name, value) VALUES ('journal', ?1)",
        [Uuid::now_v7().to_string()],
    )?;
    db.query_row("SELECT value FROM about WHERE name = 'journal'", [], |row| row.get(0))
}

/// Adds records at the end of the chain; `step` is a transaction that holds the write lock.
pub(super) fn append(step: &Connection, group: &[Draft], place: &Place) -> rusqlite::Result<End> {
    let last = step
        .prepare_cached("SELECT seq, hash FROM records ORDER BY seq DESC LIMIT 1")?
        .query_row([], |row| Ok((row.get::<_, i64>(0)?, row.get::<_, [u8; 32]>(1)?)))
        .optional()?;
    let (mut seq, mut prev) = last.unwrap_or((0, GENESIS));
    let first = seq + 1;
    let mut json = Vec::with_capacity(2048);
    let mut insert = step.prepare_cached(
        "INSERT INTO records (seq, time, task, exec, kind, prev, hash, json) VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)",
    )?;
    for draft in group {
        seq += 1;
        write_json(&mut json, seq, draft, place);
        let hash = chain(&prev, &json);
        let text = std::str::from_utf8(&json).expect("the JSON of a record is UTF-8");
        insert.execute(params![
            seq,
            nanoseconds(draft.time),
            draft.task.as_ref().map(|id| id.as_slice()),
            draft.exec.as_ref().map(|id| id.as_slice()),
            draft.kind,
            prev.as_slice(),
            hash.as_slice(),
            text
        ])?;
        note_start_or_end(step, draft, seq)?;
        prev = hash;
    }
    Ok(End {
        first: first.unsigned_abs(),
        last: seq.unsigned_abs(),
        hash: prev,
    })
}

/// The chain's end after a group.
pub(super) struct End {
    /// The group's first record.
    first: Seq,
    last: Seq,
    hash: [u8; 32],
}

fn signed(key: &SigningKey, journal: &str, end: &End) -> Entry {
    let checkpoint = Checkpoint {
        journal,
        through_seq: end.last,
        hash: &end.hash,
    };
    Entry {
        task: None,
        exec: None,
        event: Event::JournalCheckpoint {
            journal: journal.to_owned(),
            through_seq: end.last,
            hash: hex(&end.hash),
            signature: key.sign(&checkpoint),
            public_key: key.public().to_string(),
        },
    }
}

/// A time as the database keeps it; good until the year 2262.
pub(crate) fn nanoseconds(time: jiff::Timestamp) -> i64 {
    i64::try_from(time.as_nanosecond()).unwrap_or(i64::MAX)
}

/// Keeps `starts`, in the same transaction as the record: what stands there has begun and has not ended.
fn note_start_or_end(db: &Connection, draft: &Draft, seq: i64) -> rusqlite::Result<()> {
    let Some(task) = &draft.task else { return Ok(()) };
    match draft.kind {
        "task.admitted" | "task.started" => db
            .prepare_cached("INSERT OR IGNORE INTO starts (id, task, seq) VALUES (?1, ?1, ?2)")?
            .execute(params![task.as_slice(), seq])?,
        "task.finished" | "task.refused" => db
            .prepare_cached("DELETE FROM starts WHERE id = ?1")?
            .execute(params![task.as_slice()])?,
        _ => 0,
    };
    Ok(())
}

fn write_json(json: &mut Vec<u8>, seq: i64, draft: &Draft, place: &Place) {
    use std::io::Write;
    json.clear();
    let version = crate::audit::record::VERSION;
    let Place { host, boot, user } = place;
    // They were made to need no escaping, or are escaped.
    write!(
        json,
        r#"{{"version":{version},"seq":{seq},"time":"{time:.9}","host":"{host}","boot":"{boot}","#,
        time = draft.time
    )
    .expect("a Vec takes all that is written");
    if let Some(user) = user {
        json.extend_from_slice(b"\"user\":");
        json.extend_from_slice(user.as_bytes());
        json.push(b',');
    }
    json.extend_from_slice(&draft.tail[1..]);
}

fn identity(path: &Path) -> Result<(u64, u64), JournalError> {
    use std::os::unix::fs::MetadataExt;
    match std::fs::metadata(path) {
        Ok(file) => Ok((file.dev(), file.ino())),
        Err(_) => Err(JournalError::Replaced { path: path.to_owned() }),
    }
}

fn make_folder(folder: &Path) -> Result<(), JournalError> {
    use std::os::unix::fs::DirBuilderExt;
    let made = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(folder);
    made.and_then(|()| {
        // The database and its two companions are made by SQLite with the mode of the database: it must be there first.
        use std::os::unix::fs::OpenOptionsExt;
        let path = folder.join(FILE);
        if path.exists() {
            return Ok(());
        }
        std::fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o600)
            .open(path)
            .map(drop)
    })
    .map_err(|source| JournalError::Folder {
        folder: folder.to_owned(),
        source: Arc::new(source),
    })
}

/// The host's name, kept to the characters that RFC 1123 allows: it goes unescaped into every record.
pub(crate) fn host_name() -> String {
    let name = nix::unistd::gethostname().unwrap_or_default();
    let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '-' | '.' | '_');
    name.to_string_lossy()
        .chars()
        .map(|c| if plain(c) { c } else { '?' })
        .collect()
}

/// Names this boot of the kernel: times of one boot can be compared, those of two need not agree.
fn boot_id() -> String {
    let text = std::fs::read_to_string("/proc/sys/kernel/random/boot_id").unwrap_or_default();
    text.trim()
        .chars()
        .filter(|c| c.is_ascii_hexdigit() || *c == '-')
        .collect()
}

#[cfg(test)]
pub(super) const NEWEST_VERSION: i64 = VERSIONS.len() as i64;
