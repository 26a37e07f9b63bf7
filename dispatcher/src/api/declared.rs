//! What is declared: the four resources, to be read and searched, and in `local` changed.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::{HeaderMap, HeaderValue, StatusCode, header};
use axum::response::{IntoResponse, Response};
use herald_crds::{Kind as ResourceKind, Priority, Resource, Schedule};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use serde_json::{Value, json};
use sha2::{Digest, Sha256};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::control::EditError;
use super::{Api, Caller, FieldError, JsonBody, Kind, PageOf, Params, Problem, page};
use crate::accept::schedules::digest;
use crate::catalog::Snapshot;
use crate::clock;
use crate::deliver::load::{Limit, PodLoad, ProviderLoad};
use crate::store::{Incarnation, ScheduleRecord};

/// The calls that read and change what is declared.
pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .merge(templates::routes())
        .merge(groups::routes())
        .merge(channels::routes())
        .merge(schedules::routes())
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct ListQuery {
    /// Words, all of which must occur: in the name, the description, or what is said.
    q: Option<String>,
    /// With these labels: `key=value`, several of them separated by commas.
    label: Option<String>,
    /// Of this category (templates).
    category: Option<String>,
    /// Most items on the page: 1 to 1,000. Default: 100.
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// The list, read, write and delete calls of one kind.
macro_rules! kind {
    ($module:ident, $kind:ident, $list:tt, $one:tt, $plural:tt, $singular:tt) => {
        mod $module {
            use super::*;

            pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
                OpenApiRouter::new()
                    .routes(routes!(list))
                    .routes(routes!(get, put, delete))
            }

            #[doc = concat!("List ", $plural, ", in the order of their names.")]
            #[utoipa::path(
                get, path = $list, tag = "Declared", summary = concat!("List ", $plural, ", in the order of their names."), operation_id = concat!("list_", $plural),
                params(("ns" = String, Path, description = "Namespace"), ListQuery),
                responses((status = 200, body = PageOf<Value>))
            )]
            async fn list(
                State(api): State<Arc<Api>>,
                Path(namespace): Path<String>,
                _: Caller,
                Params(query): Params<ListQuery>,
            ) -> Result<Json<PageOf<Value>>, Problem> {
                list_of(&api, ResourceKind::$kind, &namespace, query).map(Json)
            }

            #[doc = concat!("Get a ", $singular, ".")]
            #[utoipa::path(
                get, path = $one, tag = "Declared", summary = concat!("Get a ", $singular, "."), operation_id = concat!("get_", $singular),
                params(
                    ("ns" = String, Path, description = "Namespace"),
                    ("name" = String, Path, description = "Name"),
                ),
                responses((status = 200, body = Value))
            )]
            async fn get(
                State(api): State<Arc<Api>>,
                Path((namespace, name)): Path<(String, String)>,
                _: Caller,
            ) -> Result<Response, Problem> {
                get_one(&api, ResourceKind::$kind, &namespace, &name).await
            }

            #[doc = concat!("Declare a ", $singular, ", or change it. In a cluster, Kubernetes does that.")]
            #[utoipa::path(
                put, path = $one, tag = "Declared", summary = concat!("Declare a ", $singular, ", or change it. In a cluster, Kubernetes does that."), operation_id = concat!("put_", $singular),
                params(
                    ("ns" = String, Path, description = "Namespace"),
                    ("name" = String, Path, description = "Name"),
                    ("If-Match" = Option<String>, Header, description = "Only if it is still as it was when it had this ETag"),
                ),
                request_body = Value,
                responses(
                    (status = 200, body = Value, description = "Changed"),
                    (status = 201, body = Value, description = "New"),
                )
            )]
            async fn put(
                State(api): State<Arc<Api>>,
                Path((namespace, name)): Path<(String, String)>,
                _: Caller,
                headers: HeaderMap,
                JsonBody(body): JsonBody<Value>,
            ) -> Result<Response, Problem> {
                put_one(&api, ResourceKind::$kind, (&namespace, &name), &headers, body).await
            }

            #[doc = concat!("Take a ", $singular, " out of what is declared. In a cluster, Kubernetes does that.")]
            #[utoipa::path(
                delete, path = $one, tag = "Declared", summary = concat!("Take a ", $singular, " out of what is declared. In a cluster, Kubernetes does that."), operation_id = concat!("delete_", $singular),
                params(
                    ("ns" = String, Path, description = "Namespace"),
                    ("name" = String, Path, description = "Name"),
                    ("If-Match" = Option<String>, Header, description = "Only if it is still as it was when it had this ETag"),
                ),
                responses((status = 204, description = "It is gone"))
            )]
            async fn delete(
                State(api): State<Arc<Api>>,
                Path((namespace, name)): Path<(String, String)>,
                _: Caller,
                headers: HeaderMap,
            ) -> Result<StatusCode, Problem> {
                delete_one(&api, ResourceKind::$kind, &namespace, &name, &headers).await
            }
        }
    };
}

kind!(
    templates,
    NotificationTemplate,
    "/v1/namespaces/{ns}/templates",
    "/v1/namespaces/{ns}/templates/{name}",
    "templates",
    "template"
);
kind!(
    groups,
    RecipientGroup,
    "/v1/namespaces/{ns}/groups",
    "/v1/namespaces/{ns}/groups/{name}",
    "groups",
    "group"
);
kind!(
    channels,
    Channel,
    "/v1/namespaces/{ns}/channels",
    "/v1/namespaces/{ns}/channels/{name}",
    "channels",
    "channel"
);
kind!(
    schedules,
    Schedule,
    "/v1/namespaces/{ns}/schedules",
    "/v1/namespaces/{ns}/schedules/{name}",
    "schedules",
    "schedule"
);

/// What a caller calls a resource of this kind.
const fn noun(kind: ResourceKind) -> &'static str {
    match kind {
        ResourceKind::Channel => "channel",
        ResourceKind::NotificationTemplate => "template",
        ResourceKind::RecipientGroup => "group",
        ResourceKind::Schedule => "schedule",
    }
}

/// The names of a kind's resources in a namespace, in order.
fn names<'a>(declared: &'a Snapshot, kind: ResourceKind, namespace: &str) -> Vec<&'a str> {
    fn of<'a, T>(map: &'a BTreeMap<Arc<str>, T>, prefix: &str) -> Vec<&'a str> {
        map.keys()
            .filter_map(|name| name.strip_prefix(prefix))
            .collect()
    }
    let prefix = format!("{namespace}/");
    match kind {
        ResourceKind::Channel => of(&declared.channels, &prefix),
        ResourceKind::NotificationTemplate => of(&declared.templates, &prefix),
        ResourceKind::RecipientGroup => of(&declared.groups, &prefix),
        ResourceKind::Schedule => of(&declared.schedules, &prefix),
    }
}

/// A resource as JSON; `None`: not declared. A template comes with what the catalog knows of it.
fn resource(declared: &Snapshot, kind: ResourceKind, namespace: &str, name: &str) -> Option<Value> {
    let full = format!("{namespace}/{name}");
    let full = full.as_str();
    let value = match kind {
        ResourceKind::Channel => serde_json::to_value(&**declared.channels.get(full)?),
        ResourceKind::RecipientGroup => serde_json::to_value(&**declared.groups.get(full)?),
        ResourceKind::Schedule => serde_json::to_value(&**declared.schedules.get(full)?),
        ResourceKind::NotificationTemplate => {
            let template = declared.templates.get(full)?;
            let mut value = serde_json::to_value(&template.resource).ok()?;
            value["status"] = json!({
                "definition": template.hash,
                "mediums": template.resource.spec.mediums().collect::<Vec<_>>(),
                "locales": template.compiled.locales().collect::<Vec<_>>(),
            });
            return Some(value);
        }
    };
    value.ok()
}

fn list_of(
    api: &Api,
    kind: ResourceKind,
    namespace: &str,
    query: ListQuery,
) -> Result<PageOf<Value>, Problem> {
    let paging = page::paging(query.limit, query.cursor)?;
    let labels = page::terms("label", query.label.as_deref())?;
    let words: Vec<String> = query
        .q
        .unwrap_or_default()
        .split_whitespace()
        .map(str::to_lowercase)
        .collect();
    let declared = api.catalog.current();
    let after = paging.cursor.unwrap_or_default();
    let matches = |value: &Value| {
        labels
            .iter()
            .all(|(key, wanted)| value["metadata"]["labels"][key] == **wanted)
            && query
                .category
                .as_deref()
                .is_none_or(|category| value["spec"]["category"] == *category)
            && (words.is_empty() || {
                let text =
                    format!("{} {}", value["metadata"]["name"], value["spec"]).to_lowercase();
                words.iter().all(|word| text.contains(word))
            })
    };
    let mut found = names(&declared, kind, namespace)
        .into_iter()
        .filter(|name| *name > after.as_str())
        .filter_map(|name| Some((name, resource(&declared, kind, namespace, name)?)))
        .filter(|(_, value)| matches(value));
    let mut items = Vec::new();
    let mut last = None;
    for (name, value) in found.by_ref().take(paging.limit) {
        items.push(value);
        last = Some(name.to_owned());
    }
    let next = last.filter(|_| found.next().is_some());
    Ok(PageOf { items, next })
}

/// An entity tag (RFC 9110, section 8.8.3) of what was declared.
fn etag(resource: &Value) -> String {
    let declared = json!([resource["metadata"], resource["spec"]]).to_string();
    let digest = Sha256::digest(declared.as_bytes());
    let hex: Vec<String> = digest[..8]
        .iter()
        .map(|byte| format!("{byte:02x}"))
        .collect();
    format!("\"{}\"", hex.concat())
}

async fn get_one(
    api: &Api,
    kind: ResourceKind,
    namespace: &str,
    name: &str,
) -> Result<Response, Problem> {
    let mut value = find(api, kind, namespace, name)?;
    let tag = etag(&value);
    match kind {
        ResourceKind::Channel => value["state"] = json!(channel_state(api, namespace, name).await?),
        ResourceKind::Schedule => value["status"] = schedule_status(api, namespace, name).await?,
        ResourceKind::NotificationTemplate | ResourceKind::RecipientGroup => {}
    }
    Ok(tagged(StatusCode::OK, &value, &tag))
}

fn tagged(status: StatusCode, value: &Value, tag: &str) -> Response {
    let mut response = (status, Json(value)).into_response();
    if let Ok(tag) = HeaderValue::from_str(tag) {
        response.headers_mut().insert(header::ETAG, tag);
    }
    response
}

pub(super) fn find(
    api: &Api,
    kind: ResourceKind,
    namespace: &str,
    name: &str,
) -> Result<Value, Problem> {
    resource(&api.catalog.current(), kind, namespace, name)
        .ok_or_else(|| Problem::not_found(&format!("{} {name:?}", noun(kind))))
}

/// How a channel is.
#[derive(Debug, Clone, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ChannelState {
    /// What waits, by class.
    pub classes: BTreeMap<&'static str, ClassState>,
    /// Sends per second, lately.
    pub sends_per_second: f64,
    /// Sends per second that the rate limit allows; absent: no limit.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub rate_limit_per_second: Option<f64>,
    /// What holds it back.
    pub limited_by: Limit,
    /// Pods that deliver.
    pub replicas: u32,
    /// Each of them; empty where one process does everything.
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub pods: Vec<PodLoad>,
    /// Its providers, in order of preference.
    pub providers: Vec<ProviderLoad>,
    /// Whether it has dead letters: deliveries that were given up and that nobody has replayed or discarded.
    pub dead_letters: bool,
}

/// What waits of one class.
#[derive(Debug, Clone, Copy, Default, Serialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct ClassState {
    /// Deliveries that are due and wait for their turn.
    pub due: u64,
    /// Deliveries whose time has not come.
    pub scheduled: u64,
    /// Deliveries that a pod holds and has not begun.
    pub held: u64,
    /// For how long the oldest of those that are due or held has waited.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub oldest_age_seconds: Option<f64>,
}

async fn channel_state(api: &Api, namespace: &str, name: &str) -> Result<ChannelState, Problem> {
    let full = format!("{namespace}/{name}");
    let backlog = api.store.backlog(&full).await?;
    let load = api.loads.get(&full).unwrap_or_default();
    let now = clock::now();
    let classes = Priority::ALL.map(|class| {
        let rows = backlog[class.index()];
        let waited = rows
            .oldest
            .map(|since| now.duration_since(since).as_secs_f64().max(0.0));
        let held = load.oldest[class.index()].map(|age| age.as_secs_f64());
        let state = ClassState {
            due: rows.due,
            scheduled: rows.scheduled,
            held: load.waiting[class.index()] as u64,
            oldest_age_seconds: waited.into_iter().chain(held).reduce(f64::max),
        };
        (class.as_str(), state)
    });
    Ok(ChannelState {
        classes: classes.into(),
        sends_per_second: load.sends_per_second(),
        rate_limit_per_second: Some(load.rate).filter(|rate| rate.is_finite() && *rate > 0.0),
        limited_by: load.limit,
        replicas: load.replicas,
        pods: load.pods.clone(),
        providers: load.providers.clone(),
        dead_letters: api.store.has_dead_letters(&full).await?,
    })
}

async fn schedule_status(api: &Api, namespace: &str, name: &str) -> Result<Value, Problem> {
    let now = clock::now();
    let declared = api.catalog.current();
    let full = format!("{namespace}/{name}");
    let schedule = declared.schedules.get(full.as_str());
    let incarnation = schedule.map_or_else(Incarnation::default, |one| Incarnation::of(one));
    let record = api
        .store
        .schedule(namespace, name, incarnation, now)
        .await?;
    Ok(stands(record, schedule.map(|schedule| &**schedule), now))
}

/// Where a schedule stands, as it is declared now.
fn stands(record: ScheduleRecord, schedule: Option<&Schedule>, now: Timestamp) -> Value {
    let next = schedule.and_then(|schedule| {
        let due = schedule.spec.due().ok()?;
        due.next_after(record.done_until().max(now))
    });
    let mut status = json!({"missed": record.missed});
    if let Some(last) = record.last_fired {
        status["lastScheduleTime"] = json!(last);
    }
    // What was refused may have been another.
    if let Some(refused) = record.refused
        && schedule.is_some_and(|schedule| digest(schedule) == refused.declared)
    {
        status["refused"] = json!({"scheduleTime": refused.due, "message": refused.message});
    }
    if let Some(next) = next {
        status["nextScheduleTime"] = json!(next);
    }
    if let Some(id) = record.last_notification {
        status["lastNotification"] = json!({"id": id, "accepted": true});
    }
    status
}

/// Refuses if the caller has seen another version.
fn check_tag(headers: &HeaderMap, now: Option<&Value>) -> Result<(), Problem> {
    let Some(wanted) = headers.get(header::IF_MATCH) else {
        return Ok(());
    };
    let wanted = wanted.to_str().unwrap_or_default();
    let is = now.map(etag);
    let matches = wanted
        .split(',')
        .map(str::trim)
        .any(|tag| is.as_deref().is_some_and(|is| tag == "*" || tag == is));
    if matches {
        return Ok(());
    }
    Err(Problem::new(
        Kind::Changed,
        "it was changed since it was read: read it again, and change that",
    ))
}

fn editor(api: &Api) -> Result<&Arc<dyn super::Editor>, Problem> {
    api.editor.as_ref().ok_or_else(|| {
        Problem::new(
            Kind::ReadOnly,
            "what is declared is changed through Kubernetes here: kubectl apply, or your GitOps repository",
        )
    })
}

async fn put_one(
    api: &Api,
    kind: ResourceKind,
    (namespace, name): (&str, &str),
    headers: &HeaderMap,
    mut document: Value,
) -> Result<Response, Problem> {
    let editor = editor(api)?;
    check_tag(
        headers,
        resource(&api.catalog.current(), kind, namespace, name).as_ref(),
    )?;
    let wrong = |errors| Err(Problem::invalid(errors));
    let Some(members) = document.as_object_mut() else {
        return wrong(vec![FieldError::new("", "must be a resource: an object")]);
    };
    members
        .entry("apiVersion")
        .or_insert(herald_crds::kind::API_VERSION.into());
    members.entry("kind").or_insert(kind.as_str().into());
    members.remove("status");
    members.remove("state");
    let metadata = members.entry("metadata").or_insert(json!({}));
    let mut errors = Vec::new();
    if let Some(metadata) = metadata.as_object_mut() {
        for (field, is) in [("name", name), ("namespace", namespace)] {
            let given = metadata.entry(field).or_insert(is.into());
            if given != is {
                let detail = format!("must be {is:?}, as the path says");
                errors.push(FieldError::new(format!("/metadata/{field}"), detail));
            }
        }
    }
    if document["kind"] != *kind.as_str() {
        let detail = format!("must be {:?}, as the path says", kind.as_str());
        errors.push(FieldError::new("/kind", detail));
    }
    if !errors.is_empty() {
        return wrong(errors);
    }
    let parsed = match Resource::parse(&document) {
        Ok(parsed) => parsed,
        Err(problems) => return wrong(places(problems)),
    };
    let is_new = editor.put(parsed).await?;
    let value = resource(&api.catalog.current(), kind, namespace, name).unwrap_or(document);
    let status = if is_new {
        StatusCode::CREATED
    } else {
        StatusCode::OK
    };
    let tag = etag(&value);
    Ok(tagged(status, &value, &tag))
}

async fn delete_one(
    api: &Api,
    kind: ResourceKind,
    namespace: &str,
    name: &str,
    headers: &HeaderMap,
) -> Result<StatusCode, Problem> {
    let editor = editor(api)?;
    let value = find(api, kind, namespace, name)?;
    check_tag(headers, Some(&value))?;
    editor.delete(kind, namespace, name).await?;
    Ok(StatusCode::NO_CONTENT)
}

/// Problems of a resource as those of a body.
pub(super) fn places(problems: Vec<herald_crds::Problem>) -> Vec<FieldError> {
    problems
        .into_iter()
        .map(|problem| FieldError::new(problem.path, problem.message))
        .collect()
}

impl From<EditError> for Problem {
    fn from(error: EditError) -> Self {
        match error {
            EditError::Write { reason } => Self::new(Kind::Conflict, reason),
            EditError::Check { problems } => Self::invalid(places(problems)),
            EditError::Find => Self::not_found("such resource"),
        }
    }
}

#[cfg(test)]
mod tests {
    use herald_crds::ScheduleSpec;

    use super::*;
    use crate::store::RefusedDue;

    #[test]
    fn what_was_refused_is_told_of_the_schedule_that_was_refused_alone() {
        let at = |second| Timestamp::from_second(second).unwrap();
        let mut schedule = Schedule::new("digest", ScheduleSpec::default());
        schedule.metadata.uid = Some("u-1".to_owned());
        let record = ScheduleRecord {
            uid: Some("u-1".to_owned()),
            created_at: at(0),
            last_due: None,
            last_fired: None,
            last_notification: None,
            refused: Some(RefusedDue {
                due: at(60),
                declared: digest(&schedule),
                message: "it may not".to_owned(),
            }),
            missed: 0,
        };
        let told =
            |schedule: &Schedule| stands(record.clone(), Some(schedule), at(90))["refused"].clone();
        let refused = json!({"scheduleTime": "1970-01-01T00:01:00Z", "message": "it may not"});
        assert_eq!(told(&schedule), refused);
        let mut edited = schedule.clone();
        edited.spec.service_account_name = Some("mailer".to_owned());
        assert_eq!(told(&edited), Value::Null);
        let mut anew = schedule;
        anew.metadata.uid = Some("u-2".to_owned());
        assert_eq!(told(&anew), Value::Null);
    }
}
