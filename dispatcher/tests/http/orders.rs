//! Cancel, prioritize, confirm, dead letters.

use reqwest::StatusCode;
use serde_json::{Value, json};

use super::server::{Server, order};

fn tomorrow() -> Value {
    json!(jiff::Timestamp::now() + jiff::SignedDuration::from_hours(24))
}

/// Sends something for tomorrow, and waits until it is known.
async fn scheduled(server: &Server) -> String {
    let mut body = order(&json!([{"group": "board"}]));
    body["sendAt"] = tomorrow();
    let accepted = server.send(&body).await.expect(StatusCode::ACCEPTED);
    let id = accepted["id"].as_str().unwrap().to_owned();
    loop {
        let seen = server.get(&format!("notifications/{id}?wait=10ms")).await;
        if seen.status == StatusCode::OK {
            assert_eq!(seen.body["status"], "scheduled", "{:#}", seen.body);
            return id;
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_cancelled_before_its_time_never_goes_out() {
    let server = Server::start().await;
    let id = scheduled(&server).await;
    let order = server
        .post(&format!("notifications/{id}/cancel"), &json!({}))
        .await;
    assert_eq!(order.status, StatusCode::OK, "{:#}", order.body);
    assert_eq!(order.body["out"], 0);
    assert_eq!(order.body["status"], "cancelled");
    let seen = server.get(&format!("notifications/{id}?wait=5s")).await;
    assert_eq!(seen.body["status"], "cancelled");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_template_is_halted_as_a_whole() {
    let server = Server::start().await;
    let ids = [scheduled(&server).await, scheduled(&server).await];
    let order = server
        .post("notifications/cancel?template=order-shipped", &json!({}))
        .await;
    assert_eq!(order.status, StatusCode::OK, "{:#}", order.body);
    for id in ids {
        let seen = server.get(&format!("notifications/{id}")).await;
        assert_eq!(seen.body["status"], "cancelled");
    }
    let order = server.post("notifications/cancel", &json!({})).await;
    let errors = order.problem(422, "invalid-request");
    assert_eq!(errors[0].0, "?template");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_gets_another_priority() {
    let server = Server::start().await;
    let id = scheduled(&server).await;
    let path = format!("notifications/{id}/prioritize");
    server
        .post(&path, &json!({"priority": "high"}))
        .await
        .expect(StatusCode::OK);
    let seen = server.get(&format!("notifications/{id}")).await;
    assert_eq!(seen.body["priority"], "high");
    server
        .post(&path, &json!({"priority": "urgent"}))
        .await
        .problem(422, "invalid-request");
}

#[tokio::test(flavor = "multi_thread")]
async fn more_than_the_template_allows_is_held_until_it_is_confirmed() {
    let server = Server::start().await;
    let body = json!({"template": "few", "recipients": [{"group": "board"}]});
    let accepted = server.send(&body).await.expect(StatusCode::ACCEPTED);
    let id = accepted["id"].as_str().unwrap();
    let path = format!("notifications/{id}");
    let held = loop {
        let seen = server.get(&format!("{path}?wait=10ms")).await;
        if seen.status == StatusCode::OK && seen.body["status"] == "held" {
            break seen.body;
        }
    };
    assert_eq!(held["held"], json!({"recipients": 2, "allowed": 1}));
    let confirm = format!("{path}/confirm");
    let few = server.post(&confirm, &json!({"recipients": 1})).await;
    few.problem(422, "invalid-request");
    let enough = server.post(&confirm, &json!({"recipients": 2})).await;
    assert_eq!(enough.status, StatusCode::NO_CONTENT);
    let seen = server.get(&format!("{path}?wait=30s")).await;
    assert_eq!(seen.body["counts"], json!({"sent": 2}), "{:#}", seen.body);
    server
        .post(&confirm, &json!({"recipients": 2}))
        .await
        .problem(409, "conflict");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_is_listed_replayed_and_discarded() {
    let server = Server::start().await;
    let seen = server
        .send_and_wait(&order(&json!([{"address": {"email": "bad@shop.example"}}])))
        .await;
    assert_eq!(seen["counts"], json!({"failed": 1}), "{seen:#}");
    let list = async || {
        server
            .get("dead-letters?channel=mail")
            .await
            .expect(StatusCode::OK)
    };
    let dead = list().await;
    assert_eq!(dead["items"].as_array().unwrap().len(), 1);
    let id = dead["items"][0]["id"].as_str().unwrap();
    assert_eq!(dead["items"][0]["round"], 0);
    let replayed = server
        .post("dead-letters/replay", &json!({"deliveries": [id]}))
        .await;
    assert_eq!(replayed.expect(StatusCode::OK)["changed"], 1);
    let again = loop {
        let delivery = server
            .get(&format!("deliveries/{id}"))
            .await
            .expect(StatusCode::OK);
        if delivery["round"] == 1 && delivery["state"] == "failed" {
            break delivery;
        }
        tokio::task::yield_now().await;
    };
    assert_eq!(again["attempts"], 1);
    let discarded = server
        .post("dead-letters/discard", &json!({"channel": "mail"}))
        .await;
    assert_eq!(discarded.expect(StatusCode::OK)["changed"], 1);
    assert_eq!(list().await["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dead_letter_of_which_nothing_is_kept_is_not_replayed_and_the_answer_says_why() {
    let server = Server::start().await;
    let body = json!({
        "template": "login-code",
        "recipients": [{"address": {"email": "bad@shop.example"}}],
        "parameters": {"code": "123456"},
    });
    let seen = server.send_and_wait(&body).await;
    assert_eq!(seen["counts"], json!({"failed": 1}), "{seen:#}");
    let replayed = server.post("dead-letters/replay", &json!({})).await;
    let replayed = replayed.expect(StatusCode::OK);
    assert_eq!(replayed["changed"], 0);
    let refused = &replayed["refused"];
    assert_eq!(refused.as_array().unwrap().len(), 1, "{replayed:#}");
    assert_eq!(refused[0]["reason"], "sensitive");
    let delivery = refused[0]["delivery"].as_str().unwrap();
    let delivery = server.get(&format!("deliveries/{delivery}")).await;
    let delivery = delivery.expect(StatusCode::OK);
    assert_eq!(
        (&delivery["round"], &delivery["state"]),
        (&json!(0), &json!("failed"))
    );
}
