//! Putting values into the head of a request, in the places that the task names, and taking every other credential out.

use std::borrow::Cow;

use hyper::header::{self, HeaderName, HeaderValue};
use hyper::http::request::Parts;
use hyper::http::uri::PathAndQuery;
use zeroize::Zeroizing;

use super::credential::{self, AUTHORIZATION, basic, is_header, is_parameter, of_basic, sensitive};
use super::{Live, aws, contains};
use crate::egress::host::Authority;
use crate::egress::path::percent_decoded;
use crate::secret::ExposeSecret;
use crate::task::SecretPlace;

/// Headers that would let an answer through unseen: packed in ways that are not unpacked here, or a piece of it.
const UNSEEN: [HeaderName; 3] = [header::RANGE, header::IF_RANGE, header::SEC_WEBSOCKET_EXTENSIONS];

/// What became of a request.
#[derive(Debug, Default, PartialEq, Eq)]
pub(in crate::egress) struct Outgoing {
    /// Name and place of each value that was put in.
    pub used: Vec<(String, String)>,
    /// Headers and parameters that were taken out.
    pub removed: Vec<String>,
}

#[derive(Debug, thiserror::Error, PartialEq, Eq)]
pub(in crate::egress) enum PutError {
    #[error("the value of {name} cannot stand in its place")]
    Value { name: String },
    #[error("the request cannot be signed anew with {name}: {what}")]
    Sign { name: String, what: String },
}

impl PutError {
    pub fn name(&self) -> &str {
        match self {
            PutError::Value { name } | PutError::Sign { name, .. } => name,
        }
    }
}

impl Outgoing {
    /// Changes the head of a request to a host that gets these secrets. `body_digest` is SHA-256 in hex, where the whole body is at hand.
    pub fn put(
        parts: &mut Parts,
        live: &[Live],
        authority: &Authority,
        body_digest: Option<&str>,
    ) -> Result<Outgoing, PutError> {
        let mut out = Outgoing::default();
        let mut ours: Vec<HeaderName> = Vec::new();
        let (path, query) = split(parts);
        let mut parameters = Parameters::read(&query);
        for live in live {
            match &live.place {
                SecretPlace::Placeholder => {
                    for (name, how) in put_for_placeholder(parts, live)? {
                        out.used.push((live.name.clone(), how));
                        ours.push(name);
                    }
                    for name in parameters.put_for_placeholder(live) {
                        out.used.push((live.name.clone(), format!("query {name}")));
                    }
                }
                SecretPlace::Header { name, before, after } => {
                    let text = Zeroizing::new(format!("{before}{}{after}", live.value.expose_secret()));
                    set(parts, live, name, sensitive(&text), &mut ours)?;
                    out.used.push((live.name.clone(), format!("header {name}")));
                }
                SecretPlace::Oauth { .. } => {
                    let text = Zeroizing::new(format!("Bearer {}", live.value.expose_secret()));
                    set(parts, live, "authorization", sensitive(&text), &mut ours)?;
                    out.used
                        .push((live.name.clone(), "header authorization (oauth)".to_owned()));
                }
                SecretPlace::Basic { user } => {
                    let text = Zeroizing::new(format!("{user}:{}", live.value.expose_secret()));
                    set(parts, live, "authorization", of_basic(&text), &mut ours)?;
                    out.used
                        .push((live.name.clone(), "header authorization (basic)".to_owned()));
                }
                SecretPlace::Query { name } => {
                    parameters.set(name, live.value.expose_secret());
                    out.used.push((live.name.clone(), format!("query {name}")));
                }
                // Signed last, over what the request is by then.
                SecretPlace::Aws { .. } => {}
            }
        }
        out.removed.extend(parameters.remove_credentials());
        if let Some(live) = live.iter().find(|live| matches!(live.place, SecretPlace::Aws { .. })) {
            let query = parameters.to_text();
            let signed =
                aws::sign(parts, (&path, &query), live, authority, body_digest).map_err(|what| PutError::Sign {
                    name: live.name.clone(),
                    what,
                })?;
            if signed {
                ours.extend(aws::HEADERS);
                out.used
                    .push((live.name.clone(), "header authorization (aws)".to_owned()));
            }
        }
        out.removed
            .extend(credential::take_headers(&mut parts.headers, |name| ours.contains(name)));
        let text = parameters.to_text();
        put_back(parts, &path, &text).ok_or_else(|| PutError::Value {
            name: live.first().map(|live| live.name.clone()).unwrap_or_default(),
        })?;
        show_answers(parts);
        Ok(out)
    }
}

fn set(
    parts: &mut Parts,
    live: &Live,
    name: &str,
    value: Option<HeaderValue>,
    ours: &mut Vec<HeaderName>,
) -> Result<(), PutError> {
    let name = HeaderName::from_bytes(name.as_bytes()).ok();
    let (Some(name), Some(value)) = (name, value) else {
        return Err(PutError::Value {
            name: live.name.clone(),
        });
    };
    parts.headers.insert(name.clone(), value);
    ours.push(name);
    Ok(())
}

/// Every header that carries credentials and holds the placeholder, as it is or within basic authorization.
fn put_for_placeholder(parts: &mut Parts, live: &Live) -> Result<Vec<(HeaderName, String)>, PutError> {
    let (placeholder, value) = (&live.placeholder, live.value.expose_secret());
    let mut done = Vec::new();
    let names: Vec<HeaderName> = parts.headers.keys().filter(|name| is_header(name)).cloned().collect();
    for name in names {
        // Of several of one name at most one can be ours; the others go.
        let found = parts.headers.get_all(&name).iter().find_map(|held| {
            if contains(held.as_bytes(), placeholder.as_bytes()) {
                let text = Zeroizing::new(held.to_str().ok()?.replace(placeholder, value));
                return Some((sensitive(&text), format!("header {name}")));
            }
            let pair = basic(held).filter(|pair| name == AUTHORIZATION && pair.contains(placeholder))?;
            let pair = Zeroizing::new(pair.replace(placeholder, value));
            Some((of_basic(&pair), format!("header {name} (basic)")))
        });
        if let Some((made, how)) = found {
            let made = made.ok_or_else(|| PutError::Value {
                name: live.name.clone(),
            })?;
            parts.headers.insert(name.clone(), made);
            done.push((name, how));
        }
    }
    Ok(done)
}

/// An answer must be one that can be looked through.
fn show_answers(parts: &mut Parts) {
    let packed = parts.headers.get_all(header::ACCEPT_ENCODING).iter().any(|value| {
        let text = value.to_str().unwrap_or_default().to_ascii_lowercase();
        text.contains("gzip") && !text.contains("gzip;q=0")
    });
    for name in UNSEEN {
        parts.headers.remove(name);
    }
    let takes = if packed { "gzip" } else { "identity" };
    parts
        .headers
        .insert(header::ACCEPT_ENCODING, HeaderValue::from_static(takes));
}

fn split(parts: &Parts) -> (String, String) {
    let uri = &parts.uri;
    (uri.path().to_owned(), uri.query().unwrap_or_default().to_owned())
}

fn put_back(parts: &mut Parts, path: &str, query: &str) -> Option<()> {
    let text = match query {
        "" => Zeroizing::new(path.to_owned()),
        query => Zeroizing::new(format!("{path}?{query}")),
    };
    let mut uri = std::mem::take(&mut parts.uri).into_parts();
    uri.path_and_query = Some(PathAndQuery::try_from(text.as_str()).ok()?);
    parts.uri = hyper::Uri::from_parts(uri).ok()?;
    Some(())
}

/// A query, parameter by parameter, as it was written.
struct Parameters(Vec<Parameter>);

struct Parameter {
    text: Zeroizing<String>,
    /// Decoded.
    name: String,
    is_ours: bool,
}

impl Parameters {
    fn read(query: &str) -> Self {
        let read = query.split('&').filter(|text| !text.is_empty()).map(|text| {
            let name = text.split('=').next().unwrap_or_default();
            Parameter {
                text: Zeroizing::new(text.to_owned()),
                name: String::from_utf8_lossy(&percent_decoded(name)).into_owned(),
                is_ours: false,
            }
        });
        Self(read.collect())
    }

    fn put_for_placeholder(&mut self, live: &Live) -> Vec<String> {
        let encoded = percent_encoded(&live.placeholder);
        let value = Zeroizing::new(percent_encoded(live.value.expose_secret()));
        let mut done = Vec::new();
        for parameter in self.0.iter_mut().filter(|parameter| is_parameter(&parameter.name)) {
            for placeholder in [&encoded, &live.placeholder] {
                if !parameter.is_ours && parameter.text.contains(placeholder.as_str()) {
                    parameter.text = Zeroizing::new(parameter.text.replace(placeholder.as_str(), &value));
                    parameter.is_ours = true;
                    done.push(parameter.name.clone());
                }
            }
        }
        done
    }

    fn set(&mut self, name: &str, value: &str) {
        self.0.retain(|parameter| parameter.name != name);
        self.0.push(Parameter {
            text: Zeroizing::new(format!("{}={}", percent_encoded(name), percent_encoded(value))),
            name: name.to_owned(),
            is_ours: true,
        });
    }

    fn remove_credentials(&mut self) -> Vec<String> {
        let (kept, removed) = std::mem::take(&mut self.0)
            .into_iter()
            .partition(|parameter| parameter.is_ours || !is_parameter(&parameter.name));
        self.0 = kept;
        let removed: Vec<Parameter> = removed;
        removed
            .into_iter()
            .map(|parameter| format!("query {}", parameter.name))
            .collect()
    }

    fn to_text(&self) -> Zeroizing<String> {
        let texts: Vec<Cow<'_, str>> = self.0.iter().map(|parameter| parameter.text.as_str().into()).collect();
        Zeroizing::new(texts.join("&"))
    }
}

/// What may stand in any part of a URL as it is (RFC 3986, 2.3).
pub(super) fn is_unreserved(byte: u8) -> bool {
    byte.is_ascii_alphanumeric() || b"-._~".contains(&byte)
}

pub(super) fn percent_encoded(text: &str) -> String {
    let mut encoded = String::with_capacity(text.len());
    for byte in text.bytes() {
        match is_unreserved(byte) {
            true => encoded.push(char::from(byte)),
            false => encoded.push_str(&format!("%{byte:02X}")),
        }
    }
    encoded
}
