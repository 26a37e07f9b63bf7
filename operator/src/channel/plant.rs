//! What makes topics and pods, and what it remembers of each Channel. All of it may be forgotten: it is read again.

use std::collections::{BTreeSet, HashMap};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use herald_crds::names;
use kube::Client;
use tokio::sync::OnceCell;
use tokio::time::Instant;

use super::authorities::Authorities;
use super::health::Health;
use super::rolling::Rolling;
use super::scale::Scaler;
use crate::backoff::jittered;
use crate::gateway::ChannelState;
use crate::pulsar_admin::{AdminError, PulsarAdmin};
use crate::queue::Queues;
use crate::settings::{PodAuth, PodSettings};

/// The topics of a namespace are listed so often.
pub(super) const LISTED: Duration = Duration::from_mins(1);

/// Each topic of a Channel is looked at so often.
const CHECKED: Duration = Duration::from_mins(10);

/// What makes topics and pods.
pub struct Plant {
    /// Pulsar.
    pub admin: PulsarAdmin,
    /// What pods need to know.
    pub pods: PodSettings,
    /// The gateways' role in Pulsar; `None`: they need none.
    pub gateway_role: Option<String>,
    /// How long settled deliveries are remembered.
    pub horizon: Duration,
    /// For how long all has to be calm before there is one pod less.
    pub scale_down: Duration,
    clusters: OnceCell<Vec<String>>,
    lists: Mutex<HashMap<String, Arc<tokio::sync::Mutex<Option<List>>>>>,
    turns: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
    channels: Mutex<HashMap<String, Memory>>,
    pub(super) rolling: Rolling,
    pub(super) authorities: Authorities,
}

/// The topics of a namespace, and when they were listed.
#[derive(Debug, Clone)]
struct List {
    at: Instant,
    topics: Arc<BTreeSet<String>>,
}

/// What is remembered of a Channel.
#[derive(Debug, Default)]
pub(super) struct Memory {
    /// When its topics have to be looked at one by one again, and as what it was declared when they were.
    pub checked: Option<(Instant, Declared)>,
    /// How it fared, and when that was told.
    pub state: Option<(Instant, ChannelState)>,
    /// Since when what would change its number of pods.
    pub scaler: Scaler,
    /// Since when what would turn its conditions.
    pub health: Health,
}

/// As what a Channel was declared: its uid, its generation, and what its owner asked for by annotations.
pub(super) type Declared = (Option<String>, Option<i64>, [Option<String>; 2]);

impl Plant {
    /// One that has made nothing yet.
    pub fn new(
        admin: PulsarAdmin,
        pods: PodSettings,
        gateway_role: Option<String>,
        horizon: Duration,
        scale_down: Duration,
        client: Client,
        queues: Queues,
    ) -> Self {
        Self {
            admin,
            pods,
            gateway_role,
            horizon,
            scale_down,
            clusters: OnceCell::new(),
            lists: Mutex::default(),
            turns: Mutex::default(),
            channels: Mutex::default(),
            rolling: Rolling::default(),
            authorities: Authorities::new(client, queues),
        }
    }

    /// The clusters that a namespace lives in. Asked for once.
    pub async fn clusters(&self) -> Result<&[String], AdminError> {
        let clusters = self.clusters.get_or_try_init(|| self.admin.clusters());
        Ok(clusters.await?)
    }

    /// The topics of a Kubernetes namespace, listed at most once a minute whoever asks.
    pub(super) async fn topics(
        &self,
        namespace: &str,
    ) -> Result<Arc<BTreeSet<String>>, AdminError> {
        let list = {
            let mut lists = lock(&self.lists);
            Arc::clone(lists.entry(namespace.to_owned()).or_default())
        };
        let mut list = list.lock().await;
        if let Some(known) = &*list
            && known.at.elapsed() < LISTED.mul_f64(0.7)
        {
            return Ok(Arc::clone(&known.topics));
        }
        let topics = self.admin.topics(&self.pulsar_namespace(namespace)).await?;
        let topics = Arc::new(topics.into_iter().collect());
        *list = Some(List {
            at: Instant::now(),
            topics: Arc::clone(&topics),
        });
        Ok(topics)
    }

    /// These topics of a namespace have been made, or (`gone`) deleted.
    pub(super) async fn note_topics(&self, namespace: &str, names: &[names::Topic], gone: bool) {
        let Some(list) = lock(&self.lists).get(namespace).cloned() else {
            return;
        };
        let mut list = list.lock().await;
        if let Some(known) = &mut *list {
            let topics = Arc::make_mut(&mut known.topics);
            for topic in names {
                if gone {
                    topics.remove(topic.name());
                } else {
                    topics.insert(topic.name().to_owned());
                }
            }
        }
    }

    /// Whose turn it is to change what roles may do in a namespace.
    pub(super) fn turn(&self, namespace: &str) -> Arc<tokio::sync::Mutex<()>> {
        let mut turns = lock(&self.turns);
        Arc::clone(turns.entry(namespace.to_owned()).or_default())
    }

    /// A Kubernetes namespace's namespace in Pulsar.
    pub(super) fn pulsar_namespace(&self, namespace: &str) -> String {
        format!("{}/{namespace}", self.pods.tenant)
    }

    /// Works with what is remembered of a Channel.
    pub(super) fn remember<T>(&self, channel: &str, with: impl FnOnce(&mut Memory) -> T) -> T {
        with(lock(&self.channels).entry(channel.to_owned()).or_default())
    }

    /// The topics of a Channel that is declared so have all been looked at, and are as they should be.
    pub(super) fn note_checked(&self, channel: &str, declared: Declared) {
        let until = Instant::now() + jittered(CHECKED);
        self.remember(channel, |memory| memory.checked = Some((until, declared)));
    }

    /// The Channel is gone; with a namespace's last one, what is known of the namespace.
    pub fn forget(&self, channel: &str) {
        self.rolling.forget(channel);
        let namespace = channel
            .split_once('/')
            .map_or("", |(namespace, _)| namespace);
        let is_there = |name: &String| {
            let rest = name.strip_prefix(namespace);
            rest.is_some_and(|rest| rest.starts_with('/'))
        };
        let mut channels = lock(&self.channels);
        channels.remove(channel);
        if !channels.keys().any(is_there) {
            lock(&self.lists).remove(namespace);
            lock(&self.turns).remove(namespace);
        }
    }

    /// The Secret of a namespace with its pods' token; `None`: they need none.
    pub fn token(&self) -> Option<&str> {
        (self.pods.auth == PodAuth::Secret).then_some(&*self.pods.secret)
    }

    /// Namespaces of which something is known, for tests.
    #[cfg(test)]
    pub(super) fn namespaces(&self) -> usize {
        lock(&self.lists).len().max(lock(&self.turns).len())
    }
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
