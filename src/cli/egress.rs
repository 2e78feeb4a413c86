//! `belljar egress check`: what the proxy would do with a host, and why. The answers come from the proxy's own gate.

mod batch;

use std::io::Write;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use anyhow::bail;
use serde::Serialize;

use crate::config::Config;
use crate::egress::gate::{Clearance, Cleared, EgressJudgement, Gate, OwnAddresses, Route};
use crate::egress::host::{Authority, Host, HostError};
use crate::egress::resolve::{FixedResolver, ResolveError, Resolved, Resolver, SystemResolver};
use crate::egress::{Denial, Destination, NetworkRule, Protocol};
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
    /// Judge a request of this method as well, for the path of the URL
    #[arg(long, value_name = "METHOD")]
    method: Option<String>,
    /// One JSON object a line
    #[arg(long)]
    json: bool,
    /// Read cases as JSON lines from a file, or - for standard input
    #[arg(long, value_name = "FILE", conflicts_with_all = ["hosts", "allow", "deny", "unknown", "resolve", "method"])]
    batch: Option<PathBuf>,
}

/// A request within what was allowed by its host.
struct RequestLine {
    method: String,
    path: String,
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

/// What judges the destinations of a task.
pub struct WayOut {
    pub network: Network,
    pub rules: Vec<NetworkRule>,
}

/// Runs the command. `way_out_of_spec` reads a task spec and admits it, as `run` would.
pub fn run(
    args: EgressArgs,
    out: &mut dyn Write,
    way_out_of_spec: impl Fn(&Path) -> anyhow::Result<WayOut>,
) -> anyhow::Result<u8> {
    let EgressCommand::Check(args) = args.command;
    match &args.batch {
        Some(file) => batch::check_batch(file, out)?,
        None => check(&args, out, way_out_of_spec)?,
    }
    Ok(0)
}

fn check(
    args: &CheckArgs,
    out: &mut dyn Write,
    way_out_of_spec: impl Fn(&Path) -> anyhow::Result<WayOut>,
) -> anyhow::Result<()> {
    let (spec, hosts) = match args.hosts.split_first() {
        Some((first, rest)) if is_spec(first) => (Some(Path::new(first)), rest),
        _ => (None, args.hosts.as_slice()),
    };
    if hosts.is_empty() {
        bail!("no host to check (as HOST, HOST:PORT or URL)");
    }
    let WayOut { mut network, rules } = match spec {
        Some(spec) => way_out_of_spec(spec)?,
        None => WayOut {
            network: Network {
                mode: NetworkMode::Proxy,
                allow: Vec::new(),
                deny: Vec::new(),
                unknown: Unknown::Deny,
                ..Network::default()
            },
            rules: Vec::new(),
        },
    };
    network.allow.extend(args.allow.iter().cloned());
    network.deny.extend(args.deny.iter().cloned());
    match args.unknown.as_deref() {
        Some("ask") => network.unknown = Unknown::Ask,
        Some(_) => network.unknown = Unknown::Deny,
        None => {}
    }
    let gate = Gate::new(&network, rules, OwnAddresses::system())?;
    let addresses = if args.resolve.is_empty() {
        Addresses::System(SystemResolver::default())
    } else {
        Addresses::Fixed(fixed(&args.resolve)?)
    };
    // One runtime for all: the resolver keeps its connections to name servers in it.
    let findings = wait_for(async {
        let mut findings = Vec::new();
        for host in hosts {
            findings.push(judge(&gate, host, args.method.as_deref(), &addresses).await);
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

async fn judge(gate: &Gate, text: &str, method: Option<&str>, addresses: &Addresses) -> Finding {
    let request = method.map(|method| RequestLine {
        method: method.to_owned(),
        path: path_of(text).to_owned(),
    });
    match Authority::parse_lenient(text, DEFAULT_PORT) {
        Ok(authority) => judge_authority(gate, authority, request, addresses).await,
        Err(error) => unreadable(&error, DEFAULT_PORT),
    }
}

/// The path of a URL with its query, as a request line would have it.
fn path_of(text: &str) -> &str {
    let rest = text.split_once("://").map_or("", |(_, rest)| rest);
    let path = rest.find('/').map_or("/", |at| &rest[at..]);
    path.split('#').next().unwrap_or("/")
}

async fn judge_authority(
    gate: &Gate,
    authority: Authority,
    request: Option<RequestLine>,
    addresses: &Addresses,
) -> Finding {
    let destination = Destination {
        protocol: if authority.port == 80 {
            Protocol::Http
        } else {
            Protocol::HttpsConnect
        },
        host: authority.host,
        port: authority.port,
        method: request.as_ref().map(|request| request.method.clone()),
    };
    let finding = judge_destination(gate, &destination, addresses).await;
    match (finding.decision, request) {
        ("allow", Some(RequestLine { method, path })) => match gate.judge_method(&destination, &method, &path) {
            Ok(()) => finding,
            Err(denial) => Finding::denied(denial),
        },
        _ => finding,
    }
}

async fn judge_destination(gate: &Gate, destination: &Destination, addresses: &Addresses) -> Finding {
    match gate.judge(destination) {
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
    async fn of(&self, clearance: &Clearance) -> Option<Result<Resolved, ResolveError>> {
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

/// Runs a future to its end on a thread of its own: the caller may itself be within a runtime, where blocking is forbidden.
fn wait_for<T: Send>(future: impl Future<Output = T> + Send) -> anyhow::Result<T> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().spawn_scoped(scope, || runtime.block_on(future))?;
        thread.join().map_err(|_| anyhow::anyhow!("the check fell over"))
    })
}

#[cfg(test)]
mod tests;
