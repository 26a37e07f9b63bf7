//! What every store must be able to do about dead letters.

use std::collections::BTreeMap;

use herald_crds::Priority;

use super::history::{SHOP, Told, counts, failed, first, out, steps};
use super::stages::{MAIL, at, delivery, event, release, request, sent, settled, tell};
use crate::id::DeliveryId;
use crate::message::{Request, Suppression};
use crate::store::{
    DeadLetterFilter, PeopleStore, Refusal, Replayed, State, SuppressedAddress, Turn,
};

pub(crate) async fn dead_letters_are_found_by_channel_time_reason_and_id(store: &impl Told) {
    let waiting = out(store, &request("1"), 4).await;
    let mut outcomes: Vec<_> = (0..3)
        .map(|n| event(&waiting[n], 1, 20 + n as i64, failed(&waiting[n], 1, true)))
        .collect();
    outcomes.push(event(&waiting[3], 1, 23, sent()));
    assert!(!store.has_dead_letters(MAIL).await.unwrap());
    tell(store, outcomes).await;
    assert!(store.has_dead_letters(MAIL).await.unwrap());
    assert!(!store.has_dead_letters("shop/none").await.unwrap());
    let ids: Vec<DeliveryId> = waiting.iter().map(|w| w.id).collect();
    let filter = DeadLetterFilter::default;
    let some = |text: &str| Some(text.to_owned());
    for (filter, expected) in [
        (filter(), vec![2, 1, 0]),
        (
            DeadLetterFilter {
                channel: some(MAIL),
                ..filter()
            },
            vec![2, 1, 0],
        ),
        (
            DeadLetterFilter {
                channel: some("shop/none"),
                ..filter()
            },
            vec![],
        ),
        (
            DeadLetterFilter {
                reason: some("smtp-451"),
                ..filter()
            },
            vec![2, 1, 0],
        ),
        (
            DeadLetterFilter {
                reason: some("smtp-550"),
                ..filter()
            },
            vec![],
        ),
        (
            DeadLetterFilter {
                from: Some(at(21)),
                ..filter()
            },
            vec![2, 1],
        ),
        (
            DeadLetterFilter {
                until: Some(at(21)),
                ..filter()
            },
            vec![0],
        ),
        (
            DeadLetterFilter {
                ids: vec![ids[1], ids[3]],
                ..filter()
            },
            vec![1],
        ),
    ] {
        let (mut found, mut paging) = (Vec::new(), first(2));
        loop {
            let page = store.dead_letters(SHOP, &filter, &paging).await.unwrap();
            found.extend(page.items.into_iter().map(|d| d.id));
            paging.cursor = page.next;
            if paging.cursor.is_none() {
                break;
            }
        }
        let expected: Vec<_> = expected.into_iter().map(|n| ids[n]).collect();
        assert_eq!(found, expected, "{filter:?}");
    }
}

pub(crate) async fn a_replayed_dead_letter_is_ready_in_its_next_round(store: &impl Told) {
    let request = request("1");
    let waiting = out(store, &request, 2).await;
    let outcomes = (0..2)
        .map(|n| event(&waiting[n], 3, 20 + n as i64, failed(&waiting[n], 3, true)))
        .collect();
    tell(store, outcomes).await;
    let everything = DeadLetterFilter::default();
    let replayed = store.replay(SHOP, &everything, 1, at(100)).await;
    assert_eq!(replayed.unwrap().count, 1, "no more than asked for");
    let expected = [(State::Failed, 1), (State::Queued, 1)];
    assert_eq!(counts(store, &request.id).await, BTreeMap::from(expected));
    let record = store
        .notification(SHOP, &request.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(record.ended_at, None, "it goes on");

    let chunk = store
        .chunk(MAIL, Priority::Normal, &Turn::default(), 10)
        .await
        .unwrap();
    let [again] = chunk.rows.as_slice() else {
        panic!("{:?}", chunk.rows)
    };
    assert_eq!(again.id, waiting[0].id, "the oldest first");
    assert_eq!((again.round, again.attempt, again.tried), (1, 1, 0));
    assert_eq!(again.due, at(100));
    let carried = again.delivery.as_deref().unwrap();
    assert_eq!((carried.round, carried.attempt, carried.tried), (1, 1, 0));
    assert_eq!(carried.ready_at, at(100));
    assert_eq!(carried.content, delivery(&waiting[0], 3).content);

    let (again, _) = settled(chunk, at(110)).await;
    tell(store, vec![event(&again[0], 1, 120, sent())]).await;
    let trail = store.trail(SHOP, &waiting[0].id, &first(20)).await.unwrap();
    let expected = [
        ("accepted", 0, 0),
        ("planned", 0, 0),
        ("released", 0, 1),
        ("failed", 0, 3),
        ("replayed", 1, 1),
        ("released", 1, 1),
        ("sent", 1, 1),
    ];
    assert_eq!(steps(&trail), expected);
    tell(
        store,
        vec![event(&waiting[0], 3, 20, failed(&waiting[0], 3, true))],
    )
    .await;
    let state = store
        .delivery(SHOP, &waiting[0].id)
        .await
        .unwrap()
        .unwrap()
        .state;
    assert_eq!(
        state,
        State::Sent,
        "a repeat of the first round changes nothing"
    );
}

pub(crate) async fn a_replayed_dead_letter_without_its_delivery_is_rendered_again(
    store: &impl Told,
) {
    let waiting = out(store, &request("1"), 1).await;
    tell(
        store,
        vec![event(&waiting[0], 1, 20, failed(&waiting[0], 1, false))],
    )
    .await;
    let everything = DeadLetterFilter::default();
    assert_eq!(
        store
            .replay(SHOP, &everything, 10, at(30))
            .await
            .unwrap()
            .count,
        1
    );
    assert_eq!(
        store
            .replay(SHOP, &everything, 10, at(31))
            .await
            .unwrap()
            .count,
        0
    );
    let again = release(store, 10, at(40)).await;
    assert_eq!((again[0].round, again[0].attempt), (1, 1));
    assert!(again[0].delivery.is_none());
}

pub(crate) async fn what_was_called_back_is_not_replayed(store: &impl Told) {
    let request = request("1");
    let waiting = out(store, &request, 2).await;
    tell(
        store,
        vec![event(&waiting[0], 1, 20, failed(&waiting[0], 1, true))],
    )
    .await;
    store.cancel(&request.id, at(30)).await.unwrap();
    let everything = DeadLetterFilter::default();
    let expected = Replayed {
        count: 0,
        refused: vec![(waiting[0].id, Refusal::CalledBack)],
    };
    assert_eq!(
        store.replay(SHOP, &everything, 10, at(40)).await.unwrap(),
        expected
    );
    assert_eq!(
        store.discard(SHOP, &everything, 10, at(40)).await.unwrap(),
        1
    );
}

pub(crate) async fn what_was_blanked_is_not_replayed_and_stands_in_nobodys_way(store: &impl Told) {
    let sensitive = Request {
        sensitive: true,
        ..request("1")
    };
    let secret = out(store, &sensitive, 2).await;
    tell(
        store,
        vec![event(&secret[0], 1, 20, failed(&secret[0], 1, false))],
    )
    .await;
    let everything = DeadLetterFilter::default();
    let replayed = store.replay(SHOP, &everything, 10, at(30)).await.unwrap();
    let goes_on = Replayed {
        count: 1,
        refused: Vec::new(),
    };
    assert_eq!(replayed, goes_on, "as long as something of it is under way");

    let again = release(store, 10, at(40)).await;
    let outcomes = vec![
        event(&again[0], 1, 50, failed(&again[0], 1, false)),
        event(&secret[1], 1, 51, sent()),
    ];
    tell(store, outcomes).await;
    let plain = out(store, &request("2"), 1).await;
    tell(
        store,
        vec![event(&plain[0], 1, 60, failed(&plain[0], 1, false))],
    )
    .await;
    let replayed = store.replay(SHOP, &everything, 1, at(70)).await.unwrap();
    let expected = Replayed {
        count: 1,
        refused: vec![(secret[0].id, Refusal::Blanked)],
    };
    assert_eq!(replayed, expected);
    let by_id = DeadLetterFilter {
        ids: vec![secret[0].id],
        ..DeadLetterFilter::default()
    };
    let replayed = store.replay(SHOP, &by_id, 10, at(80)).await.unwrap();
    assert_eq!((replayed.count, replayed.refused.len()), (0, 1));
    let dead = store.dead_letters(SHOP, &everything, &first(10)).await;
    assert_eq!(dead.unwrap().items.len(), 1, "it stays one");
}

pub(crate) async fn what_goes_to_a_suppressed_address_is_not_replayed_unless_it_is_mandatory(
    store: &(impl Told + PeopleStore),
) {
    let request = request("1");
    let waiting = out(store, &request, 1).await;
    tell(
        store,
        vec![event(&waiting[0], 1, 20, failed(&waiting[0], 1, true))],
    )
    .await;
    let listed = SuppressedAddress {
        medium: "email".to_owned(),
        address: waiting[0].endpoint.to_string(),
        reason: "address-gone".to_owned(),
        since: at(20),
    };
    store.suppress(SHOP, &listed).await.unwrap();
    let everything = DeadLetterFilter::default();
    let expected = Replayed {
        count: 0,
        refused: vec![(waiting[0].id, Refusal::Suppressed(Suppression::AddressGone))],
    };
    let replayed = store.replay(SHOP, &everything, 10, at(30)).await.unwrap();
    assert_eq!(replayed, expected);
    let mandatory = DeadLetterFilter {
        mandatory: vec![request.template.to_string()],
        ..DeadLetterFilter::default()
    };
    let replayed = store.replay(SHOP, &mandatory, 10, at(40)).await.unwrap();
    assert_eq!((replayed.count, replayed.refused), (1, Vec::new()));
}

pub(crate) async fn a_discarded_dead_letter_stays_failed_and_is_none(store: &impl Told) {
    let request = request("1");
    let waiting = out(store, &request, 1).await;
    tell(
        store,
        vec![event(&waiting[0], 1, 20, failed(&waiting[0], 1, true))],
    )
    .await;
    let everything = DeadLetterFilter::default();
    assert_eq!(
        store.discard(SHOP, &everything, 10, at(30)).await.unwrap(),
        1
    );
    assert_eq!(
        store.discard(SHOP, &everything, 10, at(31)).await.unwrap(),
        0
    );
    assert_eq!(
        store.replay(SHOP, &everything, 10, at(32)).await.unwrap(),
        Replayed::default()
    );
    let found = store.dead_letters(SHOP, &everything, &first(10)).await;
    assert!(found.unwrap().items.is_empty());
    let expected = BTreeMap::from([(State::Failed, 1)]);
    assert_eq!(counts(store, &request.id).await, expected);
    let trail = store.trail(SHOP, &waiting[0].id, &first(10)).await.unwrap();
    assert_eq!(steps(&trail)[3..], [("failed", 0, 1), ("discarded", 0, 1)]);
}
