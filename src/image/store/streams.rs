//! Layers as they are read: unpacked of their compression, and told of on the way.

use std::io::{self, BufRead, Read};

/// A stream by what it begins with: media types are the image's word, the magic is the decompressor's.
pub enum Plain<R: BufRead> {
    Tar(R),
    Gzip(Box<flate2::bufread::MultiGzDecoder<R>>),
    Zstd(Box<zstd::stream::read::Decoder<'static, R>>),
}

pub fn decompressed<R: BufRead>(mut stream: R) -> io::Result<Plain<R>> {
    let magic = stream.fill_buf()?;
    if magic.starts_with(&[0x1f, 0x8b]) {
        return Ok(Plain::Gzip(Box::new(flate2::bufread::MultiGzDecoder::new(stream))));
    }
    if magic.starts_with(&[0x28, 0xb5, 0x2f, 0xfd]) {
        let mut decoder = zstd::stream::read::Decoder::with_buffer(stream)?;
        // 2^27 bytes, what the zstd tool itself accepts: a larger window is memory that the archive's maker asks of us.
        decoder.window_log_max(27)?;
        return Ok(Plain::Zstd(Box::new(decoder)));
    }
    Ok(Plain::Tar(stream))
}

impl<R: BufRead> Read for Plain<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        match self {
            Plain::Tar(stream) => stream.read(buffer),
            Plain::Gzip(stream) => stream.read(buffer),
            Plain::Zstd(stream) => stream.read(buffer),
        }
    }
}

/// Who hears how far one layer is.
pub struct Heard<'h> {
    pub fetching: &'h dyn Fn(u64),
    pub unpacking: &'h dyn Fn(u64),
}

/// Tells how much was read.
pub struct Told<'h, R> {
    pub stream: R,
    pub heard: &'h dyn Fn(u64),
    pub done: u64,
}

impl<R: Read> Read for Told<'_, R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer)?;
        self.done += read as u64;
        (self.heard)(self.done);
        Ok(read)
    }
}
