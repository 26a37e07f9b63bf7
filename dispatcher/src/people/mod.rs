//! People: who is in the directory, and how many of them come in at once.
//!
//! # Layout
//!
//! - `recipient`: whether a [`Recipient`](crate::store::Recipient) is right. Pure.
//! - `lines`: a body in pieces becomes lines of bounded length. Pure.
//! - `parse`: a line of NDJSON or CSV becomes a recipient, or says what is wrong with it. Pure.
//! - `import`: the three above, from a stream into the store.

mod import;
mod lines;
mod parse;
mod recipient;

pub use import::{ImportError, ImportReport, LineProblem, import};
pub use lines::MAX_LINE_BYTES;
pub use parse::{Format, HeaderError};
pub use recipient::{MAX_LABELS, problems};
