//! A catalog before a scripted API server.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use herald_crds::Kind;
use serde_json::json;

use super::*;
use crate::catalog::contract::{MAIL, Subject, WELCOME, group, suite};
use crate::cluster::scripted::ApiServer;
use crate::provider::credentials::{Credentials, Held as Secrets};

/// Longer than anything here takes.
const LONG: Duration = Duration::from_secs(30);

struct Cluster {
    server: ApiServer,
    catalog: KubernetesCatalog,
}

impl Cluster {
    async fn watching(server: ApiServer, namespaces: &[&str]) -> Self {
        let namespaces: Vec<_> = namespaces.iter().map(|&name| name.to_owned()).collect();
        let catalog = KubernetesCatalog::watch(&server.client(), &namespaces);
        tokio::time::timeout(LONG, catalog.listed()).await.unwrap();
        Self { server, catalog }
    }

    /// What is in force once that is so.
    async fn once(&self, is_so: impl Fn(&Snapshot) -> bool) -> Arc<Snapshot> {
        let mut changes = self.catalog.changes();
        let changed = changes.wait_for(|snapshot| is_so(snapshot));
        let snapshot = tokio::time::timeout(LONG, changed).await.unwrap();
        Arc::clone(&snapshot.unwrap())
    }
}

#[async_trait]
impl Subject for Cluster {
    async fn new() -> Self {
        Self::watching(ApiServer::start().await, &[]).await
    }

    fn catalog(&self) -> &dyn Catalog {
        &self.catalog
    }

    fn put(&self, _: &str, yaml: &str) {
        self.server.apply(yaml);
    }

    fn delete(&self, plural: &str, name: &str) {
        self.server.delete(plural, "shop", name);
    }

    /// Puts one of each kind beside everything else, waits until it is in force, and takes it away again: then everything
    /// from before was taken in.
    async fn settled(&self) -> Arc<Snapshot> {
        // Kinds are watched one by one, so the last word of each of them has to be heard.
        let last = format!("last-{:08x}", rand::random::<u32>());
        for (kind, spec) in [
            (
                "Channel",
                json!({"medium": "sms", "providers": [{"name": "main", "log": {}}]}),
            ),
            (
                "NotificationTemplate",
                json!({"routing": {"channels": [{"name": &last}]}, "content": {"sms": {"text": "x"}}}),
            ),
            ("RecipientGroup", json!({"members": [{"recipient": "ada"}]})),
        ] {
            self.server.put(&json!({
                "apiVersion": "herald.dev/v1alpha1", "kind": kind,
                "metadata": {"name": &last, "namespace": "settled"}, "spec": spec,
            }));
        }
        self.server.put(&json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": &last, "labels": {}},
        }));
        let full = format!("settled/{last}");
        self.once(|snapshot| {
            snapshot.channels.contains_key(full.as_str())
                && snapshot.templates.contains_key(full.as_str())
                && snapshot.groups.contains_key(full.as_str())
                && snapshot.namespace_labels.contains_key(&last)
        })
        .await;
        for plural in ["notificationtemplates", "channels", "recipientgroups"] {
            self.server.delete(plural, "settled", &last);
        }
        self.server.delete("namespaces", "", &last);
        self.once(|snapshot| {
            !snapshot.channels.contains_key(full.as_str())
                && !snapshot.templates.contains_key(full.as_str())
                && !snapshot.groups.contains_key(full.as_str())
                && !snapshot.namespace_labels.contains_key(&last)
        })
        .await
    }
}

suite!(Cluster);

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_in_force_before_everything_was_listed() {
    let server = ApiServer::start().await;
    server.apply(MAIL);
    server.apply(WELCOME);
    server.go_away().await;
    let catalog = KubernetesCatalog::watch(&server.client(), &[]);
    let early = tokio::time::timeout(Duration::from_millis(300), catalog.listed());
    assert!(early.await.is_err());
    assert!(catalog.current().is_empty());
    server.come_back().await;
    tokio::time::timeout(LONG, catalog.listed()).await.unwrap();
    assert_eq!(catalog.current().templates.len(), 1);
    assert_eq!(catalog.current().problems, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn while_the_api_server_is_away_everything_stays_in_force_and_is_current_again_soon_after() {
    let server = ApiServer::start().await;
    server.apply(MAIL);
    server.apply(&group("a", "recipient: ada"));
    let cluster = Cluster::watching(server, &[]).await;
    let before = cluster.catalog.current();
    cluster.server.go_away().await;
    cluster.server.apply(WELCOME);
    cluster.server.delete("recipientgroups", "shop", "a");
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(Arc::ptr_eq(&before, &cluster.catalog.current()));
    cluster.server.come_back().await;
    let after = cluster.once(|s| s.groups.is_empty() && s.templates.len() == 1);
    assert_eq!(after.await.problems, []);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_watch_that_has_expired_begins_again_with_a_list() {
    let server = ApiServer::start().await;
    server.apply(MAIL);
    server.apply(&group("a", "recipient: ada"));
    let cluster = Cluster::watching(server, &[]).await;
    cluster.server.go_away().await;
    cluster.server.apply(WELCOME);
    cluster.server.delete("recipientgroups", "shop", "a");
    cluster.server.forget_changes();
    cluster.server.come_back().await;
    let after = cluster
        .once(|s| s.groups.is_empty() && s.templates.len() == 1)
        .await;
    // What did not change is what it was.
    assert_eq!(after.channels.len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_the_operator_notes_beside_a_resource_is_no_change() {
    let cluster = Cluster::new().await;
    cluster.put("mail", MAIL);
    let before = cluster.settled().await;
    let mut documents = crate::catalog::yaml::read(MAIL.as_bytes()).unwrap();
    let mut noted = documents.remove(0).value;
    noted["status"] = json!({"conditions": []});
    noted["metadata"]["generation"] = json!(7);
    noted["metadata"]["managedFields"] = json!([{"manager": "herald-operator"}]);
    cluster.server.put(&noted);
    let after = cluster.settled().await;
    assert!(Arc::ptr_eq(
        &before.channels["shop/mail"],
        &after.channels["shop/mail"]
    ));
    let metadata = &after.channels["shop/mail"].metadata;
    assert!(metadata.managed_fields.is_none() && metadata.resource_version.is_none());
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_being_deleted_is_not_in_force() {
    let cluster = Cluster::new().await;
    cluster.put("mail", MAIL);
    assert_eq!(cluster.settled().await.channels.len(), 1);
    let going = MAIL.replace(
        "namespace: shop}",
        "namespace: shop, deletionTimestamp: \"2030-01-01T00:00:00Z\", finalizers: [herald.dev/topics]}",
    );
    cluster.put("mail", &going);
    assert!(cluster.settled().await.channels.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn only_the_namespaces_that_were_named_count() {
    let server = ApiServer::start().await;
    server.apply(MAIL);
    server.apply(&MAIL.replace("namespace: shop", "namespace: office"));
    server.apply(&MAIL.replace("namespace: shop", "namespace: elsewhere"));
    for name in ["shop", "elsewhere"] {
        server.put(&json!({
            "apiVersion": "v1", "kind": "Namespace", "metadata": {"name": name, "labels": {"team": name}},
        }));
    }
    let cluster = Cluster::watching(server, &["shop", "office"]).await;
    let snapshot = cluster.catalog.current();
    let names: Vec<_> = snapshot.channels.keys().map(|name| &**name).collect();
    assert_eq!(names, ["office/mail", "shop/mail"]);
    let labelled: Vec<_> = snapshot.namespace_labels.keys().collect();
    assert_eq!(labelled, ["shop"]);
}

#[tokio::test(flavor = "multi_thread")]
async fn namespaces_that_may_not_be_read_are_done_without() {
    let server = ApiServer::start().await;
    server.forbid("namespaces");
    server.apply(MAIL);
    let cluster = Cluster::watching(server, &[]).await;
    let snapshot = cluster.catalog.current();
    assert_eq!(snapshot.channels.len(), 1);
    assert!(snapshot.namespace_labels.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn of_what_may_not_be_read_nothing_is_taken_for_deleted_until_its_namespace_is_gone() {
    let server = ApiServer::start().await;
    server.forbid("notificationtemplates");
    server.apply(MAIL);
    server.apply(WELCOME);
    let shop = json!({"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": "shop", "labels": {}}});
    server.put(&shop);
    let cluster = Cluster::watching(server, &["shop", "gone"]).await;
    let snapshot = cluster.once(|s| s.channels.len() == 1).await;
    let template = Kind::NotificationTemplate;
    assert!(!snapshot.tells(template, "shop/welcome"));
    assert!(snapshot.is_suspended("shop/welcome"));
    assert!(snapshot.tells(Kind::Channel, "shop/mail"));
    assert!(snapshot.tells(template, "gone/welcome"));
    assert!(!snapshot.is_suspended("gone/welcome"));
    assert!(
        !snapshot.tells(Kind::Channel, "elsewhere/mail"),
        "it does not count"
    );
    assert!(!snapshot.is_unread(Kind::Channel, "elsewhere"));
    cluster.server.delete("channels", "shop", "mail");
    cluster.server.delete("namespaces", "", "shop");
    let snapshot = cluster.once(|s| s.tells(template, "shop/welcome")).await;
    assert!(snapshot.untold.unread.is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn secrets_that_are_labelled_as_credentials_are_held_and_no_others() {
    let server = ApiServer::start().await;
    let secret = |name: &str, label: &str, value: &str| {
        json!({
            "apiVersion": "v1", "kind": "Secret",
            "metadata": {"name": name, "namespace": "herald", "labels": {"herald.dev/credentials": label}},
            // Base64 of what the tests look for.
            "data": {"password": value},
        })
    };
    server.put(&secret("ses", "true", "aHVudGVyMg=="));
    server.put(&secret("other", "false", "aHVudGVyMg=="));
    let held = Arc::new(Secrets::default());
    let watch = secrets::SecretsWatch::begin(&server.client(), "herald", Arc::clone(&held));
    tokio::time::timeout(LONG, watch.listed()).await.unwrap();
    let credentials = Credentials::held(held);
    let get = |secret: &str| credentials.get(secret, "password");
    assert_eq!(get("ses").unwrap().expose(), "hunter2");
    assert!(get("other").is_err());
    // Rotated: no restart.
    server.put(&secret("ses", "true", "b3RoZXI="));
    let rotated = async {
        while get("ses").unwrap().expose() != "other" {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(LONG, rotated).await.unwrap();
}
