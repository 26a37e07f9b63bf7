//! Addresses to which nothing is sent.

use std::str::FromStr;
use std::sync::Arc;

use axum::Json;
use axum::body::Body;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, StatusCode};
use herald_crds::address::{check_email, check_url};
use herald_crds::{Medium, pattern};
use serde::Deserialize;
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::body::{collect, from_json};
use super::super::page::PageQuery;
use super::super::{Api, Caller, FieldError, Kind, PageOf, Params, Problem, page};
use crate::clock;
use crate::store::SuppressedAddress;

/// Longest reason, in bytes.
const LONGEST_REASON: usize = 200;

/// The calls about suppressed addresses.
pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(get, put, delete))
}

/// The medium of the path, if addresses of it can be suppressed and this is one.
fn check(medium: &str, address: &str) -> Result<(), Problem> {
    let wrong = |detail: String| Err(Problem::new(Kind::InvalidRequest, detail));
    let checked = match Medium::from_str(medium) {
        Ok(Medium::Email) => check_email(address),
        Ok(Medium::Sms | Medium::Voice) => pattern::check(pattern::PHONE, address),
        Ok(Medium::Webhook) => check_url(address),
        Ok(Medium::Push | Medium::Chat | Medium::Inbox) | Err(_) => {
            let detail = "the medium in the path must be email, sms, voice or webhook";
            return wrong(format!("{detail} (got {medium:?})"));
        }
    };
    match checked {
        Ok(()) => Ok(()),
        Err(words) => wrong(format!("the address in the path must be {words}")),
    }
}

fn unknown(medium: &str) -> Problem {
    Problem::not_found(&format!("suppressed address of the medium {medium:?}"))
}

/// List suppressed addresses, by address.
#[utoipa::path(
    get, path = "/v1/namespaces/{ns}/suppressions", tag = "People", operation_id = "list_suppressions",
    params(("ns" = String, Path, description = "Namespace"), PageQuery),
    responses((status = 200, body = PageOf<SuppressedAddress>))
)]
async fn list(
    State(api): State<Arc<Api>>,
    Path(namespace): Path<String>,
    _: Caller,
    Params(query): Params<PageQuery>,
) -> Result<Json<PageOf<SuppressedAddress>>, Problem> {
    let paging = page::paging(query.limit, query.cursor)?;
    let page = api.store.suppressions(&namespace, &paging).await?;
    Ok(Json(PageOf::from_store(page, |entry| entry)))
}

/// Ask whether an address is suppressed, since when and why.
#[utoipa::path(
    get, path = "/v1/namespaces/{ns}/suppressions/{medium}/{address}", tag = "People", operation_id = "get_suppression",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("medium" = String, Path, description = "email, sms, voice or webhook"),
        ("address" = String, Path, description = "Address, percent-encoded"),
    ),
    responses((status = 200, body = SuppressedAddress))
)]
async fn get(
    State(api): State<Arc<Api>>,
    Path((namespace, medium, address)): Path<(String, String, String)>,
    _: Caller,
) -> Result<Json<SuppressedAddress>, Problem> {
    let entry = api.store.suppression(&namespace, &medium, &address).await?;
    entry.map(Json).ok_or_else(|| unknown(&medium))
}

/// Why nothing is sent to an address.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Why {
    /// A line of at most 200 characters. Default: `opted-out`.
    #[serde(default)]
    #[schema(max_length = 200)]
    reason: Option<String>,
}

/// Suppress an address: nothing more is sent to it, but for templates that are mandatory.
#[utoipa::path(
    put, path = "/v1/namespaces/{ns}/suppressions/{medium}/{address}", tag = "People", operation_id = "put_suppression",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("medium" = String, Path, description = "email, sms, voice or webhook"),
        ("address" = String, Path, description = "Address, percent-encoded"),
    ),
    request_body = Option<Why>,
    responses((status = 200, body = SuppressedAddress))
)]
async fn put(
    State(api): State<Arc<Api>>,
    Path((namespace, medium, address)): Path<(String, String, String)>,
    _: Caller,
    headers: HeaderMap,
    body: Body,
) -> Result<Json<SuppressedAddress>, Problem> {
    check(&medium, &address)?;
    let body = collect(body, &headers).await?;
    let Why { reason } = if body.is_empty() {
        Why::default()
    } else {
        from_json(&body)?
    };
    let reason = reason.unwrap_or_else(|| "opted-out".to_owned());
    if !(1..=LONGEST_REASON).contains(&reason.len())
        || pattern::check(pattern::LINE, &reason).is_err()
    {
        let detail = format!("must be one line of 1 to {LONGEST_REASON} bytes");
        return Err(Problem::invalid(vec![FieldError::new("/reason", detail)]));
    }
    let entry = SuppressedAddress {
        medium,
        address,
        reason,
        since: clock::now(),
    };
    api.store.suppress(&namespace, &entry).await?;
    // As it is kept, which is to the millisecond.
    let kept = api
        .store
        .suppression(&namespace, &entry.medium, &entry.address)
        .await?;
    Ok(Json(kept.unwrap_or(entry)))
}

/// Take an address off the suppression list.
#[utoipa::path(
    delete, path = "/v1/namespaces/{ns}/suppressions/{medium}/{address}", tag = "People", operation_id = "delete_suppression",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("medium" = String, Path, description = "email, sms, voice or webhook"),
        ("address" = String, Path, description = "Address, percent-encoded"),
    ),
    responses((status = 204, description = "Taken off"))
)]
async fn delete(
    State(api): State<Arc<Api>>,
    Path((namespace, medium, address)): Path<(String, String, String)>,
    _: Caller,
) -> Result<StatusCode, Problem> {
    let taken_off = api.store.unsuppress(&namespace, &medium, &address).await?;
    if taken_off {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(unknown(&medium))
    }
}
