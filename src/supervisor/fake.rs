//! Plain child processes behind the interface. `forbidden …` is refused, `broken …` fails, `question …` asks and is refused.

use std::process::Stdio;
use std::sync::{Arc, Mutex};
use std::time::Instant;

use bytes::Bytes;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::process::ChildStdin;
use tokio::sync::watch;

use super::{AgentEvent, ExecCounts, ExecInfo, ExecState, NotRunning, StdinClosed, SubmitError, TaskInfo, TaskState};
use super::{TaskSummary, TtySize};
use crate::audit::record::{ExecFinished, ExecOutcome, TaskOutcome, Usage};
use crate::exec::{ExecEnd, ExecEvent, ExecRequest, Stream};
use crate::id::{ExecId, TaskId};
use crate::path::SandboxPath;
use crate::policy::{Basis, Decision, Refusal, RuleMatch, Stdin};

#[derive(Clone)]
pub(super) struct Task(Arc<TaskInner>);

struct TaskInner {
    info: TaskInfo,
    began: Instant,
    execs: Mutex<Vec<Exec>>,
    events: Mutex<Vec<AgentEvent>>,
    state: watch::Sender<TaskState>,
}

impl Task {
    pub(super) fn new(name: &str) -> Self {
        let info = TaskInfo {
            id: TaskId::new(),
            name: name.to_owned(),
            purpose: Some("to be driven by tests".to_owned()),
            state: TaskState::Live,
            created: jiff::Timestamp::now().to_string(),
            image: "host".to_owned(),
            runtime: "builtin".to_owned(),
            workdir: SandboxPath::new("/").expect("/ is absolute"),
            execs: ExecCounts::default(),
        };
        Self(Arc::new(TaskInner {
            info,
            began: Instant::now(),
            execs: Mutex::default(),
            events: Mutex::default(),
            state: watch::Sender::new(TaskState::Live),
        }))
    }

    pub(super) fn info(&self) -> TaskInfo {
        let mut info = self.0.info.clone();
        info.state = *self.0.state.borrow();
        for exec in self.execs() {
            match exec.end {
                None => info.execs.running += 1,
                Some(ExecEnd::Refused(_)) => info.execs.refused += 1,
                Some(ExecEnd::Failed { .. }) => info.execs.failed += 1,
                Some(ExecEnd::Finished(_)) => info.execs.finished += 1,
            }
        }
        info
    }

    pub(super) fn submit(&self, request: ExecRequest) -> Result<Exec, SubmitError> {
        if *self.0.state.borrow() != TaskState::Live {
            return Err(SubmitError::Ended);
        }
        let mut execs = self.0.execs.lock().unwrap();
        if let Some(exec) = execs.iter().find(|e| e.info().id == request.id) {
            return Ok(exec.clone());
        }
        let running = execs.iter().filter(|e| e.info().end.is_none()).count();
        if running >= 64 {
            return Err(SubmitError::TooMany { running });
        }
        let exec = Exec::start(request);
        execs.push(exec.clone());
        Ok(exec)
    }

    pub(super) fn exec(&self, id: ExecId) -> Option<Exec> {
        self.0.execs.lock().unwrap().iter().find(|e| e.info().id == id).cloned()
    }

    pub(super) fn execs(&self) -> Vec<ExecInfo> {
        self.0.execs.lock().unwrap().iter().map(Exec::info).collect()
    }

    pub(super) fn record(&self, event: AgentEvent) {
        self.0.events.lock().unwrap().push(event);
    }

    pub(super) fn agent_events(&self) -> Vec<AgentEvent> {
        self.0.events.lock().unwrap().clone()
    }

    pub(super) async fn stop(&self) {
        self.0.state.send_replace(TaskState::Stopping);
        let execs = self.0.execs.lock().unwrap().clone();
        for exec in execs {
            exec.cancel();
            exec.wait().await;
        }
        self.0.state.send_replace(TaskState::Ended);
    }

    pub(super) async fn wait(&self) -> TaskSummary {
        let mut state = self.0.state.subscribe();
        let ended = state.wait_for(|s| *s == TaskState::Ended).await;
        ended.expect("the sender lives as long as the task");
        TaskSummary {
            id: self.0.info.id,
            name: self.0.info.name.clone(),
            outcome: TaskOutcome::Stopped,
            reason: None,
            wall_seconds: self.0.began.elapsed().as_secs_f64(),
            execs: self.execs(),
            refused_egress: vec![],
        }
    }
}

#[derive(Clone)]
pub(super) struct Exec(Arc<ExecInner>);

struct ExecInner {
    info: Mutex<ExecInfo>,
    events: Mutex<Vec<ExecEvent>>,
    count: watch::Sender<u64>,
    stdin: tokio::sync::Mutex<Option<ChildStdin>>,
    close: watch::Sender<bool>,
    pid: watch::Sender<Option<i32>>,
    canceled: watch::Sender<bool>,
}

impl Exec {
    fn start(request: ExecRequest) -> Self {
        let info = ExecInfo {
            id: request.id,
            argv: request.command.argv.clone(),
            cwd: request.command.cwd.clone(),
            tty: request.command.tty.is_some(),
            reason: request.reason.clone(),
            call_id: request.call_id.clone(),
            created: jiff::Timestamp::now().to_string(),
            state: ExecState::Judging,
            judgement: None,
            end: None,
        };
        let exec = Self(Arc::new(ExecInner {
            info: Mutex::new(info),
            events: Mutex::default(),
            count: watch::Sender::new(0),
            stdin: tokio::sync::Mutex::new(None),
            close: watch::Sender::new(false),
            pid: watch::Sender::new(None),
            canceled: watch::Sender::new(false),
        }));
        tokio::spawn(exec.clone().live(request));
        exec
    }

    async fn live(self, request: ExecRequest) {
        let program = request.command.argv[0].as_str();
        let judgement = match program {
            "forbidden" => "deny",
            "question" => "ask",
            _ => "allow",
        };
        self.0.info.lock().unwrap().judgement = Some(judgement);
        self.tell(ExecEvent::Judged { judgement });
        let end = match program {
            "forbidden" => refused("no-forbidden", "forbidden by a rule"),
            "question" => {
                self.0.info.lock().unwrap().state = ExecState::Asking;
                self.tell(ExecEvent::Asked {
                    reason: "a person must look at it".to_owned(),
                });
                refused("ask-question", "nobody could be asked")
            }
            "broken" => ExecEnd::Failed {
                error: "the sandbox does not answer".to_owned(),
            },
            _ => self.run(&request).await,
        };
        {
            let mut info = self.0.info.lock().unwrap();
            info.state = ExecState::Ended;
            info.end = Some(end.clone());
        }
        self.tell(ExecEvent::Ended(end));
    }

    async fn run(&self, request: &ExecRequest) -> ExecEnd {
        let began = Instant::now();
        let command = &request.command;
        let tty = command.tty.is_some();
        let mut child = match tokio::process::Command::new(&command.argv[0])
            .args(&command.argv[1..])
            .current_dir(command.cwd.as_str())
            .envs(&command.env)
            .stdin(if command.stdin == Stdin::Stream {
                Stdio::piped()
            } else {
                Stdio::null()
            })
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true)
            .spawn()
        {
            Ok(child) => child,
            Err(error) => {
                let code = if error.kind() == std::io::ErrorKind::NotFound {
                    127
                } else {
                    126
                };
                let mut finished = finished(request, ExecOutcome::Exited);
                finished.exit_code = Some(code);
                finished.error = Some(error.to_string());
                return ExecEnd::Finished(finished);
            }
        };
        *self.0.stdin.lock().await = child.stdin.take();
        self.0.pid.send_replace(child.id().map(|id| id as i32));
        self.0.info.lock().unwrap().state = ExecState::Running;
        self.tell(ExecEvent::Started);
        let stdout = child.stdout.take().expect("stdout is piped");
        let stderr = child.stderr.take().expect("stderr is piped");
        let streams = if tty {
            (Stream::Pty, Stream::Pty)
        } else {
            (Stream::Stdout, Stream::Stderr)
        };
        let outputs = async {
            tokio::join!(self.read(stdout, streams.0), self.read(stderr, streams.1));
            child.wait().await
        };
        let mut canceled = self.0.canceled.subscribe();
        let time = request.timeout.unwrap_or(std::time::Duration::from_secs(3600));
        let (outcome, status) = tokio::select! {
            status = outputs => (None, status.ok()),
            _ = canceled.wait_for(|c| *c) => (Some(ExecOutcome::Canceled), None),
            () = tokio::time::sleep(time) => (Some(ExecOutcome::TimedOut), None),
        };
        self.0.pid.send_replace(None);
        let signal = status.and_then(|s| std::os::unix::process::ExitStatusExt::signal(&s));
        let outcome = outcome.unwrap_or(if signal.is_some() {
            ExecOutcome::Signaled
        } else {
            ExecOutcome::Exited
        });
        let mut finished = finished(request, outcome);
        finished.exit_code = status.and_then(|s| s.code());
        finished.signal = signal;
        finished.wall_seconds = began.elapsed().as_secs_f64();
        ExecEnd::Finished(finished)
    }

    async fn read(&self, mut from: impl tokio::io::AsyncRead + Unpin, stream: Stream) {
        let mut buffer = vec![0; 65536];
        while let Ok(n @ 1..) = from.read(&mut buffer).await {
            self.tell(ExecEvent::Output {
                stream,
                data: Bytes::copy_from_slice(&buffer[..n]),
            });
        }
    }

    fn tell(&self, event: ExecEvent) {
        let mut events = self.0.events.lock().unwrap();
        events.push(event);
        self.0.count.send_replace(events.len() as u64);
    }

    pub(super) fn info(&self) -> ExecInfo {
        self.0.info.lock().unwrap().clone()
    }

    pub(super) async fn event_after(&self, after: u64) -> Option<(u64, ExecEvent)> {
        if let Some(ExecEvent::Ended(_)) = after
            .checked_sub(1)
            .and_then(|at| self.0.events.lock().unwrap().get(at as usize).cloned())
        {
            return None;
        }
        let mut count = self.0.count.subscribe();
        count.wait_for(|count| *count > after).await.ok()?;
        let event = self.0.events.lock().unwrap()[after as usize].clone();
        Some((after + 1, event))
    }

    pub(super) async fn write_stdin(&self, data: &[u8]) -> Result<(), StdinClosed> {
        let mut pid = self.0.pid.subscribe();
        let mut count = self.0.count.subscribe();
        tokio::select! {
            started = pid.wait_for(Option::is_some) => { started.map_err(|_| StdinClosed)?; }
            _ = count.wait_for(|_| self.info().end.is_some()) => return Err(StdinClosed),
        }
        let mut close = self.0.close.subscribe();
        let mut stdin = self.0.stdin.lock().await;
        let Some(pipe) = stdin.as_mut() else {
            return Err(StdinClosed);
        };
        tokio::select! {
            written = pipe.write_all(data) => written.map_err(|_| StdinClosed),
            _ = count.wait_for(|_| self.info().end.is_some()) => Err(StdinClosed),
            _ = close.wait_for(|c| *c) => Err(StdinClosed),
        }
    }

    pub(super) fn close_stdin(&self) {
        self.0.close.send_replace(true);
        let exec = self.clone();
        tokio::spawn(async move {
            let mut pid = exec.0.pid.subscribe();
            let _ = pid.wait_for(Option::is_some).await;
            *exec.0.stdin.lock().await = None;
        });
    }

    pub(super) fn signal(&self, signal: i32) -> Result<(), NotRunning> {
        let pid = (*self.0.pid.borrow()).ok_or(NotRunning)?;
        let signal = nix::sys::signal::Signal::try_from(signal).map_err(|_| NotRunning)?;
        nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), signal).map_err(|_| NotRunning)
    }

    pub(super) fn resize(&self, size: TtySize) {
        self.tell(ExecEvent::Output {
            stream: Stream::Pty,
            data: Bytes::from(format!("[{}x{}]", size.rows, size.cols)),
        });
    }

    pub(super) fn cancel(&self) {
        self.0.canceled.send_replace(true);
    }

    pub(super) async fn wait(&self) -> ExecEnd {
        let mut count = self.0.count.subscribe();
        let ended = count.wait_for(|_| self.info().end.is_some()).await;
        ended.expect("the sender lives as long as the exec");
        self.info().end.expect("it has ended")
    }
}

fn refused(id: &str, reason: &str) -> ExecEnd {
    ExecEnd::Refused(Refusal {
        basis: Basis {
            rules: vec![RuleMatch {
                id: id.to_owned(),
                file: "test.rules".to_owned(),
                line: 3,
                decision: Decision::Forbidden,
                justification: None,
                person_only: false,
            }],
            opaque: false,
            approver: None,
        },
        reason: reason.to_owned(),
        how_to_ask: "use something else".to_owned(),
    })
}

fn finished(request: &ExecRequest, outcome: ExecOutcome) -> Box<ExecFinished> {
    Box::new(ExecFinished {
        argv: request.command.argv.clone(),
        cwd: request.command.cwd.to_string(),
        env_names: request.command.env.keys().cloned().collect(),
        outcome,
        exit_code: None,
        signal: None,
        error: None,
        wall_seconds: 0.0,
        usage: Usage::NONE,
        network_bytes_sent: 0,
        network_bytes_received: 0,
        stdout_bytes: 0,
        stderr_bytes: 0,
        stdout_digest: None,
        stderr_digest: None,
        image_digest: None,
        plan_digest: None,
        requirements_digest: None,
        rules: vec![],
        approver: None,
        reason: request.reason.clone(),
        call_id: request.call_id.clone(),
        traceparent: request.traceparent.clone(),
    })
}
