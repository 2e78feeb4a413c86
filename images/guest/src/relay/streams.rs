//! Streams of bytes between a descriptor here and one on the other side, each direction with its own end and its own credit.

use std::collections::BTreeMap;
use std::io::{ErrorKind, Result};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};

use super::wire::{Head, PIECE_MAX, Wire, out_of_turn};
use crate::kernel::{self, Found, Wanted};

/// What may be on its way in one direction of one stream, and so what a reader that stands still costs.
const WINDOW: u32 = 128 << 10;

/// Streams at once: those of a thousand execs and of a thousand connections.
const STREAMS_MAX: usize = 4096;

/// Which ways the bytes of a descriptor go.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Ways {
    /// Read here, written there.
    Out,
    /// Read there, written here.
    In,
    Both,
}

struct Stream {
    fd: OwnedFd,
    /// Bytes are still read here.
    reads: bool,
    /// Bytes from there are still written here.
    writes: bool,
    /// What may still be sent.
    credit: u32,
    /// What the other side may still send.
    granted: u32,
    /// Written here since credit was given last.
    consumed: u32,
    waiting: Vec<u8>,
    /// How much of `waiting` is written.
    written: usize,
    /// Nothing comes after what waits.
    ended: bool,
    /// What can be read at once is the last.
    is_last: bool,
}

#[derive(Default)]
pub struct Streams {
    streams: BTreeMap<u32, Stream>,
}

impl Streams {
    /// Takes over a descriptor as one end of a stream. A number that is taken, or one stream too many, is out of turn.
    pub fn add(&mut self, number: u32, fd: OwnedFd, ways: Ways) -> Result<()> {
        kernel::set_nonblocking(fd.as_fd())?;
        if self.is_full() || self.streams.contains_key(&number) {
            return Err(out_of_turn());
        }
        let stream = Stream {
            fd,
            reads: ways != Ways::In,
            writes: ways != Ways::Out,
            credit: WINDOW,
            granted: WINDOW,
            consumed: 0,
            waiting: Vec::new(),
            written: 0,
            ended: false,
            is_last: false,
        };
        self.streams.insert(number, stream);
        Ok(())
    }

    pub fn is_full(&self) -> bool {
        self.streams.len() >= STREAMS_MAX
    }

    /// The descriptor of a stream that is still there.
    pub fn fd(&self, number: u32) -> Option<BorrowedFd<'_>> {
        self.streams.get(&number).map(|stream| stream.fd.as_fd())
    }

    /// Whether all that came from there is written here, and nothing more comes.
    pub fn is_written(&self, number: u32) -> bool {
        self.streams.get(&number).is_none_or(|stream| !stream.writes)
    }

    /// What to wait for, and for which stream.
    pub fn wanted(&self, is_congested: bool) -> Vec<(u32, Wanted)> {
        let wants = |(number, stream): (&u32, &Stream)| {
            let readable = stream.reads && stream.credit > 0 && !is_congested;
            let writable = stream.writes && !stream.waiting.is_empty();
            // One that nothing is wanted of is left out: poll(2) would tell of its end again and again.
            (readable || writable).then(|| {
                let fd = stream.fd.as_raw_fd();
                (*number, Wanted { fd, readable, writable })
            })
        };
        self.streams.iter().filter_map(wants).collect()
    }

    /// Reads and writes what was found possible.
    pub fn turn(&mut self, number: u32, found: Found, wire: &mut Wire) {
        if found.writable {
            self.write(number, wire);
        }
        if found.readable {
            self.read(number, wire);
        }
        self.settle(number);
    }

    fn read(&mut self, number: u32, wire: &mut Wire) {
        let Some(stream) = self.streams.get_mut(&number).filter(|stream| stream.reads) else {
            return;
        };
        let mut piece = [0; PIECE_MAX];
        let most = PIECE_MAX.min(stream.credit as usize);
        match kernel::read(stream.fd.as_fd(), &mut piece[..most]) {
            Err(error) if error.kind() == ErrorKind::WouldBlock && !stream.is_last => {}
            // A terminal whose other side is closed says EIO: that is an end like any other.
            Ok(0) | Err(_) => {
                stream.reads = false;
                wire.put(Head::End { stream: number }, &[]);
            }
            Ok(read) => {
                stream.credit -= read as u32;
                wire.put(Head::Data { stream: number }, &piece[..read]);
            }
        }
    }

    fn write(&mut self, number: u32, wire: &mut Wire) {
        let Some(stream) = self.streams.get_mut(&number).filter(|stream| stream.writes) else {
            return;
        };
        while stream.written < stream.waiting.len() {
            match kernel::write(stream.fd.as_fd(), &stream.waiting[stream.written..]) {
                Ok(written) => {
                    stream.written += written;
                    stream.consumed += written as u32;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                // Nobody reads it here any more.
                Err(_) => {
                    stream.writes = false;
                    stream.waiting = Vec::new();
                    stream.written = 0;
                    wire.put(Head::Deaf { stream: number }, &[]);
                    return;
                }
            }
        }
        // What is written makes room at the latest when it is as much as may wait.
        if stream.written == stream.waiting.len() || stream.written >= WINDOW as usize {
            stream.waiting.drain(..stream.written);
            stream.written = 0;
        }
        if stream.consumed >= WINDOW / 4 {
            let bytes = std::mem::take(&mut stream.consumed);
            stream.granted += bytes;
            wire.put(Head::Credit { stream: number, bytes }, &[]);
        }
    }

    /// Bytes from there. What comes for a stream that is over here was on its way when it ended.
    pub fn data(&mut self, number: u32, data: &[u8], wire: &mut Wire) -> Result<()> {
        let Some(stream) = self.streams.get_mut(&number) else {
            return Ok(());
        };
        let bytes = u32::try_from(data.len()).map_err(|_| out_of_turn())?;
        stream.granted = stream.granted.checked_sub(bytes).ok_or_else(out_of_turn)?;
        if stream.ended {
            return Err(out_of_turn());
        }
        if stream.writes {
            stream.waiting.extend_from_slice(data);
            self.write(number, wire);
            self.settle(number);
        }
        Ok(())
    }

    /// Reads what there is, and takes that for the end: of a terminal that nobody is left to write to, which not every kernel says.
    pub fn finish(&mut self, number: u32, wire: &mut Wire) {
        loop {
            let Some(stream) = self.streams.get_mut(&number) else {
                return;
            };
            stream.is_last = true;
            // With its credit spent it goes on when there is more.
            if !stream.reads || stream.credit == 0 {
                break;
            }
            self.read(number, wire);
        }
        self.settle(number);
    }

    pub fn credit(&mut self, number: u32, bytes: u32, wire: &mut Wire) -> Result<()> {
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.credit = stream
                .credit
                .checked_add(bytes)
                .filter(|credit| *credit <= WINDOW)
                .ok_or_else(out_of_turn)?;
            if stream.is_last {
                self.finish(number, wire);
            }
        }
        Ok(())
    }

    /// Nothing more comes from there.
    pub fn end(&mut self, number: u32) {
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.ended = true;
        }
        self.settle(number);
    }

    /// Nothing more is read there.
    pub fn deaf(&mut self, number: u32) {
        if let Some(stream) = self.streams.get_mut(&number) {
            stream.reads = false;
        }
        self.settle(number);
    }

    /// Closes what is over: a direction whose last byte is written, and the descriptor with its last direction.
    fn settle(&mut self, number: u32) {
        let Some(stream) = self.streams.get_mut(&number) else {
            return;
        };
        if stream.writes && stream.ended && stream.waiting.is_empty() {
            stream.writes = false;
            kernel::shut_down_writing(stream.fd.as_fd());
        }
        if !stream.reads && !stream.writes {
            self.streams.remove(&number);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn wire() -> (Wire, Wire) {
        let (a, b) = kernel::stream_pair().unwrap();
        (Wire::new(a).unwrap(), Wire::new(b).unwrap())
    }

    #[test]
    fn a_side_that_sends_more_than_it_may_is_out_of_turn() {
        let (mut out, _far) = wire();
        let mut streams = Streams::default();
        let (_reader, fd) = kernel::pipe().unwrap();
        streams.add(1, fd, Ways::In).unwrap();
        let piece = vec![0; PIECE_MAX];
        // The pipe takes 64 KiB, which come back as credit; what nobody reads is bounded by the window.
        let taken = (0..1000)
            .take_while(|_| streams.data(1, &piece, &mut out).is_ok())
            .count();
        assert!((4..=7).contains(&taken), "{taken} pieces were taken");
    }

    #[test]
    fn credit_beyond_the_window_and_a_number_that_is_taken_are_out_of_turn() {
        let mut streams = Streams::default();
        let (reader, writer) = kernel::pipe().unwrap();
        streams.add(1, reader, Ways::Out).unwrap();
        let (mut out, _far) = wire();
        assert!(streams.credit(1, 1, &mut out).is_err());
        assert!(streams.credit(1, u32::MAX, &mut out).is_err());
        assert!(streams.add(1, writer, Ways::In).is_err());
    }

    #[test]
    fn a_stream_is_over_when_both_directions_are() {
        let (mut out, mut far) = wire();
        let mut streams = Streams::default();
        let (ours, theirs) = kernel::stream_pair().unwrap();
        streams.add(3, ours, Ways::Both).unwrap();
        kernel::write(theirs.as_fd(), b"hello").unwrap();
        kernel::shut_down_writing(theirs.as_fd());
        let both = Found {
            readable: true,
            writable: false,
        };
        streams.turn(3, both, &mut out);
        streams.turn(3, both, &mut out);
        assert!(streams.fd(3).is_some(), "the other direction is open");
        streams.data(3, b"bye", &mut out).unwrap();
        streams.end(3);
        assert!(streams.fd(3).is_none());
        let mut buffer = [0; 8];
        assert_eq!(kernel::read(theirs.as_fd(), &mut buffer).unwrap(), 3);
        assert_eq!(kernel::read(theirs.as_fd(), &mut buffer).unwrap(), 0);
        out.flush().unwrap();
        far.fill().unwrap();
        assert_eq!(far.next().unwrap(), Some((Head::Data { stream: 3 }, b"hello".to_vec())));
        assert_eq!(far.next().unwrap(), Some((Head::End { stream: 3 }, Vec::new())));
    }

    #[test]
    fn a_stream_that_is_finished_ends_behind_what_was_there() {
        let (mut out, mut far) = wire();
        let mut streams = Streams::default();
        let (reader, writer) = kernel::pipe().unwrap();
        kernel::write(writer.as_fd(), b"last").unwrap();
        streams.add(7, reader, Ways::Out).unwrap();
        streams.finish(7, &mut out);
        assert!(streams.fd(7).is_none(), "though the other end is open");
        out.flush().unwrap();
        far.fill().unwrap();
        assert_eq!(far.next().unwrap(), Some((Head::Data { stream: 7 }, b"last".to_vec())));
        assert_eq!(far.next().unwrap(), Some((Head::End { stream: 7 }, Vec::new())));
    }

    #[test]
    fn a_reader_that_is_gone_is_told() {
        let (mut out, mut far) = wire();
        // As in the guest, where every signal is blocked.
        let _signals = kernel::block_signals().unwrap();
        let mut streams = Streams::default();
        let (reader, fd) = kernel::pipe().unwrap();
        streams.add(5, fd, Ways::In).unwrap();
        drop(reader);
        streams.data(5, b"x", &mut out).unwrap();
        assert!(streams.fd(5).is_none());
        out.flush().unwrap();
        far.fill().unwrap();
        assert_eq!(far.next().unwrap(), Some((Head::Deaf { stream: 5 }, Vec::new())));
    }
}
