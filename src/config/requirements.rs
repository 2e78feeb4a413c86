//! What the admin demands, above all layers: caps and pins that nobody below can weaken.
//!
//! Each file is one [`Requirements`], and a task must meet each of them by itself. Nothing is merged, so no file can loosen
//! another, whatever their order; the keys and their reasons stand in `config/requirements.example.toml`.

mod check;
mod read;
mod trust;

use std::path::Path;
use std::time::Duration;

use super::bundle::Demand;
use super::identity::{Method, Oidc};
use super::{AgentEvents, Sync};
use crate::document::{Faults, Sited};
use crate::policy::Scope;
use crate::task::limits::Bytes;
use crate::task::spec::HostSpec;
use crate::task::{
    Backend, GitMode, Guarantee, NetworkMode, Reviewer, RulesText, Unknown, Unmatched, User, WhoApproves,
};

pub(super) use check::{Asked, ConfigAsked, fits};
pub use trust::BundleSeen;
pub(super) use trust::{Sources, load};

/// The demands of one file. `None` demands nothing.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Requirements {
    pub backends: Option<Sited<Vec<Backend>>>,
    pub runtimes: Option<Sited<Vec<String>>>,
    pub images: Option<Sited<Vec<String>>>,
    pub users: Option<Sited<Vec<User>>>,
    pub accept_partial: Option<Sited<Vec<Guarantee>>>,
    pub writable: Option<Sited<Vec<String>>>,
    pub readable: Option<Sited<Vec<String>>>,
    pub denied: Option<Sited<Vec<String>>>,
    /// The same as patterns, which may begin with `~/`: nothing of this form may lie in a root.
    pub denied_patterns: Vec<Sited<String>>,
    pub git: Option<Sited<Vec<GitMode>>>,
    pub memory: Option<Sited<Bytes>>,
    pub cpus: Option<Sited<f64>>,
    pub pids: Option<Sited<u32>>,
    pub disk: Option<Sited<Bytes>>,
    pub task_time: Option<Sited<Duration>>,
    pub exec_time: Option<Sited<Duration>>,
    pub output: Option<Sited<Bytes>>,
    pub approval_time: Option<Sited<Duration>>,
    pub modes: Option<Sited<Vec<NetworkMode>>>,
    pub allow: Option<Sited<Vec<String>>>,
    pub deny: Vec<Sited<String>>,
    pub unknown: Option<Sited<Vec<Unknown>>>,
    /// Allowed for every task that has a way out.
    pub always: Vec<Sited<String>>,
    /// What may be asked of these hosts at most.
    pub hosts: Vec<HostSpec>,
    /// The proxy that every connection is made through.
    pub upstream: Option<Sited<String>>,
    /// No proxy that the configuration names may be between.
    pub no_upstream: Option<Sited<bool>>,
    pub rules: Vec<Sited<String>>,
    /// Rules that stand in a file of requirements themselves, as Codex writes them.
    pub rules_texts: Vec<RulesText>,
    pub unmatched: Option<Sited<Vec<Unmatched>>>,
    pub reviewers: Option<Sited<Vec<Reviewer>>>,
    /// The only endpoints that a model may review from.
    pub reviewer_endpoints: Option<Sited<Vec<String>>>,
    /// What a model that reviews is told beside its own policy.
    pub reviewer_policy: Vec<Sited<String>>,
    pub approvers: Option<Sited<Vec<WhoApproves>>>,
    /// How far an approval may reach; no less than once.
    pub scopes: Option<Sited<Vec<Scope>>>,
    pub sync: Option<Sited<Sync>>,
    /// Added to what the configuration takes out of records.
    pub redact: Vec<Sited<String>>,
    pub agent_events: Option<Sited<Vec<AgentEvents>>>,
    /// Archives of records are kept at least so long.
    pub keep: Option<Sited<Duration>>,
    pub endpoints: Option<Sited<Vec<String>>>,
    pub endpoint_required: Option<Sited<bool>>,
    pub identity_users: Option<Sited<Vec<String>>>,
    pub identity_groups: Option<Sited<Vec<String>>>,
    pub identity_methods: Option<Sited<Vec<Method>>>,
    pub identity_workspaces: Option<Sited<Vec<String>>>,
    pub identity_oidc: Option<Oidc>,
    /// More requirements, signed, from a URL.
    pub bundle: Option<Demand>,
    /// Nobody may be asked: what would be a question is a no.
    pub never_ask: Option<Sited<bool>>,
    /// A file of Codex's to hold to as well.
    pub codex: Option<Sited<String>>,
    /// Keys of it about things that belljar does not have.
    pub unheeded: Vec<Sited<String>>,
}

impl Requirements {
    /// Reads one file's text; `file` is the name under which faults are reported.
    pub fn from_toml(text: &str, file: &str) -> Result<Requirements, Faults> {
        read::from_toml(text, file)
    }

    /// Whether a host path lies within a folder.
    fn covers(folder: &str, path: &Path) -> bool {
        path.starts_with(folder)
    }
}

#[cfg(test)]
mod tests;
