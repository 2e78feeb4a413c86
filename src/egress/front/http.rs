//! HTTP/1.1 as a proxy speaks it: `CONNECT host:port`, and plain requests in absolute form.
//!
//! Each request is judged on its own. A request is written anew for the server: its line, its `Host` and its framing are made
//! here from what was judged, so that nothing of the client's framing reaches a server to be read in another way. After a
//! refusal the connection is closed: what was sent behind the refused request is not looked at.

use std::convert::Infallible;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};

use bytes::Bytes;
use http_body_util::{Either, Full};
use hyper::body::{Body, Frame, Incoming, SizeHint};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};
use hyper::upgrade::OnUpgrade;
use hyper::{Method, Request, Response, StatusCode, Uri, Version};
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::TcpStream;
use tokio::sync::oneshot;
use tokio::task::JoinSet;
use tokio::time::timeout;

use super::{linger, tunnel};
use crate::egress::account::Account;
use crate::egress::client::Client;
use crate::egress::gate::{Denial, DenialKind, Destination, Protocol};
use crate::egress::host::{Authority, HostError};
use crate::egress::request::Asked;
use crate::egress::room;
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

pub(in crate::egress) type Answer = Response<Either<Full<Bytes>, Metered>>;
type Failure = Box<dyn std::error::Error + Send + Sync>;

/// What outlives one request of a connection.
#[derive(Default)]
struct Connection {
    /// The tunnel that a CONNECT opened; it starts when hyper has let go of the stream.
    tunnel: Mutex<Option<(OnUpgrade, Passage)>>,
    /// The driving ends of connections to servers; they end with this connection at the latest.
    drivers: Mutex<JoinSet<()>>,
}

/// Serves one client until it is done, refused or shut out.
pub(in crate::egress) async fn serve(stream: TcpStream, client: Client, way: Arc<Way>) {
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
        if let Some(client) = parts.io.into_inner().stream.take() {
            tunnel::run(client, parts.read_buf, passage, &way).await;
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
    let method = request.method().to_string();
    let target = match target(&request) {
        Ok(target) => target,
        Err(denial) => {
            way.record_malformed(client, protocol, Some(method), &denial).await;
            return refusal(&denial);
        }
    };
    let destination = Destination {
        host: target.host.clone(),
        port: target.port,
        protocol,
        method: Some(method),
    };
    if !tunnel {
        let asked = Asked {
            method: request.method().as_str(),
            path: request.uri().path_and_query().map_or("/", |path| path.as_str()),
            headers: request.headers(),
        };
        if let Err(denial) = way.admit_request(Who::Client(client), &destination, asked, None).await {
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
        return Response::new(Either::Left(Full::default()));
    }
    forward(request, &target, passage, way, &connection).await
}

/// Where a request is to go, if it says so in one way only.
fn target<B>(request: &Request<B>) -> Result<Authority, Denial> {
    let uri = request.uri();
    let malformed = |reason: &str| Denial::malformed(reason.to_owned(), None, 0);
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
    let request = match rewrite(request, target, &account, limit) {
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
            Response::from_parts(parts, Either::Right(Metered::response(body, account)))
        }
        Ok(Err(error)) => {
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
) -> Result<Request<Metered>, hyper::http::Error> {
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
    Ok(Request::from_parts(
        parts,
        Metered::request(body, account.clone(), limit),
    ))
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
    for name in HOP_BY_HOP.iter().chain(&named) {
        headers.remove(name);
    }
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

fn json(status: StatusCode, body: &impl serde::Serialize) -> Answer {
    let mut text = serde_json::to_vec(body).unwrap_or_default();
    text.push(b'\n');
    let mut answer = Response::new(Either::Left(Full::from(text)));
    *answer.status_mut() = status;
    let headers = answer.headers_mut();
    headers.insert(header::CONTENT_TYPE, HeaderValue::from_static("application/json"));
    headers.insert(header::CONNECTION, HeaderValue::from_static("close"));
    answer
}

/// The answer to a client over the limit of connections, written without reading what it wants.
pub(in crate::egress) fn over_limit(full: room::Full) -> String {
    let denial = Denial::over_limit(full);
    let body = serde_json::to_string(&denial).unwrap_or_default();
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

/// A body that is counted on its way, and cut where a limit is reached.
pub(in crate::egress) struct Metered {
    body: Incoming,
    account: Arc<Account>,
    direction: Direction,
}

enum Direction {
    Request { left: u64 },
    Response,
}

impl Metered {
    fn request(body: Incoming, account: Arc<Account>, limit: u64) -> Self {
        let direction = Direction::Request { left: limit };
        Self {
            body,
            account,
            direction,
        }
    }

    fn response(body: Incoming, account: Arc<Account>) -> Self {
        let direction = Direction::Response;
        let metered = Self {
            body,
            account,
            direction,
        };
        if metered.body.is_end_stream() {
            metered.note_end();
        }
        metered
    }

    /// The end of the answer is the end of the exchange.
    fn note_end(&self) {
        match self.direction {
            Direction::Request { .. } => {}
            Direction::Response => self.account.complete(),
        }
    }
}

impl Body for Metered {
    type Data = Bytes;
    type Error = Failure;

    fn poll_frame(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<Result<Frame<Bytes>, Failure>>> {
        let this = &mut *self;
        loop {
            let Some(frame) = std::task::ready!(Pin::new(&mut this.body).poll_frame(cx)) else {
                this.note_end();
                return Poll::Ready(None);
            };
            let data = match frame.map(Frame::into_data) {
                Ok(Ok(data)) => data,
                // Trailers are the connection's own as long as nobody asked for them with TE, which was removed.
                Ok(Err(_)) => continue,
                Err(error) => {
                    this.account.fail(whole_chain(&error));
                    return Poll::Ready(Some(Err(error.into())));
                }
            };
            match &mut this.direction {
                Direction::Request { left } => {
                    let Some(rest) = left.checked_sub(data.len() as u64) else {
                        this.account.fail("the request's body is over the limit");
                        return Poll::Ready(Some(Err("the request's body is over the limit".into())));
                    };
                    *left = rest;
                    this.account.add_sent(data.len());
                }
                Direction::Response => this.account.add_received(data.len()),
            }
            if this.body.is_end_stream() {
                this.note_end();
            }
            return Poll::Ready(Some(Ok(Frame::data(data))));
        }
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
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
