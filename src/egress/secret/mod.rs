//! Secrets of a task: the sandbox holds a placeholder, the value is put into requests to its hosts only.
//!
//! ```text
//!  sandbox: NAME=ghp_(random)  ──request──► refused, if it carries the placeholder of a secret that is not for this host
//!                                           other credentials taken out · value put in · secret.used recorded ──► host
//!           placeholder        ◄──answer─── headers and body masked, gzip unpacked, never sent on unseen     ◄──
//! ```
//!
//! Called by [`super::tls`] for requests within TLS; a value never goes over plain HTTP, nor to a host whose name merely redirected
//! to it. What it is not: a host that gets a value can do with it what it likes, and an answer may hold it in a form that is not
//! looked for (encrypted, reversed, a letter a line).

pub(super) mod answer;
pub(super) mod aws;
pub(super) mod credential;
pub(super) mod mask;
pub(super) mod oauth;
mod placeholder;
mod put;

use std::collections::BTreeMap;
use std::sync::Arc;

use hyper::body::Body;
use hyper::header::HeaderValue;
use hyper::{HeaderMap, Request};

use super::host::Host;
use super::path::percent_decoded;
use super::pattern::{List, Pattern, PatternError};
use crate::secret::{ExposeSecret, Kept, SecretError, SecretString};
use crate::task::{Secret, SecretPlace};
use mask::Patterns;
use oauth::TokenSource;

pub(super) use put::Outgoing;

/// A shorter value would be found in innocent text, and could be guessed.
const SHORTEST: usize = 8;

/// Why a task's secrets cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum SecretsError {
    #[error("the secret {name} has no value")]
    Source {
        name: String,
        #[source]
        source: SecretError,
    },
    #[error("the secret {name} is for a host that is none")]
    Host {
        name: String,
        #[source]
        source: PatternError,
    },
    #[error("the secret {name}: {what}")]
    Value { name: String, what: &'static str },
    #[error("no placeholder can be made")]
    Random,
}

/// The secrets of one task.
#[derive(Default)]
pub struct Secrets {
    held: Vec<Held>,
    /// What finds the placeholders of all.
    guard: Option<Arc<Patterns>>,
}

struct Held {
    name: String,
    hosts: Vec<Pattern>,
    place: SecretPlace,
    value: Arc<Kept>,
    /// For those kinds that need a second one.
    session: Option<Arc<Kept>>,
    token: Option<TokenSource>,
    placeholder: String,
}

/// One secret with its value of this moment, for one request.
pub(super) struct Live {
    pub name: String,
    pub place: SecretPlace,
    pub placeholder: String,
    pub value: SecretString,
    pub session: Option<SecretString>,
}

/// Why a request to a host with secrets is not sent.
#[derive(Debug, thiserror::Error)]
pub(super) enum LiveError {
    #[error("the value of {name} cannot be had: {what}")]
    Value { name: String, what: String },
}

impl LiveError {
    pub fn name(&self) -> &str {
        let LiveError::Value { name, .. } = self;
        name
    }
}

impl std::fmt::Debug for Secrets {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_list().entries(self.held.iter().map(|held| &held.name)).finish()
    }
}

impl Secrets {
    /// Reads every value once, for the shape of its placeholder; blocking.
    pub fn new(secrets: &BTreeMap<String, Secret>) -> Result<Self, SecretsError> {
        let held = secrets.iter().map(|(name, secret)| Held::new(name, secret));
        let held: Vec<Held> = held.collect::<Result<_, _>>()?;
        let guard = guard_of(held.iter());
        Ok(Self { held, guard })
    }

    pub fn is_empty(&self) -> bool {
        self.held.is_empty()
    }

    /// The variables of the sandbox: placeholders under the secrets' names, and what else a kind needs.
    pub fn env(&self) -> BTreeMap<String, String> {
        let mut env = BTreeMap::new();
        for held in &self.held {
            env.insert(held.name.clone(), held.placeholder.clone());
            if let SecretPlace::Aws {
                access_key_id, session, ..
            } = &held.place
            {
                env.insert("AWS_ACCESS_KEY_ID".to_owned(), access_key_id.clone());
                if session.is_some() {
                    env.insert("AWS_SESSION_TOKEN".to_owned(), held.placeholder.clone());
                }
            }
        }
        env
    }

    /// Whether a host gets a secret, so that its TLS is looked into.
    pub(super) fn are_for(&self, host: &Host, port: u16) -> bool {
        self.held.iter().any(|held| held.is_for(host, port))
    }

    /// What finds the placeholders that have no business with a host, if there are any.
    pub(super) fn foreign(&self, host: &Host, port: u16) -> Option<Arc<Patterns>> {
        guard_of(self.held.iter().filter(|held| !held.is_for(host, port)))
    }

    /// What finds all placeholders: over plain HTTP none has any business.
    pub(super) fn all(&self) -> Option<Arc<Patterns>> {
        self.guard.clone()
    }

    /// The values for one host as they are now.
    pub(super) async fn live(
        &self,
        host: &Host,
        port: u16,
        fetch: &(dyn oauth::Fetch + Send + Sync),
    ) -> Result<Vec<Live>, LiveError> {
        let mut live = Vec::new();
        for held in self.held.iter().filter(|held| held.is_for(host, port)) {
            live.push(held.live(fetch).await?);
        }
        Ok(live)
    }

    /// Forgets a token that its host did not take.
    pub(super) fn forget_tokens(&self, host: &Host, port: u16) {
        for held in self.held.iter().filter(|held| held.is_for(host, port)) {
            if let Some(token) = &held.token {
                token.forget();
            }
        }
    }
}

impl Held {
    fn new(name: &str, secret: &Secret) -> Result<Self, SecretsError> {
        let kept = |source: &crate::task::SecretSource| Arc::new(Kept::new(source.clone()));
        let value = kept(&secret.source);
        let read = value.value().map_err(|source| SecretsError::Source {
            name: name.to_owned(),
            source,
        })?;
        check(&read).map_err(|what| SecretsError::Value {
            name: name.to_owned(),
            what,
        })?;
        let hosts = secret.hosts.iter().map(|text| {
            Pattern::parse(text, List::Hosts).map_err(|source| SecretsError::Host {
                name: name.to_owned(),
                source,
            })
        });
        let session = match &secret.place {
            SecretPlace::Aws { session, .. } => session.as_ref().map(kept),
            _ => None,
        };
        let token = match &secret.place {
            SecretPlace::Oauth {
                token_url,
                client_id,
                scope,
            } => Some(
                TokenSource::new(token_url, client_id, scope.as_deref()).map_err(|what| SecretsError::Value {
                    name: name.to_owned(),
                    what,
                })?,
            ),
            _ => None,
        };
        Ok(Self {
            hosts: hosts.collect::<Result<_, _>>()?,
            placeholder: placeholder::like(read.expose_secret()).ok_or(SecretsError::Random)?,
            name: name.to_owned(),
            place: secret.place.clone(),
            value,
            session,
            token,
        })
    }

    fn is_for(&self, host: &Host, port: u16) -> bool {
        self.hosts.iter().any(|pattern| pattern.allows(host, port))
    }

    async fn live(&self, fetch: &(dyn oauth::Fetch + Send + Sync)) -> Result<Live, LiveError> {
        let failed = |what: String| LiveError::Value {
            name: self.name.clone(),
            what,
        };
        let value = self
            .value
            .clone()
            .current()
            .await
            .map_err(|error| failed(error.to_string()))?;
        check(&value).map_err(|what| failed(what.to_owned()))?;
        let session = match &self.session {
            Some(session) => Some(
                session
                    .clone()
                    .current()
                    .await
                    .map_err(|error| failed(error.to_string()))?,
            ),
            None => None,
        };
        let (value, session) = match &self.token {
            // The client's own secret has to be masked as well.
            Some(token) => (token.token(&value, fetch).await.map_err(failed)?, Some(value)),
            None => (value, session),
        };
        Ok(Live {
            name: self.name.clone(),
            place: self.place.clone(),
            placeholder: self.placeholder.clone(),
            value,
            session,
        })
    }
}

fn check(value: &SecretString) -> Result<(), &'static str> {
    let text = value.expose_secret();
    if text.len() < SHORTEST {
        return Err("its value is too short to be told from other text (at least 8 bytes)");
    }
    match text.bytes().all(|byte| byte.is_ascii_graphic()) {
        true => Ok(()),
        false => Err("its value holds something else than visible ASCII, so it cannot stand in a request"),
    }
}

/// What finds the placeholders of these; `None` where there are none.
fn guard_of<'a>(held: impl Iterator<Item = &'a Held>) -> Option<Arc<Patterns>> {
    let mut named = held
        .map(|held| (held.placeholder.as_str(), held.name.as_str()))
        .peekable();
    named.peek()?;
    Some(Arc::new(Patterns::guarding(named)))
}

/// The secret whose placeholder stands in the head of a request, as it is or as a URL or basic authorization has it.
pub(super) fn found_in_head(guard: &Patterns, path: &str, headers: &HeaderMap) -> Option<String> {
    let decoded = |text: &[u8]| percent_decoded(&String::from_utf8_lossy(text));
    let found = |text: &[u8]| guard.finds(text).or_else(|| guard.finds(&decoded(text)));
    let in_header = |value: &HeaderValue| {
        // A short one is not looked for in base64.
        found(value.as_bytes()).or_else(|| guard.finds(credential::basic(value)?.as_bytes()))
    };
    let name = found(path.as_bytes()).or_else(|| headers.values().find_map(in_header));
    name.map(str::to_owned)
}

/// Why a request's body cannot be looked through for placeholders, where it is packed in another way than those that are unpacked here.
/// To be asked before the headers of the connection are taken off.
pub(super) fn unseen<B: Body>(request: &Request<B>) -> Option<String> {
    if request.body().is_end_stream() {
        return None;
    }
    answer::Packing::of(request.headers()).err()
}

pub(super) fn contains(text: &[u8], part: &[u8]) -> bool {
    text.len() >= part.len() && text.windows(part.len()).any(|window| window == part)
}

#[cfg(test)]
mod tests;
