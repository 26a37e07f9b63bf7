//! What is sent without anybody asking: Schedules, once for each due time.

use std::collections::HashMap;
use std::future::Future;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use herald_crds::Schedule;
use herald_crds::cron::Due;
use jiff::Timestamp;
use sha2::{Digest as _, Sha256};
use tokio::time::Instant;

use super::{Accept, Accepted, Refusal, SendRequest};
use crate::access::{Access, Sender};
use crate::catalog::{Catalog, Snapshot};
use crate::clock;
use crate::id::FullName;
use crate::metrics::Metrics;
use crate::store::{Incarnation, RefusedDue, Store, StoreError};

#[cfg(test)]
mod tests;

/// When something that should work did not: tried again after this.
const AGAIN: Duration = Duration::from_secs(5);

/// When a schedule cannot be sent as it is declared: tried again after this, or when what is declared changes.
const WRONG: Duration = Duration::from_mins(1);

/// Wall clocks jump, and sleeping does not notice: nothing sleeps longer.
const LONGEST_SLEEP: Duration = Duration::from_hours(1);

/// Sends what a schedule says. [`Accept`] does; tests listen.
#[async_trait]
pub trait Fire: Send + Sync {
    /// Sends it, once for each key.
    async fn fire(
        &self,
        sender: &Sender,
        namespace: &str,
        request: SendRequest,
        key: &str,
    ) -> Result<Accepted, Refusal>;
}

#[async_trait]
impl Fire for Accept {
    async fn fire(
        &self,
        sender: &Sender,
        namespace: &str,
        request: SendRequest,
        key: &str,
    ) -> Result<Accepted, Refusal> {
        self.accept(sender, namespace, request, Some(key), None)
            .await
    }
}

/// Fires every Schedule of the catalog when it is due.
///
/// The Idempotency-Key is (namespace, name, due time), so that a due time fires once however often it is tried, also
/// across a restart. The next due time follows from the one that fired last, never from now; the first, from when the
/// Schedule was made, which in a folder is when it was first seen. One of the same name that is made anew begins anew.
pub struct Schedules {
    fire: Arc<dyn Fire>,
    access: Arc<dyn Access>,
    catalog: Arc<dyn Catalog>,
    store: Arc<dyn Store>,
    metrics: Arc<Metrics>,
    known: HashMap<FullName, Known>,
}

/// Where a schedule stands.
struct Known {
    /// As it was declared when it was read.
    declared: Arc<Schedule>,
    /// What it is told from others by.
    digest: [u8; 32],
    due: Due,
    /// Due times up to this one are done with.
    last: Timestamp,
    /// Not looked at before this.
    not_before: Option<Instant>,
}

impl Schedules {
    /// Schedules of `catalog`, their state in `store`; each may do what its service account may.
    pub fn new(
        fire: Arc<dyn Fire>,
        access: Arc<dyn Access>,
        catalog: Arc<dyn Catalog>,
        store: Arc<dyn Store>,
        metrics: Arc<Metrics>,
    ) -> Self {
        Self {
            fire,
            access,
            catalog,
            store,
            metrics,
            known: HashMap::new(),
        }
    }

    /// Fires what is due until `shutdown` is ready. Sleeps until the next due time or a change of the catalog.
    pub async fn run(mut self, shutdown: impl Future<Output = ()> + Send) {
        tokio::pin!(shutdown);
        let mut changes = self.catalog.changes();
        loop {
            let snapshot = Arc::clone(&changes.borrow_and_update());
            let sleep = self.turn(&snapshot, clock::now()).await;
            let woken = async {
                match sleep {
                    Some(sleep) => tokio::time::sleep(sleep.min(LONGEST_SLEEP)).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                () = &mut shutdown => return,
                news = changes.changed() => if news.is_err() { return },
                () = woken => {}
            }
        }
    }

    /// Fires what is due at `now`; answers how long nothing is due; `None`: nothing is due any more.
    async fn turn(&mut self, snapshot: &Snapshot, now: Timestamp) -> Option<Duration> {
        self.known
            .retain(|name, _| snapshot.schedules.contains_key(name));
        let mut sleep = None;
        for (name, schedule) in &snapshot.schedules {
            let next = match self.visit(name, schedule, now).await {
                Ok(next) => next,
                Err(error) => {
                    tracing::warn!(%error, schedule = %name, "where a schedule stands could not be read or noted");
                    Some(AGAIN)
                }
            };
            sleep = next.into_iter().chain(sleep).min();
        }
        sleep
    }

    /// Looks after one schedule.
    async fn visit(
        &mut self,
        name: &FullName,
        schedule: &Arc<Schedule>,
        now: Timestamp,
    ) -> Result<Option<Duration>, StoreError> {
        let (namespace, short) = name.split_once('/').unwrap_or(("", name));
        let known = match self.known.get_mut(name) {
            Some(known) if Arc::ptr_eq(&known.declared, schedule) => known,
            _ => {
                let Ok(due) = schedule.spec.due() else {
                    // A schedule in force can be read; one that cannot is a problem that the catalog told.
                    return Ok(None);
                };
                let incarnation = Incarnation::of(schedule);
                let record = self.store.schedule(namespace, short, incarnation, now);
                let record = record.await?;
                let known = Known {
                    declared: Arc::clone(schedule),
                    digest: digest(schedule),
                    due,
                    last: record.done_until(),
                    not_before: None,
                };
                self.known
                    .entry(Arc::clone(name))
                    .insert_entry(known)
                    .into_mut()
            }
        };
        if let Some(not_before) = known.not_before
            && let Some(rest) = not_before.checked_duration_since(Instant::now())
            && !rest.is_zero()
        {
            return Ok(Some(rest));
        }
        known.not_before = None;

        let spec = &schedule.spec;
        let missed = known
            .due
            .latest_missed(known.last, now, spec.starting_deadline());
        let fires = missed.due.filter(|_| !spec.suspend);
        let skipped = missed.skipped + u64::from(missed.due.is_some() && fires.is_none());
        if let Some(due) = fires {
            let sender = Sender {
                name: format!("schedule:{short}").into(),
                rights: (self.access).service_account(namespace, spec.service_account_name()),
            };
            let key = key(name, due);
            let fired = self
                .fire
                .fire(&sender, namespace, request(schedule), &key)
                .await;
            match fired {
                Ok(accepted) => {
                    let id = Some(accepted.id);
                    self.store
                        .schedule_fired(namespace, short, due, id, skipped)
                        .await?;
                    self.metrics.schedules_fired.inc();
                    tracing::info!(schedule = %name, %due, id = %accepted.id, skipped, "a schedule fired");
                    known.last = due;
                }
                Err(refusal) => {
                    let again = if refusal.passes() { AGAIN } else { WRONG };
                    let problems = problems(&refusal);
                    tracing::warn!(
                        schedule = %name, %due, %refusal, problems,
                        "a schedule could not be sent; tried again until its deadline"
                    );
                    known.not_before = Some(Instant::now() + again);
                    if !refusal.passes() {
                        let refused = RefusedDue {
                            due,
                            declared: known.digest,
                            message: sentence(&refusal, &problems),
                        };
                        self.store
                            .schedule_refused(namespace, short, &refused)
                            .await?;
                    }
                    return Ok(Some(again));
                }
            }
        } else if skipped > 0 {
            // The one that is noted as skipped counts itself.
            let until = missed.due.unwrap_or(now);
            self.store
                .schedule_fired(namespace, short, until, None, skipped - 1)
                .await?;
            tracing::warn!(schedule = %name, skipped, suspended = spec.suspend, "due times were skipped");
            known.last = until;
        }
        self.metrics.schedules_missed.inc_by(skipped);
        Ok(known
            .due
            .next_after(known.last.max(now))
            .map(|next| next.duration_since(now).unsigned_abs()))
    }
}

/// Tells a schedule from what it was before an edit, and from one of the same name that was made anew: what was refused
/// of the one says nothing of the other.
pub(crate) fn digest(schedule: &Schedule) -> [u8; 32] {
    let declared = (&schedule.metadata.uid, &schedule.spec);
    Sha256::digest(serde_json::to_vec(&declared).unwrap_or_default()).into()
}

fn key(name: &FullName, due: Timestamp) -> String {
    format!("{name}/{due}")
}

/// Everything in it follows from the schedule: a repeat is the same.
fn request(schedule: &Schedule) -> SendRequest {
    let spec = &schedule.spec;
    let spread = spec.spread_over().as_secs() as u32;
    SendRequest {
        template: spec.template.clone(),
        recipients: spec.recipients.clone(),
        parameters: spec.parameters.clone().unwrap_or_default(),
        priority: Some(spec.priority()),
        spread_over_seconds: Some(spread).filter(|seconds| *seconds > 0),
        ..SendRequest::default()
    }
}

/// Why it is not sent, for whoever declared it; at most so long that it is kept.
fn sentence(refusal: &Refusal, problems: &str) -> String {
    const LONGEST: usize = 500;
    let mut sentence = refusal.to_string();
    if !problems.is_empty() {
        sentence = format!("{sentence} (at {problems})");
    }
    if let Some((end, _)) = sentence.char_indices().nth(LONGEST) {
        sentence.truncate(end);
    }
    sentence
}

/// What is wrong, without what was given: parameters and addresses are not for logs.
fn problems(refusal: &Refusal) -> String {
    let (Refusal::Check { problems } | Refusal::FindTemplate { problems, .. }) = refusal else {
        return String::new();
    };
    let paths: Vec<&str> = problems.iter().map(|p| p.path.as_str()).collect();
    paths.join(", ")
}
