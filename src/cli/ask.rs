//! The person at the terminal, as somebody whom the approval desk can ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::terminal;
use crate::approval::{Answering, Ask, Asked};
use crate::policy::{Answer, Approver, ApproverKind};

/// Whoever sits at the terminal of this process. Questions are put one after the other.
pub struct AtTerminal {
    task: String,
    purpose: Option<String>,
    user: String,
    one: tokio::sync::Mutex<()>,
}

impl AtTerminal {
    /// `user` is who runs belljar: the name under which answers are recorded.
    pub fn new(task: &str, purpose: Option<&str>, user: &str) -> Self {
        Self {
            task: task.to_owned(),
            purpose: purpose.map(str::to_owned),
            user: user.to_owned(),
            one: tokio::sync::Mutex::new(()),
        }
    }
}

impl Ask for AtTerminal {
    fn ask(&self, asked: Asked) -> Answering<'_> {
        Box::pin(async move {
            let _turn = self.one.lock().await;
            let withdrawn = Withdrawn(Arc::default());
            let flag = withdrawn.0.clone();
            let (task, purpose) = (self.task.clone(), self.purpose.clone());
            let answered = tokio::task::spawn_blocking(move || {
                terminal::ask_at_terminal(&task, purpose.as_deref(), &asked, &flag)
            });
            match answered.await {
                Ok(Ok(answer)) => (answer, self.approver(ApproverKind::Person, &self.user, "terminal")),
                Ok(Err(none)) => self.no(&none.to_string()),
                Err(_) => self.no("asking failed"),
            }
        })
    }
}

impl AtTerminal {
    fn no(&self, why: &str) -> (Answer, Approver) {
        let reason = format!("this needs an approval, and nobody could be asked ({why})");
        (Answer::Deny(reason), self.approver(ApproverKind::Nobody, "nobody", why))
    }

    fn approver(&self, kind: ApproverKind, name: &str, via: &str) -> Approver {
        Approver {
            kind,
            name: name.to_owned(),
            via: via.to_owned(),
        }
    }
}

/// Dropped with the future that asks: the terminal is let go.
struct Withdrawn(Arc<AtomicBool>);

impl Drop for Withdrawn {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
