//! A live sandbox: started (`begin`), with slots kept ready for commands, ended without a trace.

use std::collections::VecDeque;
use std::io;
use std::net::SocketAddr;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use belljar_guest::{ListenKind, Start, ToSlot};
use rustix::process::Pid;
use tokio::io::Interest;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use super::begin::{Begun, launch, launched_by, reason};
use super::channel::{self, ChannelError, FirstWord, Guest, Pid1, SlotLink, SlotProcess};
use super::holders::{Holders, Holding, Transport};
use super::launcher::{Carry, LaunchError, Launcher};
use super::plan::Plan;
use super::{docker, relay};
use crate::id::ExecId;
use crate::path::HostPath;
use crate::policy::{Command, Digest, Permit};
use crate::sys::cgroup::{Cgroups, Counters, Leaf, Stall, TaskCgroup, Version};
use crate::sys::{packet, process};
use crate::task::Runtime;

/// Slots that stay ready between execs while a task is busy: as many callers as are expected at once.
const READY_MAX: usize = 16;

/// How long the command that took the last ready slot has the processors to itself before the next slot is made.
const REFILL_PAUSE: Duration = Duration::from_millis(2);

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
    #[error(transparent)]
    Docker(#[from] docker::DockerError),
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
    /// The state folder: what engines make carries its name.
    pub state: PathBuf,
}

/// A live sandbox.
pub struct Sandbox {
    plan: Plan,
    place: Digest,
    guest: Guest,
    cgroup: Option<Arc<Mutex<TaskCgroup>>>,
    pid1: Pid1,
    far: Option<Far>,
    pool: Mutex<Pool>,
    holders: Arc<Holders>,
}

/// What holds a sandbox whose guest is relayed.
pub(super) enum Far {
    /// An outside runtime, with which the sandbox ends.
    Runtime(Pid1),
    /// An engine's container, and its PID 1 where that is a process of this kernel's.
    Container {
        container: docker::Container,
        pid1: Option<Pid>,
    },
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
    /// Makes the sandbox and one ready slot. `place` is a folder of the task's own.
    pub async fn start(
        machinery: &Machinery,
        plan: Plan,
        place: HostPath,
        runtime: &Runtime,
    ) -> Result<Arc<Sandbox>, SandboxError> {
        let (by, carry) = launched_by(&plan, runtime)?;
        let (control, theirs) = packet::pair()?;
        let Begun {
            pid1: launched,
            failure,
            cgroup,
            leaf,
            plan,
        } = {
            let (machinery, place) = (machinery.clone(), place.clone());
            // Cgroups and the launch are blocking calls of a few milliseconds.
            tokio::task::spawn_blocking(move || launch(&machinery, plan, place, by, theirs))
                .await
                .map_err(io::Error::other)??
        };
        let launched = Arc::new(packet::watched(launched, Interest::READABLE)?);
        let spoken_to = match carry {
            Carry::Descriptors => Guest::expect(control, launched.clone())
                .map(|(guest, first)| (guest, Some(first), None))
                .map_err(SandboxError::from),
            Carry::Stream => {
                let connected = async {
                    let listener = relay::listener_of(control).await?;
                    tokio::select! {
                        stream = relay::accept(listener) => Ok(stream?.stream),
                        _ = launched.readable() => Err(ChannelError::Gone),
                    }
                };
                match connected.await {
                    Ok(stream) => relay::greet(machinery, place, stream)
                        .await
                        .map(|(guest, near)| (guest, None, Some(near))),
                    Err(error) => Err(error.into()),
                }
            }
        };
        let started = match spoken_to {
            Ok((guest, first, near)) => {
                let (pid1, far, leaf) = match near {
                    Some(near) => (near, Some(Far::Runtime(launched)), None),
                    None => (launched, None, leaf),
                };
                let sandbox = Sandbox::without_slots(plan, guest, pid1, far, cgroup.clone());
                sandbox.begin(first, leaf).await.map(|()| sandbox)
            }
            Err(error) => {
                channel::condemn(&launched);
                Err(error)
            }
        };
        match started {
            Ok(sandbox) => Ok(Arc::new(sandbox)),
            Err(error) => {
                if let Some(cgroup) = cgroup {
                    remove_cgroup(cgroup).await;
                }
                Err(match error {
                    SandboxError::Channel { source } => reason(source, failure).await,
                    other => other,
                })
            }
        }
    }

    /// Waits for the guest's first word and a ready slot. The slot is asked for at once, and the guest finds that waiting.
    async fn begin(&self, first: Option<FirstWord>, leaf: Option<Leaf>) -> Result<(), SandboxError> {
        let spoke = async {
            match first {
                Some(first) => first.heard().await,
                None => Ok(()),
            }
        };
        let (spoke, slot) = tokio::join!(spoke, self.make_slot_in(leaf));
        let ready = spoke.map_err(SandboxError::from).and(slot);
        if ready.is_err() {
            self.destroy().await;
        }
        self.pool().ready.push_back(ready?);
        Ok(())
    }

    pub(super) fn without_slots(
        plan: Plan,
        guest: Guest,
        pid1: Pid1,
        far: Option<Far>,
        cgroup: Option<Arc<Mutex<TaskCgroup>>>,
    ) -> Sandbox {
        Sandbox {
            place: plan.digest(),
            plan,
            guest,
            cgroup,
            pid1,
            far,
            pool: Mutex::new(Pool::default()),
            holders: Arc::default(),
        }
    }

    pub(super) async fn add_ready_slot(&self) -> Result<(), SandboxError> {
        let slot = self.make_slot().await?;
        self.pool().ready.push_back(slot);
        Ok(())
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
            Some(cgroup) if self.has_leaves() => {
                let cgroup = cgroup.clone();
                let made = tokio::task::spawn_blocking(move || make_leaf(&cgroup));
                Some(made.await.map_err(io::Error::other)??)
            }
            Some(_) | None => None,
        };
        self.make_slot_in(leaf).await
    }

    /// Whether what runs in the sandbox are processes of this kernel, which can be counted one by one.
    fn has_leaves(&self) -> bool {
        match &self.far {
            None => true,
            Some(Far::Runtime(_)) => false,
            Some(Far::Container { pid1, .. }) => pid1.is_some(),
        }
    }

    /// A slot that sits in this leaf.
    async fn make_slot_in(&self, leaf: Option<Leaf>) -> Result<Slot, SandboxError> {
        let failed = |source| SandboxError::Cgroup { source };
        let is_moved = self.guest.is_relayed();
        let joins = match &leaf {
            Some(leaf) if !is_moved => leaf.joins().map_err(failed)?,
            Some(_) | None => Vec::new(),
        };
        let joins: Vec<_> = joins.iter().map(AsFd::as_fd).collect();
        let mut slot = Slot {
            link: self.guest.add_slot(&joins).await?,
            leaf,
            holding: None,
        };
        if let Some(leaf) = &mut slot.leaf {
            let pid = match (slot.link.process(), &self.far) {
                (SlotProcess::Pidfd(pidfd), _) => process::pid_of(pidfd)?,
                // Whatever number the guest says, it is one of PID 1's own children or none.
                (SlotProcess::Inside(inside), Some(Far::Container { pid1: Some(pid1), .. })) => {
                    process::child_of(*pid1, inside)?
                }
                (SlotProcess::Inside(_), _) => None,
            };
            let pid = pid.ok_or(SandboxError::Gone)?;
            if is_moved {
                leaf.move_in(pid).map_err(failed)?;
            }
            // That it sits there is not taken from its word.
            if leaf.pids() != [pid] {
                return Err(SandboxError::NotInItsCgroup);
            }
            leaf.reset();
        }
        Ok(slot)
    }

    /// Whether PID 1 still does its work. The slot that it makes to prove it is kept for the next command.
    pub async fn answers(&self) -> bool {
        self.add_ready_slot().await.is_ok()
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
            tokio::time::sleep(REFILL_PAUSE).await;
            let Some(sandbox) = sandbox.upgrade() else { return };
            // One that cannot be made now is made, or found impossible, by whoever needs it.
            let _ = sandbox.add_ready_slot().await;
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

    /// Puts a text into the file that tells commands their limits.
    pub fn tell_limits(&self, text: String) {
        if let Some(Far::Container { container, .. }) = &self.far {
            return container.tell_limits(&text);
        }
        // A guest that is gone ends the task by itself.
        let _ = self.guest.tell_limits(text);
    }

    /// Ready when PID 1 is over, whatever ended it. Cancel-safe.
    pub async fn ended(&self) {
        // A pidfd becomes readable once and stays so; an error of the reactor means that the runtime is going down.
        let _ = self.pid1.readable().await;
    }

    /// Ends the sandbox with all that is in it, for it no longer does as it is told, or lies. What it had outside is left to
    /// [`Sandbox::destroy`].
    pub fn condemn(&self) {
        channel::condemn(&self.pid1);
    }

    /// Whether memory was the end of something in a sandbox that is over, where no exec has counters of its own.
    pub async fn has_run_out_of_memory(&self) -> bool {
        let Some(cgroup) = &self.cgroup else {
            return match &self.far {
                Some(Far::Container { container, .. }) => container.ran_out_of_memory().await,
                Some(Far::Runtime(_)) | None => false,
            };
        };
        cgroup
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .guest_oom_kills()
            .is_some_and(|count| count > 0)
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
        self.condemn();
        // With PID 1 the kernel ends the whole pid namespace before the pidfd becomes readable.
        let _ = timeout(END_PATIENCE, self.ended()).await;
        match &self.far {
            None => {}
            Some(Far::Runtime(runtime)) => {
                let _ = process::pidfd_kill(runtime.get_ref().as_fd());
                let _ = timeout(END_PATIENCE, runtime.readable()).await;
            }
            Some(Far::Container { container, .. }) => container.remove().await,
        }
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

pub(super) fn make_leaf(cgroup: &Arc<Mutex<TaskCgroup>>) -> Result<Leaf, SandboxError> {
    let leaf = cgroup.lock().unwrap_or_else(PoisonError::into_inner).create_leaf();
    leaf.map_err(|source| SandboxError::Cgroup { source })
}

pub(super) async fn remove_cgroup(cgroup: Arc<Mutex<TaskCgroup>>) {
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
        self.link.kill();
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

#[cfg(test)]
impl Sandbox {
    /// An empty one whose guest is played.
    pub fn played(guest: Guest, pid1: Pid1) -> Arc<Sandbox> {
        Arc::new(Sandbox::without_slots(relay::plan(), guest, pid1, None, None))
    }
}

#[cfg(test)]
mod tests;
