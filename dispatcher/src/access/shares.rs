//! So many places for each of many, so that nobody takes those of another. Of whoever holds none, nothing is kept.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// Places, so many for each key.
pub struct Shares<K: Eq + Hash + Clone> {
    /// Places of each key.
    places: usize,
    /// How many may hold a place of a key or wait for one.
    line: usize,
    held: Mutex<HashMap<K, Held>>,
}

/// What is held of one key.
struct Held {
    places: Arc<Semaphore>,
    /// How many hold a place or wait for one.
    line: usize,
}

/// A place, until it is dropped.
pub struct Share<K: Eq + Hash + Clone> {
    // Given back before the line is left: whoever is in the line finds what those before have let go of.
    _place: OwnedSemaphorePermit,
    _line: Line<K>,
}

/// One that holds a place of a key or waits for one.
struct Line<K: Eq + Hash + Clone> {
    shares: Arc<Shares<K>>,
    key: K,
}

impl<K: Eq + Hash + Clone> Shares<K> {
    /// So many `places` for each key, which at most `line` hold or wait for.
    pub fn new(places: usize, line: usize) -> Arc<Self> {
        Arc::new(Self {
            places,
            line,
            held: Mutex::default(),
        })
    }

    /// A place of this key, once there is one; `None`: too many wait for one, or it takes longer than `longest`.
    pub async fn take(self: &Arc<Self>, key: &K, longest: Duration) -> Option<Share<K>> {
        let (line, places) = self.join(key)?;
        let place = tokio::time::timeout(longest, places.acquire_owned()).await;
        Some(Share {
            _place: place.ok()?.ok()?,
            _line: line,
        })
    }

    /// The same, if there is one now.
    pub fn take_now(self: &Arc<Self>, key: &K) -> Option<Share<K>> {
        let (line, places) = self.join(key)?;
        Some(Share {
            _place: places.try_acquire_owned().ok()?,
            _line: line,
        })
    }

    fn join(self: &Arc<Self>, key: &K) -> Option<(Line<K>, Arc<Semaphore>)> {
        let mut all = self.held();
        let held = all.entry(key.clone()).or_insert_with(|| Held {
            places: Arc::new(Semaphore::new(self.places)),
            line: 0,
        });
        if held.line >= self.line {
            return None;
        }
        held.line += 1;
        let line = Line {
            shares: Arc::clone(self),
            key: key.clone(),
        };
        Some((line, Arc::clone(&held.places)))
    }

    /// How many hold a place of this key or wait for one.
    #[cfg(test)]
    pub(super) fn in_line(&self, key: &K) -> usize {
        self.held().get(key).map_or(0, |held| held.line)
    }

    fn held(&self) -> MutexGuard<'_, HashMap<K, Held>> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl<K: Eq + Hash + Clone> Drop for Line<K> {
    fn drop(&mut self) {
        let mut all = self.shares.held();
        if let Some(held) = all.get_mut(&self.key) {
            held.line -= 1;
            if held.line == 0 {
                all.remove(&self.key);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LONG: Duration = Duration::from_secs(60);
    const SHORT: Duration = Duration::from_millis(20);

    #[tokio::test]
    async fn each_has_its_own_places_and_whoever_waits_gets_the_next() {
        let shares = Shares::new(2, 3);
        let first = shares.take_now(&"a").unwrap();
        let _second = shares.take_now(&"a").unwrap();
        assert!(shares.take_now(&"a").is_none());
        assert!(shares.take_now(&"b").is_some());
        let waits = tokio::spawn({
            let shares = Arc::clone(&shares);
            async move { shares.take(&"a", LONG).await.is_some() }
        });
        while shares.in_line(&"a") < 3 {
            tokio::task::yield_now().await;
        }
        let one_more = tokio::time::timeout(LONG / 2, shares.take(&"a", LONG));
        assert!(one_more.await.unwrap().is_none(), "one waits");
        drop(first);
        assert!(waits.await.unwrap());
    }

    #[tokio::test]
    async fn nobody_waits_longer_than_it_should_and_nothing_is_kept_of_whoever_is_gone() {
        let shares = Shares::new(1, 3);
        let held = shares.take_now(&"a").unwrap();
        assert!(shares.take(&"a", SHORT).await.is_none());
        let gone = tokio::time::timeout(SHORT, shares.take(&"a", LONG));
        assert!(gone.await.is_err());
        assert_eq!(shares.in_line(&"a"), 1);
        drop(held);
        assert!(shares.held().is_empty());
    }
}
