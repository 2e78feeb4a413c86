//! One function a path. They read, call the task, and answer; what follows from it is the supervisor's.

use std::time::Duration;

use axum::Json;
use axum::Router;
use axum::body::Bytes;
use axum::extract::rejection::BytesRejection;
use axum::extract::ws::WebSocketUpgrade;
use axum::extract::{DefaultBodyLimit, FromRequest, Path, Query, Request, State};
use axum::http::StatusCode;
use axum::response::Response;
use axum::routing::{get, post};
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::error::ApiError;
use super::messages::{self, ErrorCode};
use super::{approvals, attach, wire};
use crate::id::{ExecId, TaskId};
use crate::policy::TtySize;
use crate::supervisor::{ExecHandle, TaskHandle};

/// The largest body: an argv and an environment as large as Linux takes (2 MiB), written as JSON.
const BODY_LIMIT: usize = 16 << 20;

/// The tasks that this process keeps.
#[derive(Clone)]
pub(super) struct Tasks(pub std::sync::Arc<[TaskHandle]>);

pub fn router(tasks: Vec<TaskHandle>) -> Router {
    let task = Router::new()
        .route("/", get(show_task))
        .route("/stop", post(stop_task))
        .route("/wait", get(wait_task))
        .route("/events", post(record_event))
        .route("/execs", get(list_execs).post(start_exec))
        .route("/execs/{exec}", get(show_exec))
        .route("/execs/{exec}/wait", get(wait_exec))
        .route("/execs/{exec}/signal", post(signal_exec))
        .route("/execs/{exec}/resize", post(resize_exec))
        .route("/execs/{exec}/cancel", post(cancel_exec))
        .route("/execs/{exec}/attach", get(attach_exec));
    Router::new()
        .route("/v1/schema", get(schema))
        .route("/v1/tasks", get(list_tasks))
        .nest("/v1/tasks/{task}", task)
        .merge(approvals::router())
        .fallback(no_such_path)
        .method_not_allowed_fallback(no_such_method)
        .layer(DefaultBodyLimit::max(BODY_LIMIT))
        .with_state(Tasks(tasks.into()))
}

async fn list_tasks(State(tasks): State<Tasks>) -> Json<Vec<messages::TaskInfo>> {
    Json(tasks.0.iter().map(|task| task.info().into()).collect())
}

async fn show_task(State(tasks): State<Tasks>, Path(id): Path<String>) -> Result<Json<messages::TaskInfo>, ApiError> {
    Ok(Json(tasks.find(&id)?.info().into()))
}

async fn stop_task(
    State(tasks): State<Tasks>,
    Path(id): Path<String>,
) -> Result<Json<messages::TaskSummary>, ApiError> {
    let task = tasks.find(&id)?;
    task.stop().await;
    Ok(Json(task.wait().await.into()))
}

async fn wait_task(
    State(tasks): State<Tasks>,
    Path(id): Path<String>,
) -> Result<Json<messages::TaskSummary>, ApiError> {
    Ok(Json(tasks.find(&id)?.wait().await.into()))
}

async fn record_event(
    State(tasks): State<Tasks>,
    Path(id): Path<String>,
    Body(event): Body<messages::AgentEvent>,
) -> Result<(StatusCode, Json<messages::Recorded>), ApiError> {
    tasks.find(&id)?.record(event.into()).await?;
    Ok((StatusCode::CREATED, Json(messages::Recorded { recorded: true })))
}

async fn list_execs(
    State(tasks): State<Tasks>,
    Path(id): Path<String>,
) -> Result<Json<Vec<messages::ExecInfo>>, ApiError> {
    let execs = tasks.find(&id)?.execs();
    Ok(Json(execs.into_iter().map(Into::into).collect()))
}

async fn start_exec(
    State(tasks): State<Tasks>,
    Path(id): Path<String>,
    Body(start): Body<messages::ExecStart>,
) -> Result<(StatusCode, Json<messages::ExecInfo>), ApiError> {
    let task = tasks.find(&id)?;
    let request = start.into_request(&task.info().workdir)?;
    let exec = task.submit(request)?;
    Ok((StatusCode::CREATED, Json(exec.info().into())))
}

async fn show_exec(
    State(tasks): State<Tasks>,
    at: Path<(String, String)>,
) -> Result<Json<messages::ExecInfo>, ApiError> {
    Ok(Json(tasks.find_exec(&at)?.info().into()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct WaitQuery {
    timeout_seconds: Option<f64>,
}

/// Answers at the end of the exec, or after `timeout_seconds` with the exec as it stands then.
async fn wait_exec(
    State(tasks): State<Tasks>,
    at: Path<(String, String)>,
    query: Result<Query<WaitQuery>, axum::extract::rejection::QueryRejection>,
) -> Result<Json<messages::ExecInfo>, ApiError> {
    let exec = tasks.find_exec(&at)?;
    let Query(query) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    match query.timeout_seconds {
        None => {
            exec.wait().await;
        }
        Some(seconds) => {
            let time = Duration::try_from_secs_f64(seconds)
                .map_err(|_| ApiError::bad_request(format!("timeout_seconds: {seconds} is not a length of time")))?;
            let _ = tokio::time::timeout(time, exec.wait()).await;
        }
    }
    Ok(Json(exec.info().into()))
}

async fn signal_exec(
    State(tasks): State<Tasks>,
    at: Path<(String, String)>,
    Body(message): Body<messages::Signal>,
) -> Result<Json<messages::ExecInfo>, ApiError> {
    let exec = tasks.find_exec(&at)?;
    exec.signal(wire::signal(message.signal)?)?;
    Ok(Json(exec.info().into()))
}

async fn resize_exec(
    State(tasks): State<Tasks>,
    at: Path<(String, String)>,
    Body(size): Body<TtySize>,
) -> Result<Json<messages::ExecInfo>, ApiError> {
    let exec = tasks.find_exec(&at)?;
    exec.resize(wire::size(size)?);
    Ok(Json(exec.info().into()))
}

async fn cancel_exec(
    State(tasks): State<Tasks>,
    at: Path<(String, String)>,
) -> Result<Json<messages::ExecInfo>, ApiError> {
    let exec = tasks.find_exec(&at)?;
    exec.cancel();
    Ok(Json(exec.info().into()))
}

#[derive(Deserialize)]
#[serde(deny_unknown_fields)]
struct AttachQuery {
    #[serde(default)]
    after: u64,
}

async fn attach_exec(
    State(tasks): State<Tasks>,
    at: Path<(String, String)>,
    query: Result<Query<AttachQuery>, axum::extract::rejection::QueryRejection>,
    upgrade: Result<WebSocketUpgrade, axum::extract::ws::rejection::WebSocketUpgradeRejection>,
) -> Result<Response, ApiError> {
    let exec = tasks.find_exec(&at)?;
    let Query(query) = query.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let upgrade = upgrade.map_err(|error| ApiError::bad_request(error.body_text()))?;
    let upgrade = upgrade
        .max_message_size(attach::FRAME_LIMIT)
        .max_frame_size(attach::FRAME_LIMIT);
    Ok(upgrade.on_upgrade(move |socket| attach::attach(socket, exec, query.after)))
}

async fn schema() -> Json<serde_json::Value> {
    Json(messages::schema())
}

async fn no_such_path(request: Request) -> ApiError {
    ApiError::not_found(format!("there is no {}", request.uri().path()))
}

async fn no_such_method(request: Request) -> ApiError {
    ApiError::not_found(format!("there is no {} {}", request.method(), request.uri().path()))
}

impl Tasks {
    fn find(&self, id: &str) -> Result<TaskHandle, ApiError> {
        let id: TaskId = id.parse().map_err(|error| ApiError::bad_request(format!("{error}")))?;
        let task = self.0.iter().find(|task| task.id() == id).cloned();
        task.ok_or_else(|| ApiError::not_found(format!("there is no task {id}")))
    }

    fn find_exec(&self, Path((task, exec)): &Path<(String, String)>) -> Result<ExecHandle, ApiError> {
        let task = self.find(task)?;
        let id: ExecId = exec
            .parse()
            .map_err(|error| ApiError::bad_request(format!("{error}")))?;
        task.exec(id)
            .ok_or_else(|| ApiError::not_found(format!("there is no exec {id} in this task")))
    }
}

/// A JSON body; what is wrong with it is said with field and line.
pub(super) struct Body<T>(pub T);

impl<S: Send + Sync, T: DeserializeOwned> FromRequest<S> for Body<T> {
    type Rejection = ApiError;

    async fn from_request(request: Request, state: &S) -> Result<Self, ApiError> {
        let bytes = Bytes::from_request(request, state).await.map_err(|error| match error {
            BytesRejection::FailedToBufferBody(error) if error.status() == StatusCode::PAYLOAD_TOO_LARGE => {
                ApiError::new(
                    ErrorCode::TooLarge,
                    format!("the body is larger than {BODY_LIMIT} bytes"),
                )
            }
            error => ApiError::bad_request(error.body_text()),
        })?;
        wire::read(&bytes).map(Body)
    }
}
