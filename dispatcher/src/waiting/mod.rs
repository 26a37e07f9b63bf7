//! What waits, and when it is released.
//!
//! - [`release`]: one channel's rows leave at the channel's pace, in turns. [`pace`]: how much may be out.
//! - [`control`]: what waits and what is out is called back or given another class.
//! - [`suspended`]: what is out of a suspended template comes back.
//! - [`Lanes`] (here): which channel and class has rows that are due. [`share`]: what gateways tell each other about it.

pub mod control;
pub mod pace;
pub mod release;
pub mod suspended;

use std::collections::{BTreeSet, HashMap};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use herald_crds::Priority;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use crate::catalog::{Catalog, Snapshot};
use crate::clock;
use crate::id::FullName;
use crate::metrics::Metrics;
use crate::store::{News, Store, StoreError};

/// Rows made ready in one transaction.
const RIPEN: usize = 5_000;

/// Between two times that other gateways are told: what comes meanwhile is told together.
const GAP: Duration = Duration::from_millis(10);

/// More news than this at a time are not told one by one.
const NEWS: usize = 1_000;

/// One channel's lane: which classes may have rows that are due.
#[derive(Debug, Default)]
pub struct Lane {
    ready: [AtomicBool; Priority::COUNT],
    rung: Notify,
}

impl Lane {
    /// Takes the word that a class has rows; whoever takes it looks, and gives it back if there are more.
    pub fn take(&self, class: Priority) -> bool {
        self.ready[class.index()].swap(false, Ordering::AcqRel)
    }

    /// There may be rows of this class.
    pub fn give(&self, class: Priority) {
        self.ready[class.index()].store(true, Ordering::Release);
    }

    /// Whether there may be rows of this class.
    pub fn may_have(&self, class: Priority) -> bool {
        self.ready[class.index()].load(Ordering::Acquire)
    }

    /// Resolves once something was said to this lane.
    pub async fn rung(&self) {
        self.rung.notified().await;
    }
}

/// Which channel and class has rows that are due: told by whoever makes them so, here or (see [`share`]) in another gateway,
/// so that nobody has to ask SQL.
#[derive(Debug, Default)]
pub struct Lanes {
    by_channel: RwLock<HashMap<FullName, Arc<Lane>>>,
    scheduled: Notify,
    rested: Notify,
    anything: Notify,
    /// What was said here and others have not been told yet.
    said: Mutex<BTreeSet<News>>,
    speaks: Notify,
}

impl Lanes {
    /// The lane of a channel.
    pub fn lane(&self, channel: &str) -> Arc<Lane> {
        if let Some(lane) = self
            .by_channel
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(channel)
        {
            return Arc::clone(lane);
        }
        let mut lanes = self
            .by_channel
            .write()
            .unwrap_or_else(PoisonError::into_inner);
        Arc::clone(lanes.entry(Arc::from(channel)).or_default())
    }

    /// There may be rows of this channel that are due, of one class or (`None`) any.
    pub fn ready(&self, channel: &str, class: Option<Priority>) {
        self.say(News::Ready(Arc::from(channel), class));
    }

    /// There may be rows with a due time earlier than those known.
    pub fn scheduled(&self) {
        self.say(News::Scheduled);
    }

    /// Rows were put to rest, because their template was suspended a moment ago.
    pub fn rested(&self) {
        self.rested.notify_one();
    }

    /// All lanes may have rows, and anything else may have changed.
    pub fn ready_everywhere(&self) {
        self.say(News::Anything);
    }

    /// Resolves once anything may have changed in another gateway, or be left by one that is gone.
    pub async fn anything(&self) {
        self.anything.notified().await;
    }

    /// Acts on news, and passes them on.
    fn say(&self, news: News) {
        self.hear(&news);
        let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
        if said.len() >= NEWS {
            said.clear();
            said.insert(News::Anything);
        } else {
            said.insert(news);
        }
        self.speaks.notify_one();
    }

    /// Acts on news.
    fn hear(&self, news: &News) {
        match news {
            News::Ready(channel, class) => self.ring(channel, *class),
            News::Scheduled => self.scheduled.notify_one(),
            News::Anything => {
                let names: Vec<FullName> = self
                    .by_channel
                    .read()
                    .unwrap_or_else(PoisonError::into_inner)
                    .keys()
                    .cloned()
                    .collect();
                for name in names {
                    self.ring(&name, None);
                }
                self.scheduled.notify_one();
                self.rested.notify_one();
                self.anything.notify_one();
            }
        }
    }

    fn ring(&self, channel: &str, class: Option<Priority>) {
        let lane = self.lane(channel);
        for one in Priority::ALL {
            if class.is_none_or(|class| class == one) {
                lane.give(one);
            }
        }
        lane.rung.notify_one();
    }

    /// Waits for something that others are to be told; answers all of it.
    async fn said(&self) -> Vec<News> {
        loop {
            let said = {
                let mut said = self.said.lock().unwrap_or_else(PoisonError::into_inner);
                std::mem::take(&mut *said)
            };
            if !said.is_empty() {
                return said.into_iter().collect();
            }
            self.speaks.notified().await;
        }
    }
}

/// Tells other gateways what is said here, and acts on what they say, until `stop`. With the database away everybody looks
/// by himself, once a second.
pub async fn share(
    store: Arc<dyn Store>,
    lanes: Arc<Lanes>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let telling = async {
        loop {
            let news = lanes.said().await;
            if let Err(error) = store.tell(&news).await {
                // They will look by themselves.
                metrics.store_failed("tell");
                tracing::warn!(%error, "other gateways cannot be told what changed");
            }
            tokio::time::sleep(GAP).await;
        }
    };
    let hearing = async {
        loop {
            match store.hear().await {
                Ok(news) => news.iter().for_each(|one| lanes.hear(one)),
                Err(error) => {
                    metrics.store_failed("hear");
                    tracing::warn!(%error, "other gateways cannot be heard, trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    lanes.hear(&News::Anything);
                }
            }
        }
    };
    tokio::select! {
        () = stop.cancelled() => {}
        () = telling => {}
        () = hearing => {}
    }
}

/// Wakes what rests once its template is not suspended any more, until `stop`. Sleeps in between.
pub async fn wake(
    store: Arc<dyn Store>,
    catalog: Arc<dyn Catalog>,
    lanes: Arc<Lanes>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    let mut changes = catalog.changes();
    let wake_some = async |declared: &Snapshot| {
        for (namespace, template) in store.resting().await? {
            let name = format!("{namespace}/{template}");
            if declared.is_suspended(&name) {
                continue;
            }
            for (channel, class) in store.wake(&namespace, &template).await? {
                lanes.ready(&channel, Some(class));
            }
        }
        Ok::<_, StoreError>(())
    };
    stop.run_until_cancelled(async {
        loop {
            let declared = Arc::clone(&changes.borrow_and_update());
            if let Err(error) = wake_some(&declared).await {
                metrics.store_failed("wake");
                tracing::warn!(%error, "what rests cannot be woken, trying again");
                tokio::time::sleep(Duration::from_secs(1)).await;
                continue;
            }
            tokio::select! {
                changed = changes.changed() => if changed.is_err() { return },
                () = lanes.rested.notified() => {}
            }
        }
    })
    .await;
}

/// Makes rows ready when their time comes, until `stop`. Sleeps in between.
pub async fn ripen(
    store: Arc<dyn Store>,
    lanes: Arc<Lanes>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    stop.run_until_cancelled(async {
        loop {
            let next = match store.ripen(clock::now(), RIPEN).await {
                Ok(ripe) if !ripe.is_empty() => {
                    for (channel, class) in ripe {
                        lanes.ready(&channel, Some(class));
                    }
                    continue;
                }
                Ok(_) => store.next_due().await,
                Err(error) => Err(error),
            };
            let woken = lanes.scheduled.notified();
            match next {
                Ok(None) => woken.await,
                Ok(Some(at)) => {
                    let wait =
                        Duration::try_from(at.duration_since(clock::now())).unwrap_or_default();
                    let _ = tokio::time::timeout(wait.max(Duration::from_millis(5)), woken).await;
                }
                Err(error) => {
                    metrics.store_failed("ripen");
                    tracing::warn!(%error, "the waiting room cannot be looked into, trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    })
    .await;
}
