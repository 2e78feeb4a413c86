//! The side on the host: what a guest would make is made here, and its bytes come over the stream from a side that is hostile.

use std::collections::{BTreeMap, VecDeque};
use std::io::Result;
use std::os::fd::{AsFd, OwnedFd};

use belljar_guest::{Failed, FromInit, FromSlot, ListenKind, ToInit, ToSlot, decode};

use super::far::{DATAGRAM_MAX, OWN_STREAMS};
use super::streams::{Streams, Ways};
use super::wire::{Head, Wire, out_of_turn};
use super::{readable, ready};
use crate::init::errno;
use crate::kernel::{self, Wanted};
use crate::link::Link;

/// Those who may wait for an answer to a datagram at once; one more, and the oldest goes without.
const PEERS_MAX: usize = 64;

/// Who is ready.
#[derive(Debug, Clone, Copy)]
enum Source {
    Wire,
    Host,
    Slot(u32),
    Peer(u64),
    Stream(u32),
}

struct Slot {
    link: Link,
    /// The stream that its command's terminal will be, once it has started.
    terminal: Option<u32>,
    /// The streams of what its command writes.
    outputs: Vec<u32>,
    /// That the command is over: told when all that it wrote is.
    ending: Option<FromSlot>,
}

/// Somebody inside who sent a datagram, and the socket that stands for that one here.
struct Peer {
    number: u64,
    port: u16,
    address: [u8; 4],
    address_port: u16,
    socket: OwnedFd,
}

struct Near {
    host: Link,
    wire: Wire,
    is_greeted: bool,
    slots: BTreeMap<u32, Slot>,
    /// Asked for, and not answered yet.
    asked: Vec<(u16, ListenKind)>,
    listening: Vec<(u16, ListenKind)>,
    peers: VecDeque<Peer>,
    next_peer: u64,
    streams: Streams,
    next_stream: u32,
    last_accepted: u32,
}

/// Serves until either side is gone, or the far one says something out of turn.
pub fn run(host: Link, stream: OwnedFd) -> Result<()> {
    kernel::set_name(c"belljar-relay");
    kernel::set_nonblocking(host.fd())?;
    let mut near = Near {
        host,
        wire: Wire::new(stream)?,
        is_greeted: false,
        slots: BTreeMap::new(),
        asked: Vec::new(),
        listening: Vec::new(),
        peers: VecDeque::new(),
        next_peer: 0,
        streams: Streams::default(),
        next_stream: 1,
        last_accepted: 0,
    };
    while near.turn()? {
        near.tell_ends();
        near.wire.flush()?;
    }
    Ok(())
}

impl Near {
    fn wanted(&self) -> Vec<(Source, Wanted)> {
        let is_congested = self.wire.is_congested();
        let wire = Wanted {
            writable: self.wire.wants_to_write(),
            ..readable(self.wire.fd(), true)
        };
        // With a far side that does not read, the host is not read either, and finds its socket full.
        let host = readable(self.host.fd(), !is_congested);
        let mut wanted = vec![(Source::Wire, wire), (Source::Host, host)];
        if !is_congested {
            let slots = self.slots.iter();
            wanted.extend(slots.map(|(number, slot)| (Source::Slot(*number), readable(slot.link.fd(), true))));
            let peers = self.peers.iter();
            wanted.extend(peers.map(|peer| (Source::Peer(peer.number), readable(peer.socket.as_fd(), true))));
        }
        let streams = self.streams.wanted(is_congested).into_iter();
        wanted.extend(streams.map(|(number, wanted)| (Source::Stream(number), wanted)));
        wanted
    }

    /// Waits once and does what can be done; `false` when a side is gone.
    fn turn(&mut self) -> Result<bool> {
        for (source, found) in ready(self.wanted())? {
            let goes_on = match source {
                Source::Wire => !found.readable || self.hear_far()?,
                Source::Host => self.hear_host()?,
                Source::Slot(slot) => {
                    self.hear_slot(slot)?;
                    true
                }
                Source::Peer(peer) => {
                    self.answer(peer);
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
        let Some((message, mut fds)) = self.host.hear::<ToInit>()? else {
            return Ok(false);
        };
        match &message {
            ToInit::AddSlot { slot } => {
                let socket = fds.pop().ok_or_else(out_of_turn)?;
                kernel::set_nonblocking(socket.as_fd())?;
                let link = Link::new(socket);
                let new = Slot {
                    link,
                    terminal: None,
                    outputs: Vec::new(),
                    ending: None,
                };
                self.slots.insert(*slot, new);
            }
            ToInit::Listen { port, kind } => self.asked.push((*port, *kind)),
            ToInit::KillSlot { .. } | ToInit::Limits { .. } => {}
            ToInit::Relay => return Err(out_of_turn()),
        }
        self.wire.put_message(Head::Init, &message);
        Ok(true)
    }

    fn hear_slot(&mut self, number: u32) -> Result<()> {
        let Some(slot) = self.slots.get_mut(&number) else {
            return Ok(());
        };
        let Ok(Some((message, fds))) = slot.link.hear::<ToSlot>() else {
            self.slots.remove(&number);
            self.wire.put(Head::SlotOver { slot: number }, &[]);
            return Ok(());
        };
        let mut stream = 0;
        if let ToSlot::Start(start) = &message {
            stream = self.next_stream;
            self.next_stream = stream
                .checked_add(3)
                .filter(|next| *next < OWN_STREAMS)
                .ok_or_else(out_of_turn)?;
            slot.terminal = start.tty.map(|_| stream);
            slot.outputs = match slot.terminal {
                Some(terminal) => vec![terminal],
                None => vec![stream + 1, stream + 2],
            };
            match <[OwnedFd; 3]>::try_from(fds) {
                Ok([stdin, stdout, stderr]) => {
                    self.streams.add(stream, stdin, Ways::Out)?;
                    self.streams.add(stream + 1, stdout, Ways::In)?;
                    self.streams.add(stream + 2, stderr, Ways::In)?;
                }
                Err(none) if none.is_empty() && slot.terminal.is_some() => {}
                Err(_) => return Err(out_of_turn()),
            }
        }
        let head = Head::Slot { slot: number, stream };
        self.wire.put_message(head, &message);
        Ok(())
    }

    fn hear_far(&mut self) -> Result<bool> {
        if !self.wire.fill()? {
            return Ok(false);
        }
        while let Some((head, rest)) = self.wire.next()? {
            match head {
                Head::Init => self.pass_to_host(decode(&rest).map_err(|_| out_of_turn())?)?,
                Head::Slot { slot, .. } => self.pass_from_slot(slot, decode(&rest).map_err(|_| out_of_turn())?)?,
                Head::SlotOver { slot } => drop(self.slots.remove(&slot)),
                Head::Accepted { stream, port } => self.connect(stream, port)?,
                Head::Datagram { port, peer, peer_port } => self.pass_datagram(port, peer, peer_port, &rest)?,
                Head::Data { stream } => self.streams.data(stream, &rest, &mut self.wire)?,
                Head::Credit { stream, bytes } => self.streams.credit(stream, bytes, &mut self.wire)?,
                Head::End { stream } => self.streams.end(stream),
                Head::Deaf { stream } => self.streams.deaf(stream),
            }
        }
        Ok(true)
    }

    fn pass_to_host(&mut self, message: FromInit) -> Result<()> {
        match &message {
            FromInit::Ready { .. } => {
                if std::mem::replace(&mut self.is_greeted, true) {
                    return Err(out_of_turn());
                }
            }
            FromInit::Listening { port, kind } => return self.listen(*port, *kind),
            FromInit::Failed {
                what: Failed::Listen(port, kind),
                ..
            } => self.answered(*port, *kind)?,
            FromInit::SlotAdded { .. } | FromInit::SlotGone { .. } | FromInit::Failed { .. } => {}
        }
        self.host.say(&message, &[])
    }

    fn answered(&mut self, port: u16, kind: ListenKind) -> Result<()> {
        let at = self.asked.iter().position(|asked| *asked == (port, kind));
        self.asked.swap_remove(at.ok_or_else(out_of_turn)?);
        Ok(())
    }

    /// The far side listens; so does this one, on the loopback of its own box.
    fn listen(&mut self, port: u16, kind: ListenKind) -> Result<()> {
        self.answered(port, kind)?;
        match kernel::listen(port, kind) {
            Ok(socket) => {
                self.listening.push((port, kind));
                self.host.say(&FromInit::Listening { port, kind }, &[socket.as_fd()])
            }
            Err(error) => {
                let what = Failed::Listen(port, kind);
                let errno = errno(&error);
                self.host.say(&FromInit::Failed { what, errno }, &[])
            }
        }
    }

    fn pass_from_slot(&mut self, number: u32, message: FromSlot) -> Result<()> {
        // One that the host has let go of a moment ago may still speak.
        let Some(slot) = self.slots.get_mut(&number) else {
            return Ok(());
        };
        if let FromSlot::Exited { .. } = &message {
            slot.ending = Some(message);
            return Ok(());
        }
        let said = match (&message, slot.terminal.take()) {
            (FromSlot::Started { .. }, Some(stream)) => {
                let (ours, theirs) = kernel::stream_pair()?;
                self.streams.add(stream, ours, Ways::Both)?;
                slot.link.say(&message, &[theirs.as_fd()])
            }
            _ => slot.link.say(&message, &[]),
        };
        if said.is_err() {
            self.slots.remove(&number);
            self.wire.put(Head::SlotOver { slot: number }, &[]);
        }
        Ok(())
    }

    /// A host that hears of a command's end finds all that it wrote in the pipes, as with a guest that it speaks to directly.
    fn tell_ends(&mut self) {
        let Near {
            slots, streams, wire, ..
        } = self;
        slots.retain(|number, slot| {
            let is_whole = slot.outputs.iter().all(|stream| streams.is_written(*stream));
            let Some(ending) = slot.ending.take_if(|_| is_whole) else {
                return true;
            };
            let is_told = slot.link.say(&ending, &[]).is_ok();
            if !is_told {
                wire.put(Head::SlotOver { slot: *number }, &[]);
            }
            is_told
        });
    }

    /// Somebody inside has connected to a port: the same is done here.
    fn connect(&mut self, stream: u32, port: u16) -> Result<()> {
        let is_new = stream >= OWN_STREAMS && stream > self.last_accepted;
        if !is_new || !self.listening.contains(&(port, ListenKind::Tcp)) {
            return Err(out_of_turn());
        }
        self.last_accepted = stream;
        match kernel::connect_loopback(port, ListenKind::Tcp) {
            Ok(socket) => self.streams.add(stream, socket, Ways::Both),
            // The way out was closed.
            Err(_) => {
                self.wire.put(Head::Deaf { stream }, &[]);
                self.wire.put(Head::End { stream }, &[]);
                Ok(())
            }
        }
    }

    fn pass_datagram(&mut self, port: u16, address: [u8; 4], address_port: u16, data: &[u8]) -> Result<()> {
        if !self.listening.contains(&(port, ListenKind::Udp)) {
            return Err(out_of_turn());
        }
        let is_theirs = |peer: &Peer| (peer.port, peer.address, peer.address_port) == (port, address, address_port);
        if !self.peers.iter().any(is_theirs) {
            let Ok(socket) = kernel::connect_loopback(port, ListenKind::Udp) else {
                return Ok(());
            };
            if self.peers.len() >= PEERS_MAX {
                self.peers.pop_front();
            }
            self.peers.push_back(Peer {
                number: self.next_peer,
                port,
                address,
                address_port,
                socket,
            });
            self.next_peer += 1;
        }
        if let Some(peer) = self.peers.iter().find(|peer| is_theirs(peer)) {
            // A datagram may be lost.
            let _ = kernel::write(peer.socket.as_fd(), data);
        }
        Ok(())
    }

    fn answer(&mut self, number: u64) {
        let Some(peer) = self.peers.iter().find(|peer| peer.number == number) else {
            return;
        };
        let mut buffer = [0; DATAGRAM_MAX];
        // An error says that the listener is closed: there is no answer.
        if let Ok(length) = kernel::read(peer.socket.as_fd(), &mut buffer) {
            let head = Head::Datagram {
                port: peer.port,
                peer: peer.address,
                peer_port: peer.address_port,
            };
            self.wire.put(head, &buffer[..length]);
        }
    }
}
