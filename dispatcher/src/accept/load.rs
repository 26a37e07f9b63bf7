//! How busy channels are, as far as accepting needs to know.

use herald_crds::Priority;

use crate::deliver::load::Loads;
use crate::message::SystemState;

/// How busy channels are.
pub trait ChannelLoad: Send + Sync + 'static {
    /// How long what a channel (`namespace/name`) holds already will take, in seconds; `None`: nothing delivers for it.
    fn seconds_ahead(&self, channel: &str) -> Option<f64>;

    /// How Herald is, seen by a notification of this class for this channel.
    fn system_state(&self, channel: &str, priority: Priority) -> SystemState;
}

/// Nothing is ever busy.
#[derive(Debug, Clone, Copy, Default)]
pub struct Idle;

impl ChannelLoad for Idle {
    fn seconds_ahead(&self, _: &str) -> Option<f64> {
        Some(0.0)
    }

    fn system_state(&self, _: &str, _: Priority) -> SystemState {
        SystemState {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..SystemState::default()
        }
    }
}

impl ChannelLoad for Loads {
    fn seconds_ahead(&self, channel: &str) -> Option<f64> {
        self.get(channel).map(|load| load.seconds_ahead())
    }

    fn system_state(&self, channel: &str, priority: Priority) -> SystemState {
        let idle = Idle.system_state(channel, priority);
        let Some(load) = self.get(channel) else {
            return idle;
        };
        let oldest = load.oldest[priority.index()].unwrap_or_default();
        let in_use = load.providers.iter().find(|provider| provider.state > 0.0);
        SystemState {
            backlog: load.waiting[priority.index()] as u64,
            oldest_age_milliseconds: oldest.as_millis() as u64,
            provider: in_use.map(|provider| provider.name.to_string()),
            replicas: load.replicas,
            ..idle
        }
    }
}
