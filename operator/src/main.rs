//! `herald-operator`: makes in a cluster what the resources declare.

use std::io::Write as _;
use std::process::ExitCode;

use clap::Parser as _;
use herald_operator::run::{self, Program};

fn main() -> ExitCode {
    match run::main(Program::parse()) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            // Nobody is left to be told that standard error is closed.
            let _ = writeln!(std::io::stderr(), "error: {error}");
            ExitCode::FAILURE
        }
    }
}
