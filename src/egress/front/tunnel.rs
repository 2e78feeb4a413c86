//! A tunnel between a client and what it was allowed to reach: bytes both ways, counted, and nothing else, but for the first
//! ones: a TLS hello must name the host that was judged, and on port 443 or by a rule for https there must be one.
//!
//! A buffer is held only while bytes flow, so ten thousand idle tunnels hold none.

use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use bytes::{Bytes, BytesMut};
use futures_util::TryFutureExt;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::time::timeout;

use super::hello::{self, Seen};
use crate::egress::account::Account;
use crate::egress::carrier::{self, Carried, Seat};
use crate::egress::client::Client;
use crate::egress::gate::{Denial, DenialKind, Destination, Route};
use crate::egress::host::Host;
use crate::egress::room::Place;
use crate::egress::tls;
use crate::egress::way::{Passage, Way, Who};

/// Large enough that a system call moves much: of 64 KiB to 1 MiB, each doubling took some 5 % less processor time a byte.
const BUFFER: usize = 512 * 1024;
/// Buffers that are kept for the next burst: 8 MiB over all tunnels of the process.
const KEPT: usize = 16;

/// What a client may speak.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    Any,
    TlsOnly,
}

enum TunnelError {
    Io(io::Error),
    Denied(Denial),
}

impl From<io::Error> for TunnelError {
    fn from(error: io::Error) -> Self {
        TunnelError::Io(error)
    }
}

/// A client's end of a tunnel.
pub(in crate::egress) struct Near<'a> {
    pub stream: TcpStream,
    /// What it sent before it was answered.
    pub early: Bytes,
    pub place: &'a mut Place,
}

/// Carries bytes until both sides are done, one fails, or the policy ends it: here or, where room runs low, elsewhere.
pub(in crate::egress) async fn run(client: Near<'_>, passage: Passage, way: &Arc<Way>) {
    let Passage { stream, route, account } = passage;
    let Near {
        stream: client,
        early,
        place,
    } = client;
    let carried = async {
        if let Some(inspection) = way.inspects(&route).map_err(TunnelError::Denied)? {
            let (mut read, client_write) = client.into_split();
            let beginning = read_beginning(&mut read, early, route.destination(), Speech::TlsOnly, way).await?;
            let client = tls::Client {
                beginning,
                read,
                write: client_write,
            };
            let served = tls::serve(client, stream, &route, &account, way, inspection).await;
            return served.map_err(|error| TunnelError::Io(io::Error::other(error)));
        }
        let seat = (early.len() <= carrier::EARLY_MAX).then(|| place.leave()).flatten();
        if let Some(seat) = seat {
            return carry_elsewhere(seat, (client, stream), early, &route, &account, way).await;
        }
        let (client_read, client_write) = client.into_split();
        let (server_read, server_write) = stream.into_split();
        let one_is_over = AtomicBool::new(false);
        let up = Pump {
            from: client_read,
            to: server_write,
            one_is_over: &one_is_over,
        };
        let down = Pump {
            from: server_read,
            to: client_write,
            one_is_over: &one_is_over,
        };
        let (up, down) = tokio::try_join!(
            carry_up(up, early, &route, &account, way),
            down.run(|bytes| account.add_received(bytes)).map_err(TunnelError::Io),
        )?;
        // Whoever has just come in goes first: nobody waits for two sockets to be closed.
        tokio::task::yield_now().await;
        up.close();
        down.close();
        Ok(())
    };
    let ended = tokio::select! {
        carried = carried => carried,
        denial = way.watch_over(&route, &account) => Err(TunnelError::Denied(denial)),
    };
    match ended {
        Ok(()) => account.complete(),
        Err(TunnelError::Io(error)) => account.fail(error.to_string()),
        Err(TunnelError::Denied(denial)) => {
            account.fail(denial.reason.clone());
            way.record_end(&route, account.exec(), &denial).await;
        }
    }
}

/// Serves a tunnel out of the store: what is asked for within its TLS is answered from there, and nothing is dialled.
pub(in crate::egress) async fn run_stored(client: TcpStream, early: Bytes, destination: &Destination, way: &Arc<Way>) {
    let (Some(store), Some(inspection)) = (way.stored(), way.inspection.as_ref()) else {
        return;
    };
    let who = match client.peer_addr() {
        Ok(address) => Who::Client(Client::tcp(address)),
        Err(_) => Who::Exec(None),
    };
    let (mut read, write) = client.into_split();
    let served = async {
        let beginning = read_beginning(&mut read, early, destination, Speech::TlsOnly, way).await?;
        let client = tls::Client { beginning, read, write };
        let served = tls::serve_stored(client, destination, (who, store), way, inspection).await;
        served.map_err(|error| TunnelError::Io(io::Error::other(error)))
    };
    // Each request is in the record; a client that hangs up is no event.
    if let Err(TunnelError::Denied(denial)) = served.await {
        let judgement = ("deny", denial.rule.as_str(), denial.reason.as_str());
        if way.record_event(None, destination, judgement).await.is_err() {
            tracing::error!(reason = denial.reason, "a refusal is missing in the record");
        }
    }
}

/// Hands both ends over. What the client says first is heard here all the same, and passes only then.
async fn carry_elsewhere(
    seat: Seat,
    ends: (TcpStream, TcpStream),
    early: Bytes,
    route: &Route,
    account: &Arc<Account>,
    way: &Way,
) -> Result<(), TunnelError> {
    let mut carried = seat.carry(ends, &early, account.clone())?;
    read_beginning(&mut carried, early, route.destination(), speech(route), way).await?;
    carried.pass().await?;
    Ok(())
}

fn speech(route: &Route) -> Speech {
    if route.is_for_tls() {
        Speech::TlsOnly
    } else {
        Speech::Any
    }
}

async fn carry_up<'a>(
    mut pump: Pump<'a>,
    early: Bytes,
    route: &Route,
    account: &Account,
    way: &Way,
) -> Result<Pump<'a>, TunnelError> {
    let beginning = read_beginning(&mut pump.from, early, route.destination(), speech(route), way).await?;
    pump.to.write_all(&beginning).await?;
    account.add_sent(beginning.len());
    Ok(pump.run(|bytes| account.add_sent(bytes)).await?)
}

/// Where a client's words are heard.
trait Hear {
    /// Adds what it says next, which may take for ever; 0 bytes are its end. No room is taken before there is something.
    async fn hear(&mut self, into: &mut BytesMut) -> io::Result<usize>;
}

impl Hear for OwnedReadHalf {
    async fn hear(&mut self, into: &mut BytesMut) -> io::Result<usize> {
        loop {
            self.readable().await?;
            into.reserve(4096);
            match self.try_read_buf(into) {
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {}
                heard => return heard,
            }
        }
    }
}

impl Hear for Carried {
    async fn hear(&mut self, into: &mut BytesMut) -> io::Result<usize> {
        Carried::hear(self, into).await
    }
}

/// Reads until it is clear what the client speaks; the bytes may go on if that agrees with the route.
async fn read_beginning(
    client: &mut impl Hear,
    early: Bytes,
    destination: &Destination,
    speech: Speech,
    way: &Way,
) -> Result<BytesMut, TunnelError> {
    let mut beginning = BytesMut::from(early);
    // A server may speak first, so there is no deadline but idleness for the first byte. An end before it is no protocol at all.
    if beginning.is_empty() && client.hear(&mut beginning).await? == 0 {
        return Ok(beginning);
    }
    let whole = async {
        loop {
            match hello::read(&beginning) {
                Seen::More => {
                    if client.hear(&mut beginning).await? == 0 {
                        // It was meant to be TLS.
                        return Ok(Seen::NotTls);
                    }
                }
                seen => return Ok::<Seen, TunnelError>(seen),
            }
        }
    };
    let seen = match timeout(way.limits.header_time, whole).await {
        Ok(seen) => seen?,
        Err(_) => return Err(denied(destination, "limit", "the TLS hello took too long".to_owned())),
    };
    match seen {
        Seen::NotTls if speech == Speech::TlsOnly => {
            let port = destination.port;
            Err(denied(
                destination,
                "tls",
                format!("only TLS is let out to port {port}"),
            ))
        }
        Seen::Malformed(wrong) => Err(denied(destination, "tls", wrong.to_owned())),
        Seen::Hello {
            server_name: Some(name),
        } if Host::parse(&name).as_ref() != Ok(&destination.host) => {
            // The name is the client's; only what can be in a host is repeated.
            let shown = Host::parse(&name).map_or_else(|_| "unreadable".to_owned(), |host| host.to_string());
            let host = &destination.host;
            Err(denied(
                destination,
                "sni",
                format!("the TLS server name is {shown}, and the tunnel is for {host}"),
            ))
        }
        Seen::More | Seen::NotTls | Seen::Hello { .. } => Ok(beginning),
    }
}

fn denied(destination: &Destination, rule: &str, reason: String) -> TunnelError {
    TunnelError::Denied(Denial::new(destination, DenialKind::Denied, rule, reason))
}

/// One direction of a tunnel.
struct Pump<'a> {
    from: OwnedReadHalf,
    to: OwnedWriteHalf,
    /// Set by the direction that ends first.
    one_is_over: &'a AtomicBool,
}

impl Pump<'_> {
    /// Moves bytes until the end, then closes the other side's direction; that of the second is closed by [`Pump::close`].
    async fn run(mut self, count: impl Fn(usize)) -> io::Result<Self> {
        loop {
            self.from.readable().await?;
            let mut buffer = take_buffer();
            loop {
                match self.from.try_read(&mut buffer) {
                    Ok(0) => {
                        give_buffer(buffer);
                        if !self.one_is_over.swap(true, Ordering::Relaxed) {
                            self.to.shutdown().await?;
                        }
                        return Ok(self);
                    }
                    Ok(length) => {
                        self.to.write_all(&buffer[..length]).await?;
                        count(length);
                    }
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                    Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                    Err(error) => return Err(error),
                }
            }
            give_buffer(buffer);
        }
    }

    /// Lets go of its halves; a socket closes with the second of its own.
    fn close(self) {
        self.to.forget();
    }
}

static BUFFERS: Mutex<Vec<Box<[u8]>>> = Mutex::new(Vec::new());

fn take_buffer() -> Box<[u8]> {
    let kept = BUFFERS.lock().unwrap_or_else(PoisonError::into_inner).pop();
    kept.unwrap_or_else(|| vec![0; BUFFER].into_boxed_slice())
}

fn give_buffer(buffer: Box<[u8]>) {
    let mut kept = BUFFERS.lock().unwrap_or_else(PoisonError::into_inner);
    if kept.len() < KEPT {
        kept.push(buffer);
    }
}
