//! The first moment of a sandbox: its cgroups, the launch of its PID 1 by belljar itself or by an outside runtime, and why there was none.

use std::os::fd::{AsFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};

use super::bundle::{self, HardLimits};
use super::channel::ChannelError;
use super::launcher::{self, Carry, LaunchError, LaunchRequest, Launched, LaunchedBy};
use super::oci::{Machinery, SandboxError, end_and_remove, make_leaf};
use super::plan::Plan;
use super::{outside, seccomp};
use crate::path::HostPath;
use crate::sys::cgroup::{Caps, Leaf, TaskCgroup};
use crate::sys::process;
use crate::task::Runtime;

/// What of the launcher's request depends on the runtime, and how its guest is spoken to.
pub(super) fn launched_by(plan: &Plan, runtime: &Runtime) -> Result<(LaunchedBy, Carry), LaunchError> {
    match runtime {
        Runtime::Builtin => {
            let seccomp = seccomp::FILTER.program.clone();
            Ok((LaunchedBy::Builtin { seccomp }, Carry::Descriptors))
        }
        Runtime::Outside(runtime) => {
            outside::check(plan, runtime)?;
            let (program, carry) = (outside::find(runtime)?, outside::carry(runtime));
            let bundle = bundle::of(plan, &seccomp::ALLOWED, HardLimits::of_process(), carry)
                .map_err(|source| LaunchError::Bundle { source })?;
            let config = serde_json::to_string(&bundle).expect("a bundle is plain data");
            Ok((LaunchedBy::Runtime { program, config, carry }, carry))
        }
    }
}

/// A sandbox whose PID 1 was made.
pub(super) struct Begun {
    pub pid1: OwnedFd,
    /// Where it says which step failed; see `launcher::read_failure`.
    pub failure: OwnedFd,
    pub cgroup: Option<Arc<Mutex<TaskCgroup>>>,
    /// For the first slot.
    pub leaf: Option<Leaf>,
    pub plan: Plan,
}

pub(super) fn launch(
    machinery: &Machinery,
    plan: Plan,
    place: HostPath,
    by: LaunchedBy,
    control: OwnedFd,
) -> Result<Begun, SandboxError> {
    let caps = Caps {
        memory_bytes: plan.limits.memory_bytes,
        cpus: plan.limits.cpus,
        pids: plan.limits.pids,
    };
    let cgroup = machinery
        .cgroups
        .create_task(&plan.task.to_string(), caps)
        .map_err(|source| SandboxError::Cgroup { source })?;
    let joins = cgroup.as_ref().map(TaskCgroup::guest_joins).unwrap_or_default();
    let cgroup = cgroup.map(|cgroup| Arc::new(Mutex::new(cgroup)));
    let request = LaunchRequest { plan, place, joins, by };
    let launched = {
        let mut launcher = machinery.launcher.lock().unwrap_or_else(PoisonError::into_inner);
        launcher.launch(&request, control.as_fd())
    };
    drop(control);
    // While the new process sets itself up.
    let leaf = cgroup.as_ref().map(make_leaf).transpose();
    let begun = match (launched, leaf) {
        (Ok(Launched { pidfd: pid1, failure }), Ok(leaf)) => {
            return Ok(Begun {
                pid1,
                failure,
                cgroup,
                leaf,
                plan: request.plan,
            });
        }
        (Err(error), _) => Err(error.into()),
        (Ok(Launched { pidfd, .. }), Err(error)) => {
            let _ = process::pidfd_kill(pidfd.as_fd());
            Err(error)
        }
    };
    if let Some(cgroup) = cgroup {
        end_and_remove(&cgroup.lock().unwrap_or_else(PoisonError::into_inner));
    }
    begun
}

/// Why a guest that is being killed did not speak: what those said who made it, where they said something.
pub(super) async fn reason(error: ChannelError, failure: OwnedFd) -> SandboxError {
    // Blocking until they have let go of the pipe.
    match tokio::task::spawn_blocking(move || launcher::read_failure(failure)).await {
        Ok(Some(said)) => said.into(),
        Ok(None) | Err(_) => error.into(),
    }
}
