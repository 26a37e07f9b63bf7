//! What planning and fan-out need: notifications, the resolving of their recipients, claims.

use std::collections::HashMap;
use std::fmt::Write as _;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use async_trait::async_trait;
use bytes::Bytes;
use futures::TryStreamExt;
use jiff::Timestamp;
use sqlx::sqlite::SqliteConnection;

use super::folded;
use super::notifications::{Beginning, NewNotification, insert, insert_definitions};
use super::{SqliteStore, asked, corrupt, failed, json, millis, notification_id, timestamp};
use crate::id::{self, DeliveryId, NotificationId};
use crate::message::{DefinitionHash, Request, Suppression};
use crate::store::tally::Tally;
use crate::store::{
    Directory, MOST_NAMED, Member, NewDelivery, PlanStore, Planned, ResolveStep, State, StoreError,
    Unresolved,
};

/// Most notifications whose moment of resolving is noticed to have come in one transaction.
const RIPE: i64 = 1_000;

/// The id, whether the request is packed, the request, priority, cursor, rows, confirmed.
type UnresolvedRow = (Vec<u8>, i64, Vec<u8>, i64, String, i64, Option<i64>);

fn row_to_resolve(row: UnresolvedRow) -> Result<Unresolved, StoreError> {
    let (_, packed, request, priority, cursor, rows, confirmed) = row;
    Ok(Unresolved {
        request: Arc::new(asked::unpack(packed != 0, &request, priority)?),
        cursor: serde_json::from_str(&cursor)
            .map_err(|error| corrupt("notifications.cursor", &error))?,
        rows: rows as u64,
        confirmed: confirmed.map(|n| n as u64),
    })
}

/// What a row takes from its notification.
#[derive(Debug, Clone, Copy)]
struct Of {
    seq: i64,
    namespace: u32,
    priority: i64,
}

/// One delivery on its way into its table.
struct NewRow {
    state: State,
    /// All but its notification, as JSON, made before the transaction begins.
    json: String,
}

impl NewRow {
    fn new(row: &NewDelivery, channel: i64, now: i64) -> Self {
        let due = millis(row.due);
        let (state, waiting) = match row.suppressed {
            Some(_) => (State::Suppressed, 0),
            None if due > now => (State::Scheduled, 1),
            None => (State::Queued, 2),
        };
        let json = json(&(
            row.id,
            channel,
            state as u8,
            waiting,
            &row.recipient,
            &row.endpoint,
            &row.locale,
            due,
            row.suppressed.map(|_| now),
            row.suppressed.map(<&'static str>::from),
        ));
        Self { state, json }
    }
}

#[async_trait]
impl PlanStore for SqliteStore {
    async fn insert_notifications(
        &self,
        definitions: &[(DefinitionHash, Bytes)],
        notifications: &[Arc<Request>],
    ) -> Result<Vec<Planned>, StoreError> {
        let definitions = definitions.to_vec();
        let notifications: Vec<_> = notifications
            .iter()
            .map(|request| NewNotification::new(request, Beginning::Unresolved))
            .collect();
        self.write(move |c| {
            Box::pin(async move {
                insert_definitions(c, &definitions).await?;
                let answers = insert(c, notifications).await?;
                Ok(answers.into_iter().map(|(planned, _)| planned).collect())
            })
        })
        .await
    }

    async fn unresolved(
        &self,
        now: Timestamp,
        limit: usize,
    ) -> Result<Vec<Unresolved>, StoreError> {
        let now = millis(now);
        let ripe: bool = sqlx::query_scalar(
            "SELECT EXISTS (SELECT 1 FROM notifications WHERE pending = 1 AND resolve_at <= ?1)",
        )
        .bind(now)
        .fetch_one(&self.readers)
        .await
        .map_err(failed)?;
        if ripe {
            self.write(move |c| {
                Box::pin(async move {
                    sqlx::query(
                        "UPDATE notifications SET pending = 2 WHERE seq IN (
                             SELECT seq FROM notifications WHERE pending = 1 AND resolve_at <= ?1
                             ORDER BY resolve_at LIMIT ?2)",
                    )
                    .bind(now)
                    .bind(RIPE)
                    .execute(c)
                    .await
                    .map_err(failed)
                })
            })
            .await?;
        }
        let mut rows = sqlx::query_as::<_, UnresolvedRow>(UNRESOLVED)
            .bind(limit as i64)
            .fetch(&self.readers);
        let mut unresolved = Vec::new();
        let mut unreadable = Vec::new();
        let mut named = 0;
        while named <= MOST_NAMED
            && let Some(row) = rows.try_next().await.map_err(failed)?
        {
            let id = row.0.clone();
            match row_to_resolve(row) {
                Ok(one) => {
                    named += one.request.recipients.len();
                    unresolved.push(one);
                }
                Err(error) => unreadable.push((notification_id(&id)?, error.to_string())),
            }
        }
        drop(rows);
        for (id, error) in unreadable {
            tracing::error!(notification = %id, error, "a notification cannot be read and ends as failed");
            self.refuse_as(id, "unreadable".to_owned(), error, now)
                .await?;
        }
        Ok(unresolved)
    }

    async fn next_unresolved(&self) -> Result<Option<Timestamp>, StoreError> {
        let at: Option<i64> =
            sqlx::query_scalar("SELECT min(resolve_at) FROM notifications WHERE pending = 1")
                .fetch_one(&self.readers)
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
        let orphans = self.orphaned.load(Ordering::Acquire).then(|| {
            let rows = steps.iter().flat_map(|step| &step.rows);
            json(&rows.map(|row| row.id).collect::<Vec<_>>())
        });
        let mut cursors = Vec::with_capacity(steps.len());
        let mut written = Vec::with_capacity(steps.len());
        for step in steps {
            let next = step.next.as_ref().map(json);
            cursors.push((step.notification, json(&step.from), next));
            let mut rows = Vec::with_capacity(step.rows.len());
            for row in &step.rows {
                let channel = self.channel_number(&row.channel).await?;
                rows.push(NewRow::new(row, channel, now));
            }
            written.push((step.notification, step.next.is_none(), rows));
        }
        let cursors = json(&cursors);
        let orphaned = Arc::clone(&self.orphaned);
        self.write(move |c| {
            Box::pin(async move {
                let moved: Vec<(Vec<u8>, i64, i64, String, bool)> = sqlx::query_as(MOVED)
                    .bind(cursors)
                    .fetch_all(&mut *c)
                    .await
                    .map_err(failed)?;
                let mut steps = HashMap::with_capacity(moved.len());
                let mut tally = Tally::default();
                if moved.iter().all(|(.., sensitive)| !sensitive) {
                    tally.harmless();
                }
                for (id, seq, priority, namespace, _) in moved {
                    let of = Of {
                        seq,
                        namespace: id::order(&namespace),
                        priority,
                    };
                    steps.insert(notification_id(&id)?, of);
                }
                let mut answers = Vec::with_capacity(written.len());
                let mut rows = Vec::new();
                for (id, is_last, new) in written {
                    let Some(of) = steps.get(&id) else {
                        answers.push(false);
                        continue;
                    };
                    answers.push(true);
                    rows.extend(new.into_iter().map(|row| (*of, row)));
                    if is_last {
                        tally.settled(of.seq, now);
                    }
                }
                if !rows.is_empty() {
                    write_rows(c, &rows, now, &mut tally).await?;
                }
                tally.apply(c).await?;
                if let Some(ids) = orphans {
                    let outcomes = folded::adopt(c, &ids).await?;
                    folded::fold_outcomes(c, &outcomes, &orphaned).await?;
                }
                Ok(answers)
            })
        })
        .await
    }

    async fn refuse(
        &self,
        notification: &NotificationId,
        reason: &str,
        error: &str,
        now: Timestamp,
    ) -> Result<(), StoreError> {
        let (reason, error) = (reason.to_owned(), error.to_owned());
        self.refuse_as(*notification, reason, error, millis(now))
            .await
    }

    async fn hold(
        &self,
        notification: &NotificationId,
        recipients: u64,
        allowed: u64,
    ) -> Result<(), StoreError> {
        let id = *notification;
        self.write(move |c| {
            Box::pin(async move {
                sqlx::query(
                    "UPDATE notifications SET pending = 0, held_recipients = ?2, held_allowed = ?3
                     WHERE id = ?1 AND pending > 0",
                )
                .bind(id.as_bytes().as_slice())
                .bind(recipients as i64)
                .bind(allowed as i64)
                .execute(c)
                .await
                .map_err(failed)?;
                Ok(())
            })
        })
        .await
    }

    async fn postpone(
        &self,
        notification: &NotificationId,
        until: Timestamp,
    ) -> Result<(), StoreError> {
        let id = *notification;
        self.write(move |c| {
            Box::pin(async move {
                sqlx::query(
                    "UPDATE notifications SET pending = 1, resolve_at = ?2 WHERE id = ?1 AND pending > 0",
                )
                .bind(id.as_bytes().as_slice())
                .bind(millis(until))
                .execute(c)
                .await
                .map_err(failed)?;
                Ok(())
            })
        })
        .await
    }

    async fn confirm(
        &self,
        notification: &NotificationId,
        recipients: u64,
    ) -> Result<bool, StoreError> {
        let id = *notification;
        self.write(move |c| {
            Box::pin(async move {
                let done = sqlx::query(
                    "UPDATE notifications SET pending = 2, held_recipients = NULL, held_allowed = NULL,
                         confirmed = ?2
                     WHERE id = ?1 AND held_allowed IS NOT NULL",
                )
                .bind(id.as_bytes().as_slice())
                .bind(recipients as i64)
                .execute(c)
                .await
                .map_err(failed)?;
                Ok(done.rows_affected() > 0)
            })
        })
        .await
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
        let (namespace, template) = (namespace.to_owned(), template.to_owned());
        let claims = json(claims);
        let now = millis(now);
        let until = now + i64::from(window_seconds) * 1000;
        self.write(move |c| {
            Box::pin(async move {
                sqlx::query(
                    "INSERT INTO claims (namespace, template, key, delivery, until)
                     SELECT ?1, ?2, a.value ->> 0, unhex(a.value ->> 1), ?5 FROM json_each(?3) AS a WHERE true
                     ON CONFLICT DO UPDATE SET delivery = excluded.delivery, until = excluded.until
                         WHERE until <= ?4",
                )
                .bind(&namespace)
                .bind(&template)
                .bind(&claims)
                .bind(now)
                .bind(until)
                .execute(&mut *c)
                .await
                .map_err(failed)?;
                sqlx::query_scalar(
                    "SELECT o.delivery = unhex(a.value ->> 1) FROM json_each(?3) AS a
                     CROSS JOIN claims AS o
                         ON o.namespace = ?1 AND o.template = ?2 AND o.key = (a.value ->> 0)
                     ORDER BY a.key",
                )
                .bind(namespace)
                .bind(template)
                .bind(claims)
                .fetch_all(c)
                .await
                .map_err(failed)
            })
        })
        .await
    }

    async fn definition(&self, hash: &str) -> Result<Option<Bytes>, StoreError> {
        let found: Option<Vec<u8>> =
            sqlx::query_scalar("SELECT definition FROM definitions WHERE hash = ?1")
                .bind(hash.to_owned())
                .fetch_optional(&self.readers)
                .await
                .map_err(failed)?;
        Ok(found.map(Bytes::from))
    }

    async fn requests(&self, ids: &[NotificationId]) -> Result<Vec<Arc<Request>>, StoreError> {
        let rows: Vec<(i64, Vec<u8>, i64)> = sqlx::query_as(
            "SELECT typeof(r.request) = 'blob', r.request, n.priority FROM json_each(?1) AS j
             CROSS JOIN notifications AS n ON n.id = unhex(j.value)
             CROSS JOIN requests AS r ON r.notification = n.seq",
        )
        .bind(json(ids))
        .fetch_all(&self.readers)
        .await
        .map_err(failed)?;
        let mut requests = Vec::with_capacity(rows.len());
        for (packed, request, priority) in rows {
            match asked::unpack(packed != 0, &request, priority) {
                Ok(request) => requests.push(Arc::new(request)),
                Err(error) => tracing::error!(%error, "what was asked cannot be read"),
            }
        }
        Ok(requests)
    }
}

impl SqliteStore {
    async fn refuse_as(
        &self,
        notification: NotificationId,
        reason: String,
        error: String,
        now: i64,
    ) -> Result<(), StoreError> {
        let nowhere = self.channel_number("").await?;
        let id = DeliveryId::new(&notification, "", "", 0, "", 0);
        self.write(move |c| {
            Box::pin(async move {
                let refused: Option<(i64, i64, String)> = sqlx::query_as(
                    "UPDATE notifications SET pending = 0, resolved = 1 WHERE id = ?1 AND pending > 0
                     RETURNING seq, priority, namespace",
                )
                .bind(notification.as_bytes().as_slice())
                .fetch_optional(&mut *c)
                .await
                .map_err(failed)?;
                let Some((seq, priority, namespace)) = refused else {
                    return Ok(());
                };
                let done = sqlx::query(
                    "INSERT INTO deliveries (id, notification, namespace, channel, priority, state, waiting,
                         recipient, endpoint, locale, created_at, due_at, ended_at, reason, error)
                     VALUES (?1, ?2, ?3, ?4, ?5, 7, 0, '', '', '', ?6, ?6, ?6, ?7, ?8) ON CONFLICT DO NOTHING",
                )
                .bind(id.as_bytes().as_slice())
                .bind(seq)
                .bind(id::order(&namespace))
                .bind(nowhere)
                .bind(priority)
                .bind(now)
                .bind(reason)
                .bind(error)
                .execute(&mut *c)
                .await
                .map_err(failed)?;
                let mut tally = Tally::default();
                tally.moved(seq, None, State::Failed, done.rows_affected() as i64, now);
                tally.apply(c).await
            })
        })
        .await
    }
}

/// Writes rows, each with what it takes from its notification; those whose id is there already are dropped and not
/// counted.
async fn write_rows(
    connection: &mut SqliteConnection,
    rows: &[(Of, NewRow)],
    now: i64,
    tally: &mut Tally,
) -> Result<(), StoreError> {
    // One array of what is JSON already.
    let mut values = String::with_capacity(rows.iter().map(|(_, row)| row.json.len() + 32).sum());
    for (of, row) in rows {
        let Of {
            seq,
            namespace,
            priority,
        } = of;
        values.push(if values.is_empty() { '[' } else { ',' });
        // Writing to a string does not fail.
        let _ = write!(values, "[{seq},{namespace},{priority},{}]", row.json);
    }
    values.push(']');
    let done = sqlx::query(
        "INSERT INTO deliveries (id, notification, namespace, channel, priority, state, waiting, recipient,
             endpoint, locale, created_at, due_at, ended_at, reason)
         SELECT unhex(d.value ->> '$[3][0]'), d.value ->> 0, d.value ->> 1, d.value ->> '$[3][1]', d.value ->> 2,
             d.value ->> '$[3][2]', d.value ->> '$[3][3]', d.value ->> '$[3][4]', d.value ->> '$[3][5]',
             d.value ->> '$[3][6]', ?2, d.value ->> '$[3][7]', d.value ->> '$[3][8]', d.value ->> '$[3][9]'
         FROM json_each(?1) AS d WHERE true ON CONFLICT (id) DO NOTHING",
    )
    .bind(values)
    .bind(now)
    .execute(&mut *connection)
    .await
    .map_err(failed)?;
    let written = done.rows_affected() as i64;
    if written as usize == rows.len() {
        for (of, row) in rows {
            tally.moved(of.seq, None, row.state, 1, now);
        }
    } else if written > 0 {
        // Rows are numbered upwards: those of this statement are the last ones.
        let counts: Vec<(i64, i64, i64)> = sqlx::query_as(
            "SELECT notification, state, count(*) FROM deliveries WHERE row > ?1 AND row <= ?2
             GROUP BY notification, state",
        )
        .bind(done.last_insert_rowid() - written)
        .bind(done.last_insert_rowid())
        .fetch_all(connection)
        .await
        .map_err(failed)?;
        for (seq, state, count) in counts {
            tally.moved(seq, None, super::state(state)?, count, now);
        }
    }
    Ok(())
}

/// Moves cursors that are still where they were. `?1`: notification, from, next (null: all are resolved).
pub(super) const MOVED: &str = "UPDATE notifications SET cursor = coalesce(s.value ->> 2, cursor),
        resolved = (s.value ->> 2) IS NULL,
        pending = CASE WHEN (s.value ->> 2) IS NULL THEN 0 ELSE pending END
    FROM json_each(?1) AS s
    WHERE notifications.id = unhex(s.value ->> 0) AND cursor = (s.value ->> 1) AND pending > 0
    RETURNING id, seq, priority, namespace, sensitive = 1";

pub(super) const UNRESOLVED: &str =
    "SELECT n.id, typeof(r.request) = 'blob', r.request, n.priority, n.cursor, n.rows,
        n.confirmed
    FROM notifications AS n CROSS JOIN requests AS r ON r.notification = n.seq
    WHERE n.pending = 2 ORDER BY n.priority, n.rows LIMIT ?1";
