//! What stands before an entry's content: its header, and the extensions that say more than fits in one.

use std::io::{self, Read};
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;

use rustix::fs::{Timespec, Timestamps};
use tar::EntryType;

use super::LayerError;

/// `PATH_MAX` of Linux.
pub(super) const LONGEST_NAME: u64 = 4096;

/// Removing a tree holds a descriptor a level, of which a process has 1024.
const DEEPEST: usize = 256;

/// Room for names and the attributes that some tools add, which are not kept.
const LARGEST_EXTENSION: u64 = 1 << 20;

/// The range that a sandbox's user namespace maps; who is beyond it is `nobody`, as the kernel would show them.
const LAST_ID: u64 = 65_535;
const NOBODY: u32 = 65_534;

/// What the entries before an entry say about it: GNU long names, PAX records.
#[derive(Default)]
pub(super) struct Extension {
    name: Option<Vec<u8>>,
    link: Option<Vec<u8>>,
    size: Option<u64>,
    uid: Option<u64>,
    gid: Option<u64>,
    mtime: Option<i64>,
}

impl Extension {
    pub fn is_pending(&self) -> bool {
        self.name.is_some() || self.link.is_some() || self.size.is_some()
    }

    /// Takes in an entry that only describes the next one.
    pub fn take<R: Read>(&mut self, entry: &mut tar::Entry<'_, R>) -> Result<bool, LayerError> {
        let kind = entry.header().entry_type();
        let cap = match kind {
            EntryType::GNULongName | EntryType::GNULongLink => LONGEST_NAME + 1,
            EntryType::XHeader | EntryType::XGlobalHeader => LARGEST_EXTENSION,
            _ => return Ok(false),
        };
        let refused = |why| LayerError::Entry {
            name: String::from_utf8_lossy(&entry.header().path_bytes()).into_owned(),
            why,
        };
        if entry.size() > cap {
            return Err(refused("has an extension of unheard-of size"));
        }
        let mut bytes = Vec::new();
        let size = entry.size();
        entry.read_to_end(&mut bytes).map_err(LayerError::Damaged)?;
        if bytes.len() as u64 != size {
            return Err(LayerError::Damaged(io::ErrorKind::UnexpectedEof.into()));
        }
        match kind {
            EntryType::GNULongName => self.name = Some(until_nul(bytes)),
            EntryType::GNULongLink => self.link = Some(until_nul(bytes)),
            _ => self
                .pax(&bytes, kind == EntryType::XGlobalHeader)
                .map_err(|why| LayerError::Entry {
                    name: String::from_utf8_lossy(&entry.header().path_bytes()).into_owned(),
                    why,
                })?,
        }
        Ok(true)
    }

    fn pax(&mut self, bytes: &[u8], global: bool) -> Result<(), &'static str> {
        for record in tar::PaxExtensions::new(bytes) {
            let record = record.map_err(|_| "has damaged PAX records")?;
            let value = record.value_bytes();
            let number = || std::str::from_utf8(value).ok()?.split('.').next()?.parse::<i64>().ok();
            let whole = || {
                u64::try_from(number().ok_or("has a PAX number that is none")?).map_err(|_| "has a negative PAX number")
            };
            match record.key_bytes() {
                b"path" | b"linkpath" | b"size" | b"uid" | b"gid" if global => {
                    return Err("sets names or sizes for all that follows");
                }
                b"path" => self.name = Some(value.to_owned()),
                b"linkpath" => self.link = Some(value.to_owned()),
                b"size" => self.size = Some(whole()?),
                b"uid" => self.uid = Some(whole()?),
                b"gid" => self.gid = Some(whole()?),
                b"mtime" if !global => self.mtime = number(),
                key if key.starts_with(b"GNU.sparse.") => return Err("is sparse"),
                // Times, user names, attributes: nothing that a sandbox needs, and attributes could pass for overlayfs's own.
                _ => {}
            }
        }
        Ok(())
    }
}

fn until_nul(mut bytes: Vec<u8>) -> Vec<u8> {
    if let Some(end) = bytes.iter().position(|byte| *byte == 0) {
        bytes.truncate(end);
    }
    bytes
}

/// One entry, its name taken apart.
pub(super) struct Header {
    /// As it stands, for messages.
    pub shown: String,
    pub path: PathBuf,
    pub kind: EntryType,
    pub link: Vec<u8>,
    pub mode: u32,
    pub uid: u32,
    pub gid: u32,
    pub mtime: i64,
    pub size: u64,
}

impl Header {
    pub fn read<R: Read>(entry: &tar::Entry<'_, R>, extension: Extension) -> Result<Header, LayerError> {
        let header = entry.header();
        let name = extension.name.unwrap_or_else(|| header.path_bytes().into_owned());
        let shown = String::from_utf8_lossy(&name).into_owned();
        let refused = |why| LayerError::Entry {
            name: shown.clone(),
            why,
        };
        let damaged = |_| refused("has a damaged header");
        let size = header.entry_size().map_err(damaged)?;
        if extension.size.is_some_and(|pax| pax != size) {
            // Two sizes are two readings of the same archive: whoever checks it elsewhere may see other files.
            return Err(refused("has two different sizes"));
        }
        let old = header.as_old();
        let id = |id: u64| if id <= LAST_ID { id as u32 } else { NOBODY };
        let old_folder = header.entry_type().is_file() && name.ends_with(b"/");
        Ok(Header {
            path: inside(&name).map_err(refused)?,
            kind: if old_folder {
                EntryType::Directory
            } else {
                header.entry_type()
            },
            link: extension.link.unwrap_or_else(|| {
                header
                    .link_name_bytes()
                    .map(|link| link.into_owned())
                    .unwrap_or_default()
            }),
            mode: field(&old.mode, header.mode()).map_err(damaged)?,
            uid: id(extension
                .uid
                .map_or_else(|| field(&old.uid, header.uid()), Ok)
                .map_err(damaged)?),
            gid: id(extension
                .gid
                .map_or_else(|| field(&old.gid, header.gid()), Ok)
                .map_err(damaged)?),
            // A time beyond 2^63 is nonsense, not a fault.
            mtime: extension.mtime.unwrap_or_else(|| {
                header
                    .mtime()
                    .ok()
                    .and_then(|time| i64::try_from(time).ok())
                    .unwrap_or(0)
            }),
            size,
            shown,
        })
    }

    pub fn refused(&self, why: &'static str) -> LayerError {
        LayerError::Entry {
            name: self.shown.clone(),
            why,
        }
    }

    pub fn unwritten(&self, error: impl Into<io::Error>) -> LayerError {
        LayerError::Write {
            name: self.shown.clone(),
            source: error.into(),
        }
    }

    pub fn times(&self) -> Timestamps {
        let time = Timespec {
            tv_sec: self.mtime,
            tv_nsec: 0,
        };
        Timestamps {
            last_access: time,
            last_modification: time,
        }
    }
}

/// A number of a header; some tools leave those empty that they have nothing to say about.
fn field<T: Default>(bytes: &[u8], number: io::Result<T>) -> io::Result<T> {
    match bytes.iter().all(|byte| matches!(byte, 0 | b' ')) {
        true => Ok(T::default()),
        false => number,
    }
}

/// A name as a relative path without `.` and `..`; empty for the layer's own folder.
pub(super) fn inside(name: &[u8]) -> Result<PathBuf, &'static str> {
    if name.len() as u64 > LONGEST_NAME {
        return Err("has too long a name");
    }
    if name.is_empty() || name.contains(&0) {
        return Err("has no proper name");
    }
    if name.starts_with(b"/") {
        return Err("has an absolute name");
    }
    let mut path = PathBuf::new();
    for part in name.split(|byte| *byte == b'/') {
        match part {
            b"" | b"." => {}
            b".." => return Err("leads out of the layer"),
            part => path.push(std::ffi::OsStr::from_bytes(part)),
        }
    }
    if path.components().count() > DEEPEST {
        return Err("lies too deep");
    }
    Ok(path)
}
