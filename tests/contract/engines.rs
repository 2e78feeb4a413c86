//! Engines of the tests' own: started with folders and a socket of theirs, and ended by their process ids.

use std::io::Read;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// How long an engine may take to answer, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon that ends when this is dropped.
pub struct Daemon {
    child: Child,
    folder: tempfile::TempDir,
}

impl Daemon {
    /// `None`, said aloud, where it cannot be had; where everything must be here, that is a failure.
    pub fn docker() -> Option<Daemon> {
        let program = installed("dockerd")?;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut command = Command::new(program);
        command
            .args(["--storage-driver=overlay2", "--bridge=none", "--iptables=false"])
            .args(["--ip-forward=false", "--ip-masq=false", "--log-level=error"])
            .arg("--data-root")
            .arg(at("data"))
            .arg("--exec-root")
            .arg(at("exec"))
            .arg("--pidfile")
            .arg(at("pid"))
            .arg(format!("--host=unix://{}", at("socket").display()));
        Some(Daemon::start(command, folder))
    }

    fn start(mut command: Command, folder: tempfile::TempDir) -> Daemon {
        let log = std::fs::File::create(folder.path().join("log")).unwrap();
        let child = command
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log)
            .spawn()
            .unwrap();
        let mut daemon = Daemon { child, folder };
        let begun = Instant::now();
        while !daemon.answers() {
            let ended = daemon.child.try_wait().unwrap();
            let said = || std::fs::read_to_string(daemon.folder.path().join("log")).unwrap_or_default();
            assert!(ended.is_none() && begun.elapsed() < PATIENCE, "no engine: {}", said());
            std::thread::sleep(Duration::from_millis(50));
        }
        daemon
    }

    fn answers(&self) -> bool {
        std::os::unix::net::UnixStream::connect(self.folder.path().join("socket")).is_ok()
    }

    /// Its socket; kept for as long as the process, for the tests name it without end.
    pub fn socket(&self) -> &'static Path {
        let socket: PathBuf = self.folder.path().join("socket");
        Box::leak(socket.into_boxed_path())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        let pid = Pid::from_child(&self.child);
        let _ = kill_process(pid, Signal::TERM);
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begun.elapsed() > PATIENCE {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        // It leaves a mount of its data folder behind.
        let mounts = std::fs::read_to_string("/proc/self/mountinfo").unwrap_or_default();
        let below = |line: &&str| {
            line.split(' ')
                .nth(4)
                .is_some_and(|point| Path::new(point).starts_with(self.folder.path()))
        };
        for line in mounts.lines().rev().filter(below) {
            let point = line.split(' ').nth(4).unwrap_or_default();
            let _ = rustix::mount::unmount(point, rustix::mount::UnmountFlags::DETACH);
        }
    }
}

/// What a belljar that was killed left at an engine is gone when the next one has started a task.
pub fn a_killed_belljar_is_cleared_up_after(daemon: &Daemon) {
    let state = tempfile::tempdir().unwrap();
    let host = format!("unix://{}", daemon.socket().display());
    let belljar = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_belljar"));
        command
            .args(["run", "--quiet", "--backend", "docker", "--network", "none"])
            .args(["--accept-partial", "mounts", "--accept-partial", "namespaces"])
            .env("BELLJAR_STATE", state.path())
            .env("DOCKER_HOST", &host)
            .stdin(Stdio::null());
        command
    };
    let left = |what: &[&str]| {
        let output = Command::new("docker").args(["-H", &host]).args(what).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let containers = ["ps", "-aq", "--filter", "label=belljar.task"];
    let images = ["images", "-q", "--filter", "label=belljar.image"];

    let mut killed = belljar()
        .args(["--", "sh", "-c", "echo ready; exec sleep 600"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 5];
    killed.stdout.take().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(&line, b"ready");
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_ne!(left(&containers), "", "there is something to clear up");
    assert_ne!(left(&images), "");

    let next = belljar().args(["--", "true"]).output().unwrap();
    assert!(next.status.success(), "{next:?}");
    assert_eq!(left(&containers), "");
    assert_eq!(left(&images), "");
}

fn installed(name: &str) -> Option<PathBuf> {
    let is_root = rustix::process::geteuid().is_root();
    if let (Ok(program), true) = (belljar::sandbox::outside::find(name), is_root) {
        return Some(program);
    }
    assert_ne!(
        std::env::var("CI").as_deref(),
        Ok("true"),
        "{name} cannot be started: it is not installed, or this is not root"
    );
    eprintln!("skipped: {name} is not installed, or this is not root");
    None
}
