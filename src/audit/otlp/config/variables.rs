//! The variables that OpenTelemetry programs share: `OTEL_EXPORTER_OTLP_ENDPOINT` and its kin, each also with the name of a signal in
//! it (`OTEL_EXPORTER_OTLP_LOGS_ENDPOINT`), which goes before the general one.
//!
//! Sources: the OpenTelemetry specification, "OpenTelemetry Protocol Exporter" and "Environment Variable Specification", except
//! that the protocol is gRPC unless said otherwise.

use std::path::PathBuf;
use std::time::Duration;

use super::{Compression, ConfigError, OtlpConfig, Protocol, Signal, TIME};

impl OtlpConfig {
    /// What the variables say: nothing, one collector for all signals, or several. `variable` looks one up.
    ///
    /// Read are `_ENDPOINT`, `_PROTOCOL`, `_HEADERS`, `_COMPRESSION`, `_TIMEOUT` (in milliseconds), `_CERTIFICATE`,
    /// `_CLIENT_CERTIFICATE` and `_CLIENT_KEY`; a signal whose `OTEL_LOGS_EXPORTER` (`_TRACES_`, `_METRICS_`) is `none` is not
    /// sent, and none is where `OTEL_SDK_DISABLED` is `true`.
    pub fn from_variables(variable: impl Fn(&str) -> Option<String>) -> Result<Vec<Self>, ConfigError> {
        let variables = Variables(&variable);
        let off = variables.get("OTEL_SDK_DISABLED");
        if off.is_some_and(|(_, value)| value.eq_ignore_ascii_case("true")) {
            return Ok(Vec::new());
        }
        let mut collectors: Vec<Self> = Vec::new();
        for signal in Signal::ALL {
            let Some(config) = variables.collector(signal)? else {
                continue;
            };
            let same = |other: &&mut Self| {
                **other
                    == Self {
                        signals: other.signals.clone(),
                        ..config.clone()
                    }
            };
            // A path that is taken as it is is that of one signal.
            match collectors.iter_mut().filter(|other| !other.whole_path).find(same) {
                Some(other) => other.signals.push(signal),
                None => collectors.push(config),
            }
        }
        Ok(collectors)
    }
}

struct Variables<'v>(&'v dyn Fn(&str) -> Option<String>);

impl Variables<'_> {
    /// A variable and its value; one that is empty counts as not set.
    fn get(&self, name: &str) -> Option<(String, String)> {
        let value = (self.0)(name)?;
        let value = value.trim();
        (!value.is_empty()).then(|| (name.to_owned(), value.to_owned()))
    }

    /// That of the signal, else the general one.
    fn of(&self, signal: Signal, what: &str) -> Option<(String, String)> {
        let own = signal.as_str().to_ascii_uppercase();
        self.get(&format!("OTEL_EXPORTER_OTLP_{own}_{what}"))
            .or_else(|| self.get(&format!("OTEL_EXPORTER_OTLP_{what}")))
    }

    /// Where a signal goes, if anywhere.
    fn collector(&self, signal: Signal) -> Result<Option<OtlpConfig>, ConfigError> {
        let exporter = self.get(&format!("OTEL_{}_EXPORTER", signal.as_str().to_ascii_uppercase()));
        if exporter.is_some_and(|(_, value)| value == "none") {
            return Ok(None);
        }
        let Some((variable, endpoint)) = self.of(signal, "ENDPOINT") else {
            return Ok(None);
        };
        let mut config = OtlpConfig::new(endpoint);
        config.signals = vec![signal];
        config.protocol = self.word(
            signal,
            "PROTOCOL",
            "grpc or http/protobuf",
            &[("grpc", Protocol::Grpc), ("http/protobuf", Protocol::HttpProtobuf)],
        )?;
        config.compression = self.word(
            signal,
            "COMPRESSION",
            "none or gzip",
            &[("none", Compression::None), ("gzip", Compression::Gzip)],
        )?;
        config.whole_path = config.protocol == Protocol::HttpProtobuf && variable != "OTEL_EXPORTER_OTLP_ENDPOINT";
        config.headers = self.headers(signal)?;
        config.time = self.time(signal)?;
        let file = |what| self.of(signal, what).map(|(_, path)| PathBuf::from(path));
        config.ca = file("CERTIFICATE");
        config.client_certificate = file("CLIENT_CERTIFICATE");
        config.client_key = file("CLIENT_KEY");
        config.uri()?;
        Ok(Some(config))
    }

    fn word<T: Copy + Default>(
        &self,
        signal: Signal,
        what: &str,
        expected: &'static str,
        words: &[(&str, T)],
    ) -> Result<T, ConfigError> {
        let Some((variable, value)) = self.of(signal, what) else {
            return Ok(T::default());
        };
        match words.iter().find(|(word, _)| *word == value) {
            Some((_, meaning)) => Ok(*meaning),
            None => Err(ConfigError::Variable {
                variable,
                value,
                expected,
            }),
        }
    }

    fn headers(&self, signal: Signal) -> Result<Vec<(String, String)>, ConfigError> {
        let Some((variable, list)) = self.of(signal, "HEADERS") else {
            return Ok(Vec::new());
        };
        let pairs = list.split(',').filter(|pair| !pair.trim().is_empty());
        pairs
            .map(|pair| match pair.split_once('=') {
                Some((name, value)) => Ok((name.trim().to_owned(), percent_decoded(value.trim()))),
                // The whole text may be a secret that lost its name: it is not shown.
                None => Err(ConfigError::Header { name: variable.clone() }),
            })
            .collect()
    }

    fn time(&self, signal: Signal) -> Result<Duration, ConfigError> {
        let Some((variable, value)) = self.of(signal, "TIMEOUT") else {
            return Ok(TIME);
        };
        match value.parse() {
            Ok(milliseconds @ 1..) => Ok(Duration::from_millis(milliseconds)),
            Ok(0) | Err(_) => Err(ConfigError::Variable {
                variable,
                value,
                expected: "a number of milliseconds, at least 1",
            }),
        }
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

    fn from(pairs: &[(&str, &str)]) -> Result<Vec<OtlpConfig>, ConfigError> {
        OtlpConfig::from_variables(|name| {
            let found = pairs.iter().find(|(key, _)| *key == name);
            found.map(|(_, value)| (*value).to_owned())
        })
    }

    #[test]
    fn the_general_variables_are_one_collector_for_all_signals() {
        assert_eq!(from(&[]), Ok(vec![]));
        let [config] = from(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://127.0.0.1:4318"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=a%20b, x-other=c=d"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "gzip"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "2500"),
            ("OTEL_EXPORTER_OTLP_CERTIFICATE", "/ca.pem"),
        ])
        .unwrap()
        .try_into()
        .unwrap();
        let headers = [("x-key", "a b"), ("x-other", "c=d")].map(|(name, value)| (name.to_owned(), value.to_owned()));
        let expected = OtlpConfig {
            protocol: Protocol::HttpProtobuf,
            headers: headers.into(),
            compression: Compression::Gzip,
            time: Duration::from_millis(2500),
            ca: Some("/ca.pem".into()),
            ..OtlpConfig::new("http://127.0.0.1:4318")
        };
        assert_eq!(config, expected);
    }

    #[test]
    fn the_variables_of_a_signal_go_before_the_general_ones() {
        let collectors = from(&[
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://all:4318"),
            ("OTEL_EXPORTER_OTLP_PROTOCOL", "http/protobuf"),
            ("OTEL_EXPORTER_OTLP_HEADERS", "x-key=all"),
            ("OTEL_EXPORTER_OTLP_LOGS_ENDPOINT", "http://logs:4318/mine"),
            ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "x-key=logs"),
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "grpc"),
            ("OTEL_METRICS_EXPORTER", "none"),
        ])
        .unwrap();
        let header = |value: &str| vec![("x-key".to_owned(), value.to_owned())];
        let logs = OtlpConfig {
            whole_path: true,
            protocol: Protocol::HttpProtobuf,
            headers: header("logs"),
            signals: vec![Signal::Logs],
            ..OtlpConfig::new("http://logs:4318/mine")
        };
        let traces = OtlpConfig {
            headers: header("all"),
            signals: vec![Signal::Traces],
            ..OtlpConfig::new("http://all:4318")
        };
        assert_eq!(collectors, [logs, traces]);
        let one = from(&[("OTEL_EXPORTER_OTLP_METRICS_ENDPOINT", "http://m:4317")]).unwrap();
        assert_eq!(
            (one.len(), one[0].signals.as_slice()),
            (1, [Signal::Metrics].as_slice())
        );
        let off = [
            ("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h:1"),
            ("OTEL_SDK_DISABLED", "true"),
        ];
        assert_eq!(from(&off), Ok(vec![]));
    }

    #[test]
    fn nonsense_is_refused_and_its_variable_is_named() {
        let endpoint = |endpoint| from(&[("OTEL_EXPORTER_OTLP_ENDPOINT", endpoint)]).unwrap_err();
        assert!(matches!(endpoint("127.0.0.1:4317"), ConfigError::Endpoint { .. }));
        assert!(matches!(endpoint("http://"), ConfigError::Endpoint { .. }));
        assert!(matches!(endpoint("ftp://h:4317"), ConfigError::Endpoint { .. }));
        for (name, value) in [
            ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "http/json"),
            ("OTEL_EXPORTER_OTLP_COMPRESSION", "zstd"),
            ("OTEL_EXPORTER_OTLP_TIMEOUT", "10s"),
            ("OTEL_EXPORTER_OTLP_LOGS_TIMEOUT", "0"),
            ("OTEL_EXPORTER_OTLP_LOGS_HEADERS", "s3cret"),
        ] {
            let error = from(&[("OTEL_EXPORTER_OTLP_ENDPOINT", "http://h:1"), (name, value)]).unwrap_err();
            let text = error.to_string();
            assert!(text.contains(name) && !text.contains("s3cret"), "{text}");
        }
    }
}
