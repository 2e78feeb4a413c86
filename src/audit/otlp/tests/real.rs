//! Against a real collector, which prints what it takes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use nix::unistd::Pid;

use super::super::*;
use super::one_task;
use crate::audit::journal::{Journal, JournalOptions};
use crate::audit::record::{Entry, Event, ExecFinished, ExecOutcome, Usage};
use crate::id::{ExecId, TaskId};

/// Long enough for any machine; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(60);

/// A collector of its own process.
struct Rotel {
    process: Child,
}

impl Drop for Rotel {
    fn drop(&mut self) {
        let _ = self.process.kill();
        let _ = self.process.wait();
    }
}

/// The collector's program: in `BELLJAR_ROTEL`, or where `tests/tools/collector.sh` has put it.
fn program() -> Option<PathBuf> {
    if let Some(program) = std::env::var_os("BELLJAR_ROTEL") {
        return Some(program.into());
    }
    // This program is target/<profile>/deps/<name>.
    let target = std::env::current_exe().ok()?.ancestors().nth(3)?.to_owned();
    let program = target.join("tools/rotel/rotel-agent");
    if program.exists() {
        return Some(program);
    }
    assert!(
        std::env::var_os("CI").is_none(),
        "no collector: run tests/tools/collector.sh"
    );
    eprintln!("skipped: no collector; tests/tools/collector.sh installs one");
    None
}

/// Two addresses that were free a moment ago.
fn addresses() -> [SocketAddr; 2] {
    let listeners = [0, 1].map(|_| std::net::TcpListener::bind("127.0.0.1:0").unwrap());
    listeners.map(|listener| listener.local_addr().unwrap())
}

impl Rotel {
    /// Starts it; what it takes is printed at the end of `output`.
    fn start(program: &Path, [grpc, http]: [SocketAddr; 2], output: &Path) -> Self {
        let out = File::options().create(true).append(true).open(output).unwrap();
        let mut command = Command::new(program);
        command.arg("start");
        for signal in Signal::ALL {
            command.args(["--debug-log", signal.as_str()]);
        }
        let process = command
            .args([
                "--debug-log-verbosity",
                "detailed",
                "--exporter",
                "blackhole",
                "--disable-batching",
            ])
            .args([
                "--otlp-grpc-endpoint",
                &grpc.to_string(),
                "--otlp-http-endpoint",
                &http.to_string(),
            ])
            .arg("--pid-file")
            .arg(output.with_extension("pid"))
            .stdin(Stdio::null())
            .stderr(out.try_clone().unwrap())
            .stdout(out)
            .spawn()
            .unwrap();
        Self { process }
    }

    /// Ends it as its service manager would: it prints what it has acknowledged, then it is gone.
    fn end(mut self) {
        let id = Pid::from_raw(self.process.id() as i32);
        nix::sys::signal::kill(id, nix::sys::signal::SIGTERM).unwrap();
        self.process.wait().unwrap();
    }
}

/// How many execs' records go out, three each, and how often the collector goes away meanwhile.
const EXECS: u64 = 10_000;
const RESTARTS: u64 = 5;

#[tokio::test]
async fn a_real_collector_that_restarts_five_times_has_every_record_of_10000_execs() {
    let Some(program) = program() else { return };
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), JournalOptions::default()).unwrap();
    let total = EXECS * 3 + 1;
    let writing = std::thread::spawn(move || {
        let task = TaskId::new();
        for _ in 0..EXECS / 100 {
            let receipts: Vec<_> = (0..100)
                .flat_map(|_| one_exec(task))
                .map(|entry| journal.submit(entry))
                .collect();
            for receipt in receipts {
                receipt.wait().unwrap();
            }
        }
        journal
    });
    let at = addresses();
    let output = folder.path().join("output");
    let mut config = OtlpConfig::new(format!("http://{}", at[0]));
    config.signals = vec![Signal::Logs];
    let exporter = Exporter::start(folder.path(), vec![config.clone()]).unwrap();
    for round in 1..=RESTARTS {
        let rotel = Rotel::start(&program, at, &output);
        let cursors = Cursors::open(folder.path()).unwrap();
        let goal = total * round / (RESTARTS + 1);
        while cursors.read(&config, Signal::Logs).unwrap().seq < goal {
            exporter.flush(Duration::from_millis(20)).await;
        }
        // What it has acknowledged it may finish; in the middle of whatever is under way.
        rotel.end();
    }
    let rotel = Rotel::start(&program, at, &output);
    let _journal = writing.join().unwrap();
    let lag = exporter.flush(PATIENCE).await;
    assert_eq!(lag.records, 0, "{lag:?}");
    exporter.shutdown();
    rotel.end();
    let mut seqs: Vec<u64> = std::fs::read_to_string(&output)
        .unwrap()
        .lines()
        .filter_map(|line| line.trim().strip_prefix("-> log.record.uid: Str(")?.strip_suffix(')'))
        .map(|uid| uid.rsplit('/').next().unwrap().parse().unwrap())
        .collect();
    seqs.sort_unstable();
    seqs.dedup();
    let missing: Vec<u64> = (1..=total)
        .filter(|seq| seqs.binary_search(seq).is_err())
        .take(20)
        .collect();
    assert_eq!((seqs.len() as u64, missing), (total, vec![]));
}

/// What an exec writes while it goes its way: judged, started, finished.
fn one_exec(task: TaskId) -> [Entry; 3] {
    let exec = ExecId::new();
    let argv = vec!["true".to_owned()];
    let started = Event::ExecStarted {
        argv: argv.clone(),
        cwd: "/".into(),
        tty: false,
        approver: None,
    };
    let judged = Event::ExecJudged {
        argv: argv.clone(),
        cwd: "/".into(),
        env_names: vec![],
        judgement: "allow".into(),
        rules: vec![],
        opaque: false,
        digest: "sha256:11".into(),
        reason: None,
        call_id: None,
        traceparent: None,
    };
    let finished = Event::ExecFinished(Box::new(ExecFinished {
        argv,
        cwd: "/".into(),
        env_names: vec![],
        outcome: ExecOutcome::Exited,
        exit_code: Some(0),
        signal: None,
        error: None,
        wall_seconds: 0.001,
        usage: Usage::NONE,
        network_bytes_sent: Some(0),
        network_bytes_received: Some(0),
        stdout_bytes: 0,
        stderr_bytes: 0,
        stdout_digest: None,
        stderr_digest: None,
        image_digest: None,
        plan_digest: None,
        requirements_digest: None,
        rules: vec![],
        approver: None,
        reason: None,
        call_id: None,
        traceparent: None,
    }));
    [judged, started, finished].map(|event| Entry {
        task: Some(task),
        exec: Some(exec),
        event,
    })
}

#[tokio::test]
async fn a_real_collector_takes_a_run_by_grpc_and_by_http() {
    let Some(program) = program() else { return };
    let folder = tempfile::tempdir().unwrap();
    let journal = Journal::open(folder.path(), JournalOptions::default()).unwrap();
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let (_, exec) = one_task(&journal, Some(trace), 2);
    let [grpc, http] = addresses();
    let output = folder.path().join("output");
    let rotel = Rotel::start(&program, [grpc, http], &output);
    let by_grpc = OtlpConfig::new(format!("http://{grpc}"));
    let mut by_http = OtlpConfig::new(format!("http://{http}"));
    by_http.protocol = Protocol::HttpProtobuf;
    by_http.compression = Compression::Gzip;
    for config in [by_grpc, by_http] {
        let exporter = Exporter::start(folder.path(), vec![config]).unwrap();
        let lag = exporter.flush(PATIENCE).await;
        assert_eq!(lag.records, 0, "{lag:?}");
    }
    rotel.end();
    let text = std::fs::read_to_string(&output).unwrap();
    let twice = |part: &str| assert!(text.matches(part).count() >= 2, "{part} is missing in\n{text}");
    twice(&exec.to_string());
    twice("4bf92f3577b34da6a3ce929d0e0e4736");
    twice("process.command_args");
    twice("belljar.exec.duration");
}
