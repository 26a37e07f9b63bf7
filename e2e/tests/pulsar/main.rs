//! Pulsar as the broker, against a real one: what every broker promises, and what only shows when it breaks.

#![allow(clippy::unwrap_used, reason = "these are tests: what fails is a panic")]

mod admin;
mod between;
mod breaks;
mod contract;
mod encrypted;
mod pace;
mod silence;
mod subject;
