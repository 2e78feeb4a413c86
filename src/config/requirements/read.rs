//! A file of requirements as it stands.

use std::path::Path;

use super::Requirements;
use crate::config::layers::endpoint;
use crate::document::{Document, Faults, Sited, Table, Value, Word};
use crate::task::spec;

pub(super) fn from_toml(text: &str, file: &str) -> Result<Requirements, Faults> {
    Document::parse(text, file)?.read(|root| {
        if let Some(version) = root.required("version", "version = 1") {
            version.integer(1..=1);
        }
        let mut demands = Requirements::default();
        if let Some(table) = root.table("task") {
            demands.backends = words(&table, "backends");
            demands.runtimes = texts(&table, "runtimes", plain);
            demands.images = texts(&table, "images", plain);
            demands.users = words(&table, "users");
            demands.accept_partial = words_or_none(&table, "accept_partial");
        }
        if let Some(table) = root.table("roots") {
            demands.writable = folders(&table, "writable");
            demands.readable = folders(&table, "readable");
            demands.denied = folders(&table, "denied");
            demands.git = words(&table, "git");
        }
        if let Some(table) = root.table("limits") {
            let limits = spec::limits(&table);
            demands.memory = limits.memory;
            demands.cpus = limits.cpus;
            demands.pids = limits.pids;
            demands.disk = limits.disk;
            demands.task_time = limits.task_time;
            demands.exec_time = limits.exec_time;
            demands.output = limits.output;
            demands.approval_time = table.parsed("approval_time", spec::time);
        }
        if let Some(table) = root.table("network") {
            demands.modes = words(&table, "modes");
            demands.allow = texts_or_none(&table, "allow", spec::host_pattern);
            demands.deny = table.list("deny", spec::host_pattern);
            demands.unknown = words(&table, "unknown");
        }
        if let Some(table) = root.table("gate") {
            demands.rules = table.list("rules", absolute);
            demands.unmatched = words(&table, "unmatched");
            demands.reviewers = words(&table, "reviewers");
        }
        if let Some(table) = root.table("journal") {
            demands.sync = table.word("sync");
        }
        if let Some(table) = root.table("otlp") {
            demands.endpoints = texts(&table, "endpoints", endpoint);
            demands.endpoint_required = table.flag("required");
        }
        if let Some(table) = root.table("identity") {
            demands.identity_users = texts(&table, "users", plain);
            demands.identity_groups = texts(&table, "groups", plain);
        }
        if let Some(table) = root.table("codex") {
            demands.codex = table
                .required("requirements", "a path")
                .and_then(|value| value.parsed(absolute));
        }
        demands
    })
}

/// A list that something must be on: an empty one would refuse all, and is more likely a slip than meant.
fn texts(
    table: &Table<'_>,
    key: &'static str,
    read: impl Fn(&str) -> Result<String, String>,
) -> Option<Sited<Vec<String>>> {
    let list = texts_or_none(table, key, read)?;
    if list.value.is_empty() {
        table.value(key)?.fault("an empty list would refuse every task");
    }
    Some(list)
}

/// A list whose emptiness means something: no host at all.
fn texts_or_none(
    table: &Table<'_>,
    key: &'static str,
    read: impl Fn(&str) -> Result<String, String>,
) -> Option<Sited<Vec<String>>> {
    let value = table.value(key)?;
    let list = value
        .list()?
        .iter()
        .filter_map(|text| text.parsed(&read))
        .map(|text| text.value)
        .collect();
    Some(Sited::new(list, value.origin()))
}

fn words<T: Word>(table: &Table<'_>, key: &'static str) -> Option<Sited<Vec<T>>> {
    let value: Value<'_> = table.value(key)?;
    if value.list()?.is_empty() {
        value.fault("an empty list would refuse every task");
    }
    words_of(&value)
}

/// A list whose emptiness means something: nothing is accepted.
fn words_or_none<T: Word>(table: &Table<'_>, key: &'static str) -> Option<Sited<Vec<T>>> {
    words_of(&table.value(key)?)
}

fn words_of<T: Word>(value: &Value<'_>) -> Option<Sited<Vec<T>>> {
    let list = value.list()?;
    let words = list.iter().filter_map(|word| word.parsed(T::read));
    Some(Sited::new(words.map(|word| word.value).collect(), value.origin()))
}

fn folders(table: &Table<'_>, key: &'static str) -> Option<Sited<Vec<String>>> {
    texts_or_none(table, key, absolute)
}

fn plain(text: &str) -> Result<String, String> {
    match text.is_empty() || text.chars().any(char::is_control) {
        true => Err("the text is empty or holds a control character".to_owned()),
        false => Ok(text.to_owned()),
    }
}

/// Not relative to anything, and not a way around anything.
fn absolute(text: &str) -> Result<String, String> {
    let path = crate::path::HostPath::new(Path::new(text)).map_err(|error| error.to_string())?;
    Ok(path.to_string())
}
