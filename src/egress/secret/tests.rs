use std::collections::BTreeMap;
use std::io::Write;
use std::path::Path;
use std::time::Duration;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http_body_util::{BodyExt, StreamBody};
use hyper::body::Frame;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use super::*;
use crate::audit::record::Event;
use crate::egress::testing::Options;
use crate::egress::tls::testing::{Answer, Got, HOST, Roots, World, good, request, request2, text, whole};
use crate::path::HostPath;
use crate::task::{HostRule, Methods, SecretSource};

const VALUE: &str = "ghp_aaaaBBBBccccDDDDeeeeFFFFgggg00001111";

/// What asks for a switch, and for frames that could not be looked through.
const WEBSOCKET: [(&str, &str); 4] = [
    ("connection", "Upgrade"),
    ("upgrade", "websocket"),
    ("sec-websocket-key", "eA=="),
    ("sec-websocket-extensions", "permessage-deflate"),
];

/// A secret in a file of its own.
struct Keep {
    folder: tempfile::TempDir,
    secrets: BTreeMap<String, Secret>,
}

impl Keep {
    fn new(place: SecretPlace) -> Self {
        let mut keep = Self {
            folder: tempfile::tempdir().unwrap(),
            secrets: BTreeMap::new(),
        };
        keep.add("TOKEN", VALUE, HOST, place);
        keep
    }

    fn add(&mut self, name: &str, value: &str, host: &str, place: SecretPlace) {
        let path = self.file(name);
        std::fs::write(&path, format!("{value}\n")).unwrap();
        let secret = Secret {
            source: SecretSource::File(HostPath::new(path).unwrap()),
            hosts: vec![host.to_owned()],
            place,
        };
        self.secrets.insert(name.to_owned(), secret);
    }

    fn file(&self, name: &str) -> std::path::PathBuf {
        Path::new(self.folder.path()).join(name)
    }

    fn secrets(&self) -> Secrets {
        Secrets::new(&self.secrets).unwrap()
    }

    /// A server that answers as the test says, behind a proxy with these secrets; with the placeholder of the first.
    async fn world(&self, answer: impl Fn(&Got) -> Answer + Clone + Send + Sync + 'static) -> (World, String) {
        let roots = Roots::new();
        let secrets = self.secrets();
        let placeholder = secrets.env()["TOKEN"].clone();
        let options = Options {
            inspection: Some(roots.inspection_with(secrets)),
            hosts: vec![HostRule {
                host: "other.example.com".to_owned(),
                ports: Vec::new(),
                methods: Methods::All,
                paths: vec!["/".to_owned()],
            }],
            ..Options::default()
        };
        let config = roots.server(good("*.example.com"), &["h2", "http/1.1"]);
        (World::with(&roots, config, options, answer).await, placeholder)
    }
}

/// Gives back all that it got.
fn mirror(got: &Got) -> Answer {
    let mut answer = Response::new(whole(format!(
        "{}\n{:?}\n{}",
        got.line,
        got.headers,
        String::from_utf8_lossy(&got.body)
    )));
    for (name, value) in &got.headers {
        if let Ok(name) = hyper::header::HeaderName::from_bytes(format!("x-{name}").as_bytes()) {
            answer.headers_mut().append(name, value.clone());
        }
    }
    answer
}

fn with(
    mut request: Request<http_body_util::combinators::UnsyncBoxBody<Bytes, hyper::Error>>,
    headers: &[(&'static str, &str)],
) -> Request<http_body_util::combinators::UnsyncBoxBody<Bytes, hyper::Error>> {
    for (name, value) in headers {
        request.headers_mut().append(*name, value.parse().unwrap());
    }
    request
}

fn used(events: &[Event]) -> Vec<String> {
    let told = events.iter().filter_map(|event| match event {
        Event::SecretUsed { name, host, place } => Some(format!("{name} {host} {place}")),
        _ => None,
    });
    told.collect()
}

fn refused(events: &[Event]) -> usize {
    let denied = |event: &&Event| matches!(event, Event::EgressJudged { decision, rule, .. } if decision == "deny" && rule == "secrets.TOKEN");
    events.iter().filter(denied).count()
}

async fn end(world: World) -> Vec<Event> {
    let (events, _) = world.fixture.finish().await;
    assert!(!format!("{events:?}").contains("BBBBcccc"), "{events:?}");
    events
}

#[tokio::test]
async fn the_value_stands_where_its_placeholder_stood_and_comes_back_masked() {
    let keep = Keep::new(SecretPlace::Placeholder);
    let (world, placeholder) = keep.world(mirror).await;
    assert!(placeholder.starts_with("ghp_") && placeholder.len() == VALUE.len() && placeholder != VALUE);
    let basic = format!("Basic {}", STANDARD.encode(format!("me:{placeholder}")));
    let (bearer, token) = (format!("Bearer {placeholder}"), format!("token {placeholder}"));
    let cases: [(&str, &'static str, &str, String); 5] = [
        ("/a", "authorization", &bearer, format!("Bearer {VALUE}")),
        ("/b", "authorization", &token, format!("token {VALUE}")),
        (
            "/c",
            "authorization",
            &basic,
            format!("Basic {}", STANDARD.encode(format!("me:{VALUE}"))),
        ),
        ("/d", "x-api-key", &placeholder, VALUE.to_owned()),
        ("/e", "accept", "*/*", "*/*".to_owned()),
    ];
    let mut client = world.http2().await;
    for (path, name, sent, expected) in &cases {
        let answer = client
            .send_request(with(request2("GET", path), &[(name, sent)]))
            .await
            .unwrap();
        let headers = format!("{:?}", answer.headers());
        let (status, body) = text(answer).await;
        assert_eq!(status, 200);
        assert_eq!(
            world.got.lock().unwrap().last().unwrap().headers[*name],
            expected.as_str()
        );
        let base64 = STANDARD.encode(format!("me:{VALUE}"));
        for shown in [&headers, &body] {
            assert!(!shown.contains(VALUE) && !shown.contains(&base64), "{shown}");
        }
        assert!(headers.contains(*sent) && body.contains(*sent), "{body}");
    }
    let mut plain = world.http1().await;
    let path = format!("/q?a=1&access_token={placeholder}&b=2");
    let (status, body) = text(plain.send_request(request("GET", &path)).await.unwrap()).await;
    assert_eq!(status, 200);
    assert_eq!(
        world.lines().last().unwrap(),
        &format!("GET /q?a=1&access_token={VALUE}&b=2 HTTP/1.1")
    );
    assert!(body.starts_with(&format!("GET {path} HTTP/1.1")), "{body}");
    drop((client, plain));
    let events = end(world).await;
    assert_eq!(
        used(&events),
        [
            "TOKEN api.example.com header authorization",
            "TOKEN api.example.com header authorization",
            "TOKEN api.example.com header authorization (basic)",
            "TOKEN api.example.com header x-api-key",
            "TOKEN api.example.com query access_token",
        ]
    );
}

#[tokio::test]
async fn a_named_place_gets_the_value_in_every_request() {
    let header = SecretPlace::Header {
        name: "x-key".to_owned(),
        before: "Key ".to_owned(),
        after: "!".to_owned(),
    };
    let basic = SecretPlace::Basic { user: "me".to_owned() };
    let query = SecretPlace::Query { name: "k".to_owned() };
    let expected_basic = format!("Basic {}", STANDARD.encode(format!("me:{VALUE}")));
    for (place, name, expected, line) in [
        (
            header,
            "x-key",
            format!("Key {VALUE}!"),
            "GET /?a=b HTTP/1.1".to_owned(),
        ),
        (basic, "authorization", expected_basic, "GET /?a=b HTTP/1.1".to_owned()),
        (query, "", String::new(), format!("GET /?a=b&k={VALUE} HTTP/1.1")),
    ] {
        let keep = Keep::new(place);
        let (world, _) = keep.world(mirror).await;
        let mut client = world.http1().await;
        let asked = with(
            request("GET", "/?a=b&k=mine"),
            &[("x-key", "mine"), ("authorization", "Bearer mine")],
        );
        let asked = if name.is_empty() {
            asked
        } else {
            with(
                request("GET", "/?a=b"),
                &[(if name == "x-key" { "x-key" } else { "authorization" }, "mine")],
            )
        };
        let (status, body) = text(client.send_request(asked).await.unwrap()).await;
        assert_eq!(status, 200);
        assert!(!body.contains(VALUE), "{body}");
        let got = world.got.lock().unwrap()[0].clone();
        assert_eq!(got.line, line);
        if !name.is_empty() {
            assert_eq!(
                got.headers.get_all(name).iter().collect::<Vec<_>>(),
                [expected.as_str()]
            );
        }
        drop(client);
        assert_eq!(used(&end(world).await).len(), 1);
    }
}

/// CVE-2026-105452: a credential of the client's beside the one that was put in.
#[tokio::test]
async fn no_other_credential_reaches_a_host_that_gets_a_secret() {
    let keep = Keep::new(SecretPlace::Placeholder);
    let (world, placeholder) = keep.world(mirror).await;
    let mut client = world.http1().await;
    let bearer = format!("Bearer {placeholder}");
    let headers = [
        ("authorization", bearer.as_str()),
        ("authorization", "Bearer attacker"),
        ("x-api-key", "attacker"),
        ("private-token", "attacker"),
        ("cookie", "session=attacker"),
        ("x-amz-security-token", "attacker"),
        ("accept-encoding", "br, zstd"),
        ("range", "bytes=0-3"),
        ("x-kept", "kept"),
    ];
    let path = "/?access_token=attacker&q=kept&Api_Key=attacker";
    assert_eq!(
        text(client.send_request(with(request("GET", path), &headers)).await.unwrap())
            .await
            .0,
        200
    );
    let got = world.got.lock().unwrap()[0].clone();
    assert!(!format!("{got:?}").contains("attacker"), "{got:?}");
    assert_eq!(got.line, "GET /?q=kept HTTP/1.1");
    assert_eq!(got.headers["x-kept"], "kept");
    assert_eq!(got.headers["accept-encoding"], "identity");
    assert!(!got.headers.contains_key("range"));
    drop(client);
    // Nor behind a body.
    let mut client = world.http2().await;
    let mut trailers = HeaderMap::new();
    for (name, value) in [("x-api-key", "attacker"), ("x-checksum", "kept")] {
        trailers.insert(name, value.parse().unwrap());
    }
    let frames = [Ok(Frame::data(Bytes::from("body"))), Ok(Frame::trailers(trailers))];
    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
    let asked = with(request2("POST", "/"), &[("te", "trailers")]).map(|_| body);
    assert_eq!(text(client.send_request(asked).await.unwrap()).await.0, 200);
    let got = world.got.lock().unwrap()[1].clone();
    assert_eq!(got.trailers["x-checksum"], "kept");
    assert!(!got.trailers.contains_key("x-api-key"), "{got:?}");
    drop(client);
    let events = end(world).await;
    let removed = events.iter().find_map(|event| match event {
        Event::EgressJudged { rule, reason, .. } if rule == "secrets" => Some(reason.clone()),
        _ => None,
    });
    let removed = removed.unwrap();
    for name in [
        "x-api-key",
        "private-token",
        "cookie",
        "query access_token",
        "query Api_Key",
    ] {
        assert!(removed.contains(name), "{removed}");
    }
}

#[tokio::test]
async fn a_placeholder_is_let_out_to_its_own_hosts_only() {
    let keep = Keep::new(SecretPlace::Placeholder);
    let (world, placeholder) = keep.world(mirror).await;
    let mut client = world.http2_to("other.example.com").await;
    let to = |path: &str| {
        Request::post(format!("https://other.example.com{path}"))
            .body(whole(""))
            .unwrap()
    };
    let encoded: String = placeholder.bytes().map(|byte| format!("%{byte:02x}")).collect();
    let basic = format!("Basic {}", STANDARD.encode(format!("{placeholder}:x")));
    let heads = [
        with(to("/"), &[("authorization", &format!("Bearer {placeholder}"))]),
        with(to("/"), &[("authorization", &basic)]),
        with(to("/"), &[("x-note", &format!("see {placeholder} here"))]),
        to(&format!("/{placeholder}")),
        to(&format!("/?q={placeholder}")),
        to(&format!("/?q={encoded}")),
        with(to("/"), &[("cookie", &format!("a=b; token={encoded}"))]),
        to(&format!("/?q={}", STANDARD.encode(format!("x{placeholder}")))),
        with(
            to("/"),
            &[(
                "x-note",
                &STANDARD.encode(format!("long text before {placeholder} and after")),
            )],
        ),
    ];
    let count = heads.len();
    for head in heads {
        let (status, body) = text(client.send_request(head).await.unwrap()).await;
        assert_eq!(status, 403, "{body}");
        assert!(body.contains("secrets.TOKEN"), "{body}");
    }
    let (one, two) = placeholder.split_at(9);
    let pieces = [format!("some text {one}"), format!("{two} and more")];
    let frames = pieces.map(|piece| Ok(Frame::data(Bytes::from(piece))));
    let body = StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync();
    let (status, _) = text(client.send_request(to("/").map(|_| body)).await.unwrap()).await;
    assert_eq!(status, 403);
    // Packed, behind more than is unpacked at once.
    let mut packed = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    packed.write_all(&vec![b'a'; 100_000]).unwrap();
    packed.write_all(placeholder.as_bytes()).unwrap();
    let body = whole(packed.finish().unwrap());
    let packed = with(to("/"), &[("content-encoding", "gzip")]).map(|_| body);
    assert_eq!(text(client.send_request(packed).await.unwrap()).await.0, 403);
    // In base64, and behind the body.
    let body = whole(format!(
        "{{\"auth\":\"{}\"}}",
        STANDARD.encode(format!("user:{placeholder}"))
    ));
    assert_eq!(
        text(client.send_request(to("/").map(|_| body)).await.unwrap()).await.0,
        403
    );
    let frames = || {
        let mut trailers = HeaderMap::new();
        trailers.insert("x-after", placeholder.parse().unwrap());
        let frames = [Ok(Frame::data(Bytes::from("body"))), Ok(Frame::trailers(trailers))];
        StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
    };
    assert_eq!(
        text(client.send_request(to("/").map(|_| frames())).await.unwrap())
            .await
            .0,
        403
    );
    let seen = world
        .got
        .lock()
        .unwrap()
        .iter()
        .map(|got| format!("{got:?}"))
        .collect::<String>();
    assert!(!seen.contains(&placeholder), "{seen}");
    // Its own host may have it anywhere, and gets the value where credentials stand alone.
    let mut own = world.http1().await;
    let asked = request("POST", "/").map(|_| whole(format!("note {placeholder}")));
    assert_eq!(text(own.send_request(asked).await.unwrap()).await.0, 200);
    assert!(
        world
            .got
            .lock()
            .unwrap()
            .last()
            .unwrap()
            .body
            .ends_with(placeholder.as_bytes())
    );
    drop((client, own));
    assert_eq!(refused(&end(world).await), count + 4);
}

/// What is packed in a way that is not unpacked here could hold any placeholder.
#[tokio::test]
async fn a_body_that_cannot_be_looked_through_is_not_let_out() {
    let keep = Keep::new(SecretPlace::Placeholder);
    let (world, _) = keep.world(mirror).await;
    let mut client = world.http2_to("other.example.com").await;
    let asked = |coding: &[&str], body: &'static str| {
        let mut request = Request::post("https://other.example.com/").body(whole(body)).unwrap();
        for coding in coding {
            request
                .headers_mut()
                .append("content-encoding", coding.parse().unwrap());
        }
        request
    };
    let packed: [&[&str]; 6] = [
        &["br"],
        &["zstd"],
        &["gzip, br"],
        &["gzip", "gzip"],
        &["aes128gcm"],
        &["x-unheard-of"],
    ];
    for coding in packed {
        let answer = client.send_request(asked(coding, "packed")).await.unwrap();
        assert_eq!(answer.headers()["x-belljar-decision"], "deny");
        let (status, body) = text(answer).await;
        assert_eq!(status, 403, "{coding:?}: {body}");
        let denial: serde_json::Value = serde_json::from_str(&body).unwrap();
        assert_eq!(denial["rule"], "secrets");
        let wanted = format!(
            "the body is packed in a way that cannot be looked through ({}); send it as it is, or packed with gzip or deflate",
            coding.join(", ")
        );
        assert_eq!(denial["reason"], wanted);
    }
    // A body that is not there hides nothing, and one that is not packed is looked through.
    for (coding, body) in [("br", ""), ("identity", "plain")] {
        let (status, body) = text(client.send_request(asked(&[coding], body)).await.unwrap()).await;
        assert_eq!(status, 200, "{coding}: {body}");
    }
    // In the open likewise.
    for headers in [
        "Content-Encoding: br\r\nContent-Length: 6\r\n\r\npacked",
        "Transfer-Encoding: gzip, chunked\r\n\r\n6\r\npacked\r\n0\r\n\r\n",
    ] {
        let request = format!("POST http://www.example.com/ HTTP/1.1\r\nHost: www.example.com\r\n{headers}");
        let answer = world.fixture.exchange(request).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
        assert!(answer.contains("cannot be looked through") || answer.contains("packed for its connection"));
    }
    assert_eq!(world.got.lock().unwrap().len(), 2);
    drop(client);
    let events = end(world).await;
    let denied = |event: &&Event| matches!(event, Event::EgressJudged { decision, rule, .. } if decision == "deny" && rule == "secrets");
    assert_eq!(events.iter().filter(denied).count(), packed.len() + 2);
}

/// What a client sends on a WebSocket is disguised by a key that stands before it.
#[tokio::test]
async fn a_placeholder_does_not_leave_by_a_websocket() {
    let keep = Keep::new(SecretPlace::Placeholder);
    let (world, placeholder) = keep.world(mirror).await;
    let stream = world.tls("other.example.com", &["http/1.1"]).await.unwrap();
    let (mut client, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(driver.with_upgrades());
    let mut asked = with(request("GET", "/"), &WEBSOCKET);
    asked.headers_mut().insert("host", "other.example.com".parse().unwrap());
    let switched = client.send_request(asked).await.unwrap();
    assert_eq!(switched.status(), 101);
    let mut socket = TokioIo::new(hyper::upgrade::on(switched).await.unwrap());
    let disguised = |text: &str| {
        let mut frame = vec![0x82, 0x80 | u8::try_from(text.len()).unwrap(), 1, 2, 3, 4];
        frame.extend(
            text.bytes()
                .zip([1, 2, 3, 4].into_iter().cycle())
                .map(|(byte, key)| byte ^ key),
        );
        frame
    };
    // The server gives back what it gets.
    let plain = disguised("a word");
    socket.write_all(&plain).await.unwrap();
    socket.flush().await.unwrap();
    let mut seen = vec![0; plain.len()];
    socket.read_exact(&mut seen).await.unwrap();
    assert_eq!(seen, plain);
    let _ = socket.write_all(&disguised(&placeholder)).await;
    let _ = socket.flush().await;
    let mut rest = Vec::new();
    let over = tokio::time::timeout(Duration::from_secs(20), socket.read_to_end(&mut rest)).await;
    assert!(over.is_ok(), "the connection goes on");
    assert_eq!(
        rest,
        Vec::<u8>::new(),
        "the connection is ended, and nothing of it came back"
    );
    assert_eq!(refused(&end(world).await), 1);
}

#[tokio::test]
async fn nothing_of_a_secret_goes_over_plain_http() {
    let keep = Keep::new(SecretPlace::Basic { user: "me".to_owned() });
    let (world, placeholder) = keep.world(mirror).await;
    for request in [
        format!("GET http://{HOST}/ HTTP/1.1\r\nHost: {HOST}\r\nAuthorization: Bearer {placeholder}\r\n\r\n"),
        format!("GET http://{HOST}/?token={placeholder} HTTP/1.1\r\nHost: {HOST}\r\n\r\n"),
    ] {
        let answer = world.fixture.exchange(request).await;
        assert!(answer.starts_with("HTTP/1.1 403 "), "{answer}");
    }
    let events = end(world).await;
    assert_eq!(refused(&events), 2);
    assert!(used(&events).is_empty());
}

#[tokio::test]
async fn what_comes_back_is_masked_over_chunks_and_within_gzip() {
    let pieces = |text: String| {
        let frames: Vec<_> = text
            .into_bytes()
            .chunks(3)
            .map(|piece| Ok(Frame::data(Bytes::copy_from_slice(piece))))
            .collect();
        StreamBody::new(futures_util::stream::iter(frames)).boxed_unsync()
    };
    let answer = move |got: &Got| {
        let body = format!("the value is {VALUE}, and so on");
        let mut answer = Response::new(pieces(body.clone()));
        let coding = got
            .line
            .split(' ')
            .nth(1)
            .unwrap()
            .rsplit('/')
            .next()
            .unwrap()
            .to_owned();
        if coding == "gzip" || coding == "cut" {
            let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
            packer.write_all(body.as_bytes()).unwrap();
            let mut packed = packer.finish().unwrap();
            if coding == "cut" {
                packed.truncate(packed.len() - 9);
            }
            answer = Response::new(whole(packed));
        }
        if coding != "plain" {
            let coding = if coding == "cut" { "gzip" } else { coding.as_str() };
            answer.headers_mut().insert("content-encoding", coding.parse().unwrap());
        }
        let elsewhere = format!("https://evil.example.org/?stolen={VALUE}");
        answer.headers_mut().insert("location", elsewhere.parse().unwrap());
        answer
    };
    let keep = Keep::new(SecretPlace::Placeholder);
    let (world, placeholder) = keep.world(answer).await;
    let mut client = world.http2().await;
    let headers = [("accept-encoding", "gzip, br")];
    for path in ["/plain", "/gzip"] {
        let answer = client
            .send_request(with(request2("GET", path), &headers))
            .await
            .unwrap();
        assert_eq!(
            answer.headers()["location"],
            format!("https://evil.example.org/?stolen={placeholder}")
        );
        assert!(!answer.headers().contains_key("content-encoding"));
        let (status, body) = text(answer).await;
        assert_eq!((status, body), (200, format!("the value is {placeholder}, and so on")));
    }
    assert_eq!(world.got.lock().unwrap()[0].headers["accept-encoding"], "gzip");
    for path in ["/br", "/zstd"] {
        let (status, body) = text(client.send_request(request2("GET", path)).await.unwrap()).await;
        assert_eq!(status, 502);
        assert!(
            body.contains("cannot be looked through") && !body.contains(VALUE),
            "{body}"
        );
    }
    // CVE-2026-101998: data and an error at once must not let the data through unseen.
    // The error may come before the head or after it.
    let mut seen = Vec::new();
    let failed = match client.send_request(request2("GET", "/cut")).await {
        Err(_) => true,
        Ok(cut) => {
            let mut body = cut.into_body();
            loop {
                match body.frame().await {
                    Some(Ok(frame)) => seen.extend_from_slice(frame.data_ref().unwrap()),
                    Some(Err(_)) => break true,
                    None => break false,
                }
            }
        }
    };
    assert!(failed && !contains(&seen, VALUE.as_bytes()));
    drop(client);
    end(world).await;
}

#[tokio::test]
async fn a_changed_value_counts_at_once_and_one_that_is_gone_stops_requests() {
    let keep = Keep::new(SecretPlace::Placeholder);
    let (world, placeholder) = keep.world(mirror).await;
    let mut client = world.http2().await;
    let bearer = format!("Bearer {placeholder}");
    let mut ask = async || {
        text(
            client
                .send_request(with(request2("GET", "/"), &[("authorization", &bearer)]))
                .await
                .unwrap(),
        )
        .await
    };
    assert_eq!(ask().await.0, 200);
    std::fs::write(keep.file("TOKEN"), "another value, which is longer").unwrap_or_default();
    assert_eq!(ask().await.0, 503, "a value with spaces is no value");
    std::fs::write(keep.file("TOKEN"), "another-value").unwrap();
    let (status, body) = ask().await;
    assert_eq!(status, 200);
    assert!(!body.contains("another-value"), "{body}");
    assert_eq!(
        world.got.lock().unwrap().last().unwrap().headers["authorization"],
        "Bearer another-value"
    );
    std::fs::remove_file(keep.file("TOKEN")).unwrap();
    let (status, body) = ask().await;
    assert_eq!(status, 503);
    assert!(
        body.contains("secrets.TOKEN") && !body.contains("another-value"),
        "{body}"
    );
    assert_eq!(world.lines().len(), 2);
    drop(client);
    let events = end(world).await;
    assert_eq!(refused(&events), 2);
}

#[tokio::test]
async fn a_websocket_comes_back_masked() {
    let keep = Keep::new(SecretPlace::Placeholder);
    let (world, placeholder) = keep.world(mirror).await;
    let mut client = world.http1().await;
    let switched = client
        .send_request(with(request("GET", "/"), &WEBSOCKET))
        .await
        .unwrap();
    assert_eq!(switched.status(), 101);
    let mut socket = TokioIo::new(hyper::upgrade::on(switched).await.unwrap());
    // The server gives back what it gets.
    let (first, second) = VALUE.split_at(15);
    // A message in two frames, as a server may send it, with another one between that says where to go on.
    let frame = |head: u8, text: &str| [&[head, u8::try_from(text.len()).unwrap()], text.as_bytes()].concat();
    let sent = [frame(0x01, first), frame(0x89, VALUE), frame(0x80, second)].concat();
    socket.write_all(&sent).await.unwrap();
    socket.flush().await.unwrap();
    let wanted = [frame(0x89, &placeholder), frame(0x81, &placeholder)].concat();
    let mut seen = vec![0; wanted.len()];
    socket.read_exact(&mut seen).await.unwrap();
    assert_eq!(seen, wanted);
    drop(socket);
    end(world).await;
}

#[tokio::test]
async fn tokens_are_bought_kept_and_bought_anew() {
    let mut keep = Keep::new(SecretPlace::Oauth {
        token_url: "https://login.example.com/token".to_owned(),
        client_id: "the client".to_owned(),
        scope: Some("read write".to_owned()),
    });
    keep.add(
        "OTHER",
        "another secret".replace(' ', "-").as_str(),
        "unused.example.com",
        SecretPlace::Placeholder,
    );
    let count = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let bought = count.clone();
    let (world, _) = keep
        .world(move |got| {
            if got.line.contains("/token") {
                let n = bought.fetch_add(1, std::sync::atomic::Ordering::SeqCst);
                let token = format!(r#"{{"access_token":"access-token-{n}","token_type":"Bearer","expires_in":3600}}"#);
                return Response::new(whole(token));
            }
            let mut answer = mirror(got);
            if got.line.contains("/revoked") {
                *answer.status_mut() = hyper::StatusCode::UNAUTHORIZED;
            }
            answer
        })
        .await;
    let mut client = world.http2().await;
    let mut ask = async |path: &str| text(client.send_request(request2("GET", path)).await.unwrap()).await;
    for (path, status) in [("/a", 200), ("/b", 200), ("/revoked", 401), ("/c", 200)] {
        let (got, body) = ask(path).await;
        assert_eq!(got, status, "{body}");
        assert!(!body.contains("access-token-"), "{body}");
    }
    let got = world.got.lock().unwrap().clone();
    let sent: Vec<&str> = got
        .iter()
        .filter(|got| !got.line.contains("/token"))
        .map(|got| got.headers["authorization"].to_str().unwrap())
        .collect();
    assert_eq!(
        sent,
        [
            "Bearer access-token-0",
            "Bearer access-token-0",
            "Bearer access-token-0",
            "Bearer access-token-1"
        ]
    );
    let asked = got.iter().find(|got| got.line.contains("/token")).unwrap();
    assert_eq!(asked.body, "grant_type=client_credentials&scope=read%20write");
    let pair = STANDARD.encode(format!("the%20client:{VALUE}"));
    assert_eq!(asked.headers["authorization"], format!("Basic {pair}"));
    assert_eq!(count.load(std::sync::atomic::Ordering::SeqCst), 2);
    drop(client);
    end(world).await;
}

#[tokio::test]
async fn a_request_to_aws_is_signed_with_the_key() {
    let keep = Keep::new(SecretPlace::Aws {
        access_key_id: "AKIDEXAMPLE000000000".to_owned(),
        session: None,
    });
    assert_eq!(keep.secrets().env()["AWS_ACCESS_KEY_ID"], "AKIDEXAMPLE000000000");
    let (world, _) = keep.world(mirror).await;
    let mut client = world.http1().await;
    let signed = "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE000000000/20150830/us-east-1/service/aws4_request, SignedHeaders=host;x-amz-date, Signature=00";
    let headers = [
        ("authorization", signed),
        ("x-amz-date", "20150830T123600Z"),
        ("x-api-key", "attacker"),
    ];
    let asked = with(request("POST", "/"), &headers).map(|_| whole("the body"));
    let (status, _) = text(client.send_request(asked).await.unwrap()).await;
    assert_eq!(status, 200);
    let got = world.got.lock().unwrap()[0].clone();
    let sent = got.headers["authorization"].to_str().unwrap().to_owned();
    let (scope, signature) = sent.rsplit_once("Signature=").unwrap();
    assert!(
        signed.starts_with(scope) && signature.len() == 64 && !got.headers.contains_key("x-api-key"),
        "{sent}"
    );
    assert_eq!(
        (got.body.as_ref(), got.headers["x-amz-date"].as_bytes()),
        (&b"the body"[..], &b"20150830T123600Z"[..])
    );
    client.ready().await.unwrap();
    let other = signed.replace("AKIDEXAMPLE000000000", "AKIDATTACKER00000000");
    let asked = with(
        request("POST", "/"),
        &[("authorization", other.as_str()), ("x-amz-date", "20150830T123600Z")],
    );
    assert_eq!(text(client.send_request(asked).await.unwrap()).await.0, 503);
    drop(client);
    end(world).await;
}

#[test]
fn a_value_that_cannot_be_told_from_other_text_is_none() {
    let mut keep = Keep::new(SecretPlace::Placeholder);
    for value in ["x7", "with a space in it", "with-\u{e9}-in-it"] {
        keep.add("TOKEN", value, HOST, SecretPlace::Placeholder);
        let error = Secrets::new(&keep.secrets).unwrap_err().to_string();
        assert!(
            error.starts_with("the secret TOKEN: its value") && !error.contains(value),
            "{error}"
        );
    }
    std::fs::remove_file(keep.file("TOKEN")).unwrap();
    assert_eq!(
        Secrets::new(&keep.secrets).unwrap_err().to_string(),
        "the secret TOKEN has no value"
    );
}
