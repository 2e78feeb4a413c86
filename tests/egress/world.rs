//! Two network namespaces and a link between them: `host`, in which belljar runs, and `outside`, which holds the servers.
//!
//! ```text
//!   host: eth0 93.184.216.1 ────── eth0 93.184.216.34, 10.11.12.13 :outside
//!         resolv.conf, trusted certificates: of the test, in a mount namespace of its own
//! ```

use std::io::{BufRead, BufReader};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};

use crate::jail::{Caller, Place};

pub const ALLOWED: &str = "allowed.outside.example";
pub const DENIED: &str = "denied.outside.example";

/// The world of one test; both namespaces end with it.
pub struct World {
    pub place: Place,
    folder: PathBuf,
    servers: Vec<Child>,
    host: Child,
}

impl World {
    /// `None`, said, where this machine does not let us make one.
    pub fn make(caller: Caller) -> Option<World> {
        if !rustix::process::geteuid().is_root() {
            assert!(std::env::var_os("CI").is_none(), "in CI these tests run as root");
            eprintln!("skipped: network namespaces with a link between them take root");
            return None;
        }
        let place = Place::new(caller);
        let folder = place.path().join("outside");
        std::fs::create_dir_all(folder.join("www")).unwrap();
        std::fs::write(folder.join("www/hello"), "hello from outside\n").unwrap();
        certificate(&folder);
        let host = holder(
            &folder,
            "mkdir trust
             cp -rL /etc/ssl/certs/. trust/
             cat ca.pem >> trust/ca-certificates.crt
             echo 'nameserver 93.184.216.34' > resolv.conf
             echo '127.0.0.1 localhost' > hosts
             mount --make-rprivate /
             mount --bind trust /etc/ssl/certs
             mount --bind resolv.conf /etc/resolv.conf
             mount --bind hosts /etc/hosts
             ip link set lo up",
        );
        let outside = holder(&folder, "ip link set lo up");
        let link = format!(
            "ip link add eth0 type veth peer name eth0 netns {outside}
             ip address add 93.184.216.1/24 dev eth0
             ip link set eth0 up
             ip route add default via 93.184.216.34",
            outside = outside.id()
        );
        inside(&host, &link);
        inside(
            &outside,
            "ip address add 93.184.216.34/24 dev eth0
             ip address add 10.11.12.13/32 dev eth0
             ip link set eth0 up",
        );
        let mut servers = Command::new("nsenter")
            .args(["-t", &outside.id().to_string(), "-n", "--", "python3"])
            .arg(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/egress/outside.py"))
            .arg(&folder)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut ready = String::new();
        BufReader::new(servers.stdout.take().unwrap())
            .read_line(&mut ready)
            .unwrap();
        assert_eq!(ready, "ready\n", "the servers did not start");
        Some(World {
            place: place.within(host.id()),
            folder,
            servers: vec![servers, outside],
            host,
        })
    }

    /// The process that holds the namespaces in which belljar runs.
    pub fn host_id(&self) -> u32 {
        self.host.id()
    }

    /// The machine's bundle no longer has the authority of the servers: belljar's own configuration names it.
    pub fn trust_by_configuration(&self) {
        self.on_host("umount /etc/ssl/certs");
        let folder = self.place.make_folder("home/.config/belljar");
        let text = format!(
            "version = 1\n[egress]\nextra_roots = [{:?}]\n",
            self.folder.join("ca.pem")
        );
        std::fs::write(folder.join("config.toml"), text).unwrap();
    }

    /// Runs belljar to its end, where it must succeed.
    pub fn belljar(&self, args: &[&str]) -> String {
        let output = self.place.command(&self.place.program()).args(args).output().unwrap();
        assert!(
            output.status.success(),
            "{args:?}\n{}",
            String::from_utf8_lossy(&output.stderr)
        );
        String::from_utf8(output.stdout).unwrap()
    }

    /// What is served at `/`.
    pub fn www(&self) -> PathBuf {
        self.folder.join("www")
    }

    /// Serves a repository at `/repo.git`; its one commit has a `file` that says `inside`.
    pub fn serve_repository(&self) {
        self.on_host(&format!(
            "cd {} && git init -q -b main work && cd work && echo inside > file && git add file
             git -c user.name=a -c user.email=a@b.c commit -q -m one
             git clone -q --bare . ../repo.git && cd ../repo.git && git update-server-info",
            self.www().display()
        ));
    }

    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// Starts a program outside that ends with the world.
    pub fn serve(&mut self, program: &str, args: &[&str]) {
        let outside = self.servers[1].id().to_string();
        let child = Command::new("nsenter")
            .args(["-t", &outside, "-n", "--", program])
            .args(args)
            .current_dir(&self.folder)
            .stdout(Stdio::null())
            .spawn();
        self.servers.push(child.unwrap());
    }

    /// Runs a script where belljar runs, to its end.
    pub fn on_host(&self, script: &str) -> String {
        inside(&self.host, script)
    }

    /// Lines of what came to the servers: `dns NAME`, `http HOST METHOD PATH`, `https …`, `private …`, `udp TEXT`,
    /// `told HOST CREDENTIAL`.
    pub fn seen(&self) -> Vec<String> {
        let text = std::fs::read_to_string(self.folder.join("seen.log")).unwrap_or_default();
        text.lines().map(str::to_owned).collect()
    }

    /// Those among them that say which credential came to whom.
    pub fn told(&self) -> Vec<String> {
        let mut seen = self.seen();
        seen.retain(|line| line.starts_with("told "));
        seen
    }

    /// The network part of a spec for a task that may reach the allowed host, and more patterns.
    pub fn network(&self, allow: &[&str]) -> String {
        let mut all = vec![ALLOWED];
        all.extend(allow);
        format!("[network]\nmode = \"proxy\"\nallow = {all:?}\ndeny = [{DENIED:?}]\nunknown = \"deny\"\n")
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for child in self.servers.iter_mut().chain([&mut self.host]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// A process that holds a new network and mount namespace, set up by a script.
fn holder(folder: &Path, script: &str) -> Child {
    let mut child = Command::new("unshare")
        .args(["--net", "--mount", "--", "/bin/sh", "-euc"])
        .arg(format!("{script}\necho ready\nexec sleep infinity"))
        .current_dir(folder)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut ready = String::new();
    BufReader::new(child.stdout.take().unwrap())
        .read_line(&mut ready)
        .unwrap();
    assert_eq!(ready, "ready\n", "a namespace could not be set up");
    child
}

fn inside(holder: &Child, script: &str) -> String {
    let output = Command::new("nsenter")
        .args([
            "-t",
            &holder.id().to_string(),
            "-n",
            "-m",
            "--",
            "/bin/sh",
            "-euc",
            script,
        ])
        .output()
        .unwrap();
    assert!(
        output.status.success(),
        "{script}\n{}",
        String::from_utf8_lossy(&output.stderr)
    );
    String::from_utf8(output.stdout).unwrap()
}

/// An authority of the test's own, and a certificate for all of its names.
fn certificate(folder: &Path) {
    let script = "openssl req -x509 -newkey rsa:2048 -nodes -keyout ca.key -out ca.pem -days 2 -subj '/CN=outside test'
        openssl req -newkey rsa:2048 -nodes -keyout key.pem -out request.pem -subj '/CN=outside.example'
        printf 'subjectAltName=DNS:*.outside.example' > names
        openssl x509 -req -in request.pem -CA ca.pem -CAkey ca.key -CAcreateserial -out cert.pem -days 2 -extfile names";
    let made = Command::new("/bin/sh")
        .args(["-euc", script])
        .current_dir(folder)
        .output()
        .unwrap();
    assert!(made.status.success(), "{}", String::from_utf8_lossy(&made.stderr));
}
