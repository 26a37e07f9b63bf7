//! The directory, one recipient at a time.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use serde::Deserialize;
use serde_json::Value;
use sha2::{Digest, Sha256};
use utoipa::IntoParams;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::body::from_value;
use super::super::page::PageQuery;
use super::super::view::Delivery;
use super::super::{Api, Caller, JsonBody, Kind, PageOf, Params, Problem, page};
use super::{check_id, invalid};
use crate::clock;
use crate::people::problems;
use crate::store::Recipient;

/// How often a change is tried that others keep coming before.
const TRIES: usize = 5;

/// The calls about recipients.
pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(put, get, patch, delete))
        .routes(routes!(notifications))
}

/// The version of a recipient: the same as long as nothing about it changes.
fn etag(recipient: &Recipient) -> String {
    use std::fmt::Write as _;
    let json = serde_json::to_vec(recipient).unwrap_or_default();
    let mut tag = String::with_capacity(34);
    tag.push('"');
    for byte in &Sha256::digest(&json)[..16] {
        // Writing to a string does not fail.
        let _ = write!(tag, "{byte:02x}");
    }
    tag.push('"');
    tag
}

/// A recipient with its version.
fn answer(status: StatusCode, recipient: &Recipient) -> Response {
    let mut response = (status, Json(recipient)).into_response();
    if let Ok(tag) = HeaderValue::from_str(&etag(recipient)) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

/// Refuses a change that is meant for another version than the current one (RFC 9110, section 13.1: `If-Match` and, to
/// create only, `If-None-Match: *`).
fn check_version(headers: &HeaderMap, current: Option<&Recipient>) -> Result<(), Problem> {
    let changed = |detail| Err(Problem::new(Kind::Changed, detail));
    let tags = |name| {
        headers
            .get_all(name)
            .iter()
            .filter_map(|value| value.to_str().ok())
            .flat_map(|value| value.split(','))
            .map(str::trim)
    };
    let tag = current.map(etag);
    let is_current = |given: &str| given == "*" || Some(given) == tag.as_deref();
    if headers.contains_key(header::IF_MATCH)
        && (tag.is_none() || !tags(header::IF_MATCH).any(is_current))
    {
        return changed("it is not as the If-Match says: get it again and repeat the change");
    }
    if tag.is_some() && tags(header::IF_NONE_MATCH).any(is_current) {
        return changed("it is there already, which the If-None-Match excludes");
    }
    Ok(())
}

fn too_many_changes() -> Problem {
    Problem::new(Kind::Conflict, "it is being changed by others: try again")
}

/// Put a recipient into the directory, or replace it whole.
#[utoipa::path(
    put, path = "/v1/namespaces/{ns}/recipients/{id}", tag = "People", operation_id = "put_recipient",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("id" = String, Path, description = "Recipient: 1 to 128 letters, digits and . _ @ : + -"),
        ("If-Match" = Option<String>, Header, description = "Only if it still has this ETag"),
        ("If-None-Match" = Option<String>, Header, description = "`*`: only if it is not there yet"),
    ),
    request_body = Recipient,
    responses(
        (status = 200, body = Recipient, description = "Replaced", headers(("ETag" = String))),
        (status = 201, body = Recipient, description = "New", headers(("ETag" = String))),
    )
)]
async fn put(
    State(api): State<Arc<Api>>,
    Path((namespace, id)): Path<(String, String)>,
    _: Caller,
    headers: HeaderMap,
    JsonBody(mut recipient): JsonBody<Recipient>,
) -> Result<Response, Problem> {
    check_id(&id)?;
    name(&mut recipient, id)?;
    for _ in 0..TRIES {
        let current = api.store.recipient(&namespace, &recipient.id).await?;
        check_version(&headers, current.as_ref())?;
        let now = clock::now();
        let replaced = api
            .store
            .replace_recipient(&namespace, &recipient, current.as_ref(), now)
            .await?;
        if replaced {
            let status = match current {
                Some(_) => StatusCode::OK,
                None => StatusCode::CREATED,
            };
            return Ok(answer(status, &recipient));
        }
    }
    Err(too_many_changes())
}

/// Gives a recipient the id of the path, and refuses it if it has another or if anything else is wrong with it.
fn name(recipient: &mut Recipient, id: String) -> Result<(), Problem> {
    if recipient.id.is_empty() {
        recipient.id = id;
    } else if recipient.id != id {
        let message = "is not the id of the path: leave it out";
        return Err(invalid(vec![herald_crds::Problem::new("/id", message)]));
    }
    match problems(recipient) {
        wrong if wrong.is_empty() => Ok(()),
        wrong => Err(invalid(wrong)),
    }
}

/// Get a recipient.
#[utoipa::path(
    get, path = "/v1/namespaces/{ns}/recipients/{id}", tag = "People", operation_id = "get_recipient",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("id" = String, Path, description = "Recipient"),
    ),
    responses((status = 200, body = Recipient, headers(("ETag" = String))))
)]
async fn get(
    State(api): State<Arc<Api>>,
    Path((namespace, id)): Path<(String, String)>,
    _: Caller,
) -> Result<Response, Problem> {
    match api.store.recipient(&namespace, &id).await? {
        Some(recipient) => Ok(answer(StatusCode::OK, &recipient)),
        None => Err(unknown(&id)),
    }
}

fn unknown(id: &str) -> Problem {
    Problem::not_found(&format!("recipient {id:?}"))
}

/// Change some of a recipient: a JSON Merge Patch (RFC 7396), in which `null` takes something away.
#[utoipa::path(
    patch, path = "/v1/namespaces/{ns}/recipients/{id}", tag = "People", operation_id = "patch_recipient",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("id" = String, Path, description = "Recipient"),
        ("If-Match" = Option<String>, Header, description = "Only if it still has this ETag"),
    ),
    request_body(
        content = Value, content_type = "application/merge-patch+json",
        example = json!({"locale": "ko", "labels": {"tier": "vip", "trial": null}}),
    ),
    responses((status = 200, body = Recipient, headers(("ETag" = String))))
)]
async fn patch(
    State(api): State<Arc<Api>>,
    Path((namespace, id)): Path<(String, String)>,
    _: Caller,
    headers: HeaderMap,
    JsonBody(patch): JsonBody<serde_json::Map<String, Value>>,
) -> Result<Response, Problem> {
    let patch = Value::Object(patch);
    for _ in 0..TRIES {
        let current = api.store.recipient(&namespace, &id).await?;
        let current = current.ok_or_else(|| unknown(&id))?;
        check_version(&headers, Some(&current))?;
        let mut value = serde_json::to_value(&current).map_err(|error| {
            tracing::error!(%error, "a recipient has no JSON form");
            Problem::new(Kind::Internal, "this recipient cannot be changed")
        })?;
        merge(&mut value, &patch);
        let mut recipient: Recipient = from_value(value)?;
        name(&mut recipient, id.clone())?;
        let now = clock::now();
        let replaced = api
            .store
            .replace_recipient(&namespace, &recipient, Some(&current), now)
            .await?;
        if replaced {
            return Ok(answer(StatusCode::OK, &recipient));
        }
    }
    Err(too_many_changes())
}

/// JSON Merge Patch (RFC 7396, section 2).
fn merge(target: &mut Value, patch: &Value) {
    let Value::Object(patch) = patch else {
        *target = patch.clone();
        return;
    };
    if !target.is_object() {
        *target = Value::Object(serde_json::Map::new());
    }
    let Value::Object(target) = target else {
        return;
    };
    for (key, value) in patch {
        if value.is_null() {
            target.remove(key);
        } else {
            merge(target.entry(key).or_insert(Value::Null), value);
        }
    }
}

/// Delete a recipient; it is in no group any more.
#[utoipa::path(
    delete, path = "/v1/namespaces/{ns}/recipients/{id}", tag = "People", operation_id = "delete_recipient",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("id" = String, Path, description = "Recipient"),
    ),
    responses((status = 204, description = "Deleted"))
)]
async fn delete(
    State(api): State<Arc<Api>>,
    Path((namespace, id)): Path<(String, String)>,
    _: Caller,
) -> Result<StatusCode, Problem> {
    let now = clock::now();
    if api.store.delete_recipient(&namespace, &id, now).await? {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(unknown(&id))
    }
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct RecipientsQuery {
    /// The beginning of an id, or an address.
    q: Option<String>,
    /// With these labels: `key=value`, several of them separated by commas.
    label: Option<String>,
    /// Most items on the page: 1 to 1,000. Default: 100.
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// List recipients, by id.
#[utoipa::path(
    get, path = "/v1/namespaces/{ns}/recipients", tag = "People", operation_id = "list_recipients",
    params(("ns" = String, Path, description = "Namespace"), RecipientsQuery),
    responses((status = 200, body = PageOf<Recipient>))
)]
async fn list(
    State(api): State<Arc<Api>>,
    Path(namespace): Path<String>,
    _: Caller,
    Params(query): Params<RecipientsQuery>,
) -> Result<Json<PageOf<Recipient>>, Problem> {
    let labels = page::terms("label", query.label.as_deref())?;
    let paging = page::paging(query.limit, query.cursor)?;
    let wanted = query.q.as_deref().filter(|q| !q.is_empty());
    let page = api
        .store
        .recipients(&namespace, wanted, &labels, &paging)
        .await?;
    Ok(Json(PageOf::from_store(page, |recipient| recipient)))
}

/// List what one person got and did not get, and why, newest first.
#[utoipa::path(
    get, path = "/v1/namespaces/{ns}/recipients/{id}/notifications", tag = "People", operation_id = "list_recipient_notifications",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("id" = String, Path, description = "Recipient, also one that is not in the directory any more"),
        PageQuery,
    ),
    responses((status = 200, body = PageOf<Delivery>))
)]
async fn notifications(
    State(api): State<Arc<Api>>,
    Path((namespace, id)): Path<(String, String)>,
    _: Caller,
    Params(query): Params<PageQuery>,
) -> Result<Json<PageOf<Delivery>>, Problem> {
    let paging = page::paging(query.limit, query.cursor)?;
    let page = api
        .store
        .recipient_deliveries(&namespace, &id, &paging)
        .await?;
    Ok(Json(PageOf::from_store(page, Delivery::from)))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_merge_patch_does_what_rfc_7396_says() {
        // The examples of its appendix A.
        for (target, patch, result) in [
            (json!({"a":"b"}), json!({"a":"c"}), json!({"a":"c"})),
            (json!({"a":"b"}), json!({"b":"c"}), json!({"a":"b","b":"c"})),
            (json!({"a":"b"}), json!({"a":null}), json!({})),
            (
                json!({"a":"b","b":"c"}),
                json!({"a":null}),
                json!({"b":"c"}),
            ),
            (json!({"a":["b"]}), json!({"a":"c"}), json!({"a":"c"})),
            (
                json!({"a":{"b":"c"}}),
                json!({"a":{"b":"d","c":null}}),
                json!({"a":{"b":"d"}}),
            ),
            (json!({"e":null}), json!({"a":1}), json!({"e":null,"a":1})),
            (
                json!({}),
                json!({"a":{"bb":{"ccc":null}}}),
                json!({"a":{"bb":{}}}),
            ),
        ] {
            let mut merged = target.clone();
            merge(&mut merged, &patch);
            assert_eq!(merged, result, "{target} and {patch}");
        }
    }

    #[test]
    fn a_version_changes_with_anything_that_changes() {
        let alice = Recipient {
            id: "alice".to_owned(),
            ..Recipient::default()
        };
        let mut moved = alice.clone();
        moved.locale = Some("ko".to_owned());
        assert_eq!(etag(&alice), etag(&alice.clone()));
        assert_ne!(etag(&alice), etag(&moved));
    }
}
