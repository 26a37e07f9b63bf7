//! What is declared changes while work is under way, or while nothing runs.

use herald_crds::{Kind, names};

use super::super::deleted::END;
use super::*;
use crate::broker::faulty::{Faults, FaultyBroker};
use crate::catalog::{DeclaredProblem, Snapshot, Untold};
use crate::metrics::ChannelClass;
use crate::store::RecordStore;
use crate::store::WaitingStore;
use crate::store::contract::stages as contract;

#[tokio::test(flavor = "multi_thread")]
async fn an_edited_channel_finishes_what_it_is_sending_while_others_go_on_and_sends_none_of_it_again()
 {
    let drain = Duration::from_millis(100);
    let timing = Timing { drain, ..timing() };
    let slow = MAIL.replace(
        "{name: first, log: {}}, {name: second, log: {}}",
        "{name: gated, log: {}}",
    );
    let stages = Stages::begin_over(&slow, timing, sent, |broker| Arc::new(broker)).await;
    let order = |to_whom: &str, channel: &str| {
        json!({"template": "order", "recipients": to(to_whom), "parameters": {"n": 1},
            "channels": [channel]})
    };
    let slowly = stages.send(order("a@b.example", "mail")).await;
    stages.until(|stages| stages.asked().len() == 1).await;

    stages.declare(&format!(
        "{slow}  concurrency: 2\n---{}",
        MAIL.replace("name: mail", "name: other")
    ));
    let meanwhile = stages.send(order("b@b.example", "other")).await;
    assert_eq!(stages.ended(&meanwhile).await[0].state, State::Sent);
    let waits = stages.send(order("c@b.example", "mail")).await;
    tokio::time::sleep(5 * drain).await;
    assert_eq!(
        stages.asked().len(),
        2,
        "the next begins when the last is finished"
    );

    stages.gate.add_permits(2);
    assert_eq!(stages.ended(&slowly).await[0].state, State::Sent);
    assert_eq!(stages.ended(&waits).await[0].state, State::Sent);
    assert_eq!(stages.asked().len(), 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_suspended_channel_can_be_cancelled_and_the_rest_goes_when_it_is_resumed()
{
    let suspended = format!("{MAIL}  suspend: true\n");
    let stages = Stages::begin(&suspended, sent).await;
    let request = |n: u32| json!({"template": "order", "recipients": to("a@b.example"), "parameters": {"n": n}});
    let called_back = stages.send(request(1)).await;
    let kept = stages.send(request(2)).await;
    for id in [&called_back, &kept] {
        stages
            .wait(id, |record| record.counts.values().sum::<u64>() == 1)
            .await;
    }
    let reached = stages.pipeline.orders.cancel(&called_back).await.unwrap();
    assert_eq!((reached.recalled.waiting, reached.pending), (1, false));
    assert_eq!(stages.ended(&called_back).await[0].state, State::Cancelled);
    assert!(stages.asked().is_empty());
    stages.declare(MAIL);
    assert_eq!(stages.ended(&kept).await[0].state, State::Sent);
    assert_eq!(stages.asked().len(), 1);
}

/// Begins with a delivery of `order` that failed and is in the relay, and answers it.
async fn with_a_retry_under_way() -> (Stages, NotificationId) {
    with_a_retry_under_way_over(timing(), |broker| Arc::new(broker)).await
}

async fn with_a_retry_under_way_over(
    timing: Timing,
    wrap: impl FnOnce(EmbeddedBroker) -> Arc<dyn Broker>,
) -> (Stages, NotificationId) {
    let relays = [Duration::from_secs(5); 2];
    let timing = Timing {
        relays,
        overdue: PATIENCE,
        ..timing
    };
    let fails = |_: &str, _: &Delivery| Outcome::Transient(reason("smtp-451"));
    let stages = Stages::begin_over(MAIL, timing, fails, wrap).await;
    let id = stages
        .send(json!({"template": "order", "recipients": to("a@b.example"), "parameters": {"n": 1}}))
        .await;
    stages
        .wait(&id, |record| {
            record.counts.get(&State::Retrying) == Some(&1)
        })
        .await;
    assert_eq!(stages.store.unended().await.unwrap(), (0, 1));
    (stages, id)
}

impl Stages {
    fn suspend_order(&self) {
        let suspended = TEMPLATES.replacen("spec:\n", "spec:\n  suspend: true\n", 1);
        std::fs::write(self.dir.path().join("templates.yaml"), suspended).unwrap();
        assert_eq!(self.catalog.reload_now().problems, []);
    }

    /// Waits until the only delivery is back in the waiting room, after one attempt.
    async fn is_back(&self, id: &NotificationId) {
        let back = async {
            while self.store.unended().await.unwrap() != (1, 0) {
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        };
        tokio::time::timeout(PATIENCE, back).await.unwrap();
        let delivery = self.deliveries(id).await.remove(0);
        assert_eq!(delivery.reason.as_deref(), Some("template-suspended"));
        assert_eq!(self.asked().len(), 1);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_rests_goes_as_soon_as_its_template_is_resumed() {
    let stages = Stages::begin(MAIL, sent).await;
    stages.suspend_order();
    let to = to("a@b.example");
    let request = json!({"template": "order", "recipients": to, "parameters": {"n": 1}});
    let id = stages.send(request).await;
    let rested = async {
        while stages.store.resting().await.unwrap().is_empty() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, rested).await.unwrap();
    assert!(stages.asked().is_empty());
    std::fs::write(stages.dir.path().join("templates.yaml"), TEMPLATES).unwrap();
    assert_eq!(stages.catalog.reload_now().problems, []);
    assert_eq!(stages.ended(&id).await[0].state, State::Sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaves_of_a_suspended_template_not_even_a_retry_that_is_under_way() {
    let (stages, id) = with_a_retry_under_way().await;
    stages.suspend_order();
    stages.is_back(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_leaves_of_a_template_that_was_suspended_while_nothing_ran() {
    let (mut stages, id) = with_a_retry_under_way().await;
    stages.pipeline.stop().await;
    stages.suspend_order();
    stages.pipeline = Pipeline::start(&stages.parts);
    stages.is_back(&id).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_deleted_channel_ends_as_failed_with_that_reason() {
    let (stages, id) = Stages::begin_waiting().await;
    std::fs::remove_file(stages.dir.path().join("mail.yaml")).unwrap();
    stages.catalog.reload_now();
    let deliveries = stages.ended(&id).await;
    assert_eq!(
        (deliveries[0].state, deliveries[0].reason.as_deref()),
        (State::Failed, Some("channel-deleted"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_is_said_of_the_providers_of_a_deleted_channel() {
    let stages = Stages::begin(MAIL, sent).await;
    let is_said = |stages: &Stages| {
        let text = stages.metrics.encode().unwrap();
        text.contains("herald_provider_state{")
    };
    stages.until(is_said).await;
    std::fs::remove_file(stages.dir.path().join("mail.yaml")).unwrap();
    stages.catalog.reload_now();
    stages.until(|stages| !is_said(stages)).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_out_for_a_channel_that_was_deleted_while_nothing_ran_ends_as_failed() {
    let (mut stages, id) = Stages::begin_waiting().await;
    stages.lose().await;
    stages.pipeline.stop().await;
    let file = stages.dir.path().join("mail.yaml");
    // A slip of the pen ends nothing.
    std::fs::write(&file, MAIL.replace("medium: email", "medium: pigeon")).unwrap();
    stages.catalog = Arc::new(FolderCatalog::open(stages.dir.path(), "shop").unwrap());
    stages.parts.catalog = Arc::clone(&stages.catalog) as _;
    stages.pipeline = Pipeline::start(&stages.parts);
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert_eq!(stages.store.unended().await.unwrap(), (0, 1));
    std::fs::remove_file(file).unwrap();
    stages.catalog.reload_now();
    let deliveries = stages.ended(&id).await;
    assert_eq!(
        (deliveries[0].state, deliveries[0].reason.as_deref()),
        (State::Failed, Some("channel-deleted"))
    );
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_out_when_its_channel_was_deleted_is_not_sent_when_the_channel_comes_back() {
    let (stages, id) = with_a_retry_under_way().await;
    std::fs::remove_file(stages.dir.path().join("mail.yaml")).unwrap();
    stages.catalog.reload_now();
    let delivery = stages.ended(&id).await.remove(0);
    assert_eq!(
        (delivery.state, delivery.reason.as_deref()),
        (State::Failed, Some("channel-deleted"))
    );
    stages.declare(MAIL);
    let labels = ChannelClass {
        channel: "shop/mail".to_owned(),
        priority: Priority::Normal.as_str(),
    };
    let dropped = |stages: &Stages| stages.metrics.repeats_dropped.get_or_create(&labels).get();
    stages.until(|stages| dropped(stages) == 1).await;
    assert_eq!(stages.asked().len(), 1);
    assert_eq!(stages.deliveries(&id).await[0].state, State::Failed);
}

/// Who deletes the topics may be in a hurry, or nobody was there to let go of them.
#[tokio::test(flavor = "multi_thread")]
async fn what_was_out_ends_even_if_the_topics_of_its_channel_are_gone_and_nobody_asks_for_them_for_long()
 {
    let mut faulty = None;
    // Nobody would let go of them for as long as this test waits.
    let timing = Timing {
        drain: PATIENCE * 2,
        ..timing()
    };
    let (stages, id) = with_a_retry_under_way_over(timing, |broker| {
        let broker = faulty.insert(FaultyBroker::new(broker, Faults::default()));
        Arc::new(broker.clone())
    })
    .await;
    let faulty = faulty.unwrap();
    for topic in names::of("shop/mail") {
        faulty.delete(&topic);
    }
    std::fs::remove_file(stages.dir.path().join("mail.yaml")).unwrap();
    stages.catalog.reload_now();
    let delivery = stages.ended(&id).await.remove(0);
    assert_eq!(
        (delivery.state, delivery.reason.as_deref()),
        (State::Failed, Some("channel-deleted"))
    );
    stages
        .until(|stages| stages.pipeline.recorded("shop/mail").is_none())
        .await;
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_for_a_deleted_channel_ends_although_another_cannot_be_read() {
    let (stages, id) = Stages::begin_waiting().await;
    let other = MAIL.replace("name: mail", "name: other");
    let other = other.replace("medium: email", "medium: pigeon");
    std::fs::write(stages.dir.path().join("mail.yaml"), other).unwrap();
    assert!(!stages.catalog.reload_now().problems.is_empty());
    assert_eq!(stages.ended(&id).await[0].state, State::Failed);
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_ends_while_it_is_not_clear_whether_its_channel_is_declared() {
    let stages = Stages::begin(MAIL, sent).await;
    stages.pipeline.stop().await;
    let request = contract::request("1");
    let rows = [contract::row(&request.id, "person")];
    contract::planned(&*stages.store, &request, &rows).await;
    for (resource, left) in [("", 1), ("Channel shop/mail", 1), ("Channel shop/mai", 0)] {
        let problem = DeclaredProblem {
            file: None,
            line: 0,
            resource: resource.to_owned(),
            path: String::new(),
            message: "cannot be read".to_owned(),
        };
        let declared = Snapshot {
            problems: vec![problem],
            ..Snapshot::default()
        };
        stages.pipeline.channels.end_deleted(&declared).await;
        let unended = stages.store.unended().await.unwrap();
        assert_eq!(unended, (left, 0), "{resource:?}");
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn nothing_ends_where_it_cannot_be_told_what_is_declared() {
    let stages = Stages::begin(MAIL, sent).await;
    stages.pipeline.stop().await;
    let request = contract::request("1");
    let rows = [contract::row(&request.id, "person")];
    contract::planned(&*stages.store, &request, &rows).await;
    let only = |namespace: &str| Untold {
        counted: [namespace.to_owned()].into(),
        ..Untold::default()
    };
    let unread = |kind| Untold {
        unread: [(kind, "shop".to_owned())].into(),
        ..only("shop")
    };
    let told = unread(Kind::RecipientGroup);
    for (untold, left) in [(only("office"), 1), (unread(Kind::Channel), 1), (told, 0)] {
        let declared = Snapshot {
            untold,
            ..Snapshot::default()
        };
        stages.pipeline.channels.end_deleted(&declared).await;
        let unended = stages.store.unended().await.unwrap();
        assert_eq!(unended, (left, 0), "{:?}", declared.untold);
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn what_waits_ends_as_failed_if_its_channel_does_not_allow_its_namespace_any_more() {
    let shared = MAIL.replace("namespace: shop", "namespace: platform");
    let allowed = format!("{shared}  allowedNamespaces: {{from: All}}\n");
    let stages = Stages::begin(&format!("{allowed}  suspend: true\n---{MAIL}"), sent).await;
    let templates = TEMPLATES.replacen("[{name: mail}]", "[{name: mail, namespace: platform}]", 1);
    std::fs::write(stages.dir.path().join("templates.yaml"), templates).unwrap();
    assert_eq!(stages.catalog.reload_now().problems, []);
    let mut ids = Vec::new();
    for n in 1..=2 {
        let to = to("a@b.example");
        let request = json!({"template": "order", "recipients": to, "parameters": {"n": n}});
        let id = stages.send(request).await;
        stages.wait(&id, |record| !record.counts.is_empty()).await;
        ids.push(id);
        if n == 1 {
            let file = stages.dir.path().join("mail.yaml");
            std::fs::write(file, format!("{shared}---{MAIL}")).unwrap();
            assert!(!stages.catalog.reload_now().problems.is_empty());
            let delivery = stages.ended(&ids[0]).await.remove(0);
            let reason = delivery.reason.as_deref();
            assert_eq!(
                (delivery.state, reason),
                (State::Failed, Some("channel-not-allowed"))
            );
            assert!(stages.asked().is_empty());
            stages.declare(&format!("{allowed}---{MAIL}"));
        }
    }
    assert_eq!(stages.ended(&ids[1]).await[0].state, State::Sent);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_channel_ends_some_rows_at_a_time() {
    let stages = Stages::begin(MAIL, sent).await;
    stages.pipeline.stop().await;
    let request = contract::request("1");
    let person = |n| contract::row(&request.id, &format!("person-{n}"));
    let rows: Vec<_> = (0..=END).map(person).collect();
    contract::planned(&*stages.store, &request, &rows).await;
    let channels = &stages.pipeline.channels;
    let nothing = Snapshot::default();
    for left in [1, 0] {
        let again = channels.end_deleted(&nothing).await;
        assert_eq!(again == Some(Duration::ZERO), left > 0);
        assert_eq!(stages.store.unended().await.unwrap(), (left, 0));
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn a_deleted_channels_topics_are_read_until_all_has_ended_and_a_pod_could_be_done() {
    let suspended = format!("{MAIL}  suspend: true\n");
    let drain = Duration::from_millis(300);
    let timing = Timing { drain, ..timing() };
    let stages = Stages::begin_over(&suspended, timing, sent, |broker| Arc::new(broker)).await;
    let request =
        json!({"template": "order", "recipients": to("a@b.example"), "parameters": {"n": 1}});
    let id = stages.send(request).await;
    stages.wait(&id, |record| !record.counts.is_empty()).await;
    let is_read = |stages: &Stages| stages.pipeline.recorded("shop/mail").is_some();
    assert!(is_read(&stages));
    std::fs::remove_file(stages.dir.path().join("mail.yaml")).unwrap();
    stages.catalog.reload_now();
    let deleted = tokio::time::Instant::now();
    assert_eq!(stages.ended(&id).await[0].state, State::Failed);
    stages.until(|stages| !is_read(stages)).await;
    assert!(deleted.elapsed() >= drain);
    // It comes back, and all is as before.
    stages.declare(MAIL);
    let request =
        json!({"template": "order", "recipients": to("b@b.example"), "parameters": {"n": 2}});
    let id = stages.send(request).await;
    assert_eq!(stages.ended(&id).await[0].state, State::Sent);
    assert!(is_read(&stages));
}
