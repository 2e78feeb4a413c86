//! From a task spec to a [`Task`]: the one door. What is asked for is put on top of the configuration, looked up on this
//! machine, and refused with every fault and every violation at once.
//!
//! What is checked here is checked again where it is used, by descriptor: between the two the world may change, and only a
//! clear message is lost by that.

use std::collections::BTreeMap;
use std::path::{Component, Path, PathBuf};

use super::requirements::Asked;
use super::{Config, Requirements, is_built_in};
use crate::document::{Fault, Faults, Origin, Sited};
use crate::id::TaskId;
use crate::path::{HostPath, SandboxPath};
use crate::policy::rules::built_in as built_in_rules;
use crate::sys::path::{Kind, first_symlink, is_symlink_in_the_way, kind, open_without_symlinks};
use crate::sys::user::groups_of;
use crate::task::limits::Limits;
use crate::task::spec::{BUILT_IN, LimitsSpec, SecretSpec, TaskSpec, WORKSPACE, expand_home, host_rules};
use crate::task::{
    Access, Admitted, Gate, GitMode, Guarantee, ImageRef, Network, NetworkMode, Root, Runtime, Secret, SecretPlace,
    SecretSource, Task, is_image_name,
};

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

/// What no sandbox may see: whoever can reach the state can answer its own approvals, and whoever can write the configuration
/// can loosen the next task.
fn closed_folders(config: &Config, caller: &Caller) -> Vec<(PathBuf, &'static str)> {
    let state = [&caller.state, &config.state].map(|folder| (folder.clone(), "belljar's state"));
    let folders = config
        .folders
        .iter()
        .map(|folder| (folder.clone(), "belljar's configuration"));
    let real = |(folder, what): (PathBuf, &'static str)| (folder.canonicalize().unwrap_or(folder), what);
    state.into_iter().chain(folders).map(real).collect()
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

    /// All roots, parents before what lies in them, so that they can be mounted in this order.
    fn roots(&mut self, spec: &TaskSpec) -> Vec<(Root, Origin, String)> {
        let mut roots: Vec<(Root, Origin, String)> = Vec::new();
        for (n, asked) in spec.writable_roots.iter().enumerate() {
            let key = format!("writable_roots[{n}]");
            if let Some((host, path)) = self.root(&key, &asked.host, asked.path.as_ref(), Access::Write) {
                let root = Root {
                    host,
                    path,
                    access: Access::Write,
                    git: asked.git.as_ref().map_or(GitMode::Safe, |git| git.value),
                    protect: asked.protect.iter().map(|name| name.value.clone()).collect(),
                };
                roots.push((root, asked.host.origin.clone(), key));
            }
        }
        for (n, asked) in spec.readable_roots.iter().enumerate() {
            let key = format!("readable_roots[{n}]");
            if let Some((host, path)) = self.root(&key, &asked.host, asked.path.as_ref(), Access::Read) {
                let root = Root {
                    host,
                    path,
                    access: Access::Read,
                    git: GitMode::ReadOnly,
                    protect: Vec::new(),
                };
                roots.push((root, asked.host.origin.clone(), key));
            }
        }
        let mut seen: BTreeMap<SandboxPath, Origin> = BTreeMap::new();
        for (root, origin, key) in &roots {
            if let Some(first) = seen.insert(root.path.clone(), origin.clone()) {
                self.fault::<()>(
                    origin,
                    key,
                    format!("another root is at \"{}\" already ({first})", root.path),
                );
            }
        }
        roots
    }

    fn root(
        &mut self,
        key: &str,
        host: &Sited<String>,
        path: Option<&Sited<SandboxPath>>,
        access: Access,
    ) -> Option<(HostPath, SandboxPath)> {
        let host_key = format!("{key}.host");
        let found = self.existing(&host_key, host, &[Kind::Folder, Kind::File]);
        let path = match (path, &found) {
            (Some(path), _) => Some(path.clone()),
            (None, None) => None,
            (None, Some(found)) => match found.as_path().to_str().map(SandboxPath::new) {
                Some(Ok(path)) => Some(Sited::new(path, host.origin.clone())),
                _ => self.fault(
                    &host.origin,
                    &host_key,
                    "the path is not UTF-8 (say which path it has inside)",
                ),
            },
        };
        let path = path.and_then(|path| match reserved(&path.value) {
            Some(what) => self.fault(&path.origin, &format!("{key}.path"), what),
            None => Some(path.value),
        });
        let found = found?;
        self.check_exposure(&host_key, &host.origin, found.as_path(), access);
        Some((found, path?))
    }

    /// A root must neither be nor hold nor lie in what is belljar's or the kernel's own.
    fn check_exposure(&mut self, key: &str, origin: &Origin, host: &Path, access: Access) {
        for kernel in ["/proc", "/sys", "/dev"] {
            if host.starts_with(kernel) || Path::new(kernel).starts_with(host) {
                self.fault::<()>(
                    origin,
                    key,
                    format!("\"{}\" would show the host's {kernel} to the sandbox", host.display()),
                );
                return;
            }
        }
        for (folder, what) in self.closed.clone() {
            let state = what == "belljar's state";
            let exposes = host.starts_with(&folder) || folder.starts_with(host);
            if exposes && (state || access == Access::Write) {
                let text = format!(
                    "\"{}\" would open {what} in \"{}\" to the sandbox",
                    host.display(),
                    folder.display()
                );
                self.fault::<()>(origin, key, text);
            }
        }
    }

    /// An existing thing of one of these kinds, reached without a symlink.
    fn existing(&mut self, key: &str, text: &Sited<String>, kinds: &[Kind]) -> Option<HostPath> {
        let path = match expand_home(&text.value, self.home.as_deref()).map(|path| lexical(&path)) {
            Ok(path) => path,
            Err(what) => return self.fault(&text.origin, key, what),
        };
        let path = match HostPath::new(path) {
            Ok(path) => path,
            Err(error) => return self.fault(&text.origin, key, error.to_string()),
        };
        let opened = open_without_symlinks(path.as_path()).and_then(|fd| kind(&fd));
        match opened {
            Ok(kind) if kinds.contains(&kind) => Some(path),
            Ok(kind) => {
                let expected = if kinds.contains(&Kind::Folder) {
                    "a folder or a file"
                } else {
                    "a file"
                };
                self.fault(
                    &text.origin,
                    key,
                    format!("\"{path}\" is {}, not {expected}", noun(kind)),
                )
            }
            Err(error) => {
                let what = match first_symlink(path.as_path()) {
                    Some(link) if is_symlink_in_the_way(&error) => match link == path.as_path() {
                        true => format!("\"{path}\" is a symlink, which is not followed (name its target)"),
                        false => format!(
                            "\"{path}\" leads through the symlink \"{}\" (name its target)",
                            link.display()
                        ),
                    },
                    _ if error.kind() == std::io::ErrorKind::NotFound => format!("\"{path}\" does not exist"),
                    _ => format!("\"{path}\" cannot be opened: {error}"),
                };
                self.fault(&text.origin, key, what)
            }
        }
    }

    fn rules_file(&mut self, file: &Sited<String>) -> Option<HostPath> {
        self.existing("gate.rules", file, &[Kind::File])
    }

    fn image(&mut self, image: &Sited<String>) -> Option<ImageRef> {
        let text = image.value.as_str();
        if text == "host" {
            return Some(ImageRef::Host);
        }
        if !(text.starts_with('/') || text.starts_with('~')) {
            return match is_image_name(text) {
                true => Some(ImageRef::Named(text.to_owned())),
                false => {
                    let what = format!(
                        "\"{text}\" is neither a name nor a reference of an image (a path begins with ./ or /)"
                    );
                    self.fault(&image.origin, "image", what)
                }
            };
        }
        let path = self.existing("image", image, &[Kind::Folder, Kind::File])?;
        let at = path.as_path();
        if at.join("oci-layout").is_file() || at.is_file() && is_tar(at) {
            return Some(ImageRef::OciLayout(path));
        }
        if at.is_dir()
            && ["bin", "usr/bin"]
                .iter()
                .any(|bin| at.join(bin).symlink_metadata().is_ok())
        {
            self.check_exposure("image", &image.origin, at, Access::Read);
            return Some(ImageRef::Rootfs(path));
        }
        let what = match at.is_dir() {
            true => format!(
                "\"{path}\" is not an image: it has neither an \"oci-layout\" file nor a \"bin\" or \"usr/bin\""
            ),
            false => format!("\"{path}\" is not an image: it is not a tar archive"),
        };
        self.fault(&image.origin, "image", what)
    }

    fn runtime(&mut self, runtime: &Sited<String>) -> Option<Runtime> {
        let text = runtime.value.as_str();
        if text == "builtin" {
            return Some(Runtime::Builtin);
        }
        if text.starts_with('/') {
            // A runtime is the admin's program, and distributions link such programs freely: here symlinks are fine.
            return match std::fs::metadata(text) {
                Ok(found) if found.is_file() => Some(Runtime::Outside(text.to_owned())),
                Ok(_) => self.fault(&runtime.origin, "runtime", format!("\"{text}\" is not a program")),
                Err(error) => self.fault(
                    &runtime.origin,
                    "runtime",
                    format!("\"{text}\" cannot be used: {error}"),
                ),
            };
        }
        let plain = |c: char| c.is_ascii_alphanumeric() || "._-".contains(c);
        match text.starts_with(|c: char| c.is_ascii_alphanumeric()) && text.chars().all(plain) {
            true => Some(Runtime::Outside(text.to_owned())),
            false => {
                let what = format!("\"{text}\" is not the name of a runtime (a path begins with ./ or /)");
                self.fault(&runtime.origin, "runtime", what)
            }
        }
    }

    fn secrets(&mut self, spec: &TaskSpec) -> Option<BTreeMap<String, Secret>> {
        let mut secrets = BTreeMap::new();
        for (name, asked) in &spec.secrets {
            let key = format!("secrets.{name}");
            if spec.env.contains_key(name) {
                self.fault::<()>(&asked.source.origin, &key, "a variable of the same name stands in env");
            }
            if let Some(source) = self.secret_source(&format!("{key}.source"), &asked.source) {
                let hosts = asked.hosts.iter().map(|host| host.value.clone()).collect();
                let place = self.secret_place(&key, asked);
                secrets.insert(name.clone(), Secret { source, hosts, place });
            }
        }
        Some(secrets)
    }

    fn secret_place(&mut self, key: &str, asked: &SecretSpec) -> SecretPlace {
        if let Some(header) = &asked.header {
            return header.value.clone();
        }
        if let Some(query) = &asked.query {
            let name = query.value.clone();
            return SecretPlace::Query { name };
        }
        if let Some(basic) = &asked.basic {
            let user = basic.value.clone();
            return SecretPlace::Basic { user };
        }
        if let Some(aws) = &asked.aws {
            let source = aws.session_token.as_ref();
            let session = source.and_then(|source| self.secret_source(&format!("{key}.aws.session_token"), source));
            return SecretPlace::Aws {
                access_key_id: aws.access_key_id.value.clone(),
                session,
            };
        }
        match &asked.oauth {
            Some(oauth) => SecretPlace::Oauth {
                token_url: oauth.token_url.value.clone(),
                client_id: oauth.client_id.value.clone(),
                scope: oauth.scope.as_ref().map(|scope| scope.value.clone()),
            },
            None => SecretPlace::Placeholder,
        }
    }

    fn secret_source(&mut self, key: &str, asked: &Sited<String>) -> Option<SecretSource> {
        let (kind, name) = asked.value.split_once(':')?;
        Some(match kind {
            "keyring" => SecretSource::Keyring(name.to_owned()),
            "env" => SecretSource::Env(name.to_owned()),
            _ => {
                let file = Sited::new(name.to_owned(), asked.origin.clone());
                SecretSource::File(self.existing(key, &file, &[Kind::File])?)
            }
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

/// A rules file that lies in a writable root would be the agent's to rewrite for the next task.
fn with_protected_rules(mut roots: Vec<Root>, rules: &[HostPath]) -> Vec<Root> {
    for root in roots.iter_mut().filter(|root| root.access == Access::Write) {
        for file in rules {
            if let Ok(inside) = file.as_path().strip_prefix(root.host.as_path()) {
                let name = inside.to_string_lossy().into_owned();
                if !name.is_empty() && !root.protect.contains(&name) {
                    root.protect.push(name);
                }
            }
        }
    }
    roots
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

/// Why no root may be put at this path.
fn reserved(path: &SandboxPath) -> Option<String> {
    let at = Path::new(path.as_str());
    for kernel in ["/proc", "/sys", "/dev", "/run/belljar"] {
        if at.starts_with(kernel) {
            return Some(format!("\"{path}\" lies in {kernel}, which the sandbox makes itself"));
        }
    }
    const SYSTEM: [&str; 11] = [
        "/", "/bin", "/boot", "/etc", "/lib", "/lib32", "/lib64", "/libx32", "/run", "/sbin", "/usr",
    ];
    let system = SYSTEM.contains(&path.as_str()) || ["/usr/bin", "/usr/lib", "/usr/sbin"].contains(&path.as_str());
    system.then(|| format!("a root at \"{path}\" would take the place of the image's own files"))
}

fn lexical(path: &Path) -> PathBuf {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::ParentDir => {
                plain.pop();
            }
            part => plain.push(part),
        }
    }
    plain
}

fn noun(kind: Kind) -> &'static str {
    match kind {
        Kind::Folder => "a folder",
        Kind::File => "a file",
        Kind::Symlink => "a symlink",
        Kind::Socket => "a socket",
        Kind::Fifo => "a pipe",
        Kind::Device => "a device",
    }
}

/// By content: gzip, zstd, or the magic of a plain tar.
fn is_tar(path: &Path) -> bool {
    use std::io::Read;
    let mut head = Vec::new();
    let read = std::fs::File::open(path).and_then(|file| file.take(512).read_to_end(&mut head));
    let plain = head.get(257..262) == Some(b"ustar");
    read.is_ok() && (head.starts_with(&[0x1f, 0x8b]) || head.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) || plain)
}
