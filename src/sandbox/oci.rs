//! The `oci` backend with the builtin launcher: starting a sandbox, keeping slots ready, ending it without a trace.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use belljar_guest::{ListenKind, Start, ToSlot};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::bundle::{self, HardLimits};
use super::channel::{ChannelError, Guest, SlotLink};
use super::holders::{Holders, Holding, Transport};
use super::launcher::{self, LaunchError, LaunchRequest, LaunchedBy, Launcher};
use super::plan::Plan;
use super::{outside, seccomp};
use crate::id::ExecId;
use crate::path::HostPath;
use crate::policy::{Command, Digest, Permit};
use crate::sys::cgroup::{Caps, Cgroups, Counters, Leaf, Stall, TaskCgroup, Version};
use crate::sys::{packet, process};
use crate::task::Runtime;

/// Slots that stay ready between execs while a task is busy: as many callers as are expected at once.
const READY_MAX: usize = 16;

/// What a used leaf may still be charged with (page cache of files first read there) and yet serve again: peaks are counted from it.
const LEFTOVER_BYTES: u64 = 1 << 20;

/// How long the end of a killed process may take before its cgroup is left to the next start.
const END_PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum SandboxError {
    #[error("could not make the task's cgroups")]
    Cgroup { source: io::Error },
    #[error("could not launch the sandbox")]
    Launch {
        #[from]
        source: LaunchError,
    },
    #[error("could not talk to the sandbox")]
    Channel {
        #[from]
        source: ChannelError,
    },
    #[error("could not use the sandbox's descriptors")]
    Io {
        #[from]
        source: io::Error,
    },
    #[error("a new process in the sandbox did not join its cgroup")]
    NotInItsCgroup,
    #[error("the permit is for another command")]
    PermitMismatch,
    #[error("the sandbox is gone")]
    Gone,
}

/// What starting needs beside the plan; shared by all sandboxes of a process.
#[derive(Clone)]
pub struct Machinery {
    pub launcher: Arc<Mutex<Launcher>>,
    pub cgroups: Arc<Cgroups>,
}

/// A live sandbox.
pub struct Sandbox {
    plan: Plan,
    place: Digest,
    guest: Guest,
    cgroup: Option<Arc<Mutex<TaskCgroup>>>,
    pid1: AsyncFd<OwnedFd>,
    pool: Mutex<Pool>,
    holders: Arc<Holders>,
}

#[derive(Default)]
struct Pool {
    ready: VecDeque<Slot>,
    /// Of detached execs: occupied until the task ends.
    kept: Vec<Slot>,
    refill: Option<JoinHandle<()>>,
}

/// A slot and the leaf that it sits in.
pub struct Slot {
    pub link: SlotLink,
    leaf: Option<Leaf>,
    /// While a command runs in it, or what a command left.
    holding: Option<Holding>,
}

/// Where a slot comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Origin {
    /// It stood ready, and may be gone by now.
    Ready,
    New,
}

/// A command that was started in a slot.
pub struct Started {
    pub slot: Slot,
    pub permit: Permit,
}

/// The descriptors that a command gets.
pub enum Stdio<'a> {
    Pipes {
        stdin: BorrowedFd<'a>,
        stdout: BorrowedFd<'a>,
        stderr: BorrowedFd<'a>,
    },
    Tty {
        rows: u16,
        cols: u16,
    },
}

impl Sandbox {
    /// Makes the sandbox and one ready slot. `place` is an empty folder of the task's own.
    pub async fn start(
        machinery: &Machinery,
        plan: Plan,
        place: HostPath,
        runtime: &Runtime,
    ) -> Result<Arc<Sandbox>, SandboxError> {
        let by = launched_by(&plan, runtime)?;
        let (control, theirs) = packet::pair()?;
        let Begun {
            pid1: launched,
            failure,
            cgroup,
            leaf,
            plan,
        } = {
            let machinery = machinery.clone();
            // Cgroups and the launch are blocking calls of a few milliseconds.
            tokio::task::spawn_blocking(move || launch(&machinery, plan, place, by, theirs))
                .await
                .map_err(io::Error::other)??
        };
        let digest = plan.digest();
        let started = async {
            let guest = match Guest::greet(control).await {
                Ok(guest) => guest,
                Err(error) => {
                    let _ = process::pidfd_kill(launched.as_fd());
                    return Err(reason(error, failure).await);
                }
            };
            let sandbox = Sandbox {
                plan,
                place: digest,
                guest,
                cgroup: cgroup.clone(),
                pid1: packet::watched(launched, Interest::READABLE)?,
                pool: Mutex::new(Pool::default()),
                holders: Arc::default(),
            };
            let slot = sandbox.make_slot_in(leaf).await?;
            sandbox.pool().ready.push_back(slot);
            Ok::<_, SandboxError>(sandbox)
        };
        match started.await {
            Ok(sandbox) => Ok(Arc::new(sandbox)),
            Err(error) => {
                if let Some(cgroup) = cgroup {
                    remove_cgroup(cgroup).await;
                }
                Err(error)
            }
        }
    }

    pub fn plan(&self) -> &Plan {
        &self.plan
    }

    /// The digest of the plan, to which permits are bound.
    pub fn place(&self) -> &Digest {
        &self.place
    }

    fn pool(&self) -> std::sync::MutexGuard<'_, Pool> {
        self.pool.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn make_slot(&self) -> Result<Slot, SandboxError> {
        let leaf = match &self.cgroup {
            None => None,
            Some(cgroup) => {
                let cgroup = cgroup.clone();
                let made = tokio::task::spawn_blocking(move || make_leaf(&cgroup));
                Some(made.await.map_err(io::Error::other)??)
            }
        };
        self.make_slot_in(leaf).await
    }

    /// A slot that sits in this leaf.
    async fn make_slot_in(&self, leaf: Option<Leaf>) -> Result<Slot, SandboxError> {
        let failed = |source| SandboxError::Cgroup { source };
        let joins = leaf.as_ref().map_or(Ok(Vec::new()), Leaf::joins).map_err(failed)?;
        let joins: Vec<_> = joins.iter().map(AsFd::as_fd).collect();
        let (link, pidfd) = self.guest.add_slot(&joins).await?;
        let mut slot = Slot {
            link: SlotLink { link, pidfd },
            leaf,
            holding: None,
        };
        if let Some(leaf) = &mut slot.leaf {
            // That it sits there is not taken from its word.
            let pid = process::pid_of(slot.link.pidfd.as_fd())?.ok_or(SandboxError::Gone)?;
            if leaf.pids() != [pid] {
                return Err(SandboxError::NotInItsCgroup);
            }
            leaf.reset();
        }
        Ok(slot)
    }

    /// Whether PID 1 still does its work. The slot that it makes to prove it is kept for the next command.
    pub async fn answers(&self) -> bool {
        let Ok(slot) = self.make_slot().await else {
            return false;
        };
        self.pool().ready.push_back(slot);
        true
    }

    /// A slot to run one command in: a ready one, else a new one.
    async fn take_slot(self: &Arc<Self>) -> Result<(Slot, Origin), SandboxError> {
        let (slot, empty) = {
            let mut pool = self.pool();
            let slot = pool.ready.pop_front();
            (slot, pool.ready.is_empty())
        };
        if empty {
            self.refill();
        }
        match slot {
            Some(slot) => Ok((slot, Origin::Ready)),
            None => Ok((self.make_slot().await?, Origin::New)),
        }
    }

    /// Makes a slot ready ahead of need: it costs more than all the rest of an exec, and on cgroup version 2 milliseconds after a pause.
    fn refill(self: &Arc<Self>) {
        let mut pool = self.pool();
        if pool.refill.as_ref().is_some_and(|task| !task.is_finished()) {
            return;
        }
        let sandbox = Arc::downgrade(self);
        pool.refill = Some(tokio::spawn(async move {
            let Some(sandbox) = sandbox.upgrade() else { return };
            // One that cannot be made now is made, or found impossible, by whoever needs it.
            if let Ok(slot) = sandbox.make_slot().await {
                sandbox.pool().ready.push_back(slot);
            }
        }));
    }

    /// Gives pipes to the command's user, so that it can open them again by name (`/dev/stderr`). Only for what was made for it.
    pub fn hand_over(&self, pipes: &[BorrowedFd<'_>]) -> io::Result<()> {
        let (uid, gid) = self.plan.owner_outside();
        let (uid, gid) = (rustix::fs::Uid::from_raw(uid), rustix::fs::Gid::from_raw(gid));
        pipes
            .iter()
            .try_for_each(|pipe| Ok(rustix::fs::fchown(pipe, Some(uid), Some(gid))?))
    }

    /// Starts the command that the permit is for.
    pub async fn start_exec(
        self: &Arc<Self>,
        permit: Permit,
        command: &Command,
        detach: bool,
        stdio: Stdio<'_>,
    ) -> Result<Started, SandboxError> {
        if *permit.digest() != command.digest(&self.place) {
            return Err(SandboxError::PermitMismatch);
        }
        let mut env = self.plan.process.env.clone();
        if command.tty.is_some() {
            env.insert("TERM".to_owned(), "xterm-256color".to_owned());
        }
        env.extend(command.env.iter().map(|(name, value)| (name.clone(), value.clone())));
        let (tty, fds) = match stdio {
            Stdio::Pipes { stdin, stdout, stderr } => (None, vec![stdin, stdout, stderr]),
            Stdio::Tty { rows, cols } => (Some((rows, cols)), Vec::new()),
        };
        let start = Start {
            argv: command.argv.clone(),
            env: env.into_iter().map(|(name, value)| format!("{name}={value}")).collect(),
            cwd: command.cwd.as_str().to_owned(),
            tty,
            detach,
        };
        let message = ToSlot::Start(start);
        loop {
            let (mut slot, origin) = self.take_slot().await?;
            let processes = slot.leaf.as_ref().and_then(Leaf::processes);
            slot.holding = Some(self.holders.add(permit.exec(), processes));
            match (slot.link.say(&message, &fds), origin) {
                (Ok(()), _) => return Ok(Started { slot, permit }),
                // An earlier command has killed what stood ready for the next ones; a new one takes its place.
                (Err(error), Origin::Ready) if error.kind() == io::ErrorKind::BrokenPipe => slot.retire(),
                (Err(error), _) => return Err(error.into()),
            }
        }
    }

    /// Takes a slot back after its command has ended: it serves again where the next exec can be counted truly in it.
    pub fn give_back(&self, mut slot: Slot) {
        slot.holding = None;
        let reusable = match &mut slot.leaf {
            None => true,
            Some(leaf) => leaf.pids().len() <= 1 && leaf.serve_again(LEFTOVER_BYTES),
        };
        if reusable {
            let mut pool = self.pool();
            if pool.ready.len() < READY_MAX {
                pool.ready.push_back(slot);
                return;
            }
        }
        slot.retire();
    }

    /// Keeps a slot whose command has left something running on purpose.
    pub fn keep(&self, slot: Slot) {
        self.pool().kept.push(slot);
    }

    /// The exec that holds a socket of the sandbox; see [`Holders::of_socket`].
    pub fn holder_of(&self, transport: Transport, local: SocketAddr) -> Option<ExecId> {
        self.holders.of_socket(self.pid1.get_ref().as_fd(), transport, local)
    }

    /// A socket on the sandbox's loopback, for the proxy to accept on.
    pub async fn listen(&self, port: u16, kind: ListenKind) -> Result<OwnedFd, SandboxError> {
        Ok(self.guest.listen(port, kind).await?)
    }

    /// Ready when PID 1 is over, whatever ended it. Cancel-safe.
    /// Puts a text into the file that tells commands their limits.
    pub fn tell_limits(&self, text: String) {
        // A guest that is gone ends the task by itself.
        let _ = self.guest.tell_limits(text);
    }

    pub async fn ended(&self) {
        // A pidfd becomes readable once and stays so; an error of the reactor means that the runtime is going down.
        let _ = self.pid1.readable().await;
    }

    /// What the task as a whole has used.
    pub fn counters(&self) -> Option<(Version, Counters)> {
        let cgroup = self.cgroup.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        Some((cgroup.version(), cgroup.counters()))
    }

    /// For how long something in the task had to wait for a resource.
    pub fn stall(&self) -> Option<Stall> {
        let cgroup = self.cgroup.as_ref()?.lock().unwrap_or_else(PoisonError::into_inner);
        cgroup.stall()
    }

    pub fn cgroup_version(&self) -> Option<Version> {
        self.cgroup
            .as_ref()
            .map(|cgroup| cgroup.lock().unwrap_or_else(PoisonError::into_inner).version())
    }

    /// Ends everything inside and removes what the sandbox had outside. Whole when it returns; safe to call twice.
    pub async fn destroy(&self) {
        let refill = self.pool().refill.take();
        if let Some(refill) = refill {
            refill.abort();
            let _ = refill.await;
        }
        let _ = process::pidfd_kill(self.pid1.get_ref().as_fd());
        // With PID 1 the kernel ends the whole pid namespace before the pidfd becomes readable.
        let _ = timeout(END_PATIENCE, self.ended()).await;
        let slots = {
            let mut pool = self.pool();
            (std::mem::take(&mut pool.ready), std::mem::take(&mut pool.kept))
        };
        drop(slots);
        if let Some(cgroup) = &self.cgroup {
            remove_cgroup(cgroup.clone()).await;
        }
    }
}

/// What of the launcher's request depends on the runtime.
fn launched_by(plan: &Plan, runtime: &Runtime) -> Result<LaunchedBy, LaunchError> {
    match runtime {
        Runtime::Builtin => Ok(LaunchedBy::Builtin {
            seccomp: seccomp::FILTER.program.clone(),
        }),
        Runtime::Outside(runtime) => {
            outside::check(plan, runtime)?;
            let program = outside::find(runtime)?;
            let bundle = bundle::of(plan, &seccomp::FILTER.allowed, HardLimits::of_process())
                .map_err(|source| LaunchError::Bundle { source })?;
            let config = serde_json::to_string(&bundle).expect("a bundle is plain data");
            Ok(LaunchedBy::Runtime { program, config })
        }
    }
}

/// A sandbox whose PID 1 was made.
struct Begun {
    pid1: OwnedFd,
    /// What an outside runtime says when it fails.
    failure: Option<OwnedFd>,
    cgroup: Option<Arc<Mutex<TaskCgroup>>>,
    /// For the first slot.
    leaf: Option<Leaf>,
    plan: Plan,
}

fn launch(
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
    let result = launched.and_then(|launched| match request.by {
        // It keeps the pipe for as long as it lives; the guest's first word tells that it went well.
        LaunchedBy::Runtime { .. } => Ok((launched.pidfd, Some(launched.failure))),
        LaunchedBy::Builtin { .. } => match launcher::read_failure(launched.failure) {
            None => Ok((launched.pidfd, None)),
            Some(error) => Err(error),
        },
    });
    let begun = match (result, leaf) {
        (Ok((pid1, failure)), Ok(leaf)) => {
            return Ok(Begun {
                pid1,
                failure,
                cgroup,
                leaf,
                plan: request.plan,
            });
        }
        (Err(error), _) => Err(error.into()),
        (Ok((pid1, _)), Err(error)) => {
            let _ = process::pidfd_kill(pid1.as_fd());
            Err(error)
        }
    };
    if let Some(cgroup) = cgroup {
        end_and_remove(&cgroup.lock().unwrap_or_else(PoisonError::into_inner));
    }
    begun
}

fn make_leaf(cgroup: &Arc<Mutex<TaskCgroup>>) -> Result<Leaf, SandboxError> {
    let leaf = cgroup.lock().unwrap_or_else(PoisonError::into_inner).create_leaf();
    leaf.map_err(|source| SandboxError::Cgroup { source })
}

/// Why the guest of a runtime that is being killed did not speak: what the runtime said, where it said something.
async fn reason(error: ChannelError, failure: Option<OwnedFd>) -> SandboxError {
    let Some(failure) = failure else { return error.into() };
    // Blocking until the killed runtime lets go of the pipe.
    match tokio::task::spawn_blocking(move || launcher::read_failure(failure)).await {
        Ok(Some(said)) => said.into(),
        Ok(None) | Err(_) => error.into(),
    }
}

async fn remove_cgroup(cgroup: Arc<Mutex<TaskCgroup>>) {
    let removed =
        tokio::task::spawn_blocking(move || end_and_remove(&cgroup.lock().unwrap_or_else(PoisonError::into_inner)));
    let _ = removed.await;
}

/// Removes a task's cgroups, waiting for what was killed to be gone.
pub fn end_and_remove(cgroup: &TaskCgroup) {
    let deadline = std::time::Instant::now() + END_PATIENCE;
    let mut pause = Duration::from_micros(200);
    loop {
        match cgroup.remove() {
            Ok(()) => return,
            // A dying process leaves its cgroup a moment after it can be waited for.
            Err(error) if error.kind() == io::ErrorKind::ResourceBusy && std::time::Instant::now() < deadline => {
                cgroup.kill();
                std::thread::sleep(pause);
                pause = (pause * 2).min(Duration::from_millis(50));
            }
            Err(error) => {
                tracing::warn!(%error, "a task's cgroups could not be removed; the next start tries again");
                return;
            }
        }
    }
}

impl Slot {
    pub fn counters(&mut self) -> Option<Counters> {
        self.leaf.as_mut().map(Leaf::counters)
    }

    /// For how long something in it had to wait, ever since it was made.
    pub fn stall(&self) -> Option<Stall> {
        self.leaf.as_ref()?.stall()
    }

    /// Kills the command and all it started, and the slot with them.
    pub fn kill(&self) {
        if let Some(leaf) = &self.leaf {
            leaf.kill();
        }
        let _ = process::pidfd_kill(self.link.pidfd.as_fd());
    }

    /// Ends a slot that will not serve again. Its leaf goes with it, or else with the task.
    pub fn retire(self) {
        self.kill();
        let Slot { link, leaf, holding } = self;
        drop((link, holding));
        if let Some(leaf) = leaf {
            // A leaf is busy until its last process is reaped, which PID 1 does in its own time.
            tokio::task::spawn_blocking(move || {
                for pause in [1, 4, 16, 64, 256] {
                    if leaf.remove().is_ok() {
                        return;
                    }
                    std::thread::sleep(Duration::from_millis(pause));
                }
            });
        }
    }
}
