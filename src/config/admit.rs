//! From a task spec to a [`Task`]: the one door. What is asked for is put on top of the configuration, looked up on this
//! machine, and refused with every fault and every violation at once.
//!
//! What is checked here is checked again where it is used, by descriptor: between the two the world may change, and only a
//! clear message is lost by that.

mod image;
mod roots;
mod secrets;

use std::path::{Path, PathBuf};

use super::requirements::Asked;
use super::{Config, Requirements, is_built_in};
use crate::document::{Fault, Faults, Origin, Sited};
use crate::id::TaskId;
use crate::path::{HostPath, SandboxPath};
use crate::policy::rules::built_in as built_in_rules;
use crate::sys::user::groups_of;
use crate::task::limits::Limits;
use crate::task::spec::{BUILT_IN, LimitsSpec, TaskSpec, WORKSPACE, host_rules};
use crate::task::{Admitted, Gate, Guarantee, ImageRef, Network, NetworkMode, Root, Task};
use roots::{closed_folders, with_protected_rules};

/// Who asks, and where belljar keeps its state for them.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Caller {
    pub uid: u32,
    pub user: String,
    pub home: Option<PathBuf>,
    pub state: PathBuf,
}

/// Why a spec did not become a task.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Rejection {
    /// The spec is wrong: belljar failed.
    #[error("{0}")]
    Faults(Faults),
    /// The spec asks for more than the requirements allow: refused.
    #[error("{0}")]
    Violations(Faults),
}

/// Makes a task of a spec. `base` is the folder that relative paths of the spec are relative to.
pub fn admit(mut spec: TaskSpec, base: &Path, config: &Config, caller: &Caller) -> Result<Task, Rejection> {
    let base = base.canonicalize().unwrap_or_else(|_| base.to_owned());
    spec.rebase(&base);
    let mut spec = spec.over(config.task.clone());
    let mut journal = config.journal.clone();
    for demands in &config.requirements {
        demands.fill(&mut spec, &mut journal);
    }
    let mut admission = Admission {
        faults: Vec::new(),
        closed: closed_folders(config, caller),
        home: caller
            .home
            .as_ref()
            .map(|home| home.canonicalize().unwrap_or_else(|_| home.clone())),
    };
    let roots = admission.roots(&spec);
    let image = spec.image.as_ref().and_then(|image| admission.image(image));
    let violations = violations(&spec, &roots, image.as_ref(), config, caller);
    let never_ask = config
        .requirements
        .iter()
        .any(|demands| demands.never_ask.as_ref().is_some_and(|flag| flag.value));
    let mut task = admission.task(spec, roots, image, &config.requirements);
    if let Some(task) = &mut task {
        task.login = config.login().0;
        task.gate.never_ask = never_ask;
        // Or an agent could rewrite the program that judges the next one.
        let program = config.reviewer.as_ref().and_then(|reviewer| reviewer.value.program());
        let program = program.and_then(|path| HostPath::new(path).ok());
        task.roots = with_protected_rules(std::mem::take(&mut task.roots), program.as_slice());
    }
    // What is wrong is told before what is forbidden: a wrong spec says nothing about what it asks for.
    Faults::check(admission.faults).map_err(Rejection::Faults)?;
    Faults::check(violations).map_err(Rejection::Violations)?;
    Ok(task.expect("what could not be made was noted as a fault"))
}

fn violations(
    spec: &TaskSpec,
    roots: &[(Root, Origin, String)],
    image: Option<&ImageRef>,
    config: &Config,
    caller: &Caller,
) -> Vec<Fault> {
    if config.requirements.is_empty() && config.token.is_none() {
        return Vec::new();
    }
    let image = image.map(|image| match image {
        ImageRef::Host => "host".to_owned(),
        ImageRef::Named(name) => name.clone(),
        ImageRef::Rootfs(path) | ImageRef::OciLayout(path) => path.to_string(),
    });
    let asked = Asked {
        spec,
        roots,
        image: image.as_deref(),
        mode: network_mode(spec),
        caller,
        groups: &groups_of(&caller.user, caller.uid),
    };
    let checks = config.requirements.iter().flat_map(|demands| demands.check(&asked));
    checks.chain(config.violations()).collect()
}

struct Admission {
    faults: Vec<Fault>,
    /// Folders of belljar's own, with what they hold.
    closed: Vec<(PathBuf, &'static str)>,
    home: Option<PathBuf>,
}

/// The limits of cgroups that somebody has named: a task without them would not be what was asked for. What only the built-in
/// configuration says is no demand, or an ordinary user could run nothing on a machine without cgroups for them.
fn named_limits(limits: &LimitsSpec) -> Vec<Guarantee> {
    let named = |origin: Option<&Origin>| origin.is_some_and(|origin| !is_built_in(origin));
    let limits = [
        (Guarantee::Memory, limits.memory.as_ref().map(|limit| &limit.origin)),
        (Guarantee::Cpus, limits.cpus.as_ref().map(|limit| &limit.origin)),
        (Guarantee::Pids, limits.pids.as_ref().map(|limit| &limit.origin)),
    ];
    let named = limits.into_iter().filter(|(_, origin)| named(*origin));
    named.map(|(limit, _)| limit).collect()
}

impl Admission {
    fn fault<T>(&mut self, origin: &Origin, key: &str, what: impl Into<String>) -> Option<T> {
        // A flag names itself; the key of the file that it stands for would only confuse.
        let key = match origin {
            Origin::Flag(_) => String::new(),
            Origin::File { .. } => key.to_owned(),
        };
        self.faults.push(Fault {
            origin: origin.clone(),
            key,
            what: what.into(),
        });
        None
    }

    fn task(
        &mut self,
        spec: TaskSpec,
        roots: Vec<(Root, Origin, String)>,
        image: Option<ImageRef>,
        demands: &[Requirements],
    ) -> Option<Task> {
        let required = demands.iter().flat_map(|demands| demands.rules_texts.clone()).collect();
        let mut roots: Vec<Root> = roots.into_iter().map(|(root, ..)| root).collect();
        roots.sort_by(|one, other| one.path.cmp(&other.path));
        let mut rules: Vec<HostPath> = Vec::new();
        let mut built_in: Vec<String> = Vec::new();
        for file in &spec.gate.rules {
            match file.value.strip_prefix(BUILT_IN) {
                Some(name) if built_in_rules(name).is_some() => built_in.push(name.to_owned()),
                Some(name) => {
                    let what = format!("there are no built-in rules \"{name}\" (there is \"builtin:dangerous\")");
                    self.fault::<()>(&file.origin, "gate.rules", what);
                }
                None => rules.extend(self.rules_file(file)),
            }
        }
        built_in.sort();
        built_in.dedup();
        let runtime = self.runtime(spec.runtime.as_ref()?);
        let secrets = self.secrets(&spec);
        let workdir = self.workdir(&spec, &roots);
        let network = network(&spec, demands);
        let limits = &spec.limits;
        let named_limits = named_limits(limits);
        let accepted = spec.accept_partial.unwrap_or_default();
        let command = spec.command.map(|command| command.value);
        Some(Task {
            id: TaskId::new(),
            name: spec
                .name
                .map(|name| name.value)
                .unwrap_or_else(|| default_name(command.as_deref())),
            purpose: spec.purpose.map(|purpose| purpose.value),
            image: image?,
            command,
            workdir: workdir?,
            user: spec.user?.value,
            backend: spec.backend?.value,
            runtime: runtime?,
            roots: with_protected_rules(roots, &rules),
            env: spec.env.into_iter().map(|(name, value)| (name, value.value)).collect(),
            secrets: secrets?,
            limits: Limits {
                memory: limits.memory.as_ref().map(|memory| memory.value),
                cpus: limits.cpus.as_ref().map(|cpus| cpus.value),
                pids: limits.pids.as_ref().map(|pids| pids.value),
                disk: limits.disk.as_ref()?.value,
                task_time: limits.task_time.as_ref().map(|time| time.value),
                exec_time: limits.exec_time.as_ref().map(|time| time.value),
                output: limits.output.as_ref()?.value,
            },
            named_limits,
            accept_partial: accepted.into_iter().map(|guarantee| guarantee.value).collect(),
            network: network?,
            gate: Gate {
                rules,
                built_in,
                required,
                unmatched: spec.gate.unmatched?.value,
                reviewer: spec.gate.reviewer?.value,
                approvers: spec.gate.approvers?.value,
                approval_time: spec.gate.approval_time?.value,
                never_ask: false,
            },
            login: None,
            admitted: Admitted::by_config(),
        })
    }

    fn workdir(&mut self, spec: &TaskSpec, roots: &[Root]) -> Option<SandboxPath> {
        let Some(asked) = &spec.workdir else {
            let workspace = SandboxPath::new(WORKSPACE).expect("a plain absolute path");
            let root = SandboxPath::new("/").expect("a plain absolute path");
            return Some(if roots.iter().any(|root| root.path == workspace) {
                workspace
            } else {
                root
            });
        };
        // CVE-2024-21626: a folder that a descriptor of the runtime leads to is outside of the sandbox.
        let kernel = ["/proc", "/sys", "/dev"].map(|path| SandboxPath::new(path).expect("a plain absolute path"));
        match kernel.iter().any(|kernel| asked.value.is_within(kernel)) {
            true => self.fault(
                &asked.origin,
                "workdir",
                format!("commands cannot start in \"{}\"", asked.value),
            ),
            false => Some(asked.value.clone()),
        }
    }
}

fn network(spec: &TaskSpec, demands: &[Requirements]) -> Option<Network> {
    let texts = |list: &[Sited<String>]| -> Vec<String> {
        let mut texts: Vec<String> = Vec::new();
        for text in list {
            if !texts.contains(&text.value) {
                texts.push(text.value.clone());
            }
        }
        texts
    };
    let mode = network_mode(spec);
    let mut allow = texts(&spec.network.allow);
    if mode == NetworkMode::Proxy {
        for host in demands.iter().flat_map(|demands| texts(&demands.always)) {
            if !allow.contains(&host) {
                allow.push(host);
            }
        }
    }
    let required_hosts = demands.iter().map(|demands| host_rules(&demands.hosts));
    Some(Network {
        mode,
        allow,
        deny: texts(&spec.network.deny),
        unknown: spec.network.unknown.as_ref()?.value,
        hosts: host_rules(&spec.network.hosts),
        required_hosts: required_hosts.filter(|rules| !rules.is_empty()).collect(),
    })
}

/// Whoever allows a host wants a way out; nobody else gets one.
fn network_mode(spec: &TaskSpec) -> NetworkMode {
    match &spec.network.mode {
        Some(mode) => mode.value,
        None if spec.network.allow.is_empty() && spec.network.hosts.is_empty() => NetworkMode::None,
        None => NetworkMode::Proxy,
    }
}

fn default_name(command: Option<&[String]>) -> String {
    let program = command.and_then(|words| Path::new(words.first()?).file_name()?.to_str());
    let name: String = program
        .unwrap_or("task")
        .chars()
        .filter(|c| !c.is_control())
        .take(100)
        .collect();
    if name.is_empty() { "task".to_owned() } else { name }
}
