//! A journal that cannot be written: then nothing runs. On a small file system of the test's own.

use std::path::Path;
use std::process::Command;

use crate::{assert_all_that_was_done_is_recorded, records};

/// Runs a script in a mount namespace in which `$STATE` is a file system of 4 MiB; `run N` runs a command that writes N into
/// `$WORK/done`, and gives belljar's exit code.
fn in_small_state(state: &Path, work: &Path, script: &str) -> Option<String> {
    if !nix::unistd::geteuid().is_root() {
        assert!(std::env::var_os("CI").is_none(), "this test needs root");
        eprintln!("skipped: mounting a file system needs root");
        return None;
    }
    let prelude = r#"mount -t tmpfs -o size=4m none "$STATE"
        run() {
            "$BELLJAR" run --quiet --network none --reason "$1" --write "$WORK:/workspace" -- sh -c "echo $1 >> done" 2>> "$WORK/talk" && code=0 || code=$?
        }
        "#;
    let output = Command::new("unshare")
        .args(["-m", "sh", "-ec", &format!("{prelude}{script}")])
        .env("STATE", state)
        .env("BELLJAR_STATE", state)
        .env("WORK", work)
        .env("BELLJAR", env!("CARGO_BIN_EXE_belljar"))
        .output()
        .unwrap();
    let talk = std::fs::read_to_string(work.join("talk")).unwrap_or_default();
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{errors}\n{talk}");
    Some(String::from_utf8(output.stdout).unwrap())
}

#[test]
fn on_a_full_disk_nothing_runs_and_what_ran_is_recorded() {
    let (state, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    // The state of the small file system is copied out, for it goes with its namespace.
    let script = r#"
        run 0; [ $code = 0 ]
        dd if=/dev/zero of="$STATE/ballast" bs=64k 2> /dev/null || true
        n=0; while [ $code = 0 ] && [ $n -lt 100 ]; do n=$((n+1)); run $n; done
        [ $code = 125 ]
        before=$(cat "$WORK/done"); run refused; [ $code = 125 ]
        [ "$before" = "$(cat "$WORK/done")" ]
        rm "$STATE/ballast"; run again; [ $code = 0 ]
        "$BELLJAR" audit verify > /dev/null
        cp -r "$STATE/journal" "$STATE/audit.key" "$WORK/"
    "#;
    if in_small_state(state.path(), work.path(), script).is_some() {
        let done = work.path().join("done");
        assert!(std::fs::read_to_string(&done).unwrap().ends_with("again\n"));
        assert_all_that_was_done_is_recorded(&done, &records(work.path()));
    }
}

#[test]
fn on_a_file_system_that_became_read_only_nothing_runs() {
    let (state, work) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let script = r#"
        run 0; [ $code = 0 ]
        mount -o remount,ro "$STATE"; run refused; [ $code = 125 ]
        mount -o remount,rw "$STATE"; run again; [ $code = 0 ]
        cat "$WORK/done"
    "#;
    if let Some(done) = in_small_state(state.path(), work.path(), script) {
        assert_eq!(done, "0\nagain\n");
    }
}
