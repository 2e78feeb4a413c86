//! Tasks of this process, as a harness would have them: the library with the built program as its launcher, every exec judged,
//! recorded, and counted in its own cgroup.
#![allow(dead_code, reason = "each bench uses a part of it")]

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use belljar::api::messages::ExecStart;
use belljar::approval::Nobody;
use belljar::audit::journal::{Journal, JournalOptions};
use belljar::audit::record::Identity;
use belljar::cli::flags::TaskArgs;
use belljar::exec::{ExecEnd, ExecEvent};
use belljar::image::{self, Silent, Store};
use belljar::policy::Policy;
use belljar::supervisor::{ExecHandle, Supervisor, TaskHandle};

pub const PROGRAM: &str = env!("CARGO_BIN_EXE_belljar");

/// A distribution's middle and its tail.
#[derive(Debug, Clone, Copy)]
pub struct Spread {
    pub p50: Duration,
    pub p99: Duration,
}

impl Spread {
    pub fn of(mut times: Vec<Duration>) -> Option<Spread> {
        times.sort_unstable();
        Some(Spread {
            p50: *times.get(times.len() / 2)?,
            p99: *times.get(times.len() * 99 / 100)?,
        })
    }
}

pub struct Bench {
    supervisor: Supervisor,
    state: PathBuf,
}

impl Bench {
    pub fn start(state: &Path) -> anyhow::Result<Bench> {
        std::fs::create_dir_all(state)?;
        let journal = Journal::open(&state.join("journal"), JournalOptions::default())?;
        let identity = Identity {
            login: None,
            uid: 0,
            user: "bench".to_owned(),
        };
        Ok(Bench {
            supervisor: Supervisor::start(Path::new(PROGRAM), state, journal, identity)?,
            state: state.to_owned(),
        })
    }

    /// A live task without a command.
    pub async fn task(&self) -> anyhow::Result<TaskHandle> {
        self.task_with(|_| {}).await
    }

    pub async fn task_with(&self, change: impl FnOnce(&mut TaskArgs)) -> anyhow::Result<TaskHandle> {
        let mut args = TaskArgs {
            network: Some("none".to_owned()),
            output: Some("2GiB".to_owned()),
            ..TaskArgs::default()
        };
        change(&mut args);
        let task = args.admit()?.task;
        let policy = Policy::load(&task.gate.rules, task.gate.unmatched)?;
        let image = image::resolve(&task.image, &Store::of_state(&self.state), &Silent)?;
        let nobody = Arc::new(Nobody {
            why: "a bench runs".to_owned(),
        });
        Ok(self.supervisor.start_task(task, image, policy, nobody).await?)
    }
}

pub fn submit(task: &TaskHandle, argv: &[&str]) -> anyhow::Result<ExecHandle> {
    let start: ExecStart = serde_json::from_value(serde_json::json!({ "argv": argv }))?;
    Ok(task.submit(start.into_request(&task.info().workdir)?)?)
}

/// Runs a command to an end that is a success.
pub async fn succeed(task: &TaskHandle, argv: &[&str]) -> anyhow::Result<()> {
    match submit(task, argv)?.wait().await {
        ExecEnd::Finished(end) if end.exit_code == Some(0) => Ok(()),
        other => anyhow::bail!("{argv:?} did not end well: {other:?}"),
    }
}

/// The same command again and again, after a pause each time.
pub async fn repeated(
    task: &TaskHandle,
    argv: &[&str],
    rounds: usize,
    pause: Duration,
) -> anyhow::Result<Vec<Duration>> {
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let begun = Instant::now();
        succeed(task, argv).await?;
        times.push(begun.elapsed());
    }
    Ok(times)
}

/// Reads the output of a command to its end; how many bytes there were.
pub async fn drain(exec: &ExecHandle) -> u64 {
    let mut events = exec.events(0);
    let mut received = 0;
    while let Some((_, event)) = events.next().await {
        if let ExecEvent::Output { data, .. } = event {
            received += data.len() as u64;
        }
    }
    received
}

/// Waits for the first byte that a command says.
pub async fn first_output(exec: &ExecHandle) -> anyhow::Result<()> {
    let mut events = exec.events(0);
    while let Some((_, event)) = events.next().await {
        match event {
            ExecEvent::Output { .. } => return Ok(()),
            ExecEvent::Ended(end) => anyhow::bail!("no output: {end:?}"),
            ExecEvent::Judged { .. } | ExecEvent::Asked { .. } | ExecEvent::Started => {}
        }
    }
    anyhow::bail!("the events ended")
}

/// Stops tasks, all at once.
pub async fn stop(tasks: Vec<TaskHandle>) {
    let mut stopping = tokio::task::JoinSet::new();
    for task in tasks {
        stopping.spawn(async move { task.stop().await });
    }
    while stopping.join_next().await.is_some() {}
}

/// A process's proportional share of memory, in bytes.
pub fn memory(rollup: impl AsRef<Path>) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(rollup)?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    let kib: f64 = number.ok_or_else(|| anyhow::anyhow!("no Pss"))?.parse()?;
    Ok(kib * 1024.0)
}

/// What the processes of these tasks have in memory together.
pub fn memory_inside(tasks: &[TaskHandle]) -> anyhow::Result<f64> {
    let ids: Vec<_> = tasks.iter().map(|task| task.id().to_string()).collect();
    let mut inside = 0.0;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(cgroups) = std::fs::read_to_string(entry.path().join("cgroup")) else {
            continue;
        };
        if ids.iter().any(|id| cgroups.contains(id)) {
            inside += memory(entry.path().join("smaps_rollup")).unwrap_or(0.0);
        }
    }
    Ok(inside)
}
