//! Topics, what they keep, and their subscriptions.

use std::fmt;

use herald_crds::names::Topic;
use reqwest::{Method, StatusCode};
use serde::{Deserialize, Serialize};

use super::Made;
use super::client::PulsarAdmin;
use super::error::AdminError;
use super::namespaces::{gone, made};

/// A topic as Pulsar calls it: `persistent://tenant/namespace/topic`.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct TopicName {
    tenant: String,
    topic: Topic,
}

impl TopicName {
    /// One of Herald's topics in the tenant it lives in.
    pub fn new(tenant: &str, topic: &Topic) -> Self {
        Self {
            tenant: tenant.to_owned(),
            topic: topic.clone(),
        }
    }

    /// Its namespace, `tenant/namespace`.
    pub fn namespace(&self) -> String {
        format!("{}/{}", self.tenant, self.topic.namespace())
    }

    /// Where the admin API has it.
    pub(super) fn path(&self) -> String {
        format!("persistent/{}/{}", self.tenant, self.topic)
    }
}

impl fmt::Display for TopicName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "persistent://{}/{}", self.tenant, self.topic)
    }
}

/// How long a topic keeps what is acknowledged.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Retention {
    /// For so many minutes; −1: for ever.
    #[serde(rename = "retentionTimeInMinutes")]
    pub minutes: i32,
    /// At most so many megabytes; −1: any number.
    #[serde(rename = "retentionSizeInMB")]
    pub megabytes: i64,
}

/// How much a topic may have waiting; beyond that producers are refused. Nothing is ever deleted for it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct BacklogQuota {
    /// Bytes.
    pub bytes: u64,
}

/// How a topic behaves, beside what its namespace says. `None` leaves it as it is.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct TopicPolicy {
    /// How long it keeps what is acknowledged.
    pub retention: Option<Retention>,
    /// How much it may have waiting.
    pub backlog_quota: Option<BacklogQuota>,
}

impl PulsarAdmin {
    /// The topics of a namespace, `tenant/namespace`, by their names within it; none if there is no such namespace.
    pub async fn topics(&self, namespace: &str) -> Result<Vec<String>, AdminError> {
        let path = format!("persistent/{namespace}/partitioned");
        let prefix = format!("persistent://{namespace}/");
        match self.get::<Vec<String>>(&path).await {
            Ok(topics) => Ok(topics
                .iter()
                .filter_map(|topic| topic.strip_prefix(&prefix))
                .map(str::to_owned)
                .collect()),
            Err(error) if error.is(StatusCode::NOT_FOUND) => Ok(Vec::new()),
            Err(source) => Err(AdminError::ListTopics {
                namespace: namespace.to_owned(),
                source,
            }),
        }
    }

    /// How many partitions a topic has; `None` if there is no such topic.
    pub async fn partitions(&self, topic: &TopicName) -> Result<Option<u32>, AdminError> {
        #[derive(Deserialize)]
        struct Metadata {
            partitions: u32,
        }
        match self
            .get::<Metadata>(&format!("{}/partitions", topic.path()))
            .await
        {
            Ok(Metadata { partitions: 0 }) => Ok(None),
            Ok(Metadata { partitions }) => Ok(Some(partitions)),
            Err(error) if error.is(StatusCode::NOT_FOUND) => Ok(None),
            Err(source) => Err(AdminError::CreateTopic {
                topic: topic.to_string(),
                source,
            }),
        }
    }

    /// Makes a topic with so many partitions, or gives an existing one more; it never loses any.
    ///
    /// Also a topic of one partition is a partitioned one: another kind could not grow.
    pub async fn create_topic(
        &self,
        topic: &TopicName,
        partitions: u32,
    ) -> Result<Made, AdminError> {
        let path = format!("{}/partitions", topic.path());
        let partitions = partitions.max(1);
        let failed = |source| AdminError::CreateTopic {
            topic: topic.to_string(),
            source,
        };
        let outcome = made(self.send(Method::PUT, &path, Some(&partitions)).await);
        let made = outcome.map_err(failed)?;
        if made == Made::Existed && self.partitions(topic).await?.unwrap_or(0) < partitions {
            self.send(Method::POST, &path, Some(&partitions))
                .await
                .map_err(failed)?;
        }
        Ok(made)
    }

    /// Deletes a topic with everything in it, its subscriptions and whoever uses it; none is fine.
    pub async fn delete_topic(&self, topic: &TopicName) -> Result<(), AdminError> {
        let path = format!("{}/partitions?force=true", topic.path());
        gone(self.send(Method::DELETE, &path, None::<&()>).await).map_err(|source| {
            AdminError::DeleteTopic {
                topic: topic.to_string(),
                source,
            }
        })
    }

    /// Has the brokers take a topic over anew, as when it moves from one to another. None is fine.
    pub async fn unload_topic(&self, topic: &TopicName) -> Result<(), AdminError> {
        let path = format!("{}/unload", topic.path());
        gone(self.send(Method::PUT, &path, None::<&()>).await).map_err(|source| {
            AdminError::UnloadTopic {
                topic: topic.to_string(),
                source,
            }
        })
    }

    /// Makes a subscription that begins with the oldest message, unless there is one already.
    ///
    /// Whoever makes a topic makes its subscriptions: without one a message is gone at once.
    pub async fn create_subscription(
        &self,
        topic: &TopicName,
        subscription: &str,
    ) -> Result<Made, AdminError> {
        let path = format!("{}/subscription/{subscription}", topic.path());
        let earliest = serde_json::json!({"ledgerId": -1, "entryId": -1, "partitionIndex": -1});
        made(self.send(Method::PUT, &path, Some(&earliest)).await).map_err(|source| {
            AdminError::CreateSubscription {
                subscription: subscription.to_owned(),
                topic: topic.to_string(),
                source,
            }
        })
    }

    /// A topic's subscriptions, by name; none if there is no such topic.
    pub async fn subscriptions(&self, topic: &TopicName) -> Result<Vec<String>, AdminError> {
        let path = format!("{}/subscriptions", topic.path());
        match self.get(&path).await {
            Ok(subscriptions) => Ok(subscriptions),
            Err(error) if error.is(StatusCode::NOT_FOUND) => Ok(Vec::new()),
            Err(source) => Err(AdminError::ListSubscriptions {
                topic: topic.to_string(),
                source,
            }),
        }
    }

    /// How long a topic keeps what is acknowledged, by a policy of its own; `None`: it has none.
    pub async fn retention(&self, topic: &TopicName) -> Result<Option<Retention>, AdminError> {
        self.read_policy(topic, "retention", "retention").await
    }

    /// How much a topic may have waiting, by a policy of its own; `None`: it has none.
    pub async fn backlog_quota(
        &self,
        topic: &TopicName,
    ) -> Result<Option<BacklogQuota>, AdminError> {
        #[derive(Deserialize)]
        #[serde(rename_all = "camelCase")]
        struct Quota {
            limit_size: Option<i64>,
        }
        let quotas: Option<std::collections::BTreeMap<String, Quota>> = self
            .read_policy(topic, "backlog quota", "backlogQuotaMap")
            .await?;
        let quota = quotas.and_then(|quotas| quotas.get("destination_storage")?.limit_size);
        Ok(quota
            .and_then(|bytes| u64::try_from(bytes).ok())
            .map(|bytes| BacklogQuota { bytes }))
    }

    /// A policy that was never set is answered with nothing at all.
    async fn read_policy<T: serde::de::DeserializeOwned>(
        &self,
        topic: &TopicName,
        policy: &'static str,
        path: &str,
    ) -> Result<Option<T>, AdminError> {
        let path = format!("{}/{path}", topic.path());
        let failed = |source| AdminError::ReadPolicy {
            topic: topic.to_string(),
            policy,
            source,
        };
        match self.send(Method::GET, &path, None::<&()>).await {
            Ok(answer) if answer.is_empty() => Ok(None),
            Ok(answer) => serde_json::from_slice(&answer).map_err(|error| {
                failed(super::error::RequestError::Decode {
                    reason: error.to_string(),
                })
            }),
            Err(error) if error.is(StatusCode::NOT_FOUND) => Ok(None),
            Err(source) => Err(failed(source)),
        }
    }

    /// Makes a topic behave as `policy` says.
    pub async fn set_policy(
        &self,
        topic: &TopicName,
        policy: &TopicPolicy,
    ) -> Result<(), AdminError> {
        let TopicPolicy {
            retention,
            backlog_quota,
        } = policy;
        if let Some(retention) = retention {
            self.post_policy(topic, "retention", "retention", retention)
                .await?;
        }
        if let Some(BacklogQuota { bytes }) = backlog_quota {
            let body = serde_json::json!({
                "limitSize": bytes,
                "limitTime": -1,
                "policy": "producer_exception",
            });
            let path = "backlogQuota?backlogQuotaType=destination_storage";
            self.post_policy(topic, "backlog quota", path, &body)
                .await?;
        }
        Ok(())
    }

    async fn post_policy(
        &self,
        topic: &TopicName,
        policy: &'static str,
        path: &str,
        body: &(impl Serialize + Sync),
    ) -> Result<(), AdminError> {
        let path = format!("{}/{path}", topic.path());
        self.send(Method::POST, &path, Some(body))
            .await
            .map(drop)
            .map_err(|source| AdminError::SetPolicy {
                topic: topic.to_string(),
                policy,
                source,
            })
    }
}
