//! Who is meant: members of a directory, and which addresses get nothing (more).

use std::sync::atomic::Ordering;

use jiff::Timestamp;

use super::{SqliteStore, failed, json, millis};
use crate::id::{self, NotificationId};
use crate::message::Suppression;
use crate::store::directory::member;
use crate::store::{Directory, Member, StoreError};

/// By the directory: whoever has the address now, and of each the few deliveries of this notification, whose ids begin with
/// four bytes of the notification's and then those of `id::order`.
pub(super) const REACHED: &str = "SELECT EXISTS (SELECT 1 FROM recipient_addresses AS a
        CROSS JOIN recipients AS r ON r.namespace = ?1 AND r.id = a.id
        CROSS JOIN deliveries AS d ON d.id > unhex(substr(hex(?3), 1, 8) || printf('%08x', r.ord))
            AND d.id < unhex(substr(hex(?3), 1, 8) || printf('%08xffffffffff', r.ord))
        CROSS JOIN notifications AS n ON n.seq = d.notification
        WHERE a.namespace = ?1 AND a.address = (j.value ->> 1) AND d.recipient = a.id
            AND d.channel = (j.value ->> 0) AND d.endpoint = a.address AND n.id = ?3)
    FROM json_each(?2) AS j ORDER BY j.key";

const IDS: &str = "SELECT j.value ->> 1, r.recipient FROM json_each(?2) AS j
    LEFT JOIN recipients AS r ON r.namespace = ?1 AND r.ord = (j.value ->> 0) AND r.id = (j.value ->> 1)
    ORDER BY j.key";

pub(super) const MANAGED: &str = "SELECT m.id, r.recipient FROM members AS m
    LEFT JOIN recipients AS r ON r.namespace = ?1 AND r.ord = m.ord AND r.id = m.id
    WHERE m.group_id = (SELECT id FROM groups WHERE namespace = ?1 AND name = ?2)
        AND m.valid_from <= ?3 AND (m.valid_to IS NULL OR m.valid_to > ?3) AND (m.ord, m.id) > (?4, ?5)
    ORDER BY m.ord, m.id LIMIT ?6";

pub(super) const LABELLED: &str = "SELECT m.id, r.recipient FROM recipient_labels AS m
    LEFT JOIN recipients AS r ON r.namespace = ?1 AND r.ord = m.ord AND r.id = m.id
    WHERE m.namespace = ?1 AND m.key = ?2 AND m.value = ?3
        AND m.valid_from <= ?5 AND (m.valid_to IS NULL OR m.valid_to > ?5) AND (m.ord, m.id) > (?6, ?7)
        AND NOT EXISTS (SELECT 1 FROM json_each(?4) AS l WHERE NOT EXISTS (
            SELECT 1 FROM recipient_labels AS o
            WHERE o.namespace = ?1 AND o.key = (l.value ->> 0) AND o.value = (l.value ->> 1)
                AND o.ord = m.ord AND o.id = m.id
                AND o.valid_from <= ?5 AND (o.valid_to IS NULL OR o.valid_to > ?5)))
    ORDER BY m.ord, m.id LIMIT ?8";

const COUNT_LABELLED: &str = "SELECT count(*) FROM recipient_labels AS m
    WHERE m.namespace = ?1 AND m.key = ?2 AND m.value = ?3
        AND m.valid_from <= ?5 AND (m.valid_to IS NULL OR m.valid_to > ?5)
        AND NOT EXISTS (SELECT 1 FROM json_each(?4) AS l WHERE NOT EXISTS (
            SELECT 1 FROM recipient_labels AS o
            WHERE o.namespace = ?1 AND o.key = (l.value ->> 0) AND o.value = (l.value ->> 1)
                AND o.ord = m.ord AND o.id = m.id
                AND o.valid_from <= ?5 AND (o.valid_to IS NULL OR o.valid_to > ?5)))";

impl SqliteStore {
    /// See [`PlanStore::members`](crate::store::PlanStore::members).
    pub(super) async fn members_of(
        &self,
        namespace: &str,
        directory: &Directory<'_>,
        at: Timestamp,
        after: Option<&(u32, String)>,
        limit: usize,
    ) -> Result<Vec<Member>, StoreError> {
        // Before everybody: no order is negative.
        let (ord, last) = after.map_or((-1, ""), |(ord, id)| (i64::from(*ord), id.as_str()));
        let rows: Vec<(String, Option<String>)> = match directory {
            Directory::Ids(ids) => {
                let wanted: Vec<_> = ids
                    .iter()
                    .skip((ord + 1) as usize)
                    .take(limit)
                    .map(|id| (id::order(id), id))
                    .collect();
                sqlx::query_as(IDS)
                    .bind(namespace.to_owned())
                    .bind(json(&wanted))
                    .fetch_all(&self.readers)
                    .await
            }
            Directory::Managed(group) => {
                sqlx::query_as(MANAGED)
                    .bind(namespace.to_owned())
                    .bind((*group).to_owned())
                    .bind(millis(at))
                    .bind(ord)
                    .bind(last.to_owned())
                    .bind(limit as i64)
                    .fetch_all(&self.readers)
                    .await
            }
            Directory::Labels(labels) => {
                let Some(((key, value), others)) = labels.split_first() else {
                    return Ok(Vec::new());
                };
                sqlx::query_as(LABELLED)
                    .bind(namespace.to_owned())
                    .bind(key.clone())
                    .bind(value.clone())
                    .bind(json(others))
                    .bind(millis(at))
                    .bind(ord)
                    .bind(last.to_owned())
                    .bind(limit as i64)
                    .fetch_all(&self.readers)
                    .await
            }
        }
        .map_err(failed)?;
        Ok(rows.into_iter().map(member).collect())
    }

    /// See [`PlanStore::count_members`](crate::store::PlanStore::count_members).
    pub(super) async fn count_members_of(
        &self,
        namespace: &str,
        directory: &Directory<'_>,
        at: Timestamp,
    ) -> Result<u64, StoreError> {
        let count: i64 = match directory {
            Directory::Ids(ids) => return Ok(ids.len() as u64),
            Directory::Managed(group) => {
                sqlx::query_scalar(
                    "SELECT count(*) FROM members
                     WHERE group_id = (SELECT id FROM groups WHERE namespace = ?1 AND name = ?2)
                         AND valid_from <= ?3 AND (valid_to IS NULL OR valid_to > ?3)",
                )
                .bind(namespace.to_owned())
                .bind((*group).to_owned())
                .bind(millis(at))
                .fetch_one(&self.readers)
                .await
            }
            Directory::Labels(labels) => {
                let Some(((key, value), others)) = labels.split_first() else {
                    return Ok(0);
                };
                sqlx::query_scalar(COUNT_LABELLED)
                    .bind(namespace.to_owned())
                    .bind(key.clone())
                    .bind(value.clone())
                    .bind(json(others))
                    .bind(millis(at))
                    .fetch_one(&self.readers)
                    .await
            }
        }
        .map_err(failed)?;
        Ok(count as u64)
    }

    /// See [`PlanStore::suppressed`](crate::store::PlanStore::suppressed).
    pub(super) async fn suppressed_among(
        &self,
        namespace: &str,
        addresses: &[(&str, &str)],
    ) -> Result<Vec<Option<Suppression>>, StoreError> {
        if addresses.is_empty() || !self.suppressing.load(Ordering::Acquire) {
            return Ok(vec![None; addresses.len()]);
        }
        let reasons: Vec<Option<String>> = sqlx::query_scalar(
            "SELECT (SELECT reason FROM suppressions
                 WHERE namespace = ?1 AND address = (a.value ->> 1) AND medium = (a.value ->> 0))
             FROM json_each(?2) AS a ORDER BY a.key",
        )
        .bind(namespace.to_owned())
        .bind(json(addresses))
        .fetch_all(&self.readers)
        .await
        .map_err(failed)?;
        let of_list = |reason: Option<String>| reason.as_deref().map(Suppression::of_list);
        Ok(reasons.into_iter().map(of_list).collect())
    }

    /// See [`PlanStore::reached`](crate::store::PlanStore::reached).
    pub(super) async fn reached_among(
        &self,
        namespace: &str,
        notification: &NotificationId,
        endpoints: &[(&str, &str)],
    ) -> Result<Vec<bool>, StoreError> {
        let numbered: Vec<_> = endpoints
            .iter()
            .map(|(channel, address)| (self.known_channel(channel), address))
            .collect();
        sqlx::query_scalar(REACHED)
            .bind(namespace.to_owned())
            .bind(json(&numbered))
            .bind(notification.as_bytes().as_slice())
            .fetch_all(&self.readers)
            .await
            .map_err(failed)
    }
}
