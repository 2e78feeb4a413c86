//! Records as OTLP logs and spans.
//!
//! Trace ids come from the task's `traceparent` or from the task's id, span ids from the ids of task and exec: the same record
//! always gives the same log and span, so that what arrives twice can be recognised.

use std::collections::HashMap;

use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::common::v1::{AnyValue, ArrayValue, InstrumentationScope, KeyValue};
use opentelemetry_proto::tonic::logs::v1::{LogRecord, SeverityNumber};
use opentelemetry_proto::tonic::resource::v1::Resource;
use opentelemetry_proto::tonic::trace::v1::{Span, Status, span, status};
use serde_json::Value;
use sha2::{Digest, Sha256};
use uuid::Uuid;

use super::names;
use crate::audit::journal::{JournalError, Of, Order, Reader, Search, Seq, Stored, host_name};
use crate::audit::verify::{hex, unhex};

/// The longest text in one attribute. Collectors take 4 MiB in a message, and a record that none takes would hold up all that
/// come after it; the whole text stays in the journal.
const TEXT_LIMIT: usize = 16 << 10;

/// The most elements of one list.
const LIST_LIMIT: usize = 512;

/// Tasks whose trace is remembered; then it is read from the journal again.
const TRACES_LIMIT: usize = 1024;

/// Makes logs and spans out of one journal's records.
pub(super) struct Converter {
    journal: String,
    traces: HashMap<Uuid, Trace>,
}

/// Where a task's span belongs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Trace {
    id: [u8; 16],
    parent: Option<[u8; 8]>,
}

impl Converter {
    pub fn new(journal: String) -> Self {
        Self {
            journal,
            traces: HashMap::new(),
        }
    }

    pub fn resource(&self) -> Resource {
        Resource {
            attributes: vec![
                text(names::SERVICE_NAME, "belljar"),
                text(names::SERVICE_VERSION, env!("CARGO_PKG_VERSION")),
                text(names::SERVICE_INSTANCE_ID, &self.journal),
                text(names::HOST_NAME, &host_name()),
            ],
            ..Resource::default()
        }
    }

    /// The log of a record: its kind as event name, typed attributes, no body.
    pub fn log(&mut self, reader: &Reader, record: &Stored) -> Result<LogRecord, JournalError> {
        let value = record.value();
        let mut attributes = self.attributes(record, &value);
        attributes.push(text(names::LOG_RECORD_UID, &format!("{}/{}", self.journal, record.seq)));
        attributes.push(text(names::HASH, &hex(&record.hash)));
        let severity = severity(record, &value);
        let (trace_id, span_id) = match record.task {
            Some(task) => {
                let trace = self.trace(reader, task)?;
                let own = exec_parent(&value);
                let trace_id = own.map_or(trace.id, |(id, _)| id);
                (trace_id.to_vec(), span_of(record.exec.unwrap_or(task)).to_vec())
            }
            None => (Vec::new(), Vec::new()),
        };
        Ok(LogRecord {
            time_unix_nano: unsigned(record.time),
            observed_time_unix_nano: unsigned(record.time),
            severity_number: severity as i32,
            severity_text: match severity {
                SeverityNumber::Warn => "WARN".to_owned(),
                _ => "INFO".to_owned(),
            },
            attributes,
            trace_id,
            span_id,
            event_name: record.kind.clone(),
            ..LogRecord::default()
        })
    }

    /// The span that ends with this record, if one does: of an exec (a client span of the command line) or of a task.
    pub fn span(&mut self, reader: &Reader, record: &Stored) -> Result<Option<Span>, JournalError> {
        let (Some(task), true) = (
            record.task,
            matches!(record.kind.as_str(), "exec.finished" | "task.finished"),
        ) else {
            return Ok(None);
        };
        let value = record.value();
        let trace = self.trace(reader, task)?;
        let (trace_id, parent, id, name, kind) = match record.exec {
            Some(exec) => {
                let (trace_id, parent) = exec_parent(&value).unwrap_or((trace.id, span_of(task)));
                let name = executable(&value).unwrap_or("exec").to_owned();
                (trace_id, Some(parent), span_of(exec), name, span::SpanKind::Client)
            }
            None => (
                trace.id,
                trace.parent,
                span_of(task),
                "task".to_owned(),
                span::SpanKind::Internal,
            ),
        };
        let wall = value
            .get("wall_seconds")
            .and_then(Value::as_f64)
            .unwrap_or(0.0)
            .max(0.0);
        let failed = error_type(&value);
        Ok(Some(Span {
            trace_id: trace_id.to_vec(),
            span_id: id.to_vec(),
            parent_span_id: parent.map(|id| id.to_vec()).unwrap_or_default(),
            name,
            kind: kind as i32,
            start_time_unix_nano: unsigned(record.time).saturating_sub((wall * 1e9) as u64),
            end_time_unix_nano: unsigned(record.time),
            attributes: self.attributes(record, &value),
            // An exec that joined its caller's trace still belongs to its task.
            links: match record.exec {
                Some(_) if trace_id != trace.id => vec![span::Link {
                    trace_id: trace.id.to_vec(),
                    span_id: span_of(task).to_vec(),
                    ..span::Link::default()
                }],
                Some(_) | None => Vec::new(),
            },
            status: failed.map(|message| Status {
                message,
                code: status::StatusCode::Error as i32,
            }),
            ..Span::default()
        }))
    }

    fn attributes(&self, record: &Stored, value: &Value) -> Vec<KeyValue> {
        let mut made = Attributes::default();
        made.push(names::SEQ, Any::IntValue(record.seq as i64));
        if let Some(task) = record.task {
            made.text(names::TASK, &task.to_string());
        }
        if let Some(exec) = record.exec {
            made.text(names::EXEC, &exec.to_string());
        }
        if let Some(fields) = value.as_object() {
            for (name, value) in fields {
                match name.as_str() {
                    "version" | "seq" | "time" | "task" | "exec" | "kind" => {}
                    "host" => made.field(names::HOST_NAME, value),
                    "boot" => made.field(names::BOOT, value),
                    "rules" => made.rules(value),
                    "controls" => made.controls(value),
                    // Of any shape: as text, so that one task's keys do not become attributes of all.
                    "task_spec" | "body" => made.text(&names::attribute(name), &value.to_string()),
                    _ => made.path(name, value),
                }
            }
        }
        if let Some(name) = executable(value) {
            made.text(names::EXECUTABLE_NAME, name);
        }
        if let Some(error) = error_type(value) {
            made.text(names::ERROR_TYPE, &error);
        }
        made.finish()
    }

    fn trace(&mut self, reader: &Reader, task: Uuid) -> Result<Trace, JournalError> {
        if let Some(trace) = self.traces.get(&task) {
            return Ok(*trace);
        }
        let mut admitted = None;
        let search = Search {
            range: 1..=Seq::MAX,
            order: Order::OldestFirst,
            condition: "kind = 'task.admitted'",
            values: &[],
        };
        reader.each_of(Of::Apart(task), &search, |record| {
            admitted = Some(record);
            false
        })?;
        let parent = admitted
            .as_ref()
            .and_then(|record| traceparent(record.value().get("traceparent")?.as_str()?));
        let trace = match parent {
            Some((id, parent)) => Trace {
                id,
                parent: Some(parent),
            },
            None => Trace {
                id: *task.as_bytes(),
                parent: None,
            },
        };
        if self.traces.len() >= TRACES_LIMIT {
            self.traces.clear();
        }
        self.traces.insert(task, trace);
        Ok(trace)
    }
}

pub(super) fn scope() -> InstrumentationScope {
    InstrumentationScope {
        name: names::SCOPE.to_owned(),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..InstrumentationScope::default()
    }
}

/// Reads a W3C `traceparent`: `00-<32 hex>-<16 hex>-<2 hex>`, ids not all zero.
fn traceparent(text: &str) -> Option<([u8; 16], [u8; 8])> {
    let mut parts = text.trim().split('-');
    let (version, trace, parent, flags) = (parts.next()?, parts.next()?, parts.next()?, parts.next()?);
    if version.len() != 2 || version == "ff" || flags.len() != 2 || (version == "00" && parts.next().is_some()) {
        return None;
    }
    let mut id = [0; 16];
    let mut span = [0; 8];
    unhex(trace, &mut id)?;
    unhex(parent, &mut span)?;
    (id != [0; 16] && span != [0; 8]).then_some((id, span))
}

fn exec_parent(value: &Value) -> Option<([u8; 16], [u8; 8])> {
    // A task's own is in its `task.admitted` and makes its trace; here it is about the exec.
    value.get("argv")?;
    traceparent(value.get("traceparent")?.as_str()?)
}

/// The span of a task or an exec: half a digest of its id, never zero in practice, as a span id must not be.
fn span_of(id: Uuid) -> [u8; 8] {
    let digest = Sha256::digest(id.as_bytes());
    let mut span = [0; 8];
    span.copy_from_slice(&digest[..8]);
    span
}

fn executable(value: &Value) -> Option<&str> {
    let word = value.get("argv")?.get(0)?.as_str()?;
    word.rsplit('/').next()
}

/// What went wrong, from a closed set and the exit code; nothing when all is well.
fn error_type(value: &Value) -> Option<String> {
    match value.get("outcome")?.as_str()? {
        "finished" => None,
        "exited" => match value.get("exit_code").and_then(Value::as_i64) {
            Some(0) | None => None,
            Some(code) => Some(code.to_string()),
        },
        outcome => Some(outcome.to_owned()),
    }
}

fn severity(record: &Stored, value: &Value) -> SeverityNumber {
    let word = |name: &str| value.get(name).and_then(Value::as_str).unwrap_or_default();
    let refused = record.kind.ends_with(".refused")
        || word("judgement") == "deny"
        || word("decision") == "deny"
        || word("answer") == "deny";
    let ended_badly = !matches!(word("outcome"), "" | "exited" | "finished" | "stopped" | "canceled");
    if refused || ended_badly {
        SeverityNumber::Warn
    } else {
        SeverityNumber::Info
    }
}

fn unsigned(nanoseconds: i64) -> u64 {
    u64::try_from(nanoseconds).unwrap_or(0)
}

pub(super) fn text(key: &str, value: &str) -> KeyValue {
    pair(key, Any::StringValue(value.to_owned()))
}

pub(super) fn pair(key: &str, value: Any) -> KeyValue {
    KeyValue {
        key: key.to_owned(),
        value: Some(AnyValue { value: Some(value) }),
        ..KeyValue::default()
    }
}

#[derive(Default)]
struct Attributes {
    made: Vec<KeyValue>,
    cut: Vec<String>,
}

impl Attributes {
    fn push(&mut self, key: &str, value: Any) {
        self.made.push(pair(key, value));
    }

    fn text(&mut self, key: &str, value: &str) {
        let value = self.short(key, value);
        self.push(key, Any::StringValue(value));
    }

    fn short(&mut self, key: &str, value: &str) -> String {
        if value.len() <= TEXT_LIMIT {
            return value.to_owned();
        }
        self.note_cut(key);
        value[..value.floor_char_boundary(TEXT_LIMIT)].to_owned()
    }

    fn note_cut(&mut self, key: &str) {
        if self.cut.last().map(String::as_str) != Some(key) {
            self.cut.push(key.to_owned());
        }
    }

    /// One field of a record; an object becomes one attribute a leaf.
    fn path(&mut self, path: &str, value: &Value) {
        match value {
            Value::Object(fields) => {
                for (name, value) in fields {
                    self.path(&format!("{path}.{name}"), value);
                }
            }
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::String(_) | Value::Array(_) => {
                self.field(&names::attribute(path), value);
            }
        }
    }

    fn field(&mut self, key: &str, value: &Value) {
        let any = match value {
            Value::Null => return,
            Value::Bool(flag) => Any::BoolValue(*flag),
            Value::Number(number) if names::AS_TEXT.contains(&key) => Any::StringValue(number.to_string()),
            Value::Number(number) => match number.as_i64() {
                Some(whole) => Any::IntValue(whole),
                None => Any::DoubleValue(number.as_f64().unwrap_or(f64::NAN)),
            },
            Value::String(string) => Any::StringValue(self.short(key, string)),
            Value::Array(values) => self.list(key, values.iter().map(as_text)),
            Value::Object(_) => Any::StringValue(self.short(key, &value.to_string())),
        };
        self.push(key, any);
    }

    /// A list of texts, which together are no longer than one text may be.
    fn list(&mut self, key: &str, texts: impl Iterator<Item = String>) -> Any {
        let mut values = Vec::new();
        let mut room = TEXT_LIMIT;
        for text in texts {
            if values.len() == LIST_LIMIT || room == 0 {
                self.note_cut(key);
                break;
            }
            let short = if text.len() > room {
                self.note_cut(key);
                text[..text.floor_char_boundary(room)].to_owned()
            } else {
                text
            };
            room = room.saturating_sub(short.len().max(1));
            values.push(AnyValue {
                value: Some(Any::StringValue(short)),
            });
        }
        Any::ArrayValue(ArrayValue { values })
    }

    fn rules(&mut self, rules: &Value) {
        let Some(rules) = rules.as_array().filter(|rules| !rules.is_empty()) else {
            return;
        };
        let word = |rule: &Value, name: &str| rule.get(name).map(as_text).unwrap_or_default();
        let strictness = |rule: &&Value| match word(rule, "decision").as_str() {
            "forbidden" => 2,
            "prompt" => 1,
            _ => 0,
        };
        if let Some(rule) = rules.iter().rev().max_by_key(strictness) {
            self.text(names::RULE_ID, &word(rule, "id"));
            self.text(names::RULE_SET, &word(rule, "file"));
            if rule.get("justification").is_some() {
                self.text(names::RULE_DESCRIPTION, &word(rule, "justification"));
            }
        }
        for (key, field) in [(names::RULE_IDS, "id"), (names::RULE_DECISIONS, "decision")] {
            let list = self.list(key, rules.iter().map(|rule| word(rule, field)));
            self.push(key, list);
        }
    }

    fn controls(&mut self, controls: &Value) {
        let controls = controls.as_array().map(Vec::as_slice).unwrap_or_default();
        for (key, enforced) in [
            (names::ENFORCED_FULL, "full"),
            (names::ENFORCED_PARTIAL, "partial"),
            (names::ENFORCED_NONE, "none"),
        ] {
            let names = controls
                .iter()
                .filter(|control| control.get("enforced").and_then(Value::as_str) == Some(enforced))
                .map(|control| control.get("control").map(as_text).unwrap_or_default());
            let list = self.list(key, names);
            self.push(key, list);
        }
    }

    fn finish(mut self) -> Vec<KeyValue> {
        if !self.cut.is_empty() {
            let cut = std::mem::take(&mut self.cut);
            let list = self.list(names::CUT, cut.into_iter());
            self.push(names::CUT, list);
        }
        self.made
    }
}

/// A JSON value as text: a string without its quotes.
fn as_text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => value.to_string(),
    }
}
