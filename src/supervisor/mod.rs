//! Many tasks over time: making them, watching over them, ending them, and clearing up after a belljar that was killed.
//!
//! ```text
//!   Supervisor::start ── recovery: what the last one left ──┐
//!   Supervisor::start_task(Task, Policy, …) ── record ── sandbox ── record ── TaskHandle
//!        Live::drive (one a task) ── waits for: stop, time, sandbox gone ── ends execs, proxy, sandbox ── record ── summary
//! ```
//!
//! A task's folder is `<state>/tasks/<id>/`, locked while its belljar lives. In it are `task.json` and, where somebody serves it,
//! `api.sock`; in its sandbox's own mount namespace, and only there, the sandbox's root is mounted over it.

mod driver;
mod engines;
mod images;
mod limits;
mod live_policy;
mod recovery;
mod rule_book;
mod task;
pub mod way_out;

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use serde::Serialize;

use crate::approval::Desk;
use crate::audit::record::TaskOutcome;
use crate::exec::{ExecEnd, ExecRequest};
use crate::id::{ExecId, TaskId};
use crate::path::SandboxPath;
use crate::policy::TtySize;
use crate::task::{ImageRef, Runtime};

pub use crate::exec::stream::ExecEvents;
pub use driver::{RootFacts, StartError, Supervisor, SupervisorError, enforced, plan, unmapped};
pub use engines::own_engine;
pub use images::{FindError, Heard, find};
pub use live_policy::{LivePolicy, NextPolicy};

/// A live task. Cheap to clone; dropping all handles does not end the task.
#[derive(Clone)]
pub struct TaskHandle {
    live: Arc<task::Live>,
    folder: PathBuf,
}

/// A task as it stands now.
#[derive(Debug, Clone, Serialize)]
pub struct TaskInfo {
    pub id: TaskId,
    pub name: String,
    pub purpose: Option<String>,
    pub state: TaskState,
    /// RFC 3339, UTC.
    pub created: String,
    pub image: String,
    pub runtime: String,
    /// Where a command runs that names no folder of its own.
    pub workdir: SandboxPath,
    pub execs: ExecCounts,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum TaskState {
    Starting,
    Live,
    Stopping,
    Ended,
}

#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize)]
pub struct ExecCounts {
    pub running: u64,
    pub finished: u64,
    pub refused: u64,
    pub failed: u64,
}

/// An exec as it stands now.
#[derive(Debug, Clone)]
pub struct ExecInfo {
    pub id: ExecId,
    pub argv: Vec<String>,
    pub cwd: SandboxPath,
    pub tty: bool,
    pub reason: Option<String>,
    pub call_id: Option<String>,
    /// RFC 3339, UTC.
    pub created: String,
    pub state: ExecState,
    /// `allow`, `ask` or `deny`, once it is known.
    pub judgement: Option<&'static str>,
    pub end: Option<ExecEnd>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ExecState {
    Judging,
    Asking,
    Running,
    Ended,
}

/// What a task came to.
#[derive(Debug, Clone)]
pub struct TaskSummary {
    pub id: TaskId,
    pub name: String,
    pub outcome: TaskOutcome,
    pub reason: Option<String>,
    pub wall_seconds: f64,
    pub execs: Vec<ExecInfo>,
    pub refused_egress: Vec<RefusedEgress>,
}

/// A destination that the policy refused, and how often.
#[derive(Debug, Clone, Serialize)]
pub struct RefusedEgress {
    pub host: String,
    pub port: u16,
    pub rule: String,
    pub reason: String,
    pub count: u64,
}

#[derive(Debug, thiserror::Error)]
pub enum SubmitError {
    #[error("the task has ended")]
    Ended,
    #[error("the task has {running} execs running already, which is its limit")]
    TooMany { running: u64 },
}

#[derive(Debug, thiserror::Error)]
#[error("the command's standard input is closed")]
pub struct StdinClosed;

#[derive(Debug, thiserror::Error)]
#[error("the command is not running")]
pub struct NotRunning;

#[derive(Debug, thiserror::Error)]
pub enum NotRecorded {
    #[error("the journal cannot be written: {0}")]
    Journal(String),
    #[error("the configuration says that events of a harness are not recorded (journal.agent_events)")]
    SwitchedOff,
}

/// What only the harness knows: a prompt, a tool call, an answer.
#[derive(Debug, Clone, PartialEq)]
pub struct AgentEvent {
    pub name: String,
    pub call_id: Option<String>,
    pub body: serde_json::Value,
}

impl TaskHandle {
    pub fn id(&self) -> TaskId {
        self.live.task.id
    }

    pub fn info(&self) -> TaskInfo {
        self.live.info()
    }

    /// The task's folder under the state folder; gone when the task is.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// A second request with the same id gets the first one's exec.
    pub fn submit(&self, request: ExecRequest) -> Result<ExecHandle, SubmitError> {
        self.live.submit(request).map(ExecHandle)
    }

    pub fn exec(&self, id: ExecId) -> Option<ExecHandle> {
        self.live.exec(id).map(ExecHandle)
    }

    pub fn execs(&self) -> Vec<ExecInfo> {
        self.live.execs().iter().map(|exec| exec.info()).collect()
    }

    /// Puts what the harness says into the journal; the answer comes once it is there.
    pub async fn record(&self, event: AgentEvent) -> Result<(), NotRecorded> {
        self.live.record(event).await
    }

    /// What is in force in the task, and may change.
    pub fn policy(&self) -> &Arc<LivePolicy> {
        &self.live.policy
    }

    /// Where the task's questions wait.
    pub fn desk(&self) -> &Arc<Desk> {
        &self.live.context.desk
    }

    /// Ends the task and waits until all is gone.
    pub async fn stop(&self) {
        self.live.request_stop(task::Stop::Asked);
        self.live.ended().await;
    }

    /// Ends the task, whose own command is over, and waits until all is gone.
    pub async fn finish(&self) {
        self.live.request_stop(task::Stop::Finished);
        self.live.ended().await;
    }

    /// Waits for the task's end.
    pub async fn wait(&self) -> TaskSummary {
        (*self.live.ended().await).clone()
    }
}

/// One exec of a live task.
#[derive(Clone)]
pub struct ExecHandle(Arc<task::Exec>);

impl ExecHandle {
    pub fn id(&self) -> ExecId {
        self.0.request.id
    }

    pub fn info(&self) -> ExecInfo {
        self.0.info()
    }

    /// Events with a number greater than `after`, as far as they are still held, then those to come.
    pub fn events(&self, after: u64) -> ExecEvents {
        self.0.events(after)
    }

    /// Waits while the command does not read.
    pub async fn write_stdin(&self, data: Bytes) -> Result<(), StdinClosed> {
        self.0.write_stdin(data).await
    }

    pub fn close_stdin(&self) {
        self.0.close_stdin()
    }

    pub fn signal(&self, signal: i32) -> Result<(), NotRunning> {
        self.0.signal(signal)
    }

    pub fn resize(&self, size: TtySize) {
        self.0.resize(size)
    }

    pub fn cancel(&self) {
        self.0.cancel()
    }

    pub async fn wait(&self) -> ExecEnd {
        self.0.wait().await
    }
}

/// An image as a person names it.
fn image_name(image: &ImageRef) -> String {
    match image {
        ImageRef::Host => "host".to_owned(),
        ImageRef::Rootfs(path) | ImageRef::OciLayout(path) => path.to_string(),
        ImageRef::Named(name) => name.clone(),
    }
}

pub fn runtime_name(runtime: &Runtime) -> String {
    match runtime {
        Runtime::Builtin => "builtin".to_owned(),
        Runtime::Outside(name) => name.clone(),
    }
}
