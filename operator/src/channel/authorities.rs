//! `ConfigMaps` with certificates that Channels name. They carry no label of ours, so that each is asked for by its name,
//! and one that is missing is watched for until it comes.

use std::collections::{BTreeSet, HashSet};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use futures::{StreamExt as _, TryStreamExt as _};
use herald_crds::Kind;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client};

use super::plant::lock;
use crate::error::Error;
use crate::queue::{Queues, Wake};

/// Nobody watches for longer: the Channel is looked at anyway by then, and it may have changed its mind.
const PATIENCE: Duration = Duration::from_hours(1);

/// Asks for `ConfigMaps` by name.
pub(super) struct Authorities {
    client: Client,
    queues: Queues,
    /// What is watched for: namespace, `ConfigMap`, Channel. One entry for each that is missing.
    missing: Arc<Mutex<HashSet<(String, String, String)>>>,
}

impl Authorities {
    pub(super) fn new(client: Client, queues: Queues) -> Self {
        Self {
            client,
            queues,
            missing: Arc::default(),
        }
    }

    /// Those of `wanted` that are there. The others are watched for, and `channel` is looked at when they come.
    pub(super) async fn present(
        &self,
        namespace: &str,
        channel: &str,
        wanted: BTreeSet<String>,
    ) -> Result<BTreeSet<String>, Error> {
        let api: Api<ConfigMap> = Api::namespaced(self.client.clone(), namespace);
        let mut present = BTreeSet::new();
        for name in wanted {
            let found = api.get_metadata_opt(&name).await;
            let found = found.map_err(|source| Error::Read {
                kind: format!("ConfigMap {namespace}/{name}"),
                source: Box::new(source),
            })?;
            if found.is_some() {
                present.insert(name);
            } else {
                self.watch(namespace, name, channel);
            }
        }
        Ok(present)
    }

    fn watch(&self, namespace: &str, name: String, channel: &str) {
        let key = (namespace.to_owned(), name, channel.to_owned());
        if !lock(&self.missing).insert(key.clone()) {
            return;
        }
        let api: Api<PartialObjectMeta<ConfigMap>> =
            Api::namespaced(self.client.clone(), namespace);
        let config = watcher::Config::default().fields(&format!("metadata.name={}", key.1));
        let (missing, queues) = (Arc::clone(&self.missing), self.queues.clone());
        tokio::spawn(async move {
            let comes = async {
                let events = watcher(api, config).default_backoff().applied_objects();
                let mut comes = events.into_stream().boxed();
                // An error means that the watch begins anew.
                while !matches!(comes.next().await, Some(Ok(_)) | None) {}
            };
            let came = tokio::time::timeout(PATIENCE, comes).await.is_ok();
            lock(&missing).remove(&key);
            let (namespace, _, channel) = key;
            if came {
                queues.wake(Wake(Kind::Channel, namespace, channel)).await;
            }
        });
    }
}
