//! The certificate authority of one task, in memory alone.

use std::sync::Arc;

use moka::sync::Cache;
use rcgen::{
    BasicConstraints, Certificate, CertificateParams, CertifiedIssuer, DistinguishedName, DnType,
    ExtendedKeyUsagePurpose, IsCa, KeyPair, KeyUsagePurpose, PKCS_ECDSA_P256_SHA256, SanType,
};
use rustls::ServerConfig;
use rustls::pki_types::PrivateKeyDer;

use super::{Alpn, provider};
use crate::egress::host::Host;

/// Hosts whose certificates are kept; beyond that one is signed anew, which costs some 0.1 ms.
const KEPT: u64 = 1024;

/// An hour for clocks that disagree, and longer than a task may last. Some clients refuse certificates of more than 398 days.
const BEFORE_HOURS: i64 = 1;
const AFTER_DAYS: i64 = 90;

/// The subject of every task's authority.
const NAME: &str = "belljar task authority";
const ORGANIZATION: &str = "belljar";

/// What OpenSSL calls a file with an authority of this subject in a folder of certificates: see `openssl x509 -subject_hash`.
pub const OPENSSL_FILE: &str = "b4ad2c50.0";

/// Signs certificates for the hosts that one task's proxy looks into.
pub(super) struct TaskAuthority {
    issuer: CertifiedIssuer<'static, KeyPair>,
    /// One key for all leaves: whoever has it has the sandbox's trust anyway.
    leaf_key: KeyPair,
    configs: Cache<(Host, Alpn), Arc<ServerConfig>>,
}

#[derive(Debug, thiserror::Error)]
pub(super) enum LeafError {
    #[error("no certificate can be made for this host")]
    Sign(#[from] rcgen::Error),
    #[error("the certificate cannot be used")]
    Tls(#[from] rustls::Error),
}

impl TaskAuthority {
    pub fn new() -> Result<Self, rcgen::Error> {
        let mut params = params(NAME);
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?;
        Ok(Self {
            issuer: CertifiedIssuer::self_signed(params, key)?,
            leaf_key: KeyPair::generate_for(&PKCS_ECDSA_P256_SHA256)?,
            configs: Cache::new(KEPT),
        })
    }

    pub fn pem(&self) -> String {
        super::bundle::pem(self.issuer.der())
    }

    /// What a server for this host is, speaking one protocol.
    pub fn config(&self, host: &Host, alpn: Alpn) -> Result<Arc<ServerConfig>, LeafError> {
        let key = (host.clone(), alpn);
        if let Some(config) = self.configs.get(&key) {
            return Ok(config);
        }
        let leaf = self.leaf(host)?;
        let chain = vec![leaf.der().clone(), self.issuer.der().clone()];
        let private = PrivateKeyDer::try_from(self.leaf_key.serialize_der())
            .map_err(|what| rustls::Error::General(what.to_owned()))?;
        let mut config = ServerConfig::builder_with_provider(provider())
            .with_safe_default_protocol_versions()?
            .with_no_client_auth()
            .with_single_cert(chain, private)?;
        config.alpn_protocols = vec![alpn.id().to_vec()];
        let config = Arc::new(config);
        self.configs.insert(key, config.clone());
        Ok(config)
    }

    fn leaf(&self, host: &Host) -> Result<Certificate, rcgen::Error> {
        // A common name has at most 64 signs; the names that count stand in the extension.
        let mut params = params("belljar");
        params.subject_alt_names = vec![match host {
            Host::Name(name) => SanType::DnsName(name.as_str().try_into()?),
            Host::Address(address) => SanType::IpAddress(address.ip()),
        }];
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        params.signed_by(&self.leaf_key, &self.issuer)
    }
}

fn params(name: &str) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, name);
    params.distinguished_name.push(DnType::OrganizationName, ORGANIZATION);
    // Written as a system time plus a span: `rcgen` takes the clock of its own `time` crate.
    let now = std::time::SystemTime::now();
    let hours = |hours: i64| std::time::Duration::from_secs(hours.unsigned_abs() * 3600);
    params.not_before = (now - hours(BEFORE_HOURS)).into();
    params.not_after = (now + hours(AFTER_DAYS * 24)).into();
    params
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_host_gets_one_configuration_per_protocol_and_keeps_it() {
        let authority = TaskAuthority::new().unwrap();
        let host = |text| Host::parse(text).unwrap();
        let one = authority.config(&host("api.example.com"), Alpn::Http1).unwrap();
        assert!(Arc::ptr_eq(
            &one,
            &authority.config(&host("api.example.com"), Alpn::Http1).unwrap()
        ));
        assert!(!Arc::ptr_eq(
            &one,
            &authority.config(&host("api.example.com"), Alpn::Http2).unwrap()
        ));
        assert!(authority.config(&host("1.2.3.4"), Alpn::Http2).is_ok());
        assert_ne!(
            authority.pem(),
            TaskAuthority::new().unwrap().pem(),
            "every task has its own"
        );
    }
}
