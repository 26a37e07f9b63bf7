//! Says how much waits for each channel, and since when: while it is declared.

use std::collections::HashSet;
use std::sync::Arc;

use herald_crds::Priority;
use tokio_util::sync::CancellationToken;

use super::MEASURE;
use crate::catalog::{Catalog, Snapshot};
use crate::clock;
use crate::deliver::load::Loads;
use crate::id::FullName;
use crate::metrics::{ChannelClass, Metrics};
use crate::store::Store;

/// What is measured.
pub(super) struct Measure {
    pub catalog: Arc<dyn Catalog>,
    pub store: Arc<dyn Store>,
    pub loads: Arc<Loads>,
    pub metrics: Arc<Metrics>,
    /// The channels whose gauges are shown.
    pub shown: HashSet<FullName>,
}

impl Measure {
    /// Measures again and again.
    pub async fn run(mut self, stop: CancellationToken) {
        stop.run_until_cancelled(async {
            loop {
                let declared = self.catalog.current();
                self.measure(&declared).await;
                tokio::time::sleep(MEASURE).await;
            }
        })
        .await;
    }

    async fn measure(&mut self, declared: &Snapshot) {
        let metrics = &self.metrics;
        // A gauge of what is no more says for ever what it said last, and so does the alert on it. Counters stay: what
        // ends with a channel is counted after it is gone.
        self.shown.retain(|name| {
            let stays = declared.channels.contains_key(name);
            if !stays {
                for labels in classes(name) {
                    metrics.waiting.remove(&labels);
                    metrics.oldest_waiting_seconds.remove(&labels);
                }
            }
            stays
        });
        for name in declared.channels.keys() {
            let Ok(backlog) = self.store.backlog(name).await else {
                continue;
            };
            let load = self.loads.get(name).unwrap_or_default();
            self.shown.insert(Arc::clone(name));
            for (k, labels) in classes(name).enumerate() {
                metrics
                    .waiting
                    .get_or_create(&labels)
                    .set(backlog[k].due as i64);
                let in_room = backlog[k].oldest.map_or(0.0, |oldest| {
                    clock::now().duration_since(oldest).as_secs_f64()
                });
                let in_hand = load.oldest[k].unwrap_or_default().as_secs_f64();
                metrics
                    .oldest_waiting_seconds
                    .get_or_create(&labels)
                    .set(in_room.max(in_hand));
            }
        }
    }
}

/// The labels of each class of a channel, by its index.
fn classes(channel: &FullName) -> impl Iterator<Item = ChannelClass> {
    Priority::ALL.into_iter().map(move |class| ChannelClass {
        channel: channel.to_string(),
        priority: class.as_str(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::catalog::folder::FolderCatalog;
    use crate::store::sqlite::{self, SqliteStore};

    const CHANNELS: &str = r"
apiVersion: herald.dev/v1alpha1
kind: Channel
metadata: {name: mail, namespace: shop}
spec: {medium: email, providers: [{name: first, log: {}}]}
---
apiVersion: herald.dev/v1alpha1
kind: Channel
metadata: {name: news, namespace: shop}
spec: {medium: email, providers: [{name: first, log: {}}]}
";

    #[tokio::test(flavor = "multi_thread")]
    async fn nothing_is_said_of_a_channel_any_more_that_is_not_declared() {
        let folder = tempfile::tempdir().unwrap();
        let file = folder.path().join("channels.yaml");
        std::fs::write(&file, CHANNELS).unwrap();
        let catalog = Arc::new(FolderCatalog::open(folder.path(), "shop").unwrap());
        let store = folder.path().join("history.db");
        let store = SqliteStore::open(&store, sqlite::Options::default()).await;
        let metrics = Arc::<Metrics>::default();
        let mut measure = Measure {
            catalog: Arc::clone(&catalog) as _,
            store: Arc::new(store.unwrap()),
            loads: Arc::default(),
            metrics: Arc::clone(&metrics),
            shown: HashSet::new(),
        };
        let shown = |name: &str| {
            let text = metrics.encode().unwrap();
            let labelled = format!("channel=\"{name}\"");
            let of_it = text.lines().filter(|line| line.contains(&labelled));
            of_it.count()
        };
        measure.measure(&catalog.current()).await;
        assert_eq!((shown("shop/mail"), shown("shop/news")), (8, 8));
        std::fs::write(&file, CHANNELS.split_once("---").unwrap().0).unwrap();
        catalog.reload_now();
        measure.measure(&catalog.current()).await;
        assert_eq!((shown("shop/mail"), shown("shop/news")), (8, 0));
        // It comes back, and all is as before.
        std::fs::write(&file, CHANNELS).unwrap();
        catalog.reload_now();
        measure.measure(&catalog.current()).await;
        assert_eq!((shown("shop/mail"), shown("shop/news")), (8, 8));
    }
}
