//! What was asked, as the store keeps it: JSON, compressed if it is long.

use super::columns;
use super::columns::corrupt;
use crate::message::Request;
use crate::store::StoreError;

/// JSON longer than this is compressed.
const LONG: usize = 16 * 1024;

/// Most bytes that a compressed request may become: a request of the largest size that is accepted is far below.
const MOST: usize = 64 * 1024 * 1024;

/// A request as its column holds it.
pub(super) enum Packed {
    /// JSON.
    Text(String),
    /// zstd of JSON.
    Blob(Vec<u8>),
}

/// Sensitive requests are never compressed, so that SQL can blank their parameters.
pub(super) fn pack(request: &Request) -> Packed {
    let text = columns::json(request);
    if text.len() <= LONG || request.sensitive {
        return Packed::Text(text);
    }
    match zstd::bulk::compress(text.as_bytes(), 1) {
        Ok(blob) => Packed::Blob(blob),
        Err(_) => Packed::Text(text),
    }
}

/// The request from its column (`packed`: it was a blob), with the class that it has now.
pub(super) fn unpack(packed: bool, column: &[u8], priority: i64) -> Result<Request, StoreError> {
    const PLACE: &str = "requests.request";
    let unpacked;
    let text = if packed {
        unpacked = zstd::bulk::decompress(column, MOST).map_err(|error| corrupt(PLACE, &error))?;
        &unpacked
    } else {
        column
    };
    let mut request: Request =
        serde_json::from_slice(text).map_err(|error| corrupt(PLACE, &error))?;
    request.priority = columns::priority(priority)?;
    Ok(request)
}
