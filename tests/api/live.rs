//! A live task with its socket, for each test its own.

use belljar::api::Server;
use belljar::api::client::Task;
use belljar::api::folder;
use belljar::api::messages::{Event, ExecEnd, ExecStart};
use belljar::audit::record::ExecFinished;
use belljar::supervisor::TaskHandle;

pub struct Live {
    pub handle: TaskHandle,
    pub task: Task,
    pub server: Option<Server>,
    pub state: tempfile::TempDir,
}

impl Live {
    pub fn start() -> Self {
        Self::named("a-task")
    }

    pub fn named(name: &str) -> Self {
        let state = tempfile::tempdir().unwrap();
        let handle = TaskHandle::fake(name);
        let folder = folder::of_task(state.path(), handle.id());
        let server = Server::start(handle.clone(), &folder).unwrap();
        Self {
            task: Task::new(state.path(), handle.id()),
            handle,
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
