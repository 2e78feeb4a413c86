//! Frames over a stream: a length, a head, and what the head says that follows.

use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use belljar_guest::MESSAGE_MAX;
use serde::{Deserialize, Serialize};

use crate::kernel;

/// What a frame is about. The rest of the frame follows in the order that each names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Head {
    /// A message to or from PID 1.
    Init,
    /// A message to or from a slot. A start that brings streams along has them under this number (stdin, or the terminal) and the
    /// two that follow (stdout, stderr).
    Slot { slot: u32, stream: u32 },
    /// A slot's socket is closed on the sender's side.
    SlotOver { slot: u32 },
    /// Somebody connected to the listener on a port inside; the connection is a stream.
    Accepted { stream: u32, port: u16 },
    /// A datagram to or from somebody inside, by way of a port that is listened on.
    Datagram { port: u16, peer: [u8; 4], peer_port: u16 },
    /// Bytes of a stream.
    Data { stream: u32 },
    /// So many bytes more may be sent.
    Credit { stream: u32, bytes: u32 },
    /// No more bytes come.
    End { stream: u32 },
    /// No more bytes are read.
    Deaf { stream: u32 },
}

/// The largest frame: the largest message and its head.
const FRAME_MAX: usize = MESSAGE_MAX + 64;

/// The largest piece of a stream in one frame.
pub const PIECE_MAX: usize = 32 << 10;

/// With more than this still to be written no stream is read: what waits here waits in the kernel instead.
const CONGESTED_BYTES: usize = 256 << 10;

/// Room for what is read at once.
const READ_BYTES: usize = 64 << 10;

const LENGTH_BYTES: usize = 4;

pub struct Wire {
    stream: OwnedFd,
    incoming: Vec<u8>,
    /// How much of `incoming` was given out.
    taken: usize,
    outgoing: Vec<u8>,
    /// How much of `outgoing` was written.
    written: usize,
}

impl Wire {
    pub fn new(stream: OwnedFd) -> Result<Wire> {
        kernel::set_nonblocking(stream.as_fd())?;
        Ok(Wire {
            stream,
            incoming: Vec::new(),
            taken: 0,
            outgoing: Vec::new(),
            written: 0,
        })
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.stream.as_fd()
    }

    pub fn wants_to_write(&self) -> bool {
        self.written < self.outgoing.len()
    }

    pub fn is_congested(&self) -> bool {
        self.outgoing.len() - self.written > CONGESTED_BYTES
    }

    /// Puts a frame behind those that wait.
    pub fn put(&mut self, head: Head, rest: &[u8]) {
        let start = self.outgoing.len();
        self.outgoing.extend_from_slice(&[0; LENGTH_BYTES]);
        let head = postcard::to_allocvec(&head).expect("these types always serialise");
        self.outgoing.extend_from_slice(&head);
        self.outgoing.extend_from_slice(rest);
        let length = (self.outgoing.len() - start - LENGTH_BYTES) as u32;
        self.outgoing[start..start + LENGTH_BYTES].copy_from_slice(&length.to_le_bytes());
    }

    /// Puts a message of the protocol.
    pub fn put_message<T: Serialize>(&mut self, head: Head, message: &T) {
        let body = postcard::to_allocvec(message).expect("these types always serialise");
        self.put(head, &body);
    }

    /// Writes what the stream takes.
    pub fn flush(&mut self) -> Result<()> {
        while self.wants_to_write() {
            match kernel::write(self.stream.as_fd(), &self.outgoing[self.written..]) {
                Ok(written) => self.written += written,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if !self.wants_to_write() {
            self.outgoing.clear();
            self.written = 0;
        } else if self.written > CONGESTED_BYTES {
            self.outgoing.drain(..self.written);
            self.written = 0;
        }
        Ok(())
    }

    /// Reads once; `false` when the other side is gone.
    pub fn fill(&mut self) -> Result<bool> {
        self.incoming.drain(..self.taken);
        self.taken = 0;
        let start = self.incoming.len();
        self.incoming.resize(start + READ_BYTES, 0);
        let read = kernel::read(self.stream.as_fd(), &mut self.incoming[start..]);
        self.incoming.truncate(start + *read.as_ref().unwrap_or(&0));
        match read {
            Ok(0) => Ok(false),
            Ok(_) => Ok(true),
            Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(true),
            Err(error) if error.kind() == ErrorKind::ConnectionReset => Ok(false),
            Err(error) => Err(error),
        }
    }

    /// The next whole frame of what was read: its head and the rest.
    pub fn next(&mut self) -> Result<Option<(Head, Vec<u8>)>> {
        let left = self.incoming.get(self.taken..).unwrap_or_default();
        let Some((length, body)) = left.split_first_chunk::<LENGTH_BYTES>() else {
            return Ok(None);
        };
        let length = u32::from_le_bytes(*length) as usize;
        if length > FRAME_MAX {
            return Err(out_of_turn());
        }
        let Some(frame) = body.get(..length) else {
            return Ok(None);
        };
        let (head, rest) = postcard::take_from_bytes::<Head>(frame).map_err(|_| out_of_turn())?;
        let rest = rest.to_vec();
        self.taken += LENGTH_BYTES + length;
        Ok(Some((head, rest)))
    }
}

/// What no honest guest says.
pub fn out_of_turn() -> Error {
    Error::from(ErrorKind::InvalidData)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wires() -> (Wire, Wire) {
        let (a, b) = kernel::stream_pair().unwrap();
        (Wire::new(a).unwrap(), Wire::new(b).unwrap())
    }

    #[test]
    fn frames_arrive_whole_and_in_order_however_they_are_cut() {
        let (mut from, mut to) = wires();
        let sent: Vec<_> = (0..200u32)
            .map(|stream| (Head::Data { stream }, vec![stream as u8; stream as usize * 150]))
            .collect();
        for (head, rest) in &sent {
            from.put(*head, rest);
        }
        let mut got = Vec::new();
        while got.len() < sent.len() {
            from.flush().unwrap();
            assert!(to.fill().unwrap());
            while let Some(frame) = to.next().unwrap() {
                got.push(frame);
            }
        }
        assert_eq!(got, sent);
    }

    #[test]
    fn a_frame_that_claims_to_be_huge_is_refused_before_there_is_room_for_it() {
        let (from, mut to) = wires();
        kernel::write(from.fd(), &u32::MAX.to_le_bytes()).unwrap();
        to.fill().unwrap();
        assert!(to.next().is_err());
        assert!(to.incoming.capacity() <= 2 * READ_BYTES);
    }

    #[test]
    fn an_unknown_kind_is_refused() {
        let (from, mut to) = wires();
        kernel::write(from.fd(), &[2, 0, 0, 0, 77, 0]).unwrap();
        to.fill().unwrap();
        assert!(to.next().is_err());
    }

    #[test]
    fn the_end_is_told() {
        let (from, mut to) = wires();
        drop(from);
        assert!(!to.fill().unwrap());
    }
}
