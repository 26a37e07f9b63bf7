//! A pod that hangs ends itself, so that its work moves on to another: what is looked at, and who looks.
//!
//! A thread of its own looks: whatever blocks the runtime does not block it. It counts time by its own looks, so that a
//! process that was stopped as a whole, or a machine that slept, is not taken for one that hangs.

use std::collections::BTreeSet;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::time::Duration;

/// What a process that ends itself answers: "internal software error" (`EX_SOFTWARE` of `sysexits.h`).
pub const EXIT_CODE: i32 = 70;

/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// Looks without a sign of life of the runtime.
const LIFELESS: u64 = 20;

/// Looks in which the broker neither took outcomes nor refused them: its client always gives up sooner.
const UNTOLD: u64 = 60;

/// A provider that overstays its timeout by this much is stuck.
pub(crate) const STUCK: Duration = Duration::from_secs(10);

/// Looks after which a send that is stuck should have been given up by whoever began it, and was not.
const GRACE: u64 = 2;

/// What is looked at: how a pod is, as its parts tell.
#[derive(Debug, Default)]
pub struct Vitals {
    /// Looks until now.
    looks: AtomicU64,
    /// The look before the runtime's last sign of life.
    alive: AtomicU64,
    sends: Mutex<Sends>,
    /// The look before something last happened to outcomes that are to be told, and one more; 0: there are none.
    telling: AtomicU64,
}

/// Sends that are under way: the look by which each must have ended, and its number.
#[derive(Debug, Default)]
struct Sends {
    begun: u64,
    ends: BTreeSet<(u64, u64)>,
}

/// A send that is under way; dropped when it has ended.
pub(crate) struct Sending<'a> {
    vitals: &'a Vitals,
    place: (u64, u64),
}

/// What hangs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Stuck {
    /// No task of the runtime gets its turn.
    #[error(
        "nothing in this process has moved for {seconds} s: a provider's code blocks it, or there is a defect"
    )]
    Runtime {
        /// For so long.
        seconds: u64,
    },
    /// A send ended neither by itself nor at its timeout.
    #[error(
        "a send is under way {seconds} s after it should have been given up: its provider's code blocks"
    )]
    Send {
        /// For so long.
        seconds: u64,
    },
    /// Outcomes are neither taken nor refused.
    #[error(
        "outcomes of what was sent have been waiting for {seconds} s, and the broker neither takes nor refuses them"
    )]
    Outcomes {
        /// For so long.
        seconds: u64,
    },
}

impl Vitals {
    /// The runtime is alive.
    pub fn beat(&self) {
        self.alive.store(self.looks(), Ordering::Relaxed);
    }

    fn looks(&self) -> u64 {
        self.looks.load(Ordering::Relaxed)
    }

    fn sends(&self) -> std::sync::MutexGuard<'_, Sends> {
        // No section under this lock can leave its value half changed.
        self.sends.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A send begins that may take so long.
    pub(crate) fn begin(&self, timeout: Duration) -> Sending<'_> {
        let most = (timeout + STUCK).as_secs() + 1 + GRACE;
        let mut sends = self.sends();
        sends.begun += 1;
        let place = (self.looks() + most, sends.begun);
        sends.ends.insert(place);
        Sending {
            vitals: self,
            place,
        }
    }

    /// Something happened to outcomes that are to be told: they came, or the broker took or refused some.
    pub(crate) fn tell(&self) {
        self.telling.store(self.looks() + 1, Ordering::Relaxed);
    }

    /// All outcomes are told.
    pub(crate) fn told(&self) {
        self.telling.store(0, Ordering::Relaxed);
    }

    /// Looks once more; what hangs, if something does.
    fn look(&self) -> Option<Stuck> {
        let now = self.looks.fetch_add(1, Ordering::Relaxed) + 1;
        let lifeless = now - self.alive.load(Ordering::Relaxed).min(now);
        if lifeless > LIFELESS {
            return Some(Stuck::Runtime { seconds: lifeless });
        }
        let first = self.sends().ends.first().map(|(end, _)| *end);
        if let Some(end) = first.filter(|end| *end < now) {
            return Some(Stuck::Send { seconds: now - end });
        }
        let untold = match self.telling.load(Ordering::Relaxed) {
            0 => 0,
            since => now - (since - 1).min(now),
        };
        (untold > UNTOLD).then_some(Stuck::Outcomes { seconds: untold })
    }
}

impl Drop for Sending<'_> {
    fn drop(&mut self) {
        self.vitals.sends().ends.remove(&self.place);
    }
}

/// Tells that the runtime is alive, for ever.
pub async fn beat(vitals: &Vitals) {
    loop {
        vitals.beat();
        tokio::time::sleep(LOOK).await;
    }
}

/// Looks from a thread of its own until the process ends, and ends it with [`EXIT_CODE`] if it hangs.
///
/// # Errors
///
/// No thread can be had.
pub fn watch(vitals: Arc<Vitals>) -> std::io::Result<()> {
    let watching = move || {
        loop {
            std::thread::sleep(LOOK);
            if let Some(stuck) = vitals.look() {
                say(stuck);
                std::process::exit(EXIT_CODE);
            }
        }
    };
    std::thread::Builder::new()
        .name("watchdog".to_owned())
        .spawn(watching)
        .map(drop)
}

/// From another thread: what hangs may hold what it takes to log, and is waited for no longer than this.
fn say(stuck: Stuck) {
    const PATIENCE: Duration = Duration::from_secs(1);
    let (said, heard) = mpsc::channel();
    let saying = std::thread::Builder::new().spawn(move || {
        tracing::error!(
            reason = %stuck,
            code = EXIT_CODE,
            "this pod hangs and ends itself: others take over what it has not finished"
        );
        // Nobody waits any more: then it was too late.
        let _ = said.send(());
    });
    if saying.is_ok() {
        let _ = heard.recv_timeout(PATIENCE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// What is found in so many looks, with a runtime that is alive or not.
    fn look(vitals: &Vitals, times: u64, is_alive: bool) -> Option<Stuck> {
        (0..times).find_map(|_| {
            if is_alive {
                vitals.beat();
            }
            vitals.look()
        })
    }

    #[test]
    fn a_runtime_that_gives_no_sign_of_life_is_stuck() {
        let vitals = Vitals::default();
        assert_eq!(look(&vitals, 1_000, true), None);
        // The last sign came before the last look.
        assert_eq!(look(&vitals, LIFELESS - 1, false), None);
        assert_eq!(
            look(&vitals, 1, false),
            Some(Stuck::Runtime {
                seconds: LIFELESS + 1
            })
        );
    }

    #[test]
    fn a_send_is_stuck_once_it_is_past_its_timeout_and_ten_seconds() {
        let vitals = Vitals::default();
        let short = vitals.begin(Duration::from_secs(5));
        let long = vitals.begin(Duration::from_secs(300));
        assert_eq!(look(&vitals, 15, true), None);
        drop(short);
        assert_eq!(look(&vitals, 295, true), None);
        let stuck = look(&vitals, 10, true);
        assert!(matches!(stuck, Some(Stuck::Send { .. })), "{stuck:?}");
        drop(long);
        assert_eq!(look(&vitals, 1_000, true), None);
    }

    #[test]
    fn outcomes_that_are_refused_again_and_again_are_the_brokers_trouble_and_no_hang() {
        let vitals = Vitals::default();
        for _ in 0..100 {
            vitals.tell();
            assert_eq!(look(&vitals, UNTOLD - 1, true), None);
        }
        vitals.told();
        assert_eq!(look(&vitals, UNTOLD * 2, true), None);
        vitals.tell();
        let stuck = look(&vitals, UNTOLD + 1, true);
        assert!(matches!(stuck, Some(Stuck::Outcomes { .. })), "{stuck:?}");
    }
}
