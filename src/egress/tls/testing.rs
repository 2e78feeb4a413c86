//! Servers and clients that speak TLS, for tests: an authority of the tests' own, which the proxy trusts as an extra root, and
//! clients that trust the task's authority and nobody else.

use std::convert::Infallible;
use std::sync::{Arc, Mutex};
use std::time::{Duration, SystemTime};

use bytes::Bytes;
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper::{Request, Response};
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto;
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use rustls::{ClientConfig, RootCertStore, ServerConfig};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio_rustls::{TlsAcceptor, TlsConnector};

use super::Inspection;
use crate::egress::secret::Secrets;
use crate::egress::testing::{Fixture, Options, read_head};
use crate::task::{HostRule, Methods};

pub const HOST: &str = "api.example.com";

type Body = UnsyncBoxBody<Bytes, hyper::Error>;
pub type Answer = Response<Body>;

/// An authority of the tests, and the file that names it as a root.
pub struct Roots {
    issuer: CertifiedIssuer<'static, KeyPair>,
    pub file: tempfile::NamedTempFile,
}

/// What a server's certificate says.
#[derive(Clone, Copy)]
pub struct Leaf<'a> {
    pub name: &'a str,
    pub expired: bool,
}

impl Roots {
    pub fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        // Another name for each, or a strange one would be taken for a forged one of ours.
        let name = uuid::Uuid::now_v7().to_string();
        params.distinguished_name.push(rcgen::DnType::OrganizationName, name);
        let issuer = CertifiedIssuer::self_signed(params, KeyPair::generate().unwrap()).unwrap();
        let file = tempfile::NamedTempFile::new().unwrap();
        std::fs::write(file.path(), issuer.pem()).unwrap();
        Self { issuer, file }
    }

    pub fn inspection(&self) -> Arc<Inspection> {
        self.inspection_with(Secrets::default())
    }

    pub fn inspection_with(&self, secrets: Secrets) -> Arc<Inspection> {
        Arc::new(Inspection::new(&[self.file.path().to_owned()], secrets).unwrap())
    }

    pub fn server(&self, leaf: Leaf<'_>, alpn: &[&str]) -> Arc<ServerConfig> {
        let mut params = CertificateParams::new([leaf.name.to_owned()]).unwrap();
        if leaf.expired {
            params.not_after = (SystemTime::now() - Duration::from_secs(3600)).into();
        }
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        let mut config = ServerConfig::builder_with_provider(super::provider())
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(
                vec![certificate.der().clone()],
                PrivateKeyDer::try_from(key.serialize_der()).unwrap(),
            )
            .unwrap();
        config.alpn_protocols = alpn.iter().map(|id| id.as_bytes().to_vec()).collect();
        Arc::new(config)
    }
}

/// What a server was asked, whole.
#[derive(Debug, Clone)]
pub struct Got {
    pub line: String,
    pub headers: hyper::HeaderMap,
    pub body: Bytes,
    pub trailers: hyper::HeaderMap,
}

/// A proxy, a server behind it, and the means to be a client of it.
pub struct World {
    pub fixture: Fixture,
    pub inspection: Arc<Inspection>,
    pub got: Arc<Mutex<Vec<Got>>>,
}

pub fn good(name: &str) -> Leaf<'_> {
    Leaf { name, expired: false }
}

pub fn read_only(host: &str, paths: &[&str]) -> HostRule {
    HostRule {
        host: host.to_owned(),
        ports: Vec::new(),
        methods: Methods::ReadOnly,
        paths: paths.iter().map(|&path| path.to_owned()).collect(),
    }
}

pub fn whole(text: impl Into<Bytes>) -> Body {
    Full::new(text.into()).map_err(|never| match never {}).boxed_unsync()
}

async fn over(stream: tokio_rustls::client::TlsStream<TcpStream>) -> hyper::client::conn::http2::SendRequest<Body> {
    let (sender, driver) = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream))
        .await
        .unwrap();
    tokio::spawn(driver);
    sender
}

impl World {
    /// A server that notes what it is asked and answers with its path.
    pub async fn start(alpn: &[&str], options: Options<'_>) -> Self {
        let roots = Roots::new();
        let config = roots.server(good(HOST), alpn);
        Self::with(&roots, config, options, |got| Response::new(whole(got.line.clone()))).await
    }

    /// A server of this certificate, with answers of the test's.
    pub async fn with(
        roots: &Roots,
        config: Arc<ServerConfig>,
        options: Options<'_>,
        answer: impl Fn(&Got) -> Answer + Clone + Send + Sync + 'static,
    ) -> Self {
        let inspection = options.inspection.clone().unwrap_or_else(|| roots.inspection());
        let mut fixture = Fixture::start(Options {
            inspection: Some(inspection.clone()),
            ..options
        })
        .await;
        let server = fixture.take_server().await;
        let got = Arc::<Mutex<Vec<Got>>>::default();
        let seen = got.clone();
        tokio::spawn(async move {
            while let Ok((stream, _)) = server.accept().await {
                let (config, seen, answer) = (config.clone(), seen.clone(), answer.clone());
                tokio::spawn(async move {
                    // A client that does not like the certificate is gone here.
                    let Ok(stream) = TlsAcceptor::from(config).accept(stream).await else {
                        return;
                    };
                    let service =
                        hyper::service::service_fn(move |request| note(request, seen.clone(), answer.clone()));
                    let _ = auto::Builder::new(TokioExecutor::new())
                        .serve_connection_with_upgrades(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        Self {
            fixture,
            inspection,
            got,
        }
    }

    /// A TLS client within a tunnel to the host, which trusts the task's authority alone.
    pub async fn tls(&self, host: &str, alpn: &[&str]) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
        let bundle = self.inspection.trust_bundle();
        let own = bundle.rfind("-----BEGIN").unwrap();
        let mut roots = RootCertStore::empty();
        roots
            .add(CertificateDer::from_pem_slice(&bundle.as_bytes()[own..]).unwrap())
            .unwrap();
        connect(&self.fixture, host, roots, alpn).await
    }

    pub async fn http1(&self) -> hyper::client::conn::http1::SendRequest<Body> {
        let stream = self.tls(HOST, &["http/1.1"]).await.unwrap();
        let (sender, driver) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .unwrap();
        tokio::spawn(driver.with_upgrades());
        sender
    }

    pub async fn http2(&self) -> hyper::client::conn::http2::SendRequest<Body> {
        let stream = self.tls(HOST, &["h2", "http/1.1"]).await.unwrap();
        assert_eq!(stream.get_ref().1.alpn_protocol(), Some(&b"h2"[..]));
        over(stream).await
    }

    /// The same to a host that may be another, by a client that speaks nothing else.
    pub async fn http2_to(&self, host: &str) -> hyper::client::conn::http2::SendRequest<Body> {
        over(self.tls(host, &["h2"]).await.unwrap()).await
    }

    /// Sends bytes within TLS and gives all that comes back.
    pub async fn raw(&self, bytes: impl AsRef<[u8]>) -> String {
        let mut stream = self.tls(HOST, &["http/1.1"]).await.unwrap();
        exchange(&mut stream, bytes.as_ref()).await
    }

    pub fn lines(&self) -> Vec<String> {
        self.got.lock().unwrap().iter().map(|got| got.line.clone()).collect()
    }
}

pub async fn exchange(stream: &mut (impl AsyncRead + AsyncWrite + Unpin), bytes: &[u8]) -> String {
    stream.write_all(bytes).await.unwrap();
    let mut answer = Vec::new();
    // An end without TLS's own goodbye is an end all the same.
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8_lossy(&answer).into_owned()
}

pub async fn connect(
    fixture: &Fixture,
    host: &str,
    roots: RootCertStore,
    alpn: &[&str],
) -> std::io::Result<tokio_rustls::client::TlsStream<TcpStream>> {
    let request = format!("CONNECT {host}:443 HTTP/1.1\r\nHost: {host}:443\r\n\r\n");
    let mut stream = fixture.send(request).await;
    let head = read_head(&mut stream).await;
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    let mut config = ClientConfig::builder_with_provider(super::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_root_certificates(roots)
        .with_no_client_auth();
    config.alpn_protocols = alpn.iter().map(|id| id.as_bytes().to_vec()).collect();
    let name = ServerName::try_from(host.to_owned()).unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, stream).await
}

async fn note(
    mut request: Request<Incoming>,
    seen: Arc<Mutex<Vec<Got>>>,
    answer: impl Fn(&Got) -> Answer,
) -> Result<Answer, Infallible> {
    if request.headers().contains_key("upgrade") {
        let upgrade = hyper::upgrade::on(&mut request);
        tokio::spawn(async move {
            let (mut read, mut write) = tokio::io::split(TokioIo::new(upgrade.await.unwrap()));
            let _ = tokio::io::copy(&mut read, &mut write).await;
        });
        let answer = Response::builder()
            .status(101)
            .header("connection", "upgrade")
            .header("upgrade", "websocket");
        return Ok(answer.body(whole("")).unwrap());
    }
    let (parts, body) = request.into_parts();
    let line = format!("{} {} {:?}", parts.method, parts.uri, parts.version);
    if parts.uri.path() == "/stream" {
        return Ok(Response::new(body.boxed_unsync()));
    }
    let collected = body.collect().await;
    let trailers = collected.as_ref().ok().and_then(|body| body.trailers().cloned());
    let got = Got {
        line,
        headers: parts.headers,
        body: collected.map(|body| body.to_bytes()).unwrap_or_default(),
        trailers: trailers.unwrap_or_default(),
    };
    let answer = answer(&got);
    seen.lock().unwrap().push(got);
    Ok(answer)
}

pub fn request(method: &str, path: &str) -> Request<Body> {
    let request = Request::builder().method(method).uri(path).header("host", HOST);
    request.body(whole("")).unwrap()
}

/// For HTTP/2, where the whole address stands in the line.
pub fn request2(method: &str, path: &str) -> Request<Body> {
    let uri = format!("https://{HOST}{path}");
    Request::builder().method(method).uri(uri).body(whole("")).unwrap()
}

pub async fn text(response: Response<Incoming>) -> (u16, String) {
    let status = response.status().as_u16();
    let body = response.into_body().collect().await.unwrap().to_bytes();
    (status, String::from_utf8_lossy(&body).into_owned())
}
