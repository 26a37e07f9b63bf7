//! What every store must do for recording.

use std::sync::Arc;

use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use herald_crds::Priority;

use super::stages::{
    MAIL, Stages, at, delivery, event, failure, planned, release, request, returned, rows, sent,
    tell, waiting_and_out,
};
use crate::id::DeliveryId;
use crate::message::{Direct, DirectDelivery, Event, Events, Request, Step};
use crate::store::{NewDelivery, Planned};

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
