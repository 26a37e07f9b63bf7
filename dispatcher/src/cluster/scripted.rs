//! An API server for tests: as much of one as Herald speaks to, told what to hold, what to answer, and when to be away.

use std::collections::{BTreeMap, BTreeSet};
use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard};

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Request, State};
use axum::http::{Method, StatusCode};
use axum::response::{IntoResponse, Response};
use futures::stream;
use hyper_util::rt::{TokioExecutor, TokioIo};
use hyper_util::server::conn::auto::Builder;
use hyper_util::service::TowerToHyperService;
use kube::{Client, Config};
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use crate::provider::tls;

/// A resource: plural, namespace (empty: it has none), name.
type Key = (String, String, String);

#[derive(Default)]
struct Held {
    version: u64,
    objects: BTreeMap<Key, Value>,
    /// Every change: its version, of what, and what a watch is told.
    changes: Vec<(u64, Key, Value)>,
    /// Watches from before this version have expired.
    forgotten: u64,
}

#[derive(Default)]
struct Shared {
    held: Mutex<Held>,
    /// The newest version.
    news: watch::Sender<u64>,
    /// Plurals that may not be read.
    forbidden: Mutex<BTreeSet<&'static str>>,
    /// Users by token; each token is for the audience `herald`.
    tokens: Mutex<BTreeMap<String, Value>>,
    /// What is allowed: `user verb resource[/subresource] namespace [name]`.
    allowed: Mutex<BTreeSet<String>>,
    /// The signing keys.
    jwks: Mutex<String>,
    /// What was asked: method and path, without the query.
    asked: Mutex<Vec<String>>,
}

/// The server, and the place where it is when it is not away.
pub(crate) struct ApiServer {
    address: SocketAddr,
    shared: Arc<Shared>,
    serving: Mutex<Option<AbortOnDropHandle<()>>>,
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap()
}

impl ApiServer {
    pub(crate) async fn start() -> Self {
        tls::install_crypto();
        let server = Self {
            address: ([127, 0, 0, 1], 0).into(),
            shared: Arc::default(),
            serving: Mutex::default(),
        };
        let listener = TcpListener::bind(server.address).await.unwrap();
        let server = Self {
            address: listener.local_addr().unwrap(),
            ..server
        };
        server.serve(listener);
        server
    }

    pub(crate) fn client(&self) -> Client {
        let url = format!("http://{}", self.address).parse().unwrap();
        Client::try_from(Config::new(url)).unwrap()
    }

    /// Breaks every connection, and takes no more.
    pub(crate) async fn go_away(&self) {
        let serving = lock(&self.serving).take();
        if let Some(serving) = serving {
            serving.abort();
            let _ = serving.await;
        }
    }

    pub(crate) async fn come_back(&self) {
        self.serve(TcpListener::bind(self.address).await.unwrap());
    }

    fn serve(&self, listener: TcpListener) {
        let router = Router::new()
            .fallback(answer)
            .with_state(Arc::clone(&self.shared));
        let serving = tokio::spawn(async move {
            // Goes with this task, and its connections with it.
            let mut connections = JoinSet::new();
            loop {
                let (stream, _) = listener.accept().await.unwrap();
                let service = TowerToHyperService::new(router.clone());
                connections.spawn(async move {
                    let builder = Builder::new(TokioExecutor::new());
                    let _ = builder
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        *lock(&self.serving) = Some(AbortOnDropHandle::new(serving));
    }

    /// Holds an object, as a document with apiVersion, kind and metadata; replaces the one of its name.
    pub(crate) fn put(&self, document: &Value) {
        let key = key(document);
        let mut held = lock(&self.shared.held);
        held.version += 1;
        let mut object = document.clone();
        object["metadata"]["resourceVersion"] = held.version.to_string().into();
        object["metadata"]["uid"] = format!("{}-{}", key.0, key.2).into();
        let before = held.objects.insert(key.clone(), object.clone());
        let kind = if before.is_some() {
            "MODIFIED"
        } else {
            "ADDED"
        };
        held.tell(key, json!({"type": kind, "object": object}));
        self.shared.news.send_replace(held.version);
    }

    /// The same, as YAML.
    pub(crate) fn apply(&self, yaml: &str) {
        for document in crate::catalog::yaml::read(yaml.as_bytes()).unwrap() {
            self.put(&document.value);
        }
    }

    pub(crate) fn delete(&self, plural: &str, namespace: &str, name: &str) {
        let key = (plural.to_owned(), namespace.to_owned(), name.to_owned());
        let mut held = lock(&self.shared.held);
        held.version += 1;
        let mut object = held.objects.remove(&key).unwrap();
        object["metadata"]["resourceVersion"] = held.version.to_string().into();
        held.tell(key, json!({"type": "DELETED", "object": object}));
        self.shared.news.send_replace(held.version);
    }

    /// Forgets every change so far: watches from before have expired.
    pub(crate) fn forget_changes(&self) {
        let mut held = lock(&self.shared.held);
        held.forgotten = held.version;
        held.changes.clear();
    }

    pub(crate) fn forbid(&self, plural: &'static str) {
        lock(&self.shared.forbidden).insert(plural);
    }

    /// Knows this token as this user's.
    pub(crate) fn know(&self, token: &str, user: &str, groups: &[&str]) {
        let mut tokens = lock(&self.shared.tokens);
        let id = format!("JTI={}", tokens.len());
        let user = json!({
            "username": user,
            "uid": "u-1",
            "groups": groups,
            "extra": {"authentication.kubernetes.io/credential-id": [id]},
        });
        tokens.insert(token.to_owned(), user);
    }

    /// Allows this: `user verb resource[/subresource] namespace [name]`.
    pub(crate) fn allow(&self, what: &str) {
        lock(&self.shared.allowed).insert(what.to_owned());
    }

    pub(crate) fn disallow(&self, what: &str) {
        lock(&self.shared.allowed).remove(what);
    }

    pub(crate) fn sign_with(&self, jwks: &Value) {
        *lock(&self.shared.jwks) = jwks.to_string();
    }

    /// How often something was asked whose method and path contain this.
    pub(crate) fn asked(&self, what: &str) -> usize {
        let asked = lock(&self.shared.asked);
        asked.iter().filter(|asked| asked.contains(what)).count()
    }
}

impl Held {
    fn tell(&mut self, key: Key, event: Value) {
        let version = self.version;
        self.changes.push((version, key, event));
    }
}

fn key(document: &Value) -> Key {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let kind = text(&document["kind"]).to_lowercase();
    let metadata = &document["metadata"];
    (
        format!("{kind}s"),
        text(&metadata["namespace"]),
        text(&metadata["name"]),
    )
}

/// The query, by names.
fn query(request: &Request) -> BTreeMap<String, String> {
    let query = request.uri().query().unwrap_or_default();
    let pairs = query.split('&').filter_map(|pair| pair.split_once('='));
    let read = |text: &str| text.replace("%3D", "=").replace("%2F", "/");
    pairs
        .map(|(name, value)| (name.to_owned(), read(value)))
        .collect()
}

async fn answer(State(shared): State<Arc<Shared>>, request: Request) -> Response {
    let path = request.uri().path().to_owned();
    lock(&shared.asked).push(format!("{} {path}", request.method()));
    if *request.method() == Method::POST {
        return review(&shared, &path, request).await;
    }
    match path.as_str() {
        "/version" => {
            return json_of(
                &json!({"major": "1", "minor": "33", "gitVersion": "v1.33.0", "gitCommit": "", "gitTreeState": "", "buildDate": "", "goVersion": "", "compiler": "", "platform": ""}),
            );
        }
        "/openid/v1/jwks" => return lock(&shared.jwks).clone().into_response(),
        "/.well-known/openid-configuration" => {
            return json_of(&json!({"issuer": "https://cluster.example"}));
        }
        _ => {}
    }
    let parts: Vec<&str> = path.split('/').skip(1).collect();
    let (namespace, plural) = match parts[..] {
        ["api", _, plural] | ["apis", _, _, plural] => ("", plural),
        ["api", _, "namespaces", namespace, plural]
        | ["apis", _, _, "namespaces", namespace, plural] => (namespace, plural),
        _ => return status(StatusCode::NOT_FOUND, "NotFound"),
    };
    if lock(&shared.forbidden).contains(plural) {
        return status(StatusCode::FORBIDDEN, "Forbidden");
    }
    let query = query(&request);
    let wanted = Wanted {
        plural: plural.to_owned(),
        namespace: namespace.to_owned(),
        label: query.get("labelSelector").cloned(),
        field: query.get("fieldSelector").cloned(),
    };
    if query.get("watch").is_some_and(|watch| watch == "true") {
        let since = query["resourceVersion"].parse().unwrap();
        return watch_from(shared, wanted, since);
    }
    let held = lock(&shared.held);
    let items = held
        .objects
        .iter()
        .filter(|(key, object)| wanted.has(key, object));
    json_of(&json!({
        "apiVersion": "v1",
        "kind": "List",
        "metadata": {"resourceVersion": held.version.to_string()},
        "items": items.map(|(_, object)| object).collect::<Vec<_>>(),
    }))
}

/// What a list or a watch is of.
struct Wanted {
    plural: String,
    namespace: String,
    label: Option<String>,
    field: Option<String>,
}

impl Wanted {
    fn has(&self, (plural, namespace, name): &Key, object: &Value) -> bool {
        // Of selectors, as much as Herald's watches have; others select everything.
        let label = self
            .label
            .as_deref()
            .and_then(|label| label.split_once('='));
        let labelled =
            label.is_none_or(|(name, value)| object["metadata"]["labels"][name] == value);
        let named = self
            .field
            .as_deref()
            .is_none_or(|field| field == format!("metadata.name={name}"));
        let here = self.namespace.is_empty() || *namespace == self.namespace;
        *plural == self.plural && here && labelled && named
    }
}

/// Tells of every change after a version, as it happens.
fn watch_from(shared: Arc<Shared>, wanted: Wanted, since: u64) -> Response {
    let news = shared.news.subscribe();
    let lines = stream::unfold(
        (shared, wanted, since, news),
        |(shared, wanted, since, mut news)| async move {
            loop {
                news.borrow_and_update();
                let next = {
                    let held = lock(&shared.held);
                    if since < held.forgotten {
                        let gone = json!({"type": "ERROR", "object": {
                            "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": 410, "reason": "Expired",
                            "message": "too old resource version",
                        }});
                        Some((u64::MAX, gone))
                    } else {
                        let mut later =
                            held.changes.iter().filter(|(version, ..)| *version > since);
                        later
                            .find(|(_, key, event)| wanted.has(key, &event["object"]))
                            .map(|(version, _, event)| (*version, event.clone()))
                    }
                };
                if let Some((version, event)) = next {
                    let line = Bytes::from(format!("{event}\n"));
                    return Some((
                        Ok::<_, std::io::Error>(line),
                        (shared, wanted, version, news),
                    ));
                }
                if news.changed().await.is_err() {
                    return None;
                }
            }
        },
    );
    Response::new(Body::from_stream(lines))
}

async fn review(shared: &Shared, path: &str, request: Request) -> Response {
    let body = axum::body::to_bytes(request.into_body(), 1 << 20)
        .await
        .unwrap();
    let mut review: Value = serde_json::from_slice(&body).unwrap();
    let spec = review["spec"].clone();
    if path.ends_with("/tokenreviews") {
        let tokens = lock(&shared.tokens);
        let user = tokens.get(spec["token"].as_str().unwrap());
        review["status"] = match user {
            Some(user) if spec["audiences"] == json!(["herald"]) => {
                json!({"authenticated": true, "user": user, "audiences": ["herald"]})
            }
            _ => json!({"authenticated": false, "error": "unknown"}),
        };
    } else {
        let wanted = &spec["resourceAttributes"];
        let text = |name: &str| wanted[name].as_str().unwrap_or_default();
        let mut what = format!(
            "{} {} {}",
            spec["user"].as_str().unwrap_or("self"),
            text("verb"),
            text("resource")
        );
        if !text("subresource").is_empty() {
            what.push('/');
            what.push_str(text("subresource"));
        }
        let in_namespace = format!("{what} {}", text("namespace"));
        let named = format!("{in_namespace} {}", text("name"));
        let allowed = lock(&shared.allowed);
        let is_allowed = allowed.contains(&in_namespace) || allowed.contains(&named);
        review["status"] = json!({"allowed": is_allowed});
    }
    (StatusCode::CREATED, json_of(&review)).into_response()
}

fn status(code: StatusCode, reason: &str) -> Response {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": reason, "reason": reason, "code": code.as_u16(),
    });
    (code, json_of(&status)).into_response()
}

fn json_of(value: &Value) -> Response {
    ([("content-type", "application/json")], value.to_string()).into_response()
}
