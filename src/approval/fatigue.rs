//! A person's limits. Who is asked too often says yes without looking: more than so many questions are refused unasked, and what
//! was denied a moment ago is not put again.
//!
//! They are those of the person, not of a task: what all tasks of one state folder ask stands in `<state>/asked.json`. Where that
//! file cannot be used, each task keeps to the bounds by itself.

use std::path::Path;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::file::StateFile;
use crate::id::ApprovalId;
use crate::policy::{Approver, Digest};
use crate::sys::process::start_of;

/// How much one person is asked.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Bounds {
    /// Questions that wait at once.
    pub open: usize,
    /// Questions within [`Bounds::within`].
    pub asked: usize,
    pub within: Duration,
    /// How long the same request stays denied after a no.
    pub repeat: Duration,
}

impl Default for Bounds {
    fn default() -> Self {
        Self {
            open: 16,
            asked: 60,
            within: Duration::from_secs(600),
            repeat: Duration::from_secs(300),
        }
    }
}

/// Denials that are remembered; beyond that, the oldest is asked about again.
const DENIED_MAX: usize = 1024;

/// What one person was asked and denied lately.
#[derive(Debug, Default, Serialize, Deserialize)]
pub(super) struct Fatigue {
    asked: Vec<Put>,
    denied: Vec<Denied>,
}

/// A question that was put.
#[derive(Debug, Clone, Serialize, Deserialize)]
struct Put {
    approval: ApprovalId,
    at: Timestamp,
    /// As long as it waits: until when at most, and for which process.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    open: Option<Open>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
struct Open {
    until: Timestamp,
    pid: i32,
    /// See [`start_of`].
    started: Option<u64>,
}

#[derive(Debug, Clone, Serialize, Deserialize)]
pub(super) struct Denied {
    pub digest: String,
    pub at: Timestamp,
    pub by: Approver,
    pub reason: String,
}

/// A question that is to be put.
#[derive(Debug, Clone, Copy)]
pub(super) struct Wanted {
    pub approval: ApprovalId,
    pub now: Timestamp,
    /// When it becomes a no.
    pub until: Timestamp,
}

impl Fatigue {
    /// Why no further question may be put; otherwise it is counted.
    pub fn take(&mut self, bounds: &Bounds, wanted: Wanted) -> Result<(), String> {
        let Wanted { approval, now, until } = wanted;
        self.asked
            .retain(|put| is_within(bounds.within, put.at, now) || put.waits(now));
        let open = self.asked.iter().filter(|put| put.waits(now)).count();
        if open >= bounds.open {
            return Err(format!("{open} other questions wait for an answer already"));
        }
        let recent = self.asked.iter().filter(|put| is_within(bounds.within, put.at, now));
        let count = recent.count();
        if count >= bounds.asked {
            let time = bounds.within.as_secs();
            return Err(format!("{count} questions were asked within {time} s already"));
        }
        let pid = i32::try_from(std::process::id()).unwrap_or_default();
        self.asked.push(Put {
            approval,
            at: now,
            open: Some(Open {
                until,
                pid,
                started: start_of(pid),
            }),
        });
        Ok(())
    }

    /// A question waits no longer.
    pub fn note_end(&mut self, approval: ApprovalId) {
        for put in self.asked.iter_mut().filter(|put| put.approval == approval) {
            put.open = None;
        }
    }

    pub fn note_denied(&mut self, bounds: &Bounds, denied: Denied) {
        self.denied
            .retain(|other| is_within(bounds.repeat, other.at, denied.at) && other.digest != denied.digest);
        let surplus = (self.denied.len() + 1).saturating_sub(DENIED_MAX);
        self.denied.drain(..surplus);
        self.denied.push(denied);
    }

    /// The no that this very request got a moment ago.
    pub fn denied(&self, bounds: &Bounds, digest: &Digest, now: Timestamp) -> Option<&Denied> {
        let digest = digest.to_string();
        let mut recent = self.denied.iter().rev().filter(|denied| denied.digest == digest);
        recent.find(|denied| is_within(bounds.repeat, denied.at, now))
    }
}

impl Put {
    /// One whose belljar was killed waits for nobody.
    fn waits(&self, now: Timestamp) -> bool {
        let still = |open: &Open| now < open.until && open.started.is_none_or(|at| start_of(open.pid) == Some(at));
        self.open.as_ref().is_some_and(still)
    }
}

/// Whether two times are less than `time` apart. A clock that was set back must not make the past last for ever.
fn is_within(time: Duration, at: Timestamp, now: Timestamp) -> bool {
    let time = SignedDuration::try_from(time).unwrap_or(SignedDuration::MAX);
    now.duration_since(at).abs() < time
}

/// Where the limits of the person who answers a task's questions are kept.
pub(super) struct Limits {
    bounds: Bounds,
    file: Option<StateFile<Fatigue>>,
    own: Mutex<Fatigue>,
}

impl Limits {
    /// Shared by all tasks whose `state` is the same folder; of this task alone where there is none.
    pub fn new(bounds: Bounds, state: Option<&Path>) -> Self {
        Self {
            bounds,
            file: state.map(|state| StateFile::new(state.join("asked.json"))),
            own: Mutex::default(),
        }
    }

    /// See [`Fatigue::take`]. Blocking, as all of these are.
    pub fn take(&self, wanted: Wanted) -> Result<(), String> {
        self.change(|fatigue| fatigue.take(&self.bounds, wanted))
    }

    pub fn note_end(&self, approval: ApprovalId) {
        self.change(|fatigue| fatigue.note_end(approval));
    }

    pub fn note_denied(&self, denied: Denied) {
        self.change(|fatigue| fatigue.note_denied(&self.bounds, denied.clone()));
    }

    pub fn denied(&self, digest: &Digest) -> Option<Denied> {
        let find = |fatigue: &Fatigue| fatigue.denied(&self.bounds, digest, Timestamp::now()).cloned();
        match self.file.as_ref().map(StateFile::read) {
            Some(Ok(fatigue)) => find(&fatigue),
            // What is wrong with the file is told when it is to be changed.
            Some(Err(_)) | None => find(&self.own.lock().unwrap_or_else(PoisonError::into_inner)),
        }
    }

    fn change<R>(&self, change: impl Fn(&mut Fatigue) -> R) -> R {
        if let Some(file) = &self.file {
            match file.change(&change) {
                Ok(answer) => return answer,
                Err(error) => tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "how often a person was asked is counted for this task alone"
                ),
            }
        }
        change(&mut self.own.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::policy::ApproverKind;

    const BOUNDS: Bounds = Bounds {
        open: 2,
        asked: 3,
        within: Duration::from_secs(60),
        repeat: Duration::from_secs(30),
    };

    fn after(seconds: i64) -> Timestamp {
        "2026-01-31T12:00:00Z".parse::<Timestamp>().unwrap() + SignedDuration::from_secs(seconds)
    }

    fn wanted(seconds: i64) -> Wanted {
        Wanted {
            approval: ApprovalId::new(),
            now: after(seconds),
            until: after(seconds + 600),
        }
    }

    fn denied(digest: &Digest, seconds: i64) -> Denied {
        Denied {
            digest: digest.to_string(),
            at: after(seconds),
            by: Approver {
                kind: ApproverKind::Person,
                name: "ada".to_owned(),
                via: "terminal".to_owned(),
            },
            reason: "no".to_owned(),
        }
    }

    #[test]
    fn more_questions_than_a_person_can_read_are_not_put() {
        let mut fatigue = Fatigue::default();
        let put = [wanted(0), wanted(0)];
        put.iter().for_each(|put| fatigue.take(&BOUNDS, *put).unwrap());
        let many = Err("2 other questions wait for an answer already".to_owned());
        assert_eq!(fatigue.take(&BOUNDS, wanted(0)), many);
        put.iter().for_each(|put| fatigue.note_end(put.approval));
        fatigue.take(&BOUNDS, wanted(0)).unwrap();
        let full = Err("3 questions were asked within 60 s already".to_owned());
        assert_eq!(fatigue.take(&BOUNDS, wanted(59)), full);
        assert_eq!(fatigue.take(&BOUNDS, wanted(60)), Ok(()));
    }

    #[test]
    fn a_question_waits_no_longer_than_its_time_and_its_process() {
        let mut fatigue = Fatigue::default();
        for put in [wanted(0), wanted(0)] {
            fatigue.take(&BOUNDS, put).unwrap();
        }
        // Its process was killed, and another one has its id now.
        let open = fatigue.asked[0].open.as_mut().unwrap();
        open.started = open.started.map(|started| started + 1);
        assert!(open.started.is_some());
        fatigue.take(&BOUNDS, wanted(100)).unwrap();
        assert!(fatigue.take(&BOUNDS, wanted(200)).is_err());
        // The others' time is over.
        fatigue.take(&BOUNDS, wanted(800)).unwrap();
    }

    #[test]
    fn a_no_is_remembered_for_a_while_and_only_for_the_same() {
        let mut fatigue = Fatigue::default();
        let (same, other) = (Digest::of_bytes(b"same"), Digest::of_bytes(b"other"));
        fatigue.note_denied(&BOUNDS, denied(&same, 0));
        let is_denied = |digest, seconds| fatigue.denied(&BOUNDS, digest, after(seconds)).is_some();
        assert!(is_denied(&same, 29) && !is_denied(&same, 30) && !is_denied(&other, 0));
        // A clock that was set back a little or by a year.
        assert!(is_denied(&same, -10) && !is_denied(&same, -31_536_000));
    }

    #[test]
    fn the_limits_are_those_of_all_tasks_of_one_person() {
        let state = tempfile::tempdir().unwrap();
        let [one, other] = [0, 1].map(|_| Limits::new(BOUNDS, Some(state.path())));
        let now = |seconds| {
            let now = Timestamp::now();
            Wanted {
                approval: ApprovalId::new(),
                now,
                until: now + SignedDuration::from_secs(seconds),
            }
        };
        let first = now(600);
        one.take(first).unwrap();
        other.take(now(600)).unwrap();
        assert!(one.take(now(600)).is_err());
        other.note_end(first.approval);
        one.take(now(600)).unwrap();
        let digest = Digest::of_bytes(b"a");
        one.note_denied(Denied {
            at: Timestamp::now(),
            ..denied(&digest, 0)
        });
        assert_eq!(other.denied(&digest).unwrap().reason, "no");
    }

    #[test]
    fn where_the_file_cannot_be_used_each_task_keeps_to_the_bounds() {
        let state = tempfile::tempdir().unwrap();
        std::fs::write(state.path().join("asked.json"), "nonsense").unwrap();
        let limits = Limits::new(BOUNDS, Some(state.path()));
        let put = || {
            limits.take(Wanted {
                now: Timestamp::now(),
                until: Timestamp::MAX,
                approval: ApprovalId::new(),
            })
        };
        assert!(put().is_ok() && put().is_ok() && put().is_err());
    }

    #[test]
    fn an_old_file_is_still_read() {
        let state = tempfile::tempdir().unwrap();
        let digest = Digest::of_bytes(b"a");
        let text = format!(
            r#"{{"version":1,"asked":[{{"approval":"01920000-0000-7000-8000-000000000000","at":"2026-01-31T12:00:00Z","open":{{"until":"2026-01-31T12:10:00Z","pid":7,"started":9}}}}],"denied":[{{"digest":"{digest}","at":"{}","by":{{"kind":"person","name":"ada","via":"terminal"}},"reason":"no"}}]}}"#,
            Timestamp::now()
        );
        std::fs::write(state.path().join("asked.json"), text).unwrap();
        let limits = Limits::new(BOUNDS, Some(state.path()));
        assert_eq!(limits.denied(&digest).unwrap().by.name, "ada");
    }
}
