//! What an exec sent and received through the way out: the bytes of the connections whose sockets its processes held.
//!
//! It is evidence, for processes of one task can hand sockets to one another. Where a connection could not be put down to anybody
//! while an exec ran, the exec's figure is not known, and the record says so by leaving it out.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use futures_util::future::BoxFuture;

use crate::egress::{Attribution, Client, EgressBytes, Totals, Transport};
use crate::id::ExecId;
use crate::sandbox::holders;
use crate::sandbox::oci::Sandbox;

/// The traffic of one task.
pub struct Traffic {
    sandbox: Arc<Sandbox>,
    counted: Mutex<Counted>,
}

#[derive(Default)]
struct Counted {
    execs: HashMap<ExecId, Arc<Totals>>,
    /// Connections of nobody that is known.
    unknown: u64,
}

/// What one exec moves while this lives.
pub struct Moved {
    traffic: Arc<Traffic>,
    exec: ExecId,
    totals: Arc<Totals>,
    unknown_before: u64,
}

impl Traffic {
    pub fn new(sandbox: Arc<Sandbox>) -> Arc<Traffic> {
        Arc::new(Traffic {
            sandbox,
            counted: Mutex::default(),
        })
    }

    fn lock(&self) -> MutexGuard<'_, Counted> {
        self.counted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Counts for an exec that is about to start.
    pub fn begin(self: &Arc<Self>, exec: ExecId) -> Moved {
        let totals = Arc::new(Totals::default());
        let mut counted = self.lock();
        counted.execs.insert(exec, totals.clone());
        Moved {
            traffic: self.clone(),
            exec,
            totals,
            unknown_before: counted.unknown,
        }
    }
}

impl Moved {
    /// The bytes until now; `None` where some connection could have been this exec's and cannot be told.
    pub fn sum(&self) -> Option<EgressBytes> {
        (self.traffic.lock().unknown == self.unknown_before).then(|| self.totals.bytes())
    }
}

impl Drop for Moved {
    fn drop(&mut self) {
        self.traffic.lock().execs.remove(&self.exec);
    }
}

impl Attribution for Traffic {
    fn exec_of(&self, client: Client) -> BoxFuture<'_, Option<ExecId>> {
        let transport = match client.transport {
            Transport::Tcp => holders::Transport::Tcp,
            Transport::Udp => holders::Transport::Udp,
        };
        let sandbox = self.sandbox.clone();
        Box::pin(async move {
            let look = tokio::task::spawn_blocking(move || sandbox.holder_of(transport, client.address));
            look.await.ok().flatten()
        })
    }

    fn totals_of(&self, exec: Option<ExecId>) -> Option<Arc<Totals>> {
        let mut counted = self.lock();
        match exec.and_then(|exec| counted.execs.get(&exec).cloned()) {
            Some(totals) => Some(totals),
            None => {
                counted.unknown += 1;
                None
            }
        }
    }
}
