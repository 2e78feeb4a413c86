//! A task or a span of time as one page: what ran when, what it used, what was asked and denied. As JSON, and as an HTML
//! file that needs nothing but itself.

mod html;
mod plot;

use std::collections::BTreeMap;

use serde::Serialize;
use serde_json::Value;

use super::journal::{JournalError, Reader, Seq, Stored};
use super::query::{self, Filter, command_line};

pub use html::html;

/// The most commands on one page; those with the most CPU time are kept, the rest is counted.
const EXECS_LIMIT: usize = 1000;

/// How many steps the time of a report is cut into.
const STEPS: usize = 240;

/// The most moments of one kind that are told one by one.
const MOMENTS_LIMIT: usize = 1000;

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
    /// What the harness told: prompts, tool calls, answers.
    pub events: Vec<Moment>,
    pub series: Series,
    pub totals: Totals,
}

/// What was used over time, a value a step from `from` on; over all commands, those without a line too.
#[derive(Debug, Clone, Default, PartialEq, Serialize)]
pub struct Series {
    pub step_seconds: f64,
    /// Each command's CPU time, spread over the time that it ran.
    pub cpus: Vec<f64>,
    /// The peaks of all commands that ran, added up: no more than this was in use.
    pub memory_bytes: Vec<f64>,
    /// Each connection's bytes, spread over its life.
    pub sent_bytes_per_second: Vec<f64>,
    pub received_bytes_per_second: Vec<f64>,
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
    /// Why, in the caller's words.
    pub reason: String,
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
    // First from when to when, so that the second walk knows where on the axis each record lies.
    query::each(reader, filter, |record| {
        report.stretch(&record);
        true
    })?;
    report.series = Series::over(report.to - report.from);
    query::each(reader, filter, |record| {
        // What was written since the first walk lies beyond the end.
        let known = record.time as f64 / 1e9 <= report.to;
        if known {
            report.add(&record, &mut tasks);
        }
        true
    })?;
    report.tasks = tasks.into_values().collect();
    report.keep_the_largest();
    Ok(report)
}

impl Series {
    fn over(seconds: f64) -> Self {
        Self {
            step_seconds: seconds.max(1e-3) / STEPS as f64,
            cpus: vec![0.0; STEPS],
            memory_bytes: vec![0.0; STEPS],
            sent_bytes_per_second: vec![0.0; STEPS],
            received_bytes_per_second: vec![0.0; STEPS],
        }
    }

    /// The part of each step that the time from `start` on takes up; the parts are of `seconds` as a whole.
    fn steps(&self, start: f64, seconds: f64) -> impl Iterator<Item = (usize, f64)> + use<> {
        let step = self.step_seconds;
        let end = start + seconds.max(step * 1e-6);
        let whole = end - start;
        let last = STEPS - 1;
        let first = ((start / step).max(0.0) as usize).min(last);
        let until = ((end / step).max(0.0) as usize).min(last);
        (first..=until).map(move |n| {
            let (from, to) = (n as f64 * step, (n + 1) as f64 * step);
            // What lies beyond the axis belongs to its ends.
            let from = if n == 0 { start.min(from) } else { from };
            let to = if n == last { end.max(to) } else { to };
            (n, ((end.min(to) - start.max(from)) / whole).clamp(0.0, 1.0))
        })
    }
}

impl Report {
    /// Makes room for the record on the axis of time.
    fn stretch(&mut self, record: &Stored) {
        let time = record.time as f64 / 1e9;
        let began = match record.kind.as_str() {
            "exec.finished" | "egress.finished" => {
                time - record.value()["wall_seconds"].as_f64().unwrap_or(0.0).max(0.0)
            }
            _ => time,
        };
        if self.to == 0.0 {
            self.from = began;
        }
        self.from = self.from.min(began);
        self.to = self.to.max(time);
    }

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
            "agent.event" => {
                let what = format!("{} {}", word("/name"), word("/call_id"));
                self.events
                    .push(moment(what.trim_end().to_owned(), beginning(&value["body"])));
            }
            "egress.finished" => {
                let amount = |name: &str| value[name].as_f64().unwrap_or(0.0).max(0.0);
                let wall = amount("wall_seconds");
                for (n, part) in self.series.steps(time - wall - self.from, wall) {
                    let rate = part / self.series.step_seconds;
                    self.series.sent_bytes_per_second[n] += amount("bytes_sent") * rate;
                    self.series.received_bytes_per_second[n] += amount("bytes_received") * rate;
                }
                self.totals.network_bytes += (amount("bytes_sent") + amount("bytes_received")) as u64;
            }
            "egress.judged" if value["decision"] == "deny" => {
                let server = format!("{}:{}", word("/server_address"), value["server_port"]);
                self.denied_connections.push(moment(server, word("/reason")));
            }
            _ => {}
        }
        for moments in [
            &mut self.refused,
            &mut self.approvals,
            &mut self.denied_connections,
            &mut self.events,
        ] {
            moments.truncate(MOMENTS_LIMIT);
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
            reason: value["reason"].as_str().unwrap_or_default().to_owned(),
            start: record.time as f64 / 1e9 - wall_seconds,
            wall_seconds,
            cpu_seconds: amount("/usage/cpu_user_seconds") + amount("/usage/cpu_system_seconds"),
            memory_peak_bytes: number("/usage/memory_peak_bytes"),
            network_bytes: number("/network_bytes_sent") + number("/network_bytes_received"),
        };
        for (n, part) in self.series.steps(exec.start - self.from, exec.wall_seconds) {
            self.series.cpus[n] += exec.cpu_seconds * part / self.series.step_seconds;
            self.series.memory_bytes[n] += exec.memory_peak_bytes as f64;
        }
        self.totals.execs += 1;
        self.totals.failed += u64::from(exec.outcome != "exited" || exec.exit_code != Some(0));
        self.totals.wall_seconds += exec.wall_seconds;
        self.totals.cpu_seconds += exec.cpu_seconds;
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

/// The first words of what a harness told.
fn beginning(body: &Value) -> String {
    const LETTERS: usize = 300;
    let text = match body {
        Value::Null => String::new(),
        Value::String(text) => text.clone(),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
            let said = ["text", "content", "prompt"]
                .iter()
                .find_map(|name| body[*name].as_str());
            said.map_or_else(|| body.to_string(), str::to_owned)
        }
    };
    match text.chars().nth(LETTERS) {
        None => text,
        Some(_) => text.chars().take(LETTERS).chain(['…']).collect(),
    }
}

#[cfg(test)]
mod tests;
