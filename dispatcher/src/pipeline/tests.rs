//! What the stages promise together, on the real queue and the real history, with a provider that does as it is told.

mod changes;
mod direct;
mod failures;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use herald_crds::{Priority, RecipientRef};
use jiff::Timestamp;
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use super::{Parts, Pipeline, WINDOW};
use crate::accept::{self, Accept, Accepted, Quotas, Refusal, Scopes, SendRequest};
use crate::access::{Rights, Sender};
use crate::broker::Broker;
use crate::broker::embedded::{self, EmbeddedBroker};
use crate::catalog::folder::FolderCatalog;
use crate::deliver::worker::Guards;
use crate::id::NotificationId;
use crate::message::Delivery;
use crate::metrics::Metrics;
use crate::provider::{Outcome, Provider, Reason};
use crate::store::contract::stages::settled;
use crate::store::sqlite::{self, SqliteStore};
use crate::store::{
    DeliveryRecord, HistoryStore, NotificationRecord, Paging, PeopleStore, Recipient, State, Store,
    SuppressedAddress,
};
use crate::timing::Timing;

/// How long anything may take before a test gives up.
const PATIENCE: Duration = Duration::from_secs(30);

const TEMPLATES: &str = r#"
apiVersion: herald.dev/v1alpha1
kind: NotificationTemplate
metadata: {name: order, namespace: shop}
spec:
  routing: {channels: [{name: mail}]}
  maxRecipients: 3
  content: {email: {subject: "Order {{ n }}", text: "It is on its way."}}
---
apiVersion: herald.dev/v1alpha1
kind: NotificationTemplate
metadata: {name: once, namespace: shop}
spec:
  routing: {channels: [{name: mail}]}
  deduplication: {key: "{{ n }}", windowSeconds: 600}
  content: {email: {subject: "Once {{ n }}", text: "Only once."}}
---
apiVersion: herald.dev/v1alpha1
kind: NotificationTemplate
metadata: {name: code, namespace: shop}
spec:
  mandatory: true
  priority: critical
  sensitive: [/n]
  parameters: {type: object, properties: {n: {type: integer}}}
  routing: {channels: [{name: mail}]}
  content: {email: {subject: "Code {{ n }}", text: "Your code."}}
---
apiVersion: herald.dev/v1alpha1
kind: RecipientGroup
metadata: {name: everybody, namespace: shop}
spec: {managed: true}
"#;

const MAIL: &str = r"
apiVersion: herald.dev/v1alpha1
kind: Channel
metadata: {name: mail, namespace: shop}
spec:
  medium: email
  retry: {maxAttempts: 3}
  providers: [{name: first, log: {}}, {name: second, log: {}}]
";

type Script = Arc<dyn Fn(&str, &Delivery) -> Outcome + Send + Sync>;

/// Does as it is told, and remembers what it was asked. One called `gated` answers only when it is let.
struct Scripted {
    name: String,
    script: Script,
    asked: Arc<Mutex<Vec<(String, Delivery)>>>,
    gate: Arc<Semaphore>,
}

#[async_trait]
impl Provider for Scripted {
    async fn send(&self, delivery: &Delivery, _timeout: Duration) -> Outcome {
        self.asked
            .lock()
            .unwrap()
            .push((self.name.clone(), delivery.clone()));
        if self.name == "gated" {
            self.gate.acquire().await.unwrap().forget();
        }
        (self.script)(&self.name, delivery)
    }
}

/// The stages on a folder of their own.
struct Stages {
    dir: tempfile::TempDir,
    store: Arc<SqliteStore>,
    catalog: Arc<FolderCatalog>,
    parts: Parts,
    pipeline: Pipeline,
    accept: Accept,
    metrics: Arc<Metrics>,
    asked: Arc<Mutex<Vec<(String, Delivery)>>>,
    /// How many answers the gated provider may give.
    gate: Arc<Semaphore>,
}

fn timing() -> Timing {
    let milliseconds = Duration::from_millis;
    Timing {
        relays: [milliseconds(20), milliseconds(40)],
        returns: [milliseconds(60), milliseconds(60)],
        tick: milliseconds(50),
        overdue: milliseconds(4000),
        sweep: milliseconds(300),
        breaker: milliseconds(50),
        drain: Duration::from_secs(5),
        ..Timing::default()
    }
}

impl Stages {
    async fn begin(
        channel: &str,
        script: impl Fn(&str, &Delivery) -> Outcome + Send + Sync + 'static,
    ) -> Self {
        Self::begin_over(channel, timing(), script, |broker| Arc::new(broker)).await
    }

    /// The same with a notification that waits for a suspended channel, and answers it.
    async fn begin_waiting() -> (Self, NotificationId) {
        let stages = Self::begin(&format!("{MAIL}  suspend: true\n"), sent).await;
        let to = to("a@b.example");
        let request = json!({"template": "order", "recipients": to, "parameters": {"n": 1}});
        let id = stages.send(request).await;
        stages.wait(&id, |record| !record.counts.is_empty()).await;
        (stages, id)
    }

    /// As [`begin`](Self::begin), with other times, over a broker that is wrapped in something.
    async fn begin_over(
        channel: &str,
        timing: Timing,
        script: impl Fn(&str, &Delivery) -> Outcome + Send + Sync + 'static,
        wrap: impl FnOnce(EmbeddedBroker) -> Arc<dyn Broker>,
    ) -> Self {
        let dir = tempfile::tempdir().unwrap();
        std::fs::write(dir.path().join("templates.yaml"), TEMPLATES).unwrap();
        std::fs::write(dir.path().join("mail.yaml"), channel).unwrap();
        let metrics = Arc::new(Metrics::default());
        let options = embedded::Options {
            synchronous: false,
            ..embedded::Options::default()
        };
        let broker = wrap(
            EmbeddedBroker::open(&dir.path().join("queue.db"), options)
                .await
                .unwrap(),
        );
        let options = sqlite::Options {
            synchronous: false,
            ..sqlite::Options::default()
        };
        let store = Arc::new(
            SqliteStore::open(&dir.path().join("history.db"), options)
                .await
                .unwrap(),
        );
        let catalog = Arc::new(FolderCatalog::open(dir.path(), "shop").unwrap());
        assert_eq!(catalog.reload_now().problems, []);
        let (script, asked): (Script, _) = (Arc::new(script), Arc::default());
        let gate = Arc::new(Semaphore::new(0));
        let (remembered, closed) = (Arc::clone(&asked), Arc::clone(&gate));
        let parts = Parts {
            broker: Arc::clone(&broker),
            store: Arc::clone(&store) as Arc<dyn Store>,
            catalog: Arc::clone(&catalog) as _,
            providers: Arc::new(move |channel, declared, _| {
                assert!(
                    channel.contains('/'),
                    "it is known by its full name: {channel}"
                );
                let (script, asked) = (Arc::clone(&script), Arc::clone(&remembered));
                Ok(Arc::new(Scripted {
                    name: declared.name.clone(),
                    script,
                    asked,
                    gate: Arc::clone(&closed),
                }))
            }),
            metrics: Arc::clone(&metrics),
            timing: timing.clone(),
            window: WINDOW,
            guards: Guards::default(),
        };
        let pipeline = Pipeline::start(&parts);
        let accept = Accept::new(accept::Parts {
            broker,
            catalog: Arc::clone(&catalog) as _,
            store: Arc::clone(&store) as _,
            load: Arc::clone(&pipeline.loads) as _,
            metrics: Arc::clone(&metrics),
            timing,
            quotas: Quotas::default(),
        });
        Self {
            dir,
            store,
            catalog,
            parts,
            pipeline,
            accept,
            metrics,
            asked,
            gate,
        }
    }

    async fn try_send(&self, request: Value) -> Result<Accepted, Refusal> {
        let sender = Sender {
            name: Arc::from("test"),
            rights: Rights::Scopes(Scopes::EVERYTHING),
        };
        let request: SendRequest = serde_json::from_value(request).unwrap();
        self.accept
            .accept(&sender, "shop", request, None, None)
            .await
    }

    async fn send(&self, request: Value) -> NotificationId {
        self.try_send(request).await.unwrap().id
    }

    async fn people(&self, ids: impl IntoIterator<Item = String>) {
        let people: Vec<Recipient> = ids.into_iter().map(person).collect();
        self.store
            .put_recipients("shop", &people, Timestamp::now())
            .await
            .unwrap();
    }

    async fn join(&self, members: &[&str]) {
        let members: Vec<String> = members.iter().map(ToString::to_string).collect();
        self.store
            .change_members("shop", "everybody", &members, &[], Timestamp::now())
            .await
            .unwrap();
    }

    /// Waits until a notification is as it should be.
    async fn wait(
        &self,
        id: &NotificationId,
        is: impl Fn(&NotificationRecord) -> bool,
    ) -> NotificationRecord {
        let began = tokio::time::Instant::now();
        loop {
            let record = self.store.notification("shop", id).await.unwrap();
            match record {
                Some(record) if is(&record) => return record,
                record if began.elapsed() > PATIENCE => panic!("not in time: {record:?}"),
                _ => tokio::time::sleep(Duration::from_millis(10)).await,
            }
        }
    }

    async fn ended(&self, id: &NotificationId) -> Vec<DeliveryRecord> {
        self.wait(id, NotificationRecord::ended).await;
        self.deliveries(id).await
    }

    async fn deliveries(&self, id: &NotificationId) -> Vec<DeliveryRecord> {
        let paging = Paging {
            limit: 1000,
            cursor: None,
        };
        self.store
            .deliveries("shop", id, None, &paging)
            .await
            .unwrap()
            .items
    }

    fn asked(&self) -> Vec<(String, Delivery)> {
        self.asked.lock().unwrap().clone()
    }

    /// Waits until something holds.
    async fn until(&self, holds: impl Fn(&Self) -> bool) {
        let waited = async {
            while !holds(self) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        tokio::time::timeout(PATIENCE, waited).await.unwrap();
    }

    /// Marks what is due as released without handing it to the broker: what no crash of ours does.
    async fn lose(&self) {
        let store: &dyn Store = &*self.store;
        let class = Priority::Normal;
        let turn = crate::store::Turn::default();
        // A row is there a moment before it is ready.
        loop {
            let chunk = store.chunk("shop/mail", class, &turn, 10).await.unwrap();
            if !settled(chunk, Timestamp::now()).await.0.is_empty() {
                return;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }

    fn declare(&self, channel: &str) {
        std::fs::write(self.dir.path().join("mail.yaml"), channel).unwrap();
        assert_eq!(self.catalog.reload_now().problems, []);
    }
}

fn person(id: String) -> Recipient {
    let address: RecipientRef =
        serde_json::from_value(json!({"address": {"email": format!("{id}@shop.example")}}))
            .unwrap();
    Recipient {
        addresses: address.address.unwrap(),
        id,
        ..Recipient::default()
    }
}

fn sent(_: &str, _: &Delivery) -> Outcome {
    Outcome::Sent {
        provider_id: Some("42".to_owned()),
    }
}

fn reason(code: &str) -> Reason {
    Reason {
        code: Arc::from(code),
        detail: "as told".to_owned(),
    }
}

fn to(address: &str) -> Value {
    json!([{"address": {"email": address}}])
}

#[tokio::test(flavor = "multi_thread")]
async fn a_notification_to_a_group_reaches_each_member_once_and_says_so() {
    let stages = Stages::begin(MAIL, sent).await;
    stages.people(["alice", "bob"].map(str::to_owned)).await;
    stages.join(&["alice", "bob"]).await;
    let recipients = json!([{"group": "everybody"}, {"recipient": "alice"}]);
    let id = stages
        .send(json!({"template": "order", "recipients": recipients, "parameters": {"n": 7}}))
        .await;
    let deliveries = stages.ended(&id).await;
    assert_eq!(deliveries.len(), 2);
    for delivery in &deliveries {
        assert_eq!((delivery.state, delivery.attempts), (State::Sent, 1));
        assert_eq!(
            (
                delivery.provider.as_deref(),
                delivery.provider_id.as_deref()
            ),
            (Some("first"), Some("42"))
        );
    }
    assert_eq!(stages.asked().len(), 2);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_direct_notification_is_known_to_history_and_its_secret_is_not() {
    let stages = Stages::begin(MAIL, sent).await;
    let request =
        json!({"template": "code", "recipients": to("a@b.example"), "parameters": {"n": 4711}});
    let id = stages.send(request).await;
    let deliveries = stages.ended(&id).await;
    assert_eq!(deliveries[0].state, State::Sent);
    let record = stages
        .wait(&id, |record| {
            !record.request.parameters.get().contains("4711")
        })
        .await;
    assert_eq!(&*record.request.template, "code");
}

#[tokio::test(flavor = "multi_thread")]
async fn a_business_event_is_told_once_and_its_own_repeat_passes() {
    let stages = Stages::begin(MAIL, |_, delivery| match delivery.attempt {
        1 => Outcome::Transient(reason("smtp-451")),
        _ => Outcome::Sent { provider_id: None },
    })
    .await;
    let request =
        json!({"template": "once", "recipients": to("a@b.example"), "parameters": {"n": 1}});
    let first = stages.send(request.clone()).await;
    assert_eq!(stages.ended(&first).await[0].state, State::Sent);
    let second = stages.send(request).await;
    let deliveries = stages.ended(&second).await;
    assert_eq!(
        (deliveries[0].state, deliveries[0].reason.as_deref()),
        (State::Suppressed, Some("duplicate"))
    );
    let other =
        json!({"template": "once", "recipients": to("a@b.example"), "parameters": {"n": 2}});
    let other = stages.send(other).await;
    assert_eq!(stages.ended(&other).await[0].state, State::Sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn who_opted_out_gets_nothing_but_what_is_mandatory() {
    let stages = Stages::begin(MAIL, sent).await;
    let suppressed = SuppressedAddress {
        medium: "email".to_owned(),
        address: "a@b.example".to_owned(),
        reason: "opted-out".to_owned(),
        since: Timestamp::now(),
    };
    stages.store.suppress("shop", &suppressed).await.unwrap();
    let order = stages
        .send(json!({"template": "order", "recipients": to("a@b.example"), "parameters": {"n": 1}}))
        .await;
    let deliveries = stages.ended(&order).await;
    assert_eq!(
        (deliveries[0].state, deliveries[0].reason.as_deref()),
        (State::Suppressed, Some("opted-out"))
    );
    let code = stages
        .send(json!({"template": "code", "recipients": to("a@b.example"), "parameters": {"n": 1}}))
        .await;
    assert_eq!(stages.ended(&code).await[0].state, State::Sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn more_recipients_than_the_template_allows_are_held_until_confirmed() {
    let stages = Stages::begin(MAIL, sent).await;
    let ids: Vec<String> = (0..5).map(|n| format!("p{n}")).collect();
    stages.people(ids.clone()).await;
    stages
        .join(&ids.iter().map(String::as_str).collect::<Vec<_>>())
        .await;
    let request = json!({"template": "order", "recipients": [{"group": "everybody"}], "parameters": {"n": 1}});
    let id = stages.send(request).await;
    let record = stages.wait(&id, |record| record.held.is_some()).await;
    assert_eq!(record.held, Some((5, 3)));
    assert!(stages.asked().is_empty());
    let store: &dyn Store = &*stages.store;
    assert!(store.confirm(&id, 5).await.unwrap());
    stages.pipeline.plan.wake();
    assert_eq!(stages.ended(&id).await.len(), 5);
}

#[tokio::test(flavor = "multi_thread")]
async fn members_are_those_of_the_moment_of_release() {
    let stages = Stages::begin(MAIL, sent).await;
    stages.people(["early", "late"].map(str::to_owned)).await;
    stages.join(&["early"]).await;
    let at = Timestamp::now() + Duration::from_secs(4);
    let request = json!({"template": "order", "recipients": [{"group": "everybody"}], "parameters": {"n": 1},
        "sendAt": at.to_string()});
    let later = stages.send(request).await;
    stages.join(&["late"]).await;
    let deliveries = stages.ended(&later).await;
    assert_eq!(deliveries.len(), 2);
    let (_, delivery) = &stages.asked()[0];
    assert!(delivery.ready_at >= Timestamp::from_millisecond(at.as_millisecond()).unwrap());
    assert!(deliveries.iter().all(|delivery| {
        delivery
            .released_at
            .is_some_and(|released| released >= delivery.due_at)
    }));
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_already_out_is_called_back_from_the_pod_and_prioritized_in_it() {
    // One in an hour: the first goes, the others are held by the worker or wait for the pace.
    let slow = format!("{MAIL}  rateLimit: {{count: 2, perSeconds: 1}}\n");
    let stages = Stages::begin(&slow, sent).await;
    let mut ids = Vec::new();
    for n in 0..12 {
        let to = to(&format!("p{n}@b.example"));
        ids.push(
            stages
                .send(json!({"template": "order", "recipients": to, "parameters": {"n": n}}))
                .await,
        );
    }
    // The last is out, or waits: either way it is called back before its turn.
    let last = ids.last().unwrap();
    stages.wait(last, |record| !record.counts.is_empty()).await;
    let reached = stages.pipeline.orders.cancel(last).await.unwrap();
    assert_eq!(reached.recalled.waiting + reached.recalled.out, 1);
    let urgent = &ids[10];
    stages
        .pipeline
        .orders
        .prioritize(urgent, Priority::Critical)
        .await
        .unwrap();
    assert_eq!(stages.ended(last).await[0].state, State::Cancelled);
    assert_eq!(stages.ended(urgent).await[0].state, State::Sent);
    let asked = stages.asked();
    let place = asked
        .iter()
        .position(|(_, one)| one.notification == *urgent);
    assert!(
        place.is_some_and(|place| place < 10),
        "the one that was prioritized came before some that were there first"
    );
    assert!(
        stages
            .asked()
            .iter()
            .all(|(_, delivery)| delivery.notification != *last)
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_too_late_expires_whatever_is_suspended_and_is_not_sent() {
    let suspended = format!("{MAIL}  suspend: true\n");
    let stages = Stages::begin(&suspended, sent).await;
    let expires_at = (Timestamp::now() + Duration::from_secs(3)).to_string();
    let request = json!({"template": "order", "recipients": to("a@b.example"), "parameters": {"n": 1},
        "expiresAt": expires_at});
    let id = stages.send(request).await;
    // While it is suspended still.
    assert_eq!(stages.ended(&id).await[0].state, State::Expired);
    stages.declare(MAIL);
    assert!(stages.asked().is_empty());
}

#[tokio::test(flavor = "multi_thread")]
async fn the_sweep_finds_what_was_lost_and_sends_it_once() {
    let (stages, id) = Stages::begin_waiting().await;
    stages.lose().await;
    stages.declare(MAIL);
    let deliveries = stages.ended(&id).await;
    assert_eq!(deliveries[0].state, State::Sent);
    assert_eq!(stages.metrics.redriven.get(), 1);
    assert_eq!(stages.asked().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_a_slow_channel_holds_is_not_overdue() {
    // Slower than what is overdue in these tests.
    let slow = format!("{MAIL}  rateLimit: {{count: 1, perSeconds: 6}}\n");
    let stages = Stages::begin(&slow, sent).await;
    for n in 1..=2 {
        let to = to(&format!("a{n}@b.example"));
        let request = json!({"template": "order", "recipients": to, "parameters": {"n": n}});
        let id = stages.send(request).await;
        stages.ended(&id).await;
    }
    assert_eq!(stages.asked().len(), 2);
    assert_eq!(stages.metrics.redriven.get(), 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn shutting_down_finishes_what_is_being_sent_and_leaves_the_rest_to_the_next_start() {
    let slow = format!("{MAIL}  rateLimit: {{count: 20, perSeconds: 1}}\n");
    let stages = Stages::begin(&slow, sent).await;
    stages.people((0..3).map(|n| format!("p{n}"))).await;
    let mut ids = Vec::new();
    for n in 0..30 {
        let recipients = json!([{"recipient": "p0"}, {"recipient": "p1"}, {"recipient": "p2"}]);
        ids.push(
            stages
                .send(
                    json!({"template": "order", "recipients": recipients, "parameters": {"n": n}}),
                )
                .await,
        );
    }
    stages
        .wait(&ids[0], |record| record.counts.contains_key(&State::Sent))
        .await;
    stages.pipeline.stop().await;
    // Everything that was sent is recorded: the next start sends none of it again.
    let asked = stages.asked().len();
    assert!(asked < 90, "it was not finished yet");
    let mut recorded = 0;
    for id in &ids {
        let sent = stages
            .deliveries(id)
            .await
            .into_iter()
            .filter(|delivery| delivery.state == State::Sent);
        recorded += sent.count();
    }
    assert_eq!(recorded, asked);
}
