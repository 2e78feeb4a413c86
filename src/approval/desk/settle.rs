//! What an answer comes to: its record, the rule that it adds, and how long it is remembered.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;

use super::{Claim, Desk, Ended, GRANTS_MAX, lock};
use crate::approval::fatigue::Denied;
use crate::approval::question::scope_word;
use crate::approval::{Asked, Reply, Session, Settled, nobody};
use crate::audit::journal::JournalError;
use crate::audit::record::{Event, Opinion};
use crate::policy::{Answer, Approver, ApproverKind, Scope};

/// An answer that holds for the task.
pub(super) struct Grant {
    pub reply: Reply,
    pub by: Approver,
}

impl Desk {
    /// Records how a question ended, and remembers the answer as far as it holds.
    pub(super) async fn conclude(&self, asked: &Arc<Asked>, claim: Claim, waited: Duration) -> Ended {
        let (reply, by, opinion, told) = match claim {
            Claim::Replied {
                reply,
                by,
                opinion,
                told,
            } => (reply, by, opinion, told),
            Claim::Withdrawn(why) => {
                self.record_answer(
                    asked,
                    "withdrawn",
                    None,
                    &nobody(why),
                    Some(why.to_owned()),
                    waited,
                    None,
                )
                .await?;
                self.tell_change(asked.id, "withdrawn", nobody(why));
                return Ok((Answer::Deny(format!("the question was withdrawn: {why}")), nobody(why)));
            }
        };
        let (reply, note) = self.with_rule(asked, reply, &by).await?;
        let said = match &reply {
            Reply::Approve(_) => None,
            Reply::Deny { reason, .. } => Some(told_reason(&by, reason.as_deref())),
        };
        let reason = match &note {
            Some(note) => Some(said.clone().map_or(note.clone(), |said| format!("{said}; {note}"))),
            None => said.clone(),
        };
        self.record_answer(asked, reply.word(), Some(reply.scope()), &by, reason, waited, opinion)
            .await?;
        let note = note.or(self.keep(asked, &reply, &by, said.as_deref()).await);
        if by.kind == ApproverKind::Person && matches!(reply, Reply::Approve(_)) {
            lock(&self.breaker).reset();
        }
        if let Some(told) = told {
            // Whoever answered may have gone.
            let _ = told.send(Ok(Settled {
                scope: reply.scope(),
                note,
            }));
        }
        self.tell_change(asked.id, reply.word(), by.clone());
        Ok((
            match said {
                None => Answer::Approve(reply.scope()),
                Some(reason) => Answer::Deny(reason),
            },
            by,
        ))
    }

    #[allow(clippy::too_many_arguments, reason = "they are the fields of one record")]
    async fn record_answer(
        &self,
        asked: &Asked,
        answer: &str,
        scope: Option<Scope>,
        by: &Approver,
        reason: Option<String>,
        waited: Duration,
        opinion: Option<Opinion>,
    ) -> Result<(), JournalError> {
        let event = Event::ApprovalAnswered {
            approval: asked.id,
            answer: answer.to_owned(),
            scope: scope.map(|scope| scope_word(scope).to_owned()),
            approver: by.clone(),
            reason,
            wait_seconds: waited.as_secs_f64(),
            opinion,
        };
        self.journal.append(self.entry(asked, event)).await.map(drop)
    }

    /// Adds the rule that the reply asks for. Where that fails, the reply holds once, and the note says why.
    async fn with_rule(
        &self,
        asked: &Asked,
        reply: Reply,
        by: &Approver,
    ) -> Result<(Reply, Option<String>), JournalError> {
        let (Scope::Rule, Some(rule), Some(book)) = (reply.scope(), asked.rule(&reply), self.rule_book.get()) else {
            return Ok(match reply.scope() {
                Scope::Rule => (reply.once(), Some("no rule could be offered".to_owned())),
                Scope::Once | Scope::Task | Scope::Session => (reply, None),
            });
        };
        if let Err(error) = rule.check() {
            return Ok((reply.once(), Some(format!("no rule was added: {error}"))));
        }
        let event = Event::RuleAdded {
            file: book.file(),
            rule: rule.line(),
            approver: by.clone(),
        };
        self.journal.append(self.entry(asked, event)).await?;
        let book = book.clone();
        let added = tokio::task::spawn_blocking(move || book.add(&rule)).await;
        Ok(match added {
            Ok(Ok(())) => (reply, None),
            Ok(Err(error)) => {
                tracing::error!(error = &error as &dyn std::error::Error, "a rule could not be added");
                (reply.once(), Some(format!("no rule was added: {error}")))
            }
            Err(_) => (
                reply.once(),
                Some("no rule was added: the process is ending".to_owned()),
            ),
        })
    }

    /// Remembers an answer; says what could not be remembered.
    async fn keep(&self, asked: &Arc<Asked>, reply: &Reply, by: &Approver, said: Option<&str>) -> Option<String> {
        match by.kind {
            ApproverKind::Reviewer | ApproverKind::Grant | ApproverKind::Nobody => return None,
            ApproverKind::Person | ApproverKind::Harness => {}
        }
        match (reply.scope(), said, &self.approvers.session) {
            (Scope::Once, None, _) | (Scope::Rule, ..) => None,
            (Scope::Once, Some(said), _) => {
                let denied = Denied {
                    digest: asked.digest.to_string(),
                    at: Timestamp::now(),
                    by: by.clone(),
                    reason: said.to_owned(),
                };
                self.with_limits(move |limits| limits.note_denied(denied)).await;
                None
            }
            (Scope::Task, ..) | (Scope::Session, _, None) => {
                self.keep_for_the_task(asked, reply, by);
                None
            }
            // Kept in one place only: what is forgotten there holds nowhere any more.
            (Scope::Session, _, Some(session)) => match keep_for(session, asked, reply, by).await {
                Ok(()) => None,
                Err(why) => {
                    self.keep_for_the_task(asked, reply, by);
                    Some(format!("it holds for this task only: {why}"))
                }
            },
        }
    }

    fn keep_for_the_task(&self, asked: &Asked, reply: &Reply, by: &Approver) {
        let mut state = lock(&self.state);
        if state.grants.len() < GRANTS_MAX {
            let grant = Grant {
                reply: reply.clone(),
                by: by.clone(),
            };
            state.grants.insert(asked.digest, grant);
        }
    }

    /// The answer that was given for the session, by this or another task.
    pub(super) async fn kept_for_the_session(&self, asked: &Arc<Asked>) -> Option<(Answer, Approver)> {
        let (session, digest) = (self.approvers.session.clone()?, asked.digest);
        let found = tokio::task::spawn_blocking(move || session.find(&digest)).await.ok()?;
        let kept = match found {
            Ok(kept) => kept?,
            Err(error) => {
                // Then somebody is asked, as if there were no such file.
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "answers for the session are not used"
                );
                return None;
            }
        };
        Grant {
            reply: kept.reply(),
            by: kept.approver,
        }
        .answer(asked)
    }
}

impl Grant {
    /// What it says to a question; nothing where the question wants a person and none gave it.
    pub(super) fn answer(&self, asked: &Asked) -> Option<(Answer, Approver)> {
        let scope = self.reply.scope();
        match &self.reply {
            Reply::Approve(_) if asked.person_only() && self.by.kind != ApproverKind::Person => None,
            Reply::Approve(scope) => Some((
                Answer::Approve(*scope),
                granted(&self.by, &format!("granted for the {}", scope_word(*scope))),
            )),
            Reply::Deny { reason, .. } => Some((
                Answer::Deny(told_reason(&self.by, reason.as_deref())),
                granted(&self.by, &format!("denied for the {}", scope_word(scope))),
            )),
        }
    }
}

pub(super) fn granted(by: &Approver, via: &str) -> Approver {
    Approver {
        kind: ApproverKind::Grant,
        name: by.name.clone(),
        via: via.to_owned(),
    }
}

/// The reason of a no, as the agent is told it.
fn told_reason(by: &Approver, reason: Option<&str>) -> String {
    let who = match by.kind {
        ApproverKind::Person => "a person said no",
        ApproverKind::Harness => "the harness said no",
        ApproverKind::Reviewer | ApproverKind::Grant | ApproverKind::Nobody => {
            return reason.unwrap_or("no").to_owned();
        }
    };
    match reason {
        Some(reason) => format!("{who}: {reason}"),
        None => who.to_owned(),
    }
}

async fn keep_for(session: &Session, asked: &Arc<Asked>, reply: &Reply, by: &Approver) -> Result<(), String> {
    let (session, asked, reply, by) = (session.clone(), asked.clone(), reply.clone(), by.clone());
    let kept =
        tokio::task::spawn_blocking(move || session.keep(asked.id, &asked.digest, &asked.about, &reply, &by)).await;
    match kept {
        Ok(Ok(())) => Ok(()),
        Ok(Err(error)) => {
            tracing::error!(
                error = &error as &dyn std::error::Error,
                "an answer could not be kept for the session"
            );
            Err(error.to_string())
        }
        Err(_) => Err("the process is ending".to_owned()),
    }
}
