//! Herald.
//!
//! # Layout
//!
//! - [`deliver`]: how any channel is worked off: priority, rate, retry, once.

pub mod deliver;
