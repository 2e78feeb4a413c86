//! A task's way out: what `egress` needs of the journal and the approval desk, and the listener that the guest opened for it.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use belljar_guest::ListenKind;
use futures_util::future::BoxFuture;

use super::RefusedEgress;
use super::driver::StartError;
use crate::approval::{Asked, Desk, Subject};
use crate::audit::journal::{Journal, JournalError};
use crate::audit::query::{self, Filter, Take};
use crate::audit::record::{Entry, Event};
use crate::egress::cache::Store;
use crate::egress::env::{JAVA_STORE, add_trust, proxy_env, proxy_files, trust_files, trust_links};
use crate::egress::host::{Authority, Host};
use crate::egress::secret::Secrets;
use crate::egress::tls::Inspection;
use crate::egress::upstream::UpstreamDialler;
use crate::egress::{
    Asker, Destination, EgressQuestion, End, Gate, Listeners, NetworkRule, OwnAddresses, Parts, Protocol, Proxy,
    ProxyHandle, RecordError, Recorder, Told, threads,
};
use crate::exec::traffic::Traffic;
use crate::id::{ApprovalId, ExecId, TaskId};
use crate::path::SandboxPath;
use crate::policy::amend::{About, Amendment};
use crate::policy::rules::Protocol as RuleProtocol;
use crate::policy::{Answer, ApproverKind, Decision, InForce, Policy, RuleMatch};
use crate::sandbox::oci::Sandbox;
use crate::sandbox::plan::{DNS_PORT, HTTP_PROXY_PORT, Made, SOCKS_PORT, What};
use crate::secret::{self, SecretString};
use crate::task::{Network, NetworkMode, SecretPlace, Task};

/// Where the bundle of certificates stands that a sandbox trusts, if its TLS is looked into.
const TRUST_BUNDLE: &str = "/run/belljar/ca-certificates.pem";

/// The same for the task's own authority alone.
const AUTHORITY: &str = "/run/belljar/authority.pem";

/// What all ways out of a process have in common.
#[derive(Debug, Clone, Default)]
pub struct Settings {
    /// Files of certificates that count as roots of trust, beside the machine's.
    pub extra_roots: Vec<PathBuf>,
    /// The proxy that every connection is made through.
    pub upstream: Option<Authority>,
    /// Where tasks that may see stored answers only get them from.
    pub store: Option<Store>,
}

/// What a sandbox has to hold for its way out, and what the proxy then works with.
#[derive(Debug, Default)]
pub struct Inside {
    pub env: BTreeMap<String, String>,
    pub files: Vec<Made>,
    pub inspection: Option<Arc<Inspection>>,
}

/// Destinations that were refused, for the task's summary.
pub type Refused = Arc<Mutex<Vec<RefusedEgress>>>;

/// What the desk needs to record an answer after its time is over.
const DESK_TIME: Duration = Duration::from_secs(10);

/// Different refused destinations that a summary keeps; the journal has them all.
const REFUSED_MAX: usize = 1000;

/// The gate of a task, before anything is started: a pattern that cannot be read must not wait until a host is asked for.
pub fn gate(network: &Network, policy: &Policy) -> Result<Option<Arc<Gate>>, StartError> {
    if network.mode == NetworkMode::None {
        return Ok(None);
    }
    let gate = Gate::new(network, network_rules(policy)?, OwnAddresses::system())?;
    Ok(Some(Arc::new(gate)))
}

/// What files of rules say of destinations, as the gate reads it.
pub fn network_rules(policy: &Policy) -> Result<Vec<NetworkRule>, StartError> {
    let mut rules = Vec::new();
    for rule in policy.network_rules() {
        let host = Host::parse(&rule.host).map_err(|source| StartError::NetworkRule {
            rule: rule.id.clone(),
            source,
        })?;
        let protocol = match rule.protocol {
            RuleProtocol::Http => Protocol::Http,
            RuleProtocol::Https => Protocol::HttpsConnect,
            RuleProtocol::Socks5Tcp => Protocol::Socks5Tcp,
            RuleProtocol::Socks5Udp => Protocol::Socks5Udp,
        };
        rules.push(NetworkRule {
            host,
            port: None,
            protocol,
            decision: rule.decision,
            id: rule.id.clone(),
            file: rule.file.to_string(),
            line: rule.line,
            justification: rule.justification.clone(),
        });
    }
    Ok(rules)
}

/// The variables that lead programs inside to the way out, and make them trust it where it looks into TLS. Secrets have a word in
/// the place of their placeholders, which are made when a task starts.
pub fn env(task: &Task) -> BTreeMap<String, String> {
    let mut env = reaching(task);
    let word = || "(a placeholder)".to_owned();
    env.extend(task.secrets.keys().map(|name| (name.clone(), word())));
    env
}

fn reaching(task: &Task) -> BTreeMap<String, String> {
    let mut env = match task.network.mode {
        NetworkMode::None => BTreeMap::new(),
        NetworkMode::Cached | NetworkMode::Proxy => {
            let at = |port| SocketAddr::from((Ipv4Addr::LOCALHOST, port));
            proxy_env(at(HTTP_PROXY_PORT), Some(at(SOCKS_PORT)))
        }
    };
    if looks_into_tls(task) {
        add_trust(&mut env, &trust_bundle());
    }
    env
}

/// The values of a task's secrets, as they are now, for the journal to take them out of whatever somebody else put them into.
/// One that cannot be read is told by [`prepare`].
pub async fn secret_values(task: &Task) -> Vec<SecretString> {
    if task.secrets.is_empty() {
        return Vec::new();
    }
    let given: Vec<_> = task.secrets.values().cloned().collect();
    let read = move || {
        let sources = given.iter().flat_map(|secret| {
            let session = match &secret.place {
                SecretPlace::Aws { session, .. } => session.as_ref(),
                _ => None,
            };
            [Some(&secret.source), session].into_iter().flatten()
        });
        sources.filter_map(|source| secret::read(source).ok()).collect()
    };
    tokio::task::spawn_blocking(read).await.unwrap_or_default()
}

/// Makes what the inside needs: the key of the task's authority is made here, and is nowhere else; values of secrets are read, for
/// the shape of their placeholders.
pub async fn prepare(task: &Task, settings: &Settings) -> Result<Inside, StartError> {
    let (roots, given) = (settings.extra_roots.clone(), task.secrets.clone());
    let looks = looks_into_tls(task);
    let is_at_once = given.is_empty() && !looks;
    let make = move || {
        let secrets = Secrets::new(&given)?;
        let placeholders = secrets.env();
        let inspection = looks.then(|| Inspection::new(&roots, secrets)).transpose()?;
        Ok::<_, StartError>((inspection, placeholders))
    };
    let (inspection, placeholders) = if is_at_once {
        make()?
    } else {
        let made = tokio::task::spawn_blocking(make).await;
        made.map_err(|error| StartError::Proxy {
            source: std::io::Error::other(error),
        })??
    };
    let mut env = reaching(task);
    env.extend(placeholders);
    let file = |path, content| Made {
        path,
        what: What::File { content, mode: 0o644 },
        users: false,
    };
    let named = |(path, content)| file(inside(path), content);
    let mut files = Vec::new();
    if task.network.mode != NetworkMode::None {
        files.extend(proxy_files().into_iter().map(named));
    }
    if let Some(inspection) = &inspection {
        let bundle = trust_bundle();
        files.extend(trust_files(&bundle).into_iter().map(named));
        files.push(file(bundle, inspection.trust_bundle()));
        files.push(file(inside(AUTHORITY), inspection.authority()));
        files.extend(links(task));
        files.push(Made {
            path: inside(JAVA_STORE),
            what: What::Bytes {
                content: inspection.java_trust_store(),
                mode: 0o644,
            },
            users: false,
        });
    }
    Ok(Inside {
        env,
        files,
        inspection: inspection.map(Arc::new),
    })
}

fn looks_into_tls(task: &Task) -> bool {
    let network = &task.network;
    let rules = !(network.hosts.is_empty() && network.required_hosts.is_empty());
    match network.mode {
        NetworkMode::None => false,
        // Whatever is asked for within TLS is answered here.
        NetworkMode::Cached => true,
        NetworkMode::Proxy => rules || !task.secrets.is_empty(),
    }
}

fn trust_bundle() -> SandboxPath {
    inside(TRUST_BUNDLE)
}

fn inside(path: &str) -> SandboxPath {
    SandboxPath::new(path).expect("it is a path")
}

/// What makes programs trust the way out that read no variable: links in the places of the system's certificates, which lead to
/// files that [`prepare`] makes.
pub fn links(task: &Task) -> Vec<Made> {
    if !looks_into_tls(task) {
        return Vec::new();
    }
    let links = trust_links(&trust_bundle(), &inside(AUTHORITY)).into_iter();
    links
        .map(|(at, target)| Made {
            path: inside(&at),
            what: What::Link { target },
            users: false,
        })
        .collect()
}

/// Opens the way out of a sandbox that was just made.
pub async fn open(
    sandbox: &Arc<Sandbox>,
    gate: Arc<Gate>,
    task: &Task,
    journal: Journal,
    asker: Arc<ToDesk>,
    refused: Refused,
    (inspection, settings): (Option<Arc<Inspection>>, &Settings),
) -> Result<(ProxyHandle, Arc<Traffic>), StartError> {
    let (http, socks, socks_udp, dns_tcp, dns_udp) = tokio::try_join!(
        sandbox.listen(HTTP_PROXY_PORT, ListenKind::Tcp),
        sandbox.listen(SOCKS_PORT, ListenKind::Tcp),
        sandbox.listen(SOCKS_PORT, ListenKind::Udp),
        sandbox.listen(DNS_PORT, ListenKind::Tcp),
        sandbox.listen(DNS_PORT, ListenKind::Udp),
    )?;
    let listeners = Listeners {
        http: Some(http.into()),
        socks: Some(socks.into()),
        socks_udp: Some(socks_udp.into()),
        dns_tcp: Some(dns_tcp.into()),
        dns_udp: Some(dns_udp.into()),
    };
    let (task, time) = (task.id, task.gate.approval_time);
    let recorder = Arc::new(ToJournal { task, journal, refused });
    let mut parts = Parts::new(gate, recorder, asker);
    // The desk keeps the time, and says so in the record; this is only for a desk that would not answer.
    parts.limits.ask_time = time.saturating_add(DESK_TIME);
    parts.inspection = inspection;
    parts.store = settings.store.clone().map(Arc::new);
    if let Some(proxy) = &settings.upstream {
        parts.dialler = Arc::new(UpstreamDialler::new(proxy.clone()));
    }
    let traffic = Traffic::new(sandbox.clone());
    parts.attribution = traffic.clone();
    let failed = |source| StartError::Proxy { source };
    parts.runtime = threads::next().map_err(failed)?;
    let proxy = Proxy::start(listeners, parts).map_err(failed)?;
    Ok((proxy, traffic))
}

struct ToJournal {
    task: TaskId,
    journal: Journal,
    refused: Refused,
}

impl Recorder for ToJournal {
    fn record(&self, exec: Option<ExecId>, event: Event) -> BoxFuture<'_, Result<(), RecordError>> {
        if let Event::EgressJudged {
            host,
            port,
            decision,
            rule,
            reason,
            ..
        } = &event
            && decision == "deny"
        {
            note(&self.refused, host, *port, rule, reason);
        }
        let entry = self.entry(exec, event);
        Box::pin(async move { self.journal.append(entry).await.map(drop).map_err(lost) })
    }

    fn record_all(&self, events: Vec<End>) -> BoxFuture<'_, Result<(), RecordError>> {
        let entry = |End { exec, event }| self.entry(exec, event);
        let entries = events.into_iter().map(entry).collect();
        Box::pin(async move { self.journal.append_batch(entries).await.map_err(lost) })
    }
}

impl ToJournal {
    fn entry(&self, exec: Option<ExecId>, event: Event) -> Entry {
        Entry {
            task: Some(self.task),
            exec,
            event,
        }
    }
}

fn lost(error: JournalError) -> RecordError {
    RecordError(Box::new(error))
}

fn note(refused: &Refused, host: &str, port: u16, rule: &str, reason: &str) {
    let mut refused = refused.lock().unwrap_or_else(PoisonError::into_inner);
    let known = refused
        .iter_mut()
        .find(|one| one.host == host && one.port == port && one.rule == rule);
    if let Some(one) = known {
        one.count += 1;
    } else if refused.len() < REFUSED_MAX {
        let (host, rule, reason) = (host.to_owned(), rule.to_owned(), reason.to_owned());
        refused.push(RefusedEgress {
            host,
            port,
            rule,
            reason,
            count: 1,
        });
    }
}

/// Puts the questions of a way out to the task's desk.
pub struct ToDesk {
    pub task: TaskId,
    pub desk: Arc<Desk>,
    pub policy: Arc<InForce>,
    pub journal: Journal,
}

impl Asker for ToDesk {
    fn ask(&self, question: EgressQuestion) -> BoxFuture<'static, Told> {
        let EgressQuestion {
            destination,
            rule,
            reason,
            exec,
        } = question;
        let Destination {
            host,
            port,
            protocol,
            method,
        } = destination;
        let (host, word) = (host.to_string(), protocol.as_str());
        let about = match protocol {
            Protocol::Dns => format!("looking up {host}"),
            _ => format!("network access to {host}:{port} ({word})"),
        };
        // A rule that wants to be asked may want a person.
        let policy = self.policy.now();
        let rules = policy.network_rules().iter().filter(|found| found.id == rule);
        let rules: Vec<RuleMatch> = rules.map(matched).collect();
        let mut facts = vec![("rule".to_owned(), rule)];
        facts.extend(method.map(|method| ("method".to_owned(), method)));
        let mut asked = Asked {
            id: ApprovalId::new(),
            task: self.task,
            exec,
            about,
            facts,
            reason,
            rules,
            files: Vec::new(),
            digest: self.desk.digest_of_host(&host, port, word),
            offer: rule_protocol(protocol).map(|protocol| Amendment {
                about: About::Host {
                    host: host.clone(),
                    protocol,
                },
                decision: Decision::Allow,
                justification: None,
            }),
            subject: Subject::Host {
                host,
                port,
                protocol: word.to_owned(),
            },
        };
        let (desk, journal) = (self.desk.clone(), self.journal.clone());
        Box::pin(async move {
            if let Some(exec) = exec
                && let Some(command) = command_of(journal, exec).await
            {
                asked.facts.push(("wanted by".to_owned(), command));
            }
            match desk.put(asked).await {
                Ok((answer, approver)) => Told {
                    answer,
                    // What a grant stands for is the desk's to remember.
                    by_somebody: matches!(approver.kind, ApproverKind::Person | ApproverKind::Harness),
                },
                Err(error) => Told {
                    answer: Answer::Deny(format!("the question could not be recorded: {error}")),
                    by_somebody: false,
                },
            }
        })
    }
}

/// The command of an exec, as the journal has it: it stood there before it was started.
async fn command_of(journal: Journal, exec: ExecId) -> Option<String> {
    let filter = Filter {
        exec: Some(exec),
        kinds: vec!["exec.started".to_owned()],
        ..Filter::default()
    };
    let read = move || query::ls(&journal.reader().ok()?, &filter, Take::Oldest(1)).ok();
    let found = tokio::task::spawn_blocking(read).await.ok()??;
    Some(query::command_line(&found.first()?.value()))
}

fn matched(rule: &crate::policy::NetworkRule) -> RuleMatch {
    RuleMatch {
        id: rule.id.clone(),
        file: rule.file.to_string(),
        line: rule.line,
        decision: rule.decision,
        justification: rule.justification.clone(),
        person_only: rule.person_only,
    }
}

/// The word that a rule for hosts has for a protocol; a name alone cannot be allowed by a rule.
fn rule_protocol(protocol: Protocol) -> Option<RuleProtocol> {
    match protocol {
        Protocol::Http => Some(RuleProtocol::Http),
        Protocol::HttpsConnect => Some(RuleProtocol::Https),
        Protocol::Socks5Tcp => Some(RuleProtocol::Socks5Tcp),
        Protocol::Socks5Udp => Some(RuleProtocol::Socks5Udp),
        Protocol::Dns => None,
    }
}
