//! belljar's own log, for those who run it: on stderr, off unless `BELLJAR_LOG` says what to show (`debug`, `belljar=trace`).
//! The record of what tasks did is the journal's, never this.

#![forbid(unsafe_code)]

use tracing_subscriber::EnvFilter;

/// A filter that cannot be read.
#[derive(Debug, thiserror::Error)]
#[error("BELLJAR_LOG is not a filter")]
pub struct FilterError(#[source] tracing_subscriber::filter::ParseError);

/// Starts the log; called once, first thing in `main`.
pub fn start() -> Result<(), FilterError> {
    let filter = match std::env::var("BELLJAR_LOG") {
        Ok(text) => EnvFilter::try_new(text).map_err(FilterError)?,
        Err(_) => EnvFilter::new("off"),
    };
    tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(std::io::stderr)
        .with_ansi(false)
        .init();
    Ok(())
}
