//! Many tasks on one machine, and bad neighbours: `cargo bench --bench load`, with `-- --quick` for a tenth of the rounds.
//!
//! 1,000 idle tasks, then as many again started and removed, 64 at a time; what a task next door feels of bombs of every kind; whether
//! anything grows over many execs; and a real project's build inside and outside.

mod build;
#[path = "../live/mod.rs"]
mod live;
mod neighbours;
#[path = "../table/mod.rs"]
mod table;

use std::time::{Duration, Instant};

use live::{Bench, Spread};
use table::{Row, Unit};

/// Tasks that are started and removed at once.
const AT_ONCE: usize = 64;

fn main() -> anyhow::Result<()> {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let part = if quick { 10 } else { 1 };
    let folder = tempfile::tempdir()?;
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let mut rows = runtime.block_on(async {
        let bench = Bench::start(&folder.path().join("state"))?;
        let mut rows = many(&bench, 1000 / part).await?;
        rows.extend(neighbours::measure(&bench, 300 / part).await?);
        rows.extend(growth(&bench, 30_000 / part).await?);
        Ok::<_, anyhow::Error>(rows)
    })?;
    drop(runtime);
    rows.push(build::measure(folder.path(), if quick { 1 } else { 3 })?);
    table::report("load", &rows)?;
    Ok(())
}

async fn many(bench: &Bench, count: usize) -> anyhow::Result<Vec<Row>> {
    let before = live::memory("/proc/self/smaps_rollup")?;
    let begun = Instant::now();
    let mut idle = Vec::new();
    while idle.len() < count {
        let (a, b, c, d) = tokio::try_join!(bench.task(), bench.task(), bench.task(), bench.task())?;
        idle.extend([a, b, c, d]);
    }
    let took = begun.elapsed();
    let host = live::memory("/proc/self/smaps_rollup")? - before;
    // Reading one process's share walks all that share its pages: a sample stands for all.
    let sample = &idle[..idle.len().min(100)];
    let memory = host / count as f64 + live::memory_inside(sample)? / sample.len() as f64;
    let times = churn(bench, count).await?;
    let part = times.len() / 4;
    let mean = |times: &[Duration]| times.iter().sum::<Duration>().as_secs_f64() / times.len() as f64;
    let flat = mean(&times[times.len() - part..]) / mean(&times[..part]);
    live::stop(idle).await;
    Ok(vec![
        Row::seconds(format!("{count} idle tasks started, each"), Some(took / count as u32)).bound(10e-3),
        Row::new(
            format!("memory of each of {count} idle tasks"),
            Unit::Bytes,
            Some(memory),
        )
        .bound(1.5 * (1 << 20) as f64),
        Row::seconds(
            format!("{count} more beside them, {AT_ONCE} at a time, started and removed, p50"),
            Spread::of(times.clone()).map(|spread| spread.p50),
        ),
        Row::new("the last quarter of those against the first", Unit::Times, Some(flat)).bound(1.25),
    ])
}

/// Starts tasks and removes them again, a fixed number of them at once; how long each took, in the order of their ends.
async fn churn(bench: &Bench, count: usize) -> anyhow::Result<Vec<Duration>> {
    let next = std::sync::atomic::AtomicUsize::new(0);
    let times = std::sync::Mutex::new(Vec::with_capacity(count));
    let one = async || {
        while next.fetch_add(1, std::sync::atomic::Ordering::Relaxed) < count {
            let begun = Instant::now();
            let task = bench.task().await?;
            live::succeed(&task, &["/bin/true"]).await?;
            task.stop().await;
            times.lock().expect("nobody panics").push(begun.elapsed());
        }
        Ok::<_, anyhow::Error>(())
    };
    futures_util::future::try_join_all((0..AT_ONCE).map(|_| one())).await?;
    Ok(times.into_inner()?)
}

/// Whether many execs in one task leave anything behind: memory of this process, descriptors, cgroups, time.
async fn growth(bench: &Bench, count: usize) -> anyhow::Result<Vec<Row>> {
    let task = bench.task().await?;
    let argv = ["/bin/true"];
    let first = live::repeated(&task, &argv, count / 10, Duration::ZERO).await?;
    let before = live::memory("/proc/self/smaps_rollup")?;
    let descriptors = || std::fs::read_dir("/proc/self/fd").map(Iterator::count);
    let held = descriptors()?;
    live::repeated(&task, &argv, count * 8 / 10, Duration::ZERO).await?;
    let grown = live::memory("/proc/self/smaps_rollup")? - before;
    anyhow::ensure!(
        descriptors()? <= held + 16,
        "descriptors stay open: {} after {held}",
        descriptors()?
    );
    let last = live::repeated(&task, &argv, count / 10, Duration::ZERO).await?;
    task.stop().await;
    let middle = |times| Spread::of(times).map_or(f64::NAN, |spread| spread.p50.as_secs_f64());
    Ok(vec![
        Row::new(
            format!("host memory that {count} execs in one task leave, each 1,000"),
            Unit::Bytes,
            Some(grown / (count as f64 * 0.8) * 1000.0),
        )
        .bound(2.0 * (1 << 20) as f64),
        Row::new(
            "the last of those execs against the first",
            Unit::Times,
            Some(middle(last) / middle(first)),
        )
        .bound(1.25),
    ])
}
