//! Questions of the gate as people meet them: at the terminal of `run`, and from another shell.

use std::fs::File;
use std::io::{BufRead as _, BufReader, Write as _};
use std::os::fd::OwnedFd;
use std::path::Path;
use std::process::{Child, Command, Stdio};

use serde_json::Value;

use crate::terminal::{terminal, until};
use crate::told;

fn call(state: &Path, args: &[&str]) -> (i32, String, String) {
    crate::call(&state.join("state"), args)
}

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
        .env("BELLJAR_STATE", state.join("state"))
        .env("XDG_CONFIG_HOME", state.join("config"))
        .env_remove("BELLJAR_SESSION");
    command
}

/// A task whose one command needs an approval, and somebody who watches from elsewhere.
struct Asking {
    run: Option<Child>,
    watch: Child,
    changes: std::io::Lines<BufReader<std::process::ChildStdout>>,
}

impl Drop for Asking {
    fn drop(&mut self) {
        // The watcher waits for further tasks; the task is there still only where a test failed.
        for child in self.run.iter_mut().chain([&mut self.watch]) {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Asking {
    fn start(state: &Path, mut run: Command) -> Self {
        let mut watch = belljar(state, None, &["approvals", "watch", "--json"])
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let changes = BufReader::new(watch.stdout.take().unwrap()).lines();
        let run = run.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        Self {
            run: Some(run),
            watch,
            changes,
        }
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
    fn end(mut self) -> (i32, String, String) {
        told(self.run.take().unwrap().wait_with_output().unwrap())
    }
}

const ASK: [&str; 7] = [
    "run",
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
    // It waits for execs, so that it is still there to say that the question is closed.
    let mut asking = Asking::start(state.path(), belljar(state.path(), Some(&theirs), &ASK));
    wait_for_task(state.path());
    let exec = exec(state.path(), &["echo", "done"])
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
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
    let (code, out, err) = told(exec.wait_with_output().unwrap());
    assert_eq!((code, out.as_str()), (0, "done\n"));
    // Who waits is told for what, and how to answer.
    assert!(err.starts_with("belljar: waits for an approval: "), "{err}");
    assert!(err.contains(&format!("belljar approvals approve {id}")), "{err}");
    let via = answered(state.path())["approver"]["via"].clone();
    assert!(via.as_str().unwrap().starts_with("socket (uid "), "{via}");
    // Too late is said, with who was first.
    let (code, _, err) = person(state.path(), &["approvals", "deny", id]);
    assert_eq!(code, 125);
    assert!(err.contains("answered \"approve\" first"), "{err}");
    assert_eq!(call(state.path(), &["task", "stop", "work"]).0, 0);
    asking.end();
}

/// Until the task answers; how long that takes is not the test's.
fn wait_for_task(state: &Path) {
    while call(state, &["task", "show", "work"]).0 != 0 {
        std::thread::yield_now();
    }
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

/// A task that waits for execs, and somebody who watches.
struct Waiting {
    asking: Asking,
}

impl Waiting {
    fn start(state: &Path, args: &[&str]) -> Self {
        let all = [&["run", "--name", "work", "--approvals", "wait", "--json"], args].concat();
        let mut asking = Asking::start(state, belljar(state, None, &all));
        let mut line = String::new();
        BufReader::new(asking.run.as_mut().unwrap().stdout.as_mut().unwrap())
            .read_line(&mut line)
            .unwrap();
        assert!(line.contains("\"task\""), "{line}");
        Self { asking }
    }

    fn end(self, state: &Path) {
        assert_eq!(call(state, &["task", "stop", "work"]).0, 0);
        self.asking.end();
    }
}

fn exec(state: &Path, command: &[&str]) -> Command {
    belljar(state, None, &[&["exec", "work", "--"], command].concat())
}

#[test]
fn a_yes_as_a_rule_holds_at_once_and_for_later_tasks() {
    let state = tempfile::tempdir().unwrap();
    let mut task = Waiting::start(state.path(), &["--unmatched", "ask"]);
    let first = exec(state.path(), &["echo", "one"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let question = task.asking.question();
    let file = state.path().join("config/belljar/rules/approved.rules");
    assert_eq!(question["rule_file"], file.to_str().unwrap());
    let id = question["id"].as_str().unwrap();
    let (code, out, err) = person(state.path(), &["approvals", "approve", id, "--rule"]);
    assert_eq!((code, out.as_str()), (0, "approved as a rule\n"), "{err}");
    assert_eq!(told(first.wait_with_output().unwrap()).0, 0);
    let rules = std::fs::read_to_string(&file).unwrap();
    assert_eq!(rules, "prefix_rule(pattern=[\"echo\", \"one\"], decision=\"allow\")\n");
    // The same and what begins so runs now without a question, in this task and in the next.
    let again = told(exec(state.path(), &["echo", "one", "two"]).output().unwrap());
    assert_eq!((again.0, again.1.as_str()), (0, "one two\n"));
    task.end(state.path());
    let next = ["run", "-q", "--unmatched", "ask", "--", "echo", "one"];
    assert_eq!(told(belljar(state.path(), None, &next).output().unwrap()).0, 0);
    let (_, records, _) = call(state.path(), &["audit", "ls", "--kind", "rule.added", "--json"]);
    let added: Value = serde_json::from_str(records.lines().next().unwrap()).unwrap();
    assert_eq!(
        (&added["file"], &added["approver"]["kind"]),
        (&question["rule_file"], &"person".into())
    );
}

/// Probe APR-002 of the corpus: a yes is to the script that was there when the question was put.
#[test]
fn a_script_that_changes_while_somebody_is_asked_does_not_run() {
    let (state, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let script = work.path().join("x.sh");
    std::fs::write(&script, "echo good\n").unwrap();
    let root = format!("{}:/workspace", work.path().display());
    let mut task = Waiting::start(state.path(), &["--unmatched", "ask", "--write", &root]);
    let mut answered = |changed: bool| {
        let run = exec(state.path(), &["sh", "/workspace/x.sh"])
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .unwrap();
        let question = task.asking.question();
        let fact = question["facts"]
            .as_array()
            .unwrap()
            .iter()
            .find(|fact| fact["name"] == "file");
        let file = fact.unwrap()["value"].as_str().unwrap().to_owned();
        if changed {
            std::fs::write(&script, "echo evil\n").unwrap();
        }
        let (code, _, err) = person(
            state.path(),
            &["approvals", "approve", question["id"].as_str().unwrap()],
        );
        assert_eq!(code, 0, "{err}");
        assert_eq!(task.asking.change()["type"], "answered");
        (file, told(run.wait_with_output().unwrap()))
    };
    let (file, (code, out, err)) = answered(false);
    assert_eq!((code, out.as_str()), (0, "good\n"), "{err}");
    assert!(file.starts_with("/workspace/x.sh sha256:"), "{file}");
    let (_, (code, out, err)) = answered(true);
    assert_eq!((code, out.as_str()), (120, ""));
    assert!(
        err.contains("/workspace/x.sh was changed while somebody was asked about it"),
        "{err}"
    );
    let (_, records, _) = call(state.path(), &["audit", "ls", "--kind", "approval.asked", "--json"]);
    let asked: Value = serde_json::from_str(records.lines().next().unwrap()).unwrap();
    assert_eq!(asked["named_files"], serde_json::json!([file]));
    task.end(state.path());
}

#[test]
fn an_unknown_host_is_asked_about_at_the_same_desk() {
    let state = tempfile::tempdir().unwrap();
    let mut task = Waiting::start(state.path(), &["--network", "proxy"]);
    let fetch = |url| {
        let mut command = exec(state.path(), &["curl", "-s", url]);
        command.stdout(Stdio::piped()).stderr(Stdio::piped());
        command
    };
    // What the proxy said, and by which rule.
    let said = |output: std::process::Output| {
        let body: Value = serde_json::from_str(&told(output).1).unwrap();
        (body["rule"].clone(), body["reason"].as_str().unwrap().to_owned())
    };
    let first = fetch("http://nowhere.test/").spawn().unwrap();
    let question = task.asking.question();
    assert_eq!(question["about"], "network access to nowhere.test:80 (http)");
    assert!(question["exec"].is_string(), "{question}");
    let facts = question["facts"].as_array().unwrap();
    let wanted = facts.iter().find(|fact| fact["name"] == "wanted by").unwrap();
    assert_eq!(wanted["value"], "curl -s http://nowhere.test/");
    let id = question["id"].as_str().unwrap();
    let (code, _, err) = person(state.path(), &["approvals", "deny", id]);
    assert_eq!(code, 0, "{err}");
    let denied = said(first.wait_with_output().unwrap());
    assert!(
        denied.0 == "unknown" && denied.1.contains("a person said no"),
        "{denied:?}"
    );
    // The no holds on.
    assert_eq!(said(fetch("http://nowhere.test/").output().unwrap()), denied);
    let second = fetch("http://elsewhere.test/").spawn().unwrap();
    assert_eq!(task.asking.change()["type"], "answered");
    let question = task.asking.question();
    let id = question["id"].as_str().unwrap();
    let (code, out, err) = person(state.path(), &["approvals", "approve", id, "--rule"]);
    assert_eq!((code, out.as_str()), (0, "approved as a rule\n"), "{err}");
    // Allowed, and only then looked up: there is no such host. It is not asked about again.
    assert_eq!(said(second.wait_with_output().unwrap()).0, "resolve");
    assert_eq!(said(fetch("http://elsewhere.test/").output().unwrap()).0, "resolve");
    let rules = std::fs::read_to_string(state.path().join("config/belljar/rules/approved.rules")).unwrap();
    assert_eq!(
        rules,
        "network_rule(host=\"elsewhere.test\", protocol=\"http\", decision=\"allow\")\n"
    );
    task.end(state.path());
}

fn configure(state: &Path, text: &str) {
    let folder = state.join("config/belljar");
    std::fs::create_dir_all(&folder).unwrap();
    std::fs::write(folder.join("config.toml"), text).unwrap();
}

#[test]
fn a_program_may_review_in_a_persons_place() {
    let state = tempfile::tempdir().unwrap();
    let program = state.path().join("review");
    let script = "#!/bin/sh\ncase \"$(cat)\" in *'\"argv\":[\"echo\"'*) echo '{\"outcome\":\"allow\",\"risk_level\":\"low\"}' ;; \
                  *) echo '{\"outcome\":\"deny\",\"rationale\":\"only echo\"}' ;; esac\n";
    std::fs::write(&program, script).unwrap();
    std::fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    configure(
        state.path(),
        &format!(
            "[task.gate]\nunmatched = \"ask\"\nreviewer = \"auto_review\"\n[reviewer]\nby = \"command\"\ncommand = [{program:?}]\n"
        ),
    );
    let run = |command: &[&str]| {
        let args = [&["run", "--"], command].concat();
        told(belljar(state.path(), None, &args).output().unwrap())
    };
    let (code, out, err) = run(&["echo", "hello"]);
    assert_eq!((code, out.as_str()), (0, "hello\n"), "{err}");
    let answered = answered(state.path());
    assert_eq!(
        (&answered["approver"]["kind"], &answered["approver"]["name"]),
        (&"reviewer".into(), &"review".into())
    );
    assert_eq!(answered["opinion"]["risk_level"], "low");
    let (code, _, err) = run(&["true"]);
    assert_eq!(code, 120);
    assert!(err.contains("the reviewer said no: only echo"), "{err}");
}

#[test]
fn auto_review_without_a_reviewer_starts_nothing() {
    let state = tempfile::tempdir().unwrap();
    configure(state.path(), "[task.gate]\nreviewer = \"auto_review\"\n");
    let (code, _, err) = told(belljar(state.path(), None, &["run", "--", "true"]).output().unwrap());
    assert_eq!(code, 125);
    assert!(err.contains("no [reviewer] is configured"), "{err}");
}

/// Plays a model: answers every request with this content.
fn model(content: &'static str) -> String {
    use std::io::Read as _;
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/v1", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut stream = stream.unwrap();
            let mut seen = Vec::new();
            let mut buffer = [0; 4096];
            let whole = |seen: &[u8]| {
                let text = String::from_utf8_lossy(seen).to_ascii_lowercase();
                let Some((head, body)) = text.split_once("\r\n\r\n") else {
                    return false;
                };
                let length = head.split("content-length: ").nth(1).unwrap().lines().next().unwrap();
                body.len() >= length.parse::<usize>().unwrap()
            };
            while !whole(&seen) {
                let n = stream.read(&mut buffer).unwrap();
                assert!(n > 0, "the request ended early");
                seen.extend_from_slice(&buffer[..n]);
            }
            let body = serde_json::json!({"choices": [{"finish_reason": "stop", "message": {"content": content}}]})
                .to_string();
            let answer = format!(
                "HTTP/1.1 200 OK\r\ncontent-type: application/json\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
                body.len()
            );
            stream.write_all(answer.as_bytes()).unwrap();
        }
    });
    url
}

#[test]
fn a_model_reviews_over_http_and_a_rule_for_people_is_not_its_to_answer() {
    let state = tempfile::tempdir().unwrap();
    let url = model(
        r#"{"risk_level":"medium","user_authorization":"high","outcome":"allow","rationale":"the user asked for it"}"#,
    );
    configure(
        state.path(),
        &format!(
            "[task.gate]\nunmatched = \"ask\"\nreviewer = \"auto_review\"\n[reviewer]\nby = \"model\"\nendpoint = \"{url}\"\nmodel = \"judge-1\"\n"
        ),
    );
    let (code, out, err) = told(
        belljar(
            state.path(),
            None,
            &["run", "--purpose", "say hello", "--", "echo", "hello"],
        )
        .output()
        .unwrap(),
    );
    assert_eq!((code, out.as_str()), (0, "hello\n"), "{err}");
    let answered = answered(state.path());
    assert_eq!(
        (&answered["approver"]["name"], &answered["approver"]["via"]),
        (&"judge-1".into(), &url.as_str().into())
    );
    assert_eq!(answered["opinion"]["user_authorization"], "high");

    let rules = tempfile::NamedTempFile::new().unwrap();
    std::fs::write(
        &rules,
        "prefix_rule(pattern = [\"echo\"], decision = \"prompt\", reviewer = \"user\")\n",
    )
    .unwrap();
    let args = ["run", "--rules", rules.path().to_str().unwrap(), "--", "echo", "hello"];
    let (code, _, err) = told(belljar(state.path(), None, &args).output().unwrap());
    assert_eq!(code, 120);
    assert!(err.contains("nobody can be asked"), "{err}");
}
