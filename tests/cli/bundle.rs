//! Requirements that come signed from an HTTPS server: a real one on loopback, which says what it likes, and an `/etc/belljar` of the
//! test's own in a mount namespace. The authority that vouches for the server is a root of trust by `SSL_CERT_FILE`, as OpenSSL's is.

use std::fs;
use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use belljar::audit::key::SigningKey;
use belljar::config::bundle::{BundleFile, sign};
use jiff::{SignedDuration, Timestamp};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;

use crate::told;

/// What the server does with a request.
#[derive(Clone)]
enum Says {
    Body(Vec<u8>),
    Status(u16),
    /// Says that the answer is longer than it is.
    HalfOf(Vec<u8>),
    Redirect(String),
    Flood,
    /// Closes the connection.
    Nothing,
}

struct World {
    place: tempfile::TempDir,
    key: SigningKey,
    issuer: CertifiedIssuer<'static, KeyPair>,
    says: Arc<Mutex<Says>>,
}

impl World {
    /// None, and a word about it, where nobody may mount.
    fn new() -> Option<Self> {
        if !nix::unistd::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "this test needs root");
            eprintln!("skipped: an /etc of its own needs root");
            return None;
        }
        let place = tempfile::tempdir().unwrap();
        // A copy: what is mounted over it must be what a sandbox is made from too.
        let copied = Command::new("cp").args(["-a", "/etc"]).arg(place.path()).status();
        assert!(copied.unwrap().success());
        let etc = place.path().join("etc/belljar");
        fs::create_dir_all(&etc).unwrap();
        fs::set_permissions(&etc, fs::Permissions::from_mode(0o755)).unwrap();
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        fs::write(place.path().join("ca.pem"), issuer.pem()).unwrap();
        Some(Self {
            key: SigningKey::load_or_make(&place.path().join("key")).unwrap(),
            place,
            issuer,
            says: Arc::new(Mutex::new(Says::Nothing)),
        })
    }

    fn path(&self, name: &str) -> PathBuf {
        self.place.path().join(name)
    }

    /// Serves with a certificate of this name, and demands the bundle from there.
    fn serve(&self, name: &str, is_expired: bool) {
        let mut params = CertificateParams::new([name.to_owned()]).unwrap();
        if is_expired {
            params.not_after = (SystemTime::now() - Duration::from_secs(3600)).into();
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let config = ServerConfig::builder_with_provider(rustls::crypto::ring::default_provider().into())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        let (config, says) = (Arc::new(config), self.says.clone());
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        self.demand(&format!(
            "https://localhost:{}/b.json",
            listener.local_addr().unwrap().port()
        ));
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                // Whoever does not like the certificate goes away in the middle.
                let _ = answer(stream.unwrap(), &config, &says);
            }
        });
    }

    fn demand(&self, url: &str) {
        let text = format!(
            "version = 1\n[bundle]\nurl = \"{url}\"\npublic_keys = [\"{}\"]\nrefresh = \"1ms\"\n",
            self.key.public()
        );
        fs::write(self.path("etc/belljar/requirements.toml"), text).unwrap();
    }

    fn says(&self, says: Says) {
        *self.says.lock().unwrap() = says;
        // It is asked once a minute.
        for entry in fs::read_dir(self.path("state/bundles")).into_iter().flatten() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|kind| kind == "asked") {
                fs::remove_file(path).unwrap();
            }
        }
    }

    /// A bundle that forbids `rm`.
    fn bundle(&self, key: &SigningKey, serial: u64, note: &str) -> Vec<u8> {
        let rules = format!("# {note}\nprefix_rule(pattern = [\"rm\"], decision = \"forbidden\")\n");
        let files = vec![BundleFile {
            name: "team.rules".to_owned(),
            text: rules,
        }];
        let expires = Timestamp::now() + SignedDuration::from_hours(1);
        sign(key, serial, expires, files).unwrap().into_bytes()
    }

    /// What is no bundle that may be taken after that of serial 5, and what is said of it.
    fn unfit(&self) -> Vec<(Says, &'static str)> {
        let other = SigningKey::load_or_make(&self.path("other")).unwrap();
        let good = self.bundle(&self.key, 6, "");
        let mut forged = good.clone();
        let at = forged.windows(7).position(|seven| seven == b"\"sig\":\"").unwrap() + 17;
        forged[at] = if forged[at] == b'A' { b'B' } else { b'A' };
        let expired = sign(&self.key, 6, Timestamp::now() - SignedDuration::from_secs(1), vec![]).unwrap();
        vec![
            (Says::Nothing, "cannot be fetched"),
            (Says::Status(503), "answered 503"),
            (
                Says::Redirect("https://localhost:1/elsewhere".to_owned()),
                "answered 302",
            ),
            (Says::HalfOf(good.clone()), "cannot be fetched"),
            (Says::Body(good[..good.len() / 2].to_vec()), "no DSSE envelope"),
            (Says::Flood, "larger than 4 MiB"),
            (Says::Body(forged), "no signature"),
            (Says::Body(self.bundle(&other, 6, "")), "no signature"),
            (Says::Body(expired.into_bytes()), "expired"),
        ]
    }

    /// One call of belljar with that `/etc`; trusting the authority, or only the machine's.
    fn call(&self, trusts: bool, args: &[&str]) -> (i32, String, String) {
        let script = "mount --bind \"$ETC\" /etc && exec \"$@\"";
        let mut command = Command::new("unshare");
        command
            .args(["-m", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_belljar")])
            .args(args)
            .env("ETC", self.path("etc"))
            .env("BELLJAR_STATE", self.path("state"))
            .env("XDG_CONFIG_HOME", self.path("config"))
            .env_remove("SSL_CERT_FILE")
            .env_remove("HTTPS_PROXY")
            .env_remove("https_proxy")
            .env_remove("ALL_PROXY")
            .stdin(Stdio::null());
        if trusts {
            command.env("SSL_CERT_FILE", self.path("ca.pem"));
        }
        told(command.output().unwrap())
    }

    fn run(&self, argv: &[&str]) -> (i32, String, String) {
        self.call(true, &[&["run", "--network", "none", "--"], argv].concat())
    }
}

fn answer(stream: TcpStream, config: &Arc<ServerConfig>, says: &Mutex<Says>) -> std::io::Result<()> {
    let connection = rustls::ServerConnection::new(config.clone()).map_err(std::io::Error::other)?;
    let mut stream = rustls::StreamOwned::new(connection, stream);
    let mut request = Vec::new();
    let mut piece = [0; 1024];
    while !request.windows(4).any(|end| end == b"\r\n\r\n") {
        match stream.read(&mut piece)? {
            0 => return Ok(()),
            read => request.extend_from_slice(&piece[..read]),
        }
    }
    assert!(request.starts_with(b"GET /b.json HTTP/1.1\r\n"));
    let head =
        |status: &str, length: usize| format!("HTTP/1.1 {status}\r\ncontent-length: {length}\r\nconnection: close\r\n");
    match says.lock().unwrap().clone() {
        Says::Nothing => return Ok(()),
        Says::Body(body) => {
            write!(stream, "{}\r\n", head("200 OK", body.len()))?;
            stream.write_all(&body)?;
        }
        Says::HalfOf(body) => {
            write!(stream, "{}\r\n", head("200 OK", body.len() * 2))?;
            stream.write_all(&body)?;
        }
        Says::Status(status) => write!(stream, "{}\r\n", head(&format!("{status} No"), 0))?,
        Says::Redirect(to) => write!(stream, "{}location: {to}\r\n\r\n", head("302 Found", 0))?,
        Says::Flood => {
            write!(stream, "HTTP/1.1 200 OK\r\nconnection: close\r\n\r\n")?;
            while stream.write_all(&[b' '; 64 << 10]).is_ok() {}
        }
    }
    stream.conn.send_close_notify();
    stream.flush()
}

#[test]
fn a_bundle_counts_where_its_server_proves_who_it_is() {
    let Some(world) = World::new() else { return };
    world.says(Says::Body(world.bundle(&world.key, 5, "")));
    let refused = |trusts, why: &str| {
        world.says(Says::Body(world.bundle(&world.key, 5, "")));
        let (code, _, err) = world.call(trusts, &["config", "check"]);
        assert!(
            code == 125 && err.contains("cannot be fetched") && err.contains(why),
            "{code}: {err}"
        );
    };
    world.serve("localhost", false);
    refused(false, "UnknownIssuer");
    world.serve("elsewhere.example", false);
    refused(true, "not valid for name \"localhost\"");
    world.serve("localhost", true);
    refused(true, "expired");

    world.serve("localhost", false);
    world.says(Says::Body(world.bundle(&world.key, 5, "")));
    let (code, out, err) = world.call(true, &["config", "check"]);
    assert_eq!(code, 0, "{err}");
    assert!(out.contains("right (serial 5, until "), "{out}");
    let (code, _, err) = world.run(&["rm", "x"]);
    assert_eq!(code, 120, "{err}");
    let (code, out, err) = world.run(&["echo", "hello"]);
    assert_eq!((code, out.as_str()), (0, "hello\n"), "{err}");
}

#[test]
fn what_the_server_says_later_loosens_nothing_and_the_use_of_the_copy_is_said() {
    let Some(world) = World::new() else { return };
    world.serve("localhost", false);
    world.says(Says::Body(world.bundle(&world.key, 5, "")));
    let (code, _, err) = world.run(&["true"]);
    assert_eq!(code, 0, "{err}");
    let mut unfit = world.unfit();
    unfit.push((Says::Body(world.bundle(&world.key, 4, "")), "a roll-back"));
    unfit.push((Says::Body(world.bundle(&world.key, 5, "other")), "another one"));
    for (says, why) in unfit {
        world.says(says);
        let (code, _, err) = world.run(&["rm", "x"]);
        let said = err.contains("the copy of serial 5 holds until") && err.contains(why);
        assert!(code == 120 && said, "{why}: {code}: {err}");
    }
    // In between it is not asked, and the copy holds as well.
    let (code, _, err) = world.run(&["true"]);
    assert!(code == 0 && err.contains("asked once a minute"), "{err}");
    world.says(Says::Body(world.bundle(&world.key, 6, "")));
    let (code, _, err) = world.run(&["true"]);
    assert!(code == 0 && !err.contains("holds until"), "{err}");
}

#[test]
fn without_a_copy_nothing_runs_whatever_the_server_says() {
    let Some(world) = World::new() else { return };
    world.serve("localhost", false);
    let work = world.path("work");
    fs::create_dir(&work).unwrap();
    let root = format!("{}:/workspace", work.display());
    let refused = |why: &str| {
        let (code, _, err) = world.call(true, &["run", "--write", &root, "--", "touch", "/workspace/x"]);
        assert!(
            code == 125 && err.contains(why) && err.contains("the bundle is required, so nothing runs"),
            "{why}: {code}: {err}"
        );
        assert!(!Path::new(&work).join("x").exists());
    };
    for (says, why) in world.unfit() {
        world.says(says);
        refused(why);
    }
    // Nobody is there at all.
    let free = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    world.demand(&format!("https://localhost:{}/b.json", free.port()));
    refused("cannot be fetched");
}
