//! People, groups, suppressions, schedules, keys: what is kept about who may send what to whom.

use std::collections::BTreeMap;

use async_trait::async_trait;
use herald_crds::Address;
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

/// Where a schedule stands.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ScheduleRecord {
    /// When it was first seen: the first due time follows from here.
    pub created_at: Timestamp,
    /// The due time that fired last.
    pub last_due: Option<Timestamp>,
    /// What it sent then.
    pub last_notification: Option<crate::id::NotificationId>,
    /// Due times that were skipped, ever.
    pub missed: u64,
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

    /// Where a schedule stands; a new one is created as of `now`.
    async fn schedule(
        &self,
        namespace: &str,
        name: &str,
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

    /// All API keys.
    async fn keys(&self) -> Result<Vec<ApiKey>, StoreError>;

    /// Writes an API key; one with the same name is replaced.
    async fn put_key(&self, key: &ApiKey) -> Result<(), StoreError>;

    /// Writes an API key; answers false, and changes nothing, if there is one with its name.
    async fn add_key(&self, key: &ApiKey) -> Result<bool, StoreError>;

    /// Takes an API key away; answers whether there was one.
    async fn delete_key(&self, name: &str) -> Result<bool, StoreError>;
}
