//! How a live task is driven from outside: HTTP with JSON and WebSockets under `/v1` on a unix socket, and the same messages
//! as JSON lines on stdin and stdout. Every exec asked for here goes through the gate like any other.
//!
//! | path under `/v1` | does |
//! |---|---|
//! | `GET /tasks`, `GET /tasks/{task}` | tells of tasks |
//! | `POST /tasks/{task}/stop`, `GET /tasks/{task}/wait` | ends a task, waits for its end; both answer with the summary |
//! | `POST /tasks/{task}/events` | records an `agent.event` |
//! | `GET, POST /tasks/{task}/execs` | lists execs, starts one |
//! | `GET /tasks/{task}/execs/{exec}`, `…/wait` | tells of an exec, waits for its end |
//! | `POST …/signal`, `…/resize`, `…/cancel` | acts on a running command |
//! | `GET …/attach?after=N` | a WebSocket with its streams and events |
//! | `GET /approvals`, `POST /approvals/{approval}` | tells of questions that wait, answers one |
//! | `GET /approvals/watch` | server-sent events: the questions that wait, and what becomes of them |
//! | `GET /schema` | the JSON Schema of all messages |
//!
//! Called by `cli`; leaves what an exec is to `supervisor`. [`messages`] defines every message once.

#![forbid(unsafe_code)]

pub mod approvals;
mod attach;
pub mod client;
pub mod error;
pub mod folder;
pub mod messages;
mod routes;
mod server;
pub mod stdio;
pub(crate) mod wire;

pub use error::ApiError;
pub use server::{ServeError, Server};
