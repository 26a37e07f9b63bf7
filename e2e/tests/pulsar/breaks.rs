//! What only shows when something breaks: the broker, a process, a connection, a token.

use std::cell::Cell;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use herald_crds::Priority;
use herald_crds::names::{self, Path, Topic};
use herald_dispatcher::broker::pulsar::{PulsarBroker, Settings, Token};
use herald_dispatcher::broker::{Broker, BrokerError, Incoming, MessageId, Outgoing, Sharing};
use herald_e2e::environment::{Environment, Options};
use herald_operator::pulsar_admin::{BacklogQuota, TopicName, TopicPolicy};

use crate::subject::{ROLE, settings, shared, tenant};

/// Long enough for anything that comes at all, a restart of the broker included.
const PATIENCE: Duration = Duration::from_secs(120);

fn requests() -> Topic {
    names::requests(Path::Stored, Priority::Normal)
}

fn events() -> Topic {
    names::events("shop/mail")
}

fn message(text: impl std::fmt::Display) -> Outgoing {
    Outgoing::at_once(Bytes::from(text.to_string()))
}

fn number(message: &Incoming) -> u32 {
    std::str::from_utf8(&message.payload)
        .unwrap()
        .parse()
        .unwrap()
}

async fn patiently<T>(what: &str, future: impl Future<Output = T>) -> T {
    tokio::time::timeout(PATIENCE, future)
        .await
        .unwrap_or_else(|_| panic!("{what}: not within {PATIENCE:?}"))
}

/// Publishes until there is a receipt, as every stage does.
async fn insist(broker: &dyn Broker, topic: &Topic, outgoing: Outgoing) {
    while broker.publish(topic, vec![outgoing.clone()]).await.is_err() {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

/// Consumes and acknowledges until `all` numbers have come. Answers how many came again.
async fn consume_all(broker: &dyn Broker, topic: &Topic, sharing: Sharing, all: u32) -> u32 {
    let mut come = BTreeSet::new();
    let mut again = 0;
    while come.len() < all as usize {
        let Ok(mut consumer) = broker.subscribe(topic, sharing, 64).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        let acknowledger = consumer.acknowledger();
        while come.len() < all as usize {
            let Ok(message) = consumer.receive().await else {
                break;
            };
            acknowledger.acknowledge(&[message.id]).await.unwrap();
            again += u32::from(!come.insert(number(&message)));
        }
    }
    again
}

/// Tails until `all` numbers have come, going on after the last one seen, as whoever tails does.
async fn tail_all(broker: &dyn Broker, topic: &Topic, all: u32) {
    let mut come = BTreeSet::new();
    let mut after: Option<MessageId> = None;
    while come.len() < all as usize {
        let Ok(mut tail) = broker.tail(topic, after).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        while come.len() < all as usize {
            let Ok(message) = tail.next().await else {
                break;
            };
            assert!(Some(message.id) > after, "a tail went back");
            after = Some(message.id);
            come.insert(number(&message));
        }
    }
}

async fn own() -> Environment {
    let options = Options {
        postgres: false,
        ..Options::default()
    };
    Environment::start_own(&options).await.unwrap()
}

/// Publishes, consumes and tails while the broker is killed again and again: nothing is lost, no tail skips anything.
async fn nothing_is_lost_in_restarts(restarts: u32) {
    let mut environment = own().await;
    let tenant = tenant(environment.pulsar().unwrap(), 2).await;
    let settings = settings(environment.pulsar().unwrap(), &tenant);
    nothing_is_lost(settings, async || {
        for _ in 0..restarts {
            tokio::time::sleep(Duration::from_secs(3)).await;
            environment.pulsar_mut().unwrap().restart().await.unwrap();
        }
    })
    .await;
}

/// Publishes, consumes and tails while something happens.
async fn nothing_is_lost(settings: Settings, meanwhile: impl AsyncFnOnce()) {
    let broker = Arc::new(PulsarBroker::new(settings));

    let is_over = Arc::new(AtomicBool::new(false));
    let published = Arc::new(AtomicU32::new(0));
    let producers: Vec<_> = (0..8)
        .map(|_| {
            let (broker, is_over, published) = (
                Arc::clone(&broker),
                Arc::clone(&is_over),
                Arc::clone(&published),
            );
            tokio::spawn(async move {
                while !is_over.load(Ordering::Relaxed) {
                    let number = published.fetch_add(1, Ordering::Relaxed);
                    let (requests, events) = (requests(), events());
                    tokio::join!(
                        insist(&*broker, &requests, message(number)),
                        insist(&*broker, &events, message(number)),
                    );
                    tokio::time::sleep(Duration::from_millis(5)).await;
                }
            })
        })
        .collect();
    let ask = {
        let (broker, is_over) = (Arc::clone(&broker), Arc::clone(&is_over));
        tokio::spawn(async move {
            let mut highest = None;
            while !is_over.load(Ordering::Relaxed) {
                if let Ok(last) = broker.last_message_id(&events()).await {
                    assert!(last >= highest, "the last message went back");
                    highest = last;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        })
    };
    // How many there will be is known only at the end: so readers begin with a bound that they cannot reach.
    let (all, reached) = tokio::sync::watch::channel(u32::MAX);
    let readers = [
        tokio::spawn(read_until(
            Arc::clone(&broker),
            Reader::Consumer,
            reached.clone(),
        )),
        tokio::spawn(read_until(Arc::clone(&broker), Reader::Tail, reached)),
    ];
    meanwhile().await;
    tokio::time::sleep(Duration::from_secs(3)).await;
    is_over.store(true, Ordering::Relaxed);
    for producer in producers {
        patiently("receipts", producer).await.unwrap();
    }
    patiently("the last message", ask).await.unwrap();
    let count = published.load(Ordering::Relaxed);
    assert!(count > 50, "there was no load: {count}");
    all.send(count).unwrap();
    for reader in readers {
        let again = patiently("everything", reader).await.unwrap();
        println!("{count} published, {again} came again");
    }
}

enum Reader {
    Consumer,
    Tail,
}

/// Reads until as many different numbers have come as `all` says by then. Answers how many came again.
async fn read_until(
    broker: Arc<PulsarBroker>,
    reader: Reader,
    mut all: tokio::sync::watch::Receiver<u32>,
) -> u32 {
    let mut come = BTreeSet::new();
    let mut again = 0;
    let mut after = None;
    let is_complete = |come: &BTreeSet<u32>, all: &tokio::sync::watch::Receiver<u32>| {
        come.len() >= *all.borrow() as usize
    };
    while !is_complete(&come, &all) {
        let pause = || tokio::time::sleep(Duration::from_millis(100));
        match reader {
            Reader::Consumer => {
                let Ok(mut consumer) = broker.subscribe(&requests(), Sharing::Failover, 64).await
                else {
                    pause().await;
                    continue;
                };
                let acknowledger = consumer.acknowledger();
                while !is_complete(&come, &all) {
                    let message = tokio::select! {
                        message = consumer.receive() => message,
                        _ = all.changed() => continue,
                    };
                    let Ok(message) = message else { break };
                    acknowledger.acknowledge(&[message.id]).await.unwrap();
                    again += u32::from(!come.insert(number(&message)));
                }
            }
            Reader::Tail => {
                let Ok(mut tail) = broker.tail(&events(), after).await else {
                    pause().await;
                    continue;
                };
                while !is_complete(&come, &all) {
                    let message = tokio::select! {
                        message = tail.next() => message,
                        _ = all.changed() => continue,
                    };
                    let Ok(message) = message else { break };
                    assert!(Some(message.id) > after, "a tail went back");
                    after = Some(message.id);
                    again += u32::from(!come.insert(number(&message)));
                }
            }
        }
    }
    again
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_the_broker_restarts_twice_under_load() {
    nothing_is_lost_in_restarts(2).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_topics_move() {
    let pulsar = shared().await;
    let tenant = tenant(pulsar, 2).await;
    let admin = pulsar.admin().unwrap();
    nothing_is_lost(settings(pulsar, &tenant), async || {
        for _ in 0..4 {
            tokio::time::sleep(Duration::from_millis(1_500)).await;
            for topic in [requests(), events()] {
                let topic = TopicName::new(&tenant, &topic);
                admin.unload_topic(&topic).await.unwrap();
            }
        }
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nothing_is_lost_while_a_connected_broker_hangs() {
    let environment = own().await;
    let pulsar = environment.pulsar().unwrap();
    let tenant = tenant(pulsar, 1).await;
    let settings = Settings {
        operation_timeout: Duration::from_secs(8),
        ..settings(pulsar, &tenant)
    };
    nothing_is_lost(settings, async || {
        tokio::time::sleep(Duration::from_secs(3)).await;
        pulsar.pause();
        tokio::time::sleep(Duration::from_secs(20)).await;
        pulsar.resume();
    })
    .await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_expires_stops_everything_until_there_is_another() {
    const VALID: Duration = Duration::from_secs(20);
    let pulsar = shared().await;
    let tenant = tenant(pulsar, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let write = |valid| std::fs::write(&path, pulsar.token(ROLE, valid)).unwrap();
    write(Some(VALID));
    let broker = PulsarBroker::new(Settings {
        token: Token::File(path.clone()),
        ..settings(pulsar, &tenant)
    });
    broker.publish(&requests(), vec![message(0)]).await.unwrap();
    let mut consumer = broker
        .subscribe(&requests(), Sharing::Failover, 10)
        .await
        .unwrap();
    let mut tail = broker.tail(&events(), None).await.unwrap();
    consumer.receive().await.unwrap();
    patiently("its end", consumer.receive()).await.unwrap_err();
    patiently("its end", tail.next()).await.unwrap_err();
    let refused = patiently("an error that says why", async {
        loop {
            if let Err(error) = broker.publish(&requests(), vec![message(1)]).await
                && error.to_string().contains("the token expired at")
            {
                break error;
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
    });
    println!("{}", refused.await);

    write(None);
    let again = async {
        insist(&broker, &requests(), message(1)).await;
        insist(&broker, &events(), message(0)).await;
        consume_all(&broker, &requests(), Sharing::Failover, 2).await;
        tail_all(&broker, &events(), 1).await;
    };
    patiently("everything with the new token", again).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_wrong_address_is_said() {
    let silent = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = herald_e2e::process::free_port().unwrap();
    let silent_port = silent.local_addr().unwrap().port();
    for (url, reason) in [
        (format!("pulsar://127.0.0.1:{nobody}"), "refused"),
        (format!("pulsar://127.0.0.1:{silent_port}"), "timeout"),
        ("pulsar://nowhere.invalid:6650".to_owned(), "name"),
        ("broker.example:6650".to_owned(), "pulsar://"),
        ("http://127.0.0.1:8080".to_owned(), "pulsar://"),
    ] {
        let broker = PulsarBroker::new(Settings {
            url: url.clone(),
            tenant: "herald".to_owned(),
            token: Token::None,
            ca: None,
            operation_timeout: Duration::from_secs(1),
        });
        let topic = requests();
        let publishing = broker.publish(&topic, vec![message(0)]);
        let error = patiently("an error", publishing).await.unwrap_err();
        let error = error.to_string();
        println!("{error}");
        assert!(error.contains(&url) && error.contains(reason), "{error}");
    }
}

/// `make soak`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes five minutes"]
async fn nothing_is_lost_while_the_broker_restarts_ten_times_under_load() {
    nothing_is_lost_in_restarts(10).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_a_killed_process_held_goes_to_another() {
    let pulsar = shared().await;
    let tenant = tenant(pulsar, 1).await;
    let broker = PulsarBroker::new(settings(pulsar, &tenant));
    for topic in [requests(), names::deliveries("shop/mail", Priority::High)] {
        let sharing = match topic.kind() {
            Some(names::TopicKind::Requests(..)) => Sharing::Failover,
            _ => Sharing::KeyShared,
        };
        let messages = (0..20).map(message).collect();
        broker.publish(&topic, messages).await.unwrap();
        // A runtime that is shut down in the middle of its work leaves no more behind than a process that is killed.
        let doomed_settings = settings(pulsar, &tenant);
        let doomed_topic = topic.clone();
        std::thread::spawn(move || {
            let runtime = tokio::runtime::Runtime::new().unwrap();
            runtime.block_on(async {
                let doomed = PulsarBroker::new(doomed_settings);
                let mut consumer = doomed.subscribe(&doomed_topic, sharing, 64).await.unwrap();
                for _ in 0..10 {
                    consumer.receive().await.unwrap();
                }
                std::mem::forget((consumer, doomed));
            });
            runtime.shutdown_background();
        })
        .join()
        .unwrap();
        let again = patiently("the rest", consume_all(&broker, &topic, sharing, 20)).await;
        assert_eq!(again, 0, "they came twice to the same process");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn repeats_of_a_request_meet() {
    let pulsar = shared().await;
    let tenant = tenant(pulsar, 4).await;
    let [first, second] = [(); 2].map(|()| Arc::new(PulsarBroker::new(settings(pulsar, &tenant))));
    let mut seen: BTreeMap<u32, BTreeSet<usize>> = BTreeMap::new();
    let mut consumers = Vec::new();
    for broker in [&first, &second] {
        let topic = requests();
        let consumer = broker.subscribe(&topic, Sharing::Failover, 100);
        consumers.push(consumer.await.unwrap());
    }
    // Both gateways are told which partitions are theirs within a second or so of the second one's arrival.
    tokio::time::sleep(Duration::from_secs(6)).await;
    for broker in [&first, &second] {
        let keyed = |n: u32| Outgoing {
            key: Some(format!("notification-{n}").into()),
            ..message(n)
        };
        broker
            .publish(&requests(), (0..40).map(keyed).collect())
            .await
            .unwrap();
    }
    let [mut one, mut other] = <[_; 2]>::try_from(consumers).unwrap_or_else(|_| unreachable!());
    patiently("all requests", async {
        for _ in 0..80 {
            let (by, message) = tokio::select! {
                message = one.receive() => (0, message.unwrap()),
                message = other.receive() => (1, message.unwrap()),
            };
            let by_partition = (message.id.partition as usize) * 2 + by;
            seen.entry(number(&message))
                .or_default()
                .insert(by_partition);
        }
    })
    .await;
    for (number, places) in &seen {
        assert_eq!(
            places.len(),
            1,
            "request {number} and its repeat came to {places:?}"
        );
    }
    let places: BTreeSet<_> = seen.into_values().flatten().collect();
    for gateway in [0, 1] {
        let share = places.iter().filter(|place| *place % 2 == gateway);
        assert_eq!(share.count(), 2, "not two partitions each: {places:?}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reached_quota_is_said_within_seconds() {
    let pulsar = shared().await;
    let tenant = tenant(pulsar, 1).await;
    let topic = TopicName::new(&tenant, &requests());
    let policy = TopicPolicy {
        retention: None,
        backlog_quota: Some(BacklogQuota { bytes: 100_000 }),
    };
    let admin = pulsar.admin().unwrap();
    admin.set_policy(&topic, &policy).await.unwrap();
    let broker = PulsarBroker::new(settings(pulsar, &tenant));
    let full = patiently("the quota", async {
        loop {
            let filling = Outgoing::at_once(Bytes::from(vec![b'x'; 20_000]));
            match broker.publish(&requests(), vec![filling]).await {
                Err(BrokerError::Full { reason }) => break reason,
                Ok(()) | Err(_) => tokio::time::sleep(Duration::from_millis(100)).await,
            }
        }
    })
    .await;
    assert!(full.contains("quota"), "{full}");
    let begin = Instant::now();
    let error = broker.publish(&requests(), vec![message(1)]).await;
    assert!(matches!(error, Err(BrokerError::Full { .. })), "{error:?}");
    assert!(
        begin.elapsed() < Duration::from_secs(20),
        "{:?}",
        begin.elapsed()
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn errors_say_what_is_missing_and_what_to_grant() {
    let pulsar = shared().await;
    let tenant = tenant(pulsar, 1).await;
    let told = async |settings: Settings, topic: &Topic| {
        let broker = PulsarBroker::new(settings);
        let publish = broker.publish(topic, vec![message(1)]).await.unwrap_err();
        let subscribe = broker.subscribe(topic, Sharing::Failover, 1).await;
        let tail = broker.tail(topic, None).await;
        let answers = [
            publish.to_string(),
            subscribe.err().unwrap().to_string(),
            tail.err().unwrap().to_string(),
        ];
        println!("{answers:#?}");
        answers
    };
    for text in told(settings(pulsar, &tenant), &names::events("shop/sms")).await {
        assert!(
            text.contains("does not exist") && text.contains("operator"),
            "{text}"
        );
    }
    let stranger = Settings {
        token: Token::Fixed(pulsar.token("stranger", None)),
        ..settings(pulsar, &tenant)
    };
    for text in told(stranger, &events()).await {
        assert!(text.contains("grant"), "{text}");
        assert!(text.contains("--role stranger"), "{text}");
    }
    let expired = Settings {
        token: Token::Fixed(format!("{}x", pulsar.token(ROLE, None))),
        ..settings(pulsar, &tenant)
    };
    for text in told(expired, &events()).await {
        assert!(text.contains("token"), "{text}");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_token_that_is_replaced_in_time_is_never_missed() {
    const VALID: Duration = Duration::from_secs(8);
    let pulsar = shared().await;
    let tenant = tenant(pulsar, 1).await;
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let write = || {
        let new = folder.path().join("new");
        std::fs::write(&new, pulsar.token(ROLE, Some(VALID))).unwrap();
        std::fs::rename(&new, &path).unwrap();
        Instant::now()
    };
    let mut written = write();
    let broker = PulsarBroker::new(Settings {
        token: Token::File(path.clone()),
        ..settings(pulsar, &tenant)
    });
    // If the machine stood still, it was not replaced in time.
    let in_time = Cell::new(true);
    let replacing = async {
        loop {
            tokio::time::sleep(Duration::from_millis(200)).await;
            in_time.set(in_time.get() && written.elapsed() < VALID / 2);
            written = write();
        }
    };
    let publishing = async {
        let (begin, mut number) = (Instant::now(), 0);
        while begin.elapsed() < VALID * 3 {
            match broker.publish(&events(), vec![message(number)]).await {
                Ok(()) => number += 1,
                Err(error) => {
                    // Until it is known whether it was in time.
                    tokio::time::sleep(Duration::from_secs(1)).await;
                    assert!(!in_time.get(), "{error}");
                }
            }
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
        number
    };
    let number = tokio::select! {
        number = publishing => number,
        never = replacing => never,
    };
    assert!(number > 0);
    patiently("what was published", tail_all(&broker, &events(), number)).await;
}

/// `make soak`.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes two minutes"]
async fn everything_goes_on_when_the_broker_was_away_for_a_minute() {
    let mut environment = own().await;
    let tenant = tenant(environment.pulsar().unwrap(), 1).await;
    let settings = settings(environment.pulsar().unwrap(), &tenant);
    nothing_is_lost(settings, async || {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let pulsar = environment.pulsar_mut().unwrap();
        pulsar.kill();
        tokio::time::sleep(Duration::from_secs(60)).await;
        pulsar.restart().await.unwrap();
    })
    .await;
}

/// `make soak`: producers and consumers look twice a minute.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "takes a minute"]
async fn a_topic_that_grows_is_found_out_within_a_minute() {
    let pulsar = shared().await;
    let tenant = tenant(pulsar, 1).await;
    let broker = PulsarBroker::new(settings(pulsar, &tenant));
    broker.publish(&requests(), vec![message(0)]).await.unwrap();
    let topic = TopicName::new(&tenant, &requests());
    let admin = pulsar.admin().unwrap();
    admin.create_topic(&topic, 4).await.unwrap();

    let begin = Instant::now();
    let mut partitions = BTreeSet::new();
    patiently("messages from all partitions", async {
        while partitions.len() < 4 {
            let Ok(mut consumer) = broker.subscribe(&requests(), Sharing::Failover, 100).await
            else {
                continue;
            };
            let acknowledger = consumer.acknowledger();
            while partitions.len() < 4 {
                broker.publish(&requests(), vec![message(1)]).await.unwrap();
                let Ok(message) = consumer.receive().await else {
                    break;
                };
                acknowledger.acknowledge(&[message.id]).await.unwrap();
                partitions.insert(message.id.partition);
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    })
    .await;
    let took = begin.elapsed();
    assert!(took < Duration::from_secs(60), "{took:?}");
}
