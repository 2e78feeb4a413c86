//! The whole isolation of a sandbox as one plain value: it can be printed, compared, digested and put in the record.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::protect::Protected;
use super::{host_root, seccomp, ssh, unfold};
use crate::id::TaskId;
use crate::path::{HostPath, SandboxPath};
use crate::policy::Digest;
use crate::sys::mount::Attributes;
use crate::sys::namespace::{self, IdRange};
use crate::sys::process;
use crate::task::{Access, NetworkMode, Task, User};

/// uid and gid of the ordinary user inside.
pub const AGENT: u32 = 1000;

/// The ports on the sandbox's loopback behind which the way out lies.
pub const HTTP_PROXY_PORT: u16 = 3128;
pub const SOCKS_PORT: u16 = 1080;
pub const DNS_PORT: u16 = 53;

/// See the module. Order matters in `made` and `mounts`: parents stand before what lies in them.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Plan {
    pub task: TaskId,
    pub hostname: String,
    pub ids: Ids,
    pub root: Root,
    pub mounts: Vec<Mount>,
    /// Covered so that nothing can be read there.
    pub masked: Vec<SandboxPath>,
    pub read_only: Vec<SandboxPath>,
    pub process: Process,
    pub limits: Limits,
    pub network: NetworkMode,
    /// The digest of `config/seccomp.json` as compiled for this machine.
    pub seccomp: String,
}

/// How ids inside are ids outside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Ids {
    /// Ids 0 to 65535 are those from `base` on, which belong to nobody on the host. For a caller who is root.
    Range {
        base: u32,
        /// Whom the command's user is outside in the place of one of these, see `owners`.
        user: Option<OutsideUser>,
    },
    /// One id inside is the caller's own, all others are nobody's. For an ordinary user.
    Single { inside: u32, uid: u32, gid: u32 },
}

/// A user and group as the host numbers them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct OutsideUser {
    pub uid: u32,
    pub gid: u32,
}

/// The root file system.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Root {
    /// Read-only folders, lowest first; without any the root is made of `made` and `mounts` alone.
    pub layers: Vec<HostPath>,
    /// Size and number of files of the disposable layer on top.
    pub bytes: u64,
    pub inodes: u64,
    /// Made in the disposable layer.
    pub made: Vec<Made>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Made {
    pub path: SandboxPath,
    pub what: What,
    /// Belongs to the command's user, else to root.
    pub users: bool,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum What {
    Folder {
        mode: u32,
    },
    File {
        content: String,
        mode: u32,
    },
    /// A file that is no text.
    Bytes {
        #[serde(with = "as_base64")]
        content: Vec<u8>,
        mode: u32,
    },
    Link {
        target: String,
    },
}

mod as_base64 {
    use base64::Engine;
    use base64::engine::general_purpose::STANDARD;
    use serde::{Deserialize, Deserializer, Serializer};

    pub fn serialize<S: Serializer>(content: &[u8], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_str(&STANDARD.encode(content))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Vec<u8>, D::Error> {
        let text = String::deserialize(deserializer)?;
        STANDARD.decode(text).map_err(serde::de::Error::custom)
    }
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    pub path: SandboxPath,
    pub source: Source,
    pub attributes: Attributes,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Source {
    /// A folder or file of the host.
    Bind {
        host: HostPath,
        owner: Owner,
    },
    Tmpfs {
        bytes: u64,
        inodes: u64,
        mode: u32,
    },
    Proc,
    Sysfs,
    Devpts,
    Mqueue,
    /// One of the host's harmless devices, by name.
    Device {
        name: String,
    },
    /// What is there already, as a mount of its own. No link is followed from the folder `within` on.
    Itself {
        within: SandboxPath,
    },
    /// An empty file, over what is there already; likewise.
    Nothing {
        within: SandboxPath,
    },
}

/// Who the files of a bind belong to inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Owner {
    /// Whoever they belong to outside, as far as ids are mapped.
    Same,
    /// The command's user, for what belongs outside to the owner of the mounted folder itself.
    User,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Process {
    pub uid: u32,
    pub gid: u32,
    pub cwd: SandboxPath,
    /// Of every command, before what its request adds.
    pub env: BTreeMap<String, String>,
    pub open_files: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
pub struct Limits {
    pub memory_bytes: Option<u64>,
    pub cpus: Option<f64>,
    pub pids: Option<u32>,
}

/// The root file system that a plan is made for.
#[derive(Debug, Clone, Copy)]
pub enum RootSource<'a> {
    /// The machine's own `/usr` and its kin.
    Host,
    /// Unpacked layers, lowest first, and the environment that their image asks for.
    Layers {
        folders: &'a [HostPath],
        env: &'a [(String, String)],
    },
}

/// Who asks: the ids under which belljar runs.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CallerIds {
    pub uid: u32,
    pub gid: u32,
    /// Whether ids that are nobody's can be given to a sandbox. The root of a container that has a user namespace has none to give.
    pub has_range: bool,
}

impl CallerIds {
    pub fn of_process() -> CallerIds {
        let (uid, gid) = process::own_ids();
        CallerIds {
            uid,
            gid,
            has_range: namespace::has_sandbox_ids(),
        }
    }
}

/// How an image's layer is mounted.
pub(super) const LAYER: Attributes = Attributes {
    read_only: true,
    no_suid: true,
    no_dev: true,
    no_exec: false,
};

impl Plan {
    /// What is taken from the host: layers, then binds, in the order in which they are sent and used.
    pub(super) fn host_sources(&self) -> impl Iterator<Item = (&HostPath, Owner, Attributes)> {
        let layers = self.root.layers.iter().map(|layer| (layer, Owner::Same, LAYER));
        let binds = self.mounts.iter().filter_map(|mount| match &mount.source {
            Source::Bind { host, owner } => Some((host, *owner, mount.attributes)),
            Source::Tmpfs { .. }
            | Source::Proc
            | Source::Sysfs
            | Source::Devpts
            | Source::Mqueue
            | Source::Device { .. }
            | Source::Itself { .. }
            | Source::Nothing { .. } => None,
        });
        layers.chain(binds)
    }

    /// The plan of a task. Looks at the host only to see which of the known system folders are there.
    ///
    /// `way_out` are the variables that lead programs to the proxy, where the task has one.
    pub fn of(task: &Task, source: RootSource<'_>, caller: CallerIds, way_out: BTreeMap<String, String>) -> Plan {
        let id = match task.user {
            User::Agent => AGENT,
            User::Root => 0,
        };
        let ids = Ids::of(task.id, caller, id);
        let home = match task.user {
            User::Agent => "/home/agent",
            User::Root => "/root",
        };
        let mut env = base_env(home, task.user);
        let mut made = host_root::folders();
        let mut mounts = Vec::new();
        let layers = match source {
            RootSource::Host => {
                let (entries, binds) = host_root::system();
                made.extend(entries);
                mounts.extend(binds);
                Vec::new()
            }
            RootSource::Layers { folders, env: asked } => {
                env.extend(asked.iter().filter(|(name, _)| is_harmless(name)).cloned());
                folders.to_vec()
            }
        };
        let host = matches!(source, RootSource::Host);
        made.extend(host_root::identity(task.id, host));
        if task.network.mode != NetworkMode::None {
            made.extend(ssh::made(host));
        }
        mounts.extend(host_root::kernel_mounts());
        for root in &task.roots {
            let writable = root.access == Access::Write;
            mounts.push(Mount {
                path: root.path.clone(),
                source: Source::Bind {
                    host: root.host.clone(),
                    owner: if writable { Owner::User } else { Owner::Same },
                },
                attributes: Attributes {
                    read_only: !writable,
                    no_suid: true,
                    no_dev: true,
                    no_exec: false,
                },
            });
        }
        put_in(&mut env, way_out);
        put_in(&mut env, task.env.clone());
        Plan {
            task: task.id,
            hostname: "belljar".to_owned(),
            ids,
            root: Root {
                layers,
                bytes: task.limits.disk.0,
                inodes: INODES,
                made,
            },
            mounts,
            masked: host_root::masked(),
            read_only: read_only(task, ids),
            process: Process {
                uid: id,
                gid: id,
                cwd: task.workdir.clone(),
                env,
                open_files: OPEN_FILES,
            },
            limits: Limits {
                memory_bytes: task.limits.memory.map(|bytes| bytes.0),
                cpus: task.limits.cpus,
                pids: task.limits.pids,
            },
            network: task.network.mode,
            seccomp: seccomp::FILTER.digest.to_string(),
        }
    }

    /// Processes by the user's own limit, beside that of the cgroup, which an ordinary user may not have. The kernel counts them in
    /// each user namespace by itself (user_namespaces(7), since Linux 5.14), and all in this one belong to the one id.
    pub fn process_limit(&self) -> Option<u64> {
        match self.ids {
            Ids::Single { .. } => self.limits.pids.map(u64::from),
            Ids::Range { .. } => None,
        }
    }

    /// The command's user and group as the host numbers them.
    pub fn owner_outside(&self) -> (u32, u32) {
        match self.ids {
            Ids::Range { user: Some(user), .. } => (user.uid, user.gid),
            Ids::Range { base, user: None } => (base + self.process.uid, base + self.process.gid),
            Ids::Single { uid, gid, .. } => (uid, gid),
        }
    }

    /// The plan with the command's user being this one outside, where that is somebody.
    pub fn with_user(mut self, outside: Option<OutsideUser>) -> Plan {
        let (Ids::Range { user, .. }, Some(outside)) = (&mut self.ids, outside) else {
            return self;
        };
        *user = Some(outside);
        let etc = etc();
        // Who is root outside owns what an image has there.
        let is_root_in_etc = self.mounts.iter().any(|mount| mount.path.is_within(&etc));
        if self.process.uid != 0 && !is_root_in_etc && !self.read_only.contains(&etc) {
            self.read_only.push(etc);
        }
        self
    }

    /// The plan with more files made in the disposable layer, be it in a folder of the machine's.
    pub fn with_files(mut self, files: Vec<Made>) -> Plan {
        if self.root.layers.is_empty() {
            unfold::make_room(&files, &mut self.root.made, &mut self.mounts);
        }
        if matches!(self.ids, Ids::Single { .. }) {
            // Where one id is everybody's, these are the command's user's own.
            let is_file = |made: &&Made| matches!(made.what, What::File { .. } | What::Bytes { .. });
            self.read_only
                .extend(files.iter().filter(is_file).map(|made| made.path.clone()));
        }
        self.root.made.extend(files);
        self
    }

    /// The plan with the names held that a look at the writable roots found.
    pub fn with_protected(mut self, protected: &Protected) -> Plan {
        self.mounts.extend(protected.mounts.iter().cloned());
        self
    }

    /// What approvals are bound to, beside the command: everything but the task's name for itself.
    pub fn digest(&self) -> Digest {
        let json = serde_json::to_vec(self).expect("a plan is plain data");
        Digest::of_bytes(&json)
    }
}

/// Files in the disposable layer: enough for a large node_modules, too few to hurt the host's memory (about 1 KiB each).
const INODES: u64 = 1_000_000;

/// Open files a process: what build tools want, and what is left of it on a host that has less to give.
const OPEN_FILES: u64 = 65_536;

/// The kernel's own files, and where one id is everybody's, the tables of who is who: there the command's user would own them.
fn read_only(task: &Task, ids: Ids) -> Vec<SandboxPath> {
    let mut paths = host_root::read_only();
    let etc = etc();
    let is_root_in_etc = task.roots.iter().any(|root| root.path.is_within(&etc));
    if matches!(ids, Ids::Single { .. }) && task.user == User::Agent && !is_root_in_etc {
        paths.push(etc);
    }
    paths
}

fn etc() -> SandboxPath {
    SandboxPath::new("/etc").expect("it is a path")
}

/// The ids of one sandbox.
const RANGE: u32 = 65_536;

/// Each task's ids are its own, so that no two sandboxes share a user even as the kernel counts them.
fn range_base(task: TaskId) -> u32 {
    let digest = Digest::of_bytes(task.as_bytes());
    let slot = u32::from(digest.as_bytes()[0]) << 5 | u32::from(digest.as_bytes()[1]) & 0x1f;
    namespace::FIRST_ID + slot * RANGE
}

fn base_env(home: &str, user: User) -> BTreeMap<String, String> {
    let name = match user {
        User::Agent => "agent",
        User::Root => "root",
    };
    [
        ("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"),
        ("HOME", home),
        ("USER", name),
        ("LOGNAME", name),
        ("SHELL", "/bin/sh"),
        ("LANG", "C.UTF-8"),
        ("BELLJAR", "1"),
    ]
    .into_iter()
    .map(|(name, value)| (name.to_owned(), value.to_owned()))
    .collect()
}

/// Lists of options for programs, to which an image, the way out and the task may all have something to add.
const OPTIONS: [&str; 2] = ["JDK_JAVA_OPTIONS", "NODE_OPTIONS"];

fn put_in(env: &mut BTreeMap<String, String>, more: BTreeMap<String, String>) {
    for (name, value) in more {
        match env.get_mut(&name) {
            Some(there) if OPTIONS.contains(&name.as_str()) => {
                there.push(' ');
                there.push_str(&value);
            }
            Some(_) | None => {
                env.insert(name, value);
            }
        }
    }
}

/// An image's environment is foreign: what steers loaders and shells before the first command stays out.
fn is_harmless(name: &str) -> bool {
    !name.starts_with("LD_")
        && !name.to_ascii_lowercase().ends_with("_proxy")
        && !["BASH_ENV", "ENV", "HOME", "USER"].contains(&name)
}

impl Ids {
    /// The ids of a sandbox whose commands run under `inside`.
    pub fn of(task: TaskId, caller: CallerIds, inside: u32) -> Ids {
        match caller.has_range {
            true => Ids::Range {
                base: range_base(task),
                user: None,
            },
            false => Ids::Single {
                inside,
                uid: caller.uid,
                gid: caller.gid,
            },
        }
    }

    /// The maps of the sandbox's user namespace, in which commands run under `user`.
    pub fn maps(&self, user: u32) -> (Vec<IdRange>, Vec<IdRange>) {
        let part = |inside, outside, count| IdRange { inside, outside, count };
        match *self {
            Ids::Range { base, user: None } => {
                let range = vec![part(0, base, RANGE)];
                (range.clone(), range)
            }
            Ids::Range {
                base,
                user: Some(outside),
            } => {
                let around = |id| {
                    let parts = [
                        part(0, base, user),
                        part(user, id, 1),
                        part(user + 1, base + user + 1, RANGE - user - 1),
                    ];
                    parts.into_iter().filter(|part| part.count > 0).collect::<Vec<_>>()
                };
                (around(outside.uid), around(outside.gid))
            }
            Ids::Single { inside, uid, gid } => {
                let one = |outside| {
                    vec![IdRange {
                        inside,
                        outside,
                        count: 1,
                    }]
                };
                (one(uid), one(gid))
            }
        }
    }

    /// What root inside is outside.
    pub fn root_outside(&self) -> u32 {
        match *self {
            Ids::Range { base, .. } => base,
            Ids::Single { uid, .. } => uid,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_task_of_root_is_root_outside() {
        for _ in 0..100 {
            let base = range_base(TaskId::new());
            assert!(base >= 1 << 30 && base.checked_add(65_536).is_some_and(|end| end <= 3 << 29));
        }
    }

    #[test]
    fn a_user_who_is_somebody_outside_takes_one_place_in_the_range() {
        let ids = Ids::Range {
            base: 1 << 30,
            user: Some(OutsideUser { uid: 7, gid: 8 }),
        };
        let parts = |ranges: Vec<IdRange>| -> Vec<_> {
            let part = |range: IdRange| (range.inside, range.outside - range.inside, range.count);
            ranges.into_iter().map(part).collect()
        };
        let base = 1 << 30;
        let (uids, gids) = ids.maps(1000);
        assert_eq!(uids[1].outside, 7);
        assert_eq!(gids[1].outside, 8);
        let ends = [uids[0], uids[2]];
        assert_eq!(parts(ends.to_vec()), [(0, base, 1000), (1001, base, 65_536 - 1001)]);
        // Root inside has nothing before it.
        let (uids, _) = ids.maps(0);
        let inside: Vec<_> = uids.iter().map(|range| (range.inside, range.count)).collect();
        assert_eq!(inside, [(0, 1), (1, 65_535)]);
    }

    #[test]
    fn an_images_environment_cannot_steer_loaders_or_the_way_out() {
        for name in ["LD_PRELOAD", "LD_LIBRARY_PATH", "https_proxy", "HTTP_PROXY", "BASH_ENV"] {
            assert!(!is_harmless(name), "{name}");
        }
        assert!(is_harmless("PATH") && is_harmless("JAVA_HOME"));
    }
}
