//! Questions of the gate as people meet them: at the terminal of `run`, and from another shell.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::terminal::{terminal, until};
use crate::{call, told};

/// belljar in a session of its own: at this terminal, or at none, wherever the tests run.
fn belljar(state: &Path, at: Option<&OwnedFd>, args: &[&str]) -> Command {
    let mut command = Command::new("setsid");
    command.arg("--wait");
    match at {
        Some(terminal) => command.arg("--ctty").stdin(terminal.try_clone().unwrap()),
        None => command.stdin(Stdio::null()),
    };
    command
        .arg(env!("CARGO_BIN_EXE_belljar"))
        .args(args)
        .env("BELLJAR_STATE", state)
        .env_remove("BELLJAR_SESSION");
    command
}

/// A task whose one command needs an approval, and somebody who watches from elsewhere.
struct Asking {
    run: Child,
    watch: Child,
    changes: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Asking {
    fn start(state: &Path, mut run: Command) -> Self {
        let mut watch = belljar(state, None, &["approvals", "watch", "--json"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let changes = BufReader::new(watch.stdout.take().unwrap()).lines();
        let run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Self { run, watch, changes }
    }

    fn change(&mut self) -> Value {
        serde_json::from_str(&self.changes.next().unwrap().unwrap()).unwrap()
    }

    fn question(&mut self) -> Value {
        let change = self.change();
        assert_eq!(change["type"], "asked");
        change["approval"].clone()
    }

    /// The exit code, stdout and stderr of the task.
    fn end(self) -> (i32, String, String) {
        let Self {
            run,
            mut watch,
            changes,
        } = self;
        let end = told(run.wait_with_output().unwrap());
        // It would wait for further tasks; without a reader it ends.
        drop(changes);
        let _ = watch.kill();
        let _ = watch.wait();
        end
    }
}

const ASK: [&str; 8] = [
    "run",
    "-q",
    "--unmatched",
    "ask",
    "--name",
    "work",
    "--purpose",
    "see it done",
];

fn answered(state: &Path) -> Value {
    let (code, out, err) = call(state, &["audit", "ls", "--kind", "approval.answered", "--json"]);
    assert_eq!(code, 0, "{err}");
    serde_json::from_str(out.lines().last().unwrap()).unwrap()
}

fn person(state: &Path, args: &[&str]) -> (i32, String, String) {
    let (_ours, theirs): (File, OwnedFd) = terminal();
    told(belljar(state, Some(&theirs), args).output().unwrap())
}

#[test]
fn a_question_is_answered_at_the_terminal() {
    let state = tempfile::tempdir().unwrap();
    let (mut ours, theirs) = terminal();
    let args = [&ASK[..], &["--", "sh", "-c", "echo done; echo '\u{202e}' >/dev/null"]].concat();
    let run = belljar(state.path(), Some(&theirs), &args)
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let shown = until(&mut ours, "allow?");
    assert!(
        shown.contains("task work asks for") && shown.contains("see it done"),
        "{shown}"
    );
    assert!(
        shown.contains("\\u{202e}"),
        "what turns the text around is written out: {shown}"
    );
    ours.write_all(b"y\n").unwrap();
    let (code, out, _) = told(run.wait_with_output().unwrap());
    assert_eq!((code, out.as_str()), (0, "done\n"));
    let answered = answered(state.path());
    assert_eq!(answered["approver"]["kind"], "person");
    assert_eq!(answered["approver"]["via"], "terminal");
}

#[test]
fn a_question_at_the_terminal_can_be_answered_from_another_shell() {
    let state = tempfile::tempdir().unwrap();
    let (mut ours, theirs) = terminal();
    let args = [&ASK[..], &["--", "echo", "done"]].concat();
    let run = belljar(state.path(), Some(&theirs), &args);
    let mut asking = Asking::start(state.path(), run);
    let question = asking.question();
    until(&mut ours, "allow?");
    let id = question["id"].as_str().unwrap();
    let (code, out, err) = person(state.path(), &["approvals", "approve", id]);
    assert_eq!((code, out.as_str()), (0, "approved once\n"), "{err}");
    until(&mut ours, "answered elsewhere");
    let change = asking.change();
    assert_eq!(
        (&change["type"], &change["answer"]),
        (&"answered".into(), &"approve".into())
    );
    let (code, out, _) = asking.end();
    assert_eq!((code, out.as_str()), (0, "done\n"));
    let via = answered(state.path())["approver"]["via"].clone();
    assert!(via.as_str().unwrap().starts_with("socket (uid 0, pid "), "{via}");
    // Too late is said, with who was first.
    let (code, _, err) = person(state.path(), &["approvals", "deny", id]);
    assert_eq!(code, 125, "{err}");
}

#[test]
fn where_nobody_is_at_a_terminal_the_answer_is_no_unless_somebody_may_come() {
    let state = tempfile::tempdir().unwrap();
    let args = [&ASK[..], &["--", "true"]].concat();
    let (code, _, err) = told(belljar(state.path(), None, &args).output().unwrap());
    assert_eq!(code, 120);
    assert!(err.contains("nobody can be asked (there is no terminal)"), "{err}");

    let args = [&ASK[..], &["--approvals", "wait", "--", "true"]].concat();
    let mut asking = Asking::start(state.path(), belljar(state.path(), None, &args));
    let question = asking.question();
    assert_eq!(
        (&question["about"], &question["task_name"]),
        (&"true".into(), &"work".into())
    );
    let id = question["id"].as_str().unwrap();
    let (_, listed, _) = call(state.path(), &["approvals", "ls", "--json"]);
    let listed: Value = serde_json::from_str(&listed).unwrap();
    assert_eq!(listed[0]["id"], id);
    // A program may say no, but yes only where it was told that it may.
    let (code, _, err) = told(
        belljar(state.path(), None, &["approvals", "approve", id])
            .output()
            .unwrap(),
    );
    assert_eq!(code, 125);
    assert!(err.contains("gate.approvers"), "{err}");
    let denied = belljar(
        state.path(),
        None,
        &["approvals", "deny", id, "--reason", "not now", "--json"],
    );
    let (code, out, _) = told({ denied }.output().unwrap());
    assert_eq!(code, 0);
    assert_eq!(serde_json::from_str::<Value>(&out).unwrap()["scope"], "once");
    let (code, _, err) = asking.end();
    assert_eq!(code, 120);
    assert!(err.contains("the harness said no: not now"), "{err}");
}

#[test]
fn an_answer_for_the_session_holds_for_the_next_task_until_it_is_forgotten() {
    let state = tempfile::tempdir().unwrap();
    let args = [&ASK[..], &["--approvals", "wait", "--", "true"]].concat();
    let mut asking = Asking::start(state.path(), belljar(state.path(), None, &args));
    let question = asking.question();
    let id = question["id"].as_str().unwrap();
    let (code, out, _) = person(state.path(), &["approvals", "approve", id, "--session"]);
    assert_eq!((code, out.as_str()), (0, "approved for the session\n"));
    assert_eq!(asking.end().0, 0);

    let args = [&ASK[..], &["--", "true"]].concat();
    let again = || told(belljar(state.path(), None, &args).output().unwrap());
    assert_eq!(again().0, 0);
    // Another session is asked anew.
    let other = [&ASK[..], &["--session", "other", "--", "true"]].concat();
    assert_eq!(told(belljar(state.path(), None, &other).output().unwrap()).0, 120);
    let (_, kept, _) = call(state.path(), &["approvals", "ls", "--session", "--json"]);
    let kept: Value = serde_json::from_str(&kept).unwrap();
    assert_eq!(
        (&kept[0]["about"], &kept[0]["answer"]),
        (&"true".into(), &"approve".into())
    );
    assert_eq!(call(state.path(), &["approvals", "forget", id]).0, 0);
    assert_eq!(again().0, 120);
}
