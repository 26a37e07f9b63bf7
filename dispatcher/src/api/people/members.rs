//! Who is in a managed group.

use std::collections::HashSet;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use herald_crds::address::check_recipient_id;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::super::page::PageQuery;
use super::super::{Api, Caller, FieldError, JsonBody, PageOf, Params, Problem, page};
use super::{check_id, check_managed};
use crate::clock;

/// Most members that are added and removed at a time.
const MOST_CHANGES: usize = 10_000;

/// Most things that are said about one body.
const MOST_ERRORS: usize = 100;

/// The calls about members.
pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(list))
        .routes(routes!(batch))
        .routes(routes!(add, remove))
}

/// List the members of a managed group who were added over HTTP, by id.
#[utoipa::path(
    get, path = "/v1/namespaces/{ns}/groups/{group}/members", tag = "People", operation_id = "list_members",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("group" = String, Path, description = "Group"),
        PageQuery,
    ),
    responses((status = 200, body = PageOf<String>))
)]
async fn list(
    State(api): State<Arc<Api>>,
    Path((namespace, group)): Path<(String, String)>,
    _: Caller,
    Params(query): Params<PageQuery>,
) -> Result<Json<PageOf<String>>, Problem> {
    check_managed(&api, &namespace, &group)?;
    let paging = page::paging(query.limit, query.cursor)?;
    let page = api.store.group_members(&namespace, &group, &paging).await?;
    Ok(Json(PageOf::from_store(page, |id| id)))
}

/// Add a member to a managed group. Who is added does not get what was released before.
#[utoipa::path(
    put, path = "/v1/namespaces/{ns}/groups/{group}/members/{id}", tag = "People", operation_id = "add_member",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("group" = String, Path, description = "Group"),
        ("id" = String, Path, description = "Recipient; it need not be in the directory yet"),
    ),
    responses((status = 204, description = "A member, now or already before"))
)]
async fn add(
    State(api): State<Arc<Api>>,
    Path((namespace, group, id)): Path<(String, String, String)>,
    _: Caller,
) -> Result<StatusCode, Problem> {
    check_id(&id)?;
    check_managed(&api, &namespace, &group)?;
    api.store
        .change_members(&namespace, &group, &[id], &[], clock::now())
        .await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Remove a member from a managed group.
#[utoipa::path(
    delete, path = "/v1/namespaces/{ns}/groups/{group}/members/{id}", tag = "People", operation_id = "remove_member",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("group" = String, Path, description = "Group"),
        ("id" = String, Path, description = "Recipient"),
    ),
    responses((status = 204, description = "Removed"))
)]
async fn remove(
    State(api): State<Arc<Api>>,
    Path((namespace, group, id)): Path<(String, String, String)>,
    _: Caller,
) -> Result<StatusCode, Problem> {
    check_managed(&api, &namespace, &group)?;
    let ids = [id];
    let (_, removed) = api
        .store
        .change_members(&namespace, &group, &[], &ids, clock::now())
        .await?;
    if removed == 0 {
        return Err(Problem::not_found(&format!("member {:?}", ids[0])));
    }
    Ok(StatusCode::NO_CONTENT)
}

/// Members to add and to remove.
#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Changes {
    /// Recipients to add.
    #[serde(default)]
    #[schema(max_items = 10_000)]
    add: Vec<String>,
    /// Recipients to remove.
    #[serde(default)]
    #[schema(max_items = 10_000)]
    remove: Vec<String>,
}

/// What a change of members has changed.
#[derive(Debug, Serialize, ToSchema)]
struct Changed {
    /// Who was not a member before.
    added: u64,
    /// Who was.
    removed: u64,
}

/// Add and remove members of a managed group: at most 10,000 in all, all of them or, if anything is wrong, none.
#[utoipa::path(
    post, path = "/v1/namespaces/{ns}/groups/{group}/members/batch", tag = "People", operation_id = "change_members",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("group" = String, Path, description = "Group"),
    ),
    request_body = Changes,
    responses((status = 200, body = Changed))
)]
async fn batch(
    State(api): State<Arc<Api>>,
    Path((namespace, group)): Path<(String, String)>,
    _: Caller,
    JsonBody(changes): JsonBody<Changes>,
) -> Result<Json<Changed>, Problem> {
    check_managed(&api, &namespace, &group)?;
    let Changes { add, remove } = changes;
    let errors = check(&add, &remove);
    if !errors.is_empty() {
        return Err(Problem::invalid(errors));
    }
    let (added, removed) = api
        .store
        .change_members(&namespace, &group, &add, &remove, clock::now())
        .await?;
    Ok(Json(Changed { added, removed }))
}

fn check(add: &[String], remove: &[String]) -> Vec<FieldError> {
    let changes = add.len() + remove.len();
    if changes > MOST_CHANGES {
        let detail =
            format!("at most {MOST_CHANGES} members are changed at a time (got {changes})");
        return vec![FieldError::new("", detail)];
    }
    let ids = |name, ids: &[String]| {
        let errors: Vec<FieldError> = ids
            .iter()
            .enumerate()
            .filter_map(|(index, id)| {
                let words = check_recipient_id(id).err()?;
                Some(FieldError::new(
                    format!("/{name}/{index}"),
                    format!("must be {words}"),
                ))
            })
            .take(MOST_ERRORS)
            .collect();
        errors
    };
    let mut errors = ids("add", add);
    errors.extend(ids("remove", remove));
    let added: HashSet<&String> = add.iter().collect();
    let both = remove
        .iter()
        .enumerate()
        .filter(|(_, id)| added.contains(id))
        .map(|(index, _)| FieldError::new(format!("/remove/{index}"), "is in add, too"));
    errors.extend(both.take(MOST_ERRORS));
    errors
}
