//! Whether somebody should look at a task or an exec: what was asked, what it did, what was denied and what was unusual, by rules
//! alone, with the records that each finding rests on.

use std::collections::{HashMap, HashSet};

use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::Value;

use super::journal::{JournalError, Reader, Seq, Stored};
use super::query::{self, Filter, Take, executable};
use crate::id::{ExecId, TaskId};

/// The answer; the order is urgency: the greatest of all findings wins.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Verdict {
    Expected,
    /// Something failed, as commands do, and nothing was denied.
    BenignError,
    NeedsPerson,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Triage {
    pub verdict: Verdict,
    pub findings: Vec<Finding>,
    /// How many records were looked at.
    pub records: usize,
}

#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Finding {
    pub verdict: Verdict,
    pub what: String,
    /// The records that it rests on.
    pub records: Vec<Seq>,
}

/// What is looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum About {
    Task(TaskId),
    Exec(ExecId),
    /// All that was recorded from then on.
    Since(Timestamp),
}

impl About {
    fn filter(self) -> Filter {
        let mut filter = Filter::default();
        match self {
            About::Task(task) => filter.task = Some(task),
            About::Exec(exec) => filter.exec = Some(exec),
            About::Since(since) => filter.since = Some(since),
        }
        filter
    }
}

/// As many earlier runs of a program make it known enough for a run of it to be unusual.
const KNOWN_RUNS: usize = 5;

/// Records of one finding that are looked at again.
const OF_ONE_FINDING: usize = 3;

/// A program is new on a journal that has seen this many commands, not on a young one.
const YOUNG_JOURNAL: u64 = 100;

/// How many times the most of all earlier runs is unusual.
const UNUSUAL: f64 = 5.0;

/// Looks at all records of a task, an exec or a span of time; `None` when the journal has none.
pub fn triage(reader: &Reader, about: About) -> Result<Option<Triage>, JournalError> {
    let mut findings = Findings::default();
    let mut records = 0;
    let mut ends = HashSet::new();
    query::each(reader, &about.filter(), |record| {
        records += 1;
        judge(record.seq, &record.kind, &record.value(), &mut findings);
        if record.kind == "exec.finished" {
            ends.insert(record.seq);
        }
        true
    })?;
    if records == 0 {
        return Ok(None);
    }
    unusual(reader, &ends, &mut findings)?;
    let mut findings = findings.made;
    findings.sort_by_key(|finding| std::cmp::Reverse(finding.verdict));
    let verdict = findings
        .iter()
        .map(|finding| finding.verdict)
        .max()
        .unwrap_or(Verdict::Expected);
    Ok(Some(Triage {
        verdict,
        findings,
        records,
    }))
}

/// At most `count` records for a second look: the newest that each finding rests on, the most urgent finding first, then the
/// newest of all others.
pub fn evidence(reader: &Reader, about: About, found: &Triage, count: usize) -> Result<Vec<Stored>, JournalError> {
    let of_findings = found
        .findings
        .iter()
        .flat_map(|finding| finding.records.iter().rev().take(OF_ONE_FINDING));
    let mut seen = HashSet::new();
    let mut records = Vec::new();
    for seq in of_findings.take(count) {
        if seen.insert(*seq) {
            records.extend(reader.record(*seq)?);
        }
    }
    let newest = query::ls(reader, &about.filter(), Take::Newest(count))?;
    records.extend(newest.into_iter().rev().filter(|record| !seen.contains(&record.seq)));
    records.truncate(count);
    Ok(records)
}

/// What one record says by itself.
fn judge(seq: Seq, kind: &str, value: &Value, findings: &mut Findings) {
    use Verdict::{BenignError, NeedsPerson};
    let word = |name: &str| value[name].as_str().unwrap_or_default();
    let program = executable(value).unwrap_or("a command");
    match kind {
        "task.refused" => findings.add(
            NeedsPerson,
            "the task asked for more than the requirements allow".into(),
            seq,
        ),
        "exec.refused" => findings.add(NeedsPerson, format!("{program} was refused"), seq),
        "exec.judged" if value["opaque"] == true && word("judgement") == "allow" => {
            findings.add(
                NeedsPerson,
                format!("{program} was allowed though part of it could not be known"),
                seq,
            );
        }
        "exec.finished" => match (word("outcome"), value["exit_code"].as_i64()) {
            ("exited", Some(0)) | ("canceled", _) => {}
            ("exited", _) => findings.add(BenignError, format!("{program} exited with an error"), seq),
            ("lost", _) => findings.add(NeedsPerson, format!("the end of {program} was not seen"), seq),
            (outcome, _) => findings.add(BenignError, format!("{program} ended as {outcome}"), seq),
        },
        "task.finished" => {
            match word("outcome") {
                "finished" | "stopped" => {}
                "lost" => findings.add(NeedsPerson, "the end of the task was not seen".into(), seq),
                outcome => findings.add(BenignError, format!("the task ended as {outcome}"), seq),
            }
            if value["left_files"].as_array().is_some_and(|files| !files.is_empty()) {
                findings.add(NeedsPerson, "the task left files behind".into(), seq);
            }
        }
        "approval.answered" => match value.pointer("/approver/kind").and_then(Value::as_str) {
            Some("nobody") => findings.add(NeedsPerson, "nobody could be asked".into(), seq),
            Some("reviewer") if word("answer") != "deny" => {
                findings.add(NeedsPerson, "only the automatic reviewer approved".into(), seq);
            }
            Some(_) | None => {}
        },
        "egress.judged" if word("decision") == "deny" => {
            findings.add(
                NeedsPerson,
                format!("a connection to {} was denied", word("server_address")),
                seq,
            );
        }
        "sandbox.enforced" => {
            let controls = value["controls"].as_array().map(Vec::as_slice).unwrap_or_default();
            let weak = controls.iter().filter(|control| control["enforced"] != "full");
            let names: Vec<&str> = weak.filter_map(|control| control["control"].as_str()).collect();
            if !names.is_empty() {
                findings.add(BenignError, format!("not enforced in full: {}", names.join(", ")), seq);
            }
        }
        "rule.added" => findings.add(NeedsPerson, "a rule was added".into(), seq),
        _ => {}
    }
}

/// What is known of a program from its runs so far.
#[derive(Default)]
struct Known {
    runs: usize,
    most: [f64; MEASURES.len()],
}

/// What these runs of programs have that no earlier one in this journal had; one walk over all ends of execs.
fn unusual(reader: &Reader, ends: &HashSet<Seq>, findings: &mut Findings) -> Result<(), JournalError> {
    let Some(last) = ends.iter().max() else { return Ok(()) };
    let mut known: HashMap<String, Known> = HashMap::new();
    let mut execs = 0;
    reader.each(
        "kind = 'exec.finished' AND seq <= ?1 ORDER BY seq",
        &[&(*last as i64)],
        |record| {
            let value = record.value();
            if let Some(program) = executable(&value) {
                let before = known.entry(program.to_owned()).or_default();
                if ends.contains(&record.seq) {
                    compare(program, &value, before, execs, record.seq, findings);
                }
                before.runs += 1;
                for (most, (pointers, _)) in before.most.iter_mut().zip(MEASURES) {
                    *most = most.max(measure(&value, pointers));
                }
            }
            execs += 1;
            true
        },
    )
}

fn compare(program: &str, value: &Value, before: &Known, execs: u64, seq: Seq, findings: &mut Findings) {
    if before.runs == 0 && execs >= YOUNG_JOURNAL {
        let text = format!("{program} never ran here before");
        findings.add(Verdict::NeedsPerson, text, seq);
    }
    if before.runs < KNOWN_RUNS {
        return;
    }
    for (most, (pointers, what)) in before.most.iter().zip(MEASURES) {
        let now = measure(value, pointers);
        if *most > 0.0 && now > most * UNUSUAL {
            let times = now / most;
            let text = format!("{program} used {times:.0} times as much {what} as ever before");
            findings.add(Verdict::NeedsPerson, text, seq);
        }
    }
}

/// What is compared between runs: fields that are added up, and their name.
const MEASURES: [(&[&str], &str); 3] = [
    (&["/usage/cpu_user_seconds", "/usage/cpu_system_seconds"], "CPU time"),
    (&["/usage/memory_peak_bytes"], "memory"),
    (&["/network_bytes_sent", "/network_bytes_received"], "network"),
];

fn measure(value: &Value, pointers: &[&str]) -> f64 {
    let amount = |pointer: &&str| value.pointer(pointer).and_then(Value::as_f64);
    pointers.iter().filter_map(amount).sum()
}

/// The same finding of several records is one finding.
#[derive(Default)]
struct Findings {
    made: Vec<Finding>,
}

impl Findings {
    fn add(&mut self, verdict: Verdict, what: String, seq: Seq) {
        match self.made.iter_mut().find(|finding| finding.what == what) {
            Some(finding) => finding.records.push(seq),
            None => self.made.push(Finding {
                verdict,
                what,
                records: vec![seq],
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::journal::{Journal, JournalOptions};
    use crate::audit::record::{Entry, Event};
    use crate::audit::samples;

    fn finished(memory: u64, code: i32) -> Event {
        let mut end = samples::exec_finished();
        end.exit_code = Some(code);
        end.usage.memory_peak_bytes = Some(memory);
        Event::ExecFinished(Box::new(end))
    }

    fn triage_of(events: Vec<Event>) -> Triage {
        let folder = tempfile::tempdir().unwrap();
        let journal = Journal::open(folder.path(), JournalOptions::default()).unwrap();
        let mut exec = ExecId::new();
        for event in events {
            exec = ExecId::new();
            let entry = Entry {
                task: None,
                exec: Some(exec),
                event,
            };
            journal.append_blocking(entry).unwrap();
        }
        triage(&journal.reader().unwrap(), About::Exec(exec)).unwrap().unwrap()
    }

    #[test]
    fn a_command_that_ends_well_is_expected_and_one_that_fails_is_benign() {
        assert_eq!(triage_of(vec![finished(1, 0)]).verdict, Verdict::Expected);
        let failed = triage_of(vec![finished(1, 2)]);
        assert_eq!(failed.verdict, Verdict::BenignError);
        assert_eq!(failed.findings[0].what, "make exited with an error");
        assert_eq!(failed.findings[0].records, [2]);
    }

    #[test]
    fn a_denied_connection_needs_a_person() {
        let event = samples::of_each_kind()
            .into_iter()
            .find(|entry| entry.event.kind() == "egress.judged");
        let found = triage_of(vec![event.unwrap().event]);
        assert_eq!(found.verdict, Verdict::NeedsPerson);
        assert_eq!(found.findings[0].what, "a connection to example.org was denied");
    }

    #[test]
    fn what_is_unusual_for_a_known_program_needs_a_person() {
        let mut runs: Vec<Event> = (0..5).map(|_| finished(1 << 20, 0)).collect();
        runs.push(finished(4 << 20, 0));
        assert_eq!(triage_of(runs.clone()).verdict, Verdict::Expected);
        runs.push(finished(40 << 20, 0));
        let found = triage_of(runs);
        assert_eq!(found.verdict, Verdict::NeedsPerson);
        assert_eq!(
            found.findings[0].what,
            "make used 10 times as much memory as ever before"
        );
    }

    #[test]
    fn a_program_that_never_ran_on_a_journal_with_history_needs_a_person() {
        let mut runs: Vec<Event> = (0..YOUNG_JOURNAL).map(|_| finished(1, 0)).collect();
        let mut end = samples::exec_finished();
        end.argv = vec!["/tmp/miner".into()];
        end.exit_code = Some(0);
        runs.push(Event::ExecFinished(Box::new(end)));
        let found = triage_of(runs);
        assert_eq!(found.findings[0].what, "miner never ran here before");
    }
}
