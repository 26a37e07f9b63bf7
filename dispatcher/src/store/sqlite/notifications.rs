//! How notifications are written down, with their requests and definitions.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use sqlx::sqlite::SqliteConnection;

use super::{asked, corrupt, failed, json, millis, notification_id};
use crate::id::NotificationId;
use crate::message::{DefinitionHash, Request};
use crate::store::{Cursor, Planned, StoreError};

/// What a new notification begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beginning {
    /// Its recipients are to be resolved.
    Unresolved,
    /// Its deliveries are known already: it was fanned out without SQL.
    Resolved,
}

/// A notification on its way into its table: what does not come from the request alone.
pub(super) struct NewNotification {
    id: NotificationId,
    body: Arc<str>,
    /// The row, as JSON.
    row: serde_json::Value,
    request: asked::Packed,
}

impl NewNotification {
    /// Done before the transaction begins: serialising is work that no other writer should wait for.
    pub(super) fn new(request: &Request, beginning: Beginning) -> Self {
        let resolve_at = request.send_at.unwrap_or(request.accepted_at);
        let pending = match beginning {
            Beginning::Resolved => 0,
            Beginning::Unresolved if resolve_at > request.accepted_at => 1,
            Beginning::Unresolved => 2,
        };
        let metadata = (!request.metadata.is_empty()).then(|| json(&request.metadata));
        Self {
            id: request.id,
            body: Arc::clone(&request.body),
            row: serde_json::json!([
                request.id,
                request.namespace,
                request.template,
                request.sender,
                request.body,
                request.priority.index(),
                metadata,
                u8::from(request.sensitive),
                millis(request.accepted_at),
                millis(resolve_at),
                pending,
                u8::from(beginning == Beginning::Resolved),
                json(&Cursor::default()),
                request.expires_at.map(millis),
            ]),
            request: asked::pack(request),
        }
    }
}

/// Writes definitions down that are not known yet.
pub(super) async fn insert_definitions(
    connection: &mut SqliteConnection,
    definitions: &[(DefinitionHash, Bytes)],
) -> Result<(), StoreError> {
    for (hash, definition) in definitions {
        sqlx::query(
            "INSERT INTO definitions (hash, definition) VALUES (?1, ?2) ON CONFLICT DO NOTHING",
        )
        .bind(Arc::clone(hash))
        .bind(definition.as_ref().to_vec())
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
    }
    Ok(())
}

/// Writes notifications down; answers what became of each, and the number of each.
pub(super) async fn insert(
    connection: &mut SqliteConnection,
    notifications: Vec<NewNotification>,
) -> Result<Vec<(Planned, i64)>, StoreError> {
    let rows: Vec<_> = notifications.iter().map(|n| &n.row).collect();
    let inserted: Vec<(i64, Vec<u8>)> = sqlx::query_as(
        "INSERT INTO notifications (id, namespace, template, sender, body, priority, metadata, sensitive,
             accepted_at, resolve_at, pending, resolved, cursor, expires_at)
         SELECT unhex(n.value ->> 0), n.value ->> 1, n.value ->> 2, n.value ->> 3, n.value ->> 4,
             n.value ->> 5, n.value ->> 6, n.value ->> 7, n.value ->> 8, n.value ->> 9, n.value ->> 10,
             n.value ->> 11, n.value ->> 12, n.value ->> 13
         FROM json_each(?1) AS n WHERE true
         ON CONFLICT (id) DO NOTHING RETURNING seq, id",
    )
    .bind(json(&rows))
    .fetch_all(&mut *connection)
    .await
    .map_err(failed)?;
    let mut new: HashMap<NotificationId, i64> = HashMap::with_capacity(inserted.len());
    for (seq, id) in inserted {
        new.insert(notification_id(&id)?, seq);
    }
    let mut known: HashMap<NotificationId, (i64, String)> = HashMap::new();
    if new.len() < notifications.len() {
        let ids: Vec<_> = notifications.iter().map(|n| n.id).collect();
        let rows: Vec<(Vec<u8>, i64, String)> = sqlx::query_as(
            "SELECT n.id, n.seq, n.body FROM json_each(?1) AS j
             CROSS JOIN notifications AS n ON n.id = unhex(j.value)",
        )
        .bind(json(&ids))
        .fetch_all(&mut *connection)
        .await
        .map_err(failed)?;
        for (id, seq, body) in rows {
            known.insert(notification_id(&id)?, (seq, body));
        }
    }

    let mut answers = Vec::with_capacity(notifications.len());
    let mut texts = Vec::with_capacity(new.len());
    let mut conflicts = Vec::new();
    let mut first = HashSet::with_capacity(new.len());
    for notification in notifications {
        let id = notification.id;
        match new.get(&id) {
            Some(seq) if first.insert(id) => {
                match notification.request {
                    asked::Packed::Text(text) => texts.push((*seq, text)),
                    asked::Packed::Blob(blob) => insert_blob(connection, *seq, blob).await?,
                }
                answers.push((Planned::Inserted, *seq));
            }
            _ => {
                let Some((seq, body)) = known.get(&id) else {
                    return Err(corrupt("notifications.id", &"it is there and is not"));
                };
                if *body == *notification.body {
                    answers.push((Planned::Repeat, *seq));
                } else {
                    conflicts.push(*seq);
                    answers.push((Planned::Conflict, *seq));
                }
            }
        }
    }
    if !texts.is_empty() {
        sqlx::query(
            "INSERT INTO requests (notification, request)
             SELECT r.value ->> 0, r.value ->> 1 FROM json_each(?1) AS r",
        )
        .bind(json(&texts))
        .execute(&mut *connection)
        .await
        .map_err(failed)?;
    }
    if !conflicts.is_empty() {
        sqlx::query(
            "UPDATE notifications SET conflicts = conflicts + 1
             WHERE seq IN (SELECT value FROM json_each(?1))",
        )
        .bind(json(&conflicts))
        .execute(connection)
        .await
        .map_err(failed)?;
    }
    Ok(answers)
}

async fn insert_blob(
    connection: &mut SqliteConnection,
    seq: i64,
    blob: Vec<u8>,
) -> Result<(), StoreError> {
    sqlx::query("INSERT INTO requests (notification, request) VALUES (?1, ?2)")
        .bind(seq)
        .bind(blob)
        .execute(connection)
        .await
        .map_err(failed)?;
    Ok(())
}
