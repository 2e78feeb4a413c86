//! `belljar config show|check|schema|bundle` and `belljar task schema`: answers go to `out`, faults are the error.

use std::io::{self, Write};
use std::path::PathBuf;

use anyhow::Context as _;

use crate::audit::key::SigningKey;
use crate::config::bundle::{BundleFile, sign};
use crate::config::{Config, Requirements, Setting, Surroundings, schema};
use crate::document::{Faults, Sited, read_file};
use crate::policy::{Policy, RuleText, RulesError};
use crate::task::Unmatched;
use crate::task::spec::{BUILT_IN, TaskSpec, expand_home};

use super::exit;

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
    /// Prints the JSON Schema of a kind of file
    Schema {
        #[arg(value_enum)]
        kind: SchemaKind,
    },
    /// Signs files of requirements and rules as the bundle that machines fetch, and prints it
    Bundle(BundleArgs),
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, clap::ValueEnum)]
pub enum SchemaKind {
    Config,
    Requirements,
    Task,
}

/// What to sign.
#[derive(Debug, clap::Args)]
pub struct BundleArgs {
    /// The file of the key that signs; made where there is none. Its public half, for `public_keys`, goes to stderr
    #[arg(long, value_name = "FILE")]
    key: PathBuf,
    /// Higher than that of any bundle before
    #[arg(long, value_name = "N")]
    serial: u64,
    /// For how many days it counts
    #[arg(long, value_name = "N", default_value_t = 30)]
    days: u16,
    /// Requirements (*.toml) and rules (*.rules)
    #[arg(required = true, value_name = "FILE")]
    files: Vec<PathBuf>,
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
        ConfigCommand::Check { json } => match check(&surroundings, json, out) {
            Err(error) if json => return told(&error, out),
            checked => checked?,
        },
        ConfigCommand::Schema { kind } => {
            let kind = match kind {
                SchemaKind::Config => schema::Kind::Config,
                SchemaKind::Requirements => schema::Kind::Requirements,
                SchemaKind::Task => schema::Kind::Task,
            };
            writeln!(out, "{:#}", schema::schema(kind).as_value())?;
        }
        ConfigCommand::Bundle(args) => bundle(&args, out)?,
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
    /// Files of rules do not load.
    #[error("{0}")]
    Rules(RulesError),
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

/// What is wrong, in JSON; the exit code is the one that the text would have.
fn told(error: &ConfigError, out: &mut dyn Write) -> anyhow::Result<u8> {
    let (code, faults) = match error {
        ConfigError::Faults(faults) => (exit::FAILED, serde_json::json!(faults)),
        ConfigError::Violations(faults) => (exit::REFUSED, serde_json::json!(faults)),
        ConfigError::Rules(error) => {
            let fault = |fault: &crate::policy::rules::Fault| {
                let place = serde_json::json!({"file": fault.file, "line": fault.line, "column": fault.column});
                serde_json::json!({"origin": {"file": place}, "key": "", "what": fault.text})
            };
            (exit::FAILED, error.faults.iter().map(fault).collect())
        }
        ConfigError::Write(error) => anyhow::bail!("the answer cannot be written: {error}"),
    };
    writeln!(out, "{:#}", serde_json::json!({ "right": false, "faults": faults }))?;
    Ok(code)
}

/// Loads the rules that would hold for every task, with those that are demanded, as a task would.
fn load_rules(config: &Config, surroundings: &Surroundings) -> Result<(Policy, usize), ConfigError> {
    let named = config.task.gate.rules.iter();
    let mut texts = Vec::new();
    for file in named.filter(|file| !file.value.starts_with(BUILT_IN)) {
        let path = expand_home(&file.value, surroundings.home.as_deref())
            .map_err(|what| ConfigError::Faults(Faults::one(file.origin.clone(), "gate.rules", what)))?;
        texts.push(RuleText {
            text: read_file(&path).map_err(ConfigError::Faults)?,
            name: path.display().to_string(),
        });
    }
    let demanded = config.requirements.iter().flat_map(|demands| &demands.rules_texts);
    texts.extend(demanded.map(|rules| RuleText {
        name: rules.name.clone(),
        text: rules.text.clone(),
    }));
    let policy = Policy::from_texts(&texts, Unmatched::Allow).map_err(ConfigError::Rules)?;
    Ok((policy, texts.len()))
}

/// `belljar config check [--json]`: names the files that were read and found right, and within the requirements.
pub fn check(surroundings: &Surroundings, json: bool, out: &mut dyn Write) -> Result<(), ConfigError> {
    let config = Config::load(surroundings).map_err(ConfigError::Faults)?;
    Faults::check(config.violations()).map_err(ConfigError::Violations)?;
    let (policy, rules_files) = load_rules(&config, surroundings)?;
    let (rules, examples) = policy.counts();
    let unheeded = || config.requirements.iter().flat_map(|demands| &demands.unheeded);
    if json {
        let key = |key: &Sited<String>| serde_json::json!({ "key": key.value, "origin": key.origin });
        let answer = serde_json::json!({
            "right": true,
            "rules": { "files": rules_files, "rules": rules, "examples": examples },
            "unheeded": unheeded().map(key).collect::<Vec<_>>(),
            "files": config.files,
            "untrusted": config.untrusted,
            "bundles": config.bundles,
        });
        return Ok(writeln!(out, "{answer:#}")?);
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
    if rules_files > 0 {
        writeln!(
            out,
            "rules: right ({rules_files} files, {rules} rules, {examples} examples hold)"
        )?;
    }
    for key in unheeded() {
        writeln!(out, "{}: {} demands nothing here", key.origin, key.value)?;
    }
    for bundle in &config.bundles {
        match (bundle.complaint(), bundle.serial, &bundle.expires) {
            (None, Some(serial), Some(expires)) => {
                writeln!(out, "{}: right (serial {serial}, until {expires})", bundle.url)?;
            }
            (complaint, ..) => writeln!(out, "{}", complaint.unwrap_or_default())?,
        }
    }
    Ok(())
}

/// Signs what was read and found right, for a machine that fetched anything else would run nothing.
fn bundle(args: &BundleArgs, out: &mut dyn Write) -> anyhow::Result<()> {
    let mut files = Vec::new();
    for path in &args.files {
        let shown = path.display().to_string();
        let text = std::fs::read_to_string(path).with_context(|| format!("{shown} cannot be read"))?;
        match path.extension().is_some_and(|extension| extension == "rules") {
            true => {
                let rules = RuleText {
                    name: shown,
                    text: text.clone(),
                };
                Policy::from_texts(&[rules], Unmatched::Allow)?;
            }
            false => {
                let demands = Requirements::from_toml(&text, &shown).map_err(ConfigError::Faults)?;
                anyhow::ensure!(demands.bundle.is_none(), "{shown}: a bundle names no bundle");
            }
        }
        let name = path.file_name().unwrap_or_default().to_string_lossy().into_owned();
        files.push(BundleFile { name, text });
    }
    let key = SigningKey::load_or_make(&args.key)?;
    let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24 * i64::from(args.days));
    let signed = sign(&key, args.serial, expires, files)?;
    eprintln!("signed by {}", key.public());
    Ok(out.write_all(signed.as_bytes())?)
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
