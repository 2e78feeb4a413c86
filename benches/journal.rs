//! The journal's figures: records a second, what it adds to an exec, and the proof of a million records.
//!
//! `cargo bench --bench journal`, with `-- --quick` for a tenth of everything. The journal is made in `$TMPDIR`: put
//! that on the disk that is to be measured.

#[path = "table/mod.rs"]
mod table;

use std::path::Path;
use std::time::{Duration, Instant};

use belljar::audit::journal::{Journal, JournalOptions, Reader, Sync};
use belljar::audit::key::SigningKey;
use belljar::audit::query::{self, Filter, Take};
use belljar::audit::record::{Entry, Event, ExecFinished, ExecOutcome, Usage};
use belljar::audit::{Known, verify};
use belljar::id::{ExecId, TaskId};
use belljar::policy::{Decision, RuleMatch};
use table::{Row, Unit};

fn main() -> Result<(), Box<dyn std::error::Error>> {
    let quick = std::env::args().any(|arg| arg == "--quick");
    let part = if quick { 10 } else { 1 };
    let folder = tempfile::tempdir()?;
    let mut rows = Vec::new();
    rows.extend(alone(&folder.path().join("batch"), Sync::Batch, 5_000 / part)?);
    rows.extend(alone(&folder.path().join("each"), Sync::Each, 1_000 / part)?);
    rows.push(many_callers(&folder.path().join("callers"), 20_000 / part)?);
    let large = folder.path().join("large");
    let records = 1_000_000 / part;
    rows.push(sustained(&large, records)?);
    rows.push(proof(&large, records)?);
    rows.extend(questions(&large)?);
    table::report("journal", &rows)?;
    Ok(())
}

/// One exec after the other, each with the two waits that it has: before its start, and before its answer.
fn alone(folder: &Path, sync: Sync, execs: usize) -> Result<[Row; 2], Box<dyn std::error::Error>> {
    let journal = open(folder, sync)?;
    let task = TaskId::new();
    let mut added = Vec::with_capacity(execs);
    for _ in 0..execs {
        let [judged, started, finished] = one_exec(task);
        let from = Instant::now();
        journal.append_all_blocking([judged, started])?;
        let before = from.elapsed();
        // What the command itself takes: the writer has gone to sleep again.
        std::thread::sleep(Duration::from_micros(300));
        let from = Instant::now();
        journal.append_blocking(finished)?;
        added.push(before + from.elapsed());
    }
    let name = sync.as_str();
    let middle = Row::seconds(
        format!("journal: added to an exec alone, sync {name}, p50"),
        Some(percentile(&mut added, 50)),
    );
    let tail = Row::seconds(
        format!("journal: the same, sync {name}, p99"),
        Some(percentile(&mut added, 99)),
    );
    Ok(match sync {
        Sync::Batch => [middle.bound(50e-6), tail],
        Sync::Each => [middle, tail],
    })
}

/// Sixteen callers at once, each waiting for its own records.
fn many_callers(folder: &Path, execs: usize) -> Result<Row, Box<dyn std::error::Error>> {
    const CALLERS: usize = 16;
    let journal = open(folder, Sync::Batch)?;
    let from = Instant::now();
    std::thread::scope(|scope| {
        for _ in 0..CALLERS {
            scope.spawn(|| {
                let task = TaskId::new();
                for _ in 0..execs / CALLERS {
                    let [judged, started, finished] = one_exec(task);
                    let waits = [
                        journal.append_all_blocking([judged, started]),
                        journal.append_blocking(finished),
                    ];
                    assert!(waits.iter().all(Result::is_ok), "{waits:?}");
                }
            });
        }
    });
    let rate = execs as f64 / from.elapsed().as_secs_f64();
    Ok(Row::new(
        "journal: execs of 16 callers, three records each",
        Unit::Rate,
        Some(rate),
    ))
}

fn sustained(folder: &Path, records: usize) -> Result<Row, Box<dyn std::error::Error>> {
    let journal = open(folder, Sync::Batch)?;
    let task = TaskId::new();
    let from = Instant::now();
    let mut written = 1;
    while written < records {
        let receipts: Vec<_> = (0..1000)
            .flat_map(|_| one_exec(task))
            .map(|entry| journal.submit(entry))
            .collect();
        for receipt in receipts {
            written = usize::try_from(receipt.wait()?)?;
        }
    }
    let rate = written as f64 / from.elapsed().as_secs_f64();
    Ok(Row::new("journal: records sustained", Unit::Rate, Some(rate)).bound(50_000.0))
}

fn proof(folder: &Path, records: usize) -> Result<Row, Box<dyn std::error::Error>> {
    let from = Instant::now();
    let verified = verify(folder, &Known::default())?;
    let took = from.elapsed();
    let row = Row::seconds(format!("journal: proof of {} records", verified.records), Some(took));
    Ok(row.bound(5e-6 * records as f64))
}

/// What `audit show` and a reviewer ask, of the one task that has all records.
fn questions(folder: &Path) -> Result<[Row; 2], Box<dyn std::error::Error>> {
    let reader = Reader::open(folder)?;
    let records = reader.last_seq()?;
    let mut execs = Vec::new();
    let mut newest = Vec::new();
    for n in 1..=200 {
        let Some(record) = reader.record(records * n / 201)? else {
            continue;
        };
        let (Some(task), Some(exec)) = (record.task, record.exec) else {
            continue;
        };
        let from = Instant::now();
        query::show(&reader, ExecId::from_bytes(*exec.as_bytes()))?;
        execs.push(from.elapsed());
        let filter = Filter {
            task: Some(TaskId::from_bytes(*task.as_bytes())),
            ..Filter::default()
        };
        let from = Instant::now();
        query::ls(&reader, &filter, Take::Newest(40))?;
        newest.push(from.elapsed());
    }
    Ok([
        Row::seconds(
            format!("journal: one exec of {records} records shown, p50"),
            Some(percentile(&mut execs, 50)),
        ),
        Row::seconds(
            format!("journal: the last 40 of {records} records of a task, p50"),
            Some(percentile(&mut newest, 50)),
        ),
    ])
}

fn open(folder: &Path, sync: Sync) -> Result<Journal, Box<dyn std::error::Error>> {
    std::fs::create_dir_all(folder)?;
    let options = JournalOptions {
        sync,
        key: Some(SigningKey::load_or_make(&folder.join("audit.key"))?),
        ..JournalOptions::default()
    };
    Ok(Journal::open(folder, options)?)
}

/// The records of an ordinary command.
fn one_exec(task: TaskId) -> [Entry; 3] {
    let exec = ExecId::new();
    let argv: Vec<String> = [
        "bash",
        "-lc",
        "cargo test --lib audit:: -- --test-threads=2 2>&1 | tail -n 40",
    ]
    .map(str::to_owned)
    .into();
    let rules = vec![RuleMatch {
        id: "cargo-test".into(),
        file: "/etc/belljar/rules/default.rules".into(),
        line: 12,
        decision: Decision::Allow,
        justification: Some("tests may run".into()),
        person_only: false,
    }];
    let judged = Event::ExecJudged {
        argv: argv.clone(),
        cwd: "/workspace".into(),
        env_names: vec!["CI".into(), "CARGO_TERM_COLOR".into()],
        judgement: "allow".into(),
        rules: rules.clone(),
        opaque: false,
        digest: "blake3:4878ca0425c739fa427f7eda20fe845f6b2e46ba5fe2a14df5b1e32f50603215".into(),
        reason: Some("see whether the journal's tests pass".into()),
        call_id: Some("call_7".into()),
        traceparent: None,
    };
    let started = Event::ExecStarted {
        argv: argv.clone(),
        cwd: "/workspace".into(),
        tty: false,
        approver: None,
    };
    let finished = Event::ExecFinished(Box::new(ExecFinished {
        argv,
        cwd: "/workspace".into(),
        env_names: vec!["CI".into(), "CARGO_TERM_COLOR".into()],
        outcome: ExecOutcome::Exited,
        exit_code: Some(0),
        signal: None,
        error: None,
        wall_seconds: 1.25,
        usage: Usage::NONE,
        network_bytes_sent: Some(0),
        network_bytes_received: Some(0),
        stdout_bytes: 4096,
        stderr_bytes: 0,
        stdout_digest: Some("blake3:4878ca0425c739fa427f7eda20fe845f6b2e46ba5fe2a14df5b1e32f50603215".into()),
        stderr_digest: None,
        image_digest: None,
        plan_digest: Some("blake3:4878ca0425c739fa427f7eda20fe845f6b2e46ba5fe2a14df5b1e32f50603215".into()),
        requirements_digest: None,
        rules,
        approver: None,
        reason: None,
        call_id: Some("call_7".into()),
        traceparent: None,
    }));
    [judged, started, finished].map(|event| Entry {
        task: Some(task),
        exec: Some(exec),
        event,
    })
}

fn percentile(times: &mut [Duration], percent: usize) -> Duration {
    times.sort_unstable();
    times[(times.len() - 1) * percent / 100]
}
