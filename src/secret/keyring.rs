//! The keyring of the OS: the Secret Service of the user's session (GNOME Keyring, KDE Wallet, KeePassXC).
//!
//! ```text
//!  any thread ──► a bounded queue ──► one thread "keyring" ──► session bus ──► the keyring's daemon
//! ```
//!
//! The client blocks, and panics within an async runtime, so it lives on a thread of its own. One thread, so that a locked
//! keyring asks its owner once and not once a secret. The thread lives as long as the process: a daemon that never answers
//! holds it, and whoever asks then waits no longer than [`PATIENCE`].

use std::collections::HashMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel};
use std::sync::{Arc, OnceLock};
use std::time::Duration;

use keyring_core::{CredentialStore, Entry};
use secrecy::{ExposeSecret, SecretString};
use zbus_secret_service_keyring_store::Store;

/// How long an answer may take: long enough for a person to type a password.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// Callers that may wait at once; one more is told so. A task has fewer secrets.
const QUEUE: usize = 64;
/// The name under which all of belljar's secrets stand in the keyring.
const SERVICE: &str = "belljar";

#[derive(Debug, thiserror::Error)]
pub enum KeyringError {
    #[error("there is no secret of that name; `belljar secret set {name}` puts one there")]
    Missing { name: String },
    #[error("\"{name}\" is not a name for a secret: 1 to 128 letters, digits and -_.:/@")]
    Name { name: String },
    #[error("there is no keyring to be reached (a Secret Service on the session bus)")]
    Unreachable(#[source] keyring_core::Error),
    #[error("the keyring is locked, and was not unlocked")]
    Locked(#[source] keyring_core::Error),
    #[error("several secrets of that name are in the keyring")]
    Ambiguous,
    #[error("the secret is no text")]
    NotText,
    #[error("the keyring did not answer within {} s; it may be waiting to be unlocked", PATIENCE.as_secs())]
    Silent,
    #[error("too many are waiting for the keyring")]
    Busy,
    #[error("the keyring's client failed")]
    Client,
}

/// The secret of this name.
pub fn get(name: &str) -> Result<SecretString, KeyringError> {
    with_entry(name, |entry| match entry.get_secret() {
        // The bytes become the text without a copy.
        Ok(bytes) => Ok(String::from_utf8(bytes).map(SecretString::from)),
        Err(error) => Err(error),
    })?
    .map_err(|_| KeyringError::NotText)
}

/// Puts a secret into the keyring, in place of one of the same name.
pub fn set(name: &str, value: SecretString) -> Result<(), KeyringError> {
    with_entry(name, move |entry| entry.set_secret(value.expose_secret().as_bytes()))
}

/// Takes a secret out of the keyring.
pub fn remove(name: &str) -> Result<(), KeyringError> {
    with_entry(name, |entry| entry.delete_credential())
}

/// The names of all of belljar's secrets, sorted.
pub fn names() -> Result<Vec<String>, KeyringError> {
    let mut names = ask(|store| {
        let entries = store.search(&HashMap::from([("service", SERVICE)]))?;
        let specifiers = entries.iter().filter_map(Entry::get_specifiers);
        Ok(specifiers.map(|(_, name)| name).collect::<Vec<_>>())
    })
    .map_err(|error| explained(error, ""))?;
    names.sort();
    names.dedup();
    Ok(names)
}

fn with_entry<T: Send + 'static>(
    name: &str,
    work: impl FnOnce(Entry) -> keyring_core::Result<T> + Send + 'static,
) -> Result<T, KeyringError> {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || b"-_.:/@".contains(&byte);
    if name.is_empty() || name.len() > 128 || !name.bytes().all(plain) {
        return Err(KeyringError::Name { name: name.to_owned() });
    }
    let user = name.to_owned();
    let label = format!("belljar secret {name}");
    ask(move |store| {
        let modifiers = HashMap::from([("label", label.as_str())]);
        work(store.build(SERVICE, &user, Some(&modifiers))?)
    })
    .map_err(|error| explained(error, name))
}

/// Why the thread has no answer.
enum NoAnswer {
    Keyring(keyring_core::Error),
    Silent,
    Busy,
    Client,
}

fn explained(error: NoAnswer, name: &str) -> KeyringError {
    match error {
        NoAnswer::Keyring(keyring_core::Error::NoEntry) => KeyringError::Missing { name: name.to_owned() },
        NoAnswer::Keyring(keyring_core::Error::Ambiguous(_)) => KeyringError::Ambiguous,
        NoAnswer::Keyring(error @ keyring_core::Error::NoStorageAccess(_)) => KeyringError::Locked(error),
        NoAnswer::Keyring(error) => KeyringError::Unreachable(error),
        NoAnswer::Silent => KeyringError::Silent,
        NoAnswer::Busy => KeyringError::Busy,
        NoAnswer::Client => KeyringError::Client,
    }
}

type Job = Box<dyn FnOnce() + Send>;

/// Does `work` on the keyring's own thread and waits for what comes of it.
fn ask<T: Send + 'static>(
    work: impl FnOnce(Arc<CredentialStore>) -> keyring_core::Result<T> + Send + 'static,
) -> Result<T, NoAnswer> {
    static JOBS: OnceLock<SyncSender<Job>> = OnceLock::new();
    let (answer, answered) = sync_channel(1);
    let job = Box::new(move || {
        // A connection each: the bus and the daemon may have started anew since the last one.
        let done = Store::new().and_then(|store| work(store));
        // Whoever has given up waiting wants no answer.
        let _ = answer.send(done);
    });
    JOBS.get_or_init(start).try_send(job).map_err(|_| NoAnswer::Busy)?;
    match answered.recv_timeout(PATIENCE) {
        Ok(done) => done.map_err(NoAnswer::Keyring),
        Err(RecvTimeoutError::Timeout) => Err(NoAnswer::Silent),
        Err(RecvTimeoutError::Disconnected) => Err(NoAnswer::Client),
    }
}

fn start() -> SyncSender<Job> {
    let (jobs, queue): (SyncSender<Job>, Receiver<Job>) = sync_channel(QUEUE);
    // Without a thread the queue is closed, and every caller hears that.
    let _ = std::thread::Builder::new().name("keyring".to_owned()).spawn(move || {
        for job in queue {
            // A client that panics takes its caller's answer with it, not everybody's.
            let _ = catch_unwind(AssertUnwindSafe(job));
        }
    });
    jobs
}
