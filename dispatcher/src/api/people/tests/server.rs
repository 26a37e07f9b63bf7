//! A server whose directory is its own, for each test.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use herald_crds::{Address, Priority, RecipientGroup, RecipientGroupSpec};
use reqwest::{Method, Response, StatusCode};
use serde_json::Value;
use tokio::net::TcpListener;
use tokio::sync::{broadcast, oneshot, watch};

use crate::accept::{Accept, Idle, Parts, Quotas};
use crate::access::Keys;
use crate::api::serve::serve;
use crate::api::stream::Places;
use crate::api::{Api, ChannelTest, Control, router};
use crate::broker::Broker;
use crate::broker::embedded::{self, EmbeddedBroker};
use crate::catalog::{Catalog, Snapshot};
use crate::deliver::load::Loads;
use crate::fanout::definitions::Definitions;
use crate::id::NotificationId;
use crate::metrics::Metrics;
use crate::store::sqlite::{Options, SqliteStore};
use crate::store::{ApiKey, Store};
use crate::timing::Timing;
use crate::waiting::control::{ControlError, Reached};

/// What is declared: a managed group, and one that is not.
struct Declared(watch::Sender<Arc<Snapshot>>);

impl Declared {
    fn new() -> Self {
        let group = |name: &str, managed| {
            let spec = RecipientGroupSpec {
                managed,
                ..RecipientGroupSpec::default()
            };
            let group = RecipientGroup::new(name, spec);
            (Arc::from(format!("shop/{name}")), Arc::new(group))
        };
        let snapshot = Snapshot {
            groups: [group("vip", true), group("board", false)].into(),
            ..Snapshot::default()
        };
        Self(watch::Sender::new(Arc::new(snapshot)))
    }
}

impl Catalog for Declared {
    fn current(&self) -> Arc<Snapshot> {
        self.0.borrow().clone()
    }

    fn changes(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.0.subscribe()
    }
}

/// Nothing is under way here that could be ordered about.
struct NoOrders;

#[async_trait]
impl Control for NoOrders {
    async fn cancel(&self, _: &NotificationId) -> Result<Reached, ControlError> {
        unreachable!("no order is given")
    }

    async fn cancel_template(&self, _: &str, _: &str) -> Result<Reached, ControlError> {
        unreachable!("no order is given")
    }

    async fn prioritize(&self, _: &NotificationId, _: Priority) -> Result<Reached, ControlError> {
        unreachable!("no order is given")
    }

    fn rows_changed(&self) {}

    async fn test(&self, _: &str, _: &Address) -> Option<ChannelTest> {
        None
    }
}

/// A server with a store of its own.
pub(super) struct Server {
    pub(super) base: String,
    pub(super) client: reqwest::Client,
    pub(super) store: Arc<SqliteStore>,
    /// Stops it when dropped.
    _stop: oneshot::Sender<()>,
    _folder: tempfile::TempDir,
}

impl Server {
    pub(super) async fn start() -> Self {
        // A second installation is refused, which is as good.
        let _ = rustls::crypto::ring::default_provider().install_default();
        let folder = tempfile::tempdir().unwrap();
        let options = Options {
            synchronous: false,
            ..Options::default()
        };
        let store = SqliteStore::open(&folder.path().join("store.db"), options).await;
        let store = Arc::new(store.unwrap());
        let dyn_store: Arc<dyn Store> = store.clone();
        let options = embedded::Options {
            synchronous: false,
            ..embedded::Options::default()
        };
        let broker = EmbeddedBroker::open(&folder.path().join("broker.db"), options).await;
        let catalog: Arc<dyn Catalog> = Arc::new(Declared::new());
        let metrics = Arc::new(Metrics::default());
        let broker: Arc<dyn Broker> = Arc::new(broker.unwrap());
        let accept = Accept::new(Parts {
            broker: Arc::clone(&broker),
            catalog: Arc::clone(&catalog),
            store: Arc::clone(&dyn_store),
            load: Arc::new(Idle),
            metrics: Arc::clone(&metrics),
            timing: Timing::default(),
            quotas: Quotas::default(),
        });
        let key = |name: &str, scopes: &[&str]| ApiKey {
            name: name.to_owned(),
            digest: Keys::digest(name),
            scopes: scopes.iter().map(|&scope| scope.to_owned()).collect(),
            created_at: jiff::Timestamp::UNIX_EPOCH,
        };
        let keys = [
            key(
                "writer",
                &[
                    "recipients:read",
                    "recipients:write",
                    "groups:read",
                    "groups:write",
                    "notifications:read",
                ],
            ),
            key("reader", &["recipients:read", "groups:read"]),
            key("importer", &["recipients:write"]),
        ];
        let api = Api {
            access: Arc::new(Keys::new(Arc::clone(&dyn_store), &keys)),
            keys: None,
            accept: Arc::new(accept),
            catalog: Arc::clone(&catalog),
            definitions: Arc::new(Definitions::new(Arc::clone(&dyn_store), catalog)),
            broker,
            store: dyn_store,
            loads: Arc::<Loads>::default(),
            control: Arc::new(NoOrders),
            editor: None,
            outcomes: broadcast::Sender::new(1),
            metrics,
            ready: watch::channel(true).1,
            streams: Places::default(),
        };
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!(
            "http://{}/v1/namespaces/shop",
            listener.local_addr().unwrap()
        );
        let (stop, stopped) = oneshot::channel();
        tokio::spawn(serve(
            listener,
            router(Arc::new(api)),
            Duration::ZERO,
            async {
                let _ = stopped.await;
            },
        ));
        Self {
            base,
            client: reqwest::Client::new(),
            store,
            _stop: stop,
            _folder: folder,
        }
    }

    pub(super) fn request(&self, method: Method, path: &str) -> reqwest::RequestBuilder {
        let url = format!("{}/{path}", self.base);
        self.client.request(method, url).bearer_auth("writer")
    }

    pub(super) async fn get(&self, path: &str) -> Response {
        self.request(Method::GET, path).send().await.unwrap()
    }

    pub(super) async fn put(&self, path: &str, body: &Value) -> Response {
        let request = self.request(Method::PUT, path).json(body);
        request.send().await.unwrap()
    }

    pub(super) async fn post(&self, path: &str, body: &Value) -> Response {
        let request = self.request(Method::POST, path).json(body);
        request.send().await.unwrap()
    }

    pub(super) async fn delete(&self, path: &str) -> StatusCode {
        let request = self.request(Method::DELETE, path);
        request.send().await.unwrap().status()
    }

    pub(super) async fn import(&self, query: &str, media_type: &str, body: String) -> Response {
        self.request(Method::POST, &format!("recipients/import{query}"))
            .header("content-type", media_type)
            .body(body)
            .send()
            .await
            .unwrap()
    }

    /// Every item of a list, page by page.
    pub(super) async fn all(&self, path: &str, limit: usize) -> Vec<Value> {
        let (mut items, mut cursor) = (Vec::new(), String::new());
        loop {
            let page = self.get(&format!("{path}?limit={limit}{cursor}")).await;
            let page = json_of(page, StatusCode::OK).await;
            let found = page["items"].as_array().unwrap();
            assert!(found.len() <= limit);
            items.extend(found.iter().cloned());
            match page["next"].as_str() {
                Some(next) => cursor = format!("&cursor={next}"),
                None => return items,
            }
        }
    }
}

pub(super) async fn json_of(response: Response, expected: StatusCode) -> Value {
    let status = response.status();
    let body: Value = response.json().await.unwrap();
    assert_eq!(status, expected, "{body}");
    body
}
