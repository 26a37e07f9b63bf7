use std::sync::Mutex;

use herald_crds::{RecipientRef, ScheduleSpec};
use serde_json::json;
use tempfile::TempDir;
use tokio::sync::watch;

use super::*;
use crate::accept::Scopes;
use crate::access::{Rights, Unknown};
use crate::id::NotificationId;
use crate::store::sqlite::{self, SqliteStore};
use crate::store::{PeopleStore, ScheduleRecord};

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

/// Notes whose rights are asked for.
#[derive(Default)]
struct Accounts(Mutex<Vec<String>>);

#[async_trait]
impl Access for Accounts {
    async fn sender(&self, _: &str) -> Result<Sender, Unknown> {
        unreachable!("a schedule shows no token")
    }

    fn service_account(&self, namespace: &str, name: &str) -> Rights {
        self.0.lock().unwrap().push(format!("{namespace}/{name}"));
        Rights::Scopes(Scopes::default())
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
    accounts: Arc<Accounts>,
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
            accounts: Arc::default(),
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
            Arc::clone(&self.accounts) as _,
            Arc::new(catalog),
            Arc::clone(&self.store) as _,
            Arc::default(),
        )
    }

    fn declared(&self) -> &Schedule {
        &self.snapshot.schedules["shop/digest"]
    }

    fn fired(&self) -> Vec<String> {
        self.ear.keys.lock().unwrap().clone()
    }

    async fn record(&self) -> ScheduleRecord {
        let incarnation = Incarnation::of(self.declared());
        let record = self
            .store
            .schedule("shop", "digest", incarnation, Timestamp::now());
        record.await.unwrap()
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

/// The same, as Kubernetes has it.
fn made(uid: &str, created: &str, change: impl FnOnce(&mut ScheduleSpec)) -> Arc<Snapshot> {
    let declared = hourly(change);
    let mut schedule = Schedule::clone(&declared.schedules["shop/digest"]);
    let metadata = json!({"name": "digest", "uid": uid, "creationTimestamp": at(created)});
    schedule.metadata = serde_json::from_value(metadata).unwrap();
    Arc::new(Snapshot {
        schedules: [("shop/digest".into(), Arc::new(schedule))].into(),
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
async fn a_schedule_may_do_what_the_service_account_may_that_it_names() {
    for (named, asked) in [(None, "shop/default"), (Some("mailer"), "shop/mailer")] {
        let bench = Bench::new(|spec| spec.service_account_name = named.map(str::to_owned)).await;
        let mut schedules = bench.schedules();
        schedules.turn(&bench.snapshot, at("09:59:50")).await;
        schedules.turn(&bench.snapshot, at("10:00:00")).await;
        assert_eq!(*bench.accounts.0.lock().unwrap(), [asked]);
        assert_eq!(bench.fired().len(), 1);
    }
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
    let record = bench.record().await;
    assert_eq!((record.missed, record.last_fired), (1, None));
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
    assert_eq!(record.refused, None, "what passes is not told");
}

#[tokio::test(flavor = "multi_thread")]
async fn one_that_was_deleted_before_a_due_time_and_is_made_anew_after_it_does_not_fire_for_it() {
    let mut bench = Bench::new(|_| {}).await;
    bench.snapshot = made("u-1", "08:10:00", |_| {});
    let mut schedules = bench.schedules();
    schedules.turn(&bench.snapshot, at("09:00:00")).await;
    assert_eq!(bench.fired().len(), 1);
    // Its deadline is not over, and it was not there.
    bench.snapshot = made("u-2", "10:40:00", |_| {});
    for mut schedules in [schedules, bench.schedules()] {
        let sleep = schedules.turn(&bench.snapshot, at("10:40:01")).await;
        assert_eq!(sleep, Some(Duration::from_secs(20 * 60 - 1)));
        assert_eq!(bench.fired().len(), 1);
    }
    let record = bench.record().await;
    assert_eq!((record.missed, record.last_fired), (0, None));
    bench
        .schedules()
        .turn(&bench.snapshot, at("11:00:00"))
        .await;
    assert_eq!(bench.fired()[1], "shop/digest/2026-03-01T11:00:00Z");
}

#[tokio::test(flavor = "multi_thread")]
async fn what_was_due_before_anybody_could_look_fires_if_it_was_declared_in_time() {
    let once = |spec: &mut ScheduleSpec| {
        spec.schedule = None;
        spec.at = Some("2026-03-01T18:00".to_owned());
    };
    let mut bench = Bench::new(once).await;
    bench.snapshot = made("u-1", "17:55:00", once);
    bench
        .schedules()
        .turn(&bench.snapshot, at("18:05:00"))
        .await;
    assert_eq!(bench.fired(), ["shop/digest/2026-03-01T18:00:00Z"]);
    // Too late for it: it is counted.
    let mut bench = Bench::new(once).await;
    bench.snapshot = made("u-1", "17:55:00", once);
    bench
        .schedules()
        .turn(&bench.snapshot, at("19:00:01"))
        .await;
    assert_eq!(bench.fired(), [""; 0]);
    assert_eq!(bench.record().await.missed, 1);
}

fn missing() -> Refusal {
    Refusal::FindTemplate {
        namespace: "shop".to_owned(),
        template: "digest".to_owned(),
        wrong: None,
        close: Vec::new(),
        problems: Vec::new(),
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn why_a_schedule_is_refused_is_noted_until_it_fires() {
    let mut bench = Bench::new(|_| {}).await;
    let mut schedules = bench.schedules();
    schedules.turn(&bench.snapshot, at("09:30:00")).await;
    *bench.ear.refuses.lock().unwrap() = Some(missing());
    let sleep = schedules.turn(&bench.snapshot, at("10:00:00")).await;
    assert_eq!(sleep, Some(WRONG));
    let refused = |bench: &Bench, due| RefusedDue {
        due: at(due),
        declared: digest(bench.declared()),
        message: missing().to_string(),
    };
    let first = refused(&bench, "10:00:00");
    let record = bench.record().await;
    assert_eq!(
        (record.refused, record.last_fired),
        (Some(first.clone()), None)
    );
    // Beyond the deadline it is skipped, and nothing has been sent for all that.
    bench.snapshot = hourly(|spec| spec.starting_deadline_seconds = Some(60));
    bench
        .schedules()
        .turn(&bench.snapshot, at("10:30:00"))
        .await;
    let record = bench.record().await;
    assert_eq!((record.missed, record.last_fired), (1, None));
    // What is declared now was not refused yet, whoever remembers what was declared before.
    assert_ne!(first.declared, digest(bench.declared()));
    assert_eq!(record.refused, Some(first));
    schedules.turn(&bench.snapshot, at("11:00:00")).await;
    let second = Some(refused(&bench, "11:00:00"));
    assert_eq!(bench.record().await.refused, second);
    *bench.ear.refuses.lock().unwrap() = None;
    bench
        .schedules()
        .turn(&bench.snapshot, at("11:00:30"))
        .await;
    let record = bench.record().await;
    assert_eq!(record.last_fired, Some(at("11:00:00")));
    assert_eq!(record.refused, None);
}

#[test]
fn a_schedule_is_told_from_one_that_was_made_anew_and_not_from_itself() {
    let mut schedule = Schedule::new("digest", ScheduleSpec::default());
    let without = digest(&schedule);
    schedule.metadata.uid = Some("u-1".to_owned());
    let first = digest(&schedule);
    schedule.metadata.labels = Some([("team".to_owned(), "shop".to_owned())].into());
    assert_eq!(digest(&schedule), first, "it is the same");
    schedule.metadata.uid = Some("u-2".to_owned());
    let anew = digest(&schedule);
    assert!(anew != first && first != without);
    schedule.spec.service_account_name = Some("mailer".to_owned());
    assert_ne!(digest(&schedule), anew, "it was edited");
}
