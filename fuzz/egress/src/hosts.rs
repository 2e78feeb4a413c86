//! Hosts and patterns of any spelling: one spelling comes out, and the local ones are never let out.
#![no_main]

use belljar::egress::address::{Reach, reach};
use belljar::egress::gate::{Cleared, EgressJudgement};
use belljar::egress::host::{Authority, Host};
use belljar::egress::pattern::{List, Pattern};
use belljar::egress::{Destination, Gate, OwnAddresses, Protocol};
use belljar::task::{Network, NetworkMode, Unknown};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|text: &str| {
    let _ = Pattern::parse(text, List::Allow);
    let _ = Pattern::parse(text, List::Deny);
    if let Ok(authority) = Authority::parse(text, Some(443)) {
        assert_eq!(Authority::parse(&authority.to_string(), None).as_ref(), Ok(&authority));
    }
    let Ok(host) = Host::parse(text) else { return };
    let spelled = host.to_string();
    assert_eq!(Host::parse(&spelled).as_ref(), Ok(&host));
    assert!(spelled.bytes().all(|byte| byte.is_ascii_graphic()));

    let network = Network {
        mode: NetworkMode::Proxy,
        allow: vec!["*:*".to_owned()],
        deny: Vec::new(),
        unknown: Unknown::Deny,
        ..Network::default()
    };
    let gate = Gate::new(&network, Vec::new(), OwnAddresses::system()).expect("the pattern is one");
    let destination = Destination {
        host: host.clone(),
        port: 443,
        protocol: Protocol::HttpsConnect,
        method: None,
    };
    if let EgressJudgement::Allow(Cleared::Address(route)) = gate.judge(&destination) {
        for address in route.addresses() {
            assert_eq!(reach(address.ip()), Reach::Public);
        }
    }
});
