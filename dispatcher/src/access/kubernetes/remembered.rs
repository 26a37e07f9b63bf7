//! Answers of somebody who may be away: fresh for a while, and used for longer when no new one can be had. Bounded.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use crate::access::CannotTell;

/// An answer may be used for so long when no new one can be had.
pub(super) const STALE: Duration = Duration::from_mins(15);

/// When no new answer can be had, the old one is used without asking again for so long.
const AGAIN: Duration = Duration::from_secs(5);

/// Where the time comes from.
pub(super) type Clock = Arc<dyn Fn() -> Instant + Send + Sync>;

/// Answers by question.
pub(super) struct Remembered<K, V> {
    clock: Clock,
    places: Mutex<HashMap<K, Arc<Place<V>>>>,
    most: usize,
}

/// What is known of one question.
struct Place<V> {
    /// Held by whoever asks, so that only one does.
    asking: tokio::sync::Mutex<()>,
    known: Mutex<Option<Known<V>>>,
}

struct Known<V> {
    value: V,
    at: Instant,
    /// Until when nobody asks again.
    until: Instant,
}

impl<K: Eq + Hash + Clone, V: Clone> Remembered<K, V> {
    /// Remembers the answers to so many questions.
    pub(super) fn new(most: usize, clock: Clock) -> Self {
        Self {
            clock,
            places: Mutex::default(),
            most,
        }
    }

    /// The answer to a question: the one that is remembered while it is fresh, else what `ask` answers.
    ///
    /// If nobody answers `ask`, an answer of the last 15 minutes counts. `fresh` says how long an answer is.
    pub(super) async fn get(
        &self,
        key: &K,
        fresh: impl Fn(&V) -> Duration,
        ask: impl Future<Output = Result<V, CannotTell>>,
    ) -> Result<V, CannotTell> {
        let place = self.place(key);
        if let Some(value) = place.fresh((self.clock)()) {
            return Ok(value);
        }
        let _one = place.asking.lock().await;
        if let Some(value) = place.fresh((self.clock)()) {
            return Ok(value);
        }
        let answer = ask.await;
        let now = (self.clock)();
        let mut known = place.known();
        match answer {
            Ok(value) => {
                *known = Some(Known {
                    value: value.clone(),
                    at: now,
                    until: now + fresh(&value),
                });
                Ok(value)
            }
            // Else whoever asks much goes on with what was taken from it.
            Err(error @ CannotTell::TooMany) => Err(error),
            Err(error @ CannotTell::Away { .. }) => match &mut *known {
                Some(known) if now.duration_since(known.at) < STALE => {
                    known.until = (now + AGAIN).min(known.at + STALE);
                    Ok(known.value.clone())
                }
                _ => Err(error),
            },
        }
    }

    fn place(&self, key: &K) -> Arc<Place<V>> {
        let mut places = self.places.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(place) = places.get(key) {
            return Arc::clone(place);
        }
        if places.len() >= self.most {
            self.make_room(&mut places);
        }
        let place = Arc::new(Place {
            asking: tokio::sync::Mutex::default(),
            known: Mutex::default(),
        });
        places.insert(key.clone(), Arc::clone(&place));
        place
    }

    /// Forgets what is too old to be used; if that is little, what would have to be asked again; if that is little too,
    /// an eighth of all, whichever.
    fn make_room(&self, places: &mut HashMap<K, Arc<Place<V>>>) {
        let room = self.most / 8;
        let now = (self.clock)();
        let is_usable = |known: &Known<V>| now.duration_since(known.at) < STALE;
        let is_fresh = |known: &Known<V>| now < known.until;
        places.retain(|_, place| place.known().as_ref().is_some_and(is_usable));
        if places.len() + room > self.most {
            places.retain(|_, place| place.known().as_ref().is_some_and(is_fresh));
        }
        let mut surplus = (places.len() + room).saturating_sub(self.most);
        places.retain(|_, _| {
            let goes = surplus > 0;
            surplus = surplus.saturating_sub(1);
            !goes
        });
    }
}

impl<V: Clone> Place<V> {
    /// What is known, if nobody need ask again.
    fn fresh(&self, now: Instant) -> Option<V> {
        let known = self.known();
        let fresh = known.as_ref().filter(|known| now < known.until);
        fresh.map(|known| known.value.clone())
    }

    fn known(&self) -> MutexGuard<'_, Option<Known<V>>> {
        self.known.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
pub(super) mod tests {
    use std::sync::atomic::{AtomicU32, Ordering};

    use super::*;

    /// A clock that stands still unless it is moved on.
    #[derive(Clone)]
    pub(in super::super) struct Standing(Arc<Mutex<Instant>>);

    impl Standing {
        pub(in super::super) fn new() -> Self {
            Self(Arc::new(Mutex::new(Instant::now())))
        }

        pub(in super::super) fn move_on(&self, by: Duration) {
            *self.0.lock().unwrap() += by;
        }

        pub(in super::super) fn clock(&self) -> Clock {
            let now = Arc::clone(&self.0);
            Arc::new(move || *now.lock().unwrap())
        }
    }

    const MINUTE: Duration = Duration::from_mins(1);

    /// Answers a number, each time the next; or nothing, while it is away.
    #[derive(Default)]
    struct Oracle {
        asked: AtomicU32,
        is_away: std::sync::atomic::AtomicBool,
    }

    impl Oracle {
        async fn ask(&self) -> Result<u32, CannotTell> {
            let asked = self.asked.fetch_add(1, Ordering::Relaxed);
            tokio::task::yield_now().await;
            if self.is_away.load(Ordering::Relaxed) {
                return Err(CannotTell::Away {
                    reason: "away".into(),
                });
            }
            Ok(asked)
        }
    }

    #[tokio::test]
    async fn an_answer_is_fresh_for_its_time_and_then_asked_for_again() {
        let (oracle, time) = (Oracle::default(), Standing::new());
        let remembered = Remembered::new(8, time.clock());
        let get = || remembered.get(&"q", |_| MINUTE, oracle.ask());
        assert_eq!(get().await, Ok(0));
        time.move_on(Duration::from_secs(59));
        assert_eq!(get().await, Ok(0));
        time.move_on(Duration::from_secs(1));
        assert_eq!(get().await, Ok(1));
    }

    #[tokio::test]
    async fn while_nobody_answers_the_last_answer_counts_for_a_quarter_of_an_hour_and_no_longer() {
        let (oracle, time) = (Oracle::default(), Standing::new());
        let remembered = Remembered::new(8, time.clock());
        let get = || remembered.get(&"q", |_| MINUTE, oracle.ask());
        assert_eq!(get().await, Ok(0));
        oracle.is_away.store(true, Ordering::Relaxed);
        time.move_on(MINUTE);
        assert_eq!(get().await, Ok(0));
        assert_eq!(oracle.asked.load(Ordering::Relaxed), 2);
        // Not asked again at once.
        assert_eq!(get().await, Ok(0));
        assert_eq!(oracle.asked.load(Ordering::Relaxed), 2);
        time.move_on(Duration::from_secs(14 * 60 - 1));
        assert_eq!(get().await, Ok(0));
        time.move_on(Duration::from_secs(1));
        assert!(get().await.is_err());
        oracle.is_away.store(false, Ordering::Relaxed);
        assert!(get().await.is_ok());
    }

    #[tokio::test]
    async fn those_who_ask_the_same_at_once_share_one_answer() {
        let (oracle, time) = (Oracle::default(), Standing::new());
        let remembered = Remembered::new(8, time.clock());
        let get = || remembered.get(&"q", |_| MINUTE, oracle.ask());
        let answers = futures::join!(get(), get(), get());
        assert_eq!(answers, (Ok(0), Ok(0), Ok(0)));
    }

    #[tokio::test]
    async fn no_more_is_remembered_than_there_is_room_for_and_the_freshest_stays() {
        let time = Standing::new();
        let remembered = Remembered::new(16, time.clock());
        let get = async |question: u32| {
            let ask = async { Ok(question) };
            remembered.get(&question, |_| MINUTE, ask).await.unwrap()
        };
        for question in 0..16 {
            get(question).await;
        }
        time.move_on(MINUTE);
        get(100).await;
        // What would have to be asked again went, and nothing else.
        let held = || remembered.places.lock().unwrap().len();
        assert_eq!(held(), 1);
        for question in 0..1_000 {
            get(question).await;
            assert!(held() <= 16);
        }
    }
}
