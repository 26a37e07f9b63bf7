use std::sync::Arc;
use std::time::Duration;

use herald_crds::Priority;

use super::*;
use crate::broker::Outgoing;
use crate::broker::embedded::{self, EmbeddedBroker};
use crate::id::{DeliveryId, NotificationId};
use crate::metrics::Operation;
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
        is_missing: Arc::default(),
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

#[tokio::test]
async fn an_event_that_nobody_can_read_is_kept_with_its_bytes_and_counted() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("queue.db");
    let broker = EmbeddedBroker::open(&path, embedded::Options::default()).await;
    let broker = broker.unwrap();
    let path = dir.path().join("history.db");
    let store = SqliteStore::open(&path, sqlite::Options::default()).await;
    let store = Arc::new(store.unwrap());
    let metrics = Arc::<Metrics>::default();
    let position = watch::Sender::new(None);
    let (outcomes, _) = broadcast::channel(8);
    let recorder = Recorder {
        channel: Arc::from("shop/mail"),
        broker: Arc::new(broker.clone()),
        store: store.clone(),
        lanes: Arc::default(),
        metrics: Arc::clone(&metrics),
        outcomes,
        position: position.clone(),
        is_missing: Arc::default(),
    };
    let stop = CancellationToken::new();
    let recording = tokio::spawn(recorder.run(stop.clone()));
    let topic = names::events("shop/mail");
    // One that is found here, and one that somebody else found and told of.
    let found = Outgoing::at_once(b"~ not ours".to_vec().into());
    let garbage = DecodeError::Garbage {
        reason: "no envelope".to_owned(),
    };
    let class = names::deliveries("shop/mail", Priority::High);
    let told = Garbage::new(&class, MessageId::of_entry(7), b"~ nor this", &garbage).told();
    broker
        .publish(&topic, vec![found, told.clone(), told])
        .await
        .unwrap();
    let last = broker.last_message_id(&topic).await.unwrap();
    let mut recorded = position.subscribe();
    let recorded = recorded.wait_for(|position| *position >= last);
    tokio::time::timeout(PATIENCE, recorded)
        .await
        .unwrap()
        .unwrap();
    let kept = store.garbage().await;
    let kept: Vec<_> = kept
        .iter()
        .map(|(topic, bytes)| (&**topic, &**bytes))
        .collect();
    let expected = [
        (topic.as_str(), &b"~ not ours"[..]),
        (class.as_str(), &b"~ nor this"[..]),
    ];
    assert_eq!(kept, expected);
    let operation = Operation {
        operation: "events",
    };
    let counted = metrics.unreadable_messages.get_or_create(&operation);
    assert_eq!(counted.get(), 1);
    stop.cancel();
    recording.await.unwrap();
}
