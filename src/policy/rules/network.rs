//! Rules for hosts. `egress` decides with them; here they are only read.

use std::sync::Arc;

use serde::Serialize;

use crate::policy::Decision;

/// One `network_rule`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct NetworkRule {
    pub id: String,
    pub file: Arc<str>,
    pub line: u32,
    /// In lower case, without port, brackets and trailing dots.
    pub host: String,
    pub protocol: Protocol,
    pub decision: Decision,
    pub justification: Option<String>,
    pub person_only: bool,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Protocol {
    Http,
    Https,
    Socks5Tcp,
    Socks5Udp,
}

impl Protocol {
    pub(super) fn read(text: &str) -> Option<Self> {
        match text {
            "http" => Some(Self::Http),
            "https" | "https_connect" | "http-connect" => Some(Self::Https),
            "socks5_tcp" => Some(Self::Socks5Tcp),
            "socks5_udp" => Some(Self::Socks5Udp),
            _ => None,
        }
    }

    /// The word of Codex's files.
    pub fn name(self) -> &'static str {
        match self {
            Self::Http => "http",
            Self::Https => "https",
            Self::Socks5Tcp => "socks5_tcp",
            Self::Socks5Udp => "socks5_udp",
        }
    }
}

/// The one spelling of a host.
pub(super) fn host(text: &str) -> Result<String, String> {
    let text = text.trim();
    if text.is_empty() {
        return Err("network_rule host cannot be empty".to_owned());
    }
    if text.contains('*') {
        return Err("wildcards are not allowed in a network_rule host".to_owned());
    }
    if text.contains("://") || text.contains(['/', '?', '#', '@', '\\', '%']) {
        return Err(format!(
            "network_rule host must be a host name or address without scheme or path, not \"{text}\""
        ));
    }
    if text.chars().any(|letter| letter.is_whitespace() || letter.is_control()) {
        return Err("network_rule host must not contain spaces".to_owned());
    }
    let bare = if let Some(rest) = text.strip_prefix('[') {
        let Some((address, port)) = rest.split_once(']') else {
            return Err("network_rule host has an open bracket".to_owned());
        };
        if !(port.is_empty() || port.strip_prefix(':').is_some_and(is_port)) {
            return Err(format!("network_rule host has an odd port: \"{text}\""));
        }
        address
    } else {
        match text.rsplit_once(':') {
            // More than one colon: an IPv6 address without brackets.
            Some((name, port)) if !name.contains(':') => {
                if !is_port(port) {
                    return Err(format!("network_rule host has an odd port: \"{text}\""));
                }
                name
            }
            _ => text,
        }
    };
    let bare = bare.trim_end_matches('.').to_lowercase();
    if bare.is_empty() {
        return Err("network_rule host cannot be empty".to_owned());
    }
    Ok(bare)
}

fn is_port(text: &str) -> bool {
    text.parse::<u16>().is_ok()
}
