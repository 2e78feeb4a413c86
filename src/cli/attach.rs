//! `belljar attach`: the streams of a command that runs, or has run, in a live task: what is still held of its output, then what comes.

use super::exec;
use super::exit;
use super::pump::{self, Form, Manner};
use crate::api::client::{self, ClientError};
use crate::api::messages::ExecInfo;

/// Shows a command's output from the beginning, as far as it is still held, and follows it to its end.
#[derive(Debug, clap::Args)]
pub struct AttachArgs {
    /// The command: its id, or a unique beginning or end of it (belljar task show lists them)
    exec: String,
    /// Gives the command this stdin, where it was started to read one
    #[arg(short, long)]
    interactive: bool,
    /// Events, output among them in base64, as lines of JSON on stdout; the last is "ended"
    #[arg(long)]
    json: bool,
    /// No talk on stderr
    #[arg(short, long)]
    quiet: bool,
}

#[derive(Debug, thiserror::Error)]
enum AttachError {
    #[error("no command of a live task has an id that begins or ends with \"{exec}\"")]
    NoSuchExec { exec: String },
    #[error("\"{exec}\" may be any of {count} commands (use more of the id)")]
    Ambiguous { exec: String, count: usize },
}

pub async fn run(args: AttachArgs) -> anyhow::Result<u8> {
    let (task, info) = find(&args.exec).await?;
    let manner = Manner {
        stdin: args.interactive,
        tty: args.interactive && info.tty,
        form: if args.json { Form::Json } else { Form::Bytes },
        tells_waits: !args.quiet && !args.json,
    };
    let end = pump::carry(pump::Exec::There { task, id: info.id }, manner).await?;
    if !args.quiet && !args.json {
        exec::tell(&end);
    }
    Ok(exit::of_exec(&end))
}

async fn find(exec: &str) -> anyhow::Result<(client::Task, ExecInfo)> {
    let state = super::state_folder();
    let mut found = Vec::new();
    for card in client::cards(&state)? {
        let task = client::Task::new(&state, card.id);
        let execs = match task.execs().await {
            Ok(execs) => execs,
            // Its process was killed; the next start cleans up after it.
            Err(ClientError::Connect { .. }) => continue,
            Err(error) => return Err(error.into()),
        };
        let named = |info: &ExecInfo| {
            let id = info.id.to_string();
            id.starts_with(exec) || id.ends_with(exec)
        };
        found.extend(
            execs
                .into_iter()
                .filter(named)
                .map(|info| (client::Task::new(&state, card.id), info)),
        );
    }
    match found.len() {
        0 => Err(AttachError::NoSuchExec { exec: exec.to_owned() }.into()),
        1 => Ok(found.remove(0)),
        count => Err(AttachError::Ambiguous {
            exec: exec.to_owned(),
            count,
        }
        .into()),
    }
}
