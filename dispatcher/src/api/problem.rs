//! What a caller is told when it does not get what it asked for (RFC 9457).

use std::time::Duration;

use axum::http::{HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

use crate::store::{HistoryError, StoreError};

/// Which problem it is. Its name in kebab case ends the problem's `type`, and never changes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, strum::IntoStaticStr, strum::EnumIter, strum::Display,
)]
#[strum(serialize_all = "kebab-case")]
pub enum Kind {
    /// The body is not JSON at all.
    MalformedJson,
    /// The body or the query does not say what is expected; `errors` has every place.
    InvalidRequest,
    /// The body is of a type that this call does not read.
    UnsupportedMediaType,
    /// The body is longer than this call reads.
    BodyTooLarge,
    /// No key or token, or one that is not good.
    Unauthenticated,
    /// The key lacks a scope.
    MissingScope,
    /// The cluster's RBAC does not allow it.
    Forbidden,
    /// No such template is in force.
    UnknownTemplate,
    /// There is no such thing here.
    NotFound,
    /// The path exists, but not for this method.
    MethodNotAllowed,
    /// The Idempotency-Key was used for a different body.
    IdempotencyKeyReused,
    /// The first request with this Idempotency-Key has not been answered yet.
    RequestInFlight,
    /// The state of the thing does not allow this.
    Conflict,
    /// It was changed since it was read: the `If-Match` does not match.
    Changed,
    /// This cannot be changed over HTTP here.
    ReadOnly,
    /// The sender sends faster than it may.
    RateLimited,
    /// Nothing more can be queued for now.
    QueueFull,
    /// The broker gave no receipt: perhaps accepted.
    NoReceipt,
    /// Something that is needed is away.
    Unavailable,
    /// The call took too long.
    Timeout,
    /// A defect of Herald's.
    Internal,
}

impl Kind {
    /// The HTTP status.
    pub const fn status(self) -> StatusCode {
        match self {
            Self::MalformedJson => StatusCode::BAD_REQUEST,
            Self::InvalidRequest | Self::IdempotencyKeyReused => StatusCode::UNPROCESSABLE_ENTITY,
            Self::UnsupportedMediaType => StatusCode::UNSUPPORTED_MEDIA_TYPE,
            Self::BodyTooLarge => StatusCode::PAYLOAD_TOO_LARGE,
            Self::Unauthenticated => StatusCode::UNAUTHORIZED,
            Self::MissingScope | Self::Forbidden => StatusCode::FORBIDDEN,
            Self::UnknownTemplate | Self::NotFound => StatusCode::NOT_FOUND,
            Self::MethodNotAllowed | Self::ReadOnly => StatusCode::METHOD_NOT_ALLOWED,
            Self::RequestInFlight | Self::Conflict => StatusCode::CONFLICT,
            Self::Changed => StatusCode::PRECONDITION_FAILED,
            Self::RateLimited => StatusCode::TOO_MANY_REQUESTS,
            Self::QueueFull | Self::NoReceipt | Self::Unavailable | Self::Timeout => {
                StatusCode::SERVICE_UNAVAILABLE
            }
            Self::Internal => StatusCode::INTERNAL_SERVER_ERROR,
        }
    }

    /// What the problem is called, for people: the same for every occurrence.
    pub const fn title(self) -> &'static str {
        match self {
            Self::MalformedJson => "The body is not JSON",
            Self::InvalidRequest => "The request does not say what is expected",
            Self::UnsupportedMediaType => "The body is of a type that is not read here",
            Self::BodyTooLarge => "The body is too large",
            Self::Unauthenticated => "A valid API key or token is needed",
            Self::MissingScope => "The API key does not allow this",
            Self::Forbidden => "The caller may not do this",
            Self::UnknownTemplate => "No such template is in force",
            Self::NotFound => "There is no such thing here",
            Self::MethodNotAllowed => "This path is not for this method",
            Self::IdempotencyKeyReused => "The Idempotency-Key was used for something else",
            Self::RequestInFlight => "The first request with this Idempotency-Key is under way",
            Self::Conflict => "Its state does not allow this",
            Self::Changed => "It was changed since it was read",
            Self::ReadOnly => "This cannot be changed over HTTP here",
            Self::RateLimited => "Too many requests",
            Self::QueueFull => "Nothing more can be queued for now",
            Self::NoReceipt => "It is not certain that this was accepted",
            Self::Unavailable => "Something that is needed is not available",
            Self::Timeout => "It took too long",
            Self::Internal => "Something went wrong in Herald",
        }
    }

    /// The problem's `type`: a reference that stays the same, and that `/docs` explains.
    pub fn uri(self) -> String {
        format!("/problems/{self}")
    }
}

/// One thing that is wrong with a request, and where.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize, ToSchema)]
pub struct FieldError {
    /// JSON Pointer (RFC 6901) into the body; `?name` for a parameter of the query; empty for the whole body.
    #[schema(example = "/recipients/0/address/email")]
    pub pointer: String,
    /// What is wrong with it and what to do.
    pub detail: String,
}

impl FieldError {
    /// Something wrong at `pointer`.
    pub fn new(pointer: impl Into<String>, detail: impl Into<String>) -> Self {
        Self {
            pointer: pointer.into(),
            detail: detail.into(),
        }
    }
}

/// A problem as it is sent: `application/problem+json` (RFC 9457).
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[schema(as = Problem)]
pub struct ProblemBody {
    /// Which problem it is: stable, for programs.
    #[schema(example = "/problems/invalid-request")]
    pub r#type: String,
    /// The same for people.
    pub title: String,
    /// The HTTP status.
    #[schema(example = 422)]
    pub status: u16,
    /// What is wrong this time, and what to do.
    pub detail: String,
    /// Every thing that is wrong, with its place.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub errors: Vec<FieldError>,
}

/// Why a caller does not get what it asked for. Handlers return it as their error.
#[derive(Debug, Clone)]
pub struct Problem(Box<Parts>);

#[derive(Debug, Clone)]
struct Parts {
    kind: Kind,
    detail: String,
    errors: Vec<FieldError>,
    headers: Vec<(HeaderName, HeaderValue)>,
}

impl Problem {
    /// A problem, with a sentence about this occurrence: what is wrong and what to do.
    pub fn new(kind: Kind, detail: impl Into<String>) -> Self {
        Self(Box::new(Parts {
            kind,
            detail: detail.into(),
            errors: Vec::new(),
            headers: Vec::new(),
        }))
    }

    /// What is wrong with a request: [`Kind::InvalidRequest`] with every place.
    pub fn invalid(errors: Vec<FieldError>) -> Self {
        Self::new(Kind::InvalidRequest, String::new()).with_errors(errors)
    }

    /// The same for a single parameter of the query.
    pub fn query(name: &str, detail: impl Into<String>) -> Self {
        Self::invalid(vec![FieldError::new(format!("?{name}"), detail)])
    }

    /// There is no such thing: `what` such as `recipient "alice"`.
    pub fn not_found(what: &str) -> Self {
        Self::new(Kind::NotFound, format!("there is no {what} here"))
    }

    /// A well-formed id of which nothing is known, which may be a matter of moments: `Retry-After: 1`.
    pub fn not_known_yet(what: &str, namespace: &str) -> Self {
        let detail = format!(
            "there is no {what} in namespace {namespace:?}; if it was accepted a moment ago, ask again in a second"
        );
        Self::new(Kind::NotFound, detail).retry_after(Duration::from_secs(1))
    }

    /// With the places that are wrong; if there was no sentence yet, the first of them gives it.
    #[must_use]
    pub fn with_errors(mut self, errors: Vec<FieldError>) -> Self {
        if self.0.detail.is_empty()
            && let Some(first) = errors.first()
        {
            let at = if first.pointer.is_empty() {
                "the body"
            } else {
                &first.pointer
            };
            self.0.detail = match errors.len() {
                1 => format!("{at}: {}", first.detail),
                n => format!("{at}: {} (and {} more in errors)", first.detail, n - 1),
            };
        }
        self.0.errors = errors;
        self
    }

    /// With `Retry-After`, in whole seconds, at least one.
    #[must_use]
    pub fn retry_after(self, after: Duration) -> Self {
        let seconds = after.as_millis().div_ceil(1000).max(1) as u64;
        self.header(header::RETRY_AFTER, HeaderValue::from(seconds))
    }

    /// With a further header field.
    #[must_use]
    pub fn header(mut self, name: HeaderName, value: HeaderValue) -> Self {
        self.0.headers.push((name, value));
        self
    }

    /// Which problem it is.
    pub fn kind(&self) -> Kind {
        self.0.kind
    }

    /// Its JSON form.
    pub fn body(&self) -> ProblemBody {
        let Parts {
            kind,
            detail,
            errors,
            ..
        } = &*self.0;
        ProblemBody {
            r#type: kind.uri(),
            title: kind.title().to_owned(),
            status: kind.status().as_u16(),
            detail: detail.clone(),
            errors: errors.clone(),
        }
    }
}

impl IntoResponse for Problem {
    fn into_response(self) -> Response {
        let kind = self.kind();
        let body = serde_json::to_vec(&self.body()).unwrap_or_default();
        let mut response = (kind.status(), body).into_response();
        let headers = response.headers_mut();
        headers.insert(
            header::CONTENT_TYPE,
            HeaderValue::from_static("application/problem+json"),
        );
        for (name, value) in self.0.headers {
            headers.insert(name, value);
        }
        // The middleware that counts refusals finds the kind here.
        response.extensions_mut().insert(kind);
        response
    }
}

impl From<StoreError> for Problem {
    /// A database that is away is 503; anything else is a defect, of which only the log has the particulars.
    fn from(error: StoreError) -> Self {
        match error {
            StoreError::Unavailable { .. } => {
                tracing::warn!(%error, "a question to the store failed");
                Self::new(
                    Kind::Unavailable,
                    "the database is not available at the moment; try again",
                )
                .retry_after(Duration::from_secs(1))
            }
            StoreError::Open { .. } | StoreError::Corrupt { .. } => {
                tracing::error!(%error, "a question to the store failed");
                Self::new(
                    Kind::Internal,
                    "the database answered something unexpected; the log says what",
                )
            }
        }
    }
}

impl From<HistoryError> for Problem {
    fn from(error: HistoryError) -> Self {
        match error {
            HistoryError::BadCursor => Self::query(
                "cursor",
                "is not one that this list answered: leave it out to begin at the start",
            ),
            HistoryError::Store(error) => error.into(),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use strum::IntoEnumIterator;

    use super::*;

    #[test]
    fn every_kind_has_a_type_of_its_own_and_an_error_status() {
        let mut seen = HashSet::new();
        for kind in Kind::iter() {
            assert!(seen.insert(kind.uri()));
            assert!(kind.status().is_client_error() || kind.status().is_server_error());
        }
    }

    #[test]
    fn the_first_place_gives_the_sentence_and_says_that_there_are_more() {
        let problem = Problem::invalid(vec![
            FieldError::new("/template", "is missing"),
            FieldError::new("/recipients", "is missing"),
        ]);
        assert_eq!(
            problem.body().detail,
            "/template: is missing (and 1 more in errors)"
        );
    }

    #[test]
    fn retry_after_is_never_zero_and_rounds_up() {
        for (given, expected) in [(0, "1"), (1, "1"), (1000, "1"), (1001, "2")] {
            let problem = Problem::new(Kind::QueueFull, "full")
                .retry_after(Duration::from_millis(given))
                .into_response();
            assert_eq!(problem.headers()[header::RETRY_AFTER], expected);
        }
    }
}
