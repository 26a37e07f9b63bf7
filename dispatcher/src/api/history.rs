//! What became of it: notifications, deliveries, their trails and contents.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use axum::Json;
use axum::extract::{Path, State};
use herald_crds::Priority;
use herald_crds::render::Recipient as RenderedFor;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::broadcast::error::RecvError;
use tokio::time::{Instant, timeout_at};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::page::PageQuery;
use super::preview::{self, Block};
use super::view::{self, Notification};
use super::{Api, Caller, Kind, PageOf, Params, Problem, page, schema};
use crate::clock;
use crate::fanout::definitions::DefinitionError;
use crate::id::{DeliveryId, NotificationId};
use crate::store::{
    DeliveryRecord, NotificationFilter, NotificationRecord, State as DeliveryState,
};

/// Longest `wait`.
pub(super) const LONGEST_WAIT: Duration = Duration::from_mins(1);

/// How long `wait` takes an unknown id for one that was accepted a moment ago.
const TOLERANCE: Duration = Duration::from_secs(5);

/// While waiting, the store is asked at least this often.
const LOOK: Duration = Duration::from_secs(1);

/// The calls that ask what became of it.
pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(notifications))
        .routes(routes!(notification))
        .routes(routes!(deliveries))
        .routes(routes!(delivery))
        .routes(routes!(trail))
        .routes(routes!(content))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct NotificationsQuery {
    /// By template.
    template: Option<String>,
    /// By recipient id.
    recipient: Option<String>,
    /// By sender.
    sender: Option<String>,
    /// With a delivery over this channel: `name`, or `namespace/name`.
    channel: Option<String>,
    /// With a delivery in this state.
    #[param(inline)]
    status: Option<DeliveryState>,
    /// By class.
    #[param(schema_with = schema::priority)]
    priority: Option<Priority>,
    /// With this metadata: `key=value`, several of them separated by commas.
    metadata: Option<String>,
    /// Accepted at or after.
    #[param(value_type = Option<String>, format = DateTime)]
    from: Option<Timestamp>,
    /// Accepted before.
    #[param(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    /// Most items on the page: 1 to 1,000. Default: 100.
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// A channel's full name, from what a caller wrote.
pub(super) fn full_name(namespace: &str, name: &str) -> String {
    if name.contains('/') {
        name.to_owned()
    } else {
        format!("{namespace}/{name}")
    }
}

/// List notifications, newest first.
#[utoipa::path(
    get, path = "/v1/namespaces/{ns}/notifications", tag = "History",
    params(("ns" = String, Path, description = "Namespace"), NotificationsQuery),
    responses((status = 200, body = PageOf<Notification>))
)]
async fn notifications(
    State(api): State<Arc<Api>>,
    Path(namespace): Path<String>,
    _: Caller,
    Params(query): Params<NotificationsQuery>,
) -> Result<Json<PageOf<Notification>>, Problem> {
    let filter = NotificationFilter {
        template: query.template,
        recipient: query.recipient,
        sender: query.sender,
        channel: query.channel.map(|name| full_name(&namespace, &name)),
        state: query.status,
        priority: query.priority,
        metadata: page::terms("metadata", query.metadata.as_deref())?,
        from: query.from,
        until: query.until,
    };
    let paging = page::paging(query.limit, query.cursor)?;
    let page = api
        .store
        .notifications(&namespace, &filter, &paging)
        .await?;
    let now = clock::now();
    Ok(Json(PageOf::from_store(page, |record| {
        Notification::new(&record, now)
    })))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct WaitQuery {
    /// Wait for its end, at most so long: `30s`, `500ms`, `1m`; at most 60 s. A notification that is not known yet is
    /// waited for, too, for 5 s.
    #[param(example = "30s")]
    wait: Option<String>,
}

/// Get a notification: where it stands.
#[utoipa::path(
    get, path = "/v1/namespaces/{ns}/notifications/{id}", tag = "History",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("id" = String, Path, description = "Notification"),
        WaitQuery,
    ),
    responses((status = 200, body = Notification))
)]
async fn notification(
    State(api): State<Arc<Api>>,
    Path((namespace, id)): Path<(String, String)>,
    _: Caller,
    Params(query): Params<WaitQuery>,
) -> Result<Json<Notification>, Problem> {
    let id = notification_id(&id)?;
    let wait = query.wait.as_deref().map(duration).transpose()?;
    let record = match wait {
        None => api.store.notification(&namespace, &id).await?,
        Some(wait) => await_end(&api, &namespace, &id, wait).await?,
    };
    let record = record.ok_or_else(|| unknown_notification(&namespace, &id))?;
    Ok(Json(Notification::new(&record, clock::now())))
}

/// Asks until it has ended, whenever one of its deliveries takes a step and at least every second.
async fn await_end(
    api: &Api,
    namespace: &str,
    id: &NotificationId,
    wait: Duration,
) -> Result<Option<NotificationRecord>, Problem> {
    let begin = Instant::now();
    let end = begin + wait;
    let mut outcomes = api.outcomes.subscribe();
    loop {
        let record = api.store.notification(namespace, id).await?;
        let now = Instant::now();
        let enough = match &record {
            Some(record) => record.ended(),
            None => now >= begin + TOLERANCE,
        };
        if enough || now >= end {
            return Ok(record);
        }
        let pause = if record.is_some() { LOOK } else { LOOK / 20 };
        let news = async {
            loop {
                match outcomes.recv().await {
                    Ok(outcome) if outcome.1.notification == *id => return,
                    Ok(_) => {}
                    Err(RecvError::Lagged(_)) => return,
                    Err(RecvError::Closed) => std::future::pending().await,
                }
            }
        };
        // Whether there is news or the time is up, the store is asked again.
        let _ = timeout_at((now + pause).min(end), news).await;
    }
}

/// Reads a duration such as `30s`; plain numbers are seconds.
fn duration(text: &str) -> Result<Duration, Problem> {
    let split = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let (number, unit) = text.split_at(split);
    let unit = match unit {
        "ms" => Some(Duration::from_millis(1)),
        "" | "s" => Some(Duration::from_secs(1)),
        "m" => Some(Duration::from_mins(1)),
        _ => None,
    };
    unit.zip(number.parse::<u32>().ok())
        .and_then(|(unit, number)| unit.checked_mul(number))
        .filter(|wait| *wait <= LONGEST_WAIT)
        .ok_or_else(|| Problem::query("wait", "must be a duration such as 30s, of at most 60s"))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DeliveriesQuery {
    /// In this state.
    #[param(inline)]
    status: Option<DeliveryState>,
    /// Most items on the page: 1 to 1,000. Default: 100.
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// List the deliveries of a notification: every recipient and channel.
#[utoipa::path(
    get, path = "/v1/namespaces/{ns}/notifications/{id}/deliveries", tag = "History",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("id" = String, Path, description = "Notification"),
        DeliveriesQuery,
    ),
    responses((status = 200, body = PageOf<view::Delivery>))
)]
async fn deliveries(
    State(api): State<Arc<Api>>,
    Path((namespace, id)): Path<(String, String)>,
    _: Caller,
    Params(query): Params<DeliveriesQuery>,
) -> Result<Json<PageOf<view::Delivery>>, Problem> {
    let id = notification_id(&id)?;
    let paging = page::paging(query.limit, query.cursor)?;
    let page = api
        .store
        .deliveries(&namespace, &id, query.status, &paging)
        .await?;
    if page.items.is_empty() && paging.cursor.is_none() {
        known(&api, &namespace, &id).await?;
    }
    Ok(Json(PageOf::from_store(page, view::Delivery::from)))
}

/// Get a delivery.
#[utoipa::path(
    get, path = "/v1/namespaces/{ns}/deliveries/{id}", tag = "History",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("id" = String, Path, description = "Delivery"),
    ),
    responses((status = 200, body = view::Delivery))
)]
async fn delivery(
    State(api): State<Arc<Api>>,
    Path((namespace, id)): Path<(String, String)>,
    _: Caller,
) -> Result<Json<view::Delivery>, Problem> {
    let record = known_delivery(&api, &namespace, &id).await?;
    Ok(Json(record.into()))
}

/// List the steps of a delivery, oldest first.
#[utoipa::path(
    get, path = "/v1/namespaces/{ns}/deliveries/{id}/events", tag = "History",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("id" = String, Path, description = "Delivery"),
        PageQuery,
    ),
    responses((status = 200, body = PageOf<view::Trail>))
)]
async fn trail(
    State(api): State<Arc<Api>>,
    Path((namespace, id)): Path<(String, String)>,
    _: Caller,
    Params(query): Params<PageQuery>,
) -> Result<Json<PageOf<view::Trail>>, Problem> {
    let record = known_delivery(&api, &namespace, &id).await?;
    let paging = page::paging(query.limit, query.cursor)?;
    let page = api.store.trail(&namespace, &record.id, &paging).await?;
    Ok(Json(PageOf::from_store(page, view::Trail::from)))
}

/// What was said to one recipient.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Content {
    /// The template's definition that it was rendered from: `sha256:…`.
    pub definition: String,
    /// The locale asked for; empty: the template's default.
    pub locale: String,
    /// What was said.
    pub content: Block,
}

/// Read what was said: rendered again from the definition and the parameters as they were.
///
/// Where a template has sensitive parameters, nothing of it can be read.
#[utoipa::path(
    get, path = "/v1/namespaces/{ns}/deliveries/{id}/content", tag = "History",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("id" = String, Path, description = "Delivery"),
    ),
    responses((status = 200, body = Content))
)]
async fn content(
    State(api): State<Arc<Api>>,
    Path((namespace, id)): Path<(String, String)>,
    _: Caller,
) -> Result<Json<Content>, Problem> {
    let delivery = known_delivery(&api, &namespace, &id).await?;
    let requests = api.store.requests(&[delivery.notification]).await?;
    let Some(request) = requests.into_iter().next() else {
        return Err(Problem::not_found("content any more"));
    };
    if request.sensitive {
        return Err(Problem::new(
            Kind::NotFound,
            "what was said had sensitive parts, so nothing of it is kept",
        ));
    }
    let declared = api.catalog.current();
    let Some(channel) = declared.channels.get(&delivery.channel) else {
        return Err(Problem::new(
            Kind::NotFound,
            "its channel is no longer declared, so that its medium is not known",
        ));
    };
    let ready = api
        .definitions
        .template(&request.definition)
        .await
        .map_err(|error| match error {
            DefinitionError::Store(error) => error.into(),
            other => {
                tracing::error!(error = %other, "a definition could not be read");
                Problem::new(
                    Kind::Internal,
                    "its definition could not be read; the log says why",
                )
            }
        })?;
    let definition = ready.compiled.definition();
    let parameters: serde_json::Value =
        serde_json::from_str(request.parameters.get()).unwrap_or_default();
    let labels = if delivery.recipient.is_empty() {
        std::collections::BTreeMap::new()
    } else {
        let recipient = api.store.recipient(&namespace, &delivery.recipient).await?;
        recipient.map(|r| r.labels).unwrap_or_default()
    };
    let recipient = Arc::new(RenderedFor {
        id: (!delivery.recipient.is_empty()).then(|| Arc::clone(&delivery.recipient)),
        locale: Arc::clone(&delivery.locale),
        labels,
    });
    let locale = if delivery.locale.is_empty() {
        definition.template.default_locale()
    } else {
        &*delivery.locale
    };
    let parameters = ready.compiled.prepare(parameters);
    let medium = channel.spec.medium;
    Ok(Json(Content {
        definition: request.definition.to_string(),
        locale: delivery.locale.to_string(),
        content: preview::block(&ready.compiled, medium, locale, &parameters, &recipient),
    }))
}

/// Reads an id.
pub(super) fn notification_id(text: &str) -> Result<NotificationId, Problem> {
    id(text, "notification")
}

/// Reads an id: what is none cannot be there.
pub(super) fn id<T: FromStr<Err: std::fmt::Display>>(text: &str, what: &str) -> Result<T, Problem> {
    text.parse().map_err(|error| {
        Problem::new(
            Kind::NotFound,
            format!("there is no {what} {text:?}: {error}"),
        )
    })
}

fn unknown_notification(namespace: &str, id: &NotificationId) -> Problem {
    Problem::not_known_yet(&format!("notification {id}"), namespace)
}

/// Refuses unless there is such a notification in the namespace.
pub(super) async fn known(api: &Api, namespace: &str, id: &NotificationId) -> Result<(), Problem> {
    let found = api.store.requests(&[*id]).await?;
    match found.first() {
        Some(request) if &*request.namespace == namespace => Ok(()),
        _ => Err(unknown_notification(namespace, id)),
    }
}

async fn known_delivery(api: &Api, namespace: &str, text: &str) -> Result<DeliveryRecord, Problem> {
    let id: DeliveryId = id(text, "delivery")?;
    let record = api.store.delivery(namespace, &id).await?;
    record.ok_or_else(|| Problem::not_known_yet(&format!("delivery {id}"), namespace))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_wait_is_read_with_its_unit_and_bounded() {
        for (text, milliseconds) in [
            ("30s", Some(30_000)),
            ("5", Some(5_000)),
            ("500ms", Some(500)),
            ("1m", Some(60_000)),
            ("2m", None),
            ("s", None),
            ("-1s", None),
            ("1h", None),
            ("99999999999s", None),
        ] {
            let read = duration(text).ok().map(|d| d.as_millis());
            assert_eq!(read, milliseconds, "{text}");
        }
    }
}
