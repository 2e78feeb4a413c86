//! The seccomp filter: an allow-list with a reason a line (`config/seccomp.json`), compiled when belljar starts.
//!
//! A call of another architecture (i386 through `int 0x80`) ends the process; one of x32 (number with bit 30) is no call of the
//! list and does not exist, as everything else that the list does not name.

use std::fmt::Write as _;
use std::sync::LazyLock;

use seccompiler::TargetArch;
use serde::{Deserialize, Serialize};

use crate::policy::Digest;
use crate::sys::process;

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
    pub allowed: Vec<Allowed>,
    /// An instruction a number, see `sys::process::pack`.
    pub program: Vec<u64>,
    pub digest: Digest,
}

/// Compiled once a process.
pub static FILTER: LazyLock<Filter> = LazyLock::new(compile);

fn compile() -> Filter {
    let list: List = serde_json::from_str(LIST).expect("the list is part of this program, and a test reads it");
    assert_eq!(list.version, 1, "the list is part of this program");
    let rules: Vec<_> = list.allow.iter().map(rule).collect();
    let json = serde_json::json!({
        "sandbox": { "mismatch_action": { "errno": libc_enosys() }, "match_action": "allow", "filter": rules }
    });
    let arch =
        TargetArch::try_from(std::env::consts::ARCH).expect("belljar builds for architectures that the compiler knows");
    let mut programs = seccompiler::compile_from_json(json.to_string().as_bytes(), arch)
        .expect("the list is part of this program, and a test compiles it");
    let program: Vec<_> = programs
        .remove("sandbox")
        .expect("it was asked for")
        .iter()
        .map(process::pack)
        .collect();
    let bytes: Vec<u8> = program.iter().flat_map(|word| word.to_le_bytes()).collect();
    Filter {
        allowed: list.allow,
        program,
        digest: Digest::of_bytes(&bytes),
    }
}

fn libc_enosys() -> i32 {
    rustix::io::Errno::NOSYS.raw_os_error()
}

fn rule(allowed: &Allowed) -> serde_json::Value {
    let mut rule = serde_json::json!({ "syscall": allowed.syscall });
    if !allowed.args.is_empty() {
        let args: Vec<_> = allowed
            .args
            .iter()
            .map(|arg| {
                let op = match arg.op {
                    Operator::Eq => serde_json::json!("eq"),
                    Operator::Ne => serde_json::json!("ne"),
                    Operator::MaskedEq(mask) => serde_json::json!({ "masked_eq": mask }),
                };
                serde_json::json!({ "index": arg.index, "type": "dword", "op": op, "val": arg.value })
            })
            .collect();
        rule["args"] = args.into();
    }
    rule
}

/// The list as text, a line a call, for people.
pub fn describe() -> String {
    let mut text = String::new();
    for allowed in &FILTER.allowed {
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
        assert!(FILTER.allowed.iter().all(|allowed| allowed.why.len() > 10));
        for (n, one) in FILTER.allowed.iter().enumerate() {
            let same =
                |other: &&Allowed| other.syscall == one.syscall && (other.args.is_empty() || one.args.is_empty());
            let twice = FILTER.allowed[n + 1..].iter().find(same);
            assert!(
                twice.is_none(),
                "{twice:?} says the same again, or opens what another line narrows"
            );
        }
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
            assert!(FILTER.allowed.iter().all(|allowed| allowed.syscall != name), "{name}");
        }
    }
}
