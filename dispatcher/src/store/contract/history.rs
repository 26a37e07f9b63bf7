//! What every store must be able to tell of what was: one test for each promise.
//!
//! [`history_contract!`] makes the tests for one database, given a function that opens an empty store.

use std::collections::{BTreeMap, HashSet};

use bytes::Bytes;
use herald_crds::Priority;
use serde_json::json;

use super::stages::{
    MAIL, Stages, at, delivery, event, failure, planned, release, request, returned, row, rows,
    sent, tell,
};
use crate::id::{DeliveryId, NotificationId};
use crate::message::{Request, Step, Suppression};
use crate::store::{
    DeadLetterFilter, HistoryError, HistoryStore, NewDelivery, NotificationFilter, Page, Paging,
    Replayed, State, TrailEntry, Waiting,
};

/// What the contract is about, and what it needs to make something happen.
pub(crate) trait Told: Stages + HistoryStore {}

impl<T: Stages + HistoryStore> Told for T {}

/// Makes the contract's tests for one database.
macro_rules! history_contract {
    ($open:path) => {
        $crate::store::contract::history::history_contract!(@tests $open, history:
            a_notification_that_cannot_be_resolved_ends_with_the_reason,
            a_notification_is_told_with_its_counts_until_it_has_ended,
            another_namespace_is_told_nothing,
            notifications_are_found_by_whatever_they_have,
            notifications_come_newest_first_page_by_page,
            deliveries_of_a_notification_come_page_by_page_and_by_state,
            the_trail_of_what_was_sent_at_once_is_four_steps,
            the_trail_tells_every_retry_and_the_end_once,
            the_trail_tells_what_happened_to_the_notification_before_the_end,
            a_person_is_told_everything_newest_first,
            definitions_in_force_are_told_newest_first,
        );
        $crate::store::contract::history::history_contract!(@tests $open, dead:
            dead_letters_are_found_by_channel_time_reason_and_id,
            a_replayed_dead_letter_is_ready_in_its_next_round,
            a_replayed_dead_letter_without_its_delivery_is_rendered_again,
            what_goes_to_a_suppressed_address_is_not_replayed_unless_it_is_mandatory,
            what_was_called_back_is_not_replayed,
            what_was_blanked_is_not_replayed_and_stands_in_nobodys_way,
            a_discarded_dead_letter_stays_failed_and_is_none,
        );
    };
    (@tests $open:path, $module:ident: $($name:ident),* $(,)?) => {
        $(
            #[tokio::test]
            async fn $name() {
                let opened = $open().await;
                $crate::store::contract::$module::$name(&opened.store).await;
            }
        )*
    };
}
pub(crate) use history_contract;

pub(super) const SHOP: &str = "shop";

pub(super) fn first(limit: usize) -> Paging {
    Paging {
        limit,
        cursor: None,
    }
}

pub(super) fn steps(trail: &Page<TrailEntry>) -> Vec<(&str, u16, u16)> {
    trail
        .items
        .iter()
        .map(|entry| (entry.step.as_str(), entry.round, entry.attempt))
        .collect()
}

pub(super) fn failed(waiting: &Waiting, attempt: u16, whole: bool) -> Step {
    Step::Failed {
        error: failure(),
        address_gone: false,
        delivery: whole.then(|| Box::new(delivery(waiting, attempt))),
    }
}

/// A notification to so many people, released at 10 ms.
pub(super) async fn out(store: &impl Told, request: &Request, people: usize) -> Vec<Waiting> {
    planned(store, request, &rows(&request.id, people)).await;
    let waiting = release(store, people, at(10)).await;
    assert_eq!(waiting.len(), people);
    waiting
}

pub(super) async fn counts(store: &impl Told, id: &NotificationId) -> BTreeMap<State, u64> {
    let record = store.notification(SHOP, id).await.unwrap().unwrap();
    record.counts
}

pub(crate) async fn a_notification_is_told_with_its_counts_until_it_has_ended(store: &impl Told) {
    let request = Request {
        metadata: BTreeMap::from([("order".to_owned(), "1".to_owned())]),
        ..request("1")
    };
    let waiting = out(store, &request, 3).await;
    let record = store
        .notification(SHOP, &request.id)
        .await
        .unwrap()
        .unwrap();
    assert_eq!(record.request.metadata, request.metadata);
    assert_eq!(record.request.body, request.body);
    assert_eq!(record.priority, Priority::Normal);
    assert!(record.resolved && !record.ended());
    assert_eq!(record.counts, BTreeMap::from([(State::Sending, 3)]));
    assert_eq!(record.ended_at, None);

    tell(
        store,
        vec![
            event(&waiting[0], 1, 20, sent()),
            event(&waiting[1], 1, 30, failed(&waiting[1], 1, true)),
            event(&waiting[2], 1, 25, Step::Expired),
        ],
    )
    .await;
    let record = store
        .notification(SHOP, &request.id)
        .await
        .unwrap()
        .unwrap();
    let expected = [State::Sent, State::Failed, State::Expired].map(|state| (state, 1));
    assert_eq!(record.counts, BTreeMap::from(expected));
    assert!(record.ended());
    assert_eq!(record.ended_at, Some(at(30)));
}

pub(crate) async fn another_namespace_is_told_nothing(store: &impl Told) {
    const OTHER: &str = "other";
    let request = request("1");
    let waiting = out(store, &request, 1).await;
    let id = waiting[0].id;
    tell(
        store,
        vec![event(&waiting[0], 1, 20, failed(&waiting[0], 1, true))],
    )
    .await;
    let page = first(10);
    let everything = NotificationFilter::default();
    let dead = DeadLetterFilter::default();
    assert!(
        store
            .notification(OTHER, &request.id)
            .await
            .unwrap()
            .is_none()
    );
    assert!(store.delivery(OTHER, &id).await.unwrap().is_none());
    let found = store
        .notifications(OTHER, &everything, &page)
        .await
        .unwrap();
    assert!(found.items.is_empty());
    let found = store
        .deliveries(OTHER, &request.id, None, &page)
        .await
        .unwrap();
    assert!(found.items.is_empty());
    assert!(
        store
            .trail(OTHER, &id, &page)
            .await
            .unwrap()
            .items
            .is_empty()
    );
    let found = store
        .recipient_deliveries(OTHER, "person-0", &page)
        .await
        .unwrap();
    assert!(found.items.is_empty());
    assert!(
        store
            .dead_letters(OTHER, &dead, &page)
            .await
            .unwrap()
            .items
            .is_empty()
    );
    let replayed = store.replay(OTHER, &dead, 10, at(40)).await.unwrap();
    assert_eq!(replayed, Replayed::default());
    assert_eq!(store.discard(OTHER, &dead, 10, at(40)).await.unwrap(), 0);
}

pub(crate) async fn notifications_are_found_by_whatever_they_have(store: &impl Told) {
    let metadata = |value: &str| BTreeMap::from([("order".to_owned(), value.to_owned())]);
    let one = Request {
        metadata: metadata("1"),
        accepted_at: at(1),
        ..request("one")
    };
    let two = Request {
        metadata: metadata("2"),
        accepted_at: at(2),
        template: "digest".into(),
        sender: "billing".into(),
        priority: Priority::Low,
        ..request("two")
    };
    planned(store, &one, &[row(&one.id, "ann")]).await;
    let by_webhook = NewDelivery {
        channel: "shop/hooks".into(),
        ..row(&two.id, "bob")
    };
    planned(store, &two, &[by_webhook]).await;
    release(store, 10, at(10)).await;

    let filter = NotificationFilter::default;
    let some = |text: &str| Some(text.to_owned());
    let pairs = |value: &str| vec![("order".to_owned(), value.to_owned())];
    let cases = [
        (filter(), vec!["two", "one"]),
        (
            NotificationFilter {
                template: some("digest"),
                ..filter()
            },
            vec!["two"],
        ),
        (
            NotificationFilter {
                template: some("other"),
                ..filter()
            },
            vec![],
        ),
        (
            NotificationFilter {
                recipient: some("ann"),
                ..filter()
            },
            vec!["one"],
        ),
        (
            NotificationFilter {
                recipient: some("ann"),
                template: some("digest"),
                ..filter()
            },
            vec![],
        ),
        (
            NotificationFilter {
                sender: some("billing"),
                ..filter()
            },
            vec!["two"],
        ),
        (
            NotificationFilter {
                channel: some(MAIL),
                ..filter()
            },
            vec!["one"],
        ),
        (
            NotificationFilter {
                channel: some("shop/hooks"),
                ..filter()
            },
            vec!["two"],
        ),
        (
            NotificationFilter {
                channel: some("shop/none"),
                ..filter()
            },
            vec![],
        ),
        (
            NotificationFilter {
                state: Some(State::Sending),
                ..filter()
            },
            vec!["one"],
        ),
        (
            NotificationFilter {
                state: Some(State::Queued),
                ..filter()
            },
            vec!["two"],
        ),
        (
            NotificationFilter {
                state: Some(State::Sent),
                ..filter()
            },
            vec![],
        ),
        (
            NotificationFilter {
                priority: Some(Priority::Low),
                ..filter()
            },
            vec!["two"],
        ),
        (
            NotificationFilter {
                metadata: pairs("1"),
                ..filter()
            },
            vec!["one"],
        ),
        (
            NotificationFilter {
                metadata: pairs("3"),
                ..filter()
            },
            vec![],
        ),
        (
            NotificationFilter {
                from: Some(at(2)),
                ..filter()
            },
            vec!["two"],
        ),
        (
            NotificationFilter {
                until: Some(at(2)),
                ..filter()
            },
            vec!["one"],
        ),
    ];
    for (filter, expected) in cases {
        let page = store
            .notifications(SHOP, &filter, &first(10))
            .await
            .unwrap();
        let found: Vec<_> = page.items.iter().map(|n| n.request.id).collect();
        let expected: Vec<_> = expected.into_iter().map(|key| request(key).id).collect();
        assert_eq!(found, expected, "{filter:?}");
    }
}

pub(crate) async fn notifications_come_newest_first_page_by_page(store: &impl Told) {
    let mut expected = Vec::new();
    for n in 0..9 {
        let request = Request {
            // Three of each moment, so that pages end between equals.
            accepted_at: at(n / 3),
            ..request(&n.to_string())
        };
        planned(store, &request, &[]).await;
        expected.push(request.id);
    }
    expected.reverse();
    for limit in [1, 2, 4, 9, 1000] {
        let (mut found, mut paging) = (Vec::new(), first(limit));
        loop {
            let filter = NotificationFilter::default();
            let page = store.notifications(SHOP, &filter, &paging).await.unwrap();
            assert!(page.items.len() <= limit);
            found.extend(page.items.iter().map(|n| n.request.id));
            paging.cursor = page.next;
            if paging.cursor.is_none() {
                break;
            }
        }
        assert_eq!(found, expected, "limit {limit}");
    }
    let wrong = Paging {
        limit: 1,
        cursor: Some("W10x".to_owned()),
    };
    let answer = store
        .notifications(SHOP, &NotificationFilter::default(), &wrong)
        .await;
    assert!(matches!(answer, Err(HistoryError::BadCursor)));
}

pub(crate) async fn deliveries_of_a_notification_come_page_by_page_and_by_state(store: &impl Told) {
    let request = request("1");
    let waiting = out(store, &request, 20).await;
    planned(store, &super::stages::request("2"), &[]).await;
    tell(store, vec![event(&waiting[3], 1, 20, sent())]).await;
    let (mut found, mut paging) = (Vec::new(), first(7));
    loop {
        let page = store
            .deliveries(SHOP, &request.id, None, &paging)
            .await
            .unwrap();
        found.extend(page.items.into_iter().map(|d| d.id));
        paging.cursor = page.next;
        if paging.cursor.is_none() {
            break;
        }
    }
    assert!(found.is_sorted());
    let all: HashSet<DeliveryId> = waiting.iter().map(|w| w.id).collect();
    assert_eq!(found.len(), 20);
    assert_eq!(found.into_iter().collect::<HashSet<_>>(), all);

    let page = store
        .deliveries(SHOP, &request.id, Some(State::Sent), &first(10))
        .await
        .unwrap();
    let [sent] = page.items.as_slice() else {
        panic!("{page:?}")
    };
    assert_eq!(sent.id, waiting[3].id);
    assert_eq!((&*sent.channel, sent.attempts), (MAIL, 1));
    assert_eq!(sent.provider.as_deref(), Some("ses"));
    assert_eq!(sent.provider_id.as_deref(), Some("m-1"));
    assert_eq!(
        (sent.released_at, sent.ended_at),
        (Some(at(10)), Some(at(20)))
    );
    let one = store.delivery(SHOP, &sent.id).await.unwrap().unwrap();
    assert_eq!((one.id, one.state), (sent.id, State::Sent));
}

pub(crate) async fn the_trail_of_what_was_sent_at_once_is_four_steps(store: &impl Told) {
    let waiting = out(store, &request("1"), 1).await;
    tell(store, vec![event(&waiting[0], 1, 20, sent())]).await;
    let trail = store.trail(SHOP, &waiting[0].id, &first(10)).await.unwrap();
    let expected = [
        ("accepted", 0, 0),
        ("planned", 0, 0),
        ("released", 0, 1),
        ("sent", 0, 1),
    ];
    assert_eq!(steps(&trail), expected);
    let times: Vec<_> = trail.items.iter().map(|entry| entry.at).collect();
    assert_eq!(times, [at(0), at(0), at(10), at(20)]);
    let detail = json!({"provider": "ses", "providerId": "m-1", "milliseconds": 12});
    assert_eq!(trail.items[3].detail, detail);
    assert_eq!(trail.items[0].detail, json!({"sender": "orders"}));

    let (mut paged, mut paging) = (Vec::new(), first(3));
    loop {
        let page = store.trail(SHOP, &waiting[0].id, &paging).await.unwrap();
        paged.extend(page.items);
        paging.cursor = page.next;
        if paging.cursor.is_none() {
            break;
        }
    }
    assert_eq!(paged, trail.items);
}

pub(crate) async fn the_trail_tells_every_retry_and_the_end_once(store: &impl Told) {
    let waiting = out(store, &request("1"), 1).await;
    let only = &waiting[0];
    let retrying = Step::Retrying {
        error: failure(),
        due: at(5_020),
    };
    let outcomes = vec![
        event(only, 1, 20, retrying),
        event(only, 2, 5_030, returned(only, 2, at(300_000))),
    ];
    tell(store, outcomes.clone()).await;
    tell(store, outcomes).await;
    store.ripen(at(300_000), 10).await.unwrap();
    let again = release(store, 10, at(300_010)).await;
    assert_eq!(again[0].attempt, 3);
    let end = vec![event(only, 3, 300_020, failed(only, 3, true))];
    tell(store, end.clone()).await;
    tell(store, end).await;
    let trail = store.trail(SHOP, &only.id, &first(10)).await.unwrap();
    let expected = [
        ("accepted", 0, 0),
        ("planned", 0, 0),
        ("retrying", 0, 1),
        ("returned", 0, 2),
        ("released", 0, 3),
        ("failed", 0, 3),
    ];
    assert_eq!(steps(&trail), expected);
    assert_eq!(trail.items[5].detail["reason"], "smtp-451");
}

pub(crate) async fn the_trail_tells_what_happened_to_the_notification_before_the_end(
    store: &impl Told,
) {
    let request = request("1");
    let waiting = out(store, &request, 2).await;
    tell(store, vec![event(&waiting[0], 1, 20, sent())]).await;
    let id = &request.id;
    store.prioritize(id, Priority::High, at(30)).await.unwrap();
    store.cancel(id, at(40)).await.unwrap();
    tell(store, vec![event(&waiting[1], 1, 50, Step::Cancelled)]).await;
    let names = async |id: &DeliveryId| {
        let trail = store.trail(SHOP, id, &first(10)).await.unwrap();
        let names: Vec<String> = trail.items.into_iter().map(|e| e.step).collect();
        names
    };
    assert_eq!(
        names(&waiting[0].id).await,
        ["accepted", "planned", "released", "sent"]
    );
    assert_eq!(
        names(&waiting[1].id).await,
        [
            "accepted",
            "planned",
            "released",
            "prioritized",
            "cancelled",
            "cancelled"
        ],
        "the order, and that it was kept"
    );
}

pub(crate) async fn a_person_is_told_everything_newest_first(store: &impl Told) {
    let mut expected = Vec::new();
    for n in 0..5 {
        let request = request(&n.to_string());
        let mut ann = row(&request.id, "ann");
        if n == 2 {
            ann.suppressed = Some(Suppression::OptedOut);
        }
        expected.push(ann.id);
        planned(store, &request, &[ann, row(&request.id, "bob")]).await;
    }
    expected.reverse();
    let (mut found, mut paging) = (Vec::new(), first(2));
    loop {
        let page = store
            .recipient_deliveries(SHOP, "ann", &paging)
            .await
            .unwrap();
        found.extend(page.items);
        paging.cursor = page.next;
        if paging.cursor.is_none() {
            break;
        }
    }
    let ids: Vec<_> = found.iter().map(|d| d.id).collect();
    assert_eq!(ids, expected);
    assert_eq!(found[2].state, State::Suppressed);
    assert_eq!(found[2].reason.as_deref(), Some("opted-out"));
}

pub(crate) async fn definitions_in_force_are_told_newest_first(store: &impl Told) {
    let put = async |template: &str, hash: &str, milliseconds: i64| {
        let definition = Bytes::from(hash.to_owned());
        store
            .in_force(SHOP, template, hash, &definition, at(milliseconds))
            .await
            .unwrap();
    };
    put("digest", "sha256:a", 1).await;
    put("digest", "sha256:b", 2).await;
    put("digest", "sha256:b", 3).await;
    put("other", "sha256:c", 4).await;
    let told = async |template: &str| {
        let versions = store.versions(SHOP, template).await.unwrap();
        let told: Vec<_> = versions.into_iter().map(|v| (v.hash, v.since)).collect();
        told
    };
    let (a, b) = ("sha256:a".to_owned(), "sha256:b".to_owned());
    assert_eq!(
        told("digest").await,
        [(b.clone(), at(2)), (a.clone(), at(1))]
    );
    put("digest", "sha256:a", 5).await;
    assert_eq!(
        told("digest").await,
        [(a, at(1)), (b, at(2))],
        "back in force"
    );
    assert_eq!(told("none").await, []);
    let definition = store.definition("sha256:c").await.unwrap();
    assert_eq!(definition, Some(Bytes::from("sha256:c")));
}

pub(crate) async fn a_notification_that_cannot_be_resolved_ends_with_the_reason(store: &impl Told) {
    let request = request("1");
    store
        .insert_notifications(&[], &[std::sync::Arc::new(request.clone())])
        .await
        .unwrap();
    for _ in 0..2 {
        let refused = store.refuse(&request.id, "definition", "it is not known", at(5));
        refused.await.unwrap();
        assert!(store.unresolved(at(5), 10).await.unwrap().is_empty());
        let record = store.notification("shop", &request.id).await.unwrap();
        let record = record.unwrap();
        assert!(record.ended() && record.held.is_none());
        assert_eq!(record.ended_at, Some(at(5)));
        assert_eq!(record.counts.get(&State::Failed), Some(&1));
        let paging = Paging {
            limit: 10,
            cursor: None,
        };
        let deliveries = store.deliveries("shop", &request.id, None, &paging);
        let deliveries = deliveries.await.unwrap().items;
        assert_eq!(deliveries.len(), 1);
        assert_eq!(deliveries[0].reason.as_deref(), Some("definition"));
        assert_eq!(deliveries[0].error.as_deref(), Some("it is not known"));
    }
}
