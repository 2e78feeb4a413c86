//! What a sandbox guarantees, by the names under which specs, requirements, records and `belljar doctor` speak of it.

use schemars::JsonSchema;
use serde::Serialize;

use crate::document::Word;

/// One guarantee of every sandbox. How far a machine can give it is found out by `sandbox::enforcement`.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, JsonSchema)]
pub enum Guarantee {
    /// User, mount, pid, net, ipc, uts and cgroup namespaces of its own.
    #[serde(rename = "namespaces")]
    Namespaces,
    /// No id inside is root's outside.
    #[serde(rename = "ids")]
    Ids,
    /// Only declared roots, opened without following links and attached by descriptor.
    #[serde(rename = "mounts")]
    Mounts,
    /// Files in roots keep their owner outside.
    #[serde(rename = "owners")]
    Owners,
    /// What the host's tools obey cannot be made, changed or replaced in writable roots.
    #[serde(rename = "protected_names")]
    ProtectedNames,
    /// What in /proc and /sys tells of the host, or changes it, is covered or read-only.
    #[serde(rename = "masked_paths")]
    MaskedPaths,
    /// A /dev of harmless devices, and none elsewhere.
    #[serde(rename = "devices")]
    Devices,
    #[serde(rename = "capabilities")]
    Capabilities,
    #[serde(rename = "no_new_privs")]
    NoNewPrivs,
    /// The allow-list of system calls.
    #[serde(rename = "seccomp")]
    Seccomp,
    /// unix, inet and inet6 only.
    #[serde(rename = "sockets")]
    Sockets,
    /// Nothing but loopback, and behind it belljar's own way out where the task has one.
    #[serde(rename = "network")]
    Network,
    #[serde(rename = "environment")]
    Environment,
    #[serde(rename = "descriptors")]
    Descriptors,
    #[serde(rename = "keyring")]
    Keyring,
    /// No exec reads the memory, environment or descriptors of another.
    #[serde(rename = "exec_isolation")]
    ExecIsolation,
    /// Bytes of the disposable layer.
    #[serde(rename = "limit.disk")]
    Disk,
    /// Files in the disposable layer.
    #[serde(rename = "limit.inodes")]
    Inodes,
    /// Open files of a process.
    #[serde(rename = "limit.open_files")]
    OpenFiles,
    /// Memory of the whole task, swap included.
    #[serde(rename = "limit.memory")]
    Memory,
    #[serde(rename = "limit.cpus")]
    Cpus,
    #[serde(rename = "limit.pids")]
    Pids,
}

impl Guarantee {
    pub fn all() -> impl Iterator<Item = Guarantee> {
        Self::WORDS.iter().map(|(_, guarantee)| *guarantee)
    }

    /// Whether it is a limit that may have been left to the defaults: such a one is only reported where it cannot be given.
    pub fn is_limit_by_cgroup(self) -> bool {
        matches!(self, Guarantee::Memory | Guarantee::Cpus | Guarantee::Pids)
    }
}

impl Word for Guarantee {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("namespaces", Guarantee::Namespaces),
        ("ids", Guarantee::Ids),
        ("mounts", Guarantee::Mounts),
        ("owners", Guarantee::Owners),
        ("protected_names", Guarantee::ProtectedNames),
        ("masked_paths", Guarantee::MaskedPaths),
        ("devices", Guarantee::Devices),
        ("capabilities", Guarantee::Capabilities),
        ("no_new_privs", Guarantee::NoNewPrivs),
        ("seccomp", Guarantee::Seccomp),
        ("sockets", Guarantee::Sockets),
        ("network", Guarantee::Network),
        ("environment", Guarantee::Environment),
        ("descriptors", Guarantee::Descriptors),
        ("keyring", Guarantee::Keyring),
        ("exec_isolation", Guarantee::ExecIsolation),
        ("limit.disk", Guarantee::Disk),
        ("limit.inodes", Guarantee::Inodes),
        ("limit.open_files", Guarantee::OpenFiles),
        ("limit.memory", Guarantee::Memory),
        ("limit.cpus", Guarantee::Cpus),
        ("limit.pids", Guarantee::Pids),
    ];
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guarantee_has_one_name_everywhere() {
        for guarantee in Guarantee::all() {
            assert_eq!(serde_json::json!(guarantee), guarantee.word());
        }
    }
}
