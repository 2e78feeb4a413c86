//! Where to send what; a plain struct, filled by the configuration or by the variables that OpenTelemetry programs share.

use std::fmt;
use std::path::PathBuf;

use tonic::transport::Uri;

/// One collector.
#[derive(Clone, PartialEq, Eq)]
pub struct OtlpConfig {
    /// `http://host:port`, or `https://…` for TLS; with [`Protocol::HttpProtobuf`] a path may follow, to which `/v1/logs` and its kin are added.
    pub endpoint: String,
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
}

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
        variable: &'static str,
        value: String,
        expected: &'static str,
    },
}

impl OtlpConfig {
    /// All signals, by gRPC, without headers or compression.
    pub fn new(endpoint: impl Into<String>) -> Self {
        Self {
            endpoint: endpoint.into(),
            protocol: Protocol::default(),
            headers: Vec::new(),
            compression: Compression::default(),
            signals: Signal::ALL.to_vec(),
            ca: None,
            client_certificate: None,
            client_key: None,
        }
    }

    /// What `OTEL_EXPORTER_OTLP_ENDPOINT` and its kin (`_HEADERS`, `_PROTOCOL`, `_COMPRESSION`, `_CERTIFICATE`,
    /// `_CLIENT_CERTIFICATE`, `_CLIENT_KEY`) say; `None` when there is no endpoint.
    /// `variable` looks one up.
    ///
    /// Source: the OpenTelemetry specification, "OpenTelemetry Protocol Exporter", except that the protocol is gRPC
    /// unless said otherwise.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Option<Self>, ConfigError> {
        let set = |name: &'static str| variable(name).filter(|value| !value.trim().is_empty());
        let Some(endpoint) = set("OTEL_EXPORTER_OTLP_ENDPOINT") else {
            return Ok(None);
        };
        let mut config = Self::new(endpoint.trim());
        let name = "OTEL_EXPORTER_OTLP_PROTOCOL";
        config.protocol = match set(name).as_deref() {
            None | Some("grpc") => Protocol::Grpc,
            Some("http/protobuf") => Protocol::HttpProtobuf,
            Some(value) => {
                return Err(ConfigError::Variable {
                    variable: name,
                    value: value.to_owned(),
                    expected: "grpc or http/protobuf",
                });
            }
        };
        let name = "OTEL_EXPORTER_OTLP_COMPRESSION";
        config.compression = match set(name).as_deref() {
            None | Some("none") => Compression::None,
            Some("gzip") => Compression::Gzip,
            Some(value) => {
                return Err(ConfigError::Variable {
                    variable: name,
                    value: value.to_owned(),
                    expected: "none or gzip",
                });
            }
        };
        for pair in set("OTEL_EXPORTER_OTLP_HEADERS").unwrap_or_default().split(',') {
            if pair.trim().is_empty() {
                continue;
            }
            // The whole text may be a secret that lost its name: it is not shown.
            let (name, value) = pair.split_once('=').ok_or(ConfigError::Header {
                name: "OTEL_EXPORTER_OTLP_HEADERS".to_owned(),
            })?;
            config
                .headers
                .push((name.trim().to_owned(), percent_decoded(value.trim())));
        }
        let file = |name| set(name).map(PathBuf::from);
        config.ca = file("OTEL_EXPORTER_OTLP_CERTIFICATE");
        config.client_certificate = file("OTEL_EXPORTER_OTLP_CLIENT_CERTIFICATE");
        config.client_key = file("OTEL_EXPORTER_OTLP_CLIENT_KEY");
        config.uri()?;
        Ok(Some(config))
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

fn percent_decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let Some((first, tail)) = rest.split_first() {
        let code = tail.get(..2).and_then(|two| std::str::from_utf8(two).ok());
        match code.and_then(|two| u8::from_str_radix(two, 16).ok()) {
            Some(byte) if *first == b'%' => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            Some(_) | None => {
                bytes.push(*first);
                rest = tail;
            }
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn from(pairs: &[(&str, &str)]) -> Result<Option<OtlpConfig>, ConfigError> {
        OtlpConfig::from_variables(|name| {
            let found = pairs.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_variables_of_opentelemetry_are_read() {
        assert_eq!(from(&[]), Ok(None));
        let config = from(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20b, x-other=c=d"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
        ])
        .unwrap()
        .unwrap();
        assert_eq!(config.protocol, Protocol::HttpProtobuf);
        assert_eq!(config.compression, Compression::Gzip);
        let headers = [("x-key", "a b"), ("x-other", "c=d")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        assert_eq!(config.headers, headers);
    }

    #[test]
    fn nonsense_is_refused_and_header_values_are_not_shown() {
        let endpoint = |endpoint| from(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)]).unwrap_err();
        assert!(matches!(endpoint("127.0.0.1:4317"), ConfigError::Endpoint { .. }));
        assert!(matches!(endpoint("http://"), ConfigError::Endpoint { .. }));
        assert!(matches!(endpoint("ftp://h:4317"), ConfigError::Endpoint { .. }));
        let mut config = OtlpConfig::new("http://h:1");
        config.headers.push(("authorization".into(), "Bearer s3cret".into()));
        assert!(!format!("{config:?}").contains("s3cret"));
    }
}
