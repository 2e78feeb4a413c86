//! The way out of a sandbox.

#![forbid(unsafe_code)]

pub mod address;
pub mod gate;
pub mod host;
pub mod path;
pub mod pattern;
pub mod resolve;
