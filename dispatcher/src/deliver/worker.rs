//! Works off one channel: takes deliveries, chooses late, sends, and leaves the rest to [`super::outcomes`].
//!
//! - This file: what a worker is made of, how it begins and ends, and what of a delivery is not to be sent.
//! - [`take`]: consuming. [`choose`]: which delivery is next, and at which provider. [`send`]: the attempt.
//! - [`tick`]: how the channel is, told each second.

mod choose;
mod send;
mod take;
mod tick;

use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use herald_crds::{ChannelSpec, Priority, RateLimit};
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::histogram::Histogram;
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::breaker::Breaker;
use super::ledger::Ledger;
use super::load::{Limit, Loads};
use super::outcomes::{self, Finished};
use super::priority::{Floor, Policy, Scheduler};
use super::queue::{Held, Queues};
use super::rate::Rate;
use super::relays;
use super::retry::{self, Next};
use super::watchdog::Vitals;
use crate::broker::Broker;
use crate::clock;
use crate::id::FullName;
use crate::message::{Delivery, Step};
use crate::metrics::{ChannelClass, Metrics};
use crate::provider::Provider;
use crate::timing::Timing;

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
    /// The name of this pod, of which there may be several for a channel: no other pod has it, nor had it before. `None`:
    /// nobody else delivers for these channels.
    pub pod: Option<Arc<str>>,
    /// The times kept.
    pub timing: Arc<Timing>,
    /// W: most deliveries sent whose outcome has no receipt yet.
    pub window: usize,
    /// By which it is seen that this process hangs.
    pub vitals: Arc<Vitals>,
    /// See [`Guards`].
    #[doc(hidden)]
    pub guards: Guards,
}

impl Shared {
    /// A rate limit at work, for a channel or a provider: divided over the pods where there may be several.
    pub fn rate(&self, limit: Option<&RateLimit>) -> Rate {
        match self.pod {
            Some(_) => Rate::divided(limit),
            None => Rate::new(limit),
        }
    }
}

/// Works off one channel.
pub struct Worker {
    pub(super) channel: FullName,
    spec: ChannelSpec,
    providers: Vec<NamedProvider>,
    breakers: Mutex<Vec<Breaker>>,
    rate: Rate,
    pub(super) shared: Shared,
    pub(super) broker: Arc<dyn Broker>,
    pub(super) ledger: Arc<Ledger>,
    queues: Mutex<Queues>,
    scheduler: Mutex<Scheduler>,
    /// Orders that what is held was sorted by.
    orders: AtomicU64,
    /// Rings when something arrived, a slot became free, or an order was followed.
    work: Notify,
    window: Arc<Semaphore>,
    /// Where what is held has its place, for each class.
    room: [Room; Priority::COUNT],
    /// Sends that reached an end of any kind, ever, by class; the drain is measured from it.
    ended: [AtomicU64; Priority::COUNT],
    limit: Mutex<Limit>,
    /// Whether it is being tried to consume each class, and does not work yet.
    trying: [AtomicBool; Priority::COUNT],
    /// Whether this pod has heard itself.
    is_heard: AtomicBool,
    /// Whether it takes what it may send, too.
    is_up: watch::Sender<bool>,
    counters: [Counters; Priority::COUNT],
}

/// The deliveries of one class that may be held.
struct Room {
    places: Arc<Semaphore>,
    /// How many places there are, free or not. Changed by whoever ticks.
    size: AtomicUsize,
}

impl Default for Room {
    fn default() -> Self {
        Self {
            places: Arc::new(Semaphore::new(0)),
            size: AtomicUsize::new(0),
        }
    }
}

/// What is counted for each class, looked up once.
struct Counters {
    sent: Counter,
    retried: Counter,
    repeats_dropped: Counter,
    ready_to_sent: Histogram,
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
        let worker = Self {
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
            rate: shared.rate(spec.rate_limit.as_ref()),
            broker: Arc::clone(&shared.broker),
            queues: Mutex::default(),
            orders: AtomicU64::new(0),
            work: Notify::new(),
            window: Arc::new(Semaphore::new(shared.window.max(1))),
            room: Default::default(),
            ended: Default::default(),
            limit: Mutex::default(),
            trying: Default::default(),
            is_heard: AtomicBool::new(false),
            is_up: watch::Sender::new(false),
            channel,
            spec,
            providers,
            ledger,
            shared,
            counters,
        };
        worker.fit_room(1);
        Arc::new(worker)
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

        let mut takes = JoinSet::new();
        for class in Priority::ALL {
            let (worker, stop) = (Arc::clone(&self), stop.clone());
            let (acknowledge, finished) = (acknowledge.clone(), finished.clone());
            takes.spawn(
                async move { worker.take(class, &acknowledge, &finished, stop).await }
                    .instrument(span.clone()),
            );
        }
        let tasks = TaskTracker::new();
        for relay in [0, 1] {
            let (worker, stop) = (Arc::clone(&self), stop.clone());
            tasks.spawn(
                async move {
                    let metrics = &worker.shared.metrics;
                    relays::run(&*worker.broker, &worker.channel, relay, metrics, stop).await;
                }
                .instrument(span.clone()),
            );
        }
        let (worker, ticking) = (Arc::clone(&self), stop.clone());
        let ticker = finished.clone();
        tasks.spawn(async move { worker.tick(&ticker, ticking).await }.instrument(span.clone()));
        drop(acknowledge);

        let sends = TaskTracker::new();
        let choosing = Arc::clone(&self).choose(&finished, &sends);
        stop.run_until_cancelled(choosing.instrument(span)).await;
        drop(finished);

        tasks.close();
        sends.close();
        let mut consumers = Vec::with_capacity(Priority::COUNT);
        while let Some(taken) = takes.join_next().await {
            // One that panicked has said so already.
            consumers.extend(taken.ok().flatten());
        }
        tasks.wait().await;
        sends.wait().await;
        let _ = publisher.await;
        // What is held and not begun holds on to the acknowledgements: it is given back unacknowledged.
        *self.queues() = Queues::default();
        let _ = acknowledger.await;
        // Only now others may have what is left: what was begun has ended, and they can know how.
        drop(consumers);
        self.say_farewell().await;
        self.shared.loads.remove(&self.channel);
        // A worker that comes after this one says so again.
        self.forget_providers();
    }

    /// Resolves when the events show what this pod tells, and it takes what it may send. Afterwards nothing is asked again: a
    /// broker that goes away takes all pods with it.
    pub async fn up(&self) {
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = self.is_up.subscribe().wait_for(|up| *up).await;
    }

    pub(super) fn queues(&self) -> MutexGuard<'_, Queues> {
        lock(&self.queues)
    }

    pub(super) fn count_retry(&self, class: Priority) {
        self.counters[class.index()].retried.inc();
    }

    fn drop_repeat(&self, held: &Held) {
        self.counters[held.delivery.priority.index()]
            .repeats_dropped
            .inc();
        held.hold.settle();
    }

    /// What becomes of a delivery that is not to be sent now; `None`: it is.
    fn not_to_be_sent(&self, delivery: &Delivery) -> Option<Next> {
        let now = clock::now();
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
                at: clock::now(),
                _window: None,
            })
            .await;
    }

    fn set_limit(&self, limit: Limit) {
        *lock(&self.limit) = limit;
    }
}
