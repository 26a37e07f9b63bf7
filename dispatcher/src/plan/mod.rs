//! A message becomes rows in the waiting room, or goes straight on.
//!
//! - [`sources`] and [`route`]: who and where. [`resolve`]: the steps.
//! - This file: requests are taken from the broker and written down, or fanned out at once.

pub mod resolve;
pub mod route;
pub mod sources;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{FutureExt, TryStreamExt, stream};
use herald_crds::Priority;
use herald_crds::names::{self, Path};
use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use self::resolve::{Resolver, Round};
use self::route::{Person, Routes};
use crate::broker::{Broker, BrokerError, Incoming, MessageId, Outgoing, Sharing};
use crate::catalog::{Catalog, FullName};
use crate::clock;
use crate::fanout::definitions::{Definitions, unbase64};
use crate::fanout::{self, Fanout, bundle};
use crate::message::{
    self, DecodeError, DefinitionHash, Delivery, Direct, DirectDelivery, Event, Events, Garbage,
    Request, Requests, Step, To,
};
use crate::metrics::{Metrics, NamespaceClass};
use crate::store::{NewDelivery, Planned, Store, StoreError, Waiting};
use crate::waiting::Lanes;

/// Request messages held at a time.
const PREFETCH: usize = 64;

/// Direct requests fanned out side by side.
const SIDE_BY_SIDE: usize = 64;

/// Notifications looked at together for resolving.
const RESOLVED: usize = 256;

/// Decides who and where, and writes it down.
pub struct Plan {
    broker: Arc<dyn Broker>,
    store: Arc<dyn Store>,
    catalog: Arc<dyn Catalog>,
    definitions: Arc<Definitions>,
    fanout: Arc<Fanout>,
    resolver: Resolver,
    lanes: Arc<Lanes>,
    metrics: Arc<Metrics>,
    /// Rings when there may be something to resolve.
    unresolved: Notify,
    /// Of which requests there was a consumer, by path and class.
    taken: watch::Sender<[[bool; Priority::COUNT]; 2]>,
}

impl Plan {
    /// A planner.
    pub fn new(
        broker: Arc<dyn Broker>,
        store: Arc<dyn Store>,
        catalog: Arc<dyn Catalog>,
        definitions: Arc<Definitions>,
        fanout: Arc<Fanout>,
        lanes: Arc<Lanes>,
        metrics: Arc<Metrics>,
    ) -> Arc<Self> {
        let resolver = Resolver {
            store: Arc::clone(&store),
            catalog: Arc::clone(&catalog),
            definitions: Arc::clone(&definitions),
            metrics: Arc::clone(&metrics),
        };
        Arc::new(Self {
            broker,
            store,
            catalog,
            definitions,
            fanout,
            resolver,
            lanes,
            metrics,
            unresolved: Notify::new(),
            taken: watch::Sender::default(),
        })
    }

    /// Plans until `stop`. What is under way then is repeated by whoever comes next.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let mut tasks = tokio::task::JoinSet::new();
        for path in [Path::Direct, Path::Stored] {
            for class in Priority::ALL {
                let (plan, stop) = (Arc::clone(&self), stop.clone());
                let span = tracing::info_span!("plan", %path, %class);
                tasks.spawn(async move { plan.consume(path, class, stop).await }.instrument(span));
            }
        }
        let plan = Arc::clone(&self);
        tasks.spawn(async move {
            stop.run_until_cancelled(plan.resolve().instrument(tracing::info_span!("resolve")))
                .await;
        });
        while tasks.join_next().await.is_some() {}
    }

    /// Says that there may be something to resolve: a notification was confirmed, say.
    pub fn wake(&self) {
        self.unresolved.notify_one();
    }

    /// Resolves when requests of every kind are taken, or were once.
    pub async fn takes(&self) {
        let mut taken = self.taken.subscribe();
        let all = |taken: &[[bool; Priority::COUNT]; 2]| taken.iter().flatten().all(|taken| *taken);
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = taken.wait_for(all).await;
    }

    async fn consume(&self, path: Path, class: Priority, stop: CancellationToken) {
        let topic = names::requests(path, class);
        stop.run_until_cancelled(async {
            loop {
                let ended = async {
                    let mut consumer = self
                        .broker
                        .subscribe(&topic, Sharing::Failover, PREFETCH)
                        .await?;
                    self.taken.send_modify(|taken| {
                        taken[usize::from(path == Path::Stored)][class.index()] = true;
                    });
                    let acknowledger = consumer.acknowledger();
                    loop {
                        let mut messages = vec![consumer.receive().await?];
                        while messages.len() < PREFETCH
                            && let Some(next) = consumer.receive().now_or_never()
                        {
                            messages.push(next?);
                        }
                        refuse_newer(&topic, &messages)?;
                        let ids: Vec<MessageId> =
                            messages.iter().map(|message| message.id).collect();
                        match path {
                            Path::Stored => self.write_down(&topic, &messages).await,
                            Path::Direct => self.go_straight_on(class, &messages).await?,
                        }
                        acknowledger.acknowledge(&ids).await?;
                    }
                };
                let ended: Result<(), BrokerError> = ended.await;
                if let Err(error) = ended {
                    self.metrics.broker_failed("receive_requests");
                    tracing::warn!(%error, "taking requests was interrupted, beginning again");
                    tokio::time::sleep(error.pause()).await;
                }
            }
        })
        .await;
    }

    /// Stored requests: one short transaction; with the database away they wait where they are.
    async fn write_down(&self, topic: &names::Topic, messages: &[Incoming]) {
        let mut definitions: BTreeMap<DefinitionHash, Bytes> = BTreeMap::new();
        let mut notifications = Vec::new();
        let mut garbage = Vec::new();
        for message in messages {
            let requests: Requests = match message::decode(&message.payload) {
                Ok(requests) => requests,
                Err(error) => {
                    let bytes = message.payload.len();
                    tracing::error!(%error, bytes, "a request cannot be read and is put aside");
                    self.metrics.found_unreadable("requests");
                    garbage.push(Garbage::new(topic, message.id, &message.payload, &error));
                    continue;
                }
            };
            for (hash, packed) in requests.definitions {
                match unbase64(&hash, &packed) {
                    Ok(bytes) => {
                        definitions.insert(hash, bytes);
                    }
                    Err(error) => tracing::error!(%error, "a definition cannot be read"),
                }
            }
            notifications.extend(requests.requests.into_iter().map(Arc::new));
        }
        let definitions: Vec<(DefinitionHash, Bytes)> = definitions.into_iter().collect();
        let garbage = [Events {
            garbage,
            ..Events::default()
        }];
        let mut pause = Duration::from_millis(100);
        let planned = loop {
            let written = async {
                self.store.record("", &garbage).await?;
                self.store
                    .insert_notifications(&definitions, &notifications)
                    .await
            };
            match written.await {
                Ok(planned) => break planned,
                Err(error) => {
                    self.store_error("insert_notifications", &error);
                    tokio::time::sleep(pause).await;
                    pause = (pause * 2).min(Duration::from_secs(5));
                }
            }
        };
        for (request, planned) in notifications.iter().zip(planned) {
            match planned {
                Planned::Inserted => {
                    tracing::debug!(notification = %request.id, traceparent = request.traceparent.as_deref(), "planned");
                }
                Planned::Repeat => {
                    tracing::debug!(notification = %request.id, "a repeat was dropped");
                }
                Planned::Conflict => {
                    tracing::warn!(notification = %request.id, "another request came under the same Idempotency-Key and was dropped");
                }
            }
        }
        self.wake();
    }

    /// Direct requests: fanned out at once, without SQL. Side by side, so that they share commits: one after the other,
    /// each would wait for two receipts of its own, and a few hundred a second would be too many.
    async fn go_straight_on(
        &self,
        class: Priority,
        messages: &[Incoming],
    ) -> Result<(), BrokerError> {
        let mut all = Vec::with_capacity(messages.len());
        for message in messages {
            if let Ok(requests) = message::decode::<Requests>(&message.payload) {
                all.push(requests);
                continue;
            }
            // The other way keeps it: nothing waits here for the database.
            let message = Outgoing::at_once(message.payload.clone());
            let topic = names::requests(Path::Stored, class);
            self.broker.publish(&topic, vec![message]).await?;
        }
        let requests = all.into_iter().flat_map(|requests| {
            let definitions = Arc::new(requests.definitions);
            let with_definitions = move |request| Ok((request, Arc::clone(&definitions)));
            requests.requests.into_iter().map(with_definitions)
        });
        stream::iter(requests)
            .try_for_each_concurrent(SIDE_BY_SIDE, |(request, definitions)| async move {
                self.straight_on(request, &definitions).await
            })
            .await
    }

    async fn straight_on(
        &self,
        request: Request,
        definitions: &BTreeMap<DefinitionHash, Arc<str>>,
    ) -> Result<(), BrokerError> {
        let instead = |request| Requests {
            definitions: definitions.clone(),
            requests: vec![request],
        };
        let Some(packed) = definitions.get(&request.definition) else {
            tracing::error!(notification = %request.id, "a direct request came without its definition and is stored instead");
            return self.store_instead(&instead(request)).await;
        };
        match self.definitions.carried(&request.definition, packed) {
            Ok(ready) => {
                self.fan_out_directly(Arc::new(request), packed, ready)
                    .await
            }
            Err(error) => {
                tracing::error!(notification = %request.id, %error, "a direct request cannot be rendered and is stored instead");
                self.store_instead(&instead(request)).await
            }
        }
    }

    /// Lets the other way find out, and say, what is wrong.
    async fn store_instead(&self, requests: &Requests) -> Result<(), BrokerError> {
        let class = requests
            .requests
            .first()
            .map_or(Priority::Normal, |request| request.priority);
        let message = Outgoing::at_once(message::encode(requests));
        self.broker
            .publish(&names::requests(Path::Stored, class), vec![message])
            .await
    }

    async fn fan_out_directly(
        &self,
        request: Arc<Request>,
        packed: &Arc<str>,
        ready: Arc<fanout::definitions::Ready>,
    ) -> Result<(), BrokerError> {
        let now = clock::now();
        let declared = self.catalog.current();
        let template = &ready.compiled.definition().template;
        let routes = Routes::new(&request, template, &declared);
        let mut rows = Vec::new();
        let outside = Arc::from("");
        for to in &request.recipients {
            if let To::Address(address) = to {
                let locale = address.locale.as_deref().unwrap_or_default();
                let person = Person {
                    id: &outside,
                    address: Some(address),
                    locale,
                };
                routes.rows(
                    &request.id,
                    &person,
                    request.accepted_at,
                    |_, _| None,
                    &mut rows,
                );
            }
        }
        // What changed since acceptance is for the other way to find out, and to write down with its reason.
        let is_routed = rows
            .iter()
            .all(|row| declared.channels.contains_key(&row.channel));
        if rows.is_empty() || !is_routed {
            let definitions =
                BTreeMap::from([(Arc::clone(&request.definition), Arc::clone(packed))]);
            let requests = vec![(*request).clone()];
            return self
                .store_instead(&Requests {
                    definitions,
                    requests,
                })
                .await;
        }
        let prepared = self.fanout.prepare_carried(&request, ready);
        let mut by_channel: BTreeMap<FullName, Vec<NewDelivery>> = BTreeMap::new();
        for row in rows {
            by_channel
                .entry(Arc::clone(&row.channel))
                .or_default()
                .push(row);
        }
        for (channel, rows) in by_channel {
            let Some(declared) = declared.channels.get(&channel) else {
                continue;
            };
            let mut deliveries: Vec<Delivery> = Vec::with_capacity(rows.len());
            let mut ended = Vec::new();
            for row in &rows {
                let waiting = waiting(&request, row);
                match fanout::deliver(
                    &waiting,
                    &prepared,
                    &declared.spec,
                    request.priority,
                    None,
                    now,
                ) {
                    Ok(delivery) => deliveries.push(delivery),
                    Err(error) => ended.push(Event {
                        delivery: row.id,
                        notification: request.id,
                        at: now,
                        round: 0,
                        attempt: 1,
                        tried: 0,
                        priority: request.priority,
                        step: Step::Failed {
                            error,
                            delivery: None,
                            address_gone: false,
                        },
                    }),
                }
            }
            // History first, so that it knows the delivery before it hears what became of it.
            let direct = Direct {
                request: (*request).clone(),
                definition: Arc::clone(packed),
                deliveries: rows.into_iter().map(direct_delivery).collect(),
            };
            let events = Events {
                direct: vec![direct],
                outcomes: ended,
                ..Events::default()
            };
            self.publish(
                &names::events(&channel),
                vec![Outgoing::at_once(message::encode(&events))],
            )
            .await?;
            let most = bundle::most(declared.spec.rate_limit.as_ref());
            let messages = bundle::messages(deliveries, most);
            self.publish(&names::deliveries(&channel, request.priority), messages)
                .await?;
        }
        let labels = NamespaceClass {
            namespace: request.namespace.to_string(),
            priority: request.priority.as_str(),
        };
        self.metrics
            .planned
            .get_or_create(&labels)
            .inc_by(request.recipients.len() as u64);
        Ok(())
    }

    async fn publish(
        &self,
        topic: &names::Topic,
        messages: Vec<Outgoing>,
    ) -> Result<(), BrokerError> {
        if messages.is_empty() {
            Ok(())
        } else {
            self.broker.publish(topic, messages).await
        }
    }

    /// Resolves whatever is to be resolved, in turns, and sleeps until more comes.
    async fn resolve(&self) {
        loop {
            let now = clock::now();
            let unresolved = match self.store.unresolved(now, RESOLVED).await {
                Ok(unresolved) => unresolved,
                Err(error) => {
                    self.store_error("unresolved", &error);
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    continue;
                }
            };
            if unresolved.is_empty() {
                self.sleep_until_next(now).await;
                continue;
            }
            let Round {
                channels,
                later,
                refused,
                failed,
            } = self.resolver.round(&unresolved, now).await;
            for channel in channels {
                self.lanes.ready(&channel, None);
            }
            if later.is_some() {
                self.lanes.scheduled();
            }
            let mut errors = failed;
            for (id, error) in refused {
                // It will not pass by itself: ended, so that it is seen and stands in nobody's way.
                tracing::error!(notification = %id, %error, "recipients cannot be resolved: ended as failed");
                let error = error.to_string();
                let refused = self.store.refuse(&id, "definition", &error, now).await;
                errors.extend(refused.err());
            }
            for error in &errors {
                self.store_error("resolve", error);
            }
            if !errors.is_empty() {
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }

    async fn sleep_until_next(&self, now: Timestamp) {
        let next = match self.store.next_unresolved().await {
            Ok(next) => next,
            Err(error) => {
                self.store_error("next_unresolved", &error);
                Some(now + Duration::from_secs(1))
            }
        };
        let woken = async {
            tokio::select! {
                () = self.unresolved.notified() => {}
                // What another gateway has not resolved, which is gone.
                () = self.lanes.anything() => {}
            }
        };
        match next {
            Some(at) => {
                let wait = Duration::try_from(at.duration_since(clock::now())).unwrap_or_default();
                let _ = tokio::time::timeout(wait.max(Duration::from_millis(5)), woken).await;
            }
            None => woken.await,
        }
    }

    fn store_error(&self, operation: &'static str, error: &StoreError) {
        self.metrics.store_failed(operation);
        tracing::warn!(operation, %error, "the database failed, trying again");
    }
}

/// The row that a direct delivery would have had.
fn waiting(request: &Request, row: &NewDelivery) -> Waiting {
    Waiting {
        row: 0,
        id: row.id,
        notification: request.id,
        recipient: Arc::clone(&row.recipient),
        endpoint: Arc::clone(&row.endpoint),
        locale: Arc::clone(&row.locale),
        due: row.due,
        round: 0,
        attempt: 1,
        tried: 0,
        delivery: None,
    }
}

fn direct_delivery(row: NewDelivery) -> DirectDelivery {
    DirectDelivery {
        id: row.id,
        channel: row.channel,
        endpoint: row.endpoint,
        locale: row.locale,
    }
}

/// Requests of a newer format wait where they are, for a program that can read them.
fn refuse_newer(topic: &names::Topic, messages: &[Incoming]) -> Result<(), BrokerError> {
    let newer = |message: &Incoming| match message::check(&message.payload) {
        Err(error @ DecodeError::Newer { .. }) => Some(error.to_string()),
        _ => None,
    };
    match messages.iter().find_map(newer) {
        Some(reason) => Err(BrokerError::Receive {
            topic: topic.clone(),
            reason,
        }),
        None => Ok(()),
    }
}
