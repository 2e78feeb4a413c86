//! One request within TLS: agree on the host, judge, record, rewrite, send, and give the answer back.

use std::sync::{Arc, Mutex, PoisonError};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Empty};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use tokio::time::timeout;

use super::serve::Upstream;
use super::websocket::Upgraded;
use crate::egress::account::Account;
use crate::egress::body::{Carried, Failure};
use crate::egress::front::http::{plain, refusal, strip, unreachable, whole_chain};
use crate::egress::gate::{Denial, DenialKind, Destination, Route};
use crate::egress::host::Authority;
use crate::egress::request::Asked;
use crate::egress::way::{Way, Who};

pub(super) type Reply = Response<UnsyncBoxBody<Bytes, Failure>>;

const TRAILERS: HeaderValue = HeaderValue::from_static("trailers");

/// One client's connection and the one to the server that belongs to it.
pub(super) struct Session {
    destination: Destination,
    /// By which the connection was let through.
    rule: String,
    upstream: Upstream,
    account: Arc<Account>,
    way: Arc<Way>,
    upgrade: Mutex<Option<Upgraded>>,
}

impl Session {
    pub fn new(route: &Route, upstream: Upstream, account: Arc<Account>, way: Arc<Way>) -> Self {
        Self {
            destination: route.destination().clone(),
            rule: route.rule().to_owned(),
            upstream,
            account,
            way,
            upgrade: Mutex::default(),
        }
    }

    /// The connection that a request has switched, to be carried on as bytes.
    pub fn take_upgrade(&self) -> Option<Upgraded> {
        self.upgrade.lock().unwrap_or_else(PoisonError::into_inner).take()
    }

    pub async fn answer(&self, request: Request<Incoming>) -> Reply {
        let who = Who::Exec(self.account.exec());
        let asked = Asked {
            method: request.method().as_str(),
            path: request.uri().path_and_query().map_or("/", |path| path.as_str()),
            headers: request.headers(),
        };
        if let Err(denial) = self.agree(&request) {
            self.way.refuse_request(who, &self.destination, asked, &denial).await;
            let mut reply = refusal(&denial);
            // Of several hosts that share a certificate, this connection is for one (RFC 9110, 15.5.20).
            *reply.status_mut() = StatusCode::MISDIRECTED_REQUEST;
            return boxed(reply);
        }
        let admitted = self
            .way
            .admit_request(who, &self.destination, asked, Some(&self.rule))
            .await;
        if let Err(denial) = admitted {
            return boxed(refusal(&denial));
        }
        self.forward(request).await
    }

    /// Whether the request is for the host that the tunnel was allowed for, and can be read in one way only.
    fn agree(&self, request: &Request<Incoming>) -> Result<(), Denial> {
        let denied = |reason: String| Err(Denial::new(&self.destination, DenialKind::Denied, "authority", reason));
        let method = request.method();
        if method == Method::CONNECT || method == Method::TRACE {
            return denied(format!("{method} is not let through"));
        }
        let uri = request.uri();
        if uri.path_and_query().is_none() && method != Method::OPTIONS {
            return denied("the request has no path".to_owned());
        }
        if uri.scheme_str().is_some_and(|scheme| scheme != "https") {
            return denied("the request is not for https".to_owned());
        }
        let mut hosts = request.headers().get_all(header::HOST).iter();
        let host = hosts.next();
        if hosts.next().is_some() {
            return denied("the request has several Host headers".to_owned());
        }
        let host = match host.map(HeaderValue::to_str) {
            Some(Err(_)) => return denied("the Host header cannot be read".to_owned()),
            Some(Ok(host)) => Some(host),
            None => None,
        };
        let named: Vec<&str> = uri
            .authority()
            .map(|authority| authority.as_str())
            .into_iter()
            .chain(host)
            .collect();
        if named.is_empty() {
            return denied("the request names no host".to_owned());
        }
        let expected = Authority {
            host: self.destination.host.clone(),
            port: self.destination.port,
        };
        for name in named {
            match Authority::parse(name, Some(443)) {
                Ok(asked) if asked == expected => {}
                Ok(asked) => return denied(format!("the request is for {asked}, and the connection for {expected}")),
                Err(error) => return denied(format!("the request's host: {error}")),
            }
        }
        Ok(())
    }

    async fn forward(&self, mut request: Request<Incoming>) -> Reply {
        let (destination, account, limits) = (&self.destination, &self.account, self.way.limits);
        if let Upstream::Failed(error) = &self.upstream {
            return boxed(unreachable(destination, error));
        }
        if request.body().size_hint().lower() > limits.request_body {
            let error = "the request's body is over the limit";
            return boxed(plain(StatusCode::PAYLOAD_TOO_LARGE, destination, error));
        }
        let switch = is_websocket(&request).then(|| hyper::upgrade::on(&mut request));
        let request = match self.rewrite(request, switch.is_some()) {
            Ok(request) => request,
            Err(error) => return boxed(unreachable(destination, &error.to_string())),
        };
        let answered = match timeout(limits.response_time, self.send(request)).await {
            Ok(answered) => answered,
            Err(_) => {
                let error = "the server did not answer in time";
                account.fail(error);
                return boxed(plain(StatusCode::GATEWAY_TIMEOUT, destination, error));
            }
        };
        let mut response = match answered {
            Ok(response) => response,
            Err(error) => {
                let error = whole_chain(&error);
                account.fail(error.clone());
                return boxed(unreachable(destination, &error));
            }
        };
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            let is_websocket = response.headers().get(header::UPGRADE).is_some_and(says_websocket);
            let (Some(client), true) = (switch, is_websocket) else {
                let error = "the server switched protocols unasked";
                account.fail(error);
                return boxed(unreachable(destination, error));
            };
            let server = hyper::upgrade::on(&mut response);
            *self.upgrade.lock().unwrap_or_else(PoisonError::into_inner) = Some(Upgraded { client, server });
            let (mut parts, _) = response.into_parts();
            let upgrade = parts.headers.remove(header::UPGRADE);
            clean(&mut parts.headers);
            let upgrade = upgrade.unwrap_or(HeaderValue::from_static("websocket"));
            parts.headers.insert(header::UPGRADE, upgrade);
            parts
                .headers
                .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
            let body = Empty::new().map_err(|never| match never {}).boxed_unsync();
            return Response::from_parts(parts, body);
        }
        let (mut parts, body) = response.into_parts();
        clean(&mut parts.headers);
        parts.version = Version::default();
        parts.extensions.clear();
        Response::from_parts(parts, Carried::response(body, account.clone()).boxed_unsync())
    }

    /// The request as the server gets it: the judged host, no headers of the client's connection but what a body's end and a switch
    /// to WebSocket need.
    fn rewrite(&self, request: Request<Incoming>, switch: bool) -> Result<Request<Carried>, hyper::http::Error> {
        let (mut parts, body) = request.into_parts();
        let takes_trailers = parts.headers.get_all(header::TE).iter().any(|te| te == TRAILERS);
        let trailer = parts.headers.remove(header::TRAILER);
        strip(&mut parts.headers);
        parts.headers.remove(header::CONTENT_LENGTH);
        parts.headers.remove(header::EXPECT);
        if takes_trailers {
            parts.headers.insert(header::TE, TRAILERS);
        }
        if let Some(trailer) = trailer {
            parts.headers.insert(header::TRAILER, trailer);
        }
        if switch {
            parts
                .headers
                .insert(header::UPGRADE, HeaderValue::from_static("websocket"));
            parts
                .headers
                .insert(header::CONNECTION, HeaderValue::from_static("upgrade"));
        }
        let authority = Authority {
            host: self.destination.host.clone(),
            port: self.destination.port,
        };
        let authority = authority.for_scheme_port(443);
        let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
        match &self.upstream {
            Upstream::Http2(_) => {
                // The authority stands in the line, and nowhere else.
                parts.headers.remove(header::HOST);
                parts.uri = Uri::builder()
                    .scheme("https")
                    .authority(authority)
                    .path_and_query(path)
                    .build()?;
                parts.version = Version::HTTP_2;
            }
            Upstream::Http1(_) | Upstream::Failed(_) => {
                parts.headers.insert(header::HOST, HeaderValue::from_str(&authority)?);
                parts.uri = Uri::try_from(path)?;
                parts.version = Version::HTTP_11;
            }
        }
        parts.extensions.clear();
        let body = Carried::request(body, self.account.clone(), self.way.limits.request_body);
        Ok(Request::from_parts(parts, body))
    }

    async fn send(&self, request: Request<Carried>) -> Result<Response<Incoming>, hyper::Error> {
        match &self.upstream {
            Upstream::Http1(sender) => {
                let sent = {
                    let mut sender = sender.lock().await;
                    sender.ready().await?;
                    sender.send_request(request)
                };
                sent.await
            }
            Upstream::Http2(sender) => {
                let mut sender = sender.clone();
                sender.ready().await?;
                sender.send_request(request).await
            }
            Upstream::Failed(_) => unreachable!("a failed connection was answered before"),
        }
    }
}

fn boxed<B>(reply: Response<B>) -> Reply
where
    B: Body<Data = Bytes, Error = Failure> + Send + 'static,
{
    reply.map(BodyExt::boxed_unsync)
}

/// Whether a request asks for WebSocket and nothing else (RFC 6455, 4.1); any other switch is not passed on.
fn is_websocket(request: &Request<Incoming>) -> bool {
    request.version() == Version::HTTP_11
        && request.method() == Method::GET
        && request.headers().get(header::UPGRADE).is_some_and(says_websocket)
        && request.headers().contains_key(header::SEC_WEBSOCKET_KEY)
}

fn says_websocket(value: &HeaderValue) -> bool {
    value.as_bytes().eq_ignore_ascii_case(b"websocket")
}

/// Removes what is the connection's own, and the offer to come back by another protocol or port.
fn clean(headers: &mut HeaderMap) {
    let trailer = headers.remove(header::TRAILER);
    strip(headers);
    if let Some(trailer) = trailer {
        headers.insert(header::TRAILER, trailer);
    }
    headers.remove(HeaderName::from_static("alt-svc"));
}
