//! A live task with its socket, for each test its own.

use std::path::Path;
use std::sync::Arc;

use belljar::api::Server;
use belljar::api::client::Task;
use belljar::api::folder;
use belljar::api::messages::{Event, ExecEnd, ExecStart};
use belljar::approval::{Approvers, Nobody};
use belljar::audit::journal::{Journal, JournalOptions};
use belljar::audit::record::{ExecFinished, Identity};
use belljar::config::{Config, Surroundings, admit};
use belljar::image::{self, Silent, Store};
use belljar::policy::Policy;
use belljar::supervisor::{Supervisor, TaskHandle};
use belljar::task::spec::{Overrides, TaskSpec};

/// `forbidden` is forbidden, `question` needs an answer that nobody here gives.
const RULES: &str = r#"
prefix_rule(pattern = ["forbidden"], decision = "forbidden", justification = "for tests")
prefix_rule(pattern = ["question"], decision = "prompt")
"#;

/// A task in a sandbox, as `belljar run` makes it.
pub async fn start_task(name: &str, state: &Path) -> (TaskHandle, Journal) {
    let nobody = Nobody {
        why: "a test runs".to_owned(),
    };
    start_task_for(name, state, Approvers::new(Arc::new(nobody))).await
}

/// The same, with others to ask.
pub async fn start_task_for(name: &str, state: &Path, approvers: Approvers) -> (TaskHandle, Journal) {
    let rules = state.join("test.rules");
    std::fs::create_dir_all(state).unwrap();
    std::fs::write(&rules, RULES).unwrap();
    let flags = Overrides {
        name: Some(name.to_owned()),
        rules: vec![rules.display().to_string()],
        ..Overrides::default()
    };
    let surroundings = Surroundings::of_process();
    let spec = TaskSpec::default().apply(flags, state).unwrap();
    // The caller's own state folder is somewhere else; only this one counts here.
    let task = admit(
        spec,
        state,
        &Config::built_in(&state.join("belljar")),
        &surroundings.caller(),
    )
    .unwrap();
    let policy = Policy::load(&task.gate.rules, task.gate.unmatched).unwrap();
    let journal = Journal::open(&state.join("journal"), JournalOptions::default()).unwrap();
    let identity = Identity {
        login: None,
        uid: surroundings.uid,
        user: surroundings.user,
    };
    let program = Path::new(env!("CARGO_BIN_EXE_belljar"));
    let supervisor = Supervisor::start(program, state, journal.clone(), identity).unwrap();
    let image = image::resolve(&task.image, &Store::of_state(state), &Silent).unwrap();
    let task = supervisor.start_task(task, image, policy, approvers).await.unwrap();
    (task, journal)
}

pub struct Live {
    pub handle: TaskHandle,
    pub journal: Journal,
    pub task: Task,
    pub server: Option<Server>,
    pub state: tempfile::TempDir,
}

impl Live {
    pub async fn start() -> Self {
        Self::named("a-task").await
    }

    pub async fn named(name: &str) -> Self {
        let state = tempfile::tempdir().unwrap();
        let (handle, journal) = start_task(name, state.path()).await;
        let server = Server::start(handle.clone(), handle.folder()).unwrap();
        Self {
            task: Task::new(state.path(), handle.id()),
            handle,
            journal,
            server: Some(server),
            state,
        }
    }

    /// Sends bytes as they are, and gives the status and the body of the answer.
    pub async fn raw(&self, method: &str, path: &str, body: &str) -> (u16, serde_json::Value) {
        use tokio::io::{AsyncReadExt, AsyncWriteExt};
        let socket = folder::of_task(self.state.path(), self.handle.id()).join("api.sock");
        let mut stream = tokio::net::UnixStream::connect(socket).await.unwrap();
        let path = path.replace("{task}", &self.handle.id().to_string());
        let request = format!(
            "{method} /v1{path} HTTP/1.1\r\nhost: belljar\r\nconnection: close\r\ncontent-length: {}\r\n\r\n{body}",
            body.len()
        );
        // A server that turns the request away early neither reads the rest nor closes in peace.
        let _ = stream.write_all(request.as_bytes()).await;
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer).await;
        let answer = String::from_utf8(answer).unwrap();
        let status = answer.split(' ').nth(1).unwrap().parse().unwrap();
        let body = answer.split_once("\r\n\r\n").unwrap().1;
        (status, serde_json::from_str(body).unwrap())
    }
}

pub fn start(argv: &[&str]) -> ExecStart {
    serde_json::from_value(serde_json::json!({ "argv": argv })).unwrap()
}

pub fn finished(end: &ExecEnd) -> &ExecFinished {
    match end {
        ExecEnd::Finished(finished) => finished,
        other => panic!("{other:?} is not an end of a command"),
    }
}

/// The kinds of events in order; output as its text.
pub fn story(events: &[Event]) -> Vec<String> {
    events
        .iter()
        .map(|event| match event {
            Event::Judged { judgement } => format!("judged {judgement}"),
            Event::Asked { .. } => "asked".to_owned(),
            Event::Started => "started".to_owned(),
            Event::Output { stream, data } => format!("{stream:?} {}", String::from_utf8_lossy(data)),
            Event::Ended { .. } => "ended".to_owned(),
            Event::Gap { after } => format!("gap {after}"),
        })
        .collect()
}
