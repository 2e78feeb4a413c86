use super::*;

fn clean(text: &str) -> String {
    Redactor::default().text(text).into_owned()
}

#[test]
fn tokens_in_well_known_shapes_are_taken_out() {
    for token in [
        "ghp_abcdefghijklmnopqrstuvwxyz0123456789",
        "github_pat_11AAAAAAA0abcdefghijkl_mnopqrstuv",
        "glpat-abcdefghij0123456789",
        "sk-proj-abcdefghijklmnop0123456789",
        "AKIAIOSFODNN7EXAMPLE",
        "xoxb-123456789012-abcdefghijkl",
        "AIzaSyA1234567890abcdefghijklmnopqrstuv",
        "eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxMjM0In0.c2lnbmF0dXJl",
    ] {
        assert_eq!(
            clean(&format!("use {token}, please")),
            format!("use {MARK}, please"),
            "{token}"
        );
        assert_eq!(clean(token), MARK);
    }
}

#[test]
fn values_of_names_that_mean_a_secret_are_taken_out() {
    for (text, expected) in [
        ("password=hunter2 make", "password=[redacted] make"),
        ("export API_KEY='a b c'; ls", "export API_KEY='[redacted]'; ls"),
        ("GITHUB_TOKEN=abc123", "GITHUB_TOKEN=[redacted]"),
        ("mysql --password hunter2 -e x", "mysql --password [redacted] -e x"),
        (
            "{\"clientSecret\": \"abc\", \"id\": 1}",
            "{\"clientSecret\": \"[redacted]\", \"id\": 1}",
        ),
        (
            "curl -H 'Authorization: Bearer abc.def'",
            "curl -H 'Authorization: [redacted]'",
        ),
        ("Authorization: Basic dXNlcjpwYXNz", "Authorization: [redacted]"),
        ("sent Bearer abcdefgh12345678", "sent Bearer [redacted]"),
        (
            "https://h/?access_token=abc&x=1",
            "https://h/?access_token=[redacted]&x=1",
        ),
    ] {
        assert_eq!(clean(text), expected);
    }
}

#[test]
fn user_info_of_urls_is_taken_out() {
    assert_eq!(
        clean("git clone https://me:secret@example.org/x"),
        "git clone https://me:[redacted]@example.org/x"
    );
    assert_eq!(
        clean("https://oauthtoken@example.org/x"),
        "https://[redacted]@example.org/x"
    );
    assert_eq!(clean("ssh://git@example.org/x"), "ssh://git@example.org/x");
    assert_eq!(clean("postgres://u:p%40ss@db/x"), "postgres://u:[redacted]@db/x");
}

#[test]
fn what_is_no_secret_stays() {
    for text in [
        "max_tokens=100",
        "--token-file /run/token",
        "TOKEN=$CI_TOKEN",
        "cargo test --lib audit::",
        "http://example.org/a@b",
        "desk-top sk-1",
        "PWD=/home/agent",
        "tokenizer: fast",
        "grep -rn password src/",
        "μ=\u{1F511} ключ",
    ] {
        assert_eq!(clean(text), text);
    }
}

#[test]
fn a_word_of_a_command_says_what_the_next_one_is() {
    let mut argv = ["curl", "-u", "me:pass", "--api-key", "abc", "--token", "-v"].map(str::to_owned);
    Redactor::default().argv(&mut argv);
    assert_eq!(
        argv,
        [
            "curl",
            "-u",
            "me:[redacted]",
            "--api-key",
            "[redacted]",
            "--token",
            "-v"
        ]
    );
}

#[test]
fn configured_patterns_and_values_are_taken_out() {
    let redactor = Redactor::new(["acme_live_*", "<key>*</key>"]).unwrap();
    redactor.hide("correct horse");
    assert_eq!(
        redactor.text("acme_live_x1 <key>abc</key> the correct horse"),
        "acme_live_[redacted] <key>[redacted]</key> the [redacted]"
    );
    let errors = Redactor::new(["abc", "a*", "abc*d*"]).unwrap_err();
    assert_eq!(errors.len(), 3);
}

#[test]
fn a_long_event_is_cut_after_its_secrets_are_gone() {
    let secret = "ghp_abcdefghijklmnopqrstuvwxyz0123456789";
    // The border of what is kept goes through the secret.
    let prompt = format!("{} {secret} {}", "x".repeat(BODY_LIMIT - 30), "y".repeat(1000));
    let mut entry = Entry {
        task: None,
        exec: None,
        event: Event::AgentEvent {
            name: "prompt".into(),
            call_id: None,
            body: serde_json::json!({"text": prompt}),
        },
    };
    Redactor::default().clean(&mut entry);
    let Event::AgentEvent { body, .. } = entry.event else {
        panic!("it is another event")
    };
    let beginning = body["beginning"].as_str().unwrap();
    assert!(beginning.len() <= BODY_LIMIT && beginning.contains("x [redacted] yy"));
    assert!(!body.to_string().contains("ghp_"));
    assert_eq!(
        (
            body["cut"].as_bool(),
            body["bytes"].as_u64().unwrap() > BODY_LIMIT as u64
        ),
        (Some(true), true)
    );
}

#[test]
fn fields_of_nested_values_are_cleaned_by_their_names() {
    let mut value = serde_json::json!({
        "env": {"DB_PASSWORD": "x", "HOME": "/"},
        "command": ["login", "--secret", "y"],
        "n": 1,
    });
    Redactor::default().value(&mut value);
    assert_eq!(
        value,
        serde_json::json!({
            "env": {"DB_PASSWORD": MARK, "HOME": "/"},
            "command": ["login", "--secret", MARK],
            "n": 1,
        })
    );
}

/// One of each kind, with this text wherever somebody else than belljar or its admin chooses the words.
fn everywhere(text: &str) -> Vec<Entry> {
    use crate::audit::samples;
    let told = || text.to_owned();
    let may = || Some(told());
    let words = || vec!["tool".to_owned(), told(), format!("--x={text}"), format!("a{text}b")];
    let mut entries = samples::of_each_kind();
    for entry in &mut entries {
        match &mut entry.event {
            Event::TaskAdmitted {
                name,
                purpose,
                task_spec,
                traceparent,
                ..
            } => {
                (*name, *purpose, *traceparent) = (told(), may(), may());
                *task_spec = serde_json::json!({"env": {"A": text}, "command": words(), "n": [1, {"b": text}]});
            }
            Event::TaskRefused { name, reasons, .. } => (*name, *reasons) = (told(), words()),
            Event::TaskStarted { image, .. } => *image = told(),
            Event::TaskFinished { reason, left_files, .. } => (*reason, *left_files) = (may(), words()),
            Event::SandboxEnforced { controls } => controls.iter_mut().for_each(|one| one.reason = may()),
            Event::ExecJudged {
                argv,
                cwd,
                env_names,
                reason,
                call_id,
                traceparent,
                ..
            } => {
                (*argv, *cwd, *env_names) = (words(), told(), words());
                (*reason, *call_id, *traceparent) = (may(), may(), may());
            }
            Event::ExecRefused { argv, reason, .. } => (*argv, *reason) = (words(), told()),
            Event::ExecStarted { argv, cwd, .. } => (*argv, *cwd) = (words(), told()),
            Event::ExecFinished(end) => {
                (end.argv, end.cwd, end.env_names) = (words(), told(), words());
                (end.error, end.reason, end.call_id, end.traceparent) = (may(), may(), may(), may());
            }
            Event::ApprovalAsked {
                about,
                reason,
                named_files,
                ..
            } => (*about, *reason, *named_files) = (told(), told(), words()),
            Event::ApprovalAnswered { reason, opinion, .. } => {
                *reason = may();
                if let Some(opinion) = opinion {
                    opinion.rationale = may();
                }
            }
            Event::EgressJudged {
                host,
                method,
                path,
                reason,
                ..
            } => (*host, *method, *path, *reason) = (told(), may(), may(), told()),
            Event::EgressFinished {
                host, method, error, ..
            } => (*host, *method, *error) = (told(), may(), may()),
            Event::AgentEvent { name, call_id, body } => {
                (*name, *call_id) = (told(), may());
                *body = serde_json::json!([text, {"deep": {"er": words(), text: 1}}]);
            }
            Event::SecretUsed { name, host, .. } => (*name, *host) = (told(), told()),
            Event::RuleAdded { rule, .. } => *rule = told(),
            Event::ConfigLoaded { .. }
            | Event::JournalOpened { .. }
            | Event::JournalPruned { .. }
            | Event::JournalArchiveRemoved { .. }
            | Event::JournalCheckpoint { .. } => {}
        }
    }
    entries
}

proptest::proptest! {
    #[test]
    fn a_value_that_belljar_holds_stands_in_no_record_wherever_it_was_put(secret in "[!-~]{8,40}") {
        // Every field is reached at all.
        let written = |entries: &[Entry]| -> Vec<String> {
            entries.iter().map(|entry| serde_json::to_value(entry).unwrap().to_string()).collect()
        };
        let shown = serde_json::Value::from(secret.as_str()).to_string();
        let shown = shown.trim_matches('"');
        let mut entries = everywhere(&secret);
        let reached = written(&entries).iter().filter(|json| json.contains(shown)).count();
        proptest::prop_assert_eq!(reached, entries.len() - 5);
        let redactor = Redactor::default();
        redactor.hide(&secret);
        entries.iter_mut().for_each(|entry| redactor.clean(entry));
        for json in written(&entries) {
            proptest::prop_assert!(!json.contains(shown), "{} in {}", shown, json);
        }
    }

    #[test]
    fn any_text_is_cleaned_without_a_panic(text in "[ -~é\u{1F511}\n]{0,80}") {
        let redacted = Redactor::new(["abc*d"]).unwrap().text(&text).into_owned();
        proptest::prop_assert_eq!(redacted.is_empty(), text.is_empty());
    }

    #[test]
    fn a_token_is_found_wherever_it_stands(before in "[ a-z=:'\"/@-]{0,20}", after in "[ '\");)&]{0,10}") {
        let token = "ghp_abcdefghijklmnopqrstuvwxyz0123456789";
        let redacted = clean(&format!("{before} {token}{after}"));
        proptest::prop_assert!(!redacted.contains("abcdefghijklmnopqrstuvwxyz"), "{}", redacted);
    }
}
