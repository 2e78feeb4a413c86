//! A real HTTP server that plays a model, well or badly.

use std::collections::VecDeque;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::State;
use axum::http::{HeaderMap, StatusCode, Uri};
use axum::response::Response as Answer;
use serde_json::{Value, json};

use super::super::{Api, ModelSettings, PATIENCE};

/// What the model does with one request.
#[derive(Debug, Clone)]
pub(crate) enum Play {
    Says(Value),
    Status(u16),
    Text(String),
    /// Never ends its answer.
    Stalls,
    /// Goes on for ever.
    Floods,
    Redirects(String),
}

/// One request as it arrived.
pub(crate) struct Seen {
    pub(crate) path: String,
    pub(crate) key: Option<String>,
    pub(crate) body: Value,
}

/// A real HTTP server that plays the model.
pub(crate) struct Server {
    pub(crate) url: String,
    script: Arc<Script>,
    pub(crate) serving: tokio::task::JoinHandle<()>,
}

#[derive(Default)]
struct Script {
    plays: Mutex<VecDeque<Play>>,
    seen: Mutex<Vec<Seen>>,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.serving.abort();
    }
}

impl Server {
    pub(crate) async fn start(plays: impl IntoIterator<Item = Play>) -> Self {
        let script = Arc::new(Script {
            plays: Mutex::new(plays.into_iter().collect()),
            seen: Mutex::default(),
        });
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}/v1", listener.local_addr().unwrap());
        let app = Router::new().fallback(answer).with_state(script.clone());
        let serving = tokio::spawn(async move { axum::serve(listener, app).await.unwrap() });
        Self { url, script, serving }
    }

    /// An endpoint's settings that reach it.
    pub(crate) fn settings(&self, api: Api) -> ModelSettings {
        ModelSettings {
            endpoint: self.url.clone(),
            api,
            model: "judge-1".to_owned(),
            key: None,
            policy: None,
            time: PATIENCE,
        }
    }

    pub(crate) fn seen(&self) -> MutexGuard<'_, Vec<Seen>> {
        self.script.seen.lock().unwrap()
    }

    pub(crate) fn requests(&self) -> usize {
        self.script.seen.lock().unwrap().len()
    }
}

async fn answer(State(script): State<Arc<Script>>, uri: Uri, headers: HeaderMap, body: Bytes) -> Answer {
    let key = headers.get("authorization").map(|key| key.to_str().unwrap().to_owned());
    script.seen.lock().unwrap().push(Seen {
        path: uri.path().to_owned(),
        key,
        body: serde_json::from_slice(&body).unwrap(),
    });
    let play = script.plays.lock().unwrap().pop_front().unwrap_or(Play::Status(500));
    let with = |status: u16, text: String| {
        Answer::builder()
            .status(StatusCode::from_u16(status).unwrap())
            .body(Body::from(text))
            .unwrap()
    };
    match play {
        Play::Says(value) => with(200, value.to_string()),
        Play::Status(status) => with(status, json!({"error": {"message": "no such luck"}}).to_string()),
        Play::Text(text) => with(200, text),
        Play::Stalls => {
            let begun = futures_util::stream::once(async { Ok::<_, std::io::Error>(Bytes::from_static(b"{")) });
            Answer::new(Body::from_stream(futures_util::StreamExt::chain(
                begun,
                futures_util::stream::pending(),
            )))
        }
        Play::Floods => Answer::new(Body::from_stream(futures_util::stream::repeat_with(|| {
            Ok::<_, std::io::Error>(Bytes::from(vec![b' '; 64 << 10]))
        }))),
        Play::Redirects(to) => Answer::builder()
            .status(307)
            .header("location", to)
            .body(Body::empty())
            .unwrap(),
    }
}

/// A chat completion that says this.
pub(crate) fn chat(content: &str) -> Play {
    Play::Says(json!({"choices": [{"finish_reason": "stop", "message": {"role": "assistant", "content": content}}]}))
}
