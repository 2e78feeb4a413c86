//! Looking into TLS, for hosts that need it and no others: those that are allowed for some requests only, and those that get a
//! secret. Called by [`super::front::tunnel`] for a connection that was judged, recorded and made.
//!
//! ```text
//!  client ══TLS══► certificate of the task's CA │ each request: agree · judge · record · rewrite ══TLS══► server, by its own certificate
//!         h2 or http/1.1, whichever the server chose of what the client offered
//! ```
//!
//! One connection of a client is one connection to the address that was checked, so nothing is dialled here. Requests are read and
//! written anew by hyper on both sides; bodies are streams and are never held whole. The key of the CA lives in memory only and
//! dies with the task; its certificate is trusted by the sandbox alone.
//!
//! An encrypted ClientHello changes nothing: TLS ends here, by the outer hello, whose name must be the tunnel's.

mod authority;
mod bundle;
mod exchange;
mod frames;
mod java;
mod serve;
mod tokens;
mod websocket;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, ServerName};
use rustls::{ClientConfig, crypto::CryptoProvider};
use rustls_platform_verifier::Verifier;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

use super::host::Host;
use super::secret::Secrets;
use authority::TaskAuthority;

pub use authority::OPENSSL_FILE as AUTHORITY_FILE;
pub use java::PASSWORD as JAVA_PASSWORD;
pub(super) use serve::{Client, serve, serve_stored};

/// Why TLS cannot be looked into.
#[derive(Debug, thiserror::Error)]
pub enum InspectionError {
    #[error("the task's certificate authority could not be made")]
    Authority(#[from] rcgen::Error),
    #[error("the roots of trust could not be read")]
    Roots(#[source] rustls::Error),
    #[error("{} is not a file of certificates in PEM", path.display())]
    ExtraRoots {
        path: PathBuf,
        source: rustls::pki_types::pem::Error,
    },
}

/// What is spoken within TLS.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(super) enum Alpn {
    Http1,
    Http2,
}

/// The means of one task to look into TLS.
pub struct Inspection {
    authority: TaskAuthority,
    connector: Arc<ClientConfig>,
    /// The certificates of extra roots, as PEM.
    extra_roots: String,
    secrets: Secrets,
}

impl std::fmt::Debug for Inspection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Inspection(..)")
    }
}

impl Inspection {
    /// Makes a certificate authority and reads the machine's roots of trust; blocking. `extra_roots` are files of certificates that
    /// the admin or the user trusts beside them, and count for servers as well as inside the sandbox.
    pub fn new(extra_roots: &[PathBuf], secrets: Secrets) -> Result<Self, InspectionError> {
        let (connector, extra_roots) = client_config(extra_roots)?;
        Ok(Self {
            authority: TaskAuthority::new()?,
            connector: Arc::new(connector),
            extra_roots,
            secrets,
        })
    }

    pub fn secrets(&self) -> &Secrets {
        &self.secrets
    }

    /// The bundle that a sandbox trusts, as PEM: the machine's roots, the extra ones, and the task's own authority.
    pub fn trust_bundle(&self) -> String {
        let mut text = bundle::of_machine();
        text.push_str(&self.extra_roots);
        text.push_str(&self.authority.pem());
        text
    }

    /// The certificate of the task's own authority alone, as PEM.
    pub fn authority(&self) -> String {
        self.authority.pem()
    }

    /// The same as [`Self::trust_bundle`] as a store that Java reads, with [`JAVA_PASSWORD`].
    pub fn java_trust_store(&self) -> Vec<u8> {
        let bundle = self.trust_bundle();
        let found = CertificateDer::pem_slice_iter(bundle.as_bytes());
        // What cannot be read is trusted by nobody.
        let certificates: Vec<CertificateDer<'static>> = found.filter_map(Result::ok).collect();
        java::store(&certificates)
    }

    /// Does the client's part of TLS on a connection to a host, whose certificate is always checked.
    async fn connect(
        &self,
        stream: TcpStream,
        host: &Host,
        offers: &[Alpn],
        time: Duration,
    ) -> Result<(TlsStream<TcpStream>, Alpn), String> {
        let name = match host {
            Host::Name(name) => ServerName::try_from(name.as_str().to_owned()).map_err(|error| error.to_string())?,
            Host::Address(address) => ServerName::IpAddress(address.ip().into()),
        };
        let mut config = (*self.connector).clone();
        config.alpn_protocols = offers.iter().map(|alpn| alpn.id().to_vec()).collect();
        let connecting = TlsConnector::from(Arc::new(config)).connect(name, stream);
        match tokio::time::timeout(time, connecting).await {
            Ok(Ok(stream)) => {
                let chosen = Alpn::read(stream.get_ref().1.alpn_protocol());
                Ok((stream, chosen))
            }
            Ok(Err(error)) => Err(format!("no TLS with the server: {error}")),
            Err(_) => Err(format!("no TLS with the server within {} s", time.as_secs())),
        }
    }
}

impl Alpn {
    fn id(self) -> &'static [u8] {
        match self {
            Alpn::Http1 => b"http/1.1",
            Alpn::Http2 => b"h2",
        }
    }

    /// Whoever negotiates nothing speaks HTTP/1.1.
    fn read(id: Option<&[u8]>) -> Self {
        if id == Some(b"h2") { Alpn::Http2 } else { Alpn::Http1 }
    }
}

/// A client that checks certificates by the machine's roots and these; with the latter as PEM. Blocking.
pub(super) fn client_config(extra_roots: &[PathBuf]) -> Result<(ClientConfig, String), InspectionError> {
    let mut roots = Vec::new();
    let mut pem = String::new();
    for path in extra_roots {
        let failed = |source| InspectionError::ExtraRoots {
            path: path.clone(),
            source,
        };
        let found: Result<Vec<CertificateDer<'static>>, _> = CertificateDer::pem_file_iter(path)
            .and_then(Iterator::collect)
            .map_err(failed);
        let found = found?;
        if found.is_empty() {
            return Err(failed(rustls::pki_types::pem::Error::NoItemsFound));
        }
        found.iter().for_each(|root| pem.push_str(&bundle::pem(root)));
        roots.extend(found);
    }
    let provider = provider();
    let verifier = Verifier::new_with_extra_roots(roots, provider.clone()).map_err(InspectionError::Roots)?;
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(InspectionError::Roots)?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(verifier))
        .with_no_client_auth();
    Ok((config, pem))
}

fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

#[cfg(test)]
pub(super) mod testing;
#[cfg(test)]
mod tests;
