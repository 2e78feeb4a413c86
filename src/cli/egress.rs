//! `belljar egress check`: what the proxy would do with a host, and why. The answers come from the proxy's own gate.

use std::collections::BTreeMap;
use std::io::{BufRead, Write};
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::config::Config;
use crate::egress::gate::{Clearance, Cleared, EgressJudgement, Gate, OwnAddresses, Route};
use crate::egress::host::{Authority, Host, HostError};
use crate::egress::resolve::{FixedResolver, ResolveError, Resolver, SystemResolver};
use crate::egress::{Denial, Destination, Protocol};
use crate::supervisor::way_out::Settings;
use crate::task::{Network, NetworkMode, Unknown};

/// The port of a host that names none: most of what an agent wants is https.
const DEFAULT_PORT: u16 = 443;

#[derive(Debug, clap::Args)]
pub struct EgressArgs {
    #[command(subcommand)]
    command: EgressCommand,
}

#[derive(Debug, clap::Subcommand)]
enum EgressCommand {
    /// Say what the proxy would do with a host, and why
    Check(CheckArgs),
}

#[derive(Debug, clap::Args)]
struct CheckArgs {
    /// Hosts as HOST, HOST:PORT or URL; a first one that is a file of TOML is a task spec,
    /// whose network lists hold
    #[arg(value_name = "[SPEC] HOST[:PORT]")]
    hosts: Vec<String>,
    /// Allow hosts of this pattern, beside those of the spec
    #[arg(long, value_name = "PATTERN")]
    allow: Vec<String>,
    /// Deny hosts of this pattern, beside those of the spec
    #[arg(long, value_name = "PATTERN")]
    deny: Vec<String>,
    /// What to do with hosts on no list: ask or deny (default: the spec's, else deny)
    #[arg(long, value_name = "ANSWER", value_parser = ["ask", "deny"])]
    unknown: Option<String>,
    /// Take this address for a name instead of asking; then no name is asked for
    #[arg(long, value_name = "NAME=ADDR")]
    resolve: Vec<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Read cases as JSON lines from a file, or - for standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["hosts", "allow", "deny", "unknown", "resolve"])]
    batch: Option<PathBuf>,
}

/// What is said of one host.
#[derive(Debug, PartialEq, Eq, Serialize)]
struct Finding {
    decision: &'static str,
    rule: String,
    reason: String,
    host: Option<String>,
    port: u16,
    addresses: Vec<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    how_to_ask: Option<String>,
}

/// Where a check gets addresses from.
enum Addresses {
    Fixed(FixedResolver),
    System(SystemResolver),
    /// Only the name is judged.
    Unasked,
}

/// How the ways out of this process reach the world, as the configuration says.
pub fn settings(config: &Config) -> Settings {
    let egress = &config.egress;
    Settings {
        store: Some(super::cache::store(config)),
        extra_roots: egress
            .extra_roots
            .iter()
            .map(|path| PathBuf::from(&path.value))
            .collect(),
        upstream: egress.upstream.as_ref().map(|upstream| {
            let authority = upstream.value.trim_start_matches("http://");
            Authority::parse(authority, None).expect("it was read as one when the configuration was")
        }),
    }
}

/// Runs the command. `network_of_spec` reads a task spec and admits it, as `run` would.
pub fn run(
    args: EgressArgs,
    out: &mut dyn Write,
    network_of_spec: impl Fn(&Path) -> anyhow::Result<Network>,
) -> anyhow::Result<u8> {
    let EgressCommand::Check(args) = args.command;
    match &args.batch {
        Some(file) => check_batch(file, out)?,
        None => check(&args, out, network_of_spec)?,
    }
    Ok(0)
}

fn check(
    args: &CheckArgs,
    out: &mut dyn Write,
    network_of_spec: impl Fn(&Path) -> anyhow::Result<Network>,
) -> anyhow::Result<()> {
    let (spec, hosts) = match args.hosts.split_first() {
        Some((first, rest)) if is_spec(first) => (Some(Path::new(first)), rest),
        _ => (None, args.hosts.as_slice()),
    };
    if hosts.is_empty() {
        bail!("no host to check (as HOST, HOST:PORT or URL)");
    }
    let mut network = match spec {
        Some(spec) => network_of_spec(spec)?,
        None => Network {
            mode: NetworkMode::Proxy,
            allow: Vec::new(),
            deny: Vec::new(),
            unknown: Unknown::Deny,
            ..Network::default()
        },
    };
    network.allow.extend(args.allow.iter().cloned());
    network.deny.extend(args.deny.iter().cloned());
    match args.unknown.as_deref() {
        Some("ask") => network.unknown = Unknown::Ask,
        Some(_) => network.unknown = Unknown::Deny,
        None => {}
    }
    let gate = Gate::new(&network, Vec::new(), OwnAddresses::system())?;
    let addresses = if args.resolve.is_empty() {
        Addresses::System(SystemResolver::default())
    } else {
        Addresses::Fixed(fixed(&args.resolve)?)
    };
    // One runtime for all: the resolver keeps its connections to name servers in it.
    let findings = wait_for(async {
        let mut findings = Vec::new();
        for host in hosts {
            findings.push(judge(&gate, host, &addresses).await);
        }
        findings
    })?;
    for (host, finding) in hosts.iter().zip(findings) {
        if args.json {
            serde_json::to_writer(&mut *out, &finding)?;
            writeln!(out)?;
        } else {
            let host = match finding.host.as_deref().unwrap_or(host) {
                address if address.contains(':') => format!("[{address}]"),
                name => name.to_owned(),
            };
            writeln!(
                out,
                "{:<5} {host}:{}  {}  [{}]",
                finding.decision, finding.port, finding.reason, finding.rule
            )?;
        }
    }
    Ok(())
}

/// Whether an argument is a file and not a host. A file that is not there is told as such by whoever reads it.
fn is_spec(text: &str) -> bool {
    text.ends_with(".toml") || (text.contains('/') && Path::new(text).is_file())
}

/// The answers of `--resolve NAME=ADDR`.
fn fixed(pairs: &[String]) -> anyhow::Result<FixedResolver> {
    let mut resolver = FixedResolver::default();
    let mut faults = Vec::new();
    for pair in pairs {
        let parsed = pair.split_once('=').and_then(|(name, address)| {
            let Ok(Host::Name(name)) = Host::parse(name) else {
                return None;
            };
            Some((name, address.trim_matches(['[', ']']).parse().ok()?))
        });
        match parsed {
            Some((name, address)) => resolver.add(&name, vec![address]),
            None => faults.push(format!("--resolve \"{pair}\" is not NAME=ADDR")),
        }
    }
    if !faults.is_empty() {
        bail!("{}", faults.join("\n"));
    }
    Ok(resolver)
}

async fn judge(gate: &Gate, text: &str, addresses: &Addresses) -> Finding {
    match Authority::parse_lenient(text, DEFAULT_PORT) {
        Ok(authority) => judge_authority(gate, authority, None, addresses).await,
        Err(error) => unreadable(&error, DEFAULT_PORT),
    }
}

async fn judge_authority(gate: &Gate, authority: Authority, method: Option<String>, addresses: &Addresses) -> Finding {
    let destination = Destination {
        protocol: if authority.port == 80 {
            Protocol::Http
        } else {
            Protocol::HttpsConnect
        },
        host: authority.host,
        port: authority.port,
        method,
    };
    match gate.judge(&destination) {
        EgressJudgement::Deny(denial) => Finding::denied(denial),
        EgressJudgement::Ask(unknown) => Finding {
            decision: "ask",
            rule: unknown.rule().to_owned(),
            reason: unknown.reason().to_owned(),
            host: Some(destination.host.to_string()),
            port: destination.port,
            addresses: Vec::new(),
            how_to_ask: None,
        },
        EgressJudgement::Allow(Cleared::Address(route)) => Finding::allowed(&route),
        EgressJudgement::Allow(Cleared::Name(clearance)) => match addresses.of(&clearance).await {
            Some(answer) => match gate.judge_addresses(clearance, answer) {
                Ok(route) => Finding::allowed(&route),
                Err(denial) => Finding::denied(denial),
            },
            None => Finding {
                decision: "allow",
                rule: clearance.rule().to_owned(),
                reason: format!("{}; its addresses are judged when it is resolved", clearance.reason()),
                host: Some(destination.host.to_string()),
                port: destination.port,
                addresses: Vec::new(),
                how_to_ask: None,
            },
        },
    }
}

impl Addresses {
    async fn of(&self, clearance: &Clearance) -> Option<Result<Vec<IpAddr>, ResolveError>> {
        match self {
            Addresses::Fixed(resolver) => Some(resolver.resolve(clearance).await),
            Addresses::System(resolver) => Some(resolver.resolve(clearance).await),
            Addresses::Unasked => None,
        }
    }
}

impl Finding {
    fn allowed(route: &Route) -> Self {
        Self {
            decision: "allow",
            rule: route.rule().to_owned(),
            reason: route.reason().to_owned(),
            host: Some(route.destination().host.to_string()),
            port: route.destination().port,
            addresses: route.addresses().iter().map(|address| address.ip()).collect(),
            how_to_ask: None,
        }
    }

    fn denied(denial: Denial) -> Self {
        Self {
            decision: "deny",
            rule: denial.rule,
            reason: denial.reason,
            host: (!denial.host.is_empty()).then_some(denial.host),
            port: denial.port,
            addresses: Vec::new(),
            how_to_ask: Some(denial.how_to_ask),
        }
    }
}

fn unreadable(error: &HostError, port: u16) -> Finding {
    Finding::denied(Denial::malformed(error.to_string(), error.canonical(), port))
}

/// One line of a batch. Other keys are passed over, so that a case can carry what is expected of it.
#[derive(Debug, Deserialize)]
struct BatchCase {
    #[serde(default)]
    allow: Vec<String>,
    #[serde(default)]
    deny: Vec<String>,
    host: String,
    port: Option<u16>,
    method: Option<String>,
    /// Addresses by name. A name that is not here does not resolve, and neither does one whose answer is no list (such as
    /// `"NXDOMAIN"`). Without the whole key only names are judged.
    dns: Option<BTreeMap<String, Value>>,
    unknown: Option<Unknown>,
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

fn check_batch(file: &Path, out: &mut dyn Write) -> anyhow::Result<()> {
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

/// Runs a future to its end on a thread of its own: the caller may itself be within a runtime, where blocking is forbidden.
fn wait_for<T: Send>(future: impl Future<Output = T> + Send) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || runtime.block_on(future))?;
        thread.join().map_err(|_| anyhow::anyhow!("the check fell over"))
    })
}

async fn judge_case(case: &BatchCase) -> anyhow::Result<Finding> {
    let network = Network {
        mode: NetworkMode::Proxy,
        allow: case.allow.clone(),
        deny: case.deny.clone(),
        unknown: case.unknown.unwrap_or(Unknown::Deny),
        ..Network::default()
    };
    let port = case.port.unwrap_or(DEFAULT_PORT);
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
    let method = case.method.clone();
    // The port stands beside the host here, so a port within it would be a second one; only an equal one is taken.
    Ok(match Authority::parse(&case.host, Some(port)) {
        Ok(authority) if authority.port == port => judge_authority(&gate, authority, method, &addresses).await,
        Ok(authority) => {
            let reason = format!("the host names port {}, the case port {port}", authority.port);
            Finding::denied(Denial::malformed(reason, Some(authority.host.to_string()), port))
        }
        Err(error) => unreadable(&error, port),
    })
}

fn batch_answers(answers: &BTreeMap<String, Value>) -> anyhow::Result<FixedResolver> {
    let mut resolver = FixedResolver::default();
    for (name, answer) in answers {
        let (Ok(Host::Name(name)), Value::Array(list)) = (Host::parse(name), answer) else {
            continue;
        };
        let parse = |address: &Value| {
            let text = address.as_str().unwrap_or_default();
            text.parse::<IpAddr>()
                .with_context(|| format!("dns: {address} is not an address"))
        };
        let addresses = list.iter().map(parse).collect::<anyhow::Result<Vec<_>>>()?;
        resolver.add(&name, addresses);
    }
    Ok(resolver)
}

#[cfg(test)]
mod tests;
