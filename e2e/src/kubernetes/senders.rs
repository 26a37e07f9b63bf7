//! Who may do what: tokens that are not good, roles that are missing or for some names alone, and the chart's own roles.

use std::time::{Duration, Instant};

use anyhow::{Context as _, ensure};
use base64::Engine as _;
use base64::prelude::BASE64_URL_SAFE_NO_PAD as BASE64;
use herald_dispatcher::access::rights::GROUP;
use herald_dispatcher::api::permissions;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SubjectAccessReview, SubjectAccessReviewSpec,
};
use kube::Client;
use kube::api::PostParams;
use reqwest::{Method, Response, StatusCode};
use serde_json::{Value, json};

use super::Stage;
use super::herald::{self, PATIENCE, Team, asked, until_some};
use super::namespace::with_namespace;
use super::rights::judged;
use crate::server::Api;

/// Runs it.
pub async fn run(stage: &Stage) -> anyhow::Result<String> {
    with_namespace(stage, "senders", async |client, namespace| {
        let team = stage.team(&namespace)?;
        let readers = json!({"members": [{"address": {"email": "reader@senders.example"}}]});
        team.apply(&[
            team.mail("mail"),
            team.template("news", "news", &["mail"]),
            team.template("secret", "not for everybody", &["mail"]),
            team.resource("RecipientGroup", "readers", readers),
        ])?;
        for what in ["channel/mail", "notificationtemplate/news", "notificationtemplate/secret", "recipientgroup/readers"] {
            team.ready(what).await?;
        }
        let sent = team.send("first", &to_address("news")).await?;
        team.ended(&sent).await?;

        tokens(stage, &team).await?;
        let waited = no_role(stage, &team).await?;
        some_names(stage, &team).await?;
        let calls = over_http(stage, &team, &sent).await?;
        let calls = calls + every_call(stage, &team, &sent).await?;
        let questions = over_kubernetes(&client, &team).await?;
        Ok(format!(
            "bad tokens are 401, missing roles 403 and say what is missing; a new role counted after {waited:.1?}; the \
             chart's roles and the cluster's own do what is said of them: {calls} calls, {questions} questions"
        ))
    })
    .await
}

/// A request to a bare address.
fn to_address(template: &str) -> Value {
    json!({"template": template, "recipients": [{"address": {"email": "one@senders.example"}}]})
}

/// What is not a token for Herald is refused, and it is said why.
async fn tokens(stage: &Stage, team: &Team<'_>) -> anyhow::Result<()> {
    let kubernetes = stage.kubernetes()?;
    let good = herald::token(kubernetes, &team.namespace, "sender", "herald")?;
    let other = herald::token(kubernetes, &team.namespace, "sender", "pulsar")?;
    team.kubectl(&["create", "serviceaccount", "gone"])?;
    let gone = herald::token(kubernetes, &team.namespace, "gone", "herald")?;
    team.kubectl(&["delete", "serviceaccount", "gone"])?;
    let parts: Vec<_> = good.split('.').collect();
    let &[header, claims, signature] = &*parts else {
        anyhow::bail!("a token has {} parts", parts.len());
    };
    let mut expired: Value = serde_json::from_slice(&BASE64.decode(claims)?)?;
    let mut stretched = expired.clone();
    expired["exp"] = 1_000_000_000.into();
    stretched["exp"] = 9_000_000_000_i64.into();
    let with = |claims: &Value| {
        let claims = BASE64.encode(claims.to_string());
        format!("{header}.{claims}.{signature}")
    };
    let path = team.path("notifications");
    let request = |token: &str| {
        let api = stage.gateways.with_key(token);
        api.post(&path).json(&to_address("news"))
    };
    for (what, token, said) in [
        ("a token for another audience", other, "pulsar"),
        ("an expired token", with(&expired), "expired"),
        ("a token whose time was stretched", with(&stretched), ""),
        ("a word", "password".to_owned(), "kubectl create token"),
    ] {
        refused(what, asked(&request(&token)).await?, said).await?;
    }
    // An account that could not be asked about has its token's word, for a moment.
    let what = "a token of somebody who is gone";
    let answer = until_some(what, async || {
        let answer = asked(&request(&gone)).await?;
        Ok((answer.status() == StatusCode::UNAUTHORIZED).then_some(answer))
    });
    refused(what, answer.await?, "").await
}

/// Checks that an answer refuses a token, with a challenge, and says this.
async fn refused(what: &str, answer: Response, said: &str) -> anyhow::Result<()> {
    let challenge = answer.headers().contains_key("WWW-Authenticate");
    let (status, problem) = problem(answer).await?;
    ensure!(
        status == StatusCode::UNAUTHORIZED && challenge && of(&problem, "unauthenticated"),
        "{what}: {status}: {problem}"
    );
    let detail = detail(&problem);
    ensure!(
        detail.contains(said),
        "{what}: {detail:?} does not say {said:?}"
    );
    Ok(())
}

/// Who has no role is told what is missing; with a role it can send, a moment later. Answers how long a moment.
async fn no_role(stage: &Stage, team: &Team<'_>) -> anyhow::Result<Duration> {
    let kubernetes = stage.kubernetes()?;
    let nobody = herald::sender(kubernetes, &stage.gateways, &team.namespace, "nobody", &[])?;
    lacks(
        team,
        &nobody,
        &to_address("news"),
        "create notifications.herald.dev",
    )
    .await?;
    let bound = Instant::now();
    let nobody = herald::sender(
        kubernetes,
        &stage.gateways,
        &team.namespace,
        "nobody",
        &["herald-sender"],
    )?;
    accepted(team, &nobody, "with a role", &to_address("news")).await?;
    let waited = bound.elapsed();
    // In this namespace, and in no other.
    let request = nobody.post("/v1/namespaces/default/notifications");
    let answer = asked(&request.json(&to_address("news"))).await?;
    let (status, problem) = problem(answer).await?;
    ensure!(
        status == StatusCode::FORBIDDEN && detail(&problem).contains("in namespace default"),
        "in another namespace: {status}: {problem}"
    );
    Ok(waited)
}

/// A role that is for one template, and one for a class; and what else a request may need.
async fn some_names(stage: &Stage, team: &Team<'_>) -> anyhow::Result<()> {
    let rule = |resource: &str, names: &[&str], verb: &str| {
        let mut rule =
            json!({"apiGroups": ["herald.dev"], "resources": [resource], "verbs": [verb]});
        if !names.is_empty() {
            rule["resourceNames"] = json!(names);
        }
        rule
    };
    let mut rules = vec![
        rule("notifications", &[], "create"),
        rule("notificationtemplates", &["news"], "use"),
    ];
    let role = |rules: &[Value]| {
        json!({
            "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "Role",
            "metadata": {"name": "some", "namespace": team.namespace}, "rules": rules,
        })
    };
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "RoleBinding",
        "metadata": {"name": "some", "namespace": team.namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "Role", "name": "some"},
        "subjects": [{"kind": "ServiceAccount", "name": "some", "namespace": team.namespace}],
    });
    team.apply(&[role(&rules), binding])?;
    let some = herald::sender(
        stage.kubernetes()?,
        &stage.gateways,
        &team.namespace,
        "some",
        &[],
    )?;

    let with = |name: &str, value: Value| {
        let mut request = json!({"template": "news", "recipients": [{"recipient": "somebody"}]});
        request[name] = value;
        request
    };
    let known = with("metadata", json!({}));
    accepted(team, &some, "somebody of the directory", &known).await?;
    let others = [
        (
            with("template", json!("secret")),
            "use notificationtemplates.herald.dev",
            "secret",
            rule("notificationtemplates", &["secret"], "use"),
        ),
        (
            with("priority", json!("critical")),
            "use priorities.herald.dev",
            "critical",
            rule("priorities", &["critical"], "use"),
        ),
        (
            to_address("news"),
            "create addresses.herald.dev",
            "",
            rule("addresses", &[], "create"),
        ),
        (
            with("recipients", json!([{"group": "readers"}])),
            "use recipientgroups.herald.dev",
            "readers",
            rule("recipientgroups", &["readers"], "use"),
        ),
        (
            with("channels", json!(["mail"])),
            "use channels.herald.dev",
            "mail",
            rule("channels", &["mail"], "use"),
        ),
    ];
    for (request, missing, name, _) in &others {
        let told = lacks(team, &some, request, missing).await?;
        ensure!(told.contains(name), "{told:?} does not name {name:?}");
    }
    rules.extend(others.iter().map(|(.., rule)| rule.clone()));
    team.apply(&[role(&rules)])?;
    for (request, what, ..) in &others {
        accepted(team, &some, what, request).await?;
    }
    // What is named is all that may be used.
    let high = with("priority", json!("high"));
    lacks(team, &some, &high, "use priorities.herald.dev").await?;
    Ok(())
}

/// The chart's roles, and the cluster's own that have them in them; each with those of [`CALLS`] that it may make.
const ROLES: [(&str, char); 8] = [
    ("herald-sender", 's'),
    ("herald-support", 'u'),
    ("herald-viewer", 'v'),
    ("herald-editor", 'e'),
    ("herald-admin", 'a'),
    ("view", 'v'),
    ("edit", 'e'),
    ("admin", 'a'),
];

/// Calls, and the letters of the roles that may make them.
const CALLS: [(&str, &str, &str); 20] = [
    ("POST", "notifications", "sa"),
    ("GET", "notifications", "uvea"),
    ("GET", "notifications/{id}", "suvea"),
    ("GET", "notifications/{id}/deliveries", "sua"),
    ("POST", "notifications/{id}/cancel", "ua"),
    ("POST", "notifications/{id}/prioritize", "a"),
    ("GET", "deliveries/{delivery}/content", "ua"),
    ("GET", "dead-letters", "ua"),
    ("POST", "dead-letters/replay", "ua"),
    ("GET", "channels", "uvea"),
    ("POST", "channels/mail/test", "ea"),
    ("GET", "templates/news", "uvea"),
    ("GET", "schedules", "uvea"),
    ("GET", "groups/readers/members", "uea"),
    ("PUT", "groups/readers/members/x", "ea"),
    ("GET", "recipients", "ua"),
    ("PUT", "recipients/x", "a"),
    ("PATCH", "recipients/x", "ua"),
    ("DELETE", "recipients/x", "a"),
    ("GET", "suppressions", "ua"),
];

/// What a role may do by itself and by those that are aggregated into it, as the API server has it.
fn granted(stage: &Stage, role: &str) -> anyhow::Result<Vec<judged::Right>> {
    let asked = ["get", "clusterrole", role, "--output", "json"];
    let role: Value = serde_json::from_str(&stage.kubernetes()?.kubectl(&asked)?)?;
    let rules = role["rules"].as_array().into_iter().flatten();
    Ok(rules.flat_map(judged::rights).collect())
}

/// Every call that there is with every role: who has no right to it is refused, and nobody else. Answers how many these are.
async fn every_call(stage: &Stage, team: &Team<'_>, id: &str) -> anyhow::Result<usize> {
    let mut count = 0;
    for (role, _) in ROLES {
        let granted = granted(stage, role)?;
        let token = herald::token(
            stage.kubernetes()?,
            &team.namespace,
            &format!("has-{role}"),
            "herald",
        )?;
        let api = team.api.with_key(&token);
        for call in permissions::CALLS {
            // Keys are for those who are not in a cluster.
            let needs = call.needs.iter().filter(|need| need.is_of_path());
            let needs: Vec<_> = needs
                .map(|need| judged::Right::Resource {
                    verb: need.right.verb.to_string(),
                    group: GROUP.to_owned(),
                    resource: need.right.of(),
                    name: None,
                })
                .collect();
            let is_allowed = !needs.is_empty()
                && needs
                    .iter()
                    .all(|need| granted.iter().any(|right| right.covers(need)));
            let mut path = String::new();
            for part in call.path.split('/').skip(1) {
                let part = match part {
                    "{ns}" => &team.namespace,
                    "{id}" => id,
                    part if part.starts_with('{') => "nobody",
                    part => part,
                };
                path = path + "/" + part;
            }
            let request = api.call(call.method.clone(), &path).json(&json!({}));
            let answer = asked(&request).await;
            let answer = answer.with_context(|| format!("{role}: {} {path}", call.method))?;
            let status = answer.status();
            let is_so = (status == StatusCode::FORBIDDEN) != is_allowed;
            ensure!(
                is_so && status != StatusCode::UNAUTHORIZED && !status.is_server_error(),
                "{role}: {} {path}: {status}: {}",
                call.method,
                answer.text().await.unwrap_or_default()
            );
            count += 1;
        }
    }
    Ok(count)
}

/// Every call of [`CALLS`] with every role. Answers how many these are.
async fn over_http(stage: &Stage, team: &Team<'_>, id: &str) -> anyhow::Result<usize> {
    let deliveries = team.path(&format!("notifications/{id}/deliveries"));
    let deliveries: Vec<Value> = team.api.all(&deliveries).await?;
    let delivery = deliveries.first().and_then(|one| one["id"].as_str());
    let delivery = delivery.context("there is no delivery")?;
    let mut count = 0;
    for (role, letter) in ROLES {
        let name = format!("has-{role}");
        let api = herald::sender(
            stage.kubernetes()?,
            &stage.gateways,
            &team.namespace,
            &name,
            &[role],
        )?;
        // What may be done comes first: once that is so, the role counts.
        let (may, may_not): (Vec<_>, Vec<_>) = CALLS
            .iter()
            .partition(|(.., letters)| letters.contains(letter));
        for (method, path, _) in may.iter().chain(&may_not) {
            let is_allowed = may
                .iter()
                .any(|(other, known, _)| (other, known) == (method, path));
            let path = path.replace("{id}", id).replace("{delivery}", delivery);
            let begin = Instant::now();
            loop {
                let method: Method = method.parse()?;
                let mut call = api.call(method.clone(), &team.path(&path));
                if path == "notifications" && method == Method::POST {
                    call = call.json(&to_address("news"));
                } else if method != Method::GET && method != Method::DELETE {
                    call = call.json(&json!({"priority": "high"}));
                }
                let answer = asked(&call).await;
                let answer = answer.with_context(|| format!("{role}: {method} {path}"))?;
                let status = answer.status();
                let is_so = match status {
                    StatusCode::FORBIDDEN => !is_allowed,
                    StatusCode::UNAUTHORIZED => false,
                    status if status.is_server_error() => false,
                    _ => is_allowed,
                };
                if is_so {
                    break;
                }
                ensure!(
                    is_allowed && begin.elapsed() < PATIENCE,
                    "{role}: {method} {path}: {status}: {}",
                    answer.text().await.unwrap_or_default()
                );
                tokio::time::sleep(herald::LOOK).await;
            }
            count += 1;
        }
    }
    Ok(count)
}

/// What may be done with what is declared, in Kubernetes itself: a verb, a resource, and the letters of the roles.
const DECLARED: [(&str, &str, &str); 7] = [
    ("get", "channels", "uvea"),
    ("watch", "notificationtemplates", "vea"),
    ("create", "channels", "ea"),
    ("patch", "schedules", "ea"),
    ("delete", "recipientgroups", "ea"),
    ("patch", "channels/scale", "ea"),
    ("patch", "channels/status", ""),
];

/// Asks the API server itself. Answers how many questions these were.
async fn over_kubernetes(client: &Client, team: &Team<'_>) -> anyhow::Result<usize> {
    let reviews: kube::Api<SubjectAccessReview> = kube::Api::all(client.clone());
    let mut count = 0;
    for (role, letter) in ROLES {
        for (verb, resource, letters) in DECLARED {
            let (resource, below) = resource.split_once('/').unwrap_or((resource, ""));
            let user = format!("system:serviceaccount:{}:has-{role}", team.namespace);
            let review = SubjectAccessReview {
                spec: SubjectAccessReviewSpec {
                    user: Some(user),
                    resource_attributes: Some(ResourceAttributes {
                        group: Some("herald.dev".to_owned()),
                        namespace: Some(team.namespace.clone()),
                        resource: Some(resource.to_owned()),
                        subresource: Some(below.to_owned()),
                        verb: Some(verb.to_owned()),
                        ..ResourceAttributes::default()
                    }),
                    ..SubjectAccessReviewSpec::default()
                },
                ..SubjectAccessReview::default()
            };
            let answer = reviews.create(&PostParams::default(), &review).await?;
            let allowed = answer.status.is_some_and(|status| status.allowed);
            ensure!(
                allowed == letters.contains(letter),
                "{role}: {verb} {resource}/{below}: allowed: {allowed}"
            );
            count += 1;
        }
    }
    Ok(count)
}

/// Waits until a request is accepted.
async fn accepted(team: &Team<'_>, api: &Api, what: &str, request: &Value) -> anyhow::Result<()> {
    let begin = Instant::now();
    loop {
        let path = team.path("notifications");
        let answer = api.post(&path).json(request).send().await?;
        if answer.status() == StatusCode::ACCEPTED {
            return Ok(());
        }
        ensure!(
            begin.elapsed() < PATIENCE,
            "{what}: {}: {}",
            answer.status(),
            answer.text().await.unwrap_or_default()
        );
        tokio::time::sleep(herald::LOOK).await;
    }
}

/// Checks that a request is refused since this right is missing. Answers what was said.
async fn lacks(team: &Team<'_>, api: &Api, request: &Value, right: &str) -> anyhow::Result<String> {
    let path = team.path("notifications");
    let answer = asked(&api.post(&path).json(request)).await?;
    let (status, problem) = problem(answer).await?;
    let told = detail(&problem);
    ensure!(
        status == StatusCode::FORBIDDEN && of(&problem, "forbidden") && told.contains(right),
        "without {right}: {status}: {problem}"
    );
    Ok(told.to_owned())
}

/// A problem document.
async fn problem(answer: Response) -> anyhow::Result<(StatusCode, Value)> {
    let status = answer.status();
    let kind = answer.headers().get("Content-Type").cloned();
    ensure!(
        kind.as_ref()
            .is_some_and(|kind| kind == "application/problem+json"),
        "{status}: not a problem but {kind:?}"
    );
    let problem = answer.json().await.context("a problem is no JSON")?;
    Ok((status, problem))
}

fn of(problem: &Value, kind: &str) -> bool {
    problem["type"] == format!("/problems/{kind}")
}

fn detail(problem: &Value) -> &str {
    problem["detail"].as_str().unwrap_or_default()
}
