//! The doctor before a scripted API server.

use serde_json::json;

use super::*;
use crate::cluster::scripted::ApiServer;

fn args(bundle: Option<PathBuf>) -> Args {
    Args {
        watch_namespaces: Vec::new(),
        gateway: true,
        operator: false,
        broker: None,
        server: None,
        pulsar: pulsar::Place::default(),
        bundle,
    }
}

async fn said(server: &ApiServer, bundle: Option<PathBuf>) -> (ExitCode, String) {
    let mut out = Vec::new();
    let code = examine(&server.client(), args(bundle), &mut out)
        .await
        .unwrap();
    let text = String::from_utf8(out).unwrap();
    (code, anstream::adapter::strip_str(&text).to_string())
}

fn allow_everything(server: &ApiServer) {
    for verb in ["list", "watch"] {
        for resource in Kind::ALL
            .map(Kind::plural)
            .into_iter()
            .chain(["namespaces"])
        {
            server.allow(&format!("self {verb} {resource} "));
        }
    }
    for review in ["tokenreviews", "subjectaccessreviews"] {
        server.allow(&format!("self create {review} "));
    }
    // The path of the signing keys: a question about no resource.
    server.allow("self   ");
}

fn channel(status: &Value) -> Value {
    json!({
        "apiVersion": "herald.dev/v1alpha1", "kind": "Channel",
        "metadata": {"name": "hook", "namespace": "shop", "generation": 2},
        "spec": {
            "medium": "webhook",
            "providers": [{"name": "main", "webhook": {
                "url": "https://hooks.example/s3cr3t", "headers": {"X-Team": "t0ken"},
            }}],
        },
        "status": status,
    })
}

#[tokio::test(flavor = "multi_thread")]
async fn where_all_is_well_it_says_so() {
    let server = ApiServer::start().await;
    allow_everything(&server);
    let ready =
        json!({"observedGeneration": 2, "conditions": [{"type": "Ready", "status": "True"}]});
    server.put(&channel(&ready));
    let (code, said) = said(&server, None).await;
    assert_eq!(code, ExitCode::SUCCESS, "{said}");
    for part in [
        "Kubernetes v1.33.0",
        "13 of 13 allowed",
        "Channel: 1 resource ready",
        "1 channel",
    ] {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_missing_and_what_is_not_ready_is_named_with_its_reason() {
    let server = ApiServer::start().await;
    allow_everything(&server);
    server.disallow("self create tokenreviews ");
    server.put(&channel(&json!({"observedGeneration": 2, "conditions": [
        {"type": "Ready", "status": "False", "reason": "Stalled", "message": "see Stalled"},
        {"type": "Stalled", "status": "True", "reason": "FindSecret", "message": "there is no Secret hook"},
    ]})));
    server.put(&json!({
        "apiVersion": "herald.dev/v1alpha1", "kind": "NotificationTemplate",
        "metadata": {"name": "welcome", "namespace": "shop"},
        "spec": {"routing": {"channels": [{"name": "fax"}]}, "content": {"sms": {"text": "x"}}},
    }));
    let (code, said) = said(&server, None).await;
    assert_eq!(code, ExitCode::from(1), "{said}");
    for part in [
        "may not create tokenreviews.authentication.k8s.io",
        "Channel shop/hook is Stalled, an edit must cure it: FindSecret: there is no Secret hook",
        "NotificationTemplate shop/welcome: the operator has not looked at it",
        "there is no Channel shop/fax",
    ] {
        assert!(said.contains(part), "{part} is not in\n{said}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_bundle_has_what_helps_and_nothing_that_is_secret() {
    let server = ApiServer::start().await;
    allow_everything(&server);
    server.put(&channel(&json!({})));
    server.put(&json!({
        "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e", "namespace": "shop"},
        "involvedObject": {"apiVersion": "herald.dev/v1alpha1", "kind": "Channel", "name": "hook", "namespace": "shop"},
        "reason": "CreateTopic", "message": "the broker is away, says ann@reader.example",
    }));
    server.put(&json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": "herald-hook-1", "namespace": "shop", "labels": {
            "app.kubernetes.io/managed-by": "herald", "herald.dev/channel": "hook",
        }},
        "spec": {"containers": [{"name": "deliver", "env": [{"name": "PASSWORD", "value": "hunter2"}]}]},
        "status": {"phase": "Running"},
    }));
    let dir = tempfile::tempdir().unwrap();
    let folder = dir.path().join("report");
    said(&server, Some(folder.clone())).await;
    let read = |name: &str| std::fs::read_to_string(folder.join(name)).unwrap();
    let channel = read("shop/channels/hook.yaml");
    assert!(
        channel.contains("webhook") && channel.contains("(hidden)"),
        "{channel}"
    );
    assert!(read("events.json").contains("the broker is away"));
    assert!(read("report.txt").contains("Versions"));
    let all = [
        channel,
        read("events.json"),
        read("pods.json"),
        read("report.txt"),
    ]
    .concat();
    for secret in ["s3cr3t", "t0ken", "hunter2", "ann@", "\u{1b}"] {
        assert!(!all.contains(secret), "{secret} is in\n{all}");
    }
}
