//! Taking turns: which notifications a chunk is of, and how much of each, so that neither another team's thousand
//! notifications nor one's own million stands before a message to one.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::store::{Places, Turn};

/// Namespaces of which a channel's class remembers whose turn it was. Beyond, those of the last chunk are remembered.
const PLACES: usize = 1_024;

/// Of a notification that gives fewer rows to a chunk it is not worth knowing how far it has come.
const WORTH: usize = 20;

/// For so long looking goes on where it ended. Then it begins anew: what came back and is due for longer waits no longer.
const KEPT: Duration = Duration::from_secs(5);

impl Places {
    /// These, unless they were kept for long enough.
    pub(super) fn current(&self) -> Self {
        let is_current = self.since.is_some_and(|since| since.elapsed() < KEPT);
        if is_current {
            self.clone()
        } else {
            Self::default()
        }
    }

    /// Where to go on with a notification; `None`: from the start.
    pub(super) fn of(&self, head: &Head) -> Option<&(i64, Vec<u8>)> {
        self.rows.get(&(head.namespace, head.notification))
    }

    /// Notes what came last of a notification that may have more.
    pub(super) fn note(&mut self, head: &Head, due: i64, id: &[u8]) {
        let of = (head.namespace, head.notification);
        if head.taken < WORTH && !self.rows.contains_key(&of) {
            return;
        }
        if self.rows.len() >= PLACES {
            self.rows.clear();
        }
        self.since.get_or_insert_with(Instant::now);
        self.rows.insert(of, (due, id.to_owned()));
    }

    /// A notification has no more, or none after its place.
    pub(super) fn forget(&mut self, head: &Head) {
        self.rows.remove(&(head.namespace, head.notification));
    }
}

/// A notification that has rows to release.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Head {
    pub(super) namespace: i64,
    pub(super) notification: i64,
    /// Rows of it in the chunk so far.
    pub(super) taken: usize,
    /// It may have more.
    pub(super) open: bool,
}

/// How much of each head comes next into `room`: as much of each namespace, and within it as much of each notification;
/// the first ones get what does not divide. Heads that are not open get nothing.
fn shares(heads: &[Head], room: usize) -> Vec<usize> {
    // Open heads by namespace, namespaces in the order in which they come first.
    let mut namespaces: Vec<(i64, Vec<usize>)> = Vec::new();
    let mut places = BTreeMap::new();
    for (index, head) in heads.iter().enumerate().filter(|(_, head)| head.open) {
        let place = *places.entry(head.namespace).or_insert(namespaces.len());
        if place == namespaces.len() {
            namespaces.push((head.namespace, Vec::new()));
        }
        namespaces[place].1.push(index);
    }
    let mut shares = vec![0; heads.len()];
    for (place, (_, of)) in namespaces.iter().enumerate() {
        let share = part(room, namespaces.len(), place);
        for (place, index) in of.iter().enumerate() {
            shares[*index] = part(share, of.len(), place);
        }
    }
    shares
}

/// What to take next into `room`, by where to begin and how much: those of whom as much is taken from the same place
/// share a statement. The heads are closed until they turn out to have as much.
pub(super) fn alike(heads: &mut [Head], room: usize) -> BTreeMap<(usize, usize), Vec<usize>> {
    let shares = shares(heads, room);
    let mut alike: BTreeMap<(usize, usize), Vec<usize>> = BTreeMap::new();
    for (index, share) in shares
        .into_iter()
        .enumerate()
        .filter(|(_, share)| *share > 0)
    {
        let head = &mut heads[index];
        head.open = false;
        alike.entry((head.taken, share)).or_default().push(index);
    }
    alike
}

/// The part that one of `n` gets.
fn part(room: usize, n: usize, place: usize) -> usize {
    room / n + usize::from(place < room % n)
}

/// Whose turn it was after a chunk of these heads.
pub(super) fn after(turn: &Turn, heads: &[Head]) -> Turn {
    let served = || heads.iter().filter(|head| head.taken > 0);
    let mut after = turn.clone();
    if turn.notifications.len() + heads.len() > PLACES {
        let is_served = |namespace: &i64| served().any(|head| head.namespace == *namespace);
        after
            .notifications
            .retain(|namespace, _| is_served(namespace));
    }
    for head in served() {
        after.namespace = head.namespace;
        after
            .notifications
            .insert(head.namespace, head.notification);
    }
    after
}

#[cfg(test)]
mod tests {
    use super::*;

    fn heads(of: &[(i64, i64)]) -> Vec<Head> {
        of.iter()
            .map(|&(namespace, notification)| Head {
                namespace,
                notification,
                taken: 0,
                open: true,
            })
            .collect()
    }

    #[test]
    fn a_namespace_with_many_notifications_gets_no_more_than_one_with_a_single_one() {
        let mut heads = heads(&[(1, 1), (2, 7), (1, 2), (1, 3)]);
        assert_eq!(shares(&heads, 12), [2, 6, 2, 2]);
        assert_eq!(shares(&heads, 5), [1, 2, 1, 1]);
        assert_eq!(shares(&heads, 1), [1, 0, 0, 0]);
        heads[0].open = false;
        assert_eq!(shares(&heads, 7), [0, 4, 2, 1]);
        assert_eq!(shares(&[], 7), [0; 0]);
    }

    #[test]
    fn a_large_notification_has_a_place_until_it_has_no_more() {
        let mut heads = heads(&[(1, 5), (1, 6)]);
        heads[0].taken = WORTH;
        heads[1].taken = WORTH - 1;
        let mut places = Places::default();
        for head in &heads {
            places.note(head, 7, b"id");
        }
        assert_eq!(places.of(&heads[0]), Some(&(7, b"id".to_vec())));
        assert_eq!(places.of(&heads[1]), None);
        heads[0].taken = 1;
        places.note(&heads[0], 8, b"later");
        assert_eq!(
            places.current().of(&heads[0]),
            Some(&(8, b"later".to_vec()))
        );
        places.forget(&heads[0]);
        assert_eq!(places.current().of(&heads[0]), None);
    }

    #[test]
    fn the_next_turn_begins_after_the_last_one_who_got_something() {
        let mut heads = heads(&[(1, 5), (2, 7), (1, 6)]);
        heads[0].taken = 1;
        heads[1].taken = 3;
        let turn = after(&Turn::default(), &heads);
        assert_eq!(turn.namespace, 2);
        assert_eq!(turn.notifications, BTreeMap::from([(1, 5), (2, 7)]));
    }
}
