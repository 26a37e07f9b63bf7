//! Finds what was released long ago and of which nothing was heard, alarms, and releases it again: conservation is
//! checked, not assumed.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use herald_crds::names;
use jiff::Timestamp;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::broker::{Broker, MessageId, Outgoing};
use crate::catalog::Catalog;
use crate::deliver::load::Loads;
use crate::message::{self, Events};
use crate::metrics::{Metrics, Operation};
use crate::store::{Overdue, Store, StoreError};
use crate::timing::Timing;
use crate::waiting::Lanes;

/// Rows released again in one transaction.
const BATCH: usize = 500;

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
                    self.metrics
                        .store_errors
                        .get_or_create(&Operation { operation: "sweep" })
                        .inc();
                    tracing::warn!(%error, "the sweep could not look, trying again later");
                }
            }
        })
        .await;
    }

    /// Looks once; answers how many deliveries were overdue.
    pub async fn sweep(&self) -> Result<u64, StoreError> {
        let now = Timestamp::now();
        let before = now - self.timing.overdue;
        // Where nothing is sent, silence means nothing.
        let is_at_work = |name: &str, suspended: bool| {
            !suspended && !self.loads.get(name).is_some_and(|load| load.is_stopped())
        };
        let declared = self.catalog.current();
        let at_work = declared
            .channels
            .iter()
            .filter(|(name, channel)| is_at_work(name, channel.spec.suspend));
        let names: Vec<&str> = at_work.map(|(name, _)| &**name).collect();

        let mut found = 0;
        let mut suspects = self.store.overdue(&names, before, BATCH).await?;
        while !suspects.is_empty() {
            let channels: BTreeSet<&str> =
                suspects.iter().map(|overdue| &*overdue.channel).collect();
            let mut recorded = Vec::with_capacity(channels.len());
            for channel in channels {
                if self.has_recorded(channel).await {
                    recorded.push(channel);
                }
            }
            let overdue = self.store.overdue(&recorded, before, BATCH).await?;
            if overdue.is_empty() {
                break;
            }
            found += self.release_again(&overdue, now).await?;
            suspects = self.store.overdue(&names, before, BATCH).await?;
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
