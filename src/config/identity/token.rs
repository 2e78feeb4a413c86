//! Tokens: JWS in compact form (RFC 7515) with the claims of OpenID Connect, and sets of keys (RFC 7517).

use std::time::{SystemTime, UNIX_EPOCH};

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::signature::{self, RsaPublicKeyComponents, UnparsedPublicKey};
use serde::Deserialize;
use serde_json::{Map, Value};

use super::{Oidc, TokenError};
use crate::task::Login;

/// How far the clocks of two machines may lie apart.
const LEEWAY: i64 = 60;

/// The keys of an issuer.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Keys(Vec<Key>);

#[derive(Debug, Clone, PartialEq, Eq)]
struct Key {
    id: Option<String>,
    /// The one algorithm that it is for, where it says so.
    algorithm: Option<String>,
    material: Material,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Material {
    Rsa {
        n: Vec<u8>,
        e: Vec<u8>,
    },
    /// Points in uncompressed form.
    P256(Vec<u8>),
    P384(Vec<u8>),
    Ed25519(Vec<u8>),
}

#[derive(Deserialize)]
struct JwkSet {
    keys: Vec<Jwk>,
}

#[derive(Deserialize)]
struct Jwk {
    kty: String,
    kid: Option<String>,
    alg: Option<String>,
    #[serde(rename = "use")]
    purpose: Option<String>,
    crv: Option<String>,
    n: Option<String>,
    e: Option<String>,
    x: Option<String>,
    y: Option<String>,
}

impl Keys {
    /// Reads a JWK set. Keys of kinds that sign no tokens here are left out; without any other the set is an error.
    pub fn from_json(text: &str) -> Result<Keys, String> {
        let set: JwkSet = serde_json::from_str(text).map_err(|error| format!("not a set of keys (JWKS): {error}"))?;
        let keys: Vec<Key> = set.keys.into_iter().filter_map(Key::of).collect();
        match keys.is_empty() {
            true => Err("the set holds no key for RSA, P-256, P-384 or Ed25519".to_owned()),
            false => Ok(Keys(keys)),
        }
    }
}

impl Key {
    fn of(jwk: Jwk) -> Option<Key> {
        if jwk.purpose.as_deref().is_some_and(|purpose| purpose != "sig") {
            return None;
        }
        let bytes = |text: &Option<String>| URL_SAFE_NO_PAD.decode(text.as_deref()?).ok();
        let point = |length: usize| {
            let (x, y) = (bytes(&jwk.x)?, bytes(&jwk.y)?);
            (x.len() == length && y.len() == length).then(|| [vec![4], x, y].concat())
        };
        let material = match (jwk.kty.as_str(), jwk.crv.as_deref()) {
            ("RSA", _) => Material::Rsa {
                n: bytes(&jwk.n)?,
                e: bytes(&jwk.e)?,
            },
            ("EC", Some("P-256")) => Material::P256(point(32)?),
            ("EC", Some("P-384")) => Material::P384(point(48)?),
            ("OKP", Some("Ed25519")) => Material::Ed25519(bytes(&jwk.x)?),
            _ => return None,
        };
        Some(Key {
            id: jwk.kid,
            algorithm: jwk.alg,
            material,
        })
    }

    /// Whether this key has made the signature. The algorithm is one that its kind allows, so a token cannot talk a public key
    /// into being a shared secret.
    fn proves(&self, algorithm: &str, message: &[u8], signature: &[u8]) -> bool {
        if self.algorithm.as_deref().is_some_and(|own| own != algorithm) {
            return false;
        }
        let checked = match (&self.material, algorithm) {
            (Material::Rsa { n, e }, _) => {
                let parameters = match algorithm {
                    "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
                    "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
                    "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
                    "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
                    _ => return false,
                };
                RsaPublicKeyComponents { n, e }.verify(parameters, message, signature)
            }
            (Material::P256(point), "ES256") => {
                UnparsedPublicKey::new(&signature::ECDSA_P256_SHA256_FIXED, point).verify(message, signature)
            }
            (Material::P384(point), "ES384") => {
                UnparsedPublicKey::new(&signature::ECDSA_P384_SHA384_FIXED, point).verify(message, signature)
            }
            (Material::Ed25519(key), "EdDSA" | "Ed25519") => {
                UnparsedPublicKey::new(&signature::ED25519, key).verify(message, signature)
            }
            _ => return false,
        };
        checked.is_ok()
    }
}

#[derive(Deserialize)]
struct Header {
    alg: String,
    kid: Option<String>,
    /// Extensions that must be understood; none is.
    #[serde(default)]
    crit: Vec<String>,
}

/// The claims of a token, once its signature, issuer, audience and time are right.
pub(super) fn login(token: &str, oidc: &Oidc, now: SystemTime) -> Result<Login, TokenError> {
    let token = token.trim();
    let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Form)?;
    let (header, claims) = message.split_once('.').ok_or(TokenError::Form)?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Form);
    let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Form)?;
    let known = ["RS256", "RS384", "RS512", "PS256", "ES256", "ES384", "EdDSA", "Ed25519"];
    if !known.contains(&header.alg.as_str()) {
        return Err(TokenError::Algorithm(header.alg));
    }
    let signature = decode(signature)?;
    let of_this_id = |key: &&Key| header.kid.is_none() || key.id.is_none() || key.id == header.kid;
    let proven = header.crit.is_empty()
        && oidc
            .keys
            .0
            .iter()
            .filter(of_this_id)
            .any(|key| key.proves(&header.alg, message.as_bytes(), &signature));
    if !proven {
        return Err(TokenError::Signature);
    }
    let claims: Map<String, Value> = serde_json::from_slice(&decode(claims)?).map_err(|_| TokenError::Form)?;
    check(&claims, oidc, now)?;
    let text = |name: &str| claims.get(name).and_then(Value::as_str).map(str::to_owned);
    let groups = match claims.get(&oidc.groups_claim) {
        Some(Value::Array(groups)) => groups.iter().filter_map(Value::as_str).map(str::to_owned).collect(),
        Some(Value::String(group)) => vec![group.clone()],
        _ => Vec::new(),
    };
    Ok(Login {
        issuer: oidc.issuer.value.clone(),
        subject: text("sub").ok_or(TokenError::Claim("sub"))?,
        name: text(&oidc.user_claim),
        workspace: text(&oidc.workspace_claim),
        groups,
    })
}

fn check(claims: &Map<String, Value>, oidc: &Oidc, now: SystemTime) -> Result<(), TokenError> {
    let issuer = claims
        .get("iss")
        .and_then(Value::as_str)
        .ok_or(TokenError::Claim("iss"))?;
    if issuer != oidc.issuer.value {
        return Err(TokenError::Issuer {
            found: issuer.to_owned(),
            expected: oidc.issuer.value.clone(),
        });
    }
    let for_us = |audience: &Value| audience.as_str() == Some(&oidc.audience.value);
    let meant = match claims.get("aud") {
        Some(Value::Array(audiences)) => audiences.iter().any(for_us),
        Some(audience) => for_us(audience),
        None => return Err(TokenError::Claim("aud")),
    };
    if !meant {
        return Err(TokenError::Audience {
            expected: oidc.audience.value.clone(),
        });
    }
    // A clock before 1970 makes every token one of the future.
    let now = now.duration_since(UNIX_EPOCH).map_or(i64::MIN / 2, |since| {
        i64::try_from(since.as_secs()).unwrap_or(i64::MAX / 2)
    });
    let time = |name: &'static str| match claims.get(name) {
        None => Ok(None),
        Some(value) => {
            let seconds = value.as_i64().or_else(|| value.as_f64().map(|seconds| seconds as i64));
            seconds.map(Some).ok_or(TokenError::Claim(name))
        }
    };
    let expires = time("exp")?.ok_or(TokenError::Claim("exp"))?;
    if now.saturating_sub(LEEWAY) >= expires {
        return Err(TokenError::Expired(expires));
    }
    for begins in [time("nbf")?, time("iat")?].into_iter().flatten() {
        if now.saturating_add(LEEWAY) < begins {
            return Err(TokenError::Early(begins));
        }
    }
    Ok(())
}
