//! The catalog of a cluster: what its API server has, watched and never written.
//!
//! # Layout
//!
//! - This file: the catalog, and how a change comes into force.
//! - `watch`: lists and watches, told apart by what they are of. `held`: what they have told so far.
//! - [`secrets`]: credentials of providers, for a process that delivers without a mount of its own.
//!
//! Everything in force is kept in memory, so an API server that is away costs freshness, not service.

mod held;
pub mod secrets;
#[cfg(test)]
mod tests;
mod watch;

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use kube::Client;
use kube::runtime::watcher;
use tokio::sync::watch::{Receiver, Sender, channel};
use tokio::time::Instant;
use tokio_util::task::AbortOnDropHandle;

use self::held::Held;
use self::watch::{Event, Source};
use super::assemble::assemble;
use super::{Catalog, Snapshot};

/// Changes that come within this time of each other come into force together: `kubectl apply -f` of a folder is one.
const QUIET: Duration = Duration::from_millis(50);

/// A change comes into force after this time however many follow it.
const LONGEST_QUIET: Duration = Duration::from_millis(500);

/// What is in the cluster, and what is in force of it.
///
/// A broken resource's last good version stays in force, for as long as this process runs.
pub struct KubernetesCatalog {
    current: Receiver<Arc<Snapshot>>,
    listed: Receiver<bool>,
    _watching: AbortOnDropHandle<()>,
}

impl KubernetesCatalog {
    /// Begins to watch `namespaces`; all of the cluster if there are none. Needs a tokio runtime.
    ///
    /// Nothing is in force before everything was listed once: [`listed`](Self::listed). Ends when it is dropped.
    pub fn watch(client: &Client, namespaces: &[String]) -> Self {
        let (in_force, current) = channel(Arc::default());
        let (all_listed, listed) = channel(false);
        let sources = watch::sources(namespaces);
        let events = watch::events(client, &sources);
        let held = Held::new(sources);
        let keeping = keep(held, events, in_force, all_listed);
        Self {
            current,
            listed,
            _watching: AbortOnDropHandle::new(tokio::spawn(keeping)),
        }
    }

    /// Waits until everything was listed once, however long that takes; can be dropped at any time.
    pub async fn listed(&self) {
        let mut listed = self.listed.clone();
        // It ends with this catalog alone, which is borrowed.
        let _ = listed.wait_for(|listed| *listed).await;
    }
}

impl Catalog for KubernetesCatalog {
    fn current(&self) -> Arc<Snapshot> {
        Arc::clone(&self.current.borrow())
    }

    fn changes(&self) -> Receiver<Arc<Snapshot>> {
        self.current.clone()
    }
}

/// Takes in what the watches tell, and puts it in force. Never ends.
async fn keep(
    mut held: Held,
    mut events: watch::Events,
    in_force: Sender<Arc<Snapshot>>,
    listed: Sender<bool>,
) {
    // When the first change came that is not in force yet.
    let mut changed: Option<Instant> = None;
    loop {
        let now = Instant::now();
        let due = changed.map(|since| (now + QUIET).min(since + LONGEST_QUIET));
        let next = match due {
            Some(due) if due <= now => None,
            Some(due) => tokio::time::timeout_at(due, events.next()).await.ok(),
            None => Some(events.next().await),
        };
        match next {
            Some(Some((source, event))) => {
                if take(&mut held, source, event) {
                    changed.get_or_insert(now);
                }
            }
            // The watches go on for ever: it ends only if there are none.
            Some(None) => return,
            None => {
                changed = None;
                if held.is_complete() {
                    held = publish(held, &in_force).await;
                    listed.send_replace(true);
                }
            }
        }
    }
}

/// Takes in one event; answers whether something else may be in force now.
fn take(held: &mut Held, source: usize, event: Result<Event, watcher::Error>) -> bool {
    match event {
        Ok(event) => held.take(source, event),
        Err(error) => {
            let of = held.source(source).clone();
            if let Source::Namespaces(_) = of
                && is_forbidden(&error)
                && held.do_without(source)
            {
                tracing::warn!(
                    "Namespaces may not be read: Channels that allow some by their labels allow none but by name"
                );
                return true;
            }
            if let Source::Resources(_, Some(_)) = of
                && is_forbidden(&error)
                && held.do_without(source)
            {
                tracing::warn!(
                    of = %of,
                    "nothing may be read there, or the namespace is gone: nothing new of it is accepted, and what was accepted waits, \
                     until that changes"
                );
                return true;
            }
            tracing::warn!(
                %error, of = %of,
                "what is declared cannot be watched at the moment; what is in force stays, trying again"
            );
            false
        }
    }
}

/// Puts what is held in force.
async fn publish(held: Held, in_force: &Sender<Arc<Snapshot>>) -> Held {
    let before = Arc::clone(&in_force.borrow());
    // Compiling a thousand templates takes a while.
    let assembling = tokio::task::spawn_blocking(move || {
        let snapshot = assemble(held.everything(), &before);
        snapshot.tell(&before);
        (held, snapshot)
    });
    match assembling.await {
        Ok((held, snapshot)) => {
            in_force.send_replace(Arc::new(snapshot));
            held
        }
        Err(error) => std::panic::resume_unwind(error.into_panic()),
    }
}

/// Whether the API server refuses, for want of permission.
fn is_forbidden(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.is_forbidden(),
        _ => false,
    }
}
