//! Where a root file system comes from. [`resolve`] turns the words of a task spec into an [`Image`]: folders that are unpacked
//! and checked, lowest first, ready to be stacked.
//!
//! Called before a sandbox is planned. Stacking the layers, and the image `host`, which has none, are left to `sandbox`.
//!
//! ```text
//! OCI layout (folder, archive) ──┐
//! docker-save archive ───────────┤ layout.rs: index → manifest → config, every digest checked
//! registry, by pull.rs ──────────┘     │
//!                                      v
//!                layer.rs: tar → folder, nothing leaves it      store.rs: each layer once, by its diff id
//! ```
//!
//! All that an image holds is hostile: the archive, its names and links, its sizes, and its configuration.

pub mod build;
mod checked;
mod config;
mod layer;
mod layout;
pub mod pack;
pub mod pull;
mod store;

use std::io;
use std::path::PathBuf;

use crate::path::HostPath;
use crate::task::ImageRef;

pub use config::ImageConfig;
pub use layer::LayerError;
pub use store::{MOST_SAVED_BYTES, Named, Pruned, Store};

/// A root file system, ready to be stacked.
#[derive(Debug)]
pub struct Image {
    pub kind: ImageKind,
    /// Folders, lowest first, in the form that overlayfs reads: whiteouts are character devices 0/0, opaque folders carry
    /// `user.overlay.opaque` (mount with `userxattr`) and, when unpacked by root, `trusted.overlay.opaque` too.
    ///
    /// Unpacked by root, files have the owners of the image (0 to 65535), to be id-mapped; unpacked by an ordinary user,
    /// all files are the user's.
    pub layers: Vec<HostPath>,
    /// The digest of the manifest, `sha256:<hex>`; a folder has none.
    pub digest: Option<String>,
    pub config: ImageConfig,
    /// While it lives, nothing of the image is pruned.
    lease: Option<store::Lease>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ImageKind {
    /// Put together by `sandbox` from the machine's own files: no layers.
    Host,
    /// A stack of folders.
    Layers,
}

impl Image {
    /// Whether the image is held against pruning.
    pub fn is_leased(&self) -> bool {
        self.lease.is_some()
    }
}

/// Hears how far an unpacking is; for a line on the terminal.
pub trait Progress: Sync {
    /// Of layer `layer` (from 1) of `layers`, `done` of its `total` bytes came from a registry.
    fn fetching(&self, layer: usize, layers: usize, done: u64, total: u64);

    /// Layer `layer` (from 1) of `layers` has read `done` of its `total` bytes.
    fn unpacking(&self, layer: usize, layers: usize, done: u64, total: u64);
}

/// Hears nothing.
pub struct Silent;

impl Progress for Silent {
    fn fetching(&self, _: usize, _: usize, _: u64, _: u64) {}

    fn unpacking(&self, _: usize, _: usize, _: u64, _: u64) {}
}

#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    #[error("no image \"{name}\" in the local store (import or pull it first; a path begins with ./ or /)")]
    Unknown { name: String },
    #[error("\"{path}\" is not an OCI layout or an archive of one: {why}")]
    NotAnImage { path: PathBuf, why: String },
    #[error("\"{path}\" cannot be read")]
    Read { path: PathBuf, source: io::Error },
    #[error("the image has no manifest for {wanted}, only for {found}")]
    Platform { wanted: String, found: String },
    #[error("the layout holds several images ({names}), and nothing says which one is meant")]
    Several { names: String },
    #[error("the {what} of the image is wrong: {why}")]
    Content { what: &'static str, why: String },
    #[error("{what} {expected} of the image has other content: {found}")]
    Digest {
        what: &'static str,
        expected: String,
        found: String,
    },
    #[error("layer {diff_id} cannot be unpacked")]
    Layer { diff_id: String, source: LayerError },
    #[error("the image store in \"{path}\" cannot be used: {doing}")]
    Store {
        path: PathBuf,
        doing: &'static str,
        source: io::Error,
    },
    #[error("\"{reference}\" cannot be pulled")]
    Pull { reference: String, source: pull::PullError },
    #[error("an image is being taken into the store; try again when that is done")]
    InUse,
    #[error("\"{name}\" is not a name for an image")]
    Name { name: String },
}

/// Finds or unpacks an image; one that names its registry and is not in the store is pulled. Blocks on files and the network: call
/// it off the async threads. Whether the image is allowed was `config::admit`'s to say.
pub fn resolve(image: &ImageRef, store: &Store, progress: &dyn Progress) -> Result<Image, ImageError> {
    match image {
        ImageRef::Host => Ok(Image {
            kind: ImageKind::Host,
            layers: Vec::new(),
            digest: None,
            config: ImageConfig::default(),
            lease: None,
        }),
        ImageRef::Rootfs(folder) => Ok(Image {
            kind: ImageKind::Layers,
            layers: vec![folder.clone()],
            digest: None,
            config: ImageConfig::default(),
            lease: None,
        }),
        ImageRef::OciLayout(path) => store.unpacked(path, progress),
        ImageRef::Named(name) => match store.named(name) {
            Err(ImageError::Unknown { .. }) if pull::names_a_registry(name) => {
                store.pull(name, None, &pull::Access::default(), progress)?;
                store.named(name)
            }
            other => other,
        },
    }
}

#[cfg(test)]
mod tests;
