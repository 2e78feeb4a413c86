//! Bytes that are read within bounds and against their digest: nothing of an image is believed before.

use std::fs::File;
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::sync::Arc;

use serde::Deserialize;
use sha2::{Digest as _, Sha256};

use super::ImageError;
use crate::policy::Digest;

/// Indexes, manifests and configurations of real images have some 100 KiB at most.
pub(super) const LARGEST_JSON: u64 = 4 << 20;

/// A part of a file, read by position so that many can read at once.
pub(super) struct Window {
    pub file: Arc<File>,
    pub at: u64,
    pub end: u64,
}

impl Read for Window {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.end.saturating_sub(self.at))
            .unwrap_or(usize::MAX)
            .min(buffer.len());
        let read = self.file.read_at(&mut buffer[..most], self.at)?;
        self.at += read as u64;
        Ok(read)
    }
}

/// Reads on and keeps the sum of what went by.
pub(super) struct Summed<R> {
    stream: R,
    hash: Sha256,
    pub bytes: u64,
}

impl<R: Read> Summed<R> {
    pub fn new(stream: R) -> Self {
        Self {
            stream,
            hash: Sha256::new(),
            bytes: 0,
        }
    }

    pub fn digest(self) -> String {
        Digest::from_array(self.hash.finalize().into()).to_string()
    }
}

impl<R: Read> Read for Summed<R> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = self.stream.read(buffer)?;
        self.hash.update(&buffer[..read]);
        self.bytes += read as u64;
        Ok(read)
    }
}

pub(super) fn small(what: &'static str, size: u64, stream: impl Read) -> Result<Vec<u8>, ImageError> {
    if size > LARGEST_JSON {
        return Err(ImageError::Content {
            what,
            why: format!("it has {size} bytes, which no real one has"),
        });
    }
    let mut bytes = Vec::new();
    let read = stream.take(LARGEST_JSON).read_to_end(&mut bytes);
    read.map_err(|error| ImageError::Content {
        what,
        why: error.to_string(),
    })?;
    Ok(bytes)
}

pub(super) fn parse<T: for<'de> Deserialize<'de>>(what: &'static str, bytes: &[u8]) -> Result<T, ImageError> {
    let mut reader = serde_json::Deserializer::from_slice(bytes);
    serde_path_to_error::deserialize(&mut reader).map_err(|error| ImageError::Content {
        what,
        why: error.to_string(),
    })
}

pub(super) fn is_hex(text: &str) -> bool {
    text.len() == 64 && text.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
}

/// Only SHA-256: what a digest cannot be checked with is no digest.
pub(super) fn sha256_hex(digest: &str) -> Option<&str> {
    digest.strip_prefix("sha256:").filter(|hex| is_hex(hex))
}
