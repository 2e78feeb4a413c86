//! What is taken out of a record before it is written: secrets in well-known shapes, in the places where they are usually put, and
//! values and patterns that the configuration names.
//!
//! This is the second line: belljar's own secrets are placeholders inside a sandbox and have no way into a record. It finds what
//! a command brings by itself (`curl -u name:password`, `export API_KEY=…`). What is taken out becomes `[redacted]`; the rest
//! of the text stays as it was. No regular expressions: one pass over the text, in time linear to its length.

use std::borrow::Cow;
use std::fmt;
use std::ops::Range;
use std::sync::{Arc, RwLock};

use serde_json::Value;

use super::record::{Entry, Event};
use crate::policy::Digest;

mod shapes;

/// What stands in a record instead of a secret.
pub const MARK: &str = "[redacted]";

/// How much of one event's body is kept: prompts of some ten thousand words. The record travels to collectors that take 4 MiB.
const BODY_LIMIT: usize = 64 << 10;

/// Built-in rules, and what was added to them. Clones share what [`Redactor::hide`] was given.
#[derive(Clone, Default)]
pub struct Redactor {
    patterns: Arc<[Pattern]>,
    values: Arc<RwLock<Vec<String>>>,
}

/// A configured pattern: `acme_live_*` takes out what begins with `acme_live_` and the token that follows.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Pattern {
    before: String,
    after: String,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("\"{pattern}\" is not a redaction pattern: {why}")]
pub struct PatternError {
    pub pattern: String,
    pub why: &'static str,
}

impl Redactor {
    /// The built-in rules and these patterns. Returns every pattern that is wrong.
    pub fn new<'a>(patterns: impl IntoIterator<Item = &'a str>) -> Result<Self, Vec<PatternError>> {
        let mut good = Vec::new();
        let mut bad = Vec::new();
        for pattern in patterns {
            match Pattern::parse(pattern) {
                Ok(pattern) => good.push(pattern),
                Err(error) => bad.push(error),
            }
        }
        if !bad.is_empty() {
            return Err(bad);
        }
        Ok(Self {
            patterns: good.into(),
            values: Arc::default(),
        })
    }

    /// Takes this very value out of all records from now on. Values of fewer than 6 bytes are ignored: they would
    /// be found in everything.
    pub fn hide(&self, value: &str) {
        if value.len() >= 6 {
            self.values
                .write()
                .unwrap_or_else(|poisoned| poisoned.into_inner())
                .push(value.to_owned());
        }
    }

    /// The text without its secrets.
    pub fn text<'a>(&self, text: &'a str) -> Cow<'a, str> {
        let mut hidden = shapes::find(text);
        for pattern in self.patterns.iter() {
            pattern.find(text, &mut hidden);
        }
        for value in self
            .values
            .read()
            .unwrap_or_else(|poisoned| poisoned.into_inner())
            .iter()
        {
            hidden.extend(
                text.match_indices(value.as_str())
                    .map(|(at, found)| at..at + found.len()),
            );
        }
        cut(text, hidden)
    }

    /// Cleans all that a record says in somebody else's words.
    pub fn clean(&self, entry: &mut Entry) {
        match &mut entry.event {
            Event::TaskAdmitted {
                name,
                purpose,
                task_spec,
                requirements_digest: _,
                identity: _,
                traceparent,
            } => {
                self.string(name);
                self.option(purpose);
                self.value(task_spec);
                self.option(traceparent);
            }
            Event::TaskRefused {
                name,
                reasons,
                identity: _,
            } => {
                self.string(name);
                self.strings(reasons);
            }
            Event::TaskStarted { image, .. } => self.string(image),
            Event::TaskFinished { reason, left_files, .. } => {
                self.option(reason);
                self.strings(left_files);
            }
            Event::SandboxEnforced { controls } => {
                controls.iter_mut().for_each(|control| self.option(&mut control.reason))
            }
            Event::ExecJudged {
                argv,
                cwd,
                env_names,
                reason,
                call_id,
                traceparent,
                ..
            } => {
                self.argv(argv);
                self.string(cwd);
                self.strings(env_names);
                self.option(reason);
                self.option(call_id);
                self.option(traceparent);
            }
            Event::ExecRefused { argv, reason, .. } => {
                self.argv(argv);
                self.string(reason);
            }
            Event::ExecStarted { argv, cwd, .. } => {
                self.argv(argv);
                self.string(cwd);
            }
            Event::ExecFinished(end) => {
                self.argv(&mut end.argv);
                self.string(&mut end.cwd);
                self.strings(&mut end.env_names);
                self.option(&mut end.error);
                self.option(&mut end.reason);
                self.option(&mut end.call_id);
                self.option(&mut end.traceparent);
            }
            Event::ApprovalAsked {
                about,
                reason,
                named_files,
                ..
            } => {
                self.string(about);
                self.string(reason);
                self.strings(named_files);
            }
            Event::ApprovalAnswered { reason, opinion, .. } => {
                self.option(reason);
                if let Some(opinion) = opinion {
                    self.option(&mut opinion.rationale);
                }
            }
            Event::EgressJudged {
                host,
                path,
                reason,
                method,
                ..
            } => {
                self.string(host);
                self.option(method);
                self.option(path);
                self.string(reason);
            }
            Event::EgressFinished {
                host, error, method, ..
            } => {
                self.string(host);
                self.option(method);
                self.option(error);
            }
            Event::AgentEvent { name, call_id, body } => {
                self.string(name);
                self.option(call_id);
                self.value(body);
                within_limit(body);
            }
            Event::SecretUsed { host, name, .. } => {
                self.string(host);
                self.string(name);
            }
            Event::RuleAdded { rule, .. } => self.string(rule),
            Event::ConfigLoaded { error, .. } => error.iter_mut().for_each(|text| self.string(text)),
            Event::JournalOpened { .. }
            | Event::JournalPruned { .. }
            | Event::JournalArchiveRemoved { .. }
            | Event::JournalCheckpoint { .. } => {}
        }
    }

    fn string(&self, text: &mut String) {
        if let Cow::Owned(clean) = self.text(text) {
            *text = clean;
        }
    }

    fn has_secret(&self, text: &str) -> bool {
        matches!(self.text(text), Cow::Owned(_))
    }

    fn option(&self, text: &mut Option<String>) {
        if let Some(text) = text {
            self.string(text);
        }
    }

    fn strings(&self, texts: &mut [String]) {
        texts.iter_mut().for_each(|text| self.string(text));
    }

    /// Words of a command: beside each word's own text, a word says what the next one is.
    fn argv(&self, argv: &mut [String]) {
        for at in 0..argv.len() {
            if at > 0 && !argv[at].starts_with('-') {
                match shapes::next_word_is(&argv[at - 1]) {
                    shapes::Next::Secret if !argv[at].is_empty() => {
                        argv[at] = MARK.to_owned();
                        continue;
                    }
                    shapes::Next::UserAndPassword => {
                        if let Some((user, _)) = argv[at].split_once(':') {
                            argv[at] = format!("{user}:{MARK}");
                            continue;
                        }
                    }
                    shapes::Next::Secret | shapes::Next::Plain => {}
                }
            }
            self.string(&mut argv[at]);
        }
    }

    fn value(&self, value: &mut Value) {
        match value {
            Value::Null | Value::Bool(_) | Value::Number(_) => {}
            Value::String(text) => self.string(text),
            Value::Array(values) => {
                if values.iter().all(Value::is_string) {
                    // May be the words of a command.
                    let mut words: Vec<String> = values
                        .drain(..)
                        .map(|word| word.as_str().unwrap_or_default().to_owned())
                        .collect();
                    self.argv(&mut words);
                    values.extend(words.into_iter().map(Value::String));
                } else {
                    values.iter_mut().for_each(|value| self.value(value));
                }
            }
            Value::Object(fields) => {
                let named: Vec<String> = fields.keys().filter(|name| self.has_secret(name)).cloned().collect();
                for name in named {
                    if let Some(value) = fields.remove(&name) {
                        fields.insert(self.text(&name).into_owned(), value);
                    }
                }
                for (name, value) in fields {
                    match value {
                        Value::String(text) if shapes::names_a_secret(name) && !text.is_empty() => {
                            *text = MARK.to_owned();
                        }
                        _ => self.value(value),
                    }
                }
            }
        }
    }
}

impl fmt::Debug for Redactor {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Redactor").finish_non_exhaustive()
    }
}

impl Pattern {
    fn parse(pattern: &str) -> Result<Self, PatternError> {
        let error = |why| PatternError {
            pattern: pattern.to_owned(),
            why,
        };
        let (before, after) = pattern
            .split_once('*')
            .ok_or_else(|| error("it needs one * where the secret stands"))?;
        if after.contains('*') {
            return Err(error("it may have one * only"));
        }
        if before.len() < 3 {
            return Err(error("at least 3 characters must stand before the *"));
        }
        Ok(Self {
            before: before.to_owned(),
            after: after.to_owned(),
        })
    }

    /// The `*` stands for a run of characters as tokens have them, at least one.
    fn find(&self, text: &str, hidden: &mut Vec<Range<usize>>) {
        for (at, _) in text.match_indices(self.before.as_str()) {
            let start = at + self.before.len();
            let run = shapes::token_end(text.as_bytes(), start);
            let end = if self.after.is_empty() {
                run
            } else {
                match text[start..].find(self.after.as_str()) {
                    Some(length) if start + length <= run => start + length,
                    _ => continue,
                }
            };
            if end > start {
                hidden.push(start..end);
            }
        }
    }
}

/// Keeps the beginning of what a harness said at too great length, and says how much it was. Cut after cleaning: half a secret
/// would no longer be known as one.
fn within_limit(body: &mut Value) {
    let text = body.to_string();
    if text.len() > BODY_LIMIT {
        *body = serde_json::json!({
            "cut": true,
            "bytes": text.len(),
            "digest": Digest::of_bytes(text.as_bytes()).to_string(),
            "beginning": text[..text.floor_char_boundary(BODY_LIMIT)],
        });
    }
}

/// Cuts the ranges out, which lie on character borders, and joins those that touch.
fn cut(text: &str, mut hidden: Vec<Range<usize>>) -> Cow<'_, str> {
    if hidden.is_empty() {
        return Cow::Borrowed(text);
    }
    hidden.sort_unstable_by_key(|range| range.start);
    let mut clean = String::with_capacity(text.len());
    let mut at = 0;
    for range in hidden {
        if range.start > at || (range.start == 0 && at == 0) {
            clean.push_str(&text[at..range.start]);
            clean.push_str(MARK);
        }
        at = at.max(range.end);
    }
    clean.push_str(&text[at..]);
    Cow::Owned(clean)
}

#[cfg(test)]
mod tests;
