//! cgroups of both versions: a folder a task, a leaf in it for the guest and for every exec slot.
//!
//! ```text
//!   <base>/belljar/<task>/          the task's limits
//!                  ├── guest        PID 1
//!                  └── slot-N       one exec after the other, counted
//! ```
//!
//! Version 1 has a tree a controller; the version 2 tree that stands beside it on such machines has no controllers, but it can kill a
//! whole task at once, so it is used too. Which is there is found out, never assumed.
//!
//! Who moves a process of another waits for a grace period of the kernel's, 6 to 12 ms after a pause; a thread that moves itself
//! through version 1's `tasks`, or is cloned into a folder of version 2, does not. So processes join their leaves by themselves.
//! Formats: Linux `Documentation/admin-guide/cgroup-v2.rst` and `cgroup-v1/`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;

/// The folder of ours in every tree.
const FOLDER: &str = "belljar";

/// The kernel charges memory in pieces of up to this much, and kills when one no longer fits.
const CHARGE_BYTES: u64 = 1 << 20;

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
            let result = set_limits(tree.kind, &folder, caps).and_then(|()| make_folder(&folder.join("guest")));
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

/// A task's folders. Not removed on drop: what is in them must be dead first, see [`TaskCgroup::remove`].
#[derive(Debug)]
pub struct TaskCgroup {
    version: Version,
    folders: Vec<(TreeKind, PathBuf)>,
    next_leaf: u64,
}

impl TaskCgroup {
    pub fn version(&self) -> Version {
        self.version
    }

    /// How a process gets into the guest's leaf.
    pub fn guest_joins(&self) -> Joins {
        let mut joins = Joins::default();
        for (kind, folder) in &self.folders {
            let folder = folder.join("guest");
            match kind {
                TreeKind::Unified | TreeKind::UnifiedOnly => joins.into = Some(folder),
                kind => joins.files.push(folder.join(kind.own_join())),
            }
        }
        joins
    }

    /// Moves a process into the guest's leaf that was not started in it.
    pub fn move_in(&self, pid: Pid) -> io::Result<()> {
        move_into(self.folders.iter().map(|(_, folder)| folder.join("guest")), pid)
    }

    /// A new leaf for a slot.
    pub fn create_leaf(&mut self) -> io::Result<Leaf> {
        let name = format!("slot-{}", self.next_leaf);
        self.next_leaf += 1;
        let mut folders = Vec::new();
        let cpuacct = self.folders.iter().any(|(kind, _)| *kind == TreeKind::Cpuacct);
        for (kind, folder) in &self.folders {
            let counts = match kind {
                // The quota is the task's; a leaf stays with the guest there, unless nothing else counts CPU time.
                TreeKind::Cpu => !cpuacct && folder.join("cpuacct.usage_user").exists(),
                // It has no way to join that does not wait.
                TreeKind::UnifiedOnly => false,
                TreeKind::Memory | TreeKind::Pids | TreeKind::Blkio | TreeKind::Cpuacct | TreeKind::Unified => true,
            };
            if counts {
                let folder = folder.join(&name);
                make_folder(&folder)?;
                folders.push((*kind, folder));
            }
        }
        Leaf::open(folders)
    }

    /// What the task as a whole has used.
    pub fn counters(&self) -> Counters {
        let mut counters = Counters::default();
        for (kind, folder) in &self.folders {
            if let Ok(files) = Files::open(*kind, folder) {
                files.read(&mut counters);
            }
            // Only the task has limits, so only here they are run into.
            let number = |name: &str| fs::read_to_string(folder.join(name)).ok();
            match kind {
                TreeKind::Memory => {
                    let bytes = |name: &str| number(name).and_then(|text| text.trim().parse::<u64>().ok());
                    counters.memory_bytes = bytes("memory.usage_in_bytes");
                    let hits = ["memory.failcnt", "memory.memsw.failcnt"].map(bytes);
                    counters.memory_limit_hits = hits[0].map(|hits_alone| hits_alone + hits[1].unwrap_or(0));
                    // Where memory and memory with swap have the same limit, Linux 6 counts no hit: the peak tells it.
                    let (peak, limit) = (bytes("memory.max_usage_in_bytes"), bytes("memory.limit_in_bytes"));
                    let at_limit = peak
                        .zip(limit)
                        .is_some_and(|(peak, limit)| peak + CHARGE_BYTES >= limit);
                    counters.memory_limit_reached = Some(at_limit || counters.memory_limit_hits > Some(0));
                }
                TreeKind::Cpu => {
                    let nanoseconds = number("cpu.stat").and_then(|text| keyed(&text, "throttled_time"));
                    counters.throttled_micros = nanoseconds.map(|time| time / 1000);
                }
                TreeKind::Unified => {
                    let bytes = |name: &str| number(name).and_then(|text| text.trim().parse::<u64>().ok());
                    counters.memory_bytes = bytes("memory.current");
                    counters.pids = bytes("pids.current");
                    let events = number("memory.events").unwrap_or_default();
                    counters.memory_limit_hits = keyed(&events, "max");
                    counters.memory_limit_reached = keyed(&events, "oom").map(|ooms| ooms > 0);
                    counters.throttled_micros = number("cpu.stat").and_then(|text| keyed(&text, "throttled_usec"));
                }
                TreeKind::Pids => {
                    counters.pids = number("pids.current").and_then(|text| text.trim().parse().ok());
                }
                TreeKind::Cpuacct | TreeKind::Blkio | TreeKind::UnifiedOnly => {}
            }
        }
        counters
    }

    /// How many processes of the guest's own leaf were killed for want of memory, where that is counted.
    pub fn guest_oom_kills(&self) -> Option<u64> {
        self.folders.iter().find_map(|(kind, folder)| {
            let mut counters = Counters::default();
            Files::open(*kind, &folder.join("guest")).ok()?.read(&mut counters);
            counters.oom_kills
        })
    }

    /// For how long something in the task had to wait.
    pub fn stall(&self) -> Option<Stall> {
        stall(&self.folders)
    }

    /// Kills all that is in the task's folders, wherever they can kill by themselves.
    pub fn kill(&self) {
        for (_, folder) in &self.folders {
            let _ = write(&folder.join("cgroup.kill"), "1");
        }
        for pid in self.pids() {
            let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
        }
    }

    fn pids(&self) -> Vec<Pid> {
        let Some((_, folder)) = self.folders.last() else {
            return Vec::new();
        };
        let leaves = fs::read_dir(folder).into_iter().flatten().flatten();
        leaves
            .filter_map(|leaf| fs::read_to_string(leaf.path().join("cgroup.procs")).ok())
            .flat_map(|list| read_pids(&list))
            .collect()
    }

    /// Removes the folders with all their leaves. Fails with [`ErrorKind::ResourceBusy`] while something in them still lives.
    pub fn remove(&self) -> io::Result<()> {
        for (_, folder) in &self.folders {
            for entry in fs::read_dir(folder).into_iter().flatten().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
                    remove_folder(&entry.path())?;
                }
            }
            remove_folder(folder)?;
        }
        Ok(())
    }
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

/// The list of processes in a leaf, whose folder is held open; empty once the leaf is gone.
///
/// The list itself is opened anew each time: version 1 answers a descriptor that was read within the last second with what it
/// said then (`cgroup_pidlist_start` in kernel/cgroup/cgroup-v1.c), and only a new one with what is there now.
#[derive(Debug, Clone)]
pub struct Processes(Arc<File>);

impl Processes {
    pub fn pids(&self) -> Vec<Pid> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let list = rustix::fs::openat(&self.0, "cgroup.procs", flags, Mode::empty());
        read_pids(
            &list
                .ok()
                .and_then(|list| read_text(&File::from(list)))
                .unwrap_or_default(),
        )
    }
}

/// A slot's leaf in every tree that counts, its files held open.
#[derive(Debug)]
pub struct Leaf {
    folders: Vec<(TreeKind, PathBuf)>,
    files: Vec<Files>,
    /// The list of processes, in the one tree that can also kill them.
    procs: Option<Processes>,
    baseline: Counters,
    /// As they were last read.
    last: Counters,
    resettable: bool,
}

impl Leaf {
    fn open(folders: Vec<(TreeKind, PathBuf)>) -> io::Result<Leaf> {
        let files = folders
            .iter()
            .map(|(kind, folder)| Files::open(*kind, folder))
            .collect::<io::Result<Vec<_>>>()?;
        let procs = match folders.last() {
            Some((_, folder)) => Some(Processes(Arc::new(File::open(folder)?))),
            None => None,
        };
        Ok(Leaf {
            folders,
            files,
            procs,
            baseline: Counters::default(),
            last: Counters::default(),
            resettable: true,
        })
    }

    /// The files to which a process of one thread writes "0" to join. Opened here, so that it needs no way to them itself.
    pub fn joins(&self) -> io::Result<Vec<File>> {
        let open = |(kind, folder): &(TreeKind, PathBuf)| {
            let path = folder.join(kind.own_join());
            OpenOptions::new()
                .write(true)
                .open(&path)
                .map_err(|error| at(&path, error))
        };
        self.folders.iter().map(open).collect()
    }

    /// Moves a process in that cannot do so itself. Slow after a pause (the kernel waits for a grace period).
    pub fn move_in(&self, pid: Pid) -> io::Result<()> {
        move_into(self.folders.iter().map(|(_, folder)| folder.clone()), pid)
    }

    /// Starts counting anew.
    pub fn reset(&mut self) {
        self.resettable = self.files.iter().all(Files::reset_peak);
        self.last = self.raw();
        self.baseline = self.last;
    }

    fn raw(&self) -> Counters {
        let mut counters = Counters::default();
        self.files.iter().for_each(|files| files.read(&mut counters));
        counters
    }

    /// What was used since the last reset.
    pub fn counters(&mut self) -> Counters {
        let raw = self.raw();
        self.last = raw;
        let base = &self.baseline;
        let since = |now: Option<u64>, then: Option<u64>| now.map(|now| now.saturating_sub(then.unwrap_or(0)));
        Counters {
            user_micros: raw.user_micros.saturating_sub(base.user_micros),
            system_micros: raw.system_micros.saturating_sub(base.system_micros),
            memory_peak_bytes: raw.memory_peak_bytes,
            io_read_bytes: since(raw.io_read_bytes, base.io_read_bytes),
            io_write_bytes: since(raw.io_write_bytes, base.io_write_bytes),
            pids_peak: raw.pids_peak,
            oom_kills: since(raw.oom_kills, base.oom_kills),
            ..Counters::default()
        }
    }

    /// For how long something in the leaf had to wait; not since the last reset, but ever since the leaf was made.
    pub fn stall(&self) -> Option<Stall> {
        stall(&self.folders)
    }

    /// Starts counting anew from the last reading, if the next exec can be counted truly in this leaf: peaks can be reset, and nothing is
    /// left that would be charged to it.
    pub fn serve_again(&mut self, leftover_bytes: u64) -> bool {
        // Peaks of processes cannot be reset: only a leaf that never held more than the slot and one command starts from a known one.
        let quiet = self.last.pids_peak.is_none_or(|peak| peak <= 2);
        if !self.resettable || !quiet {
            return false;
        }
        let usage = self.files.iter().find_map(|files| read_number(files.usage.as_ref()?));
        self.resettable = usage.is_none_or(|usage| usage <= leftover_bytes) && self.files.iter().all(Files::reset_peak);
        self.baseline = self.last;
        self.resettable
    }

    /// The processes in the leaf.
    pub fn pids(&self) -> Vec<Pid> {
        self.procs.as_ref().map(Processes::pids).unwrap_or_default()
    }

    /// The list of processes, for who outlives the leaf's owner.
    pub fn processes(&self) -> Option<Processes> {
        self.procs.clone()
    }

    /// Kills everything in the leaf, the slot too.
    pub fn kill(&self) {
        for (_, folder) in &self.folders {
            // What cannot fork any more cannot run away from being looked for.
            let _ = write(&folder.join("pids.max"), "0");
            if write(&folder.join("cgroup.kill"), "1").is_ok() {
                return;
            }
        }
        for _ in 0..1000 {
            let pids = self.pids();
            if pids.is_empty() {
                return;
            }
            for pid in pids {
                let _ = rustix::process::kill_process(pid, rustix::process::Signal::KILL);
            }
        }
    }

    /// Removes the leaf; busy while something in it lives.
    pub fn remove(&self) -> io::Result<()> {
        self.folders.iter().try_for_each(|(_, folder)| remove_folder(folder))
    }
}

/// The open files of one folder in one tree.
#[derive(Debug)]
struct Files {
    kind: TreeKind,
    cpu: Option<File>,
    cpu_system: Option<File>,
    peak: Option<File>,
    usage: Option<File>,
    events: Option<File>,
    io: Option<File>,
    pids_peak: Option<File>,
}

impl Files {
    fn open(kind: TreeKind, folder: &Path) -> io::Result<Files> {
        let read = |name: &str| File::open(folder.join(name)).ok();
        // A peak is reset by a write to the very descriptor that is read later.
        let both = |name: &str| OpenOptions::new().read(true).write(true).open(folder.join(name)).ok();
        let mut files = Files {
            kind,
            cpu: None,
            cpu_system: None,
            peak: None,
            usage: None,
            events: None,
            io: None,
            pids_peak: None,
        };
        match kind {
            TreeKind::Memory => {
                files.peak = both("memory.max_usage_in_bytes");
                files.usage = read("memory.usage_in_bytes");
                files.events = read("memory.oom_control");
            }
            TreeKind::Pids => files.pids_peak = read("pids.peak"),
            TreeKind::Cpu | TreeKind::Cpuacct => {
                files.cpu = read("cpuacct.usage_user");
                files.cpu_system = read("cpuacct.usage_sys");
            }
            TreeKind::Blkio => files.io = read("blkio.throttle.io_service_bytes_recursive"),
            TreeKind::UnifiedOnly => files.cpu = read("cpu.stat"),
            TreeKind::Unified => {
                files.cpu = read("cpu.stat");
                files.peak = both("memory.peak").or_else(|| read("memory.peak"));
                files.usage = read("memory.current");
                files.events = read("memory.events");
                files.io = read("io.stat");
                files.pids_peak = read("pids.peak");
            }
        }
        Ok(files)
    }

    /// Whether the peak of memory starts anew: version 1 always can, version 2 from Linux 6.12 on.
    fn reset_peak(&self) -> bool {
        let Some(file) = &self.peak else { return true };
        let text: &[u8] = if self.kind == TreeKind::Memory { b"0" } else { b"1" };
        file.write_at(text, 0).is_ok()
    }

    fn read(&self, counters: &mut Counters) {
        if let Some(file) = &self.cpu {
            let text = read_text(file).unwrap_or_default();
            if matches!(self.kind, TreeKind::Cpu | TreeKind::Cpuacct) {
                counters.user_micros = text.trim().parse::<u64>().unwrap_or(0) / 1000;
                counters.system_micros = self.cpu_system.as_ref().and_then(read_number).unwrap_or(0) / 1000;
            } else {
                counters.user_micros = keyed(&text, "user_usec").unwrap_or(0);
                counters.system_micros = keyed(&text, "system_usec").unwrap_or(0);
            }
        }
        if let Some(file) = &self.peak {
            counters.memory_peak_bytes = read_number(file);
        }
        if let Some(file) = &self.events {
            counters.oom_kills = read_text(file).and_then(|text| keyed(&text, "oom_kill"));
        }
        if let Some(file) = &self.pids_peak {
            counters.pids_peak = read_number(file);
        }
        if let Some(text) = self.io.as_ref().and_then(read_text) {
            let (read, written) = io_bytes(&text);
            counters.io_read_bytes = Some(read);
            counters.io_write_bytes = Some(written);
        }
    }
}

fn read_text(file: &File) -> Option<String> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match file.read_at(&mut buffer, text.len() as u64).ok()? {
            0 => return String::from_utf8(text).ok(),
            read => text.extend_from_slice(&buffer[..read]),
        }
    }
}

fn read_number(file: &File) -> Option<u64> {
    let mut buffer = [0; 32];
    let read = file.read_at(&mut buffer, 0).ok()?;
    std::str::from_utf8(&buffer[..read]).ok()?.trim().parse().ok()
}

/// The number behind a key in lines of `key number`.
fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Bytes read and written over all devices: version 1 says `8:0 Read 4096` a line, version 2 `8:0 rbytes=4096 wbytes=0 …`.
fn io_bytes(text: &str) -> (u64, u64) {
    let (mut read, mut written) = (0, 0);
    for line in text.lines() {
        let words: Vec<_> = line.split_whitespace().collect();
        match words[..] {
            [_, "Read", count] => read += count.parse::<u64>().unwrap_or(0),
            [_, "Write", count] => written += count.parse::<u64>().unwrap_or(0),
            _ => {
                for word in words {
                    if let Some(count) = word.strip_prefix("rbytes=") {
                        read += count.parse::<u64>().unwrap_or(0);
                    } else if let Some(count) = word.strip_prefix("wbytes=") {
                        written += count.parse::<u64>().unwrap_or(0);
                    }
                }
            }
        }
    }
    (read, written)
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::*;

    const MOUNTS: &str = "\
30 24 0:26 / /sys/fs/cgroup/memory rw,relatime shared:5 - cgroup cgroup rw,memory
31 24 0:27 /docker/abc /sys/fs/cgroup/cpu,cpuacct ro - cgroup cgroup rw,cpu,cpuacct
32 24 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw";
    const OWN: &str = "4:memory:/api/7\n2:cpu,cpuacct:/docker/abc/x\n0::/user.slice";

    #[test]
    fn the_own_folder_is_found_below_the_mounts_root() {
        assert_eq!(
            own_folder_v1(MOUNTS, OWN, "memory"),
            Some("/sys/fs/cgroup/memory/api/7".into())
        );
        assert_eq!(
            own_folder_v1(MOUNTS, OWN, "cpu"),
            Some("/sys/fs/cgroup/cpu,cpuacct/x".into())
        );
        assert_eq!(own_folder_v1(MOUNTS, OWN, "pids"), None);
        assert_eq!(
            own_folder_v2(&unified_mount(MOUNTS).unwrap(), OWN),
            Path::new("/sys/fs/cgroup/unified/user.slice")
        );
    }

    #[test]
    fn counters_of_both_versions_are_read() {
        assert_eq!(
            io_bytes("8:0 Read 4096\n8:0 Write 512\n8:0 Sync 99\n8:16 Read 4\nTotal 4708"),
            (4100, 512)
        );
        assert_eq!(
            io_bytes("8:0 rbytes=10 wbytes=20 rios=1\n8:16 rbytes=1 wbytes=2"),
            (11, 22)
        );
        assert_eq!(
            keyed("oom_kill_disable 0\nunder_oom 0\noom_kill 3", "oom_kill"),
            Some(3)
        );
        assert_eq!(keyed("usage_usec 10\nuser_usec 7\nsystem_usec 3", "user_usec"), Some(7));
    }

    #[test]
    fn a_leaf_counts_what_a_process_in_it_used() {
        let cgroups = Cgroups::detect();
        let name = format!("test-{}", uuid::Uuid::now_v7());
        let Some(mut task) = cgroups
            .create_task(
                &name,
                Caps {
                    pids: Some(50),
                    ..Caps::default()
                },
            )
            .unwrap()
        else {
            assert!(cgroups.why.is_some(), "no cgroups, and no reason given");
            return;
        };
        let mut leaf = task.create_leaf().unwrap();
        leaf.reset();
        let mut child = std::process::Command::new("sh")
            .args([
                "-c",
                "for join; do echo 0 >$join; done; echo; read go; i=0; while [ $i -lt 100000 ]; do i=$((i+1)); done",
                "sh",
            ])
            .args(leaf.folders.iter().map(|(kind, folder)| folder.join(kind.own_join())))
            .stdin(std::process::Stdio::piped())
            .stdout(std::process::Stdio::piped())
            .spawn()
            .unwrap();
        child.stdout.take().unwrap().read_exact(&mut [0]).unwrap();
        assert_eq!(leaf.pids(), vec![Pid::from_child(&child)]);
        child.stdin.take().unwrap().write_all(b"\n").unwrap();
        child.wait().unwrap();
        let counters = leaf.counters();
        assert!(counters.user_micros + counters.system_micros > 0, "{counters:?}");
        assert_eq!(counters.pids_peak, Some(1));
        leaf.remove().unwrap();
        task.remove().unwrap();
        assert!(cgroups.find_task(&name).is_none());
    }
}
