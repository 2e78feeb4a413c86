//! The flags that describe a task, and the way from them to an admitted [`Task`]. The same for all subcommands that take a spec.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::config::{Config, Rejection, Surroundings, admit};
use crate::document::{Fault, Faults, Origin, Sited};
use crate::egress::pattern::{List, Pattern};
use crate::policy::{Policy, RuleText};
use crate::task::spec::{NetworkSpec, Overrides, TaskSpec};
use crate::task::{Task, Unmatched};

/// A task: a spec file, flags, or both. Flags win over the file.
#[derive(Debug, Clone, Default, clap::Args)]
pub struct TaskArgs {
    /// The task spec, a TOML file
    #[arg(value_name = "SPEC")]
    pub spec: Option<PathBuf>,
    /// host, a rootfs folder, or an OCI layout folder or archive
    #[arg(long, value_name = "IMAGE")]
    pub image: Option<String>,
    /// A folder that the task may change; the first is /workspace unless PATH says otherwise. May be repeated
    #[arg(long, value_name = "HOST[:PATH]")]
    pub write: Vec<String>,
    /// A folder or file that the task may read. May be repeated
    #[arg(long, value_name = "HOST[:PATH]")]
    pub read: Vec<String>,
    /// A host, or a pattern such as *.example.org, that the task may reach. May be repeated
    #[arg(long, value_name = "HOST")]
    pub allow: Vec<String>,
    /// A host that it may not reach, whatever else is allowed. May be repeated
    #[arg(long, value_name = "HOST")]
    pub deny: Vec<String>,
    /// A file of rules for commands. May be repeated
    #[arg(long, value_name = "FILE")]
    pub rules: Vec<String>,
    /// A variable inside. May be repeated
    #[arg(long, value_name = "NAME=VALUE")]
    pub env: Vec<String>,
    /// Memory for all of the task, such as 2GiB
    #[arg(long, value_name = "SIZE")]
    pub memory: Option<String>,
    /// CPUs at once, such as 1.5
    #[arg(long, value_name = "NUMBER")]
    pub cpus: Option<String>,
    /// Processes and threads at once
    #[arg(long, value_name = "NUMBER")]
    pub pids: Option<String>,
    /// The disposable part of the file system, such as 4GiB
    #[arg(long, value_name = "SIZE")]
    pub disk: Option<String>,
    /// The longest life of the task, such as 90s or 10m
    #[arg(long, value_name = "TIME")]
    pub timeout: Option<String>,
    /// The longest life of one command
    #[arg(long, value_name = "TIME")]
    pub exec_timeout: Option<String>,
    /// The most output of one command, such as 64MiB
    #[arg(long, value_name = "SIZE")]
    pub output: Option<String>,
    /// none: no network at all; proxy: HTTP through belljar's own proxy
    #[arg(long, value_name = "MODE")]
    pub network: Option<String>,
    /// allow, ask or deny: what follows for a command that no rule matches
    #[arg(long, value_name = "DECISION")]
    pub unmatched: Option<String>,
    /// What makes the sandbox: oci or docker
    #[arg(long, value_name = "BACKEND")]
    pub backend: Option<String>,
    /// builtin, or an OCI runtime by name or path
    #[arg(long, value_name = "RUNTIME")]
    pub runtime: Option<String>,
    /// agent: an ordinary user whose files are yours outside; root: of the sandbox only
    #[arg(long, value_name = "USER")]
    pub user: Option<String>,
    /// A control that the task may run without where this machine cannot give it in full. May be repeated
    #[arg(long, value_name = "CONTROL")]
    pub accept_partial: Vec<String>,
    /// The folder inside in which commands run
    #[arg(long, value_name = "PATH")]
    pub workdir: Option<String>,
    /// The task's name
    #[arg(long, value_name = "NAME")]
    pub name: Option<String>,
    /// What the task is for: shown to reviewers, kept in the record
    #[arg(long, value_name = "TEXT")]
    pub purpose: Option<String>,
    /// The command; without one the task waits for execs
    #[arg(last = true, value_name = "CMD")]
    pub command: Vec<String>,
}

/// An admitted task and what it was admitted under.
#[derive(Debug)]
pub struct Ready {
    pub task: Task,
    pub config: Config,
    pub surroundings: Surroundings,
}

/// A spec, and what of its text could not be understood.
pub type SpecRead = (TaskSpec, Vec<Fault>);

impl TaskArgs {
    /// Reads the spec and the configuration, puts the flags on top, and has the whole admitted. Nothing is made or started.
    pub fn admit(self) -> anyhow::Result<Ready> {
        let spec = self.read_spec();
        self.admit_spec(spec)
    }

    /// The spec as it stands in its file; an empty one where none is named.
    pub fn read_spec(&self) -> SpecRead {
        self.spec.as_deref().map(TaskSpec::read_all).unwrap_or_default()
    }

    /// The same as [`TaskArgs::admit`] with a spec that was read before.
    pub fn admit_spec(self, (spec, mut faults): SpecRead) -> anyhow::Result<Ready> {
        let mut surroundings = Surroundings::of_process();
        let cwd = std::env::current_dir().context("cannot tell the current folder")?;
        let base = match &self.spec {
            Some(file) => cwd.join(file.parent().unwrap_or(Path::new(""))),
            None => cwd.clone(),
        };
        surroundings.project = Some(base.clone());
        let config = Config::load(&surroundings)?;
        let (spec, of_flags) = spec.apply_all(self.overrides(), &cwd);
        faults.extend(of_flags);
        faults.extend(faults_of_hosts(&spec.network));
        let rules = spec.gate.rules.clone();
        // What was misread is missing from here on; that what is left would do is not asked.
        match (admit(spec, &base, &config, &surroundings.caller()), faults.is_empty()) {
            (Ok(task), true) => {
                return Ok(Ready {
                    task,
                    config,
                    surroundings,
                });
            }
            (Err(Rejection::Violations(violations)), true) => return Err(Rejection::Violations(violations).into()),
            (Err(Rejection::Faults(more)), _) => faults.extend(more.into_vec()),
            (Ok(_) | Err(Rejection::Violations(_)), false) => {}
        }
        faults.extend(faults_of_rules(&rules, &base));
        match Faults::check(faults) {
            Err(faults) => Err(Rejection::Faults(faults).into()),
            Ok(()) => anyhow::bail!("the task was rejected for no reason that was told"),
        }
    }

    fn overrides(self) -> Overrides {
        Overrides {
            name: self.name,
            purpose: self.purpose,
            image: self.image,
            user: self.user,
            backend: self.backend,
            runtime: self.runtime,
            accept_partial: self.accept_partial,
            workdir: self.workdir,
            write: self.write,
            read: self.read,
            env: self.env,
            memory: self.memory,
            cpus: self.cpus,
            pids: self.pids,
            disk: self.disk,
            timeout: self.timeout,
            exec_timeout: self.exec_timeout,
            output: self.output,
            network: self.network,
            allow: self.allow,
            deny: self.deny,
            rules: self.rules,
            unmatched: self.unmatched,
            command: self.command,
        }
    }
}

/// The patterns that the proxy could not read.
fn faults_of_hosts(network: &NetworkSpec) -> Vec<Fault> {
    let lists = [
        ("network.allow", &network.allow, List::Allow),
        ("network.deny", &network.deny, List::Deny),
    ];
    let patterns = lists
        .into_iter()
        .flat_map(|(key, patterns, list)| patterns.iter().map(move |pattern| (key, pattern, list)));
    patterns
        .filter_map(|(key, pattern, list)| {
            let error = Pattern::parse(&pattern.value, list).err()?;
            let (origin, key) = match &pattern.origin {
                // A flag names itself.
                Origin::Flag(_) => (pattern.origin.clone(), String::new()),
                Origin::File { .. } => (pattern.origin.clone(), key.to_owned()),
            };
            let what = match std::error::Error::source(&error) {
                Some(source) => format!("{error}: {source}"),
                None => error.to_string(),
            };
            Some(Fault { origin, key, what })
        })
        .collect()
}

/// What is wrong in the files of rules themselves; one that is not there has been told already.
fn faults_of_rules(files: &[Sited<String>], base: &Path) -> Vec<Fault> {
    let texts = files.iter().filter_map(|file| {
        let path = base.join(&file.value);
        let text = std::fs::read_to_string(&path).ok()?;
        let name = path.display().to_string();
        Some(RuleText { name, text })
    });
    let Err(error) = Policy::from_texts(&texts.collect::<Vec<_>>(), Unmatched::Allow) else {
        return Vec::new();
    };
    let placed = error.faults.into_iter().map(|fault| Fault {
        origin: Origin::File {
            file: fault.file.into(),
            line: fault.line,
            column: fault.column,
        },
        key: String::new(),
        what: fault.text,
    });
    placed.collect()
}
