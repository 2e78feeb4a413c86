//! The way to a collector: one request, and whether all of it was taken.

use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Full, Limited};
use hyper::http::uri::Scheme;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_client::LogsServiceClient;
use opentelemetry_proto::tonic::collector::logs::v1::{ExportLogsServiceRequest, ExportLogsServiceResponse};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_client::MetricsServiceClient;
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_client::TraceServiceClient;
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use prost::Message;
use tonic::codec::CompressionEncoding;
use tonic::metadata::{Ascii, MetadataKey, MetadataValue};
use tonic::transport::{Channel, Endpoint, Uri};

use super::dial::Dial;
use super::{Compression, ConfigError, OtlpConfig, Protocol, whole};

/// An answer says little; whatever talks more is no collector.
const ANSWER_LIMIT: usize = 1 << 20;

/// One batch of one signal.
#[derive(Debug, Clone)]
pub(super) enum Batch {
    Logs(ExportLogsServiceRequest),
    Traces(ExportTraceServiceRequest),
    Metrics(ExportMetricsServiceRequest),
}

/// Why a batch does not count as delivered.
#[derive(Debug, thiserror::Error)]
pub(super) enum SendError {
    #[error("the collector refused {rejected} items: {message}")]
    Rejected { rejected: i64, message: String },
    #[error("the collector answered {code}: {message}")]
    Answer { code: String, message: String },
    #[error("the collector cannot be reached: {0}")]
    Connect(String),
    #[error("the collector did not answer within {time:?}")]
    Late { time: Duration },
}

/// One collector. Connects when there is something to send, and anew when a connection was lost.
pub(super) struct Transport {
    /// How long one request may take, connecting included.
    time: Duration,
    way: Way,
}

enum Way {
    Grpc {
        channel: Channel,
        headers: Vec<(MetadataKey<Ascii>, MetadataValue<Ascii>)>,
        compression: Compression,
    },
    Http {
        dial: Dial,
        authority: String,
        path: String,
        /// Whether the path is that of the signal already.
        whole_path: bool,
        headers: Vec<(hyper::header::HeaderName, hyper::header::HeaderValue)>,
        compression: Compression,
    },
}

impl Transport {
    /// Checks the whole configuration and connects to nothing. Must be called within a runtime.
    pub fn new(config: &OtlpConfig) -> Result<Self, ConfigError> {
        let uri = config.uri()?;
        let dial = Dial::new(config, &uri)?;
        let way = match config.protocol {
            Protocol::Grpc => Way::Grpc {
                channel: Endpoint::from(without_tls(&uri))
                    .origin(uri)
                    .connect_timeout(config.time)
                    .connect_with_connector_lazy(dial),
                headers: config
                    .headers
                    .iter()
                    .map(|(name, value)| {
                        let bad = || ConfigError::Header { name: name.clone() };
                        let key = MetadataKey::from_bytes(name.to_ascii_lowercase().as_bytes()).map_err(|_| bad())?;
                        Ok((key, value.parse().map_err(|_| bad())?))
                    })
                    .collect::<Result<_, ConfigError>>()?,
                compression: config.compression,
            },
            Protocol::HttpProtobuf => Way::Http {
                dial,
                authority: uri
                    .authority()
                    .map(|authority| authority.to_string())
                    .unwrap_or_default(),
                path: match config.whole_path {
                    true => uri.path().to_owned(),
                    false => uri.path().trim_end_matches('/').to_owned(),
                },
                whole_path: config.whole_path,
                headers: config
                    .headers
                    .iter()
                    .map(|(name, value)| {
                        let bad = || ConfigError::Header { name: name.clone() };
                        let key = name.parse().map_err(|_| bad())?;
                        Ok((key, value.parse().map_err(|_| bad())?))
                    })
                    .collect::<Result<_, ConfigError>>()?,
                compression: config.compression,
            },
        };
        Ok(Self { time: config.time, way })
    }

    /// Sends one batch; Ok means that the collector took every item of it.
    pub async fn send(&self, batch: Batch) -> Result<(), SendError> {
        let time = self.time;
        let (rejected, message) = tokio::time::timeout(time, self.exchange(batch))
            .await
            .map_err(|_| SendError::Late { time })??;
        if rejected != 0 {
            return Err(SendError::Rejected { rejected, message });
        }
        Ok(())
    }

    /// The number of items that the collector says it did not take, and its words.
    async fn exchange(&self, batch: Batch) -> Result<(i64, String), SendError> {
        match &self.way {
            Way::Grpc {
                channel,
                headers,
                compression,
            } => {
                let gzip = *compression == Compression::Gzip;
                macro_rules! export {
                    ($client:ident, $request:expr, $rejected:ident) => {{
                        let mut client = $client::new(channel.clone());
                        if gzip {
                            client = client.send_compressed(CompressionEncoding::Gzip);
                        }
                        let mut request = tonic::Request::new($request);
                        for (name, value) in headers {
                            request.metadata_mut().insert(name.clone(), value.clone());
                        }
                        let answer = client.export(request).await.map_err(status)?.into_inner();
                        answer
                            .partial_success
                            .map(|partial| (partial.$rejected, partial.error_message))
                    }};
                }
                let partial = match batch {
                    Batch::Logs(request) => export!(LogsServiceClient, request, rejected_log_records),
                    Batch::Traces(request) => export!(TraceServiceClient, request, rejected_spans),
                    Batch::Metrics(request) => export!(MetricsServiceClient, request, rejected_data_points),
                };
                Ok(partial.unwrap_or_default())
            }
            Way::Http { .. } => {
                macro_rules! export {
                    ($path:literal, $request:expr, $answer:ty, $rejected:ident) => {{
                        let answer = self.post($path, $request.encode_to_vec()).await?;
                        <$answer>::decode(answer)
                            .map_err(|error| SendError::Answer {
                                code: "200".to_owned(),
                                message: format!("what came is no OTLP answer: {error}"),
                            })?
                            .partial_success
                            .map(|partial| (partial.$rejected, partial.error_message))
                    }};
                }
                let partial = match batch {
                    Batch::Logs(request) => {
                        export!("/v1/logs", request, ExportLogsServiceResponse, rejected_log_records)
                    }
                    Batch::Traces(request) => {
                        export!("/v1/traces", request, ExportTraceServiceResponse, rejected_spans)
                    }
                    Batch::Metrics(request) => {
                        export!(
                            "/v1/metrics",
                            request,
                            ExportMetricsServiceResponse,
                            rejected_data_points
                        )
                    }
                };
                Ok(partial.unwrap_or_default())
            }
        }
    }

    async fn post(&self, signal: &str, body: Vec<u8>) -> Result<Bytes, SendError> {
        let Way::Http {
            dial,
            authority,
            path,
            whole_path,
            headers,
            compression,
        } = &self.way
        else {
            return Err(SendError::Connect("no HTTP endpoint".to_owned()));
        };
        let connect = |error: &dyn std::error::Error| SendError::Connect(whole(error));
        let stream = dial.connect().await.map_err(|error| connect(&error))?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(|error| connect(&error))?;
        let signal = if *whole_path { "" } else { signal };
        let mut request = hyper::Request::post(format!("{path}{signal}"))
            .header("host", authority)
            .header("content-type", "application/x-protobuf")
            .header("user-agent", concat!("belljar/", env!("CARGO_PKG_VERSION")));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let body = match compression {
            Compression::None => body,
            Compression::Gzip => {
                request = request.header("content-encoding", "gzip");
                gzip(&body)
            }
        };
        let request = request
            .body(Full::new(Bytes::from(body)))
            .map_err(|error| connect(&error))?;
        let exchange = async {
            let answer = sender.send_request(request).await.map_err(|error| connect(&error))?;
            let code = answer.status();
            let body = Limited::new(answer.into_body(), ANSWER_LIMIT)
                .collect()
                .await
                .map_err(|error| SendError::Answer {
                    code: code.to_string(),
                    message: error.to_string(),
                })?
                .to_bytes();
            if code == hyper::StatusCode::OK {
                Ok(body)
            } else {
                Err(SendError::Answer {
                    code: code.to_string(),
                    message: String::from_utf8_lossy(&body[..body.len().min(200)]).into_owned(),
                })
            }
        };
        // Both on this task: when the exchange is over or given up, the connection goes with it.
        tokio::select! {
            answer = exchange => answer,
            gone = connection => Err(match gone {
                Ok(()) => SendError::Connect("the connection was closed before the answer".to_owned()),
                Err(error) => connect(&error),
            }),
        }
    }
}

/// tonic does not know that the connection it is given has TLS, and refuses one for https.
fn without_tls(uri: &Uri) -> Uri {
    let mut parts = uri.clone().into_parts();
    parts.scheme = Some(Scheme::HTTP);
    Uri::from_parts(parts).unwrap_or_else(|_| uri.clone())
}

fn status(status: tonic::Status) -> SendError {
    match status.code() {
        tonic::Code::Unavailable => SendError::Connect(whole(&status)),
        code => SendError::Answer {
            code: format!("{code:?}"),
            message: status.message().to_owned(),
        },
    }
}

fn gzip(body: &[u8]) -> Vec<u8> {
    use std::io::Write;
    let mut encoder = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    encoder
        .write_all(body)
        .and_then(|()| encoder.finish())
        .expect("a Vec takes all that is written")
}
