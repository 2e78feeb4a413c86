//! What a belljar that was killed left at an engine.

use std::io::Read;
use std::process::{Command, Stdio};

use crate::engines::Daemon;

/// What a belljar that was killed left at an engine is gone when the next one has started a task.
pub fn a_killed_belljar_is_cleared_up_after(daemon: &Daemon) {
    let state = tempfile::tempdir().unwrap();
    let host = format!("unix://{}", daemon.socket().display());
    let belljar = || {
        let mut command = Command::new(env!("CARGO_BIN_EXE_belljar"));
        command
            .args(["run", "--quiet", "--backend", "docker", "--network", "none"])
            .args(["--accept-partial", "mounts", "--accept-partial", "namespaces"])
            .env("BELLJAR_STATE", state.path())
            .env("DOCKER_HOST", &host)
            .stdin(Stdio::null());
        command
    };
    let left = |what: &[&str]| {
        let output = Command::new("docker").args(["-H", &host]).args(what).output().unwrap();
        assert!(output.status.success(), "{output:?}");
        String::from_utf8(output.stdout).unwrap()
    };
    let containers = ["ps", "-aq", "--filter", "label=belljar.task"];
    let images = ["images", "-q", "--filter", "label=belljar.image"];
    // The engine's own three, or fewer: a task has a network of nobody's, and none is ever made for it.
    let networks = ["network", "ls", "-q"];
    let before = left(&networks);

    let mut killed = belljar()
        .args(["--", "sh", "-c", "echo ready; exec sleep 600"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut line = [0; 5];
    killed.stdout.take().unwrap().read_exact(&mut line).unwrap();
    assert_eq!(&line, b"ready");
    killed.kill().unwrap();
    killed.wait().unwrap();
    assert_ne!(left(&containers), "", "there is something to clear up");
    assert_ne!(left(&images), "");
    assert_eq!(left(&networks), before);

    let next = belljar().args(["--", "true"]).output().unwrap();
    assert!(next.status.success(), "{next:?}");
    assert_eq!(left(&containers), "");
    assert_eq!(left(&images), "");
    assert_eq!(left(&networks), before);
    assert_eq!(left(&["volume", "ls", "-q"]), "");
}
