//! Holding what is asked to what is demanded: every violation, none clamped.

mod config;
mod denied;
mod fill;
mod hosts;
mod violations;

use std::path::Path;

use super::Requirements;
use crate::approval::reviewer::Settings;
use crate::config::{Caller, Egress, Journal, Otlp};
use crate::document::{Fault, Origin, Sited, Word};
use crate::egress::host::Authority;
use crate::egress::pattern::{List, Pattern};
use crate::task::limits::Bytes;
use crate::task::spec::TaskSpec;
use crate::task::{Access, NetworkMode, Root};
pub(in crate::config) use hosts::fits;
use hosts::is_covered;
use violations::{Violations, quoted, time};

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
            self.check_denied(Path::new(path), &text.origin, "image", asked.caller, &mut found);
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
            self.check_denied(host, origin, &key, asked.caller, found);
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
}
