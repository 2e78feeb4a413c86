//! The command line. stdout is the answer, stderr the talk; each subcommand has a file, and gives the exit code.

pub mod approvals;
pub mod ask;
pub mod attach;
pub mod audit;
mod cache;
mod clean;
pub mod config;
pub mod doctor;
pub mod egress;
pub mod exec;
pub mod exit;
pub mod flags;
pub mod image;
pub mod journal;
pub mod plan;
mod pump;
mod reload;
pub mod rules;
pub mod run;
mod secret;
pub mod table;
pub mod task;
pub mod terminal;
mod unpacking;

use std::io;
use std::path::Path;

use clap::{Parser, Subcommand};

use crate::api::messages::Refused;
use terminal::clean;

/// Runs each task of an AI agent in a disposable, sealed container: judged, streamed and accounted for.
#[derive(Debug, Parser)]
#[command(name = "belljar", version, after_help = AFTER_HELP)]
pub struct Cli {
    #[command(subcommand)]
    command: Command,
}

const AFTER_HELP: &str = "\
Exit codes: the command's own; 120 refused; 124 timed out; 125 belljar failed;
126 not executable; 127 not found; 128+n ended by signal n.";

#[derive(Debug, Subcommand)]
enum Command {
    Run(Box<run::RunArgs>),
    Exec(exec::ExecArgs),
    Attach(attach::AttachArgs),
    /// Lists, shows and stops live tasks; prints the schema of task specs
    #[command(subcommand)]
    Task(task::TaskCommand),
    /// Lists and answers the questions of live tasks, from another shell
    #[command(subcommand)]
    Approvals(approvals::ApprovalsCommand),
    Plan(Box<plan::PlanArgs>),
    Doctor(doctor::DoctorArgs),
    /// Says how commands are judged, and tests files of rules
    Rules(rules::RulesArgs),
    /// Says what the proxy would do with a host
    Egress(egress::EgressArgs),
    /// Keeps answers for tasks that may see stored ones only
    #[command(subcommand)]
    Cache(cache::CacheCommand),
    /// Shows and checks the configuration
    #[command(subcommand)]
    Config(config::ConfigCommand),
    /// Keeps secrets in the keyring of the OS
    #[command(subcommand)]
    Secret(secret::SecretCommand),
    /// Builds, pulls, imports, lists and removes images
    #[command(subcommand)]
    Image(image::ImageCommand),
    /// Reads, follows, proves and exports the record
    Audit(audit::AuditArgs),
}

impl Cli {
    /// Does what was asked; the answer is the exit code.
    pub fn run(self) -> anyhow::Result<u8> {
        match self.command {
            Command::Run(args) => wait_for(run::run(*args)),
            Command::Exec(args) => wait_for(exec::run(args)),
            Command::Attach(args) => wait_for(attach::run(args)),
            Command::Task(command) => wait_for(task::run(command)),
            Command::Approvals(command) => wait_for(approvals::run(command)),
            Command::Rules(args) => rules::run(args),
            Command::Egress(args) => egress::run(args, &mut io::stdout(), network_of_spec),
            Command::Cache(command) => wait_for(cache::run(command)),
            Command::Config(command) => config::run(command),
            Command::Secret(command) => secret::run(command, &mut io::stdout()),
            Command::Image(command) => image::run(command, &state_folder()),
            Command::Audit(args) => audit::run(args, &state_folder(), &mut io::stdout()),
            Command::Plan(args) => plan::run(*args),
            Command::Doctor(args) => doctor::run(args),
        }
    }
}

/// Runs what waits for sockets, children and timers.
fn wait_for(work: impl Future<Output = anyhow::Result<u8>>) -> anyhow::Result<u8> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let code = runtime.block_on(work);
    // A thread may still be blocked in reading stdin.
    runtime.shutdown_background();
    code
}

fn network_of_spec(spec: &Path) -> anyhow::Result<crate::task::Network> {
    let args = flags::TaskArgs {
        spec: Some(spec.to_owned()),
        ..Default::default()
    };
    Ok(args.admit()?.task.network)
}

/// Where the tasks of this user are.
fn state_folder() -> std::path::PathBuf {
    crate::config::Surroundings::of_process().state_folder()
}

/// `NAME=VALUE`.
fn variable(text: &str) -> Result<(String, String), String> {
    match text.split_once('=') {
        Some((name, value)) if !name.is_empty() => Ok((name.to_owned(), value.to_owned())),
        _ => Err("expected NAME=VALUE".to_owned()),
    }
}

/// What a person or an agent is told about a refusal: why, which rule, how to go on.
fn refusal(refused: &Refused) -> String {
    let mut text = format!("belljar: refused: {}\n", clean(&refused.reason));
    // A reason may speak of its rule already.
    for rule in refused.rules.iter().filter(|rule| !refused.reason.contains(&rule.id)) {
        text.push_str(&format!(
            "  rule: {} ({}:{})",
            clean(&rule.id),
            clean(&rule.file),
            rule.line
        ));
        if let Some(why) = &rule.justification {
            text.push_str(&format!(": {}", clean(why)));
        }
        text.push('\n');
    }
    if !refused.how_to_ask.is_empty() {
        text.push_str(&format!("  to go on: {}\n", clean(&refused.how_to_ask)));
    }
    text
}

/// An error as it is shown once, at the edge: what failed, and why, link by link. A link that says no more than the one before
/// is left out.
pub fn shown_error(error: &anyhow::Error) -> String {
    let mut text = String::from("belljar: ");
    let mut last = String::new();
    for link in error.chain() {
        let link = link.to_string();
        if link == last {
            continue;
        }
        if !last.is_empty() {
            text.push_str(": ");
        }
        text.push_str(&link.lines().map(clean).collect::<Vec<_>>().join("\n  "));
        last = link;
    }
    if let Some(hint) = hint(error) {
        text.push_str("\n  hint: ");
        text.push_str(hint);
    }
    text
}

/// The code for an error: a task that asks for more than the requirements allow, or for what the machine cannot enforce, is refused,
/// anything else is a failure.
pub fn error_code(error: &anyhow::Error) -> u8 {
    let of_task = matches!(error.downcast_ref(), Some(crate::config::Rejection::Violations(_)));
    let of_config = matches!(error.downcast_ref(), Some(config::ConfigError::Violations(_)));
    let of_machine = matches!(
        error.downcast_ref(),
        Some(crate::supervisor::StartError::NotEnforced { .. })
    );
    if of_task || of_config || of_machine {
        exit::REFUSED
    } else {
        exit::FAILED
    }
}

fn hint(error: &anyhow::Error) -> Option<&'static str> {
    use crate::api::client::ClientError;
    match error.downcast_ref::<ClientError>()? {
        ClientError::NoSuchTask { .. } => Some("belljar task ls lists the live tasks of this user"),
        ClientError::Ambiguous { .. } => Some("use more of the id"),
        ClientError::Connect { .. } => Some("the process that kept the task is gone, or belongs to another user"),
        ClientError::State { .. } | ClientError::Broken(_) | ClientError::Answer(_) | ClientError::Refused(_) => None,
    }
}

#[cfg(test)]
mod tests;
