//! Connecting through an HTTP proxy of the network that belljar stands in, where there is no other way out of it.
//!
//! The proxy is asked for the address that was checked, never for a name: what a name means is decided once, here. It sees
//! addresses and TLS, and bytes of plain HTTP.

use std::io;
use std::net::SocketAddr;

use futures_util::future::BoxFuture;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::dial::Dialler;
use super::gate::Route;
use super::host::{Authority, Host};

/// The longest answer to a CONNECT.
const HEAD_MAX: usize = 8 * 1024;

/// Dials through a proxy, which the admin names and whose own address no policy judges.
#[derive(Debug, Clone)]
pub struct UpstreamDialler {
    proxy: Authority,
}

impl UpstreamDialler {
    pub fn new(proxy: Authority) -> Self {
        Self { proxy }
    }

    async fn connect(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let mut stream = match &self.proxy.host {
            Host::Name(name) => TcpStream::connect((name.as_str(), self.proxy.port)).await?,
            Host::Address(own) => TcpStream::connect((own.ip(), self.proxy.port)).await?,
        };
        stream.set_nodelay(true)?;
        let request = format!("CONNECT {address} HTTP/1.1\r\nHost: {address}\r\n\r\n");
        stream.write_all(request.as_bytes()).await?;
        let head = read_head(&mut stream).await?;
        let mut words = head.split(' ');
        let version = words.next().unwrap_or_default();
        match words.next() {
            Some("200") if version.starts_with("HTTP/1.") => Ok(stream),
            Some(code) if code.len() == 3 && code.bytes().all(|b| b.is_ascii_digit()) => {
                Err(io::Error::other(format!("the upstream proxy says {code}")))
            }
            _ => Err(io::Error::other("the upstream proxy speaks no HTTP")),
        }
    }
}

impl Dialler for UpstreamDialler {
    fn dial<'a>(&'a self, route: &'a Route) -> BoxFuture<'a, io::Result<TcpStream>> {
        Box::pin(async move {
            let mut last = io::Error::new(io::ErrorKind::AddrNotAvailable, "there is no address to dial");
            for &address in route.addresses() {
                match self.connect(address).await {
                    Ok(stream) => return Ok(stream),
                    Err(error) => last = error,
                }
            }
            Err(last)
        })
    }
}

/// Byte by byte, for what follows the head is the server's.
async fn read_head(stream: &mut TcpStream) -> io::Result<String> {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        if head.len() == HEAD_MAX {
            return Err(io::Error::other("the upstream proxy's answer has no end"));
        }
        head.push(stream.read_u8().await?);
    }
    Ok(String::from_utf8_lossy(&head).into_owned())
}

#[cfg(test)]
mod tests {
    use tokio::net::TcpListener;

    use super::*;
    use crate::egress::gate::{Cleared, Destination, EgressJudgement, Protocol};
    use crate::egress::testing::gate;
    use crate::task::Unknown;

    async fn dialled(answer: &str) -> (io::Result<TcpStream>, String) {
        let proxy = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let dialler = UpstreamDialler::new(Authority {
            host: Host::parse("127.0.0.1").unwrap(),
            port: proxy.local_addr().unwrap().port(),
        });
        let destination = Destination {
            host: Host::parse("www.example.com").unwrap(),
            port: 443,
            protocol: Protocol::HttpsConnect,
            method: None,
        };
        let gate = gate(&["www.example.com"], &[], Unknown::Deny, Vec::new());
        let EgressJudgement::Allow(Cleared::Name(clearance)) = gate.judge(&destination) else {
            panic!("it is allowed");
        };
        let route = gate
            .judge_addresses(
                clearance,
                Ok(vec!["93.184.216.34".parse::<std::net::IpAddr>().unwrap()].into()),
            )
            .unwrap();
        let proxied = async {
            let (mut stream, _) = proxy.accept().await.unwrap();
            let asked = read_head(&mut stream).await.unwrap();
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
            asked
        };
        tokio::join!(dialler.dial(&route), proxied)
    }

    #[tokio::test]
    async fn the_proxy_is_asked_for_the_address_that_was_checked() {
        let (stream, asked) = dialled("HTTP/1.1 200 Connection established\r\nVia: 1.1 x\r\n\r\nSSH-2.0").await;
        assert_eq!(
            asked,
            "CONNECT 93.184.216.34:443 HTTP/1.1\r\nHost: 93.184.216.34:443\r\n\r\n"
        );
        let mut first = String::new();
        stream.unwrap().read_to_string(&mut first).await.unwrap();
        assert_eq!(first, "SSH-2.0", "nothing of the server's is lost");
    }

    #[tokio::test]
    async fn a_proxy_that_does_not_let_through_closes_the_way() {
        let endless = format!("HTTP/1.1 200 OK\r\nX: {}\r\n\r\n", "a".repeat(HEAD_MAX));
        for answer in [
            "HTTP/1.1 407 Proxy Authentication Required\r\n\r\n",
            "SSH-2.0-x\r\n\r\n",
            "",
            &endless,
        ] {
            let (stream, _) = dialled(answer).await;
            assert!(stream.is_err(), "{answer}");
        }
    }
}
