//! Against a collector in this process; `real` has those against a real one.

mod real;
mod tls;

use std::net::SocketAddr;
use std::sync::Mutex;

use http_body_util::{BodyExt, Full};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use opentelemetry_proto::tonic::collector::logs::v1::logs_service_server::{LogsService, LogsServiceServer};
use opentelemetry_proto::tonic::collector::logs::v1::{
    ExportLogsPartialSuccess, ExportLogsServiceRequest, ExportLogsServiceResponse,
};
use opentelemetry_proto::tonic::collector::metrics::v1::metrics_service_server::{
    MetricsService, MetricsServiceServer,
};
use opentelemetry_proto::tonic::collector::metrics::v1::{ExportMetricsServiceRequest, ExportMetricsServiceResponse};
use opentelemetry_proto::tonic::collector::trace::v1::trace_service_server::{TraceService, TraceServiceServer};
use opentelemetry_proto::tonic::collector::trace::v1::{ExportTraceServiceRequest, ExportTraceServiceResponse};
use opentelemetry_proto::tonic::common::v1::KeyValue;
use opentelemetry_proto::tonic::common::v1::any_value::Value as Any;
use opentelemetry_proto::tonic::logs::v1::LogRecord;
use opentelemetry_proto::tonic::metrics::v1::number_data_point::Value as Number;
use opentelemetry_proto::tonic::metrics::v1::{Metric, metric};
use opentelemetry_proto::tonic::trace::v1::Span;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status};

use super::*;
use crate::audit::journal::{Journal, JournalOptions};
use crate::audit::query::Filter;
use crate::audit::record::{Entry, Event, ExecFinished, ExecOutcome, Identity, TaskOutcome, Usage, UsageSource};
use crate::id::{ExecId, TaskId};
use crate::policy::{Decision, RuleMatch};

/// Long enough for any machine; a test that waits for it has failed.
const PATIENCE: Duration = Duration::from_secs(30);

/// What the collector does with logs.
#[derive(Debug, Clone, Default, PartialEq)]
enum Mood {
    #[default]
    Takes,
    Refuses,
    /// Takes none of a batch that has a record of this kind, and says so.
    RejectsKind(&'static str),
}

#[derive(Default)]
struct Taken {
    mood: Mood,
    calls: usize,
    logs: Vec<LogRecord>,
    spans: Vec<Span>,
    metrics: Vec<Metric>,
    headers: Vec<String>,
    /// Of requests by HTTP.
    paths: Vec<String>,
}

/// A collector in this process.
#[derive(Clone, Default)]
struct Collector(Arc<Mutex<Taken>>);

impl Collector {
    async fn start(&self) -> SocketAddr {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        self.serve(listener);
        address
    }

    fn serve(&self, listener: tokio::net::TcpListener) {
        tokio::spawn(self.router().serve_with_incoming(TcpIncoming::from(listener)));
    }

    fn router(&self) -> tonic::transport::server::Router {
        tonic::transport::Server::builder()
            .add_service(
                LogsServiceServer::new(self.clone()).accept_compressed(tonic::codec::CompressionEncoding::Gzip),
            )
            .add_service(TraceServiceServer::new(self.clone()))
            .add_service(MetricsServiceServer::new(self.clone()))
    }

    fn set(&self, mood: Mood) {
        self.0.lock().unwrap().mood = mood;
    }

    fn seqs(&self) -> Vec<i64> {
        let taken = self.0.lock().unwrap();
        taken
            .logs
            .iter()
            .map(|log| whole_number(&log.attributes, "belljar.seq"))
            .collect()
    }
}

impl Collector {
    /// Speaks HTTP on one connection, until it ends.
    async fn speak_http(self, stream: impl tokio::io::AsyncRead + tokio::io::AsyncWrite + Unpin) {
        let take =
            hyper::service::service_fn(|request| async { Ok::<_, std::convert::Infallible>(self.take(request).await) });
        let served = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(stream), take);
        let _ = served.await;
    }

    async fn take(&self, request: hyper::Request<Incoming>) -> hyper::Response<Full<bytes::Bytes>> {
        use prost::Message;
        let path = request.uri().path().to_owned();
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let mut taken = self.0.lock().unwrap();
        // Spans and metrics have fields of other types where logs have theirs.
        if path.contains("logs")
            && let Ok(request) = ExportLogsServiceRequest::decode(body)
        {
            let scopes = request
                .resource_logs
                .into_iter()
                .flat_map(|resource| resource.scope_logs);
            taken.logs.extend(scopes.flat_map(|scope| scope.log_records));
        }
        taken.paths.push(path);
        hyper::Response::new(Full::default())
    }
}

#[tonic::async_trait]
impl LogsService for Collector {
    async fn export(
        &self,
        request: Request<ExportLogsServiceRequest>,
    ) -> Result<Response<ExportLogsServiceResponse>, Status> {
        let mut taken = self.0.lock().unwrap();
        taken.calls += 1;
        if let Some(header) = request.metadata().get("x-key") {
            taken.headers.push(header.to_str().unwrap().to_owned());
        }
        let logs: Vec<LogRecord> = request
            .into_inner()
            .resource_logs
            .into_iter()
            .flat_map(|resource| resource.scope_logs)
            .flat_map(|scope| scope.log_records)
            .collect();
        match taken.mood.clone() {
            Mood::Refuses => Err(Status::unavailable("not now")),
            Mood::RejectsKind(kind) if logs.iter().any(|log| log.event_name == kind) => {
                Ok(Response::new(ExportLogsServiceResponse {
                    partial_success: Some(ExportLogsPartialSuccess {
                        rejected_log_records: 1,
                        error_message: format!("no {kind} here"),
                    }),
                }))
            }
            Mood::Takes | Mood::RejectsKind(_) => {
                taken.logs.extend(logs);
                Ok(Response::new(ExportLogsServiceResponse::default()))
            }
        }
    }
}

#[tonic::async_trait]
impl TraceService for Collector {
    async fn export(
        &self,
        request: Request<ExportTraceServiceRequest>,
    ) -> Result<Response<ExportTraceServiceResponse>, Status> {
        let scopes = request
            .into_inner()
            .resource_spans
            .into_iter()
            .flat_map(|resource| resource.scope_spans);
        let mut taken = self.0.lock().unwrap();
        taken.spans.extend(scopes.flat_map(|scope| scope.spans));
        Ok(Response::new(ExportTraceServiceResponse::default()))
    }
}

#[tonic::async_trait]
impl MetricsService for Collector {
    async fn export(
        &self,
        request: Request<ExportMetricsServiceRequest>,
    ) -> Result<Response<ExportMetricsServiceResponse>, Status> {
        let scopes = request
            .into_inner()
            .resource_metrics
            .into_iter()
            .flat_map(|resource| resource.scope_metrics);
        let mut taken = self.0.lock().unwrap();
        // Sums are those of the whole journal: the newest say all.
        taken.metrics = scopes.flat_map(|scope| scope.metrics).collect();
        Ok(Response::new(ExportMetricsServiceResponse::default()))
    }
}

fn any<'a>(attributes: &'a [KeyValue], key: &str) -> &'a Any {
    let found = attributes.iter().find(|pair| pair.key == key);
    let found = found.unwrap_or_else(|| panic!("no {key} in {attributes:?}"));
    found.value.as_ref().unwrap().value.as_ref().unwrap()
}

fn whole_number(attributes: &[KeyValue], key: &str) -> i64 {
    match any(attributes, key) {
        Any::IntValue(number) => *number,
        other => panic!("{key} is {other:?}"),
    }
}

fn words(attributes: &[KeyValue], key: &str) -> String {
    match any(attributes, key) {
        Any::StringValue(text) => text.clone(),
        Any::ArrayValue(list) => {
            let texts = list.values.iter().map(|value| match value.value.as_ref().unwrap() {
                Any::StringValue(text) => text.as_str(),
                other => panic!("{key} has {other:?}"),
            });
            texts.collect::<Vec<_>>().join(" ")
        }
        other => panic!("{key} is {other:?}"),
    }
}

/// Writes one task with one exec, as a run of belljar would.
fn one_task(journal: &Journal, traceparent: Option<&str>, exit_code: i32) -> (TaskId, ExecId) {
    let (task, exec) = (TaskId::new(), ExecId::new());
    let argv = vec!["/usr/bin/make".to_owned(), "test".to_owned()];
    let rules = vec![RuleMatch {
        id: "make-ok".into(),
        file: "agent.rules".into(),
        line: 3,
        decision: Decision::Allow,
        justification: None,
        person_only: false,
    }];
    let usage = Usage {
        source: UsageSource::CgroupV2,
        cpu_user_seconds: 0.25,
        cpu_system_seconds: 0.125,
        memory_peak_bytes: Some(5 << 20),
        io_read_bytes: None,
        io_write_bytes: Some(4096),
        pids_peak: Some(3),
        oom_kills: Some(0),
        ..Usage::NONE
    };
    let of_task = |event| Entry {
        task: Some(task),
        exec: None,
        event,
    };
    let of_exec = |event| Entry {
        task: Some(task),
        exec: Some(exec),
        event,
    };
    let entries = [
        of_task(Event::TaskAdmitted {
            name: "fix".into(),
            purpose: None,
            task_spec: serde_json::json!({"image": "host"}),
            requirements_digest: None,
            identity: Identity {
                uid: 1000,
                user: "ada".into(),
                login: None,
            },
            traceparent: traceparent.map(str::to_owned),
        }),
        of_task(Event::TaskStarted {
            backend: "oci".into(),
            runtime: "builtin".into(),
            image: "host".into(),
            image_digest: None,
            plan_digest: "sha256:00".into(),
            start_seconds: 0.004,
        }),
        of_exec(Event::ExecJudged {
            argv: argv.clone(),
            cwd: "/workspace".into(),
            env_names: vec!["CI".into()],
            judgement: "allow".into(),
            rules: rules.clone(),
            opaque: false,
            digest: "sha256:11".into(),
            reason: Some("the tests".into()),
            call_id: None,
            traceparent: None,
        }),
        of_exec(Event::ExecStarted {
            argv: argv.clone(),
            cwd: "/workspace".into(),
            tty: false,
            approver: None,
        }),
        of_task(Event::EgressJudged {
            host: "example.org".into(),
            port: 443,
            protocol: "https_connect".into(),
            method: None,
            path: None,
            decision: "deny".into(),
            rule: "unknown".into(),
            reason: "not in the list".into(),
            address: None,
        }),
        of_exec(Event::ExecFinished(Box::new(ExecFinished {
            argv,
            cwd: "/workspace".into(),
            env_names: vec!["CI".into()],
            outcome: ExecOutcome::Exited,
            exit_code: Some(exit_code),
            signal: None,
            error: None,
            wall_seconds: 1.5,
            usage: usage.clone(),
            network_bytes_sent: Some(10),
            network_bytes_received: Some(20),
            stdout_bytes: 5,
            stderr_bytes: 0,
            stdout_digest: None,
            stderr_digest: None,
            image_digest: None,
            plan_digest: None,
            requirements_digest: None,
            rules,
            approver: None,
            reason: None,
            call_id: None,
            traceparent: None,
        }))),
        of_task(Event::TaskFinished {
            outcome: TaskOutcome::Finished,
            reason: None,
            wall_seconds: 2.0,
            execs: 1,
            refused: 0,
            usage,
            network_bytes_sent: None,
            network_bytes_received: None,
            left_files: vec![],
        }),
    ];
    let receipts: Vec<_> = entries.map(|entry| journal.submit(entry)).into();
    for receipt in receipts {
        receipt.wait().unwrap();
    }
    (task, exec)
}

fn journal(folder: &Path) -> Journal {
    Journal::open(folder, JournalOptions::default()).unwrap()
}

fn config(address: SocketAddr) -> OtlpConfig {
    OtlpConfig::new(format!("http://{address}"))
}

/// Flushes until the lag is as it should become; a test that waits for ever has failed.
async fn lag_becomes(exporter: &ExporterHandle, as_expected: impl Fn(&Lag) -> bool) -> Lag {
    let deadline = Instant::now() + PATIENCE;
    loop {
        let lag = exporter.flush(Duration::from_millis(50)).await;
        if as_expected(&lag) {
            return lag;
        }
        assert!(Instant::now() < deadline, "{lag:?}");
    }
}

fn signal<'a>(lag: &'a Lag, name: &str) -> &'a SignalLag {
    lag.signals.iter().find(|signal| signal.signal == name).unwrap()
}

#[tokio::test]
async fn logs_spans_and_metrics_of_a_run_arrive() {
    let folder = tempfile::tempdir().unwrap();
    let journal = journal(folder.path());
    let trace = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let (task, exec) = one_task(&journal, Some(trace), 2);
    let collector = Collector::default();
    let mut config = config(collector.start().await);
    config.headers.push(("X-Key".into(), "k".into()));
    config.compression = Compression::None;
    let exporter = Exporter::start(folder.path(), vec![config]).unwrap();
    let lag = exporter.flush(PATIENCE).await;
    assert_eq!(lag.records, 0, "{lag:?}");

    let taken = collector.0.lock().unwrap();
    assert!(taken.headers.iter().all(|header| header == "k") && !taken.headers.is_empty());
    let kinds: Vec<&str> = taken.logs.iter().map(|log| log.event_name.as_str()).collect();
    assert_eq!(
        kinds,
        [
            "journal.opened",
            "task.admitted",
            "task.started",
            "exec.judged",
            "exec.started",
            "egress.judged",
            "exec.finished",
            "task.finished"
        ]
    );
    let log = &taken.logs[6];
    assert!(log.body.is_none());
    assert_eq!(words(&log.attributes, "process.command_args"), "/usr/bin/make test");
    assert_eq!(words(&log.attributes, "process.executable.name"), "make");
    assert_eq!(whole_number(&log.attributes, "process.exit.code"), 2);
    assert_eq!(words(&log.attributes, "error.type"), "2");
    assert_eq!(words(&log.attributes, "security_rule.uuid"), "make-ok");
    assert_eq!(words(&log.attributes, "belljar.exec.id"), exec.to_string());
    assert_eq!(words(&log.attributes, "belljar.usage.source"), "cgroup_v2");
    assert_eq!(
        whole_number(&log.attributes, "belljar.usage.memory_peak_bytes"),
        5 << 20
    );
    assert!(words(&log.attributes, "log.record.uid").ends_with("/7"));
    assert_eq!(words(&taken.logs[1].attributes, "user.id"), "1000");
    assert_eq!(words(&taken.logs[5].attributes, "server.address"), "example.org");
    assert_eq!(taken.logs[5].severity_text, "WARN");

    assert_eq!(taken.spans.len(), 2);
    let (of_exec, of_task) = (&taken.spans[0], &taken.spans[1]);
    assert_eq!((of_exec.name.as_str(), of_task.name.as_str()), ("make", "task"));
    assert_eq!(
        of_exec.kind,
        opentelemetry_proto::tonic::trace::v1::span::SpanKind::Client as i32
    );
    assert_eq!(of_exec.end_time_unix_nano - of_exec.start_time_unix_nano, 1_500_000_000);
    assert_eq!(
        crate::audit::verify::hex(&of_task.trace_id),
        "4bf92f3577b34da6a3ce929d0e0e4736"
    );
    assert_eq!(crate::audit::verify::hex(&of_task.parent_span_id), "00f067aa0ba902b7");
    assert_eq!(of_exec.trace_id, of_task.trace_id);
    assert_eq!(of_exec.parent_span_id, of_task.span_id);
    assert_eq!((&log.trace_id, &log.span_id), (&of_exec.trace_id, &of_exec.span_id));
    assert_eq!(words(&of_task.attributes, "belljar.task.id"), task.to_string());

    let names: Vec<&str> = taken.metrics.iter().map(|metric| metric.name.as_str()).collect();
    for name in [
        names::EXEC_JUDGED,
        names::EXEC_FINISHED,
        names::EXEC_DURATION,
        names::EXEC_CPU_TIME,
        names::EXEC_MEMORY_PEAK,
        names::EGRESS_JUDGED,
        names::EXPORT_LAG,
        names::JOURNAL_SIZE,
    ] {
        assert!(names.contains(&name), "{name} is missing in {names:?}");
    }
}

/// Questions count as such, and once more by what was answered.
#[tokio::test]
async fn the_way_out_is_counted_by_its_decisions_and_directions() {
    let folder = tempfile::tempdir().unwrap();
    let journal = journal(folder.path());
    let place = |port| ("api.example.org".to_owned(), port, "https_connect".to_owned());
    let judged = |decision: &str| {
        let (host, port, protocol) = place(443);
        Event::EgressJudged {
            host,
            port,
            protocol,
            method: None,
            path: None,
            decision: decision.to_owned(),
            rule: "a rule".into(),
            reason: "a reason".into(),
            address: None,
        }
    };
    let finished = |sent, received| {
        let (host, port, protocol) = place(443);
        Event::EgressFinished {
            host,
            port,
            protocol,
            method: None,
            decision: Some("allow".into()),
            rule: Some("a rule".into()),
            address: None,
            bytes_sent: sent,
            bytes_received: received,
            wall_seconds: 0.5,
            error: None,
        }
    };
    let decisions = ["allow", "ask", "allow", "deny", "ask", "deny", "deny", "allow"];
    let ends = [finished(10, 100), finished(1, 2), finished(0, 0)];
    for event in decisions.map(judged).into_iter().chain(ends) {
        let entry = Entry {
            task: Some(TaskId::new()),
            exec: None,
            event,
        };
        journal.append(entry).await.unwrap();
    }
    let collector = Collector::default();
    let exporter = Exporter::start(folder.path(), vec![config(collector.start().await)]).unwrap();
    assert_eq!(exporter.flush(PATIENCE).await.records, 0);
    let taken = collector.0.lock().unwrap();
    let counted = |name: &str, label: &str| -> Vec<(String, i64)> {
        let metric = taken.metrics.iter().find(|metric| metric.name == name).unwrap();
        let Some(metric::Data::Sum(sum)) = &metric.data else {
            panic!("{metric:?}");
        };
        let points = sum.data_points.iter().map(|point| match point.value {
            Some(Number::AsInt(count)) => (words(&point.attributes, label), count),
            _ => panic!("{point:?}"),
        });
        points.collect()
    };
    let pairs = |pairs: &[(&str, i64)]| -> Vec<(String, i64)> {
        pairs
            .iter()
            .map(|(label, count)| ((*label).to_owned(), *count))
            .collect()
    };
    assert_eq!(
        counted(names::EGRESS_JUDGED, names::DECISION),
        pairs(&[("allow", 3), ("ask", 2), ("deny", 3)])
    );
    assert_eq!(
        counted(names::EGRESS_IO, names::IO_DIRECTION),
        pairs(&[("receive", 102), ("transmit", 11)])
    );
}

#[tokio::test]
async fn a_collector_that_is_down_costs_lag_and_no_record() {
    let folder = tempfile::tempdir().unwrap();
    let journal = journal(folder.path());
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let exporter = Exporter::start(folder.path(), vec![config(address)]).unwrap();
    one_task(&journal, None, 0);
    let lag = lag_becomes(&exporter, |lag| lag.signals.iter().all(|signal| signal.error.is_some())).await;
    assert_eq!(lag.records, 8);
    assert!(lag.signals.iter().all(|signal| signal.seconds > 0.0), "{lag:?}");
    let error = lag.signals[0].error.as_deref().unwrap();
    assert!(error.contains("cannot be reached"), "{error}");
    exporter.shutdown();

    // The next start delivers, and what comes later is delivered too.
    let exporter = Exporter::start(folder.path(), vec![config(address)]).unwrap();
    let collector = Collector::default();
    collector.serve(tokio::net::TcpListener::bind(address).await.unwrap());
    assert_eq!(exporter.flush(PATIENCE).await.records, 0);
    one_task(&journal, None, 0);
    assert_eq!(exporter.flush(PATIENCE).await.records, 0);
    assert_eq!(collector.seqs(), (1..=15).collect::<Vec<i64>>());
}

#[tokio::test]
async fn a_collector_that_refuses_gets_everything_later_and_in_order() {
    let folder = tempfile::tempdir().unwrap();
    let journal = journal(folder.path());
    let collector = Collector::default();
    collector.set(Mood::Refuses);
    let exporter = Exporter::start(folder.path(), vec![config(collector.start().await)]).unwrap();
    for _ in 0..5 {
        one_task(&journal, None, 0);
    }
    // The other signals go on.
    let lag = lag_becomes(&exporter, |lag| {
        signal(lag, "traces").records == 0 && signal(lag, "logs").error.is_some()
    })
    .await;
    assert_eq!(signal(&lag, "logs").records, 36);
    collector.set(Mood::Takes);
    assert_eq!(exporter.flush(PATIENCE).await.records, 0);
    assert_eq!(collector.seqs(), (1..=36).collect::<Vec<i64>>());
}

#[tokio::test]
async fn a_partly_refused_batch_does_not_advance_past_what_was_refused() {
    let folder = tempfile::tempdir().unwrap();
    let journal = journal(folder.path());
    one_task(&journal, None, 0);
    let collector = Collector::default();
    collector.set(Mood::RejectsKind("exec.judged"));
    let exporter = Exporter::start(folder.path(), vec![config(collector.start().await)]).unwrap();
    let refused = |lag: &Lag| {
        signal(lag, "logs")
            .error
            .as_deref()
            .is_some_and(|error| error.contains("no exec.judged here"))
    };
    let lag = lag_becomes(&exporter, |lag| refused(lag) && signal(lag, "logs").records == 5).await;
    assert_eq!(lag.records, 5, "{lag:?}");
    collector.set(Mood::Takes);
    assert_eq!(exporter.flush(PATIENCE).await.records, 0);
    let mut seqs = collector.seqs();
    seqs.dedup();
    assert_eq!(seqs, (1..=8).collect::<Vec<i64>>());
}

#[tokio::test]
async fn a_peer_that_talks_nonsense_costs_lag_only() {
    use tokio::io::{AsyncReadExt, AsyncWriteExt};
    let folder = tempfile::tempdir().unwrap();
    let journal = journal(folder.path());
    one_task(&journal, None, 0);
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        loop {
            let (mut stream, _) = listener.accept().await.unwrap();
            tokio::spawn(async move {
                let mut seen = [0; 64];
                let _ = stream.read(&mut seen).await;
                let _ = stream
                    .write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 9\r\n\r\n\xff\xff\xffnonsens")
                    .await;
            });
        }
    });
    let mut http = config(address);
    http.protocol = Protocol::HttpProtobuf;
    for config in [config(address), http] {
        let exporter = Exporter::start(folder.path(), vec![config]).unwrap();
        let lag = lag_becomes(&exporter, |lag| lag.signals.iter().all(|signal| signal.error.is_some())).await;
        assert_eq!(lag.records, 8);
    }
}

#[tokio::test]
async fn only_one_exporter_sends_and_all_see_what_is_delivered() {
    let folder = tempfile::tempdir().unwrap();
    let journal = journal(folder.path());
    let collector = Collector::default();
    let config = config(collector.start().await);
    let first = Exporter::start(folder.path(), vec![config.clone()]).unwrap();
    assert_eq!(first.flush(PATIENCE).await.records, 0);
    let second = Exporter::start(folder.path(), vec![config]).unwrap();
    one_task(&journal, None, 0);
    assert_eq!(second.flush(PATIENCE).await.records, 0);
    assert_eq!(collector.seqs(), (1..=8).collect::<Vec<i64>>());
    // When the one that sends is gone, the other takes over.
    first.shutdown();
    one_task(&journal, None, 0);
    assert_eq!(second.flush(PATIENCE).await.records, 0);
    assert_eq!(collector.seqs(), (1..=15).collect::<Vec<i64>>());
}

#[tokio::test]
async fn the_path_of_an_endpoint_is_completed_unless_it_is_that_of_one_signal() {
    let folder = tempfile::tempdir().unwrap();
    let journal = journal(folder.path());
    one_task(&journal, None, 0);
    let collector = Collector::default();
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    let serving = collector.clone();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(serving.clone().speak_http(stream));
        }
    });
    let base = OtlpConfig {
        protocol: Protocol::HttpProtobuf,
        signals: vec![Signal::Logs],
        ..OtlpConfig::new(format!("http://{address}/base/"))
    };
    let own = OtlpConfig {
        whole_path: true,
        endpoint: format!("http://{address}/my/logs"),
        ..base.clone()
    };
    let exporter = Exporter::start(folder.path(), vec![base, own]).unwrap();
    assert_eq!(exporter.flush(PATIENCE).await.records, 0);
    let mut paths = collector.0.lock().unwrap().paths.clone();
    paths.sort();
    paths.dedup();
    assert_eq!(paths, ["/base/v1/logs", "/my/logs"]);
}

#[tokio::test]
async fn a_collector_has_the_time_that_it_was_given() {
    let folder = tempfile::tempdir().unwrap();
    let journal = journal(folder.path());
    one_task(&journal, None, 0);
    // Takes connections, and never says a word.
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    for protocol in [Protocol::Grpc, Protocol::HttpProtobuf] {
        let config = OtlpConfig {
            protocol,
            signals: vec![Signal::Logs],
            time: Duration::from_millis(30),
            ..config(listener.local_addr().unwrap())
        };
        let exporter = Exporter::start(folder.path(), vec![config]).unwrap();
        let lag = lag_becomes(&exporter, |lag| lag.signals[0].error.is_some()).await;
        let error = lag.signals[0].error.as_deref().unwrap();
        assert!(error.contains("did not answer within 30ms"), "{protocol:?}: {error}");
    }
}

#[tokio::test]
async fn what_a_collector_lost_is_sent_to_it_again() {
    let folder = tempfile::tempdir().unwrap();
    let journal = journal(folder.path());
    let (first, _) = one_task(&journal, None, 0);
    one_task(&journal, None, 0);
    let collector = Collector::default();
    let config = config(collector.start().await);
    let exporter = Exporter::start(folder.path(), vec![config.clone()]).unwrap();
    assert_eq!(exporter.flush(PATIENCE).await.records, 0);
    exporter.shutdown();
    *collector.0.lock().unwrap() = Taken::default();
    let filter = Filter {
        task: Some(first),
        ..Filter::default()
    };
    let sent = resend(folder.path(), &config, filter.clone(), PATIENCE).await.unwrap();
    assert_eq!((sent, collector.seqs()), (7, (2..=8).collect()));
    assert_eq!(collector.0.lock().unwrap().spans.len(), 2);
    // The cursor stands where it stood: nothing else is sent anew.
    assert_eq!(lag(folder.path(), std::slice::from_ref(&config)).unwrap().records, 0);
    collector.set(Mood::Refuses);
    let refused = resend(folder.path(), &config, filter, Duration::ZERO)
        .await
        .unwrap_err();
    assert!(refused.to_string().starts_with("0 records were sent"), "{refused}");
}

#[tokio::test]
async fn a_giant_argument_is_cut_and_said_to_be() {
    let folder = tempfile::tempdir().unwrap();
    let journal = journal(folder.path());
    let event = Event::ExecStarted {
        argv: vec!["sh".into(), "é".repeat(2 << 20)],
        cwd: "/".into(),
        tty: false,
        approver: None,
    };
    journal
        .append(Entry {
            task: Some(TaskId::new()),
            exec: Some(ExecId::new()),
            event,
        })
        .await
        .unwrap();
    let collector = Collector::default();
    let mut config = config(collector.start().await);
    config.compression = Compression::Gzip;
    config.signals = vec![Signal::Logs];
    let exporter = Exporter::start(folder.path(), vec![config]).unwrap();
    assert_eq!(exporter.flush(PATIENCE).await.records, 0);
    let taken = collector.0.lock().unwrap();
    let attributes = &taken.logs[1].attributes;
    assert!(words(attributes, "process.command_args").len() < 20_000);
    assert_eq!(words(attributes, "belljar.cut_attributes"), "process.command_args");
}
