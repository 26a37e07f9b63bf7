//! Accept: a request becomes a message.
//!
//! # Layout
//!
//! - [`sender`]: who asks, and what it may do. [`request`]: what is asked. [`refusal`]: why not.
//! - [`check`]: whether it is right, and what travels. `groups`: the groups that it names, as they are.
//! - `repeats`: what makes a repeat get the first one's answer. `batch`: group commit.
//! - [`load`]: how busy channels are. [`schedules`]: what is sent without anybody asking.

mod batch;
pub mod check;
mod groups;
pub mod load;
pub mod refusal;
mod repeats;
pub mod request;
pub mod schedules;
pub mod sender;

use std::num::NonZeroU32;
use std::sync::Arc;
use std::time::{Duration, Instant};

use governor::clock::{Clock, DefaultClock};
use governor::state::keyed::HashMapStateStore;
use governor::{Quota, RateLimiter};

pub use check::Prepared;
pub use load::{ChannelLoad, Idle};
pub use refusal::Refusal;
pub use request::{Accepted, SendRequest};
pub use sender::{Scope, Scopes, Sender};

use crate::broker::Broker;
use crate::catalog::Catalog;
use crate::clock;
use crate::id::NotificationId;
use crate::metrics::{Metrics, NamespaceClass};
use crate::store::Store;
use crate::timing::Timing;
use batch::{Batches, Item, NotPublished};
use check::Against;
use groups::Groups;
use repeats::{Repeats, Seen};

/// Keyed requests whose answers are remembered here.
const REMEMBERED: usize = 100_000;

/// For how long.
const REMEMBERED_FOR: Duration = Duration::from_hours(24);

/// How long the store may take to say whether it knows a key; then it counts as not knowing.
const LOOK_UP: Duration = Duration::from_millis(500);

/// Senders whose rates are kept before the idle ones are forgotten.
const RATES: usize = 10_000;

/// How fast one sender may send in one namespace.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct SenderRate {
    /// Notifications a second.
    pub per_second: NonZeroU32,
    /// So many at once, after a pause.
    pub burst: NonZeroU32,
}

impl Default for SenderRate {
    /// 5,000 a second, 10,000 at once.
    fn default() -> Self {
        const fn at_least_one(n: u32) -> NonZeroU32 {
            match NonZeroU32::new(n) {
                Some(n) => n,
                None => NonZeroU32::MIN,
            }
        }
        Self {
            per_second: at_least_one(5_000),
            burst: at_least_one(10_000),
        }
    }
}

/// What accepting works with.
#[derive(Clone)]
pub struct Parts {
    /// Where requests go.
    pub broker: Arc<dyn Broker>,
    /// What is declared.
    pub catalog: Arc<dyn Catalog>,
    /// Asked about keys that are not remembered here, and only then.
    pub store: Arc<dyn Store>,
    /// How busy channels are.
    pub load: Arc<dyn ChannelLoad>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// How long to wait.
    pub timing: Timing,
    /// How fast one sender may send.
    pub rate: SenderRate,
}

type Limiter =
    RateLimiter<(Arc<str>, Arc<str>), HashMapStateStore<(Arc<str>, Arc<str>)>, DefaultClock>;

/// Accepts notifications: checks them, gives them their ids, and publishes them.
pub struct Accept {
    parts: Parts,
    batches: Batches,
    repeats: Arc<Repeats>,
    groups: Groups,
    limiter: Limiter,
    clock: DefaultClock,
}

impl Accept {
    /// Starts the tasks that publish; they end when this is dropped and all is published. Needs a tokio runtime.
    pub fn new(parts: Parts) -> Self {
        let rate = parts.rate;
        let quota = Quota::per_second(rate.per_second).allow_burst(rate.burst);
        Self {
            batches: Batches::new(&parts.broker, &parts.metrics),
            repeats: Repeats::new(REMEMBERED, REMEMBERED_FOR),
            groups: Groups::default(),
            limiter: RateLimiter::hashmap(quota),
            clock: DefaultClock::default(),
            parts,
        }
    }

    /// Accepts a notification: once this returns, it is durable.
    ///
    /// With a key, all repeats of the same request get the answer of the first. A traceparent that is none of W3C's
    /// is replaced by one that begins here. If the future is dropped, the request may be accepted all the same.
    pub async fn accept(
        &self,
        sender: &Sender,
        namespace: &str,
        request: SendRequest,
        key: Option<&str>,
        traceparent: Option<&str>,
    ) -> Result<Accepted, Refusal> {
        authorized(sender)?;
        self.limit(sender, namespace)?;
        let body: Arc<str> = request.digest().into();
        let (id, ticket) = match key {
            None => (NotificationId::random(), None),
            Some(key) => {
                let id = NotificationId::from_key(namespace, &sender.name, key);
                let ticket = match self.repeats.begin(id, &body, Instant::now()) {
                    Seen::New(ticket) => ticket,
                    Seen::InFlight => return Err(Refusal::AwaitFirst),
                    Seen::Other => return Err(Refusal::ReuseKey),
                    Seen::Accepted(accepted) => return Ok(replayed(&accepted)),
                };
                if let Some(known) = self.look_up(id, &body).await {
                    let accepted = known?;
                    let answer = replayed(&accepted);
                    ticket.accepted(accepted);
                    return Ok(answer);
                }
                (id, Some(ticket))
            }
        };
        let prepared = self.prepare_as(sender, namespace, request, id, body, traceparent)?;
        self.publish(prepared, ticket).await
    }

    /// Checks a request as [`accept`](Self::accept) does, and goes no further.
    pub fn prepare(
        &self,
        sender: &Sender,
        namespace: &str,
        request: SendRequest,
    ) -> Result<Prepared, Refusal> {
        authorized(sender)?;
        self.limit(sender, namespace)?;
        let body = request.digest().into();
        let id = NotificationId::random();
        self.prepare_as(sender, namespace, request, id, body, None)
    }

    fn prepare_as(
        &self,
        sender: &Sender,
        namespace: &str,
        request: SendRequest,
        id: NotificationId,
        body: Arc<str>,
        traceparent: Option<&str>,
    ) -> Result<Prepared, Refusal> {
        Against {
            snapshot: &self.parts.catalog.current(),
            groups: &self.groups,
            load: &*self.parts.load,
            sender,
            namespace,
            now: clock::now(),
        }
        .prepare(id, body, Some(trace(traceparent, &id)), request)
    }

    async fn publish(
        &self,
        prepared: Prepared,
        ticket: Option<repeats::Ticket>,
    ) -> Result<Accepted, Refusal> {
        let Prepared {
            request,
            definitions,
            path,
        } = prepared;
        let accepted = Accepted {
            id: request.id,
            accepted_at: request.accepted_at,
            priority: request.priority,
            replayed: false,
        };
        let Ok(travels) = serde_json::value::to_raw_value(&request) else {
            unreachable!("a request type without a JSON form");
        };
        let item = Item {
            request: travels,
            definitions,
            accepted: accepted.clone(),
            ticket,
        };
        let receipt = self.batches.publish(path, item);
        match tokio::time::timeout(self.parts.timing.receipt, receipt).await {
            Ok(Ok(())) => {}
            Ok(Err(NotPublished::Full { reason })) => return Err(Refusal::Queue { reason }),
            Ok(Err(NotPublished::NoReceipt)) | Err(_) => return Err(Refusal::Receipt),
        }
        self.parts
            .metrics
            .accepted
            .get_or_create(&NamespaceClass {
                namespace: request.namespace.to_string(),
                priority: request.priority.as_str(),
            })
            .inc();
        tracing::debug!(
            id = %request.id,
            namespace = %request.namespace,
            template = %request.template,
            sender = %request.sender,
            priority = %request.priority,
            path = %path,
            traceparent = request.traceparent.as_deref(),
            "accepted"
        );
        Ok(accepted)
    }

    /// What the store knows of a request; `None`: nothing, or it does not answer.
    async fn look_up(
        &self,
        id: NotificationId,
        body: &Arc<str>,
    ) -> Option<Result<Accepted, Refusal>> {
        let ids = [id];
        let asked = tokio::time::timeout(LOOK_UP, self.parts.store.requests(&ids));
        let known = match asked.await {
            Ok(Ok(known)) => known.into_iter().next()?,
            Ok(Err(error)) => {
                tracing::debug!(%error, "the store does not say whether it knows a key");
                return None;
            }
            Err(_) => return None,
        };
        if known.body != *body {
            return Some(Err(Refusal::ReuseKey));
        }
        Some(Ok(Accepted {
            id,
            accepted_at: known.accepted_at,
            priority: known.priority,
            replayed: false,
        }))
    }

    fn limit(&self, sender: &Sender, namespace: &str) -> Result<(), Refusal> {
        if self.limiter.len() > RATES {
            self.limiter.retain_recent();
        }
        let key = (Arc::from(namespace), Arc::clone(&sender.name));
        self.limiter
            .check_key(&key)
            .map_err(|not_until| Refusal::Limit {
                limit: self.parts.rate.per_second.get(),
                wait: not_until.wait_time_from(self.clock.now()),
            })
    }
}

fn authorized(sender: &Sender) -> Result<(), Refusal> {
    if sender.scopes.allow(Scope::NotificationsCreate) {
        return Ok(());
    }
    Err(Refusal::Authorize {
        scope: Scope::NotificationsCreate,
        because: String::new(),
    })
}

fn replayed(first: &Accepted) -> Accepted {
    Accepted {
        replayed: true,
        ..first.clone()
    }
}

/// The caller's trace context, or a new one whose trace id is the notification's id.
fn trace(given: Option<&str>, id: &NotificationId) -> Arc<str> {
    match given.filter(|given| is_traceparent(given)) {
        Some(given) => given.into(),
        None => format!("00-{id}-{:016x}-01", rand::random::<u64>() | 1).into(),
    }
}

/// Whether it is a traceparent of version 00 (W3C Trace Context, section 3.2).
fn is_traceparent(text: &str) -> bool {
    let hex = |part: &str, digits: usize| {
        part.len() == digits
            && part
                .bytes()
                .all(|b| b.is_ascii_digit() || (b'a'..=b'f').contains(&b))
    };
    let nought = |part: &str| part.bytes().all(|b| b == b'0');
    let parts: Vec<&str> = text.split('-').collect();
    matches!(parts[..], ["00", trace, parent, flags]
        if hex(trace, 32) && hex(parent, 16) && hex(flags, 2) && !nought(trace) && !nought(parent))
}
