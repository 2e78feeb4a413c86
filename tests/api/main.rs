//! The API as a caller sees it: over its socket and over stdin and stdout.

mod attach;
mod http;
mod live;
mod stdio;
