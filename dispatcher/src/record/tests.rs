use std::sync::Arc;
use std::time::Duration;

use herald_crds::Priority;

use super::*;
use crate::broker::Outgoing;
use crate::broker::embedded::{self, EmbeddedBroker};
use crate::id::{DeliveryId, NotificationId};
use crate::store::sqlite::{self, SqliteStore};

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

fn expired() -> Events {
    let notification = NotificationId::from_key("shop", "test", "1");
    let event = Event {
        delivery: DeliveryId::new(&notification, "", "shop/mail", 0, "a@b.example", 0),
        notification,
        at: Timestamp::now(),
        round: 0,
        attempt: 1,
        tried: 0,
        priority: Priority::Normal,
        step: Step::Expired,
    };
    Events {
        outcomes: vec![event],
        ..Events::default()
    }
}

#[tokio::test]
async fn an_event_of_a_newer_format_waits_for_a_program_that_can_read_it_and_others_are_recorded() {
    let dir = tempfile::tempdir().unwrap();
    let options = embedded::Options {
        synchronous: false,
        ..embedded::Options::default()
    };
    let path = dir.path().join("queue.db");
    let broker = EmbeddedBroker::open(&path, options).await.unwrap();
    let options = sqlite::Options {
        synchronous: false,
        ..sqlite::Options::default()
    };
    let path = dir.path().join("history.db");
    let store = SqliteStore::open(&path, options).await.unwrap();
    let metrics = Arc::<Metrics>::default();
    let position = watch::Sender::new(None);
    let (sender, mut outcomes) = broadcast::channel(8);
    let recorder = Recorder {
        channel: Arc::from("shop/mail"),
        broker: Arc::new(broker.clone()),
        store: Arc::new(store),
        lanes: Arc::default(),
        metrics: Arc::clone(&metrics),
        outcomes: sender,
        position: position.clone(),
    };
    let stop = CancellationToken::new();
    let recording = tokio::spawn(recorder.run(stop.clone()));

    let topic = names::events("shop/mail");
    let known = || Outgoing::at_once(message::encode(&expired()));
    broker.publish(&topic, vec![known()]).await.unwrap();
    let first = broker.last_message_id(&topic).await.unwrap();
    let newer = Outgoing::at_once(vec![message::ENVELOPE_VERSION + 1, 1, b'?'].into());
    broker.publish(&topic, vec![newer, known()]).await.unwrap();
    for _ in 0..2 {
        let told = tokio::time::timeout(PATIENCE, outcomes.recv());
        told.await.unwrap().unwrap();
    }
    let operation = Operation {
        operation: "read_events",
    };
    assert_eq!(metrics.broker_errors.get_or_create(&operation).get(), 1);
    stop.cancel();
    recording.await.unwrap();

    // Whoever takes over gets what this one could not read, and the sweep was not told that all is recorded.
    let mut next = broker
        .subscribe(&topic, Sharing::Failover, BATCH)
        .await
        .unwrap();
    let waits = tokio::time::timeout(PATIENCE, next.receive());
    let payload = waits.await.unwrap().unwrap().payload;
    assert_eq!(payload[0], message::ENVELOPE_VERSION + 1);
    assert!(*position.borrow() <= first);
}
