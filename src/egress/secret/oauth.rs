//! OAuth client credentials (RFC 6749, 4.4): the secret buys a token, and the token goes into requests until it runs out.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use futures_util::future::BoxFuture;
use serde::Deserialize;
use zeroize::Zeroizing;

use super::put::percent_encoded;
use crate::egress::host::Authority;
use crate::secret::{ExposeSecret, SecretString};

/// A token is not used any more when it has but this long to live: a request takes its time.
const MARGIN: Duration = Duration::from_secs(30);

/// The life of a token whose server does not say it.
const ASSUMED: u64 = 300;

/// One question to the server of tokens.
pub(in crate::egress) struct TokenRequest {
    pub authority: Authority,
    pub path: String,
    pub authorization: hyper::header::HeaderValue,
    pub form: String,
}

/// Asks a server of tokens, over TLS and within the policy. Gives a small body, or says why there is none.
pub(in crate::egress) trait Fetch {
    fn fetch(&self, request: TokenRequest) -> BoxFuture<'_, Result<Zeroizing<Vec<u8>>, String>>;
}

/// Where tokens come from, and the one in use.
pub(super) struct TokenSource {
    authority: Authority,
    path: String,
    client_id: String,
    scope: Option<String>,
    last: Mutex<Option<Token>>,
    /// One asks, the others wait for its answer.
    asking: tokio::sync::Mutex<()>,
}

struct Token {
    value: SecretString,
    /// A changed secret of the client's buys a new one.
    bought_with: SecretString,
    until: Instant,
}

#[derive(Deserialize)]
struct Answer {
    access_token: SecretText,
    token_type: String,
    expires_in: Option<u64>,
}

/// Text that is wiped once it is read.
struct SecretText(SecretString);

impl<'de> Deserialize<'de> for SecretText {
    fn deserialize<D: serde::Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer).map(|text| Self(text.into()))
    }
}

impl TokenSource {
    pub fn new(url: &str, client_id: &str, scope: Option<&str>) -> Result<Self, &'static str> {
        const WRONG: &str = "the URL of its tokens is not https://HOST[:PORT]/PATH";
        let rest = url.strip_prefix("https://").ok_or(WRONG)?;
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        Ok(Self {
            authority: Authority::parse(authority, Some(443)).map_err(|_| WRONG)?,
            path: format!("/{path}"),
            client_id: client_id.to_owned(),
            scope: scope.map(str::to_owned),
            last: Mutex::default(),
            asking: tokio::sync::Mutex::default(),
        })
    }

    /// The token in use, or a new one. `secret` is the client's.
    pub async fn token(
        &self,
        secret: &SecretString,
        fetch: &(dyn Fetch + Send + Sync),
    ) -> Result<SecretString, String> {
        if let Some(token) = self.fresh(secret) {
            return Ok(token);
        }
        let _asking = self.asking.lock().await;
        if let Some(token) = self.fresh(secret) {
            return Ok(token);
        }
        let mut form = "grant_type=client_credentials".to_owned();
        if let Some(scope) = &self.scope {
            form.push_str(&format!("&scope={}", percent_encoded(scope)));
        }
        // Each half is encoded as in a form (RFC 6749, 2.3.1).
        let pair = Zeroizing::new(format!(
            "{}:{}",
            percent_encoded(&self.client_id),
            percent_encoded(secret.expose_secret())
        ));
        let request = TokenRequest {
            authority: self.authority.clone(),
            path: self.path.clone(),
            authorization: super::credential::of_basic(&pair).ok_or("the client's secret cannot stand in a header")?,
            form,
        };
        let body = fetch
            .fetch(request)
            .await
            .map_err(|error| format!("no token: {error}"))?;
        // The parser's text says what it read, which may be a token.
        let answer: Answer =
            serde_json::from_slice(&body).map_err(|_| "the server of tokens gave something else than a token")?;
        if !answer.token_type.eq_ignore_ascii_case("bearer") {
            return Err("the server of tokens gave a token that is not for bearers".to_owned());
        }
        let value = answer.access_token.0;
        super::check(&value)?;
        let life = Duration::from_secs(answer.expires_in.unwrap_or(ASSUMED).min(86_400));
        let token = Token {
            value: value.clone(),
            bought_with: secret.clone(),
            until: Instant::now() + life.saturating_sub(MARGIN),
        };
        *self.lock() = Some(token);
        Ok(value)
    }

    /// Forgets the token in use: the next request buys another.
    pub fn forget(&self) {
        *self.lock() = None;
    }

    fn fresh(&self, secret: &SecretString) -> Option<SecretString> {
        let last = self.lock();
        let token = last.as_ref()?;
        let same = token.bought_with.expose_secret() == secret.expose_secret();
        (same && Instant::now() < token.until).then(|| token.value.clone())
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Token>> {
        self.last.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
