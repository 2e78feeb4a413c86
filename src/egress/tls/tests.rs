use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::{HeaderMap, Request, Response};
use hyper_util::rt::TokioIo;
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject;
use serde_json::Value;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::task::JoinSet;

use super::testing::{HOST, Leaf, Roots, World, connect, good, read_only, request, request2, text, whole};
use crate::audit::record::Event;
use crate::egress::limits::Limits;
use crate::egress::testing::Options;
use crate::task::{HostRule, Methods};

fn options() -> Options<'static> {
    Options {
        hosts: vec![read_only(HOST, &["/v1/"])],
        ..Options::default()
    }
}

/// `decision method path` of each judged request.
fn requests(events: &[Event]) -> Vec<String> {
    let told = events.iter().filter_map(|event| match event {
        Event::EgressJudged {
            decision,
            method,
            path: Some(path),
            ..
        } => Some(format!("{decision} {} {path}", method.as_deref().unwrap_or("-"))),
        _ => None,
    });
    told.collect()
}

fn error_of_end(events: &[Event]) -> Option<String> {
    events.iter().find_map(|event| match event {
        Event::EgressFinished { error, .. } => error.clone(),
        _ => None,
    })
}

#[tokio::test]
async fn each_request_within_tls_is_judged_and_recorded_over_http1() {
    let world = World::start(&["http/1.1"], options()).await;
    let mut client = world.http1().await;
    let (status, body) = text(client.send_request(request("GET", "/v1/a?key=hidden")).await.unwrap()).await;
    assert_eq!((status, body.as_str()), (200, "GET /v1/a?key=hidden HTTP/1.1"));
    assert_eq!(world.got.lock().unwrap()[0].headers["host"], HOST);
    client.ready().await.unwrap();
    let (status, body) = text(client.send_request(request("POST", "/v1/a")).await.unwrap()).await;
    let denial: Value = serde_json::from_str(&body).unwrap();
    assert_eq!(status, 403);
    assert_eq!(denial["rule"], "network.hosts api.example.com");
    assert_eq!(denial["reason"], "POST is not among the methods that are allowed here");
    assert_eq!(
        world.lines(),
        ["GET /v1/a?key=hidden HTTP/1.1"],
        "the server saw nothing of the other"
    );
    drop(client);
    let (events, _) = world.fixture.finish().await;
    assert_eq!(requests(&events), ["allow GET /v1/a", "deny POST /v1/a"]);
    assert!(!format!("{events:?}").contains("hidden"));
}

#[tokio::test]
async fn each_request_within_tls_is_judged_and_recorded_over_http2() {
    let world = World::start(&["h2", "http/1.1"], options()).await;
    let mut client = world.http2().await;
    let (status, body) = text(client.send_request(request2("GET", "/v1/a")).await.unwrap()).await;
    assert_eq!(
        (status, body.as_str()),
        (200, "GET https://api.example.com/v1/a HTTP/2.0")
    );
    for path in ["/v2/a", "/v1/%2e%2e/v2", "/v1//a", "/v1/%2fa", "/v1/a;b", "/v1/..;/a"] {
        let (status, _) = text(client.send_request(request2("GET", path)).await.unwrap()).await;
        assert_eq!(status, 403, "{path}");
    }
    assert_eq!(world.lines().len(), 1);
    drop(client);
    let (events, _) = world.fixture.finish().await;
    assert_eq!(requests(&events)[..2], ["allow GET /v1/a", "deny GET /v2/a"]);
}

#[tokio::test]
async fn the_protocol_is_the_one_that_the_server_chose() {
    let world = World::start(&["http/1.1"], options()).await;
    let stream = world.tls(HOST, &["h2", "http/1.1"]).await.unwrap();
    assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"http/1.1"[..]));
    let mut client = world.http2_to(HOST).await;
    let (status, body) = text(client.send_request(request2("GET", "/v1/a")).await.unwrap()).await;
    assert_eq!(status, 502, "nothing that both speak, and that is told");
    assert!(body.contains("no TLS with the server"), "{body}");
    drop(client);
    world.fixture.finish().await;
}

#[tokio::test]
async fn many_requests_share_one_connection() {
    let world = World::start(&["h2"], options()).await;
    let client = world.http2().await;
    let mut requests = JoinSet::new();
    for n in 0..60 {
        let mut client = client.clone();
        requests.spawn(async move {
            let path = format!("/v1/{n}");
            let (status, body) = text(client.send_request(request2("GET", &path)).await.unwrap()).await;
            assert_eq!((status, body), (200, format!("GET https://{HOST}{path} HTTP/2.0")));
        });
    }
    while let Some(done) = requests.join_next().await {
        done.unwrap();
    }
    assert_eq!(world.fixture.seen.dialled.lock().unwrap().len(), 1);
    drop(client);
    world.fixture.finish().await;
}

#[tokio::test]
async fn a_request_for_another_host_is_misdirected() {
    let world = World::start(&["h2", "http/1.1"], options()).await;
    let mut client = world.http2().await;
    for uri in [
        "https://other.example.com/v1/a",
        "https://api.example.com:8443/v1/a",
        "http://api.example.com/v1/a",
    ] {
        let request = Request::get(uri).body(whole("")).unwrap();
        let (status, body) = text(client.send_request(request).await.unwrap()).await;
        assert_eq!(status, 421, "{uri}: {body}");
    }
    let mut fronted = request2("GET", "/v1/a");
    fronted
        .headers_mut()
        .insert("host", "denied.example.com".parse().unwrap());
    assert_eq!(text(client.send_request(fronted).await.unwrap()).await.0, 421);
    for head in [
        "GET /v1/a HTTP/1.1\r\nHost: denied.example.com\r\n\r\n",
        "GET /v1/a HTTP/1.1\r\nHost: api.example.com\r\nHost: api.example.com\r\n\r\n",
        "GET /v1/a HTTP/1.1\r\nHost: api.example.com@denied.example.com\r\n\r\n",
        "GET https://denied.example.com/v1/a HTTP/1.1\r\nHost: api.example.com\r\n\r\n",
        "CONNECT denied.example.com:443 HTTP/1.1\r\nHost: denied.example.com:443\r\n\r\n",
        "GET /v1/a HTTP/1.0\r\n\r\n",
    ] {
        let answer = world.raw(head).await;
        assert!(
            answer.starts_with("HTTP/1.1 421 ") || answer.starts_with("HTTP/1.0 421 "),
            "{head}: {answer}"
        );
        assert_eq!(answer.matches("HTTP/1.").count(), 1);
    }
    assert!(world.lines().is_empty());
    drop(client);
    let (events, _) = world.fixture.finish().await;
    let denied = |event: &&Event| matches!(event, Event::EgressJudged { rule, decision, .. } if rule == "authority" && decision == "deny");
    assert_eq!(events.iter().filter(denied).count(), 10);
}

#[tokio::test]
async fn nothing_is_hidden_behind_a_request() {
    let world = World::start(&["http/1.1"], options()).await;
    let hidden = "DELETE /v1/a HTTP/1.1\r\nHost: api.example.com\r\n\r\n";
    for framing in [
        "Content-Length: 4\r\nTransfer-Encoding: chunked",
        "Transfer-Encoding: chunked\r\nContent-Length: 4",
        "Transfer-Encoding: xchunked",
        "Transfer-Encoding: chunked, identity",
        "Content-Length: 4\r\nContent-Length: 5",
        "Content-Length: +4",
    ] {
        let request = format!("OPTIONS /v1/a HTTP/1.1\r\nHost: api.example.com\r\n{framing}\r\n\r\n0\r\n\r\n{hidden}");
        world.raw(request).await;
    }
    let refused = format!("POST /v1/a HTTP/1.1\r\nHost: api.example.com\r\nContent-Length: 3\r\n\r\nabc{hidden}");
    let answer = world.raw(refused).await;
    assert_eq!(answer.matches("HTTP/1.1 ").count(), 1, "{answer}");
    assert!(
        world.lines().iter().all(|line| line.starts_with("OPTIONS")),
        "{:?}",
        world.lines()
    );
    world.fixture.finish().await;
}

#[tokio::test]
async fn a_server_whose_certificate_is_wrong_gets_nothing() {
    let (trusted, strange) = (Roots::new(), Roots::new());
    let expired = Leaf {
        name: HOST,
        expired: true,
    };
    let servers = [
        (strange.server(good(HOST), &["http/1.1"]), "UnknownIssuer"),
        (
            trusted.server(good("other.example.com"), &["http/1.1"]),
            "not valid for name",
        ),
        (trusted.server(expired, &["http/1.1"]), "expired"),
    ];
    for (config, expected) in servers {
        let options = Options {
            inspection: Some(trusted.inspection()),
            ..options()
        };
        let world = World::with(&trusted, config, options, |_| Response::new(whole("reached"))).await;
        let mut client = world.http1().await;
        let (status, body) = text(client.send_request(request("GET", "/v1/a")).await.unwrap()).await;
        assert_eq!(status, 502);
        assert!(body.contains(expected), "{expected}: {body}");
        assert!(world.lines().is_empty());
        drop(client);
        let (events, _) = world.fixture.finish().await;
        assert!(error_of_end(&events).unwrap().contains(expected));
    }
}

#[tokio::test]
async fn a_host_that_needs_no_look_into_is_not_looked_into() {
    let roots = Roots::new();
    let config = roots.server(good("www.example.com"), &["http/1.1"]);
    let world = World::with(&roots, config, options(), |_| Response::new(whole("reached"))).await;
    let pem = std::fs::read(roots.file.path()).unwrap();
    let mut own = RootCertStore::empty();
    own.add(CertificateDer::from_pem_slice(&pem).unwrap()).unwrap();
    let stream = connect(&world.fixture, "www.example.com", own.clone(), &["http/1.1"]).await;
    assert!(stream.is_ok(), "the certificate is the server's own");
    assert!(
        connect(&world.fixture, HOST, own, &["http/1.1"]).await.is_err(),
        "this one's is the task's"
    );
    world.fixture.finish().await;
}

#[tokio::test]
async fn a_connection_that_is_looked_into_must_be_tls_for_its_host() {
    let world = World::start(
        &["http/1.1"],
        Options {
            hosts: vec![HostRule {
                ports: vec![8080],
                ..read_only(HOST, &[])
            }],
            ..Options::default()
        },
    )
    .await;
    let request = format!("CONNECT {HOST}:8080 HTTP/1.1\r\nHost: {HOST}:8080\r\n\r\n");
    for sent in [
        b"DELETE / HTTP/1.1\r\nHost: api.example.com\r\n\r\n".to_vec(),
        crate::egress::front::hello::tests::hello(&["denied.example.com"], 16_384),
    ] {
        let mut stream = world.fixture.send(&request).await;
        crate::egress::testing::read_head(&mut stream).await;
        stream.write_all(&sent).await.unwrap();
        let mut left = Vec::new();
        let _ = stream.read_to_end(&mut left).await;
        assert!(left.is_empty(), "{left:?}");
    }
    assert!(world.lines().is_empty());
    world.fixture.finish().await;
}

#[tokio::test]
async fn a_websocket_is_carried_once_its_request_was_judged() {
    let world = World::start(&["http/1.1"], options()).await;
    let ask = |path: &str| {
        let mut request = request("GET", path);
        for (name, value) in [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "eA=="),
        ] {
            request.headers_mut().insert(name, value.parse().unwrap());
        }
        request
    };
    let mut client = world.http1().await;
    let refused = client.send_request(ask("/v2/socket")).await.unwrap();
    assert_eq!(refused.status(), 403);
    let mut client = world.http1().await;
    let switched = client.send_request(ask("/v1/socket")).await.unwrap();
    assert_eq!(switched.status(), 101);
    let mut socket = TokioIo::new(hyper::upgrade::on(switched).await.unwrap());
    for round in 0..3u8 {
        let frame = vec![round; 100_000];
        let mut echo = vec![0; frame.len()];
        socket.write_all(&frame).await.unwrap();
        socket.flush().await.unwrap();
        socket.read_exact(&mut echo).await.unwrap();
        assert_eq!(echo, frame);
    }
    drop(socket);
    let (events, _) = world.fixture.finish().await;
    assert_eq!(requests(&events), ["deny GET /v2/socket", "allow GET /v1/socket"]);
}

#[tokio::test]
async fn bodies_are_streams_both_ways_and_counted() {
    for alpn in ["http/1.1", "h2"] {
        let world = World::start(
            &[alpn],
            Options {
                hosts: vec![HostRule {
                    methods: Methods::Only(vec!["POST".to_owned()]),
                    ..read_only(HOST, &[])
                }],
                ..Options::default()
            },
        )
        .await;
        // Each piece waits for the echo of the one before: nothing on the way may wait for the whole.
        let (send, receive) = tokio::sync::mpsc::channel::<Bytes>(1);
        let stream = futures_util::stream::unfold(receive, |mut receive| async {
            let piece = receive.recv().await?;
            Some((Ok::<_, hyper::Error>(Frame::data(piece)), receive))
        });
        let body = StreamBody::new(stream).boxed_unsync();
        let (mut one, mut two) = (None, None);
        match alpn {
            "h2" => two = Some(world.http2().await),
            _ => one = Some(world.http1().await),
        }
        let uri = if two.is_some() {
            format!("https://{HOST}/stream")
        } else {
            "/stream".to_owned()
        };
        let mut asked = Request::post(uri);
        if one.is_some() {
            asked = asked.header("host", HOST);
        }
        let asked = asked.body(body).unwrap();
        let answer = async {
            match (&mut one, &mut two) {
                (Some(client), _) => client.send_request(asked).await,
                (_, Some(client)) => client.send_request(asked).await,
                _ => panic!("one of them is there"),
            }
        };
        let first = async { send.send(Bytes::from(vec![0; 50_000])).await.unwrap() };
        let (answer, ()) = tokio::join!(answer, first);
        let mut answer = answer.unwrap().into_body();
        let mut received = 0;
        for round in 1..=20usize {
            while received < round * 50_000 {
                received += answer.frame().await.unwrap().unwrap().into_data().unwrap().len();
            }
            if round < 20 {
                send.send(Bytes::from(vec![0; 50_000])).await.unwrap();
            }
        }
        drop(send);
        assert!(
            answer
                .frame()
                .await
                .is_none_or(|frame| frame.unwrap().data_ref().is_none_or(Bytes::is_empty))
        );
        drop((one, two, answer));
        let (events, _) = world.fixture.finish().await;
        let counted = events.iter().find_map(|event| match event {
            Event::EgressFinished {
                bytes_sent,
                bytes_received,
                ..
            } => Some((*bytes_sent, *bytes_received)),
            _ => None,
        });
        assert_eq!(counted, Some((1_000_000, 1_000_000)), "{alpn}");
    }
}

/// Over QUIC there is no way out, and another port is another destination.
#[tokio::test]
async fn an_offer_to_come_back_another_way_is_not_passed_on() {
    let roots = Roots::new();
    let config = roots.server(good(HOST), &["h2"]);
    let world = World::with(&roots, config, options(), |_| {
        let mut answer = Response::new(whole("body"));
        let offer = "h3=\":443\"; ma=86400, h2=\"evil.example.org:443\"";
        answer.headers_mut().insert("alt-svc", offer.parse().unwrap());
        answer
    })
    .await;
    let mut client = world.http2().await;
    let answer = client.send_request(request2("GET", "/v1/a")).await.unwrap();
    assert!(!answer.headers().contains_key("alt-svc"), "{answer:?}");
    drop((client, answer));
    world.fixture.finish().await;
}

#[tokio::test]
async fn trailers_come_through() {
    let roots = Roots::new();
    let config = roots.server(good(HOST), &["h2"]);
    let world = World::with(&roots, config, options(), |_| {
        let mut trailers = HeaderMap::new();
        trailers.insert("grpc-status", "0".parse().unwrap());
        let frames = [Ok(Frame::data(Bytes::from("body"))), Ok(Frame::trailers(trailers))];
        Response::new(StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync())
    })
    .await;
    let mut client = world.http2().await;
    let answer = client.send_request(request2("GET", "/v1/a")).await.unwrap();
    let collected = answer.into_body().collect().await.unwrap();
    assert_eq!(collected.trailers().unwrap()["grpc-status"], "0");
    drop(client);
    world.fixture.finish().await;
}

#[tokio::test]
async fn limits_hold_within_tls() {
    let small = Limits {
        header_bytes: 8192,
        headers: 20,
        request_body: 10,
        ..Limits::default()
    };
    let options = Options {
        limits: small,
        hosts: vec![HostRule {
            methods: Methods::All,
            ..read_only(HOST, &["/"])
        }],
        ..Options::default()
    };
    let world = World::start(&["h2", "http/1.1"], options).await;
    let huge = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\nX: {}\r\n\r\n", "a".repeat(20_000));
    assert!(world.raw(huge).await.starts_with("HTTP/1.1 431 "));
    let many = format!("GET / HTTP/1.1\r\nHost: {HOST}\r\n{}\r\n", "X: a\r\n".repeat(40));
    assert!(world.raw(many).await.starts_with("HTTP/1.1 431 "));
    let body = format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nContent-Length: 11\r\n\r\nabcdefghijk");
    assert!(world.raw(body).await.starts_with("HTTP/1.1 413 "));
    let chunked =
        format!("POST / HTTP/1.1\r\nHost: {HOST}\r\nTransfer-Encoding: chunked\r\n\r\nb\r\nabcdefghijk\r\n0\r\n\r\n");
    assert!(world.raw(chunked).await.starts_with("HTTP/1.1 502 "));
    let mut client = world.http2().await;
    let mut huge = request2("GET", "/");
    huge.headers_mut().insert("x", "a".repeat(20_000).parse().unwrap());
    let refused = client.send_request(huge).await;
    assert!(refused.is_err() || refused.is_ok_and(|answer| answer.status() == 431));
    assert!(
        world.lines().iter().all(|line| line.starts_with("POST")),
        "{:?}",
        world.lines()
    );
    assert!(world.got.lock().unwrap().iter().all(|got| got.body.is_empty()));
    drop(client);
    world.fixture.finish().await;
}

#[tokio::test]
async fn a_server_with_headers_without_end_is_given_up() {
    let roots = Roots::new();
    let config = roots.server(good(HOST), &["http/1.1"]);
    let world = World::with(&roots, config, options(), |_| {
        let mut answer = Response::new(whole("x"));
        let huge = "a".repeat(30_000).parse().unwrap();
        for name in ["a", "b", "c", "d"] {
            answer.headers_mut().insert(name, Clone::clone(&huge));
        }
        answer
    })
    .await;
    let mut client = world.http1().await;
    assert_eq!(
        text(client.send_request(request("GET", "/v1/a")).await.unwrap())
            .await
            .0,
        502
    );
    drop(client);
    world.fixture.finish().await;
}

#[tokio::test]
async fn a_changed_policy_holds_for_the_next_request_and_ends_what_it_forbids() {
    let world = World::start(&["http/1.1"], options()).await;
    let mut client = world.http1().await;
    assert_eq!(
        text(client.send_request(request("GET", "/v1/a")).await.unwrap())
            .await
            .0,
        200
    );
    let gate = crate::egress::testing::gate(&[], &[], crate::task::Unknown::Deny, Vec::new());
    world.fixture.handle.reload(gate);
    // Either the connection is gone before the request or with it.
    let ready = client.ready().await;
    assert!(ready.is_err() || client.send_request(request("GET", "/v1/a")).await.is_err());
    assert_eq!(world.lines().len(), 1);
    world.fixture.finish().await;
}

#[tokio::test]
async fn plain_requests_are_held_to_the_same_rules() {
    let world = World::start(&["http/1.1"], options()).await;
    for (method, path) in [("POST", "/v1/a"), ("GET", "/v2"), ("GET", "/v1/%2e%2e/v2")] {
        let request = format!("{method} http://{HOST}{path} HTTP/1.1\r\nHost: {HOST}\r\n\r\n");
        let answer = world.fixture.exchange(request).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    }
    let (events, seen) = world.fixture.finish().await;
    assert_eq!(
        requests(&events),
        ["deny POST /v1/a", "deny GET /v2", "deny GET /v1/%2e%2e/v2"]
    );
    assert!(seen.dialled.lock().unwrap().is_empty());
}
