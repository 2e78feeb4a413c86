//! The secrets that a spec declares: where their values are, and where they are put in.

use std::collections::BTreeMap;

use super::Admission;
use crate::document::Sited;
use crate::sys::path::Kind;
use crate::task::spec::{SecretSpec, TaskSpec};
use crate::task::{Secret, SecretPlace, SecretSource};

impl Admission {
    pub(super) fn secrets(&mut self, spec: &TaskSpec) -> Option<BTreeMap<String, Secret>> {
        let mut secrets = BTreeMap::new();
        for (name, asked) in &spec.secrets {
            let key = format!("secrets.{name}");
            if spec.env.contains_key(name) {
                self.fault::<()>(&asked.source.origin, &key, "a variable of the same name stands in env");
            }
            if let Some(source) = self.secret_source(&format!("{key}.source"), &asked.source) {
                let hosts = asked.hosts.iter().map(|host| host.value.clone()).collect();
                let place = self.secret_place(&key, asked);
                secrets.insert(name.clone(), Secret { source, hosts, place });
            }
        }
        Some(secrets)
    }

    fn secret_place(&mut self, key: &str, asked: &SecretSpec) -> SecretPlace {
        if let Some(header) = &asked.header {
            return header.value.clone();
        }
        if let Some(query) = &asked.query {
            let name = query.value.clone();
            return SecretPlace::Query { name };
        }
        if let Some(basic) = &asked.basic {
            let user = basic.value.clone();
            return SecretPlace::Basic { user };
        }
        if let Some(aws) = &asked.aws {
            let source = aws.session_token.as_ref();
            let session = source.and_then(|source| self.secret_source(&format!("{key}.aws.session_token"), source));
            return SecretPlace::Aws {
                access_key_id: aws.access_key_id.value.clone(),
                session,
            };
        }
        match &asked.oauth {
            Some(oauth) => SecretPlace::Oauth {
                token_url: oauth.token_url.value.clone(),
                client_id: oauth.client_id.value.clone(),
                scope: oauth.scope.as_ref().map(|scope| scope.value.clone()),
            },
            None => SecretPlace::Placeholder,
        }
    }

    fn secret_source(&mut self, key: &str, asked: &Sited<String>) -> Option<SecretSource> {
        let (kind, name) = asked.value.split_once(':')?;
        Some(match kind {
            "keyring" => SecretSource::Keyring(name.to_owned()),
            "env" => SecretSource::Env(name.to_owned()),
            _ => {
                let file = Sited::new(name.to_owned(), asked.origin.clone());
                SecretSource::File(self.existing(key, &file, &[Kind::File])?)
            }
        })
    }
}
