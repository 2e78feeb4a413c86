//! MAY it ask that: methods and paths of requests, for hosts that are allowed for some requests only.
//!
//! A host with rules denies what none of them allows. Rules of the requirements hold beside those of the task: what the task allows
//! must be allowed by each file of them that speaks of the host. Plain functions; whoever sees a request (the HTTP front, and
//! [`super::tls`] within a tunnel) asks through [`super::gate::Gate`].

use super::gate::Destination;
use super::host::Host;
use super::path::{PathPattern, percent_decoded};
use super::pattern::{List, Pattern, PatternError};
use super::secret::credential::hyphenated;
use crate::task::{HostRule, Methods, Network};

/// Headers by which servers take another method or path than the request line has (Rails, Symfony, IIS, Google's APIs).
const OVERRIDES: [&str; 6] = [
    "x-http-method-override",
    "x-http-method",
    "x-method-override",
    "x-original-url",
    "x-rewrite-url",
    "x-original-uri",
];

/// Parameters by which they do the same (Rails, Symfony, Salesforce, Google's APIs).
const OVERRIDE_PARAMETERS: [&str; 4] = ["_method", "_httpmethod", "$httpmethod", "x-http-method-override"];

/// All rules about requests of one task.
#[derive(Debug, Default)]
pub(super) struct RequestRules {
    task: Vec<Rule>,
    required: Vec<Vec<Rule>>,
}

#[derive(Debug)]
struct Rule {
    id: String,
    patterns: Vec<Pattern>,
    methods: Methods,
    paths: Vec<PathPattern>,
}

/// A request as far as rules look at it.
#[derive(Debug, Clone, Copy)]
pub(super) struct Asked<'a> {
    pub method: &'a str,
    /// With its query.
    pub path: &'a str,
    pub headers: &'a hyper::HeaderMap,
}

impl Asked<'_> {
    /// What in a request can have a server do something else than its line says.
    fn override_of_it(&self) -> Option<String> {
        let named = |name: &&hyper::header::HeaderName| OVERRIDES.contains(&hyphenated(name.as_str()).as_str());
        if let Some(name) = self.headers.keys().find(named) {
            return Some(format!("the header {name}"));
        }
        let (_, query) = self.path.split_once('?')?;
        let names = query.split(['&', ';']).filter_map(|one| one.split('=').next());
        let names = names.map(|name| String::from_utf8_lossy(&percent_decoded(name)).to_ascii_lowercase());
        let found = names
            .into_iter()
            .find(|name| OVERRIDE_PARAMETERS.contains(&name.as_str()));
        found.map(|name| format!("the parameter {name}"))
    }
}

/// No: which rule, and why.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Refused {
    pub rule: String,
    pub reason: String,
}

impl RequestRules {
    /// The index counts over the task's own rules.
    pub fn new(network: &Network) -> Result<Self, Vec<(usize, PatternError)>> {
        let mut faults = Vec::new();
        let mut read = |rules: &[HostRule]| -> Vec<Rule> {
            let read = rules
                .iter()
                .enumerate()
                .map(|(index, rule)| Rule::new(rule).map_err(|error| faults.push((index, error))));
            read.filter_map(Result::ok).collect()
        };
        let task = read(&network.hosts);
        let required = network.required_hosts.iter().map(|rules| read(rules)).collect();
        if faults.is_empty() {
            Ok(Self { task, required })
        } else {
            Err(faults)
        }
    }

    /// The rule of the task that opens a host for anything at all.
    pub fn opens(&self, host: &Host, port: u16) -> Option<&str> {
        let rule = self.task.iter().find(|rule| rule.speaks_of(host, port))?;
        Some(&rule.id)
    }

    /// Whether its name may be resolved.
    pub fn opens_on_some_port(&self, host: &Host) -> Option<&str> {
        let speaks = |rule: &&Rule| rule.patterns.iter().any(|pattern| pattern.allows_on_some_port(host));
        self.task.iter().find(speaks).map(|rule| rule.id.as_str())
    }

    /// Whether requests to a host have to be seen to be judged.
    pub fn restrict(&self, host: &Host, port: u16) -> bool {
        self.sets().any(|set| {
            let mut speaking = set.iter().filter(|rule| rule.speaks_of(host, port)).peekable();
            speaking.peek().is_some() && !speaking.any(Rule::is_unrestricted)
        })
    }

    /// The rule that allows a request to a host; none where no rule speaks of it.
    pub fn judge(&self, destination: &Destination, asked: Asked<'_>) -> Result<Option<&str>, Refused> {
        let Destination { host, port, .. } = destination;
        let mut allowed_by = None;
        for set in self.sets() {
            let speaking: Vec<&Rule> = set.iter().filter(|rule| rule.speaks_of(host, *port)).collect();
            let Some(first) = speaking.first() else { continue };
            let Some(rule) = speaking.iter().find(|rule| rule.allows(asked)) else {
                return Err(Refused {
                    rule: first.id.clone(),
                    reason: refusal(&speaking, asked),
                });
            };
            if !rule.is_unrestricted()
                && let Some(what) = asked.override_of_it()
            {
                return Err(Refused {
                    rule: rule.id.clone(),
                    reason: format!("{what} can ask for another method or path than the one that was judged"),
                });
            }
            allowed_by.get_or_insert(rule.id.as_str());
        }
        Ok(allowed_by)
    }

    fn sets(&self) -> impl Iterator<Item = &Vec<Rule>> {
        std::iter::once(&self.task).chain(&self.required)
    }
}

impl Rule {
    fn new(rule: &HostRule) -> Result<Self, PatternError> {
        let texts: Vec<String> = match rule.ports.as_slice() {
            [] => vec![rule.host.clone()],
            ports => ports.iter().map(|port| format!("{}:{port}", rule.host)).collect(),
        };
        let patterns = texts.iter().map(|text| Pattern::parse(text, List::Hosts));
        Ok(Self {
            id: format!("network.hosts {}", rule.host),
            patterns: patterns.collect::<Result<_, _>>()?,
            methods: rule.methods.clone(),
            paths: rule.paths.iter().map(|path| PathPattern::new(path)).collect(),
        })
    }

    fn speaks_of(&self, host: &Host, port: u16) -> bool {
        self.patterns.iter().any(|pattern| pattern.allows(host, port))
    }

    fn is_unrestricted(&self) -> bool {
        self.methods == Methods::All && self.paths.is_empty()
    }

    fn allows(&self, asked: Asked<'_>) -> bool {
        self.methods.allow(asked.method) && self.allows_path(asked.path)
    }

    fn allows_path(&self, path: &str) -> bool {
        self.paths.is_empty() || self.paths.iter().any(|own| own.matches(path))
    }
}

fn refusal(speaking: &[&Rule], asked: Asked<'_>) -> String {
    let path = super::path::shown(asked.path);
    if speaking.iter().any(|rule| rule.allows_path(asked.path)) {
        format!("{} is not among the methods that are allowed here", asked.method)
    } else if super::path::is_unambiguous(asked.path) {
        format!("{path} is not among the paths that are allowed here")
    } else {
        format!("{path} can be read as more than one path, so no rule about paths allows it")
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::egress::gate::Protocol;
    use hyper::HeaderMap;

    fn rule(host: &str, methods: Methods, paths: &[&str]) -> HostRule {
        HostRule {
            host: host.to_owned(),
            ports: Vec::new(),
            methods,
            paths: paths.iter().map(|&path| path.to_owned()).collect(),
        }
    }

    fn ask(rules: &RequestRules, host: &str, method: &str, path: &str) -> Result<Option<String>, String> {
        let destination = Destination {
            host: Host::parse(host).unwrap(),
            port: 443,
            protocol: Protocol::HttpsConnect,
            method: None,
        };
        let asked = Asked {
            method,
            path,
            headers: &HeaderMap::new(),
        };
        let judged = rules.judge(&destination, asked);
        judged
            .map(|rule| rule.map(str::to_owned))
            .map_err(|refused| refused.reason)
    }

    #[test]
    fn a_host_with_rules_denies_what_none_of_them_allows() {
        let only = |methods: &[&str]| Methods::Only(methods.iter().map(|&method| method.to_owned()).collect());
        let rules = RequestRules::new(&Network {
            hosts: vec![
                rule("api.example.com", Methods::ReadOnly, &["/v1/"]),
                rule("api.example.com", only(&["POST"]), &["/v1/issues"]),
                rule("open.example.com", Methods::All, &[]),
            ],
            ..Network::default()
        })
        .unwrap();
        for (method, path) in [
            ("GET", "/v1/a"),
            ("HEAD", "/v1/a"),
            ("OPTIONS", "/v1/"),
            ("POST", "/v1/issues/1"),
        ] {
            assert!(ask(&rules, "api.example.com", method, path).is_ok(), "{method} {path}");
        }
        for (method, path) in [
            ("POST", "/v1/a"),
            ("DELETE", "/v1/issues"),
            ("GET", "/v2/a"),
            ("get", "/v1/a"),
            ("GET", "/v1/../v2"),
            ("GET", "/v1/%2e%2e/v2"),
            ("PRI", "/v1/a"),
        ] {
            assert!(ask(&rules, "api.example.com", method, path).is_err(), "{method} {path}");
        }
        assert_eq!(
            ask(&rules, "open.example.com", "DELETE", "/x/../y").unwrap().as_deref(),
            Some("network.hosts open.example.com")
        );
        assert_eq!(ask(&rules, "other.example.com", "DELETE", "/").unwrap(), None);
        let host = |name| Host::parse(name).unwrap();
        assert!(rules.restrict(&host("api.example.com"), 443) && !rules.restrict(&host("api.example.com"), 22));
        assert!(
            !rules.restrict(&host("open.example.com"), 443),
            "nothing has to be seen of it"
        );
    }

    #[test]
    fn requirements_hold_beside_the_rules_of_the_task() {
        let rules = RequestRules::new(&Network {
            hosts: vec![rule("api.example.com", Methods::All, &["/v1/"])],
            required_hosts: vec![vec![rule("*", Methods::ReadOnly, &[])]],
            ..Network::default()
        })
        .unwrap();
        assert!(ask(&rules, "api.example.com", "GET", "/v1/a").is_ok());
        assert!(ask(&rules, "api.example.com", "POST", "/v1/a").is_err());
        assert!(ask(&rules, "other.example.com", "POST", "/").is_err());
        let named = Host::parse("other.example.com").unwrap();
        assert!(rules.restrict(&named, 443));
        assert_eq!(rules.opens(&named, 443), None, "a demand opens nothing");
    }

    #[test]
    fn a_header_cannot_ask_for_another_method_or_path() {
        let rules = RequestRules::new(&Network {
            hosts: vec![rule("api.example.com", Methods::ReadOnly, &[])],
            ..Network::default()
        })
        .unwrap();
        let destination = Destination {
            host: Host::parse("api.example.com").unwrap(),
            port: 443,
            protocol: Protocol::HttpsConnect,
            method: None,
        };
        // Many programs behind a server see no difference between the two signs (RFC 3875, 4.1.18).
        for name in OVERRIDES
            .into_iter()
            .chain(["x_http_method_override", "x-original_url"])
        {
            let mut headers = HeaderMap::new();
            headers.insert(name, hyper::header::HeaderValue::from_static("DELETE"));
            let asked = Asked {
                method: "GET",
                path: "/",
                headers: &headers,
            };
            assert!(rules.judge(&destination, asked).is_err(), "{name}");
        }
        for (path, passes) in [
            ("/?_method=DELETE", false),
            ("/?a=b&_Method=put", false),
            ("/?a=b;_HttpMethod=PATCH", false),
            ("/?%5Fmethod=DELETE", false),
            ("/?%24httpMethod=DELETE", false),
            ("/?q=_method", true),
            ("/_method", true),
        ] {
            assert_eq!(ask(&rules, "api.example.com", "GET", path).is_ok(), passes, "{path}");
        }
    }
}
