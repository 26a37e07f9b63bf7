//! What people type: the program `herald`.
//!
//! Each subcommand is a module with its arguments and a `run` that writes to whatever it is given, so that a test
//! reads what a person would. Colours are written always and taken out by the program unless it writes to a terminal.

mod client;
pub mod completions;
#[cfg(feature = "kubernetes")]
pub mod doctor;
pub mod keys;
pub mod lint;
pub mod local;
mod parameters;
pub mod ping;
pub mod render;
pub mod send;
pub mod status;
mod table;
pub mod watch;

use std::io::{self, Write};
use std::path::PathBuf;
use std::process::ExitCode;

use anstyle::{AnsiColor, Style};
use clap::{Parser, Subcommand};

use crate::catalog::folder::ScanError;
use crate::local::LocalError;

pub use client::ClientError;

/// Notifications declared as YAML, sent with one HTTP request.
#[derive(Debug, Parser)]
#[command(
    name = "herald",
    version,
    about = "Notifications declared as YAML, sent with one HTTP request.",
    long_about = "Notifications declared as YAML, sent with one HTTP request.\n\n\
                  Channels, templates, groups and schedules are YAML files in a folder. \
                  `herald lint` says what is wrong with a folder, `herald render` shows what a template says, `herald \
                  send` sends, and `herald status` says what became of it.",
    after_help = "Every command explains itself, with an example: herald lint --help",
    propagate_version = true,
    subcommand_required = true,
    arg_required_else_help = true
)]
pub struct Cli {
    /// What to do.
    #[command(subcommand)]
    pub command: Command,
}

/// What `herald` can do.
#[derive(Debug, Subcommand)]
pub enum Command {
    /// Serve the API and deliver, in one process.
    #[command(long_about = local::HELP)]
    Local(local::Args),
    /// Say everything that is wrong with a folder of YAML.
    #[command(long_about = lint::HELP)]
    Lint(lint::Args),
    /// Show what a template says.
    #[command(long_about = render::HELP)]
    Render(render::Args),
    /// Send a notification.
    #[command(long_about = send::HELP)]
    Send(Box<send::Args>),
    /// Show what became of a notification or a delivery.
    #[command(long_about = status::HELP)]
    Status(status::Args),
    /// Show what happens to deliveries, as it happens.
    #[command(long_about = watch::HELP)]
    Watch(watch::Args),
    /// Make, list and delete API keys.
    #[command(long_about = keys::HELP)]
    Keys(keys::Args),
    /// Say what is wrong with Herald in a cluster, and why.
    #[cfg(feature = "kubernetes")]
    #[command(long_about = doctor::HELP)]
    Doctor(doctor::Args),
    /// Say whether Herald answers.
    #[command(long_about = ping::HELP)]
    Ping(ping::Args),
    /// Print a script that completes commands in a shell.
    #[command(long_about = completions::HELP)]
    Completions(completions::Args),
}

impl Cli {
    /// Does what was asked; writes to `out`. Blocks.
    pub fn run(self, out: &mut dyn Write) -> Result<ExitCode, CliError> {
        match self.command {
            Command::Local(args) => local::run(args, out),
            Command::Lint(args) => lint::run(&args, out),
            Command::Render(args) => render::run(&args, out),
            Command::Send(args) => wait_for(send::run(*args, out)),
            Command::Status(args) => wait_for(status::run(args, out)),
            Command::Watch(args) => wait_for(watch::run(args, out)),
            Command::Keys(args) => wait_for(keys::run(args, out)),
            #[cfg(feature = "kubernetes")]
            Command::Doctor(args) => wait_for(doctor::run(args, out)),
            Command::Ping(args) => wait_for(ping::run(args, out)),
            Command::Completions(args) => completions::run(&args, out),
        }
    }
}

/// Does what has to wait for others: one thread is enough for one caller.
fn wait_for(task: impl Future<Output = Result<ExitCode, CliError>>) -> Result<ExitCode, CliError> {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(|source| CliError::StartRuntime { source })?
        .block_on(task)
}

/// Why a command could not do what was asked. What it found out is no error.
#[derive(Debug, thiserror::Error)]
pub enum CliError {
    /// The folder cannot be looked through.
    #[error("{0}")]
    OpenFolder(#[source] ScanError),
    /// The file of parameters cannot be read.
    #[error(
        "{} cannot be read: {source}; give a file, - for standard input, or the object itself, such as '{{name: value}}'",
        file.display()
    )]
    ReadFile {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// What was given as parameters is neither JSON nor YAML.
    #[error("{place}: {message}")]
    ReadParameters {
        /// File and line.
        place: String,
        /// What is wrong with it.
        message: String,
    },
    /// There is no such template, or more than one.
    #[error("{0}")]
    FindTemplate(String),
    /// The template has no such sample.
    #[error("template {template} has no sample {sample:?}; it has {known}")]
    FindSample {
        /// The template's full name.
        template: String,
        /// The sample asked for.
        sample: String,
        /// Those there are.
        known: String,
    },
    /// There is nothing to render the template with.
    #[error(
        "template {template} has no samples, and needs parameters ({missing}): give --parameters FILE"
    )]
    FindSamples {
        /// The template, as it was asked for.
        template: String,
        /// What is wrong with no parameters at all.
        missing: String,
    },
    /// There is no HTML to show.
    #[error("{0}")]
    ShowHtml(String),
    /// The runtime cannot be started: no threads, say.
    #[error("cannot start: {source}")]
    StartRuntime {
        /// Why.
        source: io::Error,
    },
    /// Nobody would hear Ctrl-C.
    #[error("cannot listen for signals: {source}")]
    ListenForSignals {
        /// Why.
        source: io::Error,
    },
    /// What was asked for does not fit together, or is not in this program.
    #[error("{0}")]
    Choose(&'static str),
    /// There is no cluster to look at.
    #[cfg(feature = "kubernetes")]
    #[error(transparent)]
    Connect(crate::cluster::ConnectError),
    /// What was gathered cannot be written.
    #[cfg(feature = "kubernetes")]
    #[error("{} cannot be written: {source}; name another folder with --bundle", file.display())]
    WriteBundle {
        /// The file.
        file: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// It could not start to serve.
    #[error(transparent)]
    StartLocal(LocalError),
    /// An id is none.
    #[error(
        "{id:?} is no id: a notification's has 32 hexadecimal digits, a delivery's has 24 (`herald status` on the \
         notification lists its deliveries)"
    )]
    ReadId {
        /// What was given.
        id: String,
    },
    /// Herald was asked, and did not answer as hoped.
    #[error("{0}")]
    Ask(#[source] ClientError),
    /// Herald did not take a notification, or did not say so.
    #[error("{source}{}", if source.is_uncertain() {
        format!("\nIt may have been accepted. Send it again with --key {key}: nothing goes out twice.")
    } else {
        String::new()
    })]
    Send {
        /// The Idempotency-Key that it was sent under.
        key: String,
        /// What came back.
        source: ClientError,
    },
    /// A notification was accepted, and then Herald could not be asked about it.
    #[error("it was accepted as {id}, but what became of it could not be asked: {source}")]
    Follow {
        /// Its id.
        id: String,
        /// What came back.
        source: ClientError,
    },
    /// The output cannot be written: the disk is full, or nobody reads it any more.
    #[error("the output cannot be written: {0}")]
    Print(#[source] io::Error),
}

impl CliError {
    /// The program's exit code: 1 if Herald refused or did not answer, 2 if it was not even asked.
    pub fn exit_code(&self) -> u8 {
        match self {
            Self::Ask(source) | Self::Send { source, .. } if !source.has_asked() => 2,
            Self::Ask(_) | Self::Send { .. } | Self::Follow { .. } => 1,
            _ => 2,
        }
    }
}

/// What is wrong.
const BAD: Style = AnsiColor::Red.on_default().bold();
/// What is right.
const GOOD: Style = AnsiColor::Green.on_default().bold();
/// What stands out.
const BOLD: Style = Style::new().bold();
/// What stands back.
const DIM: Style = Style::new().dimmed();

/// `text` in `style`.
fn paint(style: Style, text: &str) -> String {
    format!("{style}{text}{style:#}")
}

/// `text` without what could steer a terminal: line breaks and tabs stay.
fn harmless(text: &str) -> String {
    let mut safe = String::with_capacity(text.len());
    for c in text.chars() {
        match c {
            '\n' | '\t' => safe.push(c),
            c if c.is_control() => safe.extend(c.escape_default()),
            c => safe.push(c),
        }
    }
    safe
}

/// `3 files`, `1 file`.
fn count(number: usize, what: &str) -> String {
    let plural = if number == 1 { "" } else { "s" };
    format!("{number} {what}{plural}")
}

#[cfg(test)]
mod tests {
    use clap::CommandFactory as _;

    use super::*;

    /// The width of a terminal that nobody made wider.
    const LONGEST_EXAMPLE: usize = 80;

    #[test]
    fn the_commands_fit_each_other() {
        Cli::command().debug_assert();
    }

    #[test]
    fn every_command_teaches_by_an_example() {
        for command in Cli::command().get_subcommands_mut() {
            let name = command.get_name().to_owned();
            let help = command.render_long_help().to_string();
            assert!(help.contains(&format!("herald {name} ")), "{help}");
            assert!(help.contains("Example"), "{help}");
            // What is wrapped breaks when it is copied.
            let longest = help.lines().filter(|line| line.contains("herald "));
            for line in longest.filter(|line| line.starts_with("  ")) {
                assert!(line.chars().count() <= LONGEST_EXAMPLE, "{line}");
            }
        }
    }

    fn refused(status: u16) -> CliError {
        let problem = Box::new(crate::api::problem::ProblemBody {
            r#type: String::new(),
            title: "t".to_owned(),
            status,
            detail: String::new(),
            errors: vec![],
        });
        CliError::Send {
            key: "k-1".to_owned(),
            source: ClientError::Refused { problem },
        }
    }

    #[test]
    fn a_lost_answer_says_how_to_repeat_without_sending_twice() {
        assert!(refused(503).to_string().contains("--key k-1"));
        assert!(!refused(422).to_string().contains("--key"));
    }

    #[test]
    fn what_could_steer_a_terminal_is_shown_instead() {
        assert_eq!(harmless("a\u{1b}[2Jb\n\tc\r"), "a\\u{1b}[2Jb\n\tc\\r");
    }
}
