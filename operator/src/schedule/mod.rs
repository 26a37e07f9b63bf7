//! Schedules: whether they can be sent, and where they stand. Gateways fire them; this only mirrors what they tell.

mod dereference;
mod mirror;
mod validate;

use std::sync::Arc;
use std::time::Duration;

use herald_crds::Schedule;
use kube::ResourceExt as _;
use kube::runtime::controller::Action;

use crate::backoff::jittered;
use crate::context::Context;
use crate::error::Error;
use crate::gateway::ScheduleState;
use crate::queue::{Guard, RESYNC};
use crate::status::{self, Because, Verdict};

use dereference::dereference;
use mirror::{Stand, stand};
use validate::validate;

/// A gateway that does not answer is asked again after about so long: what it knows is only told a little later.
const AGAIN: Duration = Duration::from_secs(30);

/// Looks at one Schedule. Nothing is made for it: what is found and what the gateways tell is told.
pub async fn reconcile(schedule: Arc<Guard<Schedule>>, ctx: Arc<Context>) -> Result<Action, Error> {
    let Ok(schedule) = &schedule.0 else {
        return Ok(Action::await_change());
    };
    if schedule.metadata.deletion_timestamp.is_some() {
        return Ok(Action::await_change());
    }
    let set = dereference(&ctx.stores, schedule);
    let wrong = validate(schedule, &set);
    let told = ask(&ctx, schedule).await;
    let before = status::before(&ctx, schedule);
    let now = (ctx.now)();
    let Stand {
        status,
        look_again,
        refused,
    } = stand(schedule, before, told.as_ref().ok(), now);
    let verdict = wrong.or(refused);
    let verdict = verdict.unwrap_or_else(|| {
        let message = "its template and its recipients are there";
        Verdict::Ready(Because::new("Resolved", message))
    });
    status::tell(&ctx, schedule, &verdict, Vec::new(), |told| {
        told.last_schedule_time = status.last_schedule_time;
        told.next_schedule_time = status.next_schedule_time;
        told.last_notification = status.last_notification;
        told.missed = status.missed;
    })
    .await?;
    let pause = match told {
        Err(NotAnswered) => jittered(AGAIN),
        Ok(_) => look_again.unwrap_or_else(|| jittered(RESYNC)),
    };
    Ok(Action::requeue(pause))
}

/// The gateway did not answer.
struct NotAnswered;

/// What the gateway tells; `Ok(None)`: nothing yet, or nobody is asked.
async fn ask(ctx: &Context, schedule: &Schedule) -> Result<Option<ScheduleState>, NotAnswered> {
    let Some(gateway) = &ctx.gateway else {
        return Ok(None);
    };
    let namespace = schedule.namespace().unwrap_or_default();
    let uid = schedule.metadata.uid.as_deref();
    let name = schedule.name_any();
    let told = gateway.schedule(&namespace, &name, uid).await;
    told.map_err(|error| {
        tracing::debug!(%error, "where a Schedule stands is not known");
        NotAnswered
    })
}

#[cfg(test)]
mod tests;
