//! The two relays: what is due is copied at once to its class topic, then acknowledged. Priority is decided there.

use std::time::Duration;

use herald_crds::{Priority, names};
use tokio_util::sync::CancellationToken;

use crate::broker::{Broker, BrokerError, Incoming, Outgoing, Sharing};
use crate::clock;
use crate::message::{self, Bundle, DecodeError, Garbage};
use crate::metrics::Metrics;

/// Messages a relay holds unacknowledged.
const PREFETCH: usize = 64;

/// Runs one relay of a channel until `stop`.
pub async fn run(
    broker: &dyn Broker,
    channel: &str,
    relay: usize,
    metrics: &Metrics,
    stop: CancellationToken,
) {
    stop.run_until_cancelled(async {
        loop {
            if let Err(error) = relay_messages(broker, channel, relay, metrics).await {
                metrics.broker_failed("relay");
                tracing::warn!(channel, relay, %error, "the relay was interrupted, beginning again");
                tokio::time::sleep(error.pause()).await;
            }
        }
    })
    .await;
}

async fn relay_messages(
    broker: &dyn Broker,
    channel: &str,
    relay: usize,
    metrics: &Metrics,
) -> Result<(), BrokerError> {
    let [first, second] = names::relays(channel);
    let topic = if relay == 0 { first } else { second };
    let mut consumer = broker
        .subscribe(&topic, Sharing::KeyShared, PREFETCH)
        .await?;
    let acknowledger = consumer.acknowledger();
    loop {
        let Incoming { id, payload } = consumer.receive().await?;
        match message::decode::<Bundle>(&payload) {
            Ok(bundle) => {
                for class in Priority::ALL {
                    let of_class = |d: &&message::Delivery| d.priority == class;
                    let count = bundle.deliveries.iter().filter(of_class).count();
                    if count == 0 {
                        continue;
                    }
                    let payload = if count == bundle.deliveries.len() {
                        payload.clone()
                    } else {
                        let deliveries =
                            bundle.deliveries.iter().filter(of_class).cloned().collect();
                        message::encode(&Bundle { deliveries })
                    };
                    let message = Outgoing::at_once(payload);
                    broker
                        .publish(&names::deliveries(channel, class), vec![message])
                        .await?;
                }
            }
            Err(DecodeError::Newer { version, format }) => {
                // For a program that can read it: once more round this relay.
                tracing::error!(
                    channel,
                    version,
                    format,
                    "a message of a newer format is parked in the relay"
                );
                let later = clock::now() + Duration::from_secs(30);
                broker
                    .publish(
                        &topic,
                        vec![Outgoing {
                            payload,
                            key: None,
                            deliver_at: Some(later),
                        }],
                    )
                    .await?;
            }
            Err(error) => {
                tracing::error!(channel, %error, "a message in the relay cannot be read and is put aside");
                metrics.found_unreadable("relay");
                let garbage = Garbage::new(&topic, id, &payload, &error);
                broker
                    .publish(&names::events(channel), vec![garbage.told()])
                    .await?;
            }
        }
        acknowledger.acknowledge(&[id]).await?;
    }
}
