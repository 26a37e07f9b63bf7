//! Several watches of one kind become one store, and each change is seen with what was before.

use std::collections::HashMap;

use kube::runtime::reflector::ObjectRef;
use kube::runtime::reflector::store::{Store, Writer};
use kube::runtime::watcher::Event;
use kube::{Resource, ResourceExt as _};

use super::Change;
use crate::queue::Wake;

/// An object's namespace and name.
type Key = (String, String);

/// The store of one kind, and what its sources have told so far.
pub(super) struct Following<K: Resource<DynamicType = ()> + Clone + 'static> {
    writer: Writer<K>,
    store: Store<K>,
    sources: Vec<Source<K>>,
    /// What was listed before all sources had; `None`: they have, and it is in the store.
    first: Option<HashMap<Key, K>>,
}

/// One watch: of a namespace, or of all.
struct Source<K> {
    namespace: Option<String>,
    has_listed: bool,
    /// What a list under way has told.
    listing: Option<HashMap<Key, K>>,
}

impl<K: Resource<DynamicType = ()> + Clone + 'static> Following<K> {
    pub(super) fn new(writer: Writer<K>, namespaces: Vec<Option<String>>) -> Self {
        let source = |namespace| Source {
            namespace,
            has_listed: false,
            listing: None,
        };
        Self {
            store: writer.as_reader(),
            writer,
            sources: namespaces.into_iter().map(source).collect(),
            first: Some(HashMap::new()),
        }
    }

    /// Takes a namespace that was named, and in which nothing may be read, for an empty one until something is listed there:
    /// the others do not wait for it. Answers who is to be looked at for it, or `None` if it was read before.
    pub(super) fn do_without(
        &mut self,
        source: usize,
        concerns: &mut impl FnMut(Change<'_, K>) -> Vec<Wake>,
    ) -> Option<(String, Vec<Wake>)> {
        let Source {
            namespace,
            has_listed,
            listing,
        } = &mut self.sources[source];
        let namespace = namespace.clone().filter(|_| !*has_listed)?;
        *listing = None;
        Some((namespace, self.listed(source, concerns)))
    }

    /// Takes an event of a source in; answers who is to be looked at for it.
    pub(super) fn take(
        &mut self,
        source: usize,
        event: Event<K>,
        concerns: &mut impl FnMut(Change<'_, K>) -> Vec<Wake>,
    ) -> Vec<Wake> {
        // Who changed what field, as the API server keeps it: half of an object, and of no use here.
        let event = event.modify(|object| object.meta_mut().managed_fields = None);
        match event {
            Event::Init => {
                self.sources[source].listing = Some(HashMap::new());
                Vec::new()
            }
            Event::InitApply(object) => {
                let listing = &mut self.sources[source].listing;
                listing.get_or_insert_default().insert(key(&object), object);
                Vec::new()
            }
            Event::InitDone => self.listed(source, concerns),
            Event::Apply(object) => match &mut self.first {
                Some(first) => {
                    first.insert(key(&object), object);
                    Vec::new()
                }
                None => self.put(object, concerns),
            },
            Event::Delete(object) => match &mut self.first {
                Some(first) => {
                    first.remove(&key(&object));
                    Vec::new()
                }
                None => self.remove(object, concerns),
            },
        }
    }

    fn listed(
        &mut self,
        source: usize,
        concerns: &mut impl FnMut(Change<'_, K>) -> Vec<Wake>,
    ) -> Vec<Wake> {
        let listing = self.sources[source].listing.take().unwrap_or_default();
        self.sources[source].has_listed = true;
        let Some(first) = &mut self.first else {
            return self.compare(source, listing, concerns);
        };
        let namespace = self.sources[source].namespace.as_deref();
        // Of a source that lists twice before all have listed once, the second list counts.
        first.retain(|(of, _), _| namespace.is_some_and(|namespace| of != namespace));
        first.extend(listing);
        if !self.sources.iter().all(|source| source.has_listed) {
            return Vec::new();
        }
        let first = self.first.take().unwrap_or_default();
        self.writer.apply_watcher_event(&Event::Init);
        for object in first.into_values() {
            self.writer.apply_watcher_event(&Event::InitApply(object));
        }
        self.writer.apply_watcher_event(&Event::InitDone);
        let all = self.store.state();
        all.iter()
            .flat_map(|object| {
                concerns(Change {
                    old: None,
                    new: Some(object),
                })
            })
            .collect()
    }

    /// A source has listed anew: what happened meanwhile.
    fn compare(
        &mut self,
        source: usize,
        mut listing: HashMap<Key, K>,
        concerns: &mut impl FnMut(Change<'_, K>) -> Vec<Wake>,
    ) -> Vec<Wake> {
        let mut wakes = Vec::new();
        let namespace = self.sources[source].namespace.clone();
        let is_ours = |object: &K| namespace.is_none() || object.namespace() == namespace;
        for old in self.store.state() {
            if !is_ours(&old) {
                continue;
            }
            match listing.get(&key(&*old)) {
                None => wakes.extend(self.remove((*old).clone(), concerns)),
                Some(new) if new.resource_version() == old.resource_version() => {
                    listing.remove(&key(&*old));
                }
                Some(_) => {}
            }
        }
        for object in listing.into_values() {
            wakes.extend(self.put(object, concerns));
        }
        wakes
    }

    fn put(
        &mut self,
        object: K,
        concerns: &mut impl FnMut(Change<'_, K>) -> Vec<Wake>,
    ) -> Vec<Wake> {
        let old = self.store.get(&ObjectRef::from_obj(&object));
        let event = Event::Apply(object);
        self.writer.apply_watcher_event(&event);
        let Event::Apply(object) = &event else {
            return Vec::new();
        };
        concerns(Change {
            old: old.as_deref(),
            new: Some(object),
        })
    }

    fn remove(
        &mut self,
        object: K,
        concerns: &mut impl FnMut(Change<'_, K>) -> Vec<Wake>,
    ) -> Vec<Wake> {
        let event = Event::Delete(object);
        self.writer.apply_watcher_event(&event);
        let Event::Delete(object) = &event else {
            return Vec::new();
        };
        concerns(Change {
            old: Some(object),
            new: None,
        })
    }
}

fn key<K: Resource>(object: &K) -> Key {
    (object.namespace().unwrap_or_default(), object.name_any())
}

#[cfg(test)]
mod tests {
    use herald_crds::Kind;
    use k8s_openapi::api::core::v1::ServiceAccount;
    use serde_json::json;

    use super::*;

    fn account(namespace: &str, name: &str, version: u64) -> ServiceAccount {
        let metadata =
            json!({"name": name, "namespace": namespace, "resourceVersion": version.to_string()});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    /// Takes events; answers what changed, as `+name`, `~name`, `-name`.
    fn take(
        following: &mut Following<ServiceAccount>,
        source: usize,
        events: Vec<Event<ServiceAccount>>,
    ) -> Vec<String> {
        let mut seen = Vec::new();
        let mut concerns = |change: Change<'_, ServiceAccount>| {
            let sign = match (change.old, change.new) {
                (None, _) => "+",
                (Some(_), Some(_)) => "~",
                (Some(_), None) => "-",
            };
            let object = change.new.or(change.old).unwrap();
            vec![Wake(Kind::Channel, sign.to_owned(), object.name_any())]
        };
        for event in events {
            seen.extend(following.take(source, event, &mut concerns));
        }
        let mut seen: Vec<_> = seen
            .into_iter()
            .map(|w| format!("{}{}", w.1, w.2))
            .collect();
        seen.sort();
        seen
    }

    fn list(objects: Vec<ServiceAccount>) -> Vec<Event<ServiceAccount>> {
        let all = objects.into_iter().map(Event::InitApply);
        std::iter::once(Event::Init)
            .chain(all)
            .chain([Event::InitDone])
            .collect()
    }

    #[test]
    fn nothing_is_known_before_every_namespace_was_listed() {
        let namespaces = vec![Some("a".to_owned()), Some("b".to_owned())];
        let mut following = Following::new(Writer::default(), namespaces);
        assert!(take(&mut following, 0, list(vec![account("a", "one", 1)])).is_empty());
        let later = vec![
            Event::Apply(account("a", "two", 2)),
            Event::Delete(account("a", "one", 1)),
        ];
        assert!(take(&mut following, 0, later).is_empty());
        assert_eq!(following.store.len(), 0);
        let seen = take(&mut following, 1, list(vec![account("b", "three", 3)]));
        assert_eq!(seen, ["+three", "+two"]);
    }

    #[test]
    fn a_namespace_that_may_not_be_read_keeps_nobody_waiting() {
        let namespaces = vec![Some("a".to_owned()), Some("gone".to_owned())];
        let mut following = Following::new(Writer::default(), namespaces);
        assert!(take(&mut following, 0, list(vec![account("a", "one", 1)])).is_empty());
        let mut concerns =
            |_: Change<'_, ServiceAccount>| vec![Wake(Kind::Channel, String::new(), String::new())];
        let (namespace, wakes) = following.do_without(1, &mut concerns).unwrap();
        assert_eq!((namespace.as_str(), wakes.len()), ("gone", 1));
        assert!(following.do_without(1, &mut concerns).is_none());
        // It came back.
        let seen = take(&mut following, 1, list(vec![account("gone", "two", 2)]));
        assert_eq!(seen, ["+two"]);
        assert_eq!(following.store.len(), 2);
    }

    #[test]
    fn what_is_gone_before_all_have_listed_is_not_there() {
        let namespaces = vec![Some("a".to_owned()), Some("b".to_owned())];
        let mut following = Following::new(Writer::default(), namespaces);
        take(&mut following, 0, list(vec![account("a", "old", 1)]));
        take(&mut following, 0, list(vec![account("a", "new", 2)]));
        let seen = take(&mut following, 1, list(vec![account("b", "other", 3)]));
        assert_eq!(seen, ["+new", "+other"]);
    }

    #[test]
    fn a_second_list_tells_only_what_happened_meanwhile_in_its_namespace() {
        let namespaces = vec![Some("a".to_owned()), Some("b".to_owned())];
        let mut following = Following::new(Writer::default(), namespaces);
        let first = ["same", "changed", "gone"].map(|name| account("a", name, 1));
        take(&mut following, 0, list(first.into()));
        take(&mut following, 1, list(vec![account("b", "other", 1)]));
        let again = vec![
            account("a", "same", 1),
            account("a", "changed", 5),
            account("a", "new", 6),
        ];
        let seen = take(&mut following, 0, list(again));
        assert_eq!(seen, ["+new", "-gone", "~changed"]);
        assert_eq!(following.store.len(), 4);
    }

    #[test]
    fn a_change_is_seen_with_what_was_before() {
        let mut following = Following::new(Writer::default(), vec![None]);
        take(&mut following, 0, list(vec![account("a", "one", 1)]));
        let events = vec![
            Event::Apply(account("a", "one", 2)),
            Event::Apply(account("a", "two", 3)),
            Event::Delete(account("a", "one", 2)),
        ];
        assert_eq!(take(&mut following, 0, events), ["+two", "-one", "~one"]);
    }
}
