//! A plan in the words of Docker's API.
//!
//! Reference: <https://docs.docker.com/reference/api/engine/version/v1.41/#tag/Container/operation/ContainerCreate>.

use std::collections::HashMap;
use std::fs;
use std::io::{self, Write as _};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use bollard::models::{
    ContainerCreateBody, HostConfig, HostConfigCgroupnsModeEnum, HostConfigLogConfig, Mount as EngineMount,
    MountBindOptions, MountBindOptionsPropagationEnum, MountType, ResourcesUlimits,
};

use super::Facts;
use super::owned::Owned;
use crate::image::pack::{self, Top};
use crate::path::SandboxPath;
use crate::sandbox::bundle::{self, CHANNEL_INSIDE, GUEST_INSIDE, HardLimits};
use crate::sandbox::launcher::Carry;
use crate::sandbox::plan::{AGENT, Ids, Mount, Plan, Source, What};
use crate::sandbox::seccomp;
use crate::sandbox::users::{self, Table};
use crate::sys::guest;

/// Names in the task's folder: the guest's program and its socket, and an empty file.
const GUEST: &str = "guest";
pub const CHANNEL: &str = "channel";
const NOTHING: &str = "nothing";

/// Likewise the filter, for Podman, which wants its path where Docker wants its text.
const FILTER: &str = "seccomp.json";

/// What is made in the disposable layer elsewhere lies in the image here, which all tasks could share; but these say something of the
/// task, or the engine puts files of its own there.
const FILES: [&str; 7] = [
    "/etc/group",
    "/etc/hostname",
    "/etc/hosts",
    "/etc/passwd",
    "/etc/resolv.conf",
    belljar_guest::LIMITS_FILE,
    "/run/belljar/task",
];

/// The places that the command's user may write to beside the roots, each with its share of the disposable bytes: the root itself is
/// read-only, for no engine can bound what is written there.
const WRITABLE: [(&str, u64, u32); 3] = [("/tmp", 2, 0o1777), ("/var/tmp", 4, 0o1777), (HOME, 4, 0o755)];

/// One user's alone.
pub const HOME: &str = "/home/agent";

/// What was made for the container before.
pub struct Made<'a> {
    pub image: &'a str,
    pub folder: &'a Path,
    pub owned: &'a Owned,
    /// See [`write_files`].
    pub files: &'a [SandboxPath],
    pub labels: HashMap<String, String>,
    pub runtime: Option<&'a str>,
    /// How the guest is spoken to there.
    pub carry: Carry,
    pub facts: &'a Facts,
}

/// The user and group of all that runs inside, as the engine is told.
fn ids(plan: &Plan, facts: &Facts) -> (u32, u32) {
    match plan.ids {
        Ids::Range { .. } => (plan.process.uid, plan.process.gid),
        // A rootless Podman maps the caller to this id; see `userns_mode`.
        Ids::Single { inside, .. } if facts.is_podman && facts.is_rootless => (inside, inside),
        // An id inside is the same outside, and the files of the roots are the caller's.
        Ids::Single { uid, gid, .. } => (uid, gid),
    }
}

/// Writes what is mounted from the task's folder, which everybody inside may read. Returns which files of the root are among it.
pub fn write_files(plan: &Plan, folder: &Path, facts: &Facts, carry: Carry) -> io::Result<Vec<SandboxPath>> {
    let put = |name: &str, content: &[u8], mode: u32| {
        let path = folder.join(name);
        fs::write(&path, content)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))
    };
    put(GUEST, guest::PROGRAM, 0o755)?;
    put(NOTHING, b"", 0o444)?;
    if facts.is_podman {
        put(FILTER, profile(carry).as_bytes(), 0o444)?;
    }
    let (uid, gid) = ids(plan, facts);
    let mut own = Vec::new();
    for (path, content) in files(plan) {
        let content = match path.as_str() {
            // The agent by the id that it has here.
            "/etc/passwd" | "/etc/group" if uid != AGENT && plan.process.uid == AGENT => content
                .replace(&format!(":x:{AGENT}:{AGENT}:"), &format!(":x:{uid}:{gid}:"))
                .replace(&format!("agent:x:{AGENT}:"), &format!("agent:x:{gid}:")),
            _ => content.to_owned(),
        };
        own.push((path.clone(), content));
    }
    let agent = match plan.process.uid {
        AGENT => (uid, gid),
        _ => (AGENT, AGENT),
    };
    own.extend(tables(plan, agent)?);
    for (path, content) in &own {
        // Its owner writes the limits anew; inside it is mounted read-only.
        put(&file_name(path), content.as_bytes(), 0o644)?;
    }
    Ok(own.into_iter().map(|(path, _)| path).collect())
}

/// The files of the plan that are mounted one by one.
fn files(plan: &Plan) -> impl Iterator<Item = (&SandboxPath, &str)> {
    plan.root.made.iter().filter_map(|made| match &made.what {
        What::File { content, .. } if is_own(&made.path) => Some((&made.path, content.as_str())),
        What::File { .. } | What::Bytes { .. } | What::Folder { .. } | What::Link { .. } => None,
    })
}

/// An image's own users with the agent among them. Where a link leads to them they stay as they are.
fn tables(plan: &Plan, agent: (u32, u32)) -> io::Result<Vec<(SandboxPath, String)>> {
    let mut tables = Vec::new();
    if plan.root.layers.is_empty() {
        return Ok(tables);
    }
    for table in Table::BOTH {
        let path = SandboxPath::new(&format!("/etc/{}", table.name())).map_err(io::Error::other)?;
        let own = match pack::top_file(&plan.root.layers, Path::new(path.relative()), users::MOST_BYTES)? {
            Top::File(content) => Some(String::from_utf8_lossy(&content).into_owned()),
            Top::Absent => None,
            Top::Other => continue,
        };
        tables.extend(table.with_agent(own.as_deref(), agent).map(|text| (path, text)));
    }
    Ok(tables)
}

/// Puts a text into the file that tells commands their limits: in place, for it is mounted.
pub fn write_limits(folder: &Path, text: &str) -> io::Result<()> {
    let mut file = fs::File::options()
        .write(true)
        .open(folder.join(file_name(&limits_file())))?;
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}

fn limits_file() -> SandboxPath {
    SandboxPath::new(belljar_guest::LIMITS_FILE).expect("it is a path")
}

/// Whether a file is mounted for the task, and so need not be in the image.
pub fn is_own(path: &SandboxPath) -> bool {
    FILES.contains(&path.as_str())
}

fn file_name(path: &SandboxPath) -> String {
    path.relative().replace('/', "-")
}

/// The container.
pub fn body(plan: &Plan, made: &Made<'_>) -> ContainerCreateBody {
    let (uid, gid) = ids(plan, made.facts);
    ContainerCreateBody {
        hostname: Some(plan.hostname.clone()),
        user: Some(format!("{uid}:{gid}")),
        entrypoint: Some(vec![GUEST_INSIDE.to_owned()]),
        cmd: Some(vec![CHANNEL_INSIDE.to_owned()]),
        image: Some(made.image.to_owned()),
        working_dir: Some("/".to_owned()),
        labels: Some(made.labels.clone()),
        network_disabled: Some(true),
        host_config: Some(host_config(plan, made, (uid, gid))),
        ..ContainerCreateBody::default()
    }
}

fn host_config(plan: &Plan, made: &Made<'_>, (uid, gid): (u32, u32)) -> HostConfig {
    let signed = |number: u64| i64::try_from(number).unwrap_or(i64::MAX);
    let memory = plan.limits.memory_bytes.map(signed);
    let texts = |paths: &[SandboxPath]| paths.iter().map(|path| path.as_str().to_owned()).collect::<Vec<_>>();
    HostConfig {
        mounts: Some(mounts(plan, made)),
        tmpfs: Some(tmpfs(plan, made.facts, (uid, gid))),
        readonly_rootfs: Some(true),
        network_mode: Some("none".to_owned()),
        ipc_mode: Some("private".to_owned()),
        cgroupns_mode: Some(HostConfigCgroupnsModeEnum::PRIVATE),
        userns_mode: userns_mode(plan, made.facts),
        runtime: made.runtime.map(str::to_owned),
        cap_drop: Some(vec!["ALL".to_owned()]),
        security_opt: Some(security(plan, made)),
        privileged: Some(false),
        masked_paths: Some(texts(&plan.masked)),
        readonly_paths: Some(texts(&plan.read_only)),
        sysctls: Some(HashMap::from([(
            // As with the other backends: anybody inside may listen on any port of the sandbox's own loopback.
            "net.ipv4.ip_unprivileged_port_start".to_owned(),
            "0".to_owned(),
        )])),
        memory,
        // With swap.
        memory_swap: memory,
        nano_cpus: plan.limits.cpus.map(|cpus| (cpus * 1e9) as i64),
        pids_limit: plan.limits.pids.map(i64::from),
        ulimits: Some(ulimits(plan)),
        shm_size: plan.mounts.iter().find_map(shm_bytes).map(signed),
        // The guest is its own init, and says nothing.
        init: Some(false),
        log_config: Some(HostConfigLogConfig {
            typ: Some("none".to_owned()),
            config: None,
        }),
        ..HostConfig::default()
    }
}

fn security(plan: &Plan, made: &Made<'_>) -> Vec<String> {
    let mut options = vec!["no-new-privileges".to_owned()];
    match made.facts.is_podman {
        true => {
            options.push(format!("seccomp={}", made.folder.join(FILTER).display()));
            // It does not read the field for it.
            let masked: Vec<&str> = plan.masked.iter().map(SandboxPath::as_str).collect();
            options.push(format!("mask={}", masked.join(":")));
        }
        false => options.push(format!("seccomp={}", profile(made.carry))),
    }
    options
}

fn userns_mode(plan: &Plan, facts: &Facts) -> Option<String> {
    match plan.ids {
        Ids::Single { inside, .. } if facts.is_podman && facts.is_rootless => {
            Some(format!("keep-id:uid={inside},gid={inside}"))
        }
        Ids::Single { .. } | Ids::Range { .. } => None,
    }
}

/// The filter of all backends, in the form that engines read. Their own default for what a list does not name, in releases that do not
/// know `defaultErrnoRet`, is EPERM, which glibc takes for an answer where it would go on with an older call at ENOSYS.
fn profile(carry: Carry) -> String {
    const ENOSYS: u32 = 38;
    const NEWER_CALLS: [&str; 3] = ["clone3", "landlock_create_ruleset", "mseal"];
    let list =
        bundle::seccomp(&seccomp::ALLOWED, carry).expect("the list is part of this program, and a test makes it");
    let mut profile = serde_json::to_value(list).expect("a filter is plain data");
    let is_allowed = |name: &&&str| seccomp::ALLOWED.iter().any(|allowed| allowed.syscall == **name);
    let absent: Vec<_> = NEWER_CALLS.iter().filter(|name| !is_allowed(name)).collect();
    // gVisor's has an answer of its own for these too.
    if let (Carry::Descriptors, Some(syscalls)) = (carry, profile["syscalls"].as_array_mut()) {
        syscalls.push(serde_json::json!({ "names": absent, "action": "SCMP_ACT_ERRNO", "errnoRet": ENOSYS }));
    }
    profile.to_string()
}

/// Processes of the command's user, beside the bound of the task.
const PROCESSES: u64 = 4096;

fn ulimits(plan: &Plan) -> Vec<ResourcesUlimits> {
    let hard = HardLimits::of_process();
    let limit = |name: &str, value: u64| {
        let value = i64::try_from(value).ok().or(Some(-1));
        ResourcesUlimits {
            name: Some(name.to_owned()),
            soft: value,
            hard: value,
        }
    };
    vec![
        limit("nofile", plan.process.open_files.min(hard.open_files)),
        // What no plan's own bound reaches, and what every host may give; Podman takes "unlimited" for more than it was given itself.
        limit("nproc", hard.processes.min(PROCESSES)),
        limit("core", 0),
        limit("memlock", bundle::LOCKED_BYTES.min(hard.locked_bytes)),
    ]
}

fn tmpfs(plan: &Plan, facts: &Facts, (uid, gid): (u32, u32)) -> HashMap<String, String> {
    let is_root = |mount: &Mount, at: &str| mount.path.as_str() == at;
    WRITABLE
        .iter()
        // A root of the task's that lies there takes its place.
        .filter(|(at, ..)| !plan.mounts.iter().any(|mount| is_root(mount, at)))
        .map(|(at, share, mode)| {
            let bytes = plan.root.bytes / share;
            let inodes = match facts.is_podman {
                // It knows no such option; the kernel's own bound is half of the pages of memory.
                true => String::new(),
                false => format!(",nr_inodes={}", plan.root.inodes / share),
            };
            let (mode, owner) = match *at {
                // Nor an owner, so what is one user's alone is open to all; see `root` for the mode.
                HOME if facts.is_podman => (0o1777, ",notmpcopyup".to_owned()),
                HOME => (*mode, format!(",uid={uid},gid={gid}")),
                _ => (*mode, String::new()),
            };
            let options = format!("rw,nosuid,nodev,exec,size={bytes}{inodes},mode={mode:o}{owner}");
            ((*at).to_owned(), options)
        })
        .collect()
}

fn shm_bytes(mount: &Mount) -> Option<u64> {
    match &mount.source {
        Source::Tmpfs { bytes, .. } if mount.path.as_str() == "/dev/shm" => Some(*bytes),
        _ => None,
    }
}

fn mounts(plan: &Plan, made: &Made<'_>) -> Vec<EngineMount> {
    let own = |name: &str, inside: &str| bind(made.folder.join(name), inside, true);
    let mut mounts = vec![own(GUEST, GUEST_INSIDE), own(CHANNEL, CHANNEL_INSIDE)];
    if made.carry == Carry::Stream {
        mounts.extend(bundle::DEVICES_OF_GVISOR.map(|device| own(NOTHING, device)));
    }
    mounts.extend(made.files.iter().map(|path| own(&file_name(path), path.as_str())));
    for mount in &plan.mounts {
        let read_only = mount.attributes.read_only;
        match &mount.source {
            // With all that is held in it.
            Source::Bind { .. } if made.owned.holds() => {
                if let Some(place) = made.owned.path(&mount.path) {
                    mounts.push(tree(place.to_owned(), mount.path.as_str(), read_only, made.facts));
                }
            }
            Source::Itself { .. } | Source::Nothing { .. } if made.owned.holds() => {}
            Source::Bind { host, .. } => mounts.push(bind(host.as_ref().to_owned(), mount.path.as_str(), read_only)),
            Source::Itself { within } => {
                // What is not in a root is not there at all.
                if let Some(source) = within_root(plan, within, &mount.path) {
                    mounts.push(bind(source, mount.path.as_str(), read_only));
                }
            }
            Source::Nothing { .. } => mounts.push(own(NOTHING, mount.path.as_str())),
            // The engine has its own of these; what is beside them is said elsewhere.
            Source::Tmpfs { .. }
            | Source::Proc
            | Source::Sysfs
            | Source::Devpts
            | Source::Mqueue
            | Source::Device { .. } => {}
        }
    }
    mounts
}

/// What a path in a root is on the host.
fn within_root(plan: &Plan, within: &SandboxPath, path: &SandboxPath) -> Option<PathBuf> {
    let root = plan.mounts.iter().find_map(|mount| match &mount.source {
        Source::Bind { host, .. } if mount.path == *within => Some(host.as_ref()),
        _ => None,
    })?;
    let name = path.relative().strip_prefix(within.relative())?;
    Some(Path::new(root).join(name.trim_start_matches('/')))
}

/// A mount with what is mounted in it: the names that are held.
fn tree(source: PathBuf, target: &str, read_only: bool, facts: &Facts) -> EngineMount {
    let mut mount = bind(source, target, read_only);
    match &mut mount.bind_options {
        // Podman 4 takes the very word for a yes, whatever stands behind it. Without any it mounts all, and hands nothing on.
        options if facts.is_podman => *options = None,
        Some(options) => options.non_recursive = Some(false),
        None => {}
    }
    mount
}

fn bind(source: PathBuf, target: &str, read_only: bool) -> EngineMount {
    EngineMount {
        typ: Some(MountType::BIND),
        source: Some(source.to_string_lossy().into_owned()),
        target: Some(target.to_owned()),
        read_only: Some(read_only),
        bind_options: Some(MountBindOptions {
            propagation: Some(MountBindOptionsPropagationEnum::RPRIVATE),
            // What is mounted below a root outside is not the root.
            non_recursive: Some(true),
            ..MountBindOptions::default()
        }),
        ..EngineMount::default()
    }
}
