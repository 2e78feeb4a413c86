use clap::Parser;

use super::*;
use crate::audit::journal::{Journal, JournalOptions};
use crate::audit::record::{Entry, Event, ExecFinished, ExecOutcome, Usage, UsageSource};
use crate::id::TaskId;
use crate::policy::{Decision, RuleMatch};

#[derive(Parser)]
pub(super) struct Program {
    #[command(flatten)]
    pub(super) args: AuditArgs,
}

pub(super) struct Fixture {
    pub(super) state: tempfile::TempDir,
    pub(super) journal: Journal,
    pub(super) task: TaskId,
    pub(super) exec: ExecId,
}

impl Fixture {
    /// A journal with one exec whose argument tries to write on the reader's terminal, and one refused host.
    pub(super) fn new() -> Self {
        let state = tempfile::tempdir().unwrap();
        let journal = Journal::open(&state.path().join(FOLDER), JournalOptions::default()).unwrap();
        let (task, exec) = (TaskId::new(), ExecId::new());
        let argv = vec!["echo".to_owned(), "\u{1b}[2J\nfake line\u{202e}".to_owned()];
        let rule = RuleMatch {
            id: "echo-ok".into(),
            file: "agent.rules".into(),
            line: 7,
            decision: Decision::Allow,
            justification: None,
            person_only: false,
        };
        let of_exec = |event| Entry {
            task: Some(task),
            exec: Some(exec),
            event,
        };
        let entries = [
            of_exec(Event::ExecJudged {
                argv: argv.clone(),
                cwd: "/workspace".into(),
                env_names: vec![],
                judgement: "allow".into(),
                rules: vec![rule.clone()],
                opaque: false,
                digest: "sha256:11".into(),
                reason: Some("say hello".into()),
                call_id: None,
                traceparent: None,
            }),
            of_exec(Event::ExecStarted {
                argv: argv.clone(),
                cwd: "/workspace".into(),
                tty: false,
                approver: None,
            }),
            Entry {
                task: Some(task),
                exec: None,
                event: Event::EgressJudged {
                    host: "pastebin.example".into(),
                    port: 443,
                    protocol: "https_connect".into(),
                    method: None,
                    path: None,
                    decision: "deny".into(),
                    rule: "network.deny".into(),
                    reason: "the task denies it".into(),
                    address: None,
                },
            },
            of_exec(Event::ExecFinished(Box::new(ExecFinished {
                argv,
                cwd: "/workspace".into(),
                env_names: vec![],
                outcome: ExecOutcome::OomKilled,
                exit_code: None,
                signal: Some(9),
                error: None,
                wall_seconds: 1.25,
                usage: Usage {
                    source: UsageSource::CgroupV2,
                    cpu_user_seconds: 0.5,
                    cpu_system_seconds: 0.25,
                    memory_peak_bytes: Some(64 << 20),
                    ..Usage::NONE
                },
                network_bytes_sent: Some(0),
                network_bytes_received: Some(0),
                stdout_bytes: 2048,
                stderr_bytes: 0,
                stdout_digest: None,
                stderr_digest: None,
                image_digest: None,
                plan_digest: None,
                requirements_digest: None,
                rules: vec![rule],
                approver: None,
                reason: None,
                call_id: None,
                traceparent: None,
            }))),
        ];
        for entry in entries {
            journal.append_blocking(entry).unwrap();
        }
        Self {
            state,
            journal,
            task,
            exec,
        }
    }

    fn ask(&self, words: &[&str]) -> anyhow::Result<(u8, String)> {
        let args = Program::try_parse_from(["audit"].iter().chain(words))?.args;
        let mut out = Vec::new();
        let code = run(args, self.state.path(), &mut out)?;
        Ok((code, String::from_utf8(out)?))
    }

    fn answer(&self, words: &[&str]) -> String {
        let (code, text) = self.ask(words).unwrap();
        assert_eq!(code, 0, "{text}");
        text
    }

    /// What is said of each record, without its number, time and ids.
    fn summaries(&self, words: &[&str]) -> Vec<String> {
        let text = self.answer(words);
        text.lines()
            .map(|line| line.chars().skip(56).collect::<String>())
            .collect()
    }
}

#[test]
fn ls_says_one_record_a_line_and_no_record_writes_on_the_terminal() {
    let fixture = Fixture::new();
    let said = fixture.summaries(&["ls", "--task", &fixture.task.to_string()]);
    let word = r"'\u{1b}[2J\u{a}fake line\u{202e}'";
    assert_eq!(
        said,
        [
            format!("exec.judged         allow echo {word} [echo-ok] (say hello)"),
            format!("exec.started        echo {word}"),
            "egress.judged       deny https_connect pastebin.example:443 [network.deny] (the task denies it)"
                .to_owned(),
            format!("exec.finished       oom_killed by signal 9 after 1.25s cpu 750ms mem 64MiB out 2KiB echo {word}"),
        ]
    );
}

#[test]
fn filters_choose_records() {
    let fixture = Fixture::new();
    let seqs = |words: &[&str]| -> Vec<u64> {
        let words: Vec<&str> = ["ls", "--json"].iter().chain(words).copied().collect();
        let text = fixture.answer(&words);
        let records = text
            .lines()
            .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap());
        records.map(|record| record["seq"].as_u64().unwrap()).collect()
    };
    let exec = fixture.exec.to_string();
    assert_eq!(seqs(&[]), [1, 2, 3, 4, 5]);
    assert_eq!(seqs(&["--exec", &exec]), [2, 3, 5]);
    assert_eq!(seqs(&["--exec", &exec[30..]]), [2, 3, 5]);
    assert_eq!(seqs(&["--kind", "egress"]), [4]);
    assert_eq!(seqs(&["--kind", "exec.judged", "--kind", "journal"]), [1, 2]);
    assert_eq!(seqs(&["--outcome", "oom_killed"]), [5]);
    assert_eq!(seqs(&["--host", "pastebin.example"]), [4]);
    assert_eq!(seqs(&["--rule", "echo-ok"]), [2, 5]);
    assert_eq!(seqs(&["--rule", "network.deny"]), [4]);
    assert_eq!(seqs(&["--since", "1h", "-n", "2"]), [4, 5]);
    assert_eq!(seqs(&["--until", "2020-01-01T00:00:00Z"]), [] as [u64; 0]);
}

#[test]
fn everything_that_is_wrong_with_a_filter_is_said_at_once() {
    let fixture = Fixture::new();
    let words = ["ls", "--task", "xyz", "--since", "yesterday"];
    let error = fixture.ask(&words).unwrap_err().to_string();
    assert_eq!(
        error,
        "--task: the journal has no task \"xyz\"\n\
         --since: \"yesterday\" is no time (expected 2026-01-31T12:00:00Z, or 2h for two hours ago)"
    );
    // What could never be found is a slip, not an empty answer.
    let words = ["ls", "--kind", "exec.jud", "--kind", "egress", "--outcome", "dead"];
    let error = fixture.ask(&words).unwrap_err().to_string();
    let lines: Vec<&str> = error.lines().collect();
    assert!(
        lines[0].starts_with("--kind: no record is of kind \"exec.jud\"; there are agent.event, "),
        "{error}"
    );
    assert!(
        lines[1].starts_with("--outcome: nothing ends as \"dead\"; there are exited, "),
        "{error}"
    );
    assert_eq!(lines.len(), 2);
}

#[test]
fn show_gives_one_exec_whole() {
    let fixture = Fixture::new();
    let exec = fixture.exec.to_string();
    let text = fixture.answer(&["show", &exec]);
    for part in [
        "exec.judged",
        "  rule: echo-ok allow at agent.rules:7",
        "  reason: say hello",
        "  usage.memory_peak_bytes: 67108864",
        "connections of the task meanwhile",
        "deny https_connect pastebin.example:443",
    ] {
        assert!(text.contains(part), "{part} is missing in\n{text}");
    }
    assert!(!text.contains('\u{1b}'));
    let json: serde_json::Value = serde_json::from_str(&fixture.answer(&["show", &exec, "--json"])).unwrap();
    assert_eq!(json["records"].as_array().unwrap().len(), 3);
    assert_eq!(json["egress"].as_array().unwrap().len(), 1);
}

#[test]
fn verify_proves_the_journal_or_names_the_first_wrong_record() {
    let fixture = Fixture::new();
    let whole = fixture.answer(&["verify"]);
    assert!(
        whole.starts_with("whole: 5 records, 1 to 5; 0 checkpoints, 5 records after the last one\n"),
        "{whole}"
    );
    let head = whole.trim_end().rsplit(' ').next().unwrap();
    assert_eq!(fixture.answer(&["verify", "--head", head]), whole);
    assert_eq!(fixture.ask(&["verify", "--head", "5:00"]).unwrap().0, 1);
    let key = fixture.state.path().join("public");
    std::fs::write(&key, fixture.answer(&["key"])).unwrap();
    let (code, text) = fixture.ask(&["verify", "--public-key", key.to_str().unwrap()]).unwrap();
    assert!(
        code == 1 && text.contains("no record of this journal is signed"),
        "{text}"
    );
    let db = rusqlite::Connection::open(fixture.journal.folder().join("journal.db")).unwrap();
    db.execute(
        "UPDATE records SET json = replace(json, 'echo', 'ecto') WHERE seq = 3",
        [],
    )
    .unwrap();
    let (code, text) = fixture.ask(&["verify"]).unwrap();
    assert_eq!(code, 1);
    assert_eq!(
        text,
        "broken at record 3: its content does not have its hash: it was changed\n"
    );
    let (code, text) = fixture.ask(&["verify", "--json"]).unwrap();
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(
        (code, &json["whole"], &json["broken"]["seq"]),
        (1, &false.into(), &3.into())
    );
}

#[test]
fn export_as_jsonl_gives_what_stands_in_the_journal() {
    let fixture = Fixture::new();
    let stored = fixture.journal.reader().unwrap().after(0, 100).unwrap();
    let expected: String = stored.iter().map(|record| format!("{}\n", record.json)).collect();
    assert_eq!(fixture.answer(&["export", "--jsonl"]), expected);
    assert!(fixture.ask(&["export"]).is_err());
    let events = fixture.answer(&["export", "--ocsf", "--kind", "exec"]);
    let classes: Vec<serde_json::Value> = events
        .lines()
        .map(|line| serde_json::from_str::<serde_json::Value>(line).unwrap()["class_uid"].clone())
        .collect();
    assert_eq!(classes, [1007, 1007, 1007]);
}

/// Takes so many lines and then is gone, as `head` is.
struct Head {
    lines: usize,
    text: Vec<u8>,
    /// Called when the first flush shows that all that was there is written.
    more: Option<Box<dyn FnOnce()>>,
}

impl Write for Head {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        if self.text.iter().filter(|byte| **byte == b'\n').count() >= self.lines {
            return Err(ErrorKind::BrokenPipe.into());
        }
        self.text.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        if let Some(more) = self.more.take() {
            more();
        }
        Ok(())
    }
}

#[test]
fn tail_follows_until_nobody_reads_any_more() {
    let fixture = Fixture::new();
    let journal = fixture.journal.clone();
    let note = |name: &str| Entry {
        task: None,
        exec: None,
        event: Event::AgentEvent {
            name: name.to_owned(),
            call_id: None,
            body: serde_json::Value::Null,
        },
    };
    let entries = [note("one"), note("two"), note("three")];
    let mut out = Head {
        lines: 4,
        text: Vec::new(),
        more: Some(Box::new(move || {
            for entry in entries {
                journal.append_blocking(entry).unwrap();
            }
        })),
    };
    let args = Program::try_parse_from(["audit", "tail", "-n", "2", "--follow", "--json"])
        .unwrap()
        .args;
    assert_eq!(run(args, fixture.state.path(), &mut out).unwrap(), 0);
    let text = String::from_utf8(out.text).unwrap();
    let seqs: Vec<u64> = text
        .lines()
        .map(|line| {
            serde_json::from_str::<serde_json::Value>(line).unwrap()["seq"]
                .as_u64()
                .unwrap()
        })
        .collect();
    assert_eq!(seqs, [4, 5, 6, 7]);
}

#[test]
fn schemas_are_shown_all_or_one() {
    let fixture = Fixture::new();
    let json = |words: &[&str]| serde_json::from_str::<serde_json::Value>(&fixture.answer(words)).unwrap();
    assert_eq!(json(&["schema"])["exec.finished"], json(&["schema", "exec.finished"]));
    let error = fixture.ask(&["schema", "exec"]).unwrap_err().to_string();
    assert!(error.contains("there are agent.event, "), "{error}");
}

#[test]
fn stats_sum_up_by_what_was_asked_for() {
    let fixture = Fixture::new();
    let json = |by: &str| -> serde_json::Value {
        serde_json::from_str(&fixture.answer(&["stats", "--by", by, "--json"])).unwrap()
    };
    let one = |by: &str, key: &str| -> serde_json::Value {
        let rows = json(by);
        assert_eq!(rows.as_array().unwrap().len(), 1, "{by}: {rows}");
        assert_eq!(rows[0]["key"], key);
        rows[0].clone()
    };
    let echo = one("executable", "echo");
    assert_eq!(
        (&echo["execs"], &echo["failed"], &echo["cpu_seconds"]),
        (&1.into(), &1.into(), &0.75.into())
    );
    let host = one("host", "pastebin.example");
    assert_eq!(
        (&host["connections"], &host["connections_denied"]),
        (&1.into(), &1.into())
    );
    assert_eq!(one("user", "unknown")["execs"], 1);
    assert_eq!(one("image", "unknown")["execs"], 1);
    assert_eq!(json("rule").as_array().unwrap().len(), 2);
    assert_eq!(
        one("day", &jiff::Timestamp::now().strftime("%Y-%m-%d").to_string())["execs"],
        1
    );
    let table = fixture.answer(&["stats", "--by", "executable"]);
    assert!(
        table.lines().nth(1).unwrap().trim_start().starts_with("echo"),
        "{table}"
    );
}

#[test]
fn triage_names_what_needs_a_person_and_the_records() {
    let fixture = Fixture::new();
    let text = fixture.answer(&["triage", &fixture.task.to_string(), "--rules-only"]);
    assert_eq!(
        text,
        "needs a person, by 4 records\n\
         \x20 needs a person  a connection to pastebin.example was denied  (records 4)\n\
         \x20 benign error    echo ended as oom_killed  (records 5)\n"
    );
    let text = fixture.answer(&["triage", &fixture.exec.to_string(), "--rules-only", "--json"]);
    let json: serde_json::Value = serde_json::from_str(&text).unwrap();
    assert_eq!(json["verdict"], "benign_error");
    assert!(fixture.ask(&["triage", "ffffffff", "--rules-only"]).is_err());
}

#[test]
fn report_is_json_or_a_page() {
    let fixture = Fixture::new();
    let task = fixture.task.to_string();
    let json: serde_json::Value = serde_json::from_str(&fixture.answer(&["report", &task])).unwrap();
    assert_eq!(json["totals"]["execs"], 1);
    let path = fixture.state.path().join("page.html");
    fixture.answer(&["report", &task, "--html", path.to_str().unwrap()]);
    let page = std::fs::read_to_string(path).unwrap();
    assert!(page.contains("<svg") && page.contains("oom_killed") && !page.contains('\u{1b}'));
}
