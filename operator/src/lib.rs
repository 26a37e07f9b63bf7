//! Herald's operator.
//!
//! # Layout
//!
//! - [`pulsar_admin`]: Pulsar's tenants, namespaces, topics, policies and grants; knows no Kubernetes.
//! - `fence`: what goes on only for as long as it may: a write, while the Lease counts.
//!
//! The rest needs the feature `kubernetes`, in the order in which it is met:
//!
//! - `settings`, `telemetry`, `metrics`, `probes`: how it is set up, and what it tells.
//! - `run`: from its start to SIGTERM. `release`: what is done before it is uninstalled. `leader`: of several, one works.
//! - `watch`: what is followed, kept in memory, and whom a change concerns. `queue`: who is to be looked at.
//! - `context`: what every reconciler has. `backoff`, `written`, `apply`, `status`: what they share.
//! - `channel`, `template`, `group`, `schedule`: a kind each, and in each a file for each step of reconciling:
//!   `dereference` (reads), `validate` and `build` (pure), `apply` (writes), `status` (writes).
//! - `gateway`: what the gateways know of channels and schedules. `system`: the topics that belong to no Channel.

#[cfg(feature = "kubernetes")]
pub mod apply;
#[cfg(feature = "kubernetes")]
pub mod backoff;
#[cfg(feature = "kubernetes")]
pub mod channel;
#[cfg(feature = "kubernetes")]
pub mod context;
#[cfg(feature = "kubernetes")]
pub mod error;
mod fence;
#[cfg(all(test, feature = "kubernetes"))]
#[allow(
    clippy::unwrap_used,
    reason = "tests alone use it: what fails is a panic"
)]
mod fixtures;
#[cfg(feature = "kubernetes")]
pub mod gateway;
#[cfg(feature = "kubernetes")]
pub mod group;
#[cfg(feature = "kubernetes")]
pub mod leader;
#[cfg(feature = "kubernetes")]
pub mod metrics;
#[cfg(feature = "kubernetes")]
pub mod probes;
pub mod pulsar_admin;
#[cfg(feature = "kubernetes")]
pub mod queue;
#[cfg(feature = "kubernetes")]
pub mod release;
#[cfg(feature = "kubernetes")]
pub mod run;
#[cfg(feature = "kubernetes")]
pub mod schedule;
#[cfg(feature = "kubernetes")]
pub mod settings;
#[cfg(feature = "kubernetes")]
pub mod status;
#[cfg(feature = "kubernetes")]
pub mod system;
#[cfg(feature = "kubernetes")]
pub mod telemetry;
#[cfg(feature = "kubernetes")]
pub mod template;
#[cfg(feature = "kubernetes")]
pub mod watch;
#[cfg(feature = "kubernetes")]
pub mod written;
