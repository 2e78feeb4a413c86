//! Looking for protected names in one root, without following a link.

use std::collections::{BTreeMap, VecDeque};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, OFlags};
use rustix::io::Errno;

use super::{FILES, FOLDERS, Hold, Stand};
use crate::sys::mount;
use crate::task::{GitMode, Root};

/// Names by their path from the root; a parent sorts before what lies in it.
pub type Holds = BTreeMap<PathBuf, Hold>;

/// How deep, and over how many entries, names are looked for: more than projects have by hand, and some ten milliseconds at most.
const DEPTH_MAX: usize = 6;
const ENTRIES_MAX: usize = 30_000;

/// Folders of things that were fetched or built, in which no tool looks for settings by itself.
const SKIPPED: [&str; 5] = ["node_modules", "target", ".venv", "__pycache__", ".tox"];

/// What was found.
#[derive(Debug, Default)]
pub struct Found {
    pub holds: Holds,
    /// To be made on the host, parents first.
    pub stands: Vec<(PathBuf, Stand)>,
    pub gaps: Vec<String>,
}

/// What a name is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    Absent,
    Folder,
    Link,
    /// A file or anything else that is not followed.
    File,
}

/// One root under the eye.
pub struct Walk<'a> {
    pub root: OwnedFd,
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
            _ if self.others.iter().any(|other| other == git) => Ok(()),
            // A repository made here would be the agent's own, settings and all, and the next tool outside would obey them.
            (GitMode::Safe | GitMode::ReadOnly, Kind::Absent) => self.fix(git, Stand::Folder),
            (GitMode::Safe | GitMode::ReadOnly, _) => self.git_entry(git),
        }
    }

    /// All below, widest first, so that the bounds cut off what lies deepest.
    fn below(&mut self) -> io::Result<()> {
        let mut folders = VecDeque::from([(PathBuf::new(), 0)]);
        let mut seen = 0;
        while let Some((folder, depth)) = folders.pop_front() {
            let Some(entries) = self.entries(&folder)? else {
                continue;
            };
            for (name, kind) in entries {
                seen += 1;
                if seen > ENTRIES_MAX {
                    self.found
                        .gaps
                        .push(format!("only the first {ENTRIES_MAX} files and folders were looked at"));
                    return Ok(());
                }
                let path = folder.join(&name);
                if self.found.holds.get(&path).is_some_and(|hold| *hold != Hold::Pin) || self.others.contains(&path) {
                    continue;
                }
                let text = name.to_str().unwrap_or("");
                if text == ".git" {
                    if depth > 0 {
                        self.git_entry(&path)?;
                    }
                } else if FILES.contains(&text) || FOLDERS.contains(&text) {
                    self.present(&path, kind);
                } else if kind == Kind::Folder && !SKIPPED.contains(&text) {
                    if self.is_git_folder(&path)? {
                        self.git_folder(&path)?;
                    } else if depth < DEPTH_MAX {
                        folders.push_back((path, depth + 1));
                    }
                }
            }
        }
        Ok(())
    }

    /// What is in a folder, or nothing where it cannot be read: then nobody inside can read or make anything there either.
    fn entries(&self, folder: &Path) -> io::Result<Option<Vec<(PathBuf, Kind)>>> {
        use std::os::unix::ffi::OsStrExt;
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
                FileType::Unknown => kind_at(fd.as_fd(), &name)?,
                _ => Kind::File,
            };
            entries.push((name, kind));
        }
        entries.sort();
        Ok(Some(entries))
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
            kind => {
                self.present(path, kind);
                Ok(())
            }
        }
    }

    /// Fixes a name, making it first where it is not there.
    pub fn fix(&mut self, path: &Path, stand: Stand) -> io::Result<()> {
        if self.found.holds.contains_key(path) {
            return Ok(());
        }
        let kind = self.kind(path)?;
        if kind != Kind::Absent {
            self.present(path, kind);
            return Ok(());
        }
        if let Some(parent) = path.parent().filter(|parent| !parent.as_os_str().is_empty()) {
            self.pin_folder(parent)?;
        }
        self.found.stands.push((path.to_owned(), stand));
        let hold = if stand == Stand::Socket { Hold::Cover } else { Hold::Fix };
        self.found.holds.insert(path.to_owned(), hold);
        Ok(())
    }

    /// Holds a name that is there.
    pub fn present(&mut self, path: &Path, kind: Kind) {
        match kind {
            // Mounts go on what a link names, so the link itself could be replaced.
            Kind::Link => self
                .found
                .gaps
                .push(format!("{} is a symbolic link, which cannot be held", path.display())),
            Kind::Absent | Kind::Folder | Kind::File => {
                self.pin_parents(path);
                self.found.holds.insert(path.to_owned(), Hold::Fix);
            }
        }
    }

    /// Pins a folder, making it first where it is not there.
    pub fn pin_folder(&mut self, path: &Path) -> io::Result<()> {
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
            Kind::Link => self.present(path, Kind::Link),
            Kind::Folder | Kind::File => self.pin(path),
        }
        Ok(())
    }

    pub fn pin(&mut self, path: &Path) {
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

fn kind_at(folder: BorrowedFd<'_>, name: &Path) -> io::Result<Kind> {
    match rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW) {
        Ok(stat) => Ok(match FileType::from_raw_mode(stat.st_mode) {
            FileType::Directory => Kind::Folder,
            FileType::Symlink => Kind::Link,
            _ => Kind::File,
        }),
        Err(Errno::NOENT | Errno::NOTDIR) => Ok(Kind::Absent),
        Err(error) => Err(error.into()),
    }
}

/// Not there, not a folder, replaced by a link this moment, or closed to us.
fn is_passing(error: &io::Error) -> bool {
    matches!(
        error.raw_os_error().map(Errno::from_raw_os_error),
        Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP | Errno::ACCESS)
    )
}
