//! Writable roots for an engine that maps no ids: mounted once under the command's user, for the moment in which it takes them.
//!
//! The command's user inside is 1000 outside too, and the files of the roots are the caller's. As with the other backends a mount
//! whose ids are mapped lets both be true; but an engine takes paths, not descriptors, so that mount is for a moment at a path: in a
//! folder of root's own, from which nothing is ever removed but empty folders, so that no clearing up can reach through it into
//! somebody's files.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FileType, Mode, OFlags};

use super::{DockerError, io as io_error};
use crate::path::HostPath;
use crate::sandbox::launcher::{GiveRequest, Launcher};
use crate::sandbox::plan::{Ids, Owner, Plan, Source};
use crate::sys::mount;

/// The mounts; unmounted when this is dropped.
pub struct Owned {
    folder: PathBuf,
    mounted: Vec<(HostPath, PathBuf)>,
}

impl Owned {
    /// Mounts what a caller who is root gives to the command's user. Blocking.
    pub fn make(plan: &Plan, mounts: &Path, launcher: &Mutex<Launcher>) -> Result<Owned, DockerError> {
        let mut owned = Owned {
            folder: mounts.join(plan.task.to_string()),
            mounted: Vec::new(),
        };
        let Ids::Range { .. } = plan.ids else { return Ok(owned) };
        for mount in &plan.mounts {
            let Source::Bind {
                host,
                owner: Owner::User,
            } = &mount.source
            else {
                continue;
            };
            let request = GiveRequest {
                host: host.clone(),
                attributes: mount.attributes,
                uid: plan.process.uid,
                gid: plan.process.gid,
            };
            let given = launcher.lock().unwrap_or_else(PoisonError::into_inner).give(&request);
            let tree = given.map_err(|source| DockerError::Give { source })?;
            owned
                .attach(host, &tree)
                .map_err(io_error("mount a root for the engine"))?;
        }
        Ok(owned)
    }

    fn attach(&mut self, host: &HostPath, tree: &OwnedFd) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o700).create(&self.folder)?;
        let place = self.folder.join(self.mounted.len().to_string());
        match FileType::from_raw_mode(rustix::fs::fstat(tree)?.st_mode) {
            FileType::Directory => fs::create_dir(&place)?,
            _ => drop(fs::File::create_new(&place)?),
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = rustix::fs::open(&place, flags, Mode::empty())?;
        mount::attach(tree.as_fd(), target.as_fd())?;
        self.mounted.push((host.clone(), place));
        Ok(())
    }

    /// Where the engine finds a folder of the host's.
    pub fn path(&self, host: &HostPath) -> PathBuf {
        let made = self.mounted.iter().find(|(one, _)| one == host);
        made.map_or_else(|| host.as_ref().to_owned(), |(_, place)| place.clone())
    }
}

impl Drop for Owned {
    fn drop(&mut self) {
        if let Err(error) = clear_task(&self.folder) {
            tracing::warn!(%error, "what was mounted for an engine stays until the next start");
        }
    }
}

/// Unmounts all that is mounted below for tasks that are dead.
pub fn clear(mounts: &Path, is_alive: &dyn Fn(&str) -> bool) -> io::Result<()> {
    let is_dead = |entry: &fs::DirEntry| entry.file_name().to_str().is_some_and(|task| !is_alive(task));
    match fs::read_dir(mounts) {
        Ok(entries) => entries
            .flatten()
            .filter(is_dead)
            .try_for_each(|entry| clear_task(&entry.path())),
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        Err(error) => Err(error),
    }
}

fn clear_task(folder: &Path) -> io::Result<()> {
    let entries = match fs::read_dir(folder) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other?,
    };
    for entry in entries {
        let place = entry?.path();
        mount::detach_all(&place)?;
        // Neither call removes anything that has something in it, should it be mounted still.
        let metadata = fs::symlink_metadata(&place)?;
        match metadata.is_dir() {
            true => fs::remove_dir(&place)?,
            false if metadata.len() == 0 => fs::remove_file(&place)?,
            false => return Err(io::Error::other(format!("{} is not empty", place.display()))),
        }
    }
    fs::remove_dir(folder)
}
