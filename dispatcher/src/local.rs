//! Everything in one process: the embedded default. A [`Gateway`] that delivers itself, over files.

use std::any::Any;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;
use tokio_util::task::AbortOnDropHandle;

use crate::accept::Quotas;
use crate::broker::embedded::{self, EmbeddedBroker};
use crate::catalog::Catalog;
use crate::catalog::folder::{FolderCatalog, ScanError};
use crate::clock;
use crate::gateway::{self, Callers, Delivering, Gateway};
use crate::metrics::Metrics;
use crate::pipeline;
#[cfg(feature = "kubernetes")]
use crate::provider::credentials::Credentials;
use crate::provider::{self, Providers, tls};
use crate::store::StoreError;
use crate::store::sqlite::{self, SqliteStore};
use crate::timing::Timing;

/// How everything in one process is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// Where what is declared comes from.
    pub declared: Declared,
    /// Where the queue and the history are kept.
    pub state: PathBuf,
    /// Where HTTP is served.
    pub listen: SocketAddr,
    /// The namespace of resources that name none.
    pub namespace: String,
    /// An API key that may do everything, besides those in the database; `None`: only those.
    pub api_key: Option<String>,
    /// Whether a Channel's `allowPrivateAddresses` counts.
    pub allow_private_addresses: bool,
    /// Bytes of the queue from which on nothing more is accepted.
    pub max_queue_bytes: u64,
    /// W: most deliveries of a channel that are sent and whose outcome has no receipt yet.
    pub window: usize,
    /// The times kept.
    pub timing: Timing,
}

/// Where what is declared comes from, and with it the credentials of providers, and who may call.
#[derive(Debug, Clone)]
pub enum Declared {
    /// A folder of YAML. Secrets are in `secrets/<name>/<key>` in it, API keys in the database.
    Folder(PathBuf),
    /// The cluster that this process is in. Secrets are those of its own namespace that are labelled as credentials, for the
    /// Channels of that namespace alone.
    #[cfg(feature = "kubernetes")]
    Cluster {
        /// What of the cluster.
        options: crate::cluster::Options,
        /// Whether its identities call, by its RBAC; else whoever has an API key.
        identities: bool,
    },
}

impl Options {
    /// The usual set-up for a folder, on a port.
    pub fn new(dir: impl Into<PathBuf>, listen: SocketAddr) -> Self {
        let dir = dir.into();
        Self {
            state: dir.join(".herald"),
            declared: Declared::Folder(dir),
            listen,
            namespace: "default".to_owned(),
            api_key: None,
            allow_private_addresses: false,
            max_queue_bytes: embedded::Options::default().max_bytes,
            window: pipeline::WINDOW,
            timing: Timing::default(),
        }
    }
}

/// Why it could not start.
#[derive(Debug, thiserror::Error)]
pub enum LocalError {
    /// The folder cannot be read.
    #[error(transparent)]
    ReadFolder(ScanError),
    /// The cluster cannot be spoken to.
    #[cfg(feature = "kubernetes")]
    #[error(transparent)]
    Connect(crate::cluster::ConnectError),
    /// The place for queue and history cannot be made.
    #[error("cannot make {path}: {source}; name another place with --state DIR")]
    MakeState {
        /// Where.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The queue cannot be opened.
    #[error(
        "{reason}; if another herald works in this folder, stop it, or name another place with --state DIR"
    )]
    OpenQueue {
        /// What is wrong.
        reason: String,
    },
    /// The history cannot be opened.
    #[error(
        "{source}; if another herald works in this folder, stop it, or name another place with --state DIR"
    )]
    OpenHistory {
        /// What is wrong.
        source: StoreError,
    },
    /// The port is taken, or not ours to take.
    #[error(
        "cannot listen on {address}: {source}; name another address with --listen ADDRESS:PORT"
    )]
    Listen {
        /// Where.
        address: SocketAddr,
        /// Why.
        source: io::Error,
    },
    /// The API keys cannot be read or written.
    #[error("cannot read the API keys: {source}")]
    ReadKeys {
        /// What is wrong.
        source: StoreError,
    },
}

/// Everything at work.
pub struct Local {
    /// Where HTTP is served, with the port that was really taken.
    pub address: SocketAddr,
    /// An API key that was made now, since there was none: to be shown once.
    pub new_key: Option<String>,
    /// What is declared.
    pub catalog: Arc<dyn Catalog>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    broker: EmbeddedBroker,
    store: Arc<SqliteStore>,
    gateway: Gateway,
    _watching: Watching,
}

/// What keeps everything current; ends when it is dropped.
type Watching = Vec<Box<dyn Any + Send + Sync>>;

/// What follows from where it is declared.
struct Sources {
    catalog: Arc<dyn Catalog>,
    callers: Callers,
    providers: Providers,
    watching: Watching,
}

impl Options {
    /// Reads what is declared, for the first time.
    async fn sources(&self) -> Result<Sources, LocalError> {
        let api_key = self.api_key.clone();
        match &self.declared {
            Declared::Folder(dir) => {
                let folder = FolderCatalog::open(dir, self.namespace.clone());
                let folder = Arc::new(folder.map_err(LocalError::ReadFolder)?);
                let looking = tokio::spawn(Arc::clone(&folder).keep_current());
                Ok(Sources {
                    catalog: Arc::clone(&folder) as _,
                    callers: Callers::Keys {
                        api_key,
                        folder: Some(folder),
                    },
                    providers: provider::makers(dir.join("secrets"), self.allow_private_addresses),
                    watching: vec![Box::new(AbortOnDropHandle::new(looking))],
                })
            }
            #[cfg(feature = "kubernetes")]
            Declared::Cluster {
                options,
                identities,
            } => {
                let cluster = crate::cluster::Cluster::connect(options.clone()).await;
                let cluster = cluster.map_err(LocalError::Connect)?;
                let held = Arc::default();
                let secrets = cluster.secrets(&held).await;
                let credentials = Credentials::held_in(cluster.own_namespace(), held);
                Ok(Sources {
                    catalog: cluster.catalog().await,
                    callers: if *identities {
                        Callers::Known(cluster.access(api_key.as_deref()))
                    } else {
                        Callers::Keys {
                            api_key,
                            folder: None,
                        }
                    },
                    providers: provider::makers_with(credentials, self.allow_private_addresses),
                    watching: vec![Box::new(secrets)],
                })
            }
        }
    }
}

impl Local {
    /// Opens everything and starts it. Once this returns it is ready: requests are taken.
    pub async fn start(options: Options) -> Result<Self, LocalError> {
        tls::install_crypto();
        let metrics = Arc::new(Metrics::default());
        let Sources {
            catalog,
            callers,
            providers,
            watching,
        } = options.sources().await?;
        let state = options.state;
        std::fs::create_dir_all(&state).map_err(|source| LocalError::MakeState {
            path: state.clone(),
            source,
        })?;

        let queue = embedded::Options {
            retention: options.timing.horizon,
            max_bytes: options.max_queue_bytes,
            metrics: Some(Arc::clone(&metrics)),
            ..embedded::Options::default()
        };
        let broker = EmbeddedBroker::open(&state.join("queue.db"), queue)
            .await
            .map_err(|error| LocalError::OpenQueue {
                reason: error.to_string(),
            })?;
        let history = state.join("history.db");
        let knows = sqlite::Options {
            // A pod may begin without what the one before it knew: it would fire again what that one has fired.
            since: (!history.exists()).then(clock::now),
            ..sqlite::Options::default()
        };
        let store = SqliteStore::open(&history, knows)
            .await
            .map_err(|source| LocalError::OpenHistory { source })?;
        let store = Arc::new(store);
        // After the files, so that a second one in this folder is told of that, not of the port.
        let listener =
            TcpListener::bind(options.listen)
                .await
                .map_err(|source| LocalError::Listen {
                    address: options.listen,
                    source,
                })?;
        let address = listener.local_addr().unwrap_or(options.listen);
        let gateway = Gateway::start(gateway::Parts {
            broker: Arc::new(broker.clone()),
            store: Arc::clone(&store) as _,
            catalog: Arc::clone(&catalog),
            metrics: Arc::clone(&metrics),
            providers,
            callers,
            delivering: Delivering::Here,
            timing: options.timing,
            window: options.window,
            quotas: Quotas::default(),
            listener,
            probes: None,
        });
        let gateway = gateway
            .await
            .map_err(|source| LocalError::ReadKeys { source })?;
        Ok(Self {
            address,
            new_key: gateway.new_key.clone(),
            catalog,
            metrics,
            broker,
            store,
            gateway,
            _watching: watching,
        })
    }

    /// Shuts down in order: no more requests, then the stages, then the files. What is not finished within the drain
    /// time is repeated at the next start.
    pub async fn stop(self) {
        self.gateway.stop().await;
        self.broker.close().await;
        self.store.close().await;
    }
}
