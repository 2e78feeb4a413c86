use std::cell::Cell;
use std::path::Path;

use super::*;
use crate::audit::journal::index::fill;
use crate::audit::journal::{FILE, Journal, JournalOptions, Retention};
use crate::audit::record::{Entry, Event};
use crate::id::{ExecId, TaskId};

struct Fixture {
    folder: tempfile::TempDir,
    journal: Journal,
    ids: Vec<(TaskId, ExecId)>,
}

impl Fixture {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        Self {
            journal: Journal::open(folder.path(), JournalOptions::default()).unwrap(),
            folder,
            ids: (0..5).map(|_| (TaskId::new(), ExecId::new())).collect(),
        }
    }

    fn path(&self) -> &Path {
        self.folder.path()
    }

    /// Records of all tasks and execs in turn, and some of neither.
    fn write(&self, count: usize) {
        for n in 0..count {
            let (task, exec) = self.ids[n % self.ids.len()];
            let entry = Entry {
                task: (n % 7 > 0).then_some(task),
                exec: (n % 7 > 3).then_some(exec),
                event: Event::AgentEvent {
                    name: (n % 3).to_string(),
                    call_id: None,
                    body: serde_json::Value::Null,
                },
            };
            drop(self.journal.submit(entry));
        }
        self.journal
            .append_blocking(Entry {
                task: None,
                exec: None,
                event: Event::AgentEvent {
                    name: "last".to_owned(),
                    call_id: None,
                    body: serde_json::Value::Null,
                },
            })
            .unwrap();
    }

    /// No thread of the journal's own fills the index while its pieces are counted.
    fn take_in(&self, pieces: usize) {
        let left = Cell::new(pieces + 1);
        fill(self.path(), || {
            left.set(left.get() - 1);
            left.get() == 0
        })
        .unwrap();
    }

    /// Every question gives what going through the whole journal gives.
    fn assert_answers(&self, reader: &Reader) {
        let all = reader.after(0, 1_000_000).unwrap();
        for (task, exec) in &self.ids {
            for of in [
                Of::Task(Uuid::from_bytes(*task.as_bytes())),
                Of::Exec(Uuid::from_bytes(*exec.as_bytes())),
                Of::Apart(Uuid::from_bytes(*task.as_bytes())),
            ] {
                for range in [1..=Seq::MAX, 400..=1200] {
                    let is_meant = |record: &&Stored| {
                        let is_of = match of {
                            Of::Task(id) => record.task == Some(id),
                            Of::Exec(id) => record.exec == Some(id),
                            Of::Apart(id) => record.task == Some(id) && record.exec.is_none(),
                        };
                        is_of && range.contains(&record.seq) && record.value()["name"] == "1"
                    };
                    let mut expected: Vec<Seq> = all.iter().filter(is_meant).map(|record| record.seq).collect();
                    for order in [Order::OldestFirst, Order::NewestFirst] {
                        let mut found = Vec::new();
                        let search = Search {
                            range: range.clone(),
                            order,
                            condition: "json_extract(json, '$.name') = ?1",
                            values: &[&"1"],
                        };
                        let take = |record: Stored| {
                            found.push(record.seq);
                            true
                        };
                        reader.each_of(of, &search, take).unwrap();
                        assert_eq!(found, expected, "{of:?} {order:?} {range:?}");
                        expected.reverse();
                    }
                }
            }
        }
    }

    fn assert_all_answers(&self) {
        self.assert_answers(&Reader::open(self.path()).unwrap());
    }

    fn index(&self) -> Connection {
        Connection::open(self.path().join(INDEX)).unwrap()
    }

    fn through(&self) -> Option<i64> {
        let db = self.path().join(INDEX).exists().then(|| self.index())?;
        db.query_row("SELECT through FROM indexed", [], |row| row.get(0)).ok()
    }

    fn remove_index(&self) {
        for name in [INDEX.to_owned(), format!("{INDEX}-wal"), format!("{INDEX}-shm")] {
            let _ = std::fs::remove_file(self.path().join(name));
        }
    }
}

#[test]
fn answers_are_the_same_whatever_part_the_index_has() {
    let fixture = Fixture::new();
    // Fewer than make the journal's own thread begin.
    fixture.write(500);
    let kept = Reader::open(fixture.path()).unwrap();
    let both = || {
        fixture.assert_all_answers();
        fixture.assert_answers(&kept);
    };
    both();
    fixture.take_in(1);
    assert_eq!(fixture.through(), Some(502));
    both();
    fixture.write(2000);
    both();
    fixture.take_in(usize::MAX - 1);
    assert_eq!(fixture.through(), Some(2503));
    both();
    fixture.write(100);
    both();
}

#[test]
fn answers_are_the_same_while_the_index_is_filled() {
    let fixture = Fixture::new();
    fixture.write(3000);
    std::thread::scope(|scope| {
        let filling = scope.spawn(|| {
            for _ in 0..4 {
                fixture.take_in(1);
            }
        });
        while !filling.is_finished() {
            fixture.assert_all_answers();
        }
    });
    fixture.assert_all_answers();
}

#[test]
fn an_index_that_was_deleted_is_made_anew_by_whoever_writes() {
    let fixture = Fixture::new();
    for _ in 0..2 {
        fixture.write(600);
        while fixture.through().is_none() {
            std::thread::yield_now();
        }
        fixture.assert_all_answers();
        fixture.remove_index();
        fixture.assert_all_answers();
    }
}

#[test]
fn an_index_that_does_not_belong_there_changes_no_answer() {
    let (fixture, other) = (Fixture::new(), Fixture::new());
    for fixture in [&fixture, &other] {
        fixture.write(400);
        fixture.take_in(9);
    }
    let replace = |name: &str| std::fs::copy(other.path().join(name), fixture.path().join(name)).unwrap();

    // Rows that somebody put in.
    let db = fixture.index();
    let sql = "INSERT INTO task (id, number) SELECT id, number + 1 FROM task WHERE true ON CONFLICT DO NOTHING";
    db.execute(sql, []).unwrap();
    db.execute(
        "INSERT INTO exec (id, number) SELECT id, 7 FROM task WHERE true ON CONFLICT DO NOTHING",
        [],
    )
    .unwrap();
    drop(db);
    fixture.assert_all_answers();

    // Another journal's.
    fixture.remove_index();
    replace(INDEX);
    replace(&format!("{INDEX}-wal"));
    fixture.assert_all_answers();
    fixture.take_in(9);
    fixture.assert_all_answers();

    // This one's, of records that a power cut took and that are others now.
    let db = Connection::open(fixture.path().join(FILE)).unwrap();
    db.execute("DELETE FROM records WHERE seq > 300", []).unwrap();
    fixture.write(150);
    fixture.assert_all_answers();

    // None, and a damaged one.
    fixture.remove_index();
    std::fs::write(fixture.path().join(INDEX), "x".repeat(9000)).unwrap();
    fixture.assert_all_answers();
    fixture.remove_index();
    fixture.take_in(9);
    let db = fixture.index();
    db.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(())).unwrap();
    drop(db);
    let mut bytes = std::fs::read(fixture.path().join(INDEX)).unwrap();
    let last = bytes.len() - 4096;
    assert!(last > 4 * 4096, "there is a page to damage that is no schema");
    bytes[2 * 4096..].fill(0xa5);
    std::fs::write(fixture.path().join(INDEX), bytes).unwrap();
    fixture.assert_all_answers();
    crate::audit::verify(fixture.path(), &crate::audit::Known::default()).unwrap();
}

#[test]
fn what_is_taken_out_of_the_journal_leaves_the_index() {
    let fixture = Fixture::new();
    fixture.write(300);
    fixture.take_in(9);
    let retention = Retention {
        age: Some(std::time::Duration::ZERO),
        ..Retention::default()
    };
    assert!(fixture.journal.retain(&retention).unwrap() > 0);
    let count = |table| {
        let sql = format!("SELECT count(*) FROM {table}");
        let db = fixture.index();
        db.query_row(&sql, [], |row| row.get::<_, i64>(0)).unwrap()
    };
    assert_eq!((count("task"), count("exec"), count("apart")), (0, 0, 0));
    fixture.write(10);
    fixture.assert_all_answers();
    fixture.take_in(9);
    fixture.assert_all_answers();
}

#[test]
fn an_id_is_found_by_its_end_in_the_index_and_behind_it() {
    let fixture = Fixture::new();
    fixture.write(100);
    let (task, exec) = fixture.ids[3];
    let digits = |id: String| id.replace('-', "")[20..].to_ascii_uppercase();
    let find = || {
        let reader = Reader::open(fixture.path()).unwrap();
        let tasks = reader.ids_ending_in("task", &digits(task.to_string())).unwrap();
        let execs = reader.ids_ending_in("exec", &digits(exec.to_string())).unwrap();
        let none = reader.ids_ending_in("exec", &digits(task.to_string())).unwrap();
        assert_eq!(tasks, [Uuid::from_bytes(*task.as_bytes())]);
        assert_eq!(execs, [Uuid::from_bytes(*exec.as_bytes())]);
        assert!(none.is_empty());
        assert_eq!(reader.ids_ending_in("task", "").unwrap().len(), 2);
    };
    find();
    fixture.take_in(9);
    find();
    fixture.write(20);
    find();
}
