//! Between the wire and what is inside: requests checked on their way in, states and ends turned into messages on their way
//! out. The one place of the edge that knows the fields of both.

use std::time::Duration;

use bytes::Bytes;

use super::error::ApiError;
use super::messages;
use crate::exec::{ExecEnd, ExecEvent, ExecRequest};
use crate::id::ExecId;
use crate::path::SandboxPath;
use crate::policy::{Command, TtySize};
use crate::supervisor::{self, ExecHandle};

/// The size of a pipe on Linux, unless asked for otherwise.
const STDIN_PIECE: usize = 64 << 10;

/// Reads JSON; an error names the field, the line and what was expected.
pub fn read<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, ApiError> {
    let mut json = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut json).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." {
            String::new()
        } else {
            format!("field \"{path}\": ")
        };
        ApiError::bad_request(format!("{field}{}", error.into_inner()))
    })?;
    json.end().map_err(|error| ApiError::bad_request(error.to_string()))?;
    Ok(value)
}

/// Reads JSON that holds an enum told apart by a field. serde keeps the fields of such an enum aside until it has seen which arm
/// it is; under serde_json's `arbitrary_precision`, which the rules' interpreter turns on for all, a number kept aside straight
/// from the text does not come back as one. Out of a [`serde_json::Value`] it does.
pub fn read_tagged<T: serde::de::DeserializeOwned>(bytes: &[u8]) -> Result<T, serde_json::Error> {
    serde_json::from_value(serde_json::from_slice(bytes)?)
}

impl messages::ExecStart {
    /// The request as the supervisor takes it; all faults are collected before it is turned away.
    pub fn into_request(self, workdir: &SandboxPath) -> Result<ExecRequest, ApiError> {
        let mut faults = Vec::new();
        match self.argv.first() {
            None => faults.push("field \"argv\": the command is empty".to_owned()),
            Some(program) if program.is_empty() => faults.push("field \"argv[0]\": the program is empty".to_owned()),
            Some(_) => {}
        }
        for (at, word) in self.argv.iter().enumerate() {
            if word.contains('\0') {
                faults.push(format!("field \"argv[{at}]\": contains a NUL"));
            }
        }
        for (name, value) in &self.env {
            if name.is_empty() || name.contains(['=', '\0']) {
                faults.push(format!("field \"env\": {name:?} is not the name of a variable"));
            }
            if value.contains('\0') {
                faults.push(format!("field \"env.{name}\": contains a NUL"));
            }
        }
        if let Some(size) = self.tty {
            faults.extend(size_fault(size).map(|fault| format!("field \"tty\": {fault}")));
        }
        let timeout = match self.timeout_seconds {
            None => None,
            Some(seconds) => match Duration::try_from_secs_f64(seconds) {
                Ok(time) if !time.is_zero() => Some(time),
                _ => {
                    faults.push(format!("field \"timeout_seconds\": {seconds} is not a length of time"));
                    None
                }
            },
        };
        if !faults.is_empty() {
            return Err(ApiError::faults(faults));
        }
        Ok(ExecRequest {
            id: self.id.unwrap_or_else(ExecId::new),
            command: Command {
                argv: self.argv,
                cwd: self.cwd.unwrap_or_else(|| workdir.clone()),
                env: self.env,
                stdin: self.stdin,
                tty: self.tty,
            },
            reason: self.reason,
            call_id: self.call_id,
            traceparent: self.traceparent,
            timeout,
            detach: self.detach,
        })
    }
}

/// A pseudo-terminal's size, if it is one.
pub fn size(size: TtySize) -> Result<TtySize, ApiError> {
    match size_fault(size) {
        None => Ok(size),
        Some(fault) => Err(ApiError::bad_request(fault)),
    }
}

fn size_fault(size: TtySize) -> Option<String> {
    let real = size.rows > 0 && size.cols > 0;
    (!real).then(|| format!("{} rows by {} columns is not a terminal's size", size.rows, size.cols))
}

/// A signal's number, if it is one.
pub fn signal(signal: i32) -> Result<i32, ApiError> {
    if (1..=64).contains(&signal) {
        return Ok(signal);
    }
    Err(ApiError::bad_request(format!(
        "field \"signal\": {signal} is not a signal's number (1 to 64)"
    )))
}

/// Writes to a command's standard input in small pieces, so that what is queued for a command that does not read stays small.
pub async fn write_stdin(exec: &ExecHandle, mut data: Bytes) -> Result<(), supervisor::StdinClosed> {
    while !data.is_empty() {
        let piece = data.split_to(data.len().min(STDIN_PIECE));
        exec.write_stdin(piece).await?;
    }
    Ok(())
}

pub fn event(event: ExecEvent) -> messages::Event {
    match event {
        ExecEvent::Judged { judgement } => messages::Event::Judged {
            judgement: judgement.to_owned(),
        },
        ExecEvent::Asked { approval, reason } => messages::Event::Asked { approval, reason },
        ExecEvent::Started => messages::Event::Started,
        ExecEvent::Output { stream, data } => messages::Event::Output { stream, data },
        ExecEvent::Ended(end) => messages::Event::Ended { end: end.into() },
    }
}

impl From<ExecEnd> for messages::ExecEnd {
    fn from(end: ExecEnd) -> Self {
        match end {
            ExecEnd::Refused(refusal) => Self::Refused(messages::Refused {
                reason: refusal.reason,
                how_to_ask: refusal.how_to_ask,
                rules: refusal.basis.rules,
                approver: refusal.basis.approver,
            }),
            ExecEnd::Failed { error } => Self::Failed { error },
            ExecEnd::Finished(finished) => Self::Finished(finished),
        }
    }
}

impl From<supervisor::TaskInfo> for messages::TaskInfo {
    fn from(task: supervisor::TaskInfo) -> Self {
        Self {
            id: task.id,
            name: task.name,
            purpose: task.purpose,
            state: match task.state {
                supervisor::TaskState::Starting => messages::TaskState::Starting,
                supervisor::TaskState::Live => messages::TaskState::Live,
                supervisor::TaskState::Stopping => messages::TaskState::Stopping,
                supervisor::TaskState::Ended => messages::TaskState::Ended,
            },
            created: task.created,
            image: task.image,
            runtime: task.runtime,
            workdir: task.workdir,
            execs: messages::ExecCounts {
                running: task.execs.running,
                finished: task.execs.finished,
                refused: task.execs.refused,
                failed: task.execs.failed,
            },
        }
    }
}

impl From<supervisor::ExecInfo> for messages::ExecInfo {
    fn from(exec: supervisor::ExecInfo) -> Self {
        Self {
            id: exec.id,
            argv: exec.argv,
            cwd: exec.cwd,
            tty: exec.tty,
            reason: exec.reason,
            call_id: exec.call_id,
            created: exec.created,
            state: match exec.state {
                supervisor::ExecState::Judging => messages::ExecState::Judging,
                supervisor::ExecState::Asking => messages::ExecState::Asking,
                supervisor::ExecState::Running => messages::ExecState::Running,
                supervisor::ExecState::Ended => messages::ExecState::Ended,
            },
            judgement: exec.judgement.map(str::to_owned),
            end: exec.end.map(Into::into),
        }
    }
}

impl From<supervisor::TaskSummary> for messages::TaskSummary {
    fn from(summary: supervisor::TaskSummary) -> Self {
        Self {
            id: summary.id,
            name: summary.name,
            outcome: summary.outcome,
            reason: summary.reason,
            wall_seconds: summary.wall_seconds,
            execs: summary.execs.into_iter().map(Into::into).collect(),
            refused_egress: summary.refused_egress.into_iter().map(Into::into).collect(),
        }
    }
}

impl From<supervisor::RefusedEgress> for messages::RefusedEgress {
    fn from(refused: supervisor::RefusedEgress) -> Self {
        Self {
            host: refused.host,
            port: refused.port,
            rule: refused.rule,
            reason: refused.reason,
            count: refused.count,
        }
    }
}

impl From<messages::AgentEvent> for supervisor::AgentEvent {
    fn from(event: messages::AgentEvent) -> Self {
        Self {
            name: event.name,
            call_id: event.call_id,
            body: event.body,
        }
    }
}
