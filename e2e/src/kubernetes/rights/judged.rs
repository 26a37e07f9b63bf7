//! What may be done by the rules of a chart, what was done, and how the two compare.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;

use anyhow::{Context as _, ensure};
use serde_json::Value;

/// Something that one may do.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    /// With an object of Kubernetes, or what RBAC is asked about as if it were one.
    Resource {
        verb: String,
        group: String,
        /// With what is below it: `channels/status`.
        resource: String,
        /// `None`: whatever it is called.
        name: Option<String>,
    },
    /// With what else the API server has.
    Url { verb: String, path: String },
}

impl Right {
    /// Whether this right is enough to do what `asked` needs.
    pub fn covers(&self, asked: &Self) -> bool {
        match (self, asked) {
            (
                Self::Resource {
                    verb,
                    group,
                    resource,
                    name,
                },
                Self::Resource {
                    verb: asked_verb,
                    group: asked_group,
                    resource: asked_resource,
                    name: asked_name,
                },
            ) => {
                (verb, group, resource) == (asked_verb, asked_group, asked_resource)
                    && (name.is_none() || name == asked_name)
            }
            (one, other) => one == other,
        }
    }
}

impl fmt::Display for Right {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Url { verb, path } => write!(f, "{verb} {path}"),
            Self::Resource {
                verb,
                group,
                resource,
                name,
            } => {
                write!(f, "{verb} {resource}")?;
                if !group.is_empty() {
                    write!(f, ".{group}")?;
                }
                name.iter().try_for_each(|name| write!(f, " {name}"))
            }
        }
    }
}

/// A right that somebody has by a role.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub struct Granted {
    /// Of a role; `kind/name`.
    pub role: String,
    pub right: Right,
    /// Whose: `system:serviceaccount:…`.
    account: String,
    /// `None`: everywhere.
    namespace: Option<String>,
}

/// What somebody did, or was asked about by somebody else.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Call {
    pub account: String,
    /// All are needed. Nothing: what everybody may do who is known.
    needs: Vec<Right>,
    namespace: Option<String>,
    /// By authorization, not for what the objects say.
    is_denied: bool,
}

impl Call {
    /// Whether something was to be changed. Leases are renewed all the time; reviews and tries change nothing.
    pub fn changes(&self) -> bool {
        self.needs.iter().any(|need| match need {
            Right::Resource { verb, resource, .. } => {
                !matches!(verb.as_str(), "get" | "list" | "watch")
                    && resource != "leases"
                    && !resource.ends_with("reviews")
            }
            Right::Url { .. } => false,
        })
    }
}

impl fmt::Display for Call {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let needs: Vec<_> = self.needs.iter().map(Right::to_string).collect();
        let account = self.account.rsplit(':').next().unwrap_or_default();
        write!(f, "{account}: {}", needs.join(" and "))?;
        if let Some(namespace) = &self.namespace {
            write!(f, " in {namespace}")?;
        }
        Ok(())
    }
}

/// What documents of a chart grant to service accounts: whatever roles its bindings bind.
pub fn granted(documents: &[Value]) -> anyhow::Result<BTreeSet<Granted>> {
    let key = |kind: &Value, namespace: &Value, name: &Value| {
        let of = |value: &Value| value.as_str().unwrap_or_default().to_owned();
        // ClusterRoles are in no namespace, whoever binds them.
        let namespace = if kind == "ClusterRole" {
            String::new()
        } else {
            of(namespace)
        };
        (of(kind), namespace, of(name))
    };
    let roles: BTreeMap<_, _> = documents
        .iter()
        .filter(|one| one["kind"] == "Role" || one["kind"] == "ClusterRole")
        .map(|one| {
            let metadata = &one["metadata"];
            let key = key(&one["kind"], &metadata["namespace"], &metadata["name"]);
            (key, &one["rules"])
        })
        .collect();
    let mut all = BTreeSet::new();
    let bindings = documents.iter();
    for binding in
        bindings.filter(|one| one["kind"] == "RoleBinding" || one["kind"] == "ClusterRoleBinding")
    {
        let namespace = &binding["metadata"]["namespace"];
        let role = &binding["roleRef"];
        let key = key(&role["kind"], namespace, &role["name"]);
        let rules = roles.get(&key).with_context(|| format!("no {key:?}"))?;
        let role = format!("{}/{}", key.0, key.2);
        for subject in items(&binding["subjects"]) {
            let part = |name: &str| subject[name].as_str().unwrap_or_default();
            let account = format!(
                "system:serviceaccount:{}:{}",
                part("namespace"),
                part("name")
            );
            for right in items(rules).flat_map(rights) {
                all.insert(Granted {
                    role: role.clone(),
                    right,
                    account: account.clone(),
                    namespace: namespace.as_str().map(str::to_owned),
                });
            }
        }
    }
    Ok(all)
}

/// The same rights, wherever they are granted.
pub fn anywhere(granted: &BTreeSet<Granted>) -> BTreeSet<Granted> {
    let anywhere = granted.iter().map(|granted| Granted {
        namespace: None,
        ..granted.clone()
    });
    anywhere.collect()
}

/// What a rule lets one do, one by one.
pub fn rights(rule: &Value) -> Vec<Right> {
    let mut all = Vec::new();
    for verb in texts(&rule["verbs"]) {
        all.extend(texts(&rule["nonResourceURLs"]).map(|path| Right::Url {
            verb: verb.clone(),
            path,
        }));
        for group in texts(&rule["apiGroups"]) {
            for resource in texts(&rule["resources"]) {
                let named = |name| Right::Resource {
                    verb: verb.clone(),
                    group: group.clone(),
                    resource: resource.clone(),
                    name,
                };
                let names: Vec<_> = texts(&rule["resourceNames"]).map(Some).collect();
                if names.is_empty() {
                    all.push(named(None));
                }
                all.extend(names.into_iter().map(named));
            }
        }
    }
    all
}

/// What service accounts did, by the lines of an audit log. What is asked about an account counts as done by it.
pub fn calls(log: &str) -> anyhow::Result<Vec<Call>> {
    let mut seen = BTreeSet::new();
    let mut calls = Vec::new();
    for line in log.lines() {
        let event: Value = serde_json::from_str(line).context("the audit log is no JSON")?;
        // A watch is written down when it begins, and when it ends.
        if !seen.insert(event["auditID"].as_str().map(str::to_owned)) {
            continue;
        }
        let review = &event["requestObject"]["spec"];
        if event["objectRef"]["resource"] == "subjectaccessreviews" && review.is_object() {
            let about = &review["resourceAttributes"];
            calls.push(Call {
                account: text(&review["user"]),
                needs: vec![right(&text(&about["verb"]), about, "group")],
                namespace: about["namespace"].as_str().map(str::to_owned),
                is_denied: event["responseObject"]["status"]["allowed"] == false,
            });
        }
        let object = &event["objectRef"];
        let verb = text(&event["verb"]);
        let mut needs = Vec::new();
        if object.is_object() {
            needs.push(right(&verb, object, "apiGroup"));
            // An apply that makes what was not there.
            if verb == "patch" && event["responseStatus"]["code"] == 201 {
                needs.push(right("create", object, "apiGroup"));
            }
        } else {
            let uri = text(&event["requestURI"]);
            let path = uri.split('?').next().unwrap_or_default().to_owned();
            needs.push(Right::Url { verb, path });
        }
        calls.push(Call {
            account: text(&event["user"]["username"]),
            needs,
            namespace: object["namespace"].as_str().map(str::to_owned),
            is_denied: event["annotations"]["authorization.k8s.io/decision"] == "forbid",
        });
    }
    Ok(calls)
}

fn right(verb: &str, object: &Value, group: &str) -> Right {
    let below = object["subresource"].as_str();
    let below = below.map_or(String::new(), |below| format!("/{below}"));
    Right::Resource {
        verb: verb.to_owned(),
        group: text(&object[group]),
        resource: text(&object["resource"]) + &below,
        name: object["name"].as_str().map(str::to_owned),
    }
}

/// How what was granted and what was done compare.
#[derive(Debug, Default)]
pub struct Verdict {
    /// Done, or tried, without a right to it.
    pub beyond: BTreeSet<String>,
    /// Never allowed, whatever the roles say. An API server that begins, or a release that is being uninstalled, refuses for a
    /// moment what is allowed otherwise.
    pub denied: BTreeSet<String>,
    /// Rights that nothing needed.
    pub unused: BTreeSet<String>,
}

/// Compares. `used` are rights that are used where no log shows it.
pub fn compare(granted: &BTreeSet<Granted>, calls: &[Call], used: &[Right]) -> Verdict {
    let mut verdict = Verdict::default();
    let mut needed: BTreeSet<&Granted> = BTreeSet::new();
    let mut allowed = BTreeSet::new();
    for call in calls {
        let outcome = if call.is_denied {
            &mut verdict.denied
        } else {
            &mut allowed
        };
        outcome.insert(call.to_string());
        for need in call.needs.iter().filter(|need| !is_everybodys(need)) {
            let mut covering = granted.iter().filter(|granted| {
                granted.account == call.account
                    && (granted.namespace.is_none() || granted.namespace == call.namespace)
                    && granted.right.covers(need)
            });
            let Some(first) = covering.next() else {
                verdict.beyond.insert(call.to_string());
                continue;
            };
            needed.insert(first);
            needed.extend(covering);
        }
    }
    verdict.denied.retain(|call| !allowed.contains(call));
    verdict.unused = granted
        .iter()
        .filter(|granted| !needed.contains(granted) && !used.contains(&granted.right))
        .map(|granted| format!("{}: {}", granted.role, granted.right))
        .collect();
    verdict
}

/// Whether whoever is known may do it, by roles that every cluster has: `system:basic-user`, `system:public-info-viewer`.
fn is_everybodys(right: &Right) -> bool {
    match right {
        Right::Resource { verb, resource, .. } => {
            verb == "create" && resource == "selfsubjectaccessreviews"
        }
        Right::Url { verb, path } => verb == "get" && path == "/version",
    }
}

impl Verdict {
    /// An error that names whatever is not as it has to be.
    pub fn check(&self) -> anyhow::Result<()> {
        let list = |all: &BTreeSet<String>| all.iter().cloned().collect::<Vec<_>>().join("; ");
        let Self {
            beyond,
            denied,
            unused,
        } = self;
        ensure!(
            beyond.is_empty() && denied.is_empty() && unused.is_empty(),
            "done without a right: [{}]; denied: [{}]; rights that nothing needs: [{}]",
            list(beyond),
            list(denied),
            list(unused)
        );
        Ok(())
    }
}

fn items(value: &Value) -> impl Iterator<Item = &Value> {
    value.as_array().into_iter().flatten()
}

fn texts(value: &Value) -> impl Iterator<Item = String> {
    items(value).map(text)
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn chart() -> Vec<Value> {
        vec![
            json!({"kind": "ClusterRole", "metadata": {"name": "reads"}, "rules": [
                {"apiGroups": ["herald.dev"], "resources": ["channels", "schedules"], "verbs": ["list"]},
                {"nonResourceURLs": ["/keys"], "verbs": ["get"]},
            ]}),
            json!({"kind": "Role", "metadata": {"name": "leads", "namespace": "system"}, "rules": [
                {"apiGroups": ["coordination.k8s.io"], "resources": ["leases"], "resourceNames": ["one"], "verbs": ["update"]},
                {"apiGroups": ["apps"], "resources": ["deployments"], "verbs": ["patch", "create"]},
            ]}),
            json!({
                "kind": "ClusterRoleBinding", "metadata": {"name": "reads"},
                "roleRef": {"kind": "ClusterRole", "name": "reads"},
                "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": "system"}],
            }),
            json!({
                "kind": "RoleBinding", "metadata": {"name": "leads", "namespace": "system"},
                "roleRef": {"kind": "Role", "name": "leads"},
                "subjects": [{"kind": "ServiceAccount", "name": "operator", "namespace": "system"}],
            }),
        ]
    }

    #[expect(
        clippy::needless_pass_by_value,
        reason = "it is made where it is handed over"
    )]
    fn event(id: &str, verb: &str, object: Value, code: u16) -> Value {
        json!({
            "auditID": id, "verb": verb, "objectRef": object, "requestURI": "/keys?timeout=1s",
            "user": {"username": "system:serviceaccount:system:operator"},
            "responseStatus": {"code": code},
            "annotations": {"authorization.k8s.io/decision": if code == 403 { "forbid" } else { "allow" }},
        })
    }

    fn judge(events: &[Value]) -> Verdict {
        let log: Vec<_> = events.iter().map(Value::to_string).collect();
        let calls = calls(&log.join("\n")).unwrap();
        compare(&granted(&chart()).unwrap(), &calls, &[])
    }

    #[test]
    fn whatever_is_used_and_allowed_is_as_it_has_to_be() {
        let herald = |resource: &str| json!({"apiGroup": "herald.dev", "resource": resource});
        let lease = json!({"apiGroup": "coordination.k8s.io", "resource": "leases", "name": "one", "namespace": "system"});
        let deployment = json!({"apiGroup": "apps", "resource": "deployments", "name": "x", "namespace": "system"});
        let verdict = judge(&[
            event("1", "list", herald("channels"), 200),
            event("1", "list", herald("channels"), 200),
            event("2", "list", herald("schedules"), 200),
            event("3", "get", Value::Null, 200),
            event("4", "update", lease, 200),
            event("5", "patch", deployment, 201),
        ]);
        assert!(verdict.check().is_ok(), "{verdict:?}");
    }

    #[test]
    fn what_goes_beyond_the_rules_is_named_and_what_nothing_needs() {
        let lease = |name: &str, namespace: &str| json!({"apiGroup": "coordination.k8s.io", "resource": "leases", "name": name, "namespace": namespace});
        let verdict = judge(&[
            event("1", "update", lease("other", "system"), 403),
            event("2", "update", lease("one", "elsewhere"), 403),
        ]);
        assert_eq!(verdict.beyond.len(), 2);
        assert_eq!(verdict.denied, verdict.beyond);
        let unused: Vec<_> = verdict.unused.iter().map(String::as_str).collect();
        assert_eq!(
            unused,
            [
                "ClusterRole/reads: get /keys",
                "ClusterRole/reads: list channels.herald.dev",
                "ClusterRole/reads: list schedules.herald.dev",
                "Role/leads: create deployments.apps",
                "Role/leads: patch deployments.apps",
                "Role/leads: update leases.coordination.k8s.io one",
            ]
        );
    }

    #[test]
    fn what_somebody_is_asked_about_counts_as_done_by_that_one() {
        let mut review = event(
            "1",
            "create",
            json!({"apiGroup": "authorization.k8s.io", "resource": "subjectaccessreviews"}),
            201,
        );
        review["user"]["username"] = "system:serviceaccount:system:gateway".into();
        let about = json!({"group": "herald.dev", "resource": "channels", "verb": "list", "namespace": "shop"});
        review["requestObject"] = json!({"spec": {"user": "system:serviceaccount:system:operator", "resourceAttributes": about}});
        review["responseObject"] = json!({"status": {"allowed": true}});
        let verdict = judge(&[review]);
        assert!(
            !verdict
                .unused
                .contains("ClusterRole/reads: list channels.herald.dev")
        );
        // The one who asks has no right to ask, here.
        assert_eq!(verdict.beyond.len(), 1);
    }
}
