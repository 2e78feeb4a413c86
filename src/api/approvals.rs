//! Questions of the gate over the API: who is at the other end, what waits, and an answer.
//!
//! Whether an answer is a person's or the harness's is not the caller's to say: a person's is one that comes from belljar's own
//! program at a terminal, as the kernel tells of the process at the other end (or from root, who may do anything here). All
//! else is the harness's, which may always deny, and approve where `gate.approvers` has it. This tells a person's hand from a
//! program that means no harm; it is no boundary against other processes of the same user.

use std::convert::Infallible;

use axum::extract::{ConnectInfo, Path, State};
use axum::response::sse::{Event as SseEvent, KeepAlive, Sse};
use axum::routing::{get, post};
use axum::{Json, Router};
use futures_util::stream::{self, SelectAll, Stream, StreamExt as _};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::error::ApiError;
use super::messages::ErrorCode;
use super::routes::{Body, Tasks};
use super::server::Peer;
use crate::approval::{AnswerError, Change, OpenQuestion, Reply, Settled, Watch};
use crate::id::{ApprovalId, ExecId, TaskId};
use crate::policy::{Approver, ApproverKind, RuleMatch, Scope};
use crate::supervisor::TaskHandle;
use crate::sys::process::is_own_program_at_a_terminal;
use crate::sys::user::{myself, name_of};

/// A question that waits for an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Approval {
    pub id: ApprovalId,
    pub task: TaskId,
    pub task_name: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub purpose: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub exec: Option<ExecId>,
    /// What it is about, on one line.
    pub about: String,
    pub facts: Vec<Fact>,
    /// Why somebody is asked.
    pub reason: String,
    pub rules: Vec<RuleMatch>,
    /// Whether only a person may say yes.
    pub person_only: bool,
    pub since: String,
    /// When it becomes a no.
    pub until: String,
    /// How many requests wait for this one answer.
    pub waiting: u64,
    /// How far a yes may reach.
    pub scopes: Vec<Scope>,
    /// The rule that `rule` adds, and the file that it is added to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub rule_file: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct Fact {
    pub name: String,
    pub value: String,
}

/// An answer to a question.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(deny_unknown_fields)]
pub struct ApprovalAnswer {
    pub decision: ApprovalDecision,
    #[serde(default = "once")]
    pub scope: Scope,
    /// What the agent is told; of a denial.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
}

fn once() -> Scope {
    Scope::Once
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum ApprovalDecision {
    Approve,
    Deny,
}

/// What became of an answer.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
pub struct ApprovalSettled {
    pub id: ApprovalId,
    pub scope: Scope,
    /// What went otherwise than was asked for.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub note: Option<String>,
}

/// What happens to questions. A question may be told of twice; its id says so.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, JsonSchema)]
#[serde(tag = "type", rename_all = "snake_case")]
pub enum ApprovalChange {
    Asked {
        approval: Box<Approval>,
    },
    Answered {
        id: ApprovalId,
        /// `approve`, `deny` or `withdrawn`.
        answer: String,
        approver: Approver,
    },
    /// Some were missed: list them anew.
    Missed,
}

impl ApprovalAnswer {
    pub(super) fn into_reply(self) -> Result<Reply, ApiError> {
        if self.reason.as_ref().is_some_and(|reason| reason.len() > 4096) {
            return Err(ApiError::bad_request("field \"reason\": longer than 4096 bytes"));
        }
        Ok(match self.decision {
            ApprovalDecision::Approve => Reply::Approve(self.scope),
            ApprovalDecision::Deny => Reply::Deny {
                scope: self.scope,
                reason: self.reason,
            },
        })
    }
}

impl Approval {
    pub(super) fn of(task: &TaskHandle, question: OpenQuestion) -> Self {
        let info = task.info();
        let asked = &question.asked;
        let (rule, rule_file) = question.rule.unzip();
        Self {
            id: asked.id,
            task: asked.task,
            task_name: info.name,
            purpose: info.purpose,
            exec: asked.exec,
            about: asked.about.clone(),
            facts: asked
                .facts
                .iter()
                .map(|(name, value)| Fact {
                    name: name.clone(),
                    value: value.clone(),
                })
                .collect(),
            reason: asked.reason.clone(),
            rules: asked.rules.clone(),
            person_only: asked.person_only(),
            since: question.since.to_string(),
            until: question.until.to_string(),
            waiting: question.waiting as u64,
            scopes: question.scopes,
            rule,
            rule_file,
        }
    }
}

impl ApprovalSettled {
    pub(super) fn of(id: ApprovalId, settled: Settled) -> Self {
        Self {
            id,
            scope: settled.scope,
            note: settled.note,
        }
    }
}

impl ApprovalChange {
    /// Nothing for the change that only ends a stream.
    pub(super) fn of(task: &TaskHandle, change: Change) -> Option<Self> {
        Some(match change {
            Change::Asked(question) => Self::Asked {
                approval: Box::new(Approval::of(task, question)),
            },
            Change::Answered {
                approval,
                answer,
                approver,
            } => Self::Answered {
                id: approval,
                answer: answer.to_owned(),
                approver,
            },
            Change::Missed => Self::Missed,
            Change::Closed => return None,
        })
    }
}

impl From<AnswerError> for ApiError {
    fn from(error: AnswerError) -> Self {
        let code = match &error {
            AnswerError::NoSuchQuestion { .. } => ErrorCode::NotFound,
            AnswerError::AlreadyAnswered { .. } => ErrorCode::Conflict,
            AnswerError::NotYours { .. } | AnswerError::Scope { .. } => ErrorCode::Forbidden,
            AnswerError::NoRule => ErrorCode::BadRequest,
            AnswerError::NotRecorded => ErrorCode::Internal,
        };
        Self::new(code, error.to_string())
    }
}

pub(super) fn router() -> Router<Tasks> {
    Router::new()
        .route("/v1/approvals", get(list))
        .route("/v1/approvals/watch", get(watch))
        .route("/v1/approvals/{approval}", post(answer))
}

async fn list(State(tasks): State<Tasks>) -> Json<Vec<Approval>> {
    let open = tasks.0.iter().flat_map(|task| {
        let open = task.desk().open().into_iter();
        open.map(|question| Approval::of(task, question))
    });
    Json(open.collect())
}

async fn answer(
    State(tasks): State<Tasks>,
    ConnectInfo(peer): ConnectInfo<Peer>,
    Path(id): Path<String>,
    Body(answer): Body<ApprovalAnswer>,
) -> Result<Json<ApprovalSettled>, ApiError> {
    let id: ApprovalId = id.parse().map_err(|error| ApiError::bad_request(format!("{error}")))?;
    let (reply, by) = (answer.into_reply()?, peer.approver());
    for task in tasks.0.iter() {
        match task.desk().answer(id, reply.clone(), by.clone()).await {
            Err(AnswerError::NoSuchQuestion { .. }) => continue,
            Ok(settled) => {
                return Ok(Json(ApprovalSettled::of(id, settled)));
            }
            Err(error) => return Err(error.into()),
        }
    }
    Err(AnswerError::NoSuchQuestion { id }.into())
}

/// First every question that waits, then what happens. It ends with the last of the tasks.
async fn watch(
    State(tasks): State<Tasks>,
    ConnectInfo(peer): ConnectInfo<Peer>,
) -> Sse<impl Stream<Item = Result<SseEvent, Infallible>>> {
    let kind = peer.approver().kind;
    let mut all = SelectAll::new();
    for task in tasks.0.iter() {
        // Before the list is taken, so that nothing falls in between.
        let watch = task.desk().watch(kind);
        let open: Vec<ApprovalChange> = task
            .desk()
            .open()
            .into_iter()
            .filter_map(|question| ApprovalChange::of(task, Change::Asked(question)))
            .collect();
        all.push(stream::iter(open).chain(changes(task.clone(), watch)).boxed());
    }
    let events = all.map(|change| {
        // An event has string keys only.
        let json = serde_json::to_string(&change).unwrap_or_default();
        Ok(SseEvent::default().data(json))
    });
    Sse::new(events).keep_alive(KeepAlive::default())
}

fn changes(task: TaskHandle, watch: Watch) -> impl Stream<Item = ApprovalChange> {
    stream::unfold((task, watch), |(task, mut watch)| async move {
        let change = ApprovalChange::of(&task, watch.next().await?)?;
        Some((change, (task, watch)))
    })
}

impl Peer {
    /// Who this is, as an answer's record names them.
    fn approver(self) -> Approver {
        let number = |number: Option<i64>| number.map_or("?".to_owned(), |number| number.to_string());
        let (uid, pid) = (self.uid.map(i64::from), self.pid.map(i64::from));
        let is_other_root = self.uid == Some(0) && myself().uid != 0;
        let kind = match self.pid {
            _ if is_other_root => ApproverKind::Person,
            Some(pid) if is_own_program_at_a_terminal(pid) => ApproverKind::Person,
            Some(_) | None => ApproverKind::Harness,
        };
        Approver {
            kind,
            name: self.uid.map_or("?".to_owned(), name_of),
            via: format!("socket (uid {}, pid {})", number(uid), number(pid)),
        }
    }
}
