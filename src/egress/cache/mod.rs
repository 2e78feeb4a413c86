//! Answers that were fetched earlier, for tasks that may see those and nothing else (`network.mode = "cached"`).
//!
//! ```text
//!  <store>/answers/<SHA-256 of the URL>.json     the URL, status, headers, and the digest of the body
//!  <store>/bodies/<SHA-256 of the body>
//! ```
//!
//! `belljar cache` fills the user's own store, which lies in the state folder; the admin may name others. A task in this mode is
//! answered out of them by [`serve`], over plain HTTP and within TLS; nothing is resolved or dialled for it.

pub mod fetch;
pub(super) mod serve;

use std::fs::{self, DirBuilder, File};
use std::io::{self, Read, Write};
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use sha2::{Digest, Sha256};

use super::host::{Authority, HostError};

const VERSION: u32 = 1;

/// A larger body is no answer to keep: images and archives fit.
pub const BODY_MAX: u64 = 4 << 30;

/// More than the longest answer's head.
const META_MAX: u64 = 1 << 20;

const BUFFER: usize = 64 * 1024;

#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    #[error("\"{0}\" is not a URL of http or https")]
    Url(String),
    #[error("\"{url}\" names no host")]
    Host {
        url: String,
        #[source]
        source: HostError,
    },
    #[error("the store {} cannot be used", path.display())]
    Io { path: PathBuf, source: io::Error },
    #[error("the stored answer for {0} is not the one that was stored")]
    Changed(String),
    #[error("the answer is larger than {} GiB", BODY_MAX >> 30)]
    TooLarge,
}

/// A URL in the one spelling under which its answer is kept.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Url {
    text: String,
    /// The scheme and the authority.
    pub is_https: bool,
    pub authority: Authority,
}

/// One stored answer, without its body.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Stored {
    version: u32,
    pub url: String,
    pub status: u16,
    pub headers: Vec<(String, String)>,
    /// SHA-256 of the body, in hex.
    pub digest: String,
    pub bytes: u64,
    /// RFC 3339, UTC.
    pub fetched: String,
}

/// Where stored answers are looked for: the user's own store, then those of the admin.
#[derive(Debug, Clone)]
pub struct Store {
    own: PathBuf,
    others: Vec<PathBuf>,
}

impl Url {
    /// Reads a whole URL; a fragment is dropped.
    pub fn parse(text: &str) -> Result<Self, StoreError> {
        let wrong = || StoreError::Url(text.to_owned());
        let (scheme, rest) = text.split_once("://").ok_or_else(wrong)?;
        let is_https = match scheme {
            "https" => true,
            "http" => false,
            _ => return Err(wrong()),
        };
        let rest = rest.split('#').next().unwrap_or_default();
        let end = rest.find(['/', '?']).unwrap_or(rest.len());
        let (authority, path) = rest.split_at(end);
        let port = if is_https { 443 } else { 80 };
        let authority = Authority::parse(authority, Some(port)).map_err(|source| StoreError::Host {
            url: text.to_owned(),
            source,
        })?;
        if !path.bytes().all(|b| b.is_ascii_graphic()) {
            return Err(wrong());
        }
        Ok(Self::new(is_https, authority, path))
    }

    /// The URL of a request.
    pub fn new(is_https: bool, authority: Authority, path: &str) -> Self {
        let (scheme, port) = if is_https { ("https", 443) } else { ("http", 80) };
        let slash = if path.starts_with('/') { "" } else { "/" };
        let text = format!("{scheme}://{}{slash}{path}", authority.for_scheme_port(port));
        Self {
            text,
            is_https,
            authority,
        }
    }

    /// Where a `Location` leads, as seen from here (RFC 3986, 4.2: a whole URL, or one of the same scheme, host or folder).
    pub fn join(&self, location: &str) -> Result<Url, StoreError> {
        if location.contains("://") {
            return Url::parse(location);
        }
        let scheme = if self.is_https { "https" } else { "http" };
        if let Some(rest) = location.strip_prefix("//") {
            return Url::parse(&format!("{scheme}://{rest}"));
        }
        if location.starts_with('/') {
            return Url::parse(&format!("{scheme}://{}{location}", self.authority));
        }
        let without_query = self.text.split('?').next().unwrap_or_default();
        let folder = without_query.rfind('/').map_or("", |at| &without_query[..=at]);
        Url::parse(&format!("{folder}{location}"))
    }

    pub fn as_str(&self) -> &str {
        &self.text
    }

    fn file(&self) -> String {
        format!("{}.json", hex(&Sha256::digest(self.text.as_bytes())))
    }
}

impl Store {
    /// The store in a state folder, and others that are read only.
    pub fn new(state: &Path, others: Vec<PathBuf>) -> Self {
        Self {
            own: state.join("cache"),
            others,
        }
    }

    /// The answer for a URL, with its body at the beginning; blocking. The body is read once to see that it is the one that was
    /// stored.
    pub fn find(&self, url: &Url) -> Result<Option<(Stored, File)>, StoreError> {
        for folder in std::iter::once(&self.own).chain(&self.others) {
            let Some(stored) = read_meta(&folder.join("answers").join(url.file()))? else {
                continue;
            };
            let changed = || StoreError::Changed(url.text.clone());
            let path = body_path(folder, &stored.digest).ok_or_else(changed)?;
            if stored.url != url.text || stored.version != VERSION {
                return Err(changed());
            }
            let failed = |source| StoreError::Io {
                path: path.clone(),
                source,
            };
            let mut body = File::open(&path).map_err(failed)?;
            let (digest, bytes) = copy(&mut body, &mut io::sink()).map_err(failed)?;
            if digest != stored.digest || bytes != stored.bytes {
                return Err(changed());
            }
            io::Seek::rewind(&mut body).map_err(failed)?;
            return Ok(Some((stored, body)));
        }
        Ok(None)
    }

    /// Keeps an answer in the user's own store, in the place of an earlier one.
    pub fn put(
        &self,
        url: &Url,
        status: u16,
        headers: Vec<(String, String)>,
        body: &mut dyn Read,
    ) -> Result<Stored, StoreError> {
        let failed = |source| StoreError::Io {
            path: self.own.clone(),
            source,
        };
        for name in ["answers", "bodies"] {
            let mut builder = DirBuilder::new();
            builder
                .recursive(true)
                .mode(0o700)
                .create(self.own.join(name))
                .map_err(failed)?;
        }
        let new = self.own.join("bodies").join(format!("{}.new", uuid::Uuid::now_v7()));
        let mut file = File::create_new(&new).map_err(failed)?;
        let copied = copy(&mut body.take(BODY_MAX + 1), &mut file);
        let (digest, bytes) = copied.inspect_err(|_| drop(fs::remove_file(&new))).map_err(failed)?;
        if bytes > BODY_MAX {
            // What is left is only in the way.
            let _ = fs::remove_file(&new);
            return Err(StoreError::TooLarge);
        }
        fs::rename(&new, self.own.join("bodies").join(&digest)).map_err(failed)?;
        let stored = Stored {
            version: VERSION,
            url: url.text.clone(),
            status,
            headers,
            digest,
            bytes,
            fetched: jiff::Timestamp::now().to_string(),
        };
        let json = serde_json::to_vec_pretty(&stored).map_err(|error| failed(error.into()))?;
        let new = self.own.join("answers").join(format!("{}.new", uuid::Uuid::now_v7()));
        fs::write(&new, json).map_err(failed)?;
        fs::rename(&new, self.own.join("answers").join(url.file())).map_err(failed)?;
        Ok(stored)
    }

    /// All answers, those of the own store first, by URL.
    pub fn list(&self) -> Result<Vec<Stored>, StoreError> {
        let mut all = Vec::new();
        for folder in std::iter::once(&self.own).chain(&self.others) {
            let mut found = answers(folder)?;
            found.sort_by(|one, other| one.url.cmp(&other.url));
            all.extend(found);
        }
        Ok(all)
    }

    /// Takes an answer out of the own store, with its body if no other answer has the same; whether it was there.
    pub fn remove(&self, url: &Url) -> Result<bool, StoreError> {
        let path = self.own.join("answers").join(url.file());
        let Some(stored) = read_meta(&path)? else {
            return Ok(false);
        };
        let failed = |source| StoreError::Io {
            path: path.clone(),
            source,
        };
        fs::remove_file(&path).map_err(failed)?;
        let is_shared = answers(&self.own)?.iter().any(|other| other.digest == stored.digest);
        if let (false, Some(body)) = (is_shared, body_path(&self.own, &stored.digest)) {
            fs::remove_file(body).map_err(failed)?;
        }
        Ok(true)
    }
}

fn answers(folder: &Path) -> Result<Vec<Stored>, StoreError> {
    let path = folder.join("answers");
    let entries = match fs::read_dir(&path) {
        Ok(entries) => entries,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
        Err(source) => return Err(StoreError::Io { path, source }),
    };
    let mut found = Vec::new();
    for entry in entries {
        let entry = entry.map_err(|source| StoreError::Io {
            path: path.clone(),
            source,
        })?;
        if entry.path().extension().is_some_and(|end| end == "json") {
            found.extend(read_meta(&entry.path())?);
        }
    }
    Ok(found)
}

fn read_meta(path: &Path) -> Result<Option<Stored>, StoreError> {
    let failed = |source| StoreError::Io {
        path: path.to_owned(),
        source,
    };
    let file = match File::open(path) {
        Ok(file) => file,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) => return Err(failed(error)),
    };
    serde_json::from_reader(file.take(META_MAX))
        .map(Some)
        .map_err(|error| failed(error.into()))
}

/// A digest is a file's name, so it must be one.
fn body_path(folder: &Path, digest: &str) -> Option<PathBuf> {
    let hex = digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_hexdigit());
    hex.then(|| folder.join("bodies").join(digest))
}

/// Copies to the end; gives digest and length.
fn copy(from: &mut dyn Read, to: &mut dyn Write) -> io::Result<(String, u64)> {
    let (mut hash, mut bytes) = (Sha256::new(), 0);
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer)?;
        if length == 0 {
            to.flush()?;
            return Ok((hex(&hash.finalize()), bytes));
        }
        hash.update(&buffer[..length]);
        to.write_all(&buffer[..length])?;
        bytes += length as u64;
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests;
