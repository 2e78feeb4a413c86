//! The socket, who may use it, and how it is closed.

use std::io;
use std::os::unix::fs::PermissionsExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use axum::extract::connect_info::Connected;
use axum::extract::{ConnectInfo, Request};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse as _, Response};
use axum::serve::IncomingStream;
use tokio::net::UnixListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

use super::error::ApiError;
use super::folder;
use super::messages::ErrorCode;
use super::routes;
use crate::supervisor::TaskHandle;
use crate::sys::user::myself;

/// How long answers that are on their way may still take when the server is stopped.
const LAST_ANSWERS: Duration = Duration::from_secs(2);

/// Why a task cannot be reached from outside.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    #[error("cannot make the task's folder {folder}")]
    Folder { folder: PathBuf, source: io::Error },
    #[error("cannot listen on {socket}")]
    Listen { socket: PathBuf, source: io::Error },
}

/// A task's API on its socket. Dropped, it stops listening at once; [`Server::stop`] lets answers finish.
pub struct Server {
    folder: PathBuf,
    stop: Option<oneshot::Sender<()>>,
    serving: JoinHandle<()>,
}

impl Server {
    /// Makes `api.sock` (0600) in the task's folder (0700), and answers there.
    pub fn start(task: TaskHandle, folder: &Path) -> Result<Self, ServeError> {
        let listener = listen(folder)?;
        let app = routes::router(vec![task]).layer(middleware::from_fn(only_the_owner));
        let (stop, stopped) = oneshot::channel();
        let serving = tokio::spawn(async move {
            let app = app.into_make_service_with_connect_info::<Peer>();
            let until_stopped = async move {
                let _ = stopped.await;
            };
            // Never an error: failures to accept are retried inside.
            let _ = axum::serve(listener, app).with_graceful_shutdown(until_stopped).await;
        });
        Ok(Self {
            folder: folder.to_owned(),
            stop: Some(stop),
            serving,
        })
    }

    /// Takes the socket away, takes no more requests, and lets those on their way finish.
    pub async fn stop(mut self) {
        remove_socket(&self.folder);
        if let Some(stop) = self.stop.take() {
            let _ = stop.send(());
        }
        let _ = tokio::time::timeout(LAST_ANSWERS, &mut self.serving).await;
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
        remove_socket(&self.folder);
    }
}

fn remove_socket(folder: &Path) {
    // Gone already, with its folder, is as good.
    let _ = std::fs::remove_file(folder.join(folder::SOCKET));
}

fn listen(folder: &Path) -> Result<UnixListener, ServeError> {
    let made = std::os::unix::fs::DirBuilderExt::mode(std::fs::DirBuilder::new().recursive(true), 0o700).create(folder);
    let open = made.and_then(|()| std::fs::set_permissions(folder, std::fs::Permissions::from_mode(0o700)));
    open.map_err(|source| ServeError::Folder {
        folder: folder.to_owned(),
        source,
    })?;
    let socket = folder.join(folder::SOCKET);
    let bind = || {
        // Left over from a process that was killed; a live one has a folder of its own.
        match std::fs::remove_file(&socket) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => {}
        }
        let (address, _held) = folder::socket_address(folder)?;
        let listener = UnixListener::bind(address)?;
        // Nobody else gets this far meanwhile: the folder is 0700.
        std::fs::set_permissions(&socket, std::fs::Permissions::from_mode(0o600))?;
        Ok(listener)
    };
    bind().map_err(|source| ServeError::Listen {
        socket: socket.clone(),
        source,
    })
}

/// Who is at the other end, by the kernel's word; `None` where it would not say.
#[derive(Debug, Clone, Copy)]
pub(super) struct Peer {
    pub uid: Option<u32>,
    pub pid: Option<i32>,
}

impl Connected<IncomingStream<'_, UnixListener>> for Peer {
    fn connect_info(stream: IncomingStream<'_, UnixListener>) -> Self {
        let credentials = stream.io().peer_cred().ok();
        Self {
            uid: credentials.map(|credentials| credentials.uid()),
            pid: credentials.and_then(|credentials| credentials.pid()),
        }
    }
}

impl Peer {
    /// The file modes keep others out already; this holds where they do not, as on a folder made too open later.
    fn may_use(self, owner: u32) -> bool {
        self.uid.is_some_and(|uid| uid == owner || uid == 0)
    }
}

async fn only_the_owner(ConnectInfo(peer): ConnectInfo<Peer>, request: Request, next: Next) -> Response {
    if !peer.may_use(myself().uid) {
        let error = ApiError::new(
            ErrorCode::Forbidden,
            "only the task's user and root may use this socket",
        );
        return error.into_response();
    }
    next.run(request).await
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_same_user_and_root_may_use_the_socket() {
        let may = |uid| Peer { uid, pid: None }.may_use(1000);
        assert_eq!(
            [Some(1000), Some(0), Some(1001), None].map(may),
            [true, true, false, false]
        );
    }
}
