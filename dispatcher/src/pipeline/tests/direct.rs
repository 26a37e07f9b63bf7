//! Direct notifications, many at once.

use std::sync::atomic::{AtomicUsize, Ordering};

use futures::future::join_all;
use herald_crds::names::{self, Topic};

use super::*;
use crate::broker::{BrokerError, Consumer, MessageId, Outgoing, Sharing, Tail};
use crate::catalog::FullName;

/// Receipts that are waited for at once.
const TOGETHER: usize = 16;

/// Takes its time over receipts for events, and counts how many are waited for at once.
struct Leisurely {
    broker: EmbeddedBroker,
    events: Topic,
    now: AtomicUsize,
    most: Arc<AtomicUsize>,
}

#[async_trait]
impl Broker for Leisurely {
    async fn publish(&self, topic: &Topic, messages: Vec<Outgoing>) -> Result<(), BrokerError> {
        if *topic != self.events {
            return self.broker.publish(topic, messages).await;
        }
        let now = self.now.fetch_add(1, Ordering::SeqCst) + 1;
        self.most.fetch_max(now, Ordering::SeqCst);
        // Until enough wait at once; the first may be alone.
        let begin = tokio::time::Instant::now();
        while self.most.load(Ordering::SeqCst) < TOGETHER
            && begin.elapsed() < Duration::from_secs(2)
        {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        let published = self.broker.publish(topic, messages).await;
        self.now.fetch_sub(1, Ordering::SeqCst);
        published
    }

    async fn subscribe(
        &self,
        topic: &Topic,
        sharing: Sharing,
        prefetch: usize,
    ) -> Result<Box<dyn Consumer>, BrokerError> {
        self.broker.subscribe(topic, sharing, prefetch).await
    }

    async fn tail(
        &self,
        topic: &Topic,
        after: Option<MessageId>,
    ) -> Result<Box<dyn Tail>, BrokerError> {
        self.broker.tail(topic, after).await
    }

    async fn last_message_id(&self, topic: &Topic) -> Result<Option<MessageId>, BrokerError> {
        self.broker.last_message_id(topic).await
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn direct_notifications_that_come_together_do_not_wait_for_each_others_receipts() {
    let most = Arc::<AtomicUsize>::default();
    let counted = Arc::clone(&most);
    let wrap = |broker| -> Arc<dyn Broker> {
        Arc::new(Leisurely {
            broker,
            events: names::events("shop/mail"),
            now: AtomicUsize::new(0),
            most: counted,
        })
    };
    let stages = Stages::begin_over(MAIL, timing(), sent, wrap).await;
    // Before its channel is known to be ready a notification takes the other way.
    let channel: FullName = Arc::from("shop/mail");
    while stages.pipeline.loads.get(&channel).is_none() {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let requests = (0..64).map(|n| {
        json!({"template": "code", "recipients": to(&format!("n{n}@b.example")), "parameters": {"n": n}})
    });
    let ids = join_all(requests.map(|request| stages.send(request))).await;
    for id in &ids {
        assert_eq!(stages.ended(id).await[0].state, State::Sent);
    }
    let most = most.load(Ordering::SeqCst);
    assert!(
        most >= TOGETHER,
        "at most {most} receipts were waited for at once"
    );
}
