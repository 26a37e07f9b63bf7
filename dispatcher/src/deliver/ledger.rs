//! What a Channel's events tell everyone concerned: what is settled, what is called back, how fast it goes.
//!
//! One tail for each Channel and process, which resumes from the last event seen.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use herald_crds::{Priority, names};
use jiff::Timestamp;
use tokio::sync::{Notify, watch};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::settled::Settled;
use crate::broker::{Broker, MessageId};
use crate::clock;
use crate::id::FullName;
use crate::id::{DeliveryId, NotificationId};
use crate::message::{self, Control, Event, Events, Tick};

/// How fast deliveries leave is measured over this long.
const DRAIN_WINDOW: Duration = Duration::from_millis(250);

/// Most pods of a channel that are known.
const PODS: usize = 1_000;

/// What the events of one Channel have told so far.
#[derive(Debug)]
pub struct Ledger {
    channel: FullName,
    state: Mutex<State>,
    /// The last event applied.
    position: watch::Sender<Option<MessageId>>,
    /// Rings whenever something that is out has been settled, or an order came.
    changed: Notify,
}

#[derive(Debug)]
struct State {
    settled: Settled,
    cancelled: HashMap<NotificationId, Instant>,
    prioritized: HashMap<NotificationId, (Priority, Instant)>,
    /// Suspended templates, few.
    suspended: Vec<FullName>,
    orders: u64,
    out: [Out; Priority::COUNT],
    /// Pods that have told how they are, by name.
    pods: HashMap<Arc<str>, Heard>,
}

/// A pod that was heard.
#[derive(Debug)]
struct Heard {
    tick: Tick,
    at: Instant,
    /// How many times it was heard.
    times: u32,
}

/// What was released of a class and is not settled yet.
#[derive(Debug)]
struct Out {
    ids: HashMap<DeliveryId, (u16, u16, Instant)>,
    settled: u64,
    since: Instant,
    /// Deliveries settled per second while something was out; `None`: not measured yet.
    drain: Option<f64>,
}

impl Ledger {
    /// The ledger of a Channel of which nothing is known yet.
    pub fn new(channel: FullName, horizon: Duration) -> Arc<Self> {
        let out = || Out {
            ids: HashMap::new(),
            settled: 0,
            since: Instant::now(),
            drain: None,
        };
        Arc::new(Self {
            channel,
            state: Mutex::new(State {
                settled: Settled::new(horizon),
                cancelled: HashMap::new(),
                prioritized: HashMap::new(),
                suspended: Vec::new(),
                orders: 0,
                out: [out(), out(), out(), out()],
                pods: HashMap::new(),
            }),
            position: watch::Sender::new(None),
            changed: Notify::new(),
        })
    }

    /// The Channel's full name.
    pub fn channel(&self) -> &FullName {
        &self.channel
    }

    /// Tails the Channel's events until `stop`. Whatever the broker does, it goes on after the last event seen.
    pub async fn follow(&self, broker: &dyn Broker, stop: CancellationToken) {
        stop.run_until_cancelled(async {
            let topic = names::events(&self.channel);
            loop {
                let after = *self.position.borrow();
                let error = match broker.tail(&topic, after).await {
                    Ok(mut tail) => loop {
                        match tail.next().await {
                            Ok(incoming) => {
                                // What cannot be read here the recorder keeps and tells.
                                if let Ok(events) = message::decode::<Events>(&incoming.payload) {
                                    self.apply(&events);
                                }
                                self.position.send_replace(Some(incoming.id));
                            }
                            Err(error) => break error,
                        }
                    },
                    Err(error) => error,
                };
                tracing::warn!(channel = &*self.channel, %error, "tailing the events failed, resuming");
                tokio::time::sleep(error.pause()).await;
            }
        })
        .await;
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Every section below leaves the state whole, so a panic elsewhere does not spoil it.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes note of events, from the tail or of one's own as soon as they have their receipt.
    pub fn apply(&self, events: &Events) {
        let now = clock::now();
        let mut state = self.lock();
        for event in &events.outcomes {
            state.note(event, now);
        }
        if let Some(tick) = &events.tick {
            state.hear(tick);
        }
        for control in &events.controls {
            let now = Instant::now();
            state.orders += 1;
            match control {
                Control::Cancel(notification) => {
                    state.cancelled.insert(*notification, now);
                }
                Control::Prioritize(notification, priority) => {
                    state.prioritized.insert(*notification, (*priority, now));
                }
                Control::Suspend(templates) => state.suspended.clone_from(templates),
            }
        }
        drop(state);
        self.changed.notify_waiters();
    }

    /// How far the events were read.
    pub fn position(&self) -> Option<MessageId> {
        *self.position.borrow()
    }

    /// What the pods have told that were heard within so long.
    pub fn pods(&self, within: Duration) -> Vec<Tick> {
        let state = self.lock();
        let heard = state.pods.values();
        heard
            .filter(|heard| heard.at.elapsed() < within)
            .map(|heard| heard.tick.clone())
            .collect()
    }

    /// Whether a pod was heard more than once, and within so long: then whoever reads the events counts it.
    pub fn hears(&self, pod: &str, within: Duration) -> bool {
        let state = self.lock();
        let heard = state.pods.get(pod);
        heard.is_some_and(|heard| heard.times >= 2 && heard.at.elapsed() < within)
    }

    /// Resolves when every pod that was heard within so long has read as far as `position`; at once if there is none.
    pub async fn read_by_pods(&self, position: Option<MessageId>, within: Duration) {
        loop {
            let changed = self.changed.notified();
            tokio::pin!(changed);
            changed.as_mut().enable();
            if self.pods(within).iter().all(|tick| tick.read >= position) {
                return;
            }
            // Or the last one that has not was not heard for too long.
            let _ = tokio::time::timeout(within / 3, changed).await;
        }
    }

    /// Resolves when the tail has come as far as `position`; at once for `None`.
    pub async fn caught_up(&self, position: Option<MessageId>) {
        let mut seen = self.position.subscribe();
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = seen.wait_for(|seen| *seen >= position).await;
    }

    /// Whether a copy with this round and attempt is settled.
    pub fn is_settled(&self, id: &DeliveryId, round: u16, attempt: u16) -> bool {
        self.lock().settled.is_settled(id, round, attempt)
    }

    /// No copy older than this is sent.
    pub fn horizon(&self) -> Duration {
        self.lock().settled.horizon()
    }

    /// Whether a notification was called back.
    pub fn is_cancelled(&self, notification: &NotificationId) -> bool {
        let state = self.lock();
        !state.cancelled.is_empty() && state.cancelled.contains_key(notification)
    }

    /// Whether a template of a namespace is suspended.
    pub fn is_suspended(&self, namespace: &str, template: &str) -> bool {
        let suspended = &self.lock().suspended;
        suspended
            .iter()
            .any(|name| name.split_once('/') == Some((namespace, template)))
    }

    /// The templates (`namespace/name`) that are suspended, in the order in which they were told.
    pub fn suspended(&self) -> Vec<FullName> {
        self.lock().suspended.clone()
    }

    /// The class an order has put a notification in; `None`: its own.
    pub fn class(&self, notification: &NotificationId) -> Option<Priority> {
        let state = self.lock();
        if state.prioritized.is_empty() {
            return None;
        }
        state
            .prioritized
            .get(notification)
            .map(|(priority, _)| *priority)
    }

    /// How many orders have come: a change means that what is held may have to be sorted again.
    pub fn orders(&self) -> u64 {
        self.lock().orders
    }

    /// Forgets orders older than the horizon, and what was released longer ago than that.
    pub fn tidy(&self) {
        let mut state = self.lock();
        let horizon = state.settled.horizon();
        state.cancelled.retain(|_, at| at.elapsed() < horizon);
        state
            .prioritized
            .retain(|_, (_, at)| at.elapsed() < horizon);
        for out in &mut state.out {
            out.ids.retain(|_, (_, _, at)| at.elapsed() < horizon);
        }
        state.pods.retain(|_, heard| heard.at.elapsed() < horizon);
    }

    /// Notes that deliveries `(id, round, attempt)` of a class are about to go out.
    pub fn released(
        &self,
        priority: Priority,
        deliveries: impl IntoIterator<Item = (DeliveryId, u16, u16)>,
    ) {
        let mut state = self.lock();
        let State { out, settled, .. } = &mut *state;
        let out = &mut out[priority.index()];
        if out.ids.is_empty() {
            out.since = Instant::now();
            out.settled = 0;
        }
        let now = Instant::now();
        for (id, round, attempt) in deliveries {
            if !settled.is_settled(&id, round, attempt) {
                out.ids.insert(id, (round, attempt, now));
            }
        }
    }

    /// Notes that deliveries did not go out after all.
    pub fn not_released(&self, priority: Priority, ids: &[DeliveryId]) {
        let mut state = self.lock();
        let out = &mut state.out[priority.index()];
        for id in ids {
            out.ids.remove(id);
        }
    }

    /// How many deliveries of a class are out, and how many per second have been settled lately (`None`: not known yet).
    pub fn pace(&self, priority: Priority) -> (usize, Option<f64>) {
        let mut state = self.lock();
        let out = &mut state.out[priority.index()];
        out.measure();
        (out.ids.len(), out.drain)
    }

    /// Resolves at the next change.
    pub fn changed(&self) -> tokio::sync::futures::Notified<'_> {
        self.changed.notified()
    }
}

impl State {
    fn hear(&mut self, tick: &Tick) {
        if tick.leaves {
            self.pods.remove(&tick.pod);
            return;
        }
        if self.pods.len() >= PODS && !self.pods.contains_key(&tick.pod) {
            return;
        }
        let times = self.pods.get(&tick.pod).map_or(0, |heard| heard.times);
        let heard = Heard {
            tick: tick.clone(),
            at: Instant::now(),
            times: times.saturating_add(1),
        };
        self.pods.insert(Arc::clone(&tick.pod), heard);
    }

    fn note(&mut self, event: &Event, now: Timestamp) {
        let Event {
            delivery,
            round,
            attempt,
            at,
            step,
            ..
        } = event;
        // What somebody has stamped ahead of time must not make anything be forgotten.
        let at = (*at).min(now);
        self.settled
            .note(*delivery, *round, *attempt, step.ends(), at);
        // Usually the class that it was released in; another if it was prioritized since.
        let released = self
            .out
            .iter_mut()
            .find(|out| out.ids.contains_key(delivery));
        if let Some(out) = released
            && out
                .ids
                .get(delivery)
                .is_some_and(|(r, a, _)| (*r, *a) <= (*round, *attempt) || step.ends())
        {
            out.ids.remove(delivery);
            out.settled += 1;
            out.measure();
        }
    }
}

impl Out {
    fn measure(&mut self) {
        if self.ids.is_empty() && self.settled == 0 {
            self.since = Instant::now();
            return;
        }
        let elapsed = self.since.elapsed();
        if elapsed < DRAIN_WINDOW && !(self.ids.is_empty() && self.settled > 0) {
            return;
        }
        let rate = self.settled as f64 / elapsed.as_secs_f64().max(1e-3);
        // What went out and was settled within one window says at least how fast it can go.
        self.drain = Some(match self.drain {
            Some(drain) if self.ids.is_empty() => drain.max(rate),
            Some(drain) => drain * 0.5 + rate * 0.5,
            None => rate,
        });
        self.settled = 0;
        self.since = Instant::now();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::deliver::load::Limit;
    use crate::message::Step;

    /// The events that tell of a delivery's end at some time; and the delivery.
    fn ended(number: u32, at: Timestamp) -> (DeliveryId, Events) {
        let notification = NotificationId::from_key("shop", "test", &number.to_string());
        let delivery = DeliveryId::new(&notification, "", "shop/mail", 0, "x", 0);
        let event = Event {
            delivery,
            notification,
            at,
            round: 0,
            attempt: 1,
            tried: 1,
            priority: Priority::Normal,
            step: Step::Cancelled,
        };
        let events = Events {
            outcomes: vec![event],
            ..Events::default()
        };
        (delivery, events)
    }

    #[test]
    fn an_event_that_is_stamped_ahead_of_time_makes_nothing_be_forgotten() {
        let horizon = Duration::from_secs(60);
        let ledger = Ledger::new(Arc::from("shop/mail"), horizon);
        let now = clock::now();
        let (first, events) = ended(1, now);
        ledger.apply(&events);
        let (second, events) = ended(2, now + horizon * 10);
        ledger.apply(&events);
        for delivery in [first, second] {
            assert!(ledger.is_settled(&delivery, 0, 1));
        }
    }

    fn told(pod: &str, read: u64, leaves: bool) -> Events {
        let tick = Tick {
            pod: Arc::from(pod),
            waiting: [0; Priority::COUNT],
            oldest: [None; Priority::COUNT],
            held_since: None,
            drain: [0.0; Priority::COUNT],
            expects: [0.0; Priority::COUNT],
            limit: Limit::Nothing,
            providers: Vec::new(),
            formats: vec![message::FORMAT_JSON],
            read: Some(MessageId::of_entry(read)),
            leaves,
        };
        Events {
            tick: Some(tick),
            ..Events::default()
        }
    }

    #[test]
    fn a_pod_counts_once_it_was_heard_twice_and_until_it_leaves_or_is_silent() {
        let long = Duration::from_secs(60);
        let ledger = Ledger::new(Arc::from("shop/mail"), long);
        ledger.apply(&told("a", 1, false));
        assert!(!ledger.hears("a", long));
        assert_eq!(
            ledger.pods(long).len(),
            1,
            "others make room for it at once"
        );
        ledger.apply(&told("a", 2, false));
        assert!(ledger.hears("a", long));
        assert!(!ledger.hears("a", Duration::ZERO));
        assert!(ledger.pods(Duration::ZERO).is_empty());
        ledger.apply(&told("a", 3, true));
        assert!(!ledger.hears("a", long));
        assert!(ledger.pods(long).is_empty());
    }

    #[tokio::test]
    async fn an_order_has_reached_the_pods_once_the_slowest_has_read_it() {
        let long = Duration::from_secs(60);
        let ledger = Ledger::new(Arc::from("shop/mail"), long);
        let order = Some(MessageId::of_entry(5));
        ledger.read_by_pods(order, long).await;
        ledger.apply(&told("a", 7, false));
        ledger.apply(&told("b", 4, false));
        let mut reached = std::pin::pin!(ledger.read_by_pods(order, long));
        assert!(futures::poll!(reached.as_mut()).is_pending());
        ledger.apply(&told("b", 5, false));
        reached.await;
    }
}
