//! The stream of outcomes: what the channels' events say of deliveries, as it comes, and again from where a reader was.
//!
//! A stream reads along on the events topic of every channel that may carry notifications of its namespace, as the pods
//! do. So it sees the same whichever gateway serves it, a slow reader holds back nobody, and a reader that was gone goes
//! on where it was, for as long as the broker keeps events.

mod places;
mod position;

use std::collections::{HashMap, VecDeque};
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use axum::extract::{Path, State};
use axum::http::HeaderMap;
use axum::response::sse::{Event as SseEvent, Sse};
use futures::stream::{BoxStream, SelectAll};
use futures::{Stream, StreamExt as _};
use herald_crds::{Priority, names};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};
use tokio::sync::watch;
use tokio::time::{Instant, Interval, MissedTickBehavior, interval_at, sleep};
use utoipa::{IntoParams, ToSchema};
use utoipa_axum::router::OpenApiRouter;
use utoipa_axum::routes;

pub use self::places::Places;
use self::position::{Mark, Position};
use super::auth::{bearer, still_may};
use super::history::{full_name, notification_id};
use super::{Api, Caller, Kind, Params, Problem, schema};
use crate::access::rights;
use crate::broker::{Broker, BrokerError, MessageId, Tail};
use crate::catalog::{FullName, Snapshot};
use crate::clock;
use crate::id::NotificationId;
use crate::message::{self, Event, Events, Step};

/// Notifications whose namespace a stream remembers.
const KNOWN: usize = 1024;

/// How often a stream that has nothing to say says where it is.
const BEAT: Duration = Duration::from_secs(15);

/// How long to wait before what failed is tried again.
const PAUSE: Duration = Duration::from_secs(1);

/// How long outcomes wait for their notification to be recorded, unless the recorder is past them.
const PATIENCE: Duration = Duration::from_secs(5);

/// How soon a notification is looked for again that the store does not know yet; each time twice that, up to [`PAUSE`].
const SOON: Duration = Duration::from_millis(50);

/// The call that follows outcomes.
pub(super) fn routes() -> OpenApiRouter<Arc<Api>> {
    OpenApiRouter::new().routes(routes!(events))
}

#[derive(Debug, Deserialize, IntoParams)]
#[serde(deny_unknown_fields)]
#[into_params(parameter_in = Query)]
struct EventsQuery {
    /// Of this notification alone.
    notification: Option<String>,
    /// Over this channel alone: `name`, or `namespace/name`.
    channel: Option<String>,
    /// Go on after the event with this `id`, or say so in the header `Last-Event-ID`, as browsers do. Default: now.
    after: Option<String>,
}

/// One step of a delivery, as it happens.
#[derive(Debug, Clone, Serialize, Deserialize, ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct Outcome {
    /// When.
    #[schema(value_type = String, format = DateTime)]
    pub at: Timestamp,
    /// The notification.
    pub notification: String,
    /// The delivery.
    pub delivery: String,
    /// Its channel, `namespace/name`.
    pub channel: String,
    /// Its class.
    #[schema(schema_with = schema::priority)]
    pub priority: Priority,
    /// `sent`, `retrying`, `returned`, `failed`, `unknown`, `expired`, `cancelled` or `suppressed`.
    pub step: String,
    /// Its round.
    pub round: u16,
    /// Its attempt.
    pub attempt: u16,
    /// Why, if it was not sent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub reason: Option<String>,
    /// The provider that sent or refused it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<String>,
    /// When it is tried again.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schema(value_type = Option<String>, format = DateTime)]
    pub due_at: Option<Timestamp>,
}

impl Outcome {
    fn new(channel: &str, event: &Event) -> Self {
        let (step, error, due) = match &event.step {
            Step::Sent { .. } => ("sent", None, None),
            Step::Retrying { error, due } => ("retrying", Some(error), Some(*due)),
            Step::Returned { error, due, .. } => ("returned", Some(error), Some(*due)),
            Step::Failed { error, .. } => ("failed", Some(error), None),
            Step::Unknown { error } => ("unknown", Some(error), None),
            Step::Expired => ("expired", None, None),
            Step::Cancelled => ("cancelled", None, None),
            Step::Suppressed { .. } => ("suppressed", None, None),
        };
        let reason = match &event.step {
            Step::Suppressed { reason } => Some(reason.to_string()),
            _ => error.map(|error| error.reason.to_string()),
        };
        let provider = match &event.step {
            Step::Sent { provider, .. } => Some(provider.to_string()),
            _ => error.and_then(|error| error.provider.as_deref().map(str::to_owned)),
        };
        Self {
            at: event.at,
            notification: event.notification.to_string(),
            delivery: event.delivery.to_string(),
            channel: channel.to_owned(),
            priority: event.priority,
            step: step.to_owned(),
            round: event.round,
            attempt: event.attempt,
            reason,
            provider,
            due_at: due,
        }
    }
}

/// Follow outcomes as they happen (server-sent events).
///
/// Each event is named `outcome` and carries one step of a delivery. The stream begins now, or with `after` where an
/// earlier one was: its `id` comes with an outcome, and by itself at the beginning and every 15 s. What was sent with
/// the last id or after it may come again, and nothing is left out for as long as events are kept, a quarter of an hour.
/// Who comes back later, reads more slowly than that, or was somewhere that this server knows nothing of, gets an event
/// `lagged`, with the time since which outcomes may be missing here. The lists of deliveries have them. The stream ends within
/// a minute or so of its reader's right to it, or token; also once nobody could be asked about them for a quarter of an
/// hour: come back with the last `id`. Each gateway has at most 8 streams of a namespace open (one more is
/// answered 429), and 64 of all (503).
#[utoipa::path(
    get, path = "/v1/namespaces/{ns}/events", tag = "History",
    params(
        ("ns" = String, Path, description = "Namespace"),
        EventsQuery,
        ("Last-Event-ID" = Option<String>, Header, description = "The same as `after`, which has precedence"),
    ),
    responses((status = 200, content_type = "text/event-stream", body = Outcome))
)]
async fn events(
    State(api): State<Arc<Api>>,
    Path(namespace): Path<String>,
    _: Caller,
    headers: HeaderMap,
    Params(query): Params<EventsQuery>,
) -> Result<Sse<impl Stream<Item = Result<SseEvent, Infallible>> + use<>>, Problem> {
    let open = api.streams.take(&namespace)?;
    let notification = query
        .notification
        .as_deref()
        .map(notification_id)
        .transpose()?;
    let channel = query.channel.map(|name| full_name(&namespace, &name));
    let after = query.after.as_deref().or_else(|| {
        let header = headers.get("last-event-id")?.to_str().ok()?;
        Some(header).filter(|header| !header.is_empty())
    });
    let after =
        match after {
            Some(text) => Some(Position::read(text).ok_or_else(|| {
                Problem::query("after", "is not the id of an event of this stream")
            })?),
            None => None,
        };
    let mut reader = Reader {
        token: bearer(&headers)?.into(),
        changes: api.catalog.changes(),
        api,
        namespace: namespace.into(),
        notification,
        channel,
        position: Position::default(),
        marks: HashMap::new(),
        tails: SelectAll::new(),
        known: HashMap::new(),
        next: VecDeque::new(),
        beat: interval_at(Instant::now() + BEAT, BEAT),
    };
    reader
        .beat
        .set_missed_tick_behavior(MissedTickBehavior::Delay);
    reader.begin(after).await?;
    let stream = futures::stream::unfold((reader, open), |(mut reader, open)| async {
        let event = reader.next().await?;
        // The place among the streams is kept as long as this one is open.
        Some((Ok(event), (reader, open)))
    });
    Ok(Sse::new(stream))
}

/// One message of a channel's events.
type Read = (FullName, MessageId, Events);

/// One stream.
struct Reader {
    api: Arc<Api>,
    /// Of whoever reads: what it may do can be taken from it, and its time can be over, while the stream is open.
    token: Box<str>,
    namespace: Arc<str>,
    /// Of this notification alone.
    notification: Option<NotificationId>,
    /// Over this channel alone.
    channel: Option<String>,
    changes: watch::Receiver<Arc<Snapshot>>,
    position: Position,
    /// Of each channel that is followed.
    marks: HashMap<FullName, Mark>,
    tails: SelectAll<BoxStream<'static, Read>>,
    /// Whether a notification is of this namespace.
    known: HashMap<NotificationId, bool>,
    /// What is said next.
    next: VecDeque<SseEvent>,
    beat: Interval,
}

impl Reader {
    /// Begins after a position, or now.
    async fn begin(&mut self, after: Option<Position>) -> Result<(), Problem> {
        let declared = Arc::clone(&self.changes.borrow_and_update());
        let now = clock::now();
        let at = after.as_ref().map_or(now, |after| {
            let at = Timestamp::from_second(after.at).unwrap_or_default();
            at.min(now)
        });
        let mut mark = Mark { at, told: false };
        let mut lags = mark.lags(now).is_some();
        let mut places = Vec::new();
        for channel in self.channels(&declared) {
            let last = last(&*self.api.broker, &channel).await.map_err(|error| {
                tracing::warn!(%error, "a stream of outcomes cannot begin");
                Problem::new(Kind::Unavailable, "the queue does not answer").retry_after(PAUSE)
            })?;
            let place = match &after {
                None => last,
                Some(after) => after.read.get(&channel).copied().flatten(),
            };
            // What has not been published yet nobody can have read: that was another queue.
            let is_foreign = place > last;
            lags |= is_foreign;
            places.push((channel, place.filter(|_| !is_foreign)));
        }
        mark.told = lags;
        if lags {
            self.say_lagged(at);
        }
        for (channel, place) in places {
            self.follow(channel, place, mark);
        }
        self.say_where();
        Ok(())
    }

    /// The channels that may carry what it shows.
    fn channels(&self, declared: &Snapshot) -> Vec<FullName> {
        let may_carry = |name: &FullName, open: bool| match &self.channel {
            Some(only) => **name == **only,
            None => open || name.split('/').next() == Some(&*self.namespace),
        };
        let channels = declared.channels.iter();
        channels
            .filter(|(name, channel)| may_carry(name, channel.spec.allowed_namespaces.is_some()))
            .map(|(name, _)| Arc::clone(name))
            .collect()
    }

    /// Reads along on a channel's events.
    fn follow(&mut self, channel: FullName, after: Option<MessageId>, mark: Mark) {
        self.marks.insert(Arc::clone(&channel), mark);
        self.position.read.insert(Arc::clone(&channel), after);
        let tail = tail(Arc::clone(&self.api.broker), channel, after);
        self.tails.push(tail.boxed());
    }

    /// The next event; `None`: there will be none.
    async fn next(&mut self) -> Option<SseEvent> {
        loop {
            if let Some(event) = self.next.pop_front() {
                return Some(event);
            }
            tokio::select! {
                read = self.tails.next(), if !self.tails.is_empty() => {
                    let (channel, id, events) = read?;
                    self.show(channel, id, events).await;
                }
                changed = self.changes.changed() => {
                    changed.ok()?;
                    let declared = Arc::clone(&self.changes.borrow_and_update());
                    for channel in self.channels(&declared) {
                        if !self.position.read.contains_key(&channel) {
                            // It is new to this stream, so whatever it carried for this namespace is.
                            let at = clock::now();
                            self.follow(channel, None, Mark { at, told: false });
                        }
                    }
                }
                _ = self.beat.tick() => {
                    let (access, right) = (&*self.api.access, &rights::LIST_NOTIFICATIONS);
                    if !still_may(access, &self.token, right, &self.namespace).await {
                        return None;
                    }
                    self.look_around().await;
                    self.say_where();
                }
            }
        }
    }

    /// Finds out of which channels everything has been read: of what is quiet nothing is missing.
    async fn look_around(&mut self) {
        for (channel, read) in &self.position.read {
            let asked_at = clock::now();
            if let Ok(last) = last(&*self.api.broker, channel).await
                && last <= *read
                && let Some(mark) = self.marks.get_mut(channel)
            {
                mark.reach(asked_at, asked_at);
            }
        }
    }

    /// Where it is, as the id of an event.
    fn place(&mut self) -> Option<String> {
        let at = self.marks.values().map(|mark| mark.at).min();
        self.position.at = at.unwrap_or_else(clock::now).as_second();
        self.position.id()
    }

    fn say_where(&mut self) {
        let event = SseEvent::default();
        let event = match self.place() {
            Some(id) => event.id(id),
            None => event.comment(""),
        };
        self.next.push_back(event);
    }

    /// Says that outcomes may be missing since a time.
    fn say_lagged(&mut self, since: Timestamp) {
        let lagged = SseEvent::default().event("lagged");
        self.next.push_back(lagged.data(since.to_string()));
    }

    /// Says what a message tells of this stream's deliveries.
    async fn show(&mut self, channel: FullName, id: MessageId, events: Events) {
        let now = clock::now();
        let since = self.marks.get_mut(&channel).and_then(|m| m.lags(now));
        if let Some(since) = since {
            self.say_lagged(since);
        }
        if let Some(since) = self.learn(&channel, id, &events).await {
            self.say_lagged(since);
        }
        let mut shown = Vec::new();
        for event in events.outcomes.iter().filter(|event| self.is_meant(event)) {
            if self.known.get(&event.notification) == Some(&true) {
                shown.push(Outcome::new(&channel, event));
            }
        }
        if let Some(mark) = self.marks.get_mut(&channel)
            && let Some(at) = events.outcomes.iter().map(|event| event.at).max()
        {
            mark.reach(at, now);
        }
        // Who comes back has the last id that was said: so it stands where the whole message was.
        self.position.read.insert(channel, Some(id));
        let last = shown.len().saturating_sub(1);
        for (index, outcome) in shown.into_iter().enumerate() {
            let Ok(mut event) = SseEvent::default().event("outcome").json_data(outcome) else {
                continue;
            };
            if index == last
                && let Some(id) = self.place()
            {
                event = event.id(id);
            }
            self.next.push_back(event);
        }
    }

    fn is_meant(&self, event: &Event) -> bool {
        self.notification.is_none_or(|id| id == event.notification)
    }

    /// Finds out which notifications are of this namespace: their outcomes do not say so. What was fanned out without
    /// SQL says it itself; the store is asked about the others, until it knows them or the recorder is past this message.
    /// Answers since when outcomes are missing if neither comes to pass.
    async fn learn(
        &mut self,
        channel: &FullName,
        id: MessageId,
        events: &Events,
    ) -> Option<Timestamp> {
        if self.known.len() + events.direct.len() + events.outcomes.len() > KNOWN {
            self.known.clear();
        }
        for direct in &events.direct {
            let is_ours = direct.request.namespace == self.namespace;
            self.known.insert(direct.request.id, is_ours);
        }
        let mut unknown: Vec<NotificationId> = events
            .outcomes
            .iter()
            .filter(|event| self.is_meant(event))
            .map(|event| event.notification)
            .filter(|id| !self.known.contains_key(id))
            .collect();
        unknown.sort_unstable();
        unknown.dedup();
        let recorded = self.api.control.recorded(channel);
        let give_up = Instant::now() + PATIENCE;
        let mut pause = SOON;
        while !unknown.is_empty() {
            // Asked first: what was recorded before the store is asked, it knows if anybody does.
            let is_recorded = recorded
                .as_ref()
                .is_some_and(|recorded| *recorded.borrow() >= Some(id));
            match self.api.store.requests(&unknown).await {
                Ok(found) => {
                    for request in found {
                        let is_ours = request.namespace == self.namespace;
                        self.known.insert(request.id, is_ours);
                    }
                    unknown.retain(|id| !self.known.contains_key(id));
                    if unknown.is_empty() || is_recorded {
                        break;
                    }
                    if Instant::now() >= give_up {
                        let missing = events.outcomes.iter();
                        let missing = missing.filter(|e| unknown.contains(&e.notification));
                        return missing.map(|event| event.at).min();
                    }
                    sleep(pause).await;
                    pause = (pause * 2).min(PAUSE);
                }
                Err(error) => {
                    tracing::warn!(%error, "a stream of outcomes waits for the store");
                    sleep(PAUSE).await;
                }
            }
        }
        None
    }
}

/// The newest message of a channel's events.
async fn last(broker: &dyn Broker, channel: &str) -> Result<Option<MessageId>, BrokerError> {
    broker.last_message_id(&names::events(channel)).await
}

/// What is read of a channel's events; ends with the broker.
fn tail(
    broker: Arc<dyn Broker>,
    channel: FullName,
    after: Option<MessageId>,
) -> impl Stream<Item = Read> + Send + 'static {
    let open: Option<Box<dyn Tail>> = None;
    futures::stream::unfold(
        (broker, channel, after, open),
        |(broker, channel, mut after, mut open)| async move {
            let topic = names::events(&channel);
            loop {
                let read = match &mut open {
                    Some(tail) => tail.next().await.map(Some),
                    None => broker.tail(&topic, after).await.map(|tail| {
                        open = Some(tail);
                        None
                    }),
                };
                match read {
                    Ok(None) => {}
                    Ok(Some(message)) => {
                        after = Some(message.id);
                        // The recorder says so of what cannot be read.
                        let events = message::decode(&message.payload).unwrap_or_default();
                        let read = (Arc::clone(&channel), message.id, events);
                        return Some((read, (broker, channel, after, open)));
                    }
                    Err(BrokerError::Closed) => return None,
                    Err(error) => {
                        tracing::warn!(%channel, %error, "a stream of outcomes was interrupted, going on");
                        open = None;
                        sleep(error.pause()).await;
                    }
                }
            }
        },
    )
}
