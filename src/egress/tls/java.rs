//! A store of trusted certificates as Java reads it (JKS, the format of `sun.security.provider.JavaKeyStore`; every Java knows it).

use std::time::{SystemTime, UNIX_EPOCH};

use ring::digest::{Context, SHA1_FOR_LEGACY_USE_ONLY};
use rustls::pki_types::CertificateDer;

/// Java's own word: it keeps nothing secret, for all in the store is public.
pub const PASSWORD: &str = "changeit";

const MAGIC: u32 = 0xfeed_feed;
const VERSION: u32 = 2;
const TRUSTED: u32 = 2;
const KIND: &[u8] = b"X.509";

/// A store that holds these certificates.
pub(super) fn store(certificates: &[CertificateDer<'_>]) -> Vec<u8> {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    let now = u64::try_from(now.as_millis()).unwrap_or_default();
    let mut bytes = Vec::new();
    let number = |bytes: &mut Vec<u8>, number: usize| {
        bytes.extend(u32::try_from(number).unwrap_or(u32::MAX).to_be_bytes());
    };
    let word = |bytes: &mut Vec<u8>, word: &[u8]| {
        bytes.extend(u16::try_from(word.len()).unwrap_or(u16::MAX).to_be_bytes());
        bytes.extend(word);
    };
    bytes.extend(MAGIC.to_be_bytes());
    bytes.extend(VERSION.to_be_bytes());
    number(&mut bytes, certificates.len());
    for (index, certificate) in certificates.iter().enumerate() {
        bytes.extend(TRUSTED.to_be_bytes());
        word(&mut bytes, format!("belljar-{index}").as_bytes());
        bytes.extend(now.to_be_bytes());
        word(&mut bytes, KIND);
        number(&mut bytes, certificate.len());
        bytes.extend(certificate.as_ref());
    }
    // It shows damage, no more.
    let mut digest = Context::new(&SHA1_FOR_LEGACY_USE_ONLY);
    PASSWORD
        .encode_utf16()
        .for_each(|unit| digest.update(&unit.to_be_bytes()));
    digest.update(b"Mighty Aphrodite");
    digest.update(&bytes);
    bytes.extend(digest.finish().as_ref());
    bytes
}
