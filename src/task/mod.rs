//! WHAT runs. [`spec::TaskSpec`] is what a caller asks for, as it stands in a file or on a command line; [`Task`] is what
//! `config::admit` made of it after the requirements were applied. Nothing else makes a `Task`, and everything below takes one.

pub mod limits;

use std::collections::BTreeMap;

use serde::Serialize;

use crate::id::TaskId;
use crate::path::{HostPath, SandboxPath};
use limits::Limits;

/// A task that was admitted: every value parsed, every path absolute, every requirement met.
#[derive(Debug, Clone, Serialize)]
pub struct Task {
    pub id: TaskId,
    pub name: String,
    pub purpose: Option<String>,
    pub image: ImageRef,
    /// Without one the task waits for execs.
    pub command: Option<Vec<String>>,
    pub workdir: SandboxPath,
    pub user: User,
    pub backend: Backend,
    pub runtime: Runtime,
    pub roots: Vec<Root>,
    pub env: BTreeMap<String, String>,
    pub limits: Limits,
    pub network: Network,
    pub gate: Gate,
}

/// Where the root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageRef {
    /// Put together from the machine's own `/usr` and its kin.
    Host,
    /// A folder that is a root file system.
    Rootfs(HostPath),
    /// An OCI image layout, as a folder or as a tar archive.
    OciLayout(HostPath),
    /// A name in the local store, or a registry reference.
    Named(String),
}

/// Who a command is inside the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum User {
    /// uid 1000, whose files belong to the caller outside.
    Agent,
    /// uid 0 of the user namespace only.
    Root,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    Oci,
    Docker,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// belljar's own launcher.
    Builtin,
    /// An OCI runtime by name or path, or the name of one of Docker's runtimes.
    Outside(String),
}

/// A folder or file of the host that the sandbox sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Root {
    pub host: HostPath,
    pub path: SandboxPath,
    pub access: Access,
    /// For writable roots: what may happen to a git repository in them.
    pub git: GitMode,
    /// Names protected beside the built-in ones.
    pub protect: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    Read,
    Write,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GitMode {
    /// `git commit` works; hooks, config and worktree links cannot change.
    Safe,
    ReadOnly,
    Open,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Network {
    pub mode: NetworkMode,
    /// Host patterns, see `egress::pattern`.
    pub allow: Vec<String>,
    pub deny: Vec<String>,
    pub unknown: Unknown,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    None,
    Proxy,
}

/// What happens to a host that no list names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unknown {
    Ask,
    Deny,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gate {
    /// Files of rules, strictest answer wins over all of them.
    pub rules: Vec<HostPath>,
    pub unmatched: Unmatched,
    pub reviewer: Reviewer,
    pub approval_time: std::time::Duration,
}

/// What follows for a command that no rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unmatched {
    Allow,
    Ask,
    Deny,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reviewer {
    User,
    AutoReview,
}
