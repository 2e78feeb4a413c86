//! Giving up all that copying between sockets does not need.

use std::io::{Error, Result};
use std::os::fd::RawFd;

use super::check;

/// What this program may still ask of the kernel: to copy, to wait, to pass messages, memory, and its end. No new descriptor but by
/// a message, no path, no process.
const ALLOWED: &[libc::c_long] = &[
    libc::SYS_read,
    libc::SYS_write,
    libc::SYS_recvmsg,
    libc::SYS_sendmsg,
    libc::SYS_epoll_pwait,
    libc::SYS_epoll_ctl,
    libc::SYS_shutdown,
    libc::SYS_close,
    // The allocator.
    libc::SYS_brk,
    libc::SYS_mmap,
    libc::SYS_munmap,
    libc::SYS_mremap,
    libc::SYS_madvise,
    // Where the kernel's page for it is missing.
    libc::SYS_clock_gettime,
    libc::SYS_exit,
    libc::SYS_exit_group,
];

/// The number by which the kernel calls this architecture (`AUDIT_ARCH_*` of linux/audit.h): a call under another one's numbers is
/// none of these.
const ARCHITECTURE: u32 = if cfg!(target_arch = "x86_64") {
    0xc000_003e
} else if cfg!(target_arch = "aarch64") {
    0xc000_00b7
} else if cfg!(target_arch = "riscv64") {
    0xc000_00f3
} else {
    panic!("the filter is written for x86_64, aarch64 and riscv64")
};

/// Closes every descriptor from this number on.
pub fn close_from(first: RawFd) -> Result<()> {
    // SAFETY: it is called before anything of this program has a descriptor of such a number.
    check(unsafe { libc::syscall(libc::SYS_close_range, first, libc::c_uint::MAX, 0) } as libc::c_int).map(drop)
}

/// Gives up every capability, and every call but those that copying needs: another one ends this program. For good.
pub fn confine() -> Result<()> {
    #[repr(C)]
    struct Header {
        version: u32,
        pid: libc::c_int,
    }
    // _LINUX_CAPABILITY_VERSION_3; for this process.
    let header = Header {
        version: 0x2008_0522,
        pid: 0,
    };
    let nothing = [0u32; 6];
    let filter = filter();
    let program = libc::sock_fprog {
        len: filter.len() as libc::c_ushort,
        filter: filter.as_ptr().cast_mut(),
    };
    // SAFETY: capset(2) reads a header and two triples of this version; the filter lives until prctl(2) has copied it.
    unsafe {
        check(libc::syscall(libc::SYS_capset, &raw const header, nothing.as_ptr()) as libc::c_int)?;
        check(libc::prctl(libc::PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0))?;
        match libc::prctl(
            libc::PR_SET_SECCOMP,
            libc::SECCOMP_MODE_FILTER,
            &raw const program,
            0,
            0,
        ) {
            0 => Ok(()),
            _ => Err(Error::last_os_error()),
        }
    }
}

fn filter() -> Vec<libc::sock_filter> {
    const LOAD: u32 = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
    const JUMP_IF_EQUAL: u32 = libc::BPF_JMP | libc::BPF_JEQ | libc::BPF_K;
    const RETURN: u32 = libc::BPF_RET | libc::BPF_K;
    // struct seccomp_data: the number of the call, then the architecture.
    const NUMBER: u32 = 0;
    const ARCH: u32 = 4;
    let step = |code: u32, k: u32, jf: u8| libc::sock_filter {
        code: code as u16,
        jt: 0,
        jf,
        k,
    };
    let (kill, allow) = (
        step(RETURN, libc::SECCOMP_RET_KILL_PROCESS, 0),
        step(RETURN, libc::SECCOMP_RET_ALLOW, 0),
    );
    // A jump over the kill, or over the leave, to what follows it.
    let mut filter = vec![
        step(LOAD, ARCH, 0),
        libc::sock_filter {
            jt: 1,
            ..step(JUMP_IF_EQUAL, ARCHITECTURE, 0)
        },
        kill,
        step(LOAD, NUMBER, 0),
    ];
    for number in ALLOWED {
        filter.extend([step(JUMP_IF_EQUAL, *number as u32, 1), allow]);
    }
    filter.push(kill);
    filter
}

#[cfg(test)]
mod tests {
    use super::super::{Fork, Reap, fork, reap};
    use super::*;

    #[test]
    fn who_is_confined_copies_and_does_nothing_else() {
        let status = |what: fn()| match fork().unwrap() {
            Fork::Child => {
                confine().unwrap();
                what();
                // SAFETY: exit_group ends this process and nothing else.
                unsafe { libc::_exit(0) }
            }
            Fork::Parent(child) => loop {
                match reap().unwrap() {
                    Reap::One(one) if one.pid == child => break one.status,
                    Reap::One(_) | Reap::Running => std::thread::yield_now(),
                    Reap::None => panic!("the child is somebody else's"),
                }
            },
        };
        assert_eq!(status(|| {}), 0);
        let killed = |status: i32| libc::WIFSIGNALED(status) && libc::WTERMSIG(status) == libc::SIGSYS;
        // SAFETY: the calls name nothing that is there.
        assert!(killed(status(|| unsafe {
            libc::socket(libc::AF_INET, libc::SOCK_STREAM, 0);
        })));
        // SAFETY: as above.
        assert!(killed(status(|| unsafe {
            libc::open(c"/etc/passwd".as_ptr(), libc::O_RDONLY);
        })));
    }
}
