use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

use serde_json::{Value, json};

use super::*;
use crate::image::tests::{BASE, Maker, Packing, Place, TOP, architecture, texts_of};
use crate::image::{Silent, resolve};
use crate::policy::Digest;
use crate::task::ImageRef;

/// A registry that plays well or badly.
#[derive(Default)]
struct Fake {
    /// By path below `/v2/x/`.
    answers: BTreeMap<String, Vec<u8>>,
    /// Paths that break off after so many bytes, once each time they stand here.
    cuts: Mutex<Vec<(String, usize)>>,
    login: Option<Scheme>,
    /// `path range`, in order.
    asked: Mutex<Vec<String>>,
}

#[derive(Clone, Copy, PartialEq)]
enum Scheme {
    Basic,
    Bearer,
}

impl Fake {
    fn of(maker: &Maker, root: &Value) -> Fake {
        let mut answers = BTreeMap::new();
        for (name, bytes) in &maker.files {
            if let Some(hex) = name.strip_prefix("blobs/sha256/") {
                answers.insert(format!("blobs/sha256:{hex}"), bytes.clone());
                answers.insert(format!("manifests/sha256:{hex}"), bytes.clone());
            }
        }
        let root = answers[&format!("manifests/{}", root["digest"].as_str().unwrap())].clone();
        answers.insert("manifests/1".to_owned(), root);
        Fake {
            answers,
            ..Fake::default()
        }
    }

    /// Serves until the test ends; the answer is the reference of its one image.
    fn serve(self) -> (Arc<Fake>, String) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = listener.local_addr().unwrap().port();
        let fake = Arc::new(self);
        let served = fake.clone();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let fake = served.clone();
                std::thread::spawn(move || fake.answer(stream.unwrap(), port));
            }
        });
        (fake, format!("127.0.0.1:{port}/x:1"))
    }

    fn answer(&self, mut stream: TcpStream, port: u16) {
        let mut lines = BufReader::new(stream.try_clone().unwrap()).lines();
        let Some(Ok(first)) = lines.next() else { return };
        let path = first.split(' ').nth(1).unwrap().to_owned();
        let headers: BTreeMap<String, String> = lines
            .map_while(|line| {
                Some(line.ok()?.split_once(": ")?).map(|(name, value)| (name.to_ascii_lowercase(), value.to_owned()))
            })
            .collect();
        let header = |name: &str| headers.get(name).map(String::as_str).unwrap_or_default();
        let mut say = |text: String, body: &[u8]| {
            let _ =
                write!(stream, "HTTP/1.1 {text}\r\nconnection: close\r\n\r\n").and_then(|()| stream.write_all(body));
        };
        let basic = header("authorization") == "Basic dTpw";
        if path.starts_with("/token") {
            return match basic && path.contains("scope=repository%3Ax%3Apull") {
                true => say("200 OK".to_owned(), br#"{"token": "T"}"#),
                false => say("401 No".to_owned(), b""),
            };
        }
        let challenge = match self.login {
            Some(Scheme::Basic) if !basic => Some("Basic realm=\"r\"".to_owned()),
            Some(Scheme::Bearer) if header("authorization") != "Bearer T" => {
                Some(format!("Bearer realm=\"http://127.0.0.1:{port}/token\",service=\"s\""))
            }
            _ => None,
        };
        if let Some(challenge) = challenge {
            return say(format!("401 No\r\nwww-authenticate: {challenge}"), b"");
        }
        let Some(name) = path.strip_prefix("/v2/x/") else {
            return say("200 OK".to_owned(), b"");
        };
        let range = header("range");
        self.asked
            .lock()
            .unwrap()
            .push(format!("{name} {range}").trim_end().to_owned());
        let Some(body) = self.answers.get(name) else {
            return say("404 No".to_owned(), b"");
        };
        let from: usize = range
            .trim_start_matches("bytes=")
            .trim_end_matches('-')
            .parse()
            .unwrap_or(0);
        let rest = &body[from..];
        let mut cuts = self.cuts.lock().unwrap();
        let cut = cuts
            .iter()
            .position(|(path, _)| path == name)
            .map(|at| cuts.remove(at).1);
        let sent = &rest[..cut.unwrap_or(rest.len()).min(rest.len())];
        let status = if range.is_empty() { "200 OK" } else { "206 Part" };
        say(format!("{status}\r\ncontent-length: {}", rest.len()), sent);
    }

    fn asked_for(&self, what: &str) -> Vec<String> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|line| line.starts_with(what)).cloned().collect()
    }
}

/// An image of two layers, one of them large enough to break off in.
fn image() -> (Maker, Value, String) {
    let mut maker = Maker::default();
    // Nothing that gzip makes small.
    let big: String = (0..2000u32)
        .map(|n| Digest::of_bytes(&n.to_le_bytes()).to_string())
        .collect();
    let files = [("etc/config", "base"), ("big", big.as_str())];
    let manifest = maker.manifest(&[(&files, Packing::Gzip), (TOP, Packing::Gzip)], json!({}));
    let text = &maker.files[&format!("blobs/sha256/{}", &manifest["digest"].as_str().unwrap()[7..])];
    let text: Value = serde_json::from_slice(text).unwrap();
    let layer = text["layers"][0]["digest"].as_str().unwrap().to_owned();
    (maker, manifest, layer)
}

fn pull(place: &Place, reference: &str) -> Result<Named, String> {
    place
        .store
        .pull(reference, None, &Access::default(), &Silent)
        .map_err(|error| texts_of(&error))
}

fn refusal(maker: &Maker, root: &Value) -> String {
    let place = Place::new();
    let (_, reference) = Fake::of(maker, root).serve();
    let text = pull(&place, &reference).unwrap_err();
    assert!(place.store.names().unwrap().is_empty(), "{text}");
    text.replace(&reference, "REF")
}

#[test]
fn an_image_is_pulled_checked_and_kept_under_its_reference() {
    let place = Place::new();
    let (maker, manifest, layer) = image();
    let (fake, reference) = Fake::of(&maker, &manifest).serve();
    let named = pull(&place, &reference).unwrap();
    assert_eq!(
        (named.name.as_str(), named.digest.as_str()),
        (&*reference, manifest["digest"].as_str().unwrap())
    );
    let image = resolve(&ImageRef::Named(reference), &place.store, &Silent).unwrap();
    assert_eq!(image.layers.len(), 2);
    assert_eq!(
        fake.asked_for(&format!("blobs/{layer}")).len(),
        1,
        "once, and not for the second time"
    );
    assert_eq!(fs::read_dir(place.root.join("state/images/blobs")).unwrap().count(), 0);
}

#[test]
fn what_names_its_registry_is_pulled_when_a_task_wants_it_and_a_bare_name_never() {
    let place = Place::new();
    let (maker, manifest, _) = image();
    let (fake, reference) = Fake::of(&maker, &manifest).serve();
    let wanted = ImageRef::Named(format!("{reference}@{}", manifest["digest"].as_str().unwrap()));
    assert_eq!(
        resolve(&wanted, &place.store, &Silent).unwrap().digest.unwrap(),
        manifest["digest"].as_str().unwrap()
    );
    let asked = fake.asked.lock().unwrap().len();
    resolve(&wanted, &place.store, &Silent).unwrap();
    assert_eq!(fake.asked.lock().unwrap().len(), asked, "it is in the store");
    for name in ["debian", "library/debian:12", "x"] {
        assert!(!names_a_registry(name), "{name}");
        assert!(pull(&place, name).unwrap_err().contains("it names no registry"));
    }
}

#[test]
fn a_layer_that_breaks_off_goes_on_where_it_stopped() {
    let place = Place::new();
    let (maker, manifest, layer) = image();
    let path = format!("blobs/{layer}");
    let fake = Fake::of(&maker, &manifest);
    // More often than one pull tries: the next pull goes on with what there is.
    fake.cuts
        .lock()
        .unwrap()
        .extend([10_000, 5_000, 0, 1, 7].map(|cut| (path.clone(), cut)));
    let (fake, reference) = fake.serve();
    let broken = pull(&place, &reference).unwrap_err();
    assert!(broken.contains("cannot be pulled"), "{broken}");
    pull(&place, &reference).unwrap();
    let asked = fake.asked_for(&path);
    let ranges: Vec<_> = asked.iter().map(|line| line.split("bytes=").nth(1).unwrap()).collect();
    assert_eq!(ranges, ["0-", "10000-", "15000-", "15000-", "15001-", "15008-"]);
}

#[test]
fn what_an_earlier_pull_left_wrong_is_fetched_anew() {
    let place = Place::new();
    let (maker, manifest, layer) = image();
    let blobs = place.store.blobs().unwrap();
    fs::write(blobs.join(format!("{}.partial", &layer[7..])), vec![b'x'; 1000]).unwrap();
    let (_, reference) = Fake::of(&maker, &manifest).serve();
    pull(&place, &reference).unwrap();
}

#[test]
fn ten_pulls_at_once_fetch_and_unpack_a_layer_once() {
    let place = Place::new();
    let (maker, manifest, layer) = image();
    let (fake, reference) = Fake::of(&maker, &manifest).serve();
    std::thread::scope(|scope| {
        for _ in 0..10 {
            scope.spawn(|| pull(&place, &reference).unwrap());
        }
    });
    assert_eq!(fake.asked_for(&format!("blobs/{layer}")).len(), 1);
}

#[test]
fn a_registry_gets_the_login_that_it_asks_for_and_a_missing_one_is_said() {
    for scheme in [Scheme::Basic, Scheme::Bearer] {
        let place = Place::new();
        let (maker, manifest, _) = image();
        let mut fake = Fake::of(&maker, &manifest);
        fake.login = Some(scheme);
        let (_, reference) = fake.serve();
        let refused = pull(&place, &reference).unwrap_err();
        assert!(refused.contains("the registry wants a login"), "{refused}");
        let with = |password: &str| Access {
            login: Some(Login {
                user: "u".to_owned(),
                password: password.into(),
            }),
            plain_http: false,
        };
        let wrong = place.store.pull(&reference, None, &with("q"), &Silent).unwrap_err();
        assert!(texts_of(&wrong).contains("the registry wants a login"), "{wrong}");
        let named = place.store.pull(&reference, Some("mine"), &with("p"), &Silent).unwrap();
        assert_eq!(named.name, "mine");
    }
}

#[test]
fn only_a_registry_of_this_machine_is_spoken_to_in_the_clear() {
    for (registry, is) in [
        ("localhost:5000", true),
        ("127.0.0.1:5000", true),
        ("127.8.8.8", true),
        ("[::1]:5000", true),
        ("localhost.evil.example", false),
        ("127.0.0.1.evil.example:80", false),
        ("10.0.0.1:5000", false),
        ("r.example", false),
    ] {
        assert_eq!(is_loopback(registry), is, "{registry}");
    }
}

#[test]
fn the_manifest_for_this_machine_is_chosen_out_of_an_index() {
    let place = Place::new();
    let mut maker = Maker::default();
    let mut mine = maker.manifest(&[(BASE, Packing::Gzip)], json!({}));
    let mut other = maker.manifest(&[(TOP, Packing::Gzip)], json!({}));
    mine["platform"] = json!({ "os": "linux", "architecture": architecture() });
    other["platform"] = json!({ "os": "linux", "architecture": "s390x" });
    let index = json!({ "schemaVersion": 2, "manifests": [other, mine] })
        .to_string()
        .into_bytes();
    let index = maker.blob(index, "application/vnd.oci.image.index.v1+json");
    let (_, reference) = Fake::of(&maker, &index).serve();
    assert_eq!(
        pull(&place, &reference).unwrap().digest,
        mine["digest"].as_str().unwrap()
    );
    // A task that pins the index runs what the index holds for this machine, and only while its digest is right.
    let pinned = format!("{reference}@{}", index["digest"].as_str().unwrap());
    assert_eq!(pull(&place, &pinned).unwrap().digest, mine["digest"].as_str().unwrap());
    let wrong = format!("{reference}@{}", Digest::of_bytes(b"absent"));
    assert!(
        pull(&place, &wrong)
            .unwrap_err()
            .contains("the registry has no such manifest")
    );
}

#[test]
fn indexes_that_lead_to_ever_more_indexes_are_refused() {
    let mut maker = Maker::default();
    let mut inner = maker.manifest(&[(BASE, Packing::Plain)], json!({}));
    for _ in 0..6 {
        let index = json!({ "schemaVersion": 2, "manifests": [inner] })
            .to_string()
            .into_bytes();
        inner = maker.blob(index, "application/vnd.oci.image.index.v1+json");
    }
    assert!(refusal(&maker, &inner).contains("it leads to ever more indexes"));
}

#[test]
fn nothing_is_taken_that_has_not_its_digest() {
    let (maker, manifest, _) = image();
    let whole = Fake::of(&maker, &manifest);
    for path in whole.answers.keys().filter(|path| path.starts_with("blobs/")) {
        let digest = path.strip_prefix("blobs/").unwrap();
        if digest == manifest["digest"] {
            continue;
        }
        let mut fake = Fake::of(&maker, &manifest);
        // The size stays: it is the digest that must tell.
        let last = fake.answers.get_mut(path).unwrap().last_mut().unwrap();
        *last ^= 1;
        let place = Place::new();
        let (_, reference) = fake.serve();
        let text = pull(&place, &reference).unwrap_err();
        assert!(text.contains("has other content") || text.contains("igest"), "{text}");
        assert!(place.store.names().unwrap().is_empty());
    }
    let place = Place::new();
    let mut fake = Fake::of(&maker, &manifest);
    let digest = manifest["digest"].as_str().unwrap().to_owned();
    fake.answers
        .get_mut(&format!("manifests/{digest}"))
        .unwrap()
        .push(b'\n');
    let (_, reference) = fake.serve();
    let text = pull(&place, &format!("{reference}@{digest}")).unwrap_err();
    assert!(
        text.starts_with(&format!("manifest {digest} of the image has other content")),
        "{text}"
    );
}

/// A manifest of one layer, changed.
fn changed(change: impl Fn(&mut Value)) -> String {
    let mut maker = Maker::default();
    let manifest = maker.manifest(&[(BASE, Packing::Gzip)], json!({}));
    let text = &maker.files[&format!("blobs/sha256/{}", &manifest["digest"].as_str().unwrap()[7..])];
    let mut text: Value = serde_json::from_slice(text).unwrap();
    change(&mut text);
    let changed = maker.blob(
        text.to_string().into_bytes(),
        "application/vnd.oci.image.manifest.v1+json",
    );
    refusal(&maker, &changed)
}

#[test]
fn a_manifest_of_wrong_sizes_or_foreign_addresses_is_refused() {
    let foreign = changed(|text| text["layers"][0]["urls"] = json!(["http://169.254.169.254/latest"]));
    assert!(
        foreign.contains("at another address, where nothing is fetched"),
        "{foreign}"
    );
    let longer = changed(|text| text["layers"][0]["size"] = json!(7));
    assert!(longer.contains("the layer is longer than 7 bytes"), "{longer}");
    let shorter = changed(|text| text["config"]["size"] = json!(7));
    assert!(
        shorter.contains("the configuration is longer than 7 bytes"),
        "{shorter}"
    );
    let huge = changed(|text| text["config"]["size"] = json!(1u64 << 40));
    assert!(huge.contains("were announced"), "{huge}");
    let absent = changed(|text| text["layers"][0]["digest"] = json!(Digest::of_bytes(b"absent").to_string()));
    assert!(absent.contains("the registry has no such layer"), "{absent}");
}

#[test]
fn an_endless_manifest_is_not_read_to_its_end() {
    let (maker, manifest, _) = image();
    let mut fake = Fake::of(&maker, &manifest);
    fake.answers.insert("manifests/1".to_owned(), vec![b' '; 5 << 20]);
    let (_, reference) = fake.serve();
    let text = pull(&Place::new(), &reference).unwrap_err();
    assert!(text.contains("the manifest is longer than"), "{text}");
}
