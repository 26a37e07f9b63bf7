//! Ticking: each second it is said how the channel is, and what is not to be sent any more is given back.

use std::sync::Arc;
use std::sync::atomic::Ordering;

use herald_crds::{Priority, names};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::{Worker, lock};
use crate::broker::Outgoing;
use crate::clock;
use crate::deliver::load::{Limit, Load, ProviderLoad};
use crate::deliver::outcomes::Finished;
use crate::deliver::share::Wants;
use crate::message::{self, Events, Tick};
use crate::metrics::ChannelProvider;

/// After so many intervals without a tick a pod is taken for gone: by the others, and by itself.
const MISSING: u32 = 3;

impl Worker {
    /// Each second: says how the channel is, and gives back what is not to be sent any more.
    pub(super) async fn tick(&self, finished: &mpsc::Sender<Finished>, stop: CancellationToken) {
        let mut before = [0; Priority::COUNT];
        let mut expects = [0.0; Priority::COUNT];
        let mut last = Instant::now();
        let mut interval = tokio::time::interval(self.shared.timing.tick);
        interval.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        while stop.run_until_cancelled(interval.tick()).await.is_some() {
            let ended = std::array::from_fn(|k| self.ended[k].load(Ordering::Relaxed));
            let over = last.elapsed().as_secs_f64().max(1e-3);
            let drain = std::array::from_fn(|k| (ended[k] - before[k]) as f64 / over);
            (before, last) = (ended, Instant::now());
            // Not only when something is chosen: at a slow rate, or while no provider works, that may be long after.
            self.sort_again();
            let load = self.load(drain);
            self.shared.loads.set(&self.channel, load.clone());
            self.reckon(
                &mut expects,
                &load.drain,
                ended.iter().all(|ended| *ended == 0),
            );
            self.tell(load, expects, false).await;
            let unsent = self
                .queues()
                .take(|held| self.not_to_be_sent(&held.delivery));
            for (held, next) in unsent {
                self.finish_unsent(held, next, finished).await;
            }
            self.ledger.tidy();
        }
    }

    /// What will come in the next second, by class: about as much as lately; to one that is new as much as to the others.
    fn reckon(
        &self,
        expects: &mut [f64; Priority::COUNT],
        drain: &[f64; Priority::COUNT],
        is_new: bool,
    ) {
        if is_new {
            let within = self.shared.timing.tick * MISSING;
            let mut others = self.ledger.pods(within);
            others.retain(|tick| Some(&tick.pod) != self.shared.pod.as_ref());
            for (class, expects) in expects.iter_mut().enumerate() {
                let sum: f64 = others.iter().map(|tick| tick.expects[class]).sum();
                // Shared with this one, too.
                *expects = sum / (others.len() + 1) as f64;
            }
        } else {
            for (expects, drain) in expects.iter_mut().zip(drain) {
                *expects = f64::midpoint(*expects, *drain);
            }
        }
    }

    /// How this pod is, or this process for the channel.
    fn load(&self, drain: [f64; Priority::COUNT]) -> Load {
        let (waiting, oldest, held_since) = {
            let queues = self.queues();
            let oldest = queues.heads(clock::now());
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
            let state = &self.shared.metrics.provider_state;
            state
                .get_or_create(&self.labels(&provider.name))
                .set(provider.state);
        }
        let limit = if self.spec.suspend {
            Limit::Suspended
        } else {
            *lock(&self.limit)
        };
        Load {
            waiting,
            oldest,
            held_since,
            drain,
            rate: self.rate.per_second(),
            limit,
            providers,
            replicas: 1,
            pods: Vec::new(),
        }
    }

    /// How its providers are is not said any more: nobody asks them, and what was said last would stand for ever.
    pub(super) fn forget_providers(&self) {
        for provider in &self.providers {
            let state = &self.shared.metrics.provider_state;
            state.remove(&self.labels(&provider.name));
        }
    }

    fn labels(&self, provider: &str) -> ChannelProvider {
        ChannelProvider {
            channel: self.channel.to_string(),
            provider: provider.to_owned(),
        }
    }

    /// Where there may be other pods: tells them how this one is, and takes its share of the rates by what all have told.
    async fn tell(&self, load: Load, expects: [f64; Priority::COUNT], leaves: bool) {
        let Some(pod) = &self.shared.pod else { return };
        let interval = self.shared.timing.tick;
        if !leaves {
            let pods = if self.ledger.hears(pod, interval * MISSING) {
                // What it may send since the tick before it tries to take by now.
                let is_trying = self
                    .trying
                    .iter()
                    .any(|trying| trying.load(Ordering::Relaxed));
                if self.is_heard.swap(true, Ordering::Relaxed) && !is_trying {
                    self.is_up
                        .send_if_modified(|up| !std::mem::replace(up, true));
                }
                self.ledger.pods(interval * MISSING)
            } else {
                // Whoever is not heard, or not yet, may be counted by nobody.
                Vec::new()
            };
            self.fit_room(pods.len());
            let wants: Vec<Wants> = pods.iter().map(Wants::of).collect();
            self.rate.divide(&wants, pod);
            for provider in &self.providers {
                provider.rate.divide(&wants, pod);
            }
        }
        let tick = Tick {
            pod: Arc::clone(pod),
            waiting: load.waiting,
            oldest: load.oldest.map(|age| age.map(|age| age.as_millis() as u64)),
            held_since: load.held_since,
            drain: load.drain,
            expects,
            limit: load.limit,
            providers: load.providers,
            formats: vec![message::FORMAT_JSON],
            read: self.ledger.position(),
            leaves,
        };
        let events = Events {
            tick: Some(tick),
            ..Events::default()
        };
        let told = Outgoing::at_once(message::encode(&events));
        let topic = names::events(&self.channel);
        let publishing = self.broker.publish(&topic, vec![told]);
        // One that is late is of no use: the next one says more.
        match tokio::time::timeout(interval, publishing).await {
            Ok(Ok(())) => {}
            Ok(Err(error)) => {
                self.shared.metrics.broker_failed("tick");
                tracing::warn!(%error, "how this pod is could not be told");
            }
            Err(_) => self.shared.metrics.broker_failed("tick"),
        }
    }

    /// Tells the others that this pod ends: its share is theirs at once, and no order waits for it.
    pub(super) async fn say_farewell(&self) {
        let load = self.load([0.0; Priority::COUNT]);
        self.tell(load, [0.0; Priority::COUNT], true).await;
    }
}
