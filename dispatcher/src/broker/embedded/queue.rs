//! What is known of a topic in memory: where its consumers are, what they hold, what comes next.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::{Mutex, MutexGuard, PoisonError};

use bytes::Bytes;
use herald_crds::names::{Topic, TopicKind};
use tokio::sync::watch;

use crate::broker::{Incoming, MessageId, Sharing};

/// Nothing is due, now or later.
const NEVER: i64 = i64::MAX;
/// Something may be due: ask the file.
const NOW: i64 = i64::MIN;

/// Number of no consumer: its holder is gone.
const NOBODY: u64 = 0;

/// The order of delivery: when due (milliseconds; 0: at once), then as published.
pub(super) type Place = (i64, u64);

/// A message as it is in the file.
pub(super) struct Row {
    pub id: u64,
    pub deliver_at: i64,
    pub payload: Bytes,
}

/// One topic.
pub(super) struct Queue {
    pub name: Topic,
    /// Its number in the file.
    pub number: i64,
    /// Acknowledged messages are kept for a while, for tails.
    pub retained: bool,
    /// Refused first when the file is full.
    pub requests: bool,
    /// Sent whenever a consumer or a tail that waits should look again.
    pub changed: watch::Sender<()>,
    /// One consumer reads the file at a time.
    pub turn: tokio::sync::Mutex<()>,
    state: Mutex<State>,
}

struct State {
    /// The file knows the topic.
    stored: bool,
    last: Option<u64>,
    /// Everything up to here was handed out, unless it was given back; then this is before it.
    cursor: Place,
    /// When there may be something after the cursor: milliseconds, [`NOW`] or [`NEVER`].
    next_due: i64,
    /// The topic has had delayed messages since it was opened.
    delayed: bool,
    held: BTreeMap<u64, Held>,
    /// Of a retained topic: everything up to here is acknowledged.
    position: u64,
    /// Of a retained topic: what is acknowledged beyond the position.
    acknowledged: BTreeSet<u64>,
    /// While a consumer reads the file: what was acknowledged meanwhile, which it may still see there.
    settled_meanwhile: Option<HashSet<u64>>,
    consumers: Vec<Member>,
    next_consumer: u64,
}

struct Held {
    deliver_at: i64,
    consumer: u64,
    /// Its acknowledgement is on its way: not given back unless that fails.
    leaving: bool,
}

struct Member {
    number: u64,
    sharing: Sharing,
    prefetch: usize,
    held: usize,
}

/// What a consumer is to do next.
pub(super) enum Next {
    /// Read the file.
    Read,
    /// Wait for a change, or for this instant in milliseconds.
    Until(i64),
    /// Wait for a change.
    Wait,
}

/// What the file says about a topic when it is opened.
#[derive(Default)]
pub(super) struct Known {
    pub stored: bool,
    pub last: Option<u64>,
    pub position: u64,
    pub delayed: bool,
}

impl Queue {
    pub(super) fn new(name: Topic, number: i64, known: &Known) -> Self {
        Self {
            number,
            retained: name.is_events(),
            requests: matches!(name.kind(), Some(TopicKind::Requests(..))),
            name,
            changed: watch::Sender::new(()),
            turn: tokio::sync::Mutex::new(()),
            state: Mutex::new(State {
                stored: known.stored,
                last: known.last,
                cursor: (0, known.position),
                next_due: NOW,
                delayed: known.delayed,
                held: BTreeMap::new(),
                position: known.position,
                acknowledged: BTreeSet::new(),
                settled_meanwhile: None,
                consumers: Vec::new(),
                next_consumer: NOBODY + 1,
            }),
        }
    }

    /// No code between lock and unlock can panic halfway through a change.
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Makes everybody who waits look again.
    pub(super) fn wake(&self) {
        self.changed.send_replace(());
    }

    pub(super) fn last(&self) -> Option<u64> {
        self.state().last
    }

    pub(super) fn delayed(&self) -> bool {
        self.state().delayed
    }

    pub(super) fn stored(&self) -> bool {
        self.state().stored
    }

    /// Messages are in the file, ids rising.
    pub(super) fn published(&self, messages: &[Row]) {
        let mut state = self.state();
        state.stored = true;
        for message in messages {
            state.last = state.last.max(Some(message.id));
            state.delayed |= message.deliver_at > 0;
            if (message.deliver_at, message.id) <= state.cursor {
                state.cursor = (message.deliver_at, message.id - 1);
            }
            let due = if message.deliver_at == 0 {
                NOW
            } else {
                message.deliver_at
            };
            state.next_due = state.next_due.min(due);
        }
        drop(state);
        self.wake();
    }

    /// A new consumer's number.
    pub(super) fn join(&self, sharing: Sharing, prefetch: usize) -> u64 {
        let mut state = self.state();
        let number = state.next_consumer;
        state.next_consumer += 1;
        state.consumers.push(Member {
            number,
            sharing,
            prefetch,
            held: 0,
        });
        number
    }

    /// A consumer is gone: what it held is to be handed out again.
    pub(super) fn leave(&self, consumer: u64) {
        let mut state = self.state();
        state.consumers.retain(|member| member.number != consumer);
        state.give_back(|held| held.consumer == consumer);
        drop(state);
        self.wake();
    }

    pub(super) fn next(&self, consumer: u64, now: i64) -> Next {
        let state = self.state();
        if state.room(consumer) == 0 {
            return Next::Wait;
        }
        match state.next_due {
            NEVER => Next::Wait,
            due if due <= now => Next::Read,
            due => Next::Until(due),
        }
    }

    /// Begins to read the file for a consumer; `None` if there is nothing to read or no room any more.
    /// To be called with [`Queue::turn`] held.
    pub(super) fn begin(&self, consumer: u64, now: i64) -> Option<Reading<'_>> {
        let mut state = self.state();
        let room = state.room(consumer);
        if room == 0 || state.next_due > now {
            return None;
        }
        state.next_due = NEVER;
        state.settled_meanwhile = Some(HashSet::new());
        Some(Reading {
            queue: self,
            consumer,
            after: state.cursor,
            delayed: state.delayed,
            room,
            finished: false,
        })
    }

    /// Notes that a consumer's messages are being acknowledged, and returns those that it does hold.
    pub(super) fn leaving(&self, consumer: u64, ids: &[MessageId]) -> Vec<u64> {
        let mut state = self.state();
        let mut leaving = Vec::with_capacity(ids.len());
        for id in ids.iter().map(|id| id.entry) {
            if let Some(held) = state.held.get_mut(&id)
                && held.consumer == consumer
                && !held.leaving
            {
                held.leaving = true;
                leaving.push(id);
            }
        }
        leaving
    }

    /// How far everything is acknowledged, or will be once what is leaving has left; `None`: no farther than stored.
    pub(super) fn advance(&self) -> Option<u64> {
        let state = self.state();
        let oldest = state.held.iter().find(|(_, held)| !held.leaving);
        let end = oldest
            .map_or(u64::MAX, |(id, _)| id - 1)
            .min(state.cursor.1);
        (end > state.position).then_some(end)
    }

    /// The position is in the file.
    pub(super) fn advanced(&self, position: u64) {
        let mut state = self.state();
        state.position = state.position.max(position);
        let beyond = state.position + 1;
        state.acknowledged = state.acknowledged.split_off(&beyond);
    }

    /// Up to where messages are acknowledged and not the newest: the newest stays, so that a tail can always reach
    /// what the topic's last id says.
    pub(super) fn expirable(&self) -> u64 {
        let state = self.state();
        state
            .position
            .min(state.last.unwrap_or(0).saturating_sub(1))
    }

    /// An acknowledgement has ended, well or not.
    pub(super) fn settled(&self, ids: &[u64], done: bool) {
        let mut state = self.state();
        let mut wake = false;
        for id in ids {
            // What the stored position covers is acknowledged, whatever became of this attempt.
            if done || (self.retained && *id <= state.position) {
                let Some(held) = state.held.remove(id) else {
                    continue;
                };
                if let Some(settled) = &mut state.settled_meanwhile {
                    settled.insert(*id);
                }
                if self.retained && *id > state.position {
                    state.acknowledged.insert(*id);
                }
                wake |= state.release(held.consumer);
            } else if let Some(held) = state.held.get_mut(id) {
                held.leaving = false;
                wake |= held.consumer == NOBODY;
            }
        }
        if !done {
            state.give_back(|held| held.consumer == NOBODY);
        }
        drop(state);
        if wake {
            self.wake();
        }
    }
}

impl State {
    /// How many more messages a consumer may hold; 0 for one that stands by.
    fn room(&self, consumer: u64) -> usize {
        self.consumers
            .iter()
            .enumerate()
            .find(|(_, member)| member.number == consumer)
            .map_or(0, |(index, member)| match member.sharing {
                Sharing::Failover if index > 0 => 0,
                Sharing::Failover | Sharing::KeyShared => {
                    member.prefetch.saturating_sub(member.held)
                }
            })
    }

    /// One message less for a consumer; true if it had no room before.
    fn release(&mut self, consumer: u64) -> bool {
        let member = self
            .consumers
            .iter_mut()
            .find(|member| member.number == consumer);
        member.is_some_and(|member| {
            let full = member.held >= member.prefetch;
            member.held = member.held.saturating_sub(1);
            full
        })
    }

    /// Moves the cursor before what matches, so that it is handed out again. What is leaving stays held, by nobody.
    fn give_back(&mut self, matches: impl Fn(&Held) -> bool) {
        let mut cursor = self.cursor;
        self.held.retain(|id, held| {
            if !matches(held) {
                return true;
            }
            held.consumer = NOBODY;
            if !held.leaving {
                cursor = cursor.min((held.deliver_at, id - 1));
            }
            held.leaving
        });
        if cursor != self.cursor {
            self.cursor = cursor;
            self.next_due = NOW;
        }
    }
}

/// A consumer reads the file. Dropped unfinished, it is as if it had not begun.
pub(super) struct Reading<'a> {
    queue: &'a Queue,
    consumer: u64,
    /// Read from after here.
    pub after: Place,
    /// Some may be delayed.
    pub delayed: bool,
    /// Most messages to read.
    pub room: usize,
    finished: bool,
}

impl Reading<'_> {
    /// Takes what was read into the consumer's hands and returns what is new. `next_due`: when there is more, in
    /// milliseconds; `None` if there is none.
    pub(super) fn finish(
        mut self,
        rows: Vec<Row>,
        more: bool,
        next_due: Option<i64>,
    ) -> Vec<Incoming> {
        self.finished = true;
        let mut guard = self.queue.state();
        let state = &mut *guard;
        let settled = state.settled_meanwhile.take().unwrap_or_default();
        if let Some(last) = rows.last()
            && state.cursor == self.after
        {
            state.cursor = (last.deliver_at, last.id);
        }
        let mut taken = Vec::with_capacity(rows.len());
        for row in rows {
            let known = settled.contains(&row.id)
                || state.acknowledged.contains(&row.id)
                || state.held.contains_key(&row.id);
            if known {
                continue;
            }
            state.held.insert(
                row.id,
                Held {
                    deliver_at: row.deliver_at,
                    consumer: self.consumer,
                    leaving: false,
                },
            );
            taken.push(Incoming {
                id: MessageId::of_entry(row.id),
                payload: row.payload,
            });
        }
        if let Some(member) = state
            .consumers
            .iter_mut()
            .find(|m| m.number == self.consumer)
        {
            member.held += taken.len();
        }
        let due = if more { NOW } else { next_due.unwrap_or(NEVER) };
        state.next_due = state.next_due.min(due);
        let others = state.consumers.len() > 1 && state.next_due != NEVER;
        drop(guard);
        if others {
            self.queue.wake();
        }
        taken
    }
}

impl Drop for Reading<'_> {
    fn drop(&mut self) {
        if self.finished {
            return;
        }
        let mut state = self.queue.state();
        state.settled_meanwhile = None;
        state.next_due = NOW;
        drop(state);
        self.queue.wake();
    }
}
