//! What the sandbox speaks to the proxy, one protocol a file. A front reads, refuses what can be read in two ways, and hands a
//! destination to [`super::way::Way`]; it decides nothing.

use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

use super::client::Client;
use super::room::Place;
use super::way::Way;

pub(super) mod datagram;
pub(super) mod dns;
pub(super) mod hello;
pub(super) mod http;
pub(super) mod socks;
pub(super) mod tunnel;

/// How long, and for how many bytes, a refused client is listened to after the answer: closing at once would reset the
/// connection, and the client would never read why (RFC 9112, 9.6).
const LINGER: Duration = Duration::from_secs(1);
const LINGER_MAX: usize = 256 * 1024;

/// A connection to a front.
pub(super) struct Visitor {
    pub stream: TcpStream,
    pub client: Client,
    pub place: Place,
}

/// Serves HTTP or, where the first byte is its version, SOCKS5: some programs are told of one address only, under a name such as
/// `ALL_PROXY` that does not say which of the two is spoken there.
pub(super) async fn serve_either(visitor: Visitor, way: Arc<Way>) {
    let mut first = [0];
    match timeout(way.limits.header_time, visitor.stream.peek(&mut first)).await {
        Ok(Ok(_)) if first == [socks::VERSION] => socks::serve(visitor, way).await,
        Ok(Ok(_)) => http::serve(visitor, way).await,
        Ok(Err(_)) | Err(_) => {}
    }
}

async fn linger(mut stream: TcpStream) {
    let drain = async {
        // The client sees the end of the answer now, and its own end is then soon seen here.
        if stream.shutdown().await.is_ok() {
            wait_for_end(&mut stream).await;
        }
    };
    // Either way the stream closes now.
    let _ = timeout(LINGER, drain).await;
}

/// Reads until the client is done or has said too much.
async fn wait_for_end(stream: &mut TcpStream) {
    let mut left = LINGER_MAX;
    let mut buffer = [0; 4096];
    while let Ok(read @ 1..) = stream.read(&mut buffer).await {
        left = left.saturating_sub(read);
        if left == 0 {
            break;
        }
    }
}
