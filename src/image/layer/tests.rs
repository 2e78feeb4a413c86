//! Every way in which an archive tries to reach out of its folder or to cost too much, tried.

use std::fs;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};

use rustix::fs::lgetxattr;

use super::*;

/// A tar stream of entries of which some no honest tool writes.
#[derive(Default)]
struct Tar(Vec<u8>);

struct Entry<'e> {
    kind: EntryType,
    name: &'e str,
    link: &'e str,
    mode: u32,
    uid: u64,
    content: &'e [u8],
}

impl Default for Entry<'_> {
    fn default() -> Self {
        Entry {
            kind: EntryType::Regular,
            name: "",
            link: "",
            mode: 0o644,
            uid: 0,
            content: b"",
        }
    }
}

impl Tar {
    fn add(mut self, entry: Entry<'_>) -> Self {
        let mut header = tar::Header::new_gnu();
        header.as_old_mut().name[..entry.name.len()].copy_from_slice(entry.name.as_bytes());
        header.as_old_mut().linkname[..entry.link.len()].copy_from_slice(entry.link.as_bytes());
        header.set_entry_type(entry.kind);
        header.set_mode(entry.mode);
        header.set_uid(entry.uid);
        header.set_gid(entry.uid);
        header.set_mtime(1_000_000_000);
        header.set_size(entry.content.len() as u64);
        header.set_cksum();
        self.0.extend_from_slice(header.as_bytes());
        self.0.extend_from_slice(entry.content);
        self.0.resize(self.0.len().next_multiple_of(512), 0);
        self
    }

    fn file(self, name: &str, content: &str) -> Self {
        self.add(Entry {
            name,
            content: content.as_bytes(),
            ..Entry::default()
        })
    }

    fn folder(self, name: &str) -> Self {
        self.add(Entry {
            kind: EntryType::Directory,
            name,
            mode: 0o755,
            ..Entry::default()
        })
    }

    fn link(self, kind: EntryType, name: &str, link: &str) -> Self {
        self.add(Entry {
            kind,
            name,
            link,
            ..Entry::default()
        })
    }

    fn symlink(self, name: &str, link: &str) -> Self {
        self.link(EntryType::Symlink, name, link)
    }

    fn extension(self, kind: EntryType, content: &[u8]) -> Self {
        self.add(Entry {
            kind,
            name: "././@LongLink",
            content,
            ..Entry::default()
        })
    }

    fn pax(self, key: &str, value: &str) -> Self {
        let rest = format!(" {key}={value}\n");
        let mut length = rest.len() + 1;
        while format!("{length}{rest}").len() != length {
            length += 1;
        }
        self.extension(EntryType::XHeader, format!("{length}{rest}").as_bytes())
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 1024, 0);
        self.0
    }
}

/// A layer's folder beside a file that must stay as it is.
struct Place {
    _folder: tempfile::TempDir,
    layer: PathBuf,
    outside: PathBuf,
}

impl Place {
    fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let layer = folder.path().join("layer");
        let outside = folder.path().join("outside");
        fs::create_dir(&layer).unwrap();
        fs::write(&outside, "untouched").unwrap();
        Self {
            _folder: folder,
            layer,
            outside,
        }
    }

    fn unpack_with(&self, tar: Vec<u8>, owner: Owner, caps: Caps) -> Result<Skipped, LayerError> {
        let folder = rustix::fs::open(&self.layer, OFlags::PATH | OFlags::DIRECTORY, Mode::empty()).unwrap();
        let unpacked = unpack(&tar[..], folder, owner, caps);
        assert_eq!(fs::read_to_string(&self.outside).unwrap(), "untouched");
        let beside = fs::read_dir(self.layer.parent().unwrap()).unwrap().count();
        assert_eq!(beside, 2, "something was made outside of the layer");
        unpacked
    }

    fn unpack(&self, tar: Tar) -> Result<Skipped, LayerError> {
        self.unpack_with(tar.end(), Owner::Caller, CAPS)
    }

    fn read(&self, name: &str) -> String {
        fs::read_to_string(self.layer.join(name)).unwrap()
    }

    fn is_hidden(&self, name: &str) -> bool {
        let found = fs::symlink_metadata(self.layer.join(name)).unwrap();
        found.file_type().is_char_device() && found.rdev() == 0
    }

    fn is_opaque(&self, name: &str) -> bool {
        let mut value = [0; 8];
        lgetxattr(self.layer.join(name), "user.overlay.opaque", &mut value) == Ok(1) && value[0] == b'y'
    }
}

fn refusal(tar: Tar) -> String {
    Place::new().unpack(tar).unwrap_err().to_string()
}

#[test]
fn a_plain_layer_is_unpacked_as_it_is() {
    let place = Place::new();
    let tar = Tar::default()
        .folder("./")
        .add(Entry {
            kind: EntryType::Directory,
            name: "./read-only/",
            mode: 0o555,
            ..Entry::default()
        })
        .file("./read-only/file", "content")
        .file("made/by/itself", "x")
        .symlink("read-only/link", "/absolute/../target")
        .link(EntryType::Link, "hard", "./read-only/file");
    assert_eq!(place.unpack(tar).unwrap(), Skipped::default());
    assert_eq!(place.read("read-only/file"), "content");
    assert_eq!(place.read("hard"), "content");
    assert_eq!(
        fs::read_link(place.layer.join("read-only/link")).unwrap(),
        Path::new("/absolute/../target")
    );
    let (file, hard) = (
        fs::metadata(place.layer.join("read-only/file")).unwrap(),
        fs::metadata(place.layer.join("hard")).unwrap(),
    );
    assert_eq!(
        (file.ino(), file.mtime(), file.mode() & 0o7777),
        (hard.ino(), 1_000_000_000, 0o644)
    );
    assert_eq!(
        fs::metadata(place.layer.join("read-only")).unwrap().mtime(),
        1_000_000_000
    );
    assert_eq!(fs::metadata(place.layer.join("made/by")).unwrap().mode() & 0o777, 0o755);
}

#[test]
fn names_that_lead_out_are_refused() {
    for name in ["../outside", "a/../../outside", "..", "a/b/../../../outside"] {
        assert_eq!(
            refusal(Tar::default().file(name, "x")),
            format!("the entry {name:?} leads out of the layer")
        );
    }
    assert_eq!(
        refusal(Tar::default().file("/outside", "x")),
        "the entry \"/outside\" has an absolute name"
    );
    assert_eq!(
        refusal(Tar::default().file("", "x")),
        "the entry \"\" has no proper name"
    );
    assert_eq!(
        refusal(Tar::default().file("./", "").symlink("./", "/")),
        "the entry \"./\" takes the place of the layer's own folder"
    );
}

#[test]
fn names_of_extensions_are_held_to_the_same() {
    let long = Tar::default()
        .extension(EntryType::GNULongName, b"../outside\0")
        .file("x", "x");
    assert_eq!(refusal(long), "the entry \"../outside\" leads out of the layer");
    let pax = Tar::default().pax("path", "/outside").file("x", "x");
    assert_eq!(refusal(pax), "the entry \"/outside\" has an absolute name");
    let pax = Tar::default().pax("path", "a\0b").file("x", "x");
    assert_eq!(refusal(pax), "the entry \"a\\0b\" has no proper name");
    let pax = Tar::default()
        .pax("linkpath", "../outside")
        .link(EntryType::Link, "x", "y");
    assert_eq!(refusal(pax), "the entry \"x\" is a hard link out of the layer");
}

#[test]
fn nothing_is_written_through_a_symlink() {
    for target in ["..", "/", "../..", "sub"] {
        let tar = Tar::default()
            .folder("sub")
            .symlink("link", target)
            .file("link/outside", "x");
        assert_eq!(
            refusal(tar),
            "the entry \"link/outside\" goes through a symlink or a file",
            "{target}"
        );
    }
    let chain = Tar::default()
        .folder("a")
        .symlink("a/up", "..")
        .symlink("b", "a/up/..")
        .file("b/outside", "x");
    assert_eq!(
        refusal(chain),
        "the entry \"b/outside\" goes through a symlink or a file"
    );
    let file = Tar::default().file("file", "x").file("file/outside", "x");
    assert_eq!(
        refusal(file),
        "the entry \"file/outside\" goes through a symlink or a file"
    );
}

#[test]
fn a_file_takes_the_place_of_a_symlink_and_not_of_its_target() {
    let place = Place::new();
    let outside = place.outside.to_str().unwrap().to_owned();
    place
        .unpack(Tar::default().symlink("link", &outside).file("link", "inside"))
        .unwrap();
    assert_eq!(place.read("link"), "inside");
    assert!(!fs::symlink_metadata(place.layer.join("link")).unwrap().is_symlink());
}

#[test]
fn a_folder_takes_the_place_of_a_symlink_before_it_is_filled() {
    let place = Place::new();
    place
        .unpack(
            Tar::default()
                .symlink("link", "..")
                .folder("link")
                .file("link/outside", "inside"),
        )
        .unwrap();
    assert_eq!(place.read("link/outside"), "inside");
}

#[test]
fn hard_links_stay_in_the_layer() {
    let hard = |link: &str| {
        Tar::default()
            .folder("d")
            .symlink("up", "..")
            .link(EntryType::Link, "hard", link)
    };
    for link in ["../outside", "/etc/passwd", "d/../../outside"] {
        assert_eq!(
            refusal(hard(link)),
            "the entry \"hard\" is a hard link out of the layer",
            "{link}"
        );
    }
    assert_eq!(
        refusal(hard("up/outside")),
        "the entry \"hard\" is a hard link by way of a symlink"
    );
    assert_eq!(
        refusal(hard("absent")),
        "the entry \"hard\" is a hard link to what the layer does not hold"
    );
    assert_eq!(
        refusal(hard("d")),
        "the entry \"hard\" is a hard link to what is not a file"
    );
    assert_eq!(refusal(hard("hard")), "the entry \"hard\" is a hard link to itself");
}

#[test]
fn a_hard_link_to_a_symlink_is_not_a_way_to_its_target() {
    let place = Place::new();
    let outside = place.outside.to_str().unwrap().to_owned();
    let tar = Tar::default()
        .symlink("link", &outside)
        .link(EntryType::Link, "hard", "link")
        .file("hard", "inside");
    place.unpack(tar).unwrap();
    assert_eq!(place.read("hard"), "inside");
}

#[test]
fn devices_and_pipes_are_left_out() {
    let place = Place::new();
    let tar = Tar::default()
        .link(EntryType::Char, "dev/null", "")
        .link(EntryType::Block, "dev/sda", "")
        .link(EntryType::Fifo, "pipe", "")
        .file("file", "x");
    assert_eq!(place.unpack(tar).unwrap(), Skipped { devices: 3 });
    let names: Vec<_> = fs::read_dir(&place.layer)
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["file"]);
}

#[test]
fn setuid_setgid_and_sticky_bits_are_dropped() {
    let place = Place::new();
    let tar = Tar::default()
        .add(Entry {
            name: "su",
            mode: 0o6755,
            ..Entry::default()
        })
        .add(Entry {
            kind: EntryType::Directory,
            name: "shared",
            mode: 0o3777,
            ..Entry::default()
        });
    place.unpack(tar).unwrap();
    let mode = |name: &str| fs::metadata(place.layer.join(name)).unwrap().permissions().mode() & 0o7777;
    assert_eq!((mode("su"), mode("shared")), (0o755, 0o1777));
}

#[test]
fn attributes_of_an_archive_cannot_pass_for_overlayfs() {
    let place = Place::new();
    let tar = Tar::default().pax("SCHILY.xattr.user.overlay.opaque", "y").folder("d");
    place.unpack(tar).unwrap();
    assert!(!place.is_opaque("d"));
}

#[test]
fn whiteouts_hide_lower_names_in_the_form_of_overlayfs() {
    let place = Place::new();
    let tar = Tar::default()
        .file("etc/.wh.gone", "")
        .file("var/.wh..wh..opq", "")
        .file(".wh..wh.plnk", "")
        .file(".wh.again", "")
        .folder("again")
        .file(".wh.filled", "")
        .file("filled/file", "x")
        .folder("before")
        .file(".wh.before", "")
        .file("kept", "x")
        .file(".wh.kept", "");
    place.unpack(tar).unwrap();
    assert!(place.is_hidden("etc/gone"));
    assert!(
        place.is_opaque("var") && place.is_opaque("again") && place.is_opaque("filled") && place.is_opaque("before")
    );
    assert_eq!(
        (place.read("filled/file"), place.read("kept")),
        ("x".into(), "x".into())
    );
    assert!(!place.layer.join(".wh..wh.plnk").exists() && !place.is_opaque("etc"));
}

#[test]
fn a_whiteout_must_name_something_in_its_folder() {
    for name in [".wh.", ".wh..", ".wh...", "a/.wh..."] {
        assert_eq!(
            refusal(Tar::default().file(name, "")),
            format!("the entry {name:?} hides what has no name")
        );
    }
    let tar = Tar::default().symlink("link", "..").file("link/.wh.outside", "");
    assert_eq!(
        refusal(tar),
        "the entry \"link/.wh.outside\" goes through a symlink or a file"
    );
    let tar = Tar::default().symlink("link", "..").file("link/.wh..wh..opq", "");
    assert_eq!(
        refusal(tar),
        "the entry \"link/.wh..wh..opq\" goes through a symlink or a file"
    );
}

#[test]
fn of_duplicate_names_the_last_one_counts() {
    let place = Place::new();
    let tar = Tar::default()
        .file("a", "first")
        .file("a", "second")
        .folder("b")
        .file("b/inner", "x")
        .file("b", "a file now")
        .file("c", "x")
        .link(EntryType::Link, "d", "c")
        .file("d", "its own");
    place.unpack(tar).unwrap();
    let read = ["a", "b", "c", "d"].map(|name| place.read(name));
    assert_eq!(read, ["second", "a file now", "x", "its own"]);
}

#[test]
fn sparse_entries_are_refused() {
    let gnu = Tar::default().link(EntryType::GNUSparse, "huge", "");
    assert_eq!(refusal(gnu), "the entry \"huge\" is sparse");
    let pax = Tar::default()
        .pax("GNU.sparse.realsize", "9000000000000000000")
        .file("huge", "");
    assert!(refusal(pax).ends_with("is sparse"));
}

#[test]
fn a_layer_that_is_too_large_or_too_long_is_cut_off() {
    let caps = Caps {
        bytes: 64 * 1024,
        entries: 5,
    };
    let big = "x".repeat(128 * 1024);
    let error = Place::new()
        .unpack_with(Tar::default().file("big", &big).end(), Owner::Caller, caps)
        .unwrap_err();
    assert_eq!(error.to_string(), "the layer is larger than 65536 bytes when unpacked");
    let mut many = Tar::default();
    for n in 0..6 {
        many = many.file(&n.to_string(), "");
    }
    let error = Place::new().unpack_with(many.end(), Owner::Caller, caps).unwrap_err();
    assert_eq!(error.to_string(), "the layer has more than 5 entries");
    let mut padded = Tar::default().file("a", "").end();
    padded.resize(128 * 1024, 0);
    let error = Place::new().unpack_with(padded, Owner::Caller, caps).unwrap_err();
    assert_eq!(error.to_string(), "the layer is larger than 65536 bytes when unpacked");
}

#[test]
fn a_name_of_unheard_of_size_never_reaches_memory() {
    let name = "n".repeat(5000);
    let tar = Tar::default()
        .extension(EntryType::GNULongName, name.as_bytes())
        .file("x", "");
    assert!(refusal(tar).ends_with("has an extension of unheard-of size"));
    let deep = "d/".repeat(300);
    let tar = Tar::default().pax("path", &deep).folder("x");
    assert!(refusal(tar).ends_with("lies too deep"));
}

#[test]
fn an_archive_with_two_readings_is_refused() {
    let tar = Tar::default().pax("size", "0").file("x", "hidden in the content");
    assert_eq!(refusal(tar), "the entry \"x\" has two different sizes");
    let tar = Tar::default()
        .extension(EntryType::XGlobalHeader, b"17 path=../other\n")
        .file("x", "");
    assert!(refusal(tar).ends_with("sets names or sizes for all that follows"));
}

#[test]
fn a_cut_or_damaged_archive_is_refused() {
    let whole = Tar::default().file("file", &"x".repeat(2000)).end();
    for length in [100, 512, 600, 1500] {
        let cut = whole[..length].to_vec();
        let error = Place::new().unpack_with(cut, Owner::Caller, CAPS).unwrap_err();
        assert!(matches!(error, LayerError::Damaged(_)), "{length}: {error}");
    }
    let mut damaged = whole;
    damaged[3] ^= 1;
    assert!(matches!(
        Place::new().unpack_with(damaged, Owner::Caller, CAPS),
        Err(LayerError::Damaged(_))
    ));
    let pending = Tar::default().extension(EntryType::GNULongName, b"name");
    assert!(matches!(Place::new().unpack(pending), Err(LayerError::Damaged(_))));
}

#[test]
fn root_keeps_owners_within_the_range_of_a_sandbox() {
    if !rustix::process::geteuid().is_root() {
        eprintln!("skipped: only root can give files away");
        return;
    }
    let place = Place::new();
    let tar = Tar::default()
        .add(Entry {
            name: "mine",
            uid: 1000,
            mode: 0o4755,
            ..Entry::default()
        })
        .add(Entry {
            name: "beyond",
            uid: 100_000,
            ..Entry::default()
        })
        .add(Entry {
            kind: EntryType::Directory,
            name: "d",
            uid: 7,
            mode: 0o500,
            ..Entry::default()
        })
        .add(Entry {
            kind: EntryType::Symlink,
            name: "l",
            link: "x",
            uid: 8,
            ..Entry::default()
        })
        .file("d/.wh..wh..opq", "");
    place.unpack_with(tar.end(), Owner::Kept, CAPS).unwrap();
    let found = |name: &str| fs::symlink_metadata(place.layer.join(name)).unwrap();
    assert_eq!((found("mine").uid(), found("mine").mode() & 0o7777), (1000, 0o755));
    assert_eq!(found("beyond").uid(), 65_534);
    assert_eq!((found("d").uid(), found("d").mode() & 0o7777), (7, 0o500));
    assert_eq!(found("l").uid(), 8);
    let mut value = [0; 8];
    assert_eq!(
        lgetxattr(place.layer.join("d"), "trusted.overlay.opaque", &mut value),
        Ok(1)
    );
}

#[test]
fn a_tree_without_permissions_is_removed() {
    let place = Place::new();
    fs::create_dir_all(place.layer.join("a/b")).unwrap();
    fs::write(place.layer.join("a/b/file"), "").unwrap();
    std::os::unix::fs::symlink(&place.outside, place.layer.join("a/link")).unwrap();
    fs::set_permissions(place.layer.join("a/b"), fs::Permissions::from_mode(0o000)).unwrap();
    let parent = fs::File::open(place.layer.parent().unwrap()).unwrap();
    remove_folder(parent.as_fd(), Path::new("layer")).unwrap();
    assert!(!place.layer.exists());
    assert_eq!(fs::read_to_string(&place.outside).unwrap(), "untouched");
}
