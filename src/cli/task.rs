//! `belljar task`: what lives, and its end; and what a spec looks like.

use anyhow::Context as _;

use super::table;
use crate::api::client::{self, ClientError};
use crate::api::folder::Card;
use crate::api::messages::TaskInfo;

#[derive(Debug, clap::Subcommand)]
pub enum TaskCommand {
    /// Lists the live tasks of this user
    Ls(Json),
    /// Shows a task and its execs
    Show(One),
    /// Ends a task, and shows what it came to
    Stop(One),
    /// Prints the JSON Schema of a task spec
    Schema,
}

#[derive(Debug, clap::Args)]
pub struct Json {
    /// As JSON
    #[arg(long)]
    json: bool,
}

#[derive(Debug, clap::Args)]
pub struct One {
    /// The task: its id, a unique beginning of it, or its name
    task: String,
    #[command(flatten)]
    form: Json,
}

pub async fn run(command: TaskCommand) -> anyhow::Result<u8> {
    match command {
        TaskCommand::Ls(form) => list(form.json).await,
        TaskCommand::Show(one) => show(one).await,
        TaskCommand::Stop(one) => stop(one).await,
        TaskCommand::Schema => {
            super::config::task_schema(&mut std::io::stdout())?;
            Ok(0)
        }
    }
}

async fn list(json: bool) -> anyhow::Result<u8> {
    let state = super::state_folder();
    let mut live = Vec::new();
    for card in client::cards(&state)? {
        match client::Task::new(&state, card.id).info().await {
            Ok(info) => live.push(info),
            // Its process was killed; the next start cleans up after it.
            Err(ClientError::Connect { .. }) => tell_dead(&card),
            Err(error) => return Err(error.into()),
        }
    }
    if json {
        println!("{}", serde_json::to_string(&live)?);
    } else if !live.is_empty() {
        println!("{}", table::tasks(&live));
    }
    Ok(0)
}

fn tell_dead(card: &Card) {
    let name = super::terminal::clean(&card.name);
    eprintln!(
        "belljar: task {} ({name}) does not answer: its process {} is gone",
        card.id, card.pid
    );
}

async fn show(one: One) -> anyhow::Result<u8> {
    let task = client::find(&super::state_folder(), &one.task)?;
    let info = task.info().await?;
    let execs = task.execs().await?;
    if one.form.json {
        println!("{}", serde_json::json!({"task": info, "execs": execs}));
        return Ok(0);
    }
    print!("{}", described(&info));
    if !execs.is_empty() {
        println!("\n{}", table::execs_with_ids(&execs));
    }
    Ok(0)
}

fn described(task: &TaskInfo) -> String {
    let mut text = String::new();
    let mut row = |name: &str, value: &str| text.push_str(&format!("{name:<9}{}\n", super::terminal::clean(value)));
    row("id", &task.id.to_string());
    row("name", &task.name);
    if let Some(purpose) = &task.purpose {
        row("purpose", purpose);
    }
    row("state", &format!("{:?}", task.state).to_lowercase());
    row("created", &task.created);
    row("image", &task.image);
    row("runtime", &task.runtime);
    row("workdir", task.workdir.as_str());
    text
}

async fn stop(one: One) -> anyhow::Result<u8> {
    let task = client::find(&super::state_folder(), &one.task)?;
    let summary = task.stop().await.context("cannot stop the task")?;
    if one.form.json {
        println!("{}", serde_json::to_string(&summary)?);
    } else {
        print!("{}", table::of_summary(&summary));
    }
    Ok(0)
}
