//! The journal as this machine is configured: opened, exported, and kept small.

use std::convert::Infallible;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::audit::journal::{Journal, JournalError, JournalOptions, Retention, Sync};
use crate::audit::key::SigningKey;
use crate::audit::otlp::{Exporter, ExporterHandle, OtlpConfig};
use crate::audit::record::{Entry, Event};
use crate::audit::redact::Redactor;
use crate::config::{self, Config};
use crate::policy::Digest;

/// How often a long-lived process looks whether the journal has become too large or too old.
const HOUSEKEEPING: Duration = Duration::from_secs(600);

/// The journal's folder in belljar's state.
pub fn folder(state: &Path) -> PathBuf {
    state.join(super::audit::FOLDER)
}

/// Opens the journal to write in it as `user`, and records under which configuration. Two processes that begin at once may both find it new, and
/// SQLite does not wait for the change to write-ahead mode: the later one tries again, for at most two seconds.
pub fn open(config: &Config, user: &str) -> anyhow::Result<Journal> {
    let patterns = config.journal.redact.iter().map(|pattern| pattern.value.as_str());
    let options = JournalOptions {
        sync: match config.journal.sync.value {
            config::Sync::Group => Sync::Batch,
            config::Sync::Each => Sync::Each,
        },
        // Each pattern was read with the configuration.
        redactor: Redactor::new(patterns).map_err(|errors| {
            anyhow::anyhow!(
                "{}",
                errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
            )
        })?,
        user: Some(user.to_owned()),
        key: Some(SigningKey::load_or_make(&config.state.join(super::audit::KEY))?),
    };
    let folder = folder(&config.state);
    for _ in 0..100 {
        match Journal::open(&folder, options.clone()) {
            Err(JournalError::Open { .. }) => std::thread::sleep(Duration::from_millis(20)),
            opened => return loaded(opened?, config),
        }
    }
    loaded(Journal::open(&folder, options)?, config)
}

fn loaded(journal: Journal, config: &Config) -> anyhow::Result<Journal> {
    let entry = Entry {
        task: None,
        exec: None,
        event: Event::ConfigLoaded {
            files: config.files.iter().map(|file| file.display().to_string()).collect(),
            digest: digest(config)?,
            error: None,
        },
    };
    // Written with the next record that is waited for; no task starts without one.
    drop(journal.submit(entry));
    Ok(journal)
}

/// Of all that the configuration says.
pub fn digest(config: &Config) -> anyhow::Result<String> {
    Ok(Digest::of_bytes(&serde_json::to_vec(&config.settings())?).to_string())
}

/// The collectors of the configuration, of OpenTelemetry's own variables, and of the flag; refused where the requirements name others.
pub fn collectors(config: &Config, flag: Option<&str>) -> anyhow::Result<Vec<OtlpConfig>> {
    let mut collectors: Vec<_> = config.otlp.iter().map(config::Otlp::collector).collect();
    collectors.extend(OtlpConfig::from_variables(|name| std::env::var(name).ok())?);
    collectors.extend(flag.map(OtlpConfig::new));
    config.check_endpoints(collectors.iter().map(|collector| collector.endpoint.as_str()))?;
    Ok(collectors)
}

pub fn start_exporter(journal: &Journal, collectors: &[OtlpConfig]) -> anyhow::Result<Option<ExporterHandle>> {
    if collectors.is_empty() {
        return Ok(None);
    }
    Ok(Some(Exporter::start(journal.folder(), collectors.to_vec())?))
}

/// Keeps the journal as small as the configuration says.
pub struct Housekeeping {
    journal: Journal,
    retention: Retention,
}

impl Housekeeping {
    pub fn of(journal: &Journal, config: &Config, collectors: &[OtlpConfig]) -> Self {
        Self {
            journal: journal.clone(),
            retention: Retention {
                bytes: config.journal.rotate_size.as_ref().map(|size| size.value.0),
                age: config.journal.rotate_age.as_ref().map(|age| age.value),
                keep: config.journal.keep.as_ref().map(|keep| keep.value),
                collectors: collectors
                    .iter()
                    .flat_map(|one| one.signals.iter().map(|signal| (one.endpoint.clone(), *signal)))
                    .collect(),
            },
        }
    }

    /// For as long as the process lives.
    pub async fn go_on(&self) -> Infallible {
        loop {
            tokio::time::sleep(HOUSEKEEPING).await;
            self.once().await;
        }
    }

    /// Rotates what is due. A failure costs only room: nothing is taken out then, and the next time tries again.
    pub async fn once(&self) {
        let (journal, retention) = (self.journal.clone(), self.retention.clone());
        let done = tokio::task::spawn_blocking(move || journal.retain(&retention)).await;
        if let Ok(Err(error)) = done {
            tracing::warn!(
                error = &error as &dyn std::error::Error,
                "the journal could not be rotated"
            );
        }
    }
}
