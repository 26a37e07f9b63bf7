//! Everything in one process: the embedded default. A [`Gateway`] that delivers itself, over files.

use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;

use tokio::net::TcpListener;

use crate::broker::embedded::{self, EmbeddedBroker};
use crate::catalog::folder::{FolderCatalog, ScanError};
use crate::gateway::{self, Delivering, Gateway};
use crate::metrics::Metrics;
use crate::pipeline;
use crate::provider::{self, tls};
use crate::store::StoreError;
use crate::store::sqlite::{self, SqliteStore};
use crate::timing::Timing;

/// How everything in one process is set up.
#[derive(Debug, Clone)]
pub struct Options {
    /// The folder of YAML. Secrets are in `secrets/<name>/<key>` in it.
    pub dir: PathBuf,
    /// Where the queue and the history are kept; `None`: `.herald` in the folder.
    pub state: Option<PathBuf>,
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

impl Options {
    /// The usual set-up for a folder, on a port.
    pub fn new(dir: impl Into<PathBuf>, listen: SocketAddr) -> Self {
        Self {
            dir: dir.into(),
            state: None,
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
    pub catalog: Arc<FolderCatalog>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    broker: EmbeddedBroker,
    store: Arc<SqliteStore>,
    gateway: Gateway,
}

impl Local {
    /// Opens everything and starts it. Once this returns it is ready: requests are taken.
    pub async fn start(options: Options) -> Result<Self, LocalError> {
        tls::install_crypto();
        let metrics = Arc::new(Metrics::default());
        let catalog = Arc::new(
            FolderCatalog::open(&options.dir, options.namespace.clone())
                .map_err(LocalError::ReadFolder)?,
        );
        let state = options
            .state
            .clone()
            .unwrap_or_else(|| options.dir.join(".herald"));
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
        let store = SqliteStore::open(&state.join("history.db"), sqlite::Options::default())
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
            providers: provider::makers(
                options.dir.join("secrets"),
                options.allow_private_addresses,
            ),
            delivering: Delivering::Here,
            timing: options.timing,
            window: options.window,
            api_key: options.api_key,
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
