//! Requests that were seen before: what makes a repeat get the first one's answer.

use std::collections::{HashMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use super::Accepted;
use crate::id::NotificationId;

/// The keyed requests of the last while: bounded in number and in time.
#[derive(Debug)]
pub(super) struct Repeats {
    inner: Mutex<Inner>,
    most: usize,
    kept: Duration,
}

#[derive(Debug, Default)]
struct Inner {
    entries: HashMap<NotificationId, Entry>,
    /// Accepted ones, oldest first, with the time from which they may be forgotten.
    order: VecDeque<(Instant, NotificationId)>,
}

#[derive(Debug)]
struct Entry {
    body: Arc<str>,
    /// `None`: has no answer yet.
    accepted: Option<Accepted>,
}

/// What is known of a request.
#[derive(Debug)]
pub(super) enum Seen {
    /// Nothing: it is the first. Until the ticket is dropped the others wait.
    New(Ticket),
    /// The first has no answer yet.
    InFlight,
    /// The first was accepted.
    Accepted(Accepted),
    /// The first had another body.
    Other,
}

impl Repeats {
    /// Remembers at most `most` answers, each for at most `kept`.
    pub(super) fn new(most: usize, kept: Duration) -> Arc<Self> {
        Arc::new(Self {
            inner: Mutex::default(),
            most,
            kept,
        })
    }

    /// Notes that a request comes, unless it came before.
    pub(super) fn begin(
        self: &Arc<Self>,
        id: NotificationId,
        body: &Arc<str>,
        now: Instant,
    ) -> Seen {
        let mut inner = self.lock();
        inner.forget(self.most, now);
        match inner.entries.get(&id) {
            Some(entry) if entry.body != *body => Seen::Other,
            Some(Entry {
                accepted: Some(accepted),
                ..
            }) => Seen::Accepted(accepted.clone()),
            Some(_) => Seen::InFlight,
            None => {
                let entry = Entry {
                    body: Arc::clone(body),
                    accepted: None,
                };
                inner.entries.insert(id, entry);
                Seen::New(Ticket {
                    repeats: Arc::clone(self),
                    id,
                    since: now,
                })
            }
        }
    }

    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn forget(&mut self, most: usize, now: Instant) {
        while let Some((until, id)) = self.order.front()
            && (*until <= now || self.order.len() >= most)
        {
            self.entries.remove(id);
            self.order.pop_front();
        }
    }
}

/// Held while the first request of its key has no answer. Dropped without one, the key is free again.
#[derive(Debug)]
pub(super) struct Ticket {
    repeats: Arc<Repeats>,
    id: NotificationId,
    /// When the request came.
    since: Instant,
}

impl Ticket {
    /// From now on repeats get this answer.
    pub(super) fn accepted(self, accepted: Accepted) {
        let mut inner = self.repeats.lock();
        if let Some(entry) = inner.entries.get_mut(&self.id) {
            entry.accepted = Some(accepted);
            inner
                .order
                .push_back((self.since + self.repeats.kept, self.id));
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let mut inner = self.repeats.lock();
        if let Some(entry) = inner.entries.get(&self.id)
            && entry.accepted.is_none()
        {
            inner.entries.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use herald_crds::Priority;
    use jiff::Timestamp;

    use super::*;

    const DAY: Duration = Duration::from_secs(86_400);

    fn accepted(id: NotificationId) -> Accepted {
        Accepted {
            id,
            accepted_at: Timestamp::UNIX_EPOCH,
            priority: Priority::Normal,
            replayed: false,
        }
    }

    fn accept(repeats: &Arc<Repeats>, key: &str, body: &str, now: Instant) -> NotificationId {
        let id = NotificationId::from_key("shop", "orders", key);
        match repeats.begin(id, &body.into(), now) {
            Seen::New(ticket) => ticket.accepted(accepted(id)),
            seen => panic!("{key} is not new: {seen:?}"),
        }
        id
    }

    #[test]
    fn a_repeat_gets_the_first_answer_and_another_body_does_not() {
        let now = Instant::now();
        let repeats = Repeats::new(10, DAY);
        let id = accept(&repeats, "1", "a", now);
        assert!(
            matches!(repeats.begin(id, &"a".into(), now), Seen::Accepted(answer) if answer == accepted(id))
        );
        assert!(matches!(repeats.begin(id, &"b".into(), now), Seen::Other));
    }

    #[test]
    fn while_the_first_is_under_way_repeats_wait_and_its_failure_frees_the_key() {
        let now = Instant::now();
        let repeats = Repeats::new(10, DAY);
        let id = NotificationId::from_key("shop", "orders", "1");
        let Seen::New(ticket) = repeats.begin(id, &"a".into(), now) else {
            panic!("the key is new")
        };
        assert!(matches!(
            repeats.begin(id, &"a".into(), now),
            Seen::InFlight
        ));
        drop(ticket);
        assert!(matches!(repeats.begin(id, &"b".into(), now), Seen::New(_)));
    }

    #[test]
    fn the_oldest_answers_are_forgotten_by_number_and_by_age() {
        let now = Instant::now();
        let repeats = Repeats::new(2, DAY);
        let ids = ["1", "2", "3"].map(|key| accept(&repeats, key, "a", now));
        assert!(matches!(
            repeats.begin(ids[2], &"a".into(), now),
            Seen::Accepted(_)
        ));
        assert!(matches!(
            repeats.begin(ids[0], &"a".into(), now),
            Seen::New(_)
        ));
        assert!(matches!(
            repeats.begin(ids[2], &"a".into(), now + DAY),
            Seen::New(_)
        ));
    }
}
