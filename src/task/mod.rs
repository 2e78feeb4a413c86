//! WHAT runs. [`spec::TaskSpec`] is what a caller asks for, as it stands in a file or on a command line; [`Task`] is what
//! `config::admit` made of it after the requirements were applied. Nothing else makes a `Task`, and everything below takes one.

mod guarantee;
pub mod limits;
pub mod spec;

use std::collections::BTreeMap;
use std::fmt;
use std::str::FromStr;

use serde::Serialize;

use crate::document::Word;
use crate::id::TaskId;
use crate::path::{HostPath, SandboxPath};
pub use guarantee::Guarantee;
use limits::Limits;

/// A task that was admitted: every value parsed, every path absolute, every requirement met.
#[derive(Debug, Clone, Serialize)]
pub struct Task {
    pub id: TaskId,
    pub name: String,
    pub purpose: Option<String>,
    pub image: ImageRef,
    /// Without one the task waits for execs.
    pub command: Option<Vec<String>>,
    pub workdir: SandboxPath,
    pub user: User,
    pub backend: Backend,
    pub runtime: Runtime,
    pub roots: Vec<Root>,
    pub env: BTreeMap<String, String>,
    pub secrets: BTreeMap<String, Secret>,
    pub limits: Limits,
    /// Limits that the spec, a file of configuration or the requirements name: they must be kept in full.
    pub named_limits: Vec<Guarantee>,
    /// Guarantees that the task does without, in part or whole, where the machine cannot give them.
    pub accept_partial: Vec<Guarantee>,
    pub network: Network,
    pub gate: Gate,
    /// What a token says of who asked, where the admin's requirements name its issuer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub login: Option<Login>,
    /// Only `config::admit` has one to put here.
    #[serde(skip)]
    pub admitted: Admitted,
}

/// The mark of a task that went through `config::admit`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Admitted(());

impl Admitted {
    /// For `config::admit` alone; `tests/house.rs` holds that nothing else calls it.
    pub(crate) fn by_config() -> Self {
        Self(())
    }
}

/// Where the root file system comes from.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum ImageRef {
    /// Put together from the machine's own `/usr` and its kin.
    Host,
    /// A folder that is a root file system.
    Rootfs(HostPath),
    /// An OCI image layout, as a folder or as a tar archive.
    OciLayout(HostPath),
    /// A name in the local store, or a registry reference.
    Named(String),
}

/// A name of the store or a reference of a registry: `[host[:port]/]path[:tag][@digest]`, as the distribution
/// specification writes them (<https://github.com/opencontainers/distribution-spec>).
pub(crate) fn is_image_name(text: &str) -> bool {
    let (name, digest) = match text.split_once('@') {
        Some((name, digest)) => (name, Some(digest)),
        None => (text, None),
    };
    let hex =
        |digest: &str| digest.len() == 64 && digest.bytes().all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b));
    let digest_is_right = digest.is_none_or(|digest| digest.strip_prefix("sha256:").is_some_and(hex));
    let (path, tag) = match name.rsplit_once(':') {
        Some((path, tag)) if !tag.contains('/') => (path, Some(tag)),
        _ => (name, None),
    };
    let word = |c: char| c.is_ascii_alphanumeric() || c == '_';
    let tag_is_right = tag.is_none_or(|tag| {
        tag.len() <= 128 && tag.starts_with(word) && tag.chars().all(|c| word(c) || c == '.' || c == '-')
    });
    let part_is_right = |(n, part): (usize, &str)| {
        let (part, port) = match part.split_once(':') {
            Some((host, port)) if n == 0 && path.contains('/') => (host, port),
            _ => (part, "0"),
        };
        let host = n == 0 && path.contains('/');
        let plain = |c: char| {
            c.is_ascii_lowercase() || c.is_ascii_digit() || "._-".contains(c) || host && c.is_ascii_uppercase()
        };
        part.starts_with(|c: char| c.is_ascii_alphanumeric()) && part.chars().all(plain) && port.parse::<u16>().is_ok()
    };
    digest_is_right && tag_is_right && text.len() <= 512 && path.split('/').enumerate().all(part_is_right)
}

/// Who a command is inside the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum User {
    /// uid 1000, whose files belong to the caller outside.
    Agent,
    /// uid 0 of the user namespace only.
    Root,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Backend {
    Oci,
    Docker,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Runtime {
    /// belljar's own launcher.
    Builtin,
    /// An OCI runtime by name or path, or the name of one of Docker's runtimes.
    Outside(String),
}

/// A value that stays outside: the sandbox sees a placeholder under the secret's name, the proxy puts the value in.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Secret {
    pub source: SecretSource,
    /// The only hosts that get the value.
    pub hosts: Vec<String>,
    pub place: SecretPlace,
}

/// Where in a request the value of a secret goes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretPlace {
    /// Wherever the placeholder stands in a header or a parameter that carries credentials; where it does not, nothing is put in.
    Placeholder,
    /// A header of every request, the value between two texts.
    Header {
        name: String,
        before: String,
        after: String,
    },
    /// A parameter of every request.
    Query { name: String },
    /// The password of basic authorization, in every request.
    Basic { user: String },
    /// The key with which requests to AWS are signed anew.
    Aws {
        access_key_id: String,
        session: Option<SecretSource>,
    },
    /// The secret of an OAuth client, with which tokens for bearers are bought.
    Oauth {
        token_url: String,
        client_id: String,
        scope: Option<String>,
    },
}

/// Where the value of a secret is kept; never the value itself.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum SecretSource {
    Keyring(String),
    /// A variable of belljar's own environment.
    Env(String),
    File(HostPath),
}

/// `keyring:NAME`, `env:NAME` or `file:PATH`, as it is written in a spec.
impl fmt::Display for SecretSource {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            SecretSource::Keyring(name) => write!(f, "keyring:{name}"),
            SecretSource::Env(name) => write!(f, "env:{name}"),
            SecretSource::File(path) => write!(f, "file:{path}"),
        }
    }
}

/// Reads what [`Display`](fmt::Display) writes; the path of a file must be absolute.
impl FromStr for SecretSource {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.split_once(':') {
            Some((_, "")) | None => Err(format!("\"{text}\" is not keyring:NAME, env:NAME or file:PATH")),
            Some((_, name)) if name.contains('\0') => Err("the name of a secret cannot hold a NUL".to_owned()),
            Some(("keyring", name)) => Ok(SecretSource::Keyring(name.to_owned())),
            Some(("env", name)) => Ok(SecretSource::Env(name.to_owned())),
            Some(("file", path)) => Ok(SecretSource::File(
                HostPath::new(path).map_err(|error| error.to_string())?,
            )),
            Some(_) => Err(format!("\"{text}\" is not keyring:NAME, env:NAME or file:PATH")),
        }
    }
}

/// Who asked, as a token says that was checked.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
pub struct Login {
    pub issuer: String,
    /// The issuer's own name for them, which never changes.
    pub subject: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub workspace: Option<String>,
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub groups: Vec<String>,
}

/// A folder or file of the host that the sandbox sees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Root {
    pub host: HostPath,
    pub path: SandboxPath,
    pub access: Access,
    /// For writable roots: what may happen to a git repository in them.
    pub git: GitMode,
    /// Names protected beside the built-in ones.
    pub protect: Vec<String>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "snake_case")]
pub enum Access {
    Read,
    Write,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "kebab-case")]
pub enum GitMode {
    /// `git commit` works; hooks, config and worktree links cannot change.
    Safe,
    ReadOnly,
    Open,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Network {
    pub mode: NetworkMode,
    /// Host patterns, see `egress::pattern`.
    pub allow: Vec<String>,
    pub deny: Vec<String>,
    pub unknown: Unknown,
    /// Hosts that are allowed for some requests only.
    pub hosts: Vec<HostRule>,
    /// The same as the requirements demand it, a file each: what the task's own rules allow must be allowed by each of them too.
    pub required_hosts: Vec<Vec<HostRule>>,
}

/// Closed: what is not said opens nothing.
impl Default for Network {
    fn default() -> Self {
        Self {
            mode: NetworkMode::None,
            allow: Vec::new(),
            deny: Vec::new(),
            unknown: Unknown::Deny,
            hosts: Vec::new(),
            required_hosts: Vec::new(),
        }
    }
}

/// Which requests a host is allowed for. A host with such rules denies every request that none of them allows.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct HostRule {
    /// A pattern as in the allow list.
    pub host: String,
    /// Those of the pattern where there is none.
    pub ports: Vec<u16>,
    pub methods: Methods,
    /// Every path where there is none; see `egress::path::PathPattern`.
    pub paths: Vec<String>,
}

/// HTTP methods.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Methods {
    All,
    /// GET, HEAD and OPTIONS.
    ReadOnly,
    #[serde(untagged)]
    Only(Vec<String>),
}

impl Methods {
    pub fn allow(&self, method: &str) -> bool {
        match self {
            Methods::All => true,
            Methods::ReadOnly => ["GET", "HEAD", "OPTIONS"].contains(&method),
            Methods::Only(methods) => methods.iter().any(|own| own == method),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum NetworkMode {
    None,
    /// Stored answers only.
    Cached,
    Proxy,
}

/// What happens to a host that no list names.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unknown {
    Ask,
    Deny,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Gate {
    /// Files of rules, strictest answer wins over all of them.
    pub rules: Vec<HostPath>,
    /// Names of rules that are part of belljar: `dangerous`.
    pub built_in: Vec<String>,
    /// Rules that the requirements bring along, to be loaded beside the files.
    pub required: Vec<RulesText>,
    pub unmatched: Unmatched,
    pub reviewer: Reviewer,
    pub approvers: WhoApproves,
    pub approval_time: std::time::Duration,
    /// What would be a question is a no: the requirements let nobody be asked.
    pub never_ask: bool,
}

/// Rules as text, with the name under which they are reported.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct RulesText {
    pub name: String,
    pub text: String,
}

/// What follows for a command that no rule matches.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Unmatched {
    Allow,
    Ask,
    Deny,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum Reviewer {
    User,
    AutoReview,
}

/// Whose yes counts, beside that of the reviewer.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, serde::Deserialize, schemars::JsonSchema)]
#[serde(rename_all = "snake_case")]
pub enum WhoApproves {
    /// A person's.
    Person,
    /// That of the program that drives the task too, but for what a rule reserves for a person.
    Harness,
}

impl Word for WhoApproves {
    const WORDS: &'static [(&'static str, Self)] =
        &[("person", WhoApproves::Person), ("harness", WhoApproves::Harness)];
}

impl Word for User {
    const WORDS: &'static [(&'static str, Self)] = &[("agent", User::Agent), ("root", User::Root)];
}

impl Word for Backend {
    const WORDS: &'static [(&'static str, Self)] = &[("oci", Backend::Oci), ("docker", Backend::Docker)];
}

impl Word for GitMode {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("safe", GitMode::Safe),
        ("read-only", GitMode::ReadOnly),
        ("open", GitMode::Open),
    ];
}

impl Word for NetworkMode {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("none", NetworkMode::None),
        ("cached", NetworkMode::Cached),
        ("proxy", NetworkMode::Proxy),
    ];
}

impl Word for Unknown {
    const WORDS: &'static [(&'static str, Self)] = &[("ask", Unknown::Ask), ("deny", Unknown::Deny)];
}

impl Word for Unmatched {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("allow", Unmatched::Allow),
        ("ask", Unmatched::Ask),
        ("deny", Unmatched::Deny),
    ];
}

impl Word for Reviewer {
    const WORDS: &'static [(&'static str, Self)] = &[("user", Reviewer::User), ("auto_review", Reviewer::AutoReview)];
}
