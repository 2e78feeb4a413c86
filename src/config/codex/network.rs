//! `[experimental_network]`: which hosts a command may reach.

use crate::config::requirements::Requirements;
use crate::document::{Sited, Table};
use crate::task::spec::host_pattern;
use crate::task::{NetworkMode, Unknown};

#[derive(Debug, Default)]
pub(in crate::config) struct Network {
    pub enabled: Option<Sited<bool>>,
    pub allowed: Vec<Sited<String>>,
    pub denied: Vec<Sited<String>>,
    /// Nobody may allow a host beside `allowed`, and the rest is denied without a question.
    pub managed_only: Option<Sited<bool>>,
    /// Whether connections may go through another proxy.
    pub upstream: Option<Sited<bool>>,
}

impl Network {
    pub fn demand(self, demands: &mut Requirements) {
        if let Some(enabled) = self.enabled.filter(|enabled| !enabled.value) {
            demands.modes = Some(Sited::new(vec![NetworkMode::None], enabled.origin));
        }
        demands.deny = self.denied;
        demands.no_upstream = self.upstream.filter(|allowed| !allowed.value);
        if let Some(only) = self.managed_only.filter(|only| only.value) {
            let allowed = self.allowed.iter().map(|host| host.value.clone()).collect();
            demands.allow = Some(Sited::new(allowed, only.origin.clone()));
            demands.unknown = Some(Sited::new(vec![Unknown::Deny], only.origin));
        }
        // What the admin allows is allowed for whoever has a way out; a user's denial still wins.
        demands.always = self.allowed;
    }
}

pub(super) fn read(table: &Table<'_>, unheeded: &mut Vec<Sited<String>>) -> Network {
    // Ports, sockets and addresses are of Codex's own proxy; belljar has one way out, which allows less than any of these.
    for key in [
        "http_port",
        "socks_port",
        "dangerously_allow_non_loopback_proxy",
        "dangerously_allow_all_unix_sockets",
        "unix_sockets",
        "allow_unix_sockets",
        "allow_local_binding",
        "review_domains",
        "header_injections",
    ] {
        let value = table.value(key);
        unheeded.extend(value.map(|value| Sited::new(format!("experimental_network.{key}"), value.origin())));
    }
    if let (Some(sockets), Some(_)) = (table.value("unix_sockets"), table.value("allow_unix_sockets")) {
        sockets.fault("unix_sockets cannot be combined with allow_unix_sockets");
    }
    let mut network = Network {
        enabled: table.flag("enabled"),
        allowed: table.list("allowed_domains", host_pattern),
        denied: table.list("denied_domains", host_pattern),
        managed_only: table.flag("managed_allowed_domains_only"),
        upstream: table.flag("allow_upstream_proxy"),
    };
    let old = ["allowed_domains", "denied_domains"]
        .iter()
        .any(|key| table.value(key).is_some());
    let Some(domains) = table.value("domains") else {
        return network;
    };
    if old {
        domains.fault("domains cannot be combined with allowed_domains or denied_domains");
    }
    for (host, value) in domains.table().map(Table::open).unwrap_or_default() {
        if let Err(what) = host_pattern(&host.value) {
            value.fault(what);
        }
        match value.text().as_ref().map(|text| text.value.as_str()) {
            Some("allow") => network.allowed.push(host),
            Some("deny") => network.denied.push(host),
            Some(_) => value.fault("expected \"allow\" or \"deny\""),
            None => {}
        }
    }
    network
}
