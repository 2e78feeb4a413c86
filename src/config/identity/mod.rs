//! Who asks: the user of the OS, and, where the admin names an issuer, the person or job that a token of theirs speaks of.
//!
//! The OS user is what the kernel says. A token (OpenID Connect, signed) is read from where the configuration says, checked
//! against keys that lie in a file of root's, and stands in the record of the task; belljar asks no server about it.

mod token;

use std::time::SystemTime;

use crate::document::Sited;
use crate::secret::{self, ExposeSecret};
use crate::task::{Login, SecretSource};

pub use token::Keys;

/// How a user has logged in.
#[derive(Debug, Clone, Copy, PartialEq, Eq, schemars::JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Method {
    Os,
    Oidc,
}

impl crate::document::Word for Method {
    const WORDS: &'static [(&'static str, Self)] = &[("os", Method::Os), ("oidc", Method::Oidc)];
}

/// The issuer whose tokens count, and what of them says who it is.
#[derive(Debug, Clone, PartialEq)]
pub struct Oidc {
    pub issuer: Sited<String>,
    pub audience: Sited<String>,
    /// The file of the issuer's keys, and what was in it.
    pub jwks: Sited<String>,
    pub keys: Keys,
    /// The claims that hold the user's name, their workspace, and their groups.
    pub user_claim: String,
    pub workspace_claim: String,
    pub groups_claim: String,
}

/// Why a token does not say who it is. Names claims, never the token.
#[derive(Debug, thiserror::Error)]
pub enum TokenError {
    #[error("the token cannot be read: {0}")]
    Read(String),
    #[error("it is not a signed token (a JWS of three parts)")]
    Form,
    #[error("its algorithm is {0:?}, which is not taken (RS256, RS384, RS512, PS256, ES256, ES384 and EdDSA are)")]
    Algorithm(String),
    #[error("no key of the issuer has signed it")]
    Signature,
    #[error("the claim {0:?} is missing or of another kind")]
    Claim(&'static str),
    #[error("it was issued by {found:?}, not by {expected:?}")]
    Issuer { found: String, expected: String },
    #[error("it is not for {expected:?}")]
    Audience { expected: String },
    #[error("it expired at {0} (seconds since 1970)")]
    Expired(i64),
    #[error("it is not valid before {0} (seconds since 1970)")]
    Early(i64),
}

/// What the token at `source` says, if `oidc`'s issuer has signed it and it holds now. Blocking, as reading a secret is.
pub fn login(source: &SecretSource, oidc: &Oidc, now: SystemTime) -> Result<Login, TokenError> {
    let token = secret::read(source).map_err(|error| TokenError::Read(with_causes(&error)))?;
    token::login(token.expose_secret(), oidc, now)
}

fn with_causes(error: &dyn std::error::Error) -> String {
    match error.source() {
        Some(cause) => format!("{error}: {}", with_causes(cause)),
        None => error.to_string(),
    }
}

#[cfg(test)]
mod tests;
