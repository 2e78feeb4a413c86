//! Against a real collector, which prints what it takes.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};

use super::tests::one_task;
use super::*;
use crate::audit::journal::{Journal, JournalOptions};

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
    let _rotel = Rotel::start(&program, [grpc, http], &output);
    let by_grpc = OtlpConfig::new(format!("http://{grpc}"));
    let mut by_http = OtlpConfig::new(format!("http://{http}"));
    by_http.protocol = Protocol::HttpProtobuf;
    by_http.compression = Compression::Gzip;
    for config in [by_grpc, by_http] {
        let exporter = Exporter::start(folder.path(), vec![config]).unwrap();
        let lag = exporter.flush(PATIENCE).await;
        assert_eq!(lag.records, 0, "{lag:?}");
    }
    let text = std::fs::read_to_string(&output).unwrap();
    let twice = |part: &str| assert!(text.matches(part).count() >= 2, "{part} is missing in\n{text}");
    twice(&exec.to_string());
    twice("4bf92f3577b34da6a3ce929d0e0e4736");
    twice("process.command_args");
    twice("belljar.exec.duration");
}
