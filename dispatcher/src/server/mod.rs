//! What runs in a cluster: gateways, and a pod or more for each channel.
//!
//! - [`settings`]: flags, environment, file. This file: the two roles, from their start to SIGTERM.

pub mod settings;

use std::io::Write as _;
use std::net::SocketAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use herald_crds::names::{self, Path as RequestPath, Topic};
use herald_crds::{Channel, Priority, Resource};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;
use tokio_util::task::AbortOnDropHandle;

use self::settings::{Settings, SettingsError, need};
use crate::access;
use crate::api::{probes, serve};
use crate::broker::Broker;
use crate::broker::pulsar::PulsarBroker;
use crate::catalog::folder::{FolderCatalog, ScanError};
use crate::catalog::{Catalog, Place, yaml};
use crate::clock;
use crate::deliver::ledger::Ledger;
use crate::deliver::pod;
use crate::deliver::watchdog;
use crate::deliver::worker::{Guards, Shared};
use crate::gateway::{self, Callers, Delivering, Gateway};
use crate::id::FullName;
use crate::metrics::Metrics;
use crate::provider::credentials::Credentials;
use crate::provider::{self, BuildError, tls};
use crate::store::postgres::PostgresStore;
use crate::store::{Store, StoreError};
use crate::telemetry;

/// How long a gateway waits to know what time it is. Without the broker it begins nothing that matters.
const KNOWS_THE_TIME: Duration = Duration::from_secs(5);

/// The servers of a cluster.
#[derive(Debug, clap::Parser)]
#[command(name = "herald-dispatcher", version)]
pub struct Program {
    #[command(subcommand)]
    role: Role,
}

#[derive(Debug, clap::Subcommand)]
enum Role {
    /// Accepts, plans, holds what waits, releases it, and records what became of it.
    Gateway(Box<Settings>),
    /// Delivers for one Channel.
    Deliver(Box<Settings>),
}

/// Why a server could not start.
#[derive(Debug, thiserror::Error)]
pub enum ServerError {
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
    #[error("{setting}: cannot listen on {address}: {source}")]
    Listen {
        /// Which setting.
        setting: &'static str,
        /// Where.
        address: SocketAddr,
        /// Why.
        source: std::io::Error,
    },
    /// The cluster cannot be spoken to.
    #[cfg(feature = "kubernetes")]
    #[error("catalog: {0}")]
    Connect(crate::cluster::ConnectError),
    /// The folder of what is declared cannot be read.
    #[error("catalog: {0}")]
    ReadFolder(ScanError),
    /// The database cannot be opened, or its keys not be read.
    #[error("databaseUrl: {0}")]
    OpenStore(StoreError),
    /// The Channel's file cannot be read.
    #[error("channel: cannot read {path}: {source}")]
    ReadChannel {
        /// Which file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The Channel's file holds something else.
    #[error("channel: {path}: {reason}")]
    ParseChannel {
        /// Which file.
        path: PathBuf,
        /// What is wrong with it.
        reason: String,
    },
    /// A provider that an edit of the Channel must cure.
    #[error("channel: {0}")]
    BuildProvider(BuildError),
}

/// Runs until SIGTERM or Ctrl-C.
///
/// # Errors
///
/// It could not start: nothing was taken and nothing sent.
pub fn run(program: &Program) -> Result<(), ServerError> {
    let (Role::Gateway(settings) | Role::Deliver(settings)) = &program.role;
    let settings = (**settings)
        .clone()
        .complete()
        .map_err(ServerError::Settings)?;
    if settings.print_config {
        // Whoever closes the pipe has seen enough.
        let _ = writeln!(std::io::stdout(), "{}", settings.print());
        return Ok(());
    }
    telemetry::begin();
    tls::install_crypto();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .map_err(|source| ServerError::Begin { source })?;
    runtime.block_on(async {
        // Listened for before anything starts, so that a signal on the way finds somebody.
        let stop = stop_signal().map_err(|source| ServerError::Begin { source })?;
        match program.role {
            Role::Gateway(_) => gateway(&settings, stop).await,
            Role::Deliver(_) => deliver(&settings, stop).await,
        }
    })
}

async fn gateway(settings: &Settings, stop: impl Future<Output = ()>) -> Result<(), ServerError> {
    let broker = Arc::new(PulsarBroker::new(
        settings.pulsar().map_err(ServerError::Settings)?,
    ));
    let listener = listen("listen", settings.listen()).await?;
    let probes = listen("probes", settings.probes()).await?;
    let metrics = Arc::<Metrics>::default();
    let Declarations {
        catalog,
        callers,
        credentials,
        _watching,
    } = {
        // The API server may be away for long: until then this is alive, and not ready.
        let _probed = probe_meanwhile(&probes, Arc::clone(&metrics))?;
        declarations(settings).await?
    };
    let store = store(settings).await?;
    let topic = names::requests(RequestPath::Direct, Priority::Critical);
    let (keeping, mut is_known) = keep_time(Arc::clone(&broker) as _, topic, &metrics);
    let knowing = is_known.wait_for(|known| *known);
    // Without the broker nothing becomes of what is due, nor of who asks.
    let _ = tokio::time::timeout(KNOWS_THE_TIME, knowing).await;
    let allow = settings.allow_private_addresses.unwrap_or(false);
    let parts = gateway::Parts {
        broker,
        store: Arc::clone(&store) as Arc<dyn Store>,
        catalog,
        callers,
        metrics,
        providers: provider::makers_with(credentials, allow),
        delivering: Delivering::Elsewhere,
        timing: settings.timing(),
        window: settings.window(),
        quotas: settings.quotas(),
        listener,
        probes: Some(probes),
    };
    let gateway = Gateway::start(parts)
        .await
        .map_err(ServerError::OpenStore)?;
    if let Some(key) = &gateway.new_key {
        // Once, and not into the log.
        let _ = writeln!(std::io::stdout(), "API key, shown this once: {key}");
    }
    stop.await;
    tracing::info!("shutting down");
    gateway.stop().await;
    keeping.abort();
    store.close().await;
    Ok(())
}

/// Keeps the time, until it is aborted; and whether it is known.
fn keep_time(
    broker: Arc<dyn Broker>,
    topic: Topic,
    metrics: &Arc<Metrics>,
) -> (JoinHandle<()>, watch::Receiver<bool>) {
    let (known, is_known) = watch::channel(false);
    let metrics = Arc::clone(metrics);
    let keeping =
        tokio::spawn(async move { clock::keep(&*broker, &topic, &metrics, &known).await });
    (keeping, is_known)
}

/// What follows from where it is declared.
struct Declarations {
    catalog: Arc<dyn Catalog>,
    callers: Callers,
    /// Credentials, to test Channels with.
    credentials: Credentials,
    /// What looks at the folder; ends when it is dropped.
    _watching: Option<AbortOnDropHandle<()>>,
}

/// Reads what is declared, for the first time.
async fn declarations(settings: &Settings) -> Result<Declarations, ServerError> {
    let api_key = settings.api_key.clone().filter(|key| !key.is_empty());
    let mounted = settings.credentials.clone();
    match settings.catalog().map_err(ServerError::Settings)? {
        Place::Folder(dir) if settings.callers() == access::Callers::Keys => {
            let folder = FolderCatalog::open(dir, settings.namespace().to_owned());
            let folder = Arc::new(folder.map_err(ServerError::ReadFolder)?);
            let looking = tokio::spawn(Arc::clone(&folder).keep_current());
            Ok(Declarations {
                catalog: folder,
                // Several gateways, of which only one would see a change: nobody may make one.
                callers: Callers::Keys {
                    api_key,
                    folder: None,
                },
                credentials: Credentials::new(mounted.unwrap_or_else(|| dir.join("secrets"))),
                _watching: Some(AbortOnDropHandle::new(looking)),
            })
        }
        Place::Folder(_) => Err(ServerError::Settings(SettingsError::Check {
            setting: "callers",
            reason: "identities of a cluster can call only with the catalog kubernetes".to_owned(),
        })),
        #[cfg(not(feature = "kubernetes"))]
        Place::Kubernetes => Err(ServerError::Settings(SettingsError::Check {
            setting: "catalog",
            reason: "this program was built without the feature kubernetes".to_owned(),
        })),
        #[cfg(feature = "kubernetes")]
        Place::Kubernetes => {
            let options = crate::cluster::Options {
                namespaces: settings.watch_namespaces.clone(),
                audience: settings.audience.clone(),
            };
            let cluster = crate::cluster::Cluster::connect(options).await;
            let cluster = cluster.map_err(ServerError::Connect)?;
            Ok(Declarations {
                catalog: cluster.catalog().await,
                callers: match settings.callers() {
                    access::Callers::Kubernetes => {
                        Callers::Known(cluster.access(api_key.as_deref()))
                    }
                    access::Callers::Keys => Callers::Keys {
                        api_key,
                        folder: None,
                    },
                },
                // Without a folder there are none, and a test of a Channel says so.
                credentials: match mounted {
                    Some(mounted) => Credentials::new(mounted),
                    None => Credentials::held(Arc::default()),
                },
                _watching: None,
            })
        }
    }
}

/// Says on the port of the probes that this is alive and not ready, until it is dropped.
fn probe_meanwhile(
    probes: &TcpListener,
    metrics: Arc<Metrics>,
) -> Result<AbortOnDropHandle<()>, ServerError> {
    let begin = |source| ServerError::Begin { source };
    let listener = probes.as_fd().try_clone_to_owned().map_err(begin)?;
    let listener = TcpListener::from_std(listener.into()).map_err(begin)?;
    let (not_ready, is_ready) = watch::channel(false);
    let router = probes::router(metrics, is_ready);
    Ok(AbortOnDropHandle::new(tokio::spawn(async move {
        let forever = std::future::pending();
        serve::serve(listener, router, Duration::ZERO, forever).await;
        drop(not_ready);
    })))
}

/// The database of all gateways.
async fn store(settings: &Settings) -> Result<Arc<PostgresStore>, ServerError> {
    let options = settings.database().map_err(ServerError::Settings)?;
    let store = PostgresStore::open(options).await;
    Ok(Arc::new(store.map_err(ServerError::OpenStore)?))
}

async fn deliver(settings: &Settings, stop: impl Future<Output = ()>) -> Result<(), ServerError> {
    let file = need(
        settings.channel.as_deref(),
        "channel",
        "channel",
        "HERALD_CHANNEL",
    );
    let file = file.map_err(ServerError::Settings)?;
    let (name, channel) = read_channel(file, settings.namespace())?;
    let secrets = settings.credentials.as_deref();
    let secrets = need(secrets, "credentials", "credentials", "HERALD_CREDENTIALS");
    let secrets = secrets.map_err(ServerError::Settings)?;
    let timing = Arc::new(settings.timing());
    let metrics = Arc::<Metrics>::default();
    // The same name for a pod that starts anew would be heard as the one that has died.
    let pod = settings.pod.as_deref().unwrap_or("pod");
    let pod = format!("{pod}-{:08x}", rand::random::<u32>());
    let shared = Shared {
        broker: Arc::new(PulsarBroker::new(
            settings.pulsar().map_err(ServerError::Settings)?,
        )),
        metrics: Arc::clone(&metrics),
        loads: Arc::default(),
        pod: Some(Arc::from(pod)),
        timing: Arc::clone(&timing),
        window: settings.window(),
        vitals: Arc::default(),
        guards: Guards::default(),
    };
    let allow = settings.allow_private_addresses.unwrap_or(false);
    let providers = provider::makers(secrets, allow);
    let ledger = Ledger::new(Arc::clone(&name), timing.horizon);
    let worker = pod::worker(
        &name,
        &channel.spec,
        &providers,
        Arc::clone(&ledger),
        shared.clone(),
    );
    let worker = worker.map_err(ServerError::BuildProvider)?;

    let listener = listen("probes", settings.probes()).await?;
    let vitals = Arc::clone(&shared.vitals);
    watchdog::watch(Arc::clone(&vitals)).map_err(|source| ServerError::Begin { source })?;
    let beating = tokio::spawn(async move { watchdog::beat(&vitals).await });
    let stopping = CancellationToken::new();
    let (ready, is_ready) = watch::channel(false);
    let router = probes::router(metrics, is_ready);
    let (ended, drain) = (CancellationToken::new(), timing.drain);
    let until = ended.clone();
    let serving = tokio::spawn(async move {
        serve::serve(listener, router, drain, until.cancelled()).await;
    });
    let topic = names::events(&name);
    let (keeping, mut is_known) = keep_time(Arc::clone(&shared.broker), topic, &shared.metrics);
    let asked = stopping.clone();
    let delivering = async {
        // Before that what is old may be taken for young.
        let knowing = is_known.wait_for(|known| *known);
        if stopping.run_until_cancelled(knowing).await.is_some() {
            pod::run(worker, ledger, shared, &ready, stopping.clone()).await;
        }
    };
    let stopped = async {
        stop.await;
        tracing::info!("shutting down: finishing what is being sent");
        asked.cancel();
    };
    futures::join!(delivering, stopped);
    beating.abort();
    keeping.abort();
    ended.cancel();
    // One that panicked has said so already.
    let _ = serving.await;
    Ok(())
}

fn read_channel(path: &Path, namespace: &str) -> Result<(FullName, Channel), ServerError> {
    let wrong = |reason: String| ServerError::ParseChannel {
        path: path.to_owned(),
        reason,
    };
    let bytes = std::fs::read(path).map_err(|source| ServerError::ReadChannel {
        path: path.to_owned(),
        source,
    })?;
    let documents = yaml::read(&bytes).map_err(|error| wrong(error.to_string()))?;
    let [document] = &documents[..] else {
        return Err(wrong(format!(
            "it holds {} documents, not one Channel",
            documents.len()
        )));
    };
    let resource = Resource::parse(&document.value).map_err(|problems| {
        let said = problems.iter().map(ToString::to_string);
        wrong(said.collect::<Vec<_>>().join("; "))
    })?;
    let namespace = resource.namespace().unwrap_or(namespace);
    let name = FullName::from(format!("{namespace}/{}", resource.name()));
    match resource {
        Resource::Channel(channel) => Ok((name, *channel)),
        other => Err(wrong(format!("it is a {:?}, not a Channel", other.kind()))),
    }
}

async fn listen(setting: &'static str, address: SocketAddr) -> Result<TcpListener, ServerError> {
    let listener = TcpListener::bind(address).await;
    listener.map_err(|source| ServerError::Listen {
        setting,
        address,
        source,
    })
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
