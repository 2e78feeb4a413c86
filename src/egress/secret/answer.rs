//! Answers of hosts that got a secret: headers masked, bodies unpacked and masked, and nothing let through that cannot be looked at.

use std::sync::Arc;

use bytes::{Buf, Bytes};
use flate2::{Decompress, FlushDecompress, Status};
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

use super::mask::{Masker, Patterns, masked};

/// Bytes that are unpacked at a time, so that a bomb takes no more memory than any other answer.
const PIECE: usize = 32 * 1024;

/// How a body is packed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(in crate::egress) enum Packing {
    Plain,
    Gzip,
    Zlib,
}

impl Packing {
    /// As the headers of a body say it, with those of its connection; `Err` where it cannot be unpacked here.
    pub fn of(headers: &HeaderMap) -> Result<Self, String> {
        let codings = |name: &HeaderName| {
            let values = headers.get_all(name).iter();
            let texts = values.flat_map(|value| value.to_str().unwrap_or("unreadable").split(','));
            let words = texts.map(|coding| coding.trim().to_ascii_lowercase());
            words.filter(|coding| !coding.is_empty()).collect::<Vec<_>>()
        };
        // Chunks were read already; whoever else packs for a connection was not asked to, and does it for nobody but us.
        let mut found = codings(&header::TRANSFER_ENCODING);
        found.retain(|coding| coding != "chunked");
        if !found.is_empty() {
            return Err(format!(
                "the body is packed for its connection, which was not asked for ({})",
                found.join(", ")
            ));
        }
        let mut found = codings(&header::CONTENT_ENCODING);
        found.retain(|coding| coding != "identity");
        match found.iter().map(String::as_str).collect::<Vec<_>>().as_slice() {
            [] => Ok(Packing::Plain),
            ["gzip" | "x-gzip"] => Ok(Packing::Gzip),
            ["deflate"] => Ok(Packing::Zlib),
            _ => Err(format!(
                "the body is packed in a way that cannot be looked through ({})",
                found.join(", ")
            )),
        }
    }
}

/// Masks what stands in headers; those of a packed body that is unpacked go.
pub(in crate::egress) fn mask_headers(headers: &mut HeaderMap, patterns: &Arc<Patterns>, packing: Packing) {
    for value in headers.values_mut() {
        let seen = masked(patterns, value.as_bytes());
        if seen != value.as_bytes() {
            *value = HeaderValue::from_bytes(&seen).unwrap_or(HeaderValue::from_static("masked"));
        }
    }
    if packing != Packing::Plain {
        // Another body, so another length and other tags.
        for name in [
            header::CONTENT_ENCODING,
            header::CONTENT_LENGTH,
            header::ETAG,
            header::ACCEPT_RANGES,
        ] {
            headers.remove(name);
        }
    }
}

/// A body that is looked through.
pub(in crate::egress) struct Looking {
    masker: Masker,
    unpacking: Option<Unpacking>,
}

struct Unpacking {
    engine: Decompress,
    packing: Packing,
    rest: Bytes,
    /// Whether the stream is at its end, so that nothing or another one may follow.
    is_whole: bool,
    has_begun: bool,
}

impl Looking {
    pub fn new(patterns: Arc<Patterns>, packing: Packing) -> Self {
        let unpacking = (packing != Packing::Plain).then(|| Unpacking::new(packing));
        Self {
            masker: Masker::new(patterns),
            unpacking,
        }
    }

    /// Takes a piece of the body, of which the one before was given out whole.
    pub fn take(&mut self, bytes: Bytes) -> Vec<u8> {
        match &mut self.unpacking {
            None => self.masker.push(&bytes),
            Some(unpacking) => {
                unpacking.rest = bytes;
                Vec::new()
            }
        }
    }

    /// More of the piece that was taken; `None` where all of it was given.
    pub fn more(&mut self) -> Result<Option<Vec<u8>>, String> {
        let Some(unpacking) = &mut self.unpacking else {
            return Ok(None);
        };
        Ok(unpacking.piece()?.map(|piece| self.masker.push(&piece)))
    }

    /// Whether what is given is of another length than what is taken.
    pub fn changes_length(&self) -> bool {
        self.unpacking.is_some()
    }

    /// What was held back, at the end.
    pub fn finish(&mut self) -> Result<Vec<u8>, String> {
        if self
            .unpacking
            .as_ref()
            .is_some_and(|unpacking| unpacking.has_begun && !unpacking.is_whole)
        {
            return Err("the packed body ends too soon".to_owned());
        }
        Ok(self.masker.finish())
    }

    /// Trailers of the body.
    pub fn mask(&self, headers: &mut HeaderMap) {
        mask_headers(headers, self.masker.patterns(), Packing::Plain);
    }
}

/// A packed body of a request, looked into on its way: it goes on as it is.
pub(in crate::egress) struct Peek {
    unpacking: Unpacking,
    left: usize,
}

/// A body that unpacks to more costs more to look through than whoever sends it pays.
const PEEKED_MAX: usize = 256 << 20;

impl Peek {
    /// `None` for a body that is not packed, or in a way that cannot be unpacked here.
    pub fn of(headers: &HeaderMap) -> Option<Peek> {
        let packing = Packing::of(headers).ok().filter(|packing| *packing != Packing::Plain)?;
        let unpacking = Unpacking::new(packing);
        Some(Peek {
            unpacking,
            left: PEEKED_MAX,
        })
    }

    /// Gives what some more bytes hold to `look`, piece by piece.
    pub fn look(&mut self, bytes: Bytes, mut look: impl FnMut(&[u8]) -> Result<(), String>) -> Result<(), String> {
        self.unpacking.rest = bytes;
        while let Some(piece) = self.unpacking.piece()? {
            self.left = self.left.checked_sub(piece.len()).ok_or_else(|| {
                format!("the packed body is longer than {PEEKED_MAX} bytes, which is too long to be looked through")
            })?;
            look(&piece)?;
        }
        Ok(())
    }
}

impl Packing {
    fn engine(self) -> Decompress {
        match self {
            Packing::Gzip => Decompress::new_gzip(15),
            Packing::Zlib | Packing::Plain => Decompress::new(true),
        }
    }
}

impl Unpacking {
    fn new(packing: Packing) -> Self {
        Self {
            engine: packing.engine(),
            packing,
            rest: Bytes::new(),
            is_whole: false,
            has_begun: false,
        }
    }

    fn piece(&mut self) -> Result<Option<Vec<u8>>, String> {
        while !self.rest.is_empty() {
            if self.is_whole {
                // Another member may follow, as `gzip` itself writes them.
                self.engine = self.packing.engine();
                self.is_whole = false;
            }
            self.has_begun = true;
            let mut piece = vec![0; PIECE];
            let (read, written) = (self.engine.total_in(), self.engine.total_out());
            let status = self
                .engine
                .decompress(&self.rest, &mut piece, FlushDecompress::None)
                .map_err(|_| "the packed body cannot be unpacked".to_owned())?;
            let moved = |after: u64, before: u64| usize::try_from(after - before).unwrap_or(usize::MAX);
            let (read, written) = (
                moved(self.engine.total_in(), read),
                moved(self.engine.total_out(), written),
            );
            self.rest.advance(read.min(self.rest.len()));
            self.is_whole = status == Status::StreamEnd;
            if written > 0 {
                piece.truncate(written);
                return Ok(Some(piece));
            }
            if read == 0 && !self.is_whole {
                return Err("the packed body cannot be unpacked".to_owned());
            }
        }
        Ok(None)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write;

    use super::*;

    fn patterns() -> Arc<Patterns> {
        Arc::new(Patterns::masking(&[super::super::Live {
            name: "TOKEN".to_owned(),
            place: crate::task::SecretPlace::Placeholder,
            placeholder: "0000000000".to_owned(),
            value: "sEcReTvALu".to_owned().into(),
            session: None,
        }]))
    }

    fn through(packed: &[u8], packing: Packing, size: usize) -> Result<Vec<u8>, String> {
        let mut looking = Looking::new(patterns(), packing);
        let mut out = Vec::new();
        for piece in packed.chunks(size) {
            out.extend(looking.take(Bytes::copy_from_slice(piece)));
            while let Some(more) = looking.more()? {
                assert!(more.len() <= PIECE + 64, "no more than a piece at a time");
                out.extend(more);
            }
        }
        out.extend(looking.finish()?);
        Ok(out)
    }

    fn gzip(text: &[u8]) -> Vec<u8> {
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::default());
        packer.write_all(text).unwrap();
        packer.finish().unwrap()
    }

    #[test]
    fn a_packed_body_is_unpacked_and_masked() {
        let text = b"before sEcReTvALu and after".repeat(50);
        let mut zlib = flate2::write::ZlibEncoder::new(Vec::new(), flate2::Compression::default());
        zlib.write_all(&text).unwrap();
        let mut members = gzip(&text[..30]);
        members.extend(gzip(&text[30..]));
        for (packed, packing) in [
            (gzip(&text), Packing::Gzip),
            (members, Packing::Gzip),
            (zlib.finish().unwrap(), Packing::Zlib),
        ] {
            for size in [1, 7, packed.len()] {
                let seen = through(&packed, packing, size).unwrap();
                assert_eq!(seen, b"before 0000000000 and after".repeat(50));
            }
        }
    }

    #[test]
    fn what_is_cut_or_broken_is_an_error_and_not_let_through() {
        let packed = gzip(&b"sEcReTvALu".repeat(100));
        assert!(through(&packed[..packed.len() - 1], Packing::Gzip, 5).is_err());
        assert!(through(b"sEcReTvALu in plain", Packing::Gzip, 5).is_err());
        let mut broken = packed.clone();
        let last = broken.len() - 5;
        broken[last] ^= 1;
        assert!(through(&broken, Packing::Gzip, broken.len()).is_err());
        let mut followed = packed;
        followed.extend(b"sEcReTvALu");
        assert!(through(&followed, Packing::Gzip, followed.len()).is_err());
    }

    #[test]
    fn a_bomb_is_given_out_in_pieces() {
        let bomb = gzip(&vec![0; 64 << 20]);
        assert!(bomb.len() < 100_000);
        let seen = through(&bomb, Packing::Gzip, bomb.len()).unwrap();
        assert_eq!(seen.len(), 64 << 20);
    }

    #[test]
    fn packings_that_are_not_unpacked_are_told() {
        let said = |text: &'static str| {
            let mut headers = HeaderMap::new();
            headers.insert(header::CONTENT_ENCODING, HeaderValue::from_static(text));
            Packing::of(&headers)
        };
        assert_eq!(said("identity"), Ok(Packing::Plain));
        assert_eq!(said("GZIP"), Ok(Packing::Gzip));
        for unknown in ["br", "zstd", "gzip, br", "gzip, gzip", "nonsense"] {
            assert!(said(unknown).is_err(), "{unknown}");
        }
        let mut headers = HeaderMap::new();
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("chunked"));
        assert_eq!(Packing::of(&headers), Ok(Packing::Plain));
        headers.insert(header::TRANSFER_ENCODING, HeaderValue::from_static("gzip, chunked"));
        assert!(Packing::of(&headers).is_err());
    }
}
