//! Holding the configuration, and who asks, to what is demanded: no task spec can change either.

use std::time::SystemTime;

use super::super::Requirements;
use super::{ConfigAsked, Violations, quoted};
use crate::approval::reviewer::By;
use crate::config::Sync;
use crate::config::identity::{self, Method};
use crate::document::{Fault, Origin, Sited};
use crate::task::{Login, SecretSource};

impl Requirements {
    /// What a token says of who asks, where this file names its issuer.
    pub(in crate::config) fn read_login(
        &self,
        token: Option<&Sited<SecretSource>>,
        violations: &mut Vec<Fault>,
    ) -> Option<Login> {
        let (Some(token), Some(oidc)) = (token, &self.identity_oidc) else {
            return None;
        };
        match identity::login(&token.value, oidc, SystemTime::now()) {
            Ok(login) => Some(login),
            // Also where a login by the OS would do: a token that is there and wrong is no slip to look past.
            Err(error) => {
                let mut found = Violations(Vec::new());
                found.push(&token.origin, "identity.token", error.to_string());
                violations.append(&mut found.0);
                None
            }
        }
    }

    /// Each way in which a login is not what this file demands, whichever file named its issuer.
    pub(in crate::config) fn check_login(&self, login: Option<&Login>, violations: &mut Vec<Fault>) {
        let mut found = Violations(Vec::new());
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
            let workspace = login.and_then(|login| login.workspace.as_deref());
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
        if let (Some(never), Some(upstream)) = (&self.no_upstream, &asked.egress.upstream) {
            let what = format!(
                "\"{}\" stands between, and {} allows no proxy",
                upstream.value, never.origin
            );
            found.push(&upstream.origin, "egress.upstream", what);
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
