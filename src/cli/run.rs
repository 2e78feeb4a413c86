//! `belljar run`: one task from its start to its end, in this process.
//!
//! With a command the task lives as long as the command does; without one it waits for execs from `belljar exec` or the
//! socket until it is stopped, by `belljar task stop`, SIGINT, SIGTERM or its time limit. With `--stdio` a harness drives it
//! over lines of JSON.

use std::os::unix::fs::DirBuilderExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, bail};

use super::ask::AtTerminal;
use super::flags::{Ready, TaskArgs};
use super::pump::{self, Form, Manner};
use super::reload::{Reload, Source};
use super::unpacking::UnpackingLine;
use super::{exec, exit, journal, table, terminal};
use crate::api::messages::{ExecEnd, ExecStart, TaskSummary};
use crate::api::{Server, stdio};
use crate::approval::reviewer::PATIENCE;
use crate::approval::{Approvers, Ask, Nobody, Session};
use crate::audit::journal::{Journal, JournalOptions};
use crate::audit::otlp::ExporterHandle;
use crate::audit::record::{Entry, Event, Identity};
use crate::config::{BundleSeen, Config, Rejection, Surroundings};
use crate::path::HostPath;
use crate::policy::{Policy, Stdin};
use crate::supervisor::{Heard, Supervisor, TaskHandle};
use crate::task::{Reviewer, Task, WhoApproves};

/// Runs a task: a spec file, flags, or both. Flags win over the file.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    #[command(flatten)]
    pub task: TaskArgs,
    #[command(flatten)]
    pub manner: RunManner,
}

/// How this process deals with its own streams.
#[derive(Debug, Default, clap::Args)]
pub struct RunManner {
    /// Why the command runs: shown to whoever is asked, kept in the record
    #[arg(long, value_name = "TEXT")]
    pub reason: Option<String>,
    /// Gives the command this stdin; without it, it reads nothing
    #[arg(short, long)]
    pub interactive: bool,
    /// Runs the command at a terminal of its own
    #[arg(short, long)]
    pub tty: bool,
    /// Speaks the API as lines of JSON on stdin and stdout
    #[arg(long, conflicts_with_all = ["interactive", "tty", "json"])]
    pub stdio: bool,
    /// Events, output among them in base64, as lines of JSON on stdout; the last line is the summary
    #[arg(long)]
    pub json: bool,
    /// No talk and no table on stderr
    #[arg(short, long)]
    pub quiet: bool,
    /// Where nobody is at a terminal: ask denies what needs an approval, wait leaves it open to belljar approvals
    #[arg(long, value_name = "HOW", default_value = "ask")]
    pub approvals: Approvals,
    /// The session that answers are kept for, beside those of the user's other tasks; else $BELLJAR_SESSION
    #[arg(long, value_name = "NAME")]
    pub session: Option<String>,
    /// Sends records, spans and metrics to this OTLP endpoint
    #[arg(long, value_name = "URL")]
    pub otlp: Option<String>,
}

/// What happens to questions of the gate.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, clap::ValueEnum)]
pub enum Approvals {
    /// The person at the terminal is asked, and where there is none the answer is no, unless somebody watches
    #[default]
    Ask,
    /// They wait for `belljar approvals` as well, until the task's approval time is over
    Wait,
}

/// How long the end of a run waits for its collectors.
const FLUSH_PATIENCE: Duration = Duration::from_secs(3);

pub async fn run(args: RunArgs) -> anyhow::Result<u8> {
    let RunArgs { task, manner } = args;
    let name = task.name.clone();
    let source = Source::of(&task);
    let Ready {
        task,
        config,
        surroundings,
    } = match source.admit() {
        Ok(ready) => ready,
        Err(error) => return Err(record_refusal(name, error)),
    };
    if !manner.quiet {
        for complaint in config.bundles.iter().filter_map(BundleSeen::complaint) {
            eprintln!("belljar: {}", terminal::clean(&complaint));
        }
    }
    let policy = Policy::of_gate(&task.gate)?;
    // The key lies in the state folder, which the first task of a user makes.
    std::fs::DirBuilder::new()
        .recursive(true)
        .mode(0o700)
        .create(&config.state)?;
    let collectors = journal::collectors(&config, manner.otlp.as_deref())?;
    let login = task
        .login
        .as_ref()
        .map(|login| login.name.as_ref().unwrap_or(&login.subject));
    let journal = journal::open(&config, login.unwrap_or(&surroundings.user))?;
    let exporter = journal::start_exporter(&journal, &collectors)?;
    let housekeeping = journal::Housekeeping::of(&journal, &config, &collectors);
    let identity = Identity {
        uid: surroundings.uid,
        user: surroundings.user.clone(),
        login: None,
    };
    let supervisor = Supervisor::start(Path::new("/proc/self/exe"), &config.state, journal.clone(), identity)?
        .under(config.requirements_digest.as_ref().map(ToString::to_string))
        .reaching(super::egress::settings(&config))
        .recording_events(config.journal.agent_events.value)
        .within_trace(std::env::var("TRACEPARENT").ok());
    let approvers = approvers(&task, &manner, &config, &surroundings)?;
    let command = task.command.clone();
    // With lines on a terminal that say how far it is.
    let image = {
        let heard: Heard = Arc::new(UnpackingLine::new(manner.quiet));
        supervisor.image(&task, &heard).await?
    };
    let handle = supervisor.start_task(task.clone(), image, policy, approvers).await?;
    let folder = handle.folder().to_owned();
    let reload = Reload::of(source, &handle, &task, &config, &journal);
    let code = tokio::select! {
        code = drive(handle, &folder, command, &manner) => code,
        never = reload.go_on() => match never {},
        never = housekeeping.go_on() => match never {},
    };
    // Signed and sent with the rest, so that a tail that is cut off later shows.
    journal.checkpoint().await?;
    if let Some(exporter) = exporter {
        flush(exporter, &manner).await;
    }
    housekeeping.once().await;
    code
}

/// Puts a task that asked for more than the requirements allow into the record. Faults of a spec are no refusals, and are only told.
fn record_refusal(name: Option<String>, error: anyhow::Error) -> anyhow::Error {
    let Some(Rejection::Violations(violations)) = error.downcast_ref::<Rejection>() else {
        return error;
    };
    let surroundings = Surroundings::of_process();
    let event = Event::TaskRefused {
        name: name.unwrap_or_default(),
        reasons: violations.to_string().lines().map(str::to_owned).collect(),
        identity: Identity {
            uid: surroundings.uid,
            user: surroundings.user.clone(),
            login: None,
        },
    };
    let recorded = Journal::open(
        &journal::folder(&surroundings.state_folder()),
        JournalOptions {
            user: Some(surroundings.user.clone()),
            ..JournalOptions::default()
        },
    )
    .and_then(|journal| {
        journal.append_blocking(Entry {
            task: None,
            exec: None,
            event,
        })
    });
    match recorded {
        Ok(_) => error,
        Err(failure) => error.context(format!("the refusal could not be recorded ({failure})")),
    }
}

/// Gives the collectors a moment to take what there is; the rest is sent by the next start.
async fn flush(exporter: ExporterHandle, manner: &RunManner) {
    let lag = exporter.flush(FLUSH_PATIENCE).await;
    if lag.records > 0 && !manner.quiet {
        let why = lag
            .signals
            .iter()
            .find_map(|signal| signal.error.as_deref())
            .unwrap_or("the collector is slow");
        eprintln!(
            "belljar: {} records are not exported yet ({}); the next start goes on",
            lag.records,
            terminal::clean(why)
        );
    }
    exporter.shutdown();
}

/// Who answers the questions of this task: the person at this terminal, where there is one whose streams do not belong to a
/// harness, and whoever comes to the socket.
fn approvers(
    task: &Task,
    manner: &RunManner,
    config: &Config,
    surroundings: &Surroundings,
) -> anyhow::Result<Approvers> {
    let ask: Arc<dyn Ask> = if manner.stdio || manner.json {
        Arc::new(Nobody {
            why: "a program drives this task".to_owned(),
        })
    } else {
        Arc::new(AtTerminal::new(&task.name, task.purpose.as_deref(), &surroundings.user))
    };
    let named = std::env::var("BELLJAR_SESSION").ok().filter(|name| !name.is_empty());
    let session = manner.session.clone().or(named);
    let session = Session::of_boot(&config.state, session.as_deref()).context("cannot tell this boot from others")?;
    let reviewer = match (task.gate.reviewer, &config.reviewer) {
        (Reviewer::User, _) => None,
        (Reviewer::AutoReview, Some(settings)) => Some(settings.value.start()?),
        (Reviewer::AutoReview, None) => bail!("gate.reviewer is \"auto_review\", and no [reviewer] is configured"),
    };
    Ok(Approvers {
        ask,
        reviewer,
        review_time: PATIENCE,
        wait: manner.approvals == Approvals::Wait,
        harness: task.gate.approvers == WhoApproves::Harness,
        scopes: config.approval_scopes(),
        bounds: config.approvals.bounds(),
        state: Some(config.state.clone()),
        session: Some(session),
        rule_file: surroundings.approved_rules().map(HostPath::new).transpose()?,
    })
}

/// Takes a task that was started to its end: serves its socket in `folder`, runs `command` or waits for execs, carries the
/// streams, stops it, and tells what it came to. The answer is the exit code.
pub async fn drive(
    task: TaskHandle,
    folder: &Path,
    command: Option<Vec<String>>,
    manner: &RunManner,
) -> anyhow::Result<u8> {
    let driven = drive_streams(&task, folder, command, manner).await;
    // Whatever went wrong, the sandbox is gone before the answer.
    match &driven {
        Ok((_, Some(_))) => task.finish().await,
        Ok((_, None)) | Err(_) => task.stop().await,
    }
    let summary = TaskSummary::from(task.wait().await);
    let (server, end) = driven?;
    server.stop().await;
    if manner.json {
        let mut last = serde_json::to_value(&summary)?;
        last["type"] = "summary".into();
        println!("{last}");
    } else if !manner.quiet && !manner.stdio {
        eprint!("\n{}", table::of_summary(&summary));
    }
    Ok(exit::of_task(&summary, end.as_ref()))
}

async fn drive_streams(
    task: &TaskHandle,
    folder: &Path,
    command: Option<Vec<String>>,
    manner: &RunManner,
) -> anyhow::Result<(Server, Option<ExecEnd>)> {
    let server = Server::start(task.clone(), folder)?;
    let first = match command {
        Some(argv) => {
            let request = command_request(argv, manner).into_request(&task.info().workdir)?;
            Some(task.submit(request).context("cannot start the command")?)
        }
        None => None,
    };
    let end = match first {
        _ if manner.stdio => {
            stdio::speak(task.clone(), first, tokio::io::stdin(), tokio::io::stdout()).await?;
            None
        }
        Some(handle) => {
            let carried = Manner {
                stdin: manner.interactive,
                tty: manner.tty,
                form: if manner.json { Form::Json } else { Form::Bytes },
                tells_waits: manner.approvals == Approvals::Wait && !manner.quiet && !manner.json,
            };
            let end = pump::carry(pump::Exec::Here(handle), carried).await?;
            if !manner.quiet && !manner.json {
                exec::tell(&end);
            }
            Some(end)
        }
        None => {
            wait_for_execs(task, manner).await?;
            None
        }
    };
    Ok((server, end))
}

fn command_request(argv: Vec<String>, manner: &RunManner) -> ExecStart {
    ExecStart {
        id: None,
        argv,
        cwd: None,
        env: Default::default(),
        stdin: if manner.interactive { Stdin::Stream } else { Stdin::None },
        tty: manner.tty.then(terminal::size),
        reason: manner.reason.clone(),
        call_id: None,
        // The task's own trace is the caller's.
        traceparent: None,
        timeout_seconds: None,
        detach: false,
    }
}

/// Until the task has ended, or this process is told to end it.
async fn wait_for_execs(task: &TaskHandle, manner: &RunManner) -> anyhow::Result<()> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    let mut hangup = signal(SignalKind::hangup())?;
    let info = task.info();
    if manner.json {
        println!(
            "{}",
            serde_json::json!({"type": "task", "id": info.id, "name": info.name})
        );
    } else if !manner.quiet {
        let name = terminal::clean(&info.name);
        eprintln!(
            "belljar: task {} ({name}) waits for execs: belljar exec {} -- CMD",
            info.id, info.id
        );
    }
    tokio::select! {
        _ = task.wait() => {}
        _ = interrupt.recv() => {}
        _ = terminate.recv() => {}
        _ = hangup.recv() => {}
    }
    Ok(())
}
