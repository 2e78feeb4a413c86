//! How far each collector has come, per signal; in the journal's own database, so that both are copied and lost together.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rusqlite::{Connection, OptionalExtension, params};

use super::metrics::Totals;
use super::{OtlpConfig, Signal};
use crate::audit::journal::{self, JournalError, Seq};

/// A signal's place in the journal: all records up to it are delivered.
#[derive(Debug, Clone, Default, PartialEq)]
pub(super) struct Cursor {
    pub seq: Seq,
    /// Sums over the records up to it; for metrics only.
    pub totals: Totals,
}

pub(super) struct Cursors {
    path: PathBuf,
    db: Connection,
}

impl Cursors {
    pub fn open(folder: &Path) -> Result<Self, JournalError> {
        let path = folder.join(journal::FILE);
        // Losing a cursor's last step in a power cut costs a second delivery, no record.
        let db = journal::connect_write(&path, journal::Sync::Batch)?;
        Ok(Self { path, db })
    }

    pub fn read(&self, config: &OtlpConfig, signal: Signal) -> Result<Cursor, JournalError> {
        let row = self
            .db
            .prepare_cached("SELECT seq, state FROM cursors WHERE endpoint = ?1 AND signal = ?2")
            .and_then(|mut statement| {
                statement
                    .query_row(params![key(config), signal.as_str()], |row| {
                        Ok((row.get::<_, i64>(0)?, row.get::<_, String>(1)?))
                    })
                    .optional()
            })
            .map_err(|source| JournalError::Read {
                path: self.path.clone(),
                source: Arc::new(source),
            })?;
        let Some((seq, state)) = row else {
            return Ok(Cursor::default());
        };
        if signal != Signal::Metrics {
            return Ok(Cursor {
                seq: seq.unsigned_abs(),
                totals: Totals::default(),
            });
        }
        match serde_json::from_str(&state) {
            Ok(totals) => Ok(Cursor {
                seq: seq.unsigned_abs(),
                totals,
            }),
            // Sums that cannot be read are made anew from the first record.
            Err(_) => Ok(Cursor::default()),
        }
    }

    pub fn write(&self, config: &OtlpConfig, signal: Signal, cursor: &Cursor) -> Result<(), JournalError> {
        let state = match signal {
            Signal::Metrics => serde_json::to_string(&cursor.totals).map_err(|source| JournalError::Encode {
                kind: "metrics",
                source: Arc::new(source),
            })?,
            Signal::Logs | Signal::Traces => String::new(),
        };
        self.db
            .prepare_cached("INSERT OR REPLACE INTO cursors (endpoint, signal, seq, state) VALUES (?1, ?2, ?3, ?4)")
            .and_then(|mut statement| {
                statement.execute(params![key(config), signal.as_str(), cursor.seq as i64, state])
            })
            .map(drop)
            .map_err(|source| JournalError::Write {
                path: self.path.clone(),
                source: Arc::new(source),
            })
    }
}

/// A collector is the same one whatever headers it wants.
pub(super) fn key(config: &OtlpConfig) -> &str {
    config.endpoint.trim_end_matches('/')
}
