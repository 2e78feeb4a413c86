//! Starting: the supervisor of this process, and one task.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Instant;

use super::engines::Engines;
use super::images::{self, FindError, Heard};
use super::live_policy::LivePolicy;
use super::rule_book::UserRules;
use super::task::Live;
use super::{TaskHandle, image_name, recovery, runtime_name, way_out};
use crate::approval::{Approvers, Desk};
use crate::audit::journal::{Journal, JournalError};
use crate::audit::record::{Control, Entry, Event, Identity, TaskOutcome, Usage};
use crate::config::AgentEvents;
use crate::crash;
use crate::document::Word;
use crate::egress::gate::GateError;
use crate::egress::host::HostError;
use crate::egress::secret::SecretsError;
use crate::egress::tls::InspectionError;
use crate::exec::pipeline::Context;
use crate::image::{Image, ImageKind, Store};
use crate::path::HostPath;
use crate::policy::Policy;
use crate::sandbox::contained;
use crate::sandbox::docker::Engine;
use crate::sandbox::enforcement::{self, Facts};
use crate::sandbox::launcher::{LaunchError, Launcher};
use crate::sandbox::oci::{Machinery, Sandbox, SandboxError};
use crate::sandbox::outside;
use crate::sandbox::owners::{self, OwnersError, Unmapped};
use crate::sandbox::plan::{CallerIds, Plan, RootSource};
use crate::sandbox::protect::{Guard, ProtectError};
use crate::secret::ExposeSecret as _;
use crate::sys::cgroup::Cgroups;
use crate::sys::process;
use crate::task::{Backend, ImageRef, Root, Runtime, Task};

/// Why nothing can be supervised.
#[derive(Debug, thiserror::Error)]
pub enum SupervisorError {
    #[error("could not make the state folder {}", path.display())]
    State { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Launcher(#[from] LaunchError),
    #[error("could not close the records of earlier tasks")]
    Recovery(#[from] JournalError),
}

/// Why a task did not start.
#[derive(Debug, thiserror::Error)]
pub enum StartError {
    #[error("the journal cannot be written, so nothing runs")]
    Journal(#[from] JournalError),
    #[error("could not make the task's folder {}", path.display())]
    Folder { path: PathBuf, source: io::Error },
    #[error(transparent)]
    Protect(#[from] ProtectError),
    #[error(transparent)]
    Owners(#[from] OwnersError),
    #[error("{}", not_enforced(lacking))]
    NotEnforced { lacking: Vec<Control> },
    #[error("could not start the sandbox")]
    Sandbox(#[from] SandboxError),
    #[error("the network rule {rule} names no host")]
    NetworkRule { rule: String, source: HostError },
    #[error(transparent)]
    Gate(#[from] GateError),
    #[error("could not open the way out")]
    Proxy { source: io::Error },
    #[error("the task's TLS cannot be looked into")]
    Inspection(#[from] InspectionError),
    #[error("the task's secrets cannot be used")]
    Secrets(#[from] SecretsError),
}

/// All that tasks of this process share.
pub struct Supervisor {
    machinery: Machinery,
    engines: Engines,
    journal: Journal,
    state: PathBuf,
    identity: Identity,
    requirements_digest: Option<String>,
    way_out: way_out::Settings,
    agent_events: AgentEvents,
    traceparent: Option<String>,
    pub cgroups: Arc<Cgroups>,
}

impl Supervisor {
    /// Starts the launcher, finds out what the machine has, and clears up what killed belljars left. Blocking; call it before secrets
    /// are read. `program` is belljar's own, `/proc/self/exe` where this process is belljar.
    pub fn start(
        program: &Path,
        state: &Path,
        journal: Journal,
        identity: Identity,
    ) -> Result<Supervisor, SupervisorError> {
        // A task holds some fifteen descriptors, and a login gives 1024.
        process::raise_open_files();
        let launcher = Launcher::start(program)?;
        let cgroups = Arc::new(Cgroups::detect());
        make_private_folder(&recovery::tasks_folder(state)).map_err(|source| SupervisorError::State {
            path: state.to_owned(),
            source,
        })?;
        let lost = recovery::recover(state, &cgroups, &journal)?;
        if lost > 0 {
            tracing::info!(lost, "starts without an end were closed as lost");
        }
        let machinery = Machinery {
            launcher: Arc::new(Mutex::new(launcher)),
            cgroups: cgroups.clone(),
            state: state.to_owned(),
        };
        Ok(Supervisor {
            engines: Engines::new(state, None),
            machinery,
            journal,
            state: state.to_owned(),
            identity,
            requirements_digest: None,
            way_out: way_out::Settings::default(),
            agent_events: AgentEvents::Full,
            traceparent: None,
            cgroups,
        })
    }

    /// What of a harness's events goes into the journal; without it, all.
    pub fn recording_events(self, agent_events: AgentEvents) -> Self {
        Self { agent_events, ..self }
    }

    /// The W3C trace context in which its tasks are started; their spans belong to it.
    pub fn within_trace(self, traceparent: Option<String>) -> Self {
        Self { traceparent, ..self }
    }

    /// Names the requirements that tasks are admitted under: their digest stands in the records.
    #[must_use]
    pub fn under(self, requirements_digest: Option<String>) -> Supervisor {
        Supervisor {
            requirements_digest,
            ..self
        }
    }

    /// Says how ways out reach the world.
    #[must_use]
    pub fn reaching(self, way_out: way_out::Settings) -> Supervisor {
        Supervisor { way_out, ..self }
    }

    /// Starts a task: its sandbox is there and records say so when this returns. Its commands come through the handle.
    pub async fn start_task(
        &self,
        task: Task,
        image: Image,
        policy: Policy,
        approvers: impl Into<Approvers>,
    ) -> Result<TaskHandle, StartError> {
        let begun = Instant::now();
        let id = task.id;
        self.engines.sweep_once().await;
        let gate = way_out::gate(&task.network, &policy)?;
        let entry = |event| Entry {
            task: Some(id),
            exec: None,
            event,
        };
        let folder = recovery::tasks_folder(&self.state).join(id.to_string());
        let lock = make_task_folder(&folder, &task).map_err(|source| StartError::Folder {
            path: folder.clone(),
            source,
        })?;
        crash::point("task: its folder is made");
        let admitted = Event::TaskAdmitted {
            name: task.name.clone(),
            purpose: task.purpose.clone(),
            task_spec: serde_json::to_value(&task).unwrap_or_default(),
            requirements_digest: self.requirements_digest.clone(),
            identity: Identity {
                login: task.login.clone(),
                ..self.identity.clone()
            },
            traceparent: self.traceparent.clone(),
        };
        let started = async {
            for value in way_out::secret_values(&task).await {
                self.journal.hide(value.expose_secret());
            }
            self.journal.append(entry(admitted)).await?;
            let inside = way_out::prepare(&task, &self.way_out).await?;
            let (guard, unmapped) = {
                let (state, roots) = (self.state.clone(), task.roots.clone());
                let launcher = self.machinery.launcher.clone();
                let look = move || {
                    let guard = Guard::raise(&state, id, &roots)?;
                    Ok::<_, StartError>((guard, unmapped(&roots, &launcher)?))
                };
                if task.roots.is_empty() {
                    look()?
                } else {
                    // A walk over the roots, and a few files made.
                    let looked = tokio::task::spawn_blocking(look);
                    looked.await.map_err(|error| StartError::Folder {
                        path: folder.clone(),
                        source: io::Error::other(error),
                    })??
                }
            };
            crash::point("task: protected names are held");
            let engine = match task.backend {
                Backend::Docker => Some(self.engines.engine().await.map_err(SandboxError::from)?),
                Backend::Oci => None,
            };
            let facts = RootFacts {
                gaps: &guard.protected.gaps,
                unmapped: unmapped.as_ref(),
            };
            let controls = enforced(&task, &self.cgroups, facts, engine);
            let lacking: Vec<Control> = enforcement::lacking(&controls, &task).into_iter().cloned().collect();
            if !lacking.is_empty() {
                return Err(StartError::NotEnforced { lacking });
            }
            let plan = plan_with(&task, &image, inside.env)
                .with_files(inside.files)
                .with_user(unmapped.map(|at| at.owner))
                .with_protected(&guard.protected);
            let sandbox = self.start_sandbox(&task, plan, &folder).await?;
            Ok::<_, StartError>((sandbox, guard, inside.inspection, controls))
        };
        let failed = async |error: StartError| {
            let event = match &error {
                StartError::NotEnforced { lacking } => Event::TaskRefused {
                    name: task.name.clone(),
                    reasons: lacking.iter().map(enforcement::describe).collect(),
                    identity: self.identity.clone(),
                },
                _ => Event::TaskFinished {
                    outcome: TaskOutcome::Failed,
                    reason: Some(error.to_string()),
                    wall_seconds: begun.elapsed().as_secs_f64(),
                    execs: 0,
                    refused: 0,
                    usage: Usage::NONE,
                    network_bytes_sent: None,
                    network_bytes_received: None,
                    left_files: Vec::new(),
                },
            };
            // Where the journal is what failed, there is nobody to tell but the caller.
            let _ = self.journal.append(entry(event)).await;
            let _ = fs::remove_dir_all(&folder);
            error
        };
        let (sandbox, guard, inspection, controls) = match started.await {
            Ok(started) => started,
            Err(error) => return Err(failed(error).await),
        };
        crash::point("task: its sandbox is made");
        let mut approvers = approvers.into();
        let policy = LivePolicy::new(policy, task.network.clone());
        let rule_file = approvers.rule_file.take();
        let desk = Desk::new(&task, image.digest.as_deref(), approvers, self.journal.clone());
        if let Some(file) = rule_file {
            let policy = policy.clone();
            desk.remember_rules_in(Arc::new(UserRules { file, policy }));
        }
        let refused = way_out::Refused::default();
        let (proxy, traffic) = match gate {
            None => (None, None),
            Some(gate) => {
                let asker = way_out::ToDesk {
                    task: task.id,
                    desk: desk.clone(),
                    policy: policy.rules.clone(),
                    journal: self.journal.clone(),
                };
                let opened = way_out::open(
                    &sandbox,
                    gate,
                    &task,
                    self.journal.clone(),
                    Arc::new(asker),
                    refused.clone(),
                    (inspection, &self.way_out),
                );
                match opened.await {
                    Ok((proxy, traffic)) => {
                        policy.holds_on(proxy.reloader());
                        (Some(proxy), Some(traffic))
                    }
                    Err(error) => {
                        sandbox.destroy().await;
                        return Err(failed(error).await);
                    }
                }
            }
        };
        let plan_digest = sandbox.place().to_string();
        let event = Event::TaskStarted {
            backend: Word::word(task.backend).to_owned(),
            runtime: runtime_name(&task.runtime),
            image: image_name(&task.image),
            image_digest: image.digest.clone(),
            plan_digest: plan_digest.clone(),
            start_seconds: begun.elapsed().as_secs_f64(),
        };
        let started = self.journal.submit(entry(event));
        let enforced = self.journal.submit(entry(Event::SandboxEnforced { controls }));
        let recorded = async {
            started.await?;
            enforced.await
        };
        if let Err(error) = recorded.await {
            drop(proxy);
            sandbox.destroy().await;
            return Err(failed(error.into()).await);
        }
        let context = Context {
            task: id,
            journal: self.journal.clone(),
            policy: policy.rules.clone(),
            desk,
            sandbox,
            traffic,
            exec_time: task.limits.exec_time,
            output: task.limits.output.0,
            image_digest: image.digest.clone(),
            plan_digest,
            requirements_digest: self.requirements_digest.clone(),
            roots: task.roots.clone(),
        };
        crash::point("task: started");
        let live = Live::new(task, context, policy, image, refused, self.agent_events);
        // Owns the sandbox from here on; it ends with the task, and `TaskHandle::stop` and `wait` wait for that.
        tokio::spawn(live.clone().drive(proxy, guard, lock, folder.clone()));
        Ok(TaskHandle { live, folder })
    }
}

impl Supervisor {
    async fn start_sandbox(&self, task: &Task, plan: Plan, folder: &Path) -> Result<Arc<Sandbox>, StartError> {
        let place = HostPath::new(folder).map_err(|error| StartError::Folder {
            path: folder.to_owned(),
            source: io::Error::other(error),
        })?;
        let sandbox = match task.backend {
            Backend::Oci => Sandbox::start(&self.machinery, plan, place, &task.runtime).await?,
            Backend::Docker => {
                let engine = self.engines.engine().await.map_err(SandboxError::from)?;
                contained::start(engine, &self.machinery, plan, folder, &task.runtime).await?
            }
        };
        Ok(sandbox)
    }

    /// The image of a task, unpacked; `heard` is told how far that is.
    pub async fn image(&self, task: &Task, heard: &Heard) -> Result<Image, FindError> {
        let engine = match (task.backend, &task.image) {
            (Backend::Docker, ImageRef::Named(_)) => Some(self.engines.engine().await?),
            _ => None,
        };
        images::find(&task.image, &Store::of_state(&self.state), engine, heard).await
    }

    /// Names the socket of the engine for tasks of the `docker` backend, in place of what the environment says.
    #[must_use]
    pub fn with_engine(mut self, socket: PathBuf) -> Supervisor {
        self.engines = Engines::new(&self.state, Some(socket));
        self
    }
}

/// What looks at a task's roots found.
#[derive(Debug, Clone, Copy)]
pub struct RootFacts<'a> {
    /// Why protected names cannot be held in full.
    pub gaps: &'a [String],
    pub unmapped: Option<&'a Unmapped>,
}

/// Whom the command's user has to be outside; see `sandbox::owners`. Blocking.
pub fn unmapped(roots: &[Root], launcher: &Mutex<Launcher>) -> Result<Option<Unmapped>, OwnersError> {
    owners::look(roots, CallerIds::of_process(), |request| {
        launcher.lock().unwrap_or_else(PoisonError::into_inner).give(request)
    })
}

/// How far each guarantee is kept for a task on this machine. `engine` is the one that would make its container.
pub fn enforced(task: &Task, cgroups: &Cgroups, roots: RootFacts<'_>, engine: Option<&Engine>) -> Vec<Control> {
    let facts = Facts::of_machine(cgroups, roots.gaps);
    let mut controls = facts.controls(|guarantee| enforcement::has_limit(task, guarantee));
    let ids = owners::shortfall(CallerIds::of_process(), roots.unmapped);
    enforcement::weaken(&mut controls, ids.into_iter().collect());
    let less = match (engine, &task.runtime) {
        (Some(engine), runtime) => engine.shortfalls(runtime),
        (None, Runtime::Outside(runtime)) => outside::shortfalls(runtime),
        (None, Runtime::Builtin) => Vec::new(),
    };
    enforcement::weaken(&mut controls, less);
    controls
}

/// Why a task is refused, control by control, and how to go on.
fn not_enforced(lacking: &[Control]) -> String {
    let lines: Vec<String> = lacking.iter().map(enforcement::describe).collect();
    let names: Vec<String> = lacking.iter().map(|control| format!("{:?}", control.control)).collect();
    format!(
        "refused: {}\nto go on without: accept_partial = [{}] in the task spec, or --accept-partial",
        lines.join("\n"),
        names.join(", ")
    )
}

/// The isolation that a task of this process gets.
pub fn plan(task: &Task, image: &Image) -> Plan {
    plan_with(task, image, way_out::env(task)).with_files(way_out::links(task))
}

fn plan_with(task: &Task, image: &Image, way_out: BTreeMap<String, String>) -> Plan {
    Plan::of(task, root_source(image), CallerIds::of_process(), way_out)
}

fn root_source(image: &Image) -> RootSource<'_> {
    match image.kind {
        ImageKind::Host => RootSource::Host,
        ImageKind::Layers => RootSource::Layers {
            folders: &image.layers,
            env: &image.config.env,
        },
    }
}

fn make_private_folder(path: &Path) -> io::Result<()> {
    fs::DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes the folder under a name that recovery does not look at, locks it, and only then gives it its own: no other belljar can take
/// a task for dead that is just beginning.
fn make_task_folder(folder: &Path, task: &Task) -> io::Result<fs::File> {
    let new = folder.with_extension(recovery::NEW);
    fs::DirBuilder::new().mode(0o700).create(&new)?;
    let lock = recovery::try_lock(&new)?.ok_or(io::ErrorKind::ResourceBusy)?;
    let about = serde_json::json!({
        "id": task.id, "name": task.name, "pid": std::process::id(), "created": jiff::Timestamp::now().to_string(),
    });
    fs::write(new.join("task.json"), about.to_string())?;
    fs::rename(&new, folder)?;
    Ok(lock)
}
