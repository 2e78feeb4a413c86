//! The server name in a TLS ClientHello (RFC 8446, 4.1.2; RFC 6066, 3), read without doing TLS.
//!
//! Only enough is read to compare the name with the host that the tunnel was allowed for. What comes is hostile: every length
//! is checked, nothing is allocated for it but the handshake itself, which is bounded.

/// The longest hello that is looked at. Browsers' hellos with post-quantum keys are about 2 KiB.
pub(in crate::egress) const HELLO_MAX: usize = 16 * 1024;

const RECORD_HANDSHAKE: u8 = 22;
const RECORD_MAX: usize = 16 * 1024;
const CLIENT_HELLO: u8 = 1;
const EXTENSION_SERVER_NAME: u16 = 0;
const NAME_TYPE_HOST: u8 = 0;

/// What the first bytes of a stream are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(in crate::egress) enum Seen {
    /// So far it may be a hello.
    More,
    /// Another protocol than TLS.
    NotTls,
    /// A whole hello, with its server name if it has one.
    Hello { server_name: Option<String> },
    /// It begins as TLS and goes on as something else.
    Malformed(&'static str),
}

/// Looks at the bytes that a stream began with.
pub(in crate::egress) fn read(bytes: &[u8]) -> Seen {
    match bytes {
        [] | [RECORD_HANDSHAKE] => return Seen::More,
        [RECORD_HANDSHAKE, 3, ..] => {}
        _ => return Seen::NotTls,
    }
    let handshake = match unwrap_records(bytes) {
        Ok(handshake) => handshake,
        Err(wrong) => return Seen::Malformed(wrong),
    };
    let mut reader = Reader(&handshake);
    let (Some(kind), Some(length)) = (reader.u8(), reader.u24()) else {
        return too_long_or_more(bytes);
    };
    if kind != CLIENT_HELLO {
        return Seen::Malformed("the first TLS message is not a ClientHello");
    }
    if length > HELLO_MAX {
        return Seen::Malformed("the ClientHello is too long");
    }
    let Some(body) = reader.take(length) else {
        return too_long_or_more(bytes);
    };
    match server_name(body) {
        Ok(server_name) => Seen::Hello { server_name },
        Err(wrong) => Seen::Malformed(wrong),
    }
}

fn too_long_or_more(bytes: &[u8]) -> Seen {
    if bytes.len() > HELLO_MAX {
        Seen::Malformed("the ClientHello is too long")
    } else {
        Seen::More
    }
}

/// The handshake bytes of all records so far; the last record may be cut.
fn unwrap_records(bytes: &[u8]) -> Result<Vec<u8>, &'static str> {
    let mut handshake = Vec::with_capacity(bytes.len());
    let mut reader = Reader(bytes);
    while let Some(kind) = reader.u8() {
        if kind != RECORD_HANDSHAKE {
            return Err("another TLS record stands within the ClientHello");
        }
        let (Some(_version), Some(length)) = (reader.u16(), reader.u16()) else {
            break;
        };
        let length = usize::from(length);
        if length == 0 || length > RECORD_MAX {
            return Err("a TLS record of the ClientHello has a wrong length");
        }
        match reader.take(length) {
            Some(fragment) => handshake.extend_from_slice(fragment),
            None => {
                handshake.extend_from_slice(reader.0);
                break;
            }
        }
        // What follows a whole hello is not ours to read.
        if let [CLIENT_HELLO, a, b, c, rest @ ..] = handshake.as_slice()
            && rest.len() >= usize::from(*a) << 16 | usize::from(*b) << 8 | usize::from(*c)
        {
            break;
        }
    }
    Ok(handshake)
}

fn server_name(hello: &[u8]) -> Result<Option<String>, &'static str> {
    const CUT: &str = "the ClientHello ends too soon";
    let mut reader = Reader(hello);
    reader.take(2 + 32).ok_or(CUT)?;
    let session_id = reader.u8().ok_or(CUT)?;
    reader.take(usize::from(session_id)).ok_or(CUT)?;
    let cipher_suites = reader.u16().ok_or(CUT)?;
    reader.take(usize::from(cipher_suites)).ok_or(CUT)?;
    let compressions = reader.u8().ok_or(CUT)?;
    reader.take(usize::from(compressions)).ok_or(CUT)?;
    if reader.0.is_empty() {
        return Ok(None);
    }
    let length = reader.u16().ok_or(CUT)?;
    let mut extensions = Reader(reader.take(usize::from(length)).ok_or(CUT)?);
    if !reader.0.is_empty() {
        return Err("something follows the extensions of the ClientHello");
    }
    let mut found = None;
    while let Some(kind) = extensions.u16() {
        let length = extensions.u16().ok_or(CUT)?;
        let body = extensions.take(usize::from(length)).ok_or(CUT)?;
        if kind == EXTENSION_SERVER_NAME && found.replace(body).is_some() {
            return Err("the ClientHello has two server names");
        }
    }
    if !extensions.0.is_empty() {
        return Err(CUT);
    }
    found.map(host_name).transpose()
}

fn host_name(extension: &[u8]) -> Result<String, &'static str> {
    const WRONG: &str = "the server name of the ClientHello cannot be read";
    let mut reader = Reader(extension);
    let length = reader.u16().ok_or(WRONG)?;
    let mut list = Reader(reader.take(usize::from(length)).ok_or(WRONG)?);
    let kind = list.u8().ok_or(WRONG)?;
    let length = list.u16().ok_or(WRONG)?;
    let name = list.take(usize::from(length)).ok_or(WRONG)?;
    // One name of one type is all that there is; a list of several could be read in several ways.
    if kind != NAME_TYPE_HOST || !list.0.is_empty() || !reader.0.is_empty() {
        return Err(WRONG);
    }
    String::from_utf8(name.to_vec()).map_err(|_| WRONG)
}

struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn take(&mut self, length: usize) -> Option<&'a [u8]> {
        let (taken, rest) = self.0.split_at_checked(length)?;
        self.0 = rest;
        Some(taken)
    }

    fn u8(&mut self) -> Option<u8> {
        let (&first, rest) = self.0.split_first()?;
        self.0 = rest;
        Some(first)
    }

    fn u16(&mut self) -> Option<u16> {
        let (bytes, rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(u16::from_be_bytes(*bytes))
    }

    fn u24(&mut self) -> Option<usize> {
        let (&[a, b, c], rest) = self.0.split_first_chunk()?;
        self.0 = rest;
        Some(usize::from(a) << 16 | usize::from(b) << 8 | usize::from(c))
    }
}

#[cfg(test)]
pub(in crate::egress) mod tests {
    use proptest::prelude::*;

    use super::*;

    /// A hello as a client would send it, with these server names, in records of at most `record` bytes.
    pub(in crate::egress) fn hello(names: &[&str], record: usize) -> Vec<u8> {
        let u16 = |n: usize| u16::try_from(n).unwrap().to_be_bytes();
        let mut extensions = vec![0xff, 0x01, 0, 1, 0];
        for name in names {
            extensions.extend([0, 0]);
            extensions.extend(u16(name.len() + 5));
            extensions.extend(u16(name.len() + 3));
            extensions.push(0);
            extensions.extend(u16(name.len()));
            extensions.extend(name.as_bytes());
        }
        let mut body = vec![3, 3];
        body.extend([7; 32]);
        body.extend([0, 0, 2, 0x13, 0x01, 1, 0]);
        body.extend(u16(extensions.len()));
        body.extend(extensions);
        let mut message = vec![1, 0];
        message.extend(u16(body.len()));
        message.extend(body);
        let mut records = Vec::new();
        for fragment in message.chunks(record) {
            records.extend([22, 3, 1]);
            records.extend(u16(fragment.len()));
            records.extend(fragment);
        }
        records
    }

    fn named(name: &str) -> Seen {
        Seen::Hello {
            server_name: Some(name.to_owned()),
        }
    }

    #[test]
    fn a_server_name_is_found_in_one_record_and_in_many() {
        assert_eq!(read(&hello(&["example.com"], 16_384)), named("example.com"));
        assert_eq!(read(&hello(&["example.com"], 3)), named("example.com"));
        assert_eq!(read(&hello(&[], 16_384)), Seen::Hello { server_name: None });
        let mut followed = hello(&["example.com"], 16_384);
        followed.extend([23, 3, 3, 0, 1, 0]);
        assert_eq!(read(&followed), named("example.com"), "early data may follow");
    }

    #[test]
    fn every_beginning_of_a_hello_wants_more() {
        let whole = hello(&["example.com"], 40);
        for end in 0..whole.len() {
            assert_eq!(read(&whole[..end]), Seen::More, "{end}");
        }
    }

    #[test]
    fn what_is_not_tls_or_not_a_hello_is_told_apart() {
        assert_eq!(read(b"GET / HTTP/1.1\r\n"), Seen::NotTls);
        assert_eq!(read(b"SSH-2.0-x\r\n"), Seen::NotTls);
        for bytes in [
            &[22, 3, 1, 0, 0][..],
            &[22, 3, 1, 0, 4, 2, 0, 0, 0],
            &[22, 3, 1, 0, 4, 1, 0xff, 0, 0],
            &[22, 3, 1, 0, 1, 1, 23, 3, 1],
            &hello(&["a.com", "b.com"], 16_384),
        ] {
            assert!(matches!(read(bytes), Seen::Malformed(_)), "{bytes:?}");
        }
        let endless: Vec<u8> = [22, 3, 1, 0, 1, 1, 22, 3, 1, 0, 1, 0]
            .into_iter()
            .chain([22, 3, 1, 0, 1, 0x3f].repeat(HELLO_MAX / 6))
            .collect();
        assert!(matches!(read(&endless), Seen::Malformed(_)));
    }

    proptest! {
        #[test]
        fn no_bytes_make_it_fall(at in 0usize..120, value: u8, bytes in prop::collection::vec(any::<u8>(), 0..300)) {
            let mut broken = hello(&["example.com"], 50);
            if let Some(byte) = broken.get_mut(at) {
                *byte = value;
            }
            read(&broken);
            read(&bytes);
            let mut record = vec![22, 3, 1, 1, 44];
            record.extend(&bytes);
            read(&record);
        }
    }
}
