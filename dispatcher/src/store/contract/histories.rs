//! Histories of deliveries: events, and orders in which they may be told, for what must come out the same of all of them.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::stages::{
    MAIL, Stages, at, delivery, event, failure, planned, release, request, rows, sent,
};
use crate::message::{Event, Events, Step, Suppression};
use crate::store::{HistoryStore, Paging, State, Waiting};

/// What is told of one of three deliveries: which, round, attempt, step, tried.
pub(crate) type Told = (usize, u16, u16, u8, u16);

pub(crate) fn step(out: &Waiting, round: u16, attempt: u16, number: u8, milliseconds: i64) -> Step {
    let mut whole = delivery(out, attempt + 1);
    whole.round = round;
    let error = failure();
    match number {
        0 | 1 => sent(),
        2 => Step::Retrying {
            error,
            due: at(milliseconds + 5),
        },
        3 => Step::Returned {
            error,
            due: at(milliseconds + 60_000),
            delivery: Box::new(whole),
        },
        4 => Step::Returned {
            error,
            due: at(milliseconds),
            delivery: Box::new(whole),
        },
        5 => Step::Failed {
            error,
            delivery: Some(Box::new(whole)),
            address_gone: false,
        },
        6 => Step::Failed {
            error,
            delivery: None,
            address_gone: false,
        },
        7 => Step::Unknown { error },
        8 => Step::Expired,
        9 => Step::Cancelled,
        _ => Step::Suppressed {
            reason: Suppression::OptedOut,
        },
    }
}

/// Events, and an order of theirs in which each comes at least once.
pub(crate) fn histories(
    deliveries: usize,
) -> impl Strategy<Value = (Vec<Told>, Vec<usize>, usize)> {
    let told = (0..deliveries, 0..2u16, 1..4u16, 0..11u8, 0..3u16);
    prop::collection::vec(told, 1..14).prop_flat_map(|mut told| {
        // Of one attempt there is one retry: the copy that comes second finds it settled.
        let mut retried = std::collections::HashSet::new();
        told.retain(|(which, round, attempt, number, _)| {
            !(2..=4).contains(number) || retried.insert((*which, *round, *attempt))
        });
        let n = told.len();
        let repeats = prop::collection::vec(0..n, 0..n);
        let order = repeats.prop_flat_map(move |repeats| {
            let mut order: Vec<usize> = (0..n).collect();
            order.extend(repeats);
            Just(order).prop_shuffle()
        });
        (Just(told), order, 1..6usize)
    })
}

/// Tells a store of three deliveries in the order and the batches given, and sees to it that the counts are those of the
/// rows.
pub(crate) async fn tell_all(
    store: &(impl Stages + HistoryStore),
    told: &[Told],
    order: &[usize],
    batch: usize,
) {
    let request = request("1");
    planned(store, &request, &rows(&request.id, 3)).await;
    let mut out = release(store, 3, at(0)).await;
    out.sort_by_key(|waiting| waiting.id);
    let events: Vec<Event> = told
        .iter()
        .enumerate()
        .map(|(place, (which, round, attempt, number, tried))| {
            let milliseconds = place as i64 + 1;
            let step = step(&out[*which], *round, *attempt, *number, milliseconds);
            Event {
                round: *round,
                tried: *tried,
                ..event(&out[*which], *attempt, milliseconds, step)
            }
        })
        .collect();
    let ordered: Vec<Event> = order.iter().map(|place| events[*place].clone()).collect();
    for some in ordered.chunks(batch) {
        let events: Vec<Events> = some
            .chunks(2)
            .map(|outcomes| Events {
                outcomes: outcomes.to_vec(),
                ..Events::default()
            })
            .collect();
        store.record(MAIL, &events).await.unwrap();
    }
    let record = store.notification("shop", &request.id).await.unwrap();
    let paging = Paging {
        limit: 10,
        cursor: None,
    };
    let page = store.deliveries("shop", &request.id, None, &paging).await;
    let mut counted: BTreeMap<State, u64> = BTreeMap::new();
    for delivery in page.unwrap().items {
        *counted.entry(delivery.state).or_default() += 1;
    }
    assert_eq!(record.unwrap().counts, counted);
}
