//! Approvals that become rules: written to a file of the user's, and in force in the running task at once.

use std::sync::{Arc, OnceLock};

use super::way_out;
use crate::approval::{RuleBook, RuleBookError};
use crate::egress::Reloader;
use crate::path::HostPath;
use crate::policy::InForce;
use crate::policy::amend::{self, About, Amendment};
use crate::task::Network;

/// The file of one user, for one task.
pub struct UserRules {
    file: HostPath,
    policy: Arc<InForce>,
    network: Network,
    way_out: OnceLock<Reloader>,
}

impl UserRules {
    pub fn new(file: HostPath, policy: Arc<InForce>, network: Network) -> Self {
        Self {
            file,
            policy,
            network,
            way_out: OnceLock::new(),
        }
    }

    /// Rules for hosts hold on this way out as well. Once only.
    pub fn reload_on(&self, way_out: Reloader) {
        let _ = self.way_out.set(way_out);
    }
}

impl RuleBook for UserRules {
    fn file(&self) -> String {
        self.file.to_string()
    }

    fn add(&self, amendment: &Amendment) -> Result<(), RuleBookError> {
        let appended = amend::append(&self.file, amendment)?;
        let failed = |error: Box<dyn std::error::Error + Send + Sync>| RuleBookError::Reload(error);
        let policy = self
            .policy
            .change(|policy| policy.amended(appended.text))
            .map_err(|error| failed(error.into()))?;
        if let (About::Host { .. }, Some(way_out)) = (&amendment.about, self.way_out.get()) {
            let gate = way_out::gate(&self.network, &policy).map_err(|error| failed(error.into()))?;
            if let Some(gate) = gate {
                way_out.reload(gate);
            }
        }
        Ok(())
    }
}
