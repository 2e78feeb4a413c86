//! The WebSocket of one exec: its output and events to the caller, stdin and control from the caller.
//!
//! ```text
//!   caller  --- binary: 0 + stdin bytes, text: Control --->  exec
//!   caller  <-- binary: 1|2|3 + output, text: Event ------   exec
//!   caller  <-- Close 1000 after "ended" -----------------
//! ```
//!
//! Nothing is held here but one event: a caller that does not read makes the exec's own bounded store fill, and with it the
//! command wait. A caller that goes away leaves the exec running; it can attach again and say what it has seen.

use axum::extract::ws::{CloseFrame, Message, WebSocket, close_code};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};

use super::error::ApiError;
use super::messages::{Channel, Control, Event};
use super::wire;
use crate::exec::ExecEvent;
use crate::policy::TtySize;
use crate::supervisor::ExecHandle;

/// The largest frame from a caller.
pub const FRAME_LIMIT: usize = 16 << 20;

pub async fn attach(socket: WebSocket, exec: ExecHandle, after: u64) {
    let (mut sink, stream) = socket.split();
    let close = {
        let send = send_events(&mut sink, &exec, after);
        let take = take_input(stream, &exec);
        tokio::select! {
            sent = send => match sent {
                Ok(()) => Some((close_code::NORMAL, "the exec has ended".to_owned())),
                Err(_) => None,
            },
            // The caller went away, or said what cannot be understood.
            taken = take => taken.err().map(|error| (close_code::POLICY, error.to_string())),
        }
    };
    if let Some((code, reason)) = close {
        let frame = CloseFrame {
            code,
            reason: short(&reason).into(),
        };
        // A caller that is gone needs no farewell.
        let _ = sink.send(Message::Close(Some(frame))).await;
    }
}

async fn send_events(
    sink: &mut SplitSink<WebSocket, Message>,
    exec: &ExecHandle,
    after: u64,
) -> Result<(), axum::Error> {
    let mut events = exec.events(after);
    let mut seen = after;
    while let Some((seq, event)) = events.next().await {
        if seq != seen + 1 {
            sink.send(text(&Event::Gap { after: seq - 1 })).await?;
        }
        seen = seq;
        let message = match event {
            ExecEvent::Output { stream, data } => {
                let mut frame = BytesMut::with_capacity(data.len() + 1);
                frame.put_u8(Channel::of(stream) as u8);
                frame.extend_from_slice(&data);
                Message::Binary(frame.freeze())
            }
            event => text(&wire::event(event)),
        };
        sink.send(message).await?;
    }
    Ok(())
}

fn text(event: &Event) -> Message {
    let json = serde_json::to_string(event).expect("an event has string keys only");
    Message::Text(json.into())
}

async fn take_input(mut stream: SplitStream<WebSocket>, exec: &ExecHandle) -> Result<(), ApiError> {
    while let Some(Ok(message)) = stream.next().await {
        match message {
            Message::Binary(frame) => take_stdin(frame, exec).await?,
            Message::Text(text) => match read_control(text.as_bytes())? {
                Control::Resize { rows, cols } => exec.resize(wire::size(TtySize { rows, cols })?),
                // Too late is no fault of the caller: it cannot know yet.
                Control::Signal { signal } => drop(exec.signal(wire::signal(signal)?)),
                Control::StdinClosed => exec.close_stdin(),
            },
            Message::Close(_) => return Ok(()),
            Message::Ping(_) | Message::Pong(_) => {}
        }
    }
    Ok(())
}

fn read_control(text: &[u8]) -> Result<Control, ApiError> {
    wire::read_tagged(text).map_err(|error| ApiError::bad_request(format!("control message: {error}")))
}

async fn take_stdin(mut frame: Bytes, exec: &ExecHandle) -> Result<(), ApiError> {
    if frame.first() != Some(&(Channel::Stdin as u8)) {
        return Err(ApiError::bad_request(
            "a binary frame to an exec begins with the byte 0 (stdin)",
        ));
    }
    let data = frame.split_off(1);
    // A command that does not read any more is told apart by its end, not by an error here.
    let _ = wire::write_stdin(exec, data).await;
    Ok(())
}

/// As much of a reason as a close frame can hold (123 bytes).
fn short(reason: &str) -> &str {
    let mut end = reason.len().min(123);
    while !reason.is_char_boundary(end) {
        end -= 1;
    }
    &reason[..end]
}
