//! Programs that agents use, in a sandbox whose environment alone leads them out. Each fetches what is allowed over TLS (or SSH) and
//! fails at what is not. A program that this machine does not have is said and passed over, but not in CI.

use std::path::PathBuf;
use std::process::Command;

use crate::jail::{Caller, Jail, Ran};
use crate::world::{ALLOWED, DENIED, World};

/// Where programs that bring certificates of their own find those of the test; the host's bundle holds them too.
const TRUST: &str = "[env]\nPIP_CERT = \"/etc/ssl/certs/ca-certificates.crt\"\nNODE_EXTRA_CA_CERTS = \"/etc/ssl/certs/ca-certificates.crt\"\n\
                     CARGO_HTTP_CAINFO = \"/etc/ssl/certs/ca-certificates.crt\"\n";

pub fn installed(program: &str) -> bool {
    let found = Command::new("/bin/sh")
        .args(["-c", "command -v \"$0\"", program])
        .env("PATH", "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        .output()
        .is_ok_and(|output| output.status.success());
    if !found {
        assert!(
            std::env::var_os("CI").is_none(),
            "in CI {program} is installed (tools/setup.sh test)"
        );
        eprintln!("skipped: {program} is not installed");
    }
    found
}

fn world_with(programs: &[&str]) -> Option<World> {
    if !programs.iter().all(|program| installed(program)) {
        return None;
    }
    World::make(Caller::Root)
}

fn start(world: &World, allow: &[&str], more: &str) -> Jail {
    world.place.start(&format!("{}{TRUST}{more}", world.network(allow)))
}

/// Runs a shell script that fails at its first fault, and gives what it printed last.
fn works(task: &mut Jail, script: &str) -> Ran {
    let ran = task.sh(&format!("set -e; cd /tmp; {script}"));
    assert_eq!(ran.code(), Some(0), "{script}: {ran:?}");
    ran
}

fn fails(task: &mut Jail, script: &str) -> Ran {
    let ran = task.sh(&format!("cd /tmp; {script}"));
    assert_ne!(ran.code(), Some(0), "{script}: {ran:?}");
    ran
}

/// Nothing came to the servers but for the allowed host.
fn only_allowed(world: &World) {
    let seen = world.seen();
    assert!(
        !seen.is_empty() && seen.iter().all(|line| line.contains(ALLOWED)),
        "{seen:#?}"
    );
}

#[test]
fn curl_and_wget_fetch_over_https() {
    let Some(world) = world_with(&["curl", "wget"]) else {
        return;
    };
    let mut task = start(&world, &[], "");
    for program in ["curl -sS", "wget -qO- -t1"] {
        let ran = works(&mut task, &format!("{program} https://{ALLOWED}/hello"));
        assert_eq!(ran.stdout, "hello from outside\n", "{program}");
        fails(&mut task, &format!("{program} https://{DENIED}/hello"));
    }
    // By SOCKS as well, and names too are left to the proxy.
    let ran = works(&mut task, &format!("curl -sS -x $SOCKS_PROXY https://{ALLOWED}/hello"));
    assert_eq!(ran.stdout, "hello from outside\n");
    // What ignores its environment has no way out.
    fails(
        &mut task,
        &format!("curl -sS --noproxy '*' -m 5 https://{ALLOWED}/hello"),
    );
    task.end();
    only_allowed(&world);
}

#[test]
fn git_clones_over_https() {
    let Some(world) = world_with(&["git"]) else { return };
    world.serve_repository();
    let mut task = start(&world, &[], "");
    let ran = works(
        &mut task,
        &format!("git clone -q https://{ALLOWED}/repo.git copy && cat copy/file"),
    );
    assert_eq!(ran.stdout, "inside\n");
    let refused = fails(&mut task, &format!("git clone -q https://{DENIED}/repo.git other"));
    assert!(refused.stderr.contains("403"), "{refused:?}");
    task.end();
    only_allowed(&world);
}

#[test]
fn pip_installs_from_its_index() {
    let Some(world) = world_with(&["python3", "pip3"]) else {
        return;
    };
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
    assert!(
        Command::new("python3")
            .args(["-c", make])
            .arg(&index)
            .status()
            .unwrap()
            .success()
    );
    let mut task = start(&world, &[], "");
    let pip = |host| format!("pip3 install -q --no-deps --target lib --index-url https://{host}/simple/ outsider");
    let ran = works(
        &mut task,
        &format!("{} && PYTHONPATH=lib python3 -m outsider", pip(ALLOWED)),
    );
    assert_eq!(ran.stdout, "a package from outside\n");
    fails(
        &mut task,
        &format!("{} --retries 0", pip(DENIED).replace("lib", "other")),
    );
    task.end();
    only_allowed(&world);
}

#[test]
fn npm_installs_from_its_registry() {
    let Some(world) = world_with(&["npm", "node"]) else {
        return;
    };
    world.on_host(&format!(
        "cd {} && mkdir package && echo '{{\"name\":\"outsider\",\"version\":\"1.2.3\",\"main\":\"i.js\"}}' > package/package.json
         echo 'console.log(\"a package from outside\")' > package/i.js && tar czf outsider.tgz package",
        world.www().display()
    ));
    let packument = format!(
        r#"{{"name":"outsider","dist-tags":{{"latest":"1.2.3"}},"versions":{{"1.2.3":{{"name":"outsider","version":"1.2.3","dist":{{"tarball":"https://{ALLOWED}/outsider.tgz"}}}}}}}}"#
    );
    std::fs::write(world.www().join("outsider"), packument).unwrap();
    let mut task = start(&world, &[], "");
    let npm = |host| {
        format!(
            "npm install --no-audit --no-fund --no-update-notifier --fetch-retries=0 --registry https://{host}/ outsider"
        )
    };
    let ran = works(
        &mut task,
        &format!(
            "mkdir a && cd a && {} >&2 && node -e 'require(\"outsider\")'",
            npm(ALLOWED)
        ),
    );
    assert_eq!(ran.stdout, "a package from outside\n");
    fails(&mut task, &format!("mkdir b && cd b && {}", npm(DENIED)));
    task.end();
    only_allowed(&world);
}

#[test]
fn nodes_own_fetch_goes_through() {
    let Some(world) = world_with(&["node"]) else { return };
    let mut task = start(&world, &[], "NODE_OPTIONS = \"--max-old-space-size=900\"\n");
    let fetch = |host| {
        format!("node -e \"fetch('https://{host}/hello').then(r => r.text()).then(t => process.stdout.write(t))\"")
    };
    assert_eq!(works(&mut task, &fetch(ALLOWED)).stdout, "hello from outside\n");
    let plain = fetch(ALLOWED).replace("https:", "http:");
    assert_eq!(works(&mut task, &plain).stdout, "hello from outside\n");
    let posted = format!(
        "node -e \"fetch('https://{ALLOWED}/post', {{method: 'POST', body: 'said'}}).then(r => r.text()).then(console.log)\""
    );
    assert_eq!(works(&mut task, &posted).stdout, "said\n");
    // The sandbox's own loopback is reached without the proxy.
    let own = "node -e \"require('http').createServer((q, a) => a.end('own')).listen(8123, '127.0.0.1', async () => {
        console.log(await (await fetch('http://127.0.0.1:8123/')).text()); process.exit() })\"";
    assert_eq!(works(&mut task, own).stdout, "own\n");
    let refused = fails(&mut task, &fetch(DENIED));
    assert!(!refused.stdout.contains("hello"), "{refused:?}");
    // A task's own options stand beside ours.
    let options = works(&mut task, "node -p 'process.env.NODE_OPTIONS'");
    assert!(options.stdout.contains("--max-old-space-size=900"), "{options:?}");
    task.end();
    only_allowed(&world);
}

#[test]
fn cargo_fetches_from_a_registry() {
    let Some(world) = World::make(Caller::Root) else { return };
    let found = Command::new("rustc").args(["--print", "sysroot"]).output().unwrap();
    let toolchain = PathBuf::from(String::from_utf8(found.stdout).unwrap().trim());
    let www = world.www();
    std::fs::create_dir_all(www.join("index/ou/ts")).unwrap();
    world.on_host(&format!(
        "cd {} && mkdir -p outsider-1.0.0/src && echo 'pub fn say() -> &'\"'static str\"' {{ \"a crate from outside\" }}' > outsider-1.0.0/src/lib.rs
         printf '[package]\\nname = \"outsider\"\\nversion = \"1.0.0\"\\nedition = \"2021\"\\n' > outsider-1.0.0/Cargo.toml
         tar czf outsider-1.0.0.crate outsider-1.0.0
         echo '{{\"dl\":\"https://{ALLOWED}/{{crate}}-{{version}}.crate\"}}' > index/config.json
         printf '{{\"name\":\"outsider\",\"vers\":\"1.0.0\",\"deps\":[],\"cksum\":\"%s\",\"features\":{{}},\"yanked\":false}}\\n' $(sha256sum outsider-1.0.0.crate | cut -d' ' -f1) > index/ou/ts/outsider",
        www.display()
    ));
    let more = format!("[[readable_roots]]\nhost = {toolchain:?}\npath = \"/toolchain\"\n");
    let mut task = start(&world, &[], &more);
    let project = |name: &str, host: &str| {
        format!(
            "export PATH=/toolchain/bin:$PATH CARGO_NET_RETRY=0 CARGO_REGISTRIES_OUT_INDEX=sparse+https://{host}/index/
             mkdir {name} && cd {name} && mkdir src && echo 'fn main() {{ print!(\"{{}}\", outsider::say()) }}' > src/main.rs
             printf '[package]\\nname = \"{name}\"\\nversion = \"0.1.0\"\\nedition = \"2021\"\\n[dependencies]\\noutsider = {{ version = \"1\", registry = \"out\" }}\\n' > Cargo.toml
             cargo fetch"
        )
    };
    works(&mut task, &project("good", ALLOWED));
    fails(&mut task, &project("bad", DENIED));
    task.end();
    only_allowed(&world);
    assert!(
        world
            .seen()
            .iter()
            .any(|line| line.ends_with("GET /outsider-1.0.0.crate"))
    );
}

#[test]
fn apt_fetches_its_lists_and_packages() {
    let Some(world) = world_with(&["apt-get", "dpkg-deb"]) else {
        return;
    };
    world.on_host(&format!(
        "cd {} && mkdir -p d/DEBIAN && printf 'Package: outsider\\nVersion: 1.0\\nArchitecture: all\\nMaintainer: a <a@b.c>\\nDescription: x\\n' > d/DEBIAN/control
         dpkg-deb -b d outsider.deb >/dev/null
         (cat d/DEBIAN/control; printf 'Filename: ./outsider.deb\\nSize: %s\\nSHA256: %s\\n\\n' $(stat -c %s outsider.deb) $(sha256sum outsider.deb | cut -d' ' -f1)) > Packages",
        world.www().display()
    ));
    let mut task = start(&world, &[], "");
    let apt = |host: &str, folder: &str| {
        format!(
            "mkdir -p {folder}/etc/apt/apt.conf.d {folder}/etc/apt/preferences.d {folder}/state/lists/partial {folder}/cache/archives/partial && cd {folder}
             touch status && echo 'deb [trusted=yes] https://{host}/ ./' > etc/apt/sources.list
             o='-q -o Acquire::Retries=0 -o APT::Sandbox::User= -o Dir::Etc='$PWD'/etc/apt -o Dir::State='$PWD'/state -o Dir::State::status='$PWD'/status -o Dir::Cache='$PWD'/cache'
             apt-get $o -o APT::Update::Error-Mode=any update && apt-get $o download outsider && ls"
        )
    };
    let ran = works(&mut task, &apt(ALLOWED, "good"));
    assert!(ran.stdout.contains("outsider_1.0_all.deb"), "{ran:?}");
    fails(&mut task, &apt(DENIED, "bad"));
    task.end();
    only_allowed(&world);
}

#[test]
fn java_fetches_over_https() {
    let Some(world) = world_with(&["java", "javac", "keytool"]) else {
        return;
    };
    let program = r#"
import java.net.*;
public class Fetch {
    public static void main(String[] a) throws Exception {
        var old = (HttpURLConnection) new URL(a[0]).openConnection();
        System.out.print(old.getResponseCode() + " " + new String(old.getInputStream().readAllBytes()));
        var client = java.net.http.HttpClient.newHttpClient();
        var request = java.net.http.HttpRequest.newBuilder(URI.create(a[0])).build();
        System.out.print(client.send(request, java.net.http.HttpResponse.BodyHandlers.ofString()).body());
    }
}"#;
    let work = world.place.work();
    std::fs::write(work.join("Fetch.java"), program).unwrap();
    world.on_host(&format!(
        "cd {} && javac Fetch.java && keytool -importcert -noprompt -file {}/ca.pem -keystore trust.jks -storepass changeit -alias outside 2>/dev/null",
        work.display(),
        world.folder().display()
    ));
    let mut task = start(&world, &[], "");
    let fetch = |host| {
        format!(
            "java -cp /workspace -Djavax.net.ssl.trustStore=/workspace/trust.jks -Djavax.net.ssl.trustStorePassword=changeit Fetch https://{host}/hello"
        )
    };
    let ran = works(&mut task, &fetch(ALLOWED));
    assert_eq!(ran.stdout, "200 hello from outside\nhello from outside\n");
    fails(&mut task, &fetch(DENIED));
    task.end();
    only_allowed(&world);
}

#[test]
fn go_fetches_over_https() {
    let Some(world) = world_with(&["go"]) else { return };
    let program = r#"package main

import ("fmt"; "io"; "net/http"; "os")

func main() {
	answer, err := http.Get(os.Args[1])
	if err != nil {
		fmt.Fprintln(os.Stderr, err)
		os.Exit(1)
	}
	body, _ := io.ReadAll(answer.Body)
	fmt.Print(string(body))
}
"#;
    let work = world.place.work();
    std::fs::write(work.join("fetch.go"), program).unwrap();
    world.on_host(&format!(
        "cd {} && export GO111MODULE=off CGO_ENABLED=0 GOCACHE={}/gocache && go build -o fetch fetch.go",
        work.display(),
        world.folder().display()
    ));
    let mut task = start(&world, &[], "");
    let fetch = |host| format!("/workspace/fetch https://{host}/hello");
    assert_eq!(works(&mut task, &fetch(ALLOWED)).stdout, "hello from outside\n");
    let refused = fails(&mut task, &fetch(DENIED));
    assert!(refused.stderr.contains("Forbidden"), "{refused:?}");
    task.end();
    only_allowed(&world);
}

/// `ssh` finds its way by the configuration that belljar puts into the sandbox, and git with it.
#[test]
fn ssh_reaches_an_allowed_host_and_no_other() {
    let Some(mut world) = world_with(&["ssh", "sshd", "ssh-keygen", "git"]) else {
        return;
    };
    let work = world.place.work().display().to_string();
    let folder = world.folder().display().to_string();
    world.on_host(&format!(
        "cd {folder} && ssh-keygen -q -t ed25519 -N '' -f host_key && ssh-keygen -q -t ed25519 -N '' -f {work}/id
         chmod 0644 {work}/id; cp {work}/id.pub authorized && chmod 0600 authorized && chown root authorized
         echo \"*.outside.example $(cat host_key.pub)\" > {work}/known_hosts
         mkdir -p /run/sshd
         printf 'HostKey {folder}/host_key\\nListenAddress 93.184.216.34\\nAuthorizedKeysFile {folder}/authorized\\nStrictModes no\\nPermitRootLogin yes\\nUsePAM no\\nPidFile none\\n' > sshd_config
         git init -q -b main {folder}/made && cd {folder}/made && git -c user.name=a -c user.email=a@b.c commit -q --allow-empty -m by-ssh"
    ));
    world.serve("/usr/sbin/sshd", &["-D", "-f", "sshd_config"]);
    let allowed = format!("{ALLOWED}:22");
    let mut task = start(&world, &[&allowed], "");
    // The test's keys belong to another user of the host than the one inside.
    let key = "cp /workspace/id /tmp/id && chmod 0600 /tmp/id; s='-i /tmp/id -o UserKnownHostsFile=/workspace/known_hosts -o BatchMode=yes'; ";
    let ssh = |host: &str| format!("{key} ssh $s root@{host} echo over ssh");
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    let ran = loop {
        // The server may still be starting.
        let ran = task.sh(&ssh(ALLOWED));
        if ran.code() == Some(0) || std::time::Instant::now() > deadline {
            break ran;
        }
    };
    assert_eq!(ran.stdout, "over ssh\n", "{ran:?}");
    let refused = fails(&mut task, &ssh(DENIED));
    assert!(
        refused.stderr.contains("network.deny"),
        "the refusal is told: {refused:?}"
    );
    fails(&mut task, &ssh("unlisted.outside.example"));
    let git = format!(
        "{key} GIT_SSH_COMMAND=\"ssh $s\" git clone -q root@{ALLOWED}:{folder}/made copy && git -C copy log --format=%s"
    );
    assert_eq!(works(&mut task, &git).stdout, "by-ssh\n");
    task.end();
    only_allowed(&world);
}
