//! For tests: an API server and a Pulsar that are maps, and note what they were asked.

mod api_server;
mod pulsar;

use std::sync::Arc;
use std::time::Duration;

use herald_crds::{Channel, NotificationTemplate, RecipientGroup, Schedule};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Namespace;
use kube::Resource;
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::store::Writer;
use kube::runtime::watcher::Event;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::backoff::Backoff;
use crate::channel::Plant;
use crate::context::{Context, recorder};
use crate::queue::{Guard, Outlets, Queues};
use crate::settings::{PodAuth, PodSettings};
use crate::watch::{Stores, Writers};

pub use api_server::ApiServer;
pub use pulsar::Pulsar;

/// A reconciler's surroundings.
pub struct Bench {
    pub server: ApiServer,
    pub pulsar: Option<Pulsar>,
    pub ctx: Arc<Context>,
    pub writers: Writers,
    /// Held, so that the queues stay open.
    _outlets: Outlets,
}

/// The time of every test.
pub fn noon() -> Timestamp {
    "2026-03-02T12:00:00Z".parse().unwrap()
}

pub fn pods() -> PodSettings {
    PodSettings {
        pulsar_url: "pulsar://pulsar.example:6650".to_owned(),
        pulsar_port: 6650,
        tenant: "herald".to_owned(),
        ca: None,
        auth: PodAuth::ServiceAccount,
        secret: "herald-pulsar".to_owned(),
        role: Some("system:serviceaccount:{namespace}:{serviceAccount}".to_owned()),
        image: "herald:0.1".to_owned(),
        image_pull_policy: "IfNotPresent".to_owned(),
        log: None,
        window: None,
        horizon_seconds: None,
        drain_seconds: 25,
        allow_private_addresses: false,
    }
}

impl Bench {
    /// With namespaces `kube-system`, `shop` and `platform`, and nothing made by anybody.
    pub fn embedded() -> Self {
        Self::with(None)
    }

    /// The same, with Pulsar.
    pub async fn with_pulsar() -> Self {
        Self::with(Some(Pulsar::start().await))
    }

    fn with(pulsar: Option<Pulsar>) -> Self {
        let server = ApiServer::default();
        let client = server.client();
        let (stores, writers) = Stores::new();
        let (queues, outlets) = Queues::new();
        let plant = pulsar.as_ref().map(|pulsar| {
            let role = Some("gateway".to_owned());
            let horizon = Duration::from_mins(15);
            Plant::new(
                pulsar.admin(),
                pods(),
                role,
                horizon,
                Duration::from_mins(5),
                client.clone(),
                queues.clone(),
            )
        });
        let ctx = Arc::new(Context {
            recorder: recorder(&client, "test"),
            client,
            namespace: "shop".to_owned(),
            stores,
            written: Arc::default(),
            queues,
            backoff: Backoff::default(),
            metrics: Arc::default(),
            concurrency: 4,
            plant,
            gateway: None,
            now: noon,
        });
        let mut bench = Self {
            server,
            pulsar,
            ctx,
            writers,
            _outlets: outlets,
        };
        for name in ["kube-system", "shop", "platform"] {
            let labels = json!({"kubernetes.io/metadata.name": name});
            let metadata = json!({"name": name, "uid": format!("uid-of-{name}"), "labels": labels});
            let namespace: PartialObjectMeta<Namespace> = read(json!({"metadata": metadata}));
            put(&mut bench.writers.namespaces, namespace);
        }
        bench
    }

    /// Declares a resource: it is in the API server, and the watch has told of it.
    pub fn declare(&mut self, document: &Value) -> Value {
        let declared = self.server.declare(document);
        match declared["kind"].as_str().unwrap() {
            "Channel" => put(
                &mut self.writers.channels,
                read::<Guard<Channel>>(declared.clone()),
            ),
            "NotificationTemplate" => put(
                &mut self.writers.templates,
                read::<Guard<NotificationTemplate>>(declared.clone()),
            ),
            "RecipientGroup" => put(
                &mut self.writers.groups,
                read::<Guard<RecipientGroup>>(declared.clone()),
            ),
            "Schedule" => put(
                &mut self.writers.schedules,
                read::<Guard<Schedule>>(declared.clone()),
            ),
            "Secret" => put(&mut self.writers.secrets, read(declared.clone())),
            kind => panic!("{kind} is declared by nobody"),
        }
        declared
    }

    /// The watches tell of everything that was made for Channels.
    pub fn tell(&mut self) {
        for object in self.server.all() {
            match object["kind"].as_str().unwrap() {
                "Deployment" => put(&mut self.writers.deployments, read(object)),
                "ServiceAccount" => put(&mut self.writers.accounts, read(object)),
                "PodDisruptionBudget" => put(&mut self.writers.budgets, read(object)),
                "NetworkPolicy" => put(&mut self.writers.policies, read(object)),
                "ConfigMap" => put(&mut self.writers.configs, read(object)),
                _ => {}
            }
        }
    }
}

/// Reads a document.
pub fn read<K: DeserializeOwned>(document: Value) -> K {
    serde_json::from_value(document).unwrap()
}

/// The watch tells of an object.
pub fn put<K>(writer: &mut Writer<K>, object: K)
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    writer.apply_watcher_event(&Event::Apply(object));
}

/// A resource of the namespace `shop`.
pub fn document(kind: &str, name: &str, spec: &Value) -> Value {
    json!({
        "apiVersion": herald_crds::kind::API_VERSION,
        "kind": kind,
        "metadata": {"name": name, "namespace": "shop"},
        "spec": spec,
    })
}
