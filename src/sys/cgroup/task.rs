//! The folders of one task: what limits it, what it used in all, and its end.

use std::fs;
use std::io;
use std::path::PathBuf;

use rustix::process::Pid;

use super::files::{Files, keyed};
use super::leaf::Leaf;
use super::{
    Counters, Joins, Stall, TreeKind, Version, make_folder, move_into, read_pids, remove_folder, stall, write,
};

/// The kernel charges memory in pieces of up to this much, and kills when one no longer fits.
const CHARGE_BYTES: u64 = 1 << 20;

/// A task's folders. Not removed on drop: what is in them must be dead first, see [`TaskCgroup::remove`].
#[derive(Debug)]
pub struct TaskCgroup {
    pub(super) version: Version,
    pub(super) folders: Vec<(TreeKind, PathBuf)>,
    pub(super) next_leaf: u64,
}

impl TaskCgroup {
    pub fn version(&self) -> Version {
        self.version
    }

    /// Where the guest is.
    fn guest_folders(&self) -> impl Iterator<Item = (TreeKind, PathBuf)> {
        self.folders.iter().map(|(kind, folder)| match kind.guest_leaf() {
            Some(leaf) => (*kind, folder.join(leaf)),
            None => (*kind, folder.clone()),
        })
    }

    /// How a process gets to where the guest is.
    pub fn guest_joins(&self) -> Joins {
        let mut joins = Joins::default();
        for (kind, folder) in self.guest_folders() {
            match kind {
                TreeKind::Unified | TreeKind::UnifiedOnly => joins.into = Some(folder),
                kind => joins.files.push(folder.join(kind.own_join())),
            }
        }
        joins
    }

    /// Moves a process to where the guest is that was not started there.
    pub fn move_in(&self, pid: Pid) -> io::Result<()> {
        move_into(self.guest_folders().map(|(_, folder)| folder), pid)
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
        self.guest_folders().find_map(|(kind, folder)| {
            let mut counters = Counters::default();
            Files::open(kind, &folder).ok()?.read(&mut counters);
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
            .map(|leaf| leaf.path())
            .chain([folder.clone()])
            .filter_map(|folder| fs::read_to_string(folder.join("cgroup.procs")).ok())
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
