//! What callers are asked for who are not API keys, and what they are told.

use std::sync::{Arc, Mutex};

use async_trait::async_trait;
use herald_dispatcher::access::{Access, CannotTell, Review, Right, Rights, Sender, Unknown};
use herald_dispatcher::api::permissions::CALLS;
use reqwest::{Method, StatusCode};
use serde_json::{Value, json};

use super::server::{Answer, Server, Setup, order};

/// Knows everybody as `recorder`, and notes what is asked: `verb resource namespace name`.
#[derive(Default)]
struct Notes {
    asked: Mutex<Vec<String>>,
    /// Beginnings of what is not allowed.
    refuses: Vec<&'static str>,
    is_away: bool,
}

impl Notes {
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut self.asked.lock().unwrap())
    }
}

/// The notes, shared.
#[derive(Clone, Default)]
struct Recorder(Arc<Notes>);

impl Recorder {
    fn refusing(refuses: &[&'static str]) -> Self {
        Self(Arc::new(Notes {
            refuses: refuses.to_vec(),
            ..Notes::default()
        }))
    }

    async fn server(&self) -> Server {
        let setup = Setup {
            access: Some(Arc::new(self.clone())),
            ..Setup::default()
        };
        Server::with(setup).await
    }
}

#[async_trait]
impl Access for Recorder {
    async fn sender(&self, token: &str) -> Result<Sender, Unknown> {
        if token == "of nobody" {
            return Err(Unknown::Reject {
                reason: "who is that".into(),
            });
        }
        Ok(Sender {
            name: "recorder".into(),
            rights: self.service_account("", ""),
        })
    }

    fn service_account(&self, _: &str, _: &str) -> Rights {
        Rights::Reviewed(Arc::new(self.clone()))
    }
}

#[async_trait]
impl Review for Recorder {
    async fn allows(&self, right: &Right, namespace: &str, name: &str) -> Result<bool, CannotTell> {
        let asked = format!("{} {} {namespace} {name}", right.verb, right.of());
        let asked = asked.trim_end().to_owned();
        let Notes {
            asked: all,
            refuses,
            is_away,
        } = &*self.0;
        let allowed = !refuses.iter().any(|refused| asked.starts_with(refused));
        all.lock().unwrap().push(asked);
        if *is_away {
            return Err(CannotTell::Away {
                reason: "nobody answers".into(),
            });
        }
        Ok(allowed)
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn each_call_asks_for_what_the_table_says_before_anything_else() {
    let recorder = Recorder::default();
    let server = recorder.server().await;
    for call in CALLS.iter().filter(|call| !call.needs.is_empty()) {
        let path = call.path.replace("{ns}", "shop").replace(['{', '}'], "");
        let answer = server
            .bare(call.method.clone(), &path)
            .bearer_auth("t")
            .send();
        let status = answer.await.unwrap().status();
        assert_ne!(status, StatusCode::INTERNAL_SERVER_ERROR, "{call:?}");
        let asked = recorder.0.take();
        let of_path = call.needs.iter().filter(|need| need.is_of_path());
        let expected: Vec<_> = of_path
            .map(|need| {
                let asked = format!("{} {} shop {}", need.right.verb, need.right.of(), need.name);
                asked.trim_end().to_owned()
            })
            .collect();
        assert!(
            !expected.is_empty() && asked.starts_with(&expected),
            "{call:?}: {asked:?}"
        );
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_request_to_send_asks_for_each_of_its_members() {
    let recorder = Recorder::default();
    let server = recorder.server().await;
    let mut body = order(
        &json!([{"group": "board"}, {"address": {"email": "a@shop.example"}}, {"group": "board"}]),
    );
    body["priority"] = json!("critical");
    body["channels"] = json!(["mail", "other/closed", "nowhere"]);
    let path = "/v1/namespaces/shop/notifications";
    let send = || server.bare(Method::POST, path).bearer_auth("t").json(&body);
    // Neither the channel of another namespace nor the one that is not there may be routed to.
    Answer::of(send()).await.problem(422, "invalid-request");
    let mut asked = recorder.0.take();
    asked.dedup();
    assert_eq!(
        asked,
        [
            "create notifications shop",
            "use notificationtemplates shop order-shipped",
            "use priorities shop critical",
            "use channels shop mail",
            "use channels other closed",
            "use recipientgroups shop board",
            "create addresses shop",
        ]
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn who_may_not_use_a_template_a_group_or_a_priority_is_told_which() {
    let recorder = Recorder::refusing(&[
        "use notificationtemplates shop login-code",
        "use recipientgroups",
        "use priorities",
        "get contents",
    ]);
    let server = recorder.server().await;
    let path = "/v1/namespaces/shop/notifications";
    let send = |body: Value| {
        let request = server.bare(Method::POST, path).bearer_auth("t");
        Answer::of(request.json(&body))
    };
    let mut body = order(&json!([{"address": {"email": "a@shop.example"}}]));
    send(body.clone()).await.expect(StatusCode::ACCEPTED);
    // Who steps back takes nothing from anybody.
    body["priority"] = json!("low");
    send(body.clone()).await.expect(StatusCode::ACCEPTED);
    body["priority"] = json!("high");
    let errors = send(body).await.problem(403, "forbidden");
    assert_eq!(errors[0].0, "/priority");
    assert!(
        errors[0].1.contains(r#"use priorities.herald.dev "high""#),
        "{errors:?}"
    );
    let errors = send(order(&json!([{"group": "board"}])))
        .await
        .problem(403, "forbidden");
    assert_eq!(errors[0].0, "/recipients/0/group");
    let code = json!({
        "template": "login-code", "parameters": {"code": "1"},
        "recipients": [{"address": {"email": "a@shop.example"}}],
    });
    let answer = send(code).await;
    answer.problem(403, "forbidden");
    let detail = answer.body["detail"].as_str().unwrap();
    for part in [
        "recorder may not",
        "use notificationtemplates.herald.dev",
        "namespace shop",
        "login-code",
    ] {
        assert!(detail.contains(part), "{detail}");
    }
    let content = "/v1/namespaces/shop/deliveries/4f2a9c0d1e8b47a6b3c5d7e9/content";
    let get = server.bare(Method::GET, content).bearer_auth("t");
    Answer::of(get).await.problem(403, "forbidden");
}

#[tokio::test(flavor = "multi_thread")]
async fn who_is_unknown_or_cannot_be_decided_about_is_told_so() {
    let away = Recorder(Arc::new(Notes {
        is_away: true,
        ..Notes::default()
    }));
    let server = away.server().await;
    let path = "/v1/namespaces/shop/notifications";
    let unknown = server.bare(Method::GET, path).bearer_auth("of nobody");
    let answer = Answer::of(unknown).await;
    answer.problem(401, "unauthenticated");
    assert_eq!(answer.body["detail"], "who is that");
    let answer = Answer::of(server.bare(Method::GET, path).bearer_auth("t")).await;
    answer.problem(503, "unavailable");
    assert_eq!(answer.header("retry-after"), Some("1"));
}

#[tokio::test(flavor = "multi_thread")]
async fn where_callers_have_no_keys_none_can_be_made() {
    let server = Recorder::default().server().await;
    let list = server.bare(Method::GET, "/v1/keys").bearer_auth("t");
    Answer::of(list).await.problem(403, "forbidden");
}
