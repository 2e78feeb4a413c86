//! WHAT happened: [`record::Record`]s, the journal that keeps them, and their way to OTLP.
//!
//! ```text
//!  exec, egress, approval, config ──append──▶ journal (SQLite, hash-chained, one writer thread)
//!                                                │ cursor            │ read
//!                                                ▼                   ▼
//!                                          otlp (logs, spans,    query, verify
//!                                          metrics to collectors)  (audit ls, show, tail, verify)
//! ```
//!
//! The journal is the source and all else follows from it. Written before a thing is done and before an answer is given.

pub mod journal;
pub mod key;
pub mod ocsf;
pub mod otlp;
pub mod query;
pub mod record;
pub mod redact;
pub mod report;
pub mod schema;
pub mod stats;
pub mod triage;
mod verify;

pub use verify::{Broken, Known, Verified, VerifyError, verify};

#[cfg(test)]
mod samples;
