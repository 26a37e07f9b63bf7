//! Channels: topics and their rights, pods and what belongs to them, how many there are, and how it goes.
//!
//! `dereference` reads, `validate` and `build` are pure, `apply` writes: topics first, pods last. Beside the steps:
//! `topics` (what is to be done in Pulsar, pure), `rolling` (whose turn it is), `scale` (how many pods, pure), `health`
//! (conditions that wait before they turn, pure), `deletion`, `authorities` (watches on what is missing).

mod apply;
mod authorities;
mod build;
mod deletion;
pub mod dereference;
mod health;
mod plant;
mod rolling;
mod scale;
mod status;
#[cfg(test)]
mod tests;
pub mod topics;
mod validate;

use std::sync::Arc;

use herald_crds::Channel;
use kube::ResourceExt as _;
use kube::runtime::controller::Action;

use crate::backoff::jittered;
use crate::context::Context;
use crate::error::Error;
use crate::queue::{Guard, resync};

pub use deletion::let_go;
pub use plant::Plant;

use apply::{apply, apply_finalizer, stop};
use build::build;
use dereference::dereference;
use validate::validate;

/// Looks at one Channel.
pub async fn reconcile(channel: Arc<Guard<Channel>>, ctx: Arc<Context>) -> Result<Action, Error> {
    let Ok(channel) = &channel.0 else {
        return Ok(Action::await_change());
    };
    let Some(plant) = &ctx.plant else {
        return only_told(&ctx, channel).await;
    };
    let is_going = channel
        .namespace()
        .and_then(|name| ctx.stores.namespace(&name));
    let is_going = is_going.is_some_and(|found| found.metadata.deletion_timestamp.is_some());
    let outcome = if channel.metadata.deletion_timestamp.is_some() {
        deletion::delete(&ctx, plant, channel).await
    } else if is_going {
        // Nothing can be made there any more; what is there goes, and the Channel with it.
        return Ok(Action::await_change());
    } else {
        Box::pin(bring_about(&ctx, plant, channel)).await
    };
    if let Err(error) = &outcome {
        let stopped = if channel.metadata.deletion_timestamp.is_none() {
            stop(&ctx, channel).await
        } else {
            Ok(())
        };
        status::tell_failure(&ctx, channel, error).await?;
        stopped?;
        if matches!(error, Error::NameTaken { .. }) {
            // Nothing failed, and no watch tells when the name is free.
            return Ok(Action::requeue(jittered(plant::LISTED)));
        }
    }
    outcome
}

async fn bring_about(ctx: &Context, plant: &Plant, channel: &Channel) -> Result<Action, Error> {
    let found = dereference(ctx, plant, channel).await?;
    let valid = match validate(channel, &found) {
        Ok(valid) => valid,
        Err(verdict) => {
            let stopped = stop(ctx, channel).await;
            status::tell_verdict(ctx, channel, &verdict).await?;
            stopped?;
            // What is wrong in Pulsar may be cured there, and no watch tells.
            return Ok(Action::requeue(jittered(plant::LISTED)));
        }
    };
    apply_finalizer(ctx, channel).await?;
    let wanted = build(&valid, &found, plant);
    let applied = Box::pin(apply(ctx, plant, channel, &found, wanted)).await?;
    status::tell(ctx, plant, channel, &found, &applied).await?;
    Ok(Action::requeue(applied.look_again))
}

/// Where nothing is made: what moves is in a process of its own, which reads the same resources.
async fn only_told(ctx: &Context, channel: &Channel) -> Result<Action, Error> {
    if channel.metadata.deletion_timestamp.is_some() {
        deletion::release(ctx, channel).await?;
        return Ok(Action::await_change());
    }
    let verdict = validate::alone(channel, &ctx.stores, &ctx.namespace);
    status::tell_verdict(ctx, channel, &verdict).await?;
    Ok(resync())
}
