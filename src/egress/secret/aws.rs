//! Signing a request to AWS anew (Signature Version 4): the sandbox signs with a placeholder, the signature that leaves is made with
//! the key. <https://docs.aws.amazon.com/IAM/latest/UserGuide/reference_sigv-create-signed-request.html>

use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use ring::hmac;
use sha2::{Digest, Sha256};
use zeroize::Zeroizing;

use super::Live;
use super::credential::{AUTHORIZATION, sensitive};
use super::put::percent_encoded;
use crate::egress::host::Authority;
use crate::egress::path::percent_decoded;
use crate::secret::ExposeSecret;
use crate::task::SecretPlace;

const ALGORITHM: &str = "AWS4-HMAC-SHA256";
const DATE: HeaderName = HeaderName::from_static("x-amz-date");
const CONTENT: HeaderName = HeaderName::from_static("x-amz-content-sha256");
const SESSION: HeaderName = HeaderName::from_static("x-amz-security-token");

/// The headers that belong to a signature.
pub(super) const HEADERS: [HeaderName; 3] = [AUTHORIZATION, DATE, SESSION];

/// The scope of a signature, and the headers that it covers.
struct Scope<'a> {
    key_id: &'a str,
    date: &'a str,
    region: &'a str,
    service: &'a str,
    headers: Vec<String>,
}

/// Whether the digest of a request's whole body is needed to sign it: the client has not said it.
pub(in crate::egress) fn needs_body(headers: &HeaderMap) -> bool {
    headers.contains_key(AUTHORIZATION) && !headers.contains_key(CONTENT)
}

/// SHA-256 in hex.
pub(in crate::egress) fn digest(bytes: &[u8]) -> String {
    hex(&Sha256::digest(bytes))
}

/// Puts a new signature in the place of the client's; `false` where the client has signed nothing, so that nothing is put in.
pub(super) fn sign(
    parts: &mut Parts,
    (path, query): (&str, &str),
    live: &Live,
    authority: &Authority,
    body_digest: Option<&str>,
) -> Result<bool, String> {
    let SecretPlace::Aws { access_key_id, .. } = &live.place else {
        return Ok(false);
    };
    let Some(signed) = parts.headers.get(AUTHORIZATION) else {
        return Ok(false);
    };
    let signed = signed
        .to_str()
        .map_err(|_| "its authorization cannot be read")?
        .to_owned();
    if !signed.starts_with(ALGORITHM) {
        return Ok(false);
    }
    let mut scope = Scope::read(&signed).ok_or("its authorization is not of Signature Version 4")?;
    if scope.key_id != access_key_id {
        return Err("it is signed with another key".to_owned());
    }
    let content = match parts.headers.get(CONTENT).map(HeaderValue::to_str) {
        Some(Ok(content)) => content.to_owned(),
        Some(Err(_)) => return Err("the digest of its body cannot be read".to_owned()),
        None => body_digest.ok_or("the digest of its body is not known")?.to_owned(),
    };
    if content.starts_with("STREAMING-AWS4") {
        return Err("its body is signed chunk by chunk (let the client send UNSIGNED-PAYLOAD)".to_owned());
    }
    scope.headers.retain(|name| name != SESSION.as_str());
    parts.headers.remove(SESSION);
    if let Some(session) = &live.session {
        let value = sensitive(session.expose_secret()).ok_or("the session token cannot stand in a header")?;
        parts.headers.insert(SESSION, value);
        scope.headers.push(SESSION.as_str().to_owned());
        scope.headers.sort();
    }
    let date = parts.headers.get(DATE).and_then(|date| date.to_str().ok());
    let date = date.ok_or("it has no x-amz-date")?.to_owned();
    if !date.starts_with(scope.date) {
        return Err("its date is not the one of its scope".to_owned());
    }
    let canonical = canonical_request(parts, (path, query), &scope, authority, &content)?;
    let place = format!("{}/{}/{}/aws4_request", scope.date, scope.region, scope.service);
    let text = format!("{ALGORITHM}\n{date}\n{place}\n{}", digest(canonical.as_bytes()));
    let first = Zeroizing::new(format!("AWS4{}", live.value.expose_secret()));
    let mut key = Zeroizing::new(first.as_bytes().to_vec());
    for part in [scope.date, scope.region, scope.service, "aws4_request"] {
        key = Zeroizing::new(mac(&key, part).as_ref().to_vec());
    }
    let header = format!(
        "{ALGORITHM} Credential={access_key_id}/{place}, SignedHeaders={}, Signature={}",
        scope.headers.join(";"),
        hex(mac(&key, &text).as_ref())
    );
    let header = sensitive(&header).ok_or("its scope cannot stand in a header")?;
    parts.headers.insert(AUTHORIZATION, header);
    Ok(true)
}

impl<'a> Scope<'a> {
    fn read(authorization: &'a str) -> Option<Self> {
        let fields = authorization.strip_prefix(ALGORITHM)?;
        let field = |name: &str| {
            let mut found = fields
                .split(',')
                .filter_map(|field| field.trim().strip_prefix(name)?.strip_prefix('='));
            found.next()
        };
        let credential: Vec<&str> = field("Credential")?.split('/').collect();
        let [key_id, date, region, service, "aws4_request"] = credential.as_slice() else {
            return None;
        };
        let headers: Vec<String> = field("SignedHeaders")?.split(';').map(str::to_owned).collect();
        headers.iter().any(|name| name == "host").then_some(Self {
            key_id,
            date,
            region,
            service,
            headers,
        })
    }
}

fn canonical_request(
    parts: &Parts,
    (path, query): (&str, &str),
    scope: &Scope<'_>,
    authority: &Authority,
    content: &str,
) -> Result<String, String> {
    // S3 takes the path as it is; all others encode it once more.
    let path = match scope.service {
        "s3" | "s3-object-lambda" | "s3express" => path.to_owned(),
        _ => path.split('/').map(percent_encoded).collect::<Vec<_>>().join("/"),
    };
    let encoded = |text: &str| match String::from_utf8(percent_decoded(text)) {
        Ok(text) => Ok(percent_encoded(&text)),
        Err(_) => Err("its query is not UTF-8".to_owned()),
    };
    let mut pairs = Vec::new();
    for pair in query.split('&').filter(|pair| !pair.is_empty()) {
        let (name, value) = pair.split_once('=').unwrap_or((pair, ""));
        pairs.push((encoded(name)?, encoded(value)?));
    }
    pairs.sort();
    let query: Vec<String> = pairs.iter().map(|(name, value)| format!("{name}={value}")).collect();
    let mut headers = String::new();
    for name in &scope.headers {
        let values: Vec<String> = if name == "host" {
            vec![authority.for_scheme_port(443)]
        } else {
            let values = parts.headers.get_all(name.as_str()).iter();
            values
                .map(|value| value.to_str().map(collapsed))
                .collect::<Result<_, _>>()
                .map_err(|_| format!("the header {name} cannot be read"))?
        };
        if values.is_empty() {
            return Err(format!("the signed header {name} is not there, or is not passed on"));
        }
        headers.push_str(&format!("{name}:{}\n", values.join(",")));
    }
    Ok(format!(
        "{}\n{path}\n{}\n{headers}\n{}\n{content}",
        parts.method,
        query.join("&"),
        scope.headers.join(";")
    ))
}

/// Without spaces around it, and with one for several.
fn collapsed(value: &str) -> String {
    value
        .split(' ')
        .filter(|word| !word.is_empty())
        .collect::<Vec<_>>()
        .join(" ")
}

fn mac(key: &[u8], text: &str) -> hmac::Tag {
    hmac::sign(&hmac::Key::new(hmac::HMAC_SHA256, key), text.as_bytes())
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &str = "wJalrXUtnFEMI/K7MDENG+bPxRfiCYEXAMPLEKEY";

    fn live(session: Option<&str>) -> Live {
        Live {
            name: "AWS_SECRET_ACCESS_KEY".to_owned(),
            place: SecretPlace::Aws {
                access_key_id: "AKIDEXAMPLE".to_owned(),
                session: None,
            },
            placeholder: "x".repeat(40),
            value: KEY.to_owned().into(),
            session: session.map(|session| session.to_owned().into()),
        }
    }

    fn signed(method: &str, target: &str, headers: &[(&str, &str)], live: &Live) -> Result<HeaderMap, String> {
        let mut builder = hyper::Request::builder().method(method).uri(target);
        for (name, value) in headers {
            builder = builder.header(*name, *value);
        }
        let (mut parts, ()) = builder.body(()).unwrap().into_parts();
        let authority = Authority::parse("example.amazonaws.com:443", None).unwrap();
        let (path, query) = (
            parts.uri.path().to_owned(),
            parts.uri.query().unwrap_or_default().to_owned(),
        );
        let empty = digest(b"");
        sign(&mut parts, (&path, &query), live, &authority, Some(&empty)).map(|_| parts.headers)
    }

    fn by_client(headers: &str) -> String {
        format!(
            "AWS4-HMAC-SHA256 Credential=AKIDEXAMPLE/20150830/us-east-1/service/aws4_request, SignedHeaders={headers}, Signature=00"
        )
    }

    /// `get-vanilla` and `get-vanilla-query-order-key-case` of AWS's own test suite for Signature Version 4.
    #[test]
    fn signatures_are_those_of_the_test_suite() {
        let cases = [
            ("/", "5fa00fa31553b73ebf1942676e86291e8372ff2a2260956d9b8aae1d763fbf31"),
            (
                "/?Param2=value2&Param1=value1",
                "b97d918cfa904a5beff61c982a1b6f458b799221646efd99d3219ec94cdf2500",
            ),
        ];
        for (target, expected) in cases {
            let authorization = by_client("host;x-amz-date");
            let headers = [
                ("authorization", authorization.as_str()),
                ("x-amz-date", "20150830T123600Z"),
            ];
            let headers = signed("GET", target, &headers, &live(None)).unwrap();
            let signed = headers[AUTHORIZATION].to_str().unwrap();
            assert!(
                signed.ends_with(&format!("SignedHeaders=host;x-amz-date, Signature={expected}")),
                "{signed}"
            );
        }
    }

    #[test]
    fn a_session_token_is_put_in_and_signed() {
        let authorization = by_client("host;x-amz-date;x-amz-security-token");
        let headers = [
            ("authorization", authorization.as_str()),
            ("x-amz-date", "20150830T123600Z"),
            ("x-amz-security-token", "placeholder"),
        ];
        let with = signed("GET", "/", &headers, &live(Some("the session's token"))).unwrap();
        assert_eq!(with[SESSION], "the session's token");
        let without = signed("GET", "/", &headers, &live(None)).unwrap();
        assert!(!without.contains_key(SESSION));
        assert!(
            without[AUTHORIZATION]
                .to_str()
                .unwrap()
                .contains("SignedHeaders=host;x-amz-date, ")
        );
    }

    #[test]
    fn what_cannot_be_signed_is_not_sent() {
        let good = by_client("host;x-amz-date");
        let date = ("x-amz-date", "20150830T123600Z");
        let other = good.replace("AKIDEXAMPLE", "AKIDOTHER");
        let absent = by_client("host;x-amz-date;x-absent");
        let cases = [
            (vec![("authorization", other.as_str()), date], "another key"),
            (vec![("authorization", absent.as_str()), date], "x-absent"),
            (vec![("authorization", good.as_str())], "no x-amz-date"),
            (
                vec![("authorization", good.as_str()), ("x-amz-date", "20160830T123600Z")],
                "its date",
            ),
            (
                vec![
                    ("authorization", good.as_str()),
                    date,
                    ("x-amz-content-sha256", "STREAMING-AWS4-HMAC-SHA256-PAYLOAD"),
                ],
                "chunk by chunk",
            ),
            (
                vec![("authorization", "AWS4-HMAC-SHA256 nonsense"), date],
                "not of Signature",
            ),
        ];
        for (headers, expected) in cases {
            let error = signed("GET", "/", &headers, &live(None)).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
