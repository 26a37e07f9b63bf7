//! Bodies: read within a bound, and refused with the place that is wrong.

use axum::body::Body;
use axum::extract::{FromRequest, Request};
use axum::http::{HeaderMap, header};
use bytes::{Bytes, BytesMut};
use futures::StreamExt;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::problem::{FieldError, Kind, Problem};

/// Most bytes of a body, unless a call streams it.
pub const MAX_BODY: usize = 2 * 1024 * 1024;

/// What is said of a body that is not there.
const EMPTY: &str =
    "the body is empty: give a JSON object; where it only narrows down what is meant, {} means all";

/// Of a body that is too long, so much more is read and thrown away, so that the caller gets to read the answer
/// instead of a broken connection.
const DISCARDED: usize = 32 * 1024 * 1024;

/// A JSON body of at most [`MAX_BODY`] bytes. Refused with the line and column where it is not JSON, with the JSON Pointer
/// where it is not what is expected, and by name where a field is unknown.
#[derive(Debug, Clone, Copy)]
pub struct JsonBody<T>(pub T);

impl<T: DeserializeOwned, S: Send + Sync> FromRequest<S> for JsonBody<T> {
    type Rejection = Problem;

    async fn from_request(request: Request, _: &S) -> Result<Self, Problem> {
        let (parts, body) = request.into_parts();
        // A body without a type is taken for JSON; one that says it is something else is not.
        if !media_type(&parts.headers)
            .is_none_or(|t| t == "application/json" || t.ends_with("+json"))
        {
            return Err(Problem::new(
                Kind::UnsupportedMediaType,
                "this call reads application/json",
            ));
        }
        let bytes = collect(body, &parts.headers).await?;
        if bytes.trim_ascii().is_empty() {
            return Err(Problem::new(Kind::MalformedJson, EMPTY));
        }
        from_json(&bytes).map(Self)
    }
}

/// The body's type in lower case, without parameters; `None` if it does not say.
pub fn media_type(headers: &HeaderMap) -> Option<String> {
    let value = headers.get(header::CONTENT_TYPE)?.to_str().ok()?;
    let essence = value.split(';').next().unwrap_or(value);
    Some(essence.trim().to_ascii_lowercase())
}

/// Reads a body of at most [`MAX_BODY`] bytes.
pub async fn collect(body: Body, headers: &HeaderMap) -> Result<Bytes, Problem> {
    let announced = headers
        .get(header::CONTENT_LENGTH)
        .and_then(|value| value.to_str().ok()?.parse::<usize>().ok());
    let mut stream = body.into_data_stream();
    let mut bytes = BytesMut::with_capacity(announced.unwrap_or(0).min(MAX_BODY));
    let mut length = 0;
    while let Some(chunk) = stream.next().await {
        let chunk = chunk.map_err(|_| {
            Problem::new(Kind::MalformedJson, "the body ended before it was complete")
        })?;
        length += chunk.len();
        if length <= MAX_BODY {
            bytes.extend_from_slice(&chunk);
        } else if length > MAX_BODY + DISCARDED {
            break;
        }
    }
    if length > MAX_BODY {
        return Err(Problem::new(
            Kind::BodyTooLarge,
            "a body may have 2 MiB: put large audiences into a managed group \
             (PUT …/groups/{group}/members/{id}) and name the group instead",
        ));
    }
    Ok(bytes.freeze())
}

/// Reads a value out of JSON, with a [`Problem`] that says where it is wrong.
pub fn from_json<'a, T: Deserialize<'a>>(bytes: &'a [u8]) -> Result<T, Problem> {
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let value = serde_path_to_error::deserialize(&mut deserializer).map_err(|error| {
        let pointer = pointer(error.path());
        describe(error.inner(), pointer)
    })?;
    deserializer
        .end()
        .map_err(|error| describe(&error, String::new()))?;
    Ok(value)
}

/// The same of JSON that was read already.
pub fn from_value<T: DeserializeOwned>(value: serde_json::Value) -> Result<T, Problem> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let pointer = pointer(error.path());
        Problem::invalid(vec![FieldError::new(pointer, error.inner().to_string())])
    })
}

fn describe(error: &serde_json::Error, pointer: String) -> Problem {
    let (line, column) = (error.line(), error.column());
    let text = error.to_string();
    let what = text
        .rsplit_once(" at line ")
        .map_or(text.as_str(), |(what, _)| what);
    if error.is_data() {
        let detail = format!("{what} (line {line}, column {column})");
        return Problem::invalid(vec![FieldError::new(pointer, detail)]);
    }
    Problem::new(
        Kind::MalformedJson,
        format!("line {line}, column {column}: {what}"),
    )
}

/// The JSON Pointer of what serde was reading. An unknown field is the last part of its path.
fn pointer(path: &serde_path_to_error::Path) -> String {
    use std::fmt::Write as _;

    use serde_path_to_error::Segment;

    let mut pointer = String::new();
    for segment in path {
        match segment {
            Segment::Seq { index } => {
                // Writing to a string cannot fail.
                let _ = write!(pointer, "/{index}");
            }
            Segment::Map { key } => {
                pointer.push('/');
                pointer.push_str(&herald_crds::validate::escape(key));
            }
            Segment::Enum { .. } | Segment::Unknown => {}
        }
    }
    pointer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Order {
        #[allow(dead_code, reason = "read by serde alone")]
        lines: Vec<Line>,
    }

    #[derive(Debug, Deserialize)]
    #[serde(deny_unknown_fields)]
    struct Line {
        #[allow(dead_code, reason = "read by serde alone")]
        count: u32,
    }

    #[test]
    fn malformed_json_says_line_and_column() {
        let problem = from_json::<Order>(b"{\"lines\":\n [}").unwrap_err();
        assert_eq!(problem.kind(), Kind::MalformedJson);
        assert!(
            problem.body().detail.contains("line 2, column 3"),
            "{problem:?}"
        );
    }

    #[test]
    fn an_unknown_field_and_a_wrong_type_say_where_and_what() {
        let body = from_json::<Order>(br#"{"lines":[{"count":1},{"cuont":2}]}"#)
            .unwrap_err()
            .body();
        assert_eq!(body.status, 422);
        assert_eq!(body.errors[0].pointer, "/lines/1/cuont");
        assert!(body.errors[0].detail.contains("cuont"));
        let body = from_json::<Order>(br#"{"lines":[{"count":"x"}]}"#)
            .unwrap_err()
            .body();
        assert_eq!(body.errors[0].pointer, "/lines/0/count");
    }

    #[test]
    fn what_follows_the_json_is_refused() {
        let problem = from_json::<Order>(br#"{"lines":[]} {"#).unwrap_err();
        assert_eq!(problem.kind(), Kind::MalformedJson);
    }
}
