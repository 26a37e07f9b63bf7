//! How fast messages pass through us, beside the client alone on the same topic, in turns: for comparing these two, not
//! for what Pulsar can do.

use std::collections::BTreeMap;
use std::time::Instant;

use bytes::Bytes;
use futures::{StreamExt as _, TryStreamExt as _, stream};
use herald_crds::names::{self, Topic};
use herald_dispatcher::broker::pulsar::{PulsarBroker, Token};
use herald_dispatcher::broker::{Broker as _, Outgoing, Sharing};
use herald_e2e::client::Raw;
use pulsar::SubType;

use crate::subject::{settings, shared, tenant};

const MESSAGES: usize = 30_000;

/// Bytes of each.
const SIZE: usize = 400;

/// Messages without a receipt at any time.
const IN_FLIGHT: usize = 1_000;

const PREFETCH: usize = 1_000;

const ROUNDS: usize = 5;

/// `cargo test --release -p herald-e2e --features pulsar --test pulsar -- --ignored --nocapture how_fast`
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "shows figures, and asserts nothing that `make test-pulsar` does not"]
async fn how_fast_messages_pass() {
    let pulsar = shared().await;
    let tenant = tenant(pulsar, 1).await;
    let settings = settings(pulsar, &tenant);
    let broker = PulsarBroker::new(settings.clone());
    let topic = names::deliveries("shop/mail", herald_crds::Priority::Normal);
    let Token::Fixed(token) = &settings.token else {
        unreachable!("the tests' tokens are fixed");
    };
    let raw = Raw::new(&settings.url, token, &settings.tenant, &topic);
    let raw = Box::pin(raw).await.unwrap();

    let mut figures = Figures::default();
    for round in 0..=ROUNDS {
        // What the first round shows is how long it takes until everything is warm.
        figures.is_counted = round > 0;
        for way in ["raw", "ours: calls of 1", "ours: calls of 100"] {
            let begin = Instant::now();
            match way {
                "raw" => Box::pin(raw.publish(MESSAGES, SIZE, IN_FLIGHT))
                    .await
                    .unwrap(),
                "ours: calls of 1" => publish(&broker, &topic, 1).await,
                _ => publish(&broker, &topic, 100).await,
            }
            figures.add(format!("publish, {way}"), begin);
            let begin = Instant::now();
            match (way, round % 2) {
                ("raw", _) => {
                    Box::pin(raw.consume(MESSAGES, SubType::KeyShared, PREFETCH as u32))
                        .await
                        .unwrap();
                    figures.add("consume and acknowledge, raw Key_Shared".to_owned(), begin);
                }
                ("ours: calls of 1", _) => {
                    consume(&broker, &topic, Sharing::KeyShared).await;
                    figures.add("consume and acknowledge, ours Key_Shared".to_owned(), begin);
                }
                (_, 0) => {
                    Box::pin(raw.consume(MESSAGES, SubType::Failover, PREFETCH as u32))
                        .await
                        .unwrap();
                    figures.add("consume and acknowledge, raw Failover".to_owned(), begin);
                }
                _ => {
                    consume(&broker, &topic, Sharing::Failover).await;
                    figures.add("consume and acknowledge, ours Failover".to_owned(), begin);
                }
            }
        }
    }
    figures.show();
}

/// Messages a second by what was done.
#[derive(Default)]
struct Figures {
    is_counted: bool,
    by_name: BTreeMap<String, Vec<f64>>,
}

impl Figures {
    fn add(&mut self, name: String, begin: Instant) {
        if self.is_counted {
            let rate = MESSAGES as f64 / begin.elapsed().as_secs_f64();
            println!("  {name}: {rate:.0}");
            self.by_name.entry(name).or_default().push(rate);
        }
    }

    fn show(mut self) {
        for (name, rates) in &mut self.by_name {
            rates.sort_by(f64::total_cmp);
            let (low, high) = (rates[0], rates[rates.len() - 1]);
            let median = rates[rates.len() / 2];
            println!("{name}: {median:.0} msg/s ({low:.0} to {high:.0})");
        }
    }
}

async fn publish(broker: &PulsarBroker, topic: &Topic, at_once: usize) {
    let message = || Outgoing::at_once(Bytes::from(vec![b'x'; SIZE]));
    stream::iter(0..MESSAGES / at_once)
        .map(|_| broker.publish(topic, (0..at_once).map(|_| message()).collect()))
        .buffer_unordered(IN_FLIGHT / at_once)
        .try_collect::<()>()
        .await
        .unwrap();
}

async fn consume(broker: &PulsarBroker, topic: &Topic, sharing: Sharing) {
    let mut consumer = broker.subscribe(topic, sharing, PREFETCH).await.unwrap();
    let acknowledger = consumer.acknowledger();
    for _ in 0..MESSAGES {
        let message = consumer.receive().await.unwrap();
        acknowledger.acknowledge(&[message.id]).await.unwrap();
    }
}
