use std::io::Write;
use std::process::Stdio;

/// `rules check` of a user whose configuration is `config`: exit code, stdout, stderr.
fn check(config: &str, args: &[&str], input: &str) -> (i32, String, String) {
    let home = tempfile::tempdir().unwrap();
    let folder = home.path().join("belljar");
    std::fs::create_dir(&folder).unwrap();
    std::fs::write(folder.join("config.toml"), config).unwrap();
    std::fs::write(home.path().join("own.rules"), "prefix_rule(pattern = [\"ls\"])\n").unwrap();
    let mut child = crate::belljar(home.path())
        .args(["rules", "check", "--json"])
        .args(args)
        .env("XDG_CONFIG_HOME", home.path())
        .current_dir(home.path())
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    // It may have refused to start, and read nothing.
    let _ = child.stdin.take().unwrap().write_all(input.as_bytes());
    crate::told(child.wait_with_output().unwrap())
}

fn answers(out: &str) -> Vec<serde_json::Value> {
    out.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn a_check_answers_as_a_run_would_under_this_configuration() {
    let config = "[task.gate]\nrules = [\"builtin:dangerous\"]\nunmatched = \"ask\"\n";
    let (code, out, err) = check(
        config,
        &["--rules", "own.rules", "--", "bash", "-c", "ls; rm -rf x"],
        "",
    );
    assert_eq!((code, err.as_str()), (0, ""));
    let answer = &answers(&out)[0];
    assert_eq!(
        (&answer["judgement"], &answer["matched"]),
        (&"ask".into(), &"prompt".into())
    );
    let ids: Vec<&str> = answer["rules"]
        .as_array()
        .unwrap()
        .iter()
        .map(|rule| rule["id"].as_str().unwrap())
        .collect();
    assert!(ids.contains(&"dangerous:rm-force"), "{ids:?}");
    let (_, out, _) = check(config, &["--", "cat", "x"], "");
    assert_eq!(answers(&out)[0]["judgement"], "ask");
    let (_, out, _) = check("", &["--", "cat", "x"], "");
    assert_eq!(answers(&out)[0]["judgement"], "allow");
}

#[test]
fn a_configuration_that_no_task_starts_under_answers_nothing() {
    let (code, out, err) = check("[task.gate]\nrules = [\"builtin:nothing\"]\n", &["--", "ls"], "");
    assert_eq!((code, out.as_str()), (125, ""));
    assert!(
        err.contains("config.toml:2:10: gate.rules: there are no built-in rules \"nothing\""),
        "{err}"
    );
}

#[test]
fn a_batch_answers_each_line_whatever_stands_in_it() {
    let long = format!("{{\"id\": 1, \"argv\": [\"{}\"]}}\n", "x".repeat(9 << 20));
    let input = long
        + "nonsense\n{\"id\": 2, \"argv\": \"ls\"}\n{\"id\": 3, \"argv\": [\"ls\"], \"other\": 1}\n"
        + "{\"id\": 4, \"argv\": [\"rm\", \"x\"], \"rules\": [\"prefix_rule(\"]}\n"
        + "{\"id\": {\"a\": 5}, \"argv\": [\"rm\", \"x\"], \"rules\": [\"prefix_rule(pattern=['rm'], decision='forbidden')\"]}";
    let (code, out, err) = check("", &["--batch", "-"], &input);
    assert_eq!((code, err.as_str()), (0, ""));
    let answers = answers(&out);
    let ids: Vec<String> = answers.iter().map(|answer| answer["id"].to_string()).collect();
    assert_eq!(ids, ["null", "null", "2", "3", "4", "{\"a\":5}"]);
    assert!(answers[..5].iter().all(|answer| answer["error"].is_string()), "{out}");
    assert_eq!(answers[5]["judgement"], "deny");
}
