//! The flags of `belljar run` that build or override a task spec.

use std::path::Path;

use super::*;
use crate::document::Word;

/// Flags as they were given; an absent one changes nothing.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Overrides {
    pub name: Option<String>,
    pub purpose: Option<String>,
    pub image: Option<String>,
    pub user: Option<String>,
    pub backend: Option<String>,
    pub runtime: Option<String>,
    /// Beside what the spec accepts.
    pub accept_partial: Vec<String>,
    pub workdir: Option<String>,
    /// `HOST[:PATH]`. Without a path the first one is `/workspace`, and so the folder where commands start; any other has the
    /// same path as outside.
    pub write: Vec<String>,
    /// `HOST[:PATH]`; without a path it is the same as outside.
    pub read: Vec<String>,
    /// `NAME=VALUE`.
    pub env: Vec<String>,
    pub memory: Option<String>,
    pub cpus: Option<String>,
    pub pids: Option<String>,
    pub disk: Option<String>,
    /// The time of the whole task.
    pub timeout: Option<String>,
    pub exec_timeout: Option<String>,
    pub output: Option<String>,
    pub network: Option<String>,
    pub allow: Vec<String>,
    pub deny: Vec<String>,
    pub rules: Vec<String>,
    pub unmatched: Option<String>,
    /// What stands after `--`; empty when nothing does.
    pub command: Vec<String>,
}

impl TaskSpec {
    /// Puts flags on top of the spec; relative paths in them are relative to `cwd`. Every fault is found before it returns.
    ///
    /// A root given by flag whose sandbox path the spec has already changes that root's host path and access, and keeps the rest.
    pub fn apply(self, flags: Overrides, cwd: &Path) -> Result<TaskSpec, Faults> {
        let (spec, faults) = self.apply_all(flags, cwd);
        Faults::check(faults)?;
        Ok(spec)
    }

    /// The same, with all that is wrong: for a caller that goes on to look for more.
    pub fn apply_all(self, flags: Overrides, cwd: &Path) -> (TaskSpec, Vec<Fault>) {
        let mut flag = Flags {
            faults: Vec::new(),
            cwd,
        };
        let mut top = TaskSpec {
            name: flag.one("--name", flags.name, name),
            purpose: flag.one("--purpose", flags.purpose, |text| plain(text, 4096)),
            image: flag.one("--image", flags.image, |text| plain(text, 4096)),
            command: flag.command(flags.command),
            workdir: flag.one("--workdir", flags.workdir, sandbox_path),
            user: flag.one("--user", flags.user, User::read),
            backend: flag.one("--backend", flags.backend, Backend::read),
            runtime: flag.one("--runtime", flags.runtime, |text| plain(text, 4096)),
            accept_partial: match flags.accept_partial {
                none if none.is_empty() => None,
                some => Some(flag.all("--accept-partial", some, Guarantee::read)),
            },
            env: flag.env(flags.env),
            limits: LimitsSpec {
                memory: flag.one("--memory", flags.memory, memory),
                cpus: flag.one("--cpus", flags.cpus, cpus),
                pids: flag.one("--pids", flags.pids, pids),
                disk: flag.one("--disk", flags.disk, disk),
                task_time: flag.one("--timeout", flags.timeout, time),
                exec_time: flag.one("--exec-timeout", flags.exec_timeout, time),
                output: flag.one("--output", flags.output, size),
            },
            network: NetworkSpec {
                mode: flag.one("--network", flags.network, NetworkMode::read),
                allow: flag.all("--allow", flags.allow, host_pattern),
                deny: flag.all("--deny", flags.deny, host_pattern),
                unknown: None,
                hosts: Vec::new(),
            },
            gate: GateSpec {
                rules: flag.all("--rules", flags.rules, host_path),
                unmatched: flag.one("--unmatched", flags.unmatched, Unmatched::read),
                ..GateSpec::default()
            },
            ..TaskSpec::default()
        };
        top.rebase(cwd);
        let mut spec = top.over(self);
        flag.roots(&mut spec, flags.write, flags.read);
        (spec, flag.faults)
    }
}

struct Flags<'a> {
    faults: Vec<Fault>,
    cwd: &'a Path,
}

impl Flags<'_> {
    fn fault(&mut self, flag: &'static str, what: String) {
        self.faults.push(Fault {
            origin: Origin::Flag(flag),
            key: String::new(),
            what,
        });
    }

    fn one<T>(
        &mut self,
        flag: &'static str,
        text: Option<String>,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Option<Sited<T>> {
        self.all(flag, text.into_iter().collect(), read).pop()
    }

    fn all<T>(
        &mut self,
        flag: &'static str,
        texts: Vec<String>,
        read: impl Fn(&str) -> Result<T, String>,
    ) -> Vec<Sited<T>> {
        let mut values = Vec::new();
        for text in texts {
            match read(&text) {
                Ok(value) => values.push(Sited::new(value, Origin::Flag(flag))),
                Err(what) => self.fault(flag, what),
            }
        }
        values
    }

    fn command(&mut self, words: Vec<String>) -> Option<Sited<Vec<String>>> {
        if words.is_empty() {
            return None;
        }
        if let Err(what) = command_words(&words) {
            self.fault("--", what);
        }
        Some(Sited::new(words, Origin::Flag("--")))
    }

    fn env(&mut self, pairs: Vec<String>) -> BTreeMap<String, Sited<String>> {
        let pairs = self.all("--env", pairs, |pair| {
            let (name, value) = pair
                .split_once('=')
                .ok_or_else(|| format!("{pair:?} is not NAME=VALUE"))?;
            env_name(name)?;
            Ok((name.to_owned(), env_value(value)?))
        });
        pairs
            .into_iter()
            .map(|pair| (pair.value.0, Sited::new(pair.value.1, pair.origin)))
            .collect()
    }

    fn roots(&mut self, spec: &mut TaskSpec, write: Vec<String>, read: Vec<String>) {
        let host_and_path = |text: &str| {
            let (host, path) = split_root(text)?;
            Ok((host_path(host)?, path))
        };
        let workspace = SandboxPath::new(WORKSPACE).expect("a plain absolute path");
        let mut workspace_is_free = true;
        for root in self.all("--write", write, host_and_path) {
            let (host, path) = (absolute(&root.value.0, self.cwd), root.value.1);
            let origin = || Origin::Flag("--write");
            let path = match path {
                Some(path) => Some(Sited::new(path, origin())),
                None if std::mem::take(&mut workspace_is_free) => Some(Sited::new(workspace.clone(), origin())),
                None => None,
            };
            let (writable, _) = spec.take_root(path.as_ref());
            spec.writable_roots.push(WritableRoot {
                host: Sited::new(host, origin()),
                path,
                git: writable.as_ref().and_then(|root| root.git.clone()),
                protect: writable.map(|root| root.protect).unwrap_or_default(),
            });
        }
        for root in self.all("--read", read, host_and_path) {
            let (host, path) = (absolute(&root.value.0, self.cwd), root.value.1);
            let origin = || Origin::Flag("--read");
            let path = path.map(|path| Sited::new(path, origin()));
            spec.take_root(path.as_ref());
            spec.readable_roots.push(ReadableRoot {
                host: Sited::new(host, origin()),
                path,
            });
        }
    }
}

impl TaskSpec {
    /// Takes out the root that a file put at this path; one that a flag put there stays, and admission reports the clash.
    fn take_root(&mut self, path: Option<&Sited<SandboxPath>>) -> (Option<WritableRoot>, Option<ReadableRoot>) {
        let same = |other: &Option<Sited<SandboxPath>>| match (path, other) {
            (Some(path), Some(other)) => path.value == other.value && matches!(other.origin, Origin::File { .. }),
            _ => false,
        };
        let writable = self.writable_roots.iter().position(|root| same(&root.path));
        let readable = self.readable_roots.iter().position(|root| same(&root.path));
        (
            writable.map(|at| self.writable_roots.remove(at)),
            readable.map(|at| self.readable_roots.remove(at)),
        )
    }
}

/// `HOST[:PATH]`: the last colon counts, and only when an absolute path follows it.
fn split_root(text: &str) -> Result<(&str, Option<SandboxPath>), String> {
    match text.rsplit_once(':') {
        Some((host, path)) if path.starts_with('/') => Ok((host, Some(sandbox_path(path)?))),
        _ => Ok((text, None)),
    }
}

fn cpus(text: &str) -> Result<f64, String> {
    match text.parse::<f64>() {
        Ok(cpus) if (0.01..=4096.0).contains(&cpus) => Ok(cpus),
        _ => Err(format!("{text:?} is not a number from 0.01 to 4096")),
    }
}

fn pids(text: &str) -> Result<u32, String> {
    match text.parse::<u32>() {
        Ok(pids) if (2..=MOST_PIDS).contains(&pids) => Ok(pids),
        _ => Err(format!("{text:?} is not a whole number from 2 to {MOST_PIDS}")),
    }
}
