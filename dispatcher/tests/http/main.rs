//! The HTTP API as callers meet it: a real server, queue, database and folder; only the providers rehearse.

#![expect(
    clippy::unwrap_used,
    reason = "helpers of tests: a panic is their failure"
)]

mod access;
mod declared;
mod description;
mod history;
mod orders;
mod permissions;
mod refusals;
mod sending;
mod server;
