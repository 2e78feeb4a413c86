//! What the API answers when it does not do what was asked: a code for programs, a text for people.

use axum::http::StatusCode;
use axum::response::{IntoResponse, Response};

use super::messages::{ErrorBody, ErrorCode, ErrorText};
use crate::supervisor::{NotRecorded, NotRunning, StdinClosed, SubmitError};

/// An answer that is not a success. Its text is safe to show outside.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("{}", .0.message)]
pub struct ApiError(pub ErrorText);

impl ApiError {
    pub fn new(code: ErrorCode, message: impl Into<String>) -> Self {
        Self(ErrorText {
            code,
            message: message.into(),
            faults: Vec::new(),
        })
    }

    pub fn bad_request(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::BadRequest, message)
    }

    pub fn not_found(message: impl Into<String>) -> Self {
        Self::new(ErrorCode::NotFound, message)
    }

    /// A request with these faults, at least one.
    pub fn faults(faults: Vec<String>) -> Self {
        Self(ErrorText {
            code: ErrorCode::BadRequest,
            message: faults.join("; "),
            faults,
        })
    }

    fn status(&self) -> StatusCode {
        match self.0.code {
            ErrorCode::BadRequest => StatusCode::BAD_REQUEST,
            ErrorCode::Forbidden => StatusCode::FORBIDDEN,
            ErrorCode::NotFound => StatusCode::NOT_FOUND,
            ErrorCode::Conflict => StatusCode::CONFLICT,
            ErrorCode::TooMany => StatusCode::TOO_MANY_REQUESTS,
            ErrorCode::TooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            ErrorCode::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }
}

impl IntoResponse for ApiError {
    fn into_response(self) -> Response {
        (self.status(), axum::Json(ErrorBody { error: self.0 })).into_response()
    }
}

impl From<SubmitError> for ApiError {
    fn from(error: SubmitError) -> Self {
        let code = match error {
            SubmitError::Ended => ErrorCode::Conflict,
            SubmitError::TooMany { .. } => ErrorCode::TooMany,
        };
        Self::new(code, error.to_string())
    }
}

impl From<NotRunning> for ApiError {
    fn from(error: NotRunning) -> Self {
        Self::new(ErrorCode::Conflict, error.to_string())
    }
}

impl From<StdinClosed> for ApiError {
    fn from(error: StdinClosed) -> Self {
        Self::new(ErrorCode::Conflict, error.to_string())
    }
}

impl From<NotRecorded> for ApiError {
    fn from(error: NotRecorded) -> Self {
        let code = match error {
            NotRecorded::Journal(_) => ErrorCode::Internal,
            NotRecorded::SwitchedOff => ErrorCode::Forbidden,
        };
        Self::new(code, error.to_string())
    }
}
