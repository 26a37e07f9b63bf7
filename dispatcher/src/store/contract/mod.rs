//! What every store promises, as tests that each one runs: a function for each promise, given an empty store.

pub mod dead;
pub mod histories;
pub mod history;
pub mod people;
pub mod planning;
pub mod recording;
pub mod releasing;
pub mod schedules;
pub mod stages;
