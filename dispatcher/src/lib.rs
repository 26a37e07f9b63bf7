//! Herald's pipeline: `accept → plan → (waiting) → fanout → deliver → record`.
//!
//! # Layout
//!
//! One folder for each stage, in the order in which a notification passes:
//!
//! - [`api`]: HTTP: routes, authentication, problem details, OpenAPI.
//! - [`accept`]: a request becomes a message.
//! - [`plan`]: a message becomes rows of the waiting room, or goes straight on.
//! - [`waiting`]: what waits, and when it is released.
//! - [`fanout`]: a chunk becomes deliveries: filter, render, bundle.
//! - [`deliver`]: priority, rate, retry, once: how any channel is worked off.
//! - [`provider`]: how one provider is spoken to, and nothing else.
//! - [`record`]: events become history; the sweep.
//! - [`people`]: directory, groups, suppressions.
//!
//! The seams: [`broker`] (what moves), [`store`] (what waits and what was), [`catalog`] (what is declared), [`access`] (who
//! calls, and what it may do). What passes
//! between the stages is in [`message`], what makes a repeat recognisable in [`id`]. [`pipeline`] puts the
//! stages behind accepting into one process, [`gateway`] all that serves, [`local`] everything over files; [`cli`] is what
//! people type, `server` what runs in a cluster.
//!
//! Beside them: [`clock`] (what time it is), [`timing`] (every time that is kept), [`metrics`] (what is counted), [`telemetry`] (where logs go), `sqlite`
//! (one writer that commits for many callers, for queue and history).

pub mod accept;
pub mod access;
pub mod api;
pub mod broker;
pub mod catalog;
pub mod cli;
pub mod clock;
#[cfg(feature = "kubernetes")]
pub mod cluster;
pub mod deliver;
pub mod fanout;
pub mod gateway;
pub mod id;
pub mod local;
pub mod message;
pub mod metrics;
pub mod people;
pub mod pipeline;
pub mod plan;
pub mod provider;
pub mod record;
#[cfg(all(feature = "pulsar", feature = "postgres"))]
pub mod server;
mod sqlite;
pub mod store;
pub mod telemetry;
pub mod timing;
pub mod waiting;
