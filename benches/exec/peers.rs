//! The same work by runc, docker and bubblewrap, by their command lines; who is not installed is left out.

use std::io::Read;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::Context as _;

use super::live::Spread;
use super::{BYTES, Measured, Rounds};

/// How long a daemon may take to answer.
const PATIENCE: Duration = Duration::from_secs(30);

fn has(program: &str) -> bool {
    let found = belljar::sandbox::outside::find(program).is_ok();
    if !found {
        println!("{program} is not installed");
    }
    found
}

/// A small root: busybox under its names.
pub fn make_root(root: &Path) -> anyhow::Result<()> {
    let program = belljar::sandbox::outside::find("busybox").context("the peers need busybox-static")?;
    std::fs::create_dir_all(root.join("bin"))?;
    for folder in ["proc", "sys", "dev", "etc", "tmp"] {
        std::fs::create_dir_all(root.join(folder))?;
    }
    std::fs::copy(program, root.join("bin/busybox"))?;
    for name in ["sh", "true", "echo", "sleep", "head"] {
        symlink("busybox", root.join("bin").join(name))?;
    }
    Ok(())
}

pub fn runc(folder: &Path, rounds: Rounds) -> anyhow::Result<Measured> {
    if !has("runc") || !has("busybox") {
        return Ok(Measured::default());
    }
    let sleeping = bundle(&folder.join("runc-live"), &["/bin/sleep", "100000"])?;
    let echoing = bundle(&folder.join("runc-run"), &["/bin/echo", "x"])?;
    let state = folder.join("runc-state");
    let runc = |words: &[&str]| {
        let mut command = Command::new("runc");
        command.arg("--root").arg(&state).args(words).stdin(Stdio::null());
        command
    };
    let live = format!("bench-{}", std::process::id());
    run(runc(&["run", "--detach", "--bundle", text(&sleeping), &live]).stdout(Stdio::null()))?;
    let measured = (|| {
        let exec = || runc(&["exec", &live, "/bin/true"]);
        let bytes = BYTES.to_string();
        let [first_byte, whole_run] = runs(rounds.peer_starts, |round| {
            runc(&["run", "--bundle", text(&echoing), &format!("{live}-{round}")])
        })?;
        Ok::<_, anyhow::Error>(Measured {
            exec: timed(rounds.peer_execs, exec)?,
            execs_a_second: Some(callers(rounds, exec)?),
            stdout: Some(stream(&mut runc(&[
                "exec",
                &live,
                "/bin/head",
                "-c",
                &bytes,
                "/dev/zero",
            ]))?),
            first_byte,
            whole_run,
            ..Measured::default()
        })
    })();
    run(&mut runc(&["delete", "--force", &live]))?;
    measured
}

fn bundle(folder: &Path, args: &[&str]) -> anyhow::Result<PathBuf> {
    make_root(&folder.join("rootfs"))?;
    run(Command::new("runc").arg("spec").current_dir(folder))?;
    let file = folder.join("config.json");
    let mut config: serde_json::Value = serde_json::from_slice(&std::fs::read(&file)?)?;
    config["process"]["args"] = serde_json::json!(args);
    config["process"]["terminal"] = false.into();
    // Nobody may raise this limit everywhere.
    config["process"]["rlimits"] = serde_json::json!([]);
    std::fs::write(file, config.to_string())?;
    Ok(folder.to_owned())
}

/// A daemon of this program's own; it ends with this value.
struct Daemon {
    process: Child,
    socket: String,
}

impl Daemon {
    fn start(folder: &Path) -> anyhow::Result<Daemon> {
        let socket = format!("unix://{}", text(&folder.join("docker.sock")));
        let log = std::fs::File::create(folder.join("dockerd.log"))?;
        let process = Command::new("dockerd")
            .args(["--storage-driver=overlay2", "--iptables=false", "--bridge=none"])
            .arg("--data-root")
            .arg(folder.join("docker-data"))
            .arg("--exec-root")
            .arg(folder.join("docker-exec"))
            .arg("--pidfile")
            .arg(folder.join("docker.pid"))
            .args(["--host", &socket])
            .stdin(Stdio::null())
            .stdout(log.try_clone()?)
            .stderr(log)
            .spawn()?;
        let daemon = Daemon { process, socket };
        let begun = Instant::now();
        while !daemon.docker(&["version"]).output()?.status.success() {
            anyhow::ensure!(begun.elapsed() < PATIENCE, "dockerd does not answer");
            std::thread::sleep(Duration::from_millis(100));
        }
        Ok(daemon)
    }

    fn docker(&self, words: &[&str]) -> Command {
        let mut command = Command::new("docker");
        command.args(["--host", &self.socket]).args(words).stdin(Stdio::null());
        command
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        // SIGTERM, so that it stops what it runs and unmounts what it mounted.
        let pid = rustix::process::Pid::from_child(&self.process);
        let _ = rustix::process::kill_process(pid, rustix::process::Signal::TERM);
        let _ = self.process.wait();
    }
}

pub fn docker(folder: &Path, rounds: Rounds) -> anyhow::Result<Measured> {
    if !has("docker") || !has("dockerd") || !has("busybox") {
        return Ok(Measured::default());
    }
    let root = folder.join("docker-root");
    make_root(&root)?;
    let archive = folder.join("root.tar");
    run(Command::new("tar")
        .arg("-cf")
        .arg(&archive)
        .arg("-C")
        .arg(&root)
        .arg("."))?;
    let daemon = match Daemon::start(folder) {
        Ok(daemon) => daemon,
        Err(error) => {
            println!("docker is left out: {error:#}");
            return Ok(Measured::default());
        }
    };
    let quiet = |mut command: Command| run(command.stdout(Stdio::null()));
    quiet(daemon.docker(&["import", text(&archive), "bench"]))?;
    quiet(daemon.docker(&[
        "run",
        "--detach",
        "--network=none",
        "--name=live",
        "bench",
        "/bin/sleep",
        "100000",
    ]))?;
    let exec = || daemon.docker(&["exec", "live", "/bin/true"]);
    let bytes = BYTES.to_string();
    let [first_byte, whole_run] = runs(rounds.peer_starts, |_| {
        daemon.docker(&["run", "--rm", "--network=none", "bench", "/bin/echo", "x"])
    })?;
    let measured = Measured {
        exec: timed(rounds.peer_execs, exec)?,
        execs_a_second: Some(callers(rounds, exec)?),
        stdout: Some(stream(&mut daemon.docker(&[
            "exec",
            "live",
            "/bin/head",
            "-c",
            &bytes,
            "/dev/zero",
        ]))?),
        first_byte,
        whole_run,
        two_hundred: Some(two_hundred(&daemon)?),
        ..Measured::default()
    };
    quiet(daemon.docker(&["rm", "--force", "live"]))?;
    Ok(measured)
}

/// 200 tasks by docker, taken from 20: it would be most of a minute.
fn two_hundred(daemon: &Daemon) -> anyhow::Result<Duration> {
    const SOME: u32 = 20;
    let begun = Instant::now();
    let name = |number| format!("one-{number}");
    for number in 0..SOME {
        let name = name(number);
        let words = [
            "run",
            "--detach",
            "--network=none",
            "--name",
            &name,
            "bench",
            "/bin/sleep",
            "100000",
        ];
        run(daemon.docker(&words).stdout(Stdio::null()))?;
    }
    let took = begun.elapsed() * (200 / SOME);
    let names: Vec<_> = (0..SOME).map(name).collect();
    let words = ["rm", "--force"].into_iter().chain(names.iter().map(String::as_str));
    run(daemon.docker(&words.collect::<Vec<_>>()).stdout(Stdio::null()))?;
    Ok(took)
}

pub fn bwrap(rounds: Rounds) -> anyhow::Result<Measured> {
    if !has("bwrap") {
        return Ok(Measured::default());
    }
    let echo = |_| {
        let mut command = Command::new("bwrap");
        command
            .args([
                "--ro-bind",
                "/usr",
                "/usr",
                "--symlink",
                "usr/bin",
                "/bin",
                "--symlink",
                "usr/lib",
                "/lib",
            ])
            .args([
                "--symlink",
                "usr/lib64",
                "/lib64",
                "--proc",
                "/proc",
                "--dev",
                "/dev",
                "--tmpfs",
                "/tmp",
            ])
            .args(["--unshare-all", "/bin/echo", "x"])
            .stdin(Stdio::null());
        command
    };
    let [first_byte, whole_run] = runs(rounds.peer_starts, echo)?;
    Ok(Measured {
        first_byte,
        whole_run,
        ..Measured::default()
    })
}

fn text(path: &Path) -> &str {
    path.to_str().expect("a temporary folder's name is text")
}

fn run(command: &mut Command) -> anyhow::Result<()> {
    let status = command.status().with_context(|| format!("{command:?}"))?;
    anyhow::ensure!(status.success(), "{command:?} ended with {status}");
    Ok(())
}

fn timed(rounds: usize, command: impl Fn() -> Command) -> anyhow::Result<Option<Spread>> {
    let mut times = Vec::with_capacity(rounds);
    for _ in 0..rounds {
        let begun = Instant::now();
        run(command().stdout(Stdio::null()))?;
        times.push(begun.elapsed());
    }
    Ok(Spread::of(times))
}

fn callers(rounds: Rounds, command: impl Fn() -> Command + Sync) -> anyhow::Result<f64> {
    let left = AtomicUsize::new(rounds.peer_execs);
    let begun = Instant::now();
    let caller = || -> anyhow::Result<()> {
        while left
            .fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| left.checked_sub(1))
            .is_ok()
        {
            run(command().stdout(Stdio::null()))?;
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let callers: Vec<_> = (0..rounds.callers).map(|_| scope.spawn(caller)).collect();
        callers
            .into_iter()
            .try_for_each(|one| one.join().expect("a caller does not panic"))
    })?;
    Ok(rounds.peer_execs as f64 / begun.elapsed().as_secs_f64())
}

fn stream(command: &mut Command) -> anyhow::Result<f64> {
    let begun = Instant::now();
    let mut child = command.stdout(Stdio::piped()).spawn()?;
    let mut out = child.stdout.take().context("it was asked for")?;
    let mut buffer = vec![0; 1 << 20];
    let mut received = 0;
    loop {
        match out.read(&mut buffer)? {
            0 => break,
            length => received += length as u64,
        }
    }
    child.wait()?;
    anyhow::ensure!(received == BYTES, "{command:?}: {received} bytes of {BYTES} arrived");
    Ok(BYTES as f64 / begun.elapsed().as_secs_f64())
}

/// From the start to the first byte of output, and to the end.
fn runs(rounds: usize, command: impl Fn(usize) -> Command) -> anyhow::Result<[Option<Spread>; 2]> {
    let (mut first, mut whole) = (Vec::with_capacity(rounds), Vec::with_capacity(rounds));
    for round in 0..rounds {
        let begun = Instant::now();
        let mut child = command(round).stdout(Stdio::piped()).spawn()?;
        let mut out = child.stdout.take().context("it was asked for")?;
        out.read_exact(&mut [0])?;
        first.push(begun.elapsed());
        let status = child.wait()?;
        whole.push(begun.elapsed());
        anyhow::ensure!(status.success(), "it ended with {status}");
    }
    Ok([Spread::of(first), Spread::of(whole)])
}
