//! The root file system of a plan as an image of the engine's: what the plan makes, on top of the layers that it has.

use std::collections::HashMap;
use std::io::{self, Write};
use std::path::Path;

use bollard::Docker;
use bollard::query_parameters::{CreateImageOptionsBuilder, ListImagesOptions};
use bytes::Bytes;
use futures_util::{StreamExt, stream};
use tokio::sync::mpsc;

use super::create::{HOME, is_own};
use super::{DockerError, Facts, IMAGE_LABEL, call, io as io_error};
use crate::image::pack::{self, Extra, ExtraKind};
use crate::sandbox::plan::{Made, Mount, Plan, Source, What};

/// Pieces of the archive that wait for the engine.
const PIECES: usize = 16;

/// One piece.
const PIECE_BYTES: usize = 256 << 10;

/// Makes the image and gives its id; it goes with the task.
pub async fn import(docker: &Docker, plan: &Plan, facts: &Facts, state: &Path) -> Result<String, DockerError> {
    let label = format!("{}@{}", plan.task, state.display());
    let (pieces, archive) = mpsc::channel(PIECES);
    let (layers, extras) = (plan.root.layers.clone(), extras(plan, facts));
    let packing = tokio::task::spawn_blocking(move || {
        let mut out = io::BufWriter::with_capacity(PIECE_BYTES, Pieces(pieces));
        pack::pack(&layers, &extras, &mut out)?;
        out.flush()
    });
    let archive = stream::unfold(archive, async |mut archive| {
        let piece: Bytes = archive.recv().await?;
        Some((piece, archive))
    });
    let name = tag(&plan.task.to_string());
    let (name, version) = name.split_once(':').unwrap_or((&name, "latest"));
    let change = format!("LABEL {IMAGE_LABEL}={}", serde_json::json!(label));
    let mut options = CreateImageOptionsBuilder::default()
        .from_src("-")
        .repo(name)
        .tag(version)
        .build();
    options.changes = vec![change];
    let mut answers = docker.create_image(Some(options), Some(bollard::body_stream(Box::pin(archive))), None);
    let mut answered = Ok(());
    while let Some(answer) = answers.next().await {
        if let Err(error) = answer {
            answered = Err(call("take the root file system")(error));
            break;
        }
    }
    drop(answers);
    let packed = packing
        .await
        .map_err(|error| io_error("pack the root file system")(io::Error::other(error)))?;
    // An engine that breaks off is why the packing does, and knows better.
    answered?;
    packed.map_err(io_error("pack the root file system"))?;
    id_of(docker, &label).await
}

/// What the image of a task is called.
pub fn tag(task: &str) -> String {
    format!("belljar-{task}:root")
}

/// Engines differ in what they make of a name that says nothing of a registry, so the image is found by its label.
async fn id_of(docker: &Docker, label: &str) -> Result<String, DockerError> {
    let filters = HashMap::from([("label".to_owned(), vec![format!("{IMAGE_LABEL}={label}")])]);
    let options = ListImagesOptions {
        filters: Some(filters),
        ..ListImagesOptions::default()
    };
    let images = docker.list_images(Some(options)).await;
    let image = images.map_err(call("list its images"))?.into_iter().next();
    image.map(|image| image.id).ok_or(DockerError::NoImage)
}

fn extras(plan: &Plan, facts: &Facts) -> Vec<Extra> {
    let extra = |made: &Made| {
        let (uid, gid) = match made.users {
            true => (plan.process.uid, plan.process.gid),
            false => (0, 0),
        };
        let what = match &made.what {
            // What is mounted there is root's, has this mode, and for Podman no other: it drops the one that it is given.
            What::Folder { .. } if facts.is_podman && made.path.as_str() == HOME => ExtraKind::Folder { mode: 0o1777 },
            What::Folder { mode } => ExtraKind::Folder { mode: *mode },
            What::File { .. } if is_own(&made.path) => return None,
            What::File { content, mode } => ExtraKind::File {
                content: content.clone().into_bytes(),
                mode: *mode,
            },
            What::Bytes { content, mode } => ExtraKind::File {
                content: content.clone(),
                mode: *mode,
            },
            What::Link { target } => ExtraKind::Link { target: target.into() },
        };
        let path = made.path.relative().into();
        Some(Extra { path, what, uid, gid })
    };
    // An image's own link at the place of a root is none of the engine's to follow.
    let place = |mount: &Mount| match &mount.source {
        Source::Bind { host, .. } if host.as_path().is_dir() => Some(Extra {
            path: mount.path.relative().into(),
            what: ExtraKind::Folder { mode: 0o755 },
            uid: 0,
            gid: 0,
        }),
        _ => None,
    };
    let mut extras: Vec<Extra> = plan.root.made.iter().filter_map(extra).collect();
    let places: Vec<Extra> = plan.mounts.iter().filter_map(place).collect();
    let is_made = |place: &Extra| extras.iter().any(|made| made.path == place.path);
    let places: Vec<Extra> = places.into_iter().filter(|place| !is_made(place)).collect();
    extras.extend(places);
    extras
}

/// Hands what is written to the engine's call.
struct Pieces(mpsc::Sender<Bytes>);

impl Write for Pieces {
    fn write(&mut self, data: &[u8]) -> io::Result<usize> {
        let piece = Bytes::copy_from_slice(data);
        self.0
            .blocking_send(piece)
            .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
        Ok(data.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
