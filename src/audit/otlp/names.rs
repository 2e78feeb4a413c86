//! Every name that leaves belljar by OTLP. Those of the OpenTelemetry semantic conventions where they have one, else `belljar.*`.

/// The version of the semantic conventions that the names are taken from.
pub const SCHEMA_URL: &str = "https://opentelemetry.io/schemas/1.42.0";

pub const SCOPE: &str = "belljar.audit";

// The resource.
pub const SERVICE_NAME: &str = "service.name";
pub const SERVICE_VERSION: &str = "service.version";
/// The journal's own id: one journal is one instance, however many processes write and export it.
pub const SERVICE_INSTANCE_ID: &str = "service.instance.id";
pub const HOST_NAME: &str = "host.name";

// What every record has.
/// `<journal id>/<seq>`: the same record sent twice has it twice.
pub const LOG_RECORD_UID: &str = "log.record.uid";
pub const SEQ: &str = "belljar.seq";
pub const HASH: &str = "belljar.hash";
pub const BOOT: &str = "belljar.boot.id";
pub const TASK: &str = "belljar.task.id";
pub const EXEC: &str = "belljar.exec.id";
/// The names of attributes that were cut because they were too long.
pub const CUT: &str = "belljar.cut_attributes";

// What is made of several fields, or of parts of one.
pub const ERROR_TYPE: &str = "error.type";
pub const EXECUTABLE_NAME: &str = "process.executable.name";
/// The rule that decided, which is the strictest of those that matched.
pub const RULE_ID: &str = "security_rule.uuid";
pub const RULE_DESCRIPTION: &str = "security_rule.description";
pub const RULE_SET: &str = "security_rule.ruleset.name";
/// All that matched.
pub const RULE_IDS: &str = "belljar.rule.ids";
pub const RULE_DECISIONS: &str = "belljar.rule.decisions";
pub const ENFORCED_FULL: &str = "belljar.enforced.full";
pub const ENFORCED_PARTIAL: &str = "belljar.enforced.partial";
pub const ENFORCED_NONE: &str = "belljar.enforced.none";

/// Fields of records, by their path in the JSON, and the attribute that each becomes. A field that is not here
/// becomes `belljar.<path>`.
pub const FIELDS: &[(&str, &str)] = &[
    ("argv", "process.command_args"),
    ("cwd", "process.working_directory"),
    ("tty", "process.interactive"),
    ("exit_code", "process.exit.code"),
    ("image", "container.image.name"),
    ("image_digest", "oci.manifest.digest"),
    ("runtime", "container.runtime.name"),
    ("identity.uid", "user.id"),
    ("user", "user.name"),
    ("server_address", "server.address"),
    ("server_port", "server.port"),
    ("address", "network.peer.address"),
    ("method", "http.request.method"),
    ("path", "url.path"),
    ("rule", "belljar.rule.name"),
    ("hash", "belljar.checkpoint.hash"),
];

/// Attributes that the conventions want as text, whatever JSON type the field has.
pub const AS_TEXT: &[&str] = &["user.id"];

pub const OURS: &str = "belljar.";

// Metrics and their one label each.
pub const OUTCOME: &str = "belljar.outcome";
pub const JUDGEMENT: &str = "belljar.judgement";
pub const DECISION: &str = "belljar.decision";
pub const ANSWER: &str = "belljar.answer";
pub const SIGNAL: &str = "belljar.export.signal";
pub const CPU_MODE: &str = "cpu.mode";
pub const IO_DIRECTION: &str = "network.io.direction";

/// Records that are not yet delivered, by signal.
pub const EXPORT_LAG: &str = "belljar.export.lag";
pub const JOURNAL_SIZE: &str = "belljar.journal.size";

/// How a metric is made and read.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Instrument {
    /// A sum that only grows, of whole things.
    Count,
    /// A sum that only grows, of fractions.
    Amount,
    /// A distribution over the bounds given.
    Histogram(&'static [u64], Scale),
}

/// Bounds are whole numbers of this, so that the table can be a constant that is compared.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Scale {
    Milliseconds,
    Bytes,
}

/// One metric that is summed up over the journal, from its first record on.
#[derive(Debug)]
pub struct Metric {
    pub name: &'static str,
    pub unit: &'static str,
    pub description: &'static str,
    pub instrument: Instrument,
    /// The one label, with all the values that it can have; another value becomes `other`.
    pub label: Option<(&'static str, &'static [&'static str])>,
}

const EXEC_OUTCOMES: &[&str] = &[
    "exited",
    "signaled",
    "timed_out",
    "oom_killed",
    "output_limit",
    "canceled",
    "lost",
];
const TASK_OUTCOMES: &[&str] = &["finished", "timed_out", "stopped", "failed", "lost"];
const DECISIONS: &[&str] = &["allow", "ask", "deny"];
const DURATIONS: Instrument = Instrument::Histogram(
    &[
        1, 2, 5, 10, 25, 50, 100, 250, 500, 1_000, 2_500, 5_000, 10_000, 30_000, 60_000, 300_000, 600_000, 3_600_000,
    ],
    Scale::Milliseconds,
);
const SIZES: Instrument = Instrument::Histogram(
    &[
        1 << 20,
        4 << 20,
        16 << 20,
        64 << 20,
        256 << 20,
        1 << 30,
        4 << 30,
        16 << 30,
    ],
    Scale::Bytes,
);

pub const EXEC_JUDGED: &str = "belljar.exec.judged";
pub const EXEC_REFUSED: &str = "belljar.exec.refused";
pub const EXEC_FINISHED: &str = "belljar.exec.finished";
pub const EXEC_DURATION: &str = "belljar.exec.duration";
pub const EXEC_CPU_TIME: &str = "belljar.exec.cpu.time";
pub const EXEC_MEMORY_PEAK: &str = "belljar.exec.memory.peak";
pub const TASK_FINISHED: &str = "belljar.task.finished";
pub const TASK_REFUSED: &str = "belljar.task.refused";
pub const TASK_START_DURATION: &str = "belljar.task.start.duration";
pub const APPROVAL_WAIT: &str = "belljar.approval.wait";
pub const EGRESS_JUDGED: &str = "belljar.egress.judged";
pub const EGRESS_IO: &str = "belljar.egress.io";

pub const METRICS: &[Metric] = &[
    Metric {
        name: EXEC_JUDGED,
        unit: "{exec}",
        description: "Commands that were judged",
        instrument: Instrument::Count,
        label: Some((JUDGEMENT, DECISIONS)),
    },
    Metric {
        name: EXEC_REFUSED,
        unit: "{exec}",
        description: "Commands that were refused, by a rule or by a person",
        instrument: Instrument::Count,
        label: None,
    },
    Metric {
        name: EXEC_FINISHED,
        unit: "{exec}",
        description: "Commands that were started and ended",
        instrument: Instrument::Count,
        label: Some((OUTCOME, EXEC_OUTCOMES)),
    },
    Metric {
        name: EXEC_DURATION,
        unit: "s",
        description: "Time from a command's start to its end",
        instrument: DURATIONS,
        label: Some((OUTCOME, EXEC_OUTCOMES)),
    },
    Metric {
        name: EXEC_CPU_TIME,
        unit: "s",
        description: "CPU time of commands",
        instrument: Instrument::Amount,
        label: Some((CPU_MODE, &["user", "system"])),
    },
    Metric {
        name: EXEC_MEMORY_PEAK,
        unit: "By",
        description: "The most memory that a command had at once",
        instrument: SIZES,
        label: None,
    },
    Metric {
        name: TASK_FINISHED,
        unit: "{task}",
        description: "Tasks that ended",
        instrument: Instrument::Count,
        label: Some((OUTCOME, TASK_OUTCOMES)),
    },
    Metric {
        name: TASK_REFUSED,
        unit: "{task}",
        description: "Tasks that were not admitted",
        instrument: Instrument::Count,
        label: None,
    },
    Metric {
        name: TASK_START_DURATION,
        unit: "s",
        description: "Time to make a task's sandbox",
        instrument: DURATIONS,
        label: None,
    },
    Metric {
        name: APPROVAL_WAIT,
        unit: "s",
        description: "Time for which a question waited for its answer",
        instrument: DURATIONS,
        label: Some((ANSWER, &["approve", "deny", "withdrawn"])),
    },
    Metric {
        name: EGRESS_JUDGED,
        unit: "{connection}",
        description: "Judgements of connections, names and requests; a question counts, and its answer too",
        instrument: Instrument::Count,
        label: Some((DECISION, DECISIONS)),
    },
    Metric {
        name: EGRESS_IO,
        unit: "By",
        description: "Bytes that went through the proxy",
        instrument: Instrument::Count,
        label: Some((IO_DIRECTION, &["transmit", "receive"])),
    },
];

/// The attribute of a record's field.
pub fn attribute(path: &str) -> String {
    match FIELDS.iter().find(|(field, _)| *field == path) {
        Some((_, name)) => (*name).to_owned(),
        None => format!("{OURS}{path}"),
    }
}

#[cfg(test)]
mod tests;
