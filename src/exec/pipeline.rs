//! The story of one exec, on one page: judged, perhaps asked about, started, streamed, counted, recorded.
//!
//! ```text
//!  request ─▶ judge ─▶ Allow ───────────────▶ permit ─▶ slot ─▶ streams, limits ─▶ end ─▶ record ─▶ answer
//!               │  └─▶ Ask ─▶ desk ─▶ yes ─────┘
//!               │               └─▶ no ─┐
//!               └─▶ Deny ───────────────┴─▶ refused
//! ```
//!
//! Each arrow to the right is in the journal before it is taken. A started exec has exactly one finished record, whichever way it
//! ended: here, or as `lost` at the next start.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::mpsc;

use super::files::Named;
use super::run::{self, Ended, Limits};
use super::stream::Log;
use super::traffic::Traffic;
use super::{Control, ExecEnd, ExecEvent, ExecRequest};
use crate::approval::{Asked, Desk, Subject};
use crate::audit::journal::{Journal, JournalError};
use crate::audit::record::{Entry, Event, ExecFinished, ExecOutcome, env_names};
use crate::crash;
use crate::egress::EgressBytes;
use crate::id::{ApprovalId, TaskId};
use crate::policy::amend::{About, Amendment};
use crate::policy::{Answer, Basis, Decision, InForce, Judgement, Permit, Question, Refusal};
use crate::sandbox::oci::{Sandbox, SandboxError};
use crate::task::Root;

/// What all execs of a task share.
pub struct Context {
    pub task: TaskId,
    pub journal: Journal,
    pub policy: Arc<InForce>,
    pub desk: Arc<Desk>,
    pub sandbox: Arc<Sandbox>,
    /// What goes through the way out; none where there is none.
    pub traffic: Option<Arc<Traffic>>,
    pub exec_time: Option<Duration>,
    /// Of stdout and stderr together, in bytes.
    pub output: u64,
    pub image_digest: Option<String>,
    pub plan_digest: String,
    pub requirements_digest: Option<String>,
    /// Of the host, as the sandbox sees them.
    pub roots: Vec<Root>,
}

/// What a caller can do to an exec while it runs.
pub struct Inputs {
    pub control: mpsc::Receiver<Control>,
    pub stdin: mpsc::Receiver<bytes::Bytes>,
}

#[derive(Debug, thiserror::Error)]
enum PipelineError {
    #[error("the journal cannot be written, so nothing runs")]
    Journal(#[from] JournalError),
    #[error("the sandbox cannot run it")]
    Sandbox(#[from] SandboxError),
}

/// Runs one exec from its request to its end. Never dropped half-way but with the process: `supervisor` joins it.
pub async fn run(
    context: &Context,
    request: &ExecRequest,
    inputs: Inputs,
    log: &Log,
    on: &(dyn Fn(&ExecEvent) + Sync),
) -> ExecEnd {
    match steps(context, request, inputs, log, on).await {
        Ok(end) => end,
        Err(error) => {
            tracing::error!(exec = %request.id, error = &error as &dyn std::error::Error, "an exec failed");
            // The chain names host paths; outside only the step is told.
            ExecEnd::Failed {
                error: error.to_string(),
            }
        }
    }
}

async fn steps(
    context: &Context,
    request: &ExecRequest,
    mut inputs: Inputs,
    log: &Log,
    on: &(dyn Fn(&ExecEvent) + Sync),
) -> Result<ExecEnd, PipelineError> {
    let listeners = Listeners { log, on };
    let entry = |event| Entry {
        task: Some(context.task),
        exec: Some(request.id),
        event,
    };

    let judgement = context
        .policy
        .judge(request.id, &request.command, context.sandbox.place());
    let (word, basis) = match &judgement {
        Judgement::Allow(permit) => ("allow", permit.basis()),
        Judgement::Ask(question) => ("ask", question.basis()),
        Judgement::Deny(refusal) => ("deny", &refusal.basis),
    };
    let judged = entry(judged(context, request, word, basis));
    let started = |permit: &Permit| {
        entry(Event::ExecStarted {
            argv: request.command.argv.clone(),
            cwd: request.command.cwd.to_string(),
            tty: request.command.tty.is_some(),
            approver: permit.basis().approver.clone(),
        })
    };
    let told = ExecEvent::Judged { judgement: word };

    // The caller hears of the judgement once it is written; what follows from it without a wait is in the same commit.
    let permit = match judgement {
        Judgement::Allow(permit) => {
            context.journal.append_all([judged, started(&permit)]).await?;
            listeners.tell(told).await;
            permit
        }
        Judgement::Deny(refusal) => {
            let refused = entry(refused(request, &refusal));
            context.journal.append_all([judged, refused]).await?;
            listeners.tell(told).await;
            return Ok(ExecEnd::Refused(refusal));
        }
        Judgement::Ask(question) => {
            context.journal.append(judged).await?;
            listeners.tell(told).await;
            match ask(context, request, question, &mut inputs.control, &listeners).await? {
                Ok(permit) => {
                    context.journal.append(started(&permit)).await?;
                    permit
                }
                Err(refusal) => {
                    context.journal.append(entry(refused(request, &refusal))).await?;
                    return Ok(ExecEnd::Refused(refusal));
                }
            }
        }
    };
    crash::point("exec: recorded, not started");

    let basis = permit.basis().clone();
    let moved = context.traffic.as_ref().map(|traffic| traffic.begin(request.id));
    let ended = start_and_wait(context, request, permit, inputs, log, on).await;
    let (end, failure) = match ended {
        Ok(ended) => (ended, None),
        Err(error) => (Ended::lost(&error.to_string()), Some(error)),
    };
    crash::point("exec: over, not recorded");
    // Without a way out nothing went out.
    let moved = moved.map_or(Some(EgressBytes::default()), |moved| moved.sum());
    let finished = finished(context, request, basis, end, moved);
    context
        .journal
        .append(entry(Event::ExecFinished(Box::new(finished.clone()))))
        .await?;
    crash::point("exec: its end is recorded, not told");
    match failure {
        None => Ok(ExecEnd::Finished(Box::new(finished))),
        Some(error) => Err(error.into()),
    }
}

/// Those who hear what happens to an exec.
struct Listeners<'a> {
    log: &'a Log,
    on: &'a (dyn Fn(&ExecEvent) + Sync),
}

impl Listeners<'_> {
    async fn tell(&self, event: ExecEvent) {
        (self.on)(&event);
        self.log.append(event).await;
    }
}

/// The one place that waits for a person. A cancel withdraws the question.
async fn ask(
    context: &Context,
    request: &ExecRequest,
    question: Question,
    control: &mut mpsc::Receiver<Control>,
    listeners: &Listeners<'_>,
) -> Result<Result<Permit, Refusal>, PipelineError> {
    let command = &request.command;
    let about =
        shlex::try_join(command.argv.iter().map(String::as_str)).unwrap_or_else(|_| format!("{:?}", command.argv));
    let mut facts = vec![("folder".to_owned(), command.cwd.to_string())];
    facts.extend(
        command
            .env
            .iter()
            .map(|(name, value)| (format!("env {name}"), value.clone())),
    );
    facts.extend(
        request
            .reason
            .iter()
            .map(|reason| ("reason given".to_owned(), reason.clone())),
    );
    let named = {
        let (command, roots) = (command.clone(), context.roots.clone());
        let look = move || Named::by(&command, &roots);
        // Empty where the runtime is ending, and the question with it.
        tokio::task::spawn_blocking(look).await.unwrap_or_default()
    };
    let files: Vec<String> = named.iter().map(Named::to_string).collect();
    facts.extend(files.iter().map(|file| ("file".to_owned(), file.clone())));
    let asked = Asked {
        id: ApprovalId::new(),
        task: context.task,
        exec: Some(request.id),
        subject: Subject::Command(command.clone()),
        about,
        facts,
        reason: question.reason().to_owned(),
        rules: question.basis().rules.clone(),
        files,
        digest: context.desk.digest_of_command(command),
        offer: question.offer().map(|prefix| Amendment {
            about: About::Commands(prefix.to_vec()),
            decision: Decision::Allow,
            justification: None,
        }),
    };
    const CANCELED: &str = "the caller canceled it while somebody was asked";
    let mut waiting = context.desk.enter(asked);
    let approval = tokio::select! {
        approval = waiting.asked() => approval,
        () = canceled(control) => return Ok(question.withdraw(CANCELED)),
    };
    if let Some(approval) = approval {
        let reason = question.reason().to_owned();
        listeners.tell(ExecEvent::Asked { approval, reason }).await;
    }
    tokio::select! {
        ended = waiting.end() => {
            let (answer, approver) = ended?;
            let look = move || named.into_iter().find(|file| !file.is_same());
            let changed = match tokio::task::spawn_blocking(look).await {
                Ok(changed) => changed.map(|file| file.path().to_string()),
                Err(_) => Some("a file of it".to_owned()),
            };
            match (answer, context.policy.closed(), changed) {
                (Answer::Approve(_), Some(reason), _) => Ok(question.withdraw(&reason)),
                (Answer::Approve(_), None, Some(file)) => {
                    let why = format!("{file} was changed while somebody was asked about it");
                    Ok(question.withdraw(&why))
                }
                (answer, ..) => Ok(question.answer(answer, approver)),
            }
        }
        () = canceled(control) => Ok(question.withdraw(CANCELED)),
    }
}

/// Returns when the caller wants an end, or is gone. Nothing runs yet that could be signalled or resized. Cancel-safe.
async fn canceled(control: &mut mpsc::Receiver<Control>) {
    loop {
        match control.recv().await {
            Some(Control::Cancel) | None => return,
            Some(Control::Signal(_) | Control::Resize(_)) => {}
        }
    }
}

async fn start_and_wait(
    context: &Context,
    request: &ExecRequest,
    permit: Permit,
    inputs: Inputs,
    log: &Log,
    on: &(dyn Fn(&ExecEvent) + Sync),
) -> Result<Ended, SandboxError> {
    let time = match (context.exec_time, request.timeout) {
        (Some(limit), Some(asked)) => Some(limit.min(asked)),
        (limit, asked) => limit.or(asked),
    };
    run::run(
        &context.sandbox,
        request,
        permit,
        Limits {
            time,
            output: context.output,
        },
        inputs,
        log,
        on,
    )
    .await
}

fn judged(context: &Context, request: &ExecRequest, judgement: &str, basis: &Basis) -> Event {
    let command = &request.command;
    Event::ExecJudged {
        argv: command.argv.clone(),
        cwd: command.cwd.to_string(),
        env_names: env_names(&command.env),
        judgement: judgement.to_owned(),
        rules: basis.rules.clone(),
        opaque: basis.opaque,
        digest: command.digest(context.sandbox.place()).to_string(),
        reason: request.reason.clone(),
        call_id: request.call_id.clone(),
        traceparent: request.traceparent.clone(),
    }
}

fn refused(request: &ExecRequest, refusal: &Refusal) -> Event {
    Event::ExecRefused {
        argv: request.command.argv.clone(),
        reason: refusal.reason.clone(),
        rules: refusal.basis.rules.clone(),
        approver: refusal.basis.approver.clone(),
    }
}

fn finished(
    context: &Context,
    request: &ExecRequest,
    basis: Basis,
    end: Ended,
    moved: Option<EgressBytes>,
) -> ExecFinished {
    let command = &request.command;
    ExecFinished {
        argv: command.argv.clone(),
        cwd: command.cwd.to_string(),
        env_names: env_names(&command.env),
        outcome: end.outcome,
        exit_code: end.exit_code,
        signal: end.signal,
        error: end.error,
        wall_seconds: end.wall.as_secs_f64(),
        usage: end.usage,
        network_bytes_sent: moved.map(|bytes| bytes.sent),
        network_bytes_received: moved.map(|bytes| bytes.received),
        stdout_bytes: end.stdout.bytes,
        stderr_bytes: end.stderr.bytes,
        stdout_digest: end.stdout.digest,
        stderr_digest: end.stderr.digest,
        image_digest: context.image_digest.clone(),
        plan_digest: Some(context.plan_digest.clone()),
        requirements_digest: context.requirements_digest.clone(),
        rules: basis.rules,
        approver: basis.approver,
        reason: request.reason.clone(),
        call_id: request.call_id.clone(),
        traceparent: request.traceparent.clone(),
    }
}

impl Ended {
    /// The command was to start, and what became of it is not known.
    fn lost(error: &str) -> Ended {
        Ended {
            outcome: ExecOutcome::Lost,
            error: Some(error.to_owned()),
            ..Ended::default()
        }
    }
}
