//! The command line as a person and a program see it: what is printed where, and with which exit code.

mod approvals;
mod bundle;
mod help;
mod image;
#[path = "../tools/registry.rs"]
mod registry;
mod rules;
mod run;
mod secret;
mod task;
mod terminal;

use std::path::Path;
use std::process::{Command, Output, Stdio};

/// belljar with a state folder of the test's own, and nothing on stdin.
fn belljar(state: &Path) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_belljar"));
    command
        .env("BELLJAR_STATE", state)
        .env_remove("COLUMNS")
        .stdin(Stdio::null());
    command
}

/// Exit code, stdout and stderr of one call.
fn call(state: &Path, args: &[&str]) -> (i32, String, String) {
    told(belljar(state).args(args).output().unwrap())
}

fn told(output: Output) -> (i32, String, String) {
    let text = |bytes| String::from_utf8(bytes).unwrap();
    (output.status.code().unwrap(), text(output.stdout), text(output.stderr))
}
