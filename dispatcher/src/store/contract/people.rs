//! What every store must do for people, schedules and keys: one test for each promise.
//!
//! [`people_contract!`] makes the tests for one database, given a function that opens an empty store.

use std::collections::BTreeMap;
use std::sync::Arc;

use herald_crds::Address;
use jiff::{SignedDuration, Timestamp};

use crate::message::Suppression;
use crate::store::{
    ApiKey, Directory, HistoryError, Page, Paging, PeopleStore, PlanStore, Recipient,
    SuppressedAddress,
};

pub(crate) use super::schedules::*;

/// Makes the contract's tests for one database.
macro_rules! people_contract {
    ($open:path) => {
        $crate::store::contract::people::people_contract!(@tests $open:
            a_recipient_is_read_as_it_was_written_and_replaced_whole,
            a_recipient_is_replaced_only_if_it_is_as_expected,
            of_two_with_one_id_in_one_batch_the_later_holds,
            members_are_answered_as_they_were_at_that_moment,
            a_change_of_labels_counts_from_its_moment_on,
            a_list_of_ids_is_answered_in_its_order_with_gaps,
            recipients_are_found_by_id_address_and_labels,
            pages_of_people_and_members_meet_without_gap_or_overlap,
            a_suppressed_address_stays_so_until_it_is_taken_off,
            a_schedule_remembers_what_fired_and_what_was_missed,
            a_schedule_remembers_why_it_is_refused_until_it_fires,
            a_schedule_begins_when_it_was_made_and_anew_when_it_is_made_anew,
            a_key_of_the_same_name_takes_the_place_of_the_first,
            a_key_is_added_once_and_taken_away_once,
        );
    };
    (@tests $open:path: $($name:ident),* $(,)?) => {
        $(
            #[tokio::test]
            async fn $name() {
                let opened = $open().await;
                $crate::store::contract::people::$name(&opened.store).await;
            }
        )*
    };
}
pub(crate) use people_contract;

pub(super) const SHOP: &str = "shop";

pub(super) fn at(seconds: i64) -> Timestamp {
    Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_800_000_000 + seconds)
}

fn paging(limit: usize, cursor: Option<String>) -> Paging {
    Paging { limit, cursor }
}

fn person(id: &str) -> Recipient {
    Recipient {
        id: id.to_owned(),
        locale: Some("ko".to_owned()),
        time_zone: Some("Asia/Seoul".to_owned()),
        addresses: Address {
            email: Some(format!("{id}@shop.example")),
            phone: Some("+821012345678".to_owned()),
            webhook: Some(format!("https://hooks.shop.example/{id}")),
            locale: None,
        },
        labels: BTreeMap::from([
            ("tier".to_owned(), "vip".to_owned()),
            ("city".to_owned(), "Seoul".to_owned()),
        ]),
    }
}

fn ids(page: &Page<Recipient>) -> Vec<&str> {
    page.items.iter().map(|person| person.id.as_str()).collect()
}

fn names(names: &[&str]) -> Vec<String> {
    names.iter().map(|&name| name.to_owned()).collect()
}

async fn members_at(
    store: &impl PlanStore,
    directory: &Directory<'_>,
    when: Timestamp,
) -> Vec<String> {
    let found = store
        .members(SHOP, directory, when, None, 1000)
        .await
        .unwrap();
    assert_eq!(
        store.count_members(SHOP, directory, when).await.unwrap(),
        found.len() as u64
    );
    let mut ids: Vec<String> = found.iter().map(|member| member.id.to_string()).collect();
    ids.sort();
    ids
}

pub(crate) async fn a_recipient_is_read_as_it_was_written_and_replaced_whole(
    store: &impl PeopleStore,
) {
    let alice = person("alice");
    let bare = Recipient {
        id: "bob".to_owned(),
        ..Recipient::default()
    };
    let both = [alice.clone(), bare.clone()];
    assert_eq!(
        store.put_recipients(SHOP, &both, at(0)).await.unwrap(),
        [true, true]
    );
    assert_eq!(store.recipient(SHOP, "alice").await.unwrap(), Some(alice));
    assert_eq!(store.recipient(SHOP, "bob").await.unwrap(), Some(bare));
    assert_eq!(store.recipient("other", "alice").await.unwrap(), None);

    let moved = Recipient {
        id: "alice".to_owned(),
        labels: BTreeMap::from([("tier".to_owned(), "basic".to_owned())]),
        ..Recipient::default()
    };
    let written = store
        .put_recipients(SHOP, std::slice::from_ref(&moved), at(1))
        .await
        .unwrap();
    assert_eq!(written, [false]);
    assert_eq!(store.recipient(SHOP, "alice").await.unwrap(), Some(moved));
    let vips = [("tier".to_owned(), "vip".to_owned())];
    let page = store
        .recipients(SHOP, None, &vips, &paging(10, None))
        .await
        .unwrap();
    assert!(page.items.is_empty(), "the labels were replaced too");
}

pub(crate) async fn a_recipient_is_replaced_only_if_it_is_as_expected(store: &impl PeopleStore) {
    let (alice, mut moved) = (person("alice"), person("alice"));
    moved.locale = Some("en".to_owned());
    let replace = async |new: &Recipient, expected: Option<&Recipient>| {
        store
            .replace_recipient(SHOP, new, expected, at(0))
            .await
            .unwrap()
    };
    assert!(!replace(&alice, Some(&alice)).await, "it is not there");
    assert!(replace(&alice, None).await);
    assert!(!replace(&moved, None).await, "it is there");
    assert!(!replace(&moved, Some(&moved)).await, "it is another");
    assert!(replace(&moved, Some(&alice)).await);
    assert_eq!(store.recipient(SHOP, "alice").await.unwrap(), Some(moved));
}

pub(crate) async fn of_two_with_one_id_in_one_batch_the_later_holds(store: &impl PeopleStore) {
    let first = person("alice");
    let mut second = person("alice");
    second.locale = Some("en".to_owned());
    let batch = [first, person("bob"), second.clone()];
    assert_eq!(
        store.put_recipients(SHOP, &batch, at(0)).await.unwrap(),
        [true, true, false]
    );
    assert_eq!(store.recipient(SHOP, "alice").await.unwrap(), Some(second));
}

pub(crate) async fn members_are_answered_as_they_were_at_that_moment(
    store: &(impl PeopleStore + PlanStore),
) {
    store
        .put_recipients(
            SHOP,
            &[person("alice"), person("bob"), person("carol")],
            at(0),
        )
        .await
        .unwrap();
    let group = Directory::Managed("vip");
    let change = store
        .change_members(SHOP, "vip", &names(&["alice", "bob"]), &[], at(10))
        .await;
    assert_eq!(change.unwrap(), (2, 0));
    let change = store
        .change_members(
            SHOP,
            "vip",
            &names(&["alice", "carol"]),
            &names(&["bob", "dave"]),
            at(20),
        )
        .await;
    assert_eq!(change.unwrap(), (1, 1), "alice was in it, dave was not");
    assert_eq!(members_at(store, &group, at(5)).await, names(&[]));
    assert_eq!(
        members_at(store, &group, at(15)).await,
        names(&["alice", "bob"])
    );
    assert_eq!(
        members_at(store, &group, at(25)).await,
        names(&["alice", "carol"])
    );

    assert!(store.delete_recipient(SHOP, "carol", at(30)).await.unwrap());
    assert!(!store.delete_recipient(SHOP, "carol", at(31)).await.unwrap());
    assert_eq!(store.recipient(SHOP, "carol").await.unwrap(), None);
    assert_eq!(
        members_at(store, &group, at(25)).await,
        names(&["alice", "carol"])
    );
    assert_eq!(members_at(store, &group, at(35)).await, names(&["alice"]));

    let vip = [("tier".to_owned(), "vip".to_owned())];
    let labelled = Directory::Labels(&vip);
    assert_eq!(
        members_at(store, &labelled, at(25)).await,
        names(&["alice", "bob", "carol"])
    );
    assert_eq!(
        members_at(store, &labelled, at(35)).await,
        names(&["alice", "bob"])
    );

    store
        .put_recipients(SHOP, &[person("carol")], at(40))
        .await
        .unwrap();
    assert_eq!(
        members_at(store, &group, at(45)).await,
        names(&["alice"]),
        "who comes back is not a member by that"
    );
}

pub(crate) async fn a_change_of_labels_counts_from_its_moment_on(
    store: &(impl PeopleStore + PlanStore),
) {
    let mut alice = person("alice");
    store
        .put_recipients(SHOP, std::slice::from_ref(&alice), at(0))
        .await
        .unwrap();
    alice.labels.insert("tier".to_owned(), "basic".to_owned());
    store
        .put_recipients(SHOP, std::slice::from_ref(&alice), at(10))
        .await
        .unwrap();
    let (vip, basic) = (
        [
            ("tier".to_owned(), "vip".to_owned()),
            ("city".to_owned(), "Seoul".to_owned()),
        ],
        [("tier".to_owned(), "basic".to_owned())],
    );
    let (vip, basic) = (Directory::Labels(&vip), Directory::Labels(&basic));
    assert_eq!(members_at(store, &vip, at(5)).await, ["alice"]);
    assert_eq!(members_at(store, &basic, at(5)).await, names(&[]));
    assert_eq!(members_at(store, &vip, at(15)).await, names(&[]));
    assert_eq!(members_at(store, &basic, at(15)).await, ["alice"]);
}

pub(crate) async fn a_list_of_ids_is_answered_in_its_order_with_gaps(
    store: &(impl PeopleStore + PlanStore),
) {
    store
        .put_recipients(SHOP, &[person("alice"), person("bob")], at(0))
        .await
        .unwrap();
    let asked: Vec<Arc<str>> = ["bob", "nobody", "alice"].map(Arc::from).to_vec();
    let found = store
        .members(SHOP, &Directory::Ids(&asked), at(1), None, 10)
        .await
        .unwrap();
    let found: Vec<(&str, bool)> = found
        .iter()
        .map(|member| (&*member.id, member.recipient.is_some()))
        .collect();
    assert_eq!(found, [("bob", true), ("nobody", false), ("alice", true)]);
}

pub(crate) async fn recipients_are_found_by_id_address_and_labels(store: &impl PeopleStore) {
    let mut erin = person("erin");
    erin.labels.insert("tier".to_owned(), "basic".to_owned());
    erin.addresses.phone = Some("+491701234567".to_owned());
    let people = [person("alice"), person("alan"), person("bob"), erin];
    store.put_recipients(SHOP, &people, at(0)).await.unwrap();
    store
        .put_recipients("other", &[person("alva")], at(0))
        .await
        .unwrap();
    store.delete_recipient(SHOP, "bob", at(1)).await.unwrap();
    let all = paging(10, None);
    let label = |key: &str, value: &str| (key.to_owned(), value.to_owned());
    for (query, labels, expected) in [
        (None, vec![], vec!["alan", "alice", "erin"]),
        (Some("al"), vec![], vec!["alan", "alice"]),
        (Some("alice@shop.example"), vec![], vec!["alice"]),
        (Some("+491701234567"), vec![], vec!["erin"]),
        (
            Some("https://hooks.shop.example/alan"),
            vec![],
            vec!["alan"],
        ),
        (Some("%"), vec![], vec![]),
        (Some("bob"), vec![], vec![]),
        (None, vec![label("tier", "vip")], vec!["alan", "alice"]),
        (
            None,
            vec![label("tier", "basic"), label("city", "Seoul")],
            vec!["erin"],
        ),
        (
            None,
            vec![label("tier", "basic"), label("city", "Berlin")],
            vec![],
        ),
        (Some("ali"), vec![label("tier", "vip")], vec!["alice"]),
        (Some("erin"), vec![label("tier", "vip")], vec![]),
    ] {
        let page = store.recipients(SHOP, query, &labels, &all).await.unwrap();
        assert_eq!(ids(&page), expected, "{query:?} {labels:?}");
        assert_eq!(page.next, None);
    }
}

pub(crate) async fn pages_of_people_and_members_meet_without_gap_or_overlap(
    store: &impl PeopleStore,
) {
    let people: Vec<Recipient> = (0..25).map(|n| person(&format!("p{n:02}"))).collect();
    let expected: Vec<String> = people.iter().map(|p| p.id.clone()).collect();
    store.put_recipients(SHOP, &people, at(0)).await.unwrap();
    store
        .change_members(SHOP, "all", &expected, &[], at(0))
        .await
        .unwrap();
    for limit in [1, 7, 25, 1000] {
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let page = store
                .recipients(SHOP, Some("p"), &[], &paging(limit, cursor))
                .await
                .unwrap();
            assert!(page.items.len() <= limit && !page.items.is_empty());
            found.extend(page.items.into_iter().map(|p| p.id));
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(found, expected, "limit {limit}");
        let (mut found, mut cursor) = (Vec::new(), None);
        loop {
            let page = store
                .group_members(SHOP, "all", &paging(limit, cursor))
                .await
                .unwrap();
            found.extend(page.items);
            cursor = page.next;
            if cursor.is_none() {
                break;
            }
        }
        assert_eq!(found, expected, "limit {limit}");
    }
    for cursor in ["", "!", "####", "bm90IG91cnM=x"] {
        let wrong = store
            .recipients(SHOP, None, &[], &paging(5, Some(cursor.to_owned())))
            .await;
        assert!(matches!(wrong, Err(HistoryError::BadCursor)), "{cursor:?}");
    }
}

pub(crate) async fn a_suppressed_address_stays_so_until_it_is_taken_off(
    store: &(impl PeopleStore + PlanStore),
) {
    let entry = |address: &str, reason: &str| SuppressedAddress {
        medium: "email".to_owned(),
        address: address.to_owned(),
        reason: reason.to_owned(),
        since: at(0),
    };
    for address in ["b@shop.example", "a@shop.example", "c@shop.example"] {
        store
            .suppress(SHOP, &entry(address, "opted-out"))
            .await
            .unwrap();
    }
    store
        .suppress(SHOP, &entry("a@shop.example", "address-gone"))
        .await
        .unwrap();
    let asked = [
        ("email", "a@shop.example"),
        ("sms", "a@shop.example"),
        ("email", "z@shop.example"),
        ("email", "c@shop.example"),
    ];
    assert_eq!(
        store.suppressed(SHOP, &asked).await.unwrap(),
        [
            Some(Suppression::AddressGone),
            None,
            None,
            Some(Suppression::OptedOut)
        ]
    );
    assert_eq!(
        store.suppressed("other", &asked[..1]).await.unwrap(),
        [None]
    );

    let first = store.suppressions(SHOP, &paging(2, None)).await.unwrap();
    assert_eq!(
        first.items,
        [
            entry("a@shop.example", "address-gone"),
            entry("b@shop.example", "opted-out")
        ]
    );
    let second = store
        .suppressions(SHOP, &paging(2, first.next))
        .await
        .unwrap();
    assert_eq!(second.items, [entry("c@shop.example", "opted-out")]);
    assert_eq!(second.next, None);

    let listed = store
        .suppression(SHOP, "email", "a@shop.example")
        .await
        .unwrap();
    assert_eq!(listed, Some(entry("a@shop.example", "address-gone")));
    let other = store
        .suppression(SHOP, "sms", "a@shop.example")
        .await
        .unwrap();
    assert_eq!(other, None);

    assert!(
        store
            .unsuppress(SHOP, "email", "a@shop.example")
            .await
            .unwrap()
    );
    assert!(
        !store
            .unsuppress(SHOP, "email", "a@shop.example")
            .await
            .unwrap()
    );
    assert_eq!(store.suppressed(SHOP, &asked[..1]).await.unwrap(), [None]);
}

pub(crate) async fn a_key_of_the_same_name_takes_the_place_of_the_first(store: &impl PeopleStore) {
    let key = |name: &str, digest: u8| ApiKey {
        name: name.to_owned(),
        digest: [digest; 32],
        scopes: names(&["recipients:read", "groups:write"]),
        created_at: at(0),
    };
    store.put_key(&key("orders", 1)).await.unwrap();
    store.put_key(&key("billing", 2)).await.unwrap();
    store.put_key(&key("orders", 3)).await.unwrap();
    let mut keys = store.keys().await.unwrap();
    keys.sort_by(|a, b| a.name.cmp(&b.name));
    assert_eq!(keys, [key("billing", 2), key("orders", 3)]);
}

pub(crate) async fn a_key_is_added_once_and_taken_away_once(store: &impl PeopleStore) {
    let key = |digest: u8| ApiKey {
        name: "orders".to_owned(),
        digest: [digest; 32],
        scopes: names(&["addresses"]),
        created_at: at(0),
    };
    assert!(store.add_key(&key(1)).await.unwrap());
    assert!(!store.add_key(&key(2)).await.unwrap());
    assert_eq!(store.keys().await.unwrap(), [key(1)]);
    assert!(store.delete_key("orders").await.unwrap());
    assert!(!store.delete_key("orders").await.unwrap());
    assert_eq!(store.keys().await.unwrap(), []);
}
