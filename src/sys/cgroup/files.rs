//! The kernel's counters of one folder, held open and read without their names.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;

use super::{Counters, TreeKind};

/// The open files of one folder in one tree.
#[derive(Debug)]
pub(super) struct Files {
    kind: TreeKind,
    cpu: Option<File>,
    cpu_system: Option<File>,
    peak: Option<File>,
    pub(super) usage: Option<File>,
    events: Option<File>,
    io: Option<File>,
    pids_peak: Option<File>,
}

impl Files {
    pub(super) fn open(kind: TreeKind, folder: &Path) -> io::Result<Files> {
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
    pub(super) fn reset_peak(&self) -> bool {
        let Some(file) = &self.peak else { return true };
        let text: &[u8] = if self.kind == TreeKind::Memory { b"0" } else { b"1" };
        file.write_at(text, 0).is_ok()
    }

    pub(super) fn read(&self, counters: &mut Counters) {
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

pub(super) fn read_text(file: &File) -> Option<String> {
    let mut text = Vec::new();
    let mut buffer = [0; 4096];
    loop {
        match file.read_at(&mut buffer, text.len() as u64).ok()? {
            0 => return String::from_utf8(text).ok(),
            read => text.extend_from_slice(&buffer[..read]),
        }
    }
}

pub(super) fn read_number(file: &File) -> Option<u64> {
    let mut buffer = [0; 32];
    let read = file.read_at(&mut buffer, 0).ok()?;
    std::str::from_utf8(&buffer[..read]).ok()?.trim().parse().ok()
}

/// The number behind a key in lines of `key number`.
pub(super) fn keyed(text: &str, key: &str) -> Option<u64> {
    text.lines()
        .find_map(|line| line.strip_prefix(key)?.strip_prefix(' ')?.trim().parse().ok())
}

/// Bytes read and written over all devices: version 1 says `8:0 Read 4096` a line, version 2 `8:0 rbytes=4096 wbytes=0 …`.
pub(super) fn io_bytes(text: &str) -> (u64, u64) {
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
