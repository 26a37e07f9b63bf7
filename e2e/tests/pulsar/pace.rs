//! How fast messages pass, to see what a change does to it: unoptimized and on a busy machine, so for comparing alone.

use std::time::Instant;

use bytes::Bytes;
use futures::future::join_all;
use herald_crds::names;
use herald_dispatcher::broker::pulsar::PulsarBroker;
use herald_dispatcher::broker::{Broker as _, Outgoing, Sharing};

use crate::subject::{settings, shared, tenant};

const MESSAGES: usize = 20_000;

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "shows figures, and asserts nothing that `make test` does not"]
async fn how_fast_messages_pass() {
    let pulsar = shared().await;
    let tenant = tenant(pulsar, 1).await;
    let broker = PulsarBroker::new(settings(pulsar, &tenant));
    let topic = names::deliveries("shop/mail", herald_crds::Priority::Normal);
    let message = || Outgoing::at_once(Bytes::from(vec![b'x'; 256]));
    for (at_once, calls) in [(1, 200), (64, 300)] {
        let begin = Instant::now();
        for _ in 0..calls {
            let publishing = (0..at_once).map(|_| broker.publish(&topic, vec![message()]));
            for outcome in join_all(publishing).await {
                outcome.unwrap();
            }
        }
        let rate = f64::from(at_once * calls) / begin.elapsed().as_secs_f64();
        println!("publish, {at_once} calls of one message at once: {rate:.0} msg/s");
    }
    for prefetch in [8, 64, 256, 1_000] {
        let begin = Instant::now();
        for _ in 0..MESSAGES / 1_000 {
            let messages = (0..1_000).map(|_| message()).collect();
            broker.publish(&topic, messages).await.unwrap();
        }
        let rate = MESSAGES as f64 / begin.elapsed().as_secs_f64();
        println!("publish, calls of 1,000 messages: {rate:.0} msg/s");
        let wanted = if prefetch < 64 {
            MESSAGES / 10
        } else {
            MESSAGES
        };
        let subscribing = broker.subscribe(&topic, Sharing::KeyShared, prefetch);
        let mut consumer = subscribing.await.unwrap();
        let acknowledger = consumer.acknowledger();
        let begin = Instant::now();
        for _ in 0..wanted {
            let message = consumer.receive().await.unwrap();
            acknowledger.acknowledge(&[message.id]).await.unwrap();
        }
        let rate = wanted as f64 / begin.elapsed().as_secs_f64();
        println!("consume and acknowledge each, prefetch {prefetch}: {rate:.0} msg/s");
    }
}
