//! More than one task, and a belljar that ends.

use serde_json::json;

use crate::jail::{Caller, Place};
use crate::world::{ALLOWED, World};

/// What one task may do is not what another may: each has a proxy of its own, in a network of its own.
#[test]
fn two_tasks_never_see_each_others_proxy() {
    let Some(world) = World::make(Caller::Root) else { return };
    let other_place = Place::new(Caller::Root).within(world.host_id());
    let mut open = world.place.start(&world.network(&[]));
    let mut closed =
        other_place.start("[network]\nmode = \"proxy\"\nallow = [\"other.outside.example\"]\nunknown = \"deny\"\n");
    let fetch = format!("curl -sS http://{ALLOWED}/hello");
    assert_eq!(open.sh(&fetch).stdout, "hello from outside\n");
    assert!(closed.sh(&fetch).stdout.contains("\"deny\""));
    // A listener of the one is nothing to the other, on any address, abstract sockets included.
    let listens = open.begin(json!({"argv": ["python3", "-uc",
        "import socket\ns = socket.socket()\ns.bind(('0.0.0.0', 8123))\ns.listen()\nu = socket.socket(1)\nu.bind('\\0tell')\nu.listen()\nprint('up')\ns.accept()"]}));
    assert_eq!(open.output(&listens).trim(), "up");
    let found = closed.python(
        "import socket
for family, address in ((2, ('127.0.0.1', 8123)), (2, ('93.184.216.1', 8123)), (1, '\\0tell')):
    s = socket.socket(family)
    s.settimeout(2)
    try:
        s.connect(address)
        print('EXPOSED', address)
    except OSError as e:
        pass
print('BLOCKED')",
    );
    assert_eq!(found.stdout, "BLOCKED\n");
    open.signal(&listens, 9);
    open.finish(&listens);
    let summary = closed.end();
    assert_eq!(summary["refused_egress"][0]["host"], ALLOWED);
    open.end();
}

/// What goes out is put down to the exec whose processes held the socket, and to no other that runs beside it.
#[test]
fn bytes_are_put_down_to_the_exec_that_moved_them() {
    let Some(world) = World::make(Caller::Root) else { return };
    let mut task = world.place.start(&world.network(&[]));
    let moved = |ran: &crate::jail::Ran| {
        let number = |key: &str| ran.end[key].as_u64();
        (number("network_bytes_sent"), number("network_bytes_received"))
    };
    let alone = task.sh(&format!("curl -sS http://{ALLOWED}/hello"));
    let (sent, received) = moved(&alone);
    // Of a plain request's answer the body counts.
    assert_eq!(received, Some("hello from outside\n".len() as u64), "{alone:?}");
    let other = task.begin(json!({"argv": ["sh", "-c", "echo up; exec sleep 600"]}));
    assert_eq!(task.output(&other).trim(), "up");
    let beside = task.sh(&format!("curl -sS http://{ALLOWED}/hello"));
    assert_eq!(moved(&beside), (sent, received), "{beside:?}");
    let idle = task.sh("true");
    assert_eq!(moved(&idle), (Some(0), Some(0)));
    task.signal(&other, 9);
    assert_eq!(moved(&task.finish(&other)), (Some(0), Some(0)));
    task.end();
}

/// When belljar dies, so does the way out: nothing falls back to open, and nothing is left that could be reached.
#[test]
fn a_killed_belljar_takes_the_way_out_with_it() {
    let Some(world) = World::make(Caller::Root) else { return };
    let mut task = world.place.start(&world.network(&[]));
    let script = format!(
        "curl -sS http://{ALLOWED}/hello; while :; do curl -sS -m 2 http://{ALLOWED}/after-$i; i=$((i+1)); sleep 0.05; done"
    );
    let exec = task.begin(json!({"argv": ["sh", "-c", script]}));
    assert_eq!(task.output(&exec), "hello from outside\n");
    task.child.kill().unwrap();
    task.child.wait().unwrap();
    // With belljar its sandbox is gone, so that no process of it is left to try.
    let deadline = std::time::Instant::now() + std::time::Duration::from_secs(20);
    while !world.on_host("pgrep -f after-[$] || true").is_empty() {
        assert!(std::time::Instant::now() < deadline, "the sandbox outlives belljar");
        std::thread::yield_now();
    }
}
