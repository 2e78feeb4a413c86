//! Asking: a question of the gate goes to whoever may answer it, with a time limit, and the answer is remembered as far as it holds.
//!
//! ```text
//!  exec ───┐               ┌─▶ the reviewer: a program, a model or rules; for once only, never where a person is wanted
//!          ├─put─▶ [Desk] ─┼─▶ the person at the terminal of `run`, by an [Ask]
//!  egress ─┘  one queue    └─▶ `belljar approvals`, and a harness that may, by [`Desk::answer`]
//! ```
//!
//! Called by `exec::pipeline` for commands and by `supervisor` for hosts. All ways to an answer are open at once and the first one
//! counts. Each question that was asked has exactly one answer in the journal, be it that it was withdrawn.
//!
//! An answer holds once, for the task, for the session or as a rule. It is bound to the digest of argv, cwd, environment, stdin
//! source, image and roots ([`place`]): the same words elsewhere are another question. A **session** is one boot of this machine, one
//! user's state folder and one name, which a harness may give (`--session`); what was answered for it ends with the boot or
//! after [`session::KEPT`], whichever comes first.
//!
//! How much a person is asked is theirs to bear over all of their tasks ([`fatigue`]).
//!
//! What is no boundary: whoever runs as the task's user outside of the sandbox can answer as that user. What runs inside cannot
//! reach any of this.

#![forbid(unsafe_code)]

mod desk;
mod fatigue;
mod file;
mod place;
mod question;
pub mod reviewer;
pub mod session;

use std::future::Future;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use crate::path::HostPath;
use crate::policy::amend::{AmendError, Amendment};
use crate::policy::{Approver, ApproverKind, Scope};

pub use desk::{Change, Desk, Waiting, Watch};
pub use fatigue::Bounds;
pub use place::place;
pub use question::{AnswerError, Asked, OpenQuestion, Reply, Settled, Subject};
pub use session::Session;

use reviewer::{PATIENCE, Review};

/// A future that an [`Ask`] returns.
pub type Answering<'a> = Pin<Box<dyn Future<Output = Result<(Reply, Approver), Unasked>> + Send + 'a>>;

/// Somebody who can be asked. Dropping the future withdraws the question.
pub trait Ask: Send + Sync {
    fn ask(&self, question: OpenQuestion) -> Answering<'_>;
}

/// Why there was nobody to ask, as `there is no terminal`.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Unasked {
    pub why: String,
}

/// There is nobody to ask.
pub struct Nobody {
    pub why: String,
}

impl Ask for Nobody {
    fn ask(&self, _: OpenQuestion) -> Answering<'_> {
        let why = self.why.clone();
        Box::pin(async move { Err(Unasked { why }) })
    }
}

/// Adds rules to the file of the user that remembers approvals, and puts them in force. Blocking.
pub trait RuleBook: Send + Sync {
    /// The file, as it is shown to whoever is asked.
    fn file(&self) -> String;
    fn add(&self, amendment: &Amendment) -> Result<(), RuleBookError>;
}

/// Why a rule is not in force.
#[derive(Debug, thiserror::Error)]
pub enum RuleBookError {
    #[error(transparent)]
    Amend(#[from] AmendError),
    #[error("the rule stands in the file, but not in the rules of this task")]
    Reload(#[source] Box<dyn std::error::Error + Send + Sync>),
}

/// Who may answer the questions of a task, and how far their answers reach.
pub struct Approvers {
    pub ask: Arc<dyn Ask>,
    /// Answers in a person's place.
    pub reviewer: Option<Arc<dyn Review>>,
    /// How long one review may take, whatever the reviewer thinks of time.
    pub review_time: Duration,
    /// Whether a question waits for `belljar approvals` though nobody is known to look.
    pub wait: bool,
    /// Whether the program that drives the task may say yes.
    pub harness: bool,
    /// The scopes that an approval may have. Once is always among them.
    pub scopes: Vec<Scope>,
    pub bounds: Bounds,
    /// The folder that holds how often the user was asked by all of their tasks; without one the bounds are those of this task.
    pub state: Option<PathBuf>,
    /// Where answers for the session are kept; without one there are none.
    pub session: Option<Session>,
    /// The file of the user's that answers become rules in; without one none do.
    pub rule_file: Option<HostPath>,
}

impl Approvers {
    pub fn new(ask: Arc<dyn Ask>) -> Self {
        Self {
            ask,
            reviewer: None,
            review_time: PATIENCE,
            wait: false,
            harness: false,
            scopes: vec![Scope::Once, Scope::Task, Scope::Session, Scope::Rule],
            bounds: Bounds::default(),
            state: None,
            session: None,
            rule_file: None,
        }
    }
}

impl<A: Ask + 'static> From<Arc<A>> for Approvers {
    fn from(ask: Arc<A>) -> Self {
        Self::new(ask)
    }
}

fn nobody(why: &str) -> Approver {
    Approver {
        kind: ApproverKind::Nobody,
        name: "nobody".to_owned(),
        via: why.to_owned(),
    }
}
