//! A broker that does everything a broker may do, at random: for tests of what is built on one.
//!
//! What it does beyond that is what crashes and broken connections do to any broker: acknowledgements are lost, and
//! messages come again though they were acknowledged.

use std::collections::{BTreeSet, VecDeque};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use herald_crds::names::Topic;
use rand::rngs::SmallRng;
use rand::{RngExt, SeedableRng};
use tokio::sync::watch;
use tokio::time::Instant;

use super::{
    Acknowledger, Broker, BrokerError, Consumer, Incoming, MessageId, Outgoing, Sharing, Tail,
};

/// Most messages that a consumer keeps aside to hand out later or again.
const ASIDE: usize = 8;

/// How long a message stays aside if no other comes.
const PATIENCE: Duration = Duration::from_millis(5);

/// What goes wrong how often. Probabilities are from 0 to 1; all are 0 by default.
#[derive(Debug, Clone, Copy, Default)]
pub struct Faults {
    /// Where chance begins: the same seed and the same order of calls give the same faults.
    pub seed: u64,
    /// A delivery comes again later.
    pub repeat: f64,
    /// A delivery comes after some that follow it.
    pub reorder: f64,
    /// An acknowledgement is answered and lost; as after a broken connection, all that the consumer has not
    /// acknowledged comes again.
    pub lose_acknowledgement: f64,
    /// A message is published and its receipt is lost.
    pub lose_receipt: f64,
    /// A message is not published.
    pub refuse: f64,
    /// A tail gets a message late.
    pub delay_tail: f64,
    /// By how much at most.
    pub tail_delay: Duration,
}

/// Any broker, and what goes wrong with it.
pub struct FaultyBroker<B> {
    shared: Arc<Shared<B>>,
}

struct Shared<B> {
    broker: B,
    faults: Faults,
    chance: Mutex<SmallRng>,
    /// How often a fault was put in.
    injected: AtomicU64,
    /// Sent when every connection breaks.
    breaks: watch::Sender<()>,
    /// Topics that are no longer there.
    deleted: Mutex<BTreeSet<Topic>>,
}

impl<B: Broker> FaultyBroker<B> {
    /// Wraps `broker`.
    pub fn new(broker: B, faults: Faults) -> Self {
        Self {
            shared: Arc::new(Shared {
                broker,
                faults,
                chance: Mutex::new(SmallRng::seed_from_u64(faults.seed)),
                injected: AtomicU64::new(0),
                breaks: watch::Sender::new(()),
                deleted: Mutex::default(),
            }),
        }
    }

    /// What is wrapped.
    pub fn inner(&self) -> &B {
        &self.shared.broker
    }

    /// How many faults there have been.
    pub fn injected(&self) -> u64 {
        self.shared.injected.load(Ordering::Relaxed)
    }

    /// From now on a topic is not there.
    pub fn delete(&self, topic: &Topic) {
        self.shared.deleted().insert(topic.clone());
        self.break_connections();
    }

    /// Breaks the connection of every consumer, as a restart of a broker does: all that is not acknowledged comes again.
    pub fn break_connections(&self) {
        self.shared.breaks.send_replace(());
    }
}

impl<B> Clone for FaultyBroker<B> {
    fn clone(&self) -> Self {
        Self {
            shared: Arc::clone(&self.shared),
        }
    }
}

impl<B> Shared<B> {
    /// Whether it happens this time.
    fn strikes(&self, probability: f64) -> bool {
        let strikes = probability > 0.0 && self.random(|chance| chance.random_bool(probability));
        self.injected
            .fetch_add(u64::from(strikes), Ordering::Relaxed);
        strikes
    }

    fn deleted(&self) -> MutexGuard<'_, BTreeSet<Topic>> {
        self.deleted.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Fails if the topic is not there any more.
    fn find(&self, topic: &Topic) -> Result<(), BrokerError> {
        if self.deleted().contains(topic) {
            return Err(BrokerError::Missing {
                topic: topic.clone(),
                reason: "injected: it was deleted".to_owned(),
            });
        }
        Ok(())
    }

    fn random<T>(&self, draw: impl FnOnce(&mut SmallRng) -> T) -> T {
        draw(&mut self.chance.lock().unwrap_or_else(PoisonError::into_inner))
    }
}

#[async_trait]
impl<B: Broker> Broker for FaultyBroker<B> {
    async fn publish(&self, topic: &Topic, messages: Vec<Outgoing>) -> Result<(), BrokerError> {
        self.shared.find(topic)?;
        let failed = |reason: &str| BrokerError::Publish {
            topic: topic.clone(),
            reason: reason.to_owned(),
        };
        if self.shared.strikes(self.shared.faults.refuse) {
            return Err(failed("injected: it was not published"));
        }
        self.shared.broker.publish(topic, messages).await?;
        if self.shared.strikes(self.shared.faults.lose_receipt) {
            return Err(failed("injected: it was published"));
        }
        Ok(())
    }

    async fn subscribe(
        &self,
        topic: &Topic,
        sharing: Sharing,
        prefetch: usize,
    ) -> Result<Box<dyn Consumer>, BrokerError> {
        self.shared.find(topic)?;
        let connected = self
            .shared
            .broker
            .subscribe(topic, sharing, prefetch)
            .await?;
        let acknowledger = Arc::new(FaultyAcknowledger {
            shared: Arc::clone(&self.shared),
            current: Mutex::new(Some(connected.acknowledger())),
            lost: watch::Sender::new(()),
        });
        Ok(Box::new(FaultyConsumer {
            breaks: self.shared.breaks.subscribe(),
            lost: acknowledger.lost.subscribe(),
            shared: Arc::clone(&self.shared),
            topic: topic.clone(),
            sharing,
            prefetch,
            connected: Some(connected),
            acknowledger,
            aside: VecDeque::with_capacity(ASIDE),
        }))
    }

    async fn tail(
        &self,
        topic: &Topic,
        after: Option<MessageId>,
    ) -> Result<Box<dyn Tail>, BrokerError> {
        self.shared.find(topic)?;
        Ok(Box::new(FaultyTail {
            tail: self.shared.broker.tail(topic, after).await?,
            shared: Arc::clone(&self.shared),
            withheld: None,
        }))
    }

    fn place(&self, topic: &Topic, key: &str) -> Option<u64> {
        self.shared.broker.place(topic, key)
    }

    async fn last_message_id(&self, topic: &Topic) -> Result<Option<MessageId>, BrokerError> {
        self.shared.find(topic)?;
        self.shared.broker.last_message_id(topic).await
    }
}

struct FaultyConsumer<B> {
    shared: Arc<Shared<B>>,
    topic: Topic,
    sharing: Sharing,
    prefetch: usize,
    /// `None` between two connections.
    connected: Option<Box<dyn Consumer>>,
    acknowledger: Arc<FaultyAcknowledger<B>>,
    /// Changes with each lost acknowledgement: then all that is held comes again.
    lost: watch::Receiver<()>,
    /// Changes when every connection breaks.
    breaks: watch::Receiver<()>,
    /// To be handed out later, or again.
    aside: VecDeque<Incoming>,
}

impl<B: Broker> FaultyConsumer<B> {
    /// Whether the connection is to be made anew.
    fn is_broken(&mut self) -> bool {
        // An error means that the sender is gone, which this consumer keeps alive.
        let lost = self.lost.has_changed().unwrap_or(false);
        let broken = self.breaks.has_changed().unwrap_or(false);
        self.lost.mark_unchanged();
        self.breaks.mark_unchanged();
        lost || broken
    }

    fn disconnect(&mut self) {
        self.acknowledger.connect(None);
        self.connected = None;
        self.aside.clear();
    }

    fn take_aside(&mut self) -> Option<Incoming> {
        if self.aside.is_empty() {
            return None;
        }
        let index = self
            .shared
            .random(|chance| chance.random_range(0..self.aside.len()));
        self.aside.remove(index)
    }
}

#[async_trait]
impl<B: Broker> Consumer for FaultyConsumer<B> {
    async fn receive(&mut self) -> Result<Incoming, BrokerError> {
        loop {
            if self.is_broken() {
                self.disconnect();
            }
            let connected = if let Some(connected) = &mut self.connected {
                connected
            } else {
                self.shared.find(&self.topic)?;
                let broker = &self.shared.broker;
                let connected = broker
                    .subscribe(&self.topic, self.sharing, self.prefetch)
                    .await?;
                self.acknowledger.connect(Some(connected.acknowledger()));
                self.connected.insert(connected)
            };
            let waits = self.aside.is_empty();
            let eager =
                self.aside.len() < ASIDE && self.shared.random(|chance| chance.random_bool(0.5));
            let patience = async {
                match (waits, eager) {
                    (true, _) => std::future::pending().await,
                    (false, true) => tokio::time::sleep(PATIENCE).await,
                    (false, false) => {}
                }
            };
            let received = tokio::select! {
                biased;
                _ = self.lost.changed() => None,
                _ = self.breaks.changed() => None,
                message = connected.receive() => Some(message?),
                () = patience => match self.take_aside() {
                    Some(message) => return Ok(message),
                    None => continue,
                },
            };
            let Some(message) = received else {
                self.disconnect();
                continue;
            };
            // Nothing is awaited from here on: a message that was taken is returned or kept aside.
            let room = self.aside.len() < ASIDE;
            if room && self.shared.strikes(self.shared.faults.reorder) {
                self.aside.push_back(message);
                continue;
            }
            if room && self.shared.strikes(self.shared.faults.repeat) {
                self.aside.push_back(message.clone());
            }
            return Ok(message);
        }
    }

    fn acknowledger(&self) -> Arc<dyn Acknowledger> {
        Arc::<FaultyAcknowledger<B>>::clone(&self.acknowledger)
    }
}

impl<B> Drop for FaultyConsumer<B> {
    fn drop(&mut self) {
        self.acknowledger.connect(None);
    }
}

struct FaultyAcknowledger<B> {
    shared: Arc<Shared<B>>,
    /// Of the present connection.
    current: Mutex<Option<Arc<dyn Acknowledger>>>,
    /// Sent when an acknowledgement was lost.
    lost: watch::Sender<()>,
}

impl<B> FaultyAcknowledger<B> {
    fn connect(&self, acknowledger: Option<Arc<dyn Acknowledger>>) {
        *self.current.lock().unwrap_or_else(PoisonError::into_inner) = acknowledger;
    }
}

#[async_trait]
impl<B: Broker> Acknowledger for FaultyAcknowledger<B> {
    async fn acknowledge(&self, ids: &[MessageId]) -> Result<(), BrokerError> {
        if self.shared.strikes(self.shared.faults.lose_acknowledgement) {
            self.lost.send_replace(());
            return Ok(());
        }
        let current = self
            .current
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        match current {
            Some(current) => current.acknowledge(ids).await,
            None => Ok(()),
        }
    }
}

struct FaultyTail<B> {
    tail: Box<dyn Tail>,
    shared: Arc<Shared<B>>,
    /// Read and withheld until then; kept when the caller gives up meanwhile.
    withheld: Option<(Incoming, Instant)>,
}

#[async_trait]
impl<B: Broker> Tail for FaultyTail<B> {
    async fn next(&mut self) -> Result<Incoming, BrokerError> {
        let until = if let Some((_, until)) = &self.withheld {
            *until
        } else {
            let message = self.tail.next().await?;
            if !self.shared.strikes(self.shared.faults.delay_tail) {
                return Ok(message);
            }
            let part = self.shared.random(RngExt::random::<f64>);
            let until = Instant::now() + self.shared.faults.tail_delay.mul_f64(part);
            self.withheld = Some((message, until));
            until
        };
        tokio::time::sleep_until(until).await;
        match self.withheld.take() {
            Some((message, _)) => Ok(message),
            None => self.tail.next().await,
        }
    }
}

#[cfg(test)]
mod tests;
