//! A root file system as one archive, for engines that keep images of their own.

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata};
use std::io::{self, Read, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags};
use tar::{Builder, EntryType, Header};

use crate::path::HostPath;

/// Something that is added on top of the layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Extra {
    /// Without a slash at its beginning.
    pub path: PathBuf,
    pub what: ExtraKind,
    pub uid: u32,
    pub gid: u32,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum ExtraKind {
    /// Where a layer has a folder, that one stays as it is.
    Folder {
        mode: u32,
    },
    File {
        content: Vec<u8>,
        mode: u32,
    },
    Link {
        target: PathBuf,
    },
}

/// A file as it shows on top of a stack of layers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Top {
    File(Vec<u8>),
    Absent,
    /// A link, or behind one, or nothing that can be read: whoever looks for it inside may find something.
    Other,
}

/// Looks for a plain file in plain folders; at most so many bytes of it. Blocking.
pub fn top_file(layers: &[HostPath], path: &Path, most: u64) -> io::Result<Top> {
    for layer in layers.iter().rev() {
        let mut place = layer.as_path().to_owned();
        let mut hides = false;
        let mut parts = path.iter().peekable();
        while let Some(part) = parts.next() {
            place.push(part);
            let found = match fs::symlink_metadata(&place) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => break,
                other => other?,
            };
            match parts.peek() {
                Some(_) if found.is_dir() => hides |= is_opaque(&place),
                None if found.is_file() => return Ok(Top::File(read(&place, most)?)),
                _ if is_whiteout(&found) => return Ok(Top::Absent),
                _ => return Ok(Top::Other),
            }
        }
        if hides {
            break;
        }
    }
    Ok(Top::Absent)
}

fn read(place: &Path, most: u64) -> io::Result<Vec<u8>> {
    let flags = OFlags::RDONLY | OFlags::NOFOLLOW | OFlags::NONBLOCK | OFlags::CLOEXEC;
    let file = rustix::fs::open(place, flags, Mode::empty())?;
    let mut content = Vec::new();
    File::from(file).take(most).read_to_end(&mut content)?;
    Ok(content)
}

fn is_whiteout(metadata: &Metadata) -> bool {
    metadata.file_type().is_char_device() && metadata.rdev() == 0
}

/// Writes layers (lowest first, in overlayfs's form) and extras as one archive. Devices, FIFOs and sockets are left out, setuid and
/// setgid bits too. Blocking.
pub fn pack(layers: &[HostPath], extras: &[Extra], out: impl Write) -> io::Result<()> {
    let mut archive = Builder::new(out);
    archive.follow_symlinks(false);
    let mut done = BTreeSet::new();
    for extra in extras {
        let is_kept =
            |layer: &HostPath| fs::symlink_metadata(layer.as_ref().join(&extra.path)).is_ok_and(|one| one.is_dir());
        if matches!(extra.what, ExtraKind::Folder { .. }) && layers.iter().any(is_kept) {
            continue;
        }
        done.insert(extra.path.clone());
        add_extra(&mut archive, extra)?;
    }
    for layer in layers.iter().rev() {
        // What this layer hides counts for those below it only.
        let mut hidden = Vec::new();
        let layer: &Path = layer.as_ref();
        add_folder(&mut archive, layer, Path::new(""), &mut done, &mut hidden)?;
        done.extend(hidden);
    }
    archive.finish()
}

fn add_extra<W: Write>(archive: &mut Builder<W>, extra: &Extra) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_uid(extra.uid.into());
    header.set_gid(extra.gid.into());
    header.set_mtime(0);
    match &extra.what {
        ExtraKind::Folder { mode } => {
            header.set_entry_type(EntryType::Directory);
            header.set_mode(*mode);
            header.set_size(0);
            archive.append_data(&mut header, &extra.path, io::empty())
        }
        ExtraKind::File { content, mode } => {
            header.set_mode(*mode);
            header.set_size(content.len() as u64);
            archive.append_data(&mut header, &extra.path, content.as_slice())
        }
        ExtraKind::Link { target } => {
            header.set_entry_type(EntryType::Symlink);
            header.set_mode(0o777);
            header.set_size(0);
            archive.append_link(&mut header, &extra.path, target)
        }
    }
}

/// Whether an entry, or a folder above it, came from a higher layer as something that hides it.
fn is_hidden(path: &Path, done: &BTreeSet<PathBuf>) -> bool {
    path.ancestors().any(|above| done.contains(above))
}

fn add_folder<W: Write>(
    archive: &mut Builder<W>,
    layer: &Path,
    inside: &Path,
    done: &mut BTreeSet<PathBuf>,
    hidden: &mut Vec<PathBuf>,
) -> io::Result<()> {
    let mut entries = fs::read_dir(layer.join(inside))?.collect::<io::Result<Vec<_>>>()?;
    entries.sort_by_key(fs::DirEntry::file_name);
    for entry in entries {
        let path = inside.join(entry.file_name());
        if is_hidden(&path, done) {
            continue;
        }
        let metadata = fs::symlink_metadata(entry.path())?;
        let kind = metadata.file_type();
        if kind.is_dir() {
            if !done.contains(&marked(&path)) {
                done.insert(marked(&path));
                append(archive, &path, &metadata, EntryType::Directory, None)?;
            }
            if is_opaque(&entry.path()) {
                hidden.push(path.clone());
            }
            add_folder(archive, layer, &path, done, hidden)?;
            continue;
        }
        // A file, link or whiteout hides whatever is there below; so it is not to be looked at again.
        hidden.push(path.clone());
        if kind.is_symlink() {
            let target = fs::read_link(entry.path())?;
            append(archive, &path, &metadata, EntryType::Symlink, Some(&target))?;
        } else if kind.is_file() {
            append(archive, &path, &metadata, EntryType::Regular, Some(&entry.path()))?;
        }
        // Of a whiteout nothing is there.
    }
    Ok(())
}

/// A folder that was written already: those of all layers are one, and the highest says how it looks.
fn marked(path: &Path) -> PathBuf {
    Path::new("\0folder").join(path)
}

fn is_opaque(folder: &Path) -> bool {
    let mut value = [0; 1];
    ["user.overlay.opaque", "trusted.overlay.opaque"]
        .iter()
        .any(|name| rustix::fs::lgetxattr(folder, *name, &mut value).is_ok_and(|length| value[..length] == *b"y"))
}

/// `content` is a link's target or the file to read.
fn append<W: Write>(
    archive: &mut Builder<W>,
    path: &Path,
    metadata: &Metadata,
    kind: EntryType,
    content: Option<&Path>,
) -> io::Result<()> {
    let mut header = Header::new_gnu();
    header.set_entry_type(kind);
    header.set_mode(metadata.mode() & 0o1777);
    header.set_uid(metadata.uid().into());
    header.set_gid(metadata.gid().into());
    header.set_mtime(u64::try_from(metadata.mtime()).unwrap_or(0));
    header.set_size(0);
    debug_assert!(
        !path.as_os_str().as_bytes().contains(&0),
        "the kernel gives no such name"
    );
    match (kind, content) {
        (EntryType::Symlink, Some(target)) => archive.append_link(&mut header, path, target),
        (EntryType::Regular, Some(source)) => {
            let file = File::open(source)?;
            header.set_size(file.metadata()?.len());
            archive.append_data(&mut header, path, file)
        }
        _ => archive.append_data(&mut header, path, io::empty()),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    fn names(archive: &[u8]) -> Vec<String> {
        let mut archive = tar::Archive::new(archive);
        let entries = archive.entries().unwrap();
        entries
            .map(|entry| entry.unwrap().path().unwrap().to_str().unwrap().to_owned())
            .collect()
    }

    #[test]
    fn a_file_is_found_where_the_stack_shows_it_and_behind_no_link() {
        let place = tempfile::tempdir().unwrap();
        let layer = |name: &str| HostPath::new(place.path().join(name)).unwrap();
        let layers = [layer("low"), layer("high")];
        let top = |path: &str| top_file(&layers, Path::new(path), 3).unwrap();
        for folder in ["low/etc", "low/opaque", "high/etc", "high/opaque"] {
            fs::create_dir_all(place.path().join(folder)).unwrap();
        }
        for file in [
            "low/etc/low",
            "low/etc/both",
            "high/etc/both",
            "low/opaque/low",
            "low/file",
        ] {
            fs::write(place.path().join(file), file).unwrap();
        }
        symlink("etc", place.path().join("high/link")).unwrap();
        symlink("both", place.path().join("high/etc/link")).unwrap();
        let opaque = place.path().join("high/opaque");
        rustix::fs::setxattr(&opaque, "user.overlay.opaque", b"y", rustix::fs::XattrFlags::empty()).unwrap();
        assert_eq!(top("etc/low"), Top::File(b"low".to_vec()));
        assert_eq!(top("etc/both"), Top::File(b"hig".to_vec()));
        assert_eq!(top("etc/none"), Top::Absent);
        assert_eq!(top("opaque/low"), Top::Absent);
        for other in ["link/low", "etc/link", "file/below", "etc"] {
            assert_eq!(top(other), Top::Other, "{other}");
        }
    }

    #[test]
    fn the_highest_layer_wins_and_what_it_hides_is_gone() {
        let place = tempfile::tempdir().unwrap();
        let layer = |name: &str| HostPath::new(place.path().join(name)).unwrap();
        let write = |path: &str, text: &str| {
            let path = place.path().join(path);
            fs::create_dir_all(path.parent().unwrap()).unwrap();
            fs::write(path, text).unwrap();
        };
        write("low/etc/kept", "low");
        write("low/etc/changed", "low");
        write("low/opaque/gone", "low");
        write("high/etc/changed", "high");
        write("high/opaque/new", "high");
        symlink("etc", place.path().join("high/link")).unwrap();
        write("low/link/below", "low");
        rustix::fs::setxattr(
            place.path().join("high/opaque"),
            "user.overlay.opaque",
            b"y",
            rustix::fs::XattrFlags::empty(),
        )
        .unwrap();
        fs::set_permissions(place.path().join("low/etc/kept"), fs::Permissions::from_mode(0o4755)).unwrap();
        let extras = [
            Extra {
                path: "etc".into(),
                what: ExtraKind::Folder { mode: 0o755 },
                uid: 0,
                gid: 0,
            },
            Extra {
                path: "etc/hosts".into(),
                what: ExtraKind::File {
                    content: b"x".to_vec(),
                    mode: 0o644,
                },
                uid: 0,
                gid: 0,
            },
        ];
        let mut out = Vec::new();
        pack(&[layer("low"), layer("high")], &extras, &mut out).unwrap();
        let mut found = names(&out);
        found.sort();
        assert_eq!(
            found,
            [
                "etc",
                "etc/changed",
                "etc/hosts",
                "etc/kept",
                "link",
                "opaque",
                "opaque/new"
            ]
        );
        let mut archive = tar::Archive::new(out.as_slice());
        for entry in archive.entries().unwrap() {
            let mut entry = entry.unwrap();
            let path = entry.path().unwrap().to_path_buf();
            assert_eq!(entry.header().mode().unwrap() & 0o6000, 0, "{}", path.display());
            if path == Path::new("etc/changed") {
                let mut text = String::new();
                io::Read::read_to_string(&mut entry, &mut text).unwrap();
                assert_eq!(text, "high");
            }
        }
    }
}
