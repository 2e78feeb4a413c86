//! One entry of the audit journal, as a type: log line, metric and span follow from it.
//!
//! A record is `version seq time host boot task exec kind` and the fields of its kind. Durations are in seconds, sizes in
//! bytes, times in RFC 3339 UTC. Names and kinds never change their meaning within a version.

use std::collections::BTreeMap;

use serde::Serialize;

use crate::id::{ApprovalId, ExecId, TaskId};
use crate::policy::{Approver, RuleMatch};

/// The version of the record's shape.
pub const VERSION: u32 = 1;

/// What is asked to be recorded; the journal adds sequence, time, host, boot and the hash.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
pub struct Entry {
    #[serde(skip_serializing_if = "Option::is_none")]
    pub task: Option<TaskId>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecId>,
    #[serde(flatten)]
    pub event: Event,
}

/// What happened; `kind` in JSON is the name given at each arm.
#[derive(Debug, Clone, Serialize, schemars::JsonSchema)]
#[serde(tag = "kind")]
pub enum Event {
    #[serde(rename = "task.admitted")]
    TaskAdmitted {
        name: String,
        purpose: Option<String>,
        /// The whole admitted task as JSON, without secrets.
        task_spec: serde_json::Value,
        requirements_digest: Option<String>,
        identity: Identity,
        traceparent: Option<String>,
    },
    #[serde(rename = "task.refused")]
    TaskRefused {
        name: String,
        reasons: Vec<String>,
        identity: Identity,
    },
    #[serde(rename = "task.started")]
    TaskStarted {
        backend: String,
        runtime: String,
        image: String,
        image_digest: Option<String>,
        plan_digest: String,
        start_seconds: f64,
    },
    #[serde(rename = "task.finished")]
    TaskFinished {
        outcome: TaskOutcome,
        reason: Option<String>,
        wall_seconds: f64,
        execs: u64,
        refused: u64,
        usage: Usage,
        /// Bytes through the proxy.
        #[serde(skip_serializing_if = "Option::is_none")]
        network_bytes_sent: Option<u64>,
        #[serde(skip_serializing_if = "Option::is_none")]
        network_bytes_received: Option<u64>,
        left_files: Vec<String>,
    },
    #[serde(rename = "sandbox.enforced")]
    SandboxEnforced { controls: Vec<Control> },
    #[serde(rename = "exec.judged")]
    ExecJudged {
        argv: Vec<String>,
        cwd: String,
        env_names: Vec<String>,
        /// `allow`, `ask` or `deny`.
        judgement: String,
        rules: Vec<RuleMatch>,
        opaque: bool,
        digest: String,
        reason: Option<String>,
        call_id: Option<String>,
        traceparent: Option<String>,
    },
    #[serde(rename = "exec.refused")]
    ExecRefused {
        argv: Vec<String>,
        reason: String,
        rules: Vec<RuleMatch>,
        approver: Option<Approver>,
    },
    #[serde(rename = "exec.started")]
    ExecStarted {
        argv: Vec<String>,
        cwd: String,
        tty: bool,
        approver: Option<Approver>,
    },
    #[serde(rename = "exec.finished")]
    ExecFinished(Box<ExecFinished>),
    #[serde(rename = "approval.asked")]
    ApprovalAsked {
        approval: ApprovalId,
        about: String,
        reason: String,
        rules: Vec<RuleMatch>,
        /// Path and digest of files that the command names and that the agent can write.
        #[serde(default, skip_serializing_if = "Vec::is_empty")]
        named_files: Vec<String>,
    },
    #[serde(rename = "approval.answered")]
    ApprovalAnswered {
        approval: ApprovalId,
        answer: String,
        scope: Option<String>,
        approver: Approver,
        reason: Option<String>,
        wait_seconds: f64,
        /// What a reviewer made of it, where one was asked.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        opinion: Option<Opinion>,
    },
    #[serde(rename = "egress.judged")]
    EgressJudged {
        /// Not `host` in JSON: that is the machine that wrote the record.
        #[serde(rename = "server_address")]
        host: String,
        #[serde(rename = "server_port")]
        port: u16,
        /// `http`, `https_connect`, `socks5_tcp`, `socks5_udp`, `dns`.
        protocol: String,
        method: Option<String>,
        /// Of one request that was judged, without its query.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        path: Option<String>,
        /// `allow`, `ask` or `deny`.
        decision: String,
        rule: String,
        reason: String,
        address: Option<String>,
    },
    #[serde(rename = "egress.finished")]
    EgressFinished {
        #[serde(rename = "server_address")]
        host: String,
        #[serde(rename = "server_port")]
        port: u16,
        protocol: String,
        method: Option<String>,
        /// `allow`, and by what; records of belljar 0.1 before that was told lack it.
        decision: Option<String>,
        rule: Option<String>,
        address: Option<String>,
        bytes_sent: u64,
        bytes_received: u64,
        wall_seconds: f64,
        error: Option<String>,
    },
    #[serde(rename = "agent.event")]
    AgentEvent {
        name: String,
        call_id: Option<String>,
        body: serde_json::Value,
    },
    #[serde(rename = "secret.used")]
    SecretUsed {
        name: String,
        #[serde(rename = "server_address")]
        host: String,
        place: String,
    },
    #[serde(rename = "rule.added")]
    RuleAdded {
        file: String,
        rule: String,
        approver: Approver,
    },
    #[serde(rename = "config.loaded")]
    ConfigLoaded {
        files: Vec<String>,
        digest: String,
        /// Why what the files say is not in force, where that is so; the digest is then of what is.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        error: Option<String>,
    },
    #[serde(rename = "journal.opened")]
    JournalOpened {
        /// The journal's own id, made with it; records sent elsewhere are told apart by it.
        journal: String,
        program_version: String,
        pid: u32,
        /// Tasks that had begun and not ended at this moment, of this and of other processes.
        open_starts: u64,
        /// `each` or `batch`: whether every record is on the disk before it counts, or within 50 ms.
        sync: String,
    },
    /// Records were taken out of the journal; the chain begins anew after them.
    #[serde(rename = "journal.pruned")]
    JournalPruned {
        first_seq: u64,
        last_seq: u64,
        /// The hash of the last of them, to which the first that is left is chained.
        last_hash: String,
        /// `age` or `size`.
        reason: String,
        /// The file that has them now, beside the journal, and its digest.
        archive: Option<String>,
        archive_digest: Option<String>,
    },
    /// A file with records that were taken out earlier is removed; the `journal.pruned` that names it says which records it has.
    #[serde(rename = "journal.archive_removed")]
    JournalArchiveRemoved {
        archive: String,
        archive_digest: String,
        /// `age`.
        reason: String,
    },
    #[serde(rename = "journal.checkpoint")]
    JournalCheckpoint {
        /// The journal's own id.
        journal: String,
        /// The record that stands before this one, and its hash.
        through_seq: u64,
        hash: String,
        /// Ed25519, in hex; see `audit::key`.
        signature: String,
        public_key: String,
    },
}

/// What an automatic reviewer said, or why it said nothing.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Opinion {
    /// `low`, `medium`, `high` or `critical`.
    pub risk_level: Option<String>,
    /// `unknown`, `low`, `medium` or `high`: how far the user's own words ask for it.
    pub user_authorization: Option<String>,
    pub rationale: Option<String>,
    /// `timed_out`, `unreachable`, `rejected`, `refused`, `truncated`, `too_large`, `malformed`, `contradictory` or `breaker_open`.
    pub failure: Option<String>,
    /// How often it was asked.
    pub attempts: u32,
}

/// The end of an exec; every started exec has exactly one.
#[derive(Debug, Clone, Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct ExecFinished {
    pub argv: Vec<String>,
    pub cwd: String,
    pub env_names: Vec<String>,
    pub outcome: ExecOutcome,
    pub exit_code: Option<i32>,
    /// The number of the signal that ended the command.
    pub signal: Option<i32>,
    /// What went wrong, for `lost` and for commands that could not be started.
    pub error: Option<String>,
    pub wall_seconds: f64,
    pub usage: Usage,
    /// Through the proxy, over connections whose sockets the exec's processes held: evidence, not proof. None where it cannot be told.
    pub network_bytes_sent: Option<u64>,
    pub network_bytes_received: Option<u64>,
    pub stdout_bytes: u64,
    pub stderr_bytes: u64,
    /// `blake3:…` over all that the command wrote there, also beyond what a limit let through.
    pub stdout_digest: Option<String>,
    pub stderr_digest: Option<String>,
    pub image_digest: Option<String>,
    pub plan_digest: Option<String>,
    pub requirements_digest: Option<String>,
    pub rules: Vec<RuleMatch>,
    pub approver: Option<Approver>,
    pub reason: Option<String>,
    pub call_id: Option<String>,
    pub traceparent: Option<String>,
}

/// How an exec ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExecOutcome {
    Exited,
    Signaled,
    TimedOut,
    OomKilled,
    OutputLimit,
    Canceled,
    /// belljar or the sandbox went away before the end was seen.
    Lost,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskOutcome {
    Finished,
    TimedOut,
    Stopped,
    Failed,
    Lost,
}

/// What the kernel counted.
#[derive(Debug, Clone, PartialEq, Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Usage {
    /// Where the counters came from: `cgroup_v2`, `cgroup_v1`, `rusage` or `none`.
    pub source: UsageSource,
    pub cpu_user_seconds: f64,
    pub cpu_system_seconds: f64,
    pub memory_peak_bytes: Option<u64>,
    pub io_read_bytes: Option<u64>,
    pub io_write_bytes: Option<u64>,
    /// The greatest number of processes and threads at once.
    pub pids_peak: Option<u64>,
    pub oom_kills: Option<u64>,
    /// Whose limit of memory the kernel killed for: `task`, or `above` for one of the machine or of a cgroup over the task's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub oom_limit: Option<OomLimit>,
    /// How often more memory was asked for than the limit has.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub memory_limit_hits: Option<u64>,
    /// Time for which work stood still because the quota of CPU time was used up.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cpu_throttled_seconds: Option<f64>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pressure: Option<Pressure>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum OomLimit {
    Task,
    Above,
}

/// For how long something had to wait for each resource; see Linux `Documentation/accounting/psi.rst`, "some".
#[derive(Debug, Clone, Copy, PartialEq, Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Pressure {
    pub cpu_seconds: f64,
    pub memory_seconds: f64,
    pub io_seconds: f64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum UsageSource {
    CgroupV2,
    CgroupV1,
    Rusage,
    None,
}

impl Usage {
    /// Nothing was counted.
    pub const NONE: Usage = Usage {
        source: UsageSource::None,
        cpu_user_seconds: 0.0,
        cpu_system_seconds: 0.0,
        memory_peak_bytes: None,
        io_read_bytes: None,
        io_write_bytes: None,
        pids_peak: None,
        oom_kills: None,
        oom_limit: None,
        memory_limit_hits: None,
        cpu_throttled_seconds: None,
        pressure: None,
    };
}

/// Who runs belljar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Identity {
    pub uid: u32,
    pub user: String,
    /// What a token says of them, where the admin's requirements name its issuer.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub login: Option<crate::task::Login>,
}

/// One control of a sandbox and how far it was really enforced.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Control {
    pub control: String,
    pub enforced: Enforced,
    /// Why not in full, and what would be needed.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

/// The weaker, the greater.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Enforced {
    Full,
    Partial,
    None,
}

impl Event {
    /// The record's kind, as it stands in JSON.
    pub fn kind(&self) -> &'static str {
        match self {
            Event::TaskAdmitted { .. } => "task.admitted",
            Event::TaskRefused { .. } => "task.refused",
            Event::TaskStarted { .. } => "task.started",
            Event::TaskFinished { .. } => "task.finished",
            Event::SandboxEnforced { .. } => "sandbox.enforced",
            Event::ExecJudged { .. } => "exec.judged",
            Event::ExecRefused { .. } => "exec.refused",
            Event::ExecStarted { .. } => "exec.started",
            Event::ExecFinished(_) => "exec.finished",
            Event::ApprovalAsked { .. } => "approval.asked",
            Event::ApprovalAnswered { .. } => "approval.answered",
            Event::EgressJudged { .. } => "egress.judged",
            Event::EgressFinished { .. } => "egress.finished",
            Event::AgentEvent { .. } => "agent.event",
            Event::SecretUsed { .. } => "secret.used",
            Event::RuleAdded { .. } => "rule.added",
            Event::ConfigLoaded { .. } => "config.loaded",
            Event::JournalOpened { .. } => "journal.opened",
            Event::JournalPruned { .. } => "journal.pruned",
            Event::JournalArchiveRemoved { .. } => "journal.archive_removed",
            Event::JournalCheckpoint { .. } => "journal.checkpoint",
        }
    }
}

/// Names of environment variables, without their values.
pub fn env_names(env: &BTreeMap<String, String>) -> Vec<String> {
    env.keys().cloned().collect()
}
