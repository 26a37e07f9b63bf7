//! Asking what became of it.

use std::time::Duration;

use futures::StreamExt;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::server::{Server, order};

#[tokio::test(flavor = "multi_thread")]
async fn lists_are_filtered_and_paged() {
    let server = Server::start().await;
    for n in 0..3 {
        let mut body = order(&json!([{"address": {"email": format!("a{n}@shop.example")}}]));
        body["metadata"] = json!({"campaign": if n == 1 { "spring" } else { "autumn" }});
        server.send_and_wait(&body).await;
    }
    let list = async |query: &str| {
        let answer = server.get(&format!("notifications?{query}")).await;
        answer.expect(StatusCode::OK)
    };
    let count = |page: &Value| page["items"].as_array().unwrap().len();
    assert_eq!(count(&list("metadata=campaign=spring").await), 1);
    assert_eq!(
        count(&list("template=order-shipped&priority=normal&channel=mail&status=sent").await),
        3
    );
    assert_eq!(count(&list("template=few").await), 0);
    let first = list("limit=2").await;
    assert_eq!(count(&first), 2);
    let next = first["next"].as_str().unwrap();
    let second = list(&format!("limit=2&cursor={next}")).await;
    assert_eq!(count(&second), 1);
    assert_eq!(second.get("next"), None);
    assert_ne!(second["items"][0]["id"], first["items"][0]["id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_of_one_namespace_is_unknown_in_another() {
    let server = Server::start().await;
    let seen = server
        .send_and_wait(&order(&json!([{"group": "board"}])))
        .await;
    let id = seen["id"].as_str().unwrap();
    for path in [
        format!("notifications/{id}"),
        format!("notifications/{id}/deliveries"),
    ] {
        let request = server.bare(Method::GET, &format!("/v1/namespaces/other/{path}"));
        let answer = request
            .bearer_auth(super::server::KEY)
            .send()
            .await
            .unwrap();
        assert_eq!(answer.status(), StatusCode::NOT_FOUND, "{path}");
    }
    let cancel = format!("/v1/namespaces/other/notifications/{id}/cancel");
    let answer = server
        .bare(Method::POST, &cancel)
        .bearer_auth(super::server::KEY);
    assert_eq!(answer.send().await.unwrap().status(), StatusCode::NOT_FOUND);
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_are_streamed_as_they_happen() {
    let server = Server::start().await;
    let stream = server.request(Method::GET, "events").send().await.unwrap();
    assert_eq!(stream.headers()["content-type"], "text/event-stream");
    let mut stream = stream.bytes_stream();
    let body = order(&json!([{"address": {"email": "alice@shop.example"}}]));
    let accepted = server.send(&body).await.expect(StatusCode::ACCEPTED);
    let mut text = String::new();
    let read = async {
        while !text.contains("\n\n") {
            text.push_str(str::from_utf8(&stream.next().await.unwrap().unwrap()).unwrap());
        }
    };
    tokio::time::timeout(Duration::from_secs(20), read)
        .await
        .unwrap();
    assert!(text.contains("event: outcome"), "{text}");
    let data = text
        .lines()
        .find_map(|line| line.strip_prefix("data: "))
        .unwrap();
    let outcome: Value = serde_json::from_str(data).unwrap();
    assert_eq!(outcome["notification"], accepted["id"]);
    assert_eq!(outcome["step"], "sent");
    assert_eq!(outcome["channel"], "shop/mail");
}
