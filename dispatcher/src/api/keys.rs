//! API keys: made, listed, taken away. Only for callers whose own key may do everything.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderName, StatusCode, header};
use herald_crds::pattern;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::ToSchema;
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::{Api, Caller, FieldError, JsonBody, Kind, PageOf, Problem};
use crate::accept::Scopes;
use crate::access::Keys;
use crate::clock;
use crate::store::ApiKey;

/// Most keys: every call looks at all of them.
const MOST_KEYS: usize = 1000;

/// Most scopes of a key; there are fewer different ones.
const MOST_SCOPES: usize = 64;

/// Longest name of a key, in bytes.
const LONGEST_NAME: usize = 63;

/// The calls about keys.
pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(create, list))
        .routes(routes!(delete))
}

/// A key that is wanted.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
pub struct NewKey {
    /// What notifications sent with it have as their `sender`: lower-case letters, digits and dashes.
    #[schema(example = "orders", min_length = 1, max_length = 63)]
    pub name: String,
    /// What it may do: scopes, groups of them such as `notifications:*`, or `*`.
    #[schema(example = json!(["notifications:create", "notifications:read"]), min_items = 1, max_items = 64)]
    pub scopes: Vec<String>,
}

/// A key, without the key itself.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct KeyView {
    /// Its name.
    pub name: String,
    /// What it may do.
    pub scopes: Vec<String>,
    /// When it was made.
    #[schema(value_type = String, format = DateTime)]
    pub created_at: Timestamp,
}

impl From<ApiKey> for KeyView {
    fn from(key: ApiKey) -> Self {
        let ApiKey {
            name,
            digest: _,
            scopes,
            created_at,
        } = key;
        Self {
            name,
            scopes,
            created_at,
        }
    }
}

/// A key that was made.
#[derive(Clone, Serialize, Deserialize, ToSchema)]
pub struct MadeKey {
    /// The key. It is not kept: this is the only time that it is shown.
    pub key: String,
    /// What is kept of it.
    #[serde(flatten)]
    pub view: KeyView,
}

impl std::fmt::Debug for MadeKey {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("MadeKey")
            .field("view", &self.view)
            .finish_non_exhaustive()
    }
}

/// The keys, if callers have such.
fn keys(api: &Api) -> Result<&Arc<Keys>, Problem> {
    api.keys.as_ref().ok_or_else(|| {
        let detail = "callers are identities of Kubernetes here: give them a Role instead of a key";
        Problem::new(Kind::NotFound, detail)
    })
}

/// Make an API key. The answer has the key, this once; its digest alone is kept.
#[utoipa::path(
    post, path = "/v1/keys", tag = "Keys", operation_id = "create_key",
    request_body = NewKey,
    responses((status = 201, body = MadeKey))
)]
async fn create(
    State(api): State<Arc<Api>>,
    _: Caller,
    JsonBody(NewKey { name, scopes }): JsonBody<NewKey>,
) -> Result<(StatusCode, [(HeaderName, &'static str); 1], Json<MadeKey>), Problem> {
    let keys = keys(&api)?;
    check(&name, &scopes)?;
    let taken = || {
        let detail = format!("there is a key {name:?} already: choose another name, or delete it");
        Problem::new(Kind::Conflict, detail)
    };
    if keys.is_fixed(&name) {
        return Err(taken());
    }
    if api.store.keys().await?.len() >= MOST_KEYS {
        let detail = format!("there are {MOST_KEYS} keys already: delete one that is not used");
        return Err(Problem::new(Kind::Conflict, detail));
    }
    let key = Keys::generate();
    let made = ApiKey {
        name: name.clone(),
        digest: Keys::digest(&key),
        scopes,
        created_at: clock::now(),
    };
    if !api.store.add_key(&made).await? {
        return Err(taken());
    }
    keys.reread().await;
    let view = made.into();
    // What passes by must not keep it.
    let unkept = [(header::CACHE_CONTROL, "no-store")];
    Ok((StatusCode::CREATED, unkept, Json(MadeKey { key, view })))
}

fn check(name: &str, scopes: &[String]) -> Result<(), Problem> {
    let mut errors = Vec::new();
    if name.len() > LONGEST_NAME || pattern::check(pattern::DNS_LABEL, name).is_err() {
        let detail = format!(
            "must be 1 to {LONGEST_NAME} lower-case letters, digits and dashes (got {name:?})"
        );
        errors.push(FieldError::new("/name", detail));
    }
    if (1..=MOST_SCOPES).contains(&scopes.len()) {
        errors.extend(scopes.iter().enumerate().filter_map(|(index, scope)| {
            let error = scope.parse::<Scopes>().err()?;
            Some(FieldError::new(
                format!("/scopes/{index}"),
                error.to_string(),
            ))
        }));
    } else {
        let detail = format!("must have 1 to {MOST_SCOPES} scopes");
        errors.push(FieldError::new("/scopes", detail));
    }
    if errors.is_empty() {
        Ok(())
    } else {
        Err(Problem::invalid(errors))
    }
}

/// List API keys, by name. One that was given in the environment is not among them.
#[utoipa::path(
    get, path = "/v1/keys", tag = "Keys", operation_id = "list_keys",
    responses((status = 200, body = PageOf<KeyView>))
)]
async fn list(State(api): State<Arc<Api>>, _: Caller) -> Result<Json<PageOf<KeyView>>, Problem> {
    keys(&api)?;
    let items = api.store.keys().await?.into_iter().map(KeyView::from);
    Ok(Json(PageOf {
        items: items.collect(),
        next: None,
    }))
}

/// Take an API key away: it is refused from now on, and within 30 s by other processes.
#[utoipa::path(
    delete, path = "/v1/keys/{name}", tag = "Keys", operation_id = "delete_key",
    params(("name" = String, Path, description = "Name of the key")),
    responses((status = 204, description = "Taken away"))
)]
async fn delete(
    State(api): State<Arc<Api>>,
    Path(name): Path<String>,
    _: Caller,
) -> Result<StatusCode, Problem> {
    let keys = keys(&api)?;
    let existed = api.store.delete_key(&name).await?;
    keys.reread().await;
    if existed {
        Ok(StatusCode::NO_CONTENT)
    } else {
        Err(Problem::not_found(&format!("key {name:?}")))
    }
}
