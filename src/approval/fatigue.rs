//! A person's limits. Who is asked too often says yes without looking: more than so many questions are refused unasked, and what
//! was denied a moment ago is not put again.

use std::collections::{HashMap, VecDeque};
use std::time::{Duration, Instant};

use crate::policy::{Approver, Digest};

/// How much one person is asked for one task.
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

#[derive(Debug, Default)]
pub(super) struct Fatigue {
    asked: VecDeque<Instant>,
    denied: HashMap<Digest, Denied>,
}

#[derive(Debug, Clone)]
pub(super) struct Denied {
    pub at: Instant,
    pub by: Approver,
    pub reason: String,
}

impl Fatigue {
    /// Why no further question may be put, where `open` wait already; otherwise it is counted.
    pub fn take(&mut self, bounds: &Bounds, open: usize, now: Instant) -> Result<(), String> {
        if open >= bounds.open {
            return Err(format!("{open} other questions wait for an answer already"));
        }
        while self.asked.front().is_some_and(|at| now - *at >= bounds.within) {
            self.asked.pop_front();
        }
        if self.asked.len() >= bounds.asked {
            let (count, time) = (self.asked.len(), bounds.within.as_secs());
            return Err(format!("{count} questions were asked within {time} s already"));
        }
        self.asked.push_back(now);
        Ok(())
    }

    pub fn note_denied(&mut self, bounds: &Bounds, digest: Digest, denied: Denied) {
        let now = denied.at;
        self.denied.retain(|_, other| now - other.at < bounds.repeat);
        if self.denied.len() >= DENIED_MAX
            && let Some(oldest) = self
                .denied
                .iter()
                .min_by_key(|(_, denied)| denied.at)
                .map(|(digest, _)| *digest)
        {
            self.denied.remove(&oldest);
        }
        self.denied.insert(digest, denied);
    }

    /// The no that this very request got a moment ago.
    pub fn denied(&self, bounds: &Bounds, digest: &Digest, now: Instant) -> Option<&Denied> {
        let denied = self.denied.get(digest)?;
        (now - denied.at < bounds.repeat).then_some(denied)
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

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn more_questions_than_a_person_can_read_are_not_put() {
        let mut fatigue = Fatigue::default();
        let begin = Instant::now();
        let many = Err("2 other questions wait for an answer already".to_owned());
        assert_eq!(fatigue.take(&BOUNDS, 2, begin), many);
        (0..3).for_each(|_| fatigue.take(&BOUNDS, 0, begin).unwrap());
        let full = Err("3 questions were asked within 60 s already".to_owned());
        assert_eq!(fatigue.take(&BOUNDS, 0, begin + 59 * SECOND), full);
        assert_eq!(fatigue.take(&BOUNDS, 0, begin + 60 * SECOND), Ok(()));
    }

    #[test]
    fn a_no_is_remembered_for_a_while_and_only_for_the_same() {
        let mut fatigue = Fatigue::default();
        let (same, other) = (Digest::of_bytes(b"same"), Digest::of_bytes(b"other"));
        let at = Instant::now();
        let by = Approver {
            kind: ApproverKind::Person,
            name: "ada".to_owned(),
            via: "terminal".to_owned(),
        };
        let reason = "no".to_owned();
        fatigue.note_denied(&BOUNDS, same, Denied { at, by, reason });
        let is_denied = |digest, after: u32| fatigue.denied(&BOUNDS, digest, at + after * SECOND).is_some();
        assert!(is_denied(&same, 29) && !is_denied(&same, 30) && !is_denied(&other, 0));
    }
}
