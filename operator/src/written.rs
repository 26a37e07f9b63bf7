//! What was just written, until the watch has seen it.
//!
//! A watch lags behind what we write. Compared with what it last told, an object that was just applied would look as if
//! it still had to be: it would be written again, and a status with it.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use herald_crds::{Kind, names};
use kube::{Resource, ResourceExt as _};
use serde::Serialize;
use serde_json::Value;
use tokio::time::Instant;

/// A watch that has not told of what was written by then never will: somebody deleted it while none was open, or so soon
/// that the watch told of that first.
const TOLD: Duration = Duration::from_mins(1);

/// An object: kind, namespace and name.
pub type Key = (String, String, String);

/// Objects as the API server answered when they were written, and when. Forgets them when the watch has caught up.
#[derive(Debug, Default)]
pub struct Written(Mutex<HashMap<Key, (Value, Instant)>>);

impl Written {
    /// Remembers the answer to a write.
    pub fn remember<K>(&self, object: &K)
    where
        K: Resource<DynamicType = ()> + Serialize,
    {
        if let Ok(value) = serde_json::to_value(object) {
            self.remember_value(key(object), value);
        }
    }

    /// Remembers what of an answer to a write is worth it; `metadata.resourceVersion` has to be there.
    pub fn remember_value(&self, key: Key, value: Value) {
        // One that carries no version can be compared with nothing.
        if version(&value).is_some() {
            self.lock().insert(key, (value, Instant::now()));
        }
    }

    /// What was written to an object, if that was later than `watched`.
    pub fn later<K: Resource<DynamicType = ()>>(&self, watched: &K) -> Option<Value> {
        let key = key(watched);
        let mut objects = self.lock();
        let (written, _) = objects.get(&key)?;
        let seen = watched.meta().resource_version.as_deref();
        let seen: Option<u64> = seen.and_then(|seen| seen.parse().ok());
        if seen < version(written) {
            return Some(written.clone());
        }
        objects.remove(&key);
        None
    }

    /// What was written last, however long ago; `None`: nothing, or the watch has seen it.
    pub fn of(&self, key: &Key) -> Option<Value> {
        self.lock().get(key).map(|(written, _)| written.clone())
    }

    /// The later of what the watch told and what was written less than a minute ago; `None`: there is none.
    pub fn latest<K>(&self, like: &K, watched: Option<&K>) -> Option<Value>
    where
        K: Resource<DynamicType = ()> + Serialize,
    {
        let watched = watched.and_then(|object| serde_json::to_value(object).ok());
        let key = key(like);
        let mut objects = self.lock();
        let Some((written, at)) = objects.get(&key) else {
            return watched;
        };
        let is_later = match (&watched, version(written)) {
            (None, _) => true,
            (Some(watched), Some(written)) => version(watched).is_none_or(|seen| seen < written),
            (Some(_), None) => false,
        };
        if is_later && at.elapsed() < TOLD {
            return Some(written.clone());
        }
        objects.remove(&key);
        watched
    }

    /// The object is gone.
    pub fn forget(&self, key: &Key) {
        self.lock().remove(key);
    }

    /// A resource is gone: so is what was written of it and of what was made for it, of which the watch may have told before
    /// it was remembered.
    pub fn forget_all(&self, of: Kind, namespace: &str, name: &str) {
        let child = (of == Kind::Channel).then(|| names::child(name));
        self.lock().retain(|(kind, within, called), _| {
            let is_it = kind == of.as_str() && called == name;
            let is_child = child.as_ref().is_some_and(|child| {
                // What is in a configuration is told by the end of its name.
                let rest = called.strip_prefix(child.as_str());
                rest.is_some_and(|rest| match rest.strip_prefix('-') {
                    None => rest.is_empty(),
                    Some(end) => kind == "ConfigMap" && !end.contains('-'),
                })
            });
            within != namespace || !(is_it || is_child)
        });
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, HashMap<Key, (Value, Instant)>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What an object is remembered by.
pub fn key<K: Resource<DynamicType = ()>>(object: &K) -> Key {
    (
        K::kind(&()).into_owned(),
        object.namespace().unwrap_or_default(),
        object.name_any(),
    )
}

/// The object's version as the number that it is, on every API server there is (and by contract since 1.35).
fn version(object: &Value) -> Option<u64> {
    object["metadata"]["resourceVersion"].as_str()?.parse().ok()
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ServiceAccount;
    use serde_json::json;

    use super::*;

    fn account(version: &str) -> ServiceAccount {
        let metadata = json!({"name": "a", "namespace": "shop", "resourceVersion": version});
        serde_json::from_value(json!({"metadata": metadata})).unwrap()
    }

    fn seen(written: &Written, watched: Option<&str>) -> Option<String> {
        let watched = watched.map(account);
        let latest = written.latest(&account("0"), watched.as_ref())?;
        Some(latest["metadata"]["resourceVersion"].as_str()?.to_owned())
    }

    #[test]
    fn what_was_written_counts_until_the_watch_has_seen_it() {
        let written = Written::default();
        assert_eq!(seen(&written, None), None);
        assert_eq!(seen(&written, Some("7")).as_deref(), Some("7"));
        written.remember(&account("12"));
        assert_eq!(seen(&written, None).as_deref(), Some("12"));
        assert_eq!(seen(&written, Some("9")).as_deref(), Some("12"));
        assert_eq!(seen(&written, Some("12")).as_deref(), Some("12"));
        assert_eq!(seen(&written, None), None);
    }

    #[tokio::test(start_paused = true)]
    async fn what_no_watch_ever_tells_of_is_not_there_after_a_minute() {
        let written = Written::default();
        written.remember(&account("12"));
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(seen(&written, None).as_deref(), Some("12"));
        written.remember(&account("14"));
        tokio::time::advance(Duration::from_secs(59)).await;
        assert_eq!(seen(&written, Some("12")).as_deref(), Some("14"));
        tokio::time::advance(Duration::from_secs(1)).await;
        assert_eq!(seen(&written, None), None);
        assert_eq!(written.of(&key(&account("0"))), None);
    }

    #[test]
    fn with_a_channel_goes_what_was_written_of_it_and_its_children() {
        let written = Written::default();
        let of = |kind: &str, name: &str| (kind.to_owned(), "shop".to_owned(), name.to_owned());
        let all = [
            of("Channel", "mail"),
            of("Deployment", "herald-mail"),
            of("Schedule", "mail"),
            of("Deployment", "herald-other"),
            of("ConfigMap", "herald-mail-0123456789"),
            of("ConfigMap", "herald-mail-urgent-0123456789"),
        ];
        for key in &all {
            let value = json!({"metadata": {"resourceVersion": "1"}});
            written.remember_value(key.clone(), value);
        }
        written.forget_all(Kind::Channel, "elsewhere", "mail");
        assert!(all.iter().all(|key| written.of(key).is_some()));
        written.forget_all(Kind::Channel, "shop", "mail");
        let left = all.map(|key| written.of(&key).is_some());
        assert_eq!(left, [false, false, true, true, false, true]);
    }

    #[test]
    fn what_is_gone_counts_no_more() {
        let written = Written::default();
        written.remember(&account("12"));
        written.forget(&key(&account("0")));
        assert_eq!(seen(&written, None), None);
    }
}
