//! The command line: what a person types, and what they read.

pub mod config;
pub mod audit;
//! The command line, one command a file.

pub mod egress;
