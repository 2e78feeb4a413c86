//! cgroups of both versions: a folder a task, a leaf in it for the guest and for every exec slot.
//!
//! ```text
//!   <base>/belljar/<task>/          the task's limits
//!                  ├── guest        PID 1, where it is told apart; else it is in the task's folder
//!                  └── slot-N       one exec after the other, counted
//! ```
//!
//! Version 1 has a tree a controller; the version 2 tree that stands beside it on such machines has no controllers, but it can kill a
//! whole task at once, so it is used too. Which is there is found out, never assumed.
//!
//! Who moves a process of another waits for a grace period of the kernel's, 6 to 12 ms after a pause; a thread that moves itself
//! through version 1's `tasks`, or is cloned into a folder of version 2, does not. So processes join their leaves by themselves.
//! Formats: Linux `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/`.

mod files;
mod leaf;
mod task;

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use rustix::process::Pid;

pub use leaf::{Leaf, Processes};
pub use task::TaskCgroup;

/// The folder of ours in every tree.
const FOLDER: &str = "belljar";

/// The period of the CPU quota.
const CPU_PERIOD_MICROS: u64 = 100_000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, serde::Serialize, serde::Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Version {
    V1,
    V2,
}

/// One tree of cgroups that belljar can make folders in.
#[derive(Debug, Clone, PartialEq, Eq)]
struct Tree {
    kind: TreeKind,
    /// Where the folder of ours is or goes.
    base: PathBuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum TreeKind {
    Memory,
    Pids,
    Cpu,
    Cpuacct,
    Blkio,
    /// The version 2 tree beside version 1's.
    UnifiedOnly,
    /// The version 2 tree with its controllers.
    Unified,
}

impl TreeKind {
    /// The guest's own leaf: where its memory is told apart, and where no folder with controllers may hold processes itself.
    fn guest_leaf(self) -> Option<&'static str> {
        match self {
            TreeKind::Memory | TreeKind::Unified => Some("guest"),
            TreeKind::Pids | TreeKind::Cpu | TreeKind::Cpuacct | TreeKind::Blkio | TreeKind::UnifiedOnly => None,
        }
    }

    /// The file by which a process of one thread moves itself.
    fn own_join(self) -> &'static str {
        match self {
            TreeKind::Memory | TreeKind::Pids | TreeKind::Cpu | TreeKind::Cpuacct | TreeKind::Blkio => "tasks",
            TreeKind::UnifiedOnly | TreeKind::Unified => "cgroup.procs",
        }
    }
}

/// How a new process gets into a leaf.
#[derive(Debug, Clone, Default, PartialEq, Eq, serde::Serialize, serde::Deserialize)]
pub struct Joins {
    /// It writes "0" to these, before it has a second thread.
    pub files: Vec<PathBuf>,
    /// It is cloned into this folder of version 2.
    pub into: Option<PathBuf>,
}

/// What this machine's cgroups can do for us.
#[derive(Debug, Clone)]
pub struct Cgroups {
    version: Option<Version>,
    trees: Vec<Tree>,
    controls: Controls,
    /// Why something is missing.
    pub why: Option<String>,
}

/// Which limits can be set.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize)]
pub struct Controls {
    pub memory: bool,
    /// Memory with swap: counted, or there is none.
    pub swap: bool,
    pub cpu: bool,
    pub pids: bool,
    pub io: bool,
}

/// What a task may use; see `task::limits`.
#[derive(Debug, Clone, Copy, PartialEq, Default)]
pub struct Caps {
    pub memory_bytes: Option<u64>,
    pub cpus: Option<f64>,
    pub pids: Option<u32>,
}

/// What the kernel counted in a leaf or a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Counters {
    pub user_micros: u64,
    pub system_micros: u64,
    pub memory_peak_bytes: Option<u64>,
    pub io_read_bytes: Option<u64>,
    pub io_write_bytes: Option<u64>,
    pub pids_peak: Option<u64>,
    pub oom_kills: Option<u64>,
    /// How often more memory was asked for than the folder's own limit has.
    pub memory_limit_hits: Option<u64>,
    /// Whether the limit was run into so that something had to be killed; version 1 tells only whether it was run into.
    pub memory_limit_reached: Option<bool>,
    pub throttled_micros: Option<u64>,
    /// Now, not ever: of a task only.
    pub memory_bytes: Option<u64>,
    pub pids: Option<u64>,
}

/// For how long something in a folder had to wait for a resource, ever since the folder was made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct Stall {
    pub cpu_micros: u64,
    pub memory_micros: u64,
    pub io_micros: u64,
}

impl Stall {
    /// `None` where the kernel has no pressure counters (they are off, or the tree is of version 1).
    fn read(folder: &Path) -> Option<Stall> {
        let micros = |name: &str| stall_micros(&fs::read_to_string(folder.join(name)).ok()?);
        Some(Stall {
            cpu_micros: micros("cpu.pressure")?,
            memory_micros: micros("memory.pressure")?,
            io_micros: micros("io.pressure")?,
        })
    }

    pub fn since(self, before: Stall) -> Stall {
        Stall {
            cpu_micros: self.cpu_micros.saturating_sub(before.cpu_micros),
            memory_micros: self.memory_micros.saturating_sub(before.memory_micros),
            io_micros: self.io_micros.saturating_sub(before.io_micros),
        }
    }
}

/// The total of `some avg10=0.00 avg60=0.00 avg300=0.00 total=12345`.
fn stall_micros(text: &str) -> Option<u64> {
    let line = text.lines().find(|line| line.starts_with("some "))?;
    line.split(' ')
        .find_map(|word| word.strip_prefix("total="))?
        .parse()
        .ok()
}

impl Cgroups {
    /// Finds out what is there, by trying: a probe folder is made and removed.
    pub fn detect() -> Cgroups {
        let mounts = fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
        let mut trees = Vec::new();
        let mut refused = Vec::new();
        let v1: Vec<_> = [
            ("memory", TreeKind::Memory),
            ("pids", TreeKind::Pids),
            ("cpu", TreeKind::Cpu),
            ("cpuacct", TreeKind::Cpuacct),
            ("blkio", TreeKind::Blkio),
        ]
        .into_iter()
        .filter_map(|(name, kind)| Some((kind, own_folder_v1(&mounts, &own, name)?)))
        .collect();
        let unified = unified_mount(&mounts);
        let version = if v1
            .iter()
            .any(|(kind, _)| matches!(kind, TreeKind::Memory | TreeKind::Pids))
        {
            for (kind, folder) in v1 {
                match probe(&folder) {
                    // cpu and cpuacct are often one tree under two names.
                    Ok(()) if trees.iter().any(|tree: &Tree| tree.base == folder.join(FOLDER)) => {}
                    Ok(()) => trees.push(Tree {
                        kind,
                        base: folder.join(FOLDER),
                    }),
                    Err(error) => refused.push(format!("{}: {error}", folder.display())),
                }
            }
            if let Some(root) = unified {
                let folder = own_folder_v2(&root, &own);
                if probe(&folder).is_ok() {
                    trees.push(Tree {
                        kind: TreeKind::UnifiedOnly,
                        base: folder.join(FOLDER),
                    });
                }
            }
            Version::V1
        } else {
            let candidates = unified.into_iter().flat_map(|root| v2_candidates(&root, &own));
            for folder in candidates {
                match probe_v2(&folder) {
                    Ok(()) => {
                        trees.push(Tree {
                            kind: TreeKind::Unified,
                            base: folder.join(FOLDER),
                        });
                        break;
                    }
                    Err(error) => refused.push(format!("{}: {error}", folder.display())),
                }
            }
            Version::V2
        };
        let has = |kind| trees.iter().any(|tree| tree.kind == kind);
        let controls = match trees.iter().find(|tree| tree.kind == TreeKind::Unified) {
            Some(tree) => {
                let list = fs::read_to_string(tree.base.join("cgroup.controllers")).unwrap_or_default();
                let has = |name| list.split_whitespace().any(|one| one == name);
                Controls {
                    memory: has("memory"),
                    // Without `memory.swap.max` the kernel has no swap at all (CONFIG_SWAP), or does not count it.
                    swap: tree.base.join("memory.swap.max").exists() || !has_swap(),
                    cpu: has("cpu"),
                    pids: has("pids"),
                    io: has("io"),
                }
            }
            None => Controls {
                memory: has(TreeKind::Memory),
                swap: counts_swap_v1(&trees) || !has_swap(),
                cpu: has(TreeKind::Cpu),
                pids: has(TreeKind::Pids),
                io: has(TreeKind::Blkio),
            },
        };
        let why = match (trees.is_empty(), refused.is_empty()) {
            (_, false) => Some(format!("cgroups cannot be made here ({})", refused.join("; "))),
            (true, true) => Some("no cgroup tree is mounted".to_owned()),
            (false, true) => None,
        };
        Cgroups {
            version: (!trees.is_empty()).then_some(version),
            trees,
            controls,
            why,
        }
    }

    /// No cgroups at all, whatever the machine has.
    pub fn none(why: &str) -> Cgroups {
        Cgroups {
            version: None,
            trees: Vec::new(),
            controls: Controls::default(),
            why: Some(why.to_owned()),
        }
    }

    /// The version in use; `None` where no cgroup can be made.
    pub fn version(&self) -> Option<Version> {
        self.version
    }

    pub fn controls(&self) -> Controls {
        self.controls
    }

    /// Makes a task's folder in every tree and sets its limits. `None` where no cgroup can be made.
    pub fn create_task(&self, name: &str, caps: Caps) -> io::Result<Option<TaskCgroup>> {
        let Some(version) = self.version else { return Ok(None) };
        let mut task = TaskCgroup {
            version,
            folders: Vec::new(),
            next_leaf: 0,
        };
        for tree in &self.trees {
            make_folder(&tree.base)?;
            if tree.kind == TreeKind::Unified {
                enable_controllers(&tree.base);
            }
            let folder = tree.base.join(name);
            fs::create_dir(&folder).map_err(|error| at(&folder, error))?;
            task.folders.push((tree.kind, folder.clone()));
            let result = set_limits(tree.kind, &folder, caps).and_then(|()| match tree.kind.guest_leaf() {
                Some(leaf) => make_folder(&folder.join(leaf)),
                None => Ok(()),
            });
            if let Err(error) = result {
                let _ = task.remove();
                return Err(error);
            }
        }
        Ok(Some(task))
    }

    /// The folders of a task with this name, whoever made them: for clearing up after a crash.
    pub fn find_task(&self, name: &str) -> Option<TaskCgroup> {
        let version = self.version?;
        let folders: Vec<_> = self
            .trees
            .iter()
            .map(|tree| (tree.kind, tree.base.join(name)))
            .filter(|(_, folder)| folder.is_dir())
            .collect();
        (!folders.is_empty()).then_some(TaskCgroup {
            version,
            folders,
            next_leaf: 0,
        })
    }
}

fn at(path: &Path, error: io::Error) -> io::Error {
    io::Error::new(error.kind(), format!("{}: {error}", path.display()))
}

fn make_folder(path: &Path) -> io::Result<()> {
    match fs::create_dir(path) {
        Err(error) if error.kind() != ErrorKind::AlreadyExists => Err(at(path, error)),
        _ => Ok(()),
    }
}

fn write(path: &Path, text: &str) -> io::Result<()> {
    OpenOptions::new()
        .write(true)
        .open(path)
        .and_then(|mut file| file.write_all(text.as_bytes()))
        .map_err(|error| at(path, error))
}

/// Whether folders can be made here. Ours stays: another belljar may be about to use it.
fn probe(folder: &Path) -> io::Result<()> {
    let ours = folder.join(FOLDER);
    make_folder(&ours)?;
    let probe = ours.join(format!("probe-{}", uuid::Uuid::now_v7()));
    fs::create_dir(&probe)?;
    fs::remove_dir(&probe)
}

fn probe_v2(folder: &Path) -> io::Result<()> {
    enable_controllers(folder);
    probe(folder)?;
    let available = fs::read_to_string(folder.join(FOLDER).join("cgroup.controllers"))?;
    if available
        .split_whitespace()
        .any(|name| name == "memory" || name == "pids")
    {
        return Ok(());
    }
    Err(io::Error::other(
        "its controllers cannot be handed down (cgroup.subtree_control)",
    ))
}

/// Hands down what can be handed down; what cannot is seen in the child's `cgroup.controllers`.
fn enable_controllers(folder: &Path) {
    for name in ["+cpu", "+memory", "+pids", "+io"] {
        let _ = write(&folder.join("cgroup.subtree_control"), name);
    }
}

/// Where this process is in version 1's tree of a controller: the mount's own root is taken off, as in a cgroup namespace.
fn own_folder_v1(mounts: &str, own: &str, controller: &str) -> Option<PathBuf> {
    let path = own.lines().find_map(|line| {
        let mut parts = line.splitn(3, ':').skip(1);
        parts
            .next()?
            .split(',')
            .any(|name| name == controller)
            .then(|| parts.next())?
    })?;
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        let mut right = right.split(' ');
        if right.next() != Some("cgroup") || !right.nth(1)?.split(',').any(|option| option == controller) {
            return None;
        }
        let mut left = left.split(' ').skip(3);
        let (root, point) = (left.next()?, left.next()?);
        let below = path.strip_prefix(root).unwrap_or(path).trim_start_matches('/');
        Some(Path::new(point).join(below))
    })
}

fn unified_mount(mounts: &str) -> Option<PathBuf> {
    mounts.lines().find_map(|line| {
        let (left, right) = line.split_once(" - ")?;
        right
            .starts_with("cgroup2 ")
            .then(|| left.split(' ').nth(4).map(PathBuf::from))?
    })
}

fn own_folder_v2(root: &Path, own: &str) -> PathBuf {
    let path = own.lines().find_map(|line| line.strip_prefix("0::")).unwrap_or("/");
    root.join(path.trim_start_matches('/'))
}

/// Where a folder of ours could go in version 2: at the top, as root; else where systemd has delegated a tree to this user.
fn v2_candidates(root: &Path, own: &str) -> Vec<PathBuf> {
    let folder = own_folder_v2(root, own);
    let mut candidates = vec![root.to_owned()];
    // A process may not sit in a folder that hands controllers down, so the folders above this process's own are tried.
    candidates.extend(
        folder
            .ancestors()
            .skip(1)
            .take_while(|above| *above != root)
            .map(Path::to_owned),
    );
    candidates
}

fn counts_swap_v1(trees: &[Tree]) -> bool {
    let memory = trees.iter().find(|tree| tree.kind == TreeKind::Memory);
    // The folder of ours may not be there yet; what is beside it has the same files.
    let above = memory.and_then(|tree| tree.base.parent());
    above.is_some_and(|folder| folder.join("memory.memsw.limit_in_bytes").exists())
}

/// Whether the machine has swap in use: /proc/swaps has a line of titles and a line an area.
fn has_swap() -> bool {
    fs::read_to_string("/proc/swaps").is_ok_and(|text| text.lines().count() > 1)
}

fn set_limits(kind: TreeKind, folder: &Path, caps: Caps) -> io::Result<()> {
    let memory = caps.memory_bytes.map(|bytes| bytes.to_string());
    let pids = caps.pids.map(|count| count.to_string());
    let quota = caps.cpus.map(|cpus| (cpus * CPU_PERIOD_MICROS as f64) as u64);
    match kind {
        TreeKind::Memory => {
            if let Some(bytes) = memory {
                write(&folder.join("memory.limit_in_bytes"), &bytes)?;
                // With swap: absent where the kernel does not account it.
                let with_swap = folder.join("memory.memsw.limit_in_bytes");
                if with_swap.exists() {
                    write(&with_swap, &bytes)?;
                }
            }
        }
        TreeKind::Pids => {
            if let Some(count) = pids {
                write(&folder.join("pids.max"), &count)?;
            }
        }
        TreeKind::Cpu => {
            if let Some(quota) = quota {
                write(&folder.join("cpu.cfs_period_us"), &CPU_PERIOD_MICROS.to_string())?;
                write(&folder.join("cpu.cfs_quota_us"), &quota.to_string())?;
            }
        }
        TreeKind::Cpuacct | TreeKind::Blkio | TreeKind::UnifiedOnly => {}
        TreeKind::Unified => {
            let has = |name: &str| folder.join(name).exists();
            if let Some(bytes) = memory.filter(|_| has("memory.max")) {
                write(&folder.join("memory.max"), &bytes)?;
                if has("memory.swap.max") {
                    write(&folder.join("memory.swap.max"), "0")?;
                }
            }
            if let Some(count) = pids.filter(|_| has("pids.max")) {
                write(&folder.join("pids.max"), &count)?;
            }
            if let Some(quota) = quota.filter(|_| has("cpu.max")) {
                write(&folder.join("cpu.max"), &format!("{quota} {CPU_PERIOD_MICROS}"))?;
            }
            enable_controllers(folder);
        }
    }
    Ok(())
}

fn stall(folders: &[(TreeKind, PathBuf)]) -> Option<Stall> {
    let unified = |kind: &TreeKind| matches!(kind, TreeKind::UnifiedOnly | TreeKind::Unified);
    let (_, folder) = folders.iter().find(|(kind, _)| unified(kind))?;
    Stall::read(folder)
}

fn move_into(mut folders: impl Iterator<Item = PathBuf>, pid: Pid) -> io::Result<()> {
    let pid = pid.as_raw_nonzero().to_string();
    folders.try_for_each(|folder| write(&folder.join("cgroup.procs"), &pid))
}

fn remove_folder(folder: &Path) -> io::Result<()> {
    match fs::remove_dir(folder) {
        Err(error) if error.kind() != ErrorKind::NotFound => Err(at(folder, error)),
        _ => Ok(()),
    }
}

fn read_pids(list: &str) -> Vec<Pid> {
    list.lines()
        .filter_map(|line| line.parse().ok().and_then(Pid::from_raw))
        .collect()
}

#[cfg(test)]
mod tests;
