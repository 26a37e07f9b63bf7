//! What the scenarios, the benchmarks and the tests against real servers share.

pub mod environment;
pub mod process;
