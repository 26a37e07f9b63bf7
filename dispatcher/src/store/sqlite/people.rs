//! The directory, managed groups, suppressions, schedules and keys.

use std::sync::atomic::Ordering;

use async_trait::async_trait;
use jiff::Timestamp;

use super::entries::{
    BY_ADDRESS, BY_ID, BY_LABEL, COUNT_LABEL, END_LABELS_OF, END_MEMBERS, END_MEMBERSHIPS_OF,
    LIST_MEMBERS, PUT_MEMBERS, before, put,
};
use super::{SqliteStore, corrupt, cursor, failed, json, millis, timestamp, unanswered};
use crate::id::{NotificationId, order};
use crate::store::directory::{self, Batch, MANY, beyond, members, parse, schedule_record};
use crate::store::{
    ApiKey, HistoryError, Incarnation, Page, Paging, PeopleStore, Recipient, RefusedDue,
    ScheduleRecord, StoreError, SuppressedAddress,
};

const LIST_SUPPRESSIONS: &str = "
    SELECT medium, address, reason, since FROM suppressions
    WHERE namespace = ?1 AND (address, medium) > (?2, ?3)
    ORDER BY address, medium LIMIT ?4";

const SCHEDULE: &str = "
    SELECT uid, created_at, last_due, last_fired, last_notification, refused_due, refused_declared,
        refusal, missed FROM schedules
    WHERE namespace = ?1 AND name = ?2";

/// Makes a schedule's row, or begins anew with that of one before it: as `Incarnation::replaces` has it.
const BEGIN_SCHEDULE: &str = "
    INSERT INTO schedules (namespace, name, uid, created_at) VALUES (?1, ?2, ?3, ?4)
    ON CONFLICT (namespace, name) DO UPDATE SET uid = excluded.uid, created_at = excluded.created_at,
        last_due = NULL, last_fired = NULL, last_notification = NULL,
        refused_due = NULL, refused_declared = NULL, refusal = NULL, missed = 0
    WHERE excluded.uid IS NOT NULL AND uid IS NOT excluded.uid
        AND (uid IS NULL OR created_at <= excluded.created_at)";

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
        incarnation: Incarnation<'_>,
        now: Timestamp,
    ) -> Result<ScheduleRecord, StoreError> {
        // Asked often and written once: an idle service does not write.
        let known = sqlx::query_as(SCHEDULE)
            .bind(namespace)
            .bind(name)
            .fetch_optional(&self.readers)
            .await
            .map_err(failed)?;
        if let Some(record) = known.map(schedule_record).transpose()?
            && !incarnation.replaces(&record, now)
        {
            return Ok(record);
        }
        let (namespace, name) = (namespace.to_owned(), name.to_owned());
        let uid = incarnation.uid.map(str::to_owned);
        let begins = incarnation.begins(now);
        let begins = millis(
            self.since
                .map_or(begins, |since| begins.max(since.min(now))),
        );
        self.write(move |c| {
            Box::pin(async move {
                sqlx::query(BEGIN_SCHEDULE)
                    .bind(&namespace)
                    .bind(&name)
                    .bind(uid)
                    .bind(begins)
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
                         (namespace, name, created_at, last_due, last_fired, last_notification, missed)
                     VALUES (?1, ?2, ?3, ?3, CASE WHEN ?4 IS NULL THEN NULL ELSE ?3 END, ?4, ?5)
                     ON CONFLICT (namespace, name) DO UPDATE SET
                         last_due = excluded.last_due,
                         last_fired = coalesce(excluded.last_fired, last_fired),
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

    async fn schedule_refused(
        &self,
        namespace: &str,
        name: &str,
        refused: &RefusedDue,
    ) -> Result<(), StoreError> {
        let (namespace, name, refused) = (namespace.to_owned(), name.to_owned(), refused.clone());
        self.write(move |c| {
            Box::pin(async move {
                // It is tried again and again, and refused for the same.
                sqlx::query(
                    "UPDATE schedules SET refused_due = ?3, refused_declared = ?4, refusal = ?5
                     WHERE namespace = ?1 AND name = ?2
                       AND (refused_due, refused_declared, refusal) IS NOT (?3, ?4, ?5)",
                )
                .bind(namespace)
                .bind(name)
                .bind(millis(refused.due))
                .bind(refused.declared.to_vec())
                .bind(refused.message)
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
    use crate::store::sqlite::entries::{
        DELETE_ADDRESSES, END_LABELS, FIND_EXISTING, PUT_ADDRESSES, PUT_LABELS, PUT_RECIPIENTS,
    };

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
