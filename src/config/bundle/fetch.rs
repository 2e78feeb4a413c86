//! Getting a bundle from its URL.

use std::io;
use std::time::Duration;

use super::envelope::LARGEST;

/// How long a fetch may take in all: a start of belljar waits for it.
pub const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error("there is no copy of the bundle yet: {source}")]
    NoCopy { source: io::Error },
    #[error("the bundle cannot be fetched from {url}: {what}")]
    Request { url: String, what: String },
    #[error("the bundle cannot be fetched from {url}: the server answered {status}")]
    Status { url: String, status: u16 },
    #[error("the bundle at {url} is larger than 4 MiB")]
    TooLarge { url: String },
    #[error("nothing can be fetched: {0}")]
    Start(#[source] io::Error),
}

/// Fetches on a thread of its own, for the caller may be within a runtime. Blocking, up to [`PATIENCE`].
pub(in crate::config) fn fetch(url: &str) -> Result<Vec<u8>, FetchError> {
    fetch_within(url, PATIENCE)
}

pub(super) fn fetch_within(url: &str, patience: Duration) -> Result<Vec<u8>, FetchError> {
    std::thread::scope(|scope| {
        let fetching = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .map_err(FetchError::Start)?;
            runtime.block_on(request(url, patience))
        });
        fetching.join().unwrap_or_else(|_| {
            Err(FetchError::Request {
                url: url.to_owned(),
                what: "the client failed".to_owned(),
            })
        })
    })
}

async fn request(url: &str, patience: Duration) -> Result<Vec<u8>, FetchError> {
    // Whoever was first has chosen the same one.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let failed = |error: reqwest::Error| FetchError::Request {
        url: url.to_owned(),
        what: chain(&error),
    };
    let client = reqwest::Client::builder()
        .timeout(patience)
        // The address is pinned by the admin: nobody else says where demands come from.
        .redirect(reqwest::redirect::Policy::none());
    let client = match url.starts_with("http:") {
        true => client.no_proxy(),
        false => client.https_only(true),
    };
    let client = client.build().map_err(failed)?;
    let mut response = client.get(url).send().await.map_err(failed)?;
    if response.status() != reqwest::StatusCode::OK {
        return Err(FetchError::Status {
            url: url.to_owned(),
            status: response.status().as_u16(),
        });
    }
    let mut bytes = Vec::new();
    while let Some(chunk) = response.chunk().await.map_err(failed)? {
        if bytes.len() + chunk.len() > LARGEST {
            return Err(FetchError::TooLarge { url: url.to_owned() });
        }
        bytes.extend_from_slice(&chunk);
    }
    Ok(bytes)
}

/// An error with its causes on one line: it ends up in a fault.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(next) = cause {
        text.push_str(": ");
        text.push_str(&next.to_string());
        cause = next.source();
    }
    text
}
