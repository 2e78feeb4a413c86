//! What a judgement hands on: each step of the way to a connection is a value that the next one needs, and none of them can be
//! made outside the gate.

use std::net::SocketAddr;

use super::destination::Destination;
use crate::egress::denial::{Denial, DenialKind};
use crate::egress::host::{DomainName, Host};
use crate::policy::{Answer, Scope};

/// The port of https, where nothing but TLS is spoken.
const TLS_PORT: u16 = 443;

/// The answer of the gate to a destination by its name.
#[derive(Debug)]
pub enum EgressJudgement {
    Allow(Cleared),
    Ask(Unknown),
    Deny(Denial),
}

/// A destination that may be reached as far as its name goes.
#[derive(Debug)]
pub enum Cleared {
    Name(Clearance),
    Address(Route),
}

/// The proof that a name was allowed, so that it may be resolved.
#[derive(Debug)]
#[must_use]
pub struct Clearance {
    pub(super) destination: Destination,
    pub(super) name: DomainName,
    pub(super) basis: Basis,
}

/// A destination that no rule knows and somebody must be asked about.
#[derive(Debug)]
#[must_use]
pub struct Unknown {
    pub(super) destination: Destination,
    pub(super) rule: String,
    pub(super) reason: String,
}

/// The proof that these addresses were checked for this destination. What is dialled is this and nothing else.
#[derive(Debug, Clone)]
#[must_use]
pub struct Route {
    pub(super) destination: Destination,
    pub(super) addresses: Vec<SocketAddr>,
    /// The names that led to them.
    pub(super) aliases: Vec<DomainName>,
    pub(super) basis: Basis,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Basis {
    pub rule: String,
    pub reason: String,
    pub origin: Origin,
    pub speech: Speech,
}

/// What a connection may be used for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Speech {
    Any,
    Tls,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Origin {
    Policy,
    Approval,
}

impl Speech {
    /// Whoever opened 443 opened https; another port was opened by its number for whatever it speaks.
    pub fn on(port: u16) -> Self {
        if port == TLS_PORT { Speech::Tls } else { Speech::Any }
    }
}

impl Cleared {
    pub(super) fn new(destination: Destination, basis: Basis) -> Self {
        match &destination.host {
            Host::Name(name) => {
                let name = name.clone();
                Cleared::Name(Clearance {
                    destination,
                    name,
                    basis,
                })
            }
            Host::Address(address) => {
                let addresses = vec![SocketAddr::new(address.ip(), destination.port)];
                Cleared::Address(Route {
                    destination,
                    addresses,
                    aliases: Vec::new(),
                    basis,
                })
            }
        }
    }
}

impl Clearance {
    pub fn name(&self) -> &DomainName {
        &self.name
    }

    pub fn rule(&self) -> &str {
        &self.basis.rule
    }

    pub fn reason(&self) -> &str {
        &self.basis.reason
    }
}

impl Unknown {
    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    pub fn rule(&self) -> &str {
        &self.rule
    }

    pub fn reason(&self) -> &str {
        &self.reason
    }

    /// Turns the desk's answer into leave to go on or a denial. The one way from a question to a connection.
    pub fn answer(self, answer: Answer) -> Result<Cleared, Denial> {
        match answer {
            Answer::Approve(scope) => {
                let basis = Basis {
                    rule: "approval".to_owned(),
                    reason: match scope {
                        Scope::Once => "approved once",
                        Scope::Task => "approved for the task",
                        Scope::Session => "approved for the session",
                        Scope::Rule => "approved by a new rule",
                    }
                    .to_owned(),
                    origin: Origin::Approval,
                    speech: Speech::on(self.destination.port),
                };
                Ok(Cleared::new(self.destination, basis))
            }
            Answer::Deny(reason) => Err(self.denied(&reason)),
        }
    }

    pub(super) fn denied(&self, reason: &str) -> Denial {
        Denial::new(&self.destination, DenialKind::Unknown, &self.rule, reason.to_owned())
    }
}

impl Route {
    pub fn destination(&self) -> &Destination {
        &self.destination
    }

    /// Never empty.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    pub fn rule(&self) -> &str {
        &self.basis.rule
    }

    pub fn reason(&self) -> &str {
        &self.basis.reason
    }

    /// Whether a tunnel may carry nothing but TLS.
    pub fn is_for_tls(&self) -> bool {
        self.basis.speech == Speech::Tls
    }
}
