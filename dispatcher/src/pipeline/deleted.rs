//! What waits for a channel that is no more, or is out, ends as failed.

use std::sync::Arc;

use herald_crds::names;
use jiff::Timestamp;

use super::{Channels, Work};
use crate::broker::{BrokerError, Outgoing};
use crate::catalog::{DeclaredProblem, FullName, Snapshot};
use crate::clock;
use crate::message::{self, Event, Events, Failure, Step};
use crate::store::{Overdue, StoreError};

/// Deliveries ended in one step.
pub(super) const END: usize = 1_000;

#[derive(Debug, thiserror::Error)]
enum EndError {
    #[error(transparent)]
    Store(StoreError),
    #[error(transparent)]
    Broker(BrokerError),
}

impl Channels {
    /// Ends some of what waits for channels that are no more, or is out: also if they were deleted while nothing ran.
    /// Answers whether there may be more, which is for the next time, so that nothing else waits for a million of them.
    pub(super) async fn end_deleted(&self, declared: &Snapshot) -> bool {
        // What cannot be read may be the channel: nothing ends for a slip of the pen.
        let is_unclear = |problem: &DeclaredProblem| {
            problem.resource.is_empty() || problem.resource.starts_with("Channel ")
        };
        if declared.problems.iter().any(is_unclear) {
            return false;
        }
        match self.end_some(declared).await {
            Ok(more) => more,
            Err(error) => {
                let metrics = &self.shared.metrics;
                match &error {
                    EndError::Store(_) => metrics.store_failed("end_channel"),
                    EndError::Broker(_) => metrics.broker_failed("end_channel"),
                }
                tracing::warn!(%error, "what waits for deleted channels could not be ended, trying again later");
                false
            }
        }
    }

    async fn end_some(&self, declared: &Snapshot) -> Result<bool, EndError> {
        let store = &self.parts.store;
        let mut more = false;
        for (name, unended) in store.channels().await.map_err(EndError::Store)? {
            if declared.channels.contains_key(&name) {
                continue;
            }
            // What was told before it went is history all the same, and may be of rows that are still to be written.
            self.begin(&name);
            let is_finishing = self
                .lock()
                .get(&name)
                .is_some_and(|running| matches!(running.work, Work::Finishing));
            if !unended || is_finishing {
                continue;
            }
            let now = clock::now();
            let out = store.overdue(&name, Timestamp::MAX, END).await;
            let out = out.map_err(EndError::Store)?;
            self.end_out(&name, &out, now).await?;
            let waited = store.end_channel(&name, now, END).await;
            let waited = waited.map_err(EndError::Store)?;
            more |= out.len() == END || waited == END as u64;
            if waited > 0 || !out.is_empty() {
                tracing::error!(
                    channel = &*name,
                    waited,
                    out = out.len(),
                    "what waited for a channel that is no more, or was out, ended as failed"
                );
            }
        }
        Ok(more)
    }

    /// Ends what is out. First it is told, so that no copy is sent that is still with the broker, should the channel come
    /// back: whoever is interrupted tells it again.
    async fn end_out(
        &self,
        channel: &FullName,
        out: &[Overdue],
        at: Timestamp,
    ) -> Result<(), EndError> {
        if out.is_empty() {
            return Ok(());
        }
        let failed = |one: &Overdue| Event {
            delivery: one.id,
            notification: one.notification,
            at,
            round: one.round,
            attempt: one.attempt,
            tried: one.tried,
            priority: one.priority,
            step: Step::Failed {
                error: Failure {
                    reason: Arc::from("channel-deleted"),
                    detail: "the channel was deleted while it was out".to_owned(),
                    provider: None,
                },
                delivery: None,
                address_gone: false,
            },
        };
        let ended: Vec<Event> = out.iter().map(failed).collect();
        let told = Events::of_outcomes(&ended);
        let messages = told.iter().map(message::encode).map(Outgoing::at_once);
        let topic = names::events(channel);
        let published = self.parts.broker.publish(&topic, messages.collect()).await;
        published.map_err(EndError::Broker)?;
        // The recorder repeats it, which changes nothing.
        let recorded = self.parts.store.record(channel, &told).await;
        recorded.map_err(EndError::Store)
    }
}
