//! A case for tests.

pub(crate) mod server;

use std::collections::BTreeMap;
use std::sync::Arc;

use super::Case;
use crate::approval::{Asked, Subject};
use crate::id::{ApprovalId, ExecId, TaskId};
use crate::path::SandboxPath;
use crate::policy::{Command, Digest, Stdin};

pub(super) fn of(subject: Subject) -> Case {
    Case {
        asked: Arc::new(Asked {
            id: ApprovalId::new(),
            task: TaskId::new(),
            exec: Some(ExecId::new()),
            about: "the request".to_owned(),
            facts: Vec::new(),
            reason: "no rule allows it".to_owned(),
            rules: Vec::new(),
            files: Vec::new(),
            digest: Digest::of_bytes(b"x"),
            offer: None,
            subject,
        }),
        task_name: "fix".to_owned(),
        purpose: Some("make the tests pass".to_owned()),
        records: Vec::new(),
    }
}

pub(super) fn case(argv: &[&str]) -> Case {
    of(Subject::Command(Command {
        argv: argv.iter().map(|word| (*word).to_owned()).collect(),
        cwd: SandboxPath::new("/workspace").expect("it is a path"),
        env: BTreeMap::new(),
        stdin: Stdin::None,
        tty: None,
    }))
}

pub(super) fn host_case(host: &str, port: u16) -> Case {
    of(Subject::Host {
        host: host.to_owned(),
        port,
        protocol: "https_connect".to_owned(),
    })
}
