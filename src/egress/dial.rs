//! Connecting to what was checked.

use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::net::{TcpStream, UdpSocket};

use super::gate::Route;

/// How long one of several addresses may take before the next is tried.
const ATTEMPT: Duration = Duration::from_secs(4);

/// Makes the connection of a route. An implementation dials the route's own addresses and never the name again.
pub trait Dialler: Send + Sync {
    fn dial<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, io::Result<TcpStream>>;

    /// A socket that exchanges datagrams with the route's first address and nobody else.
    fn dial_datagrams<'a>(&'a self, _route: &'a Route) -> BoxFuture<'a, io::Result<UdpSocket>> {
        Box::pin(async {
            Err(io::Error::new(
                io::ErrorKind::Unsupported,
                "datagrams have no way there",
            ))
        })
    }
}

/// Dials from the host's own network.
#[derive(Debug, Clone, Copy, Default)]
pub struct DirectDialler;

impl Dialler for DirectDialler {
    fn dial<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, io::Result<TcpStream>> {
        Box::pin(async move {
            let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "there is no address to dial");
            for &address in route.addresses() {
                match tokio::time::timeout(ATTEMPT, dial_one(address)).await {
                    Ok(Ok(stream)) => return Ok(stream),
                    Ok(Err(error)) => last = error,
                    Err(_) => last = io::Error::new(io::ErrorKind::TimedOut, "the address did not answer"),
                }
            }
            Err(last)
        })
    }

    fn dial_datagrams<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, io::Result<UdpSocket>> {
        Box::pin(async move {
            let address = route.addresses()[0];
            let any = match address.ip() {
                IpAddr::V4(_) => IpAddr::from(Ipv4Addr::UNSPECIFIED),
                IpAddr::V6(_) => IpAddr::from(Ipv6Addr::UNSPECIFIED),
            };
            let socket = UdpSocket::bind((any, 0)).await?;
            socket.connect(address).await?;
            if socket.local_addr()?.ip() == address.ip() {
                return Err(own_address());
            }
            Ok(socket)
        })
    }
}

/// An interface may have got an address after the gate read the list of the host's own: then both ends are alike.
fn own_address() -> io::Error {
    io::Error::new(io::ErrorKind::PermissionDenied, "the address is the host's own")
}

async fn dial_one(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    if stream.local_addr()?.ip() == stream.peer_addr()?.ip() {
        return Err(own_address());
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}
