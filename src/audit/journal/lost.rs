//! Recovery: what was started and never ended, because belljar or the machine went away, is closed as `lost`.

use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, TransactionBehavior, params};
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::store::{self, Draft, Place};
use super::{FILE, Journal, JournalError, Seq, Sync, connect_write};
use crate::audit::record::{Entry, Event, ExecFinished, ExecOutcome, TaskOutcome, Usage};
use crate::id::{ExecId, TaskId};

/// What stands in every record that was made here instead of by whoever saw the end.
const WHY: &str = "belljar or the sandbox went away before the end was seen";

impl Journal {
    /// Closes every start whose task is no longer alive, and returns how many there were.
    ///
    /// Cheap when there is nothing to do: starts without an end stand in a table of their own. Several processes may call it at
    /// once; each start is closed by one of them.
    pub fn close_lost(&self, is_alive: &dyn Fn(TaskId) -> bool) -> Result<u64, JournalError> {
        close_lost(&self.folder().join(FILE), &self.inner.place, is_alive)
    }
}

/// A task or exec that has begun and not ended.
struct Start {
    id: [u8; 16],
    task: TaskId,
    exec: Option<ExecId>,
    seq: Seq,
}

fn close_lost(path: &Path, place: &Place, is_alive: &dyn Fn(TaskId) -> bool) -> Result<u64, JournalError> {
    // Synced at its commit: the sync thread belongs to the writer, and this is no writer's group.
    let mut db = connect_write(path, Sync::Each)?;
    let error = |source: rusqlite::Error| JournalError::Write {
        path: path.to_owned(),
        source: Arc::new(source),
    };
    // Whether a task lives may take a while to find out: not under the lock.
    let mut lost = starts(&db).map_err(error)?;
    lost.retain(|start| !is_alive(start.task));
    if lost.is_empty() {
        return Ok(0);
    }
    let step = db
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(error)?;
    let now = Timestamp::now();
    let mut closed = 0;
    for start in lost {
        if !is_still_open(&step, &start).map_err(error)? {
            continue;
        }
        let event = match start.exec {
            Some(exec) => exec_lost(&step, &start, exec),
            None => task_lost(&step, &start),
        }
        .map_err(error)?;
        let draft = Draft::new(
            &Entry {
                task: Some(start.task),
                exec: start.exec,
                event,
            },
            now,
        )?;
        store::append(&step, &[draft], place).map_err(error)?;
        closed += 1;
    }
    step.commit().map_err(error)?;
    Ok(closed)
}

/// All starts, execs before the tasks that they belong to.
fn starts(db: &Connection) -> rusqlite::Result<Vec<Start>> {
    db.prepare("SELECT id, task, exec, seq FROM starts ORDER BY exec IS NULL, seq")?
        .query_map([], |row| {
            Ok(Start {
                id: row.get(0)?,
                task: TaskId::from_bytes(row.get(1)?),
                exec: row.get::<_, Option<[u8; 16]>>(2)?.map(ExecId::from_bytes),
                seq: row.get::<_, i64>(3)?.unsigned_abs(),
            })
        })?
        .collect()
}

/// Another process may have closed it, or its end was written after all.
fn is_still_open(db: &Connection, start: &Start) -> rusqlite::Result<bool> {
    db.prepare_cached("SELECT count(*) FROM starts WHERE id = ?1 AND seq = ?2")?
        .query_row(params![start.id.as_slice(), start.seq as i64], |row| {
            row.get::<_, i64>(0)
        })
        .map(|count| count > 0)
}

fn exec_lost(db: &Connection, start: &Start, exec: ExecId) -> rusqlite::Result<Event> {
    let judged = newest(db, "exec", exec.as_bytes(), "exec.judged")?;
    let started = newest(db, "exec", exec.as_bytes(), "exec.started")?;
    let task = newest(db, "task", start.task.as_bytes(), "task.started")?;
    let admitted = newest(db, "task", start.task.as_bytes(), "task.admitted")?;
    Ok(Event::ExecFinished(Box::new(ExecFinished {
        argv: field(&started, "argv").unwrap_or_default(),
        cwd: field(&started, "cwd").unwrap_or_default(),
        env_names: field(&judged, "env_names").unwrap_or_default(),
        outcome: ExecOutcome::Lost,
        exit_code: None,
        signal: None,
        error: Some(WHY.to_owned()),
        wall_seconds: seen_for(db, start)?,
        usage: Usage::NONE,
        network_bytes_sent: None,
        network_bytes_received: None,
        stdout_bytes: 0,
        stderr_bytes: 0,
        stdout_digest: None,
        stderr_digest: None,
        image_digest: field(&task, "image_digest"),
        plan_digest: field(&task, "plan_digest"),
        requirements_digest: field(&admitted, "requirements_digest"),
        rules: field(&judged, "rules").unwrap_or_default(),
        approver: field(&started, "approver"),
        reason: field(&judged, "reason"),
        call_id: field(&judged, "call_id"),
        traceparent: field(&judged, "traceparent"),
    })))
}

fn task_lost(db: &Connection, start: &Start) -> rusqlite::Result<Event> {
    let count = |kind: &str| -> rusqlite::Result<u64> {
        db.prepare_cached("SELECT count(*) FROM records WHERE task = ?1 AND kind = ?2")?
            .query_row(params![start.task.as_bytes().as_slice(), kind], |row| {
                row.get::<_, i64>(0)
            })
            .map(i64::unsigned_abs)
    };
    Ok(Event::TaskFinished {
        outcome: TaskOutcome::Lost,
        reason: Some(WHY.to_owned()),
        wall_seconds: seen_for(db, start)?,
        execs: count("exec.started")?,
        refused: count("exec.refused")?,
        usage: Usage::NONE,
        network_bytes_sent: None,
        network_bytes_received: None,
        left_files: Vec::new(),
    })
}

/// From the start to the last that was recorded of the task: it ran for at least so long. A clock that was set back gives 0.
fn seen_for(db: &Connection, start: &Start) -> rusqlite::Result<f64> {
    let nanoseconds: i64 = db
        .prepare_cached(
            "SELECT coalesce(max((SELECT time FROM records WHERE task = ?1 AND kind NOT LIKE '%.finished' ORDER BY seq DESC LIMIT 1) \
             - (SELECT time FROM records WHERE seq = ?2), 0), 0)",
        )?
        .query_row(params![start.task.as_bytes().as_slice(), start.seq as i64], |row| row.get(0))?;
    Ok(nanoseconds as f64 / 1e9)
}

/// The newest record of this kind, with its fields; `Null` when there is none.
fn newest(db: &Connection, column: &str, id: &[u8; 16], kind: &str) -> rusqlite::Result<Value> {
    let sql = format!("SELECT json FROM records WHERE {column} = ?1 AND kind = ?2 ORDER BY seq DESC LIMIT 1");
    let mut statement = db.prepare_cached(&sql)?;
    let mut rows = statement.query(params![id.as_slice(), kind])?;
    let Some(row) = rows.next()? else {
        return Ok(Value::Null);
    };
    Ok(serde_json::from_str(&row.get::<_, String>(0)?).unwrap_or(Value::Null))
}

fn field<T: DeserializeOwned>(record: &Value, name: &str) -> Option<T> {
    T::deserialize(record.get(name)?).ok()
}
