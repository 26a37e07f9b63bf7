//! Credentials of providers for a process that delivers without a mount of its own: the labelled Secrets of its namespace.

use std::collections::BTreeMap;
use std::sync::Arc;

use futures::StreamExt;
use herald_crds::names;
use k8s_openapi::api::core::v1::Secret;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::watcher::{self, Config, Event};
use kube::{Api, Client};
use tokio::sync::watch;
use tokio_util::task::AbortOnDropHandle;

use super::watch::Pauses;
use crate::provider::credentials::Held;

/// Keeps what is held like the Secrets of a namespace that are labelled as credentials; ends when it is dropped.
pub struct SecretsWatch {
    listed: watch::Receiver<bool>,
    _watching: AbortOnDropHandle<()>,
}

impl SecretsWatch {
    /// Begins to watch. Needs a tokio runtime.
    pub fn begin(client: &Client, namespace: &str, held: Arc<Held>) -> Self {
        let api: Api<Secret> = Api::namespaced(client.clone(), namespace);
        let (all_listed, listed) = watch::channel(false);
        Self {
            listed,
            _watching: AbortOnDropHandle::new(tokio::spawn(keep(api, held, all_listed))),
        }
    }

    /// Waits until they were listed once, however long that takes; can be dropped at any time.
    pub async fn listed(&self) {
        let mut listed = self.listed.clone();
        // It ends with this watch alone, which is borrowed.
        let _ = listed.wait_for(|listed| *listed).await;
    }
}

/// Takes in what the watch tells. Never ends.
async fn keep(api: Api<Secret>, held: Arc<Held>, listed: watch::Sender<bool>) {
    let labelled = Config::default().labels(&format!("{}=true", names::CREDENTIALS));
    let mut events = watcher::watcher(api, labelled)
        .backoff(Pauses::default())
        .boxed();
    let mut coming = BTreeMap::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(Event::Init) => coming.clear(),
            Ok(Event::InitApply(secret)) => {
                let (name, values) = values(secret);
                coming.insert(name, values);
            }
            Ok(Event::InitDone) => {
                held.replace(std::mem::take(&mut coming));
                listed.send_replace(true);
            }
            Ok(Event::Apply(secret)) => {
                let (name, values) = values(secret);
                held.put(name, values);
            }
            Ok(Event::Delete(secret)) => held.remove(&values(secret).0),
            Err(error) => tracing::warn!(
                %error,
                "Secrets cannot be watched at the moment; those that are known stay, trying again"
            ),
        }
    }
}

/// The name of a Secret, and its values by key.
fn values(secret: Secret) -> (String, BTreeMap<String, Vec<u8>>) {
    let values = secret.data.unwrap_or_default();
    let values = values.into_iter().map(|(key, value)| (key, value.0));
    (secret.metadata.name.unwrap_or_default(), values.collect())
}
