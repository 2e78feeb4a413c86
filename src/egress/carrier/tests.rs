use std::process::Command;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::TcpStream;

use crate::audit::record::Event;
use crate::egress::front::hello::tests::hello;
use crate::egress::limits::Limits;
use crate::egress::room::Room;
use crate::egress::testing::{Fixture, Options, gate, tunnel};
use crate::task::Unknown;

/// A proxy whose every tunnel is carried elsewhere.
async fn fixture(room: &Room) -> Fixture {
    let room = room.clone();
    Fixture::start(Options {
        room,
        ..Options::default()
    })
    .await
}

/// Bytes sent, bytes received and error of each end.
fn ends(events: &[Event]) -> Vec<(u64, u64, Option<&str>)> {
    let ends = events.iter().filter_map(|event| match event {
        Event::EgressFinished {
            bytes_sent,
            bytes_received,
            error,
            ..
        } => Some((*bytes_sent, *bytes_received, error.as_deref())),
        _ => None,
    });
    ends.collect()
}

async fn is_closed(stream: &mut TcpStream) -> bool {
    matches!(stream.read(&mut [0; 1]).await, Ok(0) | Err(_))
}

/// Waits until so many places are free.
async fn free(room: &Room, places: usize) {
    while room.free() != places {
        tokio::task::yield_now().await;
    }
}

#[tokio::test]
async fn what_is_carried_elsewhere_arrives_whole_each_way_with_its_own_end() {
    let room = Room::elsewhere(1, 8);
    let fixture = fixture(&room).await;
    let (mut client, mut server) = tunnel(&fixture, "www.example.com", 443).await;
    let hello = hello(&["www.example.com"], 16_384);
    client.write_all(&hello).await.unwrap();
    let mut received = vec![0; hello.len()];
    server.read_exact(&mut received).await.unwrap();
    assert_eq!(received, hello);
    assert_eq!(room.processes().len(), 1, "a carrier has it");
    // It takes no place here, and one there.
    free(&room, 64 + 7).await;
    let text: Vec<u8> = (0..3_000_000u32).map(|at| ((at * 7) >> 3) as u8).collect();
    let (up, down) = (&text[..2_000_000], &text[..]);
    let (mut client_read, mut client_write) = client.split();
    let (mut server_read, mut server_write) = server.split();
    // Both directions stand at first, each with more than the sockets hold.
    let ((), (), sent, received) = tokio::join!(
        async {
            client_write.write_all(up).await.unwrap();
            client_write.shutdown().await.unwrap();
        },
        async { server_write.write_all(down).await.unwrap() },
        async {
            let mut seen = Vec::new();
            server_read.read_to_end(&mut seen).await.unwrap();
            seen
        },
        async {
            let mut seen = vec![0; down.len()];
            client_read.read_exact(&mut seen).await.unwrap();
            seen
        }
    );
    assert!(sent == up && received == down);
    // One side's end is not the other's.
    server.write_all(b"after").await.unwrap();
    let mut after = [0; 5];
    client.read_exact(&mut after).await.unwrap();
    assert_eq!(&after, b"after");
    drop(server);
    assert!(is_closed(&mut client).await);
    drop(client);
    free(&room, 64 + 8).await;
    let (events, _) = fixture.finish().await;
    let sent = (hello.len() + up.len()) as u64;
    assert_eq!(ends(&events), [(sent, down.len() as u64 + 5, None)]);
}

#[tokio::test]
async fn what_a_client_says_first_is_judged_here_before_it_passes() {
    let room = Room::elsewhere(1, 8);
    let fixture = fixture(&room).await;
    let (mut client, mut server) = tunnel(&fixture, "www.example.com", 443).await;
    // In two pieces, of which the first could be anything.
    let hello = hello(&["other.example.org"], 16_384);
    client.write_all(&hello[..9]).await.unwrap();
    server.write_all(b"banner").await.unwrap();
    let mut banner = [0; 6];
    client.read_exact(&mut banner).await.unwrap();
    client.write_all(&hello[9..]).await.unwrap();
    assert!(is_closed(&mut client).await);
    assert!(is_closed(&mut server).await, "nothing of it came through");
    let (events, _) = fixture.finish().await;
    assert_eq!(
        ends(&events),
        [(
            0,
            6,
            Some("the TLS server name is other.example.org, and the tunnel is for www.example.com")
        )]
    );
}

#[tokio::test]
async fn what_came_before_the_answer_goes_along() {
    let room = Room::elsewhere(1, 8);
    let fixture = fixture(&room).await;
    let hello = hello(&["www.example.com"], 16_384);
    let mut request = b"CONNECT www.example.com:443 HTTP/1.1\r\nHost: www.example.com:443\r\n\r\n".to_vec();
    request.extend(&hello);
    let client = fixture.send(&request).await;
    let (mut server, _) = fixture.server.accept().await.unwrap();
    let mut received = vec![0; hello.len()];
    server.read_exact(&mut received).await.unwrap();
    assert_eq!(received, hello);
    assert_eq!(room.processes().len(), 1);
    drop((client, server));
    fixture.finish().await;
}

#[tokio::test]
async fn a_policy_that_forbids_it_ends_it_there() {
    let room = Room::elsewhere(1, 8);
    let fixture = fixture(&room).await;
    let (mut gone, mut gone_server) = tunnel(&fixture, "gone.example.com", 80).await;
    let (mut kept, mut kept_server) = tunnel(&fixture, "kept.example.com", 80).await;
    gone.write_all(b"hello").await.unwrap();
    let mut received = [0; 5];
    gone_server.read_exact(&mut received).await.unwrap();
    let policy = gate(&["*.example.com"], &["gone.example.com"], Unknown::Deny, Vec::new());
    fixture.handle.reload(policy);
    assert!(is_closed(&mut gone).await);
    assert!(is_closed(&mut gone_server).await);
    kept.write_all(b"hello").await.unwrap();
    kept_server.read_exact(&mut received).await.unwrap();
    drop((kept, kept_server));
    let (events, _) = fixture.finish().await;
    assert_eq!(
        ends(&events)[0],
        (5, 0, Some("the deny list has gone.example.com")),
        "{events:?}"
    );
}

#[tokio::test]
async fn the_end_of_the_way_out_is_its_end_and_counts_are_whole() {
    let room = Room::elsewhere(1, 8);
    let fixture = fixture(&room).await;
    let (mut client, mut server) = tunnel(&fixture, "www.example.com", 80).await;
    let (mut silent, mut its_server) = tunnel(&fixture, "www.example.com", 80).await;
    client.write_all(b"hello").await.unwrap();
    let mut received = [0; 5];
    server.read_exact(&mut received).await.unwrap();
    let (events, _) = fixture.finish().await;
    for stream in [&mut client, &mut server, &mut silent, &mut its_server] {
        assert!(is_closed(stream).await);
    }
    let mut ends = ends(&events);
    ends.sort_unstable();
    let cut = Some("the connection was cut off");
    assert_eq!(ends, [(0, 0, cut), (5, 0, cut)]);
    drop(room);
}

#[tokio::test]
async fn a_carrier_that_is_killed_takes_its_connections_along_and_the_next_ones_have_another() {
    let room = Room::elsewhere(1, 8);
    let fixture = fixture(&room).await;
    let (mut client, mut server) = tunnel(&fixture, "www.example.com", 80).await;
    client.write_all(b"hello").await.unwrap();
    let mut received = [0; 5];
    server.read_exact(&mut received).await.unwrap();
    let (mut silent, _its_server) = tunnel(&fixture, "www.example.com", 80).await;
    let first = room.processes();
    let killed = Command::new("kill").args(["-KILL", &first[0].to_string()]).status();
    assert!(killed.unwrap().success());
    for stream in [&mut client, &mut server, &mut silent] {
        assert!(is_closed(stream).await);
    }
    while room.processes() == first {
        tokio::task::yield_now().await;
    }
    let (mut client, mut server) = tunnel(&fixture, "www.example.com", 80).await;
    client.write_all(b"hello").await.unwrap();
    server.read_exact(&mut received).await.unwrap();
    let second = room.processes();
    assert!(second.len() == 1 && second != first, "{second:?}");
    drop((client, server));
    free(&room, 64 + 8).await;
    let (events, _) = fixture.finish().await;
    let lost = Some("the process that carried the connection is gone");
    let is_lost = |end: &(u64, u64, Option<&str>)| end.2 == lost;
    let ends = ends(&events);
    assert_eq!(ends.iter().filter(|end| is_lost(end)).count(), 2, "{ends:?}");
    assert!(ends.contains(&(5, 0, None)), "{ends:?}");
}

#[tokio::test]
async fn limits_hold_over_all_processes_and_an_end_makes_room() {
    let room = Room::elsewhere(2, 3);
    let fixture = fixture(&room).await;
    let mut held = Vec::new();
    for _ in 0..6 {
        held.push(tunnel(&fixture, "www.example.com", 80).await);
    }
    assert_eq!(room.processes().len(), 2);
    free(&room, 64).await;
    // Where there is no seat, it stays here.
    let (mut client, mut server) = tunnel(&fixture, "www.example.com", 80).await;
    server.write_all(b"x").await.unwrap();
    client.read_exact(&mut [0]).await.unwrap();
    assert_eq!(room.free(), 63);
    drop(held);
    free(&room, 63 + 6).await;
    drop((client, server));
    fixture.finish().await;
}

#[tokio::test]
async fn the_limit_of_a_task_counts_what_is_carried_elsewhere() {
    let fixture = Fixture::start(Options {
        room: Room::elsewhere(1, 8),
        limits: Limits {
            connections: 1,
            ..Limits::default()
        },
        ..Options::default()
    })
    .await;
    let (mut client, mut server) = tunnel(&fixture, "www.example.com", 80).await;
    client.write_all(b"x").await.unwrap();
    server.read_exact(&mut [0]).await.unwrap();
    let answer = fixture.exchange("").await;
    assert!(answer.starts_with("HTTP/1.1 503"), "{answer}");
    drop((client, server));
    fixture.finish().await;
}

#[tokio::test]
async fn an_idle_one_ends_and_one_that_moves_does_not() {
    let fixture = Fixture::start(Options {
        room: Room::elsewhere(1, 8),
        limits: Limits {
            idle_time: std::time::Duration::from_millis(400),
            ..Limits::default()
        },
        ..Options::default()
    })
    .await;
    let (mut client, mut server) = tunnel(&fixture, "www.example.com", 80).await;
    client.write_all(b"hello").await.unwrap();
    server.read_exact(&mut [0; 5]).await.unwrap();
    assert!(is_closed(&mut client).await);
    let (events, _) = fixture.finish().await;
    let [(5, 0, Some(error))] = ends(&events)[..] else {
        panic!("{events:?}");
    };
    assert!(error.starts_with("nothing was sent or received"), "{error}");
}
