//! Every probe of the proxy in `tests/data/egress/probes.jsonl`, sent from inside a sandbox, with what its line asks for.

use std::path::Path;

use serde_json::Value;

use crate::jail::{Caller, available};
use crate::world::{ALLOWED, DENIED, World};

fn probes() -> Vec<Value> {
    let file = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/data/egress/probes.jsonl");
    let text = std::fs::read_to_string(file).unwrap();
    let all = text.lines().map(|line| serde_json::from_str::<Value>(line).unwrap());
    all.filter(|probe| probe["phase"] == "proxy").collect()
}

fn try_all(caller: Caller) {
    let Some(world) = World::make(caller) else { return };
    let mut task = world.place.start(&world.network(&[
        "private.outside.example",
        "rebind.outside.example",
        "mixed.outside.example",
        "alias.outside.example",
        "10.11.12.13.outside.example",
    ]));
    let mut faults = Vec::new();
    let good = task.sh(&format!("curl -sS --max-time 20 https://{ALLOWED}/hello"));
    assert_eq!(
        good.stdout, "hello from outside\n",
        "the way to an allowed host is open: {good:?}"
    );
    for probe in probes() {
        let mut command = probe["command"].as_str().unwrap().to_owned();
        for (name, host) in [
            ("{ALLOWED_HOST}", ALLOWED),
            ("{DENIED_HOST}", DENIED),
            ("{UNKNOWN_HOST}", "unknown.outside.example"),
            ("{PRIVATE_NAME}", "private.outside.example"),
            ("{REBIND_NAME}", "rebind.outside.example"),
            ("{PATHRULE_HOST}", "paths.outside.example"),
            ("{PORT}", "443"),
        ] {
            command = command.replace(name, host);
        }
        if probe["id"] == "PXY-075" {
            // The first look is public and would be let out, rightly; it is the second that must not lead elsewhere.
            task.sh("curl -sS -o /dev/null http://rebind.outside.example/");
        }
        let ran = task.python(&command);
        let line = ran.last_line();
        let how = probe["how_checked"].as_str().unwrap();
        let well = match how {
            how if how.starts_with("INFO") || how.starts_with("host:") => {
                line.starts_with("INFO") || line.starts_with("BLOCKED")
            }
            _ => line.starts_with("BLOCKED"),
        };
        if !well {
            faults.push(format!("{}: wanted {how:?}, got {line:?} {}", probe["id"], ran.stderr));
        }
    }
    // An allowed tunnel's inner request may name any host: that is what only a look into TLS could see.
    let inner = format!("https {DENIED} GET /");
    for line in world.seen() {
        let to_denied = line.contains(DENIED) && line != inner;
        let asked_outside = line.starts_with("dns ") && !line.ends_with("outside.example");
        if line.starts_with("private") || to_denied || asked_outside || line.contains("unknown.outside") {
            faults.push(format!("it came out: {line}"));
        }
    }
    task.end();
    assert!(faults.is_empty(), "{caller:?}:\n{}", faults.join("\n"));
}

#[test]
fn every_probe_of_the_proxy_is_blocked() {
    for caller in [Caller::Root, Caller::Ordinary, Caller::Runc] {
        if let Some(caller) = available(caller) {
            try_all(caller);
        }
    }
}

/// What a name resolves to is no way around: private addresses behind a name, behind an alias, beside a public one.
#[test]
fn names_of_private_places_are_refused_however_they_resolve() {
    let Some(world) = World::make(Caller::Root) else { return };
    let names = ["private", "mixed", "alias"].map(|name| format!("{name}.outside.example"));
    let patterns: Vec<&str> = names.iter().map(String::as_str).collect();
    let mut task = world.place.start(&world.network(&patterns));
    for name in &names {
        let ran = task.sh(&format!("curl -sS http://{name}/hello"));
        let told: Value = serde_json::from_str(&ran.stdout).unwrap_or_else(|_| panic!("{name}: {ran:?}"));
        assert_eq!(
            (&told["decision"], &told["rule"]),
            (&Value::from("deny"), &Value::from("local")),
            "{told}"
        );
        let lookup = task.python(&format!("import socket\nprint(socket.gethostbyname({name:?}))"));
        assert_ne!(lookup.code(), Some(0), "{lookup:?}");
    }
    assert!(!world.seen().iter().any(|line| line.starts_with("private")));
    task.end();
}

/// All that tells of a no tells the same: HTTP, CONNECT, SOCKS and DNS.
#[test]
fn a_refusal_has_one_shape_in_every_protocol() {
    let Some(world) = World::make(Caller::Root) else { return };
    let mut task = world.place.start(&world.network(&[]));
    let plain = task.sh(&format!("curl -sS http://{DENIED}/"));
    let told: Value = serde_json::from_str(&plain.stdout).unwrap();
    let mut keys: Vec<&String> = told.as_object().unwrap().keys().collect();
    keys.sort();
    assert_eq!(keys, ["decision", "host", "how_to_ask", "port", "reason", "rule"]);
    let rule = format!("network.deny {DENIED}");
    assert_eq!(told["rule"], rule.as_str());
    let tunnel = task.sh(&format!(
        "curl -sS -o /dev/null -w '%{{http_connect}}' https://{DENIED}/"
    ));
    assert_eq!(tunnel.stdout, "403", "{tunnel:?}");
    let socks = task.sh(&format!("curl -sS -x $SOCKS_PROXY https://{DENIED}/"));
    assert_eq!(socks.code(), Some(97), "{socks:?}");
    let dns = task.python(&format!(
        "import socket, struct
name = {DENIED:?}
labels = b''.join(bytes([len(l)]) + l.encode() for l in name.split('.')) + b'\\0'
s = socket.socket(2, 2)
s.settimeout(5)
s.sendto(b'\\x12\\x34\\x01\\0\\0\\x01\\0\\0\\0\\0\\0\\x01' + labels + b'\\0\\x01\\0\\x01' + b'\\0\\0\\x29\\x04\\xd0\\0\\0\\0\\0\\0\\0', ('127.0.0.1', 53))
answer = s.recv(4096)
print(answer[3] & 15, b'{rule}' in answer)"
    ));
    assert_eq!(
        dns.stdout, "5 True\n",
        "REFUSED, with the rule in the extended error: {dns:?}"
    );
    assert_eq!(world.seen(), Vec::<String>::new(), "nothing of it was asked outside");
    task.end();
}
