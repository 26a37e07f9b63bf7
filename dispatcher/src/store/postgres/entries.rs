//! The directory's entries as statements: how people, their addresses, labels and groups are found and changed.

use sqlx::postgres::PgConnection;

use super::{failed, json};
use crate::store::StoreError;
use crate::store::directory::{Batch, Before, Changes};

/// Of a recipient `r`: has all labels, `$5` keys and `$6` values.
macro_rules! labelled {
    () => {
        " AND NOT EXISTS (SELECT 1 FROM unnest($5::text[], $6::text[]) AS t(key, value) WHERE NOT EXISTS (
            SELECT 1 FROM recipient_labels AS l
            WHERE l.namespace = $1 AND l.key = t.key AND l.value = t.value AND l.ord = r.ord AND l.id = r.id
                AND l.valid_to IS NULL)) "
    };
}

/// People by id. `$1` namespace, `$2` after this id, `$3` and `$4` from and before these ids, `$7` limit.
pub(super) const BY_ID: &str = concat!(
    "SELECT r.recipient FROM recipients AS r
     WHERE r.namespace = $1 AND r.id > $2 AND r.id >= $3 AND r.id < $4",
    labelled!(),
    "ORDER BY r.id LIMIT $7"
);

/// People with a label of which there are not too many: `$8` is its key and `$9` its value; the others as above.
pub(super) const BY_LABEL: &str = concat!(
    "WITH few AS MATERIALIZED (
         SELECT f.ord, f.id FROM recipient_labels AS f
         WHERE f.namespace = $1 AND f.key = $8 AND f.value = $9 AND f.valid_to IS NULL)
     SELECT r.recipient FROM few JOIN recipients AS r ON r.namespace = $1 AND r.ord = few.ord AND r.id = few.id
     WHERE few.id > $2 AND few.id >= $3 AND few.id < $4",
    labelled!(),
    "ORDER BY r.id LIMIT $7"
);

/// People with exactly this address (`$3`); `$4` is not asked about.
pub(super) const BY_ADDRESS: &str = concat!(
    "SELECT r.recipient FROM recipient_addresses AS a
         JOIN recipients AS r ON r.namespace = $1 AND r.id = a.id
     WHERE a.namespace = $1 AND a.address = $3 AND a.id > $2 AND $4::text IS NOT NULL",
    labelled!(),
    "ORDER BY a.id LIMIT $7"
);

/// How many people have a label, counted no further than [`MANY`](crate::store::directory::MANY).
pub(super) const COUNT_LABEL: &str = "SELECT count(*) FROM (
        SELECT 1 FROM recipient_labels
        WHERE namespace = $1 AND key = $2 AND value = $3 AND valid_to IS NULL LIMIT $4) AS some_of_them";

/// Rows come as JSON arrays.
///
/// What is looked up for each of them is behind `LATERAL (… OFFSET 0)`, and changed by its place (nobody else writes to a
/// namespace's directory meanwhile): a join PostgreSQL may turn round, and then it would read a whole namespace for each.
macro_rules! given {
    () => {
        "json_array_elements($2::json) WITH ORDINALITY AS n(value, place)"
    };
}

pub(super) const FIND_EXISTING: &str = concat!(
    "SELECT n.place - 1, r.recipient FROM ",
    given!(),
    " CROSS JOIN LATERAL (
         SELECT recipient FROM recipients
         WHERE namespace = $1 AND ord = (n.value ->> 0)::bigint AND id = (n.value ->> 1) OFFSET 0) AS r"
);

pub(super) const PUT_RECIPIENTS: &str = concat!(
    "INSERT INTO recipients (namespace, ord, id, recipient)
     SELECT $1, (n.value ->> 0)::bigint, n.value ->> 1, n.value ->> 2 FROM ",
    given!(),
    " WHERE $3::bigint IS NOT NULL
     ON CONFLICT (namespace, ord, id) DO UPDATE SET recipient = excluded.recipient"
);

pub(super) const PUT_ADDRESSES: &str = concat!(
    "INSERT INTO recipient_addresses (namespace, address, id)
     SELECT $1, n.value ->> 0, n.value ->> 1 FROM ",
    given!(),
    " WHERE $3::bigint IS NOT NULL ON CONFLICT DO NOTHING"
);

pub(super) const DELETE_ADDRESSES: &str = concat!(
    "DELETE FROM recipient_addresses WHERE ctid = ANY (ARRAY(SELECT a.ctid FROM ",
    given!(),
    " CROSS JOIN LATERAL (
         SELECT ctid FROM recipient_addresses
         WHERE namespace = $1 AND address = (n.value ->> 0) AND id = (n.value ->> 1) OFFSET 0) AS a
     WHERE $3::bigint IS NOT NULL))"
);

pub(super) const PUT_LABELS: &str = concat!(
    "INSERT INTO recipient_labels (namespace, key, value, ord, id, valid_from)
     SELECT $1, n.value ->> 0, n.value ->> 1, (n.value ->> 2)::bigint, n.value ->> 3, $3::bigint FROM ",
    given!(),
    " ON CONFLICT (namespace, key, value, ord, id, valid_from) DO UPDATE SET valid_to = NULL"
);

pub(super) const END_LABELS: &str = concat!(
    "UPDATE recipient_labels SET valid_to = greatest($3, valid_from) WHERE ctid = ANY (ARRAY(SELECT l.ctid FROM ",
    given!(),
    " CROSS JOIN LATERAL (
         SELECT ctid FROM recipient_labels
         WHERE valid_to IS NULL AND namespace = $1 AND key = (n.value ->> 0) AND value = (n.value ->> 1)
             AND ord = (n.value ->> 2)::bigint AND id = (n.value ->> 3) OFFSET 0) AS l))"
);

pub(super) const END_LABELS_OF: &str =
    "UPDATE recipient_labels SET valid_to = greatest($3, valid_from)
     WHERE namespace = $1 AND id = $2 AND valid_to IS NULL";

pub(super) const END_MEMBERSHIPS_OF: &str = "UPDATE members AS m SET valid_to = greatest($4, m.valid_from)
    FROM groups AS g WHERE g.namespace = $1 AND m.group_id = g.id AND m.ord = $2 AND m.id = $3 AND m.valid_to IS NULL";

pub(super) const END_MEMBERS: &str = concat!(
    "UPDATE members SET valid_to = greatest($3, valid_from) WHERE ctid = ANY (ARRAY(SELECT m.ctid FROM ",
    given!(),
    " CROSS JOIN LATERAL (
         SELECT ctid FROM members
         WHERE valid_to IS NULL AND group_id = $1 AND ord = (n.value ->> 0)::bigint AND id = (n.value ->> 1)
         OFFSET 0) AS m))"
);

pub(super) const PUT_MEMBERS: &str = concat!(
    "INSERT INTO members (group_id, ord, id, valid_from)
     SELECT $1::bigint, (n.value ->> 0)::bigint, n.value ->> 1, $3::bigint FROM ",
    given!(),
    " WHERE NOT EXISTS (
         SELECT 1 FROM members AS m
         WHERE m.group_id = $1 AND m.ord = (n.value ->> 0)::bigint AND m.id = (n.value ->> 1) AND m.valid_to IS NULL)
     ON CONFLICT (group_id, ord, id, valid_from) DO UPDATE SET valid_to = NULL"
);

pub(super) const LIST_MEMBERS: &str = "SELECT m.id FROM members AS m
    WHERE m.group_id = (SELECT g.id FROM groups AS g WHERE g.namespace = $1 AND g.name = $2)
        AND m.id > $3 AND m.valid_to IS NULL
    ORDER BY m.id LIMIT $4";

/// Two who write to one namespace's directory take turns: what changes with a recipient is found by reading it first. The
/// lock ends with the transaction.
pub(super) const IN_TURN: &str =
    "SELECT pg_advisory_xact_lock(hashtextextended('people ' || $1, 0))";

/// Begins to write to a namespace's directory.
pub(super) async fn in_turn(
    connection: &mut PgConnection,
    namespace: &str,
) -> Result<(), StoreError> {
    sqlx::query(IN_TURN)
        .bind(namespace)
        .execute(connection)
        .await
        .map_err(failed)?;
    Ok(())
}

/// What of a batch is in the directory already.
pub(super) async fn before(
    connection: &mut PgConnection,
    namespace: &str,
    batch: &Batch,
) -> Result<Before, StoreError> {
    let found: Vec<(i64, String)> = sqlx::query_as(FIND_EXISTING)
        .bind(namespace)
        .bind(json(&batch.asked()))
        .fetch_all(connection)
        .await
        .map_err(failed)?;
    Ok(batch.before(found))
}

pub(super) async fn put(
    connection: &mut PgConnection,
    namespace: &str,
    batch: &Batch,
    before: &Before,
    now: i64,
) -> Result<Vec<bool>, StoreError> {
    let old = before.changing(batch)?;
    let changes = Changes::new(batch, before, &old);
    for (statement, rows, n) in [
        (
            PUT_RECIPIENTS,
            json(&changes.recipients),
            changes.recipients.len(),
        ),
        (
            DELETE_ADDRESSES,
            json(&changes.old_addresses),
            changes.old_addresses.len(),
        ),
        (
            PUT_ADDRESSES,
            json(&changes.new_addresses),
            changes.new_addresses.len(),
        ),
        (
            END_LABELS,
            json(&changes.old_labels),
            changes.old_labels.len(),
        ),
        (
            PUT_LABELS,
            json(&changes.new_labels),
            changes.new_labels.len(),
        ),
    ] {
        if n > 0 {
            sqlx::query(statement)
                .bind(namespace)
                .bind(rows)
                .bind(now)
                .execute(&mut *connection)
                .await
                .map_err(failed)?;
        }
    }
    Ok(batch.new_ones(before))
}
