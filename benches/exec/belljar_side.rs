//! belljar's own figures, in this process.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
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

use super::{Measured, Rounds, Spread};

const PROGRAM: &str = env!("CARGO_BIN_EXE_belljar");

/// Bytes of output for the stream.
const BYTES: u64 = 1 << 30;

/// Idle tasks to take the memory of one from.
const IDLE: usize = 50;

struct Bench {
    supervisor: Supervisor,
    state: std::path::PathBuf,
}

pub async fn measure(state: &Path, rounds: Rounds) -> anyhow::Result<Measured> {
    std::fs::create_dir_all(state)?;
    let journal = Journal::open(&state.join("journal"), JournalOptions::default())?;
    let identity = Identity {
        login: None,
        uid: 0,
        user: "bench".to_owned(),
    };
    let bench = Bench {
        supervisor: Supervisor::start(Path::new(PROGRAM), state, journal, identity)?,
        state: state.to_owned(),
    };
    let task = bench.task().await?;
    let exec = execs(&task, rounds.execs, Duration::ZERO).await?;
    let exec_after_pause = execs(&task, rounds.paused, Duration::from_millis(100)).await?;
    let execs_a_second = callers(&task, rounds).await?;
    let stdout_gigabytes = stream(&task).await?;
    task.stop().await;
    let mut first = Vec::new();
    for _ in 0..rounds.starts {
        let begun = Instant::now();
        let task = bench.task().await?;
        first_output(&submit(&task, &["/bin/echo", "x"])?).await?;
        first.push(begun.elapsed());
        task.stop().await;
    }
    let whole_run = whole_runs(rounds.starts)?;
    let (idle_kib, two_hundred) = many(&bench).await?;
    Ok(Measured {
        exec,
        exec_after_pause,
        execs_a_second: Some(execs_a_second),
        first_byte: Spread::of(first),
        whole_run,
        stdout_gigabytes: Some(stdout_gigabytes),
        idle_kib: Some(idle_kib),
        two_hundred: Some(two_hundred),
    })
}

impl Bench {
    async fn task(&self) -> anyhow::Result<TaskHandle> {
        let args = TaskArgs {
            network: Some("none".to_owned()),
            output: Some("2GiB".to_owned()),
            ..TaskArgs::default()
        };
        let task = args.admit()?.task;
        let policy = Policy::load(&task.gate.rules, task.gate.unmatched)?;
        let image = image::resolve(&task.image, &Store::of_state(&self.state), &Silent)?;
        let nobody = Arc::new(Nobody {
            why: "a bench runs".to_owned(),
        });
        Ok(self.supervisor.start_task(task, image, policy, nobody).await?)
    }
}

fn submit(task: &TaskHandle, argv: &[&str]) -> anyhow::Result<ExecHandle> {
    let start: ExecStart = serde_json::from_value(serde_json::json!({ "argv": argv }))?;
    Ok(task.submit(start.into_request(&task.info().workdir)?)?)
}

async fn true_once(task: &TaskHandle) -> anyhow::Result<()> {
    match submit(task, &["/bin/true"])?.wait().await {
        ExecEnd::Finished(end) if end.exit_code == Some(0) => Ok(()),
        other => anyhow::bail!("true did not end well: {other:?}"),
    }
}

async fn execs(task: &TaskHandle, rounds: usize, pause: Duration) -> anyhow::Result<Option<Spread>> {
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        if !pause.is_zero() {
            tokio::time::sleep(pause).await;
        }
        let begun = Instant::now();
        true_once(task).await?;
        times.push(begun.elapsed());
    }
    Ok(Spread::of(times))
}

async fn callers(task: &TaskHandle, rounds: Rounds) -> anyhow::Result<f64> {
    let left = Arc::new(AtomicUsize::new(rounds.execs));
    let begun = Instant::now();
    let mut callers = tokio::task::JoinSet::new();
    for _ in 0..rounds.callers {
        let (task, left) = (task.clone(), left.clone());
        callers.spawn(async move {
            while left
                .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
                .is_ok()
            {
                true_once(&task).await?;
            }
            Ok::<_, anyhow::Error>(())
        });
    }
    while let Some(caller) = callers.join_next().await {
        caller??;
    }
    Ok(rounds.execs as f64 / begun.elapsed().as_secs_f64())
}

async fn stream(task: &TaskHandle) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let exec = submit(task, &["head", "-c", &BYTES.to_string(), "/dev/zero"])?;
    let mut events = exec.events(0);
    let mut received = 0;
    while let Some((_, event)) = events.next().await {
        if let ExecEvent::Output { data, .. } = event {
            received += data.len() as u64;
        }
    }
    anyhow::ensure!(received == BYTES, "{received} bytes of {BYTES} arrived");
    Ok(BYTES as f64 / begun.elapsed().as_secs_f64() / 1e9)
}

async fn first_output(exec: &ExecHandle) -> anyhow::Result<()> {
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

fn whole_runs(rounds: usize) -> anyhow::Result<Option<Spread>> {
    let state = tempfile::tempdir()?;
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let begun = Instant::now();
        let status = Command::new(PROGRAM)
            .args(["run", "--quiet", "--network", "none", "--", "true"])
            .env("BELLJAR_STATE", state.path())
            .stdin(Stdio::null())
            .status()?;
        times.push(begun.elapsed());
        anyhow::ensure!(status.success(), "belljar run ended with {status}");
    }
    Ok(Spread::of(times))
}

/// What an idle task takes, and how long 200 starts take.
async fn many(bench: &Bench) -> anyhow::Result<(f64, Duration)> {
    let before = resident_kib("/proc/self/smaps_rollup")?;
    let mut tasks = Vec::new();
    for _ in 0..IDLE {
        tasks.push(bench.task().await?);
    }
    let host = resident_kib("/proc/self/smaps_rollup")? - before;
    let ids: Vec<_> = tasks.iter().map(|task| task.id().to_string()).collect();
    let mut inside = 0.0;
    for entry in std::fs::read_dir("/proc")?.flatten() {
        let Ok(cgroups) = std::fs::read_to_string(entry.path().join("cgroup")) else {
            continue;
        };
        if ids.iter().any(|id| cgroups.contains(id)) {
            inside += resident_kib(entry.path().join("smaps_rollup")).unwrap_or(0.0);
        }
    }
    stop(tasks).await;
    let begun = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..50 {
        let (a, b, c, d) = tokio::try_join!(bench.task(), bench.task(), bench.task(), bench.task())?;
        tasks.extend([a, b, c, d]);
    }
    let took = begun.elapsed();
    stop(tasks).await;
    Ok(((host + inside) / IDLE as f64, took))
}

async fn stop(tasks: Vec<TaskHandle>) {
    let mut stopping = tokio::task::JoinSet::new();
    for task in tasks {
        stopping.spawn(async move { task.stop().await });
    }
    while stopping.join_next().await.is_some() {}
}

/// A process's proportional share of memory.
fn resident_kib(rollup: impl AsRef<Path>) -> anyhow::Result<f64> {
    let text = std::fs::read_to_string(rollup)?;
    let line = text.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = line.and_then(|line| line.split_whitespace().next());
    Ok(number.ok_or_else(|| anyhow::anyhow!("no Pss"))?.parse()?)
}
