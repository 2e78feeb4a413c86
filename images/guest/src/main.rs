//! PID 1 of every sandbox. It makes slots and listeners when the host asks, reaps, and is gone the moment the host is.
//!
//! Single-threaded, without allocation on its idle path, and the same program in all roles:
//!
//! ```text
//!   init (PID 1) --fork--> slot --posix_spawn--> a command
//!        └───────fork────> relay, where the host can only be reached by a stream (the path of its socket is then the one argument)
//! ```
//!
//! Outside of any sandbox it is a [`carrier`] of belljar's connections.
//!
//! Init and slots hide from the commands, which run under the same user: no ptrace, nothing of their memory, environment or descriptors;
//! every signal that can be blocked is. A command that kills its slot loses its own life with it, nothing else.

mod carrier;
mod init;
mod kernel;
mod link;
mod relay;
mod slot;

use std::process::ExitCode;

use belljar_guest::{CARRIER, CONTROL_FD};

fn main() -> ExitCode {
    let begun = match std::env::args_os().nth(1) {
        None => kernel::inherited(CONTROL_FD).and_then(|control| init::run(control, None)),
        Some(word) if word == CARRIER => carrier::begin(),
        Some(socket) => relay::begin(&socket),
    };
    match begun {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("belljar guest: {error}");
            ExitCode::FAILURE
        }
    }
}
