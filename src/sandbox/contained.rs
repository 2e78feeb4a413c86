//! A sandbox in an engine's container: the container, the relay to its guest, and the task's cgroup around what runs there.

use std::io;
use std::path::Path;
use std::sync::{Arc, Mutex};

use rustix::process::Pid;

use super::docker::{self, Engine};
use super::oci::{self, Far, Machinery, Sandbox, SandboxError};
use super::plan::Plan;
use super::relay;
use crate::path::HostPath;
use crate::sys::cgroup::{Caps, Cgroups, TaskCgroup};
use crate::sys::process;
use crate::task::Runtime;

/// Makes the sandbox and one ready slot. `folder` is the task's own.
pub async fn start(
    engine: &Engine,
    machinery: &Machinery,
    plan: Plan,
    folder: &Path,
    runtime: &Runtime,
) -> Result<Arc<Sandbox>, SandboxError> {
    let listener = relay::listen(folder, docker::CHANNEL)?;
    let mounts = docker::mounts(&machinery.state);
    let place = docker::Place {
        state: &machinery.state,
        folder,
        mounts: &mounts,
        launcher: &machinery.launcher,
    };
    let container = engine.start(&plan, runtime, place).await?;
    let connected = async {
        let stream = tokio::select! {
            stream = relay::accept(listener) => stream?,
            ended = container.ended() => return Err(SandboxError::from(ended)),
        };
        let place = HostPath::new(folder).map_err(io::Error::other)?;
        let (guest, near) = relay::greet(machinery, place, stream.stream).await?;
        Ok((guest, near, stream.peer.filter(|_| !engine.has_own_kernel(runtime))))
    };
    let (guest, near, pid1) = match connected.await {
        Ok(connected) => connected,
        Err(error) => {
            container.remove().await;
            return Err(error);
        }
    };
    let cgroup = match cgroup_around(machinery, &plan, pid1).await {
        Ok(cgroup) => cgroup.map(|cgroup| Arc::new(Mutex::new(cgroup))),
        Err(source) => {
            drop(guest);
            container.remove().await;
            return Err(SandboxError::Cgroup { source });
        }
    };
    let far = Far::Container { container, pid1 };
    let sandbox = Sandbox::without_slots(plan, guest, near, Some(far), cgroup);
    match sandbox.add_ready_slot().await {
        Ok(()) => Ok(Arc::new(sandbox)),
        Err(error) => {
            sandbox.destroy().await;
            Err(error)
        }
    }
}

/// Puts what runs in the container into a cgroup of the task's own, as with the other backends.
async fn cgroup_around(machinery: &Machinery, plan: &Plan, pid1: Option<Pid>) -> io::Result<Option<TaskCgroup>> {
    let Some(pid1) = pid1 else { return Ok(None) };
    let (cgroups, name) = (machinery.cgroups.clone(), plan.task.to_string());
    let caps = Caps {
        memory_bytes: plan.limits.memory_bytes,
        cpus: plan.limits.cpus,
        pids: plan.limits.pids,
    };
    tokio::task::spawn_blocking(move || join(&cgroups, &name, caps, pid1))
        .await
        .map_err(io::Error::other)?
}

/// The guest has spoken, so it is there with all that it begins with: itself and its relay.
fn join(cgroups: &Cgroups, name: &str, caps: Caps, pid1: Pid) -> io::Result<Option<TaskCgroup>> {
    let Some(cgroup) = cgroups.create_task(name, caps)? else {
        return Ok(None);
    };
    let mut pids = vec![pid1];
    pids.extend(process::children_of(pid1)?);
    let joined = pids.iter().try_for_each(|pid| cgroup.move_in(*pid));
    match joined {
        Ok(()) => Ok(Some(cgroup)),
        Err(error) => {
            oci::end_and_remove(&cgroup);
            Err(error)
        }
    }
}
