use std::collections::BTreeMap;
use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::Mutex;

use serde_json::{Value, json};

use super::*;
use crate::policy::Digest;

/// An OCI layout in the making, whole or with something wrong about it.
#[derive(Default)]
pub(super) struct Maker {
    pub files: BTreeMap<String, Vec<u8>>,
}

#[derive(Clone, Copy)]
pub(super) enum Packing {
    Plain,
    Gzip,
    Zstd,
}

fn tar_of(files: &[(&str, &str)]) -> Vec<u8> {
    let mut tar = tar::Builder::new(Vec::new());
    for (name, content) in files {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        tar.append_data(&mut header, name, content.as_bytes()).unwrap();
    }
    tar.into_inner().unwrap()
}

fn packed(bytes: &[u8], packing: Packing) -> Vec<u8> {
    match packing {
        Packing::Plain => bytes.to_vec(),
        Packing::Gzip => {
            let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            gzip.write_all(bytes).unwrap();
            gzip.finish().unwrap()
        }
        Packing::Zstd => zstd::encode_all(bytes, 1).unwrap(),
    }
}

pub(super) fn architecture() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

impl Maker {
    /// One image of these layers.
    fn image(layers: &[(&[(&str, &str)], Packing)]) -> Self {
        let mut maker = Maker { files: BTreeMap::new() };
        let manifest = maker.manifest(layers, json!({ "Env": ["PATH=/image/bin"], "WorkingDir": "/app" }));
        maker.index(vec![manifest]);
        maker
    }

    pub fn blob(&mut self, bytes: Vec<u8>, media_type: &str) -> Value {
        let digest = Digest::of_bytes(&bytes).to_string();
        let size = bytes.len();
        self.files.insert(format!("blobs/sha256/{}", &digest[7..]), bytes);
        json!({ "mediaType": media_type, "digest": digest, "size": size })
    }

    pub fn manifest(&mut self, layers: &[(&[(&str, &str)], Packing)], config: Value) -> Value {
        let mut descriptors = Vec::new();
        let mut diff_ids = Vec::new();
        for (files, packing) in layers {
            let tar = tar_of(files);
            diff_ids.push(Digest::of_bytes(&tar).to_string());
            let blob = packed(&tar, *packing);
            descriptors.push(self.blob(blob, "application/vnd.oci.image.layer.v1.tar"));
        }
        let config = json!({
            "architecture": architecture(), "os": "linux", "config": config,
            "rootfs": { "type": "layers", "diff_ids": diff_ids },
        });
        let config = self.blob(
            config.to_string().into_bytes(),
            "application/vnd.oci.image.config.v1+json",
        );
        let manifest = json!({ "schemaVersion": 2, "config": config, "layers": descriptors });
        self.blob(
            manifest.to_string().into_bytes(),
            "application/vnd.oci.image.manifest.v1+json",
        )
    }

    fn index(&mut self, manifests: Vec<Value>) {
        let index = json!({ "schemaVersion": 2, "manifests": manifests });
        self.files.insert("index.json".into(), index.to_string().into_bytes());
        self.files
            .insert("oci-layout".into(), br#"{"imageLayoutVersion":"1.0.0"}"#.to_vec());
    }

    fn folder(&self, path: &Path) -> HostPath {
        for (name, bytes) in &self.files {
            let file = path.join(name);
            fs::create_dir_all(file.parent().unwrap()).unwrap();
            fs::write(file, bytes).unwrap();
        }
        HostPath::new(path).unwrap()
    }

    fn archive(&self, path: &Path, packing: Packing) -> HostPath {
        let mut tar = tar::Builder::new(Vec::new());
        for (name, bytes) in &self.files {
            let mut header = tar::Header::new_gnu();
            header.set_mode(0o644);
            header.set_size(bytes.len() as u64);
            tar.append_data(&mut header, format!("./{name}"), &bytes[..]).unwrap();
        }
        fs::write(path, packed(&tar.into_inner().unwrap(), packing)).unwrap();
        HostPath::new(path).unwrap()
    }
}

pub(super) struct Place {
    _folder: tempfile::TempDir,
    pub root: PathBuf,
    pub store: Store,
}

impl Place {
    pub fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let root = folder.path().canonicalize().unwrap();
        let store = Store::of_state(&root.join("state"));
        Self {
            _folder: folder,
            root,
            store,
        }
    }

    fn resolve(&self, path: &HostPath) -> Result<Image, ImageError> {
        resolve(&ImageRef::OciLayout(path.clone()), &self.store, &Silent)
    }

    fn refusal(&self, maker: &Maker) -> String {
        let folder = self.root.join("layout");
        let _ = fs::remove_dir_all(&folder);
        let error = self.resolve(&maker.folder(&folder)).unwrap_err();
        let rest: Vec<_> = fs::read_dir(self.root.join("state/images/tmp"))
            .into_iter()
            .flatten()
            .collect();
        assert!(rest.is_empty(), "an unpacking was left behind");
        texts_of(&error)
    }
}

/// An error with its causes.
pub(super) fn texts_of(error: &ImageError) -> String {
    let mut text = error.to_string();
    let mut source = std::error::Error::source(error);
    while let Some(cause) = source {
        text.push_str(&format!(": {cause}"));
        source = cause.source();
    }
    text
}

pub(super) const BASE: &[(&str, &str)] = &[("bin/sh", "shell"), ("etc/config", "base")];
pub(super) const TOP: &[(&str, &str)] = &[("etc/config", "top"), ("bin/.wh.sh", "")];

fn contents(image: &Image) -> Vec<String> {
    image
        .layers
        .iter()
        .map(|layer| fs::read_to_string(layer.join("etc/config").unwrap()).unwrap())
        .collect()
}

#[test]
fn a_layout_is_read_as_folder_and_as_archive_however_it_is_packed() {
    for packing in [Packing::Plain, Packing::Gzip, Packing::Zstd] {
        let place = Place::new();
        let maker = Maker::image(&[(BASE, packing), (TOP, packing)]);
        let folder = place.resolve(&maker.folder(&place.root.join("layout"))).unwrap();
        assert_eq!(contents(&folder), ["base", "top"]);
        assert_eq!(folder.config.env, [("PATH".to_owned(), "/image/bin".to_owned())]);
        assert!(folder.is_leased() && folder.kind == ImageKind::Layers);
        let archive = place
            .resolve(&maker.archive(&place.root.join("image.tar"), packing))
            .unwrap();
        assert_eq!((archive.digest, archive.layers), (folder.digest, folder.layers));
    }
}

#[test]
fn an_archive_seen_before_is_not_read_again_until_it_changes() {
    let place = Place::new();
    let path = place.root.join("image.tar.gz");
    let first = place
        .resolve(&Maker::image(&[(BASE, Packing::Gzip)]).archive(&path, Packing::Gzip))
        .unwrap();
    let times = fs::metadata(&path).unwrap().modified().unwrap();
    assert_eq!(
        place.resolve(&HostPath::new(&path).unwrap()).unwrap().digest,
        first.digest
    );
    let second = Maker::image(&[(TOP, Packing::Gzip)]).archive(&path, Packing::Gzip);
    File::options()
        .write(true)
        .open(&path)
        .unwrap()
        .set_modified(times)
        .unwrap();
    assert_ne!(place.resolve(&second).unwrap().digest, first.digest);
}

#[test]
fn what_does_not_have_its_digest_is_refused() {
    let place = Place::new();
    let whole = Maker::image(&[(BASE, Packing::Gzip)]);
    let blobs: Vec<String> = whole
        .files
        .keys()
        .filter(|name| name.starts_with("blobs/"))
        .cloned()
        .collect();
    assert_eq!(blobs.len(), 3);
    for name in blobs {
        let mut maker = Maker {
            files: whole.files.clone(),
        };
        let bytes = maker.files.get_mut(&name).unwrap();
        // White space at the end keeps JSON what it is and a gzip stream readable by most.
        bytes.push(b'\n');
        let refusal = place.refusal(&maker);
        assert!(
            ["has other content", "cannot be unpacked", "were announced"]
                .iter()
                .any(|why| refusal.contains(why)),
            "{refusal}"
        );
        maker.files.remove(&name);
        let refusal = place.refusal(&maker);
        assert!(refusal.contains("is missing"), "{refusal}");
    }
    assert!(place.resolve(&whole.folder(&place.root.join("layout"))).is_ok());
}

#[test]
fn a_layer_that_unpacks_to_something_else_is_refused() {
    let place = Place::new();
    let mut maker = Maker { files: BTreeMap::new() };
    let layer = maker.blob(tar_of(BASE), "application/vnd.oci.image.layer.v1.tar");
    let other = Digest::of_bytes(b"something else").to_string();
    let config =
        json!({ "architecture": architecture(), "os": "linux", "rootfs": { "type": "layers", "diff_ids": [other] } });
    let config = maker.blob(
        config.to_string().into_bytes(),
        "application/vnd.oci.image.config.v1+json",
    );
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] })
        .to_string()
        .into_bytes();
    let manifest = maker.blob(manifest, "application/vnd.oci.image.manifest.v1+json");
    maker.index(vec![manifest]);
    assert!(
        place
            .refusal(&maker)
            .starts_with(&format!("unpacked layer {other} of the image has other content"))
    );
}

#[test]
fn the_manifest_for_this_machine_is_chosen() {
    let place = Place::new();
    let mut maker = Maker { files: BTreeMap::new() };
    let mut mine = maker.manifest(&[(BASE, Packing::Plain)], json!({}));
    let mut other = maker.manifest(&[(TOP, Packing::Plain)], json!({}));
    mine["platform"] = json!({ "os": "linux", "architecture": architecture() });
    other["platform"] = json!({ "os": "linux", "architecture": "s390x" });
    let inner = json!({ "schemaVersion": 2, "manifests": [other, mine] })
        .to_string()
        .into_bytes();
    let inner = maker.blob(inner, "application/vnd.oci.image.index.v1+json");
    maker.index(vec![inner]);
    let image = place.resolve(&maker.folder(&place.root.join("inner"))).unwrap();
    assert_eq!(contents(&image), ["base"]);
    maker.index(vec![other.clone()]);
    let refusal = place.refusal(&maker);
    assert_eq!(
        refusal,
        format!(
            "the image has no manifest for linux/{}, only for linux/s390x",
            architecture()
        )
    );
    other["platform"] = json!({ "os": "linux", "architecture": architecture() });
    maker.index(vec![mine, other]);
    assert!(
        place
            .refusal(&maker)
            .starts_with("the layout holds several images (sha256:")
    );
}

#[test]
fn an_index_that_leads_in_circles_or_to_nonsense_is_refused() {
    let place = Place::new();
    let mut maker = Maker { files: BTreeMap::new() };
    let mut inner = maker.manifest(&[(BASE, Packing::Plain)], json!({}));
    for _ in 0..5 {
        let index = json!({ "schemaVersion": 2, "manifests": [inner] })
            .to_string()
            .into_bytes();
        inner = maker.blob(index, "application/vnd.oci.image.index.v1+json");
    }
    maker.index(vec![inner]);
    assert_eq!(
        place.refusal(&maker),
        "the index of the image is wrong: it leads to ever more indexes"
    );
    for digest in ["sha256:../../../../etc/passwd", "md5:00", "sha256:AB"] {
        maker.index(vec![
            json!({ "mediaType": "application/vnd.oci.image.manifest.v1+json", "digest": digest, "size": 2 }),
        ]);
        let refusal = place.refusal(&maker);
        assert!(
            refusal.starts_with("the index of the image is wrong") || refusal.starts_with("the manifest of"),
            "{refusal}"
        );
    }
    maker.files.insert("index.json".into(), b"{".to_vec());
    assert!(place.refusal(&maker).starts_with("the index of the image is wrong: "));
    maker.files.insert("index.json".into(), vec![b' '; 5 << 20]);
    assert!(place.refusal(&maker).contains("which no real one has"));
}

#[test]
fn a_layout_does_not_lead_to_files_outside_of_it() {
    let place = Place::new();
    let maker = Maker::image(&[(BASE, Packing::Plain)]);
    let folder = maker.folder(&place.root.join("layout"));
    for name in ["index.json", "blobs"] {
        let from = folder.join(name).unwrap();
        let to = place.root.join(format!("moved-{name}"));
        fs::rename(&from, &to).unwrap();
        std::os::unix::fs::symlink(&to, &from).unwrap();
        let error = place.resolve(&folder).unwrap_err();
        assert!(matches!(error, ImageError::Read { .. }), "{error}");
        fs::remove_file(&from).unwrap();
        fs::rename(&to, &from).unwrap();
    }
    assert!(place.resolve(&folder).is_ok());
}

#[test]
fn a_hostile_layer_or_configuration_leaves_nothing_in_the_store() {
    let place = Place::new();
    let mut maker = Maker { files: BTreeMap::new() };
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.as_old_mut().name[..5].copy_from_slice(b"../up");
    header.set_size(0);
    header.set_cksum();
    tar.append(&header, &[][..]).unwrap();
    let tar = tar.into_inner().unwrap();
    let diff_id = Digest::of_bytes(&tar).to_string();
    let layer = maker.blob(tar, "application/vnd.oci.image.layer.v1.tar");
    let config =
        json!({ "architecture": architecture(), "os": "linux", "rootfs": { "type": "layers", "diff_ids": [diff_id] } });
    let config = maker.blob(
        config.to_string().into_bytes(),
        "application/vnd.oci.image.config.v1+json",
    );
    let manifest = json!({ "schemaVersion": 2, "config": config, "layers": [layer] })
        .to_string()
        .into_bytes();
    let manifest = maker.blob(manifest, "application/vnd.oci.image.manifest.v1+json");
    maker.index(vec![manifest]);
    let refusal = place.refusal(&maker);
    assert_eq!(
        refusal,
        format!("layer {diff_id} cannot be unpacked: the entry \"../up\" leads out of the layer")
    );
    assert!(!place.root.join("state/images/up").exists());
    let mut maker = Maker { files: BTreeMap::new() };
    let manifest = maker.manifest(&[(BASE, Packing::Plain)], json!({ "WorkingDir": "/proc/self/fd/9" }));
    maker.index(vec![manifest]);
    let refusal = place.refusal(&maker);
    assert_eq!(
        refusal,
        "the configuration of the image is wrong: its folder of work is \"/proc/self/fd/9\""
    );
}

/// Counts the beginnings of unpackings.
#[derive(Default)]
struct Begun(Mutex<Vec<(usize, usize)>>);

impl Progress for Begun {
    fn fetching(&self, _: usize, _: usize, _: u64, _: u64) {}

    fn unpacking(&self, layer: usize, layers: usize, done: u64, total: u64) {
        assert!(done <= total);
        if done == total {
            let mut begun = self.0.lock().unwrap();
            if begun.last() != Some(&(layer, layers)) {
                begun.push((layer, layers));
            }
        }
    }
}

#[test]
fn ten_at_once_unpack_a_layer_once() {
    let place = Place::new();
    let big = "x".repeat(3 << 20);
    let files = [("etc/config", "base"), ("big", big.as_str())];
    let layout = Maker::image(&[(&files, Packing::Gzip)]).folder(&place.root.join("layout"));
    let progress = Begun::default();
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| {
                let image = resolve(&ImageRef::OciLayout(layout.clone()), &place.store, &progress).unwrap();
                assert_eq!(contents(&image), ["base"]);
            });
        }
    });
    assert_eq!(*progress.0.lock().unwrap(), [(1, 1)]);
}

#[test]
fn an_unpacking_that_was_cut_off_is_begun_again() {
    let place = Place::new();
    let layout = Maker::image(&[(BASE, Packing::Plain)]).folder(&place.root.join("layout"));
    let id = Digest::of_bytes(&tar_of(BASE)).to_string();
    let stale = place.root.join("state/images/tmp").join(&id[7..]);
    fs::create_dir_all(stale.join("etc")).unwrap();
    fs::write(stale.join("etc/rubbish"), "").unwrap();
    let image = place.resolve(&layout).unwrap();
    assert!(!image.layers[0].join("etc/rubbish").unwrap().as_path().exists());
    assert!(!stale.exists());
}

#[test]
fn an_imported_image_has_a_name_until_it_is_removed_and_pruned() {
    let place = Place::new();
    let layout = Maker::image(&[(BASE, Packing::Plain)]).folder(&place.root.join("layout"));
    let other = Maker::image(&[(TOP, Packing::Plain)]).folder(&place.root.join("other"));
    let named = place.store.import(&layout, Some("base:1"), &Silent).unwrap();
    place.store.import(&other, Some("other"), &Silent).unwrap();
    let image = resolve(&ImageRef::Named("base:1".into()), &place.store, &Silent).unwrap();
    assert_eq!(
        (contents(&image), image.digest.as_ref()),
        (vec!["base".to_owned()], Some(&named.digest))
    );
    let names: Vec<String> = place
        .store
        .names()
        .unwrap()
        .into_iter()
        .map(|named| named.name)
        .collect();
    assert_eq!(names, ["base:1", "other"]);
    place.store.remove("other").unwrap();
    // Without a name it lives as long as it is run.
    place.store.remove("base:1").unwrap();
    let base = image.layers[0].clone();
    assert_eq!(place.store.prune().unwrap(), Pruned { images: 1, layers: 1 });
    assert!(base.as_path().is_dir());
    drop(image);
    let taking_in = place.store.lease().unwrap();
    assert!(matches!(place.store.prune(), Err(ImageError::InUse)));
    drop(taking_in);
    assert_eq!(place.store.prune().unwrap(), Pruned { images: 1, layers: 1 });
    assert!(!base.as_path().exists());
    let error = resolve(&ImageRef::Named("other".into()), &place.store, &Silent).unwrap_err();
    assert!(error.to_string().starts_with("no image \"other\" in the local store"));
    assert!(matches!(place.store.remove("other"), Err(ImageError::Unknown { .. })));
    assert!(matches!(
        place.store.import(&layout, Some("../x"), &Silent),
        Err(ImageError::Name { .. })
    ));
    assert!(matches!(
        place.store.import(&layout, None, &Silent),
        Err(ImageError::Name { .. })
    ));
}

#[test]
fn what_docker_saved_is_read_with_its_name() {
    let place = Place::new();
    let tar = tar_of(BASE);
    let diff_id = Digest::of_bytes(&tar).to_string();
    let config =
        json!({ "architecture": architecture(), "os": "linux", "rootfs": { "type": "layers", "diff_ids": [diff_id] } });
    let config = config.to_string().into_bytes();
    let digest = Digest::of_bytes(&config).to_string();
    let saved = json!([{ "Config": format!("{}.json", &digest[7..]), "RepoTags": ["team/base:2"], "Layers": ["abc/layer.tar"] }]);
    let mut files = BTreeMap::from([
        ("manifest.json".to_owned(), saved.to_string().into_bytes()),
        (format!("{}.json", &digest[7..]), config),
        ("abc/layer.tar".to_owned(), tar),
    ]);
    let archive = Maker { files: files.clone() }.archive(&place.root.join("saved.tar"), Packing::Plain);
    let named = place.store.import(&archive, None, &Silent).unwrap();
    assert_eq!((named.name.as_str(), &named.digest), ("team/base:2", &digest));
    assert_eq!(contents(&place.store.named("team/base:2").unwrap()), ["base"]);
    files.get_mut(&format!("{}.json", &digest[7..])).unwrap().push(b' ');
    let archive = Maker { files }.archive(&place.root.join("changed.tar"), Packing::Plain);
    let error = place.store.import(&archive, None, &Silent).unwrap_err();
    assert!(error.to_string().contains("has other content"), "{error}");
}

#[test]
fn a_file_that_is_no_image_says_what_is_missing() {
    let place = Place::new();
    let path = place.root.join("x.tar");
    fs::write(&path, tar_of(&[("a", "b")])).unwrap();
    let error = place.resolve(&HostPath::new(&path).unwrap()).unwrap_err().to_string();
    assert!(
        error.ends_with("it holds neither an \"index.json\" nor a \"manifest.json\""),
        "{error}"
    );
    fs::write(&path, b"no tar at all, whatever its name says").unwrap();
    assert!(matches!(
        place.resolve(&HostPath::new(&path).unwrap()),
        Err(ImageError::Read { .. } | ImageError::NotAnImage { .. })
    ));
}

#[test]
fn a_folder_and_the_host_need_no_store() {
    let place = Place::new();
    let host = resolve(&ImageRef::Host, &place.store, &Silent).unwrap();
    assert_eq!((host.kind, host.layers.len()), (ImageKind::Host, 0));
    let folder = HostPath::new(&place.root).unwrap();
    let image = resolve(&ImageRef::Rootfs(folder.clone()), &place.store, &Silent).unwrap();
    assert_eq!((image.layers, image.digest), (vec![folder], None));
    assert!(!place.root.join("state").exists());
}
