//! Lists and watches, told apart by what they are of.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use futures::stream::{BoxStream, SelectAll};
use futures::{Stream, StreamExt};
use herald_crds::kind::API_VERSION;
use herald_crds::{Channel, Kind, NotificationTemplate, RecipientGroup, Schedule};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{ApiResource, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::WatchStreamExt as _;
use kube::runtime::utils::Backoff;
use kube::runtime::watcher::{self, Config};
use kube::{Api, Client, ResourceExt as _};
use serde_json::{Map, Value};
use tokio::time::Instant;

use crate::catalog::FullName;
use crate::catalog::declared::Declared;

/// What `kubectl apply` notes beside a resource: all of it again.
const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The first pause after something failed; it doubles up to [`LONGEST_PAUSE`].
const FIRST_PAUSE: Duration = Duration::from_millis(200);

/// The longest pause: so long after the API server is back, everything is current.
const LONGEST_PAUSE: Duration = Duration::from_secs(15);

/// After so long without a failure, pauses begin anew.
const WELL_AGAIN: Duration = Duration::from_mins(1);

/// What one watch is of.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Source {
    /// Resources of a kind, in one namespace or everywhere.
    Resources(Kind, Option<String>),
    /// The labels of one namespace or of all.
    Namespaces(Option<String>),
}

impl fmt::Display for Source {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (what, namespace) = match self {
            Self::Resources(kind, namespace) => (kind.plural(), namespace),
            Self::Namespaces(namespace) => ("namespaces", namespace),
        };
        match namespace {
            Some(namespace) => write!(f, "{what} of {namespace}"),
            None => f.write_str(what),
        }
    }
}

/// Everything to be watched for these namespaces; for all of the cluster if there are none.
pub(super) fn sources(namespaces: &[String]) -> Vec<Source> {
    let each: Vec<Option<String>> = if namespaces.is_empty() {
        vec![None]
    } else {
        namespaces.iter().cloned().map(Some).collect()
    };
    let of_one = |namespace: Option<String>| {
        let resources = Kind::ALL.map(|kind| Source::Resources(kind, namespace.clone()));
        resources
            .into_iter()
            .chain([Source::Namespaces(namespace.clone())])
            .collect::<Vec<_>>()
    };
    each.into_iter().flat_map(of_one).collect()
}

/// What a watch tells.
#[derive(Debug)]
pub(super) enum Event {
    /// All of it is told anew, from here on.
    Begin,
    /// This is there.
    Found(Object),
    /// That was all.
    Listed,
    /// This is new, or was changed.
    Applied(Object),
    /// This is gone, or on its way.
    Gone(FullName),
}

/// Something that is there.
#[derive(Debug)]
pub(super) enum Object {
    /// A resource of Herald's, broken perhaps.
    Resource(FullName, Box<Declared>),
    /// A namespace and its labels.
    Labels(FullName, BTreeMap<String, String>),
}

/// Events of all watches, each with the index of its source. Ends never.
pub(super) type Events = SelectAll<BoxStream<'static, (usize, watcher::Result<Event>)>>;

/// Begins to watch; every failure is an event, and then it is tried again.
pub(super) fn events(client: &Client, sources: &[Source]) -> Events {
    let mut all = Events::new();
    for (index, source) in sources.iter().enumerate() {
        let events = match source {
            Source::Resources(kind, namespace) => {
                let resource = api_resource(*kind);
                let api: Api<DynamicObject> = match namespace {
                    Some(namespace) => Api::namespaced_with(client.clone(), namespace, &resource),
                    None => Api::all_with(client.clone(), &resource),
                };
                let kind = *kind;
                told(watcher::watcher(api, Config::default()), move |object| {
                    declared(kind, object)
                })
            }
            Source::Namespaces(namespace) => {
                let api: Api<PartialObjectMeta<Namespace>> = Api::all(client.clone());
                let config = match namespace {
                    Some(name) => Config::default().fields(&format!("metadata.name={name}")),
                    None => Config::default(),
                };
                told(watcher::watcher(api, config), |namespace| {
                    let name = namespace.metadata.name.unwrap_or_default().into();
                    let labels = namespace.metadata.labels.unwrap_or_default();
                    (Some(Object::Labels(FullName::clone(&name), labels)), name)
                })
            }
        };
        all.push(events.map(move |event| (index, event)).boxed());
    }
    all
}

/// The events of one watch, in our words. `read` says what an object is, `None` if it is on its way out, and its name.
fn told<K: Send + 'static>(
    events: impl Stream<Item = watcher::Result<watcher::Event<K>>> + Send + 'static,
    read: impl Fn(K) -> (Option<Object>, FullName) + Send + 'static,
) -> BoxStream<'static, watcher::Result<Event>> {
    events
        .backoff(Pauses::default())
        .filter_map(move |event| {
            let event = event.map(|event| match event {
                watcher::Event::Init => Some(Event::Begin),
                watcher::Event::InitApply(object) => read(object).0.map(Event::Found),
                watcher::Event::InitDone => Some(Event::Listed),
                watcher::Event::Apply(object) => Some(match read(object) {
                    (Some(object), _) => Event::Applied(object),
                    (None, name) => Event::Gone(name),
                }),
                watcher::Event::Delete(object) => Some(Event::Gone(read(object).1)),
            });
            std::future::ready(event.transpose())
        })
        .boxed()
}

/// A resource as somebody declared it, and its full name; `None` if it is on its way out: what is being deleted is not in
/// force any more.
fn declared(kind: Kind, object: DynamicObject) -> (Option<Object>, FullName) {
    let name: FullName = format!(
        "{}/{}",
        object.metadata.namespace.as_deref().unwrap_or_default(),
        object.name_any()
    )
    .into();
    if object.metadata.deletion_timestamp.is_some() {
        return (None, name);
    }
    let DynamicObject { metadata, data, .. } = object;
    let mut document = match data {
        Value::Object(members) => members,
        _ => Map::new(),
    };
    document.remove("status");
    document.insert("apiVersion".to_owned(), API_VERSION.into());
    document.insert("kind".to_owned(), kind.as_str().into());
    let metadata = serde_json::to_value(lean(metadata)).unwrap_or_default();
    document.insert("metadata".to_owned(), metadata);
    let declared = Declared::read(&Value::Object(document), String::new(), None, "");
    let object = Object::Resource(FullName::clone(&name), Box::new(declared));
    (Some(object), name)
}

/// Metadata without what changes although nobody changed what is declared.
fn lean(mut metadata: ObjectMeta) -> ObjectMeta {
    metadata.managed_fields = None;
    metadata.resource_version = None;
    metadata.generation = None;
    if let Some(annotations) = &mut metadata.annotations {
        annotations.remove(LAST_APPLIED);
    }
    metadata
}

fn api_resource(kind: Kind) -> ApiResource {
    match kind {
        Kind::Channel => ApiResource::erase::<Channel>(&()),
        Kind::NotificationTemplate => ApiResource::erase::<NotificationTemplate>(&()),
        Kind::RecipientGroup => ApiResource::erase::<RecipientGroup>(&()),
        Kind::Schedule => ApiResource::erase::<Schedule>(&()),
    }
}

/// Pauses after failures: each twice as long as the last, with jitter, so that gateways do not come back together.
pub(super) struct Pauses {
    next: Duration,
    /// When the last one was asked for.
    last: Option<Instant>,
}

impl Default for Pauses {
    fn default() -> Self {
        Self {
            next: FIRST_PAUSE,
            last: None,
        }
    }
}

impl Iterator for Pauses {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let now = Instant::now();
        if self
            .last
            .is_some_and(|last| now.duration_since(last) > WELL_AGAIN)
        {
            self.next = FIRST_PAUSE;
        }
        self.last = Some(now);
        let pause = self.next;
        self.next = (pause * 2).min(LONGEST_PAUSE);
        Some(pause.mul_f64(rand::random_range(0.5..1.0)))
    }
}

impl Backoff for Pauses {
    /// Nothing: the beginning of a list counts as a success already, and each try has one.
    fn reset(&mut self) {}
}
