//! All resources together, and what is wrong between them.

use std::collections::{BTreeMap, HashSet, VecDeque};
use std::sync::Arc;

use serde::Serialize;

use crate::render::Compiled;
use crate::validate::Problem;
use crate::{
    Address, Channel, Definition, Kind, NotificationTemplate, RecipientGroup, Resource, Route,
    Schedule, Who,
};

/// A resource's namespace and name.
pub type Key = (String, String);

/// The labels of namespaces, by their names, as far as they are known.
pub type NamespaceLabels = BTreeMap<String, BTreeMap<String, String>>;

/// The labels of a namespace: those that are known, and `kubernetes.io/metadata.name`, which every namespace has.
pub fn labels_of(known: &NamespaceLabels, namespace: &str) -> BTreeMap<String, String> {
    let mut labels = known.get(namespace).cloned().unwrap_or_default();
    let name = "kubernetes.io/metadata.name".to_owned();
    labels.insert(name, namespace.to_owned());
    labels
}

/// How a problem is told: [`finding`] or [`waiting`].
type Say = fn(Kind, &Key, String, String) -> Finding;

/// A problem and whose it is.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub struct Finding {
    /// The kind of the resource.
    pub kind: Kind,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// What is wrong with it.
    pub problem: Problem,
    /// Whether another resource cures it, by appearing or by being changed; else this one has to be edited.
    #[serde(skip)]
    pub waits: bool,
}

/// All resources of a folder or a cluster, by namespace and name.
#[derive(Debug, Clone, Default)]
pub struct ResourceSet {
    /// The Channels.
    pub channels: BTreeMap<Key, Channel>,
    /// The `NotificationTemplates`.
    pub templates: BTreeMap<Key, NotificationTemplate>,
    /// The `RecipientGroups`.
    pub groups: BTreeMap<Key, RecipientGroup>,
    /// The Schedules.
    pub schedules: BTreeMap<Key, Schedule>,
    /// Labels of namespaces, for Channels that allow some by label.
    pub namespace_labels: NamespaceLabels,
    duplicates: Vec<(Kind, Key)>,
}

impl ResourceSet {
    /// Puts a resource in; one that names no namespace is of `namespace`.
    ///
    /// If there is one of the same kind, namespace and name, the first stays and [`ResourceSet::problems`] says so.
    /// Answers whether it went in.
    pub fn insert(&mut self, mut resource: Resource, namespace: &str) -> bool {
        let own = resource
            .metadata_mut()
            .namespace
            .get_or_insert_with(|| namespace.to_owned());
        let key = (own.clone(), resource.name().to_owned());
        let kind = resource.kind();
        let went_in = match resource {
            Resource::Channel(r) => put(&mut self.channels, &key, *r),
            Resource::NotificationTemplate(r) => put(&mut self.templates, &key, *r),
            Resource::RecipientGroup(r) => put(&mut self.groups, &key, *r),
            Resource::Schedule(r) => put(&mut self.schedules, &key, *r),
        };
        if !went_in {
            self.duplicates.push((kind, key));
        }
        went_in
    }

    /// How many resources there are.
    pub fn len(&self) -> usize {
        self.channels.len() + self.templates.len() + self.groups.len() + self.schedules.len()
    }

    /// Whether there are none.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The Channel that a template of `namespace` routes to; `None` if there is none.
    pub fn routed_channel(&self, namespace: &str, route: &Route) -> Option<&Channel> {
        let namespace = route.namespace.as_deref().unwrap_or(namespace);
        self.channels.get(&key(namespace, &route.name))
    }

    /// Everything that is wrong between resources, ordered: references that lead nowhere, groups that contain
    /// themselves, routes that are not allowed or have nothing to say, duplicates.
    ///
    /// What is wrong with each by itself is [`crate::Validate`]'s matter.
    pub fn problems(&self) -> Vec<Finding> {
        let mut findings = Vec::new();
        for (kind, key) in &self.duplicates {
            let message = format!("another {kind} of this namespace has the same name");
            findings.push(finding(*kind, key, "/metadata/name".to_owned(), message));
        }
        for (key, template) in &self.templates {
            self.check_routes(key, template, &mut findings);
        }
        for (key, group) in &self.groups {
            self.check_members(key, group, &mut findings);
        }
        for (key, schedule) in &self.schedules {
            self.check_schedule(key, schedule, &mut findings);
        }
        findings.sort();
        findings
    }

    fn check_routes(
        &self,
        own: &Key,
        template: &NotificationTemplate,
        findings: &mut Vec<Finding>,
    ) {
        for (index, route) in template.spec.routing.channels.iter().enumerate() {
            let mut found = |say: Say, field: &str, message: String| {
                let at = format!("/spec/routing/channels/{index}{field}");
                findings.push(say(Kind::NotificationTemplate, own, at, message));
            };
            let home = route.namespace.as_deref().unwrap_or(&own.0);
            let id = format!("{home}/{}", route.name);
            let Some(channel) = self.routed_channel(&own.0, route) else {
                found(waiting, "/name", format!("there is no Channel {id}"));
                continue;
            };
            if !channel
                .spec
                .allows(home, &own.0, &labels_of(&self.namespace_labels, &own.0))
            {
                let message = format!(
                    "Channel {id} does not allow templates of namespace {}: see its spec.allowedNamespaces",
                    own.0
                );
                found(waiting, "/namespace", message);
            }
            let medium = channel.spec.medium;
            if !template.spec.content.has(medium) {
                let message =
                    format!("Channel {id} is for {medium}, and content has no {medium} block");
                found(finding, "", message);
            }
        }
    }

    fn check_members(&self, own: &Key, group: &RecipientGroup, findings: &mut Vec<Finding>) {
        for (index, member) in group.spec.members.iter().enumerate() {
            let Some(Who::Group(name)) = member.who() else {
                continue;
            };
            let at = format!("/spec/members/{index}/group");
            if !self.groups.contains_key(&key(&own.0, name)) {
                let message = format!("there is no RecipientGroup {}/{name}", own.0);
                findings.push(waiting(Kind::RecipientGroup, own, at, message));
            } else if let Some(way) = self.way_back(own, name) {
                let message = format!("the group contains itself: {way}");
                findings.push(finding(Kind::RecipientGroup, own, at, message));
            }
        }
    }

    /// The shortest way from `own` through its member `first` back to itself, as `a → b → a`; `None` if there is none.
    fn way_back(&self, (namespace, own): &Key, first: &str) -> Option<String> {
        let mut came_from: BTreeMap<&str, &str> = BTreeMap::new();
        let mut seen: HashSet<&str> = HashSet::new();
        let mut next = VecDeque::new();
        let (start, _) = self.groups.get_key_value(&key(namespace, first))?;
        next.push_back(start.1.as_str());
        while let Some(name) = next.pop_front() {
            if name == own {
                let mut way = vec![own.as_str()];
                let mut at = name;
                while let Some(before) = came_from.get(at) {
                    way.push(before);
                    at = before;
                    if at == first {
                        break;
                    }
                }
                way.push(own);
                way.reverse();
                return Some(way.join(" → "));
            }
            if !seen.insert(name) {
                continue;
            }
            let Some(group) = self.groups.get(&key(namespace, name)) else {
                continue;
            };
            for member in &group.spec.members {
                if let Some(Who::Group(member)) = member.who()
                    && !seen.contains(member)
                {
                    came_from.entry(member).or_insert(name);
                    next.push_back(member);
                }
            }
        }
        None
    }

    fn check_schedule(&self, own: &Key, schedule: &Schedule, findings: &mut Vec<Finding>) {
        let spec = &schedule.spec;
        let mut found = |say: Say, at: String, message: String| {
            findings.push(say(Kind::Schedule, own, at, message));
        };
        let template = self.templates.get(&key(&own.0, &spec.template));
        if template.is_none() {
            let message = format!(
                "there is no NotificationTemplate {}/{}",
                own.0, spec.template
            );
            found(waiting, "/spec/template".to_owned(), message);
        }
        for problem in self.refused_parameters(own, schedule) {
            let at = format!("/spec/parameters{}", problem.path);
            found(finding, at, problem.message);
        }
        for (index, recipient) in spec.recipients.iter().enumerate() {
            let at = format!("/spec/recipients/{index}");
            match recipient.who() {
                Some(Who::Group(name)) if !self.groups.contains_key(&key(&own.0, name)) => {
                    let message = format!("there is no RecipientGroup {}/{name}", own.0);
                    found(waiting, format!("{at}/group"), message);
                }
                Some(Who::Address(address))
                    if template.is_some_and(|t| !self.reaches(&own.0, t, address)) =>
                {
                    let message = format!(
                        "none of the channels of template {} can reach this address",
                        spec.template
                    );
                    found(finding, format!("{at}/address"), message);
                }
                _ => {}
            }
        }
    }

    /// What a schedule's template refuses in its parameters; nothing if there is no template that compiles.
    fn refused_parameters(&self, (namespace, _): &Key, schedule: &Schedule) -> Vec<Problem> {
        let template = &schedule.spec.template;
        let Some(Ok(definition)) = Definition::of(self, namespace, template) else {
            return Vec::new();
        };
        let Ok(compiled) = Compiled::without_samples(Arc::new(definition)) else {
            return Vec::new();
        };
        let parameters = schedule.spec.parameters.clone().unwrap_or_default();
        compiled
            .check_parameters(&parameters.into())
            .err()
            .unwrap_or_default()
    }

    /// Whether any channel of a template has an endpoint for an address. Unknown channels have the benefit of the doubt.
    fn reaches(&self, namespace: &str, template: &NotificationTemplate, address: &Address) -> bool {
        let routes = &template.spec.routing.channels;
        routes.iter().any(|route| {
            self.routed_channel(namespace, route)
                .is_none_or(|channel| channel.spec.endpoint(address).is_some())
        })
    }
}

fn put<T>(map: &mut BTreeMap<Key, T>, key: &Key, resource: T) -> bool {
    if map.contains_key(key) {
        return false;
    }
    map.insert(key.clone(), resource);
    true
}

fn key(namespace: &str, name: &str) -> Key {
    (namespace.to_owned(), name.to_owned())
}

fn finding(kind: Kind, (namespace, name): &Key, path: String, message: String) -> Finding {
    Finding {
        kind,
        namespace: namespace.clone(),
        name: name.clone(),
        problem: Problem { path, message },
        waits: false,
    }
}

/// A finding that another resource cures.
fn waiting(kind: Kind, own: &Key, path: String, message: String) -> Finding {
    Finding {
        waits: true,
        ..finding(kind, own, path, message)
    }
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;

    fn resource(kind: Kind, name: &str, spec: &Value) -> Resource {
        Resource::parse(&json!({
            "apiVersion": crate::kind::API_VERSION,
            "kind": kind.as_str(),
            "metadata": {"name": name},
            "spec": spec,
        }))
        .unwrap()
    }

    fn channel(medium: &str, allowed: &Value) -> Value {
        json!({
            "medium": medium,
            "providers": [{"name": "log", "log": {}}],
            "allowedNamespaces": allowed,
        })
    }

    fn template(channels: &Value) -> Value {
        json!({"routing": {"channels": channels}, "content": {"sms": {"text": "hello"}}})
    }

    fn group(members: &[&str]) -> Value {
        let members: Vec<_> = members
            .iter()
            .map(|group| json!({"group": group}))
            .collect();
        json!({"members": members, "managed": true})
    }

    fn messages(set: &ResourceSet) -> Vec<String> {
        let describe = |f: Finding| format!("{}/{} {}", f.namespace, f.name, f.problem);
        set.problems().into_iter().map(describe).collect()
    }

    #[test]
    fn references_that_lead_nowhere_are_told() {
        let mut set = ResourceSet::default();
        set.insert(
            resource(
                Kind::NotificationTemplate,
                "code",
                &template(&json!([{"name": "sms"}])),
            ),
            "shop",
        );
        set.insert(
            resource(Kind::RecipientGroup, "vip", &group(&["board"])),
            "shop",
        );
        let schedule = json!({"schedule": "0 9 * * *", "template": "digest", "recipients": [{"group": "all"}]});
        set.insert(resource(Kind::Schedule, "weekly", &schedule), "shop");
        assert_eq!(
            messages(&set),
            [
                "shop/code /spec/routing/channels/0/name: there is no Channel shop/sms",
                "shop/vip /spec/members/0/group: there is no RecipientGroup shop/board",
                "shop/weekly /spec/recipients/0/group: there is no RecipientGroup shop/all",
                "shop/weekly /spec/template: there is no NotificationTemplate shop/digest",
            ]
        );
    }

    #[test]
    fn what_another_resource_cures_is_told_apart_from_what_an_edit_must() {
        let mut set = ResourceSet::default();
        let routes = json!([{"name": "sms"}, {"name": "hooks"}]);
        for (kind, name, spec) in [
            (Kind::NotificationTemplate, "code", &template(&routes)),
            (
                Kind::Channel,
                "hooks",
                &channel("webhook", &json!({"from": "All"})),
            ),
            (Kind::RecipientGroup, "self", &group(&["self", "other"])),
        ] {
            set.insert(resource(kind, name, spec), "shop");
        }
        let waits: Vec<_> = set
            .problems()
            .into_iter()
            .map(|f| (f.problem.path, f.waits))
            .collect();
        assert_eq!(
            waits,
            [
                ("/spec/routing/channels/0/name".to_owned(), true),
                ("/spec/routing/channels/1".to_owned(), false),
                ("/spec/members/0/group".to_owned(), false),
                ("/spec/members/1/group".to_owned(), true),
            ]
        );
    }

    #[test]
    fn a_group_that_contains_itself_says_by_which_way() {
        let mut set = ResourceSet::default();
        for (name, members) in [
            ("a", ["x", "b"]),
            ("b", ["x", "c"]),
            ("c", ["a", "x"]),
            ("self", ["self", "x"]),
            ("out", ["a", "x"]),
        ] {
            set.insert(
                resource(Kind::RecipientGroup, name, &group(&members)),
                "shop",
            );
        }
        set.insert(resource(Kind::RecipientGroup, "x", &group(&[])), "shop");
        assert_eq!(
            messages(&set),
            [
                "shop/a /spec/members/1/group: the group contains itself: a → b → c → a",
                "shop/b /spec/members/1/group: the group contains itself: b → c → a → b",
                "shop/c /spec/members/0/group: the group contains itself: c → a → b → c",
                "shop/self /spec/members/0/group: the group contains itself: self → self",
            ]
        );
    }

    #[test]
    fn a_channel_says_whose_templates_may_use_it() {
        let labelled = json!({"from": "Selector", "selector": {"matchLabels": {"team": "shop"}}});
        let mut set = ResourceSet::default();
        for (name, allowed) in [
            ("own", json!({"from": "Same"})),
            ("all", json!({"from": "All"})),
            ("some", labelled),
        ] {
            set.insert(
                resource(Kind::Channel, name, &channel("sms", &allowed)),
                "platform",
            );
        }
        let routes =
            ["own", "all", "some"].map(|name| json!({"name": name, "namespace": "platform"}));
        set.insert(
            resource(
                Kind::NotificationTemplate,
                "code",
                &template(&json!(routes)),
            ),
            "shop",
        );
        let refused = messages(&set);
        assert_eq!(refused.len(), 2, "{refused:?}");
        assert!(
            refused[0].contains("Channel platform/own does not allow templates of namespace shop")
        );
        assert!(refused[1].contains("Channel platform/some does not allow"));
        let labels = BTreeMap::from([("team".to_owned(), "shop".to_owned())]);
        set.namespace_labels.insert("shop".to_owned(), labels);
        assert_eq!(messages(&set).len(), 1);
    }

    #[test]
    fn a_route_to_a_channel_for_which_nothing_is_said_is_told() {
        let mut set = ResourceSet::default();
        set.insert(
            resource(
                Kind::Channel,
                "mail",
                &channel("email", &json!({"from": "Same"})),
            ),
            "shop",
        );
        set.insert(
            resource(
                Kind::NotificationTemplate,
                "code",
                &template(&json!([{"name": "mail"}])),
            ),
            "shop",
        );
        let schedule = json!({
            "schedule": "0 9 * * *",
            "template": "code",
            "recipients": [{"address": {"phone": "+821012345678"}}],
        });
        set.insert(resource(Kind::Schedule, "weekly", &schedule), "shop");
        assert_eq!(
            messages(&set),
            [
                "shop/code /spec/routing/channels/0: Channel shop/mail is for email, and content has no email block",
                "shop/weekly /spec/recipients/0/address: none of the channels of template code can reach this address",
            ]
        );
    }

    #[test]
    fn a_schedule_whose_parameters_its_template_refuses_is_told() {
        let mut set = ResourceSet::default();
        set.insert(
            resource(
                Kind::Channel,
                "sms",
                &channel("sms", &json!({"from": "Same"})),
            ),
            "shop",
        );
        let mut digest = template(&json!([{"name": "sms"}]));
        digest["parameters"] = json!({
            "required": ["headline"],
            "properties": {"count": {"type": "integer"}},
        });
        set.insert(
            resource(Kind::NotificationTemplate, "digest", &digest),
            "shop",
        );
        let schedule = json!({
            "schedule": "0 9 * * *",
            "template": "digest",
            "recipients": [{"recipient": "alice"}],
            "parameters": {"count": "many"},
        });
        set.insert(resource(Kind::Schedule, "weekly", &schedule), "shop");
        let paths: Vec<_> = set.problems().into_iter().map(|f| f.problem.path).collect();
        assert_eq!(
            paths,
            ["/spec/parameters/count", "/spec/parameters/headline"]
        );
    }

    #[test]
    fn of_two_with_the_same_name_the_first_stays_and_the_second_is_told() {
        let mut set = ResourceSet::default();
        assert!(set.insert(resource(Kind::RecipientGroup, "vip", &group(&[])), "shop"));
        assert!(set.insert(resource(Kind::RecipientGroup, "vip", &group(&[])), "office"));
        assert!(!set.insert(
            resource(Kind::RecipientGroup, "vip", &group(&["vip"])),
            "shop"
        ));
        assert_eq!(
            messages(&set),
            ["shop/vip /metadata/name: another RecipientGroup of this namespace has the same name"]
        );
    }
}
