use herald_crds::Priority;
use proptest::prelude::*;

use super::server::Database;
use super::*;
use crate::id::DeliveryId;
use crate::message::{Request, Step};
use crate::store::contract::histories::{Told, histories, tell_all};
use crate::store::contract::history::history_contract;
use crate::store::contract::people::people_contract;
use crate::store::contract::stages::{
    MAIL, at, event, failure, planned, release, request, rows, sent, settled, store_contract, tell,
};
use crate::store::{
    Chunk, HistoryStore, PlanStore, Planned, RecordStore, State, Turn, WaitingStore,
};

/// A store on a database of its own.
pub(super) struct Opened {
    pub(super) store: PostgresStore,
    pub(super) database: Database,
}

pub(super) async fn open() -> Opened {
    let database = Database::new().await;
    Opened {
        store: database.open().await,
        database,
    }
}

store_contract!(open);
history_contract!(open);
people_contract!(open);

impl Opened {
    /// All rows of a question, as text.
    async fn dump(&self, question: &'static str) -> Vec<String> {
        sqlx::query_scalar(question)
            .fetch_all(&self.store.pool)
            .await
            .unwrap()
    }
}

async fn normal(store: &PostgresStore, limit: usize) -> Chunk {
    store
        .chunk(MAIL, Priority::Normal, &Turn::default(), limit)
        .await
        .unwrap()
}

fn ids(chunk: &Chunk) -> Vec<DeliveryId> {
    chunk.rows.iter().map(|row| row.id).collect()
}

/// Cuts connections, as the death of a gateway does.
pub(super) async fn cut(opened: &Opened, which: &'static str) {
    sqlx::query(which)
        .fetch_all(&opened.store.pool)
        .await
        .unwrap();
}

const IN_TRANSACTION: &str = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
    WHERE datname = current_database() AND state = 'idle in transaction' AND pid <> pg_backend_pid()";

const OTHERS: &str = "SELECT pg_terminate_backend(pid, 10000) FROM pg_stat_activity
    WHERE datname = current_database() AND pid <> pg_backend_pid()";

#[tokio::test]
async fn two_gateways_never_hold_the_same_row() {
    let opened = open().await;
    let other = opened.database.open().await;
    let request = request("1");
    planned(&opened.store, &request, &rows(&request.id, 30)).await;
    let first = normal(&opened.store, 10).await;
    let second = normal(&other, 15).await;
    let mut held = [ids(&first), ids(&second)].concat();
    assert_eq!(held.len(), 25);
    held.sort_unstable();
    held.dedup();
    assert_eq!(held.len(), 25);
    settled(first, at(0)).await;
    settled(second, at(0)).await;
    assert_eq!(normal(&other, 30).await.rows.len(), 5);
    assert_eq!(opened.store.unended().await.unwrap(), (5, 25));
}

#[tokio::test]
async fn many_gateways_release_every_row_once() {
    let opened = open().await;
    for key in 0..5 {
        let request = request(&key.to_string());
        planned(&opened.store, &request, &rows(&request.id, 100)).await;
    }
    let mut gateways = tokio::task::JoinSet::new();
    for _ in 0..4 {
        let store = opened.database.open().await;
        gateways.spawn(async move {
            let mut released = Vec::new();
            while store.unended().await.unwrap().0 > 0 {
                let chunk = normal(&store, 7).await;
                released.extend(settled(chunk, at(0)).await.0.iter().map(|row| row.id));
            }
            released
        });
    }
    let mut released = gateways.join_all().await.concat();
    assert_eq!(released.len(), 500);
    released.sort_unstable();
    released.dedup();
    assert_eq!(released.len(), 500);
}

#[tokio::test]
async fn the_rows_of_a_gateway_whose_connection_is_cut_are_free_at_once() {
    let opened = open().await;
    let other = opened.database.open().await;
    let request = request("1");
    planned(&opened.store, &request, &rows(&request.id, 10)).await;
    let held = normal(&other, 10).await;
    assert!(normal(&opened.store, 10).await.rows.is_empty());
    cut(&opened, IN_TRANSACTION).await;
    let chunk = normal(&opened.store, 10).await;
    assert_eq!(ids(&chunk), ids(&held));
    let left: Vec<_> = held.rows.iter().map(|row| (row.row, 0, 1)).collect();
    let lost = held.hold.settle(&left, &[], &[], at(0)).await;
    assert!(matches!(lost, Err(StoreError::Unavailable { .. })));
    settled(chunk, at(0)).await;
    assert_eq!(opened.store.unended().await.unwrap(), (0, 10));
}

#[tokio::test]
async fn one_gateway_leads_a_channel_until_it_resigns_or_is_gone() {
    let opened = open().await;
    let other = opened.database.open().await;
    let leads = async |store: &PostgresStore| store.lead(MAIL).await.unwrap();
    assert!(leads(&opened.store).await);
    assert!(leads(&opened.store).await);
    assert!(!leads(&other).await);
    assert!(other.lead("shop/push").await.unwrap());
    other.resign(MAIL).await;
    assert!(!leads(&other).await);
    opened.store.resign(MAIL).await;
    assert!(leads(&other).await);
    cut(&opened, OTHERS).await;
    assert!(leads(&opened.store).await);
}

#[tokio::test]
async fn what_is_cancelled_while_it_is_held_has_left_or_is_cancelled() {
    let opened = open().await;
    let store = &opened.store;
    let request = request("1");
    planned(store, &request, &rows(&request.id, 10)).await;
    let chunk = normal(store, 4).await;
    let cancelled = store.cancel(&request.id, at(5));
    tokio::pin!(cancelled);
    let waits = tokio::time::timeout(Duration::from_millis(200), &mut cancelled).await;
    assert!(waits.is_err(), "rows are held");
    settled(chunk, at(4)).await;
    let recalled = cancelled.await.unwrap();
    assert_eq!((recalled.waiting, recalled.out), (6, 4));
    assert_eq!(store.unended().await.unwrap(), (0, 4));
}

#[tokio::test]
async fn what_is_put_to_rest_while_its_template_is_woken_is_woken_the_next_time() {
    let opened = open().await;
    let store = &opened.store;
    let request = request("1");
    planned(store, &request, &rows(&request.id, 2)).await;
    let rest = async |limit| {
        let Chunk { rows, hold, .. } = normal(store, limit).await;
        let resting: Vec<i64> = rows.iter().map(|row| row.row).collect();
        hold.settle(&[], &resting, &[], at(0)).await.unwrap();
    };
    rest(1).await;
    // Another gateway's row rests, but for its commit.
    let mut tx = store.begin().await.unwrap();
    for statement in [
        "INSERT INTO resting VALUES ('shop', 'order-shipped')
         ON CONFLICT (namespace, template) DO UPDATE SET template = excluded.template",
        "UPDATE deliveries SET waiting = 3 WHERE waiting = 2",
    ] {
        sqlx::query(statement).execute(&mut *tx).await.unwrap();
    }
    let woken = store.wake("shop", "order-shipped");
    tokio::pin!(woken);
    let waits = tokio::time::timeout(Duration::from_millis(200), &mut woken).await;
    assert!(waits.is_err(), "the entry is held");
    tx.commit().await.unwrap();
    woken.await.unwrap();
    assert_eq!(store.resting().await.unwrap().len(), 1);
    store.wake("shop", "order-shipped").await.unwrap();
    assert_eq!(store.resting().await.unwrap(), []);
    assert_eq!(release(store, 10, at(0)).await.len(), 2);
}

#[tokio::test]
async fn a_lost_connection_is_unavailable_and_the_next_call_has_another() {
    let opened = open().await;
    let store = &opened.store;
    let request = request("1");
    planned(store, &request, &rows(&request.id, 3)).await;
    let admin = opened.database.open().await;
    sqlx::query(OTHERS).fetch_all(&admin.pool).await.unwrap();
    let again = async {
        loop {
            match store.unended().await {
                Ok(unended) => break unended,
                Err(StoreError::Unavailable { .. }) => {}
                Err(other) => panic!("{other}"),
            }
        }
    };
    let again = tokio::time::timeout(Duration::from_secs(60), again).await;
    assert_eq!(again.unwrap(), (3, 0));
    assert_eq!(release(store, 3, at(0)).await.len(), 3);
}

/// Passes on, once `listen` is bound, what comes for the database.
async fn forward(listen: std::net::SocketAddr, to: PgConnectOptions) {
    let listener = tokio::net::TcpListener::bind(listen).await.unwrap();
    let (host, port) = (to.get_host().to_owned(), to.get_port());
    let socket = to.get_socket().cloned();
    tokio::spawn(async move {
        loop {
            let (mut from, _) = listener.accept().await.unwrap();
            let (host, socket) = (host.clone(), socket.clone());
            tokio::spawn(async move {
                // Whichever end breaks off, the other is told.
                let _ = if let Some(folder) = socket {
                    let path = folder.join(format!(".s.PGSQL.{port}"));
                    let mut to = tokio::net::UnixStream::connect(path).await.unwrap();
                    tokio::io::copy_bidirectional(&mut from, &mut to).await
                } else {
                    let mut to = tokio::net::TcpStream::connect((host, port)).await.unwrap();
                    tokio::io::copy_bidirectional(&mut from, &mut to).await
                };
            });
        }
    });
}

#[tokio::test]
async fn a_database_that_is_away_is_unavailable_until_it_is_there() {
    let database = Database::empty().await;
    let to: PgConnectOptions = database.url.parse().unwrap();
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap();
    drop(listener);
    let name = to.get_database().unwrap();
    let options = Options {
        patience: Duration::from_millis(200),
        ..Options::new(format!(
            "postgres://{}:secret@{address}/{name}?sslmode=disable",
            to.get_username()
        ))
    };
    let store = PostgresStore::open(options).await.unwrap();
    let away = store.unended().await.unwrap_err();
    assert!(matches!(away, StoreError::Unavailable { .. }), "{away}");
    assert!(!away.to_string().contains("secret"), "{away}");

    forward(address, to).await;
    let there = async {
        while store.unended().await.is_err() {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), there)
        .await
        .unwrap();
    // A step of planning is no question that may be repeated at will.
    let patient = database.open().await;
    let request = request("1");
    planned(&patient, &request, &rows(&request.id, 2)).await;
    let sees_it = async {
        while store.unended().await.ok() != Some((2, 0)) {
            tokio::task::yield_now().await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), sees_it)
        .await
        .unwrap();
}

#[tokio::test]
async fn what_no_waiting_cures_is_said_with_its_place_and_without_its_password() {
    let database = Database::empty().await;
    let to: PgConnectOptions = database.url.parse().unwrap();
    let name = to.get_database().unwrap();
    let nowhere = database
        .url
        .replace(&format!("/{name}"), "/nowhere")
        .replacen(
            &format!("{}@", to.get_username()),
            &format!("{}:secret@", to.get_username()),
            1,
        );
    let refused = PostgresStore::open(Options::new(nowhere)).await;
    let refused = refused.err().unwrap().to_string();
    assert!(refused.contains("/nowhere"), "{refused}");
    assert!(!refused.contains("secret"), "{refused}");
}

#[tokio::test]
async fn a_statement_that_takes_too_long_is_unavailable() {
    let opened = open().await;
    let options = Options {
        statement_timeout: Duration::from_secs(2),
        ..opened.database.options()
    };
    let store = PostgresStore::open(options).await.unwrap();
    let slow = sqlx::query("SELECT pg_sleep(60)")
        .execute(&store.pool)
        .await
        .map_err(failed);
    assert!(matches!(slow, Err(StoreError::Unavailable { .. })));
    assert_eq!(store.unended().await.unwrap(), (0, 0));
}

#[tokio::test]
async fn a_newer_schema_is_refused_only_by_programs_it_no_longer_supports() {
    let opened = open().await;
    let schema = async |version: usize, oldest: usize| {
        sqlx::query("UPDATE herald_schema SET version = $1, oldest = $2")
            .bind(version as i32)
            .bind(oldest as i32)
            .execute(&opened.store.pool)
            .await
            .unwrap();
    };
    let known = migrate::STEPS.len();
    schema(known + 2, known).await;
    let store = opened.database.open().await;
    planned(&store, &request("1"), &rows(&request("1").id, 2)).await;
    schema(known + 2, known + 1).await;
    let refused = PostgresStore::open(opened.database.options()).await;
    let refused = refused.err().unwrap().to_string();
    assert!(refused.contains("use a newer program"), "{refused}");
    // Those that are at work go on: what they use goes only with a later step.
    assert_eq!(store.unended().await.unwrap(), (2, 0));
}

#[tokio::test]
async fn programs_that_start_together_make_the_schema_once() {
    let database = Database::empty().await;
    let opening = (0..4).map(|_| PostgresStore::open(database.options()));
    for opened in futures::future::join_all(opening).await {
        opened.unwrap();
    }
}

#[tokio::test]
async fn a_day_that_is_over_and_has_ended_is_dropped_whole() {
    const DAY: i64 = 86_400_000;
    let opened = open().await;
    let store = &opened.store;
    let day = days::day(at(0).as_millisecond());
    let old = request("old");
    planned(store, &old, &rows(&old.id, 3)).await;
    let next = Request {
        accepted_at: at(DAY),
        ..request("next")
    };
    planned(store, &next, &rows(&next.id, 1)).await;
    let partitions = async |day: i32| {
        let found: i64 =
            sqlx::query_scalar("SELECT count(*) FROM pg_class WHERE relname = ANY($1)")
                .bind(
                    days::PARTITIONED
                        .map(|table| format!("{table}_{day}"))
                        .to_vec(),
                )
                .fetch_one(&store.pool)
                .await
                .unwrap();
        found
    };
    assert_eq!((partitions(day).await, partitions(day + 1).await), (3, 3));
    assert_eq!(store.expire(at(2 * DAY), 10).await.unwrap(), 0);
    assert_eq!(partitions(day).await, 3, "it has not ended");
    store.cancel(&old.id, at(10)).await.unwrap();
    assert_eq!(store.expire(at(2 * DAY), 10).await.unwrap(), 1);
    assert_eq!((partitions(day).await, partitions(day + 1).await), (0, 3));
    assert!(store.requests(&[old.id]).await.unwrap().is_empty());
    // Another gateway believes that the day is there still; a late request finds it made again.
    planned(store, &old, &rows(&old.id, 3)).await;
    assert_eq!(store.unended().await.unwrap(), (4, 0));
}

#[tokio::test]
async fn a_day_that_another_gateway_dropped_is_made_again() {
    let opened = open().await;
    let other = opened.database.open().await;
    let one = request("1");
    planned(&other, &one, &rows(&one.id, 1)).await;
    other.cancel(&one.id, at(1)).await.unwrap();
    planned(&opened.store, &request("2"), &[]).await;
    other.expire(at(10 * 86_400_000), 10).await.unwrap();
    let late = [Arc::new(request("3"))];
    let first = opened.store.insert_notifications(&[], &late).await;
    assert!(matches!(first, Err(StoreError::Unavailable { .. })));
    let again = opened.store.insert_notifications(&[], &late).await;
    assert_eq!(again.unwrap(), [Planned::Inserted]);
}

/// Waits until somebody waits for a lock.
async fn somebody_waits(store: &PostgresStore) {
    let waiting = async {
        loop {
            let waiting: i64 = sqlx::query_scalar(
                "SELECT count(*) FROM pg_locks AS l JOIN pg_database AS d ON d.oid = l.database
                 WHERE NOT l.granted AND d.datname = current_database()",
            )
            .fetch_one(&store.pool)
            .await
            .unwrap();
            if waiting > 0 {
                return;
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(60), waiting)
        .await
        .expect("nobody waits for a lock");
}

#[tokio::test]
async fn a_day_of_which_something_is_just_replayed_is_not_dropped() {
    let opened = open().await;
    let store = &opened.store;
    let request = request("1");
    planned(store, &request, &rows(&request.id, 2)).await;
    store.cancel(&request.id, at(1)).await.unwrap();
    let mut replay = store.begin().await.unwrap();
    for statement in [
        "UPDATE deliveries SET state = 1, waiting = 2, ended_at = NULL",
        "UPDATE notifications SET cancelled = 0, queued = 2, ended_at = NULL",
    ] {
        sqlx::query(statement).execute(&mut *replay).await.unwrap();
    }
    let other = opened.database.open().await;
    let day = days::day(at(0).as_millisecond());
    let dropped = store.drop_days(day + 1, i64::MAX);
    tokio::pin!(dropped);
    tokio::select! {
        dropped = &mut dropped => panic!("{dropped:?} without waiting for the replay"),
        () = somebody_waits(&other) => {}
    }
    replay.commit().await.unwrap();
    dropped.await.unwrap();
    assert_eq!(store.unended().await.unwrap(), (2, 0));
}

#[tokio::test]
async fn texts_with_a_nul_are_kept_without_it() {
    let opened = open().await;
    let store = &opened.store;
    let request = request("1");
    planned(store, &request, &rows(&request.id, 1)).await;
    let out = release(store, 1, at(0)).await;
    let mut error = failure();
    error.detail = "a\0b".into();
    let failed = Step::Failed {
        error,
        delivery: None,
        address_gone: false,
    };
    let event = event(&out[0], 1, 10, failed);
    tell(store, vec![event.clone()]).await;
    tell(store, vec![event]).await;
    let record = store.delivery("shop", &out[0].id).await.unwrap().unwrap();
    assert_eq!(record.error.as_deref(), Some("a\u{fffd}b"));
}

#[tokio::test]
async fn recorders_that_meet_do_not_wait_for_each_other_in_a_circle() {
    let opened = open().await;
    let request = request("1");
    planned(&opened.store, &request, &rows(&request.id, 200)).await;
    let out = release(&opened.store, 200, at(0)).await;
    let mut events: Vec<_> = out.iter().map(|row| event(row, 1, 10, sent())).collect();
    let mut recorders = tokio::task::JoinSet::new();
    for _ in 0..4 {
        events.rotate_left(50);
        events.reverse();
        let (store, events) = (opened.database.open().await, events.clone());
        recorders.spawn(async move {
            for some in events.chunks(60) {
                tell(&store, some.to_vec()).await;
            }
        });
    }
    recorders.join_all().await;
    assert_eq!(opened.store.unended().await.unwrap(), (0, 0));
    let record = opened.store.notification("shop", &request.id).await;
    let counts = record.unwrap().unwrap().counts;
    assert_eq!(counts.into_iter().collect::<Vec<_>>(), [(State::Sent, 200)]);
}

/// What is recorded, in full: two stores with the same text have recorded the same.
const RECORDED: &str = "SELECT what::text COLLATE \"C\" FROM (
    SELECT json_build_array('delivery', id, state, waiting, dead, round, attempt, tried, due_at, heard_at, ended_at,
        provider, provider_id, milliseconds, reason, error) AS what FROM deliveries
    UNION ALL SELECT json_build_array('carried', id, convert_from(delivery, 'UTF8')) FROM carried
    UNION ALL SELECT json_build_array('trail', id, at, round, attempt, step, detail) FROM trail
    UNION ALL SELECT json_build_array('counts', scheduled, queued, sending, retrying, suppressed, cancelled, expired,
        failed, unknown, sent, ended_at IS NULL) FROM notifications) AS everything
    ORDER BY 1";

/// Records events in the order and the batches given; answers all that is recorded then.
async fn recorded(told: &[Told], order: &[usize], batch: usize) -> Vec<String> {
    let opened = open().await;
    tell_all(&opened.store, told, order, batch).await;
    let recorded = opened.dump(RECORDED).await;
    opened.store.close().await;
    recorded
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 16, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn repeated_reordered_and_interleaved_events_record_the_same((told, order, batch) in histories(3)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let straight: Vec<usize> = (0..told.len()).collect();
        let expected = runtime.block_on(recorded(&told, &straight, told.len()));
        let found = runtime.block_on(recorded(&told, &order, batch));
        prop_assert_eq!(expected, found);
    }
}
