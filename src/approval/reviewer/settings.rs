//! Which reviewer there is, as the configuration of the system or of the user says. A project and a task spec have no say in this.

use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use super::classes::{Class, Classes, ClassesError};
use super::command::Program;
use super::model::{Api, Model, ModelError, ModelSettings};
use super::{Review, Risk};
use crate::document::Word;
use crate::secret::Kept;
use crate::task::SecretSource;

/// A reviewer that is to be made.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Settings {
    pub by: By,
    /// How long one review may take.
    pub time: Duration,
}

/// What reviews.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum By {
    /// A program and its arguments.
    Program(Vec<String>),
    Model(ByModel),
    Classes {
        classes: Vec<Class>,
        pass: Risk,
    },
}

/// A model, and where it is.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ByModel {
    pub endpoint: String,
    pub api: Api,
    pub model: String,
    pub key: Option<SecretSource>,
    pub policy: Option<String>,
}

/// Why there is no reviewer.
#[derive(Debug, thiserror::Error)]
pub enum SettingsError {
    #[error(transparent)]
    Model(#[from] ModelError),
    #[error(transparent)]
    Classes(#[from] ClassesError),
}

impl Settings {
    /// The program that reviews, where one does.
    pub fn program(&self) -> Option<&str> {
        match &self.by {
            By::Program(command) => command.first().map(String::as_str),
            By::Model(_) | By::Classes { .. } => None,
        }
    }

    /// Adds to what a model that reviews is told; programs and classes have a policy of their own.
    pub fn add_policy(&mut self, text: &str) {
        if let By::Model(model) = &mut self.by {
            let own = model.policy.take().map_or(String::new(), |own| format!("{own}\n\n"));
            model.policy = Some(format!("{own}{text}"));
        }
    }

    /// Makes the reviewer; nothing is asked or read yet.
    pub fn start(&self) -> Result<Arc<dyn Review>, SettingsError> {
        Ok(match &self.by {
            By::Program(command) => Arc::new(Program {
                command: command.clone(),
                time: self.time,
            }),
            By::Model(model) => Arc::new(self.client(model)?),
            By::Classes { classes, pass } => Arc::new(Classes::new(classes, *pass)?),
        })
    }

    /// The model that reviews, where one does, to ask it other things.
    pub fn model(&self) -> Result<Option<Model>, ModelError> {
        match &self.by {
            By::Model(model) => self.client(model).map(Some),
            By::Program(_) | By::Classes { .. } => Ok(None),
        }
    }

    fn client(&self, by: &ByModel) -> Result<Model, ModelError> {
        Model::new(ModelSettings {
            endpoint: by.endpoint.clone(),
            api: by.api,
            model: by.model.clone(),
            key: by.key.clone().map(|source| Arc::new(Kept::new(source))),
            policy: by.policy.clone(),
            time: self.time,
        })
    }
}

impl fmt::Display for By {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            By::Program(command) => write!(f, "command {}", command.join(" ")),
            By::Model(ByModel { endpoint, model, .. }) => write!(f, "model {model} at {endpoint}"),
            By::Classes { classes, .. } => write!(f, "{} classes of risk", classes.len()),
        }
    }
}

impl Word for Api {
    const WORDS: &'static [(&'static str, Self)] = &[("chat", Api::Chat), ("responses", Api::Responses)];
}

impl Word for Risk {
    const WORDS: &'static [(&'static str, Self)] = &[
        ("low", Risk::Low),
        ("medium", Risk::Medium),
        ("high", Risk::High),
        ("critical", Risk::Critical),
    ];
}
