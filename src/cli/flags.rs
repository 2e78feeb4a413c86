//! The flags that describe a task, and the way from them to an admitted [`Task`]. The same for all subcommands that take a spec.

use std::path::{Path, PathBuf};

use anyhow::Context as _;

use crate::config::{Config, Surroundings, admit};
use crate::task::Task;
use crate::task::spec::{Overrides, TaskSpec};

/// A task: a spec file, flags, or both. Flags win over the file.
#[derive(Debug, Default, clap::Args)]
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

impl TaskArgs {
    /// Reads the spec and the configuration, puts the flags on top, and has the whole admitted. Nothing is made or started.
    pub fn admit(self) -> anyhow::Result<Ready> {
        let mut surroundings = Surroundings::of_process();
        let cwd = std::env::current_dir().context("cannot tell the current folder")?;
        let (spec, base) = match &self.spec {
            Some(file) => {
                let folder = file.parent().unwrap_or(Path::new("")).to_owned();
                (TaskSpec::read(file)?, cwd.join(folder))
            }
            None => (TaskSpec::default(), cwd.clone()),
        };
        surroundings.project = Some(base.clone());
        let config = Config::load(&surroundings)?;
        let spec = spec.apply(self.overrides(), &cwd)?;
        let task = admit(spec, &base, &config, &surroundings.caller())?;
        Ok(Ready {
            task,
            config,
            surroundings,
        })
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
