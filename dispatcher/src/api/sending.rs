//! Sending: one notification, many, or none (a dry run).

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, Request, State};
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use bytes::Bytes;
use futures::StreamExt;
use herald_crds::Priority;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::value::RawValue;
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::problem::ProblemBody;
use super::{Api, Caller, FieldError, JsonBody, Kind, Params, Problem, body, dry_run, schema};
use crate::accept::{Accepted, Refusal, SendRequest};
use crate::access::Sender;

/// Most notifications of a batch.
const MOST_IN_BATCH: usize = 1000;

/// Notifications of a batch that wait for their receipts at a time: enough for group commit to work.
const SIDE_BY_SIDE: usize = 256;

/// The calls that send.
pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(send))
        .routes(routes!(send_batch))
}

/// A notification that was accepted.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct AcceptedBody {
    /// Its id.
    #[schema(example = "4f2a9c0d1e8b47a6b3c5d7e9f1a2b3c4")]
    pub id: String,
    /// When it was accepted.
    #[schema(value_type = String, format = DateTime)]
    pub accepted_at: Timestamp,
    /// Its class.
    #[schema(schema_with = schema::priority)]
    pub priority: Priority,
    /// `accepted`: it is durable, and on its way.
    #[schema(example = "accepted")]
    pub status: String,
}

impl From<&Accepted> for AcceptedBody {
    fn from(accepted: &Accepted) -> Self {
        Self {
            id: accepted.id.to_string(),
            accepted_at: accepted.accepted_at,
            priority: accepted.priority,
            status: "accepted".to_owned(),
        }
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct SendQuery {
    /// Nothing is sent: the answer says what would be.
    #[serde(default)]
    dry_run: bool,
}

/// Send a notification.
///
/// The answer comes once the notification is durable. With an Idempotency-Key a repeat of the same request gets the
/// same answer, and nothing is sent twice; send one whenever you would repeat a request that failed.
#[utoipa::path(
    post, path = "/v1/namespaces/{ns}/notifications", tag = "Sending",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("Idempotency-Key" = Option<String>, Header, description = "1 to 255 visible ASCII characters, chosen by the sender"),
        ("traceparent" = Option<String>, Header, description = "W3C trace context"),
        SendQuery,
    ),
    request_body(content = SendRequest, example = json!({
        "template": "order-shipped",
        "recipients": [
            {"recipient": "alice"},
            {"group": "vip"},
            {"address": {"email": "kim@customer.example", "locale": "ko"}}
        ],
        "parameters": {"order": {"id": "A-1042", "total": 68.45}},
        "sendAt": "2030-01-07T09:00:00+01:00",
        "metadata": {"ticket": "OPS-7"}
    })),
    responses(
        (status = 202, body = AcceptedBody, description = "Accepted: durable, and on its way"),
        (status = 200, body = dry_run::DryRun, description = "What would be sent (with dryRun=true)"),
    )
)]
async fn send(
    State(api): State<Arc<Api>>,
    Path(namespace): Path<String>,
    caller: Caller,
    Params(query): Params<SendQuery>,
    headers: HeaderMap,
    JsonBody(request): JsonBody<SendRequest>,
) -> Result<Response, Problem> {
    if query.dry_run {
        let prepared = api
            .accept
            .prepare(&caller.sender, &namespace, request)
            .await?;
        return Ok(Json(dry_run::run(&api, &caller, prepared).await?).into_response());
    }
    let key = idempotency_key(&headers)?;
    let traceparent = traceparent(&headers);
    let accepted = api
        .accept
        .accept(&caller.sender, &namespace, request, key, traceparent)
        .await?;
    let location = format!("/v1/namespaces/{namespace}/notifications/{}", accepted.id);
    let mut response = (StatusCode::ACCEPTED, Json(AcceptedBody::from(&accepted))).into_response();
    let headers = response.headers_mut();
    if let Ok(location) = HeaderValue::try_from(location) {
        headers.insert(header::LOCATION, location);
    }
    if accepted.replayed {
        headers.insert(
            HeaderName::from_static("idempotency-replayed"),
            HeaderValue::from_static("true"),
        );
    }
    Ok(response)
}

/// What became of one notification of a batch.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct BatchResult {
    /// The HTTP status that it would have got alone.
    #[schema(example = 202)]
    pub status: u16,
    /// It was accepted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub accepted: Option<AcceptedBody>,
    /// It was accepted before, under the same key.
    #[serde(default, skip_serializing_if = "std::ops::Not::not")]
    pub replayed: bool,
    /// It was not.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub problem: Option<ProblemBody>,
}

impl From<Result<Accepted, Problem>> for BatchResult {
    fn from(result: Result<Accepted, Problem>) -> Self {
        match result {
            Ok(accepted) => Self {
                status: StatusCode::ACCEPTED.as_u16(),
                replayed: accepted.replayed,
                accepted: Some(AcceptedBody::from(&accepted)),
                problem: None,
            },
            Err(problem) => Self {
                status: problem.kind().status().as_u16(),
                accepted: None,
                replayed: false,
                problem: Some(problem.body()),
            },
        }
    }
}

/// What became of a batch: one result for each, in the order given.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
pub struct BatchResults {
    /// One for each.
    pub results: Vec<BatchResult>,
}

/// Send up to 1,000 notifications.
///
/// A JSON array, or NDJSON (`application/x-ndjson`), of what sending one takes; each may have an `idempotencyKey` beside
/// its other members. One that is wrong does not keep the others from being sent.
#[utoipa::path(
    post, path = "/v1/namespaces/{ns}/notifications/batch", tag = "Sending",
    params(("ns" = String, Path, description = "Namespace")),
    request_body(content(
        (Vec<SendRequest> = "application/json"),
        (String = "application/x-ndjson"),
    )),
    responses((status = 200, body = BatchResults, description = "What became of each"))
)]
async fn send_batch(
    State(api): State<Arc<Api>>,
    Path(namespace): Path<String>,
    caller: Caller,
    request: Request,
) -> Result<Json<BatchResults>, Problem> {
    let (parts, content) = request.into_parts();
    let is_lines = match body::media_type(&parts.headers).as_deref() {
        Some("application/x-ndjson" | "application/ndjson" | "application/jsonl") => true,
        Some("application/json") | None => false,
        Some(_) => {
            return Err(Problem::new(
                Kind::UnsupportedMediaType,
                "a batch is application/json (an array) or application/x-ndjson (one in each line)",
            ));
        }
    };
    let bytes = body::collect(content, &parts.headers).await?;
    let items: Vec<Bytes> = if is_lines {
        let lines = bytes.split(|byte| *byte == b'\n');
        lines
            .filter(|line| !line.trim_ascii().is_empty())
            .map(|line| bytes.slice_ref(line))
            .collect()
    } else {
        let items: Vec<&RawValue> = body::from_json(&bytes)?;
        items
            .into_iter()
            .map(|item| bytes.slice_ref(item.get().as_bytes()))
            .collect()
    };
    if items.is_empty() || items.len() > MOST_IN_BATCH {
        let detail = format!(
            "a batch has 1 to {MOST_IN_BATCH} notifications (got {})",
            items.len()
        );
        return Err(Problem::invalid(vec![FieldError::new("", detail)]));
    }
    let traceparent = traceparent(&parts.headers);
    let results = futures::stream::iter(items)
        .map(|item| {
            let (api, sender, namespace) = (&api, &caller.sender, &namespace);
            async move { send_item(api, sender, namespace, &item, traceparent).await }
        })
        .buffered(SIDE_BY_SIDE)
        .map(BatchResult::from)
        .collect()
        .await;
    Ok(Json(BatchResults { results }))
}

async fn send_item(
    api: &Api,
    sender: &Sender,
    namespace: &str,
    item: &[u8],
    traceparent: Option<&str>,
) -> Result<Accepted, Problem> {
    let mut members: serde_json::Map<String, serde_json::Value> = body::from_json(item)?;
    let key = match members.remove("idempotencyKey") {
        None | Some(serde_json::Value::Null) => None,
        Some(serde_json::Value::String(key)) => Some(checked_key(key, "/idempotencyKey")?),
        Some(_) => {
            return Err(Problem::invalid(vec![FieldError::new(
                "/idempotencyKey",
                "must be a string",
            )]));
        }
    };
    let request = body::from_value(serde_json::Value::Object(members))?;
    let accepted = api
        .accept
        .accept(sender, namespace, request, key.as_deref(), traceparent)
        .await?;
    Ok(accepted)
}

fn traceparent(headers: &HeaderMap) -> Option<&str> {
    headers.get("traceparent")?.to_str().ok()
}

fn idempotency_key(headers: &HeaderMap) -> Result<Option<&str>, Problem> {
    let Some(value) = headers.get("idempotency-key") else {
        return Ok(None);
    };
    let key = value.to_str().unwrap_or_default();
    checked_key(key, "Idempotency-Key").map(Some)
}

fn checked_key<T: AsRef<str>>(key: T, place: &str) -> Result<T, Problem> {
    let text = key.as_ref();
    if (1..=255).contains(&text.len()) && text.bytes().all(|b| (b' '..=b'~').contains(&b)) {
        return Ok(key);
    }
    Err(Problem::invalid(vec![FieldError::new(
        place,
        "must have 1 to 255 visible ASCII characters",
    )]))
}

impl From<Refusal> for Problem {
    fn from(refusal: Refusal) -> Self {
        let errors = |problems: Vec<herald_crds::Problem>| -> Vec<FieldError> {
            problems
                .into_iter()
                .map(|p| FieldError::new(p.path, p.message))
                .collect()
        };
        let detail = refusal.to_string();
        match refusal {
            Refusal::FindTemplate { problems, .. } => {
                let mut all = vec![FieldError::new("/template", detail.as_str())];
                all.extend(errors(problems));
                Self::new(Kind::UnknownTemplate, detail).with_errors(all)
            }
            Refusal::Read { .. } => Self::new(Kind::Unavailable, detail)
                .retry_after(std::time::Duration::from_secs(5)),
            Refusal::Check { problems } => Self::invalid(errors(problems)),
            Refusal::Authorize { denied, because } => {
                let needs = denied.needs();
                let problem = Self::from(denied);
                if because.is_empty() {
                    return problem;
                }
                problem.with_errors(vec![FieldError::new(because, needs)])
            }
            Refusal::Limit { limit, wait, .. } => {
                let seconds = wait.as_secs() + 1;
                let field = |name, value: u64| (HeaderName::from_static(name), HeaderValue::from(value));
                [
                    field("ratelimit-limit", limit.into()),
                    field("ratelimit-remaining", 0),
                    field("ratelimit-reset", seconds),
                ]
                .into_iter()
                .fold(
                    Self::new(Kind::RateLimited, detail).retry_after(wait),
                    |problem, (name, value)| problem.header(name, value),
                )
            }
            Refusal::ReuseKey => Self::new(Kind::IdempotencyKeyReused, detail),
            Refusal::AwaitFirst => Self::new(Kind::RequestInFlight, detail)
                .retry_after(std::time::Duration::from_secs(1)),
            Refusal::Queue { .. } => Self::new(Kind::QueueFull, detail)
                .retry_after(std::time::Duration::from_secs(5)),
            Refusal::Receipt => Self::new(
                Kind::NoReceipt,
                "the broker gave no receipt in time; repeat the request with the same Idempotency-Key: if it was \
                 accepted after all, nothing is sent twice",
            )
            .retry_after(std::time::Duration::from_secs(1)),
        }
    }
}
