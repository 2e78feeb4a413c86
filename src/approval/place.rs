//! Where a command would run, as far as an answer about it depends on that.

use serde_json::json;

use crate::policy::Digest;
use crate::task::Task;

/// The digest of what surrounds a task's commands: image, roots, user, environment, network and secrets. Two tasks alike in these
/// share it, so that an answer for the session holds for both; limits, ids and names are left out.
///
/// `image` is the digest of the image that runs, where it has one.
pub fn place(task: &Task, image: Option<&str>) -> Digest {
    let whole = json!({
        "image": task.image,
        "image_digest": image,
        "roots": task.roots,
        "user": task.user,
        "backend": task.backend,
        "runtime": task.runtime,
        "env": task.env,
        "secrets": task.secrets,
        "network": task.network,
    });
    Digest::of_parts([b"belljar place 1".as_slice(), whole.to_string().as_bytes()])
}
