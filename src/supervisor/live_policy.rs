//! The policy of a live task and what it may change into: rules for commands and for hosts, always both together.

use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};

use super::driver::StartError;
use super::way_out;
use crate::egress::{Gate, Reloader};
use crate::policy::{InForce, Policy, RuleText, RulesError};
use crate::task::Network;

/// What is in force in one task.
pub struct LivePolicy {
    pub rules: Arc<InForce>,
    /// How far the task may reach while `rules` are not closed.
    network: Mutex<Network>,
    way_out: OnceLock<Reloader>,
}

/// A policy that was found fit to be put in force, and says something else than the one before.
pub struct NextPolicy {
    network: Network,
    policy: Policy,
    gate: Arc<Gate>,
}

#[derive(Debug, thiserror::Error)]
pub enum AddError {
    #[error(transparent)]
    Rules(#[from] RulesError),
    #[error(transparent)]
    Gate(#[from] StartError),
}

impl LivePolicy {
    pub fn new(policy: Policy, network: Network) -> Arc<Self> {
        Arc::new(Self {
            rules: Arc::new(InForce::new(policy)),
            network: Mutex::new(network),
            way_out: OnceLock::new(),
        })
    }

    /// What changes holds on this way out as well. Once only.
    pub fn holds_on(&self, way_out: Reloader) {
        let _ = self.way_out.set(way_out);
    }

    /// Puts a file of rules in force as it is now, beside the others.
    pub fn add(&self, text: RuleText) -> Result<(), AddError> {
        let network = self.lock();
        let policy = self.rules.change(|policy| policy.amended(text))?;
        if self.rules.closed().is_none() {
            self.reload(gate(&network, &policy)?);
        }
        Ok(())
    }

    /// Whether another policy can be put in force; `None` where it says what is said already.
    pub fn prepare(&self, network: Network, policy: Policy) -> Result<Option<NextPolicy>, StartError> {
        let held = self.lock();
        let is_same = self.rules.closed().is_none() && *held == network && self.rules.now().says_the_same_as(&policy);
        if is_same {
            return Ok(None);
        }
        let gate = gate(&network, &policy)?;
        Ok(Some(NextPolicy { network, policy, gate }))
    }

    /// Puts it in force: for the next command and the next connection, and live connections that it forbids end.
    pub fn put(&self, next: NextPolicy) {
        let NextPolicy { network, policy, gate } = next;
        let mut held = self.lock();
        self.rules.open(policy);
        *held = network;
        self.reload(gate);
    }

    /// Lets no command begin and closes the way out, live connections too, until another policy is put in force.
    pub fn close(&self, reason: String) {
        let _turn = self.lock();
        self.rules.close(&reason);
        self.reload(Arc::new(Gate::closed(reason)));
    }

    fn reload(&self, gate: Arc<Gate>) {
        if let Some(way_out) = self.way_out.get() {
            way_out.reload(gate);
        }
    }

    /// Held through each change, so that they take turns.
    fn lock(&self) -> MutexGuard<'_, Network> {
        self.network.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

fn gate(network: &Network, policy: &Policy) -> Result<Arc<Gate>, StartError> {
    let gate = way_out::gate(network, policy)?;
    // A way out that was opened stays there, and lets nothing through.
    Ok(gate.unwrap_or_else(|| Arc::new(Gate::closed("the task has no network any more".to_owned()))))
}
