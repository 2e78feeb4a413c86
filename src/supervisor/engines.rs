//! The engine of the `docker` backend: connected to when the first task wants it, and cleared of what killed belljars left there.

use std::fs;
use std::path::{Path, PathBuf};

use tokio::sync::OnceCell;

use super::recovery;
use crate::sandbox::docker::{self, DockerError, Engine};

/// The name, in the state folder, of the file that says at which engine tasks were.
const USED: &str = "engine";

/// See the module.
pub struct Engines {
    state: PathBuf,
    /// Where the engine is, if that was said.
    socket: Option<PathBuf>,
    engine: OnceCell<Engine>,
    swept: OnceCell<()>,
}

impl Engines {
    pub fn new(state: &Path, socket: Option<PathBuf>) -> Engines {
        Engines {
            state: state.to_owned(),
            socket,
            engine: OnceCell::new(),
            swept: OnceCell::new(),
        }
    }

    /// The engine, which answered once.
    pub async fn engine(&self) -> Result<&Engine, DockerError> {
        let connect = async || {
            let socket = match &self.socket {
                Some(socket) => socket.clone(),
                None => own_socket()?,
            };
            let engine = Engine::connect(&socket).await?;
            // Before anything is made there, so that whatever is left can be found again.
            fs::write(self.state.join(USED), socket.as_os_str().as_encoded_bytes()).map_err(|source| {
                DockerError::Io {
                    what: "note which engine is used",
                    source,
                }
            })?;
            Ok(engine)
        };
        self.engine.get_or_try_init(connect).await
    }

    /// Removes what tasks that are dead left at the engine, if one was ever used. What cannot be removed is said, and tried again by
    /// the next belljar.
    pub async fn sweep_once(&self) {
        let sweep = async || {
            if let Err(error) = self.sweep().await {
                tracing::warn!(
                    error = &error as &dyn std::error::Error,
                    "what dead tasks left at an engine could not be removed"
                );
            }
        };
        self.swept.get_or_init(sweep).await;
    }

    async fn sweep(&self) -> Result<(), DockerError> {
        let Ok(socket) = fs::read_to_string(self.state.join(USED)) else {
            return Ok(());
        };
        let tasks = recovery::tasks_folder(&self.state);
        // The folders of dead tasks are gone when this is called.
        let is_alive = |task: &str| tasks.join(task).exists();
        docker::unmount_left(&docker::mounts(&self.state), &is_alive).map_err(|source| DockerError::Io {
            what: "take away what was mounted for an engine",
            source,
        })?;
        let removed = Engine::connect(Path::new(&socket))
            .await?
            .sweep(&self.state, &is_alive)
            .await?;
        if removed > 0 {
            tracing::info!(removed, "containers of dead tasks were removed");
        }
        Ok(())
    }
}

/// The engine that a task of this process would be at.
pub async fn own_engine() -> Result<Engine, DockerError> {
    Engine::connect(&own_socket()?).await
}

fn own_socket() -> Result<PathBuf, DockerError> {
    let variable = |name: &str| std::env::var(name).ok();
    docker::socket(
        variable("DOCKER_HOST").as_deref(),
        variable("XDG_RUNTIME_DIR").as_deref(),
    )
}
