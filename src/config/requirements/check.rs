//! Holding what is asked to what is demanded: every violation, none clamped.

use std::path::Path;
use std::time::{Duration, SystemTime};

use super::Requirements;
use crate::approval::reviewer::{By, Settings};
use crate::config::identity::{self, Method};
use crate::config::{Caller, Egress, Journal, Otlp, Sync, is_built_in};
use crate::document::{Fault, Origin, Sited, Word};
use crate::egress::host::Authority;
use crate::egress::pattern::{List, Pattern};
use crate::task::limits::Bytes;
use crate::task::spec::TaskSpec;
use crate::task::{Access, Login, NetworkMode, Root, SecretSource};

/// A task as it is asked for, with what admission found out about it.
pub(in crate::config) struct Asked<'a> {
    pub spec: &'a TaskSpec,
    /// The roots that were found, with the place of each.
    pub roots: &'a [(Root, Origin, String)],
    /// The image as requirements know it: a name, `host`, or the path that was found.
    pub image: Option<&'a str>,
    pub mode: NetworkMode,
    pub caller: &'a Caller,
    /// The groups that the caller is in.
    pub groups: &'a [String],
}

/// The configuration that no task spec can change.
pub(in crate::config) struct ConfigAsked<'a> {
    pub journal: &'a Journal,
    pub egress: &'a Egress,
    pub otlp: &'a [Otlp],
    pub reviewer: Option<&'a Sited<Settings>>,
}

impl Requirements {
    /// Where only the built-in configuration speaks, what is demanded takes its place: nobody asked for more.
    pub(in crate::config) fn fill(&self, spec: &mut TaskSpec, journal: &mut Journal) {
        fill(&mut spec.backend, &self.backends);
        fill(&mut spec.runtime, &self.runtimes);
        fill(&mut spec.user, &self.users);
        fill(&mut spec.network.unknown, &self.unknown);
        fill(&mut spec.gate.unmatched, &self.unmatched);
        fill(&mut spec.gate.reviewer, &self.reviewers);
        fill(&mut spec.gate.approvers, &self.approvers);
        if let (Some(accepted), Some(allowed)) = (&mut spec.accept_partial, &self.accept_partial) {
            accepted.retain(|one| !is_built_in(&one.origin) || allowed.value.contains(&one.value));
        }
        cap(&mut spec.limits.memory, &self.memory);
        cap(&mut spec.limits.cpus, &self.cpus);
        cap(&mut spec.limits.pids, &self.pids);
        cap(&mut spec.limits.disk, &self.disk);
        cap(&mut spec.limits.task_time, &self.task_time);
        cap(&mut spec.limits.exec_time, &self.exec_time);
        cap(&mut spec.limits.output, &self.output);
        cap(&mut spec.gate.approval_time, &self.approval_time);
        let mut events = Some(journal.agent_events.clone());
        fill(&mut events, &self.agent_events);
        journal.agent_events = events.expect("it was filled above");
        // A pattern is no image: only a plain name can take the place of "host".
        let plain = |images: &Sited<Vec<String>>| {
            let names = images
                .value
                .iter()
                .filter(|image| !image.contains('*'))
                .cloned()
                .collect();
            Sited::new(names, images.origin.clone())
        };
        if let Some(images) = &self.images
            && !images.value.iter().any(|pattern| fits(pattern, "host"))
        {
            fill(&mut spec.image, &Some(plain(images)));
        }
        if let Some(sync) = &self.sync
            && is_built_in(&journal.sync.origin)
        {
            journal.sync = sync.clone();
        }
        spec.network.deny.extend(self.deny.iter().cloned());
    }

    /// A proxy that is demanded takes the place of none.
    pub(in crate::config) fn fill_egress(&self, egress: &mut Egress) {
        egress.upstream = egress.upstream.take().or_else(|| self.upstream.clone());
    }

    /// Every way in which a task asks for more than this file allows.
    pub(in crate::config) fn check(&self, asked: &Asked<'_>) -> Vec<Fault> {
        let mut found = Violations(Vec::new());
        let spec = asked.spec;
        found.word("backend", &spec.backend, &self.backends);
        found.word("user", &spec.user, &self.users);
        found.word("gate.unmatched", &spec.gate.unmatched, &self.unmatched);
        found.word("gate.reviewer", &spec.gate.reviewer, &self.reviewers);
        found.word("gate.approvers", &spec.gate.approvers, &self.approvers);
        if asked.mode == NetworkMode::Proxy {
            found.word("network.unknown", &spec.network.unknown, &self.unknown);
        }
        if let Some(allowed) = &self.accept_partial {
            let words: Vec<String> = allowed.value.iter().map(|word| word.word().to_owned()).collect();
            let asked = spec.accept_partial.iter().flatten();
            for one in asked.filter(|one| !allowed.value.contains(&one.value)) {
                found.note(
                    &one.origin,
                    "accept_partial",
                    quoted(one.value),
                    &words,
                    &allowed.origin,
                );
            }
        }
        found.limit("limits.memory", &spec.limits.memory, &self.memory, Bytes::to_string);
        found.limit("limits.cpus", &spec.limits.cpus, &self.cpus, f64::to_string);
        found.limit("limits.pids", &spec.limits.pids, &self.pids, u32::to_string);
        found.limit("limits.disk", &spec.limits.disk, &self.disk, Bytes::to_string);
        found.limit("limits.task_time", &spec.limits.task_time, &self.task_time, time);
        found.limit("limits.exec_time", &spec.limits.exec_time, &self.exec_time, time);
        found.limit("limits.output", &spec.limits.output, &self.output, Bytes::to_string);
        found.limit(
            "gate.approval_time",
            &spec.gate.approval_time,
            &self.approval_time,
            time,
        );
        if let (Some(runtime), Some(allowed)) = (&spec.runtime, &self.runtimes)
            && !allowed.value.contains(&runtime.value)
        {
            found.note(
                &runtime.origin,
                "runtime",
                format!("\"{}\"", runtime.value),
                &allowed.value,
                &allowed.origin,
            );
        }
        if let (Some(text), Some(image), Some(allowed)) = (&spec.image, asked.image, &self.images)
            && !allowed.value.iter().any(|pattern| fits(pattern, image))
        {
            found.note(
                &text.origin,
                "image",
                format!("\"{image}\""),
                &allowed.value,
                &allowed.origin,
            );
        }
        if let (Some(text), Some(path)) = (&spec.image, asked.image.filter(|image| image.starts_with('/'))) {
            self.check_denied(Path::new(path), &text.origin, "image", &mut found);
        }
        self.check_roots(asked, &mut found);
        self.check_network(asked, &mut found);
        self.check_identity(asked, &mut found);
        found.0
    }

    fn check_roots(&self, asked: &Asked<'_>, found: &mut Violations) {
        for (root, origin, key) in asked.roots {
            let host = root.host.as_path();
            let key = format!("{key}.host");
            let within = |list: &Option<Sited<Vec<String>>>| {
                list.as_ref()
                    .is_some_and(|list| list.value.iter().any(|folder| Self::covers(folder, host)))
            };
            let (list, is_within) = match root.access {
                Access::Write => (&self.writable, within(&self.writable)),
                Access::Read => (&self.readable, within(&self.readable) || within(&self.writable)),
            };
            if let Some(allowed) = list
                && !is_within
            {
                found.note(
                    origin,
                    &key,
                    format!("\"{host}\"", host = host.display()),
                    &allowed.value,
                    &allowed.origin,
                );
            }
            self.check_denied(host, origin, &key, found);
            if root.access == Access::Write
                && let Some(allowed) = &self.git
                && !allowed.value.contains(&root.git)
            {
                let words: Vec<String> = allowed.value.iter().map(|git| git.word().to_owned()).collect();
                found.note(
                    origin,
                    &key.replace(".host", ".git"),
                    quoted(root.git),
                    &words,
                    &allowed.origin,
                );
            }
        }
    }

    /// A denied folder is denied by its real path too, or a link on the way to it would open it.
    fn check_denied(&self, host: &Path, origin: &Origin, key: &str, found: &mut Violations) {
        let Some(denied) = &self.denied else { return };
        for folder in &denied.value {
            let real = Path::new(folder).canonicalize().unwrap_or_else(|_| folder.into());
            if [Path::new(folder), &real]
                .iter()
                .any(|folder| host.starts_with(folder) || folder.starts_with(host))
            {
                let what = format!(
                    "\"{}\" would open \"{folder}\", which {} denies",
                    host.display(),
                    denied.origin
                );
                found.push(origin, key, what);
            }
        }
    }

    fn check_network(&self, asked: &Asked<'_>, found: &mut Violations) {
        let network = &asked.spec.network;
        if let Some(allowed) = &self.modes
            && !allowed.value.contains(&asked.mode)
        {
            let words: Vec<String> = allowed.value.iter().map(|mode| mode.word().to_owned()).collect();
            // Without a mode of its own, the first allowed host is what asked for the proxy.
            let origin = network.mode.as_ref().map(|mode| &mode.origin);
            let origin = origin
                .or_else(|| Some(&network.allow.first()?.origin))
                .unwrap_or(&allowed.origin);
            found.note(origin, "network.mode", quoted(asked.mode), &words, &allowed.origin);
        }
        if let Some(allowed) = &self.allow {
            let ruled = network.hosts.iter().map(|rule| &rule.host);
            for host in network.allow.iter().chain(ruled) {
                if !allowed.value.iter().any(|pattern| is_covered(&host.value, pattern)) {
                    found.note(
                        &host.origin,
                        "network.allow",
                        format!("\"{}\"", host.value),
                        &allowed.value,
                        &allowed.origin,
                    );
                }
            }
        }
    }

    /// Why nothing may be fetched from a host. A pattern that cannot be read forbids everything.
    pub(in crate::config) fn forbids_host(&self, authority: &Authority) -> Option<String> {
        let Authority { host, port } = authority;
        let denies = |text: &&Sited<String>| {
            Pattern::parse(&text.value, List::Deny).map_or(true, |pattern| pattern.denies(host, *port))
        };
        if let Some(denied) = self.deny.iter().find(denies) {
            return Some(format!("\"{}\" is denied ({})", denied.value, denied.origin));
        }
        let allowed = self.allow.as_ref()?;
        let allows = |text: &String| Pattern::parse(text, List::Allow).is_ok_and(|pattern| pattern.allows(host, *port));
        let forced = self.always.iter().map(|host| &host.value);
        match allowed.value.iter().chain(forced).any(allows) {
            true => None,
            false => Some(format!("the host is not allowed ({})", allowed.origin)),
        }
    }

    fn check_identity(&self, asked: &Asked<'_>, found: &mut Violations) {
        let (users, groups) = (&self.identity_users, &self.identity_groups);
        let Some(demand) = users.as_ref().or(groups.as_ref()) else {
            return;
        };
        let by_name = users
            .as_ref()
            .is_some_and(|users| users.value.contains(&asked.caller.user));
        let by_group = groups
            .as_ref()
            .is_some_and(|groups| groups.value.iter().any(|group| asked.groups.contains(group)));
        if !by_name && !by_group {
            let what = format!("user \"{}\" is not among those who may run tasks", asked.caller.user);
            found.push(&demand.origin, "identity", what);
        }
    }

    /// What a token says of who asks, where this file names its issuer; each way in which that is not enough is a violation.
    pub(in crate::config) fn check_login(
        &self,
        token: Option<&Sited<SecretSource>>,
        violations: &mut Vec<Fault>,
    ) -> Option<Login> {
        let mut found = Violations(Vec::new());
        let login = match (token, &self.identity_oidc) {
            (Some(token), Some(oidc)) => match identity::login(&token.value, oidc, SystemTime::now()) {
                Ok(login) => Some(login),
                // Also where a login by the OS would do: a token that is there and wrong is no slip to look past.
                Err(error) => {
                    found.push(&token.origin, "identity.token", error.to_string());
                    violations.append(&mut found.0);
                    return None;
                }
            },
            _ => None,
        };
        let method = match login {
            Some(_) => Method::Oidc,
            None => Method::Os,
        };
        if let Some(methods) = &self.identity_methods
            && !methods.value.contains(&method)
        {
            let what = match method {
                Method::Os => "a login by token is demanded, and no token is set (identity.token of the configuration)",
                Method::Oidc => "a login by token is not among the methods that are allowed",
            };
            found.push(&methods.origin, "identity.methods", what.to_owned());
        }
        if let Some(workspaces) = &self.identity_workspaces {
            let workspace = login.as_ref().and_then(|login| login.workspace.as_deref());
            match workspace {
                None => found.push(
                    &workspaces.origin,
                    "identity.workspaces",
                    "whoever asks is in no workspace: no token names one".to_owned(),
                ),
                Some(workspace) if !workspaces.value.iter().any(|allowed| allowed == workspace) => found.push(
                    &workspaces.origin,
                    "identity.workspaces",
                    format!("workspace \"{workspace}\" is not among those that may run tasks"),
                ),
                Some(_) => {}
            }
        }
        violations.append(&mut found.0);
        login
    }

    /// The violation of sending records to a receiver that a flag or a variable names.
    pub(in crate::config) fn check_endpoint(&self, endpoint: &str) -> Option<Fault> {
        let allowed = self.endpoints.as_ref()?;
        if allowed.value.iter().any(|one| one == endpoint) {
            return None;
        }
        let mut found = Violations(Vec::new());
        found.note(
            &Origin::Flag("--otlp"),
            "",
            format!("\"{endpoint}\""),
            &allowed.value,
            &allowed.origin,
        );
        found.0.pop()
    }

    /// Every way in which the configuration goes beyond this file.
    pub(in crate::config) fn check_config(&self, asked: &ConfigAsked<'_>) -> Vec<Fault> {
        let mut found = Violations(Vec::new());
        let sync = &asked.journal.sync;
        if let Some(demanded) = &self.sync
            && sync.value == Sync::Group
            && demanded.value == Sync::Each
        {
            found.note(
                &sync.origin,
                "journal.sync",
                quoted(sync.value),
                &["each".to_owned()],
                &demanded.origin,
            );
        }
        if let (Some(demanded), Some(upstream)) = (&self.upstream, &asked.egress.upstream)
            && demanded.value != upstream.value
        {
            let allowed = std::slice::from_ref(&demanded.value);
            found.note(
                &upstream.origin,
                "egress.upstream",
                format!("\"{}\"", upstream.value),
                allowed,
                &demanded.origin,
            );
        }
        found.word(
            "journal.agent_events",
            &Some(asked.journal.agent_events.clone()),
            &self.agent_events,
        );
        if let (Some(keep), Some(least)) = (&asked.journal.keep, &self.keep)
            && keep.value < least.value
        {
            let what = format!(
                "archives are kept for {:?} only, at least {:?} is demanded ({})",
                keep.value, least.value, least.origin
            );
            found.push(&keep.origin, "journal.keep", what);
        }
        if let Some(allowed) = &self.endpoints {
            for otlp in asked.otlp {
                if !allowed.value.contains(&otlp.endpoint.value) {
                    let endpoint = format!("\"{}\"", otlp.endpoint.value);
                    found.note(
                        &otlp.endpoint.origin,
                        "otlp.endpoint",
                        endpoint,
                        &allowed.value,
                        &allowed.origin,
                    );
                }
            }
        }
        if let Some(allowed) = &self.reviewer_endpoints
            && let Some(reviewer) = asked.reviewer
            && let By::Model(model) = &reviewer.value.by
            && !allowed.value.contains(&model.endpoint)
        {
            found.note(
                &reviewer.origin,
                "reviewer.endpoint",
                format!("\"{}\"", model.endpoint),
                &allowed.value,
                &allowed.origin,
            );
        }
        if let Some(required) = &self.endpoint_required
            && required.value
            && asked.otlp.is_empty()
        {
            found.push(
                &required.origin,
                "otlp.required",
                "no receiver of records is configured".to_owned(),
            );
        }
        found.0
    }
}

struct Violations(Vec<Fault>);

impl Violations {
    fn push(&mut self, origin: &Origin, key: &str, what: String) {
        let key = match origin {
            Origin::Flag(_) => String::new(),
            Origin::File { .. } => key.to_owned(),
        };
        self.0.push(Fault {
            origin: origin.clone(),
            key,
            what,
        });
    }

    fn note(&mut self, origin: &Origin, key: &str, asked: String, allowed: &[String], by: &Origin) {
        let allowed = match allowed {
            [] => "nothing".to_owned(),
            some => some
                .iter()
                .map(|one| format!("\"{one}\""))
                .collect::<Vec<_>>()
                .join(", "),
        };
        self.push(origin, key, format!("{asked} is not allowed, only {allowed} ({by})"));
    }

    fn word<T: Word + PartialEq>(&mut self, key: &str, asked: &Option<Sited<T>>, allowed: &Option<Sited<Vec<T>>>) {
        if let (Some(asked), Some(allowed)) = (asked, allowed)
            && !allowed.value.contains(&asked.value)
        {
            let words: Vec<String> = allowed.value.iter().map(|word| word.word().to_owned()).collect();
            self.note(&asked.origin, key, quoted(asked.value), &words, &allowed.origin);
        }
    }

    fn limit<T: PartialOrd>(
        &mut self,
        key: &str,
        asked: &Option<Sited<T>>,
        most: &Option<Sited<T>>,
        show: impl Fn(&T) -> String,
    ) {
        if let (Some(asked), Some(most)) = (asked, most)
            && asked.value > most.value
        {
            let what = format!(
                "{} is more than the {} that {} allows",
                show(&asked.value),
                show(&most.value),
                most.origin
            );
            self.push(&asked.origin, key, what);
        }
    }
}

fn quoted<T: Word + PartialEq>(word: T) -> String {
    format!("\"{}\"", word.word())
}

fn time(time: &Duration) -> String {
    format!("{time:?}")
}

/// The first allowed value takes the place of a built-in one that is not allowed.
fn fill<T: Clone + PartialEq>(value: &mut Option<Sited<T>>, allowed: &Option<Sited<Vec<T>>>) {
    let Some(allowed) = allowed else { return };
    let gives_way = value
        .as_ref()
        .is_none_or(|value| is_built_in(&value.origin) && !allowed.value.contains(&value.value));
    if let (true, Some(first)) = (gives_way, allowed.value.first()) {
        *value = Some(Sited::new(first.clone(), allowed.origin.clone()));
    }
}

/// A cap takes the place of a built-in limit above it, or of none.
fn cap<T: Clone + PartialOrd>(value: &mut Option<Sited<T>>, most: &Option<Sited<T>>) {
    let Some(most) = most else { return };
    if value
        .as_ref()
        .is_none_or(|value| is_built_in(&value.origin) && value.value > most.value)
    {
        *value = Some(most.clone());
    }
}

/// `*` is any text, also over slashes.
pub(in crate::config) fn fits(pattern: &str, text: &str) -> bool {
    let Some((head, rest)) = pattern.split_once('*') else {
        return pattern == text;
    };
    let Some(mut text) = text.strip_prefix(head) else {
        return false;
    };
    let mut parts: Vec<&str> = rest.split('*').collect();
    let tail = parts.pop().unwrap_or_default();
    for part in parts {
        match text.find(part) {
            Some(at) => text = &text[at + part.len()..],
            None => return false,
        }
    }
    text.ends_with(tail)
}

/// Whether every host that `asked` means is meant by `allowed` too. Patterns are those of the gate: a host, `*.x` for what lies
/// below x, `**.x` for x and what lies below it, `*` for all. What is neither is covered only by itself.
fn is_covered(asked: &str, allowed: &str) -> bool {
    let plain = |pattern: &str| pattern.trim_end_matches('.').to_ascii_lowercase();
    let (asked, allowed) = (plain(asked), plain(allowed));
    if asked == allowed || allowed == "*" {
        return true;
    }
    let (allowed_base, includes_base) = match (allowed.strip_prefix("**."), allowed.strip_prefix("*.")) {
        (Some(base), _) => (base, true),
        (None, Some(base)) => (base, false),
        (None, None) => return false,
    };
    let (asked_base, asks_base, asks_below) = match (asked.strip_prefix("**."), asked.strip_prefix("*.")) {
        (Some(base), _) => (base, true, true),
        (None, Some(base)) => (base, false, true),
        (None, None) => (asked.as_str(), true, false),
    };
    // What is left of a pattern must be a plain name, or it means hosts that were not thought of.
    if allowed_base.contains('*') || asked_base.contains(['*', '?', '[', '{', ':']) {
        return false;
    }
    let below = asked_base
        .strip_suffix(allowed_base)
        .is_some_and(|rest| rest.ends_with('.') && rest.len() > 1);
    below || asked_base == allowed_base && (includes_base || !asks_base && asks_below)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_pattern_of_images_is_any_text_where_the_star_stands() {
        for (pattern, text) in [
            ("host", "host"),
            ("r/*", "r/a/b:1"),
            ("*/x", "a/x"),
            ("a*b*c", "abbc"),
            ("*", ""),
        ] {
            assert!(fits(pattern, text), "{pattern} {text}");
        }
        for (pattern, text) in [
            ("host", "hosts"),
            ("r/*", "r"),
            ("a*b*c", "acb"),
            ("ab*ba", "aba"),
            ("", "x"),
        ] {
            assert!(!fits(pattern, text), "{pattern} {text}");
        }
    }

    #[test]
    fn a_pattern_of_hosts_is_covered_when_all_its_hosts_are() {
        let covered = [
            ("a.x", "a.x"),
            ("A.X.", "a.x"),
            ("a.x", "*.x"),
            ("b.a.x", "*.x"),
            ("*.a.x", "*.x"),
            ("**.a.x", "*.x"),
            ("x", "**.x"),
            ("*.x", "**.x"),
            ("**.x", "**.x"),
            ("**.a.x", "**.x"),
            ("anything", "*"),
        ];
        for (asked, allowed) in covered {
            assert!(is_covered(asked, allowed), "{asked} by {allowed}");
        }
        let not = [
            ("x", "*.x"),
            ("**.x", "*.x"),
            ("ax", "*.x"),
            ("*.x", "a.x"),
            ("*", "**.x"),
            ("*.y", "*.x"),
            ("a*.x", "*.x"),
            ("a.x:8080", "*.x"),
            (".x", "*.x"),
            ("api.example.com", "**.[*]"),
        ];
        for (asked, allowed) in not {
            assert!(!is_covered(asked, allowed), "{asked} by {allowed}");
        }
    }
}
