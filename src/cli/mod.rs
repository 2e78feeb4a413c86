//! The command line: what a person types, and what they read.

pub mod config;
pub mod image;
