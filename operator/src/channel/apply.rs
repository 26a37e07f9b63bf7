//! Brings about what a Channel wants: topics first, pods last.

use std::time::Duration;

use herald_crds::{Channel, DeletionPolicy, names};
use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::networking::v1::NetworkPolicy;
use kube::api::{ObjectMeta, PartialObjectMetaExt as _, Patch, PatchParams};
use kube::{Api, ResourceExt as _};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::build::{Wanted, Workload};
use super::dereference::{Found, Topics, declared};
use super::plant::{LISTED, Plant};
use super::rolling::{has_rolled, is_complete, is_rolling, is_stuck, progressing, refusal};
use super::scale::Observed;
use super::topics;
use crate::apply::{apply as apply_object, check_free, delete, due, json as json_of, write};
use crate::backoff::jittered;
use crate::context::Context;
use crate::error::Error;
use crate::status::Because;
use crate::watch::get;

/// Whose turn it is not to roll looks again after about so long.
const TURN: Duration = Duration::from_secs(5);

/// A Channel whose number of pods the operator decides is looked at so often.
const SCALED: Duration = Duration::from_secs(5);

/// Pods of a suspended Channel have so long to give back what is out.
const GIVING_BACK: SignedDuration = SignedDuration::from_secs(60);

/// Beside what pods have for draining: until they are gone.
const ENDING: SignedDuration = SignedDuration::from_secs(15);

/// What was brought about.
#[derive(Debug, Clone, PartialEq)]
pub struct Applied {
    /// How the pods are.
    pub pods: Pods,
    /// How many pods there are.
    pub replicas: i32,
    /// When to look again.
    pub look_again: Duration,
}

/// How a Channel's pods are.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Pods {
    /// There are none yet: something is missing.
    Missing(Because),
    /// There are none, and there should be none.
    None,
    /// All are there, and as declared.
    Complete,
    /// Some serve, and they are being replaced.
    Changing,
    /// They were all replaced, and some serve: others begin, or fail.
    Partly,
    /// Kubernetes makes no more of them: they are over a quota, say.
    Refused {
        /// Whether some serve, and none is left to be replaced.
        serves: bool,
        /// Why, in its words.
        message: String,
    },
    /// They are as before: other Channels replace theirs first.
    WaitingForTurn {
        /// Whether some serve.
        serves: bool,
    },
    /// None serves, or new ones never do.
    Unavailable {
        /// Whether Kubernetes has given up waiting for it.
        stuck: bool,
    },
}

/// Brings it about.
pub async fn apply(
    ctx: &Context,
    plant: &Plant,
    channel: &Channel,
    found: &Found,
    wanted: Wanted,
) -> Result<Applied, Error> {
    let Wanted {
        channel: full,
        topics,
        workload,
    } = wanted;
    apply_topics(ctx, plant, channel, found, &full, &topics)
        .await
        .map_err(|source| Error::ArrangeTopics { source })?;
    let usual = jittered(LISTED);
    let replicas = |deployment: Option<&Deployment>| {
        let status = deployment.and_then(|deployment| deployment.status.as_ref());
        status.and_then(|status| status.replicas).unwrap_or(0)
    };
    let workload = match workload {
        Ok(workload) => workload,
        Err(because) => {
            stop(ctx, channel).await?;
            return Ok(Applied {
                replicas: replicas(found.made.deployment.as_deref()),
                pods: Pods::Missing(because),
                look_again: usual,
            });
        }
    };
    let made = &found.made;
    let latest = latest(ctx, &workload.deployment, made.deployment.as_deref());
    let scale = scale(
        ctx,
        plant,
        channel,
        found,
        &workload,
        latest.as_ref(),
        &full,
    );
    apply_object(ctx, workload.account.clone(), made.account.as_deref()).await?;
    let drain = SignedDuration::from_secs(plant.pods.drain_seconds.into());
    let before = pods_of_before(&workload, latest.as_ref(), drain + ENDING, (ctx.now)());
    let policy = match before {
        Some(_) => widened(ctx, &workload.policy, made.policy.as_deref()),
        None => workload.policy.clone(),
    };
    apply_object(ctx, policy, made.policy.as_deref()).await?;
    apply_object(ctx, workload.budget.clone(), made.budget.as_deref()).await?;
    apply_config(ctx, &workload).await?;
    let has_turn = apply_deployment(
        ctx,
        plant,
        &workload,
        latest.as_ref(),
        scale.replicas,
        &full,
    )
    .await?;
    let latest = self::latest(ctx, &workload.deployment, made.deployment.as_deref());
    let pods = match &latest {
        None => Pods::Unavailable { stuck: false },
        Some(latest) if !has_turn => Pods::WaitingForTurn {
            serves: available(latest) > 0,
        },
        Some(latest) => pods(latest),
    };
    if pods == Pods::Complete || pods == Pods::None {
        remove_old_configs(ctx, found, &workload).await?;
    }
    let look_again = if has_turn { usual } else { jittered(TURN) };
    Ok(Applied {
        replicas: replicas(latest.as_ref()),
        pods,
        look_again: (scale.look_again.into_iter().chain(before)).fold(look_again, Duration::min),
    })
}

async fn apply_topics(
    ctx: &Context,
    plant: &Plant,
    channel: &Channel,
    found: &Found,
    full: &str,
    plan: &topics::Plan,
) -> Result<(), crate::pulsar_admin::AdminError> {
    let Topics::Seen(_) = &found.topics else {
        return Ok(());
    };
    if !plan.is_empty() {
        let clusters = plant.clusters().await?;
        let wrote = || {
            ctx.metrics.pulsar_writes.inc();
        };
        let turn = plant.turn(&channel.namespace().unwrap_or_default());
        let tenant = &plant.pods.tenant;
        topics::carry_out(&plant.admin, tenant, clusters, plan, &turn, &wrote).await?;
        tracing::info!(channel = full, "its topics are as they should be again");
    }
    let namespace = channel.namespace().unwrap_or_default();
    plant.note_topics(&namespace, &names::of(full), false).await;
    plant.note_checked(full, declared(channel));
    Ok(())
}

/// The Deployment as it is, also if the watch has not told yet.
fn latest(ctx: &Context, like: &Deployment, watched: Option<&Deployment>) -> Option<Deployment> {
    serde_json::from_value(ctx.written.latest(like, watched)?).ok()
}

/// For how long there may still be pods that run what was declared before, also those that end and count in no Deployment;
/// `None`: there are none.
fn pods_of_before(
    workload: &Workload,
    latest: Option<&Deployment>,
    ending: SignedDuration,
    now: Timestamp,
) -> Option<Duration> {
    let latest = latest?;
    let template = latest.annotations().get(names::POD_TEMPLATE);
    if template != Some(&workload.template) || !is_complete(latest) {
        // The watch tells when that changes.
        return Some(LISTED);
    }
    let since = progressing(latest)?.last_update_time.as_ref()?;
    let rest = Duration::try_from(ending - now.duration_since(since.0)).ok()?;
    (!rest.is_zero()).then(|| rest + Duration::from_secs(1))
}

/// A policy that also lets out to where the one that is there does: pods of before finish what they have begun. Unless
/// somebody has changed it since it was applied: that is no rule of ours.
fn widened(
    ctx: &Context,
    wanted: &NetworkPolicy,
    watched: Option<&NetworkPolicy>,
) -> NetworkPolicy {
    let there = ctx.written.latest(wanted, watched);
    let there = there.and_then(|there| serde_json::from_value::<NetworkPolicy>(there).ok());
    let Some((there, applied)) = there.and_then(|there| {
        let applied = there.annotations().get(names::APPLIED).cloned();
        Some((there.spec?.egress?, applied?))
    }) else {
        return wanted.clone();
    };
    let with = |egress| {
        let mut policy = wanted.clone();
        if let Some(spec) = &mut policy.spec {
            spec.egress = Some(egress);
        }
        policy
    };
    if crate::apply::hash(&json_of(&with(there.clone()))) != applied {
        return wanted.clone();
    }
    let mut egress = wanted.spec.as_ref().and_then(|spec| spec.egress.clone());
    let egress = egress.get_or_insert_default();
    let before = there.into_iter().filter(|rule| !egress.contains(rule));
    let before: Vec<_> = before.collect();
    with([egress.as_slice(), &before].concat())
}

/// How many pods there should be, and when that may be otherwise.
struct Scale {
    replicas: i32,
    look_again: Option<Duration>,
}

fn scale(
    ctx: &Context,
    plant: &Plant,
    channel: &Channel,
    found: &Found,
    workload: &Workload,
    latest: Option<&Deployment>,
    full: &str,
) -> Scale {
    let spec = &channel.spec;
    let now = latest.and_then(|latest| latest.spec.as_ref()?.replicas);
    if spec.suspend {
        return suspended(workload, latest, now.unwrap_or(0), (ctx.now)());
    }
    let Some(scaling) = &spec.autoscaling else {
        return Scale {
            replicas: spec.replicas,
            look_again: None,
        };
    };
    let replicas = now.unwrap_or(0).max(0) as u32;
    let observed = match &found.state {
        Some(state) => Observed {
            replicas,
            heard: state.replicas,
            oldest: state.oldest(),
            by_slots: state.limited_by == "slots",
        },
        // Nobody knows how it fares: it stays as it is, within its bounds.
        None => Observed {
            replicas,
            heard: 0,
            oldest: Duration::MAX,
            by_slots: false,
        },
    };
    let decided = plant.remember(full, |memory| {
        let now = Instant::now();
        memory
            .scaler
            .decide(scaling, observed, plant.scale_down, now)
    });
    Scale {
        replicas: i32::try_from(decided).unwrap_or(i32::MAX),
        look_again: Some(jittered(SCALED)),
    }
}

/// Pods of a suspended Channel stay until they have given back what is out, if they can; then there are none.
fn suspended(
    workload: &Workload,
    latest: Option<&Deployment>,
    replicas: i32,
    now: Timestamp,
) -> Scale {
    let stay = |look_again| Scale {
        replicas,
        look_again,
    };
    let none = Scale {
        replicas: 0,
        look_again: None,
    };
    let Some(latest) = latest.filter(|_| replicas > 0) else {
        return none;
    };
    if available(latest) == 0 || is_stuck(latest) {
        // None is left that could give anything back, or none of those who would ever comes.
        return none;
    }
    let template = latest.annotations().get(names::POD_TEMPLATE);
    let is_told = template == Some(&workload.template);
    if !is_told || !(is_complete(latest) || has_rolled(latest)) {
        return stay(None);
    }
    let since = progressing(latest).and_then(|progress| progress.last_update_time.as_ref());
    let Some(since) = since else {
        return stay(Some(jittered(LISTED)));
    };
    let rest = GIVING_BACK - now.duration_since(since.0);
    match Duration::try_from(rest) {
        Ok(rest) if !rest.is_zero() => stay(Some(rest + Duration::from_secs(1))),
        _ => none,
    }
}

/// Takes away the pods of a Channel that is suspended, though it cannot be brought about otherwise: what is wrong with it
/// keeps nobody from stopping it. Of one that is not suspended everything stays as it is.
pub async fn stop(ctx: &Context, channel: &Channel) -> Result<(), Error> {
    if !channel.spec.suspend {
        return Ok(());
    }
    let (namespace, name) = (channel.namespace().unwrap_or_default(), channel.name_any());
    let child = names::child(&name);
    let watched = get(&ctx.stores.deployments, &namespace, &child);
    let full = format!("{namespace}/{name}");
    let like = Deployment {
        metadata: ObjectMeta {
            name: Some(child),
            namespace: Some(namespace),
            ..ObjectMeta::default()
        },
        ..Deployment::default()
    };
    // One that we have not applied is somebody else's.
    let latest = latest(ctx, &like, watched.as_deref())
        .filter(|latest| latest.annotations().contains_key(names::APPLIED));
    match latest.and_then(|latest| latest.spec?.replicas) {
        None | Some(0) => Ok(()),
        now => change_replicas(ctx, &like, now, 0, &full).await,
    }
}

/// Applies the Deployment, and how many pods it has. Answers whether it was its turn: else it stays as it is.
async fn apply_deployment(
    ctx: &Context,
    plant: &Plant,
    workload: &Workload,
    latest: Option<&Deployment>,
    replicas: i32,
    full: &str,
) -> Result<bool, Error> {
    let mut wanted = workload.deployment.clone();
    let now = latest.and_then(|latest| latest.spec.as_ref()?.replicas);
    if latest.is_none() {
        check_free(ctx, &wanted).await?;
        // The first time with it, so that there is never another number of pods than wanted.
        if let Some(spec) = &mut wanted.spec {
            spec.replicas = Some(replicas);
        }
        let hash = crate::apply::hash(&json_of(&workload.deployment));
        let annotations = wanted.annotations_mut();
        annotations.insert(names::APPLIED.to_owned(), hash);
        write(ctx, &wanted, &json_of(&wanted), names::FIELD_MANAGER).await?;
        write_replicas(ctx, &wanted, replicas).await?;
        return Ok(true);
    }
    let replaces = latest.is_some_and(|latest| {
        latest.annotations().get(names::POD_TEMPLATE) != Some(&workload.template)
            && now.unwrap_or(1) > 0
    });
    if replaces && !plant.rolling.may_begin(full, &ctx.stores.deployments) {
        // How many there are does not wait for it.
        change_replicas(ctx, &workload.deployment, now, replicas, full).await?;
        return Ok(false);
    }
    let watched = get(
        &ctx.stores.deployments,
        &wanted.namespace().unwrap_or_default(),
        &wanted.name_any(),
    );
    let outcome = apply_pods(ctx, wanted, watched.as_deref(), now).await;
    if replaces {
        match &outcome {
            Ok(()) => {
                let written = self::latest(ctx, &workload.deployment, watched.as_deref());
                let generation = written.and_then(|written| written.metadata.generation);
                plant.rolling.began(full, generation);
            }
            Err(_) => plant.rolling.forget(full),
        }
    }
    outcome?;
    change_replicas(ctx, &workload.deployment, now, replicas, full).await?;
    Ok(true)
}

/// Applies the Deployment without how many pods it has.
async fn apply_pods(
    ctx: &Context,
    mut wanted: Deployment,
    watched: Option<&Deployment>,
    now: Option<i32>,
) -> Result<(), Error> {
    let latest = ctx.written.latest(&wanted, watched);
    let Some(patch) = due(&mut wanted, latest.as_ref())? else {
        return Ok(());
    };
    // Who made it has said how many. If nothing else has since, to leave it out is to take it away, and leave one pod.
    if let Some(now) = now {
        write_replicas(ctx, &wanted, now).await?;
    }
    write(ctx, &wanted, &patch, names::FIELD_MANAGER).await?;
    Ok(())
}

async fn change_replicas(
    ctx: &Context,
    like: &Deployment,
    now: Option<i32>,
    replicas: i32,
    full: &str,
) -> Result<(), Error> {
    if now != Some(replicas) {
        write_replicas(ctx, like, replicas).await?;
        ctx.metrics.scaled.inc();
        tracing::info!(
            channel = full,
            from = now,
            to = replicas,
            "the number of pods is changed"
        );
    }
    Ok(())
}

async fn write_replicas(ctx: &Context, like: &Deployment, replicas: i32) -> Result<(), Error> {
    let patch: Value = json!({
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": like.name_any(), "namespace": like.namespace()},
        "spec": {"replicas": replicas},
    });
    write(ctx, like, &patch, names::SCALE_FIELD_MANAGER).await?;
    Ok(())
}

/// How many pods serve.
fn available(latest: &Deployment) -> i32 {
    let status = latest.status.as_ref();
    let available = status.and_then(|status| status.available_replicas);
    available.unwrap_or(0)
}

fn pods(latest: &Deployment) -> Pods {
    let replicas = latest.spec.as_ref().and_then(|spec| spec.replicas);
    let pods = if replicas == Some(0) {
        Pods::None
    } else if is_complete(latest) {
        Pods::Complete
    } else if is_stuck(latest) || available(latest) == 0 {
        Pods::Unavailable {
            stuck: is_stuck(latest),
        }
    } else if is_rolling(latest) {
        Pods::Changing
    } else {
        Pods::Partly
    };
    match (&pods, refusal(latest)) {
        (Pods::Partly | Pods::Unavailable { .. }, Some(message)) => Pods::Refused {
            serves: pods == Pods::Partly,
            message: message.to_owned(),
        },
        _ => pods,
    }
}

/// What is in it is told by its name, and it cannot be changed: it is there or not.
async fn apply_config(ctx: &Context, workload: &Workload) -> Result<(), Error> {
    let config = &workload.config;
    let namespace = config.namespace().unwrap_or_default();
    if get(&ctx.stores.configs, &namespace, &config.name_any()).is_some() {
        ctx.written.forget(&crate::written::key(config));
        return Ok(());
    }
    if ctx.written.latest(config, None).is_none() {
        check_free(ctx, config).await?;
        write(ctx, config, &json_of(config), names::FIELD_MANAGER).await?;
    }
    Ok(())
}

/// Configurations that no pod has any more.
async fn remove_old_configs(
    ctx: &Context,
    found: &Found,
    workload: &Workload,
) -> Result<(), Error> {
    let current = workload.config.name_any();
    for config in &found.made.configs {
        if config.name_any() != current && config.metadata.deletion_timestamp.is_none() {
            delete(ctx, &**config).await?;
        }
    }
    Ok(())
}

/// A finalizer for those whose topics go with them, and for nobody else.
pub async fn apply_finalizer(ctx: &Context, channel: &Channel) -> Result<(), Error> {
    let has = channel
        .finalizers()
        .iter()
        .any(|f| f == names::TOPICS_FINALIZER);
    let wants = channel.spec.deletion_policy() == DeletionPolicy::Delete;
    if has == wants {
        return Ok(());
    }
    write_finalizer(ctx, &channel.metadata, wants).await
}

/// Puts the finalizer on, or takes it off. Others' stay.
pub async fn write_finalizer(ctx: &Context, watched: &ObjectMeta, on: bool) -> Result<(), Error> {
    let namespace = watched.namespace.clone().unwrap_or_default();
    let name = watched.name.clone().unwrap_or_default();
    // A status that we wrote since was answered with the list as it was then.
    let seen = watched.clone().into_response_partial::<Channel>();
    let later = ctx.written.later(&seen);
    let later = later.and_then(|later| serde_json::from_value(later["metadata"].clone()).ok());
    let of: &ObjectMeta = later.as_ref().unwrap_or(watched);
    let mut finalizers: Vec<&str> = of
        .finalizers
        .iter()
        .flatten()
        .map(String::as_str)
        .filter(|finalizer| *finalizer != names::TOPICS_FINALIZER)
        .collect();
    if on {
        finalizers.push(names::TOPICS_FINALIZER);
    }
    // Only if it is still as it was then: the list is written as a whole, and others' may have come since.
    let patch = json!({"metadata": {
        "finalizers": finalizers,
        "uid": of.uid,
        "resourceVersion": of.resource_version,
    }});
    let api: Api<kube::core::PartialObjectMeta<Channel>> =
        Api::namespaced(ctx.client.clone(), &namespace);
    let written = api
        .patch(&name, &PatchParams::default(), &Patch::Merge(&patch))
        .await;
    match written {
        Ok(_) => {
            ctx.metrics.wrote("Channel", "finalizer");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(source) => Err(Error::WriteFinalizers {
            name: format!("Channel {namespace}/{name}"),
            source: Box::new(source),
        }),
    }
}
