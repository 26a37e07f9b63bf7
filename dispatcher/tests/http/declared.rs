//! What is declared: read, searched, tried, changed.

use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::server::{Answer, Server, Setup};

fn names(page: &Value) -> Vec<&str> {
    let items = page["items"].as_array().unwrap();
    items
        .iter()
        .map(|item| item["metadata"]["name"].as_str().unwrap())
        .collect()
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_declared_is_listed_and_searched() {
    let server = Server::start().await;
    let list = async |path: &str| server.get(path).await.expect(StatusCode::OK);
    assert_eq!(
        names(&list("templates").await),
        ["few", "login-code", "order-shipped"]
    );
    assert_eq!(
        names(&list("templates?q=PARCEL+way").await),
        ["order-shipped"]
    );
    assert_eq!(
        names(&list("templates?label=team=logistics").await),
        ["order-shipped"]
    );
    assert_eq!(
        names(&list("templates?category=order-updates").await),
        ["order-shipped"]
    );
    assert_eq!(
        names(&list("templates?q=nothing-of-the-kind").await),
        [""; 0]
    );
    let first = list("templates?limit=2").await;
    assert_eq!(first["next"], "login-code");
    assert_eq!(
        names(&list("templates?limit=2&cursor=login-code").await),
        ["order-shipped"]
    );
    assert_eq!(names(&list("channels").await), ["mail", "text"]);
    assert_eq!(names(&list("groups").await), ["board"]);
    assert_eq!(names(&list("schedules").await), [""; 0]);
    let template = list("templates/order-shipped").await;
    assert!(
        template["status"]["definition"]
            .as_str()
            .unwrap()
            .starts_with("sha256:")
    );
    assert_eq!(template["status"]["locales"], json!(["en", "ko"]));
    server.get("templates/none").await.problem(404, "not-found");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_says_how_it_is() {
    let server = Server::start().await;
    let channel = server.get("channels/mail").await.expect(StatusCode::OK);
    assert_eq!(channel["spec"]["medium"], "email");
    assert_eq!(channel["state"]["classes"]["critical"]["due"], 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_preview_shows_every_medium_and_what_to_mind() {
    let server = Server::start().await;
    let preview = async |body: Value| server.post("templates/order-shipped/preview", &body).await;
    let seen = preview(json!({"locale": "ko"}))
        .await
        .expect(StatusCode::OK);
    assert_eq!(seen["content"]["email"]["subject"], "주문 7");
    assert_eq!(seen["content"]["sms"]["segments"], 1);
    assert_eq!(
        seen["warnings"],
        json!(["the translation ko has no sms block"])
    );
    let seen = preview(json!({"locale": "fr"}))
        .await
        .expect(StatusCode::OK);
    assert_eq!(seen["content"]["email"]["subject"], "Order 7");
    assert!(
        seen["warnings"][0]
            .as_str()
            .unwrap()
            .contains("no translation for fr")
    );
    let errors = preview(json!({"parameters": {}}))
        .await
        .problem(422, "invalid-request");
    assert!(errors[0].0.starts_with("/parameters"), "{errors:?}");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_channel_is_tested_with_an_address_that_suits_it() {
    let server = Server::start().await;
    let test =
        async |path: &str, address: Value| server.post(path, &json!({"address": address})).await;
    let sent = test("channels/mail/test", json!({"email": "a@shop.example"})).await;
    assert_eq!(sent.expect(StatusCode::OK)["outcome"], "sent");
    let wrong = test("channels/mail/test", json!({"phone": "+821012345678"})).await;
    assert_eq!(wrong.problem(422, "invalid-request")[0].0, "/address");
    test("channels/none/test", json!({"email": "a@shop.example"}))
        .await
        .problem(404, "not-found");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_folder_what_is_declared_can_be_changed_and_a_stale_change_is_refused() {
    let server = Server::start().await;
    let group = |email: &str| json!({"spec": {"members": [{"address": {"email": email}}]}});
    let path = "groups/night-shift";
    let new = server.put(path, &group("a@shop.example")).await;
    assert_eq!(new.status, StatusCode::CREATED, "{:#}", new.body);
    let tag = new.header("etag").unwrap().to_owned();
    let with_tag = |email: &str| {
        let request = server.request(Method::PUT, path).header("if-match", &tag);
        Answer::of(request.json(&group(email)))
    };
    assert_eq!(with_tag("b@shop.example").await.status, StatusCode::OK);
    with_tag("c@shop.example").await.problem(412, "changed");
    let is = server.get(path).await.expect(StatusCode::OK);
    assert_eq!(
        is["spec"]["members"][0]["address"]["email"],
        "b@shop.example"
    );
    let wrong = json!({"metadata": {"name": "day-shift"}, "spec": {}});
    let errors = server
        .put(path, &wrong)
        .await
        .problem(422, "invalid-request");
    assert_eq!(errors[0].0, "/metadata/name");
    let errors = server
        .put(path, &group("nobody"))
        .await
        .problem(422, "invalid-request");
    assert!(errors[0].0.starts_with("/spec/members/0"), "{errors:?}");
    let gone = Answer::of(server.request(Method::DELETE, path)).await;
    assert_eq!(gone.status, StatusCode::NO_CONTENT);
    server.get(path).await.problem(404, "not-found");
}

#[tokio::test(flavor = "multi_thread")]
async fn in_a_cluster_kubernetes_changes_what_is_declared() {
    let server = Server::with(Setup {
        editor: false,
        ..Setup::default()
    })
    .await;
    let answer = server
        .put("groups/board", &json!({"spec": {"managed": true}}))
        .await;
    answer.problem(405, "read-only");
}
