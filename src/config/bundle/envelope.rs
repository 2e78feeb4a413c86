//! The envelope: DSSE, <https://github.com/secure-systems-lab/dsse>, around a list of files.

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use crate::audit::key::{PublicKey, SigningKey};
use crate::policy::Digest;

const KIND: &str = "application/vnd.belljar.requirements+json";
/// More than anybody demands; an envelope is a third larger.
pub(super) const LARGEST: usize = 4 << 20;

/// Requirements as they were signed.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bundle {
    /// Grows with each bundle that is signed.
    pub serial: u64,
    pub expires: Timestamp,
    pub files: Vec<BundleFile>,
    /// Over all that was signed.
    pub digest: Digest,
}

/// One file: `*.toml` is requirements, `*.rules` rules that go with every task.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct BundleFile {
    pub name: String,
    pub text: String,
}

#[derive(Debug, thiserror::Error)]
pub enum EnvelopeError {
    #[error("the bundle is larger than 4 MiB")]
    TooLarge,
    #[error("the bundle is no DSSE envelope of requirements: {0}")]
    Form(String),
    #[error("no signature of the bundle is by a key of public_keys")]
    Signature,
    #[error("the signed part of the bundle is not understood: {0}")]
    Content(String),
}

#[derive(Serialize, Deserialize)]
struct Envelope {
    #[serde(rename = "payloadType")]
    kind: String,
    payload: String,
    signatures: Vec<Signature>,
}

#[derive(Serialize, Deserialize)]
struct Signature {
    #[serde(default)]
    keyid: String,
    sig: String,
}

#[derive(Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
struct Payload {
    version: u32,
    serial: u64,
    expires: Timestamp,
    files: Vec<BundleFile>,
}

/// Reads an envelope that one of `keys` has signed. Nothing of what was signed is parsed before the signature holds.
pub(super) fn open(bytes: &[u8], keys: &[&PublicKey]) -> Result<Bundle, EnvelopeError> {
    if bytes.len() > LARGEST {
        return Err(EnvelopeError::TooLarge);
    }
    let envelope: Envelope = serde_json::from_slice(bytes).map_err(|error| EnvelopeError::Form(error.to_string()))?;
    if envelope.kind != KIND {
        return Err(EnvelopeError::Form(format!("its payloadType is {:?}", envelope.kind)));
    }
    let decode = |text: &str| {
        STANDARD
            .decode(text)
            .map_err(|error| EnvelopeError::Form(error.to_string()))
    };
    let payload = decode(&envelope.payload)?;
    let signed = encoded(&payload);
    let mut proven = false;
    for signature in &envelope.signatures {
        let signature = decode(&signature.sig)?;
        proven |= keys.iter().any(|key| key.proves_message(&signed, &signature));
    }
    if !proven {
        return Err(EnvelopeError::Signature);
    }
    let found: Payload = serde_json::from_slice(&payload).map_err(|error| EnvelopeError::Content(error.to_string()))?;
    if found.version != 1 {
        return Err(EnvelopeError::Content(format!(
            "its version is {}, not 1",
            found.version
        )));
    }
    for file in &found.files {
        check_name(&file.name).map_err(EnvelopeError::Content)?;
    }
    Ok(Bundle {
        serial: found.serial,
        expires: found.expires,
        files: found.files,
        digest: Digest::of_bytes(&payload),
    })
}

/// Signs files; the text is what a server hands out.
pub fn sign(
    key: &SigningKey,
    serial: u64,
    expires: Timestamp,
    files: Vec<BundleFile>,
) -> Result<String, EnvelopeError> {
    for file in &files {
        check_name(&file.name).map_err(EnvelopeError::Content)?;
    }
    // Before the work of encoding it; what encoding adds is looked at below.
    if files.iter().map(|file| file.text.len()).sum::<usize>() > LARGEST {
        return Err(EnvelopeError::TooLarge);
    }
    let payload = Payload {
        version: 1,
        serial,
        expires,
        files,
    };
    let payload = serde_json::to_vec(&payload).map_err(|error| EnvelopeError::Form(error.to_string()))?;
    let envelope = Envelope {
        kind: KIND.to_owned(),
        signatures: vec![Signature {
            keyid: key.public().to_string(),
            sig: STANDARD.encode(key.sign_message(&encoded(&payload))),
        }],
        payload: STANDARD.encode(payload),
    };
    let text = serde_json::to_string(&envelope).map_err(|error| EnvelopeError::Form(error.to_string()))?;
    match text.len() > LARGEST {
        true => Err(EnvelopeError::TooLarge),
        false => Ok(text + "\n"),
    }
}

fn check_name(name: &str) -> Result<(), String> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    match name.chars().all(plain) && (name.ends_with(".toml") || name.ends_with(".rules")) {
        true => Ok(()),
        false => Err(format!("{name:?} is neither NAME.toml nor NAME.rules")),
    }
}

/// What is signed: DSSE's pre-authentication encoding.
fn encoded(payload: &[u8]) -> Vec<u8> {
    let mut message = format!("DSSEv1 {} {KIND} {} ", KIND.len(), payload.len()).into_bytes();
    message.extend_from_slice(payload);
    message
}
