//! Who may do what.

use reqwest::{Method, StatusCode};
use serde_json::json;

use super::server::{Answer, KEY, Server, order};

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

#[tokio::test(flavor = "multi_thread")]
async fn a_key_is_made_works_at_once_and_is_refused_once_it_is_deleted() {
    let server = Server::start().await;
    let all = |method, path: &str| server.bare(method, path).bearer_auth(KEY);
    let wanted = json!({"name": "orders", "scopes": ["notifications:create"]});
    let made = Answer::of(all(Method::POST, "/v1/keys").json(&wanted)).await;
    assert_eq!(made.header("cache-control"), Some("no-store"));
    let made = made.expect(StatusCode::CREATED);
    let key = made["key"].as_str().unwrap();
    assert!(key.starts_with("hk_") && key.len() > 40, "{made}");

    let send = || {
        let path = "/v1/namespaces/shop/notifications";
        let body = order(&json!([{"group": "board"}]));
        server.bare(Method::POST, path).bearer_auth(key).json(&body)
    };
    assert_eq!(Answer::of(send()).await.status, StatusCode::ACCEPTED);
    // What it may not do is also to make keys.
    let by_it = server.bare(Method::GET, "/v1/keys").bearer_auth(key);
    Answer::of(by_it).await.problem(403, "missing-scope");

    let again = Answer::of(all(Method::POST, "/v1/keys").json(&wanted)).await;
    again.problem(409, "conflict");
    let listed = Answer::of(all(Method::GET, "/v1/keys")).await;
    let listed = listed.expect(StatusCode::OK);
    assert_eq!(listed["items"][0]["name"], "orders");
    assert!(!listed.to_string().contains(key));

    let delete = || all(Method::DELETE, "/v1/keys/orders");
    assert_eq!(Answer::of(delete()).await.status, StatusCode::NO_CONTENT);
    Answer::of(send()).await.problem(401, "unauthenticated");
    Answer::of(delete()).await.problem(404, "not-found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_key_with_an_unknown_scope_or_the_name_of_the_one_in_force_is_not_made() {
    let server = Server::start().await;
    let make = async |body: serde_json::Value| {
        let post = server.bare(Method::POST, "/v1/keys").bearer_auth(KEY);
        Answer::of(post.json(&body)).await
    };
    let answer = make(json!({"name": "a", "scopes": ["addresses", "adresses"]})).await;
    answer.problem(422, "invalid-request");
    let error = &answer.body["errors"][0];
    assert_eq!(error["pointer"], "/scopes/1");
    let detail = error["detail"].as_str().unwrap();
    assert!(detail.contains("recipients:read"), "{detail}");
    for wrong in [
        json!({"name": "A b", "scopes": ["addresses"]}),
        json!({"name": "a", "scopes": []}),
    ] {
        make(wrong).await.problem(422, "invalid-request");
    }
    let taken = make(json!({"name": "everything", "scopes": ["addresses"]})).await;
    taken.problem(409, "conflict");
}
