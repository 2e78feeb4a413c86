use belljar::api::client::Output;
use belljar::api::messages::{Control, Event, ExecEnd};
use belljar::audit::record::ExecOutcome;
use belljar::policy::{Stdin, TtySize};

use crate::live::{Live, finished, start, story};

async fn all(mut output: Output) -> Vec<Event> {
    let mut events = Vec::new();
    while let Some(event) = output.next().await.unwrap() {
        events.push(event);
    }
    events
}

fn bytes(events: &[Event]) -> Vec<u8> {
    let outputs = events.iter().filter_map(|event| match event {
        Event::Output { data, .. } => Some(data.as_ref()),
        _ => None,
    });
    outputs.collect::<Vec<_>>().concat()
}

#[tokio::test]
async fn stdin_goes_in_and_stdout_comes_out_unchanged() {
    let live = Live::start().await;
    let mut request = start(&["cat"]);
    request.stdin = Stdin::Stream;
    let exec = live.task.start(&request).await.unwrap();
    let (mut input, output) = live.task.attach(exec.id, 0).await.unwrap();
    let sent: Vec<u8> = (0..3_000_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 13) as u8)
        .collect();
    let write = async {
        for chunk in sent.chunks(70_001) {
            input.write_stdin(chunk).await.unwrap();
        }
        input.control(Control::StdinClosed).await.unwrap();
    };
    let ((), events) = tokio::join!(write, all(output));
    assert!(
        bytes(&events) == sent,
        "{} bytes of {} came back",
        bytes(&events).len(),
        sent.len()
    );
}

#[tokio::test]
async fn events_come_in_order_and_the_streams_apart() {
    let live = Live::start().await;
    let script = "echo out; sleep 0.1; echo err >&2";
    let exec = live.task.start(&start(&["sh", "-c", script])).await.unwrap();
    let (_input, output) = live.task.attach(exec.id, 0).await.unwrap();
    let story = story(&all(output).await);
    assert_eq!(
        story,
        ["judged allow", "started", "Stdout out\n", "Stderr err\n", "ended"]
    );
}

#[tokio::test]
async fn attaching_again_goes_on_where_it_was_left() {
    let live = Live::start().await;
    let mut request = start(&["sh", "-c", "echo one; read x; echo $x"]);
    request.stdin = Stdin::Stream;
    let exec = live.task.start(&request).await.unwrap();
    let (input, mut output) = live.task.attach(exec.id, 0).await.unwrap();
    let mut first = Vec::new();
    while bytes(&first) != b"one\n" {
        first.push(output.next().await.unwrap().unwrap());
    }
    let seen = output.seen();
    drop((input, output));
    let (mut input, output) = live.task.attach(exec.id, seen).await.unwrap();
    input.write_stdin(b"two\n").await.unwrap();
    assert_eq!(story(&all(output).await), ["Stdout two\n", "ended"]);
    let (_input, output) = live.task.attach(exec.id, 0).await.unwrap();
    assert_eq!(bytes(&all(output).await), b"one\ntwo\n");
}

#[tokio::test]
async fn a_refused_exec_tells_its_reason_and_closes() {
    let live = Live::start().await;
    let exec = live.task.start(&start(&["question"])).await.unwrap();
    let (_input, output) = live.task.attach(exec.id, 0).await.unwrap();
    let events = all(output).await;
    assert_eq!(story(&events), ["judged ask", "asked", "ended"]);
    let Some(Event::Ended {
        end: ExecEnd::Refused(refused),
    }) = events.last()
    else {
        panic!("{events:?}");
    };
    assert_eq!(refused.approver.as_ref().unwrap().via, "a test runs");
}

#[tokio::test]
async fn resize_and_signal_go_over_the_same_socket() {
    let live = Live::start().await;
    let mut request = start(&[
        "sh",
        "-c",
        "trap 'stty size' WINCH; echo ready; while :; do read x; done",
    ]);
    request.stdin = Stdin::Stream;
    request.tty = Some(TtySize { rows: 24, cols: 80 });
    let exec = live.task.start(&request).await.unwrap();
    let (mut input, mut output) = live.task.attach(exec.id, 0).await.unwrap();
    let mut seen = Vec::new();
    let until = async |output: &mut Output, seen: &mut Vec<Event>, text: &str| {
        while !String::from_utf8_lossy(&bytes(seen)).contains(text) {
            seen.push(output.next().await.unwrap().unwrap());
        }
    };
    until(&mut output, &mut seen, "ready").await;
    input.control(Control::Resize { rows: 50, cols: 132 }).await.unwrap();
    until(&mut output, &mut seen, "50 132").await;
    input.control(Control::Signal { signal: 9 }).await.unwrap();
    let events = all(output).await;
    let Some(Event::Ended { end }) = events.last() else {
        panic!("{events:?}");
    };
    assert_eq!(finished(end).outcome, ExecOutcome::Signaled);
}

#[tokio::test]
async fn a_caller_that_goes_away_leaves_the_command_running() {
    let live = Live::start().await;
    let mut request = start(&["cat"]);
    request.stdin = Stdin::Stream;
    let exec = live.task.start(&request).await.unwrap();
    let (mut input, mut output) = live.task.attach(exec.id, 0).await.unwrap();
    input.write_stdin(b"here").await.unwrap();
    let mut events = Vec::new();
    while bytes(&events) != b"here" {
        events.push(output.next().await.unwrap().unwrap());
    }
    drop((input, output));
    let (mut input, output) = live.task.attach(exec.id, 0).await.unwrap();
    input.write_stdin(b" still").await.unwrap();
    input.control(Control::StdinClosed).await.unwrap();
    assert_eq!(bytes(&all(output).await), b"here still");
}

#[tokio::test]
async fn what_is_not_understood_closes_the_connection_with_the_reason() {
    use futures_util::{SinkExt, StreamExt};
    use tokio_tungstenite::tungstenite::Message;

    let live = Live::start().await;
    let mut request = start(&["cat"]);
    request.stdin = Stdin::Stream;
    let exec = live.task.start(&request).await.unwrap();
    for message in [
        Message::text("{\"type\":\"resize\",\"rows\":\"many\",\"cols\":1}"),
        Message::binary(vec![9, 1, 2]),
    ] {
        let socket = belljar::api::folder::of_task(live.state.path(), live.handle.id()).join("api.sock");
        let stream = tokio::net::UnixStream::connect(socket).await.unwrap();
        let uri = format!(
            "ws://belljar/v1/tasks/{}/execs/{}/attach?after=2",
            live.handle.id(),
            exec.id
        );
        let (mut socket, _) = tokio_tungstenite::client_async(uri, stream).await.unwrap();
        socket.send(message).await.unwrap();
        let Some(Ok(Message::Close(Some(frame)))) = socket.next().await else {
            panic!("no close frame");
        };
        assert_eq!(u16::from(frame.code), 1008);
        assert!(
            frame.reason.contains("expected u16") || frame.reason.contains("byte 0"),
            "{}",
            frame.reason
        );
    }
}
