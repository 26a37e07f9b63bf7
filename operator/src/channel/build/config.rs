//! What pods are told: the Channel and the settings, in an immutable `ConfigMap` whose name tells what is in it.

use std::collections::BTreeMap;

use herald_crds::kind::API_VERSION;
use herald_crds::{ChannelSpec, Kind, names};
use k8s_openapi::api::core::v1::ConfigMap;
use serde_json::{Value, json};

use super::super::validate::Valid;
use super::pod::{AUTHORITY, CHANNEL, CREDENTIALS, SETTINGS, folder, pulsar_token};
use crate::apply::hash;
use crate::settings::PodSettings;

/// The `ConfigMap` of a Channel's pods.
pub fn config_map(valid: &Valid<'_>, pods: &PodSettings) -> ConfigMap {
    let channel = json!({
        "apiVersion": API_VERSION,
        "kind": Kind::Channel.as_str(),
        "metadata": {"name": valid.name, "namespace": valid.namespace},
        "spec": what_pods_read(&valid.channel.spec),
    });
    let mut data = BTreeMap::from([
        (CHANNEL.to_owned(), pretty(&channel)),
        (SETTINGS.to_owned(), pretty(&settings(valid, pods))),
    ]);
    if let Some(ca) = &pods.ca {
        data.insert(AUTHORITY.to_owned(), ca.clone());
    }
    let name = names::hashed_child(&valid.name, &hash(&json!(data)));
    let mut metadata = super::child_metadata(valid);
    metadata.name = Some(name);
    ConfigMap {
        metadata,
        data: Some(data),
        immutable: Some(true),
        ..ConfigMap::default()
    }
}

/// A Channel without what its pods do not read, so that a change of that replaces no pods.
fn what_pods_read(spec: &ChannelSpec) -> ChannelSpec {
    let ChannelSpec {
        description: _,
        medium,
        providers,
        rate_limit,
        concurrency,
        priority,
        retry,
        allowed_namespaces: _,
        topics,
        replicas: _,
        autoscaling: _,
        pod: _,
        suspend,
    } = spec.clone();
    let topics = topics.map(|mut topics| {
        topics.deletion_policy = None;
        topics
    });
    ChannelSpec {
        rate_limit,
        concurrency,
        priority,
        retry,
        // Partitions that are added are found by those alone that begin after.
        topics: topics.filter(|topics| topics.partitions.is_some()),
        suspend,
        ..ChannelSpec::new(medium, providers)
    }
}

/// The dispatcher's settings, as it reads them from a file.
fn settings(valid: &Valid<'_>, pods: &PodSettings) -> Value {
    let PodSettings {
        pulsar_url,
        pulsar_port: _,
        tenant,
        ca,
        auth: _,
        secret: _,
        role: _,
        image: _,
        image_pull_policy: _,
        log: _,
        window,
        horizon_seconds,
        drain_seconds,
        allow_private_addresses,
    } = pods;
    let mut settings = json!({
        "pulsarUrl": pulsar_url,
        "pulsarTenant": tenant,
        "namespace": valid.namespace,
        "channel": folder(CHANNEL),
        "credentials": CREDENTIALS,
        "drainSeconds": drain_seconds,
        "allowPrivateAddresses": allow_private_addresses,
    });
    let mut also = |name: &str, value: Option<Value>| {
        if let Some(value) = value {
            settings[name] = value;
        }
    };
    also(
        "pulsarCaFile",
        ca.as_ref().map(|_| json!(folder(AUTHORITY))),
    );
    also(
        "pulsarTokenFile",
        pulsar_token(pods).map(|path| json!(path)),
    );
    also("window", window.map(|window| json!(window)));
    also(
        "horizonSeconds",
        horizon_seconds.map(|seconds| json!(seconds)),
    );
    settings
}

/// JSON for people who look into the `ConfigMap`; it is YAML, too.
fn pretty(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}
