//! Connecting to what was checked.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::net::TcpStream;

use super::gate::Route;

/// How long one of several addresses may take before the next is tried.
const ATTEMPT: Duration = Duration::from_secs(4);

/// Makes the connection of a route. An implementation dials the route's own addresses and never the name again.
pub trait Dialler: Send + Sync {
    fn dial<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, io::Result<TcpStream>>;
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
}

async fn dial_one(address: SocketAddr) -> io::Result<TcpStream> {
    let stream = TcpStream::connect(address).await?;
    // An interface may have got this address after the gate read the list of the host's own: then both ends are alike.
    if stream.local_addr()?.ip() == stream.peer_addr()?.ip() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            "the address is the host's own",
        ));
    }
    stream.set_nodelay(true)?;
    Ok(stream)
}
