//! What a task left in a writable root that is more than files and folders, looked at when nothing inside runs any more.
//!
//! Devices, FIFOs and sockets are told; set-id bits are told and taken away. A repository made inside is the one thing that a mount cannot forbid and
//! that the host's git would obey unasked (`git status` in the folder above enters it where the index names it): if it holds more
//! than harmless settings, its HEAD gets another name, so that git no longer takes it for a repository until a person does.

use std::collections::BTreeSet;
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use rustix::fs::{AtFlags, Dir, FileType, Mode, OFlags, Stat};

use super::config;
use super::walk::within;
use crate::sys::mount;
use crate::task::GitMode;

/// Entries looked at; a task that leaves more is told to have.
const ENTRIES_MAX: usize = 1_000_000;

/// Things told one by one.
const TOLD_MAX: usize = 200;

/// Settings files are small; what is not is no settings file that git would have written.
const TEXT_MAX: u64 = 1 << 16;

/// Git's own strategies of merging (merge-strategies).
const STRATEGIES: [&str; 6] = ["octopus", "ort", "ours", "recursive", "resolve", "subtree"];

/// What is put behind a name that git must not find.
const DISARMED: &str = ".disarmed";

/// What is known of a root from when the task began.
#[derive(Debug, Clone, Copy)]
pub struct Before<'a> {
    /// Nanoseconds since 1970; what changed later is the task's, or came from outside meanwhile.
    pub begun: i64,
    pub git: GitMode,
    /// The git folders that were there, and are held.
    pub known: &'a BTreeSet<PathBuf>,
    /// Placeholders of tasks that still run.
    pub ours: &'a BTreeSet<PathBuf>,
}

/// Looks at a root, disarms repositories, and tells what is there, each by its path from the root.
pub fn sweep(top: &OwnedFd, before: Before<'_>) -> Vec<(&'static str, PathBuf)> {
    let mut sweep = Sweep {
        top,
        before,
        told: Vec::new(),
        seen: 0,
    };
    let mut folders = vec![PathBuf::new()];
    while let Some(folder) = folders.pop() {
        match sweep.folder(&folder, &mut folders) {
            Ok(()) => {}
            // What cannot be entered here, no tool enters by this way either.
            Err(_) => sweep.tell("a folder that cannot be looked at", folder),
        }
        if sweep.seen > ENTRIES_MAX {
            sweep.tell("more files than are looked at", PathBuf::new());
            break;
        }
    }
    sweep.told
}

struct Sweep<'a> {
    top: &'a OwnedFd,
    before: Before<'a>,
    told: Vec<(&'static str, PathBuf)>,
    seen: usize,
}

impl Sweep<'_> {
    fn tell(&mut self, what: &'static str, path: PathBuf) {
        if self.told.len() < TOLD_MAX {
            self.told.push((what, path));
        }
    }

    fn is_new(&self, stat: &Stat) -> bool {
        stat.st_ctime * 1_000_000_000 + stat.st_ctime_nsec as i64 >= self.before.begun
    }

    fn folder(&mut self, path: &Path, folders: &mut Vec<PathBuf>) -> io::Result<()> {
        let fd = mount::open_beneath(self.top.as_fd(), path, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut names = BTreeSet::new();
        for entry in Dir::read_from(&fd)? {
            let entry = entry?;
            let name = PathBuf::from(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()));
            if name == Path::new(".") || name == Path::new("..") {
                continue;
            }
            self.seen += 1;
            // Gone between the two: nothing inside lives, so somebody outside is at work.
            let Ok(stat) = rustix::fs::statat(&fd, &name, AtFlags::SYMLINK_NOFOLLOW) else {
                continue;
            };
            let kind = FileType::from_raw_mode(stat.st_mode);
            if kind == FileType::Directory {
                folders.push(path.join(&name));
            } else if self.is_new(&stat) && !self.before.ours.contains(&path.join(&name)) {
                self.entry(path, &name, kind, stat.st_mode);
            }
            // There are file systems on which case does not count.
            names.insert(name.as_os_str().to_ascii_lowercase());
        }
        let has = |name: &str| names.contains(std::ffi::OsStr::new(name));
        let is_git = has("head") && (has("commondir") || has("objects") && has("refs"));
        if is_git && self.before.git != GitMode::Open && !self.is_held(path) {
            self.repository(&fd, path)?;
        }
        Ok(())
    }

    fn entry(&mut self, folder: &Path, name: &Path, kind: FileType, mode: u32) {
        const SET_ID: u32 = 0o6000;
        let what = match kind {
            // Whoever opens one waits for a writer that never comes, and these git opens unasked.
            FileType::Fifo
                if self.before.git != GitMode::Open && (self.is_in_git(folder) || is_read_by_git(folder, name)) =>
            {
                match self.disarm(folder, name) {
                    Ok(()) => "fifo that git would wait at, disarmed",
                    Err(_) => "fifo that git would wait at",
                }
            }
            FileType::Fifo => "fifo",
            FileType::Socket => "socket",
            FileType::CharacterDevice | FileType::BlockDevice => "device",
            // Outside it may belong to root, and be there for everybody.
            FileType::RegularFile if mode & SET_ID != 0 => match self.take_set_id(folder, name, mode & !SET_ID) {
                Ok(()) => "set-id file, disarmed",
                Err(_) => "set-id file",
            },
            // Git writes its index and other files through links, to wherever they lead.
            FileType::Symlink if self.before.git != GitMode::Open && self.is_in_git(folder) => {
                match self.disarm(folder, name) {
                    Ok(()) => "link in a repository's folder, disarmed",
                    Err(_) => "link in a repository's folder",
                }
            }
            // `git rebase --continue` and its kin outside would run what stands there.
            FileType::RegularFile if self.before.git != GitMode::Open && self.is_armed_sequence(folder, name) => {
                match self.disarm(folder, name) {
                    Ok(()) => "rebase that runs something, disarmed",
                    Err(_) => "rebase that runs something",
                }
            }
            _ => return,
        };
        self.tell(what, folder.join(name));
    }

    fn take_set_id(&self, folder: &Path, name: &Path, mode: u32) -> io::Result<()> {
        let flags = OFlags::RDONLY | OFlags::NONBLOCK;
        let file = mount::open_beneath(self.top.as_fd(), &folder.join(name), flags)?;
        if FileType::from_raw_mode(rustix::fs::fstat(&file)?.st_mode) != FileType::RegularFile {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        Ok(rustix::fs::fchmod(&file, Mode::from_raw_mode(mode & 0o7777))?)
    }

    /// What a rebase, or a cherry-pick of several commits, goes on with. git-rebase(1): a line `exec`, short `x`, is a command for the
    /// shell. A strategy of merging is the end of a program's name, and one with a slash in it is looked for in the work tree
    /// (`git-merge-/x` in a folder `git-merge-`).
    fn is_armed_sequence(&self, folder: &Path, name: &Path) -> bool {
        let text = || text(self.top, folder.join(name));
        match name.to_str() {
            Some("git-rebase-todo") if folder.ends_with("rebase-merge") => text().is_none_or(|text| {
                let mut words = text.lines().map(|line| line.split_whitespace().next());
                words.any(|word| matches!(word, Some("exec" | "x")))
            }),
            Some("strategy") if folder.ends_with("rebase-merge") => {
                text().is_none_or(|text| !STRATEGIES.contains(&text.trim()))
            }
            Some("opts") if folder.ends_with("sequencer") => text().is_none_or(|text| {
                let mut strategies = text
                    .lines()
                    .filter(|line| line.to_ascii_lowercase().contains("strategy"));
                strategies.any(|line| {
                    let value = line.split_once('=').map(|(_, value)| value.trim());
                    !value.is_some_and(|value| STRATEGIES.contains(&value))
                })
            }),
            _ => false,
        }
    }

    /// A repository whose settings nobody inside could change; where all of it was read-only, with those in it.
    fn is_held(&self, path: &Path) -> bool {
        match self.before.git {
            GitMode::ReadOnly => self.is_in_git(path),
            GitMode::Safe | GitMode::Open => self.before.known.contains(path),
        }
    }

    fn is_in_git(&self, folder: &Path) -> bool {
        folder.ancestors().any(|folder| self.before.known.contains(folder))
    }

    /// A repository that is not held: made by the task, or lying deeper than names are looked for at the start. What made it
    /// dangerous before the task is its owner's; what is changed since then is not.
    fn repository(&mut self, fd: &OwnedFd, path: &Path) -> io::Result<()> {
        if self.is_own_worktree(fd, path) || !self.is_armed(fd, path) {
            return Ok(());
        }
        let what = match self.disarm(path, Path::new("HEAD")) {
            Ok(()) => "repository that runs something, disarmed",
            Err(_) => "repository that runs something",
        };
        self.tell(what, path.to_owned());
        Ok(())
    }

    /// A worktree that was added to a repository that is held: its settings are that one's.
    fn is_own_worktree(&self, fd: &OwnedFd, path: &Path) -> bool {
        let repository = path
            .parent()
            .filter(|parent| parent.ends_with("worktrees"))
            .and_then(Path::parent);
        repository.is_some_and(|repository| self.before.known.contains(repository))
            && text(fd, "commondir").is_some_and(|text| text.trim_end() == "../..")
            && is_absent(fd, "config.worktree")
    }

    /// Whether the task put hooks there, settings that are not plain and harmless, or anything that leads elsewhere.
    fn is_armed(&self, fd: &OwnedFd, path: &Path) -> bool {
        let is_new = |folder: &OwnedFd, name: &Path| {
            rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW).is_ok_and(|stat| self.is_new(&stat))
        };
        let is_link = |folder: &OwnedFd, name: &Path| {
            let stat = rustix::fs::statat(folder, name, AtFlags::SYMLINK_NOFOLLOW);
            stat.is_ok_and(|stat| FileType::from_raw_mode(stat.st_mode) == FileType::Symlink)
        };
        let has_new = |folder: &OwnedFd, matters: &dyn Fn(&Path) -> bool| {
            Dir::read_from(folder).is_ok_and(|entries| {
                entries.flatten().any(|entry| {
                    let name = Path::new(std::ffi::OsStr::from_bytes(entry.file_name().to_bytes()));
                    matters(name) && is_new(folder, name)
                })
            })
        };
        let settings = Path::new("config");
        has_new(fd, &|name| is_link(fd, name))
            || ["commondir", "config.worktree", "objects/info/alternates"]
                .iter()
                .any(|name| is_new(fd, Path::new(name)))
            || is_new(fd, settings)
                && !text(fd, settings).is_some_and(|text| {
                    config::is_harmless(&text) && config::work_tree(&text).is_none_or(|tree| self.is_inside(path, tree))
                })
            || mount::open_beneath(fd.as_fd(), Path::new("hooks"), OFlags::RDONLY | OFlags::DIRECTORY).is_ok_and(
                |hooks| {
                    let is_hook = |name: &Path| {
                        name.extension().is_none_or(|ending| ending != "sample")
                            && name != Path::new(".")
                            && name != Path::new("..")
                    };
                    has_new(&hooks, &is_hook)
                },
            )
    }

    /// Whether what settings in `folder` name is a folder of this root, and no link on the way to it: `git checkout` and
    /// `git clean` there write and remove wherever it leads.
    fn is_inside(&self, folder: &Path, name: &str) -> bool {
        within(folder, Path::new(name))
            .is_some_and(|tree| mount::open_beneath(self.top.as_fd(), &tree, OFlags::PATH | OFlags::DIRECTORY).is_ok())
    }

    fn disarm(&self, folder: &Path, name: &Path) -> io::Result<()> {
        let fd = mount::open_beneath(self.top.as_fd(), folder, OFlags::RDONLY | OFlags::DIRECTORY)?;
        let mut disarmed = name.as_os_str().to_owned();
        disarmed.push(DISARMED);
        Ok(rustix::fs::renameat(&fd, name, &fd, &disarmed)?)
    }
}

/// What git reads wherever it lies: all that is a repository's own, and in a work tree gitignore(5), gitattributes(5), gitmailmap(5).
fn is_read_by_git(folder: &Path, name: &Path) -> bool {
    const READ: [&str; 3] = [".gitignore", ".gitattributes", ".mailmap"];
    let name = name.as_os_str().to_ascii_lowercase();
    let is_own = |part: std::path::Component<'_>| part.as_os_str().eq_ignore_ascii_case(".git");
    READ.iter().any(|read| name == *read) || folder.components().any(is_own)
}

fn is_absent(fd: &OwnedFd, name: &str) -> bool {
    matches!(
        rustix::fs::statat(fd, name, AtFlags::SYMLINK_NOFOLLOW),
        Err(rustix::io::Errno::NOENT)
    )
}

/// A small file's text; none where it is anything else.
pub fn text(folder: &OwnedFd, path: impl AsRef<Path>) -> Option<String> {
    let flags = OFlags::RDONLY | OFlags::NONBLOCK;
    let file = File::from(mount::open_beneath(folder.as_fd(), path.as_ref(), flags).ok()?);
    let metadata = file.metadata().ok()?;
    if !metadata.is_file() || metadata.len() > TEXT_MAX {
        return None;
    }
    let mut text = String::new();
    file.take(TEXT_MAX).read_to_string(&mut text).ok()?;
    Some(text)
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::os::unix::fs::{PermissionsExt, symlink};

    use super::*;

    /// A root beside a folder that is none of the task's, and a link in the root to it and to a folder of the root's own.
    fn place() -> (tempfile::TempDir, OwnedFd) {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        for folder in ["root", "root/real", "outside"] {
            fs::create_dir(at(folder)).unwrap();
        }
        symlink("real", at("root/inner")).unwrap();
        symlink(at("outside"), at("root/outer")).unwrap();
        let top = mount::open_source(&at("root")).unwrap();
        (place, top)
    }

    fn all_is_new<'a>(none: &'a BTreeSet<PathBuf>) -> Before<'a> {
        Before {
            begun: 0,
            git: GitMode::Safe,
            known: none,
            ours: none,
        }
    }

    /// What was a folder when it was listed may be a link when it is looked into, for a task that shares the root may still run.
    #[test]
    fn nothing_is_looked_at_disarmed_or_read_through_a_link() {
        let (place, top) = place();
        let none = BTreeSet::new();
        let mut sweep = Sweep {
            top: &top,
            before: all_is_new(&none),
            told: Vec::new(),
            seen: 0,
        };
        for (link, real) in [("inner", "root/real"), ("outer", "outside")] {
            let real = place.path().join(real);
            fs::write(real.join("HEAD"), "ref: refs/heads/main").unwrap();
            fs::set_permissions(real.join("HEAD"), fs::Permissions::from_mode(0o4755)).unwrap();
            let link = Path::new(link);
            assert!(sweep.folder(link, &mut Vec::new()).is_err());
            assert!(sweep.disarm(link, Path::new("HEAD")).is_err());
            assert!(sweep.take_set_id(link, Path::new("HEAD"), 0o755).is_err());
            assert_eq!(text(&top, link.join("HEAD")), None);
            // Where the work tree of a repository may be.
            assert!(!sweep.is_inside(Path::new(""), link.to_str().unwrap()));
            let mode = fs::metadata(real.join("HEAD")).unwrap().permissions().mode();
            assert_eq!(mode & 0o7777, 0o4755, "{link:?}");
        }
        assert!(sweep.is_inside(Path::new(""), "real") && sweep.told.is_empty());
    }

    #[test]
    fn only_plain_files_are_read_and_none_that_would_keep_the_reader_waiting() {
        let (place, top) = place();
        let at = |name: &str| place.path().join("root").join(name);
        rustix::fs::mknodat(&top, "fifo", FileType::Fifo, Mode::RWXU, 0).unwrap();
        symlink("plain", at("link")).unwrap();
        fs::write(at("plain"), "x").unwrap();
        fs::write(at("large"), vec![b'x'; TEXT_MAX as usize + 1]).unwrap();
        let read = |name: &str| text(&top, name);
        assert_eq!(read("plain").as_deref(), Some("x"));
        for name in ["fifo", "link", "large", "real", "absent"] {
            assert_eq!(read(name), None, "{name}");
        }
    }

    /// Nobody inside can make one; whoever serves a root's files may.
    #[test]
    fn devices_that_are_there_at_the_end_are_told() {
        if !rustix::process::geteuid().is_root() {
            eprintln!("skipped: only root makes devices");
            return;
        }
        let (_place, top) = place();
        let null = rustix::fs::makedev(1, 3);
        for (name, kind) in [
            ("character", FileType::CharacterDevice),
            ("block", FileType::BlockDevice),
        ] {
            rustix::fs::mknodat(&top, name, kind, Mode::RWXU, null).unwrap();
        }
        let none = BTreeSet::new();
        let mut told = sweep(&top, all_is_new(&none));
        told.sort();
        let device = |name: &str| ("device", PathBuf::from(name));
        assert_eq!(told, [device("block"), device("character")]);
    }
}
