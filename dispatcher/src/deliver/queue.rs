//! What a pod holds and has not begun: one queue for each class, and no delivery twice.

use std::collections::hash_map::Entry;
use std::collections::{HashMap, VecDeque};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use herald_crds::Priority;
use jiff::Timestamp;
use tokio::sync::{OwnedSemaphorePermit, mpsc};

use crate::broker::{Acknowledger, MessageId};
use crate::id::DeliveryId;
use crate::message::Delivery;

/// A message whose deliveries are not all settled yet. Acknowledged when the last one is.
pub struct Hold {
    message: MessageId,
    left: AtomicUsize,
    acknowledge: mpsc::UnboundedSender<Acknowledgement>,
    by: Arc<dyn Acknowledger>,
}

/// A message that may be acknowledged.
pub type Acknowledgement = (Arc<dyn Acknowledger>, MessageId);

impl Hold {
    /// Holds a message of so many deliveries.
    pub fn new(
        message: MessageId,
        deliveries: usize,
        by: Arc<dyn Acknowledger>,
        acknowledge: mpsc::UnboundedSender<Acknowledgement>,
    ) -> Arc<Self> {
        Arc::new(Self {
            message,
            left: AtomicUsize::new(deliveries),
            acknowledge,
            by,
        })
    }

    /// One of its deliveries is settled.
    pub fn settle(&self) {
        if self.left.fetch_sub(1, Ordering::AcqRel) == 1 {
            // Nobody listens any more only while shutting down: the message is then repeated and dropped as settled.
            let _ = self.acknowledge.send((Arc::clone(&self.by), self.message));
        }
    }
}

/// A delivery that a pod holds.
pub struct Held {
    /// The delivery; its class is the one that it is served in by now.
    pub delivery: Delivery,
    /// The class of the topic that it came from: whoever loses that topic's consumer lets go of it.
    pub topic: Priority,
    /// The message it came in.
    pub hold: Arc<Hold>,
    /// Its place among what may be held; given back when it begins.
    pub room: Option<OwnedSemaphorePermit>,
}

/// Tells copies apart from successors: id, round, attempt.
pub type Copy = (DeliveryId, u16, u16);

/// Which copy this is.
pub fn copy(delivery: &Delivery) -> Copy {
    (delivery.id, delivery.round, delivery.attempt)
}

/// What a pod holds, by class, in the order of arrival.
#[derive(Default)]
pub struct Queues {
    classes: [VecDeque<Held>; Priority::COUNT],
    /// Everything held or being sent, each with the messages that further copies came in.
    in_hand: HashMap<Copy, Vec<Arc<Hold>>>,
}

impl Queues {
    /// Takes a delivery in hand; `false` if this very copy is in hand already. Then the message of the second is settled
    /// with the first, not before: it may be the same message, and acknowledging it would lose the first in a crash.
    pub fn push(&mut self, held: Held) -> bool {
        match self.in_hand.entry(copy(&held.delivery)) {
            Entry::Occupied(mut entry) => {
                entry.get_mut().push(held.hold);
                false
            }
            Entry::Vacant(entry) => {
                entry.insert(Vec::new());
                self.classes[held.delivery.priority.index()].push_back(held);
                true
            }
        }
    }

    /// The same without looking whether it is in hand: what the tests take out to see that it matters.
    pub fn push_unchecked(&mut self, held: Held) {
        self.in_hand.entry(copy(&held.delivery)).or_default();
        self.classes[held.delivery.priority.index()].push_back(held);
    }

    /// The ages of the heads.
    pub fn heads(&self, now: Timestamp) -> [Option<Duration>; Priority::COUNT] {
        Priority::ALL.map(|class| {
            let head = self.classes[class.index()].front()?;
            Some(Duration::try_from(now.duration_since(head.delivery.ready_at)).unwrap_or_default())
        })
    }

    /// Takes the head of a class; it stays in hand until [`Self::release`].
    pub fn pop(&mut self, class: Priority) -> Option<Held> {
        self.classes[class.index()].pop_front()
    }

    /// It is no longer in hand; answers the messages that further copies came in, to be settled if it was.
    pub fn release(&mut self, copy: &Copy) -> Vec<Arc<Hold>> {
        self.in_hand.remove(copy).unwrap_or_default()
    }

    /// When the one was released that was released first of what waits; `None`: nothing waits.
    pub fn held_since(&self) -> Option<Timestamp> {
        let held = self.classes.iter().flatten();
        held.map(|held| held.delivery.released_at).min()
    }

    /// How many wait, by class.
    pub fn waiting(&self) -> [usize; Priority::COUNT] {
        Priority::ALL.map(|class| self.classes[class.index()].len())
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.classes.iter().all(VecDeque::is_empty)
    }

    /// Takes out what `verdict` has something to say about; it stays in hand.
    pub fn take<T>(&mut self, mut verdict: impl FnMut(&Held) -> Option<T>) -> Vec<(Held, T)> {
        let mut taken = Vec::new();
        for queue in &mut self.classes {
            let verdicts: Vec<Option<T>> = queue.iter().map(&mut verdict).collect();
            if verdicts.iter().all(Option::is_none) {
                continue;
            }
            let mut kept = VecDeque::with_capacity(queue.len());
            for (held, verdict) in queue.drain(..).zip(verdicts) {
                match verdict {
                    Some(verdict) => taken.push((held, verdict)),
                    None => kept.push_back(held),
                }
            }
            *queue = kept;
        }
        taken
    }

    /// Lets go of what came from a topic and is not begun, whatever class it is in by now: its messages come again.
    pub fn discard(&mut self, topic: Priority) {
        for (held, ()) in self.take(|held| (held.topic == topic).then_some(())) {
            self.release(&copy(&held.delivery));
        }
    }

    /// Puts what an order has given another class at the end of its new queue.
    pub fn sort_again(&mut self, class: impl Fn(&Delivery) -> Option<Priority>) {
        let moved =
            |held: &Held| class(&held.delivery).filter(|class| *class != held.delivery.priority);
        for (mut held, class) in self.take(moved) {
            held.delivery.priority = class;
            self.classes[class.index()].push_back(held);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::broker::BrokerError;
    use crate::provider::fixtures;
    use async_trait::async_trait;

    struct Nobody;

    #[async_trait]
    impl Acknowledger for Nobody {
        async fn acknowledge(&self, _ids: &[MessageId]) -> Result<(), BrokerError> {
            Ok(())
        }
    }

    fn held(who: &str) -> Held {
        let (acknowledge, _) = mpsc::unbounded_channel();
        Held {
            delivery: fixtures::delivery(who, fixtures::mail()),
            topic: Priority::Normal,
            hold: Hold::new(MessageId::of_entry(1), 1, Arc::new(Nobody), acknowledge),
            room: None,
        }
    }

    #[test]
    fn what_is_prioritized_is_let_go_of_with_the_topic_that_it_came_from() {
        let mut queues = Queues::default();
        assert!(queues.push(held("alice")));
        queues.sort_again(|_| Some(Priority::Critical));
        assert_eq!(queues.waiting(), [1, 0, 0, 0]);
        queues.discard(Priority::Critical);
        assert_eq!(queues.waiting(), [1, 0, 0, 0]);
        queues.discard(Priority::Normal);
        assert!(queues.is_empty());
        assert!(queues.push(held("alice")), "it comes again");
    }
}
