//! Accept: a request becomes a message.
//!
//! # Layout
//!
//! - [`sender`]: who asks, and what it may do.

pub mod sender;

pub use sender::{Scope, Scopes, Sender};
