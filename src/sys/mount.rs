//! The new mount API: every mount is a descriptor before it is attached, so that no path is looked up twice.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use rustix::mount::{
    FsMountFlags, FsOpenFlags, MountAttrFlags, MoveMountFlags, OpenTreeFlags, fsconfig_create, fsconfig_set_flag,
    fsconfig_set_string, fsmount, fsopen, move_mount, open_tree,
};

/// Properties of one mount (mount_setattr(2)).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, serde::Serialize, serde::Deserialize)]
pub struct Attributes {
    pub read_only: bool,
    pub no_suid: bool,
    pub no_dev: bool,
    pub no_exec: bool,
}

impl Attributes {
    fn flags(self) -> MountAttrFlags {
        let mut flags = MountAttrFlags::empty();
        flags.set(MountAttrFlags::MOUNT_ATTR_RDONLY, self.read_only);
        flags.set(MountAttrFlags::MOUNT_ATTR_NOSUID, self.no_suid);
        flags.set(MountAttrFlags::MOUNT_ATTR_NODEV, self.no_dev);
        flags.set(MountAttrFlags::MOUNT_ATTR_NOEXEC, self.no_exec);
        flags
    }
}

/// A new file system as a detached mount; options with an empty value are flags.
pub fn new_file_system(kind: &str, options: &[(&str, &str)], attributes: Attributes) -> io::Result<OwnedFd> {
    let context = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    for (name, value) in options {
        match *value {
            "" => fsconfig_set_flag(context.as_fd(), *name)?,
            value => fsconfig_set_string(context.as_fd(), *name, value)?,
        }
    }
    fsconfig_create(context.as_fd())?;
    Ok(fsmount(
        context.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes.flags(),
    )?)
}

/// How much of a tree of mounts is taken.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// The one mount; what is mounted below it stays behind.
    Single,
    /// All, which is the one way left to somebody who may not look under the mounts below.
    Recursive,
}

/// A detached copy of the mount at what `file` names.
pub fn clone_tree(file: BorrowedFd<'_>, depth: Depth) -> io::Result<OwnedFd> {
    let mut flags = OpenTreeFlags::OPEN_TREE_CLONE | OpenTreeFlags::OPEN_TREE_CLOEXEC | OpenTreeFlags::AT_EMPTY_PATH;
    flags.set(OpenTreeFlags::AT_RECURSIVE, depth == Depth::Recursive);
    Ok(open_tree(file, "", flags)?)
}

/// Sets properties of a detached mount and of all below it; with a user namespace, its ids are mapped as that namespace maps them.
#[allow(unsafe_code)]
pub fn set_attributes(mount: BorrowedFd<'_>, attributes: Attributes, idmap: Option<BorrowedFd<'_>>) -> io::Result<()> {
    let mut set = u64::from(attributes.flags().bits());
    if idmap.is_some() {
        set |= libc::MOUNT_ATTR_IDMAP;
    }
    let request = libc::mount_attr {
        attr_set: set,
        attr_clr: 0,
        // A mount made inside must never travel back out.
        propagation: libc::MS_PRIVATE,
        userns_fd: idmap.map_or(0, |fd| fd.as_raw_fd() as u64),
    };
    let flags = libc::AT_EMPTY_PATH | libc::AT_RECURSIVE;
    // SAFETY: the path is an empty NUL-terminated string, the request a live mount_attr of the size given, the descriptors open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &request,
            size_of::<libc::mount_attr>(),
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Makes one mount read-only, and none below it.
pub fn set_read_only(mount: BorrowedFd<'_>) -> io::Result<()> {
    change(mount, libc::MOUNT_ATTR_RDONLY, 0)
}

/// Takes "read-only" off one mount.
pub fn set_writable(mount: BorrowedFd<'_>) -> io::Result<()> {
    change(mount, 0, libc::MOUNT_ATTR_RDONLY)
}

#[allow(unsafe_code)]
fn change(mount: BorrowedFd<'_>, attr_set: u64, attr_clr: u64) -> io::Result<()> {
    let request = libc::mount_attr {
        attr_set,
        attr_clr,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: the path is an empty NUL-terminated string, the request a live mount_attr of the size given, the descriptor open.
    let result = unsafe {
        let size = size_of::<libc::mount_attr>();
        libc::syscall(
            libc::SYS_mount_setattr,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_EMPTY_PATH,
            &request,
            size,
        )
    };
    if result < 0 {
        Err(io::Error::last_os_error())
    } else {
        Ok(())
    }
}

/// Attaches a detached mount over what `target` names.
pub fn attach(mount: BorrowedFd<'_>, target: BorrowedFd<'_>) -> io::Result<()> {
    let flags = MoveMountFlags::MOVE_MOUNT_F_EMPTY_PATH | MoveMountFlags::MOVE_MOUNT_T_EMPTY_PATH;
    Ok(move_mount(mount, "", target, "", flags)?)
}

/// Takes away all that is mounted at a path, whoever still uses it. The path itself is not followed.
pub fn detach_all(path: &std::path::Path) -> io::Result<()> {
    use rustix::mount::UnmountFlags;
    loop {
        match rustix::mount::unmount(path, UnmountFlags::DETACH | UnmountFlags::NOFOLLOW) {
            Ok(()) => {}
            // umount(2): not a mount point.
            Err(rustix::io::Errno::INVAL) => return Ok(()),
            Err(error) => return Err(error.into()),
        }
    }
}

/// Cuts all mounts of this namespace off from the ones that they were copied from.
pub fn make_private() -> io::Result<()> {
    use rustix::mount::MountPropagationFlags as Flags;
    Ok(rustix::mount::mount_change("/", Flags::PRIVATE | Flags::REC)?)
}

/// Keeps all mounts made from here on in this namespace, while what the outside unmounts still goes away here.
pub fn make_slave() -> io::Result<()> {
    use rustix::mount::MountPropagationFlags as Flags;
    Ok(rustix::mount::mount_change("/", Flags::DOWNSTREAM | Flags::REC)?)
}

/// Opens a host path for mounting: no component of it may be a symlink, so what was checked is what is opened.
pub fn open_source(path: &std::path::Path) -> io::Result<OwnedFd> {
    let how = ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(
        rustix::fs::CWD,
        path,
        OFlags::PATH | OFlags::CLOEXEC,
        Mode::empty(),
        how,
    )?)
}

/// Opens a path inside a root that is being made: symlinks are followed as they will be from inside, and never out of it.
pub fn open_inside(root: BorrowedFd<'_>, path: &str, flags: OFlags, mode: Mode) -> io::Result<OwnedFd> {
    let path = if path.is_empty() { "." } else { path };
    let how = ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS;
    Ok(openat2(root, path, flags | OFlags::CLOEXEC, mode, how)?)
}

/// Opens a path beneath a folder. A link on the way is an error; with O_PATH a link at its end is opened itself.
///
/// `NO_SYMLINKS` takes magic links in (openat2(2)); both are named, as for a source. Who calls has names without `..`: `BENEATH` is for
/// the one that some day has not.
pub fn open_beneath(folder: BorrowedFd<'_>, path: &std::path::Path, flags: OFlags) -> io::Result<OwnedFd> {
    let path = if path.as_os_str().is_empty() {
        std::path::Path::new(".")
    } else {
        path
    };
    let how = ResolveFlags::BENEATH | ResolveFlags::NO_SYMLINKS | ResolveFlags::NO_MAGICLINKS;
    let flags = flags | OFlags::NOFOLLOW | OFlags::CLOEXEC;
    Ok(openat2(folder, path, flags, Mode::empty(), how)?)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::unix::fs::symlink;
    use std::path::Path;

    use rustix::io::Errno;

    use super::*;

    /// `root/in/file`, links to it and out of it, and `outside/file`.
    fn place() -> (tempfile::TempDir, OwnedFd) {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        fs::create_dir_all(at("root/in")).unwrap();
        fs::create_dir(at("outside")).unwrap();
        fs::write(at("root/in/file"), "in").unwrap();
        fs::write(at("outside/file"), "out").unwrap();
        symlink("in", at("root/inner")).unwrap();
        symlink("../outside", at("root/outer")).unwrap();
        symlink(at("outside"), at("root/absolute")).unwrap();
        symlink("in/file", at("root/end")).unwrap();
        let root = File::open(at("root")).unwrap();
        (place, root.into())
    }

    fn refusal(opened: io::Result<OwnedFd>) -> Option<Errno> {
        let error = opened.err()?;
        error.raw_os_error().map(Errno::from_raw_os_error)
    }

    #[test]
    fn what_is_opened_beneath_a_folder_lies_in_it_and_no_link_leads_there() {
        let (place, root) = place();
        let open = |path: &str| refusal(open_beneath(root.as_fd(), Path::new(path), OFlags::RDONLY));
        assert_eq!((open("in/file"), open(""), open("in/../in/file")), (None, None, None));
        for link in ["inner/file", "outer/file", "absolute/file", "in/../inner/file", "end"] {
            assert_eq!(open(link), Some(Errno::LOOP), "{link}");
        }
        let absolute = place.path().join("outside/file");
        for way_out in [
            "..",
            "../outside/file",
            "in/../../outside/file",
            absolute.to_str().unwrap(),
        ] {
            assert_eq!(open(way_out), Some(Errno::XDEV), "{way_out}");
        }
        // A link at the end is opened itself, and not what it names.
        let link = open_beneath(root.as_fd(), Path::new("end"), OFlags::PATH).unwrap();
        assert_eq!(
            rustix::fs::FileType::from_raw_mode(rustix::fs::fstat(&link).unwrap().st_mode),
            rustix::fs::FileType::Symlink
        );
    }

    #[test]
    fn no_magic_link_is_followed() {
        let proc = OwnedFd::from(File::open("/proc/self").unwrap());
        for link in ["root/etc", "cwd/.", "fd/0/."] {
            let opened = refusal(open_beneath(proc.as_fd(), Path::new(link), OFlags::PATH));
            assert_eq!(opened, Some(Errno::LOOP), "{link}");
            let opened = refusal(open_inside(proc.as_fd(), link, OFlags::PATH, Mode::empty()));
            assert_eq!(opened, Some(Errno::LOOP), "{link}");
        }
    }

    #[test]
    fn links_within_a_root_stay_in_it() {
        let (_place, root) = place();
        let read = |path: &str| {
            let file = open_inside(root.as_fd(), path, OFlags::RDONLY, Mode::empty());
            file.map(|file| io::read_to_string(File::from(file)).unwrap())
        };
        assert_eq!(read("inner/file").unwrap(), "in");
        assert_eq!(read("/in/file").unwrap(), "in");
        assert_eq!(read("../../in/file").unwrap(), "in");
        for link in ["outer/file", "absolute/file", "../outside/file"] {
            assert_eq!(read(link).unwrap_err().kind(), io::ErrorKind::NotFound, "{link}");
        }
    }

    #[test]
    fn no_component_of_a_source_is_a_link() {
        let (place, _root) = place();
        let open = |path: &str| refusal(open_source(&place.path().join(path)));
        assert_eq!(open("root/in/file"), None);
        for link in ["root/inner/file", "root/outer", "root/end"] {
            assert_eq!(open(link), Some(Errno::LOOP), "{link}");
        }
        assert_eq!(refusal(open_source(Path::new("/proc/self/cwd/."))), Some(Errno::LOOP));
    }
}
