//! One connection that is looked into, from the client's hello to its end.

use std::io::Cursor;
use std::sync::{Arc, Mutex, PoisonError};

use bytes::BytesMut;
use futures_util::future::BoxFuture;
use hyper::Request;
use hyper::body::Incoming;
use hyper::rt::Executor;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use rustls::server::Acceptor;
use tokio::io::AsyncReadExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::task::JoinSet;
use tokio::time::timeout;
use tokio_rustls::LazyConfigAcceptor;

use super::exchange::{Reply, Sent, Session, agree, misdirected};
use super::websocket::{self, Ended};
use super::{Alpn, Inspection};
use crate::egress::account::Account;
use crate::egress::cache::{self, Store, Url};
use crate::egress::client;
use crate::egress::gate::{Destination, Route};
use crate::egress::host::Authority;
use crate::egress::request::Asked;
use crate::egress::way::{Way, Who};

/// Requests at once over one HTTP/2 connection.
const STREAMS: u32 = 128;

/// The client's half, and what it has sent already.
pub(in crate::egress) struct Client {
    pub beginning: BytesMut,
    pub read: OwnedReadHalf,
    pub write: OwnedWriteHalf,
}

/// The connection to the server, as requests are sent on it.
pub(super) enum Upstream {
    Http1(tokio::sync::Mutex<hyper::client::conn::http1::SendRequest<Sent>>),
    Http2(hyper::client::conn::http2::SendRequest<Sent>),
    /// Every request is answered with the reason.
    Failed(String),
}

/// Serves requests until a side is done or fails; the error says why.
pub(in crate::egress) async fn serve(
    client: Client,
    server: TcpStream,
    route: &Route,
    account: &Arc<Account>,
    way: &Arc<Way>,
    inspection: &Arc<Inspection>,
) -> Result<(), String> {
    let limits = way.limits;
    let host = &route.destination().host;
    let peer = client.read.peer_addr().map_err(|error| error.to_string())?;
    let io = tokio::io::join(Cursor::new(client.beginning).chain(client.read), client.write);
    let hello = timeout(limits.header_time, LazyConfigAcceptor::new(Acceptor::default(), io)).await;
    let hello = match hello {
        Ok(Ok(hello)) => hello,
        Ok(Err(error)) => return Err(format!("the client speaks no TLS that is understood: {error}")),
        Err(_) => return Err("the TLS hello took too long".to_owned()),
    };
    let offers = offers(hello.client_hello().alpn().map(Iterator::collect));
    let tasks = Tasks::default();
    let (alpn, upstream, driver) = match inspection.connect(server, host, &offers, limits.dial_time).await {
        Ok((stream, alpn)) => match handshake(stream, alpn, way, &tasks).await {
            Ok((upstream, driver)) => (alpn, upstream, driver),
            Err(error) => (alpn, Upstream::Failed(error), pending()),
        },
        // The client is told in its own protocol, which says more than a connection that ends.
        Err(error) => (offers[0], Upstream::Failed(error), pending()),
    };
    if let Upstream::Failed(error) = &upstream {
        account.fail(error.clone());
    }
    let config = inspection
        .authority
        .config(host, alpn)
        .map_err(|error| error.to_string())?;
    let stream = match timeout(limits.header_time, hello.into_stream(config)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return Err(format!("no TLS with the client: {error}")),
        Err(_) => return Err("the client's TLS handshake took too long".to_owned()),
    };
    let session = Arc::new(Session::new(
        route,
        upstream,
        account.clone(),
        (way.clone(), inspection.clone(), client::Client::tcp(peer)),
    ));
    let service = {
        let session = session.clone();
        hyper::service::service_fn(move |request: Request<Incoming>| {
            let session = session.clone();
            async move { Ok::<Reply, std::convert::Infallible>(session.answer(request).await) }
        })
    };
    let builder = builder(way, alpn, tasks.clone());
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    tokio::pin!(connection);
    let mut driver = Some(driver);
    let served = loop {
        tokio::select! {
            served = &mut connection => break served,
            () = async { driver.as_mut().expect("it is polled while it is there").await }, if driver.is_some() => {
                // What the server has closed, the client shall not write to any more.
                driver = None;
                connection.as_mut().graceful_shutdown();
            }
        }
    };
    if let Some(upgraded) = session.take_upgrade() {
        let carried = websocket::carry(upgraded, account);
        // The server's half is handed over by its driver.
        let ended = match driver {
            Some(driver) => tokio::join!(carried, driver).0,
            None => carried.await,
        };
        return match ended {
            Ok(()) => Ok(()),
            Err(Ended::Failed(error)) => Err(error),
            Err(Ended::Placeholder(name)) => Err(session.refuse_midway(&name).await),
        };
    }
    served.map_err(|error| error.to_string())
}

/// Of what the client offers, what is understood here, in its order. A client that offers nothing speaks HTTP/1.1; one that offers
/// other protocols only fails the handshake by that.
fn offers(alpn: Option<Vec<&[u8]>>) -> Vec<Alpn> {
    let known = |id: &&[u8]| [Alpn::Http1, Alpn::Http2].into_iter().find(|alpn| alpn.id() == *id);
    let offers: Vec<Alpn> = alpn.iter().flatten().filter_map(known).collect();
    if offers.is_empty() { vec![Alpn::Http1] } else { offers }
}

type Driver = BoxFuture<'static, ()>;

fn pending() -> Driver {
    Box::pin(std::future::pending())
}

async fn handshake(
    stream: tokio_rustls::client::TlsStream<TcpStream>,
    alpn: Alpn,
    way: &Way,
    tasks: &Tasks,
) -> Result<(Upstream, Driver), String> {
    let limits = way.limits;
    let io = TokioIo::new(stream);
    // What goes wrong on a connection reaches whoever waits for its answers.
    match alpn {
        Alpn::Http1 => {
            let handshake = hyper::client::conn::http1::Builder::new()
                .max_headers(limits.headers)
                .max_buf_size(limits.header_bytes.max(8192))
                .handshake(io)
                .await;
            let (sender, driver) = handshake.map_err(|error| error.to_string())?;
            let driver = driver.with_upgrades();
            let driver = Box::pin(async move { drop(driver.await) });
            Ok((Upstream::Http1(tokio::sync::Mutex::new(sender)), driver))
        }
        Alpn::Http2 => {
            let handshake = hyper::client::conn::http2::Builder::new(tasks.clone())
                .timer(TokioTimer::new())
                .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
                .handshake(io)
                .await;
            let (sender, driver) = handshake.map_err(|error| error.to_string())?;
            let driver = Box::pin(async move { drop(driver.await) });
            Ok((Upstream::Http2(sender), driver))
        }
    }
}

/// What hyper starts for the streams of a connection; it ends with the connection.
#[derive(Clone, Default)]
pub(super) struct Tasks(Arc<Mutex<JoinSet<()>>>);

impl<F> Executor<F> for Tasks
where
    F: Future + Send + 'static,
    F::Output: Send,
{
    fn execute(&self, future: F) {
        let mut tasks = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks.spawn(async move { drop(future.await) });
    }
}

/// Serves requests out of the store, until the client is done or fails; the error says why.
pub(in crate::egress) async fn serve_stored(
    client: Client,
    destination: &Destination,
    (who, store): (Who, &Arc<Store>),
    way: &Arc<Way>,
    inspection: &Arc<Inspection>,
) -> Result<(), String> {
    let limits = way.limits;
    let io = tokio::io::join(Cursor::new(client.beginning).chain(client.read), client.write);
    let handshake = async {
        let hello = LazyConfigAcceptor::new(Acceptor::default(), io)
            .await
            .map_err(|error| error.to_string())?;
        let alpn = offers(hello.client_hello().alpn().map(Iterator::collect))[0];
        let config = inspection
            .authority
            .config(&destination.host, alpn)
            .map_err(|error| error.to_string())?;
        hello
            .into_stream(config)
            .await
            .map(|stream| (stream, alpn))
            .map_err(|error| error.to_string())
    };
    let (stream, alpn) = match timeout(limits.header_time, handshake).await {
        Ok(done) => done?,
        Err(_) => return Err("the TLS handshake took too long".to_owned()),
    };
    let service = hyper::service::service_fn(|request: Request<Incoming>| {
        let (way, store, destination) = (way.clone(), store.clone(), destination.clone());
        async move {
            let asked = Asked {
                method: request.method().as_str(),
                path: request.uri().path_and_query().map_or("/", |path| path.as_str()),
                headers: request.headers(),
            };
            let reply = match agree(&destination, &request) {
                Ok(()) => {
                    let authority = Authority {
                        host: destination.host.clone(),
                        port: destination.port,
                    };
                    let url = Url::new(true, authority, asked.path);
                    cache::serve::answer(&way, &store, who, &destination, asked, url).await
                }
                Err(denial) => {
                    way.refuse_request(who, &destination, asked, &denial).await;
                    misdirected(&denial)
                }
            };
            Ok::<Reply, std::convert::Infallible>(reply)
        }
    });
    let builder = builder(way, alpn, Tasks::default());
    let served = builder.serve_connection(TokioIo::new(stream), service).await;
    served.map_err(|error| error.to_string())
}

/// A server as strict as the limits say.
fn builder(way: &Way, alpn: Alpn, tasks: Tasks) -> auto::Builder<Tasks> {
    let limits = way.limits;
    let mut builder = auto::Builder::new(tasks);
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(limits.header_time)
        .max_headers(limits.headers)
        .max_buf_size(limits.header_bytes.max(8192));
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(u32::try_from(limits.header_bytes).unwrap_or(u32::MAX))
        .max_concurrent_streams(STREAMS);
    match alpn {
        Alpn::Http1 => builder.http1_only(),
        Alpn::Http2 => builder.http2_only(),
    }
}
