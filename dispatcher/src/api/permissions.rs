//! What each call needs: the one table that the handlers are guarded by and that `docs/permissions.md` shows.
//!
//! [`Caller`](super::Caller) refuses a call that is not in the table, so nothing can be served unguarded.

use std::fmt::Write as _;

use axum::http::Method;

use crate::access::rights::{self, Right};

/// A call, and what whoever makes it must be allowed.
#[derive(Debug)]
pub struct Call {
    /// Its method.
    pub method: Method,
    /// Its path, with the names of parameters.
    pub path: &'static str,
    /// All of this; empty: an API key that may do everything.
    pub needs: &'static [Need],
}

/// Something that must be allowed in the call's namespace.
#[derive(Debug)]
pub struct Need {
    /// What.
    pub right: Right,
    /// Where the name stands for which it must be allowed: a parameter of the path, or a JSON Pointer into the body;
    /// empty: no name.
    pub name: &'static str,
    /// Only if this is so; empty: always.
    pub only_if: &'static str,
}

impl Need {
    const fn always(right: Right) -> Self {
        Self::of(right, "")
    }

    const fn of(right: Right, name: &'static str) -> Self {
        Self::if_so(right, name, "")
    }

    const fn if_so(right: Right, name: &'static str, only_if: &'static str) -> Self {
        Self {
            right,
            name,
            only_if,
        }
    }

    /// Whether the path alone says what must be allowed. The rest is asked for by whoever reads the body.
    pub fn is_of_path(&self) -> bool {
        self.only_if.is_empty() && !self.name.starts_with('/')
    }
}

const SENDING: &[Need] = &[
    Need::always(rights::SEND),
    Need::of(rights::USE_TEMPLATE, "/template"),
    Need::if_so(
        rights::USE_GROUP,
        "/recipients/*/group",
        "it is sent to a group",
    ),
    Need::if_so(rights::USE_ADDRESSES, "", "it is sent to a bare address"),
    Need::if_so(
        rights::USE_CHANNEL,
        "/channels/*",
        "the request names channels; in the namespace of each",
    ),
    Need::if_so(
        rights::use_priority(herald_crds::Priority::Critical),
        "/priority",
        "it is more urgent than the template's own",
    ),
    SAMPLE_FOR,
];

/// Many at a time are never a dry run.
const SENDING_MANY: &[Need] = match SENDING {
    [sending @ .., _] => sending,
    [] => SENDING,
};

const GET_NOTIFICATION: &[Need] = &[Need::always(rights::GET_NOTIFICATION)];
const LIST_NOTIFICATIONS: &[Need] = &[Need::always(rights::LIST_NOTIFICATIONS)];
const CANCEL: &[Need] = &[Need::always(rights::CANCEL)];
const UPDATE_MEMBERS: &[Need] = &[Need::of(rights::UPDATE_MEMBERS, "group")];
const GET_TEMPLATE: &[Need] = &[Need::of(rights::TEMPLATES.get, "name")];

/// Asked for by a dry run, which shows less without it.
pub const SAMPLE_FOR: Need = Need::if_so(
    rights::GET_RECIPIENT,
    "",
    "a dry run is to show messages to people of the directory",
);

/// Asked for by the handler that reads the body.
pub const PREVIEW_FOR: Need = Need::if_so(
    rights::GET_RECIPIENT,
    "",
    "it is shown for a recipient of the directory",
);

const fn call(method: Method, path: &'static str, needs: &'static [Need]) -> Call {
    Call {
        method,
        path,
        needs,
    }
}

/// Every call, those that are made most first.
pub const CALLS: &[Call] = &[
    call(Method::POST, "/v1/namespaces/{ns}/notifications", SENDING),
    call(
        Method::POST,
        "/v1/namespaces/{ns}/notifications/batch",
        SENDING_MANY,
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/notifications/{id}",
        GET_NOTIFICATION,
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/notifications/{id}/deliveries",
        &[Need::always(rights::LIST_DELIVERIES)],
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/notifications",
        LIST_NOTIFICATIONS,
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/deliveries/{id}",
        &[Need::always(rights::GET_DELIVERY)],
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/deliveries/{id}/events",
        &[Need::always(rights::GET_DELIVERY)],
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/deliveries/{id}/content",
        &[Need::always(rights::GET_CONTENT)],
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/events",
        LIST_NOTIFICATIONS,
    ),
    call(
        Method::POST,
        "/v1/namespaces/{ns}/notifications/{id}/cancel",
        CANCEL,
    ),
    call(
        Method::POST,
        "/v1/namespaces/{ns}/notifications/cancel",
        CANCEL,
    ),
    call(
        Method::POST,
        "/v1/namespaces/{ns}/notifications/{id}/prioritize",
        &[
            Need::always(rights::PRIORITIZE),
            Need::of(
                rights::use_priority(herald_crds::Priority::Critical),
                "/priority",
            ),
        ],
    ),
    call(
        Method::POST,
        "/v1/namespaces/{ns}/notifications/{id}/confirm",
        &[Need::always(rights::SEND)],
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/dead-letters",
        &[Need::always(rights::LIST_DEAD_LETTERS)],
    ),
    call(
        Method::POST,
        "/v1/namespaces/{ns}/dead-letters/replay",
        &[Need::always(rights::REPLAY_DEAD_LETTERS)],
    ),
    call(
        Method::POST,
        "/v1/namespaces/{ns}/dead-letters/discard",
        &[Need::always(rights::DISCARD_DEAD_LETTERS)],
    ),
    call(
        Method::PUT,
        "/v1/namespaces/{ns}/recipients/{id}",
        &[Need::always(rights::UPDATE_RECIPIENT)],
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/recipients/{id}",
        &[Need::always(rights::GET_RECIPIENT)],
    ),
    call(
        Method::PATCH,
        "/v1/namespaces/{ns}/recipients/{id}",
        &[Need::always(rights::PATCH_RECIPIENT)],
    ),
    call(
        Method::DELETE,
        "/v1/namespaces/{ns}/recipients/{id}",
        &[Need::always(rights::DELETE_RECIPIENT)],
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/recipients",
        &[Need::always(rights::LIST_RECIPIENTS)],
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/recipients/{id}/notifications",
        &[
            Need::always(rights::GET_RECIPIENT),
            Need::always(rights::LIST_NOTIFICATIONS),
        ],
    ),
    call(
        Method::POST,
        "/v1/namespaces/{ns}/recipients/import",
        &[
            Need::always(rights::IMPORT_RECIPIENTS),
            Need::if_so(rights::UPDATE_MEMBERS, "?group", "the query names a group"),
        ],
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/groups/{group}/members",
        &[Need::of(rights::GET_MEMBERS, "group")],
    ),
    call(
        Method::PUT,
        "/v1/namespaces/{ns}/groups/{group}/members/{id}",
        UPDATE_MEMBERS,
    ),
    call(
        Method::DELETE,
        "/v1/namespaces/{ns}/groups/{group}/members/{id}",
        UPDATE_MEMBERS,
    ),
    call(
        Method::POST,
        "/v1/namespaces/{ns}/groups/{group}/members/batch",
        UPDATE_MEMBERS,
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/suppressions",
        &[Need::always(rights::LIST_SUPPRESSIONS)],
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/suppressions/{medium}/{address}",
        &[Need::always(rights::GET_SUPPRESSION)],
    ),
    call(
        Method::PUT,
        "/v1/namespaces/{ns}/suppressions/{medium}/{address}",
        &[Need::always(rights::UPDATE_SUPPRESSION)],
    ),
    call(
        Method::DELETE,
        "/v1/namespaces/{ns}/suppressions/{medium}/{address}",
        &[Need::always(rights::DELETE_SUPPRESSION)],
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/templates",
        &[Need::always(rights::TEMPLATES.list)],
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/templates/{name}",
        GET_TEMPLATE,
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/templates/{name}/versions",
        GET_TEMPLATE,
    ),
    call(
        Method::POST,
        "/v1/namespaces/{ns}/templates/{name}/preview",
        &[Need::of(rights::TEMPLATES.get, "name"), PREVIEW_FOR],
    ),
    call(
        Method::PUT,
        "/v1/namespaces/{ns}/templates/{name}",
        &[Need::of(rights::TEMPLATES.update, "name")],
    ),
    call(
        Method::DELETE,
        "/v1/namespaces/{ns}/templates/{name}",
        &[Need::of(rights::TEMPLATES.delete, "name")],
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/groups",
        &[Need::always(rights::GROUPS.list)],
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/groups/{name}",
        &[Need::of(rights::GROUPS.get, "name")],
    ),
    call(
        Method::PUT,
        "/v1/namespaces/{ns}/groups/{name}",
        &[Need::of(rights::GROUPS.update, "name")],
    ),
    call(
        Method::DELETE,
        "/v1/namespaces/{ns}/groups/{name}",
        &[Need::of(rights::GROUPS.delete, "name")],
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/channels",
        &[Need::always(rights::CHANNELS.list)],
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/channels/{name}",
        &[Need::of(rights::CHANNELS.get, "name")],
    ),
    call(
        Method::POST,
        "/v1/namespaces/{ns}/channels/{name}/test",
        &[Need::of(rights::TEST_CHANNEL, "name")],
    ),
    call(
        Method::PUT,
        "/v1/namespaces/{ns}/channels/{name}",
        &[Need::of(rights::CHANNELS.update, "name")],
    ),
    call(
        Method::DELETE,
        "/v1/namespaces/{ns}/channels/{name}",
        &[Need::of(rights::CHANNELS.delete, "name")],
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/schedules",
        &[Need::always(rights::SCHEDULES.list)],
    ),
    call(
        Method::GET,
        "/v1/namespaces/{ns}/schedules/{name}",
        &[Need::of(rights::SCHEDULES.get, "name")],
    ),
    call(
        Method::PUT,
        "/v1/namespaces/{ns}/schedules/{name}",
        &[Need::of(rights::SCHEDULES.update, "name")],
    ),
    call(
        Method::DELETE,
        "/v1/namespaces/{ns}/schedules/{name}",
        &[Need::of(rights::SCHEDULES.delete, "name")],
    ),
    call(Method::GET, "/v1/keys", &[]),
    call(Method::POST, "/v1/keys", &[]),
    call(Method::DELETE, "/v1/keys/{name}", &[]),
];

/// What a call needs; `None`: there is no such call.
pub fn of(method: &Method, path: &str) -> Option<&'static Call> {
    CALLS
        .iter()
        .find(|call| call.path == path && call.method == method)
}

/// The table for people, in Markdown: each call, its needs by verb, resource and name, and the scope that stands for them.
pub fn table() -> String {
    let mut table = "| call | verb | resource | name | scope of an API key |\n| --- | --- | --- | --- | --- |\n".to_owned();
    let mut calls: Vec<&Call> = CALLS.iter().collect();
    calls.sort_by_key(|call| (call.path, call.method.as_str()));
    for Call {
        method,
        path,
        needs,
    } in calls
    {
        let path = path.trim_start_matches("/v1/namespaces/{ns}");
        let mut call = format!("`{method} {path}`");
        if needs.is_empty() {
            let _ = writeln!(
                table,
                "| {call} | | only where callers have API keys | | `*` |"
            );
        }
        for need in *needs {
            let Need {
                right,
                name,
                only_if,
            } = need;
            let condition = match *only_if {
                "" => String::new(),
                only_if => format!(" (if {only_if})"),
            };
            let name = match *name {
                "" => String::new(),
                name if need.is_of_path() => format!("`{{{name}}}`"),
                name => format!("`{name}`"),
            };
            let scope = match right.scope {
                crate::accept::Scope::Priority(_) => "priorities:*",
                scope => scope.as_str(),
            };
            let _ = writeln!(
                table,
                "| {call} | {} | `{}`{condition} | {name} | `{scope}` |",
                right.verb,
                right.of()
            );
            call.clear();
        }
    }
    table
}

#[cfg(test)]
mod tests {
    use std::collections::{BTreeMap, BTreeSet};

    use serde_json::{Value, json};

    use super::*;

    const PAGE: &str = include_str!("../../../docs/permissions.md");
    const ROLES: &str = include_str!("../../../charts/herald/templates/clusterroles.yaml");

    /// What each role of the chart allows, as `verb resource`.
    fn roles() -> BTreeMap<String, BTreeSet<String>> {
        let list = |value: &Value| value.as_array().cloned().unwrap_or_default();
        let text = |value: &Value| value.as_str().unwrap().to_owned();
        let documents = crate::catalog::yaml::read(ROLES.as_bytes()).unwrap();
        let role = |document: crate::catalog::yaml::Document| {
            let role = document.value;
            assert_eq!(role["kind"], "ClusterRole");
            let mut allowed = BTreeSet::new();
            for rule in list(&role["rules"]) {
                assert_eq!(rule["apiGroups"], json!(["herald.dev"]));
                for resource in list(&rule["resources"]) {
                    for verb in list(&rule["verbs"]) {
                        allowed.insert(format!("{} {}", text(&verb), text(&resource)));
                    }
                }
            }
            (text(&role["metadata"]["name"]), allowed)
        };
        documents.into_iter().map(role).collect()
    }

    /// What the calls need, as `verb resource`.
    fn needed() -> BTreeSet<String> {
        let needs = CALLS.iter().flat_map(|call| call.needs);
        needs
            .map(|need| format!("{} {}", need.right.verb, need.right.of()))
            .collect()
    }

    #[test]
    fn admins_may_make_every_call_and_no_role_allows_what_nothing_asks_for() {
        let (roles, needed) = (roles(), needed());
        let missing: Vec<_> = needed.difference(&roles["herald-admin"]).collect();
        assert_eq!(missing, [""; 0]);
        // What is asked of the API server itself, about what it serves.
        let of_api_server = |allowed: &str| {
            let (verb, resource) = allowed.split_once(' ').unwrap();
            let is_kind = herald_crds::Kind::ALL
                .iter()
                .any(|kind| kind.plural() == resource);
            resource == "channels/scale"
                || is_kind && ["create", "patch", "deletecollection", "watch"].contains(&verb)
        };
        for (role, allowed) in &roles {
            let unused = allowed.difference(&needed).filter(|a| !of_api_server(a));
            assert_eq!(unused.collect::<Vec<_>>(), [""; 0], "{role}");
            assert!(allowed.is_subset(&roles["herald-admin"]), "{role}");
        }
        assert_eq!(roles.len(), 5);
    }

    #[test]
    fn every_call_that_is_described_says_what_it_needs_and_nothing_else_does() {
        let described = serde_json::to_value(crate::api::described().1).unwrap();
        let mut served = BTreeSet::new();
        for (path, item) in described["paths"].as_object().unwrap() {
            for method in item.as_object().unwrap().keys() {
                served.insert(format!("{} {path}", method.to_uppercase()));
            }
        }
        let listed = |call: &Call| format!("{} {}", call.method, call.path);
        let guarded: BTreeSet<_> = CALLS.iter().map(listed).collect();
        assert_eq!(guarded, served);
        assert_eq!(guarded.len(), CALLS.len());
    }

    #[test]
    fn a_name_in_the_path_is_one_of_its_parameters() {
        for call in CALLS {
            for need in call.needs.iter().filter(|need| need.is_of_path()) {
                let parameter = format!("{{{}}}", need.name);
                assert!(
                    need.name.is_empty() || call.path.contains(&parameter),
                    "{call:?}"
                );
            }
        }
    }

    #[test]
    fn the_page_shows_the_table_as_it_is() {
        let begin = PAGE.find("| call |").unwrap();
        let shown: String = (PAGE[begin..].split_inclusive('\n'))
            .take_while(|line| line.starts_with('|'))
            .collect();
        assert_eq!(
            shown,
            table(),
            "docs/permissions.md is to show\n{}",
            table()
        );
    }
}
