//! What waits for a channel that is no more, or is out, ends as failed.

use std::collections::BTreeSet;
use std::sync::atomic::Ordering;
use std::sync::{Arc, MutexGuard, PoisonError};
use std::time::Duration;

use herald_crds::{Kind, names};
use jiff::Timestamp;
use tokio::time::Instant;

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

/// Whether there is such a channel, be it one that cannot be read, or may be for all one can tell.
fn is_declared(declared: &Snapshot, name: &FullName) -> bool {
    let is_it = |problem: &DeclaredProblem| {
        let named = problem.resource.strip_prefix("Channel ");
        named.is_some_and(|named| named == &**name)
    };
    declared.channels.contains_key(name)
        || declared.problems.iter().any(is_it)
        || !declared.tells(Kind::Channel, name)
}

impl Channels {
    /// Ends some of what waits for channels that are no more, or is out: also if they were deleted while nothing ran.
    /// Then lets go of their topics. Answers when to go on with what is left, so that nothing else waits for a million of
    /// them; `None`: nothing is.
    pub(super) async fn end_deleted(&self, declared: &Snapshot) -> Option<Duration> {
        // What cannot be read at all may be any channel: nothing ends for a slip of the pen.
        let is_unclear = |problem: &DeclaredProblem| problem.resource.is_empty();
        if declared.problems.iter().any(is_unclear) {
            return None;
        }
        match self.end_some(declared).await {
            Ok(again) => again,
            Err(error) => {
                let metrics = &self.shared.metrics;
                match &error {
                    EndError::Store(_) => metrics.store_failed("end_channel"),
                    EndError::Broker(_) => metrics.broker_failed("end_channel"),
                }
                tracing::warn!(%error, "what waits for deleted channels could not be ended, trying again");
                Some(self.pause())
            }
        }
    }

    async fn end_some(&self, declared: &Snapshot) -> Result<Option<Duration>, EndError> {
        let store = &self.parts.store;
        let mut more = false;
        let mut open = BTreeSet::new();
        for (name, unended) in store.channels().await.map_err(EndError::Store)? {
            if is_declared(declared, &name) {
                continue;
            }
            if unended {
                open.insert(Arc::clone(&name));
            } else if self.left().contains(&name) {
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
        let is_read = self.let_go(declared, &open);
        Ok(if more {
            Some(Duration::ZERO)
        } else {
            (is_read || !open.is_empty()).then(|| self.pause())
        })
    }

    /// Lets go of the topics of channels that are no more once all of it has ended and nothing has come for a while: who
    /// deletes the topics waits for that. Answers whether others are still read.
    ///
    /// A pod tells each second how it is, and takes the drain time at most from its last word to its last outcome.
    fn let_go(&self, declared: &Snapshot, open: &BTreeSet<FullName>) -> bool {
        let long = self.shared.timing.drain + self.pause();
        let mut left = self.left();
        left.retain(|name| !is_declared(declared, name));
        let mut is_read = false;
        self.lock().retain(|name, running| {
            let recorded = *running.recorded.borrow();
            let is_over = !is_declared(declared, name)
                && !open.contains(name)
                && matches!(running.work, Work::Nothing);
            running.quiet = match running.quiet {
                _ if !is_over => None,
                Some((since, then)) if then == recorded => Some((since, then)),
                _ => Some((Instant::now(), recorded)),
            };
            let Some((since, _)) = running.quiet else {
                return true;
            };
            if since.elapsed() < long && !running.is_missing.load(Ordering::Relaxed) {
                is_read = true;
                return true;
            }
            running.stop.cancel();
            let channel = &**name;
            tracing::info!(
                channel,
                "it is no more, and nothing comes from it: its topics are not read any longer"
            );
            left.insert(Arc::clone(name));
            false
        });
        is_read
    }

    /// After so long what is left of channels that are no more is looked at again.
    fn pause(&self) -> Duration {
        self.shared.timing.tick * 5
    }

    fn left(&self) -> MutexGuard<'_, BTreeSet<FullName>> {
        self.left.lock().unwrap_or_else(PoisonError::into_inner)
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
        match published {
            // Then there are no copies either.
            Ok(()) | Err(BrokerError::Missing { .. }) => {}
            Err(error) => return Err(EndError::Broker(error)),
        }
        // The recorder repeats it, which changes nothing.
        let recorded = self.parts.store.record(channel, &told).await;
        recorded.map_err(EndError::Store)
    }
}
