//! The connection to a collector: TCP, and TLS over it where the endpoint says https. One way for gRPC and for HTTP.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};

use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore};
use rustls_platform_verifier::BuilderVerifierExt;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tonic::codegen::Service;
use tonic::transport::Uri;

use super::{ConfigError, OtlpConfig, Protocol};

/// Bytes both ways, with or without TLS.
pub(super) trait Wire: AsyncRead + AsyncWrite + Send + Unpin {}

impl<T: AsyncRead + AsyncWrite + Send + Unpin> Wire for T {}

/// Makes connections to one collector.
#[derive(Clone)]
pub(super) struct Dial {
    host: String,
    port: u16,
    tls: Option<(TlsConnector, ServerName<'static>)>,
}

impl Dial {
    /// Reads the certificates and connects to nothing.
    pub fn new(config: &OtlpConfig, uri: &Uri) -> Result<Self, ConfigError> {
        let host = uri.host().unwrap_or_default();
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let secure = uri.scheme_str() == Some("https");
        let tls = if secure {
            let name = ServerName::try_from(host.clone()).map_err(|_| ConfigError::Endpoint {
                endpoint: config.endpoint.clone(),
            })?;
            Some((TlsConnector::from(Arc::new(client(config)?)), name))
        } else {
            None
        };
        Ok(Self {
            host,
            port: uri.port_u16().unwrap_or(if secure { 443 } else { 80 }),
            tls,
        })
    }

    pub async fn connect(&self) -> io::Result<Box<dyn Wire>> {
        let stream = TcpStream::connect((self.host.as_str(), self.port)).await?;
        stream.set_nodelay(true)?;
        match &self.tls {
            None => Ok(Box::new(stream)),
            Some((tls, name)) => Ok(Box::new(tls.connect(name.clone(), stream).await?)),
        }
    }
}

/// For tonic's channel, which connects anew whenever it has to; the address is ours, whatever it says.
impl Service<Uri> for Dial {
    type Response = TokioIo<Box<dyn Wire>>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Uri) -> Self::Future {
        let dial = self.clone();
        Box::pin(async move { dial.connect().await.map(TokioIo::new) })
    }
}

/// Trusts the given authorities alone, or else those of the machine; shows our own certificate where there is one.
fn client(config: &OtlpConfig) -> Result<ClientConfig, ConfigError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let wrong = |error: rustls::Error| ConfigError::Tls {
        endpoint: config.endpoint.clone(),
        why: error.to_string(),
    };
    let builder = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(wrong)?;
    let builder = match &config.ca {
        None => builder.with_platform_verifier().map_err(wrong)?,
        Some(path) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(path)? {
                roots.add(certificate).map_err(wrong)?;
            }
            builder.with_root_certificates(roots)
        }
    };
    let mut client = match (&config.client_certificate, &config.client_key) {
        (None, None) => builder.with_no_client_auth(),
        (Some(certificate), Some(key)) => {
            let chain = certificates(certificate)?;
            let key = PrivateKeyDer::from_pem_file(key).map_err(|error| unreadable(key, error.to_string()))?;
            builder.with_client_auth_cert(chain, key).map_err(wrong)?
        }
        (Some(_), None) | (None, Some(_)) => return Err(ConfigError::HalfIdentity),
    };
    client.alpn_protocols = match config.protocol {
        Protocol::Grpc => vec![b"h2".to_vec()],
        Protocol::HttpProtobuf => vec![b"http/1.1".to_vec()],
    };
    Ok(client)
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, ConfigError> {
    let read = CertificateDer::pem_file_iter(path).and_then(Iterator::collect::<Result<Vec<_>, _>>);
    let found = read.map_err(|error| unreadable(path, error.to_string()))?;
    match found.is_empty() {
        true => Err(unreadable(path, "it holds no certificate".to_owned())),
        false => Ok(found),
    }
}

fn unreadable(path: &Path, why: String) -> ConfigError {
    ConfigError::File {
        path: PathBuf::from(path),
        why,
    }
}
