//! Codex's `requirements.toml` as a source of demands: what it says of approvals, reviewers, rules, the sandbox, the network, the
//! web and who may log in holds for belljar as it does there, or more strictly.
//!
//! | key | demand |
//! |---|---|
//! | `allowed_sandbox_modes`, `allowed_permission_profiles` | without one that writes, no writable roots |
//! | `allowed_approval_policies`, `allowed_approvals_reviewers` | what follows for the unmatched, who is asked, or nobody |
//! | `allowed_web_search_modes` | the modes of `network`, unless the file allows commands a network of their own |
//! | `allowed_login_methods`, `allowed_chatgpt_workspaces` | `identity`: a login by token, and its workspace |
//! | `experimental_network` | hosts; with `allow_upstream_proxy = false` no proxy but a demanded one |
//! | `permissions.filesystem.deny_read` | folders, files and patterns that no root may show |
//! | `guardian_policy_config`, `guardian_extra_policy` | what the reviewing model is told beside its own policy |
//! | `rules` | rules of the gate |
//!
//! Stricter on purpose: a key that Codex does not know is a fault here (Codex ignores it, so a slip of the pen demands nothing
//! there), and what is asked beyond the demands is refused, not lowered. Keys about things that belljar does not have (plugins,
//! feature flags, MCP servers, the desktop) demand nothing, and `config check` names them.

mod elsewhere;
mod files;
mod network;
mod rules;

use std::path::Path;

use super::identity::Method;
use super::requirements::Requirements;
use crate::document::{Document, Faults, Origin, Sited, Table, Word};
use crate::sys::user::hostname;
use crate::task::{NetworkMode, Reviewer, RulesText, Unknown, Unmatched};
use network::Network;

/// The keys of 0.169.0 that say nothing to belljar.
const ELSEWHERE: [&str; 32] = [
    "additional_developer_instructions",
    "allow_appshots",
    "allow_browser_and_computer_use",
    "allow_login_shell",
    "allow_managed_hooks_only",
    "allow_remote_control",
    "application",
    "apps",
    "auto_review",
    "browser_use",
    "chatgpt_base_url",
    "check_for_update_on_startup",
    "cli_auth_credentials_store",
    "computer_use",
    "config_server",
    "enforce_residency",
    "features",
    "feedback",
    "hooks",
    "in_app_browser",
    "log_dir",
    "marketplaces",
    "mcp_servers",
    "model_catalog_json",
    "modelProvider",
    "modelProviders",
    "models",
    "otel",
    "plugins",
    "sqlite_home",
    "unsafe_enforce_sqlite_journal_mode",
    "windows",
];

/// How much of the machine a command of Codex's may write to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum SandboxMode {
    ReadOnly,
    WorkspaceWrite,
    FullAccess,
    External,
}

impl Word for SandboxMode {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("read-only", SandboxMode::ReadOnly),
        ("workspace-write", SandboxMode::WorkspaceWrite),
        ("danger-full-access", SandboxMode::FullAccess),
        ("external-sandbox", SandboxMode::External),
    ];
}

/// When Codex asks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ApprovalPolicy {
    Untrusted,
    OnFailure,
    OnRequest,
    Granular,
    Never,
}

impl Word for ApprovalPolicy {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("untrusted", ApprovalPolicy::Untrusted),
        ("on-failure", ApprovalPolicy::OnFailure),
        ("on-request", ApprovalPolicy::OnRequest),
        ("granular", ApprovalPolicy::Granular),
        ("never", ApprovalPolicy::Never),
    ];
}

/// Where Codex's model may look things up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum WebSearchMode {
    Disabled,
    Cached,
    Indexed,
    Live,
}

impl Word for WebSearchMode {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("disabled", WebSearchMode::Disabled),
        ("cached", WebSearchMode::Cached),
        ("indexed", WebSearchMode::Indexed),
        ("live", WebSearchMode::Live),
    ];
}

/// How a user of Codex logs in.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum LoginMethod {
    ChatGpt,
    Api,
}

impl Word for LoginMethod {
    const WORDS: &'static [(&'static str, Self)] = &[("chatgpt", LoginMethod::ChatGpt), ("api", LoginMethod::Api)];
}

/// One file of Codex's, with what concerns belljar.
#[derive(Debug, Default)]
pub(super) struct Codex {
    pub sandbox_modes: Option<Sited<Vec<SandboxMode>>>,
    /// Which profiles of permissions may be chosen, where that leaves none that may write.
    pub only_reads: Option<Origin>,
    pub approval_policies: Option<Sited<Vec<ApprovalPolicy>>>,
    pub reviewers: Option<Sited<Vec<Reviewer>>>,
    /// "disabled" is always one of them.
    pub web_search_modes: Option<Sited<Vec<WebSearchMode>>>,
    pub login_methods: Option<Sited<Vec<LoginMethod>>>,
    pub workspaces: Option<Sited<Vec<String>>>,
    pub reviewer_policy: Vec<Sited<String>>,
    pub network: Option<Network>,
    pub rules: Option<RulesText>,
    /// Folders and files that no task may see, as patterns of absolute paths or of such below `~/`.
    pub deny_read: Vec<Sited<String>>,
    /// Keys that demand nothing here.
    pub unheeded: Vec<Sited<String>>,
}

/// Reads a file by way of `text`, which sees to it that root alone can have written it.
pub(super) fn load(path: &Path, text: impl Fn(&Path) -> Result<String, String>) -> Result<Requirements, Faults> {
    let file = path.display().to_string();
    let origin = Origin::File {
        file: file.as_str().into(),
        line: 1,
        column: 1,
    };
    let text = text(path).map_err(|what| Faults::one(origin, "", what))?;
    Ok(Codex::from_toml(&text, &file, &hostname())?.demands())
}

impl Codex {
    pub fn from_toml(text: &str, file: &str, hostname: &str) -> Result<Codex, Faults> {
        Document::parse(text, file)?.read(|root| {
            let mut unheeded = Vec::new();
            for key in ELSEWHERE {
                if let Some(value) = root.value(key) {
                    elsewhere::check(&value);
                    unheeded.push(Sited::new(key.to_owned(), value.origin()));
                }
            }
            let only_reads = files::profiles(root);
            let everywhere = words(root, "allowed_sandbox_modes", SandboxMode::read);
            let sandbox_modes = here(root, hostname).or(everywhere);
            if let Some(modes) = sandbox_modes
                .as_ref()
                .filter(|modes| !modes.value.contains(&SandboxMode::ReadOnly))
            {
                root.fault(&modes.origin, "allowed_sandbox_modes", "it must include \"read-only\"");
            }
            let network = root.table("experimental_network");
            let guardian = ["guardian_policy_config", "guardian_extra_policy"];
            Codex {
                sandbox_modes,
                only_reads,
                approval_policies: words(root, "allowed_approval_policies", ApprovalPolicy::read),
                reviewers: words(root, "allowed_approvals_reviewers", reviewer),
                web_search_modes: web_search_modes(root),
                login_methods: words(root, "allowed_login_methods", LoginMethod::read),
                workspaces: words(root, "allowed_chatgpt_workspaces", plain),
                reviewer_policy: guardian.iter().filter_map(|key| root.parsed(key, plain)).collect(),
                network: network.map(|table| network::read(&table, &mut unheeded)),
                rules: root.table("rules").and_then(|table| rules::rules(&table, file)),
                deny_read: files::deny_read(root, Path::new(file).parent()),
                unheeded,
            }
        })
    }

    /// What it means for belljar.
    pub fn demands(self) -> Requirements {
        let mut demands = Requirements {
            unheeded: self.unheeded,
            denied_patterns: self.deny_read,
            reviewer_policy: self.reviewer_policy,
            reviewers: self.reviewers,
            rules_texts: self.rules.into_iter().collect(),
            identity_workspaces: self.workspaces,
            ..Requirements::default()
        };
        let modes = self
            .sandbox_modes
            .filter(|modes| modes.value.iter().all(|mode| *mode == SandboxMode::ReadOnly));
        if let Some(origin) = modes.map(|modes| modes.origin).or(self.only_reads) {
            demands.writable = Some(Sited::new(Vec::new(), origin));
        }
        match self.approval_policies {
            Some(policies) if policies.value == [ApprovalPolicy::Untrusted] => {
                demands.unmatched = Some(Sited::new(vec![Unmatched::Ask, Unmatched::Deny], policies.origin));
            }
            Some(policies) if policies.value == [ApprovalPolicy::Never] => {
                demands.never_ask = Some(Sited::new(true, policies.origin.clone()));
                demands.unknown = Some(Sited::new(vec![Unknown::Deny], policies.origin));
            }
            Some(_) | None => {}
        }
        // An API key says nothing of who holds it, so where it would do, the user of the machine does.
        if let Some(methods) = self.login_methods
            && methods.value == [LoginMethod::ChatGpt]
        {
            demands.identity_methods = Some(Sited::new(vec![Method::Oidc], methods.origin));
        }
        let is_networked = self
            .network
            .as_ref()
            .and_then(|network| network.enabled.as_ref())
            .is_some_and(|enabled| enabled.value);
        if let Some(modes) = self.web_search_modes.filter(|_| !is_networked) {
            demands.modes = Some(Sited::new(network_modes(&modes.value), modes.origin));
        }
        if let Some(network) = self.network {
            network.demand(&mut demands);
        }
        demands
    }
}

/// What a task may get from the web is what its commands may: they run what the model found there.
fn network_modes(modes: &[WebSearchMode]) -> Vec<NetworkMode> {
    let stored = [WebSearchMode::Cached, WebSearchMode::Indexed, WebSearchMode::Live];
    let mut allowed = vec![NetworkMode::None];
    if stored.iter().any(|mode| modes.contains(mode)) {
        allowed.push(NetworkMode::Cached);
    }
    if modes.contains(&WebSearchMode::Live) {
        allowed.push(NetworkMode::Proxy);
    }
    allowed
}

/// None at all is a list like any other: it leaves what is always allowed.
fn web_search_modes(root: &Table<'_>) -> Option<Sited<Vec<WebSearchMode>>> {
    let value = root.value("allowed_web_search_modes")?;
    let list = value.list()?;
    let mut modes: Vec<WebSearchMode> = list
        .iter()
        .filter_map(|word| word.parsed(WebSearchMode::read))
        .map(|word| word.value)
        .collect();
    if !modes.contains(&WebSearchMode::Disabled) {
        modes.insert(0, WebSearchMode::Disabled);
    }
    Some(Sited::new(modes, value.origin()))
}

fn plain(text: &str) -> Result<String, String> {
    match text.trim().is_empty() {
        true => Err("the text is empty".to_owned()),
        false => Ok(text.to_owned()),
    }
}

/// The modes for this machine, from the first entry that names it; all entries are read for their faults.
fn here(root: &Table<'_>, hostname: &str) -> Option<Sited<Vec<SandboxMode>>> {
    let mut first = None;
    for table in root.tables("remote_sandbox_config") {
        let patterns = table.list("hostname_patterns", |text| Ok(text.to_owned()));
        let modes = words(&table, "allowed_sandbox_modes", SandboxMode::read);
        if first.is_none() && patterns.iter().any(|pattern| is_host(&pattern.value, hostname)) {
            first = modes;
        }
    }
    first
}

fn is_host(pattern: &str, hostname: &str) -> bool {
    let plain = |name: &str| name.trim_end_matches('.').to_ascii_lowercase();
    super::requirements::fits(&plain(pattern), &plain(hostname))
}

fn words<T>(table: &Table<'_>, key: &'static str, read: impl Fn(&str) -> Result<T, String>) -> Option<Sited<Vec<T>>> {
    let value = table.value(key)?;
    let list = value.list()?;
    if list.is_empty() {
        value.fault(format!("empty {key}"));
    }
    let words = list
        .iter()
        .filter_map(|word| word.parsed(&read))
        .map(|word| word.value)
        .collect();
    Some(Sited::new(words, value.origin()))
}

fn reviewer(text: &str) -> Result<Reviewer, String> {
    match text {
        "guardian_subagent" => Ok(Reviewer::AutoReview),
        text => Reviewer::read(text),
    }
}

#[cfg(test)]
mod tests;
