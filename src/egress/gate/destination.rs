//! Where something wants to go, and the rules that name such places.

use serde::Serialize;

use crate::egress::host::{Authority, Host};
use crate::policy::Decision;

/// Where a connection is to go, as asked for.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Destination {
    pub host: Host,
    /// 0 for a DNS question.
    pub port: u16,
    pub protocol: Protocol,
    /// The HTTP method, where it can be seen.
    pub method: Option<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    Http,
    HttpsConnect,
    Socks5Tcp,
    Socks5Udp,
    Dns,
}

/// One network rule of the policy.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct NetworkRule {
    pub host: Host,
    /// Without one: every port.
    pub port: Option<u16>,
    pub protocol: Protocol,
    pub decision: Decision,
    pub id: String,
    pub file: String,
    pub line: u32,
    pub justification: Option<String>,
}

impl Destination {
    /// `host:port`, or the bare host where the port says nothing new.
    pub fn place(&self) -> String {
        let authority = Authority {
            host: self.host.clone(),
            port: self.port,
        };
        match self.port {
            0 | 80 | 443 => authority.for_scheme_port(self.port),
            _ => authority.to_string(),
        }
    }
}

impl Protocol {
    /// The word that records and rules use.
    pub fn as_str(self) -> &'static str {
        match self {
            Protocol::Http => "http",
            Protocol::HttpsConnect => "https_connect",
            Protocol::Socks5Tcp => "socks5_tcp",
            Protocol::Socks5Udp => "socks5_udp",
            Protocol::Dns => "dns",
        }
    }
}

impl NetworkRule {
    pub(super) fn reason(&self, otherwise: &str) -> String {
        self.justification.clone().unwrap_or_else(|| otherwise.to_owned())
    }
}
