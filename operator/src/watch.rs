//! What is followed, kept in memory, and whom a change concerns.
//!
//! One watch for each kind and namespace that is looked after, or one for each kind over all namespaces. Every change is
//! seen with what was before, so that only those are woken whom it concerns.

mod concerns;
mod follow;

use std::sync::Arc;

use futures::future::BoxFuture;
use futures::{FutureExt as _, StreamExt as _};
use herald_crds::{Channel, NotificationTemplate, RecipientGroup, Schedule, names};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Secret, ServiceAccount};
use k8s_openapi::api::networking::v1::NetworkPolicy;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::{ClusterResourceScope, NamespaceResourceScope};
use kube::core::PartialObjectMeta;
use kube::runtime::reflector::store::Writer;
use kube::runtime::reflector::{ObjectRef, Store};
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use tokio_util::sync::CancellationToken;

use crate::metrics::{Metrics, Watched};
use crate::queue::{Guard, Queues, Wake};
use crate::written::Written;

pub use concerns::{Change, Includes};
use follow::Following;

/// Everything that is followed, as it is now.
#[derive(Clone)]
pub struct Stores {
    /// Channels.
    pub channels: Store<Guard<Channel>>,
    /// Templates.
    pub templates: Store<Guard<NotificationTemplate>>,
    /// Groups.
    pub groups: Store<Guard<RecipientGroup>>,
    /// Schedules.
    pub schedules: Store<Guard<Schedule>>,
    /// Namespaces, all of them: their labels and uids.
    pub namespaces: Store<PartialObjectMeta<Namespace>>,
    /// Secrets with the label of credentials: that they exist, never what is in them.
    pub secrets: Store<PartialObjectMeta<Secret>>,
    /// Deployments of Channels.
    pub deployments: Store<Deployment>,
    /// Service accounts of Channels.
    pub accounts: Store<ServiceAccount>,
    /// Disruption budgets of Channels.
    pub budgets: Store<PodDisruptionBudget>,
    /// Network policies of Channels.
    pub policies: Store<NetworkPolicy>,
    /// Configurations of Channels' pods: their names tell what is in them.
    pub configs: Store<PartialObjectMeta<ConfigMap>>,
    /// Which templates include which others.
    pub includes: Arc<Includes>,
}

/// Where what is followed is written down.
pub struct Writers {
    /// Channels.
    pub channels: Writer<Guard<Channel>>,
    /// Templates.
    pub templates: Writer<Guard<NotificationTemplate>>,
    /// Groups.
    pub groups: Writer<Guard<RecipientGroup>>,
    /// Schedules.
    pub schedules: Writer<Guard<Schedule>>,
    /// Namespaces.
    pub namespaces: Writer<PartialObjectMeta<Namespace>>,
    /// Secrets.
    pub secrets: Writer<PartialObjectMeta<Secret>>,
    /// Deployments.
    pub deployments: Writer<Deployment>,
    /// Service accounts.
    pub accounts: Writer<ServiceAccount>,
    /// Disruption budgets.
    pub budgets: Writer<PodDisruptionBudget>,
    /// Network policies.
    pub policies: Writer<NetworkPolicy>,
    /// Configurations.
    pub configs: Writer<PartialObjectMeta<ConfigMap>>,
}

impl Stores {
    /// Empty ones.
    pub fn new() -> (Self, Writers) {
        let writers = Writers {
            channels: Writer::default(),
            templates: Writer::default(),
            groups: Writer::default(),
            schedules: Writer::default(),
            namespaces: Writer::default(),
            secrets: Writer::default(),
            deployments: Writer::default(),
            accounts: Writer::default(),
            budgets: Writer::default(),
            policies: Writer::default(),
            configs: Writer::default(),
        };
        let stores = Self {
            channels: writers.channels.as_reader(),
            templates: writers.templates.as_reader(),
            groups: writers.groups.as_reader(),
            schedules: writers.schedules.as_reader(),
            namespaces: writers.namespaces.as_reader(),
            secrets: writers.secrets.as_reader(),
            deployments: writers.deployments.as_reader(),
            accounts: writers.accounts.as_reader(),
            budgets: writers.budgets.as_reader(),
            policies: writers.policies.as_reader(),
            configs: writers.configs.as_reader(),
            includes: Arc::default(),
        };
        (stores, writers)
    }

    /// Resolves when everything has been listed once; until then what is missing may only be unknown.
    pub async fn ready(&self) {
        // An error says that nobody follows any more: it shuts down.
        let _ = futures::join!(
            self.channels.wait_until_ready(),
            self.templates.wait_until_ready(),
            self.groups.wait_until_ready(),
            self.schedules.wait_until_ready(),
            self.namespaces.wait_until_ready(),
            self.secrets.wait_until_ready(),
            self.deployments.wait_until_ready(),
            self.accounts.wait_until_ready(),
            self.budgets.wait_until_ready(),
            self.policies.wait_until_ready(),
            self.configs.wait_until_ready(),
        );
    }

    /// The uid that stands for the cluster: that of a namespace which no cluster is without.
    pub fn cluster(&self) -> Option<String> {
        self.namespace("kube-system")?.meta().uid.clone()
    }

    /// A Channel that can be read.
    pub fn channel(&self, namespace: &str, name: &str) -> Option<Arc<Guard<Channel>>> {
        get(&self.channels, namespace, name).filter(|found| found.0.is_ok())
    }

    /// A template that can be read.
    pub fn template(
        &self,
        namespace: &str,
        name: &str,
    ) -> Option<Arc<Guard<NotificationTemplate>>> {
        get(&self.templates, namespace, name).filter(|found| found.0.is_ok())
    }

    /// A group that can be read.
    pub fn group(&self, namespace: &str, name: &str) -> Option<Arc<Guard<RecipientGroup>>> {
        get(&self.groups, namespace, name).filter(|found| found.0.is_ok())
    }

    /// A namespace.
    pub fn namespace(&self, name: &str) -> Option<Arc<PartialObjectMeta<Namespace>>> {
        self.namespaces.get(&ObjectRef::new(name))
    }
}

/// An object of a store.
pub fn get<K>(store: &Store<K>, namespace: &str, name: &str) -> Option<Arc<K>>
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    store.get(&ObjectRef::new(name).within(namespace))
}

/// Follows everything.
#[derive(Clone)]
pub struct Follow {
    /// The API server.
    pub client: Client,
    /// The namespaces that are looked after; none: all.
    pub namespaces: Vec<String>,
    /// Whether what the operator makes for Channels is followed, too; else those stores are empty, and ready.
    pub children: bool,
    /// The Secret with the token of each namespace's pods; `None`: they need none.
    pub token: Option<String>,
    /// Where those go whom a change concerns.
    pub queues: Queues,
    /// What is counted.
    pub metrics: Arc<Metrics>,
    /// Forgets what is gone.
    pub written: Arc<Written>,
    /// When to stop.
    pub stop: CancellationToken,
}

impl Follow {
    /// Follows until it is told to stop, a future for each kind. Watches that break begin anew, the longer they do the
    /// slower.
    pub fn all(&self, stores: &Stores, writers: Writers) -> Vec<BoxFuture<'static, ()>> {
        let Writers {
            channels,
            templates,
            groups,
            schedules,
            namespaces,
            secrets,
            deployments,
            accounts,
            budgets,
            policies,
            configs,
        } = writers;
        let any = watcher::Config::default();
        let made = any.clone().labels(names::CHILDREN_SELECTOR);
        let labelled = any.clone().labels(&format!("{}=true", names::CREDENTIALS));
        let mut all = vec![
            self.each(channels, &any, with(stores, concerns::channel)),
            self.each(templates, &any, with(stores, concerns::template)),
            self.each(groups, &any, with(stores, concerns::group)),
            self.each(schedules, &any, with(stores, concerns::schedule)),
            self.once(namespaces, &any, with(stores, concerns::namespace)),
            self.each(secrets, &labelled, {
                let (stores, token) = (stores.clone(), self.token.clone());
                move |change: &Change<'_, _>| concerns::secret(&stores, token.as_deref(), change)
            }),
        ];
        if self.children {
            all.push(self.each(deployments, &made, concerns::child));
            all.push(self.each(accounts, &made, concerns::child));
            all.push(self.each(budgets, &made, concerns::child));
            all.push(self.each(policies, &made, concerns::child));
            all.push(self.each(configs, &made, concerns::child));
        } else {
            empty(deployments);
            empty(accounts);
            empty(budgets);
            empty(policies);
            empty(configs);
        }
        all
    }

    /// Follows a kind in each namespace that is looked after.
    fn each<K>(
        &self,
        writer: Writer<K>,
        config: &watcher::Config,
        concerns: impl FnMut(&Change<'_, K>) -> Vec<Wake> + Send + 'static,
    ) -> BoxFuture<'static, ()>
    where
        K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        let sources = if self.namespaces.is_empty() {
            vec![(None, Api::all(self.client.clone()))]
        } else {
            let one = |name: &String| {
                let api = Api::namespaced(self.client.clone(), name);
                (Some(name.clone()), api)
            };
            self.namespaces.iter().map(one).collect()
        };
        self.run(sources, writer, config, concerns)
    }

    /// Follows a kind that is in no namespace.
    fn once<K>(
        &self,
        writer: Writer<K>,
        config: &watcher::Config,
        concerns: impl FnMut(&Change<'_, K>) -> Vec<Wake> + Send + 'static,
    ) -> BoxFuture<'static, ()>
    where
        K: Resource<DynamicType = (), Scope = ClusterResourceScope>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        let sources = vec![(None, Api::all(self.client.clone()))];
        self.run(sources, writer, config, concerns)
    }

    fn run<K>(
        &self,
        sources: Vec<(Option<String>, Api<K>)>,
        writer: Writer<K>,
        config: &watcher::Config,
        mut concerns: impl FnMut(&Change<'_, K>) -> Vec<Wake> + Send + 'static,
    ) -> BoxFuture<'static, ()>
    where
        K: Resource<DynamicType = ()>
            + Clone
            + std::fmt::Debug
            + DeserializeOwned
            + Send
            + Sync
            + 'static,
    {
        let namespaces = sources.iter().map(|(name, _)| name.clone()).collect();
        let mut following = Following::new(writer, namespaces);
        let events = sources.into_iter().enumerate().map(|(source, (_, api))| {
            watcher(api, config.clone())
                .default_backoff()
                .map(move |event| (source, event))
                .boxed()
        });
        let mut events = futures::stream::select_all(events);
        let Self {
            queues,
            metrics,
            written,
            stop,
            ..
        } = self.clone();
        let mut concerns = move |change: Change<'_, K>| {
            change.forget(&written);
            concerns(&change)
        };
        async move {
            let kind = K::kind(&()).into_owned();
            let failed = metrics.watch_errors.get_or_create(&Watched { kind }).clone();
            while let Some(Some((source, event))) = stop.run_until_cancelled(events.next()).await {
                let mut wakes = match event {
                    Ok(event) => following.take(source, event, &mut concerns),
                    Err(error) => {
                        failed.inc();
                        tracing::debug!(%error, kind = %K::kind(&()), "a watch ended and begins anew");
                        let refused = is_forbidden(&error);
                        let without = refused.then(|| following.do_without(source, &mut concerns));
                        let Some((namespace, wakes)) = without.flatten() else {
                            continue;
                        };
                        tracing::warn!(
                            namespace, kind = %K::kind(&()),
                            "nothing may be read there, or it is gone: nothing of it counts until that changes"
                        );
                        wakes
                    }
                };
                wakes.sort();
                wakes.dedup();
                for wake in wakes {
                    queues.wake(wake).await;
                }
            }
        }
        .boxed()
    }
}

/// Whether the API server refuses, for want of permission.
fn is_forbidden(error: &watcher::Error) -> bool {
    match error {
        watcher::Error::InitialListFailed(kube::Error::Api(status))
        | watcher::Error::WatchStartFailed(kube::Error::Api(status))
        | watcher::Error::WatchError(status) => status.is_forbidden(),
        _ => false,
    }
}

/// Asks `concerns` with what is known.
fn with<K: 'static>(
    stores: &Stores,
    concerns: fn(&Stores, &Change<'_, K>) -> Vec<Wake>,
) -> impl FnMut(&Change<'_, K>) -> Vec<Wake> + Send + 'static {
    let stores = stores.clone();
    move |change| concerns(&stores, change)
}

/// Nothing is ever in it, which is known at once.
fn empty<K>(mut writer: Writer<K>)
where
    K: Resource<DynamicType = ()> + Clone + 'static,
{
    writer.apply_watcher_event(&watcher::Event::Init);
    writer.apply_watcher_event(&watcher::Event::InitDone);
}
