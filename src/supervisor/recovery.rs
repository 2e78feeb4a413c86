//! Clearing up after a belljar that was killed: its sandboxes died with it (PID 1 ends when its control socket closes); what stays
//! are folders, cgroups, and starts without an end in the journal.

use std::fs::{self, File, TryLockError};
use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::audit::journal::{Journal, JournalError};
use crate::id::TaskId;
use crate::sandbox::{oci, protect};
use crate::sys::cgroup::Cgroups;

/// The folder of all tasks under a state folder.
pub fn tasks_folder(state: &Path) -> PathBuf {
    state.join("tasks")
}

/// Takes the lock of a task, which is its folder's; `None` while another belljar holds it.
pub fn try_lock(folder: &Path) -> io::Result<Option<File>> {
    let file = File::open(folder)?;
    match file.try_lock() {
        Ok(()) => Ok(Some(file)),
        Err(TryLockError::WouldBlock) => Ok(None),
        Err(TryLockError::Error(error)) => Err(error),
    }
}

/// The ending of a task's folder while it is being made.
pub const NEW: &str = "new";

/// How long a folder may be in the making; it takes milliseconds.
const MAKING_TIME: Duration = Duration::from_secs(60);

/// Whether this is a folder that somebody began to make, and is no longer making.
fn is_abandoned(folder: &Path) -> bool {
    if folder.extension().is_none_or(|ending| ending != NEW) {
        return false;
    }
    let age = fs::symlink_metadata(folder)
        .and_then(|metadata| metadata.modified())
        .map(|time| time.elapsed());
    matches!(age, Ok(Ok(age)) if age > MAKING_TIME)
}

/// Removes what dead tasks left and closes their records. Returns how many starts were closed as lost. Blocking.
pub fn recover(state: &Path, cgroups: &Cgroups, journal: &Journal) -> Result<u64, JournalError> {
    let tasks = tasks_folder(state);
    for entry in fs::read_dir(&tasks).into_iter().flatten().flatten() {
        let folder = entry.path();
        if is_abandoned(&folder) {
            // Its belljar was killed before the task had a name: nothing refers to it.
            let _ = fs::remove_dir_all(&folder);
            continue;
        }
        let Some(id) = entry.file_name().to_str().and_then(|name| name.parse::<TaskId>().ok()) else {
            continue;
        };
        match try_lock(&folder) {
            Ok(Some(_held)) => {
                if let Some(cgroup) = cgroups.find_task(&id.to_string()) {
                    cgroup.kill();
                    oci::end_and_remove(&cgroup);
                }
                if let Err(error) = fs::remove_dir_all(&folder) {
                    tracing::warn!(%id, %error, "a dead task's folder could not be removed");
                }
            }
            Ok(None) => {}
            Err(error) => tracing::warn!(%id, %error, "a task's folder could not be looked at"),
        }
    }
    match protect::settle_dead(state, &|task| tasks.join(task.to_string()).exists()) {
        Ok(left) => left
            .iter()
            .for_each(|left| tracing::warn!(left, "a task that was lost left this")),
        Err(error) => tracing::warn!(%error, "placeholders of dead tasks could not be removed"),
    }
    // A task is alive while its folder is there: it is made before the first record and removed after the last.
    journal.close_lost(&|task| tasks.join(task.to_string()).exists())
}
