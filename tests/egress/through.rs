//! Programs and protocols through a host that is looked into: what they trust is what belljar puts into the sandbox, and each of their
//! requests is judged.

use std::path::PathBuf;
use std::process::Command;

use crate::inspected::world;
use crate::jail::Jail;
use crate::programs::installed;
use crate::world::{ALLOWED, World};

/// A task whose one host is open for reading only, and so looked into.
fn start(world: &World, more: &str) -> Jail {
    world.place.start(&format!(
        "[network]\nmode = \"proxy\"\nunknown = \"deny\"\n[[network.hosts]]\nhost = {ALLOWED:?}\nports = [443, 8443]\nmethods = \"read-only\"\n{more}"
    ))
}

fn works(task: &mut Jail, script: &str) -> String {
    let ran = task.sh(&format!("set -e; cd /tmp; {script}"));
    assert_eq!(ran.code(), Some(0), "{script}: {ran:?}");
    ran.stdout
}

/// Every request stands in the journal with its method and path.
fn recorded(world: &World, method: &str, path: &str) {
    let journal = world.belljar(&["audit", "ls", "--json", "--kind", "egress.judged"]);
    let (method, path) = (format!("\"method\":\"{method}\""), format!("\"path\":\"{path}"));
    assert!(
        journal
            .lines()
            .any(|line| line.contains(&method) && line.contains(&path)),
        "{path}: {journal}"
    );
}

#[test]
fn pip_and_npm_install_through_it() {
    if !["pip3", "npm", "node"].iter().all(|program| installed(program)) {
        return;
    }
    let Some(world) = world() else { return };
    let index = world.www().join("simple/outsider");
    std::fs::create_dir_all(&index).unwrap();
    let make = "import sys, zipfile
name = 'outsider-1.0-py3-none-any.whl'
with zipfile.ZipFile(sys.argv[1] + '/' + name, 'w') as z:
    z.writestr('outsider.py', 'print(\"a package from outside\")')
    z.writestr('outsider-1.0.dist-info/METADATA', 'Metadata-Version: 2.1\\nName: outsider\\nVersion: 1.0\\n')
    z.writestr('outsider-1.0.dist-info/WHEEL', 'Wheel-Version: 1.0\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n')
    z.writestr('outsider-1.0.dist-info/RECORD', '')
open(sys.argv[1] + '/index.html', 'w').write('<a href=\"%s\">%s</a>' % (name, name))";
    let made = Command::new("python3").args(["-c", make]).arg(&index).status().unwrap();
    assert!(made.success());
    world.on_host(&format!(
        "cd {} && mkdir package && echo '{{\"name\":\"outsider\",\"version\":\"1.2.3\",\"main\":\"i.js\"}}' > package/package.json
         echo 'console.log(\"a module from outside\")' > package/i.js && tar czf outsider.tgz package",
        world.www().display()
    ));
    let packument = format!(
        r#"{{"name":"outsider","dist-tags":{{"latest":"1.2.3"}},"versions":{{"1.2.3":{{"name":"outsider","version":"1.2.3","dist":{{"tarball":"https://{ALLOWED}/outsider.tgz"}}}}}}}}"#
    );
    std::fs::write(world.www().join("outsider"), packument).unwrap();
    let mut task = start(&world, "");
    let pip = format!(
        "pip3 install -q --no-deps --target lib --index-url https://{ALLOWED}/simple/ outsider >&2 && PYTHONPATH=lib python3 -m outsider"
    );
    assert_eq!(works(&mut task, &pip), "a package from outside\n");
    let npm = format!(
        "mkdir a && cd a && npm install --no-audit --no-fund --no-update-notifier --fetch-retries=0 --registry https://{ALLOWED}/ outsider >&2 && node -e 'require(\"outsider\")'"
    );
    assert_eq!(works(&mut task, &npm), "a module from outside\n");
    let fetch =
        format!("node -e \"fetch('https://{ALLOWED}/hello').then(r => r.text()).then(t => process.stdout.write(t))\"");
    assert_eq!(works(&mut task, &fetch), "hello from outside\n");
    task.end();
    recorded(&world, "GET", "/simple/outsider/");
    recorded(&world, "GET", "/outsider.tgz");
}

#[test]
fn cargo_fetches_through_it() {
    let Some(world) = world() else { return };
    let found = Command::new("rustc").args(["--print", "sysroot"]).output().unwrap();
    let toolchain = PathBuf::from(String::from_utf8(found.stdout).unwrap().trim());
    std::fs::create_dir_all(world.www().join("index/ou/ts")).unwrap();
    world.on_host(&format!(
        "cd {} && mkdir -p outsider-1.0.0/src && echo '' > outsider-1.0.0/src/lib.rs
         printf '[package]\\nname = \"outsider\"\\nversion = \"1.0.0\"\\nedition = \"2021\"\\n' > outsider-1.0.0/Cargo.toml
         tar czf outsider-1.0.0.crate outsider-1.0.0
         echo '{{\"dl\":\"https://{ALLOWED}/{{crate}}-{{version}}.crate\"}}' > index/config.json
         printf '{{\"name\":\"outsider\",\"vers\":\"1.0.0\",\"deps\":[],\"cksum\":\"%s\",\"features\":{{}},\"yanked\":false}}\\n' $(sha256sum outsider-1.0.0.crate | cut -d' ' -f1) > index/ou/ts/outsider",
        world.www().display()
    ));
    let more = format!("[[readable_roots]]\nhost = {toolchain:?}\npath = \"/toolchain\"\n");
    let mut task = start(&world, &more);
    works(
        &mut task,
        &format!(
            "export PATH=/toolchain/bin:$PATH CARGO_NET_RETRY=0 CARGO_REGISTRIES_OUT_INDEX=sparse+https://{ALLOWED}/index/
             mkdir good && cd good && mkdir src && echo 'fn main() {{}}' > src/main.rs
             printf '[package]\\nname = \"good\"\\nversion = \"0.1.0\"\\nedition = \"2021\"\\n[dependencies]\\noutsider = {{ version = \"1\", registry = \"out\" }}\\n' > Cargo.toml
             cargo fetch"
        ),
    );
    task.end();
    recorded(&world, "GET", "/outsider-1.0.0.crate");
}

/// Java reads no file of certificates, but a store of its own kind.
#[test]
fn java_and_go_trust_it() {
    if !["javac", "java", "go"].iter().all(|program| installed(program)) {
        return;
    }
    let Some(world) = world() else { return };
    let java = "public class Fetch { public static void main(String[] a) throws Exception {
        System.out.print(new String(new java.net.URL(a[0]).openStream().readAllBytes())); } }";
    let go = "package main
import (\"fmt\"; \"io\"; \"net/http\"; \"os\")
func main() {
	answer, err := http.Get(os.Args[1])
	if err != nil { fmt.Fprintln(os.Stderr, err); os.Exit(1) }
	body, _ := io.ReadAll(answer.Body)
	fmt.Print(string(body))
}
";
    let work = world.place.work();
    std::fs::write(work.join("Fetch.java"), java).unwrap();
    std::fs::write(work.join("fetch.go"), go).unwrap();
    world.on_host(&format!(
        "cd {} && javac Fetch.java && export GO111MODULE=off CGO_ENABLED=0 GOCACHE={}/gocache && go build -o fetch fetch.go",
        work.display(),
        world.folder().display()
    ));
    let mut task = start(&world, "");
    for program in ["java -cp /workspace Fetch", "/workspace/fetch"] {
        let got = works(&mut task, &format!("{program} https://{ALLOWED}/hello"));
        assert_eq!(got, "hello from outside\n", "{program}");
    }
    let listed = works(
        &mut task,
        "keytool -list -keystore /run/belljar/trust.jks -storepass changeit",
    );
    assert!(listed.contains("trustedCertEntry"), "{listed}");
    task.end();
}

/// A server that speaks HTTP/2 and nothing else, and a client that wants it.
#[test]
fn http2_is_spoken_to_both_sides() {
    if !installed("node") {
        return;
    }
    let Some(mut world) = world() else { return };
    let folder = world.folder().display().to_string();
    let server = format!(
        "const fs = require('fs');
         require('http2').createSecureServer({{ key: fs.readFileSync('{folder}/key.pem'), cert: fs.readFileSync('{folder}/cert.pem') }},
             (asked, answer) => answer.end(`${{asked.httpVersion}} ${{asked.method}} ${{asked.authority}}\\n`)).listen(8443, '93.184.216.34')"
    );
    world.serve("node", &["-e", &server]);
    let mut task = start(&world, "");
    let asked = format!(
        "curl -sS --http2 --retry 20 --retry-connrefused --retry-delay 1 --retry-all-errors -w '%{{http_version}}\\n' https://{ALLOWED}:8443/v2"
    );
    assert_eq!(works(&mut task, &asked), format!("2.0 GET {ALLOWED}:8443\n2\n"));
    let refused = task.sh(&format!(
        "curl -sS --http2 -d x=1 -w '%{{http_code}}' https://{ALLOWED}:8443/v2"
    ));
    assert!(refused.stdout.ends_with("403"), "{refused:?}");
    task.end();
    recorded(&world, "GET", "/v2");
}

#[test]
fn a_websocket_is_carried_through_it() {
    let Some(world) = world() else { return };
    let mut task = start(&world, "");
    let client = format!(
        "import os, socket, ssl
def head(s):
    read = b''
    while not read.endswith(b'\\r\\n\\r\\n'):
        read += s.recv(1)
    return read.decode()
s = socket.create_connection(('127.0.0.1', 3128))
s.sendall(b'CONNECT {ALLOWED}:443 HTTP/1.1\\r\\nHost: {ALLOWED}:443\\r\\n\\r\\n')
print(head(s).split()[1])
s = ssl.create_default_context(cafile=os.environ['SSL_CERT_FILE']).wrap_socket(s, server_hostname='{ALLOWED}')
s.sendall(b'GET /ws HTTP/1.1\\r\\nHost: {ALLOWED}\\r\\nConnection: Upgrade\\r\\nUpgrade: websocket\\r\\nSec-WebSocket-Version: 13\\r\\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\\r\\n\\r\\n')
print(head(s).split()[1])
s.sendall(b'\\x81\\x05hello')
print(s.recv(7))"
    );
    let ran = task.python(&client);
    assert_eq!(ran.stdout, "200\n101\nb'\\x81\\x05hello'\n", "{ran:?}");
    task.end();
    recorded(&world, "GET", "/ws");
}
