//! What a Schedule refers to. Reads what is watched, nothing else.

use herald_crds::{Resource, ResourceSet, Schedule, Who};
use kube::ResourceExt as _;

use crate::template::{add_channels, add_owners};
use crate::watch::Stores;

/// A Schedule with its template, what this includes and routes to, and the groups it is sent to.
pub fn dereference(stores: &Stores, schedule: &Schedule) -> ResourceSet {
    let namespace = schedule.namespace().unwrap_or_default();
    let mut set = ResourceSet::default();
    let found = stores.template(&namespace, &schedule.spec.template);
    if let Some(Ok(template)) = found.as_deref().map(|found| &found.0) {
        add_channels(stores, &mut set, &namespace, template);
        add_owners(stores, &mut set, &namespace, template);
        let resource = Resource::NotificationTemplate(Box::new(template.clone()));
        set.insert(resource, &namespace);
    }
    for recipient in &schedule.spec.recipients {
        let Some(Who::Group(name)) = recipient.who() else {
            continue;
        };
        let found = stores.group(&namespace, name);
        if let Some(Ok(group)) = found.as_deref().map(|found| &found.0)
            && !set
                .groups
                .contains_key(&(namespace.clone(), name.to_owned()))
        {
            set.insert(
                Resource::RecipientGroup(Box::new(group.clone())),
                &namespace,
            );
        }
    }
    set.insert(Resource::Schedule(Box::new(schedule.clone())), &namespace);
    set
}
