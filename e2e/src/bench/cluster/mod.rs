//! The roles of a cluster, over Pulsar and PostgreSQL on this machine, beside Pulsar's client alone.
//!
//! - [`gateway`]: accepting. [`deliver`]: a pod, from bundles and from single deliveries. [`flood`]: what is critical, while
//!   something else comes ten times as fast as it goes. [`fanout`]: one notification to a million, from rows to the broker.
//!   [`memory`]: what is resident under a load that goes on, and while a million wait.
//! - [`history`]: recording what became of deliveries, and the status of one.

pub mod deliver;
pub mod fanout;
pub mod flood;
pub mod gateway;
pub mod history;
pub mod memory;

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use herald_crds::Priority;
use herald_crds::names::{self, Topic};
use herald_crds::render::Rendered;
use herald_dispatcher::broker::pulsar::{PulsarBroker, Settings, Token};
use herald_dispatcher::broker::{Broker as _, Outgoing};
use herald_dispatcher::id::{DeliveryId, NotificationId};
use herald_dispatcher::message::{self, Bundle, Delivery};
use herald_e2e::client::Raw;
use jiff::Timestamp;

use crate::cluster::{Channel, Cluster, NAMESPACE, Setup, load};

/// Bytes of what is said.
const TEXT: usize = 400;

/// Messages of the raw client without a receipt at any time.
const AT_A_TIME: usize = 1_000;

/// Messages that the raw client asks for at a time.
const PREFETCH: u32 = 1_000;

/// A topic that nothing but the raw client uses.
const RAW: Channel = channel("raw", None);

const fn channel(name: &'static str, rate: Option<u32>) -> Channel {
    Channel {
        name,
        rate,
        latency: Duration::ZERO,
        slots: 256,
        kept: false,
    }
}

async fn start(
    channels: &'static [Channel],
    window: usize,
    sync: bool,
    folder: &std::path::Path,
) -> Result<Cluster> {
    Cluster::start(
        Setup {
            channels,
            templates: load::templates(channels),
            horizon: Duration::from_mins(2),
            window,
            sync,
            broker: Vec::new(),
        },
        folder,
    )
    .await
}

fn topic(channel: &str, class: Priority) -> Topic {
    names::deliveries(&format!("{NAMESPACE}/{channel}"), class)
}

async fn raw(cluster: &Cluster, topic: &Topic) -> Result<Raw> {
    let pulsar = cluster.environment.pulsar()?;
    let token = pulsar.admin_token();
    Box::pin(Raw::new(
        pulsar.service_url(),
        token,
        cluster.tenant(),
        topic,
    ))
    .await
}

fn broker(cluster: &Cluster) -> Result<PulsarBroker> {
    let pulsar = cluster.environment.pulsar()?;
    Ok(PulsarBroker::new(Settings {
        url: pulsar.service_url().to_owned(),
        tenant: cluster.tenant().to_owned(),
        token: Token::Fixed(pulsar.admin_token().to_owned()),
        ca: None,
        operation_timeout: Duration::from_secs(30),
    }))
}

fn delivery(channel: &str, class: Priority, number: usize) -> Delivery {
    let notification = NotificationId::random();
    let endpoint = format!("n{number}@bench.example");
    let now = Timestamp::now();
    let id = DeliveryId::new(
        &notification,
        "",
        &format!("{NAMESPACE}/{channel}"),
        0,
        &endpoint,
        0,
    );
    Delivery {
        id,
        notification,
        namespace: Arc::from(NAMESPACE),
        template: Arc::from("note"),
        recipient: Arc::from(""),
        endpoint: Arc::from(endpoint),
        priority: class,
        accepted_at: now,
        ready_at: now,
        released_at: now,
        expires_at: None,
        round: 0,
        attempt: 1,
        tried: 0,
        provider: None,
        content: Rendered::Email {
            subject: "A note".to_owned(),
            html: None,
            text: "x".repeat(TEXT),
            reply_to: None,
            headers: std::collections::BTreeMap::new(),
        },
        sensitive: false,
        traceparent: None,
    }
}

/// A delivery that travels alone.
fn single(delivery: Delivery) -> Outgoing {
    let key = delivery.id.to_string();
    Outgoing {
        payload: message::encode(&Bundle {
            deliveries: vec![delivery],
        }),
        key: Some(Arc::from(key)),
        deliver_at: None,
    }
}

/// Deliveries as messages, so many in each.
fn messages(
    channel: &str,
    class: Priority,
    from: usize,
    count: usize,
    in_each: usize,
) -> Vec<Outgoing> {
    let numbers: Vec<usize> = (from..from + count).collect();
    let bundles = numbers.chunks(in_each).map(|numbers| {
        let deliveries: Vec<Delivery> = numbers
            .iter()
            .map(|number| delivery(channel, class, *number))
            .collect();
        let key = deliveries.first().map(|first| first.id.to_string());
        let payload = message::encode(&Bundle { deliveries });
        Outgoing {
            payload,
            key: key.map(Arc::from),
            deliver_at: None,
        }
    });
    bundles.collect()
}

/// Publishes deliveries, some thousand at a time.
async fn publish(
    broker: &PulsarBroker,
    channel: &str,
    class: Priority,
    count: usize,
    in_each: usize,
) -> Result<()> {
    const PART: usize = 5_000;
    for from in (0..count).step_by(PART) {
        let part = messages(channel, class, from, PART.min(count - from), in_each);
        broker.publish(&topic(channel, class), part).await?;
    }
    Ok(())
}
