//! A task or a span of time as one page: what ran when, what it used, what was asked and denied. As JSON, and as an HTML
//! file that needs nothing but itself.

mod html;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::journal::{JournalError, Reader, Seq, Stored};
use super::query::{self, Filter, command_line};

pub use html::html;

/// The most commands on one page; those with the most CPU time are kept, the rest is counted.
const EXECS_LIMIT: usize = 1000;

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Report {
    pub title: String,
    /// Seconds since 1970 of the first and the last record.
    pub from: f64,
    pub to: f64,
    pub tasks: Vec<Task>,
    /// In the order of their starts.
    pub execs: Vec<Exec>,
    /// Commands that are counted in the sums and have no line of their own.
    pub execs_left_out: u64,
    pub refused: Vec<Moment>,
    pub approvals: Vec<Moment>,
    pub denied_connections: Vec<Moment>,
    pub totals: Totals,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Task {
    pub id: String,
    pub name: String,
    pub purpose: String,
    pub user: String,
    pub image: String,
    pub outcome: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Exec {
    pub seq: Seq,
    pub id: String,
    pub command: String,
    pub outcome: String,
    pub exit_code: Option<i64>,
    /// Seconds since 1970.
    pub start: f64,
    pub wall_seconds: f64,
    pub cpu_seconds: f64,
    pub memory_peak_bytes: u64,
    pub network_bytes: u64,
}

/// Something that was said at one time.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Moment {
    pub seq: Seq,
    pub time: f64,
    pub what: String,
    pub why: String,
}

#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Totals {
    pub execs: u64,
    pub failed: u64,
    pub refused: u64,
    pub wall_seconds: f64,
    pub cpu_seconds: f64,
    pub network_bytes: u64,
}

/// Gathers the report over the records of the filter.
pub fn report(reader: &Reader, filter: &Filter, title: &str) -> Result<Report, JournalError> {
    let mut report = Report {
        title: title.to_owned(),
        ..Report::default()
    };
    let mut tasks: BTreeMap<String, Task> = BTreeMap::new();
    query::each(reader, filter, |record| {
        report.add(&record, &mut tasks);
        true
    })?;
    report.tasks = tasks.into_values().collect();
    report.keep_the_largest();
    Ok(report)
}

impl Report {
    fn add(&mut self, record: &Stored, tasks: &mut BTreeMap<String, Task>) {
        let value = record.value();
        let word = |pointer: &str| {
            value
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
                .to_owned()
        };
        let time = record.time as f64 / 1e9;
        if self.from == 0.0 {
            self.from = time;
        }
        self.from = self.from.min(time);
        self.to = self.to.max(time);
        let moment = |what: String, why: String| Moment {
            seq: record.seq,
            time,
            what,
            why,
        };
        if let Some(id) = record.task {
            let task = tasks.entry(id.to_string()).or_insert_with(|| Task {
                id: id.to_string(),
                ..Task::default()
            });
            match record.kind.as_str() {
                "task.admitted" => {
                    task.name = word("/name");
                    task.purpose = word("/purpose");
                    task.user = word("/identity/user");
                }
                "task.started" => task.image = word("/image"),
                "task.finished" => task.outcome = word("/outcome"),
                _ => {}
            }
        }
        match record.kind.as_str() {
            "exec.finished" => self.add_exec(record, &value),
            "exec.refused" => {
                self.totals.refused += 1;
                self.refused.push(moment(command_line(&value), word("/reason")));
            }
            "approval.answered" => {
                let who = format!("{} by {}", word("/answer"), word("/approver/name"));
                self.approvals.push(moment(who, word("/reason")));
            }
            "egress.judged" if value["decision"] == "deny" => {
                let server = format!("{}:{}", word("/server_address"), value["server_port"]);
                self.denied_connections.push(moment(server, word("/reason")));
            }
            _ => {}
        }
    }

    fn add_exec(&mut self, record: &Stored, value: &Value) {
        let amount = |pointer: &str| value.pointer(pointer).and_then(Value::as_f64).unwrap_or(0.0);
        let number = |pointer: &str| value.pointer(pointer).and_then(Value::as_u64).unwrap_or(0);
        let wall_seconds = amount("/wall_seconds").max(0.0);
        let exec = Exec {
            seq: record.seq,
            id: record.exec.map(|id| id.to_string()).unwrap_or_default(),
            command: command_line(value),
            outcome: value["outcome"].as_str().unwrap_or_default().to_owned(),
            exit_code: value["exit_code"].as_i64(),
            start: record.time as f64 / 1e9 - wall_seconds,
            wall_seconds,
            cpu_seconds: amount("/usage/cpu_user_seconds") + amount("/usage/cpu_system_seconds"),
            memory_peak_bytes: number("/usage/memory_peak_bytes"),
            network_bytes: number("/network_bytes_sent") + number("/network_bytes_received"),
        };
        self.from = self.from.min(exec.start);
        self.totals.execs += 1;
        self.totals.failed += u64::from(exec.outcome != "exited" || exec.exit_code != Some(0));
        self.totals.wall_seconds += exec.wall_seconds;
        self.totals.cpu_seconds += exec.cpu_seconds;
        self.totals.network_bytes += exec.network_bytes;
        self.execs.push(exec);
        // A long span must not need more memory than a page can show.
        if self.execs.len() > EXECS_LIMIT * 8 {
            self.keep_the_largest();
        }
    }

    fn keep_the_largest(&mut self) {
        if self.execs.len() > EXECS_LIMIT {
            self.execs.sort_by(|a, b| b.cpu_seconds.total_cmp(&a.cpu_seconds));
            self.execs_left_out += (self.execs.len() - EXECS_LIMIT) as u64;
            self.execs.truncate(EXECS_LIMIT);
        }
        self.execs
            .sort_by(|a, b| a.start.total_cmp(&b.start).then(a.seq.cmp(&b.seq)));
    }
}

#[cfg(test)]
mod tests;
