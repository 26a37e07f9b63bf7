//! The directory, managed groups, suppressions, schedules and keys.

use async_trait::async_trait;
use jiff::Timestamp;

use super::entries::{
    BY_ADDRESS, BY_ID, BY_LABEL, COUNT_LABEL, END_LABELS_OF, END_MEMBERS, END_MEMBERSHIPS_OF,
    LIST_MEMBERS, PUT_MEMBERS, before, in_turn, put,
};
use super::members::columns;
use super::{PostgresStore, corrupt, cursor, failed, json, millis, timestamp, unanswered};
use crate::id::{NotificationId, order};
use crate::store::directory::{self, Batch, MANY, beyond, members, parse, schedule_record};
use crate::store::{
    ApiKey, HistoryError, Incarnation, Page, Paging, PeopleStore, Recipient, RefusedDue,
    ScheduleRecord, StoreError, SuppressedAddress,
};

pub(super) const LIST_SUPPRESSIONS: &str = "SELECT medium, address, reason, since FROM suppressions
    WHERE namespace = $1 AND (address, medium) > ($2, $3) ORDER BY address, medium LIMIT $4";

pub(super) const SCHEDULE: &str =
    "SELECT uid, created_at, last_due, last_fired, last_notification, refused_due, refused_declared,
        refusal, missed FROM schedules
    WHERE namespace = $1 AND name = $2";

/// Makes a schedule's row, or begins anew with that of one before it. As `Incarnation::replaces` has it, since somebody
/// else may have been faster.
pub(super) const BEGIN_SCHEDULE: &str =
    "INSERT INTO schedules AS s (namespace, name, uid, created_at) VALUES ($1, $2, $3, $4)
    ON CONFLICT (namespace, name) DO UPDATE SET uid = excluded.uid, created_at = excluded.created_at,
        last_due = NULL, last_fired = NULL, last_notification = NULL,
        refused_due = NULL, refused_declared = NULL, refusal = NULL, missed = 0
    WHERE excluded.uid IS NOT NULL AND s.uid IS DISTINCT FROM excluded.uid
        AND (s.uid IS NULL OR s.created_at <= excluded.created_at)";

#[async_trait]
impl PeopleStore for PostgresStore {
    async fn put_recipients(
        &self,
        namespace: &str,
        recipients: &[Recipient],
        now: Timestamp,
    ) -> Result<Vec<bool>, StoreError> {
        let batch = Batch::new(recipients);
        let mut tx = self.begin().await?;
        in_turn(&mut tx, namespace).await?;
        let before = before(&mut tx, namespace, &batch).await?;
        let new = put(&mut tx, namespace, &batch, &before, millis(now)).await?;
        tx.commit().await.map_err(failed)?;
        Ok(new)
    }

    async fn replace_recipient(
        &self,
        namespace: &str,
        recipient: &Recipient,
        expected: Option<&Recipient>,
        now: Timestamp,
    ) -> Result<bool, StoreError> {
        let batch = Batch::new(std::slice::from_ref(recipient));
        let mut tx = self.begin().await?;
        in_turn(&mut tx, namespace).await?;
        let before = before(&mut tx, namespace, &batch).await?;
        if !before.is(expected.map(json).as_deref()) {
            return Ok(false);
        }
        put(&mut tx, namespace, &batch, &before, millis(now)).await?;
        tx.commit().await.map_err(failed)?;
        Ok(true)
    }

    async fn recipient(&self, namespace: &str, id: &str) -> Result<Option<Recipient>, StoreError> {
        let found: Option<String> = sqlx::query_scalar(
            "SELECT recipient FROM recipients WHERE namespace = $1 AND ord = $2 AND id = $3",
        )
        .bind(namespace)
        .bind(i64::from(order(id)))
        .bind(id)
        .fetch_optional(&self.pool)
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
        let mut rarest: Option<(i64, &(String, String))> = None;
        for label in labels {
            let count: i64 = sqlx::query_scalar(COUNT_LABEL)
                .bind(namespace)
                .bind(&label.0)
                .bind(&label.1)
                .bind(MANY)
                .fetch_one(&self.pool)
                .await
                .map_err(unanswered)?;
            if count < MANY && rarest.is_none_or(|(least, _)| count < least) {
                rarest = Some((count, label));
            }
        }
        let (keys, values) = columns(labels);
        let ask = |statement| {
            sqlx::query_scalar::<_, String>(statement)
                .bind(namespace)
                .bind(&after)
                .bind(prefix)
                .bind(beyond(prefix))
                .bind(&keys)
                .bind(&values)
                .bind(cursor::rows(paging))
        };
        let by_id = match rarest {
            Some((_, (key, value))) => ask(BY_LABEL).bind(key).bind(value),
            None => ask(BY_ID),
        };
        let mut found = by_id.fetch_all(&self.pool).await.map_err(unanswered)?;
        if !prefix.is_empty() {
            let by_address = ask(BY_ADDRESS).fetch_all(&self.pool);
            found.extend(by_address.await.map_err(unanswered)?);
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
        let ord = i64::from(order(id));
        let mut tx = self.begin().await?;
        in_turn(&mut tx, namespace).await?;
        let deleted =
            sqlx::query("DELETE FROM recipients WHERE namespace = $1 AND ord = $2 AND id = $3")
                .bind(namespace)
                .bind(ord)
                .bind(id)
                .execute(&mut *tx)
                .await
                .map_err(failed)?;
        if deleted.rows_affected() == 0 {
            return Ok(false);
        }
        sqlx::query("DELETE FROM recipient_addresses WHERE namespace = $1 AND id = $2")
            .bind(namespace)
            .bind(id)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        sqlx::query(END_LABELS_OF)
            .bind(namespace)
            .bind(id)
            .bind(millis(now))
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        sqlx::query(END_MEMBERSHIPS_OF)
            .bind(namespace)
            .bind(ord)
            .bind(id)
            .bind(millis(now))
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(true)
    }

    async fn change_members(
        &self,
        namespace: &str,
        group: &str,
        add: &[String],
        remove: &[String],
        now: Timestamp,
    ) -> Result<(u64, u64), StoreError> {
        let mut tx = self.begin().await?;
        in_turn(&mut tx, namespace).await?;
        // Updating nothing makes RETURNING answer for a group that is there.
        let group: i64 = sqlx::query_scalar(
            "INSERT INTO groups (namespace, name) VALUES ($1, $2)
             ON CONFLICT (namespace, name) DO UPDATE SET name = excluded.name RETURNING id",
        )
        .bind(namespace)
        .bind(group)
        .fetch_one(&mut *tx)
        .await
        .map_err(failed)?;
        let mut changed = [0_u64; 2];
        let statements = [(END_MEMBERS, members(remove)), (PUT_MEMBERS, members(add))];
        for ((statement, rows), changed) in statements.into_iter().zip(&mut changed) {
            *changed = sqlx::query(statement)
                .bind(group)
                .bind(rows)
                .bind(millis(now))
                .execute(&mut *tx)
                .await
                .map_err(failed)?
                .rows_affected();
        }
        tx.commit().await.map_err(failed)?;
        let [removed, added] = changed;
        Ok((added, removed))
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
            .fetch_all(&self.pool)
            .await
            .map_err(unanswered)?;
        Ok(cursor::page(paging, ids, Clone::clone))
    }

    async fn suppress(
        &self,
        namespace: &str,
        address: &SuppressedAddress,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "INSERT INTO suppressions (namespace, medium, address, reason, since)
             VALUES ($1, $2, $3, $4, $5)
             ON CONFLICT (namespace, address, medium)
             DO UPDATE SET reason = excluded.reason, since = excluded.since",
        )
        .bind(namespace)
        .bind(&address.medium)
        .bind(super::clean(&address.address))
        .bind(super::clean(&address.reason))
        .bind(millis(address.since))
        .execute(&self.pool)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn unsuppress(
        &self,
        namespace: &str,
        medium: &str,
        address: &str,
    ) -> Result<bool, StoreError> {
        let deleted = sqlx::query(
            "DELETE FROM suppressions WHERE namespace = $1 AND address = $2 AND medium = $3",
        )
        .bind(namespace)
        .bind(address)
        .bind(medium)
        .execute(&self.pool)
        .await
        .map_err(failed)?;
        Ok(deleted.rows_affected() > 0)
    }

    async fn suppression(
        &self,
        namespace: &str,
        medium: &str,
        address: &str,
    ) -> Result<Option<SuppressedAddress>, StoreError> {
        let found: Option<(String, i64)> = sqlx::query_as(
            "SELECT reason, since FROM suppressions
             WHERE namespace = $1 AND address = $2 AND medium = $3",
        )
        .bind(namespace)
        .bind(address)
        .bind(medium)
        .fetch_optional(&self.pool)
        .await
        .map_err(failed)?;
        found
            .map(|(reason, since)| suppressed(medium.to_owned(), address.to_owned(), reason, since))
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
            .fetch_all(&self.pool)
            .await
            .map_err(unanswered)?;
        let entries = rows
            .into_iter()
            .map(|(medium, address, reason, since)| suppressed(medium, address, reason, since))
            .collect::<Result<_, _>>()
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
        let ask = || sqlx::query_as(SCHEDULE).bind(namespace).bind(name);
        let known = ask().fetch_optional(&self.pool).await.map_err(failed)?;
        if let Some(record) = known.map(schedule_record).transpose()?
            && !incarnation.replaces(&record, now)
        {
            return Ok(record);
        }
        sqlx::query(BEGIN_SCHEDULE)
            .bind(namespace)
            .bind(name)
            .bind(incarnation.uid)
            .bind(millis(incarnation.begins(now)))
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        schedule_record(ask().fetch_one(&self.pool).await.map_err(failed)?)
    }

    async fn schedule_fired(
        &self,
        namespace: &str,
        name: &str,
        due: Timestamp,
        notification: Option<NotificationId>,
        missed: u64,
    ) -> Result<(), StoreError> {
        // One that was skipped is missed itself.
        let missed = missed as i64 + i64::from(notification.is_none());
        sqlx::query(
            "INSERT INTO schedules AS s
                 (namespace, name, created_at, last_due, last_fired, last_notification, missed)
             VALUES ($1, $2, $3, $3, CASE WHEN $4 IS NULL THEN NULL ELSE $3 END, $4, $5)
             ON CONFLICT (namespace, name) DO UPDATE SET
                 last_due = excluded.last_due,
                 last_fired = coalesce(excluded.last_fired, s.last_fired),
                 last_notification = coalesce(excluded.last_notification, s.last_notification),
                 missed = s.missed + excluded.missed
             WHERE s.last_due IS NULL OR s.last_due < excluded.last_due",
        )
        .bind(namespace)
        .bind(name)
        .bind(millis(due))
        .bind(notification.as_ref().map(|id| id.as_bytes().as_slice()))
        .bind(missed)
        .execute(&self.pool)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn schedule_refused(
        &self,
        namespace: &str,
        name: &str,
        refused: &RefusedDue,
    ) -> Result<(), StoreError> {
        // Every gateway tries again and again, and all are refused for the same.
        sqlx::query(
            "UPDATE schedules SET refused_due = $3, refused_declared = $4, refusal = $5
             WHERE namespace = $1 AND name = $2
               AND (refused_due, refused_declared, refusal) IS DISTINCT FROM ($3, $4, $5)",
        )
        .bind(namespace)
        .bind(name)
        .bind(millis(refused.due))
        .bind(refused.declared.as_slice())
        .bind(super::clean(&refused.message))
        .execute(&self.pool)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn keys(&self) -> Result<Vec<ApiKey>, StoreError> {
        let rows: Vec<(String, Vec<u8>, String, i64)> =
            sqlx::query_as("SELECT name, digest, scopes, created_at FROM keys ORDER BY name")
                .fetch_all(&self.pool)
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
        sqlx::query(
            "INSERT INTO keys (name, digest, scopes, created_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (name) DO UPDATE SET digest = excluded.digest,
                 scopes = excluded.scopes, created_at = excluded.created_at",
        )
        .bind(&key.name)
        .bind(key.digest.as_slice())
        .bind(json(&key.scopes))
        .bind(millis(key.created_at))
        .execute(&self.pool)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn add_key(&self, key: &ApiKey) -> Result<bool, StoreError> {
        let added = sqlx::query(
            "INSERT INTO keys (name, digest, scopes, created_at) VALUES ($1, $2, $3, $4)
             ON CONFLICT (name) DO NOTHING",
        )
        .bind(&key.name)
        .bind(key.digest.as_slice())
        .bind(json(&key.scopes))
        .bind(millis(key.created_at))
        .execute(&self.pool)
        .await
        .map_err(failed)?;
        Ok(added.rows_affected() > 0)
    }

    async fn delete_key(&self, name: &str) -> Result<bool, StoreError> {
        let deleted = sqlx::query("DELETE FROM keys WHERE name = $1")
            .bind(name)
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        Ok(deleted.rows_affected() > 0)
    }
}

fn suppressed(
    medium: String,
    address: String,
    reason: String,
    since: i64,
) -> Result<SuppressedAddress, StoreError> {
    Ok(SuppressedAddress {
        medium,
        address,
        reason,
        since: timestamp(since, "suppressions.since")?,
    })
}
