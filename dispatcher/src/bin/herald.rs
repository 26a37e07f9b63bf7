//! `herald`: what people type.

use std::io::{ErrorKind, Write as _};
use std::process::ExitCode;

use clap::Parser as _;
use herald_dispatcher::cli::{Cli, CliError};

fn main() -> ExitCode {
    let cli = Cli::parse();
    // Takes the colours out unless it is a terminal that has them. Not locked: while `herald local` serves, its Channels
    // that log write there, too, and would wait for ever.
    let mut out = anstream::stdout();
    let done = cli
        .run(&mut out)
        .and_then(|code| out.flush().map(|()| code).map_err(CliError::Print));
    match done {
        Ok(code) => code,
        // Whoever read it, such as head, has seen enough.
        Err(CliError::Print(error)) if error.kind() == ErrorKind::BrokenPipe => ExitCode::SUCCESS,
        Err(error) => {
            anstream::eprintln!("\u{1b}[1;31merror:\u{1b}[0m {error}");
            ExitCode::from(error.exit_code())
        }
    }
}
