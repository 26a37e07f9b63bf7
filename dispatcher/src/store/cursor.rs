//! Where a page begins: the sort key of the last item of the one before, opaque to callers.

use base64::Engine;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::store::{HistoryError, Page, Paging};

/// Longest sort key: an address of 2,048 characters, its medium, and the marks of JSON.
const LONGEST: usize = 4096;

/// The key after which a page begins; `None`: it is the first.
pub(super) fn after<K: DeserializeOwned>(paging: &Paging) -> Result<Option<K>, HistoryError> {
    let Some(cursor) = paging.cursor.as_deref() else {
        return Ok(None);
    };
    if cursor.len() > LONGEST {
        return Err(HistoryError::BadCursor);
    }
    URL_SAFE_NO_PAD
        .decode(cursor)
        .ok()
        .and_then(|key| serde_json::from_slice(&key).ok())
        .map(Some)
        .ok_or(HistoryError::BadCursor)
}

/// How many rows a statement is to answer: one more than fit on the page says whether there is a next one.
pub(super) fn rows(paging: &Paging) -> i64 {
    paging.limit.clamp(1, 1000) as i64 + 1
}

/// A page out of at most [`rows`] items; `key` is the sort key of one.
pub(super) fn page<T, K: Serialize>(
    paging: &Paging,
    mut items: Vec<T>,
    key: impl FnOnce(&T) -> K,
) -> Page<T> {
    let limit = rows(paging) as usize - 1;
    let more = items.len() > limit;
    items.truncate(limit);
    let next = items
        .last()
        .filter(|_| more)
        .map(|last| URL_SAFE_NO_PAD.encode(super::columns::json(&key(last))));
    Page { items, next }
}
