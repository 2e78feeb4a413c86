//! The signed bundle: requirements that come from a URL, for machines whose `/etc` nobody wants to write to by hand.
//!
//! ```text
//!  requirements.toml [bundle] url, public_keys ─► cache in the state folder ── fresh ──► verify ─► requirements, rules
//!                                                      ▲   └── stale ─► fetch ─► verify ─► keep ──┘
//!                                                      └── its serial is the floor: nothing older is taken again
//! ```
//!
//! What is in the cache is verified each time it is read, so who can write there can forge nothing: they can take it away,
//! which fails closed where the bundle is required, or put an older one there that has not expired yet, which `least_serial`
//! bounds. A bundle restricts like any other file of requirements and can loosen none.

mod cache;
mod envelope;
mod fetch;

use std::path::Path;
use std::time::{Duration, SystemTime};

use jiff::Timestamp;

use crate::audit::key::PublicKey;
use crate::document::Sited;

pub use envelope::{Bundle, BundleFile, EnvelopeError, sign};

/// What a file of requirements says about its bundle.
#[derive(Debug, Clone, PartialEq)]
pub struct Demand {
    pub url: Sited<String>,
    /// A bundle counts that one of these keys has signed; several while one takes the other's place.
    pub public_keys: Vec<Sited<PublicKey>>,
    /// Nothing runs without it. Only where this is off may a bundle be missing.
    pub required: bool,
    /// How old the copy may be before the URL is asked again.
    pub refresh: Duration,
    /// No bundle of a lower serial is taken.
    pub least_serial: u64,
}

/// The bundle that holds now.
#[derive(Debug)]
pub(super) struct Held {
    pub bundle: Bundle,
    /// Why it is the copy, though it is old enough to be asked for again.
    pub stale: Option<String>,
}

/// Why there is no bundle that holds.
#[derive(Debug, thiserror::Error)]
pub(super) enum BundleError {
    #[error("{0}")]
    Fetch(#[from] fetch::FetchError),
    #[error("{0}")]
    Envelope(#[from] EnvelopeError),
    #[error("the bundle of serial {serial} expired at {expires}")]
    Expired { serial: u64, expires: Timestamp },
    #[error("the bundle of serial {serial} is older than that of serial {floor}, which was seen already: a roll-back")]
    RollBack { serial: u64, floor: u64 },
    #[error("the bundle of serial {serial} is another one than that of the same serial that was seen already")]
    Changed { serial: u64 },
    #[error("the bundle cannot be kept in {folder}: {source}")]
    Keep { folder: String, source: std::io::Error },
}

/// How the bundle is got; tests play the network.
pub(super) type Fetch<'f> = &'f dyn Fn(&str) -> Result<Vec<u8>, fetch::FetchError>;

/// The bundle that holds now: the copy, if it is fresh, else what the URL gives, else the copy as long as it has not expired.
/// Blocking: a fetch takes up to [`fetch::PATIENCE`].
pub(super) fn load(demand: &Demand, folder: &Path, now: SystemTime, fetch: Fetch<'_>) -> Result<Held, BundleError> {
    let cache = cache::Cache::of(folder, demand);
    let held = |bundle, stale| Held { bundle, stale };
    let kept = match cache.read(demand, now) {
        Ok(bundle) if cache.is_fresh(demand.refresh, now) => return Ok(held(bundle, None)),
        kept => kept,
    };
    if !cache.may_ask_again(now) {
        let why = "its URL is asked once a minute, and gave no newer one a moment ago";
        return kept.map(|bundle| held(bundle, Some(why.to_owned())));
    }
    cache.note_attempt();
    let fetched = fetch(&demand.url.value).map_err(BundleError::from).and_then(|bytes| {
        let bundle = open(&bytes, demand, now)?;
        cache.admit(&bundle)?;
        cache.keep(&bytes, &bundle).map_err(|source| BundleError::Keep {
            folder: folder.display().to_string(),
            source,
        })?;
        Ok(bundle)
    });
    match (fetched, kept) {
        (Ok(bundle), _) => Ok(held(bundle, None)),
        // The URL is away, or gives what does not count: what was signed before holds until it expires.
        (Err(error), Ok(bundle)) => Ok(held(bundle, Some(error.to_string()))),
        (Err(error), Err(_)) => Err(error),
    }
}

/// A bundle out of its envelope, if it counts for `demand` now. The floor is the cache's to hold.
fn open(bytes: &[u8], demand: &Demand, now: SystemTime) -> Result<Bundle, BundleError> {
    let keys: Vec<&PublicKey> = demand.public_keys.iter().map(|key| &key.value).collect();
    let bundle = envelope::open(bytes, &keys)?;
    let now = Timestamp::try_from(now).unwrap_or(Timestamp::MAX);
    if bundle.expires <= now {
        return Err(BundleError::Expired {
            serial: bundle.serial,
            expires: bundle.expires,
        });
    }
    if bundle.serial < demand.least_serial {
        return Err(BundleError::RollBack {
            serial: bundle.serial,
            floor: demand.least_serial,
        });
    }
    Ok(bundle)
}

pub use fetch::FetchError;
pub(super) use fetch::fetch;

#[cfg(test)]
mod tests;
