//! What a command can read in `/run/belljar/limits`: what its task may use, and what it has used.
//!
//! Lines of `name = value`, sizes in bytes and times in seconds; a limit that there is none of and a figure that the machine does not
//! count are left out. Written when the task begins, and anew every second while a command runs and once after it.

use std::fmt::Write;
use std::time::Duration;

use crate::sys::cgroup::Counters;
use crate::task::limits::Limits;

/// From one time to the next.
pub const PAUSE: Duration = Duration::from_secs(1);

/// The whole text.
pub fn text(limits: &Limits, used: Option<&Counters>, age: Duration) -> String {
    let mut text =
        "# What this task may use and has used: bytes and seconds, at most a second old while a command runs.\n"
            .to_owned();
    let mut line = |name: &str, value: Option<String>| {
        if let Some(value) = value {
            // Writing into a String cannot fail.
            let _ = writeln!(text, "{name} = {value}");
        }
    };
    let whole = |number: Option<u64>| number.map(|number| number.to_string());
    let time = |time: Option<Duration>| time.map(|time| time.as_secs_f64().to_string());
    let seconds = |micros: u64| Some(format!("{:.3}", micros as f64 * 1e-6));
    line("memory_limit", whole(limits.memory.map(|bytes| bytes.0)));
    line("memory_used", whole(used.and_then(|used| used.memory_bytes)));
    line("memory_peak", whole(used.and_then(|used| used.memory_peak_bytes)));
    line("memory_limit_hits", whole(used.and_then(|used| used.memory_limit_hits)));
    line("cpus_limit", limits.cpus.map(|cpus| cpus.to_string()));
    line(
        "cpu_used",
        used.and_then(|used| seconds(used.user_micros + used.system_micros)),
    );
    line(
        "cpu_throttled",
        used.and_then(|used| used.throttled_micros).and_then(seconds),
    );
    line("pids_limit", limits.pids.map(|pids| pids.to_string()));
    line("pids_used", whole(used.and_then(|used| used.pids)));
    line("io_read", whole(used.and_then(|used| used.io_read_bytes)));
    line("io_written", whole(used.and_then(|used| used.io_write_bytes)));
    line("disk_limit", Some(limits.disk.0.to_string()));
    line("task_time_limit", time(limits.task_time));
    line("task_time_used", Some(format!("{:.1}", age.as_secs_f64())));
    line("exec_time_limit", time(limits.exec_time));
    line("output_limit", Some(limits.output.0.to_string()));
    text
}
