//! One layer: from a tar stream to a folder that overlayfs reads.
//!
//! The stream is hostile. Names are taken apart here and opened beneath the folder's descriptor without following any symlink
//! (`openat2`, `RESOLVE_BENEATH | RESOLVE_NO_SYMLINKS`), so that no name, link or order of entries reaches outside. What a layer
//! may do is listed; everything else is refused, devices and pipes are left out, for the sandbox makes its own.
//!
//! The format's extensions are read here too, not by the tar library, which takes a name of any length into memory and blows
//! sparse entries up. OCI image-spec, layer.md: sparse files should not be used, and here they are refused.

mod header;

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{
    AtFlags, FileType, Gid, Mode, OFlags, ResolveFlags, Timestamps, Uid, XattrFlags, chmodat, chownat, fchmod, fchown,
    fsetxattr, futimens, linkat, mkdirat, mknodat, openat2, statat, symlinkat, unlinkat, utimensat,
};
use rustix::io::Errno;
use tar::EntryType;

use header::{Extension, Header, LONGEST_NAME, inside};

/// What a layer may cost.
#[derive(Debug, Clone, Copy)]
pub(super) struct Caps {
    /// Of the stream, unpacked: what is beyond was made to fill a disk.
    pub bytes: u64,
    pub entries: u64,
}

/// The largest layers of real images (machine learning) have some 10 GiB and 300,000 files.
pub(super) const CAPS: Caps = Caps {
    bytes: 64 << 30,
    entries: 4_000_000,
};

#[derive(Debug, thiserror::Error)]
pub enum LayerError {
    #[error("the entry {name:?} {why}")]
    Entry { name: String, why: &'static str },
    #[error("the archive is damaged")]
    Damaged(#[source] io::Error),
    #[error("the layer has more than {0} entries")]
    Entries(u64),
    #[error("the layer is larger than {0} bytes when unpacked")]
    Bytes(u64),
    #[error("the entry {name:?} cannot be written")]
    Write { name: String, source: io::Error },
    #[error("the file system of the store keeps no \"user.*\" attributes, which hidden folders need")]
    Attributes,
}

/// What was left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) struct Skipped {
    pub devices: u64,
}

/// Who the files belong to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Owner {
    /// As the layer says: for root.
    Kept,
    /// The caller, and every folder can be entered by them, or they could never remove it.
    Caller,
}

/// Unpacks a tar stream into an empty folder, and reads the stream to its end.
pub(super) fn unpack(stream: impl Read, folder: OwnedFd, owner: Owner, caps: Caps) -> Result<Skipped, LayerError> {
    let mut archive = tar::Archive::new(Capped {
        stream,
        left: caps.bytes,
    });
    let mut unpacking = Unpacking {
        root: folder,
        owner,
        parent: None,
        folders: Vec::new(),
        hidden: BTreeSet::new(),
        skipped: Skipped::default(),
    };
    let damaged = |error: io::Error| match error.kind() {
        io::ErrorKind::FileTooLarge => LayerError::Bytes(caps.bytes),
        _ => LayerError::Damaged(error),
    };
    let mut extension = Extension::default();
    let mut count = 0;
    for entry in archive.entries().map_err(damaged)?.raw(true) {
        let mut entry = entry.map_err(damaged)?;
        count += 1;
        if count > caps.entries {
            return Err(LayerError::Entries(caps.entries));
        }
        if extension
            .take(&mut entry)
            .map_err(|error| error.unless_too_large(caps))?
        {
            continue;
        }
        let header = Header::read(&entry, std::mem::take(&mut extension))?;
        unpacking
            .entry(&header, &mut entry)
            .map_err(|error| error.unless_too_large(caps))?;
    }
    if extension.is_pending() {
        return Err(LayerError::Damaged(io::ErrorKind::UnexpectedEof.into()));
    }
    // The digest is over all bytes, so those after the end mark count.
    io::copy(&mut archive.into_inner(), &mut io::sink()).map_err(damaged)?;
    unpacking.finish()
}

impl LayerError {
    fn unless_too_large(self, caps: Caps) -> LayerError {
        match self {
            LayerError::Damaged(error) | LayerError::Write { source: error, .. }
                if error.kind() == io::ErrorKind::FileTooLarge && error.raw_os_error().is_none() =>
            {
                LayerError::Bytes(caps.bytes)
            }
            other => other,
        }
    }
}

/// A stream that fails with `FileTooLarge` beyond its cap.
struct Capped<R> {
    stream: R,
    left: u64,
}

impl<R: Read> Read for Capped<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer)?;
        self.left = self.left.checked_sub(read as u64).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(read)
    }
}

struct Unpacking {
    root: OwnedFd,
    owner: Owner,
    /// The folder of the last entry: archives go folder by folder.
    parent: Option<(PathBuf, OwnedFd)>,
    /// Folders get their modes and times at the end, or a read-only one could not be filled.
    folders: Vec<(PathBuf, u32, u32, u32, Timestamps)>,
    /// Names that the layer hides in the layers below.
    hidden: BTreeSet<PathBuf>,
    skipped: Skipped,
}

impl Unpacking {
    fn entry<R: Read>(&mut self, header: &Header, content: &mut tar::Entry<'_, R>) -> Result<(), LayerError> {
        let (Some(folder), Some(name)) = (header.path.parent(), header.path.file_name()) else {
            return match header.kind {
                EntryType::Directory => {
                    self.remember(header);
                    Ok(())
                }
                _ => Err(header.refused("takes the place of the layer's own folder")),
            };
        };
        if let Some(hidden) = name.as_bytes().strip_prefix(b".wh.") {
            return self.whiteout(header, folder, hidden);
        }
        match header.kind {
            EntryType::Char | EntryType::Block | EntryType::Fifo => {
                self.skipped.devices += 1;
                return Ok(());
            }
            EntryType::Directory => return self.folder(header),
            EntryType::Regular | EntryType::Continuous | EntryType::Link | EntryType::Symlink => {}
            EntryType::GNUSparse => return Err(header.refused("is sparse")),
            _ => return Err(header.refused("is of an unknown kind")),
        }
        if header.kind == EntryType::Link {
            return self.hard_link(header);
        }
        let parent = self.parent(header, folder)?;
        self.clear(header)?;
        let name = Path::new(name);
        match header.kind {
            EntryType::Symlink => self.symlink(header, &parent, name),
            _ => self.file(header, &parent, name, content),
        }
    }

    fn file<R: Read>(
        &self,
        header: &Header,
        parent: &OwnedFd,
        name: &Path,
        content: &mut tar::Entry<'_, R>,
    ) -> Result<(), LayerError> {
        let flags = OFlags::CREATE | OFlags::EXCL | OFlags::WRONLY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let file = rustix::fs::openat(parent, name, flags, Mode::from_raw_mode(0o600))
            .map_err(|error| header.unwritten(error))?;
        let mut file = File::from(file);
        let mut written = 0;
        let mut buffer = vec![0; header.size.clamp(1, 128 * 1024) as usize];
        loop {
            let read = content.read(&mut buffer).map_err(LayerError::Damaged)?;
            if read == 0 {
                break;
            }
            io::Write::write_all(&mut file, &buffer[..read]).map_err(|error| header.unwritten(error))?;
            written += read as u64;
        }
        if written != header.size {
            return Err(LayerError::Damaged(io::ErrorKind::UnexpectedEof.into()));
        }
        if self.owner == Owner::Kept {
            fchown(&file, Some(Uid::from_raw(header.uid)), Some(Gid::from_raw(header.gid)))
                .map_err(|error| header.unwritten(error))?;
        }
        // No setuid, setgid or sticky bit: nobody gains by a file of an image.
        fchmod(&file, Mode::from_raw_mode(header.mode & 0o777)).map_err(|error| header.unwritten(error))?;
        futimens(&file, &header.times()).map_err(|error| header.unwritten(error))
    }

    fn symlink(&self, header: &Header, parent: &OwnedFd, name: &Path) -> Result<(), LayerError> {
        if header.link.is_empty() || header.link.len() as u64 > LONGEST_NAME || header.link.contains(&0) {
            return Err(header.refused("is a symlink to nothing"));
        }
        // The target stays as it is: inside the sandbox it is seen from the sandbox's root, here nothing follows it.
        let target = std::ffi::OsStr::from_bytes(&header.link);
        symlinkat(target, parent, name).map_err(|error| header.unwritten(error))?;
        if self.owner == Owner::Kept {
            let (uid, gid) = (Uid::from_raw(header.uid), Gid::from_raw(header.gid));
            chownat(parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)
                .map_err(|error| header.unwritten(error))?;
        }
        utimensat(parent, name, &header.times(), AtFlags::SYMLINK_NOFOLLOW).map_err(|error| header.unwritten(error))
    }

    fn hard_link(&mut self, header: &Header) -> Result<(), LayerError> {
        let target = inside(&header.link).map_err(|_| header.refused("is a hard link out of the layer"))?;
        let (Some(target_folder), Some(target_name)) = (target.parent(), target.file_name()) else {
            return Err(header.refused("is a hard link to a folder"));
        };
        if target == header.path {
            return Err(header.refused("is a hard link to itself"));
        }
        let target_folder = match self.beneath(target_folder) {
            Ok(folder) => folder,
            Err(Errno::NOENT) => return Err(header.refused("is a hard link to what the layer does not hold")),
            Err(_) => return Err(header.refused("is a hard link by way of a symlink")),
        };
        let kind = match statat(&target_folder, target_name, AtFlags::SYMLINK_NOFOLLOW) {
            Ok(found) => FileType::from_raw_mode(found.st_mode),
            Err(_) => return Err(header.refused("is a hard link to what the layer does not hold")),
        };
        if !matches!(kind, FileType::RegularFile | FileType::Symlink) {
            return Err(header.refused("is a hard link to what is not a file"));
        }
        let (folder, name) = (
            header.path.parent().unwrap_or(Path::new("")),
            header.path.file_name().unwrap_or_default(),
        );
        let parent = self.parent(header, folder)?;
        self.clear(header)?;
        linkat(&target_folder, target_name, &parent, name, AtFlags::empty()).map_err(|error| header.unwritten(error))
    }

    fn folder(&mut self, header: &Header) -> Result<(), LayerError> {
        let (folder, name) = (
            header.path.parent().unwrap_or(Path::new("")),
            header.path.file_name().unwrap_or_default(),
        );
        let parent = self.parent(header, folder)?;
        let found =
            statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).map(|found| FileType::from_raw_mode(found.st_mode));
        if found != Ok(FileType::Directory) {
            self.clear(header)?;
            mkdirat(&parent, name, Mode::from_raw_mode(0o700)).map_err(|error| header.unwritten(error))?;
        }
        if self.hidden.contains(&header.path) {
            self.set_opaque(&header.path)?;
        }
        self.remember(header);
        Ok(())
    }

    fn remember(&mut self, header: &Header) {
        let mode = match self.owner {
            Owner::Kept => header.mode & 0o1777,
            Owner::Caller => header.mode & 0o1777 | 0o700,
        };
        self.folders
            .push((header.path.clone(), mode, header.uid, header.gid, header.times()));
    }

    /// OCI image-spec, layer.md: `.wh.NAME` hides NAME of the layers below, `.wh..wh..opq` all of them in this folder. Both speak of
    /// lower layers only, in whatever order they come with entries of this one.
    fn whiteout(&mut self, header: &Header, folder: &Path, hidden: &[u8]) -> Result<(), LayerError> {
        if hidden == b".wh..opq" {
            self.parent(header, folder)?;
            return self.set_opaque(folder);
        }
        if hidden.starts_with(b".wh.") {
            // Book-keeping of aufs (".wh..wh.plnk"), which old tools left in.
            return Ok(());
        }
        if matches!(hidden, b"" | b"." | b"..") {
            return Err(header.refused("hides what has no name"));
        }
        let parent = self.parent(header, folder)?;
        let name = Path::new(std::ffi::OsStr::from_bytes(hidden));
        let path = folder.join(name);
        match statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW).map(|found| FileType::from_raw_mode(found.st_mode)) {
            Ok(FileType::Directory) => self.set_opaque(&path)?,
            // What this layer puts there hides the lower one by itself.
            Ok(_) => {}
            Err(Errno::NOENT) => {
                // An ordinary user may make this one device: it opens nothing (mknod(2), since Linux 5.8).
                mknodat(&parent, name, FileType::CharacterDevice, Mode::empty(), 0)
                    .map_err(|error| header.unwritten(error))?;
            }
            Err(error) => return Err(header.unwritten(error)),
        }
        self.hidden.insert(path);
        Ok(())
    }

    fn set_opaque(&self, path: &Path) -> Result<(), LayerError> {
        let failed = |error: Errno| match error {
            Errno::OPNOTSUPP => LayerError::Attributes,
            error => LayerError::Write {
                name: path.display().to_string(),
                source: error.into(),
            },
        };
        let folder = self.open(path, OFlags::RDONLY | OFlags::DIRECTORY).map_err(failed)?;
        fsetxattr(&folder, "user.overlay.opaque", b"y", XattrFlags::empty()).map_err(failed)?;
        if self.owner == Owner::Kept {
            fsetxattr(&folder, "trusted.overlay.opaque", b"y", XattrFlags::empty()).map_err(failed)?;
        }
        Ok(())
    }

    /// Makes way: an archive may name the same thing twice, and then the last one counts.
    fn clear(&mut self, header: &Header) -> Result<(), LayerError> {
        let folder = header.path.parent().unwrap_or(Path::new(""));
        let name = header.path.file_name().unwrap_or_default();
        let parent = self.parent(header, folder)?;
        match unlinkat(&parent, name, AtFlags::empty()) {
            Ok(()) | Err(Errno::NOENT) => return Ok(()),
            // unlink(2): EISDIR for a folder on Linux, EPERM says POSIX.
            Err(Errno::ISDIR | Errno::PERM) => {}
            Err(error) => return Err(header.unwritten(error)),
        }
        self.parent = None;
        remove_folder(parent.as_fd(), Path::new(name)).map_err(|error| header.unwritten(error))
    }

    /// The folder in which an entry goes; made where it is missing.
    fn parent(&mut self, header: &Header, folder: &Path) -> Result<OwnedFd, LayerError> {
        if let Some((path, fd)) = &self.parent
            && path == folder
        {
            return fd.try_clone().map_err(|error| header.unwritten(error));
        }
        let fd = match self.beneath(folder) {
            Ok(fd) => fd,
            Err(Errno::NOENT | Errno::NOTDIR) => self.make_folders(header, folder)?,
            Err(Errno::LOOP | Errno::XDEV) => return Err(header.refused("goes through a symlink or a file")),
            Err(error) => return Err(header.unwritten(error)),
        };
        self.parent = Some((
            folder.to_owned(),
            fd.try_clone().map_err(|error| header.unwritten(error))?,
        ));
        Ok(fd)
    }

    fn make_folders(&mut self, header: &Header, folder: &Path) -> Result<OwnedFd, LayerError> {
        let mut path = PathBuf::new();
        let mut fd = self.beneath(&path).map_err(|error| header.unwritten(error))?;
        for part in folder {
            path.push(part);
            match mkdirat(&fd, part, Mode::from_raw_mode(0o755)) {
                Ok(()) => self.dress_implied(header, &fd, part, &path)?,
                Err(Errno::EXIST) => {}
                Err(error) => return Err(header.unwritten(error)),
            }
            fd = match self.beneath(&path) {
                Ok(fd) => fd,
                // A whiteout: the layer hides the lower folder and then fills its own.
                Err(Errno::NOTDIR) if self.hidden.contains(&path) => {
                    unlinkat(&fd, part, AtFlags::empty()).map_err(|error| header.unwritten(error))?;
                    mkdirat(&fd, part, Mode::from_raw_mode(0o755)).map_err(|error| header.unwritten(error))?;
                    self.dress_implied(header, &fd, part, &path)?;
                    self.beneath(&path).map_err(|error| header.unwritten(error))?
                }
                Err(Errno::LOOP | Errno::NOTDIR | Errno::XDEV) => {
                    return Err(header.refused("goes through a symlink or a file"));
                }
                Err(error) => return Err(header.unwritten(error)),
            };
        }
        Ok(fd)
    }

    /// A folder that the layer uses and does not describe: open to all, whatever the umask of this process says.
    fn dress_implied(
        &self,
        header: &Header,
        parent: &OwnedFd,
        name: &std::ffi::OsStr,
        path: &Path,
    ) -> Result<(), LayerError> {
        chmodat(parent, name, Mode::from_raw_mode(0o755), AtFlags::empty()).map_err(|error| header.unwritten(error))?;
        match self.hidden.contains(path) {
            true => self.set_opaque(path),
            false => Ok(()),
        }
    }

    fn beneath(&self, folder: &Path) -> Result<OwnedFd, Errno> {
        self.open(folder, OFlags::PATH | OFlags::DIRECTORY)
    }

    fn open(&self, path: &Path, flags: OFlags) -> Result<OwnedFd, Errno> {
        let path = if path.as_os_str().is_empty() {
            Path::new(".")
        } else {
            path
        };
        let resolve =
            ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS | ResolveFlags::NO_XDEV;
        openat2(&self.root, path, flags | OFlags::CLOEXEC, Mode::empty(), resolve)
    }

    fn finish(self) -> Result<Skipped, LayerError> {
        // Deepest first: a folder's time must not be touched again, and one without permissions not be entered again.
        let mut folders = self.folders.iter().enumerate().collect::<Vec<_>>();
        folders.sort_by_key(|(n, (path, ..))| (std::cmp::Reverse(path.components().count()), *n));
        for (_, (path, mode, uid, gid, times)) in folders {
            let failed = |error: Errno| LayerError::Write {
                name: path.display().to_string(),
                source: error.into(),
            };
            let folder = match self.open(path, OFlags::RDONLY | OFlags::DIRECTORY) {
                Ok(folder) => folder,
                // Named twice, and the second time it was something else.
                Err(Errno::NOENT | Errno::NOTDIR | Errno::LOOP) => continue,
                Err(error) => return Err(failed(error)),
            };
            if self.owner == Owner::Kept {
                fchown(&folder, Some(Uid::from_raw(*uid)), Some(Gid::from_raw(*gid))).map_err(failed)?;
            }
            fchmod(&folder, Mode::from_raw_mode(*mode)).map_err(failed)?;
            futimens(&folder, times).map_err(failed)?;
        }
        Ok(self.skipped)
    }
}

/// Removes a folder with all that is in it, following nothing.
pub(super) fn remove_folder(parent: std::os::fd::BorrowedFd<'_>, name: &Path) -> io::Result<()> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    let folder = match rustix::fs::openat(parent, name, flags, Mode::empty()) {
        Err(Errno::ACCESS) => {
            chmodat(parent, name, Mode::RWXU, AtFlags::empty())?;
            rustix::fs::openat(parent, name, flags, Mode::empty())?
        }
        opened => opened?,
    };
    let mut names = Vec::new();
    for entry in rustix::fs::Dir::read_from(&folder)? {
        let entry = entry?;
        if !matches!(entry.file_name().to_bytes(), b"." | b"..") {
            names.push(entry.file_name().to_owned());
        }
    }
    for inner in names {
        match unlinkat(&folder, &inner, AtFlags::empty()) {
            Ok(()) => {}
            Err(Errno::ISDIR | Errno::PERM) => {
                remove_folder(folder.as_fd(), Path::new(std::ffi::OsStr::from_bytes(inner.to_bytes())))?;
            }
            Err(Errno::ACCESS) => {
                // A folder without the right to write, left by an unpacking that was cut off.
                fchmod(&folder, Mode::RWXU)?;
                unlinkat(&folder, &inner, AtFlags::empty())?;
            }
            Err(error) => return Err(error.into()),
        }
    }
    Ok(unlinkat(parent, name, AtFlags::REMOVEDIR)?)
}

#[cfg(test)]
mod tests;
