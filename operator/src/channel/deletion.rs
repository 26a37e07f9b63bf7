//! A Channel goes whose topics go with it: first its pods, then, when the gateways have let go, its topics, and with the last
//! of a namespace that goes, too, the namespace in Pulsar.

use std::time::Duration;

use herald_crds::names::{self, Topic};
use herald_crds::{Channel, DeletionPolicy};
use jiff::SignedDuration;
use k8s_openapi::api::core::v1::Pod;
use kube::api::{ListParams, ObjectMeta};
use kube::runtime::controller::Action;
use kube::{Api, ResourceExt as _};

use super::apply::write_finalizer;
use super::plant::Plant;
use super::status::tell_verdict;
use crate::apply;
use crate::context::Context;
use crate::error::Error;
use crate::pulsar_admin::{AdminError, TopicName};
use crate::status::{Because, Verdict};
use crate::watch::get;

/// What is on its way is looked at again after so long.
const AGAIN: Duration = Duration::from_secs(2);

/// Gateways have so long to let go: they first end what waits, and record what was told, which takes a database.
const LETTING_GO: SignedDuration = SignedDuration::from_mins(5);

/// A namespace does not wait longer for a broker that is away.
const GIVING_UP: SignedDuration = SignedDuration::from_mins(10);

/// Deletes what is left of a Channel, a step at a time, and releases it.
pub async fn delete(ctx: &Context, plant: &Plant, channel: &Channel) -> Result<Action, Error> {
    let (namespace, name) = (channel.namespace().unwrap_or_default(), channel.name_any());
    let full = format!("{namespace}/{name}");
    let is_ours = channel
        .finalizers()
        .iter()
        .any(|f| f == names::TOPICS_FINALIZER);
    if !is_ours {
        plant.forget(&full);
        return Ok(Action::await_change());
    }
    if channel.spec.deletion_policy() == DeletionPolicy::Delete {
        if !pods_are_gone(ctx, &namespace, &name).await? {
            let message = "its pods finish what they have begun";
            return wait(ctx, channel, Because::new("PodsEnding", message)).await;
        }
        match delete_topics(ctx, plant, channel, &full).await {
            Ok(true) => {}
            Ok(false) => {
                let message = "the gateways let go of its topics";
                return wait(ctx, channel, Because::new("TopicsInUse", message)).await;
            }
            Err(source) if may_give_up(ctx, channel) => {
                tracing::warn!(channel = full, error = %source, "its topics stay: its namespace does not wait any longer");
            }
            Err(source) => return Err(Error::ArrangeTopics { source }),
        }
    }
    release(ctx, channel).await?;
    plant.forget(&full);
    Ok(Action::await_change())
}

/// Looks again soon, and says why not now; in a namespace that is being deleted that may no longer be allowed.
async fn wait(ctx: &Context, channel: &Channel, because: Because) -> Result<Action, Error> {
    let told = tell_verdict(ctx, channel, &Verdict::Waiting(because)).await;
    match told {
        Err(error) if !is_going(ctx, &channel.namespace().unwrap_or_default()) => Err(error),
        _ => Ok(Action::requeue(AGAIN)),
    }
}

/// Lets the Channel go.
pub async fn release(ctx: &Context, channel: &Channel) -> Result<(), Error> {
    if channel
        .finalizers()
        .iter()
        .any(|f| f == names::TOPICS_FINALIZER)
    {
        write_finalizer(ctx, &channel.metadata, false).await?;
    }
    Ok(())
}

/// Lets a Channel go that cannot be read: nothing is known of it but that it goes. Its topics stay.
pub async fn let_go(ctx: &Context, of: &ObjectMeta) -> Result<Action, Error> {
    let mut finalizers = of.finalizers.iter().flatten();
    if finalizers.any(|finalizer| finalizer == names::TOPICS_FINALIZER) {
        tracing::warn!(
            namespace = of.namespace,
            channel = of.name,
            "it cannot be read and is being deleted: it is let go, and its topics stay"
        );
        write_finalizer(ctx, of, false).await?;
    }
    Ok(Action::await_change())
}

async fn pods_are_gone(ctx: &Context, namespace: &str, name: &str) -> Result<bool, Error> {
    let is_going = is_going(ctx, namespace);
    // With its namespace a Deployment goes by itself.
    if !is_going
        && let Some(deployment) = get(&ctx.stores.deployments, namespace, &names::child(name))
    {
        if deployment.metadata.deletion_timestamp.is_none() {
            apply::delete(ctx, &*deployment).await?;
        }
        return Ok(false);
    }
    let labels = names::pod_labels(name).map(|(key, value)| format!("{key}={value}"));
    let parameters = ListParams::default().labels(&labels.join(",")).limit(1);
    let api: Api<Pod> = Api::namespaced(ctx.client.clone(), namespace);
    match api.list_metadata(&parameters).await {
        Ok(pods) => Ok(pods.items.is_empty()),
        // A namespace's roles may go before its pods: whether they still use a topic, the broker knows.
        Err(kube::Error::Api(status)) if is_going && status.is_forbidden() => Ok(true),
        Err(source) => Err(Error::Read {
            kind: format!("pods of {namespace}"),
            source: Box::new(source),
        }),
    }
}

/// Deletes the topics; answers whether they are gone, or still used by somebody who may need a little longer.
async fn delete_topics(
    ctx: &Context,
    plant: &Plant,
    channel: &Channel,
    full: &str,
) -> Result<bool, AdminError> {
    let namespace = channel.namespace().unwrap_or_default();
    let topics = names::of(full);
    let Some(properties) = plant
        .admin
        .properties(&plant.pulsar_namespace(&namespace))
        .await?
    else {
        return Ok(true);
    };
    let own = ctx.stores.namespace(&namespace).and_then(|n| n.uid());
    let whose = properties.get(names::NAMESPACE_PROPERTY);
    if whose.is_some() && own.is_some() && whose != own.as_ref() {
        // They were never ours.
        return Ok(true);
    }
    if age(ctx, channel) < LETTING_GO && is_used(plant, &topics).await? {
        return Ok(false);
    }
    let role = plant.pods.role_of(
        &namespace,
        &channel.name_any(),
        &names::child(&channel.name_any()),
    );
    for topic in &topics {
        let name = TopicName::new(&plant.pods.tenant, topic);
        if let Some(role) = &role {
            plant.admin.revoke_topic(&name, role).await?;
        }
        plant.admin.delete_topic(&name).await?;
        ctx.metrics.pulsar_writes.inc();
    }
    plant.note_topics(&namespace, &topics, true).await;
    if whose.is_some() && whose == own.as_ref() && is_going(ctx, &namespace) {
        delete_namespace(ctx, plant, &namespace).await?;
    }
    Ok(true)
}

/// Deletes the namespace in Pulsar of one that goes: no Channel comes up in it any more. What others have left in it keeps it.
async fn delete_namespace(ctx: &Context, plant: &Plant, namespace: &str) -> Result<(), AdminError> {
    let namespace = plant.pulsar_namespace(namespace);
    match plant.admin.delete_empty_namespace(&namespace).await {
        Ok(true) => {
            ctx.metrics.pulsar_writes.inc();
            tracing::info!(namespace, "nothing was left in it, and it is gone");
        }
        Ok(false) => {}
        Err(error) if error.is_unreachable() => return Err(error),
        Err(error) => tracing::warn!(%error, "nothing is in it, and it stays"),
    }
    Ok(())
}

async fn is_used(plant: &Plant, topics: &[Topic]) -> Result<bool, AdminError> {
    for topic in topics {
        let stats = plant
            .admin
            .stats(&TopicName::new(&plant.pods.tenant, topic))
            .await?;
        // Who only reads along is not waited for: a stream of events may be open for days.
        let subscription = names::subscription(topic).and_then(|name| {
            let all = &stats.as_ref()?.subscriptions;
            all.get(name)
        });
        if subscription.is_some_and(|subscription| !subscription.consumers.is_empty()) {
            return Ok(true);
        }
    }
    Ok(false)
}

/// For how long it is being deleted.
fn age(ctx: &Context, channel: &Channel) -> SignedDuration {
    let since = channel.metadata.deletion_timestamp.as_ref();
    since.map_or(SignedDuration::ZERO, |since| {
        (ctx.now)().duration_since(since.0)
    })
}

fn may_give_up(ctx: &Context, channel: &Channel) -> bool {
    let namespace = channel.namespace().unwrap_or_default();
    is_going(ctx, &namespace) && age(ctx, channel) > GIVING_UP
}

/// Whether a namespace is being deleted, or gone.
fn is_going(ctx: &Context, namespace: &str) -> bool {
    let namespace = ctx.stores.namespace(namespace);
    namespace.is_none_or(|n| n.metadata.deletion_timestamp.is_some())
}
