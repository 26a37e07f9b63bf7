//! Asking what became of it.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::Bytes;
use futures::StreamExt;
use herald_crds::Priority;
use herald_dispatcher::id::NotificationId;
use herald_dispatcher::message::{Direct, Event, Events, Step};
use herald_dispatcher::store::RecordStore as _;
use jiff::Timestamp;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::server::{Server, Setup, order};

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
    let mut stream = Stream::open(&server, "events").await;
    let body = order(&json!([{"address": {"email": "alice@shop.example"}}]));
    let accepted = server.send(&body).await.expect(StatusCode::ACCEPTED);
    let outcome = stream.outcome().await;
    assert_eq!(outcome["notification"], accepted["id"]);
    assert_eq!(outcome["step"], "sent");
    assert_eq!(outcome["channel"], "shop/mail");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_namespaces_streams_leave_places_to_others_and_a_closed_one_to_its_own() {
    let server = Server::start().await;
    let mut streams = Vec::new();
    for _ in 0..8 {
        streams.push(Stream::open(&server, "events").await);
    }
    let open = async || server.request(Method::GET, "events").send().await.unwrap();
    let refused = open().await;
    assert_eq!(refused.status(), StatusCode::TOO_MANY_REQUESTS);
    assert_eq!(refused.headers()["retry-after"], "10");
    let problem: Value = refused.json().await.unwrap();
    let detail = problem["detail"].as_str().unwrap();
    assert!(detail.contains("8 streams of namespace shop"), "{detail}");
    let elsewhere = server.bare(Method::GET, "/v1/namespaces/other/events");
    let elsewhere = elsewhere.bearer_auth(super::server::KEY).send().await;
    Stream::from(elsewhere.unwrap());
    streams.pop();
    let again = async {
        while open().await.status() != StatusCode::OK {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), again)
        .await
        .unwrap();
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stream_goes_on_where_an_earlier_one_was() {
    let server = Server::start().await;
    let send = async || {
        let body = order(&json!([{"address": {"email": "alice@shop.example"}}]));
        let accepted = server.send(&body).await.expect(StatusCode::ACCEPTED);
        let id = accepted["id"].as_str().unwrap().to_owned();
        server.get(&format!("notifications/{id}?wait=20s")).await;
        id
    };
    let mut first = Stream::open(&server, "events").await;
    first.block().await;
    let at_the_beginning = first.id.clone().unwrap();
    let mut sent = vec![send().await];
    first.outcome().await;
    let after_the_first = first.id.clone().unwrap();
    drop(first);
    // Nobody listens.
    sent.push(send().await);
    sent.push(send().await);

    let mut again = Stream::open(&server, &format!("events?after={after_the_first}")).await;
    for id in &sent[1..] {
        assert_eq!(again.outcome().await["notification"], **id);
    }
    let all = server.request(Method::GET, "events");
    let all = all.header("Last-Event-ID", at_the_beginning);
    let mut all = Stream::from(all.send().await.unwrap());
    for id in &sent {
        assert_eq!(all.outcome().await["notification"], **id);
    }
    sent.push(send().await);
    for stream in [&mut again, &mut all] {
        assert_eq!(stream.outcome().await["notification"], sent[3], "and on");
    }

    let refused = server.request(Method::GET, "events?after=yesterday");
    let refused = refused.send().await.unwrap();
    assert_eq!(refused.status(), StatusCode::UNPROCESSABLE_ENTITY);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_comes_back_too_late_is_told_since_when() {
    let server = Server::start().await;
    let long_ago = URL_SAFE_NO_PAD.encode(r#"{"at": 1000000000, "read": {}}"#);
    let mut stream = Stream::open(&server, &format!("events?after={long_ago}")).await;
    let block = stream.block().await;
    assert_eq!(block, "event: lagged\ndata: 2001-09-09T01:46:40Z");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_was_in_a_queue_that_is_gone_begins_with_what_there_is() {
    let server = Server::start().await;
    let now = Timestamp::now().as_second();
    let place = json!({"at": now, "read": {"shop/mail": [0, 1_u64 << 60, 0]}}).to_string();
    let place = URL_SAFE_NO_PAD.encode(place);
    let body = order(&json!([{"address": {"email": "alice@shop.example"}}]));
    let sent = server.send_and_wait(&body).await;
    let mut stream = Stream::open(&server, &format!("events?after={place}")).await;
    assert!(stream.block().await.starts_with("event: lagged\n"));
    assert_eq!(stream.outcome().await["notification"], sent["id"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_place_in_the_stream_is_as_old_as_what_was_read_there() {
    let server = Server::with(without_stages()).await;
    let minutes_ago = |minutes: i64| Timestamp::now().as_second() - minutes * 60;
    let read_at = minutes_ago(8);
    server
        .publish(&direct(read_at, &NotificationId::random()))
        .await;
    let place = json!({"at": minutes_ago(12), "read": {}}).to_string();
    let place = URL_SAFE_NO_PAD.encode(place);
    let path = format!("events?channel=mail&after={place}");
    let mut stream = Stream::open(&server, &path).await;
    stream.outcome().await;
    let place = URL_SAFE_NO_PAD.decode(stream.id.unwrap()).unwrap();
    let place: Value = serde_json::from_slice(&place).unwrap();
    assert_eq!(place["at"], read_at, "a slow reader is not where it seems");
}

#[tokio::test(flavor = "multi_thread")]
async fn outcomes_wait_until_their_notification_is_recorded() {
    let server = Server::with(without_stages()).await;
    let mut stream = Stream::open(&server, "events").await;
    stream.block().await;
    let id = NotificationId::random();
    let events = direct(Timestamp::now().as_second(), &id);
    let outcomes = Events {
        outcomes: events.outcomes.clone(),
        ..Events::default()
    };
    server.publish(&outcomes).await;
    // Recording is slow: the stream asks in vain for a while.
    tokio::time::sleep(Duration::from_secs(1)).await;
    server.store.record("shop/mail", &[events]).await.unwrap();
    assert_eq!(stream.outcome().await["notification"], id.to_string());
}

/// Nothing but the API.
fn without_stages() -> Setup {
    Setup {
        pipeline: false,
        ..Setup::default()
    }
}

/// A notification that was fanned out without SQL, and its only outcome, at a time in seconds since 1970.
fn direct(at: i64, id: &NotificationId) -> Events {
    let request = json!({
        "id": id, "namespace": "shop", "sender": "test", "body": "b", "template": "login-code",
        "definition": "sha256:0", "groups": null, "priority": "critical", "recipients": [], "parameters": {},
        "accepted_at": at * 1000,
    });
    Events {
        direct: vec![Direct {
            request: serde_json::from_value(request).unwrap(),
            definition: Arc::from(""),
            deliveries: Vec::new(),
        }],
        outcomes: vec![Event {
            delivery: serde_json::from_value(json!("0".repeat(24))).unwrap(),
            notification: *id,
            at: Timestamp::from_second(at).unwrap(),
            round: 0,
            attempt: 1,
            tried: 0,
            priority: Priority::Critical,
            step: Step::Expired,
        }],
        ..Events::default()
    }
}

/// A stream of server-sent events.
struct Stream {
    bytes: Pin<Box<dyn futures::Stream<Item = reqwest::Result<Bytes>> + Send>>,
    text: String,
    /// The id that came last.
    id: Option<String>,
}

impl Stream {
    async fn open(server: &Server, path: &str) -> Self {
        let answer = server.request(Method::GET, path).send().await.unwrap();
        Self::from(answer)
    }

    fn from(answer: reqwest::Response) -> Self {
        assert_eq!(answer.status(), StatusCode::OK);
        assert_eq!(answer.headers()["content-type"], "text/event-stream");
        Self {
            bytes: Box::pin(answer.bytes_stream()),
            text: String::new(),
            id: None,
        }
    }

    /// What comes up to the next empty line.
    async fn block(&mut self) -> String {
        let read = async {
            loop {
                if let Some((block, rest)) = self.text.split_once("\n\n") {
                    let block = block.to_owned();
                    self.text = String::from(rest);
                    let id = block.lines().find_map(|line| line.strip_prefix("id: "));
                    self.id = id.map(str::to_owned).or(self.id.take());
                    return block;
                }
                let bytes = self.bytes.next().await.unwrap().unwrap();
                self.text.push_str(str::from_utf8(&bytes).unwrap());
            }
        };
        tokio::time::timeout(Duration::from_secs(60), read)
            .await
            .unwrap()
    }

    /// The next outcome.
    async fn outcome(&mut self) -> Value {
        loop {
            let block = self.block().await;
            if block.contains("event: outcome") {
                let mut lines = block.lines();
                let data = lines.find_map(|line| line.strip_prefix("data: "));
                return serde_json::from_str(data.unwrap()).unwrap();
            }
        }
    }
}
