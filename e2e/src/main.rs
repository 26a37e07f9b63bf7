//! Everything real on one machine: scenarios, faults and benchmarks.
fn main() {}
