//! Finds what was released long ago and of which nothing was heard, alarms, and releases it again: conservation is
//! checked, not assumed.

use std::sync::Arc;
use std::time::Duration;

use futures::{StreamExt, TryStreamExt, stream};
use herald_crds::names;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::broker::{Broker, MessageId, Outgoing};
use crate::catalog::Catalog;
use crate::clock;
use crate::deliver::load::Loads;
use crate::message::{self, Events};
use crate::metrics::Metrics;
use crate::store::{Overdue, Store, StoreError};
use crate::timing::Timing;
use crate::waiting::Lanes;

/// Rows released again in one transaction.
const BATCH: usize = 500;

/// Channels looked at side by side.
const SIDE_BY_SIDE: usize = 8;

/// Notifications deleted in one transaction at the end of their retention.
const EXPIRE: usize = 200;

/// How long the sweep waits for a channel's recording.
const PATIENCE: Duration = Duration::from_secs(30);

/// Finds how far a channel's recording has come.
pub type Recorded = Box<dyn Fn(&str) -> Option<watch::Receiver<Option<MessageId>>> + Send + Sync>;

/// Sweeps all channels.
pub struct Sweep {
    /// What moves.
    pub broker: Arc<dyn Broker>,
    /// What was.
    pub store: Arc<dyn Store>,
    /// What is declared.
    pub catalog: Arc<dyn Catalog>,
    /// How every channel is.
    pub loads: Arc<Loads>,
    /// Who has rows that are due again.
    pub lanes: Arc<Lanes>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The times kept.
    pub timing: Arc<Timing>,
    /// How far recording has come.
    pub recorded: Recorded,
}

impl Sweep {
    /// Sweeps until `stop`.
    pub async fn run(self, stop: CancellationToken) {
        stop.run_until_cancelled(async {
            loop {
                tokio::time::sleep(self.timing.sweep).await;
                if let Err(error) = self.sweep().await {
                    self.metrics.store_failed("sweep");
                    tracing::warn!(%error, "the sweep could not look, trying again later");
                }
            }
        })
        .await;
    }

    /// Looks once; answers how many deliveries were overdue.
    pub async fn sweep(&self) -> Result<u64, StoreError> {
        let now = clock::now();
        // Nobody looks at what waits for what is suspended.
        let late = self.store.end_late(now).await?;
        if late > 0 {
            tracing::info!(
                late,
                "what waited for longer than it was good for has expired"
            );
        }
        let declared = self.catalog.current();
        // Each by itself: one of which much is overdue, or whose recording lags, holds up none of the others.
        let mut sweeping = Vec::with_capacity(declared.channels.len());
        for (name, channel) in &declared.channels {
            if !channel.spec.suspend {
                sweeping.push(self.sweep_channel(name, now));
            }
        }
        let mut swept = stream::iter(sweeping).buffer_unordered(SIDE_BY_SIDE);
        let mut found = 0;
        while let Some(of_channel) = swept.try_next().await? {
            found += of_channel;
        }
        self.metrics.overdue.set(found as i64);
        while self
            .store
            .expire(now - self.timing.retention, EXPIRE)
            .await?
            == EXPIRE as u64
        {}
        Ok(found)
    }

    async fn sweep_channel(&self, channel: &str, now: Timestamp) -> Result<u64, StoreError> {
        // Where nothing is sent, silence means nothing: nobody delivers, since a provider cannot be built, or none works.
        let Some(load) = self.loads.get(channel).filter(|load| !load.is_stopped()) else {
            return Ok(0);
        };
        // However slow a channel is: what was released after the oldest of what it holds may be in hand too.
        let before = now - self.timing.overdue;
        let before = load.held_since.map_or(before, |since| before.min(since));
        let overdue = || self.store.overdue(channel, before, BATCH);
        let mut found = 0;
        if !overdue().await?.is_empty() && self.has_recorded(channel).await {
            loop {
                let overdue = overdue().await?;
                if overdue.is_empty() {
                    break;
                }
                found += self.release_again(&overdue, now).await?;
            }
        }
        Ok(found)
    }

    async fn release_again(&self, overdue: &[Overdue], now: Timestamp) -> Result<u64, StoreError> {
        for Overdue {
            id, channel, since, ..
        } in overdue
        {
            tracing::error!(delivery = %id, channel = &**channel, %since, "nothing was heard of a delivery: releasing it again");
        }
        let redriven = self.store.redrive(overdue, now).await?;
        self.metrics.redriven.inc_by(redriven);
        for Overdue {
            channel, priority, ..
        } in overdue
        {
            self.lanes.ready(channel, Some(*priority));
        }
        Ok(redriven)
    }

    /// Whether all that was published until now is recorded: what is still to be recorded is not overdue. Asked by a
    /// marker of no meaning, since there is only something to ask when something seems to be missing.
    async fn has_recorded(&self, channel: &str) -> bool {
        let Some(mut recorded) = (self.recorded)(channel) else {
            return false;
        };
        let topic = names::events(channel);
        let marker = Outgoing::at_once(message::encode(&Events::default()));
        if self.broker.publish(&topic, vec![marker]).await.is_err() {
            return false;
        }
        let Ok(last) = self.broker.last_message_id(&topic).await else {
            return false;
        };
        let caught_up = recorded.wait_for(|position| *position >= last);
        tokio::time::timeout(PATIENCE, caught_up)
            .await
            .is_ok_and(|waited| waited.is_ok())
    }
}

#[cfg(test)]
mod tests {
    use crate::broker::embedded::{self, EmbeddedBroker};
    use crate::catalog::folder::FolderCatalog;
    use crate::deliver::load::Load;
    use crate::store::contract::stages::{planned, request, row, settled};
    use crate::store::sqlite::{self, SqliteStore};
    use crate::store::{RecordStore, Turn, WaitingStore};

    use super::*;

    const CHANNEL: &str = "
apiVersion: herald.dev/v1alpha1
kind: Channel
metadata: {name: NAME, namespace: shop}
spec:
  medium: email
  providers: [{name: log, log: {}}]
";

    #[tokio::test]
    async fn a_channel_that_is_not_recorded_holds_up_no_other_and_one_without_a_worker_is_silent() {
        let dir = tempfile::tempdir().unwrap();
        for name in ["behind", "idle", "lossy"] {
            let file = dir.path().join(format!("{name}.yaml"));
            std::fs::write(file, CHANNEL.replace("NAME", name)).unwrap();
        }
        let catalog = FolderCatalog::open(dir.path(), "shop").unwrap();
        assert_eq!(catalog.reload_now().problems, []);
        let queue = dir.path().join("queue.db");
        let broker = EmbeddedBroker::open(&queue, embedded::Options::default()).await;
        let options = sqlite::Options {
            synchronous: false,
            ..sqlite::Options::default()
        };
        let store = SqliteStore::open(&dir.path().join("store.db"), options).await;
        let store = Arc::new(store.unwrap());
        let sweep = Sweep {
            broker: Arc::new(broker.unwrap()),
            store: store.clone(),
            catalog: Arc::new(catalog),
            loads: Arc::default(),
            lanes: Arc::default(),
            metrics: Arc::default(),
            timing: Arc::default(),
            recorded: Box::new(|channel| {
                let (_, recorded) = watch::channel(Some(MessageId::of_entry(u64::MAX)));
                (channel != "shop/behind").then_some(recorded)
            }),
        };
        for channel in ["shop/behind", "shop/lossy"] {
            sweep.loads.set(&Arc::from(channel), Load::default());
        }
        for (channel, n) in [("shop/behind", BATCH), ("shop/idle", 1), ("shop/lossy", 1)] {
            let request = request(channel);
            let mut rows: Vec<_> = (0..n)
                .map(|n| row(&request.id, &format!("person-{n}")))
                .collect();
            for row in &mut rows {
                row.channel = channel.into();
            }
            planned(&*store, &request, &rows).await;
            let class = herald_crds::Priority::Normal;
            let turn = Turn::default();
            let chunk = store.chunk(channel, class, &turn, n).await.unwrap();
            settled(chunk, Timestamp::UNIX_EPOCH).await;
        }
        assert_eq!(sweep.sweep().await.unwrap(), 1);
        assert_eq!(store.unended().await.unwrap(), (1, BATCH as u64 + 1));
    }
}
