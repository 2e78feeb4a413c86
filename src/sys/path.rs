//! Opening paths without being led astray by symlinks.

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{CWD, FileType, Mode, OFlags, ResolveFlags, fstat, openat2};

/// What a path leads to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Folder,
    File,
    Symlink,
    Socket,
    Fifo,
    Device,
}

/// Opens a path as a mere handle (`O_PATH`), refusing every symlink on the way and at its end: `ELOOP`.
pub fn open_without_symlinks(path: &Path) -> io::Result<OwnedFd> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    loop {
        match openat2(CWD, path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty(), resolve) {
            // openat2(2): a rename during the walk; the kernel asks for another try.
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => continue,
            opened => return Ok(opened?),
        }
    }
}

/// Opens a file for reading, refusing every symlink on the way and at its end: `ELOOP`. A pipe is opened without waiting.
pub fn open_file_without_symlinks(path: &Path) -> io::Result<std::fs::File> {
    let resolve = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    loop {
        match openat2(CWD, path, flags, Mode::empty(), resolve) {
            Err(rustix::io::Errno::AGAIN | rustix::io::Errno::INTR) => continue,
            opened => return Ok(opened?.into()),
        }
    }
}

/// Opens a file for reading by way of any symlinks; a pipe or device is opened without waiting for its other side.
pub fn open_file_without_waiting(path: &Path) -> io::Result<std::fs::File> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC | OFlags::NONBLOCK | OFlags::NOCTTY;
    Ok(rustix::fs::open(path, flags, Mode::empty())?.into())
}

/// What an open descriptor is.
pub fn kind(fd: &OwnedFd) -> io::Result<Kind> {
    kind_of(fd.as_fd())
}

/// What an open file is.
pub fn kind_of_file(file: &std::fs::File) -> io::Result<Kind> {
    kind_of(file.as_fd())
}

fn kind_of(fd: BorrowedFd<'_>) -> io::Result<Kind> {
    Ok(match FileType::from_raw_mode(fstat(fd)?.st_mode) {
        FileType::Directory => Kind::Folder,
        FileType::RegularFile => Kind::File,
        FileType::Symlink => Kind::Symlink,
        FileType::Socket => Kind::Socket,
        FileType::Fifo => Kind::Fifo,
        _ => Kind::Device,
    })
}

/// Whether opening failed because a symlink was in the way.
pub fn is_symlink_in_the_way(error: &io::Error) -> bool {
    error.raw_os_error() == Some(libc::ELOOP)
}

/// The first part of the path that is a symlink: for telling a person, never for deciding.
pub fn first_symlink(path: &Path) -> Option<PathBuf> {
    let mut parts: Vec<&Path> = path.ancestors().collect();
    parts.reverse();
    let link = parts.into_iter().find(|part| part.is_symlink());
    link.map(Path::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_symlink_at_the_end_or_on_the_way_is_not_followed() {
        let folder = tempfile::tempdir().unwrap();
        let real = folder.path().canonicalize().unwrap().join("real");
        let link = real.with_file_name("link");
        std::fs::create_dir_all(real.join("inner")).unwrap();
        std::os::unix::fs::symlink(&real, &link).unwrap();
        let opened = open_without_symlinks(&real.join("inner")).unwrap();
        assert_eq!(kind(&opened).unwrap(), Kind::Folder);
        for path in [link.clone(), link.join("inner")] {
            let error = open_without_symlinks(&path).unwrap_err();
            assert_eq!(error.raw_os_error(), Some(libc::ELOOP), "{}", path.display());
            assert_eq!(first_symlink(&path), Some(link.clone()));
        }
    }

    #[test]
    fn sockets_and_pipes_are_told_apart_from_files() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().canonicalize().unwrap().join("socket");
        let _listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        assert_eq!(kind(&open_without_symlinks(&path).unwrap()).unwrap(), Kind::Socket);
        let null = open_without_symlinks(Path::new("/dev/null")).unwrap();
        assert_eq!(kind(&null).unwrap(), Kind::Device);
    }
}
