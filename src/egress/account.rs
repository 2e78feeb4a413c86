//! What is known about one connection while it lives, and the record of its end.

use std::net::SocketAddr;
use std::sync::Arc;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Instant;

use tokio::sync::mpsc::OwnedPermit;

use super::gate::Route;
use crate::audit::record::Event;
use crate::id::ExecId;

/// Bytes over all connections of a task.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct EgressBytes {
    pub sent: u64,
    pub received: u64,
}

/// Counts bytes in both directions, while connections live.
#[derive(Debug, Default)]
pub struct Totals {
    sent: AtomicU64,
    received: AtomicU64,
}

impl Totals {
    pub fn bytes(&self) -> EgressBytes {
        EgressBytes {
            sent: self.sent.load(Ordering::Relaxed),
            received: self.received.load(Ordering::Relaxed),
        }
    }
}

/// Where the bytes of one connection are counted beside its own account.
pub(super) struct Counts {
    pub of_task: Arc<Totals>,
    pub of_exec: Option<Arc<Totals>>,
}

impl Counts {
    fn each(&self, direction: impl Fn(&Totals) -> &AtomicU64, bytes: usize) {
        let both = [Some(&self.of_task), self.of_exec.as_ref()];
        for totals in both.into_iter().flatten() {
            direction(totals).fetch_add(bytes as u64, Ordering::Relaxed);
        }
    }
}

/// The end of a connection, for the record.
pub struct End {
    pub exec: Option<ExecId>,
    pub event: Event,
}

/// One allowed connection. When the last holder drops it, however that comes about, its `egress.finished` goes to the record:
/// the place in the queue was taken before the connection was made.
pub(super) struct Account {
    exec: Option<ExecId>,
    host: String,
    port: u16,
    protocol: &'static str,
    method: Option<String>,
    rule: String,
    address: OnceLock<SocketAddr>,
    error: OnceLock<String>,
    complete: AtomicBool,
    started: Instant,
    sent: AtomicU64,
    received: AtomicU64,
    counts: Counts,
    place: Option<OwnedPermit<End>>,
}

impl Account {
    pub fn new(route: &Route, exec: Option<ExecId>, totals: Counts, place: OwnedPermit<End>) -> Self {
        let destination = route.destination();
        Self {
            exec,
            host: destination.host.to_string(),
            port: destination.port,
            protocol: destination.protocol.as_str(),
            method: destination.method.clone(),
            rule: route.rule().to_owned(),
            address: OnceLock::new(),
            error: OnceLock::new(),
            complete: AtomicBool::new(false),
            started: Instant::now(),
            sent: AtomicU64::new(0),
            received: AtomicU64::new(0),
            counts: totals,
            place: Some(place),
        }
    }

    /// The exec that asked, as far as it is known.
    pub fn exec(&self) -> Option<ExecId> {
        self.exec
    }

    /// Notes the address that was really reached.
    pub fn reached(&self, address: SocketAddr) {
        let _ = self.address.set(address);
    }

    /// Notes why the connection ends; the first reason counts.
    pub fn fail(&self, error: impl Into<String>) {
        let _ = self.error.set(error.into());
    }

    /// Notes that the connection came to its natural end; one that did not is recorded as cut off.
    pub fn complete(&self) {
        self.complete.store(true, Ordering::Relaxed);
    }

    pub fn add_sent(&self, bytes: usize) {
        self.sent.fetch_add(bytes as u64, Ordering::Relaxed);
        self.counts.each(|totals| &totals.sent, bytes);
    }

    pub fn add_received(&self, bytes: usize) {
        self.received.fetch_add(bytes as u64, Ordering::Relaxed);
        self.counts.each(|totals| &totals.received, bytes);
    }

    /// Bytes in both directions so far: what has not grown is idle.
    pub fn progress(&self) -> u64 {
        self.sent.load(Ordering::Relaxed) + self.received.load(Ordering::Relaxed)
    }
}

impl Drop for Account {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else { return };
        let error = match (self.error.take(), self.complete.load(Ordering::Relaxed)) {
            (None, false) => Some("the connection was cut off".to_owned()),
            (error, _) => error,
        };
        let event = Event::EgressFinished {
            host: std::mem::take(&mut self.host),
            port: self.port,
            protocol: self.protocol.to_owned(),
            method: self.method.take(),
            decision: Some("allow".to_owned()),
            rule: Some(std::mem::take(&mut self.rule)),
            address: self.address.get().map(ToString::to_string),
            bytes_sent: self.sent.load(Ordering::Relaxed),
            bytes_received: self.received.load(Ordering::Relaxed),
            wall_seconds: self.started.elapsed().as_secs_f64(),
            error,
        };
        place.send(End { exec: self.exec, event });
    }
}
