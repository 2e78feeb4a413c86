//! A file of requirements as it stands.

use std::path::Path;
use std::time::Duration;

use super::Requirements;
use crate::config::bundle::Demand;
use crate::config::identity::{Keys, Oidc};
use crate::config::layers::{endpoint, redaction, upstream};
use crate::document::{Document, Faults, Sited, Table, Value, Word};
use crate::policy::rules::built_in;
use crate::task::{Unknown, spec};

pub(super) fn from_toml(text: &str, file: &str) -> Result<Requirements, Faults> {
    Document::parse(text, file)?.read(|root| {
        if let Some(version) = root.required("version", "version = 1") {
            version.integer(1..=1);
        }
        let mut demands = Requirements::default();
        if let Some(table) = root.table("task") {
            demands.backends = words(&table, "backends");
            demands.runtimes = texts(&table, "runtimes", plain);
            demands.images = texts(&table, "images", plain);
            demands.users = words(&table, "users");
            demands.accept_partial = words_or_none(&table, "accept_partial");
        }
        if let Some(table) = root.table("roots") {
            demands.writable = folders(&table, "writable");
            demands.readable = folders(&table, "readable");
            demands.denied = folders(&table, "denied");
            demands.git = words(&table, "git");
        }
        if let Some(table) = root.table("limits") {
            let limits = spec::limits(&table);
            demands.memory = limits.memory;
            demands.cpus = limits.cpus;
            demands.pids = limits.pids;
            demands.disk = limits.disk;
            demands.task_time = limits.task_time;
            demands.exec_time = limits.exec_time;
            demands.output = limits.output;
            demands.approval_time = table.parsed("approval_time", spec::time);
        }
        if let Some(table) = root.table("network") {
            demands.modes = words(&table, "modes");
            demands.allow = texts_or_none(&table, "allow", spec::host_pattern);
            demands.deny = table.list("deny", spec::host_pattern);
            demands.unknown = words(&table, "unknown");
            demands.always = table.list("always", spec::host_pattern);
            demands.hosts = spec::hosts(&table);
        }
        if let Some(table) = root.table("egress") {
            demands.upstream = table.parsed("upstream", upstream);
        }
        if let Some(table) = root.table("gate") {
            demands.rules = table.list("rules", |text| match text.strip_prefix(spec::BUILT_IN) {
                Some(name) if built_in(name).is_some() => Ok(text.to_owned()),
                Some(name) => Err(format!("there are no built-in rules \"{name}\"")),
                None => absolute(text),
            });
            demands.unmatched = words(&table, "unmatched");
            demands.reviewers = words(&table, "reviewers");
            demands.reviewer_endpoints = texts(&table, "reviewer_endpoints", endpoint);
            demands.approvers = words(&table, "approvers");
            demands.scopes = words(&table, "scopes");
            demands.never_ask = table.flag("never_ask");
            if let Some(never) = demands
                .never_ask
                .as_ref()
                .filter(|never| never.value && demands.unknown.is_none())
            {
                demands.unknown = Some(Sited::new(vec![Unknown::Deny], never.origin.clone()));
            }
        }
        if let Some(table) = root.table("journal") {
            demands.sync = table.word("sync");
            demands.redact = table.list("redact", redaction);
            demands.agent_events = words(&table, "agent_events");
            demands.keep = table.parsed("keep", spec::time);
        }
        if let Some(table) = root.table("otlp") {
            demands.endpoints = texts(&table, "endpoints", endpoint);
            demands.endpoint_required = table.flag("required");
        }
        if let Some(table) = root.table("identity") {
            demands.identity_users = texts(&table, "users", plain);
            demands.identity_groups = texts(&table, "groups", plain);
            demands.identity_methods = words(&table, "methods");
            demands.identity_workspaces = texts(&table, "workspaces", plain);
            demands.identity_oidc = table.table("oidc").and_then(|table| oidc(&table));
            if let (Some(workspaces), None) = (&demands.identity_workspaces, &demands.identity_oidc) {
                let what = "only a token names a workspace: an issuer is needed (identity.oidc)";
                table.fault(&workspaces.origin, "workspaces", what);
            }
        }
        if let Some(table) = root.table("bundle") {
            demands.bundle = bundle(&table);
        }
        if let Some(table) = root.table("codex") {
            demands.codex = table
                .required("requirements", "a path")
                .and_then(|value| value.parsed(absolute));
        }
        demands
    })
}

fn oidc(table: &Table<'_>) -> Option<Oidc> {
    let text = |key: &'static str, expected| table.required(key, expected).and_then(|value| value.parsed(plain));
    let claim = |key: &'static str, usual: &str| {
        let claim = table.parsed(key, plain).map(|claim| claim.value);
        claim.unwrap_or_else(|| usual.to_owned())
    };
    let (issuer, audience) = (
        text("issuer", "the iss of its tokens"),
        text("audience", "the aud of its tokens"),
    );
    let jwks = table
        .required("jwks", "the file of the issuer's keys")
        .and_then(|value| value.parsed(absolute));
    let claims = [
        claim("user_claim", "email"),
        claim("workspace_claim", "workspace"),
        claim("groups_claim", "groups"),
    ];
    let [user_claim, workspace_claim, groups_claim] = claims;
    Some(Oidc {
        issuer: issuer?,
        audience: audience?,
        jwks: jwks?,
        // Read by whoever sees to it that root alone has written them.
        keys: Keys::default(),
        user_claim,
        workspace_claim,
        groups_claim,
    })
}

/// How long a copy counts as fresh where nothing is said: a change is everywhere within a quarter of an hour.
const REFRESH: Duration = Duration::from_secs(15 * 60);

fn bundle(table: &Table<'_>) -> Option<Demand> {
    let url = table
        .required("url", "a URL")
        .and_then(|value| value.parsed(bundle_url));
    let keys = table.required("public_keys", "the keys that may sign it");
    let public_keys = table.list("public_keys", |text| text.parse().map_err(|error| format!("{error}")));
    if let Some(value) = keys.filter(|value| value.list().is_some_and(|list| list.is_empty())) {
        value.fault("without a key nothing can be trusted");
    }
    let required = table.flag("required").is_none_or(|flag| flag.value);
    let refresh = table.parsed("refresh", spec::time);
    let least_serial = table
        .value("least_serial")
        .and_then(|value| value.integer(0..=i64::MAX));
    Some(Demand {
        url: url?,
        public_keys,
        required,
        refresh: refresh.map_or(REFRESH, |refresh| refresh.value),
        least_serial: least_serial.map_or(0, |serial| serial.value.unsigned_abs()),
    })
}

/// HTTPS; plain HTTP only from this machine itself, by address, for what serves it may be anybody's otherwise.
fn bundle_url(text: &str) -> Result<String, String> {
    let url = endpoint(text)?;
    let local = ["http://127.0.0.1", "http://[::1]"];
    let is_local = |rest: &str| rest.is_empty() || rest.starts_with([':', '/']);
    match text.starts_with("https://") || local.iter().any(|local| text.strip_prefix(local).is_some_and(is_local)) {
        true => Ok(url),
        false => Err(format!(
            "{text:?} is neither https nor of this machine (http://127.0.0.1)"
        )),
    }
}

/// A list that something must be on: an empty one would refuse all, and is more likely a slip than meant.
fn texts(
    table: &Table<'_>,
    key: &'static str,
    read: impl Fn(&str) -> Result<String, String>,
) -> Option<Sited<Vec<String>>> {
    let list = texts_or_none(table, key, read)?;
    if list.value.is_empty() {
        table.value(key)?.fault("an empty list would refuse every task");
    }
    Some(list)
}

/// A list whose emptiness means something: no host at all.
fn texts_or_none(
    table: &Table<'_>,
    key: &'static str,
    read: impl Fn(&str) -> Result<String, String>,
) -> Option<Sited<Vec<String>>> {
    let value = table.value(key)?;
    let list = value
        .list()?
        .iter()
        .filter_map(|text| text.parsed(&read))
        .map(|text| text.value)
        .collect();
    Some(Sited::new(list, value.origin()))
}

fn words<T: Word>(table: &Table<'_>, key: &'static str) -> Option<Sited<Vec<T>>> {
    let value: Value<'_> = table.value(key)?;
    if value.list()?.is_empty() {
        value.fault("an empty list would refuse every task");
    }
    words_of(&value)
}

/// A list whose emptiness means something: nothing is accepted.
fn words_or_none<T: Word>(table: &Table<'_>, key: &'static str) -> Option<Sited<Vec<T>>> {
    words_of(&table.value(key)?)
}

fn words_of<T: Word>(value: &Value<'_>) -> Option<Sited<Vec<T>>> {
    let list = value.list()?;
    let words = list.iter().filter_map(|word| word.parsed(T::read));
    Some(Sited::new(words.map(|word| word.value).collect(), value.origin()))
}

fn folders(table: &Table<'_>, key: &'static str) -> Option<Sited<Vec<String>>> {
    texts_or_none(table, key, absolute)
}

fn plain(text: &str) -> Result<String, String> {
    match text.is_empty() || text.chars().any(char::is_control) {
        true => Err("the text is empty or holds a control character".to_owned()),
        false => Ok(text.to_owned()),
    }
}

/// Not relative to anything, and not a way around anything.
fn absolute(text: &str) -> Result<String, String> {
    let path = crate::path::HostPath::new(Path::new(text)).map_err(|error| error.to_string())?;
    Ok(path.to_string())
}
