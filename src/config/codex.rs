//! Codex's `requirements.toml` as a source of demands: what it says of approvals, reviewers, rules, the sandbox and the network
//! holds for belljar as it does there, or more strictly.
//!
//! Of `permissions` the folders and files that nobody may read count, as roots that are denied; patterns (`**/*.env`) do not: a
//! sandbox sees nothing but what a task declares, and what lies in there is the task's.
//!
//! Stricter on purpose: a key that Codex does not know is a fault here (Codex ignores it, so a slip of the pen demands nothing
//! there), and what is asked beyond the demands is refused, not lowered. What it says of things that belljar does not have (web
//! search, plugins, feature flags, MCP servers, the desktop) is read over.

use std::path::Path;

use super::requirements::Requirements;
use crate::document::{Document, Faults, Origin, Sited, Table, Value, Word};
use crate::sys::user::hostname;
use crate::task::spec::host_pattern;
use crate::task::{NetworkMode, Reviewer, RulesText, Unknown, Unmatched};

/// The keys of 0.169.0 that say nothing to belljar.
const ELSEWHERE: [&str; 37] = [
    "additional_developer_instructions",
    "allow_appshots",
    "allow_browser_and_computer_use",
    "allow_login_shell",
    "allow_managed_hooks_only",
    "allow_remote_control",
    "allowed_chatgpt_workspaces",
    "allowed_login_methods",
    "allowed_web_search_modes",
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
    "guardian_extra_policy",
    "guardian_policy_config",
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

/// One file of Codex's, with what concerns belljar.
#[derive(Debug, Default)]
pub(super) struct Codex {
    pub sandbox_modes: Option<Sited<Vec<SandboxMode>>>,
    pub approval_policies: Option<Sited<Vec<ApprovalPolicy>>>,
    pub reviewers: Option<Sited<Vec<Reviewer>>>,
    pub network: Option<Network>,
    pub rules: Option<RulesText>,
    /// Folders and files that no task may see.
    pub deny_read: Option<Sited<Vec<String>>>,
}

#[derive(Debug, Default)]
pub(super) struct Network {
    pub enabled: Option<Sited<bool>>,
    pub allowed: Vec<Sited<String>>,
    pub denied: Vec<Sited<String>>,
    /// Nobody may allow a host beside `allowed`, and the rest is denied without a question.
    pub managed_only: Option<Sited<bool>>,
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
            for key in ELSEWHERE {
                root.value(key);
            }
            check_profiles(root);
            let everywhere = words(root, "allowed_sandbox_modes", SandboxMode::read);
            let sandbox_modes = here(root, hostname).or(everywhere);
            if let Some(modes) = sandbox_modes
                .as_ref()
                .filter(|modes| !modes.value.contains(&SandboxMode::ReadOnly))
            {
                root.fault(&modes.origin, "allowed_sandbox_modes", "it must include \"read-only\"");
            }
            Codex {
                sandbox_modes,
                approval_policies: words(root, "allowed_approval_policies", ApprovalPolicy::read),
                reviewers: words(root, "allowed_approvals_reviewers", reviewer),
                network: root.table("experimental_network").map(|table| network(&table)),
                rules: root.table("rules").and_then(|table| rules(&table, file)),
                deny_read: deny_read(root),
            }
        })
    }

    /// What it means for belljar.
    pub fn demands(self) -> Requirements {
        let mut demands = Requirements::default();
        if let Some(modes) = self.sandbox_modes
            && !modes.value.iter().any(|mode| *mode != SandboxMode::ReadOnly)
        {
            demands.writable = Some(Sited::new(Vec::new(), modes.origin));
        }
        let policies = self.approval_policies;
        if let Some(policies) = policies
            .clone()
            .filter(|policies| policies.value == [ApprovalPolicy::Untrusted])
        {
            demands.unmatched = Some(Sited::new(vec![Unmatched::Ask, Unmatched::Deny], policies.origin));
        } else if let Some(policies) = policies.filter(|policies| policies.value == [ApprovalPolicy::Never]) {
            demands.never_ask = Some(Sited::new(true, policies.origin.clone()));
            demands.unknown = Some(Sited::new(vec![Unknown::Deny], policies.origin));
        }
        demands.denied = self.deny_read;
        demands.reviewers = self.reviewers;
        demands.rules_texts = self.rules.into_iter().collect();
        let Some(network) = self.network else {
            return demands;
        };
        if let Some(enabled) = network.enabled.filter(|enabled| !enabled.value) {
            demands.modes = Some(Sited::new(vec![NetworkMode::None], enabled.origin));
        }
        demands.deny = network.denied;
        if let Some(only) = network.managed_only.filter(|only| only.value) {
            let allowed = network.allowed.into_iter().map(|host| host.value).collect();
            demands.allow = Some(Sited::new(allowed, only.origin.clone()));
            demands.unknown = Some(Sited::new(vec![Unknown::Deny], only.origin));
        }
        demands
    }
}

/// What may be read in no sandbox. Only whole folders and files: what is given by a pattern or below a home is not shown to a
/// sandbox anyhow unless a task declares it, and there it cannot be told apart from the rest.
fn deny_read(root: &Table<'_>) -> Option<Sited<Vec<String>>> {
    let permissions = root.value("permissions")?;
    for (name, value) in permissions.table()?.open() {
        if name.value != "filesystem" {
            continue;
        }
        for (name, list) in value.table()?.open() {
            if name.value != "deny_read" {
                continue;
            }
            let values = list.list()?;
            let paths = values.iter().filter_map(|path| path.text()).map(|path| path.value);
            let whole = |path: String| {
                let path = path.trim_end_matches("/**").to_owned();
                (path.starts_with('/') && !path.contains(['*', '?', '['])).then_some(path)
            };
            let paths: Vec<String> = paths.filter_map(whole).collect();
            return (!paths.is_empty()).then(|| Sited::new(paths, list.origin()));
        }
    }
    None
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

/// Codex refuses these, so the file is not one that holds there.
fn check_profiles(root: &Table<'_>) {
    let allowed = root.value("allowed_permission_profiles");
    let default = root.text("default_permissions");
    let Some(value) = allowed else {
        if default.is_some()
            && let Some(value) = root.value("default_permissions")
        {
            value.fault("default_permissions requires allowed_permission_profiles");
        }
        return;
    };
    let entries = value.table().map(Table::open).unwrap_or_default();
    let profiles: Vec<String> = entries
        .into_iter()
        .filter(|(_, allowed)| allowed.flag().is_some_and(|flag| flag.value))
        .map(|(name, _)| name.value)
        .collect();
    match default {
        Some(default) if !profiles.contains(&default.value) => {
            value.fault(format!(
                "default_permissions `{}` must be allowed by allowed_permission_profiles",
                default.value
            ));
        }
        None if ![":read-only", ":workspace"]
            .iter()
            .all(|name| profiles.iter().any(|profile| profile == name)) =>
        {
            value.fault("default_permissions must be set unless allowed_permission_profiles allows both :read-only and :workspace");
        }
        _ => {}
    }
}

fn network(table: &Table<'_>) -> Network {
    // Ports and sockets are of Codex's own proxy; belljar has one way out, which allows less than any of these.
    for key in [
        "http_port",
        "socks_port",
        "allow_upstream_proxy",
        "dangerously_allow_non_loopback_proxy",
        "dangerously_allow_all_unix_sockets",
        "unix_sockets",
        "allow_unix_sockets",
        "allow_local_binding",
        "review_domains",
        "header_injections",
    ] {
        table.value(key);
    }
    let mut network = Network {
        enabled: table.flag("enabled"),
        allowed: table.list("allowed_domains", host_pattern),
        denied: table.list("denied_domains", host_pattern),
        managed_only: table.flag("managed_allowed_domains_only"),
    };
    let old = ["allowed_domains", "denied_domains"]
        .iter()
        .any(|key| table.value(key).is_some());
    let Some(domains) = table.value("domains") else {
        return network;
    };
    if old {
        domains.fault("domains cannot be combined with allowed_domains or denied_domains");
    }
    for (host, value) in domains.table().map(Table::open).unwrap_or_default() {
        if let Err(what) = host_pattern(&host.value) {
            value.fault(what);
        }
        match value.text().as_ref().map(|text| text.value.as_str()) {
            Some("allow") => network.allowed.push(host),
            Some("deny") => network.denied.push(host),
            Some(_) => value.fault("expected \"allow\" or \"deny\""),
            None => {}
        }
    }
    network
}

/// Codex's rules in TOML as rules in Starlark, each in the line in which it stands in the file, so that a judgement names it.
fn rules(table: &Table<'_>, file: &str) -> Option<RulesText> {
    let value = table.value("prefix_rules")?;
    let list = value.list()?;
    if list.is_empty() {
        value.fault("rules prefix_rules cannot be empty");
    }
    let mut text = String::new();
    let mut line = 1;
    for (n, value) in list.iter().enumerate() {
        let Some(rule) = value.table().and_then(|table| rule(n, value, &table)) else {
            continue;
        };
        if let Origin::File { line: at, .. } = value.origin() {
            if at == line && !text.is_empty() && !text.ends_with('\n') {
                text.push_str("; ");
            }
            while line < at {
                text.push('\n');
                line += 1;
            }
        }
        text.push_str(&rule);
    }
    text.push('\n');
    Some(RulesText {
        name: file.to_owned(),
        text,
    })
}

fn rule(n: usize, value: &Value<'_>, table: &Table<'_>) -> Option<String> {
    let at = format!("rules prefix_rule at index {n}");
    let canonical = table.flag("canonical_matching").is_some_and(|flag| flag.value);
    let decision = match table.text("decision").map(|decision| decision.value) {
        None => {
            value.fault(format!("{at} is missing a decision"));
            return None;
        }
        Some(decision) => match decision.as_str() {
            "prompt" => "decision = \"prompt\"",
            "prompt-user" => "decision = \"prompt\", reviewer = \"user\"",
            "forbidden" => "decision = \"forbidden\"",
            "allow" => {
                value.fault(format!(
                    "{at} has decision 'allow', which is not permitted in requirements.toml: it may only tighten"
                ));
                return None;
            }
            other => {
                value.fault(format!("{at} has the unknown decision {other:?}"));
                return None;
            }
        },
    };
    let mut pattern = Vec::new();
    for part in table.tables("pattern") {
        let token = part.text("token").map(|token| token.value);
        let any_of = part
            .value("any_of")
            .map(|_| part.list("any_of", |text| Ok(text.to_owned())));
        let words: Vec<String> = match (token, any_of) {
            (Some(token), None) => vec![token],
            (None, Some(words)) => words.into_iter().map(|word| word.value).collect(),
            _ => {
                value.fault(format!("{at}: a part of a pattern has either token or any_of"));
                return None;
            }
        };
        if words.is_empty() {
            value.fault(format!("{at}: any_of cannot be empty"));
            return None;
        }
        if words.iter().any(|word| word.trim().is_empty()) {
            value.fault(format!("{at} has an empty token"));
            return None;
        }
        let words: Vec<String> = words.iter().map(|word| literal(word)).collect();
        pattern.push(format!("[{}]", words.join(", ")));
    }
    if pattern.is_empty() {
        value.fault(format!("{at} has an empty pattern"));
        return None;
    }
    let justification = match table.text("justification").map(|text| text.value) {
        Some(text) if text.trim().is_empty() => {
            value.fault(format!("{at} has a blank justification"));
            return None;
        }
        Some(text) => format!(", justification = {}", literal(&text)),
        None => String::new(),
    };
    Some(format!(
        "prefix_rule(pattern = [{}], {decision}{justification}{})",
        pattern.join(", "),
        if canonical { ", canonical_matching = True" } else { "" },
    ))
}

/// A string of Starlark: JSON's escapes mean the same there.
fn literal(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests;
