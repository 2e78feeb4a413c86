//! Placeholders on the host: noted before they are made, shared by the tasks of one root, and gone with the last of them.
//!
//! ```text
//!   <state>/roots/lock            held while names are looked at, made or removed
//!   <state>/roots/<root>/<task>   what a task's placeholders in one root are, a JSON document; gone with the task
//! ```
//!
//! Removing a name that another task has mounted over would unmount it there, so a placeholder goes only when no note names it.

use std::collections::BTreeSet;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::time::{SystemTime, UNIX_EPOCH};

use rustix::fs::{AtFlags, FileType, Gid, Mode, OFlags, Uid};
use rustix::io::Errno;
use serde::{Deserialize, Serialize};

use super::sweep::{Before, sweep};
use super::walk::Found;
use super::{ProtectError, Protected, Stand, look_at, writable};
use crate::id::TaskId;
use crate::path::{HostPath, SandboxPath};
use crate::policy::Digest;
use crate::sys::mount;
use crate::task::{GitMode, Root};

/// What one task put into one root.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
struct Note {
    version: u32,
    root: HostPath,
    /// Where it lies inside.
    path: SandboxPath,
    git: GitMode,
    /// Nanoseconds since 1970.
    begun: i64,
    /// Git folders that were there.
    repositories: BTreeSet<PathBuf>,
    /// Parents first.
    stands: Vec<(PathBuf, Stand)>,
}

/// Keeps the placeholders of a task; settled, or dropped, once nothing inside runs any more.
#[derive(Debug)]
pub struct Guard {
    pub protected: Protected,
    state: PathBuf,
    task: TaskId,
    roots: Vec<HostPath>,
}

impl Guard {
    /// Looks at the writable roots and puts placeholders where names are missing. Blocking, for about a millisecond a root.
    pub fn raise(state: &Path, task: TaskId, roots: &[Root]) -> Result<Guard, ProtectError> {
        let mut guard = Guard {
            protected: Protected::default(),
            state: state.to_owned(),
            task,
            roots: Vec::new(),
        };
        let folder = folder(state);
        let note = |source| ProtectError::Note {
            path: folder.clone(),
            source,
        };
        let _lock = lock(state).map_err(note)?;
        for (root, others) in writable(roots) {
            let shared = notes(&folder_of(state, &root.host)).map_err(note)?;
            let is_stand = |path: &Path| {
                let mut stands = shared.iter().flat_map(|(_, note)| &note.stands);
                stands.any(|(name, _)| name == path)
            };
            let found = look_at(root, &others, &is_stand)?;
            // The guard knows of the root before anything is made in it: dropped at any point from here on, it clears up.
            guard.roots.push(root.host.clone());
            let found = guard.place(root, found)?;
            guard.protected.add(root, &found);
        }
        Ok(guard)
    }

    /// Makes the placeholders of one root; a name that cannot be made by us on a file system that nobody can write to needs none.
    fn place(&self, root: &Root, mut found: Found) -> Result<Found, ProtectError> {
        let file = folder_of(&self.state, &root.host).join(self.task.to_string());
        let note = Note {
            version: 1,
            root: root.host.clone(),
            path: root.path.clone(),
            git: root.git,
            begun: now() - CLOCK_SLACK,
            repositories: found.repositories.clone(),
            stands: found.stands.clone(),
        };
        write(&file, &note).map_err(|source| ProtectError::Note {
            path: file.clone(),
            source,
        })?;
        let failed = |path: &Path| {
            let path = root.host.as_path().join(path);
            move |source| ProtectError::Place { path, source }
        };
        let top = mount::open_source(root.host.as_ref()).map_err(failed(Path::new("")))?;
        for (path, stand) in std::mem::take(&mut found.stands) {
            match make(&top, &path, stand) {
                Ok(()) => found.stands.push((path, stand)),
                Err(error) if error.raw_os_error() == Some(Errno::ROFS.raw_os_error()) => {
                    found.holds.retain(|held, _| !held.starts_with(&path));
                }
                Err(error) => return Err(failed(&path)(error)),
            }
        }
        Ok(found)
    }
}

impl Guard {
    /// Removes the placeholders and tells what the task left that is more than files and folders. Blocking, as long as it takes to
    /// look at every file.
    pub fn settle(mut self) -> Vec<String> {
        self.release()
    }

    fn release(&mut self) -> Vec<String> {
        let mut left = Vec::new();
        for root in std::mem::take(&mut self.roots) {
            match settle(&self.state, &folder_of(&self.state, &root), &self.task.to_string()) {
                Ok(more) => left.extend(more),
                Err(error) => tracing::warn!(%root, %error, "placeholders stay; the next start tries again"),
            }
        }
        left
    }
}

impl Drop for Guard {
    fn drop(&mut self) {
        self.release();
    }
}

/// Settles what tasks that are no longer alive left. Blocking.
pub fn settle_dead(state: &Path, is_alive: &dyn Fn(TaskId) -> bool) -> io::Result<Vec<String>> {
    let mut left = Vec::new();
    for root in fs::read_dir(folder(state)).into_iter().flatten().flatten() {
        for entry in fs::read_dir(root.path()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let task = name.to_str().and_then(|name| name.parse::<TaskId>().ok());
            if task.is_some_and(|task| !is_alive(task)) {
                left.extend(settle(state, &root.path(), &name.to_string_lossy())?);
            }
        }
    }
    Ok(left)
}

/// Removes the placeholders that only this task's note names, looks at the root, then removes the note.
fn settle(state: &Path, folder: &Path, task: &str) -> io::Result<Vec<String>> {
    let mut left = Vec::new();
    let (own, ours) = {
        let _lock = lock(state)?;
        let (own, others): (Vec<_>, Vec<_>) = notes(folder)?.into_iter().partition(|(name, _)| name == task);
        for (_, note) in &own {
            // A root that is gone took its placeholders along.
            let Ok(top) = mount::open_source(note.root.as_ref()) else {
                continue;
            };
            for (path, stand) in note.stands.iter().rev() {
                let is_shared = others
                    .iter()
                    .any(|(_, other)| other.stands.iter().any(|(held, _)| held == path));
                if !is_shared {
                    remove(&top, path, *stand)?;
                }
            }
        }
        let stands = others.into_iter().flat_map(|(_, other)| other.stands);
        (own, stands.map(|(path, _)| path).collect())
    };
    for (name, note) in own {
        if let Ok(top) = mount::open_source(note.root.as_ref()) {
            left.extend(look_back(&top, &note, &ours));
        }
        let _lock = lock(state)?;
        fs::remove_file(folder.join(name))?;
        match fs::remove_dir(folder) {
            Ok(()) => {}
            Err(error) if matches!(error.kind(), ErrorKind::DirectoryNotEmpty | ErrorKind::NotFound) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(left)
}

fn look_back(top: &OwnedFd, note: &Note, ours: &BTreeSet<PathBuf>) -> Vec<String> {
    let before = Before {
        begun: note.begun,
        git: note.git,
        known: &note.repositories,
        ours,
    };
    let told = sweep(top, before).into_iter().map(|(what, name)| {
        let path = Path::new(note.path.as_str()).join(name);
        // A name may hold any byte; a record holds text.
        // Debug escapes control characters and bytes that are no UTF-8, and loses none.
        let shown = format!("{path:?}");
        format!("{what}: {}", &shown[1..shown.len() - 1])
    });
    told.collect()
}

/// How far the clock of file times lags behind: it is set at every tick of the kernel, 10 ms at most.
const CLOCK_SLACK: i64 = 20_000_000;

fn now() -> i64 {
    let time = SystemTime::now().duration_since(UNIX_EPOCH);
    time.map_or(0, |since| since.as_nanos() as i64)
}

fn folder(state: &Path) -> PathBuf {
    state.join("roots")
}

fn folder_of(state: &Path, root: &HostPath) -> PathBuf {
    use std::os::unix::ffi::OsStrExt;
    let digest = Digest::of_bytes(root.as_path().as_os_str().as_bytes()).to_string();
    folder(state).join(digest.trim_start_matches("sha256:"))
}

fn lock(state: &Path) -> io::Result<File> {
    let folder = folder(state);
    fs::DirBuilder::new().recursive(true).mode(0o700).create(&folder)?;
    let file = File::options()
        .create(true)
        .truncate(false)
        .write(true)
        .open(folder.join("lock"))?;
    file.lock()?;
    Ok(file)
}

/// The notes of all tasks of one root.
fn notes(folder: &Path) -> io::Result<Vec<(String, Note)>> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Vec::new()),
        other => other?,
    };
    let mut all = Vec::new();
    for entry in entries {
        let entry = entry?;
        let Ok(name) = entry.file_name().into_string() else {
            continue;
        };
        // A note that was cut off by a crash was followed by nothing.
        match serde_json::from_slice::<Note>(&fs::read(entry.path())?) {
            Ok(note) => all.push((name, note)),
            Err(_) => fs::remove_file(entry.path())?,
        }
    }
    Ok(all)
}

fn write(file: &Path, note: &Note) -> io::Result<()> {
    if let Some(folder) = file.parent() {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(folder)?;
    }
    fs::write(file, serde_json::to_vec(note).map_err(io::Error::other)?)
}

fn parent_of(top: &OwnedFd, path: &Path) -> io::Result<OwnedFd> {
    let parent = path.parent().unwrap_or(Path::new(""));
    mount::open_beneath(top.as_fd(), parent, OFlags::PATH | OFlags::DIRECTORY)
}

/// Makes one placeholder, owned by whoever owns the folder that it lies in. One that is there already is another task's.
fn make(top: &OwnedFd, path: &Path, stand: Stand) -> io::Result<()> {
    let parent = parent_of(top, path)?;
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let made = match stand {
        Stand::Folder => rustix::fs::mkdirat(&parent, name, Mode::from_raw_mode(0o755)),
        Stand::Socket => {
            let mode = Mode::from_raw_mode(0o644);
            rustix::fs::mknodat(&parent, name, FileType::Socket, mode, 0)
        }
        Stand::Empty | Stand::Dot => {
            let flags = OFlags::WRONLY | OFlags::CREATE | OFlags::EXCL | OFlags::NOFOLLOW | OFlags::CLOEXEC;
            rustix::fs::openat(&parent, name, flags, Mode::from_raw_mode(0o644)).and_then(|fd| {
                rustix::io::write(&fd, stand.text().as_bytes())?;
                Ok(())
            })
        }
    };
    match made {
        Ok(()) => {}
        Err(Errno::EXIST) => return Ok(()),
        Err(error) => return Err(error.into()),
    }
    let owner = rustix::fs::fstat(&parent)?;
    if rustix::process::geteuid().is_root() && owner.st_uid != 0 {
        let (uid, gid) = (Uid::from_raw(owner.st_uid), Gid::from_raw(owner.st_gid));
        rustix::fs::chownat(&parent, name, Some(uid), Some(gid), AtFlags::SYMLINK_NOFOLLOW)?;
    }
    Ok(())
}

/// Removes one placeholder if it is still what was made: an empty folder, a socket, a file with the very text.
fn remove(top: &OwnedFd, path: &Path, stand: Stand) -> io::Result<()> {
    let is_gone = |error: &io::Error| {
        matches!(
            error.raw_os_error().map(Errno::from_raw_os_error),
            Some(Errno::NOENT | Errno::NOTDIR | Errno::LOOP)
        )
    };
    let parent = match parent_of(top, path) {
        Err(error) if is_gone(&error) => return Ok(()),
        other => other?,
    };
    let name = path.file_name().ok_or(ErrorKind::InvalidInput)?;
    let stat = match rustix::fs::statat(&parent, name, AtFlags::SYMLINK_NOFOLLOW) {
        Err(Errno::NOENT) => return Ok(()),
        other => other?,
    };
    let kind = FileType::from_raw_mode(stat.st_mode);
    let removed = match stand {
        Stand::Folder => match rustix::fs::unlinkat(&parent, name, AtFlags::REMOVEDIR) {
            // Somebody has put something into it, or something else in its place: it is theirs now.
            Err(Errno::NOTEMPTY | Errno::EXIST | Errno::NOTDIR) => Ok(()),
            other => other,
        },
        Stand::Socket if kind == FileType::Socket => rustix::fs::unlinkat(&parent, name, AtFlags::empty()),
        Stand::Empty | Stand::Dot if kind == FileType::RegularFile && stat.st_size as usize == stand.text().len() => {
            rustix::fs::unlinkat(&parent, name, AtFlags::empty())
        }
        Stand::Socket | Stand::Empty | Stand::Dot => Ok(()),
    };
    Ok(removed?)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    /// A task that shares the root may swap a folder for a link while another one starts or ends. A placeholder is made by belljar, who
    /// may be root, and given to whom the folder belongs to.
    #[test]
    fn a_placeholder_is_made_and_removed_through_no_link() {
        let place = tempfile::tempdir().unwrap();
        let at = |name: &str| place.path().join(name);
        for folder in ["root", "root/real", "root/real/deep", "outside", "outside/deep"] {
            fs::create_dir(at(folder)).unwrap();
        }
        symlink("real", at("root/inner")).unwrap();
        symlink(at("outside"), at("root/outer")).unwrap();
        let top = mount::open_source(&at("root")).unwrap();
        let kinds = [Stand::Folder, Stand::Socket, Stand::Empty, Stand::Dot];
        for (by_link, real) in [
            ("inner", "root/real"),
            ("inner/deep", "root/real/deep"),
            ("outer", "outside"),
            ("outer/deep", "outside/deep"),
        ] {
            let (by_link, real) = (Path::new(by_link).join("x"), mount::open_source(&at(real)).unwrap());
            let is_there = || rustix::fs::statat(&real, "x", AtFlags::SYMLINK_NOFOLLOW).is_ok();
            for stand in kinds {
                assert!(
                    make(&top, &by_link, stand).is_err() && !is_there(),
                    "{by_link:?} {stand:?}"
                );
                // Somebody's own, which looks just like it, stays.
                make(&real, Path::new("x"), stand).unwrap();
                remove(&top, &by_link, stand).unwrap();
                assert!(is_there(), "{by_link:?} {stand:?}");
                remove(&real, Path::new("x"), stand).unwrap();
                assert!(!is_there(), "{by_link:?} {stand:?}");
            }
        }
    }
}
