//! What is spoken on loopback beside HTTP: SOCKS with its datagrams, and DNS.

use crate::jail::Caller;
use crate::world::{ALLOWED, DENIED, World};

/// A client as the standard has it: an association, then datagrams with their header.
const CLIENT: &str = "import socket, sys
def to(name, data):
    return b'\\0\\0\\0\\3' + bytes([len(name)]) + name.encode() + (7).to_bytes(2, 'big') + data
held = socket.create_connection(('127.0.0.1', 1080), 5)
held.sendall(b'\\5\\1\\0')
held.recv(2)
held.sendall(b'\\5\\3\\0\\1\\0\\0\\0\\0\\0\\0')
reply = held.recv(10)
print('association', reply[1], flush=True)
if reply[1]:
    sys.exit()
relay = (socket.inet_ntoa(reply[4:8]), int.from_bytes(reply[8:10], 'big'))
s = socket.socket(2, 2)
s.settimeout(5)
for name in sys.argv[1:]:
    s.sendto(to(name, b'for ' + name.encode()), relay)
try:
    print(s.recv(4096)[10:].decode())
except OSError as e:
    print('nothing', e)
";

#[test]
fn datagrams_leave_by_a_rule_and_come_back() {
    let Some(world) = World::make(Caller::Root) else { return };
    let rules = world.place.path().join("agent.rules");
    std::fs::write(
        &rules,
        format!("network_rule(host = \"{ALLOWED}\", protocol = \"socks5_udp\", decision = \"allow\")\n"),
    )
    .unwrap();
    let spec = format!("{}[gate]\nrules = [{rules:?}]\n", world.network(&[]));
    let mut task = world.place.start(&spec);
    let ran = task.run(&["python3", "-c", CLIENT, DENIED, "unlisted.outside.example", ALLOWED]);
    assert_eq!(ran.stdout, format!("association 0\nfor {ALLOWED}\n"), "{ran:?}");
    task.end();
    assert_eq!(
        world.seen(),
        [
            format!("dns {ALLOWED}"),
            format!("dns {ALLOWED}"),
            format!("udp for {ALLOWED}")
        ]
    );
}

#[test]
fn without_a_rule_datagrams_are_refused_even_to_an_allowed_host() {
    let Some(world) = World::make(Caller::Root) else { return };
    let mut task = world.place.start(&world.network(&[]));
    let ran = task.run(&["python3", "-c", CLIENT, ALLOWED]);
    assert_eq!(ran.stdout, "association 7\n", "{ran:?}");
    let summary = task.end();
    assert_eq!(summary["refused_egress"][0]["rule"], "protocol", "{summary}");
    assert_eq!(world.seen(), Vec::<String>::new());
}

/// Whoever allows a name has not allowed every name that it may become.
#[test]
fn a_name_that_is_another_word_for_a_denied_one_leads_nowhere() {
    let Some(world) = World::make(Caller::Root) else { return };
    let mut task = world
        .place
        .start(&world.network(&["alias-of-denied.outside.example", "alias-of-allowed.outside.example"]));
    let ask = |name: &str| format!("curl -sS http://{name}.outside.example/hello");
    let refused = task.sh(&ask("alias-of-denied"));
    let rule = format!("network.deny {DENIED}");
    assert!(refused.stdout.contains(&rule), "{refused:?}");
    let answered = task.sh(&ask("alias-of-allowed"));
    assert_eq!(answered.stdout, "hello from outside\n", "{answered:?}");
    task.end();
    let seen = world.seen();
    let fetched: Vec<_> = seen.iter().filter(|line| line.starts_with("http ")).collect();
    assert_eq!(
        fetched,
        ["http alias-of-allowed.outside.example GET /hello"],
        "{seen:?}"
    );
}

/// Programs that resolve by themselves are answered for allowed names, and nobody outside hears of others.
#[test]
fn allowed_names_resolve_and_no_other_is_asked_outside() {
    let Some(world) = World::make(Caller::Root) else { return };
    let mut task = world.place.start(&world.network(&[]));
    let look = |name: &str| format!("import socket\nprint(socket.gethostbyname({name:?}))");
    assert_eq!(task.python(&look(ALLOWED)).stdout, "93.184.216.34\n");
    for name in [
        DENIED,
        "unlisted.outside.example",
        "secret-data.attacker.example",
        "metadata.google.internal",
    ] {
        let ran = task.python(&look(name));
        assert_ne!(ran.code(), Some(0), "{name}: {ran:?}");
    }
    task.end();
    let seen = world.seen();
    assert!(
        !seen.is_empty() && seen.iter().all(|line| line == &format!("dns {ALLOWED}")),
        "{seen:?}"
    );
}
