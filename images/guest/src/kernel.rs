//! The guest's only unsafe code: one system call a function, owned descriptors in and out.
#![allow(unsafe_code, reason = "this is the guest's one door to the kernel")]

use std::ffi::{CStr, CString};
use std::io::{Error, Result};
use std::mem::{self, MaybeUninit};
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::ptr;

use belljar_guest::{FDS_MAX, ListenKind, Rusage};

mod confine;
mod epoll;
mod streams;

pub use confine::{close_from, confine};
pub use epoll::{Epoll, Interest};
pub use streams::*;

fn check(result: libc::c_int) -> Result<libc::c_int> {
    if result < 0 {
        Err(Error::last_os_error())
    } else {
        Ok(result)
    }
}

/// Takes over a descriptor that was there before `main`.
pub fn inherited(fd: RawFd) -> Result<OwnedFd> {
    // SAFETY: fcntl on any number is harmless; it says whether the number is an open descriptor.
    check(unsafe { libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC) })?;
    // SAFETY: the descriptor is open, and nobody else in this program knows its number.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// Hides this process from its neighbours: no ptrace, no core, nothing of `/proc/PID` but what everybody may see.
pub fn hide() -> Result<()> {
    // SAFETY: PR_SET_DUMPABLE takes one integer and touches no memory.
    check(unsafe { libc::prctl(libc::PR_SET_DUMPABLE, 0, 0, 0, 0) }).map(drop)
}

/// Makes orphaned descendants this process's children.
pub fn become_subreaper() -> Result<()> {
    // SAFETY: PR_SET_CHILD_SUBREAPER takes one integer and touches no memory.
    check(unsafe { libc::prctl(libc::PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0) }).map(drop)
}

/// Enters a Landlock domain of this process's own, which all that it starts is in too.
///
/// Processes may look into others (`/proc/PID/environ`, `mem`, `fd`, …) only where those are in the same domain or one below it
/// (landlock(7), "Ptrace restrictions"). With a domain a slot, no exec can look into another, though both are the same user's.
/// The domain must handle something to be one: the making of block devices, which nobody here could do anyway. Moving files
/// between folders is refused by every domain that does not grant it (version 2), so it is granted everywhere.
///
/// Without Landlock, or with version 1, which has no such grant, nothing is done; the host finds that out by itself and says so.
pub fn enter_domain() -> Result<()> {
    const MAKE_BLOCK: u64 = 1 << 11;
    const REFER: u64 = 1 << 13;
    const ASK_VERSION: libc::c_uint = 1;
    const RULE_PATH_BENEATH: libc::c_int = 1;
    #[repr(C)]
    struct Ruleset {
        handled: u64,
    }
    #[repr(C, packed)]
    struct PathBeneath {
        allowed: u64,
        folder: RawFd,
    }
    // SAFETY: asking for the version takes no ruleset.
    let version = unsafe {
        libc::syscall(
            libc::SYS_landlock_create_ruleset,
            ptr::null::<Ruleset>(),
            0usize,
            ASK_VERSION,
        )
    };
    if version < 2 {
        return Ok(());
    }
    let ruleset = Ruleset {
        handled: MAKE_BLOCK | REFER,
    };
    // SAFETY: all pointers are to live locals of the sizes given; the descriptors are new, and ours.
    unsafe {
        let fd = check(libc::syscall(
            libc::SYS_landlock_create_ruleset,
            &raw const ruleset,
            size_of::<Ruleset>(),
            0,
        ) as libc::c_int)?;
        let domain = OwnedFd::from_raw_fd(fd);
        let root = OwnedFd::from_raw_fd(check(libc::open(
            c"/".as_ptr(),
            libc::O_PATH | libc::O_DIRECTORY | libc::O_CLOEXEC,
        ))?);
        let rule = PathBeneath {
            allowed: REFER,
            folder: root.as_raw_fd(),
        };
        check(libc::syscall(
            libc::SYS_landlock_add_rule,
            domain.as_raw_fd(),
            RULE_PATH_BENEATH,
            &raw const rule,
            0,
        ) as libc::c_int)?;
        check(libc::syscall(libc::SYS_landlock_restrict_self, domain.as_raw_fd(), 0) as libc::c_int).map(drop)
    }
}

pub fn set_name(name: &CStr) {
    // SAFETY: PR_SET_NAME reads at most 16 bytes of a NUL-terminated string.
    unsafe { libc::prctl(libc::PR_SET_NAME, name.as_ptr(), 0, 0, 0) };
}

/// Blocks every signal that can be blocked and returns a descriptor that becomes readable on SIGCHLD.
pub fn block_signals() -> Result<OwnedFd> {
    let mut all = MaybeUninit::<libc::sigset_t>::uninit();
    let mut child = MaybeUninit::<libc::sigset_t>::uninit();
    // SAFETY: both sets are initialised by sigfillset and sigemptyset before they are read; signalfd gives a new descriptor. An
    // ignored SIGCHLD would be inherited from a launcher and would take away every exit status.
    unsafe {
        libc::signal(libc::SIGCHLD, libc::SIG_DFL);
        libc::sigfillset(all.as_mut_ptr());
        check(libc::sigprocmask(libc::SIG_SETMASK, all.as_ptr(), ptr::null_mut()))?;
        libc::sigemptyset(child.as_mut_ptr());
        libc::sigaddset(child.as_mut_ptr(), libc::SIGCHLD);
        let fd = check(libc::signalfd(
            -1,
            child.as_ptr(),
            libc::SFD_CLOEXEC | libc::SFD_NONBLOCK,
        ))?;
        Ok(OwnedFd::from_raw_fd(fd))
    }
}

/// Empties the SIGCHLD descriptor.
pub fn drain_signals(fd: BorrowedFd<'_>) {
    let mut buffer = [0u8; 1024];
    // SAFETY: the buffer is ours and its length is given.
    while unsafe { libc::read(fd.as_raw_fd(), buffer.as_mut_ptr().cast(), buffer.len()) } > 0 {}
}

/// Waits until one of two descriptors is readable or hung up; says which.
pub fn wait_readable(first: BorrowedFd<'_>, second: BorrowedFd<'_>) -> Result<(bool, bool)> {
    let entry = |fd: BorrowedFd<'_>| libc::pollfd {
        fd: fd.as_raw_fd(),
        events: libc::POLLIN,
        revents: 0,
    };
    let mut fds = [entry(first), entry(second)];
    loop {
        // SAFETY: the array is ours and its length is given.
        match check(unsafe { libc::poll(fds.as_mut_ptr(), 2, -1) }) {
            Ok(_) => return Ok((fds[0].revents != 0, fds[1].revents != 0)),
            Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
}

/// Room for the control message of [`FDS_MAX`] descriptors, aligned as the kernel wants it.
#[repr(C, align(8))]
struct ControlBuffer([u8; 80]);

const _: () = assert!(16 + FDS_MAX * 4 <= 80);

/// Sends one packet with descriptors beside it.
pub fn send(socket: BorrowedFd<'_>, packet: &[u8], fds: &[BorrowedFd<'_>]) -> Result<()> {
    assert!(fds.len() <= FDS_MAX, "no message has more descriptors");
    let mut control = ControlBuffer([0; 80]);
    let mut iov = libc::iovec {
        iov_base: packet.as_ptr().cast_mut().cast(),
        iov_len: packet.len(),
    };
    // SAFETY: msghdr is plain data for which all zeroes are valid.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &mut iov;
    message.msg_iovlen = 1;
    if !fds.is_empty() {
        let bytes = mem::size_of_val(fds) as libc::c_uint;
        message.msg_control = control.0.as_mut_ptr().cast();
        // SAFETY: the buffer has room for FDS_MAX descriptors (checked above and at compile time), so CMSG_FIRSTHDR is not null
        // and its data holds `bytes`; BorrowedFd is a transparent RawFd, so the slice is an array of ints.
        unsafe {
            message.msg_controllen = libc::CMSG_SPACE(bytes) as _;
            let header = libc::CMSG_FIRSTHDR(&message);
            (*header).cmsg_level = libc::SOL_SOCKET;
            (*header).cmsg_type = libc::SCM_RIGHTS;
            (*header).cmsg_len = libc::CMSG_LEN(bytes) as _;
            ptr::copy_nonoverlapping(fds.as_ptr().cast::<u8>(), libc::CMSG_DATA(header), bytes as usize);
        }
    }
    loop {
        // SAFETY: the header points at live buffers of the lengths it names.
        let sent = unsafe { libc::sendmsg(socket.as_raw_fd(), &message, libc::MSG_NOSIGNAL) };
        if sent >= 0 {
            return Ok(());
        }
        let error = Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    }
}

/// Receives one packet and its descriptors; 0 bytes mean that the other side is gone.
pub fn receive(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> Result<(usize, Vec<OwnedFd>)> {
    let mut control = ControlBuffer([0; 80]);
    let mut iov = libc::iovec {
        iov_base: buffer.as_mut_ptr().cast(),
        iov_len: buffer.len(),
    };
    // SAFETY: msghdr is plain data for which all zeroes are valid.
    let mut message: libc::msghdr = unsafe { mem::zeroed() };
    message.msg_iov = &mut iov;
    message.msg_iovlen = 1;
    message.msg_control = control.0.as_mut_ptr().cast();
    message.msg_controllen = control.0.len() as _;
    let length = loop {
        // SAFETY: the header points at live buffers of the lengths it names.
        let length = unsafe { libc::recvmsg(socket.as_raw_fd(), &mut message, libc::MSG_CMSG_CLOEXEC) };
        if length >= 0 {
            break length as usize;
        }
        let error = Error::last_os_error();
        if error.kind() != std::io::ErrorKind::Interrupted {
            return Err(error);
        }
    };
    let mut fds = Vec::new();
    // SAFETY: the kernel filled the control buffer; each SCM_RIGHTS header's data is an array of descriptors that are now ours.
    unsafe {
        let mut header = libc::CMSG_FIRSTHDR(&message);
        while !header.is_null() {
            if (*header).cmsg_level == libc::SOL_SOCKET && (*header).cmsg_type == libc::SCM_RIGHTS {
                let data = libc::CMSG_DATA(header).cast::<RawFd>();
                let count = ((*header).cmsg_len as usize - libc::CMSG_LEN(0) as usize) / mem::size_of::<RawFd>();
                for index in 0..count {
                    fds.push(OwnedFd::from_raw_fd(ptr::read_unaligned(data.add(index))));
                }
            }
            header = libc::CMSG_NXTHDR(&message, header);
        }
    }
    if message.msg_flags & (libc::MSG_TRUNC | libc::MSG_CTRUNC) != 0 {
        return Err(Error::from_raw_os_error(libc::EMSGSIZE));
    }
    Ok((length, fds))
}

/// What a fork returned.
pub enum Fork {
    Child,
    /// With the child's id.
    Parent(i32),
}

/// Forks; sound because the guest never has a second thread.
pub fn fork() -> Result<Fork> {
    // SAFETY: this program is single-threaded, so the child's memory is consistent and it may run any code.
    match check(unsafe { libc::fork() })? {
        0 => Ok(Fork::Child),
        pid => Ok(Fork::Parent(pid)),
    }
}

pub fn own_pid() -> i32 {
    // SAFETY: getpid cannot fail and touches no memory.
    unsafe { libc::getpid() }
}

pub fn parent_pid() -> i32 {
    // SAFETY: getppid cannot fail and touches no memory.
    unsafe { libc::getppid() }
}

pub fn pidfd(pid: i32) -> Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers and gives a new descriptor, close-on-exec by itself.
    let fd = check(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) } as libc::c_int)?;
    // SAFETY: the descriptor is new, and ours.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// One process that is over.
pub struct Reaped {
    pub pid: i32,
    pub status: i32,
    pub usage: Rusage,
}

/// What there was to reap.
pub enum Reap {
    One(Reaped),
    /// Children are there, all of them running.
    Running,
    /// There are no children.
    None,
}

/// Reaps one child without waiting.
pub fn reap() -> Result<Reap> {
    let mut status = 0;
    // SAFETY: rusage is plain data for which all zeroes are valid.
    let mut usage: libc::rusage = unsafe { mem::zeroed() };
    // SAFETY: both pointers are to live locals of the right types.
    match unsafe { libc::wait4(-1, &mut status, libc::WNOHANG, &mut usage) } {
        0 => Ok(Reap::Running),
        pid if pid > 0 => {
            let micros = |time: libc::timeval| time.tv_sec as u64 * 1_000_000 + time.tv_usec as u64;
            let usage = Rusage {
                user_micros: micros(usage.ru_utime),
                system_micros: micros(usage.ru_stime),
                max_rss_kib: usage.ru_maxrss as u64,
                blocks_in: usage.ru_inblock as u64,
                blocks_out: usage.ru_oublock as u64,
                processes: 1,
            };
            Ok(Reap::One(Reaped { pid, status, usage }))
        }
        _ => match Error::last_os_error() {
            error if error.raw_os_error() == Some(libc::ECHILD) => Ok(Reap::None),
            error => Err(error),
        },
    }
}

pub fn kill(pid: i32, signal: i32) -> Result<()> {
    // SAFETY: kill takes two integers and touches no memory.
    check(unsafe { libc::kill(pid, signal) }).map(drop)
}

/// The content of a memory file, read from its start and at most `limit` bytes.
pub fn read_memory_file(fd: &OwnedFd, limit: usize) -> Result<Vec<u8>> {
    // SAFETY: stat is plain data for which all zeroes are valid, and the pointer is to a live local.
    let size = unsafe {
        let mut stat: libc::stat = mem::zeroed();
        check(libc::fstat(fd.as_raw_fd(), &mut stat))?;
        stat.st_size as usize
    };
    if size > limit {
        return Err(Error::from_raw_os_error(libc::EMSGSIZE));
    }
    let mut content = vec![0; size];
    let mut done = 0;
    while done < size {
        let rest = &mut content[done..];
        // SAFETY: the buffer is ours and its length is given.
        let read = unsafe {
            libc::pread(
                fd.as_raw_fd(),
                rest.as_mut_ptr().cast(),
                rest.len(),
                done as libc::off_t,
            )
        };
        match read {
            0 => return Err(Error::from_raw_os_error(libc::EIO)),
            read if read < 0 => return Err(Error::last_os_error()),
            read => done += read as usize,
        }
    }
    Ok(content)
}

/// A socket on 127.0.0.1 of the sandbox's own net namespace.
pub fn listen(port: u16, kind: ListenKind) -> Result<OwnedFd> {
    let socket_kind = match kind {
        ListenKind::Tcp => libc::SOCK_STREAM,
        ListenKind::Udp => libc::SOCK_DGRAM,
    };
    // SAFETY: socket takes three integers and gives a new descriptor.
    let socket = unsafe {
        let fd = check(libc::socket(libc::AF_INET, socket_kind | libc::SOCK_CLOEXEC, 0))?;
        OwnedFd::from_raw_fd(fd)
    };
    let address = libc::sockaddr_in {
        sin_family: libc::AF_INET as libc::sa_family_t,
        sin_port: port.to_be(),
        sin_addr: libc::in_addr {
            s_addr: u32::from_be_bytes([127, 0, 0, 1]).to_be(),
        },
        sin_zero: [0; 8],
    };
    // SAFETY: the address is a live sockaddr_in of the length given.
    unsafe {
        let length = mem::size_of_val(&address) as libc::socklen_t;
        check(libc::bind(socket.as_raw_fd(), ptr::from_ref(&address).cast(), length))?;
        if let ListenKind::Tcp = kind {
            check(libc::listen(socket.as_raw_fd(), 1024))?;
        }
    }
    Ok(socket)
}

/// A new pseudo-terminal: its master side and the path of its slave side.
pub fn open_pty(rows: u16, cols: u16) -> Result<(OwnedFd, CString)> {
    let size = libc::winsize {
        ws_row: rows,
        ws_col: cols,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: posix_openpt gives a new descriptor; the ioctls read or write live locals of the types that tty_ioctl(4) names.
    unsafe {
        let fd = check(libc::posix_openpt(libc::O_RDWR | libc::O_NOCTTY | libc::O_CLOEXEC))?;
        let master = OwnedFd::from_raw_fd(fd);
        let mut number: libc::c_uint = 0;
        let unlock: libc::c_int = 0;
        check(libc::ioctl(fd, libc::TIOCSPTLCK as _, &unlock))?;
        check(libc::ioctl(fd, libc::TIOCGPTN as _, &mut number))?;
        check(libc::ioctl(fd, libc::TIOCSWINSZ as _, &size))?;
        let path = CString::new(format!("/dev/pts/{number}")).expect("digits have no NUL");
        Ok((master, path))
    }
}

/// Whether the file can be executed by this process.
pub fn is_executable(path: &CStr) -> Result<()> {
    // SAFETY: the path is NUL-terminated.
    unsafe {
        let mut stat: libc::stat = mem::zeroed();
        check(libc::stat(path.as_ptr(), &mut stat))?;
        if stat.st_mode & libc::S_IFMT != libc::S_IFREG {
            return Err(Error::from_raw_os_error(libc::EACCES));
        }
        check(libc::access(path.as_ptr(), libc::X_OK)).map(drop)
    }
}

/// The three standard streams of a new command.
pub enum Streams<'a> {
    Given([BorrowedFd<'a>; 3]),
    /// The slave side of a pseudo-terminal, which becomes the controlling terminal.
    Tty(&'a CStr),
}

/// Starts a program in a session of its own with nothing but its three streams, no signal blocked, all at their defaults.
///
/// posix_spawn rather than fork: it shares memory until the exec, so its cost does not grow with this process.
pub fn spawn(path: &CStr, argv: &[CString], env: &[CString], streams: Streams<'_>) -> Result<i32> {
    let pointers = |list: &[CString]| -> Vec<*mut libc::c_char> {
        list.iter()
            .map(|word| word.as_ptr().cast_mut())
            .chain([ptr::null_mut()])
            .collect()
    };
    let (argv, env) = (pointers(argv), pointers(env));
    let code = |result: libc::c_int| {
        if result == 0 {
            Ok(())
        } else {
            Err(Error::from_raw_os_error(result))
        }
    };
    let mut actions = MaybeUninit::uninit();
    let mut attributes = MaybeUninit::uninit();
    let mut pid = 0;
    // SAFETY: actions and attributes are initialised by their init functions before use and destroyed once; all strings live until
    // posix_spawn returns; the pointer arrays end in null. In posix_spawn the session is made before the file actions, so that
    // opening a terminal without O_NOCTTY makes it the controlling one.
    unsafe {
        code(libc::posix_spawn_file_actions_init(actions.as_mut_ptr()))?;
        code(libc::posix_spawnattr_init(attributes.as_mut_ptr()))?;
        let result = (|| {
            match streams {
                Streams::Given(fds) => {
                    for (target, fd) in fds.iter().enumerate() {
                        let target = target as libc::c_int;
                        code(libc::posix_spawn_file_actions_adddup2(
                            actions.as_mut_ptr(),
                            fd.as_raw_fd(),
                            target,
                        ))?;
                    }
                }
                Streams::Tty(path) => {
                    code(libc::posix_spawn_file_actions_addopen(
                        actions.as_mut_ptr(),
                        0,
                        path.as_ptr(),
                        libc::O_RDWR,
                        0,
                    ))?;
                    code(libc::posix_spawn_file_actions_adddup2(actions.as_mut_ptr(), 0, 1))?;
                    code(libc::posix_spawn_file_actions_adddup2(actions.as_mut_ptr(), 0, 2))?;
                }
            }
            let mut set = MaybeUninit::<libc::sigset_t>::uninit();
            libc::sigemptyset(set.as_mut_ptr());
            code(libc::posix_spawnattr_setsigmask(attributes.as_mut_ptr(), set.as_ptr()))?;
            libc::sigfillset(set.as_mut_ptr());
            code(libc::posix_spawnattr_setsigdefault(
                attributes.as_mut_ptr(),
                set.as_ptr(),
            ))?;
            // POSIX_SPAWN_SETSID: the same value in musl and glibc; the libc crate names it for glibc only.
            const SETSID: libc::c_int = 0x80;
            let flags =
                SETSID | libc::POSIX_SPAWN_SETSIGMASK as libc::c_int | libc::POSIX_SPAWN_SETSIGDEF as libc::c_int;
            code(libc::posix_spawnattr_setflags(
                attributes.as_mut_ptr(),
                flags as libc::c_short,
            ))?;
            let (argv, env) = (argv.as_ptr(), env.as_ptr());
            code(libc::posix_spawn(
                &mut pid,
                path.as_ptr(),
                actions.as_ptr(),
                attributes.as_ptr(),
                argv,
                env,
            ))
        })();
        libc::posix_spawn_file_actions_destroy(actions.as_mut_ptr());
        libc::posix_spawnattr_destroy(attributes.as_mut_ptr());
        result?;
    }
    Ok(pid)
}
