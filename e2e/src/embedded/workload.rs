//! Who there is, what is sent to whom, and so what has to arrive where.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::ops::Range;
use std::sync::Arc;

use anyhow::ensure;
use rand::rngs::StdRng;
use rand::{RngExt as _, SeedableRng as _};
use serde_json::{Value, json};

/// The addresses that `groups.yaml` names.
const ON_CALL: &str = "oncall@herald.example";

/// Notifications of how many are sent later: `sendAt` so many seconds after the workload was made.
const AHEAD: Range<i64> = 3..12;

/// How much there is of everything.
#[derive(Debug, Clone, Copy)]
pub struct Size {
    /// People of the directory.
    pub people: usize,
    /// Notifications.
    pub notifications: usize,
    /// Notifications, of those, that go to groups.
    pub to_groups: usize,
    /// How often the server is killed.
    pub kills: usize,
    /// Clients that send at a time.
    pub clients: usize,
}

impl Size {
    /// The size that shows what Herald is for.
    pub const FULL: Self = Self {
        people: 10_000,
        notifications: 40_000,
        to_groups: 8,
        kills: 10,
        clients: 64,
    };

    /// The size for every run of the tests, unoptimized.
    pub const SMALL: Self = Self {
        people: 500,
        notifications: 1_500,
        to_groups: 3,
        kills: 3,
        clients: 16,
    };
}

/// Somebody of the directory.
#[derive(Debug)]
struct Person {
    id: String,
    email: Arc<str>,
    locale: Option<&'static str>,
}

/// The two channels.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Via {
    /// Mail.
    Mail,
    /// The webhook.
    Hook,
}

/// A delivery that has to arrive.
#[derive(Debug, Clone)]
pub struct Expected {
    /// Over which channel.
    pub via: Via,
    /// Of mails: the address. Of events, which all go to one URL: the person.
    pub to: Arc<str>,
    /// Of mails: the subject, if it is in another language than the template's.
    pub subject: Option<String>,
}

/// A notification to be sent.
#[derive(Debug)]
pub struct Planned {
    /// Its Idempotency-Key.
    pub key: String,
    /// The request's body.
    pub body: String,
    /// Its class.
    pub priority: &'static str,
    /// What has to arrive.
    pub expected: Vec<Expected>,
    /// The subject of its mails in the template's own language.
    pub subject: String,
}

/// Everybody, and everything to be sent.
#[derive(Debug)]
pub struct Workload {
    people: Vec<Person>,
    /// In the order of sending.
    pub notifications: Vec<Planned>,
}

impl Workload {
    /// The same for the same seed, except for what is sent later.
    pub fn new(size: Size, seed: u64) -> anyhow::Result<Self> {
        ensure!(size.people > 100, "there must be more than 100 people");
        let mut random = StdRng::seed_from_u64(seed);
        let people: Vec<Person> = (0..size.people)
            .map(|i| Person {
                id: format!("p{i:05}"),
                email: Arc::from(format!("p{i:05}@people.example")),
                locale: [Some("ko"), Some("de"), None, None, None][i % 5],
            })
            .collect();
        let mut workload = Self {
            people,
            notifications: Vec::with_capacity(size.notifications),
        };
        let every = size.notifications / size.to_groups.max(1);
        for number in 0..size.notifications {
            let planned = if number % every == every / 2 {
                workload.to_group(number, &mut random)
            } else {
                workload.to_one(number, &mut random)
            };
            workload.notifications.push(planned);
        }
        Ok(workload)
    }

    /// Deliveries that have to arrive.
    pub fn deliveries(&self) -> usize {
        self.notifications.iter().map(|n| n.expected.len()).sum()
    }

    /// A line of NDJSON for each of those who are members of the group that is filled over HTTP, or for each other.
    pub fn import(&self, readers: bool) -> String {
        let mut lines = String::new();
        for (i, person) in self.people.iter().enumerate() {
            if is_reader(i) != readers {
                continue;
            }
            let mut line = json!({"id": person.id, "addresses": {"email": &*person.email}});
            if let Some(locale) = person.locale {
                line["locale"] = json!(locale);
            }
            if is_vip(i) {
                line["labels"] = json!({"tier": "vip"});
            }
            // Writing to a string cannot fail.
            let _ = writeln!(lines, "{line}");
        }
        lines
    }

    fn mail(&self, person: usize, subject: Option<String>) -> Expected {
        Expected {
            via: Via::Mail,
            to: Arc::clone(&self.people[person].email),
            subject,
        }
    }

    fn hook(&self, person: usize) -> Expected {
        Expected {
            via: Via::Hook,
            to: Arc::from(&*self.people[person].id),
            subject: None,
        }
    }

    fn to_one(&self, number: usize, random: &mut StdRng) -> Planned {
        let person = random.random_range(0..self.people.len());
        let to = &self.people[person];
        let recipients = json!([{"recipient": to.id}]);
        let parameters = json!({"number": number});
        let key = format!("e2e-{number}-{:08x}", random.random::<u32>());
        let planned = |priority, template, recipients, parameters, expected, subject| Planned {
            key: key.clone(),
            body: json!({"template": template, "recipients": recipients, "parameters": parameters})
                .to_string(),
            priority,
            expected,
            subject,
        };
        match random.random_range(0..100) {
            0..15 => {
                let address: Arc<str> = Arc::from(format!("guest{number}@guests.example"));
                let recipients = json!([{"address": {"email": &*address}}]);
                let parameters =
                    json!({"code": format!("{:06}", random.random_range(0..1_000_000))});
                let expected = Expected {
                    via: Via::Mail,
                    to: address,
                    subject: None,
                };
                let subject = "Your code".to_owned();
                planned(
                    "critical",
                    "code",
                    recipients,
                    parameters,
                    vec![expected],
                    subject,
                )
            }
            15..35 => {
                let expected = vec![self.hook(person)];
                planned(
                    "high",
                    "alert",
                    recipients,
                    parameters,
                    expected,
                    String::new(),
                )
            }
            35..80 => {
                let translated = to.locale.map(|locale| match locale {
                    "ko" => format!("주문 {number} 상품이 발송되었습니다"),
                    _ => format!("Ihre Bestellung {number} ist unterwegs: schöne Grüße"),
                });
                let expected = vec![self.mail(person, translated)];
                let subject = format!("Order {number} is on its way");
                let mut order =
                    planned("normal", "order", recipients, parameters, expected, subject);
                if random.random_range(0..20) == 0 {
                    let at = jiff::Timestamp::now().as_second() + random.random_range(AHEAD);
                    order.body = with(&order.body, "sendAt", &json!(at_second(at)));
                }
                order
            }
            80..90 => {
                let expected = vec![self.mail(person, None), self.hook(person)];
                let subject = format!("Receipt {number}");
                planned(
                    "normal", "receipt", recipients, parameters, expected, subject,
                )
            }
            _ => {
                let expected = vec![self.mail(person, None)];
                let subject = format!("News {number}");
                planned("low", "news", recipients, parameters, expected, subject)
            }
        }
    }

    fn to_group(&self, number: usize, random: &mut StdRng) -> Planned {
        let group = ["insiders", "readers", "everybody-close"][random.random_range(0..3)];
        let insiders = group != "readers";
        let readers = group != "insiders";
        let mut to: BTreeSet<Arc<str>> = BTreeSet::new();
        for (i, person) in self.people.iter().enumerate() {
            let is_insider = is_vip(i) || i == 1 || i == 2;
            if (insiders && is_insider) || (readers && is_reader(i)) {
                to.insert(Arc::clone(&person.email));
            }
        }
        if insiders {
            to.insert(Arc::from(ON_CALL));
        }
        let expected = to.into_iter().map(|to| Expected {
            via: Via::Mail,
            to,
            subject: None,
        });
        Planned {
            key: format!("e2e-{number}-group"),
            body: json!({
                "template": "news",
                "recipients": [{"group": group}],
                "parameters": {"number": number},
            })
            .to_string(),
            priority: "low",
            expected: expected.collect(),
            subject: format!("News {number}"),
        }
    }
}

fn is_vip(i: usize) -> bool {
    i.is_multiple_of(50)
}

fn is_reader(i: usize) -> bool {
    i % 20 == 10
}

fn at_second(second: i64) -> String {
    jiff::Timestamp::from_second(second).map_or_else(|_| String::new(), |at| at.to_string())
}

fn with(body: &str, member: &str, value: &Value) -> String {
    let mut body: Value = serde_json::from_str(body).unwrap_or_default();
    body[member] = value.clone();
    body.to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_seed_makes_the_same_keys_and_expectations_and_all_classes_are_there() {
        let make = || Workload::new(Size::SMALL, 7).unwrap();
        let (one, other) = (make(), make());
        let keys = |w: &Workload| {
            w.notifications
                .iter()
                .map(|n| n.key.clone())
                .collect::<Vec<_>>()
        };
        assert_eq!(keys(&one), keys(&other));
        assert_eq!(one.deliveries(), other.deliveries());
        for class in ["critical", "high", "normal", "low"] {
            assert!(one.notifications.iter().any(|n| n.priority == class));
        }
        let distinct: BTreeSet<String> = keys(&one).into_iter().collect();
        assert_eq!(distinct.len(), Size::SMALL.notifications);
    }

    #[test]
    fn whoever_is_in_two_groups_is_expected_once() {
        let workload = Workload::new(Size::FULL, 1).unwrap();
        for planned in workload
            .notifications
            .iter()
            .filter(|n| n.expected.len() > 2)
        {
            let to: BTreeSet<_> = planned.expected.iter().map(|e| (e.via, &e.to)).collect();
            assert_eq!(to.len(), planned.expected.len());
        }
    }
}
