//! Works off one channel: takes deliveries, chooses late, sends, and leaves the rest to [`super::outcomes`].

use std::panic::AssertUnwindSafe;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::FutureExt;
use herald_crds::{ChannelSpec, Priority, names};
use jiff::Timestamp;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{Notify, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::breaker::{Breaker, Permit};
use super::ledger::Ledger;
use super::load::{Limit, Load, Loads, ProviderLoad};
use super::outcomes::{self, Finished};
use super::priority::{Floor, Policy, Scheduler, Slot};
use super::queue::{Acknowledgement, Held, Hold, Queues, copy};
use super::rate::Rate;
use super::relays;
use super::retry::{self, Attempt, Next};
use crate::broker::{Broker, BrokerError, Incoming, Outgoing, Sharing};
use crate::id::FullName;
use crate::message::{self, Bundle, DecodeError, Delivery, Step};
use crate::metrics::{ChannelClass, ChannelProvider, ChannelReason, Metrics, Operation};
use crate::provider::{Outcome, Provider, Reason};
use crate::timing::Timing;

/// Messages of one class that a pod holds unacknowledged.
const PREFETCH: usize = 64;

/// How much work of one class is held, as time at the channel's rate.
const HELD: Duration = Duration::from_secs(3);

/// Most deliveries of one class that are held.
const MOST_HELD: usize = 4_000;

/// A provider that overstays its timeout by this much is stuck.
const STUCK: Duration = Duration::from_secs(10);

/// One provider of the channel, ready to send.
pub struct NamedProvider {
    /// Its name in the Channel.
    pub name: Arc<str>,
    /// How long one send may take.
    pub timeout: Duration,
    /// Its own rate limit.
    pub rate: Rate,
    /// How long its attempts took.
    pub seconds: Histogram,
    /// What speaks its protocol.
    pub provider: Arc<dyn Provider>,
}

/// What makes a delivery happen once; the tests take one out to see that it matters.
#[doc(hidden)]
#[derive(Debug, Clone, Copy)]
pub struct Guards {
    /// No copy of a settled attempt is sent.
    pub settled: bool,
    /// No copy is taken twice.
    pub in_hand: bool,
    /// An arrival waits for the tail.
    pub caught_up: bool,
}

impl Default for Guards {
    fn default() -> Self {
        Self {
            settled: true,
            in_hand: true,
            caught_up: true,
        }
    }
}

/// What all workers of a process share.
#[derive(Clone)]
pub struct Shared {
    /// What moves.
    pub broker: Arc<dyn Broker>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// How every channel is.
    pub loads: Arc<Loads>,
    /// The times kept.
    pub timing: Arc<Timing>,
    /// W: most deliveries sent whose outcome has no receipt yet.
    pub window: usize,
    /// See [`Guards`].
    #[doc(hidden)]
    pub guards: Guards,
}

/// Works off one channel.
pub struct Worker {
    pub(super) channel: FullName,
    spec: ChannelSpec,
    providers: Vec<NamedProvider>,
    breakers: Mutex<Vec<Breaker>>,
    rate: Rate,
    shared: Shared,
    pub(super) broker: Arc<dyn Broker>,
    pub(super) ledger: Arc<Ledger>,
    queues: Mutex<Queues>,
    scheduler: Mutex<Scheduler>,
    /// Orders that what is held was sorted by.
    orders: AtomicU64,
    /// Rings when something arrived, a slot became free, or an order was followed.
    work: Notify,
    window: Arc<Semaphore>,
    /// Deliveries that reached an end of any kind, ever; the drain is measured from it.
    ended: AtomicU64,
    limit: Mutex<Limit>,
    counters: [Counters; Priority::COUNT],
}

/// What is counted for each class, looked up once.
struct Counters {
    sent: Counter,
    retried: Counter,
    repeats_dropped: Counter,
    ready_to_sent: Histogram,
}

/// Which provider was chosen for a delivery.
#[derive(Clone, Copy)]
struct Begun {
    index: usize,
    permit: Permit,
    /// Whether a failure counts as an attempt: not while no provider is in order.
    counts: bool,
    /// Its own rate has not been asked yet.
    needs_token: bool,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // No section under these locks can leave its value half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Worker {
    /// A worker for a channel as it is declared now; when the declaration changes, it is replaced.
    pub fn new(
        channel: FullName,
        spec: ChannelSpec,
        providers: Vec<NamedProvider>,
        ledger: Arc<Ledger>,
        shared: Shared,
    ) -> Arc<Self> {
        let policy = Policy {
            reserved_share: f64::from(spec.reserved_percent()) / 100.0,
            floors: Priority::ALL.map(|class| {
                spec.class_share(class).map(|share| Floor {
                    after: share.after,
                    share: share.share,
                })
            }),
        };
        let metrics = &shared.metrics;
        let counters = Priority::ALL.map(|class| {
            let labels = ChannelClass {
                channel: channel.to_string(),
                priority: class.as_str(),
            };
            Counters {
                sent: metrics.sent.get_or_create(&labels).clone(),
                retried: metrics.retried.get_or_create(&labels).clone(),
                repeats_dropped: metrics.repeats_dropped.get_or_create(&labels).clone(),
                ready_to_sent: metrics.ready_to_sent_seconds.get_or_create(&labels).clone(),
            }
        });
        Arc::new(Self {
            scheduler: Mutex::new(Scheduler::new(
                &policy,
                spec.concurrency().min(shared.window.max(1)),
            )),
            breakers: Mutex::new(
                providers
                    .iter()
                    .map(|_| Breaker::new(shared.timing.breaker))
                    .collect(),
            ),
            rate: Rate::new(spec.rate_limit.as_ref()),
            broker: Arc::clone(&shared.broker),
            queues: Mutex::default(),
            orders: AtomicU64::new(0),
            work: Notify::new(),
            window: Arc::new(Semaphore::new(shared.window.max(1))),
            ended: AtomicU64::new(0),
            limit: Mutex::default(),
            channel,
            spec,
            providers,
            ledger,
            shared,
            counters,
        })
    }

    /// Works until `stop`; then takes nothing more, finishes what is being sent, and leaves what is not begun to the
    /// next worker. Returns when everything sent has its outcome published, however long a provider takes: whoever
    /// cannot wait for that, such as a process that ends, has it sent again.
    pub async fn run(self: Arc<Self>, stop: CancellationToken) {
        let span = tracing::info_span!("channel", channel = &*self.channel);
        let (finished, outcomes) = mpsc::channel(self.shared.window.max(64) * 2);
        let (acknowledge, acknowledgements) = mpsc::unbounded_channel();

        let publisher = Arc::clone(&self);
        let publisher = tokio::spawn(
            async move { outcomes::publish(&publisher, outcomes).await }.instrument(span.clone()),
        );
        let acknowledger = Arc::clone(&self);
        let acknowledger = tokio::spawn(
            async move { outcomes::acknowledge(&acknowledger, acknowledgements).await }
                .instrument(span.clone()),
        );

        let tasks = TaskTracker::new();
        for class in Priority::ALL {
            let (worker, stop) = (Arc::clone(&self), stop.clone());
            let (acknowledge, finished) = (acknowledge.clone(), finished.clone());
            tasks.spawn(
                async move { worker.take(class, &acknowledge, &finished, stop).await }
                    .instrument(span.clone()),
            );
        }
        for relay in [0, 1] {
            let (worker, stop) = (Arc::clone(&self), stop.clone());
            tasks.spawn(
                async move { relays::run(&*worker.broker, &worker.channel, relay, stop).await }
                    .instrument(span.clone()),
            );
        }
        let (worker, ticking) = (Arc::clone(&self), stop.clone());
        let ticker = finished.clone();
        tasks.spawn(async move { worker.tick(&ticker, ticking).await }.instrument(span.clone()));
        drop(acknowledge);

        let sends = TaskTracker::new();
        let choosing = Arc::clone(&self).choose(&finished, &sends, &stop);
        stop.run_until_cancelled(choosing.instrument(span)).await;
        drop(finished);

        tasks.close();
        sends.close();
        tasks.wait().await;
        sends.wait().await;
        let _ = publisher.await;
        // What is held and not begun holds on to the acknowledgements: it is given back unacknowledged.
        *self.queues() = Queues::default();
        let _ = acknowledger.await;
        self.shared.loads.remove(&self.channel);
    }

    pub(super) fn queues(&self) -> MutexGuard<'_, Queues> {
        lock(&self.queues)
    }

    pub(super) fn broker_error(&self, operation: &'static str) {
        self.shared
            .metrics
            .broker_errors
            .get_or_create(&Operation { operation })
            .inc();
    }

    pub(super) fn count_retry(&self, class: Priority) {
        self.counters[class.index()].retried.inc();
    }

    /// Deliveries of one class to hold at the most.
    fn room(&self) -> usize {
        let rate = self.rate.per_second();
        if rate.is_finite() {
            ((rate * HELD.as_secs_f64()) as usize).clamp(16, MOST_HELD)
        } else {
            MOST_HELD
        }
    }

    /// Takes the messages of one class in hand until `stop`.
    async fn take(
        &self,
        class: Priority,
        acknowledge: &mpsc::UnboundedSender<Acknowledgement>,
        finished: &mpsc::Sender<Finished>,
        stop: CancellationToken,
    ) {
        stop.run_until_cancelled(async {
            let room = Arc::new(Semaphore::new(self.room()));
            loop {
                if let Err(error) = self.consume(class, &room, acknowledge, finished).await {
                    self.broker_error("receive");
                    tracing::warn!(%class, %error, "the consumer ended, beginning again");
                }
                // Another consumer may have these now.
                self.queues().discard(class);
                tokio::time::sleep(Duration::from_millis(250)).await;
            }
        })
        .await;
    }

    async fn consume(
        &self,
        class: Priority,
        room: &Arc<Semaphore>,
        acknowledge: &mpsc::UnboundedSender<Acknowledgement>,
        finished: &mpsc::Sender<Finished>,
    ) -> Result<(), BrokerError> {
        let topic = names::deliveries(&self.channel, class);
        let events = names::events(&self.channel);
        let mut consumer = self
            .broker
            .subscribe(&topic, Sharing::KeyShared, PREFETCH)
            .await?;
        let by = consumer.acknowledger();
        loop {
            let Incoming { id, payload } = consumer.receive().await?;
            let bundle = match message::decode::<Bundle>(&payload) {
                Ok(bundle) => bundle,
                Err(error) => {
                    self.put_aside(payload, &error).await?;
                    by.acknowledge(&[id]).await?;
                    continue;
                }
            };
            drop(payload);
            if self.shared.guards.caught_up {
                // So a successor knows all that its predecessor published.
                let position = self.broker.last_message_id(&events).await?;
                self.ledger.caught_up(position).await;
            }
            let hold = Hold::new(
                id,
                bundle.deliveries.len(),
                Arc::clone(&by),
                acknowledge.clone(),
            );
            for delivery in bundle.deliveries {
                let room = Arc::clone(room).acquire_owned().await.ok();
                let held = Held {
                    delivery,
                    topic: class,
                    hold: Arc::clone(&hold),
                    room,
                };
                self.arrive(held, finished).await;
            }
        }
    }

    /// Takes one delivery in hand, unless it is a repeat.
    async fn arrive(&self, mut held: Held, finished: &mpsc::Sender<Finished>) {
        let Delivery {
            id,
            notification,
            round,
            attempt,
            ..
        } = held.delivery;
        if self.shared.guards.settled && self.ledger.is_settled(&id, round, attempt) {
            self.drop_repeat(&held);
            return;
        }
        if let Some(next) = self.not_to_be_sent(&held.delivery) {
            self.finish_unsent(held, next, finished).await;
            return;
        }
        let mut queues = self.queues();
        // Asked while nobody sorts: an order that comes after this finds it in the queue.
        let class = self.ledger.class(&notification).unwrap_or(held.topic);
        held.delivery.priority = class;
        let is_new = if self.shared.guards.in_hand {
            queues.push(held)
        } else {
            queues.push_unchecked(held);
            true
        };
        drop(queues);
        if is_new {
            self.work.notify_one();
        } else {
            self.counters[class.index()].repeats_dropped.inc();
        }
    }

    fn drop_repeat(&self, held: &Held) {
        self.counters[held.delivery.priority.index()]
            .repeats_dropped
            .inc();
        held.hold.settle();
    }

    /// What becomes of a delivery that is not to be sent now; `None`: it is.
    fn not_to_be_sent(&self, delivery: &Delivery) -> Option<Next> {
        let now = Timestamp::now();
        let end = |step| {
            Some(Next {
                step,
                relay: None,
                tried: delivery.tried,
            })
        };
        if self.ledger.is_cancelled(&delivery.notification) {
            return end(Step::Cancelled);
        }
        if delivery.expires_at.is_some_and(|at| at <= now) {
            return end(Step::Expired);
        }
        if self.spec.suspend {
            return Some(retry::give_back(
                delivery,
                "suspended",
                "the channel is suspended",
                now,
            ));
        }
        if self
            .ledger
            .is_suspended(&delivery.namespace, &delivery.template)
        {
            return Some(retry::give_back(
                delivery,
                "template-suspended",
                "the template is suspended",
                now,
            ));
        }
        let age = Duration::try_from(now.duration_since(delivery.released_at)).unwrap_or_default();
        (age > self.ledger.horizon()).then(|| {
            retry::give_back(
                delivery,
                "horizon",
                "it waited longer than repeats are remembered",
                now,
            )
        })
    }

    async fn finish_unsent(&self, held: Held, next: Next, finished: &mpsc::Sender<Finished>) {
        // If nobody listens any more, the message stays unacknowledged and comes again.
        let _ = finished
            .send(Finished {
                held,
                next,
                at: Timestamp::now(),
                _window: None,
            })
            .await;
    }

    /// Chooses and sends, for ever: first a provider, a place in the window and a token, then the delivery.
    async fn choose(
        self: Arc<Self>,
        finished: &mpsc::Sender<Finished>,
        sends: &TaskTracker,
        stop: &CancellationToken,
    ) {
        loop {
            while self.queues().is_empty() {
                self.set_limit(Limit::Nothing);
                self.work.notified().await;
            }
            let preferred = self.provider().await;
            self.set_limit(Limit::Slots);
            let Ok(window) = Arc::clone(&self.window).acquire_owned().await else {
                return;
            };
            self.set_limit(Limit::Rate);
            self.providers[preferred].rate.ready().await;
            self.rate.ready().await;
            self.set_limit(Limit::Slots);
            let (mut held, slot) = loop {
                match self.next() {
                    Choice::Send(held, slot) => break (*held, slot),
                    Choice::Skip(held, next) => self.finish_unsent(*held, *next, finished).await,
                    Choice::Wait => self.work.notified().await,
                }
            };
            held.room = None;
            let begun = self.begin(&held.delivery, preferred);
            let (worker, finished, stop) = (Arc::clone(&self), finished.clone(), stop.clone());
            let span = tracing::debug_span!(
                "deliver",
                delivery = %held.delivery.id,
                attempt = held.delivery.attempt,
                traceparent = held.delivery.traceparent.as_deref(),
            );
            sends.spawn(
                async move {
                    // A token may be hours away: what has none yet is not begun, and is left to the next worker.
                    if begun.needs_token
                        && stop
                            .run_until_cancelled(worker.providers[begun.index].rate.ready())
                            .await
                            .is_none()
                    {
                        return;
                    }
                    let (next, at) = worker.send(&held.delivery, begun).await;
                    lock(&worker.scheduler).ended(slot);
                    worker.work.notify_one();
                    // The publisher listens for as long as this sender lives.
                    let _ = finished
                        .send(Finished {
                            held,
                            next,
                            at,
                            _window: Some(window),
                        })
                        .await;
                }
                .instrument(span),
            );
        }
    }

    /// Follows the orders that have come since the last time.
    fn sort_again(&self) {
        let orders = self.ledger.orders();
        if self.orders.swap(orders, Ordering::Relaxed) != orders {
            self.queues()
                .sort_again(|delivery| self.ledger.class(&delivery.notification));
            self.work.notify_one();
        }
    }

    /// The next delivery by priority, looked at once more just before it begins.
    fn next(&self) -> Choice {
        self.sort_again();
        let mut queues = self.queues();
        let mut scheduler = lock(&self.scheduler);
        while let Some(turn) = scheduler.next(queues.heads(Timestamp::now())) {
            let Some(held) = queues.pop(turn.class()) else {
                break;
            };
            let Delivery {
                id, round, attempt, ..
            } = held.delivery;
            if self.shared.guards.settled && self.ledger.is_settled(&id, round, attempt) {
                for further in queues.release(&copy(&held.delivery)) {
                    further.settle();
                }
                self.drop_repeat(&held);
                continue;
            }
            if let Some(next) = self.not_to_be_sent(&held.delivery) {
                return Choice::Skip(Box::new(held), Box::new(next));
            }
            return Choice::Send(Box::new(held), scheduler.begun(turn));
        }
        Choice::Wait
    }

    /// Waits for a provider that may be asked: the first in order of preference.
    async fn provider(&self) -> usize {
        loop {
            let now = Instant::now();
            let mut soonest: Option<Instant> = None;
            {
                let breakers = lock(&self.breakers);
                for (index, breaker) in breakers.iter().enumerate() {
                    match breaker.permits(now) {
                        Permit::Yes | Permit::Probe => return index,
                        Permit::NotBefore(at) => {
                            soonest = Some(soonest.map_or(at, |soonest| soonest.min(at)));
                        }
                    }
                }
            }
            self.set_limit(Limit::Provider);
            tokio::time::sleep_until(soonest.unwrap_or(now + self.shared.timing.breaker)).await;
        }
    }

    /// Which provider gets this delivery: the one it is bound to; after a failure another than the first, if one may
    /// be asked; else the preferred one.
    fn begin(&self, delivery: &Delivery, preferred: usize) -> Begun {
        let now = Instant::now();
        let mut breakers = lock(&self.breakers);
        let bound = delivery.provider.as_ref();
        let bound = bound.and_then(|bound| {
            self.providers
                .iter()
                .position(|provider| provider.name == *bound)
        });
        let index = bound.unwrap_or_else(|| {
            let turned = (preferred + usize::from(delivery.tried)) % self.providers.len().max(1);
            let may_be_asked = breakers[turned].permits(now) == Permit::Yes;
            if may_be_asked { turned } else { preferred }
        });
        let all_open = breakers
            .iter()
            .all(|breaker| breaker.permits(now) != Permit::Yes);
        let permit = breakers[index].take(now);
        Begun {
            index,
            permit,
            counts: !all_open,
            needs_token: index != preferred,
        }
    }

    /// Sends one delivery and decides what follows.
    async fn send(&self, delivery: &Delivery, begun: Begun) -> (Next, Timestamp) {
        let Begun {
            index,
            permit,
            counts,
            ..
        } = begun;
        let NamedProvider {
            name,
            timeout,
            provider,
            ..
        } = &self.providers[index];
        if let Permit::NotBefore(instant) = permit {
            let wait = instant.saturating_duration_since(Instant::now());
            let at = Timestamp::now();
            return (retry::put_off(delivery, wait, &self.shared.timing, at), at);
        }
        let started = Instant::now();
        let sending = AssertUnwindSafe(provider.send(delivery, *timeout)).catch_unwind();
        let outcome = match tokio::time::timeout(*timeout + STUCK, sending).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Outcome::Unknown(reason("panic", "the provider's code panicked")),
            Err(_) => {
                Outcome::Unknown(reason("stuck", "the provider's code did not keep its time"))
            }
        };
        let took = started.elapsed();
        {
            let mut breakers = lock(&self.breakers);
            match &outcome {
                Outcome::Sent { .. } | Outcome::Permanent { .. } => breakers[index].succeeded(),
                Outcome::Transient(_) | Outcome::Unknown(_) => {
                    breakers[index].failed(Instant::now());
                }
                Outcome::Throttled {
                    retry_after: Some(pause),
                    ..
                } => breakers[index].throttled(Instant::now(), *pause),
                Outcome::Throttled {
                    retry_after: None, ..
                } => {
                    breakers[index].throttled(Instant::now(), self.shared.timing.tick);
                }
            }
        }
        self.count(delivery, index, &outcome, took);
        let next = retry::next(
            Attempt {
                provider: name,
                outcome,
                took,
                counts,
            },
            delivery,
            &self.spec,
            &self.shared.timing,
            Timestamp::now(),
        );
        (next, Timestamp::now())
    }

    fn count(&self, delivery: &Delivery, provider: usize, outcome: &Outcome, took: Duration) {
        let provider = &self.providers[provider];
        provider.seconds.observe(took.as_secs_f64());
        self.ended.fetch_add(1, Ordering::Relaxed);
        let counters = &self.counters[delivery.priority.index()];
        let reason = match outcome {
            Outcome::Sent { .. } => {
                counters.sent.inc();
                let waited = Timestamp::now()
                    .duration_since(delivery.ready_at)
                    .as_secs_f64();
                counters.ready_to_sent.observe(waited.max(0.0));
                return;
            }
            Outcome::Transient(reason)
            | Outcome::Unknown(reason)
            | Outcome::Permanent { reason, .. }
            | Outcome::Throttled { reason, .. } => reason,
        };
        tracing::info!(
            provider = &*provider.name,
            reason = &*reason.code,
            detail = reason.detail,
            "an attempt did not succeed"
        );
        let labels = ChannelReason {
            channel: self.channel.to_string(),
            reason: reason.code.to_string(),
        };
        self.shared
            .metrics
            .failed_attempts
            .get_or_create(&labels)
            .inc();
    }

    /// A message that cannot be read: a newer one goes to the longer relay, until somebody can; garbage is told and dropped.
    async fn put_aside(
        &self,
        payload: bytes::Bytes,
        error: &DecodeError,
    ) -> Result<(), BrokerError> {
        match error {
            DecodeError::Newer { .. } => {
                tracing::error!(%error, "a message of a newer format is parked in the relay");
                let [_, relay] = names::relays(&self.channel);
                let deliver_at = Some(Timestamp::now() + self.shared.timing.relays[1]);
                self.broker
                    .publish(
                        &relay,
                        vec![Outgoing {
                            payload,
                            key: None,
                            deliver_at,
                        }],
                    )
                    .await
            }
            DecodeError::Garbage { .. } => {
                tracing::error!(%error, bytes = payload.len(), "a message that is none of ours is dropped");
                Ok(())
            }
        }
    }

    fn set_limit(&self, limit: Limit) {
        *lock(&self.limit) = limit;
    }

    /// Each second: says how the channel is, and gives back what is not to be sent any more.
    async fn tick(&self, finished: &mpsc::Sender<Finished>, stop: CancellationToken) {
        let mut before = 0;
        let mut last = Instant::now();
        let mut interval = tokio::time::interval(self.shared.timing.tick);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(interval.tick()).await.is_some() {
            let ended = self.ended.load(Ordering::Relaxed);
            let drain = (ended - before) as f64 / last.elapsed().as_secs_f64().max(1e-3);
            (before, last) = (ended, Instant::now());
            // Not only when something is chosen: while no provider works that may be long after the order.
            self.sort_again();
            self.say(drain);
            if *lock(&self.limit) == Limit::Provider || self.spec.suspend {
                let unsent = self
                    .queues()
                    .take(|held| self.not_to_be_sent(&held.delivery).is_some());
                for held in unsent {
                    if let Some(next) = self.not_to_be_sent(&held.delivery) {
                        self.finish_unsent(held, next, finished).await;
                    }
                }
            }
            self.ledger.tidy();
        }
    }

    fn say(&self, drain: f64) {
        let (waiting, oldest) = {
            let queues = self.queues();
            (queues.waiting(), queues.heads(Timestamp::now()))
        };
        let now = Instant::now();
        let providers = {
            let breakers = lock(&self.breakers);
            let states = breakers.iter().map(|breaker| breaker.level(now));
            self.providers
                .iter()
                .zip(states)
                .map(|(provider, state)| ProviderLoad {
                    name: Arc::clone(&provider.name),
                    state,
                })
                .collect::<Vec<_>>()
        };
        for provider in &providers {
            let labels = ChannelProvider {
                channel: self.channel.to_string(),
                provider: provider.name.to_string(),
            };
            self.shared
                .metrics
                .provider_state
                .get_or_create(&labels)
                .set(provider.state);
        }
        let limit = if self.spec.suspend {
            Limit::Suspended
        } else {
            *lock(&self.limit)
        };
        let load = Load {
            waiting,
            oldest,
            drain,
            rate: self.rate.per_second(),
            limit,
            providers,
            replicas: 1,
        };
        self.shared.loads.set(&self.channel, load);
    }
}

enum Choice {
    Send(Box<Held>, Slot),
    Skip(Box<Held>, Box<Next>),
    Wait,
}

fn reason(code: &str, detail: &str) -> Reason {
    Reason {
        code: Arc::from(code),
        detail: detail.to_owned(),
    }
}
