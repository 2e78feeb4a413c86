//! The way out of a sandbox, the only one there is.
//!
//! ```text
//!  sandbox (loopback only)                 │ host
//!  client ──► listener 127.0.0.1:3128 ─────┼──► front ──► way: judge · ask · resolve · judge · record · dial ──► server
//!             opened by the guest,         │              │     │         │                  │        │
//!             its descriptor passed out    │              Gate  Asker     Resolver           Recorder Dialler
//! ```
//!
//! A listener belongs to the sandbox's network namespace and is accepted on from here, so what is dialled is dialled from the
//! host's. The supervisor starts one [`Proxy`] a task and hands it the listeners; making sandboxes, keeping the journal and
//! asking people is left to those who implement [`Recorder`] and [`Asker`].
//!
//! Tunnels that this process has no descriptors for are carried on by a [`carrier`]; all else about them stays here.
//!
//! What it promises: nothing is dialled or resolved that the [`gate::Gate`] did not clear; the address that was checked is the
//! one that is dialled; each judgement is in the record before it takes effect, and each connection's end after it; when the
//! [`ProxyHandle`] goes away, so does the way out. What it is not: a tunnel's bytes are looked at beyond the TLS hello only where
//! [`tls`] has to, so an allowed host that passes bytes on can pass on anything.

#![forbid(unsafe_code)]

mod account;
pub mod address;
pub mod ask;
mod body;
pub mod cache;
mod carrier;
pub mod client;
pub mod denial;
pub mod dial;
pub mod env;
mod front;
pub mod gate;
pub mod host;
pub mod limits;
pub mod own;
mod pace;
pub mod path;
pub mod pattern;
mod request;
pub mod resolve;
pub mod room;
pub mod secret;
pub mod threads;
pub mod tls;
pub mod upstream;
mod way;

use std::io;
use std::sync::{Arc, Weak};
use std::time::Duration;

use tokio::io::AsyncWriteExt;
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::runtime::Handle;
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinHandle, JoinSet};

pub use account::{EgressBytes, End, Totals};
pub use ask::{Asker, EgressQuestion, NobodyToAsk, Told};
pub use client::{Attribution, Client, Transport, Unattributed};
pub use gate::{Denial, Destination, Gate, NetworkRule, OwnAddresses, Protocol};
pub use limits::Limits;
pub use way::{RecordError, Recorder};

use ask::Questions;
use dial::{Dialler, DirectDialler};
use front::Visitor;
use pace::Pace;
use resolve::{Resolver, SystemResolver};
use room::{Full, Room, TaskRoom};
use way::Way;

/// How long to wait after an accept that failed for want of descriptors or memory.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

/// The listening sockets of one sandbox, as the guest opened them. A front without one is closed.
#[derive(Debug, Default)]
pub struct Listeners {
    pub http: Option<std::net::TcpListener>,
    pub socks: Option<std::net::TcpListener>,
    /// Takes the datagrams of SOCKS associations.
    pub socks_udp: Option<std::net::UdpSocket>,
    pub dns_udp: Option<std::net::UdpSocket>,
    pub dns_tcp: Option<std::net::TcpListener>,
}

/// What is spoken on a listener.
#[derive(Debug, Clone, Copy)]
enum Front {
    Http,
    Socks,
    Dns,
}

/// What a proxy works with.
pub struct Parts {
    pub gate: Arc<Gate>,
    pub recorder: Arc<dyn Recorder>,
    pub asker: Arc<dyn Asker>,
    pub attribution: Arc<dyn Attribution>,
    pub resolver: Arc<dyn Resolver>,
    pub dialler: Arc<dyn Dialler>,
    pub limits: Limits,
    /// Without one, hosts whose requests have to be seen are reached by plain HTTP only.
    pub inspection: Option<Arc<tls::Inspection>>,
    /// For tasks that may see stored answers only.
    pub store: Option<Arc<cache::Store>>,
    /// For the connections of all tasks together.
    pub room: Room,
    /// Where it is served; see [`threads`].
    pub runtime: Handle,
}

impl Parts {
    /// The parts of a real proxy: the host's resolver and its network, served on the caller's runtime.
    pub fn new(gate: Arc<Gate>, recorder: Arc<dyn Recorder>, asker: Arc<dyn Asker>) -> Self {
        Self {
            gate,
            recorder,
            asker,
            attribution: Arc::new(Unattributed),
            resolver: Arc::new(SystemResolver::default()),
            dialler: Arc::new(DirectDialler),
            limits: Limits::default(),
            inspection: None,
            store: None,
            room: Room::of_process(),
            runtime: Handle::current(),
        }
    }
}

/// The proxy of one task.
#[derive(Debug)]
pub struct Proxy;

/// A proxy that runs. Dropping it closes the way out: its listeners and every connection.
#[must_use]
pub struct ProxyHandle {
    /// Its loss is the sign to stop.
    gate: Arc<watch::Sender<Arc<Gate>>>,
    way: Arc<Way>,
    fronts: JoinSet<()>,
    /// Writes the ends of connections until the last of them is written.
    ends: JoinHandle<()>,
}

impl Proxy {
    /// Starts to serve.
    pub fn start(listeners: Listeners, parts: Parts) -> io::Result<ProxyHandle> {
        let Parts {
            gate,
            recorder,
            asker,
            attribution,
            resolver,
            dialler,
            limits,
            inspection,
            store,
            room,
            runtime,
        } = parts;
        let _entered = runtime.enter();
        // All are made before any is served, so that a proxy starts whole or not at all.
        let mut tcp = Vec::new();
        for (front, listener) in [
            (Front::Http, listeners.http),
            (Front::Socks, listeners.socks),
            (Front::Dns, listeners.dns_tcp),
        ] {
            if let Some(listener) = listener {
                listener.set_nonblocking(true)?;
                tcp.push((front, TcpListener::from_std(listener)?));
            }
        }
        let datagrams = |socket: Option<std::net::UdpSocket>| {
            socket
                .map(|socket| {
                    socket.set_nonblocking(true)?;
                    UdpSocket::from_std(socket)
                })
                .transpose()
        };
        let dns_udp = datagrams(listeners.dns_udp)?;
        let socks_udp = datagrams(listeners.socks_udp)?;
        let relay = socks_udp.as_ref().map(UdpSocket::local_addr).transpose()?;
        let (gate, gate_seen) = watch::channel(gate);
        // As long as there may be connections, so that none waits for another's end to be written.
        let (ends, to_write) = mpsc::channel(limits.connections);
        let way = Arc::new(Way {
            gate: gate_seen,
            recorder: recorder.clone(),
            questions: Questions::new(asker, limits.questions, limits.ask_time),
            attribution,
            refusals: Pace::new(limits.refusals_at_once, limits.refusals_per_second),
            resolver,
            dialler,
            limits,
            inspection,
            store,
            totals: Arc::new(Totals::default()),
            datagrams: relay,
            associations: watch::Sender::new(0),
            ends,
        });
        let room = room.of_task(limits.connections);
        let mut fronts = JoinSet::new();
        for (front, listener) in tcp {
            fronts.spawn(accept(front, listener, way.clone(), room.clone()));
        }
        if let Some(socket) = dns_udp {
            fronts.spawn(until_gone(way.gate.clone(), front::dns::serve_udp(socket, way.clone())));
        }
        if let Some(socket) = socks_udp {
            fronts.spawn(until_gone(
                way.gate.clone(),
                front::datagram::serve(socket, way.clone()),
            ));
        }
        Ok(ProxyHandle {
            gate: Arc::new(gate),
            way,
            fronts,
            ends: tokio::spawn(write_ends(to_write, recorder)),
        })
    }
}

impl ProxyHandle {
    /// Bytes over all connections so far.
    pub fn bytes(&self) -> EgressBytes {
        self.way.totals.bytes()
    }

    /// Puts another policy in force: for new connections at once, and live ones that it forbids are ended.
    pub fn reload(&self, gate: Arc<Gate>) {
        self.reloader().reload(gate);
    }

    /// Puts policies in force from elsewhere; it does not keep the way out open.
    pub fn reloader(&self) -> Reloader {
        Reloader {
            gate: Arc::downgrade(&self.gate),
            way: Arc::downgrade(&self.way),
        }
    }

    /// Closes the way out, and returns when every connection's end is written.
    pub async fn shutdown(self) {
        let Self {
            gate,
            way,
            mut fronts,
            ends,
        } = self;
        drop(gate);
        while fronts.join_next().await.is_some() {}
        drop(way);
        // It ends when the last connection's account is settled.
        let _ = ends.await;
    }
}

/// See [`ProxyHandle::reloader`].
pub struct Reloader {
    gate: Weak<watch::Sender<Arc<Gate>>>,
    way: Weak<Way>,
}

impl Reloader {
    /// As [`ProxyHandle::reload`]; where the way out is closed, nothing.
    pub fn reload(&self, gate: Arc<Gate>) {
        if let (Some(sender), Some(way)) = (self.gate.upgrade(), self.way.upgrade()) {
            way.questions.forget_denials();
            sender.send_replace(gate);
        }
    }
}

/// Accepts until the handle is gone, then ends every connection that it made.
async fn accept(front: Front, listener: TcpListener, way: Arc<Way>, room: TaskRoom) {
    let mut gone = way.gate.clone();
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => match accepted {
                Ok((stream, from)) => {
                    let place = match room.take() {
                        Ok(place) => place,
                        Err(full) => {
                            turn_away(front, full, (stream, Client::tcp(from)), &way).await;
                            continue;
                        }
                    };
                    let way = way.clone();
                    connections.spawn(async move {
                        // An answer in small pieces must not wait for the client's acknowledgements.
                        let _ = stream.set_nodelay(true);
                        let client = Client::tcp(from);
                        match front {
                            Front::Http => front::serve_either(Visitor { stream, client, place }, way).await,
                            Front::Socks => front::socks::serve(Visitor { stream, client, place }, way).await,
                            Front::Dns => {
                                front::dns::serve_tcp(stream, client, way).await;
                                drop(place);
                            }
                        }
                    });
                }
                Err(error) => {
                    tracing::warn!(%error, "a connection to the proxy could not be accepted");
                    tokio::time::sleep(ACCEPT_PAUSE).await;
                }
            },
            Some(_) = connections.join_next() => {}
            () = handle_gone(&mut gone) => break,
        }
    }
    drop(listener);
    connections.shutdown().await;
}

async fn handle_gone(gate: &mut watch::Receiver<Arc<Gate>>) {
    while gate.changed().await.is_ok() {}
}

/// Serves until the handle is gone.
async fn until_gone(mut gone: watch::Receiver<Arc<Gate>>, serve: impl Future<Output = ()>) {
    tokio::select! {
        () = serve => {}
        () = handle_gone(&mut gone) => {}
    }
}

/// Tells a client over the limit why, as far as its socket takes it at once, and puts that into the record. Whoever comes next
/// waits for it: a flood is held up here, and not in the journal.
async fn turn_away(front: Front, full: Full, (mut stream, client): (TcpStream, Client), way: &Way) {
    let denial = Denial::over_limit(full);
    let protocol = match front {
        Front::Http => Protocol::Http,
        Front::Socks => Protocol::Socks5Tcp,
        Front::Dns => Protocol::Dns,
    };
    way.record_malformed(client, protocol, None, &denial).await;
    match front {
        Front::Http => {
            let answer = front::http::over_limit(&denial);
            let _ = tokio::time::timeout(ACCEPT_PAUSE, stream.write_all(answer.as_bytes())).await;
        }
        // Neither has words for it before its greeting.
        Front::Socks | Front::Dns => {}
    }
}

/// How long ends gather before they are written: nobody waits for them, and the next connection's judgement, for which somebody does,
/// shall not find the journal taken.
const ENDS_PAUSE: Duration = Duration::from_millis(10);

async fn write_ends(mut ends: mpsc::Receiver<End>, recorder: Arc<dyn Recorder>) {
    while let Some(first) = ends.recv().await {
        if !ends.is_closed() {
            tokio::time::sleep(ENDS_PAUSE).await;
        }
        let mut gathered = vec![first];
        gathered.extend(std::iter::from_fn(|| ends.try_recv().ok()));
        let count = gathered.len();
        if let Err(error) = recorder.record_all(gathered).await {
            // The next judgement cannot be written either, and is refused for it.
            tracing::error!(
                count,
                error = &error as &dyn std::error::Error,
                "ends of connections are missing in the record"
            );
        }
    }
}

#[cfg(test)]
mod programs;
#[cfg(test)]
mod testing;
#[cfg(test)]
mod tests;
