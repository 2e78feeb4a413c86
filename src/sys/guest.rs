//! The guest's program, carried inside, and how it is started on the host.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::process::{Child, Command, Stdio};

use super::packet;

/// A static executable.
pub static PROGRAM: &[u8] = include_bytes!(env!("BELLJAR_GUEST"));

/// Starts it as a carrier of connections, whose control socket `control` is, with nothing else: no environment, no descriptor, no
/// folder of anybody's. By posix_spawn, so that it costs the same however large this process is.
pub fn start_carrier(control: OwnedFd) -> io::Result<Child> {
    let program = packet::memory_file("belljar-carrier", PROGRAM)?;
    // The new process has the descriptor under the same number until its program begins.
    Command::new(format!("/proc/self/fd/{}", program.as_raw_fd()))
        .arg(belljar_guest::CARRIER)
        .env_clear()
        .current_dir("/")
        .stdin(Stdio::from(control))
        .stdout(Stdio::null())
        .stderr(Stdio::null())
        .spawn()
}
