use std::sync::Arc;
use std::time::Duration;

use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::ask::Told;
use super::front::hello::tests::hello;
use super::gate::{NetworkRule, Protocol};
use super::host::Host;
use super::limits::Limits;
use super::room::Room;
use super::testing::{Desk, Fixture, Options, PUBLIC, gate, read_head, tunnel};
use crate::audit::record::Event;
use crate::policy::{Answer, Decision, Scope};
use crate::task::Unknown;

/// `decision rule` of each judgement, `finished error` of each end.
fn story(events: &[Event]) -> Vec<String> {
    events
        .iter()
        .map(|event| match event {
            Event::EgressJudged { decision, rule, .. } => format!("{decision}: {rule}"),
            Event::EgressFinished { error, .. } => format!("finished: {}", error.as_deref().unwrap_or("well")),
            other => panic!("{other:?}"),
        })
        .collect()
}

fn json(answer: &str) -> Value {
    let (_, body) = answer.split_once("\r\n\r\n").unwrap();
    serde_json::from_str(body).unwrap_or_else(|error| panic!("{error}: {answer}"))
}

#[tokio::test]
async fn an_allowed_tunnel_carries_bytes_both_ways_and_is_recorded() {
    let fixture = Fixture::start(Options::default()).await;
    let (mut client, mut server) = tunnel(&fixture, "www.example.com", 443).await;
    let hello = hello(&["www.example.com"], 16_384);
    client.write_all(&hello).await.unwrap();
    let mut received = vec![0; hello.len()];
    server.read_exact(&mut received).await.unwrap();
    assert_eq!(received, hello);
    let answer = vec![9; 700_000];
    let (sent, got) = tokio::join!(
        async {
            server.write_all(&answer).await.unwrap();
            server.shutdown().await.unwrap();
        },
        async {
            let mut got = Vec::new();
            client.read_to_end(&mut got).await.unwrap();
            got
        }
    );
    let () = sent;
    assert_eq!(got, answer);
    client.shutdown().await.unwrap();
    assert_eq!(
        server.read(&mut [0; 1]).await.unwrap(),
        0,
        "one end is passed on as one end"
    );
    drop((client, server));
    let mut totals = fixture.handle.bytes();
    while totals.received < 700_000 {
        tokio::task::yield_now().await;
        totals = fixture.handle.bytes();
    }
    assert_eq!((totals.sent, totals.received), (hello.len() as u64, 700_000));
    let order = fixture.seen.order.lock().unwrap()[..3].to_vec();
    assert_eq!(
        order,
        ["resolve www.example.com", "record allow", &format!("dial {PUBLIC}:443")]
    );
    let (events, _) = fixture.finish().await;
    let Event::EgressFinished {
        bytes_sent,
        bytes_received,
        address,
        ..
    } = &events[1]
    else {
        panic!("{events:?}");
    };
    assert_eq!((*bytes_sent, *bytes_received), (hello.len() as u64, 700_000));
    assert!(address.is_some());
}

#[tokio::test]
async fn a_refusal_is_a_403_with_the_denial_as_json() {
    let fixture = Fixture::start(Options::default()).await;
    let answer = fixture
        .exchange("CONNECT other.org:443 HTTP/1.1\r\nHost: other.org:443\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 403 Forbidden\r\n"), "{answer}");
    for header in [
        "content-type: application/json",
        "x-belljar-decision: deny",
        "connection: close",
    ] {
        assert!(answer.contains(header), "{answer}");
    }
    let expected = serde_json::json!({
        "decision": "deny",
        "rule": "unknown",
        "reason": "other.org is not in the allow list",
        "host": "other.org",
        "port": 443,
        "how_to_ask": "ask the person who runs the task to add \"other.org\" to network.allow",
    });
    assert_eq!(json(&answer), expected);
    let plain = fixture
        .exchange("GET http://denied.example.com/ HTTP/1.1\r\nHost: denied.example.com\r\n\r\n")
        .await;
    assert_eq!(json(&plain)["rule"], "network.deny denied.example.com");
    let (events, seen) = fixture.finish().await;
    assert_eq!(
        story(&events),
        ["deny: unknown", "deny: network.deny denied.example.com"]
    );
    assert!(
        seen.resolved.lock().unwrap().is_empty(),
        "a name that is not allowed is not resolved"
    );
    assert!(seen.dialled.lock().unwrap().is_empty());
}

#[tokio::test]
async fn nothing_behind_a_refusal_is_looked_at() {
    let fixture = Fixture::start(Options::default()).await;
    let refused = "GET http://other.org/ HTTP/1.1\r\nHost: other.org\r\n\r\n";
    let allowed = "GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n";
    let answer = fixture.exchange(format!("{refused}{allowed}")).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    let (events, seen) = fixture.finish().await;
    assert_eq!(story(&events), ["deny: unknown"]);
    assert!(seen.dialled.lock().unwrap().is_empty());
}

#[tokio::test]
async fn the_address_that_was_checked_is_the_one_that_is_dialled() {
    let fixture = Fixture::start(Options {
        answers: &[("www.example.com", &[&["1.1.1.1"], &["127.0.0.1"]])],
        ..Options::default()
    })
    .await;
    let (client, server) = tunnel(&fixture, "www.example.com", 443).await;
    drop((client, server));
    let again = fixture
        .exchange("CONNECT www.example.com:443 HTTP/1.1\r\nHost: www.example.com:443\r\n\r\n")
        .await;
    assert_eq!(json(&again)["rule"], "local");
    let (_, seen) = fixture.finish().await;
    assert_eq!(*seen.dialled.lock().unwrap(), ["1.1.1.1:443".parse().unwrap()]);
    assert_eq!(seen.resolved.lock().unwrap().len(), 2, "one question a connection");
}

#[tokio::test]
async fn targets_with_tricks_are_refused_and_recorded() {
    let fixture = Fixture::start(Options {
        allow: &["*", "*:*"],
        ..Options::default()
    })
    .await;
    let targets = [
        "foo.localhost:443",
        "localhost:443",
        "[::1]:443",
        "[::ffff:127.0.0.1]:443",
        "[64:ff9b::a00:1]:443",
        "017700000001:443",
        "127.1:443",
        "0xA9FEA9FE:80",
        "0251.0376.0251.0376:80",
        "10.0.0.1:443",
        "169.254.169.254:80",
        "metadata.google.internal:80",
        "www.example.com:65536",
        "www.example.com:0",
        "www.example.com",
        "www.example.com:",
        "www.example.com:+443",
        "user@www.example.com:443",
        "user:pass@www.example.com:443",
        "www.example.com\0:443",
        "www.example.com%00.evil.org:443",
        "www.example.com\\@evil.org:443",
        "www.example.com/x:443",
        "http://www.example.com:443",
        "[fe80::1%25eth0]:443",
        "www.ex\u{e4}mple.com:443",
        "www..example.com:443",
        "*:443",
        "",
    ];
    for target in targets {
        let answer = fixture
            .exchange(format!("CONNECT {target} HTTP/1.1\r\nHost: {target}\r\n\r\n"))
            .await;
        assert!(answer.starts_with("HTTP/1.1 4"), "{target}: {answer}");
    }
    let (events, seen) = fixture.finish().await;
    assert_eq!(events.len(), targets.len(), "{:?}", story(&events));
    assert!(story(&events).iter().all(|event| event.starts_with("deny: ")));
    assert!(seen.dialled.lock().unwrap().is_empty());
}

#[tokio::test]
async fn requests_that_can_be_read_in_two_ways_are_refused() {
    let fixture = Fixture::start(Options::default()).await;
    let url = "http://www.example.com/";
    let host = "Host: www.example.com";
    let requests = [
        format!("GET {url} HTTP/1.1\r\nHost: denied.example.com\r\n\r\n"),
        format!("GET {url} HTTP/1.1\r\nHost: www.example.com:8080\r\n\r\n"),
        "GET http://www.example.com:8080/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n".to_owned(),
        format!("GET {url} HTTP/1.1\r\n{host}\r\n{host}\r\n\r\n"),
        format!("GET {url} HTTP/1.1\r\n\r\n"),
        format!("GET {url} HTTP/1.1\r\n{host}\r\nHost : denied.example.com\r\n\r\n"),
        format!("GET {url} HTTP/1.1\r\n{host}\r\nX: a\r\n b\r\n\r\n"),
        format!("POST {url} HTTP/1.1\r\n{host}\r\nContent-Length: 4\r\nContent-Length: 5\r\n\r\nabcde"),
        format!("POST {url} HTTP/1.1\r\n{host}\r\nContent-Length: +4\r\n\r\nabcd"),
        format!("POST {url} HTTP/1.1\r\n{host}\r\nTransfer-Encoding: chunked, identity\r\n\r\n0\r\n\r\n"),
        format!("POST {url} HTTP/1.1\r\n{host}\r\nTransfer-Encoding: xchunked\r\n\r\n0\r\n\r\n"),
        format!("GET / HTTP/1.1\r\n{host}\r\n\r\n"),
        format!("GET //www.example.com/ HTTP/1.1\r\n{host}\r\n\r\n"),
        format!("OPTIONS * HTTP/1.1\r\n{host}\r\n\r\n"),
        format!("GET https://www.example.com/ HTTP/1.1\r\n{host}\r\n\r\n"),
        format!("GET ftp://www.example.com/ HTTP/1.1\r\n{host}\r\n\r\n"),
        format!("GET file:///etc/passwd HTTP/1.1\r\n{host}\r\n\r\n"),
        format!("GET unix:/run/x.sock:/ HTTP/1.1\r\n{host}\r\n\r\n"),
        format!("GET http://user@www.example.com/ HTTP/1.1\r\n{host}\r\n\r\n"),
        format!("{} {url} HTTP/1.1\r\n{host}\r\n\r\n", "GET".repeat(11)),
        format!("POST {url} HTTP/1.1\r\n{host}\r\nContent-Length: -1\r\n\r\n"),
        format!("POST {url} HTTP/1.1\r\n{host}\r\nContent-Length: 0x4\r\n\r\nabcd"),
        format!("POST {url} HTTP/1.1\r\n{host}\r\nContent-Length: 4, 4\r\n\r\nabcd"),
        format!("POST {url} HTTP/1.1\r\n{host}\r\nContent-Length: 18446744073709551617\r\n\r\na"),
        format!("POST {url} HTTP/1.1\r\n{host}\r\nTransfer-Encoding\t: chunked\r\n\r\n0\r\n\r\n"),
        format!("POST {url} HTTP/1.1\r\n{host}\r\nX: a\0b\r\n\r\n"),
        format!("GET {url} HTTP/1.1\r\n{host}\r\nX: a\rb\r\n\r\n"),
        format!("GET {url}\r\n"),
        format!("GET {url} HTTP/2.0\r\n{host}\r\n\r\n"),
        format!("GET {url}#x HTTP/1.1 x\r\n{host}\r\n\r\n"),
        "CONNECT www.example.com:443 HTTP/1.1\r\nHost: denied.example.com:443\r\n\r\n".to_owned(),
        "PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\0\0\0\0\0\0\0\0\0".to_owned(),
        "\u{16}\u{3}\u{1}".to_owned() + &"\0".repeat(200),
    ];
    for request in &requests {
        let answer = fixture.exchange(request).await;
        assert!(
            answer.is_empty() || answer.starts_with("HTTP/1.1 4"),
            "{request}: {answer}"
        );
    }
    let (events, seen) = fixture.finish().await;
    assert_eq!(story(&events), vec!["deny: malformed"; requests.len()]);
    assert!(seen.resolved.lock().unwrap().is_empty() && seen.dialled.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_plain_request_is_written_anew_for_the_server() {
    let fixture = Fixture::start(Options::default()).await;
    let request = "POST http://WWW.Example.com:80/a?b=c HTTP/1.1\r\nHost: www.example.com\r\nConnection: X-Mine, keep-alive, Host\r\nX-Mine: 1\r\nKeep-Alive: 5\r\nProxy-Connection: keep-alive\r\nProxy-Authorization: Basic abc\r\nTransfer_Encoding: chunked\r\nContent_Length: 99\r\nUpgrade: h2c\r\nTE: trailers\r\nAccept: */*\r\nContent-Length: 3\r\n\r\nxyz";
    let mut client = fixture.send(request).await;
    let (mut server, _) = fixture.server.accept().await.unwrap();
    let head = read_head(&mut server).await;
    let mut body = [0; 3];
    server.read_exact(&mut body).await.unwrap();
    assert_eq!(
        head.to_lowercase(),
        "post /a?b=c http/1.1\r\naccept: */*\r\nhost: www.example.com\r\ncontent-length: 3\r\n\r\n"
    );
    assert_eq!(&body, b"xyz");
    server
        .write_all(b"HTTP/1.1 201 Created\r\nContent-Length: 2\r\nConnection: close, X-Theirs\r\nX-Theirs: 1\r\nX-Kept: 2\r\n\r\nok")
        .await
        .unwrap();
    let head = read_head(&mut client).await;
    assert!(
        head.starts_with("HTTP/1.1 201 Created\r\n") && head.contains("x-kept: 2") && !head.contains("x-theirs"),
        "{head}"
    );
    let mut body = [0; 2];
    client.read_exact(&mut body).await.unwrap();
    drop(client);
    let (events, _) = fixture.finish().await;
    let Event::EgressFinished {
        bytes_sent,
        bytes_received,
        error,
        ..
    } = &events[1]
    else {
        panic!("{events:?}");
    };
    assert_eq!((*bytes_sent, *bytes_received, error), (3, 2, &None));
}

#[tokio::test]
async fn two_framings_of_one_body_do_not_hide_a_second_request() {
    let fixture = Fixture::start(Options::default()).await;
    let hidden = "GET http://denied.example.com/ HTTP/1.1\r\nHost: denied.example.com\r\n\r\n";
    for framing in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
    ] {
        let request = format!(
            "POST http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n{framing}\r\n\r\n0\r\n\r\n{hidden}"
        );
        let mut client = fixture.send(request).await;
        let (mut server, _) = fixture.server.accept().await.unwrap();
        let head = read_head(&mut server).await.to_lowercase();
        let framed = head.matches("content-length").count() + head.matches("transfer-encoding").count();
        assert_eq!(framed, 1, "{head}");
        server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
        let mut answers = String::new();
        client.read_to_string(&mut answers).await.unwrap();
        assert!(
            answers.starts_with("HTTP/1.1 204") && answers.matches("HTTP/1.1 2").count() == 1,
            "{answers}"
        );
    }
    let (_, seen) = fixture.finish().await;
    assert_eq!(seen.dialled.lock().unwrap().len(), 2);
}

#[tokio::test]
async fn a_connect_within_a_tunnel_is_bytes_to_the_allowed_host() {
    let fixture = Fixture::start(Options {
        allow: &["proxy.example.com:8080"],
        ..Options::default()
    })
    .await;
    let (mut client, mut server) = tunnel(&fixture, "proxy.example.com", 8080).await;
    let inner = b"CONNECT denied.example.com:443 HTTP/1.1\r\n\r\n";
    client.write_all(inner).await.unwrap();
    let mut received = vec![0; inner.len()];
    server.read_exact(&mut received).await.unwrap();
    assert_eq!(received, inner);
    let (events, seen) = fixture.finish().await;
    assert_eq!(events.len(), 2);
    assert_eq!(seen.dialled.lock().unwrap().len(), 1);
}

#[tokio::test]
async fn a_tls_hello_must_name_the_host_of_the_tunnel() {
    let fixture = Fixture::start(Options {
        allow: &["www.example.com", "www.example.com:8443", "93.184.216.34"],
        ..Options::default()
    })
    .await;
    for (host, port, sent) in [
        ("www.example.com", 443, hello(&["denied.example.com"], 16_384)),
        ("www.example.com", 443, hello(&["denied.example.com"], 5)),
        ("www.example.com", 80, hello(&["denied.example.com"], 16_384)),
        (
            "www.example.com",
            443,
            hello(&["www.example.com", "denied.example.com"], 16_384),
        ),
        ("93.184.216.34", 443, hello(&["denied.example.com"], 16_384)),
        ("www.example.com", 443, b"SSH-2.0-x\r\n".to_vec()),
        ("www.example.com", 443, b"GET / HTTP/1.1\r\n\r\n".to_vec()),
    ] {
        let (mut client, mut server) = tunnel(&fixture, host, port).await;
        client.write_all(&sent).await.unwrap();
        let mut received = Vec::new();
        // A reset says the same as an end.
        let _ = server.read_to_end(&mut received).await;
        assert!(received.is_empty(), "{host}:{port}");
        drop(client);
    }
    for (host, port, sent) in [
        ("www.example.com", 443, hello(&["WWW.example.com"], 16_384)),
        ("www.example.com", 443, hello(&[], 16_384)),
        ("93.184.216.34", 443, hello(&[], 16_384)),
        ("www.example.com", 80, b"SSH-2.0-x\r\n".to_vec()),
    ] {
        let (mut client, mut server) = tunnel(&fixture, host, port).await;
        client.write_all(&sent).await.unwrap();
        let mut received = vec![0; sent.len()];
        server.read_exact(&mut received).await.unwrap();
        assert_eq!(received, sent);
    }
    let (events, _) = fixture.finish().await;
    let refused = |rule: &str| {
        story(&events)
            .iter()
            .filter(|event| **event == format!("deny: {rule}"))
            .count()
    };
    assert_eq!((refused("sni"), refused("tls")), (4, 3));
}

#[tokio::test]
async fn a_rule_for_https_opens_any_port_for_tls_alone() {
    let rule = NetworkRule {
        host: Host::parse("git.example.org").unwrap(),
        port: None,
        protocol: Protocol::HttpsConnect,
        decision: Decision::Allow,
        id: "git over https".to_owned(),
        file: "agent.rules".to_owned(),
        line: 1,
        justification: None,
    };
    let fixture = Fixture::start(Options {
        rules: vec![rule],
        ..Options::default()
    })
    .await;
    let (mut client, mut server) = tunnel(&fixture, "git.example.org", 8443).await;
    let hello = hello(&["git.example.org"], 16_384);
    client.write_all(&hello).await.unwrap();
    server.read_exact(&mut vec![0; hello.len()]).await.unwrap();
    let (mut client, mut server) = tunnel(&fixture, "git.example.org", 22).await;
    client.write_all(b"SSH-2.0-client\r\n").await.unwrap();
    assert_eq!(server.read(&mut [0; 1]).await.unwrap_or(0), 0);
    let (events, _) = fixture.finish().await;
    assert!(story(&events).contains(&"deny: tls".to_owned()), "{:?}", story(&events));
}

#[tokio::test]
async fn a_server_may_speak_first() {
    let fixture = Fixture::start(Options {
        allow: &["git.example.com:22"],
        ..Options::default()
    })
    .await;
    let (mut client, mut server) = tunnel(&fixture, "git.example.com", 22).await;
    server.write_all(b"SSH-2.0-server\r\n").await.unwrap();
    let mut banner = [0; 16];
    client.read_exact(&mut banner).await.unwrap();
    assert_eq!(&banner, b"SSH-2.0-server\r\n");
    fixture.finish().await;
}

#[tokio::test]
async fn a_client_may_send_its_hello_before_it_is_answered() {
    let fixture = Fixture::start(Options::default()).await;
    let hello = hello(&["www.example.com"], 16_384);
    let connect = b"CONNECT www.example.com:443 HTTP/1.1\r\nHost: www.example.com:443\r\n\r\n";
    let _client = fixture.send([connect.as_slice(), &hello].concat()).await;
    let (mut server, _) = fixture.server.accept().await.unwrap();
    let mut received = vec![0; hello.len()];
    server.read_exact(&mut received).await.unwrap();
    assert_eq!(received, hello);
    fixture.finish().await;
}

#[tokio::test]
async fn what_cannot_be_recorded_is_not_done() {
    let fixture = Fixture::start(Options {
        recorder: |_| false,
        ..Options::default()
    })
    .await;
    let answer = fixture
        .exchange("CONNECT www.example.com:443 HTTP/1.1\r\nHost: www.example.com:443\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(json(&answer)["rule"], "record");
    let (_, seen) = fixture.finish().await;
    assert!(seen.dialled.lock().unwrap().is_empty());
}

#[tokio::test]
async fn an_unreachable_server_is_a_502_and_has_an_end_in_the_record() {
    let mut fixture = Fixture::start(Options::default()).await;
    let gone = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    drop(std::mem::replace(&mut fixture.server, gone));
    let answer = fixture
        .exchange("CONNECT www.example.com:443 HTTP/1.1\r\nHost: www.example.com:443\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    let (events, _) = fixture.finish().await;
    assert_eq!(events.len(), 2);
    assert!(story(&events)[1].contains("refused"), "{:?}", story(&events));
}

fn connect(host: &str) -> String {
    format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n")
}

/// Where what no list speaks of is put to this desk.
fn asking(desk: &Arc<Desk>) -> Options<'_> {
    Options {
        unknown: Unknown::Ask,
        asker: desk.clone(),
        ..Options::default()
    }
}

/// An answer of somebody's.
fn said(answer: Answer) -> Told {
    Told {
        answer,
        by_somebody: true,
    }
}

#[tokio::test]
async fn one_question_is_put_for_all_connections_to_a_place() {
    let desk = Arc::new(Desk::default());
    let fixture = Fixture::start(asking(&desk)).await;
    let mut clients = Vec::new();
    for _ in 0..3 {
        clients.push(fixture.send(connect("new.org")).await);
    }
    desk.asked.notified().await;
    while fixture.seen.events.lock().unwrap().len() < 3 {
        tokio::task::yield_now().await;
    }
    let (question, answer) = desk.questions.lock().unwrap().pop().unwrap();
    assert!(desk.questions.lock().unwrap().is_empty());
    assert_eq!(question.destination.place(), "new.org");
    assert!(
        fixture.seen.resolved.lock().unwrap().is_empty(),
        "not before the answer"
    );
    answer.send(said(Answer::Approve(Scope::Task))).unwrap();
    for client in &mut clients {
        assert!(read_head(client).await.starts_with("HTTP/1.1 200"));
    }
    let mut later = fixture.send(connect("new.org")).await;
    assert!(
        read_head(&mut later).await.starts_with("HTTP/1.1 200"),
        "the answer holds for the task"
    );
    drop((clients, later));
    let (events, _) = fixture.finish().await;
    assert_eq!(
        story(&events)
            .iter()
            .filter(|event| **event == "allow: approval")
            .count(),
        4
    );
}

#[tokio::test]
async fn an_approval_for_once_is_asked_again_and_a_no_is_remembered() {
    let desk = Arc::new(Desk::default());
    let fixture = Fixture::start(asking(&desk)).await;
    let say = async |answer| {
        desk.asked.notified().await;
        let (_, to) = desk.questions.lock().unwrap().pop().unwrap();
        to.send(answer).unwrap();
    };
    let mut client = fixture.send(connect("new.org")).await;
    say(said(Answer::Approve(Scope::Once))).await;
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200"));
    // That nobody came to it this time says nothing about the next.
    let mut client = fixture.send(connect("new.org")).await;
    say(Told {
        by_somebody: false,
        ..said(Answer::Deny("nobody answered".to_owned()))
    })
    .await;
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 403"));
    let mut client = fixture.send(connect("new.org")).await;
    say(said(Answer::Deny("not this one".to_owned()))).await;
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 403"));
    let refused = fixture.exchange(connect("new.org")).await;
    assert_eq!(json(&refused)["reason"], "not this one");
    // A changed policy is asked anew.
    fixture.handle.reload(gate(&[], &[], Unknown::Ask, Vec::new()));
    let mut client = fixture.send(connect("new.org")).await;
    say(said(Answer::Approve(Scope::Once))).await;
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 200"));
    fixture.finish().await;
}

#[tokio::test]
async fn a_question_without_an_answer_is_a_no() {
    let desk = Arc::new(Desk::default());
    let fixture = Fixture::start(Options {
        limits: Limits {
            ask_time: Duration::from_millis(20),
            questions: 1,
            ..Limits::default()
        },
        ..asking(&desk)
    })
    .await;
    let answer = fixture.exchange(connect("new.org")).await;
    assert_eq!(json(&answer)["reason"], "nobody answered within 0 s");
    assert!(
        desk.questions.lock().unwrap()[0].1.is_closed(),
        "the question is withdrawn"
    );
    fixture.finish().await;
}

#[tokio::test]
async fn a_question_goes_away_with_the_way_out_and_a_late_yes_opens_nothing() {
    let desk = Arc::new(Desk::default());
    let fixture = Fixture::start(asking(&desk)).await;
    let mut client = fixture.send(connect("new.org")).await;
    desk.asked.notified().await;
    let (events, seen) = fixture.finish().await;
    assert_eq!(client.read(&mut [0; 1]).await.unwrap_or(0), 0);
    let (_, answer) = desk.questions.lock().unwrap().pop().unwrap();
    assert!(answer.is_closed(), "nobody is asked any more");
    assert!(answer.send(said(Answer::Approve(Scope::Task))).is_err());
    assert_eq!(story(&events), ["ask: unknown"]);
    assert!(seen.resolved.lock().unwrap().is_empty() && seen.dialled.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_resolver_outside_is_a_host_like_any_other() {
    let fixture = Fixture::start(Options::default()).await;
    // DNS over TLS and over HTTPS, by name and by address.
    for place in [
        "dns.google:443",
        "dns.google:853",
        "cloudflare-dns.com:443",
        "1.1.1.1:443",
        "8.8.8.8:853",
        "9.9.9.9:53",
        "[2606:4700:4700::1111]:853",
    ] {
        let answer = fixture
            .exchange(format!("CONNECT {place} HTTP/1.1\r\nHost: {place}\r\n\r\n"))
            .await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{place}: {answer}");
    }
    let plain = fixture
        .exchange("GET http://1.1.1.1/dns-query?dns=AAABAAABAAAAAAAAA3d3dwdleGFtcGxlA2NvbQAAAQAB HTTP/1.1\r\nHost: 1.1.1.1\r\n\r\n")
        .await;
    assert!(plain.starts_with("HTTP/1.1 403 "), "{plain}");
    let (events, seen) = fixture.finish().await;
    assert_eq!(story(&events), ["deny: unknown"; 8]);
    assert!(seen.resolved.lock().unwrap().is_empty() && seen.dialled.lock().unwrap().is_empty());
}

#[tokio::test]
async fn too_many_open_questions_are_refused_unasked() {
    let desk = Arc::new(Desk::default());
    let fixture = Fixture::start(Options {
        limits: Limits {
            questions: 1,
            ..Limits::default()
        },
        ..asking(&desk)
    })
    .await;
    let waiting = fixture.send(connect("one.org")).await;
    desk.asked.notified().await;
    let answer = fixture.exchange(connect("two.org")).await;
    assert!(
        json(&answer)["reason"]
            .as_str()
            .unwrap()
            .contains("1 other hosts already wait"),
        "{answer}"
    );
    assert_eq!(desk.questions.lock().unwrap().len(), 1);
    drop(waiting);
    fixture.finish().await;
}

#[tokio::test]
async fn a_changed_policy_ends_the_tunnels_that_it_forbids() {
    let fixture = Fixture::start(Options::default()).await;
    let (mut kept, mut kept_server) = tunnel(&fixture, "kept.example.com", 443).await;
    let (mut gone, _gone_server) = tunnel(&fixture, "gone.example.com", 443).await;
    let _plain = fixture
        .send("GET http://gone.example.com/ HTTP/1.1\r\nHost: gone.example.com\r\n\r\n")
        .await;
    let (mut plain_server, _) = fixture.server.accept().await.unwrap();
    read_head(&mut plain_server).await;
    fixture.handle.reload(gate(
        &["*.example.com"],
        &["gone.example.com"],
        Unknown::Deny,
        Vec::new(),
    ));
    assert_eq!(gone.read(&mut [0; 1]).await.unwrap_or(0), 0);
    assert_eq!(plain_server.read(&mut [0; 1]).await.unwrap_or(0), 0);
    let hello = hello(&["kept.example.com"], 16_384);
    kept.write_all(&hello).await.unwrap();
    let mut received = vec![0; hello.len()];
    kept_server.read_exact(&mut received).await.unwrap();
    let (events, _) = fixture.finish().await;
    let denied = story(&events)
        .iter()
        .filter(|event| **event == "deny: network.deny gone.example.com")
        .count();
    assert_eq!(denied, 2, "{:?}", story(&events));
}

#[tokio::test]
async fn without_its_handle_the_way_out_is_closed() {
    let fixture = Fixture::start(Options::default()).await;
    let (mut client, mut server) = tunnel(&fixture, "www.example.com", 443).await;
    let mut idle = fixture.send("").await;
    let Fixture { handle, http, seen, .. } = fixture;
    drop(handle);
    for stream in [&mut client, &mut server, &mut idle] {
        assert_eq!(stream.read(&mut [0; 1]).await.unwrap_or(0), 0);
    }
    while tokio::net::TcpStream::connect(http).await.is_ok() {
        tokio::task::yield_now().await;
    }
    while seen.events.lock().unwrap().len() < 2 {
        tokio::task::yield_now().await;
    }
    assert_eq!(
        story(&seen.events.lock().unwrap())[1],
        "finished: the connection was cut off"
    );
}

#[tokio::test]
async fn connections_over_the_limit_are_told_so() {
    let fixture = Fixture::start(Options {
        limits: Limits {
            connections: 1,
            ..Limits::default()
        },
        ..Options::default()
    })
    .await;
    let (client, _server) = tunnel(&fixture, "www.example.com", 443).await;
    let answer = fixture.exchange("").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(json(&answer)["rule"], "limit");
    assert_eq!(story(&fixture.seen.events.lock().unwrap())[1], "deny: limit");
    drop(client);
    fixture.finish().await;
}

#[tokio::test]
async fn beside_a_thousand_idle_tunnels_there_is_an_answer() {
    let fixture = Fixture::start(Options::default()).await;
    let mut crowd = Vec::new();
    for _ in 0..1000 {
        crowd.push(tunnel(&fixture, "www.example.com", 80).await);
    }
    let refused = fixture.exchange(connect("denied.example.com")).await;
    assert!(refused.starts_with("HTTP/1.1 403"), "{refused}");
    for (client, server) in &mut crowd {
        server.write_all(b"x").await.unwrap();
        let mut byte = [0];
        client.read_exact(&mut byte).await.unwrap();
        assert_eq!(&byte, b"x");
    }
    let count = crowd.len();
    drop(crowd);
    let (events, _) = fixture.finish().await;
    let ended = events
        .iter()
        .filter(|event| matches!(event, Event::EgressFinished { .. }));
    assert_eq!(ended.count(), count, "each has its end in the record");
}

#[tokio::test]
async fn all_tasks_together_have_as_many_connections_as_the_process_can_hold() {
    let room = Room::new(1);
    let options = || Options {
        room: room.clone(),
        ..Options::default()
    };
    let (first, second) = (Fixture::start(options()).await, Fixture::start(options()).await);
    let (client, _server) = tunnel(&first, "www.example.com", 443).await;
    let answer = second.exchange("").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    assert_eq!(
        json(&answer)["reason"],
        "all tasks together have as many connections as belljar can hold"
    );
    drop(client);
    first.finish().await;
    let answer = second
        .exchange("GET http://denied.example.com/ HTTP/1.1\r\nHost: denied.example.com\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 403"), "its end made room: {answer}");
    second.finish().await;
}

#[tokio::test]
async fn heads_are_bounded_in_bytes_number_and_time() {
    let fixture = Fixture::start(Options {
        limits: Limits {
            header_bytes: 8192,
            headers: 10,
            header_time: Duration::from_millis(50),
            ..Limits::default()
        },
        ..Options::default()
    })
    .await;
    let head = "GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n";
    let long = fixture.exchange(format!("{head}X: {}\r\n\r\n", "a".repeat(9000))).await;
    assert!(long.starts_with("HTTP/1.1 431"), "{long}");
    let many: String = (0..20).map(|n| format!("X{n}: 1\r\n")).collect();
    let many = fixture.exchange(format!("{head}{many}\r\n")).await;
    assert!(many.starts_with("HTTP/1.1 431"), "{many}");
    let slow = fixture.exchange(head).await;
    assert!(slow.is_empty() || slow.starts_with("HTTP/1.1 4"), "{slow}");
    let silent = fixture.exchange("").await;
    assert_eq!(silent, "");
    let (_, seen) = fixture.finish().await;
    assert!(seen.dialled.lock().unwrap().is_empty());
}

#[tokio::test]
async fn a_half_sent_tls_hello_does_not_hold_the_tunnel() {
    let fixture = Fixture::start(Options {
        limits: Limits {
            header_time: Duration::from_millis(50),
            ..Limits::default()
        },
        ..Options::default()
    })
    .await;
    let (mut client, _server) = tunnel(&fixture, "www.example.com", 443).await;
    client.write_all(&[22, 3, 1]).await.unwrap();
    assert_eq!(client.read(&mut [0; 1]).await.unwrap_or(0), 0);
    let (events, _) = fixture.finish().await;
    assert_eq!(
        story(&events),
        [
            "allow: network.allow *.example.com",
            "deny: limit",
            "finished: the TLS hello took too long"
        ]
    );
}

#[tokio::test]
async fn an_idle_tunnel_ends() {
    let fixture = Fixture::start(Options {
        limits: Limits {
            idle_time: Duration::from_millis(50),
            ..Limits::default()
        },
        ..Options::default()
    })
    .await;
    let (mut client, _server) = tunnel(&fixture, "www.example.com", 443).await;
    assert_eq!(client.read(&mut [0; 1]).await.unwrap_or(0), 0);
    let (events, _) = fixture.finish().await;
    assert_eq!(story(&events)[1], "deny: idle");
}

#[tokio::test]
async fn a_body_over_the_limit_is_not_sent_on() {
    let fixture = Fixture::start(Options {
        limits: Limits {
            request_body: 10,
            ..Limits::default()
        },
        ..Options::default()
    })
    .await;
    let head = "POST http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n";
    let told = fixture
        .exchange(format!("{head}Content-Length: 11\r\n\r\n12345678901"))
        .await;
    assert!(told.starts_with("HTTP/1.1 413"), "{told}");
    let chunked = fixture
        .exchange(format!(
            "{head}Transfer-Encoding: chunked\r\n\r\n6\r\n123456\r\n6\r\n123456\r\n0\r\n\r\n"
        ))
        .await;
    assert!(chunked.starts_with("HTTP/1.1 502"), "{chunked}");
    let (events, _) = fixture.finish().await;
    let story = story(&events);
    assert_eq!(
        story.iter().filter(|event| event.contains("over the limit")).count(),
        2,
        "{story:?}"
    );
}

#[tokio::test]
async fn a_server_that_does_not_answer_is_given_up() {
    let fixture = Fixture::start(Options {
        limits: Limits {
            response_time: Duration::from_millis(50),
            ..Limits::default()
        },
        ..Options::default()
    })
    .await;
    let answer = fixture
        .exchange("GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n")
        .await;
    assert!(answer.starts_with("HTTP/1.1 504"), "{answer}");
    fixture.finish().await;
}

#[tokio::test]
async fn a_server_that_stops_within_its_answer_is_given_up() {
    let fixture = Fixture::start(Options {
        limits: Limits {
            idle_time: Duration::from_millis(50),
            ..Limits::default()
        },
        ..Options::default()
    })
    .await;
    let mut client = fixture
        .send("GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n\r\n")
        .await;
    let (mut server, _) = fixture.server.accept().await.unwrap();
    read_head(&mut server).await;
    server
        .write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 10\r\n\r\nhalf")
        .await
        .unwrap();
    let mut answer = Vec::new();
    // Cut off, or reset.
    let _ = client.read_to_end(&mut answer).await;
    assert!(answer.ends_with(b"\r\n\r\nhalf"), "{answer:?}");
    let (events, _) = fixture.finish().await;
    assert_eq!(story(&events)[1], "deny: idle");
}

#[tokio::test]
async fn a_place_that_cannot_be_reached_in_time_is_given_up() {
    let fixture = Fixture::start(Options {
        limits: Limits {
            dial_time: Duration::from_millis(50),
            ..Limits::default()
        },
        ..Options::default()
    })
    .await;
    let answer = fixture.exchange(connect("far.example.com")).await;
    assert!(answer.starts_with("HTTP/1.1 502"), "{answer}");
    let (events, _) = fixture.finish().await;
    assert_eq!(
        story(&events),
        [
            "allow: network.allow *.example.com",
            "finished: no connection within 0 s"
        ]
    );
}

/// Chunks are read and written anew, so that no extension of theirs (RFC 9112, 7.1.1) is read in another way behind us.
#[tokio::test]
async fn nothing_of_a_chunks_framing_reaches_a_server() {
    let fixture = Fixture::start(Options::default()).await;
    let head = "POST http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\nTransfer-Encoding: chunked\r\n\r\n";
    let mut client = fixture.send(format!("{head}5;a=\"b\"\r\nhello\r\n0;c\r\n\r\n")).await;
    let (mut server, _) = fixture.server.accept().await.unwrap();
    read_head(&mut server).await;
    let mut body = vec![0; "5\r\nhello\r\n0\r\n\r\n".len()];
    server.read_exact(&mut body).await.unwrap();
    assert_eq!(body, b"5\r\nhello\r\n0\r\n\r\n");
    server.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    assert!(read_head(&mut client).await.starts_with("HTTP/1.1 204"));
    for odd in [
        "5;\n0\r\nhello\r\n0\r\n\r\n",
        "0x5\r\nhello\r\n0\r\n\r\n",
        "+5\r\nhello\r\n0\r\n\r\n",
    ] {
        let answer = fixture.exchange(format!("{head}{odd}")).await;
        assert!(!answer.starts_with("HTTP/1.1 2"), "{odd:?}: {answer}");
    }
    fixture.finish().await;
}

#[tokio::test]
async fn a_server_that_switches_protocols_unasked_is_not_followed() {
    let fixture = Fixture::start(Options::default()).await;
    let mut client = fixture
        .send("GET http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\n")
        .await;
    let (mut server, _) = fixture.server.accept().await.unwrap();
    let head = read_head(&mut server).await.to_lowercase();
    assert!(!head.contains("upgrade"), "{head}");
    server
        .write_all(b"HTTP/1.1 101 Switching Protocols\r\nConnection: upgrade\r\nUpgrade: websocket\r\n\r\nraw")
        .await
        .unwrap();
    let mut answer = String::new();
    client.read_to_string(&mut answer).await.unwrap();
    assert!(
        answer.starts_with("HTTP/1.1 502") && !answer.contains("raw"),
        "{answer}"
    );
    fixture.finish().await;
}

#[tokio::test]
async fn a_flood_of_refusals_is_slowed_down_and_what_is_allowed_is_not() {
    let fixture = Fixture::start(Options {
        limits: Limits {
            refusals_at_once: 3,
            refusals_per_second: 1,
            ..Limits::default()
        },
        ..Options::default()
    })
    .await;
    for _ in 0..3 {
        assert!(fixture.exchange(connect("other.org")).await.starts_with("HTTP/1.1 403"));
    }
    let mut held = Vec::new();
    for _ in 0..60 {
        held.push(fixture.send(connect("other.org")).await);
    }
    let (client, server) = tunnel(&fixture, "www.example.com", 443).await;
    drop((client, server));
    let (events, _) = fixture.finish().await;
    let refused = story(&events).iter().filter(|event| **event == "deny: unknown").count();
    assert!((3..63).contains(&refused), "all of them would take a minute: {refused}");
}
