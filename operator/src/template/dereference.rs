//! What a template refers to. Reads what is watched, nothing else.

use std::collections::BTreeSet;

use herald_crds::{NotificationTemplate, Resource, ResourceSet};
use kube::ResourceExt as _;

use crate::watch::Stores;

/// A template with the Channels that it routes to, and the templates whose partials it may include.
pub fn dereference(stores: &Stores, template: &NotificationTemplate) -> ResourceSet {
    let namespace = template.namespace().unwrap_or_default();
    let mut set = ResourceSet::default();
    add_channels(stores, &mut set, &namespace, template);
    add_owners(stores, &mut set, &namespace, template);
    set.insert(
        Resource::NotificationTemplate(Box::new(template.clone())),
        &namespace,
    );
    set
}

/// The Channels that a template routes to, and the labels by which they may allow it.
pub fn add_channels(
    stores: &Stores,
    set: &mut ResourceSet,
    namespace: &str,
    template: &NotificationTemplate,
) {
    for route in &template.spec.routing.channels {
        let home = route.namespace.as_deref().unwrap_or(namespace);
        let found = stores.channel(home, &route.name);
        if let Some(Ok(channel)) = found.as_deref().map(|found| &found.0)
            && !set
                .channels
                .contains_key(&(home.to_owned(), route.name.clone()))
        {
            set.insert(Resource::Channel(Box::new(channel.clone())), home);
        }
    }
    if let Some(found) = stores.namespace(namespace) {
        let labels = found.labels().clone();
        set.namespace_labels.insert(namespace.to_owned(), labels);
    }
}

/// The templates whose partials a template includes, and those that these include, and so on.
///
/// Which they are is read off the sources: `brand/` somewhere in one is enough for template `brand` to be there. One too
/// many does no harm.
pub fn add_owners(
    stores: &Stores,
    set: &mut ResourceSet,
    namespace: &str,
    template: &NotificationTemplate,
) {
    let mut next = vec![template.clone()];
    let mut seen = BTreeSet::from([template.name_any()]);
    while let Some(template) = next.pop() {
        for owner in mentioned(&template) {
            if !seen.insert(owner.clone()) {
                continue;
            }
            let found = stores.template(namespace, &owner);
            if let Some(Ok(found)) = found.as_deref().map(|found| &found.0) {
                let resource = Resource::NotificationTemplate(Box::new(found.clone()));
                set.insert(resource, namespace);
                next.push(found.clone());
            }
        }
    }
}

/// Every word before a `/` in what a template says.
fn mentioned(template: &NotificationTemplate) -> BTreeSet<String> {
    let spec = &template.spec;
    let sources = serde_json::to_string(&(&spec.content, &spec.translations, &spec.partials));
    let sources = sources.unwrap_or_default();
    let is_of_a_name = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    sources
        .match_indices('/')
        .filter_map(|(at, _)| {
            let before = &sources[..at];
            let name = &before[before.trim_end_matches(is_of_a_name).len()..];
            (!name.is_empty() && name.len() <= 40).then(|| name.to_owned())
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn owners_are_found_in_what_a_template_says() {
        let template: NotificationTemplate = serde_json::from_value(json!({
            "metadata": {"name": "a"},
            "spec": {
                "routing": {"channels": [{"name": "mail"}]},
                "content": {"sms": {"text": "{% include \"brand/footer\" %} {% include 'x-1/y' %}"}},
                "partials": {"p": "</div>"},
            },
        }))
        .unwrap();
        let found = mentioned(&template);
        assert!(
            found.contains("brand") && found.contains("x-1"),
            "{found:?}"
        );
    }
}
