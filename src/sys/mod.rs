//! The kernel, wrapped: the only unsafe code on the host side.

pub mod path;
pub mod user;
