//! Engines of the tests' own: started with folders and a socket of theirs, and ended by their process ids.

use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, PidfdFlags, Signal, kill_process, pidfd_open, pidfd_send_signal};

/// How long an engine may take to answer, and to end.
const PATIENCE: Duration = Duration::from_secs(60);

/// A daemon that ends when this is dropped.
pub struct Daemon {
    child: Child,
    folder: tempfile::TempDir,
}

/// An ordinary user without a name outside of what a test gives it.
#[allow(dead_code, reason = "for the promises alone")]
pub const ORDINARY: u32 = 1234;

impl Daemon {
    /// `None`, said aloud, where it cannot be had; where everything must be here, that is a failure.
    pub fn docker() -> Option<Daemon> {
        let program = installed("dockerd")?;
        let folder = tempfile::tempdir().unwrap();
        Some(Daemon::dockerd(Command::new(program), folder))
    }

    /// One that has gVisor too, under a name that says nothing of it, and under another one with no bounds.
    #[allow(dead_code, reason = "for the promises alone")]
    pub fn docker_with_gvisor() -> Option<Daemon> {
        let (program, runsc) = (installed("dockerd")?, installed("runsc")?);
        let folder = tempfile::tempdir().unwrap();
        let config = folder.path().join("daemon.json");
        let arguments = [
            "--platform=ptrace",
            "--network=none",
            "--host-uds=open",
            "--oci-seccomp",
        ];
        let unbounded = [arguments.as_slice(), &["--ignore-cgroups"]].concat();
        let runtimes = serde_json::json!({ "runtimes": {
            "sandboxed": { "path": runsc, "runtimeArgs": arguments },
            "unbounded": { "path": runsc, "runtimeArgs": unbounded },
        } });
        std::fs::write(&config, runtimes.to_string()).unwrap();
        let mut command = Command::new(program);
        command.arg("--config-file").arg(config);
        Some(Daemon::dockerd(command, folder))
    }

    /// One that maps ids for all that it runs, to a range that an /etc of its own gives to somebody.
    #[allow(dead_code, reason = "for the promises alone")]
    pub fn docker_with_ids_of_its_own() -> Option<Daemon> {
        let program = installed("dockerd")?;
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let script = format!(
            "mkdir {at}/upper {at}/scratch; mount -t overlay -o lowerdir=/etc,upperdir={at}/upper,workdir={at}/scratch none /etc
             echo nobody:200000:65536 | tee /etc/subuid > /etc/subgid; exec {} --userns-remap=nobody:nogroup \"$@\"",
            program.display()
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", &script, "sh"]);
        Some(Daemon::dockerd(command, folder))
    }

    fn dockerd(mut command: Command, folder: tempfile::TempDir) -> Daemon {
        let at = |name: &str| folder.path().join(name);
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
        Daemon::start(command, folder)
    }

    /// The same for Podman's service, which is Docker's API too.
    pub fn podman() -> Option<Daemon> {
        let program = installed("podman")?;
        let folder = tempfile::tempdir().unwrap();
        let at = |name: &str| folder.path().join(name);
        let mut command = Command::new(program);
        command
            .arg("--root")
            .arg(at("root"))
            .arg("--runroot")
            .arg(at("run"))
            .arg("--tmpdir")
            .arg(at("tmp"))
            // crun 1.8 of Debian 12 does not take every machine's cgroups.
            .args([
                "--runtime",
                "runc",
                "--cgroup-manager",
                "cgroupfs",
                "--storage-driver",
                "overlay",
            ])
            .args(["--events-backend", "file", "system", "service", "--time", "0"])
            .arg(format!("unix://{}", at("socket").display()))
            // Where it looks for its own settings, and writes some.
            .env("HOME", folder.path())
            .env("XDG_CONFIG_HOME", folder.path());
        Some(Daemon::start(command, folder))
    }

    /// Podman's service of an ordinary user, to whom an /etc of its own gives a name and a range of ids.
    #[allow(dead_code, reason = "for the promises alone")]
    pub fn podman_of_a_user() -> Option<Daemon> {
        let program = installed("podman")?;
        installed("newuidmap")?;
        let folder = tempfile::tempdir().unwrap();
        let at = folder.path().display();
        let script = format!(
            "mkdir {at}/upper {at}/scratch; mount -t overlay -o lowerdir=/etc,upperdir={at}/upper,workdir={at}/scratch none /etc
             echo belljar:x:{ORDINARY}:{ORDINARY}::{at}:/bin/sh >> /etc/passwd; echo belljar:x:{ORDINARY}: >> /etc/group
             echo belljar:200000:65536 | tee /etc/subuid > /etc/subgid
             chmod 755 {at}; chown {ORDINARY}:{ORDINARY} {at}; cd {at}
             export HOME={at} XDG_CONFIG_HOME={at}/config XDG_RUNTIME_DIR={at}
             exec setpriv --reuid {ORDINARY} --regid {ORDINARY} --clear-groups {} --root {at}/root --runroot {at}/run --tmpdir {at}/tmp \\
                 --runtime runc --cgroup-manager cgroupfs --storage-driver overlay --events-backend file \\
                 system service --time 0 unix://{at}/socket",
            program.display()
        );
        let mut command = Command::new("unshare");
        command.args(["--mount", "--propagation", "private", "sh", "-ec", &script]);
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

    #[allow(dead_code, reason = "for the promises alone")]
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    #[allow(dead_code, reason = "for the promises alone")]
    pub fn folder(&self) -> &Path {
        self.folder.path()
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
        // A user's Podman is a process in a user namespace below the one that was started, and does not always end with that.
        let number = pid.as_raw_nonzero();
        let children = std::fs::read_to_string(format!("/proc/{number}/task/{number}/children")).unwrap_or_default();
        let children = children.split_whitespace().filter_map(|child| child.parse().ok());
        let children = children.filter_map(Pid::from_raw);
        let held: Vec<_> = children
            .filter_map(|child| pidfd_open(child, PidfdFlags::empty()).ok())
            .collect();
        let _ = kill_process(pid, Signal::TERM);
        let begun = Instant::now();
        while matches!(self.child.try_wait(), Ok(None)) {
            if begun.elapsed() > PATIENCE {
                let _ = self.child.kill();
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        for child in held {
            let _ = pidfd_send_signal(child, Signal::KILL);
        }
        // It leaves a process that holds its user namespace.
        let holder = std::fs::read_to_string(self.folder.path().join("tmp/pause.pid")).unwrap_or_default();
        if let Some(pid) = holder.trim().parse().ok().and_then(Pid::from_raw) {
            let _ = kill_process(pid, Signal::KILL);
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
