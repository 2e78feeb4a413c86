//! The `docker` backend: an engine that speaks Docker's API (Docker or Podman) makes the container, with whatever runtime it has.
//!
//! ```text
//!   belljar ── API, unix socket ── engine ── runc, crun, runsc, … ── container: guest
//!      └── near guest ══════ stream over a bind-mounted socket ═══════════┘
//! ```
//!
//! The engine gets the same plan as any backend, in its own words (`create`); commands, streams and the way out go by the relay and
//! never through the engine. Images are imported for a task and go with it, those that the engine has of its own included (`saved`);
//! networks are never made. Where PID 1 is a process of this machine's kernel it is put into the task's own cgroup, and execs are
//! counted there. All that is made carries the label [`TASK_LABEL`], by which it is found when belljar was killed.

mod create;
mod owned;
mod owner;
mod root;
mod saved;

pub use create::CHANNEL;

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bollard::Docker;
use bollard::models::ContainerSummary;
use bollard::query_parameters::{
    CreateContainerOptions, InspectContainerOptions, ListContainersOptions, ListImagesOptions, RemoveContainerOptions,
    RemoveImageOptions, StartContainerOptions, WaitContainerOptions,
};
use futures_util::StreamExt;

use super::launcher::{Carry, LaunchError, Launcher};
use super::outside;
use super::plan::{CallerIds, Ids, OutsideUser, Plan};
use crate::audit::record::{Control, Enforced};
use crate::task::Runtime;

/// On all that belljar has an engine make: the task's id.
const TASK_LABEL: &str = "belljar.task";

/// Beside it: the state folder of the belljar that the task is of.
const STATE_LABEL: &str = "belljar.state";

/// On an image, in the place of both: `TASK@STATE`. Podman reads one label of an import, no more.
const IMAGE_LABEL: &str = "belljar.image";

/// How long an engine may take for one call; an import of a large image is the longest.
const PATIENCE: Duration = Duration::from_secs(300);

/// How long an engine may take to see that a container is over whose guest is gone.
const END_PATIENCE: Duration = Duration::from_secs(10);

/// statfs(2).
const CGROUP2_SUPER_MAGIC: i64 = 0x6367_7270;

/// How long an engine may take to remove a container while a task ends.
const REMOVE_PATIENCE: Duration = Duration::from_secs(60);

#[derive(Debug, thiserror::Error)]
pub enum DockerError {
    #[error("no engine answers at {}", socket.display())]
    NoEngine {
        socket: PathBuf,
        source: Box<bollard::errors::Error>,
    },
    #[error("the engine could not {what}")]
    Call {
        what: &'static str,
        source: Box<bollard::errors::Error>,
    },
    #[error("the engine is not on this machine's unix sockets (DOCKER_HOST is {host}): roots could not be mounted")]
    NotLocal { host: String },
    #[error("the engine has no runtime \"{runtime}\", only {known}")]
    NoRuntime { runtime: String, known: String },
    #[error(
        "Podman's service runs everything with the one runtime that it was started with, which is {own} and not \"{runtime}\" \
         (podman --runtime {runtime} system service)"
    )]
    OneRuntime { runtime: String, own: String },
    #[error(
        "user = \"root\" would be root of the host: this engine maps no ids (dockerd --userns-remap, or a rootless engine, does)"
    )]
    RootOutside,
    #[error(
        "the engine cannot give a writable root of {uid}:{gid} to the command's user where ids cannot be mapped: backend = \"oci\" can, \
         or the root can lie on a volume or a tmpfs"
    )]
    Unmapped { uid: u32, gid: u32 },
    #[error(
        "the engine runs as the user {engine} in a user namespace of its own and belljar as {caller}: what one owns is nobody's for the \
         other (start belljar as that user, or use an engine of root's)"
    )]
    OthersEngine { engine: String, caller: String },
    #[error("the container ended before its guest spoke: {said}")]
    Ended { said: String },
    #[error("the engine took the root file system and has no image of it")]
    NoImage,
    #[error("a root cannot be given to the command's user")]
    Give { source: LaunchError },
    #[error("could not {what}")]
    Io { what: &'static str, source: io::Error },
}

fn call(what: &'static str) -> impl Fn(bollard::errors::Error) -> DockerError {
    move |source| DockerError::Call {
        what,
        source: Box::new(source),
    }
}

fn io(what: &'static str) -> impl Fn(io::Error) -> DockerError {
    move |source| DockerError::Io { what, source }
}

/// Where an engine listens: what `DOCKER_HOST` says, else the usual places of Docker and of Podman, the first that is there.
pub fn socket(docker_host: Option<&str>, runtime_folder: Option<&str>) -> Result<PathBuf, DockerError> {
    match docker_host.filter(|host| !host.is_empty()) {
        Some(host) => host
            .strip_prefix("unix://")
            .map(PathBuf::from)
            .ok_or_else(|| DockerError::NotLocal { host: host.to_owned() }),
        None => {
            let docker = PathBuf::from("/var/run/docker.sock");
            let own = runtime_folder.map(|folder| Path::new(folder).join("podman/podman.sock"));
            let mut places = vec![docker.clone()];
            places.extend(own);
            places.push("/run/podman/podman.sock".into());
            Ok(places.into_iter().find(|place| place.exists()).unwrap_or(docker))
        }
    }
}

/// An engine that answers.
pub struct Engine {
    docker: Docker,
    pub facts: Facts,
}

/// What an engine says of itself.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Facts {
    /// Its name and version, for people.
    pub about: String,
    pub is_podman: bool,
    /// Ids inside are others outside.
    pub maps_ids: bool,
    /// The engine itself runs as an ordinary user.
    pub is_rootless: bool,
    /// The ids outside that are 0 inside, where it maps them for a whole daemon.
    pub remapped: Option<(u32, u32)>,
    /// By name, with what it says of each: the program, its arguments.
    pub runtimes: BTreeMap<String, String>,
    pub default_runtime: String,
}

impl Facts {
    /// A user and group of a container as the host numbers them.
    fn outside(&self, uid: u32, gid: u32) -> OutsideUser {
        let (first_uid, first_gid) = self.remapped.unwrap_or_default();
        OutsideUser {
            uid: first_uid + uid,
            gid: first_gid + gid,
        }
    }

    /// The runtime to name for a task; `None` for the engine's default.
    pub fn runtime<'r>(&self, runtime: &'r Runtime) -> Result<Option<&'r str>, DockerError> {
        match runtime {
            Runtime::Builtin => Ok(None),
            // It is asked for one, and does not hear it.
            Runtime::Outside(name) if self.is_podman => match *name == self.default_runtime {
                true => Ok(None),
                false => Err(DockerError::OneRuntime {
                    runtime: name.clone(),
                    own: self.default_runtime.clone(),
                }),
            },
            Runtime::Outside(name) if self.runtimes.contains_key(name) => Ok(Some(name)),
            Runtime::Outside(name) => {
                let known: Vec<&str> = self.runtimes.keys().map(String::as_str).collect();
                Err(DockerError::NoRuntime {
                    runtime: name.clone(),
                    known: known.join(", "),
                })
            }
        }
    }

    /// Whether a runtime is one that loads a list of system calls only where it is asked to, and is not.
    fn is_without_filter(&self, runtime: &Runtime) -> bool {
        self.carry(runtime) == Carry::Stream && !self.about_runtime(runtime).contains("oci-seccomp")
    }

    /// What is known of a runtime: its name, and what stands behind a name that an admin chose.
    fn about_runtime(&self, runtime: &Runtime) -> String {
        let name = match runtime {
            Runtime::Builtin => &self.default_runtime,
            Runtime::Outside(name) => name,
        };
        let behind = self.runtimes.get(name).map(String::as_str).unwrap_or_default();
        format!("{name} {behind}")
    }

    fn carry(&self, runtime: &Runtime) -> Carry {
        let about = self.about_runtime(runtime);
        match ["runsc", "gvisor"].iter().any(|word| about.contains(word)) {
            true => Carry::Stream,
            false => Carry::Descriptors,
        }
    }
}

/// Where a daemon with `--userns-remap` keeps its data: in a folder named after the first ids that it maps to.
fn remapped(data: &str) -> Option<(u32, u32)> {
    let (uid, gid) = data.rsplit('/').next()?.split_once('.')?;
    Some((uid.parse().ok()?, gid.parse().ok()?))
}

impl Engine {
    pub async fn connect(socket: &Path) -> Result<Engine, DockerError> {
        let no_engine = |source| DockerError::NoEngine {
            socket: socket.to_owned(),
            source: Box::new(source),
        };
        let address = socket.to_string_lossy();
        let docker = Docker::connect_with_unix(&address, PATIENCE.as_secs(), bollard::API_DEFAULT_VERSION)
            .map_err(no_engine)?
            .negotiate_version()
            .await
            .map_err(no_engine)?;
        let info = docker.info().await.map_err(call("say what it is"))?;
        let version = docker.version().await.map_err(call("say its version"))?;
        let options = info.security_options.unwrap_or_default();
        let has = |name: &str| options.iter().any(|option| option.split(',').any(|word| word == name));
        let components = version.components.unwrap_or_default();
        let is_podman = components.iter().any(|one| one.name.contains("Podman"));
        let is_rootless = has("name=rootless") || is_podman && owner::says_rootless(socket).await?;
        if is_rootless {
            owner::check(socket).await?;
        }
        let runtimes = info.runtimes.unwrap_or_default().into_iter();
        let runtimes = runtimes.map(|(name, behind)| (name, serde_json::json!(behind).to_string()));
        Ok(Engine {
            docker,
            facts: Facts {
                about: format!(
                    "{} {}, API {}",
                    if is_podman { "Podman" } else { "Docker" },
                    version.version.unwrap_or_default(),
                    version.api_version.unwrap_or_default()
                ),
                is_podman,
                maps_ids: is_rootless || has("name=userns"),
                is_rootless,
                remapped: match has("name=userns") && !is_rootless {
                    true => info.docker_root_dir.as_deref().and_then(remapped),
                    false => None,
                },
                runtimes: runtimes.collect(),
                default_runtime: info.default_runtime.unwrap_or_default(),
            },
        })
    }

    /// What a container of this engine's gives less of than belljar's own launcher.
    pub fn shortfalls(&self, runtime: &Runtime) -> Vec<Control> {
        let partial = |control: &str, reason: &str| Control {
            control: control.to_owned(),
            enforced: Enforced::Partial,
            reason: Some(reason.to_owned()),
        };
        let mut less = Vec::new();
        if !CallerIds::of_process().has_range {
            less.push(partial(
                "mounts",
                "the engine opens roots by their paths: one that somebody swaps while the task starts is followed",
            ));
            less.push(partial(
                "protected_names",
                "the engine follows links where it mounts, so one that stands for a protected name can be replaced",
            ));
            if self.facts.remapped.is_some() {
                less.push(partial(
                    "owners",
                    "the engine runs all under ids of its own, none of which is yours: a command can write in writable roots only where \
                     everybody can (needed: root, a rootless engine, or one without --userns-remap)",
                ));
            }
        }
        let ids = "the engine makes no user namespace: ids inside are ids outside (dockerd --userns-remap, or a rootless engine, maps them)";
        let cgroups =
            "Podman makes no cgroup namespace where cgroups are of version 1: their names outside can be read";
        // As Podman itself asks; what this caller may do with them is another matter.
        let is_v1 = !rustix::fs::statfs("/sys/fs/cgroup").is_ok_and(|found| found.f_type == CGROUP2_SUPER_MAGIC);
        match (self.facts.maps_ids, self.facts.is_podman && is_v1) {
            (false, false) => less.push(partial("namespaces", ids)),
            (false, true) => less.push(partial("namespaces", &format!("{ids}; {cgroups}"))),
            (true, true) => less.push(partial("namespaces", cgroups)),
            (true, false) => {}
        }
        less.extend(outside::shortfalls_of(self.facts.carry(runtime)));
        if self.facts.is_without_filter(runtime) {
            let why = "the engine starts gVisor without --oci-seccomp, so the list of system calls is not loaded there and only gVisor's own \
                       kernel bounds them";
            less.extend(["seccomp", "sockets", "devices"].map(|control| partial(control, why)));
        }
        if self.facts.about_runtime(runtime).contains("ignore-cgroups") {
            let why = "the engine starts this runtime with --ignore-cgroups, so nothing bounds it";
            less.extend(["limit.memory", "limit.cpus", "limit.pids"].map(|limit| Control {
                enforced: Enforced::None,
                ..partial(limit, why)
            }));
        }
        less
    }

    /// Whether what a runtime of the engine's runs has a kernel that is not this machine's.
    pub fn has_own_kernel(&self, runtime: &Runtime) -> bool {
        self.facts.carry(runtime) == Carry::Stream || self.facts.about_runtime(runtime).contains("kata")
    }

    /// Makes and starts a task's container. `folder` is the task's own, `mounts` one beside it, see [`owned`]; the socket of the guest
    /// listens in it already, under [`create::CHANNEL`].
    pub async fn start(&self, plan: &Plan, runtime: &Runtime, place: Place<'_>) -> Result<Container, DockerError> {
        if let (Ids::Range { .. }, 0, false) = (plan.ids, plan.process.uid, self.facts.maps_ids) {
            return Err(DockerError::RootOutside);
        }
        if let Ids::Range { user: Some(user), .. } = plan.ids {
            return Err(DockerError::Unmapped {
                uid: user.uid,
                gid: user.gid,
            });
        }
        let carry = self.facts.carry(runtime);
        let runtime = self.facts.runtime(runtime)?;
        let files =
            create::write_files(plan, place.folder, &self.facts, carry).map_err(io("write the task's files"))?;
        let owned = {
            let (plan, mounts, launcher) = (plan.clone(), place.mounts.to_owned(), place.launcher.clone());
            let who = owned::Who {
                user: self.facts.outside(plan.process.uid, plan.process.gid),
                maker: match carry {
                    Carry::Stream => Some(self.facts.outside(0, 0)),
                    Carry::Descriptors => None,
                },
            };
            let made = tokio::task::spawn_blocking(move || owned::Owned::make(&plan, &mounts, &launcher, who));
            made.await
                .map_err(|error| io("mount the roots")(io::Error::other(error)))??
        };
        let labels = HashMap::from([
            (TASK_LABEL.to_owned(), plan.task.to_string()),
            (STATE_LABEL.to_owned(), place.state.display().to_string()),
        ]);
        let image = root::import(&self.docker, plan, &self.facts, place.state).await?;
        let container = Container {
            docker: self.docker.clone(),
            id: plan.task.to_string(),
            image,
            folder: place.folder.to_owned(),
        };
        let body = create::body(
            plan,
            &create::Made {
                image: &container.image,
                folder: place.folder,
                owned: &owned,
                files: &files,
                labels,
                runtime,
                carry,
                facts: &self.facts,
            },
        );
        let name = CreateContainerOptions {
            name: Some(container_name(&plan.task.to_string())),
            ..CreateContainerOptions::default()
        };
        let started = async {
            let created = self.docker.create_container(Some(name), body).await;
            let id = created.map_err(call("make the container"))?.id;
            let started = self.docker.start_container(&id, None::<StartContainerOptions>).await;
            started.map_err(call("start the container"))
        };
        match started.await {
            Ok(()) => Ok(container),
            Err(error) => {
                container.remove().await;
                Err(error)
            }
        }
        // The container holds the roots now; what they were mounted on here goes with `owned`.
    }

    /// Removes what tasks of this state folder left, but for those that live. Returns how many containers there were.
    pub async fn sweep(&self, state: &Path, is_alive: &(dyn Fn(&str) -> bool + Sync)) -> Result<usize, DockerError> {
        let label = format!("{STATE_LABEL}={}", state.display());
        let filters = HashMap::from([("label".to_owned(), vec![label])]);
        let containers = ListContainersOptions {
            all: true,
            filters: Some(filters),
            ..ListContainersOptions::default()
        };
        let images = ListImagesOptions {
            all: true,
            filters: Some(HashMap::from([("label".to_owned(), vec![IMAGE_LABEL.to_owned()])])),
            ..ListImagesOptions::default()
        };
        let mut removed = 0;
        let containers = self.docker.list_containers(Some(containers)).await;
        for one in containers.map_err(call("list its containers"))? {
            if let (Some(id), true) = (&one.id, task_of(&one).is_some_and(|task| !is_alive(task))) {
                remove_container(&self.docker, id).await;
                removed += 1;
            }
        }
        let images = self.docker.list_images(Some(images)).await;
        for one in images.map_err(call("list its images"))? {
            let label = one.labels.get(IMAGE_LABEL).and_then(|label| label.split_once('@'));
            // A label is whatever an image's maker writes; the name is what belljar gave.
            let is_ours = |task: &str| one.repo_tags.iter().any(|tag| tag.ends_with(&root::tag(task)));
            if label.is_some_and(|(task, of)| Path::new(of) == state && !is_alive(task) && is_ours(task)) {
                remove_image(&self.docker, &one.id).await;
            }
        }
        Ok(removed)
    }
}

/// The task that a container was made for. It has the labels of its image too, which are anybody's: so its name has to agree.
fn task_of(container: &ContainerSummary) -> Option<&str> {
    let task = container.labels.as_ref()?.get(TASK_LABEL)?;
    let name = format!("/{}", container_name(task));
    let names = container.names.as_deref().unwrap_or_default();
    names.contains(&name).then_some(task)
}

fn container_name(task: &str) -> String {
    format!("belljar-{task}")
}

/// Where a task's files for an engine are.
#[derive(Clone, Copy)]
pub struct Place<'a> {
    pub state: &'a Path,
    /// The task's own.
    pub folder: &'a Path,
    /// Where roots are mounted for the moment in which the engine takes them; nothing is ever removed from there but empty folders.
    pub mounts: &'a Path,
    pub launcher: &'a Arc<Mutex<Launcher>>,
}

/// Takes away what a belljar that was killed left mounted for an engine. Blocking.
pub fn unmount_left(mounts: &Path, is_alive: &dyn Fn(&str) -> bool) -> io::Result<()> {
    owned::clear(mounts, is_alive)
}

/// The folder of a state folder in which roots are mounted for engines.
pub fn mounts(state: &Path) -> PathBuf {
    state.join("mounts")
}

/// A task's container.
pub struct Container {
    docker: Docker,
    /// The task's id.
    id: String,
    image: String,
    /// The task's own.
    folder: PathBuf,
}

impl Container {
    fn name(&self) -> String {
        container_name(&self.id)
    }

    /// Puts a text into the file that tells commands their limits. The guest cannot: the root is read-only, and the file is the host's,
    /// which nobody inside may fill.
    pub fn tell_limits(&self, text: &str) {
        // The folder of a task that is over is gone.
        let _ = create::write_limits(&self.folder, text);
    }

    /// Waits until the container is over; says how.
    pub async fn ended(&self) -> DockerError {
        let mut waiting = self.docker.wait_container(&self.name(), None::<WaitContainerOptions>);
        let said = match waiting.next().await {
            Some(Ok(ended)) => format!("exit code {}", ended.status_code),
            Some(Err(bollard::errors::Error::DockerContainerWaitError { error, code })) if error.is_empty() => {
                format!("exit code {code}")
            }
            Some(Err(error)) => error.to_string(),
            None => "nothing is known".to_owned(),
        };
        DockerError::Ended { said }
    }

    /// Whether memory was its end, by what the engine heard of the kernel: where what runs inside is none of this kernel's processes,
    /// the limit is on what runs its kernel, in a cgroup that is gone with it.
    pub async fn ran_out_of_memory(&self) -> bool {
        let told = async {
            // It is told with the end.
            let _ = self.ended().await;
            let options = None::<InspectContainerOptions>;
            let found = self.docker.inspect_container(&self.name(), options).await.ok()?;
            found.state?.oom_killed
        };
        let told = tokio::time::timeout(END_PATIENCE, told).await;
        told.ok().flatten().unwrap_or_default()
    }

    /// Ends and removes the container and its image. What cannot be removed now is found by its label at the next start.
    pub async fn remove(&self) {
        let removed = async {
            remove_container(&self.docker, &self.name()).await;
            remove_image(&self.docker, &self.image).await;
        };
        if tokio::time::timeout(REMOVE_PATIENCE, removed).await.is_err() {
            tracing::warn!(task = %self.id, "the engine does not remove a task's container; the next start tries again");
        }
    }
}

async fn remove_container(docker: &Docker, name: &str) {
    let options = RemoveContainerOptions {
        v: true,
        force: true,
        ..RemoveContainerOptions::default()
    };
    match docker.remove_container(name, Some(options)).await {
        Ok(()) => {}
        // Not made, or removed already.
        Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => {}
        Err(error) => {
            tracing::warn!(%error, name, "a task's container could not be removed; the next start tries again")
        }
    }
}

async fn remove_image(docker: &Docker, name: &str) {
    let options = RemoveImageOptions {
        force: true,
        ..RemoveImageOptions::default()
    };
    match docker.remove_image(name, Some(options), None).await {
        Ok(_) => {}
        Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => {}
        Err(error) => tracing::warn!(%error, name, "a task's image could not be removed; the next start tries again"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gvisor_that_loads_no_list_of_calls_is_known_by_how_it_is_started() {
        let facts = |arguments: &str| Facts {
            about: String::new(),
            is_podman: false,
            maps_ids: false,
            is_rootless: false,
            remapped: None,
            runtimes: BTreeMap::from([
                ("runc".to_owned(), r#"{"path":"runc"}"#.to_owned()),
                (
                    "boxed".to_owned(),
                    format!(r#"{{"path":"/usr/bin/runsc","runtimeArgs":[{arguments}]}}"#),
                ),
            ]),
            default_runtime: "runc".to_owned(),
        };
        let gvisor = Runtime::Outside("boxed".to_owned());
        assert!(facts("").is_without_filter(&gvisor));
        assert!(!facts(r#""--oci-seccomp""#).is_without_filter(&gvisor));
        assert!(!facts("").is_without_filter(&Runtime::Builtin));
    }

    #[test]
    fn a_remapped_daemons_ids_are_in_the_name_of_its_folder() {
        assert_eq!(remapped("/var/lib/docker/100000.100001"), Some((100_000, 100_001)));
        assert_eq!(remapped("/var/lib/docker"), None);
    }

    #[test]
    fn the_engine_is_where_the_variable_says_and_nowhere_far_away() {
        assert_eq!(socket(Some("unix:///x/y.sock"), None).unwrap(), Path::new("/x/y.sock"));
        let error = socket(Some("tcp://10.0.0.1:2375"), None).unwrap_err();
        assert!(error.to_string().contains("tcp://10.0.0.1:2375"), "{error}");
        assert!(socket(Some("ssh://host"), None).is_err());
    }
}
