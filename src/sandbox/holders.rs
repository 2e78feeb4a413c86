//! Which exec holds a socket: evidence for the record, nothing is decided by it, for processes of one task can hand sockets on.
//!
//! The kernel lists the sockets of the sandbox's network with their inodes (proc_pid_net(5)); who holds an inode is seen in the
//! descriptors of the processes in each exec's leaf. All that runs inside belongs to some exec, so with one exec there the list is
//! enough: the socket is held, and nobody else is there to hold it.

use std::fs;
use std::net::SocketAddr;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};

use rustix::process::Pid;

use crate::id::ExecId;
use crate::sys::cgroup::Processes;
use crate::sys::process;

/// Descriptors looked at for one socket: a build with hundreds of processes has fewer, and a search must end.
const DESCRIPTORS_MAX: usize = 20_000;

/// A protocol of the sandbox's network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transport {
    Tcp,
    Udp,
}

/// The execs that have processes in a sandbox.
#[derive(Debug, Default)]
pub struct Holders {
    execs: Mutex<Vec<(ExecId, Option<Processes>)>>,
}

/// While this lives, the exec counts as one that may hold sockets.
#[derive(Debug)]
pub struct Holding {
    exec: ExecId,
    holders: Weak<Holders>,
}

impl Drop for Holding {
    fn drop(&mut self) {
        if let Some(holders) = self.holders.upgrade() {
            holders.lock().retain(|(exec, _)| *exec != self.exec);
        }
    }
}

impl Holders {
    fn lock(&self) -> MutexGuard<'_, Vec<(ExecId, Option<Processes>)>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// An exec begins; `processes` lists what runs in its leaf, where it has one.
    pub fn add(self: &Arc<Self>, exec: ExecId, processes: Option<Processes>) -> Holding {
        self.lock().push((exec, processes));
        Holding {
            exec,
            holders: Arc::downgrade(self),
        }
    }

    /// The exec that holds the socket with this local address in the network of the process behind `pid1`. `None` where nobody or more
    /// than one holds it, or it cannot be told. Blocking where several execs run: it reads through their descriptors.
    pub fn of_socket(&self, pid1: BorrowedFd<'_>, transport: Transport, local: SocketAddr) -> Option<ExecId> {
        let execs = self.lock().clone();
        if execs.is_empty() {
            return None;
        }
        let pid1 = process::pid_of(pid1).ok()??;
        let inode = inode(pid1, transport, local)?;
        if let [(exec, _)] = execs.as_slice() {
            return Some(*exec);
        }
        let wanted = format!("socket:[{inode}]");
        let mut left = DESCRIPTORS_MAX;
        let mut found = None;
        for (exec, processes) in &execs {
            let pids = processes.as_ref()?.pids();
            if pids.into_iter().any(|pid| holds(pid, &wanted, &mut left)) && found.replace(*exec).is_some() {
                return None;
            }
            if left == 0 {
                return None;
            }
        }
        found
    }
}

/// The inode of a socket that some process holds.
fn inode(pid: Pid, transport: Transport, local: SocketAddr) -> Option<u64> {
    let (four, six) = match transport {
        Transport::Tcp => ("tcp", "tcp6"),
        Transport::Udp => ("udp", "udp6"),
    };
    let names: &[&str] = if local.is_ipv4() { &[four, six] } else { &[six] };
    names.iter().find_map(|name| {
        let list = fs::read_to_string(format!("/proc/{}/net/{name}", pid.as_raw_nonzero())).ok()?;
        inode_in(&list, local)
    })
}

/// proc_pid_net(5): `sl local_address rem_address st … uid timeout inode`, addresses in the machine's byte order, in hexadecimal.
fn inode_in(list: &str, local: SocketAddr) -> Option<u64> {
    let wanted = match local {
        SocketAddr::V4(address) => [
            format!(
                "{:08X}:{:04X}",
                u32::from_ne_bytes(address.ip().octets()),
                address.port()
            ),
            // A socket of version 6 that talks to an address of version 4.
            format!(
                "0000000000000000{:08X}{:08X}:{:04X}",
                u32::from_ne_bytes([0, 0, 0xff, 0xff]),
                u32::from_ne_bytes(address.ip().octets()),
                address.port()
            ),
        ],
        SocketAddr::V6(address) => {
            let words = address.ip().octets();
            let words = words.chunks_exact(4).map(|word| match *word {
                [a, b, c, d] => format!("{:08X}", u32::from_ne_bytes([a, b, c, d])),
                _ => String::new(),
            });
            let text = format!("{}:{:04X}", words.collect::<String>(), address.port());
            [text.clone(), text]
        }
    };
    list.lines().skip(1).find_map(|line| {
        let mut words = line.split_whitespace().skip(1);
        let local = words.next()?;
        if !wanted.iter().any(|one| one == local) {
            return None;
        }
        // The end that the proxy accepted has the listener's own address; one that nobody holds any more has no inode.
        words.nth(7)?.parse().ok().filter(|inode| *inode != 0)
    })
}

fn holds(pid: Pid, wanted: &str, left: &mut usize) -> bool {
    let Ok(descriptors) = fs::read_dir(format!("/proc/{}/fd", pid.as_raw_nonzero())) else {
        return false;
    };
    for descriptor in descriptors.flatten() {
        if *left == 0 {
            return false;
        }
        *left -= 1;
        if fs::read_link(descriptor.path()).is_ok_and(|target| target.as_os_str() == wanted) {
            return true;
        }
    }
    false
}

#[cfg(test)]
mod tests {
    use std::net::{TcpListener, TcpStream};
    use std::os::fd::{AsFd, AsRawFd};

    use super::*;

    #[test]
    fn the_inode_of_a_socket_is_found_by_its_address() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let link = fs::read_link(format!("/proc/self/fd/{}", socket.as_raw_fd())).unwrap();
        let own = rustix::process::getpid();
        let found = inode(own, Transport::Tcp, socket.local_addr().unwrap()).unwrap();
        assert_eq!(link.to_str().unwrap(), format!("socket:[{found}]"));
        let local = socket.local_addr().unwrap();
        drop(socket);
        assert_eq!(inode(own, Transport::Tcp, local), None, "nobody holds it any more");
    }

    #[test]
    fn one_exec_alone_holds_what_is_held_and_none_holds_what_is_not() {
        let holders = Arc::new(Holders::default());
        let pidfd = process::pidfd_open(rustix::process::getpid()).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let local = socket.local_addr().unwrap();
        let of = |holders: &Holders| holders.of_socket(pidfd.as_fd(), Transport::Tcp, local);
        assert_eq!(of(&holders), None);
        let exec = ExecId::new();
        let holding = holders.add(exec, None);
        assert_eq!(of(&holders), Some(exec));
        let other = holders.add(ExecId::new(), None);
        assert_eq!(
            of(&holders),
            None,
            "without lists of processes two cannot be told apart"
        );
        drop((other, socket));
        assert_eq!(of(&holders), None);
        drop(holding);
        assert!(holders.lock().is_empty());
    }
}
