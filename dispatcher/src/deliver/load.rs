//! How a channel is: what its deliver pods would say in a tick.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use herald_crds::Priority;
use jiff::Timestamp;

use crate::id::FullName;
use crate::message::Tick;

/// What holds a channel back.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    serde::Serialize,
    serde::Deserialize,
    strum::IntoStaticStr,
    utoipa::ToSchema,
)]
#[serde(rename_all = "lowercase")]
pub enum Limit {
    /// Nothing: it is as fast as work comes.
    #[default]
    Nothing,
    /// All slots are taken.
    Slots,
    /// The rate limit.
    Rate,
    /// Every provider is out of order.
    Provider,
    /// It is suspended.
    Suspended,
}

/// How one provider is.
#[derive(Debug, Clone, PartialEq, serde::Serialize, serde::Deserialize, utoipa::ToSchema)]
pub struct ProviderLoad {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Arc<str>,
    /// 1: in use, 0.5: being probed, 0: out of order.
    pub state: f64,
}

/// How a channel is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Load {
    /// Deliveries that its pods hold and have not begun, by class.
    pub waiting: [usize; Priority::COUNT],
    /// Age of the oldest of them, by class.
    pub oldest: [Option<Duration>; Priority::COUNT],
    /// When the one of them was released that was released first; `None`: nothing is held.
    pub held_since: Option<Timestamp>,
    /// Sends per second, lately, by class.
    pub drain: [f64; Priority::COUNT],
    /// Sends per second that the rate limit allows; infinite: no limit.
    pub rate: f64,
    /// What holds it back.
    pub limit: Limit,
    /// Its providers, in order of preference.
    pub providers: Vec<ProviderLoad>,
    /// Pods that deliver.
    pub replicas: u32,
    /// Each of them, by name; none where a channel is worked off in the very process.
    pub pods: Vec<PodLoad>,
}

/// How one pod is.
#[derive(Debug, Clone, PartialEq, serde::Serialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct PodLoad {
    /// Its name.
    #[schema(value_type = String)]
    pub name: Arc<str>,
    /// Deliveries that it holds and has not begun.
    pub held: usize,
    /// Deliveries per second that come to an end with it.
    pub sends_per_second: f64,
    /// What holds it back.
    pub limited_by: Limit,
}

impl Load {
    /// What the pods of a channel have told, taken together; `None`: there are none.
    pub fn of_pods(ticks: &[Tick], rate: f64) -> Option<Self> {
        let first = ticks.first()?;
        let mut load = Self {
            rate,
            replicas: ticks.len() as u32,
            limit: first.limit,
            ..Self::default()
        };
        for tick in ticks {
            for k in 0..Priority::COUNT {
                load.waiting[k] += tick.waiting[k];
                load.drain[k] += tick.drain[k];
                load.oldest[k] = load.oldest[k].max(tick.oldest[k].map(Duration::from_millis));
            }
            load.held_since = load.held_since.into_iter().chain(tick.held_since).min();
            // As long as one of them gets on, no provider holds back the channel.
            if rank(tick.limit) < rank(load.limit) {
                load.limit = tick.limit;
            }
            for told in &tick.providers {
                let known = load.providers.iter_mut();
                match known.into_iter().find(|known| known.name == told.name) {
                    Some(known) => known.state = known.state.max(told.state),
                    None => load.providers.push(told.clone()),
                }
            }
            load.pods.push(PodLoad {
                name: Arc::clone(&tick.pod),
                held: tick.waiting.iter().sum(),
                sends_per_second: tick.drain.iter().sum(),
                limited_by: tick.limit,
            });
        }
        load.pods.sort_by(|one, other| one.name.cmp(&other.name));
        Some(load)
    }

    /// Sends per second of all classes, lately.
    pub fn sends_per_second(&self) -> f64 {
        self.drain.iter().sum()
    }

    /// How long what is held will take, in seconds.
    pub fn seconds_ahead(&self) -> f64 {
        let waiting = self.waiting.iter().sum::<usize>() as f64;
        if waiting == 0.0 {
            return 0.0;
        }
        let drain = self.sends_per_second();
        let speed = if drain > 0.0 {
            drain.min(self.rate)
        } else {
            self.rate.min(1000.0)
        };
        if self.limit == Limit::Provider || self.limit == Limit::Suspended {
            f64::INFINITY
        } else {
            waiting / speed
        }
    }

    /// Whether no provider may be asked now.
    pub fn is_stopped(&self) -> bool {
        !self.providers.is_empty() && self.providers.iter().all(|provider| provider.state < 1.0)
    }
}

/// Of several pods the one counts that is held back by what more pods would cure, then the freest.
const fn rank(limit: Limit) -> u8 {
    match limit {
        Limit::Slots => 0,
        Limit::Rate => 1,
        Limit::Nothing => 2,
        Limit::Provider => 3,
        Limit::Suspended => 4,
    }
}

/// How every channel is.
#[derive(Debug, Default)]
pub struct Loads(RwLock<HashMap<FullName, Arc<Load>>>);

impl Loads {
    /// How a channel is; `None` if nothing delivers for it.
    pub fn get(&self, channel: &str) -> Option<Arc<Load>> {
        self.0
            .read()
            .unwrap_or_else(PoisonError::into_inner)
            .get(channel)
            .cloned()
    }

    /// Says how a channel is.
    pub fn set(&self, channel: &FullName, load: Load) {
        let mut loads = self.0.write().unwrap_or_else(PoisonError::into_inner);
        loads.insert(Arc::clone(channel), Arc::new(load));
    }

    /// Nothing delivers for this channel any more.
    pub fn remove(&self, channel: &str) {
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(channel);
    }
}
