//! Where secret values are kept, and how they are read: the keyring of the OS, belljar's own environment, files.
//!
//! Called by `egress` for the secrets of a task, by `approval` and `audit` for keys of models and receivers, and by
//! `belljar secret`. What a value is for, and which host may get it, is left to those. A value never prints, and is wiped
//! from memory when it is dropped.

#![forbid(unsafe_code)]

pub mod keyring;

use std::io::{self, Read};
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

pub use secrecy::{ExposeSecret, SecretString};

use crate::sys::path::{Kind, kind_of_file, open_file_without_waiting};
use crate::task::SecretSource;
use keyring::KeyringError;

/// The longest value: a certificate chain with its key fits.
pub const LENGTH_LIMIT: usize = 64 << 10;
/// How long a value from the keyring counts as fresh: a revoked one is gone within this, and a busy proxy does not ask the
/// session bus for every request.
const KEYRING_FRESH: Duration = Duration::from_secs(30);

/// Why a value cannot be had. Names where it should be, never what it is.
#[derive(Debug, thiserror::Error)]
pub enum SecretError {
    #[error("the secret \"{name}\" cannot be read from the keyring")]
    Keyring {
        name: String,
        #[source]
        source: KeyringError,
    },
    #[error("the variable {name} is not set in belljar's environment")]
    NotSet { name: String },
    #[error("the file {path} cannot be read")]
    File {
        path: String,
        #[source]
        source: io::Error,
    },
    #[error("{place} is no regular file")]
    NotAFile { place: String },
    #[error("{place} holds no value")]
    Empty { place: String },
    #[error("{place} holds more than {LENGTH_LIMIT} bytes")]
    TooLong { place: String },
    #[error("{place} holds something else than text")]
    NotText { place: String },
    #[error("the thread that reads secrets is gone")]
    Gone,
}

/// Reads a value where it is kept, now. Blocking: a file's read, or up to [`keyring::PATIENCE`] for a keyring that asks its
/// owner to unlock it.
///
/// One line feed at the end of a file is not part of the value; nothing else is cut.
pub fn read(source: &SecretSource) -> Result<SecretString, SecretError> {
    let place = source.to_string();
    match source {
        SecretSource::Keyring(name) => {
            let value = keyring::get(name).map_err(|source| SecretError::Keyring {
                name: name.clone(),
                source,
            })?;
            checked(value, place)
        }
        SecretSource::Env(name) => match std::env::var_os(name) {
            None => Err(SecretError::NotSet { name: name.clone() }),
            Some(value) => match value.into_string() {
                Ok(value) => checked(value.into(), place),
                Err(_) => Err(SecretError::NotText { place }),
            },
        },
        SecretSource::File(path) => checked(read_file(path.as_path(), &place)?, place),
    }
}

/// What a value must be, wherever it is kept.
pub(crate) fn checked(value: SecretString, place: String) -> Result<SecretString, SecretError> {
    let text = value.expose_secret();
    if text.is_empty() {
        return Err(SecretError::Empty { place });
    }
    if text.len() > LENGTH_LIMIT {
        return Err(SecretError::TooLong { place });
    }
    if text.contains('\0') {
        return Err(SecretError::NotText { place });
    }
    Ok(value)
}

/// Symlinks are followed: Kubernetes and systemd hand out secrets behind them.
fn read_file(path: &Path, place: &str) -> Result<SecretString, SecretError> {
    let failed = |source| SecretError::File {
        path: path.display().to_string(),
        source,
    };
    let file = open_file_without_waiting(path).map_err(failed)?;
    if kind_of_file(&file).map_err(failed)? != Kind::File {
        return Err(SecretError::NotAFile {
            place: place.to_owned(),
        });
    }
    // Of the full size from the start: growing would leave copies behind.
    let mut bytes = Vec::with_capacity(LENGTH_LIMIT + 2);
    file.take(LENGTH_LIMIT as u64 + 2)
        .read_to_end(&mut bytes)
        .map_err(failed)?;
    let mut text = String::from_utf8(bytes).map_err(|_| SecretError::NotText {
        place: place.to_owned(),
    })?;
    if text.ends_with('\n') {
        text.pop();
    }
    Ok(text.into())
}

/// A secret in use: read when it is first asked for, and again when it may have changed.
///
/// A value that cannot be read again is an error, not the old value: what was taken back must not be used.
#[derive(Debug)]
pub struct Kept {
    source: SecretSource,
    last: Mutex<Option<Seen>>,
}

#[derive(Debug)]
struct Seen {
    value: SecretString,
    stamp: Stamp,
}

/// What tells whether a value may have changed.
#[derive(Debug, Clone, PartialEq, Eq)]
enum Stamp {
    /// A process's own environment does not change.
    Fixed,
    Until(Instant),
    /// Device, inode, size, time of the last write and of the last change of the inode, both in nanoseconds.
    File([i128; 5]),
}

impl Kept {
    pub fn new(source: SecretSource) -> Self {
        Self {
            source,
            last: Mutex::new(None),
        }
    }

    pub fn source(&self) -> &SecretSource {
        &self.source
    }

    /// The value as it is now. Blocking, as [`read`] is.
    pub fn value(&self) -> Result<SecretString, SecretError> {
        // A poisoned lock holds a whole value or none.
        let mut last = self.last.lock().unwrap_or_else(PoisonError::into_inner);
        // Taken before the value, so that a write in between is seen the next time.
        let stamp = self.stamp()?;
        if let Some(seen) = last.take_if(|seen| seen.is_fresh(&stamp)) {
            let value = seen.value.clone();
            *last = Some(seen);
            return Ok(value);
        }
        *last = None;
        let value = read(&self.source)?;
        *last = Some(Seen {
            value: value.clone(),
            stamp,
        });
        Ok(value)
    }

    /// The same without blocking the caller's runtime. Cancel-safe: the value is read to its end all the same.
    pub async fn current(self: std::sync::Arc<Self>) -> Result<SecretString, SecretError> {
        tokio::task::spawn_blocking(move || self.value())
            .await
            .unwrap_or(Err(SecretError::Gone))
    }

    fn stamp(&self) -> Result<Stamp, SecretError> {
        Ok(match &self.source {
            SecretSource::Env(_) => Stamp::Fixed,
            SecretSource::Keyring(_) => Stamp::Until(Instant::now() + KEYRING_FRESH),
            SecretSource::File(path) => {
                let meta = std::fs::metadata(path).map_err(|source| SecretError::File {
                    path: path.to_string(),
                    source,
                })?;
                let nanoseconds = |seconds: i64, rest: i64| i128::from(seconds) * 1_000_000_000 + i128::from(rest);
                Stamp::File([
                    meta.dev().into(),
                    meta.ino().into(),
                    meta.size().into(),
                    nanoseconds(meta.mtime(), meta.mtime_nsec()),
                    nanoseconds(meta.ctime(), meta.ctime_nsec()),
                ])
            }
        })
    }
}

impl Seen {
    fn is_fresh(&self, now: &Stamp) -> bool {
        match &self.stamp {
            Stamp::Until(end) => Instant::now() < *end,
            stamp => stamp == now,
        }
    }
}

#[cfg(test)]
mod tests;
