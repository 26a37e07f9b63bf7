//! The directory, managed groups, suppressions, schedules and keys.

use std::sync::atomic::Ordering;

use async_trait::async_trait;
use jiff::Timestamp;
use sqlx::sqlite::SqliteConnection;

use super::{SqliteStore, corrupt, cursor, failed, json, millis, timestamp, unanswered};
use crate::id::{NotificationId, order};
use crate::store::directory::{
    self, Batch, Before, Changes, MANY, beyond, members, parse, schedule_record,
};
use crate::store::{
    ApiKey, HistoryError, Page, Paging, PeopleStore, Recipient, ScheduleRecord, StoreError,
    SuppressedAddress,
};

/// People by id. `?1` namespace, `?2` after this id, `?3` and `?4` from and before these ids, `?5` labels, `?6` limit.
const BY_ID: &str = "
    SELECT r.recipient FROM recipients AS r
    WHERE r.namespace = ?1 AND r.id > ?2 AND r.id >= ?3 AND r.id < ?4
        AND NOT EXISTS (SELECT 1 FROM json_each(?5) AS t WHERE NOT EXISTS (
            SELECT 1 FROM recipient_labels AS l
            WHERE l.namespace = ?1 AND l.key = (t.value ->> 0) AND l.value = (t.value ->> 1)
                AND l.ord = r.ord AND l.id = r.id AND l.valid_to IS NULL))
    ORDER BY r.id LIMIT ?6";

/// People with a label of which there are not too many: `?7` is its key and `?8` its value; the others as above. The
/// signs keep SQLite from going through everybody in the order of ids instead.
const BY_LABEL: &str = "
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
const BY_ADDRESS: &str = "
    SELECT r.recipient FROM recipient_addresses AS a
        CROSS JOIN recipients AS r ON r.namespace = ?1 AND r.id = a.id
    WHERE a.namespace = ?1 AND a.address = ?3 AND a.id > ?2
        AND NOT EXISTS (SELECT 1 FROM json_each(?4) AS t WHERE NOT EXISTS (
            SELECT 1 FROM recipient_labels AS l
            WHERE l.namespace = ?1 AND l.key = (t.value ->> 0) AND l.value = (t.value ->> 1)
                AND l.ord = r.ord AND l.id = r.id AND l.valid_to IS NULL))
    ORDER BY a.id LIMIT ?5";

/// How many people have a label, counted no further than [`MANY`].
const COUNT_LABEL: &str = "
    SELECT count(*) FROM (
        SELECT 1 FROM recipient_labels
        WHERE namespace = ?1 AND key = ?2 AND value = ?3 AND valid_to IS NULL LIMIT ?4)";

const FIND_EXISTING: &str = "
    SELECT n.key, r.recipient FROM json_each(?2) AS n
        CROSS JOIN recipients AS r
            ON r.namespace = ?1 AND r.ord = (n.value ->> 0) AND r.id = (n.value ->> 1)";

const PUT_RECIPIENTS: &str = "
    INSERT INTO recipients (namespace, ord, id, recipient)
    SELECT ?1, n.value ->> 0, n.value ->> 1, n.value ->> 2 FROM json_each(?2) AS n WHERE true
    ON CONFLICT (namespace, ord, id) DO UPDATE SET recipient = excluded.recipient";

const PUT_ADDRESSES: &str = "
    INSERT INTO recipient_addresses (namespace, address, id)
    SELECT ?1, n.value ->> 0, n.value ->> 1 FROM json_each(?2) AS n WHERE true
    ON CONFLICT DO NOTHING";

const DELETE_ADDRESSES: &str = "
    DELETE FROM recipient_addresses WHERE (namespace, address, id) IN (
        SELECT ?1, n.value ->> 0, n.value ->> 1 FROM json_each(?2) AS n)";

const PUT_LABELS: &str = "
    INSERT INTO recipient_labels (namespace, key, value, ord, id, valid_from)
    SELECT ?1, n.value ->> 0, n.value ->> 1, n.value ->> 2, n.value ->> 3, ?3
    FROM json_each(?2) AS n WHERE true
    ON CONFLICT (namespace, key, value, ord, id, valid_from) DO UPDATE SET valid_to = NULL";

const END_LABELS: &str = "
    UPDATE recipient_labels SET valid_to = max(?3, valid_from)
    WHERE valid_to IS NULL AND (namespace, key, value, ord, id) IN (
        SELECT ?1, n.value ->> 0, n.value ->> 1, n.value ->> 2, n.value ->> 3 FROM json_each(?2) AS n)";

const END_LABELS_OF: &str = "
    UPDATE recipient_labels INDEXED BY recipient_labels_id SET valid_to = max(?3, valid_from)
    WHERE namespace = ?1 AND id = ?2 AND valid_to IS NULL";

const END_MEMBERSHIPS_OF: &str = "
    UPDATE members SET valid_to = max(?4, valid_from)
    WHERE group_id IN (SELECT id FROM groups WHERE namespace = ?1)
        AND ord = ?2 AND id = ?3 AND valid_to IS NULL";

const END_MEMBERS: &str = "
    UPDATE members SET valid_to = max(?3, valid_from)
    WHERE valid_to IS NULL AND (group_id, ord, id) IN (
        SELECT ?1, n.value ->> 0, n.value ->> 1 FROM json_each(?2) AS n)";

const PUT_MEMBERS: &str = "
    INSERT INTO members (group_id, ord, id, valid_from)
    SELECT ?1, n.value ->> 0, n.value ->> 1, ?3 FROM json_each(?2) AS n
    WHERE NOT EXISTS (
        SELECT 1 FROM members AS m
        WHERE m.group_id = ?1 AND m.ord = (n.value ->> 0) AND m.id = (n.value ->> 1)
            AND m.valid_to IS NULL)
    ON CONFLICT (group_id, ord, id, valid_from) DO UPDATE SET valid_to = NULL";

const LIST_MEMBERS: &str = "
    SELECT m.id FROM members AS m
    WHERE m.group_id = (SELECT g.id FROM groups AS g WHERE g.namespace = ?1 AND g.name = ?2)
        AND m.id > ?3 AND m.valid_to IS NULL
    ORDER BY m.id LIMIT ?4";

const LIST_SUPPRESSIONS: &str = "
    SELECT medium, address, reason, since FROM suppressions
    WHERE namespace = ?1 AND (address, medium) > (?2, ?3)
    ORDER BY address, medium LIMIT ?4";

const SCHEDULE: &str = "
    SELECT created_at, last_due, last_notification, missed FROM schedules
    WHERE namespace = ?1 AND name = ?2";

/// What of a batch is in the directory already.
async fn before(
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

async fn put(
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
async fn write<T: serde::Serialize>(
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

#[async_trait]
impl PeopleStore for SqliteStore {
    async fn put_recipients(
        &self,
        namespace: &str,
        recipients: &[Recipient],
        now: Timestamp,
    ) -> Result<Vec<bool>, StoreError> {
        let namespace = namespace.to_owned();
        let batch = Batch::new(recipients);
        let now = millis(now);
        self.write(move |c| Box::pin(async move { put(c, &namespace, &batch, now).await }))
            .await
    }

    async fn replace_recipient(
        &self,
        namespace: &str,
        recipient: &Recipient,
        expected: Option<&Recipient>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let namespace = namespace.to_owned();
        let batch = Batch::new(std::slice::from_ref(recipient));
        let (expected, now) = (expected.map(json), millis(now));
        self.write(move |c| {
            Box::pin(async move {
                let current = before(c, &namespace, &batch).await?;
                if !current.is(expected.as_deref()) {
                    return Ok(false);
                }
                put(c, &namespace, &batch, now).await?;
                Ok(true)
            })
        })
        .await
    }

    async fn recipient(&self, namespace: &str, id: &str) -> Result<Option<Recipient>, StoreError> {
        let found: Option<String> = sqlx::query_scalar(
            "SELECT recipient FROM recipients WHERE namespace = ?1 AND ord = ?2 AND id = ?3",
        )
        .bind(namespace)
        .bind(order(id))
        .bind(id)
        .fetch_optional(&self.readers)
        .await
        .map_err(failed)?;
        found.as_deref().map(parse).transpose()
    }

    async fn recipients(
        &self,
        namespace: &str,
        query: Option<&str>,
        labels: &[(String, String)],
        paging: &Paging,
    ) -> Result<Page<Recipient>, HistoryError> {
        let after: String = cursor::after(paging)?.unwrap_or_default();
        let prefix = query.unwrap_or_default();
        let limit = cursor::rows(paging);
        let mut rarest: Option<(i64, &(String, String))> = None;
        for label in labels {
            let count: i64 = sqlx::query_scalar(COUNT_LABEL)
                .bind(namespace)
                .bind(&label.0)
                .bind(&label.1)
                .bind(MANY)
                .fetch_one(&self.readers)
                .await
                .map_err(unanswered)?;
            if count < MANY && rarest.is_none_or(|(least, _)| count < least) {
                rarest = Some((count, label));
            }
        }
        let terms = json(labels);
        let statement = sqlx::query_scalar(if rarest.is_some() { BY_LABEL } else { BY_ID })
            .bind(namespace)
            .bind(&after)
            .bind(prefix)
            .bind(beyond(prefix))
            .bind(&terms)
            .bind(limit);
        let statement = match rarest {
            Some((_, (key, value))) => statement.bind(key).bind(value),
            None => statement,
        };
        let mut found: Vec<String> = statement
            .fetch_all(&self.readers)
            .await
            .map_err(unanswered)?;
        if !prefix.is_empty() {
            let by_address: Vec<String> = sqlx::query_scalar(BY_ADDRESS)
                .bind(namespace)
                .bind(&after)
                .bind(prefix)
                .bind(&terms)
                .bind(limit)
                .fetch_all(&self.readers)
                .await
                .map_err(unanswered)?;
            found.extend(by_address);
        }
        let people = directory::people(&found).map_err(HistoryError::Store)?;
        Ok(cursor::page(paging, people, |last| last.id.clone()))
    }

    async fn delete_recipient(
        &self,
        namespace: &str,
        id: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let (namespace, id, now) = (namespace.to_owned(), id.to_owned(), millis(now));
        self.write(move |c| {
            Box::pin(async move {
                let deleted = sqlx::query(
                    "DELETE FROM recipients WHERE namespace = ?1 AND ord = ?2 AND id = ?3",
                )
                .bind(&namespace)
                .bind(order(&id))
                .bind(&id)
                .execute(&mut *c)
                .await
                .map_err(failed)?;
                if deleted.rows_affected() == 0 {
                    return Ok(false);
                }
                sqlx::query("DELETE FROM recipient_addresses WHERE namespace = ?1 AND id = ?2")
                    .bind(&namespace)
                    .bind(&id)
                    .execute(&mut *c)
                    .await
                    .map_err(failed)?;
                sqlx::query(END_LABELS_OF)
                    .bind(&namespace)
                    .bind(&id)
                    .bind(now)
                    .execute(&mut *c)
                    .await
                    .map_err(failed)?;
                sqlx::query(END_MEMBERSHIPS_OF)
                    .bind(&namespace)
                    .bind(order(&id))
                    .bind(&id)
                    .bind(now)
                    .execute(c)
                    .await
                    .map_err(failed)?;
                Ok(true)
            })
        })
        .await
    }

    async fn change_members(
        &self,
        namespace: &str,
        group: &str,
        add: &[String],
        remove: &[String],
        now: Timestamp,
    ) -> Result<(u64, u64), StoreError> {
        let (namespace, group, now) = (namespace.to_owned(), group.to_owned(), millis(now));
        let (add, remove) = (members(add), members(remove));
        self.write(move |c| {
            Box::pin(async move {
                // Updating nothing makes RETURNING answer for a group that is there.
                let group: i64 = sqlx::query_scalar(
                    "INSERT INTO groups (namespace, name) VALUES (?1, ?2)
                     ON CONFLICT (namespace, name) DO UPDATE SET name = name RETURNING id",
                )
                .bind(namespace)
                .bind(group)
                .fetch_one(&mut *c)
                .await
                .map_err(failed)?;
                let mut changed = [0_u64; 2];
                let statements = [(END_MEMBERS, remove), (PUT_MEMBERS, add)];
                for ((statement, rows), changed) in statements.into_iter().zip(&mut changed) {
                    *changed = sqlx::query(statement)
                        .bind(group)
                        .bind(rows)
                        .bind(now)
                        .execute(&mut *c)
                        .await
                        .map_err(failed)?
                        .rows_affected();
                }
                let [removed, added] = changed;
                Ok((added, removed))
            })
        })
        .await
    }

    async fn group_members(
        &self,
        namespace: &str,
        group: &str,
        paging: &Paging,
    ) -> Result<Page<String>, HistoryError> {
        let after: String = cursor::after(paging)?.unwrap_or_default();
        let ids: Vec<String> = sqlx::query_scalar(LIST_MEMBERS)
            .bind(namespace)
            .bind(group)
            .bind(after)
            .bind(cursor::rows(paging))
            .fetch_all(&self.readers)
            .await
            .map_err(unanswered)?;
        Ok(cursor::page(paging, ids, Clone::clone))
    }

    async fn suppress(
        &self,
        namespace: &str,
        address: &SuppressedAddress,
    ) -> Result<(), StoreError> {
        // Before the row, so that nobody takes the list for empty once it is there.
        self.suppressing.store(true, Ordering::Release);
        let (namespace, address) = (namespace.to_owned(), address.clone());
        self.write(move |c| {
            Box::pin(async move {
                sqlx::query(
                    "INSERT INTO suppressions (namespace, medium, address, reason, since)
                     VALUES (?1, ?2, ?3, ?4, ?5)
                     ON CONFLICT (namespace, address, medium)
                     DO UPDATE SET reason = excluded.reason, since = excluded.since",
                )
                .bind(namespace)
                .bind(address.medium)
                .bind(address.address)
                .bind(address.reason)
                .bind(millis(address.since))
                .execute(c)
                .await
                .map_err(failed)?;
                Ok(())
            })
        })
        .await
    }

    async fn unsuppress(
        &self,
        namespace: &str,
        medium: &str,
        address: &str,
    ) -> Result<bool, StoreError> {
        let [namespace, medium, address] = [namespace, medium, address].map(str::to_owned);
        self.write(move |c| {
            Box::pin(async move {
                let deleted = sqlx::query(
                    "DELETE FROM suppressions WHERE namespace = ?1 AND address = ?2 AND medium = ?3",
                )
                .bind(namespace)
                .bind(address)
                .bind(medium)
                .execute(c)
                .await
                .map_err(failed)?;
                Ok(deleted.rows_affected() > 0)
            })
        })
        .await
    }

    async fn suppression(
        &self,
        namespace: &str,
        medium: &str,
        address: &str,
    ) -> Result<Option<SuppressedAddress>, StoreError> {
        let found: Option<(String, i64)> = sqlx::query_as(
            "SELECT reason, since FROM suppressions
             WHERE namespace = ?1 AND address = ?2 AND medium = ?3",
        )
        .bind(namespace)
        .bind(address)
        .bind(medium)
        .fetch_optional(&self.readers)
        .await
        .map_err(failed)?;
        found
            .map(|(reason, since)| {
                Ok(SuppressedAddress {
                    medium: medium.to_owned(),
                    address: address.to_owned(),
                    reason,
                    since: timestamp(since, "suppressions.since")?,
                })
            })
            .transpose()
    }

    async fn suppressions(
        &self,
        namespace: &str,
        paging: &Paging,
    ) -> Result<Page<SuppressedAddress>, HistoryError> {
        let (address, medium): (String, String) = cursor::after(paging)?.unwrap_or_default();
        let rows: Vec<(String, String, String, i64)> = sqlx::query_as(LIST_SUPPRESSIONS)
            .bind(namespace)
            .bind(address)
            .bind(medium)
            .bind(cursor::rows(paging))
            .fetch_all(&self.readers)
            .await
            .map_err(unanswered)?;
        let entries = rows
            .into_iter()
            .map(|(medium, address, reason, since)| {
                Ok(SuppressedAddress {
                    medium,
                    address,
                    reason,
                    since: timestamp(since, "suppressions.since")?,
                })
            })
            .collect::<Result<_, StoreError>>()
            .map_err(HistoryError::Store)?;
        Ok(cursor::page(paging, entries, |last: &SuppressedAddress| {
            (last.address.clone(), last.medium.clone())
        }))
    }

    async fn schedule(
        &self,
        namespace: &str,
        name: &str,
        now: Timestamp,
    ) -> Result<ScheduleRecord, StoreError> {
        // Asked often and written once: an idle service does not write.
        let known = sqlx::query_as(SCHEDULE)
            .bind(namespace)
            .bind(name)
            .fetch_optional(&self.readers)
            .await
            .map_err(failed)?;
        if let Some(record) = known {
            return schedule_record(record);
        }
        let (namespace, name, now) = (namespace.to_owned(), name.to_owned(), millis(now));
        self.write(move |c| {
            Box::pin(async move {
                sqlx::query(
                    "INSERT INTO schedules (namespace, name, created_at) VALUES (?1, ?2, ?3)
                     ON CONFLICT (namespace, name) DO NOTHING",
                )
                .bind(&namespace)
                .bind(&name)
                .bind(now)
                .execute(&mut *c)
                .await
                .map_err(failed)?;
                let record = sqlx::query_as(SCHEDULE)
                    .bind(namespace)
                    .bind(name)
                    .fetch_one(c)
                    .await
                    .map_err(failed)?;
                schedule_record(record)
            })
        })
        .await
    }

    async fn schedule_fired(
        &self,
        namespace: &str,
        name: &str,
        due: Timestamp,
        notification: Option<NotificationId>,
        missed: u64,
    ) -> Result<(), StoreError> {
        let (namespace, name, due) = (namespace.to_owned(), name.to_owned(), millis(due));
        // One that was skipped is missed itself.
        let missed = missed as i64 + i64::from(notification.is_none());
        self.write(move |c| {
            Box::pin(async move {
                sqlx::query(
                    "INSERT INTO schedules
                         (namespace, name, created_at, last_due, last_notification, missed)
                     VALUES (?1, ?2, ?3, ?3, ?4, ?5)
                     ON CONFLICT (namespace, name) DO UPDATE SET
                         last_due = excluded.last_due,
                         last_notification = coalesce(excluded.last_notification, last_notification),
                         missed = missed + excluded.missed
                     WHERE last_due IS NULL OR last_due < excluded.last_due",
                )
                .bind(namespace)
                .bind(name)
                .bind(due)
                .bind(notification.as_ref().map(|id| id.as_bytes().as_slice()))
                .bind(missed)
                .execute(c)
                .await
                .map_err(failed)?;
                Ok(())
            })
        })
        .await
    }

    async fn keys(&self) -> Result<Vec<ApiKey>, StoreError> {
        let rows: Vec<(String, Vec<u8>, String, i64)> =
            sqlx::query_as("SELECT name, digest, scopes, created_at FROM keys ORDER BY name")
                .fetch_all(&self.readers)
                .await
                .map_err(failed)?;
        rows.into_iter()
            .map(|(name, digest, scopes, created_at)| {
                Ok(ApiKey {
                    name,
                    digest: digest
                        .try_into()
                        .map_err(|_| corrupt("keys.digest", &"not 32 bytes"))?,
                    scopes: serde_json::from_str(&scopes)
                        .map_err(|error| corrupt("keys.scopes", &error))?,
                    created_at: timestamp(created_at, "keys.created_at")?,
                })
            })
            .collect()
    }

    async fn put_key(&self, key: &ApiKey) -> Result<(), StoreError> {
        let key = key.clone();
        self.write(move |c| {
            Box::pin(async move {
                sqlx::query(
                    "INSERT INTO keys (name, digest, scopes, created_at) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (name) DO UPDATE SET digest = excluded.digest,
                         scopes = excluded.scopes, created_at = excluded.created_at",
                )
                .bind(key.name)
                .bind(key.digest.as_slice())
                .bind(json(&key.scopes))
                .bind(millis(key.created_at))
                .execute(c)
                .await
                .map_err(failed)?;
                Ok(())
            })
        })
        .await
    }

    async fn add_key(&self, key: &ApiKey) -> Result<bool, StoreError> {
        let key = key.clone();
        self.write(move |c| {
            Box::pin(async move {
                let added = sqlx::query(
                    "INSERT INTO keys (name, digest, scopes, created_at) VALUES (?1, ?2, ?3, ?4)
                     ON CONFLICT (name) DO NOTHING",
                )
                .bind(key.name)
                .bind(key.digest.as_slice())
                .bind(json(&key.scopes))
                .bind(millis(key.created_at))
                .execute(c)
                .await
                .map_err(failed)?;
                Ok(added.rows_affected() > 0)
            })
        })
        .await
    }

    async fn delete_key(&self, name: &str) -> Result<bool, StoreError> {
        let name = name.to_owned();
        self.write(move |c| {
            Box::pin(async move {
                let deleted = sqlx::query("DELETE FROM keys WHERE name = ?1")
                    .bind(name)
                    .execute(c)
                    .await
                    .map_err(failed)?;
                Ok(deleted.rows_affected() > 0)
            })
        })
        .await
    }
}

#[cfg(test)]
mod tests {
    use super::super::explain::reads_no_whole_table;
    use super::super::tests::open;
    use super::*;

    #[tokio::test]
    async fn no_question_reads_a_whole_table() {
        let opened = open().await;
        for statement in [
            BY_ID,
            BY_LABEL,
            BY_ADDRESS,
            COUNT_LABEL,
            FIND_EXISTING,
            PUT_RECIPIENTS,
            PUT_ADDRESSES,
            DELETE_ADDRESSES,
            PUT_LABELS,
            END_LABELS,
            END_LABELS_OF,
            END_MEMBERS,
            PUT_MEMBERS,
            LIST_MEMBERS,
            LIST_SUPPRESSIONS,
            SCHEDULE,
        ] {
            reads_no_whole_table(&opened.store, statement, &[]).await;
        }
        reads_no_whole_table(&opened.store, END_MEMBERSHIPS_OF, &["groups"]).await;
    }
}
