//! The three answers, and the values that carry them on: a [`Permit`] to `sandbox`, a [`Question`] to `approval`, a
//! [`Refusal`] to the caller.

use serde::{Deserialize, Serialize};

use super::request::Digest;
use crate::document::Word;
use crate::id::ExecId;

/// What a rule says. The order is strictness: the greatest wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Decision {
    Allow,
    Prompt,
    Forbidden,
}

/// One rule that matched, and where it stands.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct RuleMatch {
    /// Stable as long as the rule's meaning is: given in the file, or made from its content.
    pub id: String,
    pub file: String,
    pub line: u32,
    pub decision: Decision,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub justification: Option<String>,
    /// Whether only a person may answer, never the automatic reviewer.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub person_only: bool,
}

/// The answer of the gate.
#[derive(Debug)]
pub enum Judgement {
    Allow(Permit),
    Ask(Question),
    Deny(Refusal),
}

/// The proof that this very exec may start. Made only in `policy`; consumed by the start.
#[derive(Debug)]
#[must_use]
pub struct Permit {
    exec: ExecId,
    digest: Digest,
    basis: Basis,
}

/// What a permit or a refusal rests on; goes into the record.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct Basis {
    pub rules: Vec<RuleMatch>,
    /// Whether part of the command could not be known before it runs.
    pub opaque: bool,
    /// Who answered, where somebody was asked.
    pub approver: Option<Approver>,
}

/// Who answered a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct Approver {
    pub kind: ApproverKind,
    /// A user's name, a reviewer's model, or the reason why nobody could be asked.
    pub name: String,
    /// From where: `terminal`, `socket`, `grant`, a URL without its query.
    pub via: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ApproverKind {
    Person,
    /// The program that drives the task.
    Harness,
    /// A model, a program or rules of the admin's that answer in a person's place.
    Reviewer,
    Grant,
    Nobody,
}

/// A command that somebody must be asked about.
#[derive(Debug)]
#[must_use]
pub struct Question {
    exec: ExecId,
    digest: Digest,
    basis: Basis,
    reason: String,
    offer: Option<Vec<String>>,
}

/// What the desk says to a question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Answer {
    Approve(Scope),
    /// With the reason that the asking agent is told.
    Deny(String),
}

/// How long an approval holds.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Scope {
    Once,
    Task,
    Session,
    Rule,
}

impl Word for Scope {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("once", Scope::Once),
        ("task", Scope::Task),
        ("session", Scope::Session),
        ("rule", Scope::Rule),
    ];
}

/// A no: which rule, why, and how to go on.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Refusal {
    pub basis: Basis,
    pub reason: String,
    pub how_to_ask: String,
}

impl Permit {
    pub(super) fn new(exec: ExecId, digest: Digest, basis: Basis) -> Self {
        Self { exec, digest, basis }
    }

    pub fn exec(&self) -> ExecId {
        self.exec
    }

    /// What the permit is bound to; whoever starts the command compares it with what it is about to start.
    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    pub fn basis(&self) -> &Basis {
        &self.basis
    }
}

impl Question {
    pub(super) fn new(exec: ExecId, digest: Digest, basis: Basis, reason: String, offer: Option<Vec<String>>) -> Self {
        Self {
            exec,
            digest,
            basis,
            reason,
            offer,
        }
    }

    pub fn exec(&self) -> ExecId {
        self.exec
    }

    pub fn digest(&self) -> &Digest {
        &self.digest
    }

    pub fn basis(&self) -> &Basis {
        &self.basis
    }

    /// Why somebody is asked.
    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// The prefix of commands that could be allowed by a rule instead; none where one rule would not do, or would allow too much.
    pub fn offer(&self) -> Option<&[String]> {
        self.offer.as_deref()
    }

    /// Takes the question back: nothing is started.
    #[expect(
        clippy::result_large_err,
        reason = "a refusal is rare, and carries all that the agent is told"
    )]
    pub fn withdraw(self, reason: &str) -> Result<Permit, Refusal> {
        Err(Refusal {
            basis: self.basis,
            reason: reason.to_owned(),
            how_to_ask: "ask for it again".to_owned(),
        })
    }

    /// Turns the desk's answer into a permit or a refusal. The one way from a question to a start.
    #[expect(
        clippy::result_large_err,
        reason = "a refusal is rare, and carries all that the agent is told"
    )]
    pub fn answer(self, answer: Answer, approver: Approver) -> Result<Permit, Refusal> {
        let basis = Basis {
            approver: Some(approver),
            ..self.basis
        };
        match answer {
            Answer::Approve(_) => Ok(Permit::new(self.exec, self.digest, basis)),
            Answer::Deny(reason) => Err(Refusal {
                basis,
                reason,
                how_to_ask: "ask the person who runs the task, or use a command that the rules allow".to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_ordered_by_strictness() {
        assert!(Decision::Forbidden > Decision::Prompt && Decision::Prompt > Decision::Allow);
    }
}
