//! A server of its own for each test.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use herald_crds::{Address, Priority, Resource, names};
use herald_dispatcher::accept::{self, Accept, Quotas};
use herald_dispatcher::access::{Access, Keys};
use herald_dispatcher::api::{self, Api, ChannelTest, Control, EditError, Editor, probes};
use herald_dispatcher::broker::embedded::{self, EmbeddedBroker};
use herald_dispatcher::broker::{Broker, MessageId, Outgoing};
use herald_dispatcher::catalog::Catalog;
use herald_dispatcher::catalog::folder::FolderCatalog;
use herald_dispatcher::deliver::worker::Guards;
use herald_dispatcher::fanout::definitions::Definitions;
use herald_dispatcher::id::NotificationId;
use herald_dispatcher::message::{self, Events};
use herald_dispatcher::metrics::Metrics;
use herald_dispatcher::pipeline::{self, Pipeline};
use herald_dispatcher::provider::{self, credentials::Credentials, tls};
use herald_dispatcher::store::sqlite::{self, SqliteStore};
use herald_dispatcher::store::{ApiKey, PeopleStore, Recipient};
use herald_dispatcher::timing::Timing;
use herald_dispatcher::waiting::control::{ControlError, Orders, Reached};
use jiff::Timestamp;
use reqwest::{Method, RequestBuilder, Response, StatusCode};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

/// The key that may do everything.
pub const KEY: &str = "key-of-everything";

const DECLARED: &str = r#"
apiVersion: herald.dev/v1alpha1
kind: Channel
metadata: {name: mail, namespace: shop}
spec:
  medium: email
  providers: [{name: rehearsal, log: {path: SENT, rules: [{recipient: "bad@*", outcome: Permanent}]}}]
---
apiVersion: herald.dev/v1alpha1
kind: Channel
metadata: {name: text, namespace: shop}
spec:
  medium: sms
  providers: [{name: rehearsal, log: {path: SENT}}]
---
apiVersion: herald.dev/v1alpha1
kind: Channel
metadata: {name: closed, namespace: other}
spec:
  medium: email
  providers: [{name: rehearsal, log: {path: SENT}}]
---
apiVersion: herald.dev/v1alpha1
kind: NotificationTemplate
metadata: {name: order-shipped, namespace: shop, labels: {team: logistics}}
spec:
  description: Tells a customer that the parcel is on its way
  category: order-updates
  parameters:
    type: object
    required: [order]
    properties:
      order: {type: object, required: [id], properties: {id: {type: string}, total: {type: number}}}
  routing: {channels: [{name: mail}]}
  content:
    email: {subject: "Order {{ order.id }}", text: "Order {{ order.id }} is on its way."}
    sms: {text: "Order {{ order.id }} is on its way."}
  translations:
    ko: {email: {subject: "주문 {{ order.id }}", text: "주문 {{ order.id }}"}}
  maxRecipients: 20000
  samples: [{name: typical, parameters: {order: {id: "7"}}}]
---
apiVersion: herald.dev/v1alpha1
kind: NotificationTemplate
metadata: {name: login-code, namespace: shop}
spec:
  mandatory: true
  priority: critical
  sensitive: [/code]
  parameters: {type: object, required: [code], properties: {code: {type: string}}}
  routing: {channels: [{name: mail}]}
  content:
    email: {subject: "Your code", text: "Your code is {{ code }}."}
  samples: [{name: typical, parameters: {code: "1"}}]
---
apiVersion: herald.dev/v1alpha1
kind: NotificationTemplate
metadata: {name: few, namespace: shop}
spec:
  routing: {channels: [{name: mail}]}
  content:
    email: {subject: "Few", text: "Few."}
  maxRecipients: 1
---
apiVersion: herald.dev/v1alpha1
kind: RecipientGroup
metadata: {name: board, namespace: shop}
spec:
  members: [{address: {email: ceo@shop.example}}, {address: {email: cfo@shop.example}}]
"#;

/// How a server is set up.
pub struct Setup {
    pub quotas: Quotas,
    pub max_queue_bytes: u64,
    /// Whether the stages behind accepting run.
    pub pipeline: bool,
    pub editor: bool,
    /// What is declared beside what is right; empty: nothing.
    pub wrong: &'static str,
    /// Who may call; `None`: whoever has a key.
    pub access: Option<Arc<dyn Access>>,
}

impl Default for Setup {
    fn default() -> Self {
        Self {
            quotas: Quotas::default(),
            max_queue_bytes: embedded::Options::default().max_bytes,
            pipeline: true,
            editor: true,
            wrong: "",
            access: None,
        }
    }
}

/// What servers share.
struct Behind {
    catalog: Arc<FolderCatalog>,
    store: Arc<SqliteStore>,
    broker: Arc<dyn Broker>,
    stages: Option<Pipeline>,
    metrics: Arc<Metrics>,
    _dir: TempDir,
}

/// A server at work, on a port of its own.
pub struct Server {
    pub base: String,
    pub store: Arc<SqliteStore>,
    behind: Arc<Behind>,
    client: reqwest::Client,
    stop: CancellationToken,
}

impl Drop for Server {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// A receipt has time, also on a machine that is held up.
fn timing() -> Timing {
    Timing {
        receipt: Duration::from_secs(60),
        ..Timing::default()
    }
}

impl Server {
    pub async fn start() -> Self {
        Self::with(Setup::default()).await
    }

    pub async fn with(setup: Setup) -> Self {
        tls::install_crypto();
        let dir = tempfile::tempdir().unwrap();
        let path = |name: &str| dir.path().join(name);
        let yaml = DECLARED.replace("SENT", path("sent.jsonl").to_str().unwrap());
        std::fs::create_dir(path("yaml")).unwrap();
        std::fs::write(path("yaml/shop.yaml"), yaml).unwrap();
        std::fs::write(path("yaml/wrong.yaml"), setup.wrong).unwrap();
        let catalog = Arc::new(FolderCatalog::open(path("yaml"), "shop").unwrap());
        assert_eq!(
            catalog.current().problems.is_empty(),
            setup.wrong.is_empty()
        );
        let options = embedded::Options {
            max_bytes: setup.max_queue_bytes,
            synchronous: false,
            ..embedded::Options::default()
        };
        let broker = EmbeddedBroker::open(&path("queue.db"), options)
            .await
            .unwrap();
        let broker: Arc<dyn Broker> = Arc::new(broker);
        let options = sqlite::Options {
            synchronous: false,
            ..sqlite::Options::default()
        };
        let store = SqliteStore::open(&path("history.db"), options)
            .await
            .unwrap();
        let store = Arc::new(store);
        let metrics = Arc::new(Metrics::default());
        let credentials = Credentials::new(path("secrets"));
        let parts = pipeline::Parts {
            broker: Arc::clone(&broker),
            store: Arc::clone(&store) as _,
            catalog: Arc::clone(&catalog) as _,
            providers: Arc::new(move |_, declared, concurrency| {
                let context = provider::Context {
                    credentials: credentials.clone(),
                    allow_private_addresses: false,
                    concurrency,
                };
                provider::build(declared, &context)
            }),
            metrics: Arc::clone(&metrics),
            timing: timing(),
            window: pipeline::WINDOW,
            guards: Guards::default(),
        };
        let behind = Behind {
            stages: setup.pipeline.then(|| Pipeline::start(&parts)),
            catalog,
            store,
            broker,
            metrics,
            _dir: dir,
        };
        Self::before(Arc::new(behind), &setup).await
    }

    /// Another server before the same queue and database.
    pub async fn beside(&self) -> Self {
        Self::before(Arc::clone(&self.behind), &Setup::default()).await
    }

    async fn before(behind: Arc<Behind>, setup: &Setup) -> Self {
        let Behind {
            catalog,
            store,
            broker,
            stages,
            metrics,
            ..
        } = &*behind;
        let loads = stages.as_ref().map(|stages| Arc::clone(&stages.loads));
        let loads = loads.unwrap_or_default();
        let accept = Arc::new(Accept::new(accept::Parts {
            broker: Arc::clone(broker),
            catalog: Arc::clone(catalog) as _,
            store: Arc::clone(store) as _,
            load: Arc::clone(&loads) as _,
            metrics: Arc::clone(metrics),
            timing: timing(),
            quotas: setup.quotas,
        }));
        let (outcomes, _) = tokio::sync::broadcast::channel(16);
        let (_, ready) = watch::channel(true);
        let everything = ApiKey {
            name: "everything".to_owned(),
            digest: Keys::digest(KEY),
            scopes: vec!["*".to_owned()],
            created_at: Timestamp::now(),
        };
        let keys = Arc::new(Keys::new(Arc::clone(store) as _, &[everything]));
        let api = Arc::new(Api {
            access: (setup.access.clone()).unwrap_or_else(|| Arc::clone(&keys) as _),
            keys: setup.access.is_none().then_some(keys),
            accept,
            catalog: Arc::clone(catalog) as _,
            broker: Arc::clone(broker),
            store: Arc::clone(store) as _,
            definitions: Arc::new(Definitions::new(
                Arc::clone(store) as _,
                Arc::clone(catalog) as _,
            )),
            loads,
            control: Arc::new(Reach(Arc::clone(&behind))),
            editor: setup
                .editor
                .then(|| Arc::new(Edit(Arc::clone(catalog))) as _),
            outcomes: stages
                .as_ref()
                .map_or(outcomes, |stages| stages.outcomes.clone()),
            metrics: Arc::clone(metrics),
            ready: ready.clone(),
            streams: api::stream::Places::default(),
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let base = format!("http://{}", listener.local_addr().unwrap());
        let router = api::router(api).merge(probes::router(Arc::clone(metrics), ready));
        let stop = CancellationToken::new();
        let stopping = stop.clone();
        tokio::spawn(async move {
            let drain = Duration::from_secs(5);
            api::serve::serve(listener, router, drain, stopping.cancelled()).await;
        });
        Self {
            base,
            store: Arc::clone(store),
            behind,
            client: reqwest::Client::builder().no_proxy().build().unwrap(),
            stop,
        }
    }

    /// Publishes events of the channel `shop/mail`, as its pods do.
    pub async fn publish(&self, events: &Events) {
        let message = Outgoing::at_once(message::encode(events));
        let topic = names::events("shop/mail");
        let published = self.behind.broker.publish(&topic, vec![message]);
        published.await.unwrap();
    }

    /// A request without a key.
    pub fn bare(&self, method: Method, path: &str) -> RequestBuilder {
        self.client.request(method, format!("{}{path}", self.base))
    }

    /// A request with the key that may do everything; `path` within the namespace `shop`.
    pub fn request(&self, method: Method, path: &str) -> RequestBuilder {
        self.bare(method, &format!("/v1/namespaces/shop/{path}"))
            .bearer_auth(KEY)
    }

    /// Sends, with the key that may do everything.
    pub async fn send(&self, body: &Value) -> Answer {
        self.post("notifications", body).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        Answer::of(self.request(Method::POST, path).json(body)).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        Answer::of(self.request(Method::PUT, path).json(body)).await
    }

    pub async fn get(&self, path: &str) -> Answer {
        Answer::of(self.request(Method::GET, path)).await
    }

    /// Sends, and waits for the end: the notification as it is then.
    pub async fn send_and_wait(&self, body: &Value) -> Value {
        let accepted = self.send(body).await.expect(StatusCode::ACCEPTED);
        let id = accepted["id"].as_str().unwrap();
        let path = format!("notifications/{id}?wait=30s");
        self.get(&path).await.expect(StatusCode::OK)
    }

    /// Makes a key with these scopes.
    pub async fn key(&self, key: &str, scopes: &[&str]) {
        let key = ApiKey {
            name: format!("the one of {key}"),
            digest: Keys::digest(key),
            scopes: scopes.iter().map(|&scope| scope.to_owned()).collect(),
            created_at: Timestamp::now(),
        };
        self.store.put_key(&key).await.unwrap();
    }

    /// Puts somebody into the directory.
    pub async fn person(&self, id: &str, email: Option<&str>) {
        let person = Recipient {
            id: id.to_owned(),
            addresses: Address {
                email: email.map(str::to_owned),
                phone: email.is_none().then(|| "+821012345678".to_owned()),
                ..Address::default()
            },
            ..Recipient::default()
        };
        let now = Timestamp::now();
        self.store
            .put_recipients("shop", &[person], now)
            .await
            .unwrap();
    }
}

/// Something to send to `alice`, who need not exist.
pub fn order(recipients: &Value) -> Value {
    json!({"template": "order-shipped", "recipients": recipients, "parameters": {"order": {"id": "7"}}})
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub status: StatusCode,
    pub headers: reqwest::header::HeaderMap,
    pub body: Value,
}

impl Answer {
    pub async fn of(request: RequestBuilder) -> Self {
        Self::from(request.send().await.unwrap()).await
    }

    pub async fn from(response: Response) -> Self {
        let (status, headers) = (response.status(), response.headers().clone());
        let bytes = response.bytes().await.unwrap();
        let body = serde_json::from_slice(&bytes).unwrap_or(Value::Null);
        Self {
            status,
            headers,
            body,
        }
    }

    /// The body, if the status is this.
    #[track_caller]
    pub fn expect(self, status: StatusCode) -> Value {
        assert_eq!(self.status, status, "{:#}", self.body);
        self.body
    }

    /// A problem's `errors`, as pointers and details, if it is this problem.
    #[track_caller]
    pub fn problem(&self, status: u16, kind: &str) -> Vec<(String, String)> {
        assert_eq!(self.status.as_u16(), status, "{:#}", self.body);
        assert_eq!(self.headers["content-type"], "application/problem+json");
        assert_eq!(
            self.body["type"],
            format!("/problems/{kind}"),
            "{:#}",
            self.body
        );
        assert_eq!(self.body["status"], status);
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        assert!(!text(&self.body["detail"]).is_empty());
        let errors = self.body["errors"].as_array().cloned().unwrap_or_default();
        errors
            .iter()
            .map(|error| (text(&error["pointer"]), text(&error["detail"])))
            .collect()
    }

    pub fn header(&self, name: &str) -> Option<&str> {
        self.headers.get(name)?.to_str().ok()
    }
}

struct Reach(Arc<Behind>);

impl Reach {
    fn orders(&self) -> &Orders {
        &self.0.stages.as_ref().unwrap().orders
    }
}

#[async_trait]
impl Control for Reach {
    async fn cancel(&self, notification: &NotificationId) -> Result<Reached, ControlError> {
        self.orders().cancel(notification).await
    }

    async fn cancel_template(
        &self,
        namespace: &str,
        template: &str,
    ) -> Result<Reached, ControlError> {
        self.orders().cancel_template(namespace, template).await
    }

    async fn prioritize(
        &self,
        notification: &NotificationId,
        priority: Priority,
    ) -> Result<Reached, ControlError> {
        self.orders().prioritize(notification, priority).await
    }

    fn rows_changed(&self) {
        if let Some(stages) = &self.0.stages {
            stages.plan.wake();
            stages.lanes.ready_everywhere();
        }
    }

    fn recorded(&self, channel: &str) -> Option<watch::Receiver<Option<MessageId>>> {
        self.0.stages.as_ref()?.recorded(channel)
    }

    async fn test(&self, channel: &str, _: &Address) -> Option<ChannelTest> {
        (channel == "shop/mail").then(|| ChannelTest {
            outcome: "sent".to_owned(),
            provider: "rehearsal".to_owned(),
            provider_id: None,
            reason: None,
            detail: None,
            milliseconds: 1,
        })
    }
}

/// Writes each resource into a file of its own.
struct Edit(Arc<FolderCatalog>);

impl Edit {
    fn file(&self, kind: herald_crds::Kind, name: &str) -> std::path::PathBuf {
        Path::new(self.0.dir()).join(format!("{kind}-{name}.yaml"))
    }
}

#[async_trait]
impl Editor for Edit {
    async fn put(&self, resource: Resource) -> Result<bool, EditError> {
        let file = self.file(resource.kind(), resource.name());
        let is_new = !file.exists();
        let json = match &resource {
            Resource::Channel(resource) => serde_json::to_string(resource),
            Resource::NotificationTemplate(resource) => serde_json::to_string(resource),
            Resource::RecipientGroup(resource) => serde_json::to_string(resource),
            Resource::Schedule(resource) => serde_json::to_string(resource),
        };
        std::fs::write(file, json.unwrap()).unwrap();
        self.0.reload_now();
        Ok(is_new)
    }

    async fn delete(&self, kind: herald_crds::Kind, _: &str, name: &str) -> Result<(), EditError> {
        std::fs::remove_file(self.file(kind, name)).map_err(|error| EditError::Write {
            reason: error.to_string(),
        })?;
        self.0.reload_now();
        Ok(())
    }
}
