//! The JSON Schemas of the files that are written by hand, for editors and for whoever makes such files by program. What reads
//! the files is elsewhere (`layers`, `requirements::read`); a test holds the two to the same keys.

use std::collections::BTreeMap;

use schemars::{JsonSchema, Schema};
use serde_json::json;

use super::identity::Method;
use super::{AgentEvents, Sync};
use crate::audit::otlp::Signal;
use crate::policy::Scope;
use crate::task::spec::{HostSpec, TaskSpec};
use crate::task::{Backend, GitMode, Guarantee, NetworkMode, Reviewer, Unknown, Unmatched, User, WhoApproves};

/// What there is a schema of.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kind {
    Config,
    Requirements,
    Task,
}

/// The JSON Schema of a kind of file.
pub fn schema(kind: Kind) -> Schema {
    match kind {
        Kind::Task => TaskSpec::schema(),
        Kind::Requirements => versioned(schemars::schema_for!(RequirementsFile), true),
        Kind::Config => {
            let mut schema = versioned(schemars::schema_for!(ConfigFile), false);
            // What makes one task this one is no default of all tasks.
            let task = schema
                .pointer_mut("/$defs/TaskSpec/properties")
                .and_then(|value| value.as_object_mut());
            if let Some(properties) = task {
                for key in ["name", "purpose", "command"] {
                    properties.remove(key);
                }
            }
            schema
        }
    }
}

fn versioned(mut schema: Schema, required: bool) -> Schema {
    let object = schema.ensure_object();
    if let Some(serde_json::Value::Object(properties)) = object.get_mut("properties") {
        properties.insert("version".to_owned(), json!({ "const": 1 }));
    }
    if required {
        object.insert("required".to_owned(), json!(["version"]));
    }
    schema
}

/// The defaults of a machine, a user or a project.
#[derive(JsonSchema)]
#[schemars(title = "belljar configuration", deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is made")]
struct ConfigFile {
    /// Folders whose `.belljar/config.toml` counts. Not in a project's own file, as journal, egress, otlp and identity are not.
    #[schemars(default)]
    trusted_folders: Vec<String>,
    /// The defaults of all tasks.
    task: Option<TaskSpec>,
    journal: Option<Journal>,
    egress: Option<Egress>,
    /// Where records are sent.
    #[schemars(default)]
    otlp: Vec<Otlp>,
    identity: Option<Token>,
    approvals: Option<Approvals>,
    reviewer: Option<ReviewerTable>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is made")]
struct Approvals {
    #[schemars(range(min = 1, max = 1000))]
    open: Option<u32>,
    #[schemars(range(min = 1, max = 1000))]
    asked: Option<u32>,
    /// A time: `10m`.
    within: Option<String>,
    repeat: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is made")]
struct ReviewerTable {
    by: super::approvals::Kind,
    /// A time, at most 90s.
    time: Option<String>,
    /// A program's absolute path and its arguments.
    #[schemars(default)]
    command: Vec<String>,
    /// The base URL of an API like OpenAI's.
    endpoint: Option<String>,
    /// `chat` or `responses`.
    api: Option<String>,
    model: Option<String>,
    /// `keyring:NAME`, `env:NAME` or `file:PATH`.
    key: Option<String>,
    /// What is added to the built-in policy.
    policy: Option<String>,
    #[schemars(default)]
    classes: Vec<ReviewerClass>,
    /// `low` or `medium`.
    pass: Option<String>,
}

/// Either `command` or `host`.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is made")]
struct ReviewerClass {
    /// `low`, `medium`, `high` or `critical`.
    risk: String,
    #[schemars(default)]
    command: Vec<String>,
    host: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is made")]
struct Journal {
    sync: Option<Sync>,
    /// A size: `1GiB`.
    rotate_size: Option<String>,
    /// A time: `30d`.
    rotate_age: Option<String>,
    keep: Option<String>,
    /// Patterns: the `*` is what must not stand in a record.
    #[schemars(default)]
    redact: Vec<String>,
    agent_events: Option<AgentEvents>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is made")]
struct JournalDemands {
    sync: Option<Sync>,
    #[schemars(default)]
    redact: Vec<String>,
    #[schemars(length(min = 1))]
    agent_events: Option<Vec<AgentEvents>>,
    /// A time: `90d`.
    keep: Option<String>,
}

/// How ways out reach the world.
#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is made")]
struct Egress {
    /// Files of certificates, in PEM.
    #[schemars(default)]
    extra_roots: Vec<String>,
    /// The URL of an HTTP proxy.
    upstream: Option<String>,
    /// Folders of stored answers.
    #[schemars(default)]
    cache: Vec<String>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is made")]
struct EgressDemands {
    upstream: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is made")]
struct Otlp {
    /// A URL of http or https.
    endpoint: String,
    /// A value may be `file:PATH`.
    #[schemars(default)]
    headers: BTreeMap<String, String>,
    /// `grpc` or `http`.
    protocol: Option<String>,
    /// `none` or `gzip`.
    compression: Option<String>,
    signals: Option<Vec<Signal>>,
    /// Files in PEM.
    ca: Option<String>,
    client_certificate: Option<String>,
    client_key: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is made")]
struct Token {
    /// Where the token is that says who asks: `keyring:NAME`, `env:NAME` or `file:PATH`.
    token: Option<String>,
}

/// What the admin demands of every task.
#[derive(JsonSchema)]
#[schemars(title = "belljar requirements", deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is made")]
struct RequirementsFile {
    task: Option<TaskDemands>,
    roots: Option<RootDemands>,
    limits: Option<LimitDemands>,
    network: Option<NetworkDemands>,
    egress: Option<EgressDemands>,
    gate: Option<GateDemands>,
    journal: Option<JournalDemands>,
    otlp: Option<OtlpDemands>,
    identity: Option<IdentityDemands>,
    bundle: Option<BundleDemands>,
    codex: Option<CodexDemands>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is made")]
struct TaskDemands {
    #[schemars(length(min = 1))]
    backends: Option<Vec<Backend>>,
    #[schemars(length(min = 1))]
    runtimes: Option<Vec<String>>,
    /// Patterns: `*` is any text.
    #[schemars(length(min = 1))]
    images: Option<Vec<String>>,
    #[schemars(length(min = 1))]
    users: Option<Vec<User>>,
    accept_partial: Option<Vec<Guarantee>>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is made")]
struct RootDemands {
    /// Absolute; so are the next two.
    writable: Option<Vec<String>>,
    readable: Option<Vec<String>>,
    denied: Option<Vec<String>>,
    #[schemars(length(min = 1))]
    git: Option<Vec<GitMode>>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is made")]
struct LimitDemands {
    /// A size: `8GiB`.
    memory: Option<String>,
    cpus: Option<f64>,
    pids: Option<u32>,
    disk: Option<String>,
    /// A time: `90s`, `8h`.
    task_time: Option<String>,
    exec_time: Option<String>,
    output: Option<String>,
    approval_time: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is made")]
struct NetworkDemands {
    #[schemars(length(min = 1))]
    modes: Option<Vec<NetworkMode>>,
    /// Patterns of hosts; none lets no host be allowed.
    allow: Option<Vec<String>>,
    #[schemars(default)]
    deny: Vec<String>,
    #[schemars(length(min = 1))]
    unknown: Option<Vec<Unknown>>,
    /// Patterns of hosts that every task with a way out may reach.
    #[schemars(default)]
    always: Vec<String>,
    #[schemars(default)]
    hosts: Vec<HostSpec>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is made")]
struct GateDemands {
    /// Absolute paths of files that root alone can write.
    #[schemars(default)]
    rules: Vec<String>,
    #[schemars(length(min = 1))]
    unmatched: Option<Vec<Unmatched>>,
    #[schemars(length(min = 1))]
    reviewers: Option<Vec<Reviewer>>,
    #[schemars(length(min = 1))]
    reviewer_endpoints: Option<Vec<String>>,
    #[schemars(length(min = 1))]
    approvers: Option<Vec<WhoApproves>>,
    #[schemars(length(min = 1))]
    scopes: Option<Vec<Scope>>,
    never_ask: Option<bool>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is made")]
struct OtlpDemands {
    #[schemars(length(min = 1))]
    endpoints: Option<Vec<String>>,
    required: Option<bool>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is made")]
struct IdentityDemands {
    #[schemars(length(min = 1))]
    users: Option<Vec<String>>,
    #[schemars(length(min = 1))]
    groups: Option<Vec<String>>,
    #[schemars(length(min = 1))]
    methods: Option<Vec<Method>>,
    #[schemars(length(min = 1))]
    workspaces: Option<Vec<String>>,
    oidc: Option<OidcDemands>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is made")]
struct OidcDemands {
    issuer: String,
    audience: String,
    /// The absolute path of a JWK set.
    jwks: String,
    user_claim: Option<String>,
    workspace_claim: Option<String>,
    groups_claim: Option<String>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is made")]
struct BundleDemands {
    url: String,
    /// `ed25519:` and 64 hex digits each.
    #[schemars(length(min = 1))]
    public_keys: Vec<String>,
    required: Option<bool>,
    refresh: Option<String>,
    least_serial: Option<u64>,
}

#[derive(JsonSchema)]
#[schemars(deny_unknown_fields)]
#[allow(dead_code, reason = "only its schema is made")]
struct CodexDemands {
    /// The absolute path of a `requirements.toml` of Codex's.
    requirements: String,
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::Value;

    /// Every key of a page, as `table.key`; keys that are off are written `#key`.
    fn keys(page: &str) -> Vec<String> {
        let lines = page.lines().map(|line| match line.strip_prefix('#') {
            Some(key) if !key.starts_with(' ') => key,
            _ => line,
        });
        let text: String = lines.flat_map(|line| [line, "\n"]).collect();
        let mut keys = Vec::new();
        walk("", &text.parse::<toml::Table>().unwrap().into(), &mut keys);
        keys
    }

    fn walk(at: &str, value: &toml::Value, keys: &mut Vec<String>) {
        if let toml::Value::Array(items) = value {
            items.iter().for_each(|item| walk(at, item, keys));
        }
        let Some(table) = value.as_table() else { return };
        for (key, value) in table {
            let at = if at.is_empty() {
                key.clone()
            } else {
                format!("{at}.{key}")
            };
            keys.push(at.clone());
            walk(&at, value, keys);
        }
    }

    /// Every key of a schema, likewise; what is keyed by names of the user's own ends the path.
    fn properties(root: &Value, at: &str, schema: &Value, found: &mut Vec<String>) {
        let target = match schema["$ref"].as_str() {
            Some(path) => root.pointer(path.trim_start_matches('#')).unwrap(),
            None => schema,
        };
        for part in ["anyOf", "oneOf"] {
            for one in target[part].as_array().into_iter().flatten() {
                properties(root, at, one, found);
            }
        }
        if target["items"].is_object() {
            properties(root, at, &target["items"], found);
        }
        for (key, inner) in target["properties"].as_object().into_iter().flatten() {
            let at = if at.is_empty() {
                key.clone()
            } else {
                format!("{at}.{key}")
            };
            found.push(at.clone());
            properties(root, &at, inner, found);
        }
    }

    #[test]
    fn the_schemas_have_the_keys_of_the_pages() {
        for (kind, page) in [
            (Kind::Config, include_str!("../../config/default.toml")),
            (
                Kind::Requirements,
                include_str!("../../config/requirements.example.toml"),
            ),
        ] {
            let schema = serde_json::to_value(schema(kind)).unwrap();
            let mut known = Vec::new();
            properties(&schema, "", &schema, &mut known);
            let by_name = ["task.env.", "task.secrets.", "otlp.headers."];
            let written: Vec<String> = keys(page)
                .into_iter()
                .filter(|key| !by_name.iter().any(|prefix| key.starts_with(prefix)))
                .collect();
            let unknown: Vec<&String> = written.iter().filter(|key| !known.contains(key)).collect();
            assert!(unknown.is_empty(), "not in the schema of {kind:?}: {unknown:?}");
            let unwritten: Vec<&String> = known
                .iter()
                .filter(|key| *key != "version" && !written.contains(key))
                // What stands in tables of a task spec is left to the page of those.
                .filter(|key| !["_roots.", "network.hosts."].iter().any(|table| key.contains(table)))
                .collect();
            assert!(unwritten.is_empty(), "not on the page of {kind:?}: {unwritten:?}");
        }
    }
}
