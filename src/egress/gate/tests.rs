use std::collections::BTreeMap;

use proptest::prelude::*;
use serde_json::Value;

use super::*;
use crate::egress::host::Authority;
use crate::policy::{Answer, Scope};

fn network(allow: &[&str], deny: &[&str]) -> Network {
    let owned = |list: &[&str]| list.iter().map(|&text| text.to_owned()).collect();
    Network {
        mode: NetworkMode::Proxy,
        allow: owned(allow),
        deny: owned(deny),
        unknown: WhenUnknown::Ask,
        ..Network::default()
    }
}

fn gate(allow: &[&str], deny: &[&str]) -> Gate {
    Gate::new(
        &network(allow, deny),
        Vec::new(),
        OwnAddresses::fixed(&["198.35.26.96", "10.0.0.9"]),
    )
    .unwrap()
}

fn to(host: &str, port: u16) -> Destination {
    Destination {
        host: Host::parse(host).unwrap(),
        port,
        protocol: Protocol::HttpsConnect,
        method: None,
    }
}

fn rule(host: &str, decision: Decision) -> NetworkRule {
    NetworkRule {
        host: Host::parse(host).unwrap(),
        port: None,
        protocol: Protocol::HttpsConnect,
        decision,
        id: format!("rule {host}"),
        file: "agent.rules".to_owned(),
        line: 1,
        justification: None,
    }
}

/// The whole way with fixed answers: `allow`, `ask`, or the kind of the denial.
fn outcome(gate: &Gate, destination: &Destination, answer: &[&str]) -> Result<&'static str, DenialKind> {
    match gate.judge(destination) {
        EgressJudgement::Deny(denial) => Err(denial.kind),
        EgressJudgement::Ask(_) => Ok("ask"),
        EgressJudgement::Allow(Cleared::Address(_)) => Ok("allow"),
        EgressJudgement::Allow(Cleared::Name(clearance)) => {
            let answer: Vec<IpAddr> = answer.iter().map(|text| text.parse().unwrap()).collect();
            gate.judge_addresses(clearance, Ok(answer.into()))
                .map(|_| "allow")
                .map_err(|denial| denial.kind)
        }
    }
}

const PUBLIC: &[&str] = &["93.184.216.34"];

#[test]
fn deny_wins_over_allow_by_name_and_by_address() {
    let gate = gate(&["*"], &["evil.example.com", "1.2.3.4"]);
    assert_eq!(
        outcome(&gate, &to("evil.example.com", 443), PUBLIC),
        Err(DenialKind::Denied)
    );
    assert_eq!(outcome(&gate, &to("1.2.3.4", 443), &[]), Err(DenialKind::Denied));
    assert_eq!(
        outcome(&gate, &to("www.example.com", 443), &["1.2.3.4"]),
        Err(DenialKind::Denied)
    );
    assert_eq!(outcome(&gate, &to("www.example.com", 443), PUBLIC), Ok("allow"));
}

#[test]
fn one_private_address_closes_the_whole_name() {
    let gate = gate(&["*"], &[]);
    let www = to("www.example.com", 443);
    for address in [
        "127.0.0.1",
        "10.1.2.3",
        "169.254.169.254",
        "::1",
        "64:ff9b::a00:1",
        "fd00::1",
        "198.35.26.96",
    ] {
        assert_eq!(
            outcome(&gate, &www, &["93.184.216.34", address]),
            Err(DenialKind::Local),
            "{address}"
        );
    }
    assert_eq!(outcome(&gate, &www, &[]), Err(DenialKind::Unresolved));
}

#[test]
fn a_literal_private_address_opens_only_if_it_is_named_and_is_not_the_host() {
    let gate = gate(
        &["*", "10.0.0.1", "10.0.0.9", "127.0.0.1", "[::1]", "169.254.169.254"],
        &[],
    );
    assert_eq!(outcome(&gate, &to("10.0.0.1", 443), &[]), Ok("allow"));
    assert_eq!(outcome(&gate, &to("10.0.0.1", 22), &[]), Err(DenialKind::Local));
    assert_eq!(outcome(&gate, &to("10.0.0.2", 443), &[]), Err(DenialKind::Local));
    for host in [
        "10.0.0.9",
        "127.0.0.1",
        "::1",
        "169.254.169.254",
        "198.35.26.96",
        "fe80::1%eth0",
    ] {
        assert_eq!(outcome(&gate, &to(host, 443), &[]), Err(DenialKind::Local), "{host}");
    }
}

#[test]
fn local_names_are_refused_before_they_are_resolved() {
    let gate = gate(&["*", "localhost", "metadata.google.internal"], &[]);
    for host in [
        "localhost",
        "foo.localhost",
        "metadata.google.internal",
        "metadata",
        "printer.local",
        "wpad",
        "metadata.goog",
    ] {
        assert_eq!(outcome(&gate, &to(host, 443), PUBLIC), Err(DenialKind::Local), "{host}");
    }
}

#[test]
fn an_unknown_host_is_asked_about_or_denied_but_a_lookup_is_never_asked_about() {
    let mut network = network(&[], &[]);
    let www = to("www.example.com", 443);
    let lookup = Destination {
        protocol: Protocol::Dns,
        port: 0,
        ..www.clone()
    };
    let ask = Gate::new(&network, Vec::new(), OwnAddresses::fixed(&[])).unwrap();
    assert_eq!(outcome(&ask, &www, PUBLIC), Ok("ask"));
    assert_eq!(outcome(&ask, &lookup, PUBLIC), Err(DenialKind::Unknown));
    network.unknown = WhenUnknown::Deny;
    let deny = Gate::new(&network, Vec::new(), OwnAddresses::fixed(&[])).unwrap();
    assert_eq!(outcome(&deny, &www, PUBLIC), Err(DenialKind::Unknown));
    network.mode = NetworkMode::None;
    network.allow = vec!["*".to_owned()];
    let none = Gate::new(&network, Vec::new(), OwnAddresses::fixed(&[])).unwrap();
    assert_eq!(outcome(&none, &www, PUBLIC), Err(DenialKind::Denied));
}

#[test]
fn an_approved_name_is_still_refused_for_a_private_address() {
    let gate = gate(&[], &[]);
    let EgressJudgement::Ask(unknown) = gate.judge(&to("www.example.com", 443)) else {
        panic!("unknown hosts are asked about");
    };
    let Ok(Cleared::Name(clearance)) = unknown.answer(Answer::Approve(Scope::Once)) else {
        panic!("a name is cleared as a name");
    };
    let denial = gate
        .judge_addresses(clearance, Ok(vec![IpAddr::from([10, 0, 0, 1])].into()))
        .unwrap_err();
    assert_eq!(denial.kind, DenialKind::Local);
}

#[test]
fn a_name_is_no_way_around_what_another_name_for_it_is_closed_to() {
    let public = vec![IpAddr::from([93, 184, 216, 34])];
    let by_way_of = |gate: &Gate, aliases: &[&str]| {
        let EgressJudgement::Allow(Cleared::Name(clearance)) = gate.judge(&to("www.example.com", 443)) else {
            panic!("it is allowed");
        };
        let aliases = aliases.iter().map(|alias| match Host::parse(alias) {
            Ok(Host::Name(name)) => name,
            other => panic!("{other:?}"),
        });
        let aliases = aliases.collect();
        let addresses = public.clone();
        gate.judge_addresses(clearance, Ok(Resolved { addresses, aliases }))
    };
    let mut closed = Gate::new(
        &network(&["www.example.com"], &["pastebin.com"]),
        vec![rule("evil.example.org", Decision::Forbidden)],
        OwnAddresses::fixed(&["203.0.113.7"]),
    )
    .unwrap();
    for (aliases, rule, reason) in [
        (
            &["edge.example.net", "pastebin.com"][..],
            "network.deny pastebin.com",
            "www.example.com is another name for pastebin.com: the deny list has pastebin.com",
        ),
        (
            &["evil.example.org"],
            "rule evil.example.org",
            "www.example.com is another name for evil.example.org: ",
        ),
        (
            &["metadata.google.internal"],
            "local",
            "www.example.com is another name for metadata.google.internal: names at or below internal are local to the host",
        ),
        (&["intranet"], "local", "www.example.com is another name for intranet: "),
    ] {
        let denial = by_way_of(&closed, aliases).unwrap_err();
        assert_eq!(denial.rule, rule);
        assert!(denial.reason.starts_with(reason), "{}", denial.reason);
    }
    // What no list speaks of is how most names come to their addresses.
    let route = by_way_of(&closed, &["edge.example.net", "e1.cdn.example.org"]).unwrap();
    assert_eq!(closed.rejudge(&route), Ok(()));
    closed = gate(&["www.example.com"], &["**.cdn.example.org"]);
    assert_eq!(
        closed.rejudge(&route).unwrap_err().rule,
        "network.deny **.cdn.example.org"
    );
}

#[test]
fn without_an_answer_there_is_no_way() {
    let gate = gate(&["www.example.com"], &[]);
    for error in [
        ResolveError::NotFound,
        ResolveError::ServerFailed,
        ResolveError::NoServers,
        ResolveError::TimedOut,
    ] {
        let EgressJudgement::Allow(Cleared::Name(clearance)) = gate.judge(&to("www.example.com", 443)) else {
            panic!("it is allowed");
        };
        let reason = format!("www.example.com: {error}");
        let denial = gate.judge_addresses(clearance, Err(error)).unwrap_err();
        assert_eq!((denial.kind, denial.reason), (DenialKind::Unresolved, reason));
    }
    assert_eq!(
        outcome(&gate, &to("www.example.com", 443), &[]),
        Err(DenialKind::Unresolved),
        "an answer without addresses is none"
    );
}

#[test]
fn the_strictest_rule_wins_and_the_deny_list_over_all() {
    let rules = vec![
        rule("a.example.com", Decision::Allow),
        rule("b.example.com", Decision::Allow),
        rule("b.example.com", Decision::Prompt),
        rule("c.example.com", Decision::Prompt),
        rule("c.example.com", Decision::Forbidden),
        rule("d.example.com", Decision::Allow),
    ];
    let gate = Gate::new(
        &network(&["c.example.com"], &["d.example.com"]),
        rules,
        OwnAddresses::fixed(&[]),
    )
    .unwrap();
    for (host, expected) in [
        ("a.example.com", Ok("allow")),
        ("b.example.com", Ok("ask")),
        ("c.example.com", Err(DenialKind::Denied)),
        ("d.example.com", Err(DenialKind::Denied)),
    ] {
        assert_eq!(outcome(&gate, &to(host, 443), PUBLIC), expected, "{host}");
    }
    let plain = Destination {
        protocol: Protocol::Http,
        ..to("a.example.com", 80)
    };
    assert_eq!(
        outcome(&gate, &plain, PUBLIC),
        Ok("ask"),
        "a rule holds for its protocol only"
    );
}

#[test]
fn a_name_may_be_resolved_if_something_may_be_done_with_it() {
    let gate = gate(&["ssh.example.com:22"], &["www.example.com:25", "mail.example.com"]);
    let lookup = |host| Destination {
        protocol: Protocol::Dns,
        ..to(host, 0)
    };
    assert_eq!(outcome(&gate, &lookup("ssh.example.com"), PUBLIC), Ok("allow"));
    assert_eq!(
        outcome(&gate, &lookup("mail.example.com"), PUBLIC),
        Err(DenialKind::Denied)
    );
    assert_eq!(
        outcome(&gate, &lookup("www.example.com"), PUBLIC),
        Err(DenialKind::Unknown)
    );
}

#[test]
fn a_changed_policy_ends_what_it_forbids_and_keeps_what_was_approved() {
    let before = gate(&["www.example.com", "10.0.0.1"], &[]);
    let route = |gate: &Gate, host: &str, approve: bool| -> Route {
        let cleared = match gate.judge(&to(host, 443)) {
            EgressJudgement::Allow(cleared) => cleared,
            EgressJudgement::Ask(unknown) if approve => unknown.answer(Answer::Approve(Scope::Task)).unwrap(),
            other => panic!("{other:?}"),
        };
        match cleared {
            Cleared::Address(route) => route,
            Cleared::Name(clearance) => gate
                .judge_addresses(clearance, Ok(vec![IpAddr::from([93, 184, 216, 34])].into()))
                .unwrap(),
        }
    };
    let listed = route(&before, "www.example.com", false);
    let approved = route(&before, "api.example.com", true);
    let literal = route(&before, "10.0.0.1", false);
    for route in [&listed, &approved, &literal] {
        assert_eq!(before.rejudge(route), Ok(()));
    }
    let after = gate(&[], &["93.184.216.0"]);
    assert_eq!(after.rejudge(&listed).unwrap_err().kind, DenialKind::Unknown);
    assert_eq!(after.rejudge(&approved), Ok(()));
    assert_eq!(after.rejudge(&literal).unwrap_err().kind, DenialKind::Local);
    let by_address = gate(&["*"], &["93.184.216.34"]);
    assert_eq!(by_address.rejudge(&listed).unwrap_err().kind, DenialKind::Denied);
}

#[test]
fn datagrams_are_let_out_by_a_rule_alone() {
    let datagram = |host| Destination {
        protocol: Protocol::Socks5Udp,
        ..to(host, 443)
    };
    let rule = NetworkRule {
        protocol: Protocol::Socks5Udp,
        ..rule("dns.example.com", Decision::Allow)
    };
    let gate = Gate::new(&network(&["*"], &[]), vec![rule], OwnAddresses::fixed(&[])).unwrap();
    assert_eq!(outcome(&gate, &datagram("dns.example.com"), PUBLIC), Ok("allow"));
    assert_eq!(outcome(&gate, &datagram("www.example.com"), PUBLIC), Ok("ask"));
}

#[test]
fn all_faults_of_the_lists_are_told_at_once() {
    let faulty = network(&["ok.example.com", "a*b.com", ""], &["*"]);
    let error = Gate::new(&faulty, Vec::new(), OwnAddresses::fixed(&[])).unwrap_err();
    let places: Vec<_> = error.0.iter().map(|fault| (fault.list.key(), fault.index)).collect();
    assert_eq!(
        places,
        [("network.allow", 1), ("network.allow", 2), ("network.deny", 0)]
    );
    assert!(
        error
            .to_string()
            .starts_with("the network lists have 3 faults: network.allow[1] \"a*b.com\"")
    );
}

#[test]
fn a_denial_is_told_in_one_shape() {
    let EgressJudgement::Deny(denial) = gate(&[], &["evil.example.com"]).judge(&to("evil.example.com", 443)) else {
        panic!("the deny list holds");
    };
    insta::assert_json_snapshot!(denial, @r#"
    {
      "decision": "deny",
      "rule": "network.deny evil.example.com",
      "reason": "the deny list has evil.example.com",
      "host": "evil.example.com",
      "port": 443,
      "how_to_ask": "this cannot be approved from here; whoever owns the task's policy can change it"
    }
    "#);
}

proptest! {
    #[test]
    fn a_deny_pattern_never_widens(host in "([a-c]{1,2}\\.){1,3}com|10\\.0\\.0\\.[0-3]|8\\.8\\.8\\.[0-3]", port in prop::sample::select(vec![22u16, 80, 443]),
                                   deny in "(\\*\\.|\\*\\*\\.)?([a-c]{1,2}\\.){1,2}com|8\\.8\\.8\\.[0-3]") {
        let allow = ["*", "10.0.0.1", "a.com:22"];
        let without = outcome(&gate(&allow, &[]), &to(&host, port), PUBLIC);
        let with = outcome(&gate(&allow, &[&deny]), &to(&host, port), PUBLIC);
        prop_assert!(with == without || with == Err(DenialKind::Denied));
    }
}

/// Where belljar is stricter than the program that a case was taken from, and why.
fn stricter(id: &str) -> Option<&'static str> {
    Some(match id {
        "dom-0191" => "an address with a zone id is on a link of the host: never dialled",
        "dom-0028" => "two dots at the end are an empty label",
        "dom-0046" | "dom-0073" => "a star within a name is refused when the list is read",
        "dom-0181" => "localhost is the host itself, even if it is listed",
        "dom-0187" | "dom-0189" => {
            "an IPv6 address without brackets is refused when the list is read: its end looks like a port"
        }
        "dom-0262" => "the deny list wins; an approval stands for a miss in the allow list only",
        "dom-0306" => "an empty label is no name",
        "dom-0313" => "a label has at most 63 signs",
        "dom-0318" | "dom-0319" => "a name that ends in a number is read as an address here and there",
        "dom-0273" | "dom-0275" | "dom-0276" | "dom-0280" | "dom-0320" | "dom-0326" => {
            "an address in an odd form is named in the message and refused"
        }
        "dom-0363" => "an empty label is no name",
        "dom-0424" | "dom-0425" | "dom-0443" => "a pattern has no scheme",
        _ => return None,
    })
}

/// Where two of the sources contradict each other about how a pattern may be written, and which one is followed. The
/// patterns mean the same hosts as their plain spelling, so no more is let out.
fn other_source_followed(id: &str) -> Option<&'static str> {
    Some(match id {
        "dom-0365" => "dom-0001 accepts a trailing dot",
        "dom-0367" => "dom-0010 gives ** a meaning",
        _ => return None,
    })
}

struct Case(Value);

impl Case {
    fn text(&self, key: &str) -> &str {
        self.0[key].as_str().unwrap_or_else(|| panic!("{key} of {}", self.0))
    }

    fn list(&self, key: &str) -> Vec<&str> {
        self.0[key]
            .as_array()
            .unwrap()
            .iter()
            .map(|text| text.as_str().unwrap())
            .collect()
    }

    fn wanted(&self, key: &str) -> bool {
        let hardened = self.0["hardened_expected"].get(key);
        hardened
            .unwrap_or(&self.0["expected"][key])
            .as_bool()
            .unwrap_or_else(|| panic!("{key} of {}", self.0))
    }
}

fn matches(patterns: &[&str], host: &str, port: u16) -> bool {
    let Ok(host) = Host::parse(host) else { return false };
    patterns
        .iter()
        .any(|text| Pattern::parse(text, List::Allow).is_ok_and(|pattern| pattern.allows(&host, port)))
}

/// What the gate says in the words of the cases.
fn decide(case: &Case, allow: &[&str], deny: &[&str], host: &str) -> &'static str {
    let Ok(gate) = Gate::new(&network(allow, deny), Vec::new(), OwnAddresses::fixed(&[])) else {
        return "not_allowed";
    };
    let Ok(host) = Host::parse(host) else {
        return "not_allowed_local";
    };
    let destination = Destination {
        port: 80,
        ..to(&host.to_string(), 80)
    };
    let answer: Vec<&str> = case.0["dns"]
        .get(host.to_string())
        .and_then(Value::as_array)
        .map_or_else(Vec::new, |list| list.iter().filter_map(Value::as_str).collect());
    match outcome(&gate, &destination, &answer) {
        Ok("allow") => "allowed",
        Ok(_) | Err(DenialKind::Unknown) => "not_allowed",
        Err(DenialKind::Denied) => "denied",
        Err(_) => "not_allowed_local",
    }
}

/// Whether a case comes out as its source has it.
fn agrees(case: &Case) -> bool {
    match case.text("kind") {
        "pattern_match" => matches(&case.list("patterns"), case.text("host"), 443) == case.wanted("match"),
        "pattern_match_port" => {
            let port = u16::try_from(case.0["port"].as_u64().unwrap()).unwrap();
            matches(&[case.text("pattern")], case.text("host"), port) == case.wanted("match")
        }
        kind @ ("pattern_config_valid" | "pattern_invalid") => {
            let list = if case.text("list") == "allow" {
                List::Allow
            } else {
                List::Deny
            };
            let valid = kind == "pattern_config_valid" && case.wanted("valid");
            Pattern::parse(case.text("pattern"), list).is_ok() == valid
        }
        "normalize_host" => {
            let found = Authority::parse(case.text("input"), Some(443)).map(|authority| authority.host.to_string());
            found.ok().as_deref() == case.0["expected"]["host"].as_str()
        }
        "host_validity" => {
            let found = Host::parse(case.text("host"));
            match found {
                Ok(host) => case.wanted("valid") && case.0["expected"]["canonical"].as_str() == Some(&host.to_string()),
                Err(_) => !case.wanted("valid"),
            }
        }
        "parse_host_port" => {
            let found = Authority::parse_lenient(case.text("input"), 3128).unwrap();
            case.0["expected"]["host_port"] == serde_json::json!([found.host.to_string(), found.port])
        }
        "host_decision" => {
            let decision = decide(case, &case.list("allow"), &case.list("deny"), case.text("host"));
            let wanted = case.0["expected"]["decision"].as_str().unwrap();
            // A host that cannot be read is refused with another reason here.
            decision == wanted || (Host::parse(case.text("host")).is_err() && wanted != "allowed")
        }
        "runtime_edit" => {
            let mut lists: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
            for list in ["allow", "deny"] {
                let start = case.0["start"][list].as_array().unwrap();
                let added = case.0["edit"].get(format!("add_{list}")).and_then(Value::as_str);
                let all = start.iter().filter_map(Value::as_str).chain(added);
                lists.insert(list, all.collect());
            }
            decide(
                case,
                &lists["allow"],
                &lists["deny"],
                case.0["expected"]["host"].as_str().unwrap(),
            ) == case.0["expected"]["decision"]
        }
        "ip_alias" => {
            let canonical = case.0["expected"]["canonical_ip"].as_str().unwrap();
            let found = match Host::parse(case.text("host")) {
                Ok(host) => host.to_string(),
                Err(error) => error.canonical().unwrap_or_default(),
            };
            found == canonical && decide(case, &["*"], &[], case.text("host")) == "not_allowed_local"
        }
        "is_non_public_ip" => {
            (address::reach(case.text("ip").parse().unwrap()) != Reach::Public) == case.wanted("non_public")
        }
        "is_loopback" => {
            (decide(case, &["*"], &[], case.text("host")) == "not_allowed_local") == case.wanted("loopback")
        }
        "embedded_ipv4" => {
            let found = address::embedded_ipv4(case.text("ip").parse().unwrap()).map(|ip| ip.to_string());
            found.as_deref() == case.0["expected"]["ipv4"].as_str()
        }
        // Judged by the front of the proxy: see `front::http`.
        "host_header" => {
            let target = Authority::parse_lenient(case.text("target"), 80).unwrap();
            let agreed = Authority::parse(case.text("host_header"), Some(80)).is_ok_and(|host| host == target);
            agreed == case.wanted("accept")
        }
        "path_authorization" => crate::egress::path::is_unambiguous(case.text("path")) == case.wanted("unambiguous"),
        kind => panic!("{kind} is not a known kind"),
    }
}

#[test]
fn the_cases_come_out_as_expected_or_stricter_for_a_reason() {
    let text = include_str!("../../../tests/data/egress/domains.jsonl");
    let mut wrong = Vec::new();
    for line in text.lines() {
        let case = Case(serde_json::from_str(line).unwrap());
        let id = case.text("id").to_owned();
        let excused = stricter(&id).or_else(|| other_source_followed(&id));
        match (agrees(&case), excused) {
            (true, None) | (false, Some(_)) => {}
            (true, Some(reason)) => wrong.push(format!("{id} agrees, yet is listed: {reason}")),
            (false, None) => wrong.push(line.to_owned()),
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}
