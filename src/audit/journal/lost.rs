//! Recovery: what was started and never ended, because belljar or the machine went away, is closed as `lost`.
//!
//! Tasks without an end stand in a table of their own. Which of their execs have none is found by going through what was
//! recorded since such a task began: that takes a while on a long journal, and only after a crash.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;

use jiff::Timestamp;
use rusqlite::{Connection, TransactionBehavior};
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
    /// Cheap when there is nothing to do. Several processes may call it at once; each start is closed by one of them.
    pub fn close_lost(&self, is_alive: &dyn Fn(TaskId) -> bool) -> Result<u64, JournalError> {
        close_lost(&self.folder().join(FILE), &self.inner.place, is_alive)
    }
}

fn close_lost(path: &Path, place: &Place, is_alive: &dyn Fn(TaskId) -> bool) -> Result<u64, JournalError> {
    // Synced at its commit: the sync thread belongs to the writer, and this is no writer's group.
    let mut db = connect_write(path, Sync::Each)?;
    let error = |source: rusqlite::Error| JournalError::Write {
        path: path.to_owned(),
        source: Arc::new(source),
    };
    // Whether a task lives, and what became of it, may take a while to find out: not under the lock.
    let mut lost = tasks(&db).map_err(error)?;
    lost.retain(|id, _| !is_alive(TaskId::from_bytes(*id)));
    if lost.is_empty() {
        return Ok(0);
    }
    let mut walk = Walk::over(lost);
    walk.go_on(&db).map_err(error)?;
    let step = db
        .transaction_with_behavior(TransactionBehavior::Immediate)
        .map_err(error)?;
    // Another process may have closed it, or its end was written after all.
    walk.go_on(&step).map_err(error)?;
    let now = Timestamp::now();
    let mut drafts = Vec::new();
    for (id, task) in walk.in_order() {
        for (exec, start) in task.open_execs() {
            drafts.push(Draft::new(
                &Entry {
                    task: Some(TaskId::from_bytes(*id)),
                    exec: Some(exec),
                    event: exec_lost(&step, task, start).map_err(error)?,
                },
                now,
            )?);
        }
        if !task.ended {
            drafts.push(Draft::new(
                &Entry {
                    task: Some(TaskId::from_bytes(*id)),
                    exec: None,
                    event: task_lost(task),
                },
                now,
            )?);
        }
    }
    store::append(&step, &drafts, place).map_err(error)?;
    step.commit().map_err(error)?;
    Ok(drafts.len() as u64)
}

/// How many tasks and execs have begun and not ended.
pub(super) fn open_starts(db: &Connection) -> rusqlite::Result<u64> {
    let mut walk = Walk::over(tasks(db)?);
    walk.go_on(db)?;
    Ok(walk
        .tasks
        .values()
        .map(|task| u64::from(!task.ended) + task.open_execs().len() as u64)
        .sum())
}

/// A task that has begun and not ended, and what its records say.
#[derive(Default)]
struct Task {
    first: Seq,
    /// Nanoseconds since 1970: of its first record, and of the newest that is no end.
    began: Option<i64>,
    seen: i64,
    /// The numbers of `task.admitted` and `task.started`.
    admitted: Option<Seq>,
    started: Option<Seq>,
    ended: bool,
    /// Execs that were started and refused.
    execs: u64,
    refused: u64,
    /// Those that were judged and have not ended.
    open: HashMap<[u8; 16], Exec>,
}

#[derive(Default)]
struct Exec {
    judged: Option<Seq>,
    /// The number and the time of its start.
    started: Option<(Seq, i64)>,
}

impl Task {
    fn take(&mut self, seq: Seq, time: i64, exec: Option<[u8; 16]>, kind: &str) {
        self.began.get_or_insert(time);
        if !kind.ends_with(".finished") {
            self.seen = time;
        }
        match (kind, exec) {
            ("task.admitted", _) => self.admitted = Some(seq),
            ("task.started", _) => self.started = Some(seq),
            ("task.finished" | "task.refused", _) => self.ended = true,
            ("exec.judged", Some(exec)) => self.open.entry(exec).or_default().judged = Some(seq),
            ("exec.started", Some(exec)) => {
                self.execs += 1;
                self.open.entry(exec).or_default().started = Some((seq, time));
            }
            ("exec.refused", Some(exec)) => {
                self.refused += 1;
                self.open.remove(&exec);
            }
            ("exec.finished", Some(exec)) => {
                self.open.remove(&exec);
            }
            _ => {}
        }
    }

    /// In the order of their starts.
    fn open_execs(&self) -> Vec<(ExecId, &Exec)> {
        let started = self.open.iter().filter(|(_, exec)| exec.started.is_some());
        let mut open: Vec<_> = started.map(|(id, exec)| (ExecId::from_bytes(*id), exec)).collect();
        open.sort_by_key(|(_, exec)| exec.started);
        open
    }

    /// From then to the last that was recorded: it ran for at least so long. A clock that was set back gives 0.
    fn seen_for(&self, since: Option<i64>) -> f64 {
        since.map_or(0.0, |since| self.seen.saturating_sub(since).max(0) as f64 / 1e9)
    }
}

/// Goes through what was recorded since the first of these tasks began.
struct Walk {
    tasks: HashMap<[u8; 16], Task>,
    through: Seq,
}

impl Walk {
    fn over(tasks: HashMap<[u8; 16], Task>) -> Self {
        let first = tasks.values().map(|task| task.first).min().unwrap_or(Seq::MAX);
        Self {
            tasks,
            through: first.saturating_sub(1),
        }
    }

    fn go_on(&mut self, db: &Connection) -> rusqlite::Result<()> {
        let mut statement = db.prepare_cached(
            "SELECT seq, time, task, exec, kind FROM records WHERE seq > ?1 AND task IS NOT NULL ORDER BY seq",
        )?;
        let mut rows = statement.query([i64::try_from(self.through).unwrap_or(i64::MAX)])?;
        while let Some(row) = rows.next()? {
            let seq = row.get::<_, i64>(0)?.unsigned_abs();
            self.through = seq;
            if let Some(task) = self.tasks.get_mut(&row.get::<_, [u8; 16]>(2)?) {
                task.take(seq, row.get(1)?, row.get(3)?, row.get_ref(4)?.as_str()?);
            }
        }
        Ok(())
    }

    fn in_order(&self) -> Vec<(&[u8; 16], &Task)> {
        let mut tasks: Vec<_> = self.tasks.iter().collect();
        tasks.sort_by_key(|(_, task)| task.first);
        tasks
    }
}

/// The tasks without an end. A journal that was not upgraded names execs beside them.
fn tasks(db: &Connection) -> rusqlite::Result<HashMap<[u8; 16], Task>> {
    db.prepare("SELECT task, min(seq) FROM starts GROUP BY task")?
        .query_map([], |row| {
            let task = Task {
                first: row.get::<_, i64>(1)?.unsigned_abs(),
                ..Task::default()
            };
            Ok((row.get(0)?, task))
        })?
        .collect()
}

fn exec_lost(db: &Connection, of: &Task, exec: &Exec) -> rusqlite::Result<Event> {
    let judged = fields(db, exec.judged)?;
    let started = fields(db, exec.started.map(|(seq, _)| seq))?;
    let task = fields(db, of.started)?;
    let admitted = fields(db, of.admitted)?;
    Ok(Event::ExecFinished(Box::new(ExecFinished {
        argv: field(&started, "argv").unwrap_or_default(),
        cwd: field(&started, "cwd").unwrap_or_default(),
        env_names: field(&judged, "env_names").unwrap_or_default(),
        outcome: ExecOutcome::Lost,
        exit_code: None,
        signal: None,
        error: Some(WHY.to_owned()),
        wall_seconds: of.seen_for(exec.started.map(|(_, time)| time)),
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

fn task_lost(task: &Task) -> Event {
    Event::TaskFinished {
        outcome: TaskOutcome::Lost,
        reason: Some(WHY.to_owned()),
        wall_seconds: task.seen_for(task.began),
        execs: task.execs,
        refused: task.refused,
        usage: Usage::NONE,
        network_bytes_sent: None,
        network_bytes_received: None,
        left_files: Vec::new(),
    }
}

/// The fields of a record; `Null` when there is none.
fn fields(db: &Connection, seq: Option<Seq>) -> rusqlite::Result<Value> {
    let Some(seq) = seq else { return Ok(Value::Null) };
    db.prepare_cached("SELECT json FROM records WHERE seq = ?1")?
        .query_row([seq as i64], |row| {
            Ok(serde_json::from_str(row.get_ref(0)?.as_str()?).unwrap_or(Value::Null))
        })
}

fn field<T: DeserializeOwned>(record: &Value, name: &str) -> Option<T> {
    T::deserialize(record.get(name)?).ok()
}
