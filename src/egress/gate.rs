//! MAY it connect there. The same story as a command's judgement, in two steps:
//!
//! ```text
//! Destination ──judge──► Deny(Denial)
//!                        Ask(Unknown) ──answer──► Denial, or
//!                        Allow(Cleared) ─┬─ Name(Clearance): only now may it be resolved ──judge_addresses──► Denial, or
//!                                        └─ Address ────────────────────────────────────────────────────────► Route
//! ```
//!
//! A [`Route`] is made only here and holds the very addresses that were checked; a dialler takes nothing else. The order is
//! fixed: deny, then local and private, then allow, then unknown. An approval can stand for a miss in the allow list only.
//! Plain functions without waiting: asking and resolving are left to [`super::way`].

mod destination;
mod proof;

use std::net::{IpAddr, SocketAddr};

use super::address::{self, Reach};
pub use super::denial::{Denial, DenialKind};
use super::host::{DomainName, Host};
pub use super::own::OwnAddresses;
use super::pattern::{List, Pattern, PatternError};
use super::request::{Asked, RequestRules};
use super::resolve::{ResolveError, Resolved};
use crate::policy::Decision;
use crate::task::{Network, NetworkMode, Unknown as WhenUnknown};
pub use destination::{Destination, NetworkRule, Protocol};
use proof::{Basis, Origin, Speech};
pub use proof::{Clearance, Cleared, EgressJudgement, Route, Unknown};

/// Names that stand for the host or its cloud whatever they resolve to; each also for all names below it.
const LOCAL_NAMES: &[&str] = &[
    "localhost",
    "localdomain",
    "local",
    "internal",
    "intranet",
    "private",
    "corp",
    "home",
    "lan",
    "home.arpa",
    "metadata.goog",
];

/// A name may have many addresses; more than this are not looked at, so they are not dialled either.
const ADDRESSES_MAX: usize = 32;

/// The lists and rules of one task, ready to judge.
#[derive(Debug)]
pub struct Gate {
    mode: NetworkMode,
    allow: Vec<Pattern>,
    deny: Vec<Pattern>,
    requests: RequestRules,
    rules: Vec<NetworkRule>,
    unknown: WhenUnknown,
    own: OwnAddresses,
    /// Why nothing goes out at all.
    closed: Option<String>,
}

/// All that is wrong with a task's lists.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
#[error("the network lists have {} fault{}: {}", .0.len(), if .0.len() == 1 { "" } else { "s" }, faults(.0))]
pub struct GateError(pub Vec<ListFault>);

/// One entry that is no pattern: `network.allow[2]`.
#[derive(Debug, PartialEq, Eq)]
pub struct ListFault {
    pub list: List,
    pub index: usize,
    pub error: PatternError,
}

fn faults(faults: &[ListFault]) -> String {
    let one = |fault: &ListFault| {
        let source = std::error::Error::source(&fault.error).map_or_else(String::new, |source| format!(": {source}"));
        format!("{}[{}] {}{source}", fault.list.key(), fault.index, fault.error)
    };
    faults.iter().map(one).collect::<Vec<_>>().join("; ")
}

impl List {
    /// The key of the task spec.
    pub fn key(self) -> &'static str {
        match self {
            List::Allow => "network.allow",
            List::Deny => "network.deny",
            List::Hosts => "network.hosts",
        }
    }
}

impl Gate {
    /// A gate for a task's lists and the network rules of its policy.
    pub fn new(network: &Network, rules: Vec<NetworkRule>, own: OwnAddresses) -> Result<Self, GateError> {
        let mut faults = Vec::new();
        let mut parse = |list: List, patterns: &[String]| -> Vec<Pattern> {
            let parsed = patterns.iter().enumerate().map(|(index, text)| {
                Pattern::parse(text, list).map_err(|error| faults.push(ListFault { list, index, error }))
            });
            parsed.filter_map(Result::ok).collect()
        };
        let allow = parse(List::Allow, &network.allow);
        let deny = parse(List::Deny, &network.deny);
        let requests = RequestRules::new(network).unwrap_or_else(|found| {
            let list = List::Hosts;
            faults.extend(found.into_iter().map(|(index, error)| ListFault { list, index, error }));
            RequestRules::default()
        });
        if !faults.is_empty() {
            return Err(GateError(faults));
        }
        Ok(Self {
            mode: network.mode,
            allow,
            deny,
            requests,
            rules,
            unknown: network.unknown,
            own,
            closed: None,
        })
    }

    /// A gate that lets nothing out, for a task that its changed policy has no place for.
    pub fn closed(reason: String) -> Self {
        Self {
            mode: NetworkMode::None,
            allow: Vec::new(),
            deny: Vec::new(),
            requests: RequestRules::default(),
            rules: Vec::new(),
            unknown: WhenUnknown::Deny,
            own: OwnAddresses::system(),
            closed: Some(reason),
        }
    }

    /// Judges a destination by its name or literal address. Nothing is resolved.
    pub fn judge(&self, destination: &Destination) -> EgressJudgement {
        let deny =
            |kind, rule: &str, reason: String| EgressJudgement::Deny(Denial::new(destination, kind, rule, reason));
        if let Some(reason) = &self.closed {
            return deny(DenialKind::Denied, "policy.changed", reason.clone());
        }
        if self.mode == NetworkMode::None {
            return deny(DenialKind::Denied, "network.mode", "the task has no network".to_owned());
        }
        if self.mode == NetworkMode::Cached {
            let reason = "the task may see stored answers only, by HTTP and HTTPS".to_owned();
            return deny(DenialKind::Denied, "network.mode", reason);
        }
        if let Some((rule, reason)) = self.denied(&destination.host, destination) {
            return deny(DenialKind::Denied, &rule, reason);
        }
        if let Err(reason) = self.is_outside(destination) {
            return deny(DenialKind::Local, "local", reason);
        }
        if let Some(rule) = self.rule(destination, Decision::Prompt) {
            return EgressJudgement::Ask(Unknown {
                destination: destination.clone(),
                rule: rule.id.clone(),
                reason: rule.reason("a rule wants this host to be asked about"),
            });
        }
        if let Some(basis) = self.allowed(destination) {
            return EgressJudgement::Allow(Cleared::new(destination.clone(), basis));
        }
        let reason = format!("{} is not in the allow list", destination.place());
        match (self.unknown, destination.protocol) {
            // A name is asked about when something connects to it: a lookup alone is worth no question.
            (WhenUnknown::Deny, _) | (WhenUnknown::Ask, Protocol::Dns) => deny(DenialKind::Unknown, "unknown", reason),
            (WhenUnknown::Ask, _) => EgressJudgement::Ask(Unknown {
                destination: destination.clone(),
                rule: "unknown".to_owned(),
                reason,
            }),
        }
    }

    /// Whether any rule speaks of letting datagrams out; without one nothing of the kind is served.
    pub fn lets_datagrams_out(&self) -> bool {
        let lets = |rule: &NetworkRule| rule.protocol == Protocol::Socks5Udp && rule.decision != Decision::Forbidden;
        self.mode != NetworkMode::None && self.rules.iter().any(lets)
    }

    /// Judges what a cleared name resolved to. One address that is denied or not public closes the whole name: an answer
    /// that mixes public and private addresses is how rebinding looks. Likewise one name on the way to them that is denied or the host's own:
    /// who allowed a name did not allow what it is another word for.
    pub fn judge_addresses(
        &self,
        clearance: Clearance,
        answer: Result<Resolved, ResolveError>,
    ) -> Result<Route, Denial> {
        let Clearance {
            destination,
            name,
            basis,
        } = clearance;
        let deny = |kind, rule: &str, reason| Err(Denial::new(&destination, kind, rule, reason));
        let Resolved { mut addresses, aliases } = match answer {
            Ok(resolved) => resolved,
            Err(error) => {
                return deny(
                    DenialKind::Unresolved,
                    "resolve",
                    format!("{name}: {error}", name = name.as_str()),
                );
            }
        };
        addresses.truncate(ADDRESSES_MAX);
        if addresses.is_empty() {
            return deny(
                DenialKind::Unresolved,
                "resolve",
                format!("{} has no address", name.as_str()),
            );
        }
        for alias in &aliases {
            let host = Host::Name(alias.clone());
            let is = |reason: String| format!("{} is another name for {}: {reason}", name.as_str(), alias.as_str());
            if let Some((rule, reason)) = self.denied(&host, &destination) {
                return deny(DenialKind::Denied, &rule, is(reason));
            }
            if let Err(reason) = is_outside_by_name(alias) {
                return deny(DenialKind::Local, "local", is(reason));
            }
        }
        for &ip in &addresses {
            if let Some((rule, reason)) = self.denied(&Host::from(ip), &destination) {
                return deny(
                    DenialKind::Denied,
                    &rule,
                    format!("{} is {ip}: {reason}", name.as_str()),
                );
            }
            let closed = match address::reach(ip) {
                Reach::Public => self.own.refusal(ip),
                Reach::Local(range) | Reach::Never(range) => Some(range.to_owned()),
            };
            if let Some(range) = closed {
                return deny(
                    DenialKind::Local,
                    "local",
                    format!("{} is {ip}, which is {range}", name.as_str()),
                );
            }
        }
        let port = destination.port;
        Ok(Route {
            addresses: addresses.into_iter().map(|ip| SocketAddr::new(ip, port)).collect(),
            destination,
            aliases,
            basis,
        })
    }

    /// Whether a task may see stored answers only.
    pub fn is_for_stored(&self) -> bool {
        self.mode == NetworkMode::Cached
    }

    /// Judges a request that is answered out of a store: what is denied stays so.
    pub(super) fn judge_stored(&self, destination: &Destination, asked: Asked<'_>) -> Result<(), Denial> {
        if let Some((rule, reason)) = self.denied(&destination.host, destination) {
            return Err(Denial::new(destination, DenialKind::Denied, &rule, reason));
        }
        self.judge_request(destination, asked).map(drop)
    }

    /// Whether requests to a host have to be seen to be judged, so that its TLS is looked into.
    pub fn restricts_requests(&self, destination: &Destination) -> bool {
        self.requests.restrict(&destination.host, destination.port)
    }

    /// Judges one request to a host that was allowed by its name. Gives the rule that allows it, where one speaks of the host.
    pub(super) fn judge_request(&self, destination: &Destination, asked: Asked<'_>) -> Result<Option<String>, Denial> {
        match self.requests.judge(destination, asked) {
            Ok(rule) => Ok(rule.map(str::to_owned)),
            Err(refused) => Err(Denial::new(
                destination,
                DenialKind::Denied,
                &refused.rule,
                refused.reason,
            )),
        }
    }

    /// Judges a request to a host that was allowed by its name, by its method and path alone.
    pub fn judge_method(&self, destination: &Destination, method: &str, path: &str) -> Result<(), Denial> {
        if hyper::Method::from_bytes(method.as_bytes()).is_err() {
            let (reason, host) = (format!("{method:?} is no method"), destination.host.to_string());
            return Err(Denial::malformed(reason, Some(host), destination.port));
        }
        let headers = &hyper::HeaderMap::new();
        let asked = Asked { method, path, headers };
        self.judge_request(destination, asked).map(drop)
    }

    /// Judges a live connection once more, after the policy changed. What a person approved stays so while the policy would
    /// still ask.
    pub fn rejudge(&self, route: &Route) -> Result<(), Denial> {
        let cleared = match self.judge(&route.destination) {
            EgressJudgement::Deny(denial) => return Err(denial),
            EgressJudgement::Ask(unknown) => match route.basis.origin {
                Origin::Approval => Cleared::new(route.destination.clone(), route.basis.clone()),
                Origin::Policy => return Err(unknown.denied("the policy changed and now asks about this host")),
            },
            EgressJudgement::Allow(cleared) => cleared,
        };
        match cleared {
            Cleared::Address(_) => Ok(()),
            Cleared::Name(clearance) => {
                let resolved = Resolved {
                    addresses: route.addresses.iter().map(|address| address.ip()).collect(),
                    aliases: route.aliases.clone(),
                };
                self.judge_addresses(clearance, Ok(resolved)).map(drop)
            }
        }
    }

    fn denied(&self, host: &Host, destination: &Destination) -> Option<(String, String)> {
        let denies = |pattern: &&Pattern| match destination.protocol {
            Protocol::Dns => pattern.denies_wholly(host),
            _ => pattern.denies(host, destination.port),
        };
        if let Some(pattern) = self.deny.iter().find(denies) {
            return Some((
                format!("network.deny {pattern}"),
                format!("the deny list has {pattern}"),
            ));
        }
        let asked = Destination {
            host: host.clone(),
            ..destination.clone()
        };
        let rule = self.rule(&asked, Decision::Forbidden)?;
        Some((rule.id.clone(), rule.reason("a rule forbids this host")))
    }

    fn allowed(&self, destination: &Destination) -> Option<Basis> {
        let Destination {
            host, port, protocol, ..
        } = destination;
        let allows = |pattern: &&Pattern| match protocol {
            Protocol::Dns => pattern.allows_on_some_port(host),
            // A host on the list is not thereby open for datagrams, which nothing looks into: that takes a rule.
            Protocol::Socks5Udp => false,
            Protocol::Http | Protocol::HttpsConnect | Protocol::Socks5Tcp => pattern.allows(host, *port),
        };
        if let Some(pattern) = self.allow.iter().find(allows) {
            return Some(Basis {
                rule: format!("network.allow {pattern}"),
                reason: format!("the allow list has {pattern}"),
                origin: Origin::Policy,
                speech: Speech::on(*port),
            });
        }
        let opened = match protocol {
            Protocol::Dns => self.requests.opens_on_some_port(host),
            _ => self.requests.opens(host, *port),
        };
        if let Some(rule) = opened {
            return Some(Basis {
                rule: rule.to_owned(),
                reason: "it is allowed for some requests".to_owned(),
                origin: Origin::Policy,
                speech: Speech::on(*port),
            });
        }
        let rule = self.rule(destination, Decision::Allow)?;
        Some(Basis {
            rule: rule.id.clone(),
            reason: rule.reason("a rule allows this host"),
            origin: Origin::Policy,
            // A rule for https without a port opens every port for https, and for nothing else.
            speech: match rule.protocol {
                Protocol::HttpsConnect => Speech::Tls,
                _ => Speech::on(*port),
            },
        })
    }

    fn rule(&self, destination: &Destination, decision: Decision) -> Option<&NetworkRule> {
        let matches = |rule: &&NetworkRule| {
            let port = match destination.protocol {
                // A name may be resolved if anything may be done with it, and is closed only if everything is.
                Protocol::Dns => decision == Decision::Allow,
                protocol => rule.protocol == protocol && rule.port.is_none_or(|port| port == destination.port),
            };
            port && rule.decision == decision && rule.host == destination.host
        };
        self.rules.iter().find(matches)
    }

    /// Whether a destination is outside as far as its name or literal address tells; else why not.
    fn is_outside(&self, destination: &Destination) -> Result<(), String> {
        match &destination.host {
            Host::Name(name) => is_outside_by_name(name),
            Host::Address(address) => {
                let ip = address.ip();
                if address.zone().is_some() {
                    return Err("an address with a zone id is on a link of the host".to_owned());
                }
                let closed = match address::reach(ip) {
                    Reach::Public => None,
                    Reach::Local(_) if self.names_literally(destination) => None,
                    Reach::Local(range) => Some(format!(
                        "{ip} is {range}, and only its literal address in the allow list opens it"
                    )),
                    Reach::Never(range) => Some(match ip {
                        IpAddr::V6(v6) => match address::embedded_ipv4(v6) {
                            Some(carried) => format!("{ip} is {range} and carries {carried}"),
                            None => format!("{ip} is {range}"),
                        },
                        IpAddr::V4(_) => format!("{ip} is {range}"),
                    }),
                };
                match closed.or_else(|| self.own.refusal(ip)) {
                    Some(reason) => Err(reason),
                    None => Ok(()),
                }
            }
        }
    }

    fn names_literally(&self, destination: &Destination) -> bool {
        let Destination { host, port, .. } = destination;
        self.allow.iter().any(|pattern| pattern.names_address(host, *port))
            || self.rule(destination, Decision::Allow).is_some()
    }
}

fn is_outside_by_name(name: &DomainName) -> Result<(), String> {
    let local = |parent: &&&str| name.as_str() == **parent || name.is_below(parent);
    if let Some(parent) = LOCAL_NAMES.iter().find(local) {
        return Err(format!("names at or below {parent} are local to the host"));
    }
    if name.is_single_label() {
        return Err(format!(
            "{} has no dot, so it is local to the host's network",
            name.as_str()
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests;
