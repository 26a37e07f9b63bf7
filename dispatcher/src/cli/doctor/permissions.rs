//! What gateways and the operator must be allowed in a cluster.

use k8s_openapi::api::authorization::v1::{
    NonResourceAttributes, ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec,
};
use kube::api::PostParams;
use kube::{Api, Client};

use super::{Found, in_time};
use crate::access::rights::GROUP;

/// The path of the keys that tokens are signed with.
const SIGNING_KEYS: &str = "/openid/v1/jwks";

/// What must be allowed to do with some resources.
#[derive(Debug, Clone, Copy)]
pub(super) struct Need {
    group: &'static str,
    /// Resources, or parts of them as `channels/status`.
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
    place: Place,
    /// What does not work without it.
    without: &'static str,
}

/// Where something must be allowed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Place {
    /// In each namespace that counts.
    Each,
    /// In the whole cluster.
    Cluster,
    /// The same, unless namespaces are named: these are watched by their names, which a review cannot ask about.
    ClusterUnlessNamed,
    /// In the namespace that it runs in.
    Own,
}

/// Whose rights are looked at.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Who {
    /// A gateway's.
    Gateway,
    /// The operator's, that makes topics and Deployments.
    Operator,
    /// The operator's where Herald is one pod with its own queue.
    OperatorOfOnePod,
}

const KINDS: &[&str] = &[
    "channels",
    "notificationtemplates",
    "recipientgroups",
    "schedules",
];
const READ: &[&str] = &["list", "watch"];
const MAKE: &[&str] = &["list", "watch", "create", "patch"];
const MAKE_AND_DELETE: &[&str] = &["list", "watch", "create", "patch", "delete"];

const GATEWAY: &[Need] = &[
    need(GROUP, KINDS, READ, "a gateway does not become ready"),
    Need {
        place: Place::ClusterUnlessNamed,
        ..need(
            "",
            &["namespaces"],
            READ,
            "Channels that allow namespaces by label allow none",
        )
    },
    Need {
        place: Place::Cluster,
        ..need(
            "authentication.k8s.io",
            &["tokenreviews"],
            &["create"],
            "nobody may send",
        )
    },
    Need {
        place: Place::Cluster,
        ..need(
            "authorization.k8s.io",
            &["subjectaccessreviews"],
            &["create"],
            "nobody may send",
        )
    },
];

const OPERATOR: &[Need] = &[
    need(GROUP, KINDS, READ, "no resource becomes Ready"),
    need(
        GROUP,
        &["schedules"],
        &["get"],
        "no gateway tells the operator how Schedules are",
    ),
    need(
        GROUP,
        &["channels"],
        &["patch"],
        "topics stay when their Channel is deleted",
    ),
    need(
        GROUP,
        &[
            "channels/status",
            "notificationtemplates/status",
            "recipientgroups/status",
            "schedules/status",
        ],
        &["patch"],
        "nobody is told how a resource is",
    ),
    need(
        "",
        &["secrets"],
        READ,
        "it does not become ready: it has to see which Secrets there are",
    ),
    need(
        "events.k8s.io",
        &["events"],
        &["create", "patch"],
        "there are no Events",
    ),
    Need {
        place: Place::Cluster,
        ..need("", &["namespaces"], READ, "it does not become ready")
    },
    Need {
        place: Place::Own,
        ..need(
            "coordination.k8s.io",
            &["leases"],
            &["create"],
            "it never leads, and does nothing",
        )
    },
];

/// What the operator needs to make what a Channel is delivered by.
const WORKLOADS: &[Need] = &[
    need(
        GROUP,
        &["channels"],
        &["get"],
        "no gateway tells the operator how Channels are: nothing is scaled, no backlog is told",
    ),
    need(GROUP, &["channels/finalizers"], &["update"], NO_PODS),
    need("", &["serviceaccounts"], MAKE, NO_PODS),
    need("policy", &["poddisruptionbudgets"], MAKE, NO_PODS),
    need("networking.k8s.io", &["networkpolicies"], MAKE, NO_PODS),
    need("apps", &["deployments"], MAKE_AND_DELETE, NO_PODS),
    need(
        "",
        &["configmaps"],
        &["get", "list", "watch", "create", "patch", "delete"],
        NO_PODS,
    ),
    need(
        "",
        &["pods"],
        &["list"],
        "a Channel that is deleted with its topics does not go",
    ),
];

const NO_PODS: &str = "Channels have no pods";

const fn need(
    group: &'static str,
    resources: &'static [&'static str],
    verbs: &'static [&'static str],
    without: &'static str,
) -> Need {
    Need {
        group,
        resources,
        verbs,
        place: Place::Each,
        without,
    }
}

impl Who {
    /// Everything that it asks of the API server, but for what has a path or a name.
    fn needs(self) -> impl Iterator<Item = &'static Need> {
        let (first, second): (&[Need], &[Need]) = match self {
            Self::Gateway => (GATEWAY, &[]),
            Self::Operator => (OPERATOR, WORKLOADS),
            Self::OperatorOfOnePod => (OPERATOR, &[]),
        };
        first.iter().chain(second)
    }
}

/// Which of it is allowed to whoever asks.
pub(super) async fn check(client: &Client, who: Who, namespaces: &[String]) -> Vec<Found> {
    let mut found = Vec::new();
    let mut all = 0;
    for need in who.needs() {
        for namespace in places(client, need.place, namespaces) {
            let asked = (need.resources.iter()).flat_map(|resource| {
                let verbs = need.verbs.iter();
                verbs.map(move |verb| (*resource, *verb))
            });
            for (resource, verb) in asked {
                all += 1;
                let attributes = attributes(need.group, resource, verb, namespace.clone());
                match is_allowed(client, attributes).await {
                    Ok(true) => {}
                    Ok(false) => found.push(Found::bad(refused(
                        need,
                        resource,
                        verb,
                        namespace.as_deref(),
                    ))),
                    Err(reason) => return vec![Found::bad(format!("cannot be asked: {reason}"))],
                }
            }
        }
    }
    if who == Who::Gateway {
        all += 1;
        let keys = SelfSubjectAccessReviewSpec {
            non_resource_attributes: Some(NonResourceAttributes {
                path: Some(SIGNING_KEYS.to_owned()),
                verb: Some("get".to_owned()),
            }),
            ..SelfSubjectAccessReviewSpec::default()
        };
        match is_allowed(client, keys).await {
            Ok(true) => {}
            Ok(false) => found.push(Found::neither(format!(
                "may not get {SIGNING_KEYS}: without it no new token is known while the API server is away; ClusterRole \
                 system:service-account-issuer-discovery has it",
            ))),
            Err(reason) => return vec![Found::bad(format!("cannot be asked: {reason}"))],
        }
    }
    let allowed = all - found.len();
    found.insert(0, Found::good(format!("{allowed} of {all} allowed")));
    found
}

/// The namespaces of a place; `None` is the whole cluster.
fn places(client: &Client, place: Place, namespaces: &[String]) -> Vec<Option<String>> {
    match place {
        Place::Own => vec![Some(client.default_namespace().to_owned())],
        Place::ClusterUnlessNamed if !namespaces.is_empty() => Vec::new(),
        Place::Each if !namespaces.is_empty() => namespaces.iter().cloned().map(Some).collect(),
        Place::Cluster | Place::Each | Place::ClusterUnlessNamed => vec![None],
    }
}

fn refused(need: &Need, resource: &str, verb: &str, namespace: Option<&str>) -> String {
    let place = namespace.map_or_else(
        || "in all of the cluster".to_owned(),
        |namespace| format!("in namespace {namespace}"),
    );
    let dot = if need.group.is_empty() { "" } else { "." };
    let (group, without) = (need.group, need.without);
    format!(
        "may not {verb} {resource}{dot}{group} {place}: without it {without}; the chart's roles have it"
    )
}

fn attributes(
    group: &str,
    resource: &str,
    verb: &str,
    namespace: Option<String>,
) -> SelfSubjectAccessReviewSpec {
    let (resource, part) = match resource.split_once('/') {
        Some((resource, part)) => (resource, Some(part.to_owned())),
        None => (resource, None),
    };
    SelfSubjectAccessReviewSpec {
        resource_attributes: Some(ResourceAttributes {
            verb: Some(verb.to_owned()),
            group: Some(group.to_owned()),
            resource: Some(resource.to_owned()),
            subresource: part,
            namespace,
            ..ResourceAttributes::default()
        }),
        ..SelfSubjectAccessReviewSpec::default()
    }
}

async fn is_allowed(client: &Client, spec: SelfSubjectAccessReviewSpec) -> Result<bool, String> {
    let review = SelfSubjectAccessReview {
        spec,
        ..SelfSubjectAccessReview::default()
    };
    let api: Api<SelfSubjectAccessReview> = Api::all(client.clone());
    let answer = in_time(api.create(&PostParams::default(), &review)).await?;
    Ok(answer.status.is_some_and(|status| status.allowed))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;
    use std::path::Path;

    use super::*;
    use crate::catalog::yaml;

    /// Group, resource, verb.
    type Rule = (String, String, String);

    /// What a template of the chart grants, whatever the values are.
    fn granted(template: &str) -> BTreeSet<Rule> {
        let file =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../charts/herald/templates/_rules.tpl");
        let text = std::fs::read_to_string(file).unwrap();
        let begin = format!("{{{{- define \"herald.{template}\" -}}}}\n");
        let (_, rest) = text.split_once(&begin).unwrap();
        let rules = rest.split("{{- define").next().unwrap();
        let rules: Vec<_> = rules
            .lines()
            // Rules for named namespaces repeat others.
            .take_while(|line| !line.contains("if .Values.watchNamespaces"))
            .filter(|line| !line.contains("{{"))
            .collect();
        let rules = yaml::read(rules.join("\n").as_bytes())
            .unwrap()
            .remove(0)
            .value;
        let texts = |value: &serde_json::Value| -> Vec<String> {
            let texts = value.as_array().into_iter().flatten();
            texts
                .filter_map(|text| text.as_str().map(str::to_owned))
                .collect()
        };
        let mut granted = BTreeSet::new();
        for rule in rules.as_array().unwrap() {
            for group in texts(&rule["apiGroups"]) {
                for resource in texts(&rule["resources"]) {
                    for verb in texts(&rule["verbs"]) {
                        granted.insert((group.clone(), resource.clone(), verb));
                    }
                }
            }
        }
        granted
    }

    #[test]
    fn what_is_asked_for_is_what_the_charts_roles_grant() {
        for (who, templates) in [
            (Who::Gateway, ["gatewayRules", "gatewayClusterRules"]),
            (Who::Operator, ["operatorRules", "operatorClusterRules"]),
        ] {
            let granted: BTreeSet<_> = templates.into_iter().flat_map(granted).collect();
            let needed: BTreeSet<Rule> = who
                .needs()
                .filter(|need| need.place != Place::Own)
                .flat_map(|need| {
                    need.resources.iter().flat_map(|resource| {
                        need.verbs.iter().map(|verb| {
                            (
                                need.group.to_owned(),
                                (*resource).to_owned(),
                                (*verb).to_owned(),
                            )
                        })
                    })
                })
                .collect();
            assert_eq!(needed, granted, "{who:?}");
        }
    }
}
