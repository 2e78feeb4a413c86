//! The policy that holds now. A rule that is added while a task runs holds from the next judgement on.

use std::sync::{Arc, Mutex, PoisonError, RwLock};

use super::Policy;

/// The policy of a live task. Each judgement takes the one that is in force at its beginning, and keeps to it.
#[derive(Debug)]
pub struct InForce {
    policy: RwLock<Arc<Policy>>,
    /// Held by whoever changes it: loading rules takes a while, and no judgement is to wait for that.
    turn: Mutex<()>,
}

impl InForce {
    pub fn new(policy: Policy) -> Self {
        Self {
            policy: RwLock::new(Arc::new(policy)),
            turn: Mutex::new(()),
        }
    }

    pub fn now(&self) -> Arc<Policy> {
        self.policy.read().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Puts what `change` makes of the policy in its place, and gives the new one back. Changes take turns, so that none is lost;
    /// where `change` fails, all stays as it was.
    pub fn change<E>(&self, change: impl FnOnce(&Policy) -> Result<Policy, E>) -> Result<Arc<Policy>, E> {
        let _turn = self.turn.lock().unwrap_or_else(PoisonError::into_inner);
        let changed = Arc::new(change(&self.now())?);
        *self.policy.write().unwrap_or_else(PoisonError::into_inner) = changed.clone();
        Ok(changed)
    }
}
