//! belljar runs each task of an AI agent in a disposable, sealed container.
//!
//! The map, in layer order: each module may use those above it in this list and none below
//! (`tests/house.rs` holds it).
//!
//! | module | answers |
//! |---|---|
//! | [`id`], [`path`] | words: ids and the two worlds of paths |
//! | [`document`] | words: TOML read with places, every fault at once |
//! | [`crash`] | words: where a test can end the process |
//! | [`task`] | WHAT runs: the task spec, roots, limits |
//! | [`policy`] | MAY it: rules, the shell splitter, the judgement |
//! | [`audit`] | WHAT happened: records, the journal, OTLP |
//! | [`sys`] | the kernel, wrapped: the only unsafe code on the host side |
//! | [`secret`] | where secret values are kept |
//! | [`config`] | who may set what: layers, requirements, `TaskSpec` to `Task` |
//! | [`approval`] | asking a person or a reviewer |
//! | [`image`] | where a root file system comes from |
//! | [`sandbox`] | making and unmaking the box |
//! | [`egress`] | the way out of it |
//! | [`exec`] | one command's way through all of it |
//! | [`supervisor`] | many tasks over time |
//! | [`api`], [`cli`], [`telemetry`] | the edge |

pub mod api;
pub mod approval;
pub mod audit;
pub mod cli;
pub mod config;
pub mod crash;
pub mod document;
pub mod egress;
pub mod exec;
pub mod id;
pub mod image;
pub mod path;
pub mod policy;
pub mod sandbox;
pub mod secret;
pub mod supervisor;
pub mod sys;
pub mod task;
pub mod telemetry;
