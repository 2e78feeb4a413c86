//! What is asked, and what may be said to it.

use jiff::Timestamp;

use crate::id::{ApprovalId, ExecId, TaskId};
use crate::policy::amend::Amendment;
use crate::policy::{Approver, Command, Decision, Digest, RuleMatch, Scope};

/// What somebody is asked.
#[derive(Debug, Clone)]
pub struct Asked {
    pub id: ApprovalId,
    pub task: TaskId,
    pub exec: Option<ExecId>,
    pub subject: Subject,
    /// What it is about, on one line: a command as a shell would read it, or a host.
    pub about: String,
    /// Further facts, a name and a value each.
    pub facts: Vec<(String, String)>,
    /// Why somebody is asked.
    pub reason: String,
    pub rules: Vec<RuleMatch>,
    /// Path and digest of files that a command names and that the agent can write.
    pub files: Vec<String>,
    /// What the answer is bound to.
    pub digest: Digest,
    /// The rule that a yes could be remembered as.
    pub offer: Option<Amendment>,
}

/// What it is about, for programs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Subject {
    Command(Command),
    Host { host: String, port: u16, protocol: String },
}

impl Asked {
    /// Whether a rule reserves it for a person.
    pub fn person_only(&self) -> bool {
        self.rules.iter().any(|rule| rule.person_only)
    }

    /// The rule that this reply would be remembered as.
    pub(super) fn rule(&self, reply: &Reply) -> Option<Amendment> {
        let offer = self.offer.clone()?;
        let decision = match reply {
            Reply::Approve(_) => Decision::Allow,
            Reply::Deny { .. } => Decision::Forbidden,
        };
        Some(Amendment { decision, ..offer })
    }
}

/// What somebody says.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Reply {
    Approve(Scope),
    Deny { scope: Scope, reason: Option<String> },
}

impl Reply {
    pub fn deny(reason: impl Into<String>) -> Self {
        Self::Deny {
            scope: Scope::Once,
            reason: Some(reason.into()),
        }
    }

    pub fn scope(&self) -> Scope {
        match self {
            Self::Approve(scope) | Self::Deny { scope, .. } => *scope,
        }
    }

    pub(super) fn once(self) -> Self {
        match self {
            Self::Approve(_) => Self::Approve(Scope::Once),
            Self::Deny { reason, .. } => Self::Deny {
                scope: Scope::Once,
                reason,
            },
        }
    }

    /// `approve` or `deny`, as it stands in records.
    pub fn word(&self) -> &'static str {
        match self {
            Self::Approve(_) => "approve",
            Self::Deny { .. } => "deny",
        }
    }
}

/// A question that waits.
#[derive(Debug, Clone)]
pub struct OpenQuestion {
    pub asked: std::sync::Arc<Asked>,
    pub since: Timestamp,
    /// When it becomes a no.
    pub until: Timestamp,
    /// How many requests wait for this one answer.
    pub waiting: usize,
    /// How far a yes may reach.
    pub scopes: Vec<Scope>,
    /// The rule that a yes could be remembered as, and its file.
    pub rule: Option<(String, String)>,
}

/// What became of an answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settled {
    /// How far it holds.
    pub scope: Scope,
    /// What went otherwise than was asked for: a rule that could not be added.
    pub note: Option<String>,
}

/// Why an answer does not count.
#[derive(Debug, thiserror::Error)]
pub enum AnswerError {
    #[error("there is no open question {id}")]
    NoSuchQuestion { id: ApprovalId },
    #[error("{} answered \"{answer}\" first ({})", by.name, by.via)]
    AlreadyAnswered { by: Approver, answer: &'static str },
    #[error("{why}")]
    NotYours { why: &'static str },
    #[error("an approval may not hold for the {scope} here")]
    Scope { scope: &'static str },
    #[error("no rule can be offered for this: it would allow too much, or would not be enough")]
    NoRule,
    #[error("the answer could not be recorded, so it does not count")]
    NotRecorded,
}

/// As it stands in records and messages.
pub(super) fn scope_word(scope: Scope) -> &'static str {
    match scope {
        Scope::Once => "once",
        Scope::Task => "task",
        Scope::Session => "session",
        Scope::Rule => "rule",
    }
}
