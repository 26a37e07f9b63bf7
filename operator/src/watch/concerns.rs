//! Whom a change concerns. Pure: from what changed and what is known to who is to be looked at.

use std::collections::{BTreeSet, HashMap};
use std::sync::{PoisonError, RwLock};

use herald_crds::{
    Channel, Kind, NotificationTemplate, NotificationTemplateSpec, RecipientGroup, Schedule, Who,
    names,
};
use k8s_openapi::api::core::v1::{Namespace, Secret};
use kube::core::PartialObjectMeta;
use kube::{Resource, ResourceExt};

use super::Stores;
use crate::queue::{Guard, Wake};
use crate::written::{Written, key};

/// An object as it was and as it is; one of them is there.
#[derive(Debug)]
pub struct Change<'a, K> {
    /// As it was; `None`: it is new.
    pub old: Option<&'a K>,
    /// As it is; `None`: it is gone.
    pub new: Option<&'a K>,
}

impl<K: Resource<DynamicType = ()>> Change<'_, K> {
    /// What is gone was written by nobody.
    pub(super) fn forget(&self, written: &Written) {
        if let (Some(old), None) = (self.old, self.new) {
            written.forget(&key(old));
        }
    }

    fn any(&self) -> Option<&K> {
        self.new.or(self.old)
    }

    fn place(&self) -> (String, String) {
        self.any().map_or_else(Default::default, |any| {
            (any.namespace().unwrap_or_default(), any.name_any())
        })
    }

    /// Whether it came, went, or says something else; a status is nothing that it says.
    fn says_otherwise(&self) -> bool {
        match (self.old, self.new) {
            (Some(old), Some(new)) => {
                old.meta().generation != new.meta().generation || old.meta().uid != new.meta().uid
            }
            _ => true,
        }
    }

    /// Whether its own reconciler has to look at it: also when it is being deleted, or asked for by an annotation.
    fn is_news(&self) -> bool {
        let marks = |object: &K| {
            let meta = object.meta();
            (
                meta.deletion_timestamp.clone(),
                meta.annotations.clone(),
                meta.finalizers.clone(),
            )
        };
        self.new.is_some() && (self.says_otherwise() || self.old.map(marks) != self.new.map(marks))
    }

    fn own(&self, kind: Kind) -> Vec<Wake> {
        if !self.is_news() {
            return Vec::new();
        }
        let (namespace, name) = self.place();
        vec![Wake(kind, namespace, name)]
    }
}

/// Which templates include which others, as it was when they were compiled last.
#[derive(Debug, Default)]
pub struct Includes(RwLock<HashMap<(String, String), Owners>>);

/// The templates whose partials one includes.
type Owners = Option<BTreeSet<String>>;

impl Includes {
    /// A template includes partials of these; `None`: it does not compile, so any other may be missed.
    pub fn set(&self, namespace: &str, name: &str, owners: Owners) {
        let key = (namespace.to_owned(), name.to_owned());
        let mut known = self.0.write().unwrap_or_else(PoisonError::into_inner);
        if owners.as_ref().is_some_and(BTreeSet::is_empty) {
            known.remove(&key);
        } else {
            known.insert(key, owners);
        }
    }

    fn forget(&self, namespace: &str, name: &str) {
        let key = (namespace.to_owned(), name.to_owned());
        self.0
            .write()
            .unwrap_or_else(PoisonError::into_inner)
            .remove(&key);
    }

    /// The templates of a namespace that may include something of `owner`.
    fn of(&self, namespace: &str, owner: &str) -> Vec<String> {
        let known = self.0.read().unwrap_or_else(PoisonError::into_inner);
        known
            .iter()
            .filter(|((own, name), owners)| {
                own == namespace
                    && name != owner
                    && owners.as_ref().is_none_or(|owners| owners.contains(owner))
            })
            .map(|((_, name), _)| name.clone())
            .collect()
    }
}

fn routes_to(template: &NotificationTemplateSpec, home: &str, channel: (&str, &str)) -> bool {
    template.routing.channels.iter().any(|route| {
        let namespace = route.namespace.as_deref().unwrap_or(home);
        (namespace, route.name.as_str()) == channel
    })
}

/// A Channel: itself, the templates that route to it, and the Schedules of these.
pub(super) fn channel(stores: &Stores, change: &Change<'_, Guard<Channel>>) -> Vec<Wake> {
    let mut wakes = change.own(Kind::Channel);
    if !change.says_otherwise() {
        return wakes;
    }
    let (namespace, name) = change.place();
    let mut routing = BTreeSet::new();
    for template in stores.templates.state() {
        let Ok(template) = &template.0 else { continue };
        let home = template.namespace().unwrap_or_default();
        if routes_to(&template.spec, &home, (&namespace, &name)) {
            wakes.push(Wake(
                Kind::NotificationTemplate,
                home.clone(),
                template.name_any(),
            ));
            routing.insert((home, template.name_any()));
        }
    }
    if !routing.is_empty() {
        for schedule in stores.schedules.state() {
            let Ok(schedule) = &schedule.0 else { continue };
            let home = schedule.namespace().unwrap_or_default();
            let template = (home, schedule.spec.template.clone());
            if routing.contains(&template) {
                wakes.push(Wake(Kind::Schedule, template.0, schedule.name_any()));
            }
        }
    }
    wakes
}

/// A template: itself, those that include something of it, and the Schedules that send it.
pub(super) fn template(
    stores: &Stores,
    change: &Change<'_, Guard<NotificationTemplate>>,
) -> Vec<Wake> {
    let mut wakes = change.own(Kind::NotificationTemplate);
    if !change.says_otherwise() {
        return wakes;
    }
    let (namespace, name) = change.place();
    if change.new.is_none() {
        stores.includes.forget(&namespace, &name);
    }
    for other in stores.includes.of(&namespace, &name) {
        wakes.push(Wake(Kind::NotificationTemplate, namespace.clone(), other));
    }
    wakes.extend(schedules(stores, &namespace, |schedule| {
        schedule.spec.template == name
    }));
    wakes
}

/// A group: itself, the groups of its namespace that have groups in them (it may close a circle anywhere), and the
/// Schedules that send to it.
pub(super) fn group(stores: &Stores, change: &Change<'_, Guard<RecipientGroup>>) -> Vec<Wake> {
    let mut wakes = change.own(Kind::RecipientGroup);
    if !change.says_otherwise() {
        return wakes;
    }
    let (namespace, name) = change.place();
    for other in stores.groups.state() {
        let Ok(other) = &other.0 else { continue };
        let nests =
            |member: &herald_crds::RecipientRef| matches!(member.who(), Some(Who::Group(_)));
        if other.namespace().as_deref() == Some(&*namespace)
            && other.name_any() != name
            && other.spec.members.iter().any(nests)
        {
            wakes.push(Wake(
                Kind::RecipientGroup,
                namespace.clone(),
                other.name_any(),
            ));
        }
    }
    wakes.extend(schedules(stores, &namespace, |schedule| {
        let recipients = schedule.spec.recipients.iter();
        recipients
            .filter_map(herald_crds::RecipientRef::who)
            .any(|who| matches!(who, Who::Group(group) if group == name))
    }));
    wakes
}

/// A Schedule: itself.
pub(super) fn schedule(_: &Stores, change: &Change<'_, Guard<Schedule>>) -> Vec<Wake> {
    change.own(Kind::Schedule)
}

fn schedules(stores: &Stores, namespace: &str, concerned: impl Fn(&Schedule) -> bool) -> Vec<Wake> {
    let all = stores.schedules.state();
    all.iter()
        .filter_map(|schedule| schedule.0.as_ref().ok())
        .filter(|s| s.namespace().as_deref() == Some(namespace) && concerned(s))
        .map(|s| Wake(Kind::Schedule, namespace.to_owned(), s.name_any()))
        .collect()
}

/// A namespace: its Channels if it is new or goes; its templates that route elsewhere if its labels are others.
pub(super) fn namespace(
    stores: &Stores,
    change: &Change<'_, PartialObjectMeta<Namespace>>,
) -> Vec<Wake> {
    let Some(new) = change.new else {
        return Vec::new();
    };
    let name = new.name_any();
    let mut wakes = Vec::new();
    let going = |n: &PartialObjectMeta<Namespace>| n.metadata.deletion_timestamp.is_some();
    if change.old.map(going) != Some(going(new))
        || change.old.map(ResourceExt::uid) != Some(new.uid())
    {
        for channel in stores.channels.state() {
            if channel.namespace().as_deref() == Some(&*name) {
                wakes.push(Wake(Kind::Channel, name.clone(), channel.name_any()));
            }
        }
    }
    if change.old.map(ResourceExt::labels) != Some(new.labels()) {
        for template in stores.templates.state() {
            let Ok(template) = &template.0 else { continue };
            let routes = &template.spec.routing.channels;
            if template.namespace().as_deref() == Some(&*name)
                && routes.iter().any(|route| route.namespace.is_some())
            {
                let template = template.name_any();
                wakes.push(Wake(Kind::NotificationTemplate, name.clone(), template));
            }
        }
    }
    wakes
}

/// A Secret with the label, that came or went: the Channels that mount it; if it is the pods' `token`, all of its namespace.
pub(super) fn secret(
    stores: &Stores,
    token: Option<&str>,
    change: &Change<'_, PartialObjectMeta<Secret>>,
) -> Vec<Wake> {
    if change.old.is_some() && change.new.is_some() {
        return Vec::new();
    }
    let (namespace, name) = change.place();
    let all = stores.channels.state();
    all.iter()
        .filter_map(|channel| channel.0.as_ref().ok())
        .filter(|channel| {
            let providers = channel.spec.providers.iter();
            let mut named = providers.filter_map(|provider| {
                let spec = provider.spec()?;
                spec.credentials().map(str::to_owned)
            });
            channel.namespace().as_deref() == Some(&*namespace)
                && (token == Some(&*name) || named.any(|n| n == name))
        })
        .map(|channel| Wake(Kind::Channel, namespace.clone(), channel.name_any()))
        .collect()
}

/// Something that was made for a Channel: that Channel.
pub(super) fn child<K: Resource<DynamicType = ()>>(change: &Change<'_, K>) -> Vec<Wake> {
    let Some(object) = change.any() else {
        return Vec::new();
    };
    let Some(channel) = object.labels().get(names::CHANNEL_LABEL) else {
        return Vec::new();
    };
    let namespace = object.namespace().unwrap_or_default();
    vec![Wake(Kind::Channel, namespace, channel.clone())]
}

#[cfg(test)]
mod tests {
    use kube::runtime::reflector::store::Writer;
    use kube::runtime::watcher::Event;
    use serde::de::DeserializeOwned;
    use serde_json::{Value, json};

    use super::*;

    fn object<K: DeserializeOwned>(name: &str, generation: i64, spec: &Value) -> K {
        let metadata = json!({"name": name, "namespace": "shop", "generation": generation});
        serde_json::from_value(json!({"metadata": metadata, "spec": spec})).unwrap()
    }

    fn fill<K>(writer: &mut Writer<K>, objects: Vec<K>)
    where
        K: Resource<DynamicType = ()> + Clone + 'static,
    {
        for object in objects {
            writer.apply_watcher_event(&Event::Apply(object));
        }
    }

    fn template(name: &str, channel: &str) -> Guard<NotificationTemplate> {
        let spec = json!({"routing": {"channels": [{"name": channel}]}, "content": {"sms": {"text": "a"}}});
        object(name, 1, &spec)
    }

    fn channel(generation: i64) -> Guard<Channel> {
        let smtp =
            json!({"host": "h", "from": "a@shop.example", "credentialsRef": {"name": "login"}});
        let spec = json!({"medium": "email", "providers": [{"name": "a", "smtp": smtp}]});
        object("mail", generation, &spec)
    }

    fn names_of(wakes: Vec<Wake>) -> Vec<String> {
        let mut names: Vec<_> = wakes
            .into_iter()
            .map(|w| format!("{} {}", w.0.as_str(), w.2))
            .collect();
        names.sort();
        names
    }

    #[test]
    fn a_channel_concerns_those_that_route_to_it_unless_only_its_status_changed() {
        let (stores, mut writers) = Stores::new();
        let templates = vec![template("a", "mail"), template("b", "sms")];
        fill(&mut writers.templates, templates);
        let digest =
            json!({"schedule": "0 9 * * *", "template": "a", "recipients": [{"recipient": "x"}]});
        fill(&mut writers.schedules, vec![object("digest", 1, &digest)]);
        let (old, new) = (channel(1), channel(2));
        let change = |old, new| super::channel(&stores, &Change { old, new });
        let concerned = ["Channel mail", "NotificationTemplate a", "Schedule digest"];
        assert_eq!(names_of(change(None, Some(&old))), concerned);
        assert_eq!(names_of(change(Some(&old), Some(&new))), concerned);
        assert_eq!(names_of(change(Some(&old), None)), concerned[1..]);
        assert!(change(Some(&old), Some(&old)).is_empty());
    }

    #[test]
    fn a_template_concerns_those_that_include_it_and_those_that_miss_something() {
        let (stores, _writers) = Stores::new();
        let includes = &stores.includes;
        includes.set("shop", "uses", Some(BTreeSet::from(["brand".to_owned()])));
        includes.set("shop", "other", Some(BTreeSet::from(["else".to_owned()])));
        includes.set("shop", "broken", None);
        includes.set("elsewhere", "uses", None);
        let brand = template("brand", "mail");
        let wakes = super::template(
            &stores,
            &Change {
                old: None,
                new: Some(&brand),
            },
        );
        let concerned = ["brand", "broken", "uses"].map(|n| format!("NotificationTemplate {n}"));
        assert_eq!(names_of(wakes), concerned);
    }

    #[test]
    fn a_secret_concerns_the_channels_that_mount_it() {
        let (stores, mut writers) = Stores::new();
        fill(&mut writers.channels, vec![channel(1)]);
        let secret = |name: &str| -> PartialObjectMeta<Secret> { object(name, 1, &json!({})) };
        let concerned = |name: &str| {
            let secret = secret(name);
            let change = Change {
                old: None,
                new: Some(&secret),
            };
            names_of(super::secret(&stores, Some("herald-pulsar"), &change))
        };
        assert_eq!(concerned("login"), ["Channel mail"]);
        assert_eq!(concerned("herald-pulsar"), ["Channel mail"]);
        assert!(concerned("other").is_empty());
    }

    #[test]
    fn an_annotation_that_asks_for_it_and_a_deletion_are_news() {
        let old = channel(1);
        let mut asked = channel(1);
        let annotations = asked.annotations_mut();
        annotations.insert(names::RECONCILE_AT.to_owned(), "now".to_owned());
        let mut told = channel(1);
        told.meta_mut().resource_version = Some("9".to_owned());
        let is_news = |new| {
            Change {
                old: Some(&old),
                new: Some(new),
            }
            .is_news()
        };
        assert!(is_news(&asked));
        assert!(!is_news(&told));
    }
}
