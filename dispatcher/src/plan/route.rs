//! Over which channels somebody is reached: pure.

use std::sync::Arc;

use herald_crds::{Address, Channel, Medium, Strategy};

use crate::catalog::{FullName, Snapshot};
use crate::id::{DeliveryId, NotificationId};
use crate::message::{Request, Suppression};
use crate::store::NewDelivery;

/// The channels a notification may take, as they are declared now, in order of preference.
#[derive(Debug)]
pub struct Routes {
    /// Each with its name. Channels that are not declared any more are left out.
    pub channels: Vec<(FullName, Arc<Channel>)>,
    /// How they are chosen.
    pub strategy: Strategy,
    /// Nobody can opt out of it.
    pub mandatory: bool,
}

impl Routes {
    /// Of a request with this definition.
    pub fn new(
        request: &Request,
        template: &herald_crds::NotificationTemplateSpec,
        declared: &Snapshot,
    ) -> Self {
        let named = |name: FullName| {
            let channel = declared.channels.get(&name)?;
            Some((name, Arc::clone(channel)))
        };
        let channels = if request.channels.is_empty() {
            let routes = template.routing.channels.iter();
            routes
                .filter_map(|route| {
                    let namespace = route.namespace.as_deref().unwrap_or(&request.namespace);
                    named(Arc::from(format!("{namespace}/{}", route.name)))
                })
                .collect()
        } else {
            request
                .channels
                .iter()
                .filter_map(|name| named(Arc::clone(name)))
                .collect()
        };
        Self {
            channels,
            strategy: template.routing.strategy(),
            mandatory: template.mandatory,
        }
    }

    /// The endpoints that somebody with `address` could be reached at, in order of preference.
    pub fn endpoints<'a>(
        &'a self,
        address: &'a Address,
    ) -> impl Iterator<Item = (&'a FullName, Medium, &'a str)> {
        self.channels.iter().filter_map(move |(name, channel)| {
            Some((name, channel.spec.medium, channel.spec.endpoint(address)?))
        })
    }

    /// The rows of somebody. `is_suppressed` says whether an endpoint is on the suppression list.
    pub fn rows(
        &self,
        notification: &NotificationId,
        person: &Person<'_>,
        due: jiff::Timestamp,
        is_suppressed: impl Fn(Medium, &str) -> bool,
        rows: &mut Vec<NewDelivery>,
    ) {
        let nobody = |reason| row(notification, person, &Arc::from(""), "", due, Some(reason));
        let Some(address) = person.address else {
            // Only a channel with an endpoint of its own reaches somebody who is not in the directory.
            rows.push(nobody(Suppression::UnknownRecipient));
            return;
        };
        let before = rows.len();
        let mut refused = None;
        for (channel, medium, endpoint) in self.endpoints(address) {
            if !self.mandatory && is_suppressed(medium, endpoint) {
                let reason = Some(Suppression::OptedOut);
                let refusal = row(notification, person, channel, endpoint, due, reason);
                match self.strategy {
                    Strategy::All => rows.push(refusal),
                    Strategy::FirstAvailable => {
                        refused.get_or_insert(refusal);
                    }
                }
                continue;
            }
            rows.push(row(notification, person, channel, endpoint, due, None));
            if self.strategy == Strategy::FirstAvailable {
                return;
            }
        }
        if rows.len() == before {
            rows.push(refused.unwrap_or_else(|| nobody(Suppression::NoAddress)));
        }
    }
}

/// Somebody to be reached.
#[derive(Debug, Clone, Copy)]
pub struct Person<'a> {
    /// The id in the directory; empty for a bare address.
    pub id: &'a Arc<str>,
    /// The addresses; `None`: not in the directory.
    pub address: Option<&'a Address>,
    /// The locale; empty: the template's default.
    pub locale: &'a str,
}

fn row(
    notification: &NotificationId,
    person: &Person<'_>,
    channel: &FullName,
    endpoint: &str,
    due: jiff::Timestamp,
    suppressed: Option<Suppression>,
) -> NewDelivery {
    NewDelivery {
        id: DeliveryId::new(notification, person.id, channel, 0, endpoint, 0),
        recipient: Arc::clone(person.id),
        channel: Arc::clone(channel),
        endpoint: Arc::from(endpoint),
        locale: Arc::from(person.locale),
        due,
        suppressed,
    }
}
