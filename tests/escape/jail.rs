//! A task of the built program, driven over lines of JSON, for each test its own.

use std::cell::Cell;
use std::collections::VecDeque;
use std::ffi::OsString;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

use serde_json::{Value, json};

/// An ordinary user without a name, a home or ids of its own beside the one.
const ORDINARY: u32 = 1234;

/// Who runs belljar, and what launches the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Caller {
    Root,
    Ordinary,
    /// Root, with an outside runtime.
    Runc,
    /// Likewise gVisor, which has a kernel of its own.
    Runsc,
    /// Root, at the engine that listens here, and what that is.
    Docker(&'static Path, &'static str),
}

impl Caller {
    pub fn backend(self) -> &'static str {
        match self {
            Caller::Root => "oci/builtin, root",
            Caller::Ordinary => "oci/builtin, user",
            Caller::Runc => "oci/runc, root",
            Caller::Runsc => "oci/runsc, root",
            Caller::Docker(_, engine) => engine,
        }
    }

    /// The words that choose the backend.
    pub fn choice(self) -> &'static [&'static str] {
        match self {
            Caller::Root | Caller::Ordinary => &[],
            Caller::Runc => &["--runtime", "runc"],
            Caller::Runsc => &["--runtime", "runsc"],
            Caller::Docker(..) => &["--backend", "docker"],
        }
    }

    /// The guarantees that the backend keeps on no machine in full: without accepting them no task starts.
    pub fn lacks(self) -> &'static [&'static str] {
        match self {
            Caller::Root | Caller::Ordinary | Caller::Runc => &[],
            // That one is accepted by default.
            Caller::Runsc => &[],
            Caller::Docker(..) => &["namespaces"],
        }
    }

    /// Whether commands of one task are kept apart.
    pub fn isolates_execs(self) -> bool {
        self != Caller::Runsc
    }

    /// Words for a task that starts.
    pub fn flags(self) -> Vec<&'static str> {
        let accepted = self.lacks().iter().flat_map(|control| ["--accept-partial", control]);
        self.choice().iter().copied().chain(accepted).collect()
    }

    fn needs(self) -> Option<&'static str> {
        match self {
            Caller::Root | Caller::Ordinary | Caller::Docker(..) => None,
            Caller::Runc => Some("runc"),
            Caller::Runsc => Some("runsc"),
        }
    }
}

/// The caller, if this machine lets us be it; in CI it must be there.
pub fn available(caller: Caller) -> Option<Caller> {
    let is_root = rustix::process::geteuid().is_root();
    let why = match caller.needs().map(belljar::sandbox::outside::find) {
        Some(Err(error)) => error.to_string(),
        _ if !is_root && caller != Caller::Ordinary => "this test does not run as root".to_owned(),
        _ => return Some(caller),
    };
    assert!(std::env::var_os("CI").is_none(), "{}: {why}", caller.backend());
    eprintln!("skipped for {}: {why}", caller.backend());
    println!("| {:<40} | {:<17} | skipped: {why} |", "all", caller.backend());
    None
}

/// A folder of the test's own that both callers can work in.
pub struct Place {
    folder: tempfile::TempDir,
    caller: Caller,
    /// A process in whose network and mounts the caller works.
    within: Option<u32>,
}

impl Place {
    pub fn new(caller: Caller) -> Place {
        let folder = tempfile::tempdir().unwrap();
        std::fs::set_permissions(folder.path(), std::fs::Permissions::from_mode(0o755)).unwrap();
        let place = Place {
            folder,
            caller,
            within: None,
        };
        place.give(place.path());
        place.make_folder("state");
        place.make_folder("home");
        place.make_folder("work");
        place
    }

    /// Puts the caller into the network and mount namespaces of a process.
    #[allow(dead_code, reason = "for the tests of the way out, which share this file")]
    pub fn within(self, process: u32) -> Place {
        Place {
            within: Some(process),
            ..self
        }
    }

    pub fn path(&self) -> &Path {
        self.folder.path()
    }

    /// The folder that is `/workspace` inside.
    pub fn work(&self) -> PathBuf {
        self.path().join("work")
    }

    pub fn make_folder(&self, name: &str) -> PathBuf {
        let path = self.path().join(name);
        std::fs::create_dir_all(&path).unwrap();
        self.give(&path);
        path
    }

    /// Makes the caller the owner.
    fn give(&self, path: &Path) {
        if self.switches() {
            std::os::unix::fs::chown(path, Some(ORDINARY), Some(ORDINARY)).unwrap();
        }
    }

    fn switches(&self) -> bool {
        self.caller == Caller::Ordinary && rustix::process::geteuid().is_root()
    }

    /// A program as the caller would start it, with an environment of its own.
    pub fn command(&self, program: &Path) -> Command {
        let mut words: Vec<OsString> = Vec::new();
        if let Some(process) = self.within {
            words.extend(["nsenter", "-t", &process.to_string(), "-n", "-m", "--"].map(Into::into));
        }
        if self.switches() {
            let id = ORDINARY.to_string();
            words.extend(["setpriv", "--reuid", &id, "--regid", &id, "--clear-groups", "--"].map(Into::into));
        }
        words.push(program.into());
        let mut command = Command::new(&words[0]);
        command.args(&words[1..]);
        command
            .env_clear()
            .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
            .env("HOME", self.path().join("home"))
            .env("BELLJAR_STATE", self.path().join("state"))
            .current_dir(self.path());
        if let Caller::Docker(socket, _) = self.caller {
            command.env("DOCKER_HOST", format!("unix://{}", socket.display()));
        }
        command
    }

    /// Runs a shell script on the host as the caller, in the work folder; it must succeed.
    pub fn on_host(&self, script: &str) -> String {
        let output = self
            .command(Path::new("/bin/sh"))
            .args(["-euc", script])
            .current_dir(self.work())
            .env("GIT_CONFIG_NOSYSTEM", "1")
            .output()
            .unwrap();
        assert!(
            output.status.success(),
            "{script}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// The program where the caller can reach it.
    pub fn program(&self) -> PathBuf {
        let program = self.path().join("belljar");
        if !program.exists() {
            let built = env!("CARGO_BIN_EXE_belljar");
            if std::fs::hard_link(built, &program).is_err() {
                std::fs::copy(built, &program).unwrap();
            }
        }
        program
    }

    /// Starts a task with `/workspace` writable; `spec` is added to its spec.
    pub fn start(&self, spec: &str) -> Jail {
        let work = self.work();
        let text = format!(
            "version = 1\nname = \"escape\"\nworkdir = \"/workspace\"\n{spec}\n[[writable_roots]]\nhost = {work:?}\npath = \"/workspace\"\n"
        );
        self.start_spec(&text)
    }

    pub fn start_spec(&self, text: &str) -> Jail {
        let file = self.path().join("task.toml");
        std::fs::write(&file, text).unwrap();
        let mut command = self.command(&self.program());
        command
            .arg("run")
            .arg(&file)
            .args(self.caller.flags())
            .args(["--stdio", "--quiet"])
            .env("ACC_CANARY", "ACC_CANARY_VALUE")
            .env("SECRET_TOKEN", "ACC_CANARY_VALUE");
        Jail::of(command)
    }

    /// A task that a shell script starts, in the work folder; it ends in `belljar run … --stdio`.
    pub fn start_by(&self, script: &str) -> Jail {
        let mut command = self.command(Path::new("/bin/sh"));
        command.args(["-ec", script]).current_dir(self.work());
        Jail::of(command)
    }
}

/// A live task.
pub struct Jail {
    pub child: Child,
    input: Option<ChildStdin>,
    output: BufReader<ChildStdout>,
    unread: VecDeque<Value>,
    next: u64,
}

impl Jail {
    fn of(mut command: Command) -> Jail {
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let input = child.stdin.take().unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        Jail {
            child,
            input: Some(input),
            output,
            unread: VecDeque::new(),
            next: 0,
        }
    }
}

/// What a command came to.
#[derive(Debug)]
pub struct Ran {
    pub stdout: String,
    pub stderr: String,
    /// As the API tells it.
    pub end: Value,
}

impl Ran {
    pub fn last_line(&self) -> &str {
        self.stdout.trim_end().lines().last().unwrap_or("")
    }

    pub fn code(&self) -> Option<i64> {
        self.end["exit_code"].as_i64()
    }
}

impl Jail {
    /// Runs a shell script inside to its end.
    pub fn sh(&mut self, script: &str) -> Ran {
        self.run(&["sh", "-c", script])
    }

    pub fn python(&mut self, script: &str) -> Ran {
        self.run(&["python3", "-c", script])
    }

    pub fn run(&mut self, argv: &[&str]) -> Ran {
        self.run_with(json!({ "argv": argv }))
    }

    pub fn run_with(&mut self, params: Value) -> Ran {
        let exec = self.begin(params);
        self.finish(&exec)
    }

    /// Starts a command and returns its id once it runs, or has run.
    pub fn begin(&mut self, params: Value) -> String {
        let shown = params.to_string();
        self.try_begin(params)
            .unwrap_or_else(|| panic!("{shown} was not taken"))
    }

    /// The same for a request that may be refused as such.
    pub fn try_begin(&mut self, params: Value) -> Option<String> {
        self.next += 1;
        let id = self.next;
        self.send(&json!({"id": id, "method": "exec.start", "params": params}));
        let answer = self.until(|message| message["id"] == id);
        let exec = answer["result"]["id"].as_str()?.to_owned();
        let begun = self.until(|message| {
            let kind = &message["params"]["type"];
            message["params"]["exec"] == exec.as_str() && (kind == "started" || kind == "ended")
        });
        // One that ended before it was said to have started; its end is for whoever waits for it.
        if begun["params"]["type"] == "ended" {
            self.unread.push_front(begun);
        }
        Some(exec)
    }

    /// Waits for one line of output of a running command.
    pub fn output(&mut self, exec: &str) -> String {
        let said = self.until(|message| message["params"]["exec"] == exec && message["params"]["type"] == "output");
        text(&said["params"]["data"])
    }

    pub fn signal(&mut self, exec: &str, signal: i32) {
        self.next += 1;
        let id = self.next;
        self.send(&json!({"id": id, "method": "exec.signal", "params": {"exec": exec, "signal": signal}}));
        self.until(|message| message["id"] == id);
    }

    pub fn finish(&mut self, exec: &str) -> Ran {
        let (mut stdout, mut stderr) = (String::new(), String::new());
        loop {
            let message = self.until(|message| message["params"]["exec"] == exec);
            let params = &message["params"];
            match params["type"].as_str() {
                Some("output") if params["stream"] == "stderr" => stderr.push_str(&text(&params["data"])),
                Some("output") => stdout.push_str(&text(&params["data"])),
                Some("ended") => {
                    return Ran {
                        stdout,
                        stderr,
                        end: params["end"].clone(),
                    };
                }
                _ => {}
            }
        }
    }

    fn send(&mut self, message: &Value) {
        writeln!(self.input.as_mut().unwrap(), "{message}").unwrap();
    }

    /// The next message of a kind. Others stay for whoever waits for them: events may come before the answer to a start.
    fn until(&mut self, wanted: impl Fn(&Value) -> bool) -> Value {
        if let Some(at) = self.unread.iter().position(&wanted) {
            return self.unread.remove(at).unwrap();
        }
        loop {
            let mut line = String::new();
            let read = self.output.read_line(&mut line).unwrap();
            assert!(read > 0, "belljar ended before it said what was waited for");
            let message: Value = serde_json::from_str(&line).unwrap();
            if wanted(&message) {
                return message;
            }
            self.unread.push_back(message);
        }
    }

    /// Ends the task and returns its summary.
    pub fn end(mut self) -> Value {
        drop(self.input.take());
        let summary = self.until(|message| message["method"] == "task.ended");
        assert!(self.child.wait().is_ok());
        summary["params"].clone()
    }
}

impl Drop for Jail {
    fn drop(&mut self) {
        // A test that failed half-way; the sandbox ends with its belljar.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn text(data: &Value) -> String {
    use base64::Engine as _;
    let bytes = base64::engine::general_purpose::STANDARD
        .decode(data.as_str().unwrap())
        .unwrap();
    String::from_utf8_lossy(&bytes).into_owned()
}

thread_local! {
    /// Rows that the attack of this thread has told.
    static TOLD: Cell<usize> = const { Cell::new(0) };
}

/// A row of the table of attacks.
pub fn row(attack: &str, caller: Caller, result: &str) {
    // What a probe found is for whoever reads why it failed.
    let result = match result.starts_with("BLOCKED") {
        true => "BLOCKED",
        false => result.trim_matches('"'),
    };
    TOLD.set(TOLD.get() + 1);
    println!("| {attack:<40} | {:<17} | {result} |", caller.backend());
}

/// The row of an attack that makes no sense at this backend, or that nobody here can try.
#[allow(dead_code, reason = "for the attacks alone")]
pub fn not_tried(attack: &str, caller: Caller, why: &str) {
    row(attack, caller, &format!("not tried: {why}"));
}

/// Tries an attack; whatever comes of it there is a row of it.
#[allow(dead_code, reason = "for the attacks alone")]
pub fn tried(name: &str, caller: Caller, attack: fn(Caller)) -> Result<(), Box<dyn std::any::Any + Send>> {
    let name = name.replace('_', " ");
    TOLD.set(0);
    let ended = std::panic::catch_unwind(|| attack(caller));
    match ended {
        Ok(()) if TOLD.get() == 0 => row(&name, caller, "held"),
        Ok(()) => {}
        Err(_) => row(&name, caller, "FAILED"),
    }
    ended
}
