//! Of several operators one works: who holds the Lease.
//!
//! Clocks are not compared: another's Lease has run out when we have seen no renewal for as long as it counts. The holder
//! stops before that, so that at no time two work; one that was suspended, too: before each write it looks at its clock.

use std::time::Duration;

use axum::http::Request;
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::{Lease, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use kube::api::PostParams;
use kube::client::Body;
use kube::{Api, Client};
use tokio::sync::watch;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::backoff::jittered;
use crate::fence::fenced;

/// What the Lease is called.
const NAME: &str = "herald-operator";

/// One of several operators.
pub struct Candidate {
    leases: Api<Lease>,
    namespace: String,
    identity: String,
    lasts: Duration,
    /// Until when we may work; `None`: the Lease is not ours.
    term: watch::Sender<Option<Instant>>,
    /// Another's Lease as it was seen last, and since when it has not changed.
    seen: Option<(Option<String>, Instant)>,
}

/// For how long whoever holds the Lease may work. Cheap to clone.
///
/// It goes by the monotonic clock, which stands still while the whole machine is suspended.
#[derive(Debug, Clone)]
pub struct Term(watch::Receiver<Option<Instant>>);

/// The Lease is not ours, or not any more.
#[derive(Debug, thiserror::Error)]
#[error("the Lease has run out: another operator may work")]
struct TermOver;

impl Term {
    /// Whether something may be done now.
    pub fn lasts(&self) -> bool {
        !self.left().is_zero()
    }

    /// For how long something may be done yet; zero if the Lease is not ours.
    fn left(&self) -> Duration {
        let end = *self.0.borrow();
        end.map_or(Duration::ZERO, |end| {
            end.saturating_duration_since(Instant::now())
        })
    }

    /// The same client, but it changes nothing while this does not last. What was sent already may still arrive.
    pub fn fence(&self, client: Client) -> Client {
        let namespace = client.default_namespace().to_owned();
        let term = self.clone();
        let fenced_off = tower::service_fn(move |request: Request<Body>| {
            let (client, term) = (client.clone(), term.clone());
            async move {
                let is_safe = request.method().is_safe();
                let may = || is_safe || term.lasts();
                // Also while it waits for a connection, or before it tries again.
                fenced(client.send(request), may)
                    .await
                    .unwrap_or_else(|| Err(kube::Error::Service(TermOver.into())))
            }
        });
        Client::new(fenced_off, namespace)
    }
}

/// What came of trying to hold the Lease.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Held {
    /// It is ours until it runs out.
    Ours,
    /// It is another's.
    Anothers,
}

/// Why a Lease is not renewed any more.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Kept {
    /// It is ours, and whoever renewed it was told to stop.
    UntilStopped,
    /// It is another's, or may be soon: nothing may be done any more.
    Lost,
}

/// How long it may take to give it back.
const GIVING_BACK: Duration = Duration::from_secs(5);

impl Candidate {
    /// A candidate; `lasts` is for how long a Lease counts that is not renewed.
    pub fn new(client: Client, namespace: &str, identity: String, lasts: Duration) -> Self {
        Self {
            leases: Api::namespaced(client, namespace),
            namespace: namespace.to_owned(),
            identity,
            lasts,
            term: watch::Sender::new(None),
            seen: None,
        }
    }

    /// A Lease is renewed so often.
    fn interval(&self) -> Duration {
        self.lasts / 6
    }

    /// After so long without a renewal its holder does nothing any more: well before another may take it.
    fn counts(&self) -> Duration {
        self.lasts * 2 / 3
    }

    /// For how long we may work: not before the Lease is ours, and from each renewal on for as long as that counts.
    pub fn term(&self) -> Term {
        Term(self.term.subscribe())
    }

    /// Resolves when the Lease is ours.
    pub async fn win(&mut self) {
        loop {
            // An API server that takes a question and never answers is asked again.
            match tokio::time::timeout(self.counts(), self.try_hold()).await {
                Ok(Ok(Held::Ours)) => return,
                Ok(Ok(Held::Anothers)) => {}
                Ok(Err(error)) => tracing::warn!(%error, "the Lease cannot be asked for"),
                Err(_) => tracing::warn!("nobody answers who is asked for the Lease"),
            }
            tokio::time::sleep(jittered(self.interval())).await;
        }
    }

    /// Renews the Lease until `stop`, or until it is lost or may be. It counts from when it was last asked for, also before
    /// this was called.
    pub async fn keep(&mut self, stop: &CancellationToken) -> Kept {
        let term = self.term();
        loop {
            let rest = term.left();
            if rest.is_zero() {
                return Kept::Lost;
            }
            tokio::select! {
                () = stop.cancelled() => return Kept::UntilStopped,
                () = tokio::time::sleep(self.interval().min(rest)) => {}
            }
            match tokio::time::timeout(term.left(), self.try_hold()).await {
                Ok(Ok(Held::Ours)) => {}
                Ok(Ok(Held::Anothers)) => {
                    tracing::error!("the Lease is another's");
                    return Kept::Lost;
                }
                Ok(Err(error)) => tracing::warn!(%error, "the Lease cannot be renewed"),
                Err(_) => tracing::warn!("the Lease cannot be renewed in time"),
            }
        }
    }

    /// Gives the Lease back, so that another need not wait until it runs out. What fails, or takes long, is left to that.
    /// Nothing may be done any more from when this is called.
    pub async fn release(&self) {
        self.term.send_replace(None);
        if tokio::time::timeout(GIVING_BACK, self.give_back())
            .await
            .is_err()
        {
            tracing::debug!("the Lease is not given back in time");
        }
    }

    async fn give_back(&self) {
        let lease = match self.leases.get_opt(NAME).await {
            Ok(Some(lease)) => lease,
            Ok(None) => return,
            Err(error) => {
                tracing::debug!(%error, "the Lease is not given back");
                return;
            }
        };
        let mut spec = lease.spec.clone().unwrap_or_default();
        if spec.holder_identity.as_deref() != Some(self.identity.as_str()) {
            return;
        }
        spec.holder_identity = None;
        spec.renew_time = None;
        spec.lease_duration_seconds = Some(1);
        let given = Lease {
            metadata: lease.metadata,
            spec: Some(spec),
        };
        let parameters = PostParams::default();
        if let Err(error) = self.leases.replace(NAME, &parameters, &given).await {
            tracing::debug!(%error, "the Lease is not given back");
        }
    }

    /// Asks for the Lease once. One that is ours counts from before it was asked for.
    pub async fn try_hold(&mut self) -> Result<Held, kube::Error> {
        let asked = Instant::now();
        let held = self.ask().await?;
        let end = (held == Held::Ours).then(|| asked + self.counts());
        self.term.send_replace(end);
        Ok(held)
    }

    async fn ask(&mut self) -> Result<Held, kube::Error> {
        let Some(lease) = self.leases.get_opt(NAME).await? else {
            return self.create().await;
        };
        let spec = lease.spec.clone().unwrap_or_default();
        let is_ours = spec.holder_identity.as_deref() == Some(self.identity.as_str());
        if !is_ours && !self.has_run_out(&lease, &spec) {
            return Ok(Held::Anothers);
        }
        let now = MicroTime(Timestamp::now());
        let transitions = spec.lease_transitions.unwrap_or(0);
        let taken = LeaseSpec {
            holder_identity: Some(self.identity.clone()),
            lease_duration_seconds: i32::try_from(self.lasts.as_secs()).ok(),
            acquire_time: if is_ours {
                spec.acquire_time
            } else {
                Some(now.clone())
            },
            renew_time: Some(now),
            lease_transitions: Some(if is_ours {
                transitions
            } else {
                transitions + 1
            }),
            preferred_holder: None,
            strategy: None,
        };
        // With the version that was read: of two who try, one is refused.
        let wanted = Lease {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                namespace: Some(self.namespace.clone()),
                resource_version: lease.metadata.resource_version,
                labels: lease.metadata.labels,
                annotations: lease.metadata.annotations,
                ..ObjectMeta::default()
            },
            spec: Some(taken),
        };
        let parameters = PostParams::default();
        held(self.leases.replace(NAME, &parameters, &wanted).await)
    }

    async fn create(&self) -> Result<Held, kube::Error> {
        let now = MicroTime(Timestamp::now());
        let wanted = Lease {
            metadata: ObjectMeta {
                name: Some(NAME.to_owned()),
                namespace: Some(self.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(self.identity.clone()),
                lease_duration_seconds: i32::try_from(self.lasts.as_secs()).ok(),
                acquire_time: Some(now.clone()),
                renew_time: Some(now),
                lease_transitions: Some(0),
                preferred_holder: None,
                strategy: None,
            }),
        };
        held(self.leases.create(&PostParams::default(), &wanted).await)
    }

    /// Whether another's Lease has not been renewed for as long as it counts, by our own watch.
    fn has_run_out(&mut self, lease: &Lease, spec: &LeaseSpec) -> bool {
        let nobody = spec
            .holder_identity
            .as_deref()
            .unwrap_or_default()
            .is_empty();
        if nobody {
            return true;
        }
        let version = &lease.metadata.resource_version;
        let since = match &self.seen {
            Some((seen, since)) if seen == version => *since,
            _ => {
                let now = Instant::now();
                self.seen = Some((version.clone(), now));
                now
            }
        };
        let lasts = spec.lease_duration_seconds.unwrap_or(1).max(1);
        since.elapsed() >= Duration::from_secs(lasts.unsigned_abs().into())
    }
}

/// Who was refused was later than another.
fn held(written: Result<Lease, kube::Error>) -> Result<Held, kube::Error> {
    match written {
        Ok(_) => Ok(Held::Ours),
        Err(kube::Error::Api(status)) if status.code == 409 => Ok(Held::Anothers),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests;
