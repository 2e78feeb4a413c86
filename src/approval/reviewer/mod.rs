//! Who answers in a person's place, and what such an answer is worth.
//!
//! A reviewer gives an [`Opinion`]; whether that is a yes is decided here, the same for all of them: `low` and `medium` risk may
//! pass, `high` only with the user's authorization, `critical` never. What is late, missing or at odds with itself is a no that
//! says which of these it was. An answer of a reviewer holds once, and never where a rule wants a person.

mod breaker;
mod case;
mod classes;
mod command;
mod model;
mod prompt;
mod settings;
#[cfg(test)]
pub(crate) mod testing;
mod verdict;

use futures_util::future::BoxFuture;
use serde::{Deserialize, Serialize};

pub use breaker::Breaker;
pub use case::Case;
pub use classes::{Class, Classes, ClassesError, Named};
pub use command::Program;
pub use model::{Api, Model, ModelError, ModelSettings};
pub use prompt::{Prompt, cut, fitting};
pub use settings::{By, ByModel, Settings, SettingsError};
pub use verdict::RATIONALE_LIMIT;

use crate::policy::Approver;

/// Something that answers questions. It never approves by itself: see [`Reviewed::ruling`].
pub trait Review: Send + Sync {
    /// Its name and place, as they stand in records.
    fn approver(&self) -> Approver;
    /// Gives an opinion within [`PATIENCE`]. Dropping the future ends the review.
    fn review<'a>(&'a self, case: &'a Case) -> BoxFuture<'a, Reviewed>;
}

/// How long one review may take, with all its attempts.
pub const PATIENCE: std::time::Duration = std::time::Duration::from_secs(90);

/// What a reviewer thinks.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Opinion {
    pub outcome: Outcome,
    pub risk_level: Risk,
    pub user_authorization: Authorization,
    pub rationale: String,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Outcome {
    Allow,
    Deny,
    /// It has no opinion: a person is to be asked.
    Ask,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Risk {
    Low,
    Medium,
    High,
    Critical,
}

/// How far the user's own words ask for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Authorization {
    Unknown,
    Low,
    Medium,
    High,
}

/// Why there is no opinion. Each is a no.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    TimedOut,
    /// It could not be reached, or failed by itself, as often as it was tried.
    Unreachable,
    /// It answered that the request is wrong: a bad key, an unknown model.
    Rejected,
    /// The model declined to judge.
    Refused,
    /// The answer was cut off.
    Truncated,
    TooLarge,
    /// The answer is not of the shape that was asked for.
    Malformed,
    /// The answer is at odds with itself, or with what may be allowed.
    Contradictory,
    /// Too many reviews in a row ended in a no.
    BreakerOpen,
}

impl Failure {
    /// As it stands in records.
    pub fn word(self) -> &'static str {
        match self {
            Self::TimedOut => "timed_out",
            Self::Unreachable => "unreachable",
            Self::Rejected => "rejected",
            Self::Refused => "refused",
            Self::Truncated => "truncated",
            Self::TooLarge => "too_large",
            Self::Malformed => "malformed",
            Self::Contradictory => "contradictory",
            Self::BreakerOpen => "breaker_open",
        }
    }
}

/// A review that failed: how, and what is known of it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}: {detail}", failure.word())]
pub struct Failed {
    pub failure: Failure,
    pub detail: String,
}

impl Failed {
    pub fn new(failure: Failure, detail: impl Into<String>) -> Self {
        Self {
            failure,
            detail: detail.into(),
        }
    }
}

/// What a review came to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reviewed {
    pub opinion: Result<Opinion, Failed>,
    /// How often the reviewer was asked.
    pub attempts: u32,
}

/// What follows from a review.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Ruling {
    Approve,
    /// With the reason that the asking agent is told.
    Deny(String),
    /// A person is to be asked; the reason why.
    Ask(String),
}

impl Reviewed {
    pub fn failed(failed: Failed) -> Self {
        Self {
            opinion: Err(failed),
            attempts: 1,
        }
    }

    /// Turns an opinion that allows what it may not allow into the failure that it is.
    pub fn held_to_the_bounds(mut self) -> Self {
        if let Ok(opinion) = &self.opinion
            && let Some(contradiction) = opinion.contradiction()
        {
            self.opinion = Err(Failed::new(Failure::Contradictory, contradiction));
        }
        self
    }

    /// What follows. Only an opinion within the bounds is a yes.
    pub fn ruling(&self) -> Ruling {
        match &self.opinion {
            Ok(opinion) if opinion.contradiction().is_some() => {
                Ruling::Deny("the review is at odds with itself".to_owned())
            }
            Ok(opinion) => match opinion.outcome {
                Outcome::Allow => Ruling::Approve,
                Outcome::Deny => Ruling::Deny(format!("the reviewer said no: {}", opinion.rationale)),
                Outcome::Ask => Ruling::Ask(opinion.rationale.clone()),
            },
            Err(failed) => Ruling::Deny(format!("the review failed ({})", failed.failure.word())),
        }
    }
}

impl Opinion {
    fn contradiction(&self) -> Option<String> {
        if self.outcome != Outcome::Allow {
            return None;
        }
        match (self.risk_level, self.user_authorization) {
            (Risk::Critical, _) => Some("it allows what it calls critical".to_owned()),
            (Risk::High, Authorization::Unknown | Authorization::Low) => {
                Some("it allows a high risk that the user did not authorize".to_owned())
            }
            (Risk::High, Authorization::Medium | Authorization::High) | (Risk::Low | Risk::Medium, _) => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn reviewed(outcome: Outcome, risk_level: Risk, user_authorization: Authorization) -> Reviewed {
        Reviewed {
            opinion: Ok(Opinion {
                outcome,
                risk_level,
                user_authorization,
                rationale: "because".to_owned(),
            }),
            attempts: 1,
        }
    }

    #[test]
    fn only_what_is_within_the_bounds_is_a_yes() {
        use Authorization::{High as Wanted, Low as Hinted, Medium as Meant, Unknown};
        for risk in [Risk::Low, Risk::Medium, Risk::High, Risk::Critical] {
            for authorization in [Unknown, Hinted, Meant, Wanted] {
                let good = risk <= Risk::Medium || risk == Risk::High && authorization >= Meant;
                let reviewed = reviewed(Outcome::Allow, risk, authorization);
                assert_eq!(reviewed.ruling() == Ruling::Approve, good, "{risk:?} {authorization:?}");
                assert_eq!(reviewed.held_to_the_bounds().opinion.is_ok(), good);
            }
        }
    }

    #[test]
    fn a_no_a_failure_and_no_opinion_are_never_a_yes() {
        let no = reviewed(Outcome::Deny, Risk::Low, Authorization::High).ruling();
        assert_eq!(no, Ruling::Deny("the reviewer said no: because".to_owned()));
        let late = Reviewed::failed(Failed::new(Failure::TimedOut, "90 s"));
        assert_eq!(late.ruling(), Ruling::Deny("the review failed (timed_out)".to_owned()));
        let unsure = reviewed(Outcome::Ask, Risk::Low, Authorization::High).ruling();
        assert_eq!(unsure, Ruling::Ask("because".to_owned()));
    }
}
