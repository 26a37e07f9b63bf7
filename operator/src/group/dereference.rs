//! What a group refers to. Reads what is watched, nothing else.

use herald_crds::{RecipientGroup, Resource, ResourceSet, Who};
use kube::ResourceExt as _;

use crate::watch::Stores;

/// A group with the groups that are in it, and those in these, and so on.
pub fn dereference(stores: &Stores, group: &RecipientGroup) -> ResourceSet {
    let namespace = group.namespace().unwrap_or_default();
    let mut set = ResourceSet::default();
    let resource = Resource::RecipientGroup(Box::new(group.clone()));
    set.insert(resource, &namespace);
    let mut next = vec![group.clone()];
    while let Some(group) = next.pop() {
        for member in &group.spec.members {
            let Some(Who::Group(name)) = member.who() else {
                continue;
            };
            let key = (namespace.clone(), name.to_owned());
            if set.groups.contains_key(&key) {
                continue;
            }
            let found = stores.group(&namespace, name);
            if let Some(Ok(found)) = found.as_deref().map(|found| &found.0) {
                let resource = Resource::RecipientGroup(Box::new(found.clone()));
                set.insert(resource, &namespace);
                next.push(found.clone());
            }
        }
    }
    set
}
