//! How a channel is: what its deliver pods would say in a tick.

use std::collections::HashMap;
use std::sync::{Arc, PoisonError, RwLock};
use std::time::Duration;

use herald_crds::Priority;
use jiff::Timestamp;

use crate::id::FullName;

/// What holds a channel back.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    Default,
    serde::Serialize,
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
#[derive(Debug, Clone, PartialEq, serde::Serialize, utoipa::ToSchema)]
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
    /// Sends per second, lately.
    pub drain: f64,
    /// Sends per second that the rate limit allows; infinite: no limit.
    pub rate: f64,
    /// What holds it back.
    pub limit: Limit,
    /// Its providers, in order of preference.
    pub providers: Vec<ProviderLoad>,
    /// Pods that deliver.
    pub replicas: u32,
}

impl Load {
    /// How long what is held will take, in seconds.
    pub fn seconds_ahead(&self) -> f64 {
        let waiting = self.waiting.iter().sum::<usize>() as f64;
        if waiting == 0.0 {
            return 0.0;
        }
        let speed = if self.drain > 0.0 {
            self.drain.min(self.rate)
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
