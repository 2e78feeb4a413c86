//! What an image is made of: an OCI image layout (a folder, or a tar of one), what `docker save` writes, or a registry's answers.
//!
//! Sources: <https://github.com/opencontainers/image-spec/blob/main/image-layout.md> and, for docker-save archives,
//! <https://github.com/moby/docker-image-spec>. Each blob is opened by its digest and read against it; nothing here trusts a
//! size, a name or a media type.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, BufReader, Read};
use std::os::fd::OwnedFd;
use std::path::{Component, Path, PathBuf};
use std::sync::Arc;

use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, MediaType, Os};
use rustix::fs::{CWD, Mode, OFlags, ResolveFlags, openat2};
use serde::Deserialize;

use super::checked::{Window, is_hex, parse, sha256_hex, small};
use super::{ImageConfig, ImageError};
use crate::policy::Digest;

/// An index may name indexes; real ones do so once.
const DEEPEST_INDEX: usize = 3;

/// Real images stay below 127, the bound of Docker's storage.
const MOST_LAYERS: usize = 500;

/// What a layout says about the image in it, digests of all small parts checked.
#[derive(Debug)]
pub(super) struct Contents {
    /// Of the manifest: `sha256:<hex>`.
    pub digest: String,
    /// All digests by which it is known somewhere: also of its configuration, and of the index that leads to it.
    pub ids: Vec<String>,
    /// The name that the layout gives the image, if any.
    pub name: Option<String>,
    pub layers: Vec<Blob>,
    pub config: ImageConfig,
}

/// A layer as it stands in a layout.
#[derive(Debug, Clone)]
pub(super) struct Blob {
    /// Of the layer as it is stored; absent in a docker-save archive, which does not say it.
    pub digest: Option<String>,
    /// Of the unpacked tar: the name under which it is kept.
    pub diff_id: String,
    pub size: u64,
    /// Where in the layout.
    file: PathBuf,
}

pub(super) struct Layout {
    path: PathBuf,
    source: Source,
}

enum Source {
    Folder(OwnedFd),
    /// A plain tar file, and where in it each file lies.
    Archive(Arc<File>, BTreeMap<PathBuf, Member>),
    Registry(Box<dyn Registry>),
}

/// What is fetched blob by blob. Nothing that it gives is believed: this module and the store check all of it.
pub(super) trait Registry: Sync {
    /// What the reference means: an index or a manifest, with its media type where the registry gives one.
    fn root(&self) -> Result<Vec<u8>, ImageError>;
    /// A manifest or index by its digest; a configuration.
    fn small(&self, what: &'static str, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError>;
    /// A layer, as a file of this machine; `heard` is told how much of it is there.
    fn layer(&self, digest: &str, size: u64, heard: &dyn Fn(u64)) -> Result<File, ImageError>;
    /// The layer is unpacked: what was kept of its packed form can go.
    fn unpacked(&self, digest: &str);
}

#[derive(Debug, Clone)]
enum Member {
    File {
        offset: u64,
        size: u64,
    },
    /// Old docker-save archives share layers by symlink.
    Link(PathBuf),
}

impl Layout {
    pub fn folder(path: &Path) -> Result<Layout, ImageError> {
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let folder = openat2(CWD, path, flags, Mode::empty(), ResolveFlags::NO_SYMLINKS);
        let folder = folder.map_err(|error| ImageError::Read {
            path: path.to_owned(),
            source: error.into(),
        })?;
        Ok(Layout {
            path: path.to_owned(),
            source: Source::Folder(folder),
        })
    }

    /// Reads the list of a plain tar file.
    pub fn archive(path: &Path, file: File) -> Result<Layout, ImageError> {
        let read = |source| ImageError::Read {
            path: path.to_owned(),
            source,
        };
        let file = Arc::new(file);
        let mut archive = tar::Archive::new(BufReader::new(Window {
            file: file.clone(),
            at: 0,
            end: u64::MAX,
        }));
        let mut members = BTreeMap::new();
        for entry in archive.entries().map_err(read)?.raw(true) {
            let entry = entry.map_err(read)?;
            let Some(name) = plain(&entry.path().map_err(read)?) else {
                continue;
            };
            let kind = entry.header().entry_type();
            let member = if kind.is_file() {
                Member::File {
                    offset: entry.raw_file_position(),
                    size: entry.size(),
                }
            } else if kind.is_symlink() {
                let target = entry
                    .link_name()
                    .map_err(read)?
                    .map(|link| name.parent().unwrap_or(Path::new("")).join(link));
                let Some(target) = target.and_then(|target| lexical(&target)) else {
                    continue;
                };
                Member::Link(target)
            } else {
                continue;
            };
            members.insert(name, member);
        }
        Ok(Layout {
            path: path.to_owned(),
            source: Source::Archive(file, members),
        })
    }

    pub fn registry(name: &str, registry: Box<dyn Registry>) -> Layout {
        Layout {
            path: PathBuf::from(name),
            source: Source::Registry(registry),
        }
    }

    /// How many layers are best taken in at once: a registry's answers take their time.
    pub fn at_once(&self) -> usize {
        match self.source {
            Source::Folder(_) | Source::Archive(..) => 1,
            Source::Registry(_) => 3,
        }
    }

    /// Finds the image in it for this machine.
    pub fn contents(&self) -> Result<Contents, ImageError> {
        if let Source::Registry(registry) = &self.source {
            return self.of_root(&registry.root()?);
        }
        if let Some((size, stream)) = self.open(Path::new("index.json"))? {
            let index: ImageIndex = self.json("index", None, size, stream)?;
            return self.of_index(&index, DEEPEST_INDEX);
        }
        if let Some((size, stream)) = self.open(Path::new("manifest.json"))? {
            let saved: Vec<Saved> = self.json("list of images", None, size, stream)?;
            return self.of_saved(saved);
        }
        Err(ImageError::NotAnImage {
            path: self.path.clone(),
            why: "it holds neither an \"index.json\" nor a \"manifest.json\"".to_owned(),
        })
    }

    /// The bytes of a layer, not checked yet. `fetching` hears how much of one that lies elsewhere is here.
    pub fn layer(&self, blob: &Blob, fetching: &dyn Fn(u64)) -> Result<Box<dyn Read>, ImageError> {
        if let (Source::Registry(registry), Some(digest)) = (&self.source, &blob.digest) {
            return Ok(Box::new(registry.layer(digest, blob.size, fetching)?));
        }
        match self.open(&blob.file)? {
            Some((_, stream)) => Ok(stream),
            None => Err(self.missing("layer", &blob.file)),
        }
    }

    /// The layer is unpacked.
    pub fn unpacked(&self, blob: &Blob) {
        if let (Source::Registry(registry), Some(digest)) = (&self.source, &blob.digest) {
            registry.unpacked(digest);
        }
    }

    /// What a registry answers to a name: an index of images for several machines, or one manifest.
    fn of_root(&self, bytes: &[u8]) -> Result<Contents, ImageError> {
        #[derive(Deserialize)]
        struct Either {
            manifests: Option<serde::de::IgnoredAny>,
        }
        let either: Either = parse("manifest", bytes)?;
        match either.manifests {
            Some(_) => self.of_index(&parse("index", bytes)?, DEEPEST_INDEX),
            None => self.of_manifest(&parse("manifest", bytes)?, Digest::of_bytes(bytes).to_string()),
        }
    }

    fn of_index(&self, index: &ImageIndex, depth: usize) -> Result<Contents, ImageError> {
        let usable: Vec<&Descriptor> = index
            .manifests()
            .iter()
            .filter(|manifest| is_manifest(manifest))
            .collect();
        let mine: Vec<&Descriptor> = usable
            .iter()
            .copied()
            .filter(|manifest| is_for_here(manifest))
            .collect();
        let manifest = match mine[..] {
            [manifest] => manifest,
            [] => {
                let found: Vec<String> = usable.iter().map(|manifest| platform(manifest)).collect();
                return Err(wrong_platform(found.join(", ")));
            }
            _ => {
                let names: Vec<String> = mine
                    .iter()
                    .map(|manifest| name(manifest).unwrap_or_else(|| manifest.digest().to_string()))
                    .collect();
                return Err(ImageError::Several {
                    names: names.join(", "),
                });
            }
        };
        let (size, stream) = self.blob(manifest, "manifest")?;
        if matches!(manifest.media_type(), MediaType::ImageIndex) || is_list(manifest.media_type()) {
            if depth == 0 {
                return Err(ImageError::Content {
                    what: "index",
                    why: "it leads to ever more indexes".to_owned(),
                });
            }
            let index: ImageIndex = self.json("index", Some(manifest), size, stream)?;
            let mut contents = self.of_index(&index, depth - 1)?;
            contents.ids.push(manifest.digest().to_string());
            return Ok(Contents {
                name: contents.name.or_else(|| name(manifest)),
                ..contents
            });
        }
        let text: ImageManifest = self.json("manifest", Some(manifest), size, stream)?;
        Ok(Contents {
            name: name(manifest),
            ..self.of_manifest(&text, manifest.digest().to_string())?
        })
    }

    fn of_manifest(&self, manifest: &ImageManifest, digest: String) -> Result<Contents, ImageError> {
        let (size, stream) = self.blob(manifest.config(), "configuration")?;
        let configuration: ImageConfiguration = self.json("configuration", Some(manifest.config()), size, stream)?;
        check_platform(&configuration)?;
        let diff_ids = diff_ids(&configuration)?;
        if diff_ids.len() != manifest.layers().len() {
            let why = format!(
                "it names {} layers and {} contents of layers",
                manifest.layers().len(),
                diff_ids.len()
            );
            return Err(ImageError::Content { what: "manifest", why });
        }
        let mut layers = Vec::new();
        for (layer, diff_id) in manifest.layers().iter().zip(diff_ids) {
            // CVE-2020-15157: such an address is the image maker's to choose, and who fetches from it shows where it stands.
            if layer.urls().as_ref().is_some_and(|urls| !urls.is_empty()) {
                return Err(ImageError::Content {
                    what: "manifest",
                    why: format!(
                        "the layer {} is said to lie at another address, where nothing is fetched",
                        layer.digest()
                    ),
                });
            }
            let blob = Blob {
                digest: Some(layer.digest().to_string()),
                diff_id,
                size: layer.size(),
                file: blob_file(layer)?,
            };
            layers.push(blob);
        }
        Ok(Contents {
            ids: vec![digest.clone(), manifest.config().digest().to_string()],
            digest,
            name: None,
            layers,
            config: image_config(&configuration)?,
        })
    }

    /// A docker-save archive has no manifest that a registry would know; its configuration's digest is its identity.
    fn of_saved(&self, saved: Vec<Saved>) -> Result<Contents, ImageError> {
        let [image] = &saved[..] else {
            let names: Vec<String> = saved.iter().flat_map(|image| image.tags().to_vec()).collect();
            return Err(ImageError::Several {
                names: names.join(", "),
            });
        };
        let file = |text: &str| {
            plain(Path::new(text)).ok_or_else(|| ImageError::Content {
                what: "list of images",
                why: format!("it names the file {text:?}"),
            })
        };
        let config = file(&image.config)?;
        let (size, stream) = self
            .open(&config)?
            .ok_or_else(|| self.missing("configuration", &config))?;
        let bytes = small("configuration", size, stream)?;
        let digest = Digest::of_bytes(&bytes).to_string();
        let named = config.file_stem().and_then(|stem| stem.to_str()).unwrap_or_default();
        if is_hex(named) && digest != format!("sha256:{named}") {
            return Err(ImageError::Digest {
                what: "configuration",
                expected: named.to_owned(),
                found: digest,
            });
        }
        let configuration: ImageConfiguration = parse("configuration", &bytes)?;
        let diff_ids = diff_ids(&configuration)?;
        if diff_ids.len() != image.layers.len() {
            let why = format!(
                "it names {} layers and {} contents of layers",
                image.layers.len(),
                diff_ids.len()
            );
            return Err(ImageError::Content {
                what: "list of images",
                why,
            });
        }
        check_platform(&configuration)?;
        let mut layers = Vec::new();
        for (layer, diff_id) in image.layers.iter().zip(diff_ids) {
            let file = file(layer)?;
            let size = self.open(&file)?.ok_or_else(|| self.missing("layer", &file))?.0;
            layers.push(Blob {
                digest: None,
                diff_id,
                size,
                file,
            });
        }
        Ok(Contents {
            ids: vec![digest.clone()],
            digest,
            name: image.tags().first().cloned(),
            layers,
            config: image_config(&configuration)?,
        })
    }

    fn blob(&self, descriptor: &Descriptor, what: &'static str) -> Result<Opened, ImageError> {
        let file = blob_file(descriptor)?;
        if let Source::Registry(registry) = &self.source {
            let bytes = registry.small(what, descriptor)?;
            return Ok((bytes.len() as u64, Box::new(io::Cursor::new(bytes))));
        }
        self.open(&file)?.ok_or_else(|| self.missing(what, &file))
    }

    fn json<T: for<'de> Deserialize<'de>>(
        &self,
        what: &'static str,
        descriptor: Option<&Descriptor>,
        size: u64,
        stream: Box<dyn Read>,
    ) -> Result<T, ImageError> {
        let bytes = small(what, size, stream)?;
        if let Some(descriptor) = descriptor {
            if descriptor.size() != bytes.len() as u64 {
                let why = format!("it has {} bytes, and {} were announced", bytes.len(), descriptor.size());
                return Err(ImageError::Content { what, why });
            }
            let (expected, found) = (descriptor.digest().to_string(), Digest::of_bytes(&bytes).to_string());
            if expected != found {
                return Err(ImageError::Digest { what, expected, found });
            }
        }
        parse(what, &bytes)
    }

    fn missing(&self, what: &'static str, file: &Path) -> ImageError {
        ImageError::Content {
            what,
            why: format!("the file \"{}\" is missing", file.display()),
        }
    }

    /// A file of the layout with its size, without following a symlink out of it.
    fn open(&self, name: &Path) -> Result<Option<Opened>, ImageError> {
        let read = |source: io::Error| ImageError::Read {
            path: self.path.join(name),
            source,
        };
        match &self.source {
            Source::Folder(folder) => {
                let resolve = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
                // Without O_NONBLOCK a pipe put in the place of a blob would hold us for ever.
                let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK;
                let file = match openat2(folder, name, flags, Mode::empty(), resolve) {
                    Err(rustix::io::Errno::NOENT) => return Ok(None),
                    opened => File::from(opened.map_err(|error| read(error.into()))?),
                };
                let found = file.metadata().map_err(read)?;
                if !found.is_file() {
                    return Err(read(io::Error::new(io::ErrorKind::InvalidInput, "not a file")));
                }
                Ok(Some((found.len(), Box::new(file))))
            }
            Source::Archive(file, members) => {
                let mut member = members.get(name);
                if let Some(Member::Link(target)) = member {
                    member = members.get(target);
                }
                match member {
                    Some(Member::File { offset, size }) => {
                        let end = offset.saturating_add(*size);
                        Ok(Some((
                            *size,
                            Box::new(Window {
                                file: file.clone(),
                                at: *offset,
                                end,
                            }),
                        )))
                    }
                    // One link may lead to a file, not to another link.
                    Some(Member::Link(_)) | None => Ok(None),
                }
            }
            Source::Registry(_) => Ok(None),
        }
    }
}

/// A file of a layout: its size and its bytes.
type Opened = (u64, Box<dyn Read>);

/// One image in the list of a docker-save archive.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

impl Saved {
    fn tags(&self) -> &[String] {
        self.repo_tags.as_deref().unwrap_or_default()
    }
}

fn blob_file(descriptor: &Descriptor) -> Result<PathBuf, ImageError> {
    let digest = descriptor.digest().to_string();
    let hex = sha256_hex(&digest).ok_or_else(|| ImageError::Content {
        what: "manifest",
        why: format!("its digest {digest:?} is not sha256:<64 hexadecimal digits>"),
    })?;
    Ok(Path::new("blobs/sha256").join(hex))
}

fn diff_ids(configuration: &ImageConfiguration) -> Result<Vec<String>, ImageError> {
    let ids = configuration.rootfs().diff_ids();
    let wrong = |why| ImageError::Content {
        what: "configuration",
        why,
    };
    if ids.len() > MOST_LAYERS || ids.is_empty() {
        return Err(wrong(format!(
            "it names {} layers (1 to {MOST_LAYERS} are expected)",
            ids.len()
        )));
    }
    match ids.iter().find(|id| sha256_hex(id).is_none()) {
        Some(id) => Err(wrong(format!(
            "the layer id {id:?} is not sha256:<64 hexadecimal digits>"
        ))),
        None => Ok(ids.clone()),
    }
}

fn image_config(configuration: &ImageConfiguration) -> Result<ImageConfig, ImageError> {
    ImageConfig::of(configuration).map_err(|why| ImageError::Content {
        what: "configuration",
        why,
    })
}

fn is_list(media_type: &MediaType) -> bool {
    media_type.as_ref() == "application/vnd.docker.distribution.manifest.list.v2+json"
}

/// Leaves out signatures, attestations and other things that an index may name.
fn is_manifest(descriptor: &Descriptor) -> bool {
    let attested = descriptor
        .annotations()
        .as_ref()
        .is_some_and(|all| all.contains_key("vnd.docker.reference.type"));
    let docker = descriptor.media_type().as_ref() == "application/vnd.docker.distribution.manifest.v2+json";
    let index = matches!(descriptor.media_type(), MediaType::ImageIndex) || is_list(descriptor.media_type());
    !attested && (docker || index || matches!(descriptor.media_type(), MediaType::ImageManifest))
}

/// OCI has Go's names of architectures.
pub(super) fn here() -> Arch {
    match std::env::consts::ARCH {
        "x86_64" => Arch::Amd64,
        "aarch64" => Arch::ARM64,
        "riscv64" => Arch::RISCV64,
        other => Arch::Other(other.to_owned()),
    }
}

/// A manifest without a platform is taken at its word until its configuration is read.
fn is_for_here(descriptor: &Descriptor) -> bool {
    descriptor
        .platform()
        .as_ref()
        .is_none_or(|platform| *platform.os() == Os::Linux && *platform.architecture() == here())
}

fn check_platform(configuration: &ImageConfiguration) -> Result<(), ImageError> {
    match *configuration.os() == Os::Linux && *configuration.architecture() == here() {
        true => Ok(()),
        false => Err(wrong_platform(format!(
            "{}/{}",
            configuration.os(),
            configuration.architecture()
        ))),
    }
}

fn wrong_platform(found: String) -> ImageError {
    ImageError::Platform {
        wanted: format!("linux/{}", here()),
        found: if found.is_empty() { "nothing".to_owned() } else { found },
    }
}

fn platform(descriptor: &Descriptor) -> String {
    match descriptor.platform() {
        Some(platform) => format!("{}/{}", platform.os(), platform.architecture()),
        None => "an unknown platform".to_owned(),
    }
}

fn name(descriptor: &Descriptor) -> Option<String> {
    let annotations = descriptor.annotations().as_ref()?;
    let names = ["io.containerd.image.name", "org.opencontainers.image.ref.name"];
    names.iter().find_map(|key| annotations.get(*key)).cloned()
}

/// A relative path without `.` and `..`, or nothing.
fn plain(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::CurDir => {}
            _ => return None,
        }
    }
    (!plain.as_os_str().is_empty()).then_some(plain)
}

fn lexical(path: &Path) -> Option<PathBuf> {
    let mut plain = PathBuf::new();
    for part in path.components() {
        match part {
            Component::Normal(name) => plain.push(name),
            Component::CurDir => {}
            Component::ParentDir if plain.pop() => {}
            _ => return None,
        }
    }
    Some(plain)
}
