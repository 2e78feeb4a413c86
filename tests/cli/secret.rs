use std::io::Write;
use std::process::{Command, Stdio};

/// A script run in a session of its own with an unlocked keyring; `$1` is belljar. Exit code, and stdout with stderr: the
/// stderr of the session itself has the bus's complaints.
fn in_a_session(script: &str, input: &str) -> (i32, String) {
    let home = tempfile::tempdir().unwrap();
    let session = "umask 077; mkdir run; printf pass | gnome-keyring-daemon --unlock --components=secrets >/dev/null || exit 99; ";
    let mut child = Command::new("dbus-run-session")
        .args([
            "--",
            "bash",
            "-c",
            &format!("{{ {session}}} </dev/null; {{ {script}; }} 2>&1"),
            "bash",
        ])
        .arg(env!("CARGO_BIN_EXE_belljar"))
        .current_dir(home.path())
        .env_remove("DBUS_SESSION_BUS_ADDRESS")
        .env("HOME", home.path())
        .env("XDG_RUNTIME_DIR", home.path().join("run"))
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .expect("dbus-run-session is installed (tools/setup.sh test)");
    child.stdin.take().unwrap().write_all(input.as_bytes()).unwrap();
    let (code, out, _) = crate::told(child.wait_with_output().unwrap());
    (code, out)
}

#[test]
fn a_secret_is_set_from_stdin_named_and_removed_and_never_printed() {
    let script =
        "$1 secret set github && $1 secret ls && $1 secret ls --json && $1 secret rm github && $1 secret ls --json";
    let (code, out) = in_a_session(script, "hush-hush\n");
    assert_eq!(
        (code, out.as_str()),
        (0, "github\n{\"secrets\":[\"github\"]}\n{\"secrets\":[]}\n")
    );
}

#[test]
fn what_is_no_secret_is_not_kept() {
    let (code, out) = in_a_session("$1 secret set github; echo $?; $1 secret rm github", "\n");
    assert_eq!(code, 125, "{out}");
    assert!(out.starts_with("belljar: the value is empty\n125\n"), "{out}");
    assert!(out.contains("there is no secret of that name"), "{out}");
}

#[test]
fn without_a_keyring_it_says_what_is_missing() {
    let state = tempfile::tempdir().unwrap();
    let output = crate::belljar(state.path())
        .args(["secret", "ls"])
        .env("DBUS_SESSION_BUS_ADDRESS", "unix:path=/nonexistent/bus")
        .output()
        .unwrap();
    let (code, out, err) = crate::told(output);
    assert_eq!((code, out.as_str()), (125, ""));
    assert!(
        err.starts_with("belljar: there is no keyring to be reached (a Secret Service on the session bus)"),
        "{err}"
    );
}
