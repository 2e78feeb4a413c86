//! A root file system as one archive, for engines that keep images of their own.

use std::collections::BTreeSet;
use std::fs::{self, File, Metadata};
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::path::{Path, PathBuf};

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
        } else if kind.is_char_device() && metadata.rdev() == 0 {
            // A whiteout: nothing of it is there.
        }
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
