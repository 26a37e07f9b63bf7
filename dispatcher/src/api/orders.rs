//! Orders about what is under way: cancel, prioritize, confirm; dead letters.

use std::sync::Arc;

use axum::Json;
use axum::extract::{Path, State};
use axum::http::StatusCode;
use herald_crds::Priority;
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

use super::history::{full_name, id, known, notification_id};
use super::view::{Delivery, Notification, Status};
use super::{Api, Caller, FieldError, JsonBody, Kind, PageOf, Params, Problem, page, schema};
use crate::access::rights;
use crate::clock;
use crate::id::DeliveryId;
use crate::store::{DeadLetterFilter, Refusal};
use crate::waiting::control::{ControlError, Reached as OrderReached};

/// Most dead letters replayed or discarded at a time.
const MOST_DEAD_LETTERS: usize = 10_000;

/// The calls that give orders.
pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new()
        .routes(routes!(cancel))
        .routes(routes!(cancel_template))
        .routes(routes!(prioritize))
        .routes(routes!(confirm))
        .routes(routes!(dead_letters))
        .routes(routes!(replay))
        .routes(routes!(discard))
}

/// What an order has reached.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Reached {
    /// Deliveries that were still waiting: the order holds for all of them.
    pub waiting: u64,
    /// Deliveries that are out already: the order holds for those that are not yet sent.
    pub out: u64,
    /// Not every pod that has some of them has read the order yet.
    pub pending: bool,
    /// Where the notification stands now; absent if the order was about several.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<Status>,
}

fn reached(reached: &OrderReached, status: Option<Status>) -> (StatusCode, Json<Reached>) {
    let code = if reached.pending {
        StatusCode::ACCEPTED
    } else {
        StatusCode::OK
    };
    let body = Reached {
        waiting: reached.recalled.waiting,
        out: reached.recalled.out,
        pending: reached.pending,
        status,
    };
    (code, Json(body))
}

impl From<ControlError> for Problem {
    fn from(error: ControlError) -> Self {
        match error {
            ControlError::Store(error) => error.into(),
            ControlError::Broker(error) => {
                tracing::warn!(%error, "an order reached the rows and not what is out");
                Self::new(
                    Kind::Unavailable,
                    "what was waiting has been changed; what is out could not be told: repeat the request",
                )
                .retry_after(std::time::Duration::from_secs(1))
            }
        }
    }
}

/// Cancel a notification: what has not gone out does not go out.
#[utoipa::path(
    post, path = "/v1/namespaces/{ns}/notifications/{id}/cancel", tag = "Orders",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("id" = String, Path, description = "Notification"),
    ),
    responses(
        (status = 200, body = Reached, description = "Done"),
        (status = 202, body = Reached, description = "Done, but for pods that have not read the order yet"),
    )
)]
async fn cancel(
    State(api): State<Arc<Api>>,
    Path((namespace, id)): Path<(String, String)>,
    caller: Caller,
) -> Result<(StatusCode, Json<Reached>), Problem> {
    let id = notification_id(&id)?;
    known(&api, &namespace, &id).await?;
    let order = api.control.cancel(&id).await?;
    tracing::info!(%id, sender = %caller.sender.name, waiting = order.recalled.waiting, "cancelled");
    let record = api.store.notification(&namespace, &id).await?;
    let status = record.map(|record| Notification::new(&record, clock::now()).status);
    Ok(reached(&order, status))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct CancelQuery {
    /// The template's name.
    template: String,
}

/// Halt a template: cancels everything of it that has not gone out.
///
/// To keep further ones from going out, set the template's `suspend` too.
#[utoipa::path(
    post, path = "/v1/namespaces/{ns}/notifications/cancel", tag = "Orders",
    params(("ns" = String, Path, description = "Namespace"), CancelQuery),
    responses(
        (status = 200, body = Reached, description = "Done"),
        (status = 202, body = Reached, description = "Done, but for pods that have not read the order yet"),
    )
)]
async fn cancel_template(
    State(api): State<Arc<Api>>,
    Path(namespace): Path<String>,
    caller: Caller,
    Params(query): Params<CancelQuery>,
) -> Result<(StatusCode, Json<Reached>), Problem> {
    let order = api
        .control
        .cancel_template(&namespace, &query.template)
        .await?;
    tracing::info!(
        template = query.template, sender = %caller.sender.name, waiting = order.recalled.waiting,
        "everything of a template was cancelled"
    );
    Ok(reached(&order, None))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Prioritize {
    /// The new class.
    #[schema(schema_with = schema::priority)]
    priority: Priority,
}

/// Give a notification another priority, as far as it has not gone out.
#[utoipa::path(
    post, path = "/v1/namespaces/{ns}/notifications/{id}/prioritize", tag = "Orders",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("id" = String, Path, description = "Notification"),
    ),
    request_body = Prioritize,
    responses(
        (status = 200, body = Reached, description = "Done"),
        (status = 202, body = Reached, description = "Done, but for pods that have not read the order yet"),
    )
)]
async fn prioritize(
    State(api): State<Arc<Api>>,
    Path((namespace, id)): Path<(String, String)>,
    caller: Caller,
    JsonBody(body): JsonBody<Prioritize>,
) -> Result<(StatusCode, Json<Reached>), Problem> {
    let class = body.priority;
    caller
        .require(&rights::use_priority(class), class.as_str())
        .await?;
    let id = notification_id(&id)?;
    known(&api, &namespace, &id).await?;
    let order = api.control.prioritize(&id, body.priority).await?;
    tracing::info!(%id, sender = %caller.sender.name, priority = %body.priority, "prioritized");
    Ok(reached(&order, None))
}

#[derive(Debug, Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct Confirm {
    /// So many recipients are meant, at most: as many as `held.recipients` says, or more.
    recipients: u64,
}

/// Confirm a held notification: it goes on, to at most so many recipients.
#[utoipa::path(
    post, path = "/v1/namespaces/{ns}/notifications/{id}/confirm", tag = "Orders",
    params(
        ("ns" = String, Path, description = "Namespace"),
        ("id" = String, Path, description = "Notification"),
    ),
    request_body = Confirm,
    responses((status = 204, description = "It goes on"))
)]
async fn confirm(
    State(api): State<Arc<Api>>,
    Path((namespace, id)): Path<(String, String)>,
    caller: Caller,
    JsonBody(body): JsonBody<Confirm>,
) -> Result<StatusCode, Problem> {
    let id = notification_id(&id)?;
    let Some(record) = api.store.notification(&namespace, &id).await? else {
        return Err(Problem::not_known_yet(
            &format!("notification {id}"),
            &namespace,
        ));
    };
    let Some((recipients, _)) = record.held else {
        return Err(Problem::new(Kind::Conflict, "it is not held"));
    };
    if body.recipients < recipients {
        return Err(Problem::invalid(vec![FieldError::new(
            "/recipients",
            format!("it has {recipients} recipients, which is more than these"),
        )]));
    }
    if !api.store.confirm(&id, body.recipients).await? {
        return Err(Problem::new(Kind::Conflict, "it is not held any more"));
    }
    api.control.rows_changed();
    tracing::info!(%id, sender = %caller.sender.name, recipients = body.recipients, "confirmed");
    Ok(StatusCode::NO_CONTENT)
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct DeadLettersQuery {
    /// Of this channel: `name`, or `namespace/name`.
    channel: Option<String>,
    /// With this reason, such as `smtp-550`.
    reason: Option<String>,
    /// Failed at or after.
    #[param(value_type = Option<String>, format = DateTime)]
    from: Option<Timestamp>,
    /// Failed before.
    #[param(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    /// Most items on the page: 1 to 1,000. Default: 100.
    limit: Option<usize>,
    /// `next` of the page before.
    cursor: Option<String>,
}

/// List dead letters: deliveries that failed for good, newest first.
#[utoipa::path(
    get, path = "/v1/namespaces/{ns}/dead-letters", tag = "Dead letters",
    params(("ns" = String, Path, description = "Namespace"), DeadLettersQuery),
    responses((status = 200, body = PageOf<Delivery>))
)]
async fn dead_letters(
    State(api): State<Arc<Api>>,
    Path(namespace): Path<String>,
    _: Caller,
    Params(query): Params<DeadLettersQuery>,
) -> Result<Json<PageOf<Delivery>>, Problem> {
    let filter = DeadLetterFilter {
        channel: query.channel.map(|name| full_name(&namespace, &name)),
        reason: query.reason,
        from: query.from,
        until: query.until,
        ids: Vec::new(),
        mandatory: Vec::new(),
    };
    let paging = page::paging(query.limit, query.cursor)?;
    let page = api.store.dead_letters(&namespace, &filter, &paging).await?;
    Ok(Json(PageOf::from_store(page, Delivery::from)))
}

/// Which dead letters are meant: all that is given must match.
#[derive(Debug, Default, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
struct DeadLetters {
    /// Of this channel: `name`, or `namespace/name`.
    #[serde(default)]
    channel: Option<String>,
    /// With this reason.
    #[serde(default)]
    reason: Option<String>,
    /// Failed at or after.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    from: Option<Timestamp>,
    /// Failed before.
    #[serde(default)]
    #[schema(value_type = Option<String>, format = DateTime)]
    until: Option<Timestamp>,
    /// These deliveries alone, at most 1,000.
    #[serde(default)]
    #[schema(max_items = 1000)]
    deliveries: Vec<String>,
    /// At most so many, the oldest first: 1 to 10,000. Default: 10,000.
    #[serde(default)]
    limit: Option<usize>,
}

impl DeadLetters {
    fn filter(self, namespace: &str) -> Result<(DeadLetterFilter, usize), Problem> {
        let limit = self.limit.unwrap_or(MOST_DEAD_LETTERS);
        let wrong = |pointer: &str, detail: String| {
            Err(Problem::invalid(vec![FieldError::new(pointer, detail)]))
        };
        if !(1..=MOST_DEAD_LETTERS).contains(&limit) {
            return wrong("/limit", format!("must be from 1 to {MOST_DEAD_LETTERS}"));
        }
        if self.deliveries.len() > 1000 {
            return wrong("/deliveries", "may have at most 1000 ids".to_owned());
        }
        let ids: Result<Vec<_>, Problem> = self
            .deliveries
            .iter()
            .map(|text| id(text, "delivery"))
            .collect();
        let filter = DeadLetterFilter {
            channel: self.channel.map(|name| full_name(namespace, &name)),
            reason: self.reason,
            from: self.from,
            until: self.until,
            ids: ids?,
            mandatory: Vec::new(),
        };
        Ok((filter, limit))
    }
}

/// How many dead letters it was.
#[derive(Debug, Clone, Copy, Serialize, Deserialize, ToSchema)]
struct Changed {
    /// So many; as many as `limit`: there may be more, ask again.
    changed: u64,
}

/// What was replayed, and what was not.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
struct Replayed {
    /// So many go out again; as many as `limit`: there may be more, ask again.
    changed: u64,
    /// Those that were meant and cannot go out again, oldest first, at most 1,000. They stay dead letters. If `changed`
    /// is `limit`, only those that failed before the last that goes out: ask again for the others.
    refused: Vec<NotReplayed>,
}

/// A dead letter that cannot go out again.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
struct NotReplayed {
    /// The delivery.
    delivery: String,
    /// `cancelled`; `sensitive`: its parameters were blanked; `address-gone` or `opted-out`: its address is suppressed.
    reason: String,
    /// The same for people.
    detail: String,
}

impl NotReplayed {
    fn new((delivery, refusal): &(DeliveryId, Refusal)) -> Self {
        let (reason, detail) = match refusal {
            Refusal::CalledBack => ("cancelled", "its notification was cancelled"),
            Refusal::Blanked => (
                "sensitive",
                "its notification has ended and had sensitive parameters, which were blanked: send it anew, or discard it",
            ),
            Refusal::Suppressed(reason) => (
                <&'static str>::from(*reason),
                "its address is suppressed: take it off with DELETE …/suppressions/{medium}/{address}, or discard it",
            ),
        };
        Self {
            delivery: delivery.to_string(),
            reason: reason.to_owned(),
            detail: detail.to_owned(),
        }
    }
}

/// The templates of a namespace that go out to suppressed addresses, too.
fn mandatory(api: &Api, namespace: &str) -> Vec<String> {
    let declared = api.catalog.current();
    let of_namespace = declared.templates.iter().filter_map(|(name, template)| {
        let (of, short) = name.split_once('/')?;
        (of == namespace && template.resource.spec.mandatory).then(|| short.to_owned())
    });
    of_namespace.collect()
}

/// Replay dead letters: each is released again, with its next round.
///
/// The body says which; `{}` means all.
///
/// Those of cancelled notifications are not, nor those with sensitive parameters once their notification has ended: what
/// they would say is stored nowhere; nor those to suppressed addresses, unless the template is mandatory. The answer
/// names them.
#[utoipa::path(
    post, path = "/v1/namespaces/{ns}/dead-letters/replay", tag = "Dead letters",
    params(("ns" = String, Path, description = "Namespace")),
    request_body = DeadLetters,
    responses((status = 200, body = Replayed))
)]
async fn replay(
    State(api): State<Arc<Api>>,
    Path(namespace): Path<String>,
    caller: Caller,
    JsonBody(body): JsonBody<DeadLetters>,
) -> Result<Json<Replayed>, Problem> {
    let (mut filter, limit) = body.filter(&namespace)?;
    filter.mandatory = mandatory(&api, &namespace);
    let now = clock::now();
    let replayed = api.store.replay(&namespace, &filter, limit, now).await?;
    api.control.rows_changed();
    let changed = replayed.count;
    let refused: Vec<_> = replayed.refused.iter().map(NotReplayed::new).collect();
    tracing::info!(
        sender = %caller.sender.name, changed, refused = refused.len(), "dead letters were replayed"
    );
    Ok(Json(Replayed { changed, refused }))
}

/// Discard dead letters: they stay failed, and are dead letters no more.
///
/// The body says which; `{}` means all.
#[utoipa::path(
    post, path = "/v1/namespaces/{ns}/dead-letters/discard", tag = "Dead letters",
    params(("ns" = String, Path, description = "Namespace")),
    request_body = DeadLetters,
    responses((status = 200, body = Changed))
)]
async fn discard(
    State(api): State<Arc<Api>>,
    Path(namespace): Path<String>,
    caller: Caller,
    JsonBody(body): JsonBody<DeadLetters>,
) -> Result<Json<Changed>, Problem> {
    let (filter, limit) = body.filter(&namespace)?;
    let now = clock::now();
    let changed = api.store.discard(&namespace, &filter, limit, now).await?;
    tracing::info!(sender = %caller.sender.name, changed, "dead letters were discarded");
    Ok(Json(Changed { changed }))
}
