//! What changes with people, and how it is read: pure.

use std::collections::HashMap;
use std::sync::Arc;

use super::columns::{corrupt, json, timestamp};
use super::{Member, Recipient, RefusedDue, ScheduleRecord, StoreError};
use crate::id::{NotificationId, order};

/// A label with more people than this is looked for person by person, in the order of ids; one with fewer is sorted.
pub(super) const MANY: i64 = 10_000;

/// A recipient on its way into the directory.
struct Incoming {
    recipient: Recipient,
    ord: u32,
    /// Its JSON.
    json: String,
}

/// Recipients on their way in, each once and in the order of the table.
pub(super) struct Batch {
    incoming: Vec<Incoming>,
    /// For each recipient that was given, where it is in `incoming`; `None`: a later one with the same id took its place,
    /// or an earlier one has already been answered for it.
    answers: Vec<Option<usize>>,
}

impl Batch {
    pub(super) fn new(recipients: &[Recipient]) -> Self {
        let mut last: HashMap<&str, usize> = HashMap::with_capacity(recipients.len());
        for (index, recipient) in recipients.iter().enumerate() {
            last.insert(&recipient.id, index);
        }
        let mut ordered: Vec<(u32, usize)> =
            last.iter().map(|(id, index)| (order(id), *index)).collect();
        ordered.sort_unstable();
        let places: HashMap<&str, usize> = ordered
            .iter()
            .enumerate()
            .map(|(place, (_, index))| (recipients[*index].id.as_str(), place))
            .collect();
        let mut answered = vec![false; ordered.len()];
        let answers = recipients
            .iter()
            .map(|recipient| {
                let place = *places.get(recipient.id.as_str())?;
                (!std::mem::replace(&mut answered[place], true)).then_some(place)
            })
            .collect();
        let incoming = ordered
            .into_iter()
            .map(|(ord, index)| Incoming {
                recipient: recipients[index].clone(),
                ord,
                json: json(&recipients[index]),
            })
            .collect();
        Self { incoming, answers }
    }

    /// Place in the order of members and id of each, in that order.
    pub(super) fn asked(&self) -> Vec<(u32, &str)> {
        self.incoming
            .iter()
            .map(|new| (new.ord, new.recipient.id.as_str()))
            .collect()
    }

    /// What is in the directory already, out of what was found: place in [`asked`](Self::asked) and JSON.
    pub(super) fn before(&self, found: Vec<(i64, String)>) -> Before {
        let mut texts: Vec<Option<String>> = vec![None; self.incoming.len()];
        for (place, text) in found {
            if let Some(slot) = texts.get_mut(place as usize) {
                *slot = Some(text);
            }
        }
        Before(texts)
    }

    /// For each recipient that was given, whether it is new.
    pub(super) fn new_ones(&self, before: &Before) -> Vec<bool> {
        let is_new = |place: usize| before.0.get(place).is_some_and(Option::is_none);
        self.answers
            .iter()
            .map(|place| place.is_some_and(is_new))
            .collect()
    }
}

/// What of a batch is in the directory already, as JSON.
pub(super) struct Before(Vec<Option<String>>);

impl Before {
    /// Whether the only one is as expected. Written by one serialiser: recipients are the same if and only if their
    /// texts are.
    pub(super) fn is(&self, expected: Option<&str>) -> bool {
        self.0.len() == 1 && self.0[0].as_deref() == expected
    }

    /// Those that change, as they were.
    pub(super) fn changing(&self, batch: &Batch) -> Result<Vec<Option<Recipient>>, StoreError> {
        self.0
            .iter()
            .zip(&batch.incoming)
            .map(|(text, new)| match text {
                Some(text) if *text != new.json => parse(text).map(Some),
                _ => Ok(None),
            })
            .collect()
    }
}

/// What is written when recipients change: the difference alone.
#[derive(Default)]
pub(super) struct Changes<'a> {
    /// Place in the order of members, id, JSON.
    pub(super) recipients: Vec<(u32, &'a str, &'a str)>,
    /// Address, id.
    pub(super) new_addresses: Vec<(&'a str, &'a str)>,
    pub(super) old_addresses: Vec<(&'a str, &'a str)>,
    /// Key, value, place in the order of members, id.
    pub(super) new_labels: Vec<(&'a str, &'a str, u32, &'a str)>,
    pub(super) old_labels: Vec<(&'a str, &'a str, u32, &'a str)>,
}

impl<'a> Changes<'a> {
    /// From what was there and, of it, what changes.
    pub(super) fn new(batch: &'a Batch, before: &Before, old: &'a [Option<Recipient>]) -> Self {
        let mut changes = Self::default();
        for ((new, text), old) in batch.incoming.iter().zip(&before.0).zip(old) {
            if text.is_none() || old.is_some() {
                changes.add(new, old.as_ref());
            }
        }
        changes
    }

    fn add(&mut self, new: &'a Incoming, old: Option<&'a Recipient>) {
        let id = new.recipient.id.as_str();
        self.recipients.push((new.ord, id, &new.json));
        let has = |recipient: &Recipient, address: &str| addresses(recipient).any(|a| a == address);
        for address in addresses(&new.recipient) {
            if !old.is_some_and(|old| has(old, address)) {
                self.new_addresses.push((address, id));
            }
        }
        for (key, value) in &new.recipient.labels {
            if old.and_then(|old| old.labels.get(key)) != Some(value) {
                self.new_labels.push((key, value, new.ord, id));
            }
        }
        let Some(old) = old else { return };
        for address in addresses(old) {
            if !has(&new.recipient, address) {
                self.old_addresses.push((address, id));
            }
        }
        for (key, value) in &old.labels {
            if new.recipient.labels.get(key) != Some(value) {
                self.old_labels.push((key, value, new.ord, id));
            }
        }
    }
}

fn addresses(recipient: &Recipient) -> impl Iterator<Item = &str> {
    let addresses = &recipient.addresses;
    [&addresses.email, &addresses.phone, &addresses.webhook]
        .into_iter()
        .filter_map(|address| address.as_deref())
}

pub(super) fn parse(text: &str) -> Result<Recipient, StoreError> {
    serde_json::from_str(text).map_err(|error| corrupt("recipients.recipient", &error))
}

/// A member from its row: an id, and who that is, if the directory knows. Who cannot be read is as good as unknown.
pub(super) fn member((id, recipient): (String, Option<String>)) -> Member {
    let recipient = recipient.and_then(|text| {
        parse(&text)
            .inspect_err(|error| tracing::error!(%error, "a recipient cannot be read"))
            .ok()
    });
    Member {
        id: Arc::from(id),
        recipient: recipient.map(Arc::new),
    }
}

/// Ids with their place in the order of members, each once, as a statement's rows.
pub(super) fn members(ids: &[String]) -> String {
    let mut rows: Vec<(u32, &str)> = ids.iter().map(|id| (order(id), id.as_str())).collect();
    rows.sort_unstable();
    rows.dedup();
    json(&rows)
}

/// The first id that does not begin with `prefix`, in the order of UTF-8, which is that of the tables.
pub(super) fn beyond(prefix: &str) -> String {
    // U+10FFFF is a character of no id, and none comes after it.
    format!("{prefix}\u{10ffff}")
}

/// A row of `schedules`, as both databases keep it: `uid`, `created_at`, `last_due`, `last_fired`, `last_notification`,
/// `refused_due`, `refused_declared`, `refusal`, `missed`.
pub(super) type ScheduleRow = (
    Option<String>,
    i64,
    Option<i64>,
    Option<i64>,
    Option<Vec<u8>>,
    Option<i64>,
    Option<Vec<u8>>,
    Option<String>,
    i64,
);

pub(super) fn schedule_record(row: ScheduleRow) -> Result<ScheduleRecord, StoreError> {
    let (uid, created_at, last_due, last_fired, last_notification, due, declared, refusal, missed) =
        row;
    let at = |millis: Option<i64>, column| millis.map(|at| timestamp(at, column)).transpose();
    let last_notification = last_notification
        .map(|id| {
            NotificationId::from_slice(&id)
                .ok_or_else(|| corrupt("schedules.last_notification", &"not an id"))
        })
        .transpose()?;
    let due = due.filter(|due| last_fired.is_none_or(|fired| fired < *due));
    let refused = match (due, declared, refusal) {
        (Some(due), Some(declared), Some(message)) => Some(RefusedDue {
            due: timestamp(due, "schedules.refused_due")?,
            declared: declared
                .try_into()
                .map_err(|_| corrupt("schedules.refused_declared", &"not 32 bytes"))?,
            message,
        }),
        _ => None,
    };
    Ok(ScheduleRecord {
        uid,
        created_at: timestamp(created_at, "schedules.created_at")?,
        last_due: at(last_due, "schedules.last_due")?,
        last_fired: at(last_fired, "schedules.last_fired")?,
        last_notification,
        refused,
        missed: missed as u64,
    })
}

/// Out of what was found by id and by address, as JSON: people in the order of ids, each once.
pub(super) fn people(found: &[String]) -> Result<Vec<Recipient>, StoreError> {
    let mut people: Vec<Recipient> = found
        .iter()
        .map(|text| parse(text))
        .collect::<Result<_, _>>()?;
    people.sort_by(|a, b| a.id.cmp(&b.id));
    people.dedup_by(|a, b| a.id == b.id);
    Ok(people)
}
