//! How a topic fares.

use std::collections::BTreeMap;

use reqwest::StatusCode;
use serde::Deserialize;

use super::TopicName;
use super::client::PulsarAdmin;
use super::error::AdminError;

/// How a topic fares, over all its partitions.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct TopicStats {
    /// Messages published since a broker took it over.
    #[serde(default)]
    pub msg_in_counter: u64,
    /// Bytes kept.
    #[serde(default)]
    pub storage_size: u64,
    /// Its subscriptions, by name.
    #[serde(default)]
    pub subscriptions: BTreeMap<String, SubscriptionStats>,
}

/// How a subscription fares.
#[derive(Debug, Clone, PartialEq, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct SubscriptionStats {
    /// Messages not acknowledged, those that are not due yet included.
    #[serde(default)]
    pub msg_backlog: i64,
    /// Of these, messages that are not due yet.
    #[serde(default)]
    pub msg_delayed: i64,
    /// Of these, messages that a consumer holds.
    #[serde(default)]
    pub unacked_messages: i64,
    /// When the oldest message of the backlog was published, in milliseconds since 1970; −1 or 0: there is none.
    #[serde(default)]
    pub earliest_msg_publish_time_in_backlog: i64,
    /// Who is connected.
    #[serde(default)]
    pub consumers: Vec<serde_json::Value>,
}

impl PulsarAdmin {
    /// How a topic fares; `None` if there is no such topic.
    pub async fn stats(&self, topic: &TopicName) -> Result<Option<TopicStats>, AdminError> {
        let path = format!(
            "{}/partitioned-stats?perPartition=false&getPreciseBacklog=true&getEarliestTimeInBacklog=true",
            topic.path()
        );
        match self.get(&path).await {
            Ok(stats) => Ok(Some(stats)),
            Err(error) if error.is(StatusCode::NOT_FOUND) => Ok(None),
            Err(source) => Err(AdminError::ReadStats {
                topic: topic.to_string(),
                source,
            }),
        }
    }
}
