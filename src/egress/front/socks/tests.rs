use std::net::Ipv6Addr;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::audit::record::Event;
use crate::egress::front::hello::tests::hello;
use crate::egress::limits::Limits;
use crate::egress::testing::{Fixture, Options};

const NO_AUTHENTICATION: &[u8] = &[5, 1, 0];
const CONNECT: u8 = 1;
const BIND: u8 = 2;
const UDP_ASSOCIATE: u8 = 3;

fn by_name(command: u8, name: &[u8], port: u16) -> Vec<u8> {
    let mut request = vec![5, command, 0, 3, u8::try_from(name.len()).unwrap()];
    request.extend(name);
    request.extend(port.to_be_bytes());
    request
}

/// Greets, sends a request, and gives the reply's code.
async fn ask(fixture: &Fixture, request: &[u8]) -> (u8, TcpStream) {
    let mut stream = TcpStream::connect(fixture.socks).await.unwrap();
    stream.write_all(NO_AUTHENTICATION).await.unwrap();
    let mut method = [0; 2];
    stream.read_exact(&mut method).await.unwrap();
    assert_eq!(method, [5, 0]);
    stream.write_all(request).await.unwrap();
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).await.unwrap();
    (reply[1], stream)
}

fn rules(events: &[Event]) -> Vec<String> {
    events
        .iter()
        .filter_map(|event| match event {
            Event::EgressJudged {
                decision,
                rule,
                protocol,
                ..
            } => Some(format!("{protocol} {decision}: {rule}")),
            _ => None,
        })
        .collect()
}

#[tokio::test]
async fn an_allowed_connection_carries_bytes_both_ways() {
    let fixture = Fixture::start(Options::default()).await;
    let (reply, mut client) = ask(&fixture, &by_name(CONNECT, b"www.example.com", 443)).await;
    assert_eq!(reply, 0);
    let (mut server, _) = fixture.server.accept().await.unwrap();
    let hello = hello(&["www.example.com"], 16_384);
    client.write_all(&hello).await.unwrap();
    let mut received = vec![0; hello.len()];
    server.read_exact(&mut received).await.unwrap();
    assert_eq!(received, hello);
    server.write_all(b"answer").await.unwrap();
    let mut answer = [0; 6];
    client.read_exact(&mut answer).await.unwrap();
    assert_eq!(&answer, b"answer");
    drop((client, server));
    let (events, _) = fixture.finish().await;
    assert_eq!(rules(&events), ["socks5_tcp allow: network.allow *.example.com"]);
}

#[tokio::test]
async fn the_port_of_http_takes_socks_too() {
    let fixture = Fixture::start(Options::default()).await;
    let mut client = TcpStream::connect(fixture.http).await.unwrap();
    client.write_all(&[5, 1, 0]).await.unwrap();
    client.read_exact(&mut [0; 2]).await.unwrap();
    client
        .write_all(&by_name(CONNECT, b"denied.example.com", 443))
        .await
        .unwrap();
    let mut reply = [0; 10];
    client.read_exact(&mut reply).await.unwrap();
    assert_eq!(reply[1], 2, "not allowed by the rules");
    let (events, _) = fixture.finish().await;
    assert_eq!(rules(&events), ["socks5_tcp deny: network.deny denied.example.com"]);
}

#[tokio::test]
async fn what_is_not_allowed_gets_a_reply_and_a_record_but_no_connection() {
    let fixture = Fixture::start(Options {
        allow: &["*"],
        deny: &["denied.example.com"],
        answers: &[("inner.example.com", &[&["10.0.0.1"]]), ("gone.example.com", &[&[]])],
        ..Options::default()
    })
    .await;
    let address = |ip: Ipv6Addr| [&[5, CONNECT, 0, 4], ip.octets().as_slice(), &[1, 0xbb]].concat();
    let cases: Vec<(Vec<u8>, u8)> = vec![
        (by_name(CONNECT, b"denied.example.com", 443), 2),
        (by_name(CONNECT, b"www.example.com", 22), 2),
        (by_name(CONNECT, b"localhost", 443), 2),
        (by_name(CONNECT, b"127.0.0.1", 443), 2),
        (by_name(CONNECT, b"0x7f000001", 443), 2),
        (by_name(CONNECT, b"www.example.com\0.evil.org", 443), 2),
        (by_name(CONNECT, b"evil.org\r\n", 443), 2),
        (by_name(CONNECT, b"", 443), 2),
        (by_name(CONNECT, b"www.example.com", 0), 2),
        (by_name(CONNECT, b"inner.example.com", 443), 2),
        (by_name(CONNECT, b"gone.example.com", 443), 4),
        (vec![5, CONNECT, 0, 1, 127, 0, 0, 1, 1, 0xbb], 2),
        (address("::1".parse().unwrap()), 2),
        (address("::ffff:93.184.216.34".parse().unwrap()), 2),
        (address("64:ff9b::a00:1".parse().unwrap()), 2),
        (by_name(BIND, b"www.example.com", 443), 7),
        (by_name(UDP_ASSOCIATE, b"www.example.com", 443), 7),
        (vec![5, UDP_ASSOCIATE, 0, 1, 0, 0, 0, 0, 0, 0], 7),
    ];
    let count = cases.len();
    for (request, code) in cases {
        let (reply, mut stream) = ask(&fixture, &request).await;
        assert_eq!(reply, code, "{request:?}");
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap(), 0, "the connection is closed");
    }
    let (events, seen) = fixture.finish().await;
    let rules = rules(&events);
    assert_eq!(rules.len(), count, "{rules:?}");
    assert!(rules.iter().all(|rule| rule.contains(" deny: ")), "{rules:?}");
    assert!(seen.dialled.lock().unwrap().is_empty());
    assert_eq!(
        *seen.resolved.lock().unwrap(),
        ["inner.example.com", "gone.example.com"]
    );
}

#[tokio::test]
async fn what_is_not_socks5_is_closed() {
    let fixture = Fixture::start(Options::default()).await;
    for bytes in [
        &[4, 1, 1, 0xbb, 93, 184, 216, 34, 0][..],
        b"GET / HTTP/1.1\r\n\r\n",
        &[5, 1, 2],
    ] {
        let mut stream = TcpStream::connect(fixture.socks).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        assert!(answer.is_empty() || answer == [5, 0xff], "{answer:?}");
    }
    let mut stream = TcpStream::connect(fixture.socks).await.unwrap();
    stream
        .write_all(&[NO_AUTHENTICATION, &[5, CONNECT, 0, 9, 1, 1]].concat())
        .await
        .unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    assert_eq!(answer[..4], [5, 0, 5, 8], "an unknown kind of address");
    let (events, seen) = fixture.finish().await;
    assert_eq!(rules(&events), vec!["socks5_tcp deny: malformed"; 4]);
    assert!(seen.dialled.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_slow_greeting_is_given_up() {
    let fixture = Fixture::start(Options {
        limits: Limits {
            header_time: Duration::from_millis(50),
            ..Limits::default()
        },
        ..Options::default()
    })
    .await;
    let mut stream = TcpStream::connect(fixture.socks).await.unwrap();
    stream.write_all(&[5]).await.unwrap();
    assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    fixture.finish().await;
}
