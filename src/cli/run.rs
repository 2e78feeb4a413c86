//! `belljar run`: one task from its start to its end, in this process.
//!
//! With a command the task lives as long as the command does; without one it waits for execs from `belljar exec` or the
//! socket until it is stopped, by `belljar task stop`, SIGINT, SIGTERM or its time limit. With `--stdio` a harness drives it
//! over lines of JSON.

use std::path::{Path, PathBuf};
use std::str::FromStr;
use std::time::Duration;

use anyhow::Context as _;

use super::pump::{self, Form, Manner};
use super::{exec, exit, table, terminal};
use crate::api::messages::{ExecEnd, ExecStart, TaskSummary};
use crate::api::{Server, stdio};
use crate::path::SandboxPath;
use crate::policy::Stdin;
use crate::supervisor::TaskHandle;
use crate::task::limits::{Bytes, parse_time};
use crate::task::{NetworkMode, User};

/// Runs a task: a spec file, flags, or both. Flags win over the file.
#[derive(Debug, clap::Args)]
pub struct RunArgs {
    /// The task spec, a TOML file
    pub spec: Option<PathBuf>,
    #[command(flatten)]
    pub changes: Changes,
    #[command(flatten)]
    pub manner: RunManner,
    /// The command; without one the task waits for execs
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<String>,
}

/// What flags change about the task.
#[derive(Debug, Default, clap::Args)]
pub struct Changes {
    /// host, a rootfs folder, or an OCI layout folder or archive
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// A folder that the task may change; more than one may be given
    #[arg(long, value_name = "HOST[:PATH]")]
    pub write: Vec<RootArg>,
    /// A folder or file that the task may read; more than one may be given
    #[arg(long, value_name = "HOST[:PATH]")]
    pub read: Vec<RootArg>,
    /// A host that the task may reach; more than one may be given
    #[arg(long, value_name = "HOST")]
    pub allow: Vec<String>,
    /// A host that it may not reach, whatever else is allowed; more than one may be given
    #[arg(long, value_name = "HOST")]
    pub deny: Vec<String>,
    /// A file of rules for commands; more than one may be given
    #[arg(long, value_name = "FILE")]
    pub rules: Vec<PathBuf>,
    /// A variable inside; more than one may be given
    #[arg(long, value_name = "NAME=VALUE", value_parser = super::variable)]
    pub env: Vec<(String, String)>,
    /// Memory for all of the task, such as 2GiB
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<Bytes>,
    /// CPUs at once, such as 1.5
    #[arg(long, value_name = "NUMBER")]
    pub cpus: Option<f64>,
    /// Processes and threads at once
    #[arg(long, value_name = "NUMBER")]
    pub pids: Option<u32>,
    /// The longest life of the task, such as 90s or 10m
    #[arg(long, value_name = "TIME", value_parser = parse_time)]
    pub timeout: Option<Duration>,
    /// none: no network at all; proxy: HTTP through belljar's own proxy
    #[arg(long, value_name = "MODE", value_parser = network)]
    pub network: Option<NetworkMode>,
    /// builtin, or an OCI runtime by name or path
    #[arg(long, value_name = "RUNTIME")]
    pub runtime: Option<String>,
    /// agent: an ordinary user whose files are yours outside; root: of the sandbox only
    #[arg(long, value_name = "USER", value_parser = user)]
    pub user: Option<User>,
    /// The folder inside in which commands run
    #[arg(long, value_name = "PATH", value_parser = SandboxPath::new)]
    pub workdir: Option<SandboxPath>,
    /// The task's name
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// What the task is for: shown to reviewers, kept in the record
    #[arg(long, value_name = "TEXT")]
    pub purpose: Option<String>,
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
    /// Sends records, spans and metrics to this OTLP endpoint
    #[arg(long, value_name = "URL")]
    pub otlp: Option<String>,
}

/// `HOST` or `HOST:PATH`. Without a path, a folder is seen under the same path inside.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RootArg {
    pub host: PathBuf,
    pub path: Option<SandboxPath>,
}

impl FromStr for RootArg {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // The last ":/", so that a host path may hold colons.
        let (host, path) = match text.rfind(":/") {
            Some(at) => (&text[..at], Some(&text[at + 1..])),
            None => (text, None),
        };
        if host.is_empty() {
            return Err("the host's path is empty".to_owned());
        }
        let path = path
            .map(SandboxPath::new)
            .transpose()
            .map_err(|error| error.to_string())?;
        Ok(Self {
            host: PathBuf::from(host),
            path,
        })
    }
}

fn network(text: &str) -> Result<NetworkMode, String> {
    match text {
        "none" => Ok(NetworkMode::None),
        "proxy" => Ok(NetworkMode::Proxy),
        _ => Err("expected none or proxy".to_owned()),
    }
}

fn user(text: &str) -> Result<User, String> {
    match text {
        "agent" => Ok(User::Agent),
        "root" => Ok(User::Root),
        _ => Err("expected agent or root".to_owned()),
    }
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
    task.stop().await;
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
        traceparent: std::env::var("TRACEPARENT").ok(),
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_root_is_read_with_and_without_its_path_inside() {
        let root = |host: &str, path: Option<&str>| RootArg {
            host: PathBuf::from(host),
            path: path.map(|path| SandboxPath::new(path).unwrap()),
        };
        assert_eq!(".".parse(), Ok(root(".", None)));
        assert_eq!("/a:b:/workspace".parse(), Ok(root("/a:b", Some("/workspace"))));
        assert_eq!("rel:x".parse(), Ok(root("rel:x", None)));
        assert!(":/workspace".parse::<RootArg>().is_err());
        assert!("/a:/b/../c".parse::<RootArg>().is_err());
    }
}
