//! How many connections fit: into one task, and into all of one belljar together.
//!
//! A tunnel holds two descriptors, and the limit of open files is not always ours to raise. So where this process runs low, new
//! tunnels leave it for a carrier (see [`super::carrier`]), and what has to be looked into finds room here.

use std::fmt;
use std::sync::{Arc, LazyLock};

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::carrier::{Carriers, Seat};
use crate::sys::process;

/// Descriptors that the rest of belljar keeps: sandboxes, execs' pipes, the journal.
const KEPT: u64 = 1024;
/// Those of a carrier that are no connection's.
const KEPT_THERE: u64 = 64;
/// A tunnel has two ends.
const EACH: u64 = 2;
/// What there is room for however few descriptors there are.
const LEAST: usize = 64;
/// Carriers at the most: with the limit of open files that most machines have, 524,288, one is more than enough, and with the 20,000
/// of a small one these hold some 80,000 connections.
const CARRIERS: usize = 8;

/// Room for the connections of all tasks.
#[derive(Debug, Clone)]
pub struct Room(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    here: Arc<Semaphore>,
    /// With fewer places free than this, tunnels leave.
    low: usize,
    carriers: Option<Carriers>,
}

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
    /// In this process.
    here: Option<OwnedSemaphorePermit>,
    all: Room,
}

/// What is full.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Full {
    Task,
    All,
}

impl Room {
    /// Room in this process only.
    pub fn new(connections: usize) -> Self {
        Self(Arc::new(Shared {
            here: Arc::new(Semaphore::new(connections)),
            low: 0,
            carriers: None,
        }))
    }

    /// Room in this process, of which tunnels take half, and in up to so many carriers.
    pub fn with_carriers(connections: usize, carriers: usize, each: usize) -> Self {
        Self(Arc::new(Shared {
            here: Arc::new(Semaphore::new(connections)),
            low: connections.div_ceil(2),
            carriers: Some(Carriers::new(carriers, each)),
        }))
    }

    /// As much as this process has descriptors for, after it has taken as many as it may, and as much again in each carrier. One for
    /// all who ask.
    pub fn of_process() -> Self {
        static ROOM: LazyLock<Room> = LazyLock::new(|| {
            let open_files = process::raise_open_files();
            let fit = |kept: u64| {
                let fit = open_files.saturating_sub(kept) / EACH;
                // Of all carriers together it must be a number, too.
                usize::try_from(fit)
                    .unwrap_or(usize::MAX)
                    .min(Semaphore::MAX_PERMITS / 16)
            };
            let there = fit(KEPT_THERE);
            // One that could hold nothing is not worth a process.
            let carriers = if there > 0 { CARRIERS } else { 0 };
            Room::with_carriers(fit(KEPT).max(LEAST), carriers, there)
        });
        ROOM.clone()
    }

    /// Places that are free now, in all processes.
    pub fn free(&self) -> usize {
        let elsewhere = self.0.carriers.as_ref().map_or(0, Carriers::free);
        self.0.here.available_permits() + elsewhere
    }

    pub(super) fn of_task(self, connections: usize) -> TaskRoom {
        TaskRoom {
            own: Arc::new(Semaphore::new(connections)),
            all: self,
        }
    }

    /// Every tunnel leaves.
    #[cfg(test)]
    pub(super) fn elsewhere(carriers: usize, each: usize) -> Self {
        Self(Arc::new(Shared {
            here: Arc::new(Semaphore::new(64)),
            low: 64,
            carriers: Some(Carriers::new(carriers, each)),
        }))
    }

    /// The processes that carry connections.
    #[cfg(test)]
    pub(super) fn processes(&self) -> Vec<u32> {
        self.0.carriers.as_ref().map(Carriers::processes).unwrap_or_default()
    }
}

impl TaskRoom {
    pub fn take(&self) -> Result<Place, Full> {
        let own = self.own.clone().try_acquire_owned().map_err(|_| Full::Task)?;
        let here = self.all.0.here.clone().try_acquire_owned().map_err(|_| Full::All)?;
        Ok(Place {
            _own: own,
            here: Some(here),
            all: self.all.clone(),
        })
    }
}

impl Place {
    /// A seat in a carrier, where there is little room left in this process. The place here is free when the connection has left.
    pub fn leave(&mut self) -> Option<Seat> {
        let Shared { here, low, carriers } = &*self.all.0;
        if here.available_permits() >= *low {
            return None;
        }
        let seat = carriers.as_ref()?.seat()?;
        Some(seat.leaving(self.here.take()))
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
