//! What every store must do for planning.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use herald_crds::Priority;

use super::stages::{Stages, at, request, row, rows, waiting_and_out};
use crate::id::DeliveryId;
use crate::message::{Request, To};
use crate::store::{Cursor, NewDelivery, Planned, ResolveStep};

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

pub(crate) async fn what_is_put_off_is_looked_at_again_when_its_time_comes(store: &impl Stages) {
    let (one, other) = (request("1"), request("2"));
    let both = [Arc::new(one.clone()), Arc::new(other.clone())];
    store.insert_notifications(&[], &both).await.unwrap();
    store.postpone(&one.id, at(500)).await.unwrap();
    let unresolved = async |milliseconds: i64| {
        let unresolved = store.unresolved(at(milliseconds), 10).await.unwrap();
        let ids = unresolved.into_iter().map(|one| one.request.id);
        ids.collect::<Vec<_>>()
    };
    assert_eq!(unresolved(499).await, [other.id]);
    assert_eq!(store.next_unresolved().await.unwrap(), Some(at(500)));
    let mut all = unresolved(500).await;
    all.sort();
    let mut expected = [one.id, other.id];
    expected.sort();
    assert_eq!(all, expected);
    store.hold(&one.id, 9, 5).await.unwrap();
    store.postpone(&one.id, at(0)).await.unwrap();
    assert_eq!(unresolved(500).await, [other.id], "it is held");
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
