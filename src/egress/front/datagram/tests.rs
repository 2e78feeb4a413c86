use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use super::*;
use crate::audit::record::Event;
use crate::egress::gate::NetworkRule;
use crate::egress::limits::Limits;
use crate::egress::testing::{Fixture, Options, PUBLIC, gate};
use crate::policy::Decision;
use crate::task::Unknown;

const DNS: &str = "dns.example.com";

fn rule(decision: Decision) -> NetworkRule {
    NetworkRule {
        host: Host::parse(DNS).unwrap(),
        port: None,
        protocol: Protocol::Socks5Udp,
        decision,
        id: "r1".to_owned(),
        file: "agent.rules".to_owned(),
        line: 1,
        justification: None,
    }
}

fn with_a_rule() -> Options<'static> {
    Options {
        rules: vec![rule(Decision::Allow)],
        ..Options::default()
    }
}

/// Greets, asks for an association, and gives the reply's code and the relay's address.
async fn associate(fixture: &Fixture) -> (u8, SocketAddr, TcpStream) {
    let mut stream = TcpStream::connect(fixture.socks).await.unwrap();
    stream.write_all(&[5, 1, 0]).await.unwrap();
    stream.read_exact(&mut [0; 2]).await.unwrap();
    stream.write_all(&[5, 3, 0, 1, 0, 0, 0, 0, 0, 0]).await.unwrap();
    let mut reply = [0; 10];
    stream.read_exact(&mut reply).await.unwrap();
    let ip: [u8; 4] = *reply[4..].first_chunk().unwrap();
    (
        reply[1],
        SocketAddr::from((ip, u16::from_be_bytes([reply[8], reply[9]]))),
        stream,
    )
}

fn to(name: &str, port: u16, data: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0, 0, 0, 3, u8::try_from(name.len()).unwrap()];
    datagram.extend(name.bytes());
    datagram.extend(port.to_be_bytes());
    datagram.extend(data);
    datagram
}

/// `decision host`, or `sent/received` of an end.
fn story(events: &[Event]) -> Vec<String> {
    events
        .iter()
        .map(|event| match event {
            Event::EgressJudged {
                decision,
                host,
                protocol,
                ..
            } => format!("{protocol} {decision} {host}"),
            Event::EgressFinished {
                bytes_sent,
                bytes_received,
                ..
            } => format!("end {bytes_sent}/{bytes_received}"),
            other => panic!("{other:?}"),
        })
        .collect()
}

#[tokio::test]
async fn datagrams_go_where_a_rule_lets_them_and_nowhere_else() {
    let fixture = Fixture::start(with_a_rule()).await;
    let (code, relay, held) = associate(&fixture).await;
    assert_eq!(code, 0);
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    // The allow list has this host, which is not enough.
    client.send_to(&to("www.example.com", 53, b"x"), relay).await.unwrap();
    client.send_to(&to(DNS, 53, b"question"), relay).await.unwrap();
    let mut buffer = [0; 100];
    let (length, from) = fixture.datagrams.recv_from(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..length], b"question");
    fixture.datagrams.send_to(b"answer", from).await.unwrap();
    let length = client.recv(&mut buffer).await.unwrap();
    let public: std::net::Ipv4Addr = PUBLIC.parse().unwrap();
    let expected = [&[0, 0, 0, 1][..], &public.octets(), &[0, 53], b"answer"].concat();
    assert_eq!(&buffer[..length], expected);
    drop(held);
    let mut associations = fixture.way().associations.subscribe();
    associations.wait_for(|open| *open == 0).await.unwrap();
    let (events, seen) = fixture.finish().await;
    let mut story = story(&events);
    story.sort();
    assert_eq!(
        story,
        [
            "end 8/6",
            "socks5_udp allow dns.example.com",
            "socks5_udp deny www.example.com"
        ]
    );
    assert_eq!(*seen.resolved.lock().unwrap(), [DNS], "the other is not asked for");
}

#[tokio::test]
async fn without_a_rule_for_datagrams_there_is_no_association() {
    for rules in [Vec::new(), vec![rule(Decision::Forbidden)]] {
        let fixture = Fixture::start(Options {
            rules,
            ..Options::default()
        })
        .await;
        assert_eq!(associate(&fixture).await.0, 7, "the command is not served");
        let (events, _) = fixture.finish().await;
        assert_eq!(story(&events), ["socks5_udp deny 0.0.0.0"]);
    }
}

#[tokio::test]
async fn a_datagram_without_an_association_is_not_looked_at() {
    let fixture = Fixture::start(with_a_rule()).await;
    let (_, relay, held) = associate(&fixture).await;
    drop(held);
    fixture
        .way()
        .associations
        .subscribe()
        .wait_for(|open| *open == 0)
        .await
        .unwrap();
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.send_to(&to(DNS, 53, b"question"), relay).await.unwrap();
    let (_, relay, _held) = associate(&fixture).await;
    client.send_to(&to(DNS, 54, b"second"), relay).await.unwrap();
    let mut buffer = [0; 100];
    let (length, _) = fixture.datagrams.recv_from(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..length], b"second", "the first one is lost");
    fixture.finish().await;
}

#[tokio::test]
async fn a_changed_policy_ends_the_flows_that_it_forbids() {
    let fixture = Fixture::start(with_a_rule()).await;
    let (_, relay, _held) = associate(&fixture).await;
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.send_to(&to(DNS, 53, b"question"), relay).await.unwrap();
    fixture.datagrams.recv_from(&mut [0; 100]).await.unwrap();
    fixture
        .handle
        .reload(gate(&["*.example.com"], &[], Unknown::Deny, Vec::new()));
    let ended = async {
        while fixture.seen.events.lock().unwrap().len() < 3 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), ended).await.unwrap();
    let (events, _) = fixture.finish().await;
    let mut story = story(&events);
    story.sort();
    assert_eq!(
        story,
        [
            "end 8/0",
            "socks5_udp allow dns.example.com",
            "socks5_udp deny dns.example.com"
        ]
    );
}

#[tokio::test]
async fn flows_are_few_and_end_when_they_are_idle() {
    let fixture = Fixture::start(Options {
        limits: Limits {
            datagram_flows: 1,
            datagram_idle: Duration::from_millis(50),
            ..Limits::default()
        },
        ..with_a_rule()
    })
    .await;
    let (_, relay, _held) = associate(&fixture).await;
    let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    client.send_to(&to(DNS, 53, b"first"), relay).await.unwrap();
    client.send_to(&to(DNS, 54, b"second"), relay).await.unwrap();
    let mut buffer = [0; 100];
    let (length, _) = fixture.datagrams.recv_from(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..length], b"first");
    let over = async {
        while fixture.seen.events.lock().unwrap().len() < 3 {
            tokio::task::yield_now().await;
        }
    };
    timeout(Duration::from_secs(20), over).await.unwrap();
    let story = story(&fixture.seen.events.lock().unwrap());
    assert!(
        story.contains(&"socks5_udp deny dns.example.com".to_owned()),
        "{story:?}"
    );
    assert_eq!(
        story.last().unwrap(),
        "end 5/0",
        "nothing came back, so the flow is over"
    );
    // Its place is free again.
    client.send_to(&to(DNS, 54, b"third"), relay).await.unwrap();
    let (length, _) = fixture.datagrams.recv_from(&mut buffer).await.unwrap();
    assert_eq!(&buffer[..length], b"third");
    fixture.finish().await;
}

#[test]
fn headers_that_can_be_read_in_two_ways_are_refused() {
    assert_eq!(
        read_header(&to("A.com.", 53, b"data")),
        Ok(Header {
            host: Host::parse("a.com").unwrap(),
            port: 53,
            length: 13
        })
    );
    let mapped = [&[0, 0, 0, 4][..], &[0; 10], &[0xff; 2], &[8, 8, 8, 8, 0, 53]].concat();
    for (datagram, wrong) in [
        (&to("a.com", 53, b"")[..8], "ends within"),
        (&[][..], "no SOCKS header"),
        (&[0, 1, 0, 1, 8, 8, 8, 8, 0, 53][..], "no SOCKS header"),
        (&[0, 0, 1, 1, 8, 8, 8, 8, 0, 53][..], "in pieces"),
        (&[0, 0, 0, 1, 8, 8, 8, 8, 0][..], "ends within"),
        (&[0, 0, 0, 1, 8, 8, 8, 8, 0, 0][..], "port 0"),
        (&[0, 0, 0, 2, 8, 8, 8, 8, 0, 53][..], "no kind of address"),
        (&to("a\0.com", 53, b"")[..], "cannot be in a host"),
        (&mapped[..], "usual form"),
    ] {
        let error = read_header(datagram).unwrap_err();
        assert!(error.contains(wrong), "{datagram:?}: {error}");
    }
}
