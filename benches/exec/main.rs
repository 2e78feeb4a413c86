//! What an exec and a task cost, beside runc, docker and bubblewrap in the same run: `cargo bench --bench exec`, with
//! `-- --quick` for a tenth of the rounds.
//!
//! belljar runs in this process, as a harness would use it, with the built program as its launcher: every exec is judged, recorded,
//! and counted in its own cgroup. The peers run as their users run them, by their command lines, from the same busybox; docker's
//! daemon is this program's own. Prints a table and writes it to `target/bench/exec.md`.

mod belljar_side;
mod peers;

use std::fmt::Write as _;
use std::path::Path;
use std::time::Duration;

/// What one contender measured; what it cannot do is not there.
#[derive(Debug, Default)]
pub struct Measured {
    pub exec: Option<Spread>,
    pub exec_after_pause: Option<Spread>,
    pub execs_a_second: Option<f64>,
    pub first_byte: Option<Spread>,
    pub whole_run: Option<Spread>,
    pub stdout_gigabytes: Option<f64>,
    pub idle_kib: Option<f64>,
    pub two_hundred: Option<Duration>,
}

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

/// How often each thing is done.
#[derive(Debug, Clone, Copy)]
pub struct Rounds {
    pub execs: usize,
    pub paused: usize,
    pub starts: usize,
    pub peer_execs: usize,
    pub peer_starts: usize,
    pub callers: usize,
}

fn main() -> anyhow::Result<()> {
    let part = if std::env::args().any(|arg| arg == "--quick") {
        10
    } else {
        1
    };
    let rounds = Rounds {
        execs: 3000 / part,
        paused: 60 / part,
        starts: 100 / part,
        peer_execs: 100 / part,
        peer_starts: 50 / part,
        callers: 16,
    };
    let folder = tempfile::tempdir()?;
    // The async parts first: the peers' processes would disturb them.
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    let ours = runtime.block_on(belljar_side::measure(&folder.path().join("state"), rounds))?;
    drop(runtime);
    let runc = peers::runc(folder.path(), rounds)?;
    let docker = peers::docker(folder.path(), rounds)?;
    let bwrap = peers::bwrap(rounds)?;
    let table = table(&ours, &runc, &docker, &bwrap);
    println!("{table}");
    let out = Path::new(env!("CARGO_MANIFEST_DIR")).join("target/bench");
    std::fs::create_dir_all(&out)?;
    std::fs::write(out.join("exec.md"), table)?;
    Ok(())
}

/// One row: what we have, what we want, and what the others have.
struct Row {
    what: &'static str,
    target: &'static str,
    ours: Option<f64>,
    unit: Unit,
    /// Our bound, as a limit from above for times and from below for rates.
    bound: f64,
    runc: Option<f64>,
    runc_factor: f64,
    docker: Option<f64>,
    docker_factor: f64,
    bwrap: Option<f64>,
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum Unit {
    Seconds,
    Rate,
    Gigabytes,
    Kib,
}

fn table(ours: &Measured, runc: &Measured, docker: &Measured, bwrap: &Measured) -> String {
    let p50 = |spread: &Option<Spread>| spread.map(|spread| spread.p50.as_secs_f64());
    let none = f64::INFINITY;
    let row = |what, target, ours, unit, bound| Row {
        what,
        target,
        ours,
        unit,
        bound,
        runc: None,
        runc_factor: none,
        docker: None,
        docker_factor: none,
        bwrap: None,
    };
    let seconds = |time: Option<Duration>| time.map(|time| time.as_secs_f64());
    let rows = [
        Row {
            runc: p50(&runc.exec),
            runc_factor: 5.0,
            docker: p50(&docker.exec),
            docker_factor: 40.0,
            ..row(
                "exec of /bin/true, p50",
                "<= 1 ms, 1/40 docker, 1/5 runc",
                p50(&ours.exec),
                Unit::Seconds,
                1e-3,
            )
        },
        row(
            "the same, p99",
            "-",
            ours.exec.map(|spread| spread.p99.as_secs_f64()),
            Unit::Seconds,
            none,
        ),
        row(
            "exec after a pause of 100 ms, p50",
            "<= 2 ms",
            p50(&ours.exec_after_pause),
            Unit::Seconds,
            2e-3,
        ),
        Row {
            runc: runc.execs_a_second,
            runc_factor: 15.0,
            docker: docker.execs_a_second,
            docker_factor: 60.0,
            ..row(
                "16 callers at once, execs/s",
                ">= 1500, 60 x docker, 15 x runc",
                ours.execs_a_second,
                Unit::Rate,
                1500.0,
            )
        },
        Row {
            runc: p50(&runc.first_byte),
            runc_factor: 3.0,
            docker: p50(&docker.first_byte),
            docker_factor: 20.0,
            bwrap: p50(&bwrap.first_byte),
            ..row(
                "new task to first output byte, p50",
                "<= 8 ms, 1/20 docker, 1/3 runc",
                p50(&ours.first_byte),
                Unit::Seconds,
                8e-3,
            )
        },
        row(
            "belljar run -- true, whole, p50",
            "<= 25 ms",
            p50(&ours.whole_run),
            Unit::Seconds,
            25e-3,
        ),
        Row {
            runc: runc.stdout_gigabytes,
            runc_factor: 2.0,
            docker: docker.stdout_gigabytes,
            docker_factor: 5.0,
            ..row(
                "stdout to the caller, GB/s",
                ">= 2, 5 x docker, 2 x runc",
                ours.stdout_gigabytes,
                Unit::Gigabytes,
                2.0,
            )
        },
        row("memory of an idle task", "<= 1.5 MiB", ours.idle_kib, Unit::Kib, 1536.0),
        row(
            "200 tasks started",
            "<= 2 s",
            seconds(ours.two_hundred),
            Unit::Seconds,
            2.0,
        ),
    ];
    let mut text =
        String::from("| what | belljar | target | met | runc | docker | bwrap |\n|---|---|---|---|---|---|---|\n");
    for row in rows {
        let _ = writeln!(
            text,
            "| {} | {} | {} | {} | {} | {} | {} |",
            row.what,
            row.ours.map_or("-".to_owned(), |value| shown(value, row.unit)),
            row.target,
            met(&row),
            beside(&row, row.runc),
            beside(&row, row.docker),
            beside(&row, row.bwrap),
        );
    }
    text
}

/// A peer's value, and how many times better ours is.
fn beside(row: &Row, peer: Option<f64>) -> String {
    let (Some(ours), Some(peer)) = (row.ours, peer) else {
        return "-".to_owned();
    };
    format!("{} ({:.1} x)", shown(peer, row.unit), better(row.unit, ours, peer))
}

fn better(unit: Unit, ours: f64, peer: f64) -> f64 {
    match unit {
        Unit::Seconds | Unit::Kib => peer / ours,
        Unit::Rate | Unit::Gigabytes => ours / peer,
    }
}

fn met(row: &Row) -> &'static str {
    let Some(ours) = row.ours else { return "-" };
    if row.target == "-" {
        return "-";
    }
    let alone = match row.unit {
        Unit::Seconds | Unit::Kib => ours <= row.bound,
        Unit::Rate | Unit::Gigabytes => ours >= row.bound,
    };
    let against = |peer: Option<f64>, factor: f64| peer.is_none_or(|peer| better(row.unit, ours, peer) >= factor);
    match alone && against(row.runc, row.runc_factor) && against(row.docker, row.docker_factor) {
        true => "yes",
        false => "no",
    }
}

fn shown(value: f64, unit: Unit) -> String {
    match unit {
        Unit::Seconds if value < 1.0 => format!("{:.2} ms", value * 1e3),
        Unit::Seconds => format!("{value:.2} s"),
        Unit::Rate => format!("{value:.0}"),
        Unit::Gigabytes => format!("{value:.2}"),
        Unit::Kib => format!("{:.2} MiB", value / 1024.0),
    }
}
