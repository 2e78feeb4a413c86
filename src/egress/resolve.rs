//! Names to addresses, asked from the host's side and only for names that the gate has cleared.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use futures_util::future::BoxFuture;
use hickory_resolver::config::{LookupIpStrategy, ResolveHosts};
use hickory_resolver::proto::op::Query;
use hickory_resolver::proto::rr::{Name, RData, Record, RecordType};
use hickory_resolver::{Hosts, TokioResolver};

use super::gate::Clearance;
use super::host::{DomainName, Host};

/// How long one question may take in all.
const TIMEOUT: Duration = Duration::from_secs(5);

const HOSTS: &str = "/etc/hosts";
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Asks for the addresses of a name. An implementation is asked for cleared names only: the clearance is the proof.
pub trait Resolver: Send + Sync {
    fn resolve<'a>(&'a self, clearance: &'a Clearance) -> BoxFuture<'a, Result<Resolved, ResolveError>>;
}

/// What a name resolved to.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Resolved {
    pub addresses: Vec<IpAddr>,
    /// The names that it turned out to be another one for (CNAME), as far as the name server tells.
    pub aliases: Vec<DomainName>,
}

impl From<Vec<IpAddr>> for Resolved {
    fn from(addresses: Vec<IpAddr>) -> Self {
        let aliases = Vec::new();
        Self { addresses, aliases }
    }
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ResolveError {
    #[error("the name does not resolve")]
    NotFound,
    #[error("the name server failed")]
    ServerFailed,
    #[error("the host has no name server")]
    NoServers,
    #[error("the name was not resolved within {} s", TIMEOUT.as_secs())]
    TimedOut,
}

/// The host's own resolver: its hosts file, else the name servers of its `resolv.conf`, with answers cached by their
/// lifetime. Both files are read again when they change.
///
/// Names are asked for as they are: search lists would turn an allowed name into one that was not judged.
#[derive(Default)]
pub struct SystemResolver {
    hosts: Mutex<Cached<Hosts>>,
    servers: Mutex<Cached<TokioResolver>>,
}

/// What was made of a file, and the file's time of change.
struct Cached<T> {
    changed: Option<SystemTime>,
    made: Option<Arc<T>>,
}

/// Answers that are given beforehand; a name without one does not resolve.
#[derive(Debug, Clone, Default)]
pub struct FixedResolver {
    answers: BTreeMap<String, Vec<IpAddr>>,
}

impl<T> Default for Cached<T> {
    fn default() -> Self {
        Self {
            changed: None,
            made: None,
        }
    }
}

impl<T> Cached<T> {
    /// What `make` makes of the file, made anew when the file has changed.
    fn refreshed(&mut self, file: &str, make: impl FnOnce() -> Option<T>) -> Option<Arc<T>> {
        let changed = std::fs::metadata(file).and_then(|metadata| metadata.modified()).ok();
        if changed.is_none() || changed != self.changed {
            self.made = make().map(Arc::new);
            self.changed = changed;
        }
        self.made.clone()
    }
}

impl Resolver for SystemResolver {
    fn resolve<'a>(&'a self, clearance: &'a Clearance) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        Box::pin(async move {
            // A whole name, with its dot at the end.
            let mut name = Name::from_ascii(clearance.name().as_str()).map_err(|_| ResolveError::NotFound)?;
            name.set_fqdn(true);
            if let Some(hosts) = lock(&self.hosts).refreshed(HOSTS, || Hosts::from_system().ok()) {
                let found = in_hosts(&hosts, &name);
                if !found.is_empty() {
                    return Ok(found.into());
                }
            }
            let servers = lock(&self.servers).refreshed(RESOLV_CONF, system_servers);
            let servers = servers.ok_or(ResolveError::NoServers)?;
            match tokio::time::timeout(TIMEOUT, servers.lookup_ip(name)).await {
                Ok(Ok(found)) => Ok(Resolved {
                    addresses: found.iter().collect(),
                    aliases: aliases(found.as_lookup().answers()),
                }),
                Ok(Err(error)) if error.is_no_records_found() => Err(ResolveError::NotFound),
                Ok(Err(_)) => Err(ResolveError::ServerFailed),
                Err(_) => Err(ResolveError::TimedOut),
            }
        })
    }
}

/// The names that records of an answer lead on to. One that no host can have is nobody's that a policy could speak of.
fn aliases(records: &[Record]) -> Vec<DomainName> {
    let target = |record: &Record| match &record.data {
        RData::CNAME(target) => match Host::parse(&target.0.to_ascii()) {
            Ok(Host::Name(name)) => Some(name),
            Ok(Host::Address(_)) | Err(_) => None,
        },
        _ => None,
    };
    records.iter().filter_map(target).collect()
}

fn in_hosts(hosts: &Hosts, name: &Name) -> Vec<IpAddr> {
    [RecordType::A, RecordType::AAAA]
        .into_iter()
        .filter_map(|kind| hosts.lookup_static_host(&Query::query(name.clone(), kind)))
        .flat_map(|lookup| {
            lookup
                .answers()
                .iter()
                .filter_map(|record| record.data.ip_addr())
                .collect::<Vec<_>>()
        })
        .collect()
}

fn system_servers() -> Option<TokioResolver> {
    let mut builder = TokioResolver::builder_tokio().ok()?;
    let options = builder.options_mut();
    // Every address that might be dialled is to be judged.
    options.ip_strategy = LookupIpStrategy::Ipv4AndIpv6;
    // And every name on the way to them.
    options.preserve_intermediates = true;
    options.use_hosts_file = ResolveHosts::Never;
    builder.build().ok()
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
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
    fn resolve<'a>(&'a self, clearance: &'a Clearance) -> BoxFuture<'a, Result<Resolved, ResolveError>> {
        Box::pin(async move { self.answer(clearance.name()).map(Resolved::from) })
    }
}

#[cfg(test)]
mod tests {
    use hickory_resolver::proto::rr::rdata::{A, CNAME};

    use super::*;

    #[test]
    fn a_whole_name_is_found_in_the_hosts_file_with_all_its_addresses() {
        let mut hosts = Hosts::default();
        let file = "10.0.0.7 Registry.example.com registry\nfd00::7 registry.example.com\n";
        hosts.read_hosts_conf(file.as_bytes()).unwrap();
        let whole = |text| {
            let mut name = Name::from_ascii(text).unwrap();
            name.set_fqdn(true);
            name
        };
        let found = in_hosts(&hosts, &whole("registry.example.com"));
        assert_eq!(
            found,
            ["10.0.0.7".parse::<IpAddr>().unwrap(), "fd00::7".parse().unwrap()]
        );
        assert!(in_hosts(&hosts, &whole("example.com")).is_empty());
    }

    #[test]
    fn the_names_on_the_way_to_an_address_are_told() {
        let name = |text| Name::from_ascii(text).unwrap();
        let record = |data| Record::from_rdata(name("www.example.com."), 60, data);
        let records = [
            record(RData::CNAME(CNAME(name("Edge.Example.NET.")))),
            record(RData::CNAME(CNAME(name("_a.example.net.")))),
            record(RData::CNAME(CNAME(
                Name::from_labels([&b"no host"[..], b"net"]).unwrap(),
            ))),
            record(RData::A(A::new(93, 184, 216, 34))),
        ];
        let names: Vec<String> = aliases(&records).iter().map(|name| name.as_str().to_owned()).collect();
        assert_eq!(names, ["edge.example.net", "_a.example.net"]);
    }

    #[test]
    fn what_was_made_of_a_file_is_kept_until_the_file_changes() {
        let file = tempfile::NamedTempFile::new().unwrap();
        let path = file.path().to_str().unwrap();
        let mut cached = Cached::default();
        assert_eq!(cached.refreshed(path, || Some(1)).as_deref(), Some(&1));
        assert_eq!(cached.refreshed(path, || Some(2)).as_deref(), Some(&1));
        file.as_file().set_modified(SystemTime::UNIX_EPOCH).unwrap();
        assert_eq!(cached.refreshed(path, || Some(3)).as_deref(), Some(&3));
        assert_eq!(cached.refreshed("/nonexistent/file", || None).as_deref(), None);
    }
}
