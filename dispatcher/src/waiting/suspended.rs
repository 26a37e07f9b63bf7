//! Tells those who deliver for a channel which templates are suspended: what is already out of them comes back, and waits.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use herald_crds::names;

use crate::broker::{Broker, BrokerError, Outgoing};
use crate::catalog::{Catalog, Snapshot, Untold};
use crate::deliver::ledger::Ledger;
use crate::id::FullName;
use crate::message::{self, Control, Events};
use crate::metrics::Metrics;

/// Keeps the events of one channel in line with what is suspended.
pub struct Suspended {
    /// What moves.
    pub broker: Arc<dyn Broker>,
    /// What is declared.
    pub catalog: Arc<dyn Catalog>,
    /// The channel's ledger, which knows what was told last.
    pub ledger: Arc<Ledger>,
    /// What is counted.
    pub metrics: Arc<Metrics>,
}

impl Suspended {
    /// Tells how it is now, whatever was told before; tries until it is told. Cancel safe.
    ///
    /// Who delivers reads as far as this before anything is sent that arrives after it.
    pub async fn tell(&self) {
        while let Err(error) = self.try_to_tell().await {
            self.wait_after(&error).await;
        }
    }

    /// Tells of each change, for ever.
    pub async fn follow(&self) {
        let mut changes = self.catalog.changes();
        loop {
            changes.mark_unchanged();
            while let Err(error) = self.try_to_tell_what_changed().await {
                self.wait_after(&error).await;
            }
            if changes.changed().await.is_err() {
                std::future::pending::<()>().await;
            }
        }
    }

    async fn try_to_tell(&self) -> Result<(), BrokerError> {
        let topic = names::events(self.ledger.channel());
        let last = self.broker.last_message_id(&topic).await?;
        let declared = self.catalog.current();
        if declared.untold != Untold::default() {
            // Where nothing can be told, what was told last stays.
            self.ledger.caught_up(last).await;
        }
        let suspended = suspended(&declared, &self.ledger.suspended());
        // Of a channel that is new nothing is out.
        if suspended.is_empty() && last.is_none() {
            return Ok(());
        }
        self.publish(suspended).await
    }

    async fn try_to_tell_what_changed(&self) -> Result<(), BrokerError> {
        // What was told last must be known to be compared.
        let topic = names::events(self.ledger.channel());
        let position = self.broker.last_message_id(&topic).await?;
        self.ledger.caught_up(position).await;
        let told = self.ledger.suspended();
        let suspended = suspended(&self.catalog.current(), &told);
        if told == suspended {
            return Ok(());
        }
        self.publish(suspended).await
    }

    async fn publish(&self, suspended: Vec<FullName>) -> Result<(), BrokerError> {
        let events = Events {
            controls: vec![Control::Suspend(suspended)],
            ..Events::default()
        };
        let message = Outgoing::at_once(message::encode(&events));
        let topic = names::events(self.ledger.channel());
        self.broker.publish(&topic, vec![message]).await
    }

    async fn wait_after(&self, error: &BrokerError) {
        self.metrics.broker_failed("tell_suspended");
        let channel = &**self.ledger.channel();
        tracing::warn!(channel, %error, "suspended templates could not be told, trying again");
        tokio::time::sleep(Duration::from_millis(500)).await;
    }
}

/// The suspended templates, by full name, in order; those that `told` says stay where it cannot be told.
fn suspended(declared: &Snapshot, told: &[FullName]) -> Vec<FullName> {
    let known = declared.templates.keys().chain(told);
    let suspended: BTreeSet<_> = known.filter(|name| declared.is_suspended(name)).collect();
    suspended.into_iter().map(Arc::clone).collect()
}
