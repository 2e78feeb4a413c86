//! What belljar does within TLS, as the programs inside see it: requests judged one by one, secrets put in, stored answers.

use base64::Engine;
use base64::engine::general_purpose::STANDARD;

use crate::jail::{Caller, Ran, available};
use crate::world::{ALLOWED, World};

pub const PLAIN: &str = "plain.outside.example";

/// A world whose authority only belljar's configuration names, so that all trust inside is what belljar puts there.
pub fn world() -> Option<World> {
    world_of(Caller::Root)
}

pub fn world_of(caller: Caller) -> Option<World> {
    let world = World::make(caller)?;
    world.trust_by_configuration();
    Some(world)
}

fn json(ran: &Ran) -> serde_json::Value {
    serde_json::from_str(&ran.stdout).unwrap_or_else(|error| panic!("{error}: {ran:?}"))
}

/// Who signed the certificate that a client inside is shown.
fn issuer(host: &str) -> String {
    format!("curl -sS -o /dev/null --head -w '%{{certs}}' https://{host}/hello | grep -m1 -i '^issuer:'")
}

#[test]
fn a_host_for_reading_answers_gets_and_refuses_posts() {
    for caller in [Caller::Root, Caller::Ordinary, Caller::Runc] {
        if let Some(caller) = available(caller) {
            look_into(caller);
        }
    }
}

fn look_into(caller: Caller) {
    let Some(world) = world_of(caller) else { return };
    let spec = format!(
        "[network]\nmode = \"proxy\"\nallow = [{PLAIN:?}]\nunknown = \"deny\"\n[[network.hosts]]\nhost = {ALLOWED:?}\nmethods = \"read-only\"\n"
    );
    let mut task = world.place.start(&spec);
    let got = task.sh(&format!("curl -sS https://{ALLOWED}/hello"));
    assert_eq!(got.stdout, "hello from outside\n", "{got:?}");
    let refused = task.sh(&format!(
        "curl -sS -d x=1 -w '\\n%{{http_code}}' https://{ALLOWED}/hello"
    ));
    let (body, code) = refused.stdout.rsplit_once('\n').unwrap();
    assert_eq!(code, "403", "{refused:?}");
    let told: serde_json::Value = serde_json::from_str(body).unwrap();
    assert_eq!((&told["decision"], &told["host"]), (&"deny".into(), &ALLOWED.into()));
    for key in ["rule", "reason", "how_to_ask"] {
        assert!(told[key].as_str().is_some_and(|text| !text.is_empty()), "{key}: {told}");
    }
    let by_socks = task.sh(&format!(
        "curl -sS -x $SOCKS_PROXY https://{ALLOWED}/hello; curl -sS -x $SOCKS_PROXY -d x=1 https://{ALLOWED}/hello"
    ));
    assert!(
        by_socks
            .stdout
            .starts_with("hello from outside\n{\"decision\":\"deny\""),
        "{by_socks:?}"
    );
    let python = task.python(&format!(
        "import urllib.request\nprint(urllib.request.urlopen('https://{ALLOWED}/hello').read().decode(), end='')"
    ));
    assert_eq!(python.stdout, "hello from outside\n", "{python:?}");
    // It reads its certificates from settings of its own.
    let wget = task.sh(&format!("wget -qO- -t1 https://{ALLOWED}/hello"));
    assert_eq!(wget.stdout, "hello from outside\n", "{wget:?}");
    assert!(task.sh(&issuer(ALLOWED)).stdout.contains("belljar task authority"));
    // Nobody looks into what needs no looking into.
    let own = task.sh(&issuer(PLAIN));
    assert!(own.stdout.contains("outside test"), "{own:?}");
    task.end();
    let seen = world.seen();
    assert!(!seen.iter().any(|line| line.contains("POST")), "{seen:#?}");
}

#[test]
fn git_clones_through_a_host_that_is_looked_into() {
    let Some(world) = world() else { return };
    world.serve_repository();
    let spec = format!(
        "[network]\nmode = \"proxy\"\nunknown = \"deny\"\n[[network.hosts]]\nhost = {ALLOWED:?}\nmethods = \"read-only\"\npaths = [\"/repo.git/\"]\n"
    );
    let mut task = world.place.start(&spec);
    let ran = task.sh(&format!(
        "cd /tmp && git clone -q https://{ALLOWED}/repo.git copy && cat copy/file"
    ));
    assert_eq!(ran.stdout, "inside\n", "{ran:?}");
    let refused = task.sh(&format!("cd /tmp && git clone -q https://{ALLOWED}/work/.git other"));
    assert!(refused.stderr.contains("403"), "{refused:?}");
    task.end();
}

#[test]
fn apt_fetches_from_a_host_that_is_looked_into() {
    let Some(world) = world() else { return };
    world.on_host(&format!(
        "cd {} && mkdir -p d/DEBIAN && printf 'Package: outsider\\nVersion: 1.0\\nArchitecture: all\\nMaintainer: a <a@b.c>\\nDescription: x\\n' > d/DEBIAN/control
         dpkg-deb -b d outsider.deb >/dev/null
         (cat d/DEBIAN/control; printf 'Filename: ./outsider.deb\\nSize: %s\\nSHA256: %s\\n\\n' $(stat -c %s outsider.deb) $(sha256sum outsider.deb | cut -d' ' -f1)) > Packages",
        world.www().display()
    ));
    let spec = format!(
        "[network]\nmode = \"proxy\"\nunknown = \"deny\"\n[[network.hosts]]\nhost = {ALLOWED:?}\nmethods = \"read-only\"\n"
    );
    let mut task = world.place.start(&spec);
    let apt = task.sh(&format!(
        "mkdir -p /tmp/a/etc/apt/apt.conf.d /tmp/a/etc/apt/preferences.d /tmp/a/state/lists/partial /tmp/a/cache/archives/partial && cd /tmp/a
         touch status && echo 'deb [trusted=yes] https://{ALLOWED}/ ./' > etc/apt/sources.list
         o='-q -o Acquire::Retries=0 -o APT::Sandbox::User= -o Dir::Etc='$PWD'/etc/apt -o Dir::State='$PWD'/state -o Dir::State::status='$PWD'/status -o Dir::Cache='$PWD'/cache'
         apt-get $o -o APT::Update::Error-Mode=any update && apt-get $o download outsider && ls"
    ));
    assert!(apt.stdout.contains("outsider_1.0_all.deb"), "{apt:?}");
    task.end();
}

#[test]
fn a_secret_reaches_its_host_alone_and_is_never_seen_inside() {
    const VALUE: &str = "ghp_c4naryC4naryC4naryC4naryC4naryC4nary";
    let Some(world) = world() else { return };
    let file = world.place.path().join("token");
    std::fs::write(&file, format!("{VALUE}\n")).unwrap();
    rustix::fs::chmod(&file, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let source = format!("file:{}", file.display());
    let spec = format!(
        "{}[[network.hosts]]\nhost = \"looked.outside.example\"\nmethods = \"read-only\"\n[secrets.TOKEN]\nsource = {source:?}\nhosts = [{ALLOWED:?}]\n",
        world.network(&[PLAIN])
    );
    let mut task = world.place.start(&spec);
    let inside = task.sh("env");
    assert!(!inside.stdout.contains(VALUE), "{inside:?}");
    let placeholder = inside
        .stdout
        .lines()
        .find_map(|line| line.strip_prefix("TOKEN="))
        .unwrap()
        .to_owned();
    assert!(
        placeholder.starts_with("ghp_") && placeholder.len() == VALUE.len(),
        "{placeholder}"
    );

    let asks = |url: &str| format!("curl -sS -H \"Authorization: Bearer $TOKEN\" {url}");
    let answer = task.sh(&asks(&format!("https://{ALLOWED}/whoami")));
    assert!(answer.stdout.starts_with("you are Bearer "), "{answer:?}");
    assert!(!answer.stdout.contains(VALUE), "{answer:?}");
    // Where requests are looked at, the placeholder is stopped; elsewhere it is only a random word.
    for url in [
        "https://looked.outside.example/whoami".to_owned(),
        format!("http://{PLAIN}/whoami"),
    ] {
        let refused = task.sh(&asks(&url));
        assert_eq!(json(&refused)["decision"], "deny", "{url}: {refused:?}");
    }
    task.sh(&asks(&format!("https://{PLAIN}/whoami")));
    task.end();

    assert_eq!(
        world.told(),
        [
            format!("told {ALLOWED} Bearer {VALUE}"),
            format!("told {PLAIN} Bearer {placeholder}")
        ]
    );
    let journal = world.belljar(&["audit", "ls", "--json"]);
    let used = journal.lines().find(|line| line.contains("\"secret.used\""));
    assert!(
        used.is_some_and(|line| line.contains("TOKEN") && line.contains(ALLOWED)),
        "{journal}"
    );
    assert!(!journal.contains(VALUE), "{journal}");
}

/// A helper of git's hands out what stands inside, which is the placeholder.
#[test]
fn a_credential_helper_of_gits_gives_a_placeholder_and_the_server_gets_the_value() {
    const VALUE: &str = "ghp_c4naryC4naryC4naryC4naryC4naryC4nary";
    let Some(world) = world() else { return };
    world.serve_repository();
    let file = world.place.path().join("token");
    std::fs::write(&file, format!("{VALUE}\n")).unwrap();
    rustix::fs::chmod(&file, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let source = format!("file:{}", file.display());
    let spec = format!(
        "{}[secrets.TOKEN]\nsource = {source:?}\nhosts = [{ALLOWED:?}]\n",
        world.network(&[])
    );
    let mut task = world.place.start(&spec);
    let ran = task.sh(&format!(
        "cd /tmp && git config --global credential.helper '!f() {{ echo username=me; echo password=$TOKEN; }}; f'
         git clone -q https://{ALLOWED}/members/repo.git copy && cat copy/file && cat copy/.git/config ~/.gitconfig"
    ));
    assert!(ran.stdout.starts_with("inside\n"), "{ran:?}");
    assert!(!ran.stdout.contains(VALUE), "{ran:?}");
    task.end();
    let value = STANDARD.encode(format!("me:{VALUE}"));
    let told = world.told();
    assert!(!told.is_empty());
    assert!(
        told.iter().all(|line| line == &format!("told {ALLOWED} Basic {value}")),
        "{told:?}"
    );
}

/// Kinds of credentials that are made for each request, and never stand inside: a signature of AWS, and a token that is bought.
#[test]
fn a_signature_and_a_bought_token_are_made_outside() {
    const KEY: &str = "wJalrXUtnFEMIK7MDENGbPxRfiCYcanarykey000";
    let Some(world) = world() else { return };
    let file = world.place.path().join("key");
    std::fs::write(&file, format!("{KEY}\n")).unwrap();
    rustix::fs::chmod(&file, rustix::fs::Mode::from_raw_mode(0o600)).unwrap();
    let source = format!("file:{}", file.display());
    let aws = "aws.outside.example";
    let spec = format!(
        "{}[secrets.AWS_SECRET_ACCESS_KEY]\nsource = {source:?}\nhosts = [{aws:?}]\naws = {{ access_key_id = \"AKIDEXAMPLE000000000\" }}\n\
         [secrets.CLIENT]\nsource = {source:?}\nhosts = [{ALLOWED:?}]\noauth = {{ token_url = \"https://{PLAIN}/token\", client_id = \"ours\" }}\n",
        world.network(&[PLAIN, aws])
    );
    let mut task = world.place.start(&spec);
    let bought = task.sh(&format!("curl -sS https://{ALLOWED}/whoami"));
    assert!(bought.stdout.starts_with("you are Bearer "), "{bought:?}");
    assert!(!bought.stdout.contains("bought-access-token"), "{bought:?}");
    let signed = task.sh(&format!(
        "curl -sS -H \"Authorization: AWS4-HMAC-SHA256 Credential=$AWS_ACCESS_KEY_ID/20260101/us-east-1/s3/aws4_request, SignedHeaders=host;x-amz-date, Signature=00\" \
         -H 'X-Amz-Date: 20260101T000000Z' https://{aws}/whoami"
    ));
    assert!(signed.stdout.starts_with("you are AWS4-HMAC-SHA256 "), "{signed:?}");
    let inside = task.sh("env; cat /run/belljar/* 2>/dev/null");
    assert!(!inside.stdout.contains(KEY), "{inside:?}");
    task.end();
    let seen = world.seen();
    assert!(
        seen.iter()
            .any(|line| line == &format!("told {ALLOWED} Bearer bought-access-token")),
        "{seen:#?}"
    );
    let told = seen
        .iter()
        .find_map(|line| line.strip_prefix(&format!("told {aws} ")))
        .unwrap();
    let (_, signature) = told.rsplit_once("Signature=").unwrap();
    assert_eq!(signature.len(), 64, "signed with the key: {told}");
    assert!(seen.iter().any(|line| line.starts_with("buyer Basic ")), "{seen:#?}");
    let journal = world.belljar(&["audit", "ls", "--json"]);
    assert!(journal.matches("\"secret.used\"").count() >= 2, "{journal}");
    assert!(!journal.contains(KEY) && !journal.contains("bought-access-token"));
}

#[test]
fn a_task_of_stored_answers_sees_those_and_nothing_else() {
    let Some(world) = world() else { return };
    let urls = [format!("https://{ALLOWED}/hello"), format!("http://{ALLOWED}/hello")];
    world.belljar(&["cache", "fill", &urls[0], &urls[1]]);
    let listed = world.belljar(&["cache", "ls"]);
    for url in &urls {
        assert!(
            listed
                .lines()
                .any(|line| line.starts_with("200") && line.ends_with(url.as_str())),
            "{listed}"
        );
    }
    let before = world.seen().len();
    std::fs::write(world.www().join("hello"), "changed since\n").unwrap();
    let mut task = world.place.start("[network]\nmode = \"cached\"\n");
    for url in &urls {
        let got = task.sh(&format!("curl -sS {url}"));
        assert_eq!(got.stdout, "hello from outside\n", "{got:?}");
    }
    for url in [format!("https://{ALLOWED}/other"), format!("http://{PLAIN}/hello")] {
        let refused = task.sh(&format!("curl -sS {url}"));
        let told = json(&refused);
        assert_eq!(told["decision"], "deny", "{told}");
        let how = told["how_to_ask"].as_str().unwrap();
        assert!(how.contains(&format!("belljar cache fill '{url}'")), "{how}");
    }
    task.end();
    assert_eq!(world.seen()[before..], [] as [String; 0], "a stored answer asks nobody");
}
