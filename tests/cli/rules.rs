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
    let lines: Vec<u64> = answers[..5]
        .iter()
        .map(|answer| answer["line"].as_u64().unwrap())
        .collect();
    assert_eq!(lines, [1, 2, 3, 4, 5]);
    assert_eq!(answers[5]["rules"][0]["justification"], serde_json::Value::Null);
    assert_eq!(answers[5]["judgement"], "deny");
}

/// Nobody can be asked here, so a run refuses what a check denies and what it would ask about, and starts all else.
#[test]
fn a_run_starts_what_a_check_allows_and_nothing_else() {
    const PIECES: &[&str] = &[
        "true",
        "echo a",
        "rm x",
        "git push",
        "$x",
        "echo b > f",
        "env rm x",
        "true | cat",
        "sh -c 'rm x'",
        "git status",
        "echo c; true",
        "cat < /dev/null",
    ];
    const JOINTS: &[&str] = &["; ", " && ", " | ", " || ", "\n"];
    let home = tempfile::tempdir().unwrap();
    let rules = home.path().join("own.rules");
    std::fs::write(
        &rules,
        "prefix_rule(pattern = [[\"true\", \"echo\", \"cat\", \"sh\"]])\n\
         prefix_rule(pattern = [\"rm\"], decision = \"forbidden\")\n\
         prefix_rule(pattern = [\"git\", \"push\"], decision = \"prompt\")\n",
    )
    .unwrap();
    // Knuth's generator: the same scripts each time.
    let mut seed = 4_u64;
    let mut random = |below: usize| {
        seed = seed
            .wrapping_mul(6_364_136_223_846_793_005)
            .wrapping_add(1_442_695_040_888_963_407);
        (seed >> 33) as usize % below
    };
    let (mut started, mut refused) = (0, 0);
    for round in 0..12 {
        let mut script = String::new();
        for piece in 0..=random(2) {
            if piece > 0 {
                script.push_str(JOINTS[random(JOINTS.len())]);
            }
            script.push_str(PIECES[random(PIECES.len())]);
        }
        let unmatched = ["allow", "ask", "deny"][round % 3];
        let given = ["--rules", rules.to_str().unwrap(), "--unmatched", unmatched];
        let command = ["--", "bash", "-c", &script];
        let (_, out, err) = crate::call(
            home.path(),
            &[&["rules", "check", "--json"], &given[..], &command].concat(),
        );
        assert_eq!(err, "", "{script:?}");
        let allowed = answers(&out)[0]["judgement"] == "allow";
        let (code, ..) = crate::call(home.path(), &[&["run", "-q"], &given[..], &command].concat());
        assert_eq!(code != 120, allowed, "{script:?} with {unmatched}: {out}");
        *if allowed { &mut started } else { &mut refused } += 1;
    }
    assert!(started >= 3 && refused >= 3, "{started} started, {refused} refused");
}

#[test]
fn rules_beside_the_configuration_hold_and_a_broken_one_lets_nothing_start() {
    let home = tempfile::tempdir().unwrap();
    let rules = home.path().join("belljar/rules");
    std::fs::create_dir_all(&rules).unwrap();
    std::fs::write(
        rules.join("own.rules"),
        "prefix_rule(pattern = [\"ls\"], decision = \"forbidden\")\n",
    )
    .unwrap();
    let belljar = |args: &[&str]| {
        let mut command = crate::belljar(home.path());
        command.env("XDG_CONFIG_HOME", home.path()).current_dir(home.path());
        crate::told(command.args(args).output().unwrap())
    };
    assert_eq!(belljar(&["run", "-q", "--", "ls"]).0, 120);
    assert_eq!(belljar(&["rules", "check", "--", "ls"]).0, 120);
    let (code, out, _) = belljar(&["config", "check"]);
    assert_eq!(code, 0);
    assert!(
        out.contains("rules: right (1 files, 1 rules, 0 examples hold)"),
        "{out}"
    );
    std::fs::write(rules.join("broken.rules"), "\nprefix_rule(pattern = [])\n").unwrap();
    for args in [
        &["run", "-q", "--", "true"][..],
        &["rules", "check", "--", "true"],
        &["config", "check"],
    ] {
        let (code, out, err) = belljar(args);
        assert_eq!((code, out.as_str()), (125, ""), "{args:?}");
        assert!(err.contains("broken.rules:2:1: pattern cannot be empty"), "{err}");
    }
    let (code, out, err) = belljar(&["config", "check", "--json"]);
    assert_eq!((code, err.as_str()), (125, ""));
    let answer = &answers(&out.replace('\n', ""))[0];
    assert_eq!(
        (&answer["right"], &answer["faults"][0]["origin"]["file"]["line"]),
        (&false.into(), &2.into())
    );
}
