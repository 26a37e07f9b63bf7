use std::collections::BTreeMap;

use bytes::Bytes;
use herald_crds::Priority;
use herald_crds::names::{self, Path};
use tempfile::TempDir;

use super::*;
use crate::broker::contract::Subject;
use crate::broker::embedded::{EmbeddedBroker, Options};

struct Wrapped {
    folder: TempDir,
    open: Mutex<Option<EmbeddedBroker>>,
}

impl Wrapped {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            open: Mutex::new(None),
        }
    }

    async fn broker(&self) -> EmbeddedBroker {
        let path = self.folder.path().join("broker.sqlite");
        let options = Options {
            synchronous: false,
            ..Options::default()
        };
        EmbeddedBroker::open(&path, options).await.unwrap()
    }
}

#[async_trait]
impl Subject for Wrapped {
    async fn open(&self) -> Arc<dyn Broker> {
        let broker = self.broker().await;
        *self.open.lock().unwrap() = Some(broker.clone());
        Arc::new(FaultyBroker::new(broker, Faults::default()))
    }

    async fn crash(&self) {
        let broker = self.open.lock().unwrap().take().unwrap();
        broker.abort().await;
    }
}

mod without_faults {
    use super::*;

    crate::broker_contract!(Wrapped::new());
}

const MESSAGES: u32 = 300;

fn message(n: u32) -> Outgoing {
    Outgoing {
        payload: Bytes::from(n.to_string()),
        key: None,
        deliver_at: None,
    }
}

fn number(message: &Incoming) -> u32 {
    std::str::from_utf8(&message.payload)
        .unwrap()
        .parse()
        .unwrap()
}

/// How often each message came, in the order in which they came first, until all had come and were acknowledged.
async fn history(faults: Faults, break_at: Option<u32>) -> (Vec<u32>, BTreeMap<u32, u32>) {
    let subject = Wrapped::new();
    let broker = FaultyBroker::new(subject.broker().await, faults);
    let topic = names::requests(Path::Stored, Priority::Low);
    for n in 0..MESSAGES {
        // Whoever gets no receipt publishes again.
        while broker.publish(&topic, vec![message(n)]).await.is_err() {}
    }
    let mut consumer = broker
        .subscribe(&topic, Sharing::Failover, 10)
        .await
        .unwrap();
    let acknowledger = consumer.acknowledger();
    let mut counts = BTreeMap::new();
    let mut order = Vec::new();
    let mut round = 0;
    while let Ok(message) =
        tokio::time::timeout(Duration::from_millis(300), consumer.receive()).await
    {
        let message = message.unwrap();
        let count = counts.entry(number(&message)).or_insert(0);
        *count += 1;
        if *count == 1 {
            order.push(number(&message));
        }
        acknowledger.acknowledge(&[message.id]).await.unwrap();
        round += 1;
        if Some(round) == break_at {
            broker.break_connections();
        }
    }
    (order, counts)
}

#[tokio::test]
async fn every_kind_of_fault_leaves_every_message_to_be_delivered() {
    for seed in 0..3 {
        let faults = Faults {
            seed,
            repeat: 0.1,
            reorder: 0.1,
            lose_acknowledgement: 0.05,
            lose_receipt: 0.1,
            refuse: 0.1,
            ..Faults::default()
        };
        let (order, counts) = history(faults, Some(100)).await;
        assert_eq!(counts.len(), MESSAGES as usize, "seed {seed}");
        assert!(!order.is_sorted(), "seed {seed}: nothing was reordered");
        assert!(
            counts.values().any(|&count| count > 1),
            "seed {seed}: nothing was repeated"
        );
    }
}

#[tokio::test]
async fn each_fault_alone_does_what_it_says() {
    let (order, counts) = history(
        Faults {
            reorder: 0.2,
            ..Faults::default()
        },
        None,
    )
    .await;
    assert!(!order.is_sorted());
    assert!(counts.values().all(|&count| count == 1));

    let (order, counts) = history(
        Faults {
            repeat: 0.2,
            ..Faults::default()
        },
        None,
    )
    .await;
    assert!(order.is_sorted());
    assert!(counts.values().any(|&count| count > 1));

    let (_, counts) = history(
        Faults {
            lose_receipt: 0.2,
            ..Faults::default()
        },
        None,
    )
    .await;
    assert!(counts.values().any(|&count| count > 1));

    let (_, counts) = history(
        Faults {
            refuse: 0.2,
            ..Faults::default()
        },
        None,
    )
    .await;
    assert!(counts.len() == MESSAGES as usize && counts.values().all(|&count| count == 1));

    let lose_acknowledgement = Faults {
        lose_acknowledgement: 0.2,
        ..Faults::default()
    };
    let (_, counts) = history(lose_acknowledgement, None).await;
    assert_eq!(counts.len(), MESSAGES as usize);
    assert!(counts.values().any(|&count| count > 1));
}

#[tokio::test]
async fn a_late_tail_still_reads_everything_in_order() {
    let subject = Wrapped::new();
    let faults = Faults {
        delay_tail: 0.5,
        tail_delay: Duration::from_millis(4),
        ..Faults::default()
    };
    let broker = FaultyBroker::new(subject.broker().await, faults);
    let topic = names::events("shop/mail");
    broker
        .publish(&topic, (0..50).map(message).collect())
        .await
        .unwrap();
    let mut tail = broker.tail(&topic, None).await.unwrap();
    let mut read = Vec::new();
    while read.len() < 50 {
        if let Ok(message) = tokio::time::timeout(Duration::from_millis(1), tail.next()).await {
            read.push(number(&message.unwrap()));
        }
    }
    assert_eq!(read, (0..50).collect::<Vec<_>>());
    assert!(broker.injected() > 0);
}
