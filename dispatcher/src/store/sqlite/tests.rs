use std::sync::Arc;

use herald_crds::Priority;
use proptest::prelude::*;
use sqlx::Row as _;

use super::*;
use crate::message::{Event, Request, Step, Suppression};
use crate::store::contract::histories::{Told, histories, tell_all};
use crate::store::contract::history::history_contract;
use crate::store::contract::people::people_contract;
use crate::store::contract::stages::{
    MAIL, Stages, at, delivery, event, failure, planned, release, request, returned, row, rows,
    sent, store_contract, tell,
};
use crate::store::{Cursor, Incarnation, PeopleStore, PlanStore, RecordStore, Turn, WaitingStore};

/// A store in a folder of its own.
pub(super) struct Opened {
    pub(super) store: SqliteStore,
    /// Deleted with it.
    folder: tempfile::TempDir,
}

impl Opened {
    async fn reopened(self) -> Self {
        let Self { store, folder } = self;
        store.close().await;
        drop(store);
        Self {
            store: open_in(&folder).await,
            folder,
        }
    }

    /// All rows of a question, as text.
    async fn dump(&self, question: &'static str) -> Vec<String> {
        sqlx::query_scalar(question)
            .fetch_all(&self.store.readers)
            .await
            .unwrap()
    }
}

async fn open_in(folder: &tempfile::TempDir) -> SqliteStore {
    let options = Options {
        synchronous: false,
        ..Options::default()
    };
    SqliteStore::open(&folder.path().join("store.db"), options)
        .await
        .unwrap()
}

pub(super) async fn open() -> Opened {
    let folder = tempfile::tempdir().unwrap();
    Opened {
        store: open_in(&folder).await,
        folder,
    }
}

store_contract!(open);
history_contract!(open);
people_contract!(open);

#[tokio::test]
async fn what_was_committed_is_there_after_opening_again() {
    let opened = open().await;
    let one = request("1");
    planned(&opened.store, &one, &rows(&one.id, 3)).await;
    let out = release(&opened.store, 1, at(0)).await;
    let early = Event {
        delivery: row(&request("2").id, "ann").id,
        ..event(&out[0], 1, 10, sent())
    };
    tell(&opened.store, vec![early]).await;

    let opened = opened.reopened().await;
    assert_eq!(opened.store.unended().await.unwrap(), (2, 1));
    assert_eq!(release(&opened.store, 10, at(0)).await.len(), 2);
    // The outcome that was there before its row is found again too.
    let two = request("2");
    planned(&opened.store, &two, &[row(&two.id, "ann")]).await;
    assert_eq!(opened.store.unended().await.unwrap(), (0, 3));
}

#[tokio::test]
async fn a_file_that_is_in_use_cannot_be_opened_again() {
    let opened = open().await;
    let path = opened.folder.path().join("store.db");
    let again = SqliteStore::open(&path, Options::default()).await;
    assert!(matches!(again, Err(StoreError::Open { .. })));
}

#[tokio::test]
async fn a_file_at_its_bound_is_unavailable_and_goes_on_afterwards() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        synchronous: false,
        max_bytes: Some(512 * 1024),
        ..Options::default()
    };
    let store = SqliteStore::open(&folder.path().join("store.db"), options)
        .await
        .unwrap();
    let request = request("1");
    planned(&store, &request, &rows(&request.id, 10)).await;
    let large = crate::store::contract::stages::request("2");
    store
        .insert_notifications(&[], &[Arc::new(large.clone())])
        .await
        .unwrap();
    let start = Cursor::default();
    let refused = store
        .resolve_step(&large.id, &start, None, &rows(&large.id, 10_000), at(0))
        .await;
    assert!(matches!(refused, Err(StoreError::Unavailable { .. })));
    assert_eq!(store.unended().await.unwrap(), (10, 0));
    assert_eq!(release(&store, 10, at(0)).await.len(), 10);
}

#[tokio::test]
async fn a_schedule_is_not_due_from_before_a_file_that_knows_nothing_of_then() {
    let folder = tempfile::tempdir().unwrap();
    let options = Options {
        synchronous: false,
        since: Some(at(100)),
        ..Options::default()
    };
    let store = SqliteStore::open(&folder.path().join("store.db"), options)
        .await
        .unwrap();
    let begins = async |name: &str, created: i64, now: i64| {
        let incarnation = Incarnation {
            uid: Some("one"),
            created_at: Some(at(created)),
        };
        let record = store.schedule("shop", name, incarnation, at(now)).await;
        record.unwrap().created_at
    };
    assert_eq!(begins("old", 0, 200).await, at(100));
    assert_eq!(begins("new", 150, 200).await, at(150));
    assert_eq!(begins("by a clock that is behind", 0, 50).await, at(50));
}

const COUNTS: &str =
    "SELECT json_array(scheduled, queued, sending, retrying, suppressed, cancelled, expired,
        failed, unknown, sent, rows, ended_at) FROM notifications ORDER BY id";

#[tokio::test]
async fn counts_and_the_end_follow_the_rows() {
    let opened = open().await;
    let store = &opened.store;
    let request = request("1");
    let mut people = rows(&request.id, 5);
    people[3].due = at(9_000);
    people[4].suppressed = Some(Suppression::NoAddress);
    planned(store, &request, &people).await;
    let counts = async || opened.dump(COUNTS).await.remove(0);
    assert_eq!(counts().await, "[1,3,0,0,1,0,0,0,0,0,5,null]");
    let out = release(store, 2, at(1)).await;
    assert_eq!(counts().await, "[1,1,2,0,1,0,0,0,0,0,5,null]");
    let back = returned(&out[0], 1, at(60_000));
    tell(store, vec![event(&out[0], 1, 10, back)]).await;
    assert_eq!(counts().await, "[1,1,1,1,1,0,0,0,0,0,5,null]");
    tell(store, vec![event(&out[1], 1, 20, sent())]).await;
    store.ripen(at(60_000), 10).await.unwrap();
    assert_eq!(counts().await, "[0,2,0,1,1,0,0,0,0,1,5,null]");
    let chunk = store
        .chunk(MAIL, Priority::Normal, &Turn::default(), 1)
        .await
        .unwrap();
    let resting = [chunk.rows[0].row];
    let settled = chunk.hold.settle(&[], &resting, &[], at(65_000));
    settled.await.unwrap();
    assert_eq!(counts().await, "[0,2,0,1,1,0,0,0,0,1,5,null]");
    store.cancel(&request.id, at(70_000)).await.unwrap();
    let ended = at(70_000).as_millisecond();
    assert_eq!(counts().await, format!("[0,0,0,0,1,3,0,0,0,1,5,{ended}]"));
    // A late `sent` counts for what was cancelled.
    tell(store, vec![event(&out[0], 1, 80_000, sent())]).await;
    let ended = at(80_000).as_millisecond();
    assert_eq!(counts().await, format!("[0,0,0,0,1,2,0,0,0,2,5,{ended}]"));
}

#[tokio::test]
async fn a_notification_without_recipients_has_ended_when_it_is_resolved() {
    let opened = open().await;
    planned(&opened.store, &request("1"), &[]).await;
    let ended = at(0).as_millisecond();
    assert_eq!(
        opened.dump(COUNTS).await,
        [format!("[0,0,0,0,0,0,0,0,0,0,0,{ended}]")]
    );
}

#[tokio::test]
async fn sensitive_parameters_are_blanked_and_contents_dropped_when_all_has_ended() {
    let opened = open().await;
    let store = &opened.store;
    let secret = Request {
        sensitive: true,
        ..request("secret")
    };
    planned(store, &secret, &rows(&secret.id, 2)).await;
    let parameters = async || {
        let request = store.requests(&[secret.id]).await.unwrap().remove(0);
        request.parameters.get().to_owned()
    };
    let out = release(store, 10, at(0)).await;
    let back = returned(&out[0], 1, at(10));
    tell(
        store,
        vec![event(&out[0], 1, 10, back), event(&out[1], 1, 10, sent())],
    )
    .await;
    assert_eq!(parameters().await, secret.parameters.get());
    let mut whole = delivery(&out[0], 2);
    whole.sensitive = true;
    let failed = Step::Failed {
        error: failure(),
        delivery: Some(Box::new(whole)),
        address_gone: false,
    };
    tell(store, vec![event(&out[0], 2, 20, failed)]).await;
    assert_eq!(parameters().await, "{}");
    let carried = opened
        .dump("SELECT CAST(delivery AS TEXT) FROM carried")
        .await;
    assert!(carried.is_empty());
}

#[tokio::test]
async fn a_dead_letter_carries_its_delivery_until_it_turns_out_to_be_sent() {
    let opened = open().await;
    let store = &opened.store;
    let request = request("1");
    planned(store, &request, &rows(&request.id, 1)).await;
    let out = release(store, 10, at(0)).await;
    let failed = Step::Failed {
        error: failure(),
        delivery: Some(Box::new(delivery(&out[0], 1))),
        address_gone: false,
    };
    tell(store, vec![event(&out[0], 1, 10, failed)]).await;
    let dead = "SELECT json_array(state, reason, error, provider) FROM deliveries WHERE dead = 1";
    assert_eq!(
        opened.dump(dead).await,
        [r#"[7,"smtp-451","greylisted","ses"]"#]
    );
    let carried = "SELECT CAST(delivery AS TEXT) FROM carried";
    assert_eq!(
        opened.dump(carried).await,
        [serde_json::to_string(&delivery(&out[0], 1)).unwrap()]
    );
    tell(store, vec![event(&out[0], 1, 20, sent())]).await;
    assert!(opened.dump(dead).await.is_empty());
    assert!(opened.dump(carried).await.is_empty());
}

#[tokio::test]
async fn nothing_of_an_expired_notification_is_left_in_any_table() {
    let opened = open().await;
    let store = &opened.store;
    let request = request("1");
    planned(store, &request, &rows(&request.id, 2)).await;
    let out = release(store, 10, at(0)).await;
    let failed = Step::Failed {
        error: failure(),
        delivery: Some(Box::new(delivery(&out[0], 1))),
        address_gone: false,
    };
    let stray = Event {
        delivery: row(&request.id, "nobody").id,
        ..event(&out[0], 1, 10, sent())
    };
    let back = returned(&out[1], 1, at(60_000));
    tell(
        store,
        vec![
            event(&out[0], 1, 10, failed),
            event(&out[1], 1, 10, back),
            stray,
        ],
    )
    .await;
    store
        .prioritize(&request.id, Priority::High, at(15))
        .await
        .unwrap();
    store.cancel(&request.id, at(20)).await.unwrap();
    let left = "SELECT 'notifications' FROM notifications UNION ALL SELECT 'requests' FROM requests
        UNION ALL SELECT 'deliveries' FROM deliveries UNION ALL SELECT 'carried' FROM carried
        UNION ALL SELECT 'trail' FROM trail UNION ALL SELECT 'orphans' FROM orphans
        UNION ALL SELECT 'notification_trail' FROM notification_trail";
    let mut before = opened.dump(left).await;
    before.dedup();
    assert_eq!(before.len(), 7, "{before:?}");
    assert_eq!(store.expire(at(1_000), 10).await.unwrap(), 1);
    assert_eq!(opened.dump(left).await, [] as [&str; 0]);
}

#[tokio::test]
async fn a_sent_delivery_that_was_released_once_leaves_no_line_in_the_trail() {
    let opened = open().await;
    let store = &opened.store;
    let request = request("1");
    planned(store, &request, &rows(&request.id, 1)).await;
    let out = release(store, 10, at(0)).await;
    let first = event(&out[0], 1, 10, sent());
    tell(store, vec![first.clone(), first.clone()]).await;
    let trail = "SELECT step || ' ' || attempt FROM trail ORDER BY at";
    assert_eq!(opened.dump(trail).await, [] as [&str; 0]);
    // A duplicate does: whichever of the two the row does not tell of.
    tell(store, vec![event(&out[0], 2, 20, sent())]).await;
    tell(store, vec![first]).await;
    assert_eq!(opened.dump(trail).await, ["sent 1"]);
}

/// The steps of a plan.
async fn plan(store: &SqliteStore, statement: &str) -> Vec<String> {
    sqlx::query(sqlx::AssertSqlSafe(format!(
        "EXPLAIN QUERY PLAN {statement}"
    )))
    .fetch_all(&store.readers)
    .await
    .unwrap()
    .iter()
    .map(|step| step.get("detail"))
    .collect()
}

#[tokio::test]
async fn the_questions_of_the_hot_path_read_their_index_and_sort_nothing() {
    let opened = open().await;
    let cases = [
        (
            hold::HEADS,
            "deliveries_ready (channel=? AND priority=? AND namespace>?)",
        ),
        (
            hold::HEADS,
            "deliveries_ready (channel=? AND priority=? AND namespace=? AND notification>?)",
        ),
        (
            hold::CHUNK,
            "deliveries_ready (channel=? AND priority=? AND namespace=? AND notification=?)",
        ),
        (
            waiting::LATE,
            "notifications_expiring (expires_at>? AND expires_at<?)",
        ),
        (waiting::WAKE, "deliveries_resting (notification=?)"),
        (
            waiting::RIPE,
            "deliveries_scheduled (channel=? AND priority=? AND due_at<?)",
        ),
        (
            waiting::NEXT_DUE,
            "deliveries_scheduled (channel=? AND priority=?)",
        ),
        (waiting::CHANNELS, "deliveries_out (channel=?)"),
        (
            orders::OF_NOTIFICATIONS,
            "sqlite_autoindex_deliveries_1 (id>? AND id<?)",
        ),
        (
            waiting::OF_CHANNEL,
            "deliveries_resting_channel (channel=?)",
        ),
        (
            orders::OPEN_OF_TEMPLATE,
            "notifications_open (namespace=? AND template=? AND rowid>?)",
        ),
        (
            hold::RELEASED,
            "deliveries USING INTEGER PRIMARY KEY (rowid=?)",
        ),
        (record::OVERDUE, "deliveries_out (channel=? AND heard_at<?)"),
        (folded::FOLDED, "sqlite_autoindex_deliveries_1 (id=?)"),
        (
            folded::FOLD,
            "deliveries USING INTEGER PRIMARY KEY (rowid=?)",
        ),
        (plan::UNRESOLVED, "notifications_pending"),
        (plan::MOVED, "sqlite_autoindex_notifications_1 (id=?)"),
        (
            members::MANAGED,
            "m USING PRIMARY KEY (group_id=? AND (ord,id)>(?,?))",
        ),
        (
            members::LABELLED,
            "m USING PRIMARY KEY (namespace=? AND key=? AND value=? AND (ord,id)>(?,?))",
        ),
    ];
    for (statement, index) in cases {
        let steps = plan(&opened.store, statement).await;
        assert!(
            steps.iter().any(|step| step.contains(index)),
            "{index} is not in {steps:#?}"
        );
        let sorts = steps.iter().any(|step| step.contains("TEMP B-TREE"));
        assert!(!sorts, "{steps:#?}");
        explain::reads_no_whole_table(
            &opened.store,
            statement,
            &["c", "n", "notifications", "spaces", "heads"],
        )
        .await;
    }
    explain::reads_no_whole_table(&opened.store, members::REACHED, &[]).await;
}

/// What is recorded, in full: two stores with the same text have recorded the same.
const RECORDED: &str = "SELECT json_array('delivery', hex(id), state, waiting, dead, round, attempt, tried, due_at,
        heard_at, ended_at, provider, provider_id, milliseconds, reason, error) FROM deliveries
    UNION ALL SELECT json_array('carried', row, CAST(delivery AS TEXT)) FROM carried
    UNION ALL SELECT json_array('trail', row, at, round, attempt, step, detail) FROM trail
    UNION ALL SELECT json_array('counts', scheduled, queued, sending, retrying, suppressed, cancelled, expired,
        failed, unknown, sent, ended_at IS NULL) FROM notifications
    ORDER BY 1";

/// Records events in the order and the batches given; answers all that is recorded then.
async fn recorded(told: &[Told], order: &[usize], batch: usize) -> Vec<String> {
    let opened = open().await;
    tell_all(&opened.store, told, order, batch).await;
    opened.dump(RECORDED).await
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn repeated_reordered_and_interleaved_events_record_the_same((told, order, batch) in histories(3)) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let straight: Vec<usize> = (0..told.len()).collect();
        let expected = runtime.block_on(recorded(&told, &straight, told.len()));
        let found = runtime.block_on(recorded(&told, &order, batch));
        prop_assert_eq!(expected, found);
    }
}

#[tokio::test]
async fn a_row_that_cannot_be_read_ends_and_the_others_go_on() {
    let opened = open().await;
    let store = &opened.store;
    let request = request("1");
    planned(store, &request, &rows(&request.id, 2)).await;
    let out = release(store, 10, at(0)).await;
    let back = returned(&out[0], 1, at(10));
    tell(store, vec![event(&out[0], 1, 10, back)]).await;
    let other = crate::store::contract::stages::request("2");
    planned(store, &other, &rows(&other.id, 1)).await;
    store.ripen(at(20), 10).await.unwrap();
    let spoil = "UPDATE carried SET delivery = 'spoilt'";
    store
        .write(move |c| {
            Box::pin(async move { sqlx::query(spoil).execute(c).await.map_err(failed) })
        })
        .await
        .unwrap();
    let turn = Turn::default();
    let chunk = store
        .chunk(MAIL, Priority::Normal, &turn, 10)
        .await
        .unwrap();
    assert_eq!(chunk.rows.len(), 1);
    assert_eq!(chunk.unreadable.len(), 1);
    assert!(chunk.unreadable[0].reason.contains("carried.delivery"));
    let left: Vec<_> = chunk.rows.iter().map(|row| (row.row, 0, 1)).collect();
    let settled = chunk.hold.settle(&left, &[], &chunk.unreadable, at(30));
    settled.await.unwrap();
    assert_eq!(release(store, 10, at(30)).await.len(), 0);
    let dead = "SELECT json_array(state, dead, reason, round) FROM deliveries WHERE dead = 1";
    assert_eq!(opened.dump(dead).await, [r#"[7,1,"unreadable",0]"#]);
    assert_eq!(opened.dump("SELECT row FROM carried").await.len(), 0);
    assert_eq!(
        opened.dump(COUNTS).await.len(),
        2,
        "two notifications are counted"
    );
}

#[tokio::test]
async fn a_notification_that_cannot_be_read_ends_and_the_others_are_resolved() {
    let opened = open().await;
    let store = &opened.store;
    let [spoilt, sound] = ["1", "2"].map(|key| Arc::new(request(key)));
    let both = [Arc::clone(&spoilt), Arc::clone(&sound)];
    store.insert_notifications(&[], &both).await.unwrap();
    let spoil = "UPDATE requests SET request = '{}' WHERE notification = 1";
    store
        .write(move |c| {
            Box::pin(async move { sqlx::query(spoil).execute(c).await.map_err(failed) })
        })
        .await
        .unwrap();
    let unresolved = store.unresolved(at(0), 10).await.unwrap();
    let left: Vec<_> = unresolved.iter().map(|one| one.request.id).collect();
    assert_eq!(left, [sound.id]);
    let ended = "SELECT json_array(reason, state) FROM deliveries";
    assert_eq!(opened.dump(ended).await, [r#"["unreadable",7]"#]);
    let ids = [spoilt.id, sound.id];
    assert_eq!(store.requests(&ids).await.unwrap().len(), 1);
}
