//! How many connections fit: into one task, and into all of one belljar together.

use std::fmt;
use std::sync::{Arc, LazyLock};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::sys::process;

/// Descriptors that the rest of belljar keeps: sandboxes, execs' pipes, the journal.
const KEPT: u64 = 1024;
/// A tunnel has two ends.
const EACH: u64 = 2;
/// What there is room for however few descriptors there are.
const LEAST: u64 = 64;

/// Room for the connections of all tasks.
#[derive(Debug, Clone)]
pub struct Room(Arc<Semaphore>);

/// One task's share of it.
#[derive(Debug, Clone)]
pub(super) struct TaskRoom {
    own: Arc<Semaphore>,
    all: Room,
}

/// A connection's place; free again when it is dropped.
#[derive(Debug)]
pub(super) struct Place {
    _own: OwnedSemaphorePermit,
    _all: OwnedSemaphorePermit,
}

/// What is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    Task,
    All,
}

impl Room {
    pub fn new(connections: usize) -> Self {
        Self(Arc::new(Semaphore::new(connections)))
    }

    /// As much as this process has descriptors for, after it has taken as many as it may. One for all who ask.
    pub fn of_process() -> Self {
        static ROOM: LazyLock<Room> = LazyLock::new(|| {
            let open_files = process::raise_open_files();
            let fit = (open_files.saturating_sub(KEPT) / EACH).max(LEAST);
            Room::new(usize::try_from(fit).unwrap_or(usize::MAX).min(Semaphore::MAX_PERMITS))
        });
        ROOM.clone()
    }

    /// Places that are free now.
    pub fn free(&self) -> usize {
        self.0.available_permits()
    }

    pub(super) fn of_task(self, connections: usize) -> TaskRoom {
        TaskRoom {
            own: Arc::new(Semaphore::new(connections)),
            all: self,
        }
    }
}

impl TaskRoom {
    pub fn take(&self) -> Result<Place, Full> {
        let own = self.own.clone().try_acquire_owned().map_err(|_| Full::Task)?;
        let all = self.all.0.clone().try_acquire_owned().map_err(|_| Full::All)?;
        Ok(Place { _own: own, _all: all })
    }
}

impl fmt::Display for Full {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Full::Task => "the task has as many connections as it may have",
            Full::All => "all tasks together have as many connections as belljar can hold",
        })
    }
}
