use std::cell::Cell;
use std::io::{Read, Write};
use std::net::TcpListener;

use super::envelope::open as open_envelope;
use super::*;
use crate::audit::key::SigningKey;
use crate::document::Origin;

fn key(folder: &Path, name: &str) -> SigningKey {
    SigningKey::load_or_make(&folder.join(name)).unwrap()
}

fn file(text: &str) -> Vec<BundleFile> {
    vec![BundleFile {
        name: "team.toml".to_owned(),
        text: text.to_owned(),
    }]
}

fn later(seconds: i64) -> Timestamp {
    Timestamp::now() + jiff::SignedDuration::from_secs(seconds)
}

fn signed(key: &SigningKey, serial: u64, text: &str) -> Vec<u8> {
    sign(key, serial, later(3600), file(text)).unwrap().into_bytes()
}

fn demand(url: &str, keys: &[&SigningKey]) -> Demand {
    let origin = Origin::Flag("--test");
    Demand {
        url: Sited::new(url.to_owned(), origin.clone()),
        public_keys: keys
            .iter()
            .map(|key| Sited::new(key.public(), origin.clone()))
            .collect(),
        required: true,
        refresh: Duration::from_secs(900),
        least_serial: 2,
    }
}

fn away(_: &str) -> Result<Vec<u8>, FetchError> {
    Err(FetchError::Status {
        url: "u".to_owned(),
        status: 503,
    })
}

/// The serial that holds `seconds` from now, where the URL gives `answer`.
fn serial(demand: &Demand, folder: &Path, seconds: u64, answer: &[u8]) -> Result<u64, String> {
    let fetch = |_: &str| Ok(answer.to_vec());
    let now = SystemTime::now() + Duration::from_secs(seconds);
    match load(demand, folder, now, &fetch) {
        Ok(held) => Ok(held.bundle.serial),
        Err(error) => Err(error.to_string()),
    }
}

#[test]
fn a_bundle_counts_when_a_pinned_key_has_signed_it() {
    let folder = tempfile::tempdir().unwrap();
    let (old, new, other) = (
        key(folder.path(), "old"),
        key(folder.path(), "new"),
        key(folder.path(), "other"),
    );
    let keys = [&old.public(), &new.public()];
    for signer in [&old, &new] {
        let bundle = open_envelope(&signed(signer, 7, "version = 1\n"), &keys).unwrap();
        assert_eq!((bundle.serial, bundle.files), (7, file("version = 1\n")));
    }
    let error = open_envelope(&signed(&other, 7, "version = 1\n"), &keys).unwrap_err();
    assert!(matches!(error, EnvelopeError::Signature), "{error}");
}

#[test]
fn no_byte_of_what_was_signed_can_change() {
    let folder = tempfile::tempdir().unwrap();
    let key = key(folder.path(), "key");
    let whole = signed(&key, 7, "version = 1\n");
    let mut envelope: serde_json::Value = serde_json::from_slice(&whole).unwrap();
    let payload = envelope["payload"].as_str().unwrap().to_owned();
    // Another letter in each place of the base64 text.
    for at in (0..payload.len()).step_by(7) {
        let mut other = payload.clone().into_bytes();
        other[at] = if other[at] == b'A' { b'B' } else { b'A' };
        envelope["payload"] = String::from_utf8(other).unwrap().into();
        let bytes = serde_json::to_vec(&envelope).unwrap();
        assert!(open_envelope(&bytes, &[&key.public()]).is_err(), "{at}");
    }
    // The same bytes said to be of another kind.
    envelope["payload"] = payload.into();
    envelope["payloadType"] = "text/plain".into();
    let error = open_envelope(&serde_json::to_vec(&envelope).unwrap(), &[&key.public()]).unwrap_err();
    assert!(matches!(error, EnvelopeError::Form(_)), "{error}");
}

#[test]
fn what_is_signed_has_plain_names_and_a_size() {
    let folder = tempfile::tempdir().unwrap();
    let key = key(folder.path(), "key");
    for name in ["../x.toml", "x", "a/b.rules", "x.sh"] {
        let files = vec![BundleFile {
            name: name.to_owned(),
            text: String::new(),
        }];
        assert!(sign(&key, 1, later(1), files).is_err(), "{name}");
    }
    let large = "#".repeat(envelope::LARGEST + 1);
    assert!(matches!(
        sign(&key, 1, later(1), file(&large)),
        Err(EnvelopeError::TooLarge)
    ));
    assert!(matches!(
        open_envelope(large.as_bytes(), &[]),
        Err(EnvelopeError::TooLarge)
    ));
}

#[test]
fn a_fresh_copy_is_not_asked_for_and_a_stale_one_is_renewed() {
    let folder = tempfile::tempdir().unwrap();
    let key = key(folder.path(), "key");
    let demand = demand("https://policy.example/b", &[&key]);
    let asked = Cell::new(0);
    let answer = signed(&key, 3, "version = 1\n");
    let fetch = |url: &str| {
        assert_eq!(url, "https://policy.example/b");
        asked.set(asked.get() + 1);
        Ok(answer.clone())
    };
    let now = SystemTime::now();
    for (seconds, fetches) in [(0, 1), (1, 1), (800, 1), (1000, 2)] {
        let held = load(&demand, folder.path(), now + Duration::from_secs(seconds), &fetch).unwrap();
        assert_eq!((held.bundle.serial, asked.get()), (3, fetches), "after {seconds} s");
        assert_eq!(held.stale, None);
    }
}

#[test]
fn what_was_seen_cannot_be_rolled_back_or_swapped() {
    let folder = tempfile::tempdir().unwrap();
    let key = key(folder.path(), "key");
    let demand = demand("https://policy.example/b", &[&key]);
    let bundle = |serial, text: &str| signed(&key, serial, text);
    assert!(
        serial(&demand, folder.path(), 0, &bundle(1, "version = 1\n"))
            .unwrap_err()
            .contains("older than that of serial 2")
    );
    let five = bundle(5, "version = 1\n");
    assert_eq!(serial(&demand, folder.path(), 61, &five), Ok(5));
    // The copy of 5 holds on while the URL gives what does not count.
    let four = bundle(4, "version = 1\n");
    for answer in [four.clone(), bundle(5, "version = 1\n# other\n"), b"nonsense".to_vec()] {
        assert_eq!(serial(&demand, folder.path(), 2000, &answer), Ok(5));
    }
    assert_eq!(serial(&demand, folder.path(), 2000, &bundle(6, "version = 1\n")), Ok(6));
    // Nor by putting the older copy into the cache's place.
    let cache = std::fs::read_dir(folder.path().join("bundles")).unwrap();
    let copy = cache
        .map(|entry| entry.unwrap().path())
        .find(|path| path.extension().is_some_and(|e| e == "json"))
        .unwrap();
    std::fs::write(&copy, &five).unwrap();
    let error = serial(&demand, folder.path(), 2000, &four).unwrap_err();
    assert!(error.contains("a roll-back"), "{error}");
}

#[test]
fn an_expired_or_missing_bundle_is_none() {
    let folder = tempfile::tempdir().unwrap();
    let key = key(folder.path(), "key");
    let demand = demand("https://policy.example/b", &[&key]);
    let now = SystemTime::now();
    let missing = load(&demand, folder.path(), now, &away).unwrap_err();
    assert!(matches!(missing, BundleError::Fetch(_)), "{missing}");
    assert_eq!(
        serial(&demand, folder.path(), 100, &signed(&key, 3, "version = 1\n")),
        Ok(3)
    );
    // Whoever runs under an old copy hears of it, also while the URL is not asked.
    let hasty = Demand {
        refresh: Duration::ZERO,
        ..demand.clone()
    };
    for (demand, seconds, why) in [(&demand, 3000, "answered 503"), (&hasty, 1, "asked once a minute")] {
        let held = load(demand, folder.path(), now + Duration::from_secs(seconds), &away).unwrap();
        assert_eq!(held.bundle.serial, 3);
        assert!(held.stale.as_deref().is_some_and(|text| text.contains(why)), "{held:?}");
    }
    let error = load(&demand, folder.path(), now + Duration::from_secs(4000), &away).unwrap_err();
    assert!(matches!(error, BundleError::Fetch(_)), "{error}");
    let expired = sign(&key, 4, later(-1), file("version = 1\n")).unwrap();
    let error = serial(&demand, folder.path(), 4000, expired.as_bytes()).unwrap_err();
    assert!(error.contains("the bundle of serial 4 expired"), "{error}");
}

#[test]
fn a_server_that_is_away_is_asked_once_a_minute() {
    let folder = tempfile::tempdir().unwrap();
    let key = key(folder.path(), "key");
    let demand = demand("https://policy.example/b", &[&key]);
    let asked = Cell::new(0);
    let fetch = |url: &str| {
        asked.set(asked.get() + 1);
        away(url)
    };
    let now = SystemTime::now();
    for (seconds, fetches) in [(0, 1), (1, 1), (50, 1), (70, 2)] {
        load(&demand, folder.path(), now + Duration::from_secs(seconds), &fetch).unwrap_err();
        assert_eq!(asked.get(), fetches, "after {seconds} s");
    }
}

/// A server on loopback that gives one answer to one request.
fn serve(answer: Vec<u8>) -> (String, std::thread::JoinHandle<()>) {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/bundle.json", listener.local_addr().unwrap());
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        let mut request = Vec::new();
        let mut buffer = [0; 1024];
        while !request.windows(4).any(|end| end == b"\r\n\r\n") {
            let read = stream.read(&mut buffer).unwrap();
            request.extend_from_slice(&buffer[..read]);
        }
        assert!(request.starts_with(b"GET /bundle.json HTTP/1.1\r\n"));
        let _ = stream.write_all(&answer);
    });
    (url, server)
}

#[tokio::test]
async fn a_bundle_is_fetched_within_a_runtime_too() {
    let (url, server) = serve(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello".to_vec());
    assert_eq!(fetch(&url).unwrap(), b"hello");
    server.join().unwrap();
}

#[test]
fn an_answer_that_ends_too_early_or_never_is_no_bundle() {
    let (url, server) = serve(b"HTTP/1.1 200 OK\r\ncontent-length: 50\r\n\r\nhello".to_vec());
    assert!(matches!(fetch(&url), Err(FetchError::Request { .. })));
    server.join().unwrap();
    // Somebody who takes the connection and says nothing.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/bundle.json", listener.local_addr().unwrap());
    let error = super::fetch::fetch_within(&url, Duration::from_millis(50)).unwrap_err();
    assert!(error.to_string().contains("timed out"), "{error}");
}

#[test]
fn a_redirect_an_error_and_a_flood_are_no_bundle() {
    let (elsewhere, _) = serve(b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nhello".to_vec());
    let moved = format!("HTTP/1.1 302 Found\r\nlocation: {elsewhere}\r\ncontent-length: 0\r\n\r\n");
    let (url, server) = serve(moved.into_bytes());
    assert!(matches!(fetch(&url), Err(FetchError::Status { status: 302, .. })));
    server.join().unwrap();
    let (url, server) = serve(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n".to_vec());
    assert!(matches!(fetch(&url), Err(FetchError::Status { status: 404, .. })));
    server.join().unwrap();
    let mut flood = b"HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n".to_vec();
    flood.resize(flood.len() + envelope::LARGEST + 1, b'x');
    let (url, server) = serve(flood);
    assert!(matches!(fetch(&url), Err(FetchError::TooLarge { .. })));
    server.join().unwrap();
}
