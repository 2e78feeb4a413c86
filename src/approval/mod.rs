//! Asking: a question of the gate goes to whoever may answer it, with a time limit, and the answer is remembered as far as it holds.
//!
//! Called by `exec::pipeline` for commands and by `egress` for hosts. The way to a person is an [`Ask`]: the terminal of `run`, a
//! reviewer, or [`Nobody`], who always says no.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::audit::journal::{Journal, JournalError};
use crate::audit::record::{Entry, Event};
use crate::id::{ApprovalId, ExecId, TaskId};
use crate::policy::{Answer, Approver, ApproverKind, Digest, RuleMatch, Scope};

/// What somebody is asked.
#[derive(Debug, Clone)]
pub struct Asked {
    pub id: ApprovalId,
    pub task: TaskId,
    pub exec: Option<ExecId>,
    /// What it is about, on one line: a command as a shell would read it, or a host.
    pub about: String,
    /// Further facts, a name and a value each.
    pub facts: Vec<(String, String)>,
    /// Why somebody is asked.
    pub reason: String,
    pub rules: Vec<RuleMatch>,
    /// What the answer is bound to.
    pub digest: Digest,
}

/// A future that an [`Ask`] returns.
pub type Answering<'a> = Pin<Box<dyn Future<Output = (Answer, Approver)> + Send + 'a>>;

/// Somebody who can be asked. Dropping the future withdraws the question; it must answer each question once.
pub trait Ask: Send + Sync {
    fn ask(&self, asked: Asked) -> Answering<'_>;
}

/// There is nobody to ask: the answer is no, with that reason.
pub struct Nobody {
    /// Why there is nobody, as `no terminal`.
    pub why: String,
}

impl Ask for Nobody {
    fn ask(&self, _: Asked) -> Answering<'_> {
        let reason = format!("this needs an approval, and nobody can be asked ({})", self.why);
        Box::pin(async move { (Answer::Deny(reason), nobody(&self.why)) })
    }
}

fn nobody(why: &str) -> Approver {
    Approver {
        kind: ApproverKind::Nobody,
        name: "nobody".to_owned(),
        via: why.to_owned(),
    }
}

/// The desk of one task: puts questions, keeps the time, remembers answers, writes the records.
pub struct Desk {
    ask: Arc<dyn Ask>,
    journal: Journal,
    time: Duration,
    /// What was approved for the whole task, by what the approval is bound to.
    grants: Mutex<HashMap<Digest, Approver>>,
}

impl Desk {
    pub fn new(ask: Arc<dyn Ask>, journal: Journal, time: Duration) -> Desk {
        Desk {
            ask,
            journal,
            time,
            grants: Mutex::default(),
        }
    }

    /// Puts a question and waits for its answer, at most as long as the task allows. Both are in the journal before this returns.
    pub async fn put(&self, asked: Asked) -> Result<(Answer, Approver), JournalError> {
        let entry = |event| Entry {
            task: Some(asked.task),
            exec: asked.exec,
            event,
        };
        if let Some(by) = self
            .grants
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .get(&asked.digest)
            .cloned()
        {
            let approver = Approver {
                kind: ApproverKind::Grant,
                name: by.name,
                via: "granted for the task".to_owned(),
            };
            return Ok((Answer::Approve(Scope::Task), approver));
        }
        let event = Event::ApprovalAsked {
            approval: asked.id,
            about: asked.about.clone(),
            reason: asked.reason.clone(),
            rules: asked.rules.clone(),
        };
        self.journal.append(entry(event)).await?;
        let started = Instant::now();
        let (answer, approver) = match tokio::time::timeout(self.time, self.ask.ask(asked.clone())).await {
            Ok(answered) => answered,
            Err(_) => {
                let reason = format!("nobody answered within {} s", self.time.as_secs());
                (Answer::Deny(reason), nobody("time ran out"))
            }
        };
        let (text, scope, reason) = match &answer {
            Answer::Approve(scope) => ("approve", Some(format!("{scope:?}").to_lowercase()), None),
            Answer::Deny(reason) => ("deny", None, Some(reason.clone())),
        };
        let event = Event::ApprovalAnswered {
            approval: asked.id,
            answer: text.to_owned(),
            scope,
            approver: approver.clone(),
            reason,
            wait_seconds: started.elapsed().as_secs_f64(),
        };
        self.journal.append(entry(event)).await?;
        if let Answer::Approve(Scope::Task | Scope::Session) = answer {
            self.grants
                .lock()
                .unwrap_or_else(PoisonError::into_inner)
                .insert(asked.digest, approver.clone());
        }
        Ok((answer, approver))
    }
}
