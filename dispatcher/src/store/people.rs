//! People, groups, suppressions, schedules, keys: what is kept about who may send what to whom.

use std::collections::BTreeMap;

use async_trait::async_trait;
use herald_crds::{Address, Schedule};
use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::{HistoryError, Page, Paging, StoreError};

/// Somebody in the directory.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
pub struct Recipient {
    /// The id by which senders and groups name this person, 1 to 128 characters.
    #[serde(default)]
    pub id: String,
    /// BCP 47, such as `ko` or `pt-BR`; absent: each template's default.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub locale: Option<String>,
    /// IANA, such as `Asia/Seoul`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub time_zone: Option<String>,
    /// Where this person can be reached.
    #[serde(default)]
    #[schema(value_type = Object)]
    pub addresses: Address,
    /// For group selectors and for templates (`recipient.labels`), at most 64.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
}

/// An address to which nothing is sent.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, utoipa::ToSchema)]
#[serde(rename_all = "camelCase")]
pub struct SuppressedAddress {
    /// `email`, `sms`, `webhook`, …
    pub medium: String,
    /// The address.
    pub address: String,
    /// Why: `opted-out`, `address-gone`, or what the caller said.
    pub reason: String,
    /// Since when.
    #[schema(value_type = String, format = DateTime)]
    pub since: Timestamp,
}

/// Which of the schedules that ever had a name: one that is deleted and made anew begins anew.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Incarnation<'a> {
    /// Its uid in Kubernetes; `None`: it is in a folder, and whatever has its name is the same.
    pub uid: Option<&'a str>,
    /// Since when it is there; `None`: since it was first seen.
    pub created_at: Option<Timestamp>,
}

impl<'a> Incarnation<'a> {
    /// As it is declared.
    pub fn of(schedule: &'a Schedule) -> Self {
        let metadata = &schedule.metadata;
        Self {
            uid: metadata.uid.as_deref(),
            created_at: metadata.creation_timestamp.as_ref().map(|time| time.0),
        }
    }

    /// From when on it is due, if it is first seen `now`: whose clock is ahead has not made it later than that.
    pub(super) fn begins(&self, now: Timestamp) -> Timestamp {
        self.created_at.map_or(now, |created| created.min(now))
    }

    /// Whether what is kept is of one before it. One that has gone since, which somebody still sees, changes nothing.
    pub(super) fn replaces(&self, kept: &ScheduleRecord, now: Timestamp) -> bool {
        self.uid.is_some()
            && kept.uid.as_deref() != self.uid
            && (kept.uid.is_none() || kept.created_at <= self.begins(now))
    }
}

/// Where a schedule stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleRecord {
    /// Which one it is of; `None`: whichever has the name.
    pub uid: Option<String>,
    /// When it was made, else first seen: the first due time follows from here.
    pub created_at: Timestamp,
    /// The due time that is done with last: it fired, or was skipped.
    pub last_due: Option<Timestamp>,
    /// The due time that fired last.
    pub last_fired: Option<Timestamp>,
    /// What it sent then.
    pub last_notification: Option<crate::id::NotificationId>,
    /// What was refused last, if nothing fired since.
    pub refused: Option<RefusedDue>,
    /// Due times that were skipped, ever.
    pub missed: u64,
}

impl ScheduleRecord {
    /// Due times up to this one are done with, or of another time: the next one follows from here.
    pub fn done_until(&self) -> Timestamp {
        // What somebody noted late for the one before does not make this one older than it is.
        let last = self.last_due.unwrap_or(self.created_at);
        last.max(self.created_at)
    }
}

/// A due time of a schedule that could not be sent.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RefusedDue {
    /// Which one.
    pub due: Timestamp,
    /// What was refused: the digest of the schedule as it was declared then. It says nothing of one with another.
    pub declared: [u8; 32],
    /// Why, in words for whoever declared it.
    pub message: String,
}

/// An API key, without the key.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ApiKey {
    /// The sender's name.
    pub name: String,
    /// SHA-256 of the key.
    pub digest: [u8; 32],
    /// What it may do.
    pub scopes: Vec<String>,
    /// When it was made.
    pub created_at: Timestamp,
}

/// What is kept about people, schedules and keys. Rows have validity times: who joins a group after a notification's
/// moment of release does not get it, who left before does not either.
#[async_trait]
pub trait PeopleStore {
    /// Writes recipients, each replaced whole; answers for each whether it is new.
    async fn put_recipients(
        &self,
        namespace: &str,
        recipients: &[Recipient],
        now: Timestamp,
    ) -> Result<Vec<bool>, StoreError>;

    /// Writes a recipient if it is still as `expected` (`None`: not there); `false`, and nothing written, if it is not.
    async fn replace_recipient(
        &self,
        namespace: &str,
        recipient: &Recipient,
        expected: Option<&Recipient>,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// One recipient as it is now.
    async fn recipient(&self, namespace: &str, id: &str) -> Result<Option<Recipient>, StoreError>;

    /// Recipients by id prefix or address (`query`) and labels, in the order of their ids.
    async fn recipients(
        &self,
        namespace: &str,
        query: Option<&str>,
        labels: &[(String, String)],
        paging: &Paging,
    ) -> Result<Page<Recipient>, HistoryError>;

    /// Ends a recipient and its memberships; `false` if there was none.
    async fn delete_recipient(
        &self,
        namespace: &str,
        id: &str,
        now: Timestamp,
    ) -> Result<bool, StoreError>;

    /// Adds and removes members of a managed group; answers how many were added and removed.
    async fn change_members(
        &self,
        namespace: &str,
        group: &str,
        add: &[String],
        remove: &[String],
        now: Timestamp,
    ) -> Result<(u64, u64), StoreError>;

    /// The members of a managed group, in the order of their ids.
    async fn group_members(
        &self,
        namespace: &str,
        group: &str,
        paging: &Paging,
    ) -> Result<Page<String>, HistoryError>;

    /// Puts an address on the suppression list.
    async fn suppress(
        &self,
        namespace: &str,
        address: &SuppressedAddress,
    ) -> Result<(), StoreError>;

    /// Takes an address off the suppression list; `false` if it was not on it.
    async fn unsuppress(
        &self,
        namespace: &str,
        medium: &str,
        address: &str,
    ) -> Result<bool, StoreError>;

    /// What the suppression list says about an address; `None`: it is not on it.
    async fn suppression(
        &self,
        namespace: &str,
        medium: &str,
        address: &str,
    ) -> Result<Option<SuppressedAddress>, StoreError>;

    /// The suppression list, in the order of addresses.
    async fn suppressions(
        &self,
        namespace: &str,
        paging: &Paging,
    ) -> Result<Page<SuppressedAddress>, HistoryError>;

    /// Where a schedule stands. A new one begins when it was made, else `now`; nothing is kept of another before it that
    /// had its name.
    async fn schedule(
        &self,
        namespace: &str,
        name: &str,
        incarnation: Incarnation<'_>,
        now: Timestamp,
    ) -> Result<ScheduleRecord, StoreError>;

    /// Notes that a schedule fired for `due` (or, without a notification, that it was skipped) with so many missed before it.
    async fn schedule_fired(
        &self,
        namespace: &str,
        name: &str,
        due: Timestamp,
        notification: Option<crate::id::NotificationId>,
        missed: u64,
    ) -> Result<(), StoreError>;

    /// Notes that a schedule could not be sent, in place of what was refused before.
    async fn schedule_refused(
        &self,
        namespace: &str,
        name: &str,
        refused: &RefusedDue,
    ) -> Result<(), StoreError>;

    /// All API keys.
    async fn keys(&self) -> Result<Vec<ApiKey>, StoreError>;

    /// Writes an API key; one with the same name is replaced.
    async fn put_key(&self, key: &ApiKey) -> Result<(), StoreError>;

    /// Writes an API key; answers false, and changes nothing, if there is one with its name.
    async fn add_key(&self, key: &ApiKey) -> Result<bool, StoreError>;

    /// Takes an API key away; answers whether there was one.
    async fn delete_key(&self, name: &str) -> Result<bool, StoreError>;
}
