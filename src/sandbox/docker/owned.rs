//! What an engine is to mount, put together at a path for the moment in which it takes it.
//!
//! An engine takes paths, not descriptors, and follows whatever stands there. So for a caller who is root every bind of the plan is
//! opened and mounted here first as with the other backends, by descriptor, with the names in it that are held; the engine gets the
//! path of that, in a folder of root's own that nobody else can change. Writable roots show as the command's user's, whose id inside is
//! the same outside where the engine maps none. From the folder nothing is ever removed but empty folders and files, so that no
//! clearing up can reach through it into somebody's files.
//!
//! An ordinary user can mount nothing, and there the engine looks up the paths itself.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};

use rustix::fs::{FileType, Mode, OFlags};

use super::{DockerError, io as io_error};
use crate::path::{HostPath, SandboxPath};
use crate::sandbox::launcher::{GiveRequest, Launcher};
use crate::sandbox::plan::{Ids, Mount, OutsideUser, Owner, Plan, Source};
use crate::sandbox::setup;
use crate::sys::mount::{self, Attributes, Depth};

/// The mounts; unmounted when this is dropped.
pub struct Owned {
    folder: PathBuf,
    /// Each by where it will be inside.
    mounted: Vec<(SandboxPath, PathBuf)>,
}

/// Who files are made by, as the host numbers them.
#[derive(Debug, Clone, Copy)]
pub struct Who {
    /// The command's.
    pub user: OutsideUser,
    /// See [`GiveRequest`].
    pub maker: Option<OutsideUser>,
}

/// Below the folder of a task: an empty file.
const NOTHING: &str = "nothing";

impl Owned {
    /// Mounts what a caller who is root has the engine mount. Blocking.
    pub fn make(plan: &Plan, mounts: &Path, launcher: &Mutex<Launcher>, who: Who) -> Result<Owned, DockerError> {
        let mut owned = Owned {
            folder: mounts.join(plan.task.to_string()),
            mounted: Vec::new(),
        };
        let Ids::Range { .. } = plan.ids else { return Ok(owned) };
        let failed = io_error("mount a root for the engine");
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o700)
            .create(&owned.folder)
            .map_err(&failed)?;
        fs::write(owned.folder.join(NOTHING), "").map_err(&failed)?;
        for mount in &plan.mounts {
            match &mount.source {
                Source::Bind { host, owner } => {
                    let tree = match owner {
                        Owner::User => {
                            let request = GiveRequest {
                                host: host.clone(),
                                attributes: mount.attributes,
                                user: who.user,
                                maker: who.maker,
                            };
                            let given = launcher.lock().unwrap_or_else(PoisonError::into_inner).give(&request);
                            given.map_err(|source| DockerError::Give { source })?
                        }
                        Owner::Same => open(host, mount.attributes).map_err(&failed)?,
                    };
                    owned.attach(&mount.path, &tree).map_err(&failed)?;
                }
                Source::Itself { within } => owned.hold(mount, within, None).map_err(&failed)?,
                Source::Nothing { within } => owned.hold(mount, within, Some(NOTHING)).map_err(&failed)?,
                Source::Tmpfs { .. }
                | Source::Proc
                | Source::Sysfs
                | Source::Devpts
                | Source::Mqueue
                | Source::Device { .. } => {}
            }
        }
        Ok(owned)
    }

    fn attach(&mut self, inside: &SandboxPath, tree: &OwnedFd) -> io::Result<()> {
        let place = self.folder.join(self.mounted.len().to_string());
        match FileType::from_raw_mode(rustix::fs::fstat(tree)?.st_mode) {
            FileType::Directory => fs::create_dir(&place)?,
            _ => drop(fs::File::create_new(&place)?),
        }
        let flags = OFlags::PATH | OFlags::NOFOLLOW | OFlags::CLOEXEC;
        let target = rustix::fs::open(&place, flags, Mode::empty())?;
        mount::attach(tree.as_fd(), target.as_fd())?;
        self.mounted.push((inside.clone(), place));
        Ok(())
    }

    /// Holds a name in a root that was mounted before.
    fn hold(&self, mount: &Mount, within: &SandboxPath, cover: Option<&str>) -> io::Result<()> {
        let place = self.path(within).ok_or(ErrorKind::NotFound)?;
        let top = place
            .file_name()
            .and_then(|name| name.to_str())
            .ok_or(ErrorKind::InvalidInput)?;
        let folder = setup::open_folder(&self.folder)?;
        let name = setup::name_within(&mount.path, within)?;
        setup::hold(folder.as_fd(), top, name, cover, mount.attributes)
    }

    /// Whether what is held in the roots is mounted in them already.
    pub fn holds(&self) -> bool {
        !self.mounted.is_empty()
    }

    /// Where the engine finds what is to be mounted at a path inside.
    pub fn path(&self, inside: &SandboxPath) -> Option<&Path> {
        let mut mounted = self.mounted.iter();
        mounted
            .find(|(path, _)| path == inside)
            .map(|(_, place)| place.as_path())
    }
}

/// A detached mount of a folder or file of the host's, as it is.
fn open(host: &HostPath, attributes: Attributes) -> io::Result<OwnedFd> {
    let source = mount::open_source(host.as_ref())?;
    let tree = mount::clone_tree(source.as_fd(), Depth::Single)?;
    mount::set_attributes(tree.as_fd(), attributes, None)?;
    Ok(tree)
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
