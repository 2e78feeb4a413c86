use std::collections::HashSet;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use rusqlite::Connection;

use super::*;
use crate::audit::otlp::Signal;
use crate::audit::record::{ExecFinished, ExecOutcome, TaskOutcome, Usage};
use crate::audit::{Known, Verified, VerifyError};
use crate::id::{ExecId, TaskId};

fn note(name: &str) -> Entry {
    Entry {
        task: None,
        exec: None,
        event: Event::AgentEvent {
            name: name.to_owned(),
            call_id: None,
            body: serde_json::Value::Null,
        },
    }
}

fn exec_started(task: TaskId, exec: ExecId) -> Entry {
    Entry {
        task: Some(task),
        exec: Some(exec),
        event: Event::ExecStarted {
            argv: vec!["make".into(), "test".into()],
            cwd: "/workspace".into(),
            tty: false,
            approver: None,
        },
    }
}

fn task_started(task: TaskId) -> Entry {
    Entry {
        task: Some(task),
        exec: None,
        event: Event::TaskStarted {
            backend: "oci".into(),
            runtime: "builtin".into(),
            image: "host".into(),
            image_digest: Some("sha256:aa".into()),
            plan_digest: "sha256:bb".into(),
            start_seconds: 0.01,
        },
    }
}

fn exec_finished(task: TaskId, exec: ExecId) -> Entry {
    Entry {
        task: Some(task),
        exec: Some(exec),
        event: Event::ExecFinished(Box::new(ExecFinished {
            argv: vec!["make".into(), "test".into()],
            cwd: "/workspace".into(),
            env_names: vec![],
            outcome: ExecOutcome::Exited,
            exit_code: Some(0),
            signal: None,
            error: None,
            wall_seconds: 0.5,
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
        })),
    }
}

fn open(folder: &Path) -> Journal {
    Journal::open(folder, JournalOptions::default()).unwrap()
}

fn verify(folder: &Path) -> Result<Verified, VerifyError> {
    crate::audit::verify(folder, &Known::default())
}

fn kinds(folder: &Path) -> Vec<String> {
    let records = Reader::open(folder).unwrap().after(0, 1_000_000).unwrap();
    records.into_iter().map(|record| record.kind).collect()
}

#[test]
fn records_come_back_in_order_with_their_envelope() {
    let folder = tempfile::tempdir().unwrap();
    let (task, exec) = (TaskId::new(), ExecId::new());
    let journal = open(folder.path());
    assert_eq!(journal.append_blocking(exec_started(task, exec)).unwrap(), 2);
    assert_eq!(journal.append_blocking(note("naïve \u{1b}[31m\0")).unwrap(), 3);
    let records = journal.reader().unwrap().after(0, 10).unwrap();
    assert_eq!(records.len(), 3);
    let started = records[1].value();
    assert_eq!(started["version"], 1);
    assert_eq!(started["seq"], 2);
    assert_eq!(started["kind"], "exec.started");
    assert_eq!(started["task"], task.to_string());
    assert_eq!(started["exec"], exec.to_string());
    assert_eq!(started["argv"], serde_json::json!(["make", "test"]));
    assert!(!started["boot"].as_str().unwrap().is_empty());
    assert_eq!(
        started["time"].as_str().unwrap().parse::<jiff::Timestamp>().unwrap(),
        records[1].timestamp()
    );
    assert!(
        records[2].json.contains(r"naïve \u001b[31m\u0000"),
        "{}",
        records[2].json
    );
    assert_eq!(records[2].value()["name"], "naïve \u{1b}[31m\0");
}

#[test]
fn whoever_runs_belljar_stands_in_every_record_it_writes() {
    let folder = tempfile::tempdir().unwrap();
    let open = |user: &str| {
        let options = JournalOptions {
            user: Some(user.to_owned()),
            ..JournalOptions::default()
        };
        Journal::open(folder.path(), options).unwrap()
    };
    let odd = "ada \"the\u{7} first\"\\";
    let journal = open(odd);
    journal.append_blocking(task_started(TaskId::new())).unwrap();
    drop(journal);
    // Another one closes what the first left.
    let journal = open("bob");
    assert_eq!(journal.close_lost(&|_| false).unwrap(), 1);
    let records = journal.reader().unwrap().after(0, 10).unwrap();
    let users: Vec<_> = records.iter().map(|record| record.value()["user"].clone()).collect();
    assert_eq!(users, [odd, odd, "bob", "bob"]);
    verify(folder.path()).unwrap();
}

#[test]
fn what_was_submitted_together_is_written_in_that_order() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path());
    let receipts: Vec<Receipt> = (0..5000).map(|n| journal.submit(note(&n.to_string()))).collect();
    for (n, receipt) in receipts.into_iter().enumerate() {
        assert_eq!(receipt.wait().unwrap(), n as u64 + 2);
    }
    let records = journal.reader().unwrap().after(1, 10_000).unwrap();
    for (n, record) in records.iter().enumerate() {
        assert_eq!(record.value()["name"], n.to_string());
    }
    assert_eq!(verify(folder.path()).unwrap().records, 5001);
}

#[tokio::test]
async fn records_that_are_appended_together_follow_each_other_even_when_nobody_waits() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path());
    assert_eq!(journal.append_all([note("a"), note("b")]).await.unwrap(), 3);
    assert_eq!(
        journal.append_all_blocking([note("c"), note("d"), note("e")]).unwrap(),
        6
    );
    // The lock is another process's, so that no caller can write; whoever waits goes away after the first look.
    let other = Connection::open(folder.path().join(FILE)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    {
        let mut waiting = Box::pin(journal.append_all([note("f"), note("g")]));
        assert!(
            waiting
                .as_mut()
                .poll(&mut Context::from_waker(Waker::noop()))
                .is_pending()
        );
    }
    // One that was never looked at was not asked for.
    drop(journal.append_all([note("x"), note("y")]));
    other.execute_batch("ROLLBACK").unwrap();
    assert_eq!(journal.append(note("h")).await.unwrap(), 9);
    let records = journal.reader().unwrap().after(1, 10).unwrap();
    let names: Vec<_> = records.iter().map(|record| record.value()["name"].clone()).collect();
    assert_eq!(names, ["a", "b", "c", "d", "e", "f", "g", "h"]);
}

#[tokio::test]
async fn a_blocking_append_within_async_code_does_not_panic() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path());
    assert_eq!(journal.append_blocking(note("a")).unwrap(), 2);
    assert_eq!(journal.append(note("b")).await.unwrap(), 3);
}

#[test]
fn a_dropped_receipt_does_not_take_the_record_back() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path());
    drop(journal.submit(note("a")));
    drop(journal);
    assert_eq!(kinds(folder.path()), ["journal.opened", "agent.event"]);
}

#[test]
fn the_folder_and_the_database_are_the_owners_alone() {
    use std::os::unix::fs::PermissionsExt;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("state/journal");
    let journal = open(&path);
    journal.append_blocking(note("a")).unwrap();
    let mode = |path: &Path| std::fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    for file in ["journal.db", "journal.db-wal", "journal.db-shm"] {
        assert_eq!(mode(&path.join(file)), 0o600, "{file}");
    }
}

#[test]
fn secrets_do_not_reach_the_database() {
    let folder = tempfile::tempdir().unwrap();
    let redactor = Redactor::default();
    redactor.hide("correct horse battery");
    let options = JournalOptions {
        sync: Sync::Each,
        redactor,
        ..JournalOptions::default()
    };
    let journal = Journal::open(folder.path(), options).unwrap();
    let mut entry = exec_started(TaskId::new(), ExecId::new());
    if let Event::ExecStarted { argv, .. } = &mut entry.event {
        *argv = [
            "deploy",
            "--token",
            "t0p5ecret",
            "correct horse battery",
            "https://me:pa55w0rd@h/",
        ]
        .map(str::to_owned)
        .into();
    }
    journal.append_blocking(entry).unwrap();
    drop(journal);
    for file in std::fs::read_dir(folder.path()).unwrap() {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        for secret in ["t0p5ecret", "correct horse", "pa55w0rd"] {
            assert!(
                !bytes.windows(secret.len()).any(|window| window == secret.as_bytes()),
                "{secret}"
            );
        }
    }
    assert!(kinds(folder.path()).contains(&"exec.started".to_owned()));
}

#[test]
fn starts_without_an_end_are_closed_once_as_lost() {
    let folder = tempfile::tempdir().unwrap();
    let (dead, alive) = (TaskId::new(), TaskId::new());
    let (lost, ended, running) = (ExecId::new(), ExecId::new(), ExecId::new());
    {
        let journal = open(folder.path());
        for task in [dead, alive] {
            journal.append_blocking(task_started(task)).unwrap();
        }
        for exec in [lost, ended] {
            journal.append_blocking(exec_started(dead, exec)).unwrap();
        }
        journal.append_blocking(exec_finished(dead, ended)).unwrap();
        journal.append_blocking(exec_started(alive, running)).unwrap();
    }
    let journal = open(folder.path());
    let open_starts = || journal.reader().unwrap().summary().unwrap().open_starts;
    assert_eq!(open_starts(), 4);
    assert_eq!(journal.close_lost(&|task| task == alive).unwrap(), 2);
    assert_eq!(open_starts(), 2);
    assert_eq!(journal.close_lost(&|task| task == alive).unwrap(), 0);
    let records = journal.reader().unwrap().after(0, 100).unwrap();
    let values: Vec<_> = records
        .iter()
        .map(Stored::value)
        .filter(|value| value["outcome"] == "lost")
        .collect();
    assert_eq!(values.len(), 2);
    assert_eq!(values[0]["exec"], lost.to_string());
    assert_eq!(values[0]["argv"], serde_json::json!(["make", "test"]));
    assert_eq!(values[0]["image_digest"], "sha256:aa");
    assert_eq!(values[0]["plan_digest"], "sha256:bb");
    assert_eq!(values[1]["kind"], "task.finished");
    assert_eq!(values[1]["task"], dead.to_string());
    assert_eq!(values[1]["execs"], 2);
    let outcome: TaskOutcome = serde_json::from_value(values[1]["outcome"].clone()).unwrap();
    assert_eq!(outcome, TaskOutcome::Lost);
    assert_eq!(
        records.iter().filter(|record| record.kind == "exec.finished").count(),
        2
    );
    verify(folder.path()).unwrap();
}

#[test]
fn clocks_that_jump_do_not_disturb_the_order() {
    let folder = tempfile::tempdir().unwrap();
    let mut store = store::Store::open(folder.path(), Sync::Batch, None, store::Place::here(None)).unwrap();
    let at = |seconds| store::Draft::new(&note("x"), jiff::Timestamp::from_second(seconds).unwrap()).unwrap();
    let mut write = |group: &[store::Draft]| {
        let written = store.write(group, store::Sign::WhenDue, store::Patience::ForOthers);
        written.unwrap().unwrap().first
    };
    assert_eq!(write(&[at(2_000_000_000), at(1_000), at(1_700_000_000)]), 1);
    assert_eq!(write(&[at(-5)]), 4);
    assert_eq!(verify(folder.path()).unwrap().records, 4);
}

#[test]
fn a_journal_of_a_newer_program_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    drop(open(folder.path()));
    let db = Connection::open(folder.path().join(FILE)).unwrap();
    db.pragma_update(None, "user_version", store::NEWEST_VERSION + 1)
        .unwrap();
    drop(db);
    let error = Journal::open(folder.path(), JournalOptions::default()).err().unwrap();
    assert!(matches!(error, JournalError::Version { .. }), "{error}");
    assert!(error.to_string().contains("use the program that wrote it"), "{error}");
    assert!(matches!(Reader::open(folder.path()), Err(JournalError::Version { .. })));
}

/// The journal that belljar of version 1 left when it was killed while a command ran.
#[test]
fn an_old_journal_is_read_as_it_is_and_upgraded_by_whoever_writes() {
    const TASK: &str = "01a21f5c-aec9-70fd-9f30-f2aa0456f612";
    const EXEC: &str = "01a21f5c-b00c-7189-8014-94b769e3fcbd";
    let folder = tempfile::tempdir().unwrap();
    let db = Connection::open(folder.path().join(FILE)).unwrap();
    db.pragma_update(None, "journal_mode", "WAL").unwrap();
    db.execute_batch(include_str!("../../../tests/data/journal/v1.sql"))
        .unwrap();
    drop(db);
    let ask = |of| {
        let mut found = Vec::new();
        let search = Search {
            range: 1..=Seq::MAX,
            order: Order::OldestFirst,
            condition: "1",
            values: &[],
        };
        let reader = Reader::open(folder.path()).unwrap();
        reader
            .each_of(of, &search, |record| {
                found.push(record.seq);
                true
            })
            .unwrap();
        (found, reader.summary().unwrap().open_starts)
    };
    let (task, exec) = (TASK.parse().unwrap(), EXEC.parse().unwrap());
    assert_eq!(verify(folder.path()).unwrap().records, 17);
    assert_eq!(ask(Of::Task(task)), ((13..=17).collect(), 2));
    assert_eq!(ask(Of::Exec(exec)), (vec![16, 17], 2));

    let journal = open(folder.path());
    let opened = journal.reader().unwrap().record(18).unwrap().unwrap();
    assert_eq!(opened.value()["open_starts"], 1);
    assert_eq!(ask(Of::Task(task)), ((13..=17).collect(), 2));
    assert_eq!(journal.close_lost(&|_| false).unwrap(), 2);
    assert_eq!(ask(Of::Task(task)), ((13..=17).chain([19, 20]).collect(), 0));
    let lost = journal.reader().unwrap().record(19).unwrap().unwrap().value();
    assert_eq!((&lost["exec"], &lost["outcome"]), (&EXEC.into(), &"lost".into()));
    assert_eq!(lost["reason"], "to be lost");
    assert_eq!(verify(folder.path()).unwrap().records, 20);
}

#[test]
fn a_file_that_is_no_database_is_refused() {
    let folder = tempfile::tempdir().unwrap();
    std::fs::write(folder.path().join(FILE), "x".repeat(4096)).unwrap();
    assert!(Journal::open(folder.path(), JournalOptions::default()).is_err());
}

#[test]
fn a_journal_that_was_removed_takes_nothing_more() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path());
    std::fs::remove_file(folder.path().join(FILE)).unwrap();
    for _ in 0..2 {
        let error = journal.append_blocking(note("a")).unwrap_err();
        assert!(matches!(error, JournalError::Replaced { .. }), "{error}");
    }
}

#[test]
fn every_changed_byte_of_a_record_is_found() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path());
    let (task, exec) = (TaskId::new(), ExecId::new());
    journal.append_blocking(exec_started(task, exec)).unwrap();
    journal.append_blocking(exec_finished(task, exec)).unwrap();
    drop(journal);
    verify(folder.path()).unwrap();
    let db = Connection::open(folder.path().join(FILE)).unwrap();
    let read = |column: &str| -> Vec<u8> {
        let sql = format!("SELECT CAST({column} AS BLOB) FROM records WHERE seq = 2");
        db.query_row(&sql, [], |row| row.get(0)).unwrap()
    };
    for column in ["json", "hash", "prev", "task", "exec", "kind"] {
        let whole = read(column);
        let is_text = matches!(column, "json" | "kind");
        let write = |bytes: &[u8]| {
            let kind = if is_text { "TEXT" } else { "BLOB" };
            let sql = format!("UPDATE records SET {column} = CAST(?1 AS {kind}) WHERE seq = 2");
            db.execute(&sql, [bytes]).unwrap();
        };
        for at in 0..whole.len() {
            let mut changed = whole.clone();
            changed[at] ^= 1;
            write(&changed);
            assert_broken_at(folder.path(), 2, &format!("{column} byte {at}"));
        }
        write(&whole);
        verify(folder.path()).unwrap();
    }
    db.execute("UPDATE records SET time = time + 1 WHERE seq = 2", [])
        .unwrap();
    assert_broken_at(folder.path(), 2, "time");
    db.execute("UPDATE records SET time = time - 1 WHERE seq = 2", [])
        .unwrap();
    verify(folder.path()).unwrap();
    db.execute("DELETE FROM records WHERE seq = 2", []).unwrap();
    let why = assert_broken_at(folder.path(), 2, "removed");
    assert_eq!(why, "it is missing; the next one there is 3");
}

fn assert_broken_at(folder: &Path, seq: Seq, what: &str) -> String {
    match verify(folder) {
        Err(VerifyError::Broken(broken)) => {
            assert_eq!(broken.seq, seq, "{what}: {broken}");
            broken.why
        }
        other => panic!("{what}: {other:?}"),
    }
}

#[test]
fn a_tail_that_was_cut_off_shows_by_what_names_it() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path());
    journal.append_blocking(task_started(TaskId::new())).unwrap();
    drop(journal);
    let db = Connection::open(folder.path().join(FILE)).unwrap();
    db.execute("DELETE FROM records WHERE seq = 2", []).unwrap();
    let why = assert_broken_at(folder.path(), 2, "cut off");
    assert!(why.contains("ends before record 2"), "{why}");
}

/// The journal as a power cut leaves it when the end of its log was not written whole, or not as it should have been.
#[test]
fn a_torn_or_flipped_end_of_the_log_leaves_a_whole_beginning() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path());
    for n in 0..20 {
        journal.append_blocking(note(&n.to_string())).unwrap();
    }
    let log = std::fs::read(folder.path().join(format!("{FILE}-wal"))).unwrap();
    let mut kept = HashSet::new();
    for back in [1, 7, 24, 4096, 4119, 4120, 9000, 20_000, 50_000] {
        let at = log.len() - back;
        let mut flipped = log.clone();
        flipped[at] ^= 1;
        for damaged in [log[..at].to_vec(), flipped] {
            let copy = tempfile::tempdir().unwrap();
            std::fs::copy(folder.path().join(FILE), copy.path().join(FILE)).unwrap();
            std::fs::write(copy.path().join(format!("{FILE}-wal")), damaged).unwrap();
            let again = open(copy.path());
            again.append_blocking(note("after")).unwrap();
            verify(copy.path()).unwrap();
            let records = again.reader().unwrap().after(0, 1000).unwrap();
            let names = records.iter().filter(|record| record.kind == "agent.event");
            let names: Vec<String> = names
                .map(|record| record.value()["name"].as_str().unwrap().to_owned())
                .collect();
            let whole = names.len() - 1;
            let expected = (0..whole).map(|n| n.to_string()).chain(["after".to_owned()]);
            assert_eq!(names, expected.collect::<Vec<_>>());
            kept.insert(whole);
        }
    }
    assert!(kept.len() > 2 && !kept.contains(&20), "{kept:?}");
}

#[test]
fn a_damaged_file_is_broken_where_it_cannot_be_read() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path());
    for n in 0..2000 {
        drop(journal.submit(note(&format!("{n} {}", "x".repeat(200)))));
    }
    drop(journal);
    let path = folder.path().join(FILE);
    let db = Connection::open(&path).unwrap();
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(db);
    let mut bytes = std::fs::read(&path).unwrap();
    let middle = bytes.len() / 2;
    bytes[middle..middle + 20_000].fill(0xa5);
    std::fs::write(&path, bytes).unwrap();
    assert!(matches!(verify(folder.path()), Err(VerifyError::Broken(_))));
}

fn keyed(folder: &Path) -> (JournalOptions, crate::audit::key::PublicKey) {
    let key = SigningKey::load_or_make(&folder.join("audit.key")).unwrap();
    let public_key = key.public();
    let options = JournalOptions {
        key: Some(key),
        ..JournalOptions::default()
    };
    (options, public_key)
}

#[test]
fn checkpoints_are_signed_on_the_way_on_request_and_at_the_end() {
    let folder = tempfile::tempdir().unwrap();
    let (options, public_key) = keyed(folder.path());
    let journal = Journal::open(folder.path(), options).unwrap();
    for _ in 0..3 {
        let receipts: Vec<_> = (0..1024).map(|n| journal.submit(note(&n.to_string()))).collect();
        for receipt in receipts {
            receipt.wait().unwrap();
        }
    }
    let seq = journal.checkpoint().wait().unwrap();
    assert_eq!(journal.checkpoint().wait().unwrap(), seq);
    let asked = journal.reader().unwrap().record(seq).unwrap().unwrap();
    assert_eq!(asked.kind, "journal.checkpoint");
    assert_eq!(asked.value()["through_seq"], seq - 1);
    journal.append_blocking(note("last")).unwrap();
    drop(journal);
    let known = Known {
        public_key: Some(public_key),
        head: None,
    };
    let verified = crate::audit::verify(folder.path(), &known).unwrap();
    assert!((4..=5).contains(&verified.checkpoints), "{verified:?}");
    assert_eq!(verified.unsigned, 0);
    assert!(matches!(
        open(folder.path()).checkpoint().wait(),
        Err(JournalError::NoKey)
    ));
}

#[test]
fn a_journal_that_was_written_anew_or_cut_off_shows_by_what_is_known() {
    let folder = tempfile::tempdir().unwrap();
    let (options, public_key) = keyed(folder.path());
    let journal = Journal::open(folder.path(), options).unwrap();
    journal.append_blocking(note("a")).unwrap();
    drop(journal);
    let head = verify(folder.path()).unwrap().head;
    let with = |public_key, head| crate::audit::verify(folder.path(), &Known { public_key, head });
    with(Some(public_key), Some((3, head.clone()))).unwrap();
    let why = |result: Result<Verified, VerifyError>| match result {
        Err(VerifyError::Broken(broken)) => (broken.seq, broken.why),
        other => panic!("{other:?}"),
    };
    // The end is cut off, together with all that names it.
    let db = Connection::open(folder.path().join(FILE)).unwrap();
    db.execute("DELETE FROM records WHERE seq = 3", []).unwrap();
    assert!(verify(folder.path()).is_ok());
    let (seq, text) = why(with(None, Some((3, head.clone()))));
    assert!(seq == 3 && text.contains("ends before record 3"), "{text}");
    // Written anew by somebody without the key.
    drop(open(folder.path()));
    let (seq, text) = why(with(None, Some((3, head))));
    assert!(seq == 3 && text.contains("written anew"), "{text}");
    let (_, text) = why(with(Some(public_key), None));
    assert!(text.contains("no record of this journal is signed"), "{text}");
    // Or with a key of his own.
    let other = tempfile::tempdir().unwrap();
    drop(Journal::open(folder.path(), keyed(other.path()).0).unwrap());
    let (_, text) = why(with(Some(public_key), None));
    assert!(text.contains("by another key"), "{text}");
    // Or with the right key and a signature that is not its own.
    let db = Connection::open(folder.path().join(FILE)).unwrap();
    forge_last_checkpoint(&db, public_key);
    let (_, text) = why(with(Some(public_key), None));
    assert!(text.contains("did not sign"), "{text}");
}

/// Puts another public key into the last record, and the hash that belongs to what it then says.
fn forge_last_checkpoint(db: &Connection, public_key: crate::audit::key::PublicKey) {
    let (seq, prev, json): (i64, [u8; 32], String) = db
        .query_row(
            "SELECT seq, prev, json FROM records ORDER BY seq DESC LIMIT 1",
            [],
            |row| Ok((row.get(0)?, row.get(1)?, row.get(2)?)),
        )
        .unwrap();
    let at = json.find("ed25519:").unwrap();
    let forged = format!(
        "{}{public_key}{}",
        &json[..at],
        &json[at + public_key.to_string().len()..]
    );
    let hash = chain(&prev, forged.as_bytes());
    db.execute(
        "UPDATE records SET json = ?1, hash = ?2 WHERE seq = ?3",
        rusqlite::params![forged, hash, seq],
    )
    .unwrap();
}

#[test]
fn a_caller_does_not_wait_for_another_process_in_its_own_thread() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path());
    let other = Connection::open(folder.path().join(FILE)).unwrap();
    other.execute_batch("BEGIN IMMEDIATE").unwrap();
    // Comes back at once, though nothing can be written now.
    let mut receipts = vec![journal.submit(note("0")), journal.submit(note("1"))];
    let waker = std::task::Waker::noop();
    let poll = |receipt: &mut Receipt| Pin::new(receipt).poll(&mut Context::from_waker(waker));
    assert!(receipts.iter_mut().all(|receipt| poll(receipt).is_pending()));
    receipts.push(journal.submit(note("2")));
    other.execute_batch("ROLLBACK").unwrap();
    let seqs: Vec<Seq> = receipts.into_iter().map(|receipt| receipt.wait().unwrap()).collect();
    assert_eq!(seqs, [2, 3, 4]);
    let records = journal.reader().unwrap().after(1, 10).unwrap();
    let names: Vec<_> = records.iter().map(|record| record.value()["name"].clone()).collect();
    assert_eq!(names, ["0", "1", "2"]);
}

#[test]
fn old_records_are_archived_and_the_chain_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path());
    for n in 0..99 {
        drop(journal.submit(note(&n.to_string())));
    }
    let open_start = journal.append_blocking(task_started(TaskId::new())).unwrap();
    let before = journal.reader().unwrap().after(0, 1000).unwrap();
    let everything = Retention {
        age: Some(std::time::Duration::ZERO),
        collectors: [Signal::Logs, Signal::Traces]
            .map(|signal| ("http://collector:4317".to_owned(), signal))
            .into(),
        ..Retention::default()
    };
    // The collector has taken nothing, so nothing goes.
    assert_eq!(journal.retain(&everything).unwrap(), 0);
    let db = Connection::open(folder.path().join(FILE)).unwrap();
    let delivered = |signal: &str, seq: u64| {
        let sql = "INSERT INTO cursors (endpoint, signal, seq, state) VALUES ('http://collector:4317', ?1, ?2, '')";
        db.execute(sql, rusqlite::params![signal, seq as i64]).unwrap();
    };
    // Nor when it has taken the logs, and no span yet.
    delivered("logs", 60);
    assert_eq!(journal.retain(&everything).unwrap(), 0);
    delivered("traces", 40);
    assert_eq!(journal.retain(&everything).unwrap(), 40);
    let verified = verify(folder.path()).unwrap();
    assert_eq!((verified.first_seq, verified.records), (41, 62));
    // Without collectors all goes that belongs to nothing open.
    let rest = Retention {
        collectors: vec![],
        ..everything
    };
    assert_eq!(journal.retain(&rest).unwrap(), open_start - 41);
    assert_eq!(verify(folder.path()).unwrap().first_seq, open_start);
    journal.append_blocking(note("on and on")).unwrap();
    verify(folder.path()).unwrap();
    let mut lines = String::new();
    for first in [1, 41] {
        let file = std::fs::File::open(folder.path().join(format!("journal-{first:020}.jsonl.zst"))).unwrap();
        let mut reader = zstd::Decoder::new(file).unwrap();
        std::io::Read::read_to_string(&mut reader, &mut lines).unwrap();
    }
    let expected: String = before[..open_start as usize - 1]
        .iter()
        .map(|record| format!("{}\n", record.json))
        .collect();
    assert_eq!(lines, expected);
}

#[test]
fn an_archive_that_is_too_old_goes_and_one_that_goes_by_itself_is_missed() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path());
    let archive = |first: u64| folder.path().join(format!("journal-{first:020}.jsonl.zst"));
    let rotate = |keep| {
        journal.append_blocking(note("more")).unwrap();
        let retention = Retention {
            age: Some(std::time::Duration::ZERO),
            keep,
            ..Retention::default()
        };
        journal.retain(&retention).unwrap()
    };
    assert_eq!((rotate(None), rotate(None)), (1, 2));
    assert!(archive(1).exists() && archive(2).exists());
    assert_eq!(verify(folder.path()).unwrap().archives, 1);

    // The record that speaks of the first archive is in the second.
    let content = std::fs::read(archive(2)).unwrap();
    std::fs::write(archive(2), &content[1..]).unwrap();
    let why = assert_broken_at(folder.path(), 5, "an archive was changed");
    assert!(why.contains("was changed"), "{why}");
    std::fs::remove_file(archive(2)).unwrap();
    let why = assert_broken_at(folder.path(), 5, "an archive was removed");
    assert!(why.contains("cannot be read"), "{why}");
    std::fs::write(archive(2), content).unwrap();

    rotate(Some(std::time::Duration::ZERO));
    assert!(!archive(1).exists() && !archive(2).exists());
    assert_eq!(
        kinds(folder.path())
            .iter()
            .filter(|kind| *kind == "journal.archive_removed")
            .count(),
        3
    );
    verify(folder.path()).unwrap();
}

#[test]
fn records_that_nobody_says_were_taken_out_are_missed() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path());
    for n in 0..9 {
        journal.append_blocking(note(&n.to_string())).unwrap();
    }
    let db = Connection::open(folder.path().join(FILE)).unwrap();
    db.execute("DELETE FROM records WHERE seq <= 5", []).unwrap();
    let why = assert_broken_at(folder.path(), 5, "first ones removed");
    assert!(why.contains("no record says that it was taken out"), "{why}");
}

#[test]
fn a_journal_that_is_too_large_becomes_smaller() {
    let folder = tempfile::tempdir().unwrap();
    let journal = open(folder.path());
    for n in 0..2000 {
        drop(journal.submit(note(&format!("{n} {}", "x".repeat(500)))));
    }
    journal.append_blocking(note("last")).unwrap();
    let retention = Retention {
        bytes: Some(500_000),
        ..Retention::default()
    };
    let gone = journal.retain(&retention).unwrap();
    assert!((1000..1900).contains(&gone), "{gone}");
    assert_eq!(journal.retain(&retention).unwrap(), 0);
    verify(folder.path()).unwrap();
}

// ---- Other processes: this test program runs itself anew, as a child that does one thing. ----

/// Tells a child what to do; without it the children's "tests" do nothing.
const ROLE: &str = "BELLJAR_TEST_JOURNAL_ROLE";
const FOLDER: &str = "BELLJAR_TEST_JOURNAL_FOLDER";

fn child(role: &str, folder: &Path) -> Command {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args([
            "--exact",
            "audit::journal::tests::child_process",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(ROLE, role)
        .env(FOLDER, folder)
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

#[test]
fn child_process() {
    let Ok(role) = std::env::var(ROLE) else { return };
    let folder = PathBuf::from(std::env::var(FOLDER).unwrap());
    match role.as_str() {
        // Says each number after its record was committed, until it is killed.
        "endless" => {
            use std::io::Write;
            let journal = open(&folder);
            let mut out = std::io::stdout();
            for n in 0u64.. {
                let seq = journal.append_blocking(note(&n.to_string())).unwrap();
                writeln!(out, "committed {seq} {n}").unwrap();
                out.flush().unwrap();
            }
        }
        "thousand" => {
            let journal = open(&folder);
            for n in 0..1000 {
                journal
                    .append_blocking(note(&format!("{} {n}", std::process::id())))
                    .unwrap();
            }
        }
        // Fills the file system, and says whether the error stayed.
        "until_full" => {
            let journal = open(&folder);
            let first = (0..1_000_000)
                .map(|n| journal.append_blocking(note(&format!("{n} {}", "x".repeat(4000)))))
                .find_map(Result::err)
                .unwrap();
            std::fs::remove_file(folder.join("ballast")).unwrap();
            let second = journal.append_blocking(note("small")).unwrap_err();
            assert_eq!(first.to_string(), second.to_string());
            drop(journal);
            open(&folder).append_blocking(note("after")).unwrap();
            println!("stayed: {}", std::error::Error::source(&first).unwrap());
        }
        "read_only" => {
            let error = Journal::open(&folder, JournalOptions::default()).err().unwrap();
            println!("refused: {error}");
        }
        other => panic!("no role {other}"),
    }
}

#[test]
fn what_was_committed_before_a_kill_is_there() {
    use std::io::{BufRead, BufReader};
    let folder = tempfile::tempdir().unwrap();
    let mut committed = Vec::new();
    for round in 0..5 {
        let mut child = child("endless", folder.path()).spawn().unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let mut seen = 0;
        while let Some(Ok(line)) = lines.next() {
            if let Some(numbers) = line.strip_prefix("committed ") {
                let (seq, n) = numbers.split_once(' ').unwrap();
                committed.push((seq.parse::<u64>().unwrap(), n.to_owned()));
                seen += 1;
            }
            if seen == 50 + round * 37 {
                child.kill().unwrap();
            }
        }
        child.wait().unwrap();
        let reader = Reader::open(folder.path()).unwrap();
        for (seq, n) in &committed {
            assert_eq!(reader.record(*seq).unwrap().unwrap().value()["name"], *n);
        }
        verify(folder.path()).unwrap();
    }
}

#[test]
fn several_processes_write_one_chain() {
    let folder = tempfile::tempdir().unwrap();
    let children: Vec<_> = (0..3)
        .map(|_| child("thousand", folder.path()).spawn().unwrap())
        .collect();
    for child in children {
        let output = child.wait_with_output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
    }
    assert_eq!(verify(folder.path()).unwrap().records, 3003);
    let names: HashSet<String> = Reader::open(folder.path())
        .unwrap()
        .after(0, 10_000)
        .unwrap()
        .iter()
        .filter(|record| record.kind == "agent.event")
        .map(|record| record.value()["name"].as_str().unwrap().to_owned())
        .collect();
    assert_eq!(names.len(), 3000);
}

/// Runs a child on a small file system of its own, which is mounted with `options`; the mount is gone with the child.
fn in_small_file_system(role: &str, prepare: &str) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "this test needs root");
        eprintln!("skipped: mounting a file system needs root");
        return None;
    }
    let folder = tempfile::tempdir().unwrap();
    let mut inner = child(role, folder.path());
    let script = format!("mount -t tmpfs -o size=1m none \"$0\" && {prepare} && exec \"$@\"");
    let mut command = Command::new("unshare");
    command
        .args(["-m", "sh", "-ec", &script])
        .arg(folder.path())
        .arg(inner.get_program());
    command
        .args(inner.get_args())
        .env(ROLE, role)
        .env(FOLDER, folder.path());
    inner.env_clear();
    let output = command.output().unwrap();
    let text = String::from_utf8_lossy(&output.stdout).into_owned();
    assert!(
        output.status.success(),
        "{text}{}",
        String::from_utf8_lossy(&output.stderr)
    );
    Some(text)
}

#[test]
fn a_full_disk_fails_every_append_until_the_journal_is_opened_anew() {
    let prepare = "dd if=/dev/zero of=\"$0/ballast\" bs=1k count=300 2>/dev/null";
    if let Some(text) = in_small_file_system("until_full", prepare) {
        assert!(text.contains("stayed: database or disk is full"), "{text}");
    }
}

#[test]
fn a_read_only_file_system_is_refused_at_the_opening() {
    if let Some(text) = in_small_file_system("read_only", "mount -o remount,ro \"$0\"") {
        assert!(text.contains("refused: "), "{text}");
    }
}
