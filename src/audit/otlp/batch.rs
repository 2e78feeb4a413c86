//! Records as one request of a signal.

use opentelemetry_proto::tonic::collector::logs::v1::ExportLogsServiceRequest;
use opentelemetry_proto::tonic::collector::metrics::v1::ExportMetricsServiceRequest;
use opentelemetry_proto::tonic::collector::trace::v1::ExportTraceServiceRequest;
use opentelemetry_proto::tonic::logs::v1::{ResourceLogs, ScopeLogs};
use opentelemetry_proto::tonic::metrics::v1::{Metric, ResourceMetrics, ScopeMetrics};
use opentelemetry_proto::tonic::trace::v1::{ResourceSpans, ScopeSpans};

use super::convert::{Converter, scope};
use super::names::SCHEMA_URL;
use super::send::Batch;
use crate::audit::journal::{JournalError, Reader, Stored};

impl Converter {
    pub fn logs(&mut self, reader: &Reader, records: &[Stored]) -> Result<Batch, JournalError> {
        let mut log_records = Vec::with_capacity(records.len());
        for record in records {
            log_records.push(self.log(reader, record)?);
        }
        Ok(Batch::Logs(ExportLogsServiceRequest {
            resource_logs: vec![ResourceLogs {
                resource: Some(self.resource()),
                scope_logs: vec![ScopeLogs {
                    scope: Some(scope()),
                    log_records,
                    schema_url: SCHEMA_URL.to_owned(),
                }],
                schema_url: SCHEMA_URL.to_owned(),
            }],
        }))
    }

    /// `None` where no span ends with any of these records.
    pub fn spans(&mut self, reader: &Reader, records: &[Stored]) -> Result<Option<Batch>, JournalError> {
        let mut spans = Vec::new();
        for record in records {
            spans.extend(self.span(reader, record)?);
        }
        if spans.is_empty() {
            return Ok(None);
        }
        Ok(Some(Batch::Traces(ExportTraceServiceRequest {
            resource_spans: vec![ResourceSpans {
                resource: Some(self.resource()),
                scope_spans: vec![ScopeSpans {
                    scope: Some(scope()),
                    spans,
                    schema_url: SCHEMA_URL.to_owned(),
                }],
                schema_url: SCHEMA_URL.to_owned(),
            }],
        })))
    }

    pub fn metrics(&self, metrics: Vec<Metric>) -> Batch {
        Batch::Metrics(ExportMetricsServiceRequest {
            resource_metrics: vec![ResourceMetrics {
                resource: Some(self.resource()),
                scope_metrics: vec![ScopeMetrics {
                    scope: Some(scope()),
                    metrics,
                    schema_url: SCHEMA_URL.to_owned(),
                }],
                schema_url: SCHEMA_URL.to_owned(),
            }],
        })
    }
}
