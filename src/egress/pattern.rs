//! Host patterns of the allow and deny lists.
//!
//! | pattern | matches |
//! |---|---|
//! | `example.com` | that name |
//! | `*.example.com` | names below it, at any depth |
//! | `**.example.com` | the name and those below it |
//! | `*` | every host; in allow lists only, in deny lists only with a port |
//! | `192.0.2.7`, `[2001:db8::7]` | that address |
//!
//! Each may end in `:port` or `:*`. Without a port, an allow pattern means 80 and 443 (an allowed host is not thereby open for
//! SSH or mail), a deny pattern every port. Anything else, such as a star within a name, is an error: a pattern that matches
//! less or more than its writer meant is worse than one that is refused.

use std::fmt;

use super::host::{Host, HostError, parse_port};

/// The ports of an allow pattern that names none.
const WEB_PORTS: [u16; 2] = [80, 443];

/// One entry of a list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Pattern {
    hosts: Hosts,
    ports: Ports,
    text: String,
}

/// Which list a pattern stands in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum List {
    Allow,
    Deny,
    /// The hosts of rules about requests, which are read as allow patterns are.
    Hosts,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Hosts {
    Exact(Host),
    Below(String),
    AtOrBelow(String),
    All,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Ports {
    Web,
    One(u16),
    All,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PatternError {
    #[error("the pattern is empty")]
    Empty,
    #[error("\"{pattern}\": a pattern is a host without scheme, path, user or spaces")]
    NotAHost { pattern: String },
    #[error("\"{pattern}\": a star stands alone, or in front as \"*.\" or \"**.\"")]
    Star { pattern: String },
    #[error("\"{pattern}\" would deny every host; to do that, leave the allow list empty")]
    DenyAll { pattern: String },
    #[error("\"{pattern}\" names no domain (a name with a dot is expected)")]
    SingleLabel { pattern: String },
    #[error("\"{pattern}\": an IPv6 address stands in brackets: [{pattern}]")]
    Brackets { pattern: String },
    #[error("\"{pattern}\"")]
    Host {
        pattern: String,
        #[source]
        source: HostError,
    },
}

impl Pattern {
    pub fn parse(text: &str, list: List) -> Result<Self, PatternError> {
        let pattern = text.trim_matches([' ', '\t']);
        let owned = || pattern.to_owned();
        if pattern.is_empty() {
            return Err(PatternError::Empty);
        }
        if pattern.contains(['/', '@', '?', '#', '\\']) || pattern.contains(char::is_whitespace) {
            return Err(PatternError::NotAHost { pattern: owned() });
        }
        if !pattern.starts_with('[') && pattern.matches(':').count() > 1 {
            return Err(PatternError::Brackets { pattern: owned() });
        }
        let colon = pattern.rfind(':').filter(|&at| !pattern[at..].contains(']'));
        let (host, port) = match colon {
            Some(at) => (&pattern[..at], Some(&pattern[at + 1..])),
            None => (pattern, None),
        };
        let failed = |source| PatternError::Host {
            pattern: owned(),
            source,
        };
        let ports = match (port, list) {
            (Some("*"), _) | (None, List::Deny) => Ports::All,
            (None, List::Allow | List::Hosts) => Ports::Web,
            (Some(port), _) => Ports::One(parse_port(port).map_err(failed)?),
        };
        let below = |parent: &str| -> Result<String, PatternError> {
            if parent.contains('*') {
                return Err(PatternError::Star { pattern: owned() });
            }
            match Host::parse(parent).map_err(failed)? {
                Host::Name(name) => Ok(name.as_str().to_owned()),
                Host::Address(_) => Err(PatternError::Star { pattern: owned() }),
            }
        };
        let hosts = if host == "*" {
            if list == List::Deny && ports == Ports::All {
                return Err(PatternError::DenyAll { pattern: owned() });
            }
            Hosts::All
        } else if let Some(parent) = host.strip_prefix("**.") {
            Hosts::AtOrBelow(below(parent)?)
        } else if let Some(parent) = host.strip_prefix("*.") {
            Hosts::Below(below(parent)?)
        } else if host.contains('*') {
            return Err(PatternError::Star { pattern: owned() });
        } else {
            let host = Host::parse(host).map_err(failed)?;
            if let Host::Name(name) = &host
                && list != List::Deny
                && name.is_single_label()
                && name.as_str() != "localhost"
            {
                return Err(PatternError::SingleLabel { pattern: owned() });
            }
            Hosts::Exact(host)
        };
        Ok(Self {
            hosts,
            ports,
            text: owned(),
        })
    }

    /// Whether an allow pattern matches: an address only with the very zone that it was written with.
    pub fn allows(&self, host: &Host, port: u16) -> bool {
        self.matches_port(port)
            && match (&self.hosts, host) {
                (Hosts::Exact(own), host) => own == host,
                (hosts, host) => hosts.match_name(host),
            }
    }

    /// Whether a deny pattern matches: an address without a zone stands for the address on every link.
    pub fn denies(&self, host: &Host, port: u16) -> bool {
        self.matches_port(port)
            && match (&self.hosts, host) {
                (Hosts::Exact(Host::Address(own)), Host::Address(asked)) => {
                    own.ip() == asked.ip() && (own.zone().is_none() || own.zone() == asked.zone())
                }
                (Hosts::Exact(own), host) => own == host,
                (hosts, host) => hosts.match_name(host),
            }
    }

    /// Whether a deny pattern closes the host on every port: then its name is not resolved either.
    pub fn denies_wholly(&self, host: &Host) -> bool {
        // Port 0 is never asked for, so only "every port" matches it.
        self.denies(host, 0)
    }

    /// Whether the pattern is that very address, so that a local one may be let out.
    pub fn names_address(&self, host: &Host, port: u16) -> bool {
        matches!(&self.hosts, Hosts::Exact(Host::Address(_))) && self.allows(host, port)
    }

    /// Whether the pattern matches the host on any port at all: then its name may be resolved.
    pub fn allows_on_some_port(&self, host: &Host) -> bool {
        match &self.hosts {
            Hosts::Exact(own) => own == host,
            hosts => hosts.match_name(host),
        }
    }

    fn matches_port(&self, port: u16) -> bool {
        match self.ports {
            Ports::Web => WEB_PORTS.contains(&port),
            Ports::One(own) => own == port,
            Ports::All => true,
        }
    }
}

impl Hosts {
    fn match_name(&self, host: &Host) -> bool {
        match (self, host) {
            (Hosts::All, _) => true,
            (Hosts::Below(parent), Host::Name(name)) => name.is_below(parent),
            (Hosts::AtOrBelow(parent), Host::Name(name)) => name.as_str() == parent || name.is_below(parent),
            (Hosts::Exact(own), host) => own == host,
            (Hosts::Below(_) | Hosts::AtOrBelow(_), Host::Address(_)) => false,
        }
    }
}

impl fmt::Display for Pattern {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.text)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn allows(pattern: &str, host: &str, port: u16) -> bool {
        let pattern = Pattern::parse(pattern, List::Allow).unwrap();
        pattern.allows(&Host::parse(host).unwrap(), port)
    }

    #[test]
    fn stars_stand_for_whole_labels() {
        assert!(allows("*.example.com", "a.b.example.com", 443));
        assert!(!allows("*.example.com", "example.com", 443));
        assert!(!allows("*.example.com", "evilexample.com", 443));
        assert!(allows("**.example.com", "example.com", 443));
        assert!(allows("*", "8.8.8.8", 443));
        assert!(!allows("**.example.com", "8.8.8.8", 443));
    }

    #[test]
    fn an_allow_pattern_without_a_port_means_the_web() {
        assert!(allows("example.com", "example.com", 80) && allows("example.com", "example.com", 443));
        assert!(!allows("example.com", "example.com", 22));
        assert!(!allows("*", "example.com", 25));
        assert!(allows("example.com:22", "example.com", 22) && !allows("example.com:22", "example.com", 443));
        assert!(allows("example.com:*", "example.com", 9999));
        assert!(allows("[2001:db8::7]:8443", "2001:db8::7", 8443));
    }

    #[test]
    fn a_deny_pattern_without_a_port_or_zone_means_all_of_them() {
        let denies = |pattern: &str, host: &str, port| {
            Pattern::parse(pattern, List::Deny)
                .unwrap()
                .denies(&Host::parse(host).unwrap(), port)
        };
        assert!(denies("example.com", "example.com", 22));
        assert!(denies("*:22", "example.com", 22) && !denies("*:22", "example.com", 443));
        assert!(denies("[fd00::1]", "fd00::1%eth0", 80));
        assert!(!denies("[fd00::1%eth0]", "fd00::1%eth1", 80));
    }

    #[test]
    fn an_error_says_which_pattern_and_why() {
        let error = |text, list| Pattern::parse(text, list).unwrap_err();
        assert!(matches!(error("*", List::Deny), PatternError::DenyAll { .. }));
        for text in [
            "a*.example.com",
            "*example.com",
            "api.*.example.com",
            "*.*.com",
            "10.0.0.*",
            ".*",
            "*.10.0.0.1",
        ] {
            assert!(
                matches!(
                    error(text, List::Allow),
                    PatternError::Star { .. } | PatternError::Host { .. }
                ),
                "{text}"
            );
        }
        assert_eq!(
            error("::1", List::Allow).to_string(),
            "\"::1\": an IPv6 address stands in brackets: [::1]"
        );
        assert!(matches!(
            error("intranet", List::Allow),
            PatternError::SingleLabel { .. }
        ));
        assert!(matches!(
            error("https://example.com", List::Deny),
            PatternError::NotAHost { .. }
        ));
    }
}
