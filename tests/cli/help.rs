use crate::call;

/// Help, as wide as on a terminal of 100 columns.
fn help(args: &[&str]) -> String {
    let state = tempfile::tempdir().unwrap();
    let (code, out, err) = call(state.path(), args);
    assert_eq!((code, err.as_str()), (0, ""));
    out
}

#[test]
fn help_names_what_there_is() {
    let text = help(&["--help"]);
    for word in [
        "run",
        "exec",
        "task",
        "rules",
        "approvals",
        "egress",
        "config",
        "audit",
        "120 refused",
    ] {
        assert!(text.contains(word), "{word}: {text}");
    }
}

#[test]
fn help_of_run_is_as_it_was() {
    insta::assert_snapshot!(help(&["run", "-h"]));
}

#[test]
fn help_of_exec_is_as_it_was() {
    insta::assert_snapshot!(help(&["exec", "-h"]));
}

#[test]
fn help_of_task_is_as_it_was() {
    insta::assert_snapshot!(help(&["task", "-h"]));
}
