//! Whether a Channel can be brought about. Pure.

use std::collections::{BTreeMap, BTreeSet};

use herald_crds::{Channel, Validate as _, names};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use kube::{Resource as _, ResourceExt as _};

use super::dereference::{Found, Topics, Uids, named};
use crate::status::{Because, Verdict, sentence};
use crate::watch::{Stores, get};

/// A Channel that can be brought about.
#[derive(Debug, Clone)]
pub struct Valid<'a> {
    /// As it is declared.
    pub channel: &'a Channel,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What makes its children go with it.
    pub owner: OwnerReference,
    /// To whom its Pulsar namespace belongs.
    pub uids: Uids,
    /// The Secrets with credentials that it names.
    pub secrets: BTreeSet<String>,
    /// The `ConfigMaps` with certificates that it names.
    pub authorities: BTreeSet<String>,
    /// What it names and what is not there: without it there are topics, and no pods yet.
    pub missing: Option<Because>,
}

/// Looks at a Channel and what was found of it. Errors: what is wrong, as it is told.
pub fn validate<'a>(channel: &'a Channel, found: &Found) -> Result<Valid<'a>, Verdict> {
    let problems = channel.validate();
    if !problems.is_empty() {
        let because = Because::new("InvalidSpec", sentence(&problems));
        return Err(Verdict::Stalled(because));
    }
    let namespace = channel.namespace().unwrap_or_default();
    let (Some(uids), Some(owner)) = (&found.uids, channel.controller_owner_ref(&())) else {
        let message = format!("namespace {namespace} is not known yet");
        return Err(Verdict::Waiting(Because::new("NamespaceMissing", message)));
    };
    if let Topics::Seen(seen) = &found.topics
        && let Some(properties) = &seen.properties
        && !adopts(channel)
        && let Some(because) = belongs_to_another(properties, uids, &namespace)
    {
        return Err(Verdict::Stalled(because));
    }
    let (secrets, authorities) = named(channel);
    Ok(Valid {
        missing: missing(&namespace, &authorities, found),
        name: channel.name_any(),
        owner,
        uids: uids.clone(),
        secrets,
        authorities,
        namespace,
        channel,
    })
}

/// Looks at a Channel where nothing is made for it. One process delivers, in the operator's `own` namespace, and reads the
/// Secrets of that namespace, for the Channels of that namespace.
pub fn alone(channel: &Channel, stores: &Stores, own: &str) -> Verdict {
    let problems = channel.validate();
    if !problems.is_empty() {
        return Verdict::Stalled(Because::new("InvalidSpec", sentence(&problems)));
    }
    let namespace = channel.namespace().unwrap_or_default();
    let (needed, authorities) = named(channel);
    if namespace != own
        && let Some(named) = (needed.iter().map(|name| format!("Secret {name}")))
            .chain(authorities.iter().map(|name| format!("ConfigMap {name}")))
            .next()
    {
        // Where it is declared cannot be edited, what it names can.
        let message = format!(
            "{named} is not read: with broker: embedded, credentials are read in namespace {own} alone: declare this Channel there, or take out what it refers to, or run Herald over Pulsar, where its pods are in its own namespace"
        );
        return Verdict::Stalled(Because::new("SecretOutOfReach", message));
    }
    let present = |name: &&String| get(&stores.secrets, &namespace, name).is_some();
    let found = Found {
        secrets: needed.iter().filter(present).cloned().collect(),
        needed,
        ..Found::default()
    };
    match missing(&namespace, &BTreeSet::new(), &found) {
        Some(because) => Verdict::Waiting(because),
        None => Verdict::Ready(Because::new(
            "Declared",
            "it is in force; nothing is made for it in Kubernetes, since the broker is embedded",
        )),
    }
}

/// Whether its owner wants its Pulsar namespace taken over.
pub fn adopts(channel: &Channel) -> bool {
    let annotations = channel.annotations();
    annotations.get(names::ADOPT).is_some_and(|v| v == "true")
}

/// A Pulsar namespace that carries another cluster's or namespace's uid holds what is not ours.
fn belongs_to_another(
    properties: &BTreeMap<String, String>,
    uids: &Uids,
    namespace: &str,
) -> Option<Because> {
    let of_other = |property, own: &str| properties.get(property).filter(|uid| *uid != own);
    let (whose, uid) = if let Some(uid) = of_other(names::CLUSTER_PROPERTY, &uids.cluster) {
        ("another Kubernetes cluster", uid)
    } else if let Some(uid) = of_other(names::NAMESPACE_PROPERTY, &uids.namespace) {
        ("an earlier namespace of the same name", uid)
    } else {
        return None;
    };
    let message = format!(
        "the Pulsar namespace {namespace} belongs to {whose} ({uid}): annotate this Channel with {}=true to take it over with all that waits in it, or delete it in Pulsar",
        names::ADOPT
    );
    Some(Because::new("NamespaceOfAnother", message))
}

fn missing(namespace: &str, authorities: &BTreeSet<String>, found: &Found) -> Option<Because> {
    if let Some(secret) = found.needed.difference(&found.secrets).next() {
        let message = format!(
            "there is no Secret {namespace}/{secret} with the label {}=true",
            names::CREDENTIALS
        );
        return Some(Because::new("SecretMissing", message));
    }
    let authority = authorities.difference(&found.authorities).next()?;
    let message = format!("there is no ConfigMap {namespace}/{authority}");
    Some(Because::new("ConfigMapMissing", message))
}
