//! One pod, simulated: does a delivery ever begin while an older one of a higher class waits?
//!
//! A **probe** is a pair of deliveries: the higher class is ready first, the lower one up to 200 ms later. It is an
//! **inversion** if the lower one began first. The simulator knows nothing of the scheduler's reasons: it notes when each
//! delivery was ready and in which order they began, and compares afterwards.

#![expect(
    clippy::expect_used,
    reason = "the simulator serves tests alone: a panic is their failure"
)]

use std::cmp::Reverse;
use std::collections::{BinaryHeap, VecDeque};
use std::time::Duration;

use herald_crds::Priority;
use herald_dispatcher::deliver::priority::{Policy, Scheduler, Slot};

const SLOTS: usize = 16;

/// Microseconds a send takes on average; so a pod does 800 a second.
const SEND: u64 = 20_000;

/// The most by which the lower delivery of a probe is ready later, in microseconds.
const APART: u64 = 200_000;

type Heads = [Option<Duration>; Priority::COUNT];

/// A way to choose what is served next.
trait Order {
    type Slot;
    fn begin(&mut self, heads: Heads) -> Option<(Priority, Self::Slot)>;
    fn end(&mut self, slot: Self::Slot);
}

impl Order for Scheduler {
    type Slot = Slot;

    fn begin(&mut self, heads: Heads) -> Option<(Priority, Slot)> {
        let turn = self.next(heads)?;
        Some((turn.class(), self.begun(turn)))
    }

    fn end(&mut self, slot: Slot) {
        self.ended(slot);
    }
}

/// The same scheduler with the age gate taken out: who has waited long enough is shown to it as older than everybody
/// above.
struct Ungated {
    policy: Policy,
    scheduler: Scheduler,
}

impl Order for Ungated {
    type Slot = Slot;

    fn begin(&mut self, heads: Heads) -> Option<(Priority, Slot)> {
        let shown = std::array::from_fn(|k| {
            let age = heads[k]?;
            let is_due = self.policy.floors[k].is_some_and(|floor| age > floor.after);
            Some(Duration::from_secs(if is_due {
                1_000_000 + k as u64
            } else {
                0
            }))
        });
        self.scheduler.begin(shown)
    }

    fn end(&mut self, slot: Slot) {
        self.scheduler.ended(slot);
    }
}

/// What is usual elsewhere: 8:4:2:1 in turns, smoothly, among the classes that have anything.
#[derive(Default)]
struct RoundRobin {
    held: usize,
    current: [i64; Priority::COUNT],
}

impl Order for RoundRobin {
    type Slot = ();

    fn begin(&mut self, heads: Heads) -> Option<(Priority, ())> {
        const WEIGHTS: [i64; Priority::COUNT] = [8, 4, 2, 1];
        if self.held == SLOTS {
            return None;
        }
        let waiting = || (0..Priority::COUNT).filter(|k| heads[*k].is_some());
        for k in waiting() {
            self.current[k] += WEIGHTS[k];
        }
        let chosen = waiting().max_by_key(|k| (self.current[*k], Reverse(*k)))?;
        self.current[chosen] -= waiting().map(|k| WEIGHTS[k]).sum::<i64>();
        self.held += 1;
        Some((Priority::ALL[chosen], ()))
    }

    fn end(&mut self, (): ()) {
        self.held -= 1;
    }
}

/// A stretch of time with one kind of load.
struct Phase {
    seconds: u64,
    /// Mean microseconds from arrival to arrival.
    between: u64,
    /// How many arrivals of a hundred are a critical delivery by itself; the others are probes.
    alone_percent: u64,
    /// The pairs (higher, lower) that come, all equally often.
    pairs: &'static [(usize, usize)],
    /// Whether the provider hangs: what begins ends only after the phase.
    hangs: bool,
}

const ALL_PAIRS: &[(usize, usize)] = &[(0, 1), (0, 2), (0, 3), (1, 2), (1, 3), (2, 3)];

/// 1.5 times what the pod can do, half of it low.
const OVERLOAD_FROM_LOW: Phase = Phase {
    seconds: 60,
    between: 1_666,
    alone_percent: 0,
    pairs: &[(0, 3), (1, 3), (2, 3)],
    hangs: false,
};

/// Critical alone is 1.6 times what the pod can do, and of the others there is so little that a floor alone would serve it
/// at once.
const OVERLOAD_FROM_CRITICAL: Phase = Phase {
    seconds: 60,
    between: 780,
    alone_percent: 90,
    pairs: &[(0, 1), (0, 2), (0, 3)],
    hangs: false,
};

/// Half of what the pod can do comes while the provider hangs: every class waits from the same moment on, so that a
/// lower one is past its [`after`](herald_dispatcher::deliver::priority::Floor::after) while a higher one is older still.
const OUTAGE: Phase = Phase {
    seconds: 70,
    between: 5_000,
    alone_percent: 0,
    pairs: ALL_PAIRS,
    hangs: true,
};

/// A third of what the pod can do: what has piled up is worked off, so that every class becomes due.
const RECOVERY: Phase = Phase {
    seconds: 150,
    between: 7_500,
    alone_percent: 0,
    pairs: ALL_PAIRS,
    hangs: false,
};

const DAY: &[Phase] = &[
    OVERLOAD_FROM_LOW,
    OVERLOAD_FROM_CRITICAL,
    RECOVERY,
    OUTAGE,
    RECOVERY,
];

/// `SplitMix64` (Steele, Lea, Flood 2014): the same numbers on every machine, and quick without optimization.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let z = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        let z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    fn below(&mut self, bound: u64) -> u64 {
        self.next() % bound
    }
}

#[derive(Clone, Copy)]
struct Delivery {
    class: usize,
    ready: u64,
    /// When it began, and as the how-manieth. `u64::MAX`: it has not begun.
    begun: u64,
    rank: u64,
}

impl Delivery {
    fn new(class: usize, ready: u64) -> Self {
        Self {
            class,
            ready,
            begun: u64::MAX,
            rank: u64::MAX,
        }
    }
}

struct Simulation<O: Order> {
    order: O,
    random: Random,
    now: u64,
    deliveries: Vec<Delivery>,
    /// The higher delivery of each probe; the lower one is next to it.
    probes: Vec<usize>,
    waiting: [VecDeque<usize>; Priority::COUNT],
    ends: BinaryHeap<Reverse<(u64, usize)>>,
    slots: Vec<Option<O::Slot>>,
    free: Vec<usize>,
    begun: u64,
    /// Until when the provider hangs.
    hangs_until: u64,
}

#[derive(Debug)]
struct Findings {
    probes: usize,
    /// Probes whose higher delivery still waited when the lower one was ready: the ones that put the order to the test.
    contested: usize,
    inversions: usize,
    /// How often a class was served before a younger delivery of a higher class that waited with it.
    overtakings: usize,
}

impl<O: Order> Simulation<O> {
    fn new(order: O) -> Self {
        Self {
            order,
            random: Random(7),
            now: 0,
            deliveries: Vec::new(),
            probes: Vec::new(),
            waiting: Default::default(),
            ends: BinaryHeap::new(),
            slots: (0..SLOTS).map(|_| None).collect(),
            free: (0..SLOTS).collect(),
            begun: 0,
            hangs_until: 0,
        }
    }

    /// Lets `probes` probes happen, one phase after the other and round again, then works off what is left.
    fn run(&mut self, phases: &[Phase], probes: usize) {
        // The lower deliveries of probes whose time has not come yet.
        let mut later: BinaryHeap<Reverse<(u64, usize)>> = BinaryHeap::new();
        let mut next = 0;
        let mut phase_ends = 0;
        let mut phases = phases.iter().cycle();
        let mut phase = &RECOVERY;
        while self.probes.len() < probes {
            if next >= phase_ends {
                phase = phases.next().expect("there is a phase");
                phase_ends = next + phase.seconds * 1_000_000;
                if phase.hangs {
                    self.hangs_until = phase_ends;
                }
            }
            while let Some(Reverse((ready, index))) = later.peek().copied()
                && ready < next
            {
                later.pop();
                self.arrive(index);
            }
            let index = self.deliveries.len();
            if self.random.below(100) < phase.alone_percent {
                self.deliveries.push(Delivery::new(0, next));
            } else {
                let (higher, lower) =
                    phase.pairs[self.random.below(phase.pairs.len() as u64) as usize];
                let apart = self.random.below(APART);
                self.deliveries.push(Delivery::new(higher, next));
                self.deliveries.push(Delivery::new(lower, next + apart));
                self.probes.push(index);
                later.push(Reverse((next + apart, index + 1)));
            }
            self.arrive(index);
            next += self.random.below(2 * phase.between);
        }
        while let Some(Reverse((_, index))) = later.pop() {
            self.arrive(index);
        }
        self.until(u64::MAX);
    }

    fn arrive(&mut self, index: usize) {
        let Delivery { class, ready, .. } = self.deliveries[index];
        self.until(ready);
        self.now = ready;
        self.waiting[class].push_back(index);
        self.fill_slots();
    }

    /// Ends every send whose end comes before `instant`, and begins others in their place.
    fn until(&mut self, instant: u64) {
        while let Some(Reverse((end, slot))) = self.ends.peek().copied()
            && end <= instant
        {
            self.ends.pop();
            self.now = end;
            let taken = self.slots[slot].take().expect("what ends was begun");
            self.order.end(taken);
            self.free.push(slot);
            self.fill_slots();
        }
    }

    fn fill_slots(&mut self) {
        loop {
            let mut heads: Heads = [None; Priority::COUNT];
            for (head, waiting) in heads.iter_mut().zip(&self.waiting) {
                if let Some(oldest) = waiting.front() {
                    *head = Some(Duration::from_micros(
                        self.now - self.deliveries[*oldest].ready,
                    ));
                }
            }
            let Some((class, slot)) = self.order.begin(heads) else {
                return;
            };
            let index = self.waiting[class.index()]
                .pop_front()
                .expect("a class that has something was chosen");
            self.deliveries[index].begun = self.now;
            self.deliveries[index].rank = self.begun;
            self.begun += 1;
            let free = self.free.pop().expect("no more sends than slots");
            self.slots[free] = Some(slot);
            let end = self.now.max(self.hangs_until) + SEND / 2 + self.random.below(SEND);
            self.ends.push(Reverse((end, free)));
        }
    }

    fn findings(&self) -> Findings {
        let mut findings = Findings {
            probes: 0,
            contested: 0,
            inversions: 0,
            overtakings: 0,
        };
        for probe in &self.probes {
            let (higher, lower) = (&self.deliveries[*probe], &self.deliveries[probe + 1]);
            assert!(higher.class < lower.class && higher.ready <= lower.ready);
            assert!(
                higher.begun != u64::MAX && lower.begun != u64::MAX,
                "one never began"
            );
            findings.probes += 1;
            findings.contested += usize::from(higher.begun > lower.ready);
            findings.inversions += usize::from(lower.rank < higher.rank);
        }
        // Those that began, in that order; the older of a lower class against the next of a higher one.
        let mut order: Vec<&Delivery> = self.deliveries.iter().collect();
        order.sort_unstable_by_key(|delivery| delivery.rank);
        for pair in order.windows(2) {
            let (first, second) = (pair[0], pair[1]);
            let both_waited = second.ready < first.begun;
            findings.overtakings += usize::from(
                both_waited && first.class > second.class && first.ready < second.ready,
            );
        }
        findings
    }
}

fn simulate<O: Order>(order: O, probes: usize) -> Findings {
    let mut simulation = Simulation::new(order);
    simulation.run(DAY, probes);
    let findings = simulation.findings();
    println!("{findings:?}");
    findings
}

#[test]
fn a_million_probes_find_no_inversion() {
    let findings = simulate(Scheduler::new(&Policy::default(), SLOTS), 1_000_000);
    assert_eq!(findings.probes, 1_000_000);
    assert_eq!(findings.inversions, 0);
    assert!(
        findings.contested > 200_000,
        "the load puts nothing to the test: {findings:?}"
    );
    assert!(
        findings.overtakings > 10_000,
        "no floor was ever used: {findings:?}"
    );
}

#[test]
fn without_the_age_gate_the_probes_find_inversions() {
    let policy = Policy::default();
    let scheduler = Scheduler::new(&policy, SLOTS);
    let findings = simulate(Ungated { policy, scheduler }, 200_000);
    assert!(findings.inversions > 1_000, "{findings:?}");
}

#[test]
fn with_weighted_round_robin_the_probes_find_inversions() {
    let findings = simulate(RoundRobin::default(), 200_000);
    assert!(findings.inversions > 1_000, "{findings:?}");
}

#[test]
fn critical_waits_milliseconds_while_low_overloads_the_pod() {
    let mut simulation = Simulation::new(Scheduler::new(&Policy::default(), SLOTS));
    simulation.run(&[OVERLOAD_FROM_LOW], 36_000);
    let mut waits: Vec<u64> = simulation
        .deliveries
        .iter()
        .filter(|delivery| delivery.class == 0)
        .map(|delivery| delivery.begun - delivery.ready)
        .collect();
    waits.sort_unstable();
    let p99 = waits[waits.len() * 99 / 100];
    println!("critical waits {p99} µs at the 99th percentile");
    assert!(p99 < 10_000, "{p99} µs");
}
