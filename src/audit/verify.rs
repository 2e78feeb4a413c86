//! The proof: walks the whole chain and says exactly where it breaks.

use std::collections::BTreeMap;
use std::path::Path;

use serde::Deserialize;

use super::journal::{GENESIS, JournalError, Reader, Seq, Stored, chain, is_archive};
use super::key::{Checkpoint, KeyError, PublicKey};
use crate::policy::Digest;

/// What is known from elsewhere, against which a journal can be proved; nothing is needed to prove its chain.
#[derive(Debug, Clone, Default)]
pub struct Known {
    /// Then every checkpoint must be signed by this key, and there must be one.
    pub public_key: Option<PublicKey>,
    /// A record's number and its hash in hex, as a checkpoint, an export or an earlier proof gave them: a journal that ends
    /// before, or that has another hash there, is broken.
    pub head: Option<(Seq, String)>,
}

/// A journal whose records are all there, unchanged and in order.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct Verified {
    pub records: u64,
    pub first_seq: Seq,
    pub last_seq: Seq,
    /// The hash of the last record, in hex: whoever keeps it can tell later that nothing before it was changed or cut off.
    pub head: String,
    pub checkpoints: u64,
    /// Files with records that were taken out, which are there and unchanged.
    pub archives: u64,
    /// Records after the last checkpoint: the chain holds them together, but no signature speaks for them yet.
    pub unsigned: u64,
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

#[derive(Deserialize)]
struct Pruned {
    last_seq: Seq,
    last_hash: String,
    archive: Option<String>,
    archive_digest: Option<String>,
}

#[derive(Deserialize)]
struct ArchiveRemoved {
    archive: String,
    archive_digest: String,
}

/// The fields of a checkpoint's record.
#[derive(Deserialize)]
struct SignedCheckpoint {
    journal: String,
    through_seq: Seq,
    hash: String,
    signature: String,
    public_key: String,
}

/// Walks the journal in `folder` from its first record to its last.
pub fn verify(folder: &Path, known: &Known) -> Result<Verified, VerifyError> {
    let reader = Reader::open(folder)?;
    let mut walk = Walk {
        journal: reader.journal_id()?,
        known,
        prev: GENESIS,
        first: 1,
        seq: 0,
        gone: None,
        checkpoints: 0,
        signed: 0,
        archives: BTreeMap::new(),
        broken: None,
    };
    let read = reader.each("1 ORDER BY seq", &[], |record| match walk.step(&record) {
        Ok(()) => true,
        Err(why) => {
            walk.broken = Some(Broken { seq: walk.seq + 1, why });
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
    if walk.gone.is_some() {
        return Err(Broken {
            seq: walk.first - 1,
            why: "it is missing, and no record says that it was taken out".to_owned(),
        }
        .into());
    }
    is_the_tail_there(&reader, &walk)?;
    are_the_archives_there(folder, &walk)?;
    Ok(Verified {
        records: walk.seq + 1 - walk.first,
        first_seq: walk.first,
        last_seq: walk.seq,
        head: hex(&walk.prev),
        checkpoints: walk.checkpoints,
        archives: walk.archives.len() as u64,
        unsigned: walk.seq - walk.signed,
    })
}

struct Walk<'a> {
    journal: String,
    known: &'a Known,
    prev: [u8; 32],
    first: Seq,
    seq: Seq,
    /// The hash to which the first record that is there is chained, while no record has accounted for those before it.
    gone: Option<[u8; 32]>,
    checkpoints: u64,
    /// The last record that a checkpoint speaks for.
    signed: Seq,
    /// The archives that must be there, by name: the record that says so, and the digest.
    archives: BTreeMap<String, (Seq, String)>,
    broken: Option<Broken>,
}

impl Walk<'_> {
    /// Takes the next record, or says why it is not the next one.
    fn step(&mut self, record: &Stored) -> Result<(), String> {
        if self.seq == 0 && record.seq > 1 {
            // Those before it may have been taken out; the rest has to say so.
            self.first = record.seq;
            self.seq = record.seq - 1;
            self.prev = record.prev;
            self.gone = Some(record.prev);
        }
        let expected = self.seq + 1;
        if record.seq != expected {
            return Err(format!("it is missing; the next one there is {}", record.seq));
        }
        if record.prev != self.prev {
            return Err("the hash of the record before it, as it stands in it, is another".to_owned());
        }
        if chain(&self.prev, record.json.as_bytes()) != record.hash {
            return Err("its content does not have its hash: it was changed".to_owned());
        }
        columns_agree(record)?;
        match record.kind.as_str() {
            "journal.checkpoint" => self.checkpoint(record)?,
            "journal.pruned" => self.pruned(record)?,
            "journal.archive_removed" => self.archive_removed(record)?,
            _ => {}
        }
        if let Some((seq, head)) = &self.known.head
            && *seq == record.seq
            && !head.eq_ignore_ascii_case(&hex(&record.hash))
        {
            return Err(format!(
                "its hash is not {head}, which was known: all up to it was written anew"
            ));
        }
        self.prev = record.hash;
        self.seq = record.seq;
        Ok(())
    }

    fn pruned(&mut self, record: &Stored) -> Result<(), String> {
        let pruned: Pruned = serde_json::from_str(&record.json)
            .map_err(|error| format!("it does not say what was taken out: {error}"))?;
        if pruned.last_seq + 1 == self.first && self.gone.is_some_and(|gone| hex(&gone) == pruned.last_hash) {
            self.gone = None;
        }
        if let (Some(archive), Some(digest)) = (pruned.archive, pruned.archive_digest) {
            self.archives.insert(archive, (record.seq, digest));
        }
        Ok(())
    }

    fn archive_removed(&mut self, record: &Stored) -> Result<(), String> {
        let removed: ArchiveRemoved = serde_json::from_str(&record.json)
            .map_err(|error| format!("it does not say which archive was removed: {error}"))?;
        // One whose own record was taken out since is not known here.
        if let Some((_, digest)) = self.archives.remove(&removed.archive)
            && digest != removed.archive_digest
        {
            return Err(format!(
                "the archive {} was changed before it was removed",
                removed.archive
            ));
        }
        Ok(())
    }

    fn checkpoint(&mut self, record: &Stored) -> Result<(), String> {
        let signed: SignedCheckpoint =
            serde_json::from_str(&record.json).map_err(|error| format!("it is no checkpoint: {error}"))?;
        let key: PublicKey = signed.public_key.parse().map_err(|error: KeyError| error.to_string())?;
        if let Some(public_key) = &self.known.public_key
            && *public_key != key
        {
            return Err(format!("it is a checkpoint by another key, {key}"));
        }
        if signed.journal != self.journal || signed.through_seq != self.seq || signed.hash != hex(&self.prev) {
            return Err("it is a checkpoint of other records than those before it".to_owned());
        }
        let checkpoint = Checkpoint {
            journal: &self.journal,
            through_seq: self.seq,
            hash: &self.prev,
        };
        if !key.proves(&checkpoint, &signed.signature) {
            return Err(format!("it is a checkpoint that the key {key} did not sign"));
        }
        self.checkpoints += 1;
        self.signed = record.seq;
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
fn is_the_tail_there(reader: &Reader, walk: &Walk<'_>) -> Result<(), VerifyError> {
    let last = walk.seq;
    let cut = |why: String| Err(VerifyError::from(Broken { seq: last + 1, why }));
    if let Some((seq, _)) = &walk.known.head
        && *seq > last
    {
        return cut(format!(
            "it is missing: the journal ends before record {seq}, which was known"
        ));
    }
    if let Some(key) = &walk.known.public_key
        && walk.checkpoints == 0
        && last > 0
    {
        return cut(format!(
            "a checkpoint is missing: no record of this journal is signed by {key}"
        ));
    }
    let named = reader.ask(
        "SELECT max((SELECT coalesce(max(seq), 0) FROM starts), (SELECT coalesce(max(seq), 0) FROM cursors))",
        &[],
        |row| row.get::<_, i64>(0),
    )?;
    let named = named.unwrap_or(0).unsigned_abs();
    if named > last {
        return cut(format!(
            "it is missing: the journal ends before record {named}, which was written"
        ));
    }
    Ok(())
}

/// Records that were taken out are in files beside the journal, as long as no record says that those were removed.
fn are_the_archives_there(folder: &Path, walk: &Walk<'_>) -> Result<(), VerifyError> {
    for (name, (seq, digest)) in &walk.archives {
        let broken = |why: String| VerifyError::from(Broken { seq: *seq, why });
        if !is_archive(name) {
            return Err(broken(format!(
                "it names an archive \"{name}\", which is no name of one"
            )));
        }
        let bytes = std::fs::read(folder.join(name)).map_err(|error| {
            broken(format!(
                "the archive {name}, which has the records that it speaks of, cannot be read: {error}"
            ))
        })?;
        if Digest::of_bytes(&bytes).to_string() != *digest {
            return Err(broken(format!(
                "the archive {name} was changed: it does not have the digest that was recorded"
            )));
        }
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

/// Reads exactly as many bytes as `bytes` has.
pub(crate) fn unhex(text: &str, bytes: &mut [u8]) -> Option<()> {
    let digits = text.as_bytes();
    if digits.len() != bytes.len() * 2 {
        return None;
    }
    for (byte, pair) in bytes.iter_mut().zip(digits.chunks_exact(2)) {
        let high = char::from(pair[0]).to_digit(16)?;
        let low = char::from(pair[1]).to_digit(16)?;
        *byte = (high << 4 | low) as u8;
    }
    Some(())
}
