//! What topics, subscriptions, labels and child objects are called. Nobody else says so.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use crate::Priority;

/// The namespace of the request topics.
pub const SYSTEM_NAMESPACE: &str = "herald-system";

/// Annotation with the value `disabled`: the operator leaves the resource alone.
pub const RECONCILE: &str = "herald.dev/reconcile";
/// Annotation with a time: the operator looks at the resource again.
pub const RECONCILE_AT: &str = "herald.dev/reconcile-at";
/// Annotation of a Channel with the value `true`: its Pulsar namespace is taken over from whoever it belongs to.
pub const ADOPT: &str = "herald.dev/adopt";
/// Annotation of what the operator applies: a hash of what it applied.
pub const APPLIED: &str = "herald.dev/applied";
/// Annotation of a Deployment: a hash of its pods' template, so that it is known beforehand what rolls.
pub const POD_TEMPLATE: &str = "herald.dev/pod-template";
/// Property of a Pulsar namespace: the uid of the Kubernetes cluster (of its namespace `kube-system`) it belongs to.
pub const CLUSTER_PROPERTY: &str = "herald.dev/cluster-uid";
/// Property of a Pulsar namespace: the uid of the Kubernetes namespace it belongs to.
pub const NAMESPACE_PROPERTY: &str = "herald.dev/namespace-uid";
/// Label with the value `true`: a Secret that may be mounted for providers.
pub const CREDENTIALS: &str = "herald.dev/credentials";
/// Label of everything that belongs to a Channel: its name.
pub const CHANNEL_LABEL: &str = "herald.dev/channel";
/// Finalizer of a Channel whose topics go with it.
pub const TOPICS_FINALIZER: &str = "herald.dev/topics";

/// Field manager of what the operator applies.
pub const FIELD_MANAGER: &str = "herald-operator";
/// Field manager of the statuses that the operator writes.
pub const STATUS_FIELD_MANAGER: &str = "herald-operator-status";
/// Field manager of the replicas of a Channel's Deployment.
pub const SCALE_FIELD_MANAGER: &str = "herald-operator-scale";

/// Subscription of the gateways to requests.
pub const PLAN_SUBSCRIPTION: &str = "plan";
/// Subscription of a Channel's pods to its class topics.
pub const DELIVER_SUBSCRIPTION: &str = "deliver";
/// Subscription of a Channel's pods to its relays.
pub const RELAY_SUBSCRIPTION: &str = "relay";
/// Subscription of the gateways to a Channel's events.
pub const RECORD_SUBSCRIPTION: &str = "record";

/// A topic by its full name, `namespace/topic`. Cheap to clone.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Topic(Arc<str>);

impl Topic {
    /// Its full name, `namespace/topic`.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Its namespace.
    pub fn namespace(&self) -> &str {
        self.0
            .split_once('/')
            .map_or("", |(namespace, _)| namespace)
    }

    /// Its name within its namespace.
    pub fn name(&self) -> &str {
        self.0.split_once('/').map_or(&*self.0, |(_, name)| name)
    }

    /// Whether it is a channel's events topic: read along by many, and kept for a while.
    pub fn is_events(&self) -> bool {
        self.0.ends_with(".events")
    }

    /// What it is for; `Some` for every topic that this module made.
    pub fn kind(&self) -> Option<TopicKind<'_>> {
        let (namespace, name) = self.0.split_once('/')?;
        let mut parts = name.split('.');
        let (first, second, last) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || second.is_empty() || namespace.is_empty() {
            return None;
        }
        match first {
            "requests" if namespace == SYSTEM_NAMESPACE => Some(TopicKind::Requests(
                second.parse().ok()?,
                last.parse().ok()?,
            )),
            "ch" => Some(if last == EVENTS {
                TopicKind::Events(second)
            } else if let Ok(relay) = last.parse() {
                TopicKind::Relay(second, relay)
            } else {
                TopicKind::Deliveries(second, last.parse().ok()?)
            }),
            _ => None,
        }
    }
}

impl fmt::Display for Topic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl FromStr for Topic {
    type Err = UnknownTopic;

    fn from_str(text: &str) -> Result<Self, UnknownTopic> {
        let topic = Self(text.into());
        match topic.kind() {
            Some(_) => Ok(topic),
            None => Err(UnknownTopic(text.to_owned())),
        }
    }
}

/// A text that names no topic.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("no topic is called {0:?}")]
pub struct UnknownTopic(String);

/// What a topic is for. Channels are those of the topic's namespace, by name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum TopicKind<'a> {
    /// Requests of a class, to be planned.
    Requests(Path, Priority),
    /// A channel's deliveries of a class, to be sent.
    Deliveries(&'a str, Priority),
    /// A channel's deliveries that come back later.
    Relay(&'a str, Relay),
    /// What happened to a channel's deliveries.
    Events(&'a str),
}

/// Which way a request takes.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, strum::Display, strum::EnumString, strum::IntoStaticStr,
)]
#[strum(serialize_all = "lowercase")]
pub enum Path {
    /// Straight on, without SQL.
    Direct,
    /// Through the waiting room.
    Stored,
}

impl Path {
    /// Both.
    pub const ALL: [Self; 2] = [Self::Direct, Self::Stored];
}

/// A topic from which deliveries are copied back to their class topic when they are due.
#[derive(
    Debug, Clone, Copy, PartialEq, Eq, Hash, strum::Display, strum::EnumString, strum::IntoStaticStr,
)]
pub enum Relay {
    /// After five seconds.
    #[strum(serialize = "retry-5s")]
    FiveSeconds,
    /// After thirty seconds.
    #[strum(serialize = "retry-30s")]
    ThirtySeconds,
}

impl Relay {
    /// Both, the shorter first.
    pub const ALL: [Self; 2] = [Self::FiveSeconds, Self::ThirtySeconds];
}

const EVENTS: &str = "events";

/// The topic of the requests of a class.
pub fn requests(path: Path, priority: Priority) -> Topic {
    Topic(format!("{SYSTEM_NAMESPACE}/requests.{path}.{priority}").into())
}

/// Every topic of requests, eight of them.
pub fn all_requests() -> impl Iterator<Item = Topic> {
    Path::ALL
        .into_iter()
        .flat_map(|path| Priority::ALL.map(|class| requests(path, class)))
}

/// A channel's topic of deliveries of a class. `channel` is its full name, `namespace/name`.
pub fn deliveries(channel: &str, priority: Priority) -> Topic {
    of_channel(channel, priority.as_str())
}

/// A channel's relay. `channel` is its full name, `namespace/name`.
pub fn relay(channel: &str, relay: Relay) -> Topic {
    of_channel(channel, relay.into())
}

/// A channel's relays: 0 for the first of the [`RETRY_DELAYS`](crate::channel::RETRY_DELAYS), 1 for the second.
pub fn relays(channel: &str) -> [Topic; 2] {
    Relay::ALL.map(|which| relay(channel, which))
}

/// A channel's topic of events.
pub fn events(channel: &str) -> Topic {
    of_channel(channel, EVENTS)
}

/// A channel's seven topics: the classes in order, the relays, the events.
pub fn of(channel: &str) -> [Topic; 7] {
    let [critical, high, normal, low] = Priority::ALL.map(|class| deliveries(channel, class));
    let [five, thirty] = relays(channel);
    [critical, high, normal, low, five, thirty, events(channel)]
}

fn of_channel(channel: &str, what: &str) -> Topic {
    let (namespace, name) = channel.split_once('/').unwrap_or(("", channel));
    Topic(format!("{namespace}/ch.{name}.{what}").into())
}

/// The subscription that a topic has from its beginning; `None` for what is no topic of Herald's.
pub fn subscription(topic: &Topic) -> Option<&'static str> {
    Some(match topic.kind()? {
        TopicKind::Requests(..) => PLAN_SUBSCRIPTION,
        TopicKind::Deliveries(..) => DELIVER_SUBSCRIPTION,
        TopicKind::Relay(..) => RELAY_SUBSCRIPTION,
        TopicKind::Events(_) => RECORD_SUBSCRIPTION,
    })
}

/// What a pod of a channel may do with each of its topics, and nothing else: whether it produces, and whether it consumes.
///
/// All of both: class topics take what relays give back, relays what failed, and events are told and read along.
pub fn grants(channel: &str) -> [(Topic, bool, bool); 7] {
    of(channel).map(|topic| (topic, true, true))
}

/// What a channel's Deployment, service account and other objects are called; at most 47 characters.
///
/// `name` is the channel's own, without its namespace, in which these objects are.
pub fn child(name: &str) -> String {
    format!("herald-{name}")
}

/// What a channel's immutable object is called whose content has this hash; at most 56 characters.
pub fn hashed_child(name: &str, hash: &str) -> String {
    let hash = hash.get(..8).unwrap_or(hash);
    format!("herald-{name}-{hash}")
}

/// Selector of everything that the operator makes for channels.
pub const CHILDREN_SELECTOR: &str = "app.kubernetes.io/managed-by=herald,herald.dev/channel";

/// Labels that select a channel's pods among those of its namespace.
pub fn pod_labels(name: &str) -> [(&'static str, String); 3] {
    [
        ("app.kubernetes.io/name", "herald-deliver".to_owned()),
        ("app.kubernetes.io/managed-by", "herald".to_owned()),
        (CHANNEL_LABEL, name.to_owned()),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_channel_has_seven_topics_that_say_what_they_are() {
        let topics = of("shop/mail");
        assert_eq!(
            topics.each_ref().map(Topic::as_str),
            [
                "shop/ch.mail.critical",
                "shop/ch.mail.high",
                "shop/ch.mail.normal",
                "shop/ch.mail.low",
                "shop/ch.mail.retry-5s",
                "shop/ch.mail.retry-30s",
                "shop/ch.mail.events",
            ]
        );
        let kinds = topics.each_ref().map(|topic| topic.kind().unwrap());
        assert_eq!(kinds[1], TopicKind::Deliveries("mail", Priority::High));
        assert_eq!(kinds[5], TopicKind::Relay("mail", Relay::ThirtySeconds));
        assert_eq!(kinds[6], TopicKind::Events("mail"));
        assert_eq!(topics.iter().filter(|topic| topic.is_events()).count(), 1);
    }

    #[test]
    fn the_system_has_eight_topics_of_requests() {
        let all: Vec<_> = all_requests().collect();
        assert_eq!(all.len(), 8);
        assert_eq!(all[0].as_str(), "herald-system/requests.direct.critical");
        let kind = TopicKind::Requests(Path::Stored, Priority::Low);
        assert_eq!(all[7].kind(), Some(kind));
    }

    #[test]
    fn every_topic_has_its_subscription() {
        let topics = all_requests().chain(of("shop/mail"));
        let names: Vec<_> = topics.map(|topic| subscription(&topic).unwrap()).collect();
        let count = |name| names.iter().filter(|other| **other == name).count();
        assert_eq!(
            ["plan", "deliver", "relay", "record"].map(count),
            [8, 4, 2, 1]
        );
    }

    #[test]
    fn topics_survive_being_written_and_read() {
        for topic in all_requests().chain(of("shop/mail")) {
            assert_eq!(topic.to_string().parse(), Ok(topic));
        }
        for bad in [
            "",
            "requests.direct.high",
            "herald-system/requests",
            "herald-system/requests.direct.urgent",
            "shop/requests.direct.high",
            "shop/ch.mail",
            "shop/ch..high",
            "shop/ch.mail.high.x",
            "/ch.mail.high",
        ] {
            assert!(bad.parse::<Topic>().is_err(), "{bad}");
        }
    }

    #[test]
    fn the_longest_names_fit_into_kubernetes() {
        let name = "a".repeat(40);
        assert_eq!(child(&name).len(), 47);
        assert_eq!(hashed_child(&name, &"0".repeat(64)).len(), 56);
    }

    #[test]
    fn relays_are_called_by_the_two_shortest_delays_of_a_retry() {
        for (relay, delay) in Relay::ALL.into_iter().zip(crate::channel::RETRY_DELAYS) {
            assert_eq!(relay.to_string(), format!("retry-{}s", delay.as_secs()));
        }
    }
}
