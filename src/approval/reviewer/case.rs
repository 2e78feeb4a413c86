//! What a reviewer is shown of a question.

use std::sync::Arc;

use serde_json::{Value, json};

use crate::approval::{Asked, Subject};
use crate::audit::journal::{Journal, JournalError};
use crate::audit::query::{self, Filter, Take};

/// The request, what the task is for, and what happened in it lately.
#[derive(Debug, Clone)]
pub struct Case {
    pub asked: Arc<Asked>,
    pub task_name: String,
    /// In the user's own words: the one place that can authorize anything.
    pub purpose: Option<String>,
    /// Oldest first.
    pub records: Vec<Value>,
}

/// Records that a reviewer sees: what an agent did in its last few steps.
const RECORDS: usize = 40;

impl Case {
    /// The last records of the task. Blocking.
    pub(in crate::approval) fn records(journal: &Journal, asked: &Asked) -> Result<Vec<Value>, JournalError> {
        let filter = Filter {
            task: Some(asked.task),
            ..Filter::default()
        };
        let records = query::ls(&journal.reader()?, &filter, Take::Newest(RECORDS))?;
        Ok(records.iter().map(|record| record.value()).collect())
    }

    /// The request alone, as data.
    pub fn request(&self) -> Value {
        let asked = &self.asked;
        let subject = match &asked.subject {
            Subject::Command(command) => json!({
                "kind": "command",
                "argv": command.argv,
                "cwd": command.cwd,
                "env": command.env,
                "stdin": command.stdin,
                "tty": command.tty.is_some(),
            }),
            Subject::Host { host, port, protocol } => json!({
                "kind": "network",
                "host": host,
                "port": port,
                "protocol": protocol,
            }),
        };
        let facts: Vec<Value> = asked
            .facts
            .iter()
            .map(|(name, value)| json!({"name": name, "value": value}))
            .collect();
        json!({
            "approval": asked.id,
            "task": asked.task,
            "exec": asked.exec,
            "about": asked.about,
            "subject": subject,
            "facts": facts,
            "reason_for_asking": asked.reason,
            "rules": asked.rules,
        })
    }
}
