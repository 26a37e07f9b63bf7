//! How notifications are written down, with their requests, definitions and deliveries.

use std::borrow::Cow;
use std::collections::{BTreeMap, HashMap, HashSet};

use bytes::Bytes;
use sqlx::postgres::PgConnection;

use super::{PostgresStore, asked, clean, corrupt, days, failed, json, millis, notification_id};
use crate::id::{DeliveryId, NotificationId};
use crate::message::{DefinitionHash, Request};
use crate::store::tally::Tally;
use crate::store::{Cursor, NewDelivery, Planned, State, StoreError};

/// What a new notification begins with.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Beginning {
    /// Its recipients are to be resolved.
    Unresolved,
    /// Its deliveries are known already: it was fanned out without SQL.
    Resolved,
}

/// What became of a notification that was to be written down, and where it is.
#[derive(Debug, Clone, Copy)]
pub(super) struct Written {
    pub planned: Planned,
    pub seq: i64,
    pub day: i32,
}

/// Writes definitions down that are not known yet.
pub(super) async fn insert_definitions(
    connection: &mut PgConnection,
    definitions: &[(DefinitionHash, Bytes)],
) -> Result<(), StoreError> {
    if definitions.is_empty() {
        return Ok(());
    }
    // In one order, so that two who write the same ones do not wait for each other in a circle.
    let sorted: BTreeMap<&str, &[u8]> = definitions
        .iter()
        .map(|(hash, definition)| (&**hash, &**definition))
        .collect();
    let (hashes, bodies): (Vec<&str>, Vec<&[u8]>) = sorted.into_iter().unzip();
    sqlx::query(
        "INSERT INTO definitions (hash, definition)
         SELECT * FROM unnest($1::text[], $2::bytea[]) ON CONFLICT DO NOTHING",
    )
    .bind(hashes)
    .bind(bodies)
    .execute(connection)
    .await
    .map_err(failed)?;
    Ok(())
}

/// Notifications on their way into their table, a column each.
#[derive(Default)]
struct Columns<'a> {
    ids: Vec<&'a [u8]>,
    days: Vec<i32>,
    namespaces: Vec<&'a str>,
    templates: Vec<&'a str>,
    senders: Vec<Cow<'a, str>>,
    bodies: Vec<&'a str>,
    priorities: Vec<i16>,
    /// A JSON array of texts for each: there are no arrays of arrays.
    metadata: Vec<String>,
    sensitive: Vec<bool>,
    accepted_at: Vec<i64>,
    resolve_at: Vec<i64>,
    expires_at: Vec<Option<i64>>,
    pending: Vec<i16>,
}

impl<'a> Columns<'a> {
    fn add(&mut self, request: &'a Request, beginning: Beginning) {
        let resolve_at = request.send_at.unwrap_or(request.accepted_at);
        let accepted_at = millis(request.accepted_at);
        self.ids.push(request.id.as_bytes());
        self.days.push(days::day(accepted_at));
        self.namespaces.push(&request.namespace);
        self.templates.push(&request.template);
        self.senders.push(clean(&request.sender));
        self.bodies.push(&request.body);
        self.priorities.push(request.priority.index() as i16);
        let metadata = request.metadata.iter().map(|(key, value)| term(key, value));
        self.metadata.push(json(&metadata.collect::<Vec<_>>()));
        self.sensitive.push(request.sensitive);
        self.accepted_at.push(accepted_at);
        self.resolve_at.push(millis(resolve_at));
        self.expires_at.push(request.expires_at.map(millis));
        self.pending.push(match beginning {
            Beginning::Resolved => 0,
            Beginning::Unresolved if resolve_at > request.accepted_at => 1,
            Beginning::Unresolved => 2,
        });
    }
}

/// An entry of metadata, as it is kept and looked for.
pub(super) fn term(key: &str, value: &str) -> String {
    format!("{}\u{1f}{}", clean(key), clean(value))
}

pub(super) const INSERT: &str = "INSERT INTO notifications (id, day, namespace, template, sender, body, priority,
        metadata, sensitive, accepted_at, resolve_at, expires_at, pending, resolved, cursor)
    SELECT n.id, n.day, n.namespace, n.template, n.sender, n.body, n.priority,
        ARRAY(SELECT json_array_elements_text(n.metadata::json)),
        n.sensitive, n.accepted_at, n.resolve_at, n.expires_at, n.pending, $14::boolean, $15::text
    FROM unnest($1::bytea[], $2::int[], $3::text[], $4::text[], $5::text[], $6::text[], $7::smallint[],
        $8::text[], $9::boolean[], $10::bigint[], $11::bigint[], $12::bigint[], $13::smallint[])
        AS n(id, day, namespace, template, sender, body, priority, metadata, sensitive, accepted_at,
            resolve_at, expires_at, pending)
    ON CONFLICT (id) DO NOTHING RETURNING seq, id";

pub(super) const KNOWN: &str = "SELECT n.id, n.seq, n.day, n.body FROM unnest($1::bytea[]) AS j(id)
    JOIN notifications AS n ON n.id = j.id";

/// Writes notifications down; answers what became of each.
pub(super) async fn insert(
    connection: &mut PgConnection,
    store: &PostgresStore,
    requests: &[&Request],
    beginning: Beginning,
) -> Result<Vec<Written>, StoreError> {
    // In the order of ids, so that two who write the same ones do not wait for each other in a circle.
    let mut ordered: Vec<&Request> = requests.to_vec();
    ordered.sort_by_key(|request| request.id);
    let mut columns = Columns::default();
    for request in &ordered {
        columns.add(request, beginning);
    }
    let inserted: Vec<(i64, Vec<u8>)> = sqlx::query_as(INSERT)
        .bind(&columns.ids)
        .bind(&columns.days)
        .bind(&columns.namespaces)
        .bind(&columns.templates)
        .bind(&columns.senders)
        .bind(&columns.bodies)
        .bind(&columns.priorities)
        .bind(&columns.metadata)
        .bind(&columns.sensitive)
        .bind(&columns.accepted_at)
        .bind(&columns.resolve_at)
        .bind(&columns.expires_at)
        .bind(&columns.pending)
        .bind(beginning == Beginning::Resolved)
        .bind(json(&Cursor::default()))
        .fetch_all(&mut *connection)
        .await
        .map_err(failed)?;
    let mut new: HashMap<NotificationId, i64> = HashMap::with_capacity(inserted.len());
    for (seq, id) in inserted {
        new.insert(notification_id(&id)?, seq);
    }
    let mut known: HashMap<NotificationId, (i64, i32, String)> = HashMap::new();
    if new.len() < requests.len() {
        let rows: Vec<(Vec<u8>, i64, i32, String)> = sqlx::query_as(KNOWN)
            .bind(&columns.ids)
            .fetch_all(&mut *connection)
            .await
            .map_err(failed)?;
        for (id, seq, day, body) in rows {
            known.insert(notification_id(&id)?, (seq, day, body));
        }
    }
    let mut answers = Vec::with_capacity(requests.len());
    let mut conflicts = Vec::new();
    let mut first = HashSet::with_capacity(new.len());
    let (mut days, mut seqs, mut packed, mut texts) = (vec![], vec![], vec![], vec![]);
    for request in requests {
        if let Some(seq) = new.get(&request.id)
            && first.insert(request.id)
        {
            let day = days::day(millis(request.accepted_at));
            let (is_packed, text) = match asked::pack(request) {
                asked::Packed::Text(text) => (false, text.into_bytes()),
                asked::Packed::Blob(blob) => (true, blob),
            };
            days.push(day);
            seqs.push(*seq);
            packed.push(is_packed);
            texts.push(text);
            answers.push(Written {
                planned: Planned::Inserted,
                seq: *seq,
                day,
            });
            continue;
        }
        let Some((seq, day, body)) = known.get(&request.id) else {
            return Err(corrupt("notifications.id", &"it is there and is not"));
        };
        let planned = if *body == *request.body {
            Planned::Repeat
        } else {
            conflicts.push(*seq);
            Planned::Conflict
        };
        answers.push(Written {
            planned,
            seq: *seq,
            day: *day,
        });
    }
    if !seqs.is_empty() {
        sqlx::query(
            "INSERT INTO requests (day, notification, packed, request)
             SELECT * FROM unnest($1::int[], $2::bigint[], $3::boolean[], $4::bytea[])",
        )
        .bind(days)
        .bind(seqs)
        .bind(packed)
        .bind(texts)
        .execute(&mut *connection)
        .await
        .map_err(|error| store.unwritten(error))?;
    }
    if !conflicts.is_empty() {
        conflicts.sort_unstable();
        sqlx::query(
            "UPDATE notifications AS n SET conflicts = n.conflicts + 1
             FROM unnest($1::bigint[]) AS c(seq) WHERE n.seq = c.seq",
        )
        .bind(conflicts)
        .execute(connection)
        .await
        .map_err(failed)?;
    }
    Ok(answers)
}

/// What a row takes from its notification.
#[derive(Debug, Clone, Copy)]
pub(super) struct Of {
    pub seq: i64,
    pub day: i32,
    pub namespace: i64,
    pub priority: i16,
}

/// Deliveries on their way into their table, a column each.
#[derive(Default)]
pub(super) struct Rows<'a> {
    days: Vec<i32>,
    ids: Vec<&'a [u8]>,
    notifications: Vec<i64>,
    namespaces: Vec<i64>,
    channels: Vec<i64>,
    priorities: Vec<i16>,
    states: Vec<i16>,
    waiting: Vec<i16>,
    recipients: Vec<Cow<'a, str>>,
    endpoints: Vec<Cow<'a, str>>,
    locales: Vec<Cow<'a, str>>,
    created_at: Vec<i64>,
    due_at: Vec<i64>,
    released_at: Vec<Option<i64>>,
    ended_at: Vec<Option<i64>>,
    reasons: Vec<Option<&'a str>>,
}

impl<'a> Rows<'a> {
    /// A row of the waiting room, or one that ends as it is written.
    pub(super) fn planned(&mut self, row: &'a NewDelivery, of: Of, channel: i64, now: i64) {
        let due = millis(row.due);
        let (state, waiting) = match row.suppressed {
            Some(_) => (State::Suppressed, 0),
            None if due > now => (State::Scheduled, 1),
            None => (State::Queued, 2),
        };
        self.row(&row.id, of, channel, &row.endpoint, &row.locale);
        self.recipients.push(clean(&row.recipient));
        self.states.push(i16::from(state as u8));
        self.waiting.push(waiting);
        self.created_at.push(now);
        self.due_at.push(due);
        self.released_at.push(None);
        self.ended_at.push(row.suppressed.map(|_| now));
        self.reasons.push(row.suppressed.map(<&'static str>::from));
    }

    /// A row that is out already, of a bare address.
    pub(super) fn direct(
        &mut self,
        id: &'a DeliveryId,
        of: Of,
        channel: i64,
        endpoint: &'a str,
        locale: &'a str,
        at: i64,
    ) {
        self.row(id, of, channel, endpoint, locale);
        self.recipients.push(Cow::Borrowed(""));
        self.states.push(i16::from(State::Sending as u8));
        self.waiting.push(0);
        self.created_at.push(at);
        self.due_at.push(at);
        self.released_at.push(Some(at));
        self.ended_at.push(None);
        self.reasons.push(None);
    }

    /// The row, to nobody, that stands for all of a notification that cannot be resolved.
    pub(super) fn refused(
        &mut self,
        id: &'a DeliveryId,
        of: Of,
        nowhere: i64,
        reason: &'a str,
        now: i64,
    ) {
        self.row(id, of, nowhere, "", "");
        self.recipients.push(Cow::Borrowed(""));
        self.states.push(i16::from(State::Failed as u8));
        self.waiting.push(0);
        self.created_at.push(now);
        self.due_at.push(now);
        self.released_at.push(None);
        self.ended_at.push(Some(now));
        self.reasons.push(Some(reason));
    }

    fn row(
        &mut self,
        id: &'a DeliveryId,
        of: Of,
        channel: i64,
        endpoint: &'a str,
        locale: &'a str,
    ) {
        self.days.push(of.day);
        self.ids.push(id.as_bytes());
        self.notifications.push(of.seq);
        self.namespaces.push(of.namespace);
        self.channels.push(channel);
        self.priorities.push(of.priority);
        self.endpoints.push(clean(endpoint));
        self.locales.push(clean(locale));
    }

    /// Writes them; those whose id is there already are dropped and not counted. `at` is when those that end do.
    pub(super) async fn write(
        &self,
        connection: &mut PgConnection,
        store: &PostgresStore,
        at: i64,
        tally: &mut Tally,
    ) -> Result<(), StoreError> {
        if self.ids.is_empty() {
            return Ok(());
        }
        let written: Vec<(i64, i16, i64)> = sqlx::query_as(WRITE)
            .bind(&self.days)
            .bind(&self.ids)
            .bind(&self.notifications)
            .bind(&self.namespaces)
            .bind(&self.channels)
            .bind(&self.priorities)
            .bind(&self.states)
            .bind(&self.waiting)
            .bind(&self.recipients)
            .bind(&self.endpoints)
            .bind(&self.locales)
            .bind(&self.created_at)
            .bind(&self.due_at)
            .bind(&self.released_at)
            .bind(&self.ended_at)
            .bind(&self.reasons)
            .fetch_all(connection)
            .await
            .map_err(|error| store.unwritten(error))?;
        for (seq, state, count) in written {
            tally.moved(seq, None, super::state(state.into())?, count, at);
        }
        Ok(())
    }
}

pub(super) const WRITE: &str = "WITH written AS (
        INSERT INTO deliveries (day, id, notification, namespace, channel, priority, state, waiting, recipient,
            endpoint, locale, created_at, due_at, released_at, heard_at, ended_at, reason)
        SELECT day, id, notification, namespace, channel, priority, state, waiting, recipient, endpoint, locale,
            created_at, due_at, released_at, released_at, ended_at, reason
        FROM unnest($1::int[], $2::bytea[], $3::bigint[], $4::bigint[], $5::bigint[], $6::smallint[],
            $7::smallint[], $8::smallint[], $9::text[], $10::text[], $11::text[], $12::bigint[], $13::bigint[],
            $14::bigint[], $15::bigint[], $16::text[])
            AS d(day, id, notification, namespace, channel, priority, state, waiting, recipient, endpoint, locale,
                created_at, due_at, released_at, ended_at, reason)
        ON CONFLICT (day, id) DO NOTHING RETURNING notification, state)
    SELECT notification, state, count(*) FROM written GROUP BY notification, state";
