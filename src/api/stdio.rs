//! The API without a socket: one JSON document a line, requests in, answers and notifications out.
//!
//! ```text
//! -> {"id":1,"method":"exec.start","params":{"argv":["make","test"]}}
//! <- {"id":1,"result":{"id":"0192…","state":"judging",…}}
//! <- {"method":"exec.event","params":{"exec":"0192…","seq":1,"type":"judged","judgement":"allow"}}
//! <- {"method":"exec.event","params":{"exec":"0192…","seq":3,"type":"output","stream":"stdout","data":"b2sK"}}
//! <- {"method":"approval.event","params":{"type":"asked","approval":{"id":"0192…","about":"git push",…}}}
//! -> {"id":2,"method":"approval.answer","params":{"approval":"0192…","decision":"approve"}}
//! <- {"method":"task.ended","params":{…the summary…}}
//! ```
//!
//! Answers may come in another order than requests; a request's events come after its answer. The end of the input stops the
//! task. An answer given here is the harness's: it counts as a yes where `gate.approvers` has the harness. Who does not read the output makes the commands wait: the queue to it is bounded.

use std::collections::{HashMap, HashSet};
use std::io;
use std::time::Duration;

use bytes::Bytes;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use tokio::io::{AsyncBufRead, AsyncBufReadExt as _, AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::approvals::{Approval, ApprovalAnswer, ApprovalChange, ApprovalDecision, ApprovalSettled};
use super::error::ApiError;
use super::messages::{self, ErrorCode, Event, ExecStart};
use super::wire;
use crate::approval::Change;
use crate::id::{ApprovalId, ExecId};
use crate::policy::{Approver, ApproverKind, Scope, TtySize};
use crate::supervisor::{ExecHandle, TaskHandle};
use crate::sys::user::myself;

/// The longest line taken.
const LINE_LIMIT: u64 = 64 << 20;
/// Lines on their way out; each holds at most one piece of output.
const OUT_QUEUE: usize = 16;
/// `exec.stdin` requests of one exec that wait for the command to read, and one `exec.stdin_close`.
const STDIN_QUEUE: usize = 8;
/// Requests that are not answered yet, such as `exec.wait`.
const WAITING: usize = 1024;
/// How long the last events may take to be read after the task has ended.
const LAST_WORDS: Duration = Duration::from_secs(5);

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Request {
    id: Value,
    method: String,
    #[serde(default)]
    params: Value,
}

#[derive(Serialize)]
struct EventParams {
    exec: ExecId,
    seq: u64,
    #[serde(flatten)]
    event: Event,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct Named {
    exec: ExecId,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct StdinParams {
    exec: ExecId,
    #[serde(with = "messages::base64_text")]
    data: Bytes,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AnswerParams {
    approval: ApprovalId,
    decision: ApprovalDecision,
    #[serde(default = "once")]
    scope: Scope,
    reason: Option<String>,
}

fn once() -> Scope {
    Scope::Once
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct SignalParams {
    exec: ExecId,
    signal: i32,
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct ResizeParams {
    exec: ExecId,
    rows: u16,
    cols: u16,
}

/// Speaks for `task` until it has ended or the input has, which ends the task. `first` is the exec of the task's own command,
/// if it has one: its events are told like those of any other.
///
/// Reading goes on in a thread of the runtime that may be blocked in `read` when this returns: end the process without
/// waiting for it.
pub async fn speak<R, W>(task: TaskHandle, first: Option<ExecHandle>, input: R, output: W) -> io::Result<()>
where
    R: AsyncRead + Unpin + Send + 'static,
    W: AsyncWrite + Unpin + Send + 'static,
{
    let (out, lines_out) = mpsc::channel(OUT_QUEUE);
    let writer = tokio::spawn(write_lines(output, lines_out));
    let (lines, mut lines_in) = mpsc::channel(1);
    let reader = tokio::spawn(read_lines(input, lines));

    let mut session = Session {
        task: task.clone(),
        out,
        known: HashSet::new(),
        stdin: HashMap::new(),
        told: JoinSet::new(),
        waiting: JoinSet::new(),
    };
    session.told.spawn(tell_questions(task.clone(), session.out.clone()));
    if let Some(exec) = first {
        session.tell(exec);
    }
    let ended = task.wait();
    tokio::pin!(ended);
    let summary = loop {
        tokio::select! {
            line = lines_in.recv() => match line {
                Some(line) => session.take(line?).await,
                None => {
                    task.stop().await;
                    break ended.await;
                }
            },
            summary = &mut ended => break summary,
            Some(_) = session.told.join_next() => {}
            Some(_) = session.waiting.join_next() => {}
        }
    };
    reader.abort();
    let last_words = async {
        while session.told.join_next().await.is_some() {}
        while session.waiting.join_next().await.is_some() {}
        let summary = messages::TaskSummary::from(summary);
        session.say(json!({"method": "task.ended", "params": summary})).await;
        drop(session);
        writer.await
    };
    match tokio::time::timeout(LAST_WORDS, last_words).await {
        Ok(Ok(written)) => written,
        Ok(Err(_)) => Ok(()),
        Err(_) => Err(io::Error::new(io::ErrorKind::TimedOut, "nobody reads the output")),
    }
}

struct Session {
    task: TaskHandle,
    out: mpsc::Sender<String>,
    /// The execs that are or were told of.
    known: HashSet<ExecId>,
    /// Where `exec.stdin` goes, for each exec that runs.
    stdin: HashMap<ExecId, mpsc::Sender<Stdin>>,
    told: JoinSet<()>,
    waiting: JoinSet<()>,
}

enum Stdin {
    Data(Value, Bytes),
    Close(Value),
}

enum Line {
    Whole(Vec<u8>),
    TooLong,
}

impl Session {
    async fn take(&mut self, line: Line) {
        let line = match line {
            Line::Whole(line) => line,
            Line::TooLong => {
                let error = ApiError::new(
                    ErrorCode::TooLarge,
                    format!("the line is longer than {LINE_LIMIT} bytes"),
                );
                return self.say(failure(&Value::Null, &error)).await;
            }
        };
        if line.iter().all(u8::is_ascii_whitespace) {
            return;
        }
        let request: Request = match wire::read(&line) {
            Ok(request) => request,
            Err(error) => return self.say(failure(&Value::Null, &error)).await,
        };
        let id = request.id.clone();
        if let Err(error) = self.act(request).await {
            self.say(failure(&id, &error)).await;
        }
    }

    async fn act(&mut self, Request { id, method, params }: Request) -> Result<(), ApiError> {
        match method.as_str() {
            "task.info" => self.answer(&id, messages::TaskInfo::from(self.task.info())).await,
            "task.stop" => {
                let (task, out) = (self.task.clone(), self.out.clone());
                self.later(async move {
                    task.stop().await;
                    let summary = messages::TaskSummary::from(task.wait().await);
                    send(&out, success(&id, summary)).await;
                })?;
            }
            "agent.event" => {
                let event: messages::AgentEvent = read(params)?;
                self.task.record(event.into()).await?;
                self.answer(&id, messages::Recorded { recorded: true }).await;
            }
            "exec.start" => {
                let start: ExecStart = read(params)?;
                let exec = self.task.submit(start.into_request(&self.task.info().workdir)?)?;
                self.answer(&id, messages::ExecInfo::from(exec.info())).await;
                self.tell(exec);
            }
            "exec.list" => {
                let execs = self.task.execs();
                let execs: Vec<messages::ExecInfo> = execs.into_iter().map(Into::into).collect();
                self.answer(&id, execs).await;
            }
            "exec.wait" => {
                let exec = self.find(read::<Named>(params)?.exec)?;
                let out = self.out.clone();
                self.later(async move {
                    exec.wait().await;
                    send(&out, success(&id, messages::ExecInfo::from(exec.info()))).await;
                })?;
            }
            "exec.stdin" => {
                let StdinParams { exec, data } = read(params)?;
                self.feed(exec, Stdin::Data(id, data))?;
            }
            "exec.stdin_close" => {
                let exec = read::<Named>(params)?.exec;
                self.feed(exec, Stdin::Close(id))?;
            }
            "exec.signal" => {
                let SignalParams { exec, signal } = read(params)?;
                self.find(exec)?.signal(wire::signal(signal)?)?;
                self.answer(&id, json!({})).await;
            }
            "exec.resize" => {
                let ResizeParams { exec, rows, cols } = read(params)?;
                self.find(exec)?.resize(wire::size(TtySize { rows, cols })?);
                self.answer(&id, json!({})).await;
            }
            "approval.list" => {
                let open = self.task.desk().open().into_iter();
                let open: Vec<Approval> = open.map(|question| Approval::of(&self.task, question)).collect();
                self.answer(&id, open).await;
            }
            "approval.answer" => {
                let AnswerParams {
                    approval,
                    decision,
                    scope,
                    reason,
                } = read(params)?;
                let answer = ApprovalAnswer {
                    decision,
                    scope,
                    reason,
                };
                let (task, out, reply) = (self.task.clone(), self.out.clone(), answer.into_reply()?);
                // It is answered once it is recorded, and what it adds is in force.
                self.later(async move {
                    let answer = match task.desk().answer(approval, reply, harness()).await {
                        Ok(settled) => success(&id, ApprovalSettled::of(approval, settled)),
                        Err(error) => failure(&id, &error.into()),
                    };
                    send(&out, answer).await;
                })?;
            }
            "exec.cancel" => {
                self.find(read::<Named>(params)?.exec)?.cancel();
                self.answer(&id, json!({})).await;
            }
            other => return Err(ApiError::not_found(format!("there is no method {other:?}"))),
        }
        Ok(())
    }

    /// Tells all that happens in an exec, from its beginning, and takes its stdin; once, however often it is asked for.
    fn tell(&mut self, exec: ExecHandle) {
        let id = exec.id();
        if !self.known.insert(id) {
            return;
        }
        self.stdin.retain(|_, queue| !queue.is_closed());
        let (queue, requests) = mpsc::channel(STDIN_QUEUE);
        self.stdin.insert(id, queue);
        let out = self.out.clone();
        self.told.spawn(async move {
            tokio::join!(tell_events(&exec, &out), take_stdin(&exec, requests, &out));
        });
    }

    fn feed(&mut self, exec: ExecId, request: Stdin) -> Result<(), ApiError> {
        let Some(queue) = self.stdin.get(&exec) else {
            self.find(exec)?;
            return Err(crate::supervisor::StdinClosed.into());
        };
        // The last place is for the close.
        if queue.capacity() <= 1 && matches!(request, Stdin::Data(..)) {
            let text = "the command has not read what it was sent: wait for an answer before sending more";
            return Err(ApiError::new(ErrorCode::TooMany, text));
        }
        queue
            .try_send(request)
            .map_err(|_| crate::supervisor::StdinClosed.into())
    }

    /// Answers later, without holding up the requests that follow.
    fn later(&mut self, work: impl Future<Output = ()> + Send + 'static) -> Result<(), ApiError> {
        if self.waiting.len() >= WAITING {
            return Err(ApiError::new(
                ErrorCode::TooMany,
                format!("{WAITING} requests are waiting already"),
            ));
        }
        self.waiting.spawn(work);
        Ok(())
    }

    fn find(&self, id: ExecId) -> Result<ExecHandle, ApiError> {
        let exec = self.task.exec(id);
        exec.ok_or_else(|| ApiError::not_found(format!("there is no exec {id} in this task")))
    }

    async fn answer(&self, id: &Value, result: impl Serialize) {
        self.say(success(id, result)).await;
    }

    async fn say(&self, message: Value) {
        send(&self.out, message).await;
    }
}

/// Tells of the task's questions: those that wait, then what happens.
async fn tell_questions(task: TaskHandle, out: mpsc::Sender<String>) {
    // Before the list is taken, so that nothing falls in between.
    let mut watch = task.desk().watch(ApproverKind::Harness);
    let open = task.desk().open().into_iter().map(Change::Asked);
    for change in open {
        tell_change(&task, change, &out).await;
    }
    while let Some(change) = watch.next().await {
        tell_change(&task, change, &out).await;
    }
}

async fn tell_change(task: &TaskHandle, change: Change, out: &mpsc::Sender<String>) {
    if let Some(change) = ApprovalChange::of(task, change) {
        send(out, json!({"method": "approval.event", "params": change})).await;
    }
}

/// Whoever speaks here drives the task.
fn harness() -> Approver {
    Approver {
        kind: ApproverKind::Harness,
        name: myself().name,
        via: "stdio".to_owned(),
    }
}

async fn tell_events(exec: &ExecHandle, out: &mpsc::Sender<String>) {
    let mut events = exec.events(0);
    let id = exec.id();
    while let Some((seq, event)) = events.next().await {
        let params = EventParams {
            exec: id,
            seq,
            event: wire::event(event),
        };
        send(out, json!({"method": "exec.event", "params": params})).await;
    }
}

/// Writes what comes, in order, each answered once the command's pipe has taken it; ends with the exec.
async fn take_stdin(exec: &ExecHandle, mut requests: mpsc::Receiver<Stdin>, out: &mpsc::Sender<String>) {
    loop {
        let request = tokio::select! {
            request = requests.recv() => request,
            _ = exec.wait() => {
                // What is queued is still answered; nothing new gets in.
                requests.close();
                requests.recv().await
            }
        };
        let answer = match request {
            None => return,
            Some(Stdin::Data(id, data)) => match wire::write_stdin(exec, data).await {
                Ok(()) => success(&id, json!({})),
                Err(closed) => failure(&id, &closed.into()),
            },
            Some(Stdin::Close(id)) => {
                exec.close_stdin();
                success(&id, json!({}))
            }
        };
        send(out, answer).await;
    }
}

fn read<T: DeserializeOwned>(params: Value) -> Result<T, ApiError> {
    let params = if params.is_null() { json!({}) } else { params };
    serde_path_to_error::deserialize(params).map_err(|error| {
        let path = error.path().to_string();
        let field = if path == "." {
            "params".to_owned()
        } else {
            format!("params.{path}")
        };
        ApiError::bad_request(format!("field \"{field}\": {}", error.into_inner()))
    })
}

fn success(id: &Value, result: impl Serialize) -> Value {
    json!({"id": id, "result": result})
}

fn failure(id: &Value, error: &ApiError) -> Value {
    json!({"id": id, "error": error.0})
}

async fn send(out: &mpsc::Sender<String>, message: Value) {
    // Closed only when the output is: then the task is being stopped, and nobody listens.
    let _ = out.send(message.to_string()).await;
}

async fn write_lines(mut output: impl AsyncWrite + Unpin, mut lines: mpsc::Receiver<String>) -> io::Result<()> {
    while let Some(mut line) = lines.recv().await {
        line.push('\n');
        output.write_all(line.as_bytes()).await?;
        output.flush().await?;
    }
    Ok(())
}

async fn read_lines(input: impl AsyncRead + Unpin, lines: mpsc::Sender<io::Result<Line>>) {
    let mut input = tokio::io::BufReader::new(input);
    loop {
        let line = read_line(&mut input).await;
        let last = !matches!(line, Ok(Some(_)));
        if let Some(line) = line.transpose()
            && lines.send(line).await.is_err()
        {
            return;
        }
        if last {
            return;
        }
    }
}

async fn read_line(input: &mut (impl AsyncBufRead + Unpin)) -> io::Result<Option<Line>> {
    let mut line = Vec::new();
    let read = (&mut *input).take(LINE_LIMIT + 1).read_until(b'\n', &mut line).await?;
    if read == 0 {
        return Ok(None);
    }
    if read as u64 <= LINE_LIMIT || line.ends_with(b"\n") {
        return Ok(Some(Line::Whole(line)));
    }
    loop {
        let rest = input.fill_buf().await?;
        let (skip, done) = match rest.iter().position(|byte| *byte == b'\n') {
            Some(at) => (at + 1, true),
            None => (rest.len(), rest.is_empty()),
        };
        input.consume(skip);
        if done {
            return Ok(Some(Line::TooLong));
        }
    }
}
