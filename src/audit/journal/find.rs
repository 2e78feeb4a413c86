//! Finding the records of a task or an exec: in the index as far as that goes, behind it in tables of the reader's own, which it
//! fills from the journal. With no index at all the answers are the same and the first of them takes longer.

use std::cell::{Cell, OnceCell};
use std::ops::RangeInclusive;

use rusqlite::{Connection, OptionalExtension, ToSql};
use uuid::Uuid;

use super::index::{self, INDEX, TABLES};
use super::read::{COLUMNS, Reader, Stored, stored};
use super::{JournalError, Seq};

/// Whose records are asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Of {
    Task(Uuid),
    Exec(Uuid),
    /// A task's records that are of none of its execs.
    Apart(Uuid),
}

/// From which end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Order {
    OldestFirst,
    NewestFirst,
}

/// Which of them: with a number in the range, and for which the condition, SQL with these values, holds.
pub(crate) struct Search<'a> {
    pub range: RangeInclusive<Seq>,
    pub order: Order,
    pub condition: &'a str,
    pub values: &'a [&'a dyn ToSql],
}

/// What a reader knows of the index. A tail of its own begins behind `indexed` and goes to `through`.
#[derive(Default)]
pub(super) struct Finding {
    index: Cell<Index>,
    indexed: Cell<i64>,
    through: Cell<i64>,
    /// Asked instead once the index turned out to be damaged.
    without_index: OnceCell<Box<Reader>>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
enum Index {
    /// It was not looked for, or it was not there when the tail went to this record.
    #[default]
    Unknown,
    AbsentAt(i64),
    Attached,
    /// It is not asked: it cannot be read.
    Damaged,
}

/// An absent index is looked for again when the tail has become longer by as much.
const LOOK_AGAIN: i64 = 4096;

/// How many numbers are read at once, first and at most.
const FIRST_CHUNK: i64 = 32;
const CHUNK: i64 = 4096;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    Index,
    Tail,
}

impl Of {
    fn column(self) -> &'static str {
        match self {
            Of::Task(_) | Of::Apart(_) => "task",
            Of::Exec(_) => "exec",
        }
    }

    fn table(self) -> &'static str {
        match self {
            Of::Task(_) => "task",
            Of::Exec(_) => "exec",
            Of::Apart(_) => "apart",
        }
    }

    /// What is seen to again in each record that the index names.
    fn condition(self) -> &'static str {
        match self {
            Of::Task(_) | Of::Exec(_) => "true",
            Of::Apart(_) => "exec IS NULL",
        }
    }

    fn id(&self) -> &[u8] {
        match self {
            Of::Task(id) | Of::Exec(id) | Of::Apart(id) => id.as_bytes(),
        }
    }
}

impl Place {
    fn table(self, name: &str) -> String {
        match self {
            Place::Index => format!("found.{name}"),
            Place::Tail => format!("temp.tail_{name}"),
        }
    }
}

impl Reader {
    /// Hands over the records that are searched for, in their order, until `take` says false. All are of one moment.
    pub(crate) fn each_of(
        &self,
        of: Of,
        search: &Search<'_>,
        mut take: impl FnMut(Stored) -> bool,
    ) -> Result<(), JournalError> {
        let range = signed(search.range.start())..=signed(search.range.end());
        if let Some(reader) = self.finding().without_index.get() {
            return reader.each_of(of, search, take);
        }
        let left = self
            .find(of, search, range, &mut take)
            .map_err(|source| self.error(source))?;
        match left {
            None => Ok(()),
            Some(range) => {
                let reader = self.without_index()?;
                let found = reader.find(of, search, range, &mut take);
                found.map(drop).map_err(|source| self.error(source))
            }
        }
    }

    /// The ids of tasks or execs (`column`) that have records and whose text ends in these digits, at most two.
    pub(crate) fn ids_ending_in(&self, column: &'static str, digits: &str) -> Result<Vec<Uuid>, JournalError> {
        if let Some(reader) = self.finding().without_index.get() {
            return reader.ids_ending_in(column, digits);
        }
        match self.find_ids(column, digits).map_err(|source| self.error(source))? {
            Some(found) => Ok(found),
            None => self.without_index()?.ids_ending_in(column, digits),
        }
    }

    /// A connection on the journal alone: after one error of the index SQLite has more of them for what has nothing to do with it.
    fn without_index(&self) -> Result<&Reader, JournalError> {
        let finding = self.finding();
        if finding.without_index.get().is_none() {
            let reader = self.open_again()?;
            reader.finding().index.set(Index::Damaged);
            reader.make_tail().map_err(|source| self.error(source))?;
            let _ = finding.without_index.set(Box::new(reader));
        }
        Ok(finding.without_index.get().expect("it was set just now"))
    }

    /// Gives what is left of the range when the index turned out to be damaged.
    fn find(
        &self,
        of: Of,
        search: &Search<'_>,
        range: RangeInclusive<i64>,
        take: &mut dyn FnMut(Stored) -> bool,
    ) -> rusqlite::Result<Option<RangeInclusive<i64>>> {
        self.look_for_index()?;
        let _moment = Moment::hold(self.db())?;
        let Some(indexed) = self.catch_up()? else {
            return Ok(Some(range));
        };
        let mut statement = {
            let (column, values) = (of.column(), search.values.len());
            self.db().prepare_cached(&format!(
                "SELECT {COLUMNS} FROM records WHERE seq = ?{} AND {column} = ?{} AND {} AND ({})",
                values + 1,
                values + 2,
                of.condition(),
                search.condition
            ))?
        };
        for (value, at) in search.values.iter().zip(1..) {
            statement.raw_bind_parameter(at, value)?;
        }
        let seq_at = search.values.len() + 1;
        statement.raw_bind_parameter(seq_at + 1, of.id())?;

        let (first, last) = range.into_inner();
        let mut parts = [
            (Place::Index, first..=last.min(indexed)),
            (Place::Tail, first.max(indexed + 1)..=last),
        ];
        if search.order == Order::NewestFirst {
            parts.reverse();
        }
        for (place, mut range) in parts {
            let mut limit = FIRST_CHUNK;
            loop {
                let numbers = match self.numbers(place, of, &range, search.order, limit) {
                    Ok(numbers) => numbers,
                    Err(_) if place == Place::Index => {
                        return Ok(Some(match search.order {
                            Order::OldestFirst => *range.start()..=last,
                            Order::NewestFirst => range,
                        }));
                    }
                    Err(error) => return Err(error),
                };
                for number in &numbers {
                    range = match search.order {
                        Order::OldestFirst => number + 1..=*range.end(),
                        Order::NewestFirst => *range.start()..=number - 1,
                    };
                    statement.raw_bind_parameter(seq_at, number)?;
                    let record = statement.raw_query().next()?.map(stored).transpose()?;
                    if record.is_some_and(|record| !take(record)) {
                        return Ok(None);
                    }
                }
                if (numbers.len() as i64) < limit {
                    break;
                }
                limit = CHUNK.min(limit * 8);
            }
        }
        Ok(None)
    }

    /// The next numbers of records that there should be.
    fn numbers(
        &self,
        place: Place,
        of: Of,
        range: &RangeInclusive<i64>,
        order: Order,
        limit: i64,
    ) -> rusqlite::Result<Vec<i64>> {
        if range.is_empty() {
            return Ok(Vec::new());
        }
        let table = place.table(of.table());
        let direction = match order {
            Order::OldestFirst => "ASC",
            Order::NewestFirst => "DESC",
        };
        self.db()
            .prepare_cached(&format!(
                "SELECT number FROM {table} WHERE id = ?1 AND number BETWEEN ?2 AND ?3 ORDER BY number {direction} LIMIT ?4"
            ))?
            .query_map((of.id(), range.start(), range.end(), limit), |row| row.get(0))?
            .collect()
    }

    /// None when the index turned out to be damaged.
    fn find_ids(&self, column: &'static str, digits: &str) -> rusqlite::Result<Option<Vec<Uuid>>> {
        self.look_for_index()?;
        let _moment = Moment::hold(self.db())?;
        let Some(indexed) = self.catch_up()? else {
            return Ok(None);
        };
        let mut found: Vec<Uuid> = Vec::new();
        if indexed > 0 && self.ids_in(Place::Index, column, digits, &mut found).is_err() {
            return Ok(None);
        }
        if found.len() < 2 {
            self.ids_in(Place::Tail, column, digits, &mut found)?;
        }
        Ok(Some(found))
    }

    fn ids_in(&self, place: Place, column: &str, digits: &str, found: &mut Vec<Uuid>) -> rusqlite::Result<()> {
        let table = place.table(column);
        let sql = format!("SELECT DISTINCT id FROM {table} WHERE hex(id) LIKE ?1 ORDER BY id");
        let mut statement = self.db().prepare_cached(&sql)?;
        let mut rows = statement.query([format!("%{digits}")])?;
        let sql = format!(
            "SELECT 1 FROM {table} JOIN records ON records.seq = number AND records.{column} = id WHERE id = ?1 LIMIT 1"
        );
        let mut record = self.db().prepare_cached(&sql)?;
        while let Some(row) = rows.next()? {
            let id: [u8; 16] = row.get(0)?;
            if !found.contains(&Uuid::from_bytes(id)) && record.exists([id.as_slice()])? {
                found.push(Uuid::from_bytes(id));
            }
            if found.len() > 1 {
                break;
            }
        }
        Ok(())
    }

    /// Not within a transaction.
    fn look_for_index(&self) -> rusqlite::Result<()> {
        let through = self.finding().through.get();
        match self.finding().index.get() {
            Index::Unknown => self.make_tail()?,
            Index::AbsentAt(at) if through - at >= LOOK_AGAIN && self.db().is_autocommit() => {}
            Index::AbsentAt(_) | Index::Attached | Index::Damaged => return Ok(()),
        }
        let index = match self.attach() {
            Ok(true) => Index::Attached,
            Ok(false) | Err(_) => Index::AbsentAt(through),
        };
        self.finding().index.set(index);
        Ok(())
    }

    fn make_tail(&self) -> rusqlite::Result<()> {
        for (table, _, _) in TABLES {
            self.db().execute_batch(&format!(
                "CREATE TEMP TABLE tail_{table} (id BLOB, number INTEGER, PRIMARY KEY (id, number)) WITHOUT ROWID"
            ))?;
        }
        Ok(())
    }

    /// Whether there is an index that this program can read.
    fn attach(&self) -> rusqlite::Result<bool> {
        let path = self.path().with_file_name(INDEX);
        let Some(path) = path.to_str().filter(|_| path.exists()) else {
            return Ok(false);
        };
        // Read-only as the journal itself is here.
        self.db().execute("ATTACH ?1 AS found", [path])?;
        let version = self
            .db()
            .pragma_query_value(Some("found"), "user_version", |row| row.get::<_, i64>(0));
        if version == Ok(index::VERSION) && self.db().prepare(index::THROUGH).is_ok() {
            return Ok(true);
        }
        self.db().execute("DETACH found", [])?;
        Ok(false)
    }

    /// Brings the reader's own tables up to the journal's end; gives the last record that the index is to be asked for, and nothing
    /// when the index is damaged.
    fn catch_up(&self) -> rusqlite::Result<Option<i64>> {
        let finding = self.finding();
        let indexed = match finding.index.get() {
            Index::Attached => {
                let through = self
                    .db()
                    .prepare_cached(index::THROUGH)
                    .and_then(|mut statement| statement.query_row([], |row| row.get::<_, i64>(0)).optional());
                match through {
                    Ok(through) => through.unwrap_or(0),
                    Err(_) => return Ok(None),
                }
            }
            Index::Unknown | Index::AbsentAt(_) | Index::Damaged => 0,
        };
        if indexed < finding.indexed.get() {
            // It was made anew.
            self.cut_tail(i64::MAX)?;
            finding.through.set(indexed);
        } else if indexed > finding.indexed.get() {
            self.cut_tail(indexed)?;
            finding.through.set(finding.through.get().max(indexed));
        }
        finding.indexed.set(indexed);
        let newest: i64 = self
            .db()
            .prepare_cached("SELECT coalesce(max(seq), 0) FROM records")?
            .query_row([], |row| row.get(0))?;
        if newest > finding.through.get() {
            for (table, column, condition) in TABLES {
                self.db()
                    .prepare_cached(&format!(
                        "INSERT OR IGNORE INTO temp.tail_{table} (id, number) \
                         SELECT {column}, seq FROM records WHERE seq > ?1 AND {condition}"
                    ))?
                    .execute([finding.through.get()])?;
            }
            finding.through.set(newest);
        }
        Ok(Some(indexed))
    }

    fn cut_tail(&self, through: i64) -> rusqlite::Result<()> {
        for (table, _, _) in TABLES {
            self.db()
                .prepare_cached(&format!("DELETE FROM temp.tail_{table} WHERE number <= ?1"))?
                .execute([through])?;
        }
        Ok(())
    }
}

fn signed(seq: &Seq) -> i64 {
    i64::try_from(*seq).unwrap_or(i64::MAX)
}

/// One moment of both databases: what is written meanwhile is not seen. A question within another's answer is of the same moment.
struct Moment<'a> {
    db: Option<&'a Connection>,
}

impl<'a> Moment<'a> {
    fn hold(db: &'a Connection) -> rusqlite::Result<Self> {
        if !db.is_autocommit() {
            return Ok(Self { db: None });
        }
        db.prepare_cached("BEGIN")?.execute([])?;
        Ok(Self { db: Some(db) })
    }
}

impl Drop for Moment<'_> {
    fn drop(&mut self) {
        if let Some(db) = self.db {
            // What was written is in tables of this connection alone.
            let _ = db.execute_batch("COMMIT");
        }
    }
}

#[cfg(test)]
mod tests;
