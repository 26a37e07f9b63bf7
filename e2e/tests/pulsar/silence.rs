//! What only shows when commands are lost on the way: a client or a broker that waits for ever.

use std::time::{Duration, Instant};

use bytes::Bytes;
use futures::future::{join_all, try_join_all};
use herald_crds::Priority;
use herald_crds::names::{self, Path, Topic};
use herald_dispatcher::broker::pulsar::{PulsarBroker, Settings};
use herald_dispatcher::broker::{Broker as _, Outgoing, Sharing};
use herald_operator::pulsar_admin::TopicName;

use crate::between::{Between, Command};
use crate::subject::tenant;

/// Each way in which a topic is consumed.
fn ways() -> [(Topic, Sharing); 2] {
    [
        (
            names::requests(Path::Stored, Priority::Normal),
            Sharing::Failover,
        ),
        (
            names::deliveries("shop/mail", Priority::High),
            Sharing::KeyShared,
        ),
    ]
}

async fn publish(broker: &PulsarBroker, topic: &Topic) {
    let message = Outgoing::at_once(Bytes::from_static(b"x"));
    broker.publish(topic, vec![message]).await.unwrap();
}

/// Subscribes as often as it takes, and acknowledges one message; answers how often it took.
async fn insist(broker: &PulsarBroker, topic: &Topic, sharing: Sharing) -> u32 {
    let mut times = 0;
    loop {
        times += 1;
        let Ok(mut consumer) = broker.subscribe(topic, sharing, 10).await else {
            tokio::time::sleep(Duration::from_millis(100)).await;
            continue;
        };
        if let Ok(message) = consumer.receive().await {
            let acknowledger = consumer.acknowledger();
            acknowledger.acknowledge(&[message.id]).await.unwrap();
            return times;
        }
    }
}

/// Both ways at once, each with a message that waits; the loss lasts until both have subscribed and some time more.
async fn a_message_comes_in_spite_of_a_lost(command: Command, within: Duration) -> [u32; 2] {
    let between = Between::new().await;
    let tenant = tenant(between.pulsar(), 1).await;
    let broker = PulsarBroker::new(between.settings(&tenant));
    for (topic, _) in ways() {
        publish(&broker, &topic).await;
    }
    between.lose(Some(command));
    let before = between.count(command);
    let begin = Instant::now();
    let [(first, failover), (second, key_shared)] = ways();
    let coming = async {
        tokio::join!(
            insist(&broker, &first, failover),
            insist(&broker, &second, key_shared),
        )
    };
    let found = async {
        while between.count(command) < before + 2 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
        between.lose(None);
    };
    let ((one, other), ()) = tokio::time::timeout(within, async { tokio::join!(coming, found) })
        .await
        .unwrap_or_else(|_| panic!("nothing came within {within:?}"));
    println!("{command:?}: after {:.1?}", begin.elapsed());
    [one, other]
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_for_which_the_broker_waits_is_made_again() {
    let within = Duration::from_secs(40);
    let times = a_message_comes_in_spite_of_a_lost(Command::Flow, within).await;
    assert!(
        times.iter().all(|times| *times > 1),
        "{times:?}: nothing was lost"
    );
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_sent_and_never_arrived_comes_again() {
    let within = Duration::from_secs(70);
    a_message_comes_in_spite_of_a_lost(Command::Message, within).await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_subscription_that_is_not_answered_is_asked_for_again() {
    let within = Duration::from_secs(60);
    a_message_comes_in_spite_of_a_lost(Command::Subscribe, within).await;
}

/// As when a topic moves to a broker that has just begun: the client gives up without a word.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_consumer_that_cannot_follow_its_topic_ends() {
    let between = Between::new().await;
    let tenant = tenant(between.pulsar(), 1).await;
    let broker = PulsarBroker::new(between.settings(&tenant));
    let mut consumers = Vec::new();
    for (topic, sharing) in ways() {
        consumers.push(broker.subscribe(&topic, sharing, 10).await.unwrap());
    }
    between.lose(Some(Command::Subscribe));
    let admin = between.pulsar().admin().unwrap();
    for (topic, _) in ways() {
        admin
            .unload_topic(&TopicName::new(&tenant, &topic))
            .await
            .unwrap();
    }
    for mut consumer in consumers {
        let end = tokio::time::timeout(Duration::from_secs(40), consumer.receive());
        let error = end.await.unwrap().unwrap_err();
        println!("{error}");
    }
    between.lose(None);
    for (topic, sharing) in ways() {
        publish(&broker, &topic).await;
        insist(&broker, &topic, sharing).await;
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn receipts_that_do_not_come_are_errors_and_the_next_come() {
    const MESSAGES: usize = 5_000;
    let between = Between::new().await;
    let tenant = tenant(between.pulsar(), 1).await;
    let settings = Settings {
        operation_timeout: Duration::from_secs(20),
        ..between.settings(&tenant)
    };
    let patience = settings.operation_timeout * 2;
    let soon = settings.operation_timeout * 3 / 4;
    let broker = PulsarBroker::new(settings);
    let [(topic, _), (other, _)] = ways();
    publish(&broker, &topic).await;
    between.lose(Some(Command::Send));
    let publishing = (0..MESSAGES).map(|_| {
        let message = Outgoing::at_once(Bytes::from_static(b"x"));
        broker.publish(&topic, vec![message])
    });
    let outcomes = tokio::time::timeout(patience, join_all(publishing)).await;
    assert!(outcomes.unwrap().iter().all(Result::is_err));
    between.lose(None);
    let begin = Instant::now();
    for topic in [&topic, &other] {
        publish(&broker, topic).await;
    }
    let took = begin.elapsed();
    assert!(took < soon, "{took:?}: they waited for those before");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_ask_for_the_last_message_share_an_answer() {
    const ASKING: usize = 500;
    let between = Between::new().await;
    let tenant = tenant(between.pulsar(), 1).await;
    let broker = PulsarBroker::new(between.settings(&tenant));
    let topic = names::events("shop/mail");
    publish(&broker, &topic).await;
    let last = broker.last_message_id(&topic).await.unwrap();
    assert!(last.is_some());
    let before = between.count(Command::GetLastMessageId);
    let answers = try_join_all((0..ASKING).map(|_| broker.last_message_id(&topic)));
    assert!(answers.await.unwrap().iter().all(|answer| *answer == last));
    let questions = between.count(Command::GetLastMessageId) - before;
    assert!((1..5).contains(&questions), "{questions} for {ASKING}");
}
