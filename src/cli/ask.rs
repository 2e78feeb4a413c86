//! The person at the terminal, as somebody whom the approval desk can ask.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use super::terminal::{self, NoAnswer};
use crate::approval::{Answering, Ask, OpenQuestion, Reply, Unasked};
use crate::policy::{Approver, ApproverKind};

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
    fn ask(&self, question: OpenQuestion) -> Answering<'_> {
        Box::pin(async move {
            let mut is_told = false;
            loop {
                if terminal::is_held() {
                    if !is_told && let Err(error) = terminal::tell_of_question(&question) {
                        return Err(NoAnswer::NoTerminal(error).into());
                    }
                    is_told = true;
                    terminal::let_go().await;
                }
                let _turn = self.one.lock().await;
                match self.ask_once(&question).await {
                    Err(NoAnswer::Held) => continue,
                    Err(none) => return Err(none.into()),
                    Ok(reply) => return Ok((reply, self.person())),
                }
            }
        })
    }
}

impl AtTerminal {
    async fn ask_once(&self, question: &OpenQuestion) -> Result<Reply, NoAnswer> {
        let withdrawn = Withdrawn(Arc::default());
        let flag = withdrawn.0.clone();
        let (task, purpose, question) = (self.task.clone(), self.purpose.clone(), question.clone());
        let asking =
            tokio::task::spawn_blocking(move || terminal::ask_at_terminal(&task, purpose.as_deref(), &question, &flag));
        asking.await.unwrap_or(Err(NoAnswer::Withdrawn))
    }

    fn person(&self) -> Approver {
        Approver {
            kind: ApproverKind::Person,
            name: self.user.clone(),
            via: "terminal".to_owned(),
        }
    }
}

impl From<NoAnswer> for Unasked {
    fn from(none: NoAnswer) -> Self {
        Unasked { why: none.to_string() }
    }
}

/// Dropped with the future that asks: the terminal is let go.
struct Withdrawn(Arc<AtomicBool>);

impl Drop for Withdrawn {
    fn drop(&mut self) {
        self.0.store(true, Ordering::SeqCst);
    }
}
