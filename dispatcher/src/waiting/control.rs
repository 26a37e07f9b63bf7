//! What waits and what is out is called back or given another class: first the rows, then an entry in the events of
//! the channels concerned, for the seconds that are already out.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use herald_crds::{Priority, names};

use super::Lanes;
use crate::broker::{Broker, BrokerError, Outgoing};
use crate::clock;
use crate::deliver::ledger::Ledger;
use crate::id::{FullName, NotificationId};
use crate::message::{self, Control, Events};
use crate::store::{Recalled, Store, StoreError};

/// How long an answer waits for the pods.
const PATIENCE: Duration = Duration::from_secs(5);

/// A pod that was not heard for so long is not waited for.
const LIVELY: Duration = Duration::from_secs(3);

/// Orders in one message to a channel: some 50 KiB, where a broker takes a few MiB.
const ORDERS: usize = 1_000;

/// An order that was not carried out, or not to the end: repeating it is safe.
#[derive(Debug, thiserror::Error)]
pub enum ControlError {
    /// The rows could not be changed.
    #[error(transparent)]
    Store(StoreError),
    /// What waits was changed, what is out was not told.
    #[error(transparent)]
    Broker(BrokerError),
}

/// What an order has reached.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reached {
    /// In the waiting room and outside.
    pub recalled: Recalled,
    /// Not every pod has read it yet.
    pub pending: bool,
}

/// Finds a channel's ledger.
pub type Ledgers = Box<dyn Fn(&str) -> Option<Arc<Ledger>> + Send + Sync>;

/// Gives orders.
pub struct Orders {
    /// What moves.
    pub broker: Arc<dyn Broker>,
    /// What waits.
    pub store: Arc<dyn Store>,
    /// Who has rows that are due.
    pub lanes: Arc<Lanes>,
    /// Finds a channel's ledger, by which it is known that an order was read.
    pub ledger: Ledgers,
}

impl Orders {
    /// What has not gone out of a notification does not go out.
    pub async fn cancel(&self, notification: &NotificationId) -> Result<Reached, ControlError> {
        let recalled = self
            .store
            .cancel(notification, clock::now())
            .await
            .map_err(ControlError::Store)?;
        self.tell(recalled, Control::Cancel).await
    }

    /// The same for everything that waits of a template.
    pub async fn cancel_template(
        &self,
        namespace: &str,
        template: &str,
    ) -> Result<Reached, ControlError> {
        let now = clock::now();
        let recalled = self
            .store
            .cancel_template(namespace, template, now)
            .await
            .map_err(ControlError::Store)?;
        self.tell(recalled, Control::Cancel).await
    }

    /// What has not gone out of a notification goes out in another class.
    pub async fn prioritize(
        &self,
        notification: &NotificationId,
        priority: Priority,
    ) -> Result<Reached, ControlError> {
        let now = clock::now();
        let recalled = self
            .store
            .prioritize(notification, priority, now)
            .await
            .map_err(ControlError::Store)?;
        let reached = self
            .tell(recalled, |notification| {
                Control::Prioritize(notification, priority)
            })
            .await;
        self.lanes.ready_everywhere();
        reached
    }

    async fn tell(
        &self,
        recalled: Recalled,
        control: impl Fn(NotificationId) -> Control,
    ) -> Result<Reached, ControlError> {
        let mut orders: BTreeMap<FullName, BTreeSet<NotificationId>> = BTreeMap::new();
        for (channel, notification) in &recalled.out_by_channel {
            orders
                .entry(Arc::clone(channel))
                .or_default()
                .insert(*notification);
        }
        let mut read = Vec::new();
        for (channel, notifications) in orders {
            let topic = names::events(&channel);
            let controls = notifications.into_iter().map(&control).collect();
            self.broker
                .publish(&topic, messages(controls))
                .await
                .map_err(ControlError::Broker)?;
            let position = self
                .broker
                .last_message_id(&topic)
                .await
                .map_err(ControlError::Broker)?;
            if let Some(ledger) = (self.ledger)(&channel) {
                read.push((ledger, position));
            }
        }
        let all_read =
            futures::future::join_all(read.iter().map(|(ledger, position)| async move {
                ledger.caught_up(*position).await;
                ledger.read_by_pods(*position, LIVELY).await;
            }));
        let pending = tokio::time::timeout(PATIENCE, all_read).await.is_err();
        Ok(Reached { recalled, pending })
    }
}

/// Orders as messages to a channel, no more than [`ORDERS`] in each.
fn messages(controls: Vec<Control>) -> Vec<Outgoing> {
    let mut messages = Vec::with_capacity(controls.len().div_ceil(ORDERS));
    let mut controls = controls.into_iter();
    while controls.len() > 0 {
        let events = Events {
            controls: controls.by_ref().take(ORDERS).collect(),
            ..Events::default()
        };
        messages.push(Outgoing::at_once(message::encode(&events)));
    }
    messages
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn halting_what_is_many_makes_no_message_that_a_broker_refuses() {
        let halted: Vec<_> = (0..=2 * ORDERS).map(|_| NotificationId::random()).collect();
        let messages = messages(halted.iter().copied().map(Control::Cancel).collect());
        assert_eq!(messages.len(), 3);
        let mut told = Vec::new();
        for message in messages {
            assert!(
                message.payload.len() < 128 * 1024,
                "{} bytes",
                message.payload.len()
            );
            let events: Events = message::decode(&message.payload).unwrap();
            told.extend(events.controls);
        }
        let told: Vec<_> = told
            .into_iter()
            .map(|control| match control {
                Control::Cancel(notification) => notification,
                other => panic!("{other:?}"),
            })
            .collect();
        assert_eq!(told, halted);
    }
}
