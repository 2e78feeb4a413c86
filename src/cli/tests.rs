use anyhow::Context as _;
use clap::CommandFactory as _;

use super::*;

#[test]
fn the_command_line_holds_together() {
    Cli::command().debug_assert();
}

#[test]
fn an_error_is_shown_as_one_chain_with_a_hint() {
    let error = crate::api::client::ClientError::NoSuchTask {
        name: "x\u{1b}".to_owned(),
    };
    assert_eq!(
        shown_error(&error.into()),
        "belljar: no live task is called or begins with \"x\\u{1b}\"\n  hint: belljar task ls lists the live tasks of this user"
    );
    let error = Err::<(), _>(std::io::Error::other("disk full"))
        .context("cannot write")
        .unwrap_err();
    assert_eq!(shown_error(&error), "belljar: cannot write: disk full");
}

#[test]
fn a_refusal_says_why_by_which_rule_and_how_to_go_on() {
    let refused = Refused {
        reason: "pushing is for people".to_owned(),
        how_to_ask: "ask the person who runs the task".to_owned(),
        rules: vec![crate::policy::RuleMatch {
            id: "prefix:1".to_owned(),
            file: "agent.rules".to_owned(),
            line: 4,
            decision: crate::policy::Decision::Forbidden,
            justification: None,
            person_only: false,
        }],
        approver: None,
    };
    assert_eq!(
        refusal(&refused),
        "belljar: refused: pushing is for people\n  rule: prefix:1 (agent.rules:4)\n  to go on: ask the person who runs the task\n"
    );
}
