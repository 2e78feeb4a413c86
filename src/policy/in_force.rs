//! The policy that holds now. A rule that is added while a task runs holds from the next judgement on.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::{Basis, Command, Decision, Digest, Judgement, Policy, Refusal, RuleMatch};
use crate::id::ExecId;

/// The policy of a live task. Each judgement takes the one that is in force at its beginning, and keeps to it.
#[derive(Debug)]
pub struct InForce {
    now: RwLock<Now>,
    /// Held by whoever changes it: loading rules takes a while, and no judgement is to wait for that.
    turn: Mutex<()>,
}

#[derive(Debug)]
struct Now {
    policy: Arc<Policy>,
    /// Why nothing is allowed, whatever the policy says.
    closed: Option<Arc<str>>,
}

impl InForce {
    pub fn new(policy: Policy) -> Self {
        Self {
            now: RwLock::new(Now {
                policy: Arc::new(policy),
                closed: None,
            }),
            turn: Mutex::new(()),
        }
    }

    pub fn now(&self) -> Arc<Policy> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).policy.clone()
    }

    /// MAY this command run in `place`, the digest of its sandbox?
    pub fn judge(&self, exec: ExecId, command: &Command, place: &Digest) -> Judgement {
        match self.closed() {
            Some(reason) => Judgement::Deny(refusal(&reason)),
            None => self.now().judge(exec, command, place),
        }
    }

    /// Why nothing is allowed at the moment, where that is so.
    pub fn closed(&self) -> Option<Arc<str>> {
        self.now.read().unwrap_or_else(PoisonError::into_inner).closed.clone()
    }

    /// Refuses every command from the next judgement on, until another policy is put in force by [`Self::open`].
    pub fn close(&self, reason: &str) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        self.now.write().unwrap_or_else(PoisonError::into_inner).closed = Some(reason.into());
    }

    /// Puts a policy in force in place of whatever held.
    pub fn open(&self, policy: Policy) {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        *self.now.write().unwrap_or_else(PoisonError::into_inner) = Now {
            policy: Arc::new(policy),
            closed: None,
        };
    }

    /// Puts what `change` makes of the policy in its place, and gives the new one back. Changes take turns, so that none is lost;
    /// where `change` fails, all stays as it was. What is closed stays closed.
    pub fn change<E>(&self, change: impl FnOnce(&Policy) -> Result<Policy, E>) -> Result<Arc<Policy>, E> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = Arc::new(change(&self.now())?);
        self.now.write().unwrap_or_else(PoisonError::into_inner).policy = changed.clone();
        Ok(changed)
    }
}

fn refusal(reason: &str) -> Refusal {
    let rule = RuleMatch {
        id: "policy.changed".to_owned(),
        file: "requirements".to_owned(),
        line: 0,
        decision: Decision::Forbidden,
        justification: Some(reason.to_owned()),
        person_only: false,
    };
    Refusal {
        basis: Basis {
            rules: vec![rule],
            ..Basis::default()
        },
        reason: reason.to_owned(),
        how_to_ask: "this cannot be approved; whoever runs the task can end it, or see to it that it asks for less"
            .to_owned(),
    }
}
