//! The whole pipeline on a broker that repeats and reorders deliveries, loses acknowledgements and receipts and delays
//! tails, killed at random points: nothing is lost, and no more is sent twice than the design admits.
//!
//! Each history is made from a seed, which is printed when it fails: `HERALD_SEED=… cargo test histories` runs
//! it again. Kills abort everything in the process at once; what was promised survives in the files alone.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use crate::accept::{Accept, Quotas, Scopes, SendRequest};
use crate::access::{Rights, Sender};
use crate::broker::Broker;
use crate::broker::embedded::{self, EmbeddedBroker};
use crate::broker::faulty::{Faults, FaultyBroker};
use crate::catalog::folder::FolderCatalog;
use crate::deliver::worker::Guards;
use crate::id::{DeliveryId, NotificationId};
use crate::message::Delivery;
use crate::metrics::Metrics;
use crate::pipeline::{Parts, Pipeline};
use crate::provider::{Outcome, Provider, Reason};
use crate::store::sqlite::{self, SqliteStore};
use crate::store::{HistoryStore, Paging, RecordStore, State, Store};
use crate::timing::Timing;
use async_trait::async_trait;
use herald_crds::RecipientRef;
use rand::rngs::StdRng;
use rand::{RngExt, SeedableRng};

/// W of these histories: small, so that the bound on duplicates means something.
const WINDOW: usize = 4;

/// Histories in the test.
const HISTORIES: u64 = 200;

/// Histories run side by side.
const SIDE_BY_SIDE: usize = 4;

/// How long a history may take to come to its end.
const PATIENCE: Duration = Duration::from_secs(60);

const FOLDER: &str = r#"
apiVersion: herald.dev/v1alpha1
kind: Channel
metadata: {name: mail, namespace: shop}
spec:
  medium: email
  concurrency: 4
  retry: {maxAttempts: 50}
  providers: [{name: first, log: {}}]
---
apiVersion: herald.dev/v1alpha1
kind: NotificationTemplate
metadata: {name: order, namespace: shop}
spec:
  routing: {channels: [{name: mail}]}
  content: {email: {subject: "Order {{ n }}", text: "It is on its way."}}
---
apiVersion: herald.dev/v1alpha1
kind: NotificationTemplate
metadata: {name: code, namespace: shop}
spec:
  mandatory: true
  priority: critical
  routing: {channels: [{name: mail}]}
  content: {email: {subject: "Code {{ n }}", text: "Your code."}}
"#;

/// Remembers what was sent, over all lives of a history; fails some attempts.
#[derive(Default)]
struct Recipients {
    sent: Mutex<HashMap<DeliveryId, usize>>,
}

struct Flaky {
    recipients: Arc<Recipients>,
    rng: Mutex<StdRng>,
}

#[async_trait]
impl Provider for Flaky {
    async fn send(&self, delivery: &Delivery, _timeout: Duration) -> Outcome {
        let (fails, pause) = {
            let mut rng = self.rng.lock().unwrap();
            (rng.random_bool(0.1), rng.random_range(0..3))
        };
        tokio::time::sleep(Duration::from_millis(pause)).await;
        if fails {
            return Outcome::Transient(Reason {
                code: Arc::from("flaky"),
                detail: String::new(),
            });
        }
        *self
            .recipients
            .sent
            .lock()
            .unwrap()
            .entry(delivery.id)
            .or_default() += 1;
        Outcome::Sent { provider_id: None }
    }
}

/// A broker at its worst.
fn faults(seed: u64) -> Faults {
    Faults {
        seed,
        repeat: 0.2,
        reorder: 0.2,
        lose_acknowledgement: 0.1,
        lose_receipt: 0.05,
        refuse: 0.05,
        delay_tail: 0.2,
        tail_delay: Duration::from_millis(20),
    }
}

fn timing() -> Timing {
    let milliseconds = Duration::from_millis;
    Timing {
        horizon: Duration::from_secs(120),
        relays: [milliseconds(15), milliseconds(40)],
        returns: [milliseconds(60), milliseconds(90)],
        tick: milliseconds(50),
        overdue: Duration::from_secs(20),
        sweep: milliseconds(500),
        breaker: milliseconds(20),
        ..Timing::default()
    }
}

/// What one history came to.
#[derive(Debug, Default)]
struct Account {
    accepted: usize,
    sent: usize,
    lost: usize,
    duplicates: usize,
    kills: usize,
    redriven: u64,
    ended_twice: usize,
}

impl Account {
    /// What is wrong with it; empty: nothing.
    fn violations(&self) -> String {
        let mut text = String::new();
        let bound = self.kills * WINDOW;
        if self.lost > 0 {
            let _ = write!(text, "lost {}; ", self.lost);
        }
        if self.duplicates > bound {
            let _ = write!(
                text,
                "{} duplicates, {bound} are admitted; ",
                self.duplicates
            );
        }
        if self.redriven > 0 {
            let _ = write!(text, "the sweep found {}; ", self.redriven);
        }
        if self.ended_twice > 0 {
            let _ = write!(text, "{} ended twice; ", self.ended_twice);
        }
        text
    }
}

/// One life of the process: everything on a runtime of its own, which a kill takes down.
struct Life {
    runtime: tokio::runtime::Runtime,
    broker: EmbeddedBroker,
    store: Arc<SqliteStore>,
    accept: Arc<Accept>,
    metrics: Arc<Metrics>,
    pipeline: Pipeline,
}

impl Life {
    fn begin(dir: &Path, seed: u64, guards: Guards, recipients: &Arc<Recipients>) -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .enable_all()
            .build()
            .unwrap();
        let (broker, store, accept, metrics, pipeline) = runtime.block_on(async {
            let metrics = Arc::new(Metrics::default());
            let options = embedded::Options {
                synchronous: false,
                ..embedded::Options::default()
            };
            let broker = EmbeddedBroker::open(&dir.join("broker.db"), options)
                .await
                .unwrap();
            let options = sqlite::Options {
                synchronous: false,
                ..sqlite::Options::default()
            };
            let store = Arc::new(
                SqliteStore::open(&dir.join("store.db"), options)
                    .await
                    .unwrap(),
            );
            let faulty: Arc<dyn Broker> = Arc::new(FaultyBroker::new(broker.clone(), faults(seed)));
            let catalog = Arc::new(FolderCatalog::open(dir.join("folder"), "shop").unwrap());
            let recipients = Arc::clone(recipients);
            let pipeline = Pipeline::start(&Parts {
                broker: Arc::clone(&faulty),
                store: Arc::clone(&store) as Arc<dyn Store>,
                catalog: Arc::clone(&catalog) as _,
                providers: Arc::new(move |_, _, _| {
                    let rng = Mutex::new(StdRng::seed_from_u64(seed));
                    Ok(Arc::new(Flaky {
                        recipients: Arc::clone(&recipients),
                        rng,
                    }))
                }),
                metrics: Arc::clone(&metrics),
                timing: timing(),
                window: WINDOW,
                guards,
            });
            let accept = Arc::new(Accept::new(crate::accept::Parts {
                broker: faulty,
                catalog: catalog as _,
                store: Arc::clone(&store) as _,
                load: Arc::clone(&pipeline.loads) as _,
                metrics: Arc::clone(&metrics),
                timing: timing(),
                quotas: Quotas::default(),
            }));
            (broker, store, accept, metrics, pipeline)
        });
        Self {
            runtime,
            broker,
            store,
            accept,
            metrics,
            pipeline,
        }
    }

    /// As SIGKILL would: nothing is finished, nothing is told.
    fn kill(self) {
        let Self {
            runtime,
            broker,
            store,
            accept,
            metrics: _,
            pipeline,
        } = self;
        runtime.block_on(broker.abort());
        let closing = Arc::clone(&store);
        drop((accept, pipeline));
        runtime.shutdown_timeout(Duration::from_secs(5));
        drop((broker, store));
        // The store's lock is free once its last user is gone.
        let deadline = Instant::now() + Duration::from_secs(10);
        while Arc::strong_count(&closing) > 1 && Instant::now() < deadline {
            std::thread::yield_now();
        }
    }
}

fn history(seed: u64, guards: Guards) -> Account {
    let mut rng = StdRng::seed_from_u64(seed);
    let dir = tempfile::tempdir().unwrap();
    std::fs::create_dir(dir.path().join("folder")).unwrap();
    std::fs::write(dir.path().join("folder/all.yaml"), FOLDER).unwrap();
    let recipients = Arc::new(Recipients::default());
    let mut account = Account {
        kills: rng.random_range(1..=4),
        ..Account::default()
    };

    let mut unsent: Vec<(String, SendRequest)> = (0..rng.random_range(10..40))
        .map(|n| {
            let to = (0..rng.random_range(1..=4)).map(|to| {
                serde_json::from_value::<RecipientRef>(
                    serde_json::json!({"address": {"email": format!("p{to}@{n}.example")}}),
                )
                .unwrap()
            });
            let request = SendRequest {
                template: if rng.random_bool(0.3) {
                    "code"
                } else {
                    "order"
                }
                .to_owned(),
                recipients: to.collect(),
                parameters: serde_json::json!({"n": n}).as_object().unwrap().clone(),
                ..SendRequest::default()
            };
            (format!("key-{n}"), request)
        })
        .collect();
    let mut accepted: Vec<(NotificationId, usize)> = Vec::new();
    let sender = Sender {
        name: Arc::from("test"),
        rights: Rights::Scopes(Scopes::EVERYTHING),
    };

    for life in 0..=account.kills {
        let is_last = life == account.kills;
        let running = Life::begin(dir.path(), seed ^ (life as u64) << 32, guards, &recipients);
        let share = if is_last {
            unsent.len()
        } else {
            rng.random_range(0..=unsent.len())
        };
        let runs_for = Duration::from_millis(rng.random_range(5..120));
        running.runtime.block_on(async {
            let began = Instant::now();
            let mut sent_here = 0;
            while sent_here < share && (is_last || began.elapsed() < runs_for) {
                let Some((key, request)) = unsent.first() else {
                    break;
                };
                let answer = running
                    .accept
                    .accept(&sender, "shop", request.clone(), Some(key), None)
                    .await;
                // Without a receipt the sender repeats with its key, here or in the next life.
                if let Ok(answer) = answer {
                    let (_, request) = unsent.remove(0);
                    accepted.push((answer.id, request.recipients.len()));
                    sent_here += 1;
                }
            }
            if !is_last {
                tokio::time::sleep(runs_for.saturating_sub(began.elapsed())).await;
                return;
            }
            // The last life comes to an end by itself.
            let began = Instant::now();
            loop {
                let mut all_ended = true;
                for (id, _) in &accepted {
                    let record = running.store.notification("shop", id).await.unwrap();
                    all_ended &= record.is_some_and(|record| record.ended());
                }
                if (all_ended && running.store.unended().await.unwrap() == (0, 0))
                    || began.elapsed() > PATIENCE
                {
                    break;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
            settle_account(&running, &accepted, &recipients, &mut account).await;
        });
        account.redriven += running.metrics.redriven.get();
        running.kill();
    }
    account
}

async fn settle_account(
    life: &Life,
    accepted: &[(NotificationId, usize)],
    recipients: &Recipients,
    account: &mut Account,
) {
    let paging = Paging {
        limit: 100,
        cursor: None,
    };
    for (id, count) in accepted {
        account.accepted += count;
        let deliveries = life
            .store
            .deliveries("shop", id, None, &paging)
            .await
            .unwrap()
            .items;
        account.lost += count.saturating_sub(deliveries.len());
        if deliveries.len() < *count {
            let record = life.store.notification("shop", id).await.unwrap();
            println!(
                "lost, {} of {count} deliveries of {id}: {record:?}",
                deliveries.len()
            );
        }
        for delivery in deliveries {
            let sent = recipients
                .sent
                .lock()
                .unwrap()
                .get(&delivery.id)
                .copied()
                .unwrap_or(0);
            account.lost += usize::from(sent == 0 || delivery.state != State::Sent);
            account.sent += sent;
            account.duplicates += sent.saturating_sub(1);
            let trail = life
                .store
                .trail("shop", &delivery.id, &paging)
                .await
                .unwrap()
                .items;
            if sent == 0 || delivery.state != State::Sent {
                println!("lost, sent {sent} times: {delivery:?} {trail:#?}");
            }
            let ends = trail.iter().filter(|entry| entry.step == "sent").count();
            // A duplicate astride a kill may have been told twice, by each life once; without one, once.
            account.ended_twice += usize::from(ends > sent.max(1));
        }
    }
}

/// Runs histories side by side; answers the violations, with their seeds.
fn run(seeds: impl Iterator<Item = u64> + Send, guards: Guards, until_first: bool) -> Vec<String> {
    let seeds = Mutex::new(seeds);
    let violations = Mutex::new(Vec::new());
    let (accepted, duplicates) = (AtomicUsize::new(0), AtomicUsize::new(0));
    std::thread::scope(|scope| {
        for _ in 0..SIDE_BY_SIDE {
            scope.spawn(|| {
                loop {
                    if until_first && !violations.lock().unwrap().is_empty() {
                        return;
                    }
                    let Some(seed) = seeds.lock().unwrap().next() else {
                        return;
                    };
                    let account = history(seed, guards);
                    accepted.fetch_add(account.accepted, Ordering::Relaxed);
                    duplicates.fetch_add(account.duplicates, Ordering::Relaxed);
                    let wrong = account.violations();
                    if !wrong.is_empty() {
                        violations
                            .lock()
                            .unwrap()
                            .push(format!("HERALD_SEED={seed}: {wrong}{account:?}"));
                    }
                }
            });
        }
    });
    println!(
        "accepted {}, duplicates {}, violations {}",
        accepted.load(Ordering::Relaxed),
        duplicates.load(Ordering::Relaxed),
        violations.lock().unwrap().len()
    );
    violations.into_inner().unwrap()
}

fn seeds(count: u64) -> Box<dyn Iterator<Item = u64> + Send> {
    let given = std::env::var("HERALD_SEED").ok();
    if let Some(seed) = given.and_then(|seed| seed.parse().ok()) {
        return Box::new(std::iter::once(seed));
    }
    let first: u64 = rand::random::<u32>().into();
    println!("seeds {first}..{}", first + count);
    Box::new(first..first + count)
}

#[test]
fn nothing_is_lost_and_no_more_is_sent_twice_than_the_window_admits() {
    let violations = run(seeds(HISTORIES), Guards::default(), false);
    assert!(violations.is_empty(), "{}", violations.join("\n"));
}

#[test]
fn without_the_memory_of_what_is_settled_more_is_sent_twice() {
    let guards = Guards {
        settled: false,
        ..Guards::default()
    };
    assert!(!run(seeds(HISTORIES), guards, true).is_empty());
}

#[test]
fn without_knowing_what_is_in_hand_more_is_sent_twice() {
    let guards = Guards {
        in_hand: false,
        ..Guards::default()
    };
    assert!(!run(seeds(HISTORIES), guards, true).is_empty());
}

#[test]
fn without_waiting_for_the_tail_more_is_sent_twice() {
    let guards = Guards {
        caught_up: false,
        ..Guards::default()
    };
    assert!(!run(seeds(HISTORIES), guards, true).is_empty());
}
