//! The configuration as a list of settings, each with the place that it came from.

use serde::Serialize;
use serde_json::{Value, json};

use super::{Config, Requirements};
use crate::document::{Origin, Sited, Word};
use crate::task::limits::Bytes;
use crate::task::spec::{HostSpec, TaskSpec};

/// One key with its value and its place.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Setting {
    pub key: String,
    pub value: Value,
    pub origin: Origin,
}

impl Config {
    /// Every setting that holds, in the order of `config/default.toml`, then what is demanded. Values of headers are hidden.
    pub fn settings(&self) -> Vec<Setting> {
        let mut list = Listing::default();
        list.each("trusted_folders", &self.trusted_folders);
        list.task("task.", &self.task);
        list.word("journal.sync", Some(&self.journal.sync));
        list.size("journal.rotate_size", self.journal.rotate_size.as_ref());
        list.time("journal.rotate_age", self.journal.rotate_age.as_ref());
        list.time("journal.keep", self.journal.keep.as_ref());
        list.each("journal.redact", &self.journal.redact);
        list.word("journal.agent_events", Some(&self.journal.agent_events));
        list.each("egress.extra_roots", &self.egress.extra_roots);
        list.text("egress.upstream", self.egress.upstream.as_ref());
        list.each("egress.cache", &self.egress.cache);
        for (n, otlp) in self.otlp.iter().enumerate() {
            list.one(&format!("otlp[{n}].endpoint"), Some(&otlp.endpoint), |text| json!(text));
            for (name, value) in &otlp.headers {
                list.one(&format!("otlp[{n}].headers.{name}"), Some(value), |_| json!("(hidden)"));
            }
            list.word(&format!("otlp[{n}].protocol"), otlp.protocol.as_ref());
            list.word(&format!("otlp[{n}].compression"), otlp.compression.as_ref());
            for (m, signal) in otlp.signals.iter().enumerate() {
                list.word(&format!("otlp[{n}].signals[{m}]"), Some(signal));
            }
            for (key, file) in [
                ("ca", &otlp.ca),
                ("client_certificate", &otlp.client_certificate),
                ("client_key", &otlp.client_key),
            ] {
                list.one(&format!("otlp[{n}].{key}"), file.as_ref(), |path| json!(path));
            }
        }
        list.one("identity.token", self.token.as_ref(), |source| {
            json!(source.to_string())
        });
        let approvals = &self.approvals;
        list.one("approvals.open", approvals.open.as_ref(), |count| json!(count));
        list.one("approvals.asked", approvals.asked.as_ref(), |count| json!(count));
        list.time("approvals.within", approvals.within.as_ref());
        list.time("approvals.repeat", approvals.repeat.as_ref());
        list.one("reviewer", self.reviewer.as_ref(), |reviewer| {
            json!(reviewer.by.to_string())
        });
        for demands in &self.requirements {
            list.demands(demands);
        }
        list.0
    }
}

#[derive(Default)]
struct Listing(Vec<Setting>);

impl Listing {
    fn one<T>(&mut self, key: &str, sited: Option<&Sited<T>>, value: impl Fn(&T) -> Value) {
        if let Some(sited) = sited {
            self.0.push(Setting {
                key: key.to_owned(),
                value: value(&sited.value),
                origin: sited.origin.clone(),
            });
        }
    }

    fn word<T: Word + PartialEq>(&mut self, key: &str, sited: Option<&Sited<T>>) {
        self.one(key, sited, |word| json!(word.word()));
    }

    fn text(&mut self, key: &str, sited: Option<&Sited<String>>) {
        self.one(key, sited, |text| json!(text));
    }

    fn size(&mut self, key: &str, sited: Option<&Sited<Bytes>>) {
        self.one(key, sited, |bytes| json!(bytes.to_string()));
    }

    fn time(&mut self, key: &str, sited: Option<&Sited<std::time::Duration>>) {
        self.one(key, sited, |time| json!(format!("{time:?}")));
    }

    fn each(&mut self, key: &str, list: &[Sited<String>]) {
        for (n, text) in list.iter().enumerate() {
            self.text(&format!("{key}[{n}]"), Some(text));
        }
    }

    fn hosts(&mut self, key: &str, hosts: &[HostSpec]) {
        for (n, host) in hosts.iter().enumerate() {
            let at = format!("{key}[{n}]");
            self.text(&format!("{at}.host"), Some(&host.host));
            for (n, port) in host.ports.iter().enumerate() {
                self.one(&format!("{at}.ports[{n}]"), Some(port), |port| json!(port));
            }
            self.one(&format!("{at}.methods"), host.methods.as_ref(), |methods| {
                json!(methods)
            });
            self.each(&format!("{at}.paths"), &host.paths);
        }
    }

    fn words<T: Word + PartialEq>(&mut self, key: &str, sited: Option<&Sited<Vec<T>>>) {
        self.one(key, sited, |words| {
            words.iter().map(|word| word.word()).collect::<Vec<_>>().into()
        });
    }

    fn texts(&mut self, key: &str, sited: Option<&Sited<Vec<String>>>) {
        self.one(key, sited, |texts| json!(texts));
    }

    fn demands(&mut self, demands: &Requirements) {
        self.words("requirements.task.backends", demands.backends.as_ref());
        self.texts("requirements.task.runtimes", demands.runtimes.as_ref());
        self.texts("requirements.task.images", demands.images.as_ref());
        self.words("requirements.task.users", demands.users.as_ref());
        self.words("requirements.task.accept_partial", demands.accept_partial.as_ref());
        self.texts("requirements.roots.writable", demands.writable.as_ref());
        self.texts("requirements.roots.readable", demands.readable.as_ref());
        self.texts("requirements.roots.denied", demands.denied.as_ref());
        self.each("requirements.roots.denied_patterns", &demands.denied_patterns);
        self.words("requirements.roots.git", demands.git.as_ref());
        self.size("requirements.limits.memory", demands.memory.as_ref());
        self.one("requirements.limits.cpus", demands.cpus.as_ref(), |cpus| json!(cpus));
        self.one("requirements.limits.pids", demands.pids.as_ref(), |pids| json!(pids));
        self.size("requirements.limits.disk", demands.disk.as_ref());
        self.time("requirements.limits.task_time", demands.task_time.as_ref());
        self.time("requirements.limits.exec_time", demands.exec_time.as_ref());
        self.size("requirements.limits.output", demands.output.as_ref());
        self.time("requirements.limits.approval_time", demands.approval_time.as_ref());
        self.words("requirements.network.modes", demands.modes.as_ref());
        self.texts("requirements.network.allow", demands.allow.as_ref());
        self.each("requirements.network.deny", &demands.deny);
        self.words("requirements.network.unknown", demands.unknown.as_ref());
        self.each("requirements.network.always", &demands.always);
        self.hosts("requirements.network.hosts", &demands.hosts);
        self.text("requirements.egress.upstream", demands.upstream.as_ref());
        self.one("requirements.egress.no_upstream", demands.no_upstream.as_ref(), |_| {
            json!(true)
        });
        self.each("requirements.gate.rules", &demands.rules);
        self.words("requirements.gate.unmatched", demands.unmatched.as_ref());
        self.words("requirements.gate.reviewers", demands.reviewers.as_ref());
        self.texts(
            "requirements.gate.reviewer_endpoints",
            demands.reviewer_endpoints.as_ref(),
        );
        self.each("requirements.gate.reviewer_policy", &demands.reviewer_policy);
        self.words("requirements.gate.approvers", demands.approvers.as_ref());
        self.words("requirements.gate.scopes", demands.scopes.as_ref());
        self.one("requirements.gate.never_ask", demands.never_ask.as_ref(), |flag| {
            json!(flag)
        });
        self.word("requirements.journal.sync", demands.sync.as_ref());
        self.each("requirements.journal.redact", &demands.redact);
        self.words("requirements.journal.agent_events", demands.agent_events.as_ref());
        self.time("requirements.journal.keep", demands.keep.as_ref());
        self.texts("requirements.otlp.endpoints", demands.endpoints.as_ref());
        self.one(
            "requirements.otlp.required",
            demands.endpoint_required.as_ref(),
            |flag| json!(flag),
        );
        self.texts("requirements.identity.users", demands.identity_users.as_ref());
        self.texts("requirements.identity.groups", demands.identity_groups.as_ref());
        self.words("requirements.identity.methods", demands.identity_methods.as_ref());
        self.texts("requirements.identity.workspaces", demands.identity_workspaces.as_ref());
        if let Some(oidc) = &demands.identity_oidc {
            self.text("requirements.identity.oidc.issuer", Some(&oidc.issuer));
            self.text("requirements.identity.oidc.audience", Some(&oidc.audience));
            self.text("requirements.identity.oidc.jwks", Some(&oidc.jwks));
        }
        if let Some(bundle) = &demands.bundle {
            self.text("requirements.bundle.url", Some(&bundle.url));
            for (n, key) in bundle.public_keys.iter().enumerate() {
                let at = format!("requirements.bundle.public_keys[{n}]");
                self.one(&at, Some(key), |key| json!(key.to_string()));
            }
        }
        self.text("requirements.codex.requirements", demands.codex.as_ref());
        self.each("requirements.codex.unheeded", &demands.unheeded);
    }

    fn task(&mut self, at: &str, task: &TaskSpec) {
        let key = |name: &str| format!("{at}{name}");
        self.text(&key("image"), task.image.as_ref());
        self.word(&key("user"), task.user.as_ref());
        self.word(&key("backend"), task.backend.as_ref());
        self.text(&key("runtime"), task.runtime.as_ref());
        for (n, one) in task.accept_partial.iter().flatten().enumerate() {
            self.word(&key(&format!("accept_partial[{n}]")), Some(one));
        }
        self.one(&key("workdir"), task.workdir.as_ref(), |path| json!(path));
        for (n, root) in task.writable_roots.iter().enumerate() {
            let at = key(&format!("writable_roots[{n}]"));
            self.text(&format!("{at}.host"), Some(&root.host));
            self.one(&format!("{at}.path"), root.path.as_ref(), |path| json!(path));
            self.word(&format!("{at}.git"), root.git.as_ref());
            self.each(&format!("{at}.protect"), &root.protect);
        }
        for (n, root) in task.readable_roots.iter().enumerate() {
            let at = key(&format!("readable_roots[{n}]"));
            self.text(&format!("{at}.host"), Some(&root.host));
            self.one(&format!("{at}.path"), root.path.as_ref(), |path| json!(path));
        }
        for (name, value) in &task.env {
            self.text(&key(&format!("env.{name}")), Some(value));
        }
        for (name, secret) in &task.secrets {
            self.text(&key(&format!("secrets.{name}.source")), Some(&secret.source));
            self.each(&key(&format!("secrets.{name}.hosts")), &secret.hosts);
            self.one(
                &key(&format!("secrets.{name}.header")),
                secret.header.as_ref(),
                |place| json!(place),
            );
            self.text(&key(&format!("secrets.{name}.query")), secret.query.as_ref());
            self.text(&key(&format!("secrets.{name}.basic")), secret.basic.as_ref());
            if let Some(aws) = &secret.aws {
                self.text(
                    &key(&format!("secrets.{name}.aws.access_key_id")),
                    Some(&aws.access_key_id),
                );
                self.text(
                    &key(&format!("secrets.{name}.aws.session_token")),
                    aws.session_token.as_ref(),
                );
            }
            if let Some(oauth) = &secret.oauth {
                self.text(&key(&format!("secrets.{name}.oauth.token_url")), Some(&oauth.token_url));
                self.text(&key(&format!("secrets.{name}.oauth.client_id")), Some(&oauth.client_id));
                self.text(&key(&format!("secrets.{name}.oauth.scope")), oauth.scope.as_ref());
            }
        }
        self.size(&key("limits.memory"), task.limits.memory.as_ref());
        self.one(&key("limits.cpus"), task.limits.cpus.as_ref(), |cpus| json!(cpus));
        self.one(&key("limits.pids"), task.limits.pids.as_ref(), |pids| json!(pids));
        self.size(&key("limits.disk"), task.limits.disk.as_ref());
        self.time(&key("limits.task_time"), task.limits.task_time.as_ref());
        self.time(&key("limits.exec_time"), task.limits.exec_time.as_ref());
        self.size(&key("limits.output"), task.limits.output.as_ref());
        self.word(&key("network.mode"), task.network.mode.as_ref());
        self.each(&key("network.allow"), &task.network.allow);
        self.each(&key("network.deny"), &task.network.deny);
        self.word(&key("network.unknown"), task.network.unknown.as_ref());
        self.hosts(&key("network.hosts"), &task.network.hosts);
        self.each(&key("gate.rules"), &task.gate.rules);
        self.word(&key("gate.unmatched"), task.gate.unmatched.as_ref());
        self.word(&key("gate.reviewer"), task.gate.reviewer.as_ref());
        self.word(&key("gate.approvers"), task.gate.approvers.as_ref());
        self.time(&key("gate.approval_time"), task.gate.approval_time.as_ref());
    }
}
