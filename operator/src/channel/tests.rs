//! One scenario for each path, against an API server and a Pulsar that are maps.

use std::time::Duration;

use serde_json::{Value, json};

use super::*;
use crate::fixtures::{Bench, document};
use crate::pulsar_admin::TopicName;
use crate::status::summary;

mod deletion;
mod rolling;

fn spec() -> Value {
    let smtp = json!({"host": "smtp.mail.example", "from": "a@shop.example", "credentialsRef": {"name": "login"}});
    json!({"medium": "email", "providers": [{"name": "one", "smtp": smtp}], "replicas": 2})
}

fn secret() -> Value {
    json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "login", "namespace": "shop"}})
}

async fn ready() -> Bench {
    let mut bench = Bench::with_pulsar().await;
    bench.declare(&secret());
    bench.declare(&document("Channel", "mail", &spec()));
    bench
}

async fn try_look(bench: &Bench) -> Result<Action, Error> {
    let channel = crate::watch::get(&bench.ctx.stores.channels, "shop", "mail").unwrap();
    reconcile(channel, Arc::clone(&bench.ctx)).await
}

async fn look(bench: &Bench) -> Vec<String> {
    try_look(bench).await.unwrap();
    status(bench)
}

fn status(bench: &Bench) -> Vec<String> {
    summary(&bench.server.get("Channel", "mail").unwrap()["status"])
}

fn message(bench: &Bench) -> String {
    let channel = bench.server.get("Channel", "mail").unwrap();
    let conditions = channel["status"]["conditions"].as_array().unwrap().clone();
    let ready = conditions.iter().find(|c| c["type"] == "Ready").unwrap();
    ready["message"].as_str().unwrap().to_owned()
}

/// The pods of the Deployment are all there, as Kubernetes would tell.
fn pods_come(bench: &mut Bench) {
    bench.server.change("Deployment", "herald-mail", |deployment| {
        let replicas = deployment["spec"]["replicas"].clone();
        deployment["status"] = json!({
            "observedGeneration": deployment["metadata"]["generation"],
            "replicas": replicas, "updatedReplicas": replicas, "availableReplicas": replicas,
            "conditions": [{"type": "Progressing", "status": "True", "lastUpdateTime": "2026-03-02T11:00:00Z"}],
        });
    });
    bench.tell();
}

/// Time passes. Not all the time: what waits for a socket would be out of time at once.
async fn pass(time: Duration) {
    tokio::time::pause();
    tokio::time::advance(time).await;
    tokio::time::resume();
}

fn pulsar(bench: &Bench) -> &crate::fixtures::Pulsar {
    bench.pulsar.as_ref().unwrap()
}

#[tokio::test]
async fn a_channel_becomes_topics_then_pods_and_then_nothing_is_written_any_more() {
    let mut bench = ready().await;
    let starting = ["Ready=False PodsStarting", "Reconciling=True PodsStarting"];
    assert_eq!(look(&bench).await, starting);
    assert_eq!(pulsar(&bench).topics().len(), 7);
    let properties = pulsar(&bench).properties("herald/shop");
    let of = |name| properties.get(name).map(String::as_str);
    assert_eq!(of("herald.dev/cluster-uid"), Some("uid-of-kube-system"));
    assert_eq!(of("herald.dev/namespace-uid"), Some("uid-of-shop"));
    let wrote = bench.server.wrote();
    let made: Vec<_> = wrote.iter().map(|w| w.split('/').next().unwrap()).collect();
    let expected = [
        "PATCH serviceaccounts",
        "PATCH networkpolicies",
        "PATCH poddisruptionbudgets",
        "PATCH configmaps",
        "PATCH deployments",
        "PATCH deployments",
        "PATCH channels",
        "POST events",
    ];
    assert_eq!(made, expected);

    bench.tell();
    pods_come(&mut bench);
    assert_eq!(look(&bench).await, ["Ready=True Delivering"]);
    let channel = bench.server.get("Channel", "mail").unwrap();
    assert_eq!(channel["status"]["replicas"], 2);
    let selector = channel["status"]["selector"].as_str().unwrap();
    assert!(selector.contains("herald.dev/channel=mail"), "{selector}");

    bench.server.asked();
    pulsar(&bench).asked();
    for _ in 0..3 {
        look(&bench).await;
    }
    assert!(bench.server.asked().is_empty());
    assert!(pulsar(&bench).asked().is_empty());
}

#[tokio::test]
async fn an_operator_that_starts_anew_reads_and_writes_nothing() {
    let mut bench = ready().await;
    look(&bench).await;
    pods_come(&mut bench);
    look(&bench).await;
    let mut next = Bench::with_pulsar().await;
    std::mem::swap(&mut next.server, &mut bench.server);
    let ctx = Arc::get_mut(&mut next.ctx).unwrap();
    ctx.client = next.server.client();
    let queues = ctx.queues.clone();
    let role = Some("gateway".to_owned());
    let admin = pulsar(&bench).admin();
    let horizon = Duration::from_mins(15);
    ctx.plant = Some(Plant::new(
        admin,
        crate::fixtures::pods(),
        role,
        horizon,
        Duration::from_mins(5),
        ctx.client.clone(),
        queues,
    ));
    for object in next.server.all() {
        if ["Channel", "Secret"].contains(&object["kind"].as_str().unwrap()) {
            let known: Guard<Channel> = crate::fixtures::read(object.clone());
            match object["kind"].as_str().unwrap() {
                "Channel" => crate::fixtures::put(&mut next.writers.channels, known),
                _ => crate::fixtures::put(&mut next.writers.secrets, crate::fixtures::read(object)),
            }
        }
    }
    next.tell();
    next.server.asked();
    pulsar(&bench).asked();
    assert_eq!(look(&next).await, ["Ready=True Delivering"]);
    assert_eq!(next.server.wrote(), [""; 0]);
    let asked = pulsar(&bench).asked();
    assert!(asked.len() > 7, "{asked:?}");
    assert!(
        asked.iter().all(|asked| asked.starts_with("GET")),
        "{asked:?}"
    );
}

#[tokio::test]
async fn without_its_secret_there_are_topics_and_no_pods_yet() {
    let mut bench = Bench::with_pulsar().await;
    bench.declare(&document("Channel", "mail", &spec()));
    let waits = [
        "Ready=False SecretMissing",
        "Reconciling=True SecretMissing",
    ];
    assert_eq!(look(&bench).await, waits);
    assert!(
        message(&bench).contains("Secret shop/login with the label herald.dev/credentials=true")
    );
    assert_eq!(pulsar(&bench).topics().len(), 7);
    assert!(bench.server.get("Deployment", "herald-mail").is_none());
    bench.declare(&secret());
    look(&bench).await;
    assert!(bench.server.get("Deployment", "herald-mail").is_some());
}

#[tokio::test]
async fn a_missing_config_map_is_watched_for_by_its_name() {
    let mut bench = ready().await;
    let mut with_ca = spec();
    with_ca["providers"][0]["smtp"]["caRef"] = json!({"name": "corp-ca"});
    bench.declare(&document("Channel", "mail", &with_ca));
    let waits = [
        "Ready=False ConfigMapMissing",
        "Reconciling=True ConfigMapMissing",
    ];
    assert_eq!(look(&bench).await, waits);
    let ca = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "corp-ca", "namespace": "shop"}});
    bench.server.declare(&ca);
    look(&bench).await;
    assert!(bench.server.get("Deployment", "herald-mail").is_some());
}

#[tokio::test]
async fn what_somebody_changed_or_deleted_is_put_right() {
    let mut bench = ready().await;
    look(&bench).await;
    pods_come(&mut bench);
    look(&bench).await;
    bench.server.change("Deployment", "herald-mail", |d| {
        d["spec"]["template"]["spec"]["containers"][0]["image"] = json!("evil:1");
    });
    bench.server.change("NetworkPolicy", "herald-mail", |p| {
        p["spec"]["egress"] = json!([{}]);
    });
    bench.tell();
    bench.server.asked();
    look(&bench).await;
    let repaired = [
        "PATCH networkpolicies/herald-mail",
        "PATCH deployments/herald-mail",
    ];
    let wrote = bench.server.wrote();
    assert_eq!(wrote[..2], repaired, "{wrote:?}");
    let deployment = bench.server.get("Deployment", "herald-mail").unwrap();
    assert_eq!(
        deployment["spec"]["template"]["spec"]["containers"][0]["image"],
        "herald:0.1"
    );
}

#[tokio::test]
async fn what_is_deleted_before_any_watch_told_of_it_is_made_again() {
    let bench = ready().await;
    look(&bench).await;
    let made = || {
        let mut kinds: Vec<_> = bench
            .server
            .all()
            .iter()
            .map(|o| o["kind"].clone())
            .collect();
        kinds.retain(|kind| {
            !["Channel", "Secret", "Event"]
                .map(Value::from)
                .contains(kind)
        });
        kinds
    };
    let all = made();
    assert_eq!(all.len(), 5, "{all:?}");
    bench.server.remove_all(&["Channel", "Secret"]);
    look(&bench).await;
    assert!(made().is_empty());
    pass(Duration::from_mins(1)).await;
    look(&bench).await;
    assert_eq!(made(), all);
}

#[tokio::test]
async fn a_topic_that_is_gone_is_found_within_a_minute_and_made_again() {
    let mut bench = ready().await;
    look(&bench).await;
    pods_come(&mut bench);
    look(&bench).await;
    pulsar(&bench).delete("herald/shop/ch.mail.high");
    pulsar(&bench).asked();
    look(&bench).await;
    assert!(pulsar(&bench).asked().is_empty());
    pass(Duration::from_secs(50)).await;
    look(&bench).await;
    let wrote = pulsar(&bench).wrote();
    let high = "persistent/herald/shop/ch.mail.high";
    let repaired = [
        format!("PUT {high}/partitions"),
        "POST namespaces/grantPermissionsOnTopics".to_owned(),
        format!("PUT {high}/subscription/deliver"),
    ];
    assert_eq!(wrote, repaired);
}

#[tokio::test]
async fn a_pulsar_namespace_of_another_is_left_alone_until_it_is_adopted() {
    let mut bench = ready().await;
    let other = [
        ("herald.dev/cluster-uid", "another"),
        ("herald.dev/namespace-uid", "uid-of-shop"),
    ];
    pulsar(&bench).has_namespace("herald/shop", &other);
    let stalled = [
        "Ready=False NamespaceOfAnother",
        "Stalled=True NamespaceOfAnother",
    ];
    assert_eq!(look(&bench).await, stalled);
    assert!(message(&bench).contains("herald.dev/adopt=true"));
    assert!(pulsar(&bench).wrote().is_empty());
    let mut adopting = document("Channel", "mail", &spec());
    adopting["metadata"]["annotations"] = json!({"herald.dev/adopt": "true"});
    bench.declare(&adopting);
    look(&bench).await;
    let properties = pulsar(&bench).properties("herald/shop");
    assert_eq!(properties["herald.dev/cluster-uid"], "uid-of-kube-system");
    assert_eq!(pulsar(&bench).topics().len(), 7);
}

#[tokio::test]
async fn a_broken_channel_is_stalled_and_says_what_to_do() {
    let mut bench = ready().await;
    let mut wrong = spec();
    wrong["providers"][0]["webhook"] = json!({});
    bench.declare(&document("Channel", "mail", &wrong));
    assert_eq!(
        look(&bench).await,
        ["Ready=False InvalidSpec", "Stalled=True InvalidSpec"]
    );
    assert!(
        message(&bench).contains("/spec/providers/0: give exactly one of"),
        "{}",
        message(&bench)
    );
}

#[tokio::test]
async fn while_pulsar_is_away_what_was_ready_stays_so() {
    let mut bench = ready().await;
    look(&bench).await;
    pods_come(&mut bench);
    look(&bench).await;
    // Nobody listens there any more.
    let ctx = Arc::get_mut(&mut bench.ctx).unwrap();
    let nowhere = crate::pulsar_admin::PulsarAdmin::new(crate::pulsar_admin::Settings {
        url: "http://127.0.0.1:1".to_owned(),
        token: crate::pulsar_admin::Token::None,
        ca: None,
        timeout: Duration::from_secs(1),
    });
    ctx.plant.as_mut().unwrap().admin = nowhere.unwrap();
    pass(Duration::from_mins(2)).await;
    bench.server.asked();
    let error = try_look(&bench).await.unwrap_err();
    assert_eq!(error.reason(), "ListTopics");
    assert!(bench.server.asked().is_empty());
    // One that is declared otherwise has yet to be brought about.
    let mut more = spec();
    more["topics"] = json!({"partitions": 3});
    bench.declare(&document("Channel", "mail", &more));
    try_look(&bench).await.unwrap_err();
    let waits = ["Ready=False ListTopics", "Reconciling=True ListTopics"];
    assert_eq!(status(&bench), waits);
}

#[tokio::test]
async fn a_refusal_by_pulsar_is_told() {
    let bench = ready().await;
    pulsar(&bench).away(true);
    try_look(&bench).await.unwrap_err();
    assert_eq!(status(&bench)[0], "Ready=False ListTopics");
}

#[tokio::test]
async fn with_an_embedded_broker_only_channels_of_its_own_namespace_have_credentials() {
    let mut bench = Bench::embedded();
    Arc::get_mut(&mut bench.ctx).unwrap().namespace = "hello".to_owned();
    bench.declare(&secret());
    bench.declare(&document("Channel", "mail", &spec()));
    let stalled = [
        "Ready=False SecretOutOfReach",
        "Stalled=True SecretOutOfReach",
    ];
    assert_eq!(look(&bench).await, stalled);
    assert!(
        message(&bench).contains("Secret login is not read")
            && message(&bench).contains("in namespace hello alone"),
        "{}",
        message(&bench)
    );
    let mut with_ca = spec();
    let smtp = with_ca["providers"][0]["smtp"].as_object_mut().unwrap();
    smtp.remove("credentialsRef");
    smtp.insert("caRef".to_owned(), json!({"name": "corp-ca"}));
    bench.declare(&document("Channel", "mail", &with_ca));
    assert_eq!(look(&bench).await, stalled);
    let smtp = with_ca["providers"][0]["smtp"].as_object_mut().unwrap();
    smtp.remove("caRef");
    bench.declare(&document("Channel", "mail", &with_ca));
    assert_eq!(look(&bench).await, ["Ready=True Declared"]);
}

#[tokio::test]
async fn with_an_embedded_broker_nothing_is_made() {
    let mut bench = Bench::embedded();
    bench.declare(&document("Channel", "mail", &spec()));
    assert_eq!(
        look(&bench).await,
        [
            "Ready=False SecretMissing",
            "Reconciling=True SecretMissing"
        ]
    );
    bench.declare(&secret());
    assert_eq!(look(&bench).await, ["Ready=True Declared"]);
    let wrote = bench.server.wrote();
    assert!(
        wrote
            .iter()
            .all(|w| w == "POST events" || w == "PATCH channels/mail/status"),
        "{wrote:?}"
    );
}

#[tokio::test]
async fn a_failure_of_the_api_server_is_told_by_the_name_of_what_failed() {
    let bench = ready().await;
    bench.server.refuse("PATCH deployments/herald-mail", 403);
    let error = try_look(&bench).await.unwrap_err();
    assert_eq!(error.reason(), "Apply");
    assert_eq!(status(&bench)[0], "Ready=False Apply");
    assert!(
        message(&bench).contains("Deployment herald-mail"),
        "{}",
        message(&bench)
    );
}

#[tokio::test]
async fn the_topics_of_requests_are_made_once() {
    let bench = Bench::with_pulsar().await;
    let plant = bench.ctx.plant.as_ref().unwrap();
    let stores = &bench.ctx.stores;
    let arrange = || crate::system::arrange(plant, 4, stores, &bench.ctx.metrics);
    arrange().await.unwrap();
    assert_eq!(pulsar(&bench).topics().len(), 8);
    let properties = pulsar(&bench).properties("herald/herald-system");
    assert_eq!(properties["herald.dev/cluster-uid"], "uid-of-kube-system");
    assert_eq!(properties.len(), 1);
    pulsar(&bench).asked();
    // The fake answers what was set under another path than it is read from.
    let topic = herald_crds::names::all_requests().next().unwrap();
    let name = TopicName::new("herald", &topic);
    assert_eq!(plant.admin.partitions(&name).await.unwrap(), Some(4));
}

#[tokio::test]
async fn the_requests_of_another_cluster_are_left_to_it() {
    let bench = Bench::with_pulsar().await;
    let plant = bench.ctx.plant.as_ref().unwrap();
    let namespace = "herald/herald-system";
    let clusters = ["standalone".to_owned()];
    let made = plant.admin.create_namespace(namespace, &clusters);
    made.await.unwrap();
    let owner = ("herald.dev/cluster-uid".to_owned(), "another".to_owned());
    let properties = [owner.clone()].into();
    let owned = plant.admin.set_properties(namespace, &properties);
    owned.await.unwrap();
    let arranged = crate::system::arrange(plant, 4, &bench.ctx.stores, &bench.ctx.metrics);
    let error = arranged.await.unwrap_err().to_string();
    assert!(
        error.contains("another Kubernetes cluster (another)") && error.contains("pulsar.tenant"),
        "{error}"
    );
    assert!(pulsar(&bench).topics().is_empty());
    assert_eq!(pulsar(&bench).properties(namespace), [owner].into());
}

#[tokio::test]
async fn what_somebody_else_has_made_under_the_name_is_left_alone() {
    for kind in ["ServiceAccount", "NetworkPolicy", "Deployment"] {
        let bench = ready().await;
        let (version, spec) = match kind {
            "ServiceAccount" => ("v1", json!(null)),
            "NetworkPolicy" => ("networking.k8s.io/v1", json!({"podSelector": {}})),
            _ => ("apps/v1", json!({"selector": {}, "template": {}})),
        };
        let metadata =
            json!({"name": "herald-mail", "namespace": "shop", "labels": {"app": "else"}});
        let theirs =
            json!({"apiVersion": version, "kind": kind, "metadata": metadata, "spec": spec});
        let theirs = bench.server.declare(&theirs);
        let stalled = ["Ready=False NameTaken", "Stalled=True NameTaken"];
        assert_eq!(look(&bench).await, stalled, "{kind}");
        let told = message(&bench);
        assert!(
            told.contains(&format!("{kind} shop/herald-mail")) && told.contains("another name"),
            "{told}"
        );
        assert_eq!(bench.server.get(kind, "herald-mail"), Some(theirs));
    }
}

#[tokio::test]
async fn what_is_ours_is_mended_also_without_its_labels_or_its_owner() {
    let mut bench = ready().await;
    look(&bench).await;
    bench.tell();
    pods_come(&mut bench);
    look(&bench).await;
    let strip = |object: &mut Value| {
        let metadata = object["metadata"].as_object_mut().unwrap();
        metadata.remove("ownerReferences");
    };
    bench.server.change("ServiceAccount", "herald-mail", strip);
    bench.tell();
    look(&bench).await;
    let account = bench.server.get("ServiceAccount", "herald-mail").unwrap();
    assert_eq!(account["metadata"]["ownerReferences"][0]["name"], "mail");
    // Without labels the watch tells that it is gone.
    let strip = |object: &mut Value| {
        object["metadata"]["labels"] = json!({});
    };
    bench.server.change("ServiceAccount", "herald-mail", strip);
    let gone = crate::watch::get(&bench.ctx.stores.accounts, "shop", "herald-mail").unwrap();
    let writer = &mut bench.writers.accounts;
    writer.apply_watcher_event(&kube::runtime::watcher::Event::Delete((*gone).clone()));
    bench.ctx.written.forget(&crate::written::key(&*gone));
    look(&bench).await;
    let account = bench.server.get("ServiceAccount", "herald-mail").unwrap();
    assert_eq!(account["metadata"]["labels"]["herald.dev/channel"], "mail");
}
