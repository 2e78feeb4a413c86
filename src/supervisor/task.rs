//! One live task: its execs, its end, and what it came to.

use std::collections::HashMap;
use std::convert::Infallible;
use std::fs::File;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::task::Waker;
use std::time::{Duration, Instant};

use bytes::Bytes;
use jiff::Timestamp;
use tokio::sync::{Notify, mpsc, watch};

use super::live_policy::LivePolicy;
use super::way_out::Refused;
use super::{
    AgentEvent, ExecCounts, ExecInfo, ExecState, NotRecorded, NotRunning, StdinClosed, SubmitError, TaskInfo,
    TaskState, TaskSummary, limits,
};
use crate::audit::record::{Entry, Event, TaskOutcome, Usage};
use crate::config::AgentEvents;
use crate::crash;
use crate::egress::ProxyHandle;
use crate::exec::pipeline::{self, Context, Inputs};
use crate::exec::stream::{ExecEvents, Log};
use crate::exec::{Control, ExecEnd, ExecEvent, ExecRequest, usage};
use crate::id::ExecId;
use crate::image::Image;
use crate::policy::Stdin;
use crate::sandbox::protect::Guard;
use crate::task::Task;

/// Execs that may run at once in one task: what an agent with many tools needs, and far from what a host cannot bear.
const RUNNING_MAX: u64 = 256;

/// Ended execs whose output can still be replayed.
const REPLAY_MAX: usize = 64;

/// Pieces of standard input, and requests of the caller, that wait for a command.
const QUEUE: usize = 16;

/// How long execs may take to end when their task ends, before their sandbox goes anyway.
const STOP_PATIENCE: Duration = Duration::from_secs(5);

/// Everything about a task that lives as long as its handles.
pub struct Live {
    pub task: Task,
    pub context: Context,
    pub policy: Arc<LivePolicy>,
    agent_events: AgentEvents,
    created: Timestamp,
    begun: Instant,
    execs: Mutex<Execs>,
    /// An exec has begun.
    busy: Notify,
    refused_egress: Refused,
    /// Held so that nobody removes its layers.
    _image: Image,
    stop: watch::Sender<Option<Stop>>,
    ended: watch::Sender<Option<Arc<TaskSummary>>>,
}

/// Why a task ends.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    /// Its own command is over.
    Finished,
    Asked,
    TimedOut,
    /// The sandbox went away by itself.
    SandboxGone,
}

#[derive(Default)]
struct Execs {
    order: Vec<ExecId>,
    map: HashMap<ExecId, Arc<Exec>>,
    counts: ExecCounts,
}

/// One exec, as long as its task lives.
pub struct Exec {
    pub request: ExecRequest,
    created: Timestamp,
    log: Mutex<Option<Arc<Log>>>,
    status: Mutex<Status>,
    control: mpsc::Sender<Control>,
    stdin: Mutex<Option<mpsc::Sender<Bytes>>>,
    done: watch::Sender<Option<ExecEnd>>,
}

struct Status {
    state: ExecState,
    judgement: Option<&'static str>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code between lock and unlock leaves a value half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Live {
    pub fn new(
        task: Task,
        context: Context,
        policy: Arc<LivePolicy>,
        image: Image,
        refused_egress: Refused,
        agent_events: AgentEvents,
    ) -> Arc<Live> {
        Arc::new(Live {
            task,
            context,
            policy,
            agent_events,
            created: Timestamp::now(),
            begun: Instant::now(),
            execs: Mutex::default(),
            busy: Notify::new(),
            refused_egress,
            _image: image,
            stop: watch::Sender::new(None),
            ended: watch::Sender::new(None),
        })
    }

    pub fn info(&self) -> TaskInfo {
        let state = match (self.ended.borrow().is_some(), self.stop.borrow().is_some()) {
            (true, _) => TaskState::Ended,
            (false, true) => TaskState::Stopping,
            (false, false) => TaskState::Live,
        };
        TaskInfo {
            id: self.task.id,
            name: self.task.name.clone(),
            purpose: self.task.purpose.clone(),
            state,
            created: self.created.to_string(),
            image: super::image_name(&self.task.image),
            runtime: super::runtime_name(&self.task.runtime),
            workdir: self.task.workdir.clone(),
            execs: lock(&self.execs).counts,
        }
    }

    /// Takes a request: starts its exec, or finds the one that has the same id already.
    pub fn submit(self: &Arc<Self>, request: ExecRequest) -> Result<Arc<Exec>, SubmitError> {
        let (control, controls) = mpsc::channel(QUEUE);
        let (stdin, pieces) = mpsc::channel(QUEUE);
        let has_input = request.command.stdin == Stdin::Stream || request.command.tty.is_some();
        let log = Log::new();
        let exec = Arc::new(Exec {
            created: Timestamp::now(),
            log: Mutex::new(Some(log.clone())),
            status: Mutex::new(Status {
                state: ExecState::Judging,
                judgement: None,
            }),
            control,
            stdin: Mutex::new(has_input.then_some(stdin)),
            done: watch::Sender::new(None),
            request,
        });
        {
            let mut execs = lock(&self.execs);
            if let Some(known) = execs.map.get(&exec.request.id) {
                return Ok(known.clone());
            }
            if self.stop.borrow().is_some() {
                return Err(SubmitError::Ended);
            }
            if execs.counts.running >= RUNNING_MAX {
                return Err(SubmitError::TooMany {
                    running: execs.counts.running,
                });
            }
            execs.counts.running += 1;
            execs.order.push(exec.request.id);
            execs.map.insert(exec.request.id, exec.clone());
        }
        self.busy.notify_one();
        let live = self.clone();
        let running = exec.clone();
        let mut steps = Box::pin(async move {
            let inputs = Inputs {
                control: controls,
                stdin: pieces,
            };
            let end = pipeline::run(&live.context, &running.request, inputs, &log, &|event| {
                running.note(event)
            })
            .await;
            live.over(&running, &log, end);
        });
        // Its first steps (judged, recorded, asked of a slot) are short and are made here: another thread would have to wake up first.
        let mut nobody = std::task::Context::from_waker(Waker::noop());
        if steps.as_mut().poll(&mut nobody).is_pending() {
            // Joined by `finish`, which waits for every exec's end.
            tokio::spawn(steps);
        }
        Ok(exec)
    }

    fn over(&self, exec: &Arc<Exec>, log: &Log, end: ExecEnd) {
        lock(&exec.status).state = ExecState::Ended;
        lock(&exec.stdin).take();
        log.end(ExecEvent::Ended(end.clone()));
        let mut execs = lock(&self.execs);
        execs.counts.running -= 1;
        match end {
            ExecEnd::Refused(_) => execs.counts.refused += 1,
            ExecEnd::Failed { .. } => execs.counts.failed += 1,
            ExecEnd::Finished(_) => execs.counts.finished += 1,
        }
        exec.done.send_replace(Some(end));
        // Old output goes; what the execs came to stays until the task ends.
        let ended = execs.order.len().saturating_sub(REPLAY_MAX + RUNNING_MAX as usize);
        if let Some(old) = ended
            .checked_sub(1)
            .and_then(|index| execs.map.get(&execs.order[index]))
            && old.done.borrow().is_some()
        {
            lock(&old.log).take();
        }
    }

    pub fn exec(&self, id: ExecId) -> Option<Arc<Exec>> {
        lock(&self.execs).map.get(&id).cloned()
    }

    pub fn execs(&self) -> Vec<Arc<Exec>> {
        let execs = lock(&self.execs);
        execs.order.iter().filter_map(|id| execs.map.get(id).cloned()).collect()
    }

    pub async fn record(&self, event: AgentEvent) -> Result<(), NotRecorded> {
        let AgentEvent { name, call_id, body } = event;
        let body = match self.agent_events {
            AgentEvents::Full => body,
            AgentEvents::Names => serde_json::Value::Null,
            AgentEvents::None => return Err(NotRecorded::SwitchedOff),
        };
        let entry = Entry {
            task: Some(self.task.id),
            exec: None,
            event: Event::AgentEvent { name, call_id, body },
        };
        self.context
            .journal
            .append(entry)
            .await
            .map(drop)
            .map_err(|error| NotRecorded::Journal(error.to_string()))
    }

    /// Asks the task to end; the first reason stands.
    pub fn request_stop(&self, why: Stop) {
        self.stop.send_if_modified(|stop| match stop {
            Some(_) => false,
            None => {
                *stop = Some(why);
                true
            }
        });
    }

    pub async fn ended(&self) -> Arc<TaskSummary> {
        let mut ended = self.ended.subscribe();
        let summary = ended.wait_for(Option::is_some).await;
        let summary = summary.expect("the sender is in self").clone();
        summary.expect("it was waited for")
    }

    /// Tells commands inside what they may use and have used, for as long as the task lives.
    async fn tell_limits(&self) -> Infallible {
        let tell = || {
            let counters = self.context.sandbox.counters().map(|(_, counters)| counters);
            let text = limits::text(&self.task.limits, counters.as_ref(), self.begun.elapsed());
            self.context.sandbox.tell_limits(text);
        };
        loop {
            tell();
            tokio::time::sleep(limits::PAUSE).await;
            if lock(&self.execs).counts.running == 0 {
                tell();
                self.busy.notified().await;
            }
        }
    }

    /// Watches over the task until it ends, then ends it: the one owner of its sandbox. `lock_file` is held until all is gone.
    pub async fn drive(
        self: Arc<Self>,
        proxy: Option<ProxyHandle>,
        guard: Guard,
        lock_file: File,
        folder: std::path::PathBuf,
    ) {
        let mut stop = self.stop.subscribe();
        let why = {
            let timer = async {
                match self.task.limits.task_time {
                    Some(time) => tokio::time::sleep(time).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                asked = stop.wait_for(Option::is_some) => asked.ok().and_then(|stop| *stop).unwrap_or(Stop::Asked),
                () = timer => Stop::TimedOut,
                () = self.context.sandbox.ended() => Stop::SandboxGone,
                never = self.tell_limits() => match never {},
            }
        };
        self.request_stop(why);
        let summary = self.finish(why, proxy, guard).await;
        crash::point("task: its end is recorded");
        let removed = tokio::task::spawn_blocking(move || std::fs::remove_dir_all(&folder));
        if let Ok(Err(error)) = removed.await {
            tracing::warn!(%error, "a task's folder could not be removed; the next start tries again");
        }
        drop(lock_file);
        // Last: whoever waits for the end may end the process.
        self.ended.send_replace(Some(Arc::new(summary)));
    }

    async fn finish(&self, why: Stop, proxy: Option<ProxyHandle>, guard: Guard) -> TaskSummary {
        let execs = self.execs();
        for exec in &execs {
            exec.cancel();
        }
        let all = async {
            for exec in &execs {
                exec.wait().await;
            }
        };
        let whole = tokio::time::timeout(STOP_PATIENCE, all).await;
        let usage = match self.context.sandbox.counters() {
            Some((version, counters)) => usage::of_cgroup(version, &counters, self.context.sandbox.stall()),
            None => Usage::NONE,
        };
        let network = proxy.as_ref().map(ProxyHandle::bytes);
        if let Some(proxy) = proxy {
            proxy.shutdown().await;
        }
        crash::point("task: its execs are over");
        self.context.sandbox.destroy().await;
        crash::point("task: its sandbox is gone");
        if whole.is_err() {
            // With their sandbox gone they end for certain.
            for exec in &execs {
                exec.wait().await;
            }
        }
        self.context.desk.close().await;
        // Nothing inside runs any more that could change what is looked at here.
        let left_files = tokio::task::spawn_blocking(move || guard.settle())
            .await
            .unwrap_or_default();
        let (outcome, reason) = match why {
            Stop::Finished => (TaskOutcome::Finished, None),
            Stop::Asked => (TaskOutcome::Stopped, None),
            Stop::TimedOut => (TaskOutcome::TimedOut, Some("the task's time is over".to_owned())),
            Stop::SandboxGone => (TaskOutcome::Failed, Some("the sandbox ended by itself".to_owned())),
        };
        let execs: Vec<_> = self.execs().iter().map(|exec| exec.info()).collect();
        let wall_seconds = self.begun.elapsed().as_secs_f64();
        let refused = execs
            .iter()
            .filter(|exec| matches!(exec.end, Some(ExecEnd::Refused(_))))
            .count() as u64;
        let event = Event::TaskFinished {
            outcome,
            reason: reason.clone(),
            wall_seconds,
            execs: execs.len() as u64,
            refused,
            usage,
            network_bytes_sent: network.map(|bytes| bytes.sent),
            network_bytes_received: network.map(|bytes| bytes.received),
            left_files,
        };
        let entry = Entry {
            task: Some(self.task.id),
            exec: None,
            event,
        };
        if let Err(error) = self.context.journal.append(entry).await {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "a task's end could not be recorded"
            );
        }
        TaskSummary {
            id: self.task.id,
            name: self.task.name.clone(),
            outcome,
            reason,
            wall_seconds,
            execs,
            refused_egress: lock(&self.refused_egress).clone(),
        }
    }
}

impl Exec {
    fn note(&self, event: &ExecEvent) {
        let mut status = lock(&self.status);
        match event {
            ExecEvent::Judged { judgement } => status.judgement = Some(judgement),
            ExecEvent::Asked { .. } => status.state = ExecState::Asking,
            ExecEvent::Started => status.state = ExecState::Running,
            ExecEvent::Output { .. } | ExecEvent::Ended(_) => {}
        }
    }

    pub fn info(&self) -> ExecInfo {
        let status = lock(&self.status);
        let command = &self.request.command;
        ExecInfo {
            id: self.request.id,
            argv: command.argv.clone(),
            cwd: command.cwd.clone(),
            tty: command.tty.is_some(),
            reason: self.request.reason.clone(),
            call_id: self.request.call_id.clone(),
            created: self.created.to_string(),
            state: status.state,
            judgement: status.judgement,
            end: self.done.borrow().clone(),
        }
    }

    pub fn events(&self, after: u64) -> ExecEvents {
        match lock(&self.log).as_ref() {
            Some(log) => log.reader(after),
            None => {
                // Its output is let go; the end is still known.
                let log = Log::new();
                if let Some(end) = self.done.borrow().clone() {
                    log.end(ExecEvent::Ended(end));
                }
                log.reader(0)
            }
        }
    }

    pub async fn write_stdin(&self, data: Bytes) -> Result<(), StdinClosed> {
        let sender = lock(&self.stdin).clone().ok_or(StdinClosed)?;
        sender.send(data).await.map_err(|_| StdinClosed)
    }

    pub fn close_stdin(&self) {
        lock(&self.stdin).take();
    }

    fn tell(&self, control: Control) -> Result<(), NotRunning> {
        if self.done.borrow().is_some() {
            return Err(NotRunning);
        }
        self.control.try_send(control).map_err(|_| NotRunning)
    }

    pub fn signal(&self, signal: i32) -> Result<(), NotRunning> {
        match lock(&self.status).state {
            ExecState::Running => {}
            ExecState::Judging | ExecState::Asking | ExecState::Ended => return Err(NotRunning),
        }
        self.tell(Control::Signal(signal))
    }

    pub fn resize(&self, size: crate::policy::TtySize) {
        // An exec that is over has no size to set.
        let _ = self.tell(Control::Resize(size));
    }

    pub fn cancel(&self) {
        if self.tell(Control::Cancel).is_err() && self.done.borrow().is_none() {
            // The queue is full of requests that the command does not take: the cancel must not be one that is lost.
            let control = self.control.clone();
            tokio::spawn(async move {
                let _ = control.send(Control::Cancel).await;
            });
        }
    }

    pub async fn wait(&self) -> ExecEnd {
        let mut done = self.done.subscribe();
        let end = done.wait_for(Option::is_some).await;
        let end = end.expect("the sender is in self").clone();
        end.expect("it was waited for")
    }
}
