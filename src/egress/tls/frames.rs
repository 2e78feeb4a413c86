//! Frames of WebSocket (RFC 6455, 5.2), as far as what they carry has to be looked through: a value or a placeholder may lie over the
//! border of two of them, and what a client sends is disguised by a key of its own.

use std::sync::Arc;

use crate::egress::secret::mask::{Masker, Patterns, masked};

/// A control frame carries no more (RFC 6455, 5.5).
const CONTROL_MAX: u64 = 125;

/// Why a switched connection ends.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Stop {
    /// The placeholder of this secret was about to be sent where it has no business.
    Placeholder(String),
    /// It cannot be looked through.
    Unreadable(&'static str),
}

/// What stands before a frame's payload.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Head {
    is_last: bool,
    opcode: u8,
    length: u64,
    key: Option<[u8; 4]>,
}

impl Head {
    fn is_control(self) -> bool {
        self.opcode >= 8
    }

    /// The head and its own length; `None` while it is not whole.
    fn read(bytes: &[u8]) -> Result<Option<(Head, usize)>, Stop> {
        let [first, second, rest @ ..] = bytes else {
            return Ok(None);
        };
        if first & 0x70 != 0 {
            return Err(Stop::Unreadable("a frame is packed, which was not agreed on"));
        }
        let (length, rest) = match second & 0x7f {
            126 => match rest.split_first_chunk::<2>() {
                Some((length, rest)) => (u16::from_be_bytes(*length).into(), rest),
                None => return Ok(None),
            },
            127 => match rest.split_first_chunk::<8>() {
                Some((length, rest)) => (u64::from_be_bytes(*length), rest),
                None => return Ok(None),
            },
            short => (short.into(), rest),
        };
        let (key, rest) = match second & 0x80 != 0 {
            true => match rest.split_first_chunk::<4>() {
                Some((key, rest)) => (Some(*key), rest),
                None => return Ok(None),
            },
            false => (None, rest),
        };
        let head = Head {
            is_last: first & 0x80 != 0,
            opcode: first & 0x0f,
            length,
            key,
        };
        if head.is_control() && (length > CONTROL_MAX || !head.is_last) {
            return Err(Stop::Unreadable("a control frame is too long, or one of several"));
        }
        Ok(Some((head, bytes.len() - rest.len())))
    }
}

/// A part of a stream of frames.
enum Part {
    /// Some of the payload of a message of this opcode, in the clear, and whether the message ends with it.
    Data { opcode: u8, payload: Vec<u8>, ends: bool },
    /// A control frame, whole.
    Control { opcode: u8, payload: Vec<u8> },
}

/// Reads frames out of pieces of a stream.
#[derive(Default)]
struct Reader {
    /// A head, or a control frame, that is not whole.
    waiting: Vec<u8>,
    /// The frame of data that is being read, and how much of it was.
    open: Option<(Head, u64)>,
    /// The opcode of the message that is being read.
    message: Option<u8>,
}

impl Reader {
    fn read(&mut self, mut bytes: &[u8], mut take: impl FnMut(Part) -> Result<(), Stop>) -> Result<(), Stop> {
        loop {
            if let Some((head, done)) = self.open {
                let left = usize::try_from(head.length - done)
                    .unwrap_or(usize::MAX)
                    .min(bytes.len());
                let (own, rest) = bytes.split_at(left);
                bytes = rest;
                let payload = clear(own, head.key, done);
                let done = done + own.len() as u64;
                let is_whole = done == head.length;
                self.open = (!is_whole).then_some((head, done));
                let ends = is_whole && head.is_last;
                let opcode = self.message.unwrap_or(head.opcode);
                if ends || !payload.is_empty() {
                    take(Part::Data { opcode, payload, ends })?;
                }
                if !is_whole {
                    return Ok(());
                }
                if head.is_last {
                    self.message = None;
                }
            }
            self.waiting.extend_from_slice(bytes);
            let Some((head, length)) = Head::read(&self.waiting)? else {
                return Ok(());
            };
            if !head.is_control() {
                if (head.opcode == 0) != self.message.is_some() || head.opcode > 2 {
                    return Err(Stop::Unreadable("a frame is none of its message"));
                }
                self.message.get_or_insert(head.opcode);
                // What is behind the head came with these bytes.
                let behind = self.waiting.len() - length;
                bytes = &bytes[bytes.len() - behind..];
                self.waiting.clear();
                self.open = Some((head, 0));
                continue;
            }
            let end = length + usize::try_from(head.length).unwrap_or(usize::MAX);
            let Some(payload) = self.waiting.get(length..end) else {
                return Ok(());
            };
            let payload = clear(payload, head.key, 0);
            let behind = self.waiting.len() - end;
            bytes = &bytes[bytes.len() - behind..];
            self.waiting.clear();
            let opcode = head.opcode;
            take(Part::Control { opcode, payload })?;
        }
    }
}

fn clear(payload: &[u8], key: Option<[u8; 4]>, from: u64) -> Vec<u8> {
    match key {
        None => payload.to_vec(),
        Some(key) => (from..)
            .zip(payload)
            .map(|(at, byte)| byte ^ key[(at % 4) as usize])
            .collect(),
    }
}

/// What a server sends, with the values of secrets masked: message by message, so that none waits for what the next one may begin with.
pub(super) struct Masking {
    reader: Reader,
    masker: Masker,
    /// Of the message that is being sent: what is not sent yet, and whether some of it was.
    ready: Vec<u8>,
    is_begun: bool,
    opcode: u8,
}

impl Masking {
    pub fn new(patterns: Arc<Patterns>) -> Self {
        Self {
            reader: Reader::default(),
            masker: Masker::new(patterns),
            ready: Vec::new(),
            is_begun: false,
            opcode: 0,
        }
    }

    /// The frames to send for what came.
    pub fn push(&mut self, bytes: &[u8]) -> Result<Vec<u8>, Stop> {
        let mut out = Vec::with_capacity(bytes.len() + 16);
        let Self {
            reader,
            masker,
            ready,
            is_begun,
            opcode: open,
        } = self;
        reader.read(bytes, |part| {
            match part {
                Part::Control { opcode, payload } => {
                    write_frame(&mut out, opcode, true, &masked(masker.patterns(), &payload));
                }
                Part::Data { opcode, payload, ends } => {
                    *open = opcode;
                    ready.extend(masker.push(&payload));
                    if ends {
                        ready.extend(masker.finish());
                        let opcode = if *is_begun { 0 } else { opcode };
                        write_frame(&mut out, opcode, true, ready);
                        ready.clear();
                        *is_begun = false;
                    }
                }
            }
            Ok(())
        })?;
        if !self.ready.is_empty() {
            let opcode = if self.is_begun { 0 } else { self.opcode };
            write_frame(&mut out, opcode, false, &self.ready);
            self.ready.clear();
            self.is_begun = true;
        }
        Ok(out)
    }
}

/// Looks at what a client sends, for placeholders that have no business with its server.
pub(super) struct Guarding {
    reader: Reader,
    guard: Masker,
}

impl Guarding {
    pub fn new(placeholders: Arc<Patterns>) -> Self {
        Self {
            reader: Reader::default(),
            guard: Masker::new(placeholders),
        }
    }

    /// Whether these bytes may go on.
    pub fn look(&mut self, bytes: &[u8]) -> Result<(), Stop> {
        let Self { reader, guard } = self;
        reader.read(bytes, |part| {
            let looked = match part {
                Part::Control { payload, .. } => guard
                    .patterns()
                    .finds(&payload)
                    .map_or(Ok(()), |name| Err(name.to_owned())),
                Part::Data { payload, ends, .. } => guard.guard(&payload, ends).map(drop),
            };
            looked.map_err(Stop::Placeholder)
        })
    }
}

fn write_frame(out: &mut Vec<u8>, opcode: u8, is_last: bool, payload: &[u8]) {
    out.push(opcode | if is_last { 0x80 } else { 0 });
    match (u8::try_from(payload.len()), u16::try_from(payload.len())) {
        (Ok(short @ ..=125), _) => out.push(short),
        (_, Ok(long)) => {
            out.push(126);
            out.extend(long.to_be_bytes());
        }
        (_, Err(_)) => {
            out.push(127);
            out.extend((payload.len() as u64).to_be_bytes());
        }
    }
    out.extend_from_slice(payload);
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::egress::secret::Live;
    use crate::task::SecretPlace;

    const VALUE: &str = "ghp_aaaaBBBBccccDDDD";
    const PLACEHOLDER: &str = "ghp_0000111122223333";

    fn masking() -> Masking {
        Masking::new(Arc::new(Patterns::masking(&[Live {
            name: "TOKEN".to_owned(),
            place: SecretPlace::Placeholder,
            placeholder: PLACEHOLDER.to_owned(),
            value: VALUE.to_owned().into(),
            session: None,
        }])))
    }

    fn guarding() -> Guarding {
        let named = [(PLACEHOLDER, "TOKEN")];
        Guarding::new(Arc::new(Patterns::guarding(named.into_iter())))
    }

    fn frame(opcode: u8, is_last: bool, payload: &[u8]) -> Vec<u8> {
        let mut frame = Vec::new();
        write_frame(&mut frame, opcode, is_last, payload);
        frame
    }

    fn disguised(opcode: u8, is_last: bool, payload: &[u8]) -> Vec<u8> {
        let key = [0x12, 0xf3, 0x00, 0x9a];
        let mut frame = frame(opcode, is_last, payload);
        let head = frame.len() - payload.len();
        frame[1] |= 0x80;
        frame.truncate(head);
        frame.extend(key);
        frame.extend(clear(payload, Some(key), 0));
        frame
    }

    /// The messages of a stream of frames, each with its opcode.
    fn messages(bytes: &[u8]) -> Vec<(u8, Vec<u8>)> {
        let (mut messages, mut open) = (Vec::new(), None::<(u8, Vec<u8>)>);
        Reader::default()
            .read(bytes, |part| {
                match part {
                    Part::Control { opcode, payload } => messages.push((opcode, payload)),
                    Part::Data { opcode, payload, ends } => {
                        open.get_or_insert((opcode, Vec::new())).1.extend(payload);
                        if ends {
                            messages.extend(open.take());
                        }
                    }
                }
                Ok(())
            })
            .unwrap();
        messages
    }

    #[test]
    fn a_value_over_the_border_of_two_frames_is_masked() {
        let long = format!("{}{VALUE}{}", "x".repeat(70_000), "y".repeat(300));
        let mut stream = frame(1, false, b"you are ghp_aaaa");
        stream.extend(frame(9, true, VALUE.as_bytes()));
        stream.extend(frame(0, false, b"BBBBcc"));
        stream.extend(frame(0, true, b"ccDDDD!"));
        stream.extend(frame(2, true, long.as_bytes()));
        stream.extend(frame(1, true, b""));
        stream.extend(frame(1, true, b"the end is a gh"));
        stream.extend(frame(8, true, format!("\x03\u{e8}bye {VALUE}").as_bytes()));
        let wanted = [
            (9, PLACEHOLDER.as_bytes().to_vec()),
            (1, format!("you are {PLACEHOLDER}!").into_bytes()),
            (2, long.replace(VALUE, PLACEHOLDER).into_bytes()),
            (1, Vec::new()),
            (1, b"the end is a gh".to_vec()),
            (8, format!("\x03\u{e8}bye {PLACEHOLDER}").into_bytes()),
        ];
        for size in [1, 2, 3, 7, 100, stream.len()] {
            let mut masking = masking();
            let pieces = stream.chunks(size);
            let out: Vec<u8> = pieces.flat_map(|piece| masking.push(piece).unwrap()).collect();
            assert_eq!(messages(&out), wanted, "in pieces of {size}");
        }
    }

    #[test]
    fn a_message_waits_for_no_other() {
        let whole = frame(1, true, b"ends in ghp_");
        assert_eq!(masking().push(&whole).unwrap(), whole);
    }

    #[test]
    fn a_placeholder_is_found_in_disguise_and_over_borders() {
        let mut good = disguised(1, true, b"plain ghp_0000");
        good.extend(disguised(2, true, &[7; 300]));
        good.extend(disguised(10, true, b"pong"));
        let mut split = disguised(1, false, b"ghp_000011");
        split.extend(disguised(9, true, b"ping"));
        split.extend(disguised(0, true, b"1122223333"));
        let streams = [
            (good, Ok(())),
            (split, Err(Stop::Placeholder("TOKEN".to_owned()))),
            (
                disguised(9, true, PLACEHOLDER.as_bytes()),
                Err(Stop::Placeholder("TOKEN".to_owned())),
            ),
            (
                frame(2, true, PLACEHOLDER.as_bytes()),
                Err(Stop::Placeholder("TOKEN".to_owned())),
            ),
        ];
        for (stream, wanted) in streams {
            for size in [1, 5, stream.len()] {
                let mut guarding = guarding();
                let looked = stream.chunks(size).try_for_each(|piece| guarding.look(piece));
                assert_eq!(looked, wanted, "in pieces of {size}");
            }
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fall(bytes in prop::collection::vec(any::<u8>(), 0..300), size in 1usize..40) {
            let (mut masking, mut guarding) = (masking(), guarding());
            for piece in bytes.chunks(size) {
                let (masked, looked) = (masking.push(piece), guarding.look(piece));
                if masked.is_err() || looked.is_err() {
                    break;
                }
            }
        }

        #[test]
        fn messages_without_a_value_are_what_they_were(
            texts in prop::collection::vec(("[a-z]{0,200}", any::<bool>()), 1..6),
            size in 1usize..50,
        ) {
            let count = texts.len();
            let mut opcode = 2;
            let mut stream = Vec::new();
            for (n, (text, ends)) in texts.iter().enumerate() {
                let ends = *ends || n + 1 == count;
                stream.extend(frame(opcode, ends, text.as_bytes()));
                opcode = if ends { 2 } else { 0 };
            }
            let mut masking = masking();
            let pieces = stream.chunks(size);
            let out: Vec<u8> = pieces.flat_map(|piece| masking.push(piece).unwrap()).collect();
            prop_assert_eq!(messages(&out), messages(&stream));
        }
    }

    #[test]
    fn what_cannot_be_looked_through_ends_it() {
        for bad in [
            vec![0xc1, 0x05, 1, 2, 3, 4, 5],
            vec![0x89, 0x7e, 0x01, 0x00],
            vec![0x09, 0x00],
            frame(0, true, b"of no message"),
            frame(3, true, b"of no kind"),
            [frame(1, false, b"one"), frame(1, true, b"within another")].concat(),
        ] {
            assert!(matches!(masking().push(&bad), Err(Stop::Unreadable(_))), "{bad:?}");
            assert!(matches!(guarding().look(&bad), Err(Stop::Unreadable(_))), "{bad:?}");
        }
    }
}
