//! Places for streams: some for all, and not all of them for one namespace.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use crate::access::shares::{Share, Shares};
use crate::api::{Kind, Problem};

/// Streams of outcomes that may be open at a time.
const STREAMS: usize = 64;

/// Those of one namespace.
const OF_A_NAMESPACE: usize = 8;

/// When somebody may ask again for whom there was none.
const AGAIN: Duration = Duration::from_secs(10);

/// Places for streams of outcomes.
pub struct Places {
    all: Arc<Semaphore>,
    namespaces: Arc<Shares<Box<str>>>,
}

/// A place for a stream, for as long as that is open.
pub(super) struct Place {
    _place: OwnedSemaphorePermit,
    _share: Share<Box<str>>,
}

impl Default for Places {
    fn default() -> Self {
        Self {
            all: Arc::new(Semaphore::new(STREAMS)),
            namespaces: Shares::new(OF_A_NAMESPACE, OF_A_NAMESPACE),
        }
    }
}

impl Places {
    /// A place for a stream of this namespace, if there is one.
    pub(super) fn take(&self, namespace: &str) -> Result<Place, Problem> {
        let share = self.namespaces.take_now(&namespace.into()).ok_or_else(|| {
            let detail = format!(
                "{OF_A_NAMESPACE} streams of namespace {namespace} are open already, which is the most"
            );
            Problem::new(Kind::RateLimited, detail).retry_after(AGAIN)
        })?;
        let place = Arc::clone(&self.all).try_acquire_owned().map_err(|_| {
            let detail = format!("{STREAMS} streams are open already, which is the most");
            Problem::new(Kind::Unavailable, detail).retry_after(AGAIN)
        })?;
        Ok(Place {
            _place: place,
            _share: share,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_namespace_leaves_places_to_the_others_and_all_of_them_take_no_more_than_there_are() {
        let places = Places::default();
        let refused = |namespace: &str| places.take(namespace).err().map(|problem| problem.kind());
        let take = |namespace: &str| -> Vec<_> {
            let taken = (0..OF_A_NAMESPACE).map(|_| places.take(namespace).unwrap());
            taken.collect()
        };
        let mut of_shop = take("shop");
        assert_eq!(refused("shop"), Some(Kind::RateLimited));
        assert_eq!(refused("office"), None);
        of_shop.pop();
        assert_eq!(refused("shop"), None);
        let rest: Vec<_> = (1..STREAMS / OF_A_NAMESPACE)
            .map(|n| take(&format!("preview-{n}")))
            .collect();
        assert_eq!(refused("office"), None, "shop let go of one");
        of_shop.push(places.take("shop").unwrap());
        assert_eq!(refused("office"), Some(Kind::Unavailable));
        drop(rest);
        assert_eq!(refused("office"), None);
    }
}
