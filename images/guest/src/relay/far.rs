//! The side in the sandbox: what a host would hold is held here, and its bytes go over the stream.

use std::collections::BTreeMap;
use std::io::Result;
use std::os::fd::{AsFd, OwnedFd};

use belljar_guest::{FromInit, FromSlot, ListenKind, ToInit, ToSlot, decode};

use super::streams::{Streams, Ways};
use super::wire::{Head, Wire, out_of_turn};
use super::{readable, ready};
use crate::kernel::{self, Wanted};
use crate::link::Link;

/// Where the numbers of streams begin that this side makes; below are the other's.
pub const OWN_STREAMS: u32 = 1 << 31;

/// The largest datagram that is passed on: DNS over UDP knows none larger.
pub const DATAGRAM_MAX: usize = 4096;

/// Who is ready.
#[derive(Debug, Clone, Copy)]
enum Source {
    Wire,
    Init,
    Slot(u32),
    Listener(usize),
    Stream(u32),
}

struct Slot {
    link: Link,
    /// The stream that its command's terminal is or will be.
    terminal: Option<u32>,
    /// The streams of what its command writes.
    outputs: Vec<u32>,
}

struct Listener {
    port: u16,
    kind: ListenKind,
    socket: OwnedFd,
}

struct Far {
    init: Link,
    wire: Wire,
    slots: BTreeMap<u32, Slot>,
    listeners: Vec<Listener>,
    streams: Streams,
    next_stream: u32,
}

/// Serves until either side is gone.
pub fn run(init: OwnedFd, stream: OwnedFd) -> Result<()> {
    kernel::hide()?;
    kernel::set_name(c"belljar-relay");
    let _signals = kernel::block_signals()?;
    kernel::set_nonblocking(init.as_fd())?;
    let mut far = Far {
        init: Link::new(init),
        wire: Wire::new(stream)?,
        slots: BTreeMap::new(),
        listeners: Vec::new(),
        streams: Streams::default(),
        next_stream: OWN_STREAMS,
    };
    while far.turn()? {
        far.wire.flush()?;
    }
    Ok(())
}

impl Far {
    fn wanted(&self) -> Vec<(Source, Wanted)> {
        let is_congested = self.wire.is_congested();
        let wire = Wanted {
            writable: self.wire.wants_to_write(),
            ..readable(self.wire.fd(), true)
        };
        let mut wanted = vec![(Source::Wire, wire), (Source::Init, readable(self.init.fd(), true))];
        let slots = self.slots.iter();
        wanted.extend(slots.map(|(number, slot)| (Source::Slot(*number), readable(slot.link.fd(), true))));
        // Whoever connects waits in the listener's queue until there is room.
        if !is_congested && !self.streams.is_full() {
            let listeners = self.listeners.iter().enumerate();
            wanted.extend(listeners.map(|(at, one)| (Source::Listener(at), readable(one.socket.as_fd(), true))));
        }
        let streams = self.streams.wanted(is_congested).into_iter();
        wanted.extend(streams.map(|(number, wanted)| (Source::Stream(number), wanted)));
        wanted
    }

    /// Waits once and does what can be done; `false` when a side is gone.
    fn turn(&mut self) -> Result<bool> {
        for (source, found) in ready(self.wanted())? {
            let goes_on = match source {
                Source::Wire => !found.readable || self.hear_host()?,
                Source::Init => self.hear_init()?,
                Source::Slot(slot) => {
                    self.hear_slot(slot)?;
                    true
                }
                Source::Listener(at) => {
                    self.take(at)?;
                    true
                }
                Source::Stream(number) => {
                    self.streams.turn(number, found, &mut self.wire);
                    true
                }
            };
            if !goes_on {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn hear_host(&mut self) -> Result<bool> {
        if !self.wire.fill()? {
            return Ok(false);
        }
        while let Some((head, rest)) = self.wire.next()? {
            match head {
                Head::Init => self.pass_to_init(decode(&rest).map_err(|_| out_of_turn())?)?,
                Head::Slot { slot, stream } => {
                    self.pass_to_slot(slot, stream, decode(&rest).map_err(|_| out_of_turn())?)?;
                }
                Head::SlotOver { slot } => drop(self.slots.remove(&slot)),
                Head::Datagram { port, peer, peer_port } => {
                    let udp = |one: &&Listener| one.port == port && one.kind == ListenKind::Udp;
                    if let Some(listener) = self.listeners.iter().find(udp) {
                        // A datagram may be lost.
                        let _ = kernel::send_to(listener.socket.as_fd(), &rest, peer, peer_port);
                    }
                }
                Head::Data { stream } => self.streams.data(stream, &rest, &mut self.wire)?,
                Head::Credit { stream, bytes } => self.streams.credit(stream, bytes, &mut self.wire)?,
                Head::End { stream } => self.streams.end(stream),
                Head::Deaf { stream } => self.streams.deaf(stream),
                Head::Accepted { .. } => return Err(out_of_turn()),
            }
        }
        Ok(true)
    }

    fn pass_to_init(&mut self, message: ToInit) -> Result<()> {
        match message {
            ToInit::AddSlot { slot } => {
                let (ours, theirs) = kernel::packet_pair()?;
                kernel::set_nonblocking(ours.as_fd())?;
                let link = Link::new(ours);
                let new = Slot {
                    link,
                    terminal: None,
                    outputs: Vec::new(),
                };
                self.slots.insert(slot, new);
                self.init.say(&message, &[theirs.as_fd()])
            }
            ToInit::Listen { .. } | ToInit::KillSlot { .. } | ToInit::Limits { .. } => self.init.say(&message, &[]),
            ToInit::Relay => Err(out_of_turn()),
        }
    }

    fn pass_to_slot(&mut self, number: u32, stream: u32, message: ToSlot) -> Result<()> {
        let Some(slot) = self.slots.get_mut(&number) else {
            // It ended a moment ago, which the host will hear; the streams of what it should have run end too.
            if let ToSlot::Start(_) = message {
                self.wire.put(Head::Deaf { stream }, &[]);
                for stream in [stream, stream + 1, stream + 2] {
                    self.wire.put(Head::End { stream }, &[]);
                }
            }
            return Ok(());
        };
        let said = match &message {
            ToSlot::Start(start) if start.tty.is_some() => {
                slot.terminal = Some(stream);
                slot.outputs = vec![stream];
                slot.link.say(&message, &[])
            }
            ToSlot::Start(_) => {
                slot.terminal = None;
                slot.outputs = vec![stream + 1, stream + 2];
                let (stdin, feed) = kernel::pipe()?;
                let (out, stdout) = kernel::pipe()?;
                let (err, stderr) = kernel::pipe()?;
                self.streams.add(stream, feed, Ways::In)?;
                self.streams.add(stream + 1, out, Ways::Out)?;
                self.streams.add(stream + 2, err, Ways::Out)?;
                slot.link
                    .say(&message, &[stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])
            }
            ToSlot::Resize { rows, cols } => {
                if let Some(terminal) = slot.terminal.and_then(|stream| self.streams.fd(stream)) {
                    let _ = kernel::set_terminal_size(terminal, *rows, *cols);
                }
                slot.link.say(&message, &[])
            }
            ToSlot::Signal { .. } | ToSlot::Kill => slot.link.say(&message, &[]),
        };
        if said.is_err() {
            // It is gone, or somebody has stopped it: in both cases it is of no use any more.
            self.slots.remove(&number);
            self.wire.put(Head::SlotOver { slot: number }, &[]);
        }
        Ok(())
    }

    fn hear_init(&mut self) -> Result<bool> {
        let Some((message, mut fds)) = self.init.hear::<FromInit>()? else {
            return Ok(false);
        };
        if let (FromInit::Listening { port, kind }, Some(socket)) = (&message, fds.pop()) {
            kernel::set_nonblocking(socket.as_fd())?;
            let (port, kind) = (*port, *kind);
            self.listeners.push(Listener { port, kind, socket });
        }
        // A pidfd, which is of this kernel, stays behind.
        self.wire.put_message(Head::Init, &message);
        Ok(true)
    }

    fn hear_slot(&mut self, number: u32) -> Result<()> {
        let Some(slot) = self.slots.get_mut(&number) else {
            return Ok(());
        };
        let Ok(Some((message, mut fds))) = slot.link.hear::<FromSlot>() else {
            self.slots.remove(&number);
            self.wire.put(Head::SlotOver { slot: number }, &[]);
            return Ok(());
        };
        let head = Head::Slot {
            slot: number,
            stream: 0,
        };
        self.wire.put_message(head, &message);
        if let FromSlot::Exited { .. } = &message {
            // What the command wrote is there to be read; what others may still write is nobody's.
            for stream in std::mem::take(&mut slot.outputs) {
                self.streams.finish(stream, &mut self.wire);
            }
        }
        if let (FromSlot::Started { .. }, Some(stream), Some(master)) = (&message, slot.terminal, fds.pop()) {
            // After the word that there is one: its first bytes come behind it.
            self.streams.add(stream, master, Ways::Both)?;
        }
        Ok(())
    }

    /// What waits at a listener: a connection, or a datagram.
    fn take(&mut self, at: usize) -> Result<()> {
        let Some(Listener { port, kind, socket }) = self.listeners.get(at) else {
            return Ok(());
        };
        match kind {
            ListenKind::Tcp => {
                // One that gave up while it waited is no longer there.
                let Ok(connection) = kernel::accept(socket.as_fd()) else {
                    return Ok(());
                };
                let stream = self.next_stream;
                self.next_stream = stream.checked_add(1).ok_or_else(out_of_turn)?;
                self.wire.put(Head::Accepted { stream, port: *port }, &[]);
                self.streams.add(stream, connection, Ways::Both)
            }
            ListenKind::Udp => {
                let mut buffer = [0; DATAGRAM_MAX];
                if let Ok((length, peer, peer_port)) = kernel::receive_from(socket.as_fd(), &mut buffer) {
                    let port = *port;
                    self.wire
                        .put(Head::Datagram { port, peer, peer_port }, &buffer[..length]);
                }
                Ok(())
            }
        }
    }
}
