//! Where to send what; a plain struct, filled by the configuration or by the variables that OpenTelemetry programs share
//! ([`variables`]).

mod variables;

use std::fmt;
use std::path::PathBuf;
use std::time::Duration;

use tonic::transport::Uri;

/// One collector.
#[derive(Clone, PartialEq, Eq)]
pub struct OtlpConfig {
    /// `http://host:port`, or `https://…` for TLS; with [`Protocol::HttpProtobuf`] a path may follow, to which `/v1/logs` and its kin
    /// are added, unless [`OtlpConfig::whole_path`].
    pub endpoint: String,
    /// The endpoint is of one signal, and its path is taken as it is.
    pub whole_path: bool,
    pub protocol: Protocol,
    /// Sent with every request; their values are secrets and are never printed.
    pub headers: Vec<(String, String)>,
    pub compression: Compression,
    /// The signals to send.
    pub signals: Vec<Signal>,
    /// Files in PEM: the authorities that alone are trusted (else the machine's), and our own certificate with its key.
    pub ca: Option<PathBuf>,
    pub client_certificate: Option<PathBuf>,
    pub client_key: Option<PathBuf>,
    /// How long one request may take, connecting included.
    pub time: Duration,
}

/// The specification's own.
const TIME: Duration = Duration::from_secs(10);

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Protocol {
    #[default]
    Grpc,
    HttpProtobuf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Compression {
    #[default]
    None,
    Gzip,
}

/// The three things that OTLP carries; each has a cursor of its own, so that one that is not taken holds up no other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, schemars::JsonSchema)]
#[schemars(rename_all = "snake_case")]
pub enum Signal {
    Logs,
    Traces,
    Metrics,
}

impl Signal {
    pub const ALL: [Signal; 3] = [Signal::Logs, Signal::Traces, Signal::Metrics];

    pub fn as_str(self) -> &'static str {
        match self {
            Signal::Logs => "logs",
            Signal::Traces => "traces",
            Signal::Metrics => "metrics",
        }
    }
}

/// What is wrong with a collector's configuration.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ConfigError {
    #[error("\"{endpoint}\" is not an endpoint (expected http://host:port or https://host:port)")]
    Endpoint { endpoint: String },
    #[error("TLS to \"{endpoint}\" cannot be set up: {why}")]
    Tls { endpoint: String, why: String },
    #[error("{} cannot be used: {why}", path.display())]
    File { path: PathBuf, why: String },
    #[error("a client certificate needs its key, and the key its certificate")]
    HalfIdentity,
    #[error("\"{name}\" and its value are not a header")]
    Header { name: String },
    #[error("{variable} is \"{value}\" (expected {expected})")]
    Variable {
        variable: String,
        value: String,
        expected: &'static str,
    },
}

impl OtlpConfig {
    /// All signals, by gRPC, without headers or compression.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            whole_path: false,
            protocol: Protocol::default(),
            headers: Vec::new(),
            compression: Compression::default(),
            signals: Signal::ALL.to_vec(),
            ca: None,
            client_certificate: None,
            client_key: None,
            time: TIME,
        }
    }

    /// The endpoint, parsed.
    pub(super) fn uri(&self) -> Result<Uri, ConfigError> {
        let bad = || ConfigError::Endpoint {
            endpoint: self.endpoint.clone(),
        };
        let uri: Uri = self.endpoint.parse().map_err(|_| bad())?;
        match uri.scheme_str() {
            Some("http" | "https") if uri.host().is_some_and(|host| !host.is_empty()) => Ok(uri),
            Some(_) | None => Err(bad()),
        }
    }
}

impl fmt::Debug for OtlpConfig {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<&str> = self.headers.iter().map(|(name, _)| name.as_str()).collect();
        f.debug_struct("OtlpConfig")
            .field("endpoint", &self.endpoint)
            .field("protocol", &self.protocol)
            .field("headers", &names)
            .field("compression", &self.compression)
            .field("signals", &self.signals)
            .field("ca", &self.ca)
            .field("client_certificate", &self.client_certificate)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn header_values_are_not_shown() {
        let mut config = OtlpConfig::new("http://h:1");
        config.headers.push(("authorization".into(), "Bearer s3cret".into()));
        assert!(!format!("{config:?}").contains("s3cret"));
    }
}
