use std::net::SocketAddr;
use std::path::Path;
use std::sync::Mutex;

use axum::Router;
use axum::body::to_bytes;
use axum::extract::Request;
use axum::http::{HeaderMap as Fields, StatusCode as Status};
use axum::response::{IntoResponse as _, Response as Answer};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use herald_crds::NameRef;
use herald_crds::render::Rendered;
use hmac::{Hmac, KeyInit as _, Mac as _};
use serde_json::{Value, json};
use sha2::Sha256;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpListener;

use super::*;
use crate::provider::fixtures::{context, delivery, mail};

/// Long enough for whatever comes to an end.
const TIMEOUT: Duration = Duration::from_secs(20);

/// For what never comes to an end.
const SHORT: Duration = Duration::from_millis(300);

/// For what never comes to an end after something that does.
const AFTER_ALL: Duration = Duration::from_secs(4);

/// Header fields and body of each request.
type Received = Arc<Mutex<Vec<(Fields, Vec<u8>)>>>;

/// A receiver, and what it received.
struct Receiver {
    address: SocketAddr,
    received: Received,
}

impl Receiver {
    /// Answers every request with `answer`.
    async fn start(answer: impl Fn() -> Answer + Clone + Send + Sync + 'static) -> Self {
        let received = Received::default();
        let keep = Arc::clone(&received);
        let app = Router::new().fallback(async move |request: Request| {
            let (parts, body) = request.into_parts();
            let body = to_bytes(body, usize::MAX).await.unwrap();
            keep.lock().unwrap().push((parts.headers, body.to_vec()));
            answer()
        });
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        Self { address, received }
    }

    fn url(&self) -> String {
        format!("http://localhost:{}/hook", self.address.port())
    }

    fn only(&self) -> (Fields, Vec<u8>) {
        let received = self.received.lock().unwrap();
        assert_eq!(received.len(), 1);
        received[0].clone()
    }

    fn count(&self) -> usize {
        self.received.lock().unwrap().len()
    }
}

fn spec() -> WebhookSpec {
    WebhookSpec {
        allow_private_addresses: true,
        ..WebhookSpec::default()
    }
}

fn webhook(spec: &WebhookSpec) -> Webhook {
    Webhook::new("main", spec, &context(Path::new("/nowhere"))).unwrap()
}

fn event() -> Rendered {
    Rendered::Webhook {
        body: None,
        parameters: Some(json!({"order": {"id": "A-1047", "total": 12.5}}).into()),
    }
}

fn with_body(body: &str) -> Rendered {
    Rendered::Webhook {
        body: Some(body.to_owned()),
        parameters: None,
    }
}

async fn send(webhook: &Webhook, url: &str) -> Outcome {
    webhook.send(&delivery(url, event()), TIMEOUT).await
}

/// What comes of a receiver that answers with `status`, header fields and body.
async fn meet(status: u16, fields: &'static [(&str, &str)], body: &'static str) -> Outcome {
    let receiver = Receiver::start(move || {
        let mut answer = (Status::from_u16(status).unwrap(), body).into_response();
        for (name, value) in fields {
            answer.headers_mut().insert(*name, value.parse().unwrap());
        }
        answer
    })
    .await;
    let outcome = send(&webhook(&spec()), &receiver.url()).await;
    assert_eq!(receiver.count(), 1, "{status}");
    outcome
}

/// A receiver without HTTP: reads a request's head, then writes `answer` and either hangs up or stays.
async fn raw(answer: &'static str, hang: bool) -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = listener.accept().await {
            tokio::spawn(async move {
                let mut head = Vec::new();
                while !head.ends_with(b"}") {
                    if stream.read_buf(&mut head).await.unwrap_or(0) == 0 {
                        return;
                    }
                }
                let _ = stream.write_all(answer.as_bytes()).await;
                if hang {
                    std::future::pending::<()>().await;
                }
            });
        }
    });
    format!("http://{address}/")
}

#[tokio::test]
async fn the_default_body_is_a_cloud_event_with_what_makes_a_repeat_recognisable() {
    let receiver = Receiver::start(|| Status::NO_CONTENT.into_response()).await;
    let mut delivery = delivery(&receiver.url(), event());
    delivery.traceparent = Some("00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".into());
    let outcome = webhook(&spec()).send(&delivery, TIMEOUT).await;
    assert_eq!(outcome, Outcome::Sent { provider_id: None });
    let (fields, body) = receiver.only();
    let id = delivery.id.to_string();
    for (name, value) in [
        ("content-type", "application/cloudevents+json"),
        ("webhook-id", &id),
        ("idempotency-key", &id),
        ("traceparent", delivery.traceparent.as_deref().unwrap()),
        ("content-length", &body.len().to_string()),
    ] {
        assert_eq!(fields[name], value, "{name}");
    }
    assert!(!fields.contains_key("webhook-signature") && !fields.contains_key("transfer-encoding"));
    let body: Value = serde_json::from_slice(&body).unwrap();
    assert_eq!(
        body,
        json!({
            "specversion": "1.0",
            "id": id,
            "source": format!("/v1/namespaces/shop/notifications/{}", delivery.notification),
            "type": "herald.dev.notification.order-shipped",
            "subject": "alice",
            "time": "2023-11-14T22:13:20Z",
            "traceparent": delivery.traceparent,
            "datacontenttype": "application/json",
            "data": {"order": {"id": "A-1047", "total": 12.5}},
        })
    );
}

#[tokio::test]
async fn a_template_s_body_is_posted_as_it_is_to_the_channel_s_own_url_with_its_fields() {
    let receiver = Receiver::start(|| Status::OK.into_response()).await;
    let mut spec = spec();
    spec.url = Some(receiver.url());
    spec.headers
        .insert("X-Team".to_owned(), "logistics".to_owned());
    let outcome = webhook(&spec)
        .send(
            &delivery("http://elsewhere.example/", with_body("{\"a\": 1}")),
            TIMEOUT,
        )
        .await;
    assert_eq!(outcome, Outcome::Sent { provider_id: None });
    let (fields, body) = receiver.only();
    assert_eq!(fields["content-type"], "application/json");
    assert_eq!(fields["x-team"], "logistics");
    assert_eq!(body, b"{\"a\": 1}");
}

#[tokio::test]
async fn the_signature_can_be_verified_and_a_rotated_secret_needs_no_restart() {
    let receiver = Receiver::start(|| Status::OK.into_response()).await;
    let folder = tempfile::tempdir().unwrap();
    std::fs::create_dir(folder.path().join("hook")).unwrap();
    let file = folder.path().join("hook/secret");
    let mut spec = spec();
    spec.credentials_ref = Some(NameRef {
        name: "hook".to_owned(),
    });
    let webhook = Webhook::new("main", &spec, &context(folder.path())).unwrap();

    let outcome = send(&webhook, &receiver.url()).await;
    assert!(
        matches!(&outcome, Outcome::Transient(r) if &*r.code == "credentials" && r.detail.contains("hook")),
        "{outcome:?}"
    );
    for key in [
        "first key of the shop ....",
        "another key of the shop, longer",
    ] {
        std::fs::write(&file, format!("whsec_{}\n", STANDARD.encode(key))).unwrap();
        assert_eq!(
            send(&webhook, &receiver.url()).await,
            Outcome::Sent { provider_id: None }
        );
        let (fields, body) = receiver.received.lock().unwrap().pop().unwrap();
        let text = |name: &str| fields[name].to_str().unwrap();
        let mut mac = Hmac::<Sha256>::new_from_slice(key.as_bytes()).unwrap();
        mac.update(format!("{}.{}.", text("webhook-id"), text("webhook-timestamp")).as_bytes());
        mac.update(&body);
        let signature = STANDARD
            .decode(text("webhook-signature").strip_prefix("v1,").unwrap())
            .unwrap();
        mac.verify_slice(&signature).unwrap();
        let age = clock::now().as_second() - text("webhook-timestamp").parse::<i64>().unwrap();
        assert!((0..60).contains(&age));
    }
}

#[tokio::test]
async fn only_2xx_is_sent_and_every_other_status_says_whether_to_try_again() {
    for status in [200, 201, 202, 204] {
        assert!(
            matches!(meet(status, &[], "").await, Outcome::Sent { .. }),
            "{status}"
        );
    }
    for status in [408, 425, 500, 502, 503, 504] {
        let outcome = meet(status, &[], "").await;
        assert!(
            matches!(&outcome, Outcome::Transient(r) if *r.code == *format!("http-{status}")),
            "{status}: {outcome:?}"
        );
    }
    for status in [301, 302, 303, 307, 308] {
        let outcome = meet(status, &[("location", "/elsewhere")], "").await;
        assert!(
            matches!(&outcome, Outcome::Permanent { reason, address_gone: false } if reason.detail.contains("redirect")),
            "{status}: {outcome:?}"
        );
    }
    for status in [400, 401, 403, 404, 409, 410, 413, 422] {
        let outcome = meet(status, &[], "").await;
        assert!(
            matches!(outcome, Outcome::Permanent { address_gone, .. } if address_gone == (status == 410)),
            "{status}"
        );
    }
}

#[tokio::test]
async fn a_receiver_that_asks_for_a_pause_gets_the_one_it_asks_for() {
    for (status, fields, expected) in [
        (429, &[][..], None),
        (429, &[("retry-after", "7")], Some(7)),
        (503, &[("retry-after", "120")], Some(120)),
        (503, &[("retry-after", "99999999999")], Some(24 * 3600)),
        (
            503,
            &[("retry-after", "Fri, 31 Dec 1999 23:59:59 GMT")],
            Some(0),
        ),
    ] {
        let outcome = meet(status, fields, "").await;
        let Outcome::Throttled { retry_after, .. } = outcome else {
            panic!("{status} {fields:?}: {outcome:?}");
        };
        assert_eq!(retry_after, expected.map(Duration::from_secs), "{fields:?}");
    }
    let outcome = meet(503, &[("retry-after", "soon")], "").await;
    assert!(matches!(outcome, Outcome::Transient(_)));
}

#[test]
fn a_pause_may_be_given_as_a_date() {
    let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
    for later in [
        "Sun, 06 Nov 1994 08:50:07 GMT",
        "Sunday, 06-Nov-94 08:50:07 GMT",
        "Sun Nov  6 08:50:07 1994",
    ] {
        assert_eq!(
            retry_after(later, now),
            Some(Duration::from_secs(30)),
            "{later}"
        );
    }
}

#[tokio::test]
async fn an_answer_is_quoted_in_short_without_the_content_that_it_repeats() {
    let outcome = meet(
        422,
        &[],
        "order A-1047 of bob@shop.example: see https://x.example/A-1047\n",
    )
    .await;
    let Outcome::Permanent { reason, .. } = outcome else {
        panic!("{outcome:?}");
    };
    assert_eq!(&*reason.code, "http-422");
    assert_eq!(reason.detail, "HTTP 422: order … of (address) see (URL)");
    let outcome = meet(500, &[], "long ".repeat(100_000).leak()).await;
    assert!(matches!(outcome, Outcome::Transient(r) if r.detail.chars().count() == 500));
}

#[tokio::test]
async fn once_the_request_is_written_silence_and_a_reset_are_unknown() {
    for (answer, hang, code) in [
        ("", true, "timeout"),
        ("", false, "reset"),
        ("HTTP/1.1 200", true, "timeout"),
        ("HTTP/1.1 200", false, "reset"),
        ("220 mail.example ESMTP\r\n", false, "reset"),
    ] {
        let url = raw(answer, hang).await;
        let most = if hang { AFTER_ALL } else { TIMEOUT };
        let outcome = webhook(&spec())
            .send(&delivery(&url, with_body("{}")), most)
            .await;
        assert!(
            matches!(&outcome, Outcome::Unknown(r) if &*r.code == code),
            "{answer:?} {hang}: {outcome:?}"
        );
    }
}

#[tokio::test]
async fn a_status_counts_even_if_the_rest_of_the_answer_never_comes() {
    for (status, sent) in [("200 OK", true), ("500 No", false)] {
        let answer = format!("HTTP/1.1 {status}\r\ncontent-length: 100\r\n\r\nwait").leak();
        let url = raw(answer, true).await;
        let outcome = webhook(&spec())
            .send(&delivery(&url, with_body("{}")), AFTER_ALL)
            .await;
        match outcome {
            Outcome::Sent { .. } => assert!(sent),
            Outcome::Transient(reason) => {
                assert_eq!((sent, reason.detail.as_str()), (false, "HTTP 500: wait"));
            }
            other => panic!("{other:?}"),
        }
    }
}

#[tokio::test]
async fn before_the_request_is_written_nothing_is_unknown() {
    // Nobody listens.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let outcome = send(&webhook(&spec()), &format!("http://{address}/")).await;
    assert!(
        matches!(&outcome, Outcome::Transient(r) if &*r.code == "connect"),
        "{outcome:?}"
    );
    // Somebody listens and never shakes hands.
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("https://{}/", listener.local_addr().unwrap());
    let outcome = webhook(&spec()).send(&delivery(&url, event()), SHORT).await;
    assert!(
        matches!(&outcome, Outcome::Transient(r) if &*r.code == "timeout"),
        "{outcome:?}"
    );
    // Somebody listens and does not speak TLS.
    let receiver = Receiver::start(|| Status::OK.into_response()).await;
    let outcome = send(&webhook(&spec()), &format!("https://{}/", receiver.address)).await;
    assert!(
        matches!(&outcome, Outcome::Transient(r) if &*r.code == "tls"),
        "{outcome:?}"
    );
}

#[tokio::test]
async fn a_private_address_is_refused_after_resolution_however_it_is_written() {
    let receiver = Receiver::start(|| Status::OK.into_response()).await;
    let port = receiver.address.port();
    let mut context = context(Path::new("/nowhere"));
    for (channel, configuration) in [(true, false), (false, true)] {
        context.allow_private_addresses = configuration;
        let spec = WebhookSpec {
            allow_private_addresses: channel,
            ..WebhookSpec::default()
        };
        let webhook = Webhook::new("main", &spec, &context).unwrap();
        for host in [
            "localhost",
            "127.0.0.1",
            "127.1",
            "2130706433",
            "0x7f.1",
            "127.0.0.1.",
            "[::1]",
            "[::ffff:7f00:1]",
        ] {
            let outcome = send(&webhook, &format!("http://{host}:{port}/")).await;
            assert!(
                matches!(&outcome, Outcome::Permanent { reason, address_gone: false } if &*reason.code == "refused-address"),
                "{host}: {outcome:?}"
            );
        }
        // The Channel's own URL is its owner's to correct: that must not kill messages.
        for host in ["localhost", "127.0.0.1"] {
            let own = WebhookSpec {
                url: Some(format!("http://{host}:{port}/")),
                ..spec.clone()
            };
            let outcome = send(&Webhook::new("main", &own, &context).unwrap(), "unused").await;
            assert!(
                matches!(&outcome, Outcome::Transient(r) if &*r.code == "refused-address"),
                "{outcome:?}"
            );
        }
    }
    assert_eq!(receiver.count(), 0);
}

#[tokio::test]
async fn what_is_no_url_or_no_webhook_is_permanent() {
    let webhook = webhook(&spec());
    for url in [
        "",
        "/hook",
        "ftp://a.example/",
        "mailto:a@b.example",
        "http://",
    ] {
        let outcome = send(&webhook, url).await;
        assert!(
            matches!(outcome, Outcome::Permanent { reason, .. } if &*reason.code == "url"),
            "{url}"
        );
    }
    let outcome = webhook
        .send(&delivery("http://a.example/", mail()), TIMEOUT)
        .await;
    assert!(matches!(outcome, Outcome::Permanent { reason, .. } if &*reason.code == "content"));
}

#[test]
fn fields_that_are_ours_or_impossible_are_refused_at_once() {
    for (name, value) in [
        ("Webhook-Signature", "v1,AAAA"),
        ("content-type", "text/plain"),
        ("Host", "a.example"),
        ("X Team", "a"),
        ("X-Team", "a\r\nX-Evil: b"),
    ] {
        let mut spec = spec();
        spec.headers.insert(name.to_owned(), value.to_owned());
        let error = Webhook::new("main", &spec, &context(Path::new("/nowhere"))).unwrap_err();
        assert!(matches!(error, BuildError::CheckHeader { header, .. } if header == name));
    }
    let mut spec = spec();
    spec.url = Some("shop.example/hook".to_owned());
    let error = Webhook::new("main", &spec, &context(Path::new("/nowhere"))).unwrap_err();
    assert!(matches!(error, BuildError::ParseUrl { .. }));
}

#[tokio::test]
async fn one_connection_serves_many_requests() {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let webhook = webhook(&spec());
    let receiver = tokio::spawn(async move {
        let (mut stream, _) = listener.accept().await.unwrap();
        for _ in 0..3 {
            let mut request = Vec::new();
            while !request.ends_with(b"{}") {
                assert_ne!(stream.read_buf(&mut request).await.unwrap(), 0);
            }
            let answer = b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok";
            stream.write_all(answer).await.unwrap();
        }
    });
    for _ in 0..3 {
        let outcome = webhook
            .send(&delivery(&url, with_body("{}")), TIMEOUT)
            .await;
        assert_eq!(outcome, Outcome::Sent { provider_id: None });
    }
    receiver.await.unwrap();
}
