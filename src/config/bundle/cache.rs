//! The copy of the last bundle, and the floor below which none is taken again.

use std::fs::{self, DirBuilder, OpenOptions};
use std::io::{self, Write};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use super::{Bundle, BundleError, Demand, EnvelopeError, envelope, fetch, open};
use crate::policy::Digest;

/// After a fetch that failed, how long every start of belljar goes without another: a server that is away must not cost each of
/// a thousand short commands its patience.
const PAUSE: Duration = Duration::from_secs(60);

/// The files of one bundle.
pub(super) struct Cache {
    folder: PathBuf,
    /// Told apart by URL: two files of requirements may name two bundles.
    name: String,
}

impl Cache {
    pub fn of(folder: &Path, demand: &Demand) -> Self {
        let digest = Digest::of_bytes(demand.url.value.as_bytes());
        let name = digest.as_bytes()[..8]
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        Self {
            folder: folder.join("bundles"),
            name,
        }
    }

    fn path(&self, kind: &str) -> PathBuf {
        self.folder.join(format!("{}.{kind}", self.name))
    }

    /// The copy, verified as if it had just come.
    pub fn read(&self, demand: &Demand, now: SystemTime) -> Result<Bundle, BundleError> {
        let path = self.path("json");
        let missing = |error: io::Error| BundleError::Fetch(fetch::FetchError::NoCopy { source: error });
        if fs::metadata(&path).map_err(missing)?.len() > envelope::LARGEST as u64 {
            return Err(EnvelopeError::TooLarge.into());
        }
        let bundle = open(&fs::read(&path).map_err(missing)?, demand, now)?;
        self.admit(&bundle)?;
        Ok(bundle)
    }

    /// Refuses what is older than what was seen, or other than what was seen under the same serial.
    pub fn admit(&self, bundle: &Bundle) -> Result<(), BundleError> {
        let Some((floor, digest)) = self.floor() else {
            return Ok(());
        };
        if bundle.serial < floor {
            return Err(BundleError::RollBack {
                serial: bundle.serial,
                floor,
            });
        }
        match bundle.serial == floor && bundle.digest.to_string() != digest {
            true => Err(BundleError::Changed { serial: floor }),
            false => Ok(()),
        }
    }

    fn floor(&self) -> Option<(u64, String)> {
        let text = fs::read_to_string(self.path("serial")).ok()?;
        let (serial, digest) = text.trim().split_once(' ')?;
        Some((serial.parse().ok()?, digest.to_owned()))
    }

    /// The floor first: killed in between, the next start takes nothing older than what this one had accepted.
    pub fn keep(&self, bytes: &[u8], bundle: &Bundle) -> io::Result<()> {
        DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        self.write("serial", format!("{} {}\n", bundle.serial, bundle.digest).as_bytes())?;
        self.write("json", bytes)
    }

    /// Whole or not at all, whoever else writes.
    fn write(&self, kind: &str, bytes: &[u8]) -> io::Result<()> {
        let draft = self.path(&format!("{}.new", std::process::id()));
        let mut file = OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(true)
            .mode(0o600)
            .open(&draft)?;
        let written = file.write_all(bytes).and_then(|()| file.sync_all());
        let moved = written.and_then(|()| fs::rename(&draft, self.path(kind)));
        if moved.is_err() {
            let _ = fs::remove_file(&draft);
        }
        moved
    }

    /// Whether the copy is younger than `refresh`. A clock that went back makes it old.
    pub fn is_fresh(&self, refresh: Duration, now: SystemTime) -> bool {
        self.is_younger("json", refresh, now)
    }

    pub fn may_ask_again(&self, now: SystemTime) -> bool {
        !self.is_younger("asked", PAUSE, now)
    }

    /// Where it cannot be noted, each start asks.
    pub fn note_attempt(&self) {
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&self.folder);
        let _ = made.and_then(|()| fs::write(self.path("asked"), b""));
    }

    fn is_younger(&self, kind: &str, than: Duration, now: SystemTime) -> bool {
        let written = fs::metadata(self.path(kind)).and_then(|found| found.modified());
        written.is_ok_and(|written| now.duration_since(written).is_ok_and(|age| age < than))
    }
}
