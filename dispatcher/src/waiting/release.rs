//! One channel's rows leave at the channel's pace, in turns.

use std::sync::Arc;
use std::time::Duration;

use herald_crds::{Channel, Priority, names};
use jiff::Timestamp;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::{Lanes, pace};
use crate::broker::{Broker, BrokerError, Outgoing};
use crate::catalog::{Catalog, FullName};
use crate::clock;
use crate::deliver::ledger::Ledger;
use crate::fanout::{FannedOut, Fanout, bundle};
use crate::id::DeliveryId;
use crate::message::{self, Events};
use crate::metrics::{ChannelClass, ChannelReason, Metrics};
use crate::store::{Chunk, Hold, Store, StoreError, Turn, Unreadable};
use crate::timing::Timing;

/// Releases one channel.
pub struct Release {
    /// Its full name.
    pub channel: FullName,
    /// What moves.
    pub broker: Arc<dyn Broker>,
    /// What waits.
    pub store: Arc<dyn Store>,
    /// What is declared.
    pub catalog: Arc<dyn Catalog>,
    /// What makes deliveries of rows.
    pub fanout: Arc<Fanout>,
    /// What is out, and how fast it goes.
    pub ledger: Arc<Ledger>,
    /// Who has rows that are due.
    pub lanes: Arc<Lanes>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// The times kept.
    pub timing: Arc<Timing>,
}

/// A chunk that could not be released: it stays where it is.
#[derive(Debug, thiserror::Error)]
enum ReleaseError {
    #[error(transparent)]
    Store(StoreError),
    #[error(transparent)]
    Broker(BrokerError),
}

impl Release {
    /// Releases until `stop`. A chunk that is under way then is released again by whoever comes next.
    pub async fn run(self, stop: CancellationToken) {
        // So that what is released is not what was settled before a restart.
        let position = self
            .broker
            .last_message_id(&names::events(&self.channel))
            .await
            .ok()
            .flatten();
        let span = tracing::info_span!("release", channel = &*self.channel);
        stop.run_until_cancelled(
            async {
                self.ledger.caught_up(position).await;
                self.release().await;
            }
            .instrument(span),
        )
        .await;
        self.store.resign(&self.channel).await;
    }

    async fn release(&self) {
        let lane = self.lanes.lane(&self.channel);
        let mut turns: [Turn; Priority::COUNT] = Default::default();
        for class in Priority::ALL {
            lane.give(class);
        }
        loop {
            // Registered before looking, so that no change between looking and waiting is missed.
            let changed = self.ledger.changed();
            tokio::pin!(changed);
            changed.as_mut().enable();
            match self.release_some(&lane, &mut turns).await {
                Ok(true) => {}
                Ok(false) => {
                    let looked = tokio::time::sleep(self.timing.tick);
                    let waits = Priority::ALL.iter().any(|class| lane.may_have(*class));
                    tokio::select! {
                        () = &mut changed => {}
                        () = lane.rung() => {}
                        // What is out may have been lost with a pod: the pace forgets it in time.
                        () = looked, if waits => {}
                    }
                }
                Err(error) => {
                    match &error {
                        ReleaseError::Store(_) => self.metrics.store_failed("release"),
                        ReleaseError::Broker(_) => self.metrics.broker_failed("release"),
                    }
                    tracing::warn!(channel = &*self.channel, %error, "a chunk could not be released, trying again");
                    tokio::time::sleep(Duration::from_millis(500)).await;
                }
            }
        }
    }

    /// Releases a chunk of each class that has one and may, the most urgent first; `false` if none does.
    ///
    /// Of each: which goes first is decided where it is delivered. A class that had to wait until there is nothing of a
    /// higher one here could wait for ever, though there is time to send it.
    async fn release_some(
        &self,
        lane: &super::Lane,
        turns: &mut [Turn; Priority::COUNT],
    ) -> Result<bool, ReleaseError> {
        let declared = self.catalog.current();
        let Some(channel) = declared
            .channels
            .get(&self.channel)
            .filter(|channel| !channel.spec.suspend)
        else {
            return Ok(false);
        };
        if !Priority::ALL.iter().any(|class| lane.may_have(*class))
            || !self
                .store
                .lead(&self.channel)
                .await
                .map_err(ReleaseError::Store)?
        {
            return Ok(false);
        }
        let rate = channel.spec.rate_limit.as_ref();
        let mut has_released = false;
        for class in Priority::ALL {
            let (out, drain) = self.ledger.pace(class);
            let allowance = pace::allowance(out, drain, rate, self.timing.pace);
            if allowance == 0 || !lane.take(class) {
                continue;
            }
            let turn = &mut turns[class.index()];
            match self.release_chunk(channel, class, turn, allowance).await {
                Ok(0) => {}
                Ok(_) => {
                    lane.give(class);
                    has_released = true;
                }
                Err(error) => {
                    lane.give(class);
                    return Err(error);
                }
            }
        }
        Ok(has_released)
    }

    /// Releases a chunk; answers how many rows were in it.
    async fn release_chunk(
        &self,
        channel: &Channel,
        class: Priority,
        turn: &mut Turn,
        limit: usize,
    ) -> Result<usize, ReleaseError> {
        let chunk = self.store.chunk(&self.channel, class, turn, limit).await;
        let Chunk {
            rows,
            unreadable,
            next,
            hold,
        } = chunk.map_err(ReleaseError::Store)?;
        let count = rows.len() + unreadable.len();
        if count == 0 {
            return Ok(0);
        }
        let now = clock::now();
        let fanned = self
            .fanout
            .chunk(&self.channel, &channel.spec, class, rows, now)
            .await;
        let fanned = fanned.map_err(ReleaseError::Store)?;

        self.ledger.released(
            class,
            fanned.deliveries.iter().map(|d| (d.id, d.round, d.attempt)),
        );
        let ids: Vec<DeliveryId> = fanned.deliveries.iter().map(|d| d.id).collect();
        let left = self
            .hand_over(channel, class, fanned, &unreadable, hold, now)
            .await;
        if left.is_err() {
            // Some of it may be out all the same; counted as out, it could stop the class for as long as H.
            self.ledger.not_released(class, &ids);
        }
        left?;
        *turn = next;
        Ok(count)
    }

    /// Says which rows cannot be read; they have ended.
    fn said_unreadable(&self, rows: &[Unreadable]) {
        for Unreadable { row, reason } in rows {
            tracing::error!(
                channel = &*self.channel,
                row,
                reason,
                "a row cannot be read and ends as failed"
            );
        }
        let labels = ChannelReason {
            channel: self.channel.to_string(),
            reason: "unreadable".to_owned(),
        };
        let dead = self.metrics.dead.get_or_create(&labels);
        dead.inc_by(rows.len() as u64);
    }

    /// Hands a chunk to the broker, then marks its rows.
    async fn hand_over(
        &self,
        channel: &Channel,
        class: Priority,
        fanned: FannedOut,
        unreadable: &[Unreadable],
        hold: Box<dyn Hold>,
        now: Timestamp,
    ) -> Result<(), ReleaseError> {
        let labels = ChannelClass {
            channel: self.channel.to_string(),
            priority: class.as_str(),
        };
        self.metrics
            .fanned_out
            .get_or_create(&labels)
            .inc_by(fanned.deliveries.len() as u64);
        let ended = Events::of_outcomes(&fanned.ended);
        let ended = ended.iter().map(message::encode).map(Outgoing::at_once);
        self.publish(&names::events(&self.channel), ended.collect())
            .await?;
        let most = bundle::most(channel.spec.rate_limit.as_ref());
        let messages = bundle::messages(fanned.deliveries, most);
        self.publish(&names::deliveries(&self.channel, class), messages)
            .await?;

        hold.settle(&fanned.left, &fanned.resting, unreadable, now)
            .await
            .map_err(ReleaseError::Store)?;
        if !unreadable.is_empty() {
            self.said_unreadable(unreadable);
        }
        if !fanned.resting.is_empty() {
            self.lanes.rested();
        }
        Ok(())
    }

    async fn publish(
        &self,
        topic: &names::Topic,
        messages: Vec<Outgoing>,
    ) -> Result<(), ReleaseError> {
        if messages.is_empty() {
            return Ok(());
        }
        self.broker
            .publish(topic, messages)
            .await
            .map_err(ReleaseError::Broker)
    }
}
