//! How a channel's rate is divided over its pods: pure.
//!
//! Every pod divides by itself, by what all have told: so nobody has to be asked, and while they have heard different
//! things the sum is wrong by no more than what has changed within one interval of theirs.

use std::sync::Arc;
use std::time::Duration;

use herald_crds::Priority;

use crate::message::Tick;

/// Of the rate so much is everybody's in equal parts, whatever they want: what arrives at a pod that had nothing to do
/// need not wait until the others have heard of it.
const EVERYBODYS: f64 = 0.1;

/// What comes in a second may be so much more than was reckoned with: with less, what is urgent would wait for the next tick
/// where it happens to come to one pod, while another sends what is not.
const MORE: f64 = 1.2;

/// The same where a pod has something less urgent to send if it is too much.
const MUCH_MORE: f64 = 1.5;

/// What one pod wants to send.
#[derive(Debug, Clone, PartialEq)]
pub struct Wants {
    /// The pod's name.
    pub pod: Arc<str>,
    /// Sends per second, by class.
    pub per_second: [f64; Priority::COUNT],
}

impl Wants {
    /// By what a pod has told: all that it holds within the next second, and somewhat more than it reckons with.
    pub fn of(tick: &Tick) -> Self {
        let per_second = |class: usize| {
            let is_idle = tick.waiting[class + 1..]
                .iter()
                .all(|waiting| *waiting == 0);
            let more = if is_idle { MORE } else { MUCH_MORE };
            let comes = tick.expects[class].max(0.0) * more;
            tick.waiting[class] as f64 + comes
        };
        Self {
            pod: Arc::clone(&tick.pod),
            per_second: std::array::from_fn(per_second),
        }
    }

    /// The most urgent class of which it wants to send something; `None`: nothing.
    fn most_urgent(&self) -> Option<usize> {
        self.per_second.iter().position(|wants| *wants > 0.0)
    }
}

/// What one pod may do.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Share {
    /// Nothing at all.
    Nothing,
    /// So many sends per second; infinite: no limit.
    PerSecond(f64),
    /// One send in each of its turns, where a whole one is too much for a second.
    Turns(Turns),
}

/// Turns of one send each, counted from 1970: everybody counts the same.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Turns {
    /// How long one lasts.
    pub every: Duration,
    /// How many pods take turns.
    pub of: u64,
    /// Which of them this is, from 0.
    pub mine: u64,
}

impl Turns {
    /// The turn that is on so long after 1970.
    pub fn at(&self, since_1970: Duration) -> u64 {
        (since_1970.as_nanos() / self.every.as_nanos().max(1)) as u64
    }

    /// Whether a turn is this pod's.
    pub fn is_mine(&self, turn: u64) -> bool {
        turn % self.of.max(1) == self.mine
    }

    /// How long it is until the next turn of this pod's begins after the one that is on.
    pub fn until_mine(&self, since_1970: Duration) -> Duration {
        let of = self.of.max(1);
        let next = self.at(since_1970) + 1;
        let mine = next + (self.mine + of - next % of) % of;
        let begins = u128::from(mine) * self.every.as_nanos();
        let wait = begins.saturating_sub(since_1970.as_nanos());
        Duration::from_nanos(u64::try_from(wait).unwrap_or(u64::MAX))
    }
}

/// The share of `pod` in `rate` sends per second.
///
/// What is critical comes first, wherever it is; within a class everybody gets as much until it has all it wants; what
/// nobody wants is divided evenly. Where a pod's part is less than one send a second, pods that have something of the most
/// urgent class take turns. A pod that is not among `pods` gets nothing.
pub fn divide(rate: f64, pods: &[Wants], pod: &str) -> Share {
    let Some(me) = pods.iter().position(|wants| *wants.pod == *pod) else {
        return Share::Nothing;
    };
    if !rate.is_finite() {
        return Share::PerSecond(f64::INFINITY);
    }
    if rate <= 0.0 {
        return Share::Nothing;
    }
    if rate < pods.len() as f64 {
        return take_turns(rate, pods, pod);
    }
    let equal = rate * EVERYBODYS / pods.len() as f64;
    let mut shares = vec![equal; pods.len()];
    let mut covered = shares.clone();
    let mut left = rate * (1.0 - EVERYBODYS);
    for class in 0..Priority::COUNT {
        let lacks: Vec<f64> = pods
            .iter()
            .zip(&mut covered)
            .map(|(wants, covered)| {
                let wanted = wants.per_second[class].max(0.0);
                let lack = (wanted - *covered).max(0.0);
                *covered = (*covered - wanted).max(0.0);
                lack
            })
            .collect();
        for (share, part) in shares.iter_mut().zip(fill(left, &lacks)) {
            *share += part;
            left -= part;
        }
    }
    Share::PerSecond(shares[me] + left.max(0.0) / pods.len() as f64)
}

/// Gives everybody as much, but no more than it lacks.
fn fill(amount: f64, lacks: &[f64]) -> Vec<f64> {
    let mut order: Vec<usize> = (0..lacks.len()).collect();
    order.sort_by(|one, other| lacks[*one].total_cmp(&lacks[*other]));
    let mut parts = vec![0.0; lacks.len()];
    let mut left = amount.max(0.0);
    for (done, index) in order.into_iter().enumerate() {
        let part = lacks[index].min(left / (lacks.len() - done) as f64);
        parts[index] = part;
        left -= part;
    }
    parts
}

fn take_turns(rate: f64, pods: &[Wants], pod: &str) -> Share {
    let most_urgent = pods.iter().filter_map(Wants::most_urgent).min();
    let mut takers: Vec<&str> = pods
        .iter()
        .filter(|wants| most_urgent.is_none() || wants.most_urgent() == most_urgent)
        .map(|wants| &*wants.pod)
        .collect();
    takers.sort_unstable();
    takers.dedup();
    let Some(mine) = takers.iter().position(|taker| *taker == pod) else {
        return Share::Nothing;
    };
    let every = Duration::try_from_secs_f64(1.0 / rate).unwrap_or(Duration::MAX);
    Share::Turns(Turns {
        every,
        of: takers.len() as u64,
        mine: mine as u64,
    })
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn pods() -> impl Strategy<Value = Vec<Wants>> {
        let wants = prop::array::uniform4(prop_oneof![Just(0.0), 0.0..50.0, 0.0..5000.0]);
        prop::collection::vec(wants, 1..12).prop_map(|all| {
            let named = all.into_iter().enumerate();
            named
                .map(|(number, per_second)| Wants {
                    pod: Arc::from(format!("pod-{number}")),
                    per_second,
                })
                .collect()
        })
    }

    fn per_second(rate: f64, pods: &[Wants], pod: &str) -> f64 {
        match divide(rate, pods, pod) {
            Share::PerSecond(share) => share,
            other => panic!("{other:?}"),
        }
    }

    proptest! {
        #[test]
        fn the_whole_rate_is_divided_and_no_more(pods in pods(), rate in 12.0..1000.0) {
            let sum: f64 = pods.iter().map(|one| per_second(rate, &pods, &one.pod)).sum();
            prop_assert!((sum - rate).abs() < rate * 1e-9, "{sum} of {rate}");
        }

        #[test]
        fn everybody_has_something_whatever_the_others_want(pods in pods(), rate in 12.0..1000.0) {
            for one in &pods {
                let share = per_second(rate, &pods, &one.pod);
                prop_assert!(share >= rate * EVERYBODYS / pods.len() as f64 - 1e-9);
            }
        }

        #[test]
        fn the_order_in_which_pods_were_heard_changes_nothing(pods in pods(), rate in 0.01..1000.0) {
            let mut other = pods.clone();
            other.reverse();
            for one in &pods {
                match (divide(rate, &pods, &one.pod), divide(rate, &other, &one.pod)) {
                    (Share::PerSecond(one), Share::PerSecond(other)) => {
                        prop_assert!((one - other).abs() < 1e-6);
                    }
                    (one, other) => prop_assert_eq!(one, other),
                }
            }
        }

        #[test]
        fn nothing_goes_to_what_is_less_urgent_while_something_critical_lacks(
            pods in pods(), rate in 12.0..1000.0,
        ) {
            let equal = rate * EVERYBODYS / pods.len() as f64;
            let shares: Vec<f64> = pods.iter().map(|one| per_second(rate, &pods, &one.pod)).collect();
            let lacks = pods.iter().zip(&shares).any(|(one, share)| *share < one.per_second[0] - 1e-6);
            if lacks {
                for (one, share) in pods.iter().zip(&shares) {
                    prop_assert!(*share <= one.per_second[0].max(equal) + 1e-6);
                }
            }
        }

        #[test]
        fn who_wants_more_gets_no_less(pods in pods(), rate in 12.0..1000.0, class in 0..4_usize) {
            let of_class = |wants: &Wants| {
                let mut only = [0.0; 4];
                only[class] = wants.per_second[class];
                Wants { pod: Arc::clone(&wants.pod), per_second: only }
            };
            let pods: Vec<Wants> = pods.iter().map(of_class).collect();
            for one in &pods {
                for other in &pods {
                    if one.per_second[class] <= other.per_second[class] {
                        let shares = (per_second(rate, &pods, &one.pod), per_second(rate, &pods, &other.pod));
                        prop_assert!(shares.0 <= shares.1 + 1e-6, "{shares:?}");
                    }
                }
            }
        }

        #[test]
        fn turns_are_never_of_two_pods_and_all_who_take_them_have_as_many(
            pods in pods(), part in 0.01..0.99, begin in 0_u64..1_000_000_000,
        ) {
            let rate = pods.len() as f64 * part;
            let turns: Vec<Turns> = pods
                .iter()
                .filter_map(|one| match divide(rate, &pods, &one.pod) {
                    Share::Turns(turns) => Some(turns),
                    Share::Nothing => None,
                    Share::PerSecond(_) => panic!("less than one a second for each"),
                })
                .collect();
            let takers = turns.len() as u64;
            prop_assert!(takers > 0);
            for turn in begin..begin + takers {
                prop_assert_eq!(turns.iter().filter(|one| one.is_mine(turn)).count(), 1);
            }
            for one in &turns {
                prop_assert_eq!((begin..begin + takers).filter(|turn| one.is_mine(*turn)).count(), 1);
            }
        }

        #[test]
        fn the_wait_for_a_turn_ends_in_that_turn(
            every in 1_u64..100_000, of in 1_u64..20, mine in 0_u64..20, now in 0_u64..10_000_000_000,
        ) {
            let turns = Turns { every: Duration::from_millis(every), of, mine: mine % of };
            let now = Duration::from_millis(now);
            let wait = turns.until_mine(now);
            let then = turns.at(now + wait);
            prop_assert!(turns.is_mine(then) && then > turns.at(now));
            prop_assert!(wait <= turns.every * (of as u32));
        }
    }

    #[test]
    fn a_pod_that_nobody_has_heard_of_sends_nothing() {
        assert_eq!(divide(100.0, &[], "pod-0"), Share::Nothing);
        assert_eq!(divide(f64::INFINITY, &[], "pod-0"), Share::Nothing);
    }

    #[test]
    fn without_a_limit_nothing_is_divided() {
        let pods = ["a", "b"].map(|pod| Wants {
            pod: Arc::from(pod),
            per_second: [0.0; 4],
        });
        let all = Share::PerSecond(f64::INFINITY);
        assert_eq!(divide(f64::INFINITY, &pods, "a"), all);
    }
}
