//! Looking for protected names in one root, without following a link.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, OFlags};
use rustix::io::Errno;
use rustix::net::{self, AddressFamily, SocketAddrUnix, SocketFlags, SocketType};

use super::{FILES, FOLDERS, Hold, Stand};
use crate::sys::mount;
use crate::task::{GitMode, Root};

/// Names by their path from the root; a parent sorts before what lies in it.
pub type Holds = BTreeMap<PathBuf, Hold>;

/// Over how many entries names are looked for: more than the largest projects have beside what they fetch and build (Chromium has
/// 400,000), and about a second at most. A task with more is refused unless it accepts that.
pub const ENTRIES_MAX: usize = 1_000_000;

/// Folders of things that were fetched or built, in which no tool looks for settings by itself.
const SKIPPED: [&str; 5] = ["node_modules", "target", ".venv", "__pycache__", ".tox"];

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    pub holds: Holds,
    /// To be made on the host, parents first.
    pub stands: Vec<(PathBuf, Stand)>,
    /// Git folders that are held.
    pub repositories: BTreeSet<PathBuf>,
    pub gaps: Vec<String>,
}

/// What a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Absent,
    Folder,
    Link,
    Socket,
    /// A file or anything else that is not followed.
    File,
}

/// One root under the eye.
pub struct Walk<'a> {
    pub root: OwnedFd,
    /// Where it is on the host.
    host: PathBuf,
    pub git: GitMode,
    pub found: Found,
    /// Whether a name is the placeholder of another task, and so as good as absent.
    is_stand: &'a dyn Fn(&Path) -> bool,
    others: &'a [PathBuf],
}

/// Looks at one root. A root that is a file has no names in it.
pub fn look(root: &Root, others: &[PathBuf], is_stand: &dyn Fn(&Path) -> bool) -> io::Result<Found> {
    let fd = mount::open_source(root.host.as_ref())?;
    if FileType::from_raw_mode(rustix::fs::fstat(&fd)?.st_mode) != FileType::Directory {
        return Ok(Found::default());
    }
    let mut walk = Walk {
        root: fd,
        host: root.host.as_path().to_owned(),
        git: root.git,
        found: Found::default(),
        is_stand,
        others,
    };
    walk.top(&root.protect)?;
    if walk.is_git_folder(Path::new(""))? {
        walk.git_folder(Path::new(""))?;
    } else {
        walk.below()?;
    }
    walk.other_names()?;
    Ok(walk.found)
}

impl Walk<'_> {
    /// The names at the top, there or not.
    fn top(&mut self, protect: &[String]) -> io::Result<()> {
        for name in FOLDERS {
            self.name(Path::new(name), Stand::Folder)?;
        }
        for name in FILES {
            self.name(Path::new(name), Stand::Socket)?;
        }
        for name in protect {
            let stand = if name.ends_with('/') {
                Stand::Folder
            } else {
                Stand::Socket
            };
            self.name(Path::new(name.trim_matches('/')), stand)?;
        }
        let git = Path::new(".git");
        match (self.git, self.kind(git)?) {
            (GitMode::Open, _) => Ok(()),
            _ if self.is_others(git) => Ok(()),
            // A repository made here would be the agent's own, settings and all, and the next tool outside would obey them.
            (GitMode::Safe | GitMode::ReadOnly, Kind::Absent) => self.fix(git, Stand::Folder),
            (GitMode::Safe | GitMode::ReadOnly, _) => self.git_entry(git),
        }
    }

    /// All below, widest first, so that the bound cuts off what lies deepest.
    fn below(&mut self) -> io::Result<()> {
        let mut folders = VecDeque::from([PathBuf::new()]);
        let mut seen = 0;
        while let Some(folder) = folders.pop_front() {
            let Some(entries) = self.entries(&folder)? else {
                continue;
            };
            seen += entries.len();
            if seen > ENTRIES_MAX {
                let gap = format!("only the first {ENTRIES_MAX} files and folders were looked at");
                self.found.gaps.push(gap);
                return Ok(());
            }
            let has = |name: &str, kind| entries.binary_search(&(PathBuf::from(name), kind)).is_ok();
            if (has("HEAD", Kind::File) || has("HEAD", Kind::Link))
                && has("objects", Kind::Folder)
                && has("refs", Kind::Folder)
            {
                self.git_folder(&folder)?;
                continue;
            }
            for (name, kind) in entries {
                let path = folder.join(&name);
                if self.found.holds.get(&path).is_some_and(|hold| *hold != Hold::Pin) || self.is_others(&path) {
                    continue;
                }
                // There are file systems on which case does not count.
                let text = name.to_str().unwrap_or("").to_ascii_lowercase();
                let text = text.as_str();
                if text == ".git" {
                    // The one at the top was looked at with the other names there.
                    if !folder.as_os_str().is_empty() {
                        self.git_entry(&path)?;
                    }
                } else if FILES.contains(&text) || FOLDERS.contains(&text) {
                    self.present(&path, kind)?;
                } else if kind == Kind::Socket {
                    self.listener(&path);
                } else if kind == Kind::Folder && !SKIPPED.contains(&text) {
                    folders.push_back(path);
                }
            }
        }
        Ok(())
    }

    /// What is in a folder, or nothing where it cannot be read: then nobody inside can read or make anything there either.
    fn entries(&self, folder: &Path) -> io::Result<Option<Vec<(PathBuf, Kind)>>> {
        let fd = match self.open(folder, OFlags::RDONLY | OFlags::DIRECTORY) {
            Ok(fd) => fd,
            Err(error) if is_passing(&error) => return Ok(None),
            Err(error) => return Err(error),
        };
        let mut entries = Vec::new();
        for entry in Dir::read_from(&fd)? {
            let entry = entry?;
            let name = entry.file_name().to_bytes();
            if name == b"." || name == b".." {
                continue;
            }
            let name = PathBuf::from(std::ffi::OsStr::from_bytes(name));
            let kind = match entry.file_type() {
                FileType::Directory => Kind::Folder,
                FileType::Symlink => Kind::Link,
                FileType::Socket => Kind::Socket,
                FileType::Unknown => kind_at(fd.as_fd(), &name)?,
                _ => Kind::File,
            };
            entries.push((name, kind));
        }
        entries.sort();
        Ok(Some(entries))
    }

    /// Covers a socket on which a program outside listens: it would be a way out beside the proxy. One on which nobody listens any more
    /// is a file that a server inside may want to put its own in the place of.
    pub fn listener(&mut self, path: &Path) {
        let is_heard = |fd: OwnedFd| {
            let address = SocketAddrUnix::new(format!("/proc/self/fd/{}", fd.as_raw_fd()))?;
            let flags = SocketFlags::CLOEXEC | SocketFlags::NONBLOCK;
            let socket = net::socket_with(AddressFamily::UNIX, SocketType::STREAM, flags, None)?;
            net::connect(&socket, &address)
        };
        match self.open(path, OFlags::PATH).map(is_heard) {
            Ok(Err(Errno::CONNREFUSED)) => {}
            // Heard, or of a kind that streams are not heard at, or not ours to know.
            Ok(_) => drop(self.found.holds.insert(path.to_owned(), Hold::Cover)),
            // Gone between the two.
            Err(_) => {}
        }
    }

    /// Whether a name is another root's.
    pub fn is_others(&self, path: &Path) -> bool {
        self.others.iter().any(|other| other == path)
    }

    pub fn open(&self, path: &Path, flags: OFlags) -> io::Result<OwnedFd> {
        mount::open_beneath(self.root.as_fd(), path, flags)
    }

    pub fn kind(&self, path: &Path) -> io::Result<Kind> {
        if (self.is_stand)(path) {
            return Ok(Kind::Absent);
        }
        let parent = path.parent().unwrap_or(Path::new(""));
        match self.open(parent, OFlags::PATH | OFlags::DIRECTORY) {
            Ok(fd) => kind_at(fd.as_fd(), Path::new(path.file_name().unwrap_or_default())),
            Err(error) if is_passing(&error) => Ok(Kind::Absent),
            Err(error) => Err(error),
        }
    }

    /// Holds a name at the top, with all on the way to it.
    fn name(&mut self, path: &Path, stand: Stand) -> io::Result<()> {
        if self.others.iter().any(|other| path.starts_with(other)) {
            return Ok(());
        }
        match self.kind(path)? {
            Kind::Absent => self.fix(path, stand),
            kind => self.present(path, kind),
        }
    }

    /// Fixes a name, making it first where it is not there.
    pub fn fix(&mut self, path: &Path, stand: Stand) -> io::Result<()> {
        if self.found.holds.contains_key(path) {
            return Ok(());
        }
        let kind = self.kind(path)?;
        if kind != Kind::Absent {
            return self.present(path, kind);
        }
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            self.pin_folder(parent)?;
        }
        self.found.stands.push((path.to_owned(), stand));
        let hold = if stand == Stand::Socket { Hold::Cover } else { Hold::Fix };
        self.found.holds.insert(path.to_owned(), hold);
        Ok(())
    }

    /// Holds a name that is there; for a link, what it names too, as far as that lies in the root.
    pub fn present(&mut self, path: &Path, kind: Kind) -> io::Result<()> {
        self.pin_parents(path);
        let was = self.found.holds.insert(path.to_owned(), Hold::Fix);
        if kind != Kind::Link || was == Some(Hold::Fix) {
            return Ok(());
        }
        let parent = path.parent().unwrap_or(Path::new(""));
        let fd = self.open(parent, OFlags::PATH | OFlags::DIRECTORY)?;
        let target = rustix::fs::readlinkat(&fd, path.file_name().unwrap_or_default(), Vec::new())?;
        let target = Path::new(std::ffi::OsStr::from_bytes(target.as_bytes()));
        let target = match target.strip_prefix(&self.host) {
            Ok(inside) => Some(inside.to_owned()),
            Err(_) => within(parent, target),
        };
        let Some(target) = target.filter(|target| !target.as_os_str().is_empty()) else {
            return Ok(());
        };
        match self.kind(&target)? {
            Kind::Absent => self.fix(&target, Stand::Socket),
            Kind::Folder if self.is_git_folder(&target)? => self.git_folder(&target),
            kind => self.present(&target, kind),
        }
    }

    /// Pins a folder, making it first where it is not there.
    fn pin_folder(&mut self, path: &Path) -> io::Result<()> {
        match self.kind(path)? {
            Kind::Absent => {
                if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
                    self.pin_folder(parent)?;
                }
                if !self.found.stands.iter().any(|(made, _)| made == path) {
                    self.found.stands.push((path.to_owned(), Stand::Folder));
                }
                self.pin(path);
            }
            Kind::Link => self.present(path, Kind::Link)?,
            Kind::Folder | Kind::File | Kind::Socket => self.pin(path),
        }
        Ok(())
    }

    fn pin(&mut self, path: &Path) {
        self.pin_parents(path);
        if !path.as_os_str().is_empty() {
            self.found.holds.entry(path.to_owned()).or_insert(Hold::Pin);
        }
    }

    fn pin_parents(&mut self, path: &Path) {
        for parent in path.ancestors().skip(1).filter(|parent| !parent.as_os_str().is_empty()) {
            self.found.holds.entry(parent.to_owned()).or_insert(Hold::Pin);
        }
    }
}

/// A path as it is written in a link or in settings, from `folder` on; none where it leads out of the root.
pub fn within(folder: &Path, name: &Path) -> Option<PathBuf> {
    let mut path = folder.to_owned();
    for part in name.components() {
        match part {
            Component::Normal(name) => path.push(name),
            Component::ParentDir => {
                if !path.pop() {
                    return None;
                }
            }
            Component::CurDir => {}
            Component::RootDir | Component::Prefix(_) => return None,
        }
    }
    (!path.as_os_str().is_empty()).then_some(path)
}

fn kind_at(folder: BorrowedFd<'_>, name: &Path) -> io::Result<Kind> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Folder,
            FileType::Symlink => Kind::Link,
            FileType::Socket => Kind::Socket,
            _ => Kind::File,
        }),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(Kind::Absent),
        Err(error) => Err(error.into()),
    }
}

/// Not there, not a folder, replaced by a link this moment, or closed to us.
pub fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS)
    )
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;
    use crate::path::{HostPath, SandboxPath};
    use crate::task::Access;

    /// A name is where it is written: what a link on the way to it leads to is another name.
    #[test]
    fn no_name_is_looked_for_through_a_link() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        for folder in ["root/real/deep/.vscode", "outside/deep/.vscode"] {
            std::fs::create_dir_all(at(folder)).unwrap();
        }
        symlink("real", at("root/inner")).unwrap();
        symlink(at("outside"), at("root/outer")).unwrap();
        let root = Root {
            host: HostPath::new(at("root")).unwrap(),
            path: SandboxPath::new("/workspace").unwrap(),
            access: Access::Write,
            git: GitMode::Open,
            protect: Vec::new(),
        };
        let found = look(&root, &[], &|_| false).unwrap();
        let held = |name: &str| found.holds.get(Path::new(name)).copied();
        let names = ["real/deep/.vscode", "inner/deep/.vscode", "outer/deep/.vscode"];
        assert_eq!(names.map(held), [Some(Hold::Fix), None, None]);
        let walk = Walk {
            root: mount::open_source(&at("root")).unwrap(),
            host: at("root"),
            git: GitMode::Open,
            found: Found::default(),
            is_stand: &|_| false,
            others: &[],
        };
        let kinds = names.map(|name| walk.kind(Path::new(name)).unwrap());
        assert_eq!(kinds, [Kind::Folder, Kind::Absent, Kind::Absent]);
    }
}
