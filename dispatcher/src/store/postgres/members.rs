//! Who is meant: members of a directory, and which addresses get nothing (more).

use jiff::Timestamp;

use super::{PostgresStore, clean, failed, millis};
use crate::id::{self, NotificationId};
use crate::message::Suppression;
use crate::store::directory::member;
use crate::store::{Directory, Member, StoreError};

impl PostgresStore {
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
                let wanted = ids.iter().skip((ord + 1) as usize).take(limit);
                let (orders, ids): (Vec<i64>, Vec<&str>) =
                    wanted.map(|id| (i64::from(id::order(id)), &**id)).unzip();
                sqlx::query_as(IDS)
                    .bind(namespace)
                    .bind(orders)
                    .bind(ids)
                    .fetch_all(&self.pool)
                    .await
            }
            Directory::Managed(group) => {
                sqlx::query_as(MANAGED)
                    .bind(namespace)
                    .bind(*group)
                    .bind(millis(at))
                    .bind(ord)
                    .bind(last)
                    .bind(limit as i64)
                    .fetch_all(&self.pool)
                    .await
            }
            Directory::Labels(labels) => {
                let Some(((key, value), others)) = labels.split_first() else {
                    return Ok(Vec::new());
                };
                let (keys, values) = columns(others);
                sqlx::query_as(LABELLED)
                    .bind(namespace)
                    .bind(key)
                    .bind(value)
                    .bind(keys)
                    .bind(values)
                    .bind(millis(at))
                    .bind(ord)
                    .bind(last)
                    .bind(limit as i64)
                    .fetch_all(&self.pool)
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
                sqlx::query_scalar(COUNT_MANAGED)
                    .bind(namespace)
                    .bind(*group)
                    .bind(millis(at))
                    .fetch_one(&self.pool)
                    .await
            }
            Directory::Labels(labels) => {
                let Some(((key, value), others)) = labels.split_first() else {
                    return Ok(0);
                };
                let (keys, values) = columns(others);
                sqlx::query_scalar(COUNT_LABELLED)
                    .bind(namespace)
                    .bind(key)
                    .bind(value)
                    .bind(keys)
                    .bind(values)
                    .bind(millis(at))
                    .fetch_one(&self.pool)
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
        if addresses.is_empty() {
            return Ok(Vec::new());
        }
        let (mediums, texts): (Vec<&str>, Vec<_>) = addresses
            .iter()
            .map(|(medium, address)| (*medium, clean(address)))
            .unzip();
        let reasons: Vec<Option<String>> = sqlx::query_scalar(SUPPRESSED)
            .bind(namespace)
            .bind(mediums)
            .bind(texts)
            .fetch_all(&self.pool)
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
        let mut numbers = Vec::with_capacity(endpoints.len());
        let mut addresses = Vec::with_capacity(endpoints.len());
        for (channel, address) in endpoints {
            numbers.push(self.known_channel(channel).await?);
            addresses.push(clean(address));
        }
        sqlx::query_scalar(REACHED)
            .bind(namespace)
            .bind(numbers)
            .bind(addresses)
            .bind(notification.as_bytes().as_slice())
            .fetch_all(&self.pool)
            .await
            .map_err(failed)
    }
}

/// Labels as two columns.
pub(super) fn columns(labels: &[(String, String)]) -> (Vec<&str>, Vec<&str>) {
    let pairs = labels.iter();
    pairs
        .map(|(key, value)| (key.as_str(), value.as_str()))
        .unzip()
}

pub(super) const IDS: &str = "SELECT j.id, r.recipient
    FROM unnest($2::bigint[], $3::text[]) WITH ORDINALITY AS j(ord, id, place)
    LEFT JOIN recipients AS r ON r.namespace = $1 AND r.ord = j.ord AND r.id = j.id
    ORDER BY j.place";

pub(super) const MANAGED: &str = "SELECT m.id, r.recipient FROM members AS m
    LEFT JOIN recipients AS r ON r.namespace = $1 AND r.ord = m.ord AND r.id = m.id
    WHERE m.group_id = (SELECT id FROM groups WHERE namespace = $1 AND name = $2)
        AND m.valid_from <= $3 AND (m.valid_to IS NULL OR m.valid_to > $3) AND (m.ord, m.id) > ($4, $5)
    ORDER BY m.ord, m.id LIMIT $6";

pub(super) const COUNT_MANAGED: &str = "SELECT count(*) FROM members
    WHERE group_id = (SELECT id FROM groups WHERE namespace = $1 AND name = $2)
        AND valid_from <= $3 AND (valid_to IS NULL OR valid_to > $3)";

/// Has one label: `m` has all the others, too (`$4` keys, `$5` values), at `$6`.
macro_rules! labelled {
    ($what:literal, $rest:literal) => {
        concat!(
            $what,
            " WHERE m.namespace = $1 AND m.key = $2 AND m.value = $3
                AND m.valid_from <= $6 AND (m.valid_to IS NULL OR m.valid_to > $6)
                AND NOT EXISTS (SELECT 1 FROM unnest($4::text[], $5::text[]) AS l(key, value) WHERE NOT EXISTS (
                    SELECT 1 FROM recipient_labels AS o
                    WHERE o.namespace = $1 AND o.key = l.key AND o.value = l.value AND o.ord = m.ord AND o.id = m.id
                        AND o.valid_from <= $6 AND (o.valid_to IS NULL OR o.valid_to > $6)))",
            $rest
        )
    };
}

pub(super) const LABELLED: &str = labelled!(
    "SELECT m.id, r.recipient FROM recipient_labels AS m
     LEFT JOIN recipients AS r ON r.namespace = $1 AND r.ord = m.ord AND r.id = m.id",
    " AND (m.ord, m.id) > ($7, $8) ORDER BY m.ord, m.id LIMIT $9"
);

pub(super) const COUNT_LABELLED: &str = labelled!("SELECT count(*) FROM recipient_labels AS m", "");

pub(super) const SUPPRESSED: &str = "SELECT (SELECT s.reason FROM suppressions AS s
        WHERE s.namespace = $1 AND s.address = a.address AND s.medium = a.medium)
    FROM unnest($2::text[], $3::text[]) WITH ORDINALITY AS a(medium, address, place) ORDER BY a.place";

/// By the directory: whoever has the address now, and of each the few deliveries of this notification, whose ids begin with
/// four bytes of the notification's and then those of `id::order`.
pub(super) const REACHED: &str = "SELECT coalesce((
        SELECT true FROM recipient_addresses AS a
        JOIN recipients AS r ON r.namespace = $1 AND r.id = a.id
        CROSS JOIN notifications AS n
        CROSS JOIN LATERAL (
            SELECT 1 FROM deliveries AS d
            WHERE d.day = n.day AND d.id > substr(n.id, 1, 4) || decode(lpad(to_hex(r.ord), 8, '0'), 'hex')
                AND d.id < substr(n.id, 1, 4) || decode(lpad(to_hex(r.ord), 8, '0') || 'ffffffffff', 'hex')
                AND d.notification = n.seq AND d.recipient = a.id AND d.channel = j.channel AND d.endpoint = a.address
            LIMIT 1) AS w
        WHERE a.namespace = $1 AND a.address = j.address AND n.id = $4 LIMIT 1), false)
    FROM unnest($2::bigint[], $3::text[]) WITH ORDINALITY AS j(channel, address, place) ORDER BY j.place";
