//! Approvals that become rules: written to a file of the user's, and in force in the running task at once.

use std::sync::Arc;

use super::live_policy::LivePolicy;
use crate::approval::{RuleBook, RuleBookError};
use crate::path::HostPath;
use crate::policy::amend::{self, Amendment};

/// The file of one user, for one task.
pub struct UserRules {
    pub file: HostPath,
    pub policy: Arc<LivePolicy>,
}

impl RuleBook for UserRules {
    fn file(&self) -> String {
        self.file.to_string()
    }

    fn add(&self, amendment: &Amendment) -> Result<(), RuleBookError> {
        let appended = amend::append(&self.file, amendment)?;
        self.policy
            .add(appended.text)
            .map_err(|error| RuleBookError::Reload(error.into()))
    }
}
