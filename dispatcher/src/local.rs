//! Everything in one process: the embedded default.
//!
//! - This file: opens what is needed, serves, and shuts down in order.
//! - [`folder`]: what the API needs of the folder and of the pipeline.

mod folder;

use std::collections::HashSet;
use std::io;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use herald_crds::Priority;
use jiff::Timestamp;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::accept::schedules::Schedules;
use crate::accept::{self, Accept, SenderRate};
use crate::api::{self, Api, Keys, probes};
use crate::broker::embedded::{self, EmbeddedBroker};
use crate::catalog::Catalog;
use crate::catalog::folder::{FolderCatalog, ScanError};
use crate::deliver::worker::Guards;
use crate::id::FullName;
use crate::metrics::{ChannelClass, Metrics};
use crate::pipeline::{self, Pipeline, Providers};
use crate::provider::{self, credentials::Credentials, tls};
use crate::store::sqlite::{self, SqliteStore};
use crate::store::{ApiKey, HistoryStore, PeopleStore, StoreError, WaitingStore};
use crate::timing::Timing;

/// How often the gauges of the waiting room are brought up to date while there is something in it.
const MEASURE: Duration = Duration::from_secs(10);

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
    timing: Timing,
    broker: EmbeddedBroker,
    store: Arc<SqliteStore>,
    pipeline: Arc<Pipeline>,
    ready: watch::Sender<bool>,
    stop: CancellationToken,
    tasks: TaskTracker,
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
        let (fixed, new_key) = keys(&store, options.api_key.as_deref())
            .await
            .map_err(|source| LocalError::ReadKeys { source })?;

        let providers = providers(&options);
        let pipeline = Arc::new(Pipeline::start(&pipeline::Parts {
            broker: Arc::new(broker.clone()),
            store: Arc::clone(&store) as _,
            catalog: Arc::clone(&catalog) as _,
            providers: Arc::clone(&providers),
            metrics: Arc::clone(&metrics),
            timing: options.timing.clone(),
            window: options.window,
            guards: Guards::default(),
        }));
        let accept = Arc::new(Accept::new(accept::Parts {
            broker: Arc::new(broker.clone()),
            catalog: Arc::clone(&catalog) as _,
            store: Arc::clone(&store) as _,
            load: Arc::clone(&pipeline.loads) as _,
            metrics: Arc::clone(&metrics),
            timing: options.timing.clone(),
            rate: SenderRate::default(),
        }));

        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        let (ready, is_ready) = watch::channel(true);
        let api = Arc::new(Api {
            keys: Keys::new(Arc::clone(&store) as _, &fixed),
            accept: Arc::clone(&accept),
            catalog: Arc::clone(&catalog) as _,
            broker: Arc::new(broker.clone()),
            store: Arc::clone(&store) as _,
            definitions: Arc::clone(&pipeline.definitions),
            loads: Arc::clone(&pipeline.loads),
            control: Arc::new(folder::Reach {
                pipeline: Arc::clone(&pipeline),
                catalog: Arc::clone(&catalog),
                providers,
            }),
            editor: Some(Arc::new(folder::Edit(Arc::clone(&catalog)))),
            outcomes: pipeline.outcomes.clone(),
            metrics: Arc::clone(&metrics),
            ready: is_ready.clone(),
            streams: Api::stream_places(),
        });
        let router = api::router(api).merge(probes::router(Arc::clone(&metrics), is_ready));
        let (stopping, drain) = (stop.clone(), options.timing.drain);
        tasks.spawn(async move {
            api::serve::serve(listener, router, drain, stopping.cancelled()).await;
        });
        let schedules = Schedules::new(
            accept,
            Arc::clone(&catalog) as _,
            Arc::clone(&store) as _,
            Arc::clone(&metrics),
        );
        let stopping = stop.clone();
        tasks.spawn(async move { schedules.run(stopping.cancelled()).await });
        let (watched, stopping) = (Arc::clone(&catalog), stop.clone());
        tasks.spawn(async move {
            stopping.run_until_cancelled(watched.keep_current()).await;
        });
        tasks.spawn(note_definitions(
            Arc::clone(&catalog),
            Arc::clone(&store),
            Arc::clone(&metrics),
            stop.clone(),
        ));
        tasks.spawn(measure(
            Arc::clone(&catalog),
            Arc::clone(&store),
            Arc::clone(&pipeline),
            stop.clone(),
        ));
        tasks.close();
        Ok(Self {
            address,
            new_key,
            catalog,
            metrics,
            timing: options.timing,
            broker,
            store,
            pipeline,
            ready,
            stop,
            tasks,
        })
    }

    /// Shuts down in order: no more requests, then the stages, then the files. What is not finished within the drain
    /// time is repeated at the next start.
    pub async fn stop(self) {
        self.ready.send_replace(false);
        self.stop.cancel();
        // Side by side: somebody who watches outcomes must not keep the stages from finishing.
        let served = tokio::time::timeout(self.timing.drain, self.tasks.wait());
        let worked = tokio::time::timeout(self.timing.drain * 2, self.pipeline.stop());
        let (_, worked) = futures::join!(served, worked);
        if worked.is_err() {
            tracing::warn!("not everything was finished in time: it is taken up at the next start");
        }
        self.broker.close().await;
        self.store.close().await;
    }
}

fn providers(options: &Options) -> Providers {
    let credentials = Credentials::new(options.dir.join("secrets"));
    let allow_private_addresses = options.allow_private_addresses;
    Arc::new(move |declared, concurrency| {
        let credentials = credentials.clone();
        provider::build(
            declared,
            &provider::Context {
                credentials,
                allow_private_addresses,
                concurrency,
            },
        )
    })
}

/// The API keys besides those in the database, and one that had to be made.
async fn keys(
    store: &SqliteStore,
    given: Option<&str>,
) -> Result<(Vec<ApiKey>, Option<String>), StoreError> {
    let key = |name: &str, key: &str| ApiKey {
        name: name.to_owned(),
        digest: Keys::digest(key),
        scopes: vec!["*".to_owned()],
        created_at: Timestamp::now(),
    };
    if let Some(given) = given {
        return Ok((vec![key("env", given)], None));
    }
    if !store.keys().await?.is_empty() {
        return Ok((Vec::new(), None));
    }
    let new = Keys::generate();
    store.put_key(&key("admin", &new)).await?;
    Ok((Vec::new(), Some(new)))
}

/// Notes every definition that comes into force.
async fn note_definitions(
    catalog: Arc<FolderCatalog>,
    store: Arc<SqliteStore>,
    metrics: Arc<Metrics>,
    stop: CancellationToken,
) {
    stop.run_until_cancelled(async {
        let mut changes = catalog.changes();
        let mut noted: HashSet<(FullName, Arc<str>)> = HashSet::new();
        loop {
            let declared = Arc::clone(&changes.borrow_and_update());
            let mut failed = false;
            for (name, template) in &declared.templates {
                let in_force = (Arc::clone(name), Arc::clone(&template.hash));
                let (Some((namespace, short)), Ok(definition)) =
                    (name.split_once('/'), BASE64_STANDARD.decode(&*template.packed))
                else {
                    continue;
                };
                if noted.contains(&in_force) {
                    continue;
                }
                let definition = Bytes::from(definition);
                match store.in_force(namespace, short, &template.hash, &definition, Timestamp::now()).await {
                    Ok(()) => {
                        noted.insert(in_force);
                    }
                    Err(error) => {
                        failed = true;
                        metrics.store_failed("in_force");
                        tracing::warn!(%error, template = &**name, "a definition in force could not be noted");
                    }
                }
            }
            noted.retain(|(name, hash)| declared.templates.get(name).is_some_and(|template| template.hash == *hash));
            if failed {
                tokio::time::sleep(MEASURE).await;
            } else if changes.changed().await.is_err() {
                break;
            }
        }
    })
    .await;
}

/// Says how much waits, and since when.
async fn measure(
    catalog: Arc<FolderCatalog>,
    store: Arc<SqliteStore>,
    pipeline: Arc<Pipeline>,
    stop: CancellationToken,
) {
    stop.run_until_cancelled(async {
        loop {
            for name in catalog.current().channels.keys() {
                let Ok(backlog) = store.backlog(name).await else {
                    continue;
                };
                let load = pipeline.loads.get(name).unwrap_or_default();
                for class in Priority::ALL {
                    let k = class.index();
                    let labels = ChannelClass {
                        channel: name.to_string(),
                        priority: class.as_str(),
                    };
                    let metrics = pipeline.metrics();
                    metrics
                        .waiting
                        .get_or_create(&labels)
                        .set(backlog[k].due as i64);
                    let in_room = backlog[k].oldest.map_or(0.0, |oldest| {
                        Timestamp::now().duration_since(oldest).as_secs_f64()
                    });
                    let in_hand = load.oldest[k].unwrap_or_default().as_secs_f64();
                    metrics
                        .oldest_waiting_seconds
                        .get_or_create(&labels)
                        .set(in_room.max(in_hand));
                }
            }
            tokio::time::sleep(MEASURE).await;
        }
    })
    .await;
}
