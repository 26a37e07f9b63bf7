//! What planning and fan-out need: notifications, the resolving of their recipients, claims.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use jiff::Timestamp;

use super::rows::{Beginning, Of, Rows, insert, insert_definitions};
use super::{
    PostgresStore, asked, clean, corrupt, days, failed, json, millis, notification_id, timestamp,
};
use crate::id::{self, DeliveryId, NotificationId};
use crate::message::{DefinitionHash, Request, Suppression};
use crate::store::tally::Tally;
use crate::store::{
    Directory, MOST_NAMED, Member, PlanStore, Planned, ResolveStep, StoreError, Unresolved,
};

/// Most notifications whose moment of resolving is noticed to have come in one transaction.
const RIPE: i64 = 1_000;

/// The id, the request, whether it is packed, priority, cursor, rows, confirmed.
type UnresolvedRow = (Vec<u8>, Vec<u8>, bool, i16, String, i64, Option<i64>);

fn row_to_resolve(row: UnresolvedRow) -> Result<Unresolved, StoreError> {
    let (_, request, packed, priority, cursor, rows, confirmed) = row;
    Ok(Unresolved {
        request: Arc::new(asked::unpack(packed, &request, priority.into())?),
        cursor: serde_json::from_str(&cursor)
            .map_err(|error| corrupt("notifications.cursor", &error))?,
        rows: rows as u64,
        confirmed: confirmed.map(|n| n as u64),
    })
}

#[async_trait]
impl PlanStore for PostgresStore {
    async fn insert_notifications(
        &self,
        definitions: &[(DefinitionHash, Bytes)],
        notifications: &[Arc<Request>],
    ) -> Result<Vec<Planned>, StoreError> {
        let accepted = notifications.iter().map(|request| request.accepted_at);
        self.ensure_days(accepted.map(|at| days::day(millis(at))))
            .await?;
        let mut tx = self.begin().await?;
        insert_definitions(&mut tx, definitions).await?;
        let requests: Vec<&Request> = notifications.iter().map(|request| &**request).collect();
        let written = insert(&mut tx, self, &requests, Beginning::Unresolved).await?;
        tx.commit().await.map_err(failed)?;
        Ok(written.into_iter().map(|written| written.planned).collect())
    }

    async fn unresolved(
        &self,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<Unresolved>, StoreError> {
        // Nobody waits for one whose moment another gateway is just noticing.
        sqlx::query(RIPEN)
            .bind(millis(now))
            .bind(RIPE)
            .execute(&self.pool)
            .await
            .map_err(failed)?;
        let mut rows = sqlx::query_as::<_, UnresolvedRow>(UNRESOLVED)
            .bind(limit as i64)
            .fetch(&self.pool);
        let mut unresolved = Vec::new();
        let mut unreadable = Vec::new();
        let mut named = 0;
        while named <= MOST_NAMED
            && let Some(row) = rows.try_next().await.map_err(failed)?
        {
            let id = notification_id(&row.0)?;
            match row_to_resolve(row) {
                Ok(one) => {
                    named += one.request.recipients.len();
                    unresolved.push(one);
                }
                Err(error) => unreadable.push((id, error.to_string())),
            }
        }
        drop(rows);
        for (id, error) in unreadable {
            tracing::error!(notification = %id, error, "a notification cannot be read and ends as failed");
            self.refuse(&id, "unreadable", &error, now).await?;
        }
        Ok(unresolved)
    }

    async fn next_unresolved(&self) -> Result<Option<Timestamp>, StoreError> {
        // Planned anew each time: a plan made while the table was empty is kept until its next ANALYZE, and reads all.
        let at: Option<i64> = sqlx::query_scalar(NEXT_UNRESOLVED)
            .persistent(false)
            .fetch_one(&self.pool)
            .await
            .map_err(failed)?;
        at.map(|at| timestamp(at, "notifications.resolve_at"))
            .transpose()
    }

    async fn resolve(
        &self,
        steps: Vec<ResolveStep>,
        now: Timestamp,
    ) -> Result<Vec<bool>, StoreError> {
        let now = millis(now);
        let mut channels = HashMap::new();
        for row in steps.iter().flat_map(|step| &step.rows) {
            if !channels.contains_key(&row.channel) {
                let number = self.channel_number(&row.channel).await?;
                channels.insert(Arc::clone(&row.channel), number);
            }
        }
        let mut tx = self.begin().await?;
        let notifications: Vec<&[u8]> = steps
            .iter()
            .map(|step| step.notification.as_bytes().as_slice())
            .collect();
        // Locked in the order of their numbers, as whoever counts does.
        sqlx::query(LOCK)
            .bind(&notifications)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        let from: Vec<String> = steps.iter().map(|step| json(&step.from)).collect();
        let next: Vec<Option<String>> = steps
            .iter()
            .map(|step| step.next.as_ref().map(json))
            .collect();
        let moved: Vec<(Vec<u8>, i64, i32, i16, String, bool)> = sqlx::query_as(MOVED)
            .bind(&notifications)
            .bind(from)
            .bind(next)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        let mut tally = Tally::default();
        if moved.iter().all(|(.., sensitive)| !sensitive) {
            tally.harmless();
        }
        let mut places = HashMap::with_capacity(moved.len());
        for (id, seq, day, priority, namespace, _) in moved {
            let of = Of {
                seq,
                day,
                namespace: i64::from(id::order(&namespace)),
                priority,
            };
            places.insert(notification_id(&id)?, of);
        }
        let mut answers = Vec::with_capacity(steps.len());
        let mut rows = Rows::default();
        for step in &steps {
            let of = places.get(&step.notification);
            answers.push(of.is_some());
            let Some(of) = of else { continue };
            for row in &step.rows {
                rows.planned(row, *of, channels[&row.channel], now);
            }
            if step.next.is_none() {
                tally.settled(of.seq, now);
            }
        }
        rows.write(&mut tx, self, now, &mut tally).await?;
        tally.write(&mut tx).await?;
        tx.commit().await.map_err(failed)?;
        let written = steps.iter().flat_map(|step| &step.rows);
        self.adopt(written.map(|row| row.id)).await?;
        Ok(answers)
    }

    async fn refuse(
        &self,
        notification: &NotificationId,
        reason: &str,
        error: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let nowhere = self.channel_number("").await?;
        let now = millis(now);
        let mut tx = self.begin().await?;
        let refused: Option<(i64, i32, i16, String)> = sqlx::query_as(
            "UPDATE notifications SET pending = 0, resolved = true WHERE id = $1 AND pending > 0
             RETURNING seq, day, priority, namespace",
        )
        .bind(notification.as_bytes().as_slice())
        .fetch_optional(&mut *tx)
        .await
        .map_err(failed)?;
        let Some((seq, day, priority, namespace)) = refused else {
            return Ok(());
        };
        let of = Of {
            seq,
            day,
            namespace: i64::from(id::order(&namespace)),
            priority,
        };
        let row = DeliveryId::new(notification, "", "", 0, "", 0);
        let mut rows = Rows::default();
        rows.refused(&row, of, nowhere, reason, now);
        let mut tally = Tally::default();
        rows.write(&mut tx, self, now, &mut tally).await?;
        sqlx::query("UPDATE deliveries SET error = $3 WHERE day = $1 AND id = $2")
            .bind(day)
            .bind(row.as_bytes().as_slice())
            .bind(clean(error))
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        tally.write(&mut tx).await?;
        tx.commit().await.map_err(failed)
    }

    async fn hold(
        &self,
        notification: &NotificationId,
        recipients: u64,
        allowed: u64,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE notifications SET pending = 0, held_recipients = $2, held_allowed = $3
             WHERE id = $1 AND pending > 0",
        )
        .bind(notification.as_bytes().as_slice())
        .bind(recipients as i64)
        .bind(allowed as i64)
        .execute(&self.pool)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn postpone(
        &self,
        notification: &NotificationId,
        until: Timestamp,
    ) -> Result<(), StoreError> {
        sqlx::query(
            "UPDATE notifications SET pending = 1, resolve_at = $2 WHERE id = $1 AND pending > 0",
        )
        .bind(notification.as_bytes().as_slice())
        .bind(millis(until))
        .execute(&self.pool)
        .await
        .map_err(failed)?;
        Ok(())
    }

    async fn confirm(
        &self,
        notification: &NotificationId,
        recipients: u64,
    ) -> Result<bool, StoreError> {
        let done = sqlx::query(
            "UPDATE notifications SET pending = 2, held_recipients = NULL, held_allowed = NULL,
                 confirmed = $2
             WHERE id = $1 AND held_allowed IS NOT NULL",
        )
        .bind(notification.as_bytes().as_slice())
        .bind(recipients as i64)
        .execute(&self.pool)
        .await
        .map_err(failed)?;
        Ok(done.rows_affected() > 0)
    }

    async fn members(
        &self,
        namespace: &str,
        directory: &Directory<'_>,
        at: Timestamp,
        after: Option<&(u32, String)>,
        limit: usize,
    ) -> Result<Vec<Member>, StoreError> {
        self.members_of(namespace, directory, at, after, limit)
            .await
    }

    async fn count_members(
        &self,
        namespace: &str,
        directory: &Directory<'_>,
        at: Timestamp,
    ) -> Result<u64, StoreError> {
        self.count_members_of(namespace, directory, at).await
    }

    async fn suppressed(
        &self,
        namespace: &str,
        addresses: &[(&str, &str)],
    ) -> Result<Vec<Option<Suppression>>, StoreError> {
        self.suppressed_among(namespace, addresses).await
    }

    async fn reached(
        &self,
        namespace: &str,
        notification: &NotificationId,
        endpoints: &[(&str, &str)],
    ) -> Result<Vec<bool>, StoreError> {
        self.reached_among(namespace, notification, endpoints).await
    }

    async fn claim(
        &self,
        namespace: &str,
        template: &str,
        claims: &[(String, DeliveryId)],
        window_seconds: u32,
        now: Timestamp,
    ) -> Result<Vec<bool>, StoreError> {
        if claims.is_empty() {
            return Ok(Vec::new());
        }
        // One claim for each key, the first, and in one order, so that two who claim do not wait in a circle.
        let mut firsts: BTreeMap<Cow<'_, str>, &[u8]> = BTreeMap::new();
        for (key, delivery) in claims {
            firsts.entry(clean(key)).or_insert(delivery.as_bytes());
        }
        let (keys, deliveries): (Vec<_>, Vec<_>) = firsts.into_iter().unzip();
        let now = millis(now);
        let mut tx = self.begin().await?;
        sqlx::query(CLAIM)
            .bind(namespace)
            .bind(template)
            .bind(keys)
            .bind(deliveries)
            .bind(now)
            .bind(now + i64::from(window_seconds) * 1000)
            .execute(&mut *tx)
            .await
            .map_err(failed)?;
        let (keys, deliveries): (Vec<_>, Vec<&[u8]>) = claims
            .iter()
            .map(|(key, delivery)| (clean(key), delivery.as_bytes().as_slice()))
            .unzip();
        let owned = sqlx::query_scalar(OWNED)
            .bind(namespace)
            .bind(template)
            .bind(keys)
            .bind(deliveries)
            .fetch_all(&mut *tx)
            .await
            .map_err(failed)?;
        tx.commit().await.map_err(failed)?;
        Ok(owned)
    }

    async fn definition(&self, hash: &str) -> Result<Option<Bytes>, StoreError> {
        let found: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT definition FROM definitions WHERE hash = $1")
                .bind(hash)
                .fetch_optional(&self.pool)
                .await
                .map_err(failed)?;
        Ok(found.map(Bytes::from))
    }

    async fn requests(&self, ids: &[NotificationId]) -> Result<Vec<Arc<Request>>, StoreError> {
        let ids: Vec<&[u8]> = ids.iter().map(|id| id.as_bytes().as_slice()).collect();
        let rows: Vec<(Vec<u8>, bool, i16)> = sqlx::query_as(REQUESTS)
            .bind(ids)
            .fetch_all(&self.pool)
            .await
            .map_err(failed)?;
        let mut requests = Vec::with_capacity(rows.len());
        for (request, packed, priority) in rows {
            match asked::unpack(packed, &request, priority.into()) {
                Ok(request) => requests.push(Arc::new(request)),
                Err(error) => tracing::error!(%error, "what was asked cannot be read"),
            }
        }
        Ok(requests)
    }
}

pub(super) const RIPEN: &str = "UPDATE notifications SET pending = 2 WHERE seq IN (
        SELECT seq FROM notifications WHERE pending = 1 AND resolve_at <= $1
        ORDER BY resolve_at LIMIT $2 FOR UPDATE SKIP LOCKED)";

pub(super) const LOCK: &str =
    "SELECT 1 FROM notifications WHERE id = ANY($1::bytea[]) ORDER BY seq FOR UPDATE";

/// Moves cursors that are still where they were. `$3`: next (null: all are resolved).
pub(super) const MOVED: &str = "UPDATE notifications AS n SET cursor = coalesce(s.next, n.cursor),
        resolved = s.next IS NULL, pending = CASE WHEN s.next IS NULL THEN 0 ELSE n.pending END
    FROM unnest($1::bytea[], $2::text[], $3::text[]) AS s(id, current, next)
    WHERE n.id = s.id AND n.cursor = s.current AND n.pending > 0
    RETURNING n.id, n.seq, n.day, n.priority, n.namespace, n.sensitive";

pub(super) const UNRESOLVED: &str =
    "SELECT n.id, r.request, r.packed, n.priority, n.cursor, n.rows, n.confirmed
    FROM notifications AS n CROSS JOIN LATERAL (
        SELECT w.* FROM requests AS w WHERE w.day = n.day AND w.notification = n.seq OFFSET 0) AS r
    WHERE n.pending = 2 ORDER BY n.priority, n.rows LIMIT $1";

pub(super) const NEXT_UNRESOLVED: &str =
    "SELECT min(resolve_at) FROM notifications WHERE pending = 1";

pub(super) const CLAIM: &str = "INSERT INTO claims AS c (namespace, template, key, delivery, until)
    SELECT $1, $2, a.key, a.delivery, $6::bigint FROM unnest($3::text[], $4::bytea[]) AS a(key, delivery)
    ON CONFLICT (namespace, template, key) DO UPDATE SET delivery = excluded.delivery, until = excluded.until
        WHERE c.until <= $5";

pub(super) const OWNED: &str = "SELECT o.delivery = a.delivery
    FROM unnest($3::text[], $4::bytea[]) WITH ORDINALITY AS a(key, delivery, place)
    JOIN claims AS o ON o.namespace = $1 AND o.template = $2 AND o.key = a.key ORDER BY a.place";

pub(super) const REQUESTS: &str = "SELECT r.request, r.packed, n.priority
    FROM unnest($1::bytea[]) WITH ORDINALITY AS j(id, place)
    JOIN notifications AS n ON n.id = j.id
    CROSS JOIN LATERAL (
        SELECT w.* FROM requests AS w WHERE w.day = n.day AND w.notification = n.seq OFFSET 0) AS r ORDER BY j.place";
