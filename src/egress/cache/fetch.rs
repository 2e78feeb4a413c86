//! Fetching answers for the store, at the word of a person on the host.

use std::io::{self, Read};
use std::path::PathBuf;

use bytes::{Buf, Bytes};
use futures_util::StreamExt;
use reqwest::header::{ACCEPT_ENCODING, LOCATION};
use tokio::sync::mpsc;

use super::{Store, StoreError, Stored, Url};
use crate::egress::host::Authority;
use crate::egress::tls::{InspectionError, client_config};

/// What of an answer's head is kept: what says what the body is, and where to go on.
const KEPT: [&str; 9] = [
    "content-type",
    "content-encoding",
    "content-disposition",
    "content-language",
    "etag",
    "last-modified",
    "link",
    "location",
    "docker-content-digest",
];

/// Answers that are worth keeping: those that are final, and those that lead on.
const STATUSES: [u16; 8] = [200, 203, 301, 302, 303, 307, 308, 410];

const REDIRECTS_MAX: usize = 10;

/// Pieces of a body between the network and the disk.
const QUEUE: usize = 16;

#[derive(Debug, thiserror::Error)]
pub enum FetchError {
    #[error(transparent)]
    Roots(#[from] InspectionError),
    #[error("the client cannot be made")]
    Client(#[source] reqwest::Error),
    #[error("no whole answer came back")]
    Fetch(#[source] reqwest::Error),
    #[error("the server says {0}")]
    Status(u16),
    #[error("{url}: {what}")]
    Forbidden { url: String, what: String },
    #[error("it leads on more than {REDIRECTS_MAX} times")]
    Redirects,
    #[error(transparent)]
    Store(#[from] StoreError),
    #[error("the store's thread is gone")]
    Gone,
}

/// Fetches over the host's own network.
pub struct Fetcher {
    client: reqwest::Client,
}

impl Fetcher {
    /// Reads the machine's roots of trust; blocking.
    pub fn new(extra_roots: &[PathBuf], upstream: Option<&Authority>) -> Result<Self, FetchError> {
        let (mut config, _) = client_config(extra_roots)?;
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut builder = reqwest::Client::builder()
            .tls_backend_preconfigured(config)
            .http1_only()
            .redirect(reqwest::redirect::Policy::none())
            .no_proxy();
        if let Some(proxy) = upstream {
            builder = builder.proxy(reqwest::Proxy::all(format!("http://{proxy}")).map_err(FetchError::Client)?);
        }
        Ok(Self {
            client: builder.build().map_err(FetchError::Client)?,
        })
    }

    /// Keeps the answer for a URL, and those on the way that it leads. `forbids` says why a host must not be asked.
    pub async fn fill(
        &self,
        store: &Store,
        url: Url,
        forbids: &(dyn Fn(&Authority) -> Option<String> + Sync),
    ) -> Result<Vec<Stored>, FetchError> {
        let (mut kept, mut url) = (Vec::new(), url);
        while kept.len() <= REDIRECTS_MAX {
            if let Some(what) = forbids(&url.authority) {
                let url = url.as_str().to_owned();
                return Err(FetchError::Forbidden { url, what });
            }
            let stored = self.fetch(store, &url).await?;
            let location = stored.headers.iter().find(|(name, _)| name == LOCATION.as_str());
            let next = match location {
                Some((_, location)) if stored.status / 100 == 3 => Some(url.join(location)?),
                _ => None,
            };
            kept.push(stored);
            match next {
                Some(next) => url = next,
                None => return Ok(kept),
            }
        }
        Err(FetchError::Redirects)
    }

    async fn fetch(&self, store: &Store, url: &Url) -> Result<Stored, FetchError> {
        let request = self.client.get(url.as_str()).header(ACCEPT_ENCODING, "identity");
        let response = request.send().await.map_err(FetchError::Fetch)?;
        let status = response.status().as_u16();
        if !STATUSES.contains(&status) {
            return Err(FetchError::Status(status));
        }
        let text = |name: &&str| {
            Some((
                (*name).to_owned(),
                response.headers().get(*name)?.to_str().ok()?.to_owned(),
            ))
        };
        let headers: Vec<(String, String)> = KEPT.iter().filter_map(text).collect();
        let (send, receive) = mpsc::channel(QUEUE);
        let mut pieces = Pieces {
            receive,
            rest: Bytes::new(),
        };
        let (store, url) = (store.clone(), url.clone());
        let putting = tokio::task::spawn_blocking(move || store.put(&url, status, headers, &mut pieces));
        let mut body = response.bytes_stream();
        let mut failed = None;
        while let Some(piece) = body.next().await {
            let piece = piece.map_err(|error| failed.insert(error).to_string());
            // Whoever does not take any more says why by itself.
            if send.send(piece).await.is_err() {
                break;
            }
        }
        drop(send);
        let put = putting.await.map_err(|_| FetchError::Gone)?;
        match failed {
            Some(error) => Err(FetchError::Fetch(error)),
            None => Ok(put?),
        }
    }
}

/// A body as it comes, for a thread that writes it down.
struct Pieces {
    receive: mpsc::Receiver<Result<Bytes, String>>,
    rest: Bytes,
}

impl Read for Pieces {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        while self.rest.is_empty() {
            match self.receive.blocking_recv() {
                Some(Ok(piece)) => self.rest = piece,
                Some(Err(error)) => return Err(io::Error::other(error)),
                None => return Ok(0),
            }
        }
        let length = self.rest.len().min(buffer.len());
        self.rest.copy_to_slice(&mut buffer[..length]);
        Ok(length)
    }
}
