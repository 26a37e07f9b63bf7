//! Choosing, late: first a provider, a place in the window and a token, then the delivery.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::task::TaskTracker;
use tracing::Instrument;

use super::send::Begun;
use super::{Worker, lock};
use crate::clock;
use crate::deliver::breaker::Permit;
use crate::deliver::load::Limit;
use crate::deliver::outcomes::Finished;
use crate::deliver::priority::Slot;
use crate::deliver::queue::{Held, copy};
use crate::deliver::retry::{Next, NotYet};
use crate::message::Delivery;

enum Choice {
    Send(Box<Held>, Slot),
    Skip(Box<Held>, Box<Next>),
    Wait,
}

impl Worker {
    /// Chooses and sends, for ever: first a provider, a place in the window and a token, then the delivery.
    pub(super) async fn choose(
        self: Arc<Self>,
        finished: &mpsc::Sender<Finished>,
        sends: &TaskTracker,
    ) {
        loop {
            while self.queues().is_empty() {
                self.set_limit(Limit::Nothing);
                self.work.notified().await;
            }
            let (preferred, better) = self.provider().await;
            self.set_limit(Limit::Slots);
            let Ok(window) = Arc::clone(&self.window).acquire_owned().await else {
                return;
            };
            self.set_limit(Limit::Rate);
            tokio::select! {
                () = self.providers[preferred].rate.ready() => {}
                // Its token may be hours away, and one that is preferred to it in order by then.
                () = tokio::time::sleep_until(better.unwrap_or_else(Instant::now)), if better.is_some() => continue,
            }
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
            let (worker, finished) = (Arc::clone(&self), finished.clone());
            let span = tracing::debug_span!(
                "deliver",
                delivery = %held.delivery.id,
                attempt = held.delivery.attempt,
                traceparent = held.delivery.traceparent.as_deref(),
            );
            sends.spawn(
                async move {
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

    /// The next delivery by priority, looked at once more just before it begins.
    fn next(&self) -> Choice {
        self.sort_again();
        let mut queues = self.queues();
        let mut scheduler = lock(&self.scheduler);
        while let Some(turn) = scheduler.next(queues.heads(clock::now())) {
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

    /// Follows the orders that have come since the last time.
    pub(super) fn sort_again(&self) {
        let orders = self.ledger.orders();
        if self.orders.swap(orders, Ordering::Relaxed) != orders {
            self.queues()
                .sort_again(|delivery| self.ledger.class(&delivery.notification));
            self.work.notify_one();
        }
    }

    /// Waits for a provider that may be asked: the first in order of preference. Answers too when one that is preferred
    /// to it may be asked, if there is one.
    async fn provider(&self) -> (usize, Option<Instant>) {
        loop {
            let now = Instant::now();
            let mut soonest: Option<Instant> = None;
            {
                let breakers = lock(&self.breakers);
                for (index, breaker) in breakers.iter().enumerate() {
                    match breaker.permits(now) {
                        Permit::Yes | Permit::Probe => return (index, soonest),
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
    ///
    /// Only the preferred one's rate was waited for. Nothing waits for another's, which would hold a place that others
    /// could use, and be late by the time it comes: without a token the preferred one is asked, or what is bound put off.
    fn begin(&self, delivery: &Delivery, preferred: usize) -> Begun {
        let now = Instant::now();
        let mut breakers = lock(&self.breakers);
        let all_open = breakers
            .iter()
            .all(|breaker| breaker.permits(now) != Permit::Yes);
        let counts = !all_open;
        let has_token =
            |index: usize| index == preferred || self.providers[index].rate.try_now().is_ok();
        let bound = delivery.provider.as_ref();
        let bound = bound.and_then(|bound| {
            self.providers
                .iter()
                .position(|provider| provider.name == *bound)
        });
        let index = bound.unwrap_or_else(|| {
            let turned = (preferred + usize::from(delivery.tried)) % self.providers.len().max(1);
            let may_be_asked = breakers[turned].permits(now) == Permit::Yes && has_token(turned);
            if may_be_asked { turned } else { preferred }
        });
        let not_yet = match breakers[index].permits(now) {
            Permit::NotBefore(at) => Some(NotYet::OutOfOrder(at.saturating_duration_since(now))),
            Permit::Yes | Permit::Probe if bound.is_some() && index != preferred => {
                self.providers[index].rate.try_now().err().map(NotYet::Rate)
            }
            Permit::Yes | Permit::Probe => None,
        };
        if not_yet.is_none() {
            breakers[index].take(now);
        }
        Begun {
            index,
            not_yet,
            counts,
        }
    }
}
