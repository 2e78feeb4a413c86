//! Whole messages over a packet socket.

use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};

use belljar_guest::{Encoded, MESSAGE_MAX, PACKET_MAX, decode, encode};
use serde::{Deserialize, Serialize};

use crate::kernel;

/// One end of a control or slot socket.
pub struct Link {
    socket: OwnedFd,
    /// A packet is short but for a start, so the pages behind stay untouched.
    buffer: Vec<u8>,
}

impl Link {
    pub fn new(socket: OwnedFd) -> Self {
        Self {
            socket,
            buffer: vec![0; PACKET_MAX + 1],
        }
    }

    pub fn fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }

    /// Only what is passed on from a host is ever larger than a packet.
    pub fn say<T: Serialize>(&self, message: &T, fds: &[BorrowedFd<'_>]) -> Result<()> {
        match encode(message) {
            Encoded::Packet(packet) => kernel::send(self.fd(), &packet, fds),
            Encoded::Large(body) => {
                let file = kernel::memory_file(&body)?;
                let mut all = fds.to_vec();
                all.push(file.as_fd());
                kernel::send(self.fd(), &[1], &all)
            }
        }
    }

    /// The next message and its descriptors; `None` when the host is gone.
    pub fn hear<T: for<'de> Deserialize<'de>>(&mut self) -> Result<Option<(T, Vec<OwnedFd>)>> {
        let (length, mut fds) = kernel::receive(self.socket.as_fd(), &mut self.buffer)?;
        let body = match &self.buffer[..length] {
            [] => return Ok(None),
            [0, body @ ..] => decode(body),
            _ => {
                let file = fds.pop().ok_or(ErrorKind::InvalidData)?;
                decode(&kernel::read_memory_file(&file, MESSAGE_MAX)?)
            }
        };
        let message = body.map_err(|_| Error::from(ErrorKind::InvalidData))?;
        Ok(Some((message, fds)))
    }
}
