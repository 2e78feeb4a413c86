//! The questions of a task, from another process.

use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::{Method, Request};
use hyper_util::rt::TokioIo;
use tokio::sync::mpsc;

use super::{ClientError, Task, broken, refusal};
use crate::api::approvals::{Approval, ApprovalAnswer, ApprovalChange, ApprovalSettled};
use crate::api::wire;
use crate::id::ApprovalId;

/// The longest line of a stream of changes: a question with an argv as large as Linux takes.
const LINE_LIMIT: usize = 64 << 20;

/// Changes that are read ahead.
const QUEUE: usize = 16;

impl Task {
    /// The questions that wait, of all tasks that this one's process keeps.
    pub async fn approvals(&self) -> Result<Vec<Approval>, ClientError> {
        self.ask(Method::GET, "/v1/approvals", None::<&()>).await
    }

    pub async fn answer(&self, id: ApprovalId, answer: &ApprovalAnswer) -> Result<ApprovalSettled, ClientError> {
        self.ask(Method::POST, &format!("/v1/approvals/{id}"), Some(answer))
            .await
    }

    /// The questions that wait, and then what becomes of them and of new ones, until the task ends. As long as this is held,
    /// questions wait for an answer.
    pub async fn watch_approvals(&self) -> Result<Approvals, ClientError> {
        let stream = self.connect().await?;
        let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(stream))
            .await
            .map_err(broken)?;
        let request = Request::builder()
            .uri("/v1/approvals/watch")
            .header("host", "belljar")
            .body(Empty::<Bytes>::new())
            .map_err(broken)?;
        let (changes, queue) = mpsc::channel(QUEUE);
        let carried = tokio::spawn(async move {
            // Its errors show as the end of the body.
            let _ = connection.await;
        });
        let response = sender.send_request(request).await.map_err(broken)?;
        let status = response.status();
        let mut body = response.into_body();
        if !status.is_success() {
            let text = body.collect().await.map_err(broken)?.to_bytes();
            return Err(refusal(status, &text));
        }
        let reading = tokio::spawn(async move {
            let _sender = sender;
            let mut held = Vec::new();
            while let Some(Ok(frame)) = body.frame().await {
                let Ok(data) = frame.into_data() else { continue };
                held.extend_from_slice(&data);
                while let Some(end) = held.iter().position(|byte| *byte == b'\n') {
                    let line: Vec<u8> = held.drain(..=end).collect();
                    // Comments that keep the connection alive, and the empty lines between events.
                    let Some(json) = line.strip_prefix(b"data: ") else {
                        continue;
                    };
                    let change = wire::read_tagged(json.trim_ascii_end()).map_err(ClientError::Answer);
                    if changes.send(change).await.is_err() {
                        return;
                    }
                }
                if held.len() > LINE_LIMIT {
                    let _ = changes.send(Err(broken("an event is too long"))).await;
                    return;
                }
            }
        });
        Ok(Approvals {
            queue,
            work: [carried, reading],
        })
    }
}

/// A stream of changes.
pub struct Approvals {
    queue: mpsc::Receiver<Result<ApprovalChange, ClientError>>,
    work: [tokio::task::JoinHandle<()>; 2],
}

impl Approvals {
    /// The next change; `None` at the end of the task. Cancel-safe.
    pub async fn next(&mut self) -> Option<Result<ApprovalChange, ClientError>> {
        self.queue.recv().await
    }
}

impl Drop for Approvals {
    fn drop(&mut self) {
        self.work.iter().for_each(tokio::task::JoinHandle::abort);
    }
}
