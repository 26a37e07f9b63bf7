//! What every store must do for planning, waiting and recording, whatever its database: one test for each promise, in a
//! file for each stage (`planning`, `releasing`, `recording`). Here is what they share.
//!
//! [`store_contract!`] makes the tests for one database, given a function that opens an empty store.

use std::collections::BTreeMap;
use std::sync::Arc;

use herald_crds::Priority;
use herald_crds::render::Rendered;
use jiff::Timestamp;
use serde_json::value::RawValue;

use crate::id::{DeliveryId, NotificationId};
use crate::message::{Delivery, Event, Events, Failure, Request, Step, To};
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
        $crate::store::contract::stages::store_contract!(@tests $open, planning:
            a_notification_is_written_once_and_another_body_under_its_id_is_a_conflict,
            repeats_within_one_call_are_told_from_their_first,
            definitions_are_kept_by_hash,
            resolving_goes_step_by_step_and_a_repeated_step_does_nothing,
            steps_of_several_notifications_are_taken_together_and_each_by_itself,
            a_person_who_is_meant_twice_gets_one_row,
            a_notification_for_later_is_not_resolved_before_its_time,
            the_most_urgent_class_is_resolved_first_and_then_the_one_with_the_fewest_rows,
            a_held_notification_waits_for_its_sender,
            what_is_put_off_is_looked_at_again_when_its_time_comes,
            a_claim_belongs_to_whoever_came_first_until_its_window_is_over,
            nobody_is_suppressed_until_somebody_is,
            requests_come_back_as_they_were,
        );
        $crate::store::contract::stages::store_contract!(@tests $open, releasing:
            rows_that_are_due_are_ready_and_others_ripen,
            a_chunk_is_the_notification_whose_turn_it_is_by_due_time,
            what_was_passed_over_comes_once_the_rest_is_through,
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
        );
        $crate::store::contract::stages::store_contract!(@tests $open, recording:
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
    (@tests $open:path, $stage:ident: $($name:ident),* $(,)?) => {
        $(
            #[tokio::test]
            async fn $name() {
                let opened = $open().await;
                $crate::store::contract::$stage::$name(&opened.store).await;
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
pub(super) async fn rest(store: &impl Stages, limit: usize) {
    let Chunk { rows, hold, .. } = normal(store, limit).await;
    let resting: Vec<i64> = rows.iter().map(|row| row.row).collect();
    hold.settle(&[], &resting, &[], at(0)).await.unwrap();
}

/// A chunk of the usual class, from the beginning.
pub(super) async fn normal(store: &impl Stages, limit: usize) -> Chunk {
    store
        .chunk(MAIL, Priority::Normal, &Turn::default(), limit)
        .await
        .unwrap()
}

pub(super) async fn waiting_and_out(store: &impl Stages) -> (u64, u64) {
    store.unended().await.unwrap()
}
