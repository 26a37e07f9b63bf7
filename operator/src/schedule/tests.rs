//! One scenario for each path, against an API server that is a map and a gateway that is a value.

use std::sync::Mutex;

use axum::Router;
use axum::extract::State;
use axum::http::StatusCode;
use serde_json::{Value, json};

use super::*;
use crate::fixtures::{Bench, document};
use crate::gateway::Gateway;
use crate::status::summary;

fn schedule() -> Value {
    let spec =
        json!({"schedule": "0 9 * * *", "template": "digest", "recipients": [{"group": "all"}]});
    document("Schedule", "daily", &spec)
}

fn complete(bench: &mut Bench) {
    let template =
        json!({"routing": {"channels": [{"name": "sms"}]}, "content": {"sms": {"text": "a"}}});
    bench.declare(&document("NotificationTemplate", "digest", &template));
    let group = json!({"members": [{"recipient": "jo"}]});
    bench.declare(&document("RecipientGroup", "all", &group));
    bench.declare(&schedule());
}

async fn look(bench: &Bench) -> Value {
    let schedule = crate::watch::get(&bench.ctx.stores.schedules, "shop", "daily").unwrap();
    reconcile(schedule, Arc::clone(&bench.ctx)).await.unwrap();
    bench.server.get("Schedule", "daily").unwrap()["status"].clone()
}

type Answer = Arc<Mutex<Option<Value>>>;

/// A gateway that tells this of every Schedule; `None`: 503.
async fn gateway(bench: &mut Bench) -> Answer {
    let answer = Answer::default();
    let told = async |State(answer): State<Answer>| match answer.lock().unwrap().clone() {
        Some(status) => (
            StatusCode::OK,
            json!({"spec": {}, "status": status}).to_string(),
        ),
        None => (StatusCode::SERVICE_UNAVAILABLE, String::new()),
    };
    let app = Router::new().fallback(told).with_state(Arc::clone(&answer));
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}", listener.local_addr().unwrap());
    tokio::spawn(async move { axum::serve(listener, app).await });
    let _ = rustls::crypto::ring::default_provider().install_default();
    let ctx = Arc::get_mut(&mut bench.ctx).unwrap();
    ctx.gateway = Some(Gateway::new(&url, None, None, Arc::default()).unwrap());
    answer
}

#[tokio::test]
async fn a_schedule_waits_for_what_it_names() {
    let mut bench = Bench::embedded();
    bench.declare(&schedule());
    let status = look(&bench).await;
    let waits = [
        "Ready=False ReferenceMissing",
        "Reconciling=True ReferenceMissing",
    ];
    assert_eq!(summary(&status), waits);
    let message = status["conditions"][0]["message"].as_str().unwrap();
    assert!(
        message.contains("NotificationTemplate shop/digest")
            && message.contains("RecipientGroup shop/all"),
        "{message}"
    );
    complete(&mut bench);
    assert_eq!(summary(&look(&bench).await), ["Ready=True Resolved"]);
}

#[tokio::test]
async fn what_the_gateway_tells_is_mirrored_and_stays_while_it_is_away() {
    let mut bench = Bench::embedded();
    let answer = gateway(&mut bench).await;
    complete(&mut bench);
    let told = json!({
        "lastScheduleTime": "2026-03-02T09:00:00Z",
        "nextScheduleTime": "2026-03-03T09:00:00Z",
        "lastNotification": {"id": "n1", "accepted": true},
        "missed": 1,
    });
    *answer.lock().unwrap() = Some(told.clone());
    let status = look(&bench).await;
    for field in [
        "lastScheduleTime",
        "nextScheduleTime",
        "lastNotification",
        "missed",
    ] {
        assert_eq!(status[field], told[field], "{field}");
    }
    bench.server.asked();
    *answer.lock().unwrap() = None;
    assert_eq!(look(&bench).await, status);
    assert!(bench.server.asked().is_empty());
}

#[tokio::test]
async fn what_the_gateways_refuse_to_send_is_not_ready_until_it_is_sent() {
    let mut bench = Bench::embedded();
    let answer = gateway(&mut bench).await;
    complete(&mut bench);
    let next = "2026-03-03T09:00:00Z";
    let told = |refused: Value| json!({"missed": 0, "nextScheduleTime": next, "refused": refused});
    let no = "ServiceAccount shop/default may not create notifications";
    let refused = json!({"scheduleTime": "2026-03-02T09:00:00Z", "message": no});
    *answer.lock().unwrap() = Some(told(refused));
    let status = look(&bench).await;
    let waits = ["Ready=False SendRefused", "Reconciling=True SendRefused"];
    assert_eq!(summary(&status), waits);
    let message = status["conditions"][0]["message"].as_str().unwrap();
    assert!(
        message.contains(no) && message.contains("09:00"),
        "{message}"
    );
    let asked = bench.server.asked();
    assert!(asked.iter().any(|a| a.contains("events")), "{asked:?}");
    // One that does not answer has not changed its mind; one that is older than this says nothing of it.
    *answer.lock().unwrap() = None;
    assert_eq!(look(&bench).await, status);
    *answer.lock().unwrap() = Some(json!({"missed": 0}));
    assert_eq!(summary(&look(&bench).await), ["Ready=True Resolved"]);
}

#[tokio::test]
async fn a_time_that_was_refused_until_it_was_over_is_stalled_also_while_the_gateway_is_away() {
    let mut bench = Bench::embedded();
    let answer = gateway(&mut bench).await;
    complete(&mut bench);
    let mut once = schedule();
    once["spec"]["schedule"] = Value::Null;
    once["spec"]["at"] = json!("2020-03-02T09:00");
    bench.declare(&once);
    let refused = json!({"scheduleTime": "2020-03-02T09:00:00Z", "message": "it may not"});
    *answer.lock().unwrap() = Some(json!({"missed": 1, "refused": refused}));
    let status = look(&bench).await;
    let stalled = ["Ready=False SendRefused", "Stalled=True SendRefused"];
    assert_eq!(summary(&status), stalled);
    *answer.lock().unwrap() = None;
    assert_eq!(look(&bench).await, status);
}

#[tokio::test]
async fn parameters_that_the_template_refuses_are_stalled() {
    let mut bench = Bench::embedded();
    complete(&mut bench);
    let template = json!({
        "parameters": {"type": "object", "required": ["headline"]},
        "routing": {"channels": [{"name": "sms"}]},
        "content": {"sms": {"text": "a"}},
    });
    bench.declare(&document("NotificationTemplate", "digest", &template));
    let status = look(&bench).await;
    let stalled = ["Ready=False CannotBeSent", "Stalled=True CannotBeSent"];
    assert_eq!(summary(&status), stalled);
}
