//! Server-side apply that is only sent if it would change something.

use k8s_openapi::NamespaceResourceScope;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, Preconditions};
use kube::{Api, Resource, ResourceExt as _};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;
use sha2::{Digest as _, Sha256};

use herald_crds::names;

use crate::context::Context;
use crate::error::Error;

/// Makes an object what `wanted` says; `watched` is what the watch told of it. What others added to it stays.
///
/// Answers whether something had to be written. What `wanted` no longer says, but said before, is found by the hash of
/// it that the object carries; what somebody changed, by comparing.
pub async fn apply<K>(ctx: &Context, mut wanted: K, watched: Option<&K>) -> Result<bool, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Serialize
        + DeserializeOwned
        + Clone
        + std::fmt::Debug,
{
    let latest = ctx.written.latest(&wanted, watched);
    if latest.is_none() {
        check_free(ctx, &wanted).await?;
    }
    let Some(patch) = due(&mut wanted, latest.as_ref())? else {
        return Ok(false);
    };
    write(ctx, &wanted, &patch, names::FIELD_MANAGER).await?;
    Ok(true)
}

/// What has to be applied to make `latest` what `wanted` says, which gets the hash of itself; `None`: nothing. An error: it
/// is somebody else's.
pub fn due<K>(wanted: &mut K, latest: Option<&Value>) -> Result<Option<Value>, Error>
where
    K: Resource<DynamicType = ()> + Serialize,
{
    let hash = hash(&json(wanted));
    let annotations = wanted.annotations_mut();
    annotations.insert(names::APPLIED.to_owned(), hash);
    let patch = json(wanted);
    if let Some(latest) = latest {
        if covers(latest, &patch) {
            return Ok(None);
        }
        check_owner(wanted, &latest["metadata"])?;
    }
    Ok(Some(patch))
}

/// Sees to it that there is no object of this name that somebody else has made: an apply would take it over, and it would
/// go with the Channel. For one that no watch tells of, since it lacks our labels.
pub async fn check_free<K>(ctx: &Context, wanted: &K) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + DeserializeOwned
        + Clone
        + std::fmt::Debug,
{
    let name = wanted.name_any();
    // A list of one: what may be watched may be listed.
    let of_it = ListParams::default().fields(&format!("metadata.name={name}"));
    let found = api_of(ctx, wanted).list_metadata(&of_it).await;
    let found = found.map_err(|source| Error::Read {
        kind: format!("{} {name}", K::kind(&())),
        source: Box::new(source),
    })?;
    match found.items.into_iter().find(|one| one.name_any() == name) {
        Some(found) => check_owner(
            wanted,
            &serde_json::to_value(found.metadata).unwrap_or_default(),
        ),
        None => Ok(()),
    }
}

/// Whether what is there is ours: it has an owner that `wanted` has, be it an earlier one of the same name, or we have
/// applied it before somebody took its owner away.
fn check_owner<K: Resource<DynamicType = ()>>(wanted: &K, found: &Value) -> Result<(), Error> {
    let is_owner = |owner: &Value| {
        let group = |version: &str| version.split_once('/').map(|(group, _)| group.to_owned());
        let mut wanted = wanted.owner_references().iter();
        wanted.any(|wanted| {
            owner["kind"] == *wanted.kind
                && owner["name"] == *wanted.name
                && owner["apiVersion"].as_str().and_then(group) == group(&wanted.api_version)
        })
    };
    let mut owners = found["ownerReferences"].as_array().into_iter().flatten();
    if owners.any(is_owner) || found["annotations"].get(names::APPLIED).is_some() {
        return Ok(());
    }
    Err(Error::NameTaken {
        kind: K::kind(&()).into_owned(),
        name: format!(
            "{}/{}",
            wanted.namespace().unwrap_or_default(),
            wanted.name_any()
        ),
    })
}

/// Applies `patch` to the object that `like` names, as this field manager, whatever it is now.
pub async fn write<K>(
    ctx: &Context,
    like: &K,
    patch: &Value,
    manager: &'static str,
) -> Result<K, Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + Serialize
        + DeserializeOwned
        + Clone
        + std::fmt::Debug,
{
    let name = like.name_any();
    let api = api_of(ctx, like);
    let parameters = PatchParams::apply(manager).force();
    let written = api.patch(&name, &parameters, &Patch::Apply(patch)).await;
    let written = written.map_err(|source| Error::Apply {
        kind: K::kind(&()).into_owned(),
        name,
        source: Box::new(source),
    })?;
    ctx.metrics.wrote(&K::kind(&()), "apply");
    ctx.written.remember(&written);
    Ok(written)
}

/// Deletes an object, and what it owns in the background; none is fine, and so is another of the same name.
pub async fn delete<K>(ctx: &Context, object: &K) -> Result<(), Error>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>
        + DeserializeOwned
        + Clone
        + std::fmt::Debug,
{
    let name = object.name_any();
    let parameters = DeleteParams::background().preconditions(Preconditions {
        uid: object.uid(),
        resource_version: None,
    });
    match api_of(ctx, object).delete(&name, &parameters).await {
        Ok(_) => {
            ctx.metrics.wrote(&K::kind(&()), "delete");
            Ok(())
        }
        Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => Ok(()),
        Err(source) => Err(Error::Delete {
            kind: K::kind(&()).into_owned(),
            name,
            source: Box::new(source),
        }),
    }
}

fn api_of<K>(ctx: &Context, like: &K) -> Api<K>
where
    K: Resource<DynamicType = (), Scope = NamespaceResourceScope>,
{
    let namespace = like.namespace().unwrap_or_default();
    Api::namespaced(ctx.client.clone(), &namespace)
}

/// An object as JSON, with `apiVersion` and `kind`.
pub fn json<K: Resource<DynamicType = ()> + Serialize>(object: &K) -> Value {
    let mut value = serde_json::to_value(object).unwrap_or_default();
    value["apiVersion"] = K::api_version(&()).into();
    value["kind"] = K::kind(&()).into();
    value
}

/// Sixteen hexadecimal digits that are the same for the same JSON, whatever the order of its keys.
pub fn hash(value: &Value) -> String {
    let mut value = value.clone();
    value.sort_all_objects();
    let digest: [u8; 32] = Sha256::digest(value.to_string().as_bytes()).into();
    let [first, ..] = digest.as_chunks::<8>().0 else {
        unreachable!("there are four of eight bytes");
    };
    format!("{:016x}", u64::from_be_bytes(*first))
}

/// Whether `live` says all that `wanted` says, beside what the API server and others have added.
pub fn covers(live: &Value, wanted: &Value) -> bool {
    match (live, wanted) {
        // An empty value is left out by the API server.
        (Value::Null, wanted) => is_empty(wanted),
        (Value::Object(live), Value::Object(wanted)) => wanted
            .iter()
            .all(|(key, wanted)| covers(live.get(key).unwrap_or(&Value::Null), wanted)),
        (Value::Array(live), Value::Array(wanted)) => covers_list(live, wanted),
        (Value::String(live), Value::String(wanted)) => {
            live == wanted || same_quantity(live, wanted)
        }
        (live, wanted) => live == wanted,
    }
}

fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(members) => members.values().all(is_empty),
        Value::Bool(_) | Value::Number(_) => false,
    }
}

/// What identifies an item of a list that several field managers share.
const KEYS: [&str; 3] = ["mountPath", "uid", "name"];

fn covers_list(live: &[Value], wanted: &[Value]) -> bool {
    let key = KEYS
        .into_iter()
        .find(|key| !wanted.is_empty() && wanted.iter().all(|item| item.get(key).is_some()));
    match key {
        Some(key) => wanted.iter().all(|wanted| {
            live.iter()
                .any(|live| live[key] == wanted[key] && covers(live, wanted))
        }),
        None => {
            live.len() == wanted.len()
                && live
                    .iter()
                    .zip(wanted)
                    .all(|(live, wanted)| covers(live, wanted))
        }
    }
}

/// Whether both are the same amount in the notation of Kubernetes: the API server answers `0.5` with `500m`.
fn same_quantity(live: &str, wanted: &str) -> bool {
    match (quantity(live), quantity(wanted)) {
        (Some(live), Some(wanted)) => (live - wanted).abs() <= live.abs() * 1e-9,
        _ => false,
    }
}

fn quantity(text: &str) -> Option<f64> {
    const SUFFIXES: [(&str, f64); 15] = [
        ("Ki", 1024.0),
        ("Mi", 1_048_576.0),
        ("Gi", 1_073_741_824.0),
        ("Ti", 1_099_511_627_776.0),
        ("Pi", 1_125_899_906_842_624.0),
        ("Ei", 1_152_921_504_606_846_976.0),
        ("n", 1e-9),
        ("u", 1e-6),
        ("m", 1e-3),
        ("k", 1e3),
        ("M", 1e6),
        ("G", 1e9),
        ("T", 1e12),
        ("P", 1e15),
        ("E", 1e18),
    ];
    if !text.starts_with(|first: char| first.is_ascii_digit() || "+-.".contains(first)) {
        return None;
    }
    let found = SUFFIXES
        .iter()
        .find_map(|(suffix, factor)| Some((text.strip_suffix(suffix)?, factor)));
    match found {
        Some((number, factor)) => Some(number.parse::<f64>().ok()? * factor),
        None => text.parse().ok(),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_others_added_is_no_difference() {
        let wanted = json!({"spec": {"containers": [
            {"name": "deliver", "image": "herald:1", "env": [{"name": "A", "value": "1"}], "args": ["deliver"]},
        ]}});
        let live = json!({"spec": {"restartPolicy": "Always", "containers": [
            {"name": "sidecar", "image": "mesh:1"},
            {"name": "deliver", "image": "herald:1", "env": [{"name": "B"}, {"name": "A", "value": "1"}], "args": ["deliver"], "terminationMessagePath": "/x"},
        ]}, "status": {}});
        assert!(covers(&live, &wanted));
    }

    #[test]
    fn what_somebody_changed_is_one() {
        let wanted = json!({"spec": {"automount": false, "image": "herald:1", "args": ["a", "b"]}});
        for live in [
            json!({"spec": {"automount": true, "image": "herald:1", "args": ["a", "b"]}}),
            json!({"spec": {"automount": false, "image": "evil:1", "args": ["a", "b"]}}),
            json!({"spec": {"automount": false, "image": "herald:1", "args": ["a", "b", "c"]}}),
            json!({"spec": {"image": "herald:1", "args": ["a", "b"]}}),
            json!({}),
        ] {
            assert!(!covers(&live, &wanted), "{live}");
        }
    }

    #[test]
    fn what_the_server_leaves_out_or_writes_otherwise_is_none() {
        let wanted = json!({"emptyDir": {}, "value": "", "cpu": "0.5", "memory": "1024Mi"});
        let live = json!({"emptyDir": {}, "cpu": "500m", "memory": "1Gi"});
        assert!(covers(&live, &wanted));
        let more = json!({"emptyDir": {}, "cpu": "600m", "memory": "1Gi"});
        assert!(!covers(&more, &wanted));
    }

    #[test]
    fn quantities_are_compared_as_amounts_and_words_are_not() {
        assert!(same_quantity("2e3", "2k"));
        assert!(same_quantity("100m", "0.1"));
        assert!(!same_quantity("100m", "1"));
        assert!(!same_quantity("inf", "infinity"));
        assert!(!same_quantity("herald", "herald:1"));
    }

    #[test]
    fn a_hash_does_not_depend_on_the_order_of_keys() {
        assert_eq!(
            hash(&json!({"a": 1, "b": {"c": 2, "d": 3}})),
            hash(&json!({"b": {"d": 3, "c": 2}, "a": 1}))
        );
        assert_ne!(hash(&json!({"a": 1})), hash(&json!({"a": 2})));
        assert_eq!(hash(&json!({})).len(), 16);
    }
}
