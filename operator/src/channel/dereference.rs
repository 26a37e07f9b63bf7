//! What there is of a Channel: what it refers to, what was made for it, how it fares. Reads, and writes nothing.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use futures::{StreamExt as _, TryStreamExt as _, stream};
use herald_crds::names::{self, Topic};
use herald_crds::{Channel, ProviderSpec};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::ResourceExt as _;
use kube::core::PartialObjectMeta;
use tokio::time::Instant;

use super::plant::{Declared, Plant};
use crate::context::Context;
use crate::error::Error;
use crate::gateway::ChannelState;
use crate::pulsar_admin::{AdminError, BacklogQuota, Permissions, Retention, TopicName};
use crate::watch::get;

/// Topics of one Channel that are read at once.
const AT_ONCE: usize = 4;

/// A Channel whose number of pods the operator decides is asked after so often.
const SCALED: std::time::Duration = std::time::Duration::from_secs(4);

/// Any other.
const TOLD: std::time::Duration = std::time::Duration::from_secs(25);

/// What there is of a Channel.
#[derive(Debug, Default)]
pub struct Found {
    /// The uids of the cluster and of the Channel's namespace; `None`: they are not known yet.
    pub uids: Option<Uids>,
    /// The Secrets that it needs, with its pods' token for Pulsar.
    pub needed: BTreeSet<String>,
    /// Of these, those that are there, with the label.
    pub secrets: BTreeSet<String>,
    /// The `ConfigMaps` with certificates that it names and that are there.
    pub authorities: BTreeSet<String>,
    /// Its topics.
    pub topics: Topics,
    /// What was made for it.
    pub made: Made,
    /// How it fares, as the gateways tell; `None`: they do not.
    pub state: Option<ChannelState>,
}

/// To whom a Pulsar namespace belongs.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Uids {
    /// The uid of the namespace `kube-system`.
    pub cluster: String,
    /// The uid of the Channel's namespace.
    pub namespace: String,
}

/// What is written down about a Pulsar namespace.
pub type Properties = BTreeMap<String, String>;

impl Uids {
    /// As they are written down.
    pub fn properties(&self) -> Properties {
        let Self { cluster, namespace } = self;
        [
            (names::CLUSTER_PROPERTY.to_owned(), cluster.clone()),
            (names::NAMESPACE_PROPERTY.to_owned(), namespace.clone()),
        ]
        .into()
    }
}

/// A Channel's topics as they are.
#[derive(Debug, Clone, Default, PartialEq)]
pub enum Topics {
    /// All of them are there, and were as they should be less than ten minutes ago.
    #[default]
    Fine,
    /// They were looked at one by one.
    Seen(Seen),
}

/// What is in Pulsar.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct Seen {
    /// The namespace's properties; `None`: there is no namespace.
    pub properties: Option<BTreeMap<String, String>>,
    /// What roles may do in the whole namespace.
    pub permissions: Permissions,
    /// The topics that are there.
    pub topics: BTreeMap<Topic, SeenTopic>,
}

/// One topic as it is.
#[derive(Debug, Clone, Default, PartialEq)]
pub struct SeenTopic {
    /// How many partitions it has.
    pub partitions: u32,
    /// Its subscriptions.
    pub subscriptions: Vec<String>,
    /// What roles may do with it.
    pub permissions: Permissions,
    /// How long it keeps what is acknowledged; `None`: no longer than it must, or nobody cares.
    pub retention: Option<Retention>,
    /// How much it may have waiting; `None`: any amount, or nobody cares.
    pub backlog_quota: Option<BacklogQuota>,
}

/// What was made for a Channel in Kubernetes.
#[derive(Debug, Default)]
pub struct Made {
    /// Its pods.
    pub deployment: Option<Arc<Deployment>>,
    /// As whom they are.
    pub account: Option<Arc<ServiceAccount>>,
    /// How many of them may be away.
    pub budget: Option<Arc<PodDisruptionBudget>>,
    /// Whom they may speak to.
    pub policy: Option<Arc<NetworkPolicy>>,
    /// How they are, or were, configured.
    pub configs: Vec<Arc<PartialObjectMeta<ConfigMap>>>,
}

/// Reads all of it.
pub async fn dereference(ctx: &Context, plant: &Plant, channel: &Channel) -> Result<Found, Error> {
    let namespace = channel.namespace().unwrap_or_default();
    let (secrets, authorities) = named(channel);
    let mut needed = secrets;
    needed.extend(plant.token().map(str::to_owned));
    let topics = topics(plant, channel)
        .await
        .map_err(|source| Error::ArrangeTopics { source })?;
    let authorities = plant
        .authorities
        .present(&namespace, &channel.name_any(), authorities)
        .await?;
    let stores = &ctx.stores;
    let present = |name: &&String| get(&stores.secrets, &namespace, name).is_some();
    Ok(Found {
        uids: uids(ctx, &namespace),
        secrets: needed.iter().filter(present).cloned().collect(),
        needed,
        authorities,
        topics,
        made: made(ctx, channel),
        state: state(ctx, plant, channel).await,
    })
}

/// The Secrets and the `ConfigMaps` with certificates that a Channel names.
pub fn named(channel: &Channel) -> (BTreeSet<String>, BTreeSet<String>) {
    let (mut secrets, mut authorities) = (BTreeSet::new(), BTreeSet::new());
    for provider in &channel.spec.providers {
        let Some(spec) = provider.spec() else {
            continue;
        };
        secrets.extend(spec.credentials().map(str::to_owned));
        if let ProviderSpec::Smtp(smtp) = spec {
            authorities.extend(smtp.ca_ref.as_ref().map(|ca| ca.name.clone()));
        }
    }
    (secrets, authorities)
}

/// As what it is declared, as far as its topics go.
pub fn declared(channel: &Channel) -> Declared {
    let annotation = |name| channel.annotations().get(name).cloned();
    (
        channel.uid(),
        channel.metadata.generation,
        [annotation(names::RECONCILE_AT), annotation(names::ADOPT)],
    )
}

fn uids(ctx: &Context, namespace: &str) -> Option<Uids> {
    Some(Uids {
        cluster: ctx.stores.cluster()?,
        namespace: ctx.stores.namespace(namespace)?.uid()?,
    })
}

fn made(ctx: &Context, channel: &Channel) -> Made {
    let stores = &ctx.stores;
    let (namespace, name) = (channel.namespace().unwrap_or_default(), channel.name_any());
    let child = names::child(&name);
    let is_its_own = |config: &PartialObjectMeta<ConfigMap>| {
        config.namespace().as_deref() == Some(&*namespace)
            && config.labels().get(names::CHANNEL_LABEL) == Some(&name)
    };
    Made {
        deployment: get(&stores.deployments, &namespace, &child),
        account: get(&stores.accounts, &namespace, &child),
        budget: get(&stores.budgets, &namespace, &child),
        policy: get(&stores.policies, &namespace, &child),
        configs: stores.configs.state_filter(is_its_own),
    }
}

async fn topics(plant: &Plant, channel: &Channel) -> Result<Topics, AdminError> {
    let namespace = channel.namespace().unwrap_or_default();
    let full = format!("{namespace}/{}", channel.name_any());
    let listed = plant.topics(&namespace).await?;
    let all = names::of(&full);
    let declared = declared(channel);
    let is_fine = plant.remember(&full, |memory| {
        memory
            .checked
            .as_ref()
            .is_some_and(|(until, then)| Instant::now() < *until && *then == declared)
    });
    if is_fine && all.iter().all(|topic| listed.contains(topic.name())) {
        return Ok(Topics::Fine);
    }
    let pulsar_namespace = plant.pulsar_namespace(&namespace);
    let properties = plant.admin.properties(&pulsar_namespace).await?;
    if properties.is_none() {
        return Ok(Topics::Seen(Seen::default()));
    }
    let permissions = match plant.gateway_role {
        Some(_) => plant.admin.permissions(&pulsar_namespace).await?,
        None => Permissions::default(),
    };
    let there = all
        .into_iter()
        .filter(|topic| listed.contains(topic.name()));
    let topics = stream::iter(there)
        .map(|topic| see(plant, topic))
        .buffer_unordered(AT_ONCE)
        .try_collect::<Vec<_>>()
        .await?;
    Ok(Topics::Seen(Seen {
        properties,
        permissions,
        topics: topics.into_iter().flatten().collect(),
    }))
}

/// Looks at one topic; `None`: it is gone since it was listed.
async fn see(plant: &Plant, topic: Topic) -> Result<Option<(Topic, SeenTopic)>, AdminError> {
    let name = TopicName::new(&plant.pods.tenant, &topic);
    let Some(partitions) = plant.admin.partitions(&name).await? else {
        return Ok(None);
    };
    let subscriptions = plant.admin.subscriptions(&name).await?;
    let permissions = match plant.pods.role {
        Some(_) => plant.admin.topic_permissions(&name).await?,
        None => Permissions::default(),
    };
    let retention = if topic.is_events() {
        plant.admin.retention(&name).await?
    } else {
        None
    };
    let seen = SeenTopic {
        partitions,
        subscriptions,
        permissions,
        retention,
        backlog_quota: None,
    };
    Ok(Some((topic, seen)))
}

/// How it fares, not older than a few seconds where that matters; `None`: nobody tells.
async fn state(ctx: &Context, plant: &Plant, channel: &Channel) -> Option<ChannelState> {
    let gateway = ctx.gateway.as_ref()?;
    let (namespace, name) = (channel.namespace().unwrap_or_default(), channel.name_any());
    let full = format!("{namespace}/{name}");
    let fresh = if channel.spec.autoscaling.is_some() {
        SCALED
    } else {
        TOLD
    };
    let known = plant.remember(&full, |memory| memory.state.clone());
    if let Some((at, state)) = known
        && at.elapsed() < fresh
    {
        return Some(state);
    }
    match gateway.channel(&namespace, &name).await {
        Ok(state) => {
            let state = state?;
            let told = (Instant::now(), state.clone());
            plant.remember(&full, |memory| memory.state = Some(told));
            Some(state)
        }
        Err(error) => {
            tracing::debug!(%error, channel = full, "how a Channel fares is not known");
            None
        }
    }
}
