//! The directory's entries as statements: how people, their addresses, labels and groups are found and changed.

use sqlx::sqlite::SqliteConnection;

use super::{failed, json};
use crate::store::StoreError;
use crate::store::directory::{Batch, Before, Changes};

/// People by id. `?1` namespace, `?2` after this id, `?3` and `?4` from and before these ids, `?5` labels, `?6` limit.
pub(super) const BY_ID: &str = "
    SELECT r.recipient FROM recipients AS r
    WHERE r.namespace = ?1 AND r.id > ?2 AND r.id >= ?3 AND r.id < ?4
        AND NOT EXISTS (SELECT 1 FROM json_each(?5) AS t WHERE NOT EXISTS (
            SELECT 1 FROM recipient_labels AS l
            WHERE l.namespace = ?1 AND l.key = (t.value ->> 0) AND l.value = (t.value ->> 1)
                AND l.ord = r.ord AND l.id = r.id AND l.valid_to IS NULL))
    ORDER BY r.id LIMIT ?6";

/// People with a label of which there are not too many: `?7` is its key and `?8` its value; the others as above. The
/// signs keep SQLite from going through everybody in the order of ids instead.
pub(super) const BY_LABEL: &str = "
    SELECT r.recipient FROM recipient_labels AS first
        CROSS JOIN recipients AS r
            ON r.namespace = ?1 AND r.ord = first.ord AND r.id = first.id
    WHERE first.namespace = ?1 AND first.key = ?7 AND first.value = ?8 AND first.valid_to IS NULL
        AND +r.id > ?2 AND +r.id >= ?3 AND +r.id < ?4
        AND NOT EXISTS (SELECT 1 FROM json_each(?5) AS t WHERE NOT EXISTS (
            SELECT 1 FROM recipient_labels AS l
            WHERE l.namespace = ?1 AND l.key = (t.value ->> 0) AND l.value = (t.value ->> 1)
                AND l.ord = r.ord AND l.id = r.id AND l.valid_to IS NULL))
    ORDER BY r.id LIMIT ?6";

/// People with exactly this address: `?1` namespace, `?2` after this id, `?3` address, `?4` labels, `?5` limit.
pub(super) const BY_ADDRESS: &str = "
    SELECT r.recipient FROM recipient_addresses AS a
        CROSS JOIN recipients AS r ON r.namespace = ?1 AND r.id = a.id
    WHERE a.namespace = ?1 AND a.address = ?3 AND a.id > ?2
        AND NOT EXISTS (SELECT 1 FROM json_each(?4) AS t WHERE NOT EXISTS (
            SELECT 1 FROM recipient_labels AS l
            WHERE l.namespace = ?1 AND l.key = (t.value ->> 0) AND l.value = (t.value ->> 1)
                AND l.ord = r.ord AND l.id = r.id AND l.valid_to IS NULL))
    ORDER BY a.id LIMIT ?5";

/// How many people have a label, counted no further than [`MANY`](crate::store::directory::MANY).
pub(super) const COUNT_LABEL: &str = "
    SELECT count(*) FROM (
        SELECT 1 FROM recipient_labels
        WHERE namespace = ?1 AND key = ?2 AND value = ?3 AND valid_to IS NULL LIMIT ?4)";

pub(super) const FIND_EXISTING: &str = "
    SELECT n.key, r.recipient FROM json_each(?2) AS n
        CROSS JOIN recipients AS r
            ON r.namespace = ?1 AND r.ord = (n.value ->> 0) AND r.id = (n.value ->> 1)";

pub(super) const PUT_RECIPIENTS: &str = "
    INSERT INTO recipients (namespace, ord, id, recipient)
    SELECT ?1, n.value ->> 0, n.value ->> 1, n.value ->> 2 FROM json_each(?2) AS n WHERE true
    ON CONFLICT (namespace, ord, id) DO UPDATE SET recipient = excluded.recipient";

pub(super) const PUT_ADDRESSES: &str = "
    INSERT INTO recipient_addresses (namespace, address, id)
    SELECT ?1, n.value ->> 0, n.value ->> 1 FROM json_each(?2) AS n WHERE true
    ON CONFLICT DO NOTHING";

pub(super) const DELETE_ADDRESSES: &str = "
    DELETE FROM recipient_addresses WHERE (namespace, address, id) IN (
        SELECT ?1, n.value ->> 0, n.value ->> 1 FROM json_each(?2) AS n)";

pub(super) const PUT_LABELS: &str = "
    INSERT INTO recipient_labels (namespace, key, value, ord, id, valid_from)
    SELECT ?1, n.value ->> 0, n.value ->> 1, n.value ->> 2, n.value ->> 3, ?3
    FROM json_each(?2) AS n WHERE true
    ON CONFLICT (namespace, key, value, ord, id, valid_from) DO UPDATE SET valid_to = NULL";

pub(super) const END_LABELS: &str = "
    UPDATE recipient_labels SET valid_to = max(?3, valid_from)
    WHERE valid_to IS NULL AND (namespace, key, value, ord, id) IN (
        SELECT ?1, n.value ->> 0, n.value ->> 1, n.value ->> 2, n.value ->> 3 FROM json_each(?2) AS n)";

pub(super) const END_LABELS_OF: &str = "
    UPDATE recipient_labels INDEXED BY recipient_labels_id SET valid_to = max(?3, valid_from)
    WHERE namespace = ?1 AND id = ?2 AND valid_to IS NULL";

pub(super) const END_MEMBERSHIPS_OF: &str = "
    UPDATE members SET valid_to = max(?4, valid_from)
    WHERE group_id IN (SELECT id FROM groups WHERE namespace = ?1)
        AND ord = ?2 AND id = ?3 AND valid_to IS NULL";

pub(super) const END_MEMBERS: &str = "
    UPDATE members SET valid_to = max(?3, valid_from)
    WHERE valid_to IS NULL AND (group_id, ord, id) IN (
        SELECT ?1, n.value ->> 0, n.value ->> 1 FROM json_each(?2) AS n)";

pub(super) const PUT_MEMBERS: &str = "
    INSERT INTO members (group_id, ord, id, valid_from)
    SELECT ?1, n.value ->> 0, n.value ->> 1, ?3 FROM json_each(?2) AS n
    WHERE NOT EXISTS (
        SELECT 1 FROM members AS m
        WHERE m.group_id = ?1 AND m.ord = (n.value ->> 0) AND m.id = (n.value ->> 1)
            AND m.valid_to IS NULL)
    ON CONFLICT (group_id, ord, id, valid_from) DO UPDATE SET valid_to = NULL";

pub(super) const LIST_MEMBERS: &str = "
    SELECT m.id FROM members AS m
    WHERE m.group_id = (SELECT g.id FROM groups AS g WHERE g.namespace = ?1 AND g.name = ?2)
        AND m.id > ?3 AND m.valid_to IS NULL
    ORDER BY m.id LIMIT ?4";

/// What of a batch is in the directory already.
pub(super) async fn before(
    connection: &mut SqliteConnection,
    namespace: &str,
    batch: &Batch,
) -> Result<Before, StoreError> {
    let found: Vec<(i64, String)> = sqlx::query_as(FIND_EXISTING)
        .bind(namespace)
        .bind(json(&batch.asked()))
        .fetch_all(&mut *connection)
        .await
        .map_err(failed)?;
    Ok(batch.before(found))
}

pub(super) async fn put(
    connection: &mut SqliteConnection,
    namespace: &str,
    batch: &Batch,
    now: i64,
) -> Result<Vec<bool>, StoreError> {
    let before = before(connection, namespace, batch).await?;
    let old = before.changing(batch)?;
    let changes = Changes::new(batch, &before, &old);
    write(
        connection,
        PUT_RECIPIENTS,
        namespace,
        &changes.recipients,
        now,
    )
    .await?;
    write(
        connection,
        DELETE_ADDRESSES,
        namespace,
        &changes.old_addresses,
        now,
    )
    .await?;
    write(
        connection,
        PUT_ADDRESSES,
        namespace,
        &changes.new_addresses,
        now,
    )
    .await?;
    write(connection, END_LABELS, namespace, &changes.old_labels, now).await?;
    write(connection, PUT_LABELS, namespace, &changes.new_labels, now).await?;
    Ok(batch.new_ones(&before))
}

/// Writes rows with one statement; nothing, if there are none.
pub(super) async fn write<T: serde::Serialize>(
    connection: &mut SqliteConnection,
    statement: &'static str,
    namespace: &str,
    rows: &[T],
    now: i64,
) -> Result<(), StoreError> {
    if rows.is_empty() {
        return Ok(());
    }
    sqlx::query(statement)
        .bind(namespace)
        .bind(json(rows))
        .bind(now)
        .execute(connection)
        .await
        .map_err(failed)?;
    Ok(())
}
