//! One command's way from the request to its finished record. `pipeline` is the story on one page, `pump`, `bulk` and `stream` move the bytes.
//!
//! Called by `supervisor`; the edge sees the words of this page: [`ExecRequest`] goes in, an [`ExecHandle`] comes out, and from
//! it [`ExecEvent`]s, the last of which is the [`ExecEnd`].

mod bulk;
mod files;
pub mod pipeline;
mod pump;
mod run;
pub mod stream;
pub mod traffic;
pub mod usage;

use std::time::Duration;

use bytes::Bytes;
use serde::{Deserialize, Serialize};

use crate::audit::record::ExecFinished;
use crate::id::{ApprovalId, ExecId};
use crate::policy::{Command, Refusal, TtySize};

/// One command asked for within a task, with what the caller says about it.
#[derive(Debug, Clone)]
pub struct ExecRequest {
    /// Chosen by the caller or made new. A second request with the same id gets the first one's exec.
    pub id: ExecId,
    pub command: Command,
    /// Why, in the caller's words; shown to reviewers and kept in the record.
    pub reason: Option<String>,
    pub call_id: Option<String>,
    /// W3C trace context.
    pub traceparent: Option<String>,
    /// Within the task's `exec_time`.
    pub timeout: Option<Duration>,
    /// What the command leaves running stays until the task ends.
    pub detach: bool,
}

/// Which stream a piece of output came from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stream {
    Stdout,
    Stderr,
    /// Both, through the pseudo-terminal.
    Pty,
}

/// What a caller does to an exec while it runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Control {
    /// To the command's process group.
    Signal(i32),
    Resize(TtySize),
    /// End it, be it judged, asked about or running.
    Cancel,
}

/// What happens in an exec's life, in this order: `Judged`, perhaps `Asked`, then `Started`, any number of `Output`, and exactly one `Ended`.
#[derive(Debug, Clone)]
pub enum ExecEvent {
    /// `allow`, `ask` or `deny`.
    Judged {
        judgement: &'static str,
    },
    /// Somebody is being asked: by which question, and why.
    Asked {
        approval: ApprovalId,
        reason: String,
    },
    Started,
    Output {
        stream: Stream,
        data: Bytes,
    },
    Ended(ExecEnd),
}

/// The three ways an exec can end; they stay apart all the way out.
#[derive(Debug, Clone)]
pub enum ExecEnd {
    /// Policy, a person or a reviewer said no; nothing was started.
    Refused(Refusal),
    /// belljar failed; the text is safe to show outside.
    Failed { error: String },
    /// The command was started and is over.
    Finished(Box<ExecFinished>),
}
