//! The store's own files: folders, locks, and what is kept as JSON.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

use super::Store;
use crate::image::{ImageError, layer};

/// The version of the files that the store writes.
const VERSION: u32 = 1;

impl Store {
    pub(super) fn lock_file(&self, name: &str) -> Result<File, ImageError> {
        self.make_folder(name.split_once('/').map_or("", |(folder, _)| folder))?;
        let file = OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.folder.join(name));
        file.map_err(|error| self.failed("opening a lock", error))
    }

    /// Folders can be entered by all, as the layers must be by a sandbox's users; only their names are secret to nobody.
    pub(super) fn make_folder(&self, name: &str) -> Result<(), ImageError> {
        let made = fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(self.folder.join(name));
        made.map_err(|error| self.failed("making a folder", error))
    }

    pub(super) fn files(&self, folder: &str) -> Result<Vec<PathBuf>, ImageError> {
        let failed = |error| self.failed("listing it", error);
        let entries = match fs::read_dir(self.folder.join(folder)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries.map_err(failed)?,
        };
        entries.map(|entry| Ok(entry.map_err(failed)?.path())).collect()
    }

    pub(super) fn remove_tree(&self, folder: &Path) -> Result<(), ImageError> {
        let failed = |error| self.failed("removing a layer", error);
        let (parent, name) = (
            folder.parent().unwrap_or(Path::new("/")),
            folder.file_name().unwrap_or_default(),
        );
        let parent = File::open(parent).map_err(failed)?;
        layer::remove_folder(std::os::fd::AsFd::as_fd(&parent), Path::new(name)).map_err(failed)
    }

    /// A file of the store, if it is there. One that cannot be understood is as good as absent: all can be made again.
    pub(super) fn load<T: for<'de> Deserialize<'de>>(&self, file: &Path) -> Result<Option<T>, ImageError> {
        match fs::read(file) {
            Ok(bytes) => {
                let found = serde_json::from_slice::<Versioned<T>>(&bytes).ok();
                Ok(found.filter(|found| found.version == VERSION).map(|found| found.value))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(self.failed("reading a file of it", error)),
        }
    }

    pub(super) fn save<T: Serialize>(&self, file: &Path, value: &T) -> Result<(), ImageError> {
        let failed = |error| self.failed("writing a file of it", error);
        let folder = file.parent().unwrap_or(&self.folder);
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(folder)
            .map_err(failed)?;
        let mut tmp = tempfile::NamedTempFile::new_in(folder).map_err(failed)?;
        let json = serde_json::to_vec(&Versioned {
            version: VERSION,
            value,
        })
        .expect("plain values become JSON");
        tmp.write_all(&json)
            .and_then(|()| tmp.as_file().sync_data())
            .map_err(failed)?;
        tmp.persist(file).map_err(|error| failed(error.error))?;
        Ok(())
    }

    pub(super) fn failed(&self, doing: &'static str, source: io::Error) -> ImageError {
        ImageError::Store {
            path: self.folder.clone(),
            doing,
            source,
        }
    }
}

/// Every file of the store says which version of the format it is in.
#[derive(Serialize, Deserialize)]
struct Versioned<T> {
    version: u32,
    #[serde(flatten)]
    value: T,
}
