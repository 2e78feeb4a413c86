//! The local store: each layer unpacked once, named by what it holds, shared by all tasks.
//!
//! ```text
//! <state>/images/
//!   layers/<diff id>/     an unpacked layer, complete: it came here by rename
//!   locks/<diff id>       held while a layer is unpacked, so that ten at once unpack it once
//!   tmp/<diff id>/        the unpacking; what lies here without a holder of the lock was cut off
//!   images/<digest>.json  an image: its layers and configuration
//!   names/<hash>.json     a name and the digest that it means
//!   blobs/<digest>        a layer as a registry gave it, until it is unpacked; <digest>.partial where it broke off
//!   archives/<hash>.json  an archive as it was seen (device, inode, size, times), or an engine's id of an image, and its digest
//!   lease                 shared by whoever takes an image in, exclusive for whoever prunes
//!   leases/<digest>       shared by whoever runs the image, exclusive for whoever prunes it
//! ```

mod files;
mod saved;
mod streams;

use std::collections::{BTreeMap, BTreeSet};
use std::fs::{self, File};
use std::io::{self, BufReader, Read, Seek};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};

use rustix::fs::{FlockOperation, Mode, OFlags, flock};
use serde::{Deserialize, Serialize};

pub use saved::MOST_SAVED_BYTES;
use streams::{Heard, Plain, Told, decompressed};

use super::checked::Summed;
use super::layer::{self, CAPS, LayerError, Owner};
use super::layout::{Blob, Contents, Layout};
use super::{Image, ImageConfig, ImageError, ImageKind, Progress};
use crate::path::HostPath;
use crate::policy::Digest;
use crate::sys::namespace;
use crate::task::is_image_name;

/// The store of one state folder.
#[derive(Debug, Clone)]
pub struct Store {
    folder: PathBuf,
    owner: Owner,
}

/// Keeps the store, or one image, from being pruned.
#[derive(Debug)]
pub(super) struct Lease(#[expect(dead_code, reason = "the lock is held as long as the file is open")] File);

/// A name of the store.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Named {
    pub name: String,
    pub digest: String,
}

/// What pruning removed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
pub struct Pruned {
    pub images: u64,
    pub layers: u64,
}

/// An image as the store knows it.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Record {
    digest: String,
    layers: Vec<String>,
    config: ImageConfig,
}

impl Store {
    /// The store of a state folder; nothing is made before it is needed.
    pub fn of_state(state: &Path) -> Store {
        Store {
            folder: state.join("images"),
            owner: if namespace::has_sandbox_ids() {
                Owner::Kept
            } else {
                Owner::Caller
            },
        }
    }

    /// An image of an OCI layout or a docker-save archive, its layers unpacked.
    pub fn unpacked(&self, path: &HostPath, progress: &dyn Progress) -> Result<Image, ImageError> {
        let lease = self.lease()?;
        let (record, _) = self.take_in(path.as_path(), progress)?;
        self.image(record, lease)
    }

    /// Takes an image into the store for good, under a name: the one given, or the one that the layout gives.
    pub fn import(&self, path: &HostPath, name: Option<&str>, progress: &dyn Progress) -> Result<Named, ImageError> {
        let _lease = self.lease()?;
        let (record, own_name) = self.take_in(path.as_path(), progress)?;
        let name = name
            .map(str::to_owned)
            .or(own_name)
            .ok_or_else(|| ImageError::Name { name: String::new() })?;
        self.set_name(&name, &record.digest)
    }

    /// Takes in what a layout holds, under a name.
    pub(super) fn take_in_as(&self, layout: &Layout, name: &str, progress: &dyn Progress) -> Result<Named, ImageError> {
        let (record, _) = self.take_in_contents(layout, progress)?;
        self.set_name(name, &record.digest)
    }

    /// The image that a name means.
    pub fn named(&self, name: &str) -> Result<Image, ImageError> {
        let unknown = || ImageError::Unknown { name: name.to_owned() };
        let lease = self.lease()?;
        let found: Named = self.load(&self.name_file(name))?.ok_or_else(unknown)?;
        let record = self
            .record(&found.digest)?
            .filter(|record| self.has_layers(record))
            .ok_or_else(unknown)?;
        self.image(record, lease)
    }

    /// All names, sorted.
    pub fn names(&self) -> Result<Vec<Named>, ImageError> {
        let mut names: Vec<Named> = Vec::new();
        for file in self.files("names")? {
            names.extend(self.load::<Named>(&file)?);
        }
        names.sort_by(|one, other| one.name.cmp(&other.name));
        Ok(names)
    }

    /// Forgets a name; what only it used goes with the next pruning.
    pub fn remove(&self, name: &str) -> Result<(), ImageError> {
        match fs::remove_file(self.name_file(name)) {
            Ok(()) => Ok(()),
            Err(error) if error.kind() == io::ErrorKind::NotFound => Err(ImageError::Unknown { name: name.to_owned() }),
            Err(error) => Err(self.failed("removing a name", error)),
        }
    }

    /// Removes every image that no name means and no task runs, and every layer that no image left uses. Refused while an image is
    /// being taken in.
    pub fn prune(&self) -> Result<Pruned, ImageError> {
        let lease = self.lock_file("lease")?;
        match flock(&lease, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {}
            Err(rustix::io::Errno::WOULDBLOCK) => return Err(ImageError::InUse),
            Err(error) => return Err(self.failed("locking it", error.into())),
        }
        let kept: BTreeSet<String> = self.names()?.into_iter().map(|named| named.digest).collect();
        let mut pruned = Pruned::default();
        let mut layers: BTreeSet<String> = BTreeSet::new();
        for file in self.files("images")? {
            match self.load::<Record>(&file)? {
                Some(record) if kept.contains(&record.digest) => layers.extend(record.layers),
                Some(record) if !self.is_free(&record.digest)? => layers.extend(record.layers),
                _ => {
                    fs::remove_file(&file).map_err(|error| self.failed("removing an image", error))?;
                    pruned.images += 1;
                }
            }
        }
        for file in self.files("archives")? {
            fs::remove_file(&file).map_err(|error| self.failed("removing what is known of an archive", error))?;
        }
        for folder in self.files("layers")? {
            let id = folder.file_name().and_then(|name| name.to_str()).unwrap_or_default();
            if !layers.contains(&format!("sha256:{id}")) {
                self.remove_tree(&folder)?;
                pruned.layers += 1;
            }
        }
        for file in self.files("blobs")? {
            fs::remove_file(&file).map_err(|error| self.failed("removing what a pull left", error))?;
        }
        for folder in self.files("tmp")? {
            self.remove_tree(&folder)?;
        }
        Ok(pruned)
    }

    /// Reads a layout and unpacks what is not unpacked yet.
    fn take_in(&self, path: &Path, progress: &dyn Progress) -> Result<(Record, Option<String>), ImageError> {
        let read = |source| ImageError::Read {
            path: path.to_owned(),
            source,
        };
        let found = fs::metadata(path).map_err(read)?;
        if found.is_dir() {
            return self.take_in_contents(&Layout::folder(path)?, progress);
        }
        let file = File::open(path).map_err(read)?;
        let seen = self
            .folder
            .join("archives")
            .join(hex_name(&seen_key(path, &file.metadata().map_err(read)?)));
        if let Some(known) = self.load::<Named>(&seen)?
            && let Some(record) = self.record(&known.digest)?
            && self.has_layers(&record)
        {
            return Ok((record, Some(known.name).filter(|name| !name.is_empty())));
        }
        let layout = Layout::archive(path, self.plain_archive(path, file)?)?;
        let (record, name) = self.take_in_contents(&layout, progress)?;
        let known = Named {
            name: name.clone().unwrap_or_default(),
            digest: record.digest.clone(),
        };
        self.save(&seen, &known)?;
        Ok((record, name))
    }

    fn take_in_contents(
        &self,
        layout: &Layout,
        progress: &dyn Progress,
    ) -> Result<(Record, Option<String>), ImageError> {
        let Contents {
            digest,
            name,
            layers,
            config,
            ..
        } = layout.contents()?;
        let next = AtomicUsize::new(0);
        let take = || {
            while let Some((n, blob)) =
                Some(next.fetch_add(1, Ordering::Relaxed)).and_then(|n| Some((n, layers.get(n)?)))
            {
                let heard = Heard {
                    fetching: &|done| progress.fetching(n + 1, layers.len(), done, blob.size),
                    unpacking: &|done| progress.unpacking(n + 1, layers.len(), done, blob.size),
                };
                if let Err(error) = self.unpack(blob, layout, &heard) {
                    // The others end with the layer that they are at.
                    next.store(layers.len(), Ordering::Relaxed);
                    return Err(error);
                }
            }
            Ok(())
        };
        std::thread::scope(|scope| {
            let others: Vec<_> = (1..layout.at_once().min(layers.len()))
                .map(|_| scope.spawn(take))
                .collect();
            let mut results = vec![take()];
            let ended = others.into_iter().map(|other| other.join());
            results.extend(ended.map(|result| result.expect("unpacking does not panic")));
            results.into_iter().collect::<Result<(), ImageError>>()
        })?;
        let record = Record {
            digest,
            layers: layers.into_iter().map(|blob| blob.diff_id).collect(),
            config,
        };
        self.save(&self.image_file(&record.digest), &record)?;
        Ok((record, name))
    }

    /// Unpacks one layer, unless it is there. However many ask at once, one does it and the others wait.
    fn unpack(&self, blob: &Blob, layout: &Layout, heard: &Heard<'_>) -> Result<(), ImageError> {
        let id = hex(&blob.diff_id);
        let (place, tmp) = (self.folder.join("layers").join(id), self.folder.join("tmp").join(id));
        if place.is_dir() {
            return Ok(());
        }
        let lock = self.lock_file(&format!("locks/{id}"))?;
        flock(&lock, FlockOperation::LockExclusive).map_err(|error| self.failed("locking a layer", error.into()))?;
        if place.is_dir() {
            return Ok(());
        }
        self.make_folder("layers")?;
        self.make_folder("tmp")?;
        if tmp.symlink_metadata().is_ok() {
            self.remove_tree(&tmp)?;
        }
        fs::create_dir(&tmp).map_err(|error| self.failed("making a folder for a layer", error))?;
        let unpacked = self.unpack_into(blob, layout, &tmp, heard);
        if let Err(error) = unpacked {
            self.remove_tree(&tmp)?;
            return Err(error);
        }
        // The name says that all of it is there, so it must be on the disk before the name is.
        let synced = File::open(&tmp).and_then(|folder| Ok(rustix::fs::syncfs(&folder)?));
        synced.map_err(|error| self.failed("writing a layer to the disk", error))?;
        fs::rename(&tmp, &place).map_err(|error| self.failed("putting a layer in its place", error))?;
        layout.unpacked(blob);
        Ok(())
    }

    fn unpack_into(&self, blob: &Blob, layout: &Layout, tmp: &Path, heard: &Heard<'_>) -> Result<(), ImageError> {
        let layer = |source| ImageError::Layer {
            diff_id: blob.diff_id.clone(),
            source,
        };
        let damaged = |error| layer(LayerError::Damaged(error));
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let folder = rustix::fs::open(tmp, flags, Mode::empty())
            .map_err(|error| self.failed("opening a folder", error.into()))?;
        rustix::fs::chmod(tmp, Mode::from_raw_mode(0o755))
            .map_err(|error| self.failed("making a folder", error.into()))?;
        let mut stored = Summed::new(Told {
            stream: layout.layer(blob, heard.fetching)?,
            heard: heard.unpacking,
            done: 0,
        });
        let diff_id = {
            let plain = decompressed(BufReader::with_capacity(256 * 1024, &mut stored)).map_err(damaged)?;
            let mut plain = Summed::new(plain);
            layer::unpack(&mut plain, folder, self.owner, CAPS).map_err(layer)?;
            plain.digest()
        };
        // What follows the compressed stream belongs to the blob and its digest.
        io::copy(&mut stored, &mut io::sink()).map_err(damaged)?;
        if stored.bytes != blob.size {
            return Err(ImageError::Content {
                what: "layer",
                why: format!("it has {} bytes, and {} were announced", stored.bytes, blob.size),
            });
        }
        if let Some(expected) = &blob.digest {
            let found = stored.digest();
            if *expected != found {
                return Err(ImageError::Digest {
                    what: "layer",
                    expected: expected.clone(),
                    found,
                });
            }
        }
        match diff_id == blob.diff_id {
            true => Ok(()),
            false => Err(ImageError::Digest {
                what: "unpacked layer",
                expected: blob.diff_id.clone(),
                found: diff_id,
            }),
        }
    }

    /// Layers are read by position, so a compressed archive is unpacked into a file without a name first.
    fn plain_archive(&self, path: &Path, file: File) -> Result<File, ImageError> {
        let read = |source| ImageError::Read {
            path: path.to_owned(),
            source,
        };
        let mut plain = decompressed(BufReader::new(file.try_clone().map_err(read)?)).map_err(read)?;
        if matches!(plain, Plain::Tar(_)) {
            let mut file = file;
            file.rewind().map_err(read)?;
            return Ok(file);
        }
        self.make_folder("tmp")?;
        let mut copy =
            tempfile::tempfile_in(self.folder.join("tmp")).map_err(|error| self.failed("making a file", error))?;
        let copied = io::copy(&mut plain.by_ref().take(CAPS.bytes + 1), &mut copy).map_err(read)?;
        if copied > CAPS.bytes {
            let why = format!("it has more than {} bytes when unpacked", CAPS.bytes);
            return Err(ImageError::NotAnImage {
                path: path.to_owned(),
                why,
            });
        }
        Ok(copy)
    }

    /// Whether no task runs an image; nobody can begin to while the whole store is held.
    fn is_free(&self, digest: &str) -> Result<bool, ImageError> {
        let name = format!("leases/{}", hex(digest));
        let lease = self.lock_file(&name)?;
        match flock(&lease, FlockOperation::NonBlockingLockExclusive) {
            Ok(()) => {
                let removed = fs::remove_file(self.folder.join(name));
                removed.map_err(|error| self.failed("removing a lock", error))?;
                Ok(true)
            }
            Err(rustix::io::Errno::WOULDBLOCK) => Ok(false),
            Err(error) => Err(self.failed("locking an image", error.into())),
        }
    }

    /// An image for a task. The lease on the store, under which its layers were seen, gives way to one on the image alone.
    fn image(&self, record: Record, whole: Lease) -> Result<Image, ImageError> {
        let file = self.lock_file(&format!("leases/{}", hex(&record.digest)))?;
        flock(&file, FlockOperation::LockShared).map_err(|error| self.failed("locking an image", error.into()))?;
        drop(whole);
        let lease = Lease(file);
        let folder = |id: &String| {
            let path = self.folder.join("layers").join(hex(id));
            HostPath::new(&path).map_err(|error| self.failed("naming a layer", io::Error::other(error)))
        };
        Ok(Image {
            kind: ImageKind::Layers,
            layers: record.layers.iter().map(folder).collect::<Result<_, _>>()?,
            digest: Some(record.digest),
            config: record.config,
            lease: Some(lease),
        })
    }

    fn has_layers(&self, record: &Record) -> bool {
        record
            .layers
            .iter()
            .all(|id| self.folder.join("layers").join(hex(id)).is_dir())
    }

    fn record(&self, digest: &str) -> Result<Option<Record>, ImageError> {
        self.load(&self.image_file(digest))
    }

    fn image_file(&self, digest: &str) -> PathBuf {
        self.folder.join("images").join(format!("{}.json", hex(digest)))
    }

    fn name_file(&self, name: &str) -> PathBuf {
        self.folder.join("names").join(hex_name(name))
    }

    fn set_name(&self, name: &str, digest: &str) -> Result<Named, ImageError> {
        if !is_image_name(name) {
            return Err(ImageError::Name { name: name.to_owned() });
        }
        let named = Named {
            name: name.to_owned(),
            digest: digest.to_owned(),
        };
        self.save(&self.name_file(name), &named)?;
        Ok(named)
    }

    pub(super) fn lease(&self) -> Result<Lease, ImageError> {
        let file = self.lock_file("lease")?;
        match flock(&file, FlockOperation::NonBlockingLockShared) {
            Ok(()) => Ok(Lease(file)),
            Err(rustix::io::Errno::WOULDBLOCK) => {
                // Somebody prunes; that ends by itself.
                flock(&file, FlockOperation::LockShared).map_err(|error| self.failed("locking it", error.into()))?;
                Ok(Lease(file))
            }
            Err(error) => Err(self.failed("locking it", error.into())),
        }
    }

    /// A folder for things in the making, on the file system of the store; pruning empties it.
    pub(super) fn scratch(&self) -> Result<PathBuf, ImageError> {
        self.make_folder("tmp")?;
        Ok(self.folder.join("tmp"))
    }

    /// A folder for layers that come from a registry.
    pub(super) fn blobs(&self) -> Result<PathBuf, ImageError> {
        self.make_folder("blobs")?;
        Ok(self.folder.join("blobs"))
    }
}

/// The hexadecimal part of a digest, which was checked where it was read.
fn hex(digest: &str) -> &str {
    digest.strip_prefix("sha256:").unwrap_or(digest)
}

/// A file name for any text.
fn hex_name(text: &str) -> String {
    format!("{}.json", hex(&Digest::of_bytes(text.as_bytes()).to_string()))
}

/// An archive that is the same in all of these was not changed; the change time is the kernel's and cannot be set back.
fn seen_key(path: &Path, found: &fs::Metadata) -> String {
    let parts: BTreeMap<&str, i128> = BTreeMap::from([
        ("dev", found.dev().into()),
        ("ino", found.ino().into()),
        ("size", found.size().into()),
        (
            "mtime",
            i128::from(found.mtime()) * 1_000_000_000 + i128::from(found.mtime_nsec()),
        ),
        (
            "ctime",
            i128::from(found.ctime()) * 1_000_000_000 + i128::from(found.ctime_nsec()),
        ),
    ]);
    format!("{} {parts:?}", path.display())
}
