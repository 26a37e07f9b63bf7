//! What every broker promises, as tests: `broker_contract!(subject)` runs all of them on what `subject` opens.

#![allow(
    clippy::unwrap_used,
    clippy::missing_panics_doc,
    reason = "these are tests: a promise that is not kept is a panic"
)]

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use bytes::Bytes;
use herald_crds::Priority;
use herald_crds::names::{self, Path, Topic};
use jiff::Timestamp;

use super::{Broker, BrokerError, Consumer, Incoming, MessageId, Outgoing, Sharing, Tail};

/// Opens one broker, again and again, and always finds what was kept. Empty at first.
#[async_trait]
pub trait Subject: Send + Sync {
    /// Connects to, or opens, the broker.
    async fn open(&self) -> Arc<dyn Broker>;

    /// Ends the broker that was opened last as a crash would.
    async fn crash(&self);

    /// Whether consumers that come and go may be given what was acknowledged, or end with an error for it.
    fn repeats(&self) -> bool {
        false
    }
}

/// Every promise as a `#[tokio::test]` of its own. `$subject` makes a [`Subject`] and is evaluated for each.
#[macro_export]
macro_rules! broker_contract {
    ($subject:expr) => {
        $crate::broker_contract! { $subject =>
            what_has_a_receipt_survives_a_crash
            one_producers_messages_come_in_order
            what_a_dropped_consumer_held_comes_again_in_order
            what_is_acknowledged_never_comes_again
            an_acknowledger_without_its_consumer_has_no_effect
            nothing_comes_before_it_is_due
            a_waiting_consumer_is_woken
            no_more_than_the_prefetch_is_held
            with_failover_one_consumer_stands_by
            consumers_share_a_topic
            a_tail_skips_nothing_and_resumes
            a_tail_reads_what_was_acknowledged
            the_last_message_id_covers_every_receipt
            what_time_it_is_there_is_told_while_much_comes
            giving_up_waiting_loses_nothing
            giving_up_at_the_first_step_loses_nothing
            nothing_is_lost_while_consumers_come_and_go
            nothing_is_lost_or_comes_after_its_acknowledgement_when_many_share
        }
    };
    ($subject:expr => $($promise:ident)+) => {
        $(
            #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
            async fn $promise() {
                $crate::broker::contract::$promise(&$subject).await;
            }
        )+
    };
}

/// Long enough for any broker that works.
const SOON: Duration = Duration::from_secs(120);

/// Long enough for a message that comes although it should not.
const A_WHILE: Duration = Duration::from_millis(150);

async fn soon<T>(future: impl Future<Output = Result<T, BrokerError>>) -> T {
    tokio::time::timeout(SOON, future)
        .await
        .expect_soon()
        .unwrap()
}

trait ExpectSoon<T> {
    fn expect_soon(self) -> T;
}

impl<T> ExpectSoon<T> for Result<T, tokio::time::error::Elapsed> {
    fn expect_soon(self) -> T {
        self.unwrap_or_else(|_| panic!("nothing came within {SOON:?}"))
    }
}

fn requests() -> Topic {
    names::requests(Path::Direct, Priority::Critical)
}

fn events() -> Topic {
    names::events("shop/mail")
}

fn relay() -> Topic {
    names::relays("shop/mail")[0].clone()
}

fn message(text: &str) -> Outgoing {
    Outgoing {
        payload: Bytes::from(text.to_owned()),
        key: None,
        deliver_at: None,
    }
}

fn text(message: &Incoming) -> String {
    String::from_utf8(message.payload.to_vec()).unwrap()
}

async fn publish(broker: &dyn Broker, topic: &Topic, range: std::ops::Range<u32>) {
    let messages = range.map(|n| message(&n.to_string())).collect();
    soon(broker.publish(topic, messages)).await;
}

async fn consume(
    broker: &dyn Broker,
    topic: &Topic,
    sharing: Sharing,
    prefetch: usize,
) -> Box<dyn Consumer> {
    soon(broker.subscribe(topic, sharing, prefetch)).await
}

async fn receive(consumer: &mut dyn Consumer, count: usize) -> Vec<Incoming> {
    let mut received = Vec::with_capacity(count);
    for _ in 0..count {
        received.push(soon(consumer.receive()).await);
    }
    received
}

async fn acknowledge(consumer: &dyn Consumer, messages: &[Incoming]) {
    let ids: Vec<MessageId> = messages.iter().map(|message| message.id).collect();
    soon(consumer.acknowledger().acknowledge(&ids)).await;
}

async fn nothing(consumer: &mut dyn Consumer) {
    if let Ok(message) = tokio::time::timeout(A_WHILE, consumer.receive()).await {
        panic!("{} came", text(&message.unwrap()));
    }
}

fn texts(messages: &[Incoming]) -> Vec<String> {
    messages.iter().map(text).collect()
}

fn numbers(range: std::ops::Range<u32>) -> Vec<String> {
    range.map(|n| n.to_string()).collect()
}

/// A receipt outlasts everything.
pub async fn what_has_a_receipt_survives_a_crash(subject: &dyn Subject) {
    let broker = subject.open().await;
    publish(&*broker, &requests(), 0..100).await;
    publish(&*broker, &events(), 100..150).await;
    drop(broker);
    subject.crash().await;

    let broker = subject.open().await;
    for (topic, range) in [(requests(), 0..100), (events(), 100..150)] {
        let mut consumer = consume(&*broker, &topic, Sharing::Failover, 1000).await;
        let received = receive(&mut *consumer, range.len()).await;
        assert_eq!(texts(&received), numbers(range));
    }
}

/// As long as nothing fails.
pub async fn one_producers_messages_come_in_order(subject: &dyn Subject) {
    let broker = subject.open().await;
    let mut consumer = consume(&*broker, &requests(), Sharing::Failover, 16).await;
    let producer = {
        let broker = Arc::clone(&broker);
        tokio::spawn(async move {
            for start in (0..500).step_by(5) {
                publish(&*broker, &requests(), start..start + 5).await;
            }
        })
    };
    let mut received = Vec::new();
    for _ in 0..500 {
        let message = soon(consumer.receive()).await;
        acknowledge(&*consumer, std::slice::from_ref(&message)).await;
        received.push(message);
    }
    producer.await.unwrap();
    assert_eq!(texts(&received), numbers(0..500));
    assert!(received.is_sorted_by_key(|message| message.id));
}

/// Whether received or only fetched.
pub async fn what_a_dropped_consumer_held_comes_again_in_order(subject: &dyn Subject) {
    let broker = subject.open().await;
    for topic in [requests(), events()] {
        publish(&*broker, &topic, 0..10).await;
        let mut first = consume(&*broker, &topic, Sharing::Failover, 100).await;
        let held = receive(&mut *first, 6).await;
        acknowledge(&*first, &held[1..3]).await;
        drop(first);
        let mut second = consume(&*broker, &topic, Sharing::Failover, 100).await;
        let received = receive(&mut *second, 8).await;
        assert_eq!(texts(&received), ["0", "3", "4", "5", "6", "7", "8", "9"]);
        nothing(&mut *second).await;
    }
}

/// Neither to another consumer nor after a crash.
pub async fn what_is_acknowledged_never_comes_again(subject: &dyn Subject) {
    let broker = subject.open().await;
    for topic in [requests(), events()] {
        publish(&*broker, &topic, 0..20).await;
        let mut consumer = consume(&*broker, &topic, Sharing::Failover, 100).await;
        let received = receive(&mut *consumer, 20).await;
        acknowledge(&*consumer, &received).await;
        drop(consumer);
        let mut next = consume(&*broker, &topic, Sharing::Failover, 100).await;
        nothing(&mut *next).await;
    }
    drop(broker);
    subject.crash().await;
    let broker = subject.open().await;
    for topic in [requests(), events()] {
        publish(&*broker, &topic, 20..21).await;
        let mut consumer = consume(&*broker, &topic, Sharing::Failover, 100).await;
        assert_eq!(texts(&receive(&mut *consumer, 1).await), ["20"]);
        nothing(&mut *consumer).await;
    }
}

/// What it held belongs to others by then.
pub async fn an_acknowledger_without_its_consumer_has_no_effect(subject: &dyn Subject) {
    let broker = subject.open().await;
    publish(&*broker, &requests(), 0..1).await;
    let mut first = consume(&*broker, &requests(), Sharing::Failover, 10).await;
    let held = receive(&mut *first, 1).await;
    let acknowledger = first.acknowledger();
    drop(first);
    // Whether it is told so is the broker's matter.
    let _ = acknowledger.acknowledge(&[held[0].id]).await;
    let mut second = consume(&*broker, &requests(), Sharing::Failover, 10).await;
    assert_eq!(texts(&receive(&mut *second, 1).await), ["0"]);
}

/// And what is due earlier comes earlier.
pub async fn nothing_comes_before_it_is_due(subject: &dyn Subject) {
    let broker = subject.open().await;
    let mut consumer = consume(&*broker, &relay(), Sharing::KeyShared, 100).await;
    for _ in 0..10 {
        let start = Timestamp::now();
        let due = |milliseconds: u64| start + Duration::from_millis(milliseconds);
        for (text, delay) in [("late", 600), ("early", 300), ("later", 900)] {
            let outgoing = Outgoing {
                deliver_at: Some(due(delay)),
                ..message(text)
            };
            soon(broker.publish(&relay(), vec![outgoing])).await;
        }
        let all_waited = Timestamp::now() < due(300);
        let mut order = Vec::new();
        for _ in 0..3 {
            let text = text(&soon(consumer.receive()).await);
            let delay = match text.as_str() {
                "early" => 300,
                "late" => 600,
                "later" => 900,
                other => panic!("{other:?} was never published"),
            };
            assert!(Timestamp::now() >= due(delay), "{text} came too early");
            order.push(text);
        }
        // On a machine that was held up the first may be due before the last is there: once more.
        if all_waited {
            assert_eq!(order, ["early", "late", "later"]);
            return;
        }
    }
    panic!("three messages take longer to publish than the first has to wait");
}

/// By a message that is published after it began to wait.
pub async fn a_waiting_consumer_is_woken(subject: &dyn Subject) {
    let broker = subject.open().await;
    let mut consumer = consume(&*broker, &requests(), Sharing::Failover, 10).await;
    nothing(&mut *consumer).await;
    let topic = requests();
    let (received, ()) = tokio::join!(receive(&mut *consumer, 1), publish(&*broker, &topic, 0..1));
    assert_eq!(texts(&received), ["0"]);
}

/// And an acknowledgement makes room. What it may not have yet is for others, or waits.
pub async fn no_more_than_the_prefetch_is_held(subject: &dyn Subject) {
    const MESSAGES: u32 = 60;
    let broker = subject.open().await;
    publish(&*broker, &requests(), 0..MESSAGES).await;
    let mut consumer = consume(&*broker, &requests(), Sharing::KeyShared, 4).await;
    let mut all = receive(&mut *consumer, 4).await;
    nothing(&mut *consumer).await;
    acknowledge(&*consumer, &all[2..]).await;
    all.extend(receive(&mut *consumer, 2).await);
    nothing(&mut *consumer).await;
    acknowledge(&*consumer, &all).await;
    let mut other = consume(&*broker, &requests(), Sharing::KeyShared, 100).await;
    while all.len() < MESSAGES as usize {
        let (message, by) = soon(async {
            tokio::select! {
                message = consumer.receive() => Ok((message?, &consumer)),
                message = other.receive() => Ok((message?, &other)),
            }
        })
        .await;
        acknowledge(&**by, std::slice::from_ref(&message)).await;
        all.push(message);
    }
    let all: BTreeSet<String> = all.iter().map(text).collect();
    assert_eq!(all.len(), MESSAGES as usize, "one came to both");
}

/// Which of them does is the broker's matter. Once it is gone, the other gets all that was not acknowledged.
pub async fn with_failover_one_consumer_stands_by(subject: &dyn Subject) {
    let broker = subject.open().await;
    let mut one = consume(&*broker, &requests(), Sharing::Failover, 10).await;
    let mut other = consume(&*broker, &requests(), Sharing::Failover, 10).await;
    publish(&*broker, &requests(), 0..5).await;
    let (first, is_one) = soon(async {
        tokio::select! {
            message = one.receive() => Ok((message?, true)),
            message = other.receive() => Ok((message?, false)),
        }
    })
    .await;
    let (mut active, mut standby) = if is_one { (one, other) } else { (other, one) };
    let second = receive(&mut *active, 1).await;
    assert_eq!((&*text(&first), &*text(&second[0])), ("0", "1"));
    acknowledge(&*active, &[first]).await;
    nothing(&mut *standby).await;
    let (received, ()) = tokio::join!(receive(&mut *standby, 4), async { drop(active) });
    assert_eq!(texts(&received), numbers(1..5));
}

/// Each message is held by one of them, and all of them have some.
pub async fn consumers_share_a_topic(subject: &dyn Subject) {
    const MESSAGES: u32 = 90;
    let broker = subject.open().await;
    let mut first = consume(&*broker, &requests(), Sharing::KeyShared, 30).await;
    let mut second = consume(&*broker, &requests(), Sharing::KeyShared, 30).await;
    publish(&*broker, &requests(), 0..MESSAGES).await;
    let (mut here, mut there) = (BTreeSet::new(), BTreeSet::new());
    // Before anything is acknowledged neither may have it all: later, whoever is quicker may take what is left.
    let held = receive(&mut *first, 10).await;
    let held_there = receive(&mut *second, 10).await;
    acknowledge(&*first, &held).await;
    acknowledge(&*second, &held_there).await;
    here.extend(held.iter().map(text));
    there.extend(held_there.iter().map(text));
    while here.len() + there.len() < MESSAGES as usize {
        let (message, by, place) = soon(async {
            tokio::select! {
                message = first.receive() => Ok((message?, &first, &mut here)),
                message = second.receive() => Ok((message?, &second, &mut there)),
            }
        })
        .await;
        acknowledge(&**by, std::slice::from_ref(&message)).await;
        place.insert(text(&message));
    }
    assert!(here.is_disjoint(&there), "one is held by both");
    assert!(
        here.len() > 9 && there.len() > 9,
        "{} and {}",
        here.len(),
        there.len()
    );
}

/// Also what is published while it reads, and after a crash.
pub async fn a_tail_skips_nothing_and_resumes(subject: &dyn Subject) {
    let broker = subject.open().await;
    publish(&*broker, &events(), 0..150).await;
    publish(&*broker, &requests(), 0..10).await;
    let mut tail = soon(broker.tail(&events(), None)).await;
    let (read, ()) = tokio::join!(read(&mut *tail, 300), async {
        for start in (150..300).step_by(10) {
            publish(&*broker, &events(), start..start + 10).await;
        }
    });
    assert_eq!(texts(&read), numbers(0..300));
    assert!(read.is_sorted_by_key(|message| message.id));
    drop((tail, broker));
    subject.crash().await;

    let broker = subject.open().await;
    publish(&*broker, &events(), 300..310).await;
    let mut tail = soon(broker.tail(&events(), Some(read[99].id))).await;
    assert_eq!(texts(&self::read(&mut *tail, 210).await), numbers(100..310));
}

async fn read(tail: &mut dyn Tail, count: usize) -> Vec<Incoming> {
    let mut read = Vec::with_capacity(count);
    for _ in 0..count {
        read.push(soon(tail.next()).await);
    }
    read
}

/// Events are kept for a while, for those who start later.
pub async fn a_tail_reads_what_was_acknowledged(subject: &dyn Subject) {
    let broker = subject.open().await;
    publish(&*broker, &events(), 0..20).await;
    let mut consumer = consume(&*broker, &events(), Sharing::Failover, 100).await;
    let received = receive(&mut *consumer, 20).await;
    acknowledge(&*consumer, &received).await;
    let mut tail = soon(broker.tail(&events(), None)).await;
    assert_eq!(texts(&read(&mut *tail, 20).await), numbers(0..20));
}

/// A tail that has reached it has read everything for which there was a receipt.
pub async fn the_last_message_id_covers_every_receipt(subject: &dyn Subject) {
    let broker = subject.open().await;
    assert_eq!(soon(broker.last_message_id(&events())).await, None);
    publish(&*broker, &events(), 0..7).await;
    publish(&*broker, &requests(), 0..7).await;
    let last = soon(broker.last_message_id(&events())).await.unwrap();
    let mut tail = soon(broker.tail(&events(), None)).await;
    let read = read(&mut *tail, 7).await;
    assert_eq!(read[6].id, last);
    let mut consumer = consume(&*broker, &requests(), Sharing::Failover, 10).await;
    let received = receive(&mut *consumer, 7).await;
    acknowledge(&*consumer, &received).await;
    drop((tail, consumer, broker));
    subject.crash().await;

    let broker = subject.open().await;
    assert_eq!(soon(broker.last_message_id(&events())).await, Some(last));
    publish(&*broker, &events(), 7..8).await;
    assert!(soon(broker.last_message_id(&events())).await > Some(last));
    let after = soon(broker.last_message_id(&requests())).await;
    assert!(after >= Some(received[6].id));
    publish(&*broker, &requests(), 7..8).await;
    let mut consumer = consume(&*broker, &requests(), Sharing::Failover, 10).await;
    assert!(
        soon(consumer.receive()).await.id > received[6].id,
        "an id was used twice"
    );
}

/// The broker's clock is asked for, and by what else goes on the answer is not held up.
pub async fn what_time_it_is_there_is_told_while_much_comes(subject: &dyn Subject) {
    let broker = subject.open().await;
    for topic in [events(), requests()] {
        let before = Timestamp::now().as_millisecond();
        let (told, ()) = futures::join!(
            soon(broker.time(&topic)),
            publish(&*broker, &topic, 0..2_000)
        );
        // The brokers of these tests are on this machine.
        if let Some(told) = told {
            let there = told.time.as_millisecond();
            assert!(before <= there && there <= Timestamp::now().as_millisecond());
            assert!(told.from <= told.until);
        }
    }
}

/// Waiting is given up at any point, over and over.
pub async fn giving_up_waiting_loses_nothing(subject: &dyn Subject) {
    let broker = subject.open().await;
    let mut consumer = consume(&*broker, &events(), Sharing::Failover, 1000).await;
    let mut tail = soon(broker.tail(&events(), None)).await;
    let producer = {
        let broker = Arc::clone(&broker);
        tokio::spawn(async move {
            for n in 0..100 {
                publish(&*broker, &events(), n..n + 1).await;
            }
        })
    };
    let (mut received, mut read) = (Vec::new(), Vec::new());
    let mut given_up = 0u32;
    let deadline = tokio::time::Instant::now() + SOON;
    while (received.len() < 100 || read.len() < 100) && tokio::time::Instant::now() < deadline {
        let patience = Duration::from_micros(u64::from(given_up % 50) * 20);
        match tokio::time::timeout(patience, consumer.receive()).await {
            Ok(message) => received.push(message.unwrap()),
            Err(_) => given_up += 1,
        }
        match tokio::time::timeout(patience, tail.next()).await {
            Ok(message) => read.push(message.unwrap()),
            Err(_) => given_up += 1,
        }
    }
    producer.await.unwrap();
    assert!(given_up > 0);
    assert_eq!(texts(&received), numbers(0..100));
    assert_eq!(texts(&read), numbers(0..100));
}

/// When nothing happens afterwards that would wake the consumer.
pub async fn giving_up_at_the_first_step_loses_nothing(subject: &dyn Subject) {
    let broker = subject.open().await;
    publish(&*broker, &requests(), 0..5).await;
    let mut consumer = consume(&*broker, &requests(), Sharing::Failover, 1).await;
    for n in 0..5 {
        let given_up = tokio::time::timeout(Duration::ZERO, consumer.receive()).await;
        let message = match given_up {
            Ok(message) => message.unwrap(),
            Err(_) => soon(consumer.receive()).await,
        };
        assert_eq!(text(&message), n.to_string());
        acknowledge(&*consumer, &[message]).await;
    }
}

/// Four producers, and consumers that are dropped with what they hold.
pub async fn nothing_is_lost_while_consumers_come_and_go(subject: &dyn Subject) {
    const EACH: u32 = 200;
    let broker = subject.open().await;
    let producers: Vec<_> = (0..4)
        .map(|producer| {
            let broker = Arc::clone(&broker);
            tokio::spawn(async move {
                for n in (0..EACH).step_by(4) {
                    let start = producer * EACH + n;
                    publish(&*broker, &requests(), start..start + 4).await;
                }
            })
        })
        .collect();
    let mut acknowledged = BTreeSet::new();
    let mut consumer = consume(&*broker, &requests(), Sharing::KeyShared, 20).await;
    let mut round = 0;
    while acknowledged.len() < 4 * EACH as usize {
        round += 1;
        let held = tokio::time::timeout(SOON, consumer.receive())
            .await
            .expect_soon();
        let Ok(message) = held else {
            assert!(subject.repeats(), "the consumer ended: {held:?}");
            consumer = consume(&*broker, &requests(), Sharing::KeyShared, 20).await;
            continue;
        };
        let held = [message];
        if round % 17 == 0 {
            drop(consumer);
            consumer = consume(&*broker, &requests(), Sharing::KeyShared, 20).await;
            continue;
        }
        acknowledge(&*consumer, &held).await;
        assert!(
            acknowledged.insert(text(&held[0])) || subject.repeats(),
            "{} came after its acknowledgement",
            text(&held[0])
        );
    }
    for producer in producers {
        producer.await.unwrap();
    }
    if !subject.repeats() {
        nothing(&mut *consumer).await;
    }
}

/// Four consumers at once, each of which is dropped again and again with what it holds.
pub async fn nothing_is_lost_or_comes_after_its_acknowledgement_when_many_share(
    subject: &dyn Subject,
) {
    const MESSAGES: u32 = 1000;
    let broker = subject.open().await;
    for start in (0..MESSAGES).step_by(100) {
        publish(&*broker, &requests(), start..start + 100).await;
    }
    let settled = Arc::new(Mutex::new(BTreeSet::new()));
    let repeats = subject.repeats();
    let consumers: Vec<_> = (0..4usize)
        .map(|number| {
            let (broker, settled) = (Arc::clone(&broker), Arc::clone(&settled));
            tokio::spawn(async move {
                let is_done = || settled.lock().unwrap().len() == MESSAGES as usize;
                let deadline = tokio::time::Instant::now() + SOON;
                let mut turn = 0;
                while !is_done() {
                    // Whose turn begins with one that is left alone would never acknowledge the last.
                    turn += 1;
                    let mut consumer = consume(&*broker, &requests(), Sharing::KeyShared, 7).await;
                    let acknowledger = consumer.acknowledger();
                    for round in 0..(20 + 3 * number) {
                        let received = tokio::time::timeout(A_WHILE / 10, consumer.receive()).await;
                        let Ok(received) = received else { break };
                        if received.is_err() && repeats {
                            break;
                        }
                        let message = received.unwrap();
                        let again = settled.lock().unwrap().contains(&text(&message));
                        assert!(
                            !again || repeats,
                            "{} came after its acknowledgement",
                            text(&message)
                        );
                        if (round + turn) % 5 != number {
                            soon(acknowledger.acknowledge(&[message.id])).await;
                            settled.lock().unwrap().insert(text(&message));
                        }
                    }
                    assert!(tokio::time::Instant::now() < deadline, "some never came");
                }
            })
        })
        .collect();
    for consumer in consumers {
        consumer.await.unwrap();
    }
}
