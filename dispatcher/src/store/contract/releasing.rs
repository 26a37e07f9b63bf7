//! What every store must do for what waits.

use std::collections::BTreeSet;
use std::sync::Arc;

use herald_crds::Priority;
use jiff::Timestamp;

use super::stages::{
    MAIL, Stages, at, event, failure, normal, planned, release, request, rest, returned, row, rows,
    sent, settled, tell, waiting_and_out,
};
use crate::id::NotificationId;
use crate::message::{Event, Request, Step, Suppression};
use crate::store::{Chunk, Cursor, NewDelivery, Turn};

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

pub(crate) async fn what_was_passed_over_comes_once_the_rest_is_through(store: &impl Stages) {
    let request = request("large");
    let people = rows(&request.id, 60);
    planned(store, &request, &people).await;
    let class = Priority::Normal;
    let first = store
        .chunk(MAIL, class, &Turn::default(), 25)
        .await
        .unwrap();
    // It goes on as if these had left.
    let mut turn = first.next;
    drop(first.hold);
    let mut came = BTreeSet::new();
    // Some may be held for a moment yet.
    for _ in 0..1_000 {
        let chunk = store.chunk(MAIL, class, &turn, 25).await.unwrap();
        let (chunk, next) = settled(chunk, at(0)).await;
        turn = next;
        for row in chunk {
            assert!(came.insert(row.id));
        }
        if came.len() == people.len() {
            return;
        }
    }
    panic!("only {} came", came.len());
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
    let patience = std::time::Duration::from_secs(60);
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
