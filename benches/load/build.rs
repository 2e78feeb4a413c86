//! A real project's build and tests, inside a sandbox and outside: belljar's own guest package, from nothing, by turns.

use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::live;
use super::table::{Row, Unit};

const TEST: [&str; 7] = [
    "cargo",
    "test",
    "--offline",
    "--locked",
    "--quiet",
    "--package",
    "belljar-guest",
];

pub fn measure(folder: &Path, rounds: usize) -> anyhow::Result<Row> {
    let work = copy_of_sources(folder)?;
    let (mut inside, mut outside) = (Duration::MAX, Duration::MAX);
    for _ in 0..rounds {
        outside = outside.min(timed(&work, bare(&work))?);
        inside = inside.min(timed(&work, sealed(folder, &work)?)?);
    }
    let times = inside.as_secs_f64() / outside.as_secs_f64();
    Ok(Row::new(
        "build and test of a real project inside, against bare",
        Unit::Times,
        Some(times),
    )
    .bound(1.03))
}

fn copy_of_sources(folder: &Path) -> anyhow::Result<PathBuf> {
    let work = folder.join("work");
    std::fs::create_dir(&work)?;
    for name in [
        "Cargo.toml",
        "Cargo.lock",
        "build.rs",
        "src",
        "images",
        "benches",
        "tests",
        "config",
    ] {
        let from = Path::new(env!("CARGO_MANIFEST_DIR")).join(name);
        let status = Command::new("cp").arg("-a").args([&from, &work]).status()?;
        anyhow::ensure!(status.success(), "{} cannot be copied", from.display());
    }
    Ok(work)
}

fn bare(work: &Path) -> Command {
    let mut command = Command::new(TEST[0]);
    command.args(&TEST[1..]).current_dir(work);
    command
}

fn sealed(folder: &Path, work: &Path) -> anyhow::Result<Command> {
    let sysroot = Command::new("rustc").args(["--print", "sysroot"]).output()?;
    let sysroot = String::from_utf8(sysroot.stdout)?;
    let home = match std::env::var("CARGO_HOME") {
        Ok(home) => home,
        Err(_) => format!("{}/.cargo", std::env::var("HOME").context("there is no home folder")?),
    };
    let mut command = Command::new(live::PROGRAM);
    command
        .args(["run", "--quiet", "--network", "none"])
        .arg("--write")
        .arg(format!("{}:/workspace", work.display()))
        .arg("--read")
        .arg(format!("{}:/rust", sysroot.trim()))
        .arg("--read")
        .arg(format!("{home}/registry:/cargo/registry"))
        .args(["--env", "PATH=/rust/bin:/usr/bin:/bin", "--env", "CARGO_HOME=/cargo"])
        .args(["--workdir", "/workspace", "--"])
        .args(TEST)
        .env("BELLJAR_STATE", folder.join("build-state"));
    Ok(command)
}

fn timed(work: &Path, mut command: Command) -> anyhow::Result<Duration> {
    let target = work.join("target");
    if target.exists() {
        std::fs::remove_dir_all(&target)?;
    }
    let begun = Instant::now();
    let output = command.env_remove("CARGO_TARGET_DIR").stdin(Stdio::null()).output()?;
    let took = begun.elapsed();
    anyhow::ensure!(
        output.status.success(),
        "{command:?}: {}",
        String::from_utf8_lossy(&output.stderr)
    );
    Ok(took)
}
