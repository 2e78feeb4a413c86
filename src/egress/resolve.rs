//! Names to addresses, asked from the host's side and only for names that the gate has cleared.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::time::Duration;

use futures_util::future::BoxFuture;
use tokio::sync::Semaphore;

use super::gate::Clearance;
use super::host::DomainName;

/// How long one question may take in all.
const TIMEOUT: Duration = Duration::from_secs(5);
/// Questions at once: each holds a thread of the blocking pool while the system's resolver works.
const AT_ONCE: usize = 64;

/// Asks for the addresses of a name. An implementation is asked for cleared names only: the clearance is the proof.
pub trait Resolver: Send + Sync {
    fn resolve<'a>(&'a self, clearance: &'a Clearance) -> BoxFuture<'a, Result<Vec<IpAddr>, ResolveError>>;
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("the name does not resolve")]
    NotFound,
    #[error("the name was not resolved within {} s", TIMEOUT.as_secs())]
    TimedOut,
}

/// The host's own resolver, as `getaddrinfo(3)` gives it: its hosts file, its name servers.
#[derive(Debug)]
pub struct SystemResolver {
    slots: Semaphore,
}

/// Answers that are given beforehand; a name without one does not resolve.
#[derive(Debug, Clone, Default)]
pub struct FixedResolver {
    answers: BTreeMap<String, Vec<IpAddr>>,
}

impl Default for SystemResolver {
    fn default() -> Self {
        Self {
            slots: Semaphore::new(AT_ONCE),
        }
    }
}

impl Resolver for SystemResolver {
    fn resolve<'a>(&'a self, clearance: &'a Clearance) -> BoxFuture<'a, Result<Vec<IpAddr>, ResolveError>> {
        Box::pin(async move {
            let ask = async {
                let _slot = self.slots.acquire().await.map_err(|_| ResolveError::NotFound)?;
                let found = tokio::net::lookup_host((clearance.name().as_str(), 0)).await;
                let mut addresses: Vec<IpAddr> = found.map_err(|_| ResolveError::NotFound)?.map(|a| a.ip()).collect();
                let mut seen = std::collections::HashSet::new();
                addresses.retain(|ip| seen.insert(*ip));
                Ok(addresses)
            };
            tokio::time::timeout(TIMEOUT, ask)
                .await
                .unwrap_or(Err(ResolveError::TimedOut))
        })
    }
}

impl FixedResolver {
    pub fn add(&mut self, name: &DomainName, addresses: Vec<IpAddr>) {
        self.answers
            .entry(name.as_str().to_owned())
            .or_default()
            .extend(addresses);
    }

    pub fn answer(&self, name: &DomainName) -> Result<Vec<IpAddr>, ResolveError> {
        self.answers.get(name.as_str()).cloned().ok_or(ResolveError::NotFound)
    }
}

impl Resolver for FixedResolver {
    fn resolve<'a>(&'a self, clearance: &'a Clearance) -> BoxFuture<'a, Result<Vec<IpAddr>, ResolveError>> {
        Box::pin(async move { self.answer(clearance.name()) })
    }
}
