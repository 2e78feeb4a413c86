//! Records as people read them: one aligned line each, and one exec on a page.

use std::fmt::Write as _;
use std::io::Write;

use serde_json::Value;

use crate::audit::journal::Stored;
use crate::audit::query::{Whole, command_line};
use crate::cli::table;
use crate::task::limits::Bytes;

/// One record: number, time, the ends of the ids of task and exec, kind, and what happened.
pub fn line(record: &Stored) -> String {
    let value = record.value();
    format!(
        "{:>8}  {:.3}  {}  {}  {:<18}  {}",
        record.seq,
        record.timestamp(),
        end_of(record.task),
        end_of(record.exec),
        shown(&record.kind),
        summary(&record.kind, &value)
    )
    .trim_end()
    .to_owned()
}

/// The last 8 characters: the first ones of an id are its time, and the same in all of a minute.
fn end_of(id: Option<uuid::Uuid>) -> String {
    match id {
        Some(id) => id.to_string().split_off(28),
        None => "-       ".to_owned(),
    }
}

/// What happened, in a few words.
pub fn summary(kind: &str, value: &Value) -> String {
    let word = |name: &str| {
        value
            .pointer(name)
            .and_then(Value::as_str)
            .map(shown)
            .unwrap_or_default()
    };
    let number = |name: &str| value.pointer(name).and_then(Value::as_u64).unwrap_or(0);
    let server = || format!("{}:{}", word("/server_address"), number("/server_port"));
    match kind {
        "task.admitted" => spaced(&[&word("/name"), &word("/purpose")]),
        "task.refused" => spaced(&[&word("/name"), &list(value.get("reasons"), "; ")]),
        "task.started" => spaced(&[
            &word("/image"),
            &format!("on {} {}", word("/backend"), word("/runtime")),
            &format!("in {}", seconds(value, "/start_seconds")),
        ]),
        "task.finished" => spaced(&[
            &word("/outcome"),
            &format!("after {}", seconds(value, "/wall_seconds")),
            &format!("{} execs, {} refused", number("/execs"), number("/refused")),
            &word("/reason"),
        ]),
        "sandbox.enforced" => {
            let controls = value.get("controls").and_then(Value::as_array);
            let count = |enforced: &str| {
                controls.map_or(0, |controls| {
                    controls
                        .iter()
                        .filter(|control| control["enforced"] == enforced)
                        .count()
                })
            };
            format!(
                "full {}, partial {}, none {}",
                count("full"),
                count("partial"),
                count("none")
            )
        }
        "exec.judged" => spaced(&[&word("/judgement"), &command(value), &rules(value), &reason(value)]),
        "exec.refused" => spaced(&[&command(value), &rules(value), &reason(value)]),
        "exec.started" => spaced(&[&command(value), &by(value)]),
        "exec.finished" => spaced(&[&ended(value), &used(value), &command(value)]),
        "approval.asked" => spaced(&[&word("/about"), &reason(value)]),
        "approval.answered" => spaced(&[
            &word("/answer"),
            &word("/scope"),
            &by(value),
            &format!("after {}", seconds(value, "/wait_seconds")),
            &reason(value),
        ]),
        "egress.judged" => spaced(&[
            &word("/decision"),
            &word("/protocol"),
            &server(),
            &format!("[{}]", word("/rule")),
            &reason(value),
        ]),
        "egress.finished" => spaced(&[
            &word("/protocol"),
            &server(),
            &format!("sent {}", size(number("/bytes_sent"))),
            &format!("received {}", size(number("/bytes_received"))),
            &seconds(value, "/wall_seconds"),
            &word("/error"),
        ]),
        "agent.event" => spaced(&[&word("/name"), &word("/call_id")]),
        "secret.used" => spaced(&[&word("/name"), &format!("for {}", word("/server_address"))]),
        "rule.added" => spaced(&[&word("/rule"), &format!("to {}", word("/file")), &by(value)]),
        "config.loaded" => match list(value.get("files"), " ") {
            none if none.is_empty() => "what is built in".to_owned(),
            files => files,
        },
        "journal.opened" => spaced(&[
            &format!("belljar {}", word("/program_version")),
            &format!("process {}", number("/pid")),
            &format!("{} open starts", number("/open_starts")),
        ]),
        "journal.pruned" => spaced(&[
            &format!("{} to {}", number("/first_seq"), number("/last_seq")),
            &format!("for their {}", word("/reason")),
            &word("/archive"),
        ]),
        "journal.archive_removed" => spaced(&[&word("/archive"), &format!("for its {}", word("/reason"))]),
        "journal.checkpoint" => spaced(&[&format!("through {}", number("/through_seq")), &word("/hash")]),
        _ => String::new(),
    }
}

/// One exec on a page.
pub fn whole(whole: &Whole, out: &mut dyn Write) -> std::io::Result<()> {
    writeln!(out, "exec  {}", whole.exec)?;
    if let Some(task) = &whole.task {
        writeln!(out, "task  {task}")?;
    }
    for record in &whole.records {
        page(record, out)?;
    }
    for record in &whole.events {
        page(record, out)?;
    }
    if !whole.egress.is_empty() {
        writeln!(out, "\nconnections of the task meanwhile")?;
        for record in &whole.egress {
            let kind = record["kind"].as_str().unwrap_or_default();
            writeln!(
                out,
                "  {}  {}",
                shown(record["time"].as_str().unwrap_or_default()),
                summary(kind, record)
            )?;
        }
    }
    Ok(())
}

/// A record with all its fields, one a line.
fn page(record: &Value, out: &mut dyn Write) -> std::io::Result<()> {
    let word = |name: &str| record.get(name).and_then(Value::as_str).map(shown).unwrap_or_default();
    writeln!(out, "\n{}  {}  record {}", word("kind"), word("time"), record["seq"])?;
    let Some(fields) = record.as_object() else {
        return Ok(());
    };
    for (name, value) in fields {
        match name.as_str() {
            "version" | "seq" | "time" | "host" | "boot" | "user" | "task" | "exec" | "kind" => {}
            "argv" => writeln!(out, "  command: {}", command(record))?,
            "rules" => rules_page(value, out)?,
            _ => leaves(name, value, out)?,
        }
    }
    Ok(())
}

fn leaves(path: &str, value: &Value, out: &mut dyn Write) -> std::io::Result<()> {
    match value {
        Value::Null => Ok(()),
        Value::Object(fields) => {
            for (name, value) in fields {
                leaves(&format!("{path}.{name}"), value, out)?;
            }
            Ok(())
        }
        Value::Array(values) if values.is_empty() => Ok(()),
        Value::Array(values) if values.iter().all(|value| !value.is_object()) => {
            writeln!(out, "  {}: {}", shown(path), list(Some(value), " "))
        }
        Value::String(text) => writeln!(out, "  {}: {}", shown(path), shown(text)),
        Value::Bool(_) | Value::Number(_) | Value::Array(_) => {
            writeln!(out, "  {}: {}", shown(path), shown(&value.to_string()))
        }
    }
}

fn rules_page(rules: &Value, out: &mut dyn Write) -> std::io::Result<()> {
    for rule in rules.as_array().map(Vec::as_slice).unwrap_or_default() {
        let word = |name: &str| rule.get(name).and_then(Value::as_str).map(shown).unwrap_or_default();
        writeln!(
            out,
            "  rule: {} {} at {}:{} {}",
            word("id"),
            word("decision"),
            word("file"),
            rule["line"],
            word("justification")
        )?;
    }
    Ok(())
}

fn ended(value: &Value) -> String {
    let outcome = value["outcome"].as_str().map(shown).unwrap_or_default();
    let how = match (value["exit_code"].as_i64(), value["signal"].as_i64()) {
        (Some(code), _) => format!("{outcome} {code}"),
        (None, Some(signal)) => format!("{outcome} by signal {signal}"),
        (None, None) => outcome,
    };
    format!("{how} after {}", seconds(value, "/wall_seconds"))
}

fn used(value: &Value) -> String {
    let number = |name: &str| value.pointer(name).and_then(Value::as_f64).unwrap_or(0.0);
    let cpu = number("/usage/cpu_user_seconds") + number("/usage/cpu_system_seconds");
    let mut text = format!("cpu {}", table::seconds(cpu));
    if let Some(bytes) = value.pointer("/usage/memory_peak_bytes").and_then(Value::as_u64) {
        let _ = write!(text, " mem {}", size(bytes));
    }
    let output = number("/stdout_bytes") + number("/stderr_bytes");
    let _ = write!(text, " out {}", size(output as u64));
    text
}

fn command(value: &Value) -> String {
    shown(&command_line(value))
}

fn rules(value: &Value) -> String {
    let rules = value.get("rules").and_then(Value::as_array);
    let ids: Vec<String> = rules
        .map(Vec::as_slice)
        .unwrap_or_default()
        .iter()
        .map(|rule| rule["id"].as_str().map(shown).unwrap_or_default())
        .collect();
    if ids.is_empty() {
        return String::new();
    }
    format!("[{}]", ids.join(" "))
}

fn by(value: &Value) -> String {
    match value.pointer("/approver/name").and_then(Value::as_str) {
        Some(name) => format!("by {}", shown(name)),
        None => String::new(),
    }
}

fn reason(value: &Value) -> String {
    match value.get("reason").and_then(Value::as_str) {
        Some(reason) if !reason.is_empty() => format!("({})", shown(reason)),
        Some(_) | None => String::new(),
    }
}

fn list(value: Option<&Value>, between: &str) -> String {
    let values = value.and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let texts: Vec<String> = values
        .iter()
        .map(|value| match value {
            Value::String(text) => shown(text),
            Value::Null | Value::Bool(_) | Value::Number(_) | Value::Array(_) | Value::Object(_) => {
                shown(&value.to_string())
            }
        })
        .collect();
    texts.join(between)
}

fn spaced(parts: &[&str]) -> String {
    let parts: Vec<&str> = parts.iter().copied().filter(|part| !part.is_empty()).collect();
    parts.join(" ")
}

fn seconds(value: &Value, pointer: &str) -> String {
    table::seconds(value.pointer(pointer).and_then(Value::as_f64).unwrap_or(0.0))
}

pub fn size(bytes: u64) -> String {
    Bytes(bytes).to_string()
}

/// Text from a record, safe on a terminal: control characters and those that change how others show are escaped.
pub fn shown(text: &str) -> String {
    let mut clean = String::with_capacity(text.len());
    for c in text.chars() {
        if c.is_control() || is_deceptive(c) {
            clean.extend(c.escape_unicode());
        } else {
            clean.push(c);
        }
    }
    clean
}

/// Bidirectional controls, zero-width characters and separators that a terminal may take for a new line.
fn is_deceptive(c: char) -> bool {
    matches!(c, '\u{ad}' | '\u{61c}' | '\u{180e}' | '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}'
        | '\u{feff}' | '\u{fff9}'..='\u{fffb}' | '\u{e0000}'..='\u{e007f}')
}
