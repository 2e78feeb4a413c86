//! When a reviewer says no again and again, an agent is trying its luck: from then on it is not asked any more.

use std::collections::VecDeque;

/// Denials in a row after which a task's reviewer is not asked any more.
const IN_A_ROW: usize = 3;
/// The reviews that are looked back on, and how many of them may be denials.
const WINDOW: usize = 50;
const OF_WINDOW: usize = 10;

/// The last reviews of a task. Once open it stays so, until a person has said yes to something.
#[derive(Debug, Default)]
pub struct Breaker {
    /// Whether each was a denial, oldest first.
    reviews: VecDeque<bool>,
    open: bool,
}

impl Breaker {
    /// A review that failed counts as a denial: whoever can make reviews fail must not get more tries by it.
    pub fn note(&mut self, denied: bool) {
        if self.reviews.len() == WINDOW {
            self.reviews.pop_front();
        }
        self.reviews.push_back(denied);
        let row = self.reviews.iter().rev().take_while(|denied| **denied).count();
        let all = self.reviews.iter().filter(|denied| **denied).count();
        self.open |= row >= IN_A_ROW || all >= OF_WINDOW;
    }

    pub fn is_open(&self) -> bool {
        self.open
    }

    pub fn reset(&mut self) {
        *self = Self::default();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn after(reviews: &[bool]) -> bool {
        let mut breaker = Breaker::default();
        reviews.iter().for_each(|denied| breaker.note(*denied));
        breaker.is_open()
    }

    #[test]
    fn it_opens_after_three_in_a_row_and_stays_open() {
        assert!(!after(&[true, true, false, true, true]));
        assert!(after(&[true, true, true]));
        assert!(after(&[true, true, true, false, false]));
    }

    #[test]
    fn it_opens_after_ten_of_the_last_fifty() {
        let one_in_five: Vec<bool> = (0..46).map(|n| n % 5 == 0).collect();
        assert!(after(&one_in_five));
        assert!(!after(&one_in_five[..45]));
        let one_in_six: Vec<bool> = (0..600).map(|n| n % 6 == 0).collect();
        assert!(!after(&one_in_six));
    }

    #[test]
    fn a_reset_one_begins_anew() {
        let mut breaker = Breaker::default();
        (0..3).for_each(|_| breaker.note(true));
        breaker.reset();
        breaker.note(true);
        assert!(!breaker.is_open());
    }
}
