//! What an exec and a task cost, beside runc, docker and bubblewrap in the same run: `cargo bench --bench exec`, with
//! `-- --quick` for a tenth of the rounds.
//!
//! belljar runs in this process, as a harness would use it. The peers run as their users run them, by their command lines, from the
//! same busybox; docker's daemon is this program's own.

mod belljar_side;
#[path = "../live/mod.rs"]
mod live;
mod peers;
#[path = "../table/mod.rs"]
mod table;

use live::Spread;
use table::{Row, Unit};

/// Bytes of output for the stream.
const BYTES: u64 = 1 << 30;

/// What one contender measured; what it cannot do is not there.
#[derive(Debug, Default)]
pub struct Measured {
    pub exec: Option<Spread>,
    pub exec_after_pause: Option<Spread>,
    pub script_after_pause: Option<Spread>,
    pub execs_a_second: Option<f64>,
    /// The same of the peers' own program: the host's is linked at each start, and a C library that asks a virtual processor what it
    /// is takes longer than all else.
    pub execs_a_second_of_image: Option<f64>,
    pub first_byte: Option<Spread>,
    pub first_byte_of_image: Option<Spread>,
    pub whole_run: Option<Spread>,
    /// Bytes a second.
    pub stdout: Option<f64>,
    /// Bytes a task.
    pub idle: Option<f64>,
    pub two_hundred: Option<std::time::Duration>,
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
    let quick = std::env::args().any(|arg| arg == "--quick");
    let part = if quick { 10 } else { 1 };
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
    let ours = runtime.block_on(belljar_side::measure(folder.path(), rounds))?;
    drop(runtime);
    let runc = peers::runc(folder.path(), rounds)?;
    let docker = peers::docker(folder.path(), rounds)?;
    let bwrap = peers::bwrap(rounds)?;
    table::report("exec", &rows(&ours, &runc, &docker, &bwrap))?;
    Ok(())
}

fn rows(ours: &Measured, runc: &Measured, docker: &Measured, bwrap: &Measured) -> Vec<Row> {
    let middle = |spread: Option<Spread>| spread.map(|spread| spread.p50);
    let seconds = |spread: Option<Spread>| spread.map(|spread| spread.p50.as_secs_f64());
    vec![
        Row::seconds("exec of /bin/true in a live task, p50", middle(ours.exec))
            .bound(1e-3)
            .against("docker", seconds(docker.exec), 40.0)
            .against("runc", seconds(runc.exec), 5.0),
        Row::seconds("the same, p99", ours.exec.map(|spread| spread.p99)),
        Row::seconds("exec after a pause of 100 ms, p50", middle(ours.exec_after_pause)).bound(2e-3),
        Row::seconds(
            "a shell with two commands after such a pause, p50",
            middle(ours.script_after_pause),
        ),
        Row::new("16 callers at once in one task", Unit::Rate, ours.execs_a_second).bound(1500.0),
        Row::new(
            "the same in the image that the others run",
            Unit::Rate,
            ours.execs_a_second_of_image,
        )
        .against("docker", docker.execs_a_second, 60.0)
        .against("runc", runc.execs_a_second, 15.0),
        Row::seconds("new task on host to first output byte, p50", middle(ours.first_byte))
            .bound(8e-3)
            .against("docker", seconds(docker.first_byte), 20.0)
            .against("runc", seconds(runc.first_byte), 3.0)
            .beside("bwrap", seconds(bwrap.first_byte)),
        Row::seconds("the same on a local image, p50", middle(ours.first_byte_of_image))
            .bound(8e-3)
            .against("docker", seconds(docker.first_byte), 20.0)
            .against("runc", seconds(runc.first_byte), 3.0),
        Row::seconds("belljar run -- true, the whole process, p50", middle(ours.whole_run))
            .bound(25e-3)
            .beside("docker run", seconds(docker.whole_run))
            .beside("runc run", seconds(runc.whole_run))
            .beside("bwrap", seconds(bwrap.whole_run)),
        Row::new("stdout to the caller", Unit::BytesPerSecond, ours.stdout)
            .bound(2e9)
            .against("docker", docker.stdout, 5.0)
            .against("runc", runc.stdout, 2.0),
        Row::new("memory of an idle task, guest and host side", Unit::Bytes, ours.idle).bound(1.5 * (1 << 20) as f64),
        Row::seconds("200 tasks started", ours.two_hundred)
            .bound(2.0)
            .beside("docker", docker.two_hundred.map(|time| time.as_secs_f64())),
    ]
}
