//! The tenant, and the topics that belong to no Channel: those of requests.

use std::time::Duration;

use herald_crds::names::{self, Topic};

use tokio::sync::watch as signal;
use tokio::time::Instant;

use crate::backoff::{Backoff, jittered};
use crate::channel::Plant;
use crate::channel::dereference::{Properties, Seen, SeenTopic};
use crate::channel::topics::{Wanted, carry_out, of_requests, plan};
use crate::metrics::Metrics;
use crate::pulsar_admin::{AdminError, Permissions, TopicName};
use crate::watch::Stores;

/// Why the topics of requests are not as they should be.
#[derive(Debug, thiserror::Error)]
pub enum SystemError {
    /// Pulsar did not do what it was asked for.
    #[error(transparent)]
    Arrange(AdminError),
    /// Two clusters share a tenant: each would take what was sent to the other.
    #[error(
        "the Pulsar namespace {namespace} belongs to another Kubernetes cluster ({uid}), which takes requests from it: \
         give each cluster a tenant of its own (pulsar.tenant). If this cluster has taken that one's place, \
         pulsar-admin namespaces remove-property --key {} {namespace}",
        names::CLUSTER_PROPERTY
    )]
    OfAnother {
        /// `tenant/namespace`.
        namespace: String,
        /// The other's uid.
        uid: String,
    },
    /// The cluster's uid is not known yet.
    #[error("namespace kube-system, which tells one cluster from another, is not known yet")]
    KnowCluster,
}

/// They are listed so often: accepting stands while one is missing, and no Channel can be without the tenant.
const LISTED: Duration = Duration::from_mins(1);

/// Each of them is looked at so often.
const CHECKED: Duration = Duration::from_mins(10);

/// Sees to it for ever; whoever drops the future ends it. While they are another cluster's, it is not `ready`.
pub async fn look_after(
    plant: &Plant,
    partitions: u32,
    stores: &Stores,
    metrics: &Metrics,
    ready: &signal::Sender<bool>,
) {
    let backoff = Backoff::default();
    let name = "requests";
    let mut were_ours = true;
    let mut checked = None;
    // An error says that nobody follows any more: it shuts down.
    let _ = stores.namespaces.wait_until_ready().await;
    loop {
        let outcome = look(plant, partitions, stores, metrics, &mut checked).await;
        let are_ours = !matches!(outcome, Err(SystemError::OfAnother { .. }));
        if are_ours != were_ours {
            ready.send_replace(are_ours);
            were_ours = are_ours;
        }
        let pause = match outcome {
            Ok(()) => {
                if backoff.worked(name) {
                    tracing::info!("the topics of requests are as they should be");
                }
                jittered(LISTED)
            }
            Err(error) => {
                let pause = backoff.failed(name).min(Duration::from_secs(30));
                tracing::warn!(%error, again_in = ?pause, "the topics of requests are not as they should be");
                pause
            }
        };
        tokio::time::sleep(pause).await;
    }
}

/// Lists them, and goes on to each of them if one is missing, or when it is time to; `checked`: not before then.
async fn look(
    plant: &Plant,
    partitions: u32,
    stores: &Stores,
    metrics: &Metrics,
    checked: &mut Option<Instant>,
) -> Result<(), SystemError> {
    if checked.is_some_and(|until| Instant::now() < until) {
        if are_listed(plant).await {
            return Ok(());
        }
        tracing::warn!("not all topics of requests are known to be there");
    }
    // If it fails, it is each of them again the next time.
    *checked = None;
    arrange(plant, partitions, stores, metrics).await?;
    *checked = Some(Instant::now() + jittered(CHECKED));
    Ok(())
}

/// Whether all of them are known to be there: a broker that was away may have come back with nothing.
async fn are_listed(plant: &Plant) -> bool {
    let namespace = format!("{}/{}", plant.pods.tenant, names::SYSTEM_NAMESPACE);
    let listed = plant.admin.topics(&namespace).await;
    let is_listed = |topic: Topic| {
        let listed = listed.as_ref().ok();
        listed.is_some_and(|listed| listed.iter().any(|name| name == topic.name()))
    };
    names::all_requests().all(is_listed)
}

/// Makes what is missing, and leaves alone what is there, and all of it if it is another cluster's.
pub async fn arrange(
    plant: &Plant,
    partitions: u32,
    stores: &Stores,
    metrics: &Metrics,
) -> Result<(), SystemError> {
    let cluster = stores.cluster().ok_or(SystemError::KnowCluster)?;
    let tenant = plant.pods.tenant.as_str();
    let role = plant.gateway_role.as_deref();
    let wanted = of_requests(tenant, partitions, role, &cluster);
    let properties = plant.admin.properties(&wanted.namespace).await;
    let properties = properties.map_err(SystemError::Arrange)?;
    let owner = properties
        .as_ref()
        .and_then(|of| of.get(names::CLUSTER_PROPERTY));
    if let Some(uid) = owner.filter(|uid| **uid != cluster) {
        return Err(SystemError::OfAnother {
            uid: uid.clone(),
            namespace: wanted.namespace,
        });
    }
    let arranged = arrange_ours(plant, &wanted, properties, metrics).await;
    arranged.map_err(SystemError::Arrange)
}

async fn arrange_ours(
    plant: &Plant,
    wanted: &Wanted,
    properties: Option<Properties>,
    metrics: &Metrics,
) -> Result<(), AdminError> {
    let tenant = plant.pods.tenant.as_str();
    let clusters = plant.clusters().await?;
    if properties.is_none() {
        // Without a tenant there is no namespace in it, either.
        plant.admin.create_tenant(tenant, clusters).await?;
        metrics.pulsar_writes.inc();
    }
    let mut seen = Seen {
        properties,
        ..Seen::default()
    };
    if seen.properties.is_some() {
        if plant.gateway_role.is_some() {
            seen.permissions = plant.admin.permissions(&wanted.namespace).await?;
        }
        let listed = plant.admin.topics(&wanted.namespace).await?;
        for topic in names::all_requests() {
            if listed.iter().any(|name| name == topic.name())
                && let Some(found) = see(plant, &topic).await?
            {
                seen.topics.insert(topic, found);
            }
        }
    }
    let plan = plan(wanted, &seen);
    let wrote = || {
        metrics.pulsar_writes.inc();
    };
    let turn = tokio::sync::Mutex::default();
    carry_out(&plant.admin, tenant, clusters, &plan, &turn, &wrote).await
}

async fn see(plant: &Plant, topic: &Topic) -> Result<Option<SeenTopic>, AdminError> {
    let name = TopicName::new(&plant.pods.tenant, topic);
    let Some(partitions) = plant.admin.partitions(&name).await? else {
        return Ok(None);
    };
    Ok(Some(SeenTopic {
        partitions,
        subscriptions: plant.admin.subscriptions(&name).await?,
        permissions: Permissions::default(),
        retention: None,
        backlog_quota: plant.admin.backlog_quota(&name).await?,
    }))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixtures::Bench;

    #[tokio::test]
    async fn what_is_missing_is_made_at_the_next_list_and_not_at_the_next_check() {
        let bench = Bench::with_pulsar().await;
        let pulsar = bench.pulsar.as_ref().unwrap();
        let plant = bench.ctx.plant.as_ref().unwrap();
        let mut checked = None;
        let mut look = async || {
            let (stores, metrics) = (&bench.ctx.stores, &bench.ctx.metrics);
            let looked = look(plant, 4, stores, metrics, &mut checked).await;
            (looked.is_ok(), pulsar.asked())
        };
        assert!(look().await.0);
        assert_eq!(pulsar.topics().len(), 8);
        // All are there, which is one question.
        let list = "GET persistent/herald/herald-system/partitioned".to_owned();
        assert_eq!(look().await, (true, vec![list]));
        // Somebody deletes one.
        let gone = "herald/herald-system/requests.direct.high";
        pulsar.delete(gone);
        assert!(look().await.0);
        assert!(pulsar.topics().iter().any(|topic| topic == gone));
        // Pulsar was away, and has come back with nothing.
        pulsar.away(true);
        assert!(!look().await.0);
        pulsar.away(false);
        pulsar.empty();
        let (worked, asked) = look().await;
        assert!(worked && asked.iter().any(|what| what == "PUT tenants/herald"));
        assert_eq!(pulsar.topics().len(), 8);
    }
}
