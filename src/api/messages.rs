//! The messages of the API, version 1: one definition for the server, its clients and `--stdio`.
//!
//! Times are RFC 3339 in UTC, durations in seconds, sizes in bytes. Unknown fields in requests are errors; clients ignore
//! unknown fields in answers. The three ways in which an exec can end stay apart as the `kind` of [`ExecEnd`].

use std::collections::BTreeMap;

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::approvals::{Approval, ApprovalAnswer, ApprovalChange, ApprovalSettled};
use crate::audit::record::{ExecFinished, TaskOutcome};
use crate::exec::Stream;
use crate::id::{ApprovalId, ExecId, TaskId};
use crate::path::SandboxPath;
use crate::policy::{Approver, RuleMatch, Stdin, TtySize};

/// A task as it stands now.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
pub struct TaskInfo {
    pub id: TaskId,
    pub name: String,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub purpose: Option<String>,
    pub state: TaskState,
    pub created: String,
    pub image: String,
    pub runtime: String,
    /// Where a command runs that names no folder of its own.
    pub workdir: SandboxPath,
    pub execs: ExecCounts,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    Starting,
    Live,
    Stopping,
    Ended,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ExecCounts {
    pub running: u64,
    pub finished: u64,
    pub refused: u64,
    pub failed: u64,
}

/// A request to start a command.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ExecStart {
    /// A UUID of the caller's choice; a second request with the same one gets the first one's exec.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub id: Option<ExecId>,
    pub argv: Vec<String>,
    /// Without one: the task's `workdir`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cwd: Option<SandboxPath>,
    /// Added to the task's environment.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub env: BTreeMap<String, String>,
    #[serde(default = "no_stdin")]
    pub stdin: Stdin,
    /// Runs the command at a pseudo-terminal of this size.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tty: Option<TtySize>,
    /// Why; shown to reviewers and kept in the record.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
    /// W3C trace context.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub traceparent: Option<String>,
    /// Never more than the task's `exec_time`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub timeout_seconds: Option<f64>,
    /// What the command leaves running stays until the task ends.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub detach: bool,
}

fn no_stdin() -> Stdin {
    Stdin::None
}

/// An exec as it stands now.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct ExecInfo {
    pub id: ExecId,
    pub argv: Vec<String>,
    pub cwd: SandboxPath,
    pub tty: bool,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
    pub created: String,
    pub state: ExecState,
    /// `allow`, `ask` or `deny`, once it is known.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub judgement: Option<String>,
    /// There once `state` is `ended`.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub end: Option<ExecEnd>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ExecState {
    Judging,
    Asking,
    Running,
    Ended,
}

/// How an exec ended: refused by policy or a person, failed in belljar, or finished by itself or at a limit.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "kind", rename_all = "snake_case")]
pub enum ExecEnd {
    Refused(Refused),
    Failed { error: String },
    Finished(Box<ExecFinished>),
}

/// A no: which rules, why, and how to go on. Nothing was started.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Refused {
    pub reason: String,
    pub how_to_ask: String,
    pub rules: Vec<RuleMatch>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub approver: Option<Approver>,
}

/// What happens in an exec's life: `judged`, perhaps `asked`, `started`, any number of `output`, and one `ended`.
///
/// Over a WebSocket, output is a binary frame instead. Each event counts one, whichever its form: the count so far is what
/// `after` means when attaching again. A `gap` says that older events are no longer held, and sets the count.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum Event {
    Judged {
        judgement: String,
    },
    /// A question is open at the desk; its id is what an answer names.
    Asked {
        approval: ApprovalId,
        reason: String,
    },
    Started,
    Output {
        stream: Stream,
        /// The bytes, in base64.
        #[serde(with = "base64_text")]
        #[schemars(with = "String")]
        data: bytes::Bytes,
    },
    Ended {
        end: ExecEnd,
    },
    Gap {
        after: u64,
    },
}

/// What a client may say in a text frame while attached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case", deny_unknown_fields)]
pub enum Control {
    Resize { rows: u16, cols: u16 },
    Signal { signal: i32 },
    StdinClosed,
}

/// The first byte of a binary frame.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Channel {
    Stdin = 0,
    Stdout = 1,
    Stderr = 2,
    Pty = 3,
}

impl Channel {
    pub fn of(stream: Stream) -> Self {
        match stream {
            Stream::Stdout => Self::Stdout,
            Stream::Stderr => Self::Stderr,
            Stream::Pty => Self::Pty,
        }
    }

    /// The output stream that a frame from the server belongs to.
    pub fn stream(byte: u8) -> Option<Stream> {
        match byte {
            1 => Some(Stream::Stdout),
            2 => Some(Stream::Stderr),
            3 => Some(Stream::Pty),
            _ => None,
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct Signal {
    /// A signal's number, 1 to 64.
    pub signal: i32,
}

/// What only the harness knows: a prompt, a tool call, an answer. It goes into the journal as `agent.event`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct AgentEvent {
    pub name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub call_id: Option<String>,
    #[serde(default)]
    pub body: serde_json::Value,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Recorded {
    pub recorded: bool,
}

/// What a task came to.
#[derive(Debug, Clone, Serialize, Deserialize, JsonSchema)]
pub struct TaskSummary {
    pub id: TaskId,
    pub name: String,
    pub outcome: TaskOutcome,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    pub wall_seconds: f64,
    pub execs: Vec<ExecInfo>,
    pub refused_egress: Vec<RefusedEgress>,
}

/// A destination that the policy refused, and how often.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct RefusedEgress {
    pub host: String,
    pub port: u16,
    pub rule: String,
    pub reason: String,
    pub count: u64,
}

/// The body of every answer that is not a success.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorBody {
    pub error: ErrorText,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ErrorText {
    pub code: ErrorCode,
    pub message: String,
    /// All faults of a request, one an entry, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub faults: Vec<String>,
}

/// What kind of error it is; for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ErrorCode {
    /// The request itself is wrong.
    BadRequest,
    /// The caller is neither the task's user nor root.
    Forbidden,
    /// No such task, exec or path.
    NotFound,
    /// The task or the exec is not in the state that this needs.
    Conflict,
    /// A bound was reached; later may do.
    TooMany,
    /// The body or line is larger than is taken.
    TooLarge,
    /// belljar failed.
    Internal,
}

/// The JSON Schema of every message, under the message's name.
pub fn schema() -> serde_json::Value {
    let mut schemas = schemars::SchemaGenerator::default();
    schemas.subschema_for::<TaskInfo>();
    schemas.subschema_for::<ExecStart>();
    schemas.subschema_for::<ExecInfo>();
    schemas.subschema_for::<Event>();
    schemas.subschema_for::<Control>();
    schemas.subschema_for::<Signal>();
    schemas.subschema_for::<AgentEvent>();
    schemas.subschema_for::<Recorded>();
    schemas.subschema_for::<TaskSummary>();
    schemas.subschema_for::<Approval>();
    schemas.subschema_for::<ApprovalAnswer>();
    schemas.subschema_for::<ApprovalSettled>();
    schemas.subschema_for::<ApprovalChange>();
    schemas.subschema_for::<ErrorBody>();
    serde_json::json!({
        "$schema": "https://json-schema.org/draft/2020-12/schema",
        "$defs": schemas.take_definitions(true),
    })
}

/// Bytes as base64 text in JSON.
pub(super) mod base64_text {
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use bytes::Bytes;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(data: &Bytes, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(data))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Bytes, D::Error> {
        let text = std::borrow::Cow::<str>::deserialize(deserializer)?;
        let data = STANDARD.decode(text.as_bytes()).map_err(serde::de::Error::custom)?;
        Ok(Bytes::from(data))
    }
}
