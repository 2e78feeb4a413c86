use std::time::Duration;

use clap::Parser as _;

use super::super::answers::judge;
use super::super::tests::{Fixture, Program};
use super::super::{AuditCommand, FOLDER};
use super::*;
use crate::approval::reviewer::testing::server::{Play, Server, chat};
use crate::approval::reviewer::{Api, ByModel};
use crate::audit::record::{Entry, Event};

/// The settings of a `[reviewer]` that is the server.
fn reviewer(server: &Server) -> Settings {
    Settings {
        by: By::Model(ByModel {
            endpoint: server.url.clone(),
            api: Api::Chat,
            model: "judge-1".to_owned(),
            key: None,
            policy: None,
        }),
        time: Duration::from_secs(60),
    }
}

fn answer(verdict: &str, records: &[Seq]) -> Play {
    chat(&json!({"verdict": verdict, "rationale": "be\u{1b}cause", "records": records}).to_string())
}

/// What `triage` answers about this, with a `[reviewer]` or without one.
fn triage(fixture: &Fixture, about: &str, more: &[&str], reviewer: Option<&Settings>) -> String {
    let words = ["audit", "triage", about].into_iter().chain(more.iter().copied());
    let AuditCommand::Triage(args) = Program::try_parse_from(words).unwrap().args.command else {
        panic!("it is no triage");
    };
    let mut out = Vec::new();
    let folder = fixture.state.path().join(FOLDER);
    let code = tokio::task::block_in_place(|| judge(&args, Some(reviewer), &folder, &mut out)).unwrap();
    assert_eq!(code, 0);
    String::from_utf8(out).unwrap()
}

fn judged(fixture: &Fixture, about: &str, reviewer: Option<&Settings>) -> Value {
    serde_json::from_str(&triage(fixture, about, &["--json"], reviewer)).unwrap()
}

/// The document that the model was sent, which stands on a line of its own.
fn document(server: &Server) -> Value {
    let input = server.seen()[0].body["messages"][1]["content"]
        .as_str()
        .unwrap()
        .to_owned();
    let lines: Vec<&str> = input.lines().collect();
    assert_eq!(lines.len(), 5, "nothing in the record made a line of its own: {input}");
    assert!(input.len() < 64 << 10, "{} bytes", input.len());
    serde_json::from_str(lines[2]).unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_makes_a_verdict_more_urgent_and_names_its_records() {
    let fixture = Fixture::new();
    let server = Server::start([answer("needs_person", &[5]), answer("needs_person", &[3, 5])]).await;
    let settings = reviewer(&server);
    let json = judged(&fixture, &fixture.exec.to_string(), Some(&settings));
    assert_eq!(
        (&json["verdict"], &json["model"]["outcome"]),
        (&json!("needs_person"), &json!("answered"))
    );
    assert_eq!(json["model"]["records"], json!([5]));
    assert_eq!(
        json["findings"][0]["verdict"], "benign_error",
        "what the rules found is still there"
    );
    let text = triage(&fixture, &fixture.exec.to_string(), &[], Some(&settings));
    assert!(text.starts_with("needs a person, by 3 records\n"), "{text}");
    assert!(
        text.ends_with("judge-1 says needs a person: be\\u{1b}cause  (records 3, 5)\n"),
        "{text}"
    );
    let body = server.seen()[0].body.clone();
    assert_eq!(body["response_format"]["json_schema"]["strict"], true);
    assert_eq!(body["messages"][0]["content"], INSTRUCTIONS);
    let document = document(&server);
    assert_eq!(document["verdict_of_the_rules"], "benign_error");
    assert_eq!(document["records"][0]["argv"][1], "\u{1b}[2J\nfake line\u{202e}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_model_never_makes_a_verdict_less_urgent() {
    let fixture = Fixture::new();
    let server = Server::start([answer("expected", &[]), answer("benign_error", &[4])]).await;
    for said in ["expected", "benign_error"] {
        let json = judged(&fixture, &fixture.task.to_string(), Some(&reviewer(&server)));
        assert_eq!(
            (&json["verdict"], &json["model"]["verdict"]),
            (&json!("needs_person"), &json!(said))
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn whatever_is_no_answer_leaves_the_rules_and_says_so() {
    let fixture = Fixture::new();
    let good = json!({"verdict": "needs_person", "rationale": "x", "records": [5]}).to_string();
    for (play, failure) in [
        (Play::Status(401), "rejected"),
        (Play::Text("<html>".to_owned()), "malformed"),
        (chat("needs_person"), "malformed"),
        (chat(&format!("Sure! {good}")), "malformed"),
        (chat(&good.replace("needs_person", "fine")), "malformed"),
        (chat(&good.replace("\"x\"", "\"x\",\"risk\":1")), "malformed"),
        (answer("needs_person", &[999]), "malformed"),
        (Play::Stalls, "timed_out"),
        (Play::Floods, "too_large"),
    ] {
        let server = Server::start([play.clone()]).await;
        let mut settings = reviewer(&server);
        if matches!(play, Play::Stalls) {
            settings.time = Duration::from_millis(200);
        }
        let text = triage(&fixture, &fixture.exec.to_string(), &[], Some(&settings));
        assert!(text.starts_with("benign error, by 3 records\n"), "{play:?}: {text}");
        let says = format!("by rules alone: judge-1 did not answer ({failure}: ");
        assert!(text.contains(&says), "{play:?}: {text}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn where_no_model_is_named_the_rules_stand_and_it_is_said() {
    let fixture = Fixture::new();
    let text = triage(&fixture, &fixture.exec.to_string(), &[], None);
    assert!(
        text.ends_with("\nby rules alone: [reviewer] names no model\n"),
        "{text}"
    );
    let program = Settings {
        by: By::Program(vec!["/bin/false".to_owned()]),
        time: Duration::from_secs(1),
    };
    assert_eq!(
        judged(&fixture, &fixture.exec.to_string(), Some(&program))["model"],
        json!({"outcome": "no_model"})
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_does_not_fit_gives_way_to_what_the_findings_rest_on() {
    let fixture = Fixture::new();
    for number in 0..100 {
        let event = Event::AgentEvent {
            name: format!("event-{number}"),
            call_id: None,
            body: json!("y".repeat(5000)),
        };
        let entry = Entry {
            task: Some(fixture.task),
            exec: None,
            event,
        };
        fixture.journal.append_blocking(entry).unwrap();
    }
    let server = Server::start([answer("needs_person", &[4])]).await;
    let json = judged(&fixture, &fixture.task.to_string(), Some(&reviewer(&server)));
    assert_eq!(json["model"]["outcome"], "answered", "{json}");
    let document = document(&server);
    assert_eq!(document["records_in_all"], 104);
    let records = document["records"].as_array().unwrap();
    let seqs: Vec<u64> = records.iter().map(|record| record["seq"].as_u64().unwrap()).collect();
    assert_eq!(seqs[..4], [4, 5, 105, 104]);
    assert!(seqs.len() < 30, "{seqs:?}");
}
