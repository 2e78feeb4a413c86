//! Collectors behind TLS: who is trusted, and who we are.

use std::sync::Arc;

use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, ServerConfig};
use tokio_rustls::TlsAcceptor;

use super::*;

/// An authority with one server and one client that it vouches for, as files.
struct Authority {
    folder: tempfile::TempDir,
    issuer: CertifiedIssuer<'static, KeyPair>,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::new(Vec::new()).unwrap();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), issuer.pem()).unwrap();
        let authority = Self { folder, issuer };
        authority.vouch("server", "localhost");
        authority.vouch("client", "belljar");
        authority
    }

    fn vouch(&self, file: &str, name: &str) {
        let key = KeyPair::generate().unwrap();
        let params = CertificateParams::new(vec![name.to_owned()]).unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        std::fs::write(self.file(&format!("{file}.pem")), certificate.pem()).unwrap();
        std::fs::write(self.file(&format!("{file}.key")), key.serialize_pem()).unwrap();
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join(name)
    }

    /// Takes only clients that show a certificate of this authority.
    fn acceptor(&self, protocol: &[u8]) -> TlsAcceptor {
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_file(self.file("ca.pem")).unwrap())
            .unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let clients = WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone())
            .build()
            .unwrap();
        let mut config = ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_client_cert_verifier(clients)
            .with_single_cert(
                vec![CertificateDer::from_pem_file(self.file("server.pem")).unwrap()],
                PrivateKeyDer::from_pem_file(self.file("server.key")).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = vec![protocol.to_vec()];
        TlsAcceptor::from(Arc::new(config))
    }

    fn config(&self, port: u16, protocol: Protocol) -> OtlpConfig {
        let mut config = OtlpConfig::new(format!("https://localhost:{port}"));
        config.protocol = protocol;
        config.ca = Some(self.file("ca.pem"));
        config.client_certificate = Some(self.file("client.pem"));
        config.client_key = Some(self.file("client.key"));
        config
    }
}

/// Serves gRPC or HTTP behind TLS; whoever fails the handshake is left standing.
async fn serve(authority: &Authority, protocol: Protocol, collector: Collector) -> u16 {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = listener.local_addr().unwrap().port();
    match protocol {
        Protocol::Grpc => {
            let acceptor = authority.acceptor(b"h2");
            let (tx, rx) = tokio::sync::mpsc::channel(8);
            tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    if let Ok(stream) = acceptor.accept(stream).await
                        && tx.send(Ok::<_, std::io::Error>(stream)).await.is_err()
                    {
                        return;
                    }
                }
            });
            let incoming = futures_util::stream::unfold(rx, async |mut rx| Some((rx.recv().await?, rx)));
            tokio::spawn(collector.router().serve_with_incoming(incoming));
        }
        Protocol::HttpProtobuf => {
            let acceptor = authority.acceptor(b"http/1.1");
            tokio::spawn(async move {
                loop {
                    let (stream, _) = listener.accept().await.unwrap();
                    let Ok(stream) = acceptor.accept(stream).await else {
                        continue;
                    };
                    tokio::spawn(collector.clone().speak_http(stream));
                }
            });
        }
    }
    port
}

#[tokio::test]
async fn records_go_by_tls_to_a_collector_that_the_given_authority_vouches_for() {
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let folder = tempfile::tempdir().unwrap();
        let journal = journal(folder.path());
        one_task(&journal, None, 0);
        let (authority, collector) = (Authority::new(), Collector::default());
        let port = serve(&authority, protocol, collector.clone()).await;
        let exporter = Exporter::start(folder.path(), vec![authority.config(port, protocol)]).unwrap();
        let lag = exporter.flush(PATIENCE).await;
        assert_eq!(lag.records, 0, "{protocol:?}: {lag:?}");
        assert_eq!(collector.seqs(), (1..=8).collect::<Vec<i64>>());
    }
}

#[tokio::test]
async fn a_collector_that_nobody_vouches_for_gets_nothing() {
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let folder = tempfile::tempdir().unwrap();
        let journal = journal(folder.path());
        one_task(&journal, None, 0);
        let (authority, collector) = (Authority::new(), Collector::default());
        let port = serve(&authority, protocol, collector.clone()).await;
        let mut config = authority.config(port, protocol);
        config.ca = Some(Authority::new().folder.keep().join("ca.pem"));
        let exporter = Exporter::start(folder.path(), vec![config]).unwrap();
        let failed = |lag: &Lag| lag.signals.iter().all(|signal| signal.error.is_some());
        let lag = lag_becomes(&exporter, failed).await;
        let error = lag.signals[0].error.as_deref().unwrap();
        assert!(error.contains("certificate"), "{protocol:?}: {error}");
        assert_eq!(collector.seqs(), Vec::<i64>::new());
    }
}

#[tokio::test]
async fn who_shows_no_certificate_is_not_taken_and_it_costs_lag_only() {
    let folder = tempfile::tempdir().unwrap();
    let journal = journal(folder.path());
    one_task(&journal, None, 0);
    let (authority, collector) = (Authority::new(), Collector::default());
    let port = serve(&authority, Protocol::HttpProtobuf, collector.clone()).await;
    let mut config = authority.config(port, Protocol::HttpProtobuf);
    (config.client_certificate, config.client_key) = (None, None);
    let exporter = Exporter::start(folder.path(), vec![config]).unwrap();
    let failed = |lag: &Lag| lag.signals.iter().all(|signal| signal.error.is_some());
    assert_eq!(lag_becomes(&exporter, failed).await.records, 8);
    assert_eq!(collector.seqs(), Vec::<i64>::new());
}

#[test]
fn files_that_are_no_certificates_are_named_before_anything_is_sent() {
    let folder = tempfile::tempdir().unwrap();
    journal(folder.path());
    let authority = Authority::new();
    let start = |config| {
        Exporter::start(folder.path(), vec![config])
            .err()
            .map(|error| whole(&error))
    };
    let mut config = authority.config(1, Protocol::Grpc);
    config.ca = Some(authority.file("server.key"));
    let error = start(config).unwrap();
    assert!(
        error.contains("server.key cannot be used: it holds no certificate"),
        "{error}"
    );
    let mut config = authority.config(1, Protocol::Grpc);
    config.client_key = None;
    assert!(start(config).unwrap().contains("needs its key"));
    let mut config = authority.config(1, Protocol::Grpc);
    config.client_key = Some(authority.file("nothing"));
    assert!(start(config).unwrap().contains("nothing cannot be used"));
}
