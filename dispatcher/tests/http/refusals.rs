//! Bad input: clear, located, and nothing accepted.

use std::num::NonZeroU32;
use std::time::{Duration, Instant};

use herald_dispatcher::accept::{Quotas, Rate};
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::server::{Answer, Server, Setup, order};

async fn raw(server: &Server, body: impl Into<reqwest::Body>) -> Answer {
    let request = server.request(Method::POST, "notifications");
    Answer::of(
        request
            .header("content-type", "application/json")
            .body(body),
    )
    .await
}

/// What is wrong with a body that differs from a good one in one place.
async fn wrong(server: &Server, change: impl FnOnce(&mut Value)) -> Vec<(String, String)> {
    let mut body = order(&json!([{"address": {"email": "alice@shop.example"}}]));
    change(&mut body);
    server.send(&body).await.problem(422, "invalid-request")
}

const ONE_A_SECOND: Rate = Rate {
    per_second: NonZeroU32::MIN,
    burst: NonZeroU32::MIN,
};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_not_json_says_line_and_column() {
    let server = Server::start().await;
    let answer = raw(&server, "{\"template\": \"order-shipped\",\n  oops}").await;
    answer.problem(400, "malformed-json");
    let detail = answer.body["detail"].as_str().unwrap();
    assert!(detail.contains("line 2, column 3"), "{detail}");
    let empty = raw(&server, "").await;
    empty.problem(400, "malformed-json");
    let detail = empty.body["detail"].as_str().unwrap();
    assert!(detail.starts_with("the body is empty"), "{detail}");
    raw(&server, [0xff, 0xfe].to_vec())
        .await
        .problem(400, "malformed-json");
}

#[tokio::test(flavor = "multi_thread")]
async fn unknown_fields_are_refused_by_name_wherever_they_are() {
    let server = Server::start().await;
    let errors = wrong(&server, |body| body["prioritty"] = json!("high")).await;
    assert_eq!(errors[0].0, "/prioritty");
    assert!(errors[0].1.contains("prioritty"), "{errors:?}");
    let errors = wrong(&server, |body| {
        body["recipients"][0]["address"]["mail"] = json!("a@b.example");
    })
    .await;
    assert_eq!(errors[0].0, "/recipients/0/address/mail");
    let answer = server.post("notifications?dryrun=true", &json!({})).await;
    let errors = answer.problem(422, "invalid-request");
    assert_eq!(errors[0].0, "?dryrun");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_group_is_named_with_what_it_might_have_been() {
    let server = Server::start().await;
    let errors = wrong(&server, |body| {
        body["recipients"][0] = json!({"group": "bord"});
    })
    .await;
    assert_eq!(errors[0].0, "/recipients/0/group");
    assert!(
        errors[0].1.ends_with("did you mean \"board\"?"),
        "{errors:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn of_a_template_that_is_declared_and_not_in_force_it_is_said_why() {
    let server = Server::with(Setup {
        wrong: r#"
apiVersion: herald.dev/v1alpha1
kind: NotificationTemplate
metadata: {name: of-others, namespace: shop}
spec:
  routing: {channels: [{name: closed, namespace: other}]}
  content:
    email: {subject: "Closed", text: "Closed."}
"#,
        ..Setup::default()
    })
    .await;
    let mut body = order(&json!([{"group": "board"}]));
    body["template"] = json!("of-others");
    let answer = server.send(&body).await;
    let errors = answer.problem(404, "unknown-template");
    assert!(
        errors[0]
            .1
            .contains("is declared, but Channel other/closed does not allow"),
        "{errors:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_template_is_named_with_what_it_might_have_been() {
    let server = Server::start().await;
    let mut body = order(&json!([{"group": "board"}]));
    body["template"] = json!("order-shiped");
    let answer = server.send(&body).await;
    let errors = answer.problem(404, "unknown-template");
    assert_eq!(errors[0].0, "/template");
    assert!(errors[0].1.contains("order-shiped"), "{errors:?}");
    assert!(
        errors[0].1.contains("did you mean \"order-shipped\""),
        "{errors:?}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn an_unknown_group_and_channel_are_named_in_one_answer() {
    let server = Server::start().await;
    let errors = wrong(&server, |body| {
        body["recipients"] = json!([{"group": "board"}, {"group": "bored"}]);
        body["channels"] = json!(["mail", "pigeon", "other/closed", "mail"]);
    })
    .await;
    let at = |pointer: &str| {
        let found = errors.iter().find(|(at, _)| at == pointer);
        found
            .unwrap_or_else(|| panic!("nothing at {pointer}: {errors:?}"))
            .1
            .as_str()
    };
    assert!(at("/recipients/1/group").contains("bored"));
    assert!(at("/channels/1").contains("pigeon"));
    assert!(at("/channels/2").contains("does not allow"));
    assert!(at("/channels/3").contains("twice"));
    assert_eq!(errors.len(), 4);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_without_content_is_refused() {
    let server = Server::start().await;
    let body = json!({"template": "few", "recipients": [{"group": "board"}], "channels": ["text"]});
    let errors = server.send(&body).await.problem(422, "invalid-request");
    assert_eq!(errors[0].0, "/channels/0");
    assert!(errors[0].1.contains("content.sms"), "{errors:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn parameters_that_are_missing_or_of_the_wrong_type_are_located() {
    let server = Server::start().await;
    let errors = wrong(&server, |body| body["parameters"] = json!({"order": {}})).await;
    assert!(errors[0].0.starts_with("/parameters/order"), "{errors:?}");
    assert!(errors[0].1.contains("id"), "{errors:?}");
    let errors = wrong(&server, |body| {
        body["parameters"]["order"]["total"] = json!("12,50");
    })
    .await;
    assert_eq!(errors[0].0, "/parameters/order/total");
    assert!(errors[0].1.contains("number"), "{errors:?}");
    let errors = wrong(&server, |body| body["parameters"] = json!([1])).await;
    assert_eq!(errors[0].0, "/parameters");
}

#[tokio::test(flavor = "multi_thread")]
async fn an_address_that_is_none_or_of_no_use_is_refused() {
    let server = Server::start().await;
    for (address, at) in [
        (json!({"email": "alice"}), "/recipients/0/address/email"),
        (
            json!({"email": "a b@shop.example"}),
            "/recipients/0/address/email",
        ),
        (
            json!({"email": "a@shop.example\r\nBcc: b@shop.example"}),
            "/recipients/0/address/email",
        ),
        (
            json!({"phone": "010-1234-5678"}),
            "/recipients/0/address/phone",
        ),
        (
            json!({"webhook": "ftp://shop.example/"}),
            "/recipients/0/address/webhook",
        ),
        (json!({}), "/recipients/0/address"),
        // Right, but the template goes over mail alone.
        (json!({"phone": "+821012345678"}), "/recipients/0/address"),
    ] {
        let errors = wrong(&server, |body| {
            body["recipients"] = json!([{"address": address}]);
        })
        .await;
        assert_eq!(errors[0].0, at, "{errors:?}");
    }
    let errors = wrong(&server, |body| {
        body["recipients"] = json!([{}, {"group": "board", "recipient": "a"}]);
    })
    .await;
    assert_eq!(errors.len(), 2, "{errors:?}");
    let errors = wrong(&server, |body| body["recipients"] = json!([])).await;
    assert_eq!(errors[0].0, "/recipients");
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_megabytes_are_refused_with_what_to_do_instead() {
    let server = Server::start().await;
    let answer = raw(&server, vec![b' '; 10 * 1024 * 1024]).await;
    answer.problem(413, "body-too-large");
    assert!(
        answer.body["detail"]
            .as_str()
            .unwrap()
            .contains("managed group")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn ten_thousand_recipients_are_taken_and_one_more_is_not() {
    let server = Server::with(Setup {
        pipeline: false,
        ..Setup::default()
    })
    .await;
    let people = |n: usize| -> Value {
        (0..n)
            .map(|n| json!({"recipient": format!("p{n}")}))
            .collect()
    };
    let answer = server.send(&order(&people(10_000))).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{:#}", answer.body);
    let errors = server
        .send(&order(&people(10_001)))
        .await
        .problem(422, "invalid-request");
    assert_eq!(errors[0].0, "/recipients");
    assert!(errors[0].1.contains("managed group"), "{errors:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn times_that_make_no_sense_are_refused() {
    let server = Server::start().await;
    let now = jiff::Timestamp::now();
    let at = |seconds: i64| json!(now + jiff::SignedDuration::from_secs(seconds));
    let errors = wrong(&server, |body| body["sendAt"] = at(-3600)).await;
    assert_eq!(errors[0].0, "/sendAt");
    assert!(errors[0].1.contains("past"), "{errors:?}");
    let errors = wrong(&server, |body| body["sendAt"] = at(400 * 86_400)).await;
    assert_eq!(errors[0].0, "/sendAt");
    let errors = wrong(&server, |body| {
        body["sendAt"] = at(3600);
        body["expiresAt"] = at(1800);
    })
    .await;
    assert_eq!(errors[0].0, "/expiresAt");
    let errors = wrong(&server, |body| body["spreadOverSeconds"] = json!(86_401)).await;
    assert_eq!(errors[0].0, "/spreadOverSeconds");
    let errors = wrong(&server, |body| body["sendAt"] = json!("tomorrow")).await;
    assert_eq!(errors[0].0, "/sendAt");
    // A clock that is a little behind is nobody's fault.
    let mut body = order(&json!([{"group": "board"}]));
    body["sendAt"] = at(-30);
    server.send(&body).await.expect(StatusCode::ACCEPTED);
}

#[tokio::test(flavor = "multi_thread")]
async fn too_much_metadata_and_keys_that_are_none_are_refused() {
    let server = Server::start().await;
    let many: serde_json::Map<_, _> = (0..33).map(|n| (n.to_string(), json!("x"))).collect();
    let errors = wrong(&server, |body| body["metadata"] = json!(many)).await;
    assert_eq!(errors[0].0, "/metadata");
    let errors = wrong(&server, |body| {
        body["metadata"] = json!({"a/b": "x".repeat(257)});
    })
    .await;
    assert_eq!(errors[0].0, "/metadata/a~1b");
    let request = server.request(Method::POST, "notifications");
    let request = request.header("Idempotency-Key", "x".repeat(256));
    let answer = Answer::of(request.json(&order(&json!([{"group": "board"}])))).await;
    answer.problem(422, "invalid-request");
}

/// What is answered less than a second after one was accepted.
async fn within_a_second_of_one(
    server: &Server,
    body: &Value,
    ask: impl AsyncFn() -> Answer,
) -> Answer {
    for _ in 0..30 {
        let begin = Instant::now();
        server.send(body).await.expect(StatusCode::ACCEPTED);
        let answer = ask().await;
        if begin.elapsed() < Duration::from_secs(1) {
            return answer;
        }
        tokio::time::sleep(Duration::from_secs(1)).await;
    }
    panic!("two requests take more than a second");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_sends_too_fast_is_told_when_to_come_back() {
    let server = Server::with(Setup {
        quotas: Quotas {
            sender: ONE_A_SECOND,
            ..Quotas::default()
        },
        ..Setup::default()
    })
    .await;
    let body = order(&json!([{"group": "board"}]));
    let answer = within_a_second_of_one(&server, &body, async || server.send(&body).await).await;
    answer.problem(429, "rate-limited");
    assert_eq!(answer.header("ratelimit-limit"), Some("1"));
    assert_eq!(answer.header("ratelimit-remaining"), Some("0"));
    assert_eq!(answer.header("retry-after"), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn all_senders_of_a_namespace_share_its_quota() {
    let server = Server::with(Setup {
        quotas: Quotas {
            namespace: ONE_A_SECOND,
            ..Quotas::default()
        },
        ..Setup::default()
    })
    .await;
    server.key("another", &["notifications:create"]).await;
    let body = order(&json!([{"group": "board"}]));
    let path = "/v1/namespaces/shop/notifications";
    let by_another = async || {
        let request = server.bare(Method::POST, path).bearer_auth("another");
        Answer::of(request.json(&body)).await
    };
    let answer = within_a_second_of_one(&server, &body, by_another).await;
    answer.problem(429, "rate-limited");
    assert_eq!(answer.header("retry-after"), Some("1"));
    let detail = answer.body["detail"].as_str().unwrap();
    assert!(detail.contains("a namespace"), "{detail}");
    // Another namespace has its own.
    let path = "/v1/namespaces/other/notifications";
    let elsewhere = server.bare(Method::POST, path).bearer_auth("another");
    Answer::of(elsewhere.json(&body))
        .await
        .problem(404, "unknown-template");
}

#[tokio::test(flavor = "multi_thread")]
async fn paths_methods_and_types_that_are_none_are_problems_too() {
    let server = Server::start().await;
    server
        .get("nothing-of-the-kind")
        .await
        .problem(404, "not-found");
    Answer::of(server.request(Method::PATCH, "notifications"))
        .await
        .problem(405, "method-not-allowed");
    let request = server.request(Method::POST, "notifications");
    Answer::of(request.header("content-type", "text/plain").body("{}"))
        .await
        .problem(415, "unsupported-media-type");
    let answer = server
        .get("notifications/4f2a9c0d1e8b47a6b3c5d7e9f1a2b3c4")
        .await;
    answer.problem(404, "not-found");
    assert_eq!(answer.header("retry-after"), Some("1"));
    server
        .get("notifications/nonsense")
        .await
        .problem(404, "not-found");
    for query in [
        "limit=0",
        "limit=1001",
        "limit=x",
        "cursor=nonsense",
        "status=lost",
        "metadata=a",
        "nonsense=1",
    ] {
        server
            .get(&format!("notifications?{query}"))
            .await
            .problem(422, "invalid-request");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_header_beyond_all_measure_closes_the_connection() {
    let server = Server::start().await;
    let request = server.request(Method::GET, "notifications");
    let answer = request.header("x-long", "x".repeat(100_000)).send().await;
    match answer {
        Ok(answer) => assert_eq!(answer.status(), StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE),
        Err(error) => assert!(error.is_request(), "{error}"),
    }
}
