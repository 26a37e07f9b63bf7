//! From start to SIGTERM: stands by until it is the one, then works until it is told to stop or is not the one any more.

use std::io::Write as _;
use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use futures::stream::FuturesUnordered;
use jiff::Timestamp;
use kube::{Client, Config};
use tokio::net::TcpListener;
use tokio::sync::watch as signal;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use crate::backoff::Backoff;
use crate::channel::{self, Plant};
use crate::context::{Context, recorder};
use crate::gateway::{Gateway, GatewayError};
use crate::leader::{Candidate, Kept, Term};
use crate::metrics::Metrics;
use crate::pulsar_admin::{AdminError, PulsarAdmin};
use crate::queue::{Outlets, Queues, work};
use crate::release::{Release, ReleaseError, release};
use crate::settings::{Broker, PodSettings, Settings, SettingsError};
use crate::watch::{Follow, Stores};
use crate::written::Written;
use crate::{group, probes, schedule, system, telemetry, template};

/// What is begun has so long to come to an end.
const FINISHING: Duration = Duration::from_secs(20);

/// The topics of requests come before those of Channels, but not for longer.
const FIRST: Duration = Duration::from_secs(10);

/// The API server has so long to say anything at all.
const ANSWER: Duration = Duration::from_secs(295);

/// Herald's operator: makes in a cluster what the resources declare.
#[derive(Debug, clap::Parser)]
#[command(name = "herald-operator", version)]
pub struct Program {
    #[command(flatten)]
    settings: Settings,
    #[command(subcommand)]
    instead: Option<Instead>,
}

/// What is done once, instead of working until it is told to stop.
#[derive(Debug, clap::Subcommand)]
enum Instead {
    /// Stops the operator, and lets every Channel go that it would have to clean up after: before it is uninstalled.
    Release(Release),
}

/// Why the operator could not start, or ended before it was told to.
#[derive(Debug, thiserror::Error)]
pub enum RunError {
    /// A setting is missing or wrong.
    #[error(transparent)]
    Settings(SettingsError),
    /// No threads, or no signals.
    #[error("cannot start: {source}")]
    Begin {
        /// What the system said.
        source: std::io::Error,
    },
    /// A port is taken, or not ours to take.
    #[error("probes: cannot listen on {address}: {source}")]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// There is no cluster to speak to.
    #[error("cannot find out how to reach Kubernetes: {source}")]
    FindKubernetes {
        /// Why.
        source: Box<kube::Error>,
    },
    /// What is said of Pulsar cannot be used.
    #[error(transparent)]
    PreparePulsar(AdminError),
    /// What is said of the gateways cannot be used.
    #[error(transparent)]
    PrepareGateway(GatewayError),
    /// Channels are held.
    #[error(transparent)]
    Release(ReleaseError),
    /// Another operator works now, or may.
    #[error(
        "the Lease was lost: another operator works, or the API server could not be reached for too long"
    )]
    KeepLease,
    /// Something that should go on for ever ended by itself, which is a defect: the log has said how.
    #[error("a part of the operator ended by itself; it begins anew")]
    Work,
}

/// Runs until SIGTERM or Ctrl-C.
///
/// # Errors
///
/// It could not start, or it lost the Lease: what is begun is dropped then, since another may have begun the same.
pub fn main(program: Program) -> Result<(), RunError> {
    let settings = program.settings.complete().map_err(RunError::Settings)?;
    if settings.print_config {
        // Whoever closes the pipe has seen enough.
        let _ = writeln!(std::io::stdout(), "{}", settings.print());
        return Ok(());
    }
    // Somebody else may have chosen a provider already, which is just as well.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let telemetry = telemetry::begin();
    let outcome = begin(program.instead.as_ref(), &settings);
    telemetry.end();
    outcome
}

fn begin(instead: Option<&Instead>, settings: &Settings) -> Result<(), RunError> {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| RunError::Begin { source })?;
    runtime.block_on(async {
        let stop = CancellationToken::new();
        let asked = stop_signal().map_err(|source| RunError::Begin { source })?;
        let stopping = stop.clone();
        tokio::spawn(async move {
            asked.await;
            stopping.cancel();
        });
        let client = connect().await;
        let client = client.map_err(|source| RunError::FindKubernetes {
            source: Box::new(source),
        })?;
        match instead {
            None => run(settings, client, stop).await,
            Some(Instead::Release(args)) => {
                let released = release(args, settings, client).await;
                let released = released.map_err(RunError::Release)?;
                tracing::info!(released, "no Channel is held any more");
                Ok(())
            }
        }
    })
}

/// A client that does not wait for ever: a watch is silent for a minute at the most, and ends itself before this.
async fn connect() -> kube::Result<Client> {
    let mut config = Config::infer().await.map_err(kube::Error::InferConfig)?;
    config.read_timeout = Some(ANSWER);
    // A connection that was not used for a while is as good as another.
    config.reset_reader_on_write = true;
    Client::try_from(config)
}

/// The same, but it goes with whoever waits for it.
fn spawned<F>(future: F) -> AbortOnDropHandle<F::Output>
where
    F: Future<Output: Send + 'static> + Send + 'static,
{
    AbortOnDropHandle::new(tokio::spawn(future))
}

/// What is made ready before anything is asked of anybody.
struct Parts {
    pulsar: Option<(PulsarAdmin, PodSettings)>,
    gateway: Option<Gateway>,
}

fn parts(settings: &Settings, metrics: &Arc<Metrics>, term: &Term) -> Result<Parts, RunError> {
    let pulsar = match settings.broker() {
        Broker::Embedded => None,
        Broker::Pulsar => {
            let pods = settings.pods().map_err(RunError::Settings)?;
            let admin = settings.pulsar_admin().map_err(RunError::Settings)?;
            let admin = PulsarAdmin::new(admin).map_err(RunError::PreparePulsar)?;
            let term = term.clone();
            Some((admin.fenced(move || term.lasts()), pods))
        }
    };
    let gateway = settings.gateway_url.as_deref().map(|url| {
        let token = settings.gateway_token_file.clone();
        let ca = settings.gateway_ca_file.as_deref();
        Gateway::new(url, token, ca, Arc::clone(metrics))
    });
    Ok(Parts {
        pulsar,
        gateway: gateway.transpose().map_err(RunError::PrepareGateway)?,
    })
}

/// Runs until `stop`.
pub async fn run(
    settings: &Settings,
    client: Client,
    stop: CancellationToken,
) -> Result<(), RunError> {
    let metrics = Arc::<Metrics>::default();
    let pod = settings.pod.as_deref().unwrap_or("herald-operator");
    let identity = format!("{pod}-{:08x}", rand::random::<u32>());
    let candidate = Candidate::new(
        client.clone(),
        settings.namespace(),
        identity.clone(),
        settings.lease(),
    );
    let term = candidate.term();
    let client = term.fence(client);
    let parts = parts(settings, &metrics, &term)?;
    let address = settings.probes();
    let listener = TcpListener::bind(address).await;
    let listener = listener.map_err(|source| RunError::Listen { address, source })?;
    let (ready, is_ready) = signal::channel(true);
    let ready = Arc::new(ready);
    let router = probes::router(Arc::clone(&metrics), is_ready, term);
    let serving = tokio::spawn(async move { axum::serve(listener, router).await });
    tracing::info!(identity, "standing by");
    let begin = |working| {
        operate(
            settings,
            parts,
            client,
            &identity,
            metrics,
            Arc::clone(&ready),
            working,
        )
    };
    let outcome = lead(candidate, begin, &ready, stop).await;
    serving.abort();
    outcome
}

/// Works once the Lease is ours, until `stop` or until it is lost. What `begin` begins ends when it is told to.
async fn lead<F: Future<Output = ()>>(
    mut candidate: Candidate,
    begin: impl FnOnce(CancellationToken) -> F,
    ready: &signal::Sender<bool>,
    stop: CancellationToken,
) -> Result<(), RunError> {
    if stop.run_until_cancelled(candidate.win()).await.is_none() {
        ready.send_replace(false);
        return Ok(());
    }
    tracing::info!("this operator works");
    let working = CancellationToken::new();
    let mut work = Box::pin(begin(working.clone()));
    let kept = tokio::select! {
        kept = candidate.keep(&stop) => kept,
        // It ends only when it is told to.
        () = &mut work => return Err(RunError::Work),
    };
    ready.send_replace(false);
    if kept == Kept::Lost {
        return Err(RunError::KeepLease);
    }
    tracing::info!("shutting down: finishing what is begun");
    working.cancel();
    // The Lease lasts as long as it is renewed: also while the last things are finished.
    let never = CancellationToken::new();
    let finishing = async {
        tokio::select! {
            () = &mut work => Kept::UntilStopped,
            kept = candidate.keep(&never) => kept,
        }
    };
    let finished = tokio::time::timeout(FINISHING, finishing).await;
    if finished.is_err() {
        tracing::warn!("not all that was begun was finished in time: it is begun anew by the next");
    }
    if finished == Ok(Kept::Lost) {
        return Err(RunError::KeepLease);
    }
    // With it goes all that works: nothing is written once another may.
    drop(work);
    candidate.release().await;
    Ok(())
}

/// Follows, and looks at what changes, until `stop`; then finishes what is begun.
async fn operate(
    settings: &Settings,
    parts: Parts,
    client: Client,
    identity: &str,
    metrics: Arc<Metrics>,
    ready: Arc<signal::Sender<bool>>,
    stop: CancellationToken,
) {
    let Parts { pulsar, gateway } = parts;
    let (queues, outlets) = Queues::new();
    let (stores, writers) = Stores::new();
    let written = Arc::<Written>::default();
    let plant = pulsar.map(|(admin, pods)| {
        let role = settings.pulsar_gateway_role.clone();
        let (horizon, calm) = (settings.horizon(), settings.scale_down());
        let (client, queues) = (client.clone(), queues.clone());
        Plant::new(admin, pods, role, horizon, calm, client, queues)
    });
    let following = Follow {
        client: client.clone(),
        namespaces: settings.watch_namespaces.clone(),
        children: plant.is_some(),
        token: plant
            .as_ref()
            .and_then(|plant| plant.token())
            .map(str::to_owned),
        queues: queues.clone(),
        metrics: Arc::clone(&metrics),
        written: Arc::clone(&written),
        stop: stop.clone(),
    };
    let following = following.all(&stores, writers);
    let following: Vec<_> = following.into_iter().map(spawned).collect();
    let ctx = Arc::new(Context {
        recorder: recorder(&client, identity),
        client,
        namespace: settings.namespace().to_owned(),
        stores,
        written,
        queues,
        backoff: Backoff::default(),
        metrics: Arc::clone(&metrics),
        concurrency: settings.concurrency(),
        plant,
        gateway,
        now: Timestamp::now,
    });
    let partitions = settings.request_partitions();
    if let Some(plant) = &ctx.plant {
        // Channels need the tenant. Not for ever: what keeps it away is told by them, too.
        let first = async {
            // An error says that nobody follows any more: it shuts down.
            let _ = ctx.stores.namespaces.wait_until_ready().await;
            system::arrange(plant, partitions, &ctx.stores, &ctx.metrics).await
        };
        let first = tokio::time::timeout(FIRST, first);
        if let Some(Ok(Err(error))) = stop.run_until_cancelled(first).await {
            tracing::warn!(%error, "the topics of requests cannot be arranged yet");
        }
    }
    let looking_after = {
        let (ctx, stop) = (Arc::clone(&ctx), stop.clone());
        spawned(async move {
            if let Some(plant) = &ctx.plant {
                let (stores, metrics) = (&ctx.stores, &ctx.metrics);
                let forever = system::look_after(plant, partitions, stores, metrics, &ready);
                stop.run_until_cancelled(forever).await;
            }
        })
    };
    if stop.run_until_cancelled(ctx.stores.ready()).await.is_some() {
        tracing::info!(
            channels = ctx.stores.channels.len(),
            templates = ctx.stores.templates.len(),
            groups = ctx.stores.groups.len(),
            schedules = ctx.stores.schedules.len(),
            "everything has been listed"
        );
        let Outlets {
            channels,
            templates,
            groups,
            schedules,
        } = outlets;
        let s = &ctx.stores;
        let all = [
            spawned(work(
                Arc::clone(&ctx),
                s.channels.clone(),
                channels,
                stop.clone(),
                channel::reconcile,
            )),
            spawned(work(
                Arc::clone(&ctx),
                s.templates.clone(),
                templates,
                stop.clone(),
                template::reconcile,
            )),
            spawned(work(
                Arc::clone(&ctx),
                s.groups.clone(),
                groups,
                stop.clone(),
                group::reconcile,
            )),
            spawned(work(
                Arc::clone(&ctx),
                s.schedules.clone(),
                schedules,
                stop.clone(),
                schedule::reconcile,
            )),
        ];
        let mut all: FuturesUnordered<_> = all.into_iter().chain(following).collect();
        while all.next().await.is_some() {
            // One that panicked has said so already. Without it the others would go on as if nothing were missing.
            if !stop.is_cancelled() {
                return;
            }
        }
    }
    let _ = looking_after.await;
}

/// Resolves at Ctrl-C or SIGTERM.
fn stop_signal() -> std::io::Result<impl Future<Output = ()>> {
    use tokio::signal::unix::{SignalKind, signal};
    let mut interrupt = signal(SignalKind::interrupt())?;
    let mut terminate = signal(SignalKind::terminate())?;
    Ok(async move {
        tokio::select! {
            _ = interrupt.recv() => {}
            _ = terminate.recv() => {}
        }
    })
}

#[cfg(test)]
mod tests {
    use std::sync::atomic::{AtomicBool, Ordering};

    use super::*;
    use crate::fixtures::ApiServer;

    fn candidate(server: &ApiServer) -> Candidate {
        let (name, lasts) = ("one".to_owned(), Duration::from_secs(15));
        Candidate::new(server.client(), "herald-system", name, lasts)
    }

    fn holder(server: &ApiServer) -> serde_json::Value {
        server.get("Lease", "herald-operator").unwrap()["spec"]["holderIdentity"].clone()
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_begun_is_finished_before_the_lease_is_given_back() {
        let server = ApiServer::default();
        let candidate = candidate(&server);
        let term = candidate.term();
        let (ready, is_ready) = signal::channel(true);
        let (stop, finished) = (CancellationToken::new(), AtomicBool::new(false));
        let stops = stop.clone();
        let work = async |working: CancellationToken| {
            stops.cancel();
            working.cancelled().await;
            // Longer than a Lease counts that nobody renews.
            tokio::time::sleep(Duration::from_secs(15)).await;
            assert_eq!(holder(&server), "one");
            assert!(term.lasts() && !*is_ready.borrow());
            finished.store(true, Ordering::Relaxed);
        };
        lead(candidate, work, &ready, stop).await.unwrap();
        assert!(finished.load(Ordering::Relaxed));
        assert!(holder(&server).is_null() && !term.lasts());
    }

    #[tokio::test(start_paused = true)]
    async fn who_loses_the_lease_stops_before_another_may_begin() {
        let server = ApiServer::default();
        let candidate = candidate(&server);
        let term = candidate.term();
        let (ready, _) = signal::channel(true);
        let work = async |_| {
            server.refuse("PUT leases/herald-operator", 500);
            std::future::pending::<()>().await;
        };
        let begun = tokio::time::Instant::now();
        let ended = lead(candidate, work, &ready, CancellationToken::new()).await;
        assert!(matches!(ended, Err(RunError::KeepLease)), "{ended:?}");
        assert!(!term.lasts());
        let lasted = begun.elapsed();
        assert!(lasted <= Duration::from_secs(10), "{lasted:?}");
    }
}
