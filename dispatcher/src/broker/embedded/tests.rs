use std::io::BufRead;
use std::process::{Command as Process, Stdio};

use herald_crds::Priority;
use herald_crds::names;
use tempfile::TempDir;

use super::*;
use crate::broker::Incoming;
use crate::broker::contract::Subject;
use crate::metrics::Operation;

struct Embedded {
    folder: TempDir,
    open: Mutex<Option<EmbeddedBroker>>,
}

impl Embedded {
    fn new() -> Self {
        Self {
            folder: tempfile::tempdir().unwrap(),
            open: Mutex::new(None),
        }
    }

    fn path(&self) -> PathBuf {
        self.folder.path().join("broker.sqlite")
    }

    async fn broker(&self, options: Options) -> EmbeddedBroker {
        EmbeddedBroker::open(&self.path(), options).await.unwrap()
    }

    /// A broker whose file cannot grow beyond so many pages, as if the disk were full.
    async fn on_a_small_disk(&self, pages: u32, options: Options) -> EmbeddedBroker {
        let path = self.path();
        let mut connection = sqlite::open(&path, Settings::default()).await.unwrap();
        sqlite::migrate(&mut connection, schema::STEPS)
            .await
            .unwrap();
        let pragma = format!("PRAGMA max_page_count = {pages}");
        sqlx::raw_sql(sqlx::AssertSqlSafe(pragma))
            .execute(&mut connection)
            .await
            .unwrap();
        let readers = sqlite::readers(&path, Settings::default(), READERS);
        let lock = sqlite::lock(&path).unwrap();
        EmbeddedBroker::start(connection, readers, lock, options)
            .await
            .unwrap()
    }
}

#[async_trait]
impl Subject for Embedded {
    async fn open(&self) -> Arc<dyn Broker> {
        let broker = self.broker(Options::default()).await;
        *self.open.lock().unwrap() = Some(broker.clone());
        Arc::new(broker)
    }

    async fn crash(&self) {
        let broker = self.open.lock().unwrap().take().unwrap();
        broker.abort().await;
    }
}

mod contract {
    use super::*;

    crate::broker_contract!(Embedded::new());
}

fn requests() -> Topic {
    names::requests(names::Path::Stored, Priority::Low)
}

fn deliveries() -> Topic {
    names::deliveries("shop/mail", Priority::Low)
}

fn events() -> Topic {
    names::events("shop/mail")
}

fn messages(count: usize, bytes: usize) -> Vec<Outgoing> {
    let message = Outgoing {
        payload: Bytes::from(vec![7; bytes]),
        key: None,
        deliver_at: None,
    };
    vec![message; count]
}

async fn take(consumer: &mut dyn Consumer, count: usize) -> Vec<Incoming> {
    let mut taken = Vec::new();
    for _ in 0..count {
        taken.push(consumer.receive().await.unwrap());
    }
    taken
}

async fn acknowledge(consumer: &dyn Consumer, messages: &[Incoming]) {
    let ids: Vec<MessageId> = messages.iter().map(|message| message.id).collect();
    consumer.acknowledger().acknowledge(&ids).await.unwrap();
}

/// Bytes in use in the file and its log.
fn size(subject: &Embedded) -> Vec<(String, u64, std::time::SystemTime)> {
    let mut files: Vec<_> = std::fs::read_dir(subject.folder.path())
        .unwrap()
        .map(|entry| {
            let entry = entry.unwrap();
            let metadata = entry.metadata().unwrap();
            let name = entry.file_name().into_string().unwrap();
            (name, metadata.len(), metadata.modified().unwrap())
        })
        .collect();
    files.sort();
    files
}

#[tokio::test]
async fn beyond_its_bound_it_takes_no_requests_but_everything_else_until_there_is_room() {
    let subject = Embedded::new();
    let metrics = Arc::new(Metrics::default());
    let options = Options {
        max_bytes: 4 * 1024 * 1024,
        metrics: Some(Arc::clone(&metrics)),
        ..Options::default()
    };
    let broker = subject.broker(options).await;
    let mut taken = 0;
    let refused = loop {
        match broker.publish(&requests(), messages(1, 200_000)).await {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 100, "it never was full");
    };
    assert!(matches!(refused, BrokerError::Full { .. }), "{refused}");
    let publish = Operation {
        operation: "publish",
    };
    assert_eq!(metrics.broker_errors.get_or_create(&publish).get(), 1);
    broker
        .publish(&deliveries(), messages(5, 200_000))
        .await
        .unwrap();
    broker.publish(&events(), messages(5, 1000)).await.unwrap();

    let mut consumer = broker
        .subscribe(&requests(), Sharing::KeyShared, 1000)
        .await
        .unwrap();
    let held = take(&mut *consumer, taken).await;
    acknowledge(&*consumer, &held).await;
    // The acknowledgement is answered before the file is measured; a second commit is answered after.
    broker.publish(&events(), messages(1, 1000)).await.unwrap();
    broker
        .publish(&requests(), messages(1, 200_000))
        .await
        .unwrap();
}

#[tokio::test]
async fn on_a_full_disk_acknowledgements_go_on_and_make_room() {
    let subject = Embedded::new();
    let broker = subject.on_a_small_disk(200, Options::default()).await;
    let mut taken = 0;
    let refused = loop {
        match broker.publish(&requests(), messages(1, 50_000)).await {
            Ok(()) => taken += 1,
            Err(error) => break error,
        }
        assert!(taken < 100, "it never was full");
    };
    assert!(matches!(refused, BrokerError::Full { .. }), "{refused}");
    let other = broker
        .publish(&deliveries(), messages(1, 50_000))
        .await
        .unwrap_err();
    assert!(matches!(other, BrokerError::Publish { .. }), "{other}");

    let mut consumer = broker
        .subscribe(&requests(), Sharing::KeyShared, 1000)
        .await
        .unwrap();
    let held = take(&mut *consumer, taken).await;
    // In one transaction with what does not fit.
    let topic = deliveries();
    let ((), _) = tokio::join!(
        acknowledge(&*consumer, &held),
        broker.publish(&topic, messages(1, 50_000))
    );
    broker
        .publish(&deliveries(), messages(2, 50_000))
        .await
        .unwrap();
}

#[tokio::test]
async fn what_is_acknowledged_expires_and_what_is_not_stays() {
    let subject = Embedded::new();
    let options = Options {
        retention: Duration::from_millis(200),
        ..Options::default()
    };
    let broker = subject.broker(options).await;
    broker.publish(&events(), messages(300, 100)).await.unwrap();
    let mut consumer = broker
        .subscribe(&events(), Sharing::Failover, 1000)
        .await
        .unwrap();
    let held = take(&mut *consumer, 300).await;
    acknowledge(&*consumer, &held[..250]).await;
    let oldest = async || {
        let mut tail = broker.tail(&events(), None).await.unwrap();
        tail.next().await.unwrap().id
    };
    while oldest().await < held[250].id {
        tokio::task::yield_now().await;
    }
    assert_eq!(oldest().await, held[250].id);

    // The newest stays, for those who wait until they have read it.
    acknowledge(&*consumer, &held[250..]).await;
    let last = broker.last_message_id(&events()).await.unwrap().unwrap();
    while oldest().await < last {
        tokio::task::yield_now().await;
    }
    broker.close().await;
    let broker = subject.broker(Options::default()).await;
    assert_eq!(broker.last_message_id(&events()).await.unwrap(), Some(last));
}

#[tokio::test]
async fn events_are_acknowledged_out_of_order_without_forgetting_the_gap() {
    let subject = Embedded::new();
    let broker = subject.broker(Options::default()).await;
    broker.publish(&events(), messages(10, 10)).await.unwrap();
    let mut consumer = broker
        .subscribe(&events(), Sharing::Failover, 100)
        .await
        .unwrap();
    let held = take(&mut *consumer, 10).await;
    acknowledge(&*consumer, &held[..3]).await;
    acknowledge(&*consumer, &held[5..]).await;
    drop(consumer);
    broker.abort().await;

    let broker = subject.broker(Options::default()).await;
    let mut consumer = broker
        .subscribe(&events(), Sharing::Failover, 100)
        .await
        .unwrap();
    let again = take(&mut *consumer, 2).await;
    assert_eq!([again[0].id, again[1].id], [held[3].id, held[4].id]);
}

#[tokio::test]
async fn an_idle_broker_leaves_its_file_alone() {
    let subject = Embedded::new();
    let broker = subject.broker(Options::default()).await;
    broker.publish(&events(), messages(10, 10)).await.unwrap();
    let mut consumer = broker
        .subscribe(&events(), Sharing::Failover, 100)
        .await
        .unwrap();
    let held = take(&mut *consumer, 10).await;
    acknowledge(&*consumer, &held).await;
    let before = size(&subject);
    let waited = tokio::time::timeout(Duration::from_millis(500), consumer.receive()).await;
    assert!(waited.is_err());
    assert_eq!(size(&subject), before);
}

#[tokio::test]
async fn a_closed_broker_says_so_and_leaves_one_file() {
    let subject = Embedded::new();
    let broker = subject.broker(Options::default()).await;
    let mut consumer = broker
        .subscribe(&requests(), Sharing::Failover, 10)
        .await
        .unwrap();
    let mut tail = broker.tail(&events(), None).await.unwrap();
    let topic = deliveries();
    let published = broker.publish(&topic, messages(3, 100));
    let (received, next, published, ()) =
        tokio::join!(consumer.receive(), tail.next(), published, broker.close());
    assert!(matches!(received, Err(BrokerError::Closed)));
    assert!(matches!(next, Err(BrokerError::Closed)));
    published.unwrap();
    let late = broker.publish(&deliveries(), messages(1, 100)).await;
    assert!(matches!(late, Err(BrokerError::Closed)));
    let names: Vec<_> = size(&subject).into_iter().map(|(name, ..)| name).collect();
    assert_eq!(names, ["broker.sqlite", "broker.sqlite.lock"]);

    let broker = subject.broker(Options::default()).await;
    let mut consumer = broker
        .subscribe(&deliveries(), Sharing::Failover, 10)
        .await
        .unwrap();
    take(&mut *consumer, 3).await;
}

#[tokio::test]
async fn a_file_serves_one_broker() {
    let subject = Embedded::new();
    let broker = subject.broker(Options::default()).await;
    let second = EmbeddedBroker::open(&subject.path(), Options::default()).await;
    assert!(matches!(second.err(), Some(OpenError::InUse { .. })));
    broker.close().await;
    subject.broker(Options::default()).await;
}

/// Says to the test below, when it runs in a process of its own, which file to publish to.
const CHILD: &str = "HERALD_TEST_PUBLISH_TO";

/// Not a test by itself: what the next test starts and kills.
#[tokio::test]
async fn a_process_that_publishes_until_it_is_killed() {
    let Some(path) = std::env::var_os(CHILD) else {
        return;
    };
    let broker = EmbeddedBroker::open(Path::new(&path), Options::default())
        .await
        .unwrap();
    let publishers = (0..8u64).map(|publisher| {
        let broker = broker.clone();
        async move {
            for n in (publisher..).step_by(8) {
                let message = Outgoing {
                    payload: Bytes::from(n.to_string()),
                    key: None,
                    deliver_at: None,
                };
                broker.publish(&requests(), vec![message]).await.unwrap();
                println!("receipt {n}");
            }
        }
    });
    futures::future::join_all(publishers).await;
}

#[tokio::test]
async fn a_killed_process_keeps_all_that_it_gave_receipts_for() {
    let subject = Embedded::new();
    let mut child = Process::new(std::env::current_exe().unwrap())
        .args([
            "a_process_that_publishes_until_it_is_killed",
            "--nocapture",
            "--test-threads=1",
        ])
        .env(CHILD, subject.path())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let mut receipts = Vec::new();
    let lines = std::io::BufReader::new(child.stdout.take().unwrap()).lines();
    for line in lines {
        let line = line.unwrap();
        if let Some(number) = line.strip_prefix("receipt ") {
            receipts.push(number.to_owned());
        }
        if receipts.len() == 300 {
            child.kill().unwrap();
        }
    }
    child.wait().unwrap();
    assert!(receipts.len() >= 300, "the child ended by itself");

    let broker = subject.broker(Options::default()).await;
    let mut consumer = broker
        .subscribe(&requests(), Sharing::Failover, 100_000)
        .await
        .unwrap();
    let mut missing: std::collections::BTreeSet<String> = receipts.into_iter().collect();
    while !missing.is_empty() {
        let received = tokio::time::timeout(Duration::from_secs(60), consumer.receive()).await;
        let message = received
            .unwrap_or_else(|_| panic!("lost: {missing:?}"))
            .unwrap();
        missing.remove(std::str::from_utf8(&message.payload).unwrap());
    }
}
