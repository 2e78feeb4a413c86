//! A leaf: what one exec after the other is counted in, and killed by.

use std::fs::{File, OpenOptions};
use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use rustix::fs::{Mode, OFlags};
use rustix::process::Pid;

use super::files::{Files, read_number, read_text};
use super::{Counters, Stall, TreeKind, at, move_into, read_pids, remove_folder, stall, write};

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
    pub(super) folders: Vec<(TreeKind, PathBuf)>,
    files: Vec<Files>,
    /// The list of processes, in the one tree that can also kill them.
    procs: Option<Processes>,
    baseline: Counters,
    /// As they were last read.
    last: Counters,
    resettable: bool,
}

impl Leaf {
    pub(super) fn open(folders: Vec<(TreeKind, PathBuf)>) -> io::Result<Leaf> {
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
