//! The key that signs the journal's checkpoints, and the one that proves them.
//!
//! Made at first use, one a state folder. Whoever keeps the public key and a checkpoint elsewhere can tell later whether the journal
//! up to there is still what it was, even when the machine has fallen into other hands since.

use std::fmt;
use std::fs::{File, OpenOptions};
use std::io::{ErrorKind, Read, Write};
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::str::FromStr;

use ed25519_dalek::{Signature, Signer, VerifyingKey};

use super::journal::Seq;
use super::verify::{hex, unhex};

/// What stands before a key's hex digits in files and on the command line.
const PREFIX: &str = "ed25519:";

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot read the key {}", path.display())]
    Read {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("cannot make the key {}", path.display())]
    Make {
        path: PathBuf,
        #[source]
        source: std::io::Error,
    },
    #[error("the key {} can be read by others (mode {mode:o}): it proves nothing; remove it, a new one is made", path.display())]
    Open { path: PathBuf, mode: u32 },
    #[error("{} holds no key (expected {PREFIX} and 64 hex digits)", path.display())]
    Content { path: PathBuf },
    #[error("\"{text}\" is no public key (expected {PREFIX} and 64 hex digits)")]
    Public { text: String },
}

/// Signs checkpoints; cannot be printed.
#[derive(Clone)]
pub struct SigningKey {
    key: ed25519_dalek::SigningKey,
}

/// Proves checkpoints.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct PublicKey {
    key: VerifyingKey,
}

/// What a checkpoint says: in this journal, the record of this number has this hash.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Checkpoint<'a> {
    pub journal: &'a str,
    pub through_seq: Seq,
    pub hash: &'a [u8; 32],
}

impl Checkpoint<'_> {
    fn message(&self) -> Vec<u8> {
        let mut message = b"belljar checkpoint 1\0".to_vec();
        message.extend_from_slice(&(self.journal.len() as u64).to_be_bytes());
        message.extend_from_slice(self.journal.as_bytes());
        message.extend_from_slice(&self.through_seq.to_be_bytes());
        message.extend_from_slice(self.hash);
        message
    }
}

impl SigningKey {
    /// Reads the key at `path`; where there is none, makes one, readable by its owner alone.
    pub fn load_or_make(path: &Path) -> Result<Self, KeyError> {
        match File::open(path) {
            Ok(file) => Self::read(path, file),
            Err(error) if error.kind() == ErrorKind::NotFound => {
                make(path).map_err(|source| KeyError::Make {
                    path: path.to_owned(),
                    source,
                })?;
                let file = File::open(path).map_err(|source| KeyError::Read {
                    path: path.to_owned(),
                    source,
                })?;
                Self::read(path, file)
            }
            Err(source) => Err(KeyError::Read {
                path: path.to_owned(),
                source,
            }),
        }
    }

    fn read(path: &Path, file: File) -> Result<Self, KeyError> {
        let read = |source| KeyError::Read {
            path: path.to_owned(),
            source,
        };
        let mode = file.metadata().map_err(read)?.mode() & 0o777;
        if mode & 0o077 != 0 {
            return Err(KeyError::Open {
                path: path.to_owned(),
                mode,
            });
        }
        let mut text = String::new();
        file.take(256).read_to_string(&mut text).map_err(read)?;
        let content = || KeyError::Content { path: path.to_owned() };
        let seed: [u8; 32] = key_digits(&text).ok_or_else(content)?;
        Ok(Self {
            key: ed25519_dalek::SigningKey::from_bytes(&seed),
        })
    }

    pub fn public(&self) -> PublicKey {
        PublicKey {
            key: self.key.verifying_key(),
        }
    }

    /// The signature, in hex.
    pub fn sign(&self, checkpoint: &Checkpoint<'_>) -> String {
        hex(&self.key.sign(&checkpoint.message()).to_bytes())
    }

    /// The signature of a message of another kind, whose first bytes say which: none may begin as a checkpoint's does.
    pub fn sign_message(&self, message: &[u8]) -> [u8; 64] {
        self.key.sign(message).to_bytes()
    }
}

impl PublicKey {
    /// Whether `signature`, in hex, is that of the checkpoint by this key.
    pub fn proves(&self, checkpoint: &Checkpoint<'_>, signature: &str) -> bool {
        let mut bytes = [0; 64];
        unhex(signature, &mut bytes).is_some()
            && self
                .key
                .verify_strict(&checkpoint.message(), &Signature::from_bytes(&bytes))
                .is_ok()
    }
}

impl PublicKey {
    /// Whether `signature` is that of a message of another kind by this key.
    pub fn proves_message(&self, message: &[u8], signature: &[u8]) -> bool {
        Signature::from_slice(signature).is_ok_and(|signature| self.key.verify_strict(message, &signature).is_ok())
    }
}

impl FromStr for PublicKey {
    type Err = KeyError;

    fn from_str(text: &str) -> Result<Self, KeyError> {
        let bad = || KeyError::Public {
            text: text.trim().chars().take(100).collect(),
        };
        let bytes = key_digits(text).ok_or_else(bad)?;
        let key = VerifyingKey::from_bytes(&bytes).map_err(|_| bad())?;
        Ok(Self { key })
    }
}

impl fmt::Display for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{PREFIX}{}", hex(self.key.as_bytes()))
    }
}

impl fmt::Debug for PublicKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl fmt::Debug for SigningKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("SigningKey").finish_non_exhaustive()
    }
}

fn key_digits(text: &str) -> Option<[u8; 32]> {
    let mut bytes = [0; 32];
    unhex(text.trim().strip_prefix(PREFIX)?, &mut bytes)?;
    Some(bytes)
}

/// Written whole under another name and then linked: of several processes that make one at once, the first wins, and none
/// reads half of one.
fn make(path: &Path) -> std::io::Result<()> {
    let mut seed = [0; 32];
    File::open("/dev/urandom")?.read_exact(&mut seed)?;
    let draft = path.with_extension(format!("{}.new", uuid::Uuid::now_v7()));
    let mut file = OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(0o600)
        .open(&draft)?;
    let written = writeln!(file, "{PREFIX}{}", hex(&seed)).and_then(|()| file.sync_all());
    let linked = written.and_then(|()| match std::fs::hard_link(&draft, path) {
        Err(error) if error.kind() == ErrorKind::AlreadyExists => Ok(()),
        linked => linked,
    });
    let removed = std::fs::remove_file(&draft);
    linked.and(removed)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn a_key_is_made_once_and_for_its_owner_alone() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.key");
        let keys: Vec<PublicKey> = std::thread::scope(|scope| {
            let making = || SigningKey::load_or_make(&path).unwrap().public();
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(making)).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert!(keys.iter().all(|key| *key == keys[0]));
        assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(std::fs::read_dir(folder.path()).unwrap().count(), 1);
        assert_eq!(keys[0].to_string().parse::<PublicKey>().unwrap(), keys[0]);
    }

    #[test]
    fn a_key_that_others_can_read_and_one_that_is_none_are_refused() {
        let folder = tempfile::tempdir().unwrap();
        let path = folder.path().join("audit.key");
        SigningKey::load_or_make(&path).unwrap();
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o640)).unwrap();
        assert!(matches!(
            SigningKey::load_or_make(&path),
            Err(KeyError::Open { mode: 0o640, .. })
        ));
        std::fs::set_permissions(&path, std::fs::Permissions::from_mode(0o600)).unwrap();
        std::fs::write(&path, "ed25519:00ff").unwrap();
        assert!(matches!(SigningKey::load_or_make(&path), Err(KeyError::Content { .. })));
    }

    #[test]
    fn a_signature_holds_for_its_own_checkpoint_only() {
        let folder = tempfile::tempdir().unwrap();
        let key = SigningKey::load_or_make(&folder.path().join("a")).unwrap();
        let other = SigningKey::load_or_make(&folder.path().join("b")).unwrap();
        let checkpoint = Checkpoint {
            journal: "j",
            through_seq: 7,
            hash: &[1; 32],
        };
        let signature = key.sign(&checkpoint);
        assert!(key.public().proves(&checkpoint, &signature));
        assert!(!other.public().proves(&checkpoint, &signature));
        for wrong in [
            Checkpoint {
                journal: "k",
                ..checkpoint
            },
            Checkpoint {
                through_seq: 8,
                ..checkpoint
            },
            Checkpoint {
                hash: &[2; 32],
                ..checkpoint
            },
        ] {
            assert!(!key.public().proves(&wrong, &signature));
        }
        assert!(!key.public().proves(&checkpoint, "00"));
        assert!(!format!("{key:?}").contains(&hex(key.key.as_bytes())));
    }
}
