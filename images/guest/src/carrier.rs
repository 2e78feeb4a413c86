//! Carries connections for a belljar that has no descriptors left for more: copies bytes both ways, and tells what it copied.
//!
//! ```text
//!   belljar ── both sockets of a connection, once it is judged and made ──> carrier: client <──> server
//!           <── what the client says first, what was copied, how it ended ──┘
//! ```
//!
//! It decides nothing: until belljar has heard enough of what a client says first, none of it goes to the server. It is a process of
//! one thread with an empty environment, no descriptor but its own sockets, no capability, and no call to the kernel but those that
//! copying takes. When its control socket closes it ends, and every connection that it carries with it.

use std::collections::{BTreeMap, BTreeSet};
use std::io::{Error, ErrorKind, Result};
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};

use belljar_guest::{FromCarrier, HowEnded, MOVED_MAX, MovedBytes, ToCarrier};

use crate::init::errno;
use crate::kernel::{self, Epoll, Interest};
use crate::link::Link;

/// Where its control socket is: it is started like any program.
const CONTROL: i32 = 0;

/// The number of the control socket among those that are waited for; connections are numbered from 1 by their host.
const HOST: u64 = 0;

/// What is read at once. Of this, what a receiver does not take waits here, and nothing more is read until it does.
const PIECE_BYTES: usize = 128 << 10;

/// What is read of a client's first words at once: what has to be heard is shorter, and a message has room for it.
const HEARD_BYTES: usize = 16 << 10;

/// Pieces of one direction before others have their turn.
const TURN_PIECES: usize = 8;

/// How often it is told what was copied, at the most. Nobody waits for it: belljar sees by it that a connection is not idle.
const TELL_EVERY: Duration = Duration::from_millis(100);

const EVENTS_AT_ONCE: usize = 256;

/// Becomes a carrier.
pub fn begin() -> Result<()> {
    kernel::hide()?;
    kernel::set_name(c"belljar-carrier");
    let control = kernel::inherited(CONTROL)?;
    kernel::close_from(3)?;
    // An interrupt from the terminal is for belljar, which ends what there is to end.
    drop(kernel::block_signals()?);
    let mut carrier = Carrier {
        host: Link::new(control),
        epoll: Epoll::new(EVENTS_AT_ONCE)?,
        connections: BTreeMap::new(),
        untold: BTreeSet::new(),
        told: Instant::now(),
        piece: vec![0; PIECE_BYTES],
    };
    let listen = Interest {
        readable: true,
        writable: false,
    };
    carrier
        .epoll
        .change(carrier.host.fd(), HOST, Interest::default(), listen)?;
    kernel::confine()?;
    while carrier.turn()? {}
    Ok(())
}

struct Carrier {
    host: Link,
    epoll: Epoll,
    connections: BTreeMap<u64, Connection>,
    /// Those whose bytes belljar does not know yet.
    untold: BTreeSet<u64>,
    /// When it was told last.
    told: Instant,
    piece: Vec<u8>,
}

struct Connection {
    client: Side,
    server: Side,
    up: Direction,
    down: Direction,
    speech: Speech,
    /// Not told yet.
    moved: MovedBytes,
}

/// One socket, and what it is waited for.
struct Side {
    fd: OwnedFd,
    interest: Interest,
}

#[derive(Default)]
struct Direction {
    /// Read, and not written yet.
    waiting: Vec<u8>,
    /// Nothing comes after what waits.
    is_last: bool,
    /// And the receiver was told so.
    is_over: bool,
}

/// What becomes of what the client says.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Speech {
    /// It is not read.
    Unheard,
    /// It is kept, and told to belljar.
    Heard,
    /// It goes to the server.
    Passed,
}

impl Carrier {
    /// Waits once and does what can be done; `false` when belljar is gone.
    fn turn(&mut self) -> Result<bool> {
        let ready: Vec<_> = self.epoll.wait(self.patience())?.collect();
        for (number, found) in ready {
            match number {
                HOST if found.readable => {
                    if !self.hear_host()? {
                        return Ok(false);
                    }
                }
                HOST => {}
                // It may be one that ended a moment ago.
                connection => self.step(connection >> 1)?,
            }
        }
        if !self.untold.is_empty() && self.told.elapsed() >= TELL_EVERY {
            self.tell()?;
        }
        Ok(true)
    }

    /// Until there is something to tell, in milliseconds.
    fn patience(&self) -> i32 {
        if self.untold.is_empty() {
            return -1;
        }
        let left = TELL_EVERY.saturating_sub(self.told.elapsed());
        // Rounded up, so that it is over when the wait is.
        left.as_millis() as i32 + 1
    }

    fn tell(&mut self) -> Result<()> {
        self.told = Instant::now();
        let untold = std::mem::take(&mut self.untold);
        let mut moved: Vec<_> = untold
            .into_iter()
            .filter_map(|number| {
                let connection = self.connections.get_mut(&number)?;
                Some((number, std::mem::take(&mut connection.moved)))
            })
            .collect();
        while !moved.is_empty() {
            let rest = moved.split_off(moved.len().min(MOVED_MAX));
            self.host.say(&FromCarrier::Moved(moved), &[])?;
            moved = rest;
        }
        Ok(())
    }

    fn hear_host(&mut self) -> Result<bool> {
        let Some((message, fds)) = self.host.hear::<ToCarrier>()? else {
            return Ok(false);
        };
        match message {
            ToCarrier::Carry { connection, early } => {
                let [client, server] = <[OwnedFd; 2]>::try_from(fds).map_err(|_| ErrorKind::InvalidData)?;
                let interest = Interest::default();
                let taken = Connection {
                    client: Side { fd: client, interest },
                    server: Side { fd: server, interest },
                    up: Direction {
                        waiting: early,
                        ..Direction::default()
                    },
                    down: Direction::default(),
                    speech: Speech::Unheard,
                    moved: MovedBytes::default(),
                };
                self.connections.insert(connection, taken);
                self.step(connection)?;
            }
            ToCarrier::Hear { connection } => self.speech(connection, Speech::Heard)?,
            ToCarrier::Pass { connection } => self.speech(connection, Speech::Passed)?,
            ToCarrier::Close { connection } => self.end(connection, HowEnded::Closed)?,
        }
        Ok(true)
    }

    fn speech(&mut self, number: u64, speech: Speech) -> Result<()> {
        if let Some(connection) = self.connections.get_mut(&number) {
            connection.speech = speech;
        }
        self.step(number)
    }

    /// Does for a connection what can be done now.
    fn step(&mut self, number: u64) -> Result<()> {
        let Some(connection) = self.connections.get_mut(&number) else {
            return Ok(());
        };
        let before = connection.moved;
        let stepped = connection.step(number, &self.host, &mut self.piece);
        if connection.moved != before {
            self.untold.insert(number);
        }
        match stepped {
            Ok(()) if connection.up.is_over && connection.down.is_over => self.end(number, HowEnded::Done),
            Ok(()) => connection.settle(number, &self.epoll),
            Err(Fault::Socket(error)) => {
                let errno = errno(&error);
                self.end(number, HowEnded::Failed { errno })
            }
            Err(Fault::Host(error)) => Err(error),
        }
    }

    /// Closes a connection's sockets, and tells what is left to tell.
    fn end(&mut self, number: u64, how: HowEnded) -> Result<()> {
        let Some(connection) = self.connections.remove(&number) else {
            return Ok(());
        };
        self.untold.remove(&number);
        let bytes = connection.moved;
        drop(connection);
        let ended = FromCarrier::Ended {
            connection: number,
            bytes,
            how,
        };
        self.host.say(&ended, &[])
    }
}

/// What went wrong: with one connection, or with all.
enum Fault {
    Socket(Error),
    Host(Error),
}

impl Connection {
    fn step(&mut self, number: u64, host: &Link, piece: &mut [u8]) -> std::result::Result<(), Fault> {
        let (client, server) = (&self.client.fd, &self.server.fd);
        match self.speech {
            Speech::Unheard => {}
            Speech::Heard => match read(client, &mut piece[..HEARD_BYTES]).map_err(Fault::Socket)? {
                None => {}
                Some(bytes) => {
                    self.speech = Speech::Unheard;
                    self.up.is_last = bytes.is_empty();
                    self.up.waiting.extend_from_slice(bytes);
                    let heard = FromCarrier::Heard {
                        connection: number,
                        bytes: bytes.to_vec(),
                    };
                    host.say(&heard, &[]).map_err(Fault::Host)?;
                }
            },
            Speech::Passed => self
                .up
                .step(client, server, piece, &mut self.moved.sent)
                .map_err(Fault::Socket)?,
        }
        self.down
            .step(server, client, piece, &mut self.moved.received)
            .map_err(Fault::Socket)
    }

    /// Waits for what each socket has to be waited for.
    fn settle(&mut self, number: u64, epoll: &Epoll) -> Result<()> {
        let (up, down) = (&self.up, &self.down);
        let client = Interest {
            readable: match self.speech {
                Speech::Unheard => false,
                Speech::Heard => true,
                Speech::Passed => up.reads(),
            },
            writable: !down.waiting.is_empty(),
        };
        let server = Interest {
            readable: down.reads(),
            writable: self.speech == Speech::Passed && !up.waiting.is_empty(),
        };
        self.client.wait_for(client, number << 1, epoll)?;
        self.server.wait_for(server, number << 1 | 1, epoll)
    }
}

impl Side {
    fn wait_for(&mut self, interest: Interest, number: u64, epoll: &Epoll) -> Result<()> {
        epoll.change(self.fd.as_fd(), number, self.interest, interest)?;
        self.interest = interest;
        Ok(())
    }
}

impl Direction {
    /// Whether more is to be read: never while something waits, so that what a receiver does not take stays with its sender.
    fn reads(&self) -> bool {
        !self.is_last && self.waiting.is_empty()
    }

    /// Copies what can be copied now.
    fn step(&mut self, from: &OwnedFd, to: &OwnedFd, piece: &mut [u8], moved: &mut u64) -> Result<()> {
        for _ in 0..TURN_PIECES {
            if !self.waiting.is_empty() {
                let written = write(to, &self.waiting)?;
                *moved += written as u64;
                self.waiting.drain(..written);
                if !self.waiting.is_empty() {
                    return Ok(());
                }
                // An idle connection holds nothing.
                self.waiting = Vec::new();
            }
            if self.is_over {
                return Ok(());
            }
            if self.is_last {
                kernel::shut_down_writing(to.as_fd());
                self.is_over = true;
                return Ok(());
            }
            match read(from, piece)? {
                None => return Ok(()),
                Some([]) => {
                    kernel::shut_down_writing(to.as_fd());
                    (self.is_last, self.is_over) = (true, true);
                    return Ok(());
                }
                Some(bytes) => {
                    let written = write(to, bytes)?;
                    *moved += written as u64;
                    self.waiting.extend_from_slice(&bytes[written..]);
                }
            }
        }
        Ok(())
    }
}

/// What can be read now; nothing is the end, and `None` that there is nothing yet.
fn read<'a>(fd: &OwnedFd, piece: &'a mut [u8]) -> Result<Option<&'a [u8]>> {
    match kernel::read(fd.as_fd(), piece) {
        Ok(read) => Ok(Some(&piece[..read])),
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(None),
        Err(error) => Err(error),
    }
}

/// Writes what is taken now.
fn write(fd: &OwnedFd, bytes: &[u8]) -> Result<usize> {
    match kernel::write(fd.as_fd(), bytes) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => Ok(0),
        written => written,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A connection between two pairs of sockets; the outer ends are the client's and the server's own.
    fn connection(early: &[u8]) -> (Connection, OwnedFd, OwnedFd) {
        let (client, theirs) = kernel::stream_pair().unwrap();
        let (server, its) = kernel::stream_pair().unwrap();
        for fd in [&client, &server, &theirs, &its] {
            kernel::set_nonblocking(fd.as_fd()).unwrap();
        }
        let interest = Interest::default();
        let connection = Connection {
            client: Side { fd: client, interest },
            server: Side { fd: server, interest },
            up: Direction {
                waiting: early.to_vec(),
                ..Direction::default()
            },
            down: Direction::default(),
            speech: Speech::Unheard,
            moved: MovedBytes::default(),
        };
        (connection, theirs, its)
    }

    fn link() -> (Link, Link) {
        let (a, b) = kernel::packet_pair().unwrap();
        (Link::new(a), Link::new(b))
    }

    fn all(fd: &OwnedFd) -> Vec<u8> {
        let (mut seen, mut piece) = (Vec::new(), vec![0; PIECE_BYTES]);
        while let Ok(Some(bytes @ [_, ..])) = read(fd, &mut piece) {
            seen.extend_from_slice(bytes);
        }
        seen
    }

    fn step(connection: &mut Connection, host: &Link) {
        let mut piece = vec![0; PIECE_BYTES];
        assert!(connection.step(7, host, &mut piece).is_ok());
    }

    #[test]
    fn what_the_client_says_goes_nowhere_before_it_may() {
        let (host, mut belljar) = link();
        let (mut one, client, server) = connection(b"early ");
        kernel::write(client.as_fd(), b"hello").unwrap();
        kernel::write(server.as_fd(), b"banner").unwrap();
        step(&mut one, &host);
        assert_eq!((all(&server), all(&client)), (Vec::new(), b"banner".to_vec()));
        one.speech = Speech::Heard;
        step(&mut one, &host);
        let heard = FromCarrier::Heard {
            connection: 7,
            bytes: b"hello".to_vec(),
        };
        assert_eq!(belljar.hear::<FromCarrier>().unwrap().unwrap().0, heard);
        assert_eq!((one.speech, all(&server)), (Speech::Unheard, Vec::new()));
        one.speech = Speech::Passed;
        step(&mut one, &host);
        assert_eq!(all(&server), b"early hello");
        let moved = MovedBytes { sent: 11, received: 6 };
        assert_eq!(one.moved, moved);
    }

    #[test]
    fn a_receiver_that_takes_nothing_stops_its_sender_and_loses_nothing() {
        let (host, _belljar) = link();
        let (mut one, client, server) = connection(b"");
        one.speech = Speech::Passed;
        let (mut sent, mut seen) = (Vec::new(), Vec::new());
        for number in 0u32.. {
            let text: Vec<u8> = (0..30_000u32).map(|at| (at ^ number) as u8).collect();
            let taken = write(&client, &text).unwrap();
            sent.extend_from_slice(&text[..taken]);
            step(&mut one, &host);
            if taken == 0 {
                break;
            }
        }
        assert!(!one.up.reads(), "nothing more is read");
        assert!(one.up.waiting.len() <= PIECE_BYTES);
        kernel::shut_down_writing(client.as_fd());
        while !one.up.is_over {
            seen.extend(all(&server));
            step(&mut one, &host);
        }
        seen.extend(all(&server));
        assert!(seen == sent, "{} of {} bytes", seen.len(), sent.len());
        assert_eq!(one.moved.sent, sent.len() as u64);
        assert!(one.up.waiting.capacity() == 0, "an idle connection holds nothing");
    }

    #[test]
    fn each_direction_has_its_own_end() {
        let (host, _belljar) = link();
        let (mut one, client, server) = connection(b"");
        one.speech = Speech::Passed;
        kernel::write(client.as_fd(), b"last").unwrap();
        kernel::shut_down_writing(client.as_fd());
        step(&mut one, &host);
        assert_eq!(all(&server), b"last");
        assert_eq!((one.up.is_over, one.down.is_over), (true, false));
        kernel::write(server.as_fd(), b"answer").unwrap();
        step(&mut one, &host);
        assert_eq!(all(&client), b"answer");
        drop(server);
        step(&mut one, &host);
        assert!(one.down.is_over);
    }

    #[test]
    fn a_socket_that_nothing_is_wanted_of_is_not_waited_for() {
        let (host, _belljar) = link();
        let (mut one, client, server) = connection(b"");
        let mut epoll = Epoll::new(8).unwrap();
        one.settle(7, &epoll).unwrap();
        // Its client is gone while what it says is still unheard: that is seen when it is.
        drop(client);
        assert_eq!(epoll.wait(0).unwrap().count(), 0);
        one.speech = Speech::Heard;
        one.settle(7, &epoll).unwrap();
        assert_eq!(
            epoll.wait(0).unwrap().map(|(number, _)| number).collect::<Vec<_>>(),
            [14]
        );
        kernel::write(server.as_fd(), b"x").unwrap();
        assert_eq!(epoll.wait(0).unwrap().count(), 2);
        drop(host);
    }
}
