//! SOCKS5 (RFC 1928) without authentication: CONNECT, and UDP where a rule speaks of it (see [`super::datagram`]).

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;

use bytes::Bytes;
use fast_socks5::server::{Socks5ServerProtocol, SocksServerError};
use fast_socks5::util::target_addr::TargetAddr;
use fast_socks5::{ReplyError, Socks5Command};
use tokio::time::timeout;

use super::tunnel::{self, Near};
use super::{Visitor, datagram, linger};
use crate::egress::client::Client;
use crate::egress::gate::{Denial, DenialKind, Destination, Protocol};
use crate::egress::host::{Host, HostError};
use crate::egress::way::{Closed, Passage, Way};

/// The first byte of all that a client says (RFC 1928, 3).
pub(super) const VERSION: u8 = 5;

/// The address of our own end is nobody's business in there.
const NO_ADDRESS: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::UNSPECIFIED), 0);

/// Serves one client until it is done or refused.
pub(in crate::egress) async fn serve(visitor: Visitor, way: Arc<Way>) {
    let Visitor {
        mut stream,
        client,
        mut place,
    } = visitor;
    let greeted = timeout(way.limits.header_time, async {
        Socks5ServerProtocol::accept_no_auth(&mut stream)
            .await?
            .read_command()
            .await
    });
    let (protocol, command, target) = match greeted.await {
        Ok(Ok(read)) => read,
        Ok(Err(SocksServerError::Io { .. } | SocksServerError::EOF)) | Err(_) => return,
        Ok(Err(error)) => {
            let denial = Denial::malformed(format!("the SOCKS request cannot be read: {error}"), None, 0);
            way.record_malformed(client, Protocol::Socks5Tcp, None, &denial).await;
            return linger(stream).await;
        }
    };
    if let (Socks5Command::UDPAssociate, Some(relay)) = (&command, way.datagrams)
        && way.gate.borrow().lets_datagrams_out()
    {
        // What the client says that it will send from is a wish; each datagram is judged by where it goes.
        if protocol.reply_success(relay).await.is_ok() {
            datagram::hold(stream, &way).await;
        }
        return;
    }
    match open(command, target, client, &way).await {
        Ok(passage) => {
            if protocol.reply_success(NO_ADDRESS).await.is_err() {
                passage.account.fail("the client was gone before the tunnel began");
                return;
            }
            let near = Near {
                stream,
                early: Bytes::new(),
                place: &mut place,
            };
            tunnel::run(near, passage, &way).await;
        }
        Err(reply) => {
            // A client that is gone needs no reply.
            let _ = protocol.reply_error(&reply).await;
            linger(stream).await;
        }
    }
}

/// The connection that was asked for, or the reply that says why not.
async fn open(command: Socks5Command, target: TargetAddr, client: Client, way: &Way) -> Result<Passage, ReplyError> {
    let (host, port) = match target {
        TargetAddr::Ip(address) => (Ok(Host::from(address.ip())), address.port()),
        TargetAddr::Domain(name, port) => (Host::parse(&name), port),
    };
    let shown = host
        .as_ref()
        .map_or_else(HostError::canonical, |host| Some(host.to_string()));
    let (protocol, denial, reply) = match (command, host) {
        (Socks5Command::TCPConnect, Ok(host)) if port != 0 => {
            let destination = Destination {
                host,
                port,
                protocol: Protocol::Socks5Tcp,
                method: None,
            };
            return way.open(destination, client).await.map_err(|closed| reply(&closed));
        }
        (Socks5Command::TCPConnect, host) => {
            let reason = host.map_or_else(|error| error.to_string(), |_| "port 0 is no port".to_owned());
            let denial = Denial::malformed(reason, shown, port);
            (Protocol::Socks5Tcp, denial, ReplyError::ConnectionNotAllowed)
        }
        (Socks5Command::TCPBind, _) => {
            let denial = Denial::unserved("nothing is let in: BIND is not served", shown, port);
            (Protocol::Socks5Tcp, denial, ReplyError::CommandNotSupported)
        }
        (Socks5Command::UDPAssociate, _) => {
            let denial = Denial::unserved(
                "no rule lets datagrams out (network_rule with protocol socks5_udp)",
                shown,
                port,
            );
            (Protocol::Socks5Udp, denial, ReplyError::CommandNotSupported)
        }
    };
    way.record_malformed(client, protocol, None, &denial).await;
    Err(reply)
}

fn reply(closed: &Closed) -> ReplyError {
    match closed {
        Closed::Denied(denial) => match denial.kind {
            DenialKind::Denied | DenialKind::Local | DenialKind::Unknown | DenialKind::Malformed => {
                ReplyError::ConnectionNotAllowed
            }
            DenialKind::Unresolved => ReplyError::HostUnreachable,
            DenialKind::Unable => ReplyError::GeneralFailure,
        },
        Closed::Unreachable { .. } => ReplyError::HostUnreachable,
    }
}

#[cfg(test)]
mod tests;
