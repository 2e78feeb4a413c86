//! A small file of the user's state folder that all their belljars share: JSON with a version, changed under a lock and put in
//! place by a rename, so that a reader sees the old file or the new one.
//!
//! A file that others could have written, or that cannot be read, is no file: whoever asks hears why and goes on without it.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Write as _};
use std::marker::PhantomData;
use std::os::unix::fs::{MetadataExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::sys::user::myself;

/// The largest file that is read.
const FILE_LIMIT: u64 = 16 << 20;

const VERSION: u32 = 1;

#[derive(Debug, thiserror::Error)]
pub enum FileError {
    #[error("cannot change {path}")]
    File {
        path: PathBuf,
        #[source]
        source: io::Error,
    },
    #[error("{path} is not a file that its user alone can write")]
    Foreign { path: PathBuf },
    #[error("{path} cannot be understood (remove it, and you are asked again)")]
    Damaged {
        path: PathBuf,
        #[source]
        source: serde_json::Error,
    },
    #[error("{path} has version {found}, this program knows {VERSION}")]
    Version { path: PathBuf, found: u32 },
}

/// One such file; what it holds when it is not there is `T`'s default.
#[derive(Debug, Clone)]
pub(super) struct StateFile<T> {
    path: PathBuf,
    holds: PhantomData<fn() -> T>,
}

#[derive(Serialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    whole: T,
}

/// The version alone: what a newer program wrote need not be understood to be told.
#[derive(Deserialize)]
struct Version {
    version: u32,
}

impl<T: Default + Serialize + DeserializeOwned> StateFile<T> {
    pub fn new(path: PathBuf) -> Self {
        Self {
            path,
            holds: PhantomData,
        }
    }

    /// What it holds now. Blocking.
    pub fn read(&self) -> Result<T, FileError> {
        let failed = |source| self.failed(source);
        let file = match File::open(&self.path) {
            Ok(file) => file,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(T::default()),
            Err(error) => return Err(failed(error)),
        };
        let found = file.metadata().map_err(failed)?;
        let own = myself().uid;
        let path = || self.path.clone();
        if !found.is_file() || (found.uid() != own && found.uid() != 0) || found.mode() & 0o022 != 0 {
            return Err(FileError::Foreign { path: path() });
        }
        let mut text = Vec::new();
        file.take(FILE_LIMIT).read_to_end(&mut text).map_err(failed)?;
        let damaged = |source| FileError::Damaged { path: path(), source };
        // Through a value, for a number that is kept aside by `flatten` does not come back as one (see `api::wire`).
        let value: Value = serde_json::from_slice(&text).map_err(damaged)?;
        let Version { version } = Version::deserialize(&value).map_err(damaged)?;
        if version != VERSION {
            return Err(FileError::Version {
                path: path(),
                found: version,
            });
        }
        serde_json::from_value(value).map_err(damaged)
    }

    /// Changes it while nobody else does; what `change` gives is the answer. Blocking.
    pub fn change<R>(&self, change: impl FnOnce(&mut T) -> R) -> Result<R, FileError> {
        let failed = |source| self.failed(source);
        let lock = private(&self.path.with_extension("lock")).map_err(failed)?;
        // Held until it is dropped.
        lock.lock().map_err(failed)?;
        let mut whole = self.read()?;
        let answer = change(&mut whole);
        let text = serde_json::to_vec(&Versioned {
            version: VERSION,
            whole,
        });
        let text = text.map_err(|source| FileError::Damaged {
            path: self.path.clone(),
            source,
        })?;
        let new = self.path.with_extension("new");
        let write = || {
            // Left over from a process that was killed here: nobody else has it, for the lock is held.
            let mut out = private(&new)?;
            out.write_all(&text)?;
            out.sync_all()?;
            fs::rename(&new, &self.path)
        };
        write().map_err(failed)?;
        Ok(answer)
    }

    fn failed(&self, source: io::Error) -> FileError {
        FileError::File {
            path: self.path.clone(),
            source,
        }
    }
}

fn private(path: &Path) -> io::Result<File> {
    OpenOptions::new()
        .write(true)
        .create(true)
        .truncate(true)
        .mode(0o600)
        .open(path)
}
