//! MAY it run. Rules in Starlark, a splitter that understands shell scripts, and the judgement that follows from both.
//!
//! Called by `exec::pipeline` for every exec, by `egress` for destinations, and by `rules check`, which always agrees with them.
//! Plain functions without waiting: asking a person is left to `approval`.
//!
//! A [`Permit`] is made only in this module: by an Allow, or by [`Question::answer`]. Without one nothing starts.

pub mod amend;
mod gate;
mod in_force;
mod judgement;
mod request;
pub mod rules;
pub mod shell;

pub use gate::{Explanation, Policy, Verdict};
pub use in_force::InForce;
pub use judgement::{
    Answer, Approver, ApproverKind, Basis, Decision, Judgement, Permit, Question, Refusal, RuleMatch, Scope,
};
pub use request::{Command, Digest, Stdin, TtySize};
pub use rules::{NetworkRule, RuleText, RulesError};

#[cfg(test)]
mod tests;
