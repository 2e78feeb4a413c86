//! Bundles of certificates as PEM.

use std::path::Path;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::CertificateDer;

/// Where distributions keep the bundle that their programs trust: Debian, Fedora, SUSE, Alpine.
const MACHINE: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

/// More than any bundle: Mozilla's has some 220 KiB.
const LARGEST: u64 = 4 << 20;

/// The machine's own bundle; empty where it has none, for then its programs trust nobody either.
pub(super) fn of_machine() -> String {
    let read = |path: &&str| {
        let small = Path::new(path).metadata().is_ok_and(|found| found.len() <= LARGEST);
        small.then(|| std::fs::read_to_string(path).ok()).flatten()
    };
    let mut text = MACHINE.iter().find_map(read).unwrap_or_default();
    if !text.is_empty() && !text.ends_with('\n') {
        text.push('\n');
    }
    text
}

pub(super) fn pem(certificate: &CertificateDer<'_>) -> String {
    let code = STANDARD.encode(certificate);
    let mut text = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = code.as_str();
    while !rest.is_empty() {
        let (line, after) = rest.split_at(rest.len().min(64));
        text.push_str(line);
        text.push('\n');
        rest = after;
    }
    text.push_str("-----END CERTIFICATE-----\n");
    text
}
