//! Ticking: each second it is said how the channel is, and what is not to be sent any more is given back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Worker, lock};
use crate::deliver::load::{Limit, Load, ProviderLoad};
use crate::deliver::outcomes::Finished;
use crate::metrics::ChannelProvider;

impl Worker {
    /// Each second: says how the channel is, and gives back what is not to be sent any more.
    pub(super) async fn tick(&self, finished: &mpsc::Sender<Finished>, stop: CancellationToken) {
        let mut before = 0;
        let mut last = Instant::now();
        let mut interval = tokio::time::interval(self.shared.timing.tick);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(interval.tick()).await.is_some() {
            let ended = self.ended.load(Ordering::Relaxed);
            let drain = (ended - before) as f64 / last.elapsed().as_secs_f64().max(1e-3);
            (before, last) = (ended, Instant::now());
            // Not only when something is chosen: at a slow rate, or while no provider works, that may be long after.
            self.sort_again();
            self.say(drain);
            let unsent = self
                .queues()
                .take(|held| self.not_to_be_sent(&held.delivery));
            for (held, next) in unsent {
                self.finish_unsent(held, next, finished).await;
            }
            self.ledger.tidy();
        }
    }

    fn say(&self, drain: f64) {
        let (waiting, oldest, held_since) = {
            let queues = self.queues();
            let oldest = queues.heads(Timestamp::now());
            (queues.waiting(), oldest, queues.held_since())
        };
        let now = Instant::now();
        let providers = {
            let breakers = lock(&self.breakers);
            let states = breakers.iter().map(|breaker| breaker.level(now));
            self.providers
                .iter()
                .zip(states)
                .map(|(provider, state)| ProviderLoad {
                    name: Arc::clone(&provider.name),
                    state,
                })
                .collect::<Vec<_>>()
        };
        for provider in &providers {
            let labels = ChannelProvider {
                channel: self.channel.to_string(),
                provider: provider.name.to_string(),
            };
            self.shared
                .metrics
                .provider_state
                .get_or_create(&labels)
                .set(provider.state);
        }
        let limit = if self.spec.suspend {
            Limit::Suspended
        } else {
            *lock(&self.limit)
        };
        let load = Load {
            waiting,
            oldest,
            held_since,
            drain,
            rate: self.rate.per_second(),
            limit,
            providers,
            replicas: 1,
        };
        self.shared.loads.set(&self.channel, load);
    }
}
