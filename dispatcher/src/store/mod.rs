//! The seam to SQL: what waits, what was, definitions and people.
//!
//! One trait for each stage that needs SQL, so that a stage's needs can be read in one place. Every method is one short
//! transaction (group-committed where the database is embedded), is repeated safely, and takes `now` rather than
//! reading a clock.
//!
//! - `plan`, `waiting`, `record`, `history`, `people`: what each stage needs. `sqlite`, `postgres`: how it is done.
//! - What both databases do alike, pure: `fold`, how an event changes a row; `tally`, how many deliveries of a
//!   notification are in which state; `turns`, how a chunk is divided; `trail`, how a trail is told; `asked`, what was
//!   asked, as it is kept; `directory`, what changes with people; `cursor`, where a page begins; `columns`, the rest.

mod asked;
mod columns;
#[cfg(test)]
pub(crate) mod contract;
mod cursor;
mod directory;
mod fold;
mod history;
mod people;
mod plan;
#[cfg(feature = "postgres")]
pub mod postgres;
mod record;
pub mod sqlite;
mod tally;
mod trail;
mod turns;
mod waiting;

pub use history::*;
pub use people::*;
pub use plan::*;
pub use record::*;
pub use waiting::*;

/// Everything a store does.
pub trait Store:
    PlanStore + WaitingStore + RecordStore + HistoryStore + PeopleStore + Send + Sync + 'static
{
}

impl<T: PlanStore + WaitingStore + RecordStore + HistoryStore + PeopleStore + Send + Sync + 'static>
    Store for T
{
}

/// What can go wrong with a store.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The database is away, locked or full: passes; try again later (HTTP: 503).
    #[error("the database is not available: {reason}")]
    Unavailable {
        /// What the database said.
        reason: String,
    },
    /// The database could not be opened.
    #[error("cannot open the database {path}: {reason}")]
    Open {
        /// Which file or address.
        path: String,
        /// Why, and what to do.
        reason: String,
    },
    /// What was read is not what Herald wrote.
    #[error("the database holds something unexpected in {place}: {reason}")]
    Corrupt {
        /// Table and column.
        place: &'static str,
        /// What is wrong with it.
        reason: String,
    },
}
