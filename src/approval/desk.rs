//! The desk of one task: the one queue of its questions.
//!
//! ```text
//!  put ── known already? ── yes ─▶ answer
//!            │ no
//!            ├── the same question open ── join it
//!            └── [open] ── asked in the journal ── waits for the first of: a reply, the reviewer, the person at the terminal,
//!                  │                               the time limit, nobody waiting any more
//!                  └── taken out of `open` by whoever ends it ── answered in the journal ── everybody who waits hears it
//! ```
//!
//! Taking a question out of `open` is what decides between two answers at once: there is one lock, and the second finds nothing.

mod ask;
mod settle;
mod watch;

use std::collections::{BTreeMap, HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use tokio::sync::{broadcast, oneshot, watch as latest};
use tokio::task::JoinSet;

use super::fatigue::{Limits, Wanted};
use super::question::scope_word;
use super::reviewer::Breaker;
use super::{AnswerError, Approvers, Asked, OpenQuestion, Reply, RuleBook, Settled, nobody};
use crate::audit::journal::{Journal, JournalError};
use crate::audit::record::{Entry, Event, Opinion};
use crate::id::{ApprovalId, TaskId};
use crate::policy::{Answer, Approver, ApproverKind, Command, Digest, Scope};
use crate::task::Task;
use settle::{Grant, granted};
use watch::Watching;

pub use watch::{Change, Watch};

/// Answered questions of which is known who answered them, for those who come too late.
const CLOSED_MAX: usize = 256;

/// Answers for the task that are remembered; beyond that, questions are put again.
const GRANTS_MAX: usize = 4096;

/// Changes that a slow watcher may be behind before it must look at the list again.
const CHANGES: usize = 256;

type Ended = Result<(Answer, Approver), JournalError>;

/// How far a question has come.
#[derive(Clone, Default)]
struct Stage {
    /// Somebody is or was asked; it is in the journal.
    asked: bool,
    ended: Option<Ended>,
}

/// Puts questions, keeps the time, remembers answers, writes the records.
pub struct Desk {
    task: TaskId,
    name: String,
    purpose: Option<String>,
    place: Digest,
    time: Duration,
    approvers: Approvers,
    limits: Arc<Limits>,
    journal: Journal,
    rule_book: OnceLock<Arc<dyn RuleBook>>,
    state: Mutex<State>,
    breaker: Mutex<Breaker>,
    changes: broadcast::Sender<Change>,
    watching: latest::Sender<Watching>,
    /// The owners of open questions, joined when the desk closes.
    owners: Mutex<JoinSet<()>>,
}

#[derive(Default)]
struct State {
    open: BTreeMap<ApprovalId, Open>,
    closed: VecDeque<(ApprovalId, Approver, &'static str)>,
    grants: HashMap<Digest, Grant>,
    closing: bool,
}

struct Open {
    asked: Arc<Asked>,
    since: Timestamp,
    waiting: usize,
    claim: oneshot::Sender<Claim>,
    stage: latest::Receiver<Stage>,
}

/// How a question ended.
enum Claim {
    Replied {
        reply: Reply,
        by: Approver,
        opinion: Option<Opinion>,
        told: Option<oneshot::Sender<Result<Settled, AnswerError>>>,
    },
    Withdrawn(&'static str),
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No code between lock and unlock leaves a value half-changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Desk {
    /// `image` is the digest of the task's image, where it has one.
    pub fn new(task: &Task, image: Option<&str>, approvers: Approvers, journal: Journal) -> Arc<Desk> {
        Arc::new(Desk {
            task: task.id,
            name: task.name.clone(),
            purpose: task.purpose.clone(),
            place: super::place(task, image),
            time: task.gate.approval_time,
            limits: Arc::new(Limits::new(approvers.bounds, approvers.state.as_deref())),
            approvers,
            journal,
            rule_book: OnceLock::new(),
            state: Mutex::default(),
            breaker: Mutex::default(),
            changes: broadcast::Sender::new(CHANGES),
            watching: latest::Sender::new(Watching::default()),
            owners: Mutex::default(),
        })
    }

    /// Where approvals become rules; without it none can. Once only: later calls change nothing.
    pub fn remember_rules_in(&self, rule_book: Arc<dyn RuleBook>) {
        let _ = self.rule_book.set(rule_book);
    }

    /// What an answer about a command is bound to.
    pub fn digest_of_command(&self, command: &Command) -> Digest {
        command.digest(&self.place)
    }

    /// What an answer about a host is bound to.
    pub fn digest_of_host(&self, host: &str, port: u16, protocol: &str) -> Digest {
        let port = port.to_le_bytes();
        Digest::of_parts([
            b"belljar egress 2".as_slice(),
            self.place.as_bytes(),
            host.as_bytes(),
            &port,
            protocol.as_bytes(),
        ])
    }

    /// Puts a question and waits for its answer, at most as long as the task allows. Both are in the journal before this
    /// returns. Dropping the future takes the question back, unless others wait for the same.
    pub async fn put(self: &Arc<Self>, asked: Asked) -> Result<(Answer, Approver), JournalError> {
        self.enter(asked).end().await
    }

    /// As [`Desk::put`], for those who want to hear in between that somebody is asked.
    pub fn enter(self: &Arc<Self>, asked: Asked) -> Waiting {
        let mut state = lock(&self.state);
        if state.closing {
            return Waiting(For::Nothing(unasked("the task is ending")));
        }
        if let Some(known) = state.grants.get(&asked.digest).and_then(|grant| grant.answer(&asked)) {
            return Waiting(For::Nothing(known));
        }
        let same =
            |open: &&mut Open| open.asked.digest == asked.digest && open.asked.person_only() == asked.person_only();
        if let Some(open) = state.open.values_mut().find(same) {
            open.waiting += 1;
            return Waiting(For::End(Waiter {
                desk: self.clone(),
                id: open.asked.id,
                stage: open.stage.clone(),
            }));
        }
        let asked = Arc::new(asked);
        let (claim, claimed) = oneshot::channel();
        let (stage, seen) = latest::channel(Stage::default());
        let open = Open {
            asked: asked.clone(),
            since: Timestamp::now(),
            waiting: 1,
            claim,
            stage: seen.clone(),
        };
        let id = asked.id;
        state.open.insert(id, open);
        drop(state);
        let mut owners = lock(&self.owners);
        // Those that are over take no room.
        while owners.try_join_next().is_some() {}
        let desk = self.clone();
        owners.spawn(async move {
            let result = desk.settle(&asked, claimed, &stage).await;
            // Where the journal failed, nobody took it out.
            lock(&desk.state).open.remove(&id);
            stage.send_modify(|stage| stage.ended = Some(result));
        });
        Waiting(For::End(Waiter {
            desk: self.clone(),
            id,
            stage: seen,
        }))
    }

    /// From an open question to its answer, with both records. One owner a question runs this.
    async fn settle(
        &self,
        asked: &Arc<Asked>,
        mut claimed: oneshot::Receiver<Claim>,
        stage: &latest::Sender<Stage>,
    ) -> Ended {
        if let Some(known) = self.known(asked).await {
            lock(&self.state).open.remove(&asked.id);
            return Ok(known);
        }
        let counts = !self.is_reviewed(asked);
        if counts && let Err(why) = self.count(asked.id).await {
            lock(&self.state).open.remove(&asked.id);
            return Ok(unasked(&why));
        }
        let ended = self.ask(asked, &mut claimed, stage).await;
        if counts {
            let id = asked.id;
            self.with_limits(move |limits| limits.note_end(id)).await;
        }
        ended
    }

    /// Asks, and waits for the answer.
    async fn ask(
        &self,
        asked: &Arc<Asked>,
        claimed: &mut oneshot::Receiver<Claim>,
        stage: &latest::Sender<Stage>,
    ) -> Ended {
        let event = Event::ApprovalAsked {
            approval: asked.id,
            about: asked.about.clone(),
            reason: asked.reason.clone(),
            rules: asked.rules.clone(),
            named_files: asked.files.clone(),
        };
        self.journal.append(self.entry(asked, event)).await?;
        stage.send_modify(|stage| stage.asked = true);
        if let Some(question) = self.view_of(asked.id) {
            // Nobody has to watch.
            let _ = self.changes.send(Change::Asked(question));
        }
        let began = Instant::now();
        let claim = self.first_claim(asked, claimed).await;
        let ended = self.conclude(asked, claim, began.elapsed()).await;
        if ended.is_err() {
            tracing::error!(approval = %asked.id, "an answer could not be recorded, so it does not count");
        }
        ended
    }

    /// The answer that was given before, by whom it concerns and as far as it holds.
    async fn known(&self, asked: &Arc<Asked>) -> Option<(Answer, Approver)> {
        if let Some(kept) = self.kept_for_the_session(asked).await {
            return Some(kept);
        }
        let digest = asked.digest;
        let denied = self.with_limits(move |limits| limits.denied(&digest)).await??;
        let ago = Timestamp::now().duration_since(denied.at).as_secs().max(0);
        let reason = format!("{} ({ago} s ago; the same is not asked again so soon)", denied.reason);
        Some((Answer::Deny(reason), granted(&denied.by, "denied a moment ago")))
    }

    /// Counts a question for the person who is about to be asked; the error is why they are not.
    async fn count(&self, approval: ApprovalId) -> Result<(), String> {
        let now = Timestamp::now();
        let wanted = Wanted {
            approval,
            now,
            until: now.checked_add(self.time).unwrap_or(Timestamp::MAX),
        };
        let counted = self.with_limits(move |limits| limits.take(wanted)).await;
        counted.unwrap_or_else(|| Err("the process is ending".to_owned()))
    }

    /// On a thread that may wait for other processes; none where the runtime is ending.
    async fn with_limits<R: Send + 'static>(&self, work: impl FnOnce(&Limits) -> R + Send + 'static) -> Option<R> {
        let limits = self.limits.clone();
        tokio::task::spawn_blocking(move || work(&limits)).await.ok()
    }

    /// Waits for the first end that a question gets.
    async fn first_claim(&self, asked: &Arc<Asked>, claimed: &mut oneshot::Receiver<Claim>) -> Claim {
        let lost = Claim::Withdrawn("the question was lost");
        let own = tokio::select! {
            biased;
            claim = &mut *claimed => return claim.unwrap_or(lost),
            claim = self.ask_around(asked) => claim,
            () = tokio::time::sleep(self.time) => Claim::Replied {
                reply: Reply::deny(format!("nobody answered within {:?}", self.time)),
                by: nobody("time ran out"),
                opinion: None,
                told: None,
            },
        };
        let (by, answer) = match &own {
            Claim::Replied { reply, by, .. } => (by.clone(), reply.word()),
            Claim::Withdrawn(why) => (nobody(why), "withdrawn"),
        };
        let taken = lock(&self.state).take(asked.id, by, answer);
        match taken {
            Some(_) => own,
            // Another end came first, and is on its way here.
            None => claimed.await.unwrap_or(lost),
        }
    }

    fn tell_change(&self, approval: ApprovalId, answer: &'static str, approver: Approver) {
        let _ = self.changes.send(Change::Answered {
            approval,
            answer,
            approver,
        });
    }

    fn entry(&self, asked: &Asked, event: Event) -> Entry {
        Entry {
            task: Some(self.task),
            exec: asked.exec,
            event,
        }
    }

    /// The questions that wait, oldest first.
    pub fn open(&self) -> Vec<OpenQuestion> {
        let state = lock(&self.state);
        state.open.values().map(|open| self.view(open)).collect()
    }

    fn view(&self, open: &Open) -> OpenQuestion {
        let scopes = [Scope::Once, Scope::Task, Scope::Session, Scope::Rule];
        OpenQuestion {
            asked: open.asked.clone(),
            since: open.since,
            until: open.since.checked_add(self.time).unwrap_or(Timestamp::MAX),
            waiting: open.waiting,
            scopes: scopes
                .into_iter()
                .filter(|scope| self.offers(&open.asked, *scope))
                .collect(),
            rule: self.rule_offered(&open.asked),
        }
    }

    fn view_of(&self, id: ApprovalId) -> Option<OpenQuestion> {
        lock(&self.state).open.get(&id).map(|open| self.view(open))
    }

    fn rule_offered(&self, asked: &Asked) -> Option<(String, String)> {
        let (book, offer) = (self.rule_book.get()?, asked.offer.as_ref()?);
        self.approvers
            .scopes
            .contains(&Scope::Rule)
            .then(|| (offer.line(), book.file()))
    }

    /// Whether this scope may be given to this question.
    pub fn offers(&self, asked: &Asked, scope: Scope) -> bool {
        match scope {
            Scope::Once => true,
            Scope::Task => self.approvers.scopes.contains(&scope),
            Scope::Session => self.approvers.scopes.contains(&scope) && self.approvers.session.is_some(),
            Scope::Rule => self.rule_offered(asked).is_some(),
        }
    }

    /// Answers an open question for somebody who is not at the terminal of `run`. The answer is recorded and remembered when this
    /// returns. The first answer counts; the second hears who was first.
    pub async fn answer(&self, id: ApprovalId, reply: Reply, by: Approver) -> Result<Settled, AnswerError> {
        let (told, settled) = oneshot::channel();
        {
            let mut state = lock(&self.state);
            let Some(open) = state.open.get(&id) else {
                return Err(match state.closed.iter().find(|(closed, ..)| *closed == id) {
                    Some((_, by, answer)) => AnswerError::AlreadyAnswered { by: by.clone(), answer },
                    None => AnswerError::NoSuchQuestion { id },
                });
            };
            self.check_answer(&open.asked, &reply, by.kind)?;
            let Some(open) = state.take(id, by.clone(), reply.word()) else {
                return Err(AnswerError::NoSuchQuestion { id });
            };
            let claim = Claim::Replied {
                reply,
                by,
                opinion: None,
                told: Some(told),
            };
            // Its owner waits for it as long as the question is in `open`.
            let _ = open.claim.send(claim);
        }
        settled.await.unwrap_or(Err(AnswerError::NotRecorded))
    }

    fn check_answer(&self, asked: &Asked, reply: &Reply, by: ApproverKind) -> Result<(), AnswerError> {
        let not_yours = |why| Err(AnswerError::NotYours { why });
        match (reply, by) {
            // A no is anybody's who may speak here at all.
            (Reply::Deny { .. }, ApproverKind::Person | ApproverKind::Harness) => {}
            (Reply::Approve(_), ApproverKind::Person) => {}
            (Reply::Approve(_), ApproverKind::Harness) if asked.person_only() => {
                return not_yours("a rule reserves this for a person");
            }
            (Reply::Approve(_), ApproverKind::Harness) if !self.approvers.harness => {
                return not_yours("a harness may not approve for this task (gate.approvers)");
            }
            (Reply::Approve(_), ApproverKind::Harness) => {}
            (_, ApproverKind::Reviewer | ApproverKind::Grant | ApproverKind::Nobody) => {
                return not_yours("only a person or a harness answers here");
            }
        }
        match reply.scope() {
            scope if self.offers(asked, scope) => Ok(()),
            Scope::Rule if self.approvers.scopes.contains(&Scope::Rule) => Err(AnswerError::NoRule),
            scope => Err(AnswerError::Scope {
                scope: scope_word(scope),
            }),
        }
    }

    /// Takes all questions back and waits until their ends are recorded. Nothing is asked afterwards.
    pub async fn close(&self) {
        let open: Vec<Open> = {
            let mut state = lock(&self.state);
            state.closing = true;
            let ids: Vec<ApprovalId> = state.open.keys().copied().collect();
            let why = "the task ended";
            ids.into_iter()
                .filter_map(|id| state.take(id, nobody(why), "withdrawn"))
                .collect()
        };
        for open in open {
            let _ = open.claim.send(Claim::Withdrawn("the task ended"));
        }
        let mut owners = std::mem::take(&mut *lock(&self.owners));
        while owners.join_next().await.is_some() {}
        let _ = self.changes.send(Change::Closed);
    }
}

/// The no to what is not even asked.
fn unasked(why: &str) -> (Answer, Approver) {
    let reason = format!("this needs an approval, and {why}");
    (Answer::Deny(reason), nobody(why))
}

impl State {
    /// Takes a question out, which is the right to end it; `None` where somebody else has it.
    fn take(&mut self, id: ApprovalId, by: Approver, answer: &'static str) -> Option<Open> {
        let open = self.open.remove(&id)?;
        if self.closed.len() == CLOSED_MAX {
            self.closed.pop_front();
        }
        self.closed.push_back((id, by, answer));
        Some(open)
    }
}

/// The wait for an answer. Dropping it takes the question back, unless others wait for the same.
pub struct Waiting(For);

enum For {
    /// The answer was known.
    Nothing((Answer, Approver)),
    End(Waiter),
}

impl Waiting {
    /// Waits until somebody is asked, and gives the question's id, which may be that of an earlier one about the same; none when
    /// nobody had to be. Cancel-safe.
    pub async fn asked(&mut self) -> Option<ApprovalId> {
        let For::End(waiter) = &mut self.0 else { return None };
        let stage = waiter
            .stage
            .wait_for(|stage| stage.asked || stage.ended.is_some())
            .await;
        stage.is_ok_and(|stage| stage.asked).then_some(waiter.id)
    }

    /// Waits for the answer; both are in the journal then.
    pub async fn end(self) -> Result<(Answer, Approver), JournalError> {
        match self.0 {
            For::Nothing(known) => Ok(known),
            For::End(waiter) => waiter.end().await,
        }
    }
}

/// Somebody who waits for an answer. The last one to go takes the question along.
struct Waiter {
    desk: Arc<Desk>,
    id: ApprovalId,
    stage: latest::Receiver<Stage>,
}

impl Waiter {
    async fn end(mut self) -> Ended {
        let stage = self.stage.wait_for(|stage| stage.ended.is_some()).await;
        match stage.ok().and_then(|stage| stage.ended.clone()) {
            Some(ended) => ended,
            // Its owner is gone with the runtime.
            None => Ok((
                Answer::Deny("the question was lost".to_owned()),
                nobody("the process is ending"),
            )),
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        let mut state = lock(&self.desk.state);
        let Some(open) = state.open.get_mut(&self.id) else {
            return;
        };
        open.waiting -= 1;
        let why = "nobody waits for the answer any more";
        if open.waiting == 0
            && let Some(open) = state.take(self.id, nobody(why), "withdrawn")
        {
            let _ = open.claim.send(Claim::Withdrawn(why));
        }
    }
}

#[cfg(test)]
mod tests;
