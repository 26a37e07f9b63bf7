//! How PostgreSQL means to answer a statement: no question may read a whole table that grows.

use serde_json::Value;
use sqlx::{AssertSqlSafe, Row as _};

use super::tests::open;
use super::*;

/// Tables that may be read whole: they hold one row for each channel, group, day or key, or what is gone at once.
const SMALL: &[&str] = &[
    "channels", "days", "keys", "groups", "orphans", "resting", "garbage",
];

/// Indexes that may be read from one end: they hold only what is asked for, in the order asked for.
const PARTIAL: &[&str] = &[
    "notifications_pending",
    "notifications_open_days",
    "notifications_planned",
];

/// The plan of a statement for whatever its parameters are. Partitions are not left out, as they would be by the day.
async fn plan(connection: &mut sqlx::PgConnection, name: &str, statement: &str) -> Value {
    let most = (1..=20)
        .rev()
        .find(|n| statement.contains(&format!("${n}")))
        .unwrap_or(0);
    let nulls = vec!["NULL"; most].join(", ");
    let arguments = if most == 0 {
        String::new()
    } else {
        format!("({nulls})")
    };
    let script = format!(
        "SET plan_cache_mode = force_generic_plan; SET enable_partition_pruning = off; PREPARE {name} AS {statement}"
    );
    sqlx::raw_sql(AssertSqlSafe(script))
        .execute(&mut *connection)
        .await
        .unwrap_or_else(|error| panic!("{error} in {statement}"));
    let explain = format!("EXPLAIN (FORMAT JSON) EXECUTE {name}{arguments}");
    let row = sqlx::raw_sql(AssertSqlSafe(explain))
        .fetch_one(connection)
        .await
        .unwrap_or_else(|error| panic!("{error} in {statement}"));
    let text: String = row.try_get_unchecked(0).unwrap();
    serde_json::from_str(&text).unwrap()
}

/// Says what a plan, or a part of it, reads whole.
fn whole(node: &Value, found: &mut Vec<String>) {
    let text = |key: &str| node[key].as_str().unwrap_or_default();
    let table = text("Relation Name");
    let table = table.trim_end_matches(|c: char| c.is_ascii_digit() || c == '_');
    let reads = match text("Node Type") {
        "Seq Scan" => !SMALL.contains(&table),
        "Index Scan" | "Index Only Scan" | "Bitmap Index Scan" => {
            let condition = text("Index Cond");
            let of_all = ["(namespace = ", "(day >= ", "(day = "]
                .iter()
                .any(|start| condition.starts_with(start) && !condition.contains("AND"));
            (condition.is_empty() || of_all)
                && !SMALL.contains(&table)
                && !PARTIAL.contains(&text("Index Name"))
        }
        _ => false,
    };
    if reads {
        found.push(format!(
            "{} of {} by {} where {}",
            text("Node Type"),
            text("Relation Name"),
            text("Index Name"),
            text("Index Cond")
        ));
    }
    for part in node["Plans"].as_array().into_iter().flatten() {
        whole(part, found);
    }
}

#[tokio::test]
async fn no_statement_reads_a_whole_table() {
    let opened = open().await;
    let today = days::day(clock::now().as_millisecond());
    let sent = plain::of_day(plain::SENT, today);
    let retrying = plain::of_day(plain::RETRYING, today);
    let statements: Vec<&str> = [
        OPEN_SINCE,
        days::OVER,
        tally::COUNT,
        tally::SENSITIVE,
        tally::BLANK,
        rows::INSERT,
        rows::KNOWN,
        rows::WRITE,
        plan::RIPEN,
        plan::LOCK,
        plan::MOVED,
        plan::UNRESOLVED,
        plan::NEXT_UNRESOLVED,
        members::IDS,
        members::MANAGED,
        members::COUNT_MANAGED,
        members::LABELLED,
        members::COUNT_LABELLED,
        members::SUPPRESSED,
        plan::CLAIM,
        plan::OWNED,
        members::REACHED,
        plan::REQUESTS,
        hold::HEADS,
        hold::CHUNK,
        hold::RELEASED,
        hold::RESTING,
        hold::REST,
        hold::UNREADABLE,
        waiting::WAKE,
        waiting::WOKEN,
        orders::LATE,
        waiting::RIPEN,
        waiting::RIPE,
        waiting::NEXT_DUE,
        waiting::CHANNELS,
        orders::OPEN,
        orders::OPEN_OF_TEMPLATE,
        orders::CANCEL,
        orders::NOTE,
        orders::OF_NOTIFICATION,
        orders::PRIORITIZED,
        orders::NOT_CARRIED,
        orders::CANCELLED,
        waiting::END_OF_CHANNEL,
        waiting::DROP_SENSITIVE,
        waiting::DUE,
        waiting::SCHEDULED,
        waiting::HAS_DEAD,
        plain::PLACES,
        &sent,
        &retrying,
        folded::FOLDED,
        folded::CALLED_BACK,
        folded::FOLD,
        folded::DROP_CARRIED,
        folded::PUT_CARRIED,
        record::ORPHANED,
        record::ADOPT,
        record::ORPHANED_WITH_ROW,
        record::OVERDUE,
        expire::ENDED,
        history::NOTIFICATION,
        history::NOTIFICATIONS,
        history::NOTIFICATIONS_OF_TEMPLATE,
        history::NOTIFICATIONS_OF_RECIPIENT,
        history::DELIVERY,
        history::DELIVERIES,
        history::DELIVERIES_OF_RECIPIENT,
        history::TRAIL,
        history::NOTIFICATION_TRAIL,
        history::VERSIONS,
        history::IN_FORCE,
        dead::DEAD,
        dead::DEAD_BY_ID,
        dead::PICK,
        dead::PICK_BY_ID,
        dead::REFUSED,
        dead::REFUSED_BY_ID,
        dead::REPLAY,
        dead::CARRIED,
        dead::CARRY,
        dead::DISCARD,
        dead::NOTE,
        entries::BY_ID,
        entries::BY_LABEL,
        entries::BY_ADDRESS,
        entries::COUNT_LABEL,
        entries::FIND_EXISTING,
        entries::PUT_RECIPIENTS,
        entries::PUT_ADDRESSES,
        entries::DELETE_ADDRESSES,
        entries::PUT_LABELS,
        entries::END_LABELS,
        entries::END_LABELS_OF,
        entries::END_MEMBERSHIPS_OF,
        entries::END_MEMBERS,
        entries::PUT_MEMBERS,
        entries::LIST_MEMBERS,
        people::LIST_SUPPRESSIONS,
        people::SCHEDULE,
        people::BEGIN_SCHEDULE,
    ]
    .into_iter()
    .chain(waiting::OF_CHANNEL)
    .chain(expire::EXPIRE)
    .chain(expire::OLD)
    .chain(dead::KEEP)
    .collect();
    let mut connection = opened.store.pool.acquire().await.unwrap().detach();
    sqlx::raw_sql(include_str!("fill.sql"))
        .execute(&mut connection)
        .await
        .unwrap();
    let mut wrong = Vec::new();
    for (number, statement) in statements.into_iter().enumerate() {
        let plan = plan(&mut connection, &format!("question_{number}"), statement).await;
        let mut found = Vec::new();
        whole(&plan[0]["Plan"], &mut found);
        found.dedup();
        for what in found {
            wrong.push(format!("{what}\n    in {statement}"));
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
}

#[tokio::test]
async fn only_the_days_that_matter_are_looked_into() {
    let opened = open().await;
    let mut connection = opened.store.pool.acquire().await.unwrap();
    let today = days::day(clock::now().as_millisecond());
    let question = format!(
        "EXPLAIN (FORMAT TEXT) {}",
        waiting::DUE
            .replace("$1", "1")
            .replace("$2", &(today + 6).to_string())
    );
    let lines = sqlx::raw_sql(AssertSqlSafe(question))
        .fetch_all(&mut *connection)
        .await
        .unwrap();
    let lines: Vec<String> = lines
        .iter()
        .map(|line| line.try_get_unchecked(0).unwrap())
        .collect();
    let scans = lines.iter().filter(|line| line.contains("Scan")).count();
    assert_eq!(scans, 2, "{lines:#?}");
}
