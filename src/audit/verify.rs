//! The proof: walks the whole chain and says exactly where it breaks.

use std::path::Path;

use serde::Deserialize;

use super::journal::{GENESIS, JournalError, Reader, Seq, Stored, chain};

/// A journal whose records are all there, unchanged and in order.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Verified {
    pub records: u64,
    pub first_seq: Seq,
    pub last_seq: Seq,
    /// The hash of the last record, in hex: whoever keeps it can tell later that nothing before it was changed or cut off.
    pub head: String,
}

/// The first record that is wrong, and why.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error, serde::Serialize)]
#[error("record {seq}: {why}")]
pub struct Broken {
    pub seq: Seq,
    pub why: String,
}

#[derive(Debug, thiserror::Error)]
pub enum VerifyError {
    #[error("the journal is broken")]
    Broken(#[from] Broken),
    #[error(transparent)]
    Unreadable(#[from] JournalError),
}

/// What must agree with the columns beside it. Borrowed: no string of a million records is copied.
#[derive(Deserialize)]
struct Envelope<'a> {
    version: u32,
    seq: Seq,
    #[serde(borrow)]
    time: std::borrow::Cow<'a, str>,
    #[serde(borrow)]
    kind: std::borrow::Cow<'a, str>,
    task: Option<uuid::Uuid>,
    exec: Option<uuid::Uuid>,
}

/// Walks the journal in `folder` from its first record to its last.
pub fn verify(folder: &Path) -> Result<Verified, VerifyError> {
    let reader = Reader::open(folder)?;
    let mut walk = Walk {
        prev: GENESIS,
        first: 1,
        seq: 0,
        broken: None,
    };
    let read = reader.each("1 ORDER BY seq", &[], |record| match walk.step(&record) {
        Ok(()) => true,
        Err(broken) => {
            walk.broken = Some(broken);
            false
        }
    });
    if let Some(broken) = walk.broken {
        return Err(broken.into());
    }
    if let Err(error) = read {
        // What cannot be read is broken at the record after the last that could.
        return Err(Broken {
            seq: walk.seq + 1,
            why: unreadable(&error),
        }
        .into());
    }
    is_the_tail_there(&reader, walk.seq)?;
    Ok(Verified {
        records: walk.seq + 1 - walk.first,
        first_seq: walk.first,
        last_seq: walk.seq,
        head: hex(&walk.prev),
    })
}

struct Walk {
    prev: [u8; 32],
    first: Seq,
    seq: Seq,
    broken: Option<Broken>,
}

impl Walk {
    fn step(&mut self, record: &Stored) -> Result<(), Broken> {
        let expected = self.seq + 1;
        let broken = |why: String| Err(Broken { seq: expected, why });
        if record.seq != expected {
            return broken(format!("it is missing; the next one there is {}", record.seq));
        }
        if record.prev != self.prev {
            return broken("the hash of the record before it, as it stands in it, is another".to_owned());
        }
        if chain(&self.prev, record.json.as_bytes()) != record.hash {
            return broken("its content does not have its hash: it was changed".to_owned());
        }
        if let Err(why) = columns_agree(record) {
            return broken(why);
        }
        self.prev = record.hash;
        self.seq = record.seq;
        Ok(())
    }
}

/// The columns serve to find a record; one that says something else than the record would hide it.
fn columns_agree(record: &Stored) -> Result<(), String> {
    let envelope: Envelope<'_> =
        serde_json::from_str(&record.json).map_err(|error| format!("it is not a record: {error}"))?;
    if envelope.version == 0 || envelope.version > super::record::VERSION {
        return Err(format!("its version {} is not known", envelope.version));
    }
    let time: Result<jiff::Timestamp, _> = envelope.time.parse();
    let same_time = time.is_ok_and(|time| time.as_nanosecond() == i128::from(record.time));
    for (column, same) in [
        ("seq", envelope.seq == record.seq),
        ("time", same_time),
        ("kind", envelope.kind == record.kind),
        ("task", envelope.task == record.task),
        ("exec", envelope.exec == record.exec),
    ] {
        if !same {
            return Err(format!("its column {column} does not say what the record says"));
        }
    }
    Ok(())
}

/// Starts and cursors name records by number: one that is not there was cut off.
fn is_the_tail_there(reader: &Reader, last: Seq) -> Result<(), VerifyError> {
    let named = reader.ask(
        "SELECT max((SELECT coalesce(max(seq), 0) FROM starts), (SELECT coalesce(max(seq), 0) FROM cursors))",
        &[],
        |row| row.get::<_, i64>(0),
    )?;
    let named = named.unwrap_or(0).unsigned_abs();
    if named > last {
        return Err(Broken {
            seq: last + 1,
            why: format!("it is missing: the journal ends before record {named}, which was written"),
        }
        .into());
    }
    Ok(())
}

fn unreadable(error: &JournalError) -> String {
    let mut text = "it cannot be read".to_owned();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(": ");
        text.push_str(&cause.to_string());
        source = cause.source();
    }
    text
}

pub(crate) fn hex(bytes: &[u8]) -> String {
    use std::fmt::Write;
    bytes
        .iter()
        .fold(String::with_capacity(bytes.len() * 2), |mut text, byte| {
            let _ = write!(text, "{byte:02x}");
            text
        })
}
