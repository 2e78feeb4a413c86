//! Whom a question goes to, and what the reviewer made of it.

use std::sync::Arc;

use super::watch::Watching;
use super::{Claim, Desk, lock};
use crate::approval::reviewer::{Case, Failed, Failure, Reviewed, Ruling};
use crate::approval::{Asked, Reply, nobody};
use crate::audit::journal::JournalError;
use crate::audit::record::Opinion;
use crate::policy::Scope;

impl Desk {
    /// Asks the reviewer, and where that is none or has no opinion, the person; where there is neither, waits as long as somebody
    /// watches.
    pub(super) async fn ask_around(&self, asked: &Arc<Asked>) -> Claim {
        let mut also = None;
        let mut opinion = None;
        if self.is_reviewed(asked) {
            match self.review(asked).await {
                Ok(claim) => return claim,
                Err(why) => also = Some(why),
            }
        } else if self.approvers.reviewer.is_some() && !asked.person_only() {
            let failed = Failed::new(
                Failure::BreakerOpen,
                "the reviewer denied too often, and is not asked any more",
            );
            also = Some(failed.detail.clone());
            opinion = Some(recorded(&Reviewed::failed(failed)));
        }
        let Some(question) = self.view_of(asked.id) else {
            // It has another end already, which whoever waits here is about to hear.
            return std::future::pending().await;
        };
        match self.approvers.ask.ask(question).await {
            Ok((reply, by)) => Claim::Replied {
                reply,
                by,
                opinion: None,
                told: None,
            },
            Err(unasked) => {
                self.nobody_watches(asked).await;
                let why = match also {
                    Some(also) => format!("{also}, and {}", unasked.why),
                    None => unasked.why,
                };
                Claim::Replied {
                    reply: Reply::deny(format!("this needs an approval, and nobody can be asked ({why})")),
                    by: nobody(&why),
                    opinion,
                    told: None,
                }
            }
        }
    }

    /// Returns when there is nobody left who looks at the desk and may answer this.
    async fn nobody_watches(&self, asked: &Asked) {
        if self.approvers.wait {
            return std::future::pending().await;
        }
        let mut watching = self.watching.subscribe();
        let gone = |watching: &Watching| {
            let harnesses = if asked.person_only() { 0 } else { watching.harnesses };
            watching.persons == 0 && harnesses == 0
        };
        // The sender is in self.
        let _ = watching.wait_for(gone).await;
    }

    pub(super) fn is_reviewed(&self, asked: &Asked) -> bool {
        self.approvers.reviewer.is_some() && !asked.person_only() && !lock(&self.breaker).is_open()
    }

    /// What the reviewer says; the error is why a person is to be asked instead.
    async fn review(&self, asked: &Arc<Asked>) -> Result<Claim, String> {
        let Some(reviewer) = &self.approvers.reviewer else {
            return Err("there is no reviewer".to_owned());
        };
        let reviewed = match self.case(asked).await {
            Ok(case) => match tokio::time::timeout(self.approvers.review_time, reviewer.review(&case)).await {
                Ok(reviewed) => reviewed.held_to_the_bounds(),
                Err(_) => {
                    let detail = format!("no opinion within {:?}", self.approvers.review_time);
                    Reviewed::failed(Failed::new(Failure::TimedOut, detail))
                }
            },
            Err(error) => {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "a reviewer cannot be shown what happened"
                );
                Reviewed::failed(Failed::new(Failure::Unreachable, "the journal cannot be read"))
            }
        };
        let ruling = reviewed.ruling();
        let reply = match ruling {
            Ruling::Ask(why) => return Err(format!("the reviewer wants a person to look ({why})")),
            Ruling::Approve => Reply::Approve(Scope::Once),
            Ruling::Deny(reason) => Reply::deny(reason),
        };
        let is_open = {
            let mut breaker = lock(&self.breaker);
            breaker.note(matches!(reply, Reply::Deny { .. }));
            breaker.is_open()
        };
        if is_open {
            tracing::warn!(task = %self.task, "the reviewer has denied too often: a person is asked from here on");
        }
        Ok(Claim::Replied {
            reply,
            by: reviewer.approver(),
            opinion: Some(recorded(&reviewed)),
            told: None,
        })
    }

    async fn case(&self, asked: &Arc<Asked>) -> Result<Case, JournalError> {
        let (journal, about) = (self.journal.clone(), asked.clone());
        let read = tokio::task::spawn_blocking(move || Case::records(&journal, &about));
        Ok(Case {
            asked: asked.clone(),
            task_name: self.name.clone(),
            purpose: self.purpose.clone(),
            records: match read.await {
                Ok(records) => records?,
                // The runtime is ending, and the question with it.
                Err(_) => Vec::new(),
            },
        })
    }
}

fn recorded(reviewed: &Reviewed) -> Opinion {
    let word =
        |value: serde_json::Result<serde_json::Value>| value.ok().and_then(|value| value.as_str().map(str::to_owned));
    match &reviewed.opinion {
        Ok(opinion) => Opinion {
            risk_level: word(serde_json::to_value(opinion.risk_level)),
            user_authorization: word(serde_json::to_value(opinion.user_authorization)),
            rationale: Some(opinion.rationale.clone()),
            failure: None,
            attempts: reviewed.attempts,
        },
        Err(failed) => Opinion {
            risk_level: None,
            user_authorization: None,
            rationale: Some(failed.detail.clone()),
            failure: Some(failed.failure.word().to_owned()),
            attempts: reviewed.attempts,
        },
    }
}
