//! Herald's four resources.
//!
//! # Layout
//!
//! - [`priority`]: how urgent a notification is.

pub mod priority;

pub use priority::Priority;
