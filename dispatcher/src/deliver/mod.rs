//! How any channel is worked off: priority, rate, retry, once.
//!
//! - [`worker`]: takes deliveries, chooses, sends, and says how it goes; [`outcomes`]: tells what became of them and
//!   acknowledges.
//! - [`priority`]: which class is served next. [`queue`]: what is held. [`rate`]: when the next may begin; [`share`]: how
//!   much of that is one pod's.
//! - [`ledger`] and [`settled`]: what the events tell about copies, orders and pace.
//! - [`breaker`]: which provider may be asked. [`retry`]: what follows an attempt. [`relays`]: the two short delays.
//! - [`load`]: how the channel is, for everyone who asks. [`pod`]: a worker as the Channel is declared, and a process for it;
//!   [`watchdog`]: ends that process if it hangs.

pub mod breaker;
pub mod ledger;
pub mod load;
pub mod outcomes;
pub mod pod;
pub mod priority;
pub mod queue;
pub mod rate;
pub mod relays;
pub mod retry;
pub mod settled;
pub mod share;
pub mod watchdog;
pub mod worker;
