use std::sync::Arc;

use tokio::io::AsyncWriteExt;
use tokio::net::TcpListener;

use super::fetch::{FetchError, Fetcher};
use super::*;
use crate::audit::record::Event;
use crate::egress::testing::{Options, read_head};
use crate::egress::tls::testing::{HOST, World, request, request2, text};
use crate::task::NetworkMode;

fn put(store: &Store, url: &str, body: &str) -> Stored {
    let headers = vec![("content-type".to_owned(), "text/plain".to_owned())];
    store
        .put(&Url::parse(url).unwrap(), 200, headers, &mut body.as_bytes())
        .unwrap()
}

#[test]
fn an_answer_is_found_by_its_url_however_it_is_spelled() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::new(state.path(), Vec::new());
    let stored = put(&store, "https://WWW.Example.com:443/a?b=c#d", "hello");
    assert_eq!(stored.url, "https://www.example.com/a?b=c");
    let (found, mut body) = store
        .find(&Url::parse("https://www.example.com/a?b=c").unwrap())
        .unwrap()
        .unwrap();
    let mut text = String::new();
    body.read_to_string(&mut text).unwrap();
    assert_eq!((found, text.as_str()), (stored, "hello"));
    for other in [
        "http://www.example.com/a?b=c",
        "https://www.example.com/a",
        "https://www.example.com:8443/a?b=c",
    ] {
        assert!(store.find(&Url::parse(other).unwrap()).unwrap().is_none(), "{other}");
    }
    for wrong in [
        "ftp://a.example.com/",
        "https:///x",
        "https://user@a.example.com/",
        "https://0x7f.1/",
        "a.example.com",
    ] {
        assert!(Url::parse(wrong).is_err(), "{wrong}");
    }
}

#[test]
fn a_store_of_the_admins_is_read_and_not_written() {
    let (state, admin) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    put(
        &Store::new(admin.path(), Vec::new()),
        "https://a.example.com/",
        "theirs",
    );
    let store = Store::new(state.path(), vec![admin.path().join("cache")]);
    let url = Url::parse("https://a.example.com").unwrap();
    assert_eq!(store.find(&url).unwrap().unwrap().0.bytes, 6);
    assert!(!store.remove(&url).unwrap());
    assert_eq!(store.list().unwrap().len(), 1);
    put(&store, "https://a.example.com/", "my own");
    assert_eq!(store.list().unwrap().len(), 2);
    assert!(store.remove(&url).unwrap());
    assert!(store.find(&url).unwrap().is_some());
}

#[test]
fn what_was_changed_is_not_given() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::new(state.path(), Vec::new());
    let stored = put(&store, "https://a.example.com/", "hello");
    let shared = put(&store, "https://b.example.com/", "hello");
    assert_eq!(stored.digest, shared.digest);
    let body = state.path().join("cache/bodies").join(&stored.digest);
    fs::write(&body, "HELLO").unwrap();
    let url = Url::parse("https://a.example.com/").unwrap();
    assert!(matches!(store.find(&url), Err(StoreError::Changed(_))));
    assert!(store.remove(&url).unwrap() && body.exists(), "the other one has it too");
    assert!(store.remove(&Url::parse("https://b.example.com/").unwrap()).unwrap() && !body.exists());
}

/// `decision method path` of what is in the record.
fn judged(events: &[Event]) -> Vec<String> {
    let told = events.iter().map(|event| match event {
        Event::EgressJudged {
            decision, method, path, ..
        } => {
            let (method, path) = (method.as_deref().unwrap_or("-"), path.as_deref().unwrap_or("-"));
            format!("{decision} {method} {path}")
        }
        other => panic!("{other:?}"),
    });
    told.collect()
}

#[tokio::test]
async fn a_task_gets_what_is_stored_and_nothing_is_asked_outside() {
    let state = tempfile::tempdir().unwrap();
    let store = Store::new(state.path(), Vec::new());
    put(&store, &format!("https://{HOST}/a?b=c"), "within TLS");
    put(&store, &format!("http://{HOST}/a"), "in the open");
    put(&store, "https://denied.example.com/", "never");
    let options = Options {
        mode: NetworkMode::Cached,
        store: Some(Arc::new(store)),
        ..Options::default()
    };
    let world = World::start(&["h2", "http/1.1"], options).await;
    let plain = |method: &str, path: &str| {
        format!("{method} http://{HOST}{path} HTTP/1.1\r\nHost: {HOST}\r\nConnection: close\r\n\r\n")
    };
    let answer = world.fixture.exchange(plain("GET", "/a")).await;
    assert!(
        answer.starts_with("HTTP/1.1 200 ") && answer.ends_with("\r\n\r\nin the open"),
        "{answer}"
    );
    assert!(answer.contains("content-type: text/plain\r\n"), "{answer}");
    let head = world.fixture.exchange(plain("HEAD", "/a")).await;
    assert!(
        head.contains("content-length: 11\r\n") && head.ends_with("\r\n\r\n"),
        "{head}"
    );
    let missing = world.fixture.exchange(plain("GET", "/it's")).await;
    assert!(missing.starts_with("HTTP/1.1 403 "), "{missing}");
    assert!(
        missing.contains("belljar cache fill 'http://api.example.com/it%27s'"),
        "{missing}"
    );
    assert!(
        world
            .fixture
            .exchange(plain("POST", "/a"))
            .await
            .starts_with("HTTP/1.1 403 ")
    );
    let mut client = world.http2().await;
    assert_eq!(
        text(client.send_request(request2("GET", "/a?b=c")).await.unwrap()).await,
        (200, "within TLS".to_owned())
    );
    assert_eq!(
        text(client.send_request(request2("GET", "/a")).await.unwrap()).await.0,
        403
    );
    let mut other = world.http1().await;
    assert_eq!(
        text(other.send_request(request("GET", "/a?b=c")).await.unwrap())
            .await
            .0,
        200
    );
    let stream = world.tls("denied.example.com", &["http/1.1"]).await.unwrap();
    let io = hyper_util::rt::TokioIo::new(stream);
    let (mut denied, driver) = hyper::client::conn::http1::handshake(io).await.unwrap();
    tokio::spawn(driver);
    let mut asked = request("GET", "/");
    asked
        .headers_mut()
        .insert("host", "denied.example.com".parse().unwrap());
    assert_eq!(text(denied.send_request(asked).await.unwrap()).await.0, 403);
    drop((client, other, denied));
    assert!(world.lines().is_empty());
    let (events, seen) = world.fixture.finish().await;
    assert!(seen.resolved.lock().unwrap().is_empty() && seen.dialled.lock().unwrap().is_empty());
    let expected = [
        "allow GET /a",
        "allow HEAD /a",
        "deny GET /it's",
        "deny POST /a",
        "allow GET /a",
        "deny GET /a",
        "allow GET /a",
        "deny GET /",
    ];
    assert_eq!(judged(&events), expected);
}

#[tokio::test]
async fn the_store_is_filled_along_redirects_and_not_with_failures() {
    let server = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let at = server.local_addr().unwrap();
    let serving = async move {
        loop {
            let (mut stream, _) = server.accept().await.unwrap();
            let head = read_head(&mut stream).await;
            let answer = match head.split(' ').nth(1).unwrap() {
                "/old" => "HTTP/1.1 302 Found\r\nLocation: /new\r\nContent-Length: 0\r\n\r\n",
                "/new" => {
                    "HTTP/1.1 200 OK\r\nContent-Type: text/x\r\nSet-Cookie: a=b\r\nContent-Length: 5\r\n\r\nhello"
                }
                "/cut" => "HTTP/1.1 200 OK\r\nContent-Length: 50\r\n\r\nhello",
                "/round" => "HTTP/1.1 302 Found\r\nLocation: /round\r\nContent-Length: 0\r\n\r\n",
                _ => "HTTP/1.1 500 No\r\nContent-Length: 0\r\n\r\n",
            };
            stream.write_all(answer.as_bytes()).await.unwrap();
            stream.shutdown().await.unwrap();
        }
    };
    tokio::spawn(serving);
    let state = tempfile::tempdir().unwrap();
    let store = Store::new(state.path(), Vec::new());
    let roots = crate::egress::tls::testing::Roots::new();
    let fetcher = Fetcher::new(&[roots.file.path().to_owned()], None).unwrap();
    let url = |path: &str| Url::parse(&format!("http://{at}{path}")).unwrap();
    let kept = fetcher.fill(&store, url("/old"), &|_| None).await.unwrap();
    assert_eq!(kept.iter().map(|stored| stored.status).collect::<Vec<_>>(), [302, 200]);
    let (found, mut body) = store.find(&url("/new")).unwrap().unwrap();
    let mut text = String::new();
    io::Read::read_to_string(&mut body, &mut text).unwrap();
    assert_eq!(
        (text.as_str(), found.headers),
        ("hello", vec![("content-type".to_owned(), "text/x".to_owned())])
    );
    assert!(matches!(
        fetcher.fill(&store, url("/gone"), &|_| None).await,
        Err(FetchError::Status(500))
    ));
    assert!(matches!(
        fetcher.fill(&store, url("/cut"), &|_| None).await,
        Err(FetchError::Fetch(_))
    ));
    assert!(matches!(
        fetcher.fill(&store, url("/round"), &|_| None).await,
        Err(FetchError::Redirects)
    ));
    let forbidden = fetcher.fill(&store, url("/new"), &|_| Some("no".to_owned())).await;
    assert!(matches!(forbidden, Err(FetchError::Forbidden { .. })));
    assert!(store.find(&url("/cut")).unwrap().is_none());
    let mut left = std::fs::read_dir(state.path().join("cache/bodies")).unwrap();
    assert!(
        left.all(|entry| entry.unwrap().path().extension().is_none()),
        "nothing half-written stays"
    );
}
