//! What every store must do for planning, waiting and recording, whatever its database: one test for each promise.
//!
//! [`store_contract!`] makes the tests for one database, given a function that opens an empty store.

use std::collections::BTreeMap;
use std::collections::BTreeSet;
use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use herald_crds::Priority;
use herald_crds::render::Rendered;
use jiff::Timestamp;
use serde_json::value::RawValue;

use crate::id::{DeliveryId, NotificationId};
use crate::message::{
    Delivery, Direct, DirectDelivery, Event, Events, Failure, Request, Step, Suppression, To,
};
use crate::store::{
    Chunk, Cursor, NewDelivery, PlanStore, Planned, RecordStore, ResolveStep, StoreError, Turn,
    Waiting, WaitingStore,
};

/// What the contract is about.
pub(crate) trait Stages: PlanStore + WaitingStore + RecordStore {
    /// One step of one notification alone.
    async fn resolve_step(
        &self,
        notification: &NotificationId,
        from: &Cursor,
        next: Option<&Cursor>,
        rows: &[NewDelivery],
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let step = ResolveStep {
            notification: *notification,
            from: from.clone(),
            next: next.cloned(),
            rows: rows.to_vec(),
        };
        Ok(self.resolve(vec![step], now).await? == [true])
    }
}

impl<T: PlanStore + WaitingStore + RecordStore> Stages for T {}

/// Makes the contract's tests for one database.
macro_rules! store_contract {
    ($open:path) => {
        $crate::store::contract::stages::store_contract!(@tests $open:
            a_notification_is_written_once_and_another_body_under_its_id_is_a_conflict,
            repeats_within_one_call_are_told_from_their_first,
            definitions_are_kept_by_hash,
            resolving_goes_step_by_step_and_a_repeated_step_does_nothing,
            steps_of_several_notifications_are_taken_together_and_each_by_itself,
            a_person_who_is_meant_twice_gets_one_row,
            a_notification_for_later_is_not_resolved_before_its_time,
            the_most_urgent_class_is_resolved_first_and_then_the_one_with_the_fewest_rows,
            a_held_notification_waits_for_its_sender,
            a_claim_belongs_to_whoever_came_first_until_its_window_is_over,
            nobody_is_suppressed_until_somebody_is,
            requests_come_back_as_they_were,
            rows_that_are_due_are_ready_and_others_ripen,
            a_chunk_is_the_notification_whose_turn_it_is_by_due_time,
            small_notifications_fill_a_chunk_together_and_turns_go_round,
            a_message_to_one_is_in_the_next_chunk_whatever_else_waits,
            a_released_row_is_out_and_a_row_that_has_changed_is_left_alone,
            a_chunk_that_is_not_settled_stays_ready,
            what_rests_is_looked_at_by_nobody_until_it_is_woken,
            what_rests_is_cancelled_and_ends_with_its_channel,
            what_waits_ends_when_its_notification_has_expired,
            a_row_without_a_channel_ends_as_it_is_written,
            cancelling_ends_what_waits_and_names_the_channels_of_what_is_out,
            what_comes_back_of_a_cancelled_notification_ends,
            cancelling_a_template_leaves_others_alone,
            prioritizing_moves_what_waits_and_what_is_still_to_be_resolved,
            a_deleted_channels_rows_end,
            a_channel_has_not_ended_while_a_row_of_it_waits_or_is_out,
            a_backlog_is_counted_by_class,
            a_returned_delivery_waits_whole_with_its_next_attempt,
            a_repeated_return_does_not_bring_back_what_was_released_again,
            an_end_is_not_undone_by_a_late_retry,
            sent_is_beyond_a_failure_of_a_later_attempt,
            a_direct_notification_is_written_down_with_what_is_out,
            an_outcome_that_comes_before_its_direct_is_not_lost,
            an_outcome_that_comes_before_its_row_is_not_lost,
            what_is_overdue_is_released_again_with_the_same_round_and_attempt,
            what_was_heard_of_since_is_not_redriven,
            what_was_called_back_is_not_redriven,
            what_is_older_than_retention_is_deleted,
            waiting_and_out_are_counted,
        );
    };
    (@tests $open:path: $($name:ident),* $(,)?) => {
        $(
            #[tokio::test]
            async fn $name() {
                let opened = $open().await;
                $crate::store::contract::stages::$name(&opened.store).await;
            }
        )*
    };
}
pub(crate) use store_contract;

/// The time at which tests begin.
pub(crate) const START: i64 = 1_800_000_000_000;

/// So many milliseconds after the beginning.
pub(crate) fn at(milliseconds: i64) -> Timestamp {
    Timestamp::from_millisecond(START + milliseconds).unwrap()
}

pub(crate) const MAIL: &str = "shop/mail";

/// A request by a key, with everything else usual.
pub(crate) fn request(key: &str) -> Request {
    Request {
        id: NotificationId::from_key("shop", "orders", key),
        namespace: "shop".into(),
        sender: "orders".into(),
        body: format!("body of {key}").into(),
        template: "order-shipped".into(),
        definition: "sha256:1".into(),
        groups: None,
        priority: Priority::Normal,
        recipients: vec![To::Group("shop/vip".into())],
        parameters: RawValue::from_string(r#"{"order":1}"#.into()).unwrap(),
        sensitive: false,
        channels: Vec::new(),
        accepted_at: at(0),
        send_at: None,
        expires_at: None,
        spread_over_seconds: 0,
        confirm_recipients: None,
        metadata: BTreeMap::new(),
        traceparent: None,
        system: crate::message::SystemState::default(),
    }
}

/// The row to be of one person.
pub(crate) fn row(notification: &NotificationId, recipient: &str) -> NewDelivery {
    let endpoint = format!("{recipient}@mail.example");
    NewDelivery {
        id: DeliveryId::new(notification, recipient, MAIL, 0, &endpoint, 0),
        recipient: recipient.into(),
        channel: MAIL.into(),
        endpoint: endpoint.into(),
        locale: "ko".into(),
        due: at(0),
        suppressed: None,
    }
}

/// The rows to be of so many people.
pub(crate) fn rows(notification: &NotificationId, n: usize) -> Vec<NewDelivery> {
    (0..n)
        .map(|i| row(notification, &format!("person-{i}")))
        .collect()
}

/// Inserts a notification and resolves it into these rows in one step.
pub(crate) async fn planned(store: &impl Stages, request: &Request, rows: &[NewDelivery]) {
    let answers = store
        .insert_notifications(&[], &[Arc::new(request.clone())])
        .await
        .unwrap();
    assert_eq!(answers, [Planned::Inserted]);
    let done = store
        .resolve_step(&request.id, &Cursor::default(), None, rows, at(0))
        .await
        .unwrap();
    assert!(done);
}

/// Takes a chunk and marks it released at `now`.
pub(crate) async fn release(store: &impl Stages, limit: usize, now: Timestamp) -> Vec<Waiting> {
    settled(normal(store, limit).await, now).await.0
}

/// Marks all of a chunk released at `now`; answers its rows, and whose turn it was.
pub(crate) async fn settled(chunk: Chunk, now: Timestamp) -> (Vec<Waiting>, Turn) {
    let Chunk {
        rows, next, hold, ..
    } = chunk;
    let left: Vec<_> = rows.iter().map(|w| (w.row, w.round, w.attempt)).collect();
    hold.settle(&left, &[], &[], now).await.unwrap();
    (rows, next)
}

pub(crate) fn failure() -> Failure {
    Failure {
        reason: "smtp-451".into(),
        detail: "greylisted".into(),
        provider: Some("ses".into()),
    }
}

/// What a row would be as a delivery.
pub(crate) fn delivery(waiting: &Waiting, attempt: u16) -> Delivery {
    Delivery {
        id: waiting.id,
        notification: waiting.notification,
        namespace: "shop".into(),
        template: "order-shipped".into(),
        recipient: Arc::clone(&waiting.recipient),
        endpoint: Arc::clone(&waiting.endpoint),
        priority: Priority::Normal,
        accepted_at: at(0),
        ready_at: at(0),
        released_at: at(0),
        expires_at: None,
        round: waiting.round,
        attempt,
        tried: waiting.tried,
        provider: None,
        content: Rendered::Sms {
            text: "on its way".into(),
        },
        sensitive: false,
        traceparent: None,
    }
}

pub(crate) fn event(waiting: &Waiting, attempt: u16, milliseconds: i64, step: Step) -> Event {
    Event {
        delivery: waiting.id,
        notification: waiting.notification,
        at: at(milliseconds),
        round: waiting.round,
        attempt,
        tried: attempt,
        priority: Priority::Normal,
        step,
    }
}

pub(crate) fn sent() -> Step {
    Step::Sent {
        provider: "ses".into(),
        provider_id: Some("m-1".into()),
        milliseconds: 12,
    }
}

pub(crate) fn returned(waiting: &Waiting, attempt: u16, due: Timestamp) -> Step {
    Step::Returned {
        error: failure(),
        due,
        delivery: Box::new(delivery(waiting, attempt + 1)),
    }
}

pub(crate) async fn tell(store: &impl Stages, outcomes: Vec<Event>) {
    let events = Events {
        outcomes,
        ..Events::default()
    };
    store.record(MAIL, &[events]).await.unwrap();
}

/// Takes a chunk and puts it to rest.
async fn rest(store: &impl Stages, limit: usize) {
    let Chunk { rows, hold, .. } = normal(store, limit).await;
    let resting: Vec<i64> = rows.iter().map(|row| row.row).collect();
    hold.settle(&[], &resting, &[], at(0)).await.unwrap();
}

/// A chunk of the usual class, from the beginning.
async fn normal(store: &impl Stages, limit: usize) -> Chunk {
    store
        .chunk(MAIL, Priority::Normal, &Turn::default(), limit)
        .await
        .unwrap()
}

async fn waiting_and_out(store: &impl Stages) -> (u64, u64) {
    store.unended().await.unwrap()
}

pub(crate) async fn a_notification_is_written_once_and_another_body_under_its_id_is_a_conflict(
    store: &impl Stages,
) {
    let first = Arc::new(request("1"));
    let other = Arc::new(Request {
        body: "another".into(),
        ..request("1")
    });
    let insert = async |request: &Arc<Request>| {
        let request = std::slice::from_ref(request);
        store.insert_notifications(&[], request).await.unwrap()[0]
    };
    assert_eq!(insert(&first).await, Planned::Inserted);
    assert_eq!(insert(&first).await, Planned::Repeat);
    assert_eq!(insert(&other).await, Planned::Conflict);
    let unresolved = store.unresolved(at(0), 10).await.unwrap();
    assert_eq!(unresolved.len(), 1);
    assert_eq!(unresolved[0].request.body, first.body);
}

pub(crate) async fn repeats_within_one_call_are_told_from_their_first(store: &impl Stages) {
    let one = Arc::new(request("1"));
    let two = Arc::new(request("2"));
    let other = Arc::new(Request {
        body: "another".into(),
        ..request("2")
    });
    let answers = store
        .insert_notifications(
            &[],
            &[
                Arc::clone(&one),
                Arc::clone(&two),
                Arc::clone(&one),
                Arc::clone(&other),
            ],
        )
        .await
        .unwrap();
    assert_eq!(
        answers,
        [
            Planned::Inserted,
            Planned::Inserted,
            Planned::Repeat,
            Planned::Conflict
        ]
    );
}

pub(crate) async fn definitions_are_kept_by_hash(store: &impl Stages) {
    let definition = Bytes::from_static(b"packed");
    let definitions = [("sha256:1".into(), definition.clone())];
    for _ in 0..2 {
        store.insert_notifications(&definitions, &[]).await.unwrap();
    }
    assert_eq!(
        store.definition("sha256:1").await.unwrap(),
        Some(definition)
    );
    assert_eq!(store.definition("sha256:2").await.unwrap(), None);
}

pub(crate) async fn resolving_goes_step_by_step_and_a_repeated_step_does_nothing(
    store: &impl Stages,
) {
    let request = request("1");
    store
        .insert_notifications(&[], &[Arc::new(request.clone())])
        .await
        .unwrap();
    let people = rows(&request.id, 4);
    let start = Cursor::default();
    let middle = Cursor {
        source: 0,
        after: Some((7, "person-1".into())),
    };
    let step = async |from: &Cursor, next: Option<&Cursor>, rows: &[NewDelivery]| {
        store
            .resolve_step(&request.id, from, next, rows, at(0))
            .await
            .unwrap()
    };
    assert!(step(&start, Some(&middle), &people[..2]).await);
    assert!(!step(&start, Some(&middle), &people[..2]).await);
    let unresolved = store.unresolved(at(0), 10).await.unwrap();
    assert_eq!(unresolved[0].cursor, middle);
    assert_eq!(unresolved[0].rows, 2);
    assert!(step(&middle, None, &people[2..]).await);
    assert!(!step(&middle, None, &people[2..]).await);
    assert!(store.unresolved(at(0), 10).await.unwrap().is_empty());
    assert_eq!(waiting_and_out(store).await, (4, 0));
}

pub(crate) async fn steps_of_several_notifications_are_taken_together_and_each_by_itself(
    store: &impl Stages,
) {
    let [small, large, cancelled, over] = ["small", "large", "cancelled", "over"].map(request);
    for request in [&small, &large, &cancelled, &over] {
        store
            .insert_notifications(&[], &[Arc::new(request.clone())])
            .await
            .unwrap();
    }
    store.cancel(&cancelled.id, at(0)).await.unwrap();
    let start = Cursor::default();
    let ann = row(&over.id, "ann");
    let elsewhere = Cursor {
        source: 1,
        after: None,
    };
    store
        .resolve_step(&over.id, &start, Some(&elsewhere), &[ann], at(0))
        .await
        .unwrap();
    let middle = Cursor {
        source: 0,
        after: Some((7, "person-1".into())),
    };
    let step = |request: &Request, next: Option<&Cursor>, rows| ResolveStep {
        notification: request.id,
        from: start.clone(),
        next: next.cloned(),
        rows,
    };
    let twice = row(&small.id, "ann");
    let mut later = rows(&large.id, 2);
    later[1].due = at(60_000);
    let steps = vec![
        step(&small, None, vec![twice.clone(), twice]),
        step(&cancelled, None, rows(&cancelled.id, 2)),
        step(&large, Some(&middle), later),
        step(&over, None, rows(&over.id, 3)),
    ];
    let answers = store.resolve(steps, at(0)).await.unwrap();
    assert_eq!(answers, [true, false, true, false]);
    // One row of `small`, two of `large`, and the one that `over` had.
    assert_eq!(waiting_and_out(store).await, (4, 0));
    let unresolved = store.unresolved(at(0), 10).await.unwrap();
    let left: Vec<_> = unresolved
        .iter()
        .map(|one| (one.request.id, one.cursor.clone(), one.rows))
        .collect();
    assert_eq!(left, [(over.id, elsewhere, 1), (large.id, middle, 2)]);
}

pub(crate) async fn a_person_who_is_meant_twice_gets_one_row(store: &impl Stages) {
    let request = request("1");
    store
        .insert_notifications(&[], &[Arc::new(request.clone())])
        .await
        .unwrap();
    let start = Cursor::default();
    let next = Cursor {
        source: 1,
        after: None,
    };
    let ann = row(&request.id, "ann");
    let bob = row(&request.id, "bob");
    store
        .resolve_step(
            &request.id,
            &start,
            Some(&next),
            &[ann.clone(), ann.clone()],
            at(0),
        )
        .await
        .unwrap();
    assert_eq!(store.unresolved(at(0), 1).await.unwrap()[0].rows, 1);
    store
        .resolve_step(&request.id, &next, None, &[ann, bob], at(0))
        .await
        .unwrap();
    assert_eq!(waiting_and_out(store).await, (2, 0));
}

pub(crate) async fn a_notification_for_later_is_not_resolved_before_its_time(store: &impl Stages) {
    assert_eq!(store.next_unresolved().await.unwrap(), None);
    let later = Request {
        send_at: Some(at(5_000)),
        ..request("1")
    };
    store
        .insert_notifications(&[], &[Arc::new(later)])
        .await
        .unwrap();
    assert_eq!(store.next_unresolved().await.unwrap(), Some(at(5_000)));
    assert!(store.unresolved(at(4_999), 10).await.unwrap().is_empty());
    assert_eq!(store.unresolved(at(5_000), 10).await.unwrap().len(), 1);
    assert_eq!(store.next_unresolved().await.unwrap(), None);
}

pub(crate) async fn the_most_urgent_class_is_resolved_first_and_then_the_one_with_the_fewest_rows(
    store: &impl Stages,
) {
    let started = request("started");
    let fresh = request("fresh");
    let urgent = Request {
        priority: Priority::Critical,
        ..request("urgent")
    };
    for request in [&started, &fresh, &urgent] {
        store
            .insert_notifications(&[], &[Arc::new(request.clone())])
            .await
            .unwrap();
    }
    let next = Cursor {
        source: 0,
        after: Some((1, String::new())),
    };
    store
        .resolve_step(
            &started.id,
            &Cursor::default(),
            Some(&next),
            &rows(&started.id, 3),
            at(0),
        )
        .await
        .unwrap();
    let order: Vec<_> = store
        .unresolved(at(0), 10)
        .await
        .unwrap()
        .iter()
        .map(|unresolved| unresolved.request.id)
        .collect();
    assert_eq!(order, [urgent.id, fresh.id, started.id]);
    assert_eq!(store.unresolved(at(0), 2).await.unwrap().len(), 2);
}

pub(crate) async fn a_held_notification_waits_for_its_sender(store: &impl Stages) {
    let request = request("1");
    store
        .insert_notifications(&[], &[Arc::new(request.clone())])
        .await
        .unwrap();
    assert!(!store.confirm(&request.id, 9).await.unwrap());
    store.hold(&request.id, 9, 5).await.unwrap();
    assert!(store.unresolved(at(0), 10).await.unwrap().is_empty());
    let step = store
        .resolve_step(
            &request.id,
            &Cursor::default(),
            None,
            &rows(&request.id, 1),
            at(0),
        )
        .await
        .unwrap();
    assert!(!step);
    assert!(store.confirm(&request.id, 9).await.unwrap());
    assert!(!store.confirm(&request.id, 9).await.unwrap());
    let unresolved = store.unresolved(at(0), 10).await.unwrap();
    assert_eq!(unresolved[0].confirmed, Some(9));
}

pub(crate) async fn a_claim_belongs_to_whoever_came_first_until_its_window_is_over(
    store: &impl Stages,
) {
    let notification = request("1").id;
    let ann = row(&notification, "ann").id;
    let bob = row(&notification, "bob").id;
    let claim = async |claims: &[(&str, DeliveryId)], milliseconds: i64| {
        let claims: Vec<_> = claims
            .iter()
            .map(|(key, id)| ((*key).to_owned(), *id))
            .collect();
        store
            .claim("shop", "order-shipped", &claims, 10, at(milliseconds))
            .await
            .unwrap()
    };
    assert_eq!(
        claim(&[("a", ann), ("b", ann), ("a", bob)], 0).await,
        [true, true, false]
    );
    assert_eq!(claim(&[("a", ann), ("b", bob)], 9_999).await, [true, false]);
    assert_eq!(
        claim(&[("b", bob), ("b", ann)], 10_000).await,
        [true, false]
    );
    let elsewhere = store
        .claim("shop", "another", &[("a".to_owned(), bob)], 10, at(0))
        .await
        .unwrap();
    assert_eq!(elsewhere, [true]);
}

pub(crate) async fn nobody_is_suppressed_until_somebody_is(store: &impl Stages) {
    let asked = [("email", "ann@mail.example"), ("email", "bob@mail.example")];
    assert_eq!(
        store.suppressed("shop", &asked).await.unwrap(),
        [None, None]
    );
}

pub(crate) async fn requests_come_back_as_they_were(store: &impl Stages) {
    let short = Request {
        metadata: BTreeMap::from([("order".to_owned(), "1".to_owned())]),
        ..request("short")
    };
    let long = Request {
        recipients: (0..10_000)
            .map(|n| To::Recipient(format!("person-{n}").into()))
            .collect(),
        ..request("long")
    };
    for request in [&short, &long] {
        store
            .insert_notifications(&[], &[Arc::new(request.clone())])
            .await
            .unwrap();
    }
    let unknown = request("unknown").id;
    let found = store.requests(&[long.id, unknown, short.id]).await.unwrap();
    let text = |request: &Request| serde_json::to_string(request).unwrap();
    assert_eq!(
        found.iter().map(|r| text(r)).collect::<Vec<_>>(),
        [text(&long), text(&short)]
    );
}

pub(crate) async fn rows_that_are_due_are_ready_and_others_ripen(store: &impl Stages) {
    let request = request("1");
    let mut people = rows(&request.id, 3);
    people[1].due = at(1_000);
    people[2].due = at(2_000);
    planned(store, &request, &people).await;
    assert_eq!(store.next_due().await.unwrap(), Some(at(1_000)));
    let ready = vec![(Arc::from(MAIL), Priority::Normal)];
    let normal = Priority::Normal.index();
    assert_eq!(store.backlog(MAIL).await.unwrap()[normal].due, 1);
    assert_eq!(release(store, 10, at(0)).await.len(), 1);
    assert_eq!(store.backlog(MAIL).await.unwrap()[normal].due, 0);

    assert!(store.ripen(at(999), 10).await.unwrap().is_empty());
    assert_eq!(store.ripen(at(5_000), 1).await.unwrap(), ready);
    assert_eq!(release(store, 10, at(5_000)).await.len(), 1);
    assert_eq!(store.ripen(at(5_000), 10).await.unwrap(), ready);
    assert_eq!(release(store, 10, at(5_000)).await[0].due, at(2_000));
    assert_eq!(store.next_due().await.unwrap(), None);
}

pub(crate) async fn a_chunk_is_the_notification_whose_turn_it_is_by_due_time(store: &impl Stages) {
    let request = request("1");
    let mut people = rows(&request.id, 3);
    people[0].due = at(-1_000);
    people[1].due = at(-3_000);
    people[2].due = at(-2_000);
    planned(store, &request, &people).await;
    let chunk = store
        .chunk(MAIL, Priority::Normal, &Turn::default(), 2)
        .await
        .unwrap()
        .rows;
    let ids: Vec<_> = chunk.iter().map(|waiting| waiting.id).collect();
    assert_eq!(ids, [people[1].id, people[2].id]);
    let first = &chunk[0];
    assert_eq!(first.notification, request.id);
    assert_eq!((&*first.recipient, &*first.locale), ("person-1", "ko"));
    assert_eq!(first.endpoint, people[1].endpoint);
    assert_eq!((first.round, first.attempt, first.tried), (0, 1, 0));
    assert_eq!(first.due, at(-3_000));
    assert_eq!(first.delivery, None);
    for (channel, class) in [("shop/other", Priority::Normal), (MAIL, Priority::High)] {
        let turn = Turn {
            namespace: 5,
            ..Turn::default()
        };
        let chunk = store.chunk(channel, class, &turn, 2).await.unwrap();
        assert!(chunk.rows.is_empty());
        assert_eq!(chunk.next, turn);
    }
}

pub(crate) async fn small_notifications_fill_a_chunk_together_and_turns_go_round(
    store: &impl Stages,
) {
    let sizes = [("large", 5), ("one", 1), ("two", 1), ("three", 3)];
    for (key, n) in sizes {
        let request = request(key);
        planned(store, &request, &rows(&request.id, n)).await;
    }
    let name = |id: NotificationId| {
        sizes
            .iter()
            .find(|(key, _)| request(key).id == id)
            .unwrap()
            .0
    };
    let mut turn = Turn::default();
    let mut chunks = Vec::new();
    for _ in 0..5 {
        let chunk = store.chunk(MAIL, Priority::Normal, &turn, 3).await.unwrap();
        let (chunk, next) = settled(chunk, at(0)).await;
        turn = next;
        let names: Vec<_> = chunk.iter().map(|w| name(w.notification)).collect();
        chunks.push(names.join(" "));
    }
    assert_eq!(
        chunks,
        [
            "large one two",
            "three three large",
            "three large large",
            "large",
            ""
        ]
    );
}

pub(crate) async fn a_message_to_one_is_in_the_next_chunk_whatever_else_waits(store: &impl Stages) {
    // Another team's hundred notifications, one's own hundred rows, and then a message to one.
    let another = |key: &str| Request {
        namespace: "another".into(),
        ..request(key)
    };
    for n in 0..100 {
        let request = another(&format!("another-{n}"));
        planned(store, &request, &rows(&request.id, 1)).await;
    }
    for key in ["large", "larger"] {
        let request = request(key);
        planned(store, &request, &rows(&request.id, 100)).await;
    }
    let mut turn = Turn::default();
    let mut of_another = 0;
    for round in 0..4 {
        let one = request(&format!("one-{round}"));
        planned(store, &one, &rows(&one.id, 1)).await;
        let chunk = store.chunk(MAIL, Priority::Normal, &turn, 10);
        let (chunk, next) = settled(chunk.await.unwrap(), at(0)).await;
        turn = next;
        assert_eq!(chunk.len(), 10);
        assert!(chunk.iter().any(|row| row.notification == one.id));
        let mine: Vec<_> = ["large", "larger"].map(|key| request(key).id).into();
        of_another += chunk
            .iter()
            .filter(|row| row.notification != one.id && !mine.contains(&row.notification))
            .count();
    }
    // Each namespace has half of every chunk.
    assert_eq!(of_another, 20);
}

pub(crate) async fn a_released_row_is_out_and_a_row_that_has_changed_is_left_alone(
    store: &impl Stages,
) {
    let request = request("1");
    planned(store, &request, &rows(&request.id, 2)).await;
    let chunk = normal(store, 10).await;
    let (first, second) = (&chunk.rows[0], &chunk.rows[1]);
    let left = [(first.row, 0, 1), (second.row, 0, 2)];
    chunk.hold.settle(&left, &[], &[], at(0)).await.unwrap();
    assert_eq!(waiting_and_out(store).await, (1, 1));
    let left = release(store, 10, at(0)).await;
    assert_eq!(left.iter().map(|w| w.id).collect::<Vec<_>>(), [second.id]);
}

pub(crate) async fn what_rests_is_looked_at_by_nobody_until_it_is_woken(store: &impl Stages) {
    let suspended = request("1");
    planned(store, &suspended, &rows(&suspended.id, 3)).await;
    let other = Request {
        template: "receipt".into(),
        ..request("2")
    };
    planned(store, &other, &rows(&other.id, 1)).await;
    let Chunk { rows, hold, .. } = normal(store, 10).await;
    let of_suspended = rows.iter();
    let of_suspended = of_suspended.filter(|row| row.notification == suspended.id);
    let resting: Vec<i64> = of_suspended.map(|row| row.row).collect();
    hold.settle(&[], &resting, &[], at(0)).await.unwrap();
    assert_eq!(
        store.resting().await.unwrap(),
        [("shop".into(), "order-shipped".into())]
    );
    // It is not due at any time, but it waits.
    assert_eq!(release(store, 10, at(0)).await.len(), 1);
    assert_eq!(store.next_due().await.unwrap(), None);
    assert_eq!(waiting_and_out(store).await, (3, 1));
    assert!(
        store
            .channels()
            .await
            .unwrap()
            .contains(&(MAIL.into(), true))
    );
    let backlog = store.backlog(MAIL).await.unwrap()[Priority::Normal.index()];
    assert_eq!((backlog.due, backlog.scheduled), (0, 3));

    let woken = store.wake("shop", "receipt").await.unwrap();
    assert_eq!(woken, []);
    let woken = store.wake("shop", "order-shipped").await.unwrap();
    assert_eq!(woken, [(MAIL.into(), Priority::Normal)]);
    assert_eq!(store.resting().await.unwrap(), []);
    let again = release(store, 10, at(9)).await;
    // As long due as they were.
    assert_eq!(again.len(), 3);
    assert!(again.iter().all(|row| row.due == at(0)));
}

pub(crate) async fn what_rests_is_cancelled_and_ends_with_its_channel(store: &impl Stages) {
    let [cancelled, other] = ["1", "2"].map(request);
    for request in [&cancelled, &other] {
        planned(store, request, &rows(&request.id, 1)).await;
    }
    rest(store, 10).await;
    assert_eq!(store.channels().await.unwrap(), [(MAIL.into(), true)]);
    assert_eq!(store.cancel(&cancelled.id, at(1)).await.unwrap().waiting, 1);
    assert_eq!(store.end_channel(MAIL, at(2), 10).await.unwrap(), 1);
    assert_eq!(waiting_and_out(store).await, (0, 0));
}

pub(crate) async fn what_waits_ends_when_its_notification_has_expired(store: &impl Stages) {
    let request = Request {
        expires_at: Some(at(1_000)),
        ..request("1")
    };
    let mut people = rows(&request.id, 4);
    people[3].due = at(60_000);
    planned(store, &request, &people).await;
    let for_ever = self::request("2");
    planned(store, &for_ever, &rows(&for_ever.id, 1)).await;
    release(store, 1, at(0)).await;
    rest(store, 1).await;
    assert_eq!(waiting_and_out(store).await, (4, 1));
    assert_eq!(store.end_late(at(999)).await.unwrap(), 0);
    assert_eq!(store.end_late(at(1_000)).await.unwrap(), 3);
    assert_eq!(store.end_late(at(2_000)).await.unwrap(), 0);
    assert_eq!(waiting_and_out(store).await, (1, 1));
}

pub(crate) async fn a_chunk_that_is_not_settled_stays_ready(store: &impl Stages) {
    let request = request("1");
    planned(store, &request, &rows(&request.id, 3)).await;
    let chunk = normal(store, 2).await;
    let ids: Vec<_> = chunk.rows.iter().map(|row| row.id).collect();
    drop(chunk);
    assert_eq!(waiting_and_out(store).await, (3, 0));
    // A database that is asked over a connection learns of it a moment later.
    let again = async {
        loop {
            let chunk = normal(store, 2).await;
            if chunk.rows.iter().map(|row| row.id).eq(ids.iter().copied()) {
                break chunk;
            }
        }
    };
    let patience = std::time::Duration::from_secs(10);
    let chunk = tokio::time::timeout(patience, again).await.unwrap();
    let left = [(chunk.rows[0].row, 0, 1)];
    chunk.hold.settle(&left, &[], &[], at(0)).await.unwrap();
    assert_eq!(waiting_and_out(store).await, (2, 1));
}

pub(crate) async fn a_row_without_a_channel_ends_as_it_is_written(store: &impl Stages) {
    let request = request("1");
    let nowhere = NewDelivery {
        channel: "".into(),
        endpoint: "".into(),
        suppressed: Some(Suppression::NoAddress),
        ..row(&request.id, "ann")
    };
    planned(store, &request, &[nowhere]).await;
    assert_eq!(waiting_and_out(store).await, (0, 0));
    assert!(store.channels().await.unwrap().is_empty());
}

pub(crate) async fn cancelling_ends_what_waits_and_names_the_channels_of_what_is_out(
    store: &impl Stages,
) {
    let request = request("1");
    let mut people = rows(&request.id, 6);
    people[5].due = at(60_000);
    planned(store, &request, &people).await;
    let out = release(store, 2, at(0)).await;
    tell(store, vec![event(&out[0], 1, 10, sent())]).await;
    let recalled = store.cancel(&request.id, at(20)).await.unwrap();
    assert_eq!((recalled.waiting, recalled.out), (4, 1));
    assert_eq!(recalled.out_by_channel, [(MAIL.into(), request.id)]);
    assert_eq!(waiting_and_out(store).await, (0, 1));
    let again = store.cancel(&request.id, at(30)).await.unwrap();
    assert_eq!((again.waiting, again.out), (0, 1));
    let unknown = NotificationId::from_key("shop", "orders", "unknown");
    assert_eq!(store.cancel(&unknown, at(30)).await.unwrap().waiting, 0);

    let unresolved = super::stages::request("2");
    store
        .insert_notifications(&[], &[Arc::new(unresolved.clone())])
        .await
        .unwrap();
    store.cancel(&unresolved.id, at(30)).await.unwrap();
    assert!(store.unresolved(at(40), 10).await.unwrap().is_empty());
    let step = store
        .resolve_step(&unresolved.id, &Cursor::default(), None, &[], at(40))
        .await
        .unwrap();
    assert!(!step);
}

pub(crate) async fn what_comes_back_of_a_cancelled_notification_ends(store: &impl Stages) {
    let request = request("1");
    planned(store, &request, &rows(&request.id, 1)).await;
    let out = release(store, 10, at(0)).await;
    store.cancel(&request.id, at(10)).await.unwrap();
    let back = returned(&out[0], 1, at(300_000));
    tell(store, vec![event(&out[0], 1, 20, back)]).await;
    assert_eq!(waiting_and_out(store).await, (0, 0));
}

pub(crate) async fn cancelling_a_template_leaves_others_alone(store: &impl Stages) {
    for key in ["1", "2", "3"] {
        let request = request(key);
        planned(store, &request, &rows(&request.id, 2)).await;
    }
    let other = Request {
        template: "receipt".into(),
        ..request("4")
    };
    planned(store, &other, &rows(&other.id, 2)).await;
    release(store, 1, at(0)).await;
    let recalled = store
        .cancel_template("shop", "order-shipped", at(10))
        .await
        .unwrap();
    assert_eq!((recalled.waiting, recalled.out), (5, 1));
    // What is ready may be leaving this moment, so whoever delivers is told of all three.
    let told: BTreeSet<_> = recalled.out_by_channel.into_iter().collect();
    let all = ["1", "2", "3"].map(|key| (MAIL.into(), request(key).id));
    assert_eq!(told, BTreeSet::from(all));
    assert_eq!(waiting_and_out(store).await, (2, 1));
    let elsewhere = store
        .cancel_template("another", "receipt", at(10))
        .await
        .unwrap();
    assert_eq!(elsewhere.waiting, 0);
}

pub(crate) async fn prioritizing_moves_what_waits_and_what_is_still_to_be_resolved(
    store: &impl Stages,
) {
    let request = request("1");
    store
        .insert_notifications(&[], &[Arc::new(request.clone())])
        .await
        .unwrap();
    let people = rows(&request.id, 4);
    let next = Cursor {
        source: 0,
        after: Some((1, String::new())),
    };
    store
        .resolve_step(
            &request.id,
            &Cursor::default(),
            Some(&next),
            &people[..2],
            at(0),
        )
        .await
        .unwrap();
    let out = release(store, 1, at(0)).await;
    let recalled = store
        .prioritize(&request.id, Priority::High, at(1))
        .await
        .unwrap();
    assert_eq!((recalled.waiting, recalled.out), (1, 1));
    assert_eq!(recalled.out_by_channel, [(MAIL.into(), request.id)]);
    let unresolved = store.unresolved(at(1), 10).await.unwrap();
    assert_eq!(unresolved[0].request.priority, Priority::High);
    store
        .resolve_step(&request.id, &next, None, &people[2..], at(1))
        .await
        .unwrap();
    // What was out comes back into the new class too.
    let back = returned(&out[0], 1, at(2));
    tell(store, vec![event(&out[0], 1, 2, back)]).await;
    let chunk = store
        .chunk(MAIL, Priority::High, &Turn::default(), 10)
        .await
        .unwrap();
    assert_eq!(chunk.rows.len(), 4);
}

pub(crate) async fn a_deleted_channels_rows_end(store: &impl Stages) {
    let request = request("1");
    let mut people = rows(&request.id, 4);
    people[3].due = at(60_000);
    planned(store, &request, &people).await;
    release(store, 1, at(0)).await;
    assert_eq!(store.channels().await.unwrap(), [(MAIL.into(), true)]);
    assert_eq!(store.end_channel("shop/other", at(1), 10).await.unwrap(), 0);
    assert_eq!(store.end_channel(MAIL, at(1), 2).await.unwrap(), 2);
    assert_eq!(store.end_channel(MAIL, at(1), 2).await.unwrap(), 1);
    assert_eq!(store.end_channel(MAIL, at(1), 2).await.unwrap(), 0);
    // What is out ends with an event.
    assert_eq!(waiting_and_out(store).await, (0, 1));
    assert_eq!(store.channels().await.unwrap(), [(MAIL.into(), true)]);
    let out = store.overdue(MAIL, Timestamp::MAX, 10).await.unwrap();
    let [out] = &*out else { panic!("{out:?}") };
    assert_eq!((out.round, out.attempt, out.tried), (0, 1, 0));
    let failed = Step::Failed {
        error: failure(),
        delivery: None,
        address_gone: false,
    };
    let failed = Event {
        delivery: out.id,
        notification: out.notification,
        at: at(1),
        round: out.round,
        attempt: out.attempt,
        tried: out.tried,
        priority: out.priority,
        step: failed,
    };
    tell(store, vec![failed]).await;
    assert_eq!(waiting_and_out(store).await, (0, 0));
    assert_eq!(store.channels().await.unwrap(), [(MAIL.into(), false)]);
}

pub(crate) async fn a_channel_has_not_ended_while_a_row_of_it_waits_or_is_out(store: &impl Stages) {
    let request = request("1");
    let mut people = rows(&request.id, 1);
    people[0].due = at(60_000);
    planned(store, &request, &people).await;
    let mail = |unended| [(Arc::from(MAIL), unended)];
    assert_eq!(store.channels().await.unwrap(), mail(true));
    store.ripen(at(60_000), 10).await.unwrap();
    assert_eq!(store.channels().await.unwrap(), mail(true));
    let out = release(store, 1, at(60_000)).await;
    assert_eq!(store.channels().await.unwrap(), mail(true));
    tell(store, vec![event(&out[0], 1, 60_001, sent())]).await;
    assert_eq!(store.channels().await.unwrap(), mail(false));
}

pub(crate) async fn a_backlog_is_counted_by_class(store: &impl Stages) {
    let normal = request("1");
    let mut people = rows(&normal.id, 3);
    people[0].due = at(-5_000);
    people[2].due = at(60_000);
    planned(store, &normal, &people).await;
    let low = Request {
        priority: Priority::Low,
        ..request("2")
    };
    planned(store, &low, &rows(&low.id, 1)).await;
    let backlog = store.backlog(MAIL).await.unwrap();
    let normal = backlog[Priority::Normal.index()];
    assert_eq!((normal.due, normal.scheduled), (2, 1));
    assert_eq!(normal.oldest, Some(at(-5_000)));
    assert_eq!(backlog[Priority::Low.index()].due, 1);
    assert_eq!(backlog[Priority::Critical.index()].oldest, None);
    let other = store.backlog("shop/other").await.unwrap();
    assert!(other.iter().all(|class| class.due == 0));
}

pub(crate) async fn a_returned_delivery_waits_whole_with_its_next_attempt(store: &impl Stages) {
    let request = request("1");
    planned(store, &request, &rows(&request.id, 1)).await;
    let out = release(store, 10, at(0)).await;
    let back = returned(&out[0], 1, at(300_000));
    tell(store, vec![event(&out[0], 1, 10, back)]).await;
    assert_eq!(waiting_and_out(store).await, (1, 0));
    assert_eq!(store.next_due().await.unwrap(), Some(at(300_000)));
    store.ripen(at(300_000), 10).await.unwrap();
    let again = release(store, 10, at(300_000)).await;
    assert_eq!(
        (again[0].round, again[0].attempt, again[0].tried),
        (0, 2, 1)
    );
    assert_eq!(again[0].delivery.as_deref(), Some(&delivery(&out[0], 2)));
    tell(store, vec![event(&out[0], 2, 300_010, sent())]).await;
    assert_eq!(waiting_and_out(store).await, (0, 0));
}

pub(crate) async fn a_repeated_return_does_not_bring_back_what_was_released_again(
    store: &impl Stages,
) {
    let request = request("1");
    planned(store, &request, &rows(&request.id, 1)).await;
    let out = release(store, 10, at(0)).await;
    let back = event(&out[0], 1, 10, returned(&out[0], 1, at(10)));
    tell(store, vec![back.clone(), back.clone()]).await;
    assert_eq!(release(store, 10, at(20)).await.len(), 1);
    tell(store, vec![back]).await;
    assert_eq!(waiting_and_out(store).await, (0, 1));
}

pub(crate) async fn an_end_is_not_undone_by_a_late_retry(store: &impl Stages) {
    let request = request("1");
    planned(store, &request, &rows(&request.id, 1)).await;
    let out = release(store, 10, at(0)).await;
    let relayed = Step::Retrying {
        error: failure(),
        due: at(5_000),
    };
    tell(store, vec![event(&out[0], 3, 30, sent())]).await;
    tell(store, vec![event(&out[0], 1, 10, relayed)]).await;
    let back = returned(&out[0], 2, at(60_000));
    tell(store, vec![event(&out[0], 2, 20, back)]).await;
    assert_eq!(waiting_and_out(store).await, (0, 0));
}

pub(crate) async fn sent_is_beyond_a_failure_of_a_later_attempt(store: &impl Stages) {
    let request = request("1");
    planned(store, &request, &rows(&request.id, 1)).await;
    let out = release(store, 10, at(0)).await;
    let failed = Step::Failed {
        error: failure(),
        delivery: None,
        address_gone: false,
    };
    tell(store, vec![event(&out[0], 2, 20, failed)]).await;
    tell(store, vec![event(&out[0], 1, 10, sent())]).await;
    assert_eq!(waiting_and_out(store).await, (0, 0));
}

fn direct(request: &Request, people: &[NewDelivery]) -> Events {
    Events {
        direct: vec![Direct {
            request: request.clone(),
            definition: STANDARD.encode(b"packed").into(),
            deliveries: people
                .iter()
                .map(|row| DirectDelivery {
                    id: row.id,
                    channel: Arc::clone(&row.channel),
                    endpoint: Arc::clone(&row.endpoint),
                    locale: Arc::clone(&row.locale),
                })
                .collect(),
        }],
        ..Events::default()
    }
}

fn outcome(request: &Request, row: &NewDelivery, step: Step) -> Event {
    Event {
        delivery: row.id,
        notification: request.id,
        at: at(10),
        round: 0,
        attempt: 1,
        tried: 1,
        priority: Priority::Normal,
        step,
    }
}

pub(crate) async fn a_direct_notification_is_written_down_with_what_is_out(store: &impl Stages) {
    let request = request("1");
    let people = rows(&request.id, 2);
    let events = direct(&request, &people);
    for _ in 0..2 {
        store
            .record(MAIL, std::slice::from_ref(&events))
            .await
            .unwrap();
        assert_eq!(waiting_and_out(store).await, (0, 2));
    }
    assert_eq!(store.requests(&[request.id]).await.unwrap().len(), 1);
    assert_eq!(
        store.definition("sha256:1").await.unwrap(),
        Some(Bytes::from_static(b"packed"))
    );
    assert!(store.unresolved(at(0), 10).await.unwrap().is_empty());
    let again = store
        .insert_notifications(&[], &[Arc::new(request.clone())])
        .await
        .unwrap();
    assert_eq!(again, [Planned::Repeat]);
    let done = people
        .iter()
        .map(|row| outcome(&request, row, sent()))
        .collect();
    tell(store, done).await;
    assert_eq!(waiting_and_out(store).await, (0, 0));
}

pub(crate) async fn an_outcome_that_comes_before_its_direct_is_not_lost(store: &impl Stages) {
    let request = request("1");
    let people = rows(&request.id, 2);
    let early = outcome(&request, &people[0], sent());
    tell(store, vec![early.clone()]).await;
    tell(store, vec![early]).await;
    assert_eq!(waiting_and_out(store).await, (0, 0));
    store
        .record(MAIL, &[direct(&request, &people)])
        .await
        .unwrap();
    assert_eq!(waiting_and_out(store).await, (0, 1));
}

pub(crate) async fn an_outcome_that_comes_before_its_row_is_not_lost(store: &impl Stages) {
    let request = request("1");
    let people = rows(&request.id, 2);
    tell(store, vec![outcome(&request, &people[0], sent())]).await;
    planned(store, &request, &people).await;
    assert_eq!(waiting_and_out(store).await, (1, 0));
}

pub(crate) async fn what_is_overdue_is_released_again_with_the_same_round_and_attempt(
    store: &impl Stages,
) {
    let request = request("1");
    planned(store, &request, &rows(&request.id, 3)).await;
    let out = release(store, 2, at(0)).await;
    let relayed = Step::Retrying {
        error: failure(),
        due: at(5_000),
    };
    tell(store, vec![event(&out[0], 1, 10, relayed)]).await;
    let overdue =
        async |channel, before: i64| store.overdue(channel, at(before), 10).await.unwrap();
    assert!(overdue("shop/other", 60_000).await.is_empty());
    assert!(overdue(MAIL, 0).await.is_empty());
    let found = overdue(MAIL, 60_000).await;
    assert_eq!(found.len(), 2);
    let relayed = found.iter().find(|o| o.id == out[0].id).unwrap();
    assert_eq!((relayed.since, &*relayed.channel), (at(10), MAIL));
    assert_eq!(relayed.notification, request.id);
    assert_eq!(store.redrive(&found, at(60_000)).await.unwrap(), 2);
    assert_eq!(store.redrive(&found, at(60_000)).await.unwrap(), 0);
    assert_eq!(waiting_and_out(store).await, (3, 0));
    let again = release(store, 10, at(60_000)).await;
    let attempt = |id: DeliveryId| {
        let row = again.iter().find(|waiting| waiting.id == id).unwrap();
        (row.round, row.attempt, row.tried)
    };
    assert_eq!(attempt(out[0].id), (0, 2, 1));
    assert_eq!(attempt(out[1].id), (0, 1, 0));
}

pub(crate) async fn what_was_heard_of_since_is_not_redriven(store: &impl Stages) {
    let request = request("1");
    planned(store, &request, &rows(&request.id, 1)).await;
    let out = release(store, 10, at(0)).await;
    let found = store.overdue(MAIL, at(60_000), 10).await.unwrap();
    assert_eq!(found.len(), 1);
    let relayed = Step::Retrying {
        error: failure(),
        due: at(65_000),
    };
    tell(store, vec![event(&out[0], 1, 60_000, relayed)]).await;
    assert_eq!(store.redrive(&found, at(60_001)).await.unwrap(), 0);
    assert_eq!(waiting_and_out(store).await, (0, 1));
}

pub(crate) async fn what_was_called_back_is_not_redriven(store: &impl Stages) {
    let request = request("1");
    planned(store, &request, &rows(&request.id, 1)).await;
    release(store, 10, at(0)).await;
    store.cancel(&request.id, at(10)).await.unwrap();
    let found = store.overdue(MAIL, at(60_000), 10).await.unwrap();
    assert_eq!(store.redrive(&found, at(60_000)).await.unwrap(), 0);
    assert_eq!(waiting_and_out(store).await, (0, 0));
}

pub(crate) async fn what_is_older_than_retention_is_deleted(store: &impl Stages) {
    // A store may keep what has ended until the day of its acceptance is over.
    const DAY: i64 = 86_400_000;
    let old = request("1");
    let fresh = request("2");
    let open = request("3");
    for request in [&old, &fresh, &open] {
        planned(store, request, &rows(&request.id, 2)).await;
    }
    for (request, milliseconds) in [(&old, 10), (&fresh, 3 * DAY)] {
        let done = rows(&request.id, 2)
            .iter()
            .map(|row| Event {
                at: at(milliseconds),
                ..outcome(request, row, sent())
            })
            .collect();
        tell(store, done).await;
    }
    assert_eq!(store.expire(at(2 * DAY), 10).await.unwrap(), 1);
    assert_eq!(store.expire(at(2 * DAY), 10).await.unwrap(), 0);
    let left = store.requests(&[old.id, fresh.id, open.id]).await.unwrap();
    assert_eq!(
        left.iter().map(|request| request.id).collect::<Vec<_>>(),
        [fresh.id, open.id]
    );
    assert_eq!(waiting_and_out(store).await, (2, 0));
    // The same key is a new notification again.
    planned(store, &old, &rows(&old.id, 2)).await;
    assert_eq!(waiting_and_out(store).await, (4, 0));
}

pub(crate) async fn waiting_and_out_are_counted(store: &impl Stages) {
    let request = request("1");
    let mut people = rows(&request.id, 5);
    people[4].due = at(60_000);
    planned(store, &request, &people).await;
    release(store, 3, at(0)).await;
    assert_eq!(waiting_and_out(store).await, (2, 3));
}
