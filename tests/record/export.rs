//! Everything arrives at a real collector, however often it and belljar are killed meanwhile.
//!
//! This one acknowledges what it has not printed yet, so that SIGKILL costs it some of that: it is sent again, and recognised by its id.

use std::collections::BTreeSet;
use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use serde_json::{Value, json};

use crate::{assert_whole, belljar, ids};

/// How often belljar and the collector are killed.
const ROUNDS: u64 = 5;

/// The most that the collector has acknowledged and not printed when it is killed: a batch on its way in and one on its way out.
const LOST_MAX: usize = 2 * 512;

/// Execs of one round; `BELLJAR_ROUND_EXECS=2000` makes ten thousand of all.
fn execs_a_round() -> u64 {
    std::env::var("BELLJAR_ROUND_EXECS").map_or(30, |text| text.parse().unwrap())
}

/// The collector's program, as `tests/tools/collector.sh` has put it.
fn program() -> Option<PathBuf> {
    let target = Path::new(env!("CARGO_BIN_EXE_belljar")).ancestors().nth(2).unwrap();
    let program = target.join("tools/rotel/rotel-agent");
    if !program.exists() {
        assert!(
            std::env::var_os("CI").is_none(),
            "no collector: run tests/tools/collector.sh"
        );
        eprintln!("skipped: no collector; tests/tools/collector.sh installs one");
        return None;
    }
    Some(program)
}

/// A collector of its own process, which prints the logs that it takes at the end of a file.
struct Rotel(Child);

impl Rotel {
    fn start(program: &Path, grpc: SocketAddr, output: &Path) -> Self {
        let out = std::fs::File::options().create(true).append(true).open(output).unwrap();
        let http = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let started = Command::new(program)
            .args(["start", "--debug-log", "logs", "--debug-log-verbosity", "detailed"])
            .args(["--exporter", "blackhole", "--disable-batching"])
            .args(["--otlp-grpc-endpoint", &grpc.to_string()])
            .args(["--otlp-http-endpoint", &http.to_string()])
            .arg("--pid-file")
            .arg(output.with_extension("pid"))
            .stdin(Stdio::null())
            .stderr(out.try_clone().unwrap())
            .stdout(out)
            .spawn();
        Self(started.unwrap())
    }

    fn is_over(&mut self) -> bool {
        self.0.try_wait().unwrap().is_some()
    }

    /// With SIGKILL, in the middle of whatever is under way.
    fn kill(self) {
        drop(self);
    }
}

impl Drop for Rotel {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs commands one after the other in a task of its own, and kills its belljar in the middle of the last.
fn round(state: &Path, endpoint: &str, execs: u64) {
    let mut child = belljar(state, &["run", "--stdio", "--network", "none", "--otlp", endpoint])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut input = child.stdin.take().unwrap();
    let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
    for n in 0..execs {
        let start = json!({"id": n, "method": "exec.start", "params": {"argv": ["true"], "reason": n.to_string()}});
        writeln!(input, "{start}").unwrap();
        let last = n + 1 == execs;
        loop {
            let message: Value = serde_json::from_str(&lines.next().unwrap().unwrap()).unwrap();
            let kind = message["params"]["type"].as_str().unwrap_or_default();
            if kind == "ended" || last && kind == "judged" {
                break;
            }
        }
    }
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn a_collector_has_every_record_though_it_and_belljar_are_killed_five_times() {
    let Some(program) = program() else { return };
    let folder = tempfile::tempdir().unwrap();
    let state = folder.path().join("state");
    let output = folder.path().join("output");
    let grpc = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let endpoint = format!("http://{grpc}");
    for _ in 0..ROUNDS {
        let rotel = Rotel::start(&program, grpc, &output);
        round(&state, &endpoint, execs_a_round());
        rotel.kill();
    }
    // The next start closes what was lost, and delivers what was not delivered.
    let mut rotel = Rotel::start(&program, grpc, &output);
    let status = belljar(&state, &["run", "--quiet", "--network", "none", "--", "true"]).status();
    assert!(status.unwrap().success());
    let export = |filter: &[&str]| {
        let words = [&["audit", "export", "--otlp", "--endpoint", &endpoint], filter].concat();
        let exported = belljar(&state, &words).output().unwrap();
        let text = String::from_utf8_lossy(&exported.stdout);
        assert!(exported.status.success(), "{text}");
    };
    export(&[]);

    let records = assert_whole(&state);
    assert_eq!(ids(&records, "exec.judged").len() as u64, ROUNDS * execs_a_round() + 1);
    let all: BTreeSet<u64> = records.iter().map(|record| record["seq"].as_u64().unwrap()).collect();
    let missing = all.difference(&printed(&output).into_iter().collect()).count();
    assert!(missing <= LOST_MAX * ROUNDS as usize, "{missing} of {}", all.len());
    export(&["--since", "1h"]);
    // Its log is written behind its answer.
    let mut arrived = printed(&output);
    while !all.is_subset(&arrived.iter().copied().collect()) {
        assert!(!rotel.is_over(), "the collector ended by itself");
        arrived = printed(&output);
    }
    // The same record sent twice has the same id twice, and nothing has an id that no record has.
    assert_eq!(arrived.iter().copied().collect::<BTreeSet<u64>>(), all);
    println!(
        "{} records, {} arrived, {missing} of them only the second time",
        all.len(),
        arrived.len()
    );
}

/// The numbers of the records that the collector has printed, in that order.
fn printed(output: &Path) -> Vec<u64> {
    let text = String::from_utf8_lossy(&std::fs::read(output).unwrap()).into_owned();
    let ids = text
        .lines()
        .filter_map(|line| line.trim().strip_prefix("-> log.record.uid: Str(")?.strip_suffix(')'));
    ids.filter_map(|id| id.rsplit('/').next()?.parse().ok()).collect()
}
