//! Sending again what lies behind: for a collector that is new, or that lost what it had taken.

use std::path::Path;
use std::time::Duration;

use tokio::time::Instant;

use super::convert::Converter;
use super::send::{Batch, SendError, Transport};
use super::{BATCH_BYTES, BATCH_RECORDS, ConfigError, FIRST_PAUSE, LONGEST_PAUSE, OtlpConfig, Signal};
use crate::audit::journal::{JournalError, Reader, Stored};
use crate::audit::query::{self, Filter};

/// Why not all was sent; what was sent before stays sent.
#[derive(Debug, thiserror::Error)]
pub enum ResendError {
    #[error("collector {endpoint}")]
    Config {
        endpoint: String,
        #[source]
        source: ConfigError,
    },
    #[error(transparent)]
    Journal(#[from] JournalError),
    #[error("{sent} records were sent, then {endpoint} took no more: {why}")]
    Refused { endpoint: String, sent: u64, why: String },
}

/// Sends the records of a filter to one collector, whatever it has taken before, and leaves its cursor where it is; says how many
/// there were. Logs and spans only: metrics are sums over the whole journal, and would say nothing else.
///
/// A batch that is not taken is tried again until `patience` is over for it.
pub async fn resend(
    folder: &Path,
    config: &OtlpConfig,
    mut filter: Filter,
    patience: Duration,
) -> Result<u64, ResendError> {
    let transport = Transport::new(config).map_err(|source| ResendError::Config {
        endpoint: config.endpoint.clone(),
        source,
    })?;
    let reader = Reader::open(folder)?;
    let mut converter = Converter::new(reader.journal_id()?);
    let mut sent = 0;
    loop {
        let records = piece(&reader, &filter)?;
        let Some(last) = records.last() else { return Ok(sent) };
        filter.after = last.seq;
        let mut batches = Vec::new();
        for signal in &config.signals {
            match signal {
                Signal::Logs => batches.push(converter.logs(&reader, &records)?),
                Signal::Traces => batches.extend(converter.spans(&reader, &records)?),
                Signal::Metrics => {}
            }
        }
        for batch in batches {
            deliver(&transport, batch, patience)
                .await
                .map_err(|error| ResendError::Refused {
                    endpoint: config.endpoint.clone(),
                    sent,
                    why: error.to_string(),
                })?;
        }
        sent += records.len() as u64;
    }
}

fn piece(reader: &Reader, filter: &Filter) -> Result<Vec<Stored>, JournalError> {
    let mut records = Vec::new();
    let mut bytes = 0;
    query::each(reader, filter, |record| {
        bytes += record.json.len();
        records.push(record);
        records.len() < BATCH_RECORDS && bytes < BATCH_BYTES
    })?;
    Ok(records)
}

async fn deliver(transport: &Transport, batch: Batch, patience: Duration) -> Result<(), SendError> {
    let end = Instant::now() + patience;
    let mut pause = FIRST_PAUSE;
    loop {
        match transport.send(batch.clone()).await {
            Err(_) if Instant::now() + pause < end => tokio::time::sleep(pause).await,
            done => return done,
        }
        pause = (pause * 2).min(LONGEST_PAUSE);
    }
}
