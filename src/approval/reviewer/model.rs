//! A model as reviewer, behind any endpoint that speaks OpenAI's chat completions or responses.

use std::error::Error as _;
use std::sync::Arc;
use std::time::Duration;

use futures_util::future::BoxFuture;
use reqwest::header::{AUTHORIZATION, HeaderValue};
use reqwest::redirect::Policy;
use reqwest::{Response, StatusCode};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::prompt::{self, Prompt};
use super::{Case, Failed, Failure, PATIENCE, Review, Reviewed, verdict};
use crate::policy::{Approver, ApproverKind};
use crate::secret::{ExposeSecret as _, Kept};

/// Tries at most: what is refused for the moment may be taken a moment later.
const ATTEMPTS: u32 = 3;

/// The pause before the second try; the one before the third is twice as long. Both vary by a tenth, so that many reviewers of one
/// endpoint do not come back together.
const PAUSE: Duration = Duration::from_millis(200);

/// An answer is a few hundred bytes, and what thinks aloud some kilobytes.
const ANSWER_LIMIT: usize = 1 << 20;

/// Which of the two APIs an endpoint speaks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Api {
    Chat,
    Responses,
}

/// Where the model is, and how it is asked.
#[derive(Debug, Clone)]
pub struct ModelSettings {
    /// The base URL, as `https://host/v1`.
    pub endpoint: String,
    pub api: Api,
    pub model: String,
    pub key: Option<Arc<Kept>>,
    /// The admin's own policy, beside the built-in one.
    pub policy: Option<String>,
    /// At most [`PATIENCE`].
    pub time: Duration,
}

#[derive(Debug, thiserror::Error)]
#[error("no client for the reviewer's endpoint can be made")]
pub struct ModelError(#[source] reqwest::Error);

/// See the page of the module.
pub struct Model {
    settings: ModelSettings,
    client: reqwest::Client,
}

impl Model {
    pub fn new(settings: ModelSettings) -> Result<Self, ModelError> {
        // One provider for all of the program; that there is one already is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let client = reqwest::Client::builder()
            // A redirect would carry the key and the case to where nobody sent them.
            .redirect(Policy::none())
            .build()
            .map_err(ModelError)?;
        Ok(Self { settings, client })
    }

    fn url(&self) -> String {
        let path = match self.settings.api {
            Api::Chat => "chat/completions",
            Api::Responses => "responses",
        };
        format!("{}/{path}", self.settings.endpoint.trim_end_matches('/'))
    }

    fn body(&self, prompt: &Prompt, schema: &Value) -> Value {
        let Prompt { instructions, input } = prompt;
        let model = &self.settings.model;
        match self.settings.api {
            Api::Chat => json!({
                "model": model,
                "messages": [
                    { "role": "system", "content": instructions },
                    { "role": "user", "content": input },
                ],
                "response_format": {
                    "type": "json_schema",
                    "json_schema": { "name": "verdict", "strict": true, "schema": schema },
                },
            }),
            Api::Responses => json!({
                "model": model,
                "instructions": instructions,
                "input": input,
                "store": false,
                "text": { "format": { "type": "json_schema", "name": "verdict", "strict": true, "schema": schema } },
            }),
        }
    }

    async fn think(&self, case: &Case) -> Reviewed {
        let prompt = match Prompt::of(case, self.settings.policy.as_deref(), &prompt::nonce()) {
            Ok(prompt) => prompt,
            Err(failed) => return Reviewed::failed(failed),
        };
        let (opinion, attempts) = self.ask(&prompt, &verdict::schema(), verdict::read).await;
        Reviewed { opinion, attempts }
    }

    /// Asks for one object of the schema, within [`PATIENCE`]; `read` makes sense of its text, and what it refuses is not asked
    /// again. The number is how often the model was asked.
    pub async fn ask<T>(
        &self,
        prompt: &Prompt,
        schema: &Value,
        read: impl Fn(&str) -> Result<T, Failed>,
    ) -> (Result<T, Failed>, u32) {
        let end = Instant::now() + self.settings.time.min(PATIENCE);
        let body = self.body(prompt, schema);
        let mut attempts = 0;
        let mut last = None;
        while attempts < ATTEMPTS {
            if attempts > 0 {
                let pause = varied(PAUSE * 2_u32.pow(attempts - 1));
                if Instant::now() + pause >= end {
                    break;
                }
                tokio::time::sleep(pause).await;
            }
            attempts += 1;
            let answer = match tokio::time::timeout_at(end, self.ask_once(&body)).await {
                Ok(Ok(text)) => read(&text),
                Ok(Err(Problem::Lasting(failed))) => Err(failed),
                Ok(Err(Problem::Passing(failed))) => {
                    last = Some(failed);
                    continue;
                }
                Err(_) => Err(Failed::new(
                    Failure::TimedOut,
                    format!("no answer within {:?}", self.settings.time.min(PATIENCE)),
                )),
            };
            return (answer, attempts);
        }
        let failed = last.unwrap_or_else(|| Failed::new(Failure::TimedOut, "no time was left for another try"));
        (Err(failed), attempts)
    }

    /// The text of the answer.
    async fn ask_once(&self, body: &Value) -> Result<String, Problem> {
        let mut request = self.client.post(self.url()).json(body);
        if let Some(key) = &self.settings.key {
            let key = key
                .clone()
                .current()
                .await
                .map_err(|error| lasting(Failure::Rejected, format!("its key cannot be read: {error}")))?;
            let header = HeaderValue::from_str(&format!("Bearer {}", key.expose_secret()));
            let mut header = header.map_err(|_| lasting(Failure::Rejected, "its key cannot stand in a header"))?;
            header.set_sensitive(true);
            request = request.header(AUTHORIZATION, header);
        }
        let response = request.send().await.map_err(|error| passing(&error))?;
        let status = response.status();
        if status.is_server_error() || is_for_the_moment(status) {
            let detail = format!("it answered {status}");
            return Err(Problem::Passing(Failed::new(Failure::Unreachable, detail)));
        }
        let answer = read(response).await?;
        if status != StatusCode::OK {
            let why = serde_json::from_slice::<Value>(&answer)
                .ok()
                .and_then(|answer| answer["error"]["message"].as_str().map(verdict::short))
                .unwrap_or_default();
            return Err(lasting(Failure::Rejected, format!("it answered {status}: {why}")));
        }
        let answer: Value = serde_json::from_slice(&answer)
            .map_err(|error| lasting(Failure::Malformed, format!("the answer is no JSON: {error}")))?;
        let text = match self.settings.api {
            Api::Chat => verdict::of_chat(&answer),
            Api::Responses => verdict::of_response(&answer),
        };
        text.map(str::to_owned).map_err(Problem::Lasting)
    }
}

impl Review for Model {
    fn approver(&self) -> Approver {
        Approver {
            kind: ApproverKind::Reviewer,
            name: self.settings.model.clone(),
            via: self.settings.endpoint.clone(),
        }
    }

    fn review<'a>(&'a self, case: &'a Case) -> BoxFuture<'a, Reviewed> {
        Box::pin(self.think(case))
    }
}

/// Whether it is worth another try.
enum Problem {
    Passing(Failed),
    Lasting(Failed),
}

fn lasting(failure: Failure, detail: impl Into<String>) -> Problem {
    Problem::Lasting(Failed::new(failure, detail))
}

/// What went wrong on the way, without the URL, which the record has anyway.
fn passing(error: &reqwest::Error) -> Problem {
    let mut cause = error.source();
    let mut detail = "it cannot be reached".to_owned();
    while let Some(link) = cause {
        detail = format!("it cannot be reached: {link}");
        cause = link.source();
    }
    Problem::Passing(Failed::new(Failure::Unreachable, verdict::short(&detail)))
}

fn is_for_the_moment(status: StatusCode) -> bool {
    matches!(
        status,
        StatusCode::REQUEST_TIMEOUT | StatusCode::CONFLICT | StatusCode::TOO_EARLY | StatusCode::TOO_MANY_REQUESTS
    )
}

async fn read(mut response: Response) -> Result<Vec<u8>, Problem> {
    let mut answer = Vec::new();
    while let Some(piece) = response.chunk().await.map_err(|error| passing(&error))? {
        if answer.len() + piece.len() > ANSWER_LIMIT {
            let detail = format!("the answer has more than {ANSWER_LIMIT} bytes");
            return Err(lasting(Failure::TooLarge, detail));
        }
        answer.extend_from_slice(&piece);
    }
    Ok(answer)
}

/// The time, a tenth more or less.
fn varied(time: Duration) -> Duration {
    use std::hash::{BuildHasher as _, RandomState};
    // Each state is keyed anew.
    let random = RandomState::new().hash_one(0) % 2001;
    time.mul_f64(0.9 + random as f64 / 10_000.0)
}

#[cfg(test)]
mod tests;
