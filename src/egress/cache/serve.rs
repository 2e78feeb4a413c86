//! Answering a request out of the store, or saying how an answer gets into it.

use std::sync::Arc;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, StreamBody};
use hyper::body::Frame;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Response, StatusCode};
use tokio::io::AsyncReadExt;

use super::{Store, StoreError, Stored, Url};
use crate::egress::denial::{Denial, DenialKind};
use crate::egress::front::http::{Answer, refusal};
use crate::egress::gate::Destination;
use crate::egress::request::Asked;
use crate::egress::way::{Way, Who};

/// The rule under which stored answers stand in the record.
const RULE: &str = "network.mode cached";

/// Bytes of a body at a time.
const PIECE: usize = 64 * 1024;

/// Answers one request of a task that may see stored answers only.
pub(in crate::egress) async fn answer(
    way: &Way,
    store: &Arc<Store>,
    who: Who,
    destination: &Destination,
    asked: Asked<'_>,
    url: Url,
) -> Answer {
    let allowed = way.admit_stored(destination, asked);
    let looked_up = async {
        allowed?;
        if !["GET", "HEAD"].contains(&asked.method) {
            let reason = format!("{} cannot be answered out of a store", asked.method);
            return Err(Denial::new(destination, DenialKind::Denied, RULE, reason));
        }
        let (store, wanted) = (store.clone(), url.clone());
        // Joining fails only where the runtime goes away, and then there is nobody to answer.
        let found = tokio::task::spawn_blocking(move || store.find(&wanted)).await;
        match found {
            Ok(Ok(Some(found))) => Ok(found),
            Ok(Ok(None)) => Err(missing(destination, &url)),
            Ok(Err(error @ StoreError::Changed(_))) => {
                Err(Denial::new(destination, DenialKind::Unable, RULE, error.to_string()))
            }
            Ok(Err(_)) | Err(_) => {
                let reason = "the store of answers cannot be read".to_owned();
                Err(Denial::new(destination, DenialKind::Unable, RULE, reason))
            }
        }
    };
    match looked_up.await {
        Ok((stored, body)) => {
            let told = ("allow", RULE, "there is a stored answer");
            match way.record_request(who, destination, asked, told).await {
                Ok(()) => reply(&stored, body, asked.method == "HEAD"),
                Err(denial) => refusal(&denial),
            }
        }
        Err(denial) => {
            way.refuse_request(who, destination, asked, &denial).await;
            refusal(&denial)
        }
    }
}

fn missing(destination: &Destination, url: &Url) -> Denial {
    let reason = "there is no stored answer for this URL, and the task may see no others".to_owned();
    let mut denial = Denial::new(destination, DenialKind::Unknown, RULE, reason);
    // Within single quotes a shell takes all of it as it is.
    denial.how_to_ask = format!(
        "ask the person who runs the task to fetch it: belljar cache fill '{}'",
        url.as_str().replace('\'', "%27")
    );
    denial
}

fn reply(stored: &Stored, body: std::fs::File, is_head: bool) -> Answer {
    let body = if is_head {
        Full::default().map_err(|never| match never {}).boxed_unsync()
    } else {
        let file = tokio::fs::File::from_std(body);
        let pieces = futures_util::stream::unfold(file, |mut file| async {
            let mut piece = Vec::with_capacity(PIECE);
            match (&mut file).take(PIECE as u64).read_to_end(&mut piece).await {
                Ok(0) => None,
                Ok(_) => Some((Ok(Frame::data(Bytes::from(piece))), file)),
                Err(error) => Some((Err(error.into()), file)),
            }
        });
        StreamBody::new(pieces).boxed_unsync()
    };
    let mut reply = Response::new(body);
    *reply.status_mut() = StatusCode::from_u16(stored.status).unwrap_or(StatusCode::OK);
    let headers = reply.headers_mut();
    *headers = HeaderMap::new();
    for (name, value) in &stored.headers {
        if let (Ok(name), Ok(value)) = (HeaderName::from_bytes(name.as_bytes()), HeaderValue::from_str(value)) {
            headers.append(name, value);
        }
    }
    headers.insert(header::CONTENT_LENGTH, HeaderValue::from(stored.bytes));
    headers.insert(
        "x-belljar-fetched",
        HeaderValue::from_str(&stored.fetched).unwrap_or(HeaderValue::from_static("earlier")),
    );
    reply
}
