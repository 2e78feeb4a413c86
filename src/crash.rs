//! Places at which a test can end this process with SIGKILL, to see what the next start makes of what is left.
//!
//! In builds without debug assertions there are none: [`point`] is empty. `BELLJAR_CRASH_AT="2 exec: runs"` ends the process when the
//! place of that name is passed for the second time, by whichever thread.

/// One place, before or after a step that leaves something behind.
#[cfg(debug_assertions)]
pub fn point(name: &'static str) {
    use std::sync::OnceLock;
    use std::sync::atomic::{AtomicU64, Ordering};

    static AT: OnceLock<Option<(u64, String)>> = OnceLock::new();
    static PASSED: AtomicU64 = AtomicU64::new(0);

    let at = AT.get_or_init(|| {
        let text = std::env::var("BELLJAR_CRASH_AT").ok()?;
        let (count, name) = text.split_once(' ')?;
        Some((count.parse().ok()?, name.to_owned()))
    });
    if let Some((count, at)) = at
        && at == name
        && PASSED.fetch_add(1, Ordering::SeqCst) + 1 == *count
    {
        // Nothing of this process runs after it.
        let _ = rustix::process::kill_process(rustix::process::getpid(), rustix::process::Signal::KILL);
        loop {
            std::thread::park();
        }
    }
}

#[cfg(not(debug_assertions))]
#[inline(always)]
pub fn point(_: &'static str) {}
