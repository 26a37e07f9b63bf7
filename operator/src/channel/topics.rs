//! What is to be done in Pulsar so that a Channel's topics are as they should be. Pure; and doing it.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use herald_crds::names::{self, Topic};
use tokio::sync::Mutex;

use super::dereference::{Properties, Seen, SeenTopic, Uids};
use crate::pulsar_admin::{
    Action, AdminError, Permissions, PulsarAdmin, TopicName, TopicPolicy, partitions_of, policy,
};

/// Topics that are worked on at once.
const AT_ONCE: usize = 4;

/// What topics of a namespace should be like.
#[derive(Debug, Clone, PartialEq)]
pub struct Wanted {
    /// `tenant/namespace`.
    pub namespace: String,
    /// To whom the namespace belongs.
    pub owner: Properties,
    /// Who may use the whole namespace.
    pub gateway_role: Option<String>,
    /// The topics.
    pub topics: Vec<WantedTopic>,
}

/// What one topic should be like.
#[derive(Debug, Clone, PartialEq)]
pub struct WantedTopic {
    /// Which one.
    pub topic: Topic,
    /// How many partitions it has at the least.
    pub partitions: u32,
    /// How it behaves.
    pub policy: TopicPolicy,
    /// Who may do what with it.
    pub grant: Option<(String, Vec<Action>)>,
}

/// What a Channel's topics should be like.
pub fn of_channel(
    tenant: &str,
    channel: &str,
    partitions: u32,
    horizon: Duration,
    (gateway_role, role): (Option<&str>, Option<&str>),
    uids: &Uids,
) -> Wanted {
    let namespace = channel
        .split_once('/')
        .map_or("", |(namespace, _)| namespace);
    let topics = names::grants(channel).map(|(topic, produces, consumes)| {
        let actions = [
            produces.then_some(Action::Produce),
            consumes.then_some(Action::Consume),
        ];
        let actions = actions.into_iter().flatten().collect();
        WantedTopic {
            partitions: partitions_of(&topic, partitions),
            policy: policy(&topic, horizon),
            grant: role.map(|role| (role.to_owned(), actions)),
            topic,
        }
    });
    Wanted {
        namespace: format!("{tenant}/{namespace}"),
        owner: uids.properties(),
        gateway_role: gateway_role.map(str::to_owned),
        topics: topics.into(),
    }
}

/// What the topics of requests should be like, in the cluster with this uid.
pub fn of_requests(
    tenant: &str,
    partitions: u32,
    gateway_role: Option<&str>,
    cluster: &str,
) -> Wanted {
    let topics = names::all_requests().map(|topic| WantedTopic {
        partitions,
        policy: policy(&topic, Duration::ZERO),
        grant: None,
        topic,
    });
    Wanted {
        namespace: format!("{tenant}/{}", names::SYSTEM_NAMESPACE),
        owner: [(names::CLUSTER_PROPERTY.to_owned(), cluster.to_owned())].into(),
        gateway_role: gateway_role.map(str::to_owned),
        topics: topics.collect(),
    }
}

/// What is to be done.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Plan {
    /// `tenant/namespace`.
    pub namespace: String,
    /// Whether the namespace is to be made.
    pub create: bool,
    /// Whose it becomes; empty: whose it is.
    pub properties: Properties,
    /// Who is to be let into the whole namespace.
    pub grant: Option<String>,
    /// What is to be done with topics; those that are as they should be are not in it.
    pub topics: Vec<TopicPlan>,
}

/// What is to be done with a topic.
#[derive(Debug, Clone, PartialEq)]
pub struct TopicPlan {
    /// Which one.
    pub topic: Topic,
    /// It is to be made, or to grow, to so many partitions.
    pub partitions: Option<u32>,
    /// A subscription is missing.
    pub subscription: Option<&'static str>,
    /// It is to behave so.
    pub policy: Option<TopicPolicy>,
    /// Somebody is to be let in.
    pub grant: Option<(String, Vec<Action>)>,
}

impl Plan {
    /// Whether there is nothing to be done.
    pub fn is_empty(&self) -> bool {
        !self.create && self.properties.is_empty() && self.grant.is_none() && self.topics.is_empty()
    }
}

/// Compares what should be with what is.
pub fn plan(wanted: &Wanted, seen: &Seen) -> Plan {
    let is = |(name, uid): &(&String, &String)| {
        let seen = seen.properties.as_ref().and_then(|seen| seen.get(*name));
        seen == Some(*uid)
    };
    let properties = if wanted.owner.iter().all(|owner| is(&owner)) {
        Properties::default()
    } else {
        wanted.owner.clone()
    };
    let both = [Action::Produce, Action::Consume];
    let grant = wanted.gateway_role.clone();
    Plan {
        namespace: wanted.namespace.clone(),
        create: seen.properties.is_none(),
        properties,
        grant: grant.filter(|role| !may(&seen.permissions, role, &both)),
        topics: wanted
            .topics
            .iter()
            .filter_map(|wanted| plan_topic(wanted, seen.topics.get(&wanted.topic)))
            .collect(),
    }
}

fn plan_topic(wanted: &WantedTopic, seen: Option<&SeenTopic>) -> Option<TopicPlan> {
    let WantedTopic {
        topic,
        partitions,
        policy,
        grant,
    } = wanted;
    let usual = SeenTopic::default();
    let is_new = seen.is_none();
    let seen = seen.unwrap_or(&usual);
    let subscription = names::subscription(topic);
    let as_wanted = (policy.retention.is_none() || policy.retention == seen.retention)
        && (policy.backlog_quota.is_none() || policy.backlog_quota == seen.backlog_quota);
    let plan = TopicPlan {
        topic: topic.clone(),
        partitions: (is_new || seen.partitions < *partitions).then_some(*partitions),
        subscription: subscription.filter(|name| !seen.subscriptions.iter().any(|s| s == name)),
        policy: (!as_wanted).then_some(*policy),
        grant: grant
            .clone()
            .filter(|(role, actions)| !may(&seen.permissions, role, actions)),
    };
    let is_needed = plan.partitions.is_some()
        || plan.subscription.is_some()
        || plan.policy.is_some()
        || plan.grant.is_some();
    is_needed.then_some(plan)
}

fn may(permissions: &Permissions, role: &str, actions: &[Action]) -> bool {
    let granted = permissions.get(role);
    granted.is_some_and(|granted| actions.iter().all(|action| granted.contains(action)))
}

/// Does it, and counts what was written with `wrote`.
///
/// What roles may do is written one after the other, whoever holds `turn`: it is one record for a whole namespace, and
/// of several who change it at once Pulsar has all but one wait, ever longer.
pub async fn carry_out(
    admin: &PulsarAdmin,
    tenant: &str,
    clusters: &[String],
    plan: &Plan,
    turn: &Mutex<()>,
    wrote: &(dyn Fn() + Sync),
) -> Result<(), AdminError> {
    if plan.is_empty() {
        return Ok(());
    }
    carry_out_namespace(admin, clusters, plan, turn, wrote).await?;
    for topic in &plan.topics {
        if let Some(partitions) = topic.partitions {
            let name = TopicName::new(tenant, &topic.topic);
            admin.create_topic(&name, partitions).await?;
            wrote();
        }
    }
    grant(admin, tenant, plan, turn, wrote).await?;
    // Owned ones: a closure over borrowed ones is one for all lifetimes, which the compiler does not see.
    stream::iter(plan.topics.clone())
        .map(|topic| furnish(admin, tenant, topic, wrote))
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<()>>()
        .await?;
    Ok(())
}

/// Lets everybody in who is to be.
async fn grant(
    admin: &PulsarAdmin,
    tenant: &str,
    plan: &Plan,
    turn: &Mutex<()>,
    wrote: &(dyn Fn() + Sync),
) -> Result<(), AdminError> {
    let mut by_role: BTreeMap<&str, Vec<(TopicName, Vec<Action>)>> = BTreeMap::new();
    for topic in &plan.topics {
        if let Some((role, actions)) = &topic.grant {
            let name = TopicName::new(tenant, &topic.topic);
            by_role
                .entry(role)
                .or_default()
                .push((name, actions.clone()));
        }
    }
    if by_role.is_empty() {
        return Ok(());
    }
    let _mine = turn.lock().await;
    for (role, topics) in by_role {
        admin.grant_topics(role, &topics).await?;
        wrote();
    }
    Ok(())
}

async fn carry_out_namespace(
    admin: &PulsarAdmin,
    clusters: &[String],
    plan: &Plan,
    turn: &Mutex<()>,
    wrote: &(dyn Fn() + Sync),
) -> Result<(), AdminError> {
    let _mine = turn.lock().await;
    if plan.create {
        admin.create_namespace(&plan.namespace, clusters).await?;
        wrote();
    }
    if !plan.properties.is_empty() {
        admin
            .set_properties(&plan.namespace, &plan.properties)
            .await?;
        wrote();
    }
    if let Some(role) = &plan.grant {
        let both = [Action::Produce, Action::Consume];
        admin.grant(&plan.namespace, role, &both).await?;
        wrote();
    }
    Ok(())
}

/// Gives a topic that is there what it lacks.
async fn furnish(
    admin: &PulsarAdmin,
    tenant: &str,
    plan: TopicPlan,
    wrote: &(dyn Fn() + Sync),
) -> Result<(), AdminError> {
    let TopicPlan {
        topic,
        partitions: _,
        subscription,
        policy,
        grant: _,
    } = plan;
    let name = TopicName::new(tenant, &topic);
    if let Some(subscription) = subscription {
        admin.create_subscription(&name, subscription).await?;
        wrote();
    }
    if let Some(policy) = policy {
        admin.set_policy(&name, &policy).await?;
        wrote();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;
    use crate::pulsar_admin::Retention;

    fn uids() -> Uids {
        Uids {
            cluster: "c1".to_owned(),
            namespace: "n1".to_owned(),
        }
    }

    fn wanted(partitions: u32) -> Wanted {
        let roles = (Some("gateway"), Some("pod"));
        of_channel(
            "herald",
            "shop/mail",
            partitions,
            Duration::from_mins(15),
            roles,
            &uids(),
        )
    }

    /// As it is when `wanted` has been carried out.
    fn done(wanted: &Wanted) -> Seen {
        let both = BTreeSet::from([Action::Produce, Action::Consume]);
        let property = |name: &str, uid: &str| (name.to_owned(), uid.to_owned());
        let properties = [
            property(names::CLUSTER_PROPERTY, "c1"),
            property(names::NAMESPACE_PROPERTY, "n1"),
            property("theirs", "kept"),
        ];
        let topic = |topic: &WantedTopic| {
            let seen = SeenTopic {
                partitions: topic.partitions,
                subscriptions: names::subscription(&topic.topic)
                    .map(str::to_owned)
                    .into_iter()
                    .collect(),
                permissions: BTreeMap::from([("pod".to_owned(), both.clone())]),
                retention: topic.policy.retention,
                backlog_quota: None,
            };
            (topic.topic.clone(), seen)
        };
        Seen {
            properties: Some(properties.into()),
            permissions: BTreeMap::from([("gateway".to_owned(), both.clone())]),
            topics: wanted.topics.iter().map(topic).collect(),
        }
    }

    #[test]
    fn from_nothing_everything_is_made() {
        let plan = plan(&wanted(2), &Seen::default());
        assert!(plan.create);
        assert_eq!(plan.namespace, "herald/shop");
        assert_eq!(plan.properties, uids().properties());
        assert_eq!(plan.grant.as_deref(), Some("gateway"));
        let partitions: Vec<_> = plan.topics.iter().map(|t| t.partitions.unwrap()).collect();
        assert_eq!(partitions, [2, 2, 2, 2, 1, 1, 1]);
        assert!(
            plan.topics
                .iter()
                .all(|t| t.subscription.is_some() && t.grant.is_some())
        );
        let kept: Vec<_> = plan.topics.iter().filter(|t| t.policy.is_some()).collect();
        assert_eq!(kept.len(), 1);
        let minutes = kept[0].policy.unwrap().retention.unwrap().minutes;
        assert_eq!((kept[0].topic.name(), minutes), ("ch.mail.events", 16));
    }

    #[test]
    fn what_is_as_it_should_be_is_left_alone() {
        assert!(plan(&wanted(2), &done(&wanted(2))).is_empty());
        // A topic never loses partitions.
        assert!(plan(&wanted(1), &done(&wanted(2))).is_empty());
    }

    /// What somebody does to what is there.
    type Break = fn(&mut Seen, &Topic, &Topic);

    #[test]
    fn each_drift_is_repaired_by_itself() {
        let events = names::events("shop/mail");
        let critical = names::of("shop/mail")[0].clone();
        let repairs: [(&str, Break); 7] = [
            ("properties", |seen, _, _| {
                seen.properties.as_mut().unwrap().clear();
            }),
            ("gateway", |seen, _, _| seen.permissions.clear()),
            ("topic", |seen, critical, _| {
                drop(seen.topics.remove(critical));
            }),
            ("partitions", |seen, critical, _| {
                seen.topics.get_mut(critical).unwrap().partitions = 1;
            }),
            ("subscription", |seen, critical, _| {
                seen.topics.get_mut(critical).unwrap().subscriptions.clear();
            }),
            ("grant", |seen, critical, _| {
                seen.topics.get_mut(critical).unwrap().permissions.clear();
            }),
            ("retention", |seen, _, events| {
                let other = Retention {
                    minutes: 1,
                    megabytes: -1,
                };
                seen.topics.get_mut(events).unwrap().retention = Some(other);
            }),
        ];
        for (what, break_it) in repairs {
            let mut seen = done(&wanted(2));
            break_it(&mut seen, &critical, &events);
            let Plan {
                namespace: _,
                create,
                properties,
                grant,
                topics,
            } = plan(&wanted(2), &seen);
            let mut repaired = Vec::new();
            assert!(!create);
            repaired.extend((!properties.is_empty()).then_some("properties"));
            repaired.extend(grant.map(|_| "gateway"));
            for TopicPlan {
                topic,
                partitions,
                subscription,
                policy,
                grant,
            } in topics
            {
                let is_new = !seen.topics.contains_key(&topic);
                if is_new {
                    assert!(subscription.is_some() && grant.is_some());
                    repaired.push("topic");
                    continue;
                }
                repaired.extend(partitions.map(|_| "partitions"));
                repaired.extend(subscription.map(|_| "subscription"));
                repaired.extend(policy.map(|_| "retention"));
                repaired.extend(grant.map(|_| "grant"));
            }
            assert_eq!(repaired, [what]);
        }
    }

    #[test]
    fn requests_belong_to_no_kubernetes_namespace_and_only_gateways_use_them() {
        let wanted = of_requests("herald", 4, Some("gateway"), "c1");
        let plan = plan(&wanted, &Seen::default());
        assert_eq!(plan.namespace, "herald/herald-system");
        let owner = (names::CLUSTER_PROPERTY.to_owned(), "c1".to_owned());
        assert_eq!(plan.properties, Properties::from([owner]));
        assert_eq!(plan.topics.len(), 8);
        assert!(
            plan.topics
                .iter()
                .all(|t| t.grant.is_none() && t.partitions == Some(4))
        );
        assert!(
            plan.topics
                .iter()
                .all(|t| t.policy.unwrap().backlog_quota.is_some())
        );
    }
}
