//! Who may set what. Layers of configuration become one [`Config`] that knows where each value came from; [`admit`] puts a
//! task spec on top and makes the [`Task`](crate::task::Task), the one way to get one.
//!
//! ```text
//! built in < /etc/belljar/config.toml < the user's < the project's (if trusted) < the task spec < flags
//!                                                                                              |
//!            /etc/belljar/requirements.toml, requirements.d/*.toml ── hold all of it: refused, never clamped
//! ```
//!
//! Beside each `config.toml` files of rules may lie, `rules/*.rules`: they hold for every task of that layer. The nearest
//! `.belljar` at or above the task's folder is the project's.
//!
//! Requirements may also come signed from a URL, see [`bundle`]; who asks is [`identity`]'s to say.
//!
//! Called by the command line and the API before anything is bound, created or started. Plain reading of files; loading rules
//! and images is left to `policy` and `image`.

mod admit;
mod approvals;
pub mod bundle;
mod codex;
pub mod identity;
mod layers;
mod requirements;
pub mod schema;
mod show;

use std::collections::BTreeMap;
use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::approval::reviewer;
use crate::audit::otlp::{Compression, OtlpConfig, Protocol, Signal};
use crate::document::{Fault, Faults, Origin, Sited, Word};
use crate::egress::host::Authority;
use crate::policy::{Digest, Scope};
use crate::sys::user::myself;
use crate::task::limits::Bytes;
use crate::task::spec::TaskSpec;
use crate::task::{Login, SecretSource};
use requirements::ConfigAsked;

pub use approvals::Approvals;

pub use admit::{Caller, Rejection, admit};
pub use requirements::{BundleSeen, Requirements};
pub use show::Setting;

/// Fixed: if a variable or flag moved it, requirements would be a wish. Tests that need another one mount it.
const ETC: &str = "/etc/belljar";

/// All layers as one.
#[derive(Debug, Clone)]
pub struct Config {
    /// What a task spec leaves open.
    pub task: TaskSpec,
    pub trusted_folders: Vec<Sited<String>>,
    pub journal: Journal,
    pub egress: Egress,
    pub otlp: Vec<Otlp>,
    /// Where the token is that says who asks.
    pub token: Option<Sited<SecretSource>>,
    /// Who reviews where a task says `auto_review`.
    pub reviewer: Option<Sited<reviewer::Settings>>,
    pub approvals: Approvals,
    /// Where belljar keeps its state.
    pub state: PathBuf,
    /// The folders of configuration, which no sandbox may write to.
    pub folders: Vec<PathBuf>,
    /// The files that were read, low to high.
    pub files: Vec<PathBuf>,
    /// A project's configuration that was left unread, for nobody trusts its folder.
    pub untrusted: Option<PathBuf>,
    /// What the admin demands, a file each.
    pub requirements: Vec<Requirements>,
    /// The bundles that they name.
    pub bundles: Vec<BundleSeen>,
    /// Over all that was read of them; none where there are none.
    pub requirements_digest: Option<Digest>,
}

/// Whether nobody said it: it stands in the lowest layer.
fn is_built_in(origin: &Origin) -> bool {
    matches!(origin, Origin::File { file, .. } if **file == *layers::BUILT_IN)
}

#[derive(Debug, Clone, PartialEq)]
pub struct Journal {
    pub sync: Sited<Sync>,
    /// The size from which on old records are moved into archives.
    pub rotate_size: Option<Sited<Bytes>>,
    /// The age at which they are.
    pub rotate_age: Option<Sited<Duration>>,
    /// How old archives become before they are removed; none: they stay.
    pub keep: Option<Sited<Duration>>,
    /// What is taken out of records, beside the built-in rules; of all layers together.
    pub redact: Vec<Sited<String>>,
    pub agent_events: Sited<AgentEvents>,
}

/// What of the events that a harness tells is recorded.
#[derive(Debug, Clone, Copy, PartialEq, Eq, schemars::JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum AgentEvents {
    Full,
    /// Their names and the tool calls that they belong to, not what was said.
    Names,
    None,
}

impl Word for AgentEvents {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("full", AgentEvents::Full),
        ("names", AgentEvents::Names),
        ("none", AgentEvents::None),
    ];
}

/// How the ways out of all tasks reach the world.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Egress {
    /// Files of certificates that count as roots of trust, beside the machine's.
    pub extra_roots: Vec<Sited<String>>,
    /// An HTTP proxy that every connection is made through: `http://host:port`.
    pub upstream: Option<Sited<String>>,
    /// Folders of the admin's with stored answers, beside the user's own store.
    pub cache: Vec<Sited<String>>,
}

/// When the journal is sure that the disk has what it wrote.
#[derive(Debug, Clone, Copy, PartialEq, Eq, schemars::JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Sync {
    /// Every 50 ms.
    Group,
    /// Before each act.
    Each,
}

impl Word for Sync {
    const WORDS: &'static [(&'static str, Self)] = &[("group", Sync::Group), ("each", Sync::Each)];
}

/// One receiver of records.
#[derive(Debug, Clone, PartialEq)]
pub struct Otlp {
    pub endpoint: Sited<String>,
    pub headers: BTreeMap<String, Sited<HeaderValue>>,
    pub protocol: Option<Sited<Protocol>>,
    pub compression: Option<Sited<Compression>>,
    /// None: all.
    pub signals: Vec<Sited<Signal>>,
    /// Files in PEM: who is trusted instead of the machine's authorities, and who we are.
    pub ca: Option<Sited<PathBuf>>,
    pub client_certificate: Option<Sited<PathBuf>>,
    pub client_key: Option<Sited<PathBuf>>,
}

impl Otlp {
    /// As the exporter takes it.
    pub fn collector(&self) -> OtlpConfig {
        let file = |path: &Option<Sited<PathBuf>>| path.as_ref().map(|path| path.value.clone());
        let mut config = OtlpConfig::new(&self.endpoint.value);
        let headers = self.headers.iter();
        config.headers = headers
            .map(|(name, value)| (name.clone(), value.value.expose().to_owned()))
            .collect();
        if let Some(protocol) = &self.protocol {
            config.protocol = protocol.value;
        }
        if let Some(compression) = &self.compression {
            config.compression = compression.value;
        }
        if !self.signals.is_empty() {
            config.signals = self.signals.iter().map(|signal| signal.value).collect();
        }
        config.ca = file(&self.ca);
        config.client_certificate = file(&self.client_certificate);
        config.client_key = file(&self.client_key);
        config
    }
}

impl Word for Protocol {
    const WORDS: &'static [(&'static str, Self)] = &[("grpc", Protocol::Grpc), ("http", Protocol::HttpProtobuf)];
}

impl Word for Compression {
    const WORDS: &'static [(&'static str, Self)] = &[("none", Compression::None), ("gzip", Compression::Gzip)];
}

impl Word for Signal {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("logs", Signal::Logs),
        ("traces", Signal::Traces),
        ("metrics", Signal::Metrics),
    ];
}

/// The value of a header: often a token, so it never prints.
#[derive(Clone, PartialEq, Eq)]
pub struct HeaderValue(String);

impl HeaderValue {
    pub fn new(value: impl Into<String>) -> Self {
        Self(value.into())
    }

    /// The value itself, for the request that carries it.
    pub fn expose(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for HeaderValue {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("(hidden)")
    }
}

/// What of the process decides where configuration and state are.
#[derive(Debug, Clone)]
pub struct Surroundings {
    pub uid: u32,
    pub user: String,
    pub home: Option<PathBuf>,
    /// `$BELLJAR_STATE`.
    pub state: Option<PathBuf>,
    /// `$XDG_STATE_HOME`.
    pub xdg_state: Option<PathBuf>,
    /// `$XDG_CONFIG_HOME`.
    pub xdg_config: Option<PathBuf>,
    /// Where the task comes from: the folder of its spec, or the current one. The nearest `.belljar/config.toml` at or above it
    /// is the highest layer, if its folder is trusted.
    pub project: Option<PathBuf>,
    etc: PathBuf,
    /// Who alone may write requirements.
    root: u32,
    /// How a bundle of requirements is got.
    fetch: fn(&str) -> Result<Vec<u8>, bundle::FetchError>,
}

impl Surroundings {
    /// Those of this process. A relative path in a variable counts as unset, as the XDG base directory specification asks.
    pub fn of_process() -> Self {
        let folder = |name| {
            std::env::var_os(name)
                .map(PathBuf::from)
                .filter(|path| path.is_absolute())
        };
        let myself = myself();
        Self {
            uid: myself.uid,
            user: myself.name,
            home: folder("HOME").or(myself.home),
            state: folder("BELLJAR_STATE"),
            xdg_state: folder("XDG_STATE_HOME"),
            xdg_config: folder("XDG_CONFIG_HOME"),
            project: std::env::current_dir().ok(),
            etc: PathBuf::from(ETC),
            root: 0,
            fetch: bundle::fetch,
        }
    }

    /// `$BELLJAR_STATE`, else `/var/lib/belljar` for root, else `$XDG_STATE_HOME/belljar`.
    pub fn state_folder(&self) -> PathBuf {
        if let Some(state) = &self.state {
            return state.clone();
        }
        if self.uid == 0 {
            return PathBuf::from("/var/lib/belljar");
        }
        match (&self.xdg_state, &self.home) {
            (Some(state), _) => state.join("belljar"),
            (None, Some(home)) => home.join(".local/state/belljar"),
            // A user without a home still has a place that is theirs alone.
            (None, None) => PathBuf::from(format!("/run/user/{}/belljar", self.uid)),
        }
    }

    /// Who asks, when this process is the one who asks.
    pub fn caller(&self) -> Caller {
        Caller {
            uid: self.uid,
            user: self.user.clone(),
            home: self.home.clone(),
            state: self.state_folder(),
        }
    }

    /// The file of rules that approvals become, be it there or not.
    pub fn approved_rules(&self) -> Option<PathBuf> {
        let folder = self.user_folder()?;
        // A folder of configuration may well be a link; what is written there is written to one place.
        let folder = folder.canonicalize().unwrap_or(folder);
        Some(folder.join("rules/approved.rules"))
    }

    /// The files and folders that layers and requirements are read from, be they there or not. What those name in turn is not
    /// among them.
    pub fn places(&self) -> Vec<PathBuf> {
        let of_etc = ["config.toml", "rules", "requirements.toml", "requirements.d"].map(|name| self.etc.join(name));
        let of_user = self.user_folder().into_iter();
        let of_user = of_user.flat_map(|folder| ["config.toml", "rules"].map(|name| folder.join(name)));
        of_etc.into_iter().chain(of_user).chain(self.approved_rules()).collect()
    }

    fn user_folder(&self) -> Option<PathBuf> {
        let config = self
            .xdg_config
            .clone()
            .or_else(|| Some(self.home.as_ref()?.join(".config")))?;
        Some(config.join("belljar"))
    }
}

impl Config {
    /// Reads all layers; a file that is not there is an empty one, a file that cannot be read is a fault.
    pub fn load(surroundings: &Surroundings) -> Result<Config, Faults> {
        layers::load(surroundings)
    }

    /// Every way in which the configuration itself goes beyond the requirements; a task is refused for each of them.
    pub fn violations(&self) -> Vec<Fault> {
        let asked = ConfigAsked {
            journal: &self.journal,
            egress: &self.egress,
            otlp: &self.otlp,
            reviewer: self.reviewer.as_ref(),
        };
        let config = self
            .requirements
            .iter()
            .flat_map(|demands| demands.check_config(&asked));
        config.chain(self.login().1).collect()
    }

    /// Who asks, as their token says, and each way in which that is not what is demanded. Blocking, as reading a secret is.
    pub(in crate::config) fn login(&self) -> (Option<Login>, Vec<Fault>) {
        let (mut login, mut violations) = (None, Vec::new());
        for demands in &self.requirements {
            let found = demands.read_login(self.token.as_ref(), &mut violations);
            login = login.or(found);
        }
        // Who holds a wrong token is told that, and not also that they are nobody.
        if violations.is_empty() {
            for demands in &self.requirements {
                demands.check_login(login.as_ref(), &mut violations);
            }
        }
        if let Some(token) = &self.token
            && !self.requirements.iter().any(|demands| demands.identity_oidc.is_some())
        {
            violations.push(Fault {
                origin: token.origin.clone(),
                key: "identity.token".to_owned(),
                what: "no requirements name the issuer to believe (identity.oidc)".to_owned(),
            });
        }
        (login, violations)
    }

    /// Why the requirements forbid a host, if they do.
    pub fn forbids_host(&self, authority: &Authority) -> Option<String> {
        self.requirements
            .iter()
            .find_map(|demands| demands.forbids_host(authority))
    }

    /// Whether records may be sent to these receivers, which a flag or a variable of OpenTelemetry's may have named.
    pub fn check_endpoints<'a>(&self, endpoints: impl IntoIterator<Item = &'a str>) -> Result<(), Rejection> {
        let mut violations = Vec::new();
        for endpoint in endpoints {
            violations.extend(
                self.requirements
                    .iter()
                    .filter_map(|demands| demands.check_endpoint(endpoint)),
            );
        }
        Faults::check(violations).map_err(Rejection::Violations)
    }

    /// How far an approval may reach, by what the requirements leave.
    pub fn approval_scopes(&self) -> Vec<Scope> {
        let all = Scope::WORDS.iter().map(|(_, scope)| *scope);
        let demands = |scope: &Scope| {
            let mut lists = self.requirements.iter().filter_map(|demands| demands.scopes.as_ref());
            lists.all(|list| list.value.contains(scope))
        };
        all.filter(demands).collect()
    }

    /// What is built in, with no file read.
    pub fn built_in(state: &Path) -> Config {
        layers::built_in(state)
    }
}

#[cfg(test)]
mod tests;
