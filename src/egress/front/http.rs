//! HTTP/1.1 as a proxy speaks it: `CONNECT host:port`, and plain requests in absolute form.
//!
//! Each request is judged on its own. A request is written anew for the server: its line, its `Host` and its framing are made
//! here from what was judged, so that nothing of the client's framing reaches a server to be read in another way. After a
//! refusal the connection is closed: what was sent behind the refused request is not looked at.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::{Body, Incoming};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::tunnel::{self, Near};
use super::{Visitor, linger};
use crate::egress::account::Account;
use crate::egress::body::{Carried, Failure};
use crate::egress::cache::{self, Url};
use crate::egress::client::Client;
use crate::egress::gate::{Denial, DenialKind, Destination, Protocol};
use crate::egress::host::{Authority, HostError};
use crate::egress::request::Asked;
use crate::egress::secret::credential::hyphenated;
use crate::egress::secret::mask::Patterns;
use crate::egress::secret::{found_in_head, unseen};
use crate::egress::way::{Closed, Passage, Way, Who};

const DECISION: HeaderName = HeaderName::from_static("x-belljar-decision");

/// Headers that speak of one connection only (RFC 9110, 7.6.1), and what old clients send to proxies.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
    HeaderName::from_static("keep-alive"),
    HeaderName::from_static("proxy-connection"),
];

pub(in crate::egress) type Answer = Response<UnsyncBoxBody<Bytes, Failure>>;

/// What outlives one request of a connection.
#[derive(Default)]
struct Connection {
    /// The tunnel that a CONNECT opened; it starts when hyper has let go of the stream.
    tunnel: Mutex<Option<(OnUpgrade, Passage)>>,
    /// The same where it is served out of the store.
    stored: Mutex<Option<(OnUpgrade, Destination)>>,
    /// The driving ends of connections to servers; they end with this connection at the latest.
    drivers: Mutex<JoinSet<()>>,
}

/// Serves one client until it is done, refused or shut out.
pub(in crate::egress) async fn serve(visitor: Visitor, way: Arc<Way>) {
    let Visitor {
        stream,
        client,
        mut place,
    } = visitor;
    let (back, returned) = oneshot::channel();
    let connection = Arc::new(Connection::default());
    let io = TokioIo::new(Returning::new(stream, back));
    let service = hyper::service::service_fn(|request| {
        let (way, connection) = (way.clone(), connection.clone());
        async move { Ok::<_, Infallible>(answer(request, client, way, connection).await) }
    });
    let served = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(way.limits.header_time)
        .max_headers(way.limits.headers)
        .max_header_size(way.limits.header_bytes)
        .max_buf_size(way.limits.header_bytes.max(8192))
        .serve_connection(io, service)
        .with_upgrades()
        .await;
    if let Err(error) = served
        && error.is_parse()
    {
        // hyper has answered 400 or hung up; the attempt is worth a record all the same.
        let denial = Denial::malformed(format!("the request cannot be read: {error}"), None, 0);
        way.record_malformed(client, Protocol::Http, None, &denial).await;
    }
    let stored = connection.stored.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((upgrade, destination)) = stored {
        if let Ok(upgraded) = upgrade.await
            && let Ok(parts) = upgraded.downcast::<TokioIo<Returning>>()
            && let Some(client) = parts.io.into_inner().stream.take()
        {
            tunnel::run_stored(client, parts.read_buf, &destination, &way).await;
        }
        return;
    }
    let tunnel = connection.tunnel.lock().unwrap_or_else(PoisonError::into_inner).take();
    if let Some((upgrade, passage)) = tunnel {
        let Ok(upgraded) = upgrade.await else {
            passage.account.fail("the client was gone before the tunnel began");
            return;
        };
        let Ok(parts) = upgraded.downcast::<TokioIo<Returning>>() else {
            passage.account.fail("the client's stream is lost");
            return;
        };
        if let Some(stream) = parts.io.into_inner().stream.take() {
            let (early, place) = (parts.read_buf, &mut place);
            tunnel::run(Near { stream, early, place }, passage, &way).await;
        }
        return;
    }
    let drivers = std::mem::take(&mut *connection.drivers.lock().unwrap_or_else(PoisonError::into_inner));
    drop(connection);
    if let Ok(stream) = returned.await {
        linger(stream).await;
    }
    finish(drivers).await;
}

/// Ends what still drives connections to servers: their client is gone.
async fn finish(mut drivers: JoinSet<()>) {
    drivers.shutdown().await;
}

async fn answer(request: Request<Incoming>, client: Client, way: Arc<Way>, connection: Arc<Connection>) -> Answer {
    let tunnel = request.method() == Method::CONNECT;
    let protocol = if tunnel { Protocol::HttpsConnect } else { Protocol::Http };
    let method = method_of(&request).ok();
    let target = match target(&request) {
        Ok(target) => target,
        Err(denial) => {
            way.record_malformed(client, protocol, method, &denial).await;
            return refusal(&denial);
        }
    };
    let destination = Destination {
        host: target.host.clone(),
        port: target.port,
        protocol,
        method,
    };
    if let Some(store) = way.stored() {
        if tunnel {
            let upgrade = hyper::upgrade::on(request);
            let stored = (upgrade, destination);
            *connection.stored.lock().unwrap_or_else(PoisonError::into_inner) = Some(stored);
            return Response::new(whole(Vec::new()));
        }
        let asked = Asked {
            method: request.method().as_str(),
            path: request.uri().path_and_query().map_or("/", |path| path.as_str()),
            headers: request.headers(),
        };
        let url = Url::new(false, target.clone(), asked.path);
        let reply = cache::serve::answer(&way, store, Who::Client(client), &destination, asked, url).await;
        return reply;
    }
    if !tunnel {
        let asked = Asked {
            method: request.method().as_str(),
            path: request.uri().path_and_query().map_or("/", |path| path.as_str()),
            headers: request.headers(),
        };
        if let Err(denial) = way.admit_request(Who::Client(client), &destination, asked, None).await {
            return refusal(&denial);
        }
        // In the open no placeholder has any business, not even with its own host.
        let guard = way
            .inspection
            .as_ref()
            .and_then(|inspection| inspection.secrets().all());
        let refused = guard.and_then(|guard| match found_in_head(&guard, asked.path, asked.headers) {
            Some(name) => Some(misplaced(&destination, &name)),
            None => unseen(&request).map(|reason| unreadable(&destination, &reason)),
        });
        if let Some(denial) = refused {
            way.refuse_request(Who::Client(client), &destination, asked, &denial)
                .await;
            return refusal(&denial);
        }
    }
    let passage = match way.open(destination, client).await {
        Ok(passage) => passage,
        Err(Closed::Denied(denial)) => return refusal(&denial),
        Err(Closed::Unreachable { destination, error }) => return unreachable(&destination, &error),
    };
    if tunnel {
        let upgrade = hyper::upgrade::on(request);
        *connection.tunnel.lock().unwrap_or_else(PoisonError::into_inner) = Some((upgrade, passage));
        return Response::new(whole(Vec::new()));
    }
    forward(request, &target, passage, way, &connection).await
}

/// Longer than any method there is (`UPDATEREDIRECTREF`); each stands in a record.
const METHOD_MAX: usize = 32;

/// The method of a request, if it can be one.
pub(in crate::egress) fn method_of<B>(request: &Request<B>) -> Result<String, String> {
    let method = request.method().as_str();
    match method.len() {
        ..=METHOD_MAX => Ok(method.to_owned()),
        length => Err(format!("the method has {length} signs (at most {METHOD_MAX})")),
    }
}

/// Where a request is to go, if it says so in one way only.
fn target<B>(request: &Request<B>) -> Result<Authority, Denial> {
    let uri = request.uri();
    let malformed = |reason: &str| Denial::malformed(reason.to_owned(), None, 0);
    method_of(request).map_err(|reason| malformed(&reason))?;
    let unreadable = |error: HostError| Denial::malformed(error.to_string(), error.canonical(), 0);
    let Some(authority) = uri.authority() else {
        return Err(malformed(
            "this is a proxy: the request must name a whole URL, or use CONNECT",
        ));
    };
    let mut hosts = request.headers().get_all(header::HOST).iter();
    let host = hosts.next();
    if hosts.next().is_some() {
        return Err(malformed("the request has several Host headers"));
    }
    let (target, default_port) = if request.method() == Method::CONNECT {
        if uri.scheme().is_some() || uri.path_and_query().is_some() {
            return Err(malformed("CONNECT takes a host and a port"));
        }
        let target = Authority::parse(authority.as_str(), None).map_err(unreadable)?;
        let port = target.port;
        (target, port)
    } else {
        if uri.scheme_str() != Some("http") {
            return Err(malformed("only http URLs are fetched; for https use CONNECT"));
        }
        if host.is_none() && request.version() == Version::HTTP_11 {
            return Err(malformed("the request has no Host header"));
        }
        (Authority::parse(authority.as_str(), Some(80)).map_err(unreadable)?, 80)
    };
    if let Some(host) = host {
        let host = host.to_str().map_err(|_| malformed("the Host header cannot be read"))?;
        let host = Authority::parse(host, Some(default_port)).map_err(unreadable)?;
        if host != target {
            return Err(Denial::malformed(
                format!("the Host header says {host}, the request line {target}"),
                Some(target.host.to_string()),
                target.port,
            ));
        }
    }
    Ok(target)
}

/// Sends a plain request on and gives its answer back, both as streams.
async fn forward(
    request: Request<Incoming>,
    target: &Authority,
    passage: Passage,
    way: Arc<Way>,
    connection: &Connection,
) -> Answer {
    let Passage { stream, route, account } = passage;
    let destination = route.destination().clone();
    let judged = route.clone();
    let failed = |account: &Account, error: String| {
        account.fail(error.clone());
        unreachable(&destination, &error)
    };
    let io = TokioIo::new(stream);
    let handshake = hyper::client::conn::http1::Builder::new()
        .max_headers(way.limits.headers)
        .max_buf_size(way.limits.header_bytes.max(8192))
        .handshake(io)
        .await;
    let (mut sender, driver) = match handshake {
        Ok(parts) => parts,
        Err(error) => return failed(&account, error.to_string()),
    };
    {
        let (way, account) = (way.clone(), account.clone());
        let drive = async move {
            tokio::select! {
                // Its errors reach the sender and the body.
                _ = driver => {}
                denial = way.watch_over(&route, &account) => {
                    account.fail(denial.reason.clone());
                    way.record_end(&route, account.exec(), &denial).await;
                }
            }
        };
        let mut drivers = connection.drivers.lock().unwrap_or_else(PoisonError::into_inner);
        while drivers.try_join_next().is_some() {}
        drivers.spawn(drive);
    }
    let limit = way.limits.request_body;
    if request.body().size_hint().lower() > limit {
        account.fail("the request's body is over the limit");
        return plain(
            StatusCode::PAYLOAD_TOO_LARGE,
            &destination,
            "the request's body is over the limit",
        );
    }
    let found = Arc::new(OnceLock::new());
    let guard = way
        .inspection
        .as_ref()
        .and_then(|inspection| inspection.secrets().all());
    let request = match rewrite(request, target, &account, limit, (guard, &found)) {
        Ok(request) => request,
        Err(error) => return failed(&account, error.to_string()),
    };
    match timeout(way.limits.response_time, sender.send_request(request)).await {
        Ok(Ok(response)) if response.status() == StatusCode::SWITCHING_PROTOCOLS => {
            failed(&account, "the server switched protocols unasked".to_owned())
        }
        Ok(Ok(response)) => {
            let (mut parts, body) = response.into_parts();
            strip(&mut parts.headers);
            parts.version = Version::HTTP_11;
            Response::from_parts(parts, Carried::response(body, account).alone().boxed_unsync())
        }
        Ok(Err(error)) => {
            if let Some(name) = found.get() {
                let denial = misplaced(&destination, name);
                way.record_end(&judged, account.exec(), &denial).await;
                return refusal(&denial);
            }
            let error = whole_chain(&error);
            failed(&account, error)
        }
        Err(_) => {
            account.fail("the server did not answer in time");
            plain(
                StatusCode::GATEWAY_TIMEOUT,
                &destination,
                "the server did not answer in time",
            )
        }
    }
}

/// The request as the server gets it: origin form, the judged host, no headers of the client's connection.
fn rewrite(
    request: Request<Incoming>,
    target: &Authority,
    account: &Arc<Account>,
    limit: u64,
    (guard, found): (Option<Arc<Patterns>>, &Arc<OnceLock<String>>),
) -> Result<Request<Carried>, hyper::http::Error> {
    let (mut parts, body) = request.into_parts();
    strip(&mut parts.headers);
    // The length is said anew, from the body that hyper has read by it.
    parts.headers.remove(header::CONTENT_LENGTH);
    // hyper answers "100 Continue" itself; the server's would come too late.
    parts.headers.remove(header::EXPECT);
    let host = HeaderValue::from_str(&target.for_scheme_port(80))?;
    parts.headers.insert(header::HOST, host);
    let path = parts.uri.path_and_query().map_or("/", |path| path.as_str());
    parts.uri = Uri::try_from(path)?;
    parts.version = Version::HTTP_11;
    parts.extensions.clear();
    let body = Carried::request(body, account.clone(), limit).alone();
    let body = body.guarded(guard, &parts.headers, found);
    Ok(Request::from_parts(parts, body))
}

/// Removes the headers of one connection, and those that `Connection` names as such.
pub(in crate::egress) fn strip(headers: &mut HeaderMap) {
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    // A length beside a coding is void (RFC 9112, 6.3), and so is one that is named as the connection's.
    if headers.contains_key(header::TRANSFER_ENCODING) {
        headers.remove(header::CONTENT_LENGTH);
    }
    // What some programs behind a server would take for one of these.
    let disguised: Vec<HeaderName> = headers
        .keys()
        .filter(|name| name.as_str().contains('_') && is_of_framing(&hyphenated(name.as_str())))
        .cloned()
        .collect();
    for name in HOP_BY_HOP.iter().chain(&named).chain(&disguised) {
        headers.remove(name);
    }
}

fn is_of_framing(name: &str) -> bool {
    name == header::CONTENT_LENGTH || name == header::HOST || HOP_BY_HOP.iter().any(|own| own == name)
}

/// The refusal of a request that carries the placeholder of a secret where it has no business.
pub(in crate::egress) fn misplaced(destination: &Destination, name: &str) -> Denial {
    let reason = format!("the placeholder of {name} is for the secret's own hosts only, and over TLS");
    Denial::new(destination, DenialKind::Denied, &format!("secrets.{name}"), reason)
}

/// The refusal of a request whose body nobody here can look through, from a task that has placeholders to look for.
pub(in crate::egress) fn unreadable(destination: &Destination, reason: &str) -> Denial {
    let reason = format!("{reason}; send it as it is, or packed with gzip or deflate");
    Denial::new(destination, DenialKind::Denied, "secrets", reason)
}

/// The one shape of a refusal: 403 and the denial as JSON; 400 where the request cannot be read, 503 where nothing was decided.
pub(in crate::egress) fn refusal(denial: &Denial) -> Answer {
    let status = match denial.kind {
        DenialKind::Denied | DenialKind::Local | DenialKind::Unresolved | DenialKind::Unknown => StatusCode::FORBIDDEN,
        DenialKind::Malformed => StatusCode::BAD_REQUEST,
        DenialKind::Unable => StatusCode::SERVICE_UNAVAILABLE,
    };
    let mut answer = json(status, denial);
    answer.headers_mut().insert(DECISION, HeaderValue::from_static("deny"));
    answer
}

/// An answer for a connection that was allowed and failed.
pub(in crate::egress) fn unreachable(destination: &Destination, error: &str) -> Answer {
    plain(StatusCode::BAD_GATEWAY, destination, error)
}

pub(in crate::egress) fn plain(status: StatusCode, destination: &Destination, error: &str) -> Answer {
    let body = serde_json::json!({
        "decision": "allow",
        "error": error,
        "host": destination.host.to_string(),
        "port": destination.port,
    });
    let mut answer = json(status, &body);
    answer.headers_mut().insert(DECISION, HeaderValue::from_static("allow"));
    answer
}

fn whole(text: Vec<u8>) -> UnsyncBoxBody<Bytes, Failure> {
    Full::from(text).map_err(|never| match never {}).boxed_unsync()
}

fn json(status: StatusCode, body: &impl serde::Serialize) -> Answer {
    let mut text = serde_json::to_vec(body).unwrap_or_default();
    text.push(b'\n');
    let mut answer = Response::new(whole(text));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// The answer to a client over the limit of connections, written without reading what it wants.
pub(in crate::egress) fn over_limit(denial: &Denial) -> String {
    let body = serde_json::to_string(denial).unwrap_or_default();
    format!(
        "HTTP/1.1 503 Service Unavailable\r\ncontent-type: application/json\r\nx-belljar-decision: deny\r\ncontent-length: {}\r\nconnection: close\r\n\r\n{body}",
        body.len()
    )
}

pub(in crate::egress) fn whole_chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

/// A stream that comes back to its owner when hyper drops it, so that it can be closed with care.
struct Returning {
    stream: Option<TcpStream>,
    back: Option<oneshot::Sender<TcpStream>>,
}

impl Returning {
    fn new(stream: TcpStream, back: oneshot::Sender<TcpStream>) -> Self {
        Self {
            stream: Some(stream),
            back: Some(back),
        }
    }

    fn stream(&mut self) -> Pin<&mut TcpStream> {
        Pin::new(
            self.stream
                .as_mut()
                .expect("the stream is taken out only by value or on drop"),
        )
    }
}

impl Drop for Returning {
    fn drop(&mut self) {
        if let (Some(stream), Some(back)) = (self.stream.take(), self.back.take()) {
            // Nobody waits for it after a tunnel or a shutdown: then it closes here.
            let _ = back.send(stream);
        }
    }
}

impl AsyncRead for Returning {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<std::io::Result<()>> {
        self.stream().poll_read(cx, buf)
    }
}

impl AsyncWrite for Returning {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, bytes: &[u8]) -> Poll<std::io::Result<usize>> {
        self.stream().poll_write(cx, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.stream().poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<std::io::Result<()>> {
        self.stream().poll_shutdown(cx)
    }

    fn poll_write_vectored(
        mut self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        bytes: &[std::io::IoSlice<'_>],
    ) -> Poll<std::io::Result<usize>> {
        self.stream().poll_write_vectored(cx, bytes)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }
}
