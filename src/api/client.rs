//! The other end of the socket: finds live tasks and drives them.

mod approvals;

use std::io;
use std::path::{Path, PathBuf};

use bytes::{BufMut as _, Bytes, BytesMut};
use futures_util::stream::{SplitSink, SplitStream};
use futures_util::{SinkExt as _, StreamExt as _};
use http_body_util::{BodyExt as _, Full};
use hyper::{Method, Request, StatusCode};
use hyper_util::rt::TokioIo;
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::net::UnixStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::{self, Message, protocol::WebSocketConfig};

use super::ApiError;
use super::folder::{self, Card};
use super::messages::{self, Channel, Control, ErrorBody, Event};
use super::wire;
use crate::id::{ExecId, TaskId};
use crate::policy::TtySize;

pub use approvals::Approvals;

/// Why a task could not be reached or did not answer.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot read the tasks in {state}")]
    State { state: PathBuf, source: io::Error },
    #[error("no live task is called or begins with \"{name}\"")]
    NoSuchTask { name: String },
    #[error("\"{name}\" could be any of {}", ids(.found))]
    Ambiguous { name: String, found: Vec<TaskId> },
    #[error("cannot connect to {socket}")]
    Connect { socket: PathBuf, source: io::Error },
    #[error("the connection to the task broke")]
    Broken(#[source] Box<dyn std::error::Error + Send + Sync>),
    #[error("the task's answer cannot be understood")]
    Answer(#[source] serde_json::Error),
    #[error(transparent)]
    Refused(#[from] ApiError),
}

fn ids(found: &[TaskId]) -> String {
    let ids: Vec<String> = found.iter().map(TaskId::to_string).collect();
    ids.join(", ")
}

/// Finds a task by its id, a unique beginning of it, or its name.
pub fn find(state: &Path, name: &str) -> Result<Task, ClientError> {
    let cards = cards(state)?;
    let by = |matches: &dyn Fn(&Card) -> bool| cards.iter().filter(|card| matches(card)).collect::<Vec<_>>();
    let mut found = by(&|card| card.id.to_string() == name);
    if found.is_empty() {
        found = by(&|card| card.name == name);
    }
    if found.is_empty() && !name.is_empty() {
        found = by(&|card| card.id.to_string().starts_with(name));
    }
    match found.as_slice() {
        [card] => Ok(Task::new(state, card.id)),
        [] => Err(ClientError::NoSuchTask { name: name.to_owned() }),
        more => Err(ClientError::Ambiguous {
            name: name.to_owned(),
            found: more.iter().map(|card| card.id).collect(),
        }),
    }
}

/// The cards of all tasks in the state folder. One that was killed leaves its card until it is cleaned up.
pub fn cards(state: &Path) -> Result<Vec<Card>, ClientError> {
    folder::cards(state).map_err(|source| ClientError::State {
        state: state.to_owned(),
        source,
    })
}

/// A live task, reached through its socket. Each call is a connection of its own.
#[derive(Debug, Clone)]
pub struct Task {
    folder: PathBuf,
    id: TaskId,
}

impl Task {
    pub fn new(state: &Path, id: TaskId) -> Self {
        Self {
            folder: folder::of_task(state, id),
            id,
        }
    }

    pub fn id(&self) -> TaskId {
        self.id
    }

    pub async fn info(&self) -> Result<messages::TaskInfo, ClientError> {
        self.call(Method::GET, "", None::<&()>).await
    }

    /// Ends the task and waits until all is gone.
    pub async fn stop(&self) -> Result<messages::TaskSummary, ClientError> {
        self.call(Method::POST, "/stop", None::<&()>).await
    }

    pub async fn wait(&self) -> Result<messages::TaskSummary, ClientError> {
        self.call(Method::GET, "/wait", None::<&()>).await
    }

    pub async fn record(&self, event: &messages::AgentEvent) -> Result<messages::Recorded, ClientError> {
        self.call(Method::POST, "/events", Some(event)).await
    }

    pub async fn start(&self, exec: &messages::ExecStart) -> Result<messages::ExecInfo, ClientError> {
        self.call(Method::POST, "/execs", Some(exec)).await
    }

    pub async fn execs(&self) -> Result<Vec<messages::ExecInfo>, ClientError> {
        self.call(Method::GET, "/execs", None::<&()>).await
    }

    pub async fn exec(&self, id: ExecId) -> Result<messages::ExecInfo, ClientError> {
        self.call(Method::GET, &format!("/execs/{id}"), None::<&()>).await
    }

    /// The exec once it has ended.
    pub async fn wait_exec(&self, id: ExecId) -> Result<messages::ExecInfo, ClientError> {
        self.call(Method::GET, &format!("/execs/{id}/wait"), None::<&()>).await
    }

    pub async fn signal(&self, id: ExecId, signal: i32) -> Result<messages::ExecInfo, ClientError> {
        let message = messages::Signal { signal };
        self.call(Method::POST, &format!("/execs/{id}/signal"), Some(&message))
            .await
    }

    pub async fn resize(&self, id: ExecId, size: TtySize) -> Result<messages::ExecInfo, ClientError> {
        self.call(Method::POST, &format!("/execs/{id}/resize"), Some(&size))
            .await
    }

    pub async fn cancel(&self, id: ExecId) -> Result<messages::ExecInfo, ClientError> {
        self.call(Method::POST, &format!("/execs/{id}/cancel"), None::<&()>)
            .await
    }

    /// Joins the streams of an exec, after the first `after` events.
    pub async fn attach(&self, id: ExecId, after: u64) -> Result<(Input, Output), ClientError> {
        let uri = format!("ws://belljar/v1/tasks/{}/execs/{id}/attach?after={after}", self.id);
        let stream = self.connect().await?;
        let config = WebSocketConfig::default().max_message_size(None).max_frame_size(None);
        let (socket, _) = match tokio_tungstenite::client_async_with_config(uri, stream, Some(config)).await {
            Ok(connected) => connected,
            Err(tungstenite::Error::Http(response)) => {
                let body = response.body().as_deref().unwrap_or_default();
                return Err(refusal(response.status(), body));
            }
            Err(error) => return Err(broken(error)),
        };
        let (sink, stream) = socket.split();
        Ok((Input { sink }, Output { stream, seen: after }))
    }

    async fn call<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        self.ask(method, &format!("/v1/tasks/{}{path}", self.id), body).await
    }

    async fn ask<T: DeserializeOwned>(
        &self,
        method: Method,
        uri: &str,
        body: Option<&impl Serialize>,
    ) -> Result<T, ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let body = match body {
            Some(body) => serde_json::to_vec(body).map_err(ClientError::Answer)?,
            None => Vec::new(),
        };
        let request = Request::builder()
            .method(method)
            .uri(uri)
            .header("host", "belljar")
            .header("content-type", "application/json")
            .body(Full::new(Bytes::from(body)))
            .map_err(broken)?;
        let exchange = async {
            let response = sender.send_request(request).await.map_err(broken)?;
            let status = response.status();
            let body = response.into_body().collect().await.map_err(broken)?.to_bytes();
            if !status.is_success() {
                return Err(refusal(status, &body));
            }
            wire::read_tagged(&body).map_err(ClientError::Answer)
        };
        tokio::pin!(exchange);
        tokio::pin!(connection);
        // The connection moves only while it is polled, and may end before the last of the answer is taken from it.
        tokio::select! {
            answer = &mut exchange => answer,
            _ = &mut connection => exchange.await,
        }
    }

    async fn connect(&self) -> Result<UnixStream, ClientError> {
        let error = |source| ClientError::Connect {
            socket: self.folder.join(folder::SOCKET),
            source,
        };
        let (address, _held) = folder::socket_address(&self.folder).map_err(error)?;
        UnixStream::connect(address).await.map_err(error)
    }
}

fn broken(error: impl Into<Box<dyn std::error::Error + Send + Sync>>) -> ClientError {
    ClientError::Broken(error.into())
}

fn refusal(status: StatusCode, body: &[u8]) -> ClientError {
    match serde_json::from_slice::<ErrorBody>(body) {
        Ok(body) => ClientError::Refused(ApiError(body.error)),
        Err(_) => broken(format!("the answer was {status}")),
    }
}

/// The way to an exec's stdin.
pub struct Input {
    sink: SplitSink<WebSocketStream<UnixStream>, Message>,
}

impl Input {
    /// Waits while neither the command nor the connection takes more.
    pub async fn write_stdin(&mut self, data: &[u8]) -> Result<(), ClientError> {
        let mut frame = BytesMut::with_capacity(data.len() + 1);
        frame.put_u8(Channel::Stdin as u8);
        frame.extend_from_slice(data);
        self.sink.send(Message::Binary(frame.freeze())).await.map_err(broken)
    }

    pub async fn control(&mut self, control: Control) -> Result<(), ClientError> {
        let text = serde_json::to_string(&control).map_err(ClientError::Answer)?;
        self.sink.send(Message::Text(text.into())).await.map_err(broken)
    }
}

/// What comes from an exec.
pub struct Output {
    stream: SplitStream<WebSocketStream<UnixStream>>,
    seen: u64,
}

impl Output {
    /// How many events have been seen: where to attach again.
    pub fn seen(&self) -> u64 {
        self.seen
    }

    /// The next event; `None` after the last. Cancel-safe.
    pub async fn next(&mut self) -> Result<Option<Event>, ClientError> {
        loop {
            let message = match self.stream.next().await {
                None => return Ok(None),
                Some(message) => message.map_err(broken)?,
            };
            let event = match message {
                Message::Binary(mut frame) => {
                    let Some(stream) = frame.first().and_then(|byte| Channel::stream(*byte)) else {
                        return Err(broken("a frame belongs to no stream"));
                    };
                    let data = frame.split_off(1);
                    Event::Output { stream, data }
                }
                Message::Text(text) => wire::read_tagged(text.as_bytes()).map_err(ClientError::Answer)?,
                Message::Close(_) => return Ok(None),
                Message::Ping(_) | Message::Pong(_) | Message::Frame(_) => continue,
            };
            match event {
                Event::Gap { after } => self.seen = after,
                _ => self.seen += 1,
            }
            return Ok(Some(event));
        }
    }
}
