//! `belljar egress check --batch`: cases as lines of JSON, an answer a line.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::net::IpAddr;
use std::path::Path;

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::{Addresses, DEFAULT_PORT, Finding, RequestLine, judge_authority, unreadable, wait_for};
use crate::egress::Denial;
use crate::egress::gate::{Gate, OwnAddresses};
use crate::egress::host::{Authority, DomainName, Host};
use crate::egress::resolve::FixedResolver;
use crate::task::{HostRule, Methods, Network, NetworkMode, Unknown};

/// One line of a batch. Other keys are passed over, so that a case can carry what is expected of it.
#[derive(Debug, Deserialize)]
struct BatchCase {
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    deny: Vec<String>,
    host: String,
    /// A number; anything else is judged as the port that it is not.
    port: Option<Value>,
    method: Option<String>,
    /// Of the request whose method is judged.
    path: Option<String>,
    /// Hosts that are allowed for some requests only, as in a task spec.
    #[serde(default)]
    hosts: Vec<BatchHost>,
    /// Addresses by name. A name that is not here does not resolve, and neither does one whose answer is no list (such as
    /// `"NXDOMAIN"`). Without the whole key only names are judged.
    dns: Option<BTreeMap<String, Value>>,
    unknown: Option<Unknown>,
}

#[derive(Debug, Clone, Deserialize)]
#[serde(deny_unknown_fields)]
struct BatchHost {
    host: String,
    #[serde(default)]
    ports: Vec<u16>,
    #[serde(default)]
    methods: BatchMethods,
    #[serde(default)]
    paths: Vec<String>,
}

/// `all`, `read-only`, or a list.
#[derive(Debug, Clone, Deserialize)]
#[serde(untagged)]
enum BatchMethods {
    Word(MethodsWord),
    Only(Vec<String>),
}

#[derive(Debug, Clone, Copy, Deserialize)]
#[serde(rename_all = "kebab-case")]
enum MethodsWord {
    All,
    ReadOnly,
}

impl Default for BatchMethods {
    fn default() -> Self {
        BatchMethods::Word(MethodsWord::All)
    }
}

impl From<BatchHost> for HostRule {
    fn from(read: BatchHost) -> Self {
        HostRule {
            host: read.host,
            ports: read.ports,
            methods: match read.methods {
                BatchMethods::Word(MethodsWord::All) => Methods::All,
                BatchMethods::Word(MethodsWord::ReadOnly) => Methods::ReadOnly,
                BatchMethods::Only(list) => Methods::Only(list),
            },
            paths: read.paths,
        }
    }
}

#[derive(Debug, Serialize)]
struct BatchAnswer<'a> {
    id: &'a Value,
    decision: &'static str,
    reason: &'a str,
    host: Option<&'a str>,
}

/// The answer to a line that is no case: a no, and why.
#[derive(Debug, Serialize)]
struct BatchFault<'a> {
    #[serde(flatten)]
    answer: BatchAnswer<'a>,
    error: String,
}

pub(super) fn check_batch(file: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
    let input: Box<dyn BufRead> = if file == Path::new("-") {
        Box::new(std::io::stdin().lock())
    } else {
        let file = std::fs::File::open(file).with_context(|| format!("the batch {}", file.display()))?;
        Box::new(std::io::BufReader::new(file))
    };
    let mut faults = 0;
    for (number, line) in input.split(b'\n').enumerate() {
        let line = line?;
        if line.trim_ascii().is_empty() {
            continue;
        }
        let read: Result<Value, _> = serde_json::from_slice(&line);
        let id = read.as_ref().map_or(Value::Null, |case| case["id"].clone());
        let judged = read.map_err(anyhow::Error::new).and_then(|case| {
            if id.is_null() {
                bail!("the case has no id");
            }
            wait_for(judge_case(&BatchCase::deserialize(case)?))?
        });
        match judged {
            Ok(finding) => serde_json::to_writer(
                &mut *out,
                &BatchAnswer {
                    id: &id,
                    decision: finding.decision,
                    reason: &finding.reason,
                    host: finding.host.as_deref(),
                },
            )?,
            Err(error) => {
                faults += 1;
                let answer = BatchAnswer {
                    id: &id,
                    decision: "deny",
                    reason: "the case cannot be read",
                    host: None,
                };
                let error = format!("{}:{}: {error:#}", file.display(), number + 1);
                serde_json::to_writer(&mut *out, &BatchFault { answer, error })?;
            }
        }
        writeln!(out)?;
    }
    match faults {
        0 => Ok(()),
        1 => bail!("one line of {} is no case", file.display()),
        _ => bail!("{faults} lines of {} are no cases", file.display()),
    }
}

async fn judge_case(case: &BatchCase) -> anyhow::Result<Finding> {
    let network = Network {
        mode: NetworkMode::Proxy,
        allow: case.allow.clone(),
        deny: case.deny.clone(),
        unknown: case.unknown.unwrap_or(Unknown::Deny),
        hosts: case.hosts.iter().cloned().map(HostRule::from).collect(),
        ..Network::default()
    };
    let port = match port_of(case) {
        Ok(port) => port,
        Err(reason) => {
            let host = Host::parse(&case.host).ok().map(|host| host.to_string());
            return Ok(Finding::denied(Denial::malformed(reason, host, 0)));
        }
    };
    let gate = match Gate::new(&network, Vec::new(), OwnAddresses::system()) {
        Ok(gate) => gate,
        // A task with such lists is refused as a whole.
        Err(error) => {
            let host = Host::parse(&case.host).ok().map(|host| host.to_string());
            return Ok(Finding::denied(Denial::malformed(error.to_string(), host, port)));
        }
    };
    let addresses = match &case.dns {
        Some(answers) => Addresses::Fixed(batch_answers(answers)?),
        None => Addresses::Unasked,
    };
    let request = case.method.as_ref().map(|method| RequestLine {
        method: method.clone(),
        path: case.path.clone().unwrap_or_else(|| "/".to_owned()),
    });
    // The port stands beside the host here, so a port within it would be a second one; only an equal one is taken.
    Ok(match Authority::parse(&case.host, Some(port)) {
        Ok(authority) if authority.port == port => judge_authority(&gate, authority, request, &addresses).await,
        Ok(authority) => {
            let reason = format!("the host names port {}, the case port {port}", authority.port);
            Finding::denied(Denial::malformed(reason, Some(authority.host.to_string()), port))
        }
        Err(error) => unreadable(&error, port),
    })
}

fn port_of(case: &BatchCase) -> Result<u16, String> {
    let Some(port) = &case.port else {
        return Ok(DEFAULT_PORT);
    };
    let read = port.as_u64().and_then(|port| u16::try_from(port).ok());
    read.filter(|port| *port != 0)
        .ok_or_else(|| format!("{port} is not a port (1 to 65535)"))
}

/// Names that an answer may lead through before it comes to addresses.
const ALIASES_MAX: usize = 8;

fn batch_answers(answers: &BTreeMap<String, Value>) -> anyhow::Result<FixedResolver> {
    let mut named = BTreeMap::new();
    for (name, answer) in answers {
        if let (Ok(Host::Name(name)), Value::Array(list)) = (Host::parse(name), answer) {
            let text = |value: &Value| {
                let text = value.as_str().map(str::to_owned);
                text.with_context(|| format!("dns: {value} is neither an address nor a name"))
            };
            named.insert(name, list.iter().map(text).collect::<anyhow::Result<Vec<_>>>()?);
        }
    }
    let mut resolver = FixedResolver::default();
    for name in named.keys() {
        resolver.add(name, addresses_of(&named, name, ALIASES_MAX)?);
    }
    Ok(resolver)
}

/// What a name comes to; an answer may be the name of another one (CNAME).
fn addresses_of(
    named: &BTreeMap<DomainName, Vec<String>>,
    name: &DomainName,
    left: usize,
) -> anyhow::Result<Vec<IpAddr>> {
    let mut addresses = Vec::new();
    for text in named.get(name).into_iter().flatten() {
        match (text.parse::<IpAddr>(), Host::parse(text)) {
            (Ok(address), _) => addresses.push(address),
            (Err(_), Ok(Host::Name(alias))) if left > 0 => addresses.extend(addresses_of(named, &alias, left - 1)?),
            // A chain without an end comes to nothing.
            (Err(_), Ok(Host::Name(_))) => {}
            (Err(_), _) => bail!("dns: {text:?} is neither an address nor a name"),
        }
    }
    Ok(addresses)
}
