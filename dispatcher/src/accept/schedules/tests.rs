use std::sync::Mutex;

use herald_crds::{RecipientRef, ScheduleSpec};
use tempfile::TempDir;
use tokio::sync::watch;

use super::*;
use crate::id::NotificationId;
use crate::store::PeopleStore;
use crate::store::sqlite::{self, SqliteStore};

/// Notes what is fired, and refuses when told to.
#[derive(Default)]
struct Ear {
    keys: Mutex<Vec<String>>,
    refuses: Mutex<Option<Refusal>>,
}

#[async_trait]
impl Fire for Ear {
    async fn fire(
        &self,
        sender: &Sender,
        namespace: &str,
        request: SendRequest,
        key: &str,
    ) -> Result<Accepted, Refusal> {
        assert_eq!(&*sender.name, "schedule:digest");
        assert_eq!(request.template, "digest");
        self.keys.lock().unwrap().push(key.to_owned());
        if let Some(refusal) = self.refuses.lock().unwrap().clone() {
            return Err(refusal);
        }
        Ok(Accepted {
            id: NotificationId::from_key(namespace, &sender.name, key),
            accepted_at: Timestamp::UNIX_EPOCH,
            priority: herald_crds::Priority::Low,
            replayed: false,
        })
    }
}

struct Fixed(watch::Sender<Arc<Snapshot>>);

impl Catalog for Fixed {
    fn current(&self) -> Arc<Snapshot> {
        Arc::clone(&self.0.borrow())
    }

    fn changes(&self) -> watch::Receiver<Arc<Snapshot>> {
        self.0.subscribe()
    }
}

/// A schedule that is due at the beginning of each hour, its state in a database.
struct Bench {
    ear: Arc<Ear>,
    store: Arc<SqliteStore>,
    snapshot: Arc<Snapshot>,
    _dir: TempDir,
}

impl Bench {
    async fn new(change: impl FnOnce(&mut ScheduleSpec)) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let options = sqlite::Options {
            synchronous: false,
            ..sqlite::Options::default()
        };
        let path = dir.path().join("history.db");
        let store = SqliteStore::open(&path, options).await.unwrap();
        Self {
            ear: Arc::default(),
            store: Arc::new(store),
            snapshot: hourly(change),
            _dir: dir,
        }
    }

    /// As after a start: nothing is remembered but what the database has.
    fn schedules(&self) -> Schedules {
        let catalog = Fixed(watch::channel(Arc::clone(&self.snapshot)).0);
        Schedules::new(
            Arc::clone(&self.ear) as _,
            Arc::new(catalog),
            Arc::clone(&self.store) as _,
            Arc::default(),
        )
    }

    fn fired(&self) -> Vec<String> {
        self.ear.keys.lock().unwrap().clone()
    }

    async fn record(&self) -> ScheduleRecord {
        let now = Timestamp::now();
        self.store.schedule("shop", "digest", now).await.unwrap()
    }
}

fn hourly(change: impl FnOnce(&mut ScheduleSpec)) -> Arc<Snapshot> {
    let mut spec = ScheduleSpec {
        schedule: Some("0 * * * *".to_owned()),
        template: "digest".to_owned(),
        recipients: vec![RecipientRef {
            group: Some("board".to_owned()),
            ..RecipientRef::default()
        }],
        ..ScheduleSpec::default()
    };
    change(&mut spec);
    let schedule = Arc::new(Schedule::new("digest", spec));
    Arc::new(Snapshot {
        schedules: [("shop/digest".into(), schedule)].into(),
        ..Snapshot::default()
    })
}

fn at(time: &str) -> Timestamp {
    format!("2026-03-01T{time}Z").parse().unwrap()
}

#[tokio::test(flavor = "multi_thread")]
async fn each_due_time_fires_once_also_across_a_restart() {
    let bench = Bench::new(|_| {}).await;
    let mut schedules = bench.schedules();
    let sleep = schedules.turn(&bench.snapshot, at("09:59:50")).await;
    assert_eq!(sleep, Some(Duration::from_secs(10)));
    assert_eq!(bench.fired(), [""; 0]);
    let sleep = schedules.turn(&bench.snapshot, at("10:00:00")).await;
    assert_eq!(sleep, Some(LONGEST_SLEEP));
    schedules.turn(&bench.snapshot, at("10:00:01")).await;
    let mut again = bench.schedules();
    again.turn(&bench.snapshot, at("10:30:00")).await;
    assert_eq!(bench.fired(), ["shop/digest/2026-03-01T10:00:00Z"]);
    again.turn(&bench.snapshot, at("11:00:00")).await;
    assert_eq!(bench.fired().len(), 2);
    assert_eq!(bench.record().await.missed, 0);
}

#[tokio::test(flavor = "multi_thread")]
async fn after_an_outage_only_the_latest_due_time_fires_and_the_others_are_counted() {
    let bench = Bench::new(|_| {}).await;
    bench
        .schedules()
        .turn(&bench.snapshot, at("09:30:00"))
        .await;
    bench
        .schedules()
        .turn(&bench.snapshot, at("13:30:00"))
        .await;
    assert_eq!(bench.fired(), ["shop/digest/2026-03-01T13:00:00Z"]);
    assert_eq!(bench.record().await.missed, 3);
}

#[tokio::test(flavor = "multi_thread")]
async fn a_due_time_missed_by_more_than_the_deadline_is_skipped_for_good() {
    let bench = Bench::new(|spec| spec.starting_deadline_seconds = Some(60)).await;
    bench
        .schedules()
        .turn(&bench.snapshot, at("09:30:00"))
        .await;
    bench
        .schedules()
        .turn(&bench.snapshot, at("10:01:01"))
        .await;
    bench
        .schedules()
        .turn(&bench.snapshot, at("10:01:02"))
        .await;
    assert_eq!(bench.fired(), [""; 0]);
    assert_eq!(bench.record().await.missed, 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_would_have_been_due_while_suspended_never_fires() {
    let mut bench = Bench::new(|spec| spec.suspend = true).await;
    bench
        .schedules()
        .turn(&bench.snapshot, at("09:30:00"))
        .await;
    bench
        .schedules()
        .turn(&bench.snapshot, at("10:00:10"))
        .await;
    bench.snapshot = hourly(|_| {});
    bench
        .schedules()
        .turn(&bench.snapshot, at("10:00:20"))
        .await;
    assert_eq!(bench.fired(), [""; 0]);
    bench
        .schedules()
        .turn(&bench.snapshot, at("11:00:00"))
        .await;
    assert_eq!(bench.fired().len(), 1);
}

#[tokio::test(flavor = "multi_thread")]
async fn what_is_refused_is_tried_again_under_the_same_key() {
    let bench = Bench::new(|_| {}).await;
    bench
        .schedules()
        .turn(&bench.snapshot, at("09:30:00"))
        .await;
    *bench.ear.refuses.lock().unwrap() = Some(Refusal::Receipt);
    let mut schedules = bench.schedules();
    let sleep = schedules.turn(&bench.snapshot, at("10:00:00")).await;
    assert_eq!(sleep, Some(AGAIN));
    // Too early: nothing is tried.
    schedules.turn(&bench.snapshot, at("10:00:01")).await;
    assert_eq!(bench.fired().len(), 1);
    *bench.ear.refuses.lock().unwrap() = None;
    bench
        .schedules()
        .turn(&bench.snapshot, at("10:00:05"))
        .await;
    let fired = bench.fired();
    assert_eq!(fired.len(), 2);
    assert_eq!(fired[0], fired[1]);
    let record = bench.record().await;
    assert_eq!(record.last_due, Some(at("10:00:00")));
    assert!(record.last_notification.is_some());
}
