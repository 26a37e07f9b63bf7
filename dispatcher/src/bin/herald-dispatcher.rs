//! `herald-dispatcher`: the servers of a cluster.

use std::process::ExitCode;

use clap::Parser as _;
use herald_dispatcher::server::{self, Program};

fn main() -> ExitCode {
    match server::run(&Program::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("\u{1b}[1;31merror:\u{1b}[0m {error}");
            ExitCode::FAILURE
        }
    }
}
