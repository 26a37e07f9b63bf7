use std::collections::BTreeMap;

use herald_crds::Priority;
use serde_json::value::RawValue;
use tokio::sync::watch;

use super::*;
use crate::catalog::folder::FolderCatalog;
use crate::catalog::{Snapshot, Untold};
use crate::message::{SystemState, To};
use crate::store::sqlite::{Options, SqliteStore};
use crate::store::{HistoryStore, NotificationRecord, Paging, PeopleStore, PlanStore, Recipient};

const DECLARED: &str = r#"
apiVersion: herald.dev/v1alpha1
kind: Channel
metadata: {name: mail, namespace: shop}
spec:
  medium: email
  providers: [{name: log, log: {}}]
---
apiVersion: herald.dev/v1alpha1
kind: NotificationTemplate
metadata: {name: news, namespace: shop}
spec:
  routing: {channels: [{name: mail}]}
  maxRecipients: 10000
  content: {email: {subject: "News", text: "News."}}
"#;

struct Stage {
    _dir: tempfile::TempDir,
    store: Arc<SqliteStore>,
    resolver: Resolver,
    definition: DefinitionHash,
}

impl Stage {
    async fn begin() -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("declared.yaml"), DECLARED).unwrap();
        let options = Options {
            synchronous: false,
            ..Options::default()
        };
        let opened = SqliteStore::open(&dir.path().join("store.db"), options).await;
        let store = Arc::new(opened.unwrap());
        let catalog = Arc::new(FolderCatalog::open(dir.path(), "shop").unwrap());
        let declared = catalog.reload_now();
        assert_eq!(declared.problems, []);
        let definition = Arc::clone(&declared.templates["shop/news"].hash);
        let resolver = Resolver {
            definitions: Arc::new(Definitions::new(store.clone(), catalog.clone())),
            store: store.clone(),
            catalog,
            metrics: Arc::default(),
        };
        Self {
            _dir: dir,
            store,
            resolver,
            definition,
        }
    }

    fn request(&self, key: &str, recipients: Vec<To>) -> Request {
        Request {
            id: NotificationId::from_key("shop", "test", key),
            namespace: "shop".into(),
            sender: "test".into(),
            body: key.into(),
            template: "news".into(),
            definition: Arc::clone(&self.definition),
            groups: None,
            priority: Priority::Normal,
            recipients,
            parameters: RawValue::from_string("{}".to_owned()).unwrap(),
            sensitive: false,
            channels: Vec::new(),
            accepted_at: Timestamp::UNIX_EPOCH,
            send_at: None,
            expires_at: None,
            spread_over_seconds: 0,
            confirm_recipients: None,
            metadata: BTreeMap::new(),
            traceparent: None,
            system: SystemState::default(),
        }
    }

    async fn planned(&self, requests: impl IntoIterator<Item = Request>) {
        let requests: Vec<_> = requests.into_iter().map(Arc::new).collect();
        self.store
            .insert_notifications(&[], &requests)
            .await
            .unwrap();
    }

    /// Puts somebody into the directory, with this address.
    async fn known(&self, id: &str, email: &str) {
        let mut recipient = Recipient {
            id: id.to_owned(),
            ..Recipient::default()
        };
        recipient.addresses.email = Some(email.to_owned());
        self.store
            .put_recipients("shop", &[recipient], Timestamp::UNIX_EPOCH)
            .await
            .unwrap();
    }

    /// One round of whatever is to be resolved.
    async fn round(&self, limit: usize) -> Round {
        let now = Timestamp::now();
        let unresolved = self.store.unresolved(now, limit).await.unwrap();
        let round = self.resolver.round(&unresolved, now).await;
        assert!(round.failed.is_empty());
        round
    }

    async fn notification(&self, id: &NotificationId) -> NotificationRecord {
        let found = self.store.notification("shop", id).await.unwrap();
        found.unwrap()
    }
}

fn person(n: usize) -> To {
    To::Recipient(format!("person-{n}").into())
}

#[tokio::test]
async fn messages_to_one_do_not_wait_for_one_to_many() {
    let stage = Stage::begin().await;
    let large = stage.request("large", (0..1200).map(person).collect());
    let large_id = large.id;
    stage.planned([large]).await;
    let alone = stage.round(256).await;
    assert!(alone.refused.is_empty());
    stage
        .planned((0..300).map(|n| stage.request(&n.to_string(), vec![person(n)])))
        .await;
    stage.round(256).await;
    let left = stage.store.unresolved(Timestamp::now(), 256).await.unwrap();
    assert_eq!(left.len(), 300 - 256 + 1);
    stage.round(256).await;
    let left = stage.store.unresolved(Timestamp::now(), 256).await.unwrap();
    let left: Vec<_> = left.iter().map(|one| (one.request.id, one.rows)).collect();
    assert_eq!(left, [(large_id, 1000)]);
    stage.round(256).await;
    let rows: u64 = stage.notification(&large_id).await.counts.values().sum();
    assert_eq!(rows, 1200);
}

/// Tells nothing of the namespace.
struct Blind(watch::Sender<Arc<Snapshot>>);

impl Catalog for Blind {
    fn current(&self) -> Arc<Snapshot> {
        Arc::clone(&self.0.borrow())
    }

    fn changes(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.0.subscribe()
    }
}

#[tokio::test]
async fn what_cannot_be_resolved_since_nobody_tells_what_is_declared_is_put_off() {
    let mut stage = Stage::begin().await;
    let untold = Untold {
        counted: ["office".to_owned()].into(),
        ..Untold::default()
    };
    let snapshot = Arc::new(Snapshot {
        untold,
        ..Snapshot::default()
    });
    let blind = Arc::new(Blind(watch::Sender::new(snapshot)));
    let sees = std::mem::replace(&mut stage.resolver.catalog, blind);
    stage.known("person-1", "one@mail.example").await;
    let mut request = stage.request("1", vec![person(1)]);
    request.accepted_at = Timestamp::now();
    let id = request.id;
    stage.planned([request]).await;
    stage.round(256).await;
    let now = Timestamp::now();
    assert!(stage.store.unresolved(now, 256).await.unwrap().is_empty());
    assert!(stage.notification(&id).await.counts.is_empty());
    let later = stage.store.next_unresolved().await.unwrap().unwrap();
    assert!(later > now && later <= now + UNTOLD.0);
    stage.resolver.catalog = sees;
    let unresolved = stage.store.unresolved(later, 256).await.unwrap();
    let round = stage.resolver.round(&unresolved, later).await;
    assert!(round.channels.contains("shop/mail"));
}

#[tokio::test]
async fn a_round_ends_after_a_few_large_steps() {
    let stage = Stage::begin().await;
    stage
        .planned((0..12).map(|n| stage.request(&n.to_string(), (0..501).map(person).collect())))
        .await;
    stage.round(256).await;
    let left = stage.store.unresolved(Timestamp::now(), 256).await.unwrap();
    let begun = left.iter().filter(|one| one.rows == 500).count();
    assert_eq!((left.len(), begun), (12, ROUND / STEP));
}

#[tokio::test]
async fn who_is_named_by_id_and_by_address_gets_one_message_by_id() {
    let stage = Stage::begin().await;
    stage.known("ann", "ann@mail.example").await;
    let address = |email: &str| {
        To::Address(Box::new(Address {
            email: Some(email.to_owned()),
            ..Address::default()
        }))
    };
    let recipients = vec![
        address("ann@mail.example"),
        To::Recipient("ann".into()),
        address("other@mail.example"),
    ];
    let request = stage.request("1", recipients);
    let id = request.id;
    // Somebody else's notification to the same person takes nothing away.
    let other = stage.request("2", vec![address("ann@mail.example"), person(1)]);
    let other_id = other.id;
    stage.planned([request, other]).await;
    stage.round(256).await;
    stage.round(256).await;
    let reached = async |id| {
        let paging = Paging {
            limit: 10,
            cursor: None,
        };
        let found = stage.store.deliveries("shop", id, None, &paging).await;
        let mut reached: Vec<_> = found
            .unwrap()
            .items
            .iter()
            .filter(|delivery| delivery.reason.is_none())
            .map(|delivery| format!("{} {}", delivery.recipient, delivery.endpoint))
            .collect();
        reached.sort_unstable();
        reached
    };
    assert_eq!(
        reached(&id).await,
        [" other@mail.example", "ann ann@mail.example"]
    );
    assert_eq!(reached(&other_id).await, [" ann@mail.example"]);
}
