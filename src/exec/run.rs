//! From a permit to an end: one command in a slot, its streams, its limits, and how it came to its end.

use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use belljar_guest::{FromSlot, Rusage, Step, ToSlot};
use tokio::sync::watch;
use tokio::time::sleep_until;

use super::bulk;
use super::pipeline::Inputs;
use super::pump::{Budget, PIPE_BYTES, Streamed, Tally, feed_stdin, pump};
use super::stream::Log;
use super::{Control, ExecEvent, ExecRequest, Stream, usage};
use crate::audit::record::{ExecOutcome, Usage};
use crate::crash;
use crate::policy::{Permit, Stdin, TtySize};
use crate::sandbox::oci::{Sandbox, SandboxError, Slot, Started, Stdio};
use crate::sys::{packet, process};

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
    /// The slot is gone with its sandbox.
    Gone,
    /// It said something out of turn, or nothing that can be read: nothing in this sandbox is to be believed any more.
    Lied,
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
    bulk::asked();
    let budget = Budget::of(limits.output);
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
        Ok(Some((FromSlot::Started { .. }, fds))) => match streams.with_terminal(fds) {
            Some(streams) => (streams, None),
            None => (Streams::Tty, Some(Report::Lied)),
        },
        Ok(Some((FromSlot::NotStarted { step, errno }, _))) => (streams, Some(Report::NotStarted { step, errno })),
        Ok(None) => (streams, Some(closed(sandbox).await)),
        Ok(Some((FromSlot::Ready | FromSlot::Exited { .. }, _))) | Err(_) => (streams, Some(Report::Lied)),
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
    if matches!(report, Report::Lied) {
        sandbox.condemn();
    }
    let wall = begun.elapsed();
    let counters = slot.counters();
    let is_dead = matches!(report, Report::Gone | Report::Killed | Report::Lied);
    // A sandbox with a kernel of its own runs out of memory as a whole.
    let is_starved = matches!(report, Report::Gone)
        && cause.is_none()
        && counters.is_none()
        && sandbox.has_run_out_of_memory().await;
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
    if is_starved {
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
    /// With the terminal that the slot passed out; `None` where it passed none that could be one.
    fn with_terminal(self, fds: Vec<OwnedFd>) -> Option<Streams> {
        match self {
            Streams::Tty => {
                let master = fds.into_iter().next()?;
                process::set_nonblocking(&master).ok()?;
                Some(Streams::Terminal(master))
            }
            other => Some(other),
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

    let stdout = Tally::default();
    let stderr = Tally::default();
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
                    pump(fd, stream, &stdout, budget, log, over.subscribe()).await;
                }
            },
            async {
                if let Some(fd) = err {
                    pump(fd, Stream::Stderr, &stderr, budget, log, over.subscribe()).await;
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
                    // Ended from here.
                    Ok(None) => Report::Gone,
                    Ok(Some((FromSlot::Ready | FromSlot::Started { .. } | FromSlot::NotStarted { .. }, _))) | Err(_) => Report::Lied,
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
        if matches!(report, Some(Report::Gone | Report::Killed | Report::Lied)) {
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
    (report.unwrap_or(Report::Gone), cause, stdout.sum(), stderr.sum())
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
        Report::Lied => {
            let error =
                "the process that watched over the command said something out of turn, so its sandbox was ended";
            ended.error = Some(error.to_owned());
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

#[cfg(test)]
mod tests;
