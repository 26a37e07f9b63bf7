//! Against brokers that do as they are told: who gets the token, and what counts as done.

use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use axum::Router;
use axum::extract::{Request, State};
use axum::http::{HeaderMap, StatusCode, header};
use axum::response::{IntoResponse as _, Response};
use herald_crds::names;

use super::*;

/// A status, where to go instead, and a body.
type Answer = (StatusCode, Option<String>, String);

/// What was asked, and with which token.
type Asked = (String, Option<String>);

/// One broker: what it answers, by `METHOD path?query`, and what it was asked with which token.
#[derive(Clone, Default)]
struct Broker {
    answers: Arc<Mutex<BTreeMap<String, Answer>>>,
    asked: Arc<Mutex<Vec<Asked>>>,
}

impl Broker {
    /// Listens on a free port of `host`.
    async fn start(host: &str) -> (Self, SocketAddr) {
        let broker = Self::default();
        let app = Router::new().fallback(answer).with_state(broker.clone());
        let listener = tokio::net::TcpListener::bind((host, 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        tokio::spawn(async move { axum::serve(listener, app).await });
        (broker, address)
    }

    fn answers(&self, request: &str, status: StatusCode, body: &str) {
        self.answers
            .lock()
            .unwrap()
            .insert(request.to_owned(), (status, None, body.to_owned()));
    }

    fn redirects(&self, request: &str, to: &str) {
        let answer = (
            StatusCode::TEMPORARY_REDIRECT,
            Some(to.to_owned()),
            String::new(),
        );
        self.answers
            .lock()
            .unwrap()
            .insert(request.to_owned(), answer);
    }

    fn asked(&self) -> Vec<Asked> {
        self.asked.lock().unwrap().clone()
    }
}

async fn answer(State(broker): State<Broker>, request: Request) -> Response {
    let path = request.uri().path_and_query().unwrap();
    let what = format!("{} {path}", request.method());
    let token = request
        .headers()
        .get(header::AUTHORIZATION)
        .map(|token| token.to_str().unwrap().to_owned());
    broker.asked.lock().unwrap().push((what.clone(), token));
    let answer = broker.answers.lock().unwrap().get(&what).cloned();
    let Some((status, location, body)) = answer else {
        return (StatusCode::NOT_FOUND, r#"{"reason": "no such thing"}"#).into_response();
    };
    let mut headers = HeaderMap::new();
    if let Some(location) = location {
        headers.insert(header::LOCATION, location.parse().unwrap());
    }
    (status, headers, body).into_response()
}

fn admin(address: SocketAddr) -> PulsarAdmin {
    admin_with(address, Token::Fixed("secret".to_owned()))
}

fn admin_with(address: SocketAddr, token: Token) -> PulsarAdmin {
    PulsarAdmin::new(Settings {
        url: format!("http://{address}"),
        token,
        ca: None,
        timeout: Duration::from_secs(5),
    })
    .unwrap()
}

fn mail() -> TopicName {
    TopicName::new("herald", &names::events("shop/mail"))
}

const HEALTH: &str = "GET /admin/v2/brokers/health";
const BROKERS: &str = "GET /admin/v2/brokers";

const FIRST: &str = r#"["127.0.0.1:8080"]"#;
const BOTH: &str = r#"["127.0.0.1:8080", "127.0.0.2:8080"]"#;

/// Two brokers, and who asks the first: that one knows of those that are `listed`, and sends on to the second.
async fn two(listed: &str) -> (Broker, Broker, PulsarAdmin) {
    let (first, address) = Broker::start("127.0.0.1").await;
    let (second, other) = Broker::start("127.0.0.2").await;
    first.answers(BROKERS, StatusCode::OK, listed);
    first.redirects(HEALTH, &format!("http://{other}/admin/v2/brokers/health"));
    second.answers(HEALTH, StatusCode::OK, "ok");
    (first, second, admin(address))
}

#[tokio::test]
async fn a_redirect_to_another_broker_of_the_cluster_keeps_the_token() {
    let (first, second, admin) = two(BOTH).await;
    admin.check_health().await.unwrap();
    let asked = second.asked();
    assert_eq!(
        asked,
        [(HEALTH.to_owned(), Some("Bearer secret".to_owned()))]
    );
    admin.check_health().await.unwrap();
    let listed = first
        .asked()
        .into_iter()
        .filter(|(what, _)| what == BROKERS);
    assert_eq!(
        listed.count(),
        1,
        "who is in the cluster was asked for again"
    );
}

#[tokio::test]
async fn a_redirect_out_of_the_cluster_is_not_followed() {
    let (_first, second, admin) = two(FIRST).await;
    let error = admin.check_health().await.unwrap_err();
    assert!(error.to_string().contains("no broker of the cluster"));
    assert!(second.asked().is_empty());
}

#[tokio::test]
async fn a_broker_that_has_come_since_is_found() {
    let (first, _second, admin) = two(FIRST).await;
    let error = admin.check_health().await.unwrap_err();
    assert!(error.is_unreachable(), "how it is, the other would know");

    first.answers(BROKERS, StatusCode::OK, BOTH);
    admin.check_health().await.unwrap_err();
    let asked = first.asked();
    let listed = asked.iter().filter(|(what, _)| what == BROKERS).count();
    assert_eq!(listed, 1, "who is in the cluster was asked again at once");
    tokio::time::pause();
    tokio::time::advance(Duration::from_secs(6)).await;
    tokio::time::resume();
    admin.check_health().await.unwrap();
}

#[tokio::test]
async fn who_may_not_list_the_brokers_is_told_so() {
    let (first, address) = Broker::start("127.0.0.1").await;
    first.answers(BROKERS, StatusCode::UNAUTHORIZED, "");
    first.redirects(HEALTH, "http://127.0.0.2:8080/admin/v2/brokers/health");
    let admin = admin(address);
    for _ in 0..2 {
        let error = admin.check_health().await.unwrap_err();
        assert!(error.to_string().contains("superusers"), "{error}");
    }
}

#[tokio::test]
async fn a_redirect_on_the_same_host_needs_no_list_of_brokers() {
    let (first, address) = Broker::start("127.0.0.1").await;
    let (second, other) = Broker::start("127.0.0.1").await;
    first.redirects(HEALTH, &format!("http://{other}/admin/v2/brokers/health"));
    second.answers(HEALTH, StatusCode::OK, "ok");
    admin(address).check_health().await.unwrap();
    assert_eq!(second.asked()[0].1.as_deref(), Some("Bearer secret"));
    assert_eq!(first.asked().len(), 1);
}

#[tokio::test]
async fn a_redirect_from_https_to_http_is_not_followed_even_on_the_same_host() {
    let admin = PulsarAdmin::new(Settings {
        url: "https://broker.example:8443".to_owned(),
        token: Token::Fixed("secret".to_owned()),
        ca: None,
        timeout: Duration::from_secs(1),
    })
    .unwrap();
    let from = "https://broker.example:8443/admin/v2/tenants"
        .parse()
        .unwrap();
    let target = async |to: &str| admin.target(&from, Some(&to.parse().unwrap())).await;
    assert!(target("https://broker.example:9443/x").await.is_ok());
    let error = target("http://broker.example:8080/x").await.unwrap_err();
    assert!(error.to_string().contains("from https to http"), "{error}");
    assert!(target("ftp://broker.example/x").await.is_err());
}

#[tokio::test]
async fn redirects_in_circles_end() {
    let (first, address) = Broker::start("127.0.0.1").await;
    first.redirects(HEALTH, "/admin/v2/brokers/health");
    let error = admin(address).check_health().await.unwrap_err();
    assert!(error.to_string().contains("in circles"));
    assert!(first.asked().len() < 10);
}

#[tokio::test]
async fn what_exists_is_done_and_what_is_missing_is_gone() {
    let (broker, address) = Broker::start("127.0.0.1").await;
    let put = "PUT /admin/v2/namespaces/herald/shop";
    broker.answers(put, StatusCode::CONFLICT, r#"{"reason": "already"}"#);
    let admin = admin(address);
    let made = admin
        .create_namespace("herald/shop", &["one".to_owned()])
        .await
        .unwrap();
    assert_eq!(made, Made::Existed);
    broker.answers(put, StatusCode::NO_CONTENT, "");
    let made = admin
        .create_namespace("herald/shop", &["one".to_owned()])
        .await
        .unwrap();
    assert_eq!(made, Made::New);
    admin.delete_topic(&mail()).await.unwrap();
    admin.delete_namespace("herald/shop").await.unwrap();
    assert_eq!(admin.properties("herald/shop").await.unwrap(), None);
    assert_eq!(admin.stats(&mail()).await.unwrap(), None);
}

#[tokio::test]
async fn a_topic_grows_and_never_shrinks() {
    let (broker, address) = Broker::start("127.0.0.1").await;
    let path = "/admin/v2/persistent/herald/shop/ch.mail.events/partitions";
    broker.answers(&format!("PUT {path}"), StatusCode::CONFLICT, "");
    broker.answers(
        &format!("GET {path}"),
        StatusCode::OK,
        r#"{"partitions": 4}"#,
    );
    broker.answers(&format!("POST {path}"), StatusCode::NO_CONTENT, "");
    let admin = admin(address);
    let grown = format!("POST {path}");
    let has_grown = || broker.asked().iter().any(|(what, _)| *what == grown);
    admin.create_topic(&mail(), 2).await.unwrap();
    assert!(!has_grown());
    admin.create_topic(&mail(), 8).await.unwrap();
    assert!(has_grown());
}

#[tokio::test]
async fn who_may_not_change_anything_now_may_look() {
    let (broker, address) = Broker::start("127.0.0.1").await;
    broker.answers(HEALTH, StatusCode::OK, "ok");
    let may = Arc::new(AtomicBool::new(false));
    let asked = Arc::clone(&may);
    let admin = admin(address).fenced(move || asked.load(Ordering::Relaxed));
    admin.check_health().await.unwrap();
    let delete = admin.delete_namespace("herald/shop").await.unwrap_err();
    assert!(
        matches!(delete.request(), Some(RequestError::Withheld)),
        "{delete}"
    );
    assert_eq!(broker.asked().len(), 1);
    may.store(true, Ordering::Relaxed);
    admin.delete_namespace("herald/shop").await.unwrap();
    assert_eq!(broker.asked().len(), 2);
}

#[tokio::test]
async fn a_token_file_is_read_for_each_request() {
    let (broker, address) = Broker::start("127.0.0.1").await;
    broker.answers(HEALTH, StatusCode::OK, "ok");
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("token");
    let admin = admin_with(address, Token::File(path.clone()));
    let error = admin.check_health().await.unwrap_err();
    assert!(
        error.to_string().contains("token"),
        "it does not say what is missing: {error}"
    );
    for token in ["first", "second"] {
        std::fs::write(&path, format!("{token}\n")).unwrap();
        admin.check_health().await.unwrap();
        let asked = broker.asked();
        assert_eq!(
            asked.last().unwrap().1.as_deref(),
            Some(&*format!("Bearer {token}"))
        );
    }
}

#[tokio::test]
async fn the_last_answer_says_how_the_cluster_is() {
    let (broker, address) = Broker::start("127.0.0.1").await;
    let admin = admin(address);
    assert_eq!(admin.last_known_health(), None);
    broker.answers(HEALTH, StatusCode::INTERNAL_SERVER_ERROR, "");
    admin.check_health().await.unwrap_err();
    assert!(admin.last_known_health().unwrap().trouble.is_some());
    admin.properties("herald/none").await.unwrap();
    assert_eq!(admin.last_known_health().unwrap().trouble, None);
}

#[tokio::test]
async fn errors_name_the_action_and_what_to_do_and_never_the_token() {
    let (broker, address) = Broker::start("127.0.0.1").await;
    broker.answers(
        "PUT /admin/v2/tenants/herald",
        StatusCode::FORBIDDEN,
        r#"{"reason": "not a superuser"}"#,
    );
    let admin = admin(address);
    let error = admin.create_tenant("herald", &[]).await.unwrap_err();
    assert_eq!(<&str>::from(&error), "CreateTenant");
    let text = error.to_string();
    assert!(
        text.contains("superuser") && text.contains("herald"),
        "{text}"
    );
    assert!(!format!("{error:?} {text} {admin:?}").contains("secret"));

    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let nobody = listener.local_addr().unwrap();
    drop(listener);
    let error = self::admin(nobody).check_health().await.unwrap_err();
    assert!(error.is_unreachable());
    assert!(error.to_string().contains("cannot connect"), "{error}");
}

#[test]
fn a_wrong_address_is_refused_at_once() {
    for url in ["pulsar://broker.example:6650", "broker.example", "http://"] {
        let settings = Settings {
            url: url.to_owned(),
            token: Token::None,
            ca: None,
            timeout: Duration::from_secs(1),
        };
        assert!(PulsarAdmin::new(settings).is_err(), "{url}");
    }
}
