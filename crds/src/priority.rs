//! How urgent a notification is.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// How urgent a notification is: one class of the pipeline, one topic for each Channel.
///
/// The order is the order of service: `Critical` comes first and is class 0 of the scheduler.
#[derive(
    Debug,
    Clone,
    Copy,
    PartialEq,
    Eq,
    PartialOrd,
    Ord,
    Hash,
    Default,
    Serialize,
    Deserialize,
    JsonSchema,
    strum::Display,
    strum::EnumString,
    strum::IntoStaticStr,
)]
#[serde(rename_all = "lowercase")]
#[strum(serialize_all = "lowercase")]
pub enum Priority {
    /// Must arrive in seconds whatever else goes on: password codes, outages.
    Critical,
    /// Waits for nothing but critical messages.
    High,
    /// What most messages are.
    #[default]
    Normal,
    /// Yields to everything: digests, campaigns.
    Low,
}

impl Priority {
    /// How many classes there are.
    pub const COUNT: usize = 4;

    /// Every class, the most urgent first: `ALL[p.index()] == p`.
    pub const ALL: [Self; Self::COUNT] = [Self::Critical, Self::High, Self::Normal, Self::Low];

    /// Its class number, 0 (critical) to 3 (low).
    pub const fn index(self) -> usize {
        self as usize
    }

    /// Its name in YAML, JSON, topics and metrics.
    pub fn as_str(self) -> &'static str {
        self.into()
    }
}
