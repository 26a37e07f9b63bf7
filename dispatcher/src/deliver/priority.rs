//! Which class is served next: strict priority with age-gated floors.
//!
//! Strict priority alone starves the lower classes; sharing by weight alone serves a low delivery while an older
//! critical one waits. So a lower class overtakes only when it is **due**: its head has waited longer than its
//! [`Floor::after`] *and* longer than the head of every higher class that waits. A due class earns [`Floor::share`] of a
//! dispatch with every dispatch, and overtakes with one whole dispatch earned.
//!
//! # Guarantees
//!
//! Among what one pod holds, with each class worked off in the order of readiness:
//!
//! - A delivery never begins while an older one of a higher class waits.
//! - A due class that may take a slot gets at least its share of the dispatches, less at most two in all.
//! - Critical, while it waits, gets at least `1 − Σ share` of the dispatches, less at most two for each floor in all.
//! - No class that has a floor starves: its head becomes the oldest one, then due, then earns its dispatch.
//! - The reserved slots are never taken by another class than critical.
//!
//! # Slots
//!
//! A slot is one send in flight. Three rules say who may take one:
//!
//! - Nobody when all are taken.
//! - Every class but critical together at most `slots − reserved`.
//! - Class k, while a higher class waits, only if it holds fewer than `max(1, share · slots)` *newly taken* slots.
//!
//! A slot is newly taken from when it is taken, if it was taken ahead of a higher class that waited, until it ends. What
//! was taken while nothing higher waited never counts: it did nobody wrong. So slow sends of a lower class, which
//! take few dispatches but hold their slots for long, cannot fill a pod by and by under the eyes of a higher class.

use std::time::Duration;

use herald_crds::Priority;

const CLASSES: usize = Priority::COUNT;

/// Millionths of a dispatch: credits are counted in whole ones, so that ten tenths are exactly one.
const DISPATCH: u32 = 1_000_000;

/// No class saves up for more: what it could not use while its slots were taken must not become a wave later.
const MOST_CREDIT: u32 = 2 * DISPATCH;

/// Rounding down must not lose a whole slot to a binary fraction (`0.29 * 100.0` is a little under 29).
const ROUNDING: f64 = 1e-9;

/// How a pod's slots and dispatches are shared among the classes.
#[derive(Debug, Clone, PartialEq)]
pub struct Policy {
    /// Share of the slots that only critical deliveries may take, 0 to 1. Rounded down to whole slots; at least one
    /// slot stays open to all.
    pub reserved_share: f64,
    /// What each class is due while higher ones wait, by [`Priority::index`]. `None`: it is served only when nothing
    /// higher waits, and may starve. The one of critical is never read: nothing is higher.
    pub floors: [Option<Floor>; CLASSES],
}

/// What a class is due while higher ones wait.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Floor {
    /// How long its head must have waited.
    pub after: Duration,
    /// Its share of the dispatches from then on, 0 to 1. The shares of all classes together must stay under 1: what
    /// is left is critical's.
    pub share: f64,
}

impl Default for Policy {
    /// A fifth of the slots for critical; high after 5 s 10 %, normal after 30 s 5 %, low after 60 s 5 %.
    fn default() -> Self {
        let floor = |seconds, share| {
            Some(Floor {
                after: Duration::from_secs(seconds),
                share,
            })
        };
        Self {
            reserved_share: 0.20,
            floors: [None, floor(5, 0.10), floor(30, 0.05), floor(60, 0.05)],
        }
    }
}

/// A floor as the scheduler counts with it.
#[derive(Debug, Clone, Copy)]
struct Due {
    after: Duration,
    /// Earned with each dispatch, in millionths of one.
    share: u32,
    /// The most newly taken slots.
    slots: usize,
}

/// Chooses which class is served next. Pure: it reads no clock and holds no delivery.
///
/// The order of calls for each delivery is [`next`](Self::next), [`begun`](Self::begun), [`ended`](Self::ended). A
/// [`Turn`] that is not taken (the delivery had expired, say) is simply dropped: it changed nothing.
#[derive(Debug)]
pub struct Scheduler {
    slots: usize,
    /// How many slots classes other than critical may hold together.
    open: usize,
    floors: [Option<Due>; CLASSES],
    /// What each class has earned and not used, in millionths of a dispatch.
    credit: [u32; CLASSES],
    held: [usize; CLASSES],
    newly_taken: [usize; CLASSES],
}

/// A choice of [`Scheduler::next`]: whose turn it is, as the queues were then.
#[derive(Debug, Clone, Copy)]
pub struct Turn {
    class: Priority,
    overtakes: bool,
    /// The credits as they are if this becomes a dispatch, before it is paid.
    credit: [u32; CLASSES],
}

impl Turn {
    /// The class whose head begins.
    pub const fn class(&self) -> Priority {
        self.class
    }

    /// Whether a higher class waits meanwhile (with a younger head, always).
    pub const fn overtakes(&self) -> bool {
        self.overtakes
    }
}

/// One slot that is taken. Give it back with [`Scheduler::ended`]: a slot that is dropped stays taken for ever.
#[derive(Debug)]
#[must_use = "a slot stays taken until it is given to `Scheduler::ended`"]
pub struct Slot {
    class: Priority,
    newly_taken: bool,
}

impl Slot {
    /// The class that holds it.
    pub const fn class(&self) -> Priority {
        self.class
    }
}

impl Scheduler {
    /// A scheduler for a pod that has `slots` sends in flight at most (0 is taken as 1), none of them taken yet.
    pub fn new(policy: &Policy, slots: usize) -> Self {
        let slots = slots.max(1);
        let part = |share: f64| (share.clamp(0.0, 1.0) * slots as f64 + ROUNDING) as usize;
        Self {
            slots,
            open: slots - part(policy.reserved_share).min(slots - 1),
            floors: policy.floors.map(|floor| {
                floor.map(|Floor { after, share }| Due {
                    after,
                    share: (share.clamp(0.0, 1.0) * f64::from(DISPATCH)).round() as u32,
                    slots: part(share).max(1),
                })
            }),
            credit: [0; CLASSES],
            held: [0; CLASSES],
            newly_taken: [0; CLASSES],
        }
    }

    /// Chooses whose head begins next.
    ///
    /// `heads[k]` is the age of the oldest waiting delivery of class `k` (0 = critical): now less the instant at which
    /// it was ready. `None` if nothing of that class waits. Constant time, no allocation.
    ///
    /// Returns `None` if nothing waits, or if nothing that waits may take a slot now.
    pub fn next(&self, heads: [Option<Duration>; CLASSES]) -> Option<Turn> {
        let first = *Priority::ALL
            .iter()
            .find(|class| heads[class.index()].is_some())?;
        let open_is_full = self.held() - self.held[0] >= self.open;
        if self.held() >= self.slots || (first != Priority::Critical && open_is_full) {
            return None;
        }

        let mut turn = Turn {
            class: first,
            overtakes: false,
            credit: [0; CLASSES],
        };
        let mut oldest_above = None;
        for class in Priority::ALL {
            let k = class.index();
            let (Some(age), floor) = (heads[k], self.floors[k]) else {
                continue;
            };
            let is_oldest = oldest_above.is_none_or(|above| age > above);
            oldest_above = oldest_above.max(Some(age));
            let Some(due) = floor.filter(|floor| is_oldest && age > floor.after) else {
                continue;
            };
            let credit = (self.credit[k] + due.share).min(MOST_CREDIT);
            turn.credit[k] = credit;

            let may_overtake = class > first
                && !open_is_full
                && self.newly_taken[k] < due.slots
                && credit >= DISPATCH;
            if may_overtake && (!turn.overtakes || credit > turn.credit[turn.class.index()]) {
                turn.class = class;
                turn.overtakes = true;
            }
        }
        Some(turn)
    }

    /// Counts a turn as a dispatch: its class pays for it, every due class earns its share, the slot is taken.
    pub fn begun(&mut self, turn: Turn) -> Slot {
        let k = turn.class.index();
        self.credit = turn.credit;
        // A turn that came by rank is paid too, so that a class earns nothing while it is served anyway.
        self.credit[k] = self.credit[k].saturating_sub(DISPATCH);
        self.held[k] += 1;
        self.newly_taken[k] += usize::from(turn.overtakes);
        Slot {
            class: turn.class,
            newly_taken: turn.overtakes,
        }
    }

    /// Takes a slot back, whatever became of the send.
    #[expect(
        clippy::needless_pass_by_value,
        reason = "a slot that was given back must not be there to be given back again"
    )]
    pub fn ended(&mut self, slot: Slot) {
        let Slot { class, newly_taken } = slot;
        self.held[class.index()] -= 1;
        self.newly_taken[class.index()] -= usize::from(newly_taken);
    }

    /// How many slots are taken.
    pub fn held(&self) -> usize {
        self.held.iter().sum()
    }
}

#[cfg(test)]
mod tests;
