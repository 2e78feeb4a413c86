//! Programs that know none of the variables, and trust what the system trusts: inside, that includes the task's own authority.

use crate::inspected::{PLAIN, world_of};
use crate::jail::{Caller, available};
use crate::programs::installed;
use crate::world::ALLOWED;

/// What is left of the environment: the way to the proxy, and nothing about certificates.
const BARE: &str = "env -i PATH=$PATH HOME=$HOME https_proxy=$https_proxy";

#[test]
fn programs_that_read_only_the_systems_certificates_trust_a_host_that_is_looked_into() {
    if !["curl", "wget", "python3", "openssl"]
        .iter()
        .all(|program| installed(program))
    {
        return;
    }
    for caller in [Caller::Root, Caller::Ordinary, Caller::Runc] {
        if let Some(caller) = available(caller) {
            read_the_systems(caller);
        }
    }
}

fn read_the_systems(caller: Caller) {
    let Some(world) = world_of(caller) else { return };
    let digest = "cd /etc/ssl/certs && find . -type f -o -type l | sort | xargs sha256sum 2>/dev/null | sha256sum";
    let before = world.on_host(digest);
    let spec = format!(
        "[network]\nmode = \"proxy\"\nallow = [{PLAIN:?}]\nunknown = \"deny\"\n[[network.hosts]]\nhost = {ALLOWED:?}\nmethods = \"read-only\"\n"
    );
    let mut task = world.place.start(&spec);
    let fetch = "import urllib.request\nprint(urllib.request.urlopen('https://$0/hello').read().decode(), end='')";
    let tunnel = "openssl s_client -quiet -verify_return_error -verify_quiet -proxy 127.0.0.1:3128 -connect $0:443 -servername $0";
    let programs = [
        // OpenSSL by the bundle, GnuTLS by the bundle, OpenSSL by its folder.
        format!("{BARE} curl -sS https://{ALLOWED}/hello"),
        format!("{BARE} wget -qO- -t1 https://{ALLOWED}/hello"),
        format!("{BARE} python3 -c \"{}\"", fetch.replace("$0", ALLOWED)),
        format!(
            "(printf 'GET /hello HTTP/1.1\\r\\nHost: {ALLOWED}\\r\\nConnection: close\\r\\n\\r\\n'; sleep 2) | {BARE} {} | tail -1",
            tunnel.replace("$0", ALLOWED)
        ),
    ];
    for program in &programs {
        let got = task.sh(program);
        assert_eq!(got.stdout, "hello from outside\n", "{caller:?}: {program}: {got:?}");
    }
    // The machine's own authorities are where they were, by the bundle, the folder and one by one.
    let count = "cat /run/belljar/machine/etc-ssl-certs/ca-certificates.crt | grep -c BEGIN";
    let machine: usize = task.sh(count).stdout.trim().parse().unwrap();
    let inside: usize = task
        .sh("grep -c BEGIN /etc/ssl/certs/ca-certificates.crt")
        .stdout
        .trim()
        .parse()
        .unwrap();
    // And that of the test's configuration, and the task's own.
    assert_eq!(inside, machine + 2);
    let names =
        "ls /run/belljar/machine/etc-ssl-certs | while read name; do test -e /etc/ssl/certs/$name || echo $name; done";
    assert_eq!(task.sh(names).stdout, "", "all of the machine's are there");
    // Nobody inside changes what others there trust.
    for path in [
        "/etc/ssl/certs/ca-certificates.crt",
        "/run/belljar/authority.pem",
        "/etc/ssl/certs/new.pem",
    ] {
        let wrote = task.sh(&format!("echo x >> {path}"));
        assert_ne!(wrote.code(), Some(0), "{path}");
    }
    task.end();
    assert_eq!(
        world.on_host(digest),
        before,
        "the machine's own files are as they were"
    );

    // A task of which nothing is looked into has the machine's own folder, and nothing of ours in it.
    let mut task = world.place.start(&world.network(&[]));
    let listed = task.sh("ls -l /etc/ssl/certs /run/belljar");
    assert!(
        !listed.stdout.contains("b4ad2c50.0") && !listed.stdout.contains("machine"),
        "{listed:?}"
    );
    assert_ne!(
        task.sh(&format!("{BARE} curl -sS https://{ALLOWED}/hello")).code(),
        Some(0)
    );
    task.end();
}

/// Java's own store, where nothing tells it of another one.
#[test]
fn java_trusts_it_without_being_told() {
    if !["javac", "java"].iter().all(|program| installed(program))
        || !std::path::Path::new("/etc/ssl/certs/java/cacerts").exists()
    {
        return;
    }
    let Some(world) = world_of(Caller::Root) else { return };
    let fetch = "public class Fetch { public static void main(String[] a) throws Exception {
        System.setProperty(\"https.proxyHost\", \"127.0.0.1\"); System.setProperty(\"https.proxyPort\", \"3128\");
        System.out.print(new String(new java.net.URL(a[0]).openStream().readAllBytes())); } }";
    let work = world.place.work();
    std::fs::write(work.join("Fetch.java"), fetch).unwrap();
    world.on_host(&format!("cd {} && javac Fetch.java", work.display()));
    let spec = format!(
        "[network]\nmode = \"proxy\"\nunknown = \"deny\"\n[[network.hosts]]\nhost = {ALLOWED:?}\nmethods = \"read-only\"\n"
    );
    let mut task = world.place.start(&spec);
    let got = task.sh(&format!("{BARE} java -cp /workspace Fetch https://{ALLOWED}/hello"));
    assert_eq!(got.stdout, "hello from outside\n", "{got:?}");
    task.end();
}
