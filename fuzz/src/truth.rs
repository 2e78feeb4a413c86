//! What bash really runs: a root of bash and stubs, and a log.

use std::cell::Cell;
use std::fs;
use std::io::Write;
use std::os::unix::ffi::OsStringExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

/// Where the stubs stand, inside.
const STUBS: &str = "/stubs";

/// Programs that exist, beside those that bash does not find and hands to the same stub.
const NAMES: &[&str] = &[
    "ls", "rm", "cat", "git", "sh", "bash", "dash", "env", "find", "xargs", "sudo", "timeout", "nice", "nohup",
    "python3", "grep", "sed", "awk", "wc", "sort", "head", "tail", "tee", "true", "false", "date", "nproc", "seq", "x",
    "a", "b",
];

/// The shells, by their paths inside: bash, and what `sh` may be.
pub const SHELLS: &[&str] = &["/bash.real", "/dash.real", "/posix/sh"];

pub fn is_stub() -> bool {
    std::env::current_exe().is_ok_and(|path| ["/stubs", "/few", "/bin"].iter().any(|folder| path.starts_with(folder)))
}

/// The stub: appends its argv to the log in one write.
pub fn note() {
    let mut args: Vec<Vec<u8>> = std::env::args_os().map(OsStringExt::into_vec).collect();
    if std::env::current_exe().is_ok_and(|path| path.ends_with(".missing")) {
        args.remove(0);
    }
    let mut record = Vec::new();
    for arg in &args {
        record.extend_from_slice(arg);
        record.push(0);
    }
    record.push(1);
    record.push(0);
    if let Ok(mut log) = fs::OpenOptions::new().append(true).open("/log/out") {
        let _ = log.write_all(&record);
    }
}

pub struct Stage {
    folder: PathBuf,
    /// Each run has a log of its own: what a script leaves behind must not be taken for the next one's.
    runs: Cell<u64>,
}

impl Stage {
    pub fn new() -> Self {
        let folder = std::env::temp_dir().join(format!("belljar-fuzz-{}", std::process::id()));
        let root = folder.join("root");
        for made in [
            "bin",
            "lib/x86_64-linux-gnu",
            "lib64",
            "stubs",
            "w",
            "log",
            "proc",
            "dev",
            "tmp",
        ] {
            fs::create_dir_all(root.join(made)).expect("a folder of our own");
        }
        let own = std::env::current_exe().expect("this program has a path");
        for program in [Path::new("/bin/bash"), Path::new("/bin/dash"), &own] {
            for library in libraries(program) {
                let to = root.join(library.trim_start_matches('/'));
                if !to.exists() {
                    fs::create_dir_all(to.parent().expect("a file has a folder")).expect("a folder of our own");
                    fs::copy(&library, &to).expect("a library can be read");
                }
            }
        }
        for shell in ["bash", "dash"] {
            fs::copy(format!("/bin/{shell}"), root.join(format!("{shell}.real"))).expect("the shell is there");
        }
        // bash called by this name keeps to POSIX.
        fs::create_dir_all(root.join("posix")).expect("a folder of our own");
        fs::copy("/bin/bash", root.join("posix/sh")).expect("bash is there");
        let stub = root.join("stubs/.missing");
        fs::copy(&own, &stub).expect("this program can be read");
        for name in NAMES {
            for place in ["stubs", "bin"] {
                let _ = fs::hard_link(&stub, root.join(place).join(name));
            }
        }
        for name in ["rm", "x"] {
            fs::create_dir_all(root.join("few")).expect("a folder of our own");
            fs::hard_link(&stub, root.join("few").join(name)).expect("a folder of our own");
        }
        fs::create_dir_all(root.join("usr")).expect("a folder of our own");
        Self {
            folder,
            runs: Cell::new(0),
        }
    }

    /// Runs an argv with the machine's own programs, but for `rm` and `x`, which are stubs; returns what these were given.
    pub fn run_carrier(&self, argv: &[String]) -> Vec<Vec<Vec<u8>>> {
        let mut command = Command::new("bwrap");
        command
            .args(["--unshare-all", "--die-with-parent", "--new-session", "--ro-bind"])
            .arg(self.folder.join("root"))
            .args([
                "/",
                "--ro-bind",
                "/usr",
                "/usr",
                "--ro-bind",
                "/usr/bin",
                "/bin",
                "--ro-bind",
                "/lib",
                "/lib",
                "--ro-bind",
                "/lib64",
                "/lib64",
            ])
            .args([
                "--proc",
                "/proc",
                "--dev",
                "/dev",
                "--tmpfs",
                "/w",
                "--tmpfs",
                "/tmp",
                "--chdir",
                "/w",
                "--clearenv",
            ])
            .args(["--setenv", "PATH", "/few:/usr/bin", "--setenv", "HOME", "/w"]);
        self.logged(command, argv)
    }

    /// Runs a script with one of [`SHELLS`] and returns every argv that was started.
    pub fn run(&self, shell: &str, script: &str) -> Vec<Vec<Vec<u8>>> {
        let mut command = Command::new("bwrap");
        command
            .args(["--unshare-all", "--die-with-parent", "--new-session", "--ro-bind"])
            .arg(self.folder.join("root"))
            .args([
                "/", "--proc", "/proc", "--dev", "/dev", "--tmpfs", "/w", "--tmpfs", "/tmp", "--chdir", "/w",
            ])
            .args(["--clearenv", "--setenv", "PATH", STUBS, "--setenv", "HOME", "/w"])
            .args([
                "--setenv",
                "BASH_FUNC_command_not_found_handle%%",
                "() { /stubs/.missing \"$@\"; }",
            ]);
        let script = format!("ulimit -t 1; ulimit -f 1000\n{script}");
        self.logged(command, &[shell.to_owned(), "-c".to_owned(), script])
    }

    fn logged(&self, mut command: Command, argv: &[String]) -> Vec<Vec<Vec<u8>>> {
        self.runs.set(self.runs.get() + 1);
        let logs = self.folder.join(format!("log-{}", self.runs.get()));
        fs::create_dir(&logs).expect("a folder of our own");
        let log = logs.join("out");
        fs::write(&log, b"").expect("a file of our own");
        let child = command
            .arg("--bind")
            .arg(&logs)
            .arg("/log")
            .arg("--")
            .args(argv)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null())
            .spawn();
        let Ok(mut child) = child else {
            panic!("bwrap is needed")
        };
        if let Some(mut input) = child.stdin.take() {
            let _ = input.write_all(b"one two\nthree\n");
        }
        let end = Instant::now() + Duration::from_millis(800);
        while child.try_wait().expect("our own child").is_none() {
            if Instant::now() > end {
                let _ = child.kill();
                let _ = child.wait();
                break;
            }
            std::thread::sleep(Duration::from_micros(500));
        }
        let runs = parse(&fs::read(&log).unwrap_or_default());
        let _ = fs::remove_dir_all(&logs);
        runs
    }
}

impl Drop for Stage {
    fn drop(&mut self) {
        let _ = fs::remove_dir_all(&self.folder);
    }
}

fn parse(log: &[u8]) -> Vec<Vec<Vec<u8>>> {
    let mut runs = Vec::new();
    let mut argv: Vec<Vec<u8>> = Vec::new();
    for part in log.split(|byte| *byte == 0) {
        if part == [1] {
            runs.push(std::mem::take(&mut argv));
        } else {
            argv.push(part.to_vec());
        }
    }
    runs
}

fn libraries(program: &Path) -> Vec<String> {
    let out = Command::new("ldd").arg(program).output().expect("ldd is there");
    String::from_utf8_lossy(&out.stdout)
        .split_ascii_whitespace()
        .filter(|word| word.starts_with('/'))
        .map(str::to_owned)
        .collect()
}
