//! Who is to be looked at: one queue for each kind, filled by what changes, worked off a few at a time.

use std::convert::Infallible;
use std::panic::AssertUnwindSafe;
use std::sync::Arc;
use std::time::{Duration, Instant};

use futures::{FutureExt as _, Stream, StreamExt as _, stream};
use herald_crds::{Channel, Kind, NotificationTemplate, RecipientGroup, Schedule};
use kube::core::DeserializeGuard;
use kube::runtime::controller::{self, Action};
use kube::runtime::reflector::{ObjectRef, Store};
use kube::{Resource as _, ResourceExt as _};
use tokio::sync::mpsc;
use tokio_util::sync::CancellationToken;
use tracing::Instrument as _;

use crate::backoff::jittered;
use crate::channel;
use crate::context::Context;
use crate::error::Error;
use crate::metrics::{KindReason, OfKind};
use crate::status::{self, Told};

/// What waits to be taken up. What is taken up waits without a bound, but each resource once.
const LENGTH: usize = 1024;

/// A resource that is good is looked at again after so long even if nothing changes: for what no watch tells.
pub const RESYNC: Duration = Duration::from_hours(1);

/// Looking at one resource may take so long: as long as making many topics on a slow Pulsar.
const LONGEST: Duration = Duration::from_mins(5);

/// What could not be asked for is asked for again after this at the latest: it comes back for all at once.
const BACK_SOON: Duration = Duration::from_secs(30);

/// A resource as it came: also one that cannot be read.
pub type Guard<K> = DeserializeGuard<K>;

/// A resource that is to be looked at: its kind, namespace and name.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Wake(pub Kind, pub String, pub String);

/// The ends of the queues where something is put in. Cheap to clone.
#[derive(Debug, Clone)]
pub struct Queues {
    channels: mpsc::Sender<ObjectRef<Guard<Channel>>>,
    templates: mpsc::Sender<ObjectRef<Guard<NotificationTemplate>>>,
    groups: mpsc::Sender<ObjectRef<Guard<RecipientGroup>>>,
    schedules: mpsc::Sender<ObjectRef<Guard<Schedule>>>,
}

/// The ends of the queues where something is taken out.
#[derive(Debug)]
pub struct Outlets {
    /// Of Channels.
    pub channels: mpsc::Receiver<ObjectRef<Guard<Channel>>>,
    /// Of templates.
    pub templates: mpsc::Receiver<ObjectRef<Guard<NotificationTemplate>>>,
    /// Of groups.
    pub groups: mpsc::Receiver<ObjectRef<Guard<RecipientGroup>>>,
    /// Of Schedules.
    pub schedules: mpsc::Receiver<ObjectRef<Guard<Schedule>>>,
}

impl Queues {
    /// Empty queues.
    pub fn new() -> (Self, Outlets) {
        let (channels, of_channels) = mpsc::channel(LENGTH);
        let (templates, of_templates) = mpsc::channel(LENGTH);
        let (groups, of_groups) = mpsc::channel(LENGTH);
        let (schedules, of_schedules) = mpsc::channel(LENGTH);
        let queues = Self {
            channels,
            templates,
            groups,
            schedules,
        };
        let outlets = Outlets {
            channels: of_channels,
            templates: of_templates,
            groups: of_groups,
            schedules: of_schedules,
        };
        (queues, outlets)
    }

    /// Has a resource looked at; waits while the queue is full.
    pub async fn wake(&self, Wake(kind, namespace, name): Wake) {
        fn at<K: kube::Resource<DynamicType = ()>>(
            namespace: &str,
            name: &str,
        ) -> ObjectRef<Guard<K>> {
            ObjectRef::new(name).within(namespace)
        }
        // Nobody takes out any more when it shuts down.
        let _ = match kind {
            Kind::Channel => self.channels.send(at(&namespace, &name)).await.is_ok(),
            Kind::NotificationTemplate => self.templates.send(at(&namespace, &name)).await.is_ok(),
            Kind::RecipientGroup => self.groups.send(at(&namespace, &name)).await.is_ok(),
            Kind::Schedule => self.schedules.send(at(&namespace, &name)).await.is_ok(),
        };
    }
}

/// Looks at what the queue names, each resource one at a time, several at once, until `stop`; then finishes what is
/// begun.
pub async fn work<K, F, Fut>(
    ctx: Arc<Context>,
    store: Store<Guard<K>>,
    queue: mpsc::Receiver<ObjectRef<Guard<K>>>,
    stop: CancellationToken,
    reconcile: F,
) where
    K: Told,
    F: Fn(Arc<Guard<K>>, Arc<Context>) -> Fut + Clone + Send + Sync + 'static,
    Fut: Future<Output = Result<Action, Error>> + Send + 'static,
{
    let config = controller::Config::default().concurrency(ctx.concurrency);
    let looking = move |resource: Arc<Guard<K>>, ctx: Arc<Context>| {
        look(resource, ctx, reconcile.clone()).boxed()
    };
    let queue = taken_out(queue).take_until(stop.cancelled_owned());
    let forgetting = Arc::clone(&ctx);
    controller::applier(looking, again, ctx, store, queue, config)
        .for_each(async |looked_at| {
            if let Err(controller::Error::ObjectNotFound(gone)) = looked_at {
                let namespace = gone.namespace.as_deref().unwrap_or_default();
                forgetting.forget(K::KIND, namespace, &gone.name);
            }
        })
        .await;
}

fn taken_out<K: Told>(
    queue: mpsc::Receiver<ObjectRef<Guard<K>>>,
) -> impl Stream<Item = Result<ObjectRef<Guard<K>>, Infallible>> + Send {
    let taken = stream::unfold(queue, async |mut queue| {
        let next = queue.recv().await?;
        Some((Ok(next), queue))
    });
    // Whoever takes from it must be able to move it.
    Box::pin(taken)
}

/// Looks at one resource, unless its owner wants it left alone.
pub async fn look<K, F, Fut>(
    resource: Arc<Guard<K>>,
    ctx: Arc<Context>,
    reconcile: F,
) -> Result<Action, Error>
where
    K: Told,
    F: Fn(Arc<Guard<K>>, Arc<Context>) -> Fut,
    Fut: Future<Output = Result<Action, Error>>,
{
    // One that goes is let go all the same: nobody could delete its namespace else.
    if is_disabled(&*resource) && resource.meta().deletion_timestamp.is_none() {
        return Ok(Action::await_change());
    }
    let kind = OfKind {
        kind: K::KIND.as_str(),
    };
    let begun = Instant::now();
    let span = tracing::info_span!(
        "reconcile",
        herald.kind = kind.kind,
        k8s.namespace.name = resource.meta().namespace,
        herald.name = resource.meta().name,
        herald.outcome = tracing::field::Empty,
        otel.status_code = tracing::field::Empty,
    );
    let outcome = look_now(&resource, &ctx, reconcile)
        .instrument(span.clone())
        .await;
    match &outcome {
        Ok(_) => span.record("herald.outcome", "done"),
        Err(error) => span
            .record("herald.outcome", error.reason())
            .record("otel.status_code", "ERROR"),
    };
    ctx.metrics.reconciled.get_or_create(&kind).inc();
    let seconds = ctx.metrics.reconcile_seconds.get_or_create(&kind).clone();
    seconds.observe(begun.elapsed().as_secs_f64());
    if outcome.is_ok() && ctx.backoff.worked(&name_of(&*resource)) {
        ctx.metrics.backing_off.set(ctx.backoff.len() as i64);
    }
    outcome
}

async fn look_now<K, F, Fut>(
    resource: &Arc<Guard<K>>,
    ctx: &Arc<Context>,
    reconcile: F,
) -> Result<Action, Error>
where
    K: Told,
    F: Fn(Arc<Guard<K>>, Arc<Context>) -> Fut,
    Fut: Future<Output = Result<Action, Error>>,
{
    match &resource.0 {
        Err(invalid)
            if K::KIND == Kind::Channel && invalid.metadata.deletion_timestamp.is_some() =>
        {
            channel::let_go(ctx, &invalid.metadata).await
        }
        Err(invalid) => status::tell_unreadable::<K>(ctx, &invalid.metadata, &invalid.error)
            .await
            .map(|()| Action::await_change()),
        Ok(_) => {
            let looking = reconcile(Arc::clone(resource), Arc::clone(ctx));
            bounded(resource, looking).await
        }
    }
}

/// Neither one that panics nor one that hangs keeps the others from being looked at.
async fn bounded<K: Told>(
    resource: &Guard<K>,
    looking: impl Future<Output = Result<Action, Error>>,
) -> Result<Action, Error> {
    let looking = AssertUnwindSafe(looking).catch_unwind();
    let failed = |how| Error::Look {
        name: name_of(resource),
        how,
    };
    match tokio::time::timeout(LONGEST, looking).await {
        Ok(Ok(outcome)) => outcome,
        Ok(Err(_)) => Err(failed("the operator has a defect, of which its log tells")),
        Err(_) => Err(failed("it was not finished in time")),
    }
}

/// Whether its owner wants it left alone.
pub fn is_disabled<K: kube::Resource>(resource: &K) -> bool {
    let annotations = resource.annotations();
    annotations
        .get(herald_crds::names::RECONCILE)
        .is_some_and(|value| value == "disabled")
}

/// When to look again at what failed.
#[expect(clippy::needless_pass_by_value, reason = "the signature is kube's")]
fn again<K: Told>(resource: Arc<Guard<K>>, error: &Error, ctx: Arc<Context>) -> Action {
    let name = name_of(&*resource);
    let labels = KindReason {
        kind: K::KIND.as_str(),
        reason: error.reason(),
    };
    ctx.metrics.failed.get_or_create(&labels).inc();
    let mut pause = ctx.backoff.failed(&name);
    if error.is_unreachable() {
        pause = pause.min(jittered(BACK_SOON));
    }
    ctx.metrics.backing_off.set(ctx.backoff.len() as i64);
    tracing::warn!(resource = %name, reason = error.reason(), %error, again_in = ?pause, "failed");
    Action::requeue(pause)
}

/// What a resource is called in logs and in the backoff: `Channel shop/mail`.
pub fn name_of<K: Told>(resource: &Guard<K>) -> String {
    name(
        K::KIND,
        resource.meta().namespace.as_deref().unwrap_or_default(),
        resource.meta().name.as_deref().unwrap_or_default(),
    )
}

/// The same, by its parts.
pub fn name(kind: Kind, namespace: &str, name: &str) -> String {
    format!("{} {namespace}/{name}", kind.as_str())
}

/// Looks at a resource again after about an hour.
pub fn resync() -> Action {
    Action::requeue(jittered(RESYNC))
}
