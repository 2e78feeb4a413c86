//! belljar's own figures, in this process.

use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use belljar::supervisor::TaskHandle;

use super::live::{self, Bench, Spread};
use super::peers::make_root;
use super::{BYTES, Measured, Rounds};

/// Idle tasks to take the memory of one from.
const IDLE: usize = 50;

const TRUE: [&str; 1] = ["/bin/true"];

/// A command as agents give them: a shell that starts others.
const SCRIPT: [&str; 3] = ["/bin/sh", "-c", "/bin/true | /bin/true"];

pub async fn measure(folder: &Path, rounds: Rounds) -> anyhow::Result<Measured> {
    let bench = Bench::start(&folder.join("state"))?;
    let pause = Duration::from_millis(100);
    let task = bench.task().await?;
    live::repeated(&task, &TRUE, 50, Duration::ZERO).await?;
    let exec = Spread::of(live::repeated(&task, &TRUE, rounds.execs, Duration::ZERO).await?);
    let exec_after_pause = Spread::of(live::repeated(&task, &TRUE, rounds.paused, pause).await?);
    let script_after_pause = Spread::of(live::repeated(&task, &SCRIPT, rounds.paused, pause).await?);
    let execs_a_second = callers(&task, rounds).await?;
    let stdout = stream(&task).await?;
    task.stop().await;
    let root = folder.join("image");
    make_root(&root)?;
    let of_image = bench
        .task_with(|args| args.image = root.to_str().map(str::to_owned))
        .await?;
    live::repeated(&of_image, &TRUE, 50, Duration::ZERO).await?;
    let execs_a_second_of_image = callers(&of_image, rounds).await?;
    of_image.stop().await;
    let first_byte = starts(&bench, rounds, None).await?;
    let first_byte_of_image = starts(&bench, rounds, root.to_str()).await?;
    let (idle, two_hundred) = many(&bench).await?;
    let whole_run = whole_runs(folder, rounds.starts)?;
    Ok(Measured {
        exec,
        exec_after_pause,
        script_after_pause,
        execs_a_second: Some(execs_a_second),
        execs_a_second_of_image: Some(execs_a_second_of_image),
        first_byte,
        first_byte_of_image,
        whole_run,
        stdout: Some(stdout),
        idle: Some(idle),
        two_hundred: Some(two_hundred),
    })
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
                live::succeed(&task, &TRUE).await?;
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
    let exec = live::submit(task, &["head", "-c", &BYTES.to_string(), "/dev/zero"])?;
    let received = live::drain(&exec).await;
    anyhow::ensure!(received == BYTES, "{received} bytes of {BYTES} arrived");
    Ok(BYTES as f64 / begun.elapsed().as_secs_f64())
}

/// New tasks, each to its first byte of output.
async fn starts(bench: &Bench, rounds: Rounds, image: Option<&str>) -> anyhow::Result<Option<Spread>> {
    let mut times = Vec::new();
    for _ in 0..rounds.starts {
        let begun = Instant::now();
        let task = bench.task_with(|args| args.image = image.map(str::to_owned)).await?;
        live::first_output(&live::submit(&task, &["/bin/echo", "x"])?).await?;
        times.push(begun.elapsed());
        task.stop().await;
    }
    Ok(Spread::of(times))
}

fn whole_runs(folder: &Path, rounds: usize) -> anyhow::Result<Option<Spread>> {
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let begun = Instant::now();
        let status = Command::new(live::PROGRAM)
            .args(["run", "--quiet", "--network", "none", "--", "true"])
            .env("BELLJAR_STATE", folder.join("runs"))
            .stdin(Stdio::null())
            .status()?;
        times.push(begun.elapsed());
        anyhow::ensure!(status.success(), "belljar run ended with {status}");
    }
    Ok(Spread::of(times))
}

/// What an idle task takes in bytes, and how long 200 starts take.
async fn many(bench: &Bench) -> anyhow::Result<(f64, Duration)> {
    let before = live::memory("/proc/self/smaps_rollup")?;
    let mut tasks = Vec::new();
    for _ in 0..IDLE {
        tasks.push(bench.task().await?);
    }
    let host = live::memory("/proc/self/smaps_rollup")? - before;
    let inside = live::memory_inside(&tasks)?;
    live::stop(tasks).await;
    let begun = Instant::now();
    let mut tasks = Vec::new();
    for _ in 0..50 {
        let (a, b, c, d) = tokio::try_join!(bench.task(), bench.task(), bench.task(), bench.task())?;
        tasks.extend([a, b, c, d]);
    }
    let took = begun.elapsed();
    live::stop(tasks).await;
    Ok(((host + inside) / IDLE as f64, took))
}
