//! How far a machine can give what a sandbox guarantees, guarantee by guarantee, and which of it a task does without.
//!
//! Every step of a setup either succeeds or ends the sandbox before anything runs in it, so what is asked of the kernel holds in
//! full. What may be less is listed here: names that no mount can hold, execs that the kernel does not keep apart, limits that
//! the machine's cgroups do not have.

use std::collections::BTreeSet;

use crate::audit::record::{Control, Enforced};
use crate::document::Word as _;
use crate::sys::cgroup::Cgroups;
use crate::sys::landlock;
use crate::task::{Guarantee, Task};

/// What is known of a machine, and of a task's roots, before a sandbox is made.
#[derive(Debug)]
pub struct Facts<'a> {
    pub cgroups: &'a Cgroups,
    /// Why protected names cannot be held in full; see `protect`.
    pub gaps: &'a [String],
    /// The kernel's version of Landlock, where it has one.
    pub landlock: Option<u32>,
}

impl<'a> Facts<'a> {
    pub fn of_machine(cgroups: &'a Cgroups, gaps: &'a [String]) -> Self {
        Facts {
            cgroups,
            gaps,
            landlock: landlock::version().ok(),
        }
    }

    /// Every guarantee with how far it is kept. Limits of cgroups are in it where `asked` says so.
    pub fn controls(&self, asked: impl Fn(Guarantee) -> bool) -> Vec<Control> {
        Guarantee::all()
            .filter(|guarantee| !guarantee.is_limit_by_cgroup() || asked(*guarantee))
            .map(|guarantee| {
                let (enforced, reason) = match self.lack(guarantee) {
                    None => (Enforced::Full, None),
                    Some((enforced, reason)) => (enforced, Some(reason)),
                };
                Control {
                    control: guarantee.word().to_owned(),
                    enforced,
                    reason,
                }
            })
            .collect()
    }

    /// Why a guarantee is not kept in full.
    fn lack(&self, guarantee: Guarantee) -> Option<(Enforced, String)> {
        let can = self.cgroups.controls();
        match guarantee {
            Guarantee::ProtectedNames if !self.gaps.is_empty() => Some((Enforced::Partial, self.gaps.join("; "))),
            // The first version cannot leave moving files between folders as it is.
            Guarantee::ExecIsolation if self.landlock.is_none_or(|version| version < 2) => {
                let why = "this kernel has no Landlock of version 2 (Linux 5.19), so commands of one task can read each other's \
                           environment, memory and descriptors";
                Some((Enforced::Partial, why.to_owned()))
            }
            Guarantee::Memory if !can.memory => Some(self.no_controller("memory")),
            Guarantee::Memory if !can.swap => {
                let why = "the kernel does not count swap by cgroup, so a task at its limit goes on in the machine's swap \
                           (needed: swapaccount=1, or no swap)";
                Some((Enforced::Partial, why.to_owned()))
            }
            Guarantee::Cpus if !can.cpu => Some(self.no_controller("cpu")),
            Guarantee::Pids if !can.pids => {
                let (_, why) = self.no_controller("pids");
                let what = "held by the user's own limit of processes, which kernels before Linux 5.14 count over all of the user's";
                Some((Enforced::Partial, format!("{what}; {why}")))
            }
            Guarantee::Namespaces
            | Guarantee::Ids
            | Guarantee::Mounts
            | Guarantee::Owners
            | Guarantee::ProtectedNames
            | Guarantee::MaskedPaths
            | Guarantee::Devices
            | Guarantee::Capabilities
            | Guarantee::NoNewPrivs
            | Guarantee::Seccomp
            | Guarantee::Sockets
            | Guarantee::Network
            | Guarantee::Environment
            | Guarantee::Descriptors
            | Guarantee::Keyring
            | Guarantee::ExecIsolation
            | Guarantee::Disk
            | Guarantee::Inodes
            | Guarantee::OpenFiles
            | Guarantee::Memory
            | Guarantee::Cpus
            | Guarantee::Pids => None,
        }
    }

    fn no_controller(&self, name: &str) -> (Enforced, String) {
        let why = match &self.cgroups.why {
            Some(why) => why.clone(),
            None => format!("there is no {name} controller"),
        };
        (
            Enforced::None,
            format!("{why} (needed: root, or a delegated cgroup v2)"),
        )
    }
}

/// Puts what a backend gives less of in the place of what belljar's own launcher would give.
pub fn weaken(controls: &mut [Control], less: Vec<Control>) {
    for one in less {
        // What is not among them is a limit that nobody asked for; and the machine may give less still.
        let mut given = controls.iter_mut().filter(|given| given.control == one.control);
        if let Some(given) = given.next().filter(|given| given.enforced < one.enforced) {
            *given = one;
        }
    }
}

/// What a task asks of its limits: those that it has at all.
pub fn has_limit(task: &Task, guarantee: Guarantee) -> bool {
    match guarantee {
        Guarantee::Memory => task.limits.memory.is_some(),
        Guarantee::Cpus => task.limits.cpus.is_some(),
        Guarantee::Pids => task.limits.pids.is_some(),
        _ => true,
    }
}

/// The guarantees because of which a task must not start: not kept in full, and neither accepted so nor a limit that nobody named.
pub fn lacking<'c>(controls: &'c [Control], task: &Task) -> Vec<&'c Control> {
    let named: BTreeSet<&str> = task.named_limits.iter().map(|limit| limit.word()).collect();
    let accepted: BTreeSet<&str> = task.accept_partial.iter().map(|guarantee| guarantee.word()).collect();
    let is_demanded = |control: &Control| {
        let is_default = Guarantee::read(&control.control)
            .is_ok_and(|guarantee| guarantee.is_limit_by_cgroup() && !named.contains(guarantee.word()));
        !is_default && !accepted.contains(control.control.as_str())
    };
    controls
        .iter()
        .filter(|control| control.enforced != Enforced::Full && is_demanded(control))
        .collect()
}

/// A control that is not kept in full, for people: its name, how far, why.
pub fn describe(control: &Control) -> String {
    let how = match control.enforced {
        Enforced::Full => "in full",
        Enforced::Partial => "only in part",
        Enforced::None => "not at all",
    };
    let why = control.reason.as_deref().unwrap_or("for a reason unknown");
    format!("{} can be enforced {how} here: {why}", control.control)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn of<'c>(controls: &'c [Control], name: &str) -> &'c Control {
        controls.iter().find(|control| control.control == name).unwrap()
    }

    #[test]
    fn what_a_machine_lacks_is_said_with_its_reason_and_the_rest_is_full() {
        let cgroups = Cgroups::none("read-only");
        let gaps = ["/workspace: too many files".to_owned()];
        let facts = Facts {
            cgroups: &cgroups,
            gaps: &gaps,
            landlock: Some(1),
        };
        let controls = facts.controls(|_| true);
        let weak: Vec<_> = controls
            .iter()
            .filter(|control| control.enforced != Enforced::Full)
            .map(|control| (control.control.as_str(), control.enforced))
            .collect();
        assert_eq!(
            weak,
            [
                ("protected_names", Enforced::Partial),
                ("exec_isolation", Enforced::Partial),
                ("limit.memory", Enforced::None),
                ("limit.cpus", Enforced::None),
                ("limit.pids", Enforced::Partial),
            ]
        );
        assert_eq!(
            describe(of(&controls, "limit.cpus")),
            "limit.cpus can be enforced not at all here: read-only (needed: root, or a delegated cgroup v2)"
        );
    }

    #[test]
    fn a_backend_makes_a_guarantee_weaker_and_never_stronger() {
        let control = |name: &str, enforced| Control {
            control: name.to_owned(),
            enforced,
            reason: None,
        };
        let mut controls = vec![control("mounts", Enforced::Full), control("limit.pids", Enforced::None)];
        let less = ["mounts", "limit.pids", "limit.cpus"].map(|name| control(name, Enforced::Partial));
        weaken(&mut controls, less.to_vec());
        assert_eq!(
            controls,
            [
                control("mounts", Enforced::Partial),
                control("limit.pids", Enforced::None)
            ]
        );
    }

    #[test]
    fn a_limit_that_was_not_asked_for_is_not_reported() {
        let cgroups = Cgroups::none("none");
        let facts = Facts {
            cgroups: &cgroups,
            gaps: &[],
            landlock: Some(5),
        };
        let controls = facts.controls(|guarantee| guarantee == Guarantee::Pids);
        let limits: Vec<_> = controls.iter().filter(|control| control.reason.is_some()).collect();
        assert_eq!(limits, [of(&controls, "limit.pids")]);
    }
}
