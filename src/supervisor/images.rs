//! The image of a task: from the store, from a registry that it names, and for a task of the `docker` backend from its engine.
//!
//! An engine's own image goes through the store like any other, so that it is checked, has a digest that the record pins, and asks the
//! engine for nothing. Nobody has the engine pull: what comes from a registry comes by belljar's own way, with its checks.

use std::sync::Arc;

use crate::image::{self, Image, ImageError, MOST_SAVED_BYTES, Progress, Store, pull};
use crate::sandbox::docker::{DockerError, Engine};
use crate::task::ImageRef;

/// Why there is no image for a task.
#[derive(Debug, thiserror::Error)]
pub enum FindError {
    #[error(transparent)]
    Image(#[from] ImageError),
    #[error(transparent)]
    Engine(#[from] DockerError),
    #[error(
        "no image \"{name}\", neither in the local store nor at the engine ({engine}): docker pull {name} there, or \
         belljar image pull {reference} {name}"
    )]
    Nowhere {
        name: String,
        engine: String,
        reference: String,
    },
    #[error("the image could not be waited for")]
    Joined(#[from] tokio::task::JoinError),
}

/// Hears how far an image is, on any thread.
pub type Heard = Arc<dyn Progress + Send + Sync>;

/// Finds, unpacks or pulls an image. `engine` is the one that the task will be at.
pub async fn find(image: &ImageRef, store: &Store, engine: Option<&Engine>, heard: &Heard) -> Result<Image, FindError> {
    let (ImageRef::Named(name), Some(engine)) = (image, engine) else {
        return resolve(image, store, heard).await;
    };
    let here = {
        let (store, name) = (store.clone(), name.clone());
        tokio::task::spawn_blocking(move || store.named(&name)).await?
    };
    match here {
        Err(ImageError::Unknown { .. }) => {}
        other => return Ok(other?),
    }
    match engine.image(name).await? {
        Some(found) => {
            let known = {
                let (store, id) = (store.clone(), found.id.clone());
                tokio::task::spawn_blocking(move || store.saved(&id)).await??
            };
            if let Some(image) = known {
                return Ok(image);
            }
            let file = store.room_to_save()?;
            let saving = file.try_clone().map_err(|source| ImageError::Read {
                path: name.into(),
                source,
            })?;
            let told = |done| heard.fetching(1, 1, done, found.bytes.max(done));
            engine.save(&found.id, saving, MOST_SAVED_BYTES, told).await?;
            let (store, heard) = (store.clone(), heard.clone());
            let taken = tokio::task::spawn_blocking(move || store.take_in_saved(&found.id, file, &*heard));
            Ok(taken.await??)
        }
        None if pull::names_a_registry(name) => resolve(image, store, heard).await,
        None => Err(FindError::Nowhere {
            name: name.clone(),
            engine: engine.facts.about.clone(),
            reference: pull::docker_reference(name),
        }),
    }
}

async fn resolve(image: &ImageRef, store: &Store, heard: &Heard) -> Result<Image, FindError> {
    let (image, store, heard) = (image.clone(), store.clone(), heard.clone());
    Ok(tokio::task::spawn_blocking(move || image::resolve(&image, &store, &*heard)).await??)
}
