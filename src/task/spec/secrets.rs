//! `[secrets.NAME]`: where a value is kept, which hosts get it, and where in their requests it goes.

use std::collections::BTreeMap;

use schemars::JsonSchema;

use super::{env_name, host_pattern, plain};
use crate::document::{Sited, Table};
use crate::task::SecretPlace;

#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct SecretSpec {
    /// `keyring:NAME`, `env:NAME` or `file:PATH`.
    pub source: Sited<String>,
    /// The only hosts that get the value, over TLS. The network lists have to allow them as well.
    #[schemars(length(min = 1))]
    pub hosts: Vec<Sited<String>>,
    /// `Name: text {} text`: a header of every request, the value in the place of `{}`. At most one of this and the following; with
    /// none of them the value goes wherever the placeholder stands in a header or parameter that carries credentials.
    #[schemars(with = "Option<String>")]
    pub header: Option<Sited<SecretPlace>>,
    /// The name of a parameter of every request.
    pub query: Option<Sited<String>>,
    /// The user of basic authorization in every request; the value is the password.
    pub basic: Option<Sited<String>>,
    /// The value is a secret access key of AWS: requests are signed anew with it.
    pub aws: Option<AwsSpec>,
    /// The value is the secret of an OAuth client, with which tokens are bought.
    pub oauth: Option<OauthSpec>,
}

#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct AwsSpec {
    /// No secret; the sandbox has it in `AWS_ACCESS_KEY_ID`.
    pub access_key_id: Sited<String>,
    /// Where the token of a temporary key is kept, as in `source`.
    pub session_token: Option<Sited<String>>,
}

#[derive(Debug, Clone, PartialEq, JsonSchema)]
#[schemars(deny_unknown_fields)]
pub struct OauthSpec {
    /// `https://HOST/PATH`; the network lists have to allow the host.
    pub token_url: Sited<String>,
    pub client_id: Sited<String>,
    pub scope: Option<Sited<String>>,
}

pub(super) fn secrets(table: Table<'_>) -> BTreeMap<String, SecretSpec> {
    let mut secrets = BTreeMap::new();
    for (name, value) in table.open() {
        if let Err(what) = env_name(&name.value) {
            value.fault(what);
        }
        if let Some(secret) = value.table().and_then(|table| secret(&table)) {
            secrets.insert(name.value, secret);
        }
    }
    secrets
}

fn secret(table: &Table<'_>) -> Option<SecretSpec> {
    let source = table
        .required("source", "keyring:NAME, env:NAME or file:PATH")
        .and_then(|value| value.parsed(secret_source));
    let hosts = table.list("hosts", named_host);
    if let Some(value) = table.required("hosts", "the hosts that get the value")
        && value.list().is_some_and(|list| list.is_empty())
    {
        value.fault("a secret needs at least one host");
    }
    let header = table.parsed("header", header);
    let query = table.parsed("query", parameter);
    let basic = table.parsed("basic", user);
    let aws = table.table("aws").map(|table| aws(&table));
    let oauth = table.table("oauth").map(|table| oauth(&table));
    let places = ["header", "query", "basic", "aws", "oauth"].map(|key| table.value(key));
    if let Some(second) = places.iter().flatten().nth(1) {
        second.fault("a value goes to one place only (header, query, basic, aws or oauth)");
    }
    Some(SecretSpec {
        source: source?,
        hosts,
        header,
        query,
        basic,
        aws: match aws {
            Some(aws) => Some(aws?),
            None => None,
        },
        oauth: match oauth {
            Some(oauth) => Some(oauth?),
            None => None,
        },
    })
}

fn aws(table: &Table<'_>) -> Option<AwsSpec> {
    let id = table.required("access_key_id", "the key's id");
    let session_token = table.parsed("session_token", secret_source);
    Some(AwsSpec {
        access_key_id: id.and_then(|value| value.parsed(key_id))?,
        session_token,
    })
}

fn oauth(table: &Table<'_>) -> Option<OauthSpec> {
    let url = table.required("token_url", "https://HOST/PATH");
    let url = url.and_then(|value| value.parsed(token_url));
    let client = table.required("client_id", "the client's id");
    let client = client.and_then(|value| value.parsed(|text| plain(text, 1024)));
    let scope = table.parsed("scope", |text| plain(text, 1024));
    Some(OauthSpec {
        token_url: url?,
        client_id: client?,
        scope,
    })
}

fn secret_source(text: &str) -> Result<String, String> {
    match text.split_once(':') {
        Some(("keyring" | "env" | "file", name)) if !name.is_empty() && !name.contains('\0') => Ok(text.to_owned()),
        _ => Err(format!("\"{text}\" is not keyring:NAME, env:NAME or file:PATH")),
    }
}

/// A secret for every host would be none.
fn named_host(text: &str) -> Result<String, String> {
    match text.split(':').next() {
        Some("*") => Err("a secret is for named hosts, not for all".to_owned()),
        _ => host_pattern(text),
    }
}

fn is_token(text: &str) -> bool {
    let token = |c: char| c.is_ascii_alphanumeric() || "!#$%&'*+-.^_`|~".contains(c);
    !text.is_empty() && text.chars().all(token)
}

fn header(text: &str) -> Result<SecretPlace, String> {
    let wrong = || format!("{text:?} is not \"Name: text {{}} text\"");
    let (name, form) = text.split_once(':').ok_or_else(wrong)?;
    let (before, after) = form.trim().split_once("{}").ok_or_else(wrong)?;
    let visible = |text: &str| text.chars().all(|c| c == ' ' || c.is_ascii_graphic());
    let own = [
        "host",
        "content-length",
        "transfer-encoding",
        "connection",
        "upgrade",
        "te",
        "trailer",
    ];
    let name = name.to_ascii_lowercase();
    match is_token(&name) && visible(before) && visible(after) && !after.contains("{}") && !own.contains(&name.as_str())
    {
        true => Ok(SecretPlace::Header {
            name,
            before: before.to_owned(),
            after: after.to_owned(),
        }),
        false => Err(wrong()),
    }
}

fn parameter(text: &str) -> Result<String, String> {
    match text.is_empty() || text.chars().any(|c| !c.is_ascii_graphic()) {
        true => Err(format!("{text:?} is not the name of a parameter")),
        false => Ok(text.to_owned()),
    }
}

fn user(text: &str) -> Result<String, String> {
    match text.contains(':') || text.chars().any(char::is_control) {
        true => Err(format!(
            "{text:?} is not a user's name (no colon, no control character)"
        )),
        false => Ok(text.to_owned()),
    }
}

fn key_id(text: &str) -> Result<String, String> {
    match (16..=128).contains(&text.len()) && text.bytes().all(|b| b.is_ascii_alphanumeric() || b == b'_') {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not the id of an access key")),
    }
}

fn token_url(text: &str) -> Result<String, String> {
    let rest = text.strip_prefix("https://").unwrap_or_default();
    let authority = rest.split('/').next().unwrap_or_default();
    let plain = text.bytes().all(|b| b.is_ascii_graphic()) && !text.contains(['#', '@']);
    match plain && !authority.is_empty() {
        true => Ok(text.to_owned()),
        false => Err(format!("{text:?} is not https://HOST/PATH")),
    }
}
