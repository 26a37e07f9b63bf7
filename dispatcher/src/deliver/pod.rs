//! A worker as a Channel is declared, and a process that is nothing but one.

use std::sync::Arc;
use std::time::Duration;

use herald_crds::{ChannelSpec, names};
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use super::ledger::Ledger;
use super::worker::{NamedProvider, Shared, Worker};
use crate::id::FullName;
use crate::metrics::ChannelProvider;
use crate::provider::{BuildError, Providers};

/// A worker with the providers that a Channel declares. No I/O.
///
/// # Errors
///
/// A provider that an edit of the Channel must cure.
pub fn worker(
    channel: &FullName,
    spec: &ChannelSpec,
    providers: &Providers,
    ledger: Arc<Ledger>,
    shared: Shared,
) -> Result<Arc<Worker>, BuildError> {
    let concurrency = spec.concurrency();
    let mut named = Vec::with_capacity(spec.providers.len());
    for declared in &spec.providers {
        let provider = providers(channel, declared, concurrency)?;
        let labels = ChannelProvider {
            channel: channel.to_string(),
            provider: declared.name.clone(),
        };
        let seconds = &shared.metrics.provider_seconds;
        named.push(NamedProvider {
            name: Arc::from(declared.name.as_str()),
            timeout: declared.timeout(),
            rate: shared.rate(declared.rate_limit.as_ref()),
            seconds: seconds.get_or_create(&labels).clone(),
            provider,
        });
    }
    Ok(Worker::new(
        Arc::clone(channel),
        spec.clone(),
        named,
        ledger,
        shared,
    ))
}

/// Delivers until `stop`, then finishes what is begun, within the drain time. `ready` is true in between, once it is
/// known what became of what went out before, the pod is heard by the others, and it takes what it may send.
pub async fn run(
    worker: Arc<Worker>,
    ledger: Arc<Ledger>,
    shared: Shared,
    ready: &watch::Sender<bool>,
    stop: CancellationToken,
) {
    let reading = CancellationToken::new();
    let (reader, broker, until) = (
        Arc::clone(&ledger),
        Arc::clone(&shared.broker),
        reading.clone(),
    );
    let reader = tokio::spawn(async move { reader.follow(&*broker, until).await });
    let catching_up = async {
        let events = names::events(ledger.channel());
        loop {
            match shared.broker.last_message_id(&events).await {
                Ok(position) => {
                    ledger.caught_up(position).await;
                    return;
                }
                Err(error) => {
                    shared.metrics.broker_failed("last_event");
                    tracing::warn!(%error, "the channel's events cannot be read yet, trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
    };
    if stop.run_until_cancelled(catching_up).await.is_some() {
        let drained = async {
            if stop.run_until_cancelled(worker.up()).await.is_some() {
                tracing::info!("ready");
                ready.send_replace(true);
                stop.cancelled().await;
            }
            ready.send_replace(false);
            tokio::time::sleep(shared.timing.drain).await;
        };
        tokio::select! {
            () = Arc::clone(&worker).run(stop.clone()) => tracing::info!("all that was begun is finished"),
            () = drained => tracing::warn!("not all that was begun was finished in time: it will be repeated"),
        }
    }
    reading.cancel();
    // One that panicked has said so already.
    let _ = reader.await;
}
