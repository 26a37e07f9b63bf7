//! Clients that do what Herald's documentation asks of them: a key for each notification, and the same request again
//! until it is answered.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail};
use tokio::task::JoinSet;

use super::workload::Workload;
use crate::accepted::until_accepted;
use crate::server::Api;

/// The namespace that everything is in.
pub const NAMESPACE: &str = "load";

/// Where they are sent.
const PATH: &str = "/v1/namespaces/load/notifications";

/// One accepted notification in so many is sent once more, with its key.
const TWICE: usize = 100;

/// What the clients saw.
#[derive(Debug, Default)]
pub struct Sent {
    /// The ids, in the order of the workload.
    pub ids: Vec<String>,
    /// From a request's first try to its 202, in the order of answering.
    pub took: Vec<Duration>,
    /// Tries that were not answered 202, by what happened.
    pub repeated: BTreeMap<String, usize>,
    /// Notifications that were sent once more after their 202.
    pub twice: usize,
    /// From the first request to the last answer.
    pub over: Duration,
}

/// What one client saw.
#[derive(Debug, Default)]
struct Seen {
    ids: Vec<(usize, String)>,
    took: Vec<Duration>,
    repeated: BTreeMap<String, usize>,
    twice: usize,
}

/// Sends the whole workload with so many clients; `accepted` counts as they go.
pub async fn send(
    api: &Api,
    workload: &Arc<Workload>,
    clients: usize,
    accepted: &Arc<AtomicUsize>,
) -> anyhow::Result<Sent> {
    let begin = Instant::now();
    let next = Arc::new(AtomicUsize::new(0));
    let mut tasks = JoinSet::new();
    for _ in 0..clients {
        tasks.spawn(client(
            api.clone(),
            Arc::clone(workload),
            Arc::clone(&next),
            Arc::clone(accepted),
        ));
    }
    let mut sent = Sent {
        ids: vec![String::new(); workload.notifications.len()],
        ..Sent::default()
    };
    while let Some(seen) = tasks.join_next().await {
        let seen = seen.context("a client panicked")??;
        for (number, id) in seen.ids {
            sent.ids[number] = id;
        }
        sent.took.extend(seen.took);
        sent.twice += seen.twice;
        for (what, count) in seen.repeated {
            *sent.repeated.entry(what).or_default() += count;
        }
    }
    sent.over = begin.elapsed();
    Ok(sent)
}

async fn client(
    api: Api,
    workload: Arc<Workload>,
    next: Arc<AtomicUsize>,
    accepted: Arc<AtomicUsize>,
) -> anyhow::Result<Seen> {
    let mut seen = Seen::default();
    let apis = std::slice::from_ref(&api);
    loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        let Some(planned) = workload.notifications.get(number) else {
            return Ok(seen);
        };
        let begin = Instant::now();
        let id =
            until_accepted(apis, PATH, &planned.key, &planned.body, &mut seen.repeated).await?;
        seen.took.push(begin.elapsed());
        accepted.fetch_add(1, Ordering::Relaxed);
        if number.is_multiple_of(TWICE) {
            let again =
                until_accepted(apis, PATH, &planned.key, &planned.body, &mut seen.repeated).await?;
            if again != id {
                bail!("{} was accepted as {id} and again as {again}", planned.key);
            }
            seen.twice += 1;
        }
        seen.ids.push((number, id));
    }
}
