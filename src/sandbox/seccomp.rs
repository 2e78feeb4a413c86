//! The seccomp filter: an allow-list with a reason a line (`config/seccomp.json`), compiled when belljar is built.
//!
//! A call of another architecture (i386 through `int 0x80`) ends the process; one of x32 (number with bit 30) is no call of the
//! list and does not exist, as everything else that the list does not name.

use std::fmt::Write as _;
use std::sync::LazyLock;

use serde::{Deserialize, Serialize};

use crate::policy::Digest;

/// The list as it stands in the repository.
static LIST: &str = include_str!("../../config/seccomp.json");

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct List {
    version: u32,
    #[serde(rename = "default")]
    _default: String,
    allow: Vec<Allowed>,
}

/// One system call that is allowed, perhaps only with some arguments.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Allowed {
    pub syscall: String,
    #[serde(default)]
    pub args: Vec<Argument>,
    pub why: String,
}

/// What an argument (counted from 0, its lower 32 bits) must be.
#[derive(Debug, Clone, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Argument {
    pub index: u8,
    pub op: Operator,
    pub value: u64,
}

#[derive(Debug, Clone, Copy, Deserialize, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Operator {
    Eq,
    Ne,
    /// Equal in the bits of the mask.
    MaskedEq(u64),
}

/// The filter for this machine.
#[derive(Debug)]
pub struct Filter {
    /// An instruction a number: the eight bytes of a `struct sock_filter`, so that a program can travel in a message.
    pub program: Vec<u64>,
    pub digest: Digest,
}

/// Compiled when belljar was built, see `build/seccomp.rs`.
pub static FILTER: LazyLock<Filter> = LazyLock::new(|| Filter {
    program: PROGRAM
        .as_chunks()
        .0
        .iter()
        .map(|word| u64::from_le_bytes(*word))
        .collect(),
    digest: Digest::of_bytes(PROGRAM),
});

static PROGRAM: &[u8] = include_bytes!(env!("BELLJAR_SECCOMP"));

/// The list that the filter was compiled from.
pub static ALLOWED: LazyLock<Vec<Allowed>> = LazyLock::new(|| {
    let list: List = serde_json::from_str(LIST).expect("the list is part of this program, and a test reads it");
    assert_eq!(list.version, 1, "the list is part of this program");
    list.allow
});

/// The list as text, a line a call, for people.
pub fn describe() -> String {
    let mut text = String::new();
    for allowed in ALLOWED.iter() {
        let _ = writeln!(text, "{}: {}", allowed.syscall, allowed.why);
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_list_compiles_and_every_line_has_its_reason() {
        assert!(FILTER.program.len() > 100);
        assert!(ALLOWED.iter().all(|allowed| allowed.why.len() > 10));
        for (n, one) in ALLOWED.iter().enumerate() {
            let same =
                |other: &&Allowed| other.syscall == one.syscall && (other.args.is_empty() || one.args.is_empty());
            let twice = ALLOWED[n + 1..].iter().find(same);
            assert!(
                twice.is_none(),
                "{twice:?} says the same again, or opens what another line narrows"
            );
        }
    }

    /// What the kernel does with a program of the few instructions that such filters are made of: linux `net/core/filter.c`.
    fn judge(program: &[u64], data: &[u32; 16]) -> u32 {
        let (mut at, mut register) = (0, 0_u32);
        loop {
            let word = program[at];
            let (code, jt, jf, k) = (word as u16, word >> 16 & 0xff, word >> 24 & 0xff, (word >> 32) as u32);
            let jump = |is_true: bool| if is_true { jt as usize } else { jf as usize };
            at += 1;
            match code {
                0x20 => register = data[k as usize / 4],
                0x05 => at += k as usize,
                0x15 => at += jump(register == k),
                0x25 => at += jump(register > k),
                0x35 => at += jump(register >= k),
                0x45 => at += jump(register & k != 0),
                0x54 => register &= k,
                0x06 => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    /// The library's own program for a part of the list.
    fn library(part: &[&Allowed]) -> Vec<u64> {
        let rules: Vec<_> = part
            .iter()
            .map(|allowed| {
                let argument = |arg: &Argument| {
                    serde_json::json!({ "index": arg.index, "type": "dword", "op": arg.op, "val": arg.value })
                };
                match allowed.args.is_empty() {
                    true => serde_json::json!({ "syscall": allowed.syscall }),
                    false => serde_json::json!({
                        "syscall": allowed.syscall,
                        "args": allowed.args.iter().map(argument).collect::<Vec<_>>()
                    }),
                }
            })
            .collect();
        let filter = serde_json::json!({ "part": {
            "mismatch_action": { "errno": rustix::io::Errno::NOSYS.raw_os_error() },
            "match_action": "allow",
            "filter": rules
        } });
        let arch = std::env::consts::ARCH.try_into().unwrap();
        let programs = seccompiler::compile_from_json(filter.to_string().as_bytes(), arch).unwrap();
        let word = |one: &seccompiler::sock_filter| {
            u64::from(one.code) | u64::from(one.jt) << 16 | u64::from(one.jf) << 24 | u64::from(one.k) << 32
        };
        programs["part"].iter().map(word).collect()
    }

    #[test]
    fn the_filter_decides_as_the_library_would_over_the_whole_list() {
        let whole = library(&ALLOWED.iter().collect::<Vec<_>>());
        let native = (whole[1] >> 32) as u32;
        let same = |number: u32, arch: u32, args: [u32; 3]| {
            let mut data = [0; 16];
            (data[0], data[1], data[4], data[6], data[8]) = (number, arch, args[0], args[1], args[2]);
            let decided = judge(&FILTER.program, &data);
            assert_eq!(decided, judge(&whole, &data), "{number:#x} {arch:#x} {args:x?}");
            decided
        };
        let x32 = 0x4000_0000;
        for number in (0..1024).chain(x32..x32 + 1024).chain([u32::MAX]) {
            for args in [[0, 0, 0], [u32::MAX, 1, u32::MAX]] {
                same(number, native, args);
                same(number, 0x4000_0003, args);
            }
        }
        // Where arguments decide, all that stands in the list is tried, and what lies beside it.
        let (mut allowed, mut refused) = (0, 0);
        for call in ALLOWED.iter().filter(|call| !call.args.is_empty()) {
            let number = (library(&[call])[4] >> 32) as u32;
            let mut values: Vec<u32> = (0..8).collect();
            let listed = ALLOWED
                .iter()
                .filter(|one| one.syscall == call.syscall)
                .flat_map(|one| &one.args);
            values.extend(listed.flat_map(|arg| {
                let value = arg.value as u32;
                [value.wrapping_sub(1), value, value.wrapping_add(1), value | 0x8000_0000]
            }));
            for first in &values {
                for second in &values {
                    for third in [0, 1, 6, 17] {
                        match same(number, native, [*first, *second, third]) {
                            0x7fff_0000 => allowed += 1,
                            _ => refused += 1,
                        }
                    }
                }
            }
        }
        assert!(allowed > 100 && refused > 100, "{allowed} {refused}");
    }

    /// The kernel walks through it for every number there is when a sandbox starts.
    #[test]
    fn the_filter_is_a_search_and_not_a_list() {
        assert!(FILTER.program.len() < 600, "{} instructions", FILTER.program.len());
    }

    #[test]
    fn what_reaches_around_a_sandbox_is_not_on_the_list() {
        for name in [
            "mount",
            "umount2",
            "move_mount",
            "open_tree",
            "fsopen",
            "fsmount",
            "mount_setattr",
            "pivot_root",
            "chroot",
            "setns",
            "unshare",
            "clone3",
            "bpf",
            "perf_event_open",
            "io_uring_setup",
            "io_uring_enter",
            "io_uring_register",
            "userfaultfd",
            "ptrace",
            "process_vm_readv",
            "process_vm_writev",
            "process_madvise",
            "kcmp",
            "pidfd_getfd",
            "keyctl",
            "add_key",
            "request_key",
            "init_module",
            "finit_module",
            "kexec_load",
            "reboot",
            "swapon",
            "quotactl",
            "open_by_handle_at",
            "name_to_handle_at",
            "fanotify_init",
            "lookup_dcookie",
            "modify_ldt",
            "iopl",
            "ioperm",
            "settimeofday",
            "clock_settime",
            "adjtimex",
            "syslog",
            "acct",
            "nfsservctl",
            "vhangup",
            "sethostname",
            "setdomainname",
        ] {
            assert!(ALLOWED.iter().all(|allowed| allowed.syscall != name), "{name}");
        }
    }
}
