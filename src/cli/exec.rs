//! `belljar exec`: one command in a task that is alive, with this terminal's streams.

use std::collections::BTreeMap;

use anyhow::Context as _;

use super::pump::{self, Form, Manner};
use super::{exit, refusal, terminal};
use crate::api::client;
use crate::api::messages::{ExecEnd, ExecStart};
use crate::path::SandboxPath;
use crate::policy::Stdin;

/// Runs a command in a live task; it goes through the gate like any other.
#[derive(Debug, clap::Args)]
pub struct ExecArgs {
    /// The task: its id, a unique beginning of it, or its name
    task: String,
    /// Gives the command this stdin; without it, it reads nothing
    #[arg(short, long)]
    interactive: bool,
    /// Runs the command at a terminal of its own
    #[arg(short, long)]
    tty: bool,
    /// The folder in the sandbox; without it, the task's workdir
    #[arg(long, value_name = "PATH", value_parser = SandboxPath::new)]
    cwd: Option<SandboxPath>,
    /// A variable for the command; more than one may be given
    #[arg(long, value_name = "NAME=VALUE", value_parser = super::variable)]
    env: Vec<(String, String)>,
    /// Why: shown to whoever is asked, and kept in the record
    #[arg(long, value_name = "TEXT")]
    reason: Option<String>,
    /// At most this long, such as 90s or 10m
    #[arg(long, value_name = "TIME", value_parser = crate::task::limits::parse_time)]
    timeout: Option<std::time::Duration>,
    /// What the command leaves running stays until the task ends
    #[arg(long)]
    detach: bool,
    /// Events, output among them in base64, as lines of JSON on stdout; the last is "ended"
    #[arg(long)]
    json: bool,
    /// No talk on stderr
    #[arg(short, long)]
    quiet: bool,
    /// The command
    #[arg(last = true, required = true, value_name = "CMD")]
    command: Vec<String>,
}

pub async fn run(args: ExecArgs) -> anyhow::Result<u8> {
    let task = client::find(&super::state_folder(), &args.task)?;
    let manner = Manner {
        stdin: args.interactive,
        tty: args.tty,
        form: if args.json { Form::Json } else { Form::Bytes },
        tells_waits: !args.quiet && !args.json,
    };
    let start = ExecStart {
        id: None,
        argv: args.command,
        cwd: args.cwd,
        env: args.env.into_iter().collect::<BTreeMap<_, _>>(),
        stdin: if args.interactive { Stdin::Stream } else { Stdin::None },
        tty: args.tty.then(terminal::size),
        reason: args.reason,
        call_id: None,
        traceparent: std::env::var("TRACEPARENT").ok(),
        timeout_seconds: args.timeout.map(|time| time.as_secs_f64()),
        detach: args.detach,
    };
    let exec = task.start(&start).await.context("cannot start the command")?;
    let end = pump::carry(pump::Exec::There { task, id: exec.id }, manner).await?;
    if !args.quiet && !args.json {
        tell(&end);
    }
    Ok(exit::of_exec(&end))
}

/// What the exit code alone would not tell.
pub fn tell(end: &ExecEnd) {
    match end {
        ExecEnd::Refused(refused) => eprint!("{}", refusal(refused)),
        ExecEnd::Failed { error } => eprintln!("belljar: {}", terminal::clean(error)),
        ExecEnd::Finished(finished) => {
            if let Some(error) = &finished.error {
                eprintln!("belljar: {}", terminal::clean(error));
            }
        }
    }
}
