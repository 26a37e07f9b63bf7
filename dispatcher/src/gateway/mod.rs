//! The stages behind HTTP, and HTTP: everything but delivering, or with it everything.
//!
//! - This file: accepts, serves, and shuts down in order, over any broker and store.
//! - [`folder`]: changes to the folder, over HTTP. [`reach`]: what the API needs of the pipeline. [`measure`]: gauges.

mod folder;
mod measure;
mod reach;

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine;
use base64::prelude::BASE64_STANDARD;
use bytes::Bytes;
use herald_crds::Priority;
use herald_crds::names::{self, Path};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use self::measure::Measure;
use crate::accept::schedules::Schedules;
use crate::accept::{self, Accept, Quotas};
use crate::access::{Access, Keys};
use crate::api::{self, Api, Editor, probes};
use crate::broker::Broker;
use crate::catalog::Catalog;
use crate::catalog::folder::FolderCatalog;
use crate::clock;
use crate::deliver::worker::Guards;
use crate::id::FullName;
use crate::metrics::Metrics;
use crate::pipeline::{self, Pipeline, Providers};
use crate::store::{ApiKey, Store, StoreError};
use crate::timing::Timing;

/// How often the gauges of the waiting room are brought up to date while there is something in it.
const MEASURE: Duration = Duration::from_secs(10);

/// Who delivers.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Delivering {
    /// This very process, and nobody else.
    Here,
    /// Pods of their own, one or more for each channel.
    Elsewhere,
}

/// Who may call, and whether what is declared can be changed over HTTP.
pub enum Callers {
    /// Whoever has an API key of the store.
    Keys {
        /// One that may do everything, besides those in the store; `None`: only those.
        api_key: Option<String>,
        /// The folder, if it is this process's alone.
        folder: Option<Arc<FolderCatalog>>,
    },
    /// Whom somebody else knows.
    Known(Arc<dyn Access>),
}

/// What it works with.
pub struct Parts {
    /// What moves.
    pub broker: Arc<dyn Broker>,
    /// What waits and what was.
    pub store: Arc<dyn Store>,
    /// What is declared.
    pub catalog: Arc<dyn Catalog>,
    /// Who may call.
    pub callers: Callers,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// What makes providers: to deliver, and to test channels.
    pub providers: Providers,
    /// Who delivers.
    pub delivering: Delivering,
    /// The times kept.
    pub timing: Timing,
    /// W: most deliveries of a channel that are sent and whose outcome has no receipt yet.
    pub window: usize,
    /// How fast may be sent.
    pub quotas: Quotas,
    /// Where HTTP is served.
    pub listener: TcpListener,
    /// Where health and metrics are served; `None`: beside the API.
    pub probes: Option<TcpListener>,
}

/// Everything at work.
pub struct Gateway {
    /// An API key that was made now, since there was none: to be shown once.
    pub new_key: Option<String>,
    pipeline: Arc<Pipeline>,
    timing: Timing,
    ready: watch::Sender<bool>,
    stop: CancellationToken,
    tasks: TaskTracker,
}

impl Gateway {
    /// Starts everything. Once this returns requests are taken.
    ///
    /// # Errors
    ///
    /// The API keys could not be read or written.
    pub async fn start(parts: Parts) -> Result<Self, StoreError> {
        let Parts {
            broker,
            store,
            catalog,
            callers,
            metrics,
            providers,
            delivering,
            timing,
            window,
            quotas,
            listener,
            probes: probes_listener,
        } = parts;
        let mut new_key = None;
        let (access, keys, editor): (Arc<dyn Access>, _, _) = match callers {
            Callers::Keys { api_key, folder } => {
                let (fixed, new) = first_keys(&*store, api_key.as_deref()).await?;
                new_key = new;
                let keys = Arc::new(Keys::new(Arc::clone(&store), &fixed));
                let editor = folder.map(|folder| Arc::new(folder::Edit(folder)) as Arc<dyn Editor>);
                (Arc::clone(&keys) as _, Some(keys), editor)
            }
            Callers::Known(access) => (access, None, None),
        };
        let stages = pipeline::Parts {
            broker: Arc::clone(&broker),
            store: Arc::clone(&store),
            catalog: Arc::clone(&catalog),
            providers: Arc::clone(&providers),
            metrics: Arc::clone(&metrics),
            timing: timing.clone(),
            window,
            guards: Guards::default(),
        };
        let pipeline = Arc::new(match delivering {
            Delivering::Here => Pipeline::start(&stages),
            Delivering::Elsewhere => Pipeline::start_without_workers(&stages),
        });
        let accept = Arc::new(Accept::new(accept::Parts {
            broker: Arc::clone(&broker),
            catalog: Arc::clone(&catalog),
            store: Arc::clone(&store),
            load: Arc::clone(&pipeline.loads) as _,
            metrics: Arc::clone(&metrics),
            timing: timing.clone(),
            quotas,
        }));

        let stop = CancellationToken::new();
        let tasks = TaskTracker::new();
        // A broker of its own is there as long as this process is.
        let (ready, is_ready) = watch::channel(delivering == Delivering::Here);
        let api = Arc::new(Api {
            access: Arc::clone(&access),
            keys,
            accept: Arc::clone(&accept),
            catalog: Arc::clone(&catalog),
            broker: Arc::clone(&broker),
            store: Arc::clone(&store),
            definitions: Arc::clone(&pipeline.definitions),
            loads: Arc::clone(&pipeline.loads),
            control: Arc::new(reach::Reach {
                pipeline: Arc::clone(&pipeline),
                catalog: Arc::clone(&catalog),
                providers,
            }),
            editor,
            outcomes: pipeline.outcomes.clone(),
            metrics: Arc::clone(&metrics),
            ready: is_ready.clone(),
            streams: api::stream::Places::default(),
        });
        let mut router = api::router(api);
        let health = probes::router(Arc::clone(&metrics), is_ready);
        if let Some(listener) = probes_listener {
            let (stopping, drain) = (stop.clone(), timing.drain);
            tasks.spawn(async move {
                api::serve::serve(listener, health, drain, stopping.cancelled()).await;
            });
        } else {
            router = router.merge(health);
        }
        let (stopping, drain) = (stop.clone(), timing.drain);
        tasks.spawn(async move {
            api::serve::serve(listener, router, drain, stopping.cancelled()).await;
        });
        let schedules = Schedules::new(
            accept,
            access,
            Arc::clone(&catalog),
            Arc::clone(&store),
            Arc::clone(&metrics),
        );
        let stopping = stop.clone();
        tasks.spawn(async move { schedules.run(stopping.cancelled()).await });
        tasks.spawn(note_definitions(
            Arc::clone(&catalog),
            Arc::clone(&store),
            Arc::clone(&metrics),
            stop.clone(),
        ));
        let measure = Measure {
            catalog,
            store,
            loads: Arc::clone(&pipeline.loads),
            metrics,
            shown: HashSet::new(),
        };
        tasks.spawn(measure.run(stop.clone()));
        if delivering == Delivering::Elsewhere {
            tasks.spawn(get_ready(
                Arc::clone(&broker),
                Arc::clone(&pipeline),
                ready.clone(),
                stop.clone(),
            ));
        }
        tasks.close();
        Ok(Self {
            new_key,
            pipeline,
            timing,
            ready,
            stop,
            tasks,
        })
    }

    /// Shuts down in order: no more requests, then the stages. What is not finished within the drain time is repeated at
    /// the next start, or by others.
    pub async fn stop(&self) {
        self.ready.send_replace(false);
        self.stop.cancel();
        // Side by side: somebody who watches outcomes must not keep the stages from finishing.
        let served = tokio::time::timeout(self.timing.drain, self.tasks.wait());
        let worked = tokio::time::timeout(self.timing.drain * 2, self.pipeline.stop());
        let (_, worked) = futures::join!(served, worked);
        if worked.is_err() {
            tracing::warn!("not everything was finished in time: it is taken up at the next start");
        }
    }
}

/// The API keys besides those in the database, and one that had to be made.
async fn first_keys(
    store: &dyn Store,
    given: Option<&str>,
) -> Result<(Vec<ApiKey>, Option<String>), StoreError> {
    let key = |name: &str, key: &str| ApiKey {
        name: name.to_owned(),
        digest: Keys::digest(key),
        scopes: vec!["*".to_owned()],
        created_at: clock::now(),
    };
    if let Some(given) = given {
        return Ok((vec![key("env", given)], None));
    }
    match store.keys().await {
        Ok(keys) if keys.is_empty() => {}
        Ok(_) => return Ok((Vec::new(), None)),
        Err(StoreError::Unavailable { reason }) => {
            tracing::warn!(
                reason,
                "API keys cannot be read: nobody is known until the database is there, and if there is no key yet, one \
                 is made at the next start"
            );
            return Ok((Vec::new(), None));
        }
        Err(error) => return Err(error),
    }
    let new = Keys::generate();
    store.put_key(&key("admin", &new)).await?;
    Ok((Vec::new(), Some(new)))
}

/// Says that the gateway is ready once it may publish and take requests of every kind. Afterwards nothing is asked again: a
/// broker that goes away takes all gateways with it, and senders are better told so than not reached.
async fn get_ready(
    broker: Arc<dyn Broker>,
    pipeline: Arc<Pipeline>,
    ready: watch::Sender<bool>,
    stop: CancellationToken,
) {
    let getting_ready = async {
        for path in [Path::Direct, Path::Stored] {
            for class in Priority::ALL {
                let topic = names::requests(path, class);
                // No message, and yet the broker is asked whether there could be one.
                while let Err(error) = broker.publish(&topic, Vec::new()).await {
                    pipeline.metrics().broker_failed("open_requests");
                    tracing::warn!(%error, "requests cannot be taken yet, trying again");
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
            }
        }
        pipeline.plan.takes().await;
        tracing::info!("ready");
        ready.send_replace(true);
    };
    stop.run_until_cancelled(getting_ready).await;
}

/// Notes every definition that comes into force.
async fn note_definitions(
    catalog: Arc<dyn Catalog>,
    store: Arc<dyn Store>,
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
                match store.in_force(namespace, short, &template.hash, &definition, clock::now()).await {
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
