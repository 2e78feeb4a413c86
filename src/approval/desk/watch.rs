//! Those who look at the desk from elsewhere.

use std::sync::Arc;

use tokio::sync::broadcast;

use super::{Desk, lock};
use crate::approval::OpenQuestion;
use crate::id::ApprovalId;
use crate::policy::{Approver, ApproverKind};

/// What happens at the desk, for those who watch.
#[derive(Debug, Clone)]
pub enum Change {
    Asked(OpenQuestion),
    Answered {
        approval: ApprovalId,
        /// `approve`, `deny` or `withdrawn`.
        answer: &'static str,
        approver: Approver,
    },
    /// The watcher was too slow: it must look at the list again.
    Missed,
    /// The desk is closed: nothing happens there any more.
    Closed,
}

/// Who looks at the desk now.
#[derive(Debug, Clone, Copy, Default)]
pub(super) struct Watching {
    pub persons: usize,
    pub harnesses: usize,
}

/// Somebody who looks at the desk, for as long as this lives.
pub struct Watch {
    desk: Arc<Desk>,
    changes: broadcast::Receiver<Change>,
    counts: Option<ApproverKind>,
    /// Whether the desk was closed already when this began.
    is_over: bool,
}

impl Watch {
    /// The next change; `None` when the desk is closed. Cancel-safe.
    pub async fn next(&mut self) -> Option<Change> {
        if self.is_over {
            return None;
        }
        match self.changes.recv().await {
            Ok(Change::Closed) => None,
            Ok(change) => Some(change),
            Err(broadcast::error::RecvError::Lagged(_)) => Some(Change::Missed),
            Err(broadcast::error::RecvError::Closed) => None,
        }
    }
}

impl Drop for Watch {
    fn drop(&mut self) {
        if let Some(kind) = self.counts {
            self.desk.watching.send_modify(|watching| *watching.of(kind) -= 1);
        }
    }
}

impl Desk {
    /// Looks at the desk, and counts as somebody who may answer, as far as `kind` may. Subscribe first, then list.
    pub fn watch(self: &Arc<Self>, kind: ApproverKind) -> Watch {
        let counts = match kind {
            ApproverKind::Person => true,
            ApproverKind::Harness => self.approvers.harness,
            ApproverKind::Reviewer | ApproverKind::Grant | ApproverKind::Nobody => false,
        };
        if counts {
            self.watching.send_modify(|watching| *watching.of(kind) += 1);
        }
        Watch {
            changes: self.changes.subscribe(),
            counts: counts.then_some(kind),
            is_over: lock(&self.state).closing,
            desk: self.clone(),
        }
    }
}

impl Watching {
    fn of(&mut self, kind: ApproverKind) -> &mut usize {
        match kind {
            ApproverKind::Harness => &mut self.harnesses,
            ApproverKind::Person | ApproverKind::Reviewer | ApproverKind::Grant | ApproverKind::Nobody => {
                &mut self.persons
            }
        }
    }
}
