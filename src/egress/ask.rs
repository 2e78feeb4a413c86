//! Asking about unknown hosts: one question for the same host, port and protocol, however many connections wait for it.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use futures_util::FutureExt;
use futures_util::future::{BoxFuture, Shared, WeakShared};

use super::gate::{Destination, Protocol, Unknown};
use super::host::Host;
use crate::id::ExecId;
use crate::policy::{Answer, Scope};

/// Answers that are remembered; beyond this many hosts a question is put again.
const REMEMBERED: usize = 4096;

/// What somebody is asked.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EgressQuestion {
    pub destination: Destination,
    /// `unknown`, or the id of the rule that wants to be asked.
    pub rule: String,
    pub reason: String,
    /// The exec that asked first, as evidence.
    pub exec: Option<ExecId>,
}

/// An answer, and whether it is anybody's word: a no for want of time or of somebody to ask says nothing about the next try.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Told {
    pub answer: Answer,
    pub by_somebody: bool,
}

/// Puts a question to a person or a reviewer. Dropping the future withdraws the question.
pub trait Asker: Send + Sync {
    fn ask(&self, question: EgressQuestion) -> BoxFuture<'static, Told>;
}

/// Answers no to everything: for a task with nobody to ask.
#[derive(Debug, Clone, Copy, Default)]
pub struct NobodyToAsk;

impl Asker for NobodyToAsk {
    fn ask(&self, question: EgressQuestion) -> BoxFuture<'static, Told> {
        Box::pin(async move {
            Told {
                answer: Answer::Deny(format!("{}, and there is nobody to ask", question.reason)),
                by_somebody: false,
            }
        })
    }
}

type Key = (Host, u16, Protocol);
type Waiting = Shared<BoxFuture<'static, Told>>;

/// The open questions and remembered answers of one task.
pub(super) struct Questions {
    asker: Arc<dyn Asker>,
    at_once: usize,
    wait: Duration,
    entries: Mutex<HashMap<Key, Entry>>,
}

enum Entry {
    /// Weak, so that a question goes away with the last connection that waits for it.
    Open(WeakShared<BoxFuture<'static, Told>>),
    Answered(Answer),
}

impl Questions {
    pub fn new(asker: Arc<dyn Asker>, at_once: usize, wait: Duration) -> Self {
        let entries = Mutex::new(HashMap::new());
        Self {
            asker,
            at_once,
            wait,
            entries,
        }
    }

    /// Waits for the answer to a question, at most as long as the limit says.
    pub async fn ask(&self, unknown: &Unknown, exec: Option<ExecId>) -> Answer {
        let destination = unknown.destination();
        let key = (destination.host.clone(), destination.port, destination.protocol);
        let waiting = match self.enter(&key, unknown, exec) {
            Ok(waiting) => waiting,
            Err(answer) => return answer,
        };
        match tokio::time::timeout(self.wait, waiting).await {
            Ok(told) => {
                self.remember(key, &told);
                told.answer
            }
            Err(_) => Answer::Deny(format!("nobody answered within {} s", self.wait.as_secs())),
        }
    }

    /// Forgets every no, since a changed policy may say otherwise. What was approved for the task stays approved.
    pub fn forget_denials(&self) {
        self.lock()
            .retain(|_, entry| !matches!(entry, Entry::Answered(Answer::Deny(_))));
    }

    /// Joins the open question, or opens it; the error is an answer that needs no question.
    fn enter(&self, key: &Key, unknown: &Unknown, exec: Option<ExecId>) -> Result<Waiting, Answer> {
        let mut entries = self.lock();
        match entries.get(key) {
            Some(Entry::Answered(answer)) => return Err(answer.clone()),
            Some(Entry::Open(open)) => {
                if let Some(waiting) = open.upgrade() {
                    return Ok(waiting);
                }
            }
            None => {}
        }
        entries.retain(|_, entry| match entry {
            Entry::Open(open) => open.upgrade().is_some(),
            Entry::Answered(_) => true,
        });
        let open = entries.values().filter(|entry| matches!(entry, Entry::Open(_))).count();
        if open >= self.at_once {
            let reason = format!(
                "{}, and {open} other hosts already wait for an answer",
                unknown.reason()
            );
            return Err(Answer::Deny(reason));
        }
        let question = EgressQuestion {
            destination: unknown.destination().clone(),
            rule: unknown.rule().to_owned(),
            reason: unknown.reason().to_owned(),
            exec,
        };
        let waiting = self.asker.ask(question).shared();
        if let Some(weak) = waiting.downgrade() {
            entries.insert(key.clone(), Entry::Open(weak));
        }
        Ok(waiting)
    }

    fn remember(&self, key: Key, Told { answer, by_somebody }: &Told) {
        let mut entries = self.lock();
        match answer {
            Answer::Approve(Scope::Once) => {
                entries.remove(&key);
            }
            Answer::Deny(_) if !by_somebody => {
                entries.remove(&key);
            }
            Answer::Approve(Scope::Task | Scope::Session | Scope::Rule) | Answer::Deny(_) => {
                if entries.len() < REMEMBERED {
                    entries.insert(key, Entry::Answered(answer.clone()));
                } else {
                    entries.remove(&key);
                }
            }
        }
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, Entry>> {
        self.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
