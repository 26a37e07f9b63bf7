//! OpenAPI: it says what there is, and what it says is there.

use std::collections::{BTreeMap, BTreeSet};

use herald_dispatcher::accept::SendRequest;
use herald_dispatcher::api;
use reqwest::{Method, StatusCode};
use serde_json::Value;

use super::server::Server;

fn described() -> Value {
    serde_json::to_value(api::described().1).unwrap()
}

/// Path and method of every call.
fn calls(openapi: &Value) -> Vec<(String, Method, Value)> {
    let paths = openapi["paths"].as_object().unwrap();
    paths
        .iter()
        .flat_map(|(path, item)| {
            item.as_object().unwrap().iter().map(|(method, operation)| {
                let method = method.to_uppercase().parse().unwrap();
                (path.clone(), method, operation.clone())
            })
        })
        .collect()
}

#[test]
fn every_reference_of_the_description_leads_somewhere() {
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(members) => {
                if let Some(Value::String(to)) = members.get("$ref") {
                    found.insert(to.clone());
                }
                members
                    .values()
                    .for_each(|member| references(member, found));
            }
            Value::Array(items) => items.iter().for_each(|item| references(item, found)),
            _ => {}
        }
    }
    let openapi = described();
    let mut found = BTreeSet::new();
    references(&openapi, &mut found);
    assert!(
        found.contains("#/components/schemas/RecipientRef"),
        "{found:?}"
    );
    for reference in found {
        let pointer = reference.strip_prefix('#').unwrap();
        assert!(openapi.pointer(pointer).is_some(), "{reference}");
    }
}

#[test]
fn every_call_is_described_as_openapi_3_1_wants_it() {
    let openapi = described();
    assert_eq!(openapi["openapi"], "3.1.0");
    let mut ids = BTreeMap::new();
    for (path, method, operation) in calls(&openapi) {
        let id = operation["operationId"].as_str().unwrap().to_owned();
        if let Some(other) = ids.insert(id.clone(), path.clone()) {
            panic!("{id} is {other} and {path}");
        }
        let summary = operation["summary"].as_str().unwrap();
        assert!(
            summary.ends_with('.') && !summary.contains('\n'),
            "{method} {path}: {summary}"
        );
        assert!(
            operation["responses"]["default"].is_object(),
            "{method} {path}"
        );
        let named: BTreeSet<&str> = path
            .split('/')
            .filter_map(|part| part.strip_prefix('{')?.strip_suffix('}'))
            .collect();
        let declared: BTreeSet<&str> = operation["parameters"]
            .as_array()
            .into_iter()
            .flatten()
            .filter(|parameter| parameter["in"] == "path")
            .map(|parameter| parameter["name"].as_str().unwrap())
            .collect();
        assert_eq!(named, declared, "{method} {path}");
    }
}

#[test]
fn what_callers_were_promised_is_described() {
    let calls: BTreeSet<String> = calls(&described())
        .into_iter()
        .map(|(path, method, _)| {
            format!(
                "{method} {}",
                path.trim_start_matches("/v1/namespaces/{ns}")
            )
        })
        .collect();
    for promised in [
        "POST /notifications",
        "POST /notifications/batch",
        "GET /notifications",
        "GET /notifications/{id}",
        "GET /notifications/{id}/deliveries",
        "GET /deliveries/{id}/events",
        "GET /deliveries/{id}/content",
        "POST /notifications/{id}/cancel",
        "POST /notifications/{id}/prioritize",
        "POST /notifications/{id}/confirm",
        "POST /notifications/cancel",
        "GET /dead-letters",
        "POST /dead-letters/replay",
        "POST /dead-letters/discard",
        "GET /events",
        "GET /templates",
        "GET /templates/{name}",
        "PUT /templates/{name}",
        "DELETE /templates/{name}",
        "POST /templates/{name}/preview",
        "GET /templates/{name}/versions",
        "GET /groups",
        "GET /channels/{name}",
        "POST /channels/{name}/test",
        "GET /schedules/{name}",
    ] {
        assert!(calls.contains(promised), "{promised} is not in {calls:#?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn every_described_call_is_served_and_wants_a_key() {
    let server = Server::start().await;
    for (path, method, _) in calls(&described()) {
        let path = path.replace(['{', '}'], "");
        let answer = server.bare(method.clone(), &path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::UNAUTHORIZED, "{method} {path}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_page_for_people_names_every_call_and_needs_nothing_from_elsewhere() {
    let server = Server::start().await;
    let page = server.bare(Method::GET, "/docs").send().await.unwrap();
    let policy = page.headers()["content-security-policy"].to_str().unwrap();
    assert!(policy.starts_with("default-src 'none'"));
    let page = page.text().await.unwrap();
    for (path, ..) in calls(&described()) {
        assert!(page.contains(&path), "{path}");
    }
    assert!(
        !page.contains("https://"),
        "the page refers to another host"
    );
    assert!(!page.contains("<script"));
    // What is sent is shown, and is what is read.
    let openapi = described();
    let send = &openapi["paths"]["/v1/namespaces/{ns}/notifications"]["post"];
    let example = &send["requestBody"]["content"]["application/json"]["example"];
    let request: SendRequest = serde_json::from_value(example.clone()).unwrap();
    assert!(page.contains(&format!(
        "&quot;template&quot;: &quot;{}&quot;",
        request.template
    )));
}
