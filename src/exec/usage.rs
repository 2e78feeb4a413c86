//! What the kernel counted, as it goes into a record.

use belljar_guest::Rusage;

use crate::audit::record::{OomLimit, Pressure, Usage, UsageSource};
use crate::sys::cgroup::{Counters, Stall, Version};

const MICRO: f64 = 1e-6;

/// What a cgroup counted, of an exec or of a task.
pub fn of_cgroup(version: Version, counters: &Counters, stall: Option<Stall>) -> Usage {
    Usage {
        source: match version {
            Version::V1 => UsageSource::CgroupV1,
            Version::V2 => UsageSource::CgroupV2,
        },
        cpu_user_seconds: counters.user_micros as f64 * MICRO,
        cpu_system_seconds: counters.system_micros as f64 * MICRO,
        memory_peak_bytes: counters.memory_peak_bytes,
        io_read_bytes: counters.io_read_bytes,
        io_write_bytes: counters.io_write_bytes,
        pids_peak: counters.pids_peak,
        oom_kills: counters.oom_kills,
        oom_limit: None,
        memory_limit_hits: counters.memory_limit_hits,
        cpu_throttled_seconds: counters.throttled_micros.map(|micros| micros as f64 * MICRO),
        pressure: stall.map(|stall| Pressure {
            cpu_seconds: stall.cpu_micros as f64 * MICRO,
            memory_seconds: stall.memory_micros as f64 * MICRO,
            io_seconds: stall.io_micros as f64 * MICRO,
        }),
    }
}

/// What wait4(2) counted of the command and those of its descendants that were reaped.
pub fn of_rusage(rusage: &Rusage) -> Usage {
    Usage {
        source: UsageSource::Rusage,
        cpu_user_seconds: rusage.user_micros as f64 * MICRO,
        cpu_system_seconds: rusage.system_micros as f64 * MICRO,
        memory_peak_bytes: Some(rusage.max_rss_kib * 1024),
        io_read_bytes: Some(rusage.blocks_in * 512),
        io_write_bytes: Some(rusage.blocks_out * 512),
        ..Usage::NONE
    }
}

/// Whose limit a kill for want of memory was about. The kernel kills in the whole of the folder whose limit was hit: where the task
/// never ran into its own, it was that of a folder above, or the machine was out of memory.
pub fn oom_limit(task: &Counters) -> OomLimit {
    match task.memory_limit_reached {
        Some(false) => OomLimit::Above,
        Some(true) | None => OomLimit::Task,
    }
}
