//! PID 1: slots, listeners, reaping.

use std::fs::OpenOptions;
use std::io::{Result, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use belljar_guest::{Failed, FromInit, LIMITS_FILE, ToInit, VERSION};

use crate::kernel::{self, Fork, Reap};
use crate::link::Link;
use crate::{relay, slot};

/// Serves the host until it closes the control socket. With PID 1 the kernel ends everything else in the sandbox. `helper` is a child
/// that is no slot, and stays.
pub fn run(control: OwnedFd, helper: Option<i32>) -> Result<()> {
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
            reap(&host, &mut slots, helper)?;
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
                        slot::run(socket, joins, helper.is_some())
                    }
                    Ok(Fork::Parent(pid)) => {
                        slots.push((slot, pid));
                        match kernel::pidfd(pid) {
                            Ok(pidfd) => host.say(&FromInit::SlotAdded { slot, pid }, &[pidfd.as_fd()])?,
                            // No kernel of the host's own: nobody outside could use one.
                            Err(_) if helper.is_some() => host.say(&FromInit::SlotAdded { slot, pid }, &[])?,
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
            ToInit::KillSlot { slot } => {
                // Unreaped until this process reaps it, so the number is its own still.
                if let Some((_, pid)) = slots.iter().find(|(number, _)| *number == slot) {
                    let _ = kernel::kill(*pid, libc::SIGKILL);
                }
            }
            ToInit::Relay => {
                let stream = fds.pop().ok_or(std::io::ErrorKind::InvalidData)?;
                return relay::near(host, stream);
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

fn reap(host: &Link, slots: &mut Vec<(u32, i32)>, helper: Option<i32>) -> Result<()> {
    let mut died = false;
    while let Reap::One(dead) = kernel::reap()? {
        died = true;
        if let Some(index) = slots.iter().position(|(_, pid)| *pid == dead.pid) {
            let (slot, _) = slots.swap_remove(index);
            host.say(&FromInit::SlotGone { slot }, &[])?;
        }
    }
    if died || helper.is_some() {
        // What is a child of PID 1 and no slot was left by a slot that is gone, or by one that can adopt nothing and asks for this: its
        // exec is over, and so is all that it started.
        let alive: Vec<_> = slots.iter().map(|(_, pid)| *pid).chain(helper).collect();
        let left = slot::kill_children(&alive);
        if left == 0 && helper.is_some() {
            for (_, pid) in slots.iter() {
                let _ = kernel::kill(*pid, libc::SIGCHLD);
            }
        }
    }
    Ok(())
}

pub fn errno(error: &std::io::Error) -> i32 {
    error.raw_os_error().unwrap_or(libc::EIO)
}
