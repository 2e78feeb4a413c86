//! How much is run, asked, refused and used: sums over a span of the journal.

use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, HashMap};

use serde::Serialize;
use serde_json::Value;
use uuid::Uuid;

use super::journal::{JournalError, Of, Order, Reader, Search, Seq, Stored};
use super::query::{self, Filter, executable};

/// What the sums are of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum By {
    Day,
    User,
    Image,
    Executable,
    Rule,
    /// The server of a connection.
    Host,
}

/// The sums of one day, user, image, …
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Row {
    pub key: String,
    /// Commands that were started and ended.
    pub execs: u64,
    /// Of them, those that did not exit with 0.
    pub failed: u64,
    /// Commands and connections that needed an approval.
    pub asked: u64,
    pub refused: u64,
    pub wall_seconds: f64,
    pub cpu_seconds: f64,
    /// Of the command that had the most.
    pub memory_peak_bytes: u64,
    /// Connections and names that were decided on; one that was asked about is counted when it is answered.
    pub connections: u64,
    pub connections_denied: u64,
    pub bytes_sent: u64,
    pub bytes_received: u64,
}

/// The sums over the records of the filter, those with the most CPU time, then with the most commands, first; by day in order.
pub fn stats(reader: &Reader, filter: &Filter, by: By) -> Result<Vec<Row>, JournalError> {
    let mut rows: BTreeMap<String, Row> = BTreeMap::new();
    let mut tasks = Tasks::default();
    let mut failed = None;
    query::each(reader, filter, |record| {
        let value = record.value();
        match keys(reader, &mut tasks, by, &record, &value) {
            Ok(keys) => {
                for key in keys {
                    let row = rows.entry(key.clone()).or_default();
                    row.key = key;
                    row.add(&record.kind, &value);
                }
                true
            }
            Err(error) => {
                failed = Some(error);
                false
            }
        }
    })?;
    if let Some(error) = failed {
        return Err(error);
    }
    let mut rows: Vec<Row> = rows.into_values().filter(Row::says_something).collect();
    if by != By::Day {
        rows.sort_by(|a, b| b.cpu_seconds.total_cmp(&a.cpu_seconds).then(b.execs.cmp(&a.execs)));
    }
    Ok(rows)
}

impl Row {
    fn add(&mut self, kind: &str, value: &Value) {
        let number = |pointer: &str| value.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
        let amount = |pointer: &str| value.pointer(pointer).and_then(Value::as_f64).unwrap_or(0.0);
        match kind {
            "exec.judged" if value["judgement"] == "ask" => self.asked += 1,
            "exec.refused" => self.refused += 1,
            "exec.finished" => {
                self.execs += 1;
                self.failed += u64::from(value["outcome"] != "exited" || value["exit_code"] != 0);
                self.wall_seconds += amount("/wall_seconds");
                self.cpu_seconds += amount("/usage/cpu_user_seconds") + amount("/usage/cpu_system_seconds");
                self.memory_peak_bytes = self.memory_peak_bytes.max(number("/usage/memory_peak_bytes"));
            }
            "egress.judged" if value["decision"] == "ask" => self.asked += 1,
            "egress.judged" => {
                self.connections += 1;
                self.connections_denied += u64::from(value["decision"] == "deny");
            }
            "egress.finished" => {
                self.bytes_sent += number("/bytes_sent");
                self.bytes_received += number("/bytes_received");
            }
            _ => {}
        }
    }

    fn says_something(&self) -> bool {
        self.execs + self.asked + self.refused + self.connections + self.bytes_sent + self.bytes_received > 0
    }
}

/// Where a record counts; a command that several rules matched counts for each of them.
fn keys(
    reader: &Reader,
    tasks: &mut Tasks,
    by: By,
    record: &Stored,
    value: &Value,
) -> Result<Vec<String>, JournalError> {
    let text = |value: &Value| value.as_str().map(str::to_owned);
    let one = match by {
        By::Day => Some(record.timestamp().strftime("%Y-%m-%d").to_string()),
        By::User => tasks.of(reader, record.task)?.map(|task| task.user.clone()),
        By::Image => tasks.of(reader, record.task)?.map(|task| task.image.clone()),
        By::Executable => tasks.executable(record, value),
        By::Host => text(&value["server_address"]),
        By::Rule => {
            let matched = value["rules"].as_array().map(Vec::as_slice).unwrap_or_default();
            let mut ids: Vec<String> = matched.iter().filter_map(|rule| text(&rule["id"])).collect();
            ids.extend(text(&value["rule"]).filter(|_| record.kind.starts_with("egress.")));
            ids.sort();
            ids.dedup();
            return Ok(ids);
        }
    };
    Ok(one.into_iter().collect())
}

/// Who ran a task, and in what; read once a task. And what each exec runs that has not ended yet.
#[derive(Default)]
struct Tasks {
    known: HashMap<Uuid, About>,
    running: HashMap<Uuid, String>,
}

struct About {
    user: String,
    image: String,
}

impl Tasks {
    /// The program that a record is about; of a connection, the one whose exec wanted it.
    fn executable(&mut self, record: &Stored, value: &Value) -> Option<String> {
        let exec = record.exec?;
        let Some(own) = executable(value) else {
            return self.running.get(&exec).cloned();
        };
        match record.kind.as_str() {
            "exec.started" => drop(self.running.insert(exec, own.to_owned())),
            "exec.finished" => drop(self.running.remove(&exec)),
            _ => {}
        }
        Some(own.to_owned())
    }

    fn of(&mut self, reader: &Reader, task: Option<Uuid>) -> Result<Option<&About>, JournalError> {
        let Some(task) = task else { return Ok(None) };
        match self.known.entry(task) {
            Entry::Occupied(known) => Ok(Some(known.into_mut())),
            Entry::Vacant(place) => Ok(Some(place.insert(About::read(reader, task)?))),
        }
    }
}

impl About {
    fn read(reader: &Reader, task: Uuid) -> Result<Self, JournalError> {
        let mut records = Vec::new();
        let search = Search {
            range: 1..=Seq::MAX,
            order: Order::OldestFirst,
            condition: "kind IN ('task.admitted', 'task.started')",
            values: &[],
        };
        reader.each_of(Of::Apart(task), &search, |record| {
            records.push(record);
            // Nothing more is said of it later.
            records.last().is_none_or(|record| record.kind != "task.started")
        })?;
        let find = |pointer: &str| {
            let values = records.iter().map(Stored::value);
            let mut found = values.filter_map(|value| Some(value.pointer(pointer)?.as_str()?.to_owned()));
            found.next().unwrap_or_else(|| "unknown".to_owned())
        };
        Ok(Self {
            user: find("/identity/user"),
            image: find("/image"),
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::journal::{Journal, JournalOptions};
    use crate::audit::record::{self, Event};
    use crate::audit::samples;
    use crate::id::{ExecId, TaskId};

    #[test]
    fn a_connection_counts_once_and_for_the_program_that_wanted_it() {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), JournalOptions::default()).unwrap();
        let (task, exec) = (TaskId::new(), ExecId::new());
        let write = |event| {
            let entry = record::Entry {
                task: Some(task),
                exec: Some(exec),
                event,
            };
            journal.append_blocking(entry).unwrap();
        };
        let judged = |word: &str| Event::EgressJudged {
            host: "example.org".into(),
            port: 443,
            protocol: "https_connect".into(),
            method: None,
            path: None,
            decision: word.into(),
            rule: "unknown".into(),
            reason: "not in the list".into(),
            address: None,
        };
        write(Event::ExecStarted {
            argv: vec!["/usr/bin/make".into()],
            cwd: "/".into(),
            tty: false,
            approver: None,
        });
        write(judged("ask"));
        write(judged("deny"));
        write(judged("allow"));
        write(Event::ExecFinished(Box::new(samples::exec_finished())));
        let reader = journal.reader().unwrap();
        for (by, key) in [
            (By::Executable, "make"),
            (By::Host, "example.org"),
            (By::Rule, "unknown"),
        ] {
            let rows = stats(&reader, &Filter::default(), by).unwrap();
            let row = rows.iter().find(|row| row.key == key).unwrap();
            assert_eq!(
                (row.asked, row.connections, row.connections_denied),
                (1, 2, 1),
                "by {by:?}"
            );
        }
    }
}
