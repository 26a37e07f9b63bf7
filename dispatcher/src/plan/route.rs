//! Over which channels somebody is reached: pure.

use std::sync::Arc;

use herald_crds::{Address, Channel, Kind, Medium, Strategy};

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
        let channel = |name: FullName| {
            let channel = declared.channels.get(&name)?;
            Some((name, Arc::clone(channel)))
        };
        let names = Self::names(request, template).into_iter();
        Self {
            channels: names.filter_map(channel).collect(),
            strategy: template.routing.strategy(),
            mandatory: template.mandatory,
        }
    }

    /// Whether it can be told which of its channels are declared.
    pub fn are_told(
        request: &Request,
        template: &herald_crds::NotificationTemplateSpec,
        declared: &Snapshot,
    ) -> bool {
        let untold = |name: &FullName| {
            !declared.channels.contains_key(name) && !declared.tells(Kind::Channel, name)
        };
        !Self::names(request, template).iter().any(untold)
    }

    /// The channels a notification was to take when it was accepted.
    fn names(request: &Request, template: &herald_crds::NotificationTemplateSpec) -> Vec<FullName> {
        if !request.channels.is_empty() {
            return request.channels.clone();
        }
        let routes = template.routing.channels.iter();
        let name = |route: &herald_crds::Route| {
            let namespace = route.namespace.as_deref().unwrap_or(&request.namespace);
            Arc::from(format!("{namespace}/{}", route.name))
        };
        routes.map(name).collect()
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

    /// The rows of somebody. `suppressed` says whether an endpoint is on the suppression list, and why.
    pub fn rows(
        &self,
        notification: &NotificationId,
        person: &Person<'_>,
        due: jiff::Timestamp,
        suppressed: impl Fn(Medium, &str) -> Option<Suppression>,
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
            let reason = if self.mandatory {
                None
            } else {
                suppressed(medium, endpoint)
            };
            if reason.is_some() {
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

#[cfg(test)]
mod tests {
    use herald_crds::ChannelSpec;
    use jiff::Timestamp;

    use super::*;

    fn routes(strategy: Strategy, mandatory: bool) -> Routes {
        let channel = |name: &str, medium| {
            let channel = Channel::new(name, ChannelSpec::new(medium, Vec::new()));
            (Arc::from(format!("shop/{name}")), Arc::new(channel))
        };
        Routes {
            channels: vec![channel("mail", Medium::Email), channel("text", Medium::Sms)],
            strategy,
            mandatory,
        }
    }

    /// The channels and reasons of the rows of somebody.
    fn rows(
        routes: &Routes,
        address: Option<&Address>,
        suppressed: &[&str],
    ) -> Vec<(String, Option<Suppression>)> {
        let id = Arc::from("alice");
        let person = Person {
            id: &id,
            address,
            locale: "",
        };
        let mut rows = Vec::new();
        let suppressed = |_, endpoint: &str| {
            let is_gone = endpoint.starts_with("gone@");
            let reason = if is_gone {
                Suppression::AddressGone
            } else {
                Suppression::OptedOut
            };
            suppressed.contains(&endpoint).then_some(reason)
        };
        routes.rows(
            &NotificationId::random(),
            &person,
            Timestamp::UNIX_EPOCH,
            suppressed,
            &mut rows,
        );
        rows.into_iter()
            .map(|row| (row.channel.to_string(), row.suppressed))
            .collect()
    }

    fn both() -> Address {
        let text = |text: &str| Some(text.to_owned());
        Address {
            email: text("a@b.example"),
            phone: text("+4915112345678"),
            ..Address::default()
        }
    }

    #[test]
    fn all_takes_every_channel_that_reaches_somebody_and_first_available_the_first() {
        let mail_and_text = [
            ("shop/mail".to_owned(), None),
            ("shop/text".to_owned(), None),
        ];
        assert_eq!(
            rows(&routes(Strategy::All, false), Some(&both()), &[]),
            mail_and_text
        );
        assert_eq!(
            rows(&routes(Strategy::FirstAvailable, false), Some(&both()), &[]),
            mail_and_text[..1]
        );
    }

    #[test]
    fn a_suppressed_address_is_passed_over_and_said_unless_the_template_is_mandatory() {
        let opted_out = |channel: &str| (channel.to_owned(), Some(Suppression::OptedOut));
        let text = ("shop/text".to_owned(), None);
        let suppressed = ["a@b.example"];
        let found = rows(&routes(Strategy::All, false), Some(&both()), &suppressed);
        assert_eq!(found, [opted_out("shop/mail"), text.clone()]);
        assert_eq!(
            rows(
                &routes(Strategy::FirstAvailable, false),
                Some(&both()),
                &suppressed
            ),
            [text]
        );
        let only_mail = Address {
            phone: None,
            ..both()
        };
        let found = rows(
            &routes(Strategy::FirstAvailable, false),
            Some(&only_mail),
            &suppressed,
        );
        assert_eq!(found, [opted_out("shop/mail")]);
        let gone = Address {
            email: Some("gone@b.example".to_owned()),
            ..only_mail.clone()
        };
        let found = rows(
            &routes(Strategy::All, false),
            Some(&gone),
            &["gone@b.example"],
        );
        let reason = Some(Suppression::AddressGone);
        assert_eq!(found, [("shop/mail".to_owned(), reason)]);
        let found = rows(&routes(Strategy::All, true), Some(&only_mail), &suppressed);
        assert_eq!(found, [("shop/mail".to_owned(), None)]);
    }

    #[test]
    fn somebody_without_an_address_or_not_in_the_directory_is_written_down_with_the_reason() {
        let routes = routes(Strategy::All, false);
        let nowhere = |reason| [(String::new(), Some(reason))];
        assert_eq!(
            rows(&routes, Some(&Address::default()), &[]),
            nowhere(Suppression::NoAddress)
        );
        assert_eq!(
            rows(&routes, None, &[]),
            nowhere(Suppression::UnknownRecipient)
        );
    }
}
