//! Every stage behind accepting, over the three seams, in one process.
//!
//! For each declared Channel there is a ledger, a recorder, a releaser and a worker; when the Channel's declaration
//! changes its worker is replaced as soon as it has finished what it has begun, when it is deleted what waits for it ends, and then
//! nothing of it is read any longer.

mod deleted;
#[cfg(test)]
mod histories;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::atomic::AtomicBool;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use herald_crds::{Channel, names};
use tokio::sync::{Notify, broadcast, watch};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::broker::{Broker, MessageId};
use crate::catalog::{Catalog, FullName, Snapshot};
use crate::deliver::ledger::Ledger;
use crate::deliver::load::{Load, Loads};
use crate::deliver::pod;
use crate::deliver::worker::{Guards, Shared, Worker};
use crate::fanout::Fanout;
use crate::fanout::definitions::Definitions;
use crate::message::Event;
use crate::metrics::Metrics;
use crate::plan::Plan;
pub use crate::provider::Providers;
use crate::record::Recorder;
use crate::record::sweep::Sweep;
use crate::store::Store;
use crate::timing::Timing;
use crate::waiting::control::Orders;
use crate::waiting::release::Release;
use crate::waiting::suspended::Suspended;
use crate::waiting::{self, Lanes};

/// Outcomes kept for a listener that is slow; a slower one misses some.
const OUTCOMES: usize = 4_096;

/// W unless configured: most deliveries of a channel that are sent and whose outcome has no receipt yet.
pub const WINDOW: usize = 64;

/// What the stages work with.
#[derive(Clone)]
pub struct Parts {
    /// What moves.
    pub broker: Arc<dyn Broker>,
    /// What waits and what was.
    pub store: Arc<dyn Store>,
    /// What is declared.
    pub catalog: Arc<dyn Catalog>,
    /// What makes providers.
    pub providers: Providers,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The times kept.
    pub timing: Timing,
    /// W, see [`WINDOW`].
    pub window: usize,
    /// What makes a delivery happen once; tests take one out.
    #[doc(hidden)]
    pub guards: Guards,
}

/// The stages at work.
pub struct Pipeline {
    /// How every channel is.
    pub loads: Arc<Loads>,
    /// Who has rows that are due.
    pub lanes: Arc<Lanes>,
    /// Decides who and where.
    pub plan: Arc<Plan>,
    /// Gives orders about what waits and what is out.
    pub orders: Arc<Orders>,
    /// Renders.
    pub definitions: Arc<Definitions>,
    /// Outcomes as they are recorded: the channel and the event.
    pub outcomes: broadcast::Sender<Arc<(FullName, Event)>>,
    channels: Arc<Channels>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Pipeline {
    /// Starts every stage. Nothing is read ahead: what was under way before is taken up as it comes.
    pub fn start(parts: &Parts) -> Self {
        Self::begin(parts, true)
    }

    /// The same but for delivering, which is for pods of their own: how they are is known by their ticks.
    pub fn start_without_workers(parts: &Parts) -> Self {
        Self::begin(parts, false)
    }

    fn begin(parts: &Parts, delivers: bool) -> Self {
        let Parts {
            broker,
            store,
            catalog,
            metrics,
            ..
        } = parts;
        let timing = Arc::new(parts.timing.clone());
        let loads = Arc::<Loads>::default();
        let lanes = Arc::<Lanes>::default();
        let definitions = Arc::new(Definitions::new(Arc::clone(store), Arc::clone(catalog)));
        let fanout = Arc::new(Fanout::new(
            Arc::clone(store),
            Arc::clone(catalog),
            Arc::clone(&definitions),
        ));
        let plan = Plan::new(
            Arc::clone(broker),
            Arc::clone(store),
            Arc::clone(catalog),
            Arc::clone(&definitions),
            Arc::clone(&fanout),
            Arc::clone(&lanes),
            Arc::clone(metrics),
        );
        let (outcomes, _) = broadcast::channel(OUTCOMES);
        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let channels = Arc::new(Channels {
            shared: Shared {
                broker: Arc::clone(broker),
                metrics: Arc::clone(metrics),
                loads: Arc::clone(&loads),
                pod: None,
                timing: Arc::clone(&timing),
                window: parts.window,
                vitals: Arc::default(),
                guards: parts.guards,
            },
            fanout,
            lanes: Arc::clone(&lanes),
            outcomes: outcomes.clone(),
            parts: parts.clone(),
            delivers,
            running: Mutex::default(),
            left: Mutex::default(),
            finishing: TaskTracker::new(),
            rung: Notify::new(),
            recording: CancellationToken::new(),
            recorders: TaskTracker::new(),
        });
        let orders = Arc::new(Orders {
            broker: Arc::clone(broker),
            store: Arc::clone(store),
            lanes: Arc::clone(&lanes),
            ledger: {
                let channels = Arc::clone(&channels);
                Box::new(move |channel| {
                    channels
                        .lock()
                        .get(channel)
                        .map(|running| Arc::clone(&running.ledger))
                })
            },
        });
        let sweep = Sweep {
            broker: Arc::clone(broker),
            store: Arc::clone(store),
            catalog: Arc::clone(catalog),
            loads: Arc::clone(&loads),
            lanes: Arc::clone(&lanes),
            metrics: Arc::clone(metrics),
            timing,
            recorded: {
                let channels = Arc::clone(&channels);
                Box::new(move |channel| {
                    channels
                        .lock()
                        .get(channel)
                        .map(|running| running.recorded.subscribe())
                })
            },
        };

        tasks.spawn(Arc::clone(&plan).run(stop.clone()));
        tasks.spawn(waiting::ripen(
            Arc::clone(store),
            Arc::clone(&lanes),
            Arc::clone(metrics),
            stop.clone(),
        ));
        tasks.spawn(waiting::share(
            Arc::clone(store),
            Arc::clone(&lanes),
            Arc::clone(metrics),
            stop.clone(),
        ));
        tasks.spawn(waiting::wake(
            Arc::clone(store),
            Arc::clone(catalog),
            Arc::clone(&lanes),
            Arc::clone(metrics),
            stop.clone(),
        ));
        tasks.spawn(sweep.run(stop.clone()));
        tasks.spawn(Arc::clone(&channels).supervise(stop.clone()));
        tasks.close();
        Self {
            loads,
            lanes,
            plan,
            orders,
            definitions,
            outcomes,
            channels,
            stop,
            tasks,
        }
    }

    /// What is counted.
    pub fn metrics(&self) -> &Metrics {
        &self.channels.parts.metrics
    }

    /// How far a channel's events are recorded in this life; `None`: there is no such channel.
    pub fn recorded(&self, channel: &str) -> Option<watch::Receiver<Option<MessageId>>> {
        let running = self.channels.lock();
        running
            .get(channel)
            .map(|running| running.recorded.subscribe())
    }

    /// Stops taking, finishes what is being sent, records its outcomes, and returns; within the drain time, twice at most.
    pub async fn stop(&self) {
        self.stop.cancel();
        self.tasks.wait().await;
        self.channels.finish_recording().await;
    }
}

/// Runs a worker until `stop`, once it was told what is suspended: what is out may be of a template that was suspended
/// while nothing ran.
async fn deliver(worker: Arc<Worker>, suspended: Suspended, stop: CancellationToken) {
    if stop.run_until_cancelled(suspended.tell()).await.is_some() {
        let following = stop.run_until_cancelled(suspended.follow());
        futures::join!(worker.run(stop.clone()), following);
    }
}

/// Tells what is suspended, again and again, for pods that come later and read no further back than the horizon.
async fn tell_again(suspended: Suspended, every: Duration) {
    loop {
        suspended.tell().await;
        let _ = tokio::time::timeout(every, suspended.follow()).await;
    }
}

/// Keeps how a channel is in line with what its pods tell, for ever.
async fn watch_pods(ledger: Arc<Ledger>, loads: Arc<Loads>, rate: f64, tick: Duration) {
    loop {
        match Load::of_pods(&ledger.pods(tick * 3), rate) {
            Some(load) => loads.set(ledger.channel(), load),
            None => loads.remove(ledger.channel()),
        }
        ledger.tidy();
        tokio::time::sleep(tick).await;
    }
}

/// What is declared is looked at again after so long, for what could not be done the last time.
const AGAIN: Duration = Duration::from_secs(60);

/// What runs for each declared channel.
struct Channels {
    parts: Parts,
    /// Whether this process delivers.
    delivers: bool,
    shared: Shared,
    fanout: Arc<Fanout>,
    lanes: Arc<Lanes>,
    outcomes: broadcast::Sender<Arc<(FullName, Event)>>,
    running: Mutex<BTreeMap<FullName, Running>>,
    /// Channels that are no more, of which nothing is read any longer.
    left: Mutex<BTreeSet<FullName>>,
    /// Workers of declarations that are no more, which finish what they have begun.
    finishing: TaskTracker,
    /// Rings when one has.
    rung: Notify,
    /// Ends the ledgers and recorders, which go on for longest.
    recording: CancellationToken,
    recorders: TaskTracker,
}

struct Running {
    ledger: Arc<Ledger>,
    recorded: watch::Sender<Option<MessageId>>,
    /// Whether its events' topic is not there.
    is_missing: Arc<AtomicBool>,
    /// Ends its ledger and its recorder.
    stop: CancellationToken,
    /// Of one that is no more, and of which all has ended: since when it is recorded no further than this.
    quiet: Option<(Instant, Option<MessageId>)>,
    work: Work,
}

/// What delivers for a channel.
enum Work {
    /// Nothing: it is not declared any more, or a provider cannot be built.
    Nothing,
    /// The releaser and the worker as the Channel is declared.
    Declared(AtWork),
    /// Those of a declaration that is no more. Only then may others begin: what these are sending would be sent twice.
    Finishing,
}

struct AtWork {
    declared: Arc<Channel>,
    stop: CancellationToken,
    tasks: Vec<JoinHandle<()>>,
}

impl AtWork {
    async fn finish(self) {
        self.stop.cancel();
        for task in self.tasks {
            // A task that panicked has said so already.
            let _ = task.await;
        }
    }
}

impl Channels {
    fn lock(&self) -> MutexGuard<'_, BTreeMap<FullName, Running>> {
        self.running.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps what runs in line with what is declared, until `stop`; then ends the workers.
    async fn supervise(self: Arc<Self>, stop: CancellationToken) {
        let mut changes = self.parts.catalog.changes();
        loop {
            let declared = Arc::clone(&changes.borrow_and_update());
            self.shared
                .metrics
                .declared_problems
                .set(declared.problems.len() as i64);
            let again = self.align(&declared).await;
            let retry = tokio::time::sleep(again);
            tokio::select! {
                biased;
                () = stop.cancelled() => break,
                changed = changes.changed() => {
                    if changed.is_err() {
                        stop.cancelled().await;
                        break;
                    }
                }
                () = self.rung.notified() => {}
                () = retry => {}
            }
        }
        self.finish(|_, _| true);
        self.finishing.close();
        let drained = tokio::time::timeout(self.shared.timing.drain, self.finishing.wait());
        if drained.await.is_err() {
            tracing::warn!("not all that was begun was finished in time: it will be repeated");
        }
    }

    /// Has what works for these channels finish what it has begun, for as long as that takes: nobody waits for it here.
    fn finish(self: &Arc<Self>, which: impl Fn(&FullName, &AtWork) -> bool) {
        for (name, running) in self.lock().iter_mut() {
            if !matches!(&running.work, Work::Declared(at_work) if which(name, at_work)) {
                continue;
            }
            let work = std::mem::replace(&mut running.work, Work::Finishing);
            let (Work::Declared(at_work), name) = (work, Arc::clone(name)) else {
                continue;
            };
            let channels = Arc::clone(self);
            self.finishing.spawn(async move {
                at_work.finish().await;
                if let Some(running) = channels.lock().get_mut(&name) {
                    running.work = Work::Nothing;
                }
                channels.rung.notify_one();
            });
        }
    }

    /// Answers when to look again even if nothing changes.
    async fn align(self: &Arc<Self>, declared: &Snapshot) -> Duration {
        self.finish(|name, at_work| {
            declared
                .channels
                .get(name)
                .is_none_or(|channel| channel.spec != at_work.declared.spec)
        });
        for (name, channel) in &declared.channels {
            let ledger = self.begin(name);
            let is_free = self
                .lock()
                .get(name)
                .is_some_and(|running| matches!(running.work, Work::Nothing));
            if !is_free {
                continue;
            }
            let work = self.work(name, channel, ledger);
            if let Some(running) = self.lock().get_mut(name) {
                running.work = work.map_or(Work::Nothing, Work::Declared);
            }
        }
        self.end_deleted(declared).await.unwrap_or(AGAIN)
    }

    /// Makes sure that a channel's events are read and recorded.
    fn begin(&self, name: &FullName) -> Arc<Ledger> {
        let mut all = self.lock();
        if let Some(running) = all.get(name) {
            return Arc::clone(&running.ledger);
        }
        let ledger = Ledger::new(Arc::clone(name), self.parts.timing.horizon);
        let stop = self.recording.child_token();
        let recorded = watch::Sender::new(None);
        let recorder = Recorder {
            channel: Arc::clone(name),
            broker: Arc::clone(&self.parts.broker),
            store: Arc::clone(&self.parts.store),
            lanes: Arc::clone(&self.lanes),
            metrics: Arc::clone(&self.parts.metrics),
            outcomes: self.outcomes.clone(),
            position: recorded.clone(),
            is_missing: Arc::default(),
        };
        let is_missing = Arc::clone(&recorder.is_missing);
        self.recorders.spawn(recorder.run(stop.clone()));
        let (follower, broker) = (Arc::clone(&ledger), Arc::clone(&self.parts.broker));
        let following = stop.clone();
        self.recorders
            .spawn(async move { follower.follow(&*broker, following).await });
        all.insert(
            Arc::clone(name),
            Running {
                ledger: Arc::clone(&ledger),
                recorded,
                is_missing,
                stop,
                quiet: None,
                work: Work::Nothing,
            },
        );
        ledger
    }

    /// Starts the releaser and the worker of a channel; `None` if a provider cannot be built, which is said.
    fn work(&self, name: &FullName, channel: &Arc<Channel>, ledger: Arc<Ledger>) -> Option<AtWork> {
        let metrics = &self.parts.metrics;
        let worker = if self.delivers {
            let (providers, shared) = (&self.parts.providers, self.shared.clone());
            match pod::worker(name, &channel.spec, providers, Arc::clone(&ledger), shared) {
                Ok(worker) => Some(worker),
                Err(error) => {
                    tracing::error!(channel = &**name, %error, "the channel cannot work until this is mended");
                    return None;
                }
            }
        } else {
            None
        };
        let stop = CancellationToken::new();
        let release = Release {
            channel: Arc::clone(name),
            broker: Arc::clone(&self.parts.broker),
            store: Arc::clone(&self.parts.store),
            catalog: Arc::clone(&self.parts.catalog),
            fanout: Arc::clone(&self.fanout),
            ledger: Arc::clone(&ledger),
            lanes: Arc::clone(&self.lanes),
            metrics: Arc::clone(metrics),
            timing: Arc::clone(&self.shared.timing),
        };
        let suspended = Suspended {
            broker: Arc::clone(&self.parts.broker),
            catalog: Arc::clone(&self.parts.catalog),
            ledger: Arc::clone(&ledger),
            metrics: Arc::clone(metrics),
        };
        let mut tasks = vec![tokio::spawn(release.run(stop.clone()))];
        if let Some(worker) = worker {
            tasks.push(tokio::spawn(deliver(worker, suspended, stop.clone())));
        } else {
            let rate = channel.spec.rate_limit.as_ref();
            let rate = rate.map_or(f64::INFINITY, herald_crds::RateLimit::per_second);
            let watched = watch_pods(
                ledger,
                Arc::clone(&self.shared.loads),
                rate,
                self.shared.timing.tick,
            );
            let horizon = self.shared.timing.horizon;
            let stopping = stop.clone();
            tasks.push(tokio::spawn(async move {
                let told = tell_again(suspended, horizon / 2);
                stopping
                    .run_until_cancelled(async { futures::join!(watched, told) })
                    .await;
            }));
        }
        Some(AtWork {
            declared: Arc::clone(channel),
            stop,
            tasks,
        })
    }

    /// Records what was published until now, within the drain time, and ends.
    async fn finish_recording(&self) {
        let waiting: Vec<_> = self
            .lock()
            .iter()
            .map(|(name, running)| (Arc::clone(name), running.recorded.subscribe()))
            .collect();
        let recorded =
            futures::future::join_all(waiting.into_iter().map(|(name, mut recorded)| async move {
                let last = self
                    .parts
                    .broker
                    .last_message_id(&names::events(&name))
                    .await
                    .ok()
                    .flatten();
                // Nothing of this life is missing if nothing was recorded and nothing comes.
                let quiet = Duration::from_secs(1);
                while *recorded.borrow_and_update() < last {
                    if !matches!(
                        tokio::time::timeout(quiet, recorded.changed()).await,
                        Ok(Ok(()))
                    ) {
                        break;
                    }
                }
            }));
        let _ = tokio::time::timeout(self.shared.timing.drain, recorded).await;
        self.recording.cancel();
        self.recorders.close();
        self.recorders.wait().await;
    }
}
