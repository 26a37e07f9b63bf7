//! What the scenarios, the benchmarks and the tests against real servers share.

#[cfg(feature = "pulsar")]
pub mod client;
pub mod environment;
pub mod process;
