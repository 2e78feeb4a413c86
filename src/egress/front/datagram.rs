//! SOCKS5's UDP (RFC 1928, 7): datagrams to places that a rule allows for it.
//!
//! ```text
//!   sandbox                         │ host
//!   client ── association (TCP) ────┼─► socks: is there any rule for datagrams?
//!   client ── header + datagram ────┼─► relay ─► flow: judged and recorded once, a socket of its own ─► server
//! ```
//!
//! All associations of a task share the relay's one socket in the sandbox; a flow is one client's way to one place. It ends with
//! the task's last association, when it is idle, or when the policy ends it. Datagrams in pieces (FRAG) are not put together.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::timeout;

use crate::egress::client::Client;
use crate::egress::gate::{Denial, DenialKind, Destination, Protocol};
use crate::egress::host::Host;
use crate::egress::way::{Flow, Way};

/// The largest datagram there is.
const DATAGRAM_MAX: usize = 65_535;
/// Datagrams that wait while their flow is judged; what comes beyond is lost, as datagrams may be.
const WAITING: usize = 16;

/// One client's way to one place.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
struct Key {
    client: SocketAddr,
    host: Host,
    port: u16,
}

impl Key {
    fn destination(&self) -> Destination {
        Destination {
            host: self.host.clone(),
            port: self.port,
            protocol: Protocol::Socks5Udp,
            method: None,
        }
    }
}

/// What stands before each datagram (RFC 1928, 7).
#[derive(Debug, PartialEq, Eq)]
struct Header {
    host: Host,
    port: u16,
    /// Where the data begins.
    length: usize,
}

/// Relays datagrams until it is dropped; all flows end with it.
pub(in crate::egress) async fn serve(socket: UdpSocket, way: Arc<Way>) {
    let socket = Arc::new(socket);
    let mut flows: HashMap<Key, mpsc::Sender<Bytes>> = HashMap::new();
    let mut running: JoinSet<Key> = JoinSet::new();
    let mut buffer = vec![0; DATAGRAM_MAX];
    loop {
        let (length, from) = tokio::select! {
            received = socket.recv_from(&mut buffer) => match received {
                Ok(received) => received,
                Err(error) => {
                    // Such as an ICMP error for an answer that nobody waited for.
                    tracing::debug!(%error, "a datagram could not be read");
                    continue;
                }
            },
            Some(ended) = running.join_next() => {
                if let Ok(key) = ended {
                    flows.remove(&key);
                }
                continue;
            }
        };
        let datagram = &buffer[..length];
        let client = Client::udp(from);
        // Without an association nobody asked to be served.
        if *way.associations.borrow() == 0 {
            continue;
        }
        let header = match read_header(datagram) {
            Ok(header) => header,
            Err(reason) => {
                let denial = Denial::malformed(reason, None, 0);
                way.record_malformed(client, Protocol::Socks5Udp, None, &denial).await;
                continue;
            }
        };
        let data = Bytes::copy_from_slice(&datagram[header.length..]);
        let key = Key {
            client: from,
            host: header.host,
            port: header.port,
        };
        if let Some(flow) = flows.get(&key) {
            let _ = flow.try_send(data);
            continue;
        }
        if flows.len() >= way.limits.datagram_flows {
            let reason = "the task has as many flows of datagrams as it may have".to_owned();
            let denial = Denial::new(&key.destination(), DenialKind::Unable, "limit", reason);
            way.record_malformed(client, Protocol::Socks5Udp, None, &denial).await;
            continue;
        }
        let (sender, receiver) = mpsc::channel(WAITING);
        let _ = sender.try_send(data);
        flows.insert(key.clone(), sender);
        let (socket, way) = (socket.clone(), way.clone());
        running.spawn(async move {
            carry(&key, client, receiver, &socket, &way).await;
            key
        });
    }
}

/// Carries one flow to its end.
async fn carry(key: &Key, client: Client, mut up: mpsc::Receiver<Bytes>, down: &UdpSocket, way: &Way) {
    let Ok(Flow { socket, route, account }) = way.open_flow(key.destination(), client).await else {
        // It is in the record. The datagrams that follow are judged again, slowly: see `Way::refusals`.
        return;
    };
    let mut associations = way.associations.subscribe();
    let forbidden = way.watch_over(&route, &account);
    tokio::pin!(forbidden);
    let header = write_header(route.addresses()[0]);
    let mut answer = vec![0; DATAGRAM_MAX];
    answer[..header.len()].copy_from_slice(&header);
    loop {
        tokio::select! {
            data = up.recv() => match data {
                Some(data) => match socket.send(&data).await {
                    Ok(length) => account.add_sent(length),
                    // A closed port answers so; the next datagram may still arrive.
                    Err(error) => tracing::debug!(%error, "a datagram was not sent"),
                },
                None => break,
            },
            received = socket.recv(&mut answer[header.len()..]) => match received {
                Ok(length) => {
                    account.add_received(length);
                    let _ = down.send_to(&answer[..header.len() + length], key.client).await;
                }
                Err(error) => tracing::debug!(%error, "a datagram was not received"),
            },
            () = async { let _ = associations.wait_for(|open| *open == 0).await; } => {
                account.complete();
                break;
            }
            denial = &mut forbidden => {
                account.fail(denial.reason.clone());
                way.record_end(&route, account.exec(), &denial).await;
                break;
            }
            () = tokio::time::sleep(way.limits.datagram_idle) => {
                account.complete();
                break;
            }
        }
    }
}

/// Counts an association for as long as its TCP connection lives, to which a client says nothing more.
pub(in crate::egress) async fn hold(mut stream: tokio::net::TcpStream, way: &Way) {
    struct Held<'a>(&'a Way);
    impl Drop for Held<'_> {
        fn drop(&mut self) {
            self.0.associations.send_modify(|open| *open -= 1);
        }
    }
    way.associations.send_modify(|open| *open += 1);
    let _held = Held(way);
    let _ = timeout(way.limits.idle_time, super::wait_for_end(&mut stream)).await;
}

fn read_header(datagram: &[u8]) -> Result<Header, String> {
    let cut = || "the datagram ends within its header".to_owned();
    let [0, 0, fragment, kind, rest @ ..] = datagram else {
        return Err("the datagram has no SOCKS header".to_owned());
    };
    if *fragment != 0 {
        return Err("datagrams in pieces are not put together".to_owned());
    }
    let (host, used) = match kind {
        1 => {
            let octets: [u8; 4] = *rest.first_chunk().ok_or_else(cut)?;
            (Host::from(IpAddr::from(octets)), 4)
        }
        4 => {
            let octets: [u8; 16] = *rest.first_chunk().ok_or_else(cut)?;
            // One spelling for each address, as for all that is read: a mapped one is refused there.
            let host = Host::parse(&format!("[{}]", std::net::Ipv6Addr::from(octets)));
            (host.map_err(|error| error.to_string())?, 16)
        }
        3 => {
            let length = usize::from(*rest.first().ok_or_else(cut)?);
            let name = rest.get(1..=length).ok_or_else(cut)?;
            let name = std::str::from_utf8(name).map_err(|error| error.to_string())?;
            (Host::parse(name).map_err(|error| error.to_string())?, 1 + length)
        }
        other => return Err(format!("{other} is no kind of address")),
    };
    let port = rest.get(used..used + 2).ok_or_else(cut)?;
    let port = u16::from_be_bytes([port[0], port[1]]);
    if port == 0 {
        return Err("port 0 is no port".to_owned());
    }
    let length = 4 + used + 2;
    Ok(Header { host, port, length })
}

fn write_header(from: SocketAddr) -> Vec<u8> {
    let mut header = vec![0, 0, 0];
    match from.ip() {
        IpAddr::V4(ip) => {
            header.push(1);
            header.extend(ip.octets());
        }
        IpAddr::V6(ip) => {
            header.push(4);
            header.extend(ip.octets());
        }
    }
    header.extend(from.port().to_be_bytes());
    header
}

#[cfg(test)]
mod tests;
