//! `herald completions`: a script that completes commands in a shell.

use std::io::Write;
use std::process::ExitCode;

use clap::CommandFactory as _;
use clap_complete::Shell;

use super::{Cli, CliError};

/// What its help says.
pub(super) const HELP: &str = "Prints a script that completes commands, options and values in a shell.\n\n\
    Examples:\n  \
    herald completions bash > ~/.local/share/bash-completion/completions/herald\n  \
    herald completions fish > ~/.config/fish/completions/herald.fish\n  \
    herald completions zsh > \"${fpath[1]}/_herald\"";

/// Prints a script that completes commands, options and values in a shell.
#[derive(Debug, clap::Args)]
pub struct Args {
    /// Which shell.
    shell: Shell,
}

/// Writes the script to `out`.
pub fn run(args: &Args, out: &mut dyn Write) -> Result<ExitCode, CliError> {
    let mut script = Vec::new();
    clap_complete::generate(args.shell, &mut Cli::command(), "herald", &mut script);
    out.write_all(&script).map_err(CliError::Print)?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_gets_a_script_that_knows_the_commands() {
        for shell in [
            Shell::Bash,
            Shell::Zsh,
            Shell::Fish,
            Shell::PowerShell,
            Shell::Elvish,
        ] {
            let mut out = Vec::new();
            run(&Args { shell }, &mut out).unwrap();
            let script = String::from_utf8(out).unwrap();
            assert!(
                script.contains("lint") && script.contains("render"),
                "{shell}"
            );
        }
    }
}
