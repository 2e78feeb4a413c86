//! `belljar config show|check` and `belljar task schema`: answers go to `out`, faults are the error.

use std::io::{self, Write};

use crate::config::{Config, Setting, Surroundings};
use crate::document::Faults;
use crate::task::spec::TaskSpec;

#[derive(Debug, clap::Subcommand)]
pub enum ConfigCommand {
    /// Shows each setting as it holds for this user
    Show(Show),
    /// Reads all files of configuration, and names every fault in them
    Check {
        /// As JSON
        #[arg(long)]
        json: bool,
    },
}

/// How to print the settings.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, clap::Args)]
pub struct Show {
    /// Says of each setting where it came from; JSON always does
    #[arg(long)]
    pub origin: bool,
    /// As JSON
    #[arg(long)]
    pub json: bool,
}

pub fn run(command: ConfigCommand) -> anyhow::Result<u8> {
    let surroundings = Surroundings::of_process();
    let out = &mut io::stdout();
    match command {
        ConfigCommand::Show(how) => show(&surroundings, how, out)?,
        ConfigCommand::Check { json } => check(&surroundings, json, out)?,
    }
    Ok(0)
}

#[derive(Debug, thiserror::Error)]
pub enum ConfigError {
    /// The faults, a line each.
    #[error("{0}")]
    Faults(Faults),
    /// The configuration goes beyond the requirements: refused.
    #[error("{0}")]
    Violations(Faults),
    #[error("the answer cannot be written")]
    Write(#[from] io::Error),
}

/// `belljar config show [--origin] [--json]`.
pub fn show(surroundings: &Surroundings, how: Show, out: &mut dyn Write) -> Result<(), ConfigError> {
    let config = Config::load(surroundings).map_err(ConfigError::Faults)?;
    let settings = config.settings();
    if how.json {
        let answer = serde_json::json!({ "state": config.state, "files": config.files, "settings": settings });
        return Ok(writeln!(out, "{answer:#}")?);
    }
    for setting in &settings {
        writeln!(out, "{}", line(setting, how.origin))?;
    }
    Ok(())
}

fn line(setting: &Setting, origin: bool) -> String {
    match origin {
        true => format!("{} = {}  # {}", setting.key, setting.value, setting.origin),
        false => format!("{} = {}", setting.key, setting.value),
    }
}

/// `belljar config check [--json]`: names the files that were read and found right, and within the requirements.
pub fn check(surroundings: &Surroundings, json: bool, out: &mut dyn Write) -> Result<(), ConfigError> {
    let config = Config::load(surroundings).map_err(ConfigError::Faults)?;
    Faults::check(config.violations()).map_err(ConfigError::Violations)?;
    if json {
        return Ok(writeln!(
            out,
            "{:#}",
            serde_json::json!({ "files": config.files, "untrusted": config.untrusted })
        )?);
    }
    if config.files.is_empty() {
        writeln!(out, "no file of configuration; the built-in one holds")?;
    }
    if let Some(file) = &config.untrusted {
        writeln!(
            out,
            "{}: not read (its folder is in nobody's trusted_folders)",
            file.display()
        )?;
    }
    for file in &config.files {
        writeln!(out, "{}: right", file.display())?;
    }
    Ok(())
}

/// `belljar task schema`.
pub fn task_schema(out: &mut dyn Write) -> Result<(), ConfigError> {
    Ok(writeln!(out, "{:#}", TaskSpec::schema().as_value())?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn settings_print_with_and_without_their_places() {
        let built_in = Config::built_in(std::path::Path::new("/state"));
        let settings = built_in.settings();
        let pids = settings
            .iter()
            .find(|setting| setting.key == "task.limits.pids")
            .unwrap();
        assert_eq!(line(pids, false), "task.limits.pids = 1024");
        let whole = line(pids, true);
        assert!(
            whole.starts_with("task.limits.pids = 1024  # built-in default.toml:"),
            "{whole}"
        );
    }

    #[test]
    fn the_schema_is_json() {
        let mut out = Vec::new();
        task_schema(&mut out).unwrap();
        let schema: serde_json::Value = serde_json::from_slice(&out).unwrap();
        assert_eq!(schema["title"], "belljar task spec");
        assert_eq!(schema["properties"]["version"]["const"], 1);
    }
}
