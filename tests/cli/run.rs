use std::io::Write as _;
use std::process::Stdio;

use serde_json::Value;

use crate::{belljar, call, told};

#[test]
fn the_output_and_the_exit_code_are_the_commands_own() {
    let state = tempfile::tempdir().unwrap();
    let told = call(
        state.path(),
        &["run", "-q", "--", "sh", "-c", "echo out; echo err >&2; exit 7"],
    );
    assert_eq!(told, (7, "out\n".to_owned(), "err\n".to_owned()));
}

#[test]
fn stdin_reaches_the_command_byte_for_byte() {
    let state = tempfile::tempdir().unwrap();
    let sent: Vec<u8> = (0..2_000_000u32)
        .map(|i| (i.wrapping_mul(2_654_435_761) >> 11) as u8)
        .collect();
    let mut child = belljar(state.path())
        .args(["run", "-q", "-i", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    let copy = sent.clone();
    let writer = std::thread::spawn(move || stdin.write_all(&copy).unwrap());
    let output = child.wait_with_output().unwrap();
    writer.join().unwrap();
    assert!(
        output.stdout == sent,
        "{} bytes of {} came back",
        output.stdout.len(),
        sent.len()
    );
}

#[test]
fn without_interactive_the_command_reads_nothing() {
    let state = tempfile::tempdir().unwrap();
    let mut child = belljar(state.path())
        .args(["run", "-q", "--", "cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let stdin = child.stdin.take();
    let output = child.wait_with_output().unwrap();
    drop(stdin);
    assert_eq!((output.status.code(), output.stdout), (Some(0), vec![]));
}

#[test]
fn each_end_has_its_exit_code() {
    let state = tempfile::tempdir().unwrap();
    let code = |args: &[&str]| call(state.path(), &[&["run", "-q"], args].concat()).0;
    assert_eq!(code(&["--", "no-such-program"]), 127);
    assert_eq!(code(&["--", "/etc/passwd"]), 126);
    assert_eq!(code(&["--", "sh", "-c", "kill -TERM $$"]), 143);
    assert_eq!(code(&["--exec-timeout", "200ms", "--", "sleep", "60"]), 124);
    assert_eq!(code(&["--image", "/no/such/image", "--", "true"]), 125);
    assert_eq!(code(&["--no-such-flag", "--", "true"]), 125);
}

#[test]
fn a_refused_command_says_which_rule_and_how_to_go_on() {
    let state = tempfile::tempdir().unwrap();
    let rules = state.path().join("agent.rules");
    let text = "prefix_rule(pattern = [\"git\", \"push\"], decision = \"forbidden\", justification = \"for people\")\n";
    std::fs::write(&rules, text).unwrap();
    // Rules may not lie where belljar keeps its own state.
    let own = state.path().join("state");
    let (code, out, err) = call(&own, &["run", "--rules", rules.to_str().unwrap(), "--", "git", "push"]);
    assert_eq!((code, out.as_str()), (120, ""));
    for part in [
        "belljar: refused: ",
        "agent.rules",
        "for people",
        "to go on: ",
        "refused  git push",
    ] {
        assert!(err.contains(part), "{part:?} is not in {err}");
    }
}

#[test]
fn all_faults_are_told_at_once_and_nothing_starts() {
    let state = tempfile::tempdir().unwrap();
    let (code, out, err) = call(
        state.path(),
        &[
            "run",
            "--memory",
            "much",
            "--cpus",
            "none",
            "--write",
            "/no/such/folder",
            "--",
            "true",
        ],
    );
    assert_eq!((code, out.as_str()), (125, ""));
    for part in ["--memory", "--cpus"] {
        assert!(err.contains(part), "{part:?} is not in {err}");
    }
    assert!(!state.path().join("tasks").exists());
}

#[test]
fn json_is_events_a_line_and_the_summary_last() {
    let state = tempfile::tempdir().unwrap();
    let (code, out, err) = call(state.path(), &["run", "--json", "--", "sh", "-c", "printf hi; exit 3"]);
    assert_eq!((code, err.as_str()), (3, ""));
    let lines: Vec<Value> = out.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
    let types: Vec<&str> = lines.iter().map(|line| line["type"].as_str().unwrap()).collect();
    assert_eq!(types, ["judged", "started", "output", "ended", "summary"]);
    assert_eq!(
        (lines[2]["data"].as_str(), lines[2]["stream"].as_str()),
        (Some("aGk="), Some("stdout"))
    );
    assert_eq!(lines[4]["execs"][0]["end"]["exit_code"], 3);
}

#[test]
fn the_closing_table_is_talk_and_quiet_silences_it() {
    let state = tempfile::tempdir().unwrap();
    let (_, out, err) = call(state.path(), &["run", "--", "echo", "hi"]);
    assert_eq!(out, "hi\n");
    assert!(
        err.contains("COMMAND") && err.contains("echo hi") && err.contains("exited 0"),
        "{err}"
    );
    assert_eq!(call(state.path(), &["run", "-q", "--", "echo", "hi"]).2, "");
}

#[test]
fn a_signal_to_belljar_reaches_the_command() {
    let state = tempfile::tempdir().unwrap();
    let mut child = belljar(state.path())
        .args([
            "run",
            "-q",
            "--",
            "sh",
            "-c",
            "trap 'echo caught; exit 9' USR1; echo ready; while :; do sleep 0.05; done",
        ])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut lines = std::io::BufRead::lines(std::io::BufReader::new(child.stdout.take().unwrap()));
    assert_eq!(lines.next().unwrap().unwrap(), "ready");
    let id = nix::unistd::Pid::from_raw(child.id() as i32);
    nix::sys::signal::kill(id, nix::sys::signal::Signal::SIGUSR1).unwrap();
    assert_eq!(lines.next().unwrap().unwrap(), "caught");
    assert_eq!(child.wait().unwrap().code(), Some(9));
}

#[test]
fn a_reader_that_goes_away_ends_the_command() {
    let state = tempfile::tempdir().unwrap();
    let mut child = belljar(state.path())
        .args(["run", "-q", "--", "yes"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdout = child.stdout.take().unwrap();
    std::io::Read::read_exact(&mut stdout, &mut [0; 4]).unwrap();
    drop(stdout);
    assert_eq!(child.wait().unwrap().code(), Some(137));
}

#[test]
fn stdio_ends_the_task_with_its_input() {
    let state = tempfile::tempdir().unwrap();
    let mut child = belljar(state.path())
        .args(["run", "--stdio"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = child.stdin.take().unwrap();
    stdin
        .write_all(b"{\"id\":1,\"method\":\"exec.start\",\"params\":{\"argv\":[\"sleep\",\"600\"]}}\n")
        .unwrap();
    drop(stdin);
    let (code, out, _) = told(child.wait_with_output().unwrap());
    let last: Value = serde_json::from_str(out.lines().last().unwrap()).unwrap();
    assert_eq!((code, last["method"].as_str()), (0, Some("task.ended")));
    assert_eq!(last["params"]["execs"].as_array().unwrap().len(), 1);
}

/// As in a container, whose root is an overlay: the ids of its files cannot be mapped.
#[test]
fn programs_on_an_overlay_run_and_are_nobodys_to_change() {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "this test needs root");
        eprintln!("skipped: mounting a file system needs root");
        return;
    }
    let place = tempfile::tempdir().unwrap();
    let script = "mount -t overlay none -o lowerdir=\"$EMPTY\":/usr /usr && exec \"$@\"";
    let output = std::process::Command::new("unshare")
        .args(["-m", "sh", "-c", script, "sh", env!("CARGO_BIN_EXE_belljar")])
        .args(["run", "--quiet", "--network", "none", "--"])
        .args(["sh", "-c", "touch /usr/bin/x 2> /dev/null || stat -c %U /usr/bin/sh"])
        .env("EMPTY", place.path())
        .env("BELLJAR_STATE", place.path().join("state"))
        .stdin(Stdio::null())
        .output()
        .unwrap();
    let (code, out, err) = told(output);
    assert_eq!((code, out.as_str()), (0, "nobody\n"), "{err}");
}
