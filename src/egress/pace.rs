//! Slows a flood of refusals down. Each is worth a record, and none is dropped; but a program that hammers at a closed door
//! must not fill the journal's disk at the speed of loopback.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets a burst pass, then so many a second.
pub(super) struct Pace {
    /// When the last refusal so far would be due at the pace alone.
    due: Mutex<Option<Instant>>,
    each: Duration,
    burst: u32,
}

impl Pace {
    pub fn new(burst: u32, per_second: u32) -> Self {
        Self {
            due: Mutex::new(None),
            each: Duration::from_secs(1) / per_second.max(1),
            burst,
        }
    }

    /// Waits for a turn. Cancel-safe: a turn that is not waited for is spent.
    pub async fn turn(&self) {
        let wait = self.take(Instant::now());
        if !wait.is_zero() {
            tokio::time::sleep(wait).await;
        }
    }

    fn take(&self, now: Instant) -> Duration {
        let mut due = self.due.lock().unwrap_or_else(PoisonError::into_inner);
        let next = due.map_or(now, |due| due.max(now)) + self.each;
        *due = Some(next);
        (next - now).saturating_sub(self.each * self.burst)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_at_once_and_the_rest_in_turn() {
        let pace = Pace::new(10, 5);
        let start = Instant::now();
        let waits = |count: u32, now| (0..count).map(|_| pace.take(now).as_millis()).collect::<Vec<_>>();
        assert_eq!(waits(10, start), [0; 10]);
        assert_eq!(waits(3, start), [200, 400, 600]);
        let later = start + Duration::from_secs(60);
        assert_eq!(waits(10, later), [0; 10], "a pause earns the burst again");
        assert_eq!(waits(1, later), [200], "and no more");
    }
}
