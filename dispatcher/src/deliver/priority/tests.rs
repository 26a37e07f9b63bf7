use std::collections::VecDeque;

use proptest::prelude::*;

use super::*;

const CRITICAL: usize = 0;

fn seconds(ages: [Option<u64>; CLASSES]) -> [Option<Duration>; CLASSES] {
    ages.map(|age| age.map(Duration::from_secs))
}

/// Takes the next turn and gives its slot back at once.
fn dispatch(scheduler: &mut Scheduler, heads: [Option<Duration>; CLASSES]) -> Option<Priority> {
    let turn = scheduler.next(heads)?;
    let slot = scheduler.begun(turn);
    scheduler.ended(slot);
    Some(turn.class())
}

fn count(served: &[Priority], class: Priority) -> usize {
    served.iter().filter(|one| **one == class).count()
}

#[test]
fn the_highest_class_goes_first_while_nothing_is_due() {
    let mut scheduler = Scheduler::new(&Policy::default(), 10);
    assert_eq!(dispatch(&mut scheduler, seconds([None; 4])), None);
    assert_eq!(
        dispatch(&mut scheduler, seconds([None, None, None, Some(0)])),
        Some(Priority::Low)
    );
    for _ in 0..1000 {
        assert_eq!(
            dispatch(
                &mut scheduler,
                seconds([Some(0), Some(4), Some(30), Some(60)])
            ),
            Some(Priority::Critical),
            "neither 30 s nor 60 s is longer than 30 s or 60 s"
        );
    }
}

#[test]
fn a_class_as_old_as_a_higher_one_is_not_due() {
    let mut scheduler = Scheduler::new(&Policy::default(), 10);
    for _ in 0..1000 {
        assert_eq!(
            dispatch(&mut scheduler, seconds([Some(70), None, None, Some(70)])),
            Some(Priority::Critical)
        );
    }
}

#[test]
fn due_classes_get_exactly_their_shares_of_a_long_run() {
    let mut scheduler = Scheduler::new(&Policy::default(), 10);
    let heads = seconds([Some(0), Some(100), Some(200), Some(300)]);
    let served: Vec<_> = (0..10_000)
        .filter_map(|_| dispatch(&mut scheduler, heads))
        .collect();
    let counts = Priority::ALL.map(|class| count(&served, class));
    assert!(counts[0] >= 8_000, "{counts:?}");
    assert!((999..=1_000).contains(&counts[1]), "{counts:?}");
    assert!((499..=500).contains(&counts[2]), "{counts:?}");
    assert!((499..=500).contains(&counts[3]), "{counts:?}");
}

#[test]
fn what_was_earned_is_lost_when_a_class_is_no_longer_due() {
    let mut scheduler = Scheduler::new(&Policy::default(), 10);
    let due = seconds([Some(0), Some(6), None, None]);
    for _ in 0..9 {
        assert_eq!(dispatch(&mut scheduler, due), Some(Priority::Critical));
    }
    let critical_is_older = seconds([Some(7), Some(6), None, None]);
    assert_eq!(
        dispatch(&mut scheduler, critical_is_older),
        Some(Priority::Critical)
    );
    for _ in 0..9 {
        assert_eq!(dispatch(&mut scheduler, due), Some(Priority::Critical));
    }
    assert_eq!(dispatch(&mut scheduler, due), Some(Priority::High));
}

#[test]
fn a_turn_that_is_not_taken_changes_nothing() {
    let mut scheduler = Scheduler::new(&Policy::default(), 10);
    let due = seconds([Some(0), Some(6), None, None]);
    for _ in 0..100 {
        assert_eq!(
            scheduler.next(due).map(|turn| turn.class()),
            Some(Priority::Critical)
        );
    }
    for _ in 0..9 {
        assert_eq!(dispatch(&mut scheduler, due), Some(Priority::Critical));
    }
    assert_eq!(dispatch(&mut scheduler, due), Some(Priority::High));
}

#[test]
fn a_class_without_a_floor_waits_for_all_above_it() {
    let mut policy = Policy::default();
    policy.floors[3] = None;
    let mut scheduler = Scheduler::new(&policy, 10);
    for _ in 0..1000 {
        assert_eq!(
            dispatch(&mut scheduler, seconds([Some(0), None, None, Some(86_400)])),
            Some(Priority::Critical)
        );
    }
}

#[test]
fn reserved_slots_stay_free_for_critical() {
    let mut scheduler = Scheduler::new(&Policy::default(), 10);
    let low = seconds([None, None, None, Some(1)]);
    let mut slots = Vec::new();
    while let Some(turn) = scheduler.next(low) {
        slots.push(scheduler.begun(turn));
    }
    assert_eq!(slots.len(), 8);

    let both = seconds([Some(0), None, None, Some(1)]);
    for _ in 0..2 {
        let turn = scheduler.next(both).unwrap();
        assert_eq!(turn.class(), Priority::Critical);
        slots.push(scheduler.begun(turn));
    }
    assert!(scheduler.next(both).is_none(), "all ten are taken");

    scheduler.ended(slots.remove(0));
    assert_eq!(scheduler.next(low).unwrap().class(), Priority::Low);
}

#[test]
fn a_share_is_rounded_down_and_one_slot_stays_open_to_all() {
    let low = seconds([None, None, None, Some(1)]);
    for (slots, reserved_share, open) in [
        (1, 0.2, 1),
        (1, 1.0, 1),
        (4, 0.2, 4),
        (5, 0.2, 4),
        (9, 0.2, 8),
        (10, 1.0, 1),
        (100, 0.29, 71),
        (0, 0.5, 1),
    ] {
        let policy = Policy {
            reserved_share,
            ..Policy::default()
        };
        let mut scheduler = Scheduler::new(&policy, slots);
        let mut taken = Vec::new();
        while let Some(turn) = scheduler.next(low) {
            taken.push(scheduler.begun(turn));
        }
        assert_eq!(taken.len(), open, "{reserved_share} of {slots}");
    }
}

#[test]
fn slow_sends_of_a_due_class_hold_no_more_than_their_share_of_the_slots() {
    let mut scheduler = Scheduler::new(&Policy::default(), 100);
    let heads = seconds([Some(0), Some(100), None, None]);
    let mut high = Vec::new();
    for _ in 0..10_000 {
        let slot = {
            let turn = scheduler.next(heads).unwrap();
            scheduler.begun(turn)
        };
        match slot.class() {
            Priority::Critical => scheduler.ended(slot),
            _ => high.push(slot),
        }
    }
    assert_eq!(high.len(), 10);

    scheduler.ended(high.remove(0));
    assert_eq!(scheduler.next(heads).unwrap().class(), Priority::High);
}

#[test]
fn slots_taken_while_nothing_higher_waited_are_not_held_against_a_class() {
    let mut scheduler = Scheduler::new(&Policy::default(), 100);
    let alone = seconds([None, Some(100), None, None]);
    let slots: Vec<_> = (0..50)
        .map(|_| {
            let turn = scheduler.next(alone).unwrap();
            scheduler.begun(turn)
        })
        .collect();
    let behind_critical = seconds([Some(0), Some(100), None, None]);
    let mut newly_taken = Vec::new();
    for _ in 0..1_000 {
        let turn = scheduler.next(behind_critical).unwrap();
        let slot = scheduler.begun(turn);
        match slot.class() {
            Priority::Critical => scheduler.ended(slot),
            _ => newly_taken.push(slot),
        }
    }
    assert_eq!((slots.len(), newly_taken.len()), (50, 10));
}

/// What happens to a pod, as `proptest` makes it up.
#[derive(Debug, Clone)]
enum Happening {
    Arrives(usize),
    Passes(u64),
    Begins,
    Ends(usize),
}

fn happening() -> impl Strategy<Value = Happening> {
    prop_oneof![
        3 => (0..CLASSES).prop_map(Happening::Arrives),
        2 => (1_u64..20_000).prop_map(Happening::Passes),
        4 => Just(Happening::Begins),
        2 => any::<usize>().prop_map(Happening::Ends),
    ]
}

/// Shares that leave critical at least a tenth.
fn policy() -> impl Strategy<Value = Policy> {
    let floor = (0_u64..90, 0.01_f64..0.30).prop_map(|(after, share)| Floor {
        after: Duration::from_secs(after),
        share,
    });
    (0.0_f64..1.0, [floor.clone(), floor.clone(), floor]).prop_map(
        |(reserved_share, [high, normal, low])| Policy {
            reserved_share,
            floors: [None, Some(high), Some(normal), Some(low)],
        },
    )
}

proptest! {
    #[test]
    fn a_lower_class_overtakes_only_when_due_and_only_into_slots_it_may_take(
        policy in policy(),
        slots in 1_usize..24,
        happenings in prop::collection::vec(happening(), 1..600),
    ) {
        let mut scheduler = Scheduler::new(&policy, slots);
        let reserved = ((policy.reserved_share * slots as f64) as usize).min(slots - 1);
        let mut waiting: [VecDeque<Duration>; CLASSES] = Default::default();
        let mut taken: Vec<Slot> = Vec::new();
        let mut now = Duration::ZERO;
        for happening in happenings {
            match happening {
                Happening::Arrives(k) => waiting[k].push_back(now),
                Happening::Passes(milliseconds) => now += Duration::from_millis(milliseconds),
                Happening::Ends(which) if !taken.is_empty() => {
                    let slot = taken.swap_remove(which % taken.len());
                    scheduler.ended(slot);
                }
                Happening::Ends(_) => {}
                Happening::Begins => {
                    let heads = std::array::from_fn(|k| waiting[k].front().map(|ready| now.saturating_sub(*ready)));
                    let Some(turn) = scheduler.next(heads) else {
                        let lower_held = taken.iter().filter(|slot| slot.class() != Priority::Critical).count();
                        prop_assert!(
                            heads.iter().all(Option::is_none)
                                || taken.len() == slots
                                || (heads[CRITICAL].is_none() && lower_held == slots - reserved),
                            "a free slot is idle although something waits"
                        );
                        continue;
                    };
                    let k = turn.class().index();
                    let age = heads[k].expect("an empty class was chosen");
                    for above in heads[..k].iter().flatten() {
                        let after = policy.floors[k].unwrap().after;
                        prop_assert!(age > *above && age > after, "{turn:?} of {heads:?}");
                    }
                    prop_assert_eq!(turn.overtakes(), heads[..k].iter().any(Option::is_some));

                    waiting[k].pop_front();
                    taken.push(scheduler.begun(turn));
                    prop_assert!(taken.len() <= slots);
                    let lower_held = taken.iter().filter(|slot| slot.class() != Priority::Critical).count();
                    prop_assert!(k == CRITICAL || lower_held <= slots - reserved);
                    if turn.overtakes() {
                        let share = policy.floors[k].unwrap().share;
                        let newly = taken.iter().filter(|slot| slot.newly_taken && slot.class().index() == k).count();
                        prop_assert!(newly <= ((share * slots as f64) as usize).max(1));
                    }
                }
            }
        }
    }

    #[test]
    fn due_classes_get_their_shares_and_critical_keeps_the_rest(
        policy in policy(),
        due in prop::array::uniform3(any::<bool>()),
        dispatches in 1_usize..2_000,
    ) {
        let mut scheduler = Scheduler::new(&policy, 8);
        let mut heads = seconds([Some(0), Some(100), Some(200), Some(300)]);
        for (k, is_due) in due.into_iter().enumerate() {
            if !is_due {
                heads[k + 1] = None;
            }
        }
        let served: Vec<_> = (0..dispatches).map(|_| dispatch(&mut scheduler, heads).unwrap()).collect();
        let mut shares = 0.0;
        for class in &Priority::ALL[1..] {
            if heads[class.index()].is_none() {
                continue;
            }
            let share = policy.floors[class.index()].unwrap().share;
            shares += share;
            let least = share * dispatches as f64 - 2.0;
            prop_assert!(count(&served, *class) as f64 + 0.01 >= least, "{class}: {least}");
        }
        let least = (1.0 - shares) * dispatches as f64;
        prop_assert!(count(&served, Priority::Critical) as f64 + 0.01 >= least, "critical: {least}");
    }

    /// Every class arrives faster than it is served, for ever; and still the one lowest delivery that was there first
    /// begins as soon as its class is due and has earned its dispatch.
    #[test]
    fn no_class_starves(policy in policy(), class in 1_usize..CLASSES, per_dispatch in 10_u64..2_000) {
        let mut scheduler = Scheduler::new(&policy, 4);
        let floor = policy.floors[class].unwrap();
        let mut now = Duration::ZERO;
        // Higher classes hold a backlog that never ends, a new one ready each millisecond.
        let mut ready = [Duration::from_millis(1); CLASSES];
        let mut since_due = 0_u32;
        loop {
            now += Duration::from_millis(per_dispatch);
            let age = now;
            let heads = std::array::from_fn(|k| match k {
                k if k < class => Some(now.saturating_sub(ready[k])),
                k if k == class => Some(age),
                _ => None,
            });
            let served = dispatch(&mut scheduler, heads).unwrap().index();
            if served == class {
                break;
            }
            ready[served] += Duration::from_millis(1);
            since_due += u32::from(age > floor.after);
            prop_assert!(
                f64::from(since_due) <= 1.0 / floor.share + 4.0,
                "class {class} waited for {since_due} dispatches after it was due"
            );
        }
    }
}
