//! What Herald needs of a cluster before anything moves: its topics with their subscriptions and policies.

use std::time::Duration;

use herald_crds::names::{self, Topic, TopicKind};

use super::client::PulsarAdmin;
use super::error::AdminError;
use super::namespaces::Action;
use super::topics::{BacklogQuota, Retention, TopicName, TopicPolicy};

/// How much of each class of requests may wait: beyond that accepting answers 503.
const REQUESTS: BacklogQuota = BacklogQuota {
    bytes: 2 * 1024 * 1024 * 1024,
};

impl PulsarAdmin {
    /// Makes the namespace of the requests in a tenant that exists, and their topics, with so many partitions each.
    ///
    /// `role` may use all of it; `None`: whoever is granted it elsewhere.
    pub async fn provide_requests(
        &self,
        tenant: &str,
        clusters: &[String],
        partitions: u32,
        role: Option<&str>,
    ) -> Result<(), AdminError> {
        let namespace = format!("{tenant}/{}", names::SYSTEM_NAMESPACE);
        self.provide_namespace(&namespace, clusters, role).await?;
        for topic in names::all_requests() {
            self.provide_topic(tenant, &topic, partitions, Duration::ZERO)
                .await?;
        }
        Ok(())
    }

    /// Makes the seven topics of a Channel, by its full name, and their namespace, in a tenant that exists.
    ///
    /// `horizon` is for how long pods look back on what became of deliveries.
    pub async fn provide_channel(
        &self,
        tenant: &str,
        clusters: &[String],
        channel: &str,
        partitions: u32,
        horizon: Duration,
        role: Option<&str>,
    ) -> Result<(), AdminError> {
        let topics = names::of(channel);
        let namespace = TopicName::new(tenant, &topics[0]).namespace();
        self.provide_namespace(&namespace, clusters, role).await?;
        for topic in &topics {
            let partitions = partitions_of(topic, partitions);
            self.provide_topic(tenant, topic, partitions, horizon)
                .await?;
        }
        Ok(())
    }

    async fn provide_namespace(
        &self,
        namespace: &str,
        clusters: &[String],
        role: Option<&str>,
    ) -> Result<(), AdminError> {
        self.create_namespace(namespace, clusters).await?;
        if let Some(role) = role {
            self.grant(namespace, role, &[Action::Produce, Action::Consume])
                .await?;
        }
        Ok(())
    }

    async fn provide_topic(
        &self,
        tenant: &str,
        topic: &Topic,
        partitions: u32,
        horizon: Duration,
    ) -> Result<(), AdminError> {
        let name = TopicName::new(tenant, topic);
        self.create_topic(&name, partitions).await?;
        if let Some(subscription) = names::subscription(topic) {
            self.create_subscription(&name, subscription).await?;
        }
        self.set_policy(&name, &policy(topic, horizon)).await
    }
}

/// How many partitions a Channel's topic has whose class topics have `partitions`.
pub fn partitions_of(topic: &Topic, partitions: u32) -> u32 {
    match topic.kind() {
        Some(TopicKind::Deliveries(..)) => partitions,
        // A tail follows one partition, and a relay is too slow to need more.
        _ => 1,
    }
}

/// How a topic of Herald's behaves; `horizon` is for how long pods look back on what became of deliveries.
pub fn policy(topic: &Topic, horizon: Duration) -> TopicPolicy {
    match topic.kind() {
        Some(TopicKind::Requests(..)) => TopicPolicy {
            retention: None,
            backlog_quota: Some(REQUESTS),
        },
        // A pod that starts reads the last of it, and whole minutes are all that can be said.
        Some(TopicKind::Events(_)) => TopicPolicy {
            retention: Some(Retention {
                minutes: i32::try_from(horizon.as_secs().div_ceil(60) + 1).unwrap_or(i32::MAX),
                megabytes: -1,
            }),
            backlog_quota: None,
        },
        _ => TopicPolicy::default(),
    }
}
