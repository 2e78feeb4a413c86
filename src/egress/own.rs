//! The addresses of the host itself: never dialled, not even by name.

use std::net::IpAddr;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use super::address;

/// How long the list of the host's own addresses holds before it is read again: interfaces come and go.
const OWN_MAX_AGE: Duration = Duration::from_secs(5);

/// The addresses of the host's own interfaces.
#[derive(Debug)]
pub struct OwnAddresses(Source);

#[derive(Debug)]
enum Source {
    System(Mutex<Option<(Instant, Vec<IpAddr>)>>),
    #[cfg(test)]
    Fixed(Vec<IpAddr>),
}

impl OwnAddresses {
    /// Those of the machine, read from the kernel and again when the list is old.
    pub fn system() -> Self {
        Self(Source::System(Mutex::new(None)))
    }

    #[cfg(test)]
    pub(crate) fn fixed(addresses: &[&str]) -> Self {
        Self(Source::Fixed(
            addresses.iter().map(|text| text.parse().unwrap()).collect(),
        ))
    }

    /// Why an address is closed, if it is the host's own or that cannot be told.
    pub(super) fn refusal(&self, ip: IpAddr) -> Option<String> {
        let own = match &self.0 {
            Source::System(cell) => {
                let mut cell = cell.lock().unwrap_or_else(PoisonError::into_inner);
                let old = cell.as_ref().is_none_or(|(read, _)| read.elapsed() > OWN_MAX_AGE);
                if old {
                    match address::own_addresses() {
                        Ok(addresses) => *cell = Some((Instant::now(), addresses)),
                        Err(_) => {
                            *cell = None;
                            return Some(
                                "not known to be another machine's (the host's own addresses cannot be read)"
                                    .to_owned(),
                            );
                        }
                    }
                }
                cell.as_ref().is_some_and(|(_, addresses)| addresses.contains(&ip))
            }
            #[cfg(test)]
            Source::Fixed(addresses) => addresses.contains(&ip),
        };
        own.then(|| "an address of the host itself".to_owned())
    }
}
