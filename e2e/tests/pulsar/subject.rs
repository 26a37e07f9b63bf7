//! A tenant of its own for each test, in one Pulsar for all of them.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use herald_dispatcher::broker::Broker;
use herald_dispatcher::broker::contract::Subject;
use herald_dispatcher::broker::pulsar::{PulsarBroker, Settings, Token};
use herald_e2e::environment::{Environment, Options, Pulsar};
use tokio::sync::OnceCell;

/// What the tests may do as.
pub const ROLE: &str = "herald";

/// The Pulsar that `herald-e2e up` left running, or one that ends with this program.
pub async fn shared() -> &'static Pulsar {
    static SHARED: OnceCell<Environment> = OnceCell::const_new();
    let options = Options {
        postgres: false,
        ..Options::default()
    };
    let environment = SHARED
        .get_or_init(async || Environment::start(&options).await.unwrap())
        .await;
    environment.pulsar().unwrap()
}

/// Makes a tenant with everything that Herald needs, and answers with its name.
pub async fn tenant(pulsar: &Pulsar, partitions: u32) -> String {
    let tenant = format!("test-{:08x}", rand::random::<u32>());
    let admin = pulsar.admin().unwrap();
    let clusters = admin.clusters().await.unwrap();
    admin.create_tenant(&tenant, &clusters).await.unwrap();
    admin
        .provide_requests(&tenant, &clusters, partitions, Some(ROLE))
        .await
        .unwrap();
    let horizon = Duration::from_secs(900);
    admin
        .provide_channel(
            &tenant,
            &clusters,
            "shop/mail",
            partitions,
            horizon,
            Some(ROLE),
        )
        .await
        .unwrap();
    tenant
}

pub fn settings(pulsar: &Pulsar, tenant: &str) -> Settings {
    Settings {
        url: pulsar.service_url().to_owned(),
        tenant: tenant.to_owned(),
        token: Token::Fixed(pulsar.token(ROLE, None)),
        ca: None,
        operation_timeout: Duration::from_secs(30),
    }
}

/// A tenant, to which each [`Subject::open`] connects anew.
pub struct Tenant(OnceCell<String>);

impl Tenant {
    pub fn new() -> Self {
        Self(OnceCell::new())
    }
}

#[async_trait]
impl Subject for Tenant {
    async fn open(&self) -> Arc<dyn Broker> {
        let pulsar = shared().await;
        let tenant = self.0.get_or_init(async || tenant(pulsar, 1).await).await;
        Arc::new(PulsarBroker::new(settings(pulsar, tenant)))
    }

    /// It is our side that crashes here; what a crash of Pulsar does has tests of its own.
    async fn crash(&self) {}

    /// With keys, and whenever the last consumer of a subscription leaves while another comes.
    fn repeats(&self) -> bool {
        true
    }
}
