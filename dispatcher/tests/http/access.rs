//! Who may do what.

use reqwest::{Method, StatusCode};
use serde_json::json;

use super::server::{Answer, Server, order};

#[tokio::test(flavor = "multi_thread")]
async fn without_a_key_or_with_a_wrong_one_nothing_is_done() {
    let server = Server::start().await;
    let path = "/v1/namespaces/shop/notifications";
    let answer = Answer::of(server.bare(Method::GET, path)).await;
    answer.problem(401, "unauthenticated");
    assert!(
        answer
            .header("www-authenticate")
            .unwrap()
            .starts_with("Bearer")
    );
    let answer = Answer::of(server.bare(Method::GET, path).bearer_auth("wrong")).await;
    answer.problem(401, "unauthenticated");
    assert!(
        answer
            .header("www-authenticate")
            .unwrap()
            .contains("invalid_token")
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_without_the_scope_is_told_which_one_it_lacks() {
    let server = Server::start().await;
    server.key("sender", &["notifications:create"]).await;
    server.key("reader", &["notifications:read"]).await;
    let call = |key: &'static str, method: Method, path: &str| {
        server
            .bare(method, &format!("/v1/namespaces/shop/{path}"))
            .bearer_auth(key)
    };
    let lacks = async |request, scope: &str| {
        let answer = Answer::of(request).await;
        answer.problem(403, "missing-scope");
        let detail = answer.body["detail"].as_str().unwrap();
        assert!(detail.contains(&format!("{scope:?}")), "{detail}");
    };
    let to_board = order(&json!([{"group": "board"}]));
    let send = || call("sender", Method::POST, "notifications");
    assert_eq!(
        Answer::of(send().json(&to_board)).await.status,
        StatusCode::ACCEPTED
    );
    lacks(
        call("reader", Method::POST, "notifications").json(&to_board),
        "notifications:create",
    )
    .await;
    lacks(
        call("sender", Method::GET, "notifications"),
        "notifications:read",
    )
    .await;
    assert_eq!(
        Answer::of(call("reader", Method::GET, "notifications"))
            .await
            .status,
        StatusCode::OK
    );
    let to_address = order(&json!([{"address": {"email": "a@shop.example"}}]));
    lacks(send().json(&to_address), "addresses").await;
    let mut urgent = to_board.clone();
    urgent["priority"] = json!("critical");
    lacks(send().json(&urgent), "priorities:critical").await;
    // The template's own priority needs nothing.
    urgent["priority"] = json!("normal");
    assert_eq!(
        Answer::of(send().json(&urgent)).await.status,
        StatusCode::ACCEPTED
    );
    let mut routed = to_board;
    routed["channels"] = json!(["mail"]);
    lacks(send().json(&routed), "channels:use").await;
    let id = "4f2a9c0d1e8b47a6b3c5d7e9f1a2b3c4";
    for (method, path, scope) in [
        (
            Method::POST,
            format!("notifications/{id}/cancel"),
            "notifications:cancel",
        ),
        (
            Method::POST,
            "notifications/cancel?template=x".to_owned(),
            "notifications:cancel",
        ),
        (
            Method::GET,
            format!("deliveries/{}/content", &id[..24]),
            "contents",
        ),
        (Method::GET, "templates".to_owned(), "templates:read"),
        (Method::GET, "channels".to_owned(), "channels:read"),
        (
            Method::DELETE,
            "templates/order-shipped".to_owned(),
            "templates:write",
        ),
    ] {
        lacks(call("sender", method, &path), scope).await;
    }
    let dead = call("sender", Method::POST, "dead-letters/replay").json(&json!({}));
    lacks(dead, "deadletters").await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_of_a_group_of_scopes_works_as_soon_as_it_is_made() {
    let server = Server::start().await;
    let list = |key: &'static str| {
        server
            .bare(Method::GET, "/v1/namespaces/shop/notifications")
            .bearer_auth(key)
    };
    server.key("group", &["notifications:*"]).await;
    assert_eq!(Answer::of(list("group")).await.status, StatusCode::OK);
}

#[tokio::test(flavor = "multi_thread")]
async fn health_metrics_and_the_description_need_no_key() {
    let server = Server::start().await;
    server
        .send_and_wait(&order(&json!([{"group": "board"}])))
        .await;
    server
        .get("notifications?limit=0")
        .await
        .problem(422, "invalid-request");
    for path in ["/livez", "/readyz", "/openapi.json", "/docs"] {
        let answer = server.bare(Method::GET, path).send().await.unwrap();
        assert_eq!(answer.status(), StatusCode::OK, "{path}");
    }
    let metrics = server.bare(Method::GET, "/metrics").send().await.unwrap();
    let metrics = metrics.text().await.unwrap();
    for line in [
        r#"herald_accepted_total{namespace="shop",priority="normal"} 1"#,
        r#"herald_refused_total{operation="invalid-request"} 1"#,
        "# EOF",
    ] {
        assert!(metrics.contains(line), "{line} is not in\n{metrics}");
    }
}
