//! Where the recipients of a notification come from: pure.

use std::collections::{BTreeSet, HashSet};
use std::sync::Arc;

use herald_crds::{Address, Who};

use crate::fanout::definitions::Groups;
use crate::message::{Request, To};

/// One source of recipients. The list of a notification's sources is the same each time it is made, so that a cursor
/// into it means the same after a crash.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Source {
    /// These people of the directory.
    People(Vec<Arc<str>>),
    /// These addresses outside the directory.
    Addresses(Vec<Address>),
    /// Whoever is a member of this managed group (its name), in SQL.
    Managed(String),
    /// Everybody in the directory with these labels.
    Labels(Vec<(String, String)>),
}

/// The sources of a request whose groups are `groups`. Nobody is in a list twice. Addresses come
/// last: who is reached by name already is not reached again by the same address.
pub fn sources(request: &Request, groups: &Groups) -> Vec<Source> {
    let mut found = Found::default();
    for to in &request.recipients {
        match to {
            To::Recipient(id) => found.person(Arc::clone(id)),
            To::Address(address) => found.address((**address).clone()),
            To::Group(name) => found.group(name, groups),
        }
    }
    let Found {
        people,
        addresses,
        mut others,
        ..
    } = found;
    let mut sources = Vec::with_capacity(2 + others.len());
    if !people.is_empty() {
        sources.push(Source::People(people));
    }
    sources.append(&mut others);
    if !addresses.is_empty() {
        sources.push(Source::Addresses(addresses));
    }
    sources
}

#[derive(Default)]
struct Found {
    people: Vec<Arc<str>>,
    addresses: Vec<Address>,
    others: Vec<Source>,
    known: HashSet<Arc<str>>,
    known_addresses: HashSet<Address>,
    visited: BTreeSet<String>,
}

impl Found {
    fn person(&mut self, id: Arc<str>) {
        if self.known.insert(Arc::clone(&id)) {
            self.people.push(id);
        }
    }

    fn address(&mut self, address: Address) {
        if self.known_addresses.insert(address.clone()) {
            self.addresses.push(address);
        }
    }

    /// A group and all that is nested in it; a cycle, which validation refuses, is walked once.
    fn group(&mut self, full_name: &str, groups: &Groups) {
        let mut waiting = vec![full_name.to_owned()];
        while let Some(full_name) = waiting.pop() {
            let Some(spec) = groups.get(&full_name) else {
                continue;
            };
            if !self.visited.insert(full_name.clone()) {
                continue;
            }
            let (namespace, name) = full_name.split_once('/').unwrap_or(("", &full_name));
            for member in &spec.members {
                match member.who() {
                    Some(Who::Recipient(id)) => self.person(Arc::from(id)),
                    Some(Who::Address(address)) => self.address(address.clone()),
                    Some(Who::Group(nested)) => waiting.push(format!("{namespace}/{nested}")),
                    None => {}
                }
            }
            if let Some(selector) = &spec.selector {
                let labels = selector
                    .match_labels
                    .iter()
                    .map(|(key, value)| (key.clone(), value.clone()));
                self.others.push(Source::Labels(labels.collect()));
            }
            if spec.managed {
                self.others.push(Source::Managed(name.to_owned()));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;
    use crate::id::NotificationId;

    fn request(recipients: &[To]) -> Request {
        serde_json::from_value(json!({
            "id": NotificationId::random(), "namespace": "shop", "sender": "test", "body": "b", "template": "t",
            "definition": "sha256:0", "groups": null, "priority": "normal", "recipients": recipients,
            "parameters": {}, "accepted_at": 1_800_000_000_000_i64,
        }))
        .unwrap()
    }

    fn groups(value: serde_json::Value) -> Groups {
        serde_json::from_value(value).unwrap()
    }

    #[test]
    fn somebody_in_it_twice_or_through_two_groups_is_there_once() {
        let groups = groups(json!({
            "shop/vip": {"members": [{"recipient": "alice"}, {"group": "board"}, {"address": {"email": "a@b.example"}}]},
            "shop/board": {"members": [{"recipient": "bob"}, {"recipient": "alice"}, {"address": {"email": "a@b.example"}}]},
        }));
        let to = vec![
            To::Recipient(Arc::from("alice")),
            To::Group(Arc::from("shop/vip")),
            To::Group(Arc::from("shop/board")),
        ];
        let sources = sources(&request(&to), &groups);
        let address = Address {
            email: Some("a@b.example".to_owned()),
            ..Address::default()
        };
        assert_eq!(
            sources,
            [
                Source::People(vec![Arc::from("alice"), Arc::from("bob")]),
                Source::Addresses(vec![address])
            ]
        );
    }

    #[test]
    fn a_cycle_is_walked_once() {
        let groups = groups(json!({
            "shop/a": {"members": [{"group": "b"}]},
            "shop/b": {"members": [{"group": "a"}, {"recipient": "carol"}], "managed": true},
        }));
        let sources = sources(&request(&[To::Group(Arc::from("shop/a"))]), &groups);
        assert_eq!(
            sources,
            [
                Source::People(vec![Arc::from("carol")]),
                Source::Managed("b".to_owned())
            ]
        );
    }
}
