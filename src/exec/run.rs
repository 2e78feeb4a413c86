//! From a permit to an end: one command in a slot, its streams, its limits, and how it came to its end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use belljar_guest::{FromSlot, Rusage, Step, ToSlot};
use bytes::Bytes;
use rustix::io::Errno;
use sha2::{Digest as _, Sha256};
use tokio::io::Interest;
use tokio::sync::{mpsc, watch};
use tokio::time::sleep_until;

use super::pipeline::Inputs;
use super::stream::Log;
use super::{Control, ExecEvent, ExecRequest, Stream, usage};
use crate::audit::record::{ExecOutcome, Usage};
use crate::crash;
use crate::policy::{Digest, Permit, Stdin, TtySize};
use crate::sandbox::oci::{Sandbox, SandboxError, Slot, Started, Stdio};
use crate::sys::{packet, process};

/// A pipe that holds this much is read in few, large pieces; see DESIGN: pipes of 1 MiB matter most for streaming.
const PIPE_BYTES: usize = 1 << 20;

/// One piece of output at most.
const PIECE_BYTES: usize = 256 << 10;

/// How long a killed command may take to be reported by its slot, before the slot's whole cgroup is killed from outside.
const KILL_PATIENCE: Duration = Duration::from_secs(2);

/// How long a command may take to end after it was killed from outside, before its whole sandbox is given up.
const GIVE_UP_PATIENCE: Duration = Duration::from_secs(20);

/// How long a terminal is read after the command's end: the kernel hands what was written there on in its own time. A pipe needs none,
/// for what was written before the end is in it.
const TERMINAL_PATIENCE: Duration = Duration::from_secs(2);

/// The same for a command whose leftovers stay: they keep the terminal, and nobody reads it any more.
const DETACHED_PATIENCE: Duration = Duration::from_millis(50);

/// How long a reader who stands still may hold up an exec that is to be ended.
const READER_PATIENCE: Duration = Duration::from_secs(2);

/// From this time on it is asked for how long a command had to wait for resources.
const STALL_FROM: Duration = Duration::from_millis(50);

/// The limits of one exec.
pub struct Limits {
    pub time: Option<Duration>,
    pub output: u64,
}

/// What one stream came to.
#[derive(Debug, Default)]
pub struct Streamed {
    pub bytes: u64,
    /// `sha256:…` over all of them; none for a stream that the exec did not have.
    pub digest: Option<String>,
}

/// How an exec ended.
#[derive(Debug)]
pub struct Ended {
    pub outcome: ExecOutcome,
    pub exit_code: Option<i32>,
    pub signal: Option<i32>,
    pub error: Option<String>,
    pub wall: Duration,
    pub usage: Usage,
    pub stdout: Streamed,
    pub stderr: Streamed,
}

impl Default for Ended {
    fn default() -> Self {
        Ended {
            outcome: ExecOutcome::Lost,
            exit_code: None,
            signal: None,
            error: None,
            wall: Duration::ZERO,
            usage: Usage::NONE,
            stdout: Streamed::default(),
            stderr: Streamed::default(),
        }
    }
}

/// Why belljar ends a command before it ends itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cause {
    TimedOut,
    Canceled,
    OutputLimit,
}

/// What the slot said at the end.
enum Report {
    Exited {
        status: i32,
        usage: Rusage,
    },
    NotStarted {
        step: Step,
        errno: i32,
    },
    /// The slot was killed from inside, and its command with it; the sandbox is whole.
    Killed,
    /// The slot is gone with its sandbox, or said something out of turn.
    Gone,
}

/// What the end of a slot's socket means. Only SIGKILL ends a slot by itself, and only somebody inside sends it.
async fn closed(sandbox: &std::sync::Arc<Sandbox>) -> Report {
    match sandbox.answers().await {
        true => Report::Killed,
        false => Report::Gone,
    }
}

/// Runs a command to its end. Not cancel-safe: the caller owns it until it returns.
pub async fn run(
    sandbox: &std::sync::Arc<Sandbox>,
    request: &ExecRequest,
    permit: Permit,
    limits: Limits,
    inputs: Inputs,
    log: &Log,
    on: &(dyn Fn(&ExecEvent) + Sync),
) -> Result<Ended, SandboxError> {
    let begun = Instant::now();
    let budget = Budget {
        left: std::sync::atomic::AtomicU64::new(limits.output),
        spent: tokio::sync::Notify::new(),
    };
    let (streams, started) = match request.command.tty {
        Some(TtySize { rows, cols }) => {
            let tty = Stdio::Tty { rows, cols };
            (
                Streams::Tty,
                sandbox
                    .start_exec(permit, &request.command, request.detach, tty)
                    .await?,
            )
        }
        None => {
            let (out, stdout) = packet::output_pipe(PIPE_BYTES)?;
            let (err, stderr) = packet::output_pipe(PIPE_BYTES)?;
            let (stdin, feed) = match request.command.stdin {
                Stdin::None => (OwnedFd::from(std::fs::File::open("/dev/null")?), None),
                Stdin::Stream => packet::input_pipe().map(|(read, write)| (read, Some(write)))?,
            };
            sandbox.hand_over(&[stdout.as_fd(), stderr.as_fd()])?;
            if feed.is_some() {
                sandbox.hand_over(&[stdin.as_fd()])?;
            }
            let pipes = Stdio::Pipes {
                stdin: stdin.as_fd(),
                stdout: stdout.as_fd(),
                stderr: stderr.as_fd(),
            };
            let started = sandbox
                .start_exec(permit, &request.command, request.detach, pipes)
                .await?;
            // The command's ends are closed here: the pipes end when the command's side lets go of them.
            (Streams::Pipes { out, err, feed }, started)
        }
    };
    let Started { mut slot, permit: _ } = started;
    crash::point("exec: asked of the slot");
    // While the slot is at its work, so that nobody waits for it.
    let stalled = slot.stall();
    // Nothing else comes before: the slot answers at once.
    let (streams, report) = match slot.link.hear().await {
        Ok(Some((FromSlot::Started { .. }, fds))) => (streams.with_terminal(fds)?, None),
        Ok(Some((FromSlot::NotStarted { step, errno }, _))) => (streams, Some(Report::NotStarted { step, errno })),
        Ok(None) => (streams, Some(closed(sandbox).await)),
        Ok(Some((FromSlot::Ready | FromSlot::Exited { .. }, _))) | Err(_) => (streams, Some(Report::Gone)),
    };
    let report = match report {
        Some(report) => (report, None, Streamed::default(), Streamed::default()),
        None => {
            crash::point("exec: runs");
            let event = ExecEvent::Started;
            on(&event);
            log.append(event).await;
            attend(
                sandbox,
                &slot,
                request.detach,
                streams,
                limits.time,
                &budget,
                inputs,
                log,
            )
            .await
        }
    };
    let (report, cause, stdout, stderr) = report;
    let wall = begun.elapsed();
    let counters = slot.counters();
    let is_dead = matches!(report, Report::Gone | Report::Killed);
    // A sandbox with a kernel of its own runs out of memory as a whole.
    let is_starved = is_dead && counters.is_none() && sandbox.has_run_out_of_memory();
    let counted = sandbox.cgroup_version().zip(counters).map(|(version, counters)| {
        // A short command has no time to wait for anything, and many of them should not pay for the look.
        let stall = stalled.filter(|_| wall >= STALL_FROM);
        let stall = stall.and_then(|before| Some(slot.stall()?.since(before)));
        usage::of_cgroup(version, &counters, stall)
    });
    let mut ended = conclude(report, cause, counted, wall, stdout, stderr);
    if ended.usage.oom_kills.is_some_and(|kills| kills > 0) {
        ended.usage.oom_limit = sandbox.counters().map(|(_, task)| usage::oom_limit(&task));
    }
    if is_starved && ended.outcome == ExecOutcome::Lost {
        ended.outcome = ExecOutcome::OomKilled;
    }
    if is_dead {
        slot.retire();
    } else if request.detach {
        // A detached exec's slot keeps what it left running until the task ends.
        sandbox.keep(slot);
    } else {
        sandbox.give_back(slot);
    }
    Ok(ended)
}

/// How much output is left to an exec.
struct Budget {
    left: std::sync::atomic::AtomicU64,
    spent: tokio::sync::Notify,
}

impl Budget {
    /// How many of these bytes may still go out.
    fn take(&self, bytes: u64) -> u64 {
        use std::sync::atomic::Ordering::Relaxed;
        let before = self
            .left
            .fetch_update(Relaxed, Relaxed, |left| Some(left.saturating_sub(bytes)))
            .unwrap_or(0);
        if before < bytes {
            self.spent.notify_one();
        }
        before.min(bytes)
    }
}

enum Streams {
    Pipes {
        out: OwnedFd,
        err: OwnedFd,
        feed: Option<OwnedFd>,
    },
    Tty,
    Terminal(OwnedFd),
}

impl Streams {
    fn with_terminal(self, fds: Vec<OwnedFd>) -> io::Result<Streams> {
        match self {
            Streams::Tty => {
                let master = fds.into_iter().next().ok_or(io::ErrorKind::InvalidData)?;
                process::set_nonblocking(&master)?;
                Ok(Streams::Terminal(master))
            }
            other => Ok(other),
        }
    }
}

#[allow(
    clippy::too_many_arguments,
    reason = "the one caller is above, and a struct would only name these again"
)]
async fn attend(
    sandbox: &std::sync::Arc<Sandbox>,
    slot: &Slot,
    detach: bool,
    streams: Streams,
    time: Option<Duration>,
    budget: &Budget,
    inputs: Inputs,
    log: &Log,
) -> (Report, Option<Cause>, Streamed, Streamed) {
    let Inputs { mut control, stdin } = inputs;
    let deadline = time.map(|time| tokio::time::Instant::now() + time);
    let mut cause = None;
    let mut kill_deadline: Option<tokio::time::Instant> = None;
    let mut is_killed = false;
    let mut callers = true;
    let mut report = None;

    let mut stdout = Tally::default();
    let mut stderr = Tally::default();
    let (terminal, out, err, feed) = match streams {
        Streams::Pipes { out, err, feed } => (None, Some(out), Some(err), feed),
        Streams::Terminal(master) => (Some(master), None, None, None),
        Streams::Tty => (None, None, None, None),
    };
    let resize = |size: TtySize| {
        if let Some(terminal) = &terminal {
            slot.link.resize(terminal.as_fd(), size.rows, size.cols);
        }
    };
    let over = watch::Sender::new(None);
    // A terminal is one stream, and is counted as stdout.
    let first = match (out, terminal.as_ref().map(OwnedFd::try_clone)) {
        (Some(fd), _) => Some((fd, Stream::Stdout)),
        (None, Some(Ok(fd))) => Some((fd, Stream::Pty)),
        (None, Some(Err(_)) | None) => None,
    };
    let io = async {
        tokio::join!(
            async {
                if let Some((fd, stream)) = first {
                    pump(fd, stream, &mut stdout, budget, log, over.subscribe()).await;
                }
            },
            async {
                if let Some(fd) = err {
                    pump(fd, Stream::Stderr, &mut stderr, budget, log, over.subscribe()).await;
                }
            },
        );
    };
    let feeding = feed_stdin(feed, terminal.as_ref(), stdin);
    {
        tokio::pin!(io, feeding);
        let (mut io_done, mut feed_done) = (false, false);
        // Until the command is over; its output may end before or after that.
        while report.is_none() {
            tokio::select! {
                biased;
                heard = slot.link.hear() => report = Some(match heard {
                    Ok(Some((FromSlot::Exited { status, usage, .. }, _))) => Report::Exited { status, usage },
                    Ok(None) if cause.is_none() => closed(sandbox).await,
                    // Out of turn, or gone: nothing that this slot says can be trusted any more.
                    Ok(Some((FromSlot::Ready | FromSlot::Started { .. } | FromSlot::NotStarted { .. }, _)) | None) | Err(_) => Report::Gone,
                }),
                asked = control.recv(), if callers => match asked {
                    Some(Control::Signal(signal)) => {
                        let _ = slot.link.say(&ToSlot::Signal { signal }, &[]);
                    }
                    Some(Control::Resize(size)) => resize(size),
                    Some(Control::Cancel) => end(slot, Cause::Canceled, &mut cause, &mut kill_deadline),
                    None => callers = false,
                },
                () = sleep_until(deadline.unwrap_or_else(far)), if deadline.is_some() && cause.is_none() => {
                    end(slot, Cause::TimedOut, &mut cause, &mut kill_deadline);
                }
                () = budget.spent.notified(), if cause.is_none() => {
                    end(slot, Cause::OutputLimit, &mut cause, &mut kill_deadline);
                }
                () = sleep_until(kill_deadline.unwrap_or_else(far)), if kill_deadline.is_some() => {
                    if is_killed {
                        // What does not end when it is killed cannot be told anything any more.
                        sandbox.condemn();
                        kill_deadline = None;
                    } else {
                        slot.kill();
                        is_killed = true;
                        kill_deadline = Some(tokio::time::Instant::now() + GIVE_UP_PATIENCE);
                    }
                }
                () = sandbox.ended() => report = Some(Report::Gone),
                () = &mut io, if !io_done => io_done = true,
                () = &mut feeding, if !feed_done => feed_done = true,
            }
        }
        if matches!(report, Some(Report::Gone | Report::Killed)) {
            slot.kill();
        }
        // What the command wrote before its end is in the pipes, and is read as fast as the readers take it; who else holds a pipe open,
        // and a reader who stands still while the exec is to be ended, are not waited for.
        let patience = match (terminal.is_some(), detach) {
            (false, _) => Duration::ZERO,
            (true, false) => TERMINAL_PATIENCE,
            (true, true) => DETACHED_PATIENCE,
        };
        over.send_replace(Some(patience));
        let hurry = tokio::time::Instant::now() + READER_PATIENCE;
        let mut canceled = false;
        while !io_done {
            tokio::select! {
                () = &mut io => io_done = true,
                asked = control.recv(), if callers => match asked {
                    Some(Control::Cancel) => canceled = true,
                    Some(Control::Signal(_) | Control::Resize(_)) => {}
                    None => callers = false,
                },
                () = sleep_until(hurry), if canceled || cause.is_some() => break,
            }
        }
    }
    let (stdout, stderr) = tokio::join!(stdout.sum(), stderr.sum());
    (report.unwrap_or(Report::Gone), cause, stdout, stderr)
}

fn far() -> tokio::time::Instant {
    tokio::time::Instant::now() + Duration::from_secs(86_400)
}

fn end(slot: &Slot, why: Cause, cause: &mut Option<Cause>, kill_deadline: &mut Option<tokio::time::Instant>) {
    if cause.is_none() {
        *cause = Some(why);
        let _ = slot.link.say(&ToSlot::Kill, &[]);
        *kill_deadline = Some(tokio::time::Instant::now() + KILL_PATIENCE);
    }
}

/// Reads a stream to its end: counts it, digests it, and hands on what the budget allows. `over` tells that the command has ended, and
/// for how long the stream may be silent then; the stream may outlive the command, in the hands of others.
async fn pump(
    fd: OwnedFd,
    stream: Stream,
    tally: &mut Tally,
    budget: &Budget,
    log: &Log,
    mut over: watch::Receiver<Option<Duration>>,
) {
    let Ok(fd) = packet::watched(fd, Interest::READABLE) else {
        return;
    };
    let mut buffer: Vec<u8> = Vec::new();
    let mut patience: Option<Duration> = None;
    // No more than this can have been written before the end; what comes after it is by others.
    let mut left = PIPE_BYTES;
    while left > 0 {
        // A stream that never falls silent is always ready before the news that the command is over.
        patience = patience.or(*over.borrow());
        let ready = match patience {
            // What the reactor says may lag behind what is there.
            Some(Duration::ZERO) => None,
            _ => tokio::select! {
                biased;
                ready = fd.readable() => match ready {
                    Ok(ready) => Some(ready),
                    Err(_) => break,
                },
                said = over.wait_for(Option::is_some), if patience.is_none() => {
                    patience = Some(said.ok().and_then(|said| *said).unwrap_or_default());
                    None
                }
                () = tokio::time::sleep(patience.unwrap_or_default()), if patience.is_some() => break,
            },
        };
        // Room for one piece only while there is something to read: most commands write little, and thousands run.
        buffer.reserve(PIECE_BYTES);
        // Not `async_io`: that would wait for more, deaf to the end of the command.
        match rustix::io::read(fd.get_ref(), rustix::buffer::spare_capacity(&mut buffer)) {
            Err(Errno::AGAIN) => {
                if patience == Some(Duration::ZERO) {
                    break;
                }
                if let Some(mut ready) = ready {
                    ready.clear_ready();
                }
                continue;
            }
            Err(Errno::INTR) => continue,
            // A pseudo-terminal whose other side is closed says EIO.
            Ok(0) | Err(_) => break,
            Ok(read) if patience.is_some() => left = left.saturating_sub(read),
            Ok(_) => {}
        }
        let data = if buffer.len() > PIECE_BYTES / 4 {
            Bytes::from(std::mem::take(&mut buffer))
        } else {
            let data = Bytes::copy_from_slice(&buffer);
            buffer.clear();
            data
        };
        tally.add(&data).await;
        let allowed = budget.take(data.len() as u64) as usize;
        if allowed > 0 {
            log.append(ExecEvent::Output {
                stream,
                data: data.slice(..allowed),
            })
            .await;
        }
        // A command that never pauses must not keep its own end, nor a limit, from being seen.
        tokio::task::yield_now().await;
    }
}

/// A piece of this size is digested beside the reading of the next: the digest is what takes longest.
const BESIDE_FROM: usize = 64 << 10;

/// What went through a stream so far.
struct Tally {
    bytes: u64,
    hash: Hash,
}

enum Hash {
    Here(Sha256),
    /// In a thread of its own, with the last piece.
    Beside(tokio::task::JoinHandle<Sha256>),
    /// That thread did not come to its end: the process is going down.
    Lost,
}

impl Default for Tally {
    fn default() -> Self {
        Self {
            bytes: 0,
            hash: Hash::Here(Sha256::new()),
        }
    }
}

impl Tally {
    async fn add(&mut self, data: &Bytes) {
        self.bytes += data.len() as u64;
        self.hash = match self.settled().await {
            None => Hash::Lost,
            Some(mut hash) if data.len() < BESIDE_FROM => {
                hash.update(data);
                Hash::Here(hash)
            }
            Some(mut hash) => {
                let data = data.clone();
                Hash::Beside(tokio::task::spawn_blocking(move || {
                    hash.update(&data);
                    hash
                }))
            }
        };
    }

    /// The digest's state once all pieces are in it. Not cancel-safe.
    async fn settled(&mut self) -> Option<Sha256> {
        match std::mem::replace(&mut self.hash, Hash::Lost) {
            Hash::Here(hash) => Some(hash),
            Hash::Beside(hashing) => hashing.await.ok(),
            Hash::Lost => None,
        }
    }

    async fn sum(mut self) -> Streamed {
        let hash = self.settled().await;
        Streamed {
            bytes: self.bytes,
            digest: hash.map(|hash| Digest::from_array(hash.finalize().into()).to_string()),
        }
    }
}

/// Writes what the caller sends to the command; its end is the end of the command's input.
async fn feed_stdin(pipe: Option<OwnedFd>, terminal: Option<&OwnedFd>, mut stdin: mpsc::Receiver<Bytes>) {
    let is_terminal = terminal.is_some();
    let Some(fd) = pipe.or_else(|| terminal.and_then(|fd| fd.try_clone().ok())) else {
        return;
    };
    let Ok(fd) = packet::watched(fd, Interest::WRITABLE) else {
        return;
    };
    while let Some(mut data) = stdin.recv().await {
        while !data.is_empty() {
            let written = fd
                .async_io(Interest::WRITABLE, |fd| {
                    rustix::io::write(fd, &data).map_err(io::Error::from)
                })
                .await;
            match written {
                Ok(written) => drop(data.split_to(written)),
                // The command no longer reads; what comes is not for it.
                Err(_) => return,
            }
        }
    }
    if is_terminal {
        // As the key for the end of input does; the terminal itself stays open for output.
        let _ = fd
            .async_io(Interest::WRITABLE, |fd| {
                rustix::io::write(fd, b"\x04").map_err(io::Error::from)
            })
            .await;
    }
}

fn conclude(
    report: Report,
    cause: Option<Cause>,
    counted: Option<Usage>,
    wall: Duration,
    stdout: Streamed,
    stderr: Streamed,
) -> Ended {
    let oom_kills = counted.as_ref().and_then(|usage| usage.oom_kills).unwrap_or(0);
    let mut ended = Ended {
        wall,
        stdout,
        stderr,
        ..Ended::default()
    };
    let rusage = match report {
        Report::Exited { status, usage } => {
            // wait(2): the low seven bits are the signal, the second byte the exit code.
            match status & 0x7f {
                0 => ended.exit_code = Some(status >> 8 & 0xff),
                signal => ended.signal = Some(signal),
            }
            // A shell whose child was killed says 137; only the kernel's count tells whether memory was the reason.
            let killed = ended.signal == Some(9) || ended.exit_code == Some(137);
            ended.outcome = match (ended.signal, killed && oom_kills > 0) {
                (_, true) => ExecOutcome::OomKilled,
                (Some(_), false) => ExecOutcome::Signaled,
                (None, false) => ExecOutcome::Exited,
            };
            Some(usage)
        }
        Report::NotStarted { step, errno } => {
            let (code, text) = not_started(step, errno);
            ended.outcome = ExecOutcome::Exited;
            ended.exit_code = Some(code);
            ended.error = Some(text);
            None
        }
        Report::Killed => {
            ended.outcome = match oom_kills {
                0 => ExecOutcome::Signaled,
                _ => ExecOutcome::OomKilled,
            };
            ended.signal = Some(9);
            ended.error = Some("the process that watched over the command was killed from inside".to_owned());
            None
        }
        Report::Gone => {
            ended.outcome = if oom_kills > 0 {
                ExecOutcome::OomKilled
            } else {
                ExecOutcome::Lost
            };
            ended.error = Some("the process that watched over the command is gone".to_owned());
            None
        }
    };
    match cause {
        Some(Cause::TimedOut) => ended.outcome = ExecOutcome::TimedOut,
        Some(Cause::Canceled) => ended.outcome = ExecOutcome::Canceled,
        Some(Cause::OutputLimit) => ended.outcome = ExecOutcome::OutputLimit,
        None => {}
    }
    ended.usage = match (counted, rusage) {
        (Some(usage), _) => Usage {
            // The slot itself is one of them.
            pids_peak: usage.pids_peak.map(|peak| peak.saturating_sub(1).max(1)),
            ..usage
        },
        (None, Some(rusage)) => usage::of_rusage(&rusage),
        (None, None) => Usage::NONE,
    };
    ended
}

/// The exit codes of a shell for what it cannot start, and the reason.
fn not_started(step: Step, errno: i32) -> (i32, String) {
    let error = io::Error::from_raw_os_error(errno);
    match step {
        Step::Lookup if error.kind() == io::ErrorKind::PermissionDenied => {
            (126, format!("the program cannot be executed: {error}"))
        }
        Step::Lookup => (127, format!("no such program: {error}")),
        Step::Exec if error.kind() == io::ErrorKind::NotFound => {
            (127, format!("no such program, or no such interpreter: {error}"))
        }
        Step::Exec => (126, format!("the program cannot be executed: {error}")),
        Step::Cwd => (126, format!("the working folder cannot be entered: {error}")),
        Step::Tty => (126, format!("no terminal can be made: {error}")),
        Step::Message => (126, format!("the command cannot be started as asked: {error}")),
    }
}
