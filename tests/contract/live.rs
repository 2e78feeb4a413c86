//! A live task of its own for each promise.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use belljar::api::messages::ExecStart;
use belljar::approval::Nobody;
use belljar::audit::journal::{Journal, JournalOptions};
use belljar::audit::record::{ExecFinished, Identity};
use belljar::cli::flags::TaskArgs;
use belljar::exec::{ExecEnd, ExecEvent, Stream};
use belljar::image::{self, Silent, Store};
use belljar::policy::Policy;
use belljar::supervisor::{ExecHandle, StartError, Supervisor, TaskHandle};

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Runtime {
    Builtin,
    Runc,
    Runsc,
    /// What an engine runs, by the engine's socket.
    Engine(&'static Path),
    /// Likewise its gVisor.
    EngineGvisor(&'static Path),
    /// Podman's.
    EnginePodman(&'static Path),
}

impl Runtime {
    /// Whether what runs inside has a kernel that is not the host's.
    pub fn has_own_kernel(self) -> bool {
        matches!(self, Runtime::Runsc | Runtime::EngineGvisor(_))
    }

    /// Whether ids inside are ids outside.
    pub fn shares_ids(self) -> bool {
        self.socket().is_some()
    }

    /// Whether the names of cgroups outside can be read inside, as is reported.
    pub fn shares_cgroup_namespace(self) -> bool {
        let is_v1 = belljar::sys::cgroup::Cgroups::detect().version() == Some(belljar::sys::cgroup::Version::V1);
        matches!(self, Runtime::EnginePodman(_)) && is_v1
    }

    /// An engine's.
    fn socket(self) -> Option<&'static Path> {
        match self {
            Runtime::Engine(socket) | Runtime::EngineGvisor(socket) | Runtime::EnginePodman(socket) => Some(socket),
            Runtime::Builtin | Runtime::Runc | Runtime::Runsc => None,
        }
    }

    fn name(self) -> &'static str {
        match self {
            Runtime::Builtin => "builtin",
            Runtime::Runc => "runc",
            Runtime::Runsc => "runsc",
            // Whatever the engine's own default is.
            Runtime::Engine(_) | Runtime::EnginePodman(_) => "builtin",
            // See `engines`.
            Runtime::EngineGvisor(_) => "sandboxed",
        }
    }
}

/// The runtime, if it is here; where everything must be here, its absence is a failure.
pub fn installed(runtime: Runtime) -> Option<Runtime> {
    if runtime == Runtime::Builtin
        || runtime.socket().is_some()
        || belljar::sandbox::outside::find(runtime.name()).is_ok()
    {
        return Some(runtime);
    }
    assert_ne!(
        std::env::var("CI").as_deref(),
        Ok("true"),
        "{} is not installed",
        runtime.name()
    );
    eprintln!("skipped: {} is not installed", runtime.name());
    None
}

pub struct Live {
    pub task: TaskHandle,
    pub workspace: PathBuf,
    pub state: tempfile::TempDir,
    _supervisor: Supervisor,
}

/// What came of a command.
#[derive(Debug)]
pub struct Done {
    pub end: ExecFinished,
    pub stdout: Vec<u8>,
    pub stderr: Vec<u8>,
}

impl Done {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.stdout).unwrap().trim_end()
    }
}

impl Live {
    pub async fn start(runtime: Runtime) -> Live {
        Live::with(runtime, |_| {}).await
    }

    pub async fn with(runtime: Runtime, change: impl FnOnce(&mut TaskArgs)) -> Live {
        let state = tempfile::tempdir().unwrap();
        let begun = Live::begin_on(state.path(), runtime, change).await;
        let (supervisor, task) = begun.unwrap_or_else(|error| panic!("{:#}", anyhow::Error::from(error)));
        Live {
            task,
            workspace: state.path().join("workspace"),
            state,
            _supervisor: supervisor,
        }
    }

    async fn begin_on(
        state: &Path,
        runtime: Runtime,
        change: impl FnOnce(&mut TaskArgs),
    ) -> Result<(Supervisor, TaskHandle), StartError> {
        let Some(socket) = runtime.socket() else {
            return Live::begin(state, runtime.name(), change).await;
        };
        let backend = |args: &mut TaskArgs| {
            args.backend = Some("docker".to_owned());
            args.accept_partial = ["exec_isolation", "mounts", "namespaces"].map(str::to_owned).to_vec();
            change(args);
        };
        Live::begin_with(state, runtime.name(), backend, |supervisor| {
            supervisor.with_engine(socket.to_owned())
        })
        .await
    }

    /// A task at an engine with a runtime that the engine may have.
    pub async fn begin_at(socket: &Path, state: &Path, runtime: &str) -> Result<(Supervisor, TaskHandle), StartError> {
        let backend = |args: &mut TaskArgs| {
            args.backend = Some("docker".to_owned());
            args.accept_partial = ["mounts", "namespaces"].map(str::to_owned).to_vec();
        };
        Live::begin_with(state, runtime, backend, |supervisor| {
            supervisor.with_engine(socket.to_owned())
        })
        .await
    }

    pub async fn begin(
        state: &Path,
        runtime: &str,
        change: impl FnOnce(&mut TaskArgs),
    ) -> Result<(Supervisor, TaskHandle), StartError> {
        Live::begin_with(state, runtime, change, |supervisor| supervisor).await
    }

    pub async fn begin_with(
        state: &Path,
        runtime: &str,
        change: impl FnOnce(&mut TaskArgs),
        with: impl FnOnce(Supervisor) -> Supervisor,
    ) -> Result<(Supervisor, TaskHandle), StartError> {
        let workspace = state.join("workspace");
        std::fs::create_dir(&workspace).unwrap();
        let mut args = TaskArgs {
            write: vec![workspace.to_str().unwrap().to_owned()],
            runtime: Some(runtime.to_owned()),
            network: Some("none".to_owned()),
            ..TaskArgs::default()
        };
        change(&mut args);
        let task = args.admit().unwrap().task;
        let policy = Policy::load(&task.gate.rules, task.gate.unmatched).unwrap();
        let journal = Journal::open(&state.join("journal"), JournalOptions::default()).unwrap();
        let identity = Identity {
            login: None,
            uid: 0,
            user: "tester".to_owned(),
        };
        let program = Path::new(env!("CARGO_BIN_EXE_belljar"));
        let supervisor = with(Supervisor::start(program, state, journal, identity).unwrap());
        let image = image::resolve(&task.image, &Store::of_state(state), &Silent).unwrap();
        let nobody = Arc::new(Nobody {
            why: "a test runs".to_owned(),
        });
        let handle = supervisor.start_task(task, image, policy, nobody).await?;
        Ok((supervisor, handle))
    }

    pub fn submit(&self, start: serde_json::Value) -> ExecHandle {
        Live::submit_to(&self.task, start)
    }

    pub fn submit_to(task: &TaskHandle, start: serde_json::Value) -> ExecHandle {
        let start: ExecStart = serde_json::from_value(start).unwrap();
        let request = start.into_request(&task.info().workdir).unwrap();
        task.submit(request).unwrap()
    }

    /// Runs a command to its end.
    pub async fn run(&self, start: serde_json::Value) -> Done {
        finish(self.submit(start)).await
    }

    pub async fn sh(&self, script: &str) -> Done {
        self.run(serde_json::json!({ "argv": ["/bin/sh", "-c", script] })).await
    }
}

/// Waits for a command's end, and takes its output on the way.
pub async fn finish(exec: ExecHandle) -> Done {
    let mut events = exec.events(0);
    let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
    while let Some((_, event)) = events.next().await {
        match event {
            ExecEvent::Output {
                stream: Stream::Stderr,
                data,
            } => stderr.extend_from_slice(&data),
            ExecEvent::Output { data, .. } => stdout.extend_from_slice(&data),
            ExecEvent::Ended(ExecEnd::Finished(end)) => {
                return Done {
                    end: *end,
                    stdout,
                    stderr,
                };
            }
            ExecEvent::Ended(other) => panic!("the command did not run: {other:?}"),
            ExecEvent::Judged { .. } | ExecEvent::Asked { .. } | ExecEvent::Started => {}
        }
    }
    panic!("the events ended without an end");
}

/// Reads output until it holds some text.
pub async fn until(exec: &ExecHandle, wanted: &str) {
    let mut events = exec.events(0);
    let mut seen = String::new();
    while !seen.contains(wanted) {
        match events.next().await {
            Some((_, ExecEvent::Output { data, .. })) => seen.push_str(&String::from_utf8_lossy(&data)),
            Some((_, ExecEvent::Ended(end))) => panic!("it ended before it said {wanted:?}: {seen:?}, {end:?}"),
            Some(_) => {}
            None => panic!("the events ended"),
        }
    }
}
