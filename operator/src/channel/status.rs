//! What is told of a Channel.

use herald_crds::{Channel, names};
use kube::ResourceExt as _;
use tokio::time::Instant;

use super::apply::{Applied, Pods};
use super::dereference::Found;
use super::plant::Plant;
use crate::context::Context;
use crate::error::Error;
use crate::status::{self, Because, Part, READY, Verdict};
use crate::watch::get;

/// The reason while Kubernetes makes no more pods.
const REFUSED: &str = "PodsRefused";

/// Tells what was brought about, and how it goes.
pub async fn tell(
    ctx: &Context,
    plant: &Plant,
    channel: &Channel,
    found: &Found,
    applied: &Applied,
) -> Result<(), Error> {
    let Applied {
        pods,
        replicas,
        look_again: _,
    } = applied;
    let full = format!(
        "{}/{}",
        channel.namespace().unwrap_or_default(),
        channel.name_any()
    );
    let suspended = channel.spec.suspend;
    let before = status::before(ctx, channel).conditions;
    let further = plant.remember(&full, |memory| {
        let state = found.state.as_ref();
        memory
            .health
            .conditions(state, suspended, &before, Instant::now())
    });
    let selector = selector(&channel.name_any());
    status::tell(ctx, channel, &verdict(pods, suspended), further, |status| {
        status.replicas = Some(*replicas);
        status.selector = Some(selector);
    })
    .await
}

/// The selector of a Channel's pods, as text.
fn selector(name: &str) -> String {
    names::pod_labels(name)
        .map(|(key, value)| format!("{key}={value}"))
        .join(",")
}

fn verdict(pods: &Pods, suspended: bool) -> Verdict {
    let because = Because::new;
    match pods {
        Pods::Missing(missing) => Verdict::Waiting(missing.clone()),
        Pods::None if suspended => Verdict::Ready(because(
            "Suspended",
            "its topics are there; nothing is sent, and no pod runs, while it is suspended",
        )),
        Pods::None => Verdict::Ready(because(
            "ScaledToZero",
            "its topics are there; nothing is sent, since spec.replicas is 0",
        )),
        Pods::Complete | Pods::Partly if suspended => Verdict::Ready(because(
            "Suspended",
            "its topics are there; its pods give back what is out, and end then",
        )),
        Pods::Complete => Verdict::Ready(because("Delivering", "its topics and pods are there")),
        Pods::Changing => Verdict::Changing(because("RollingOut", "its pods are being changed")),
        Pods::WaitingForTurn { serves: true } => Verdict::Changing(because(
            "WaitingForTurn",
            "its pods are as before: five other Channels replace theirs first",
        )),
        Pods::WaitingForTurn { serves: false } => Verdict::Waiting(because(
            "PodsUnavailable",
            "none of its pods is ready; they are replaced when five other Channels have replaced theirs",
        )),
        Pods::Partly => Verdict::Ready(because(
            "Delivering",
            "some of its pods do not serve: if they do not soon, kubectl describe says why",
        )),
        Pods::Refused {
            serves: true,
            message,
        } => Verdict::Ready(Because::new(
            REFUSED,
            format!(
                "its pods are fewer than they should be, since Kubernetes makes no more of them: {message}"
            ),
        )),
        Pods::Refused {
            serves: false,
            message,
        } => Verdict::Waiting(Because::new(
            REFUSED,
            format!(
                "Kubernetes makes none of its new pods, though those before them may serve: {message}"
            ),
        )),
        Pods::Unavailable { stuck: false } => {
            Verdict::Waiting(because("PodsStarting", "none of its pods is ready yet"))
        }
        Pods::Unavailable { stuck: true } => Verdict::Waiting(because(
            "PodsUnavailable",
            "its new pods do not become ready, though those before them may serve: kubectl describe says why",
        )),
    }
}

/// Tells what is wrong, and how many pods there are: the rest is as it was told.
pub async fn tell_verdict(
    ctx: &Context,
    channel: &Channel,
    verdict: &Verdict,
) -> Result<(), Error> {
    let namespace = channel.namespace().unwrap_or_default();
    let child = names::child(&channel.name_any());
    let deployment = get(&ctx.stores.deployments, &namespace, &child);
    let pods = deployment.and_then(|deployment| deployment.status.as_ref()?.replicas.or(Some(0)));
    status::tell(ctx, channel, verdict, kept(ctx, channel), |status| {
        status.replicas = pods.or(status.replicas);
    })
    .await
}

/// Tells of a failure, unless it is one that leaves what was good as good as it was.
pub async fn tell_failure(ctx: &Context, channel: &Channel, error: &Error) -> Result<(), Error> {
    // A status that cannot be written cannot tell of that.
    if matches!(error, Error::WriteStatus { .. }) {
        return Ok(());
    }
    let told = status::before(ctx, channel);
    let is_ready = told
        .conditions
        .iter()
        .any(|condition| condition.type_ == READY && condition.status == "True");
    let is_known = told.observed_generation == channel.metadata.generation;
    if error.is_unreachable() && is_ready && is_known {
        return Ok(());
    }
    let because = Because::new(error.reason(), error.to_string());
    let verdict = match error {
        Error::NameTaken { .. } => Verdict::Stalled(because),
        _ => Verdict::Waiting(because),
    };
    tell_verdict(ctx, channel, &verdict).await
}

/// Conditions beside the verdict's that hold on.
fn kept(ctx: &Context, channel: &Channel) -> Vec<Part> {
    let told = status::before(ctx, channel);
    told.conditions
        .into_iter()
        .filter_map(|condition| {
            let (kind, reason) = known(&condition.type_, &condition.reason)?;
            let because = Because::new(reason, condition.message);
            Some(Part::new(kind, condition.status == "True", because))
        })
        .collect()
}

/// The names under which they were told, as they are kept for ever.
fn known(kind: &str, reason: &str) -> Option<(&'static str, &'static str)> {
    const KINDS: [&str; 3] = ["Backlogged", "DeadLetters", "ProviderDegraded"];
    const REASONS: [&str; 6] = [
        "HasDeadLetters",
        "KeepsUp",
        "NoDeadLetters",
        "WaitsLong",
        "ProvidersWork",
        "ProviderFails",
    ];
    let kind = KINDS.into_iter().find(|known| *known == kind)?;
    let reason = REASONS.into_iter().find(|known| *known == reason)?;
    Some((kind, reason))
}
