//! Buying tokens for requests: a connection of belljar's own, judged, recorded and made as any other.

use std::time::Duration;

use bytes::Bytes;
use futures_util::future::BoxFuture;
use http_body_util::{BodyExt, Full, Limited};
use hyper::header::{self, HeaderValue};
use hyper::{Request, StatusCode};
use hyper_util::rt::TokioIo;
use tokio::time::timeout;
use zeroize::Zeroizing;

use super::Alpn;
use super::exchange::Session;
use crate::egress::gate::{Destination, Protocol};
use crate::egress::secret::oauth::{Fetch, TokenRequest};
use crate::egress::way::Closed;

/// Tokens are a few KiB at most.
const LARGEST: usize = 64 * 1024;

/// For the whole of it: a request waits meanwhile.
const TIME: Duration = Duration::from_secs(30);

impl Fetch for Session {
    fn fetch(&self, request: TokenRequest) -> BoxFuture<'_, Result<Zeroizing<Vec<u8>>, String>> {
        Box::pin(async move {
            match timeout(TIME, self.buy(request)).await {
                Ok(bought) => bought,
                Err(_) => Err(format!("no answer within {} s", TIME.as_secs())),
            }
        })
    }
}

impl Session {
    async fn buy(&self, asked: TokenRequest) -> Result<Zeroizing<Vec<u8>>, String> {
        let destination = Destination {
            host: asked.authority.host.clone(),
            port: asked.authority.port,
            protocol: Protocol::HttpsConnect,
            method: Some("POST".to_owned()),
        };
        let passage = match self.way.open(destination, self.client).await {
            Ok(passage) => passage,
            Err(Closed::Denied(denial)) => return Err(denial.reason),
            Err(Closed::Unreachable { error, .. }) => return Err(error),
        };
        let connecting = self
            .inspection
            .connect(passage.stream, &asked.authority.host, &[Alpn::Http1], TIME);
        let (stream, _) = connecting.await?;
        let failed = |error: hyper::Error| error.to_string();
        let io = TokioIo::new(stream);
        let (mut sender, driver) = hyper::client::conn::http1::handshake(io).await.map_err(failed)?;
        let asking = async {
            let request = Request::post(asked.path)
                .header(header::HOST, asked.authority.for_scheme_port(443))
                .header(header::AUTHORIZATION, asked.authorization)
                .header(header::ACCEPT, HeaderValue::from_static("application/json"))
                .header(
                    header::CONTENT_TYPE,
                    HeaderValue::from_static("application/x-www-form-urlencoded"),
                )
                .body(Full::new(Bytes::from(asked.form)))
                .map_err(|error| error.to_string())?;
            let answer = sender.send_request(request).await.map_err(failed)?;
            if answer.status() != StatusCode::OK {
                return Err(format!("the server of tokens says {}", answer.status()));
            }
            let body = Limited::new(answer.into_body(), LARGEST).collect().await;
            let body = body.map_err(|error| error.to_string())?.to_bytes();
            passage.account.add_received(body.len());
            passage.account.complete();
            Ok(Zeroizing::new(body.to_vec()))
        };
        // The connection's own errors reach whoever waits for the answer.
        tokio::select! {
            bought = asking => bought,
            _ = driver => Err("the server of tokens hung up".to_owned()),
        }
    }
}
