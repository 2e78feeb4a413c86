//! Hosts as a client names them, brought to one spelling or refused.
//!
//! Every later step (lists, resolution, dialling, records) sees only what comes out of here, so two programs can never read
//! one spelling in two ways. A spelling that is known to be read differently by different programs is refused even where its
//! most usual meaning is clear; the error then carries that meaning, for the record.

use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::address;

/// The longest name in DNS without its trailing dot (RFC 1035, 2.3.4).
const NAME_MAX: usize = 253;
/// The longest label (RFC 1035, 2.3.4).
const LABEL_MAX: usize = 63;
/// The longest zone id: an interface's name (`IFNAMSIZ`) has 15 signs; longer ones are not links.
const ZONE_MAX: usize = 15;

/// One host: a name or an address, in its one spelling.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Host {
    Name(DomainName),
    Address(Address),
}

/// A name in lower-case ASCII without a trailing dot: labels of letters, digits, hyphens and underscores, the last of which
/// is not a number.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct DomainName(String);

/// An address with the zone id that it was written with.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Address {
    ip: IpAddr,
    zone: Option<String>,
}

/// A host and a port, as in `CONNECT host:port`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Authority {
    pub host: Host,
    pub port: u16,
}

#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HostError {
    #[error("the host is empty")]
    Empty,
    #[error("the name has {0} signs (at most {NAME_MAX})")]
    NameTooLong(usize),
    #[error("a label of the name has {0} signs (at most {LABEL_MAX})")]
    LabelTooLong(usize),
    #[error("the name has an empty label")]
    EmptyLabel,
    #[error("{0:?} cannot be in a host")]
    Character(char),
    #[error("the name is not ASCII{}", hint(.ascii.as_deref()))]
    NotAscii { ascii: Option<String> },
    #[error("an address must be written in its usual form: {canonical}")]
    OddAddress { canonical: Ipv4Addr },
    #[error("a name that ends in a number is neither a name nor an address")]
    EndsInNumber,
    #[error("not an IPv6 address")]
    NotIpv6,
    #[error("the zone id is not the name of a link")]
    Zone,
    #[error("a user or password stands before the host")]
    UserInfo,
    #[error("the port is missing")]
    NoPort,
    #[error("\"{0}\" is not a port (1 to 65535)")]
    Port(String),
}

fn hint(ascii: Option<&str>) -> String {
    ascii.map_or_else(String::new, |ascii| format!(" (in ASCII it is {ascii})"))
}

impl HostError {
    /// The host that most programs would read, where there is one. For records and messages only.
    pub fn canonical(&self) -> Option<String> {
        match self {
            HostError::OddAddress { canonical } => Some(canonical.to_string()),
            HostError::NotAscii { ascii } => ascii.clone(),
            _ => None,
        }
    }
}

impl Host {
    /// Reads a host without a port. Spaces and tabs around it and one trailing dot are dropped, capitals made small.
    pub fn parse(text: &str) -> Result<Self, HostError> {
        let text = text.trim_matches([' ', '\t']);
        if text.is_empty() {
            return Err(HostError::Empty);
        }
        if !text.is_ascii() {
            let ascii = idna::domain_to_ascii_strict(text).ok();
            return Err(HostError::NotAscii { ascii });
        }
        if let Some(inner) = text.strip_prefix('[') {
            let inner = inner.strip_suffix(']').ok_or(HostError::NotIpv6)?;
            return parse_ipv6(inner).map(Host::Address);
        }
        if text.contains('@') {
            return Err(HostError::UserInfo);
        }
        if text.contains(':') {
            return parse_ipv6(text).map(Host::Address);
        }
        let text = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
        match parse_ipv4(&text)? {
            Some(ip) => Ok(Host::Address(Address {
                ip: IpAddr::V4(ip),
                zone: None,
            })),
            None => DomainName::parse(text).map(Host::Name),
        }
    }
}

impl From<IpAddr> for Host {
    fn from(ip: IpAddr) -> Self {
        Host::Address(Address { ip, zone: None })
    }
}

impl DomainName {
    fn parse(text: String) -> Result<Self, HostError> {
        // The sign that does not belong says more than the length of the label that it made.
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || matches!(c, '-' | '_' | '.');
        if let Some(c) = text.chars().find(|&c| !allowed(c)) {
            return Err(HostError::Character(c));
        }
        if text.is_empty() {
            return Err(HostError::Empty);
        }
        if text.len() > NAME_MAX {
            return Err(HostError::NameTooLong(text.len()));
        }
        for label in text.split('.') {
            match label.len() {
                0 => return Err(HostError::EmptyLabel),
                1..=LABEL_MAX => {}
                long => return Err(HostError::LabelTooLong(long)),
            }
        }
        Ok(Self(text))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether this name stands below `parent`, at any depth.
    pub fn is_below(&self, parent: &str) -> bool {
        self.0
            .strip_suffix(parent)
            .is_some_and(|rest| rest.len() > 1 && rest.ends_with('.'))
    }

    /// Whether the name has one label only, so that search lists could give it a meaning.
    pub fn is_single_label(&self) -> bool {
        !self.0.contains('.')
    }
}

impl Address {
    pub fn ip(&self) -> IpAddr {
        self.ip
    }

    pub fn zone(&self) -> Option<&str> {
        self.zone.as_deref()
    }
}

impl Authority {
    /// Reads `host:port`; without a port `default_port` counts, and without that it is an error.
    pub fn parse(text: &str, default_port: Option<u16>) -> Result<Self, HostError> {
        let text = text.trim_matches([' ', '\t']);
        if text.contains('@') {
            return Err(HostError::UserInfo);
        }
        let (host, port) = split_port(text)?;
        let port = match port {
            Some(port) => parse_port(port)?,
            None => default_port.ok_or(HostError::NoPort)?,
        };
        Ok(Self {
            host: Host::parse(host)?,
            port,
        })
    }

    /// Reads `host`, `host:port`, or a URL of http or https of which only scheme, host and port count.
    pub fn parse_lenient(text: &str, default_port: u16) -> Result<Self, HostError> {
        let text = text.trim();
        let (rest, scheme_port) = match text.split_once("://") {
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("http") => (rest, 80),
            Some((scheme, rest)) if scheme.eq_ignore_ascii_case("https") => (rest, 443),
            Some(_) => return Err(HostError::Character('/')),
            None => return Self::parse(text, Some(default_port)),
        };
        let end = rest.find(['/', '?', '#']).unwrap_or(rest.len());
        Self::parse(&rest[..end], Some(scheme_port))
    }

    /// The authority as it stands in a request, without the port that `scheme_port` implies.
    pub fn for_scheme_port(&self, scheme_port: u16) -> String {
        let host = bracketed(&self.host);
        if self.port == scheme_port {
            host
        } else {
            format!("{host}:{}", self.port)
        }
    }
}

fn bracketed(host: &Host) -> String {
    match host {
        Host::Address(address) if address.ip.is_ipv6() => format!("[{host}]"),
        Host::Address(_) | Host::Name(_) => host.to_string(),
    }
}

/// Splits off `:port`. Text with several colons and no brackets is an IPv6 address without a port.
fn split_port(text: &str) -> Result<(&str, Option<&str>), HostError> {
    if text.starts_with('[') {
        let end = text.find(']').ok_or(HostError::NotIpv6)?;
        let (host, rest) = text.split_at(end + 1);
        return match rest.strip_prefix(':') {
            Some(port) => Ok((host, Some(port))),
            None if rest.is_empty() => Ok((host, None)),
            None => Err(HostError::NotIpv6),
        };
    }
    Ok(match text.split_once(':') {
        Some((host, port)) if !port.contains(':') => (host, Some(port)),
        _ => (text, None),
    })
}

/// A port as digits without leading zeros: `0443` is read as octal here and there.
pub(super) fn parse_port(text: &str) -> Result<u16, HostError> {
    let bad = || HostError::Port(text.chars().take(8).collect());
    if text.is_empty() || text.starts_with('0') || !text.bytes().all(|b| b.is_ascii_digit()) {
        return Err(bad());
    }
    text.parse().map_err(|_| bad())
}

fn parse_ipv6(text: &str) -> Result<Address, HostError> {
    let (ip, zone) = match text.split_once('%') {
        // In a URL the per cent sign of a zone is itself escaped (RFC 6874).
        Some((ip, zone)) => (ip, Some(zone.strip_prefix("25").unwrap_or(zone))),
        None => (text, None),
    };
    let ip: Ipv6Addr = ip.parse().map_err(|_| HostError::NotIpv6)?;
    if let Some(canonical) = ip.to_ipv4_mapped() {
        return Err(HostError::OddAddress { canonical });
    }
    if let Some(zone) = zone {
        let link = |b: u8| b.is_ascii_alphanumeric() || matches!(b, b'.' | b'_' | b'-');
        if zone.is_empty() || zone.len() > ZONE_MAX || !zone.bytes().all(link) {
            return Err(HostError::Zone);
        }
    }
    Ok(Address {
        ip: IpAddr::V6(ip),
        zone: zone.map(str::to_owned),
    })
}

/// An IPv4 address in the usual form; `None` where the text is a name. Anything else that ends in a number would be read as an
/// address by some programs (`inet_aton`: hexadecimal, octal, fewer than four parts) and as a name by others: refused.
fn parse_ipv4(text: &str) -> Result<Option<Ipv4Addr>, HostError> {
    if let Ok(ip) = text.parse::<Ipv4Addr>() {
        return Ok(Some(ip));
    }
    let last = text.rsplit('.').next().unwrap_or(text);
    let numeric = !last.is_empty() && last.bytes().all(|b| b.is_ascii_digit());
    let hexadecimal = last
        .strip_prefix("0x")
        .is_some_and(|rest| rest.bytes().all(|b| b.is_ascii_hexdigit()));
    if !numeric && !hexadecimal {
        return Ok(None);
    }
    Err(match address::inet_aton(text) {
        Some(canonical) => HostError::OddAddress { canonical },
        None => HostError::EndsInNumber,
    })
}

impl fmt::Display for Host {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Host::Name(name) => f.write_str(&name.0),
            Host::Address(address) => match &address.zone {
                Some(zone) => write!(f, "{}%{zone}", address.ip),
                None => write!(f, "{}", address.ip),
            },
        }
    }
}

impl fmt::Display for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", bracketed(&self.host), self.port)
    }
}

impl serde::Serialize for Host {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn spelled(text: &str) -> Result<String, HostError> {
        Host::parse(text).map(|host| host.to_string())
    }

    #[test]
    fn a_host_has_one_spelling() {
        for (text, host) in [
            ("ExAmPle.COM.", "example.com"),
            ("  example.com\t", "example.com"),
            ("[2001:DB8:0:0::1]", "2001:db8::1"),
            ("fe80::1%25lo0", "fe80::1%lo0"),
            ("10.0.0.1.", "10.0.0.1"),
            ("a_b.example.com", "a_b.example.com"),
        ] {
            assert_eq!(spelled(text), Ok(host.to_owned()), "{text}");
        }
    }

    #[test]
    fn addresses_in_odd_forms_are_refused_and_named() {
        for (text, canonical) in [
            ("0x7f000001", [127, 0, 0, 1]),
            ("0x7F.1", [127, 0, 0, 1]),
            ("017700000001", [127, 0, 0, 1]),
            ("0177.0.0.1", [127, 0, 0, 1]),
            ("010.0.0.1", [8, 0, 0, 1]),
            ("127.1", [127, 0, 0, 1]),
            ("2130706433", [127, 0, 0, 1]),
            ("169.16689662", [169, 254, 169, 254]),
            ("0", [0, 0, 0, 0]),
            ("::ffff:10.0.0.1", [10, 0, 0, 1]),
            ("[::ffff:7f00:1]", [127, 0, 0, 1]),
        ] {
            let canonical = Ipv4Addr::from(canonical);
            assert_eq!(spelled(text), Err(HostError::OddAddress { canonical }), "{text}");
        }
    }

    #[test]
    fn what_is_no_host_is_refused() {
        for text in [
            "",
            "   ",
            ".",
            "..",
            ".example.com",
            "a..b.com",
            "example.com..",
            "exa mple.com",
            "example.com\0",
            "example.com\0.evil.com",
            "example.com%00.evil.com",
            "example.com\r\nx: y",
            "evil.com@example.com",
            "evil.com#.example.com",
            "evil.com\\.example.com",
            "evil.com/example.com",
            "example.com:443.evil.com",
            "1.2.3.4.5",
            "256.256.256.256",
            "example.0x",
            "999",
            "ex\u{ff0e}com",
            "\u{430}pple.com",
            "example.com\u{200b}",
            "[::1",
            "::1]",
            "[::1%]",
            "fe80::1%a/b",
            "[example.com]",
        ] {
            assert!(Host::parse(text).is_err(), "{text:?}");
        }
        assert_eq!(
            spelled(&format!("{}.com", "a".repeat(64))),
            Err(HostError::LabelTooLong(64))
        );
        assert_eq!(spelled(&"a.".repeat(150)), Err(HostError::NameTooLong(299)));
    }

    #[test]
    fn an_authority_needs_a_port_without_tricks() {
        let parse = |text| Authority::parse(text, None).map(|authority| authority.to_string());
        assert_eq!(parse("Example.com.:443"), Ok("example.com:443".to_owned()));
        assert_eq!(parse("[::1]:443"), Ok("[::1]:443".to_owned()));
        for text in [
            "example.com",
            "example.com:",
            "example.com:0",
            "example.com:0443",
            "example.com:65536",
            "example.com:+443",
            "example.com:443:1",
            "[::1]443",
            "user@example.com:443",
            "http://example.com:443",
            "example.com:443/x",
        ] {
            assert!(parse(text).is_err(), "{text}");
        }
    }

    #[test]
    fn below_is_a_matter_of_whole_labels() {
        let name = |text| DomainName::parse(String::from(text)).unwrap();
        assert!(name("a.b.example.com").is_below("example.com"));
        assert!(!name("example.com").is_below("example.com"));
        assert!(!name("evilexample.com").is_below("example.com"));
    }

    proptest! {
        #[test]
        fn a_parsed_host_parses_to_itself(text in "\\PC{0,40}|[a-zA-Z0-9.:%\\[\\]x-]{0,40}") {
            if let Ok(host) = Host::parse(&text) {
                prop_assert_eq!(Host::parse(&host.to_string()), Ok(host));
            }
        }
    }
}
