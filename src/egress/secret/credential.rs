//! What in a request is a credential, so that none but ours reaches a host that gets one: beside it another could make the host
//! take the request for somebody else's (CVE-2026-105452).

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use hyper::header::{self, HeaderMap, HeaderName, HeaderValue};

/// Parts of the names of headers that carry credentials: `x-api-key`, `private-token`, `x-goog-iam-authorization-token`, …
const PARTS: [&str; 14] = [
    "authorization",
    "auth-",
    "-auth",
    "token",
    "secret",
    "password",
    "passwd",
    "credential",
    "api-key",
    "apikey",
    "access-key",
    "subscription-key",
    "functions-key",
    "signature",
];

/// Whole names that none of the parts tells.
const NAMES: [&str; 8] = [
    "cookie",
    "cookie2",
    "x-amz-date",
    "x-client-cert",
    "x-forwarded-client-cert",
    "x-session-id",
    "x-user",
    "x-jwt",
];

/// Parameters of a query, in small letters.
const PARAMETERS: [&str; 24] = [
    "access_token",
    "accesskey",
    "access_key",
    "api_key",
    "api-key",
    "apikey",
    "auth",
    "auth_token",
    "authorization",
    "client_secret",
    "id_token",
    "jwt",
    "key",
    "oauth_token",
    "password",
    "private_token",
    "refresh_token",
    "secret",
    "session_token",
    "sig",
    "signature",
    "token",
    "x-api-key",
    "subscription-key",
];

/// Names that end in "key" and open nothing.
const OTHER_KEYS: [&str; 4] = ["cache-key", "idempotency-key", "sec-websocket-key", "surrogate-key"];

/// Whether a header carries a credential, as far as its name tells.
pub(in crate::egress) fn is_header(name: &HeaderName) -> bool {
    let name = hyphenated(name.as_str());
    let is_key = name.ends_with("-key") && !OTHER_KEYS.iter().any(|other| name.ends_with(other));
    is_key || PARTS.iter().any(|part| name.contains(part)) || NAMES.contains(&name.as_str())
}

/// Whether a parameter of a query does.
pub(in crate::egress) fn is_parameter(name: &str) -> bool {
    let name = hyphenated(&name.to_ascii_lowercase());
    PARAMETERS.iter().any(|known| hyphenated(known) == name)
        || name.starts_with("x-amz-")
        || name.starts_with("x-goog-")
}

/// A name as the programs behind a server may see it: many of them know no difference between the two signs (RFC 3875, 4.1.18).
pub(in crate::egress) fn hyphenated(name: &str) -> String {
    name.replace('_', "-")
}

/// Takes every credential out of the headers, and tells the names.
pub(in crate::egress) fn take_headers(headers: &mut HeaderMap, kept: impl Fn(&HeaderName) -> bool) -> Vec<String> {
    let found: Vec<HeaderName> = headers
        .keys()
        .filter(|name| is_header(name) && !kept(name))
        .cloned()
        .collect();
    found.iter().for_each(|name| drop(headers.remove(name)));
    found.iter().map(|name| name.as_str().to_owned()).collect()
}

/// The `user:password` of basic authorization.
pub(in crate::egress) fn basic(value: &HeaderValue) -> Option<String> {
    let text = value.to_str().ok()?;
    let (scheme, code) = text.trim().split_once(' ')?;
    if !scheme.eq_ignore_ascii_case("basic") {
        return None;
    }
    String::from_utf8(STANDARD.decode(code.trim()).ok()?).ok()
}

/// Basic authorization (RFC 7617).
pub(in crate::egress) fn of_basic(user_and_password: &str) -> Option<HeaderValue> {
    let code = zeroize::Zeroizing::new(format!("Basic {}", STANDARD.encode(user_and_password)));
    sensitive(&code)
}

/// A header's value that hyper neither prints nor keeps in a table of its compression.
pub(in crate::egress) fn sensitive(text: &str) -> Option<HeaderValue> {
    let mut value = HeaderValue::from_str(text).ok()?;
    value.set_sensitive(true);
    Some(value)
}

pub(in crate::egress) const AUTHORIZATION: HeaderName = header::AUTHORIZATION;

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn credentials_are_told_by_their_names() {
        for name in [
            "authorization",
            "proxy-authorization",
            "x-api-key",
            "private-token",
            "x-auth-token",
            "x-vault-token",
            "cookie",
            "x-amz-security-token",
            "ocp-apim-subscription-key",
            "job-token",
            "x-authorization",
            "x-hub-signature-256",
            "x_api_key",
            "access_key",
            "x-consumer-key",
        ] {
            assert!(is_header(&HeaderName::from_static(name)), "{name}");
        }
        for name in [
            "accept",
            "user-agent",
            "content-type",
            "idempotency-key",
            "sec-websocket-key",
            "x-request-id",
            "author",
        ] {
            assert!(!is_header(&HeaderName::from_static(name)), "{name}");
        }
        assert!(is_parameter("access-token") && is_parameter("API_KEY") && is_parameter("subscription_key"));
        assert!(is_parameter("Access_Token") && is_parameter("X-Amz-Signature") && !is_parameter("q"));
    }
}
