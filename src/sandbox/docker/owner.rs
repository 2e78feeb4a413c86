//! Whose engine it is that answers: one that an ordinary user runs has a user namespace of its own, and mounts only what is that user's.

use std::io::{self, ErrorKind};
use std::path::Path;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt, Empty, Limited};
use hyper::Request;
use hyper::client::conn::http1;
use hyper::header::HOST;
use hyper_util::rt::TokioIo;
use serde::Deserialize;
use tokio::net::UnixStream;

use super::{DockerError, io as failed};
use crate::sys::{process, user};

/// A description of an engine is a few kilobytes.
const ANSWER_MAX: usize = 1 << 20;

/// How long it may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// What Podman says of itself beside what Docker would.
#[derive(Debug, Deserialize)]
struct Info {
    #[serde(rename = "Rootless", default)]
    is_rootless: bool,
}

/// Whether a Podman says that it runs in a user namespace of its own. Docker says so among its security options; Podman 4 has a field
/// for it, which is in no description of the API and so in no library.
pub async fn says_rootless(socket: &Path) -> Result<bool, DockerError> {
    let asked = async {
        let stream = TokioIo::new(UnixStream::connect(socket).await?);
        let (mut sender, connection) = http1::handshake(stream).await.map_err(io::Error::other)?;
        let request = Request::get("/info").header(HOST, "engine").body(Empty::<Bytes>::new());
        let answer = async {
            let response = sender.send_request(request?).await?;
            let body = Limited::new(response.into_body(), ANSWER_MAX).collect().await?;
            let info: Info = serde_json::from_slice(&body.to_bytes())?;
            Ok(info.is_rootless)
        };
        // The connection carries the answer, and ends with it.
        tokio::select! {
            answer = answer => answer.map_err(|error: Box<dyn std::error::Error + Send + Sync>| io::Error::other(error)),
            ended = connection => Err(ended.map_or_else(io::Error::other, |()| ErrorKind::UnexpectedEof.into())),
        }
    };
    let asked = tokio::time::timeout(PATIENCE, asked).await;
    asked
        .unwrap_or_else(|_| Err(ErrorKind::TimedOut.into()))
        .map_err(failed("ask the engine whether it is rootless"))
}

/// A rootless engine serves its own user alone. Whose it is the kernel says, of whoever listens.
pub async fn check(socket: &Path) -> Result<(), DockerError> {
    let asked = async { UnixStream::connect(socket).await?.peer_cred() };
    let engine = asked.await.map_err(failed("ask whose the engine is"))?.uid();
    let (caller, _) = process::own_ids();
    match engine == caller {
        true => Ok(()),
        false => Err(DockerError::OthersEngine {
            engine: user::name_of(engine),
            caller: user::name_of(caller),
        }),
    }
}
