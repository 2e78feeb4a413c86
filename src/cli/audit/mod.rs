//! `belljar audit …`: questions to the journal.
//!
//! The answer goes to the given writer, as text for people or, with `--json`, as JSON for programs: a record a line,
//! byte for byte as it stands in the journal. Text from records is shown with its control characters escaped.

mod answers;
mod second;
mod status;
mod text;

use std::collections::BTreeMap;
use std::io::{ErrorKind, Write};
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context, anyhow, bail};
use clap::{Args, Subcommand};
use jiff::{SignedDuration, Timestamp};

use crate::audit::journal::{Reader, Seq, Stored};
use crate::audit::key::SigningKey;
use crate::audit::ocsf;
use crate::audit::otlp::{Exporter, OtlpConfig, Protocol, resend};
use crate::audit::query::{self, Filter, Take};
use crate::audit::schema::schemas;
use crate::audit::{Known, VerifyError, verify};
use crate::cli::journal;
use crate::config::{Config, Surroundings};
use crate::id::ExecId;
use crate::task::limits::parse_time;

/// The journal's folder in belljar's state.
pub const FOLDER: &str = "journal";

/// The key that signs checkpoints, in belljar's state.
pub const KEY: &str = "audit.key";

/// How execs and tasks end.
const OUTCOMES: [&str; 10] = [
    "exited",
    "signaled",
    "timed_out",
    "oom_killed",
    "output_limit",
    "canceled",
    "lost",
    "finished",
    "stopped",
    "failed",
];

/// How often `--follow` looks for new records.
const LOOK: Duration = Duration::from_millis(200);

/// The exit code of a proof that failed; that of belljar's own failures is another.
const BROKEN: u8 = 1;

#[derive(Debug, Args)]
pub struct AuditArgs {
    #[command(subcommand)]
    command: AuditCommand,
}

#[derive(Debug, Subcommand)]
enum AuditCommand {
    /// Lists records, oldest first
    Ls(LsArgs),
    /// Shows one exec whole: judgement, approval, resources, connections
    Show {
        /// The exec's id, or the end of it
        exec: String,
        #[arg(long)]
        json: bool,
    },
    /// Shows the newest records, and with --follow those to come
    Tail {
        /// How many of the newest
        #[arg(short = 'n', long, default_value_t = 20)]
        lines: usize,
        #[arg(short, long)]
        follow: bool,
        #[command(flatten)]
        filter: FilterArgs,
        #[arg(long)]
        json: bool,
    },
    /// Proves that no record was changed, removed or cut off, or says which is the first that was
    Verify(VerifyArgs),
    /// Shows how large the journal is, how far it is signed, and how far each collector is behind
    Status {
        #[arg(long)]
        json: bool,
    },
    /// Shows the public key that proves this journal's checkpoints; keep it elsewhere
    Key {
        #[arg(long)]
        json: bool,
    },
    /// Writes records for other programs
    Export(ExportArgs),
    /// Sums up what was run, asked, refused and used
    Stats(answers::StatsArgs),
    /// Says whether somebody should look at a task or an exec, and why
    Triage(answers::TriageArgs),
    /// Makes a page of a task or a span of time: what ran when, what it used, what was denied
    Report(answers::ReportArgs),
    /// Shows the JSON Schema of records
    Schema {
        /// One kind; else an object with all of them
        kind: Option<String>,
    },
}

#[derive(Debug, Args)]
struct LsArgs {
    #[command(flatten)]
    filter: FilterArgs,
    /// Only so many, the newest
    #[arg(short = 'n', long)]
    limit: Option<usize>,
    /// A record a line, as it stands in the journal
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Default, PartialEq, Eq, Args)]
struct FilterArgs {
    /// A task's id, or the end of it
    #[arg(long)]
    task: Option<String>,
    /// An exec's id, or the end of it
    #[arg(long)]
    exec: Option<String>,
    /// A kind (exec.finished) or a family of kinds (egress); may be given again
    #[arg(long)]
    kind: Vec<String>,
    /// How an exec or a task ended: exited, lost, oom_killed, …
    #[arg(long)]
    outcome: Option<String>,
    /// The machine that wrote the record, or the server of a connection
    #[arg(long)]
    host: Option<String>,
    /// The id of a rule that matched
    #[arg(long)]
    rule: Option<String>,
    /// Who approved or refused, or ran the task
    #[arg(long)]
    person: Option<String>,
    /// From then on: 2026-01-31T12:00:00Z, or 2h for two hours ago
    #[arg(long)]
    since: Option<String>,
    /// Before then
    #[arg(long)]
    until: Option<String>,
}

#[derive(Debug, Args)]
struct VerifyArgs {
    /// A file with the public key that must have signed the checkpoints, as `audit key` shows it
    #[arg(long, value_name = "FILE")]
    public_key: Option<PathBuf>,
    /// A record's number and hash that were kept elsewhere, as an earlier proof shows them
    #[arg(long, value_name = "SEQ:HASH")]
    head: Option<String>,
    #[arg(long)]
    json: bool,
}

#[derive(Debug, Args)]
struct ExportArgs {
    /// A record a line on stdout, as it stands in the journal
    #[arg(long, conflicts_with_all = ["otlp", "ocsf"], required_unless_present_any = ["otlp", "ocsf"])]
    jsonl: bool,
    /// An event of the Open Cybersecurity Schema Framework a line on stdout
    #[arg(long, conflicts_with = "otlp")]
    ocsf: bool,
    /// To a collector: everything that it does not have yet or, with a filter (--since, --task, …), those records again
    #[arg(long)]
    otlp: bool,
    /// The collector; else those of the configuration and of OTEL_EXPORTER_OTLP_ENDPOINT
    #[arg(long, requires = "otlp")]
    endpoint: Option<String>,
    /// http/protobuf instead of gRPC
    #[arg(long, requires = "endpoint")]
    http: bool,
    /// How long to try
    #[arg(long, default_value = "1m")]
    timeout: String,
    #[command(flatten)]
    filter: FilterArgs,
    /// Goes on with records to come
    #[arg(short, long)]
    follow: bool,
}

/// Answers one question about the journal in `state`; gives the exit code.
pub fn run(args: AuditArgs, state: &Path, out: &mut dyn Write) -> anyhow::Result<u8> {
    let folder = state.join(FOLDER);
    let done = match args.command {
        AuditCommand::Ls(args) => ls(&args, &folder, out),
        AuditCommand::Show { exec, json } => show(&exec, json, &folder, out),
        AuditCommand::Tail {
            lines,
            follow,
            filter,
            json,
        } => {
            let shape = if json { Shape::Json } else { Shape::Text };
            tail(lines, follow, &filter, &shape, &folder, out)
        }
        AuditCommand::Verify(args) => prove(&args, &folder, out),
        AuditCommand::Status { json } => status::show(json, &folder, out),
        AuditCommand::Key { json } => key(json, state, out),
        AuditCommand::Export(args) => export(&args, &folder, out),
        AuditCommand::Stats(args) => answers::show_stats(&args, &folder, out),
        AuditCommand::Triage(args) => answers::show_triage(&args, &folder, out),
        AuditCommand::Report(args) => answers::write_report(&args, &folder, out),
        AuditCommand::Schema { kind } => schema(kind.as_deref(), out),
    };
    match done {
        // `belljar audit ls | head`: whoever read has seen enough.
        Err(error) if is_broken_pipe(&error) => Ok(0),
        done => done,
    }
}

#[derive(Debug)]
enum Shape {
    Text,
    Json,
    /// With the journal's own id.
    Ocsf(String),
}

fn ls(args: &LsArgs, folder: &Path, out: &mut dyn Write) -> anyhow::Result<u8> {
    let reader = Reader::open(folder)?;
    let filter = args.filter.parse(&reader)?;
    let shape = if args.json { Shape::Json } else { Shape::Text };
    match args.limit {
        Some(count) => {
            for record in query::ls(&reader, &filter, Take::Newest(count))? {
                line(&record, &shape, out)?;
            }
        }
        None => {
            each(&reader, filter, &shape, out)?;
        }
    }
    Ok(0)
}

/// Writes all records of the filter in pieces, so that a journal of any size needs little memory; gives the last one's number.
fn each(reader: &Reader, mut filter: Filter, shape: &Shape, out: &mut dyn Write) -> anyhow::Result<Seq> {
    const PIECE: usize = 1000;
    loop {
        let records = query::ls(reader, &filter, Take::Oldest(PIECE))?;
        for record in &records {
            line(record, shape, out)?;
            filter.after = record.seq;
        }
        if records.len() < PIECE {
            return Ok(filter.after);
        }
    }
}

fn tail(
    lines: usize,
    follow: bool,
    filter: &FilterArgs,
    shape: &Shape,
    folder: &Path,
    out: &mut dyn Write,
) -> anyhow::Result<u8> {
    let reader = Reader::open(folder)?;
    let mut filter = filter.parse(&reader)?;
    // First the end, then the records up to it: what comes between is for the loop.
    let end = reader.last_seq()?;
    for record in query::ls(&reader, &filter, Take::Newest(lines))? {
        if record.seq <= end {
            line(&record, shape, out)?;
        }
    }
    filter.after = end;
    if follow {
        follow_on(&reader, filter, shape, out)?;
    }
    Ok(0)
}

/// Shows what comes, until the reader goes away or the program is ended.
fn follow_on(reader: &Reader, mut filter: Filter, shape: &Shape, out: &mut dyn Write) -> anyhow::Result<()> {
    loop {
        let last = each(reader, filter.clone(), shape, out)?;
        filter.after = filter.after.max(last);
        out.flush()?;
        std::thread::sleep(LOOK);
    }
}

fn show(exec: &str, json: bool, folder: &Path, out: &mut dyn Write) -> anyhow::Result<u8> {
    let reader = Reader::open(folder)?;
    let exec: ExecId = find_id(&reader, "exec", exec)?;
    let whole = query::show(&reader, exec)?.ok_or_else(|| anyhow!("the journal has no record of the exec {exec}"))?;
    if json {
        serde_json::to_writer(&mut *out, &whole).context("cannot write the answer")?;
        writeln!(out)?;
    } else {
        text::whole(&whole, out)?;
    }
    Ok(0)
}

fn key(json: bool, state: &Path, out: &mut dyn Write) -> anyhow::Result<u8> {
    let public_key = SigningKey::load_or_make(&state.join(KEY))?.public();
    if json {
        writeln!(out, "{}", serde_json::json!({"public_key": public_key.to_string()}))?;
    } else {
        writeln!(out, "{public_key}")?;
    }
    Ok(0)
}

fn schema(kind: Option<&str>, out: &mut dyn Write) -> anyhow::Result<u8> {
    let schemas = schemas();
    match kind {
        None => serde_json::to_writer_pretty(&mut *out, &schemas)?,
        Some(kind) => {
            let schema = schemas.get(kind).ok_or_else(|| anyhow!(no_such_kind(kind, &schemas)))?;
            serde_json::to_writer_pretty(&mut *out, schema)?;
        }
    }
    writeln!(out)?;
    Ok(0)
}

fn no_such_kind(kind: &str, schemas: &BTreeMap<String, serde_json::Value>) -> String {
    let kinds: Vec<&str> = schemas.keys().map(String::as_str).collect();
    format!(
        "no record is of kind \"{}\"; there are {}",
        text::shown(kind),
        kinds.join(", ")
    )
}

fn prove(args: &VerifyArgs, folder: &Path, out: &mut dyn Write) -> anyhow::Result<u8> {
    let json = args.json;
    let known = args.known()?;
    match verify(folder, &known) {
        Ok(verified) if json => {
            let answer = serde_json::json!({"whole": true, "journal": verified});
            writeln!(out, "{answer}")?;
            Ok(0)
        }
        Ok(verified) => {
            writeln!(
                out,
                "whole: {} records, {} to {}; {} checkpoints, {} records after the last one\nhead:  {}:{}",
                verified.records,
                verified.first_seq,
                verified.last_seq,
                verified.checkpoints,
                verified.unsigned,
                verified.last_seq,
                verified.head
            )?;
            Ok(0)
        }
        Err(VerifyError::Broken(broken)) if json => {
            let answer = serde_json::json!({"whole": false, "broken": broken});
            writeln!(out, "{answer}")?;
            Ok(BROKEN)
        }
        Err(VerifyError::Broken(broken)) => {
            writeln!(out, "broken at record {}: {}", broken.seq, text::shown(&broken.why))?;
            Ok(BROKEN)
        }
        Err(error @ VerifyError::Unreadable(_)) => Err(error.into()),
    }
}

fn export(args: &ExportArgs, folder: &Path, out: &mut dyn Write) -> anyhow::Result<u8> {
    if args.otlp {
        return export_otlp(args, folder, out);
    }
    let reader = Reader::open(folder)?;
    let mut filter = args.filter.parse(&reader)?;
    let shape = if args.ocsf {
        Shape::Ocsf(reader.journal_id()?)
    } else {
        Shape::Json
    };
    filter.after = each(&reader, filter.clone(), &shape, out)?;
    if args.follow {
        follow_on(&reader, filter, &shape, out)?;
    }
    Ok(0)
}

fn export_otlp(args: &ExportArgs, folder: &Path, out: &mut dyn Write) -> anyhow::Result<u8> {
    let config = Config::load(&Surroundings::of_process())?;
    let collectors = match &args.endpoint {
        Some(endpoint) => {
            config.check_endpoints([endpoint.as_str()])?;
            let mut collector = OtlpConfig::new(endpoint);
            if args.http {
                collector.protocol = Protocol::HttpProtobuf;
            }
            vec![collector]
        }
        None => journal::collectors(&config, None)?,
    };
    if collectors.is_empty() {
        bail!("no collector is named: give --endpoint, configure [[otlp]], or set OTEL_EXPORTER_OTLP_ENDPOINT");
    }
    let deadline = parse_time(&args.timeout).context("--timeout")?;
    if !args.filter.is_empty() {
        let filter = args.filter.parse(&Reader::open(folder)?)?;
        for collector in &collectors {
            let sent = blocking(resend(folder, collector, filter.clone(), deadline))??;
            writeln!(out, "{} {sent} records sent again", text::shown(&collector.endpoint))?;
        }
        if !args.follow {
            return Ok(0);
        }
    }
    let exporter = Exporter::start(folder, collectors)?;
    loop {
        let lag = blocking(exporter.flush(deadline))?;
        for signal in &lag.signals {
            let error = signal.error.as_deref().map(text::shown).unwrap_or_default();
            let endpoint = text::shown(&signal.endpoint);
            writeln!(
                out,
                "{endpoint} {:8} {} records missing {error}",
                signal.signal, signal.records
            )?;
        }
        out.flush()?;
        if !args.follow {
            return if lag.records == 0 {
                Ok(0)
            } else {
                bail!(
                    "{} records are not delivered; they stay for the next attempt",
                    lag.records
                )
            };
        }
        std::thread::sleep(LOOK * 25);
    }
}

/// On a thread and a runtime of its own: the caller may be in one already.
fn blocking<T: Send>(work: impl Future<Output = T> + Send) -> anyhow::Result<T> {
    std::thread::scope(|scope| {
        let waiting = scope.spawn(|| {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
            anyhow::Ok(runtime.block_on(work))
        });
        waiting.join().map_err(|_| anyhow!("the wait was broken off"))?
    })
}

fn line(record: &Stored, shape: &Shape, out: &mut dyn Write) -> std::io::Result<()> {
    match shape {
        Shape::Json => writeln!(out, "{}", record.json),
        Shape::Text => writeln!(out, "{}", text::line(record)),
        Shape::Ocsf(journal) => writeln!(out, "{}", ocsf::event(journal, record)),
    }
}

impl VerifyArgs {
    fn known(&self) -> anyhow::Result<Known> {
        let mut known = Known::default();
        if let Some(path) = &self.public_key {
            let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
            known.public_key = Some(text.parse().with_context(|| path.display().to_string())?);
        }
        if let Some(head) = &self.head {
            let parts = head
                .split_once(':')
                .and_then(|(seq, hash)| Some((seq.parse().ok()?, hash.to_owned())));
            known.head = Some(parts.ok_or_else(|| anyhow!("--head: expected SEQ:HASH, as `audit verify` shows them"))?);
        }
        Ok(known)
    }
}

impl FilterArgs {
    fn is_empty(&self) -> bool {
        *self == Self::default()
    }

    /// Says everything that is wrong with it at once.
    fn parse(&self, reader: &Reader) -> anyhow::Result<Filter> {
        let mut faults = Vec::new();
        let mut filter = Filter {
            kinds: self.kind.clone(),
            outcome: self.outcome.clone(),
            host: self.host.clone(),
            rule: self.rule.clone(),
            person: self.person.clone(),
            ..Filter::default()
        };
        let kinds = schemas();
        for kind in &self.kind {
            let is_family = |known: &String| known.split_once('.').is_some_and(|(family, _)| family == kind);
            if !kinds.contains_key(kind) && !kinds.keys().any(is_family) {
                faults.push(format!("--kind: {}", no_such_kind(kind, &kinds)));
            }
        }
        if let Some(outcome) = &self.outcome
            && !OUTCOMES.contains(&outcome.as_str())
        {
            let outcome = text::shown(outcome);
            faults.push(format!(
                "--outcome: nothing ends as \"{outcome}\"; there are {}",
                OUTCOMES.join(", ")
            ));
        }
        let now = Timestamp::now();
        keep(&mut filter.task, &self.task, &mut faults, "--task", |id| {
            find_id(reader, "task", id)
        });
        keep(&mut filter.exec, &self.exec, &mut faults, "--exec", |id| {
            find_id(reader, "exec", id)
        });
        keep(&mut filter.since, &self.since, &mut faults, "--since", |text| {
            moment(text, now)
        });
        keep(&mut filter.until, &self.until, &mut faults, "--until", |text| {
            moment(text, now)
        });
        if faults.is_empty() {
            Ok(filter)
        } else {
            bail!(faults.join("\n"))
        }
    }
}

fn keep<T>(
    place: &mut Option<T>,
    given: &Option<String>,
    faults: &mut Vec<String>,
    flag: &str,
    parse: impl FnOnce(&str) -> anyhow::Result<T>,
) {
    match given.as_deref().map(parse) {
        Some(Ok(value)) => *place = Some(value),
        Some(Err(error)) => faults.push(format!("{flag}: {error:#}")),
        None => {}
    }
}

/// A moment in RFC 3339, or so long ago.
fn moment(text: &str, now: Timestamp) -> anyhow::Result<Timestamp> {
    if let Ok(ago) = parse_time(text) {
        return Ok(now.checked_sub(SignedDuration::try_from(ago)?)?);
    }
    text.parse().map_err(|_| {
        anyhow!(
            "\"{}\" is no time (expected 2026-01-31T12:00:00Z, or 2h for two hours ago)",
            text::shown(text)
        )
    })
}

/// An id, or the end of one that the journal has once.
fn find_id<T: std::str::FromStr>(reader: &Reader, column: &'static str, text: &str) -> anyhow::Result<T>
where
    T::Err: std::error::Error + Send + Sync + 'static,
{
    let mut found = query::ids_ending_in(reader, column, text)?;
    match (found.pop(), found.len()) {
        (Some(id), 0) => Ok(id.to_string().parse()?),
        (None, _) => bail!("the journal has no {column} \"{}\"", text::shown(text)),
        (Some(_), _) => bail!(
            "several of the journal's ids of {column}s end in \"{}\"",
            text::shown(text)
        ),
    }
}

fn is_broken_pipe(error: &anyhow::Error) -> bool {
    error
        .chain()
        .filter_map(|cause| cause.downcast_ref::<std::io::Error>())
        .any(|cause| cause.kind() == ErrorKind::BrokenPipe)
}

#[cfg(test)]
mod tests;
