//! The protocol over a stream, for places into which no descriptor can be passed: gVisor, a container of Docker's.
//!
//! ```text
//!   host ── packets, descriptors ── near ══ frames over one stream ══ far ── packets, descriptors ── init, slots
//!           (as with any guest)      │                                 │     (as with any host)
//!                         loopback of a box of its own:        loopback of the sandbox:
//!                         listeners that the proxy accepts on  listeners that commands connect to
//! ```
//!
//! Two guests, one program: the *far* one is a child of the sandbox's init, speaks to it as a host would and keeps the other ends of
//! what it passes in; the *near* one sits in an empty box on the host, speaks to belljar as any guest would and does the same there. So
//! neither belljar nor init can tell that there is a stream between them. What differs: no pidfd crosses, and a terminal is sized by
//! a message.
//!
//! The far side is as hostile as all that runs beside it: the near one bounds each frame before it makes room for it, holds the other
//! side to the credit that it has, and ends at the first frame out of turn. It holds nothing but its sockets, so that is the worst
//! that can be done to it. When either ends, so do the stream, the sandbox and the other one.

mod far;
mod near;
mod streams;
mod wire;

use std::ffi::{CString, OsStr};
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::os::unix::ffi::OsStrExt;

use crate::init;
use crate::kernel::{self, Fork, Found, Wanted};

pub use near::run as near;

/// Becomes the init of a sandbox whose host listens at `socket`, with a relay beside it.
pub fn begin(socket: &OsStr) -> Result<()> {
    kernel::hide()?;
    let path = CString::new(socket.as_bytes()).map_err(|_| Error::from(ErrorKind::InvalidInput))?;
    let stream = kernel::connect_unix(&path)?;
    let (ours, control) = kernel::packet_pair()?;
    match kernel::fork()? {
        Fork::Child => {
            drop(control);
            let code = i32::from(far::run(ours, stream).is_err());
            std::process::exit(code)
        }
        Fork::Parent(relay) => {
            drop((ours, stream));
            init::run(control, Some(relay))
        }
    }
}

/// That a descriptor is to be read from, or left alone.
fn readable(fd: BorrowedFd<'_>, readable: bool) -> Wanted {
    Wanted {
        fd: fd.as_raw_fd(),
        readable,
        writable: false,
    }
}

/// Waits until something is ready, and tells only that.
fn ready<S>(wanted: Vec<(S, Wanted)>) -> Result<impl Iterator<Item = (S, Found)>> {
    let (sources, wanted): (Vec<_>, Vec<_>) = wanted.into_iter().unzip();
    let found = sources.into_iter().zip(kernel::wait_any(&wanted, -1)?);
    Ok(found.filter(|(_, found)| found.readable || found.writable))
}
