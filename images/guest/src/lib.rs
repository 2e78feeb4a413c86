//! The words that the host and the guest exchange, over unix `SOCK_SEQPACKET` sockets, one message a packet.
//!
//! ```text
//!   host                                   sandbox
//!   control socket  <-- ToInit/FromInit -->  init (PID 1): makes slots, opens listeners, reaps
//!   slot socket     <-- ToSlot/FromSlot -->  slot: sits in an exec's cgroup, starts one command at a time
//! ```
//!
//! A message is postcard (<https://postcard.jamesmunns.com/wire-format>) behind one byte: 0 when the message follows, 1 when it is
//! the content of the memory file passed as the last descriptor (for an argv too large for a packet). Descriptors travel beside
//! the message (`SCM_RIGHTS`), in the order that each message names. The host treats all that the guest says as hostile; a
//! message that cannot be read poisons the sandbox.
//!
//! Where descriptors cannot cross (gVisor, a container of Docker's) two guests carry the same words over a stream; see the guest's
//! `relay`. The host speaks to the near one and hands descriptors to it as ever.
//!
//! ```text
//!   host <-- control, slots, descriptors --> near guest (a box of its own) <== frames over a stream ==> far guest, init, slots
//! ```
//!
//! The same program carries connections for a belljar that has no descriptors left for more; see the guest's `carrier`.

use serde::{Deserialize, Serialize};

/// The version of these messages; the guest says it first, and a host that does not know it destroys the sandbox.
pub const VERSION: u32 = 2;

/// The descriptor at which the guest finds its control socket.
pub const CONTROL_FD: i32 = 3;

/// What a command can read to learn its limits and what its task has used. It belongs to the commands' own user, who can only deceive
/// itself by changing it.
pub const LIMITS_FILE: &str = "/run/belljar/limits";

/// The largest packet; what is larger travels in a memory file.
pub const PACKET_MAX: usize = 64 * 1024;

/// The largest message that is ever read, memory file included: Linux's own bound on argv and environment is 6 MiB.
pub const MESSAGE_MAX: usize = 8 * 1024 * 1024;

/// The most descriptors beside one message.
pub const FDS_MAX: usize = 16;

/// Asked of PID 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToInit {
    /// Fork a slot. Descriptors: its socket, and the files by which it joins its cgroups before it does anything.
    AddSlot { slot: u32 },
    /// Bring up loopback's listener on 127.0.0.1 at `port`.
    Listen { port: u16, kind: ListenKind },
    /// End a slot and what it runs, for a host that has no pidfd of it.
    KillSlot { slot: u32 },
    /// Pass everything on to a guest elsewhere from now on, and its words back; its `Ready` comes next. Descriptor: the stream to it.
    Relay,
    /// Put this into [`LIMITS_FILE`]. It is not answered.
    Limits { text: String },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum ListenKind {
    Tcp,
    Udp,
}

/// Said by PID 1.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromInit {
    /// The first message.
    Ready {
        version: u32,
    },
    /// `pid` is the slot's process as its own pid namespace numbers it. Descriptor: a pidfd of it, unless this was relayed.
    SlotAdded {
        slot: u32,
        pid: i32,
    },
    /// The slot's process is gone, and with it what it ran.
    SlotGone {
        slot: u32,
    },
    /// Descriptor: the socket, bound (and listening, for TCP).
    Listening {
        port: u16,
        kind: ListenKind,
    },
    Failed {
        what: Failed,
        errno: i32,
    },
}

/// What of PID 1's work failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Failed {
    Slot(u32),
    Listen(u16, ListenKind),
}

/// Asked of a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToSlot {
    /// Start a command. Descriptors: stdin, stdout, stderr; none with `tty`.
    Start(Start),
    /// To the command's process group.
    Signal { signal: i32 },
    /// End the command and all that it started, now.
    Kill,
    /// The size of the command's terminal, for a host that does not hold its master side itself.
    Resize { rows: u16, cols: u16 },
}

/// A command to start, as the kernel will get it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Start {
    pub argv: Vec<String>,
    /// The whole environment, `NAME=value`.
    pub env: Vec<String>,
    pub cwd: String,
    /// Rows and columns of a pseudo-terminal to run in.
    pub tty: Option<(u16, u16)>,
    /// What the command leaves running stays.
    pub detach: bool,
}

/// Said by a slot.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromSlot {
    /// The first message: it sits in its cgroups.
    Ready,
    /// Descriptor, with a tty: its master side.
    Started { pid: i32 },
    /// Nothing was started.
    NotStarted { step: Step, errno: i32 },
    /// The command is over. `status` is what wait(2) gave. What it left running is gone too, unless it was to stay.
    Exited { status: i32, usage: Rusage, leftovers: u32 },
}

/// Where a start failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Step {
    /// The message was not understood, or another command still runs.
    Message,
    Cwd,
    Tty,
    /// No such program.
    Lookup,
    Exec,
}

/// What wait4(2) counted for a command and all its reaped descendants.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Rusage {
    pub user_micros: u64,
    pub system_micros: u64,
    /// Of the largest single process.
    pub max_rss_kib: u64,
    /// 512-byte blocks.
    pub blocks_in: u64,
    pub blocks_out: u64,
    /// Processes that were reaped.
    pub processes: u64,
}

/// The one argument with which this program is a carrier of connections; its control socket is its standard input then.
pub const CARRIER: &str = "--carry";

/// Asked of a carrier. A connection has the number that the host gave it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum ToCarrier {
    /// Take a connection over. Descriptors: the sockets of its client and of its server, neither of which blocks. What the server
    /// says goes to the client from now on; `early`, and what the client says, waits for [`ToCarrier::Pass`].
    Carry { connection: u64, early: Vec<u8> },
    /// Read what the client says next, keep it, and tell it: [`FromCarrier::Heard`].
    Hear { connection: u64 },
    /// What the client said goes to the server, and so does all that it will say.
    Pass { connection: u64 },
    /// End it now; [`FromCarrier::Ended`] answers.
    Close { connection: u64 },
}

/// Said by a carrier. Bytes are those that were written, since they were told last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum FromCarrier {
    /// No bytes are the client's end.
    Heard { connection: u64, bytes: Vec<u8> },
    /// At most [`MOVED_MAX`] connections.
    Moved(Vec<(u64, MovedBytes)>),
    /// The connection is over, and its sockets are closed.
    Ended {
        connection: u64,
        bytes: MovedBytes,
        how: HowEnded,
    },
}

/// As many fit a packet, however large their numbers are.
pub const MOVED_MAX: usize = 2000;

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct MovedBytes {
    /// From the client to the server.
    pub sent: u64,
    pub received: u64,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum HowEnded {
    /// Both sides were done.
    Done,
    /// A socket failed.
    Failed { errno: i32 },
    /// The host wanted it.
    Closed,
}

/// A message that could not be read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Malformed;

impl core::fmt::Display for Malformed {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.write_str("the message is malformed")
    }
}

impl core::error::Error for Malformed {}

/// Encodes a message for a packet or, where it is larger than [`PACKET_MAX`], for a memory file.
pub fn encode<T: Serialize>(message: &T) -> Encoded {
    let body = postcard::to_allocvec(message).expect("these types always serialise");
    if body.len() < PACKET_MAX {
        let mut packet = Vec::with_capacity(body.len() + 1);
        packet.push(0);
        packet.extend_from_slice(&body);
        Encoded::Packet(packet)
    } else {
        Encoded::Large(body)
    }
}

pub enum Encoded {
    /// The packet, whole.
    Packet(Vec<u8>),
    /// The content of the memory file; the packet is the single byte 1.
    Large(Vec<u8>),
}

/// Decodes a message's body; bytes that are left over make it malformed.
pub fn decode<T: for<'de> Deserialize<'de>>(body: &[u8]) -> Result<T, Malformed> {
    match postcard::take_from_bytes(body) {
        Ok((message, [])) => Ok(message),
        _ => Err(Malformed),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn as_many_counts_as_may_be_told_at_once_fit_a_packet() {
        let most = MovedBytes {
            sent: u64::MAX,
            received: u64::MAX,
        };
        let told = FromCarrier::Moved(vec![(u64::MAX, most); MOVED_MAX]);
        assert!(matches!(encode(&told), Encoded::Packet(_)));
    }

    fn start(word: &str) -> ToSlot {
        let argv = vec![word.to_owned()];
        ToSlot::Start(Start {
            argv,
            env: vec!["A=b".into()],
            cwd: "/".into(),
            tty: Some((24, 80)),
            detach: false,
        })
    }

    #[test]
    fn a_message_reads_back() {
        let Encoded::Packet(packet) = encode(&start("ls")) else {
            panic!("small messages fit a packet")
        };
        assert_eq!(packet[0], 0);
        assert_eq!(decode::<ToSlot>(&packet[1..]), Ok(start("ls")));
    }

    #[test]
    fn a_large_message_goes_to_a_memory_file() {
        let large = start(&"x".repeat(PACKET_MAX));
        let Encoded::Large(body) = encode(&large) else {
            panic!("it does not fit a packet")
        };
        assert_eq!(decode::<ToSlot>(&body), Ok(large));
    }

    #[test]
    fn cut_overlong_and_foreign_messages_are_malformed() {
        let Encoded::Packet(packet) = encode(&start("ls")) else {
            panic!("small messages fit a packet")
        };
        for end in 1..packet.len() {
            assert_eq!(decode::<ToSlot>(&packet[1..end]), Err(Malformed), "cut at {end}");
        }
        let mut longer = packet[1..].to_vec();
        longer.push(0);
        assert_eq!(decode::<ToSlot>(&longer), Err(Malformed));
        assert_eq!(decode::<FromSlot>(&[0xff; 40]), Err(Malformed));
        // A length that no memory could hold must not be allocated.
        assert_eq!(decode::<ToSlot>(&[0, 0xff, 0xff, 0xff, 0xff, 0x0f]), Err(Malformed));
    }
}
