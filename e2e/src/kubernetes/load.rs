//! What is sent while something is away, as clients do it: with a key, and again until it is accepted. In the end all of it
//! has to have arrived.

use std::collections::{BTreeMap, HashMap};
use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, bail, ensure};
use jiff::Timestamp;
use serde::Deserialize;
use serde_json::json;
use tokio::task::JoinSet;
use tokio_util::task::AbortOnDropHandle;

use super::Stage;
use super::desk::{Desk, TEMPLATES};
use super::herald::{LOOK, PATIENCE};
use crate::accepted::until_accepted;

/// Notifications a second.
pub const RATE: u32 = 20;

/// What a pod that is killed may send again: the chart's `window`.
const WINDOW: usize = 64;

/// The load as it runs.
pub struct Load {
    desk: Desk,
    name: &'static str,
    begin: Timestamp,
    ends: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
    /// Ends with this value: what failed is not in the way of what comes next.
    sending: AbortOnDropHandle<anyhow::Result<Sent>>,
}

/// What was accepted.
#[derive(Default)]
struct Sent {
    /// Ids by the number in the address.
    ids: BTreeMap<usize, String>,
    /// Tries that were not answered 202, by what happened.
    repeated: BTreeMap<String, usize>,
    /// The longest that one took from its first try to its 202.
    slowest: Duration,
}

/// What came of a load.
#[derive(Debug)]
pub struct Outcome {
    /// How many were accepted, and sent.
    pub accepted: usize,
    /// Tries that were not answered 202, by what happened.
    pub repeated: BTreeMap<String, usize>,
    /// The longest that one took from its first try to its 202.
    pub slowest: Duration,
    /// Mails that came once more.
    pub twice: usize,
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self {
            accepted,
            repeated,
            slowest,
            twice,
        } = self;
        write!(f, "{accepted} accepted, the slowest after {slowest:.1?}")?;
        if !repeated.is_empty() {
            let repeated: Vec<_> = repeated
                .iter()
                .map(|(what, times)| format!("{times} × {what}"))
                .collect();
            write!(f, " (tried again: {})", repeated.join(", "))?;
        }
        write!(f, "; all arrived, {twice} of them twice")
    }
}

/// A notification as history lists it.
#[derive(Debug, Deserialize)]
struct Listed {
    id: String,
    status: String,
    counts: BTreeMap<String, usize>,
}

impl Load {
    /// Begins to send, and returns once some were accepted. No other load of this run may have the name.
    pub async fn start(desk: &Desk, name: &'static str) -> anyhow::Result<Self> {
        let (ends, accepted) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let sending = send(desk.clone(), name, Arc::clone(&ends), Arc::clone(&accepted));
        let load = Self {
            desk: desk.clone(),
            name,
            begin: Timestamp::now(),
            ends,
            accepted,
            sending: AbortOnDropHandle::new(tokio::spawn(sending)),
        };
        load.more(RATE as usize).await?;
        Ok(load)
    }

    /// How many were accepted until now.
    pub fn count(&self) -> usize {
        self.accepted.load(Ordering::Relaxed)
    }

    /// Waits until so many more are accepted.
    pub async fn more(&self, more: usize) -> anyhow::Result<()> {
        let (begin, wanted) = (Instant::now(), self.count() + more);
        while self.count() < wanted {
            ensure!(
                !self.sending.is_finished() && begin.elapsed() < PATIENCE,
                "nothing is accepted any more"
            );
            tokio::time::sleep(LOOK).await;
        }
        Ok(())
    }

    /// Waits until so many of its mails have arrived.
    pub async fn arrive(&self, stage: &Stage, count: usize) -> anyhow::Result<()> {
        let begin = Instant::now();
        loop {
            let arrived = arrived(stage, self.name)?.len();
            if arrived >= count {
                return Ok(());
            }
            ensure!(begin.elapsed() < PATIENCE, "{arrived} mails of {count}");
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Ends it. An error unless all that was accepted has ended as sent, and arrived; and no more of it twice than as many
    /// pods may send again that were killed.
    pub async fn finish(self, stage: &Stage, killed: usize) -> anyhow::Result<Outcome> {
        self.ends.store(true, Ordering::Relaxed);
        let sent = self.sending.await.context("the load panicked")??;
        ensure!(!sent.ids.is_empty(), "nothing was accepted");
        let listed = ended(&self.desk, self.begin, &sent).await?;
        for (number, id) in &sent.ids {
            let counts = listed.get(id).context("history has lost one")?;
            let expected = BTreeMap::from([("sent".to_owned(), 1)]);
            ensure!(*counts == expected, "{id}, number {number}: {counts:?}");
        }
        let arrived = arrived(stage, self.name)?;
        let mut twice = 0;
        for (number, id) in &sent.ids {
            let copies = arrived.get(number).map_or(0, |mails| mails.copies);
            ensure!(
                copies > 0,
                "{id}, number {number}, was sent but did not arrive"
            );
            twice += copies - 1;
        }
        for (number, mails) in &arrived {
            ensure!(
                sent.ids.contains_key(number),
                "{number} arrived without being accepted"
            );
            let of = mails.deliveries;
            ensure!(of == 1, "number {number} became {of} deliveries");
        }
        let most = WINDOW * killed;
        ensure!(
            twice <= most,
            "{twice} mails came twice, not at most {most}"
        );
        Ok(Outcome {
            accepted: sent.ids.len(),
            repeated: sent.repeated,
            slowest: sent.slowest,
            twice,
        })
    }
}

/// Sends until `ends`, at the rate, and waits until each is accepted.
async fn send(
    desk: Desk,
    name: &'static str,
    ends: Arc<AtomicBool>,
    accepted: Arc<AtomicUsize>,
) -> anyhow::Result<Sent> {
    let path = format!("/v1/namespaces/{}/notifications", desk.namespace);
    let desk: Arc<[_]> = Arc::new([desk.api]);
    let mut pace = tokio::time::interval(Duration::from_secs(1) / RATE);
    let mut tasks = JoinSet::new();
    let mut sent = Sent::default();
    for number in 0.. {
        if ends.load(Ordering::Relaxed) {
            break;
        }
        pace.tick().await;
        let (desk, path, accepted) = (Arc::clone(&desk), path.clone(), Arc::clone(&accepted));
        tasks.spawn(async move {
            let address = format!("n{number}@{name}.example");
            // Each third goes without the database.
            let [note, code] = TEMPLATES;
            let template = if number % 3 == 0 { code } else { note };
            let body = json!({
                "template": template,
                "recipients": [{"address": {"email": address}}],
            });
            let (begin, key) = (Instant::now(), format!("{name}-{number}"));
            let mut repeated = BTreeMap::new();
            let id = until_accepted(&desk, &path, &key, &body.to_string(), &mut repeated).await?;
            accepted.fetch_add(1, Ordering::Relaxed);
            anyhow::Ok((number, id, repeated, begin.elapsed()))
        });
        while let Some(done) = tasks.try_join_next() {
            sent.add(done.context("a client panicked")??);
        }
    }
    while let Some(done) = tasks.join_next().await {
        sent.add(done.context("a client panicked")??);
    }
    Ok(sent)
}

impl Sent {
    fn add(
        &mut self,
        (number, id, repeated, took): (usize, String, BTreeMap<String, usize>, Duration),
    ) {
        self.ids.insert(number, id);
        for (what, times) in repeated {
            *self.repeated.entry(what).or_default() += times;
        }
        self.slowest = self.slowest.max(took);
    }
}

/// Waits until all that was accepted has ended: deliveries by their state, by notification.
async fn ended(
    desk: &Desk,
    begin: Timestamp,
    sent: &Sent,
) -> anyhow::Result<HashMap<String, BTreeMap<String, usize>>> {
    let waiting = Instant::now();
    // Clocks of pods are this machine's.
    let path = format!(
        "/v1/namespaces/{}/notifications?from={begin}",
        desk.namespace
    );
    loop {
        let listed = desk.api.all::<Listed>(&path).await;
        let ended = listed.map(|listed| {
            let listed = listed.into_iter();
            let ended = listed.filter(|one| one.status == "ended");
            ended
                .map(|one| (one.id, one.counts))
                .collect::<HashMap<_, _>>()
        });
        let open = ended.as_ref().map(|ended| {
            sent.ids
                .values()
                .filter(|id| !ended.contains_key(*id))
                .count()
        });
        match open {
            Ok(0) => return ended,
            Ok(open) if waiting.elapsed() > PATIENCE => {
                let all = sent.ids.len();
                let mut those = sent.ids.values();
                let one =
                    those.find(|id| ended.as_ref().is_ok_and(|ended| !ended.contains_key(*id)));
                bail!("of {all} that were accepted {open} have not ended, such as {one:?}");
            }
            Err(_) if waiting.elapsed() > PATIENCE => return ended,
            _ => tokio::time::sleep(LOOK).await,
        }
    }
}

/// Mails to one address.
#[derive(Debug, Default)]
struct Mails {
    copies: usize,
    /// Of so many deliveries.
    deliveries: usize,
}

/// What arrived of a load, by the number in the address.
fn arrived(stage: &Stage, name: &str) -> anyhow::Result<HashMap<usize, Mails>> {
    let mut arrived = HashMap::<usize, Mails>::new();
    for copies in stage.mail.arrived()?.values() {
        let to = copies.first().map_or("", |copy| copy.to.as_str());
        let number = to
            .strip_suffix(".example")
            .and_then(|to| to.strip_prefix('n')?.split_once('@'))
            .filter(|(_, load)| *load == name)
            .and_then(|(number, _)| number.parse().ok());
        if let Some(number) = number {
            let mails = arrived.entry(number).or_default();
            mails.copies += copies.len();
            mails.deliveries += 1;
        }
    }
    Ok(arrived)
}
