//! What a caller asks for: a task spec as it stands in a TOML file, and the flags that override it.
//!
//! Nothing here looks at the machine: whether a root exists is for `config::admit` to say. Every value keeps its place, so that
//! what is found wrong later can still name file, line and column.
//!
//! The keys, with their defaults and reasons, stand in `config/default.toml`; the same tables serve there as defaults.

mod flags;
mod hosts;
mod secrets;

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::time::Duration;

use schemars::{JsonSchema, Schema};

use super::limits::{Bytes, parse_time};
use super::{Backend, GitMode, Guarantee, NetworkMode, Reviewer, Unknown, Unmatched, User, WhoApproves};
use crate::document::{Document, Fault, Faults, Origin, Sited, Table, Value, Word as _, read_file};
use crate::path::SandboxPath;

pub use flags::Overrides;
pub use hosts::HostSpec;
pub(crate) use hosts::{host_rules, hosts};
pub use secrets::{AwsSpec, OauthSpec, SecretSpec};

/// The one version of the format.
const VERSION: i64 = 1;

/// The folder where an agent's work lies, unless a spec says otherwise.
pub(crate) const WORKSPACE: &str = "/workspace";

/// One task as it is asked for. What is absent comes from a lower layer of the configuration.
#[derive(Debug, Clone, PartialEq, Default, JsonSchema)]
#[schemars(title = "belljar task spec", deny_unknown_fields)]
pub struct TaskSpec {
    /// A short name, for lists and records.
    #[schemars(with = "Option<String>")]
    pub name: Option<Sited<String>>,
    /// Why the task is run: shown to reviewers, kept in the record.
    pub purpose: Option<Sited<String>>,
    /// `host`, a name in the local store, a registry reference, an OCI layout folder or archive, or a root file system folder.
    pub image: Option<Sited<String>>,
    /// Without one the task waits for execs.
    #[schemars(length(min = 1))]
    pub command: Option<Sited<Vec<String>>>,
    /// Where commands start; `/workspace` if there is such a root, else `/`.
    #[schemars(with = "Option<String>")]
    pub workdir: Option<Sited<SandboxPath>>,
    pub user: Option<Sited<User>>,
    pub backend: Option<Sited<Backend>>,
    /// `builtin`, or an OCI runtime by name or path; with the docker backend the name of one of its runtimes.
    pub runtime: Option<Sited<String>>,
    /// Guarantees that the task may run without where the machine cannot give them in full; else it is refused. Added to those of
    /// lower layers; an empty list accepts nothing, whatever they say.
    pub accept_partial: Option<Vec<Sited<Guarantee>>>,
    #[schemars(default)]
    pub writable_roots: Vec<WritableRoot>,
    #[schemars(default)]
    pub readable_roots: Vec<ReadableRoot>,
    /// The environment of the sandbox, beside a small fixed set.
    #[schemars(default)]
    pub env: BTreeMap<String, Sited<String>>,
    /// By the name of the variable that holds the placeholder inside.
    #[schemars(default)]
    pub secrets: BTreeMap<String, SecretSpec>,
    #[schemars(default)]
    pub limits: LimitsSpec,
    #[schemars(default)]
    pub network: NetworkSpec,
    #[schemars(default)]
    pub gate: GateSpec,
}

#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct WritableRoot {
    /// A folder or file outside, relative to the file that names it; `~` is the caller's home.
    pub host: Sited<String>,
    /// The same path as outside when absent.
    #[schemars(with = "Option<String>")]
    pub path: Option<Sited<SandboxPath>>,
    /// `safe` when absent.
    pub git: Option<Sited<GitMode>>,
    /// Names protected beside the built-in ones.
    #[schemars(default)]
    pub protect: Vec<Sited<String>>,
}

#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct ReadableRoot {
    /// A folder or file outside, relative to the file that names it; `~` is the caller's home.
    pub host: Sited<String>,
    /// The same path as outside when absent.
    #[schemars(with = "Option<String>")]
    pub path: Option<Sited<SandboxPath>>,
}

#[derive(Debug, Clone, PartialEq, Default, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct LimitsSpec {
    #[schemars(with = "Option<String>")]
    pub memory: Option<Sited<Bytes>>,
    /// CPUs at once: 1.5 is one and a half.
    pub cpus: Option<Sited<f64>>,
    pub pids: Option<Sited<u32>>,
    /// The disposable part of the file system.
    #[schemars(with = "Option<String>")]
    pub disk: Option<Sited<Bytes>>,
    #[schemars(with = "Option<String>")]
    pub task_time: Option<Sited<Duration>>,
    #[schemars(with = "Option<String>")]
    pub exec_time: Option<Sited<Duration>>,
    /// Per exec, stdout and stderr together; then it is cut, and the record says so.
    #[schemars(with = "Option<String>")]
    pub output: Option<Sited<Bytes>>,
}

#[derive(Debug, Clone, PartialEq, Default, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct NetworkSpec {
    /// When absent: `proxy` if `allow` names a host, else `none`.
    pub mode: Option<Sited<NetworkMode>>,
    #[schemars(default)]
    pub allow: Vec<Sited<String>>,
    #[schemars(default)]
    pub deny: Vec<Sited<String>>,
    pub unknown: Option<Sited<Unknown>>,
    /// Hosts that are allowed for some requests only; their traffic is looked into.
    #[schemars(default)]
    pub hosts: Vec<HostSpec>,
}

#[derive(Debug, Clone, PartialEq, Default, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct GateSpec {
    /// Files of rules, relative to the file that names them.
    #[schemars(default)]
    pub rules: Vec<Sited<String>>,
    /// For commands that no rule matches.
    pub unmatched: Option<Sited<Unmatched>>,
    pub reviewer: Option<Sited<Reviewer>>,
    /// Whose yes counts: a person's alone, or that of the program that drives the task too.
    pub approvers: Option<Sited<WhoApproves>>,
    #[schemars(with = "Option<String>")]
    pub approval_time: Option<Sited<Duration>>,
}

impl TaskSpec {
    /// Reads a file.
    pub fn read(path: &Path) -> Result<TaskSpec, Faults> {
        Self::from_toml(&read_file(path)?, &path.display().to_string())
    }

    /// Reads what can be read of a file, with all that is wrong in it: for a caller that goes on to look for more.
    pub fn read_all(path: &Path) -> (TaskSpec, Vec<Fault>) {
        let text = match read_file(path) {
            Ok(text) => text,
            Err(faults) => return (TaskSpec::default(), faults.into_vec()),
        };
        match Document::parse(&text, &path.display().to_string()) {
            Err(faults) => (TaskSpec::default(), faults.into_vec()),
            Ok(document) => document.read_all(|root| {
                version(root);
                read_spec(root)
            }),
        }
    }

    /// Reads a text; `file` is the name under which faults are reported.
    pub fn from_toml(text: &str, file: &str) -> Result<TaskSpec, Faults> {
        Document::parse(text, file)?.read(|root| {
            version(root);
            read_spec(root)
        })
    }

    /// The JSON Schema of the format.
    pub fn schema() -> Schema {
        let mut schema = schemars::schema_for!(TaskSpec);
        let object = schema.ensure_object();
        if let Some(serde_json::Value::Object(properties)) = object.get_mut("properties") {
            properties.insert("version".to_owned(), serde_json::json!({ "const": VERSION }));
        }
        object.insert("required".to_owned(), serde_json::json!(["version"]));
        schema
    }

    /// Puts `self` on top of a lower layer: a single value replaces the one below, named entries replace those of the same
    /// name, lists add up. Rules and denied hosts of a lower layer therefore stay.
    pub fn over(self, below: TaskSpec) -> TaskSpec {
        TaskSpec {
            name: self.name.or(below.name),
            purpose: self.purpose.or(below.purpose),
            image: self.image.or(below.image),
            command: self.command.or(below.command),
            workdir: self.workdir.or(below.workdir),
            user: self.user.or(below.user),
            backend: self.backend.or(below.backend),
            runtime: self.runtime.or(below.runtime),
            accept_partial: match self.accept_partial {
                Some(list) if list.is_empty() => Some(list),
                Some(list) => Some(joined(below.accept_partial.unwrap_or_default(), list)),
                None => below.accept_partial,
            },
            writable_roots: joined(below.writable_roots, self.writable_roots),
            readable_roots: joined(below.readable_roots, self.readable_roots),
            env: below.env.into_iter().chain(self.env).collect(),
            secrets: below.secrets.into_iter().chain(self.secrets).collect(),
            limits: LimitsSpec {
                memory: self.limits.memory.or(below.limits.memory),
                cpus: self.limits.cpus.or(below.limits.cpus),
                pids: self.limits.pids.or(below.limits.pids),
                disk: self.limits.disk.or(below.limits.disk),
                task_time: self.limits.task_time.or(below.limits.task_time),
                exec_time: self.limits.exec_time.or(below.limits.exec_time),
                output: self.limits.output.or(below.limits.output),
            },
            network: NetworkSpec {
                mode: self.network.mode.or(below.network.mode),
                allow: joined(below.network.allow, self.network.allow),
                deny: joined(below.network.deny, self.network.deny),
                unknown: self.network.unknown.or(below.network.unknown),
                hosts: joined(below.network.hosts, self.network.hosts),
            },
            gate: GateSpec {
                rules: joined(below.gate.rules, self.gate.rules),
                unmatched: self.gate.unmatched.or(below.gate.unmatched),
                reviewer: self.gate.reviewer.or(below.gate.reviewer),
                approvers: self.gate.approvers.or(below.gate.approvers),
                approval_time: self.gate.approval_time.or(below.gate.approval_time),
            },
        }
    }
}

impl TaskSpec {
    /// Makes the relative paths of a file absolute, as seen from the file's folder.
    pub fn rebase(&mut self, base: &Path) {
        let hosts = self.writable_roots.iter_mut().map(|root| &mut root.host);
        let hosts = hosts.chain(self.readable_roots.iter_mut().map(|root| &mut root.host));
        let rules = self
            .gate
            .rules
            .iter_mut()
            .filter(|rules| !rules.value.starts_with(BUILT_IN));
        for path in hosts.chain(rules) {
            path.value = absolute(&path.value, base);
        }
        if let Some(image) = self.image.as_mut().filter(|image| is_relative_path(&image.value)) {
            image.value = absolute(&image.value, base);
        }
        if let Some(runtime) = self.runtime.as_mut().filter(|runtime| is_relative_path(&runtime.value)) {
            runtime.value = absolute(&runtime.value, base);
        }
        for secret in self.secrets.values_mut() {
            let session = secret.aws.as_mut().and_then(|aws| aws.session_token.as_mut());
            for source in std::iter::once(&mut secret.source).chain(session) {
                if let Some(path) = source.value.strip_prefix("file:") {
                    source.value = format!("file:{}", absolute(path, base));
                }
            }
        }
    }
}

/// How rules are named that are part of belljar: `builtin:dangerous`.
pub const BUILT_IN: &str = "builtin:";

/// `~` is left to [`expand_home`], which needs to know whose.
fn absolute(text: &str, base: &Path) -> String {
    match text.starts_with('~') {
        true => text.to_owned(),
        false => base.join(text).display().to_string(),
    }
}

/// An image or a runtime is a path when it is written like one, `./rootfs`; a bare word is a name.
fn is_relative_path(text: &str) -> bool {
    text == "." || text == ".." || text.starts_with("./") || text.starts_with("../")
}

/// Puts the home folder in the place of a leading `~`.
pub(crate) fn expand_home(text: &str, home: Option<&Path>) -> Result<PathBuf, String> {
    let Some(rest) = text.strip_prefix('~') else {
        return Ok(PathBuf::from(text));
    };
    if !rest.is_empty() && !rest.starts_with('/') {
        return Err(format!(
            "\"{text}\" names another user's home, which is not looked up (write the path itself)"
        ));
    }
    let home = home.ok_or_else(|| format!("\"{text}\" needs a home folder, and the caller has none"))?;
    Ok(home.join(rest.trim_start_matches('/')))
}

fn joined<T>(mut low: Vec<T>, high: Vec<T>) -> Vec<T> {
    low.extend(high);
    low
}

fn version(root: &Table<'_>) {
    if let Some(value) = root.required("version", "version = 1") {
        value.integer(VERSION..=VERSION);
    }
}

/// Reads the tables of a spec out of a table: the root of a spec's file, or `[task]` of the configuration.
pub(crate) fn read_spec(root: &Table<'_>) -> TaskSpec {
    TaskSpec {
        name: root.parsed("name", name),
        purpose: root.parsed("purpose", |text| plain(text, 4096)),
        image: root.parsed("image", |text| plain(text, 4096)),
        command: root.value("command").and_then(|value| command(&value)),
        workdir: root.parsed("workdir", sandbox_path),
        user: root.word("user"),
        backend: root.word("backend"),
        runtime: root.parsed("runtime", |text| plain(text, 4096)),
        accept_partial: root.value("accept_partial").and_then(|value| {
            let words = value.list()?;
            Some(words.iter().filter_map(|word| word.parsed(Guarantee::read)).collect())
        }),
        writable_roots: root.tables("writable_roots").iter().filter_map(writable_root).collect(),
        readable_roots: root.tables("readable_roots").iter().filter_map(readable_root).collect(),
        env: root.table("env").map(env).unwrap_or_default(),
        secrets: root.table("secrets").map(secrets::secrets).unwrap_or_default(),
        limits: root.table("limits").map(|table| limits(&table)).unwrap_or_default(),
        network: root.table("network").map(|table| network(&table)).unwrap_or_default(),
        gate: root.table("gate").map(|table| gate(&table)).unwrap_or_default(),
    }
}

fn writable_root(table: &Table<'_>) -> Option<WritableRoot> {
    let host = table
        .required("host", "a path")
        .and_then(|value| value.parsed(host_path));
    let root = |host| WritableRoot {
        host,
        path: table.parsed("path", sandbox_path),
        git: table.word("git"),
        protect: table.list("protect", protected_name),
    };
    // The other keys are read even when this one is wrong, for their own faults' sake.
    let blank = || Sited::new(String::new(), table.origin());
    let found = host.is_some();
    let root = root(host.unwrap_or_else(blank));
    found.then_some(root)
}

fn readable_root(table: &Table<'_>) -> Option<ReadableRoot> {
    let host = table
        .required("host", "a path")
        .and_then(|value| value.parsed(host_path));
    let path = table.parsed("path", sandbox_path);
    Some(ReadableRoot { host: host?, path })
}

fn env(table: Table<'_>) -> BTreeMap<String, Sited<String>> {
    let mut env = BTreeMap::new();
    for (name, value) in table.open() {
        match env_name(&name.value) {
            Err(what) => value.fault(what),
            Ok(()) => {
                if let Some(text) = value.parsed(env_value) {
                    env.insert(name.value, text);
                }
            }
        }
    }
    env
}

pub(crate) fn limits(table: &Table<'_>) -> LimitsSpec {
    LimitsSpec {
        memory: table.parsed("memory", memory),
        cpus: table.value("cpus").and_then(|value| value.number(0.01..=4096.0)),
        pids: table.value("pids").and_then(|value| {
            let pids = value.integer(2..=i64::from(MOST_PIDS))?;
            Some(Sited::new(pids.value as u32, pids.origin))
        }),
        disk: table.parsed("disk", disk),
        task_time: table.parsed("task_time", time),
        exec_time: table.parsed("exec_time", time),
        output: table.parsed("output", size),
    }
}

fn network(table: &Table<'_>) -> NetworkSpec {
    NetworkSpec {
        mode: table.word("mode"),
        allow: table.list("allow", host_pattern),
        deny: table.list("deny", host_pattern),
        unknown: table.word("unknown"),
        hosts: hosts(table),
    }
}

fn gate(table: &Table<'_>) -> GateSpec {
    GateSpec {
        rules: table.list("rules", host_path),
        unmatched: table.word("unmatched"),
        reviewer: table.word("reviewer"),
        approvers: table.word("approvers"),
        approval_time: table.parsed("approval_time", time),
    }
}

fn command(value: &Value<'_>) -> Option<Sited<Vec<String>>> {
    let words: Vec<_> = value.list()?.iter().map(|word| word.parsed(word_of_command)).collect();
    let words: Vec<String> = words
        .into_iter()
        .collect::<Option<Vec<_>>>()?
        .into_iter()
        .map(|word| word.value)
        .collect();
    match command_words(&words) {
        Ok(()) => Some(Sited::new(words, value.origin())),
        Err(what) => {
            value.fault(what);
            None
        }
    }
}

/// The kernel's own bound on process ids.
const MOST_PIDS: u32 = 1 << 22;

fn command_words(words: &[String]) -> Result<(), String> {
    match words.first().map(String::as_str) {
        None => Err("a command needs at least one word".to_owned()),
        Some("") => Err("the first word of a command must not be empty".to_owned()),
        Some(_) => Ok(()),
    }
}

fn word_of_command(text: &str) -> Result<String, String> {
    match text.contains('\0') {
        true => Err("a word of a command cannot hold a NUL".to_owned()),
        false => Ok(text.to_owned()),
    }
}

fn name(text: &str) -> Result<String, String> {
    plain(text, 100)
}

fn plain(text: &str, most: usize) -> Result<String, String> {
    if text.trim().is_empty() {
        return Err("the text is empty".to_owned());
    }
    if text.chars().count() > most {
        return Err(format!("the text is longer than {most} characters"));
    }
    if text.chars().any(|c| c.is_control() && c != '\n' && c != '\t') {
        return Err("the text holds a control character".to_owned());
    }
    Ok(text.to_owned())
}

fn host_path(text: &str) -> Result<String, String> {
    if text.is_empty() {
        return Err("a path must not be empty".to_owned());
    }
    if text.chars().any(char::is_control) {
        return Err("the path contains a NUL or control character".to_owned());
    }
    Ok(text.to_owned())
}

fn sandbox_path(text: &str) -> Result<SandboxPath, String> {
    SandboxPath::new(text).map_err(|error| error.to_string())
}

/// A protected name is a relative path below the root, or a bare name.
fn protected_name(text: &str) -> Result<String, String> {
    let inside = SandboxPath::new(&format!("/{text}")).map_err(|error| error.to_string())?;
    match text.starts_with('/') || inside.relative().is_empty() {
        true => Err(format!("\"{text}\" is not a name below the root")),
        false => Ok(inside.relative().to_owned()),
    }
}

pub(crate) fn host_pattern(text: &str) -> Result<String, String> {
    match text.is_empty() || text.chars().any(|c| c.is_whitespace() || c.is_control()) {
        true => Err(format!("{text:?} is not a host or a pattern of hosts")),
        false => Ok(text.to_owned()),
    }
}

fn env_name(text: &str) -> Result<(), String> {
    match text.is_empty() || text.contains(['=', '\0']) || text.chars().any(|c| c.is_control() || c.is_whitespace()) {
        true => Err(format!("{text:?} is not the name of an environment variable")),
        false => Ok(()),
    }
}

fn env_value(text: &str) -> Result<String, String> {
    match text.contains('\0') {
        true => Err("the value of a variable cannot hold a NUL".to_owned()),
        false => Ok(text.to_owned()),
    }
}

pub(crate) fn size(text: &str) -> Result<Bytes, String> {
    text.parse::<Bytes>().map_err(|error| error.to_string())
}

/// Below this the guest and one shell do not fit.
const LEAST_MEMORY: Bytes = Bytes(8 << 20);

fn memory(text: &str) -> Result<Bytes, String> {
    match size(text)? {
        least if least < LEAST_MEMORY => Err(format!("{least} is less than {LEAST_MEMORY}, in which nothing runs")),
        bytes => Ok(bytes),
    }
}

/// Below this a tmpfs holds not even a few small files with their inodes.
const LEAST_DISK: Bytes = Bytes(1 << 20);

fn disk(text: &str) -> Result<Bytes, String> {
    match size(text)? {
        least if least < LEAST_DISK => Err(format!("{least} is less than {LEAST_DISK}, which holds nothing")),
        bytes => Ok(bytes),
    }
}

pub(crate) fn time(text: &str) -> Result<Duration, String> {
    parse_time(text).map_err(|error| error.to_string())
}

#[cfg(test)]
mod tests;
