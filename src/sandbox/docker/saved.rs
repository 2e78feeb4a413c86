//! Images that the engine has of its own: found as its users write them, and saved for belljar's store, where they are checked and
//! unpacked like any other. Nothing ever runs from them as the engine has them: what an image's configuration asks for (a user,
//! volumes, an entry point, a health check, what happens when one builds on it) is the image maker's word, and an engine obeys it.

use std::fs::File;
use std::io;

use futures_util::StreamExt;
use tokio::io::AsyncWriteExt as _;

use super::{DockerError, Engine, call, io as io_error};

/// An image as the engine has it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct EngineImage {
    /// The digest by which it knows the image: of its configuration, or of what a registry has of it.
    pub id: String,
    /// As the engine counts them; for a line that says how far the saving is.
    pub bytes: u64,
}

impl Engine {
    /// What a reference means to the engine: `debian:12`, `registry.example/x@sha256:…`, the beginning of an id.
    pub async fn image(&self, reference: &str) -> Result<Option<EngineImage>, DockerError> {
        let found = match self.docker.inspect_image(reference).await {
            Ok(found) => found,
            Err(bollard::errors::Error::DockerResponseServerError { status_code: 404, .. }) => return Ok(None),
            Err(error) => return Err(call("say whether it has the image")(error)),
        };
        let bytes = found.size.and_then(|size| u64::try_from(size).ok()).unwrap_or_default();
        let id = found.id.ok_or(DockerError::NoImage)?;
        let id = match id.starts_with("sha256:") {
            true => id,
            // Podman leaves it out in places.
            false => format!("sha256:{id}"),
        };
        Ok(Some(EngineImage { id, bytes }))
    }

    /// Writes an image into a file, as `docker save` does; at most so many bytes. By its id, for a name may mean another one by now.
    pub async fn save(&self, id: &str, into: File, most: u64, heard: impl Fn(u64)) -> Result<(), DockerError> {
        let mut out = tokio::fs::File::from_std(into);
        let mut pieces = self.docker.export_image(id);
        let mut written = 0;
        while let Some(piece) = pieces.next().await {
            let piece = piece.map_err(call("save the image"))?;
            written += piece.len() as u64;
            if written > most {
                let why = format!("the engine gives more than {most} bytes");
                return Err(io_error("save the image")(io::Error::other(why)));
            }
            out.write_all(&piece).await.map_err(io_error("save the image"))?;
            heard(written);
        }
        out.flush().await.map_err(io_error("save the image"))
    }
}
