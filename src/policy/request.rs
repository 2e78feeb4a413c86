//! What is judged: one command with all that decides what it does.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use crate::path::SandboxPath;

/// One command as it would run: nothing about it may change between the judgement and the start.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Command {
    /// Never empty; `argv[0]` never empty.
    pub argv: Vec<String>,
    pub cwd: SandboxPath,
    /// What the caller adds to the task's environment.
    pub env: BTreeMap<String, String>,
    pub stdin: Stdin,
    pub tty: Option<TtySize>,
}

/// Where a command's standard input comes from.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Stdin {
    /// `/dev/null`.
    None,
    /// The caller's stream.
    Stream,
}

/// The size of a pseudo-terminal, in characters.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, schemars::JsonSchema)]
pub struct TtySize {
    pub rows: u16,
    pub cols: u16,
}

/// SHA-256 over a thing's parts, printed as `sha256:<hex>`.
#[derive(Clone, Copy, PartialEq, Eq, Hash)]
pub struct Digest([u8; 32]);

impl Digest {
    /// The digest of a list of byte strings; the length of each goes in, so that no two lists look alike.
    pub fn of_parts<'a>(parts: impl IntoIterator<Item = &'a [u8]>) -> Self {
        let mut hash = Sha256::new();
        for part in parts {
            hash.update((part.len() as u64).to_le_bytes());
            hash.update(part);
        }
        Self(hash.finalize().into())
    }

    /// The digest of one byte string, as `sha256sum` prints it.
    pub fn of_bytes(bytes: &[u8]) -> Self {
        Self(Sha256::digest(bytes).into())
    }

    pub fn from_array(bytes: [u8; 32]) -> Self {
        Self(bytes)
    }

    pub fn as_bytes(&self) -> &[u8; 32] {
        &self.0
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("sha256:")?;
        self.0.iter().try_for_each(|byte| write!(f, "{byte:02x}"))
    }
}

impl fmt::Debug for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl Serialize for Digest {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl Command {
    /// What approvals and permits are bound to: argv, cwd, env, stdin source, tty or not, and `place`, the digest of the
    /// sandbox that it would run in.
    pub fn digest(&self, place: &Digest) -> Digest {
        let mut parts: Vec<&[u8]> = vec![b"belljar exec 1", place.as_bytes(), self.cwd.as_str().as_bytes()];
        parts.push(match self.stdin {
            Stdin::None => b"stdin none",
            Stdin::Stream => b"stdin stream",
        });
        parts.push(if self.tty.is_some() { b"tty" } else { b"pipes" });
        let count = (self.argv.len() as u64).to_le_bytes();
        parts.push(&count);
        parts.extend(self.argv.iter().map(|word| word.as_bytes()));
        for (name, value) in &self.env {
            parts.push(name.as_bytes());
            parts.push(value.as_bytes());
        }
        Digest::of_parts(parts)
    }
}
