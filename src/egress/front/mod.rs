//! What the sandbox speaks to the proxy, one protocol a file. A front reads, refuses what can be read in two ways, and hands a
//! destination to [`super::way::Way`]; it decides nothing.

pub(super) mod hello;
pub(super) mod http;
pub(super) mod tunnel;
