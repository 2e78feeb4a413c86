//! New namespaces: clone3(2), user_namespaces(7), pivot_root(2).

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::sync::LazyLock;

use rustix::process::Pid;

/// What clone3 returned.
pub enum Cloned {
    Child,
    Parent { pid: Pid, pidfd: OwnedFd },
}

/// The namespaces of a sandbox but for the cgroup namespace, which follows once the process is in its cgroup.
pub const SANDBOX: u64 = (libc::CLONE_NEWUSER
    | libc::CLONE_NEWNS
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUTS) as u64;

/// Those of them that are the same for every sandbox, and slow to make.
pub const AHEAD: u64 = (libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::CLONE_NEWIPC | libc::CLONE_NEWUTS) as u64;

/// The others, for a child of one that is in those; it becomes the child of that one's parent.
pub const AT_LAST: u64 = (libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::CLONE_PARENT) as u64;

/// The namespaces that an outside runtime runs in; those of the container it makes itself.
pub const RUNTIME: u64 = (libc::CLONE_NEWUSER | libc::CLONE_NEWNS | libc::CLONE_NEWPID) as u64;

/// A mount namespace alone.
pub const MOUNTS: u64 = libc::CLONE_NEWNS as u64;

/// A user namespace alone, to take id maps from.
pub const USER: u64 = libc::CLONE_NEWUSER as u64;

/// Clones this process into new namespaces (`flags` of clone(2)) and, where one is named, into a cgroup of version 2.
///
/// Only for a single-threaded process: the child gets a copy of all memory and goes on from here.
///
/// # Panics
/// When this process has more than one thread: the child could find locks held by threads that it does not have.
#[allow(unsafe_code)]
pub fn clone_into(flags: u64, cgroup: Option<BorrowedFd<'_>>) -> io::Result<Cloned> {
    let threads = fs::read_dir("/proc/self/task")?.count();
    assert_eq!(threads, 1, "clone_into is for single-threaded processes");
    const INTO_CGROUP: u64 = 0x2_0000_0000;
    let flags = flags | cgroup.map_or(0, |_| INTO_CGROUP);
    let mut pidfd: RawFd = -1;
    // A sibling tells its end as this process does, and takes no signal of its own: clone(2).
    let is_sibling = flags & libc::CLONE_PARENT as u64 != 0;
    let exit_signal = if is_sibling { 0 } else { libc::SIGCHLD as u64 };
    let arguments = libc::clone_args {
        flags: flags | libc::CLONE_PIDFD as u64,
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |folder| folder.as_raw_fd() as u64),
    };
    // SAFETY: the arguments are a live clone_args of the size given. Without a stack and without CLONE_VM the child runs on a copy
    // of this stack, as after fork, and the process has one thread (checked above), so every lock is free in the child.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &arguments, size_of::<libc::clone_args>()) };
    match pid {
        0 => Ok(Cloned::Child),
        pid if pid > 0 => {
            // SAFETY: clone3 with CLONE_PIDFD stored a new descriptor there, which is ours.
            let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
            let pid = Pid::from_raw(pid as i32).expect("a child's id is positive");
            Ok(Cloned::Parent { pid, pidfd })
        }
        _ => Err(io::Error::last_os_error()),
    }
}

/// Takes the cgroups that this process is in for the roots of all that it can see.
#[allow(unsafe_code)]
pub fn new_cgroup_namespace() -> io::Result<()> {
    // SAFETY: unshare(2) of the cgroup namespace changes nothing in memory.
    if unsafe { libc::unshare(libc::CLONE_NEWCGROUP) } < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// One line of an id map: `count` ids from `inside` on are those from `outside` on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct IdRange {
    pub inside: u32,
    pub outside: u32,
    pub count: u32,
}

/// Writes a new user namespace's maps. An ordinary user may map one id, its own, and must give up setgroups(2) first.
pub fn write_id_maps(pid: Pid, uids: &[IdRange], gids: &[IdRange], setgroups: Setgroups) -> io::Result<()> {
    let folder = format!("/proc/{}", pid.as_raw_nonzero());
    let text = |ranges: &[IdRange]| -> String {
        ranges
            .iter()
            .map(|range| format!("{} {} {}\n", range.inside, range.outside, range.count))
            .collect()
    };
    if let Setgroups::Deny = setgroups {
        fs::write(format!("{folder}/setgroups"), "deny")?;
    }
    fs::write(format!("{folder}/uid_map"), text(uids))?;
    fs::write(format!("{folder}/gid_map"), text(gids))
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Setgroups {
    Allow,
    Deny,
}

/// The ids of all sandboxes: above what distributions give to users, below what 32-bit signed programs choke on.
pub const FIRST_ID: u32 = 1 << 30;
const MOST_IDS: u32 = 1 << 29;

/// Whether this process can give them: it is root, and its own user namespace has them.
pub fn has_sandbox_ids() -> bool {
    // Neither changes while it runs, and each task's start asks.
    static HAS: LazyLock<bool> = LazyLock::new(|| {
        let has = |file: &str| fs::read_to_string(file).is_ok_and(|text| holds(&id_map(&text), FIRST_ID, MOST_IDS));
        rustix::process::geteuid().is_root() && has("/proc/self/uid_map") && has("/proc/self/gid_map")
    });
    *HAS
}

fn holds(ranges: &[IdRange], first: u32, count: u32) -> bool {
    let holds = |range: &IdRange| range.inside <= first && first - range.inside <= range.count.saturating_sub(count);
    ranges.iter().any(holds)
}

/// Whether this process's root is root outside of its user namespace too, as far as can be seen from here.
pub fn is_root_outside() -> bool {
    let text = fs::read_to_string("/proc/self/uid_map").unwrap_or_default();
    id_map(&text)
        .iter()
        .any(|range| (range.inside, range.outside) == (0, 0))
}

/// The lines of such a file.
fn id_map(text: &str) -> Vec<IdRange> {
    let range = |line: &str| {
        let mut numbers = line.split_whitespace().map(str::parse);
        let mut next = || numbers.next()?.ok();
        Some(IdRange {
            inside: next()?,
            outside: next()?,
            count: next()?,
        })
    };
    text.lines().filter_map(range).collect()
}

/// A descriptor of a process's user namespace.
pub fn user_namespace(pid: Pid) -> io::Result<OwnedFd> {
    Ok(File::open(format!("/proc/{}/ns/user", pid.as_raw_nonzero()))?.into())
}

/// A user namespace that only serves as an id map: of a process that does nothing and ends at once.
pub fn mapping(uids: &[IdRange], gids: &[IdRange]) -> io::Result<OwnedFd> {
    let (hold, release) = super::packet::pipe()?;
    match clone_into(USER, None)? {
        Cloned::Child => {
            drop(release);
            let mut byte = [0; 1];
            let _ = rustix::io::read(&hold, &mut byte);
            std::process::exit(0)
        }
        Cloned::Parent { pid, pidfd: _ } => {
            drop(hold);
            write_id_maps(pid, uids, gids, Setgroups::Allow)?;
            let namespace = user_namespace(pid);
            drop(release);
            namespace
        }
    }
}

/// Makes the mounted folder the root of this mount namespace and lets go of the old one.
pub fn pivot_into(root: &OwnedFd) -> io::Result<()> {
    rustix::process::fchdir(root)?;
    // pivot_root(2), "pivot_root(".", ".")": the old root ends up mounted over the new one, and is detached from there.
    rustix::process::pivot_root(".", ".")?;
    rustix::mount::unmount(".", rustix::mount::UnmountFlags::DETACH)?;
    rustix::process::chdir("/")?;
    Ok(())
}

/// Brings up the loopback interface of this net namespace.
#[allow(unsafe_code)]
pub fn bring_up_loopback() -> io::Result<()> {
    let socket = rustix::net::socket_with(
        rustix::net::AddressFamily::INET,
        rustix::net::SocketType::DGRAM,
        rustix::net::SocketFlags::CLOEXEC,
        None,
    )?;
    // SAFETY: ifreq is plain data for which all zeroes are valid; both ioctls read or write that one live local (netdevice(7)).
    unsafe {
        let mut request: libc::ifreq = std::mem::zeroed();
        request.ifr_name[0] = b'l' as libc::c_char;
        request.ifr_name[1] = b'o' as libc::c_char;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCGIFFLAGS, &mut request) < 0 {
            return Err(io::Error::last_os_error());
        }
        request.ifr_ifru.ifru_flags |= (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
        if libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, &request) < 0 {
            return Err(io::Error::last_os_error());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn id_maps_are_read_as_the_kernel_writes_them() {
        let text = "         0       1000          1\n         1     100000      65536\n";
        let part = |inside, outside, count| IdRange { inside, outside, count };
        assert_eq!(id_map(text), [part(0, 1000, 1), part(1, 100_000, 65_536)]);
        assert_eq!(id_map("         0          0 4294967295\n"), [part(0, 0, u32::MAX)]);
        assert_eq!(id_map("0 nobody 1\n"), []);
        assert!(holds(&[part(0, 0, u32::MAX)], 1 << 30, 1 << 29));
        assert!(!holds(&[part(0, 0, 65_536)], 1 << 30, 1 << 29));
        assert!(holds(&[part(10, 0, 5)], 12, 3) && !holds(&[part(10, 0, 5)], 12, 4));
    }
}
