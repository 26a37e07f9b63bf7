//! Taking turns: which notifications a chunk is of, and how much of each, so that neither another team's thousand
//! notifications nor one's own million stands before a message to one.

use std::collections::BTreeMap;

use crate::store::Turn;

/// Namespaces of which a channel's class remembers whose turn it was. Beyond, those of the last chunk are remembered.
const PLACES: usize = 1_024;

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
    fn the_next_turn_begins_after_the_last_one_who_got_something() {
        let mut heads = heads(&[(1, 5), (2, 7), (1, 6)]);
        heads[0].taken = 1;
        heads[1].taken = 3;
        let turn = after(&Turn::default(), &heads);
        assert_eq!(turn.namespace, 2);
        assert_eq!(turn.notifications, BTreeMap::from([(1, 5), (2, 7)]));
    }
}
