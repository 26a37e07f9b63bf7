//! Accept: a request becomes a message.
//!
//! # Layout
//!
//! - [`sender`]: what an API key may do. [`request`]: what is asked. [`refusal`]: why not. `authorize`: whether it may be asked.
//! - [`check`]: whether it is right, and what travels. `groups`: the groups that it names, as they are.
//! - `repeats`: what makes a repeat get the first one's answer. `batch`: group commit.
//! - [`load`]: how busy channels are. [`schedules`]: what is sent without anybody asking.

mod authorize;
mod batch;
pub mod check;
mod groups;
pub mod load;
pub mod refusal;
mod repeats;
pub mod request;
pub mod schedules;
pub mod sender;

use std::hash::Hash;
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
pub use sender::{Scope, Scopes};

use crate::access::{Sender, rights};
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

/// Senders, and namespaces, whose rates are kept before the idle ones are forgotten.
const RATES: usize = 10_000;

/// How fast notifications may be sent.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Rate {
    /// Notifications a second.
    pub per_second: NonZeroU32,
    /// So many at once, after a pause.
    pub burst: NonZeroU32,
}

impl Rate {
    /// So many a second, and twice as many at once; 0 counts as 1.
    pub const fn new(per_second: u32) -> Self {
        const fn at_least_one(n: u32) -> NonZeroU32 {
            match NonZeroU32::new(n) {
                Some(n) => n,
                None => NonZeroU32::MIN,
            }
        }
        Self {
            per_second: at_least_one(per_second),
            burst: at_least_one(per_second.saturating_mul(2)),
        }
    }
}

/// How fast notifications may be sent, in each gateway.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Quotas {
    /// By one sender in one namespace.
    pub sender: Rate,
    /// By all senders of one namespace together.
    pub namespace: Rate,
}

impl Default for Quotas {
    /// 5,000 a second by a sender, 10,000 in a namespace.
    fn default() -> Self {
        Self {
            sender: Rate::new(5_000),
            namespace: Rate::new(10_000),
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
    /// How fast may be sent.
    pub quotas: Quotas,
}

type Limiter<K> = RateLimiter<K, HashMapStateStore<K>, DefaultClock>;

/// Accepts notifications: checks them, gives them their ids, and publishes them.
pub struct Accept {
    parts: Parts,
    batches: Batches,
    repeats: Arc<Repeats>,
    groups: Groups,
    /// By namespace and sender.
    by_sender: Limiter<(Arc<str>, Arc<str>)>,
    by_namespace: Limiter<Arc<str>>,
    clock: DefaultClock,
}

impl Accept {
    /// Starts the tasks that publish; they end when this is dropped and all is published. Needs a tokio runtime.
    pub fn new(parts: Parts) -> Self {
        let quota = |rate: Rate| Quota::per_second(rate.per_second).allow_burst(rate.burst);
        let Quotas { sender, namespace } = parts.quotas;
        Self {
            batches: Batches::new(&parts.broker, &parts.metrics),
            repeats: Repeats::new(REMEMBERED, REMEMBERED_FOR),
            groups: Groups::default(),
            by_sender: RateLimiter::hashmap(quota(sender)),
            by_namespace: RateLimiter::hashmap(quota(namespace)),
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
        self.may_send(sender, namespace).await?;
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
        let prepared = self
            .prepare_as(sender, namespace, request, id, body, traceparent)
            .await?;
        self.publish(prepared, ticket).await
    }

    /// Checks a request as [`accept`](Self::accept) does, and goes no further.
    pub async fn prepare(
        &self,
        sender: &Sender,
        namespace: &str,
        request: SendRequest,
    ) -> Result<Prepared, Refusal> {
        self.may_send(sender, namespace).await?;
        self.limit(sender, namespace)?;
        let body = request.digest().into();
        let id = NotificationId::random();
        self.prepare_as(sender, namespace, request, id, body, None)
            .await
    }

    async fn prepare_as(
        &self,
        sender: &Sender,
        namespace: &str,
        request: SendRequest,
        id: NotificationId,
        body: Arc<str>,
        traceparent: Option<&str>,
    ) -> Result<Prepared, Refusal> {
        let snapshot = self.parts.catalog.current();
        authorize::members(&snapshot, sender, namespace, &request).await?;
        Against {
            snapshot: &snapshot,
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

    async fn may_send(&self, sender: &Sender, namespace: &str) -> Result<(), Refusal> {
        let asked = sender.require(&rights::SEND, namespace, "").await;
        asked.map_err(|denied| Refusal::Authorize {
            denied,
            because: String::new(),
        })
    }

    fn limit(&self, sender: &Sender, namespace: &str) -> Result<(), Refusal> {
        let Quotas {
            sender: own,
            namespace: all,
        } = self.parts.quotas;
        let namespace: Arc<str> = Arc::from(namespace);
        let key = (Arc::clone(&namespace), Arc::clone(&sender.name));
        self.check(&self.by_sender, &key, "a sender", own)?;
        self.check(&self.by_namespace, &namespace, "a namespace", all)
    }

    fn check<K: Clone + Eq + Hash>(
        &self,
        limiter: &Limiter<K>,
        key: &K,
        of: &'static str,
        rate: Rate,
    ) -> Result<(), Refusal> {
        if limiter.len() > RATES {
            limiter.retain_recent();
        }
        let checked = limiter.check_key(key);
        checked.map_err(|not_until| Refusal::Limit {
            of,
            limit: rate.per_second.get(),
            wait: not_until.wait_time_from(self.clock.now()),
        })
    }
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
