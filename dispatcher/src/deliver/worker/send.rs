//! Sending: one delivery goes to one provider, and what the provider says decides what follows.

use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::FutureExt;
use jiff::Timestamp;
use tokio::time::Instant;

use super::{NamedProvider, Worker, lock};
use crate::clock;
use crate::deliver::retry::{self, Attempt, Next, NotYet};
use crate::deliver::watchdog::STUCK;
use crate::message::Delivery;
use crate::metrics::ChannelReason;
use crate::provider::{Outcome, Reason};

/// Which provider was chosen for a delivery.
#[derive(Clone, Copy)]
pub(super) struct Begun {
    pub(super) index: usize,
    /// It may not be asked now.
    pub(super) not_yet: Option<NotYet>,
    /// Whether a failure counts as an attempt: not while no provider is in order.
    pub(super) counts: bool,
}

impl Worker {
    /// Sends one delivery and decides what follows.
    pub(super) async fn send(&self, delivery: &Delivery, begun: Begun) -> (Next, Timestamp) {
        let Begun {
            index,
            not_yet,
            counts,
        } = begun;
        let NamedProvider {
            name,
            timeout,
            provider,
            ..
        } = &self.providers[index];
        if let Some(not_yet) = not_yet {
            let at = clock::now();
            return (
                retry::put_off(delivery, not_yet, &self.shared.timing, at),
                at,
            );
        }
        let under_way = self.shared.vitals.begin(*timeout);
        let started = Instant::now();
        let sending = AssertUnwindSafe(provider.send(delivery, *timeout)).catch_unwind();
        let outcome = match tokio::time::timeout(*timeout + STUCK, sending).await {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Outcome::Unknown(reason("panic", "the provider's code panicked")),
            Err(_) => {
                Outcome::Unknown(reason("stuck", "the provider's code did not keep its time"))
            }
        };
        drop(under_way);
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
            clock::now(),
        );
        (next, clock::now())
    }

    fn count(&self, delivery: &Delivery, provider: usize, outcome: &Outcome, took: Duration) {
        let provider = &self.providers[provider];
        provider.seconds.observe(took.as_secs_f64());
        self.ended[delivery.priority.index()].fetch_add(1, Ordering::Relaxed);
        let counters = &self.counters[delivery.priority.index()];
        let reason = match outcome {
            Outcome::Sent { .. } => {
                counters.sent.inc();
                let waited = clock::now().duration_since(delivery.ready_at).as_secs_f64();
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
}

fn reason(code: &str, detail: &str) -> Reason {
    Reason {
        code: Arc::from(code),
        detail: detail.to_owned(),
    }
}
