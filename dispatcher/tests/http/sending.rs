//! Sending: one, many, none; repeats.

use reqwest::{Method, StatusCode};
use serde_json::json;

use super::server::{Answer, Server, Setup, order};

#[tokio::test(flavor = "multi_thread")]
async fn what_is_accepted_is_delivered_and_every_step_can_be_read() {
    let server = Server::start().await;
    server.person("alice", Some("alice@shop.example")).await;
    let answer = server.send(&order(&json!([{"recipient": "alice"}]))).await;
    assert_eq!(answer.status, StatusCode::ACCEPTED, "{:#}", answer.body);
    let id = answer.body["id"].as_str().unwrap();
    assert_eq!(answer.body["status"], "accepted");
    assert_eq!(answer.body["priority"], "normal");
    let location = answer.header("location").unwrap();
    assert_eq!(location, format!("/v1/namespaces/shop/notifications/{id}"));

    let seen = server.get(&format!("notifications/{id}?wait=30s")).await;
    let seen = seen.expect(StatusCode::OK);
    assert_eq!(seen["status"], "ended", "{seen:#}");
    assert_eq!(seen["counts"], json!({"sent": 1}));
    assert_eq!(seen["sender"], "everything");
    assert!(seen["system"]["version"].is_string());

    let deliveries = server.get(&format!("notifications/{id}/deliveries")).await;
    let deliveries = deliveries.expect(StatusCode::OK);
    let delivery = &deliveries["items"][0];
    assert_eq!(delivery["recipient"], "alice");
    assert_eq!(delivery["channel"], "shop/mail");
    assert_eq!(delivery["state"], "sent");
    assert_eq!(delivery["provider"], "rehearsal");
    let delivery = delivery["id"].as_str().unwrap();
    let trail = server.get(&format!("deliveries/{delivery}/events")).await;
    let trail = trail.expect(StatusCode::OK);
    let steps: Vec<&str> = trail["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|entry| entry["step"].as_str().unwrap())
        .collect();
    assert_eq!(steps.first(), Some(&"accepted"), "{steps:?}");
    assert!(steps.contains(&"sent"), "{steps:?}");

    let content = server.get(&format!("deliveries/{delivery}/content")).await;
    let content = content.expect(StatusCode::OK);
    assert_eq!(content["content"]["medium"], "email");
    assert_eq!(content["content"]["subject"], "Order 7");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_group_and_the_same_address_beside_it_is_one_message_each() {
    let server = Server::start().await;
    let to = json!([{"group": "board"}, {"address": {"email": "ceo@shop.example"}}]);
    let seen = server.send_and_wait(&order(&to)).await;
    assert_eq!(seen["counts"], json!({"sent": 2}), "{seen:#}");
    assert_eq!(seen["groups"], json!(["board"]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_repeat_gets_the_first_answer_and_another_body_is_refused_also_after_a_restart() {
    let server = Server::start().await;
    let body = order(&json!([{"address": {"email": "alice@shop.example"}}]));
    let with_key = |server: &Server, body: &serde_json::Value| {
        let request = server.request(Method::POST, "notifications");
        Answer::of(request.header("Idempotency-Key", "order-7").json(body))
    };
    let first = with_key(&server, &body).await;
    assert_eq!(first.status, StatusCode::ACCEPTED);
    assert_eq!(first.header("idempotency-replayed"), None);
    let second = with_key(&server, &body).await;
    assert_eq!(second.header("idempotency-replayed"), Some("true"));
    assert_eq!(second.body, first.body);
    let mut other = body.clone();
    other["parameters"]["order"]["id"] = json!("8");
    with_key(&server, &other)
        .await
        .problem(422, "idempotency-key-reused");

    // Another gateway, which remembers nothing: the database does.
    let id = first.body["id"].as_str().unwrap();
    server
        .get(&format!("notifications/{id}?wait=30s"))
        .await
        .expect(StatusCode::OK);
    let other_gateway = server.beside().await;
    let third = with_key(&other_gateway, &body).await;
    assert_eq!(third.header("idempotency-replayed"), Some("true"));
    assert_eq!(third.body["id"], first.body["id"]);
    with_key(&other_gateway, &other)
        .await
        .problem(422, "idempotency-key-reused");
    let list = server.get("notifications").await.expect(StatusCode::OK);
    assert_eq!(list["items"].as_array().unwrap().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn one_wrong_notification_of_a_batch_does_not_keep_the_others() {
    let server = Server::start().await;
    let mut good = order(&json!([{"address": {"email": "alice@shop.example"}}]));
    let bad = json!({"template": "order-shiped", "recipients": [{"group": "board"}]});
    let odd = json!({"template": "order-shipped", "recipient": []});
    let batch = json!([good, bad, odd, good]);
    let answer = server.post("notifications/batch", &batch).await;
    let results = answer.expect(StatusCode::OK);
    let statuses: Vec<u64> = results["results"]
        .as_array()
        .unwrap()
        .iter()
        .map(|result| result["status"].as_u64().unwrap())
        .collect();
    assert_eq!(statuses, [202, 404, 422, 202]);
    let problem = &results["results"][2]["problem"]["errors"][0];
    assert_eq!(problem["pointer"], "/recipient");

    good["idempotencyKey"] = json!("line-1");
    let lines = format!("{good}\n\nnot json\n{good}\n");
    let request = server.request(Method::POST, "notifications/batch");
    let request = request
        .header("content-type", "application/x-ndjson")
        .body(lines);
    let results = Answer::of(request).await.expect(StatusCode::OK);
    assert_eq!(results["results"].as_array().unwrap().len(), 3);
    assert_eq!(
        results["results"][1]["problem"]["type"],
        "/problems/malformed-json"
    );
    let first = &results["results"][0];
    let last = &results["results"][2];
    // They went side by side: the second was a repeat, or met the first under way.
    assert_eq!(first["status"], 202);
    assert!(
        last["replayed"] == true || last["status"] == 409,
        "{last:#}"
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_says_what_would_be_sent_and_sends_nothing() {
    let server = Server::start().await;
    server.person("alice", Some("alice@shop.example")).await;
    server.person("bob", None).await;
    let to = json!([{"recipient": "alice"}, {"recipient": "bob"}, {"recipient": "nobody"}, {"group": "board"}]);
    let answer = server.post("notifications?dryRun=true", &order(&to)).await;
    let run = answer.expect(StatusCode::OK);
    assert_eq!(run["recipients"], 5, "{run:#}");
    assert_eq!(run["channels"], json!({"shop/mail": 3}));
    assert_eq!(
        run["suppressed"],
        json!({"no-address": 1, "unknown-recipient": 1})
    );
    assert_eq!(run["samples"].as_array().unwrap().len(), 2);
    assert_eq!(run["samples"][0]["content"]["subject"], "Order 7");
    let to = json!([
        {"address": {"email": "alice@shop.example"}}, {"recipient": "alice"},
        {"address": {"email": "carol@shop.example"}},
    ]);
    let run = server.post("notifications?dryRun=true", &order(&to)).await;
    let run = run.expect(StatusCode::OK);
    assert_eq!(
        run["channels"],
        json!({"shop/mail": 2}),
        "one to who is named by id and by the same address"
    );
    let mut over_text = order(&json!([{"recipient": "bob"}]));
    over_text["channels"] = json!(["text"]);
    let run = server.post("notifications?dryRun=true", &over_text).await;
    let run = run.expect(StatusCode::OK);
    assert_eq!(run["smsSegments"], 1);
    let list = server.get("notifications").await.expect(StatusCode::OK);
    assert_eq!(list["items"], json!([]));
}

#[tokio::test(flavor = "multi_thread")]
async fn a_dry_run_tells_who_may_not_read_the_directory_of_no_person() {
    let server = Server::start().await;
    server.person("alice", Some("alice@shop.example")).await;
    server.person("bob", None).await;
    let scopes = ["notifications:create", "addresses", "channels:use"];
    server.key("sender", &scopes).await;
    let scopes = [&scopes[..], &["recipients:read"]].concat();
    server.key("reader", &scopes).await;
    let run = async |key: &str, person: &str, channel: &str| {
        let address = json!({"email": "a@shop.example", "phone": "+821087654321"});
        let to = json!([{"recipient": person}, {"address": address}]);
        let mut body = order(&to);
        body["channels"] = json!([channel]);
        let path = "/v1/namespaces/shop/notifications?dryRun=true";
        let request = server.bare(Method::POST, path).bearer_auth(key);
        Answer::of(request.json(&body)).await.expect(StatusCode::OK)
    };
    let full = run("reader", "alice", "mail").await;
    assert_eq!(full["samples"][0]["recipient"], "alice", "{full:#}");
    assert_eq!(full["samples"].as_array().unwrap().len(), 2);
    assert!(full["withheld"].is_null());
    let less = run("sender", "alice", "mail").await;
    assert_eq!(less["channels"], full["channels"]);
    assert_eq!(less["withheld"], 1);
    let samples = less["samples"].as_array().unwrap();
    assert_eq!(samples.len(), 1);
    assert!(samples[0]["recipient"].is_null());
    let text = run("sender", "bob", "text").await;
    assert_eq!(text["samples"].as_array().unwrap().len(), 1);
    assert_eq!(text["smsSegments"], 2, "also of the one that is not shown");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_sensitive_parameter_is_in_no_answer_once_it_was_sent() {
    let server = Server::start().await;
    let body = json!({
        "template": "login-code", "parameters": {"code": "493817"},
        "recipients": [{"address": {"email": "alice@shop.example"}}],
    });
    let seen = server.send_and_wait(&body).await;
    assert_eq!(seen["status"], "ended", "{seen:#}");
    assert_eq!(seen["priority"], "critical");
    let id = seen["id"].as_str().unwrap();
    let deliveries = server.get(&format!("notifications/{id}/deliveries")).await;
    let delivery = deliveries.body["items"][0]["id"]
        .as_str()
        .unwrap()
        .to_owned();
    let content = server.get(&format!("deliveries/{delivery}/content")).await;
    let trail = server.get(&format!("deliveries/{delivery}/events")).await;
    content.problem(404, "not-found");
    for answer in [seen, deliveries.body, content.body, trail.body] {
        assert!(!answer.to_string().contains("493817"), "{answer:#}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_callers_trace_goes_on_and_one_without_gets_one_that_is_the_notifications_id() {
    let server = Server::start().await;
    let given = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01";
    let body = order(&json!([{"group": "board"}]));
    for (traceparent, expected) in [
        (Some(given), Some(given)),
        (None, None),
        (Some("nonsense"), None),
    ] {
        let mut request = server.request(Method::POST, "notifications").json(&body);
        if let Some(traceparent) = traceparent {
            request = request.header("traceparent", traceparent);
        }
        let accepted = Answer::of(request).await.expect(StatusCode::ACCEPTED);
        let id = accepted["id"].as_str().unwrap();
        let seen = server.get(&format!("notifications/{id}?wait=30s")).await;
        let trace = seen.body["traceparent"].as_str().unwrap().to_owned();
        match expected {
            Some(expected) => assert_eq!(trace, expected),
            None => assert!(trace.starts_with(&format!("00-{id}-")), "{trace}"),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn the_disk_bound_is_503_with_a_time_to_come_back() {
    let server = Server::with(Setup {
        max_queue_bytes: 256 * 1024,
        pipeline: false,
        ..Setup::default()
    })
    .await;
    let mut body = order(&json!([{"group": "board"}]));
    body["parameters"]["padding"] = json!("x".repeat(50_000));
    for _ in 0..50 {
        let answer = server.send(&body).await;
        if answer.status == StatusCode::ACCEPTED {
            continue;
        }
        answer.problem(503, "queue-full");
        assert!(
            answer
                .header("retry-after")
                .unwrap()
                .parse::<u64>()
                .unwrap()
                >= 1
        );
        return;
    }
    panic!("2.5 MB went into a queue of 256 KiB");
}
