//! Making and unmaking the box. A [`plan::Plan`] says all of its isolation as one plain value; a backend translates it and decides
//! nothing.
//!
//! ```text
//!  belljar (threads) ──socket── launcher (one thread, same binary, started first)
//!      │                           └─clone3─ setup: mounts, pivot_root, no capabilities, seccomp, exec
//!      │                                       └─ guest, PID 1 of the sandbox
//!      ├──control socket─────────────────────────────┘ ├─ slot ── a command
//!      └──a socket a slot──────────────────────────────┘
//! ```
//!
//! Called by `supervisor` (to start and end) and by `exec` (to run one command in a slot). What the network of a sandbox may
//! reach is `egress`'s; the sandbox only hands out the listeners.

mod begin;
pub mod bundle;
pub mod channel;
pub mod contained;
pub mod docker;
pub mod enforcement;
pub mod holders;
pub mod host_root;
pub mod launcher;
pub mod oci;
pub mod outside;
pub mod owners;
pub mod plan;
pub mod probe;
pub mod protect;
pub mod relay;
pub mod seccomp;
mod setup;
mod spare;
mod ssh;
pub mod unfold;
mod users;
