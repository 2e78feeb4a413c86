//! The bundle: what a [`Plan`] is in the words of the OCI runtime specification, for any runtime that speaks them.
//!
//! The runtime finds what the bundle names below [`WORK`], a disposable file system that only its own mount namespace has: the root
//! is made there and the binds are attached there, id-mapped, by the same code that serves the builtin launcher. Ids count as the
//! runtime sees them, inside the user namespace of the plan. Limits are not in the bundle: belljar's own cgroups hold them, and the
//! runtime starts inside of these.
//!
//! Format: <https://github.com/opencontainers/runtime-spec/blob/v1.0.2/config.md>.

use std::collections::HashMap;
use std::path::PathBuf;

use oci_spec::OciSpecError;
use oci_spec::runtime::{
    Capabilities, LinuxBuilder, LinuxCapabilitiesBuilder, LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespaceBuilder,
    LinuxNamespaceType, LinuxSeccomp, LinuxSeccompAction, LinuxSeccompArg, LinuxSeccompArgBuilder, LinuxSeccompBuilder,
    LinuxSeccompOperator, LinuxSyscall, LinuxSyscallBuilder, Mount, MountBuilder, PosixRlimit, PosixRlimitBuilder,
    PosixRlimitType, ProcessBuilder, RootBuilder, Spec, SpecBuilder, UserBuilder,
};

use super::host_root::NOTHING;
use super::launcher::Carry;
use super::plan::{Ids, Plan, Source};
use super::seccomp::{Allowed, Argument, Operator};
use crate::path::SandboxPath;
use crate::sys::mount::Attributes;

/// Where the runtime works, in its own mount namespace: a folder that every machine has, covered there.
pub const WORK: &str = "/tmp";

/// Below [`WORK`]: the root, the folder of the bundle, the runtime's own state, the guest's program, the binds by number.
pub const ROOT: &str = "root";
pub const BUNDLE: &str = "bundle";
pub const STATE: &str = "state";
pub const GUEST: &str = "guest";
pub const BINDS: &str = "mounts";

/// Below [`WORK`], for a runtime into which no descriptor can be passed: the socket to which the guest connects.
pub const CHANNEL: &str = "channel";

/// Where the guest's program lies inside.
pub const GUEST_INSIDE: &str = "/run/belljar/guest";

/// Where that socket lies inside.
pub const CHANNEL_INSIDE: &str = "/run/belljar/channel";

/// The version of the specification that is used: nothing newer is needed, and older runtimes refuse newer ones.
const VERSION: &str = "1.0.2";

/// The most that a process may be given on this machine; nobody but the host's root can raise it.
#[derive(Debug, Clone, Copy)]
pub struct HardLimits {
    pub open_files: u64,
    pub locked_bytes: u64,
    pub processes: u64,
}

impl HardLimits {
    pub fn of_process() -> Self {
        let hard = |resource| rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
        Self {
            open_files: hard(rustix::process::Resource::Nofile),
            locked_bytes: hard(rustix::process::Resource::Memlock),
            processes: hard(rustix::process::Resource::Nproc),
        }
    }
}

/// Locked memory a process: the kernel's own default.
pub const LOCKED_BYTES: u64 = 8 << 20;

/// The bundle's `config.json`.
pub fn of(plan: &Plan, allowed: &[Allowed], hard: HardLimits, carry: Carry) -> Result<Spec, OciSpecError> {
    let mut args = vec![GUEST_INSIDE.to_owned()];
    if carry == Carry::Stream {
        args.push(CHANNEL_INSIDE.to_owned());
    }
    let user = UserBuilder::default()
        .uid(plan.process.uid)
        .gid(plan.process.gid)
        .umask(0o022u32)
        .build()?;
    let none = Capabilities::new;
    let capabilities = LinuxCapabilitiesBuilder::default()
        .bounding(none())
        .effective(none())
        .inheritable(none())
        .permitted(none())
        .ambient(none())
        .build()?;
    let mut rlimits = vec![
        limit(
            PosixRlimitType::RlimitNofile,
            plan.process.open_files.min(hard.open_files),
        )?,
        limit(PosixRlimitType::RlimitCore, 0)?,
        limit(PosixRlimitType::RlimitMemlock, LOCKED_BYTES.min(hard.locked_bytes))?,
    ];
    if let Some(pids) = plan.process_limit() {
        rlimits.push(limit(PosixRlimitType::RlimitNproc, pids)?);
    }
    let process = ProcessBuilder::default()
        .terminal(false)
        .user(user)
        .args(args)
        .env(Vec::new())
        .cwd("/")
        .capabilities(capabilities)
        .rlimits(rlimits)
        .no_new_privileges(true)
        .build()?;
    let namespaces = [
        LinuxNamespaceType::User,
        LinuxNamespaceType::Mount,
        LinuxNamespaceType::Pid,
        LinuxNamespaceType::Network,
        LinuxNamespaceType::Ipc,
        LinuxNamespaceType::Uts,
        LinuxNamespaceType::Cgroup,
    ]
    .into_iter()
    .map(|kind| LinuxNamespaceBuilder::default().typ(kind).build())
    .collect::<Result<Vec<_>, _>>()?;
    let (uids, gids) = plan.ids.inner_maps(plan.process.uid);
    let texts = |paths: &[SandboxPath]| paths.iter().map(|path| path.as_str().to_owned()).collect::<Vec<_>>();
    let linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .uid_mappings(mappings(&uids)?)
        .gid_mappings(mappings(&gids)?)
        .seccomp(seccomp(allowed, carry)?)
        // Anybody inside may listen on any port of the sandbox's own loopback, as with the builtin launcher.
        .sysctl(HashMap::from([(
            "net.ipv4.ip_unprivileged_port_start".to_owned(),
            "0".to_owned(),
        )]))
        .masked_paths(texts(&plan.masked))
        .readonly_paths(texts(&plan.read_only))
        .build()?;
    SpecBuilder::default()
        .version(VERSION)
        .root(
            RootBuilder::default()
                .path(format!("{WORK}/{ROOT}"))
                .readonly(false)
                .build()?,
        )
        .hostname(plan.hostname.clone())
        .process(process)
        .mounts(mounts(plan, carry)?)
        .linux(linux)
        .build()
}

fn limit(kind: PosixRlimitType, value: u64) -> Result<PosixRlimit, OciSpecError> {
    PosixRlimitBuilder::default().typ(kind).soft(value).hard(value).build()
}

fn mappings(ranges: &[crate::sys::namespace::IdRange]) -> Result<Vec<LinuxIdMapping>, OciSpecError> {
    ranges
        .iter()
        .map(|range| {
            LinuxIdMappingBuilder::default()
                .container_id(range.inside)
                .host_id(range.outside)
                .size(range.count)
                .build()
        })
        .collect()
}

/// Devices in gVisor's /dev that no plan asks for. Faults were found in what lies behind one of them (CVE-2026-96812): an empty file is
/// put over each.
pub const DEVICES_OF_GVISOR: [&str; 2] = ["/dev/fuse", "/dev/net/tun"];

fn covers_of_gvisor() -> Result<Vec<Mount>, OciSpecError> {
    let attributes = Attributes {
        read_only: true,
        no_suid: true,
        no_dev: true,
        no_exec: true,
    };
    let cover = |device: &str| {
        let mut options = vec!["bind".to_owned()];
        options.extend(flags(attributes));
        MountBuilder::default()
            .destination(device)
            .typ("bind")
            .source(format!("{WORK}/{ROOT}{NOTHING}"))
            .options(options)
            .build()
    };
    DEVICES_OF_GVISOR.into_iter().map(cover).collect()
}

fn mounts(plan: &Plan, carry: Carry) -> Result<Vec<Mount>, OciSpecError> {
    let mut mounts = Vec::new();
    let mut binds = 0;
    for mount in &plan.mounts {
        let (kind, source, more): (&str, PathBuf, Vec<String>) = match &mount.source {
            Source::Bind { .. } => {
                let source = format!("{WORK}/{BINDS}/{binds}");
                binds += 1;
                // What is mounted below comes along where the kernel does not let one look under it; see `setup`.
                ("bind", source.into(), vec!["rbind".to_owned(), "rprivate".to_owned()])
            }
            Source::Tmpfs { bytes, inodes, mode } => (
                "tmpfs",
                "tmpfs".into(),
                vec![
                    format!("size={bytes}"),
                    format!("nr_inodes={inodes}"),
                    format!("mode={mode:o}"),
                ],
            ),
            Source::Proc => ("proc", "proc".into(), Vec::new()),
            Source::Sysfs => ("sysfs", "sysfs".into(), Vec::new()),
            Source::Devpts => (
                "devpts",
                "devpts".into(),
                ["newinstance", "ptmxmode=0666", "mode=0620"]
                    .map(str::to_owned)
                    .to_vec(),
            ),
            Source::Mqueue => ("mqueue", "mqueue".into(), Vec::new()),
            // The specification gives every container these devices, and the links of /dev.
            Source::Device { .. } => continue,
            // These lie in the binds already, and come along with them.
            Source::Itself { .. } | Source::Nothing { .. } => continue,
        };
        let mut options = more;
        options.extend(flags(mount.attributes));
        if mount.path.as_str() == "/dev" && carry == Carry::Descriptors {
            // Read-only once the runtime has made what belongs there. gVisor would take that for the devices themselves; there it is
            // root's, and disposable.
            options.push("ro".to_owned());
        }
        mounts.push(
            MountBuilder::default()
                .destination(mount.path.as_str())
                .typ(kind)
                .source(source)
                .options(options)
                .build()?,
        );
    }
    let own = Attributes {
        read_only: true,
        no_suid: true,
        no_dev: true,
        no_exec: false,
    };
    let mut ours = vec![(GUEST, GUEST_INSIDE)];
    if carry == Carry::Stream {
        ours.push((CHANNEL, CHANNEL_INSIDE));
    }
    for (name, inside) in ours {
        let mut options = vec!["bind".to_owned(), "private".to_owned()];
        options.extend(flags(own));
        mounts.push(
            MountBuilder::default()
                .destination(inside)
                .typ("bind")
                .source(format!("{WORK}/{name}"))
                .options(options)
                .build()?,
        );
    }
    if carry == Carry::Stream {
        mounts.extend(covers_of_gvisor()?);
    }
    Ok(mounts)
}

fn flags(attributes: Attributes) -> impl Iterator<Item = String> {
    [
        (attributes.read_only, "ro"),
        (attributes.no_suid, "nosuid"),
        (attributes.no_dev, "nodev"),
        (attributes.no_exec, "noexec"),
    ]
    .into_iter()
    .filter(|(set, _)| *set)
    .map(|(_, name)| name.to_owned())
}

/// The filter in the words of the specification.
pub fn seccomp(allowed: &[Allowed], carry: Carry) -> Result<LinuxSeccomp, OciSpecError> {
    match carry {
        Carry::Descriptors => seccomp_of_linux(allowed),
        Carry::Stream => seccomp_of_gvisor(allowed),
    }
}

fn seccomp_of_linux(allowed: &[Allowed]) -> Result<LinuxSeccomp, OciSpecError> {
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActErrno)
        .default_errno_ret(rustix::io::Errno::NOSYS.raw_os_error() as u32)
        .syscalls(entries(allowed)?)
        .build()
}

fn entries(allowed: &[Allowed]) -> Result<Vec<LinuxSyscall>, OciSpecError> {
    let mut syscalls = Vec::new();
    // Calls that are allowed whatever their arguments share one entry.
    let plain: Vec<_> = allowed
        .iter()
        .filter(|one| one.args.is_empty())
        .map(|one| one.syscall.clone())
        .collect();
    syscalls.push(entry(plain, Vec::new())?);
    for one in allowed.iter().filter(|one| !one.args.is_empty()) {
        for args in alternatives(&one.args) {
            syscalls.push(entry(vec![one.syscall.clone()], args)?);
        }
    }
    Ok(syscalls)
}

/// As all architectures number them.
const SIGCHLD: u64 = 17;
const S_IFMT: u32 = 0o170_000;

/// The same for gVisor, whose filter says EPERM where a list asks for another error: for glibc that is an answer, where it would go on
/// with an older call at ENOSYS, and no thread could be made. A call that a tracer is to be asked about, where there is none, ends in
/// ENOSYS there as on Linux, and nobody inside may trace.
fn seccomp_of_gvisor(allowed: &[Allowed]) -> Result<LinuxSeccomp, OciSpecError> {
    // Its PID 1 can be killed by who has the same user, which ends the sandbox; in these calls the first argument says whom.
    const SIGNALS: [&str; 6] = [
        "kill",
        "tkill",
        "tgkill",
        "rt_sigqueueinfo",
        "rt_tgsigqueueinfo",
        "pidfd_open",
    ];
    // In its memory file systems anybody may make a device, and what it has behind one opens (/dev/fuse, /dev/net/tun): only what is
    // no device can be made. Which argument says what it is.
    const NODES: [(&str, u8); 2] = [("mknod", 1), ("mknodat", 2)];
    const HARMLESS: [u32; 4] = [0, 0o010_000, 0o100_000, 0o140_000];
    let is_other = |one: &&Allowed| {
        let name = one.syscall.as_str();
        !SIGNALS.contains(&name) && !NODES.iter().any(|(node, _)| *node == name)
    };
    let rest: Vec<_> = allowed.iter().filter(is_other).cloned().collect();
    let mut syscalls = entries(&rest)?;
    for (name, index) in NODES {
        for value in HARMLESS {
            let mode = Masked {
                index,
                mask: S_IFMT,
                value,
            };
            syscalls.push(entry(vec![name.to_owned()], vec![mode])?);
        }
    }
    let argument = |index: usize, operator, value: u64| {
        let argument = LinuxSeccompArgBuilder::default().index(index).op(operator);
        argument.value(value).build()
    };
    let allow = |names: Vec<String>, args: Vec<LinuxSeccompArg>| {
        let entry = LinuxSyscallBuilder::default().names(names).args(args);
        entry.action(LinuxSeccompAction::ScmpActAllow).build()
    };
    let is_allowed = |name: &&str| allowed.iter().any(|one| one.syscall == **name);
    let names = SIGNALS.into_iter().filter(is_allowed).map(str::to_owned).collect();
    let not_first = vec![argument(0, LinuxSeccompOperator::ScmpCmpNe, 1)?];
    syscalls.push(allow(names, not_first)?);
    // A slot asks PID 1 to end what its command left, where the kernel knows no subreapers.
    let asked = vec![
        argument(0, LinuxSeccompOperator::ScmpCmpEq, 1)?,
        argument(1, LinuxSeccompOperator::ScmpCmpEq, SIGCHLD)?,
    ];
    syscalls.push(allow(vec!["kill".to_owned()], asked)?);
    LinuxSeccompBuilder::default()
        .default_action(LinuxSeccompAction::ScmpActTrace)
        .syscalls(syscalls)
        .build()
}

fn entry(names: Vec<String>, args: Vec<Masked>) -> Result<LinuxSyscall, OciSpecError> {
    let entry = LinuxSyscallBuilder::default()
        .names(names)
        .action(LinuxSeccompAction::ScmpActAllow);
    if args.is_empty() {
        return entry.build();
    }
    let args = args
        .into_iter()
        .map(Masked::argument)
        .collect::<Result<Vec<_>, OciSpecError>>()?;
    entry.args(args).build()
}

/// What an argument must be in the bits of a mask: the one comparison that says nothing about the upper 32 bits, which the kernel
/// does not look at either.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Masked {
    index: u8,
    mask: u32,
    value: u32,
}

impl Masked {
    fn argument(self) -> Result<LinuxSeccompArg, OciSpecError> {
        LinuxSeccompArgBuilder::default()
            .index(usize::from(self.index))
            .op(LinuxSeccompOperator::ScmpCmpMaskedEq)
            .value(u64::from(self.mask))
            .value_two(u64::from(self.value))
            .build()
    }
}

/// The conditions of one line as entries of which one must hold, at most one comparison an argument in each: a runtime takes two
/// comparisons of one argument as alternatives, which would open what "neither this nor that" closes.
fn alternatives(arguments: &[Argument]) -> Vec<Vec<Masked>> {
    let mut indexes: Vec<u8> = arguments.iter().map(|argument| argument.index).collect();
    indexes.sort_unstable();
    indexes.dedup();
    let mut alternatives = vec![Vec::new()];
    for index in indexes {
        let of_index: Vec<_> = arguments.iter().filter(|argument| argument.index == index).collect();
        let choices = choices(index, &of_index);
        alternatives = alternatives
            .iter()
            .flat_map(|before| {
                choices.iter().map(move |choice| {
                    let mut all: Vec<Masked> = before.clone();
                    all.push(*choice);
                    all
                })
            })
            .collect();
    }
    alternatives
}

fn choices(index: u8, arguments: &[&Argument]) -> Vec<Masked> {
    let mut unwanted = Vec::new();
    let mut wanted: Option<Masked> = None;
    for argument in arguments {
        let value = argument.value as u32;
        let (mask, value) = match argument.op {
            Operator::Ne => {
                unwanted.push(value);
                continue;
            }
            Operator::Eq => (u32::MAX, value),
            Operator::MaskedEq(mask) => (mask as u32, value & mask as u32),
        };
        let before = wanted.unwrap_or(Masked {
            index,
            mask: 0,
            value: 0,
        });
        if (before.value ^ value) & before.mask & mask != 0 {
            // Two things that cannot both hold: nothing is allowed.
            return Vec::new();
        }
        wanted = Some(Masked {
            index,
            mask: before.mask | mask,
            value: before.value | value,
        });
    }
    let Some(wanted) = wanted else {
        return all_but(index, &unwanted);
    };
    all_but(index, &unwanted)
        .into_iter()
        .filter(|one| (one.value ^ wanted.value) & one.mask & wanted.mask == 0)
        .map(|one| Masked {
            index,
            mask: one.mask | wanted.mask,
            value: one.value | wanted.value,
        })
        .collect()
}

/// All numbers but some, as prefixes: each stands for the numbers that leave the unwanted ones at one bit.
fn all_but(index: u8, unwanted: &[u32]) -> Vec<Masked> {
    let mut prefixes = Vec::new();
    // Prefixes that some unwanted number has, by what their next bit is.
    let mut inhabited = vec![Masked {
        index,
        mask: 0,
        value: 0,
    }];
    if unwanted.is_empty() {
        return inhabited;
    }
    for bit in (0..32).rev() {
        let mut next = Vec::new();
        for prefix in inhabited {
            for value in [prefix.value, prefix.value | 1 << bit] {
                let longer = Masked {
                    index,
                    mask: prefix.mask | 1 << bit,
                    value,
                };
                match unwanted.iter().any(|one| one & longer.mask == longer.value) {
                    true => next.push(longer),
                    false => prefixes.push(longer),
                }
            }
        }
        inhabited = next;
    }
    prefixes
}

impl Ids {
    /// The maps of the container's user namespace, within the one that the runtime itself runs in.
    fn inner_maps(&self, user: u32) -> (Vec<crate::sys::namespace::IdRange>, Vec<crate::sys::namespace::IdRange>) {
        let (mut uids, mut gids) = self.maps(user);
        for range in uids.iter_mut().chain(&mut gids) {
            range.outside = range.inside;
        }
        (uids, gids)
    }
}

#[cfg(test)]
mod tests;
