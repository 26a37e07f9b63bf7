//! How any channel is worked off.
//!
//! - [`priority`]: which class is served next.

pub mod priority;
