//! This process and others: ids, capabilities, seccomp, limits, execveat, pidfds.

use std::ffi::{CStr, CString};
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, IntoRawFd, OwnedFd, RawFd};
use std::ptr;

use rustix::process::{Gid, Pid, PidfdFlags, Resource, Rlimit, Signal, Uid};
use rustix::thread::{CapabilitySet, CapabilitySets};

/// The highest descriptor that [`keep_only`] gives away: the guest's control socket.
const CONTROL_FD: RawFd = belljar_guest::CONTROL_FD;

/// Becomes `uid`:`gid` for good. The supplementary groups go too where the user namespace lets one drop them.
pub fn become_user(uid: u32, gid: u32, drop_groups: bool) -> io::Result<()> {
    if drop_groups {
        rustix::thread::set_thread_groups(&[])?;
    }
    let (uid, gid) = (Uid::from_raw(uid), Gid::from_raw(gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    Ok(())
}

/// Takes every capability out of what an exec could ever give again. Needs CAP_SETPCAP, so it comes before [`drop_capabilities`].
pub fn drop_bounding_set() -> io::Result<()> {
    rustix::thread::clear_ambient_capability_set()?;
    for bit in 0..64 {
        let Some(capability) = CapabilitySet::from_bits(1 << bit) else {
            continue;
        };
        match rustix::thread::remove_capability_from_bounding_set(capability) {
            // Beyond the last capability that this kernel knows.
            Ok(()) | Err(rustix::io::Errno::INVAL) => {}
            Err(error) => return Err(error.into()),
        }
    }
    Ok(())
}

/// Gives up every capability of this thread, and all ways to win one back through an exec.
pub fn drop_capabilities() -> io::Result<()> {
    let none = CapabilitySet::empty();
    rustix::thread::set_capabilities(
        None,
        CapabilitySets {
            effective: none,
            permitted: none,
            inheritable: none,
        },
    )?;
    rustix::thread::set_no_new_privs(true)?;
    Ok(())
}

/// Leaves the session keyring that was inherited for a new and empty one.
#[allow(unsafe_code)]
pub fn leave_keyring() -> io::Result<()> {
    const JOIN_SESSION_KEYRING: libc::c_int = 1;
    // SAFETY: keyctl(2) with a null name makes an anonymous keyring and reads no memory.
    let result = unsafe { libc::syscall(libc::SYS_keyctl, JOIN_SESSION_KEYRING, ptr::null::<libc::c_char>()) };
    match result {
        result if result >= 0 => Ok(()),
        _ => match io::Error::last_os_error() {
            // A kernel without keyrings has none to leave.
            error if error.raw_os_error() == Some(libc::ENOSYS) => Ok(()),
            error => Err(error),
        },
    }
}

/// Occupies the lowest descriptor numbers for good, so that [`keep_only`] never overwrites a descriptor that is still needed.
pub fn reserve_low_descriptors() -> io::Result<()> {
    loop {
        let null = OwnedFd::from(fs::File::open("/dev/null")?);
        let number = null.as_raw_fd();
        if number > CONTROL_FD {
            return Ok(());
        }
        let _ = null.into_raw_fd();
    }
}

/// One limit of setrlimit(2), soft and hard.
pub fn set_limit(resource: Resource, value: u64) -> io::Result<()> {
    let hard = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
    let value = Some(value.min(hard));
    Ok(rustix::process::setrlimit(
        resource,
        Rlimit {
            current: value,
            maximum: value,
        },
    )?)
}

/// Raises the soft limit of open files to the hard one, and returns what it is then.
pub fn raise_open_files() -> u64 {
    let limit = rustix::process::getrlimit(Resource::Nofile);
    let raised = Rlimit {
        current: limit.maximum,
        maximum: limit.maximum,
    };
    let held = match rustix::process::setrlimit(Resource::Nofile, raised) {
        Ok(()) => limit.maximum,
        Err(_) => limit.current,
    };
    held.unwrap_or(u64::MAX)
}

/// Loads a seccomp filter for this thread and all it will start.
pub fn load_seccomp(program: &[u64]) -> io::Result<()> {
    let program: Vec<seccompiler::sock_filter> = program.iter().map(|word| unpack(*word)).collect();
    seccompiler::apply_filter(&program).map_err(io::Error::other)
}

/// A `struct sock_filter` from its eight bytes.
fn unpack(word: u64) -> seccompiler::sock_filter {
    seccompiler::sock_filter {
        code: word as u16,
        jt: (word >> 16) as u8,
        jf: (word >> 24) as u8,
        k: (word >> 32) as u32,
    }
}

/// Arranges descriptors for an exec: `/dev/null` at 0 and 1, `stderr` at 2, `control` at the guest's number, everything else closed by the exec.
#[allow(unsafe_code)]
pub fn keep_only(null: OwnedFd, stderr: OwnedFd, control: OwnedFd) -> io::Result<()> {
    // SAFETY: these calls change this process's descriptor table only. The numbers below 4 that other parts of this program may own
    // are given away on purpose: nothing runs after this but the exec.
    unsafe {
        let last = CONTROL_FD as libc::c_uint + 1;
        if libc::syscall(
            libc::SYS_close_range,
            last,
            libc::c_uint::MAX,
            libc::CLOSE_RANGE_CLOEXEC,
        ) < 0
        {
            return Err(io::Error::last_os_error());
        }
        // dup2 onto 0..3 could close the very descriptor that a later dup2 reads from: take both out of the way first.
        let away = |fd: RawFd| match libc::fcntl(fd, libc::F_DUPFD_CLOEXEC, 100) {
            fd if fd < 0 => Err(io::Error::last_os_error()),
            fd => Ok(fd),
        };
        let (null, stderr) = (away(null.into_raw_fd())?, away(stderr.into_raw_fd())?);
        let control = away(control.into_raw_fd())?;
        for (from, to) in [(null, 0), (null, 1), (stderr, 2), (control, CONTROL_FD)] {
            if libc::dup2(from, to) < 0 {
                return Err(io::Error::last_os_error());
            }
        }
    }
    Ok(())
}

/// Becomes the program in `file`; returns only to say why not.
#[allow(unsafe_code)]
pub fn exec_file(file: BorrowedFd<'_>, argv: &[&CStr], env: &[&CStr]) -> io::Error {
    let pointers = |list: &[&CStr]| -> Vec<*const libc::c_char> {
        list.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end in null and their strings outlive the call; the path is empty, so the descriptor itself is executed.
    unsafe {
        libc::syscall(
            libc::SYS_execveat,
            file.as_raw_fd(),
            c"".as_ptr(),
            argv.as_ptr(),
            env.as_ptr(),
            libc::AT_EMPTY_PATH,
        );
    }
    io::Error::last_os_error()
}

/// Becomes the program at `path`, with the descriptors that are not close-on-exec; returns only to say why not.
#[allow(unsafe_code)]
pub fn exec_path(path: &CStr, argv: &[CString], env: &[CString]) -> io::Error {
    let pointers = |list: &[CString]| -> Vec<*const libc::c_char> {
        list.iter().map(|word| word.as_ptr()).chain([ptr::null()]).collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    // SAFETY: both arrays end in null and their strings outlive the call.
    unsafe { libc::execve(path.as_ptr(), argv.as_ptr(), env.as_ptr()) };
    io::Error::last_os_error()
}

/// Lets this process's dead children vanish by themselves: somebody else watches them by pidfd.
#[allow(unsafe_code)]
pub fn ignore_children() {
    // SAFETY: SIG_IGN installs no handler that could run.
    unsafe { libc::signal(libc::SIGCHLD, libc::SIG_IGN) };
}

/// The first version of `struct sched_attr`; see sched_setattr(2).
#[repr(C)]
#[derive(Debug, Default, Clone, Copy)]
struct Scheduling {
    size: u32,
    policy: u32,
    flags: u64,
    nice: i32,
    priority: u32,
    /// Nanoseconds.
    runtime: u64,
    deadline: u64,
    period: u64,
}

/// The shortest turn that there is, in nanoseconds.
const SHORT_TURN: u64 = 100_000;

/// That of the calling thread.
#[allow(unsafe_code)]
fn scheduling() -> io::Result<Scheduling> {
    let mut found = Scheduling::default();
    let size = size_of::<Scheduling>();
    // SAFETY: it is written there, and no more than that size; thread 0 is the calling one.
    match unsafe { libc::syscall(libc::SYS_sched_getattr, 0, &raw mut found, size, 0) } {
        0 => Ok(found),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Asks that the calling thread be served soon rather than long: so it comes before those that compute, and is not put off by whom it
/// has just woken. It gets no larger share by that, and needs no right. Linux before 6.12 takes no notice.
#[allow(unsafe_code)]
pub fn prefer_short_turns() -> io::Result<()> {
    let wanted = Scheduling {
        runtime: SHORT_TURN,
        ..scheduling()?
    };
    // SAFETY: that one live local is read, of the size that the kernel has just written into it.
    match unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const wanted, 0) } {
        0 => Ok(()),
        _ => Err(io::Error::last_os_error()),
    }
}

/// Ends this process when its parent ends.
pub fn die_with_parent() -> io::Result<()> {
    Ok(rustix::process::set_parent_process_death_signal(Some(Signal::KILL))?)
}

/// Hides this process: no ptrace and no core dump by its own user.
pub fn hide() -> io::Result<()> {
    Ok(rustix::process::set_dumpable_behavior(
        rustix::process::DumpableBehavior::NotDumpable,
    )?)
}

pub fn pidfd_open(pid: Pid) -> io::Result<OwnedFd> {
    Ok(rustix::process::pidfd_open(pid, PidfdFlags::empty())?)
}

pub fn pidfd_kill(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    match rustix::process::pidfd_send_signal(pidfd, Signal::KILL) {
        Ok(()) | Err(rustix::io::Errno::SRCH) => Ok(()),
        Err(error) => Err(error.into()),
    }
}

/// The process behind a pidfd, as this pid namespace numbers it. `None` when it is gone, or not to be seen from here.
pub fn pid_of(pidfd: BorrowedFd<'_>) -> io::Result<Option<Pid>> {
    // proc_pid_fdinfo(5): the line "Pid:" is the id in the namespace of this /proc, -1 once the process is reaped.
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_raw_fd()))?;
    let line = info.lines().find_map(|line| line.strip_prefix("Pid:")).unwrap_or("-1");
    Ok(line
        .trim()
        .parse::<i32>()
        .ok()
        .filter(|pid| *pid > 0)
        .and_then(Pid::from_raw))
}

/// The process that connected to a unix socket, by what the kernel says; `None` where it is not to be seen from here.
#[allow(unsafe_code)]
pub fn peer_pid(socket: BorrowedFd<'_>) -> io::Result<Option<Pid>> {
    let mut peer = libc::ucred { pid: 0, uid: 0, gid: 0 };
    let mut length = size_of::<libc::ucred>() as libc::socklen_t;
    // SAFETY: the buffer is a live ucred, and its size is given.
    let result = unsafe {
        libc::getsockopt(
            socket.as_raw_fd(),
            libc::SOL_SOCKET,
            libc::SO_PEERCRED,
            ptr::from_mut(&mut peer).cast(),
            &mut length,
        )
    };
    match result {
        // unix(7): 0 for a process of a pid namespace that is not below ours.
        0 => Ok(Some(peer.pid).filter(|pid| *pid > 0).and_then(Pid::from_raw)),
        _ => Err(io::Error::last_os_error()),
    }
}

/// The children of a process, as this pid namespace numbers them.
pub fn children_of(parent: Pid) -> io::Result<Vec<Pid>> {
    let parent = parent.as_raw_nonzero();
    let list = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"))?;
    let pids = list.split_whitespace().filter_map(|pid| pid.parse().ok());
    Ok(pids.filter_map(Pid::from_raw).collect())
}

/// The child of a process that the child's own pid namespace gives this number.
pub fn child_of(parent: Pid, inside: i32) -> io::Result<Option<Pid>> {
    let is_meant = |pid: &Pid| {
        // proc_pid_status(5): the last number of NSpid is that of the innermost namespace.
        let status = fs::read_to_string(format!("/proc/{}/status", pid.as_raw_nonzero())).unwrap_or_default();
        let line = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let innermost = line.and_then(|line| line.split_whitespace().last()?.parse().ok());
        innermost == Some(inside)
    };
    Ok(children_of(parent)?.into_iter().find(is_meant))
}

/// Sets the size of a terminal, which signals its foreground process group.
pub fn set_terminal_size(terminal: BorrowedFd<'_>, rows: u16, cols: u16) -> io::Result<()> {
    let size = rustix::termios::Winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    Ok(rustix::termios::tcsetwinsize(terminal, size)?)
}

pub fn set_hostname(name: &str) -> io::Result<()> {
    Ok(rustix::system::sethostname(name.as_bytes())?)
}

/// Kills a process and all of its group, which it leads.
pub fn kill_group(leader: u32) -> io::Result<()> {
    let pid = i32::try_from(leader)
        .ok()
        .and_then(Pid::from_raw)
        .ok_or(io::ErrorKind::InvalidInput)?;
    Ok(rustix::process::kill_process_group(pid, rustix::process::Signal::KILL)?)
}

/// Whether a process runs this same program and has a controlling terminal; no where the kernel does not say so.
pub fn is_own_program_at_a_terminal(pid: i32) -> bool {
    use std::os::unix::fs::MetadataExt as _;
    let file = |path: &str| std::fs::metadata(path).map(|found| (found.dev(), found.ino())).ok();
    let own = file("/proc/self/exe");
    if own.is_none() || own != file(&format!("/proc/{pid}/exe")) {
        return false;
    }
    stat_field(pid, 4).is_some_and(|terminal| terminal != "0")
}

/// When a process began, in clock ticks since the boot: with its id it names one process, and no later one of the same id. None
/// where there is no such process.
pub fn start_of(pid: i32) -> Option<u64> {
    stat_field(pid, 19)?.parse().ok()
}

/// A field of proc_pid_stat(5), counted from the first after the name, which stands in brackets and may hold anything.
fn stat_field(pid: i32, number: usize) -> Option<String> {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let (_, rest) = stat.rsplit_once(')')?;
    rest.split_whitespace().nth(number).map(str::to_owned)
}

/// The ids that this process acts under.
pub fn own_ids() -> (u32, u32) {
    (rustix::process::geteuid().as_raw(), rustix::process::getegid().as_raw())
}

/// Makes a descriptor non-blocking.
pub fn set_nonblocking(fd: impl AsFd) -> io::Result<()> {
    Ok(rustix::io::ioctl_fionbio(fd, true)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_instruction_is_read_from_its_eight_bytes() {
        let one = unpack(u64::from_le_bytes([0x15, 0, 3, 250, 0x3e, 0, 0, 0xc0]));
        assert_eq!((one.code, one.jt, one.jf, one.k), (0x15, 3, 250, 0xc000_003e));
    }

    #[test]
    fn a_thread_gets_short_turns_and_keeps_all_else() {
        let before = scheduling().unwrap();
        prefer_short_turns().unwrap();
        let after = scheduling().unwrap();
        assert_eq!((after.policy, after.nice), (before.policy, before.nice));
        // An older kernel has none to tell of.
        assert!([SHORT_TURN, 0].contains(&after.runtime), "{after:?}");
    }

    #[test]
    fn a_pidfd_names_its_process_until_it_is_reaped() {
        let mut child = std::process::Command::new("sleep").arg("60").spawn().unwrap();
        let pidfd = pidfd_open(Pid::from_child(&child)).unwrap();
        assert_eq!(pid_of(pidfd.as_fd()).unwrap(), Some(Pid::from_child(&child)));
        pidfd_kill(pidfd.as_fd()).unwrap();
        child.wait().unwrap();
        assert_eq!(pid_of(pidfd.as_fd()).unwrap(), None);
        pidfd_kill(pidfd.as_fd()).unwrap();
    }
}
