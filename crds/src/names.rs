//! What topics are called. Nobody else says so.

use std::fmt;
use std::sync::Arc;

use crate::Priority;

/// The namespace of the request topics.
pub const SYSTEM_NAMESPACE: &str = "herald-system";

/// A topic by its full name, `namespace/topic`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(Arc<str>);

impl Topic {
    /// Its full name, `namespace/topic`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether it is a channel's events topic: read along by many, and kept for a while.
    pub fn is_events(&self) -> bool {
        self.0.ends_with(".events")
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Which way a request takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, strum::Display, strum::IntoStaticStr)]
#[strum(serialize_all = "lowercase")]
pub enum Path {
    /// Straight on, without SQL.
    Direct,
    /// Through the waiting room.
    Stored,
}

/// The topic of the requests of a class.
pub fn requests(path: Path, priority: Priority) -> Topic {
    Topic(format!("{SYSTEM_NAMESPACE}/requests.{path}.{priority}").into())
}

/// A channel's topic of deliveries of a class. `channel` is its full name, `namespace/name`.
pub fn deliveries(channel: &str, priority: Priority) -> Topic {
    of_channel(channel, priority.as_str())
}

/// A channel's relays: 0 for retries of 5 s, 1 for those of 30 s.
pub fn relays(channel: &str) -> [Topic; 2] {
    ["retry-5s", "retry-30s"].map(|relay| of_channel(channel, relay))
}

/// A channel's topic of events.
pub fn events(channel: &str) -> Topic {
    of_channel(channel, "events")
}

fn of_channel(channel: &str, what: &str) -> Topic {
    let (namespace, name) = channel.split_once('/').unwrap_or(("", channel));
    Topic(format!("{namespace}/ch.{name}.{what}").into())
}
