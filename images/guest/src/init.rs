//! PID 1: slots, listeners, reaping.

use std::fs::OpenOptions;
use std::io::{Result, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use belljar_guest::{Failed, FromInit, LIMITS_FILE, ToInit, VERSION};

use crate::kernel::{self, Fork, Reap};
use crate::link::Link;
use crate::slot;

/// Serves the host until it closes the control socket. With PID 1 the kernel ends everything else in the sandbox.
pub fn run(control: OwnedFd) -> Result<()> {
    kernel::hide()?;
    kernel::set_name(c"belljar-init");
    let signals = kernel::block_signals()?;
    let mut host = Link::new(control);
    let mut slots: Vec<(u32, i32)> = Vec::new();
    host.say(&FromInit::Ready { version: VERSION }, &[])?;
    loop {
        let (asked, died) = kernel::wait_readable(host.fd(), signals.as_fd())?;
        if died {
            kernel::drain_signals(signals.as_fd());
            reap(&host, &mut slots)?;
        }
        if !asked {
            continue;
        }
        let Some((message, mut fds)) = host.hear()? else {
            return Ok(());
        };
        match message {
            ToInit::AddSlot { slot } => {
                let mut joins = fds.drain(..);
                let Some(socket) = joins.next() else {
                    host.say(
                        &FromInit::Failed {
                            what: Failed::Slot(slot),
                            errno: libc::EBADF,
                        },
                        &[],
                    )?;
                    continue;
                };
                match kernel::fork() {
                    Ok(Fork::Child) => {
                        let joins = joins.collect();
                        drop((host, signals));
                        slot::run(socket, joins)
                    }
                    Ok(Fork::Parent(pid)) => {
                        slots.push((slot, pid));
                        match kernel::pidfd(pid) {
                            Ok(pidfd) => host.say(&FromInit::SlotAdded { slot }, &[pidfd.as_fd()])?,
                            Err(error) => {
                                let _ = kernel::kill(pid, libc::SIGKILL);
                                host.say(
                                    &FromInit::Failed {
                                        what: Failed::Slot(slot),
                                        errno: errno(&error),
                                    },
                                    &[],
                                )?;
                            }
                        }
                    }
                    Err(error) => {
                        host.say(
                            &FromInit::Failed {
                                what: Failed::Slot(slot),
                                errno: errno(&error),
                            },
                            &[],
                        )?;
                    }
                }
            }
            ToInit::Limits { text } => {
                // A sandbox without the file, or with something else in its place, goes without.
                let _ = write_limits(&text);
            }
            ToInit::Listen { port, kind } => match kernel::listen(port, kind) {
                // The socket is closed here once it is sent: nobody inside can accept on it.
                Ok(socket) => host.say(&FromInit::Listening { port, kind }, &[socket.as_fd()])?,
                Err(error) => {
                    host.say(
                        &FromInit::Failed {
                            what: Failed::Listen(port, kind),
                            errno: errno(&error),
                        },
                        &[],
                    )?;
                }
            },
        }
    }
}

/// In place, in one write: a reader sees the old text or the new one. Commands may have put a link or a FIFO there.
fn write_limits(text: &str) -> Result<()> {
    let mut file = OpenOptions::new()
        .write(true)
        .custom_flags(libc::O_NOFOLLOW | libc::O_NONBLOCK)
        .open(LIMITS_FILE)?;
    if !file.metadata()?.is_file() {
        return Ok(());
    }
    file.write_all(text.as_bytes())?;
    file.set_len(text.len() as u64)
}

fn reap(host: &Link, slots: &mut Vec<(u32, i32)>) -> Result<()> {
    let mut died = false;
    while let Reap::One(dead) = kernel::reap()? {
        died = true;
        if let Some(index) = slots.iter().position(|(_, pid)| *pid == dead.pid) {
            let (slot, _) = slots.swap_remove(index);
            host.say(&FromInit::SlotGone { slot }, &[])?;
        }
    }
    if died {
        // What is a child of PID 1 and no slot was left by a slot that is gone: its exec is over, and so is all that it started.
        let alive: Vec<_> = slots.iter().map(|(_, pid)| *pid).collect();
        slot::kill_children(&alive);
    }
    Ok(())
}

pub fn errno(error: &std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
