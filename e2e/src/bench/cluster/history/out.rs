//! Deliveries that are out: planned, taken and released by the store.

use std::sync::Arc;

use anyhow::{Result, ensure};
use herald_crds::Priority;
use herald_dispatcher::id::{DeliveryId, NotificationId, order};
use herald_dispatcher::store::postgres::PostgresStore;
use herald_dispatcher::store::{
    Chunk, Cursor, NewDelivery, PlanStore as _, ResolveStep, Turn, Waiting, WaitingStore as _,
};
use jiff::Timestamp;

use super::{CHANNEL, request};

/// Rows that are planned, and released, in one transaction.
const STEP: usize = 500;

/// The deliveries of a new notification, in the order in which they are released.
pub async fn released(store: &PostgresStore, key: &str, count: usize) -> Result<Vec<Waiting>> {
    let request = Arc::new(request(key, Timestamp::now())?);
    store
        .insert_notifications(&[], &[Arc::clone(&request)])
        .await?;
    plan(store, &request.id, count).await?;
    let mut out = Vec::with_capacity(count);
    let mut turn = Turn::default();
    while out.len() < count {
        let Chunk {
            mut rows,
            next,
            hold,
            ..
        } = store.chunk(CHANNEL, Priority::Normal, &turn, STEP).await?;
        ensure!(!rows.is_empty(), "{} of {count} came out", out.len());
        turn = next;
        let left: Vec<_> = rows
            .iter()
            .map(|one| (one.row, one.round, one.attempt))
            .collect();
        hold.settle(&left, &[], &[], Timestamp::now()).await?;
        out.append(&mut rows);
    }
    Ok(out)
}

async fn plan(store: &PostgresStore, id: &NotificationId, count: usize) -> Result<()> {
    let mut people: Vec<Arc<str>> = (0..count).map(|n| person(n).into()).collect();
    people.sort_by_cached_key(|person| order(person));
    let mut from = Cursor::default();
    let mut steps = people.chunks(STEP).peekable();
    while let Some(step) = steps.next() {
        let next = steps.peek().map(|_| Cursor {
            source: 0,
            after: step.last().map(|last| (order(last), last.to_string())),
        });
        let taken = ResolveStep {
            notification: *id,
            from,
            next: next.clone(),
            rows: step.iter().map(|person| row(id, person)).collect(),
        };
        let done = store.resolve(vec![taken], Timestamp::now()).await?;
        ensure!(done == [true], "a step was refused");
        from = next.unwrap_or_default();
    }
    Ok(())
}

fn row(id: &NotificationId, person: &Arc<str>) -> NewDelivery {
    let endpoint = address(person);
    NewDelivery {
        id: DeliveryId::new(id, person, CHANNEL, 0, &endpoint, 0),
        recipient: Arc::clone(person),
        channel: CHANNEL.into(),
        endpoint: endpoint.into(),
        locale: "ko".into(),
        due: Timestamp::UNIX_EPOCH,
        suppressed: None,
    }
}

pub fn person(number: usize) -> String {
    format!("person-{number}")
}

pub fn address(person: &str) -> String {
    format!("{person}@mail.example")
}
