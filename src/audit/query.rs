//! Questions to the journal: which records, one exec whole, and what comes next.

use jiff::Timestamp;
use rusqlite::ToSql;
use serde_json::Value;
use uuid::Uuid;

use super::journal::{JournalError, Of, Order, Reader, Search, Seq, Stored, nanoseconds};
use crate::id::{ExecId, TaskId};

/// Which records are asked for; what is `None` or empty asks for nothing.
#[derive(Debug, Clone, Default)]
pub struct Filter {
    pub task: Option<TaskId>,
    pub exec: Option<ExecId>,
    /// Whole kinds (`exec.finished`) or all of a family (`exec`).
    pub kinds: Vec<String>,
    /// `exited`, `lost`, …: of execs and tasks.
    pub outcome: Option<String>,
    /// The machine that wrote the record, or the server that a connection went to.
    pub host: Option<String>,
    /// The id of a rule that matched.
    pub rule: Option<String>,
    /// Who approved or refused, or ran the task.
    pub person: Option<String>,
    pub since: Option<Timestamp>,
    pub until: Option<Timestamp>,
    /// Only records after this one.
    pub after: Seq,
}

/// How many, and from which end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Take {
    /// The first ones.
    Oldest(usize),
    /// The last ones, given oldest first.
    Newest(usize),
}

/// The records that the filter names, oldest first.
pub fn ls(reader: &Reader, filter: &Filter, take: Take) -> Result<Vec<Stored>, JournalError> {
    let (count, order) = match take {
        Take::Oldest(count) => (count, Order::OldestFirst),
        Take::Newest(count) => (count, Order::NewestFirst),
    };
    let mut found = Vec::new();
    if count > 0 {
        walk(reader, filter, order, |record| {
            found.push(record);
            found.len() < count
        })?;
    }
    if order == Order::NewestFirst {
        found.reverse();
    }
    Ok(found)
}

/// Hands the records of the filter over one after the other, oldest first, until `take` says false.
pub fn each(reader: &Reader, filter: &Filter, take: impl FnMut(Stored) -> bool) -> Result<(), JournalError> {
    walk(reader, filter, Order::OldestFirst, take)
}

fn walk(reader: &Reader, filter: &Filter, order: Order, take: impl FnMut(Stored) -> bool) -> Result<(), JournalError> {
    let (condition, values) = filter.sql();
    let values: Vec<&dyn ToSql> = values.iter().map(|value| &**value).collect();
    let of = match (filter.exec, filter.task) {
        (Some(exec), _) => Of::Exec(Uuid::from_bytes(*exec.as_bytes())),
        (None, Some(task)) => Of::Task(Uuid::from_bytes(*task.as_bytes())),
        (None, None) => {
            let direction = match order {
                Order::OldestFirst => "ASC",
                Order::NewestFirst => "DESC",
            };
            return reader.each(&format!("{condition} ORDER BY seq {direction}"), &values, take);
        }
    };
    let search = Search {
        range: filter.after.saturating_add(1)..=Seq::MAX,
        order,
        condition: &condition,
        values: &values,
    };
    reader.each_of(of, &search, take)
}

/// All that the journal says about one exec.
#[derive(Debug, Clone, serde::Serialize)]
pub struct Whole {
    pub exec: String,
    pub task: Option<String>,
    /// Its own records, in order: judged, asked, answered, started, finished.
    pub records: Vec<Value>,
    /// Connections of its task while it ran, which may be those of another exec that ran beside it.
    pub egress: Vec<Value>,
    /// What the harness said of the same tool call: the intention beside the deed.
    pub events: Vec<Value>,
}

/// One exec whole; `None` when the journal has no record of it.
pub fn show(reader: &Reader, exec: ExecId) -> Result<Option<Whole>, JournalError> {
    let search = |of, range, condition, values: &[&dyn ToSql]| {
        let mut found = Vec::new();
        let search = Search {
            range,
            order: Order::OldestFirst,
            condition,
            values,
        };
        reader.each_of(of, &search, |record| {
            found.push(record);
            true
        })?;
        Ok::<_, JournalError>(found)
    };
    let own = search(Of::Exec(Uuid::from_bytes(*exec.as_bytes())), 1..=Seq::MAX, "1", &[])?;
    let (Some(first), Some(last)) = (own.first(), own.last()) else {
        return Ok(None);
    };
    let egress = match first.task {
        Some(task) => search(Of::Apart(task), first.seq..=last.seq, "kind LIKE 'egress.%'", &[])?,
        None => Vec::new(),
    };
    let call = own
        .iter()
        .find_map(|record| record.value()["call_id"].as_str().map(str::to_owned));
    let events = match (first.task, call) {
        (Some(task), Some(call)) => search(
            Of::Apart(task),
            1..=Seq::MAX,
            "kind = 'agent.event' AND json_extract(json, '$.call_id') = ?1",
            &[&call],
        )?,
        _ => Vec::new(),
    };
    Ok(Some(Whole {
        exec: exec.to_string(),
        task: first.task.map(|task| task.to_string()),
        records: own.iter().map(Stored::value).collect(),
        egress: egress.iter().map(Stored::value).collect(),
        events: events.iter().map(Stored::value).collect(),
    }))
}

/// The ids of tasks or execs (`column`) whose text is or ends in `end`, at most two: more would not help to choose.
pub(crate) fn ids_ending_in(reader: &Reader, column: &'static str, end: &str) -> Result<Vec<Uuid>, JournalError> {
    if let Ok(id) = end.parse::<Uuid>() {
        let of = if column == "task" { Of::Task(id) } else { Of::Exec(id) };
        let mut known = Vec::new();
        let search = Search {
            range: 1..=Seq::MAX,
            order: Order::OldestFirst,
            condition: "1",
            values: &[],
        };
        reader.each_of(of, &search, |_| {
            known.push(id);
            false
        })?;
        return Ok(known);
    }
    let digits = end.replace('-', "").to_ascii_uppercase();
    if digits.is_empty() || !digits.bytes().all(|digit| digit.is_ascii_hexdigit()) {
        return Ok(Vec::new());
    }
    reader.ids_ending_in(column, &digits)
}

/// The name of the program that a record is about, without its folder.
pub(crate) fn executable(record: &Value) -> Option<&str> {
    record.get("argv")?.get(0)?.as_str()?.rsplit('/').next()
}

/// The command that a record is about, as a shell would read it; empty where there is none.
pub(crate) fn command_line(record: &Value) -> String {
    let words = record["argv"].as_array().map(Vec::as_slice).unwrap_or_default();
    let words: Vec<&str> = words.iter().filter_map(Value::as_str).collect();
    // A NUL has no quotes in any shell.
    shlex::try_join(words.iter().copied()).unwrap_or_else(|_| words.join(" "))
}

impl Filter {
    fn sql(&self) -> (String, Vec<Box<dyn ToSql>>) {
        let mut conditions = vec!["1".to_owned()];
        let mut values: Vec<Box<dyn ToSql>> = Vec::new();
        let mut add = |condition: &str, value: Box<dyn ToSql>| {
            values.push(value);
            conditions.push(condition.replace('?', &format!("?{}", values.len())));
        };
        if self.after > 0 {
            add("seq > ?", Box::new(self.after as i64));
        }
        if let Some(task) = self.task {
            add("task = ?", Box::new(task.as_bytes().to_vec()));
        }
        if let Some(exec) = self.exec {
            add("exec = ?", Box::new(exec.as_bytes().to_vec()));
        }
        if let Some(since) = self.since {
            add("time >= ?", Box::new(nanoseconds(since)));
        }
        if let Some(until) = self.until {
            add("time < ?", Box::new(nanoseconds(until)));
        }
        if !self.kinds.is_empty() {
            let list = serde_json::to_string(&self.kinds).expect("strings become JSON");
            add(
                "EXISTS (SELECT 1 FROM json_each(?) WHERE kind = value OR substr(kind, 1, length(value) + 1) = value || '.')",
                Box::new(list),
            );
        }
        if let Some(outcome) = &self.outcome {
            add("json_extract(json, '$.outcome') = ?", Box::new(outcome.clone()));
        }
        if let Some(host) = &self.host {
            add(
                "? IN (json_extract(json, '$.host'), json_extract(json, '$.server_address'))",
                Box::new(host.clone()),
            );
        }
        if let Some(rule) = &self.rule {
            add(
                "? IN (SELECT json_extract(value, '$.id') FROM json_each(records.json, '$.rules') UNION SELECT json_extract(records.json, '$.rule'))",
                Box::new(rule.clone()),
            );
        }
        if let Some(person) = &self.person {
            add(
                "(? IN (json_extract(json, '$.approver.name'), json_extract(json, '$.user')) OR task IN (SELECT task FROM records WHERE kind = 'task.admitted' \
                 AND json_extract(json, '$.identity.user') = ?))",
                Box::new(person.clone()),
            );
        }
        (conditions.join(" AND "), values)
    }
}
