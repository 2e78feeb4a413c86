use std::io::{BufRead as _, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};

use serde_json::Value;

use crate::{belljar, call, told};

/// A task without a command, in a process of its own.
fn waiting(state: &Path, name: &str) -> Child {
    let mut child = belljar(state)
        .args(["run", "--name", name])
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut talk = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    talk.read_line(&mut line).unwrap();
    assert!(line.contains("waits for execs"), "{line}");
    child.stderr = Some(talk.into_inner());
    child
}

#[test]
fn execs_come_from_outside_and_stop_ends_the_task() {
    let state = tempfile::tempdir().unwrap();
    let task = waiting(state.path(), "work");
    let exec = |args: &[&str]| call(state.path(), &[&["exec", "work"], args].concat());
    assert_eq!(
        exec(&["--", "sh", "-c", "echo hi; exit 4"]),
        (4, "hi\n".to_owned(), String::new())
    );
    assert_eq!(
        exec(&["--env", "A=b", "--cwd", "/tmp", "--", "sh", "-c", "echo $A $PWD"]).1,
        "b /tmp\n"
    );
    // The sandbox is the same for all of them.
    assert_eq!(exec(&["--", "sh", "-c", "echo kept > /tmp/a"]).0, 0);
    assert_eq!(exec(&["--", "cat", "/tmp/a"]).1, "kept\n");
    assert_eq!(exec(&["--timeout", "200ms", "--", "sleep", "60"]).0, 124);

    let (_, listed, _) = call(state.path(), &["task", "ls", "--json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(
        (&listed[0]["name"], listed[0]["execs"]["finished"].as_u64()),
        (&"work".into(), Some(5))
    );
    let (code, stopped, _) = call(state.path(), &["task", "stop", "work", "--json"]);
    let summary: Value = serde_json::from_str(&stopped).unwrap();
    assert_eq!((code, summary["execs"].as_array().unwrap().len()), (0, 5));
    assert_eq!(told(task.wait_with_output().unwrap()).0, 0);
    assert_eq!(call(state.path(), &["task", "ls", "--json"]).1, "[]\n");
}

#[test]
fn a_command_whose_caller_is_gone_can_be_attached_to_again() {
    let state = tempfile::tempdir().unwrap();
    let task = waiting(state.path(), "work");
    let script = "echo one; while [ ! -e /tmp/go ]; do sleep 0.01; done; echo two; exit 5";
    let mut caller = belljar(state.path())
        .args(["exec", "work", "--", "sh", "-c", script])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = String::new();
    BufReader::new(caller.stdout.take().unwrap())
        .read_line(&mut line)
        .unwrap();
    assert_eq!(line, "one\n");
    caller.kill().unwrap();
    caller.wait().unwrap();

    let (_, shown, _) = call(state.path(), &["task", "show", "work", "--json"]);
    let shown: Value = serde_json::from_str(&shown).unwrap();
    assert_eq!(shown["execs"][0]["state"], "running", "{shown}");
    let id = shown["execs"][0]["id"].as_str().unwrap();
    let again = belljar(state.path())
        .args(["attach", &id[id.len() - 12..]])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    assert_eq!(call(state.path(), &["exec", "work", "--", "touch", "/tmp/go"]).0, 0);
    assert_eq!(
        told(again.wait_with_output().unwrap()),
        (5, "one\ntwo\n".to_owned(), String::new())
    );
    // What is over can be read again while its task lives.
    assert_eq!(
        call(state.path(), &["attach", id]),
        (5, "one\ntwo\n".to_owned(), String::new())
    );
    assert_eq!(call(state.path(), &["attach", "none"]).0, 125);
    call(state.path(), &["task", "stop", "work"]);
    task.wait_with_output().unwrap();
}

#[test]
fn a_task_that_is_not_there_is_named_with_a_hint() {
    let state = tempfile::tempdir().unwrap();
    let (code, out, err) = call(state.path(), &["exec", "gone", "--", "true"]);
    assert_eq!((code, out.as_str()), (125, ""));
    let expected = "belljar: no live task is called or begins with \"gone\"\n  hint: belljar task ls lists the live tasks of this user\n";
    assert_eq!(err, expected);
}
